"""How agents end: closing, destroying, leaving `with`, dead loops, the interpreter's exit."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from wire_peer import PeerConnection, hold, left_in_order, targets, wait_until

from tlsagent import (
    Agent,
    AgentClosed,
    AsyncAgent,
    ConnectError,
    ConnectionLost,
    OptionError,
    Timeouts,
    WrongEventLoop,
    events,
)
from tlsagent._tls.engine import TLSEngine


def background(function: Any) -> Any:
    """Run a function beside the test."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def engines() -> int:
    """Return how many TLS engines there are."""
    return sum(type(thing) is TLSEngine for thing in gc.get_objects())


def test_a_closed_connection_leaves_nothing_to_the_garbage_collector(open_agent, server):
    """TLS and its buffers are freed with the connection, for they are large and collections rare."""
    agent = open_agent(ca=server.ca_pem, keep_alive=False)
    gc.collect()
    before = engines()
    gc.disable()
    try:
        for _ in range(3):
            assert agent.request("GET", server.url + "/bytes/5").status == 200
        assert wait_until(lambda: engines() == before)
    finally:
        gc.enable()


@pytest.mark.parametrize("agent_class", [Agent, AsyncAgent])
@pytest.mark.parametrize("options", [{"max_sockets": 1}, "max_sockets", 1, Timeouts(total=1)], ids=repr)
def test_agent_of_something_else_than_options(agent_class, options):
    """
    What are no options is refused, and not taken for options that say nothing.
    """
    with pytest.raises(OptionError, match="must be AgentOptions"):
        agent_class(options)


# --- close and destroy ------------------------------------------------------------------------------------------------


def test_close_lets_active_requests_finish(open_agent, gated_server, gates):
    """
    `close` refuses what waits and what comes, lets what is active finish, and closes all connections in good order.
    """
    agent = open_agent(ca=gated_server.ca_pem, max_sockets=1)
    active = hold(agent, gated_server, "/gate/a")
    queued = agent.submit("GET", gated_server.url + "/never")
    assert wait_until(lambda: agent.stats().waiting == 1)

    closing = background(agent.close)
    with pytest.raises(AgentClosed):
        queued.result(5)
    with pytest.raises(AgentClosed):
        agent.request("GET", gated_server.url + "/never")
    gates.open("a")

    assert active.result(5).content == b"open"
    closing.result(5)
    assert gated_server.wait_for(lambda s: left_in_order(s.connections[0]))
    assert targets(gated_server) == [["/gate/a"]]


def test_close_gives_up_after_the_drain_time(open_agent, server):
    """
    What does not finish within `drain` fails with `AgentClosed`; `close` returns.
    """
    agent = open_agent(ca=server.ca_pem)
    active = hold(agent, server, "/delay/30")

    begun = time.monotonic()
    agent.close(drain=0.1)

    assert 0.09 < time.monotonic() - begun < 3
    with pytest.raises(AgentClosed):
        active.result(5)
    assert server.wait_for(lambda s: s.stats.open_connections == 0)


@pytest.mark.parametrize("drain", [-1, "5", float("nan"), True])
def test_drain_time_is_a_number_of_seconds(open_agent, server, drain):
    """
    A drain time that is none is refused, and the agent is as it was.
    """
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(OptionError, match="drain"):
        agent.close(drain=drain)

    assert agent.request("GET", server.url + "/hello").status == 200


def test_close_ends_idle_connections_at_once(open_agent, server):
    """
    With nothing active `close` does not wait, and the server hears of it.
    """
    agent = open_agent(ca=server.ca_pem)
    agent.preconnect(server.url, 2)
    agent.request("GET", server.url + "/hello")

    begun = time.monotonic()
    agent.close()

    assert time.monotonic() - begun < 2
    assert server.wait_for(lambda s: s.stats.open_connections == 0)
    assert all(map(left_in_order, server.connections))


def test_close_and_destroy_may_be_called_again(open_agent, server):
    """
    Closing a closed agent does nothing, in any order.
    """
    agent = open_agent(ca=server.ca_pem)
    agent.request("GET", server.url + "/hello")

    agent.close()
    agent.close()
    agent.destroy()
    agent.destroy()
    agent.close()

    assert agent.stats().idle == 0


