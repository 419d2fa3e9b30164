"""
The threads at work on one shared connection: who reads, who sends, who waits for whom.

Theory of operation
-------------------
The *connection lock* guards the connection: its engines, its exchanges. Nothing is waited for, sent or called out to
while it is held, and the agent lock is never taken together with it.

- *Reading.* Of the threads that wait for a response one is the leader: it waits for the socket and reads without a
  lock, feeds under it, and wakes those whose exchange is ready. The others, the followers, sleep. Whoever stops
  waiting, or is about to run what is the user's, promotes the oldest follower if nobody leads. A follower looks whether
  somebody leads once more after it has enlisted, so that it cannot miss the leader's leaving. Where nobody waits for a
  response, who waits in the pool's queue for a place leads, on all such connections: what a peer says may free one.
- *Sending.* What the connection has to say is made and sent by one thread at a time, for all: who finds another one at
  it has left word (`_wanted`), and the other looks again after it has let go. While the socket takes no more, nothing
  more is made: the leader waits for it to take more too, and is called if it waits for input alone. Once there is room
  it wakes the followers that have something to send.
- *The end.* The descriptor is waited on and read by the leader alone, and written by whoever sends: so it is shut down,
  and closed only when it has neither, by a closer that leads ever after.

*Posts*, leading and sending, are no locks. One is taken by a single call of `dict.setdefault`, which says who holds it
also to a thread that an exception strikes right after the call; a lock would be held by nobody then. Whoever may have
taken one gives it up on every way out.

An exception that strikes while the connection is being changed, or between the socket and the connection, leaves it in
pieces or bytes missing: it ends there, for everybody.
"""

from __future__ import annotations

import math
import select
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from tlsagent._drivers.sockets import LONGEST_WAIT, wait
from tlsagent._drivers.waiting import Waiter, WakeUp
from tlsagent.errors import ConnectionLost

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from tlsagent._connection import Connection, News
    from tlsagent._drivers.sockets import Wire
    from tlsagent._exchange import Exchange

T = TypeVar("T")

_LEADER: Final = "leader"
_SENDER: Final = "sender"
_CLOSER: Final = object()
"""Leads where the descriptor is closed."""

Found: TypeAlias = "tuple[list[Exchange], News | None]"
"""What came of a change: exchanges whose threads are to go on, and what the agent is to be told."""


