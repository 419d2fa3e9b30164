"""The pool gives connections out within its limits, first come first served. Strings stand in for connections."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest

from tlsagent._pool import Attempt, Close, Connect, Counts, Grant, Lease, Pool, Refuse, Ticket
from tlsagent.errors import AgentClosed, ConnectError, PoolTimeout

A, B = "a.test:443", "b.test:443"
FAILED = ConnectError("refused")


def dial(pool: Pool[str], key: str = A, *, now: float = 0.0, **waiting: object) -> tuple[Ticket[str], Attempt[str]]:
    """Queue a ticket that causes an attempt."""
    ticket = pool.acquire(key, now, **waiting)
    assert isinstance(ticket, Ticket)
    [connect] = pool.effects()
    assert isinstance(connect, Connect)
    assert connect.attempt.cause is ticket
    return ticket, connect.attempt


def lease(pool: Pool[str], connection: str, key: str = A, *, now: float = 0.0) -> Lease[str]:
    """Lease a newly made connection."""
    ticket, attempt = dial(pool, key, now=now)
    pool.connected(attempt, connection, now)
    [grant] = pool.effects()
    assert isinstance(grant, Grant)
    assert grant.ticket is ticket
    return grant.lease


def queue(pool: Pool[str], key: str = A, *, now: float = 0.0, **waiting: object) -> Ticket[str]:
    """Queue a ticket that causes nothing."""
    ticket = pool.acquire(key, now, **waiting)
    assert isinstance(ticket, Ticket)
    assert pool.effects() == []
    return ticket


def idle(pool: Pool[str], *connections: str, key: str = A, now: float = 0.0) -> None:
    """Let new connections lie idle, the first being the longest idle."""
    for held in [lease(pool, connection, key, now=now) for connection in connections]:
        pool.release(held, now, reusable=True)
    assert pool.effects() == []


# -- The plain way


def test_first_request_waits_for_a_connection_of_its_own():
    """Without a connection the caller gets a ticket, and an attempt is made on its behalf."""
    pool = Pool[str]()

    ticket = pool.acquire(A, 0.0)

    assert isinstance(ticket, Ticket)
    [connect] = pool.effects()
    assert connect == Connect(A, connect.attempt)
    assert (connect.attempt.key, connect.attempt.cause, ticket.covered) == (A, ticket, True)
    assert pool.effects() == []


def test_finished_attempt_serves_its_ticket():
    """A new connection is granted to the waiting ticket, and has not served before."""
    pool = Pool[str]()
    ticket, attempt = dial(pool)

    pool.connected(attempt, "c", 0.1)

    assert ticket.granted is not None
    assert pool.effects() == [Grant(ticket, ticket.granted)]
    assert (ticket.granted.connection, ticket.granted.key) == ("c", A)
    assert (ticket.granted.reused, ticket.granted.from_idle) == (False, False)


def test_idle_connection_is_leased_at_once():
    """A warm key costs no ticket and no effect, and the lease says that it was idle and has served."""
    pool = Pool[str]()
    idle(pool, "c")

    held = pool.acquire(A, 1.0)

    assert isinstance(held, Lease)
    assert (held.connection, held.reused, held.from_idle) == ("c", True, True)
    pool.release(held, 2.0, reusable=True)
    assert pool.effects() == []


def test_keys_do_not_share_connections():
    """An idle connection serves its own key only."""
    pool = Pool[str]()
    idle(pool, "c")

    assert isinstance(pool.acquire(B, 1.0), Ticket)


@pytest.mark.parametrize(("scheduling", "expected"), [("lifo", ["3", "2", "1"]), ("fifo", ["1", "2", "3"])])
def test_scheduling_chooses_the_idle_connection(scheduling, expected):
    """`lifo` takes the last freed connection, `fifo` the first."""
    pool = Pool[str](scheduling=scheduling)
    idle(pool, "1", "2", "3")

    assert [pool.acquire(A, 1.0).connection for _ in range(3)] == expected


def test_connection_that_may_not_serve_again_is_closed():
    """A release without `reusable` closes, under the reason given."""
    pool = Pool[str]()

    first, second = lease(pool, "1"), lease(pool, "2")

    pool.release(first, 1.0, reusable=False)
    pool.release(second, 1.0, reusable=False, reason="connection_close")

    assert pool.effects() == [Close("1", "not_reusable"), Close("2", "connection_close")]
    assert pool.counts().closed == {"not_reusable": 1, "connection_close": 1}


def test_lease_is_released_exactly_once():
    """A second release is the caller's fault, even when the connection has been leased again since."""
    pool = Pool[str]()
    first = lease(pool, "c")
    pool.release(first, 1.0, reusable=True)

    with pytest.raises(AssertionError, match="released before"):
        pool.release(first, 1.0, reusable=True)
    pool.acquire(A, 1.0)
    with pytest.raises(AssertionError, match="released before"):
        pool.release(first, 1.0, reusable=True)


def test_attempt_ends_exactly_once():
    """A second report on an attempt is the caller's fault."""
    pool = Pool[str]()
    _, attempt = dial(pool)
    pool.connected(attempt, "c", 0.0)

    with pytest.raises(AssertionError, match="ended before"):
        pool.connected(attempt, "d", 0.0)
    with pytest.raises(AssertionError, match="ended before"):
        pool.connect_failed(attempt, FAILED, 0.0)


# -- Limits


def test_max_sockets_bounds_leases_attempts_and_idle_of_a_key():
    """Attempts run side by side up to the limit; whoever comes later waits, other keys do not."""
    pool = Pool[str](max_sockets=2)
    held = lease(pool, "1")
    dial(pool)
    third = queue(pool)
    dial(pool, B)

    pool.release(held, 1.0, reusable=True)

    assert third.granted is None
    assert pool.counts(A) == Counts(active=1, idle=0, dialling=1, waiting=1, opened=1, closed={}, requests=2, reused=1)


def test_max_total_sockets_bounds_all_keys():
    """The total limit makes a second key wait while the first holds its connection."""
    pool = Pool[str](max_total_sockets=1)
    held = lease(pool, "1")
    waiting = queue(pool, B)

    pool.release(held, 1.0, reusable=False)

    close, connect = pool.effects()
    assert close == Close("1", "not_reusable")
    assert connect.attempt.cause is waiting


def test_oldest_idle_connection_of_another_key_makes_room():
    """An idle connection never starves another key: it is closed first, then the dial begins."""
    pool = Pool[str](max_total_sockets=2)
    idle(pool, "1")
    idle(pool, "2", key=B)

    ticket = pool.acquire("c.test", 1.0)

    close, connect = pool.effects()
    assert close == Close("1", "make_room")
    assert connect.attempt.cause is ticket
    assert pool.keys() == [B, "c.test"]


def test_surplus_idle_connections_are_closed_oldest_first():
    """A key keeps at most `max_free_sockets` idle, the most recent ones."""
    pool = Pool[str](max_free_sockets=1)
    first, second = lease(pool, "1"), lease(pool, "2")

    pool.release(first, 1.0, reusable=True)
    pool.release(second, 1.0, reusable=True)

    assert pool.effects() == [Close("1", "max_free_sockets")]


def test_max_free_sockets_zero_keeps_nothing():
    """With no room for idle connections a freed one is closed, unless somebody waits for it."""
    pool = Pool[str](max_free_sockets=0, max_sockets=1)
    held = lease(pool, "c")
    waiting = queue(pool)

    pool.release(held, 1.0, reusable=True)
    assert pool.effects() == [Grant(waiting, waiting.granted)]
    pool.release(waiting.granted, 1.0, reusable=True)

    assert pool.effects() == [Close("c", "max_free_sockets")]
    assert pool.keys() == []


def test_keep_alive_off_hands_on_but_keeps_nothing():
    """Without keep-alive a freed connection serves the next ticket of its key, else it is closed."""
    pool = Pool[str](keep_alive=False, max_sockets=1)
    held = lease(pool, "c")
    waiting = queue(pool)

    pool.release(held, 1.0, reusable=True)
    assert pool.effects() == [Grant(waiting, waiting.granted)]
    pool.release(waiting.granted, 1.0, reusable=True)

    assert pool.effects() == [Close("c", "keep_alive_off")]


# -- First come first served


def test_freed_connection_serves_the_oldest_ticket_of_its_key():
    """Handed on from the queue, a connection counts as reused though it never lay idle."""
    pool = Pool[str](max_sockets=1)
    held = lease(pool, "c")
    second, third = queue(pool), queue(pool)

    pool.release(held, 1.0, reusable=True)

    assert pool.effects() == [Grant(second, second.granted)]
    assert (second.granted.reused, second.granted.from_idle) == (True, False)
    assert third.granted is None


