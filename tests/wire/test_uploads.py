"""Bodies that wait for a 100 (Continue), uploads that end early, trailers, and what comes before a response."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from wire_peer import OK, PeerConnection, serve, wait_until

from tlsagent import (
    AsyncAgent,
    ConnectionLost,
    Http1Options,
    LocalProtocolError,
    RemoteProtocolError,
    SendTimeout,
    Timeouts,
    TotalTimeout,
)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PATIENT = Http1Options(expect_continue_wait=50)
BODIES: dict[str, Any] = {
    "bytes": lambda: b"short body",
    "long bytes": lambda: b"l" * 300_000,
    "file": lambda: io.BytesIO(b"f" * 100_000),
    "iterator": lambda: iter([b"one", b"two" * 50_000]),
}


def is_silent(connection: PeerConnection, seconds: float = 0.1) -> bool:
    """Whether nothing comes from the client for a moment."""
    connection.sock.settimeout(seconds)
    try:
        connection.recv()
    except TimeoutError:
        return True
    finally:
        connection.sock.settimeout(10)
    return False


def recv_all(connection: PeerConnection, head: bytes) -> bytes:
    """Return the body that follows a head, whatever its framing."""
    if b"chunked" not in head.lower():
        return connection.recv_exactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    body = b""
    while True:
        line = b""
        while not line.endswith(b"\r\n"):
            line += connection.recv_exactly(1)
        size = int(line, 16)
        body += connection.recv_exactly(size + 2)[:size]
        if not size:
            return body


def swallow(sock: socket.socket) -> None:
    """Read below TLS until the end."""
    with contextlib.suppress(OSError):
        while sock.recv(262_144):
            pass


class Endless:
    """A body without end, that notes whether it was closed."""

    def __init__(self, piece: bytes = b"x" * 10_000) -> None:
        self._piece = piece
        self.begun = False
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        self.begun = True
        try:
            while True:
                yield self._piece
        finally:
            self.closed.set()


# --- Expect: 100-continue ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", BODIES)
def test_body_follows_the_100(open_agent, open_peer, body):
    """
    The head goes alone, with the expectation; the body follows the 100, whole, and the connection is used again.
    """
    heads: list[bytes] = []
    bodies: list[bytes] = []

    def script(connection: PeerConnection) -> None:
        heads.append(connection.recv_head())
        assert is_silent(connection)
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
        assert is_silent(connection)
        connection.send(CONTINUE)
        bodies.append(recv_all(connection, heads[0]))
        connection.send(OK)
        serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, http1=PATIENT)

    response = agent.request("POST", peer.url, content=BODIES[body](), expect_continue=True, timeouts=20)

    assert response.content == b"ok"
    assert [head.status for head in response.informational] == [103, 100]
    assert heads[0].lower().count(b"expect: 100-continue") == 1
    content = BODIES[body]()
    assert bodies == [content if isinstance(content, bytes) else b"".join(content)]
    assert agent.request("GET", peer.url).reused


@pytest.mark.parametrize("wait", [0.3, 0])
def test_server_that_does_not_answer_gets_the_body_anyway(open_agent, open_peer, wait):
    """
    After `expect_continue_wait` the body is sent without a 100; with 0 it follows the head at once.
    """
    waited: list[float] = []

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        begun = time.monotonic()
        assert connection.recv_exactly(5) == b"hello"
        waited.append(time.monotonic() - begun)
        connection.send(OK)
        serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, http1=Http1Options(expect_continue_wait=wait))

    response = agent.request("POST", peer.url, content=b"hello", expect_continue=True)

    assert (response.content, response.informational) == (b"ok", ())
    assert wait * 0.9 <= waited[0] < wait + 5
    assert agent.request("GET", peer.url).reused


@pytest.mark.parametrize("status", [b"200 OK", b"417 Expectation Failed", b"401 Unauthorized"])
def test_final_response_in_place_of_the_100(open_agent, open_peer, status):
    """
    A final response comes to the caller at once; the body is neither asked for nor sent, and the connection goes.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_head()
        connection.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nno")
        left.append(connection.recv())

    left: list[bytes] = []
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, http1=PATIENT, max_sockets=1)
    body = Endless()

    response = agent.request("POST", peer.url, content=body, expect_continue=True, timeouts=10)

    assert (response.status, response.content) == (int(status[:3]), b"no")
    assert not body.begun
    assert wait_until(lambda: left == [b""])  # close_notify, and not a byte of the body before it
    assert not agent.request("GET", peer.url, timeouts=5).reused
    assert agent.stats().closed == {"early_response": 1}


