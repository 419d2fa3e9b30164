"""
`Agent`: the agent on blocking calls and threads.

There is no background thread. Whoever wants something does the work: a thread that waits for a connection dials it, a
thread that waits for a response reads it. The agent lock guards the core's pool and nothing is waited for, sent or
called out to while it is held. A connection belongs to the thread that holds its lease, an attempt to the thread that
dials it.

Theory of operation
------------------- A thread that gets a ticket becomes a `_Waiter`. Effects are drained under the lock and placed: a
grant or a refusal with the waiter of its ticket, an attempt with the waiter of the ticket that it covers. A waiter
without an attempt sleeps on an event, one that dials on its sockets and a wake-up descriptor. Served otherwise, timed
out or interrupted, a dialler leaves its half-open attempt to another waiter of the key, or closes it if there is none.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from tlsagent._body import Body, Content
from tlsagent._core import AgentCore
from tlsagent._drivers.dialling import Dialling
from tlsagent._drivers.sockets import Wire, drain, wait
from tlsagent._drivers.threads_raw import RawConnection
from tlsagent._exchange import Awaiting, Exchange, closed_error
from tlsagent._options import UNSET, AgentOptions, ConnectionOptions, Timeouts, Unset, build
from tlsagent._pool import Close, Connect, Grant, Lease, Refuse, Ticket
from tlsagent._raw import RawStream
from tlsagent._response import Response, ResponseFacts
from tlsagent.errors import LocalProtocolError, RequestError
from tlsagent.events import Closed, ConnectFailed, Event, Freed, Retried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self, Unpack

    from tlsagent._connection import Connection, ConnectionInfo
    from tlsagent._dial import Dial
    from tlsagent._http.messages import CallerFields
    from tlsagent._identity import PoolKey
    from tlsagent._options import AgentOptionsDict
    from tlsagent._stats import AgentStats

_E = TypeVar("_E", bound=Event)

_READ_BUFFER: Final = 262_144
_LOOK_AGAIN: Final = 0.5
"""Seconds after which a thread that waits for a connection looks for responses that were dropped unread."""


class _WakeUp:
    """A pair of sockets: who waits for others can be woken through it."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def set(self) -> None:
        """Wake the holder, now or at its next wait."""
        with contextlib.suppress(OSError):  # full, so it will wake; or closed, so nobody waits
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Forget earlier calls of `set`."""
        with contextlib.suppress(OSError):
            while self.reader.recv(64):
                pass

    def close(self) -> None:
        """Close both ends."""
        self.reader.close()
        self._writer.close()


class _Waiter:
    """
    A thread that waits for a connection.

    Attributes:
        dialling: The attempt it carries out, if any. Guarded by the agent lock.
        wake_up: Its descriptor while it dials.
    """

    __slots__ = ("_event", "dialling", "wake_up")

    def __init__(self) -> None:
        self._event = threading.Event()
        self.dialling: Dialling | None = None
        self.wake_up: _WakeUp | None = None

    def wake(self) -> None:
        """Wake it; may be called by any thread."""
        self._event.set()
        wake_up = self.wake_up
        if wake_up is not None:
            wake_up.set()

    def sleep(self, seconds: float) -> None:
        """Wait for `wake`, at most some seconds."""
        self._event.wait(None if seconds == math.inf else max(seconds, 0.0))
        self._event.clear()


class StreamResponse(ResponseFacts):
    """
    A response whose body is read as it comes.

    Read it to its end or close it: a response dropped unread costs its connection and gives a ResourceWarning. One
    thread at a time may use it.
    """

    __slots__ = ("__weakref__", "_agent")

    def __init__(self, agent: Agent, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._agent = agent

    def iter_bytes(self) -> Iterator[bytes]:
        """
        Return the body in pieces as they come; what stays unread is lost when the iteration is left.

        Raises:
            RequestError: The body did not arrive whole.
        """
        exchange = self._exchange
        exchange.awaiting = Awaiting.BODY
        while True:
            self._agent._pump(exchange)
            chunks = exchange.take_chunks(time.monotonic())
            yield from chunks
            if chunks:
                continue
            if exchange.error is not None:
                raise exchange.error
            if exchange.complete:
                return

    def read(self) -> bytes:
        """Return the rest of the body."""
        return b"".join(self.iter_bytes())

    def close(self) -> None:
        """Have done with the response. Before its end, this costs the connection. Idempotent."""
        self._agent._drop(self._exchange)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        exchange = self._exchange
        if exchange.lease is not None:
            text = f"{self!r} was dropped unread: read it to its end or close it"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
            # A finaliser may run anywhere, with the lock held too: the next call of the agent does the work.
            self._agent._core.abandoned.append(exchange)


class _Actions:
    """What is to be done once the lock is let go."""

    __slots__ = ("closing", "waking")

    def __init__(self) -> None:
        self.waking: list[_Waiter] = []
        self.closing: list[tuple[Connection, str]] = []


class Agent:
    """
    A connection-pooling HTTPS agent for threads.

    Takes an `AgentOptions`, or its fields as keywords. Any number of threads may use it.

    Raises:
        OptionError: An option is wrong; nothing was opened.
    """

    def __init__(self, options: AgentOptions | None = None, **keywords: Unpack[AgentOptionsDict]) -> None:
        said = build(AgentOptions, keywords)
        self._core = AgentCore(said if options is None else said.merged_over(options))
        self._lock = threading.Lock()
        self._waiters: dict[PoolKey, list[_Waiter]] = {}
        self._unplaced: list[Dialling] = []
        self._buffers: deque[memoryview] = deque()
        self._wake_ups: deque[_WakeUp] = deque()
        self._quiet = threading.Event()
        self._closed = False
        self._destroyed = False

    @property
    def options(self) -> AgentOptions:
        """The options as resolved over the library's defaults."""
        return self._core.options

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
            content: bytes, str, a file, or an iterable of bytes.
            options: `ConnectionOptions`, or a mapping of them, laid over the agent's.
            timeouts: `Timeouts` laid over the agent's; a number means `total`.
            trailers: Fields to send after the body, which is then sent chunked.
            retry: False never sends twice.
            trace: Called with the events of this request.

        Raises:
            RequestError: Exactly one for a request that failed.
            AgentClosed: The agent was closed.
        """
        not_yet(early_data, expect_continue)
        exchange = self._exchange(method, url, headers, content, options, timeouts, trailers, retry, trace)
        self._perform(exchange)
        return Response(exchange)

    def open_stream(
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
    ) -> StreamResponse:
        """Send a request and return the response as soon as its head is here; the caller must read or close it."""
        not_yet(early_data, expect_continue)
        exchange = self._exchange(method, url, headers, content, options, timeouts, trailers, retry, trace)
        exchange.awaiting = Awaiting.HEAD
        self._perform(exchange)
        return StreamResponse(self, exchange)

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
    ) -> AbstractContextManager[StreamResponse]:
        """`open_stream` for a `with` statement, which closes the response."""
        return self.open_stream(
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

    def _exchange(
        self,
        method: str,
        url: str,
        headers: CallerFields | None,
        content: Content | None,
        options: ConnectionOptions | Mapping[str, Any] | None,
        timeouts: Timeouts | float | None,
        trailers: CallerFields | None,
        retry: bool | Unset,
        trace: Callable[[Event], object] | None,
    ) -> Exchange:
        exchange = self._core.exchange(
            method, url, time.monotonic(), headers, content, options, timeouts, trailers, retry, trace
        )
        if isinstance(exchange.body, Body) and exchange.body.asynchronous:
            raise LocalProtocolError("content is an asynchronous iterable: only AsyncAgent can send that")
        return exchange

    def _perform(self, exchange: Exchange) -> None:
        """Send the request, again if that is safe, until what the caller waits for is here."""
        try:
            self._attempt(exchange)
            while exchange.error is not None:
                if not exchange.may_retry:
                    raise exchange.error
                if self._core.listening(exchange):
                    error = cast("RequestError", exchange.error)
                    self._core.emit(Retried(exchange.plan.key.digest, error), exchange)
                exchange.start_over()
                self._attempt(exchange)
        except BaseException:
            self._give_up(exchange)
            raise

    def _attempt(self, exchange: Exchange) -> None:
        while True:
            self._acquire(exchange)
            if exchange.error is not None:
                return
            connection: Connection = exchange.lease.connection
            now = time.monotonic()
            if not connection.requests or self._still_good(connection, now):
                break
            with self._lock:
                self._core.give_back(exchange, now)
                actions = self._collect()
            self._do(actions)
        self._core.start(exchange, now)
        connection.transport.flush(connection, now)
        if isinstance(exchange.body, Body):
            self._send_body(exchange, exchange.body, connection)
        self._pump(exchange)

    def _still_good(self, connection: Connection, now: float) -> bool:
        """Look at a connection that served before: is there anything in it, and is it alive?"""
        wire: Wire = connection.transport
        connection.check_idle(now)
        if not wire.peek():
            return connection.dead is None
        buffer = self._borrow()
        try:
            drain(wire.sock, connection, buffer, now)
        finally:
            self._buffers.append(buffer)
        if connection.sessions:
            self._core.keep_sessions(connection)
        return connection.dead is None

    # --- Waiting for a connection -------------------------------------------------------------------------------------

    def _acquire(self, exchange: Exchange) -> None:
        """Return with a lease, or with an error, in the exchange."""
        now = time.monotonic()
        with self._lock:
            if isinstance(self._core.acquire(exchange, now), Lease) and not self._core.pool.has_effects:
                return
            waiter = exchange.waker = _Waiter()
            waiters = self._waiters.setdefault(exchange.plan.key, [])
            waiters.append(waiter)
            actions = self._collect()
        try:
            self._do(actions)
            self._wait_in_queue(exchange, waiter)
        finally:
            self._leave_queue(exchange, waiter)

    def _wait_in_queue(self, exchange: Exchange, waiter: _Waiter) -> None:
        while True:
            ticket = exchange.ticket
            dialling = waiter.dialling
            if ticket is None or exchange.error is not None:
                return
            now = time.monotonic()
            limit = (
                exchange.total_at
                if ticket.covered or ticket.deadline is None
                else min(exchange.total_at, ticket.deadline)
            )
            if now >= limit:
                self._time_out(exchange, now)
            elif dialling is not None:
                self._dial_on(dialling, waiter, limit)
            else:
                # A finaliser takes no lock and wakes nobody: what it leaves is looked for now and then.
                waiter.sleep(min(limit - now, _LOOK_AGAIN))
                if self._core.abandoned:
                    with self._lock:
                        actions = self._collect()
                    self._do(actions)

    def _time_out(self, exchange: Exchange, now: float) -> None:
        with self._lock:
            if now >= exchange.total_at and exchange.ticket is not None:
                exchange.fail(exchange.total_timeout(), now)
                self._core.cancel(exchange, now)
            else:
                self._core.pool.handle_timeout(now)
            actions = self._collect()
        self._do(actions)

    def _dial_on(self, dialling: Dialling, waiter: _Waiter, limit: float) -> None:
        """Carry the attempt one step on, then wait for the next or to be woken."""
        if waiter.wake_up is None:
            waiter.wake_up = self._wake_ups.popleft() if self._wake_ups else _new_wake_up(dialling.dial)
        dialling.wake = waiter.wake
        waiter.wake_up.clear()
        self._step(dialling)
        if dialling.done:
            self._report(dialling, waiter)
            return
        if waiter.dialling is dialling and waiter.wake_up is not None:
            readers, writers = dialling.interest()
            wait([*readers, waiter.wake_up.reader], writers, min(limit, dialling.deadline) - time.monotonic())

    def _step(self, dialling: Dialling) -> None:
        buffer = self._borrow()
        try:
            dialling.step(buffer)
        finally:
            self._buffers.append(buffer)

    def _report(self, dialling: Dialling, waiter: _Waiter | None) -> None:
        """Tell the pool how an attempt ended, and whoever listens."""
        connection, error = dialling.connection, dialling.error
        with self._lock:
            if waiter is not None:
                waiter.dialling = None
            self._conclude(dialling)
            actions = self._collect()
        self._do(actions)
        if connection is not None and connection.sessions:
            self._core.keep_sessions(connection)
        if error is not None and self._core.listening():
            self._core.emit(ConnectFailed(dialling.dial.plan.key.digest, error))

    def _conclude(self, dialling: Dialling) -> None:
        """Tell the pool how an attempt ended; call with the lock held."""
        now = time.monotonic()
        connection = dialling.connection
        if dialling.error is None:
            assert connection is not None
            self._core.connected(dialling.dial, connection, now)
            return
        if connection is not None:
            self._core.closed(connection, "handshake")
        self._core.dial_failed(dialling.dial, dialling.error, now)

    def _leave_queue(self, exchange: Exchange, waiter: _Waiter) -> None:
        """Stop waiting; a half-open attempt goes to another waiter of the key, or is closed."""
        key = exchange.plan.key
        abandoned: Dialling | None = None
        heir: _Waiter | None = None
        with self._lock:
            exchange.waker = None
            if exchange.ticket is not None:
                self._core.cancel(exchange, time.monotonic())
            waiters = self._waiters[key]
            waiters.remove(waiter)
            dialling, waiter.dialling = waiter.dialling, None
            if dialling is not None and dialling.done:
                self._conclude(dialling)
            elif dialling is not None:
                heir = _first_free(waiters)
                if heir is not None:
                    heir.dialling = dialling
                    dialling.wake = heir.wake
                else:
                    abandoned = dialling
            if not waiters:
                del self._waiters[key]
            actions = self._collect()
        if waiter.wake_up is not None:
            wake_up, waiter.wake_up = waiter.wake_up, None
            self._wake_ups.append(wake_up)
        if heir is not None:
            heir.wake()
        self._do(actions)
        if abandoned is not None:
            self._abandon(abandoned)

    def _abandon(self, dialling: Dialling) -> None:
        """Close a half-open attempt, and only then give up its place: no limit is exceeded, if only for a moment."""
        dialling.close()
        with self._lock:
            if dialling.connection is not None:
                self._core.closed(dialling.connection, "abandoned")
            self._core.dial_failed(dialling.dial, None, time.monotonic())
            actions = self._collect()
        self._do(actions)

    # --- Sending and receiving ----------------------------------------------------------------------------------------

    def _send_body(self, exchange: Exchange, body: Body, connection: Connection) -> None:
        wire: Wire = connection.transport
        for piece in body.pieces():
            if not connection.send_body(exchange, piece, time.monotonic()):
                self._after(connection, exchange, time.monotonic())
                return
            while not wire.flush(connection, time.monotonic()):
                self._turn(connection, exchange)
                if exchange.lease is None:
                    return
        connection.end_body(exchange, time.monotonic())
        wire.flush(connection, time.monotonic())
        self._after(connection, exchange, time.monotonic())

    def _pump(self, exchange: Exchange) -> None:
        """Read until what the caller waits for is here."""
        while not exchange.ready:
            connection: Connection = exchange.lease.connection
            self._turn(connection, exchange)

    def _turn(self, connection: Connection, exchange: Exchange) -> None:
        """Wait for the socket once and take what it gives."""
        wire: Wire = connection.transport
        now = time.monotonic()
        deadline = connection.next_deadline()
        if now < deadline:
            wire.wait(deadline - now)
        buffer = self._buffers.pop() if self._buffers else self._borrow()
        try:
            now = time.monotonic()
            wire.receive(connection, buffer, now)
            if connection.dead is None and connection.exchange is exchange and now >= connection.next_deadline():
                connection.handle_timeout(now)
        finally:
            self._buffers.append(buffer)
        wire.flush(connection, now)
        self._after(connection, exchange, now)

    def _after(self, connection: Connection, exchange: Exchange, now: float) -> None:
        """Carry the connection's news over to the core."""
        if connection.sessions:
            self._core.keep_sessions(connection, exchange)
        if connection.ended is None and connection.dead is None:
            return
        if self._destroyed and exchange.error is not None:
            exchange.error = closed_error()
        freed = connection.ended is not None and connection.dead is None
        with self._lock:
            self._core.settle(connection, now)
            actions = self._collect() if self._core.pool.has_effects else None
        if actions is not None:
            self._do(actions)
        if freed and self._core.listening(exchange):
            self._core.emit(Freed(connection.plan.key.digest, cast("ConnectionInfo", connection.info)), exchange)

    def _borrow(self) -> memoryview:
        try:
            return self._buffers.pop()
        except IndexError:
            return memoryview(bytearray(_READ_BUFFER))

    def _give_up(self, exchange: Exchange) -> None:
        """Leave nothing behind: no ticket, no lease, no connection with half an exchange on it."""
        if exchange.ticket is not None or (exchange.lease is not None and exchange.started_at is None):
            now = time.monotonic()
            with self._lock:
                if exchange.ticket is not None:
                    self._core.cancel(exchange, now)
                elif exchange.lease is not None:
                    self._core.give_back(exchange, now)
                actions = self._collect()
            self._do(actions)
        self._drop(exchange)

    def _drop(self, exchange: Exchange) -> None:
        lease = exchange.lease
        if lease is not None:
            now = time.monotonic()
            lease.connection.drop(exchange, now, "dropped")
            self._after(lease.connection, exchange, now)

    # --- Carrying out what the core asks for --------------------------------------------------------------------------

    def _collect(self) -> _Actions:
        """Drain and place the effects; call with the lock held."""
        if self._core.abandoned:
            self._core.drop_abandoned(time.monotonic())
        actions = _Actions()
        for effect in self._core.effects():
            if type(effect) is Close:
                if self._core.closed(effect.connection, effect.reason):
                    actions.closing.append((effect.connection, effect.reason))
            elif type(effect) is Connect:
                self._place(Dialling(self._core, effect.attempt.user), effect.attempt.cause, actions)
            elif isinstance(effect, (Grant, Refuse)):
                exchange: Exchange = effect.ticket.user
                if isinstance(effect, Grant):
                    exchange.lease = effect.lease
                else:
                    exchange.fail(effect.error, time.monotonic())
                exchange.ticket = None
                if exchange.waker is not None:
                    actions.waking.append(exchange.waker)
        if self._closed and not self._core.busy:
            self._quiet.set()
        return actions

    def _place(self, dialling: Dialling, cause: Ticket[Connection] | None, actions: _Actions) -> None:
        if cause is None:
            self._unplaced.append(dialling)
            return
        waiter: _Waiter | None = cause.user.waker
        if waiter is None or waiter.dialling is not None:
            waiter = _first_free(self._waiters.get(dialling.dial.plan.key, ()))
        if waiter is None:
            self._core.dial_failed(dialling.dial, None, time.monotonic())
        else:
            waiter.dialling = dialling
            actions.waking.append(waiter)

    def _do(self, actions: _Actions) -> None:
        for waiter in actions.waking:
            waiter.wake()
        for connection, reason in actions.closing:
            if connection.dead is None:
                connection.close(reason)
            connection.transport.close(connection)
        if self._core.listening():
            for connection, reason in actions.closing:
                if connection.info is not None:
                    self._core.emit(Closed(connection.plan.key.digest, connection.info, reason))

    # --- Life of the agent --------------------------------------------------------------------------------------------

    def preconnect(self, origin: str, count: int = 1) -> list[Literal["full", "resumed"]]:
        """
        Open idle connections to the origin of a URL, one after the other and as many as the limits allow, and tell of
        each whether its handshake was resumed.

        Raises:
            RequestError: An attempt failed; those before it are kept.
        """
        plan = self._core.origin_plan(origin)
        outcomes: list[Literal["full", "resumed"]] = []
        for _ in range(count):
            with self._lock:
                dial = self._core.preconnect(plan, time.monotonic())
                if dial is None:
                    break
                actions = self._collect()
                dialling = next(d for d in self._unplaced if d.dial is dial)
                self._unplaced.remove(dialling)
            self._do(actions)
            self._dial_alone(dialling)
            if dialling.error is not None:
                raise dialling.error
            assert dialling.connection is not None
            info = dialling.connection.info
            outcomes.append("resumed" if info is not None and info.session_reused else "full")
        return outcomes

    def _dial_alone(self, dialling: Dialling) -> None:
        """Carry out an attempt that nobody waits for."""
        wake_up: _WakeUp | None = None
        try:
            wake_up = _new_wake_up(dialling.dial)
            dialling.wake = wake_up.set
            while not dialling.done:
                self._step(dialling)
                if not dialling.done:
                    readers, writers = dialling.interest()
                    wait([*readers, wake_up.reader], writers, dialling.deadline - time.monotonic())
        except BaseException as error:
            dialling.error = error
            dialling.close()
            raise
        finally:
            self._report(dialling, None)
            if wake_up is not None:
                wake_up.close()

    def connect(
        self,
        host: str,
        port: int,
        *,
        options: ConnectionOptions | None = None,
        timeouts: Timeouts | float | None = None,
        **keywords: Any,
    ) -> RawConnection:
        """
        Open a TLS connection that carries no HTTP, from the agent's contexts and sessions. It is outside the pool and
        its limits.

        Args:
            host, port: Whom to talk to; the name is verified.
            timeouts: Of these, lookup, connect and handshake count.
            options: `ConnectionOptions`, laid over the agent's.
            keywords: Fields of `ConnectionOptions`, laid over `options`.

        Raises:
            RequestError: No connection came about.
            AgentClosed: The agent was closed.
        """
        if self._closed:
            raise closed_error()
        stream = RawStream()
        dial = self._core.raw_dial(host, port, build(ConnectionOptions, keywords), options, timeouts)
        dialling = Dialling(self._core, dial, stream)
        self._dial_alone(dialling)
        if dialling.error is not None:
            raise dialling.error
        assert dialling.connection is not None
        if self._closed:
            self._close_raw(dialling.connection)
            raise closed_error()
        return RawConnection(self._core, dialling.connection, stream, self._close_raw)

    def _close_raw(self, connection: Connection) -> None:
        with self._lock:
            first = self._core.closed(connection, connection.dead or "close")
        if first:
            connection.transport.close(connection)

    def close_idle(self) -> None:
        """Close all idle connections."""
        with self._lock:
            self._core.pool.close_idle(time.monotonic())
            actions = self._collect()
        self._do(actions)

    def network_changed(self) -> None:
        """Use no present connection for a further request: idle ones are closed now, active ones when they are done."""
        with self._lock:
            self._core.network_changed(time.monotonic())
            actions = self._collect()
        self._do(actions)

    def stats(self) -> AgentStats:
        """Return all counters, in total and by key."""
        with self._lock:
            return self._core.stats()

    def on(self, kind: type[_E], callback: Callable[[_E], object]) -> Callable[[], None]:
        """Call `callback` with each event of class `kind`; returns the function that ends the subscription."""
        return self._core.on(kind, callback)

    def close(self, drain: float | None = 5.0) -> None:
        """
        Take no more requests, refuse the waiting ones, let the active ones finish for up to `drain` seconds, close
        everything. Idempotent.
        """
        self._shut_pool()
        self._quiet.wait(drain)
        self.destroy()

    def destroy(self) -> None:
        """Close everything at once; waiting and active requests fail with `AgentClosed`. Idempotent."""
        self._destroyed = True
        self._shut_pool()
        for connection in self._core.living():
            if connection.transport is not None:
                connection.transport.interrupt()
        while self._wake_ups:
            self._wake_ups.popleft().close()

    def _shut_pool(self) -> None:
        self._closed = True
        with self._lock:
            self._core.pool.close(time.monotonic())
            actions = self._collect()
        self._do(actions)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self.destroy()
        self.close()


def _new_wake_up(dial: Dial) -> _WakeUp:
    try:
        return _WakeUp()
    except OSError as error:
        raise dial.describe(error) from error


def _first_free(waiters: Iterable[_Waiter]) -> _Waiter | None:
    """Return the waiter that has waited longest among those that do not dial."""
    return next((waiter for waiter in waiters if waiter.dialling is None), None)


def not_yet(early_data: bool | Unset, expect_continue: bool) -> None:
    """Refuse what this release does not do yet."""
    if early_data:
        raise NotImplementedError("early_data is not supported yet; leave it out")
    if expect_continue:
        raise NotImplementedError("expect_continue is not supported yet; leave it out")
