"""
What each floor of the house costs: CPU time of one warm HTTP/1.1 request, measured floor upon floor.

All floors run in one process on core 1 with 16 requests in flight on 16 connections to the server on core 0, in turn,
round after round. The lowest is asyncio and our TLS engine, fixed bytes out and nothing read of what comes in; the
highest is `AsyncAgent.request`. The HTTP engine is the one that an agent takes by itself; h11 stands beside it.
`time.process_time` over some thousand requests makes a figure, the median over the rounds counts, and a difference is
made of two figures of the same round. The server never sleeps: waking it is charged to the client, and a fast client
would wake it less often than a slow one.

Exits with 1 if the agent costs more than BAR microseconds over TLS engine and HTTP engine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.harness import Sample, Spread, Stopwatch, Target, pin, report, running_server, table
from benchmarks.server import BODY, RESPONSE
from tlsagent import AsyncAgent, check_server_identity
from tlsagent._core import AgentCore
from tlsagent._dial import Dial
from tlsagent._exchange import Exchange
from tlsagent._http.engines import http1_engine
from tlsagent._http.messages import request_head
from tlsagent._options import AgentOptions, Http1Options
from tlsagent._pool import Lease
from tlsagent._tls.engine import TLSEngine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tlsagent._connection import Connection
    from tlsagent._identity import Plan

BAR = 15.0
IN_FLIGHT = 16
ROUNDS = 9
REQUESTS = 3_200
"""Per floor and round."""
SECONDS = 45.0
"""After which no further round begins: on a machine shared with others fewer rounds must do."""

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
        self.url = target.url
        self.core = AgentCore(AgentOptions(ca=target.ca))
        self.plan: Plan = self.core.origin_plan(target.url)
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


class Bench(NamedTuple):
    """One floor, ready to run."""

    name: str
    run: Callable[[int], Awaitable[None]]


async def protocol_bench(name: str, kind: type[Floor], target: Target) -> Bench:
    """Open connections and return what makes requests on them."""
    loop = asyncio.get_running_loop()
    shared = Shared(target)
    port = shared.plan.key.origin.port
    connections = []
    for _ in range(IN_FLIGHT):
        _, connection = await loop.create_connection(lambda: kind(shared), "127.0.0.1", port)
        await connection.secure
        connections.append(connection)

    async def run(count: int) -> None:
        shared.done = loop.create_future()
        shared.left, shared.unanswered = count - IN_FLIGHT, count
        for connection in connections:
            connection.ask()
        await shared.done

    return Bench(name, run)


async def awaited_bench(name: str, target: Target) -> Bench:
    """Return the bench of TLS and HTTP engines whose every response is awaited by a task: what a coroutine costs."""
    loop = asyncio.get_running_loop()
    shared = Shared(target)
    port = shared.plan.key.origin.port

    class Awaited(WithHTTP):
        waker: asyncio.Future[None]

        def answered(self) -> None:
            self.waker.set_result(None)

    async def one(connection: Awaited) -> None:
        connection.waker = loop.create_future()
        connection.ask()
        await connection.waker

    connections = []
    for _ in range(IN_FLIGHT):
        _, connection = await loop.create_connection(lambda: Awaited(shared), "127.0.0.1", port)
        await connection.secure
        connections.append(connection)

    async def several(connection: Awaited, count: int) -> None:
        for _ in range(count):
            await one(connection)

    async def run(count: int) -> None:
        await asyncio.gather(*(several(connection, count // IN_FLIGHT) for connection in connections))

    return Bench(name, run)


async def agent_bench(name: str, target: Target) -> Bench:
    """Return the bench of `AsyncAgent.request`."""
    agent = AsyncAgent(ca=target.ca)

    async def several(count: int) -> None:
        for _ in range(count):
            response = await agent.request("GET", target.url)
            assert response.content == BODY

    async def run(count: int) -> None:
        await asyncio.gather(*(several(count // IN_FLIGHT) for _ in range(IN_FLIGHT)))

    return Bench(name, run)


class Turns:
    """Counts the turns of the event loop: how many responses one `select` finds decides what a request pays for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.count = 0
        selector = getattr(loop, "_selector", None)
        if selector is not None:
            select = selector.select

            def counted(timeout: float | None = None) -> Any:
                self.count += 1
                return select(timeout)

            selector.select = counted


async def measure(target: Target) -> dict[str, list[tuple[Sample, float]]]:
    """Let all floors take turns."""
    benches = [
        await protocol_bench("asyncio and TLS engine, fixed bytes", BareTLS, target),
        await protocol_bench("+ HTTP engine, sink does nothing", WithHTTP, target),
        await awaited_bench("  (the same, awaited by a task)", target),
        await protocol_bench("  (h11 in its place)", WithH11, target),
        await protocol_bench("+ Connection and Exchange", WithConnection, target),
        await protocol_bench("+ AgentCore: URL, pool, timers", WithCore, target),
        await agent_bench("AsyncAgent.request", target),
    ]
    turns = Turns(asyncio.get_running_loop())
    found: dict[str, list[tuple[Sample, float]]] = {bench.name: [] for bench in benches}
    began = time.monotonic()
    for round_ in range(-1, ROUNDS):
        if time.monotonic() - began > SECONDS:
            break
        for bench in benches:
            gc.collect()
            before = turns.count
            watch = Stopwatch(target.pid)
            await bench.run(REQUESTS)
            sample = watch.stop(REQUESTS)
            if round_ >= 0:  # the first one only warms up
                found[bench.name].append((sample, (turns.count - before) / REQUESTS))
    return found


def main() -> int:
    """Measure, report, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uvloop", action="store_true", help="on uvloop instead of asyncio's own loop")
    uvloop = parser.parse_args().uvloop
    pin(1)
    with running_server(spin=True) as target, asyncio.Runner(loop_factory=_uvloop if uvloop else None) as runner:
        found = runner.run(measure(target))
    names = list(found)
    cpu = {name: [sample.cpu_us for sample, _ in found[name]] for name in names}
    rows, below = [], None
    for name in names:
        samples = [sample for sample, _ in found[name]]
        step = Spread.of([a - b for a, b in zip(cpu[name], cpu[below or name], strict=True)])
        rows.append([
            name,
            Spread.of(cpu[name]).shown(1),
            f"{step.median:+.1f}" if below else "",
            f"{max(sample.rate for sample in samples):,.0f}",
            f"{Spread.of([sample.server_us for sample in samples]).median:.1f}",
            "" if uvloop else f"{Spread.of([turns for _, turns in found[name]]).median:.2f}",
        ])  # fmt: skip
        if not name.startswith(" "):
            below = name
    over = Spread.of([a - b for a, b in zip(cpu[names[-1]], cpu[names[1]], strict=True)])
    reached = over.median <= BAR
    loop = "uvloop" if uvloop else "asyncio"
    head = ["floor", "CPU µs per request", "step", "best requests/s", "server µs", "loop turns per request"]
    text = (
        f"# Floors of a warm request, {loop}, {IN_FLIGHT} in flight, {len(cpu[names[0]])} rounds of {REQUESTS:,}\n\n"
        f"{table(head, rows)}\n\n"
        f"The agent over TLS engine and HTTP engine: {over.shown(1)} µs of CPU; the bar is {BAR:g}: "
        + ("reached." if reached else "MISSED.")
    )
    report(f"floors_{loop}", text, {"bar": BAR, "over": over, "cpu_us": cpu})
    return 0 if reached else 1


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


if __name__ == "__main__":
    sys.exit(main())
