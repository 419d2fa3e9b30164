"""
What the pool costs: one `acquire` and one `release`, with 1, 100 and 10,000 keys, and waiters, beside.

CPU time, in turn, round after round; the ratio of two sizes is that of one round, and the lowest figure of all rounds
is the cost, for on a shared machine only delays are added. Exits with 1 if a pair costs more than BAR microseconds, or
if 10,000 keys or waiters cost more than RATIO times one.
"""

from __future__ import annotations

import gc
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.harness import Spread, paired, pin, report, table
from tlsagent._pool import Connect, Grant, Lease, Pool

if TYPE_CHECKING:
    from collections.abc import Callable

BAR = 3.0
RATIO = 1.2
SIZES = (1, 100, 10_000)
ROUNDS = 15
PAIRS = 20_000
KEY = "origin-0"


def with_keys(count: int) -> Pool[int]:
    """Return a pool with one idle connection for each of so many keys."""
    pool = Pool[int]()
    for number in range(count):
        pool.acquire(f"origin-{number}", 0.0)
        [connect] = pool.effects()
        assert isinstance(connect, Connect)
        pool.connected(connect.attempt, number, 0.0)
        [grant] = pool.effects()
        assert isinstance(grant, Grant)
        pool.release(grant.lease, 0.0, reusable=True)
    return pool


def with_waiters(count: int) -> Pool[int]:
    """Return a pool with one idle connection, and so many waiters for other keys that are at their limit."""
    pool = Pool[int](max_sockets=1)
    for number in range(2):
        pool.acquire(f"origin-{number}", 0.0)
        [connect] = pool.effects()
        assert isinstance(connect, Connect)
        pool.connected(connect.attempt, number, 0.0)
        [grant] = pool.effects()
        assert isinstance(grant, Grant)
        if number == 0:
            pool.release(grant.lease, 0.0, reusable=True)
    for _ in range(count):
        pool.acquire("origin-1", 0.0, deadline=30.0)
    return pool


def cost(pool: Pool[int]) -> float:
    """Return the microseconds of one pair."""
    acquire, release = pool.acquire, pool.release
    began = time.process_time()
    for _ in range(PAIRS):
        lease = acquire(KEY, 1.0)
        assert type(lease) is Lease
        release(lease, 1.0, reusable=True)
    return (time.process_time() - began) / PAIRS * 1e6


def main() -> int:
    """Measure, report, and return the exit status."""
    pin(1)
    gc.disable()
    makers: dict[str, Callable[[int], Pool[int]]] = {"keys": with_keys, "waiters": with_waiters}
    pools = {(what, size): make(size) for what, make in makers.items() for size in SIZES}
    figures: dict[tuple[str, int], list[float]] = {case: [] for case in pools}
    for _ in range(ROUNDS):
        for case, pool in pools.items():
            figures[case].append(cost(pool))
    ratios = {what: paired(figures[what, SIZES[-1]], figures[what, SIZES[0]]) for what in makers}
    rows = [[f"{size:,} {what}", Spread.of(figures[what, size]).shown(2)] for what, size in pools]
    rows += [[f"10,000 {what} to 1", ratio.shown(2)] for what, ratio in ratios.items()]
    best = min(min(found) for found in figures.values())
    missed = best > BAR or any(ratio.median > RATIO for ratio in ratios.values())
    text = f"# Pool\n\n{table(['acquire and release', 'microseconds, or ratio'], rows)}\n\n"
    text += f"At most {BAR} us and {RATIO} times: {'missed' if missed else 'met'}."
    report("pool", text, {"figures": {f"{size} {what}": found for (what, size), found in figures.items()}})
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
