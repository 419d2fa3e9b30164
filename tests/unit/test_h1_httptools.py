"""What llhttp refuses, and what httptools does not do for us; what both engines share is in test_h1.py."""

from __future__ import annotations

import contextlib
import gc
import sys

import pytest
from h1_support import CHUNKED, HELLO, OK, ask, bytewise, receive, whole

from tlsagent._http.engines import HTTP1Engine, http1_engine
from tlsagent._http.messages import Headers
from tlsagent._limits import Http1Options
from tlsagent.errors import RemoteProtocolError


def engine_after(**limits: int) -> HTTP1Engine:
    """Return an engine that has sent a request."""
    engine = http1_engine("httptools")(Http1Options(**limits))
    ask(engine)
    return engine


REFUSED = {
    "folded line": OK + b"A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nhi",
    "length twice the same": OK + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\nhi",
    "lengths in a list": OK + b"Content-Length: 2, 2\r\n\r\nhi",
    "control character in a value": OK + b"A: \x01\r\nContent-Length: 2\r\n\r\nhi",
    "control character in the reason": b"HTTP/1.1 200 O\x01K\r\nContent-Length: 2\r\n\r\nhi",
    "blank after a size": CHUNKED + b"2 \r\nhi\r\n0\r\n\r\n",
    "nothing after the semicolon": CHUNKED + b"2;\r\nhi\r\n0\r\n\r\n",
    "bare LF after the last chunk": CHUNKED + b"2\r\nhi\r\n0\r\n\n",
    "size beyond 64 bits": CHUNKED + b"10000000000000000\r\nhi",
    "bare LF in trailers": CHUNKED + b"2\r\nhi\r\n0\r\nA: 1\n\r\n",
}


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("case", REFUSED)
def test_what_h11_takes_is_refused(cut, case):
    """llhttp is the stricter one."""
    engine = engine_after()

    with pytest.raises(RemoteProtocolError) as caught:
        receive(engine, cut(REFUSED[case]))

    assert caught.value.code == "ERR_TLSAGENT_REMOTE_PROTOCOL"
    assert not engine.reusable()


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize(
    ("ending", "trailers"),
    [
        (b"2\r\nhi\r\n0\r\nA: 1\r\nb:2\r\n\r\n", [(b"A", b"1"), (b"b", b"2")]),
        (b"2;a\r\nhi\r\n0\r\n\r\n", None),
        (b"002\r\nhi\r\n00\r\n\r\n", None),
    ],
)
def test_connection_outlives_trailers_and_short_extensions(cut, ending, trailers):
    """What llhttp has judged may be followed by another request."""
    engine = engine_after()

    sink = receive(engine, cut(CHUNKED + ending))

    assert sink.body == b"hi"
    assert sink.ends == [Headers(trailers) if trailers else None]
    assert engine.reusable()


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("trailers", [b"", b"A:1\r\n", b"A:1\r\n" * 9])
def test_size_of_too_many_digits_ends_the_connection(cut, trailers):
    """llhttp reads sizes that h11 refuses: what could be one is delivered, and no other request follows it."""
    engine = engine_after()

    sink = receive(engine, cut(CHUNKED + b"0" * 20 + b"2\r\nhi\r\n0\r\n" + trailers + b"\r\n"))

    assert sink.body == b"hi"
    assert not engine.reusable()


def test_what_one_chunked_body_spent_does_not_count_against_the_next():
    """Limits and doubts are those of one response."""
    engine = engine_after(max_head_size=100)

    for _ in range(100):
        assert receive(engine, [CHUNKED + b"2;a\r\nhi\r\n0\r\n\r\n"]).body == b"hi"
        engine.next_cycle()
        ask(engine)


@pytest.mark.parametrize("split", range(1, len(HELLO) + 12))
def test_what_follows_is_told_from_the_body_wherever_it_is_cut(split):
    """A parser that reads on past the end must not hand up what stands there."""
    raw = CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"
    engine = engine_after()

    sink = receive(engine, [raw[:split], raw[split:] + HELLO])

    assert sink.body == b"hello"
    assert engine.has_leftover


def test_switch_without_upgrade_is_refused_too():
    """llhttp makes no difference between a 101 and one that names no protocol; nobody asked for either."""
    engine = engine_after()

    with pytest.raises(RemoteProtocolError):
        receive(engine, [b"HTTP/1.1 101 Switching\r\n\r\n"])
    assert not engine.reusable()


@pytest.mark.parametrize("name", ["on_header", "on_body"])
def test_interrupt_within_a_callback_comes_out_as_it_is(name):
    """A signal that arrives while llhttp calls us is not taken for a fault of the peer."""
    engine = engine_after()

    def interrupt(frame, event, _argument):
        if event == "call" and frame.f_code.co_name == name:
            raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            receive(engine, [CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"])
    finally:
        sys.setprofile(before)
    assert not engine.reusable()


@pytest.mark.parametrize("raw", [HELLO, CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", CHUNKED + b"2\r\nhi", CHUNKED + b"x\r\n"])
def test_engine_is_no_cycle(raw):
    """An engine that is dropped, in the middle of a body too, leaves nothing for the collector."""
    gc.collect()
    gc.disable()
    try:
        engine = engine_after()
        with contextlib.suppress(RemoteProtocolError):
            receive(engine, [raw])
        del engine
        assert gc.collect() == 0
    finally:
        gc.enable()
