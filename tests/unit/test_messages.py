"""Requests are checked and framed before any I/O; headers read as users expect them."""

from __future__ import annotations

import pickle

import pytest

from tlsagent._http.messages import Headers, RequestHead, RequestWriter, ResponseHead, request_head, trailer_fields
from tlsagent.errors import LocalProtocolError


def head_of(
    method="GET", target="/", headers=None, *, body_length=None, has_body=False, keep_alive=True, **asked
) -> RequestHead:
    return request_head(
        method,
        target,
        b"a.test",
        headers,
        body_length=body_length,
        has_body=has_body or body_length is not None,
        keep_alive=keep_alive,
        **asked,
    )


def wire(head: RequestHead, *pieces: bytes, trailers=()) -> bytes:
    writer = RequestWriter()
    return b"".join([writer.start(head), *map(writer.send_data, pieces), writer.end(trailers)])


# -- Headers


def fields() -> Headers:
    return Headers([(b"Content-Type", b"text/plain"), (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=\xe4")])


def test_header_is_found_whatever_its_case():
    """Names are compared without regard to case."""
    assert fields()["CONTENT-type"] == fields().get("content-type") == "text/plain"
    assert "Content-TYPE" in fields()


def test_repeats_are_joined_or_listed():
    """`[]` joins the values of a repeated field, `get_all` lists them; text is Latin-1."""
    assert fields()["Set-Cookie"] == "a=1, b=ä"
    assert fields().get_all("Set-Cookie") == ["a=1", "b=ä"]


def test_absent_header_is_a_key_error_a_default_or_an_empty_list():
    """A field that is not there is missing in the way of a mapping."""
    with pytest.raises(KeyError, match="x-none"):
        fields()["x-none"]
    assert fields().get("x-none") is None
    assert fields().get("x-none", "dflt") == "dflt"
    assert fields().get_all("x-none") == []
    assert "x-none" not in fields()
    assert 7 not in fields()


def test_iteration_keeps_order_and_repeats():
    """Every field counts and comes in its order, names in lower case; `raw` keeps what the peer wrote."""
    assert list(fields()) == fields().keys() == ["content-type", "set-cookie", "set-cookie"]
    assert fields().items()[0] == ("content-type", "text/plain")
    assert len(fields()) == 3
    assert fields().raw[0] == (b"Content-Type", b"text/plain")


def test_headers_become_a_dict():
    """`dict(headers)` has one entry per name, repeats joined."""
    assert dict(fields()) == {"content-type": "text/plain", "set-cookie": "a=1, b=ä"}


def test_headers_compare_by_content():
    """Headers are equal if their fields are, the case of names aside, and are not hashable."""
    assert Headers([(b"A", b"1")]) == Headers([(b"a", b"1")])
    assert Headers([(b"A", b"1")]) != Headers([(b"a", b"2")])
    assert Headers([]) != []
    with pytest.raises(TypeError):
        hash(Headers([]))


def test_headers_can_be_pickled_and_shown():
    """Response heads go between processes and into logs."""
    head = pickle.loads(pickle.dumps(ResponseHead(200, "OK", "HTTP/1.1", fields())))

    assert (head.status, head.headers) == (200, fields())
    assert repr(head) == "<ResponseHead 200 OK>"
    assert repr(Headers([(b"A", b"1")])) == "Headers([('a', '1')])"


# -- What is added to a request


def test_plain_request_gets_a_host_and_nothing_else():
    """A GET without body goes out with Host alone."""
    head = head_of(target="/hello?x=1")

    assert wire(head) == b"GET /hello?x=1 HTTP/1.1\r\nHost: a.test\r\n\r\n"
    assert (head.content_length, head.chunked, head.keep_alive) == (None, False, True)
    assert repr(head) == "<RequestHead GET /hello?x=1>"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "1", "x-b": " \t2\xe4 "},
        [("X-A", "1"), ("x-b", "2\xe4")],
        [(b"X-A", b"1"), (b"x-b", b"2\xe4")],
        Headers([(b"X-A", b"1"), (b"x-b", b"2\xe4")]),
    ],
)
def test_headers_of_the_caller_keep_order_and_spelling(headers):
    """Mappings and pairs, str and bytes go out alike, as the caller spelt them, blanks around values stripped."""
    sent = wire(head_of(headers=headers)).lower()

    assert b"\r\nx-a: 1\r\nx-b: 2\xe4\r\n" in sent


