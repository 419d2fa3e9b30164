"""What the fields of a request become in HTTP/2, and what those of a response must be."""

from __future__ import annotations

import pytest
from h2_support import head_of

from tlsagent._http.h2_fields import (
    MalformedError,
    announced_length,
    check_fields,
    checked_status,
    list_size,
    lower_case,
    request_fields,
)
from tlsagent._http.messages import RequestHead

BARE = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/")]


def connect(target: bytes, headers=()) -> RequestHead:
    return RequestHead(
        b"CONNECT",
        target,
        authority=b"a.test",
        headers=list(headers),
        content_length=None,
        chunked=False,
        keep_alive=True,
    )


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, []),
        ({"Accept": "*/*", "X-Y": "Z"}, [(b"accept", b"*/*"), (b"x-y", b"Z")]),
        ({"Connection": "close"}, []),
        ({"Connection": "keep-alive, X-Hop", "X-Hop": "1", "x-stays": "1"}, [(b"x-stays", b"1")]),
        ([("x-hop", "1"), ("X-HOP", "2"), ("connection", "x-hop")], []),
        ({"Keep-Alive": "5", "Proxy-Connection": "x", "Upgrade": "h2c", "HTTP2-Settings": "AAA"}, []),
        ({"TE": "trailers"}, [(b"te", b"trailers")]),
        ({"TE": "gzip, Trailers"}, [(b"te", b"trailers")]),
        ({"TE": "gzip"}, []),
        ({"TE": "trailers", "Connection": "TE"}, [(b"te", b"trailers")]),
        ({"Cookie": "a=1; b=2;c=3"}, [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"cookie", b"c=3")]),
        ({"Cookie": "a=1;"}, [(b"cookie", b"a=1")]),
        ({"Cookie": ""}, []),
    ],
)
def test_fields_of_a_request(given, sent):
    """
    Names are in lower case; what speaks of the connection is left out, with what Connection names; cookies are split.
    """
    assert request_fields(head_of(headers=given)) == BARE + sent


def test_framing_of_a_body():
    """
    A length stays, chunks are not of HTTP/2.
    """
    assert request_fields(head_of("POST", length=3))[4:] == [(b"content-length", b"3")]
    assert request_fields(head_of("POST", length=-1))[4:] == []
    assert request_fields(head_of("POST", {"Transfer-Encoding": "chunked"}, length=3))[4:] == []


def test_host_is_the_authority():
    """
    The caller's Host goes out as `:authority`, and not as Host; its place in the list does not matter.
    """
    fields = request_fields(head_of(headers=[("x", "y"), ("HOST", "b.test:1")]))

    assert fields == [*BARE[:2], (b":authority", b"b.test:1"), BARE[3], (b"x", b"y")]


def test_options_of_the_server_as_a_whole():
    """
    The target of `OPTIONS *` is its path.
    """
    assert request_fields(head_of("OPTIONS", target="*"))[3] == (b":path", b"*")


def test_connect():
    """
    CONNECT has an authority alone; an extended one has all, and a protocol (RFC 8441).
    """
    assert request_fields(connect(b"b.test:443", [(b"X", b"y")])) == [
        (b":method", b"CONNECT"), (b":authority", b"b.test:443"), (b"x", b"y"),
    ]  # fmt: skip
    assert request_fields(connect(b"/chat"), b"websocket") == [
        (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":authority", b"a.test"),
        (b":path", b"/chat"),
    ]  # fmt: skip


def test_size_of_a_list():
    """
    Thirty-two bytes more for each field.
    """
    assert list_size([]) == 0
    assert list_size([(b"ab", b"c"), (b"d", b"")]) == 68
    assert lower_case([(b"Ab", b"C")]) == [(b"ab", b"C")]


def test_good_responses():
    """
    The status comes first; values may be empty, and hold any byte but control characters.
    """
    assert checked_status([(b":status", b"200"), (b"x", b""), (b"te", b"Trailers"), (b"y", b"a\tb \xff")]) == 200
    assert announced_length([(b"x", b"1"), (b"content-length", b"0012")]) == 12
    assert announced_length([(b"x", b"1")]) is None


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"x", b"y"), (b":status", b"200")],
        [(b":status", b"20")],
        [(b":status", b"099")],
        [(b":status", b"101")],
        [(b":status", b"2 0")],
        [(b":status", b"200"), (b":status", b"200")],
    ],
)
def test_status_is_checked(fields):
    """
    A response that has no status, or an impossible one, is none.
    """
    with pytest.raises(MalformedError) as caught:
        checked_status(fields)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"", b"x"), (b"X", b"x"), (b"a b", b"x"), (b":a", b"x"), (b"a:b", b"x"), (b"a\xff", b"x"), (b"a", b" x"),
        (b"a", b"x\t"), (b"a", b"\n"), (b"a", b"a\rb"), (b"a", b"a\0b"), (b"a", b"a\x7fb"), (b"connection", b"x"),
        (b"keep-alive", b"x"), (b"proxy-connection", b"x"), (b"transfer-encoding", b"x"), (b"upgrade", b"x"),
        (b"te", b"gzip"), (b"te", b""),
    ],
)  # fmt: skip
def test_fields_are_checked(name, value):
    """
    RFC 9113, 8.2: what could be taken for something else further on is refused, and shown without harm.
    """
    with pytest.raises(MalformedError) as caught:
        check_fields([(b"fine", b"x"), (name, value)])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("lengths", [[b""], [b"-1"], [b"+1"], [b"1 "], [b"1,1"], [b"1", b"1"], [b"9" * 20], [b"\xb2"]])
def test_lengths_are_checked(lengths):
    """
    One number of at most 19 digits.
    """
    with pytest.raises(MalformedError):
        announced_length([(b"content-length", length) for length in lengths])
