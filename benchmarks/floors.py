"""
What each floor of the house costs: one warm HTTP/1.1 request, measured floor upon floor.

Every floor has 16 requests in flight on 16 connections to a server that never sleeps. The lowest is asyncio and our TLS
engine, fixed bytes out and nothing read of what comes in; the highest, not here, is `AsyncAgent.request`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Job, Sample, Stopwatch, Target
from benchmarks.spinning_server import RESPONSE
from benchmarks.worker import event_loop
from tlsagent import check_server_identity
from tlsagent._core import AgentCore
from tlsagent._dial import Dial
from tlsagent._exchange import Exchange
from tlsagent._http.engines import http1_engine
from tlsagent._http.messages import request_head
from tlsagent._limits import Http1Options
from tlsagent._options import AgentOptions
from tlsagent._pool import Lease
from tlsagent._tls.engine import TLSEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tlsagent._connection import Connection
    from tlsagent._identity import Plan

_READ_BUFFER = 262_144


class Shared:
    """
    What the connections of one floor have in common.

    Attributes:
        left: Requests still to be begun.
        unanswered: Requests whose response has not come.
        done: Set when all are answered.
    """

    def __init__(self, target: Target) -> None:
        self.url = f"{target.url}/"
        self.core = AgentCore(AgentOptions(ca=target.ca, alpn_protocols=("http/1.1",)))
        self.plan: Plan = self.core.origin_plan(self.url)
        self.buffer = memoryview(bytearray(_READ_BUFFER))
        self.left = 0
        self.unanswered = 0
        self.done: asyncio.Future[None] | None = None

    def head(self) -> Any:
        """Return the head that `AsyncAgent` would make for a GET."""
        authority = self.plan.key.origin.authority
        return request_head("GET", "/", authority, None, body_length=None, has_body=False, keep_alive=True)


class Floor(asyncio.BufferedProtocol):
    """One connection that asks for the next response as soon as one is whole. Subclasses say how."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.buffer = shared.buffer
        self.clock = asyncio.get_running_loop().time
        self.secure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(self.data_to_send())

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self.secure.done():
            self.receive(self.buffer[:nbytes], self.clock())
            if self.is_secured():
                self.secure.set_result(None)
            self.transport.write(self.data_to_send())
        elif self.receive(self.buffer[:nbytes], self.clock()):
            self.answered()

    def answered(self) -> None:
        shared = self.shared
        shared.unanswered -= 1
        if shared.left:
            shared.left -= 1
            self.ask()
        elif not shared.unanswered:
            assert shared.done is not None
            shared.done.set_result(None)

    def data_to_send(self) -> bytes:
        raise NotImplementedError

    def is_secured(self) -> bool:
        raise NotImplementedError

    def receive(self, data: memoryview, now: float) -> bool:
        """Take bytes; returns whether a response is whole."""
        raise NotImplementedError

    def ask(self) -> None:
        """Send the next request."""
        raise NotImplementedError


class BareTLS(Floor):
    """asyncio and the TLS engine. The request is always the same bytes; a response is as many bytes as it must have."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        identity = shared.plan.key.identity
        self.engine = TLSEngine(
            shared.plan.origin.context,  # type: ignore[arg-type]  # opaque to the plan
            verified_name=identity.verified_name,
            server_name=identity.server_name,
            alpn_protocols=identity.alpn_protocols,
            reject_unauthorized=identity.reject_unauthorized,
            check_identity=check_server_identity,
        )
        self.engine.start()
        self.data_to_send = self.engine.data_to_send  # type: ignore[method-assign]
        self.request = http1_engine("auto")(Http1Options()).start(shared.head())
        self.due = 0

    def is_secured(self) -> bool:
        return self.engine.secured

    def receive(self, data: memoryview, now: float) -> bool:
        waiting = self.due
        self.engine.receive_data(data, now, self)
        return bool(waiting) and not self.due  # what comes unasked are session tickets

    def ask(self) -> None:
        self.due = len(RESPONSE)
        self.engine.write(self.request)
        self.transport.write(self.engine.data_to_send())

    # It is the engine's sink.
    def secured(self, facts: Any, now: float) -> None: ...
    def session_received(self, session: Any) -> None: ...
    def plaintext_ended(self, clean: bool, now: float) -> None: ...
    def plaintext_received(self, data: bytes, now: float) -> None:  # noqa: ARG002 - the sink's signature
        self.due -= len(data)


class WithHTTP(BareTLS):
    """The same with the HTTP engine that an agent takes by itself; its sink does nothing but see the end."""

    chosen = "auto"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.http = http1_engine(self.chosen)(Http1Options())
        self.head = shared.head()
        self.begun = False

    def ask(self) -> None:
        if self.begun:
            self.http.next_cycle()
        self.begun = True
        self.due = 1
        self.engine.write(self.http.start(self.head) + self.http.end_request())
        self.transport.write(self.engine.data_to_send())

    def plaintext_received(self, data: bytes, now: float) -> None:  # noqa: ARG002 - the sink's signature
        self.http.receive_data(data, self)

    # It is the HTTP engine's sink too.
    def informational_received(self, head: Any) -> None: ...
    def response_received(self, head: Any) -> None: ...
    def body_received(self, data: bytes) -> None: ...
    def response_ended(self, trailers: Any) -> None:  # noqa: ARG002 - the sink's signature
        self.due = 0


class WithH11(WithHTTP):
    """The same with h11."""

    chosen = "h11"


class WithConnection(Floor):
    """`Connection` with a new `Exchange` for each request; no core, no pool."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        dial = Dial(shared.plan, shared.core.options.timeouts)  # type: ignore[arg-type]
        self.connection = self.opened(dial)
        self.data_to_send = self.connection.data_to_send  # type: ignore[method-assign]
        self.head = shared.head()

    def opened(self, dial: Dial) -> Connection:
        return self.shared.core.open(dial, self.clock(), time.time())

    def is_secured(self) -> bool:
        return self.connection.info is not None

    def receive(self, data: memoryview, now: float) -> bool:
        connection = self.connection
        connection.receive_data(data, now)
        if connection.ended is None:
            return False
        connection.ended = None
        return True

    def ask(self) -> None:
        connection = self.connection
        now = self.clock()
        timeouts = self.shared.core.options.timeouts
        connection.start(Exchange(self.shared.plan, self.head, None, timeouts, now), now)
        self.transport.write(connection.data_to_send())


