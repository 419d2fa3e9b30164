"""
One socket's worth of protocol: the TLS engine, HTTP/1.1, HTTP/2 or raw bytes upon it, and the timers of both.

A `Connection` is fed by its driver and never calls anybody but the exchange it carries. What it has to say to the agent
waits for the driver to carry it over: exchanges that ended, TLS sessions that came, and whether it is dead. It takes no
locks: with HTTP/1.1 it belongs to whoever holds its lease, with HTTP/2 it is *shared*, and its driver sees to it that
calls do not overlap.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from tlsagent._body import PIECE
from tlsagent._connection_info import ConnectionInfo
from tlsagent._multiplex import Multiplex
from tlsagent._raw import RawStream
from tlsagent._tls.engine import TLSEngine
from tlsagent._tls.listeners import stderr_tracer
from tlsagent._tls.verify import check_server_identity
from tlsagent._tunnelled import TunnelledEngine
from tlsagent.errors import (
    ConnectionLost,
    HandshakeError,
    InactivityTimeout,
    LocalProtocolError,
    ProxyError,
    RequestError,
    TLSAgentError,
    quoted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._exchange import Exchange
    from tlsagent._http.engines import HTTP1Engine, HTTP2Engine
    from tlsagent._identity import Plan, Secured
    from tlsagent._limits import Http2Options
    from tlsagent._tls.context import SecureContext
    from tlsagent._tls.engine import HandshakeFacts
    from tlsagent._tls.sessions import Session
    from tlsagent._tunnel import Tunnel

MAX_SESSIONS: Final = 64
"""TLS sessions taken from one connection between two looks of the agent, so that a flood of tickets is bounded."""


LIFETIME_SPREAD: Final = 0.1
"""Part of `max_lifetime` by which a connection may end earlier, by chance: those opened together end apart."""

_HTTP1: Final = frozenset({"http/1.1", "http/1.0"})


class SocketLimits(NamedTuple):
    """
    When a connection that works is not used again.

    Attributes:
        max_lifetime: Seconds from the end of its handshake, or None.
        max_requests: Requests, or None.
        hint_margin: Seconds taken off the peer's `Keep-Alive: timeout`.
    """

    max_lifetime: float | None
    max_requests: int | None
    hint_margin: float


class Protocols(NamedTuple):
    """
    What the requests of an agent may be carried by.

    Attributes:
        http1, http2: Make an engine for one connection.
        http2_limits: What is set for HTTP/2.
    """

    http1: Callable[[], HTTP1Engine]
    http2: Callable[[], HTTP2Engine]
    http2_limits: Http2Options


class News(NamedTuple):
    """
    What a shared connection has to say to the agent, taken in one moment.

    Attributes:
        serial: Which capacity is newer: threads may carry news over in another order.
        ended: Exchanges that have ended.
        capacity: How many it may carry at a time, if that has changed.
        leaving: Why it is to take no further one, or None.
        dead: Why it can carry nothing more, or None.
    """

    serial: int
    ended: list[Exchange]
    capacity: int | None
    leaving: str | None
    dead: str | None


class RawSink(Protocol):
    """Who receives the plaintext of a connection that carries no HTTP."""

    def plaintext_received(self, data: bytes, now: float) -> None:
        """Take bytes."""

    def plaintext_ended(self, clean: bool, now: float) -> None:
        """Take the end: `clean` with close_notify, else a truncation."""


class Connection:
    """
    TLS and HTTP of one socket, sans I/O.

    Attributes:
        plan: For whom it was made.
        info: None until the handshake is complete and the peer verified.
        shared: Its exchanges, where it carries several at a time: HTTP/2 was chosen. None before the handshake is over.
        exchange: What it carries now, where it carries one at a time.
        requests: How many exchanges it has carried, the present ones included.
        ended: News: the exchange that ended here, where it carries one at a time.
        sessions: News: TLS sessions that came.
        dead: News: one word for why it can carry nothing more, or None. What is left to send may still be sent.
        error: Why it died, if an error says so.
        stream: What comes after a response that switched protocols; None before that.
        idle_for: Seconds it may be idle by the peer's word, infinity if it gave none.
        bytes_sent, bytes_received, session_offered, sessions_stored: Tallies for the counters.
        dialled_at, dial_timings: When its dial began, and the seconds that lookup, connect and handshake took.
        tunnelling: Whether a proxy has not opened its tunnel yet.
        timer, told: The agent's; opaque here.
        transport: The driver's; opaque here.
    """

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_chance",
        "_engine",
        "_http",
        "_id",
        "_inactivity",
        "_last_activity",
        "_limits",
        "_on_tunnel_opened",
        "_protocols",
        "_raw",
        "_retirement",
        "_retires_at",
        "_serial",
        "_session_unfit",
        "_told_capacity",
        "bytes_received",
        "bytes_sent",
        "dead",
        "dial_timings",
        "dialled_at",
        "ended",
        "error",
        "exchange",
        "idle_for",
        "info",
        "plan",
        "requests",
        "session_offered",
        "sessions",
        "sessions_stored",
        "shared",
        "stream",
        "timer",
        "told",
        "transport",
        "tunnelling",
    )

    def __init__(
        self,
        plan: Plan,
        *,
        id: int,  # noqa: A002 - the name it has in ConnectionInfo
        now: float,
        wall: float,
        session: Session | None,
        protocols: Protocols | None,
        raw: RawSink | None,
        addresses: tuple[object, object],
        dial_timings: dict[str, float],
        dialled_at: float,
        limits: SocketLimits,
        tunnel: Tunnel | None,
        on_tunnel_opened: Callable[[float], None] | None,
        chance: float = 0.0,
    ) -> None:
        self.plan = plan
        self._id = id
        self._protocols = protocols
        self._http: HTTP1Engine | None = None
        self._raw = raw
        self._addresses = addresses
        self._inactivity = plan.inactivity
        self._last_activity = now
        self._limits = limits
        self._chance = chance
        self._retires_at = math.inf
        self._retirement = "max_lifetime"
        self.idle_for = math.inf
        trace = stderr_tracer(plan.key.digest) if plan.key.route.enable_trace else None
        engine = _engine(plan.origin, wall - now, session, trace)
        self._engine: TLSEngine | TunnelledEngine = engine
        self.tunnelling = tunnel is not None
        self._on_tunnel_opened = on_tunnel_opened
        if tunnel is not None:
            outer = _engine(plan.proxy_tls, wall - now) if plan.proxy_tls is not None else None
            self._engine = TunnelledEngine(engine, tunnel, outer)
        self.info: ConnectionInfo | None = None
        self.shared: Multiplex | None = None
        self.exchange: Exchange | None = None
        self.requests = 0
        self.ended: Exchange | None = None
        self.sessions: list[Session] = []
        self.dead: str | None = None
        self.error: TLSAgentError | None = None
        self.stream: RawStream | None = None
        self.dial_timings = dial_timings
        self.dialled_at = dialled_at
        self.bytes_sent = 0
        self.bytes_received = 0
        self.session_offered = self._engine.offered_session
        self._session_unfit = session is not None and not self.session_offered
        self.sessions_stored = 0
        self.timer: Any = None
        self.told = 0
        self._serial = 0
        self._told_capacity = -1
        self.transport: Any = None
        self._engine.start()

    # --- The five verbs -----------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes | memoryview, now: float) -> None:
        """Take bytes from the socket; `data` is not kept."""
        self._last_activity = now
        self.bytes_received += len(data)
        try:
            self._engine.receive_data(data, now, self)
        except RequestError as error:
            self._fail(error, now)

    def receive_eof(self, now: float) -> None:
        """Take the end of the socket's input."""
        try:
            self._engine.receive_eof(now, self)
        except RequestError as error:
            self._fail(error, now)
        self.dead = self.dead or "peer"

    def receive_error(self, error: OSError, now: float) -> None:
        """Take the failure of the socket."""
        broken = ProxyError if self.tunnelling else ConnectionLost
        lost = broken(f"the connection broke: {error.strerror or error}", code=_os_code(error))
        # Frames of the driver, which has hold of this connection, would make a cycle.
        lost.__cause__ = error.with_traceback(None)
        self._fail(lost, now)

    def data_to_send(self) -> bytes:
        """Return what is to be written to the socket."""
        engine = self._engine
        if self.shared is not None and self.dead is None:
            plaintext = self.shared.engine.data_to_send()
            if plaintext:
                engine.write(plaintext)
        if not engine.unsent:
            return b""
        data = engine.data_to_send()
        self.bytes_sent += len(data)
        return data

    def next_deadline(self) -> float:
        """Return when `handle_timeout` is due, infinity for never."""
        if self.shared is not None:
            deadline = self.shared.next_deadline()
        else:
            exchange = self.exchange
            deadline = exchange.deadline if exchange is not None else math.inf
        if self._inactivity is not None:
            return min(deadline, self._last_activity + self._inactivity)
        return deadline

    def handle_timeout(self, now: float) -> None:
        """Fail what is overdue."""
        exchange, shared = self.exchange, self.shared
        if exchange is None and self._raw is None and self.info is not None and not (shared and shared.waiting):
            self.check_idle(now)
            return
        overdue: RequestError | None = exchange.overdue(now) if exchange is not None else None
        if shared is not None:
            overdue = shared.handle_timeout(now)
        if overdue is None and self._inactivity is not None and now >= self._last_activity + self._inactivity:
            overdue = InactivityTimeout(f"the connection was silent for {self._inactivity:g} s (timeout)")
        if overdue is not None:
            self._fail(overdue, now, reason="timeout")

    def retire(self, reason: str) -> None:
        """Let it finish what it carries and take nothing more. Two attribute writes: any thread may ask for it."""
        self._retirement = reason
        self._retires_at = -math.inf

    def slept(self, seconds: float) -> None:
        """Count time that the machine slept as time it lay idle, and as part of its lifetime."""
        self._retires_at -= seconds
        if self.exchange is None and not (self.shared and self.shared.busy):
            self._last_activity -= seconds
            if self.shared is not None:
                self.shared.slept(seconds)

    def check_idle(self, now: float) -> None:
        """Close it if it was silent for too long; asked before it is used again too, since a timer may be late."""
        if self.shared is not None and self.shared.busy:
            return  # another exchange was faster, and it is not idle any more
        if self._inactivity is not None and now >= self._last_activity + self._inactivity:
            self.close("timeout")
        elif now >= self._retires_at:
            self.close(self._retirement)

    # --- Requests -----------------------------------------------------------------------------------------------------

    def start(self, exchange: Exchange, now: float) -> None:
        """Begin an exchange, and send it whole unless its body is a `Body`: those the driver sends piece by piece."""
        assert self.info is not None
        if self.shared is not None:
            self._start_shared(self.shared, exchange, now)
            return
        http = self._http
        assert http is not None
        if exchange.head.protocol is not None:
            exchange.begin(self.info, self.requests + 1, now)
            exchange.fail(LocalProtocolError("extended CONNECT (:protocol) needs HTTP/2, which was not chosen"), now)
            self.ended = exchange
            return
        self.exchange = exchange
        self.requests += 1
        if self.requests > 1:
            http.next_cycle()
        self._last_activity = now
        self._inactivity = exchange.plan.inactivity
        exchange.begin(self.info, self.requests, now)
        body = exchange.body
        head = http.start(exchange.head)
        if isinstance(body, bytes):
            self._engine.write(head + http.send_data(body) + http.end_request(exchange.request_trailers or ()))
        elif body is None:
            self._engine.write(head + http.end_request(exchange.request_trailers or ()))
        else:
            self._engine.write(head)
            if exchange.continue_wait:
                exchange.hold(now)
            else:
                exchange.progressed(now)
            return
        exchange.sent(now)

    def _start_shared(self, shared: Multiplex, exchange: Exchange, now: float) -> None:
        assert self.info is not None
        self._last_activity = now
        inactivity, shortest = exchange.plan.inactivity, self._inactivity
        if not shared.busy or shortest is None or (inactivity is not None and inactivity < shortest):
            self._inactivity = inactivity
        self.requests += 1
        exchange.begin(self.info, self.requests, now)
        shared.start(exchange, self, now)

    def send_body(self, exchange: Exchange, piece: bytes | memoryview, now: float) -> bool:
        """
        Send a piece of the body; returns False once no more is needed: the exchange has ended, or its upload has.

        Where the exchange is `blocked` afterwards, the piece waits for the peer's windows, and so must the next.
        """
        if self.shared is not None:
            self._last_activity = now
            return self.shared.send_body(exchange, piece, now)
        if self.exchange is not exchange or self._http is None or exchange.upload_stopped:
            return False
        try:
            self.write(self._http.send_data(piece), now)
        except RequestError as error:
            self._fail(error, now)
            return False
        exchange.progressed(now)
        return True

    def end_body(self, exchange: Exchange, now: float) -> None:
        """Send the end of the body and the trailers, unless no more is needed."""
        if self.shared is not None:
            self._last_activity = now
            self.shared.end_body(exchange, now)
            return
        if self.exchange is not exchange or self._http is None or exchange.upload_stopped:
            return
        try:
            self.write(self._http.end_request(exchange.request_trailers or ()), now)
        except RequestError as error:
            self._fail(error, now)
            return
        exchange.sent(now)

    def credit(self, exchange: Exchange) -> None:
        """Take note that the body of an exchange was read so far: the peer of a shared connection may send more."""
        stream = exchange.stream
        if stream is None:
            return
        stream.read(exchange.deadline)
        if stream.over and not stream.owed:
            exchange.stream = None

    def drop(self, exchange: Exchange, now: float, reason: str) -> None:
        """Give up an exchange whose response nobody wants any more; an HTTP/1.1 connection cannot outlive that."""
        if self.shared is not None:
            self.shared.drop(exchange, now)
        elif self.exchange is exchange:
            self._let_go(exchange)
            exchange.fail(LocalProtocolError("the response was closed before its end", code="ERR_TLSAGENT_CLOSED"), now)
            self.abort(reason)

    # --- What is shared -----------------------------------------------------------------------------------------------

    def active(self, now: float) -> None:
        """Take note that a tunnel sends: the connection is not silent."""
        self._last_activity = now

    @property
    def capacity(self) -> int:
        """How many exchanges it may carry at a time."""
        shared, most = self.shared, self._limits.max_requests
        if shared is None:
            return 1
        if most is None:
            return shared.capacity
        return min(shared.capacity, shared.carried + max(0, most - self.requests))

    def tell_anew(self) -> None:
        """Have `take_news` say all once more: what it said last may have been lost."""
        self._told_capacity = -1

    def take_sessions(self) -> list[Session]:
        """Return the TLS sessions that came, which are news."""
        sessions, self.sessions = self.sessions, []
        return sessions

    def take_news(self, now: float) -> News | None:
        """Return what a shared connection has to say to the agent, None if that is nothing new."""
        shared = self.shared
        assert shared is not None
        capacity = shared.capacity if self._limits.max_requests is None else self.capacity
        leaving = self.refuses(now)
        if not shared.ended and capacity == self._told_capacity and leaving is None:
            return None
        ended, shared.ended = shared.ended, []
        changed = capacity != self._told_capacity
        if changed:
            self._serial += 1
            self._told_capacity = capacity
        return News(self._serial, ended, capacity if changed else None, leaving, self.dead)

    def refuses(self, now: float) -> str | None:
        """Return why no further exchange may begin on it, None if one may, or if it carries one at a time."""
        shared = self.shared
        if self.dead is not None or shared is None:
            return self.dead
        if shared.engine.draining:
            # Another thread may be reading what breaks it, and not be through.
            return "error" if shared.engine.dead else "goaway"
        most = self._limits.max_requests
        if most is not None and self.requests >= most:
            return "max_requests"
        # One that has carried nothing takes one whatever its age: else a short lifetime would have us dial for ever.
        return self._retirement if self.requests and now >= self._retires_at else None

    # --- Raw bytes ----------------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview, now: float) -> None:
        """Encrypt bytes; `data_to_send` returns them."""
        self._last_activity = now
        if len(data) <= PIECE:
            if data:
                self._engine.write(data)
            return
        view = memoryview(data)
        for at in range(0, len(view), PIECE):
            self._engine.write(view[at : at + PIECE])

    def take_over(self) -> RawStream:
        """Return what comes after the switch of protocols; reading, which paused there, goes on."""
        assert self.stream is not None
        if self.exchange is not None:
            self.exchange.paused = False
        return self.stream

    def hang_up(self, reason: str) -> None:
        """End in good order what took over after a switch of protocols, and let go of the exchange that led to it."""
        if self.exchange is not None:
            self._let_go(self.exchange)
        if self.dead is None:
            self.close(reason)

    # --- The end ------------------------------------------------------------------------------------------------------

    @property
    def handshake_error(self) -> TLSAgentError | None:
        """
        Why no request may begin on it though its handshake is over, or None.

        A peer may take its leave, or send bytes that nobody asked for, in the same breath as its Finished.
        """
        if self.shared is not None and self.shared.engine.draining and self.dead is None:
            return ConnectionLost(
                "the server took its leave (GOAWAY) before it had a request",
                phase="handshake",
                code="ERR_HTTP2_GOAWAY_SESSION",
            )
        if self.error is not None or self.dead is None:
            return self.error
        if self.info is None:
            return ConnectionLost("the connection closed during the handshake", phase="handshake")
        if self._raw is not None:
            return None
        return ConnectionLost(f"the connection was of no use once it was open: {self.dead}", phase="handshake")

    @property
    def blocked(self) -> bool:
        """Nothing waits for windows of a peer on a connection that carries one exchange."""
        return False

    def keep(self) -> None:
        """Nothing to copy: what is written is encrypted at once."""

    @property
    def raw(self) -> bool:
        """Whether it carries no HTTP and is outside the pool."""
        return self._raw is not None

    @property
    def reading_paused(self) -> bool:
        """Whether the consumer is behind, so that no more should be read."""
        return self.exchange is not None and self.exchange.paused

    def close(self, reason: str) -> None:
        """End it in good order: close_notify is ready to be sent, and GOAWAY before it where that is due."""
        if self.shared is not None and self.dead is None:
            self.shared.close()
            farewell = self.shared.engine.data_to_send()
            if farewell:
                self._engine.write(farewell)
        self.dead = self.dead or reason
        self._engine.close()

    def abort(self, reason: str) -> None:
        """End it at once; nothing more is sent."""
        self.dead = self.dead or reason
        self._engine.abort()

    def disown(self, error: TLSAgentError) -> list[Exchange]:
        """
        Mark it as another's, and return what it carried. The TLS engine is not touched: it may be in the middle of
        something that will never go on here.
        """
        exchanges = [exchange for exchange in (self.exchange, self.ended) if exchange is not None]
        self.exchange = self.ended = None
        if self.shared is not None:
            exchanges += self.shared.disown()
        self.error = self.error or error
        self.dead = self.dead or "disowned"
        return exchanges

    def fail(self, error: TLSAgentError, now: float, reason: str) -> None:
        """End it, and what it carries, with an error."""
        self._fail(error, now, reason=reason)

    def _fail(self, error: BaseException, now: float, reason: str | None = None) -> None:
        if isinstance(error, TLSAgentError):
            self.error = self.error or error
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.now = now
            exchange.fail(error, now)
            self.ended = exchange
        self.dead = self.dead or reason or ("lost" if isinstance(error, ConnectionLost) else "error")
        if self.shared is not None:
            self.shared.fail(error, now)
        self._engine.abort()

    # --- What the TLS engine tells: it is a TunnelSink ----------------------------------------------------------------

    def tunnel_opened(self, engine: TLSEngine | TunnelledEngine, now: float) -> None:
        """Note that the handshake with the origin begins."""
        self._engine = engine
        self.tunnelling = False
        assert self._on_tunnel_opened is not None
        self._on_tunnel_opened(now)
        self._on_tunnel_opened = None

    def secured(self, facts: HandshakeFacts, now: float) -> None:
        """Note the end of the handshake; refuse a protocol that is not ours to speak."""
        http_engine = None if self._protocols is None else self._choose_protocol(self._protocols, facts, now)
        why = None
        if not facts.session_reused:
            why = "the server did not take the session" if self.session_offered else "no session was at hand"
            if self._session_unfit:
                why = "the session at hand was made for another server, or under other options"
        if self._limits.max_lifetime is not None and self._retires_at == math.inf:
            self._retires_at = now + self._limits.max_lifetime * (1 - LIFETIME_SPREAD * self._chance)
        self.info = ConnectionInfo(
            facts,
            id=self._id,
            addresses=self._addresses,
            opened_at=now,
            why_not_resumed=why,
            http_engine=http_engine,
            proxy=self.plan.proxy.url if self.plan.proxy is not None else None,
        )

    def _choose_protocol(self, protocols: Protocols, facts: HandshakeFacts, now: float) -> str:
        """Speak what ALPN has chosen; returns the name of the engine."""
        chosen = facts.alpn_protocol
        if chosen == "h2":
            engine = protocols.http2()
            self.shared = Multiplex(engine, protocols.http2_limits, now)
            return engine.name
        _require_http1(chosen, self.plan.key.identity.alpn_protocols)
        http = self._http = protocols.http1()
        return http.name

    def session_received(self, session: Session) -> None:
        """Keep a TLS session for the agent."""
        if len(self.sessions) < MAX_SESSIONS:
            self.sessions.append(session)

    def plaintext_received(self, data: bytes, now: float) -> None:
        """Pass plaintext to the HTTP engine; without an exchange nobody asked for it."""
        if self._raw is not None:
            self._raw.plaintext_received(data, now)
            return
        if self.shared is not None:
            try:
                self.shared.receive_data(data, now)
            except RequestError as error:
                self.error = self.error or error
                self.close("error")
            return
        exchange = self.exchange
        if exchange is None or self._http is None:
            # Whatever it says, it answers no request of ours: an answer to the next one would be the wrong one.
            self.dead = self.dead or "unsolicited_data"
            return
        exchange.now = now
        exchange.received = True
        self._http.receive_data(data, exchange)
        self._settle(exchange, now)

    def plaintext_ended(self, clean: bool, now: float) -> None:
        """Pass on the end of the plaintext."""
        self.dead = self.dead or "peer"
        if self._raw is not None:
            self._raw.plaintext_ended(clean, now)
            if self.exchange is not None:
                self._let_go(self.exchange)
        elif self.shared is not None:
            self.shared.receive_eof(clean, now)
        elif self.exchange is not None and self._http is not None:
            exchange = self.exchange
            exchange.now = now
            self._http.receive_eof(clean, exchange)
            self._settle(exchange, now)
            if self.exchange is exchange:
                raise ConnectionLost("the peer closed the connection before the response was complete")

    def _why_not_reusable(self, http: HTTP1Engine, now: float) -> str | None:
        """The one place that says whether another request may follow: None if so, else why not."""
        if not http.reusable():
            if not http.request_complete:
                return "early_response"
            return "unsolicited_data" if http.has_leftover else "connection_close"
        limits = self._limits
        if limits.max_requests is not None and self.requests >= limits.max_requests:
            return "max_requests"
        if now >= self._retires_at:
            return self._retirement
        hint = http.idle_hint
        self.idle_for = math.inf if hint is None else hint - limits.hint_margin
        return None if self.idle_for > 0 else "keep_alive_hint"

    def _settle(self, exchange: Exchange, now: float) -> None:
        """Let go of the exchange if it has ended; keep the connection only if it may be used again."""
        if exchange.ended_at is None:
            return
        if exchange.error is None:
            http = self._http
            assert http is not None
            if http.switched is not None:
                self._switch(exchange, http.switched, now)
                return
            self.exchange = None
            self.ended = exchange
            why_not = self._why_not_reusable(http, now)
            if why_not is not None and self.dead is None:
                self.close(why_not)
        else:
            self._fail(exchange.error, now)

    def _switch(self, exchange: Exchange, rest: bytes, now: float) -> None:
        """Carry another protocol from here on. The exchange stays, and with it the lease, until the connection ends."""
        self._raw = self.stream = RawStream()
        exchange.switched = self
        if rest:
            self.stream.plaintext_received(rest, now)

    def _let_go(self, exchange: Exchange) -> None:
        self.exchange = None
        self.ended = exchange