def test_repeated_headers_stay_repeated():
    """A field given twice goes out twice."""
    assert b"A: 1\r\nA: 2\r\n" in wire(head_of(headers=[("A", "1"), ("A", "2")]))


def test_host_of_the_caller_replaces_ours():
    """A Host of the caller changes that header alone."""
    head = head_of(headers={"host": "other.test"})

    assert wire(head) == b"GET / HTTP/1.1\r\nhost: other.test\r\n\r\n"
    assert head.authority == b"a.test"


@pytest.mark.parametrize("headers", [None, {"connection": "Keep-Alive"}])
def test_connection_that_ends_after_the_request_says_so(headers):
    """Without keep-alive "Connection: close" is added."""
    head = head_of(headers=headers, keep_alive=False)

    assert (b"Connection", b"close") in head.headers
    assert not head.keep_alive


def test_caller_may_ask_for_a_close():
    """A "Connection: close" of the caller ends the connection and is not repeated."""
    head = head_of(headers=[("Connection", "upgrade"), ("Connection", "x , CLOSE")], keep_alive=True)

    assert not head.keep_alive
    assert (b"Connection", b"close") not in head.headers
    assert not head_of(headers={"connection": "close"}, keep_alive=False).keep_alive


@pytest.mark.parametrize(
    ("method", "body", "framing"),
    [
        ("POST", {"body_length": 3}, [(b"Content-Length", b"3")]),
        ("GET", {"body_length": 0}, [(b"Content-Length", b"0")]),
        ("POST", {"has_body": True}, [(b"Transfer-Encoding", b"chunked")]),
        ("POST", {}, [(b"Content-Length", b"0")]),
        ("PUT", {}, [(b"Content-Length", b"0")]),
        ("PATCH", {}, [(b"Content-Length", b"0")]),
        ("DELETE", {}, []),
        ("HEAD", {}, []),
    ],
)
def test_body_is_framed_by_length_or_in_chunks(method, body, framing):
    """A known length is announced, an unknown one chunked; methods that expect a body announce its absence."""
    assert head_of(method, **body).headers == [(b"Host", b"a.test"), *framing]


@pytest.mark.parametrize(
    ("headers", "body", "length", "chunked"),
    [
        ({"content-length": "3"}, {"body_length": 3}, 3, False),
        ({"content-length": "3"}, {"has_body": True}, 3, False),
        ({"content-length": "0"}, {}, 0, False),
        ({"transfer-encoding": "Chunked"}, {"body_length": 3}, None, True),
        ({"transfer-encoding": "chunked"}, {}, None, True),
    ],
)
def test_caller_may_frame_the_body(headers, body, length, chunked):
    """A caller's framing that fits the body goes out as it is, once."""
    head = head_of("POST", headers=headers, **body)

    assert (head.content_length, head.chunked) == (length, chunked)
    assert len(head.headers) == 2


def test_method_is_sent_in_upper_case():
    """As in Node, methods are upper-cased; unknown ones pass if they are tokens."""
    assert head_of("get").method == b"GET"
    assert head_of("propfind").method == b"PROPFIND"


def test_target_may_be_bytes():
    """A target that is encoded already goes out as it is."""
    assert head_of(target=b"/%C3%A4").target == b"/%C3%A4"


