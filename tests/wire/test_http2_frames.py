"""
Servers that break HTTP/2, through both agents and both engines: what the caller is told, and what the server gets.

A fault of the connection is answered by GOAWAY with the right code, and the connection is closed behind it; a fault of
a stream by RST_STREAM, and the requests beside it go on. Either way the next request works. The bytes themselves, many
more of them, are in tests/unit/test_h2_hostile.py.
"""

from __future__ import annotations

import queue
from typing import Any

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from wire_peer import wait_until

from tlsagent import Http2Options, RemoteProtocolError, ResponseTimeout, StreamReset, Timeouts
from tlsagent.testing.frames import FramePeer

pytestmark = [pytest.mark.http2, pytest.mark.framing]

PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 1, 2, 3, 6
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11
OK = (":status", "200")


def raw(kind: int, flags: int, stream_id: int, payload: bytes, length: int | None = None) -> bytes:
    """Return a frame byte by byte."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


def answer(peer: FramePeer) -> None:
    """Answer each request with "ok"."""
    while True:
        peer.respond(peer.recv_request().stream_id, b"ok")


CONNECTION_FAULTS: dict[str, tuple[int, Any]] = {
    "MAX_FRAME_SIZE 0": (PROTOCOL_ERROR, lambda peer, stream: SettingsFrame(0, settings={5: 0})),
    "INITIAL_WINDOW_SIZE 2**31": (FLOW_CONTROL_ERROR, lambda peer, stream: SettingsFrame(0, settings={4: 2**31})),
    "window beyond 2**31-1": (
        FLOW_CONTROL_ERROR,
        lambda peer, stream: WindowUpdateFrame(0, window_increment=2**31 - 1),
    ),
    "frame too long": (FRAME_SIZE_ERROR, lambda peer, stream: raw(0, 0, stream, b"", length=16_385)),
    "frame of 16 MB": (FRAME_SIZE_ERROR, lambda peer, stream: raw(0, 0, stream, b"x" * 100, length=2**24 - 1)),
    "padding beyond the frame": (PROTOCOL_ERROR, lambda peer, stream: raw(0, 8, stream, b"\xff" + b"x" * 20)),
    "DATA on a stream that nobody opened": (PROTOCOL_ERROR, lambda peer, stream: DataFrame(77, b"x")),
    "HEADERS on a stream of the server": (PROTOCOL_ERROR, lambda peer, stream: peer.headers(2, OK)),
    "PUSH_PROMISE": (
        PROTOCOL_ERROR,
        lambda peer, stream: PushPromiseFrame(stream, 2, peer.encoder.encode([(":path", "/")]), flags=["END_HEADERS"]),
    ),
    "frame within a field section": (
        PROTOCOL_ERROR,
        lambda peer, stream: HeadersFrame(stream, b"\x88").serialize() + DataFrame(stream, b"x").serialize(),
    ),
    "CONTINUATION without end": (
        ENHANCE_YOUR_CALM,
        lambda peer, stream: (
            HeadersFrame(stream, b"\x88").serialize() + ContinuationFrame(stream, b"").serialize() * 1_000
        ),
    ),
    "index beyond the tables": (COMPRESSION_ERROR, lambda peer, stream: raw(1, 4, stream, b"\xff\xff\x7f")),
    "fields that are too large": (
        ENHANCE_YOUR_CALM,
        lambda peer, stream: peer.headers(stream, OK, *[("x", "v" * 2_000)] * 40),
    ),
    "fields that grow by decompression": (
        ENHANCE_YOUR_CALM,
        lambda peer, stream: raw(1, 4, stream, b"\x88\x40\x01a\x7f\xa1\x1e" + b"v" * 4_000 + b"\xbe" * 12_000),
    ),
    "flood of PING": (ENHANCE_YOUR_CALM, lambda peer, stream: PingFrame(0, b"12345678").serialize() * 1_200),
    "flood of SETTINGS": (ENHANCE_YOUR_CALM, lambda peer, stream: SettingsFrame(0).serialize() * 1_200),
    "flood of WINDOW_UPDATE": (
        ENHANCE_YOUR_CALM,
        lambda peer, stream: WindowUpdateFrame(0, window_increment=1).serialize() * 1_200,
    ),
    "flood of empty DATA": (
        ENHANCE_YOUR_CALM,
        lambda peer, stream: peer.headers(stream, OK).serialize() + DataFrame(stream).serialize() * 1_200,
    ),
}


def as_bytes(frame: Frame | bytes) -> bytes:
    """Return a frame as it goes out."""
    return frame if isinstance(frame, bytes) else bytes(frame.serialize())


@pytest.mark.parametrize("case", CONNECTION_FAULTS)
def test_fault_of_the_connection(open_agent, open_frames, case):
    """
    Each request of the connection fails with an error of its own; the server gets GOAWAY, then the end.
    """
    code, bad = CONNECTION_FAULTS[case]
    got: queue.Queue[Any] = queue.Queue()

    def script(peer: FramePeer) -> None:
        peer.greet()
        if peer.raw.number > 1:
            answer(peer)
        streams = [peer.recv_request().stream_id for _ in range(2)]
        peer.raw.send(as_bytes(bad(peer, streams[0])))
        got.put(peer.recv(GoAwayFrame).error_code)
        got.put(peer.raw.wait_closed())

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, dial_delay=None)
    futures = [agent.submit("POST", server.url, content=b"x") for _ in range(2)]

    errors: list[Any] = [future.exception(5) for future in futures]

    assert got.get(timeout=5) == code
    assert got.get(timeout=5) == "close_notify"
    assert errors[0] is not errors[1]
    for error in errors:
        assert type(error) is RemoteProtocolError
        assert (error.code, error.request_sent) == ("ERR_HTTP2_SESSION_ERROR", True)
        assert str(error).isprintable()
        assert len(str(error)) < 4_096
    assert agent.request("GET", server.url, timeouts=5).request_number == 1
    assert wait_until(lambda: agent.stats().closed == {"error": 1})


def test_text_of_http1_after_alpn_has_chosen_h2(open_agent, open_frames):
    """
    A server that goes on in HTTP/1.1 is quoted in the error.
    """

    def script(peer: FramePeer) -> None:
        if peer.raw.number > 1:
            peer.greet()
            answer(peer)
        peer.raw.recv()
        peer.raw.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        peer.raw.wait_closed()

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(RemoteProtocolError, match=r"HTTP/1\.1 400 Bad Request"):
        agent.request("GET", server.url, timeouts=5)

    assert agent.request("GET", server.url, timeouts=5).content == b"ok"


def test_server_that_sends_no_settings(open_agent, open_frames):
    """
    A server that says nothing after the handshake runs into the timeout for the response.
    """

    def script(peer: FramePeer) -> None:
        if peer.raw.number == 1:
            peer.raw.wait_closed()
        peer.greet()
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=1)

    with pytest.raises(ResponseTimeout) as caught:
        agent.request("GET", server.url, timeouts=Timeouts(response=0.2))

    assert (caught.value.phase, caught.value.request_sent) == ("wait", True)


def serialized(*frames: Frame) -> bytes:
    """Return frames as they go out."""
    return b"".join(frame.serialize() for frame in frames)


STREAM_FAULTS: dict[str, Any] = {
    "no :status": lambda peer, stream: peer.headers(stream, ("server", "x")),
    ":status of letters": lambda peer, stream: peer.headers(stream, (":status", "abc")),
    ":status 101": lambda peer, stream: peer.headers(stream, (":status", "101")),
    "pseudo-header of a request": lambda peer, stream: peer.headers(stream, OK, (":path", "/")),
    "name in upper case": lambda peer, stream: peer.headers(stream, OK, ("Server", "x")),
    "line end in a value": lambda peer, stream: peer.headers(stream, OK, ("a", "x\r\nb: y")),
    "field of the connection": lambda peer, stream: peer.headers(stream, OK, ("transfer-encoding", "chunked")),
    "pseudo-header in trailers": lambda peer, stream: serialized(
        peer.headers(stream, OK), peer.headers(stream, OK, end_stream=True)
    ),
    "body that is too short": lambda peer, stream: serialized(
        peer.headers(stream, OK, ("content-length", "5")), DataFrame(stream, b"1234", flags=["END_STREAM"])
    ),
    "body that is too long": lambda peer, stream: serialized(
        peer.headers(stream, OK, ("content-length", "5")), DataFrame(stream, b"123456")
    ),
    "two final heads": lambda peer, stream: serialized(peer.headers(stream, OK), peer.headers(stream, OK)),
    "1xx without end": lambda peer, stream: b"".join(
        peer.headers(stream, (":status", "103")).serialize() for _ in range(17)
    ),
}


@pytest.mark.parametrize("case", STREAM_FAULTS)
def test_fault_of_a_stream(open_agent, open_frames, case):
    """
    Its request fails and is reset; the one beside it and the next ones are served by the same connection.
    """
    got: queue.Queue[Any] = queue.Queue()

    def script(peer: FramePeer) -> None:
        peer.greet()
        bad, good = peer.recv_request(), peer.recv_request()
        if bad.header(":path") != "/bad":
            bad, good = good, bad
        peer.raw.send(as_bytes(STREAM_FAULTS[case](peer, bad.stream_id)))
        reset = peer.recv(RstStreamFrame)
        got.put((reset.stream_id == bad.stream_id, reset.error_code))
        peer.respond(good.stream_id, b"good")
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)
    bad, good = agent.submit("GET", server.url + "/bad"), agent.submit("GET", server.url + "/good")

    with pytest.raises(RemoteProtocolError) as caught:
        bad.result(5)

    assert not isinstance(caught.value, StreamReset)
    assert caught.value.request_sent
    of_the_stream, code = got.get(timeout=5)
    assert of_the_stream
    assert code in (PROTOCOL_ERROR, INTERNAL_ERROR, ENHANCE_YOUR_CALM)
    assert good.result(5).content == b"good"
    assert agent.request("GET", server.url, timeouts=5).reused
    assert server.connections == 1


def test_data_before_the_head(open_agent, open_frames):
    """
    A body without a head fails its request, and leaves the agent able to send the next.
    """

    def script(peer: FramePeer) -> None:
        peer.greet()
        if peer.raw.number == 1:
            peer.send(DataFrame(peer.recv_request().stream_id, b"x"))
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(RemoteProtocolError):
        agent.request("GET", server.url, timeouts=5)

    assert agent.request("GET", server.url, timeouts=5).content == b"ok"


def test_flood_of_a_server_that_reads_nothing(open_agent, open_frames):
    """
    Answers that the server does not take are not piled up: the connection ends at `max_pending_replies`.
    """

    def script(peer: FramePeer) -> None:
        peer.greet()
        if peer.raw.number > 1:
            answer(peer)
        peer.recv_request()
        ping = PingFrame(0, b"12345678").serialize() * 1_000
        while True:  # until the client closes
            peer.raw.send(ping)

    server = open_frames(script)
    limits = Http2Options(max_pending_replies=100, control_frames=10**6)
    agent = open_agent(ca=server.ca_pem, http2=limits)

    with pytest.raises(RemoteProtocolError, match="max_pending_replies"):
        agent.request("GET", server.url, timeouts=10)

    assert agent.request("GET", server.url, timeouts=5).content == b"ok"
