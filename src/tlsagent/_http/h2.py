"""
HTTP/2 of one connection: many requests at a time (RFC 9113), the client's side.

Frames and header compression are a `FrameLayer`'s: libnghttp2 (`h2_ngh2`) or hyperframe and hpack, the parts of h2
(`h2_h2`). All else is here, once for both: which streams may be opened, what becomes of them, who gets which credit,
the budgets, and what a GOAWAY or a reset means for a request.

How to drive it
---------------
One `Connection` holds one engine, from the moment when ALPN has chosen "h2" until the socket is closed.

    engine = http2_engine("auto")(options)          # once per agent: http2_engine("auto")
    engine.start()                                  # preface and SETTINGS
    tls.write(engine.data_to_send())

- *A request.* While `engine.capacity` is above 0, `stream = engine.open(head, exchange, end)` sends its head; `end`
  says that no body follows. The exchange is told what comes on its stream, as by an HTTP/1.1 engine; what concerns the
  stream as a whole goes to the connection's sink, by the stream's number.
- *Its body.* `room = engine.window(stream)` bytes may go out now; `send_data(stream, piece, end)` sends that many at
  most, `end_request(stream, trailers)` ends it. Where the room is 0, stop, and go on when the sink is told
  `window_opened(stream)`. A stream that is over has no room and swallows what is still sent.
- *Bytes of the peer.* `engine.receive_data(data, now, sink)`; then `tls.write(engine.data_to_send())`, also when it
  raised (the GOAWAY is in there), and only then close the socket if it did. All open streams have been told
  `stream_failed`.
- *What a consumer reads.* `engine.consumed(stream, size)` for bytes that were read, also after the stream has ended;
  this alone lets the peer send more. A body that is kept whole is consumed as it comes. A response that is dropped,
  before or after its end, is `engine.reset(stream)`: it gives back the credit for all that was not read.
- *An answer before its request is sent.* `exchange.response_ended` comes, `stream_ended` does not: go on sending
  (`send_data` and `end_request` return True when the stream is over with them), or `reset(stream, NO_ERROR)`.
- *The end of a stream* is told once, by `stream_ended` or `stream_failed`, or is the driver's own `reset`: then
  `capacity` has changed, and a waiter may be served. `capacity_changed` tells all other changes.
- *Draining.* After GOAWAY, `draining` is true and `capacity` 0 for good; what `stream_failed` reports with
  `processed=False` may be sent again elsewhere, whatever its method. When `streams` is 0, call `close()`, write, close
  the socket. The same way an agent closes a connection of its own accord.
- *Time.* The driver keeps the clock: after `ping_interval` seconds of silence `engine.ping()`; if no `pong` and no byte
  at all has come within `ping_timeout`, `receive_eof` with the socket closed.

Calls for one connection must not overlap (the connection lock), and a sink must not call back.

Theory of operation
-------------------
A stream has two halves, the request and the response, and is forgotten when both are over, or when either side has
reset it. What comes for a forgotten stream is credited and dropped: it was on its way.

- *Whose fault.* A layer judges frames, the order of messages and their fields. What it finds wrong with one stream, it
  resets itself and tells `stream_broken`; for what is wrong with the connection it raises `ConnectionFault`. The same
  two ways are open to this module's own limits.
- *Resets*, as in Go: the peer may go on working on a request that we have given up. So a reset stream keeps its
  place in `capacity` until the answer to a PING, sent after the reset, proves that the peer has seen it.
- *Credit.* The window of a stream is what may wait for its consumer. That of the connection is twice what may wait for
  all of them; it is given back once half of it was read. So while less than `connection_window` is waiting, no stream
  is held up by another one; beyond it, credit for the connection waits for consumers too, and twice as much is never in
  memory.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, Protocol

from tlsagent._http.h2_fields import list_size, lower_case, request_fields
from tlsagent._http.messages import Headers, ResponseHead, trailer_fields
from tlsagent.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError, RequestError, StreamReset, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tlsagent._http.engines import HTTP2Sink
    from tlsagent._http.messages import CallerFields, Field, HTTPSink, RequestHead
    from tlsagent._limits import Http2Options

MAX_STREAM_ID: Final = 2**31 - 1
FRAME_SIZE: Final = 16_384
"""Bytes of a frame that every peer must take (RFC 9113, 6.5.2), and that this side takes at most."""
MAX_FIELDS: Final = 2**24
"""Size of a list of fields that is sent, counted as in RFC 9113, 6.5.2: libnghttp2 sends no larger one."""
_SUSPECT: Final = MAX_FIELDS // 20
"""Bytes of a head in HTTP/1.1 from where on its size is looked at: a cookie of crumbs of one byte grows that much."""
_ASSUMED_STREAMS: Final = 100
"""Streams at a time before the peer has said how many: fewer it should not allow (RFC 9113, 6.5.2)."""
_EARNED_UPDATES: Final = 4
_SHOWN: Final = 64
_MAX_CONCURRENT_STREAMS: Final = 0x03
_INITIAL_WINDOW_SIZE: Final = 0x04
_ENABLE_CONNECT_PROTOCOL: Final = 0x08


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends (RFC 9113, 7)."""

    NO_ERROR = 0x00
    PROTOCOL_ERROR = 0x01
    INTERNAL_ERROR = 0x02
    FLOW_CONTROL_ERROR = 0x03
    SETTINGS_TIMEOUT = 0x04
    STREAM_CLOSED = 0x05
    FRAME_SIZE_ERROR = 0x06
    REFUSED_STREAM = 0x07
    CANCEL = 0x08
    COMPRESSION_ERROR = 0x09
    CONNECT_ERROR = 0x0A
    ENHANCE_YOUR_CALM = 0x0B
    INADEQUATE_SECURITY = 0x0C
    HTTP_1_1_REQUIRED = 0x0D


