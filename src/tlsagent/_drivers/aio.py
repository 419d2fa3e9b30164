"""
`AsyncAgent`: the agent on asyncio (and uvloop).

Moves bytes, waits, and carries out what the core asks for. Every socket is an asyncio `BufferedProtocol` that reads
into one buffer per agent: asyncio fills and hands over the buffer in one go, so no two sockets use it at once. One
timer handle serves the whole agent.

Everything here runs in one event loop, so nothing is locked. What a task leaves behind when it is cancelled is decided
in one place, `_give_up`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast, overload

from tlsagent._body import Body, Content
from tlsagent._core import AgentCore, check_drain
from tlsagent._drivers import fork
from tlsagent._drivers.aio_dialling import open_connection
from tlsagent._drivers.aio_raw import AsyncRawConnection, RawTransport, StreamCarrier
from tlsagent._drivers.aio_response import AsyncStreamResponse, Streaming
from tlsagent._drivers.aio_socket import SocketProtocol, wake
from tlsagent._drivers.aio_upload import send_body
from tlsagent._exchange import Awaiting, Exchange, Redirected, closed_error
from tlsagent._multiplex import Stream
from tlsagent._option_rules import UNSET, Unset
from tlsagent._options import AgentOptions, ConnectionOptions, build, said_to_agent
from tlsagent._pool import Close, Connect, Effect, Grant, Lease, Refuse
from tlsagent._raw import RawStream
from tlsagent._response import Response
from tlsagent.errors import AgentClosed, ConnectionLost, RequestError, TLSAgentError, WrongEventLoop
from tlsagent.events import Closed, ConnectFailed, Event, Freed, GoAway, Retried

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self, Unpack

    from tlsagent._connection import Connection, News
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._dial import Dial
    from tlsagent._http.messages import CallerFields
    from tlsagent._limits import Timeouts
    from tlsagent._multiplex import Multiplex
    from tlsagent._options import AgentOptionsDict
    from tlsagent._stats import AgentStats

_E = TypeVar("_E", bound=Event)

_READ_BUFFER: Final = 262_144


class AsyncAgent:
    """
    A connection-pooling HTTPS agent for asyncio.

    Takes an `AgentOptions`, or its fields as keywords. Belongs to the event loop that it is first used in; once that is
    closed, to the next one it is used in, where it begins without connections. Used in one while another is still open,
    it raises `WrongEventLoop`.

    Raises:
        OptionError: An option is wrong; nothing was opened.
    """

    def __init__(self, options: AgentOptions | None = None, **keywords: Unpack[AgentOptionsDict]) -> None:
        self._core = AgentCore(said_to_agent(options, keywords))
        self._loop: asyncio.AbstractEventLoop = cast("asyncio.AbstractEventLoop", None)
        free_socket_timeout = cast("float | None", self._core.options.free_socket_timeout)
        self._free_socket_timeout = math.inf if free_socket_timeout is None else free_socket_timeout
        self._buffer = memoryview(bytearray(_READ_BUFFER))
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._dialling: set[asyncio.Task[Any]] = set()
        self._quiet: asyncio.Event | None = None
        self._closed = False
        self._proactor = False
        fork.watch(self)

    def forked(self) -> None:
        """Begin anew in the child of a fork, which owns none of its parent's connections. Not for users."""
        # The parent's loop is not to be told of anything: a step of it here would change what the parent's polls.
        fork.keep((self._core.pool, self._loop, self._timer, self._dialling))
        for connection in self._core.living():
            fork.keep((connection, connection.exchange))
        self._forget(fork.inherited_error())
        self._core.forked()

    def _forget(self, error: TLSAgentError) -> list[Connection]:
        """Begin anew, without a loop; returns the connections of the former one."""
        self._loop = cast("asyncio.AbstractEventLoop", None)
        self._timer, self._timer_at = None, math.inf
        self._dialling = set()
        self._quiet = None
        return self._core.forget(error, time.monotonic())

    @property
    def options(self) -> AgentOptions:
        """The options as resolved over the library's defaults."""
        return self._core.options

    # --- Requests -----------------------------------------------------------------------------------------------------

    async def request(
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
        early_data: bool | Unset = UNSET,
        expect_continue: bool = False,
        trace: Callable[[Event], object] | None = None,
    ) -> Response:
        """
        Send a request and return the response with its whole body.

        Args:
            method: Sent in upper case, as Node does.
            url: An https URL; its host is whom we talk to.
            headers: A mapping or a list of pairs.
            content: bytes, str, a file, or an iterable of bytes, asynchronous or not. A file is read in the event loop.
            options: `ConnectionOptions`, or a mapping of them, laid over the agent's.
            timeouts: `Timeouts` laid over the agent's; a number means `total`.
            trailers: Fields to send after the body, which is then sent chunked.
            retry: False never sends twice.
            expect_continue: Ask the server before the body is sent (RFC 9110, 10.1.1): it follows a 100 (Continue), or
                the wait of `Http1Options.expect_continue_wait`. A final response in its place, such as 417, is
                returned, and nothing of the body is sent. Needs content.
            trace: Called with the events of this request: Reused, SessionTicket, Retried, Freed. Attempts and
                connections are the agent's, and `on` tells of them.

        Raises:
            RequestError: Exactly one for a request that failed.
            AgentClosed: The agent was closed.
        """
        if early_data is not UNSET:
            _not_yet(early_data)
        if asyncio.get_running_loop() is not self._loop:
            self._bind()
        exchange = self._core.exchange(
            method, url, time.monotonic(), headers, content, options, timeouts, trailers, retry, trace, expect_continue
        )
        await self._perform(exchange)
        return Response(exchange)

    async def open_stream(
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
        early_data: bool | Unset = UNSET,
        expect_continue: bool = False,
        trace: Callable[[Event], object] | None = None,
    ) -> AsyncStreamResponse:
        """Send a request and return the response as soon as its head is here; the caller must read or close it."""
        _not_yet(early_data)
        self._bind()
        exchange = self._core.exchange(
            method, url, time.monotonic(), headers, content, options, timeouts, trailers, retry, trace, expect_continue
        )
        exchange.awaiting = Awaiting.HEAD
        await self._perform(exchange)
        return AsyncStreamResponse(self, exchange)

    def stream(
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
        early_data: bool | Unset = UNSET,
        expect_continue: bool = False,
        trace: Callable[[Event], object] | None = None,
    ) -> AbstractAsyncContextManager[AsyncStreamResponse]:
        """`open_stream` as a context manager, which closes the response."""
        return Streaming(
            functools.partial(
                self.open_stream,
                method,
                url,
                headers=headers,
                content=content,
                options=options,
                timeouts=timeouts,
                trailers=trailers,
                retry=retry,
                early_data=early_data,
                expect_continue=expect_continue,
                trace=trace,
            )
        )

    async def _perform(self, exchange: Exchange) -> None:
        """Send the request, again if that is safe, until what the caller waits for is here."""
        try:
            while True:
                if not self._started(exchange, exchange.now if exchange.attempts == 0 else time.monotonic()):
                    await self._wait_in_queue(exchange)
                if exchange.body is not None and isinstance(exchange.body, Body) and exchange.lease is not None:
                    await send_body(self, exchange, exchange.body)
                while not exchange.ready:
                    # `_wait`, without a coroutine of its own: this is the one wait of a warm request.
                    waker = exchange.waker = self._loop.create_future()
                    await waker
                    exchange.waker = None
                error = exchange.error
                if error is None:
                    return
                if not exchange.may_retry:
                    raise error
                if self._core.listening(exchange) and not isinstance(exchange.error, Redirected):
                    self._core.emit(Retried(exchange.plan.key.digest, cast("RequestError", error)), exchange)
                exchange.start_over()
        except BaseException:
            exchange.waker = None
            self._give_up(exchange)
            raise

    def _started(self, exchange: Exchange, now: float) -> bool:
        """Start on an idle connection if there is one; else take a place in the queue."""
        if self._core.abandoned:
            self._drop_abandoned()
        if time.time() - now > self._core.awake_until:
            self._core.slept(now, time.time())
            self._carry_out(now)
        while isinstance(self._core.acquire(exchange, now), Lease):
            if self._begin(exchange, now):
                return True
        self._carry_out(now)
        return False

    async def _wait_in_queue(self, exchange: Exchange) -> None:
        total = exchange.total_at
        handle = (
            None if total == math.inf else self._loop.call_later(total - time.monotonic(), self._total_passed, exchange)
        )
        try:
            while exchange.started_at is None and exchange.error is None:
                await self._wait(exchange)
        finally:
            if handle is not None:
                handle.cancel()

    def _total_passed(self, exchange: Exchange) -> None:
        if exchange.started_at is None and exchange.error is None:
            now = time.monotonic()
            exchange.fail(exchange.total_timeout(), now)
            self._core.cancel(exchange, now)
            wake(exchange)

    async def _wait(self, exchange: Exchange) -> None:
        waker = exchange.waker = self._loop.create_future()
        try:
            await waker
        finally:
            exchange.waker = None

    def _take_chunks(self, exchange: Exchange) -> list[bytes]:
        paused = exchange.paused
        chunks = exchange.take_chunks(time.monotonic())
        if exchange.stream is not None:
            self._credit(exchange)
        elif paused and not exchange.paused and exchange.lease is not None:
            connection: Connection = exchange.lease.connection
            self._core.watch(connection)
            connection.transport.resume_reading()
            self._arm(time.monotonic())
        return chunks

    def _credit(self, exchange: Exchange) -> None:
        """Let the peer of a shared connection send more."""
        connection: Connection = exchange.stream.connection
        connection.credit(exchange)
        protocol: SocketProtocol | None = connection.transport
        if connection.dead is None and protocol is not None:
            protocol.flush_soon()
            if self._core.watch(connection) < self._timer_at:
                self._arm(time.monotonic())

    def _give_up(self, exchange: Exchange) -> None:
        """Leave nothing behind: no ticket, no lease, no connection with half an exchange on it."""
        if exchange.ticket is not None:
            now = time.monotonic()
            self._core.cancel(exchange, now)
            self._carry_out(now)
        self._drop(exchange)

    def _drop(self, exchange: Exchange) -> None:
        now = time.monotonic()
        if exchange.stream is not None:
            shared: Connection = exchange.stream.connection
            shared.drop(exchange, now, "dropped")
            if shared.transport is not None:
                shared.transport.advance(now)
        elif exchange.lease is not None:
            connection: Connection = exchange.lease.connection
            connection.drop(exchange, now, "dropped")
            self._settle(connection, None, now)
            wake(exchange)

    def _hand_over(self, connection: Connection | Stream, exchange: Exchange) -> AsyncRawConnection:
        """Give the caller what the response has switched; its lease stays out until it is closed."""
        on_drop = functools.partial(self._abandon, exchange)
        if isinstance(connection, Stream):
            return self._hand_over_stream(connection, on_drop)
        protocol: SocketProtocol = connection.transport
        raw = AsyncRawConnection(protocol, connection.take_over(), self._hang_up, on_drop)
        protocol.raw = raw.arrivals
        protocol.resume_reading()
        return raw

    def _hand_over_stream(self, stream: Stream, on_drop: Callable[[], object]) -> AsyncRawConnection:
        carrier = StreamCarrier(stream.connection.transport, stream)
        raw = AsyncRawConnection(carrier, stream.take_over(), self._hang_up_stream, on_drop)
        arrivals = raw.arrivals

        def advanced() -> None:
            carrier.advanced()
            arrivals.advanced()

        if not stream.over:
            stream.listener = advanced
        return raw

    def _hang_up_stream(self, stream: Stream, reason: str) -> None:
        connection = stream.connection
        if connection.dead is None:
            stream.hang_up(reason)
            connection.transport.advance(time.monotonic())

    def _hang_up(self, connection: Connection, reason: str) -> None:
        connection.hang_up(reason)
        self._settle(connection, None, time.monotonic())

    def _abandon(self, exchange: Exchange) -> None:
        """Take over an exchange from a finaliser, which may run anywhere."""
        self._core.abandoned.append(exchange)
        if self._loop is not None and self._loop.is_running():
            with contextlib.suppress(RuntimeError):  # another thread has just closed it
                self._loop.call_soon_threadsafe(self._drop_abandoned)

    def _drop_abandoned(self) -> None:
        while self._core.abandoned:
            self._drop(self._core.abandoned.popleft())

    # --- Carrying out what the core asks for --------------------------------------------------------------------------

    def _begin(self, exchange: Exchange, now: float) -> bool:
        """Start on the granted connection; returns False if it was found dead and given back."""
        connection: Connection = exchange.lease.connection
        protocol: SocketProtocol = connection.transport
        if exchange.lease.may_be_stale:
            connection.check_idle(now)
            if protocol.peek():
                protocol.drain(now)
            if connection.dead is not None or (connection.shared is not None and connection.refuses(now) is not None):
                self._core.give_back(exchange, now)
                self._carry_out(now)
                return False
        shared = connection.shared
        if shared is not None and exchange.head.upgrade and self._core.needs_other(exchange, now):
            self._carry_out(now)
            return False
        self._core.start(exchange, now)
        if self._core.listeners or exchange.trace is not None:
            self._core.tell_started(exchange)
        alone = shared is None or shared.carried == 1
        if alone:
            protocol.flush()
        else:
            protocol.flush_soon()
        if connection.ended is not None or (shared is not None and shared.touched):
            protocol.advance(now)
        elif (alone or exchange.deadline < self._timer_at) and self._core.watch(connection) < self._timer_at:
            self._arm(now)
        return True

    def _begin_or_queue(self, exchange: Exchange, now: float) -> None:
        while not self._begin(exchange, now):
            try:
                if not isinstance(self._core.acquire(exchange, now), Lease):
                    return
            except AgentClosed as error:
                exchange.fail(error, now)
                break
        wake(exchange)

    def _settle(self, connection: Connection, exchange: Exchange | None, now: float) -> None:
        core = self._core
        freed = connection.ended is not None and connection.dead is None
        core.settle(connection, now)
        if freed and (core.listeners or (exchange is not None and exchange.trace is not None)):
            core.emit(Freed(connection.plan.key.digest, cast("ConnectionInfo", connection.info)), exchange)
        if core.pool.outstanding or self._quiet is not None:
            self._carry_out(now)
        elif now + self._free_socket_timeout < self._timer_at or now + connection.idle_for < self._timer_at:
            self._arm(now)

    def _settle_shared(self, connection: Connection, shared: Multiplex, now: float) -> None:
        core = self._core
        news = connection.take_news(now)
        if news is not None:
            core.settle_shared(connection, news, now)
            if core.listeners or any(map(core.listening, news.ended)):
                self._tell(connection, shared, news)
        if core.watch(connection) < self._timer_at:
            self._arm(now)
        if core.pool.outstanding or self._quiet is not None:
            self._carry_out(now)
        elif now + self._free_socket_timeout < self._timer_at:
            self._arm(now)

    def _tell(self, connection: Connection, shared: Multiplex, news: News) -> None:
        key, info = connection.plan.key.digest, cast("ConnectionInfo", connection.info)
        if shared.farewell is not None:
            farewell, shared.farewell = shared.farewell, None
            self._core.emit(GoAway(key, info, *farewell))
        if news.dead is None:
            for exchange in news.ended:
                self._core.emit(Freed(key, info), exchange)

    def _carry_out(self, now: float) -> None:
        while effects := self._core.effects():
            for effect in effects:
                self._execute(effect, now)
        self._arm(now)
        if self._quiet is not None and not self._core.busy:
            self._quiet.set()

    def _execute(self, effect: Effect, now: float) -> None:
        if type(effect) is Grant:
            exchange: Exchange = effect.ticket.user
            exchange.ticket = None
            exchange.lease = effect.lease
            if exchange.waker is not None and exchange.waker.cancelled():
                self._core.give_back(exchange, now)  # its task was cancelled in this very turn
            else:
                self._begin_or_queue(exchange, now)
        elif type(effect) is Refuse:
            exchange = effect.ticket.user
            exchange.ticket = None
            exchange.fail(effect.error, now)
            wake(exchange)
        elif type(effect) is Connect:
            task = self._loop.create_task(self._dial(effect.attempt.user))
            self._dialling.add(task)
            task.add_done_callback(functools.partial(self._dial_ended, effect.attempt.user))
        elif type(effect) is Close:
            self._shut(effect.connection, effect.reason)

    def _shut(self, connection: Connection, reason: str) -> None:
        if self._core.closed(connection, reason):
            connection.transport.shut(connection, reason)
            if connection.info is not None and self._core.listening():
                self._core.emit(Closed(connection.plan.key.digest, connection.info, reason))

    def _arm(self, now: float) -> None:
        due = self._core.next_deadline()
        if due < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self._loop.call_later(due - now, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = time.monotonic()
        for connection in self._core.handle_timeout(now):
            connection.transport.advance(now)
        self._carry_out(now)

    # --- Dialling -----------------------------------------------------------------------------------------------------

    async def _dial(self, dial: Dial) -> None:
        """Carry out one attempt of the pool's and report how it ended."""
        connection: Connection | None = None
        error: BaseException | None = None
        try:
            connection = await open_connection(self, dial)
        except asyncio.CancelledError:
            error = closed_error()
        except Exception as exc:  # noqa: BLE001 - whatever a hook raised becomes the request's error
            error = dial.describe(exc)
        now = time.monotonic()
        if connection is not None:
            self._core.connected(dial, connection, now)
        else:
            self._core.dial_failed(dial, error, now)
            if self._core.listening() and not isinstance(error, Redirected):
                self._core.emit(ConnectFailed(dial.plan.key.digest, cast("BaseException", error)))
        self._carry_out(now)
        if connection is not None:
            connection.transport.flush()  # the end of the handshake, if no request took it along
        if dial.on_done is not None:
            dial.on_done(connection, error)

    def _dial_ended(self, dial: Dial, task: asyncio.Task[None]) -> None:
        self._dialling.discard(task)
        if task.cancelled() and dial.attempt is not None and dial.attempt.user is dial:
            # Before its first step, or it would have said so itself; in its last one, by an event callback, it has.
            now = time.monotonic()
            self._core.dial_failed(dial, closed_error(), now)
            self._carry_out(now)
            if dial.on_done is not None:
                dial.on_done(None, closed_error())

    # --- Life of the agent --------------------------------------------------------------------------------------------

    async def preconnect(self, origin: str, count: int = 1) -> list[Literal["full", "resumed"]]:
        """
        Open idle connections to the origin of a URL, as many as the limits allow, and tell of each whether its
        handshake was resumed.

        Raises:
            RequestError: An attempt failed; the others are kept.
        """
        self._bind()
        plan = self._core.origin_plan(origin, count)
        waiting = []
        for _ in range(count):
            dial = self._core.preconnect(plan, time.monotonic())
            if dial is None:
                break
            done: asyncio.Future[Connection] = self._loop.create_future()
            dial.on_done = _future_setter(done)
            waiting.append(done)
        self._carry_out(time.monotonic())
        connections = await asyncio.gather(*waiting)
        return ["resumed" if c.info is not None and c.info.session_reused else "full" for c in connections]

    @overload
    async def connect(
        self,
        host: str,
        port: int,
        *,
        protocol_factory: None = None,
        options: ConnectionOptions | Mapping[str, Any] | None = None,
        timeouts: Timeouts | float | None = None,
        **keywords: Any,
    ) -> AsyncRawConnection: ...
    @overload
    async def connect(
        self,
        host: str,
        port: int,
        *,
        protocol_factory: Callable[[], asyncio.Protocol],
        options: ConnectionOptions | Mapping[str, Any] | None = None,
        timeouts: Timeouts | float | None = None,
        **keywords: Any,
    ) -> tuple[asyncio.Transport, asyncio.Protocol]: ...
    async def connect(
        self,
        host: str,
        port: int,
        *,
        protocol_factory: Callable[[], asyncio.Protocol] | None = None,
        options: ConnectionOptions | Mapping[str, Any] | None = None,
        timeouts: Timeouts | float | None = None,
        **keywords: Any,
    ) -> AsyncRawConnection | tuple[asyncio.Transport, asyncio.Protocol]:
        """
        Open a TLS connection that carries no HTTP, from the agent's contexts and sessions. It is outside the pool and
        its limits.

        Args:
            host, port: Whom to talk to; the name is verified.
            protocol_factory: Gives (transport, protocol), as asyncio's `create_connection`.
            timeouts: Of these, lookup, connect and handshake count.
            options: `ConnectionOptions`, or a mapping of them, laid over the agent's.
            keywords: Fields of `ConnectionOptions`, laid over `options`. Where nobody says `alpn_protocols`, "http/1.1"
                alone is offered.

        Raises:
            RequestError: No connection came about.
            AgentClosed: The agent was closed.
        """
        self._bind()
        if self._closed:
            raise closed_error()
        stream = RawStream()
        dial = self._core.raw_dial(host, port, build(ConnectionOptions, keywords), options, timeouts)
        try:
            connection = await self._open_raw(dial, stream)
        except Exception as error:
            described = dial.describe(error)
            if described is error:
                raise
            raise described from error
        protocol: SocketProtocol = connection.transport
        protocol.flush()
        try:
            if self._closed:
                raise closed_error()
            if protocol_factory is None:
                raw = AsyncRawConnection(protocol, stream, self._shut)
                protocol.raw = raw.arrivals
                return raw
            users = protocol_factory()
            transport = protocol.raw = RawTransport(protocol, stream, self._shut, users)
            return transport, users
        except BaseException:
            self._shut(connection, "close")
            raise
        finally:
            now = time.monotonic()
            self._core.connected(dial, connection, now)
            self._arm(now)

    async def _open_raw(self, dial: Dial, raw: RawStream) -> Connection:
        """Open a connection for a caller outside the pool, in a task that ends with the agent, or with the caller."""
        opening = self._loop.create_task(open_connection(self, dial, raw))
        self._dialling.add(opening)
        opening.add_done_callback(self._dialling.discard)
        try:
            return await opening
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if opening.cancelled() and self._closed and not (task is not None and task.cancelling()):
                raise closed_error() from None
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                self._shut(opening.result(), "interrupted")  # it was open when the caller was cancelled
            raise

    def close_idle(self) -> None:
        """Close all idle connections."""
        if not self._left_closed_loop():
            now = time.monotonic()
            self._core.pool.close_idle(now)
            self._carry_out(now)

    def network_changed(self) -> None:
        """Use no present connection for a further request: idle ones are closed now, active ones when they are done."""
        if not self._left_closed_loop():
            now = time.monotonic()
            self._core.network_changed(now)
            self._carry_out(now)

    def stats(self) -> AgentStats:
        """Return all counters, in total and by key."""
        return self._core.stats()

    def on(self, kind: type[_E], callback: Callable[[_E], object]) -> Callable[[], None]:
        """Call `callback` with each event of class `kind`; returns the function that ends the subscription."""
        return self._core.on(kind, callback)

    async def aclose(self, drain: float | None = 5.0) -> None:
        """
        Take no more requests, refuse the waiting ones, let the active ones finish for up to `drain` seconds, close
        everything. Idempotent.

        Raises:
            WrongEventLoop: Called outside the agent's event loop, which is still open.
        """
        check_drain(drain)
        if self._left_closed_loop():
            self.destroy()
            return
        if asyncio.get_running_loop() is not self._loop:
            raise _wrong_loop()
        self._refuse()
        try:
            if self._core.busy:
                self._quiet = self._quiet or asyncio.Event()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(drain):
                        await self._quiet.wait()
        finally:
            self.destroy()
        if self._dialling:
            await asyncio.gather(*self._dialling, return_exceptions=True)

    def destroy(self) -> None:
        """Close everything at once; waiting and active requests fail with `AgentClosed`. Idempotent."""
        if self._left_closed_loop():
            self._closed = True
            self._core.pool.close(time.monotonic())
            return
        self._refuse()
        now = time.monotonic()
        for connection in self._core.living():
            if connection.info is not None:
                connection.fail(closed_error(), now, "agent_closed")
                connection.transport.advance(now)
                self._shut(connection, "agent_closed")
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf

    def _refuse(self) -> None:
        """Take no more requests, refuse those that wait, close what is idle or not yet open."""
        self._closed = True
        now = time.monotonic()
        self._core.pool.close(now)
        self._carry_out(now)
        for task in self._dialling:
            task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self.destroy()
        await self.aclose()

    def _left_closed_loop(self) -> bool:
        """
        Return whether the agent belongs to no loop, having parted from one that is closed.

        That one can do nothing more for the connections it had: they end here, and the agent begins anew.
        """
        if self._loop is not None and self._loop.is_closed():
            lost = ConnectionLost("the event loop of this request was closed", code="ERR_TLSAGENT_EVENT_LOOP")
            for connection in self._forget(closed_error() if self._closed else lost):
                connection.transport.disown()
        return self._loop is None

    def _bind(self) -> None:
        """Belong to the running loop."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if not self._left_closed_loop():
            raise _wrong_loop()
        self._loop = loop
        self._proactor = type(loop).__name__ == "ProactorEventLoop"


def _wrong_loop() -> WrongEventLoop:
    return WrongEventLoop(
        "an AsyncAgent belongs to one event loop, and that of this one is another, which is still open: make one agent "
        "per loop, or call aclose() in its own loop first"
    )


def _future_setter(future: asyncio.Future[Any]) -> Callable[[object, BaseException | None], None]:
    def set_outcome(connection: object, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(connection)
        else:
            future.set_exception(error)

    return set_outcome


def _not_yet(early_data: bool | Unset) -> None:
    if early_data:
        raise NotImplementedError("early_data is not supported yet; leave it out")
