"""
An exception of a signal handler, at any moment: counters equal open descriptors, slots are given back, the agent
serves.
"""

from __future__ import annotations

import signal
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")

COMMON = """
import gc, os, random, re, signal, sys, threading, time, warnings
from tlsagent import Agent, ConnectionLost, RequestError

# A socket struck between its making and our first hold of it is closed by the interpreter, with a warning.
warnings.simplefilter("ignore", ResourceWarning)

class Interrupted(BaseException):
    pass

def unraisable(what):
    # An exception in a finaliser or the callback of a weak reference goes nowhere, by the rules of the language.
    if what.exc_type is not EXCEPTION:
        sys.__unraisablehook__(what)

sys.unraisablehook = unraisable

def descriptors():
    # The connections to the server that this process has open.
    with open("/proc/self/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    ours = {row[9] for row in rows if row[2].endswith(f":{PORT:04X}")}
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        found += link.removeprefix("socket:[").removesuffix("]") in ours
    return found

def settled(agent):
    stats = agent.stats()
    return (stats.active, stats.waiting, stats.dialling) == (0, 0, 0) and stats.idle == descriptors()

def check(agent, number):
    end = time.monotonic() + 5
    while not settled(agent):
        if time.monotonic() > end:
            raise SystemExit(f"round {number}: {agent.stats()} {descriptors()} open")
        time.sleep(0.001)

armed = False

def strike(signum, frame):
    global armed
    if armed:
        armed = False
        raise EXCEPTION

signal.signal(signal.SIGALRM, strike)

def struck(work, after):
    # Whether the timer struck in the middle of the work.
    global armed
    try:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, after)
            work()
        finally:
            armed = False
    except EXCEPTION:
        return True
    except RequestError as error:
        raise SystemExit(f"the interrupt became {error!r}")
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    return False
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("exception", ["KeyboardInterrupt", "Interrupted"])
def test_interrupted_at_any_moment(server, run, exception):
    """
    2,000 rounds of a timer that strikes at random: in the queue, in dials, in the middle of any change of the pool, in
    streams; after each the numbers agree with the descriptors, and in between the agent serves.
    """
    told = run(
        server,
        COMMON.replace("EXCEPTION", exception)
        + """
random.seed(SEED)
agent = Agent(ca=CA, max_sockets=2, max_total_sockets=2)
body = b"x" * 50_000

def get():
    assert agent.request("GET", URL + "/hello", timeouts=20).content == b"Hello, world"

def post():
    assert agent.request("POST", URL + "/echo", content=iter([body, body]), timeouts=20).content == body + body

def stream():
    with agent.stream("GET", URL + "/bytes/200000", timeouts=20) as response:
        assert sum(map(len, response.iter_bytes())) == 200_000

def leave():
    with agent.stream("GET", URL + "/bytes/200000", timeouts=20) as response:
        next(response.iter_bytes())

def cold():
    agent.close_idle()
    get()

def ahead():
    agent.close_idle()
    agent.preconnect(URL, 2)

works = [(get, 0.0006), (get, 0.0006), (post, 0.002), (stream, 0.002), (leave, 0.001), (cold, 0.006), (ahead, 0.01)]
counts = [0, 0]
for number in range(ROUNDS):
    work, longest = random.choice(works)
    counts[struck(work, random.uniform(1e-6, longest))] += 1
    check(agent, number)
    if number % 20 == 0:
        get()
agent.close()
assert descriptors() == 0
tell(struck=counts[1], finished=counts[0])
""",
        ROUNDS=1_000,
        SEED=len(exception),
    )

    assert told[0]["struck"] > 300, "the timers missed"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_interrupted_among_threads(server, http2, run):
    """
    While the main thread is struck, other threads wait for the same few slots: none of them hangs or fails. Where they
    share the connection that was being changed, that is lost for them, which only what is not idempotent hears of.
    """
    told = run(
        server,
        COMMON.replace("EXCEPTION", "Interrupted")
        + """
random.seed(5)
agent = Agent(ca=CA, max_sockets=2)
leave = threading.Event()
failures = []
served = [0] * 4
lost = []

def busy(number):
    try:
        while not leave.is_set():
            content = b"%d-%d" % (number, served[number])
            try:
                got = agent.request("POST", URL + "/echo", content=content, timeouts=10)
            except ConnectionLost as error:
                if "exception struck" not in str(error):
                    raise
                lost.append(error)
                continue
            assert got.content == content
            served[number] += 1
            if served[number] % 50 == 0:
                agent.close_idle()
    except BaseException as error:
        failures.append(repr(error))

def get():
    agent.request("GET", URL + "/hello", timeouts=20)

threads = [threading.Thread(target=busy, args=(n,), daemon=True) for n in range(4)]
for thread in threads:
    thread.start()
counts = [0, 0]
for number in range(ROUNDS):
    counts[struck(get, random.uniform(1e-6, 0.004))] += 1
leave.set()
for thread in threads:
    thread.join(20)
assert not any(thread.is_alive() for thread in threads)
check(agent, "last")
agent.close()
tell(struck=counts[1], served=min(served), failures=failures, lost=len(lost))
""",
        ROUNDS=1_000,
    )

    assert told[0]["failures"] == []
    assert http2 or not told[0]["lost"]
    assert told[0]["struck"] > 200
    assert told[0]["served"] > 0
