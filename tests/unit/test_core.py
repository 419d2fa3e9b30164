"""
`AgentCore`, call by call: plans, leases, dials, sessions, deadlines, events. What follows from many calls is in
tests/sim.
"""

from __future__ import annotations

import logging
import time
from math import inf

import pytest

from tlsagent import UNSET, AgentOptions, ConnectionOptions, Http1Options, Timeouts
from tlsagent._core import AgentCore
from tlsagent._pool import Close, Connect, Grant, Lease, Refuse, Ticket
from tlsagent._raw import RawStream
from tlsagent.errors import (
    AgentClosed,
    CertificateNameError,
    ConnectError,
    ConnectionLost,
    HandshakeError,
    HandshakeTimeout,
    LocalProtocolError,
    OptionTypeError,
    PoolTimeout,
    ResponseTimeout,
)
from tlsagent.events import Event, OCSPResponse, Reused, Secured, SessionTicket
from tlsagent.testing.simulation import Peer, Reply, SimulatedServer

URL = "https://a.test/"
WALL = time.time()


def core(**options):
    return AgentCore(AgentOptions(**{"ca": SimulatedServer().ca_pem, **options}))


def exchange(agent, method="GET", url=URL, now=0.0, *, retry=UNSET, **arguments):
    defaults = dict.fromkeys(("headers", "content", "options", "timeouts", "trailers", "trace"))
    return agent.exchange(method, url, now, retry=retry, **{**defaults, **arguments})


def exchange_bytes(connection):
    peer = connection.transport
    while (up := connection.data_to_send()) or (down := peer.data_to_send()):
        if up:
            peer.receive_data(up, 0.0)
        else:
            connection.receive_data(down, 0.0)


def opened(agent, dial, server=None, **arguments):
    """Carry the handshake of a dial through."""
    connection = agent.open(dial, 0.0, WALL, **arguments)
    connection.transport = Peer(server or SimulatedServer(), 1, ("a.test", 443))
    exchange_bytes(connection)
    return connection


def leased(agent, server=None, **arguments):
    """Begin an exchange on a new connection."""
    subject = exchange(agent, **arguments)
    assert isinstance(agent.acquire(subject, 0.0), Ticket)
    [connect] = agent.effects()
    connection = opened(agent, connect.attempt.user, server)
    agent.connected(connect.attempt.user, connection, 0.0)
    [grant] = agent.effects()
    subject.ticket, subject.lease = None, grant.lease
    return subject


def idle(agent):
    """Leave an idle connection behind that has served."""
    subject = leased(agent)
    connection = subject.lease.connection
    agent.start(subject, 0.0)
    exchange_bytes(connection)
    agent.settle(connection, 0.0)
    assert agent.pool.counts().idle == 1
    return connection


# -- Requests


def test_trailers_make_the_body_chunked():
    """Trailers need chunks, with or without a body; a Content-Length beside them is refused."""
    agent = core()
    for content in (None, b"abc", iter([b"abc"])):
        assert exchange(agent, "POST", content=content, trailers={"x-a": "1"}).head.chunked
    with pytest.raises(LocalProtocolError, match="Content-Length"):
        exchange(agent, "POST", content=b"abc", trailers={"x-a": "1"}, headers={"Content-Length": "3"})


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://a.test", b"a.test:443"),
        ("https://A.test:443/", b"a.test:443"),
        ("https://a.test:8443/", b"a.test:8443"),
        ("https://[2001:DB8::443]", b"[2001:db8::443]:443"),
        ("https://127.0.0.1:80", b"127.0.0.1:80"),
    ],
)
def test_connect_asks_for_the_host_and_port_of_the_url(url, target):
    """CONNECT has its target in the form of an authority, and always with a port (RFC 9110, 9.3.6)."""
    head = exchange(core(), "connect", url).head

    assert (head.method, head.target) == (b"CONNECT", target)
    assert head.headers == [(b"Host", target)]