@pytest.mark.parametrize("body", [{"body_length": 3}, {"has_body": True}])
def test_expectation_is_added_once(body):
    """`expect_continue` adds the Expect field; the caller's own says the same and stays alone."""
    added = head_of("POST", expect_continue=True, **body)
    own = head_of("POST", headers={"EXPECT": "100-Continue"}, **body)
    both = head_of("POST", headers={"EXPECT": "100-Continue"}, expect_continue=True, **body)

    assert added.headers[-1] == (b"Expect", b"100-continue")
    assert own.headers == both.headers
    assert [name for name, _ in own.headers if name.lower() == b"expect"] == [b"EXPECT"]
    assert added.expects_continue
    assert own.expects_continue
    assert not head_of("POST", **body).expects_continue
    assert not head_of("POST", headers={"Expect": "something-else"}, **body).expects_continue


@pytest.mark.parametrize(
    ("headers", "proposed"),
    [
        ({"Upgrade": "websocket", "Connection": "Upgrade"}, {b"websocket"}),
        (
            [("upgrade", "A/1, b"), ("Upgrade", "c/2.0"), ("connection", "x"), ("connection", "y, upgrade")],
            {b"a", b"b", b"c"},
        ),
        ({"Upgrade": "websocket"}, set()),
        ({"Connection": "upgrade"}, set()),
        ({"Upgrade": "", "Connection": "upgrade"}, set()),
        ({}, set()),
    ],
)
def test_proposal_to_switch_protocols(headers, proposed):
    """Upgrade proposes only with the connection option (RFC 9110, 7.8); all goes out as given."""
    head = head_of(headers=headers)

    assert head.upgrade == proposed
    given = list(headers.items() if isinstance(headers, dict) else headers)
    assert head.headers == [(b"Host", b"a.test"), *((k.encode(), v.encode()) for k, v in given)]


def test_connection_that_is_to_be_handed_over_is_not_announced_to_close():
    """Where connections are used once, those meant for another protocol are the exception: the caller closes them."""
    switching = {"Upgrade": "x", "Connection": "upgrade"}

    assert (b"Connection", b"close") in head_of(keep_alive=False).headers
    for head in (head_of(keep_alive=False, headers=switching), head_of("CONNECT", "a.test:443", keep_alive=False)):
        assert (b"Connection", b"close") not in head.headers
        assert not head.keep_alive


# -- What is refused


@pytest.mark.parametrize(
    "method",
    ["", "GE T", "GET\r\n", "GET /x HTTP/1.1\r\nHost: b", "GÉT", "opt\u0131ons", "po\u017ft", "GET\0", None, b"GET"],
)
def test_method_that_is_no_token_is_refused(method):
    """Nothing but a token can be a method."""
    with pytest.raises(LocalProtocolError, match="not an HTTP method") as caught:
        head_of(method)
    assert caught.value.code == "ERR_INVALID_HTTP_TOKEN"


@pytest.mark.parametrize(
    "content",
    [
        {"body_length": 3},
        {"has_body": True},
        {"headers": {"Content-Length": "0"}},
        {"headers": {"Transfer-Encoding": "chunked"}},
    ],
)
def test_connect_has_no_content(content):
    """RFC 9110, 9.3.6: what follows the head of a CONNECT belongs to the tunnel."""
    assert head_of("CONNECT", "a.test:443").headers == [(b"Host", b"a.test")]
    with pytest.raises(LocalProtocolError, match="CONNECT has no content"):
        head_of("CONNECT", "a.test:443", **content)


@pytest.mark.parametrize("body", [{}, {"body_length": 0}, {"headers": {"Content-Length": "0"}}])
@pytest.mark.parametrize("how", ["argument", "header"])
def test_expectation_without_content_is_refused(body, how):
    """RFC 9110, 10.1.1: a 100 must not be expected by a request without content."""
    body = dict(body)
    if how == "header":
        body["headers"] = {**body.get("headers", {}), "Expect": "100-continue"}
    with pytest.raises(LocalProtocolError, match="must not expect 100"):
        head_of("POST", expect_continue=how == "argument", **body)


