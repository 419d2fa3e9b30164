"""
A fork leaves the parent's connections alone: the child sends nothing on them and starts clean.

A single byte of the child's on a TLS connection of the parent's would break it, and an end of it would be in the
server's log; so a connection on which the parent goes on undisturbed has seen nothing of the child.
"""

from __future__ import annotations

import os
import re

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SENDERS = """
import faulthandler, gc, os
from tlsagent import Agent, AsyncAgent, ConnectionLost

def finish(work):
    # What a child does, and how it ended; pytest's and our own exit handlers are the parent's.
    status = 1
    faulthandler.dump_traceback_later(20, exit=True)
    try:
        work()
        gc.collect()
        status = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(status)

def join(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""

ASYNC = (
    SENDERS
    + """
import asyncio
def new_loop():
    if LOOP == "uvloop":
        import uvloop
        return uvloop.new_event_loop()
    return asyncio.new_event_loop()

async def send(agent, who, count):
    for _ in range(count):
        response = await agent.request("GET", URL + "/hello", headers={"x-who": who})
        assert response.content == b"Hello, world"
"""
)


def senders(server):
    """Return for each connection who sent how many requests on it."""
    found = []
    for connection in server.connections:
        names = [request.header("x-who") for request in connection.requests]
        found.append({name: names.count(name) for name in names})
    return found


def test_parent_and_child_go_on_apart(server, run):
    """
    After a fork both send 100 requests: the parent on the connection it had, the child on one of its own.
    """
    run(
        server,
        SENDERS
        + """
agent = Agent(ca=CA, max_sockets=1)

def send(who, count=100):
    for _ in range(count):
        assert agent.request("GET", URL + "/hello", headers={"x-who": who}).content == b"Hello, world"

def work():
    assert agent.stats().idle == agent.stats().requests == 0
    send("child")
    assert agent.stats().handshakes_resumed == 0
    agent.close()

send("parent", 3)
pid = os.fork()
if pid == 0:
    finish(work)
send("parent")
join(pid)
send("parent")
agent.close()
""",
    )

    assert senders(server) == [{"parent": 203}, {"child": 100}]
    assert [c.session_reused for c in server.connections] == [False, False]
    assert server.wait_for(lambda s: {c.closed_by for c in s.connections} == {"close_notify"})


@pytest.mark.parametrize("end", ["agent.close()", "agent.destroy()", "agent.close_idle()", "del agent, response, raw"])
def test_child_that_ends_an_inherited_agent_touches_no_socket(server, run, end):
    """
    Closing, destroying or collecting an inherited agent in the child, with a connection idle, one in the middle of a
    response and a raw one, disturbs none of them.
    """
    told = run(
        server,
        SENDERS
        + """
agent = Agent(ca=CA)
agent.preconnect(URL)
response = agent.open_stream("GET", URL + "/bytes/1000000", headers={"x-who": "parent"})
agent.preconnect(URL)
raw = agent.connect("localhost", PORT, alpn_protocols=["http/1.1"])

def work():
    global agent, response, raw
    for use in (response.read, lambda: raw.send(b"x"), raw.recv):
        try:
            use()
        except ConnectionLost as error:
            assert error.code == "ERR_TLSAGENT_FORKED", error
        else:
            raise AssertionError("the child used its parent's connection")
    response.close()
    raw.close()
    END

pid = os.fork()
if pid == 0:
    finish(work)
join(pid)
assert len(response.read()) == 1_000_000
assert agent.request("GET", URL + "/hello", headers={"x-who": "parent"}).reused
raw.send(b"GET /hello HTTP/1.1\\r\\nHost: a\\r\\nx-who: parent\\r\\n\\r\\n")
assert raw.recv().startswith(b"HTTP/1.1 200")
tell(opened=agent.stats().opened)
raw.close()
agent.close()
""".replace("END", end),
    )

    assert told == [{"opened": 3}]
    assert {name for names in senders(server) for name in names} == {"parent"}


def test_fork_while_threads_use_the_agent(server, run):
    """
    A fork at any moment of eight busy threads: locks are made anew, so no child hangs, and no parent's request fails.
    """
    told = run(
        server,
        SENDERS
        + """
import sys, threading
sys.setswitchinterval(1e-5)
agent = Agent(ca=CA, max_sockets=4)
leave = threading.Event()
sent = []

def send(who):
    response = agent.request("POST", URL + "/echo", content=who, headers={"x-who": who.rstrip("0123456789")})
    assert response.content == who.encode(), response.content

def busy(number):
    while not leave.is_set():
        send(f"parent{number}")
        sent.append(number)

# OpenSSL looks its algorithms up at the first handshake, under locks of its own: a fork just then may hang the child.
send("parent0")
threads = [threading.Thread(target=busy, args=(n,), daemon=True) for n in range(8)]
for thread in threads:
    thread.start()
