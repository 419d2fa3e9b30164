"""
Threads on one connection of HTTP/2: who reads for whom, who is woken by whom, and what one leaves to the others.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tlsagent import Agent, Http2Options, InactivityTimeout, RequestError, RequestTimeout, events
from tlsagent.testing import Server

HTTP2 = ("h2", "http/1.1")


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a server that speaks HTTP/2."""
    with Server(alpn_protocols=HTTP2) as server:
        yield server


@pytest.fixture
def agent(server: Server) -> Iterator[Agent]:
    """Return an agent with one connection, which is open."""
    agent = Agent(ca=server.ca_pem, max_sockets=1)
    agent.request("GET", server.url + "/hello")
    yield agent
    agent.destroy()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Return what runs calls in threads."""
    with ThreadPoolExecutor(40) as threads:
        yield threads


def under_way(server: Server, count: int) -> None:
    """Wait until the server has seen so many requests."""
    assert server.wait_for(lambda s: s.stats.requests >= count)


@pytest.mark.timeout(100)
def test_both_directions_full(threads):
    """
    Eight threads echo 8 MB each, all at a time on one connection with small buffers and small windows: nobody waits for
    room while somebody waits for him to read.
    """
    with Server(alpn_protocols=HTTP2, initial_window_size=20_000) as server:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
        sock.connect(("127.0.0.1", server.port))
        options = Http2Options(stream_window=30_000, connection_window=65_535)
        agent = Agent(ca=server.ca_pem, max_sockets=1, http2=options)
        body = bytes(8_000_000)

        def send(content: Any, seconds: float) -> Any:
            on_it = {"socket": sock}
            return agent.request("POST", server.url + "/echo", content=content, timeouts=seconds, options=on_it)

        def echo(number: int) -> bool:
            content = iter([bytes([number]), body[:-1]]) if number % 2 else bytes([number]) + body[:-1]
            return send(content, 90).content == bytes([number]) + body[:-1]

        def give_up(number: int) -> None:  # what it leaves half sent, others have to send
            for _ in range(20):
                with pytest.raises(RequestTimeout):
                    send(body, 0.01 * (number + 1))

        given_up = [threads.submit(give_up, number) for number in range(2)]
        assert all(threads.map(echo, range(8)))
        for one in given_up:
            one.result(50)
        stats = agent.stats()
        assert (stats.active, stats.opened) == (0, 1)
        agent.close()


def test_dropped_stream_makes_room_though_nobody_waits_for_a_response(server):
    """
    The place of a stream that was given up is free when the server has answered a PING: the thread that waits for the
    place reads that.
    """
    server.reconfigure(max_concurrent_streams=1)
    with Agent(ca=server.ca_pem, max_sockets=1) as agent:
        for _ in range(5):
            with agent.stream("GET", server.url + "/bytes/100000000"):
                pass
            assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200
        assert agent.stats().opened == 1


def test_waiting_thread_reads_once_the_last_other_one_has_left(server, threads):
    """
    A thread that waits for a place while another one reads takes over the reading when that one leaves.
    """
    server.reconfigure(max_concurrent_streams=1)
    with Agent(ca=server.ca_pem, max_sockets=1) as agent:
        response = agent.open_stream("GET", server.url + "/bytes/100000000")
        waiting = [threads.submit(agent.request, "GET", server.url + "/hello", timeouts=5) for _ in range(5)]
        while agent.stats().waiting < 5:
            time.sleep(0.001)

        response.close()

        assert [future.result(10).status for future in waiting] == [200] * 5
        assert agent.stats().opened == 1


def test_dropped_response_is_reset_while_others_wait(server, agent, threads):
    """
    A response that is collected unread is reset at once if any thread waits on its connection, and not only when the
    agent is used again.
    """
    waiting = threads.submit(agent.request, "GET", server.url + "/delay/3")
    under_way(server, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        agent.open_stream("GET", server.url + "/bytes/100000000")
        gc.collect()

    assert server.wait_for(lambda s: s.connections[0].requests[2].reset_code == 8, timeout=2)
    assert not waiting.done()


def test_response_collected_with_its_connection(server, agent):
    """
    A response in a cycle, whose connection is closed and collected together with it, leaves nothing to be done.
    """
    held: list[Any] = [agent.open_stream("GET", server.url + "/bytes/100000")]
    agent.request("GET", server.url + "/delay/0.2")  # reads the other one to its end
    agent.close_idle()
    held.append(held)
    del held
    gc.collect()

    assert agent.request("GET", server.url + "/hello").status == 200
    assert agent.stats().active == 0


def test_user_code_is_not_run_by_who_reads(server, agent, threads):
    """
    While a body's next piece is made, or a callback runs, somebody else reads: it may wait for another response.
    """
    others: list[Future[Any]] = []

    def other() -> int:
        others.append(threads.submit(agent.request, "GET", server.url + "/hello", timeouts=5))
        return int(others[-1].result(10).status)

    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            yield b"%d" % other()

    once = iter([True])  # two threads may have an event at a time
    agent.on(events.Freed, lambda _event: len(others) == 3 and next(once, False) and other())

    assert agent.request("POST", server.url + "/echo", content=pieces(), timeouts=20).content == b"200200200"
    assert len(others) == 4


@pytest.mark.parametrize("busy_with", ["a body after 100", "a callback", "a tunnel"])
def test_who_has_read_leaves_that_to_who_waits(threads, busy_with):
    """
    Who reads while another one waits, and then does what is the user's, has that other one read meanwhile.
    """
    others: list[Future[Any]] = []
    begun: list[bool] = []
    served: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tunnel = scope["method"] == "CONNECT"
        if not tunnel:
            await asyncio.sleep(0.6 if scope["path"] == "/other" else 0.3)
            await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": tunnel})
        if tunnel:
            await asyncio.sleep(0.3)
            await send({"type": "http.response.body", "body": b"y"})

    def other_is_served(_event: object = None) -> None:
        if not begun:  # the end of the other one is an event, too
            begun.append(True)
            served.append(others[0].result(10).status)

    def pieces() -> Iterator[bytes]:
        other_is_served()
        yield b"x"

    with Server(app=app, alpn_protocols=HTTP2) as server, Agent(ca=server.ca_pem, max_sockets=1) as agent:
        agent.preconnect(server.url)

        def wait_beside() -> None:
            under_way(server, 1)
            others.append(threads.submit(agent.request, "GET", server.url + "/other", timeouts=5))
            under_way(server, 2)

        beside = threads.submit(wait_beside)
        if busy_with == "a body after 100":
            agent.request("POST", server.url, content=pieces(), expect_continue=True, timeouts=20)
        elif busy_with == "a callback":
            agent.on(events.Freed, other_is_served)
            agent.request("GET", server.url, timeouts=20)
        else:
            raw = agent.open_stream("CONNECT", server.url, timeouts=20).upgrade()
            assert (raw.recv(), raw.recv()) == (b"x", b"y")
            other_is_served()
            raw.close()
        beside.result(10)

    assert served == [200]


def test_waiting_takes_no_time(server, agent, threads):
    """
    Neither who reads nor who waits to be woken is busy meanwhile.
    """

    def wait() -> float:
        begun = time.thread_time()
        agent.request("GET", server.url + "/delay/1")
        return time.thread_time() - begun

    spent = [future.result(20) for future in [threads.submit(wait) for _ in range(3)]]

    assert max(spent) < 0.1


def test_inactivity_of_a_follower(server, agent, threads):
    """
    `timeout` of a request holds for the connection that it shares, also if the thread that reads there would wait for
    longer.
    """
    reader = threads.submit(agent.request, "GET", server.url + "/delay/10")
    under_way(server, 2)
    begun = time.monotonic()

    with pytest.raises(InactivityTimeout):
        agent.request("GET", server.url + "/delay/10", options={"timeout": 0.3})

    assert time.monotonic() - begun < 3
    assert isinstance(reader.exception(5), InactivityTimeout)


def test_broken_tunnel_is_not_a_broken_connection():
    """
    What ends a tunnel with an error leaves the connection to the others.
    """
    with Server(alpn_protocols=HTTP2, app=_cut_tunnels) as server, Agent(ca=server.ca_pem) as agent:
        with agent.stream("CONNECT", server.url) as response:
            raw = response.upgrade()
            with pytest.raises(RequestError):
                raw.recv(timeout=5)
            raw.close()

        assert agent.request("GET", server.url + "/hello").connection.id == response.connection.id
        assert agent.stats().opened == 1


async def _cut_tunnels(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["method"] == "CONNECT":
        raise ConnectionAbortedError
    await send({"type": "http.response.body"})


def test_destroyed_with_leader_and_followers_inside(server, agent, threads):
    """
    `destroy()` ends all requests on a shared connection at once, and its descriptor is closed.
    """
    waiting = [threads.submit(agent.request, "GET", server.url + "/delay/20") for _ in range(10)]
    under_way(server, 11)

    agent.destroy()

    assert {type(future.exception(5)).__name__ for future in waiting} == {"AgentClosed"}
    assert agent.stats().active == agent.stats().idle == 0
    assert server.wait_for(lambda s: s.stats.open_connections == 0)


def test_closed_with_leader_and_followers_inside(server, agent, threads):
    """
    `close()` lets them finish.
    """
    waiting = [threads.submit(agent.request, "GET", server.url + "/delay/0.3") for _ in range(10)]
    under_way(server, 11)

    agent.close()

    assert [future.result(5).status for future in waiting] == [200] * 10
    assert server.wait_for(lambda s: s.stats.open_connections == 0)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads change places nearly everywhere."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("switching")
def test_streams_read_and_closed_by_many(server, agent, threads):
    """
    While others read for it, a response may end at any moment of its being read, closed or given up: no connection is
    lost by that, no error comes of it, and every lease comes back.
    """

    def use(number: int) -> None:
        for count in range(60):
            content = b"%d-%d" % (number, count) * 200
            kind = (number + count) % 4
            if kind == 0:
                assert agent.request("POST", server.url + "/echo", content=content, timeouts=30).content == content
                continue
            with agent.stream("POST", server.url + "/echo", content=content, timeouts=30) as response:
                if kind == 1:
                    assert response.read() == content
                elif kind == 2:
                    assert next(response.iter_bytes())

    list(threads.map(use, range(16)))

    stats = agent.stats()
    assert (stats.active, stats.idle, stats.opened, stats.closed) == (0, 1, 1, {})


@pytest.mark.usefixtures("switching")
def test_counters_are_read_while_connections_come_and_go(server, threads):
    """
    `stats()` may be called at any time.
    """
    leave = threading.Event()
    with Agent(ca=server.ca_pem) as agent:

        def look() -> None:
            while not leave.is_set():
                agent.stats()

        looking = threads.submit(look)

        def connect(_number: int) -> None:
            for _ in range(10):
                agent.connect("localhost", server.port).close()

        list(threads.map(connect, range(8)))
        leave.set()

        looking.result(10)


AT_EVERY_LINE = """
import faulthandler, linecache, sys, threading, time, warnings
warnings.simplefilter("ignore", ResourceWarning)
from tlsagent import Agent, ConnectionLost
faulthandler.dump_traceback_later(40, exit=True)
agent = Agent(ca=CA, max_sockets=1)