def test_freed_connection_overtakes_the_dial():
    """A ticket takes what comes first; the attempt it caused then serves the next one."""
    pool = Pool[str](max_sockets=2)
    held = lease(pool, "1")
    second, attempt = dial(pool)
    third = queue(pool)

    pool.release(held, 1.0, reusable=True)
    assert pool.effects() == [Grant(second, second.granted)]
    pool.connected(attempt, "2", 2.0)

    assert pool.effects() == [Grant(third, third.granted)]
    assert third.granted.connection == "2"


def test_attempt_nobody_waits_for_any_more_goes_idle():
    """A connection whose ticket was served otherwise is kept, and is new to the next request."""
    pool = Pool[str]()
    held = lease(pool, "1")
    second, attempt = dial(pool)
    pool.release(held, 1.0, reusable=True)
    pool.effects()

    pool.connected(attempt, "2", 2.0)

    assert second.granted.connection == "1"
    assert pool.effects() == []
    spare = pool.acquire(A, 3.0)
    assert (spare.connection, spare.reused, spare.from_idle) == ("2", False, True)


def test_older_ticket_of_another_key_gets_the_place():
    """At the total limit a freed connection is closed for an older ticket of another key."""
    pool = Pool[str](max_total_sockets=1)
    held = lease(pool, "1")
    older, younger = queue(pool, B), queue(pool, A)

    pool.release(held, 1.0, reusable=True)

    close, connect = pool.effects()
    assert close == Close("1", "make_room")
    assert connect.attempt.cause is older
    assert younger.granted is None


def test_older_ticket_of_the_same_key_gets_the_connection():
    """At the total limit a freed connection stays with its key if its own ticket is the older one."""
    pool = Pool[str](max_total_sockets=1)
    held = lease(pool, "1")
    older, younger = queue(pool, A), queue(pool, B)

    pool.release(held, 1.0, reusable=True)

    assert pool.effects() == [Grant(older, older.granted)]
    assert younger.granted is None


def test_place_nobody_of_its_key_needs_goes_to_another_key():
    """At the total limit a freed connection does not lie idle while another key waits."""
    pool = Pool[str](max_total_sockets=1)
    held = lease(pool, "1")
    waiting = queue(pool, B)

    pool.release(held, 1.0, reusable=True)

    close, connect = pool.effects()
    assert close == Close("1", "make_room")
    assert connect.attempt.cause is waiting


def test_starved_keys_are_served_in_order_of_their_tickets():
    """Keys that wait for the total limit dial in the order of their oldest ticket, whatever happened in between."""
    pool = Pool[str](max_total_sockets=1)
    held = lease(pool, "1")
    given_up = queue(pool, "first")
    expected = [queue(pool, key) for key in ("second", "third")] + [queue(pool, "first"), queue(pool, "second")]
    pool.cancel(given_up, 0.5)

    for ticket in expected:
        pool.release(held, 1.0, reusable=False)
        _, connect = pool.effects()
        assert connect.attempt.cause is ticket
        pool.connected(connect.attempt, f"for {ticket.key}", 1.0)
        [grant] = pool.effects()
        held = grant.lease


def test_own_limit_does_not_hold_up_other_keys():
    """A key at its own limit does not stand in the way of a younger ticket of another key."""
    pool = Pool[str](max_sockets=1, max_total_sockets=2)
    lease(pool, "1")
    held = lease(pool, "2", B)
    blocked = queue(pool, A)
    starved = queue(pool, "c.test")

    pool.release(held, 1.0, reusable=False)

    _, connect = pool.effects()
    assert connect.attempt.cause is starved
    assert not blocked.covered


# -- Fresh tickets


def test_fresh_ticket_passes_over_idle_connections():
    """A retry dials although a connection lies idle."""
    pool = Pool[str]()
    idle(pool, "stale")

    ticket, attempt = dial(pool, fresh=True)
    pool.connected(attempt, "new", 1.0)

    assert pool.effects() == [Grant(ticket, ticket.granted)]
    assert ticket.granted.connection == "new"


def test_fresh_ticket_is_not_served_by_a_freed_connection():
    """A freed connection goes to the next ordinary ticket, or lies idle, but never to a retry."""
    pool = Pool[str]()
    first, second = lease(pool, "1"), lease(pool, "2")
    fresh, attempt = dial(pool, fresh=True)
    ordinary, _ = dial(pool)

    pool.release(first, 1.0, reusable=True)
    assert pool.effects() == [Grant(ordinary, ordinary.granted)]
    pool.release(second, 1.0, reusable=True)

    assert pool.effects() == []
    assert fresh.granted is None
    pool.connected(attempt, "3", 2.0)
    assert fresh.granted.connection == "3"


@pytest.mark.parametrize("limit", ["max_sockets", "max_total_sockets"])
def test_idle_connection_of_the_same_key_gives_way_to_a_fresh_ticket(limit):
    """At the limit the idle connection, useless to a retry, is closed for the dial."""
    pool = Pool[str](**{limit: 1})
    idle(pool, "stale")

    ticket = pool.acquire(A, 1.0, fresh=True)

    close, connect = pool.effects()
    assert close == Close("stale", "make_room")
    assert connect.attempt.cause is ticket


@pytest.mark.parametrize("limit", ["max_sockets", "max_total_sockets"])
def test_freed_connection_gives_way_to_an_older_fresh_ticket(limit):
    """At the limit a freed connection is closed for a retry that is older than the ordinary tickets."""
    pool = Pool[str](**{limit: 1})
    held = lease(pool, "1")
    fresh = queue(pool, fresh=True)
    ordinary = queue(pool)

    pool.release(held, 1.0, reusable=True)

    close, connect = pool.effects()
    assert close == Close("1", "make_room")
    assert connect.attempt.cause is fresh
    assert ordinary.granted is None


@pytest.mark.parametrize("limit", ["max_sockets", "max_total_sockets"])
def test_freed_connection_serves_an_ordinary_ticket_older_than_the_fresh_one(limit):
    """A retry waits its turn: first the older ordinary ticket, then the freed connection gives way."""
    pool = Pool[str](**{limit: 1})
    held = lease(pool, "1")
    ordinary = queue(pool)
    fresh = queue(pool, fresh=True)

    pool.release(held, 1.0, reusable=True)
    assert pool.effects() == [Grant(ordinary, ordinary.granted)]
    pool.release(ordinary.granted, 2.0, reusable=True)

    close, connect = pool.effects()
    assert close == Close("1", "make_room")
    assert connect.attempt.cause is fresh


def test_finished_attempt_serves_fresh_and_ordinary_in_order_of_arrival():
    """A new connection will do for both kinds of ticket: the oldest takes it."""
    pool = Pool[str](max_sockets=1)
    given_up, attempt = dial(pool)
    fresh, ordinary = queue(pool, fresh=True), queue(pool)
    pool.cancel(given_up, 0.5)

    pool.connected(attempt, "c", 1.0)

    assert pool.effects() == [Grant(fresh, fresh.granted)]
    assert ordinary.granted is None


# -- Giving up


def test_cancelled_ticket_leaves_its_attempt_to_the_next():
    """A connect attempt outlives the request that caused it and serves the next ticket."""
    pool = Pool[str](max_sockets=1)
    first, attempt = dial(pool)
    second = queue(pool)

    assert pool.cancel(first, 0.1) is None
    assert pool.effects() == []
    pool.connected(attempt, "c", 0.2)

    assert pool.effects() == [Grant(second, second.granted)]
    assert first.granted is None


def test_new_ticket_takes_over_an_abandoned_attempt():
    """No second attempt is made while one without a ticket is under way."""
    pool = Pool[str]()
    first, attempt = dial(pool)
    pool.cancel(first, 0.1)

    second = queue(pool)
    pool.connected(attempt, "c", 0.2)

    assert pool.effects() == [Grant(second, second.granted)]


def test_cancelling_a_granted_ticket_hands_over_its_lease():
    """Whoever cancels too late gets the lease, and has to release it."""
    pool = Pool[str]()
    ticket, attempt = dial(pool)
    pool.connected(attempt, "c", 0.1)

    held = pool.cancel(ticket, 0.2)

    assert held is ticket.granted
    pool.release(held, 0.2, reusable=True)
    assert pool.counts(A).idle == 1


def test_cancelling_what_is_over_does_nothing():
    """A ticket that was cancelled or refused can be cancelled again without effect."""
    pool = Pool[str]()
    cancelled, attempt = dial(pool)
    pool.cancel(cancelled, 0.1)
    pool.connect_failed(attempt, None, 0.1)
    refused, attempt = dial(pool)
    pool.connect_failed(attempt, FAILED, 0.2)
    pool.effects()

    assert pool.cancel(cancelled, 0.3) is None
    assert pool.cancel(refused, 0.3) is None
    assert pool.effects() == []
    assert pool.counts().waiting == 0


