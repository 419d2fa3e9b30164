"""
What a request costs does not grow with what else there is, counted rather than timed; and what an idle connection
takes.

The long forms, with clocks, are the rows `pool` and `idle` of the benchmarks.
"""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from tlsagent._pool import Connect, Grant, Pool, Ticket

KEY = "origin-0"
SIZES = (1, 100, 10_000)

MOST_CALLS = 13
"""Function calls, those of C included, of one `acquire` and one `release`."""


def connected(pool: Pool[int], number: int) -> Grant[int]:
    """Make a connection for a key of its own, and return the lease of whoever asked for it."""
    pool.acquire(f"origin-{number}", 0.0)
    [connect] = pool.effects()
    assert isinstance(connect, Connect)
    pool.connected(connect.attempt, number, 0.0)
    [grant] = pool.effects()
    assert isinstance(grant, Grant)
    return grant


def with_keys(count: int) -> Pool[int]:
    """Return a pool with one idle connection for each of so many keys."""
    pool = Pool[int]()
    for number in range(count):
        pool.release(connected(pool, number).lease, 0.0, reusable=True)
    return pool


def with_waiters(count: int) -> Pool[int]:
    """Return a pool with one idle connection, and so many waiters for another key, which is at its limit."""
    pool = Pool[int](max_sockets=1)
    pool.release(connected(pool, 0).lease, 0.0, reusable=True)
    connected(pool, 1)
    for _ in range(count):
        pool.acquire("origin-1", 0.0, deadline=30.0)
    return pool


def calls(act) -> int:
    """Return how many functions are called, in Python and in C."""
    counted: Counter[str] = Counter()

    def profile(frame, event, argument):
        if event in ("call", "c_call"):
            counted[event] += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(before)
    return counted.total() - 2  # `act` itself, and the end of the profile


def pair(pool: Pool[int]) -> None:
    pool.release(pool.acquire(KEY, 1.0), 1.0, reusable=True)


def turn(pool: Pool[int]) -> None:
    """A request that waits and gives up, while the pool is at its limit."""
    ticket = pool.acquire("origin-1", 1.0, deadline=20.0)
    assert isinstance(ticket, Ticket)
    pool.cancel(ticket, 1.0)


@pytest.mark.parametrize(
    ("make", "act"),
    [(with_keys, pair), (with_waiters, pair), (with_waiters, turn)],
    ids=["keys", "waiters", "queueing"],
)
def test_cost_does_not_grow(make, act):
    """
    With 1, 100 and 10,000 keys, or waiters, a request makes as many calls of the pool: at most a fifth more.
    """
    found = []
    for size in SIZES:
        pool = make(size)
        act(pool)
        found.append(sum(calls(lambda pool=pool: act(pool)) for _ in range(50)))

    assert max(found) <= 1.2 * found[0], dict(zip(SIZES, found, strict=True))


def test_acquire_and_release_are_few_calls():
    """
    A pair on a warm connection is that few calls: it is what keeps it below three microseconds.
    """
    pool = with_keys(1)
    pair(pool)

    assert calls(lambda: pair(pool)) <= MOST_CALLS


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("server", ["http1"], indirect=True)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_idle_connection_takes_little_memory(server, run, kind):
    """
    An idle connection takes 52 KiB of resident memory at most, all told.
    """
    [told] = run(
        server,
        """
import asyncio, gc
from benchmarks.idle import resident
from tlsagent import Agent, AsyncAgent
COUNT = 200

def sync():
    agent = Agent(ca=CA, max_free_sockets=None)
    agent.preconnect(URL, 20)
    gc.collect()
    before = resident()
    agent.preconnect(URL, COUNT)
    gc.collect()
    tell(kib=(resident() - before) / COUNT / 1024, idle=agent.stats().idle)
    agent.close()

async def main():
    agent = AsyncAgent(ca=CA, max_free_sockets=None)
    await agent.preconnect(URL, 20)
    gc.collect()
    before = resident()
    for _ in range(COUNT // 20):
        await agent.preconnect(URL, 20)
    gc.collect()
    tell(kib=(resident() - before) / COUNT / 1024, idle=agent.stats().idle)
    await agent.aclose()

sync() if KIND == "sync" else asyncio.run(main())
""",
        KIND=kind,
    )

    assert told["idle"] == 220
    assert told["kib"] <= 52
