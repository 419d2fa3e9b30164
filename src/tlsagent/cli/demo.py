"""
`tlsagent demo`: requests by both agents against the embedded server, and what came of them as plain data.

One agent serves several identities, which share nothing: each has its own pool key, sockets and sessions. There are two
rounds with all sockets closed in between, so that the second one resumes the sessions of the first. What the agents
count is compared with what the server counted; a difference is a problem, and fails the demo.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final, Literal

from tlsagent import Agent, AsyncAgent, ConnectionOptions, Counters, RequestError, Timeouts
from tlsagent.events import Connecting, Secured
from tlsagent.testing import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tlsagent import AgentStats, Response
    from tlsagent.events import Event

PHASES: Final = ("queue", "lookup", "connect", "handshake", "send", "wait", "receive", "total")
ROUNDS: Final = 2
WRONG_NAME: Final = "wrong.example"
_COUNTED: Final = ("requests", "handshakes_full", "handshakes_resumed")
_WORKERS_PER_SOCKET: Final = 2
_WATCH_EVERY: Final = 0.1
_SETTLE: Final = 2.0

Kind = Literal["asyncio", "threads"]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """
    One identity of one agent.

    Attributes:
        key: Printable digest of its pool key; None before the first request.
        protocol: Version of HTTP that its connections speak; None before the first response.
        counters: What the agent counted under that key.
        medians: Seconds by phase, over the requests in which the phase happened.
    """

    agent: Kind
    identity: str
    key: str | None
    protocol: str | None
    counters: Counters
    medians: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """
    All there is to show.

    Attributes:
        refused: The error of a request to a name that the certificate does not have.
        timed_out: The error of a request whose answer came too late.
        server: What the server counted before these two: requests, full and resumed handshakes.
        given_up: Connection attempts that were given up because another connection became free first. The server may
            have taken its side of such a handshake for complete.
        seconds: How long the demo took.
        problems: What was not as it should be; empty if all is well.
    """

    rows: tuple[Row, ...]
    refused: RequestError | None
    timed_out: RequestError | None
    server: Mapping[str, int]
    given_up: int
    seconds: float
    problems: tuple[str, ...]


def run(requests: int, sockets: int, watch: Callable[[tuple[Row, ...]], object] | None = None) -> Outcome:
    """
    Run the demo.

    Args:
        requests: Per identity and round, for each of the two agents.
        sockets: `max_sockets` of the agents.
        watch: Called now and then with the rows so far, in the calling thread.
    """
    started = time.monotonic()
    problems: list[str] = []
    with Server(request_cert=True, alpn_protocols=("h2", "http/1.1")) as server:
        stage = _Stage(server, requests, sockets, watch)
        try:
            asyncio.run(_by_asyncio(stage))
            _by_threads(stage)
        except* RequestError as group:
            problems += sorted({f"a request failed: {describe(error)}" for error in _leaves(group)})
        rows = stage.rows()
        given_up = len(stage.attempts) - len(stage.secured)
        seen = _seen_by_server(server, rows, given_up)
        refused = _error_of(stage, f"https://{WRONG_NAME}:{server.port}/hello", host="localhost")
        timed_out = _error_of(stage, server.url + "/delay/5", timeouts=Timeouts(response=0.2))
    problems += _problems(rows, requests, refused, timed_out)
    if not _agree(seen, rows, given_up):
        problems.append(f"the server counted {seen}, the agents {_totals(rows)} and {given_up} attempts given up")
    return Outcome(rows, refused, timed_out, seen, given_up, time.monotonic() - started, tuple(problems))


def describe(error: RequestError) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__} ({error.code}, phase {error.phase}): {error}"


class _Track:
    """The requests of one identity by one agent, as they come."""

    def __init__(self, agent: Kind, identity: str, options: ConnectionOptions) -> None:
        self.agent: Kind = agent
        self.identity = identity
        self.options = options
        self.key: str | None = None
        self.protocol: str | None = None
        self.counters = Counters()
        self._seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self._lock = threading.Lock()

    def saw(self, event: Event) -> None:
        """Learn the pool key from an event of a request."""
        self.key = event.key

    def add(self, response: Response) -> None:
        timings = response.timings
        self.protocol = response.http_version
        with self._lock:
            for phase, seconds in self._seconds.items():
                took = getattr(timings, phase)
                if took is not None:
                    seconds.append(took)

    def row(self) -> Row:
        with self._lock:
            medians = {phase: statistics.median(took) if took else None for phase, took in self._seconds.items()}
        return Row(self.agent, self.identity, self.key, self.protocol, self.counters, medians)


class _Stage:
    """Where the demo plays: the server, the identities, and how much to do."""

    def __init__(
        self, server: Server, requests: int, sockets: int, watch: Callable[[tuple[Row, ...]], object] | None
    ) -> None:
        self.server = server
        self.sockets = sockets
        self.url = server.url + "/hello"
        self._watch = watch
        workers = min(requests, sockets * _WORKERS_PER_SOCKET)
        self.shares = [len(range(number, requests, workers)) for number in range(workers)]
        client = server.authority.issue("client@localhost", client=True)
        identities = {
            "default": ConnectionOptions(ca=server.ca_pem),
            "client cert": ConnectionOptions(ca=server.ca_pem, cert=client.cert_pem, key=client.key_pem),
            "TLS 1.2": ConnectionOptions(ca=server.ca_pem, max_version="TLSv1.2"),
            "HTTP/1.1": ConnectionOptions(ca=server.ca_pem, alpn_protocols=("http/1.1",)),
            "unverified": ConnectionOptions(reject_unauthorized=False),
        }
        kinds: tuple[Kind, ...] = ("asyncio", "threads")
        self.attempts: list[Connecting] = []
        self.secured: list[Secured] = []
        self.tracks = [_Track(kind, name, options) for kind in kinds for name, options in identities.items()]

    def of(self, kind: Kind) -> list[_Track]:
        return [track for track in self.tracks if track.agent == kind]

    def listen(self, agent: Agent | AsyncAgent) -> None:
        agent.on(Connecting, self.attempts.append)
        agent.on(Secured, self.secured.append)

    def update(self, kind: Kind, stats: AgentStats) -> None:
        """Take over what an agent has counted, and show it."""
        for track in self.of(kind):
            track.counters = stats.by_key.get(track.key or "", track.counters)
        if self._watch is not None:
            self._watch(self.rows())

    def rows(self) -> tuple[Row, ...]:
        return tuple(track.row() for track in self.tracks)


async def _by_asyncio(stage: _Stage) -> None:
    async def work(track: _Track, share: int) -> None:
        for _ in range(share):
            track.add(await agent.request("GET", stage.url, options=track.options, trace=track.saw))

    tracks = stage.of("asyncio")
    async with AsyncAgent(max_sockets=stage.sockets) as agent:
        stage.listen(agent)
        for _ in range(ROUNDS):
            async with asyncio.TaskGroup() as group:
                pending = {group.create_task(work(track, share)) for track in tracks for share in stage.shares}
                while pending:
                    _, pending = await asyncio.wait(pending, timeout=_WATCH_EVERY)
                    stage.update("asyncio", agent.stats())
            agent.close_idle()
        stage.update("asyncio", agent.stats())


def _by_threads(stage: _Stage) -> None:
    def work(track: _Track, share: int) -> None:
        for _ in range(share):
            track.add(agent.request("GET", stage.url, options=track.options, trace=track.saw))

    tracks = stage.of("threads")
    workers = len(tracks) * len(stage.shares)
    with Agent(max_sockets=stage.sockets) as agent, ThreadPoolExecutor(workers) as executor:
        stage.listen(agent)
        for _ in range(ROUNDS):
            futures = {executor.submit(work, track, share) for track in tracks for share in stage.shares}
            pending = futures
            while pending:
                _, pending = wait(pending, timeout=_WATCH_EVERY)
                stage.update("threads", agent.stats())
            for future in futures:
                future.result()
            agent.close_idle()
        stage.update("threads", agent.stats())


def _error_of(
    stage: _Stage, url: str, *, host: str | None = None, timeouts: Timeouts | None = None
) -> RequestError | None:
    """Return how a request fails, or None if it does not."""
    options = {} if host is None else {"host": host}
    with Agent(ca=stage.server.ca_pem, timeouts=timeouts or Timeouts()) as agent:
        try:
            agent.request("GET", url, options=options)
        except RequestError as error:
            return error
    return None


def _leaves(group: BaseExceptionGroup[RequestError]) -> list[RequestError]:
    found: list[RequestError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _seen_by_server(server: Server, rows: tuple[Row, ...], given_up: int) -> dict[str, int]:
    """Return the server's totals once they agree with ours, or as they stand after a while: its loop may lag behind."""
    server.wait_for(lambda server: _agree(_counted(server), rows, given_up), timeout=_SETTLE)
    return _counted(server)


