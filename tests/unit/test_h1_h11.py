"""What h11 takes and other parsers refuse is delivered once, and the connection goes; the rest is in test_h1.py."""

from __future__ import annotations

import pytest
from h1_support import CHUNKED, HELLO, OK, ask, bytewise, receive, whole

from tlsagent._http.engines import HTTP1Engine, http1_engine
from tlsagent._limits import Http1Options
from tlsagent.errors import RemoteProtocolError

LAX = {
    "folded line": (OK + b"A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "length twice the same": (OK + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
    "lengths in a list": (OK + b"X-Content-Length: 2\r\nContent-Length: 2, 2\r\n\r\nhi", b"hi"),
    "control character in a value": (OK + b"A: \x01\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "DEL in the reason": (b"HTTP/1.1 200 \x7f\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "in a 1xx": (b"HTTP/1.1 103 Early\r\nA: 1\r\n 2\r\n\r\n" + HELLO, b"hello"),
    "blank after a size": (CHUNKED + b"2 \r\nhi\r\n0\r\n\r\n", b"hi"),
    "nothing after the semicolon": (CHUNKED + b"2;\r\nhi\r\n0\r\n\r\n", b"hi"),
    "CR in an extension": (CHUNKED + b"2;a\r\r\nhi\r\n0\r\n\r\n", b"hi"),
    "bare LF after the last chunk": (CHUNKED + b"2\r\nhi\r\n0\r\n\n", b"hi"),
    "bare LF in trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nA: 1\n\r\n", b"hi"),
}
# Each is correct; but h11 does not show whether it is, or looks like one of the above.
DOUBTFUL = {
    "extension": (CHUNKED + b"2;a=b\r\nhi\r\n0\r\n\r\n", b"hi"),
    "extension of the last chunk": (CHUNKED + b"2\r\nhi\r\n0;a\r\n\r\n", b"hi"),
    "leading zeros": (CHUNKED + b"002\r\nhi\r\n0\r\n\r\n", b"hi"),
    "trailer": (CHUNKED + b"2\r\nhi\r\n0\r\nA: 1\r\n\r\n", b"hi"),
}


def engine_after() -> HTTP1Engine:
    """Return an engine that has sent a request."""
    engine = http1_engine("h11")(Http1Options())
    ask(engine)
    return engine


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("case", LAX | DOUBTFUL)
def test_what_is_not_beyond_doubt_ends_the_connection(cut, case):
    """A response that a strict parser may read otherwise is delivered whole, and no other request follows it."""
    raw, body = (LAX | DOUBTFUL)[case]
    engine = engine_after()

    sink = receive(engine, cut(raw))

    assert sink.body == body
    assert len(sink.ends) == 1
    assert not engine.has_leftover
    assert not engine.reusable()


def test_folded_line_is_joined():
    """RFC 9112, 5.2: each fold becomes a space."""
    [head] = receive(engine_after(), [OK + b"A: 1\r\n\t2\r\nContent-Length: 0\r\n\r\n"]).heads

    assert head.headers.raw == [(b"A", b"1 2"), (b"Content-Length", b"0")]


@pytest.mark.parametrize("cut", [whole, bytewise])
def test_chunks_in_their_shortest_form_are_beyond_doubt(cut):
    """Sizes of any number of digits, in either case, keep the connection, and one response after the other."""
    engine = engine_after()
    body = b"x" * 300

    for size in (b"A\r\n" + b"x" * 10, b"12c\r\n" + body, b"1\r\nx\r\n12C\r\n" + body):
        assert receive(engine, cut(CHUNKED + size + b"\r\n0\r\n\r\n")).ends == [None]
        assert engine.reusable()
        engine.next_cycle()
        ask(engine)


def test_size_of_more_than_twenty_digits_is_refused():
    """h11 reads no more; llhttp does, see test_h1_httptools.py."""
    with pytest.raises(RemoteProtocolError, match="illegal chunk header"):
        receive(engine_after(), [CHUNKED + b"0" * 20 + b"2\r\nhi\r\n0\r\n\r\n"])