for _ in range(12):
    before = len(sent)
    pid = os.fork()
    if pid == 0:
        finish(lambda: [send("child1") for _ in range(3)])
    join(pid)
    while len(sent) < before + 8:
        leave.wait(0.001)
agent._desk.lock.acquire()  # and for certain at the worst of moments
pid = os.fork()
if pid == 0:
    finish(lambda: [send("child1") for _ in range(3)])
join(pid)
agent._desk.lock.release()
leave.set()
for thread in threads:
    thread.join()
stats = agent.stats()
tell(active=stats.active, waiting=stats.waiting, dialling=stats.dialling, failed=stats.requests - 1 - len(sent))
agent.close()
""",
    )

    assert told == [{"active": 0, "waiting": 0, "dialling": 0, "failed": 0}]
    assert all(len(names) <= 1 for names in senders(server)), "parent and child on one connection"
    assert sum(names.get("child", 0) for names in senders(server)) == 39


def test_fork_in_the_middle_of_a_request(server, run):
    """
    A hook that forks during a request: the parent's request goes on, in the child it fails with a named error.
    """
    told = run(
        server,
        SENDERS
        + """
parent = os.getpid()
pids = []

def lookup(host, family):
    if not pids:
        pids.append(os.fork())
    return ["127.0.0.1"]

agent = Agent(ca=CA, max_sockets=1, lookup=lookup)

def work():
    assert (agent.stats().dialling, agent.stats().waiting, agent.stats().active) == (0, 0, 0)
    assert agent.request("GET", URL + "/hello", headers={"x-who": "child"}).status == 200
    agent.close()

try:
    response = agent.request("GET", URL + "/hello", headers={"x-who": "parent"})
except ConnectionLost as error:
    assert os.getpid() != parent
    tell(child=error.code)
    finish(work)
join(pids[0])
tell(parent=response.status)
agent.close()
""",
    )

    assert sorted(told, key=str) == [{"child": "ERR_TLSAGENT_FORKED"}, {"parent": 200}]
    assert sorted(senders(server), key=str) == [{"child": 1}, {"parent": 1}]


def test_look_ups_of_the_child(server, run):
    """
    The resolver's threads stay with the parent: the child resolves names with its own, also names under way.
    """
    run(
        server,
        SENDERS
        + """
import socket, threading
looking, answer, real = threading.Event(), threading.Event(), socket.getaddrinfo

def slow(*arguments, **keywords):
    looking.set()
    assert answer.wait(20)
    return real(*arguments, **keywords)

socket.getaddrinfo = slow
agent = Agent(ca=CA)
thread = threading.Thread(target=agent.request, args=("GET", URL + "/hello"), kwargs={"headers": {"x-who": "parent"}})
thread.start()
assert looking.wait(20)

def work():
    socket.getaddrinfo = real
    assert agent.request("GET", URL + "/hello", headers={"x-who": "child"}, timeouts=5).status == 200
    agent.close()

pid = os.fork()
if pid == 0:
    finish(work)
join(pid)
answer.set()
thread.join()
agent.close()
""",
    )

    assert senders(server) == [{"child": 1}, {"parent": 1}]


def test_tickets_stay_with_the_parent(server, run):
    """
    No ticket is used by two processes: the child resumes nothing of its parent's, from the store or from the options.
    """
    told = run(
        server,
        SENDERS
        + """
from tlsagent import MemorySessionStore, events
store = MemorySessionStore()
sessions = []
agent = Agent(ca=CA, session_store=store)
agent.on(events.SessionTicket, lambda event: sessions.append(event.session))
agent.request("GET", URL + "/hello")
agent.request("GET", URL + "/hello")
agent.close_idle()
assert sessions and len(store)
special = {"session": sessions[0], "servername": "localhost"}

def work():
    agent.request("GET", URL + "/hello")
    agent.close_idle()
    agent.request("GET", URL + "/hello")
    tell(child=[agent.stats().handshakes_full, agent.stats().handshakes_resumed])
    agent.close()

pid = os.fork()
if pid == 0:
    finish(work)
join(pid)
agent.request("GET", URL + "/hello")
tell(parent=[agent.stats().handshakes_full, agent.stats().handshakes_resumed])
agent.close()
""",
    )

    assert told == [{"child": [1, 1]}, {"parent": [1, 1]}]


def test_child_of_multiprocessing(server, run):
    """
    An agent made at class level, as load generators do before they start their workers, serves in every worker.
    """
    told = run(
        server,
        SENDERS
        + """
import multiprocessing

class User:
    agent = Agent(ca=CA)

def work(number):
    return [User.agent.request("GET", URL + "/hello", headers={"x-who": str(number)}).status for _ in range(20)]

User.agent.request("GET", URL + "/hello", headers={"x-who": "parent"})
with multiprocessing.get_context("fork").Pool(3) as pool:
    tell(statuses=pool.map(work, range(6), chunksize=2))
