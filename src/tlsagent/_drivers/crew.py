"""
The threads at work on one shared connection: who reads, who sends, who waits for whom.

Theory of operation
-------------------
The *connection lock* guards the connection: its engines, its exchanges. Nothing is waited for, sent or called out to
while it is held, and the agent lock is never taken together with it.

- *Reading.* Of the threads that wait for a response one is the leader: it waits for the socket and reads without a
  lock, feeds under it, and wakes those whose exchange is ready. The others, the followers, sleep. Whoever stops waiting
  promotes the oldest follower if nobody leads (`promote`). A follower tries to lead once more after it has enlisted, so
  that it cannot miss the leader's leaving.
- *Sending.* What the connection has to say is made and sent by whoever gets the send lock, for all: who fails to get it
  has left word (`_wanted`), and the holder looks again before and after it lets go. While the socket takes no more,
  nothing more is made. A thread that waits for the socket to take more watches it itself, through a descriptor by which
  it can be woken: its exchange may end while it waits.
- *The end.* A descriptor that somebody may be waiting on is not closed: it is shut down, and the last to leave closes
  it.

An exception that strikes while the connection is being changed leaves it in pieces: it ends there, for everybody.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from tlsagent._drivers.sockets import wait
from tlsagent._drivers.waiting import Waiter
from tlsagent.errors import ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._connection import Connection, News
    from tlsagent._drivers.sockets import Wire
    from tlsagent._drivers.waiting import WakeUp
    from tlsagent._exchange import Exchange

T = TypeVar("T")


class Crew:
    """One shared connection and its threads; its `transport`."""

    __slots__ = (
        "_closed",
        "_closing",
        "_connection",
        "_followers",
        "_leader",
        "_lock",
        "_mute",
        "_pending",
        "_roles",
        "_sending",
        "_staying",
        "_wanted",
        "_wire",
    )

    def __init__(self, connection: Connection, wire: Wire) -> None:
        self._connection = weakref.ref(connection)  # no cycle: TLS and its buffers are to go with the connection
        self._wire = wire
        self._lock = threading.Lock()
        self._roles = threading.Lock()
        self._leader: Exchange | None = None
        self._followers: dict[Exchange, Waiter] = {}  # oldest first
        self._staying: set[Exchange] = set()  # whose threads may be using the descriptor
        self._sending = threading.Lock()
        self._wanted = False
        self._pending = wire.pending
        self._mute = False  # the peer takes nothing any more
        self._closing = False
        self._closed = False

    @property
    def connection(self) -> Connection:
        """The connection, whose crew this is as long as somebody has hold of it."""
        connection = self._connection()
        assert connection is not None
        return connection

    def change(self, change: Callable[..., T], *arguments: Any) -> T:
        """Call what changes the connection, with its lock held."""
        with self._lock:
            try:
                return change(*arguments)
            except BaseException:
                self._break()
                raise

    def _break(self) -> None:
        """End the connection: an exception came in the middle of a change, and nobody knows what is half done."""
        connection = self.connection
        lost = ConnectionLost("the connection was in the middle of a change when an exception struck")
        connection.abort("interrupted")
        if connection.shared is not None:
            connection.shared.fail(lost, connection.shared.now)

    # --- Sending ------------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether something waits for the socket to take more."""
        return bool(self._pending)

    def flush(self) -> bool:
        """Send what the connection has to say; returns whether all of it went, or another thread is at it."""
        self._wanted = True
        while self._wanted and self._sending.acquire(blocking=False):
            try:
                self._wanted = False
                if not self._send():
                    return False
            finally:
                self._sending.release()
        return not self._pending

    def _send(self) -> bool:
        while True:
            data = self._pending
            if not data:
                data = self._pending = self.change(self.connection.data_to_send)
                if not data:
                    return True
            if self._mute or self._closed:
                self._pending = b""
                continue
            try:
                sent = self._wire.sock.send(data)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                # It may have answered before it went, and the reader will find its end behind that.
                self._mute = True
                continue
            self._pending = data[sent:] if sent < len(data) else b""
            if self._pending:
                return False

    # --- Reading and waiting ------------------------------------------------------------------------------------------

    def lead(self, exchange: Exchange) -> bool:
        """Become the leader if there is none; whoever did must `resign`."""
        with self._roles:
            if self._leader is not None and self._leader is not exchange:
                return False
            self._leader = exchange
            self._staying.add(exchange)
            return True

    def resign(self, exchange: Exchange) -> None:
        """Lead no more."""
        with self._roles:
            if self._leader is exchange:
                self._leader = None
            self._leave(exchange)

    def promote(self) -> bool:
        """Wake the oldest follower if nobody leads; returns whether somebody reads."""
        if self._leader is not None:
            return True
        for waiter in list(self._followers.values()):
            waiter.wake()
            return True
        return False

    def wait(self, seconds: float, wake_up: WakeUp | None = None) -> None:
        """Wait for the socket, or to be woken; for the leader."""
        wire = self._wire
        wire.pending = self._pending
        if wake_up is None:
            wire.wait(seconds)
        else:
            wait([wire.sock, wake_up.reader], [wire.sock] if self._pending else [], seconds)

    def read(self, buffer: memoryview, now: float) -> bool:
        """Feed what one read gives, without waiting; returns False if there was nothing. For the leader."""
        if self._closed:
            return False
        try:
            count = self._wire.sock.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.change(self.connection.receive_error, error, now)
            return True
        if count:
            self.change(self.connection.receive_data, buffer[:count], now)
        else:
            self.change(self.connection.receive_eof, now)
        return True

    def drain(self, buffer: memoryview, now: float) -> bool:
        """Feed all that lies unread, without waiting; returns whether there was something. For the leader."""
        found = False
        while self._wire.peek() and self.connection.dead is None and self.read(buffer, now):
            found = True
        return found

    def follow(self, exchange: Exchange, seconds: float, waiting: Callable[[], bool], wake_up: WakeUp | None) -> None:
        """
        Sleep until woken, at most for some seconds.

        Args:
            exchange: Whose thread this is.
            seconds: The most to wait.
            waiting: Whether there is still something to wait for.
            wake_up: Where something waits for the socket: the descriptor by which to be woken meanwhile.
        """
        waiter = Waiter(exchange)
        waiter.wake_up = wake_up
        with self._roles:
            self._followers[exchange] = waiter
            self._staying.add(exchange)
        try:
            if self._leader is None or self._closing or not waiting():
                return
            if wake_up is None:
                waiter.sleep(seconds)
            else:
                wait([wake_up.reader], [self._wire.sock], seconds)
        finally:
            with self._roles:
                self._followers.pop(exchange, None)
                self._leave(exchange)

    def wake(self, exchange: Exchange) -> None:
        """Wake the thread that waits for an exchange, if it sleeps."""
        waiter = self._followers.get(exchange)
        if waiter is not None:
            waiter.wake()

    # --- News ---------------------------------------------------------------------------------------------------------

    def take_news(self, now: float) -> tuple[list[Exchange], News | None]:
        """Return the exchanges on which something came or changed, and what the agent is to be told."""
        return self.change(self._take_news, now)

    def _take_news(self, now: float) -> tuple[list[Exchange], News | None]:
        shared = self.connection.shared
        assert shared is not None
        return shared.take_touched(), self.connection.take_news(now)

    # --- The end ------------------------------------------------------------------------------------------------------

    def _leave(self, exchange: Exchange) -> None:
        self._staying.discard(exchange)
        if self._closing and not self._staying:
            self._close()

    def _close(self) -> None:
        with self._sending:
            self._closed = True
            self._wire.sock.close()

    def shut(self, connection: Connection, reason: str) -> None:
        """Close the socket, or have the last that uses it do so; last messages go if the socket takes them at once."""
        if connection.dead is None:
            self.change(connection.close, reason)
        self.flush()
        with self._roles:
            self._closing = True
            if not self._staying:
                self._close()
                return
        self.interrupt()
        for waiter in list(self._followers.values()):
            waiter.wake()

    def interrupt(self) -> None:
        """Make whoever waits for the socket see its end. May be called by any thread."""
        self._wire.interrupt()

    def disown(self) -> None:
        """Forget the socket without a byte to its peer: in the child of a fork, whose threads are not those of here."""
        self._lock, self._roles, self._sending = threading.Lock(), threading.Lock(), threading.Lock()
        self._pending = b""
        self._closing = self._closed = True
        self._wire.disown()
        for waiter in list(self._followers.values()):
            waiter.wake()
