"""
The HTTP/2 floor of the server: h2 in the server's role under one ASGI cycle per stream (RFC 9113, RFC 8441).

It decides which streams are served, whose credit is given back when, and who may send next. Credit of a stream comes
back as the application reads; that of the connection is never short, so that one stream cannot hold up another. What
an application sends waits here for the peer's windows, and the application waits with it.

Where h2 is stricter or shorter than a server may be, this floor steps in: streams beyond the limit are refused one by
one, since a client may open them before it has seen the SETTINGS; a GOAWAY does not end the streams below its last
stream id, whichever side sent it.

Extension tlsagent.stream, which is ours: its `id` in the scope, and two messages to send at any time, before and after
the response as well. "tlsagent.reset" sends RST_STREAM with `code` (an error code, RFC 9113 section 7) and ends the
cycle. "tlsagent.goaway" sends GOAWAY with `code` and `last_stream_id`, by default 0 and the last one that was served;
the connection is closed once the streams up to there have ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame, SettingsFrame

from tlsagent.testing._asgi import Application, Cycle, Headers, Message, Scope
from tlsagent.testing.records import RequestEntry

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent.testing._http import Link
    from tlsagent.testing._settings import ServerSettings

_MAX_HEAD: Final = 65_536
_BODYLESS: Final = frozenset({204, 304})
_LAST_POSSIBLE: Final = 2**31 - 1
_DEFAULT_WINDOW: Final = 65_535
_FAREWELL: Final = b"farewell"  # the PING after the first GOAWAY: its answer proves that the client has seen it


class H2Floor:
    """`HTTPFloor` for HTTP/2: the streams of one connection."""

    __slots__ = (
        "_app",
        "_departing",
        "_h2",
        "_highest",
        "_last",
        "_limit",
        "_link",
        "_receiving",
        "_reset",
        "_served",
        "_streams",
    )

    def __init__(self, link: Link, app: Application, settings: ServerSettings) -> None:
        self._link = link
        self._app = app
        self._limit = settings.max_concurrent_streams
        self._streams: dict[int, _Stream] = {}  # those whose request or response has not ended
        self._served = 0
        self._highest = 0  # the last stream that was served
        self._last = _LAST_POSSIBLE  # of a GOAWAY that was sent: what is above is ignored
        self._departing = False
        self._receiving = False
        self._reset: dict[int, StreamReset] = {}  # what is reset by what came in last: h2 sends nothing there any more
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._greet(settings)

    def _greet(self, settings: ServerSettings) -> None:
        # h2 would apply its initial settings before the client has seen them. So it starts from the protocol's
        # defaults, and both sides change over when the client acknowledges; the limit of streams is kept here alone.
        told = {
            SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEAD,
            SettingCodes.ENABLE_CONNECT_PROTOCOL: int(settings.enable_connect_protocol),
        }
        self._h2.local_settings = Settings(client=False, initial_values=told)
        self._h2.initiate_connection()
        self._h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = settings.initial_window_size
        self._h2.clear_outbound_data_buffer()
        told[SettingCodes.INITIAL_WINDOW_SIZE] = settings.initial_window_size
        told[SettingCodes.MAX_CONCURRENT_STREAMS] = self._limit
        self._link.write(SettingsFrame(0, settings={int(code): value for code, value in told.items()}).serialize())
        self._h2.increment_flow_control_window(_LAST_POSSIBLE - _DEFAULT_WINDOW)
        self._flush()

    # --- From below ---

    def receive_data(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except ProtocolError as exc:
            if self._h2.state_machine.state is not ConnectionState.CLOSED:  # h2 writes no GOAWAY for a wrong preface
                self._h2.close_connection(exc.error_code)
            self._flush()
            self.peer_left()
            self._link.close(linger=True)
            return
        self._receiving = True
        self._reset = {event.stream_id: event for event in events if isinstance(event, StreamReset)}
        try:
            for event in events:
                if handle := _HANDLERS.get(type(event)):
                    handle(self, event)
            if any(isinstance(event, WindowUpdated | RemoteSettingsChanged) for event in events):
                self._windows_changed()  # last: a stream that was reset in the same breath sends no more
        finally:
            self._receiving = False
        self._flush()

    def peer_left(self) -> None:
        streams = tuple(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.abandon()

    def leave(self) -> None:
        self._send_goaway(min(self._highest, self._last), 0)
        self._link.close(linger=bool(self._streams))

    def go_away(self, last_stream_id: int | None, code: int) -> None:
        if last_stream_id is None and not code:
            # RFC 9113 6.8: announce it, and name the last stream once the client has surely stopped opening any.
            self._send_goaway(_LAST_POSSIBLE, 0)
            self._h2.ping(_FAREWELL)
            self._flush()
        else:
            self.depart(last_stream_id, code)

    def depart(self, last_stream_id: int | None = None, code: int = 0) -> None:
        """Send GOAWAY, drop the streams above its last stream id, and close when those up to there have ended."""
        last = self._highest if last_stream_id is None else last_stream_id
        self._departing = True
        self._last = min(last, self._last)
        self._send_goaway(last, code)
        for number in [number for number in self._streams if number > last]:
            self._streams.pop(number).abandon()
        self._close_if_done()

    def _send_goaway(self, last: int, code: int) -> None:
        self._flush()
        self._link.write(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())

    def _close_if_done(self) -> None:
        if self._departing and not self._streams:
            self._flush()
            self._link.close(linger=True)

    def _flush_soon(self) -> None:
        # What comes in at once is answered at once: whoever sees a PING answered knows that all before it was seen.
        if not self._receiving:
            self._flush()

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._link.write(data)

    # --- Events of h2 ---

    def _request_received(self, event: RequestReceived) -> None:
        headers: list[tuple[bytes, bytes]] = [(bytes(name), bytes(value)) for name, value in event.headers]
        pseudo = {name: value for name, value in headers if name.startswith(b":")}
        method = pseudo[b":method"]
        target = pseudo.get(b":path", pseudo.get(b":authority", b""))
        request = RequestEntry(method, target, headers, event.stream_id)
        self._link.ledger.requested(self._link.entry, request)
        if event.stream_id > self._last:
            return  # RFC 9113 6.8: whoever sent the GOAWAY may ignore it
        if reset := self._reset.get(event.stream_id):
            if reset.remote_reset:
                self._link.ledger.request_reset(request, reset.error_code)
            return
        if len(self._streams) >= self._limit:
            self._h2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._served += 1
        self._highest = event.stream_id
        stream = _Stream(self, self._link, self._h2, event.stream_id, request, headers)
        self._streams[event.stream_id] = stream
        work = stream.cycle.run(self._app, self._scope(event.stream_id, pseudo, headers))
        stream.task = self._link.spawn(work)

    def _scope(self, number: int, pseudo: dict[bytes, bytes], headers: list[tuple[bytes, bytes]]) -> Scope:
        extensions = {
            **self._link.scope["extensions"],
            "tlsagent.request": {"number": self._served},
            "tlsagent.stream": {"id": number},
        }
        if pseudo[b":method"] == b"CONNECT":
            extensions["tlsagent.upgrade"] = {"protocol": pseudo.get(b":protocol", b"").decode("latin-1") or None}
        path, _, query = pseudo.get(b":path", pseudo.get(b":authority", b"")).partition(b"?")
        fields = [(name, value) for name, value in headers if not name.startswith(b":")]
        if b":authority" in pseudo:  # ASGI: as a Host field, and first
            fields = [(b"host", pseudo[b":authority"]), *(field for field in fields if field[0] != b"host")]
        return {
            **self._link.scope,
            "http_version": "2",
            "method": pseudo[b":method"].decode("ascii"),
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "headers": fields,
            "extensions": extensions,
        }

    def _data_received(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        else:
            stream.body_received(bytes(event.data), event.flow_controlled_length)

    def _trailers_received(self, event: TrailersReceived) -> None:
        if stream := self._streams.get(event.stream_id):
            stream.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]

    def _stream_ended(self, event: StreamEnded) -> None:
        if stream := self._streams.get(event.stream_id):
            stream.request_ended()

    def _stream_reset(self, event: StreamReset) -> None:
        stream = self._streams.pop(event.stream_id, None)
        if stream is None:
            return
        if event.remote_reset:
            self._link.ledger.request_reset(stream.request, event.error_code)
        stream.abandon()
        self._close_if_done()

    def _windows_changed(self) -> None:
        # A frame for each in turn: the connection's window is for all.
        waiting = [stream for stream in self._streams.values() if stream.waits and stream.number not in self._reset]
        while waiting:
            waiting = [stream for stream in waiting if self._may_go_on(stream)]

    @staticmethod
    def _may_go_on(stream: _Stream) -> bool:
        try:
            return stream.send_some()
        except StreamClosedError:  # a reset came in the same bytes, and is told next
            return False

    def _ping_answered(self, event: PingAckReceived) -> None:
        if event.ping_data == _FAREWELL and not self._departing:
            self.depart()

    def _client_goes_away(self, event: ConnectionTerminated) -> None:
        self._link.ledger.went_away(self._link.entry, event.error_code or 0)
        if event.error_code or not self._streams:
            self.peer_left()
            self._link.close(linger=True)
            return
        # h2 takes a GOAWAY for the end of everything. It only tells that no stream of ours would be served.
        self._h2.state_machine.state = ConnectionState.SERVER_OPEN
        self._departing = True

    # --- From the streams ---

    def send(self, stream: _Stream) -> None:
        """Send what the windows admit of a stream."""
        while stream.send_some():
            pass
        self._flush_soon()

    def give_credit(self, stream: _Stream, size: int) -> None:
        """Let the peer send as much again."""
        self._h2.acknowledge_received_data(size, stream.number)
        self._flush_soon()

    def reset(self, stream: _Stream, code: int) -> None:
        """Send RST_STREAM, on a stream that has not ended on both sides."""
        if self._streams.pop(stream.number, None) is not None:
            self._h2.reset_stream(stream.number, code)
            self._flush_soon()
            self._close_if_done()

    def ended(self, stream: _Stream) -> None:
        """Both halves of a stream are done."""
        del self._streams[stream.number]
        self._close_if_done()


class _Stream:
    """One stream, and the `Responder` of its cycle."""

    __slots__ = (
        "_buffer",
        "_drained",
        "_end",
        "_ended",
        "_expects",
        "_floor",
        "_h2",
        "_head",
        "_head_only",
        "_held",
        "_link",
        "_over",
        "_received",
        "_started",
        "_switched",
        "_tunnel",
        "_unread",
        "cycle",
        "number",
        "request",
        "task",
        "trailers",
    )

    def __init__(
        self, floor: H2Floor, link: Link, h2: H2Connection, number: int, request: RequestEntry, headers: Headers
    ) -> None:
        self._floor = floor
        self._link = link
        self._h2 = h2
        self.number = number
        self.request = request
        self.trailers: list[tuple[bytes, bytes]] = []  # of the request
        self.cycle = Cycle(self)
        self.task: asyncio.Task[None] | None = None
        self._tunnel = request.method == b"CONNECT"  # or would be one
        self._received = False  # the peer's half has ended
        self._held = False
        self._unread = 0  # bytes of credit that the peer has not got back
        self._expects = (b"expect", b"100-continue") in headers
        self._started = False
        self._switched = False  # the stream is a tunnel
        self._head: list[tuple[bytes, bytes]] | None = None  # waits for the first piece of the body
        self._head_only = request.method == b"HEAD"
        self._buffer = bytearray()  # waits for the peer's windows
        self._end: list[tuple[bytes, bytes]] | None = None  # trailers, or [], once the application has no more
        self._ended = False  # our half
        self._over = False
        self._drained: asyncio.Future[None] | None = None
        if self._tunnel:
            self._link.ledger.request_ended(request, ())
            self.cycle.body_ended(())

    # --- From the floor ---

    def body_received(self, data: bytes, size: int) -> None:
        if not self._tunnel:
            self._link.ledger.body_received(self.request, data)
        self._unread += size
        self.cycle.body_received(data)
        if not self._held:
            self._give_credit()

    def request_ended(self) -> None:
        self._received = True
        if not self._tunnel:
            self._link.ledger.request_ended(self.request, self.trailers)
            self.cycle.body_ended(self.trailers)
        elif self._switched:
            self.cycle.body_ended(())
        self._end_if_done()

    def abandon(self) -> None:
        """
        The stream is gone. An application that waits for the body is told, any other is cancelled.
        """
        self._over = True
        listens = self.cycle.listens
        self.cycle.peer_left()
        self._give_credit()
        self._wake()
        if self.task is not None and not listens:
            self.task.cancel()

    @property
    def waits(self) -> bool:
        """Whether something could not be sent so far."""
        return bool(self._buffer)

    def send_some(self) -> bool:
        """Send one frame; False if there is nothing more to send for now."""
        if self._head is not None:
            bare = self._end == [] and not self._buffer
            self._send_fields(self._head, end_stream=bare)
            self._head = None
            if bare:
                self._sent_all()
        elif self._buffer:
            window = min(self._h2.local_flow_control_window(self.number), self._h2.max_outbound_frame_size)
            if window <= 0:
                return False
            piece = bytes(self._buffer[:window])
            del self._buffer[:window]
            last = self._end == [] and not self._buffer
            self._h2.send_data(self.number, piece, end_stream=last)
            if last:
                self._sent_all()
        elif self._end and not self._ended:
            self._send_fields(self._end, end_stream=True)
            self._sent_all()
        elif self._end is not None and not self._ended:
            self._h2.end_stream(self.number)
            self._sent_all()
        if not self._buffer:
            self._wake()
        return not self._ended and bool(self._buffer or self._end is not None)

    def _send_fields(self, fields: list[tuple[bytes, bytes]], *, end_stream: bool = False) -> None:
        try:
            self._h2.send_headers(self.number, fields, end_stream=end_stream)
        except ProtocolError:
            # What the application sends is no field section. The compression state may have been changed by half of
            # it, so that nothing after it could be read.
            self._link.abort()
            raise

    def _sent_all(self) -> None:
        self._ended = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._ended and self._received:
            self._floor.ended(self)

    def _give_credit(self) -> None:
        size, self._unread = self._unread, 0
        if size:
            self._floor.give_credit(self, size)

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # --- From above: the Responder of the cycle ---

    def start_response(self, status: int, headers: Headers) -> None:
        if status < 200:
            raise RuntimeError(f"a response of HTTP/2 cannot start with {status}")
        fields = [(bytes(name).lower(), bytes(value)) for name, value in headers]
        self._started = True
        self._head = [(b":status", b"%d" % status), *fields]
        self._head_only = self._head_only or status in _BODYLESS
        if self._tunnel and status < 300:
            self._floor.send(self)
            self._switched = True
            self.cycle.switched()
            if self._received:
                self.cycle.body_ended(())
        elif (b"connection", b"close") in fields:
            self._floor.depart()

    def send_body(self, data: bytes, *, more: bool) -> None:
        if not self._head_only:
            self._buffer += data
        if not more:
            self._end = []
        self._floor.send(self)

    def send_trailers(self, headers: Headers) -> None:
        self._end = [] if self._head_only else [(bytes(name).lower(), bytes(value)) for name, value in headers]
        self._floor.send(self)

    def want_body(self) -> None:
        if self._expects and not self._started:
            self._expects = False
            self._send_fields([(b":status", b"100")])
            self._floor.send(self)

    def hold_body(self, held: bool) -> None:
        self._held = held
        if not held:
            self._give_credit()

    def command(self, message: Message) -> bool:
        kind = message["type"]
        if kind == "tlsagent.reset":
            self._over = True
            self.cycle.peer_left()
            self._give_credit()
            self._floor.reset(self, message["code"])
        elif kind == "tlsagent.goaway":
            self._floor.depart(message.get("last_stream_id"), message.get("code", 0))
        else:
            return False
        return True

    def fail(self) -> None:
        if self._started:
            self.command({"type": "tlsagent.reset", "code": ErrorCodes.INTERNAL_ERROR})
        else:
            self.start_response(500, [(b"content-length", b"0")])
            self.send_body(b"", more=False)

    async def drain(self) -> None:
        while self._buffer and not self._over:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        await self._link.drain()

    def finished(self) -> None:
        """Nothing waits for it: the streams are independent of each other."""


_HANDLERS: Final[dict[type[Event], Callable[[H2Floor, Any], None]]] = {
    RequestReceived: H2Floor._request_received,
    DataReceived: H2Floor._data_received,
    TrailersReceived: H2Floor._trailers_received,
    StreamEnded: H2Floor._stream_ended,
    StreamReset: H2Floor._stream_reset,
    PingAckReceived: H2Floor._ping_answered,
    ConnectionTerminated: H2Floor._client_goes_away,
}