def test_agent_that_was_never_used_can_be_closed(open_agent):
    """
    Closing before the first use is allowed, and final.
    """
    agent = open_agent()

    agent.close()

    with pytest.raises(AgentClosed):
        agent.request("GET", "https://127.0.0.1:1/")


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("request", lambda server: ("GET", server.url + "/hello")),
        ("open_stream", lambda server: ("GET", server.url + "/hello")),
        ("connect", lambda server: ("localhost", server.port)),
        ("preconnect", lambda server: (server.url,)),
    ],
    ids=["request", "open_stream", "connect", "preconnect"],
)
def test_closed_agent_refuses_everything(open_agent, server, call, arguments):
    """
    After `close` every call that needs a connection raises `AgentClosed` and opens none.
    """
    agent = open_agent(ca=server.ca_pem)
    agent.close()

    with pytest.raises(AgentClosed):
        getattr(agent, call)(*arguments(server))

    assert server.stats.connections == 0


def test_destroy_fails_active_and_waiting_requests(open_agent, gated_server):
    """
    `destroy` ends everything at once; whoever waits for anything gets `AgentClosed`.
    """
    agent = open_agent(ca=gated_server.ca_pem, max_sockets=1)
    active = hold(agent, gated_server, "/gate/never")
    queued = agent.submit("GET", gated_server.url + "/never")
    assert wait_until(lambda: agent.stats().waiting == 1)

    agent.destroy()

    for future in (active, queued):
        with pytest.raises(AgentClosed):
            future.result(5)
    assert gated_server.wait_for(lambda s: s.stats.open_connections == 0)


def test_destroy_ends_a_connection_under_way(open_agent, new_server):
    """
    `destroy` during a handshake fails the request that waits for it.
    """
    with new_server(stall_at="server_hello") as server:
        agent = open_agent(ca=server.ca_pem)
        dialling = agent.submit("GET", server.url + "/hello")
        assert server.wait_for(lambda s: s.stats.connections == 1 and s.connections[0].client_hello)

        agent.destroy()

        with pytest.raises(AgentClosed):
            dialling.result(5)
        assert server.wait_for(lambda s: s.stats.open_connections == 0)


@pytest.mark.parametrize("verb", ["preconnect", "connect"])
@pytest.mark.parametrize("way", ["destroy", "close"])
def test_connection_that_is_no_requests_ends_with_its_agent(open_agent, new_server, verb, way):
    """
    An attempt that was asked for by `preconnect` or `connect` fails as a request's does: by the end of the agent, and
    not by what that looks like on the socket.
    """
    with new_server(stall_at="server_hello") as server:
        agent = open_agent(ca=server.ca_pem)
        arguments = (server.url,) if verb == "preconnect" else ("localhost", server.port)
        dialling = background(lambda: getattr(agent, verb)(*arguments))
        assert server.wait_for(lambda s: s.stats.connections == 1 and s.connections[0].client_hello)

        agent.destroy() if way == "destroy" else agent.close(drain=0.1)

        with pytest.raises(AgentClosed):
            dialling.result(5)
        assert server.wait_for(lambda s: s.stats.open_connections == 0)


@pytest.mark.parametrize("kind", [events.Connecting, events.Connected, events.Secured, events.Freed])
def test_event_callback_may_destroy_the_agent(open_agent, server, kind):
    """
    Whatever an event tells of, its callback may end the agent: the request fails as with any other end of it.
    """
    agent = open_agent(ca=server.ca_pem)
    agent.agent.on(kind, lambda _event: agent.agent.destroy())

    def twice() -> None:
        for _ in range(2):
            agent.request("GET", server.url + "/hello")

    with pytest.raises(AgentClosed):
        twice()
    assert wait_until(lambda: agent.stats().active + agent.stats().dialling == 0)


