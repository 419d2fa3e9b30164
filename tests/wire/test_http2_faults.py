"""HTTP/2 connections that fail, are given up or come to their end: what becomes of requests, leases and memory."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, PingFrame, SettingsFrame, WindowUpdateFrame
from wire_peer import wait_until

from tlsagent import (
    AgentClosed,
    ConnectionLost,
    Http1Options,
    Http2Options,
    InactivityTimeout,
    RemoteProtocolError,
    ResponseTimeout,
    SendTimeout,
    Timeouts,
)
from tlsagent._connection import Connection
from tlsagent._drivers.aio_socket import SocketProtocol
from tlsagent.testing import RawServer, Server
from tlsagent.testing.authority import default_credentials
from tlsagent.testing.frames import FramePeer
from tlsagent.testing.scripted import RawPeer

HTTP2 = ("h2", "http/1.1")


@pytest.fixture
def h2_server():
    """Return a server that speaks HTTP/2."""
    with Server(alpn_protocols=HTTP2) as server:
        yield server


def test_connection_that_was_closed_is_not_timed_any_more(open_agent, h2_server):
    """
    A connection under the option `timeout` that was closed has no deadline left, whoever hears of its end later.
    """
    agent = open_agent(ca=h2_server.ca_pem, timeout=30)

    first = agent.request("GET", h2_server.url + "/hello")
    agent.close_idle()
    second = agent.request("GET", h2_server.url + "/hello")

    assert first.http_version == "HTTP/2"
    assert first.connection.id != second.connection.id
    assert agent.stats().closed == {"close_idle": 1}


def test_goaway_in_the_breath_of_the_handshake(open_agent):
    """
    A server that takes its leave with the last flight of the handshake (TLS 1.2) fails the attempt, in good order.
    """

    def script(peer: RawPeer) -> None:
        floor = peer._tls = server.tls_floor()
        while floor.facts is None:
            floor.receive_data(peer.sock.recv(65_536))
            if floor.facts is None:
                peer.send_raw(floor.data_to_send())
        peer.send(SettingsFrame(0).serialize() + GoAwayFrame(0).serialize())
        peer.wait_closed()

    with RawServer(script, tls=False, alpn_protocols=("h2",), max_version="TLSv1.2") as server:
        agent = open_agent(ca=server.authority.ca_pem)

        with pytest.raises(ConnectionLost, match="took its leave") as caught:
            agent.request("GET", server.url)

        assert caught.value.phase == "handshake"
        assert wait_until(lambda: agent.stats().closed)
        agent.close()


@pytest.mark.parametrize("last", [b"", b"HTTP/1.1 503 Service Unavailable\r\n\r\n"], ids=["end", "nonsense"])
def test_end_in_the_breath_of_the_handshake(open_agent, last):
    """
    A connection that ends with its handshake is the misfortune of the request that waited longest, the others have
    another one; unless the server does not speak HTTP/2 at all.
    """
    may_end = threading.Event()

    def script(raw: RawPeer) -> None:
        floor = server.tls_floor()
        if raw.number > 1:
            raw.start_tls(floor)
            peer = FramePeer(raw)
            peer.greet()
            serve(peer)
        while floor.facts is None:
            raw.send_raw(floor.data_to_send())
            floor.receive_data(raw.sock.recv(65_536))
        assert may_end.wait(5)
        if last:
            floor.write(last)
        floor.close()
        raw.send_raw(floor.data_to_send())

    with RawServer(script, alpn_protocols=("h2",), max_version="TLSv1.2", tls=False) as server:
        agent = open_agent(ca=server.authority.ca_pem)
        requests = [agent.submit("GET", server.url, timeouts=5) for _ in range(6)]
        assert wait_until(lambda: agent.stats().waiting == 6)
        may_end.set()

        errors = [request.exception(5) for request in requests]

        failed = [error for error in errors if error is not None]
        if last:
            assert {type(error) for error in failed} == {RemoteProtocolError}
            assert (len(failed), server.connections) == (6, 1)
        else:
            assert {(type(error), error.phase, error.request_sent) for error in failed} == {
                (ConnectionLost, "handshake", False)
            }
            assert (len(failed), server.connections) == (1, 2)
        agent.close()


def losing(gates: list[threading.Event]) -> Any:
    """Return a script that closes a connection without a byte, once its gate is open; what has none serves."""

    def script(raw: RawPeer) -> None:
        if raw.number <= len(gates):
            assert gates[raw.number - 1].wait(5)
            return
        peer = FramePeer(raw)
        peer.greet()
        serve(peer)

    return script


def carried(agent: Any, connections: int) -> int | None:
    """Return how many requests were or are carried, once that many connections were opened."""
    stats = agent.stats()
    return stats.requests if stats.opened == connections else None


@pytest.mark.parametrize("narrow", [False, True])
def test_connections_that_end_before_they_have_said_anything(open_agent, narrow):
    """
    Each fails the one request that was sent on it. Those that were held back, and those that waited in the queue for a
    place, have another connection.
    """
    gates = [threading.Event() for _ in range(3)]
    limits = {"max_sockets": 1, "http2": Http2Options(max_streams=2)} if narrow else {}
    with RawServer(losing(gates), alpn_protocols=("h2",)) as server:
        agent = open_agent(ca=server.authority.ca_pem, **limits)
        requests = [agent.submit("GET", server.url, timeouts=5) for _ in range(20)]
        for number, gate in enumerate(gates):
            assert wait_until(lambda number=number: carried(agent, number + 1) == (number + 2 if narrow else 20))
            gate.set()

        failed = [error for request in requests if (error := request.exception(5)) is not None]

        assert {(type(error), error.phase, error.request_sent) for error in failed} == {(ConnectionLost, "wait", True)}
        assert (len(failed), server.connections) == (3, 4)
        assert {request.result().attempts for request in requests if request.exception() is None} == {1}
        agent.close()


def test_server_that_ends_every_connection(open_agent):
    """
    A request of which nothing was sent is told of the fifth connection that was lost under it.
    """
    gates = [threading.Event() for _ in range(20)]
    with RawServer(losing(gates), alpn_protocols=("h2",)) as server:
        agent = open_agent(ca=server.authority.ca_pem)
        requests = [agent.submit("GET", server.url, retry=False) for _ in range(20)]
        for number, gate in enumerate(gates):
            assert number >= 5 or wait_until(lambda number=number: carried(agent, number + 1) == 20)
            gate.set()

        failed: list[Any] = [request.exception(5) for request in requests]

        unsent = [error for error in failed if not error.request_sent]
        assert {type(error) for error in failed} == {ConnectionLost}
        assert {str(error)[:23] for error in unsent} == {"5 connections were lost"}
        assert (len(unsent), server.connections) == (15, 5)
        agent.close()


def test_agent_destroyed_as_a_handshake_ends(open_async_agent, h2_server, monkeypatch):
    """
    `destroy` in the very turn of the loop in which a handshake has ended leaves nothing half-done.
    """
    agent = open_async_agent(ca=h2_server.ca_pem)
    advance = SocketProtocol._advance_handshake
    raised: list[BaseException] = []

    def destroy() -> None:
        try:
            agent.agent.destroy()
        except BaseException as error:
            raised.append(error)

    def destroy_next(protocol: Any, waiting: asyncio.Future[None]) -> None:
        if protocol.connection.info is not None:
            agent.loop.call_soon(destroy)  # before the task that dials is told
        advance(protocol, waiting)

    monkeypatch.setattr(SocketProtocol, "_advance_handshake", destroy_next)

    with pytest.raises(AgentClosed):
        agent.request("GET", h2_server.url + "/hello")

    assert raised == []
    assert wait_until(lambda: h2_server.stats.open_connections == 0)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Expect that no connection is left which only a collection would find."""

    def alive() -> int:
        return sum(type(thing) is Connection for thing in gc.get_objects())

    gc.collect()
    before = alive()
    gc.disable()
    try:
        yield
        assert wait_until(lambda: alive() == before), "a cycle of references keeps a connection"
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["reset", "eof", "destroyed"])
def test_connection_that_fails_under_requests_is_freed(open_async_agent, h2_server, how):
    """
    A connection that ends while it carries requests is freed at once, with its TLS engine, once they are dropped.
    """
    with without_collection():
        agent = open_async_agent(ca=h2_server.ca_pem)
        response = agent.open_stream("GET", h2_server.url + "/bytes/5000000")
        if how == "destroyed":
            agent.destroy()
        else:
            h2_server.close_connections(how)

        with pytest.raises(AgentClosed if how == "destroyed" else ConnectionLost) as caught:
            response.read()
        caught.value.__traceback__ = None
        del response, caught