def test_embedded_server_asks_for_the_body(open_agent, server):
    """
    The embedded server says 100 when its application wants the body, and answers without it if it does not.
    """
    agent = open_agent(ca=server.ca_pem, http1=PATIENT)

    wanted = agent.request("POST", server.url + "/echo", content=b"abc", expect_continue=True)
    unwanted = agent.request("POST", server.url + "/status/417", content=b"abc", expect_continue=True)

    assert (wanted.content, [head.status for head in wanted.informational]) == (b"abc", [100])
    assert (unwanted.status, unwanted.informational) == (417, ())
    assert [request.body for request in server.connections[0].requests] == [b"abc", b""]
    assert unwanted.reused


def test_header_of_the_caller_says_the_same(open_agent, server):
    """
    An Expect field among the headers is the same as `expect_continue`.
    """
    agent = open_agent(ca=server.ca_pem, http1=PATIENT)

    response = agent.request("POST", server.url + "/echo", content=b"abc", headers={"expect": "100-continue"})

    assert (response.content, len(response.informational)) == (b"abc", 1)


def test_streamed_response_to_a_body_that_waited(open_agent, server):
    """
    `stream` waits for the 100 as `request` does.
    """
    agent = open_agent(ca=server.ca_pem, http1=PATIENT)

    with agent.stream("POST", server.url + "/echo", content=b"z" * 1_000_000, expect_continue=True) as response:
        assert len(response.informational) == 1
        assert response.read() == b"z" * 1_000_000


@pytest.mark.parametrize("content", [None, b""])
def test_expectation_needs_content(open_agent, server, content):
    """
    RFC 9110, 10.1.1: a request without content must not carry the expectation; nothing is opened for it.
    """
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(LocalProtocolError, match="expect"):
        agent.request("POST", server.url + "/echo", content=content, expect_continue=True)

    assert server.stats.connections == 0


def test_total_ends_the_wait(open_agent, open_peer):
    """
    `total` counts while the body waits, and the slot is free afterwards.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_head()
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, http1=PATIENT, max_sockets=1)

    with pytest.raises(TotalTimeout):
        agent.request("POST", peer.url, content=b"abc", expect_continue=True, timeouts=0.3)

    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


@pytest.mark.parametrize(("method", "attempts"), [("PUT", 2), ("POST", None)])
def test_connection_that_ends_while_the_body_waits(open_agent, open_peer, method, attempts):
    """
    The rule for retries is the usual one: on a reused connection, for an idempotent method, and once.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            connection.recv_request()
            connection.send(OK)
            connection.recv_head()
            connection.close_notify()
            return
        connection.recv_head()
        connection.send(CONTINUE)
        assert connection.recv_exactly(3) == b"abc"
        connection.send(OK)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, http1=PATIENT)
    agent.request("GET", peer.url)

    if attempts is None:
        with pytest.raises(ConnectionLost):
            agent.request(method, peer.url, content=b"abc", expect_continue=True)
        return
    assert agent.request(method, peer.url, content=b"abc", expect_continue=True).attempts == attempts


