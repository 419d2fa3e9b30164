"""
The judgement of llhttp, Node's own parser, on heads and chunked bodies, by way of httptools: the fast one.

What httptools does not do shapes this module:

- It cannot be told that a response answers HEAD, nor at what byte a message ended. So every head gets a parser of its
  own (0.14 us), which reads on only if the body is chunked; bodies of other framing never reach it.
- It reads on into whatever follows a message. The last byte of a piece is therefore fed apart: only with it may a body
  end that nothing follows. Calls for what comes after the end find a collector that has put its harvest away.
- A 101 is an exception, `HttpParserUpgrade`, raised when the head has been read.
- An exception in a callback comes out as the context of another one.

llhttp takes some things that it should not; they are refused here or in `H1Engine`. What it takes is `exact`, but for
sizes of chunks with more digits than h11 reads: llhttp does not show them, so that only bodies whose framing leaves no
room for one are exact.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

from tlsagent._http.h1 import H1Engine
from tlsagent.errors import RemoteProtocolError, quoted

if TYPE_CHECKING:
    from tlsagent._http.messages import Field
    from tlsagent._limits import Http1Options

_LF: Final = 0x0A
_OVERLONG: Final = 5
"""By how much a size that h11 refuses, of 21 digits, is longer than the longest that llhttp takes, at its shortest."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class _Collector:
    """What llhttp calls. Apart from `HttptoolsParser`, since a parser holds these methods: so there is no cycle."""

    __slots__ = ("chunks", "complete", "fields", "pieces", "reason", "size", "trailers", "unexplained")

    # httptools asks a collector for these too, once per head: that they are None is told sooner than that they are not.
    on_message_begin = on_headers_complete = on_chunk_header = None

    def __init__(self) -> None:
        self.reason = b""
        self.fields: list[Field] = []
        self.trailers: list[Field] = []
        self.pieces: list[bytes] = []
        self.chunks = 0
        self.size = 0
        self.unexplained = 0
        self.complete = False

    def on_status(self, reason: bytes) -> None:
        self.reason = reason

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves the blanks at the end, and lets no other white space through.
        self.fields.append((name, value.rstrip()))

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)
        self.size += len(data)

    def on_chunk_complete(self) -> None:
        self.chunks += 1
        self.unexplained -= len(b"%x\r\n\r\n" % self.size) + self.size
        self.size = 0

    def on_message_complete(self) -> None:
        if not self.complete:
            self.complete = True
            self.trailers, self.fields = self.fields, []
            self.pieces = []


class HttptoolsParser:
    """A `ResponseParser`."""

    __slots__ = ("_collector", "_parser", "chunks", "exact", "leftover", "pieces", "trailers")

    name = "httptools"

    def __init__(self) -> None:
        self._collector = _Collector()
        self._parser: HttpResponseParser | None = None
        self.exact = True
        self.pieces: list[bytes] = []
        self.chunks = 0
        self.leftover = False
        self.trailers: list[Field] = []

    def read_head(self, head: bytes) -> tuple[int, str, list[Field]]:
        """Return status, reason and fields of a head."""
        collector = self._collector
        fields: list[Field] = []
        collector.fields = fields
        collector.reason = b""
        collector.complete = False
        self.exact = True
        parser = self._parser = HttpResponseParser(collector)
        try:
            parser.feed_data(head)
        except HttpParserUpgrade:
            pass  # its head is whole; whether anybody asked for it is judged by `H1Engine`
        except HttpParserError as exc:
            raise _malformed("the head of the response", exc) from exc
        collector.fields = []
        collector.unexplained = collector.size = 0
        reason = collector.reason.decode("latin-1")
        if not reason.isprintable() and _CONTROL.search(reason):
            raise RemoteProtocolError(f"the reason phrase holds control characters: {quoted(reason)}")
        return parser.get_status_code(), reason, fields

    def read_chunks(self, data: bytes | memoryview) -> bool:
        """Take bytes of a chunked body; returns whether it has ended."""
        parser = self._parser
        assert parser is not None
        collector = self._collector
        self.pieces = collector.pieces = []
        collector.chunks = 0
        try:
            if data[-1] == _LF:
                view = memoryview(data)
                parser.feed_data(view[:-1])
                self.leftover = collector.complete
                if not self.leftover:
                    parser.feed_data(view[-1:])
            else:
                parser.feed_data(data)
                self.leftover = collector.complete
        except HttpParserError as exc:
            # An error behind the end of the body is none of the body.
            if not collector.complete:
                raise _malformed("the chunked body", exc) from exc
            self.leftover = True
        self.chunks = collector.chunks
        collector.unexplained += len(data)
        if collector.complete:
            self.trailers = collector.trailers
            shortest = sum([len(name) + len(value) + len(b":\r\n") for name, value in self.trailers])
            self.exact = collector.unexplained - shortest < _OVERLONG
            self._parser = None
        return collector.complete


def _malformed(what: str, error: HttpParserError) -> RemoteProtocolError:
    if isinstance(error, HttpParserCallbackError) and error.__context__ is not None:
        raise error.__context__  # a signal came while a callback ran
    return RemoteProtocolError(f"{what} is malformed: {quoted(str(error))}")


def httptools_engine(limits: Http1Options) -> H1Engine:
    """Return an engine for one connection."""
    return H1Engine(limits, HttptoolsParser())
