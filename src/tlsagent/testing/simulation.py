"""
The third driver: the agent's core over a simulated network, under simulated time.

No sockets, threads or sleeping. Both ends and everything between them live in one thread, and the clock moves only when
`advance` or `run_until_idle` moves it, so that a timeout of a minute is tested in a moment and the same way each time.

    sim = Simulation(max_sockets=1, timeouts=Timeouts(response=5))
    handle = sim.request("GET", "https://a.test/hello")
    sim.run_until_idle()
    assert handle.response.status == 200

Requests are answered by a `SimulatedServer`, bytes are carried as the `Network` says, and the other end of every
connection is a `Peer` that a test can make misbehave at any moment. TLS is real on both ends.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from tlsagent._body import Body
from tlsagent._core import AgentCore
from tlsagent._exchange import Awaiting, Exchange, Redirected, closed_error
from tlsagent._option_rules import UNSET
from tlsagent._options import AgentOptions, build
from tlsagent._pool import Close, Connect, Effect, Grant, Lease, Refuse
from tlsagent._response import Response, ResponseFacts
from tlsagent.errors import AgentClosed, LocalProtocolError, RequestError
from tlsagent.events import Closed, Freed, GoAway, Retried
from tlsagent.testing._dialling import Dialling, SimulatedDial
from tlsagent.testing._network import Link, Network, Pipe
from tlsagent.testing._peer import Peer, PeerRequest, Reply, SimulatedServer, echo, silent
from tlsagent.testing._peer_http2 import PeerStreams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tlsagent._body import Content
    from tlsagent._connection import Connection
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._http.messages import CallerFields
    from tlsagent._limits import Timeouts
    from tlsagent._multiplex import Multiplex
    from tlsagent._option_rules import Unset
    from tlsagent._options import ConnectionOptions
    from tlsagent._stats import AgentStats
    from tlsagent.events import Event

__all__ = [
    "Link",
    "Network",
    "Peer",
    "PeerRequest",
    "PeerStreams",
    "Pipe",
    "Reply",
    "SimulatedDial",
    "SimulatedRequest",
    "SimulatedServer",
    "SimulatedStream",
    "Simulation",
    "echo",
    "silent",
]

_LIVELOCK: Final = 100_000


class SimulatedStream(ResponseFacts):
    """A response whose body is read as it comes."""

    __slots__ = ("_sim",)

    def __init__(self, sim: Simulation, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._sim = sim

    @property
    def ended(self) -> bool:
        """Whether the body has come to its end."""
        return self._exchange.complete

    def read(self) -> bytes:
        """
        Return what has come of the body since the last call.

        Raises:
            RequestError: The body did not arrive whole.
        """
        exchange = self._exchange
        data = b"".join(exchange.take_chunks(self._sim.now))
        if exchange.stream is not None:
            self._sim._credit(exchange)
        elif exchange.lease is not None:
            self._sim.core.watch(exchange.lease.connection)
        if not data and exchange.error is not None:
            raise exchange.error
        return data


class SimulatedRequest:
    """
    A request under way, or what became of it.

    Attributes:
        exchange: The core's.
        response: The response, once the caller has it.
        error: What the caller gets in its place.
        cancelled: Whether `cancel` ended it.
    """

    __slots__ = ("_pieces", "_sim", "cancelled", "error", "exchange", "response")

    def __init__(self, sim: Simulation, exchange: Exchange) -> None:
        self._sim = sim
        self._pieces: Iterator[bytes | memoryview] | None = None
        self.exchange = exchange
        self.response: Any = None
        self.error: BaseException | None = None
        self.cancelled = False

    @property
    def done(self) -> bool:
        """Whether the caller waits no more."""
        return self.cancelled or self.response is not None or self.error is not None

    @property
    def uploading(self) -> bool:
        """Whether its body is being sent, and still wanted."""
        exchange = self.exchange
        wanted = exchange.lease is not None and exchange.error is None and not exchange.upload_stopped
        return self._pieces is not None and wanted

    def cancel(self) -> None:
        """Want it no more, in whatever state it is; a response half read is dropped too."""
        if self.response is None and self.error is None:
            self.cancelled = True
        self._sim._give_up(self)

    def __repr__(self) -> str:
        outcome = "cancelled" if self.cancelled else self.response or self.error or self.exchange.phase
        return f"<SimulatedRequest {self.exchange.head!r}: {outcome!r}>"


class Simulation:
    """
    An agent and the world around it.

    Args:
        options: `AgentOptions`, or its fields as keywords, as for `Agent`. The server's root is trusted unless `ca`
            says otherwise.
        server: Who answers; `SimulatedServer()` echoes.
        network: Its properties.
        watch_idle: Whether idle connections are read, as asyncio does; if not, they are looked at before they are used
            again, as by threads.

    Attributes:
        now: Seconds on the simulated clock, from 0.
        wall: The time since the epoch at 0, for certificates and sessions; `suspend` moves it.
        chance: The random number of the next connections, from 0 up to 1.
        core: The `AgentCore`.
        dials: Attempts before there is a connection.
        links: Connections that the client has not closed.
        peers: The other ends of all connections so far.
    """

    def __init__(
        self,
        options: AgentOptions | None = None,
        *,
        server: SimulatedServer | None = None,
        network: Network | None = None,
        watch_idle: bool = True,
        **keywords: Any,
    ) -> None:
        self.server = server or SimulatedServer()
        self.network = network or Network()
        said = build(AgentOptions, keywords)
        if options is not None:
            said = said.merged_over(options)
        if said.ca is UNSET and not said.secure_context:
            said = AgentOptions(ca=self.server.ca_pem).merged_over(said)
        self.core = self._make_core(said)
        self.now = 0.0
        self.wall = time.time()
        self.chance = 0.0
        self._dialling = Dialling(self)
        self.dials = self._dialling.dials
        self.links: list[Link] = []
        self.peers: list[Peer] = []
        self._closing: list[Link] = []  # closed by the client, but the peer does not know all of it yet
        self._watch_idle = watch_idle
        self._waiting: dict[Exchange, SimulatedRequest] = {}
        self._effects: deque[Effect] = deque()
        self._carrying_out = False

    def _make_core(self, said: AgentOptions) -> AgentCore:
        return AgentCore(said)

    # --- Requests -----------------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: CallerFields | None = None,
        content: Content | None = None,
        options: ConnectionOptions | Mapping[str, Any] | None = None,
        timeouts: Timeouts | float | None = None,
        trailers: CallerFields | None = None,
        retry: bool | Unset = UNSET,
        expect_continue: bool = False,
        trace: Callable[[Event], object] | None = None,
        stream: bool = False,
    ) -> SimulatedRequest:
        """
        Begin a request, with the arguments of `Agent.request`; its outcome will be in what is returned.

        Args:
            stream: Be content with the head: the response is a `SimulatedStream`.

        Raises:
            LocalProtocolError, OptionError: It cannot be sent at all.
        """
        exchange = self.core.exchange(
            method,
            url,
            self.now,
            headers=headers,
            content=content,
            options=options,
            timeouts=timeouts,
            trailers=trailers,
            retry=retry,
            trace=trace,
            expect_continue=expect_continue,
        )
        if isinstance(exchange.body, Body) and exchange.body.asynchronous:
            raise LocalProtocolError("content is an asynchronous iterable: nothing awaits it in a simulation")
        if stream:
            exchange.awaiting = Awaiting.HEAD
        handle = SimulatedRequest(self, exchange)
        self._waiting[exchange] = handle
        self._attempt(handle)
        return handle

    def _attempt(self, handle: SimulatedRequest) -> None:
        exchange = handle.exchange
        while self.core.abandoned:
            self._drop(self.core.abandoned.popleft())
        if self.wall > self.core.awake_until:
            self.core.slept(self.now, self.wall + self.now)
        try:
            while isinstance(self.core.acquire(exchange, self.now), Lease):
                if self._begin(handle):
                    break
        except AgentClosed as error:
            exchange.fail(error, self.now)
        self._carry_out()
        self._look(handle)

    def _begin(self, handle: SimulatedRequest) -> bool:
        """Start on the granted connection; returns False if it was found dead and given back."""
        exchange = handle.exchange
        connection: Connection = exchange.lease.connection
        link: Link = connection.transport
        if exchange.lease.may_be_stale:
            connection.check_idle(self.now)
            link.drain(self.now)
            self.core.keep_sessions(connection)
            if connection.refuses(self.now) is not None:
                self.core.give_back(exchange, self.now)
                self._carry_out()
                return False
        if connection.shared is not None and self.core.needs_other(exchange, self.now):
            self._carry_out()
            return False
        self.core.start(exchange, self.now)
        if self.core.listening(exchange):
            self.core.tell_started(exchange)
        self.core.watch(connection)
        link.flush(self.now)
        if isinstance(exchange.body, Body):
            handle._pieces = exchange.body.pieces()
            self._send_body(handle, link)
        if connection.ended is not None or (connection.shared is not None and connection.shared.touched):
            self._advance(link)
        return True

    def _send_body(self, handle: SimulatedRequest, link: Link) -> None:
        """Send pieces of the body for as long as the network, and the peer's windows, take them."""
        exchange, connection = handle.exchange, link.connection
        if exchange.upload_stopped:
            handle._pieces = None
        while handle._pieces is not None and link.writable and not (exchange.holding or exchange.blocked):
            try:
                piece = next(handle._pieces, None)
            except Exception as error:  # noqa: BLE001 - the caller's iterator; its error is the caller's
                handle.error = error
                self._give_up(handle)
                return
            if piece is None:
                connection.end_body(exchange, self.now)
            elif connection.send_body(exchange, piece, self.now):
                link.flush(self.now)
                continue
            handle._pieces = None
            self._advance(link)
            self._look(handle)
        if handle._pieces is not None:
            self.core.watch(connection)

    def _look(self, handle: SimulatedRequest) -> None:
        """See whether the caller has what it waits for; repeat the request where that is safe."""
        exchange = handle.exchange
        if handle.done or not exchange.ready or handle.uploading:
            return
        if exchange.error is not None:
            handle._pieces = None
            if not exchange.may_retry:
                handle.error = exchange.error
                self._give_up(handle)
                return
            if self.core.listening(exchange) and not isinstance(exchange.error, Redirected):
                self.core.emit(Retried(exchange.plan.key.digest, cast("RequestError", exchange.error)), exchange)
            exchange.start_over()
            self._attempt(handle)
        elif exchange.awaiting is Awaiting.END:
            handle.response = Response(exchange)
        else:
            exchange.awaiting = Awaiting.BODY
            handle.response = SimulatedStream(self, exchange)
        if handle.done:
            handle._pieces = None
            self._waiting.pop(exchange, None)

    def _give_up(self, handle: SimulatedRequest) -> None:
        """Leave nothing behind: no ticket, no lease, no connection with half an exchange on it."""
        exchange = handle.exchange
        self._waiting.pop(exchange, None)
        handle._pieces = None
        self.core.cancel(exchange, self.now)
        self._drop(exchange)
        self._carry_out()

    def _drop(self, exchange: Exchange) -> None:
        """Give up an exchange where it is carried, or what was not read of one that has ended."""
        if exchange.stream is not None:
            shared: Connection = exchange.stream.connection
            shared.drop(exchange, self.now, "dropped")
            self._advance(shared.transport)
        elif exchange.lease is not None:
            connection: Connection = exchange.lease.connection
            connection.drop(exchange, self.now, "dropped")
            self._settle(connection, None)

    def _credit(self, exchange: Exchange) -> None:
        """Let the peer of a shared connection send more."""
        connection: Connection = exchange.stream.connection
        connection.credit(exchange)
        if connection.dead is None:
            connection.transport.flush(self.now)
            self.core.watch(connection)

    # --- Carrying out what the core asks for --------------------------------------------------------------------------

    def _advance(self, link: Link) -> None:
        """Carry a connection's news over to the core, wake whoever waits for them."""
        connection = link.connection
        if connection.shared is not None and link.dial is None:
            self._advance_shared(link, connection.shared)
            return
        link.flush(self.now)
        exchange = connection.exchange or connection.ended
        self.core.keep_sessions(connection, exchange)
        if link.dial is not None:
            if connection.info is not None or connection.dead is not None:
                self._dialling.handshake_over(link, link.dial)
            return
        if connection.ended is not None or connection.dead is not None:
            self._settle(connection, exchange)
        elif exchange is not None:
            self.core.watch(connection)
        self._wake(exchange, link)

    def _advance_shared(self, link: Link, shared: Multiplex) -> None:
        connection = link.connection
        touched = shared.take_touched()
        self.core.keep_sessions(connection, touched[0] if touched else None)
        link.flush(self.now)
        self._settle_shared(connection, shared)
        for exchange in touched:
            self._wake(exchange, link)
            if exchange.switched is not None:
                exchange.switched.tell()

    def _wake(self, exchange: Exchange | None, link: Link) -> None:
        """Let who waits for an exchange look at it."""
        handle = self._waiting.get(cast("Exchange", exchange))
        if handle is not None:
            if handle.exchange.nudged:
                handle.exchange.nudged = False
                self._send_body(handle, link)
            self._look(handle)

    def _settle(self, connection: Connection, exchange: Exchange | None) -> None:
        freed = connection.ended is not None and connection.dead is None
        self.core.settle(connection, self.now)
        if freed and self.core.listening(exchange):
            self.core.emit(Freed(connection.plan.key.digest, cast("ConnectionInfo", connection.info)), exchange)
        self._carry_out()

    def _settle_shared(self, connection: Connection, shared: Multiplex) -> None:
        news = connection.take_news(self.now)
        if news is not None:
            self.core.settle_shared(connection, news, self.now)
            self._tell(connection, shared, news.ended)
        self.core.watch(connection)
        self._carry_out()

    def _tell(self, connection: Connection, shared: Multiplex, ended: list[Exchange]) -> None:
        key, info = connection.plan.key.digest, cast("ConnectionInfo", connection.info)
        if shared.farewell is not None:
            farewell, shared.farewell = shared.farewell, None
            self.core.emit(GoAway(key, info, *farewell))
        for exchange in ended:
            self.core.emit(Freed(key, info), exchange)

    def _carry_out(self) -> None:
        """Carry out the effects in their order; those that follow from one of them come after the rest."""
        self._effects += self.core.effects()
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            while self._effects:
                self._execute(self._effects.popleft())
                self._effects += self.core.effects()
        finally:
            self._carrying_out = False

    def _execute(self, effect: Effect) -> None:
        if isinstance(effect, Grant):
            exchange: Exchange = effect.ticket.user
            exchange.ticket = None
            exchange.lease = effect.lease
            handle = self._waiting[exchange]
            if not self._begin(handle):
                self._attempt(handle)
        elif isinstance(effect, Refuse):
            exchange = effect.ticket.user
            exchange.ticket = None
            exchange.fail(effect.error, self.now)
            self._look(self._waiting[exchange])
        elif isinstance(effect, Connect):
            self._dialling.begin(effect.attempt.user)
        else:
            assert isinstance(effect, Close)
            self._shut(effect.connection, effect.reason)

    def _shut(self, connection: Connection, reason: str) -> None:
        if not self.core.closed(connection, reason):
            return
        if connection.dead is None:
            connection.close(reason)
        link: Link = connection.transport
        link.close(self.now)
        self.links.remove(link)
        self._closing.append(link)
        if connection.info is not None and self.core.listening():
            self.core.emit(Closed(connection.plan.key.digest, connection.info, reason))

    # --- Time ---------------------------------------------------------------------------------------------------------

    def suspend(self, seconds: float) -> None:
        """Let the machine sleep: the wall clock goes on, the monotonic one, and with it every timer, stands still."""
        self.wall += seconds

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that falls into it."""
        until = self.now + seconds
        self._run_due()
        while (at := min(self._next_arrival(), self._next_deadline())) <= until:
            self.now = max(self.now, at)
            self._run_due()
        self.now = until

    def run_until_idle(self) -> None:
        """
        Let pass what time the network needs, until nothing is under way.

        Deadlines that fall into that time strike; those beyond it do not, nor does a peer's silence end.
        """
        self._run_due()
        while (at := self._next_arrival()) < math.inf:
            self.now = max(self.now, min(at, self._next_deadline()))
            self._run_due()

    def _next_arrival(self) -> float:
        """Return when the network or a peer has something to do by itself."""
        times = [self._dialling.next_due()]
        times += (link.up.next_arrival() for link in self._closing)
        for link in self.links:
            times += (link.up.next_arrival(), link.peer.next_deadline())
            if self._reads(link):
                times.append(link.down.next_arrival())
        return min(times)

    def _next_deadline(self) -> float:
        times = [self.core.next_deadline(), self._dialling.next_deadline()]
        times += (exchange.total_at for exchange in self._waiting if exchange.ticket is not None)
        return min(times)

    def _reads(self, link: Link) -> bool:
        connection = link.connection
        if connection.reading_paused:
            return False
        shared = connection.shared
        active = connection.exchange is not None or (shared is not None and shared.busy)
        return self._watch_idle or link.dial is not None or active

    def _run_due(self) -> None:
        """Do all that is due now: first what arrives, then what is overdue."""
        for _ in range(_LIVELOCK):
            if not (self._carry() or self._time_out()):
                return
        raise AssertionError("the simulation goes round in circles")

    def _carry(self) -> bool:
        moved = self._dialling.carry_on()
        for link in list(self.links):
            if link in self.links:
                moved = self._carry_link(link) or moved
        for link in list(self._closing):
            moved = link.carry_up(self.now) or moved
            if link.peer.client_ended in ("eof", "reset"):
                self._closing.remove(link)
        return moved

    def _carry_link(self, link: Link) -> bool:
        moved = link.carry_up(self.now)
        for handle in [handle for handle in self._waiting.values() if handle.uploading]:
            if handle.exchange.lease.connection is link.connection:
                self._send_body(handle, link)
        if not link.closed and self._reads(link) and (item := link.down.take(self.now)) is not None:
            link.feed(item, self.now)
            self._advance(link)
            moved = True
        return moved

    def _time_out(self) -> bool:
        if self._next_deadline() > self.now:
            return False
        self._dialling.time_out()
        for exchange, handle in list(self._waiting.items()):
            if exchange.ticket is not None and exchange.total_at <= self.now:
                exchange.fail(exchange.total_timeout(), self.now)
                self.core.cancel(exchange, self.now)
                self._look(handle)
        for connection in self.core.handle_timeout(self.now):
            self._advance(connection.transport)
        self._carry_out()
        return True

    # --- Life of the agent --------------------------------------------------------------------------------------------

    def preconnect(self, origin: str, count: int = 1) -> int:
        """Begin up to `count` connections that nobody waits for; returns how many the limits allowed."""
        plan = self.core.origin_plan(origin)
        placed = 0
        while placed < count and self.core.preconnect(plan, self.now) is not None:
            placed += 1
        self._carry_out()
        return placed

    def close_idle(self) -> None:
        """Close all idle connections."""
        self.core.pool.close_idle(self.now)
        self._carry_out()

    def close(self, drain: float = 5.0) -> None:
        """Refuse what waits, let active requests finish for up to `drain` simulated seconds, close everything."""
        self._refuse()
        until = self.now + drain
        while self.core.busy and self.now < until:
            self.advance(max(0.0, min(min(self._next_arrival(), self._next_deadline()), until) - self.now))
        self.destroy()

    def destroy(self) -> None:
        """Close everything at once; waiting and active requests fail with `AgentClosed`."""
        self._refuse()
        for connection in self.core.living():
            connection.fail(closed_error(), self.now, "agent_closed")
            self._advance(connection.transport)
            self._shut(connection, "agent_closed")

    def _refuse(self) -> None:
        self.core.pool.close(self.now)
        self._carry_out()
        self._dialling.give_up()

    def stats(self) -> AgentStats:
        """Return all counters, as `Agent.stats`."""
        return self.core.stats()

    def on(self, kind: type[Any], callback: Callable[[Any], object]) -> Callable[[], None]:
        """Call `callback` with each event of class `kind`; returns the function that ends the subscription."""
        return self.core.on(kind, callback)