@pytest.mark.parametrize("url", ["https://a.test/x", "https://a.test/?q", "https://a.test?q"])
def test_connect_has_no_path(url):
    """What a tunnel cannot be asked for is refused, not dropped."""
    with pytest.raises(LocalProtocolError, match="leave path and query out"):
        exchange(core(), "CONNECT", url)


@pytest.mark.parametrize("arguments", [{"expect_continue": True}, {"headers": {"Expect": "100-continue"}}])
def test_body_that_waits_is_sent_apart(arguments):
    """With the expectation even a short body is the driver's to send; without it stays with the head."""
    agent = core(http1=Http1Options(expect_continue_wait=3))

    subject = exchange(agent, "POST", content=b"abc", **arguments)

    assert (subject.body.length, subject.body.replayable) == (3, True)
    assert subject.head.content_length == 3
    assert subject.continue_wait == 3
    plain = exchange(agent, "POST", content=b"abc")
    assert (plain.body, plain.continue_wait) == (b"abc", None)


@pytest.mark.parametrize("content", [None, b""])
def test_expectation_needs_content(content):
    """`expect_continue` without content is refused before any I/O, also where the same request without it is known."""
    agent = core()
    exchange(agent)
    with pytest.raises(LocalProtocolError, match="must not expect 100"):
        exchange(agent, content=content, expect_continue=True)


@pytest.mark.parametrize(
    ("options", "closing"),
    [({}, False), ({"keep_alive": False}, True), ({"keep_alive": False, "max_sockets": 1}, False)],
)
def test_connection_close_is_said_where_it_is_meant(options, closing):
    """Only an agent that uses no connection twice tells the server to close."""
    head = exchange(core(**options)).head

    assert ((b"Connection", b"close") in head.headers) is closing
    assert head.keep_alive is not closing


def test_request_s_own_settings():
    """Timeouts and retry of a request are laid over the agent's."""
    agent = core(timeouts=Timeouts(read=5, queue=6), retry=False, max_response_size=7)

    plain = exchange(agent)
    special = exchange(agent, timeouts=Timeouts(read=None), retry=True)
    total = exchange(agent, now=10.0, timeouts=2.5)

    assert (plain.timeouts.read, plain.timeouts.send, plain.retry, plain.max_size) == (5, 30, False, 7)
    assert (special.timeouts.read, special.timeouts.queue, special.retry) == (None, 6, True)
    assert total.total_at == 12.5


# -- Leases


def test_lease_at_once_and_ticket():
    """An idle connection serves at once; without one there is a ticket with its exchange, and a dial for it."""
    agent = core(timeouts=Timeouts(queue=3))
    first = exchange(agent)
    ticket = agent.acquire(first, 1.0)
    assert (ticket.user, ticket.deadline, first.ticket) == (first, 4.0, ticket)
    [connect] = agent.effects()
    assert isinstance(connect, Connect)
    assert connect.attempt.user.attempt is connect.attempt
    assert agent.effects() == []
    agent.cancel(first, 1.0)
    connection = opened(agent, connect.attempt.user)
    agent.connected(connect.attempt.user, connection, 2.0)
    assert agent.effects() == []

    second = exchange(agent)

    assert isinstance(agent.acquire(second, 2.0), Lease)
    assert second.lease.connection is connection
    assert second.ticket is None


def test_no_queue_limit():
    """timeouts.queue None waits for ever."""
    agent = core(timeouts=Timeouts(queue=None))

    assert agent.acquire(exchange(agent), 1.0).deadline is None


def test_lease_is_given_back_unused():
    """A connection that was granted but is not wanted any more goes idle; a dead one is closed with its reason."""
    agent = core()
    subject = leased(agent)
    connection = subject.lease.connection
    agent.give_back(subject, 0.0)
    assert (subject.lease, agent.pool.counts().idle) == (None, 1)

    agent.acquire(subject, 1.0)
    connection.receive_eof(1.0)
    agent.give_back(subject, 1.0)

    assert agent.effects() == [Close(connection, "peer")]


