"""
One harness for both drivers: the same test runs against `Agent` and against `AsyncAgent` on asyncio and on uvloop.
Tests marked `framing`, in which it matters how HTTP/1.1 is read, run with h11 too, where else "auto" takes httptools.

A harness is used from the test's thread. `submit` starts a request beside others and returns a future.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from wire_peer import Gates, Peer, Script, open_sockets, wait_until

from tlsagent import Agent, AsyncAgent
from tlsagent.testing import Server

DRIVERS = ["threads", "asyncio", "uvloop"]
# Engines do not see what drives them: twice is enough for h11.
WITH_H11 = [*DRIVERS, "threads-h11", "asyncio-h11"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on all drivers, and one that is marked `framing` on both HTTP/1.1 engines."""
    if "open_agent" in metafunc.fixturenames:
        framing = metafunc.definition.get_closest_marker("framing")
        metafunc.parametrize("open_agent", WITH_H11 if framing else DRIVERS, indirect=True)


class ThreadsHarness:
    """`Agent`, as it is."""

    driver = "threads"

    def __init__(self, **options: Any) -> None:
        self.agent = Agent(**options)
        self._threads = ThreadPoolExecutor(100, thread_name_prefix="harness")

    def request(self, method: str, url: str, **arguments: Any) -> Any:
        return self.agent.request(method, url, **arguments)

    def submit(self, method: str, url: str, **arguments: Any) -> Future[Any]:
        return self._threads.submit(self.agent.request, method, url, **arguments)

    @contextlib.contextmanager
    def stream(self, method: str, url: str, **arguments: Any) -> Iterator[Any]:
        with self.agent.stream(method, url, **arguments) as response:
            yield response

    def open_stream(self, method: str, url: str, **arguments: Any) -> Any:
        return self.agent.open_stream(method, url, **arguments)

    def connect(self, host: str, port: int, **options: Any) -> Any:
        return self.agent.connect(host, port, **options)

    def preconnect(self, origin: str, count: int = 1) -> list[str]:
        return list(self.agent.preconnect(origin, count))

    def close_idle(self) -> None:
        self.agent.close_idle()

    def stats(self) -> Any:
        return self.agent.stats()

    def close(self, **arguments: Any) -> None:
        self.agent.close(**arguments)

    def destroy(self) -> None:
        self.agent.destroy()

    def tear_down(self) -> None:
        self.agent.close(drain=0.2)
        self._threads.shutdown(wait=True)


class _BlockingStream:
    """An `AsyncStreamResponse` for blocking code."""

    def __init__(self, harness: AsyncHarness, response: Any) -> None:
        self._harness = harness
        self.response = response

    def __getattr__(self, name: str) -> Any:
        return getattr(self.response, name)

    def iter_bytes(self) -> Iterator[bytes]:
        pieces = self.response.aiter_bytes()
        while True:
            try:
                yield self._harness.run(pieces.__anext__())
            except StopAsyncIteration:
                return

    def read(self) -> bytes:
        return self._harness.run(self.response.aread())

    def upgrade(self) -> _BlockingRaw:
        return _BlockingRaw(self._harness, self._harness.call(self.response.upgrade))

    def close(self) -> None:
        self._harness.run(self.response.aclose())


class _BlockingRaw:
    """An `AsyncRawConnection` for blocking code."""

    def __init__(self, harness: AsyncHarness, raw: Any) -> None:
        self._harness = harness
        self.raw = raw

    @property
    def info(self) -> Any:
        return self.raw.info

    def send(self, data: bytes) -> None:
        self._harness.run(self.raw.send(data))

    def recv(self, max_bytes: int = 65_536) -> bytes:
        return self._harness.run(self.raw.recv(max_bytes))

    def close(self) -> None:
        self._harness.run(self.raw.aclose())