# -- Failed attempts


def test_failed_attempt_refuses_the_oldest_covered_ticket_and_dials_for_the_next():
    """The error reaches one request; the next in the queue gets an attempt of its own."""
    pool = Pool[str](max_sockets=1)
    first, attempt = dial(pool)
    second = queue(pool)

    pool.connect_failed(attempt, FAILED, 1.0)

    refuse, connect = pool.effects()
    assert refuse == Refuse(first, FAILED)
    assert connect.attempt.cause is second


def test_error_is_swallowed_while_other_attempts_suffice():
    """An attempt that nobody depends on any more fails in silence."""
    pool = Pool[str]()
    held = lease(pool, "1")
    first, failing = dial(pool)
    second, other = dial(pool)
    pool.release(held, 1.0, reusable=True)
    assert pool.effects() == [Grant(first, first.granted)]

    pool.connect_failed(failing, FAILED, 2.0)

    assert pool.effects() == []
    pool.connected(other, "2", 3.0)
    assert second.granted.connection == "2"


def test_failure_of_an_attempt_without_a_ticket_costs_the_newcomer_nothing():
    """A ticket that relied on somebody else's attempt gets its own when that one fails."""
    pool = Pool[str]()
    first, attempt = dial(pool)
    pool.cancel(first, 0.1)
    second = queue(pool, deadline=9.0)

    pool.connect_failed(attempt, FAILED, 0.2)

    [connect] = pool.effects()
    assert connect.attempt.cause is second


def test_abandoned_attempt_is_nobodys_error():
    """An attempt given up by the driver is made anew for the ticket that it covered."""
    pool = Pool[str](max_sockets=2)
    first, abandoned = dial(pool)
    second, _ = dial(pool)

    pool.connect_failed(abandoned, None, 0.1)

    [connect] = pool.effects()
    assert isinstance(connect, Connect)
    assert connect.attempt is not abandoned
    assert first.covered
    assert second.covered
    assert pool.counts(A).dialling == 2


# -- Lost connections


def test_lost_idle_connection_is_not_given_out():
    """A connection that died while idle is closed and forgotten."""
    pool = Pool[str]()
    idle(pool, "c")

    pool.connection_lost("c", 1.0, "eof")

    assert pool.effects() == [Close("c", "eof")]
    assert isinstance(pool.acquire(A, 2.0), Ticket)


def test_lost_leased_connection_frees_its_place_at_once():
    """The next ticket dials as soon as the loss is known; the later release counts for nothing."""
    pool = Pool[str](max_sockets=1)
    held = lease(pool, "c")
    waiting = queue(pool)

    pool.connection_lost("c", 1.0, "reset")
    close, connect = pool.effects()
    pool.release(held, 2.0, reusable=True)

    assert close == Close("c", "reset")
    assert connect.attempt.cause is waiting
    assert pool.effects() == []
    assert pool.counts(A).dialling == 1
    with pytest.raises(AssertionError, match="released before"):
        pool.release(held, 3.0, reusable=True)


def test_loss_is_counted_once():
    """A second report, or one after the release closed it, is ignored."""
    pool = Pool[str]()
    idle(pool, "1")
    pool.connection_lost("1", 1.0, "eof")
    pool.connection_lost("1", 1.0, "reset")
    assert pool.effects() == [Close("1", "eof")]
    pool.release(lease(pool, "2"), 1.0, reusable=False)
    pool.effects()

    pool.connection_lost("2", 2.0, "eof")

    assert pool.effects() == []
    assert pool.counts().closed == {"eof": 1, "not_reusable": 1}


# -- Time


def test_ticket_is_refused_at_its_queue_deadline():
    """A ticket whose deadline passes in the queue gets a PoolTimeout of phase queue that names the limits."""
    pool = Pool[str](max_sockets=1)
    lease(pool, "c")
    waiting = queue(pool, deadline=5.0)
    patient = queue(pool)

    assert pool.next_deadline() == 5.0
    pool.handle_timeout(4.9)
    assert pool.effects() == []
    pool.handle_timeout(5.0)

    [refuse] = pool.effects()
    assert refuse.ticket is waiting
    assert isinstance(refuse.error, PoolTimeout)
    assert refuse.error.phase == "queue"
    assert "max_sockets" in str(refuse.error)
    assert "limit 1" in str(refuse.error)
    assert pool.next_deadline() is None
    assert pool.counts(A).waiting == 1
    assert patient.granted is None


def test_covered_ticket_has_no_queue_deadline():
    """Once an attempt is made on its behalf a ticket is bound by the dial's timeouts alone."""
    pool = Pool[str](max_sockets=1)
    _, attempt = dial(pool, deadline=5.0)
    waiting = queue(pool, deadline=6.0)
    assert pool.next_deadline() == 6.0

    pool.connect_failed(attempt, FAILED, 1.0)
    pool.effects()

    assert waiting.covered
    assert pool.next_deadline() is None
    pool.handle_timeout(100.0)
    assert pool.effects() == []


def test_ticket_on_somebody_elses_attempt_keeps_its_queue_deadline():
    """A ticket that did not cause the attempt under way is refused when its time is up."""
    pool = Pool[str]()
    pool.preconnect(A, 0.0)
    pool.effects()
    waiting = queue(pool, deadline=5.0)

    pool.handle_timeout(5.0)

    [refuse] = pool.effects()
    assert refuse.ticket is waiting


def test_idle_connection_expires():
    """An idle connection is closed once it has been free for `free_socket_timeout`."""
    pool = Pool[str](free_socket_timeout=60.0)
    idle(pool, "1", now=0.0)
    idle(pool, "2", key=B, now=30.0)

    assert pool.next_deadline() == 60.0
    pool.handle_timeout(59.0)
    assert pool.effects() == []
    pool.handle_timeout(60.0)

    assert pool.effects() == [Close("1", "free_socket_timeout")]
    assert pool.next_deadline() == 90.0


def test_next_deadline_is_the_earlier_of_queue_and_idle():
    """One timer serves both the queue and the idle connections."""
    pool = Pool[str](max_sockets=1, free_socket_timeout=60.0)
    lease(pool, "1", B)
    idle(pool, "2")

    queue(pool, B, deadline=70.0)
    assert pool.next_deadline() == 60.0
    queue(pool, B, deadline=50.0)
    assert pool.next_deadline() == 50.0


def test_a_hint_shortens_the_time_of_one_connection():
    """`idle_for` counts where it is less than `free_socket_timeout`, for one connection, until its next release."""
    pool = Pool[str](free_socket_timeout=60.0)
    one, two = lease(pool, "1"), lease(pool, "2")
    pool.release(two, 0.0, reusable=True, idle_for=90.0)
    pool.release(one, 0.0, reusable=True, idle_for=4.0)

    assert pool.next_deadline() == 4.0
    pool.handle_timeout(4.0)

    assert pool.effects() == [Close("1", "free_socket_timeout")]
    assert pool.next_deadline() == 60.0
    pool.release(pool.acquire(A, 5.0), 5.0, reusable=True)
    pool.handle_timeout(64.0)
    assert pool.effects() == []


def test_without_free_socket_timeout_nothing_expires():
    """None keeps idle connections for ever."""
    pool = Pool[str](free_socket_timeout=None)
    idle(pool, "c")

    pool.handle_timeout(1e9)

    assert pool.next_deadline() is None
    assert pool.acquire(A, 1e9).connection == "c"


@pytest.mark.parametrize("scheduling", ["lifo", "fifo"])
def test_expired_idle_connections_are_not_given_out(scheduling):
    """`acquire` closes the expired candidates it meets, without waiting for a timer."""
    pool = Pool[str](free_socket_timeout=60.0, scheduling=scheduling)
    idle(pool, "1", "2")

    ticket = pool.acquire(A, 60.0)

    assert isinstance(ticket, Ticket)
    *closes, connect = pool.effects()
    assert sorted(close.connection for close in closes) == ["1", "2"]
    assert {close.reason for close in closes} == {"free_socket_timeout"}
    assert connect.attempt.cause is ticket
    assert pool.counts(A).dialling == 1


def test_first_unexpired_connection_is_taken():
    """With `fifo` an expired candidate is closed and the next one leased."""
    pool = Pool[str](free_socket_timeout=60.0, scheduling="fifo")
    first, second = lease(pool, "1"), lease(pool, "2")
    pool.release(first, 0.0, reusable=True)
    pool.release(second, 30.0, reusable=True)

    held = pool.acquire(A, 70.0)

    assert held.connection == "2"
    assert pool.effects() == [Close("1", "free_socket_timeout")]