class Struck(BaseException):
    pass

def leaving(name, number):
    # Whether it may be the way out of a `with` of a lock, where the interpreter lets no signal in.
    line = linecache.getline(name, number)
    return "with " in line or (line.strip() == "try:" and "with " in linecache.getline(name, number - 1))

def strike_at(number, work):
    # Run with an exception raised at the number-th line of these rooms; whether that came.
    left = number
    def local(frame, event, argument):
        nonlocal left
        if event == "line" and not leaving(frame.f_code.co_filename, frame.f_lineno):
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise Struck
        return local
    def trace(frame, event, argument):
        rooms = ("crew.py", "member.py", "desk.py", "threads.py")
        mine = frame.f_code.co_filename.endswith(rooms) and frame.f_code.co_name != "__del__"
        return local if mine else None
    sys.settrace(trace)
    try:
        work()
    except Struck:
        return True
    finally:
        sys.settrace(None)
    return False

def get():
    assert agent.request("GET", URL + "/delay/0.004", timeouts=10).status == 200

def post():
    assert agent.request("POST", URL + "/echo", content=iter([b"x"] * 2), timeouts=10).content == b"xx"

def stream():
    with agent.stream("GET", URL + "/bytes/70000", timeouts=10) as response:
        assert sum(map(len, response.iter_bytes())) == 70_000

