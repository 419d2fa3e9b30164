"""
`Agent`: the agent on blocking calls and threads.

There is no background thread. Whoever wants something does the work: a thread that waits for a connection dials it, a
thread that waits for a response reads it. The agent lock guards the core's pool (`desk`); while it is held, nothing is
waited for, sent or called out to. A connection belongs to the thread that holds its lease, an attempt to the thread
that dials it; the threads of a shared connection are a `crew`.

Theory of operation
-------------------
A thread that waits for a connection sleeps on a lock if it has no attempt to carry out; one that dials waits on its
sockets and a wake-up descriptor.

A finaliser may run anywhere, in the middle of a change and with the lock held too: it appends to a deque and wakes a
waiter, by releasing the lock that the waiter sleeps on, which waits for nothing.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from tlsagent._body import Body, Content
from tlsagent._core import AgentCore, check_drain
from tlsagent._drivers import fork
from tlsagent._drivers.crew import Crew
from tlsagent._drivers.desk import Desk
from tlsagent._drivers.dialling import Dialling
from tlsagent._drivers.member import Member
from tlsagent._drivers.sockets import Wire, drain, wait
from tlsagent._drivers.threads_raw import RawConnection, StreamCarrier, WireCarrier
from tlsagent._drivers.threads_response import StreamResponse
from tlsagent._drivers.waiting import Waiter, WakeUp
from tlsagent._exchange import Awaiting, Exchange, Redirected, closed_error
from tlsagent._multiplex import Stream
from tlsagent._option_rules import UNSET, Unset
from tlsagent._options import AgentOptions, ConnectionOptions, build, said_to_agent
from tlsagent._raw import RawStream
from tlsagent._response import Response
from tlsagent.errors import AgentClosed, LocalProtocolError, RequestError
from tlsagent.events import ConnectFailed, Event, Freed, Retried

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self, Unpack

    from tlsagent._connection import Connection
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._dial import Dial
    from tlsagent._http.messages import CallerFields
    from tlsagent._identity import Plan
    from tlsagent._limits import Timeouts
    from tlsagent._options import AgentOptionsDict
    from tlsagent._stats import AgentStats

_E = TypeVar("_E", bound=Event)

_READ_BUFFER: Final = 262_144


class Agent:
    """
    A connection-pooling HTTPS agent for threads.

    Takes an `AgentOptions`, or its fields as keywords. Any number of threads may use it.

    Raises:
        OptionError: An option is wrong; nothing was opened.
    """

    def __init__(self, options: AgentOptions | None = None, **keywords: Unpack[AgentOptionsDict]) -> None:
        self._core = AgentCore(said_to_agent(options, keywords))
        self._desk = Desk(self._core)
        self._buffers: deque[memoryview] = deque()
        self._wake_ups: deque[WakeUp] = deque()
        self._closed = False
        self._destroyed = False
        fork.watch(self)

    def forked(self) -> None:
        """Begin anew in the child of a fork, which owns none of its parent's connections. Not for users."""
        core = self._core
        fork.keep(core.pool)
        waiters = self._desk.forked()
        for connection in core.forget(fork.inherited_error(), time.monotonic()):
            fork.keep(connection)
            if connection.transport is not None:
                connection.transport.disown()
        core.forked()
        for wake_up in self._wake_ups:
            wake_up.close()
        self._wake_ups.clear()
        for waiter in waiters:  # threads of the parent's; but greenlets live on in the child
            waiter.wake()

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
            not_yet(early_data)
        exchange = self._exchange(
            method, url, headers, content, options, timeouts, trailers, retry, trace, expect_continue
        )
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
        if early_data is not UNSET:
            not_yet(early_data)
        exchange = self._exchange(
            method, url, headers, content, options, timeouts, trailers, retry, trace, expect_continue
        )
        exchange.awaiting = Awaiting.HEAD
        response = StreamResponse(self, exchange)  # first: whatever strikes from now on, somebody answers for the lease
        self._perform(exchange)
        return response

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
        expect_continue: bool,
    ) -> Exchange:
        exchange = self._core.exchange(
            method, url, time.monotonic(), headers, content, options, timeouts, trailers, retry, trace, expect_continue
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
                if self._core.listening(exchange) and not isinstance(exchange.error, Redirected):
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
            if connection.shared is not None:
                if Member(self, connection, exchange).perform(now):
                    break
            elif not exchange.lease.may_be_stale or self._still_good(connection, now):
                self._core.start(exchange, now)
                connection.transport.flush(connection, now)
                if self._core.listeners or exchange.trace is not None:
                    self._core.tell_started(exchange)
                if isinstance(exchange.body, Body):
                    self._send_body(exchange, exchange.body, connection)
                break
            if exchange.lease is not None:
                self._desk.change(self._core.give_back, exchange, now)
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
        except BaseException:
            connection.abort("interrupted")
            raise
        finally:
            self._buffers.append(buffer)
        if connection.sessions:
            self._core.keep_sessions(connection)
        return connection.dead is None

    # --- Waiting for a connection -------------------------------------------------------------------------------------

    def _acquire(self, exchange: Exchange) -> None:
        """Return with a lease, or with an error, in the exchange."""
        if self._core.abandoned:
            self._drop_abandoned()
        now = time.monotonic()
        if time.time() - now > self._core.awake_until:
            self._desk.change(self._core.slept, now, time.time())
        waiter = self._desk.enlist(exchange, now)
        if waiter is None:
            return
        try:
            self._wait_in_queue(exchange, waiter)
        finally:
            self._leave_queue(exchange, waiter)

    def _wait_in_queue(self, exchange: Exchange, waiter: Waiter) -> None:
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
            limit = min(limit, self._desk.next_delay())
            if now >= limit:
                self._desk.change(self._time_out, exchange, now)
            elif self._core.abandoned:
                self._drop_abandoned()
            elif dialling is not None:
                self._dial_on(dialling, exchange, waiter, limit)
            elif not self._attend(exchange, waiter, None, limit):
                waiter.sleep(limit - now)

    def _attend(self, exchange: Exchange, waiter: Waiter, dialling: Dialling | None, limit: float) -> bool:
        """
        Read once on the shared connections of the key on which nobody else does; returns False if there are none.

        One may have no place to give until its peer has spoken, and no thread that waits for a response: an answer to
        the PING after a reset, say, or another limit of streams. Who dials waits for that to go on, too.
        """
        key = exchange.plan.key
        if not self._core.pool.shares(key):
            return False
        members: list[Member] = []
        crews: list[Crew] = []
        try:
            for connection in self._core.living():
                if connection.plan.key == key and connection.dead is None and isinstance(connection.transport, Crew):
                    members.append(Member(self, connection, exchange))  # before it leads: an exception may strike then
                    if connection.transport.lead(exchange):
                        crews.append(connection.transport)
                        limit = min(limit, connection.next_deadline())
            if not crews:
                return False
            waiter.call = crews[0].call
            if exchange.ticket is not None and waiter.dialling is dialling and not self._core.abandoned:
                Crew.wait_for_any(crews, limit, time.monotonic(), *_interest(waiter, dialling))
            waiter.call = None
            for member in members:
                member.leave()
            for member in members:
                member.catch_up()
        except BaseException:
            waiter.call = None
            for member in members:
                member.struck()
            raise
        return True

    def _leave_queue(self, exchange: Exchange, waiter: Waiter) -> None:
        """Stop waiting. May be called again."""
        self._desk.dismiss(exchange, waiter)
        wake_up, waiter.wake_up = waiter.wake_up, None
        if wake_up is not None:
            self._wake_ups.append(wake_up)
            if self._destroyed:
                self._close_wake_ups()
        if self._core.abandoned:
            self._drop_abandoned()

    def _time_out(self, exchange: Exchange, now: float) -> None:
        if now >= exchange.total_at and exchange.ticket is not None:
            exchange.fail(exchange.total_timeout(), now)
            self._core.cancel(exchange, now)
        else:
            self._core.pool.handle_timeout(now)

    def _abandon_response(self, exchange: Exchange) -> None:
        """Take over an exchange from a finaliser, which may run anywhere, with the lock held too."""
        stream = exchange.stream
        if stream is not None:
            crew: Crew = stream.connection.transport
            if crew.collected:
                return  # with its connection, which was closed: there is nothing to give back
        self._core.abandoned.append(exchange)
        if stream is not None:
            crew.call()
        # Somebody must look, or who waits for the connection waits in vain: whoever wakes now, or comes next. A waiter
        # that is on its way out looks too, after it has left the list.
        self._desk.rouse_anybody()

    def _dial_on(self, dialling: Dialling, exchange: Exchange, waiter: Waiter, limit: float) -> None:
        """Carry the attempt one step on, then wait for the next or to be woken."""
        if waiter.wake_up is None:
            waiter.wake_up = self._spare_wake_up() or _new_wake_up(dialling.dial)
        dialling.wake = waiter.wake
        waiter.wake_up.clear()
        self._step(dialling)
        if dialling.done:
            self._report(dialling, waiter)
            return
        limit = min(limit, dialling.deadline)
        if waiter.dialling is dialling and not self._attend(exchange, waiter, dialling, limit):
            wait(*_interest(waiter, dialling), limit - time.monotonic())

    def _spare_wake_up(self) -> WakeUp | None:
        try:
            return self._wake_ups.popleft()
        except IndexError:
            return None

    def _close_wake_ups(self) -> None:
        while (wake_up := self._spare_wake_up()) is not None:
            wake_up.close()

    def _step(self, dialling: Dialling) -> None:
        buffer = self._borrow()
        try:
            dialling.step(buffer)
        finally:
            self._buffers.append(buffer)

    def _report(self, dialling: Dialling, waiter: Waiter | None) -> None:
        """Tell the pool how an attempt ended, and whoever listens."""
        connection, error = dialling.connection, dialling.error
        sessions = connection.take_sessions() if connection is not None else []
        self._desk.conclude(dialling, waiter)
        if connection is not None and sessions:
            self._core.keep_sessions(connection, sessions=sessions)
        if error is not None and self._core.listening() and not isinstance(error, Redirected):
            self._core.emit(ConnectFailed(dialling.dial.plan.key.digest, error))

    # --- Sending and receiving ----------------------------------------------------------------------------------------

    def _send_body(self, exchange: Exchange, body: Body, connection: Connection) -> None:
        wire: Wire = connection.transport
        while exchange.holding and exchange.lease is not None:
            self._turn(connection, exchange)
        if exchange.lease is None or exchange.upload_stopped:
            return
        with contextlib.closing(body.pieces()) as pieces:
            for piece in pieces:
                if not connection.send_body(exchange, piece, time.monotonic()):
                    self._after(connection, exchange, time.monotonic())
                    return
                while not wire.flush(connection, time.monotonic()):
                    self._turn(connection, exchange)
                    if exchange.lease is None or exchange.upload_stopped:
                        return
                if wire.peek():
                    # A peer that reads as fast as we write never makes us wait: look whether it has answered.
                    self._turn(connection, exchange, wait=False)
                    if exchange.lease is None or exchange.upload_stopped:
                        return
        connection.end_body(exchange, time.monotonic())
        wire.flush(connection, time.monotonic())
        self._after(connection, exchange, time.monotonic())

    def _pump(self, exchange: Exchange) -> None:
        """Read until what the caller waits for is here."""
        while not exchange.ready:
            lease = exchange.lease
            if lease is None:
                continue  # another thread has just read the end of it
            connection: Connection = lease.connection
            if connection.shared is not None:
                Member(self, connection, exchange).pump()
            else:
                self._turn(connection, exchange)
        if exchange.lease is not None and exchange.switched is None:
            self._settle_own(exchange)
        if self._destroyed and exchange.error is not None:
            exchange.error = closed_error()

    def _settle_own(self, exchange: Exchange) -> None:
        """Give back the lease of an exchange that has ended: who read that has not told yet, or was struck before."""
        if exchange.complete or exchange.error is not None:
            self._desk.change(self._core.give_up, exchange, time.monotonic())

    def _turn(self, connection: Connection, exchange: Exchange, *, wait: bool = True) -> None:
        """Wait for the socket once, unless told not to, and take what it gives."""
        wire: Wire = connection.transport
        now = time.monotonic()
        deadline = connection.next_deadline()
        if wait and now < deadline:
            wire.wait(deadline - now)
        try:
            buffer = self._buffers.pop()
        except IndexError:  # no call of its own for that: this is on the way of every request
            buffer = self._borrow()
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
        freed = connection.ended is not None and connection.dead is None
        self._desk.change(self._core.settle, connection, now)
        if freed and (self._core.listeners or exchange.trace is not None):
            self._core.emit(Freed(connection.plan.key.digest, cast("ConnectionInfo", connection.info)), exchange)

    def _take_chunks(self, exchange: Exchange) -> list[bytes]:
        stream = exchange.stream
        if stream is None:
            return exchange.take_chunks(time.monotonic())
        crew: Crew = stream.connection.transport
        return crew.do(_taken, stream.connection, exchange, time.monotonic())

    def _drop_abandoned(self) -> None:
        """Give up exchanges whose response was collected unread; not before that is done they are off the list."""
        abandoned = self._core.abandoned
        with contextlib.suppress(IndexError, ValueError):  # another thread is at it too
            while abandoned:
                exchange = abandoned[0]
                self._drop(exchange)
                abandoned.remove(exchange)

    def _borrow(self) -> memoryview:
        try:
            return self._buffers.pop()
        except IndexError:
            return memoryview(bytearray(_READ_BUFFER))

    def _give_up(self, exchange: Exchange) -> None:
        """Leave nothing behind: no ticket, no lease, no connection with half an exchange on it."""
        if exchange.waker is not None:
            self._leave_queue(exchange, exchange.waker)
        if exchange.ticket is not None or exchange.lease is not None:
            self._drop(exchange)

    def _hand_over(self, link: Connection | Stream, exchange: Exchange) -> RawConnection:
        """Give the caller what the response has switched; its lease stays out until it is closed."""
        on_drop = functools.partial(self._abandon_response, exchange)
        if isinstance(link, Stream):
            on_close = functools.partial(self._hang_up_stream, exchange, link)
            return RawConnection(StreamCarrier(self, exchange, link), on_close, on_drop)
        on_close = functools.partial(self._hang_up, exchange, link)
        return RawConnection(WireCarrier(self._core, link, link.take_over()), on_close, on_drop)

    def _hang_up(self, exchange: Exchange, connection: Connection) -> None:
        connection.hang_up("close")
        self._after(connection, exchange, time.monotonic())

    def _hang_up_stream(self, exchange: Exchange, stream: Stream) -> None:
        Member(self, stream.connection, exchange).hang_up(stream)
        self._settle_own(exchange)

    def _drop(self, exchange: Exchange) -> None:
        stream = exchange.stream  # once: another thread may be at it
        if stream is not None:
            Member(self, stream.connection, exchange).drop()
        if exchange.ticket is not None or exchange.lease is not None:
            self._desk.change(self._core.give_up, exchange, time.monotonic())

    # --- Life of the agent --------------------------------------------------------------------------------------------

    def preconnect(self, origin: str, count: int = 1) -> list[Literal["full", "resumed"]]:
        """
        Open idle connections to the origin of a URL, one after the other and as many as the limits allow, and tell of
        each whether its handshake was resumed.

        Raises:
            RequestError: An attempt failed; those before it are kept.
        """
        plan = self._core.origin_plan(origin, count)
        outcomes: list[Literal["full", "resumed"]] = []
        for _ in range(count):
            dialling = self._preconnect(plan)
            if dialling is None:
                break
            assert dialling.connection is not None
            info = dialling.connection.info
            outcomes.append("resumed" if info is not None and info.session_reused else "full")
        return outcomes

    def _preconnect(self, plan: Plan) -> Dialling | None:
        """Carry out an attempt that nobody waits for, if the limits allow one."""
        dials: list[Dial | None] = []
        try:
            self._desk.change(self._place_alone, plan, dials)
            dialling = self._found(dials)
            if dialling is not None:
                self._dial_alone(dialling)
        except AgentClosed:
            raise
        except BaseException as error:
            if not isinstance(error, Exception):
                self._desk.alone.discard(cast("Dialling", self._found(dials)))
                self._desk.struck()
            raise
        return dialling

    def _place_alone(self, plan: Plan, dials: list[Dial | None]) -> None:
        dials.append(self._core.preconnect(plan, time.monotonic()))

    def _found(self, dials: list[Dial | None]) -> Dialling | None:
        return next((dialling for dialling in list(self._desk.alone) if dialling.dial in dials), None)

    def _dial_alone(self, dialling: Dialling) -> None:
        """Carry out an attempt that nobody waits for, to its end; raises how it failed."""
        wake_up: WakeUp | None = None
        try:
            wake_up = _new_wake_up(dialling.dial)
            dialling.wake = wake_up.set
            self._desk.alone.add(dialling)  # so that `destroy` wakes it
            while not dialling.done:
                if self._destroyed:
                    raise closed_error()
                self._step(dialling)
                if not dialling.done:
                    readers, writers = dialling.interest()
                    wait([*readers, wake_up.reader], writers, dialling.deadline - time.monotonic())
        except BaseException:
            dialling.broken = True
            dialling.close()
            raise
        finally:
            self._report(dialling, None)
            if wake_up is not None:
                wake_up.close()
        if dialling.error is not None:
            if self._destroyed:
                raise closed_error() from dialling.error
            raise dialling.error

    def connect(
        self,
        host: str,
        port: int,
        *,
        options: ConnectionOptions | Mapping[str, Any] | None = None,
        timeouts: Timeouts | float | None = None,
        **keywords: Any,
    ) -> RawConnection:
        """
        Open a TLS connection that carries no HTTP, from the agent's contexts and sessions. It is outside the pool and
        its limits.

        Args:
            host, port: Whom to talk to; the name is verified.
            timeouts: Of these, lookup, connect and handshake count.
            options: `ConnectionOptions`, or a mapping of them, laid over the agent's.
            keywords: Fields of `ConnectionOptions`, laid over `options`. Where nobody says `alpn_protocols`, "http/1.1"
                alone is offered.

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
        assert dialling.connection is not None
        if self._closed:
            self._close_raw(dialling.connection)
            raise closed_error()
        on_close = functools.partial(self._close_raw, dialling.connection)
        return RawConnection(WireCarrier(self._core, dialling.connection, stream), on_close)

    def _close_raw(self, connection: Connection) -> None:
        if connection.dead is None:
            connection.close("close")
        with self._desk.lock:
            first = self._core.closed(connection, connection.dead or "close")
        if first:
            connection.transport.close(connection)

    def close_idle(self) -> None:
        """Close all idle connections."""
        self._desk.change(self._core.pool.close_idle, time.monotonic())

    def network_changed(self) -> None:
        """Use no present connection for a further request: idle ones are closed now, active ones when they are done."""
        self._desk.change(self._core.network_changed, time.monotonic())

    def stats(self) -> AgentStats:
        """Return all counters, in total and by key."""
        if self._core.abandoned:
            self._drop_abandoned()
        return self._desk.stats()

    def on(self, kind: type[_E], callback: Callable[[_E], object]) -> Callable[[], None]:
        """Call `callback` with each event of class `kind`; returns the function that ends the subscription."""
        return self._core.on(kind, callback)

    def close(self, drain: float | None = 5.0) -> None:
        """
        Take no more requests, refuse the waiting ones, let the active ones finish for up to `drain` seconds, close
        everything. Idempotent.
        """
        check_drain(drain)
        quiet = self._desk.quiet = self._desk.quiet or threading.Event()
        self._shut_pool()
        if not self._destroyed:
            quiet.wait(drain)
        self.destroy()

    def destroy(self) -> None:
        """Close everything at once; waiting and active requests fail with `AgentClosed`. Idempotent."""
        self._destroyed = True
        if self._desk.quiet is not None:
            self._desk.quiet.set()  # who waits in `close` for what is active waits for no more
        self._shut_pool()
        for connection in self._core.living():
            if connection.transport is not None:
                connection.transport.interrupt()
        for dialling in list(self._desk.alone):
            if dialling.wake is not None:
                dialling.wake()
        self._close_wake_ups()

    def _shut_pool(self) -> None:
        self._closed = True
        self._desk.change(self._core.pool.close, time.monotonic())
        self._drop_abandoned()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self.destroy()
        self.close()


def _taken(connection: Connection, exchange: Exchange, now: float) -> list[bytes]:
    chunks = exchange.take_chunks(now)
    connection.credit(exchange)
    return chunks


def _new_wake_up(dial: Dial) -> WakeUp:
    try:
        return WakeUp()
    except OSError as error:
        raise dial.describe(error) from error


def _interest(waiter: Waiter, dialling: Dialling | None) -> tuple[list[socket.socket], list[socket.socket]]:
    """Return the sockets that a waiter with an attempt waits for: to be readable, to be writable."""
    if dialling is None or waiter.wake_up is None:
        return [], []
    readers, writers = dialling.interest()
    return [*readers, waiter.wake_up.reader], writers


def not_yet(early_data: bool | Unset) -> None:
    """Refuse what this release does not do yet."""
    if early_data:
        raise NotImplementedError("early_data is not supported yet; leave it out")
