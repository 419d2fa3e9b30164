"""
What the pool speaks of and what it keeps: plain data, without a decision.

Leases, tickets and attempts go to the driver and come back, effects tell it what to do; slots, buckets and queues stay
inside. Who may have what is decided in `_pool`, how wide a bucket dials in `_first_contact`; nobody else writes to any
of them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tlsagent._deadlines import Timer

if TYPE_CHECKING:
    from collections.abc import Hashable

# OrderedDict rather than dict throughout: "the oldest" of a dict whose front has been deleted is a walk over the holes.

C = TypeVar("C")

# Stands for each collection of a key that most keys never need, and is never written to: 10,000 keys that share nothing
# would else cost memory, and each request a look at it.
_NONE: OrderedDict[Any, None] = OrderedDict()


class Lease(Generic[C]):
    """
    The right to use a connection for one exchange. Must be released exactly once, also after `connection_lost`.

    Attributes:
        connection: The connection.
        reused: Whether it was leased before; on a shared connection the exchange before may still be under way.
        from_idle: Whether it lay idle before.
        may_be_stale: Whether it may have been closed by its peer unnoticed, so that one has to look first: it lay idle,
            or comes from an exchange before.
        user: Whom it was made for, as `acquire` was told. The pool does not look at it.
    """

    __slots__ = ("_slot", "connection", "from_idle", "may_be_stale", "reused", "user")

    def __init__(self, slot: Slot[C], from_idle: bool, user: Any) -> None:
        self._slot = slot
        self.connection = slot.connection
        self.reused = slot.served
        self.from_idle = from_idle
        self.may_be_stale = from_idle or (slot.served and slot.leases is None)
        self.user = user

    @property
    def key(self) -> Hashable:
        """The key of the connection."""
        return self._slot.bucket.key

    def __repr__(self) -> str:
        return f"<Lease {self.connection!r} reused={self.reused} from_idle={self.from_idle}>"


class Ticket(Generic[C]):
    """
    A place in the queue. Ends with `Grant`, `Refuse` or `Pool.cancel`.

    Attributes:
        key: The key waited for.
        deadline: When the pool refuses it, unless it is covered by then; None waits for ever.
        fresh: Whether only a connection will do that was made since.
        granted: The lease, once there is one.
        covered: Whether a connect attempt was made on its behalf.
        user: Whom it was made for, as `acquire` was told. The pool does not look at it.
    """

    __slots__ = ("_bucket", "_order", "_timer", "covered", "deadline", "fresh", "granted", "key", "user")

    def __init__(self, bucket: Bucket[C], order: int, deadline: float | None, fresh: bool, user: Any) -> None:
        self.key = bucket.key
        self.deadline = deadline
        self.fresh = fresh
        self.granted: Lease[C] | None = None
        self.covered = False
        self.user: Any = user
        self._bucket: Bucket[C] | None = bucket  # None once it has left the queue
        self._order = order
        self._timer: Timer[Ticket[C]] = Timer(self)

    def __repr__(self) -> str:
        return f"<Ticket {self._order} covered={self.covered} fresh={self.fresh}>"


class Attempt(Generic[C]):
    """
    A connection in the making. Ends with `Pool.connected` or `Pool.connect_failed`, whoever is still waiting for it.

    Attributes:
        key: The key it is made for.
        cause: The ticket it covers: the dial takes its timeouts. None for `preconnect`.
        user: Free for the driver. The pool does not look at it.
    """

    __slots__ = ("_begun_at", "_bucket", "cause", "key", "user")

    def __init__(self, bucket: Bucket[C], cause: Ticket[C] | None, begun_at: float) -> None:
        self.key = bucket.key
        self.cause = cause
        self._begun_at = begun_at
        self.user: Any = None
        self._bucket: Bucket[C] | None = bucket  # None once it has ended

    def __repr__(self) -> str:
        return f"<Attempt for {self.cause!r}>"


class Effect:
    """Something the driver must do. Two effects are equal if they ask for the same."""

    __slots__: tuple[str, ...] = ()

    def _fields(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Effect) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._fields()))})"


class Connect(Effect, Generic[C]):
    """Make a connection for `key`, then report on `attempt`."""

    __slots__ = ("key", "attempt")  # noqa: RUF023  the order of the arguments

    def __init__(self, key: Hashable, attempt: Attempt[C]) -> None:
        self.key = key
        self.attempt = attempt


class Grant(Effect, Generic[C]):
    """Give `lease` to whoever waits on `ticket`."""

    __slots__ = ("ticket", "lease")  # noqa: RUF023

    def __init__(self, ticket: Ticket[C], lease: Lease[C]) -> None:
        self.ticket = ticket
        self.lease = lease


class Refuse(Effect, Generic[C]):
    """Raise `error` to whoever waits on `ticket`. Where one attempt stood for many, each of them is told its error."""

    __slots__ = ("ticket", "error")  # noqa: RUF023

    def __init__(self, ticket: Ticket[C], error: BaseException) -> None:
        self.ticket = ticket
        self.error = error


class Close(Effect, Generic[C]):
    """Close `connection`: it is no longer of the pool. Comes exactly once for each connection, lost ones included."""

    __slots__ = ("connection", "reason")

    def __init__(self, connection: C, reason: str) -> None:
        self.connection = connection
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Counts:
    """
    A snapshot of one key or of the whole pool. Counts since the key was last forgotten, or since the pool was made.

    Attributes:
        active: Connections that are leased.
        idle: Connections that are free.
        dialling: Connect attempts.
        waiting: Tickets in the queue.
        opened: Connections made.
        closed: Connections closed, by reason.
        requests: Leases given out.
        reused: Those of them whose connection had served before.
    """

    active: int
    idle: int
    dialling: int
    waiting: int
    opened: int
    closed: dict[str, int]
    requests: int
    reused: int


class Slot(Generic[C]):
    """
    One connection of the pool.

    Attributes:
        lease: The one that is out, even after the connection is gone; None while it is shared.
        leases: All that are out, where the connection is or was shared; None where it serves one exchange at a time.
        capacity: How many leases may be out, where it is shared. 0 once it drains.
        draining: Why it takes no more exchanges, if it does not.
        born: How many tickets had been made when it was: a fresh ticket older than that may take it.
        served: Whether it was leased before.
        gone: Whether it is no longer of the pool.
        idle_for: What was said at the last release.
        expires_at: When it has been idle for too long, while it is.
    """

    __slots__ = (
        "born",
        "bucket",
        "capacity",
        "connection",
        "draining",
        "expires_at",
        "gone",
        "idle_for",
        "lease",
        "leases",
        "served",
        "timer",
    )

    def __init__(self, connection: C, bucket: Bucket[C], born: int = 0) -> None:
        self.connection = connection
        self.bucket = bucket
        self.lease: Lease[C] | None = None
        self.leases: set[Lease[C]] | None = None
        self.capacity = 1
        self.draining: str | None = None
        self.born = born
        self.served = False
        self.gone = False
        self.idle_for = inf
        self.expires_at = inf
        self.timer: Timer[Slot[C]] = Timer(self)

    def share(self) -> set[Lease[C]]:
        """Keep leases as those of a shared connection from now on, and return them."""
        if self.leases is None:
            self.bucket.prepare()
            self.leases = set() if self.lease is None else {self.lease}
            self.lease = None
        return self.leases


class Bucket(Generic[C]):
    """
    All there is of one key.

    Attributes:
        connections: Of any kind: leased, idle and stalled.
        attempts: How many are under way.
        width: How many attempts tickets may cause side by side: all of them need one, or one is hoped to serve all.
        idle: What is free and may be leased, in order of release.
        roomy: What is shared, leased and has room for more; the one that had none the shortest time ago is the last.
        stalled: What is shared and free, and has no room: its peer allows no exchange at present.
        draining: How many connections take no more exchanges and end with those they have.
        waiting: How many tickets are in the queue; kept here because every release asks for it.
        timer: Its place among those that want to dial.
        delay: When a second attempt may start beside the first; None until that is asked for.
        dialled_at: When the last attempt began.
    """

    __slots__ = (
        "attempts",
        "connections",
        "delay",
        "dialled_at",
        "draining",
        "idle",
        "key",
        "queue",
        "roomy",
        "stalled",
        "tally",
        "timer",
        "waiting",
        "width",
    )

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.connections = 0
        self.attempts = 0
        self.width = inf
        self.idle: OrderedDict[Slot[C], None] = OrderedDict()
        self.roomy: OrderedDict[Slot[C], None] = _NONE
        self.stalled: OrderedDict[Slot[C], None] = _NONE
        self.draining = 0
        self.queue: Queue[C] = Queue()
        self.waiting = 0
        self.tally = Tally()
        self.timer: Timer[Bucket[C]] = Timer(self)
        self.delay: Timer[Bucket[C]] | None = None
        self.dialled_at = 0.0

    @property
    def prepared(self) -> bool:
        """Whether any of its connections is or was shared."""
        return self.roomy is not _NONE

    def prepare(self) -> None:
        """Make room for shared connections."""
        if not self.prepared:
            self.roomy, self.stalled = OrderedDict(), OrderedDict()

    def short(self) -> bool:
        """Return whether its tickets need one more attempt than there are, limits aside."""
        return self.waiting > self.attempts < self.width and not self.stalled


class Queue(Generic[C]):
    """
    The tickets of one key in order of arrival. Those in `covered` are all older than those in `uncovered`.
    """

    __slots__ = ("covered", "fresh", "ordinary", "uncovered")

    def __init__(self) -> None:
        self.covered: OrderedDict[Ticket[C], None] = OrderedDict()
        self.uncovered: OrderedDict[Ticket[C], None] = OrderedDict()
        self.ordinary: OrderedDict[Ticket[C], None] = OrderedDict()  # those of both that are not fresh
        self.fresh: OrderedDict[Ticket[C], None] = _NONE  # those that are

    def push(self, ticket: Ticket[C]) -> None:
        self.uncovered[ticket] = None
        if ticket.fresh and self.fresh is _NONE:
            self.fresh = OrderedDict()
        (self.fresh if ticket.fresh else self.ordinary)[ticket] = None

    def remove(self, ticket: Ticket[C]) -> None:
        del (self.covered if ticket.covered else self.uncovered)[ticket]
        del (self.fresh if ticket.fresh else self.ordinary)[ticket]

    def oldest(self) -> Ticket[C] | None:
        return next(iter(self.covered or self.uncovered), None)

    def oldest_ordinary(self) -> Ticket[C] | None:
        return next(iter(self.ordinary), None)

    def oldest_for(self, born: int) -> Ticket[C] | None:
        """Return the oldest ticket that may take a connection which is as old as `born` says."""
        fresh = next(iter(self.fresh), None)
        ordinary = self.oldest_ordinary()
        if fresh is None or fresh._order >= born or (ordinary is not None and ordinary._order < fresh._order):
            return ordinary
        return fresh

    def oldest_uncovered(self) -> Ticket[C] | None:
        return next(iter(self.uncovered), None)

    def cover(self, ticket: Ticket[C]) -> None:
        """Cover `ticket`, the oldest uncovered one."""
        del self.uncovered[ticket]
        self.covered[ticket] = None
        ticket.covered = True

    def uncover(self) -> Ticket[C]:
        """Uncover the youngest covered ticket, so that the covered ones stay the oldest."""
        ticket = self.covered.popitem()[0]
        self.uncovered[ticket] = None
        self.uncovered.move_to_end(ticket, last=False)
        ticket.covered = False
        return ticket


class Tally:
    """What was counted for one key, or for all."""

    __slots__ = ("closed", "first", "opened", "requests")

    def __init__(self) -> None:
        self.opened = 0
        self.closed: Counter[str] = Counter()
        self.requests = 0
        self.first = 0  # requests on a connection that had not served before

    def counts(self, connections: int, idle: int, dialling: int, waiting: int) -> Counts:
        return Counts(
            active=connections - idle,
            idle=idle,
            dialling=dialling,
            waiting=waiting,
            opened=self.opened,
            closed=dict(self.closed),
            requests=self.requests,
            reused=self.requests - self.first,
        )