@pytest.mark.parametrize(
    "target", ["", "/a b", "/a\r\nX: 1", "/a\tb", "/ä", "/\ud800", "/a\0", "/a\x7f", b"/\xff", b"/ "]
)
def test_target_with_blanks_or_controls_is_refused(target):
    """Only visible ASCII can be a target."""
    with pytest.raises(LocalProtocolError, match="percent-encoded") as caught:
        head_of(target=target)
    assert caught.value.code == "ERR_UNESCAPED_CHARACTERS"


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", ":path", "ä", "a\0", b"a\n", " a"])
def test_header_name_that_is_no_token_is_refused(name):
    """A header name cannot smuggle another line, for requests and trailers alike."""
    for check in (lambda: head_of(headers=[(name, "1")]), lambda: trailer_fields([(name, "1")])):
        with pytest.raises(LocalProtocolError, match="not a header name") as caught:
            check()
        assert caught.value.code == "ERR_INVALID_HTTP_TOKEN"


@pytest.mark.parametrize(
    "value", ["s3cret\r\nX: 1", "s3cret\n", "s3cret\r", "s3cret\0", "s3cret€", b"s3cret\x7f", "s3cret\x0b"]
)
def test_header_value_with_line_ends_or_controls_is_refused(value):
    """A header value cannot smuggle another line, and is not shown: it may be a credential."""
    for check in (lambda: head_of(headers={"x-a": value}), lambda: trailer_fields({"x-a": value})):
        with pytest.raises(LocalProtocolError, match="x-a") as caught:
            check()
        assert caught.value.code == "ERR_INVALID_CHAR"
        assert "s3cret" not in repr((caught.value, caught.value.__cause__, caught.value.__context__))


@pytest.mark.parametrize(
    "headers", [{"a": 1}, {"a": None}, {"a": ["1"]}, {1: "a"}, [(None, "1")], {"a": bytearray(b"1")}]
)
def test_header_of_another_type_is_refused(headers):
    """Names and values are str or bytes."""
    with pytest.raises(LocalProtocolError, match="must be str or bytes") as caught:
        head_of(headers=headers)
    assert caught.value.code == "ERR_INVALID_ARG_TYPE"


@pytest.mark.parametrize(
    "headers",
    [
        [("Host", "a"), ("host", "b")],
        [("Content-Length", "3"), ("content-length", "3")],
        [("Transfer-Encoding", "chunked"), ("transfer-encoding", "chunked")],
    ],
)
def test_header_that_must_be_single_is_refused_twice(headers):
    """What steers routing and framing stands once."""
    with pytest.raises(LocalProtocolError, match="given twice"):
        head_of("POST", headers=headers, has_body=True)


@pytest.mark.parametrize("length", ["", "-1", "+3", "3, 3", "0x3", "3 3", "³", "9" * 20])
def test_content_length_that_is_no_number_is_refused(length):
    """A length is digits, of a size that peers can hold."""
    with pytest.raises(LocalProtocolError, match="Content-Length must be"):
        head_of("POST", headers={"content-length": length}, has_body=True)


@pytest.mark.parametrize("body", [{"body_length": 3}, {}])
def test_content_length_that_contradicts_the_body_is_refused(body):
    """A length other than that of the body never goes out."""
    with pytest.raises(LocalProtocolError, match="announces 4 bytes") as caught:
        head_of("POST", headers={"content-length": "4"}, **body)
    assert caught.value.code == "ERR_HTTP_CONTENT_LENGTH_MISMATCH"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"transfer-encoding": "gzip, chunked"}, "only Transfer-Encoding"),
        ({"transfer-encoding": "identity"}, "only Transfer-Encoding"),
        ({"transfer-encoding": "chunked", "content-length": "3"}, "exclude each other"),
    ],
)
def test_ambiguous_framing_of_the_caller_is_refused(headers, message):
    """We never send a request that two servers could read differently."""
    with pytest.raises(LocalProtocolError, match=message):
        head_of("POST", headers=headers, has_body=True)