class AsyncHarness:
    """`AsyncAgent` in an event loop of its own, in a thread of its own."""

    def __init__(self, driver: str, **options: Any) -> None:
        self.driver = driver
        if driver == "uvloop":
            import uvloop

            self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        else:
            self.loop = asyncio.new_event_loop()
        self.failures: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.failures.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()
        self.agent = AsyncAgent(**options)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(50)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def call() -> Any:
            return function(*arguments)

        return self.run(call())

    def request(self, method: str, url: str, **arguments: Any) -> Any:
        return self.run(self.agent.request(method, url, **arguments))

    def submit(self, method: str, url: str, **arguments: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(self.agent.request(method, url, **arguments), self.loop)

    @contextlib.contextmanager
    def stream(self, method: str, url: str, **arguments: Any) -> Iterator[Any]:
        manager = self.agent.stream(method, url, **arguments)
        response = _BlockingStream(self, self.run(manager.__aenter__()))
        try:
            yield response
        finally:
            self.run(manager.__aexit__(None, None, None))

    def open_stream(self, method: str, url: str, **arguments: Any) -> Any:
        return _BlockingStream(self, self.run(self.agent.open_stream(method, url, **arguments)))

    def connect(self, host: str, port: int, **options: Any) -> Any:
        return _BlockingRaw(self, self.run(self.agent.connect(host, port, **options)))

    def preconnect(self, origin: str, count: int = 1) -> list[str]:
        return list(self.run(self.agent.preconnect(origin, count)))

    def close_idle(self) -> None:
        self.call(self.agent.close_idle)

    def stats(self) -> Any:
        return self.call(self.agent.stats)

    def close(self, **arguments: Any) -> None:
        self.run(self.agent.aclose(**arguments))

    def destroy(self) -> None:
        self.call(self.agent.destroy)

    def tear_down(self) -> None:
        try:
            self.run(self.agent.aclose(drain=0.2))
            assert self.run(_quiet()) == [], "tasks were left"
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
            self.loop.close()
        assert self.failures == [], "a callback of the loop failed"


async def _quiet() -> list[str]:
    """Give transports the turns that they need to close; tell which tasks do not end."""
    for _ in range(3):
        await asyncio.sleep(0)
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if others:
        await asyncio.wait(others, timeout=3)
    return [repr(task) for task in others if not task.done()]


Harness = ThreadsHarness | AsyncHarness


def _harnesses(driver: str) -> Iterator[Callable[..., Harness]]:
    made: list[Harness] = []
    driver, _, engine = driver.partition("-")

    def make(**options: Any) -> Harness:
        options.setdefault("http1_engine", engine or "auto")
        harness = ThreadsHarness(**options) if driver == "threads" else AsyncHarness(driver, **options)
        made.append(harness)
        return harness

    yield make
    for harness in made:
        harness.tear_down()


@pytest.fixture
def open_agent(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Return a function that makes an agent of the driver under test; all are closed at the end."""
    yield from _harnesses(request.param)


@pytest.fixture(params=DRIVERS[1:])
def open_async_agent(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Return a function that makes an `AsyncAgent`, for what only that can do."""
    yield from _harnesses(request.param)


@pytest.fixture
def open_sync_agent() -> Iterator[Callable[..., Any]]:
    """Return a function that makes an `Agent`, for what only that can do."""
    yield from _harnesses("threads")


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    """Return a server for tests that do not look at its counters."""
    with Server() as server:
        yield server


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a server of the test's own."""
    with Server() as server:
        yield server


@pytest.fixture
def gates() -> Gates:
    """Return the application of `gated_server`."""
    return Gates()


@pytest.fixture
def gated_server(gates: Gates) -> Iterator[Server]:
    """Return a server whose /gate/NAME answers when `gates.open(NAME)` is called."""
    with Server(app=gates) as server:
        yield server


@pytest.fixture
def open_peer() -> Iterator[Callable[..., Peer]]:
    """Return a function that starts a scripted peer; a script that failed fails the test."""
    with contextlib.ExitStack() as stack:

        def start(script: Script, **settings: Any) -> Peer:
            peer = Peer(script, **settings)
            stack.callback(peer.close)
            return peer

        yield start


@pytest.fixture(autouse=True)
def nothing_left(shared_server: Server) -> Iterator[None]:
    """Whatever a test does: once its agents and servers are closed, no socket and no thread of theirs is left."""
    sockets, threads = open_sockets(), set(threading.enumerate())
    yield

    def strangers() -> list[str]:
        return [t.name for t in threading.enumerate() if t not in threads]

    assert wait_until(lambda: not open_sockets() - sockets), f"left open: {open_sockets() - sockets}"
    assert wait_until(lambda: not strangers()), f"left running: {strangers()}"
