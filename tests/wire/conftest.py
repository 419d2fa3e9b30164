"""
One harness for both drivers and both versions of HTTP: a test runs with `Agent` and with `AsyncAgent` on asyncio and on
uvloop, and if it talks to a server of ours (`server`, `shared_server`, `gated_server`, `new_server`) with HTTP/1.1 and
with HTTP/2. Where both differ by design the test asks for `protocol` and states both. What is HTTP/1.1's alone says so:
by its peer, which is scripted in bytes of HTTP/1.1 (`open_peer`), or by the marker `http1` with a reason. What is
HTTP/2's alone has the marker `http2`, and runs on one event loop; what is about TLS, below HTTP, has the marker `tls`,
and runs with HTTP/2 on one driver.

Tests marked `framing`, in which it matters how HTTP is read, run with the slower engines too: h11 and h2.

A harness is used from the test's thread. `submit` starts a request beside others and returns a future.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from wire_peer import Gates, Peer, Script, open_sockets, wait_until

from tlsagent import Agent, AsyncAgent
from tlsagent.testing import RawServer, Server
from tlsagent.testing.frames import FramePeer

DRIVERS = ["threads", "asyncio", "uvloop"]
SERVERS = frozenset({"server", "shared_server", "gated_server", "new_server", "protocol"})
ALPN = {"HTTP/1.1": ("http/1.1",), "HTTP/2": ("h2", "http/1.1")}


class Variant(NamedTuple):
    """With what a test runs: the driver, the version of HTTP that the servers speak, and the engine if not "auto"."""

    driver: str
    protocol: str = "HTTP/1.1"
    engine: str = "auto"

    def __str__(self) -> str:
        words = [self.driver, "http2" if self.protocol == "HTTP/2" else "", self.engine.replace("auto", "")]
        return "-".join(filter(None, words))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the variants of a test by the fixtures that it asks for, and by its markers."""
    used = set(metafunc.fixturenames)
    if "variant" not in used:
        return
    drivers = [*DRIVERS]
    if "open_agent" not in used:
        drivers = DRIVERS[1:] if "open_async_agent" in used else DRIVERS[:1]
    protocols = [*ALPN]
    if metafunc.definition.get_closest_marker("http2"):
        protocols, drivers = ["HTTP/2"], [driver for driver in drivers if driver != "uvloop"]
    elif not SERVERS & used or "open_peer" in used or metafunc.definition.get_closest_marker("http1"):
        protocols = protocols[:1]
    variants = [Variant(driver, protocol) for protocol in protocols for driver in drivers]
    if metafunc.definition.get_closest_marker("tls"):
        variants = variants[: len(drivers) + 1]
    if metafunc.definition.get_closest_marker("framing"):
        # Engines do not see what drives them: twice is enough.
        slower = {"HTTP/1.1": "h11", "HTTP/2": "h2"}
        variants += [Variant(driver, protocol, slower[protocol]) for protocol in protocols for driver in drivers[:2]]
    metafunc.parametrize("variant", variants, indirect=True, ids=str)


class ThreadsHarness:
    """`Agent`, as it is."""

    driver = "threads"
    protocol = "HTTP/1.1"

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

    def network_changed(self) -> None:
        self.agent.network_changed()

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

    protocol = "HTTP/1.1"

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

    def network_changed(self) -> None:
        self.call(self.agent.network_changed)

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


def _harnesses(variant: Variant) -> Iterator[Callable[..., Harness]]:
    made: list[Harness] = []
    engine = "http1_engine" if variant.protocol == "HTTP/1.1" else "http2_engine"

    def make(**options: Any) -> Harness:
        options.setdefault(engine, variant.engine)
        driver = variant.driver
        harness = ThreadsHarness(**options) if driver == "threads" else AsyncHarness(driver, **options)
        harness.protocol = variant.protocol
        made.append(harness)
        return harness

    yield make
    for harness in made:
        harness.tear_down()


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> Variant:
    """Return with what the test runs; `pytest_generate_tests` chooses."""
    return request.param


@pytest.fixture
def protocol(variant: Variant) -> str:
    """Return the version of HTTP that the servers of the test speak, as in `Response.http_version`."""
    return variant.protocol


@pytest.fixture
def open_agent(variant: Variant) -> Iterator[Callable[..., Any]]:
    """Return a function that makes an agent of the driver under test; all are closed at the end."""
    yield from _harnesses(variant)


@pytest.fixture
def open_async_agent(variant: Variant) -> Iterator[Callable[..., Any]]:
    """Return a function that makes an `AsyncAgent`, for what only that can do."""
    yield from _harnesses(variant)


@pytest.fixture
def open_sync_agent(variant: Variant) -> Iterator[Callable[..., Any]]:
    """Return a function that makes an `Agent`, for what only that can do."""
    yield from _harnesses(variant)


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[dict[str, Server]]:
    """Return a server for each version of HTTP."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Server(alpn_protocols=alpn)) for name, alpn in ALPN.items()}


@pytest.fixture
def shared_server(shared_servers: dict[str, Server], protocol: str) -> Server:
    """Return a server for tests that do not look at its counters."""
    return shared_servers[protocol]


@pytest.fixture
def new_server(protocol: str) -> Callable[..., Server]:
    """Return what makes a `Server` with settings of the test's own."""
    return functools.partial(Server, alpn_protocols=ALPN[protocol])


@pytest.fixture
def server(new_server: Callable[..., Server]) -> Iterator[Server]:
    """Return a server of the test's own."""
    with new_server() as server:
        yield server


@pytest.fixture
def gates() -> Gates:
    """Return the application of `gated_server`."""
    return Gates()


@pytest.fixture
def gated_server(gates: Gates, new_server: Callable[..., Server]) -> Iterator[Server]:
    """
    Return a server whose /gate/NAME answers when `gates.open(NAME)` is called.

    It takes one request at a time on a connection, with HTTP/2 too, so that the pool has queues and several connections
    whichever is spoken.
    """
    with new_server(app=gates, max_concurrent_streams=1) as server:
        yield server


@pytest.fixture
def open_peer() -> Iterator[Callable[..., Peer]]:
    """Return a function that starts a peer scripted in bytes, of HTTP/1.1 if any; one that failed fails the test."""
    with contextlib.ExitStack() as stack:

        def start(script: Script, **settings: Any) -> Peer:
            peer = Peer(script, **settings)
            stack.callback(peer.close)
            return peer

        yield start


@pytest.fixture
def open_frames() -> Iterator[Callable[..., RawServer]]:
    """Return a function that starts a peer scripted in frames of HTTP/2; a script that failed fails the test."""
    with contextlib.ExitStack() as stack:

        def start(script: Callable[[FramePeer], object], **settings: Any) -> RawServer:
            settings.setdefault("alpn_protocols", ("h2",))
            return stack.enter_context(RawServer(lambda raw: script(FramePeer(raw)), **settings))

        yield start


@pytest.fixture(autouse=True)
def nothing_left(shared_servers: dict[str, Server]) -> Iterator[None]:
    """Whatever a test does: once its agents and servers are closed, no socket and no thread of theirs is left."""
    sockets, threads = open_sockets(), set(threading.enumerate())
    yield

    def strangers() -> list[str]:
        return [t.name for t in threading.enumerate() if t not in threads]

    assert wait_until(lambda: not open_sockets() - sockets), f"left open: {open_sockets() - sockets}"
    assert wait_until(lambda: not strangers()), f"left running: {strangers()}"