def test_close_ends_a_connection_under_way(open_agent, new_server):
    """
    `close` counts a request whose connection is not open yet among the waiting ones.
    """
    with new_server(stall_at="server_hello") as server:
        agent = open_agent(ca=server.ca_pem)
        dialling = agent.submit("GET", server.url + "/hello")
        assert server.wait_for(lambda s: s.stats.connections == 1 and s.connections[0].client_hello)

        begun = time.monotonic()
        agent.close()

        assert time.monotonic() - begun < 3
        with pytest.raises(AgentClosed):
            dialling.result(5)
        assert server.wait_for(lambda s: s.stats.open_connections == 0)


def test_destroy_in_the_middle_of_a_stream(open_agent, server):
    """
    A stream whose agent was destroyed raises `AgentClosed` instead of ending as if it were whole.
    """
    agent = open_agent(ca=server.ca_pem)

    with agent.stream("GET", server.url + "/bytes/100000000") as response:
        pieces = response.iter_bytes()
        next(pieces)
        agent.destroy()
        with pytest.raises(AgentClosed):
            for _ in pieces:
                pass

    # That the server learns of it is up to TCP: with its window closed, it may be told a minute later.
    assert agent.stats().active == 0


def test_close_while_the_body_is_being_sent(open_agent, open_peer):
    """
    `destroy` ends a request whose body the peer does not take.
    """

    def script(connection: PeerConnection) -> None:
        connection.peer.leave.wait(10)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    sending = agent.submit("POST", peer.url, content=bytes(64 << 20))
    assert wait_until(lambda: agent.stats().active == 1)

    agent.close(drain=0.1)

    with pytest.raises(AgentClosed):
        sending.result(5)


# --- with -------------------------------------------------------------------------------------------------------------


def test_leaving_with_closes(open_sync_agent, server):
    """
    The end of a `with` block closes the agent in good order.
    """
    with open_sync_agent(ca=server.ca_pem).agent as agent:
        agent.request("GET", server.url + "/hello")

    assert server.wait_for(lambda s: left_in_order(s.connections[0]))
    with pytest.raises(AgentClosed):
        agent.request("GET", server.url + "/hello")


def test_leaving_with_by_an_exception_waits_for_nothing(open_agent, server):
    """
    A `with` block left by an exception destroys the agent: active requests fail at once, the exception goes on.
    """
    harness = open_agent(ca=server.ca_pem)
    active = []

    def sync_block() -> None:
        with harness.agent:
            active.append(hold(harness, server, "/delay/30"))
            raise ZeroDivisionError

    async def async_block() -> None:
        async with harness.agent:
            active.append(asyncio.ensure_future(harness.agent.request("GET", server.url + "/delay/30")))
            await asyncio.to_thread(server.wait_for, lambda s: s.stats.requests)
            raise ZeroDivisionError

    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        sync_block() if harness.driver == "threads" else harness.run(async_block())

    assert time.monotonic() - begun < 3
    assert wait_until(lambda: active[0].done())
    assert isinstance(active[0].exception(), AgentClosed)


def test_leaving_with_by_an_exception_waits_for_no_response_of_one_s_own(open_agent, server):
    """
    A streamed response that the block has left open cannot end any more: nobody waits for it.
    """
    harness = open_agent(ca=server.ca_pem)
    url = server.url + "/bytes/20000000"
    left: list[Any] = []

    def sync_block() -> None:
        with harness.agent as agent:
            left.append(agent.open_stream("GET", url))
            raise ZeroDivisionError

    async def async_block() -> None:
        async with harness.agent as agent:
            left.append(await agent.open_stream("GET", url))
            raise ZeroDivisionError

    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        sync_block() if harness.driver == "threads" else harness.run(async_block())

    assert time.monotonic() - begun < 3
    with pytest.raises(AgentClosed):
        left[0].read() if harness.driver == "threads" else harness.run(left[0].aread())


