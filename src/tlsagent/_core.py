"""
`AgentCore`: the agent without sockets, clocks, threads or `await`.

Wires options, pool, sessions, contexts, connections and exchanges together; a driver does the rest: *feed what came in;
carry out effects; write what is to be sent; arm one timer at the next deadline.*

The threads driver guards every call with the agent lock, except `plan`-making in `exchange` (idempotent, memoised by
single assignments) and what is said to take no lock.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from tlsagent._body import Body, Content, body_of
from tlsagent._coalescing import Coalescing
from tlsagent._connection import Connection, Protocols, RawSink, SocketLimits
from tlsagent._deadlines import Deadlines, Timer
from tlsagent._dial import Dial
from tlsagent._exchange import Exchange, Redirected
from tlsagent._http.engines import http1_engine, http2_engine
from tlsagent._http.messages import connect_protocol, request_head, trailer_fields
from tlsagent._limits import Http1Options, Timeouts
from tlsagent._option_rules import UNSET, Unset, boolean, margin, whole
from tlsagent._options import DEFAULTS, AgentOptions, ConnectionOptions
from tlsagent._plans import Plans, remember
from tlsagent._pool import Connect, Effect, Lease, Pool, Refuse, Ticket
from tlsagent._stats import AgentStats, Tally
from tlsagent._tls.sessions import MemorySessionStore, Session, SessionStore
from tlsagent._tunnel import Tunnel, tunnel_to
from tlsagent.errors import (
    CertificateError,
    ConnectionLost,
    HandshakeError,
    LocalProtocolError,
    OptionTypeError,
    TLSAgentError,
    own_copy,
    quoted,
)
from tlsagent.events import Event, OCSPResponse, Reused, Secured, SessionTicket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tlsagent._connection import News
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._http.messages import CallerFields, RequestHead
    from tlsagent._identity import Origin, Plan, SessionScope

_MAX_PLAIN: Final = 1_024  # requests without headers, body and options whose head is remembered
_SESSIONS_PER_SCOPE: Final = 8
_SLEPT: Final = 5.0
"""Seconds that the wall clock may gain on the monotonic one, by being set, before we take it that the machine slept."""

_log = logging.getLogger("tlsagent.pool")
_E = TypeVar("_E", bound=Event)


class AgentCore:
    """
    The agent's decisions.

    Attributes:
        options: Resolved: what was said, over the library's defaults.
        pool: Who gets which connection.
        listeners: Who has subscribed to which events. Any thread may add to it, by single steps.
        abandoned: Exchanges whose response was collected unread; finalisers append here, drivers give them up.
        awake_until: How far the wall clock may be ahead of the monotonic one; beyond, `slept` is to be called.
    """

    def __init__(self, said: AgentOptions) -> None:
        options: Any = said.merged_over(DEFAULTS)
        self.options: AgentOptions = options
        self.pool = self._new_pool()
        self.store: SessionStore | None = options.session_store
        if self.store is None and options.max_cached_sessions != 0:
            self.store = MemorySessionStore(options.max_cached_sessions, _SESSIONS_PER_SCOPE)
        self._http1_limits: Http1Options = options.http1
        self._protocols = Protocols(
            functools.partial(http1_engine(options.http1_engine), options.http1),
            functools.partial(http2_engine(options.http2_engine), options.http2),
            options.http2,
        )
        self._socket_limits = SocketLimits(
            options.max_lifetime, options.max_requests_per_socket, options.keep_alive_hint_margin
        )
        self._coalescing = Coalescing() if options.http2.coalesce else None
        # keep_alive false and sockets unlimited: no connection is used twice, and the server is told, as by Node.
        self._persistent = options.keep_alive or options.max_sockets is not None
        self._plans = Plans(said)
        self._plan_and_target = self._plans.plan_and_target  # bound once: requests with headers or options ask for it
        self._plain: OrderedDict[tuple[str, str], tuple[Plan, RequestHead]] = OrderedDict()
        self._timeouts = cast("Timeouts", options.timeouts)
        self._timers: Deadlines[Connection] = Deadlines()
        self._retry = bool(options.retry)
        self._max_size: int | None = options.max_response_size
        self._tally = Tally()
        self._ids = itertools.count(1)
        self.listeners: list[tuple[type[Event], Callable[[Any], object]]] = []
        self.abandoned: deque[Exchange] = deque()
        self.awake_until = math.inf

    def _new_pool(self) -> Pool[Connection]:
        options: Any = self.options
        return Pool(
            keep_alive=options.keep_alive,
            max_sockets=options.max_sockets,
            max_total_sockets=options.max_total_sockets,
            max_free_sockets=options.max_free_sockets,
            scheduling=options.scheduling,
            free_socket_timeout=options.free_socket_timeout,
            dial_delay=options.dial_delay,
        )

    # --- Requests -----------------------------------------------------------------------------------------------------

    def exchange(
        self,
        method: str,
        url: str,
        now: float,
        headers: CallerFields | None,
        content: Content | None,
        options: ConnectionOptions | Mapping[str, Any] | None,
        timeouts: Timeouts | float | None,
        trailers: CallerFields | None,
        retry: bool | Unset,
        trace: Callable[[Any], object] | None,
        expect_continue: bool = False,
    ) -> Exchange:
        """
        Check a request and plan it. Takes no lock.

        Raises:
            LocalProtocolError: The request cannot be sent as it is.
            OptionError: An option is wrong.
        """
        body: bytes | Body | None = None
        if not isinstance(method, str) or not isinstance(url, str):
            raise LocalProtocolError("method and URL must be str", code="ERR_INVALID_ARG_TYPE")
        if retry is not UNSET or trace is not None or expect_continue:
            _check_manner(retry, trace, expect_continue)
        request_trailers: list[tuple[bytes, bytes]] = []
        plain = not (headers or content is not None or options is not None or trailers or expect_continue)
        known = self._plain.get((method, url)) if plain else None
        if known is not None:
            plan, head = known
        else:
            plan, target = self._plan_and_target(url, options)
            authority = plan.key.origin.authority
            protocol = None
            if method.upper() == "CONNECT":
                if headers:
                    protocol, headers = connect_protocol(headers)
                if protocol is None:
                    target, authority = _tunnel_target(target, plan.key.origin)
            body = body_of(content)
            request_trailers = trailer_fields(trailers) if trailers else []
            head = request_head(
                method,
                target,
                authority,
                headers,
                body_length=None if request_trailers else _length_of(body),
                has_body=body is not None or bool(request_trailers),
                keep_alive=self._persistent,
                expect_continue=expect_continue,
                protocol=protocol,
            )
            if head.expects_continue and isinstance(body, bytes):
                body = Body(body)  # which the driver sends apart from the head
            if request_trailers and not head.chunked:
                raise LocalProtocolError(
                    "trailers need a chunked body: leave Content-Length out", code="ERR_HTTP_TRAILER_INVALID"
                )
            if plain:
                remember(self._plain, (method, url), (plan, head), _MAX_PLAIN)
        return Exchange(
            plan,
            head,
            body,
            self._timeouts if timeouts is None else Timeouts.of(timeouts).merged_over(self._timeouts),
            now,
            # By place: names would make a dict of each call.
            request_trailers,
            self._retry if retry is UNSET else retry,
            self._max_size,
            trace,
            self._http1_limits.expect_continue_wait if head.expects_continue else None,
        )

    def raw_dial(
        self,
        host: str,
        port: int,
        said: ConnectionOptions,
        below: ConnectionOptions | Mapping[str, Any] | None,
        timeouts: Timeouts | float | None,
    ) -> Dial:
        """Return the attempt at a connection that carries no HTTP and is outside the pool. Takes no lock."""
        plan = self._plans.raw_plan(host, port, said, below)
        return Dial(plan, self._timeouts if timeouts is None else Timeouts.of(timeouts).merged_over(self._timeouts))

    def origin_plan(self, origin: str, connections: int = 1) -> Plan:
        """
        Return the plan of the requests to `origin`, a URL, for which so many connections are wanted. Takes no lock.
        """
        whole("count", connections, least=0)
        return self._plan_and_target(origin, None)[0]

    # --- Pool ---------------------------------------------------------------------------------------------------------

    def acquire(self, exchange: Exchange, now: float) -> Lease[Connection] | Ticket[Connection]:
        """Reserve a connection for the exchange, or a place in the queue; a retry gets a new connection."""
        if self._coalescing is not None and (lease := self._other_lease(self._coalescing, exchange, now)) is not None:
            return lease
        key = exchange.plan.key
        queue: float | None = exchange.timeouts.queue
        got = self.pool.acquire(
            key,
            now,
            deadline=now + queue if queue else None,
            fresh=exchange.attempts > 0 and exchange.wants_fresh,
            shares=exchange.plan.may_share,
            user=exchange,
        )
        if isinstance(got, Lease):
            connection = got.connection
            # One that carries nothing is looked at by the driver, once nobody else may take it.
            if connection.shared is not None and not got.may_be_stale and (why := connection.refuses(now)) is not None:
                self.pool.release(got, now, reusable=False, reason=why)
                return self.acquire(exchange, now)
            exchange.lease = got
            return got
        exchange.ticket = got
        exchange.why_not_reused = self._why_not_reused(exchange)
        return got

    def _other_lease(self, coalescing: Coalescing, exchange: Exchange, now: float) -> Lease[Connection] | None:
        connection = coalescing.connection_for(exchange)
        lease = None if connection is None else self.pool.join(connection, now, user=exchange)
        exchange.lease = lease
        return lease

    def _redirect(self, plan: Plan, hosts: list[str]) -> None:
        """Have the requests of a plan use the connection of another origin, if there is one that will do."""
        assert self._coalescing is not None
        roomy = filter(self.pool.has_room, self._tally.living())
        connection = self._coalescing.find(plan, hosts, roomy)
        if connection is not None:
            raise Redirected(f"{connection.plan.key.digest} will do")

    def _why_not_reused(self, exchange: Exchange) -> str:
        if exchange.attempts:
            return "the request is a retry"
        counts = self.pool.counts(exchange.plan.key)
        if counts.active or counts.dialling > 1 or counts.waiting > 1:
            return "all connections of this key are busy"
        reason = self._tally.last_reason(exchange.plan.key)
        return f"the last connection of this key was closed: {reason}" if reason else "first connection of this key"

    def start(self, exchange: Exchange, now: float) -> None:
        """Begin the exchange on the connection it was granted. Takes no lock: that of a shared one is the caller's."""
        connection = exchange.lease.connection
        if connection.requests:
            exchange.why_not_reused = None
        elif connection.dialled_at >= exchange.created_at:
            exchange.dial_timings = connection.dial_timings
        connection.start(exchange, now)

    def tell_started(self, exchange: Exchange) -> None:
        """Emit the event of an exchange that was started. Call without a lock held."""
        if exchange.reused:
            self.emit(Reused(exchange.plan.key.digest, cast("ConnectionInfo", exchange.connection)), exchange)

    def needs_other(self, exchange: Exchange, now: float) -> bool:
        """
        Return whether the exchange cannot be carried by the shared connection it was granted, which is given back then.

        A request that wants to switch protocols needs HTTP/1.1: HTTP/2 has no upgrade (RFC 9113, 8.6). If that is on
        offer, the exchange looks for a connection anew, on which nothing else is.
        """
        plan: Plan = exchange.plan
        if not exchange.head.upgrade or "http/1.1" not in plan.key.identity.alpn_protocols:
            return False
        self.give_back(exchange, now)
        exchange.plan = plan.offering("http/1.1")
        return True

    def give_back(self, exchange: Exchange, now: float) -> None:
        """Return a lease that was not used: its connection was found dead, or about to leave."""
        lease, exchange.lease = exchange.lease, None
        connection: Connection = lease.connection
        why = connection.refuses(now)
        self.pool.release(lease, now, reusable=why is None, reason=why or "")

    def settle_shared(self, connection: Connection, news: News, now: float) -> None:
        """Take over what a shared connection has to say."""
        why = news.dead or news.leaving
        if news.capacity is not None and news.serial > connection.told:
            connection.told = news.serial
            if why is None:
                # Before the leases come back: they may make room that is no more.
                self.pool.set_capacity(connection, news.capacity, now)
        for exchange in news.ended:
            if self._coalescing is not None and exchange.response is not None and exchange.response.status == 421:
                self._coalescing.misdirected(exchange)
            lease, exchange.lease = exchange.lease, None
            if lease is not None:
                self.pool.release(lease, now, reusable=why is None, reason=why or "")
        if news.dead is not None:
            self.pool.connection_lost(connection, now, news.dead)
        elif news.leaving is not None:
            self.pool.drain(connection, now, news.leaving)

    def settle(self, connection: Connection, now: float) -> None:
        """Take over what a connection has to say: the exchange that ended, its death."""
        if connection.shared is not None:
            news = connection.take_news(now)
            if news is not None:
                self.settle_shared(connection, news, now)
            return
        exchange = connection.ended
        if exchange is not None:
            connection.ended = None
            lease, exchange.lease = exchange.lease, None
            if lease is not None:
                dead = connection.dead
                self.pool.release(lease, now, reusable=dead is None, reason=dead or "", idle_for=connection.idle_for)
        if connection.dead is not None:
            self.pool.connection_lost(connection, now, connection.dead)

    def keep_sessions(
        self, connection: Connection, exchange: Exchange | None = None, sessions: list[Session] | None = None
    ) -> None:
        """
        Put the sessions that came over a connection into the store. Takes no lock: stores are the user's.

        Args:
            connection: The connection.
            exchange: Whose events they are, too.
            sessions: What was taken from the connection, where another thread may be feeding it.
        """
        for session in connection.take_sessions() if sessions is None else sessions:
            if self.listeners or (exchange is not None and exchange.trace):
                self.emit(SessionTicket(connection.plan.key.digest, session), exchange)
            if self.store is None:
                continue
            try:
                self.store.put(connection.plan.scope, session)
                connection.sessions_stored += 1
            except Exception:  # noqa: BLE001 - a store is the user's
                _log.exception("the session store failed to keep a session")

    def cancel(self, exchange: Exchange, now: float) -> None:
        """Give up a waiting exchange; a connection granted meanwhile goes back unused."""
        ticket, exchange.ticket = exchange.ticket, None
        if ticket is not None:
            lease = self.pool.cancel(ticket, now)
            if lease is not None:
                exchange.lease = lease
                self.give_back(exchange, now)

    def give_up(self, exchange: Exchange, now: float) -> None:
        """End an exchange in whatever state it is: nothing of it is left, and its slot is free."""
        self.cancel(exchange, now)
        lease = exchange.lease
        if lease is None:
            return
        connection: Connection = lease.connection
        if connection.shared is not None or (connection.exchange is None and exchange.started_at is None):
            # Of a shared one the driver has dropped the exchange, with the connection lock held.
            self.give_back(exchange, now)
            return
        connection.drop(exchange, now, "dropped")
        self.settle(connection, now)
        if exchange.lease is not None:  # struck in the middle of a change of the connection's
            connection.abort("interrupted")
            exchange.lease = None
            self.pool.release(lease, now, reusable=False, reason="interrupted")

    # --- Dialling -----------------------------------------------------------------------------------------------------

    def effects(self) -> list[Effect]:
        """Return what is to be carried out, in order; each `Connect` has its `Dial` in `attempt.user`."""
        effects = self.pool.effects()
        told: set[BaseException] = set()
        for effect in effects:
            if type(effect) is Connect and effect.attempt.user is None:
                cause = effect.attempt.cause
                assert cause is not None
                exchange: Exchange = cause.user
                dial = effect.attempt.user = Dial(exchange.plan, exchange.timeouts, effect.attempt)
                if self._coalescing is not None and not exchange.attempts:
                    dial.on_resolved = functools.partial(self._redirect, exchange.plan)
            elif type(effect) is Refuse:
                if effect.error in told and isinstance(effect.error, TLSAgentError):
                    effect.error = own_copy(effect.error)  # an attempt may stand for many, and each has its facts
                told.add(effect.error)
        return effects

    def preconnect(self, plan: Plan, now: float) -> Dial | None:
        """Place an attempt that nobody waits for, if the limits allow one more."""
        attempt = self.pool.preconnect(plan.key, now)
        if attempt is None:
            return None
        attempt.user = Dial(plan, self._timeouts, attempt)
        return cast("Dial", attempt.user)

    def open(
        self,
        dial: Dial,
        now: float,
        wall: float,
        *,
        chance: float = 0.0,
        addresses: tuple[object, object] = (None, None),
        raw: RawSink | None = None,
    ) -> Connection:
        """
        Return the connection for a transport that is open; its ClientHello waits to be sent. Takes no lock.

        Args:
            now, wall: The time, monotonic and since the epoch.
            chance: A random number from 0 up to 1, which spreads the lifetimes of connections opened together.
            addresses: Local and remote, as the socket names them.
            raw: Who receives the bytes, if it carries no HTTP.
        """
        tunnel = self._tunnel(dial)
        dial.enter("handshake" if tunnel is None else "tunnel", now)
        self.awake_until = wall - now + _SLEPT
        connection = Connection(
            dial.plan,
            id=next(self._ids),
            now=now,
            wall=wall,
            session=None if dial.without_session else self._session_for(dial.plan, wall),
            protocols=None if raw is not None else self._protocols,
            raw=raw,
            addresses=addresses,
            dial_timings=dial.timings,
            dialled_at=dial.begun_at,
            limits=self._socket_limits,
            tunnel=tunnel,
            on_tunnel_opened=None if tunnel is None else functools.partial(dial.enter, "handshake"),
            chance=chance,
        )
        self._tally.opened(connection)
        return connection

    def _tunnel(self, dial: Dial) -> Tunnel | None:
        proxy = dial.plan.proxy
        return None if proxy is None else tunnel_to(dial.target, proxy)

    def _session_for(self, plan: Plan, wall: float) -> Session | None:
        """Return the session that the options bring, once, else one of the store."""
        return plan.take_session() or self._take_session(plan.scope, wall)

    def _take_session(self, scope: SessionScope, wall: float) -> Session | None:
        if self.store is None:
            return None
        session = self.store.take(scope)
        if session is None:
            return None
        if not isinstance(session, Session):
            raise OptionTypeError(f"session_store.take() must return a Session or None, not {type(session).__name__}")
        if session.expires_at <= wall:
            self.store.discard(scope)
            return None
        return session

    def may_dial_again(self, dial: Dial, connection: Connection) -> bool:
        """
        Whether a failed handshake is to be tried once more, without a session. Takes no lock.

        A server that answers an offered session with an alert, or closes the connection, may do so because of the
        session. A refused certificate is not tried again, nor what ran out of time.
        """
        dial.secured = connection.info is not None
        error = connection.error
        refused = isinstance(error, (HandshakeError, ConnectionLost)) and not isinstance(error, CertificateError)
        if not (refused and connection.session_offered) or dial.plan.key.route.socket is not None:
            return False
        dial.without_session = True
        if self.store is not None:
            self.store.discard(dial.plan.scope)
        return True

    def tell_secured(self, connection: Connection) -> None:
        """Emit the events of a completed handshake. Call without a lock held."""
        info = connection.info
        if self.listeners and info is not None:
            self.emit(Secured(connection.plan.key.digest, info))
            if info.ocsp_response is not None:
                self.emit(OCSPResponse(connection.plan.key.digest, info))

    def connected(self, dial: Dial, connection: Connection, now: float) -> None:
        """Give a secured connection to the pool, which grants it to the first in line; a dead one fails the dial."""
        failure = connection.handshake_error
        if failure is not None:
            dial.secured = True
            self.dial_failed(dial, failure, now)
            return
        dial.enter(None, now)
        connection.timer = Timer(connection)
        if dial.attempt is not None:
            self.pool.connected(dial.attempt, connection, now, capacity=connection.capacity)
            dial.attempt.user = None
        self.watch(connection)

    def dial_failed(self, dial: Dial, error: BaseException | None, now: float) -> None:
        """
        End an attempt without a connection; None abandons it.

        A connection that was open and is lost before anybody could use it is the misfortune of one: the server was
        there, and may be reloading.
        """
        if dial.attempt is not None:
            for_all = not (dial.secured and isinstance(error, ConnectionLost))
            self.pool.connect_failed(dial.attempt, error and dial.describe(error), now, for_all=for_all)
            dial.attempt.user = None

    def closed(self, connection: Connection, reason: str) -> bool:
        """Count a connection whose transport was closed by the driver; returns whether this was the first call."""
        timer, connection.timer = connection.timer, None
        if timer is not None:
            self._timers.discard(timer)
        if self._coalescing is not None:
            self._coalescing.forget(connection)
        return self._tally.closed(connection, reason)

    @property
    def busy(self) -> bool:
        """Whether any connection carries a request."""
        return self.pool.counts().active > 0

    def network_changed(self, now: float) -> None:
        """Close what is idle; what carries a request finishes it and is closed then."""
        for connection in self._tally.living():
            connection.retire("network_changed")
            if connection.shared is not None:
                self.pool.drain(connection, now, "network_changed")
        self.pool.close_idle(now, "network_changed")

    def living(self) -> list[Connection]:
        """Return all connections that are not closed, idle, active or in their handshake."""
        return self._tally.living()

    # --- Beginning anew -----------------------------------------------------------------------------------------------

    def forget(self, error: TLSAgentError, now: float) -> list[Connection]:
        """
        Disown every connection, attempt and request and begin anew; options, plans and listeners stay.

        What was under way fails with `error`, once somebody looks. Returns the connections, whose sockets are the
        driver's to deal with. Does not rely on the order of anything: it may have been left in the middle of a change.
        """
        connections = self._tally.living()
        exchanges = [ticket.user for ticket in self.pool.forget()]
        for connection in connections:
            exchanges += connection.disown(error)
        for exchange in exchanges:
            exchange.ticket = exchange.lease = None
            exchange.fail(error, now)
        closed = self.pool.closed
        self.pool = self._new_pool()
        if self._coalescing is not None:
            self._coalescing = Coalescing()
        if closed:
            self.pool.close(now)
        self._tally = Tally()
        self._timers = Deadlines()
        self.abandoned.clear()
        return connections

    def mend(self, waiting: list[Exchange], dials: list[Dial], dialled: set[Connection | None]) -> list[Connection]:
        """
        Put the pool in order again after an exception, a signal's as a rule, struck in the middle of a change.

        Args:
            waiting: The exchanges that wait for a connection.
            dials: The attempts that somebody carries out.
            dialled: Their connections, as far as there are any.

        Returns:
            Connections that nobody answers for any more: they are counted out, the driver closes them.
        """
        for exchange in waiting:
            ticket: Ticket[Connection] | None = exchange.ticket
            if ticket is not None and ticket.granted is not None:
                exchange.lease, exchange.ticket = ticket.granted, None
        tickets: list[Ticket[Connection]] = [exchange.ticket for exchange in waiting if exchange.ticket is not None]
        attempts = [dial.attempt for dial in dials if dial.attempt is not None]
        self.pool.mend(tickets, attempts, lambda lease: lease.user.lease is lease)
        self._timers = Deadlines()
        lost = []
        for connection in self._tally.living():
            if connection.timer is not None:
                connection.timer = Timer(connection)
            if self.pool.holds(connection):
                self.watch(connection)
            elif not (connection.raw or connection.info is None or connection in dialled):
                lost.append(connection)
        for connection in lost:
            self.closed(connection, "interrupted")
        return lost

    def forked(self) -> None:
        """Forget the TLS sessions: they are the parent's. Called in the child of a fork."""
        self._plans.forked()
        forget = getattr(self.store, "forked", None)
        if forget is not None:
            forget()

    # --- Time ---------------------------------------------------------------------------------------------------------

    def watch(self, connection: Connection) -> float:
        """
        Arm the timer of a connection anew and return its deadline; moving it later costs next to nothing.

        One that is not in the pool yet, or is closed, has no timer: infinity.
        """
        timer = connection.timer
        if timer is None:
            return math.inf
        deadline = connection.next_deadline()
        # An earlier timer looks again when it fires.
        if deadline < (math.inf if timer.deadline is None else timer.deadline):
            self._timers.set(timer, deadline)
        return deadline

    def slept(self, now: float, wall: float) -> None:
        """
        Count time for which the machine was suspended, and the monotonic clock with it, as time that connections idled.

        What its peer has given up long since is closed; what is left is looked into before it is used, as always. The
        deadlines of requests under way stay: nobody worked on them meanwhile. Sessions expire by the wall clock alone.
        """
        seconds = wall - now - (self.awake_until - _SLEPT)
        self.awake_until = wall - now + _SLEPT
        for connection in self._tally.living():
            connection.slept(seconds)
        self.pool.slept(seconds, now)

    def next_deadline(self) -> float:
        """Return when `handle_timeout` is due."""
        ours = self._timers.next()
        pools = self.pool.next_deadline()
        return min(math.inf if ours is None else ours, math.inf if pools is None else pools)

    def handle_timeout(self, now: float) -> list[Connection]:
        """Time out what is overdue; returns the connections that have news, if only for who sends a body."""
        self.pool.handle_timeout(now)
        due = self._timers.expired(now)
        for connection in due:
            connection.handle_timeout(now)
            if connection.dead is None:
                self.watch(connection)
        return [
            connection
            for connection in due
            if connection.dead is not None
            or connection.shared is not None
            or (connection.exchange is not None and connection.exchange.nudged)
        ]

    # --- Events and counters ------------------------------------------------------------------------------------------

    def on(self, kind: type[_E], callback: Callable[[_E], object]) -> Callable[[], None]:
        """
        Subscribe; returns the function that unsubscribes.

        Raises:
            OptionTypeError: `kind` is no class of events, or `callback` cannot be called.
        """
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            raise OptionTypeError(f"on() takes a class of tlsagent.events first, not {quoted(repr(kind))}")
        _require_callable("the callback of on()", callback)
        subscription = (kind, functools.partial(callback))  # unlike all others: who subscribes twice may end one
        self.listeners.append(subscription)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):  # it is called twice
                self.listeners.remove(subscription)

        return unsubscribe

    def listening(self, exchange: Exchange | None = None) -> bool:
        """Whether anybody wants events."""
        return bool(self.listeners) or (exchange is not None and exchange.trace is not None)

    def emit(self, event: Event, exchange: Exchange | None = None) -> None:
        """Tell an event to those who asked for its class or a root of it. Call without a lock held."""
        callbacks = [callback for kind, callback in self.listeners[:] if isinstance(event, kind)]
        if exchange is not None and exchange.trace is not None:
            callbacks.append(exchange.trace)
        for callback in callbacks:
            try:
                callback(event)
            except Exception:
                logging.getLogger("tlsagent").exception("an event callback failed")

    def stats(self) -> AgentStats:
        """Return a snapshot of all counters."""
        return self._tally.snapshot(self.pool)


def check_drain(seconds: float | None) -> None:
    """Check how long the closing of an agent may take."""
    if seconds is not None:
        margin("drain", seconds)


def _check_manner(retry: object, trace: object, expect_continue: object) -> None:
    """Check how a request is to be carried out, where anything was said about it."""
    for name, value in (("retry", retry), ("expect_continue", expect_continue)):
        if value is not UNSET:
            boolean(name, value)
    if trace is not None:
        _require_callable("trace", trace)


def _require_callable(name: str, value: object) -> None:
    if not callable(value):
        raise OptionTypeError(f"{name} must be callable, not {type(value).__name__}")


def _length_of(body: bytes | Body | None) -> int | None:
    if body is None:
        return None
    return body.length if isinstance(body, Body) else len(body)


def _tunnel_target(target: str, origin: Origin) -> tuple[str, bytes]:
    """Return target and Host of a CONNECT: the URL's host and port, even a default one (RFC 9110, 9.3.6)."""
    if target != "/":
        raise LocalProtocolError("CONNECT asks for a host and a port: leave path and query out of the URL")
    authority = origin.authority.decode("ascii")
    if not authority.endswith(f":{origin.port}"):
        authority += f":{origin.port}"
    return authority, authority.encode("ascii")
