"""Either HTTP/1.1 engine reads responses strictly, however they are cut, and knows when a connection is done for."""

from __future__ import annotations

import tracemalloc

import pytest
from h1_support import CHUNKED, HELLO, OK, Recorder, ask, bytewise, feed, receive, views, whole

from tlsagent._http.engines import HTTP1Engine, http1_engine
from tlsagent._http.messages import Headers, request_head
from tlsagent._limits import Http1Options
from tlsagent.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError, RequestError

ENGINES = ["h11", "httptools"]


@pytest.fixture(params=ENGINES)
def new_engine(request):
    """Make an engine for a connection that has carried nothing yet."""

    def new_engine(**limits: int) -> HTTP1Engine:
        return http1_engine(request.param)(Http1Options(**limits))

    return new_engine


@pytest.fixture
def engine_after(new_engine):
    """Make an engine that has sent a request without a body."""

    def engine_after(method: str = "GET", *, keep_alive: bool = True, **limits: int) -> HTTP1Engine:
        engine = new_engine(**limits)
        ask(engine, method, keep_alive=keep_alive)
        return engine

    return engine_after


@pytest.fixture(params=[whole, bytewise, views], ids=lambda cut: cut.__name__)
def cut(request):
    """How the bytes of the peer arrive."""
    return request.param


# -- Responses as they should be


COMPLETE = {
    "length": (HELLO, 200, b"hello"),
    "no bytes": (OK + b"Content-Length: 0\r\n\r\n", 200, b""),
    "chunked": (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", 200, b"hello"),
    "no chunks": (CHUNKED + b"0\r\n\r\n", 200, b""),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", 304, b""),
    "304 chunked": (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304, b""),
    "no reason": (b"HTTP/1.1 404\r\nContent-Length: 1\r\n\r\nx", 404, b"x"),
}


@pytest.mark.parametrize("case", COMPLETE)
def test_response_is_delivered_once_and_the_connection_kept(engine_after, cut, case):
    """A complete response reaches the sink exactly once, and the connection may serve another request."""
    raw, status, body = COMPLETE[case]
    engine = engine_after()

    sink = receive(engine, cut(raw))

    assert [head.status for head in sink.heads] == [status]
    assert sink.body == body
    assert sink.ends == [None]
    assert engine.response_complete
    assert engine.request_complete
    assert engine.reusable()
    assert not engine.has_leftover


@pytest.mark.parametrize("case", COMPLETE)
def test_tail_after_a_response_spoils_the_connection(engine_after, case):
    """Bytes behind a response in the same record are dropped; the response stands, the connection goes."""
    raw, status, body = COMPLETE[case]
    engine = engine_after()

    sink = receive(engine, [raw + HELLO])

    assert [head.status for head in sink.heads] == [status]
    assert sink.body == body
    assert sink.ends == [None]
    assert engine.response_complete
    assert engine.has_leftover
    assert not engine.reusable()


@pytest.mark.parametrize("case", COMPLETE)
def test_response_before_its_end_is_not_complete(engine_after, case):
    """Without its last byte no response ends, and no connection is reused."""
    raw, _, _ = COMPLETE[case]
    engine = engine_after()

    sink = receive(engine, [raw[:-1]])

    assert sink.ends == []
    assert not engine.response_complete
    assert not engine.reusable()


def test_head_is_handed_up_as_the_peer_wrote_it(engine_after, cut):
    """Status, reason, version and fields come out unchanged, without the blanks around values."""
    raw = b"HTTP/1.1 299 Sch\xf6n so\r\nX-One: a\r\nx-one:b \r\nEmpty:\r\nInner: a \t b\t\r\nContent-Length: 0\r\n\r\n"

    [head] = receive(engine_after(), cut(raw)).heads

    assert (head.status, head.reason, head.http_version) == (299, "Schön so", "HTTP/1.1")
    assert head.headers.raw == [
        (b"X-One", b"a"),
        (b"x-one", b"b"),
        (b"Empty", b""),
        (b"Inner", b"a \t b"),
        (b"Content-Length", b"0"),
    ]


def test_connection_serves_one_request_after_the_other(engine_after, cut):
    """After `next_cycle` the engine starts afresh, whatever the framing before."""
    engine = engine_after()
    for raw, status, body in COMPLETE.values():
        sink = receive(engine, cut(raw))
        assert (sink.heads[0].status, sink.body) == (status, body)
        engine.next_cycle()
        assert not engine.response_complete
        ask(engine)


def test_body_of_known_length_is_not_copied(engine_after):
    """Bytes that hold nothing but body reach the sink as the object they are."""
    engine = engine_after()
    piece = b"x" * 1_000

    sink = receive(engine, [OK + b"Content-Length: 1000\r\n\r\n", piece])

    assert sink.pieces[0] is piece


def test_chunk_extensions_are_skipped(engine_after, cut):
    """Nobody asked for chunk extensions: they go, the body stays (RFC 9112, 7.1.1)."""
    sink = receive(engine_after(), cut(CHUNKED + b'2;a\r\nhe\r\n03;b=1;c="x y"\r\nllo\r\n0;d\r\n\r\n'))

    assert sink.body == b"hello"
    assert sink.ends == [None]


def test_small_chunks_are_handed_up_together(engine_after):
    """What arrives at once goes up at once, however finely it is chunked."""
    sink = receive(engine_after(), [CHUNKED + b"1\r\na\r\n" * 100 + b"0\r\n\r\n"])

    assert sink.pieces == [b"a" * 100]


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1048576\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n100000\r\n"]
)
def test_idle_engine_keeps_no_body(engine_after, framing):
    """What was read is the sink's: an idle connection holds none of it."""
    engine = engine_after()
    ending = b"\r\n0\r\n\r\n" if b"chunked" in framing else b""
    receive(engine, [OK + framing])
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        sink = Recorder()
        sink.heads.append(None)
        feed(engine, [b"x" * 524_288, b"x" * 524_288 + ending], sink)
        assert len(sink.body) == 1_048_576
        assert engine.reusable()
        del sink
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