def _agree(seen: Mapping[str, int], rows: tuple[Row, ...], given_up: int) -> bool:
    more = {name: seen[name] - count for name, count in _totals(rows).items()}
    # The last message of a full handshake in TLS 1.2 is the server's: it counts those that the client gave up then.
    return more["requests"] == 0 and min(more.values()) >= 0 and sum(more.values()) <= given_up


def _counted(server: Server) -> dict[str, int]:
    stats = server.stats
    return {name: getattr(stats, name) for name in _COUNTED}


def _totals(rows: tuple[Row, ...]) -> dict[str, int]:
    return {name: sum(getattr(row.counters, name) for row in rows) for name in _COUNTED}


def _problems(
    rows: tuple[Row, ...],
    requests: int,
    refused: RequestError | None,
    timed_out: RequestError | None,
) -> list[str]:
    found = []
    for row in rows:
        name, counters = f"{row.identity} by {row.agent}", row.counters
        if counters.requests != ROUNDS * requests:
            found.append(f"{name}: {counters.requests} requests counted, {ROUNDS * requests} sent")
        if row.protocol != ("HTTP/1.1" if row.identity == "HTTP/1.1" else "HTTP/2"):
            found.append(f"{name}: {row.protocol} was spoken")
        if not counters.handshakes_resumed:
            found.append(f"{name}: no session was resumed")
    if refused is None or refused.code != "ERR_TLS_CERT_ALTNAME_INVALID":
        found.append(f"the wrong name was not refused as such: {refused!r}")
    if not isinstance(timed_out, TimeoutError):
        found.append(f"the late answer did not time out: {timed_out!r}")
    return found