def test_cancelled_ticket_that_was_granted():
    """A grant that crosses a cancellation goes back to the pool."""
    agent = core()
    subject = exchange(agent)
    agent.acquire(subject, 0.0)
    [connect] = agent.effects()
    agent.connected(connect.attempt.user, opened(agent, connect.attempt.user), 0.0)

    agent.cancel(subject, 0.0)
    agent.cancel(subject, 0.0)

    assert (subject.ticket, subject.lease) == (None, None)
    assert agent.pool.counts().idle == 1


def test_settle_releases_what_ended():
    """An exchange that ended gives its lease back; a connection that died leaves the pool; nothing happens twice."""
    agent = core()
    subject = leased(agent, SimulatedServer(lambda request, peer: Reply()))
    connection = subject.lease.connection
    agent.start(subject, 0.0)
    connection.drop(subject, 1.0, "dropped")

    agent.settle(connection, 1.0)
    agent.settle(connection, 1.0)

    assert subject.lease is None
    assert agent.effects() == [Close(connection, "dropped")]
    assert agent.pool.keys() == []


def test_exchange_that_gave_its_lease_back_before():
    """An end that was told to nobody's lease is nobody's."""
    agent = core()
    subject = leased(agent)
    connection = subject.lease.connection
    agent.start(subject, 0.0)
    lease, subject.lease = subject.lease, None
    connection.drop(subject, 1.0, "dropped")

    agent.settle(connection, 1.0)

    assert agent.effects() == [Close(connection, "dropped")]
    agent.pool.release(lease, 1.0, reusable=False)


def test_busy_counts_active_connections():
    """An agent is busy while a connection carries a request."""
    agent = core()
    agent.acquire(exchange(agent), 0.0)
    assert not agent.busy
    agent = core()

    subject = leased(agent)
    assert agent.busy
    agent.give_back(subject, 0.0)

    assert not agent.busy


def test_closed_pool():
    """A closed agent refuses, whoever waits or comes."""
    agent = core()
    subject = exchange(agent)
    agent.acquire(subject, 0.0)
    agent.effects()

    agent.pool.close(0.0)

    [refuse] = agent.effects()
    assert isinstance(refuse, Refuse)
    assert isinstance(refuse.error, AgentClosed)
    with pytest.raises(AgentClosed):
        agent.acquire(exchange(agent), 0.0)


# -- Dialling


def test_failed_dial_is_told_with_its_facts():
    """An error of a dial learns its phase and its key; an OS error becomes one of ours."""
    agent = core()
    subject = exchange(agent)
    agent.acquire(subject, 0.0)
    [connect] = agent.effects()
    connect.attempt.user.enter("connect", 0.0)

    agent.dial_failed(connect.attempt.user, ConnectionRefusedError(111, "Connection refused"), 1.0)

    [refuse] = agent.effects()
    assert isinstance(refuse.error, ConnectError)
    assert (refuse.error.phase, refuse.error.code) == ("connect", "ECONNREFUSED")
    assert refuse.error.key == subject.plan.key.digest


def test_abandoned_dial_is_told_to_nobody():
    """An attempt that was given up leads to another for whoever still waits."""
    agent = core()
    agent.acquire(exchange(agent), 0.0)
    [connect] = agent.effects()

    agent.dial_failed(connect.attempt.user, None, 1.0)

    [again] = agent.effects()
    assert isinstance(again, Connect)
    assert again.attempt is not connect.attempt


def test_dial_takes_the_timeouts_of_its_cause():
    """An attempt runs on the timeouts of the request it was made for, one for nobody on the agent's."""
    agent = core(timeouts=Timeouts(connect=5))
    agent.acquire(exchange(agent, timeouts=Timeouts(connect=2)), 0.0)
    [connect] = agent.effects()
    own, idle_one = connect.attempt.user, agent.preconnect(agent.origin_plan(URL), 0.0)

    for dial in (own, idle_one):
        dial.enter("connect", 10.0)

    assert (own.deadline, idle_one.deadline) == (12.0, 15.0)


def test_preconnect_within_the_limits():
    """There is no attempt beyond max_sockets."""
    agent = core(max_sockets=1)
    plan = agent.origin_plan(URL)

    assert agent.preconnect(plan, 0.0) is not None
    assert agent.preconnect(plan, 0.0) is None


