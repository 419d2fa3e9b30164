"""
What may be sent as a body, and in which pieces.
"""

from __future__ import annotations

import array
import asyncio
import io

import pytest

from tlsagent._body import PIECE, Body, body_of
from tlsagent.errors import LocalProtocolError


def sent(body):
    return [bytes(piece) for piece in body.pieces()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"abc", b"abc"),
        (b"", b""),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(array.array("H", [1, 2])), array.array("H", [1, 2]).tobytes()),
        ("naïve", "naïve".encode()),
        (b"x" * PIECE, b"x" * PIECE),
        (None, None),
    ],
)
def test_short_content_is_kept_as_bytes(content, expected):
    """What fits one piece is bytes, whatever it was; text is UTF-8; nothing is nothing."""
    assert body_of(content) == expected
    assert not isinstance(body_of(content), Body)


@pytest.mark.parametrize("content", [b"ab" * PIECE, bytearray(b"ab" * PIECE), "ab" * PIECE])
def test_long_content_is_cut(content):
    """Longer content is a body of known length, in pieces, that can be had again."""
    body = body_of(content)

    assert (body.length, body.replayable, body.asynchronous) == (2 * PIECE, True, False)
    assert [len(piece) for piece in sent(body)] == [PIECE, PIECE]
    assert b"".join(sent(body)) == b"ab" * PIECE


def test_caller_s_buffer_is_copied():
    """A bytearray that the caller changes later does not change the body."""
    buffer = bytearray(b"abc")

    body = body_of(buffer)
    buffer[:] = b"xyz"

    assert body == b"abc"


def test_file_is_measured_from_where_it_stands():
    """A seekable file has a length, from its position to its end, and starts there each time."""
    file = io.BytesIO(b"head" + b"x" * (PIECE + 1))
    file.seek(4)
    body = body_of(file)

    assert (body.length, body.replayable) == (PIECE + 1, True)
    for _ in range(2):
        assert [len(piece) for piece in sent(body)] == [PIECE, 1]


def test_file_beyond_its_end_is_empty():
    """A file that stands beyond its end has nothing to send."""
    file = io.BytesIO(b"abc")
    file.seek(10)

    assert body_of(file).length == 0


class Pipe(io.RawIOBase):
    """Readable, not seekable."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def read(self, size=-1):
        return self._data.read(size)


class Reader:
    """The least that can be read."""

    def __init__(self, *chunks):
        self._chunks = [*chunks, b""]

    def read(self, size):
        return self._chunks.pop(0)


@pytest.mark.parametrize("file", [Pipe(b"abcdef"), Reader(b"abc", bytearray(b"def"))])
def test_file_that_cannot_seek(file):
    """A file without a position has no length and can be sent once."""
    body = body_of(file)

    assert (body.length, body.replayable) == (None, False)
    assert b"".join(sent(body)) == b"abcdef"


def test_text_file_is_refused():
    """A file opened in text mode gives str, which is nothing to send: it is refused before anything is opened."""
    with pytest.raises(LocalProtocolError, match="binary mode"):
        body_of(io.StringIO("abc"))


def test_file_that_turns_out_to_give_text():
    """What no file of the library's says of itself is found out when it is read."""

    class File:
        def read(self, size):
            return "abc"

    with pytest.raises(LocalProtocolError, match="must yield bytes, not str") as caught:
        sent(body_of(File()))
    assert caught.value.phase == "send"


@pytest.mark.parametrize(
    ("content", "replayable"),
    [
        ([b"ab", bytearray(b"c"), memoryview(b"d")], True),
        ((b"ab", b"", b"cd"), True),
        (iter([b"ab", b"cd"]), False),
        ((chunk for chunk in (b"ab", b"cd")), False),
        ({b"abcd"}, False),
    ],
)
def test_iterables(content, replayable):
    """Iterables have no known length; lists and tuples can be had again."""
    body = body_of(content)

    assert (body.length, body.replayable, body.asynchronous) == (None, replayable, False)
    assert b"".join(sent(body)) == b"abcd"
    if replayable:
        assert b"".join(sent(body)) == b"abcd"


def test_long_chunks_are_cut():
    """No piece is longer than what the TLS engine takes at once."""
    assert [len(piece) for piece in sent(body_of([b"x" * (2 * PIECE + 5), b"y"]))] == [PIECE, PIECE, 5, 1]


@pytest.mark.parametrize("chunk", ["text", 65, None])
def test_chunk_that_is_no_bytes(chunk):
    """An iterable of anything else is refused when it comes to that chunk."""
    pieces = body_of([b"fine", chunk]).pieces()

    assert bytes(next(pieces)) == b"fine"
    with pytest.raises(LocalProtocolError, match=f"must yield bytes, not {type(chunk).__name__}") as caught:
        next(pieces)
    assert caught.value.code == "ERR_INVALID_ARG_TYPE"


def test_asynchronous_iterable():
    """An asynchronous iterable is read by `apieces`, cut and checked in the same way."""

    async def chunks():
        yield b"x" * (PIECE + 1)
        yield "text"  # the third piece

    async def first_two():
        pieces = body.apieces()
        return [len(await anext(pieces)), len(await anext(pieces)), await anext(pieces)]

    body = body_of(chunks())

    assert (body.length, body.replayable, body.asynchronous) == (None, False, True)
    with pytest.raises(LocalProtocolError, match="must yield bytes, not str"):
        asyncio.run(first_two())


@pytest.mark.parametrize("content", [5, 1.5, {"a": 1}, object(), True])
def test_what_cannot_be_sent(content):
    """Numbers, mappings and other objects are refused with the name of their type."""
    with pytest.raises(LocalProtocolError, match=f"not {type(content).__name__}") as caught:
        body_of(content)
    assert caught.value.code == "ERR_INVALID_ARG_TYPE"


# -- Bodies that are not read to their end


class Chunks:
    """An iterator that is no generator, and can be closed."""

    def __init__(self, closable=True):
        self.closed = 0
        if closable:
            self.close = self._close

    def _close(self):
        self.closed += 1

    def __iter__(self):
        return self

    def __next__(self):
        return b"x"


def test_generator_of_the_caller_is_closed_with_the_pieces():
    """Who stops half-way closes the caller's generator: its `finally` runs then, not when it is collected."""
    ended = []

    def content():
        try:
            while True:
                yield b"x"
        finally:
            ended.append(True)

    source = content()
    pieces = body_of(source).pieces()
    next(pieces)
    assert not ended
    pieces.close()

    assert ended == [True]


def test_iterator_of_the_caller_is_closed_if_it_can_be():
    """Any iterator with `close` is closed, once; one without is left alone."""
    for closable in (True, False):
        source = Chunks(closable)
        pieces = body_of(source).pieces()
        next(pieces)
        pieces.close()
        assert source.closed == closable


def test_file_of_the_caller_stays_open():
    """A file is the caller's to close."""
    source = io.BytesIO(b"x" * 3 * PIECE)
    pieces = body_of(source).pieces()
    next(pieces)
    pieces.close()

    assert not source.closed


def test_asynchronous_generator_of_the_caller_is_closed_with_the_pieces():
    """The same for asynchronous generators; an asynchronous iterator that cannot be closed is left alone."""
    ended = []

    async def content():
        try:
            while True:
                yield b"x"
        finally:
            ended.append(True)

    class Endless:
        def __aiter__(self):
            return self

        async def __anext__(self):
            return b"y"

    async def run():
        for source in (content(), Endless()):
            pieces = body_of(source).apieces()
            await anext(pieces)
            await pieces.aclose()

    asyncio.run(run())

    assert ended == [True]
