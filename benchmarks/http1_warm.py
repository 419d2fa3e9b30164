"""
HTTP/1.1 on warm connections: `AsyncAgent` against aiohttp with 16 requests in flight, `Agent` against http.client.

Each contender is a process of its own on core 1, the server is on core 0. In every round each has its turn, all with
the same URL, the same certificate to trust and verification on; all of them look at status and body. tlsagent runs with
httptools, as it does by itself where that is installed, and with h11, which is pure Python where aiohttp has a parser
in C. Exits with 1 if a ratio is below its bar in PAIRS.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import http.client
import json
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from benchmarks.harness import Sample, Spread, Stopwatch, Target, paired, pin, report, running_server, table
from benchmarks.server import BODY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

IN_FLIGHT = 16
ROUNDS = 7
SECONDS = 0.6
"""How long a turn is to take."""

PAIRS: dict[tuple[str, str], float | None] = {
    ("tlsagent, asyncio", "aiohttp, asyncio"): None,
    ("tlsagent, uvloop", "aiohttp, uvloop"): None,
    ("tlsagent with h11, asyncio", "aiohttp, asyncio"): 1.1,
    ("tlsagent with h11, uvloop", "aiohttp, uvloop"): 1.1,
    ("tlsagent, sync", "http.client, sync"): None,
    ("tlsagent, asyncio", "tlsagent with h11, asyncio"): None,
    ("tlsagent, sync", "tlsagent with h11, sync"): None,
}
"""Who is compared with whom, and the least ratio of their rates."""


def check(status: int, body: bytes) -> None:
    """Look at a response as anybody would."""
    assert status == 200
    assert body == BODY


# --- Contenders: each is given a target and yields a function that makes some requests ------------------------------


@contextlib.contextmanager
def async_contender(
    target: Target,
    uvloop: bool,
    opening: Callable[[Target], Awaitable[Any]],
    one: Callable[[Any, str], Awaitable[None]],
) -> Iterator[Callable[[int], None]]:
    """Run `one` request after the other in each of 16 tasks."""

    async def several(client: Any, count: int) -> None:
        for _ in range(count):
            await one(client, target.url)

    async def turn(client: Any, count: int) -> None:
        await asyncio.gather(*(several(client, count // IN_FLIGHT) for _ in range(IN_FLIGHT)))

    with asyncio.Runner(loop_factory=_uvloop if uvloop else None) as runner:
        client = runner.run(opening(target))
        try:
            yield lambda count: runner.run(turn(client, count))
        finally:
            runner.run(client.__aexit__(None, None, None))


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


async def _open_tlsagent(target: Target) -> Any:
    from tlsagent import AsyncAgent

    return AsyncAgent(ca=target.ca, http1_engine="httptools")


async def _open_tlsagent_h11(target: Target) -> Any:
    from tlsagent import AsyncAgent

    return AsyncAgent(ca=target.ca, http1_engine="h11")


async def _ask_tlsagent(agent: Any, url: str) -> None:
    response = await agent.request("GET", url)
    check(response.status, response.content)


async def _open_aiohttp(target: Target) -> Any:
    import aiohttp

    context = ssl.create_default_context(cadata=target.ca)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=100, keepalive_timeout=60))


async def _ask_aiohttp(session: Any, url: str) -> None:
    async with session.get(url) as response:
        check(response.status, await response.read())


@contextlib.contextmanager
def sync_tlsagent(target: Target, engine: Literal["httptools", "h11"]) -> Iterator[Callable[[int], None]]:
    """`Agent`, one thread."""
    from tlsagent import Agent

    with Agent(ca=target.ca, http1_engine=engine) as agent:

        def turn(count: int) -> None:
            for _ in range(count):
                response = agent.request("GET", target.url)
                check(response.status, response.content)

        yield turn


@contextlib.contextmanager
def sync_http_client(target: Target) -> Iterator[Callable[[int], None]]:
    """The standard library's client: one connection, no pool."""
    parts = urlsplit(target.url)
    context = ssl.create_default_context(cadata=target.ca)
    connection = http.client.HTTPSConnection(str(parts.hostname), parts.port, context=context)

    def turn(count: int) -> None:
        for _ in range(count):
            connection.request("GET", parts.path)
            response = connection.getresponse()
            check(response.status, response.read())

    with contextlib.closing(connection):
        yield turn