def test_release_buries_a_bounded_number_of_expired_connections():
    """A driver without timers gets rid of the expired connections of other keys two at a time."""
    pool = Pool[str](free_socket_timeout=60.0)
    idle(pool, "1", "2", "3", key=B)
    held = lease(pool, "c", now=50.0)

    pool.release(held, 100.0, reusable=True)
    assert pool.effects() == [Close("1", "free_socket_timeout"), Close("2", "free_socket_timeout")]
    pool.release(pool.acquire(A, 100.0), 100.0, reusable=True)

    assert pool.effects() == [Close("3", "free_socket_timeout")]
    assert pool.keys() == [A]


# -- Shared connections


def share(pool: Pool[str], connection: str, capacity: int, key: str = A, *, leases: int = 1) -> list[Lease[str]]:
    """Lease a new shared connection so many times."""
    ticket = pool.acquire(key, 0.0, shares=True)
    assert isinstance(ticket, Ticket)
    [connect] = pool.effects()
    pool.connected(connect.attempt, connection, 0.0, capacity=capacity)
    [grant] = pool.effects()
    held = [grant.lease] + [pool.acquire(key, 0.0, shares=True) for _ in range(leases - 1)]
    assert {lease.connection for lease in held} == {connection}
    return held


def test_shared_connection_serves_up_to_its_capacity():
    """Leases come at once while there is room, count as one socket, and tell that they share."""
    pool = Pool[str]()

    first, second, third = share(pool, "c", 3, leases=3)

    assert (first.reused, second.reused, third.reused) == (False, True, True)
    assert not third.from_idle
    assert pool.counts(A) == Counts(active=1, idle=0, dialling=0, waiting=0, opened=1, closed={}, requests=3, reused=2)
    assert isinstance(pool.acquire(A, 1.0, shares=True), Ticket)


def test_released_lease_of_a_full_connection_serves_the_oldest_ticket():
    """Room goes to whoever has waited longest."""
    pool = Pool[str](max_sockets=1)
    held = share(pool, "c", 2, leases=2)
    first, second = queue(pool), queue(pool)

    pool.release(held[0], 1.0, reusable=True)
    assert pool.effects() == [Grant(first, first.granted)]
    pool.release(held[1], 1.0, reusable=True)

    assert pool.effects() == [Grant(second, second.granted)]
    with pytest.raises(AssertionError, match="released before"):
        pool.release(held[0], 2.0, reusable=True)


def test_load_gathers_on_the_connection_that_was_full_last():
    """The one that had no room the shortest time ago is filled first, so that the others fall idle."""
    pool = Pool[str]()
    one = share(pool, "1", 2, leases=2)
    two = share(pool, "2", 2, leases=2)
    pool.release(one[0], 1.0, reusable=True)
    pool.release(two[0], 1.0, reusable=True)

    assert pool.acquire(A, 2.0, shares=True).connection == "2"
    assert pool.acquire(A, 2.0, shares=True).connection == "1"


def test_connection_in_use_is_preferred_to_an_idle_one():
    """A shared connection with room keeps the idle ones idle."""
    pool = Pool[str](max_free_sockets=1)
    one = share(pool, "1", 2, leases=2)
    [two] = share(pool, "2", 2)
    pool.release(two, 1.0, reusable=True)
    pool.release(one[0], 1.0, reusable=True)

    assert pool.acquire(A, 2.0, shares=True).connection == "1"
    assert pool.acquire(A, 2.0, shares=True).connection == "2"


def test_shared_connection_without_leases_is_idle():
    """It expires, is closed as surplus or to make room, and by `close_idle`, like any other."""
    pool = Pool[str](free_socket_timeout=60.0, max_total_sockets=1)
    one, two = share(pool, "1", 9, leases=2)
    pool.release(one, 1.0, reusable=True)
    assert pool.next_deadline() is None
    pool.release(two, 2.0, reusable=True, idle_for=5.0)

    assert pool.counts(A).idle == 1
    assert pool.next_deadline() == 7.0
    again = pool.acquire(A, 3.0, shares=True)
    assert (again.connection, again.from_idle, again.reused) == ("1", True, True)
    pool.release(again, 3.0, reusable=True)
    ticket = pool.acquire(B, 4.0)

    close, connect = pool.effects()
    assert close == Close("1", "make_room")
    assert connect.attempt.cause is ticket


def test_keep_alive_off_closes_a_shared_connection_with_its_last_lease():
    """Without keep-alive it serves while somebody uses or wants it."""
    pool = Pool[str](keep_alive=False)
    one, two = share(pool, "c", 2, leases=2)

    pool.release(one, 1.0, reusable=True)
    assert pool.effects() == []
    pool.release(two, 1.0, reusable=True)

    assert pool.effects() == [Close("c", "keep_alive_off")]


def test_lease_that_spoils_a_shared_connection_drains_it():
    """After a release that is not reusable the other exchanges go on, nobody new is let in, the last one closes it."""
    pool = Pool[str]()
    one, two = share(pool, "c", 9, leases=2)

    pool.release(one, 1.0, reusable=False, reason="goaway")
    assert pool.effects() == []
    assert isinstance(pool.acquire(A, 1.0, shares=True), Ticket)
    [connect] = pool.effects()
    assert isinstance(connect, Connect)
    pool.release(two, 2.0, reusable=True)

    assert pool.effects() == [Close("c", "goaway")]
    assert pool.counts(A).closed == {"goaway": 1}


def test_drained_connection_closes_with_its_last_lease():
    """`drain` works for connections of either kind, at once for an idle one, and only the first reason counts."""
    pool = Pool[str]()
    one, two = share(pool, "shared", 9, leases=2)
    plain = lease(pool, "plain", B)
    idle(pool, "idle", key="c.test")

    for name in ("shared", "plain", "idle", "unknown"):
        pool.drain(name, 1.0, "goaway")
        pool.drain(name, 1.0, "again")
    assert pool.effects() == [Close("idle", "goaway")]
    for held in (one, plain, two):
        pool.release(held, 2.0, reusable=True)

    assert pool.effects() == [Close("plain", "goaway"), Close("shared", "goaway")]
    assert pool.keys() == []


def test_lost_shared_connection_ends_all_its_leases():
    """The place is free at once, the count falls by one, and each lease is still released once, without effect."""
    pool = Pool[str](max_sockets=1)
    held = share(pool, "c", 3, leases=3)
    waiting = queue(pool)

    pool.connection_lost("c", 1.0, "reset")

    close, connect = pool.effects()
    assert close == Close("c", "reset")
    assert connect.attempt.cause is waiting
    for lease_ in held:
        pool.release(lease_, 2.0, reusable=True)
        with pytest.raises(AssertionError, match="released before"):
            pool.release(lease_, 2.0, reusable=True)
    assert pool.effects() == []
    assert pool.counts(A).active == 0


def test_raised_capacity_serves_those_who_wait():
    """New room is granted at once, in order of arrival."""
    pool = Pool[str](max_sockets=1)
    share(pool, "c", 2, leases=2)
    first, second, third = queue(pool), queue(pool), queue(pool)

    pool.set_capacity("c", 4, 1.0)

    assert pool.effects() == [Grant(first, first.granted), Grant(second, second.granted)]
    assert third.granted is None


def test_lowered_capacity_lets_nobody_in_until_enough_have_left():
    """Exchanges beyond a lowered capacity go on; those who wait are served when there is room again, or time out."""
    pool = Pool[str](max_sockets=1)
    held = share(pool, "c", 3, leases=3)

    pool.set_capacity("c", 1, 1.0)
    first, second = queue(pool, now=1.0), queue(pool, now=1.0, deadline=5.0)
    pool.release(held[0], 2.0, reusable=True)
    pool.release(held[1], 2.0, reusable=True)
    assert pool.effects() == []
    pool.release(held[2], 2.0, reusable=True)
    assert pool.effects() == [Grant(first, first.granted)]
    pool.handle_timeout(5.0)

    [refuse] = pool.effects()
    assert refuse.ticket is second


def test_capacity_makes_a_connection_shared():
    """A connection made for one exchange at a time, leased or idle, serves more once its peer allows it."""
    pool = Pool[str](max_sockets=1)
    held = lease(pool, "c")
    waiting = queue(pool)

    pool.set_capacity("c", 2, 1.0)
    assert pool.effects() == [Grant(waiting, waiting.granted)]
    pool.release(held, 2.0, reusable=True)
    pool.release(waiting.granted, 2.0, reusable=True)
    idle(pool, "d", key=B)
    pool.set_capacity("d", 2, 3.0)

    assert [pool.acquire(B, 4.0).connection for _ in range(2)] == ["d", "d"]