def test_destroy_ends_the_wait_of_close(open_sync_agent, server):
    """
    A thread that drains an agent without end goes on once another has destroyed it.
    """
    agent = open_sync_agent(ca=server.ca_pem).agent
    response = agent.open_stream("GET", server.url + "/bytes/20000000")
    closing = background(lambda: agent.close(None))

    def refuses() -> bool:
        try:
            agent.connect("localhost", 1)
        except AgentClosed:
            return True
        except ConnectError:
            return False

    assert wait_until(refuses)
    assert not closing.done()

    agent.destroy()

    closing.result(3)
    response.close()


def test_task_group_around_requests_is_cancelled_as_a_whole(open_async_agent, server):
    """
    An `AsyncAgent` inside a cancelled task group leaves nothing behind.
    """
    harness = open_async_agent(ca=server.ca_pem, max_sockets=2)

    async def run() -> None:
        async with harness.agent as agent, asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(agent.request("GET", server.url + "/delay/30"))
            await asyncio.to_thread(server.wait_for, lambda s: s.stats.requests >= 2)
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        harness.run(run())

    assert server.wait_for(lambda s: s.stats.open_connections == 0)


# --- Event loops ------------------------------------------------------------------------------------------------------


async def get(agent: AsyncAgent, server: Any) -> Any:
    return await agent.request("GET", server.url + "/hello")


def test_agent_in_a_second_loop_while_the_first_lives(open_async_agent, server):
    """
    An `AsyncAgent` used in a second event loop raises a named error that says what to do, and touches nothing: the
    first loop's connections serve on.
    """
    harness = open_async_agent(ca=server.ca_pem)
    harness.request("GET", server.url + "/hello")

    for use in (lambda: get(harness.agent, server), lambda: harness.agent.preconnect(server.url), harness.agent.aclose):
        with pytest.raises(WrongEventLoop, match=r"one event loop.*one agent per loop, or call aclose"):
            asyncio.run(use())

    assert harness.request("GET", server.url + "/hello").reused


def test_wrong_event_loop_is_a_runtime_error():
    """
    Whoever expects what asyncio itself raises for mixed loops catches this too.
    """
    assert issubclass(WrongEventLoop, RuntimeError)
    assert WrongEventLoop.default_code == "ERR_TLSAGENT_EVENT_LOOP"


def test_agent_closed_in_one_loop_stays_closed_in_the_next(server):
    """
    `aclose` is final, whatever loop comes afterwards.
    """
    agent = AsyncAgent(ca=server.ca_pem)

    async def first() -> None:
        assert (await get(agent, server)).status == 200
        await agent.aclose()

    asyncio.run(first())

    with pytest.raises(AgentClosed):
        asyncio.run(get(agent, server))
    asyncio.run(agent.aclose())


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning", "ignore:unclosed resource:ResourceWarning")
@pytest.mark.parametrize("policy", ["asyncio", "uvloop"])
def test_agent_outlives_a_closed_loop(server, policy):
    """
    A loop that was closed with connections open takes them along: in the next loop the agent begins with new ones, its
    slots free and its TLS sessions kept.
    """
    agent = AsyncAgent(ca=server.ca_pem, max_sockets=1)

    def new_loop() -> asyncio.AbstractEventLoop:
        if policy == "asyncio":
            return asyncio.new_event_loop()
        return pytest.importorskip("uvloop").new_event_loop()

    loop = new_loop()
    first = loop.run_until_complete(get(agent, server))
    half = loop.run_until_complete(agent.open_stream("GET", server.url + "/bytes/100000000"))
    loop.close()

    other = new_loop()
    second = other.run_until_complete(asyncio.wait_for(get(agent, server), 5))
    with pytest.raises(ConnectionLost, match="event loop of this request was closed"):
        other.run_until_complete(half.aread())
    other.run_until_complete(agent.aclose())
    other.close()

    assert (first.reused, second.reused) == (False, False)
    assert second.connection.session_reused
    assert server.wait_for(lambda s: s.stats.open_connections == 0)
    del first, second, half
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning", "ignore:unclosed resource:ResourceWarning")
@pytest.mark.parametrize("call", ["close_idle", "network_changed", "destroy"])
def test_calls_between_two_loops(server, call):
    """
    What needs no loop may be called when the agent's is closed: the connections it left open are closed.
    """
    agent = AsyncAgent(ca=server.ca_pem)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(get(agent, server))
    loop.close()

    getattr(agent, call)()

    assert server.wait_for(lambda s: s.stats.open_connections == 0)
    assert agent.stats().idle == 0
    gc.collect()