def test_trailers_come_with_the_end(engine_after, cut):
    """Fields after the last chunk are handed up with the end of the response."""
    engine = engine_after()

    sink = receive(engine, cut(CHUNKED + b"2\r\nhi\r\n0\r\nX-Sum: 1\r\nx-b: 2\r\n\r\n"))

    assert sink.ends == [Headers([(b"X-Sum", b"1"), (b"x-b", b"2")])]
    assert engine.response_complete
    assert not engine.has_leftover


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X-None: 1"], ids=["length", "chunked", "none"]
)
def test_response_to_head_has_no_body(engine_after, cut, framing):
    """Whatever the fields say, the response to HEAD ends with its head."""
    engine = engine_after("HEAD")

    sink = receive(engine, cut(OK + framing + b"\r\n\r\n"))

    assert sink.ends == [None]
    assert engine.reusable()


def test_body_sent_to_head_is_never_the_next_answer(engine_after):
    """Body bytes after a HEAD response are left over."""
    engine = engine_after("HEAD")

    sink = receive(engine, [HELLO])

    assert sink.body == b""
    assert engine.has_leftover
    assert not engine.reusable()


# -- Persistence


@pytest.mark.parametrize(
    "raw",
    [
        OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
        OK + b"Connection: x, Close\r\nContent-Length: 0\r\n\r\n",
        OK + b"Connection: keep-alive\r\nconnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_connection_ends_where_the_server_ends_it(engine_after, cut, raw):
    """ "Connection: close" and HTTP/1.0 end the connection with the response."""
    engine = engine_after()

    sink = receive(engine, cut(raw))

    assert sink.ends == [None]
    assert not engine.reusable()


def test_version_of_an_old_server_is_told(engine_after):
    """HTTP/1.0 responses are marked as such."""
    assert receive(engine_after(), [b"HTTP/1.0 204 No\r\n\r\n"]).heads[0].http_version == "HTTP/1.0"


def test_connection_ends_where_we_end_it(engine_after):
    """A request that announced the close is the last one."""
    engine = engine_after(keep_alive=False)

    receive(engine, [HELLO])

    assert not engine.reusable()


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        (b"Keep-Alive: timeout=5, max=3\r\n", 5),
        (b"keep-alive: max=3\r\n", None),
        (b"Keep-Alice: timeout=5\r\n", None),  # as long as the one that counts
        (b"", None),
    ],
)
def test_hint_is_that_of_the_last_response(engine_after, fields, hint):
    """`Keep-Alive: timeout` is handed on, and forgotten with the next response."""
    engine = engine_after()

    for extra, expected in ((fields, hint), (b"", None)):
        receive(engine, [OK + extra + b"Content-Length: 0\r\n\r\n"])
        assert engine.idle_hint == expected
        engine.next_cycle()
        ask(engine)