class WithCore(WithConnection):
    """`AgentCore`: the URL, the plan, the pool and the timers."""

    def opened(self, dial: Dial) -> Connection:  # noqa: ARG002 - the pool has one of its own
        core = self.shared.core
        placed = core.preconnect(self.shared.plan, self.clock())
        assert placed is not None
        self.dial = placed
        return core.open(placed, self.clock(), time.time())

    def exchange(self) -> Exchange:
        return self.shared.core.exchange(
            "GET",
            self.shared.url,
            self.clock(),
            headers=None,
            content=None,
            options=None,
            timeouts=None,
            trailers=None,
            retry=True,
            trace=None,
        )

    def receive(self, data: memoryview, now: float) -> bool:
        core, connection = self.shared.core, self.connection
        handshaking = connection.info is None
        connection.receive_data(data, now)
        if handshaking and connection.info is not None:
            connection.transport = self
            core.connected(self.dial, connection, now)
        if connection.ended is None:
            return False
        core.settle(connection, now)
        return True

    def ask(self) -> None:
        core = self.shared.core
        exchange = self.exchange()
        now = self.clock()
        lease = core.acquire(exchange, now)
        assert isinstance(lease, Lease)
        core.start(exchange, now)
        core.watch(lease.connection)
        lease.connection.transport.transport.write(lease.connection.data_to_send())


class Awaited(WithHTTP):
    """TLS and HTTP engines whose every response is awaited by a task: what a coroutine costs."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.loop = asyncio.get_running_loop()
        self.waker: asyncio.Future[None] = self.loop.create_future()

    def answered(self) -> None:
        self.waker.set_result(None)

    async def one(self) -> None:
        """Ask, and wait for the answer."""
        self.waker = self.loop.create_future()
        self.ask()
        await self.waker


FLOORS: dict[str, type[Floor]] = {
    "tls": BareTLS,
    "http": WithHTTP,
    "awaited": Awaited,
    "h11": WithH11,
    "connection": WithConnection,
    "core": WithCore,
}


async def opened(kind: type[Floor], target: Target, count: int) -> tuple[Shared, list[Any]]:
    """Open connections."""
    shared = Shared(target)
    origin = shared.plan.key.origin
    connections = []
    for _ in range(count):
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: kind(shared), origin.host, origin.port
        )
        await connection.secure
        connections.append(connection)
    return shared, connections


async def requests(shared: Shared, connections: list[Floor], count: int) -> None:
    """Make requests on all connections."""
    shared.done = asyncio.get_running_loop().create_future()
    shared.left, shared.unanswered = count - len(connections), count
    for connection in connections:
        connection.ask()
    await shared.done


async def awaited_requests(shared: Shared, connections: list[Awaited], count: int) -> None:  # noqa: ARG001
    """Make requests on all connections, from a task for each."""

    async def several(connection: Awaited) -> None:
        for _ in range(count // len(connections)):
            await connection.one()

    await asyncio.gather(*map(several, connections))


@contextlib.contextmanager
def contender(job: Job, target: Target) -> Iterator[Callable[[int], Sample]]:
    """Yield what makes requests on the floor that `job.variant` names."""
    kind = FLOORS[job.variant]
    act: Callable[..., Any] = awaited_requests if kind is Awaited else requests
    with asyncio.Runner(loop_factory=event_loop(job.loop)) as runner:
        shared, connections = runner.run(opened(kind, target, job.in_flight))

        def turn(count: int) -> Sample:
            watch = Stopwatch()
            runner.run(act(shared, connections, count))
            return watch.stop(count, {})

        yield turn
