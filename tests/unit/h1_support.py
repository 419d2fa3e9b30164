"""What the tests of the HTTP/1.1 engines share: a sink that keeps what it is told, and ways to feed an engine."""

from __future__ import annotations

from tlsagent._http.engines import HTTP1Engine
from tlsagent._http.messages import Headers, ResponseHead, request_head

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"


class Recorder:
    """A sink that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.informational: list[ResponseHead] = []
        self.heads: list[ResponseHead] = []
        self.pieces: list[bytes] = []
        self.ends: list[Headers | None] = []
        self.switches: list[ResponseHead] = []

    def informational_received(self, head: ResponseHead) -> None:
        assert not self.heads
        self.informational.append(head)

    def response_received(self, head: ResponseHead) -> None:
        assert not self.heads
        self.heads.append(head)

    def body_received(self, data: bytes) -> None:
        assert type(data) is bytes
        assert data
        assert self.heads
        assert not self.ends
        self.pieces.append(data)

    def response_ended(self, trailers: Headers | None) -> None:
        assert self.heads
        assert not self.ends
        self.ends.append(trailers)

    def protocol_switched(self, head: ResponseHead) -> None:
        assert not self.heads
        self.switches.append(head)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def ask(engine: HTTP1Engine, method: str = "GET", *, keep_alive: bool = True) -> None:
    head = request_head(method, "/", b"a.test", None, body_length=None, has_body=False, keep_alive=keep_alive)
    engine.start(head)
    engine.end_request()


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def views(data: bytes) -> list[memoryview]:
    """Cut in two, out of a buffer that is overwritten afterwards."""
    return [memoryview(bytearray(data[:20])), memoryview(bytearray(data[20:]))]


def receive(engine: HTTP1Engine, pieces, *, eof: bool | None = None) -> Recorder:
    """Feed an engine, then end the input: cleanly (True), without close_notify (False), or not at all (None)."""
    sink = Recorder()
    feed(engine, pieces, sink)
    if eof is not None:
        engine.receive_eof(eof, sink)
    return sink


def feed(engine: HTTP1Engine, pieces, sink: Recorder) -> None:
    for piece in pieces:
        engine.receive_data(piece, sink)
        if isinstance(piece, memoryview) and piece:
            piece[:] = b"\xee" * len(piece)