def test_task_cancelled_while_the_body_waits(open_async_agent, open_peer):
    """
    A cancelled request gives its slot on, and the peer sees the end of the connection.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_head()
        asked.set()
        connection.wait_gone()

    asked = threading.Event()
    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem, http1=PATIENT, max_sockets=1)
    pending = agent.submit("POST", peer.url, content=b"abc", expect_continue=True)
    assert asked.wait(5)

    pending.cancel()

    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"
    assert wait_until(lambda: peer.connections[0].ended)


# --- Responses before the end of the upload ---------------------------------------------------------------------------

TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\n"


@pytest.mark.parametrize("reads", ["reads on", "reads no more"])
@pytest.mark.parametrize("piece", [10, 10_000, 1_000_000])
def test_error_stops_an_upload(open_agent, open_peer, reads, piece):
    """
    With the head of an error the upload ends, and its generator is closed, though the error's own body is still to
    come, and whether or not the peer takes more.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_head()
        connection.recv()
        connection.send(TOO_LARGE)
        if reads == "reads on":
            threading.Thread(target=swallow, args=(connection.sock,), daemon=True).start()
        assert body.closed.wait(10)
        connection.send(b"big")
        connection.peer.leave.wait(10)

    body = Endless(b"x" * piece)
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    with agent.stream("POST", peer.url, content=body, timeouts=20) as response:
        assert body.closed.is_set()
        assert response.status == 413
        assert response.read() == b"big"

    assert not agent.request("GET", peer.url, timeouts=5).reused
    assert agent.stats().closed == {"early_response": 1}


def test_complete_success_stops_an_upload(open_agent, open_peer):
    """
    A server may answer as it reads; once its whole answer is here, nobody waits for the rest of the body.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_head()
        connection.recv()
        connection.send(OK)
        connection.wait_gone()

    body = Endless()
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    response = agent.request("POST", peer.url, content=body, timeouts=20)

    assert (response.status, response.content) == (200, b"ok")
    assert body.closed.is_set()
    assert not agent.request("GET", peer.url, timeouts=5).reused


def test_response_before_a_broken_pipe_is_delivered(open_agent, open_peer):
    """
    A peer that has answered, and reset the connection before the upload was over, has answered.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_head()
        connection.send(TOO_LARGE + b"big")
        connection.reset()
        gone.set()

    def content() -> Iterator[bytes]:
        yield b"first"
        assert gone.wait(5)  # nothing of the answer has been read by now: the client is here
        yield from itertools.repeat(b"x" * 65_536)

    gone = threading.Event()
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    response = agent.request("POST", peer.url, content=content(), timeouts=10)

    assert (response.status, response.content) == (413, b"big")
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


def test_half_a_response_before_a_broken_pipe_is_none(open_agent, open_peer):
    """
    Where the answer is not whole, the failure is what the caller is told.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbi")
        connection.reset()
        gone.set()

    def content() -> Iterator[bytes]:
        yield b"first"
        assert gone.wait(5)
        yield from itertools.repeat(b"x" * 65_536)

    gone = threading.Event()
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    with pytest.raises(ConnectionLost):
        agent.request("POST", peer.url, content=content(), timeouts=10)


def test_asynchronous_body_that_stalls_is_stopped_by_an_error(open_async_agent, open_peer):
    """
    A generator that is waiting for something of its own is closed too, and its response delivered.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.recv()
        connection.send(TOO_LARGE)
        assert ended.wait(10)
        connection.send(b"big")
        connection.wait_gone()

    async def content() -> Any:
        try:
            yield b"first"
            await asyncio.sleep(50)
        finally:
            ended.set()

    ended = threading.Event()
    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem)

    assert agent.request("POST", peer.url, content=content(), timeouts=20).content == b"big"


