"""
The pool among threads: the agent lock, who waits for a connection, and what is carried out once the lock is let go.

A thread that gets a ticket becomes a `Waiter`. Effects are drained under the lock and placed: a grant or a refusal with
the waiter of its ticket, an attempt with the waiter of the ticket that it covers. Served otherwise, timed out or
interrupted, a dialler leaves its half-open attempt to another waiter of the key, or closes it if there is none.

A signal's exception may strike anywhere in the main thread. Where a thread waits, nothing is half done. In the middle
of a change the pool may be torn; whoever is struck there says so (`_torn`), and the pool is mended before anybody uses
it again, from what cannot be torn: which connections live, what each waiter waits for, which attempts are carried on.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any

from tlsagent._drivers.dialling import Dialling
from tlsagent._drivers.waiting import Waiter
from tlsagent._pool import Close, Connect, Grant, Lease, Refuse, Ticket
from tlsagent.errors import AgentClosed
from tlsagent.events import Closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tlsagent._connection import Connection
    from tlsagent._core import AgentCore
    from tlsagent._exchange import Exchange
    from tlsagent._identity import PoolKey
    from tlsagent._stats import AgentStats


class _Actions:
    """What is to be done once the lock is let go."""

    __slots__ = ("abandoned", "closing", "waking")

    def __init__(self) -> None:
        self.waking: list[Waiter] = []
        self.closing: list[tuple[Connection, str]] = []
        self.abandoned: Dialling | None = None


class Desk:
    """
    Where the threads of one agent change its pool.

    Args:
        core: The agent's; its pool is changed here alone.

    Attributes:
        lock: The agent lock. Nothing is waited for, sent or called out to while it is held.
        waiters: Who waits for a connection, by key, oldest first.
        alone: Attempts that are under way and no waiter's.
        quiet: Set, once it is there, as soon as nothing is active any more.
    """

    def __init__(self, core: AgentCore) -> None:
        self._core = core
        self.quiet: threading.Event | None = None
        self._begin()

    def _begin(self) -> None:
        self.lock = threading.Lock()
        self.waiters: dict[PoolKey, list[Waiter]] = {}
        self.alone: set[Dialling] = set()
        self._torn = False

    def forked(self) -> list[Waiter]:
        """Begin anew in the child of a fork; returns who waited."""
        waiters = [waiter for waiters in list(self.waiters.values()) for waiter in waiters]
        self._begin()
        self.quiet = None
        return waiters

    # --- Waiting for a connection -------------------------------------------------------------------------------------

    def enlist(self, exchange: Exchange, now: float) -> Waiter | None:
        """Ask for a connection; returns None if the exchange has a lease now, else who waits for one."""
        actions: _Actions | None = None
        try:
            with self.lock:
                if self._torn:
                    actions = _Actions()
                    self._mend(actions)
                got = self._core.acquire(exchange, now)
                if isinstance(got, Lease) and not self._core.pool.outstanding and actions is None:
                    return None
                waiter = exchange.waker = Waiter(exchange)
                self.waiters.setdefault(exchange.plan.key, []).append(waiter)
                actions = actions or _Actions()
                self._collect(actions)
            self._do(actions)
        except AgentClosed:
            raise
        except BaseException:
            self.struck(actions)
            raise
        return waiter

    def dismiss(self, exchange: Exchange, waiter: Waiter) -> None:
        """Let somebody wait no more; a half-open attempt goes to another, or is closed. May be called again."""
        actions = _Actions()
        try:
            with self.lock:
                if self._torn:
                    self._mend(actions)
                self._unlist(exchange, waiter, actions)
                self._collect(actions)
            exchange.waker = None
            self._do(actions)
        except BaseException:
            self.struck(actions)
            raise

    def _unlist(self, exchange: Exchange, waiter: Waiter, actions: _Actions) -> None:
        if exchange.ticket is not None:
            self._core.cancel(exchange, time.monotonic())
        key = exchange.plan.key
        waiters = self.waiters.get(key, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self.waiters.pop(key, None)
        dialling, waiter.dialling = waiter.dialling, None
        if dialling is None:
            return
        if dialling.done:
            self._conclude(dialling)
            return
        heir = _first_free(waiters)
        if heir is not None:
            heir.dialling = dialling
            dialling.wake = heir.wake
            actions.waking.append(heir)
        else:
            self.alone.add(dialling)
            actions.abandoned = dialling

    def rouse(self, key: PoolKey) -> None:
        """Have a thread that waits for a connection of the key look whether nobody reads."""
        waiters = list(self.waiters.get(key, ()))
        waiter = _first_free(waiters) or next(iter(waiters), None)
        if waiter is not None:
            waiter.wake()

    def rouse_anybody(self) -> None:
        """Have some thread that waits for a connection look. A finaliser may call."""
        for waiters in list(self.waiters.values()):
            for waiter in waiters:
                waiter.wake()
                return

    def next_delay(self) -> float:
        """Return when a second attempt may join a first one."""
        with self.lock:
            delay = self._core.pool.next_delay()
        return math.inf if delay is None else delay

    # --- Attempts -----------------------------------------------------------------------------------------------------

    def conclude(self, dialling: Dialling, waiter: Waiter | None) -> None:
        """Tell the pool how an attempt ended."""
        self.change(self._take_over, dialling, waiter)

    def _take_over(self, dialling: Dialling, waiter: Waiter | None) -> None:
        if waiter is not None:
            waiter.dialling = None
        self.alone.discard(dialling)
        self._conclude(dialling)

    def _conclude(self, dialling: Dialling) -> None:
        """Tell the pool how an attempt ended; call with the lock held."""
        now = time.monotonic()
        connection = dialling.connection
        if dialling.error is None and not dialling.broken:
            assert connection is not None
            self._core.connected(dialling.dial, connection, now)
            return
        if connection is not None:
            self._core.closed(connection, "handshake")
        self._core.dial_failed(dialling.dial, dialling.error, now)

    def _abandon(self, dialling: Dialling) -> None:
        """Close a half-open attempt, and only then give up its place: no limit is exceeded, if only for a moment."""
        dialling.broken = True
        dialling.close()
        self.change(self._take_over, dialling, None)

    # --- Carrying out what the core asks for --------------------------------------------------------------------------

    def change(self, change: Callable[..., object], *arguments: Any) -> None:
        """Change the pool's state with the lock held, then do what comes of it."""
        actions: _Actions | None = None
        try:
            with self.lock:
                if self._torn:
                    actions = _Actions()
                    self._mend(actions)
                change(*arguments)
                if actions is not None or self._core.pool.outstanding or self.quiet is not None:
                    actions = actions or _Actions()
                    self._collect(actions)
            if actions is not None:
                self._do(actions)
        except AgentClosed:
            raise
        except BaseException:
            self.struck(actions)
            raise

    def struck(self, actions: _Actions | None = None) -> None:
        """An exception came in the middle of a change: do what is left of it, and mend the pool, for others wait."""
        self._torn = True
        if actions is not None:
            for connection, reason in actions.closing:
                connection.transport.shut(connection, reason)
            if actions.abandoned is not None:
                actions.abandoned.broken = True
                actions.abandoned.close()
                self.alone.discard(actions.abandoned)
        mended = _Actions()
        with self.lock:
            if self._torn:
                self._mend(mended)
            self._collect(mended)
        self._do(mended)

    def _mend(self, actions: _Actions) -> None:
        """Put the pool in order again; call with the lock held."""
        waiters = [waiter for waiters in self.waiters.values() for waiter in waiters]
        carried = [waiter.dialling for waiter in waiters if waiter.dialling is not None]
        carried += self.alone
        for connection in self._core.mend(
            [waiter.exchange for waiter in waiters],
            [dialling.dial for dialling in carried],
            {dialling.connection for dialling in carried},
        ):
            actions.closing.append((connection, "interrupted"))
        actions.waking += waiters
        self._torn = False

    def _collect(self, actions: _Actions) -> None:
        """Drain and place the effects; call with the lock held."""
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
        if self.quiet is not None and not self._core.busy:
            self.quiet.set()

    def _place(self, dialling: Dialling, cause: Ticket[Connection] | None, actions: _Actions) -> None:
        if cause is None:
            self.alone.add(dialling)
            return
        waiter: Waiter | None = cause.user.waker
        if waiter is None or waiter.dialling is not None:
            waiter = _first_free(self.waiters.get(dialling.dial.plan.key, ()))
        if waiter is None:
            self._core.dial_failed(dialling.dial, None, time.monotonic())
        else:
            waiter.dialling = dialling
            actions.waking.append(waiter)

    def _do(self, actions: _Actions) -> None:
        for waiter in actions.waking:
            waiter.wake()
        for connection, reason in actions.closing:
            connection.transport.shut(connection, reason)
        if self._core.listening():
            for connection, reason in actions.closing:
                if connection.info is not None:
                    self._core.emit(Closed(connection.plan.key.digest, connection.info, reason))
        if actions.abandoned is not None:
            self._abandon(actions.abandoned)

    def stats(self) -> AgentStats:
        """Return all counters."""
        if self._torn:
            self.change(_nothing)
        with self.lock:
            return self._core.stats()


def _nothing() -> None:
    """Change nothing: what was left by others is done all the same."""


def _first_free(waiters: Iterable[Waiter]) -> Waiter | None:
    """Return the waiter that has waited longest among those that do not dial."""
    return next((waiter for waiter in waiters if waiter.dialling is None), None)
