"""
`Agent` under gevent: greenlets in place of threads, whenever the interpreter was patched, killed wherever they wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from wire_peer import Peer, PeerConnection, serve, tarpit

PATCHED = {
    "before": """
from gevent import monkey
monkey.patch_all()
from tlsagent import Agent
""",
    "after": """
import tlsagent
from tlsagent import Agent
import tlsagent._drivers.threads
from gevent import monkey
monkey.patch_all()
""",
    "agent": """
import tlsagent
early = tlsagent.Agent(ca=CA, max_sockets=4)
def Agent(**options):
    return early
from gevent import monkey
monkey.patch_all()
""",
}

COMMON = """
import gevent, gevent.event, socket, sys, time

class Ticks:
    # How often other greenlets get their turn: a hundred times a second.
    def __init__(self):
        self.count = 0
        self.greenlet = gevent.spawn(self.run)

    def run(self):
        while True:
            gevent.sleep(0.01)
            self.count += 1
"""


@pytest.mark.parametrize("patched", PATCHED)
def test_fifty_greenlets_over_four_sockets(server, http2, run, patched):
    """
    50 greenlets over one agent with four sockets: each gets its own answers, no more than four connections are opened.
    """
    told = run(
        server,
        PATCHED[patched]
        + COMMON
        + """
agent = Agent(ca=CA, max_sockets=4)

def user(number):
    for count in range(10):
        content = b"%d-%d" % (number, count)
        assert agent.request("POST", URL + "/echo", content=content, timeouts=20).content == content

gevent.joinall([gevent.spawn(user, number) for number in range(50)], raise_error=True)
tell(opened=agent.stats().opened, requests=agent.stats().requests)
agent.close()
""",
    )

    assert told[0]["requests"] == 500
    assert told[0]["opened"] <= 4 if http2 else told[0]["opened"] == 4


@pytest.mark.parametrize("patched", PATCHED)
def test_others_run_while_one_waits(server, http2, run, patched):
    """
    Waiting is cooperative in every phase: for a name, for a connection in use, for a response, for the end of others.
    """
    server.reconfigure(max_concurrent_streams=1)
    most = 1 if http2 else 4
    [told] = run(
        server,
        PATCHED[patched].replace("max_sockets=4", f"max_sockets={most}")
        + COMMON
        + """
ticks = Ticks()
agent = Agent(ca=CA, max_sockets=4)
real, sleep = socket.getaddrinfo, monkey.get_original("time", "sleep")

def slow(*arguments, **keywords):
    # As gevent's own resolver: the blocking call is in a thread of its pool.
    gevent.get_hub().threadpool.apply(sleep, (0.3,))
    return real(*arguments, **keywords)

def measured(work):
    before = ticks.count
    work()
    return ticks.count - before

socket.getaddrinfo = slow
lookup = measured(lambda: agent.request("GET", URL + "/hello"))
socket.getaddrinfo = real
wait = measured(lambda: agent.request("GET", URL + "/delay/0.3"))
users = [gevent.spawn(agent.request, "GET", URL + "/delay/0.3") for _ in range(MOST)]
gevent.sleep(0.05)
queue = measured(lambda: agent.request("GET", URL + "/hello"))
gevent.joinall(users, raise_error=True)
user = gevent.spawn(agent.request, "GET", URL + "/delay/0.3")
gevent.sleep(0.05)
close = measured(agent.close)
assert user.get().status == 200
tell(lookup=lookup, wait=wait, queue=queue, close=close)
""".replace("max_sockets=4", f"max_sockets={most}"),
        MOST=most,
    )

    assert all(count > 8 for count in told.values()), told


def test_nothing_of_asyncio_is_loaded(server, run):
    """
    The synchronous agent imports no asyncio, and keeps nothing for each thread.
    """
    told = run(
        server,
        """
import sys
from tlsagent import Agent
agent = Agent(ca=CA)
agent.request("GET", URL + "/hello")
agent.close()
tell(loaded=[name for name in ("asyncio", "queue", "concurrent.futures") if name in sys.modules])
""",
    )

    assert told == [{"loaded": []}]


def test_an_idle_connection_that_ended_is_found_out(server, run):
    """
    Under gevent too a connection is looked into before it is used again.
    """
    told = run(
        server,
        PATCHED["before"]
        + COMMON
        + """