def test_close_in_an_informational_head_does_not_count(engine_after):
    """Only the final head decides whether the connection persists."""
    engine = engine_after()

    receive(engine, [b"HTTP/1.1 103 Early\r\nConnection: close\r\n\r\n" + HELLO])

    assert engine.reusable()


def test_early_response_leaves_the_connection_unusable_until_the_request_is_out(new_engine):
    """Both directions must be complete; a response may overtake its request."""
    engine = new_engine()
    head = request_head("POST", "/", b"a.test", None, body_length=3, has_body=True, keep_alive=True)
    engine.start(head)
    engine.send_data(b"ab")

    sink = receive(engine, [HELLO])

    assert sink.ends == [None]
    assert engine.response_complete
    assert not engine.request_complete
    assert not engine.reusable()
    engine.send_data(b"c")
    engine.end_request()
    assert engine.reusable()


def test_requests_are_written_and_checked(new_engine):
    """The engine frames the request's body and refuses one of another length."""
    engine = new_engine()

    sent = engine.start(request_head("POST", "/", b"a.test", None, body_length=2, has_body=True, keep_alive=True))
    sent += engine.send_data(b"a")

    assert sent == b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\na"
    with pytest.raises(LocalProtocolError):
        engine.send_data(b"bc")
    assert not engine.request_complete


def test_chunked_request_with_trailers_goes_out(new_engine):
    """A body of unknown length is chunked and may have trailers."""
    engine = new_engine()
    engine.start(request_head("POST", "/", b"a.test", None, body_length=None, has_body=True, keep_alive=True))

    assert engine.send_data(b"ab") + engine.end_request([(b"X", b"1")]) == b"2\r\nab\r\n0\r\nX: 1\r\n\r\n"
    assert engine.request_complete


# -- Bytes nobody asked for