# --- The interpreter --------------------------------------------------------------------------------------------------


def run_script(script: str, server: Any, tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a script in a fresh interpreter; `URL`, `PORT` and `CA` are there."""
    head = f"URL, PORT, CA = {server.url!r}, {server.port}, {server.ca_pem!r}\n"
    path = tmp_path / "script.py"
    path.write_text(head + textwrap.dedent(script))
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done, time.monotonic() - begun


SCRIPTS = {
    "sync, idle": """
        from tlsagent import Agent
        agent = Agent(ca=CA)
        print(agent.request("GET", URL + "/hello").status)
    """,
    "sync, streaming": """
        from tlsagent import Agent
        agent = Agent(ca=CA)
        response = agent.open_stream("GET", URL + "/bytes/100000000")
        print(response.status)
    """,
    "sync, a daemon thread at work": """
        import threading, time
        from tlsagent import Agent
        agent = Agent(ca=CA)
        threading.Thread(target=agent.request, args=("GET", URL + "/delay/30"), daemon=True).start()
        while not agent.stats().active:
            time.sleep(0.01)
        print(200)
    """,
    "sync, raw": """
        from tlsagent import Agent
        raw = Agent(ca=CA).connect("localhost", PORT)
        print(200)
    """,
    "sync, look-up under way": """
        import socket, threading, time
        from tlsagent import Agent, ResolutionTimeout, Timeouts
        socket.getaddrinfo = lambda *a, **k: time.sleep(20)
        agent = Agent(ca=CA, timeouts=Timeouts(lookup=0.1))
        try:
            agent.request("GET", URL)
        except ResolutionTimeout:
            print(200)
    """,
    "asyncio, idle": """
        import asyncio
        from tlsagent import AsyncAgent
        async def main():
            agent = AsyncAgent(ca=CA)
            print((await agent.request("GET", URL + "/hello")).status)
        asyncio.run(main())
    """,
    "asyncio, agent outlives its loop": """
        import asyncio
        from tlsagent import AsyncAgent
        agent = AsyncAgent(ca=CA)
        async def main():
            print((await agent.request("GET", URL + "/hello")).status)
        asyncio.run(main())
    """,
    "asyncio, destroyed after its loop": """
        import asyncio
        from tlsagent import AsyncAgent
        agent = AsyncAgent(ca=CA)
        async def main():
            print((await agent.request("GET", URL + "/hello")).status)
        asyncio.run(main())
        agent.destroy()
    """,
    "asyncio, streaming": """
        import asyncio
        from tlsagent import AsyncAgent
        async def main():
            global response
            response = await AsyncAgent(ca=CA).open_stream("GET", URL + "/bytes/100000000")
            print(response.status)
        asyncio.run(main())
    """,
    "asyncio, request at work": """
        import asyncio
        from tlsagent import AsyncAgent
        async def main():
            agent = AsyncAgent(ca=CA)
            task = asyncio.create_task(agent.request("GET", URL + "/delay/30"))
            while not agent.stats().active:
                await asyncio.sleep(0.01)
            print(200)
        asyncio.run(main())
    """,
    "uvloop, idle": """
        import uvloop
        from tlsagent import AsyncAgent
        async def main():
            agent = AsyncAgent(ca=CA)
            print((await agent.request("GET", URL + "/hello")).status)
        uvloop.run(main())
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_interpreter_exits_quietly_with_connections_open(server, tmp_path, name):
    """
    A program that ends without closing its agent ends at once and prints nothing.
    """
    done, elapsed = run_script(SCRIPTS[name], server, tmp_path)

    assert done.stdout == "200\n"
    assert done.stderr == ""
    assert done.returncode == 0
    assert elapsed < 10
    assert server.wait_for(lambda s: s.stats.open_connections == 0)
