"""
What an idle pooled connection holds: the resident memory of a process that has 5,000 of them, each of which has served.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Job, Sample, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTIONS = 5_000
_AT_ONCE = 50
_PAGE = resource.getpagesize()


@contextlib.contextmanager
def contender(job: Job, target: Target) -> Iterator[Callable[[int], Sample]]:
    """Yield what opens the connections in a new process: one that had them before would use its memory again."""
    command = [sys.executable, "-m", "benchmarks.idle", job.variant, job.loop, target.url, target.ca_file]

    def turn(_: int) -> Sample:
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return Sample(CONNECTIONS, time.perf_counter() - began, 0.0, 0.0, json.loads(done.stdout))

    yield turn


def resident() -> int:
    """Return the bytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def options(ca_file: str) -> dict[str, Any]:
    """Return those of an agent that keeps the connections and takes the one that was idle longest."""
    return {
        "ca": Path(ca_file).read_bytes(),
        "alpn_protocols": ("http/1.1",),
        "max_free_sockets": None,
        "free_socket_timeout": None,
        "scheduling": "fifo",
    }


async def of_async_agent(url: str, ca_file: str) -> dict[str, Any]:
    """Open the connections of an `AsyncAgent`, and let each serve."""
    from tlsagent import AsyncAgent

    async with AsyncAgent(**options(ca_file)) as agent:
        await agent.request("GET", url)
        before = resident()
        for _ in range(CONNECTIONS // _AT_ONCE):
            await agent.preconnect(url, _AT_ONCE)
        for _ in range(CONNECTIONS + 1):
            await agent.request("GET", url)
        return facts(agent, before)


def of_agent(url: str, ca_file: str) -> dict[str, Any]:
    """Open the connections of an `Agent`, and let each serve."""
    from tlsagent import Agent

    with Agent(**options(ca_file)) as agent:
        agent.request("GET", url)
        before = resident()
        agent.preconnect(url, CONNECTIONS)
        for _ in range(CONNECTIONS + 1):
            agent.request("GET", url)
        return facts(agent, before)


def facts(agent: Any, before: int) -> dict[str, Any]:
    """Return what the connections hold, once they are all there."""
    stats = agent.stats()
    assert stats.idle == CONNECTIONS + 1, stats
    assert stats.requests == CONNECTIONS + 2
    return {"bytes": (resident() - before) / CONNECTIONS, "resumed": stats.handshakes_resumed}


def main(face: str, loop: str, url: str, ca_file: str) -> None:
    """Measure one agent and tell it on standard output."""
    from benchmarks.worker import event_loop

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if face == "Agent":
        found = of_agent(url, ca_file)
    else:
        with asyncio.Runner(loop_factory=event_loop(loop)) as runner:
            found = runner.run(of_async_agent(url, ca_file))
    print(json.dumps(found), flush=True)
    os._exit(0)  # closing the connections in good order is no part of this


if __name__ == "__main__":
    main(*sys.argv[1:])
