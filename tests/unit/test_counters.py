"""
What a warm request costs, counted and not timed: Python calls, system calls and memory, which no busy machine can blur.

Each ceiling may only go down. Whoever raises one says in the commit what the request gets for it. Calls are those of
functions of the package; a request of its own makes them, so the peer runs in a thread that the profiler does not see.
TLS works on memory and asks the system for nothing.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import gc
import select
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import tracemalloc
import types
from collections import Counter
from pathlib import Path

import pytest

import tlsagent
from tlsagent._drivers import sockets
from tlsagent.testing.authority import default_authority, default_credentials

RESPONSE = b"HTTP/1.1 200 OK\r\nServer: test\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"
PACKAGE = str(Path(tlsagent.__file__).parent)

CALLS = {"httptools": {"async": 72, "sync": 73}, "h11": {"async": 68, "sync": 69}}
"""
Python calls of the package per request. h11's own are not counted, some sixty; llhttp's are, one for each field and one
for the reason: four here.
"""
SYSTEM_CALLS = {
    "async": {"poll.poll": 1, "socket.send": 1, "epoll.poll": 2, "socket.recv_into": 1},
    "sync": {"poll.poll": 2, "socket.send": 1, "socket.recv_into": 1},
}
"""
Of each kind, per request of a caller that makes one after the other: a look into the idle connection, sending, waiting,
receiving. A second turn of asyncio's loop lets those run who await the response. Not seen, as it happens within C: the
getpid of `asyncio.get_running_loop`.
"""
PEAK = {"httptools": {"async": 3_200, "sync": 1_700}, "h11": {"async": 5_900, "sync": 4_300}}
"""Bytes that a request needs at once beyond what was there before it."""
KEPT_BLOCKS = {"httptools": 24, "h11": 24}
"""Blocks of memory that a response keeps alive as long as it is held."""

# Objects differ in size from one Python to the next: the ceilings on memory are those of one of them.
memory = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the ceilings are those of Python 3.11")

SELECTORS = tuple(
    type(make()) for name in ("epoll", "poll", "kqueue") if (make := getattr(select, name, None)) is not None
)

WARM_UP = 30
REPEATS = 20
HELD = 200


@pytest.fixture(scope="module")
def url():
    """A peer that gives one answer, each in a single record, so that nothing depends on how bytes are cut."""
    credentials = default_credentials(("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder, "server.pem")
        pem.write_bytes(credentials.key_pem + credentials.cert_pem)
        context.load_cert_chain(pem)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)

    def serve_one(plain):
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as sock:
            buffer = bytearray(16_384)  # kept: what the peer allocates would be counted with what the request does
            while sock.recv_into(buffer):
                sock.sendall(RESPONSE)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                plain.settimeout(30)
                threading.Thread(target=serve_one, args=(plain,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"https://localhost:{listener.getsockname()[1]}/"
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def options(engine):
    return {"ca": default_authority().ca_pem, "http1_engine": engine}


class SyncSubject:
    """`Agent` on a warm connection."""

    def __init__(self, url, engine):
        self._url = url
        self._agent = tlsagent.Agent(**options(engine))

    def request(self):
        return self._agent.request("GET", self._url)

    def requests(self, count):
        for _ in range(count):
            self.request()

    def close(self):
        self._agent.close()


class AsyncSubject:
    """`AsyncAgent` on a warm connection, one request at a time."""

    def __init__(self, url, engine):
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._agent = tlsagent.AsyncAgent(**options(engine))

    def request(self):
        return self._loop.run_until_complete(self._agent.request("GET", self._url))

    def requests(self, count):
        async def one_after_the_other():
            for _ in range(count):
                await self._agent.request("GET", self._url)

        self._loop.run_until_complete(one_after_the_other())

    def close(self):
        self._loop.run_until_complete(self._agent.aclose())
        self._loop.close()


@pytest.fixture(params=["async", "sync"])
def kind(request):
    return request.param


@pytest.fixture(params=["httptools", "h11"])
def engine(request):
    return request.param


@pytest.fixture
def visible_partials(monkeypatch):
    """Let drivers bind arguments by functions of Python: the profiler does not see what `functools.partial` calls."""

    def partial(function, *arguments):
        return lambda *more: function(*arguments, *more)

    monkeypatch.setattr(sockets, "functools", types.SimpleNamespace(partial=partial))


@pytest.fixture
def subject(kind, engine, url):
    subject = (AsyncSubject if kind == "async" else SyncSubject)(url, engine)
    with contextlib.closing(subject):
        for _ in range(WARM_UP):
            assert subject.request().content == b"Hello, world!"
        yield subject


@contextlib.contextmanager
def nobody_looking():
    """No collector and no tracer: coverage allocates too."""
    gc.collect()
    gc.disable()
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
        gc.enable()


def calls_of(act):
    """Return how often each function of the package was called."""
    calls = Counter()

    def profile(frame, event, _argument):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls[frame.f_code.co_qualname] += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(before)
    return calls


def asks_the_system(function):
    """Return how often a C function does it: methods of sockets and selectors, what `os` and `select` have."""
    owner = function.__self__
    if isinstance(owner, _socket.socket):
        if function.__name__ in ("fileno", "gettimeout"):
            return 0
        # With a timeout of more than 0 the socket polls before it does what it is asked for.
        return 2 if owner.gettimeout() and function.__name__.startswith(("recv", "send")) else 1
    return int(isinstance(owner, SELECTORS) or getattr(owner, "__name__", None) in ("posix", "select"))


def system_calls_of(act):
    """Return how often the system was asked for each thing, by the C functions that do it."""
    calls = Counter()

    def profile(_frame, event, function):
        if event == "c_call":
            calls[function.__qualname__] += asks_the_system(function)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(before)
    return +calls


def fewest_system_calls(act):
    """Return the least of several trials: on a busy machine a response comes late, and is waited for once more."""
    return min((system_calls_of(act) for _ in range(5)), key=Counter.total)


def test_warm_request_makes_no_more_calls_than_before(kind, engine, subject):
    """
    The number of Python calls that a request on a warm connection makes inside the package does not grow.
    """
    counted = min((calls_of(subject.request) for _ in range(REPEATS)), key=Counter.total)

    shown = "\n".join(f"{count:4} {name}" for name, count in counted.most_common())
    assert counted.total() <= CALLS[engine][kind], (
        f"{counted.total()} calls, at most {CALLS[engine][kind]} allowed:\n{shown}"
    )


@pytest.mark.usefixtures("visible_partials")  # before the subject, which binds them
@pytest.mark.skipif(not hasattr(select, "epoll"), reason="the ceilings are those of epoll")
def test_warm_request_makes_no_more_system_calls_than_before(kind, subject):
    """
    A request on a warm connection asks the system for no more than sending, waiting and receiving.
    """
    starting = fewest_system_calls(lambda: subject.requests(1))  # a loop asks too when it starts and stops

    counted = fewest_system_calls(lambda: subject.requests(1 + REPEATS)) - starting

    allowed = Counter({name: count * REPEATS for name, count in SYSTEM_CALLS[kind].items()})
    assert not counted - allowed, f"{REPEATS} requests: {dict(counted)}, at most {dict(allowed)} allowed"
    assert counted["socket.send"] == counted["socket.recv_into"] == REPEATS, f"some were not seen: {dict(counted)}"


@memory
def test_warm_request_needs_no_more_memory_than_before(kind, engine, subject):
    """
    The memory that a request on a warm connection needs at its height does not grow.
    """
    peaks = []
    with nobody_looking():
        tracemalloc.start()
        try:
            for _ in range(REPEATS):
                before, _ = tracemalloc.get_traced_memory()
                tracemalloc.reset_peak()
                subject.request()
                peaks.append(tracemalloc.get_traced_memory()[1] - before)
        finally:
            tracemalloc.stop()

    assert statistics.median(peaks) <= PEAK[engine][kind]


@memory
def test_held_response_keeps_no_more_memory_than_before(kind, engine, subject):
    """
    A response keeps few blocks of memory alive, and they go with it: no cycle waits for the collector.
    """
    responses = [None] * HELD
    with nobody_looking():
        before = sys.getallocatedblocks()
        for index in range(HELD):
            responses[index] = subject.request()
        kept = (sys.getallocatedblocks() - before) / HELD
        responses.clear()
        unreachable = gc.collect()  # empties the interpreter's own free lists too
        left = (sys.getallocatedblocks() - before) / HELD

    assert kept <= KEPT_BLOCKS[engine]
    assert unreachable < HELD, "every response is part of a cycle"
    assert left < 2, "every request leaves something behind"
