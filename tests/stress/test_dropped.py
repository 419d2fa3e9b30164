"""
Responses that nobody reads: dropped, closed early or twice, collected anywhere and at any time.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tlsagent import Agent, AgentClosed, AsyncAgent
from tlsagent.testing import Server

LARGE = "/bytes/100000000"


@contextmanager
def agent_of(server: Server, **options: object) -> Iterator[Agent]:
    agent = Agent(ca=server.ca_pem, **options)
    yield agent
    agent.close(drain=1)


def drop(agent: Agent, server: Server) -> None:
    """Open a response and let go of it."""
    with pytest.warns(ResourceWarning, match="dropped unread"):
        agent.open_stream("GET", server.url + LARGE)


@pytest.fixture
def quietly() -> Iterator[None]:
    """ResourceWarnings come from wherever the collector runs: they are looked for where they are the subject."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def test_dropped_response_warns_and_costs_its_connection(server, http2):
    """
    A response dropped unread gives one ResourceWarning; its slot is free for the next request, on a new connection
    where it had one of its own.
    """
    with agent_of(server, max_sockets=1) as agent:
        drop(agent, server)

        assert agent.request("GET", server.url + "/hello", timeouts=5).request_number == (2 if http2 else 1)
        assert (agent.stats().active, agent.stats().idle) == (0, 1)
        assert server.wait_for(lambda s: s.stats.open_connections == 1)


def test_dropped_response_frees_its_slot_even_if_the_warning_is_an_error(server, monkeypatch):
    """
    With warnings as errors the finaliser raises, and the slot is free all the same.
    """
    raised = []
    monkeypatch.setattr("sys.unraisablehook", lambda what: raised.append(what.exc_type))
    with agent_of(server, max_sockets=1) as agent:
        agent.open_stream("GET", server.url + LARGE)

        assert raised == [ResourceWarning]
        assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


@pytest.mark.parametrize("times", [1, 2, 5])
def test_closed_early_and_again(server, http2, times):
    """
    Closing a response before its end costs the connection, once, or its stream; closing it again does nothing, neither
    warns.
    """
    with agent_of(server, max_sockets=1) as agent:
        response = agent.open_stream("GET", server.url + LARGE)
        for _ in range(times):
            response.close()
        del response

        assert agent.stats().closed == ({} if http2 else {"dropped": 1})
        assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


def test_closed_after_the_agent(server):
    """
    A response may be closed after its agent.
    """
    agent = Agent(ca=server.ca_pem)
    response = agent.open_stream("GET", server.url + LARGE)

    agent.destroy()
    response.close()
    response.close()

    assert agent.stats().active == 0
    assert server.wait_for(lambda s: s.stats.open_connections == 0)


def test_waiter_is_served_at_once_when_a_response_is_dropped(server, quietly):
    """
    A thread that waits for the slot of a response is woken by its finaliser: it does not look now and then.
    """
    server.reconfigure(max_concurrent_streams=1)
    with agent_of(server, max_sockets=1) as agent:
        response = agent.open_stream("GET", server.url + LARGE)
        served: list[float] = []

        def wait() -> None:
            agent.request("GET", server.url + "/hello", timeouts=20)
            served.append(time.monotonic())

        thread = threading.Thread(target=wait)
        thread.start()
        while not agent.stats().waiting:
            time.sleep(0.001)
        time.sleep(0.05)  # until it sleeps

        dropped = time.monotonic()
        del response
        thread.join(20)

        assert served[0] - dropped < 0.3


def test_dialling_waiter_hears_of_it_too(quietly):
    """
    A thread that dials for a waiting request looks at dropped responses of other keys, which may hold the last slot.
    """
    # Of HTTP/1.1: one of HTTP/2 would have room for both.
    with Server(alpn_protocols=("http/1.1",)) as server, Server(stall_at="server_hello") as stalling:
        agent = Agent(ca=server.ca_pem, max_total_sockets=2)
        response = agent.open_stream("GET", server.url + LARGE)

        def dial() -> None:
            with pytest.raises(AgentClosed):
                agent.request("GET", stalling.url)

        dialler = threading.Thread(target=dial)
        dialler.start()
        assert stalling.wait_for(lambda s: s.stats.connections == 1)
        done = threading.Event()
        waiter = threading.Thread(target=lambda: (agent.request("GET", server.url + "/hello", timeouts=20), done.set()))
        waiter.start()
        while agent.stats().waiting < 2:
            time.sleep(0.001)
        del response

        assert done.wait(5)
        waiter.join(5)
        agent.destroy()
        dialler.join(5)


