"""
What an idle pooled connection takes of memory, all told: resident memory of the process before and after.

`--connections` of them in one process, of `Agent` and of `AsyncAgent` on asyncio and uvloop, each in a process of its
own; the first 20 are not counted, for they bring what all share. Needs two descriptors for each connection: see
`ulimit -n`. Exits with 1 above BAR KiB.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys

from benchmarks.harness import report, running_server, table
from tlsagent import Agent, AsyncAgent

BAR = 52.0
DRIVERS = ("threads", "asyncio", "uvloop")
_SHARED = 20
_AT_ONCE = 50


def resident() -> float:
    """Return the KiB that the kernel counts for this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def of_threads(url: str, ca: str, count: int) -> float:
    """Return the KiB of one connection of `Agent`."""
    with Agent(ca=ca, max_free_sockets=None) as agent:
        agent.preconnect(url, _SHARED)
        gc.collect()
        before = resident()
        agent.preconnect(url, count)
        gc.collect()
        assert agent.stats().idle == _SHARED + count
        return (resident() - before) / count


async def of_tasks(url: str, ca: str, count: int) -> float:
    """Return the KiB of one connection of `AsyncAgent`."""
    async with AsyncAgent(ca=ca, max_free_sockets=None) as agent:
        await agent.preconnect(url, _SHARED)
        gc.collect()
        before = resident()
        for _ in range(count // _AT_ONCE):
            await agent.preconnect(url, _AT_ONCE)
        gc.collect()
        assert agent.stats().idle == _SHARED + count // _AT_ONCE * _AT_ONCE
        return (resident() - before) / count


def measure(driver: str, count: int) -> float:
    """Measure one driver in this process."""
    with running_server() as server:
        if driver == "threads":
            return of_threads(server.url, server.ca, count)
        if driver == "uvloop":
            import uvloop

            return uvloop.run(of_tasks(server.url, server.ca, count))
        return asyncio.run(of_tasks(server.url, server.ca, count))


def main() -> int:
    """Measure each driver in a process of its own, report, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--connections", type=int, default=5_000, metavar="N")
    parser.add_argument("--only", choices=DRIVERS, help="print the KiB of one driver, measured in this process")
    said = parser.parse_args()
    if said.only:
        print(measure(said.only, said.connections))
        return 0
    command = [sys.executable, "-m", "benchmarks.idle", "--connections", str(said.connections), "--only"]
    found = {
        driver: float(subprocess.run([*command, driver], check=True, capture_output=True, text=True).stdout)
        for driver in DRIVERS
    }
    rows = [[driver, f"{size:.1f}"] for driver, size in found.items()]
    missed = any(size > BAR for size in found.values())
    text = f"# Idle connections\n\n{said.connections:,} in one process.\n\n{table(['driver', 'KiB each'], rows)}\n\n"
    report("idle", text + f"At most {BAR:g} KiB: {'missed' if missed else 'met'}.", {"kib": found})
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