def test_errors_about_names_are_bounded():
    """A name of any size makes a short error."""
    with pytest.raises(LocalProtocolError) as caught:
        head_of(headers={"a " * 100_000: "1"})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "name",
    [
        "Content-Length", "transfer-encoding", "Host", "Connection", "Trailer", "Authorization", "TE", "Expect",
        "Upgrade", "If-Match", "if-none-match", "If-Range", "Range", "Pragma", "Cookie", "Content-Encoding",
    ],
)  # fmt: skip
def test_trailer_that_steers_the_message_is_refused(name):
    """RFC 9110, 6.5.1: framing, routing and credentials must not come late."""
    with pytest.raises(LocalProtocolError, match="trailers") as caught:
        trailer_fields({name: "1"})
    assert caught.value.code == "ERR_HTTP_TRAILER_INVALID"


# -- The writer


def test_body_of_known_length_goes_out_as_it_is():
    """Without chunks the very object comes back: nothing is copied."""
    writer = RequestWriter()
    writer.start(head_of("POST", body_length=3))
    piece = memoryview(b"abc")

    assert writer.send_data(piece) is piece
    assert writer.end() == b""
    assert writer.complete


def test_body_of_known_length_is_complete_with_its_last_byte():
    """The response may come before anybody has said that the body is over; more than announced is still refused."""
    writer = RequestWriter()
    writer.start(head_of("POST", body_length=3))

    writer.send_data(b"ab")
    assert not writer.complete
    writer.send_data(b"c")
    assert writer.complete
    with pytest.raises(LocalProtocolError, match="longer"):
        writer.send_data(b"d")
    assert writer.end() == b""
    assert writer.start(head_of()).startswith(b"GET")


def test_body_of_unknown_length_goes_out_in_chunks():
    """Each piece is a chunk; an empty one is no chunk, for it would end the body."""
    sent = wire(head_of("POST", has_body=True), b"abc", b"", b"x" * 26)

    assert sent.endswith(b"\r\n\r\n3\r\nabc\r\n1a\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n")


def test_memoryviews_can_be_chunked():
    """Pieces of larger buffers are framed like bytes."""
    writer = RequestWriter()
    writer.start(head_of("POST", has_body=True))

    assert writer.send_data(memoryview(b"xabcx")[1:4]) == b"3\r\nabc\r\n"


def test_trailers_follow_the_last_chunk():
    """Trailers go out after the body, checked."""
    sent = wire(head_of("POST", has_body=True), b"a", trailers=[(b"X-Sum", b"1"), ("x-b", "2")])

    assert sent.endswith(b"0\r\nX-Sum: 1\r\nx-b: 2\r\n\r\n")


def test_trailers_need_chunks():
    """A body of known length has no place for trailers."""
    with pytest.raises(LocalProtocolError, match="only a chunked body"):
        wire(head_of("POST", body_length=1), b"a", trailers={"x": "1"})


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_body_longer_than_announced_is_refused(method):
    """What exceeds the announced length is never handed out: the server would take it for the next request."""
    writer = RequestWriter()
    writer.start(head_of(method, body_length=3))
    writer.send_data(b"ab")

    with pytest.raises(LocalProtocolError, match="longer than the 3 bytes announced"):
        writer.send_data(b"cd")


def test_body_where_none_was_announced_is_refused():
    """A request without a body stays without."""
    writer = RequestWriter()
    writer.start(head_of())

    with pytest.raises(LocalProtocolError, match="longer than the 0 bytes"):
        writer.send_data(b"a")


def test_body_shorter_than_announced_is_refused():
    """A request whose body ends early is never called complete."""
    writer = RequestWriter()
    writer.start(head_of("POST", body_length=3))
    writer.send_data(b"ab")

    with pytest.raises(LocalProtocolError, match="2 bytes of the 3 announced") as caught:
        writer.end()
    assert caught.value.code == "ERR_HTTP_CONTENT_LENGTH_MISMATCH"
    assert not writer.complete


def test_head_can_be_sent_again():
    """A retry sends the same bytes."""
    head = head_of("POST", headers={"a": "1"}, body_length=1)

    assert wire(head, b"x") == wire(head, b"x")