@pytest.mark.parametrize("tail", [b"\n", b"\r\n", b"x", HELLO, CHUNKED + b"2\r\nhi\r\n0\r\nA: 1\r\n\r\n", HELLO * 2])
@pytest.mark.parametrize("trailers", [b"", b"X: 1\r\n"])
def test_tail_after_a_chunked_body_is_none_of_it(engine_after, tail, trailers):
    """Whatever stands behind the end of a chunked body, body and trailers are those of the response."""
    engine = engine_after()

    sink = receive(engine, [CHUNKED + b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n" + tail])

    assert sink.body == b"hello"
    assert sink.ends == [Headers([(b"X", b"1")]) if trailers else None]
    assert engine.has_leftover
    assert not engine.reusable()


def test_bytes_on_an_idle_connection_are_refused(engine_after):
    """What comes between a response and the next request is an error and spoils the connection."""
    engine = engine_after()
    sink = receive(engine, [HELLO])
    engine.next_cycle()

    with pytest.raises(RemoteProtocolError, match="unsolicited bytes"):
        engine.receive_data(HELLO, sink)
    assert engine.has_leftover
    assert not engine.reusable()
    assert len(sink.heads) == 1


def test_bytes_after_a_response_in_a_record_of_their_own_are_refused(engine_after):
    """What follows a complete response is an error and spoils the connection; the response stands."""
    engine = engine_after()
    sink = receive(engine, [HELLO])

    with pytest.raises(RemoteProtocolError, match="unsolicited bytes"):
        engine.receive_data(b"\r\n", sink)
    assert engine.response_complete
    assert not engine.reusable()


def test_bytes_before_the_first_request_are_refused(new_engine):
    """A server does not speak first."""
    engine = new_engine()

    with pytest.raises(RemoteProtocolError, match="unsolicited bytes") as caught:
        engine.receive_data(b"\x1b[2J" * 1_000, Recorder())
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_no_bytes_are_nothing(engine_after):
    """An empty piece is no data and no end."""
    engine = engine_after()

    sink = receive(engine, [b"", HELLO, b""])

    assert engine.reusable()
    assert sink.pieces == [b"hello"]


# -- 1xx


def test_informational_heads_come_before_the_response(engine_after, cut):
    """Each 1xx head is handed up, then the final response."""
    raw = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 102 Processing\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + HELLO
    )
    engine = engine_after()

    sink = receive(engine, cut(raw))

    assert [head.status for head in sink.informational] == [100, 102, 103]
    assert sink.informational[2].headers["link"] == "</a>"
    assert sink.body == b"hello"
    assert engine.reusable()


def test_informational_heads_are_limited(engine_after, cut):
    """More 1xx heads than `max_informational` are an error; the count starts anew with each request."""
    engine = engine_after(max_informational=2)
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"

    for _ in range(2):
        receive(engine, cut(early * 2 + HELLO))
        engine.next_cycle()
        ask(engine)

    with pytest.raises(RemoteProtocolError, match="max_informational"):
        receive(engine, cut(early * 3))
    assert not engine.reusable()


def test_switch_nobody_asked_for_is_refused(engine_after, cut):
    """A 101 without a request for it ends the connection."""
    engine = engine_after()
    with pytest.raises(RemoteProtocolError, match="nobody asked for"):
        receive(engine, cut(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"))
    assert engine.switched is None


# -- Other protocols


@pytest.fixture
def proposing(new_engine):
    """Make an engine that has sent the head of a request for another protocol."""

    def proposing(protocols: str = "websocket", method: str = "GET", **body: bool) -> HTTP1Engine:
        engine = new_engine()
        headers = {"Upgrade": protocols, "Connection": "upgrade"}
        framing = {"body_length": None, "has_body": False, **body}
        engine.start(request_head(method, "/", b"a.test", headers, keep_alive=True, **framing))
        return engine

    return proposing


def switching(protocol="websocket"):
    return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: %b\r\nConnection: Upgrade\r\n\r\n" % protocol.encode()


@pytest.mark.parametrize("rest", [b"", b"x", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_switch_that_was_asked_for(proposing, cut, rest):
    """A 101 to a proposal ends HTTP; what follows its head is kept whole, whatever it looks like."""
    engine = proposing()
    engine.end_request()

    sink = receive(engine, cut(b"HTTP/1.1 103 Early Hints\r\n\r\n" + switching() + rest))

    assert [head.status for head in sink.informational] == [103]
    assert [(head.status, head.headers["upgrade"]) for head in sink.switches] == [(101, "websocket")]
    assert engine.switched == rest
    assert not sink.heads
    assert not engine.reusable()


@pytest.mark.parametrize(
    ("offered", "chosen"), [("a/1, b", "B/2"), ("a, b", "b, a"), ("WebSocket", "websocket"), ("h2c", "H2C")]
)
def test_switch_to_what_was_offered(proposing, offered, chosen):
    """Names are compared without regard to case and version; several may be chosen, one upon the other."""
    engine = proposing(offered)
    engine.end_request()

    assert receive(engine, [switching(chosen)]).switches


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (switching("h2c"), 'switched protocols .101. to "h2c", which nobody asked for'),
        (switching("websocket, h2c"), "nobody asked for"),
        (switching(""), "without saying to which|malformed"),
        (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\n\r\n", "without saying to which|malformed"),
    ],
)
def test_switch_to_what_was_not_offered(proposing, answer, text):
    """RFC 9110, 7.8: a server must not switch to a protocol that the request did not name."""
    engine = proposing()
    engine.end_request()

    with pytest.raises(RemoteProtocolError, match=text):
        receive(engine, [answer])
    assert engine.switched is None


def test_switch_before_the_end_of_the_request(proposing):
    """Before it has the whole request, a server can switch nothing."""
    engine = proposing(method="POST", has_body=True)
    engine.send_data(b"abc")

    with pytest.raises(RemoteProtocolError, match="before it had the whole request"):
        receive(engine, [switching()])


def test_proposal_that_is_declined(proposing, cut):
    """Any other answer is an ordinary response, and the connection stays."""
    engine = proposing()
    engine.end_request()

    sink = receive(engine, cut(HELLO))

    assert (sink.body, sink.switches) == (b"hello", [])
    assert engine.reusable()


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("status", [b"200", b"204", b"299"])
def test_tunnel_that_is_opened(engine_after, cut, framing, status):
    """A 2xx to CONNECT ends HTTP whatever its framing fields say (RFC 9110, 9.3.6)."""
    engine = engine_after("CONNECT")

    sink = receive(engine, cut(b"HTTP/1.1 %b Fine\r\n%b\r\nhello" % (status, framing)))

    assert [head.status for head in sink.switches] == [int(status)]
    assert engine.switched == b"hello"
    assert not engine.reusable()


def test_tunnel_that_is_refused(engine_after, cut):
    """Any other answer to CONNECT is a response with a body."""
    engine = engine_after("CONNECT")

    sink = receive(engine, cut(b"HTTP/1.1 407 No\r\nContent-Length: 5\r\n\r\nhello"))

    assert (sink.body, sink.switches) == (b"hello", [])
    assert engine.reusable()


# -- The end of the connection


def test_body_may_end_with_the_connection(engine_after, cut):
    """Without a length the body ends at a close in good order; the connection is gone."""
    engine = engine_after()

    sink = receive(engine, cut(OK + b"\r\nhel" + b"lo"), eof=True)

    assert sink.body == b"hello"
    assert sink.ends == [None]
    assert engine.response_complete
    assert not engine.reusable()


def test_body_that_ends_with_the_connection_may_be_empty(engine_after):
    """A response without a length and without a body is complete at the close."""
    assert receive(engine_after(), [OK + b"\r\n"], eof=True).ends == [None]


TRUNCATED = {
    "nothing": (b"", "before it sent a response"),
    "head": (b"HTTP/1.1 20", "head: 11 bytes came"),
    "head of a second": (b"HTTP/1.1 103 Early\r\n\r\nHTT", "head: 3 bytes came"),
    "only 1xx": (b"HTTP/1.1 103 Early\r\n\r\n", "before it sent a response"),
    "length": (HELLO[:-2], "3 bytes of 5 came"),
    "length, no byte": (HELLO[:-5], "0 bytes of 5 came"),
    "between chunks": (CHUNKED + b"2\r\nhi\r\n", "2 bytes came, more chunks"),
    "in a chunk": (CHUNKED + b"4\r\nhi", "2 bytes came, more chunks"),
    "in trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nX: 1\r\n", "2 bytes came, more chunks"),
}


@pytest.mark.parametrize("clean", [True, False], ids=["close_notify", "cut"])
@pytest.mark.parametrize("case", TRUNCATED)
def test_response_cut_short_is_an_error(engine_after, cut, case, clean):
    """A response that is not complete at the end of the connection says how much came and how much was due."""
    raw, message = TRUNCATED[case]
    engine = engine_after()

    with pytest.raises(ConnectionLost, match=message) as caught:
        receive(engine, cut(raw), eof=clean)
    assert caught.value.code == "ECONNRESET"
    assert not engine.response_complete
    assert not engine.reusable()


def test_truncation_is_counted_in_bytes_of_its_own_response(engine_after):
    """
    The bytes of earlier responses do not count.
    """
    engine = engine_after()
    receive(engine, [HELLO])
    engine.next_cycle()
    ask(engine)

    with pytest.raises(ConnectionLost, match="3 bytes of 5 came"):
        receive(engine, [HELLO[:-2]], eof=True)


def test_end_without_close_notify_may_be_a_truncation(engine_after, cut):
    """A body that ends with the connection is only complete if TLS was closed in good order."""
    engine = engine_after()

    with pytest.raises(ConnectionLost, match=r"without close_notify.* 3 bytes came"):
        receive(engine, cut(OK + b"\r\nabc"), eof=False)
    assert not engine.response_complete


@pytest.mark.parametrize("clean", [True, False])
def test_end_of_an_idle_connection_is_no_error(new_engine, engine_after, clean):
    """With nothing in flight the end says nothing, except that the connection is gone."""
    engine = engine_after()
    sink = receive(engine, [HELLO], eof=clean)

    assert sink.ends == [None]
    assert engine.response_complete
    assert not engine.reusable()

    new_engine().receive_eof(clean, sink)
    assert len(sink.ends) == 1


def test_lost_connection_stays_lost(engine_after):
    """After the end of the input neither bytes nor another end change anything."""
    engine = engine_after()
    sink = Recorder()
    with pytest.raises(ConnectionLost):
        engine.receive_eof(True, sink)

    engine.receive_eof(True, sink)

    with pytest.raises(RemoteProtocolError):
        engine.receive_data(HELLO, sink)
    assert sink.heads == []


# -- Peers that break the protocol


MALFORMED = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.0\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "another protocol": b"RTSP/1.0 200 OK\r\n\r\n",
    "version 2": b"HTTP/2.0 200 OK\r\n\r\n",
    "version 1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "version 1.12": b"HTTP/1.12 200 OK\r\n\r\n",
    "no digits": b"HTTP/1.x 200 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "empty line first": b"\r\n" + HELLO,
    "NUL in the reason": b"HTTP/1.1 200 O\0K\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare LF in one line": OK + b"A: 1\nContent-Length: 0\r\n\r\n",
    "bare CR": OK + b"A: 1\rContent-Length: 0\r\n\r\n",
    "NUL in a value": OK + b"A: 1\0\r\n\r\n",
    "folded first line": OK + b" A: 1\r\n\r\n",
    "space before the colon": OK + b"Content-Length : 0\r\n\r\n",
    "space in a name": OK + b"Content Length: 0\r\n\r\n",
    "no colon": OK + b"Content-Length\r\n\r\n",
    "no name": OK + b": 1\r\n\r\n",
    "lengths differ": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "lengths in a list": OK + b"Content-Length: 5, 6\r\n\r\nhello",
    "length with a sign": OK + b"Content-Length: +5\r\n\r\nhello",
    "negative length": OK + b"Content-Length: -5\r\n\r\nhello",
    "length in hex": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "empty length": OK + b"Content-Length:\r\n\r\nhello",
    "length of twenty digits": OK + b"Content-Length: 18446744073709551615\r\n\r\nhello",
    "length of many zeros": OK + b"Content-Length: 00000000000000000005\r\n\r\nhello",
    "length without end": OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nhello",
    "length and coding": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "coding and length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": OK + b"Transfer-Encoding: gzip\r\n\r\nx",
    "coding after chunked": OK + b"Transfer-Encoding: chunked, identity\r\n\r\nx",
    "coding before chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\nx",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "size not hex": CHUNKED + b"xyz\r\n",
    "size with a prefix": CHUNKED + b"0x5\r\nhello\r\n",
    "size with a sign": CHUNKED + b"+5\r\nhello\r\n",
    "negative size": CHUNKED + b"-5\r\nhello\r\n",
    "empty size": CHUNKED + b"\r\nhello\r\n",
    "size without end": CHUNKED + b"f" * 30 + b"\r\n",
    "chunk longer than its size": CHUNKED + b"2\r\nhello\r\n",
    "bare LF after a size": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "bare LF after a chunk": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "bare LF in an extension": CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "malformed trailer": CHUNKED + b"0\r\nno colon\r\n\r\n",
    "length in trailers": CHUNKED + b"0\r\nContent-Length: 0\r\n\r\n",
    "coding in trailers": CHUNKED + b"0\r\ntransfer-encoding: chunked\r\n\r\n",
    "unknown coding of a 1xx": b"HTTP/1.1 103 Early\r\nTransfer-Encoding: gzip\r\n\r\n" + HELLO,
    "vertical tab in the reason": b"HTTP/1.1 200 O\x0bK\r\n\r\n",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_response_is_an_error(engine_after, cut, case):
    """Ambiguity is an error: one of ours, printable, and the connection goes."""
    engine = engine_after()
    sink = Recorder()

    with pytest.raises(RemoteProtocolError) as caught:
        feed(engine, cut(MALFORMED[case]), sink)

    assert str(caught.value).isprintable()
    assert sink.ends == []
    assert not engine.response_complete
    assert not engine.reusable()
    with pytest.raises(RemoteProtocolError):
        engine.receive_data(HELLO, sink)


@pytest.mark.parametrize("case", MALFORMED)
def test_error_survives_the_end_of_the_connection(engine_after, case):
    """A peer that breaks the protocol and goes away is reported once."""
    engine = engine_after()
    with pytest.raises(RequestError):
        receive(engine, [MALFORMED[case]])

    engine.receive_eof(True, Recorder())


def test_body_before_an_error_is_handed_up(engine_after, cut):
    """Chunks before a malformed one reach the sink, however the bytes are cut."""
    sink = Recorder()

    with pytest.raises(RemoteProtocolError):
        feed(engine_after(), cut(CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\nxyz\r\n"), sink)

    assert sink.body == b"hello"


# -- Limits


ENDLESS = {
    "status line": b"HTTP/1.1 200 " + b"x" * 1_000_000,
    "header": OK + b"A: " + b"x" * 1_000_000,
    "name": OK + b"x" * 1_000_000,
    "headers": OK + b"A: 1\r\n" * 100_000,
    "folded lines": OK + b"A: 1\r\n" + b" b\r\n" * 100_000,
}


@pytest.mark.parametrize("size", [16_384, 1_000])
@pytest.mark.parametrize("case", ENDLESS)
def test_endless_head_is_refused_at_the_cap(engine_after, case, size):
    """A head is given up as soon as it is longer than `max_head_size`, and no more of it is kept."""
    sink = Recorder()
    data = ENDLESS[case]
    pieces = iter([data[at : at + size] for at in range(0, len(data), size)])

    with pytest.raises(RemoteProtocolError, match="max_head_size") as caught:
        feed(engine_after(max_head_size=65_536), pieces, sink)

    assert len(list(pieces)) == len(range(0, len(data), size)) - 65_536 // size - 1
    assert caught.value.code == "HPE_HEADER_OVERFLOW"
    assert len(str(caught.value)) < 500
    assert sink.heads == []


def test_head_of_just_the_allowed_size_is_taken(engine_after, cut):
    """The cap is exact, whether the head comes at once or in pieces."""
    raw = OK + b"A: " + b"x" * 50 + b"\r\nContent-Length: 0\r\n\r\n"

    assert receive(engine_after(max_head_size=len(raw)), cut(raw)).ends == [None]
    with pytest.raises(RemoteProtocolError, match="max_head_size"):
        receive(engine_after(max_head_size=len(raw) - 1), cut(raw))


def test_large_head_may_come_with_its_body(engine_after):
    """Only the head counts against its cap, not the body that came along."""
    raw = OK + b"Content-Length: 5000\r\n\r\n" + b"x" * 5_000

    assert receive(engine_after(max_head_size=100), [raw]).body == b"x" * 5_000


FRAMING = {
    "one extension": b"5;" + b"x" * 100_000 + b"\r\nhello\r\n",
    "endless extension": b"5;" + b"x" * 100_000,
    "many extensions": (b"1;" + b"x" * 50 + b"\r\na\r\n") * 3_000,
    "one trailer": b"0\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
    "many trailers": b"0\r\n" + b"A: 1\r\n" * 20_000,
}


@pytest.mark.parametrize("size", [1_000_000, 10_000])
@pytest.mark.parametrize("case", FRAMING)
def test_framing_of_a_chunked_body_is_capped(engine_after, case, size):
    """Extensions and trailers together count against `max_head_size`."""
    engine = engine_after()
    sink = Recorder()
    raw = CHUNKED + FRAMING[case]

    with pytest.raises(RemoteProtocolError):
        feed(engine, [raw[at : at + size] for at in range(0, len(raw), size)], sink)

    assert sink.ends == []
    assert not engine.reusable()


def test_what_follows_a_chunked_body_does_not_count_as_its_framing(engine_after):
    """
    Bytes behind the end spoil the connection, not the response.
    """
    raw = CHUNKED + b"1;" + b"x" * 600 + b"\r\na\r\n0\r\n\r\n"

    assert receive(engine_after(max_head_size=1_000), [raw + b"x" * 1_000]).ends == [None]


@pytest.mark.parametrize("size", [1_000_000, 10_000])
def test_many_small_chunks_are_no_excess(engine_after, size):
    """A server that sends byte by byte is tedious, not hostile."""
    raw = CHUNKED + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n"

    sink = receive(engine_after(max_head_size=100), [raw[at : at + size] for at in range(0, len(raw), size)])

    assert sink.body == b"a" * 20_000
    assert sink.ends == [None]


@pytest.mark.parametrize(
    "raw", [b"\x1b[31m" * 1_000, OK + b"\x1b[31m\xff" * 1_000 + b"\r\n\r\n", CHUNKED + b"\x1b\xff" * 400 + b"\r\n"]
)
def test_text_of_the_peer_is_shown_escaped_and_bounded(engine_after, raw):
    """What a peer sends reaches the error message as short printable ASCII."""
    with pytest.raises(RemoteProtocolError) as caught:
        receive(engine_after(), [raw])

    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 1_000


def test_next_cycle_is_for_reusable_connections_only(engine_after):
    """Starting over on a connection that is not reusable is a mistake of ours, caught before anything is sent."""
    engine = engine_after()

    with pytest.raises(AssertionError):
        engine.next_cycle()
    with pytest.raises(AssertionError):
        ask(engine)