def leave():
    with agent.stream("GET", URL + "/bytes/3000000", timeouts=10) as response:
        next(response.iter_bytes())

def other(outcomes):
    try:
        outcomes.append(agent.request("GET", URL + DELAY, timeouts=5, retry=False).status)
    except ConnectionLost as error:
        outcomes.append(str(error))

def round(number, work):
    # The other one leads, or follows, while this one is struck.
    outcomes = []
    thread = threading.Thread(target=other, args=(outcomes,))
    thread.start()
    time.sleep(0.0005)
    struck = strike_at(number, work)
    thread.join(10)
    assert outcomes and (outcomes[0] == 200 or "struck" in outcomes[0] or "interrupted" in outcomes[0]), outcomes
    end = time.monotonic() + 2
    while (agent.stats().active, agent.stats().waiting, agent.stats().dialling) != (0, 0, 0):
        assert time.monotonic() < end, (number, work, agent.stats())
    return struck

get()
number = STEP
while round(number, eval(WORK)):
    number += STEP
agent.close(0.1)
tell(lines=number)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("delay", ["/delay/0.003", "/delay/0.02"], ids=["alone", "beside"])
@pytest.mark.parametrize("work", ["get", "post", "stream", "leave"])
def test_struck_at_every_line(server, run: Callable[..., Any], work, delay):
    """
    An exception at any line of what a thread does on a shared connection: another thread that waits there hears of it
    or is served, nothing is held any more, and the agent serves.
    """
    told = run(server, AT_EVERY_LINE, WORK=work, DELAY=delay, STEP=1)

    assert told[0]["lines"] > 60
