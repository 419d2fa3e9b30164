"""
How a thread waits for a connection, and how it is woken: by other threads, by finalisers, while it dials as well.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from tlsagent._drivers import fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._drivers.dialling import Dialling
    from tlsagent._exchange import Exchange


class WakeUp:
    """
    A pair of sockets: who waits for others can be woken through it.

    It may be let go of without `close`: who is about to call `set` holds it still.
    """

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        fork.watch_socket(self.reader)
        fork.watch_socket(self._writer)
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

    def __del__(self) -> None:
        if hasattr(self, "_writer"):
            self.close()


class Waiter:
    """
    A thread that waits for a connection.

    Attributes:
        exchange: What it waits for.
        dialling: The attempt it carries out, if any. Guarded by the agent lock.
        wake_up: Its descriptor while it dials.
        call: What wakes it while it reads on a connection that nobody else reads on.
    """

    __slots__ = ("_asleep", "call", "dialling", "exchange", "wake_up")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.dialling: Dialling | None = None
        self.wake_up: WakeUp | None = None
        self.call: Callable[[], object] | None = None
        # Held unless it was woken. Not an Event: that has a lock of its own, which a finaliser must not wait for.
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def wake(self) -> None:
        """Wake it. May be called by any thread, and from a finaliser: it waits for nothing."""
        with contextlib.suppress(RuntimeError):  # it was woken before
            self._asleep.release()
        wake_up = self.wake_up
        if wake_up is not None:
            wake_up.set()
        call = self.call
        if call is not None:
            call()

    def sleep(self, seconds: float) -> None:
        """Wait for `wake`, at most some seconds."""
        self._asleep.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))
