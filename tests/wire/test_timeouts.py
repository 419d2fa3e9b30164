"""Every phase has its deadline: the right error, near the limit, and a slot that is free afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from wire_peer import OK, PeerConnection, given_up, hold, serve, targets, tarpit, wait_until

from tlsagent import (
    ConnectTimeout,
    HandshakeTimeout,
    InactivityTimeout,
    PoolTimeout,
    ReadTimeout,
    ResolutionTimeout,
    ResponseTimeout,
    SendTimeout,
    Timeouts,
    TotalTimeout,
)

LIMIT = 0.2
SLACK = 2.0  # a busy machine


@contextlib.contextmanager
def overdue(kind: type[Exception], *phases: str, limit: float = LIMIT) -> Iterator[None]:
    """Expect a timeout of a class, in a phase, at its limit: not before, and not long after."""
    begun = time.monotonic()
    with pytest.raises(kind) as caught:
        yield
    elapsed = time.monotonic() - begun
    error: Any = caught.value
    assert type(error) is kind
    assert error.phase in phases
    assert isinstance(error, TimeoutError)
    assert limit * 0.95 <= elapsed < limit + SLACK
    assert limit * 0.9 <= error.elapsed <= elapsed + 0.05  # a loop's clock may be coarse
    assert error.key


def hang_first(connection: PeerConnection) -> None:
    """Read nothing on the first connection; serve on the others."""
    if connection.number == 1:
        connection.peer.leave.wait(5)
        return
    serve(connection)


def test_queue(open_agent, open_peer):
    """
    A request that waits for a connection longer than `queue` fails; the one that has it is not disturbed.
    """
    go_on = threading.Event()

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        assert go_on.wait(10)
        connection.send(OK)
        serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)
    first = agent.submit("GET", peer.url)
    assert wait_until(lambda: agent.stats().active == 1)

    with overdue(PoolTimeout, "queue"):
        agent.request("GET", peer.url, timeouts=Timeouts(queue=LIMIT))
    go_on.set()

    assert first.result(5).content == b"ok"
    assert agent.stats().waiting == 0
    assert agent.request("GET", peer.url, timeouts=5).reused
    assert len(peer.connections) == 1


def test_lookup_hook_that_hangs(open_async_agent, server):
    """
    A look-up that takes longer than `lookup` fails, and its late answer dials nothing.
    """
    hang = True
    cancelled = threading.Event()

    async def lookup(host: str, family: int) -> list[str]:
        if hang:
            try:
                await asyncio.sleep(30)
            finally:
                cancelled.set()
        return ["127.0.0.1"]

    agent = open_async_agent(ca=server.ca_pem, max_sockets=1, lookup=lookup, timeouts=Timeouts(lookup=LIMIT))

    with overdue(ResolutionTimeout, "lookup"):
        agent.request("GET", server.url + "/hello")
    hang = False

    assert cancelled.is_set()
    assert server.stats.connections == 0
    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


def test_lookup_hook_that_blocks(open_agent, server):
    """
    A hook that blocks cannot be stopped, but what it answers after `lookup` has passed dials nothing.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1, timeouts=Timeouts(lookup=LIMIT))
    slow = {"lookup": lambda _host, _family: time.sleep(1.5 * LIMIT) or ["127.0.0.1"]}

    with overdue(ResolutionTimeout, "lookup"):
        agent.request("GET", server.url + "/hello", options=slow)

    assert server.stats.connections == 0
    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


def test_lookup_hook_with_a_timeout_of_its_own(open_agent, server):
    """
    A timeout that a hook meets in its own work, a request of ours say, is told as that, not as one of the look-up.
    """

    def lookup(_host: str, _family: int) -> list[str]:
        raise TotalTimeout("the directory did not answer")

    agent = open_agent(ca=server.ca_pem, max_sockets=1, lookup=lookup)

    with pytest.raises(TotalTimeout, match="directory"):
        agent.request("GET", server.url + "/hello")


def test_lookup_of_the_system_that_hangs(open_agent, server, monkeypatch):
    """
    A resolver that does not answer holds up its own request only, for `lookup` at most; a late answer dials nothing.
    """
    import socket

    answer = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **keywords: Any) -> Any:
        if host == "localhost":
            answer.wait(10)
        return real(host, *arguments, **keywords)

    agent = open_agent(ca=server.ca_pem, max_sockets=1, timeouts=Timeouts(lookup=LIMIT))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    try:
        with overdue(ResolutionTimeout, "lookup"):
            agent.request("GET", server.url + "/hello")
    finally:
        answer.set()

    assert server.stats.connections == 0
    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200
    assert server.stats.connections == 1


