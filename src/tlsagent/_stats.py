"""
What an agent counts.

Each connection carries its own tallies, which only the holder of its lease touches; they are folded into the counters
of its key when it goes, so that counting costs a request nothing and needs no lock.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from tlsagent._connection import Connection
    from tlsagent._identity import PoolKey
    from tlsagent._pool import Pool

_MAX_KEYS: Final = 1_024


@dataclasses.dataclass(slots=True)
class Counters:
    """
    What happened under one pool key, or under all of them.

    Attributes:
        active, idle, dialling, waiting: What there is now: connections that carry a request, idle ones, attempts under
            way, requests that wait for a connection.
        opened: Connections whose handshake was completed.
        closed: Connections that went, by reason; `events.Closed` says what the words mean.
        requests: Requests begun on a connection; a retry counts again.
        reused: Of these, on a connection that had served before.
        handshakes_full, handshakes_resumed: How connections came about.
        early_data_accepted: Connections whose early data the server took.
        sessions_stored, sessions_taken: TLS sessions put into and taken from the session store.
        bytes_sent, bytes_received: Bytes on the wire, TLS included.
    """

    active: int = 0
    idle: int = 0
    dialling: int = 0
    waiting: int = 0
    opened: int = 0
    closed: dict[str, int] = dataclasses.field(default_factory=dict)
    requests: int = 0
    reused: int = 0
    handshakes_full: int = 0
    handshakes_resumed: int = 0
    early_data_accepted: int = 0
    sessions_stored: int = 0
    sessions_taken: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def add(self, other: Counters) -> None:
        """Add what `other` counted."""
        for name in _PLAIN:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.closed.items():
            self.closed[reason] = self.closed.get(reason, 0) + count

    def fold(self, connection: Connection) -> None:
        """Add the tallies of a connection."""
        self.bytes_sent += connection.bytes_sent
        self.bytes_received += connection.bytes_received
        self.sessions_stored += connection.sessions_stored
        self.sessions_taken += connection.session_offered
        info = connection.info
        if info is not None:
            self.opened += 1
            self.handshakes_resumed += info.session_reused
            self.handshakes_full += not info.session_reused
            self.early_data_accepted += info.early_data == "accepted"
            self.requests += connection.requests
            self.reused += max(0, connection.requests - 1)


_PLAIN = tuple(f.name for f in dataclasses.fields(Counters) if f.name != "closed")


@dataclasses.dataclass(slots=True)
class AgentStats(Counters):
    """
    The totals of an agent, and the same per key.

    Attributes:
        by_key: Counters by the printable digest of the pool key; the least recently used beyond 1,024 are only in the
            totals.
    """

    by_key: dict[str, Counters] = dataclasses.field(default_factory=dict)


class Tally:
    """The living connections of an agent, and what the dead ones left."""

    __slots__ = ("_forgotten", "_gone", "_last_reason", "_living")

    def __init__(self) -> None:
        self._living: set[Connection] = set()
        self._gone: OrderedDict[PoolKey, Counters] = OrderedDict()
        self._last_reason: dict[PoolKey, str] = {}
        self._forgotten = Counters()

    def opened(self, connection: Connection) -> None:
        """Count it from now on."""
        self._living.add(connection)

    def closed(self, connection: Connection, reason: str) -> bool:
        """Keep what it leaves; returns False if it was counted out before."""
        if connection not in self._living:
            return False
        self._living.discard(connection)
        key = connection.plan.key
        counters = self._gone.setdefault(key, Counters())
        self._gone.move_to_end(key)
        counters.fold(connection)
        if connection.info is not None:
            counters.closed[reason] = counters.closed.get(reason, 0) + 1
            self._last_reason[key] = reason
        if len(self._gone) > _MAX_KEYS:
            oldest, counters = self._gone.popitem(last=False)
            self._last_reason.pop(oldest, None)
            self._forgotten.add(counters)
        return True

    def living(self) -> list[Connection]:
        """Return the connections that are not closed."""
        return list(self._living)

    def last_reason(self, key: PoolKey) -> str | None:
        """Return why the last connection of a key went, as far as that is remembered."""
        return self._last_reason.get(key)

    def snapshot(self, pool: Pool[Connection]) -> AgentStats:
        """Return all counters as they stand."""
        by_key: dict[PoolKey, Counters] = {}
        for key, left in self._gone.items():
            by_key.setdefault(key, Counters()).add(left)
        for connection in self.living():  # a copy: drivers count in what they open without a lock
            by_key.setdefault(connection.plan.key, Counters()).fold(connection)
        for used in pool.keys():  # noqa: SIM118 - a pool is no mapping
            by_key.setdefault(cast("PoolKey", used), Counters())
        stats = AgentStats(by_key={key.digest: counters for key, counters in by_key.items()})
        stats.add(self._forgotten)
        for key, counters in by_key.items():
            counts = pool.counts(key)
            counters.active, counters.idle = counts.active, counts.idle
            counters.dialling, counters.waiting = counts.dialling, counts.waiting
            stats.add(counters)
        return stats