def test_idle_connection_that_turns_out_to_be_shared_serves_a_retry():
    """What was made since a retry came may serve it as soon as it is known to be shared."""
    pool = Pool[str]()
    first, attempt = dial(pool, shares=True)
    retry = queue(pool, shares=True, fresh=True)
    pool.connected(attempt, "c", 1.0)
    grant, connect = pool.effects()
    assert (grant.ticket, connect.attempt.cause) == (first, retry)
    pool.release(grant.lease, 2.0, reusable=True)
    assert pool.effects() == []

    pool.set_capacity("c", 2, 3.0)

    assert pool.effects() == [Grant(retry, retry.granted)]


def test_stalled_connection_keeps_its_key_from_dialling():
    """While the peer allows no exchange tickets wait for it, or for their deadline; once it does they are served."""
    pool = Pool[str](max_free_sockets=0)
    first, attempt = dial(pool, shares=True, deadline=5.0)
    second = queue(pool, shares=True)

    pool.connected(attempt, "c", 1.0, capacity=0)
    assert pool.effects() == []
    assert pool.counts(A) == Counts(active=0, idle=1, dialling=0, waiting=2, opened=1, closed={}, requests=0, reused=0)
    pool.handle_timeout(5.0)
    [refuse] = pool.effects()
    assert refuse.ticket is first
    assert isinstance(refuse.error, PoolTimeout)
    pool.set_capacity("c", 1, 6.0)

    assert pool.effects() == [Grant(second, second.granted)]


@pytest.mark.parametrize("end", ["expires", "is closed", "is lost", "drains"])
def test_who_waits_for_a_stalled_connection_dials_when_it_ends(end):
    """A stalled connection is idle to all timeouts; when one ends it the key dials anew."""
    pool = Pool[str](free_socket_timeout=60.0)
    waiting, attempt = dial(pool, shares=True)
    pool.connected(attempt, "c", 0.0, capacity=0)
    assert pool.effects() == []

    {
        "expires": lambda: pool.handle_timeout(60.0),
        "is closed": lambda: pool.close_idle(1.0),
        "is lost": lambda: pool.connection_lost("c", 1.0, "eof"),
        "drains": lambda: pool.drain("c", 1.0, "goaway"),
    }[end]()

    close, connect = pool.effects()
    assert close.connection == "c"
    assert connect.attempt.cause is waiting


def test_ticket_whose_time_has_come_is_not_dialled_for():
    """Where a stalled connection expires in the same call, who waited too long for it is refused all the same."""
    pool = Pool[str](free_socket_timeout=60.0)
    overdue, attempt = dial(pool, shares=True, deadline=30.0)
    patient = queue(pool, shares=True)
    pool.connected(attempt, "c", 0.0, capacity=0)

    pool.handle_timeout(60.0)

    refuse, close, connect = pool.effects()
    assert refuse.ticket is overdue
    assert close == Close("c", "free_socket_timeout")
    assert connect.attempt.cause is patient


def test_release_that_buries_a_stalled_connection_dials_for_its_key():
    """A driver without timers: the release of another key's connection ends the stalled one, and its key dials."""
    pool = Pool[str](free_socket_timeout=60.0)
    waiting, attempt = dial(pool, shares=True)
    pool.connected(attempt, "c", 0.0, capacity=0)
    held = lease(pool, "b", B)

    pool.release(held, 60.0, reusable=True)

    close, connect = pool.effects()
    assert close == Close("c", "free_socket_timeout")
    assert connect.attempt.cause is waiting


def test_capacity_of_idle_connections_follows_the_peer():
    """An idle connection whose peer withdraws its capacity is not leased, and is again when it comes back."""
    pool = Pool[str]()
    [held] = share(pool, "c", 5)
    pool.release(held, 1.0, reusable=True)

    pool.set_capacity("c", 0, 1.0)
    waiting = queue(pool, shares=True)
    pool.cancel(waiting, 1.0)
    pool.set_capacity("c", 3, 2.0)
    pool.set_capacity("gone", 3, 2.0)

    assert [pool.acquire(A, 2.0, shares=True).connection for _ in range(3)] == ["c", "c", "c"]


def test_shared_connection_ends_for_an_older_ticket_of_another_key():
    """At the total limit a connection that is never idle drains, one for each key that waits, and no key starves."""
    pool = Pool[str](max_total_sockets=2)
    one = share(pool, "1", 2, leases=2)
    two = share(pool, "2", 2, leases=2)
    starved = queue(pool, B)

    pool.release(one[0], 1.0, reusable=True)
    pool.release(two[0], 1.0, reusable=True)
    assert pool.effects() == []
    assert pool.acquire(A, 1.0, shares=True).connection == "2"
    pool.release(one[1], 2.0, reusable=True)

    close, connect = pool.effects()
    assert close == Close("1", "make_room")
    assert connect.attempt.cause is starved


def test_shared_connection_ends_for_an_older_fresh_ticket():
    """At its own limit a key lets its connection drain for a retry that cannot use it."""
    pool = Pool[str](max_sockets=1)
    one, two = share(pool, "c", 2, leases=2)
    fresh = queue(pool, fresh=True, shares=True)

    pool.release(one, 1.0, reusable=True)
    ordinary = queue(pool, shares=True)
    pool.release(two, 2.0, reusable=True)

    close, connect = pool.effects()
    assert close == Close("c", "make_room")
    assert connect.attempt.cause is fresh
    pool.connected(connect.attempt, "d", 3.0, capacity=2)
    assert pool.effects() == [Grant(fresh, fresh.granted), Grant(ordinary, ordinary.granted)]


def test_retries_share_a_connection_made_since():
    """Room of a connection that is younger than a retry will do for it."""
    pool = Pool[str](max_sockets=1)
    first, attempt = dial(pool, fresh=True, shares=True)
    second = queue(pool, fresh=True, shares=True)

    pool.connected(attempt, "c", 1.0, capacity=2)
    assert pool.effects() == [Grant(first, first.granted), Grant(second, second.granted)]
    third = queue(pool, fresh=True, shares=True)
    pool.set_capacity("c", 3, 2.0)

    assert third.granted is None


def test_closed_pool_lets_shared_connections_finish():
    """After close each exchange of a shared connection ends in peace, the last one closes it."""
    pool = Pool[str]()
    one, two = share(pool, "c", 3, leases=2)

    pool.close(1.0)
    pool.release(one, 2.0, reusable=True)
    assert pool.effects() == []
    pool.release(two, 2.0, reusable=True)

    assert pool.effects() == [Close("c", "agent_closed")]


# -- First contact


def test_one_attempt_serves_all_tickets_of_a_key_that_may_share():
    """Until the answer is known one attempt is made, and its connection serves as many as it may."""
    pool = Pool[str]()
    first, attempt = dial(pool, shares=True)
    second, third, fourth = (queue(pool, shares=True) for _ in range(3))

    pool.connected(attempt, "c", 1.0, capacity=3)

    *grants, connect = pool.effects()
    assert grants == [Grant(ticket, ticket.granted) for ticket in (first, second, third)]
    assert connect.attempt.cause is fourth


def test_answer_that_nothing_is_shared_dials_for_the_rest_at_once():
    """A connection for one exchange at a time frees the others to dial side by side; that is remembered."""
    pool = Pool[str]()
    first, attempt = dial(pool, shares=True)
    second, third = queue(pool, shares=True), queue(pool, shares=True)

    pool.connected(attempt, "c", 1.0)

    grant, two, three = pool.effects()
    assert grant == Grant(first, first.granted)
    assert [two.attempt.cause, three.attempt.cause] == [second, third]
    for connect in (two, three):
        pool.connect_failed(connect.attempt, FAILED, 2.0)
    pool.release(first.granted, 2.0, reusable=False)
    pool.effects()
    assert pool.keys() == []
    for _ in range(2):
        dial(pool, shares=True)


def test_last_connection_of_a_key_has_the_last_word():
    """Where one turns out to be shared after all, one attempt serves all again."""
    pool = Pool[str]()
    first, attempt = dial(pool, shares=True)
    pool.connected(attempt, "c", 1.0)
    assert pool.effects() == [Grant(first, first.granted)]
    _, attempt = dial(pool, shares=True)

    pool.connected(attempt, "d", 2.0, capacity=2)
    pool.effects()
    pool.acquire(A, 3.0, shares=True)

    dial(pool, shares=True)
    queue(pool, shares=True)