CONTENDERS: dict[str, Callable[[Target], contextlib.AbstractContextManager[Callable[[int], None]]]] = {
    "tlsagent, asyncio": lambda target: async_contender(target, False, _open_tlsagent, _ask_tlsagent),
    "tlsagent with h11, asyncio": lambda target: async_contender(target, False, _open_tlsagent_h11, _ask_tlsagent),
    "aiohttp, asyncio": lambda target: async_contender(target, False, _open_aiohttp, _ask_aiohttp),
    "tlsagent, uvloop": lambda target: async_contender(target, True, _open_tlsagent, _ask_tlsagent),
    "tlsagent with h11, uvloop": lambda target: async_contender(target, True, _open_tlsagent_h11, _ask_tlsagent),
    "aiohttp, uvloop": lambda target: async_contender(target, True, _open_aiohttp, _ask_aiohttp),
    "tlsagent, sync": lambda target: sync_tlsagent(target, "httptools"),
    "tlsagent with h11, sync": lambda target: sync_tlsagent(target, "h11"),
    "http.client, sync": sync_http_client,
}


# --- The process of a contender --------------------------------------------------------------------------------------


def work(name: str, core: int) -> None:
    """Make as many requests as each line of standard input asks for, and say what they took."""
    pin(core)
    target = Target(*json.loads(sys.stdin.readline()))
    with CONTENDERS[name](target) as turn:
        for line in sys.stdin:
            count = int(line)
            gc.collect()
            watch = Stopwatch(target.pid)
            turn(count)
            print(json.dumps(watch.stop(count)), flush=True)


class Contender:
    """A process that waits for its turn."""

    def __init__(self, name: str, target: Target) -> None:
        self.name = name
        self.samples: list[Sample] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.http1_warm", "--contender", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say(json.dumps(target))
        self.turn(IN_FLIGHT * 20)
        trial = self.turn(IN_FLIGHT * 100)
        self._count = max(IN_FLIGHT, int(trial.rate * SECONDS) // IN_FLIGHT * IN_FLIGHT)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def turn(self, count: int) -> Sample:
        """Make some requests."""
        self._say(str(count))
        assert self._process.stdout is not None
        return Sample(*json.loads(self._process.stdout.readline()))

    def take_turn(self) -> None:
        """Make as many requests as fit the time."""
        self.samples.append(self.turn(self._count))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    @property
    def rates(self) -> list[float]:
        """Requests per second, round by round."""
        return [sample.rate for sample in self.samples]

    @property
    def cpu(self) -> list[float]:
        """Microseconds of CPU per request, round by round."""
        return [sample.cpu_us for sample in self.samples]


# --- The whole -------------------------------------------------------------------------------------------------------


def measure() -> dict[str, Contender]:
    """Let all take turns."""
    with running_server() as target, contextlib.ExitStack() as stack:
        contenders = {}
        for name in CONTENDERS:
            contenders[name] = Contender(name, target)
            stack.callback(contenders[name].close)
        for _ in range(ROUNDS):
            for contender in contenders.values():
                contender.take_turn()
    return contenders


def main() -> int:
    """Measure, report, judge."""
    contenders = measure()
    rows = []
    for contender in contenders.values():
        rates, cpu = Spread.of(contender.rates), Spread.of(contender.cpu)
        busy = Spread.of([sample.server_cpu / sample.wall * 100 for sample in contender.samples])
        rows.append([
            contender.name, f"{rates.median:,.0f}", f"{rates.high:,.0f}", cpu.shown(1), f"{busy.median:.0f} %",
        ])  # fmt: skip
    ratios = []
    missed = []
    data: dict[str, Any] = {"rounds": ROUNDS, "in_flight": IN_FLIGHT, "contenders": {}, "ratios": {}}
    for (ours, theirs), bar in PAIRS.items():
        rate = paired(contenders[ours].rates, contenders[theirs].rates)
        cpu = paired(contenders[theirs].cpu, contenders[ours].cpu)
        if bar is not None and rate.median < bar:
            missed.append(ours)
        shown = "none" if bar is None else f"{bar} x"
        ratios.append([f"{ours} against {theirs}", rate.shown(2), cpu.shown(2), shown])
        data["ratios"][f"{ours} : {theirs}"] = {"rate": rate, "cpu": cpu, "bar": bar}
    for contender in contenders.values():
        data["contenders"][contender.name] = {"rate": contender.rates, "cpu_us": contender.cpu}
    head = ["contender", "requests/s, median", "best", "CPU µs per request", "server busy"]
    text = (
        f"# HTTP/1.1, warm connections, {len(BODY)}-byte body, {ROUNDS} rounds in turn\n\n"
        f"Asynchronous ones with {IN_FLIGHT} requests in flight, the others with one.\n\n"
        f"{table(head, rows)}\n\n"
        f"{table(['ratio of the same round: median (lowest to highest)', 'requests/s', 'CPU', 'bar'], ratios)}\n\n"
        + (f"MISSED by {', '.join(missed)}." if missed else "The bars are reached.")
    )
    report("http1_warm", text, data)
    return 1 if missed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", choices=CONTENDERS, help="be the process of one contender")
    arguments = parser.parse_args()
    sys.exit(work(arguments.contender, 1) if arguments.contender else main())