class ConnectionFault(Exception):
    """The peer has done what ends the connection: `code` is for the GOAWAY, the text for the error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class FrameSink(Protocol):
    """Who takes what a frame layer reads. Any call may raise `ConnectionFault`, and may come back to the layer."""

    @property
    def streams(self) -> int:
        """How many streams are open."""

    def informational_received(self, stream_id: int, fields: Sequence[Field]) -> None:
        """Take the fields of a 1xx response, `:status` first."""

    def response_received(self, stream_id: int, fields: Sequence[Field], end: bool) -> None:
        """Take the fields of a final response, `:status` first."""

    def data_received(self, stream_id: int, data: bytes, end: bool) -> None:
        """Take bytes of a body, perhaps none; they are `credit`ed later, the padding already is."""

    def trailers_received(self, stream_id: int, fields: Sequence[Field]) -> None:
        """Take the fields that end a response."""

    def reset_received(self, stream_id: int, code: int) -> None:
        """Take the peer's RST_STREAM, also one for a stream that is over."""

    def stream_broken(self, stream_id: int, message: str) -> None:
        """Take note of a stream that the layer has reset, because of what came on it."""

    def stream_unsent(self, stream_id: int) -> None:
        """Take note of a stream of which not even the head was sent."""

    def settings_received(self, settings: Mapping[int, int]) -> None:
        """Take the settings of the peer; the layer answers them."""

    def ping_received(self) -> None:
        """Take note of a PING; the layer answers it."""

    def pong_received(self, payload: bytes) -> None:
        """Take the answer to a PING of ours."""

    def window_updated(self, stream_id: int) -> None:
        """Take note that there is more room on a stream, or with 0 on the connection."""

    def goaway_received(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """Take a GOAWAY."""

    def control_received(self) -> None:
        """Take note of a frame that serves no request."""


class FrameLayer(Protocol):
    """
    Frames and header compression of one connection.

    It keeps the state of streams as far as frames need it, and judges what comes on them (RFC 9113, 4 to 6 and 8.1 to
    8.3), content-length included. Numbers of streams that are over may be passed to `reset` and `credit`.

    Attributes:
        name: The library, by the name under which it is chosen.
    """

    name: str

    def start(self) -> None:
        """Send the preface, SETTINGS, and the window of the connection."""

    def receive(self, data: bytes | memoryview, sink: FrameSink) -> None:
        """
        Take bytes; what precedes a fault is told before it.

        Raises:
            ConnectionFault: The connection is beyond repair.
        """

    def data_to_send(self) -> bytes:
        """Return what is to be sent."""

    def request(self, fields: list[Field], end: bool) -> int:
        """Open a stream; returns its number."""

    def send_data(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        """Send a piece of a body, not longer than the window."""

    def send_trailers(self, stream_id: int, fields: list[Field]) -> None:
        """End a body with fields."""

    def window(self, stream_id: int) -> int:
        """Return how many bytes may be sent on an open stream; below 0 where the peer has taken some back."""

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM, and forget the stream."""

    def credit(self, stream_id: int, size: int) -> None:
        """Let the peer send that much more."""

    def ping(self, payload: bytes) -> None:
        """Send a PING of eight bytes."""

    def goaway(self, code: int) -> None:
        """Send GOAWAY; after a fault nothing else is sent any more."""


class _Stream:
    """A request that is under way."""

    __slots__ = (
        "due",
        "got",
        "headed",
        "informational",
        "informational_size",
        "read",
        "requested",
        "responded",
        "sink",
    )

    def __init__(self, sink: HTTPSink, due: int | None, requested: bool) -> None:
        self.sink = sink
        self.due = due  # bytes of the body that were announced and are not sent; None if none were announced
        self.requested = requested
        self.headed = False
        self.responded = False
        self.informational = 0
        self.informational_size = 0
        self.got = 0
        self.read = 0


class H2Engine:
    """
    HTTP/2 of one connection; see `HTTP2Engine` for the verbs. Towards its layer it is a `FrameSink`.

    Attributes:
        name: The layer's.
        draining: Whether no stream may be opened any more.
        greeted: Whether the peer's SETTINGS have come.
        limit: How many streams there may be at a time, while it is not draining.
        connect_protocol: Whether the peer takes extended CONNECT (RFC 8441).
    """

    __slots__ = (
        "_blocked",
        "_budget",
        "_closing",
        "_dead",
        "_earned",
        "_goaway",
        "_greeting",
        "_last_id",
        "_layer",
        "_left",
        "_limits",
        "_max_streams",
        "_moved",
        "_now",
        "_ping",
        "_pings",
        "_refilled_at",
        "_replies",
        "_reset_ping",
        "_resets",
        "_resets_pinged",
        "_sink",
        "_streams",
        "connect_protocol",
        "draining",
        "greeted",
        "limit",
        "name",
    )

    def __init__(self, limits: Http2Options, layer: FrameLayer) -> None:
        self.name = layer.name
        self._limits = limits
        self._layer = layer
        self._streams: dict[int, _Stream] = {}
        self._left: dict[int, int] = {}  # bytes of streams that have ended, for which no credit was given yet
        self._blocked: dict[int, None] = {}  # streams whose window was found shut, longest first
        self._last_id = -1
        self._max_streams = self.limit = min(limits.max_streams, _ASSUMED_STREAMS)
        self._resets = 0  # places that are kept for streams that were reset
        self._resets_pinged = 0  # those of them that the PING under way will free
        self._reset_ping: bytes | None = None
        self._ping: bytes | None = None
        self._pings = 0
        self._budget = limits.control_frames
        self._refilled_at = 0.0
        self._earned = 0
        self._replies = 0
        self._greeting = b""  # the first bytes of the peer, until its SETTINGS have come
        self._goaway: int | None = None
        self._closing = False  # GOAWAY was sent
        self._dead = False  # nothing is read any more
        self._moved = False  # the capacity has changed, and the sink does not know
        self._now = 0.0
        self._sink: Any = None  # set while `receive_data` runs
        self.draining = False
        self.greeted = False
        self.connect_protocol = False

    # --- Requests -----------------------------------------------------------------------------------------------------

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @property
    def dead(self) -> bool:
        """Whether nothing is read any more: the peer broke the protocol or is gone, or both sides have ended."""
        return self._dead

    @property
    def asking(self) -> bool:
        """Whether places of streams that were reset wait for the answer to a PING."""
        return self._reset_ping is not None

    @property
    def capacity(self) -> int:
        """How many streams may be opened now."""
        return 0 if self.draining else max(0, self.limit - len(self._streams))

    def start(self) -> None:
        """Say hello; what to send is in `data_to_send`."""
        self._layer.start()

    def data_to_send(self) -> bytes:
        """Return the bytes that are to be sent, and forget them."""
        self._replies = 0
        return self._layer.data_to_send()

    def open(self, head: RequestHead, sink: HTTPSink, end: bool, *, protocol: bytes | None = None) -> int:
        """Send the head of a request; returns the number of its stream."""
        if self.draining:
            raise ConnectionLost(f"the connection takes no more requests{self._why()}", code="ERR_HTTP2_GOAWAY_SESSION")
        if len(self._streams) >= self.limit:
            raise LocalProtocolError(
                f"the connection has no room for another stream ({self._max_streams} at a time)",
                code="ERR_HTTP2_OUT_OF_STREAMS",
            )
        if protocol is not None and not self.connect_protocol:
            raise LocalProtocolError("the server does not take extended CONNECT (RFC 8441)")
        due = None if head.chunked or head.method == b"CONNECT" else head.content_length or 0
        if end and due:
            raise _too_short(due)
        fields = head.http2_fields
        if fields is None:
            fields = request_fields(head, protocol)
            if len(head.rendered) > _SUSPECT:
                _require_size(fields)
            head.http2_fields = fields
        stream_id = self._layer.request(fields, end)
        self._streams[stream_id] = _Stream(sink, due, end)
        self._last_id = stream_id
        if stream_id == MAX_STREAM_ID:
            self.draining = True
        return stream_id

    def window(self, stream_id: int) -> int:
        """Return how many bytes of the body may be sent now."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.requested:
            return 0
        size = self._layer.window(stream_id)
        if size <= 0:
            self._blocked[stream_id] = None
            return 0
        return size

    def send_data(self, stream_id: int, data: bytes | memoryview, end: bool = False) -> bool:
        """Send a piece of the body; returns whether the stream is over."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return True
        assert not stream.requested, "the request is written to its end"
        size = len(data)
        assert not size or size <= self._layer.window(stream_id), "the piece is longer than the window"
        due = stream.due
        if due is not None:
            if size > due:
                raise LocalProtocolError("the body is longer than announced", code="ERR_HTTP_CONTENT_LENGTH_MISMATCH")
            if end and size < due:
                raise _too_short(due - size)
            stream.due = due - size
        self._earned += _EARNED_UPDATES * (1 + size // FRAME_SIZE)
        self._layer.send_data(stream_id, data, end)
        return end and self._requested(stream_id, stream)

    def end_request(self, stream_id: int, trailers: CallerFields = ()) -> bool:
        """End a request; returns whether the stream is over."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return True
        if not trailers:
            return self.send_data(stream_id, b"", end=True)
        assert not stream.requested, "the request is written to its end"
        if stream.due:
            raise _too_short(stream.due)
        fields = lower_case(trailer_fields(trailers))
        _require_size(fields)
        self._layer.send_trailers(stream_id, fields)
        return self._requested(stream_id, stream)

    def _requested(self, stream_id: int, stream: _Stream) -> bool:
        stream.requested = True
        if stream.responded:
            self._forget(stream_id, stream)
        return stream.responded

    def reset(self, stream_id: int, code: int = ErrorCode.CANCEL) -> None:
        """Give up a stream, or what is left to read of one that has ended."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._layer.reset(stream_id, code)
            self._note_reset()
            self._forget(stream_id, stream)
        left = self._left.pop(stream_id, 0)
        if left and not self._dead:
            self._layer.credit(stream_id, left)

    def consumed(self, stream_id: int, size: int) -> None:
        """Take note that bytes of a body were read."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            assert size <= stream.got - stream.read, "more was read than has come"
            stream.read += size
        else:
            left = self._left.pop(stream_id, 0)
            if size < left:
                self._left[stream_id] = left - size
            else:
                size = left
        if size and not self._dead:
            self._layer.credit(stream_id, size)

    def ping(self) -> None:
        """Ask for a sign of life, unless one is due already."""
        if self._ping is None and not self._dead:
            self._ping = self._send_ping(b"p")

    def close(self, code: int = ErrorCode.NO_ERROR) -> None:
        """Send GOAWAY, once, and take no more requests."""
        if not (self._dead or self._closing):
            self.draining = self._closing = True
            self._layer.goaway(code)
        self._dead = self._dead or not self._streams

    def _send_ping(self, kind: bytes) -> bytes:
        self._pings += 1
        payload = kind + self._pings.to_bytes(7, "big")
        self._layer.ping(payload)
        return payload

    def _note_reset(self) -> None:
        self._resets += 1
        self._find_limit()
        if self._reset_ping is None and not self.draining:
            self._resets_pinged = self._resets
            self._reset_ping = self._send_ping(b"r")

    def _find_limit(self) -> None:
        self.limit = max(0, self._max_streams - self._resets)

    def _forget(self, stream_id: int, stream: _Stream) -> None:
        del self._streams[stream_id]
        self._blocked.pop(stream_id, None)
        left = stream.got - stream.read
        if left:
            self._left[stream_id] = left

    # --- What the peer sends ------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes | memoryview, now: float, sink: HTTP2Sink) -> None:
        """Take bytes from the peer and tell the sinks; `data` is not kept."""
        if self._dead or not data:
            return
        self._now = now
        self._sink = sink
        if not self.greeted:
            self._greeting += bytes(data[: _SHOWN - len(self._greeting)])
            self._refilled_at = now
        try:
            self._layer.receive(data, self)
        except ConnectionFault as fault:
            raise self._broken(fault) from fault.__cause__
        finally:
            self._sink = None
        if self._moved:
            self._moved = False
            sink.capacity_changed()

    def receive_eof(self, clean: bool, now: float, sink: HTTP2Sink) -> None:
        """Take the end of the peer's bytes: every open stream fails."""
        self._now = now
        self._dead = self.draining = True
        how = "closed the connection" if clean else "closed the connection without close_notify"
        for stream_id, stream in list(self._streams.items()):
            where = f"within the body: {stream.got} bytes came" if stream.headed else "before it sent a response"
            code = "ERR_HTTP2_SESSION_ERROR" if self._goaway else None
            error = ConnectionLost(f"the server {how} {where}{self._why()}", code=code)
            self._fail(stream_id, stream, error, sink)

    def _why(self) -> str:
        return "" if self._goaway is None else f" (after GOAWAY, {code_name(self._goaway)})"

    def _broken(self, fault: ConnectionFault) -> RemoteProtocolError:
        self._dead = self.draining = True
        self._layer.goaway(fault.code)
        message = str(fault)
        if self._greeting[:5] == b"HTTP/":
            message = f"the server does not speak HTTP/2, though it has agreed to: it sent {quoted(self._greeting)}"
        for stream_id, stream in list(self._streams.items()):
            error = RemoteProtocolError(message, code="ERR_HTTP2_SESSION_ERROR")
            self._fail(stream_id, stream, error, self._sink)
        return RemoteProtocolError(message, code="ERR_HTTP2_SESSION_ERROR")

    def _fail(
        self, stream_id: int, stream: _Stream, error: RequestError, sink: HTTP2Sink, *, processed: bool = True
    ) -> None:
        """Tell of the end of a stream that the peer or the layer has ended."""
        self._forget(stream_id, stream)
        if stream.responded:
            # RFC 9113, 8.1: the response is whole, whatever has become of the rest of the request.
            sink.stream_ended(stream_id)
            return
        left = self._left.pop(stream_id, 0)
        if left and not self._dead:
            self._layer.credit(stream_id, left)
        sink.stream_failed(stream_id, error, processed)

    def _break_stream(self, stream_id: int, stream: _Stream, code: int, message: str) -> None:
        self._layer.reset(stream_id, code)
        self._note_reset()
        self._fail(stream_id, stream, RemoteProtocolError(message), self._sink)

    # --- Responses ----------------------------------------------------------------------------------------------------

    def informational_received(self, stream_id: int, fields: Sequence[Field]) -> None:
        """Take a 1xx response."""
        stream = self._streams.get(stream_id)
        if stream is None:
            self.control_received()
            return
        stream.informational += 1
        stream.informational_size += list_size(fields)
        limits = self._limits
        if stream.informational > limits.max_informational:
            allowed = f"{limits.max_informational} informational responses (max_informational)"
        elif stream.informational_size > limits.max_header_list_size:
            allowed = f"{limits.max_header_list_size} bytes of informational responses (max_header_list_size)"
        else:
            stream.sink.informational_received(_head(fields))
            return
        self._break_stream(stream_id, stream, ErrorCode.ENHANCE_YOUR_CALM, f"the server sent more than {allowed}")

    def response_received(self, stream_id: int, fields: Sequence[Field], end: bool) -> None:
        """Take a final response."""
        stream = self._streams.get(stream_id)
        if stream is None:
            self.control_received()
            return
        stream.headed = True
        stream.sink.response_received(_head(fields))
        if end:
            self._responded(stream_id, stream, None)

    def data_received(self, stream_id: int, data: bytes, end: bool) -> None:
        """Take bytes of a body."""
        stream = self._streams.get(stream_id)
        if stream is None:
            self.control_received()
            if data:
                self._layer.credit(stream_id, len(data))
            return
        if data:
            stream.got += len(data)
            stream.sink.body_received(data)
        elif not end:
            self.control_received()
        if end:
            self._responded(stream_id, stream, None)

    def trailers_received(self, stream_id: int, fields: Sequence[Field]) -> None:
        """Take the fields that end a response."""
        stream = self._streams.get(stream_id)
        if stream is None:
            self.control_received()
        elif any(name == b"content-length" for name, _ in fields):
            message = "the server sent content-length behind the body that it is about"
            if stream.requested:  # over on both sides: there is nothing to reset
                self._fail(stream_id, stream, RemoteProtocolError(message), self._sink)
            else:
                self._break_stream(stream_id, stream, ErrorCode.PROTOCOL_ERROR, message)
        else:
            self._responded(stream_id, stream, Headers(list(fields)) if fields else None)

    def _responded(self, stream_id: int, stream: _Stream, trailers: Headers | None) -> None:
        stream.responded = True
        stream.sink.response_ended(trailers)
        if stream.requested:
            self._forget(stream_id, stream)
            self._sink.stream_ended(stream_id)

    def reset_received(self, stream_id: int, code: int) -> None:
        """Take the peer's RST_STREAM."""
        stream = self._streams.get(stream_id)
        if stream is None:
            self.control_received()
            return
        error = StreamReset(f"the server reset the stream ({code_name(code)})", error_code=code)
        self._fail(stream_id, stream, error, self._sink, processed=code != ErrorCode.REFUSED_STREAM)

    def stream_broken(self, stream_id: int, message: str) -> None:
        """Take note of a stream that the layer has reset."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._note_reset()
            self._fail(stream_id, stream, RemoteProtocolError(message), self._sink)

    def stream_unsent(self, stream_id: int) -> None:
        """Take note of a stream of which nothing was sent."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._fail(stream_id, stream, self._unprocessed(), self._sink, processed=False)

    # --- The connection -----------------------------------------------------------------------------------------------

    def settings_received(self, settings: Mapping[int, int]) -> None:
        """Take the peer's settings."""
        self._reply()
        limit = settings.get(_MAX_CONCURRENT_STREAMS)
        if limit is not None or not self.greeted:
            most = self._limits.max_streams
            most = most if limit is None else min(limit, most)
            self._moved = self._moved or most != self._max_streams
            self._max_streams = most
            self._find_limit()
        self._greeting = b""
        self.greeted = True
        if _ENABLE_CONNECT_PROTOCOL in settings:
            taken = settings[_ENABLE_CONNECT_PROTOCOL] == 1
            if self.connect_protocol and not taken:
                # RFC 8441, 3
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the server has taken back ENABLE_CONNECT_PROTOCOL")
            self.connect_protocol = taken
        if _INITIAL_WINDOW_SIZE in settings:
            self._tell_windows()

    def ping_received(self) -> None:
        """Take note of a PING."""
        self._reply()

    def pong_received(self, payload: bytes) -> None:
        """Take the answer to a PING."""
        if payload == self._reset_ping:
            self._resets -= self._resets_pinged
            self._find_limit()
            self._resets_pinged = self._resets
            self._reset_ping = self._send_ping(b"r") if self._resets else None
            self._moved = True
        elif payload == self._ping:
            self._ping = None
            self._sink.pong(self._now)
        else:
            self.control_received()

    def window_updated(self, stream_id: int) -> None:
        """Take note of more room."""
        if self._earned:
            self._earned -= 1
        else:
            self.control_received()
        if not stream_id:
            self._tell_windows()
        elif stream_id in self._blocked and self._layer.window(stream_id) > 0:
            del self._blocked[stream_id]
            self._sink.window_opened(stream_id)

    def _tell_windows(self) -> None:
        for stream_id in list(self._blocked):
            if self._layer.window(stream_id) > 0:
                del self._blocked[stream_id]
                self._sink.window_opened(stream_id)

    def goaway_received(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """Take a GOAWAY."""
        self.control_received()
        self.draining = self._moved = True
        self._goaway = code
        self._sink.goaway(last_stream_id, code, debug)
        if self._last_id > last_stream_id:
            for stream_id in [number for number in self._streams if number > last_stream_id]:
                self._fail(stream_id, self._streams[stream_id], self._unprocessed(), self._sink, processed=False)

    def _unprocessed(self) -> ConnectionLost:
        return ConnectionLost(f"the server did not process the request{self._why()}", code="ERR_HTTP2_GOAWAY_SESSION")

    def control_received(self) -> None:
        """Take note of a frame that serves no request."""
        self._budget -= 1
        if self._budget < 0:
            limits = self._limits
            refill = int((self._now - self._refilled_at) * limits.control_frame_rate)
            self._refilled_at = self._now
            self._budget = min(limits.control_frames, refill) - 1
            if self._budget < 0:
                raise ConnectionFault(
                    ErrorCode.ENHANCE_YOUR_CALM,
                    f"the server sent more than {limits.control_frames} control frames at once (control_frames)",
                )

    def _reply(self) -> None:
        self.control_received()
        self._replies += 1
        if self._replies > self._limits.max_pending_replies:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"the server wants more than {self._limits.max_pending_replies} answers at once (max_pending_replies)",
            )


def _head(fields: Sequence[Field]) -> ResponseHead:
    return ResponseHead(int(fields[0][1]), "", "HTTP/2", Headers(list(fields[1:])))


def _require_size(fields: list[Field]) -> None:
    size = list_size(fields)
    if size > MAX_FIELDS:
        raise LocalProtocolError(
            f"the fields take {size} bytes (RFC 9113, 6.5.2), and HTTP/2 takes no more than {MAX_FIELDS}: send them as "
            'content, or offer "http/1.1" alone (alpn_protocols)',
            code="ERR_TLSAGENT_FIELDS_TOO_LARGE",
        )


def _too_short(missing: int) -> LocalProtocolError:
    return LocalProtocolError(
        f"the body is {missing} bytes shorter than announced", code="ERR_HTTP_CONTENT_LENGTH_MISMATCH"
    )


def code_name(code: int) -> str:
    """Return the name of an error code, or its number."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"error code {code:#x}"