def test_answers_are_kept_for_the_last_keys_alone():
    """What is remembered of keys is bounded: the one asked for longest ago is forgotten first."""
    pool = Pool[str](keep_alive=False)

    def answer(key: str) -> None:
        _, attempt = dial(pool, key, shares=True)
        pool.connected(attempt, f"to {key}", 0.0)
        [grant] = pool.effects()
        pool.release(grant.lease, 0.0, reusable=True)
        pool.effects()

    for number in range(1_024):
        answer(f"k{number}")
    ticket, attempt = dial(pool, "k0", shares=True)
    pool.cancel(ticket, 0.0)
    pool.connect_failed(attempt, None, 0.0)
    answer("one more")

    dial(pool, "k1", shares=True)
    queue(pool, "k1", shares=True)
    for _ in range(2):
        dial(pool, "k0", shares=True)


def test_failure_of_the_one_attempt_is_told_to_all():
    """An attempt that stood for all tickets refuses them all: none waits for a failure of its own."""
    pool = Pool[str]()
    first, attempt = dial(pool, shares=True)
    second = queue(pool, shares=True)

    pool.connect_failed(attempt, FAILED, 1.0)

    assert pool.effects() == [Refuse(first, FAILED), Refuse(second, FAILED)]
    assert pool.keys() == []


def test_whether_a_key_shares():
    """A key may have shared connections from the first on, until it is forgotten."""
    pool = Pool[str]()
    assert not pool.shares(A)
    lease(pool, "b")
    assert not pool.shares(A)

    [held] = share(pool, "c", 2, key=B)
    assert pool.shares(B)
    pool.release(held, 1.0, reusable=False)

    assert not pool.shares(B)


def test_failure_that_is_of_one_connection_is_told_to_one():
    """Where the next attempt may fare better only the ticket that caused this one is refused; the others have it."""
    pool = Pool[str]()
    first, attempt = dial(pool, shares=True)
    second = queue(pool, shares=True)

    pool.connect_failed(attempt, FAILED, 1.0, for_all=False)

    refuse, connect = pool.effects()
    assert refuse == Refuse(first, FAILED)
    assert connect.attempt.cause is second


def test_failure_beside_a_full_connection_is_told_to_one():
    """Where a connection may yet serve the others only the ticket that caused the attempt is refused."""
    pool = Pool[str]()
    held = share(pool, "c", 2, leases=2)
    second, attempt = dial(pool, shares=True)
    third = queue(pool, shares=True)

    pool.connect_failed(attempt, FAILED, 1.0)

    refuse, connect = pool.effects()
    assert refuse == Refuse(second, FAILED)
    assert connect.attempt.cause is third
    pool.release(held[0], 2.0, reusable=True)
    assert pool.effects() == [Grant(third, third.granted)]


def test_second_attempt_joins_a_slow_first():
    """After `dial_delay` another ticket causes a second attempt; the first of them that finishes serves all."""
    pool = Pool[str](dial_delay=2.0)
    first, slow = dial(pool, now=1.0, shares=True)
    assert pool.next_deadline() is None
    second = queue(pool, now=1.5, shares=True, deadline=9.0)
    third = queue(pool, now=1.5, shares=True)

    assert pool.next_deadline() == 3.0
    pool.handle_timeout(2.9)
    assert pool.effects() == []
    pool.handle_timeout(3.0)
    [connect] = pool.effects()
    assert connect.attempt.cause is second
    assert pool.next_deadline() is None
    pool.connected(connect.attempt, "c", 4.0, capacity=9)

    assert pool.effects() == [Grant(ticket, ticket.granted) for ticket in (first, second, third)]
    pool.connect_failed(slow, FAILED, 5.0)
    assert pool.effects() == []


@pytest.mark.parametrize("freed", ["lost", "released", "drained", "abandoned", "other key"])
def test_patience_with_a_first_attempt_begins_with_it(freed):
    """`dial_delay` counts from the moment when there was a place for the attempt, whatever gave way for it."""
    pool = Pool[str](max_sockets=1, max_total_sockets=1, dial_delay=2.0)
    key = B if freed == "other key" else A
    first, attempt = dial(pool, shares=True)
    if freed != "abandoned":
        pool.connected(attempt, "c", 0.0, capacity=1 if freed == "other key" else 2)
        pool.effects()
        held = [first.granted]
        if freed != "other key":
            held.append(pool.acquire(A, 0.0, shares=True))
    for _ in range(2):
        queue(pool, key, now=1.0, shares=True)

    if freed == "lost":
        pool.connection_lost("c", 10.0, "peer")
    elif freed == "abandoned":
        pool.cancel(first, 1.0)
        pool.connect_failed(attempt, None, 10.0)
    else:
        if freed == "drained":
            pool.drain("c", 10.0, "goaway")
        for lease in held:
            pool.release(lease, 10.0, reusable=freed == "drained", reason="error")

    assert [effect.key for effect in pool.effects() if isinstance(effect, Connect)] == [key]
    pool.handle_timeout(11.9)
    assert pool.effects() == []
    assert pool.next_delay() == 12.0


def test_failure_of_one_of_two_attempts_costs_nobody_anything():
    """While one attempt is left nobody is refused, and the next second attempt waits for its time."""
    pool = Pool[str](dial_delay=2.0)
    first, slow = dial(pool, shares=True)
    second = queue(pool, shares=True, deadline=9.0)
    pool.handle_timeout(2.0)
    [connect] = pool.effects()

    pool.connect_failed(connect.attempt, FAILED, 2.5)

    assert pool.effects() == []
    assert pool.next_deadline() == 4.0
    pool.connect_failed(slow, FAILED, 3.0)
    assert pool.effects() == [Refuse(first, FAILED), Refuse(second, FAILED)]


def test_abandoned_first_attempt_is_made_anew():
    """An attempt given up by the driver is nobody's error at first contact either."""
    pool = Pool[str]()
    first, attempt = dial(pool, shares=True)
    queue(pool, shares=True)

    pool.connect_failed(attempt, None, 1.0)

    [connect] = pool.effects()
    assert connect.attempt.cause is first


def test_keys_that_cannot_share_wait_for_no_dial_delay():
    """Without `shares` every ticket dials at once, and no timer is armed."""
    pool = Pool[str](dial_delay=2.0)

    dial(pool)
    dial(pool)

    assert pool.next_deadline() is None


# -- Preconnecting


def test_preconnected_connection_lies_idle_unused():
    """An attempt without a ticket goes idle; its first request is not a reuse."""
    pool = Pool[str]()

    attempt = pool.preconnect(A, 0.0)
    assert pool.effects() == [Connect(A, attempt)]
    assert attempt.cause is None
    pool.connected(attempt, "c", 1.0)

    held = pool.acquire(A, 2.0)
    assert (held.connection, held.reused, held.from_idle) == ("c", False, True)


@pytest.mark.parametrize("limit", ["max_sockets", "max_total_sockets"])
def test_preconnect_closes_nothing_to_make_room(limit):
    """At a limit preconnect declines, idle connections or not."""
    pool = Pool[str](**{limit: 1})
    idle(pool, "c")

    assert pool.preconnect(A, 1.0) is None
    assert pool.effects() == []


# -- Closing


def test_close_idle_leaves_the_rest():
    """Idle connections of all keys are closed, leased ones and tickets stay."""
    pool = Pool[str]()
    idle(pool, "1")
    idle(pool, "2", key=B)
    held = lease(pool, "3", "c.test")

    pool.close_idle(1.0, "network_changed")

    assert pool.effects() == [Close("1", "network_changed"), Close("2", "network_changed")]
    pool.release(held, 2.0, reusable=True)
    assert pool.acquire("c.test", 3.0).connection == "3"


def test_close_refuses_tickets_and_closes_idle_connections():
    """Closing ends at once what is not in use; each ticket gets an AgentClosed of its own."""
    pool = Pool[str](max_sockets=1)
    idle(pool, "1")
    lease(pool, "2", B)
    first, second = queue(pool, B), queue(pool, B, deadline=9.0)

    pool.close(1.0)

    one, two, close = pool.effects()
    assert [one.ticket, two.ticket] == [first, second]
    assert isinstance(one.error, AgentClosed)
    assert one.error is not two.error
    assert close == Close("1", "agent_closed")
    assert pool.next_deadline() is None


def test_closed_pool_takes_no_more_requests():
    """Acquiring and preconnecting after close raise AgentClosed."""
    pool = Pool[str]()
    pool.close(0.0)

    with pytest.raises(AgentClosed):
        pool.acquire(A, 1.0)
    with pytest.raises(AgentClosed):
        pool.preconnect(A, 1.0)


def test_closed_pool_winds_down():
    """After close a leased connection is closed on release, a finished attempt at once, and nothing is left."""
    pool = Pool[str]()
    held = lease(pool, "1")
    _, connecting = dial(pool, B)
    _, failing = dial(pool, B)
    pool.close(1.0)
    pool.effects()

    pool.release(held, 2.0, reusable=True)
    pool.connected(connecting, "2", 2.0)
    pool.connect_failed(failing, FAILED, 2.0)

    assert pool.effects() == [Close("1", "agent_closed"), Close("2", "agent_closed")]
    assert pool.keys() == []


