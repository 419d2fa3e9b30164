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
from tests.soak.server import STREAMS
from tests.soak.workers import Crew, crew_of

STAGES = (0.25, 0.25, 0.5)
"""Shares of the requests: to warm up, up to the middle, up to the end."""

HOLD = 5.0
"""Seconds in which a stream must be had that is free."""


def main(arguments: list[str] | None = None) -> int:
    """Run one soak, print what came of it, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, metavar="N")
    parser.add_argument("--driver", choices=["threads", "asyncio", "uvloop"], default="threads")
    parser.add_argument("--connections", type=int, metavar="N", help="64, or 1 of HTTP/2")
    parser.add_argument("--workers", type=int, metavar="N", help="80, or 32 with HTTP/2; some may have to wait")
    parser.add_argument("--http2", action="store_true", help="all over HTTP/2, by default on one connection at a time")
    parser.add_argument("--seed", type=int, default=1)
    said = parser.parse_args(arguments)
    said.connections = said.connections or (1 if said.http2 else 64)
    said.workers = said.workers or (32 if said.http2 else 80)
    # Responses are dropped on purpose.
    warnings.filterwarnings("ignore", "<Async|<Stream", ResourceWarning)
    command = [sys.executable, "-m", "tests.soak.server", *(["--http2"] if said.http2 else [])]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        return soak(said, **json.loads(server.stdout.readline()))
    finally:
        server.communicate()


def soak(said: argparse.Namespace, url: str, ca: str) -> int:
    """Send the requests in three stages and compare what is held after the second and the third."""
    port = int(url.rpartition(":")[2])
    orders = Orders(said.seed, url)
    protocols = ("h2", "http/1.1") if said.http2 else ("http/1.1",)
    crew = crew_of(said.driver, ca=ca, max_sockets=said.connections, alpn_protocols=protocols)
    states = []
    begun = time.monotonic()
    for share in STAGES:
        orders.add(int(said.requests * share))
        crew.work(orders, said.workers)
        states.append(state_of(crew, port))
        print(f"{time.monotonic() - begun:7.1f} s  {states[-1]}", flush=True)
    problems = [*orders.failures, *(problem for state in states for problem in left(state)), *growth(*states[1:])]
    if said.http2:
        problems += missing_streams(crew, url, said.connections)
    stats = crew.agent.stats()
    crew.close()
    if connections_to(port):
        problems.append(f"{connections_to(port)} connections are open after close()")
    print(dict(orders.outcomes.most_common()))
    print(f"{stats.requests} requests over {stats.opened} connections, closed: {stats.closed}")
    if "interrupted" in stats.closed:
        problems.append("a connection was closed as if an exception had struck, and none did")
    for problem in problems[:20]:
        print("FAILED:", problem)
    return 1 if problems else 0


def missing_streams(crew: Crew, url: str, connections: int) -> list[str]:
    """Return whether there are as many streams at a time as the server allows: a slot that was lost is missing here."""
    crew.hold(f"{url}/peace/1/1", 1, HOLD)
    count = connections * STREAMS
    held = crew.hold(f"{url}/plain/1/2000000", count, HOLD)  # more than comes unread: none of them ends
    return [] if held == count else [f"{held} streams at a time, and not {count}"]


if __name__ == "__main__":
    sys.exit(main())
