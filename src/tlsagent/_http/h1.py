"""
HTTP/1.1 upon h11: reads responses (RFC 9112) and decides whether the connection may serve another request.

h11 judges heads, chunks and trailers. What it need not see does not pass through it: requests are written by
`RequestWriter`, and a body framed by its length or by the end of the connection is counted here.

Theory of operation
-------------------
    IDLE -start-> HEAD -final head-> LENGTH | CHUNKED | UNTIL_EOF -> DONE -next_cycle-> IDLE
                  ^  | 1xx           (no body: straight to DONE)
                  +--+               any state but DONE: -error-> BROKEN, which nothing leaves

- A head is collected here up to its empty line and handed to h11 whole, so that the cap on its size is exact and no
  byte of a body lies in h11's buffer.
- Every head gets an h11 connection of its own, which then reads the chunks if there are any. A new one costs 0.7 us;
  the full cycle of one h11 connection (request, end, head, data, end, `start_next_cycle`) costs 30 us per exchange
  where this costs 13. h11 lets a server respond from its state IDLE, hence it is told of a request only where it
  insists on one: before a 1xx.
- h11 takes a bare LF for the end of a line of the head, and any HTTP/d.d for a version. We do not: parsers that differ
  on where a head ends is how responses get smuggled.
- Bytes beyond a response answer no request of ours. They are dropped and the connection is never used again.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Literal

import h11

from tlsagent._http.messages import Headers, RequestWriter, ResponseHead, idle_hint, tokens
from tlsagent.errors import ConnectionLost, RemoteProtocolError, quoted

if TYPE_CHECKING:
    from tlsagent._http.messages import CallerFields, Field, HTTPSink, RequestHead
    from tlsagent._options import Http1Options

_VERSIONS: Final[dict[bytes, Literal["HTTP/1.1", "HTTP/1.0"]]] = {b"1.1": "HTTP/1.1", b"1.0": "HTTP/1.0"}
_ANY_REQUEST: Final = h11.Request(method="GET", target="/", headers=[("Host", "host")])
_BODILESS: Final = frozenset({204, 304})
_SHOWN: Final = 256  # more than `quoted` shows, so that it can tell that there is more
_CHUNK_ALLOWANCE: Final = 16
"""Bytes of framing that each chunk may cost without counting against `max_head_size`."""


class _Reading(enum.Enum):
    IDLE = "no response is due"
    HEAD = "in the head"
    LENGTH = "in a body of known length"
    CHUNKED = "in a chunked body"
    UNTIL_EOF = "in a body that ends with the connection"
    DONE = "the response is complete"
    BROKEN = "the peer broke the protocol or went away"


class H11Engine:
    """
    HTTP/1.1 of one connection; see `HTTP1Engine` for the verbs.

    Attributes:
        has_leftover: Whether the peer sent bytes beyond a response.
        idle_hint: Seconds that the last response allows the connection to be idle (`Keep-Alive: timeout`), or None.
    """

    __slots__ = (
        "_buffer",
        "_got",
        "_informational",
        "_keep_alive",
        "_limits",
        "_overhead",
        "_parser",
        "_reading",
        "_remaining",
        "_to_head",
        "_writer",
        "has_leftover",
        "idle_hint",
    )

    name = "h11"

    def __init__(self, limits: Http1Options) -> None:
        self._limits = limits
        self._writer = RequestWriter()
        self._reading = _Reading.IDLE
        self._parser: h11.Connection | None = None
        self._buffer = bytearray()
        self._keep_alive = True
        self._to_head = False
        self._informational = 0
        self._remaining = 0
        self._got = 0
        self._overhead = 0
        self.has_leftover = False
        self.idle_hint: int | None = None

    # --- Requests -----------------------------------------------------------------------------------------------------

    @property
    def request_complete(self) -> bool:
        """Whether the request has been written to its end."""
        return self._writer.complete

    @property
    def response_complete(self) -> bool:
        """Whether the response has come to its end."""
        return self._reading is _Reading.DONE

    def start(self, head: RequestHead) -> bytes:
        """Return the bytes of a request's head."""
        assert self._reading is _Reading.IDLE, self._reading
        assert not self.has_leftover
        self._reading = _Reading.HEAD
        self._keep_alive = head.keep_alive
        self._to_head = head.method == b"HEAD"
        self._informational = 0
        return self._writer.start(head)

    def send_data(self, data: bytes | memoryview) -> bytes | memoryview:
        """Return a piece of the body, framed."""
        return self._writer.send_data(data)

    def end_request(self, trailers: CallerFields = ()) -> bytes:
        """Return what ends the request."""
        return self._writer.end(trailers)

    def reusable(self) -> bool:
        """Return whether a next request may follow."""
        return self._reading is _Reading.DONE and self._writer.complete and self._keep_alive and not self.has_leftover

    def next_cycle(self) -> None:
        """Make ready for the next request."""
        assert self.reusable()
        self._reading = _Reading.IDLE

    # --- Responses ----------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes | memoryview, sink: HTTPSink) -> None:
        """Take bytes from the peer and tell the sink; `data` is not kept."""
        while data:
            reading = self._reading
            if reading is _Reading.HEAD:
                data = self._read_head(data, sink)
            elif reading is _Reading.LENGTH:
                data = self._read_length(data, sink)
            elif reading is _Reading.CHUNKED:
                data = self._read_chunks(data, sink)
            elif reading is _Reading.UNTIL_EOF:
                self._got += len(data)
                sink.body_received(bytes(data))
                return
            else:
                self.has_leftover = True
                shown = quoted(bytes(data[:_SHOWN]))
                raise RemoteProtocolError(f"unsolicited bytes: the server sent {shown} when nothing was due")

    def receive_eof(self, clean: bool, sink: HTTPSink) -> None:
        """Take the end of the peer's bytes."""
        reading = self._reading
        self._keep_alive = False
        if reading is _Reading.UNTIL_EOF and clean:
            self._end(sink)
        elif reading not in (_Reading.IDLE, _Reading.DONE, _Reading.BROKEN):
            lost = ConnectionLost(f"the server closed the connection {self._whereabouts()}")
            self._reading = _Reading.BROKEN
            raise lost

    def _whereabouts(self) -> str:
        if self._reading is _Reading.LENGTH:
            return f"within the body: {self._got} bytes of {self._got + self._remaining} came"
        if self._reading is _Reading.CHUNKED:
            return f"within the body: {self._got} bytes came, more chunks were due"
        if self._reading is _Reading.UNTIL_EOF:
            return f"without close_notify: the body may be cut off, {self._got} bytes came"
        if self._buffer:
            return f"within the response head: {len(self._buffer)} bytes came"
        return "before it sent a response"

    # --- Heads --------------------------------------------------------------------------------------------------------

    def _read_head(self, data: bytes | memoryview, sink: HTTPSink) -> bytes:
        buffer = self._buffer
        before = len(buffer)
        if before:
            buffer += data
            end = buffer.find(b"\r\n\r\n", max(0, before - 3)) + 4
            data = bytes(buffer) if end > 3 else b""
        else:
            data = bytes(data)
            end = data.find(b"\r\n\r\n") + 4
        if end <= 3:
            buffer += data
            self._check_unfinished_head(before)
            return b""
        buffer.clear()
        self._take_head(data[:end], sink)
        rest = data[end:]
        if self._reading is not _Reading.DONE:
            return rest
        self._end(sink, rest=rest)
        return b""

    def _check_unfinished_head(self, checked: int) -> None:
        """Refuse what cannot become a head any more; `checked` bytes of it were looked at before."""
        buffer = self._buffer
        if len(buffer) > self._limits.max_head_size:
            raise self._head_too_large()
        if not (buffer.startswith(b"HTTP/1.") or b"HTTP/1.".startswith(buffer[:7])):
            raise self._broken(f"the server does not speak HTTP/1.1: it sent {quoted(bytes(buffer[:_SHOWN]))}")
        if buffer.count(b"\n", checked) != buffer.count(b"\r\n", max(0, checked - 1)):
            raise self._bare_line_feed()

    def _take_head(self, head: bytes, sink: HTTPSink) -> None:
        if len(head) > self._limits.max_head_size:
            raise self._head_too_large()
        if head.count(b"\n") != head.count(b"\r\n"):
            raise self._bare_line_feed()
        event = self._parsed(head)
        version = _VERSIONS.get(event.http_version)
        if version is None:
            raise self._broken(f"the server answered in HTTP/{event.http_version.decode()}, not HTTP/1.1")
        raw = event.headers.raw_items()
        response = ResponseHead(event.status_code, event.reason.decode("latin-1"), version, Headers(raw))
        if event.status_code < 200:
            self._take_informational(response, sink)
            return
        self._reading = self._framing(response, raw)
        self._got = 0
        sink.response_received(response)

    def _parsed(self, head: bytes) -> h11.Response | h11.InformationalResponse:
        parser = self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._limits.max_head_size)
        try:
            if head.startswith(b"1", 9):
                parser.send(_ANY_REQUEST)
            parser.receive_data(head)
            event = parser.next_event()
        except h11.RemoteProtocolError as exc:
            if head.startswith(b"101", 9):
                raise self._broken("the server switched protocols (101), which nobody asked for") from exc
            raise self._broken(f"the head of the response is malformed: {quoted(str(exc))}") from exc
        assert isinstance(event, (h11.Response, h11.InformationalResponse))
        return event

    def _take_informational(self, response: ResponseHead, sink: HTTPSink) -> None:
        self._informational += 1
        if self._informational > self._limits.max_informational:
            allowed = self._limits.max_informational
            raise self._broken(f"the server sent more than {allowed} informational responses (max_informational)")
        sink.informational_received(response)

    def _framing(self, response: ResponseHead, raw: list[Field]) -> _Reading:
        """Return how the body is framed (RFC 9112, 6.3), and note whether the connection persists (9.3)."""
        length = None
        chunked = False
        persistent = self._keep_alive and response.http_version == "HTTP/1.1"
        self.idle_hint = None
        for name, value in raw:
            # h11 has judged the values: one length of digits only, no coding but "chunked".
            match name.lower():
                case b"content-length":
                    length = int(value)
                case b"transfer-encoding":
                    chunked = True
                case b"keep-alive":
                    self.idle_hint = idle_hint(value)
                case b"connection":
                    persistent = persistent and b"close" not in tokens(value)
        self._keep_alive = persistent
        if chunked and (length is not None or response.http_version == "HTTP/1.0"):
            with_what = "together with Content-Length" if length is not None else "in HTTP/1.0"
            raise self._broken(f"the server sent Transfer-Encoding {with_what}: the length of the body is ambiguous")
        if self._to_head or response.status in _BODILESS or length == 0:
            return _Reading.DONE
        if chunked:
            self._overhead = 0
            return _Reading.CHUNKED
        if length is None:
            return _Reading.UNTIL_EOF
        self._remaining = length
        return _Reading.LENGTH

    # --- Bodies -------------------------------------------------------------------------------------------------------

    def _read_length(self, data: bytes | memoryview, sink: HTTPSink) -> bytes:
        remaining = self._remaining
        body = data if len(data) <= remaining else data[:remaining]
        self._remaining = remaining - len(body)
        self._got += len(body)
        sink.body_received(bytes(body))
        if not self._remaining:
            self._end(sink, rest=data[remaining:])
        return b""

    def _read_chunks(self, data: bytes | memoryview, sink: HTTPSink) -> bytes:
        parser = self._parser
        assert parser is not None
        pieces: list[bytes] = []
        try:
            parser.receive_data(data)  # type: ignore[arg-type]  # any buffer will do: it is appended to a bytearray
            self._overhead += len(data)
            event = parser.next_event()
            while isinstance(event, h11.Data):
                pieces.append(event.data)
                self._overhead -= len(event.data) + (_CHUNK_ALLOWANCE if event.chunk_start else 0)
                event = parser.next_event()
        except h11.RemoteProtocolError as exc:
            raise self._broken(f"the chunked body is malformed: {quoted(str(exc))}") from exc
        finally:
            # Many small chunks make one piece. What came before an error was good, and is handed up in any case: what
            # the caller sees must not depend on how the bytes were cut.
            if pieces:
                body = b"".join(pieces)
                self._got += len(body)
                sink.body_received(body)
        ended = isinstance(event, h11.EndOfMessage)
        rest = parser.trailing_data[0] if ended else b""
        if self._overhead - len(rest) > self._limits.max_head_size:
            raise self._broken("the framing of the chunked body, trailers included, is too large (max_head_size)")
        if isinstance(event, h11.EndOfMessage):
            trailers = event.headers.raw_items()
            self._end(sink, Headers(trailers) if trailers else None, rest=rest)
        return b""

    def _end(self, sink: HTTPSink, trailers: Headers | None = None, *, rest: bytes | memoryview = b"") -> None:
        self._reading = _Reading.DONE
        self._parser = None
        if rest:
            self.has_leftover = True
        sink.response_ended(trailers)

    # --- Faults -------------------------------------------------------------------------------------------------------

    def _broken(self, message: str) -> RemoteProtocolError:
        self._reading = _Reading.BROKEN
        self._parser = None
        return RemoteProtocolError(message)

    def _head_too_large(self) -> RemoteProtocolError:
        error = self._broken(
            f"the head of the response is longer than {self._limits.max_head_size} bytes (max_head_size)"
        )
        error.code = "HPE_HEADER_OVERFLOW"
        return error

    def _bare_line_feed(self) -> RemoteProtocolError:
        return self._broken("the head of the response has a line that ends in a bare LF")