def test_dead_connection_is_never_granted():
    """A connection that ended together with its handshake fails the dial for one; the rest has another attempt."""
    server = SimulatedServer(greet=lambda peer: peer.close(), min_version="TLSv1.2", max_version="TLSv1.2")
    agent = core()
    first = agent.acquire(exchange(agent), 0.0)
    agent.acquire(exchange(agent), 0.0)
    [connect] = agent.effects()
    connection = opened(agent, connect.attempt.user, server)
    assert (connection.info is None, connection.dead, connection.error) == (False, "peer", None)

    agent.connected(connect.attempt.user, connection, 0.0)

    effects = agent.effects()
    assert not any(isinstance(effect, Grant) for effect in effects)
    [refusal] = [effect for effect in effects if isinstance(effect, Refuse)]
    assert refusal.ticket is first
    assert isinstance(refusal.error, ConnectionLost)
    assert refusal.error.phase == "handshake"
    assert [type(effect) for effect in effects] == [Refuse, Connect]


def test_raw_dial_is_outside_the_pool():
    """A raw connection counts as living but is nothing to the pool, whether it comes about or not."""
    agent = core(timeouts=Timeouts(connect=5), servername="a.test")
    dial = agent.raw_dial("elsewhere.test", 443, ConnectionOptions(), None, 9.0)
    below = agent.raw_dial("a.test", 443, ConnectionOptions(), ConnectionOptions(servername="b.test"), None)
    assert dial.attempt is None
    assert dial.plan.key.identity.verified_name == "a.test"
    assert below.plan.key.identity.verified_name == "b.test"

    connection = opened(agent, dial, raw=RawStream())
    agent.connected(dial, connection, 0.0)
    agent.dial_failed(dial, ConnectionLost("gone"), 0.0)

    assert agent.effects() == []
    assert agent.living() == [connection]
    assert agent.pool.keys() == []
    assert agent.closed(connection, "close") is True
    assert agent.closed(connection, "close") is False


# -- Sessions


def sessions_of(agent, version="TLSv1.3"):
    """Make a connection and keep its sessions."""
    subject = leased(agent, SimulatedServer(min_version=version, max_version=version))
    agent.keep_sessions(subject.lease.connection, subject)
    return subject


class Store:
    """A session store of the user's."""

    def __init__(self, held=None, error=None):
        self.held = held
        self.error = error
        self.discarded = []

    def take(self, scope):
        return self.held

    def put(self, scope, session):
        if self.error is not None:
            raise self.error

    def discard(self, scope):
        self.discarded.append(scope)


def test_sessions_are_kept_and_offered():
    """What one connection brought is offered by the next of the same scope."""
    agent = core()
    subject = sessions_of(agent)
    assert len(agent.store) == 2
    assert subject.lease.connection.sessions == []
    assert subject.lease.connection.sessions_stored == 2

    dial = agent.preconnect(subject.plan, 0.0)

    assert agent.open(dial, 0.0, WALL).session_offered
    assert len(agent.store) == 1


def test_no_sessions():
    """max_cached_sessions=0 turns resumption off."""
    agent = core(max_cached_sessions=0)
    subject = sessions_of(agent)

    assert agent.store is None
    assert not agent.open(agent.preconnect(subject.plan, 0.0), 0.0, WALL).session_offered
    assert subject.lease.connection.sessions_stored == 0


def test_expired_session_is_discarded():
    """A session past its time is not offered, and its scope forgotten."""
    agent = core()
    subject = sessions_of(agent)

    connection = agent.open(agent.preconnect(subject.plan, 0.0), 0.0, WALL + 30 * 86_400)

    assert not connection.session_offered
    assert len(agent.store) == 0


def test_store_that_fails_to_keep(caplog):
    """An exception of the user's store is logged and costs a session, no more."""
    agent = core(session_store=Store(error=OSError("disk full")))

    with caplog.at_level(logging.ERROR, "tlsagent.pool"):
        subject = sessions_of(agent)

    assert "failed to keep a session" in caplog.text
    assert subject.lease.connection.sessions_stored == 0


