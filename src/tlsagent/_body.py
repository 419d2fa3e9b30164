"""
The body of a request: what the caller may hand in as `content`, and how it is cut into pieces.

Knows nothing of framing (that is `_http`) and nothing of waiting (a driver iterates).
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Mapping
from typing import Any, Final, Protocol, cast

from tlsagent.errors import LocalProtocolError

PIECE: Final = 65_536
"""Bytes handed to the TLS engine at once: a memory BIO grows to what is written and never shrinks."""


class File(Protocol):
    """What a file must offer to be sent."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, b"" at the end."""
        ...


Content = bytes | bytearray | memoryview | str | File | Iterable[bytes] | AsyncIterable[bytes]


class Body:
    """
    A body that is longer than one piece or of unknown length.

    Attributes:
        length: Bytes in all, or None if nobody knows before the end.
        replayable: Whether `pieces()` may be called again, for a retry.
        asynchronous: Whether `apieces()` must be used.
    """

    __slots__ = ("_source", "_start", "asynchronous", "length", "replayable")

    def __init__(self, source: Any) -> None:
        self._source = source
        self._start = 0
        self.length: int | None = None
        self.replayable = False
        self.asynchronous = False
        if isinstance(source, (bytes, memoryview)):
            self.length = len(source)
            self.replayable = True
        elif hasattr(source, "read"):
            self._measure_file()
        elif hasattr(source, "__aiter__"):
            self.asynchronous = True
        elif isinstance(source, (list, tuple)):
            self.replayable = True

    def _measure_file(self) -> None:
        try:
            self._start = self._source.tell()
            end = self._source.seek(0, os.SEEK_END)
            self._source.seek(self._start)
        except (AttributeError, OSError, ValueError):
            return
        self.length = max(0, end - self._start)
        self.replayable = True

    def pieces(self) -> Generator[bytes | memoryview, None, None]:
        """
        Return the body from its start, in pieces of at most `PIECE` bytes.

        Closing the generator closes the caller's iterator, if that can be closed: what a generator of the caller's
        holds is let go when the upload stops, not when somebody collects it. A file stays open.
        """
        source = self._source
        if isinstance(source, (bytes, memoryview)):
            return _cut(memoryview(source).cast("B"))
        if hasattr(source, "read"):
            if self.replayable:
                source.seek(self._start)
            return _read(source)
        return _iterate(source)

    async def apieces(self) -> AsyncGenerator[bytes | memoryview, None]:
        """Do the same for an asynchronous iterable."""
        chunks = aiter(self._source)
        async with contextlib.aclosing(chunks) if hasattr(chunks, "aclose") else contextlib.nullcontext():
            async for chunk in chunks:
                for piece in _cut(_bytes_of(chunk)):
                    yield piece


def body_of(content: Content | None) -> bytes | Body | None:
    """
    Return `content` in the form an exchange keeps: bytes if it fits one piece, else a `Body`.

    Raises:
        LocalProtocolError: It is nothing that can be sent.
    """
    if content is None:
        return None
    if isinstance(content, str):
        content = _utf8(content)
    elif isinstance(content, (bytearray, memoryview)):
        content = bytes(content)
    if isinstance(content, bytes):
        return content if len(content) <= PIECE else Body(content)
    if isinstance(content, Mapping) or not any(
        hasattr(content, verb) for verb in ("read", "__aiter__", "__iter__", "__next__")
    ):
        raise LocalProtocolError(
            f"content must be bytes, str, a file or an iterable of bytes, not {type(content).__name__}",
            code="ERR_INVALID_ARG_TYPE",
        )
    if isinstance(content, io.TextIOBase):
        raise LocalProtocolError(
            "content is a file of text: open it in binary mode, or read it and give the text",
            code="ERR_INVALID_ARG_TYPE",
        )
    return Body(content)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(
            f"content is text that UTF-8 cannot hold, a lone surrogate at {error.start}: give bytes instead",
            code="ERR_INVALID_ARG_VALUE",
        ) from None


def _bytes_of(chunk: object) -> memoryview:
    if not isinstance(chunk, (bytes, bytearray, memoryview)):
        raise LocalProtocolError(
            f"content must yield bytes, not {type(chunk).__name__}", code="ERR_INVALID_ARG_TYPE", phase="send"
        )
    return memoryview(cast("bytes", chunk)).cast("B")


def _cut(view: memoryview) -> Generator[memoryview, None, None]:
    for at in range(0, len(view), PIECE):
        yield view[at : at + PIECE]


def _read(file: File) -> Generator[bytes | memoryview, None, None]:
    while chunk := file.read(PIECE):
        yield _bytes_of(chunk)


def _iterate(chunks: Iterable[bytes]) -> Generator[bytes | memoryview, None, None]:
    iterator: Any = iter(chunks)
    with contextlib.closing(iterator) if hasattr(iterator, "close") else contextlib.nullcontext():
        for chunk in iterator:
            yield from _cut(_bytes_of(chunk))
