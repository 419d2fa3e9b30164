"""
The demo routes, called as any ASGI server would call them: no sockets.
"""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tlsagent.testing import app


class Exchange:
    """The messages between a server and the application for one request."""

    def __init__(self, path: str, *received, headers=(), extensions=None) -> None:
        self.scope = {"type": "http", "path": path, "headers": list(headers), "extensions": extensions}
        self.received = list(received) or [{"type": "http.request", "body": b"", "more_body": False}]
        self.sent: list[dict] = []

    async def receive(self):
        return self.received.pop(0)

    async def send(self, message):
        self.sent.append(message)

    def run(self) -> Exchange:
        asyncio.run(app(self.scope, self.receive, self.send))
        return self

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def pieces(self) -> list[bytes]:
        return [m["body"] for m in self.sent if m["type"] == "http.response.body"]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def piece(body: bytes, *, more: bool):
    return {"type": "http.request", "body": body, "more_body": more}


def test_hello_is_text_of_known_length():
    """/hello answers "Hello, world" in one piece with its length."""
    exchange = Exchange("/hello").run()

    assert (exchange.status, exchange.pieces) == (200, [b"Hello, world"])
    assert exchange.headers == {b"content-type": b"text/plain; charset=utf-8", b"content-length": b"12"}


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 200_000])
def test_bytes_are_as_many_as_asked_for(size):
    """/bytes/N announces and sends exactly N bytes, in pieces of bounded size, and then ends the body."""
    exchange = Exchange(f"/bytes/{size}").run()

    assert exchange.headers[b"content-length"] == str(size).encode()
    assert len(exchange.body) == size
    assert max(map(len, exchange.pieces)) <= 65_536
    assert [m["more_body"] for m in exchange.sent[1:]].count(False) == 1


def test_echo_sends_each_piece_back_as_it_comes():
    """/echo answers with the body's pieces and its Content-Type, and does not wait for the end."""
    exchange = Exchange(
        "/echo", piece(b"one", more=True), piece(b"two", more=False), headers=[(b"content-type", b"text/x-test")]
    ).run()

    assert exchange.pieces == [b"one", b"two"]
    assert exchange.headers == {b"content-type": b"text/x-test"}


def test_echo_asks_for_the_body_before_it_answers():
    """/echo starts its response after the first piece, so that a client waiting for 100 (Continue) gets one."""
    exchange = Exchange("/echo", piece(b"x", more=False))
    at_start = []

    async def send(message):
        at_start.append(len(exchange.received))

    asyncio.run(app(exchange.scope, exchange.receive, send))

    assert at_start[0] == 0


def test_echo_returns_announced_trailers():
    """/echo sends the trailers of a request that announced some."""
    last = {**piece(b"x", more=False), "trailers": [(b"x-sum", b"1")]}
    exchange = Exchange("/echo", last, headers=[(b"trailer", b"x-sum")]).run()

    assert exchange.sent[0]["trailers"] is True
    assert exchange.sent[-1] == {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]}


def test_echo_stops_when_the_client_leaves():
    """/echo ends without ending its body when the client disconnects in the middle."""
    exchange = Exchange("/echo", piece(b"one", more=True), {"type": "http.disconnect"}).run()

    assert [m["more_body"] for m in exchange.sent[1:]] == [True]


def test_delay_answers_after_that_time():
    """/delay/S answers no earlier than S seconds later."""
    before = time.monotonic()
    exchange = Exchange("/delay/0.05").run()

    assert time.monotonic() - before >= 0.05
    assert exchange.body == b"Hello, world"


@pytest.mark.parametrize("status", [200, 404, 503, 599])
def test_status_is_the_one_asked_for(status):
    """/status/N answers that status with an empty body of known length."""
    exchange = Exchange(f"/status/{status}").run()

    assert (exchange.status, exchange.body, exchange.headers[b"content-length"]) == (status, b"", b"0")


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_no_length(status):
    """/status/204 and /status/304 carry no Content-Length (RFC 9110 8.6)."""
    assert b"content-length" not in Exchange(f"/status/{status}").run().headers


