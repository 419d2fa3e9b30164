"""
Whatever happens in whatever order, the pool keeps its promises.

A Hypothesis state machine drives a `Pool` and keeps a plain model beside it: dictionaries and lists, searched in full,
that know nothing of how the pool finds its answers. Every effect is checked as it is carried out, every promise after
each step. The second half plants defects in the pool, one promise broken by each, and demands that the machine finds
them: a check that cannot fail is no check.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tlsagent._first_contact import FirstContact
from tlsagent._pool import Attempt, Close, Connect, Grant, Lease, Pool, Refuse, Ticket
from tlsagent.errors import AgentClosed, ConnectError, PoolTimeout

KEYS = ("a", "b", "c")


class BrokenPromiseError(AssertionError):
    """The pool did what it must not, or not what it must."""


def promise(kept: object, text: str) -> None:
    if not kept:
        raise BrokenPromiseError(text)


@dataclass(eq=False)
class Waiting:
    """The model of a ticket in the queue."""

    ticket: Ticket[str]
    key: str
    deadline: float
    fresh: bool
    number: int  # in order of arrival
    covered: bool = False


@dataclass(eq=False)
class Connection:
    """The model of a connection; without leases it is idle, or stalled if its capacity is 0."""

    key: str
    born: int  # how many tickets had been made when it was
    capacity: int = 1
    shared: bool = False
    draining: bool = False
    leases: list[Lease[str]] = field(default_factory=list)
    served: bool = False
    expires_at: float = inf

    @property
    def room(self) -> int:
        return max(0, self.capacity - len(self.leases))

    def may_take(self, waiting: Waiting) -> bool:
        return not waiting.fresh or (self.shared and waiting.number < self.born)


@dataclass
class Model:
    """What must be true, kept in the plainest way. Everything is in order of arrival."""

    keep_alive: bool
    max_sockets: float
    max_total_sockets: float
    max_free_sockets: int
    scheduling: str
    free_socket_timeout: float
    dial_delay: float
    waiting: list[Waiting] = field(default_factory=list)
    attempts: list[Attempt[str]] = field(default_factory=list)
    connections: dict[str, Connection] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)  # in order of release
    roomy: list[str] = field(default_factory=list)  # in order of getting room
    width: dict[str, float] = field(default_factory=dict)  # how many attempts the tickets of a key may cause at a time
    shared: dict[str, bool] = field(default_factory=dict)  # whether the last connection of a key was
    dialled_at: dict[str, float] = field(default_factory=dict)
    closed: bool = False

    def queue(self, key: str) -> list[Waiting]:
        return [waiting for waiting in self.waiting if waiting.key == key]

    def dialling(self, key: str) -> int:
        return sum(attempt.key == key for attempt in self.attempts)

    def idle_of(self, key: str) -> list[str]:
        return [name for name in self.idle if self.connections[name].key == key and self.connections[name].capacity]

    def stalled_of(self, key: str) -> list[str]:
        return [name for name in self.idle if self.connections[name].key == key and not self.connections[name].capacity]

    def roomy_of(self, key: str) -> list[str]:
        return [name for name in self.roomy if self.connections[name].key == key]

    def list_room(self) -> None:
        """Bring the order of those that have room up to date."""
        has = [name for name, connection in self.connections.items() if connection.leases and connection.room]
        self.roomy = [name for name in self.roomy if name in has]
        self.roomy += [name for name in has if name not in self.roomy]

    def of(self, key: str) -> list[Connection]:
        return [connection for connection in self.connections.values() if connection.key == key]

    def learn(self, key: str, shared: bool) -> None:
        self.shared[key] = shared
        self.width[key] = 1 if shared else inf

    def sockets(self, key: str) -> int:
        return self.dialling(key) + len(self.of(key))

    def total(self) -> int:
        return len(self.attempts) + len(self.connections)

    def short_of_attempts(self, key: str) -> bool:
        dialling = self.dialling(key)
        return len(self.queue(key)) > dialling < self.width.get(key, inf) and not self.stalled_of(key)

    def delayed_until(self, key: str) -> float:
        """When a second attempt is to join the first for the tickets of `key`."""
        held_up = len(self.queue(key)) > self.dialling(key) == self.width.get(key) == 1 and not self.stalled_of(key)
        return self.dialled_at[key] + self.dial_delay if held_up else inf

    def starved(self, *, but: str | None = None) -> list[Waiting]:
        """The oldest uncovered ticket of each key that only the total limit keeps from dialling, oldest first."""
        if self.total() < self.max_total_sockets:
            return []
        return self.undialled(but=but)

    def undialled(self, *, but: str | None = None) -> list[Waiting]:
        """The oldest uncovered ticket of each key that its own limit allows to dial, oldest first."""
        oldest: dict[str, Waiting] = {}
        for waiting in self.waiting:
            key = waiting.key
            room = self.sockets(key) < self.max_sockets or self.idle_of(key)
            if key != but and room and not waiting.covered and self.short_of_attempts(key):
                oldest.setdefault(key, waiting)
        return list(oldest.values())

    def takers(self, name: str) -> list[Ticket[str]]:
        """Return who gets the room that a shared connection has."""
        connection = self.connections[name]
        able = [waiting.ticket for waiting in self.queue(connection.key) if connection.may_take(waiting)]
        return able[: connection.room]

    def must_yield(self, name: str) -> bool:
        """Whether a shared connection, one lease of which ended, makes room for an older ticket than it may serve."""
        connection = self.connections[name]
        able = [waiting for waiting in self.queue(connection.key) if connection.may_take(waiting)]
        rank = self.rank(able[0]) if able else inf
        uncovered = [waiting for waiting in self.queue(connection.key) if not waiting.covered]
        here = bool(uncovered) and self.short_of_attempts(connection.key) and self.rank(uncovered[0]) < rank
        wanting = self.undialled()
        elsewhere = bool(wanting) and self.rank(wanting[0]) < rank
        if not connection.leases:
            return bool(able) and (here or elsewhere)
        draining = [other for other in self.connections.values() if other.draining]
        here = here and not any(other.key == connection.key for other in draining)
        return not connection.draining and (here or (elsewhere and len(draining) < len(wanting)))

    def rank(self, waiting: Waiting) -> int:
        return self.waiting.index(waiting)


# One rule that draws the call, not a rule per call: Hypothesis leaves out random rules, and without those that make and
# free connections a run tells little. The weights keep most runs busy with connections that are made, used and freed.
PICK = st.integers(0, 1000)  # of a list, modulo its length
ARGUMENTS = {
    "acquire": {
        "key": st.sampled_from(["a", "a", *KEYS]),
        "patience": st.sampled_from([None, 1.0, 3.0, 9.0]),
        "fresh": st.sampled_from([False, False, False, True]),
    },
    "connected": {"pick": PICK, "capacity": st.sampled_from([1, 2, 2, 3, 0])},
    "release": {"pick": PICK, "reusable": st.sampled_from([True, True, True, False])},
    "connect_failed": {"pick": PICK, "abandoned": st.booleans()},
    "connection_lost": {"pick": PICK},
    "set_capacity": {"pick": PICK, "capacity": st.sampled_from([0, 1, 2, 3])},
    "drain": {"pick": PICK},
    "cancel": {"pick": PICK},
    "preconnect": {"key": st.sampled_from(KEYS)},
    "time_passes": {"seconds": st.sampled_from([0.5, 1.0, 2.0])},
    "handle_timeout": {},
    "close_idle": {},
    "close": {},
}
WEIGHTS = {"acquire": 8, "connected": 6, "release": 6, "connect_failed": 2, "time_passes": 3}
VERBS = [verb for verb in ARGUMENTS for _ in range(WEIGHTS.get(verb, 1))]
CALLS = st.sampled_from(VERBS).flatmap(
    lambda verb: st.tuples(st.just(verb), st.fixed_dictionaries(ARGUMENTS[verb])),
)


class PoolMachine(RuleBasedStateMachine):
    """Drive a pool the way a driver does, effects carried out after every call."""

    pool_class: type[Pool[str]] = Pool

    @initialize(
        keep_alive=st.sampled_from([True, True, True, False]),
        max_sockets=st.sampled_from([None, None, 1, 2, 3]),
        max_total_sockets=st.sampled_from([None, None, 1, 2, 3]),
        max_free_sockets=st.sampled_from([256, 256, 0, 1]),
        scheduling=st.sampled_from(["lifo", "fifo"]),
        free_socket_timeout=st.sampled_from([None, 2.0, 2.0]),
        dial_delay=st.sampled_from([None, 1.0]),
        sharing=st.sampled_from([(), ("a",), ("a", "b"), ("a",)]),
    )
    def make(self, sharing, **options):
        self.sharing = sharing
        self.pool = self.pool_class(**options)
        unlimited = {name: inf if value is None else value for name, value in options.items()}
        self.model = Model(**unlimited)
        self.now = 0.0
        self.names = iter(range(1_000_000))
        self.steps = 0
        self.tickets: list[Ticket[str]] = []
        self.ended: dict[Ticket[str], object] = {}  # every ticket ends once: its Grant, Refuse or cancellation
        self.leases: list[Lease[str]] = []  # not yet released
        self.lost: set[Lease[str]] = set()  # of connections that are gone
        self.displaced: str | None = None  # the key whose stalled connection has just made room
        self.removed: dict[str, str] = {}  # every connection closes once: the reason

    @rule(call=CALLS)
    def call(self, call):
        """Do what a driver may do next; what is impossible just now is passed over."""
        verb, arguments = call
        if self.possible(verb):
            getattr(self, verb)(**arguments)

    def possible(self, verb: str) -> bool:
        match verb:
            case "release":
                return bool(self.leases)
            case "connected" | "connect_failed":
                return bool(self.model.attempts)
            case "connection_lost" | "drain":
                return bool(self.model.connections or self.removed)
            case "set_capacity":
                return bool(self.capacious())
            case "cancel":
                return bool(self.tickets)
            case "close":
                return self.steps > 25
            case _:
                return True

    # -- What a driver does

    def acquire(self, key, patience, fresh):
        model = self.model
        deadline = None if patience is None else self.now + patience
        asked = {"deadline": deadline, "fresh": fresh, "shares": key in self.sharing}
        if model.closed:
            with pytest.raises(AgentClosed):
                self.pool.acquire(key, self.now, **asked)
            return
        candidates = [] if fresh else model.idle_of(key)
        candidates = candidates[::-1] if model.scheduling == "lifo" else candidates
        alive = [name for name in candidates if model.connections[name].expires_at > self.now]
        roomy = [] if fresh else model.roomy_of(key)

        got = self.pool.acquire(key, self.now, **asked)

        if isinstance(got, Lease):
            promise(roomy or alive, "no connection without a reason: none had room or was idle and alive")
            if roomy:
                promise(got.connection == roomy[-1], "who was full last is filled first")
            else:
                promise(got.connection == alive[0], "scheduling chooses the idle connection")
            promise(got.from_idle == (not roomy), "a lease says whether its connection was idle")
            self.take(got, key)
        else:
            promise(not alive, "an idle connection serves at once")
            promise(not roomy, "a shared connection with room serves at once")
            if key in self.sharing and not model.queue(key):
                model.width[key] = inf if model.shared.get(key) is False else 1
            model.waiting.append(Waiting(got, key, inf if deadline is None else deadline, fresh, len(self.tickets)))
            self.tickets.append(got)
        self.carry_out()

    def release(self, pick, reusable):
        model = self.model
        lease = self.leases.pop(pick % len(self.leases))
        name, gone = lease.connection, lease in self.lost
        expected: list[Ticket[str]] = []
        if not gone:
            connection = model.connections[name]
            connection.leases.remove(lease)
            if not connection.shared:
                if reusable and not model.closed:
                    expected = self.expected_after_release(lease.key)
            elif not reusable or model.closed or model.must_yield(name):
                connection.draining, connection.capacity = True, 0
            else:
                expected = model.takers(name)
            freed = None if connection.leases else name

        self.pool.release(lease, self.now, reusable=reusable)

        effects = self.carry_out(freed=None if gone else freed, reusable=reusable)
        served = [effect.ticket for effect in effects if isinstance(effect, Grant)]
        promise(served == expected, "a freed connection serves the oldest that may")
        promise(self.refuses_to_release(lease), "a lease is released once")

    def refuses_to_release(self, lease: Lease[str]) -> bool:
        try:
            self.pool.release(lease, self.now, reusable=True)
        except AssertionError:
            return True
        return False

    def expected_after_release(self, key: str) -> list[Ticket[str]]:
        """Return who must get a freed connection of `key` that is not shared."""
        model = self.model
        ordinary = [waiting for waiting in model.queue(key) if not waiting.fresh]
        if not ordinary:
            return []
        rivals = model.starved(but=key)
        uncovered = [waiting for waiting in model.queue(key) if not waiting.covered]
        if uncovered and uncovered[0].fresh and model.short_of_attempts(key):
            rivals.append(uncovered[0])
        if any(model.rank(rival) < model.rank(ordinary[0]) for rival in rivals):
            return []
        return [ordinary[0].ticket]

    def connected(self, pick, capacity=1):
        model = self.model
        attempt = model.attempts.pop(pick % len(model.attempts))
        key, name = attempt.key, f"{attempt.key}{next(self.names)}"
        capacity = capacity if key in self.sharing else 1
        model.connections[name] = Connection(key, len(self.tickets), capacity, shared=capacity != 1)
        if model.width.get(key, inf) != inf or capacity != 1:
            model.learn(key, capacity != 1)
        covered = [waiting for waiting in model.queue(key) if waiting.covered]
        if not capacity and len(covered) > model.dialling(key):
            covered[-1].covered = False
        expected = model.takers(name) if capacity != 1 else [waiting.ticket for waiting in model.queue(key)[:1]]

        self.pool.connected(attempt, name, self.now, capacity=capacity)

        effects = self.carry_out(freed=name, reusable=True)
        served = [effect.ticket for effect in effects if isinstance(effect, Grant)]
        promise(served == expected, "a new connection serves the oldest tickets, as many as it may carry")

    def connect_failed(self, pick, abandoned):
        model = self.model
        attempt = model.attempts.pop(pick % len(model.attempts))
        key = attempt.key
        queue, dialling = model.queue(key), model.dialling(key)
        covered = [waiting for waiting in queue if waiting.covered]
        one_for_all = model.width.get(key, inf) != inf
        if one_for_all:
            model.width[key] = 1
        error = None if abandoned else ConnectError("refused")
        doomed: list[Waiting] = []
        if one_for_all and not abandoned and not dialling and all(c.draining for c in model.of(key)):
            doomed = queue
        elif len(covered) > dialling:
            if abandoned or (one_for_all and dialling):
                covered[-1].covered = False
            else:
                doomed = covered[:1]

        self.pool.connect_failed(attempt, error, self.now)

        refusals = [effect for effect in self.carry_out() if isinstance(effect, Refuse)]
        expected = [Refuse(waiting.ticket, error) for waiting in doomed]
        promise(refusals == expected, "a failed attempt is told to those that depend on it")

    def connection_lost(self, pick):
        names = [*self.model.connections, *self.removed]
        self.pool.connection_lost(names[pick % len(names)], self.now, "lost")
        self.carry_out(lost=names[pick % len(names)])

    def capacious(self) -> list[str]:
        """Return the connections that may be shared, gone ones included."""
        names = [name for name, connection in self.model.connections.items() if connection.key in self.sharing]
        return names + [name for name in self.removed if name[0] in self.sharing]

    def set_capacity(self, pick, capacity):
        model, names = self.model, self.capacious()
        name = names[pick % len(names)]
        connection = model.connections.get(name)
        expected, freed = [], None
        if connection is not None and not connection.draining and connection.capacity != capacity:
            before, connection.capacity = connection.capacity, capacity
            if not connection.shared:
                connection.shared = True
                model.learn(connection.key, True)
            takers = model.takers(name)
            if name in model.idle and (takers or not (before and capacity)):
                model.idle.remove(name)
                freed = name
            if name not in model.idle:
                expected = takers

        self.pool.set_capacity(name, capacity, self.now)

        effects = self.carry_out(freed=freed, reusable=True)
        served = [effect.ticket for effect in effects if isinstance(effect, Grant)]
        promise(served == expected, "new room serves the oldest that may")

    def drain(self, pick):
        names = [*self.model.connections, *self.removed]
        name = names[pick % len(names)]
        idle = name in self.model.idle
        if name in self.model.connections and not idle:
            connection = self.model.connections[name]
            connection.shared = connection.draining = True
            connection.capacity = 0

        self.pool.drain(name, self.now, "drained")

        self.carry_out()
        promise(not idle or self.removed.get(name) == "drained", "an idle connection drains at once")

    def cancel(self, pick):
        ticket = self.tickets[-1 - pick % len(self.tickets)]
        lease = self.pool.cancel(ticket, self.now)
        granted = self.ended.get(ticket)
        promise(lease is (granted if isinstance(granted, Lease) else None), "cancel hands over a granted lease")
        if ticket not in self.ended:
            self.ended[ticket] = "cancelled"
            self.leave_queue(ticket)
        self.carry_out()

    def preconnect(self, key):
        model = self.model
        if model.closed:
            with pytest.raises(AgentClosed):
                self.pool.preconnect(key, self.now)
            return
        room = model.sockets(key) < model.max_sockets and model.total() < model.max_total_sockets
        attempt = self.pool.preconnect(key, self.now)
        promise((attempt is not None) == room, "preconnect uses the room there is")
        expected = [] if attempt is None else [Connect(key, attempt)]
        promise(self.carry_out() == expected, "preconnect places one attempt and closes nothing")

    def time_passes(self, seconds):
        self.now += seconds

    def handle_timeout(self):
        model = self.model
        due = [waiting.ticket for waiting in model.waiting if not waiting.covered and waiting.deadline <= self.now]
        self.pool.handle_timeout(self.now)
        refused = [effect.ticket for effect in self.carry_out(timing=True) if isinstance(effect, Refuse)]
        promise(set(refused) == set(due), "queue deadlines refuse the uncovered tickets whose time has come")
        left = [name for name in model.idle if model.connections[name].expires_at <= self.now]
        promise(not left, "expired idle connections are closed")

    def close_idle(self):
        self.pool.close_idle(self.now)
        self.carry_out()
        promise(not self.model.idle, "close_idle leaves no connection idle")

    def close(self):
        self.model.closed = True
        self.pool.close(self.now)
        self.carry_out()
        promise(not self.model.waiting, "close leaves no ticket waiting")
        promise(not self.model.idle, "close leaves no connection idle")

    # -- What the model makes of it

    def carry_out(
        self, *, freed: str | None = None, reusable: bool = False, lost: str | None = None, timing: bool = False
    ) -> list[object]:
        """Check and apply the effects in their order, then check what must always hold."""
        model = self.model
        effects = self.pool.effects()
        ended = [effect.connection for effect in effects if isinstance(effect, Close)]
        granted = [effect.lease.connection for effect in effects if isinstance(effect, Grant)]
        if freed is not None and freed not in ended + granted:
            promise(reusable, "what may not serve again is closed")
            self.lie_idle(freed)
        for effect in effects:
            match effect:
                case Connect():
                    self.on_connect(effect, timing)
                case Grant():
                    self.on_grant(effect)
                case Refuse():
                    self.on_refuse(effect)
                case Close():
                    self.on_close(effect, freed, lost)
        self.steps += 1
        for key in KEYS:
            if timing and model.delayed_until(key) <= self.now:
                model.width[key] = 2
            if not (model.sockets(key) or model.queue(key)):
                model.width.pop(key, None)
        model.list_room()
        self.check_promises()
        return effects

    def lie_idle(self, name: str) -> None:
        self.model.idle.append(name)
        self.model.connections[name].expires_at = self.now + self.model.free_socket_timeout

    def on_connect(self, effect: Connect[str], timing: bool) -> None:
        model, attempt, key = self.model, effect.attempt, effect.key
        promise(model.sockets(key) < model.max_sockets, "max_sockets is never exceeded")
        promise(model.total() < model.max_total_sockets, "max_total_sockets is never exceeded")
        promise(not model.closed, "a closed pool does not dial")
        if attempt.cause is not None:
            if timing and model.delayed_until(key) <= self.now:
                model.width[key] = 2
            promise(model.dialling(key) < model.width.get(key, inf), "one attempt is made for all tickets")
            promise(not model.stalled_of(key), "nobody dials while the peer allows no exchange")
            undialled = [waiting for waiting in model.undialled() if waiting.key != self.displaced]
            self.displaced = None
            promise(undialled, "nobody dials without need")
            promise(undialled[0].ticket is attempt.cause, "dials are first come first served across keys")
            promise(attempt.cause.covered, "the cause of an attempt is covered")
            undialled[0].covered = True
        model.attempts.append(attempt)
        model.dialled_at[key] = self.now

    def on_grant(self, effect: Grant[str]) -> None:
        ticket, lease = effect.ticket, effect.lease
        promise(ticket not in self.ended, "a ticket ends once")
        promise(ticket.granted is lease, "a granted ticket knows its lease")
        promise(lease.key == ticket.key, "a ticket gets a connection of its key")
        connection = self.model.connections.get(lease.connection)
        promise(connection is not None, "only a live connection is granted")
        [waiting] = (waiting for waiting in self.model.waiting if waiting.ticket is ticket)
        new = waiting.number < connection.born and (connection.shared or not connection.served)
        promise(not ticket.fresh or new, "a fresh ticket gets a new connection")
        promise(not lease.from_idle, "a granted connection was not idle")
        self.ended[ticket] = lease
        self.leave_queue(ticket)
        self.take(lease, ticket.key)

    def on_refuse(self, effect: Refuse[str]) -> None:
        promise(effect.ticket not in self.ended, "a ticket ends once")
        if isinstance(effect.error, PoolTimeout):
            [waiting] = (waiting for waiting in self.model.waiting if waiting.ticket is effect.ticket)
            promise(waiting.deadline <= self.now, "no ticket is refused before its deadline")
        self.ended[effect.ticket] = effect.error
        self.leave_queue(effect.ticket)

    def on_close(self, effect: Close[str], freed: str | None, lost: str | None) -> None:
        model, name = self.model, effect.connection
        promise(name not in self.removed, "a connection closes once")
        connection = model.connections[name]
        promise(not connection.leases or name == lost, "a leased connection is not closed")
        if effect.reason == "make_room" and not (connection.capacity or connection.draining):
            self.displaced = connection.key
        if name in model.idle:
            if effect.reason == "make_room":
                oldest = (model.idle[0], *model.idle_of(connection.key)[:1])
                promise(name in oldest, "the oldest idle connection makes room")
            if effect.reason == "max_free_sockets":
                promise(name == model.idle_of(connection.key)[0], "the oldest of the surplus is closed")
            if effect.reason == "free_socket_timeout":
                promise(connection.expires_at <= self.now, "no connection expires before its time")
            model.idle.remove(name)
        elif name not in (freed, lost):
            raise BrokenPromiseError("a connection in use is not closed")
        self.lost.update(connection.leases)
        del model.connections[name]
        self.removed[name] = effect.reason

    def take(self, lease: Lease[str], key: str) -> None:
        connection = self.model.connections[lease.connection]
        promise(connection.room, "a connection has no more leases than its capacity, one unless it is shared")
        promise(lease.key == connection.key == key, "a lease is for its key")
        promise(lease.reused == connection.served, "a lease says whether its connection has served")
        if lease.connection in self.model.idle:
            self.model.idle.remove(lease.connection)
        connection.leases.append(lease)
        connection.served = True
        self.model.list_room()
        self.leases.append(lease)

    def leave_queue(self, ticket: Ticket[str]) -> None:
        self.model.waiting = [waiting for waiting in self.model.waiting if waiting.ticket is not ticket]

    # -- What must always hold

    def check_promises(self) -> None:
        model = self.model
        promise(
            not (model.undialled() and (model.total() < model.max_total_sockets or model.idle)), "who may dial does"
        )
        for key in KEYS:
            self.check_key(key)
        counts = self.pool.counts()
        promise(
            (counts.active, counts.idle, counts.dialling, counts.waiting)
            == (len(model.connections) - len(model.idle), len(model.idle), len(model.attempts), len(model.waiting)),
            "the totals are right",
        )
        promise(sum(counts.closed.values()) == len(self.removed), "every closed connection is counted")
        self.check_next_deadline()

    def check_key(self, key: str) -> None:
        model = self.model
        idle, queue = model.idle_of(key), model.queue(key)
        for name in idle + model.roomy_of(key):
            able = [waiting for waiting in queue if model.connections[name].may_take(waiting)]
            promise(not able, "no ticket waits beside a connection that may serve it")
        for name, connection in model.connections.items():
            promise(bool(connection.leases) != (name in model.idle), "a connection is leased or idle")
        promise(len(idle) <= model.max_free_sockets, "max_free_sockets is never exceeded")
        covered = [waiting.covered for waiting in queue]
        promise(covered == sorted(covered, reverse=True), "the oldest tickets are the covered ones")
        promise(sum(covered) <= model.dialling(key), "no more tickets are covered than there are attempts")
        promise(covered == [waiting.ticket.covered for waiting in queue], "tickets know whether they are covered")
        counts = self.pool.counts(key)
        free = len(idle) + len(model.stalled_of(key))
        active = len(model.of(key)) - free
        promise(
            (counts.active, counts.idle, counts.dialling, counts.waiting)
            == (active, free, model.dialling(key), len(queue)),
            "the counts of a key are right",
        )
        promise((key in set(self.pool.keys())) == bool(model.sockets(key) or queue), "an unused key is forgotten")

    def check_next_deadline(self) -> None:
        model = self.model
        deadlines = [waiting.deadline for waiting in model.waiting if not waiting.covered]
        deadlines += [model.connections[name].expires_at for name in model.idle]
        deadlines += [model.delayed_until(key) for key in KEYS]
        earliest = min(deadlines, default=inf)
        following = self.pool.next_deadline()
        promise((inf if following is None else following) <= earliest, "the next deadline is no later than any")

    def teardown(self):
        """Close, let everything under way end, and see that nothing is left."""
        if sys.exc_info()[0] is not None:
            return  # Called after a failure too, which the ones that follow from it must not hide.
        self.close()
        while self.model.attempts:
            self.connected(0)
        while self.leases:
            self.release(0, True)
        promise(all(ticket in self.ended for ticket in self.tickets), "no ticket is lost")
        promise(not self.model.connections, "close ends every connection")
        promise(self.pool.keys() == [], "close leaves no key")


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


class TestPoolMachine(PoolMachine.TestCase):
    """No sequence of calls loses a ticket, exceeds a limit, leases twice, serves out of turn or fails to end."""


# -- Planted defects: a pool that breaks one promise must be found out


class LosesRefusals(Pool[str]):
    def _refuse(self, ticket, error):
        self._leave_queue(ticket)


class IgnoresTotalLimit(Pool[str]):
    def _make_room(self, bucket):
        self._max_total_sockets, limit = inf, self._max_total_sockets
        room = super()._make_room(bucket)
        self._max_total_sockets = limit
        return room


class IgnoresKeyLimit(Pool[str]):
    def _update_wanting(self, bucket):
        self._max_sockets, limit = inf, self._max_sockets
        super()._update_wanting(bucket)
        self._max_sockets = limit

    def _make_room(self, bucket):
        self._max_sockets, limit = inf, self._max_sockets
        room = super()._make_room(bucket)
        self._max_sockets = limit
        return room


class DialsBeforeItCloses(Pool[str]):
    def effects(self):
        return sorted(super().effects(), key=lambda effect: isinstance(effect, Close))


class LeasesTwice(Pool[str]):
    def _take_idle(self, bucket, now):
        slot = super()._take_idle(bucket, now)
        if slot is not None:
            bucket.idle[slot] = self._idle[slot] = None
        return slot


class TakesLeasesBackTwice(Pool[str]):
    def release(self, lease, now, *, reusable, reason="not_reusable"):
        if lease._slot.lease is lease:
            super().release(lease, now, reusable=reusable, reason=reason)


class NeverFinishesClosing(Pool[str]):
    def release(self, lease, now, *, reusable, reason="not_reusable"):
        self._closed, closed = False, self._closed
        super().release(lease, now, reusable=reusable, reason=reason)
        self._closed = closed


class LeavesTicketsBehindOnClose(Pool[str]):
    def close(self, now):
        self._closed = True
        self.close_idle(now, "agent_closed")


class ServesYoungestFirst(Pool[str]):
    def _hand_over(self, slot, now):
        ordinary = slot.bucket.queue.ordinary
        if ordinary:
            ordinary.move_to_end(next(reversed(ordinary)), last=False)
        super()._hand_over(slot, now)


class FavoursTheFreedKey(Pool[str]):
    def _outranked(self, ticket, bucket):
        return False


class DialsForTheYoungestKey(Pool[str]):
    def _update_wanting(self, bucket):
        super()._update_wanting(bucket)
        if bucket.timer.deadline is not None:
            self._wanting.set(bucket.timer, -bucket.timer.deadline)


class StarvesOtherKeys(Pool[str]):
    def _make_room(self, bucket):
        full = self._sockets() >= self._max_total_sockets
        return (bool(bucket.idle) or not full) and super()._make_room(bucket)


class LeaksAttemptSlots(Pool[str]):
    def _end(self, attempt):
        bucket = super()._end(attempt)
        if attempt.cause is not None and attempt.cause._bucket is None:
            bucket.attempts += 1
            self._attempts += 1
        return bucket


class CancelsTheAttemptToo(Pool[str]):
    def cancel(self, ticket, now):
        if ticket._bucket is not None and ticket.covered:
            ticket._bucket.attempts -= 1
            self._attempts -= 1
        return super().cancel(ticket, now)


class GrantsCancelledTickets(Pool[str]):
    def cancel(self, ticket, now):
        return ticket.granted


class ForgetsTheWaitersOfALostConnection(Pool[str]):
    def connection_lost(self, connection, now, reason):
        slot = self._slots.get(connection)
        if slot is not None and slot.lease is not None:
            self._drop(slot, reason)
            self._forget_unused(slot.bucket)
        else:
            super().connection_lost(connection, now, reason)


class ClosesTheLostTwice(Pool[str]):
    def connection_lost(self, connection, now, reason):
        super().connection_lost(connection, now, reason)
        self.outstanding.append(Close(connection, reason))


class LeasesTheExpired(Pool[str]):
    def _take_idle(self, bucket, now):
        return super()._take_idle(bucket, -inf)


class ServesRetriesWithOldConnections(Pool[str]):
    def _enqueue(self, ticket):
        super()._enqueue(ticket)
        ticket._bucket.queue.ordinary[ticket] = None

    def _leave_queue(self, ticket):
        if ticket.fresh:
            ticket._bucket.queue.ordinary.pop(ticket)
        super()._leave_queue(ticket)


class TimesOutCoveredTickets(Pool[str]):
    def _place(self, bucket, cause):
        super()._place(bucket, cause)
        if cause is not None:
            self._queue_deadlines.set(cause._timer, cause.deadline)


class TellsEveryFailure(Pool[str]):
    def connect_failed(self, attempt, error, now):
        ticket = attempt._bucket.queue.oldest()
        if error is not None and ticket is not None:
            self._refuse(ticket, error)
        super().connect_failed(attempt, None, now)


class RefusesTheAbandoned(Pool[str]):
    def connect_failed(self, attempt, error, now):
        super().connect_failed(attempt, error or ConnectError("abandoned"), now)


class KeepsTooManyIdle(Pool[str]):
    def _park(self, slot, now):
        self._max_free_sockets, limit = 256, self._max_free_sockets
        super()._park(slot, now)
        self._max_free_sockets = limit


class KeepsTheUnusable(Pool[str]):
    def release(self, lease, now, *, reusable, reason="not_reusable"):
        super().release(lease, now, reusable=True, reason=reason)


class RemembersKeysForEver(Pool[str]):
    def _forget_unused(self, bucket):
        pass


class MiscountsReuse(Pool[str]):
    def _hand_over(self, slot, now):
        slot.served = False
        super()._hand_over(slot, now)


class TakesTheWrongEnd(Pool[str]):
    def __init__(self, **options):
        super().__init__(**options)
        self._take_last = not self._take_last


class SleepsThroughDeadlines(Pool[str]):
    def next_deadline(self):
        return None if self._idle else super().next_deadline()


class LeasesBeyondCapacity(Pool[str]):
    def _list_room(self, slot, leases):
        super()._list_room(slot, leases)
        if slot.leases and not slot.draining:
            slot.bucket.roomy[slot] = None


class LeavesRoomUnused(Pool[str]):
    def _list_room(self, slot, leases):
        pass


class LeavesTicketsBesideNewRoom(Pool[str]):
    def set_capacity(self, connection, capacity, now):
        slot = self._slots.get(connection)
        if slot is not None and slot.leases:
            slot.capacity = capacity
            self._list_room(slot, slot.leases)
        else:
            super().set_capacity(connection, capacity, now)


class ContactDefect(Pool[str]):
    """A pool with a defective memory of its keys."""

    def __init__(self, **options):
        super().__init__(**options)
        self._contact.__class__ = self.contact_class


class DialsForEveryTicketAtFirstContact(ContactDefect):
    class contact_class(FirstContact[str]):
        __slots__ = ()

        def begin(self, bucket):
            pass


class DialsOneByOneThoughNothingIsShared(ContactDefect):
    class contact_class(FirstContact[str]):
        __slots__ = ()

        def learn(self, bucket, shared):
            super().learn(bucket, True)


class TellsOneOfThoseThatShareAnAttempt(Pool[str]):
    def connect_failed(self, attempt, error, now):
        attempt._bucket.width = inf
        super().connect_failed(attempt, error, now)


class NeverMakesASecondAttempt(ContactDefect):
    class contact_class(FirstContact[str]):
        __slots__ = ()

        def watch(self, bucket):
            pass


class DialsBesideTheStalled(Pool[str]):
    def _park(self, slot, now):
        super()._park(slot, now)
        slot.bucket.stalled.pop(slot, None)

    def _unpark(self, slot):
        if not slot.capacity:
            slot.bucket.stalled[slot] = None
        super()._unpark(slot)


class GrantsFromTheDraining(Pool[str]):
    def _start_draining(self, slot, reason):
        capacity = slot.capacity
        super()._start_draining(slot, reason)
        slot.capacity = capacity


class CutsOffTheDraining(Pool[str]):
    def _start_draining(self, slot, reason):
        super()._start_draining(slot, reason)
        if slot.leases:
            self._drop(slot, reason)


class StarvesOthersWithSharedConnections(Pool[str]):
    def _must_yield(self, slot):
        return False


class DrainsWithoutMeasure(Pool[str]):
    def _must_yield(self, slot):
        draining, slot.bucket.draining = slot.bucket.draining, 0
        self._draining, total = 0, self._draining
        must = super()._must_yield(slot)
        slot.bucket.draining, self._draining = draining, total
        return must


class ServesRetriesWithSharedConnectionsOfOld(Pool[str]):
    def _offer(self, slot, now):
        slot.born = inf
        super()._offer(slot, now)


DEFECTS = [
    defect
    for defect in (*Pool.__subclasses__(), *ContactDefect.__subclasses__())
    if defect.__module__ == __name__ and defect is not ContactDefect
]


def look_for_a_broken_promise(machine):
    for number in range(10):  # one run of ten times the length would stay among cases like its first
        run_state_machine_as_test(
            seed(number)(machine),
            settings=settings(
                max_examples=300,
                stateful_step_count=50,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                verbosity=Verbosity.quiet,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.timeout(240)  # some are found late, and coverage makes that later
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_machine_finds_planted_defect(defect):
    """A pool that breaks a promise does not pass."""

    class Machine(PoolMachine):
        pool_class = defect

    with pytest.raises(BrokenPromiseError):
        look_for_a_broken_promise(Machine)
