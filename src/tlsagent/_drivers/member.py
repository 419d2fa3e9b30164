"""
A thread's part in the crew of a shared connection: what it does there for one exchange.

Whoever waits, reads or sends here has the exchange `leave` afterwards. What a change has brought, the connection's news
and the exchanges that are ready, is carried on by `_deliver`; an exception on the way is `struck`.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Any, cast

from tlsagent._body import Body
from tlsagent.events import Freed, GoAway

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._connection import Connection, News
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._drivers.crew import Crew, Found
    from tlsagent._drivers.threads import Agent
    from tlsagent._exchange import Exchange
    from tlsagent._multiplex import Stream


class Member:
    """
    One exchange on a shared connection, for the thread that calls. Made for the moment: all it knows is who belongs
    together.
    """

    __slots__ = ("_agent", "_connection", "_crew", "_exchange")

    def __init__(self, agent: Agent, connection: Connection, exchange: Exchange) -> None:
        self._agent = agent
        self._connection = connection
        self._exchange = exchange
        self._crew: Crew = connection.transport

    # --- A request ----------------------------------------------------------------------------------------------------

    def perform(self, now: float) -> bool:
        """
        Send the request and wait until what the caller waits for is here; returns False if the connection, which was
        granted, will not do: nothing was sent.
        """
        exchange, core = self._exchange, self._agent._core
        try:
            if not self._begin(now):
                self.leave()
                return False
            if core.listeners or exchange.trace is not None:
                self.leave()
                core.tell_started(exchange)
            if isinstance(exchange.body, Body):
                self._send_body(exchange.body)
            while not exchange.ready:
                self._turn(self._waiting)
            self.leave()
        except BaseException:
            self.struck()
            raise
        return True

    def pump(self) -> None:
        """Wait until what the caller waits for is here."""
        exchange = self._exchange
        try:
            while not exchange.ready:
                self._turn(self._waiting)
            self.leave()
        except BaseException:
            self.struck()
            raise

    def _waiting(self) -> bool:
        return not self._exchange.ready

    def _begin(self, now: float) -> bool:
        exchange = self._exchange
        if exchange.head.upgrade and self._needs_other(now):
            return False
        if exchange.lease.may_be_stale:
            self._look_in(now)
        if not self._crew.do(self._start, now):
            return False
        if exchange.plan.inactivity is not None:
            self._crew.hurry()
        if exchange.error is not None:
            self.leave()
            self._act(_nothing)
        return True

    def _start(self, now: float) -> bool:
        if self._exchange.lease.may_be_stale:
            self._connection.check_idle(now)
        if self._connection.refuses(now) is not None:
            return False
        self._agent._core.start(self._exchange, now)
        return True

    def _look_in(self, now: float) -> None:
        """Take what lies unread in the socket, unless somebody else reads there anyway; leads then, as a rule."""
        agent, crew = self._agent, self._crew
        found: list[Found] = []
        if not crew.lead(self._exchange):
            return
        while self._connection.dead is None and crew.peek():
            buffer = agent._borrow()
            read = crew.read(buffer, now)
            agent._buffers.append(buffer)
            if read is not None:
                found.append(read)
        if found:
            self.leave()
            for one in found:
                self._deliver(one, now)

    def _needs_other(self, now: float) -> bool:
        lease = self._exchange.lease
        self._agent._desk.change(self._agent._core.needs_other, self._exchange, now)
        return self._exchange.lease is not lease

    def _send_body(self, body: Body) -> None:
        """Send the body piece by piece, as far as it is wanted."""
        exchange = self._exchange
        while exchange.holding and _wanted(exchange):
            self._turn(lambda: exchange.holding and _wanted(exchange))
        self.leave()
        if _wanted(exchange):
            self._send_pieces(body)

    def _send_pieces(self, body: Body) -> None:
        connection, crew, exchange = self._connection, self._crew, self._exchange

        def waiting() -> bool:
            return (crew.full or exchange.blocked) and _wanted(exchange)

        with contextlib.closing(body.pieces()) as pieces:
            for piece in pieces:
                if not crew.do(connection.send_body, exchange, piece, time.monotonic()):
                    break
                while waiting():
                    self._turn(waiting)
                # A peer that reads as fast as we write never makes us wait: look whether it has answered.
                self._look_in(time.monotonic())
                if not _wanted(exchange):
                    break
                self.leave()  # the next piece may take its time
        self.leave()
        self._act(connection.end_body, exchange, time.monotonic())

    def drop(self) -> None:
        """Give up the exchange, or what was not read of one that has ended."""
        try:
            self._act(self._connection.drop, self._exchange, time.monotonic(), "dropped")
            self.leave()
        except BaseException:
            self.struck()
            raise

    # --- A tunnel -----------------------------------------------------------------------------------------------------

    def turn_tunnel(self, waiting: Callable[[], bool], limit: float) -> None:
        """Wait once on behalf of what was taken over."""
        try:
            self._turn(waiting, limit)
            self.leave()
        except BaseException:
            self.struck()
            raise

    def hang_up(self, stream: Stream) -> None:
        """End what was taken over."""
        try:
            self._act(stream.hang_up, "close")
        except BaseException:
            self.struck()
            raise

    # --- Waiting and reading ------------------------------------------------------------------------------------------

    def _turn(self, waiting: Callable[[], bool], limit: float = math.inf) -> None:
        """Wait once for something to happen, if still needed: as the leader for the socket, else to be woken."""
        connection, crew, exchange = self._connection, self._crew, self._exchange
        now = time.monotonic()
        if not crew.lead(exchange):
            crew.follow(exchange, min(exchange.deadline, limit) - now, waiting)
            now = time.monotonic()
            if now >= exchange.deadline and not exchange.ready:
                self._act(connection.handle_timeout, now)
            return
        deadline = min(connection.next_deadline(), limit)
        if now < deadline:
            if not waiting():  # the leader before has seen to it
                return
            crew.wait(deadline, now)
        self.read()
        if self._agent._core.abandoned:
            crew.promote()
            self._agent._drop_abandoned()

    def read(self) -> None:
        """Take what one read gives, as the leader, who leads no more then."""
        agent, crew = self._agent, self._crew
        now = time.monotonic()
        buffer = agent._borrow()
        found = crew.read(buffer, now)
        agent._buffers.append(buffer)
        crew.resign(self._exchange)
        if found is not None:
            self._deliver(found, now)

    def leave(self) -> None:
        """Stop waiting here, and see to it that somebody reads if any thread needs that."""
        if not self._crew.leave(self._exchange) and self._agent._desk.waiters:
            self._agent._desk.rouse(self._connection.plan.key)

    def struck(self) -> None:
        """An exception came: nothing is held any more, and what may have been found and not told is told anew."""
        self.leave()
        self._crew.wake_all()
        self._act(self._connection.tell_anew)

    def catch_up(self) -> None:
        """Take what one read gives, unless somebody reads there anyway. An exception is the caller's to deal with."""
        if self._crew.lead(self._exchange):
            self.read()
            self.leave()

    # --- What comes of it ---------------------------------------------------------------------------------------------

    def _act(self, change: Callable[..., object], *arguments: Any) -> None:
        """Change the connection, and do what comes of it."""
        now = time.monotonic()
        self._deliver(self._crew.act(now, change, *arguments), now)

    def _deliver(self, found: Found, now: float) -> None:
        """Carry the connection's news over to the core, and wake those whose exchange is ready."""
        connection, crew, core = self._connection, self._crew, self._agent._core
        ready, news = found
        if connection.sessions:
            self.leave()  # the store is the user's, and so are callbacks
            core.keep_sessions(connection, self._exchange, crew.change(connection.take_sessions))
        if news is not None:
            self._agent._desk.change(core.settle_shared, connection, news, now)
        for other in ready:
            if other is not self._exchange:
                crew.wake(other)
        if news is not None and (core.listeners or any(map(core.listening, news.ended))):
            self.leave()
            self._tell(news)

    def _tell(self, news: News) -> None:
        connection, core = self._connection, self._agent._core
        shared, key, info = connection.shared, connection.plan.key.digest, cast("ConnectionInfo", connection.info)
        assert shared is not None
        farewell = self._crew.change(shared.take_farewell) if shared.farewell is not None else None
        if farewell is not None:
            core.emit(GoAway(key, info, *farewell))
        if news.dead is None:
            for ended in news.ended:
                core.emit(Freed(key, info), ended)


def _wanted(exchange: Exchange) -> bool:
    """Whether the upload is still wanted."""
    return exchange.lease is not None and exchange.error is None and not exchange.upload_stopped


def _nothing() -> None:
    """Change nothing: what has come of a change before is told all the same."""