def test_close_is_idempotent():
    """A second close has nothing left to do."""
    pool = Pool[str]()
    idle(pool, "c")
    pool.close(1.0)
    pool.effects()

    pool.close(2.0)

    assert pool.effects() == []


# -- Statistics and upkeep


def test_counts_tell_the_story():
    """Counts of a key and of the pool say what was opened, closed, asked for and reused."""
    pool = Pool[str](max_sockets=2)
    idle(pool, "1")
    held = pool.acquire(A, 1.0)
    idle(pool, "2", key=B)
    dial(pool)
    queue(pool)

    assert pool.counts(A) == Counts(active=1, idle=0, dialling=1, waiting=2, opened=1, closed={}, requests=2, reused=1)
    assert pool.counts(B) == Counts(active=0, idle=1, dialling=0, waiting=0, opened=1, closed={}, requests=1, reused=0)
    assert pool.counts() == Counts(active=1, idle=1, dialling=1, waiting=2, opened=2, closed={}, requests=3, reused=1)
    pool.release(held, 2.0, reusable=False, reason="eof")
    assert pool.counts(A).closed == pool.counts().closed == {"eof": 1}


def test_unused_key_is_forgotten_while_the_totals_stay():
    """A key without connections, attempts and tickets leaves nothing but its part in the totals."""
    pool = Pool[str]()
    pool.release(lease(pool, "c"), 1.0, reusable=False)
    pool.effects()
    given_up, attempt = dial(pool, B)
    pool.cancel(given_up, 1.0)
    pool.connect_failed(attempt, None, 1.0)

    assert pool.keys() == []
    assert pool.counts(A) == Counts(active=0, idle=0, dialling=0, waiting=0, opened=0, closed={}, requests=0, reused=0)
    assert (pool.counts().opened, pool.counts().requests, pool.counts().closed) == (1, 1, {"not_reusable": 1})


def test_forgotten_key_and_connection_are_let_go():
    """The pool holds on to no key, connection or ticket that is over."""

    class Thing:
        pass

    pool = Pool[Thing](max_total_sockets=1)
    key, connection = Thing(), Thing()
    ticket = pool.acquire(key, 0.0, deadline=5.0)
    [connect] = pool.effects()
    waiting = pool.acquire("other", 0.0, deadline=5.0)
    pool.connected(connect.attempt, connection, 1.0)
    pool.cancel(waiting, 1.0)
    pool.release(ticket.granted, 2.0, reusable=False)
    pool.effects()
    ticket.user = Thing()
    gone = [weakref.ref(thing) for thing in (key, connection, ticket.user)]

    gc.disable()
    try:
        del key, connection, ticket, connect, waiting
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()


def test_pool_tells_whether_it_has_effects():
    """A driver can see that there is nothing to do without draining anything."""
    pool = Pool[str]()
    assert not pool.outstanding

    pool.acquire(A, 0.0)

    assert pool.outstanding
    pool.effects()
    assert not pool.outstanding


# -- Cost


def calls_of_a_warm_request(keys: int, waiters: int) -> int:
    """Count the Python calls of one acquire and release on a warm key, among many keys and waiters."""
    pool = Pool[str](max_sockets=2)
    lease(pool, "busy 1", "busy")
    lease(pool, "busy 2", "busy")
    for _ in range(waiters):
        queue(pool, "busy", deadline=1e6)
    for number in range(keys):
        idle(pool, f"c{number}", key=f"k{number}")
    calls = 0

    def count_calls(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count_calls)
    try:
        pool.release(pool.acquire("k0", 1.0), 1.0, reusable=True)
    finally:
        sys.setprofile(None)
    assert pool.effects() == []
    return calls


def test_warm_request_costs_the_same_among_ten_thousand():
    """A request on a warm key makes a handful of Python calls, however many keys and tickets there are."""
    alone = calls_of_a_warm_request(keys=1, waiters=0)

    assert alone <= 9
    assert calls_of_a_warm_request(keys=10_000, waiters=10_000) == alone


def calls_of_a_shared_request(leases: int, waiters: int) -> int:
    """Count the Python calls of one lease and its release on a shared connection in use."""
    pool = Pool[str](max_sockets=1)
    share(pool, "full", 2, B, leases=2)
    for _ in range(waiters):
        queue(pool, B, deadline=1e6)
    share(pool, "c", 10**6, leases=leases)
    calls = 0

    def count_calls(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count_calls)
    try:
        pool.release(pool.acquire(A, 1.0), 1.0, reusable=True)
    finally:
        sys.setprofile(None)
    return calls


def test_shared_request_costs_the_same_among_ten_thousand():
    """A lease of a shared connection is a handful of Python calls, however many others are out or wait."""
    alone = calls_of_a_shared_request(leases=1, waiters=0)

    assert alone <= 8
    assert calls_of_a_shared_request(leases=10_000, waiters=10_000) == alone


# -- A certain connection


def test_certain_connection_is_joined_while_it_has_room():
    """Whoever asks for a certain connection gets a lease of it, idle or not, as long as it has room."""
    pool = Pool[str]()
    [held] = share(pool, "c", 2)
    pool.release(held, 0.0, reusable=True)
    idle(pool, "unshared", key=B)

    assert pool.has_room("c")
    leases = [pool.join("c", 1.0), pool.join("c", 1.0)]

    assert [(lease.connection, lease.key, lease.from_idle) for lease in leases] == [("c", A, True), ("c", A, False)]
    assert not pool.has_room("c")
    assert [pool.join(name, 1.0) for name in ("c", "unshared", "unknown")] == [None] * 3
    pool.release(leases[0], 2.0, reusable=True)
    pool.drain("c", 2.0, "goaway")
    assert not pool.has_room("c")
    assert pool.join("c", 2.0) is None


def test_connection_that_was_idle_for_too_long_is_closed_when_it_is_asked_for():
    """A certain connection that has expired is not given out, and is closed: nobody is to find it again."""
    pool = Pool[str](free_socket_timeout=5.0)
    [held] = share(pool, "c", 2)
    pool.release(held, 0.0, reusable=True)

    assert pool.join("c", 5.0) is None

    assert pool.effects() == [Close("c", "free_socket_timeout")]
    assert pool.keys() == []


# -- Mending what an exception tore


class Struck(BaseException):
    """As a signal's exception."""


class Driver:
    """What a driver knows for certain, whatever became of the pool: who waits, who holds what, who dials."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.pool = Pool[str](max_sockets=3, max_total_sockets=total, free_socket_timeout=60, dial_delay=4.0)
        self.leases: dict[str, Lease[str]] = {}
        self.tickets: dict[str, Ticket[str]] = {}
        self.attempts: list[Attempt[str]] = []
        self.closed: list[str] = []
        self.begin()

    def begin(self) -> None:
        for name in ("held", "idle"):
            self.acquire(name)
            self.connect(f"{name}-connection")
        self.release("idle")
        for name in ("B", "dialling"):
            self.acquire(name, key=B)
        self.connect("b-connection")
        self.acquire("waiting", key=B, deadline=5.0)
        self.acquire("late", deadline=9.0, fresh=True)

    def acquire(self, user: str, key: str = A, **waiting: object) -> None:
        got = self.pool.acquire(key, 0.0, user=user, **waiting)
        (self.leases if isinstance(got, Lease) else self.tickets)[user] = got
        self.carry_out()

    def connect(self, name: str, capacity: int = 1) -> None:
        self.pool.connected(self.attempts.pop(0), name, 0.0, capacity=capacity)
        self.carry_out()

    def fail(self, error: BaseException | None) -> None:
        self.pool.connect_failed(self.attempts.pop(0), error, 0.0)
        self.carry_out()

    def release(self, user: str, reusable: bool = True) -> None:
        self.pool.release(self.leases.pop(user), 0.0, reusable=reusable)
        self.carry_out()

    def cancel(self, user: str) -> None:
        lease = self.pool.cancel(self.tickets.pop(user), 0.0)
        assert lease is None
        self.carry_out()

    def pass_time(self, now: float) -> None:
        self.pool.handle_timeout(now)
        self.carry_out()

    def lose(self, name: str) -> None:
        self.pool.connection_lost(name, 0.0, "lost")
        self.carry_out()

    def set_capacity(self, name: str, capacity: int) -> None:
        self.pool.set_capacity(name, capacity, 0.0)
        self.carry_out()

    def drain(self, name: str) -> None:
        self.pool.drain(name, 0.0, "drained")
        self.carry_out()

    def carry_out(self) -> None:
        for effect in self.pool.effects():
            if isinstance(effect, Connect):
                self.attempts.append(effect.attempt)
            elif isinstance(effect, Close):
                self.closed.append(effect.connection)
            else:
                user = effect.ticket.user
                self.tickets.pop(user, None)
                if isinstance(effect, Grant):
                    self.leases[user] = effect.lease

    def mend(self) -> None:
        for user, ticket in list(self.tickets.items()):
            if ticket.granted is not None:
                self.leases[user] = ticket.granted
                del self.tickets[user]
        self.pool.mend(list(self.tickets.values()), self.attempts, lambda lease: self.leases.get(lease.user) is lease)
        self.carry_out()

    def check(self) -> None:
        """The pool's numbers are those of the driver, limits hold, and what the pool keeps still serves."""
        counts = self.pool.counts()
        active = {lease.connection for lease in self.leases.values() if self.pool.holds(lease.connection)}
        assert counts.active == len(active)
        assert counts.waiting == len(self.tickets)
        assert counts.dialling == len(self.attempts)
        assert counts.active + counts.idle + counts.dialling <= self.total
        for key in (A, B):
            of = self.pool.counts(key)
            assert of.active + of.idle + of.dialling <= 3
        assert len(set(self.closed)) == len(self.closed), "closed twice"

    def finish(self) -> None:
        """Serve everybody: each ticket ends, and the pool is empty when all is closed."""
        for step in range(100):
            if not (self.leases or self.attempts or self.tickets):
                break
            if self.attempts:
                self.connect(f"new-{step}")
            elif self.leases:
                self.release(next(iter(self.leases)))
            else:
                self.pass_time(10.0)
            self.check()
        assert not self.tickets
        self.pool.close_idle(0.0)
        self.carry_out()
        assert self.pool.counts().active + self.pool.counts().idle + self.pool.counts().dialling == 0
        assert self.pool.keys() == []
        assert self.pool.next_deadline() is None


