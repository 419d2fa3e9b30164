"""CONNECT and extended CONNECT (RFC 9113, 8.5; RFC 8441): tunnels through streams of a shared connection."""

from __future__ import annotations

import gc
import os
import queue
import warnings
from typing import Any

import pytest
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, RstStreamFrame
from wire_peer import CANCEL, wait_until

from tlsagent import ConnectionLost, LocalProtocolError, RequestError
from tlsagent.testing import Server
from tlsagent.testing.frames import FramePeer

HTTP2 = ("h2", "http/1.1")
BOTH = pytest.mark.parametrize("extended", [False, True], ids=["connect", "extended"])


@pytest.fixture
def h2_server():
    """Return a server that speaks HTTP/2 and takes extended CONNECT."""
    with Server(alpn_protocols=HTTP2, enable_connect_protocol=True) as server:
        yield server


def open_tunnel(agent: Any, server: Server, *, extended: bool = False) -> Any:
    """Return the response to a CONNECT."""
    if extended:
        return agent.open_stream("CONNECT", server.url + "/chat?room=1", headers={":protocol": "websocket"})
    return agent.open_stream("CONNECT", server.url)


@BOTH
def test_bytes_go_both_ways_and_others_share_the_connection(open_agent, h2_server, extended):
    """
    What a 2xx to CONNECT opens is one stream: bytes go both ways, while other requests use the same connection.
    """
    agent = open_agent(ca=h2_server.ca_pem)
    response = open_tunnel(agent, h2_server, extended=extended)
    raw = response.upgrade()

    raw.send(b"hello")
    assert raw.recv() == b"hello"
    other = agent.request("GET", h2_server.url + "/hello")
    raw.send(b"abcdef")

    assert (raw.recv(4), raw.recv(4)) == (b"abcd", b"ef")
    assert (response.status, response.http_version) == (200, "HTTP/2")
    assert other.connection.id == response.connection.id == raw.info.id
    assert agent.stats().opened == 1
    raw.close()
    raw.close()
    assert wait_until(lambda: agent.stats().active == 0)
    assert agent.request("GET", h2_server.url + "/hello").connection.id == other.connection.id


def test_server_sees_what_an_extended_connect_asks_for(open_agent):
    """
    The head of an extended CONNECT has scheme and path beside the protocol; that of a CONNECT has the authority alone.
    """
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body"})

    with Server(alpn_protocols=HTTP2, enable_connect_protocol=True, app=app) as server:
        agent = open_agent(ca=server.ca_pem)
        open_tunnel(agent, server, extended=True).close()
        open_tunnel(agent, server).close()

    extended, plain = scopes
    assert extended["extensions"]["tlsagent.upgrade"] == {"protocol": "websocket"}
    assert (extended["path"], extended["query_string"]) == ("/chat", b"room=1")
    assert plain["extensions"]["tlsagent.upgrade"] == {"protocol": None}
    assert plain["raw_path"] == server.url.removeprefix("https://").encode()


@BOTH
def test_megabytes_respect_the_windows(open_agent, h2_server, extended):
    """
    Four megabytes go through the windows of both sides and come back.
    """
    data = os.urandom(65_536)
    agent = open_agent(ca=h2_server.ca_pem)
    raw = open_tunnel(agent, h2_server, extended=extended).upgrade()

    for _ in range(60):
        raw.send(data)
        came = b""
        while len(came) < len(data):
            came += raw.recv()
        assert came == data
    raw.close()