def test_connect(open_agent):
    """
    An address that does not answer fails at `connect`, again at the next request, and is left in peace then.
    """
    with tarpit() as port:
        agent = open_agent(max_sockets=1, timeouts=Timeouts(connect=LIMIT))

        for _ in range(2):
            with overdue(ConnectTimeout, "connect"):
                agent.request("GET", f"https://127.0.0.1:{port}/")

        assert agent.stats().dialling == 0


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("TLSv1.3", "server_hello"),
        ("TLSv1.3", "encrypted_extensions"),
        ("TLSv1.3", "certificate"),
        ("TLSv1.3", "certificate_verify"),
        ("TLSv1.3", "finished"),
        ("TLSv1.2", "server_hello"),
        ("TLSv1.2", "certificate"),
        ("TLSv1.2", "server_key_exchange"),
        ("TLSv1.2", "server_hello_done"),
        ("TLSv1.2", "new_session_ticket"),
        ("TLSv1.2", "finished"),
    ],
)
def test_handshake(open_agent, new_server, version, message):
    """
    A server that falls silent anywhere in the handshake fails the request at `handshake`, and loses the connection.
    """
    with new_server(stall_at=message, max_version=version) as server:
        agent = open_agent(ca=server.ca_pem, max_sockets=1, timeouts=Timeouts(handshake=LIMIT))

        with overdue(HandshakeTimeout, "handshake"):
            agent.request("GET", server.url + "/hello")

        assert server.wait_for(lambda s: s.stats.open_connections == 0)
        server.reconfigure(stall_at=None)
        assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


def test_handshake_that_drips(open_agent, open_peer):
    """
    `handshake` bounds the whole handshake: bytes that trickle in do not prolong it.
    """

    def script(connection: PeerConnection) -> None:
        for byte in b"\x16\x03\x03\x40\x00" + bytes(100):
            connection.sock.sendall(bytes([byte]))
            if connection.peer.leave.wait(0.02):
                return

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem, timeouts=Timeouts(handshake=LIMIT))

    with overdue(HandshakeTimeout, "handshake"):
        agent.request("GET", peer.url)


@pytest.mark.parametrize("body", ["bytes", "iterator"])
def test_send(open_agent, open_peer, body):
    """
    A peer that accepts no byte of the request for `send` loses the connection.
    """
    peer = open_peer(hang_first)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1, timeouts=Timeouts(send=LIMIT))
    agent.preconnect(peer.url)
    content: Any = bytes(64 << 20) if body == "bytes" else itertools.repeat(bytes(65_536))

    begun = time.monotonic()
    with pytest.raises(SendTimeout) as caught:
        agent.request("POST", peer.url, content=content)

    assert caught.value.phase == "send"
    assert caught.value.request_sent
    assert time.monotonic() - begun < LIMIT + SLACK
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


def test_send_counts_from_the_last_progress(open_agent, open_peer):
    """
    A peer that reads slowly, but never stops for `send`, gets the whole request.
    """
    total = 24 << 20

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        left = total
        for step in range(8):
            for _ in range(total // 8 // 65_536):
                left -= len(connection.recv_exactly(65_536))
            if step:
                time.sleep(LIMIT / 2)
        assert left == 0
        connection.send(OK)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, timeouts=Timeouts(send=LIMIT * 3))

    assert agent.request("POST", peer.url, content=bytes(total)).content == b"ok"


def test_response(open_agent, server, protocol):
    """
    A server that takes the request and does not answer within `response` loses the connection, or in HTTP/2 the stream.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1, timeouts=Timeouts(response=LIMIT))
    agent.request("GET", server.url + "/hello")

    with overdue(ResponseTimeout, "wait"):
        agent.request("GET", server.url + "/delay/30")

    assert given_up(server, protocol)
    assert agent.request("GET", server.url + "/hello", timeouts=5).reused == (protocol == "HTTP/2")


def test_response_to_a_body_sent_in_pieces(open_agent, open_peer):
    """
    `response` counts from the end of a body that was sent piece by piece, whatever `send` allows.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        while b"0\r\n\r\n" not in connection.recv():
            pass
        connection.peer.leave.wait(5)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, timeouts=Timeouts(response=LIMIT))

    with overdue(ResponseTimeout, "wait"):
        agent.request("POST", peer.url, content=iter([b"x" * 1_000]))


def _stalls_in_body(connection: PeerConnection) -> None:
    if connection.number > 1:
        serve(connection)
    connection.recv_head()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"some")
    connection.peer.leave.wait(5)


def test_read(open_agent, open_peer):
    """
    A body that stops coming for `read` fails the request.
    """
    peer = open_peer(_stalls_in_body)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1, timeouts=Timeouts(read=LIMIT))

    with overdue(ReadTimeout, "receive"):
        agent.request("GET", peer.url)

    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


def test_read_of_a_stream(open_agent, open_peer):
    """
    A streamed body that stops coming hands out what came, then fails.
    """
    peer = open_peer(_stalls_in_body)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1, timeouts=Timeouts(read=LIMIT))

    with agent.stream("GET", peer.url) as response:
        pieces = response.iter_bytes()
        assert next(pieces) == b"some"
        with pytest.raises(ReadTimeout):
            next(pieces)

    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


def test_slow_consumer_is_not_the_peers_fault(open_agent, server):
    """
    A caller who pauses longer than `read` between two pieces gets the rest of the body all the same.
    """
    agent = open_agent(ca=server.ca_pem, timeouts=Timeouts(read=LIMIT))
    total = 16 << 20

    with agent.stream("GET", f"{server.url}/bytes/{total}") as response:
        pieces = response.iter_bytes()
        received = len(next(pieces))
        time.sleep(LIMIT * 2)
        received += sum(map(len, pieces))

    assert received == total