def test_connection_that_falls_silent_under_a_request_is_freed(open_async_agent, h2_server):
    """
    A connection that is closed for its silence while it carries a request is freed at once.
    """
    with without_collection():
        agent = open_async_agent(ca=h2_server.ca_pem, timeout=0.2)

        with pytest.raises(InactivityTimeout) as caught:
            agent.request("GET", h2_server.url + "/delay/5")
        caught.value.__traceback__ = None
        del caught


@pytest.mark.parametrize("how", ["closed", "reset", "reset before it is taken over"])
def test_connection_of_a_tunnel_is_freed(open_async_agent, how):
    """
    A tunnel that has ended, and who had it, keep no connection.
    """
    with without_collection(), Server(alpn_protocols=HTTP2) as server:
        agent = open_async_agent(ca=server.ca_pem)
        response = agent.open_stream("CONNECT", server.url)
        if how == "reset before it is taken over":
            server.close_connections("reset")
            assert wait_until(lambda: agent.stats().closed)
        raw = response.upgrade()
        if how == "reset":
            server.close_connections("reset")
        if how != "closed":
            with pytest.raises(ConnectionLost) as caught:
                raw.recv()
            caught.value.__traceback__ = None
            del caught
        raw.close()
        agent.close()
        del raw, response


def serve(peer: FramePeer) -> None:
    """Answer every request that has no body."""
    while True:
        peer.respond(peer.recv_request().stream_id)


