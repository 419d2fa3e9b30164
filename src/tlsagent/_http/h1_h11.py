"""
The judgement of h11 on heads and chunked bodies: the HTTP/1.1 parser that is always there.

Every head gets an h11 connection of its own, which then reads the chunks if there are any. A new one costs 0.7 us; the
full cycle of one h11 connection (request, end, head, data, end, `start_next_cycle`) costs 30 us per exchange where this
costs 13. h11 lets a server respond from its state IDLE, hence it is told of a request only where it insists on one:
before a 1xx.

h11 takes some things that llhttp, and with it most of the web, refuses. What is so taken is delivered, but not `exact`:

- a folded line, a length that is given twice, other control characters than NUL, HTAB and line ends in a head;
- blanks after the size of a chunk, extensions of any form, a bare LF in trailers. h11 does not show what these looked
  like, therefore only chunks in their shortest form and no trailers are exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11

from tlsagent._http.h1 import H1Engine
from tlsagent.errors import RemoteProtocolError, quoted

if TYPE_CHECKING:
    from tlsagent._http.messages import Field
    from tlsagent._limits import Http1Options

# It proposes a switch, so that h11 reads a 101 too: whether one was asked for is not its to judge.
_ANY_REQUEST: Final = h11.Request(
    method="GET", target="/", headers=[("Host", "host"), ("Connection", "upgrade"), ("Upgrade", "any")]
)
_CONTROLS: Final = bytes({*range(32), 127} - set(b"\t\r\n"))
_LAST_CHUNK: Final = len(b"0\r\n\r\n")


class H11Parser:
    """A `ResponseParser`."""

    __slots__ = (
        "_connection",
        "_max_size",
        "_size",
        "_unexplained",
        "chunks",
        "exact",
        "leftover",
        "pieces",
        "trailers",
    )

    name = "h11"

    def __init__(self, limits: Http1Options) -> None:
        self._max_size = limits.max_head_size
        self._connection: h11.Connection | None = None
        self._size = 0
        self._unexplained = 0
        self.exact = True
        self.pieces: list[bytes] = []
        self.chunks = 0
        self.leftover = False
        self.trailers: list[Field] = []

    def read_head(self, head: bytes) -> tuple[int, str, list[Field]]:
        """Return status, reason and fields of a head."""
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._max_size)
        try:
            if head.startswith(b"1", 9):
                connection.send(_ANY_REQUEST)
            connection.receive_data(head)
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            raise RemoteProtocolError(f"the head of the response is malformed: {quoted(str(exc))}") from exc
        assert isinstance(event, (h11.Response, h11.InformationalResponse))
        raw = event.headers.raw_items()
        # Lines that are folded, and lengths that are repeated, are fewer fields than lines.
        self.exact = head.count(b"\r\n") == len(raw) + 2 and len(head.translate(None, _CONTROLS)) == len(head)
        self._connection = None
        for index, (name, value) in enumerate(raw):
            match name.lower():
                case b"transfer-encoding":
                    raw[index] = (name, _as_sent(head, name))  # h11 turns it into lower case
                    self._connection = connection
                    self._unexplained = self._size = 0
                case b"content-length":
                    # h11 makes one length of a list of them.
                    if b"\r\n%b: %b\r\n" % (name, value) not in head:
                        self.exact = self.exact and value == _as_sent(head, name)
        return event.status_code, event.reason.decode("latin-1"), raw

    def read_chunks(self, data: bytes | memoryview) -> bool:
        """Take bytes of a chunked body; returns whether it has ended."""
        connection = self._connection
        assert connection is not None
        pieces: list[bytes] = []
        self.pieces = pieces
        self.chunks = 0
        try:
            connection.receive_data(data)  # type: ignore[arg-type]  # any buffer will do: it is appended to a bytearray
            event = connection.next_event()
            while isinstance(event, h11.Data):
                pieces.append(event.data)
                self._count(event)
                event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            self._connection = None
            raise RemoteProtocolError(f"the chunked body is malformed: {quoted(str(exc))}") from exc
        self._unexplained += len(data)
        if not isinstance(event, h11.EndOfMessage):
            return False
        rest = len(connection.trailing_data[0])
        self.leftover = rest > 0
        self.trailers = event.headers.raw_items()
        if self.trailers or self._unexplained - rest != _LAST_CHUNK:
            self.exact = False
        self._connection = None
        return True

    def _count(self, event: h11.Data) -> None:
        """Take off the bytes that are explained by a chunk in its shortest form."""
        size = len(event.data)
        self._size += size
        self._unexplained -= size
        if event.chunk_start:
            self.chunks += 1
        if event.chunk_end:
            self._unexplained -= len(b"%x\r\n\r\n" % self._size)
            self._size = 0


def _as_sent(head: bytes, name: bytes) -> bytes:
    start = head.index(b"\r\n%b:" % name) + len(name) + 3
    return head[start : head.index(b"\r", start)].strip(b" \t")


def h11_engine(limits: Http1Options) -> H1Engine:
    """Return an engine for one connection."""
    return H1Engine(limits, H11Parser(limits))