def test_collected_in_another_thread(server, quietly):
    """
    Responses in cycles, collected by whichever thread allocates next, in the middle of anything: no deadlock, no slot
    lost.
    """
    agent = Agent(ca=server.ca_pem, max_sockets=4)
    leave = threading.Event()
    failures: list[BaseException] = []

    class Cycle:
        def __init__(self, held: object) -> None:
            self.held, self.me = held, self

    def busy(number: int) -> None:
        try:
            for count in range(60):
                if (number + count) % 3 == 0:
                    Cycle(agent.open_stream("GET", server.url + "/bytes/300000", timeouts=20))
                else:
                    content = f"{number}-{count}".encode()
                    got = agent.request("POST", server.url + "/echo", content=content, timeouts=20)
                    assert got.content == content
        except BaseException as error:
            failures.append(error)

    def collect() -> None:
        while not leave.is_set():
            gc.collect()
            leave.wait(0.002)

    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()  # what other tests have left is not looked through each time
    gc.set_threshold(50)  # in the middle of nearly everything
    try:
        threads = [threading.Thread(target=busy, args=(n,)) for n in range(8)]
        collector = threading.Thread(target=collect)
        for thread in (*threads, collector):
            thread.start()
        for thread in threads:
            thread.join(50)
        leave.set()
        collector.join(10)
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()
    gc.collect()

    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    assert (agent.stats().active, agent.stats().waiting, agent.stats().dialling) == (0, 0, 0)
    agent.close()
    assert server.wait_for(lambda s: s.stats.open_connections == 0)


@pytest.mark.parametrize("where", ["acquire", "release", "close"])
def test_collected_while_the_lock_is_held(server, run, where):
    """
    A response whose finaliser runs in the middle of a change of the pool, in the thread that holds its lock, waits for
    nothing.
    """
    told = run(
        server,
        """
import gc, sys, warnings
warnings.simplefilter("ignore", ResourceWarning)
from tlsagent import Agent
agent = Agent(ca=CA, max_sockets=2)
agent.request("GET", URL + "/hello")
held = [agent.open_stream("GET", URL + "/bytes/100000000")]
NAMES = {"acquire": "Pool.acquire", "release": "Pool.release", "close": "Pool.close_idle"}

def profile(frame, event, argument):
    # The finaliser runs here, in a frame of the pool's, as a collection would have it.
    if event == "call" and frame.f_code.co_qualname == NAMES[WHERE] and held:
        assert agent._desk.lock.locked()
        held.clear()
        gc.collect()

sys.setprofile(profile)
agent.request("GET", URL + "/hello", timeouts=5)
agent.close_idle()
sys.setprofile(None)
assert not held
stats = agent.stats()
tell(active=stats.active, waiting=stats.waiting)
assert agent.request("GET", URL + "/hello", timeouts=5).status == 200
agent.close()
""",
        WHERE=where,
        timeout=30,
    )

    assert told == [{"active": 0, "waiting": 0}]


def test_the_collector_of_another_thread_reaches_the_loop(server, quietly):
    """
    An `AsyncStreamResponse` collected in another thread is ended by its loop: a waiting task is served.
    """
    server.reconfigure(max_concurrent_streams=1)

    async def main() -> None:
        agent = AsyncAgent(ca=server.ca_pem, max_sockets=1)
        held = [await agent.open_stream("GET", server.url + LARGE)]
        waiting = asyncio.create_task(agent.request("GET", server.url + "/hello", timeouts=20))
        await asyncio.sleep(0)
        assert agent.stats().waiting == 1

        def collect(clear: Callable[[], None]) -> None:
            clear()
            gc.collect()

        await asyncio.to_thread(collect, held.clear)

        assert (await asyncio.wait_for(waiting, 5)).status == 200
        assert agent.stats().active == 0
        await agent.aclose()

    asyncio.run(main())


def test_dropped_after_its_loop(server, quietly):
    """
    An `AsyncStreamResponse` dropped once its loop is closed does no harm.
    """
    agent = AsyncAgent(ca=server.ca_pem)
    loop = asyncio.new_event_loop()
    response = loop.run_until_complete(agent.open_stream("GET", server.url + LARGE))
    loop.close()

    del response
    gc.collect()
    agent.destroy()

    assert agent.stats().active == 0
    del agent
    gc.collect()  # asyncio warns of the transports that the loop left open: here, and not in the next test
    assert server.wait_for(lambda s: s.stats.open_connections == 0)
