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
import subprocess
import sys
from collections import Counter
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

        def turn(count: int) -> Sample:
            watch = Stopwatch()
            runner.run(all_of_them(client, count))
            return watch.stop(count, facts | checked.taken())

        try:
            yield turn
        finally:
            runner.run(client.aclose())


@contextlib.contextmanager
def blocking(job: Job, target: Target) -> Iterator[Turn]:
    """Make one request after the other."""
    checked = Checked(job)
    url = target.url + job.path
    with contextlib.closing(clients.SYNC[job.client](job, target)) as client:
        facts = client.facts(f"{target.url}/") if hasattr(client, "facts") else {}

        def turn(count: int) -> Sample:
            watch = Stopwatch()
            if job.mode == "stream":
                for _ in range(count):
                    checked.streamed(*client.stream(url))
            else:
                for _ in range(count):
                    checked.whole(*client.get(url))
            return watch.stop(count, facts | checked.taken())

        yield turn


@contextlib.contextmanager
def yardstick(job: Job, target: Target) -> Iterator[Turn]:
    """Run wrk: what the server can do. It verifies nobody, and it counts by time."""
    script = str(Path(__file__).with_name("wrk.lua"))
    command = ["wrk", "-t1", f"-c{job.in_flight}", f"-d{_WRK_SECONDS}s", "-s", script]
    if job.fresh:
        command += ["-H", "Connection: close"]
    command.append(target.url + job.path)

    def turn(_: int) -> Sample:
        before = os.times()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True)
        after = os.times()
        requests, microseconds, failures, received = map(int, done.stderr.split())
        assert not failures, f"wrk met {failures} failures"
        times = received / LARGE if job.mode == "stream" else requests  # it stops in the middle of a body
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return Sample(times, microseconds / 1e6, cpu, 0.0, {})

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


def opening(client: str) -> Callable[[Job, Target], contextlib.AbstractContextManager[Turn]]:
    """Return what makes a contender ready; a peer's process does not load us."""
    if client in clients.ASYNC:
        return asynchronous
    if client in clients.SYNC:
        return blocking
    if client == "import":
        return importing
    if client == "wrk":
        return yardstick
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