# --- Total ------------------------------------------------------------------------------------------------------------


def _drips(connection: PeerConnection) -> None:
    if connection.number > 1:
        serve(connection)
    connection.recv_head()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while not connection.peer.leave.wait(0.02):
        connection.send(b".")


def test_total_while_a_body_drips(open_agent, open_peer):
    """
    `total` bounds a body that drips just fast enough for `read`.
    """
    peer = open_peer(_drips)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    with overdue(TotalTimeout, "receive"):
        agent.request("GET", peer.url, timeouts=Timeouts(total=LIMIT, read=0.15))

    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


def test_total_while_waiting_for_the_response(open_agent, server, protocol):
    """
    A plain number as `timeouts` is the limit of the whole request.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1)

    with overdue(TotalTimeout, "wait"):
        agent.request("GET", server.url + "/delay/30", timeouts=LIMIT)

    assert given_up(server, protocol)
    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


def test_total_while_queued(open_agent, gated_server, gates):
    """
    `total` fires in the queue too, and the place in it is given up.
    """
    agent = open_agent(ca=gated_server.ca_pem, max_sockets=1)
    first = hold(agent, gated_server, "/gate/a")

    with overdue(TotalTimeout, "queue"):
        agent.request("GET", gated_server.url + "/hello", timeouts=LIMIT)
    gates.open("a")

    assert first.result(5).status == 200
    assert agent.request("GET", gated_server.url + "/hello", timeouts=5).reused
    assert targets(gated_server) == [["/gate/a", "/hello"]]


def test_total_while_dialling(open_agent, new_server):
    """
    `total` fires while the connection is made.
    """
    with new_server(stall_at="server_hello") as server:
        agent = open_agent(ca=server.ca_pem, max_sockets=1, timeouts=Timeouts(handshake=0.5))

        with overdue(TotalTimeout, "queue", "handshake"):
            agent.request("GET", server.url + "/hello", timeouts=LIMIT)

        assert server.wait_for(lambda s: s.stats.open_connections == 0)
        server.reconfigure(stall_at=None)
        assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


def test_total_while_sending(open_agent, open_peer):
    """
    `total` fires while the peer does not take the request.
    """
    peer = open_peer(hang_first)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    with overdue(TotalTimeout, "send"):
        agent.request("POST", peer.url, content=itertools.repeat(bytes(65_536)), timeouts=LIMIT)

    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


def test_total_includes_a_retry(open_agent, open_peer):
    """
    A retry does not start the clock anew.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        if connection.number == 1:
            connection.send(OK)
            connection.recv_head()
            time.sleep(0.15)
            return
        connection.peer.leave.wait(5)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    agent.request("GET", peer.url)

    with overdue(TotalTimeout, "wait", limit=0.3):
        agent.request("GET", peer.url, timeouts=0.3)

    assert len(peer.connections) == 2


# --- Inactivity -------------------------------------------------------------------------------------------------------


def test_inactivity_of_an_active_connection(open_agent, server):
    """
    Node's `timeout`: a connection on which nothing moves fails its request.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1, timeout=LIMIT)

    with overdue(InactivityTimeout, "wait"):
        agent.request("GET", server.url + "/delay/30")

    assert server.wait_for(lambda s: s.stats.open_connections == 0)
    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


def test_inactivity_closes_an_idle_connection(open_async_agent, server):
    """
    Node's `timeout`: an idle connection is closed after it.
    """
    agent = open_async_agent(ca=server.ca_pem, timeout=LIMIT)

    agent.request("GET", server.url + "/hello")

    assert server.wait_for(lambda s: s.stats.open_connections == 0)
    assert agent.stats().idle == 0


def test_connection_idle_past_its_timeout_is_not_used_again(open_agent, server):
    """
    A connection that was silent for `timeout` serves no further request, also where no timer runs.
    """
    agent = open_agent(ca=server.ca_pem, timeout=0.1)

    agent.request("GET", server.url + "/hello")
    time.sleep(0.2)
    response = agent.request("GET", server.url + "/hello")

    assert (response.reused, response.attempts) == (False, 1)
    assert server.stats.connections == 2


def test_activity_defers_inactivity(open_agent, open_peer):
    """
    Bytes that come now and then keep a connection alive past its `timeout`.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            time.sleep(0.05)
            connection.send(b".")
        serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, timeout=0.3)

    assert agent.request("GET", peer.url).content == b"." * 8


def test_timer_of_a_finished_request_does_not_fire(open_agent, server):
    """
    No timer of a finished request touches its connection, which is idle and then used again.
    """
    agent = open_agent(ca=server.ca_pem, timeouts=Timeouts(response=0.1, read=0.1, send=0.1, total=0.1, queue=0.1))

    agent.request("GET", server.url + "/hello", timeouts=Timeouts(total=5))
    time.sleep(0.25)
    response = agent.request("GET", server.url + "/hello", timeouts=Timeouts(total=5))

    assert response.reused
    assert server.stats.connections == 1