@pytest.mark.parametrize(
    "path",
    [
        "/status/199",
        "/status/600",
        "/status/x",
        "/status/",
        "/bytes/-1",
        "/bytes/1e3",
        "/bytes/٣",
        "/delay/x",
        "/delay/-1",
        "/delay/nan",
    ],
)
def test_a_bad_argument_is_the_clients_fault(path):
    """An argument that is no number in range gets 400 and a sentence."""
    exchange = Exchange(path).run()

    assert exchange.status == 400
    assert exchange.body.startswith(b"expected")


def test_an_unknown_path_names_the_known_ones():
    """A path that is no route gets 404 and the list of routes."""
    exchange = Exchange("/nowhere").run()

    assert exchange.status == 404
    assert b"/hello" in exchange.body


def test_chunked_has_several_pieces_and_no_length():
    """/chunked sends its body in pieces without announcing a length."""
    exchange = Exchange("/chunked").run()

    assert exchange.pieces == [b"one\n", b"two\n", b"three\n", b""]
    assert b"content-length" not in exchange.headers


def test_trailers_follow_the_body():
    """/trailers announces a trailer field and sends it after the body."""
    exchange = Exchange("/trailers").run()

    assert exchange.sent[0]["trailers"] is True
    assert exchange.headers[b"trailer"] == b"x-checksum"
    assert exchange.sent[-1]["headers"] == [(b"x-checksum", b"12")]


def test_close_says_so():
    """/close asks the server to end the connection."""
    assert Exchange("/close").run().headers[b"connection"] == b"close"


def test_headers_come_back_in_order_with_repeats():
    """/headers lists the request's fields as pairs."""
    exchange = Exchange("/headers", headers=[(b"a", b"1"), (b"b", b"\xe9"), (b"a", b"2")]).run()

    assert json.loads(exchange.body) == [["a", "1"], ["b", "é"], ["a", "2"]]


def test_connection_shows_what_the_server_put_into_the_scope():
    """/connection merges what our server says of connection and request; another server's scope has neither."""
    extensions = {"tlsagent.connection": {"id": 7}, "tlsagent.request": {"number": 2}}

    assert json.loads(Exchange("/connection", extensions=extensions).run().body) == {"id": 7, "request_number": 2}
    assert json.loads(Exchange("/connection").run().body) == {"request_number": None}


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_upgrade_echoes_what_comes_after_the_switch(method):
    """/upgrade switches to the first protocol that was proposed, CONNECT to a tunnel; then bytes are echoed."""
    told = [piece(b"", more=False)] if method == "GET" else []
    told += [piece(b"one", more=True), piece(b"two", more=True), {"type": "http.disconnect"}]
    extensions = {"tlsagent.upgrade": {}}
    exchange = Exchange("/upgrade", *told, headers=[(b"upgrade", b"x, y")], extensions=extensions)
    exchange.scope["method"] = method
    if method == "CONNECT":
        exchange.scope["path"] = "a.test:443"
    exchange.run()

    assert exchange.status == (101 if method == "GET" else 200)
    assert exchange.headers.get(b"upgrade") == (b"x" if method == "GET" else None)
    assert exchange.pieces == [b"one", b"two"]


def test_upgrade_needs_a_proposal():
    """/upgrade says what to propose where nothing was, or where the server cannot switch."""
    exchange = Exchange("/upgrade").run()

    assert (exchange.status, exchange.headers[b"upgrade"]) == (426, b"echo")


def test_lifespan_is_acknowledged():
    """A server that insists on the lifespan protocol gets its two answers."""
    exchange = Exchange("", {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    exchange.scope = {"type": "lifespan"}
    exchange.run()

    assert [m["type"] for m in exchange.sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_other_protocols_are_refused():
    """A scope that is neither http nor lifespan is an error, as ASGI demands."""
    exchange = Exchange("/hello")
    exchange.scope["type"] = "websocket"

    with pytest.raises(NotImplementedError, match="websocket"):
        exchange.run()
