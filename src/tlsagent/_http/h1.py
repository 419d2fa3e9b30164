"""
HTTP/1.1 of one connection: reads responses (RFC 9112) and decides whether it may serve another request.

What a head or a chunk says is judged by a `ResponseParser`: h11 (`h1_h11`) or llhttp (`h1_httptools`). All else is
here, once for both: where a head ends and how long it may be, how its body is framed, the counting of bodies, the
limits, and the verdict on reuse. What a parser need not see does not pass through it: requests are written by
`RequestWriter`, and a body framed by its length or by the end of the connection is counted here.

Theory of operation
-------------------
    IDLE -start-> HEAD -final head-> LENGTH | CHUNKED | UNTIL_EOF -> DONE -next_cycle-> IDLE
                  ^  | 1xx           (no body: straight to DONE)
                  +--+ -101, or 2xx to CONNECT-> SWITCHED, which nothing leaves
                                     any state but DONE: -error-> BROKEN, which nothing leaves

- A head is collected here up to its empty line and handed to the parser whole, so that the cap on its size is exact and
  no byte of a body lies in the parser's buffer.
- Parsers differ, and where they do responses get smuggled. What both must refuse alike is refused here: a bare LF or
  CR in a head, any version but 1.0 and 1.1, any coding but "chunked" alone, a coding beside a length, either of them in
  trailers, lengths beyond 64 bits. Where one parser still takes what the other refuses, its `exact` is false, and the
  connection is not used again.
- Bytes beyond a response answer no request of ours. They are dropped and the connection is never used again.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast

from tlsagent._http.messages import Headers, RequestWriter, ResponseHead, idle_hint, protocol_names, tokens
from tlsagent.errors import ConnectionLost, RemoteProtocolError, quoted

if TYPE_CHECKING:
    from tlsagent._http.messages import Field, HTTPSink, RequestHead
    from tlsagent._limits import Http1Options

_VERSIONS: Final[dict[bytes, Literal["HTTP/1.1", "HTTP/1.0"]]] = {b"HTTP/1.1 ": "HTTP/1.1", b"HTTP/1.0 ": "HTTP/1.0"}
_BODILESS: Final = frozenset({204, 304})
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_STEERING_SIZES: Final = frozenset(map(len, _FRAMING | {b"keep-alive", b"connection"}))
_MAX_DIGITS: Final = 19
_SHOWN: Final = 256  # more than `quoted` shows, so that it can tell that there is more
_CHUNK_ALLOWANCE: Final = 16
"""Bytes of framing that each chunk may cost without counting against `max_head_size`."""


class ResponseParser(Protocol):
    """
    What judges the heads and the chunked bodies of one connection. It raises `RemoteProtocolError` for malformed ones.

    Attributes:
        name: The library, by the name under which it is chosen.
        exact: Whether every strict parser reads what this one has read since the last head in the same way.
        pieces: The body that the last `read_chunks` found, also if it raised.
        chunks: How many chunks began there.
        leftover: Whether bytes followed the end of the body.
        trailers: The fields after the last chunk, once the body has ended.
    """

    name: str
    exact: bool
    pieces: list[bytes]
    chunks: int
    leftover: bool
    trailers: list[Field]

    def read_head(self, head: bytes) -> tuple[int, str, list[Field]]:
        """Return status, reason and fields of a head: all of it, up to and including its empty line."""

    def read_chunks(self, data: bytes | memoryview) -> bool:
        """Take bytes of the chunked body that follows the last head; returns whether it has ended."""


class _Reading(enum.Enum):
    IDLE = "no response is due"
    HEAD = "in the head"
    LENGTH = "in a body of known length"
    CHUNKED = "in a chunked body"
    UNTIL_EOF = "in a body that ends with the connection"
    DONE = "the response is complete"
    SWITCHED = "another protocol is spoken"
    BROKEN = "the peer broke the protocol or went away"


# A global is found sooner than a member of an enum.
_IDLE: Final = _Reading.IDLE
_HEAD: Final = _Reading.HEAD
_LENGTH: Final = _Reading.LENGTH
_CHUNKED: Final = _Reading.CHUNKED
_UNTIL_EOF: Final = _Reading.UNTIL_EOF
_DONE: Final = _Reading.DONE
_BROKEN: Final = _Reading.BROKEN


class H1Engine:
    """
    HTTP/1.1 of one connection; see `HTTP1Engine` for the verbs.

    Attributes:
        name: The parser's.
        has_leftover: Whether the peer sent bytes beyond a response.
        switched: The bytes that followed the response that ended HTTP here; None while HTTP is spoken.
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
        "_request",
        "_writer",
        "end_request",
        "has_leftover",
        "idle_hint",
        "name",
        "send_data",
        "switched",
    )

    def __init__(self, limits: Http1Options, parser: ResponseParser) -> None:
        self.name = parser.name
        self._limits = limits
        self._parser = parser
        self._writer = writer = RequestWriter()
        self.send_data = writer.send_data
        self.end_request = writer.end
        self._reading = _IDLE
        self._buffer = bytearray()
        self._keep_alive = True
        self._request = cast("RequestHead", None)  # the one that is answered; set by `start`
        self._informational = 0
        self._remaining = 0
        self._got = 0
        self._overhead = 0
        self.has_leftover = False
        self.switched: bytes | None = None
        self.idle_hint: int | None = None

    # --- Requests -----------------------------------------------------------------------------------------------------

    @property
    def request_complete(self) -> bool:
        """Whether the request has been written to its end."""
        return self._writer.complete

    @property
    def response_complete(self) -> bool:
        """Whether the response has come to its end."""
        return self._reading is _DONE

    def start(self, head: RequestHead) -> bytes:
        """Return the bytes of a request's head."""
        assert self._reading is _IDLE, self._reading
        assert not self.has_leftover
        self._reading = _HEAD
        self._keep_alive = head.keep_alive
        self._request = head
        self._informational = 0
        return self._writer.start(head)

    def reusable(self) -> bool:
        """Return whether a next request may follow."""
        return self._reading is _DONE and self._writer.complete and self._keep_alive and not self.has_leftover

    def next_cycle(self) -> None:
        """Make ready for the next request."""
        assert self.reusable()
        self._reading = _IDLE

    # --- Responses ----------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes | memoryview, sink: HTTPSink) -> None:
        """Take bytes from the peer and tell the sink; `data` is not kept."""
        while data:
            reading = self._reading
            if reading is _HEAD:
                data = self._read_head(data, sink)
            elif reading is _LENGTH:
                data = self._read_length(data, sink)
            elif reading is _CHUNKED:
                data = self._read_chunks(data, sink)
            elif reading is _UNTIL_EOF:
                self._got += len(data)
                sink.body_received(bytes(data))
                return
            elif self.switched is not None:
                self.switched += data
                return
            else:
                self.has_leftover = True
                shown = quoted(bytes(data[:_SHOWN]))
                raise RemoteProtocolError(f"unsolicited bytes: the server sent {shown} when nothing was due")

    def receive_eof(self, clean: bool, sink: HTTPSink) -> None:
        """Take the end of the peer's bytes."""
        reading = self._reading
        self._keep_alive = False
        if reading is _UNTIL_EOF and clean:
            self._end(sink)
        elif reading not in (_IDLE, _DONE, _BROKEN):
            lost = ConnectionLost(f"the server closed the connection {self._whereabouts()}")
            self._reading = _BROKEN
            raise lost

    def _whereabouts(self) -> str:
        if self._reading is _LENGTH:
            return f"within the body: {self._got} bytes of {self._got + self._remaining} came"
        if self._reading is _CHUNKED:
            return f"within the body: {self._got} bytes came, more chunks were due"
        if self._reading is _UNTIL_EOF:
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
        if before:
            buffer.clear()
        self._take_head(data[:end], sink)
        rest = data[end:]
        if self._reading is not _DONE:
            return rest
        self._end(sink, leftover=bool(rest))
        return b""

    def _check_unfinished_head(self, checked: int) -> None:
        """Refuse what cannot become a head any more; `checked` bytes of it were looked at before."""
        buffer = self._buffer
        if len(buffer) > self._limits.max_head_size:
            raise self._head_too_large()
        if not (buffer.startswith(b"HTTP/1.") or b"HTTP/1.".startswith(buffer[:7])):
            raise self._broken(f"the server does not speak HTTP/1.1: it sent {quoted(bytes(buffer[:_SHOWN]))}")
        if buffer.count(b"\n", checked) != buffer.count(b"\r\n", max(0, checked - 1)):
            raise self._bare_line_end()

    def _take_head(self, head: bytes, sink: HTTPSink) -> None:
        if len(head) > self._limits.max_head_size:
            raise self._head_too_large()
        if not head.count(b"\n") == head.count(b"\r\n") == head.count(b"\r"):
            raise self._bare_line_end()
        version = _VERSIONS.get(head[:9])
        if version is None:
            raise self._broken(f"the server did not answer in HTTP/1.1: it sent {quoted(head[:_SHOWN])}")
        parser = self._parser
        try:
            status, reason, raw = parser.read_head(head)
        except RemoteProtocolError:
            self._reading = _BROKEN
            raise
        response = ResponseHead(status, reason, version, Headers(raw))
        if self._request.method == b"CONNECT" and 200 <= status < 300:
            self._switch(response, sink)  # whatever it announces (RFC 9110, 9.3.6)
            return
        length, chunked, closing = self._announced(response)
        if not parser.exact:
            self._keep_alive = False
        if status < 200:
            self._take_informational(response, sink)
            return
        if closing or version != "HTTP/1.1":
            self._keep_alive = False  # RFC 9112, 9.3
        # RFC 9112, 6.3
        if length == 0 or self._request.method == b"HEAD" or status in _BODILESS:
            self._reading = _DONE
        elif chunked:
            self._reading = _CHUNKED
        elif length is not None:
            self._reading = _LENGTH
            self._remaining = length
        else:
            self._reading = _UNTIL_EOF
        self._got = self._overhead = 0
        sink.response_received(response)

    def _accept_upgrade(self, response: ResponseHead, sink: HTTPSink) -> None:
        """Take a 101 if it was asked for (RFC 9110, 7.8 and 15.2.2)."""
        chosen = response.headers.get("upgrade", "")
        names = protocol_names(chosen.encode("latin-1"))
        if not (names and names <= self._request.upgrade):
            what = f"to {quoted(chosen)}" if chosen else "without saying to which"
            raise self._broken(f"the server switched protocols (101) {what}, which nobody asked for")
        if not self._writer.complete:
            raise self._broken("the server switched protocols (101) before it had the whole request")
        self._switch(response, sink)

    def _switch(self, response: ResponseHead, sink: HTTPSink) -> None:
        self._reading = _Reading.SWITCHED
        self.switched = b""
        sink.protocol_switched(response)

    def _take_informational(self, response: ResponseHead, sink: HTTPSink) -> None:
        status = response.status
        if status < 100:
            raise self._broken(f"the server sent the status {status:03}, which is none")
        if status == 101:
            self._accept_upgrade(response, sink)
            return
        self._informational += 1
        if self._informational > self._limits.max_informational:
            allowed = self._limits.max_informational
            raise self._broken(f"the server sent more than {allowed} informational responses (max_informational)")
        sink.informational_received(response)

    def _announced(self, response: ResponseHead) -> tuple[int | None, bool, bool]:
        """Return the length that a head announces, whether it announces chunks, and whether it takes its leave."""
        length = None
        chunked = closing = False
        self.idle_hint = None
        for name, value in response.headers.raw:
            if len(name) not in _STEERING_SIZES:
                continue
            match name.lower():
                case b"content-length":
                    # The parser has judged it: digits, and no second one that differs. 19 of them fit into 64 bits.
                    if len(value) > _MAX_DIGITS:
                        raise self._broken(f"Content-Length has more than {_MAX_DIGITS} digits: {quoted(value)}")
                    length = int(value)
                case b"transfer-encoding":
                    if chunked or value.lower() != b"chunked":
                        raise self._broken(f'the only Transfer-Encoding is "chunked", once, not {quoted(value)}')
                    chunked = True
                case b"keep-alive":
                    self.idle_hint = idle_hint(value)
                case b"connection":
                    # Nearly every server that says anything says this.
                    closing = closing or (value != b"keep-alive" and b"close" in tokens(value))
        if chunked and (length is not None or response.http_version == "HTTP/1.0"):
            with_what = "together with Content-Length" if length is not None else "in HTTP/1.0"
            raise self._broken(f"the server sent Transfer-Encoding {with_what}: the length of the body is ambiguous")
        return length, chunked, closing

    # --- Bodies -------------------------------------------------------------------------------------------------------

    def _read_length(self, data: bytes | memoryview, sink: HTTPSink) -> bytes:
        remaining = self._remaining
        size = len(data)
        if size < remaining:
            self._remaining = remaining - size
            self._got += size
            sink.body_received(bytes(data))
        else:
            self._remaining = 0
            self._got += remaining
            sink.body_received(bytes(data if size == remaining else data[:remaining]))
            self._end(sink, leftover=size > remaining)
        return b""

    def _read_chunks(self, data: bytes | memoryview, sink: HTTPSink) -> bytes:
        parser = self._parser
        try:
            ended = parser.read_chunks(data)
        except RemoteProtocolError:
            self._reading = _BROKEN
            raise
        finally:
            # Many small chunks make one piece. What came before an error was good, and is handed up in any case: what
            # the caller sees must not depend on how the bytes were cut.
            body = b"".join(parser.pieces)
            parser.pieces.clear()  # an idle connection must not hold on to them
            if body:
                self._got += len(body)
                sink.body_received(body)
        self._overhead += len(data) - len(body) - _CHUNK_ALLOWANCE * parser.chunks
        # How much of a piece belongs to what follows the end is not known; the connection is lost to it anyway.
        if self._overhead > self._limits.max_head_size and not parser.leftover:
            raise self._broken("the framing of the chunked body, trailers included, is too large (max_head_size)")
        if ended:
            if not parser.exact:
                self._keep_alive = False
            self._end(sink, self._checked(parser.trailers), leftover=parser.leftover)
        return b""

    def _checked(self, trailers: list[Field]) -> Headers | None:
        for name, _ in trailers:
            if name.lower() in _FRAMING:
                raise self._broken(f"the server sent {quoted(name)} behind the body that it should have framed")
        return Headers(trailers) if trailers else None

    def _end(self, sink: HTTPSink, trailers: Headers | None = None, *, leftover: bool = False) -> None:
        self._reading = _DONE
        if leftover:
            self.has_leftover = True
        sink.response_ended(trailers)

    # --- Faults -------------------------------------------------------------------------------------------------------

    def _broken(self, message: str) -> RemoteProtocolError:
        self._reading = _BROKEN
        return RemoteProtocolError(message)

    def _head_too_large(self) -> RemoteProtocolError:
        error = self._broken(
            f"the head of the response is longer than {self._limits.max_head_size} bytes (max_head_size)"
        )
        error.code = "HPE_HEADER_OVERFLOW"
        return error

    def _bare_line_end(self) -> RemoteProtocolError:
        return self._broken("the head of the response has a bare LF or CR in it")