def test_refused_connect_is_a_response(open_agent):
    """
    Where the server opens no tunnel there is nothing to take over, and its answer is read as any other.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b"not for you"})

    with Server(alpn_protocols=HTTP2, app=app) as server:
        agent = open_agent(ca=server.ca_pem)
        response = agent.open_stream("CONNECT", server.url)

        with pytest.raises(LocalProtocolError, match="answered 403"):
            response.upgrade()

        assert response.read() == b"not for you"
        assert wait_until(lambda: agent.stats().active == 0)
        assert agent.stats().idle == 1


def test_extended_connect_needs_a_server_that_takes_it(open_agent):
    """
    The error says whose fault it is, be it HTTP/2 without the setting, or HTTP/1.1; the connection is kept.
    """
    for alpn in (HTTP2, ("http/1.1",)):
        with Server(alpn_protocols=alpn, enable_connect_protocol=False) as server:
            agent = open_agent(ca=server.ca_pem)

            with pytest.raises(LocalProtocolError, match="extended CONNECT"):
                open_tunnel(agent, server, extended=True)

            assert agent.request("GET", server.url + "/hello").status == 200
            assert agent.stats().opened == 1


def test_protocol_must_be_a_name(open_agent, h2_server):
    """
    A value that is no token is refused before anything is opened.
    """
    agent = open_agent(ca=h2_server.ca_pem)

    with pytest.raises(LocalProtocolError, match=":protocol"):
        agent.open_stream("CONNECT", h2_server.url, headers={":protocol": "web socket"})

    assert agent.stats().opened == 0


def test_server_that_leaves_ends_the_tunnel(open_agent, h2_server):
    """
    When the connection goes, whoever reads the tunnel learns of it, and so does who writes.
    """
    agent = open_agent(ca=h2_server.ca_pem)
    raw = open_tunnel(agent, h2_server).upgrade()
    raw.send(b"x")
    assert raw.recv() == b"x"

    h2_server.close()

    with pytest.raises(RequestError):
        raw.recv()
    with pytest.raises(ConnectionLost):
        raw.send(b"x")
    raw.close()


@pytest.mark.parametrize("first", ["server", "client"])
def test_server_is_told_that_a_tunnel_is_closed(open_agent, open_frames, first):
    """
    Once the server has ended its side, closing ends ours, and that is all; before that the stream is reset.
    """
    told: queue.Queue[tuple[bool, int | None]] = queue.Queue()

    def script(peer: FramePeer) -> None:
        peer.greet()
        tunnel = peer.recv_request().stream_id
        peer.send(peer.headers(tunnel, (":status", "200")))
        if first == "server":
            peer.send(DataFrame(tunnel, b"", flags=["END_STREAM"]))
        while True:
            frame = peer.recv_frame()
            if isinstance(frame, HeadersFrame):
                peer.respond(frame.stream_id)
            elif isinstance(frame, PingFrame):
                peer.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
            elif frame.stream_id == tunnel:
                told.put(("END_STREAM" in frame.flags, frame.error_code if type(frame) is RstStreamFrame else None))

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)
    raw = open_tunnel(agent, server).upgrade()
    if first == "server":
        assert raw.recv() == b""

    raw.close()

    frames = [told.get(timeout=5)]
    if first == "client" and frames[0][1] is None:
        frames.append(told.get(timeout=5))
    assert agent.request("GET", server.url, timeouts=5).connection.id == raw.info.id
    assert frames[-1] == ((True, None) if first == "server" else (False, CANCEL))
    assert told.empty()


@pytest.mark.parametrize("taken", [False, True], ids=["response", "tunnel"])
def test_dropped_unclosed_it_frees_its_stream(open_agent, h2_server, taken):
    """
    A tunnel that nobody closed is given up with its last reference, with a warning; the connection is kept.
    """
    agent = open_agent(ca=h2_server.ca_pem)
    response = open_tunnel(agent, h2_server)
    raw = response.upgrade() if taken else None

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del response, raw
        gc.collect()
        assert wait_until(lambda: agent.stats().active == 0)

    assert [w.category for w in caught] == [ResourceWarning]
    assert agent.request("GET", h2_server.url + "/hello").reused
    assert agent.stats().opened == 1


def test_upgrade_is_for_http1(open_agent):
    """
    A request that wants to switch protocols goes over HTTP/1.1, on a connection of its own, though HTTP/2 is spoken.
    """
    with Server(alpn_protocols=HTTP2) as server:
        agent = open_agent(ca=server.ca_pem)
        first = agent.request("GET", server.url + "/hello")

        response = agent.open_stream(
            "GET", server.url + "/upgrade", headers={"Upgrade": "echo", "Connection": "Upgrade"}
        )
        raw = response.upgrade()
        raw.send(b"hello")

        assert (first.http_version, response.status, response.http_version) == ("HTTP/2", 101, "HTTP/1.1")
        assert raw.recv() == b"hello"
        assert response.attempts == 1
        raw.close()
