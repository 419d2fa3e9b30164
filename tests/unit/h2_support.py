"""What the tests of the HTTP/2 engines share: sinks that keep what they are told, and a peer made of frames."""

from __future__ import annotations

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tlsagent._http.engines import HTTP2Engine, http2_engine
from tlsagent._http.messages import Headers, RequestHead, ResponseHead, request_head
from tlsagent._limits import Http2Options
from tlsagent.errors import RemoteProtocolError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ENGINES = ["h2", "ngh2"]
OK = [(":status", "200")]


class StreamRecorder:
    """The sink of a stream; it insists on the order of things."""

    def __init__(self) -> None:
        self.informational: list[ResponseHead] = []
        self.head: ResponseHead | None = None
        self.pieces: list[bytes] = []
        self.ended = False
        self.trailers: Headers | None = None

    def informational_received(self, head: ResponseHead) -> None:
        assert self.head is None
        assert head.http_version == "HTTP/2"
        self.informational.append(head)

    def response_received(self, head: ResponseHead) -> None:
        assert self.head is None
        assert head.http_version == "HTTP/2"
        self.head = head

    def body_received(self, data: bytes) -> None:
        assert type(data) is bytes
        assert data
        assert self.head
        assert not self.ended
        self.pieces.append(data)

    def response_ended(self, trailers: Headers | None) -> None:
        assert self.head
        assert not self.ended
        self.ended = True
        self.trailers = trailers

    @property
    def status(self) -> int | None:
        return self.head.status if self.head else None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


class ConnectionRecorder:
    """The sink of a connection."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        self.failed: dict[int, tuple[Exception, bool]] = {}
        self.opened: list[int] = []
        self.goaways: list[tuple[int, int, bytes]] = []
        self.pongs: list[float] = []
        self.changes = 0

    def _check_new(self, stream_id: int) -> None:
        assert stream_id not in self.ended
        assert stream_id not in self.failed

    def stream_ended(self, stream_id: int) -> None:
        self._check_new(stream_id)
        self.ended.append(stream_id)

    def stream_failed(self, stream_id: int, error: Exception, processed: bool) -> None:
        self._check_new(stream_id)
        assert str(error).isprintable()
        self.failed[stream_id] = (error, processed)

    def capacity_changed(self) -> None:
        self.changes += 1

    def window_opened(self, stream_id: int) -> None:
        self.opened.append(stream_id)

    def goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        self.goaways.append((last_stream_id, code, debug))

    def pong(self, now: float) -> None:
        self.pongs.append(now)


def head_of(method: str = "GET", headers=None, *, length: int | None = None, target: str = "/") -> RequestHead:
    """A request of `length` bytes of body, which is -1 for a body of unknown length."""
    return request_head(
        method,
        target,
        b"a.test",
        headers,
        body_length=None if length == -1 else length,
        has_body=length is not None,
        keep_alive=True,
    )


class Client:
    """An engine, its sinks, and a peer that says what the test wants, frame by frame."""

    def __init__(self, name: str, *, settings: dict[int, int] | None = None, bytewise: bool = False, **options) -> None:
        self.engine: HTTP2Engine = http2_engine(name)(Http2Options(**options))
        self.sink = ConnectionRecorder()
        self.now = 1_000.0
        self.bytewise = bytewise
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self._unread = b""
        self.error: RemoteProtocolError | None = None
        self.engine.start()
        out = self.engine.data_to_send()
        assert out.startswith(PREFACE)
        self.greeting = frames_of(out[len(PREFACE) :])
        if settings is not None:
            self.feed(SettingsFrame(settings=settings), SettingsFrame(flags=["ACK"]))
            assert self.error is None
            [ack] = self.take(SettingsFrame)
            assert "ACK" in ack.flags

    def feed(self, *parts: Frame | bytes) -> None:
        """Let the peer send; an error is kept."""
        data = b"".join(part if isinstance(part, bytes) else part.serialize() for part in parts)
        pieces = [data[at : at + 1] for at in range(len(data))] if self.bytewise else [data]
        for piece in pieces:
            buffer = bytearray(piece)
            try:
                self.engine.receive_data(memoryview(buffer), self.now, self.sink)
            except RemoteProtocolError as exc:
                assert self.error is None, "it was told twice"
                self.error = exc
            buffer[:] = b"\xee" * len(buffer)

    def eof(self, clean: bool = True) -> None:
        self.engine.receive_eof(clean, self.now, self.sink)

    def take(self, kind: type[Frame] = Frame) -> list[Frame]:
        """Return the frames that the engine wants to send, of one kind."""
        return [frame for frame in frames_of(self.engine.data_to_send()) if isinstance(frame, kind)]

    def open(self, method: str = "GET", headers=None, *, length: int | None = None, end: bool | None = None, **more):
        """Open a stream; returns its number and its sink."""
        sink = StreamRecorder()
        head = head_of(method, headers, length=length)
        return self.engine.open(head, sink, length is None if end is None else end, **more), sink

    def headers(self, stream_id: int, fields, *, end: bool = False) -> HeadersFrame:
        frame = HeadersFrame(stream_id, self.encoder.encode(fields), flags=["END_HEADERS"])
        if end:
            frame.flags.add("END_STREAM")
        return frame

    def fields(self, frame: HeadersFrame) -> list[tuple[bytes, bytes]]:
        return [tuple(field) for field in self.decoder.decode(frame.data, raw=True)]

    @property
    def goaway(self) -> int | None:
        """The code of the GOAWAY that the engine wants to send."""
        frames = self.take(GoAwayFrame)
        assert len(frames) <= 1
        return frames[0].error_code if frames else None


def data(stream_id: int, body: bytes = b"", *, end: bool = False, pad: int | None = None) -> DataFrame:
    frame = DataFrame(stream_id, body)
    if pad is not None:
        frame.flags.add("PADDED")
        frame.pad_length = pad
    if end:
        frame.flags.add("END_STREAM")
    return frame


def raw(kind: int, flags: int, stream_id: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame byte by byte, for what no library would write."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


def frames_of(out: bytes) -> list[Frame]:
    frames = []
    view = memoryview(out)
    while view:
        frame, length = Frame.parse_frame_header(view[:9])
        frame.parse_body(view[9 : 9 + length])
        frames.append(frame)
        view = view[9 + length :]
    return frames


__all__ = [
    "ENGINES",
    "OK",
    "Client",
    "ConnectionRecorder",
    "ContinuationFrame",
    "DataFrame",
    "GoAwayFrame",
    "HeadersFrame",
    "PingFrame",
    "RstStreamFrame",
    "SettingsFrame",
    "StreamRecorder",
    "WindowUpdateFrame",
    "data",
    "frames_of",
    "head_of",
    "raw",
]
