"""
What the pool takes for `acquire` and `release`, with few and with many keys.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

from benchmarks.harness import Job, Sample, Stopwatch, Target
from tlsagent._core import AgentCore
from tlsagent._options import AgentOptions
from tlsagent._pool import Connect, Grant, Lease, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tlsagent._identity import PoolKey

_ORDER = 10_000
"""Keys visited in one pass, whether they differ or not."""


@contextlib.contextmanager
def contender(job: Job, target: Target) -> Iterator[Callable[[int], Sample]]:  # noqa: ARG001 - as with the others
    """Yield what takes and gives back leases on "so many of" all keys, as `job.variant` says, in no order."""
    core = AgentCore(AgentOptions(alpn_protocols=("http/1.1",)))
    used, of = map(int, job.variant.split(" of "))
    keys = [core.origin_plan(f"https://host-{number}.test/").key for number in range(of)]
    pool = filled(keys)
    order = keys[:used] * (_ORDER // used)
    random.Random(1).shuffle(order)

    def turn(count: int) -> Sample:
        acquire, release, clock = pool.acquire, pool.release, time.monotonic
        watch = Stopwatch()
        for _ in range(max(1, count // _ORDER)):
            for key in order:
                now = clock()
                lease = acquire(key, now)
                assert isinstance(lease, Lease)
                release(lease, now, reusable=True)
        return watch.stop(max(1, count // _ORDER) * _ORDER, {})

    yield turn


def filled(keys: list[PoolKey]) -> Pool[str]:
    """Return a pool with an idle connection for every key."""
    pool: Pool[str] = Pool()
    now = time.monotonic()
    for number, key in enumerate(keys):
        pool.acquire(key, now)
        [connect] = pool.effects()
        assert isinstance(connect, Connect)
        pool.connected(connect.attempt, f"connection {number}", now)
        [grant] = pool.effects()
        assert isinstance(grant, Grant)
        pool.release(grant.lease, now, reusable=True)
    return pool