def test_requests_that_keep_coming_do_not_put_off_the_verdict(open_agent):
    """
    A connection whose peer fell silent while it was idle is lost `ping_timeout` after its first request, however many
    more follow; they all get their answers from another.
    """

    def script(raw: RawPeer) -> None:
        peer = FramePeer(raw)
        peer.greet()
        if raw.number > 1:
            serve(peer)
        peer.respond(peer.recv_request().stream_id)
        raw.wait_closed()

    with RawServer(script, alpn_protocols=("h2",)) as server:
        agent = open_agent(
            ca=server.authority.ca_pem, max_sockets=1, http2=Http2Options(ping_interval=0.2, ping_timeout=0.6)
        )
        agent.request("GET", server.url)
        time.sleep(0.3)

        begun = time.monotonic()
        requests = []
        while not (requests and requests[0].done()) and time.monotonic() - begun < 5:
            requests.append(agent.submit("GET", server.url))
            time.sleep(0.2)
        elapsed = time.monotonic() - begun

        assert 0.5 < elapsed < 3
        assert [request.result(5).status for request in requests] == [200] * len(requests)
        agent.close()


def test_request_of_which_nothing_was_sent_is_repeated(open_async_agent):
    """
    A request that was held back on a connection in doubt, which then proves to be dead, is sent on another: whatever
    its method is, and though the connection had served nothing before.
    """

    def script(raw: RawPeer) -> None:
        peer = FramePeer(raw)
        peer.greet()
        if raw.number == 1:
            raw.wait_closed()
            return
        request = peer.recv_request()
        peer.recv(DataFrame)
        peer.respond(request.stream_id)
        raw.wait_closed()

    with RawServer(script, alpn_protocols=("h2",)) as server:
        agent = open_async_agent(ca=server.authority.ca_pem, http2=Http2Options(ping_interval=0.1, ping_timeout=0.3))
        agent.preconnect(server.url)
        time.sleep(0.2)

        response = agent.request("POST", server.url, content=b"once")

        assert (response.status, response.attempts, response.request_number) == (200, 1, 1)
        agent.close()


def in_doubt(answer: threading.Event, *, then: Any) -> Any:
    """Return a script that answers one request and then the next PING once the test says so."""

    def script(raw: RawPeer) -> None:
        peer = FramePeer(raw)
        peer.greet()
        peer.respond(peer.recv_request().stream_id)
        ping = peer.recv(PingFrame)
        assert answer.wait(5)
        peer.send(PingFrame(0, ping.opaque_data, flags=["ACK"]))
        then(peer)

    return script


def test_body_that_waits_for_nothing_follows_a_request_that_was_held_back(open_agent):
    """
    With a wait of 0 for a 100 (Continue), a body follows its head at once; also where the head itself had to wait.
    """

    def then(peer: FramePeer) -> None:
        request = peer.recv_request()
        assert peer.recv(DataFrame).data == b"body"
        peer.respond(request.stream_id)
        peer.raw.wait_closed()

    answer = threading.Event()
    with RawServer(in_doubt(answer, then=then), alpn_protocols=("h2",)) as server:
        agent = open_agent(
            ca=server.authority.ca_pem,
            http1=Http1Options(expect_continue_wait=0),
            http2=Http2Options(ping_interval=0.1, ping_timeout=5),
        )
        agent.request("GET", server.url)
        time.sleep(0.2)

        request = agent.submit("POST", server.url, content=b"body", expect_continue=True, timeouts=5)
        answer.set()

        assert request.result(5).status == 200
        agent.close()


