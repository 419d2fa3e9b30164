"""
What a request costs does not grow with what else there is, counted rather than timed; and what an idle connection
takes.

The long forms, with clocks, are `benchmarks/pool.py` and `benchmarks/idle.py`.
"""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from benchmarks.pool import KEY, SIZES, with_keys, with_waiters

from tlsagent._pool import Pool, Ticket

MOST_CALLS = 13
"""Function calls, those of C included, of one `acquire` and one `release`."""


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
    tell(kib=(resident() - before) / COUNT, idle=agent.stats().idle)
    agent.close()

async def main():
    agent = AsyncAgent(ca=CA, max_free_sockets=None)
    await agent.preconnect(URL, 20)
    gc.collect()
    before = resident()
    for _ in range(COUNT // 20):
        await agent.preconnect(URL, 20)
    gc.collect()
    tell(kib=(resident() - before) / COUNT, idle=agent.stats().idle)
    await agent.aclose()

sync() if KIND == "sync" else asyncio.run(main())
""",
        KIND=kind,
    )

    assert told["idle"] == 220
    assert told["kib"] <= 52