def _engine(
    secured: Secured,
    wall_offset: float,
    session: Session | None = None,
    trace: Callable[[str], object] | None = None,
) -> TLSEngine:
    identity = secured.identity
    return TLSEngine(
        cast("SecureContext", secured.context),
        verified_name=identity.verified_name,
        server_name=identity.server_name,
        alpn_protocols=identity.alpn_protocols,
        reject_unauthorized=identity.reject_unauthorized,
        check_identity=identity.check_server_identity or check_server_identity,
        session=session,
        trust=secured.trust,
        min_dh_size=identity.min_dh_size,
        pins=identity.pins,
        request_ocsp=identity.request_ocsp,
        psk_callback=identity.psk_callback,
        trace=trace,
        wall_offset=wall_offset,
    )


def _require_http1(chosen: str | None, offered: tuple[str, ...]) -> None:
    """Without a choice of the server HTTP/1.1 may be spoken only if it was offered, or nothing was (RFC 7301, 3.2)."""
    if chosen in _HTTP1 or (chosen is None and (not offered or not _HTTP1.isdisjoint(offered))):
        return
    what = f"chose {quoted(chosen)}" if chosen else f"chose none of {', '.join(map(quoted, offered))}"
    raise HandshakeError(
        f'the server {what} by ALPN, and a request needs HTTP: have alpn_protocols offer only "h2" and "http/1.1"',
        code="ERR_TLSAGENT_ALPN",
    )


def _os_code(error: OSError) -> str:
    import errno

    return errno.errorcode.get(error.errno or 0, "ECONNRESET")
