"""
libnghttp2, Node's own HTTP/2 library, as a frame layer of HTTP/2, by way of ngh2: the fast one.

What ngh2 does not do, or does later, shapes this module:

- A request is sent when bytes are taken, a stream is reset and its end told only then too. So bytes are taken after
  each piece that was read, and kept; and until then a new stream has no window of its own.
- It gives credit for a stream and for the connection in one call, for bytes that it has told of. What it has read of a
  DATA frame when the stream is reset is never told, and the connection's window would shrink by it. So it only gets
  whole frames; for this their lengths are looked at, and nothing else of them.
- A list of fields beyond the limit destroys its connection object without GOAWAY: hyperframe then writes one.
- Once the last stream after a GOAWAY is over, its connection object refuses every call.
- It tells of a fault by the end of the stream or of the connection, and of the reason only for the latter.
- Of frames that are for nobody (PRIORITY, unknown types, what comes on streams that are over) it tells nothing. It
  counts them itself, by the clock of the machine: 10,000 at once, and 330 more each second.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import ngh2
from hyperframe.frame import GoAwayFrame

from tlsagent._http.h2 import FRAME_SIZE, MAX_FIELDS, ConnectionFault, ErrorCode, H2Engine, code_name
from tlsagent.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tlsagent._http.h2 import FrameSink
    from tlsagent._http.messages import Field
    from tlsagent._limits import Http2Options

_MAX_UINT32: Final = 2**32 - 1
_FIELD_OVERHEAD: Final = 32
_FRAME_HEAD: Final = 9
_INITIAL_WINDOW: Final = 65_535
_uint32: Final = struct.Struct(">I").unpack_from


class Ngh2Layer:
    """A `FrameLayer`."""

    __slots__ = (
        "_buffer",
        "_closed",
        "_connection",
        "_farewell",
        "_initial_window",
        "_leaving",
        "_limits",
        "_out",
        "_wanted",
    )

    name = "ngh2"

    def __init__(self, limits: Http2Options) -> None:
        self._limits = limits
        self._connection = ngh2.Connection(
            ngh2.Role.CLIENT,
            ngh2.Configuration(
                auto_window_update=False,
                # How many streams there may be is kept by the engine.
                peer_max_concurrent_streams=_MAX_UINT32,
                max_send_header_block_length=MAX_FIELDS,
                max_continuations=limits.max_continuations,
                max_inbound_header_list_size=limits.max_header_list_size,
                max_inbound_header_count=limits.max_header_list_size // _FIELD_OVERHEAD,
                max_outbound_ack=limits.max_pending_replies + 1,
            ),
        )
        self._buffer = bytearray()
        self._wanted = 0  # bytes that the buffer must have before there is a frame
        self._out: list[bytes] = []
        self._initial_window = _INITIAL_WINDOW
        self._leaving = False  # GOAWAY was sent or received
        self._farewell = False  # the last GOAWAY was written
        self._closed = False  # the connection object is of no use any more

    # --- What we send -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send the preface, SETTINGS, and the window of the connection."""
        limits = self._limits
        self._connection.initiate_connection(
            {
                ngh2.Setting.ENABLE_PUSH: 0,
                ngh2.Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
                ngh2.Setting.MAX_HEADER_LIST_SIZE: limits.max_header_list_size,
            }
        )
        self._connection.set_local_window_size(2 * limits.connection_window)

    def data_to_send(self) -> bytes:
        """Return what is to be sent."""
        out = self._out
        if not self._closed:
            data: bytes = self._connection.data_to_send()
            if not out:
                return data
            out.append(data)
        data = b"".join(out)
        out.clear()
        return data

    def _ended(self) -> bool:
        """Return whether the connection object is of no use any more."""
        if self._leaving and not self._closed:
            self._closed = not (self._connection.want_read or self._connection.want_write)
        return self._closed

    def request(self, fields: list[Field], end: bool) -> int:
        """Open a stream."""
        stream_id: int = self._connection.send_request(fields, end_stream=end)
        return stream_id

    def window(self, stream_id: int) -> int:
        """Return how many bytes may be sent."""
        if self._closed:  # by what came in the same read, behind the frame that this is asked for
            return 0
        connection = self._connection
        try:
            size: int = connection.stream_remote_window_size(stream_id)
        except ngh2.StreamUnavailableError:
            size = self._initial_window
        size -= connection.queued_body_size(stream_id)
        room: int = connection.remote_window_size - connection.queued_body_size()
        return min(size, room)

    def send_data(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        """Send a piece of a body."""
        self._connection.send_data(stream_id, data, end_stream=end)

    def send_trailers(self, stream_id: int, fields: list[Field]) -> None:
        """End a body with fields."""
        self._connection.send_trailers(stream_id, fields)

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM."""
        if not self._ended():
            self._connection.reset_stream(stream_id, code)

    def credit(self, stream_id: int, size: int) -> None:
        """Let the peer send more."""
        if not (self._closed or (self._leaving and self._ended())):
            self._connection.acknowledge_received_data(size, stream_id)

    def ping(self, payload: bytes) -> None:
        """Send a PING."""
        if not self._ended():
            # libnghttp2 lets a PING overtake what was queued before; it must come after the RST_STREAM that it is for.
            self._out.append(self._connection.data_to_send())
        if not self._ended():
            self._connection.ping(payload)

    def goaway(self, code: int) -> None:
        """Send GOAWAY."""
        if self._farewell:
            return
        if self._ended():
            self._out.append(GoAwayFrame(last_stream_id=0, error_code=code).serialize())
        else:
            self._leaving = True
            self._connection.send_goaway(code, last_stream_id=0)

    # --- What the peer sends ------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview, sink: FrameSink) -> None:
        """Take bytes."""
        if self._closed or (self._leaving and self._ended()):
            return
        data = self._whole_frames(data)
        if not data:
            return
        connection = self._connection
        fault = None
        try:
            connection.receive_data(data)
            out = connection.data_to_send()
            if out:
                self._out.append(out)
        except ngh2.NGH2Error as exc:
            self._closed = True
            fault = exc
        events: Sequence[Any] = connection.events()
        if events and type(events[-1]) is ngh2.ConnectionClosed:
            self._closed = True
        for event in events:
            kind = type(event)
            if kind is ngh2.ResponseReceived:
                sink.response_received(event.stream_id, event.headers, event.end_stream)
            elif kind is ngh2.DataReceived:
                sink.data_received(event.stream_id, event.data, event.end_stream)
            elif kind is not ngh2.StreamClosed or event.error_code or event.local_error is not None:
                take = _EVENTS.get(kind)
                if take is not None:
                    take(self, event, sink)
                else:
                    sink.control_received()
        if fault is not None:
            code = (
                ErrorCode.ENHANCE_YOUR_CALM
                if isinstance(fault, ngh2.DenialOfServiceError)
                else ErrorCode.INTERNAL_ERROR
            )
            raise ConnectionFault(code, f"the server went beyond a limit of HTTP/2: {quoted(str(fault))}") from fault

    def _whole_frames(self, data: bytes | memoryview) -> bytes | memoryview:
        """Return as many frames as there are, and keep what is left over; a frame that is too long counts as whole."""
        buffer = self._buffer
        if buffer:
            if len(buffer) + len(data) < self._wanted:
                buffer += data
                return b""
            data = b"".join((buffer, data))
            buffer.clear()
        at = 0
        end = len(data)
        wanted = _FRAME_HEAD
        while end - at >= _FRAME_HEAD:
            length = _uint32(data, at)[0] >> 8
            if length > FRAME_SIZE:
                return data
            wanted = _FRAME_HEAD + length
            if at + wanted > end:
                break
            at += wanted
            wanted = _FRAME_HEAD
        if at == end:
            return data
        self._wanted = wanted
        view = memoryview(data)  # a copy of what one read has brought would double the cost of a download
        buffer += view[at:]
        return view[:at]

    def _take_informational(self, event: ngh2.InformationalResponseReceived, sink: FrameSink) -> None:
        sink.informational_received(event.stream_id, event.headers)

    def _take_trailers(self, event: ngh2.TrailersReceived, sink: FrameSink) -> None:
        sink.trailers_received(event.stream_id, event.headers)

    def _take_reset(self, event: ngh2.StreamReset, sink: FrameSink) -> None:
        sink.reset_received(event.stream_id, event.error_code)

    def _take_bad_end(self, event: ngh2.StreamClosed, sink: FrameSink) -> None:
        if event.local_error is not None:
            sink.stream_unsent(event.stream_id)
        else:
            name = code_name(event.error_code)
            sink.stream_broken(event.stream_id, f"the server broke HTTP/2 on this stream ({name})")

    def _take_settings(self, event: ngh2.SettingsReceived, sink: FrameSink) -> None:
        self._initial_window = event.settings.get(ngh2.Setting.INITIAL_WINDOW_SIZE, self._initial_window)
        sink.settings_received(event.settings)

    def _take_settings_ack(self, _event: ngh2.SettingsAcknowledged, _sink: FrameSink) -> None:
        pass

    def _take_ping(self, _event: ngh2.PingReceived, sink: FrameSink) -> None:
        sink.ping_received()

    def _take_pong(self, event: ngh2.PingAcknowledged, sink: FrameSink) -> None:
        sink.pong_received(event.opaque_data)

    def _take_window_update(self, event: ngh2.WindowUpdated, sink: FrameSink) -> None:
        sink.window_updated(event.stream_id)

    def _take_goaway(self, event: ngh2.GoAwayReceived, sink: FrameSink) -> None:
        self._leaving = True
        sink.goaway_received(event.last_stream_id, event.error_code, event.debug_data)

    def _take_end(self, event: ngh2.ConnectionClosed, sink: FrameSink) -> None:
        if sink.streams or not self._leaving:
            self._farewell = True  # it has written the GOAWAY itself
            why = f": {quoted(event.debug_data)}" if event.debug_data else ""
            raise ConnectionFault(event.error_code, f"the server broke HTTP/2 ({code_name(event.error_code)}){why}")


_EVENTS: Final[dict[type[Any], Callable[[Ngh2Layer, Any, FrameSink], None]]] = {
    ngh2.StreamClosed: Ngh2Layer._take_bad_end,
    ngh2.InformationalResponseReceived: Ngh2Layer._take_informational,
    ngh2.TrailersReceived: Ngh2Layer._take_trailers,
    ngh2.StreamReset: Ngh2Layer._take_reset,
    ngh2.SettingsReceived: Ngh2Layer._take_settings,
    ngh2.SettingsAcknowledged: Ngh2Layer._take_settings_ack,
    ngh2.PingReceived: Ngh2Layer._take_ping,
    ngh2.PingAcknowledged: Ngh2Layer._take_pong,
    ngh2.WindowUpdated: Ngh2Layer._take_window_update,
    ngh2.GoAwayReceived: Ngh2Layer._take_goaway,
    ngh2.ConnectionClosed: Ngh2Layer._take_end,
}


def ngh2_engine(limits: Http2Options) -> H2Engine:
    """Return an engine for one connection."""
    return H2Engine(limits, Ngh2Layer(limits))