def test_store_that_gives_nonsense():
    """What is no Session is refused by name."""
    agent = core(session_store=Store(held=b"ticket"))

    with pytest.raises(OptionTypeError, match=r"take\(\) must return a Session or None, not bytes"):
        agent.open(agent.preconnect(agent.origin_plan(URL), 0.0), 0.0, WALL)


def test_refused_session_is_worth_a_second_dial():
    """A handshake that fails while a session is offered is tried once more without one."""
    agent = core()
    subject = sessions_of(agent)
    dial = agent.preconnect(subject.plan, 0.0)
    connection = agent.open(dial, 0.0, WALL)
    connection.receive_eof(0.0)

    assert agent.may_dial_again(dial, connection)

    assert len(agent.store) == 0
    second = agent.open(dial, 0.0, WALL)
    assert not second.session_offered
    second.receive_eof(0.0)
    assert not agent.may_dial_again(dial, second)


def test_refused_session_that_the_options_brought():
    """A session from the options is left out in the same way, where there is no store."""
    donor = core()
    donated = donor.store.take(sessions_of(donor).plan.scope)
    agent = core(session=donated, max_cached_sessions=0)
    dial = agent.preconnect(agent.origin_plan(URL), 0.0)
    connection = agent.open(dial, 0.0, WALL)
    assert connection.session_offered
    connection.receive_eof(0.0)

    assert agent.may_dial_again(dial, connection)
    assert not agent.open(dial, 0.0, WALL).session_offered


@pytest.mark.parametrize(
    "error",
    [CertificateNameError("wrong name"), HandshakeTimeout("late"), None],
)
def test_failures_that_are_not_the_session_s(error):
    """A refused certificate or a timeout is not tried again."""
    agent = core()
    subject = sessions_of(agent)
    dial = agent.preconnect(subject.plan, 0.0)
    connection = agent.open(dial, 0.0, WALL)
    connection.error = error

    assert not agent.may_dial_again(dial, connection)


def test_alert_without_a_session_is_final():
    """Where no session was offered there is nothing to leave out."""
    agent = core()
    dial = agent.preconnect(agent.origin_plan(URL), 0.0)
    connection = agent.open(dial, 0.0, WALL)
    connection.error = HandshakeError("alert")

    assert not agent.may_dial_again(dial, connection)


# -- Time


def test_next_deadline_is_the_earliest():
    """Of the pool's and the connections' deadlines the earliest counts; without any there is none."""
    agent = core(max_sockets=1, timeouts=Timeouts(queue=3, response=5))
    assert agent.next_deadline() == inf
    subject = leased(agent)
    agent.start(subject, 0.0)
    agent.watch(subject.lease.connection)
    assert agent.next_deadline() == 5.0

    agent.acquire(exchange(agent), 1.0)

    assert agent.next_deadline() == 4.0


def test_timeouts_strike():
    """handle_timeout refuses the tickets that are due, and returns the connections that have news."""
    agent = core(max_sockets=1, timeouts=Timeouts(queue=3, response=5))
    subject = leased(agent)
    connection = subject.lease.connection
    agent.start(subject, 0.0)
    agent.watch(connection)
    waiting = exchange(agent)
    agent.acquire(waiting, 0.0)

    assert agent.handle_timeout(2.9) == []
    assert agent.handle_timeout(3.0) == []
    [refuse] = agent.effects()
    assert isinstance(refuse.error, PoolTimeout)
    assert agent.handle_timeout(5.0) == [connection]

    assert isinstance(subject.error, ResponseTimeout)


def test_deadline_that_moved():
    """A timer that fires before its deadline, which has moved, is armed anew; one that moved nearer fires in time."""
    agent = core(timeouts=Timeouts(response=5, read=20))
    subject = leased(agent)
    connection = subject.lease.connection
    agent.start(subject, 0.0)
    assert agent.watch(connection) == 5.0
    subject.now = 4.0
    subject.response_received(object())
    assert agent.watch(connection) == 24.0

    assert agent.handle_timeout(5.0) == []
    assert agent.next_deadline() == 24.0
    subject.deadline = 10.0
    agent.watch(connection)

    assert agent.next_deadline() == 10.0


