"""
A request given up anywhere leaves nothing: tasks that are cancelled, threads that an exception strikes.

That no socket, thread or task is left is checked after every test by the fixtures `nothing_left` and `open_agent`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from wire_peer import PeerConnection, given_up, hold, serve, targets, tarpit, wait_until

from tlsagent import events


class Interrupted(BaseException):
    """As KeyboardInterrupt, but ours."""


def cancelled(agent: Any, future: Any) -> None:
    """Cancel a request and wait until its task has ended so."""

    async def requests() -> int:
        return len([task for task in asyncio.all_tasks() if "AsyncAgent.request" in repr(task.get_coro())])

    before = agent.run(requests())
    future.cancel()
    assert wait_until(lambda: agent.run(requests()) == before - 1)
    with pytest.raises(CancelledError):
        future.result(5)


def nothing_at_work(agent: Any) -> bool:
    """Whether the pool has nothing active, waiting or under way."""
    stats = agent.stats()
    return (stats.active, stats.waiting, stats.dialling) == (0, 0, 0)


# --- Tasks ------------------------------------------------------------------------------------------------------------


def test_cancelled_in_the_queue(open_async_agent, gated_server, gates):
    """
    A task cancelled in the queue gives its place to the next; its request is never sent.
    """
    agent = open_async_agent(ca=gated_server.ca_pem, max_sockets=1)
    first = hold(agent, gated_server, "/gate/a")
    second, third = (agent.submit("GET", f"{gated_server.url}/hello?{n}") for n in (2, 3))
    assert wait_until(lambda: agent.stats().waiting == 2)

    cancelled(agent, second)
    gates.open("a")

    assert first.result(5).status == 200
    assert third.result(5).reused
    assert targets(gated_server) == [["/gate/a", "/hello?3"]]
    assert nothing_at_work(agent)


def test_cancelled_during_the_lookup(open_async_agent, server):
    """
    A task cancelled during the look-up leaves the attempt to the next request.
    """
    looking, answer = threading.Event(), threading.Event()

    async def lookup(host: str, family: int) -> list[str]:
        looking.set()
        await asyncio.to_thread(answer.wait, 10)
        return ["127.0.0.1"]

    agent = open_async_agent(ca=server.ca_pem, max_sockets=1, lookup=lookup)
    future = agent.submit("GET", server.url + "/hello")
    assert looking.wait(5)

    cancelled(agent, future)
    answer.set()

    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200
    assert server.stats.connections == 1


def test_cancelled_during_the_connect(open_async_agent):
    """
    A task cancelled while an address does not answer is gone at once; closing the agent ends the attempt.
    """
    with tarpit() as port:
        agent = open_async_agent(max_sockets=1)
        future = agent.submit("GET", f"https://127.0.0.1:{port}/")
        assert wait_until(lambda: agent.stats().dialling == 1)

        cancelled(agent, future)
        agent.close()

        assert nothing_at_work(agent)


@pytest.mark.parametrize("outcome", ["good", "bad"])
def test_cancelled_during_the_handshake(open_async_agent, open_peer, outcome):
    """
    A task cancelled during the handshake leaves the attempt to the next request, and its failure to nobody.
    """
    go_on = threading.Event()

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            connection.sock.recv(1)
            assert go_on.wait(10)
            return
        connection.handshake()
        serve(connection)

    def good_script(connection: PeerConnection) -> None:
        assert go_on.wait(10)
        connection.handshake()
        serve(connection)

    peer = open_peer(good_script if outcome == "good" else script, tls=False)
    agent = open_async_agent(ca=peer.ca_pem, max_sockets=1)
    future = agent.submit("GET", peer.url)
    assert wait_until(lambda: peer.connections)

    cancelled(agent, future)
    assert agent.stats().dialling == 1
    go_on.set()
    assert wait_until(lambda: agent.stats().dialling == 0)

    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"
    assert len(peer.connections) == (1 if outcome == "good" else 2)


def test_cancelled_while_sending(open_async_agent, open_peer):
    """
    A task cancelled while the peer does not read loses its connection; the slot is free.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            connection.peer.leave.wait(10)
            return
        serve(connection)

    produced = 0

    def pieces() -> Iterator[bytes]:
        nonlocal produced
        for _ in itertools.repeat(None):
            produced += 1
            yield bytes(65_536)

    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem, max_sockets=1)
    future = agent.submit("POST", peer.url, content=pieces())
    assert wait_until(lambda: produced > 10)

    cancelled(agent, future)

    assert nothing_at_work(agent)
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