CHANGES = {
    "acquire": lambda driver: driver.acquire("new"),
    "acquire and wait": lambda driver: driver.acquire("new", key=B, deadline=3.0),
    "acquire after expiry": lambda driver: (driver.pass_time(61.0), driver.acquire("new")),
    "release": lambda driver: driver.release("held"),
    "release for good": lambda driver: driver.release("held", reusable=False),
    "release to a waiter": lambda driver: driver.release("B"),
    "connected": lambda driver: driver.connect("new-connection"),
    "connect failed": lambda driver: driver.fail(FAILED),
    "connect abandoned": lambda driver: driver.fail(None),
    "cancel": lambda driver: driver.cancel("waiting"),
    "timeout": lambda driver: driver.pass_time(6.0),
    "lost": lambda driver: driver.lose("held-connection"),
    "lost while idle": lambda driver: driver.lose("idle-connection"),
    "close idle": lambda driver: (driver.pool.close_idle(0.0), driver.carry_out()),
}


class SharingDriver(Driver):
    """The same for connections that are shared: full, with room, draining, idle and stalled; one attempt for two."""

    def begin(self) -> None:
        for user in ("one", "two", "three"):
            self.acquire(user, shares=True)
        self.connect("full", 2)
        self.connect("roomy", 3)
        self.acquire("four", shares=True)
        for user in ("first", "second"):
            self.acquire(user, key=B, shares=True)
        self.connect("draining", 1)
        self.set_capacity("draining", 2)
        self.drain("draining")
        self.acquire("late", fresh=True, shares=True, deadline=9.0)


SHARING_CHANGES = {
    "acquire": lambda driver: driver.acquire("new", shares=True),
    "acquire and wait": lambda driver: driver.acquire("new", key=B, shares=True, deadline=3.0),
    "release": lambda driver: driver.release("three"),
    "release of the full one": lambda driver: driver.release("one"),
    "last release": lambda driver: (driver.release("three"), driver.release("four")),
    "release for good": lambda driver: driver.release("one", reusable=False),
    "last release of the draining one": lambda driver: driver.release("first"),
    "connected": lambda driver: driver.connect("new-connection", 2),
    "connected without room": lambda driver: driver.connect("new-connection", 0),
    "connect failed": lambda driver: driver.fail(FAILED),
    "capacity raised": lambda driver: driver.set_capacity("full", 3),
    "capacity lowered": lambda driver: driver.set_capacity("roomy", 1),
    "capacity withdrawn": lambda driver: (
        driver.release("three"),
        driver.release("four"),
        driver.set_capacity("roomy", 0),
    ),
    "drain": lambda driver: driver.drain("full"),
    "lost": lambda driver: driver.lose("full"),
    "lost while draining": lambda driver: driver.lose("draining"),
    "timeout": lambda driver: driver.pass_time(10.0),
}


def strike(change, at):
    """Run a change and raise at the `at`-th line that is run in the pool's modules; returns whether it came so far."""
    left = at

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.endswith(
            ("_pool.py", "_first_contact.py", "_pool_records.py", "_deadlines.py")
        ):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise Struck
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        change()
    except Struck:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("total", [4, 5, 7])
@pytest.mark.parametrize("name", CHANGES)
def test_pool_torn_at_any_line_is_mended(name, total):
    """
    An exception at any line of any change: mended from what the driver knows, the pool's numbers are right, its limits
    hold, everybody is served, and nothing is left at the end.
    """
    for at in range(1_000):
        driver = Driver(total)
        if not strike(lambda driver=driver: CHANGES[name](driver), at):
            break
        driver.mend()
        driver.check()
        driver.finish()
    assert at > 1


@pytest.mark.parametrize("total", [4, 5, 7])
@pytest.mark.parametrize("name", SHARING_CHANGES)
def test_pool_of_shared_connections_torn_at_any_line_is_mended(name, total):
    """
    The same where connections are shared: besides, none of them has more leases than it may, and no exchange that goes
    on loses its connection.
    """
    for at in range(1_000):
        driver = SharingDriver(total)
        held = {user: lease.connection for user, lease in driver.leases.items()}
        if not strike(lambda driver=driver: SHARING_CHANGES[name](driver), at):
            break
        driver.mend()
        driver.check()
        for user, connection in held.items():
            others = [lease for other, lease in driver.leases.items() if other != user]
            alive = driver.pool.holds(connection) or not any(lease.connection == connection for lease in others)
            assert alive or name.startswith("lost")
        driver.finish()
    assert at > 1


def test_connection_spoilt_by_a_torn_release_takes_no_more():
    """
    Wherever an exception strikes the release that tells that a connection may not serve again: nobody new gets it.
    """
    for at in range(1_000):
        driver = SharingDriver(7)
        if not strike(lambda driver=driver: driver.release("one", reusable=False), at):
            break
        if "one" in driver.leases:  # struck before it was given back
            continue
        driver.mend()
        driver.acquire("new", shares=True)
        assert "new" not in driver.leases or driver.leases["new"].connection != "full"
        driver.release("two")
        assert not driver.pool.holds("full")
    assert at > 1


@pytest.mark.parametrize("total", [4, 5, 7])
def test_mending_a_whole_pool_of_shared_connections_changes_nothing(total):
    """
    Mended without need, a pool has the same connections with the same room, tickets and attempts.
    """
    driver = SharingDriver(total)
    told = [(driver.pool.counts(key), driver.pool.next_deadline(), driver.closed.copy()) for key in (None, A, B)]

    driver.mend()

    assert [(driver.pool.counts(key), driver.pool.next_deadline(), driver.closed) for key in (None, A, B)] == told
    driver.finish()


@pytest.mark.parametrize("total", [4, 5, 7])
def test_mending_a_whole_pool_changes_nothing(total):
    """
    Mended without need, a pool has the same connections, tickets and attempts, and closes nothing.
    """
    driver = Driver(total)
    before = (
        driver.closed.copy(),
        driver.pool.counts(),
        driver.pool.counts(A),
        driver.pool.counts(B),
        driver.pool.next_deadline(),
    )

    driver.mend()

    assert (
        driver.closed,
        driver.pool.counts(),
        driver.pool.counts(A),
        driver.pool.counts(B),
        driver.pool.next_deadline(),
    ) == before
    driver.finish()


def test_forgotten_pool_takes_everything_back_without_harm():
    """
    Once a pool has been forgotten, leases and tickets of it can be given back, and nothing comes of it.
    """
    driver = Driver(4)

    forgotten = driver.pool.forget()

    assert {ticket.user for ticket in forgotten} == {"dialling", "waiting", "late"}
    assert all(driver.pool.cancel(ticket, 0.0) is None for ticket in forgotten)
    for lease_ in driver.leases.values():
        driver.pool.release(lease_, 0.0, reusable=True)
    assert driver.pool.effects() == []
