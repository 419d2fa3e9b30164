"""
Who gets which connection, when to connect, what to close.

Decides by key, order of arrival and limits only. What a connection is, whether it may be used again (`reusable`), how
one is made and what a key is made of are for others: connections and keys are any hashable values here. Nothing in
this room waits, calls out or looks at a clock: inputs are method calls, outputs are the effects that the driver drains
with `effects()` and carries out in their order.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING, Any, Generic, Literal

from tlsagent._deadlines import Deadlines, Timer
from tlsagent._first_contact import FirstContact
from tlsagent._pool_records import (
    Attempt,
    Bucket,
    C,
    Close,
    Connect,
    Counts,
    Effect,
    Grant,
    Lease,
    Queue,
    Refuse,
    Slot,
    Tally,
    Ticket,
)
from tlsagent.errors import AgentClosed, PoolTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Attempt", "Close", "Connect", "Counts", "Effect", "Grant", "Lease", "Pool", "Refuse", "Ticket"]

# Theory of operation
#
# Each key has a bucket: its idle connections, the number of all its connections, its connect attempts and its queue of
# tickets. A socket is leased, idle or an attempt; nothing else counts against the limits. A connection that is lost or
# closed is gone at once, even while its lease is still out: the driver closes it before it dials anew, because `Close`
# stands before `Connect` in the effects.
#
# A connection serves one exchange at a time, or is *shared*: then as many as its capacity says, which its peer may
# change at any moment. While it has leases and room it is *roomy*; without leases it is idle like any other, or
# *stalled* if its capacity is 0. A stalled one is closed like an idle one, but cannot be leased, and while there is one
# its key dials no other: a peer that allows no exchange here would allow none there. A *draining* one takes no more
# leases and is closed with its last.
#
# An attempt belongs to the pool. The ticket that caused it is merely *covered* by it: while covered, a ticket waits on
# the dial's own timeouts in place of its queue deadline. The covered tickets are always the oldest ones of the queue,
# and never more than there are attempts. Whichever comes first, a freed connection or a finished attempt, serves the
# oldest ticket that can take it (a `fresh` ticket takes only what was made since it came).
#
# Where connections may be shared, one attempt is under way for all tickets, or two (`width`, which `_first_contact`
# decides). Only the tickets that caused one are covered, the others wait on their queue deadlines. But it stands for
# all that have nothing else to wait for: they share its error, unless it is of one connection alone.
#
# A bucket *wants* to dial while it is short of attempts and its own limit leaves room. Wanting buckets stand
# in one order, by their oldest uncovered ticket, which is first come first served across keys. What holds whenever a
# method has returned:
#
#   1. a bucket still wants only if the total limit is reached and no connection of any key is idle;
#   2. an idle or roomy connection and a ticket that could take it are never in the same bucket;
#   3. a bucket without connections, attempts and tickets does not exist.
#
# 1 and 2 are why `acquire` may take an idle connection without a look at who else waits. It may take a roomy one since
# that costs nobody a place. Yet a connection that is never without leases would keep its place for ever: if at a
# release an older ticket waits for a place than any that the connection could serve, it drains, unless enough do so.


class Pool(Generic[C]):
    """
    Connections by key, within limits, first come first served.

    Not thread-safe: the driver calls it from one loop or under one lock. Every `now` is the driver's monotonic clock
    in seconds. No method raises half-way; a driver that misuses a lease, ticket or attempt gets an AssertionError.

    Args:
        keep_alive: Keep released connections idle. If False one is handed to the next ticket of its key or closed.
        max_sockets: Leased, idle and attempted connections per key; None for no limit.
        max_total_sockets: The same over all keys.
        max_free_sockets: Idle connections per key; the oldest of the surplus is closed. None for no limit.
        scheduling: Which idle connection is taken: "lifo" the last freed, "fifo" the first.
        free_socket_timeout: Seconds until an idle connection is closed; None for no limit.
        dial_delay: Seconds until a second attempt joins the first of a key whose connections may be shared, if another
            ticket waits; None for never.

    Attributes:
        outstanding: What `effects` is about to return.
    """

    def __init__(
        self,
        *,
        keep_alive: bool = True,
        max_sockets: int | None = None,
        max_total_sockets: int | None = None,
        max_free_sockets: int | None = 256,
        scheduling: Literal["lifo", "fifo"] = "lifo",
        free_socket_timeout: float | None = 60.0,
        dial_delay: float | None = None,
    ) -> None:
        self._keep_alive = keep_alive
        self._max_sockets = inf if max_sockets is None else max_sockets
        self._max_total_sockets = inf if max_total_sockets is None else max_total_sockets
        self._max_free_sockets = inf if max_free_sockets is None else max_free_sockets
        self._take_last = scheduling == "lifo"
        self._free_socket_timeout = inf if free_socket_timeout is None else free_socket_timeout
        self._contact: FirstContact[C] = FirstContact(dial_delay)
        self._closed = False
        self._now = 0.0  # of the last input after which somebody may dial
        self._buckets: dict[Hashable, Bucket[C]] = {}
        self._slots: dict[C, Slot[C]] = {}  # every connection, by itself
        self._idle: OrderedDict[Slot[C], None] = OrderedDict()  # of all keys, in order of release
        self._expiries: Deadlines[Slot[C]] = Deadlines()  # of what is idle, and stale ones of what was idle
        self._wanting: Deadlines[Bucket[C]] = Deadlines()  # ordered by ticket, not by time
        self._queue_deadlines: Deadlines[Ticket[C]] = Deadlines()
        self.outstanding: list[Effect] = []
        self._tickets = 0  # ever made: their order of arrival
        self._attempts = 0
        self._waiting = 0
        self._draining = 0
        self._tally = Tally()

    # -- What drivers ask for

    def acquire(
        self,
        key: Hashable,
        now: float,
        *,
        deadline: float | None = None,
        fresh: bool = False,
        shares: bool = False,
        user: Any = None,
    ) -> Lease[C] | Ticket[C]:
        """
        Reserve a connection for one exchange.

        Prefers a shared connection in use that has room: the one that was full the shortest time ago, so that the load
        gathers on few and the others fall idle. Then takes the idle connection chosen by `scheduling`. If there is
        neither the caller waits on a ticket, and a connect attempt may appear in `effects()`. That attempt belongs to
        the pool: cancelling the ticket does not cancel it.

        Args:
            key: Identity of the connection.
            now: Current time.
            deadline: When to refuse the ticket with `PoolTimeout`, unless an attempt covers it by then.
            fresh: Only a connection made from now on will do (a retry after a stale one).
            shares: Whether connections of this key may turn out to be shared, the same for all of a key: then one
                attempt is made for all tickets, until a connection turns out not to be. That is remembered of the last
                1,024 such keys.
            user: The driver's, for the lease or the ticket.

        Returns:
            A lease that must be released exactly once, or a ticket that is granted or refused later.

        Raises:
            AgentClosed: After `close()`.
        """
        if self._closed:
            raise _agent_closed()
        bucket = self._buckets.get(key)
        if bucket is not None and not fresh:
            if bucket.roomy:
                return self._lease(next(reversed(bucket.roomy)), False, user)
            if bucket.idle:
                slot = self._take_idle(bucket, now)
                if slot is not None:
                    return self._lease(slot, True, user)
        self._now = now
        bucket = self._bucket(key)  # again: its last connection may just have expired
        if shares and not bucket.waiting:
            self._contact.begin(bucket)
        ticket = Ticket(bucket, self._tickets, deadline, fresh, user)
        self._tickets += 1
        self._enqueue(ticket)
        self._settle(bucket)
        return ticket

    def join(self, connection: C, now: float, *, user: Any = None) -> Lease[C] | None:
        """Reserve a certain shared connection, whatever its key, for one exchange; None if it has no room."""
        if self._closed or not self.has_room(connection):
            return None
        slot = self._slots[connection]
        idle = slot in self._idle
        if idle and slot.expires_at <= now:
            self._evict(slot, "free_socket_timeout")
            return None
        if idle:
            self._unpark(slot)
        return self._lease(slot, idle, user)

    def has_room(self, connection: C) -> bool:
        """Return whether a certain shared connection takes a further exchange. Changes nothing, and needs no lock."""
        slot = self._slots.get(connection)
        return slot is not None and slot.leases is not None and len(slot.leases) < slot.capacity

    def release(
        self, lease: Lease[C], now: float, *, reusable: bool, reason: str = "not_reusable", idle_for: float = inf
    ) -> None:
        """
        Give a lease back.

        Args:
            lease: The lease; a second release of it is an AssertionError.
            now: Current time.
            reusable: Whether the connection may serve again. If not it drains where other leases of it are out.
            reason: Why not, for the statistics.
            idle_for: Seconds it may lie idle, where that is less than `free_socket_timeout`.
        """
        slot = lease._slot
        if slot.lease is not lease:
            self._release_shared(lease, now, reusable, reason, idle_for)
            return
        slot.lease = None
        if slot.gone:
            return
        slot.idle_for = idle_for
        bucket = slot.bucket
        if not reusable or self._closed:
            self._now = now
            self._drop(slot, "agent_closed" if self._closed else reason)
        elif bucket.waiting or self._wanting.armed or not self._keep_alive:
            self._now = now
            self._hand_over(slot, now)
        else:
            self._park(slot, now)
            return
        self._settle(bucket)

    def _release_shared(self, lease: Lease[C], now: float, reusable: bool, reason: str, idle_for: float) -> None:
        slot = lease._slot
        leases = slot.leases
        if leases is None or lease not in leases:
            raise AssertionError(f"{lease!r} was released before")
        bucket = slot.bucket
        if not (slot.gone or (reusable and not self._closed)):
            # Before the lease is gone: else an exception between the two would leave a spoilt connection in use.
            self._start_draining(slot, "agent_closed" if self._closed else reason)
        leases.remove(lease)
        if slot.gone:
            return
        slot.idle_for = idle_for
        if slot.capacity and self._keep_alive and not (bucket.waiting or self._wanting.armed):
            if not leases:
                bucket.roomy.pop(slot, None)
                self._park(slot, now)
            elif len(leases) + 1 == slot.capacity:
                bucket.roomy[slot] = None
            return
        if self._must_yield(slot):
            self._start_draining(slot, "make_room")
        self._now = now
        self._offer(slot, now)
        self._settle(bucket)

    def cancel(self, ticket: Ticket[C], now: float) -> Lease[C] | None:
        """
        Give up a ticket, in whatever state it is. Its attempt goes on and serves the next one.

        Returns:
            The lease, if the ticket was granted already: the caller has to release it.
        """
        bucket = ticket._bucket
        if bucket is None:
            return ticket.granted
        self._now = now
        self._leave_queue(ticket)
        self._settle(bucket)
        return None

    def preconnect(self, key: Hashable, now: float) -> Attempt[C] | None:
        """
        Place a connect attempt that nobody waits for, if the limits leave room without closing anything, and return it.

        Raises:
            AgentClosed: After `close()`.
        """
        if self._closed:
            raise _agent_closed()
        bucket = self._buckets.get(key)
        sockets = 0 if bucket is None else bucket.connections + bucket.attempts
        if sockets >= self._max_sockets or self._sockets() >= self._max_total_sockets:
            return None
        self._now = now
        return self._place(self._bucket(key), None)

    # -- What drivers report

    def connected(self, attempt: Attempt[C], connection: C, now: float, *, capacity: int = 1) -> None:
        """
        An attempt succeeded: serve the oldest tickets of its key, or lie idle.

        Args:
            attempt: The attempt.
            connection: The connection.
            now: Current time.
            capacity: How many exchanges it may carry at a time. 1 leases it to one after the other; any other number
                makes it shared, 0 until `set_capacity` tells more.
        """
        self._now = now
        bucket = self._end(attempt)
        slot = Slot(connection, bucket, self._tickets)
        self._slots[connection] = slot
        bucket.connections += 1
        bucket.tally.opened += 1
        self._tally.opened += 1
        if bucket.width != inf or capacity != 1:
            self._contact.learn(bucket, capacity != 1)
        ticket = bucket.queue.oldest()
        if self._closed:
            self._drop(slot, "agent_closed")
        elif capacity != 1:
            slot.capacity = capacity
            self._offer(slot, now)
            if len(bucket.queue.covered) > bucket.attempts:  # no room for the one that waited for it
                self._uncover(bucket.queue)
        elif ticket is not None:
            self._grant(ticket, slot)
        else:
            self._park(slot, now)
        self._settle(bucket)

    def connect_failed(
        self, attempt: Attempt[C], error: BaseException | None, now: float, *, for_all: bool = True
    ) -> None:
        """
        An attempt failed, or was abandoned if `error` is None.

        The error goes to the oldest covered ticket, unless the remaining attempts suffice for all of them. Where
        connections may be shared one remaining attempt suffices, and the last one's error goes to all tickets, unless
        there is a connection that may yet serve them, or the next attempt may fare better (`for_all` is False).
        """
        self._now = now
        bucket = self._end(attempt)
        queue = bucket.queue
        stood_for_all = self._contact.failed(bucket)
        suffice = stood_for_all and bucket.attempts > 0
        if for_all and error is not None and stood_for_all and not suffice and bucket.connections == bucket.draining:
            while (ticket := queue.oldest()) is not None:
                self._refuse(ticket, error)
        if len(queue.covered) > bucket.attempts:
            if error is None or suffice:
                self._uncover(queue)
            else:
                self._refuse(next(iter(queue.covered)), error)
        self._settle(bucket)

    def connection_lost(self, connection: C, now: float, reason: str) -> None:
        """A connection ended, idle or leased. Its leases are still to be released. A second report is ignored."""
        slot = self._slots.get(connection)
        if slot is None:
            return
        self._now = now
        if not (slot.lease or slot.leases):
            self._unpark(slot)
        self._drop(slot, reason)
        self._settle(slot.bucket)

    def set_capacity(self, connection: C, capacity: int, now: float) -> None:
        """
        Tell how many exchanges a connection may carry at a time from now on, which makes it shared.

        Where more are under way they go on. With 0 it takes none and is kept for a change of mind. Ignored for a
        connection that drains or is no longer of the pool.
        """
        slot = self._slots.get(connection)
        if slot is None or slot.gone or slot.draining is not None or slot.capacity == capacity:
            return
        self._now = now
        if slot.leases is None:
            self._contact.learn(slot.bucket, True)
        idle = slot in self._idle
        if idle and slot.capacity and capacity and slot.bucket.queue.oldest_for(slot.born) is None:
            slot.share()
            slot.capacity = capacity
            return
        if idle:
            self._unpark(slot)
        slot.share()
        slot.capacity = capacity
        self._offer(slot, now)
        self._settle(slot.bucket)

    def drain(self, connection: C, now: float, reason: str) -> None:
        """
        Give no more leases of a connection, and close it when the last one is released: at once if none is out.

        Ignored for a connection that drains already or is no longer of the pool.
        """
        slot = self._slots.get(connection)
        if slot is None or slot.gone or slot.draining is not None:
            return
        self._now = now
        if slot in self._idle:
            self._evict(slot, reason)
        else:
            self._start_draining(slot, reason)
        self._settle(slot.bucket)

    def next_delay(self) -> float | None:
        """Return when `handle_timeout` may have a second attempt join a first one, or None."""
        return self._contact.next_delay()

    def next_deadline(self) -> float | None:
        """Return when `handle_timeout` has something to do, or None."""
        queue = self._queue_deadlines.next()
        idle = self._expiries.next()
        delay = self.next_delay()
        if delay is not None:
            queue = delay if queue is None else min(queue, delay)
        if queue is None or idle is None:
            return idle if queue is None else queue
        return min(queue, idle)

    def handle_timeout(self, now: float) -> None:
        """Refuse the tickets, close the idle connections and make the second attempts whose time has come."""
        self._now = now
        # Before anything expires: the place of a stalled connection would cover tickets whose time has come.
        for ticket in self._queue_deadlines.expired(now):
            bucket = self._require_bucket(ticket)
            self._refuse(ticket, self._pool_timeout(bucket))
            self._settle(bucket)
        self._expire(now)
        for bucket in self._contact.widen(now):
            self._settle(bucket)

    def slept(self, seconds: float, now: float) -> None:
        """Bring every expiry forward by the time that the machine slept, and close what has expired."""
        for slot in self._idle:
            if slot.expires_at != inf:
                slot.expires_at -= seconds
                self._expiries.set(slot.timer, slot.expires_at)
        self._now = now
        self._expire(now)

    def forget(self) -> list[Ticket[C]]:
        """
        Disown every connection and return the tickets that wait or whose outcome is not carried out yet, no effects.

        For a driver that begins anew with another pool: leases may still be released here and tickets cancelled, which
        does nothing.
        """
        tickets = [effect.ticket for effect in self.outstanding if isinstance(effect, (Grant, Refuse))]
        for bucket in list(self._buckets.values()):
            tickets += [*bucket.queue.covered, *bucket.queue.uncovered]
        for ticket in tickets:
            ticket._bucket = None
        for slot in list(self._slots.values()):
            slot.gone = True
        return tickets

    def holds(self, connection: C) -> bool:
        """Return whether a connection is of the pool."""
        return connection in self._slots

    def mend(
        self,
        tickets: list[Ticket[C]],
        attempts: list[Attempt[C]],
        held: Callable[[Lease[C]], bool],
    ) -> None:
        """
        Restore every count and order after an exception, a signal's as a rule, struck in the middle of a change.

        Leases and idle connections are known here. A connection that is neither, or whose lease nobody holds, is
        closed; a shared one drains if somebody holds other leases of it. Capacities are as last told. The rest is what
        the driver says: it takes time in proportion to all there is.

        Args:
            tickets: Those that somebody waits on, and that were not granted.
            attempts: Those that somebody carries out.
            held: Whether a lease is in somebody's hands.
        """
        slots, idle, queues = list(self._slots.values()), self._idle, [b.queue for b in self._buckets.values()]
        before = self._buckets
        refused = {effect.ticket for effect in self.outstanding if isinstance(effect, Refuse)}
        self.outstanding = [effect for effect in self.outstanding if not isinstance(effect, Connect)]
        self._buckets, self._idle = {}, OrderedDict()
        self._expiries, self._wanting, self._queue_deadlines = Deadlines(), Deadlines(), Deadlines()
        self._contact.mend()
        self._waiting, self._attempts, self._draining = 0, len(attempts), 0
        for queue in queues:
            for ticket in (*queue.covered, *queue.uncovered):
                ticket._bucket = None
        lost = self._mend_slots(slots, idle, held)
        for ticket in sorted(set(tickets) - refused, key=lambda ticket: ticket._order):
            ticket._bucket, ticket.covered, ticket._timer = self._bucket(ticket.key), False, Timer(ticket)
            self._enqueue(ticket)
        for attempt in attempts:
            bucket = attempt._bucket = self._bucket(attempt.key)
            bucket.attempts += 1
            bucket.dialled_at = max(bucket.dialled_at, attempt._begun_at)
            if attempt.cause is not None and (oldest := bucket.queue.oldest_uncovered()) is not None:
                bucket.queue.cover(oldest)
                self._queue_deadlines.set(oldest._timer, None)
        for key, bucket in self._buckets.items():
            if key in before:
                bucket.tally, bucket.width = before[key].tally, before[key].width
        for slot in lost:
            self._drop(slot, "interrupted")
        for slot in slots:
            if slot.leases and not slot.gone:
                self._offer(slot, self._now)
        for bucket in list(self._buckets.values()):
            self._settle(bucket)

    def _mend_slots(
        self, slots: list[Slot[C]], idle: OrderedDict[Slot[C], None], held: Callable[[Lease[C]], bool]
    ) -> list[Slot[C]]:
        """Put the connections where they belong again and return those that belong nowhere."""
        for slot in slots:
            slot.bucket, slot.timer = self._bucket(slot.bucket.key), Timer(slot)
            slot.bucket.connections += 1
            if slot.leases is not None:
                self._mend_shared(slot, held)
        for slot in idle:
            if not (slot.lease or slot.leases or slot.gone) and slot.connection in self._slots:
                (slot.bucket.idle if slot.capacity else slot.bucket.stalled)[slot] = self._idle[slot] = None
                self._expiries.set(slot.timer, None if slot.expires_at == inf else slot.expires_at)
        return [
            slot
            for slot in slots
            if slot.gone
            or (slot.lease is not None and not held(slot.lease))
            or not (slot.lease or slot.leases or slot in self._idle)
        ]

    def _mend_shared(self, slot: Slot[C], held: Callable[[Lease[C]], bool]) -> None:
        slot.bucket.prepare()
        leases = slot.share()
        slot.lease, slot.leases = None, {lease for lease in leases if held(lease)}
        reason, slot.draining = slot.draining, None
        if reason is not None or len(slot.leases) < len(leases):
            self._start_draining(slot, reason or "interrupted")

    def close_idle(self, now: float, reason: str = "close_idle") -> None:
        """Close every idle connection."""
        self._now = now
        while self._idle:
            self._evict(next(iter(self._idle)), reason)
        self._dial()

    def close(self, now: float) -> None:
        """Refuse all tickets with `AgentClosed` and close what is idle; leased connections close when released."""
        self._closed = True
        self._now = now
        for bucket in list(self._buckets.values()):
            while (ticket := bucket.queue.oldest()) is not None:
                self._refuse(ticket, _agent_closed())
            self._settle(bucket)
        self.close_idle(now, "agent_closed")

    # -- What drivers read

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def effects(self) -> list[Effect]:
        """Return what is to be done, in order, and forget it."""
        effects = self.outstanding
        if effects:
            self.outstanding = []
            return effects
        return []

    def counts(self, key: Hashable | None = None) -> Counts:
        """Return the counts of `key`, or of the whole pool."""
        if key is None:
            return self._tally.counts(len(self._slots), len(self._idle), self._attempts, self._waiting)
        bucket = self._buckets.get(key)
        if bucket is None:
            return Tally().counts(0, 0, 0, 0)
        idle = len(bucket.idle) + len(bucket.stalled)
        return bucket.tally.counts(bucket.connections, idle, bucket.attempts, bucket.waiting)

    def shares(self, key: Hashable) -> bool:
        """Return whether there may be shared connections of a key. Needs no lock."""
        bucket = self._buckets.get(key)
        return bucket is not None and bucket.prepared

    def keys(self) -> list[Hashable]:
        """Return the keys that have a connection, an attempt or a ticket."""
        return list(self._buckets)

    # -- Connections

    def _lease(self, slot: Slot[C], from_idle: bool, user: Any) -> Lease[C]:
        lease = Lease(slot, from_idle, user)
        if slot.leases is None:
            slot.lease = lease
        else:
            slot.leases.add(lease)
            if len(slot.leases) == 1 or len(slot.leases) == slot.capacity:
                self._list_room(slot, slot.leases)
        slot.bucket.tally.requests += 1
        self._tally.requests += 1
        if not slot.served:
            slot.served = True
            slot.bucket.tally.first += 1
            self._tally.first += 1
        return lease

    def _take_idle(self, bucket: Bucket[C], now: float) -> Slot[C] | None:
        """Remove and return an idle connection; close the expired ones met on the way."""
        while bucket.idle:
            slot = bucket.idle.popitem(self._take_last)[0]
            del self._idle[slot]
            if slot.expires_at > now:
                return slot
            self._drop(slot, "free_socket_timeout")
            self._forget_unused(bucket)
        return None

    def _hand_over(self, slot: Slot[C], now: float) -> None:
        """Give a freed connection to the oldest ticket that can take it, unless an older one needs its place."""
        ticket = slot.bucket.queue.oldest_ordinary()
        if ticket is None:
            if self._keep_alive:
                self._park(slot, now)
            else:
                self._drop(slot, "keep_alive_off")
        elif self._outranked(ticket._order, slot.bucket):
            self._drop(slot, "make_room")
        else:
            self._grant(ticket, slot)

    def _outranked(self, order: float, bucket: Bucket[C]) -> bool:
        """Return whether a ticket older than `order` waits for a place: of another key, or a fresh one of this key."""
        return self._blocked_here(order, bucket) or self._blocked_elsewhere(order)

    def _blocked_here(self, order: float, bucket: Bucket[C]) -> bool:
        blocked = bucket.queue.oldest_uncovered() if bucket.short() else None
        return blocked is not None and blocked._order < order

    def _blocked_elsewhere(self, order: float) -> bool:
        wanting = self._wanting.earliest()
        blocked = None if wanting is None else wanting.queue.oldest_uncovered()
        return blocked is not None and blocked._order < order

    def _must_yield(self, slot: Slot[C]) -> bool:
        """Return whether a shared connection is to end because an older ticket than it could serve needs its place."""
        bucket = slot.bucket
        if slot.draining is not None:
            return False
        ticket = bucket.queue.oldest_for(slot.born)
        if not slot.leases:
            return ticket is not None and self._outranked(ticket._order, bucket)
        order = inf if ticket is None else ticket._order
        if not bucket.draining and self._blocked_here(order, bucket):
            return True
        return self._draining < self._wanting.armed and self._blocked_elsewhere(order)

    def _offer(self, slot: Slot[C], now: float) -> None:
        """Grant the room of a shared connection to the oldest tickets that may take it; put it where it belongs."""
        leases = slot.share()
        while len(leases) < slot.capacity and (ticket := slot.bucket.queue.oldest_for(slot.born)) is not None:
            self._grant(ticket, slot)
        self._list_room(slot, leases)
        if leases:
            return
        if slot.draining is not None:
            self._drop(slot, slot.draining)
        elif self._keep_alive or not (slot.served and slot.capacity):
            self._park(slot, now)
        else:
            self._drop(slot, "keep_alive_off")

    def _list_room(self, slot: Slot[C], leases: set[Lease[C]]) -> None:
        if 0 < len(leases) < slot.capacity:
            slot.bucket.roomy[slot] = None
        else:
            slot.bucket.roomy.pop(slot, None)

    def _start_draining(self, slot: Slot[C], reason: str) -> None:
        slot.share()
        if slot.draining is None:
            slot.draining = reason
            slot.bucket.draining += 1
            self._draining += 1
        slot.capacity = 0
        slot.bucket.roomy.pop(slot, None)

    def _park(self, slot: Slot[C], now: float) -> None:
        bucket = slot.bucket
        idle_for = self._free_socket_timeout
        if slot.idle_for < idle_for:
            idle_for = slot.idle_for
        slot.expires_at = now + idle_for
        self._expiries.set(slot.timer, None if idle_for == inf else slot.expires_at)
        (bucket.idle if slot.capacity else bucket.stalled)[slot] = None
        self._idle[slot] = None
        if len(bucket.idle) > self._max_free_sockets:
            self._evict(next(iter(bucket.idle)), "max_free_sockets")
        # Nobody watches the clock in a driver without timers: let each release bury up to two of the dead.
        if self._expiries.due(now) and self._expire_oldest(now):
            self._expire_oldest(now)
            self._now = now
            self._dial()

    def _unpark(self, slot: Slot[C]) -> None:
        del (slot.bucket.idle if slot.capacity else slot.bucket.stalled)[slot]
        del self._idle[slot]

    def _expire(self, now: float) -> None:
        while self._expire_oldest(now):
            pass
        self._dial()

    def _expire_oldest(self, now: float) -> bool:
        while (slot := self._expiries.earliest()) is not None and slot.expires_at <= now:
            if slot in self._idle:
                self._evict(slot, "free_socket_timeout")
                return True
            self._expiries.set(slot.timer, None)  # leased since: its next release arms it anew
        return False

    def _evict(self, slot: Slot[C], reason: str) -> None:
        """Close an idle connection. If it was stalled, whoever waited for it may want to dial: settle, or `_dial`."""
        self._unpark(slot)
        self._drop(slot, reason)
        if not slot.capacity:
            self._update_wanting(slot.bucket)
        self._forget_unused(slot.bucket)

    def _drop(self, slot: Slot[C], reason: str) -> None:
        """Close a connection that is neither idle nor any use to its lease."""
        self._expiries.discard(slot.timer)
        slot.gone = True
        del self._slots[slot.connection]
        slot.bucket.connections -= 1
        if slot.leases is not None:
            slot.bucket.roomy.pop(slot, None)
            if slot.draining is not None:
                slot.bucket.draining -= 1
                self._draining -= 1
        slot.bucket.tally.closed[reason] += 1
        self._tally.closed[reason] += 1
        self.outstanding.append(Close(slot.connection, reason))

    # -- Tickets

    def _enqueue(self, ticket: Ticket[C]) -> None:
        bucket = self._require_bucket(ticket)
        bucket.queue.push(ticket)
        bucket.waiting += 1
        self._waiting += 1
        self._queue_deadlines.set(ticket._timer, ticket.deadline)

    def _leave_queue(self, ticket: Ticket[C]) -> None:
        bucket = self._require_bucket(ticket)
        bucket.queue.remove(ticket)
        bucket.waiting -= 1
        self._waiting -= 1
        self._queue_deadlines.discard(ticket._timer)
        ticket._bucket = None

    def _grant(self, ticket: Ticket[C], slot: Slot[C]) -> None:
        self._leave_queue(ticket)
        ticket.granted = self._lease(slot, False, ticket.user)
        self.outstanding.append(Grant(ticket, ticket.granted))

    def _refuse(self, ticket: Ticket[C], error: BaseException) -> None:
        self._leave_queue(ticket)
        self.outstanding.append(Refuse(ticket, error))

    def _uncover(self, queue: Queue[C]) -> None:
        """Put the youngest covered ticket back on its queue deadline: its attempt was abandoned."""
        ticket = queue.uncover()
        self._queue_deadlines.set(ticket._timer, ticket.deadline)

    def _pool_timeout(self, bucket: Bucket[C]) -> PoolTimeout:
        return PoolTimeout(
            f"no connection became free before the queue deadline: {bucket.connections} open and {bucket.attempts} "
            f"dialling for this key, {bucket.waiting} waiting (limit {self._max_sockets}); {self._sockets()} in "
            f"all (limit {self._max_total_sockets}). Raise max_sockets, max_total_sockets or timeouts.queue",
            phase="queue",
        )

    @staticmethod
    def _require_bucket(ticket: Ticket[C]) -> Bucket[C]:
        if ticket._bucket is None:
            raise AssertionError(f"{ticket!r} is not in the queue")
        return ticket._bucket

    # -- Attempts

    def _settle(self, bucket: Bucket[C]) -> None:
        """Restore the invariants after a change to `bucket`: dial for whoever may, forget the bucket if it is empty."""
        self._update_wanting(bucket)
        self._dial()
        self._forget_unused(bucket)

    def _dial(self) -> None:
        while (wanting := self._wanting.earliest()) is not None and self._make_room(wanting):
            self._place(wanting, wanting.queue.oldest_uncovered())
            self._update_wanting(wanting)

    def _update_wanting(self, bucket: Bucket[C]) -> None:
        if bucket.width != inf or bucket.delay is not None:
            self._contact.watch(bucket)
        wants = bucket.short() and (bucket.connections + bucket.attempts < self._max_sockets or bool(bucket.idle))
        ticket = bucket.queue.oldest_uncovered() if wants else None
        self._wanting.set(bucket.timer, None if ticket is None else ticket._order)

    def _make_room(self, bucket: Bucket[C]) -> bool:
        """Make room for one attempt, closing an idle connection if need be; return False if that is impossible."""
        if bucket.connections + bucket.attempts >= self._max_sockets:
            # Its idle ones are of no use to it: only fresh tickets wait.
            self._evict(next(iter(bucket.idle)), "make_room")
        elif self._sockets() >= self._max_total_sockets:
            if not self._idle:
                return False
            self._evict(next(iter(self._idle)), "make_room")
        return True

    def _place(self, bucket: Bucket[C], cause: Ticket[C] | None) -> Attempt[C]:
        if cause is not None:
            bucket.queue.cover(cause)
            self._queue_deadlines.set(cause._timer, None)
        attempt = Attempt(bucket, cause, self._now)
        bucket.dialled_at = self._now
        bucket.attempts += 1
        self._attempts += 1
        self.outstanding.append(Connect(bucket.key, attempt))
        return attempt

    def _end(self, attempt: Attempt[C]) -> Bucket[C]:
        bucket = attempt._bucket
        if bucket is None:
            raise AssertionError(f"{attempt!r} has ended before")
        attempt._bucket = None
        bucket.attempts -= 1
        self._attempts -= 1
        return bucket

    # -- Buckets

    def _sockets(self) -> int:
        return len(self._slots) + self._attempts

    def _bucket(self, key: Hashable) -> Bucket[C]:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(key)
        return bucket

    def _forget_unused(self, bucket: Bucket[C]) -> None:
        if not (bucket.connections or bucket.attempts or bucket.waiting):
            # Twice for one bucket is possible: a later one of the same key must stay.
            if self._buckets.get(bucket.key) is bucket:
                del self._buckets[bucket.key]
            self._wanting.discard(bucket.timer)
            self._contact.forget(bucket)


def _agent_closed() -> AgentClosed:
    return AgentClosed("the agent is closed: make a new one for further requests")