def test_asynchronous_body_is_closed_between_two_pieces(open_async_agent, open_peer):
    """
    A generator that is not waiting is closed as well, by the time the response is delivered.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.recv()
        connection.send(OK)
        connection.wait_gone()

    async def content() -> Any:
        try:
            while True:
                yield b"x" * 65_536
                await asyncio.sleep(0)
        finally:
            ended.append(True)

    ended: list[bool] = []
    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem)

    assert agent.request("POST", peer.url, content=content(), timeouts=20).content == b"ok"
    assert ended == [True]


def test_body_is_closed_when_sending_fails(open_agent, open_peer):
    """
    A timeout closes the caller's generator before it is raised.
    """
    peer = open_peer(lambda connection: connection.peer.leave.wait(10))
    agent = open_agent(ca=peer.ca_pem, timeouts=Timeouts(send=0.2))
    body = Endless(b"x" * 65_536)

    with pytest.raises(SendTimeout):
        agent.request("POST", peer.url, content=body)

    assert body.closed.is_set()


def test_upload_leaves_the_loop_time_for_others(open_async_agent, server):
    """
    A body that is always ready, to a peer that is always reading, does not keep the event loop to itself.
    """

    async def run(agent: AsyncAgent) -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        await agent.request("POST", server.url + "/echo", content=itertools.repeat(b"x" * 8_192, 4_000))
        counting.cancel()
        return turns

    agent = open_async_agent(ca=server.ca_pem)

    assert agent.run(run(agent.agent)) > 400


# --- Trailers and informational responses -----------------------------------------------------------------------------


def test_trailers_go_both_ways(open_agent, server, protocol):
    """
    Trailers follow the body as they are given, in HTTP/2 in lower case and without Connection, Trailer and TE beside
    them; those of the response are apart from its headers.
    """
    agent = open_agent(ca=server.ca_pem)
    headers = {"Trailer": "x-sum, x-more", "TE": "trailers", "Connection": "TE"}

    response = agent.request(
        "POST", server.url + "/echo", content=b"abc", headers=headers, trailers=[("x-sum", "1"), ("X-More", "2")]
    )

    [record] = server.connections[0].requests
    last = "X-More"
    if protocol == "HTTP/2":
        headers = {name.lower(): value for name, value in headers.items() if name != "Connection"}
        last = "x-more"
    assert (record.body, record.trailers) == (b"abc", (("x-sum", "1"), (last, "2")))
    assert set(headers.items()) <= set(record.headers)
    assert response.trailers is not None
    assert response.trailers.items() == [("x-sum", "1"), ("x-more", "2")]
    assert "x-sum" not in response.headers


@pytest.mark.parametrize("name", ["Content-Length", "Host", "Authorization", "If-Match", "Trailer"])
def test_trailer_that_must_not_come_late_is_refused(open_agent, server, name):
    """
    RFC 9110, 6.5.1: refused before a connection is opened.
    """
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(LocalProtocolError, match="trailers") as caught:
        agent.request("POST", server.url + "/echo", content=b"abc", trailers={name: "1"})

    assert caught.value.code == "ERR_HTTP_TRAILER_INVALID"
    assert server.stats.connections == 0


def hints(count: int, then: bytes = OK) -> Any:
    """Return a script that sends early hints before the response."""

    def script(connection: PeerConnection) -> None:
        while True:
            connection.recv_request()
            for number in range(count):
                connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </%d.css>; rel=preload\r\n\r\n" % number)
            connection.send(then)

    return script


def test_early_hints_are_kept(open_agent, open_peer):
    """
    The heads of 1xx responses are in `informational`, in order, and leave the connection usable.
    """
    peer = open_peer(hints(3))
    agent = open_agent(ca=peer.ca_pem)

    for reused in (False, True):
        response = agent.request("GET", peer.url)

        assert [head.status for head in response.informational] == [103] * 3
        assert [head.headers["link"][:7] for head in response.informational] == ["</0.css", "</1.css", "</2.css"]
        assert (response.content, response.reused) == (b"ok", reused)


def test_informational_responses_without_end(open_agent, open_peer):
    """
    Beyond `max_informational` they are an error, and the connection goes.
    """
    peer = open_peer(hints(6, then=b""))
    agent = open_agent(ca=peer.ca_pem, http1=Http1Options(max_informational=5), max_sockets=1)

    with pytest.raises(RemoteProtocolError, match="max_informational"):
        agent.request("GET", peer.url)

    assert agent.stats().active == 0