@pytest.mark.parametrize("path", ["/delay/30", "/gate/never"])
def test_cancelled_while_waiting_for_the_response(open_async_agent, gated_server, protocol, path):
    """
    A task cancelled while the server thinks closes its connection, for the answer would be the next request's; with
    HTTP/2 it resets its stream, and the connection serves on.
    """
    agent = open_async_agent(ca=gated_server.ca_pem, max_sockets=1)
    future = agent.submit("GET", gated_server.url + path)
    assert gated_server.wait_for(lambda s: s.stats.requests == 1)

    cancelled(agent, future)

    assert given_up(gated_server, protocol)
    assert agent.request("GET", gated_server.url + "/hello", timeouts=5).reused == (protocol == "HTTP/2")
    assert nothing_at_work(agent)


def test_cancelled_while_receiving(open_async_agent, open_peer):
    """
    A task cancelled in the middle of a body closes its connection; the next in the queue is served by a new one.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
        sent.set()
        connection.wait_gone()

    sent = threading.Event()
    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem, max_sockets=1)
    future = agent.submit("GET", peer.url)
    assert sent.wait(5)
    waiting = agent.submit("GET", peer.url)
    assert wait_until(lambda: agent.stats().waiting == 1)

    cancelled(agent, future)

    assert waiting.result(5).content == b"ok"
    assert wait_until(lambda: peer.connections[0].ended)
    assert nothing_at_work(agent)


def test_cancelled_in_a_stream(open_async_agent, server, protocol):
    """
    A task cancelled between two pieces of a stream gives the connection up when the block is left, or its stream.
    """
    agent = open_async_agent(ca=server.ca_pem, max_sockets=1)
    reading = threading.Event()

    async def consume() -> None:
        async with agent.agent.stream("GET", server.url + "/bytes/100000000") as response:
            async for _ in response.aiter_bytes():
                reading.set()
                await asyncio.sleep(30)

    future = asyncio.run_coroutine_threadsafe(consume(), agent.loop)
    assert reading.wait(5)
    future.cancel()

    assert given_up(server, protocol)
    assert nothing_at_work(agent)
    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


def test_cancelled_at_any_turn_of_the_loop(open_async_agent, server):
    """
    Whichever step of the event loop a cancellation strikes, afterwards the one slot is free.
    """
    agent = open_async_agent(ca=server.ca_pem, max_sockets=1)

    async def cancel_after(turns: int) -> bool:
        content = iter([b"x" * 70_000] * 3)
        task = asyncio.ensure_future(agent.agent.request("POST", server.url + "/echo", content=content))
        for _ in range(turns):
            if task.done():
                return True
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return False

    for turns in itertools.chain(range(40), range(40, 400, 12)):
        if turns % 3 == 0:
            agent.close_idle()
        agent.run(cancel_after(turns))
        assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200

    assert nothing_at_work(agent)
    assert agent.stats().idle == 1
    assert server.wait_for(lambda s: s.stats.open_connections == 1)


def test_cancelled_by_the_caller_s_own_timeout(open_async_agent, server):
    """
    `asyncio.timeout` around a request works as on anything else.
    """
    agent = open_async_agent(ca=server.ca_pem, max_sockets=1)

    async def limited() -> None:
        async with asyncio.timeout(0.1):
            await agent.agent.request("GET", server.url + "/delay/30")

    with pytest.raises(TimeoutError):
        agent.run(limited())

    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


# --- Threads: hooks that raise ----------------------------------------------------------------------------------------


def once(error: BaseException) -> Callable[..., None]:
    """Return a function that raises the first time and does nothing afterwards."""
    left = [error]

    def strike(*arguments: object) -> None:
        if left:
            raise left.pop()

    return strike


@pytest.mark.parametrize("hook", ["lookup", "check_server_identity", "event", "trace", "body"])
def test_exception_that_is_no_error_passes_through_a_hook(open_sync_agent, server, hook):
    """
    What a Ctrl-C raises inside a hook reaches the caller as it is, and the one slot is free.
    """
    strike = once(Interrupted())

    def lookup(host: str, family: int) -> list[str]:
        strike()
        return ["127.0.0.1"]

    def pieces() -> Iterator[bytes]:
        yield b"x" * 100_000
        strike()

    options: dict[str, Any] = {"lookup": lookup} if hook == "lookup" else {}
    if hook == "check_server_identity":
        options = {"check_server_identity": strike}
    agent = open_sync_agent(ca=server.ca_pem, max_sockets=1, **options)
    if hook == "event":
        agent.agent.on(events.Connected, strike)

    with pytest.raises(Interrupted):
        agent.request(
            "POST",
            server.url + "/echo",
            content=pieces() if hook == "body" else b"",
            trace=strike if hook == "trace" else None,
        )

    assert nothing_at_work(agent)
    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


@pytest.mark.parametrize("kind", [events.Freed, events.Reused, events.Closed, events.Secured, events.SessionTicket])
def test_interrupt_in_an_event_callback_strands_nobody(open_sync_agent, gated_server, gates, kind):
    """
    An interrupt that strikes in an event callback leaves the pool in order: who waits is served.
    """
    agent = open_sync_agent(ca=gated_server.ca_pem, max_sockets=1)
    strike = once(Interrupted())
    raised = []

    def callback(event: object) -> None:
        try:
            strike()
        except Interrupted:
            raised.append(event)
            raise

    agent.agent.on(kind, callback)
    first = agent.submit("GET", gated_server.url + "/gate/a")
    assert wait_until(lambda: gated_server.stats.requests == 1 or first.done())
    second = agent.submit("GET", gated_server.url + "/gate/a", timeouts=10)
    third = agent.submit("GET", gated_server.url + "/gate/a", timeouts=10)
    gates.open("a")

    outcomes = [future.exception(4) for future in (first, second, third)]  # sooner than any timeout comes to help
    try:
        agent.close_idle()
    except Interrupted as error:
        outcomes.append(error)

    assert [type(outcome) for outcome in outcomes if outcome is not None] == [Interrupted] * len(raised)
    assert len(raised) == 1
    assert nothing_at_work(agent)
    assert agent.request("GET", gated_server.url + "/hello", timeouts=5).status == 200


# --- Threads: a signal that strikes while the thread waits ------------------------------------------------------------


@pytest.fixture
def interrupted() -> Iterator[Callable[[Callable[[], object]], Any]]:
    """Return a context in which, once a condition holds, `Interrupted` strikes the main thread, as Ctrl-C would."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):
        pytest.skip("needs signals and the main thread")
    armed = False

    def strike(signum: int, frame: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    def run(condition: Callable[[], object]) -> None:
        if wait_until(condition):
            time.sleep(0.05)  # until it waits: no Python code is safe from a signal between two of its instructions
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    @contextlib.contextmanager
    def expect(condition: Callable[[], object]) -> Iterator[None]:
        nonlocal armed
        thread = threading.Thread(target=run, args=[condition])
        armed = True
        try:
            thread.start()
            yield
            wait_until(lambda: not armed)
        except Interrupted:
            pass
        else:
            pytest.fail("nothing was interrupted")
        finally:
            armed = False
            thread.join()

    before = signal.signal(signal.SIGUSR1, strike)
    yield expect
    signal.signal(signal.SIGUSR1, before)


def test_interrupted_in_the_queue(open_sync_agent, gated_server, gates, interrupted):
    """
    Ctrl-C in the queue gives the place up; the request is never sent.
    """
    agent = open_sync_agent(ca=gated_server.ca_pem, max_sockets=1)
    first = hold(agent, gated_server, "/gate/a")

    with interrupted(lambda: agent.stats().waiting == 1):
        agent.request("GET", gated_server.url + "/never")
    gates.open("a")

    assert first.result(5).status == 200
    assert nothing_at_work(agent)
    assert agent.request("GET", gated_server.url + "/hello", timeouts=5).reused
    assert targets(gated_server) == [["/gate/a", "/hello"]]


def test_interrupted_during_the_connect(open_sync_agent, interrupted):
    """
    Ctrl-C while an address does not answer ends the attempt.
    """
    with tarpit() as port:
        agent = open_sync_agent(max_sockets=1)

        with interrupted(lambda: agent.stats().dialling == 1):
            agent.request("GET", f"https://127.0.0.1:{port}/")

        assert nothing_at_work(agent)


def test_interrupted_during_the_handshake(open_sync_agent, new_server, interrupted):
    """
    Ctrl-C in the handshake closes the connection, if nobody else waits for one.
    """
    with new_server(stall_at="server_hello") as server:
        agent = open_sync_agent(ca=server.ca_pem, max_sockets=1)

        with interrupted(lambda: server.stats.connections == 1 and server.connections[0].client_hello):
            agent.request("GET", server.url + "/hello")

        assert nothing_at_work(agent)
        assert server.wait_for(lambda s: s.stats.open_connections == 0)
        server.reconfigure(stall_at=None)
        assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


def test_interrupted_dialler_hands_its_attempt_on(open_sync_agent, open_peer, interrupted):
    """
    Ctrl-C in a thread that dials leaves its half-open connection to another thread that waits.
    """
    go_on = threading.Event()

    def script(connection: PeerConnection) -> None:
        assert go_on.wait(10)
        connection.handshake()
        serve(connection)

    peer = open_peer(script, tls=False)
    agent = open_sync_agent(ca=peer.ca_pem, max_sockets=1)
    waiting: list[Any] = []

    def second_waits() -> bool:
        if peer.connections and not waiting:
            waiting.append(agent.submit("GET", peer.url))
        return bool(waiting) and agent.stats().waiting == 2

    with interrupted(second_waits):
        agent.request("GET", peer.url)
    go_on.set()

    assert waiting[0].result(5).content == b"ok"
    assert len(peer.connections) == 1


def test_interrupted_while_sending(open_sync_agent, open_peer, interrupted):
    """
    Ctrl-C while the peer does not read costs the connection.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            connection.peer.leave.wait(10)
            return
        serve(connection)

    peer = open_peer(script)
    agent = open_sync_agent(ca=peer.ca_pem, max_sockets=1)
    produced = 0

    def pieces() -> Iterator[bytes]:
        nonlocal produced
        while True:
            produced += 1
            yield bytes(65_536)

    with interrupted(lambda: produced > 40):
        agent.request("POST", peer.url, content=pieces())

    assert nothing_at_work(agent)
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome"], ids=["wait", "receive"])
def test_interrupted_while_waiting_or_receiving(open_sync_agent, open_peer, interrupted, sent):
    """
    Ctrl-C before or within the response costs the connection.
    """
    reached = threading.Event()

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_head()
        if sent:
            connection.send(sent)
        reached.set()
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_sync_agent(ca=peer.ca_pem, max_sockets=1)

    with interrupted(lambda: reached.is_set()):
        agent.request("GET", peer.url)

    assert nothing_at_work(agent)
    assert wait_until(lambda: peer.connections[0].ended)
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"
