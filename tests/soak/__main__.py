"""
`python -m tests.soak --requests N --driver threads|asyncio|uvloop`, from the root of the checkout. Exit status 1 if a
body was wrong, an error was none of those to be expected, or anything was leaked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings

from tests.soak.load import Orders
from tests.soak.measure import connections_to, growth, left, state_of
from tests.soak.workers import crew_of

STAGES = (0.25, 0.25, 0.5)
"""Shares of the requests: to warm up, up to the middle, up to the end."""


def main(arguments: list[str] | None = None) -> int:
    """Run one soak, print what came of it, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, metavar="N")
    parser.add_argument("--driver", choices=["threads", "asyncio", "uvloop"], default="threads")
    parser.add_argument("--connections", type=int, default=64, metavar="N")
    parser.add_argument("--workers", type=int, default=80, metavar="N", help="more than connections: some must wait")
    parser.add_argument("--seed", type=int, default=1)
    said = parser.parse_args(arguments)
    # Responses are dropped on purpose.
    warnings.filterwarnings("ignore", "<Async|<Stream", ResourceWarning)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        return soak(said, **json.loads(server.stdout.readline()))
    finally:
        server.communicate()


def soak(said: argparse.Namespace, url: str, ca: str) -> int:
    """Send the requests in three stages and compare what is held after the second and the third."""
    port = int(url.rpartition(":")[2])
    orders = Orders(said.seed, url)
    crew = crew_of(said.driver, ca=ca, max_sockets=said.connections)
    states = []
    begun = time.monotonic()
    for share in STAGES:
        orders.add(int(said.requests * share))
        crew.work(orders, said.workers)
        states.append(state_of(crew, port))
        print(f"{time.monotonic() - begun:7.1f} s  {states[-1]}", flush=True)
    problems = [*orders.failures, *(problem for state in states for problem in left(state)), *growth(*states[1:])]
    stats = crew.agent.stats()
    crew.close()
    if connections_to(port):
        problems.append(f"{connections_to(port)} connections are open after close()")
    print(dict(orders.outcomes.most_common()))
    print(f"{stats.requests} requests over {stats.opened} connections, closed: {stats.closed}")
    for problem in problems[:20]:
        print("FAILED:", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