assert User.agent.request("GET", URL + "/hello", headers={"x-who": "parent"}).reused
User.agent.close()
""",
    )

    assert told == [{"statuses": [[200] * 20] * 6}]
    assert senders(server)[0] == {"parent": 2}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_async_child_starts_clean_in_a_loop_of_its_own(server, run, loop):
    """
    A child uses an inherited `AsyncAgent` in a new event loop; the parent's loop and connections go on.
    """
    run(
        server,
        ASYNC
        + """
agent = AsyncAgent(ca=CA)
loop = new_loop()
loop.run_until_complete(send(agent, "parent", 3))
stream = loop.run_until_complete(agent.open_stream("GET", URL + "/bytes/1000000", headers={"x-who": "parent"}))
waiting = loop.create_task(agent.request("GET", URL + "/delay/1", headers={"x-who": "parent"}))
loop.run_until_complete(asyncio.sleep(0.1))

def work():
    assert agent.stats().idle == agent.stats().active == 0
    other = new_loop()
    other.run_until_complete(send(agent, "child", 100))
    other.run_until_complete(agent.aclose())
    other.close()

pid = os.fork()
if pid == 0:
    finish(work)
join(pid)
loop.run_until_complete(send(agent, "parent", 100))
assert len(loop.run_until_complete(stream.aread())) == 1_000_000
assert loop.run_until_complete(waiting).status == 200
loop.run_until_complete(agent.aclose())
loop.close()
""",
        LOOP=loop,
    )

    found = senders(server)
    assert {"child": 100} in found
    assert sum(names.get("parent", 0) for names in found) == 105
    assert all(len(names) == 1 for names in found)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_async_child_of_a_running_loop(server, run, loop):
    """
    A coroutine that forks: the child leaves the parent's loop alone, with requests and an attempt under way.
    """
    run(
        server,
        ASYNC
        + """
agent = AsyncAgent(ca=CA, max_sockets=2)

async def main():
    await send(agent, "parent", 2)
    tasks = [asyncio.create_task(send(agent, "parent", 10)) for _ in range(6)]
    await asyncio.sleep(0)
    pid = os.fork()
    if pid == 0:
        if LOOP == "asyncio":
            finish(lambda: asyncio.run(child()))
        os._exit(0)  # uvloop does not leave a running loop behind in the child: nothing can be run there
    await asyncio.to_thread(join, pid)
    await asyncio.gather(*tasks)
    await agent.aclose()

async def child():
    await send(agent, "child", 20)
    await agent.aclose()

new_loop().run_until_complete(main()) if LOOP == "uvloop" else asyncio.run(main())
""",
        LOOP=loop,
    )

    assert sum(names.get("parent", 0) for names in senders(server)) == 62
    assert all(len(names) <= 1 for names in senders(server))


def test_every_descriptor_of_the_child_s_is_its_own(server, http2, run):
    """
    In the child no descriptor leads to a socket of the agent's any more: those that are left lead to /dev/null. That is
    so also for the two by which who waits for a shared connection is called.
    """
    told = run(
        server,
        SENDERS
        + """
agent = Agent(ca=CA)
raw = agent.connect("localhost", PORT)
agent.preconnect(URL, 3)

def sockets():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return len([link for link in links if link.startswith("socket:")])

pid = os.fork()
if pid == 0:
    finish(lambda: tell(child=sockets()))
join(pid)
tell(parent=sockets())
raw.close()
agent.close()
""",
    )

    assert told == [{"child": 0}, {"parent": 10 if http2 else 4}]


def test_fork_with_no_descriptor_left(server, run):
    """
    A process that has used up its descriptors forks: the child's copies are cut off all the same.
    """
    run(
        server,
        SENDERS
        + """
import resource
agent = Agent(ca=CA)
agent.preconnect(URL, 3)
response = agent.open_stream("GET", URL + "/bytes/1000000", headers={"x-who": "parent"})
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass

def work():
    agent.close()
    response.close()
    for descriptor in held:
        os.close(descriptor)
    for name in os.listdir("/proc/self/fd"):
        try:
            assert not os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            pass

pid = os.fork()
if pid == 0:
    finish(work)
join(pid)
for descriptor in held:
    os.close(descriptor)
assert len(response.read()) == 1_000_000
assert agent.request("GET", URL + "/hello", headers={"x-who": "parent"}).reused
agent.close()
""",
    )

    assert {name for names in senders(server) for name in names} == {"parent"}


def test_the_error_says_what_to_do(server, run):
    """
    The child's error names the fork and the way out.
    """
    told = run(
        server,
        SENDERS
        + """
agent = Agent(ca=CA)
response = agent.open_stream("GET", URL + "/bytes/1000000")
pid = os.fork()
if pid == 0:
    try:
        response.read()
    except ConnectionLost as error:
        tell(text=str(error))
    os._exit(0)
join(pid)
response.read()
agent.close()
""",
    )

    assert re.search("forked.*send the request again", told[0]["text"])
