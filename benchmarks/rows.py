"""
What is measured, and the bars: one `Row` for each line of the table of goals.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.harness import Job, Sample, Spread, Target, take_turns
from benchmarks.idle import CONNECTIONS
from benchmarks.nginx import LARGE, running_nginx
from benchmarks.spinning_server import running_spinning_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

IN_FLIGHT = 16
STREAMS = 64
"""Requests in flight on the one connection of HTTP/2."""
THREADS = 32
PAGES = {"http1": "HTTP/1.1", "http2": "HTTP/2"}
"""The pages of results that rows stand on, with what they are about."""
HEADROOM = 2.0
"""Times the rate of the fastest contender that the server alone must be able to do."""


class Bar(NamedTuple):
    """
    What `ours` must reach.

    Attributes:
        ours: Whose figure is judged.
        theirs: Against whom, in the same round; None for the figure itself.
        limit: What it must be at least, or at most where less is better.
        difference: Judge the difference instead of the ratio.
    """

    ours: str
    theirs: str | None
    limit: float
    difference: bool = False


class Figure(NamedTuple):
    """What counts in a row: a name with its unit, how to get it from a sample, whether less is better, and digits."""

    name: str
    of: Callable[[Sample], float]
    less: bool
    digits: int


REQUESTS = Figure("requests/s", lambda sample: sample.rate, False, 0)
MEGABYTES = Figure("MB/s", lambda sample: sample.rate * LARGE / 1e6, False, 0)
CPU_MICROSECONDS = Figure("CPU µs", lambda sample: sample.cpu_us, True, 2)
CPU_MILLISECONDS = Figure("CPU ms", lambda sample: sample.cpu_us / 1e3, True, 2)
KILOBYTES = Figure("KB per connection", lambda sample: sample.facts["bytes"] / 1e3, True, 1)


def _http2_server() -> AbstractContextManager[Target]:
    return running_nginx(http2=True)


def nowhere() -> AbstractContextManager[Target]:
    """Return no server."""
    from contextlib import nullcontext

    return nullcontext(Target("", "", "", 0))


@dataclasses.dataclass(frozen=True)
class Row:
    """
    One comparison.

    Attributes:
        name: How it is chosen on the command line.
        title: What it says on the page.
        figure: What counts.
        jobs: The contenders, by name.
        bars: What must be reached.
        server: What runs the server.
        limit: The contender that shows what the server can do; nobody's peer.
        judge_server: Whether the server must be able to do twice as much as the fastest.
        at_most_rounds: Rounds that are enough, where nothing is timed.
        page: The page of results that it stands on.
    """

    name: str
    title: str
    figure: Figure
    jobs: dict[str, Job]
    bars: tuple[Bar, ...]
    server: Callable[[], AbstractContextManager[Target]] = running_nginx
    limit: str | None = None
    judge_server: bool = False
    at_most_rounds: int = 1_000
    page: str = "http1"


class Verdict(NamedTuple):
    """A bar and what was found: figures of the row, and the same of CPU time where that says something."""

    bar: str
    limit: float
    less: bool
    found: Spread
    cpu: Spread | None = None

    @property
    def holds(self) -> bool:
        """Whether the bar is reached, by the median over the rounds."""
        return self._reached(self.found)

    @property
    def holds_by_cpu(self) -> bool:
        """Whether it would be by CPU time alone; the same where that says nothing."""
        return self._reached(self.cpu or self.found)

    def _reached(self, spread: Spread) -> bool:
        return spread.median <= self.limit if self.less else spread.median >= self.limit


class Outcome(NamedTuple):
    """A row that was measured."""

    row: Row
    samples: dict[str, list[Sample]]
    verdicts: list[Verdict]


def _async_warm(in_flight: int = IN_FLIGHT, **more: Any) -> dict[str, Job]:
    both = {"asyncio": Job("AsyncAgent", in_flight=in_flight, **more)}
    both["uvloop"] = dataclasses.replace(both["asyncio"], loop="uvloop")
    return {f"AsyncAgent, {loop}": job for loop, job in both.items()}


_AIOHTTP = {f"aiohttp, {loop}": Job("aiohttp", in_flight=IN_FLIGHT, loop=loop) for loop in ("asyncio", "uvloop")}
_WRK = {"wrk": Job("wrk", in_flight=IN_FLIGHT)}
_H2LOAD = {"h2load": Job("h2load", in_flight=STREAMS, http2=True)}
_HTTPX_H2 = {"httpx": Job("httpx.AsyncClient", in_flight=STREAMS, http2=True)}


def _new(name: str, protocol: str, bars: tuple[Bar, ...]) -> Row:
    def job(client: str) -> Job:
        return Job(client, path="/tls", in_flight=4, fresh=True, mode="facts")

    return Row(
        name,
        f"A new connection for every request, 4 in flight, {protocol}: ours resumed, theirs as they come",
        REQUESTS,
        {
            "AsyncAgent": job("AsyncAgent"),
            "aiohttp": job("aiohttp"),
            "httpx": job("httpx.AsyncClient"),
            "pyreqwest": job("pyreqwest.Client"),
            "Node": job("node"),
            "wrk": job("wrk"),
        },
        bars,
        server=lambda: running_nginx(protocol),
        limit="wrk",
        judge_server=True,
    )


def _download_jobs(mode: str, *, http2: bool = False) -> dict[str, Job]:
    clients = {
        "AsyncAgent, asyncio": ("AsyncAgent", "asyncio"),
        "AsyncAgent, uvloop": ("AsyncAgent", "uvloop"),
        "Agent": ("Agent", "asyncio"),
        "aiohttp": ("aiohttp", "asyncio"),
        "httpx": ("httpx.Client", "asyncio"),
        "urllib3": ("urllib3", "asyncio"),
        "pycurl": ("pycurl", "asyncio"),
        "pyreqwest, asyncio": ("pyreqwest.Client", "asyncio"),
        "pyreqwest, sync": ("pyreqwest.SyncClient", "asyncio"),
        "h2load" if http2 else "wrk": ("h2load" if http2 else "wrk", "asyncio"),
    }
    absent = {"aiohttp", "urllib3"} if http2 else set()  # they speak HTTP/1.1 alone
    if mode == "buffer":
        absent |= {"wrk", "h2load"}
    return {
        who: Job(client, path="/large", loop=loop, mode=mode, http2=http2)
        for who, (client, loop) in clients.items()
        if who not in absent
    }


_DOWNLOAD_BARS = (
    Bar("Agent", "pycurl", 0.9),
    Bar("Agent", "pyreqwest, sync", 0.9),
    Bar("AsyncAgent, asyncio", "pycurl", 0.9),
    Bar("AsyncAgent, asyncio", "pyreqwest, asyncio", 0.9),
)


def _both_loops(theirs: str, limit: float) -> tuple[Bar, Bar]:
    return Bar("AsyncAgent, asyncio", theirs, limit), Bar("AsyncAgent, uvloop", theirs, limit)


def _floors(loop: str) -> Row:
    floors = {
        "asyncio and TLS engine, fixed bytes": "tls",
        "+ HTTP engine, sink does nothing": "http",
        "(the same, awaited by a task)": "awaited",
        "(h11 in its place)": "h11",
        "+ Connection and Exchange": "connection",
        "+ AgentCore: URL, pool, timers": "core",
    }
    jobs = {name: Job("floors", in_flight=IN_FLIGHT, loop=loop, variant=floor) for name, floor in floors.items()}
    jobs["AsyncAgent.request"] = Job("AsyncAgent", in_flight=IN_FLIGHT, loop=loop)
    return Row(
        f"floors-{loop}",
        f"Floors of a warm request, {loop}, {IN_FLIGHT} in flight",
        CPU_MICROSECONDS,
        jobs,
        (Bar("AsyncAgent.request", "+ HTTP engine, sink does nothing", 15.0, difference=True),),
        server=running_spinning_server,
    )


ROWS = (
    Row(
        "warm",
        f"Warm connections, asynchronous, {IN_FLIGHT} in flight",
        REQUESTS,
        {
            **_async_warm(),
            **_AIOHTTP,
            "httpx": Job("httpx.AsyncClient", in_flight=IN_FLIGHT),
            "pyreqwest": Job("pyreqwest.Client", in_flight=IN_FLIGHT),
            "Node": Job("node", in_flight=IN_FLIGHT),
            **_WRK,
        },
        (
            Bar("AsyncAgent, asyncio", "aiohttp, asyncio", 3.5),
            Bar("AsyncAgent, uvloop", "aiohttp, uvloop", 4.0),
            Bar("AsyncAgent, asyncio", "Node", 3.5),
            Bar("AsyncAgent, asyncio", "pyreqwest", 1.8),
            Bar("AsyncAgent, asyncio", "wrk", 0.35),
        ),
        limit="wrk",
        judge_server=True,
    ),
    Row(
        "sync",
        "Warm connections, blocking, one in flight",
        REQUESTS,
        {
            "Agent": Job("Agent"),
            "http.client": Job("http.client"),
            "urllib3": Job("urllib3"),
            "httpcore": Job("httpcore"),
            "httpx": Job("httpx.Client"),
            "pycurl": Job("pycurl"),
            "pyreqwest": Job("pyreqwest.SyncClient"),
            "curl_cffi": Job("curl_cffi"),
            "wrk, 16 in flight": _WRK["wrk"],
        },
        (Bar("Agent", "http.client", 1.8), Bar("Agent", "pycurl", 1.15), Bar("Agent", "pyreqwest", 1.1)),
        limit="wrk, 16 in flight",
        judge_server=True,
    ),
    Row(
        "pure",
        f"Warm connections, asynchronous, {IN_FLIGHT} in flight, engine in pure Python (h11)",
        REQUESTS,
        {**_async_warm(engine="h11"), **_AIOHTTP, **_WRK},
        (Bar("AsyncAgent, asyncio", "aiohttp, asyncio", 1.1),),
        limit="wrk",
        judge_server=True,
    ),
    _new("new-tls12", "TLSv1.2", (Bar("AsyncAgent", "aiohttp", 4.0), Bar("AsyncAgent", "pyreqwest", 1.8))),
    _new("new-tls13", "TLSv1.3", (Bar("AsyncAgent", "aiohttp", 1.8), Bar("AsyncAgent", "pyreqwest", 1.0))),
    Row(
        "download",
        "100 MB on one warm connection, streamed and thrown away",
        MEGABYTES,
        _download_jobs("stream"),
        _DOWNLOAD_BARS,
        limit="wrk",
    ),
    Row("buffered", "100 MB on one warm connection, as one body in memory", MEGABYTES, _download_jobs("buffer"), ()),
    Row(
        "pool",
        "The pool: acquire and release",
        CPU_MICROSECONDS,
        {
            "1 key": Job("pools", variant="1 of 1"),
            "10,000 keys, 1 in use": Job("pools", variant="1 of 10000"),
            "10,000 keys, all in use": Job("pools", variant="10000 of 10000"),
        },
        (
            Bar("10,000 keys, 1 in use", "1 key", 1.2),
            Bar("10,000 keys, all in use", "1 key", 1.2),
            Bar("10,000 keys, all in use", None, 3.0),
        ),
        server=nowhere,
    ),
    Row(
        "idle",
        f"Memory of an idle pooled connection, {CONNECTIONS:,} in one process, each of which has served",
        KILOBYTES,
        {
            "AsyncAgent, asyncio": Job("idle", variant="AsyncAgent"),
            "AsyncAgent, uvloop": Job("idle", variant="AsyncAgent", loop="uvloop"),
            "Agent": Job("idle", variant="Agent"),
        },
        tuple(Bar(who, None, 52.0) for who in ("AsyncAgent, asyncio", "AsyncAgent, uvloop", "Agent")),
        server=lambda: running_nginx(connections=CONNECTIONS),
        at_most_rounds=1,
    ),
    Row(
        "import",
        "Import",
        CPU_MILLISECONDS,
        {
            "import tlsagent": Job("import", variant="import tlsagent"),
            "import OpenSSL.SSL": Job("import", variant="import OpenSSL.SSL"),
            "from tlsagent import Agent": Job("import", variant="from tlsagent import Agent"),
            "from tlsagent import AsyncAgent": Job("import", variant="from tlsagent import AsyncAgent"),
        },
        (Bar("import tlsagent", "import OpenSSL.SSL", 1.5),),
        server=nowhere,
    ),
    _floors("asyncio"),
    _floors("uvloop"),
    Row(
        "h2-warm",
        f"One warm connection of HTTP/2, asynchronous, {STREAMS} in flight",
        REQUESTS,
        {
            **_async_warm(STREAMS, http2=True),
            **_HTTPX_H2,
            "pyreqwest": Job("pyreqwest.Client", in_flight=STREAMS, http2=True),
            "Node": Job("node", in_flight=STREAMS, http2=True),
            **_H2LOAD,
        },
        (
            *_both_loops("httpx", 25.0),
            *_both_loops("Node", 3.0),
            *_both_loops("pyreqwest", 2.5),
            *_both_loops("h2load", 0.35),
        ),
        server=_http2_server,
        limit="h2load",
        judge_server=True,
        page="http2",
    ),
    Row(
        "h2-sync",
        f"One warm connection of HTTP/2, blocking, one in flight, and of ours one in each of {THREADS} threads",
        REQUESTS,
        {
            "Agent": Job("Agent", http2=True),
            f"Agent, {THREADS} threads": Job("Agent", in_flight=THREADS, http2=True),
            "httpcore": Job("httpcore", http2=True),
            "httpx": Job("httpx.Client", http2=True),
            "pycurl": Job("pycurl", http2=True),
            "pyreqwest": Job("pyreqwest.SyncClient", http2=True),
            f"h2load, {STREAMS} in flight": _H2LOAD["h2load"],
        },
        (Bar("Agent", "httpcore", 4.0), Bar(f"Agent, {THREADS} threads", "Agent", 1.5)),
        server=_http2_server,
        limit=f"h2load, {STREAMS} in flight",
        judge_server=True,
        page="http2",
    ),
    Row(
        "h2-pure",
        f"One warm connection of HTTP/2, asynchronous, {STREAMS} in flight, engine in pure Python (h2)",
        REQUESTS,
        {**_async_warm(STREAMS, http2=True, engine="h2"), **_HTTPX_H2, **_H2LOAD},
        _both_loops("httpx", 4.0),
        server=_http2_server,
        limit="h2load",
        judge_server=True,
        page="http2",
    ),
    Row(
        "h2-download",
        "100 MB on one warm connection of HTTP/2, streamed and thrown away",
        MEGABYTES,
        _download_jobs("stream", http2=True),
        _DOWNLOAD_BARS,
        server=_http2_server,
        limit="h2load",
        page="http2",
    ),
)


def measure(row: Row, rounds: int, seconds: float) -> Outcome:
    """Measure a row and judge it."""
    with row.server() as target:
        samples = take_turns(row.jobs, target, min(rounds, row.at_most_rounds), seconds)
    verdicts = [judged(bar, row.figure, samples) for bar in row.bars]
    if row.judge_server:
        verdicts.append(headroom(row, samples))
    return Outcome(row, samples, verdicts)


def judged(bar: Bar, figure: Figure, samples: dict[str, list[Sample]]) -> Verdict:
    """Compare what was found with a bar."""
    ours = [figure.of(sample) for sample in samples[bar.ours]]
    less = "at most" if figure.less else "at least"
    cpu = None
    if bar.theirs is None:
        found = Spread.of(ours)
        text = f"{bar.ours}: {less} {bar.limit:g} {figure.name}"
    else:
        theirs = [figure.of(sample) for sample in samples[bar.theirs]]
        if bar.difference:
            found = Spread.of([a - b for a, b in zip(ours, theirs, strict=True)])
            text = f"{bar.ours} over {bar.theirs}: {less} {bar.limit:g} {figure.name}"
        else:
            found = Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
            text = f"{bar.ours}: {less} {bar.limit:g} x {bar.theirs}"
        if not figure.less:
            pairs = zip(samples[bar.theirs], samples[bar.ours], strict=True)
            cpu = Spread.of([their.cpu_us / our.cpu_us for their, our in pairs])
    return Verdict(text, bar.limit, figure.less, found, cpu)


def headroom(row: Row, samples: dict[str, list[Sample]]) -> Verdict:
    """
    Judge the server: what it does alone against the fastest contender.

    What it does alone is what wrk gets out of it. Where every request makes a connection, wrk itself is the limit:
    there it is what the fastest contender would get if the server were at work all the time.
    """
    assert row.limit is not None
    rates = {who: Spread.of([sample.rate for sample in samples[who]]).median for who in samples if who != row.limit}
    fastest = max(rates, key=lambda who: rates[who])
    if row.jobs[row.limit].fresh:
        found = Spread.of([1 / sample.busy for sample in samples[fastest]])
    else:
        pairs = zip(samples[row.limit], samples[fastest], strict=True)
        found = Spread.of([alone.rate / theirs.rate for alone, theirs in pairs])
    text = f"the server alone: at least {HEADROOM:g} x the fastest, {fastest}"
    return Verdict(text, HEADROOM, False, found)