class Crew:
    """
    One shared connection and its threads; its `transport`.

    Raises:
        OSError: No descriptor is left to call a leader by.
    """

    __slots__ = (
        "_broken",
        "_closed",
        "_closing",
        "_connection",
        "_followers",
        "_lock",
        "_mask",
        "_mute",
        "_pending",
        "_poller",
        "_posts",
        "_until",
        "_wake_up",
        "_wanted",
        "_wire",
    )

    def __init__(self, connection: Connection, wire: Wire) -> None:
        self._connection = weakref.ref(connection)  # no cycle: TLS and its buffers are to go with the connection
        self._wire = wire
        self._lock = threading.Lock()
        self._posts: dict[str, object] = {}
        self._followers: dict[Exchange, Waiter] = {}  # oldest first
        self._wanted = False
        self._pending = wire.pending
        self._mute: OSError | None = None  # why the peer takes nothing any more
        self._broken = False
        self._closing = False
        self._closed = False
        self._until = math.inf  # when the leader looks again by itself, while it waits
        self._wake_up: WakeUp | None = WakeUp()
        self._mask = 0
        self._poller = select.poll() if hasattr(select, "poll") else None
        if self._poller is not None:
            self._poller.register(self._wake_up.reader.fileno(), select.POLLIN)
            self._mask = select.POLLIN
            self._poller.register(wire.sock.fileno(), self._mask)

    @property
    def connection(self) -> Connection:
        """The connection, whose crew this is as long as somebody has hold of it."""
        connection = self._connection()
        assert connection is not None
        return connection

    @property
    def collected(self) -> bool:
        """Whether the collector has found the connection, together with whose finaliser asks."""
        return self._connection() is None

    # --- Changes ------------------------------------------------------------------------------------------------------

    def change(self, change: Callable[..., T], *arguments: Any) -> T:
        """Call what changes the connection, with its lock held; it must raise nothing of its own accord."""
        try:
            with self._lock:
                try:
                    return change(*arguments)
                except BaseException:
                    self._break()
                    raise
        except BaseException:
            if self._broken:
                self._alarm()
            raise

    def do(self, change: Callable[..., T], *arguments: Any) -> T:
        """Change the connection, and send what it has to say then."""
        me = object()
        try:
            if self._pending or self._posts.setdefault(_SENDER, me) is not me:
                result = self.change(change, *arguments)
            else:
                connection = self._connection()
                assert connection is not None
                with self._lock:
                    try:
                        result = change(*arguments)
                        data = connection.data_to_send() if self._mute is None else b""
                    except BaseException:
                        self._break()
                        raise
                if data:
                    self._write(data)
                del self._posts[_SENDER]
                if not (self._wanted or self._closed):
                    return result
        except BaseException:
            self._spoil()
            self._give_up(_SENDER, me)
            self.flush()  # others may have left word
            raise
        self.flush()
        return result

    def act(self, now: float, change: Callable[..., object], *arguments: Any) -> Found:
        """Do what changes the connection, and return what came of it."""
        return self.do(self._acted, now, change, arguments)

    def _acted(self, now: float, change: Callable[..., object], arguments: tuple[Any, ...]) -> Found:
        change(*arguments)
        return _look(self.connection, now)

    def _break(self) -> None:
        """End the connection: nobody knows what of it is half done. Call with the lock held."""
        self._broken = True
        shared = self.connection.shared
        assert shared is not None
        lost = ConnectionLost("the connection was in the middle of a change when an exception struck")
        self.connection.fail(lost, shared.now, "interrupted")

    def _alarm(self) -> None:
        """Have everybody see the end."""
        self.interrupt()
        self.wake_all()

    def _spoil(self) -> None:
        """An exception struck between socket and connection, where bytes may be lost."""
        with self._lock:
            self._break()
        self._alarm()

    def _give_up(self, post: str, holder: object) -> None:
        if self._posts.get(post) is holder:
            del self._posts[post]

    # --- Sending ------------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether something waits for the socket to take more."""
        return bool(self._pending)

    def flush(self) -> bool:
        """Send what the connection has to say, or leave word to who is sending; returns whether nothing is pending."""
        self._wanted = True
        me = object()
        try:
            while self._wanted and self._posts.setdefault(_SENDER, me) is me:
                self._wanted = False
                gone = self._send()
                if self._closed and not self._wanted:  # else last messages may have been left meanwhile
                    self._pending = b""
                    self._wire.sock.close()
                del self._posts[_SENDER]
                if not (gone or self._closed):
                    break
        except BaseException:
            self._spoil()
            self._give_up(_SENDER, me)
            self.flush()  # others may have left word
            raise
        return not self._pending

    def _send(self) -> bool:
        if self._mute is not None:
            return True
        if self._pending:
            if not self._write(self._pending):
                return False
            self._make_way()
        data = self.change(self.connection.data_to_send)
        return not data or self._write(data)

    def _write(self, data: bytes) -> bool:
        """Send, and keep what the socket does not take; returns whether all of it went. For the sender."""
        try:
            sent = self._wire.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            # It may have answered before it went, and the reader will find its end behind that.
            self._mute, self._pending = error, b""
            self.call()
            return True
        before = self._pending
        self._pending = data[sent:]
        if self._pending and not before:
            self.call()  # who waits for input alone
        return not self._pending

    def _make_way(self) -> None:
        """Wake those who wait for the socket to take more."""
        for exchange, waiter in list(self._followers.items()):
            if exchange.sent_at is None or exchange.switched is not None:
                waiter.wake()

    # --- Reading ------------------------------------------------------------------------------------------------------

    def lead(self, exchange: Exchange) -> bool:
        """Become the leader if there is none; whoever did must `resign`, or `leave`."""
        return not self._closing and self._posts.setdefault(_LEADER, exchange) is exchange

    def resign(self, exchange: Exchange) -> None:
        """Lead no more. Idempotent."""
        if self._posts.get(_LEADER) is exchange:
            del self._posts[_LEADER]
        if self._closing:
            self._finish()

    def peek(self) -> bool:
        """Return whether there may be something to read. For the leader."""
        return bool(self._wire.peek())

    def wait(self, deadline: float, now: float) -> None:
        """Wait for the socket, or to be called. For the leader."""
        wake_up = self._wake_up
        if wake_up is None:
            return
        sock, seconds = self._wire.sock, min(max(deadline - now, 0.0), LONGEST_WAIT)
        self._until = deadline
        if self._poller is None:
            wait([sock, wake_up.reader], [sock] if self._pending else [], seconds)
            wake_up.clear()
        else:
            mask = select.POLLIN | select.POLLOUT if self._pending else select.POLLIN
            if mask != self._mask:
                self._mask = mask
                self._poller.modify(sock.fileno(), mask)
            found = self._poller.poll(math.ceil(seconds * 1000))
            if len(found) > 1 or (found and found[0][0] != sock.fileno()):
                wake_up.clear()
        self._until = math.inf

    @staticmethod
    def wait_for_any(
        crews: list[Crew],
        deadline: float,
        now: float,
        readers: Iterable[socket.socket] = (),
        writers: Iterable[socket.socket] = (),
    ) -> None:
        """Wait for the socket of any of them, for other sockets, or to be called. For who leads them all."""
        sockets = [crew._wire.sock for crew in crews]
        wake_ups = [crew._wake_up for crew in crews if crew._wake_up is not None]
        for crew in crews:
            crew._until = deadline
        full = [crew._wire.sock for crew in crews if crew._pending]
        called = [wake_up.reader for wake_up in wake_ups]
        wait([*readers, *sockets, *called], [*writers, *full], deadline - now)
        for wake_up in wake_ups:
            wake_up.clear()
        for crew in crews:
            crew._until = math.inf

    def call(self) -> None:
        """Have the leader look again, if there is one. It waits for nothing: a finaliser may call."""
        wake_up = self._wake_up
        if wake_up is not None and _LEADER in self._posts:
            wake_up.set()

    def hurry(self) -> None:
        """Call the leader if it waits beyond the next deadline of the connection."""
        if self.connection.next_deadline() < self._until:
            self.call()

    def read(self, buffer: memoryview, now: float) -> Found | None:
        """Feed what one read gives, without waiting, and what is overdue; None if it was neither. For the leader."""
        got: int | OSError | None
        if self._closed:
            return None
        try:
            try:
                got = self._wire.sock.recv_into(buffer)
            except (BlockingIOError, InterruptedError):
                got = self._mute
            except OSError as error:
                got = error
            if got is None and now < self.connection.next_deadline():
                self.flush()
                return None
            return self.do(self._take_in, buffer, got, now)
        except BaseException:
            self._spoil()
            raise

    def _take_in(self, buffer: memoryview, got: int | OSError | None, now: float) -> Found:
        connection = self.connection
        if isinstance(got, OSError):
            connection.receive_error(got, now)
        elif got:
            connection.receive_data(buffer[:got], now)
        elif got == 0:
            connection.receive_eof(now)
        if now >= connection.next_deadline():
            connection.handle_timeout(now)
        return _look(connection, now)

    # --- Waiting ------------------------------------------------------------------------------------------------------

    def follow(self, exchange: Exchange, seconds: float, waiting: Callable[[], bool]) -> None:
        """Sleep until woken, at most for some seconds, if somebody leads and there is still something to wait for."""
        waiter = Waiter(exchange)
        self._followers[exchange] = waiter
        if _LEADER in self._posts and not self._closing and waiting():
            waiter.sleep(seconds)
        self._followers.pop(exchange, None)

    def promote(self) -> bool:
        """Wake the oldest follower if nobody leads; returns False if there is nobody who might."""
        if _LEADER in self._posts:
            return True
        for waiter in list(self._followers.values()):
            waiter.wake()
            return True
        return False

    def leave(self, exchange: Exchange) -> bool:
        """
        Neither lead nor follow any more, and see to it that another one leads; returns False if there is none.

        Idempotent.
        """
        self._followers.pop(exchange, None)
        if self._posts.get(_LEADER) is exchange or self._closing:
            self.resign(exchange)
        return self.promote() if self._followers else _LEADER in self._posts

    def wake(self, exchange: Exchange) -> None:
        """Wake the thread that waits for an exchange, if it sleeps."""
        waiter = self._followers.get(exchange)
        if waiter is not None:
            waiter.wake()

    def wake_all(self) -> None:
        """Have every follower look for itself."""
        for waiter in list(self._followers.values()):
            waiter.wake()

    # --- The end ------------------------------------------------------------------------------------------------------

    def shut(self, connection: Connection, reason: str) -> None:
        """Close the socket, or have the leader do so; last messages go if the socket takes them at once."""
        self.change(self._end, connection, reason)
        self.flush()
        self._closing = True
        self._finish()
        self.call()  # and no shutdown: another thread may be about to send the last messages
        self.wake_all()

    def _end(self, connection: Connection, reason: str) -> None:
        if connection.dead is None:
            connection.close(reason)
        shared = connection.shared
        if shared is not None and shared.busy:
            shared.fail(connection.error or ConnectionLost(f"the connection was closed: {reason}"), shared.now)

    def _finish(self) -> None:
        """Close the socket unless somebody leads; who does so leads for ever. May be called again."""
        if self._posts.setdefault(_LEADER, _CLOSER) is _CLOSER:
            self._closed = True
            self._wake_up = None  # closed once nobody is about to use it
            self.flush()

    def interrupt(self) -> None:
        """Make whoever waits for the socket see its end. May be called by any thread."""
        self._wire.interrupt()

    def disown(self) -> None:
        """Forget the socket without a byte to its peer: in the child of a fork, whose threads are not those of here."""
        self._lock = threading.Lock()
        self._posts = {_LEADER: _CLOSER}
        self._pending = b""
        self._mute = OSError("the process has forked")
        self._closing = self._closed = True
        self._wake_up = None
        self._wire.disown()
        self.wake_all()


def _look(connection: Connection, now: float) -> Found:
    shared = connection.shared
    assert shared is not None
    ready = []
    for exchange in shared.take_touched():
        if exchange.ready or exchange.nudged:
            exchange.nudged = False
            ready.append(exchange)
    return ready, connection.take_news(now)
