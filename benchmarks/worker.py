"""
The process of one contender.

The first line of standard input says what to do and where, as JSON. Each further line is how many requests to make, and
is answered with one line: what they took.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import clients
from benchmarks.harness import Job, Sample, Stopwatch, Target
from benchmarks.nginx import BODY, LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Turn = Callable[[int], Sample]

_WRK_SECONDS = 2
"""wrk takes whole seconds, and makes its connections in them."""


class Checked:
    """Looks at responses as anybody would, and keeps what the server tells of TLS."""

    def __init__(self, job: Job) -> None:
        self._mode = job.mode
        self._bodies: Counter[bytes] = Counter()

    def whole(self, status: int, body: bytes) -> None:
        """Check a body that was read."""
        assert status == 200
        if self._mode == "facts":
            self._bodies[body] += 1
        elif self._mode == "buffer":
            assert len(body) == LARGE
        else:
            assert body == BODY

    def streamed(self, status: int, size: int) -> None:
        """Check a body that was thrown away."""
        assert status == 200
        assert size == LARGE

    def taken(self) -> dict[str, Any]:
        """Return what was seen since the last time."""
        seen = {"tls": {body.decode(): count for body, count in self._bodies.items()}} if self._bodies else {}
        self._bodies.clear()
        return seen


class Witness:
    """Has the server say after each turn that it was HTTP/2, and that all requests came over one connection."""

    def __init__(self, job: Job, target: Target, get: Callable[[str], tuple[int, bytes]]) -> None:
        self._url = f"{target.url}/connection" if job.http2 else None
        self._get = get
        self._last: tuple[int, int] | None = None
        self.look(0)

    def look(self, count: int) -> dict[str, Any]:
        """Return what the server says after so many requests; nothing unless it is to be HTTP/2."""
        if self._url is None:
            return {}
        status, body = self._get(self._url)
        assert status == 200
        protocol, *numbers = body.decode().split(" ")
        connection, request = map(int, numbers)
        assert protocol == "HTTP/2.0", protocol
        assert self._last in (None, (connection, request - count - 1)), f"{count} requests after {self._last}: {body!r}"
        self._last = connection, request
        return {"protocol": "HTTP/2", "connections": 1}


def event_loop(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop, None for asyncio's own."""
    if name == "asyncio":
        return None
    import uvloop

    return uvloop.new_event_loop


