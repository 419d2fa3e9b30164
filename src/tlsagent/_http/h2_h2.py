"""
The parts of h2 as a frame layer of HTTP/2: the one that is always there.

Frames are read and written by hyperframe, fields by hpack, settings judged by h2. The connection object of h2 is left
out, because of what it does to the requests that share a connection:

- a fault of one stream, as a length that does not match or a second final head, ends the connection;
- after a GOAWAY it takes nothing more, and forgets what it had to send, though streams below the last one go on;
- events that precede a fault in the same piece are lost, so that it matters how the bytes were cut;
- a frame is buffered whole before its length is judged: up to 16 MiB;
- it costs three times as much.

What remains to be done here is small: the windows, and which frame may follow which (RFC 9113, 5.1 and 6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from h2.exceptions import InvalidSettingsValueError
from h2.settings import SettingCodes, Settings
from hpack import Decoder, Encoder, HeaderTuple, HPACKError, NeverIndexedHeaderTuple, OversizedHeaderListError
from hyperframe.exceptions import InvalidDataError, InvalidFrameError, InvalidPaddingError
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

from tlsagent._http.h2 import FRAME_SIZE, ConnectionFault, ErrorCode, H2Engine
from tlsagent._http.h2_fields import MalformedError, announced_length, check_fields, checked_status
from tlsagent.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._http.h2 import FrameSink
    from tlsagent._http.messages import Field
    from tlsagent._limits import Http2Options

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEAD: Final = 9
_INITIAL_WINDOW: Final = 65_535
_MAX_WINDOW: Final = 2**31 - 1
_MAX_TABLE: Final = 4_096
_MAX_SETTINGS: Final = 32
_MAX_STREAM_ID: Final = 2**31 - 1
_SETTING_SIZE: Final = 6
_SHORT_COOKIE: Final = 20
_BODILESS: Final = frozenset({204, 304})


class _Stream:
    """What frames need to know of a stream."""

    __slots__ = (
        "bodiless",
        "connect",
        "consumed",
        "expected",
        "got",
        "headed",
        "local_closed",
        "receive_window",
        "remote_closed",
        "send_window",
    )

    def __init__(self, method: bytes, send_window: int, receive_window: int, local_closed: bool) -> None:
        self.bodiless = method == b"HEAD"
        self.connect = method == b"CONNECT"
        self.send_window = send_window
        self.receive_window = receive_window
        self.consumed = 0  # bytes to be credited that the peer was not told of
        self.headed = False
        self.expected: int | None = None
        self.got = 0
        self.local_closed = local_closed
        self.remote_closed = False


class H2Layer:
    """A `FrameLayer`."""

    __slots__ = (
        "_acknowledged",
        "_block",
        "_buffer",
        "_connection_consumed",
        "_decoder",
        "_encoder",
        "_greeted",
        "_initial_receive",
        "_last_allowed",
        "_limits",
        "_next_id",
        "_out",
        "_receive_window",
        "_send_window",
        "_settings",
        "_sink",
        "_streams",
        "_wanted",
    )

    name = "h2"

    def __init__(self, limits: Http2Options) -> None:
        self._limits = limits
        self._encoder = Encoder()
        self._decoder = Decoder(max_header_list_size=limits.max_header_list_size)
        self._settings = Settings(client=False)
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1
        self._last_allowed = _MAX_STREAM_ID
        self._send_window = _INITIAL_WINDOW
        self._receive_window = 2 * limits.connection_window
        self._connection_consumed = 0
        self._initial_receive = _INITIAL_WINDOW  # until the peer has taken note of ours
        self._greeted = False  # its SETTINGS have come
        self._acknowledged = False  # it has taken note of ours
        self._block: list[HeadersFrame | ContinuationFrame] = []
        self._buffer = bytearray()
        self._wanted = _FRAME_HEAD
        self._out: list[bytes] = []
        self._sink: Any = None  # set while `receive` runs

    # --- What we send -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send the preface, SETTINGS, and the window of the connection."""
        limits = self._limits
        self._out.append(_PREFACE)
        self._send(
            SettingsFrame(
                settings={
                    SettingCodes.ENABLE_PUSH: 0,
                    SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window,
                    SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_header_list_size,
                }
            )
        )
        self._send(WindowUpdateFrame(0, self._receive_window - _INITIAL_WINDOW))

    def data_to_send(self) -> bytes:
        """Return what is to be sent."""
        out = self._out
        if len(out) == 1:
            return out.pop()
        data = b"".join(out)
        out.clear()
        return data

    def _send(self, frame: Frame) -> None:
        self._out.append(frame.serialize())

    def request(self, fields: list[Field], end: bool) -> int:
        """Open a stream."""
        stream_id = self._next_id
        self._next_id = stream_id + 2
        self._streams[stream_id] = _Stream(
            fields[0][1], self._settings.initial_window_size, self._initial_receive, local_closed=end
        )
        self._send_fields(stream_id, fields, end)
        return stream_id

    def _send_fields(self, stream_id: int, fields: list[Field], end: bool) -> None:
        block = self._encoder.encode([_encodable(name, value) for name, value in fields])
        frame: HeadersFrame | ContinuationFrame = HeadersFrame(stream_id, block[:FRAME_SIZE])
        if end:
            frame.flags.add("END_STREAM")
        for at in range(FRAME_SIZE, len(block), FRAME_SIZE):
            self._send(frame)
            frame = ContinuationFrame(stream_id, block[at : at + FRAME_SIZE])
        frame.flags.add("END_HEADERS")
        self._send(frame)

    def window(self, stream_id: int) -> int:
        """Return how many bytes may be sent."""
        return min(self._send_window, self._streams[stream_id].send_window)

    def send_data(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        """Send a piece of a body."""
        stream = self._streams[stream_id]
        size = len(data)
        self._send_window -= size
        stream.send_window -= size
        for at in range(0, size or 1, FRAME_SIZE):
            frame = DataFrame(stream_id, bytes(data[at : at + FRAME_SIZE]))
            if end and at + FRAME_SIZE >= size:
                frame.flags.add("END_STREAM")
            self._send(frame)
        if end:
            self._close_local(stream_id, stream)

    def send_trailers(self, stream_id: int, fields: list[Field]) -> None:
        """End a body with fields."""
        self._send_fields(stream_id, fields, end=True)
        self._close_local(stream_id, self._streams[stream_id])

    def _close_local(self, stream_id: int, stream: _Stream) -> None:
        stream.local_closed = True
        if stream.remote_closed:
            del self._streams[stream_id]

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM."""
        if self._streams.pop(stream_id, None) is not None:
            self._send(RstStreamFrame(stream_id, code))

    def credit(self, stream_id: int, size: int) -> None:
        """Let the peer send more, told when it is half a window."""
        limits = self._limits
        self._connection_consumed = consumed = self._connection_consumed + size
        if consumed >= limits.connection_window:
            self._connection_consumed = 0
            self._receive_window += consumed
            self._send(WindowUpdateFrame(0, consumed))
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.remote_closed:
            stream.consumed += size
            if stream.consumed >= limits.stream_window // 2:
                self._send(WindowUpdateFrame(stream_id, stream.consumed))
                stream.receive_window += stream.consumed
                stream.consumed = 0

    def ping(self, payload: bytes) -> None:
        """Send a PING."""
        self._send(PingFrame(opaque_data=payload))

    def goaway(self, code: int) -> None:
        """Send GOAWAY."""
        self._send(GoAwayFrame(last_stream_id=0, error_code=code))

    # --- What the peer sends ------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview, sink: FrameSink) -> None:
        """Take bytes."""
        buffer = self._buffer
        if buffer:
            if len(buffer) + len(data) < self._wanted:
                buffer += data
                return
            data = b"".join((buffer, data))
            buffer.clear()
        self._sink = sink
        try:
            rest = self._read_frames(memoryview(data))
        except InvalidPaddingError as exc:
            raise _fault(ErrorCode.PROTOCOL_ERROR, exc) from exc
        except InvalidFrameError as exc:
            raise _fault(ErrorCode.FRAME_SIZE_ERROR, exc) from exc
        except InvalidDataError as exc:
            raise _fault(ErrorCode.PROTOCOL_ERROR, exc) from exc
        finally:
            self._sink = None
        buffer += rest

    def _read_frames(self, view: memoryview) -> memoryview:
        """Read as many frames as there are; returns what is left over."""
        while len(view) >= _FRAME_HEAD:
            frame, length = Frame.parse_frame_header(view[:_FRAME_HEAD])
            end = _FRAME_HEAD + length
            if length > FRAME_SIZE:
                raise ConnectionFault(
                    ErrorCode.FRAME_SIZE_ERROR, f"the server sent a frame of {length} bytes; {FRAME_SIZE} are allowed"
                )
            if isinstance(frame, SettingsFrame):
                if length and "ACK" in frame.flags:
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "the server acknowledged SETTINGS with settings")
            elif not self._greeted:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame of the server is not SETTINGS")
            if self._block and not (
                isinstance(frame, ContinuationFrame) and frame.stream_id == self._block[0].stream_id
            ):
                raise ConnectionFault(
                    ErrorCode.PROTOCOL_ERROR, "the server sent another frame where CONTINUATION was due"
                )
            if len(view) < end:
                self._wanted = end
                return view
            frame.parse_body(view[_FRAME_HEAD:end])
            view = view[end:]
            self._take(frame, length)
        self._wanted = _FRAME_HEAD
        return view

    def _take(self, frame: Frame, length: int) -> None:
        if self._block:
            self._continue_block(frame)
        elif isinstance(frame, DataFrame):
            self._take_data(frame, length)
        elif isinstance(frame, HeadersFrame):
            self._open_stream(frame, "HEADERS")
            self._block.append(frame)
            if "END_HEADERS" in frame.flags:
                self._end_block()
        else:
            take = _OTHERS.get(type(frame))
            if take is None:
                self._sink.control_received()
            else:
                take(self, frame, length)

    def _continue_block(self, frame: Any) -> None:
        block = self._block
        block.append(frame)
        if len(block) - 1 > self._limits.max_continuations:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"the server sent more than {self._limits.max_continuations} CONTINUATION frames (max_continuations)",
            )
        if "END_HEADERS" in frame.flags:
            self._end_block()

    def _open_stream(self, frame: Frame, what: str) -> _Stream | None:
        """Return the stream that a frame of a response is for; None if it is over."""
        stream = self._streams.get(frame.stream_id)
        if stream is None:
            self._refuse_idle(frame, what)
        elif stream.remote_closed:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"the server sent {what} on a stream that it had ended")
        return stream

    def _refuse_idle(self, frame: Frame, what: str) -> None:
        if frame.stream_id >= self._next_id or frame.stream_id % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"the server sent {what} on a stream that was never opened")

    # --- Fields -------------------------------------------------------------------------------------------------------

    def _end_block(self) -> None:
        first = self._block[0]
        data = first.data if len(self._block) == 1 else b"".join([frame.data for frame in self._block])
        self._block = []
        stream = self._streams.get(first.stream_id)
        try:
            fields = [tuple(field) for field in self._decoder.decode(data, raw=True)]
        except OversizedHeaderListError as exc:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"the server sent more than {self._limits.max_header_list_size} bytes of header fields "
                "(max_header_list_size)",
            ) from exc
        except HPACKError as exc:
            raise _fault(ErrorCode.COMPRESSION_ERROR, exc) from exc
        if stream is None:
            self._sink.control_received()
            return
        try:
            self._take_fields(first.stream_id, stream, fields, "END_STREAM" in first.flags)
        except MalformedError as exc:
            self._break(first.stream_id, ErrorCode.PROTOCOL_ERROR, str(exc))

    def _take_fields(self, stream_id: int, stream: _Stream, fields: list[Any], end: bool) -> None:
        if stream.headed:
            check_fields(fields)
            if not end:
                raise MalformedError("a second head, or trailers that do not end the response")
            self._close_remote(stream_id, stream)
            self._sink.trailers_received(stream_id, fields)
            return
        status = checked_status(fields)
        if status < 200:
            if end:
                raise MalformedError(f"an informational response ({status}) ends the stream")
            if announced_length(fields) is not None:
                raise MalformedError(f"an informational response ({status}) has a content-length")
            self._sink.informational_received(stream_id, fields)
            return
        length = announced_length(fields)
        if status == 204 and length:
            raise MalformedError("a response without body (204) announces one")
        if status == 204 or (stream.connect and status < 300):
            fields = [field for field in fields if field[0] != b"content-length"]  # it means nothing there
            length = None
        stream.expected = 0 if stream.bodiless or status in _BODILESS else length
        stream.headed = True
        if end:
            self._close_remote(stream_id, stream)
        self._sink.response_received(stream_id, fields, end)

    def _close_remote(self, stream_id: int, stream: _Stream) -> None:
        if stream.expected is not None and stream.got != stream.expected:
            raise MalformedError(f"the body has {stream.got} bytes of the {stream.expected} announced")
        stream.remote_closed = True
        if stream.local_closed:
            del self._streams[stream_id]

    def _break(self, stream_id: int, code: int, message: str) -> None:
        self.reset(stream_id, code)
        self._sink.stream_broken(stream_id, f"the server broke HTTP/2 on this stream: {message}")

    # --- Bodies -------------------------------------------------------------------------------------------------------

    def _take_data(self, frame: DataFrame, length: int) -> None:
        stream_id = frame.stream_id
        stream = self._open_stream(frame, "DATA")
        self._receive_window -= length
        if self._receive_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the server sent more than the connection's window")
        if stream is None:
            self.credit(stream_id, length)
            self._sink.control_received()
            return
        data = frame.data
        end = "END_STREAM" in frame.flags
        stream.receive_window -= length
        stream.got += len(data)
        try:
            if stream.receive_window < 0:
                self._break(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "it sent more than the stream's window")
            elif not stream.headed:
                raise MalformedError("DATA before the head of the response")
            elif stream.expected is not None and stream.got > stream.expected:
                raise MalformedError(f"the body is longer than the {stream.expected} bytes announced")
            else:
                if end:
                    self._close_remote(stream_id, stream)
                if length > len(data):
                    self.credit(stream_id, length - len(data))
                self._sink.data_received(stream_id, data, end)
                return
        except MalformedError as exc:
            self._break(stream_id, ErrorCode.PROTOCOL_ERROR, str(exc))
        self.credit(stream_id, length)

    # --- Other frames -------------------------------------------------------------------------------------------------

    def _take_settings(self, frame: SettingsFrame, length: int) -> None:
        if "ACK" in frame.flags:
            self._take_settings_ack()
            return
        self._greeted = True
        if length > _MAX_SETTINGS * _SETTING_SIZE:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, f"the server sent more than {_MAX_SETTINGS} settings in one frame"
            )
        settings = self._settings
        for identifier, value in frame.settings.items():
            try:
                settings.validate_received_setting(identifier, value)
            except InvalidSettingsValueError as exc:
                raise _fault(exc.error_code, exc) from exc
        window = settings.initial_window_size
        # Only those that are heeded here are kept: a peer may invent any number of others.
        settings.update({key: frame.settings[key] for key in _HEEDED if key in frame.settings})
        settings.acknowledge()
        grown = settings.initial_window_size - window
        for stream in self._streams.values():
            stream.send_window += grown
            if stream.send_window > _MAX_WINDOW:
                raise _overflow()
        if SettingCodes.HEADER_TABLE_SIZE in frame.settings:
            self._encoder.header_table_size = min(settings.header_table_size, _MAX_TABLE)
        self._send(SettingsFrame(flags=["ACK"]))
        self._sink.settings_received(frame.settings)

    def _take_settings_ack(self) -> None:
        if self._acknowledged:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the server acknowledged settings that were not sent")
        self._acknowledged = True
        grown = self._limits.stream_window - self._initial_receive
        self._initial_receive = self._limits.stream_window
        for stream in self._streams.values():
            stream.receive_window += grown

    def _take_ping(self, frame: PingFrame, _length: int) -> None:
        if "ACK" in frame.flags:
            self._sink.pong_received(frame.opaque_data)
        else:
            self._send(PingFrame(opaque_data=frame.opaque_data, flags=["ACK"]))
            self._sink.ping_received()

    def _take_reset(self, frame: RstStreamFrame, _length: int) -> None:
        stream = self._streams.pop(frame.stream_id, None)
        if stream is None:
            self._refuse_idle(frame, "RST_STREAM")
        self._sink.reset_received(frame.stream_id, frame.error_code)

    def _take_window_update(self, frame: WindowUpdateFrame, _length: int) -> None:
        stream_id, increment = frame.stream_id, frame.window_increment
        if not stream_id:
            self._send_window += increment
            if self._send_window > _MAX_WINDOW:
                raise _overflow()
        else:
            stream = self._streams.get(stream_id)
            if stream is None:
                self._refuse_idle(frame, "WINDOW_UPDATE")
                self._sink.control_received()
                return
            stream.send_window += increment
            if stream.send_window > _MAX_WINDOW:
                self._break(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "its window is beyond 2**31 - 1")
                return
        self._sink.window_updated(stream_id)

    def _take_goaway(self, frame: GoAwayFrame, _length: int) -> None:
        last = frame.last_stream_id & _MAX_STREAM_ID  # hyperframe leaves the reserved bit in it
        if last > self._last_allowed or (last and last % 2 == 0):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"the server sent a GOAWAY with the last stream {last}")
        self._last_allowed = last
        self._sink.goaway_received(last, frame.error_code, frame.additional_data)
        for stream_id in [number for number in self._streams if number > last]:
            del self._streams[stream_id]

    def _refuse_push(self, _frame: PushPromiseFrame, _length: int) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the server sent PUSH_PROMISE, though push is disabled")

    def _refuse_continuation(self, _frame: ContinuationFrame, _length: int) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the server sent CONTINUATION where none was due")


_HEEDED: Final = (SettingCodes.HEADER_TABLE_SIZE, SettingCodes.INITIAL_WINDOW_SIZE)
_OTHERS: Final[dict[type[Frame], Callable[[H2Layer, Any, int], None]]] = {
    SettingsFrame: H2Layer._take_settings,
    PingFrame: H2Layer._take_ping,
    RstStreamFrame: H2Layer._take_reset,
    WindowUpdateFrame: H2Layer._take_window_update,
    GoAwayFrame: H2Layer._take_goaway,
    PushPromiseFrame: H2Layer._refuse_push,
    ContinuationFrame: H2Layer._refuse_continuation,
}


def _encodable(name: bytes, value: bytes) -> HeaderTuple:
    # RFC 7541, 7.1.3: what may be guessed bit by bit stays out of the tables, as libnghttp2 has it.
    if name == b"authorization" or name == b"proxy-authorization" or (name == b"cookie" and len(value) < _SHORT_COOKIE):
        return NeverIndexedHeaderTuple(name, value)
    return HeaderTuple(name, value)


def _fault(code: int, exc: Exception) -> ConnectionFault:
    return ConnectionFault(code, f"the server broke HTTP/2: {quoted(str(exc))}")


def _overflow() -> ConnectionFault:
    return ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the server opened a window beyond 2**31 - 1 bytes")


def h2_engine(limits: Http2Options) -> H2Engine:
    """Return an engine for one connection."""
    return H2Engine(limits, H2Layer(limits))