def test_request_that_is_held_back_too_long_fails(open_agent):
    """
    `timeouts.send` holds for a request that is held back, also for one whose body is to wait for a 100 (Continue).
    """

    def then(peer: FramePeer) -> None:
        with contextlib.suppress(Exception):
            peer.raw.wait_closed()

    answer = threading.Event()
    with RawServer(in_doubt(answer, then=then), alpn_protocols=("h2",)) as server:
        agent = open_agent(
            ca=server.authority.ca_pem,
            http1=Http1Options(expect_continue_wait=0.2),
            http2=Http2Options(ping_interval=0.1, ping_timeout=5),
        )
        agent.request("GET", server.url)
        time.sleep(0.2)

        with pytest.raises(SendTimeout) as caught:
            agent.request(
                "POST", server.url, content=b"body", expect_continue=True, timeouts=Timeouts(send=0.3, total=3)
            )

        assert not caught.value.request_sent
        answer.set()
        agent.close()


def test_network_change_turns_requests_away_from_a_connection_in_use(open_agent, h2_server):
    """
    After `network_changed` a shared connection finishes what it carries, and the next request takes another.
    """
    agent = open_agent(ca=h2_server.ca_pem)
    with agent.stream("GET", h2_server.url + "/bytes/2000000") as response:
        agent.network_changed()
        other = agent.request("GET", h2_server.url + "/hello")
        assert len(response.read()) == 2_000_000

    assert other.connection.id != response.connection.id
    assert agent.stats().closed == {"network_changed": 1}
    assert agent.request("GET", h2_server.url + "/hello").connection.id == other.connection.id


def test_tunnel_takes_more_after_a_send_that_ended_early(open_agent):
    """
    A send that was cancelled or ran out of time while the windows were shut leaves its piece behind, as it was, and the
    next one waits for that. The buffer is the caller's again, to change and to resize.
    """
    total = 8 << 20
    received: list[bytes] = []
    go_on = threading.Event()

    def script(raw: RawPeer) -> None:
        peer = FramePeer(raw)
        peer.greet()
        tunnel = peer.recv_request().stream_id
        peer.send(peer.headers(tunnel, (":status", "200")))
        assert go_on.wait(5)
        peer.send(WindowUpdateFrame(0, window_increment=total), WindowUpdateFrame(tunnel, window_increment=total))
        while not (received and peer_ended):
            frame = peer.recv(DataFrame)
            received.append(frame.data)
            if frame.data.endswith(b"end"):
                peer_ended.append(True)
        raw.wait_closed()

    peer_ended: list[bool] = []
    with RawServer(script, alpn_protocols=("h2",)) as server:
        agent = open_agent(ca=server.authority.ca_pem)
        raw = agent.open_stream("CONNECT", server.url).upgrade()
        early, late = bytearray(b"a" * 100_000), bytearray(b"end")

        if agent.driver == "threads":
            with pytest.raises(SendTimeout):
                raw.send(early, timeout=0.2)
        else:
            with pytest.raises(TimeoutError):
                agent.run(asyncio.wait_for(raw.raw.send(early), 0.2))
        early[:] = b"b" * len(early)
        early.clear()
        with ThreadPoolExecutor(1) as thread:
            again = thread.submit(raw.send, late)
            go_on.set()
            again.result(5)
        late.clear()

        assert wait_until(lambda: peer_ended)
        assert b"".join(received) == b"a" * 65_536 + b"end"
        raw.close()
        agent.close()


def test_coalesced_connection_is_freed(open_async_agent):
    """
    A connection that another origin used too is kept by nobody once it is closed.
    """
    with (
        without_collection(),
        Server(credentials=default_credentials(("a.test", "b.test")), alpn_protocols=HTTP2) as both,
    ):
        agent = open_async_agent(
            ca=both.ca_pem, http2=Http2Options(coalesce=True), lookup=lambda host, family: ["127.0.0.1"]
        )
        for name in "ab":
            agent.request("GET", f"https://{name}.test:{both.port}/hello")

        agent.close_idle()

        assert agent.stats().opened == 1


def test_peer_that_fell_silent_with_all_its_places_taken(open_agent):
    """
    A reset stream keeps its place until a PING is answered: a peer that answers nothing is found out by that PING, and
    who waits for the place gets a connection of its own.
    """

    def script(raw: RawPeer) -> None:
        peer = FramePeer(raw)
        peer.greet({SettingsFrame.MAX_CONCURRENT_STREAMS: 1})
        request = peer.recv_request()
        if request.header(":path") == "/second":
            peer.respond(request.stream_id, status=204)
        raw.wait_closed()

    with RawServer(script, alpn_protocols=("h2",)) as server:
        agent = open_agent(
            ca=server.authority.ca_pem, max_sockets=1, http2=Http2Options(ping_interval=0.2, ping_timeout=0.2)
        )

        with pytest.raises(ResponseTimeout):
            agent.request("GET", server.url + "/first", timeouts=Timeouts(response=0.05))

        assert agent.request("GET", server.url + "/second", timeouts=Timeouts(queue=5)).status == 204