@contextlib.contextmanager
def asynchronous(job: Job, target: Target) -> Iterator[Turn]:
    """Let `in_flight` tasks make one request after the other."""
    checked = Checked(job)
    url = target.url + job.path

    async def opened() -> Any:
        return clients.ASYNC[job.client](job, target)

    async def several(client: Any, count: int) -> None:
        if job.mode == "stream":
            for _ in range(count):
                checked.streamed(*await client.stream(url))
        else:
            for _ in range(count):
                checked.whole(*await client.get(url))

    async def all_of_them(client: Any, count: int) -> None:
        await asyncio.gather(*(several(client, count // job.in_flight) for _ in range(job.in_flight)))

    with asyncio.Runner(loop_factory=event_loop(job.loop)) as runner:
        client = runner.run(opened())
        facts = runner.run(client.facts(f"{target.url}/")) if hasattr(client, "facts") else {}

        witness = Witness(job, target, lambda url: runner.run(client.get(url)))

        def turn(count: int) -> Sample:
            watch = Stopwatch()
            runner.run(all_of_them(client, count))
            sample = watch.stop(count, facts | checked.taken())
            sample.facts.update(witness.look(count))
            return sample

        try:
            yield turn
        finally:
            runner.run(client.aclose())


@contextlib.contextmanager
def blocking(job: Job, target: Target) -> Iterator[Turn]:
    """Let `in_flight` threads make one request after the other; one alone is the main thread."""
    checked = Checked(job)
    url = target.url + job.path
    with (
        contextlib.closing(clients.SYNC[job.client](job, target)) as client,
        ThreadPoolExecutor(job.in_flight) as threads,
    ):
        facts = client.facts(f"{target.url}/") if hasattr(client, "facts") else {}
        witness = Witness(job, target, client.get)
        spread = map if job.in_flight == 1 else threads.map

        def several(count: int) -> None:
            if job.mode == "stream":
                for _ in range(count):
                    checked.streamed(*client.stream(url))
            else:
                for _ in range(count):
                    checked.whole(*client.get(url))

        def turn(count: int) -> Sample:
            watch = Stopwatch()
            for _ in spread(several, [count // job.in_flight] * job.in_flight):
                pass
            sample = watch.stop(count, facts | checked.taken())
            sample.facts.update(witness.look(count))
            return sample

        yield turn


def run_program(command: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a program to its end; returns what it said, and its CPU time."""
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    return done, after.children_user + after.children_system - before.children_user - before.children_system


@contextlib.contextmanager
def wrk(job: Job, target: Target) -> Iterator[Turn]:
    """Run wrk: what the server can do in HTTP/1.1. It verifies nobody, and it counts by time."""
    script = str(Path(__file__).with_name("wrk.lua"))
    command = ["wrk", "-t1", f"-c{job.in_flight}", f"-d{_WRK_SECONDS}s", "-s", script]
    if job.fresh:
        command += ["-H", "Connection: close"]
    command.append(target.url + job.path)

    def turn(_: int) -> Sample:
        done, cpu = run_program(command)
        requests, microseconds, failures, received = map(int, done.stderr.split())
        assert not failures, f"wrk met {failures} failures"
        times = received / LARGE if job.mode == "stream" else requests  # it stops in the middle of a body
        return Sample(times, microseconds / 1e6, cpu, 0.0, {})

    yield turn


@contextlib.contextmanager
def h2load(job: Job, target: Target) -> Iterator[Turn]:
    """Run h2load: what the server can do over one connection of HTTP/2. It verifies nobody."""
    command = ["h2load", "-t1", "-c1", f"-m{job.in_flight}", target.url + job.path]

    def turn(count: int) -> Sample:
        done, cpu = run_program([*command, f"-n{count}"])
        found = re.search(
            r"Application protocol: (?P<protocol>\S+)\n.*"
            r"finished in \S+, (?P<rate>[\d.]+) req/s, .* (?P<succeeded>\d+) succeeded, .*"
            r"status codes: (?P<good>\d+) 2xx",
            done.stdout,
            re.DOTALL,
        )
        assert found, f"h2load said: {done.stdout}"
        assert (found["protocol"], int(found["succeeded"]), int(found["good"])) == ("h2", count, count), found[0]
        return Sample(count, count / float(found["rate"]), cpu, 0.0, {"protocol": "HTTP/2", "connections": 1})

    yield turn


@contextlib.contextmanager
def importing(job: Job, target: Target) -> Iterator[Turn]:  # noqa: ARG001 - as with the others
    """Execute an import statement in interpreters of their own, which take the time themselves."""
    code = (
        "import time; wall, cpu = time.perf_counter(), time.process_time()\n"
        f"{job.variant}\n"
        "print(time.perf_counter() - wall, time.process_time() - cpu)"
    )

    def turn(count: int) -> Sample:
        wall = cpu = 0.0
        for _ in range(count):
            said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
            its_wall, its_cpu = map(float, said.split())
            wall, cpu = wall + its_wall, cpu + its_cpu
        return Sample(count, wall, cpu, 0.0, {})

    yield turn


_PROGRAMS = {"import": importing, "wrk": wrk, "h2load": h2load}


def opening(client: str) -> Callable[[Job, Target], contextlib.AbstractContextManager[Turn]]:
    """Return what makes a contender ready; a peer's process does not load us."""
    if client in clients.ASYNC:
        return asynchronous
    if client in clients.SYNC:
        return blocking
    if client in _PROGRAMS:
        return _PROGRAMS[client]
    contender: Callable[[Job, Target], contextlib.AbstractContextManager[Turn]]
    contender = importlib.import_module(f"benchmarks.{client}").contender
    return contender


def main() -> None:
    """Do as standard input says, to its end."""
    said = json.loads(sys.stdin.readline())
    job, target = Job(**said["job"]), Target(**said["target"])
    with opening(job.client)(job, target) as turn:
        for line in sys.stdin:
            gc.collect()
            print(json.dumps(turn(int(line))), flush=True)


if __name__ == "__main__":
    main()