def test_closed_connection_has_no_timer():
    """A connection that was closed is due no more."""
    agent = core(timeout=5)
    connection = idle(agent)
    assert agent.next_deadline() == 5.0

    agent.closed(connection, "test")

    assert agent.next_deadline() == 60.0  # the pool's, which was not told
    assert agent.living() == []


# -- Events


def test_subscription_to_a_class_and_to_the_root():
    """A callback hears the events of its class, one for `Event` all of them, until it unsubscribes."""
    agent = core()
    heard, all_heard = [], []
    stop = agent.on(SessionTicket, heard.append)
    stop_all = agent.on(Event, all_heard.append)
    stop_second = agent.on(SessionTicket, heard.append)
    subject = leased(agent)
    agent.tell_secured(subject.lease.connection)
    agent.keep_sessions(subject.lease.connection, subject)

    stop_second()
    stop_second()
    stop()
    stop_all()
    sessions_of(agent)

    assert [type(event) for event in heard] == [SessionTicket] * 4
    assert [type(event) for event in all_heard] == [Secured, SessionTicket, SessionTicket]
    assert all_heard[0].connection is subject.lease.connection.info
    assert "SessionTicket" in repr(heard[0])
    assert not agent.listeners
    assert not agent.listening()


def test_one_callback_subscribed_twice():
    """One callback may be subscribed by two who do not know each other: each unsubscribes for itself."""
    agent = core()
    heard = []
    hear = heard.append
    stop = agent.on(Secured, hear)
    agent.on(Secured, hear)
    subject = leased(agent)

    stop()
    stop()
    agent.tell_secured(subject.lease.connection)

    assert len(heard) == 1


def test_trace_hears_of_its_request_alone():
    """`trace` is called with the events of one request."""
    agent = core()
    traced = []
    idle(agent)
    subject = exchange(agent, trace=traced.append)
    assert agent.listening(subject)
    agent.acquire(subject, 0.0)

    agent.start(subject, 0.0)
    agent.tell_started(subject)

    assert [type(event) for event in traced] == [Reused]


def test_callback_that_raises_is_logged(caplog):
    """What a callback raises is logged, the others are still called."""
    agent = core()
    heard = []
    agent.on(Event, lambda event: 1 / 0)
    agent.on(Event, heard.append)

    with caplog.at_level(logging.ERROR, "tlsagent"):
        agent.emit(Event("key"))

    assert "ZeroDivisionError" in caplog.text
    assert len(heard) == 1


def test_stapled_response_is_told():
    """A stapled OCSP response is an event of its own, after that of the handshake."""
    agent = core()
    heard = []
    agent.on(Event, lambda event: heard.append(type(event)))
    connection = leased(agent).lease.connection
    connection.info._facts.ocsp_response = b"DER"

    agent.tell_secured(connection)

    assert heard == [Secured, OCSPResponse]
    assert connection.info.ocsp_response == b"DER"


@pytest.mark.parametrize("alpn", ["h2", "http/1.1"])
def test_nothing_is_due_on_a_dead_connection(alpn):
    """Its driver may look at it once more after it was counted out, with inactivity to be watched or without."""
    agent = core(timeout=5)
    connection = leased(agent, SimulatedServer(alpn_protocols=(alpn,))).lease.connection
    assert agent.watch(connection) == 5
    connection.close("peer")
    assert agent.closed(connection, "peer")

    assert agent.watch(connection) == inf
    assert agent.handle_timeout(100.0) == []


def test_nothing_is_told_of_an_unfinished_handshake():
    """tell_secured says nothing where there is nothing to say."""
    agent = core()
    heard = []
    agent.on(Event, heard.append)

    agent.tell_secured(agent.open(agent.preconnect(agent.origin_plan(URL), 0.0), 0.0, WALL))

    assert heard == []
