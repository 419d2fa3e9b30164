"""
HTTP/2 of a simulated peer: h2 in the server's role, sans I/O.

It decides which streams are served and what the client's windows let out. What a request is answered with is for the
`Peer`; what goes wrong on purpose, and when, is for the test: resets, GOAWAY, SETTINGS and PING at any moment.

Where h2 is stricter or shorter than a server may be, this room steps in, as the embedded server's does: it starts from
the settings that hold before the client has seen ours, refuses streams beyond the limit one by one, and ends no stream
for a GOAWAY that is above it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame, SettingsFrame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tlsagent.testing._peer import Fields, Peer, PeerRequest, Reply
    from tlsagent.testing._settings import ServerSettings

LAST_POSSIBLE: Final = 2**31 - 1
_DEFAULT_WINDOW: Final = 65_535


class PeerStreams:
    """
    The streams of one peer.

    Attributes:
        open: Requests whose stream has not ended, by its number.
        pings, pongs: PINGs of the client so far, and its answers to ours.
        client_left: Code of the client's GOAWAY.
    """

    __slots__ = ("_h2", "_highest", "_last", "_limit", "_outgoing", "_peer", "client_left", "open", "pings", "pongs")

    def __init__(self, peer: Peer, settings: ServerSettings) -> None:
        self._peer = peer
        self._limit = settings.max_concurrent_streams
        self._highest = 0
        self._last = LAST_POSSIBLE  # of a GOAWAY that was sent: what is above is ignored
        self._outgoing: dict[int, tuple[bytes, Fields | None]] = {}  # waits for windows; trailers, or None: more comes
        self.open: dict[int, PeerRequest] = {}
        self.pings = 0
        self.pongs = 0
        self.client_left: int | None = None
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self._greet(settings)

    def _greet(self, settings: ServerSettings) -> None:
        told = {SettingCodes.ENABLE_CONNECT_PROTOCOL: int(settings.enable_connect_protocol)}
        later: dict[SettingCodes | int, int] = {
            SettingCodes.INITIAL_WINDOW_SIZE: settings.initial_window_size,
            SettingCodes.MAX_CONCURRENT_STREAMS: self._limit,
        }
        self._h2.local_settings = Settings(client=False, initial_values=told)
        self._h2.initiate_connection()
        self._h2.local_settings.update(later)  # in force once the client has acknowledged them
        self._h2.clear_outbound_data_buffer()
        values = {int(code): value for code, value in (*told.items(), *later.items())}
        self._peer.send(SettingsFrame(0, settings=values).serialize())
        self._h2.increment_flow_control_window(LAST_POSSIBLE - _DEFAULT_WINDOW)
        self._flush()

    # --- From below ---------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> None:
        """
        Take plaintext.

        Raises:
            h2.exceptions.ProtocolError: The client broke the protocol; GOAWAY was sent.
        """
        try:
            events = self._h2.receive_data(data)
            if self._h2.state_machine.state is ConnectionState.CLOSED:
                # h2 takes a GOAWAY for the end of everything. It only tells that no stream of ours would be served.
                self._h2.state_machine.state = ConnectionState.SERVER_OPEN
            for event in events:
                if handle := _HANDLERS.get(type(event)):
                    handle(self, event, now)
            self._give_credit()
        finally:
            self._flush()
        self._leave_if_done()

    def _give_credit(self) -> None:
        # h2 gives none to a stream that had used more than the window before that was made smaller.
        full = self._h2.local_settings.initial_window_size
        for number, request in self.open.items():
            if self._is_open(number) and not request.complete:
                used = full - self._h2.remote_flow_control_window(number)
                if used > 0:
                    self._h2.increment_flow_control_window(used, number)

    def _request_received(self, event: Any, now: float) -> None:
        number: int = event.stream_id
        if number > self._last:
            return  # RFC 9113, 6.8: who sent the GOAWAY may ignore it
        if len(self.open) >= self._limit:
            self._reset(number, ErrorCodes.REFUSED_STREAM)
            return
        self._highest = number
        fields: list[tuple[str, str]] = [(name, value) for name, value in event.headers]
        pseudo = {name: value for name, value in fields if name.startswith(":")}
        target = pseudo.get(":path", pseudo.get(":authority", ""))
        request = self._peer.begin_request(pseudo[":method"], target, fields, number)
        self.open[number] = request
        self._peer.take_head(request, now)

    def _data_received(self, event: Any, now: float) -> None:  # noqa: ARG002 - the signature of a handler
        if request := self.open.get(event.stream_id):
            request.body += event.data

    def _trailers_received(self, event: Any, now: float) -> None:  # noqa: ARG002
        if request := self.open.get(event.stream_id):
            request.trailers = tuple(event.headers)

    def _stream_ended(self, event: Any, now: float) -> None:
        if request := self.open.get(event.stream_id):
            request.complete = True
            self._forget_if_over(request)
            self._peer.take_end(request, now)

    def _stream_reset(self, event: Any, now: float) -> None:  # noqa: ARG002
        if request := self.open.pop(event.stream_id, None):
            request.over = True
            request.reset = event.error_code
            self._outgoing.pop(event.stream_id, None)

    def _windows_changed(self, event: Any, now: float) -> None:  # noqa: ARG002
        for number in list(self._outgoing):
            self._push(number)

    def _ping_received(self, event: Any, now: float) -> None:  # noqa: ARG002
        self.pings += 1

    def _ping_answered(self, event: Any, now: float) -> None:  # noqa: ARG002
        self.pongs += 1

    def _client_leaves(self, event: Any, now: float) -> None:  # noqa: ARG002
        self.client_left = int(event.error_code or 0)

    # --- What a test may ask for --------------------------------------------------------------------------------------

    def headers(self, request: PeerRequest, fields: Iterable[tuple[str, str]], *, end: bool = False) -> None:
        """Send a field section; nothing once the stream is over."""
        number = request.stream_id
        if self._is_open(number):
            self._h2.send_headers(number, [(name.lower(), value) for name, value in fields], end_stream=end)
            if end:
                self._answered(request)
            self._flush()

    def data(self, request: PeerRequest, data: bytes, *, end: bool = False, trailers: Fields = ()) -> None:
        """Send bytes of a body as the client's windows admit them; nothing once the stream is over."""
        number = request.stream_id
        if self._is_open(number):
            before = self._outgoing.get(number, (b"", None))[0]
            self._outgoing[number] = (before + data, trailers if end else None)
            request.answered = end
            self._push(number)
            self._flush()

    def respond(self, request: PeerRequest, reply: Reply) -> None:
        """Send a whole response. After a 2xx to CONNECT the stream stays open, as a tunnel."""
        for code in reply.interim:
            self.headers(request, [(":status", str(code))])
        fields = [(":status", str(reply.status)), *reply.headers]
        tunnel = request.method == "CONNECT" and 200 <= reply.status < 300
        if not (tunnel or reply.chunked or reply.trailers or reply.status in (204, 304)):
            fields.append(("content-length", str(len(reply.body))))
        body = b"" if request.method == "HEAD" or reply.status in (204, 304) else reply.body
        bare = not (tunnel or body or reply.trailers)
        self.headers(request, fields, end=bare)
        if not bare:
            self.data(request, body, end=not tunnel, trailers=reply.trailers)
        request.answered = True
        if reply.close:
            self.goaway()

    def reset(self, request: PeerRequest, code: int = ErrorCodes.INTERNAL_ERROR) -> None:
        """Send RST_STREAM; REFUSED_STREAM says that the request was not processed."""
        if self.open.pop(request.stream_id, None) is not None:
            request.over = True
            request.refused = code == ErrorCodes.REFUSED_STREAM
            self._outgoing.pop(request.stream_id, None)
            self._reset(request.stream_id, code)
            self._flush()
            self._leave_if_done()

    def goaway(self, last_stream_id: int | None = None, code: int = 0) -> None:
        """
        Send GOAWAY and drop the streams above its last one, which is that of the last request if it is not given; end
        the connection once those up to there have ended. 2**31-1 only announces it (RFC 9113, 6.8).
        """
        last = self._highest if last_stream_id is None else last_stream_id
        self._last = min(last, self._last)
        self._peer.send(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())
        for number in [number for number in self.open if number > last]:
            request = self.open.pop(number)
            request.over = request.refused = True
            self._outgoing.pop(number, None)
        self._leave_if_done()

    def settings(self, values: Mapping[int, int]) -> None:
        """Send SETTINGS; they are in force once the client has acknowledged them."""
        self._h2.update_settings({SettingCodes(code): value for code, value in values.items()})
        self._limit = values.get(SettingCodes.MAX_CONCURRENT_STREAMS, self._limit)
        self._flush()

    def ping(self, payload: bytes = b"are you?") -> None:
        """Send a PING of eight bytes."""
        self._h2.ping(payload)
        self._flush()

    # --- Streams ------------------------------------------------------------------------------------------------------

    def _is_open(self, number: int) -> bool:
        # h2 is ahead of us where one read brings several frames: the client may have reset it already.
        return number in self.open and not self._is_closed(number)

    def _reset(self, number: int, code: int) -> None:
        if not self._is_closed(number):
            self._h2.reset_stream(number, code)

    def _is_closed(self, number: int) -> bool:
        stream = self._h2.streams.get(number)
        return stream is None or stream.closed

    def _push(self, number: int) -> None:
        """Send what the client's windows let out of what waits on a stream."""
        data, trailers = self._outgoing.pop(number)
        if not self._is_open(number):
            return
        bare = not data and trailers == ()
        while data or bare:
            room = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size)
            if room <= 0 and not bare:
                self._outgoing[number] = (data, trailers)
                return
            piece, data = data[:room], data[room:]
            bare = False
            self._h2.send_data(number, piece, end_stream=not data and trailers == ())
        if trailers is None:
            return
        if trailers:
            self._h2.send_headers(number, trailers, end_stream=True)
        self._answered(self.open[number])

    def _answered(self, request: PeerRequest) -> None:
        request.answered = True
        self._forget_if_over(request)

    def _forget_if_over(self, request: PeerRequest) -> None:
        if request.answered and request.complete and self._is_closed(request.stream_id):
            self.open.pop(request.stream_id, None)
            self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self._last < LAST_POSSIBLE and not self.open:
            self._flush()
            self._peer.close()

    def _flush(self) -> None:
        self._peer.send(self._h2.data_to_send())


_HANDLERS: Final[dict[type[Event], Callable[[PeerStreams, Any, float], None]]] = {
    RequestReceived: PeerStreams._request_received,
    DataReceived: PeerStreams._data_received,
    TrailersReceived: PeerStreams._trailers_received,
    StreamEnded: PeerStreams._stream_ended,
    StreamReset: PeerStreams._stream_reset,
    WindowUpdated: PeerStreams._windows_changed,
    RemoteSettingsChanged: PeerStreams._windows_changed,
    PingReceived: PeerStreams._ping_received,
    PingAckReceived: PeerStreams._ping_answered,
    ConnectionTerminated: PeerStreams._client_leaves,
}