agent = Agent(ca=CA, retry=False)
for _ in range(3):
    agent.request("GET", URL + "/close")
    tell(reused=agent.request("POST", URL + "/echo", content=b"x").reused)
agent.close()
""",
    )

    assert told == [{"reused": False}] * 3


def _stuck(phase: str) -> Callable[[PeerConnection], object]:
    """Return a script: the first connection goes no further than a phase, the others serve."""

    def script(connection: PeerConnection) -> None:
        stuck = phase != "lookup" and connection.number == 1
        if phase == "handshake" and stuck:
            while connection.sock.recv(65_536):
                pass
            return
        connection.handshake()
        if not stuck:
            serve(connection)
        if phase == "send":
            connection.peer.leave.wait(20)
        else:
            connection.recv_head()
            if phase == "receive":
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
            connection.wait_gone()

    return script


@pytest.fixture(params=["queue", "lookup", "connect", "handshake", "send", "wait", "receive"])
def stuck(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Return a phase and the address of a peer that gets stuck in it."""
    if request.param == "connect":
        with tarpit() as port:
            yield {"PHASE": request.param, "URL": f"https://127.0.0.1:{port}"}
        return
    peer = Peer(_stuck(request.param), tls=False)
    yield {"PHASE": request.param, "URL": peer.url.replace("127.0.0.1", "localhost"), "CA": peer.ca_pem}
    peer.close()


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_ended_in_any_phase(server, run, stuck, how):
    """
    A greenlet ended by `kill()` or `gevent.Timeout`, whatever it waits for: slot, place and descriptors are given back,
    and the next one is served.
    """
    told = run(
        server,
        PATCHED["before"]
        + COMMON
        + """
agent = Agent(ca=CA, max_sockets=1)
real = socket.getaddrinfo
content = None
if PHASE == "lookup":
    answer = gevent.event.Event()
    socket.getaddrinfo = lambda *a, **k: answer.wait() and real(*a, **k)
if PHASE == "send":
    content = iter([bytes(65_536)] * 2_000)

def user(seconds=0.3 if HOW == "timeout" else None):
    try:
        with gevent.Timeout(seconds):
            agent.request("POST" if content else "GET", URL, content=content, retry=False)
    except gevent.Timeout:
        return "timeout"

holder = gevent.spawn(user, None) if PHASE == "queue" else None
gevent.sleep(0.1 if holder else 0)
greenlet = gevent.spawn(user)
gevent.sleep(0.25)
assert not greenlet.dead
if HOW == "kill":
    greenlet.kill()
outcome = greenlet.get()
if holder:
    holder.kill()
stats = agent.stats()
left = [stats.active, stats.waiting, stats.dialling, stats.idle]
if PHASE == "lookup":
    answer.set()
if PHASE != "connect":
    assert agent.request("GET", URL, timeouts=10).content == b"ok"
agent.close()
tell(ended=outcome == "timeout" if HOW == "timeout" else isinstance(outcome, gevent.GreenletExit), left=left)
""",
        HOW=how,
        **stuck,
    )

    assert told == [{"ended": True, "left": [0, 0, 0, 0]}]


def test_threads_are_greenlets_of_the_child_too(server, run):
    """
    gevent's fork keeps the parent's greenlets alive in the child: those that waited there fail with a named error, and
    the agent serves.
    """
    told = run(
        server,
        PATCHED["before"]
        + COMMON
        + """
import os
from tlsagent import ConnectionLost
agent = Agent(ca=CA, max_sockets=2)
outcomes = []

def user():
    try:
        outcomes.append(agent.request("GET", URL + "/delay/0.5", timeouts=20, retry=False).status)
    except ConnectionLost as error:
        outcomes.append(error.code)

users = [gevent.spawn(user) for _ in range(5)]  # two wait for a response, three in the queue
gevent.sleep(0.2)
pid = os.fork()
gevent.joinall(users)
again = agent.request("GET", URL + "/hello", headers={"x-who": "parent" if pid else "child"}).status
tell(parent=bool(pid), outcomes=outcomes, again=again)
agent.close()
if not pid:
    os._exit(0)
os.waitpid(pid, 0)
""",
    )

    told.sort(key=lambda line: line["parent"])
    assert [line["outcomes"] for line in told] == [["ERR_TLSAGENT_FORKED"] * 5, [200] * 5]
    assert [line["again"] for line in told] == [200, 200]
    assert all(len({r.header("x-who") for r in c.requests} - {None}) <= 1 for c in server.connections)
