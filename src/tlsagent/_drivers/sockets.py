"""
What the drivers do with plain non-blocking sockets.

No function of `socket` or `select` is bound at import, so that gevent may replace them at any time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import select
import socket
import sys
from typing import TYPE_CHECKING, Final, cast

from tlsagent._drivers import fork
from tlsagent._drivers.addresses import Address
from tlsagent.errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tlsagent._connection import Connection
    from tlsagent._identity import Route

LONGEST_WAIT: Final = 3_600.0
"""Seconds after which a wait looks again; poll() cannot wait for ever and in milliseconds at once."""


_UNDER_WAY: Final = frozenset({0, errno.EALREADY, errno.EAGAIN})


def new_socket(address: Address, route: Route) -> socket.socket:
    """Return a non-blocking socket for an address, with the options and the local end that the route asks for."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        fork.watch_socket(sock)
        sock.setblocking(False)
        if not isinstance(address.sockaddr, str):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, route.no_delay)
            if route.tcp_keep_alive is not None:
                _keep_alive(sock, route.tcp_keep_alive)
            if route.local_address is not None or route.local_port is not None:
                _bind(sock, address.family, route.local_address, route.local_port or 0)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, family: int, local_address: str | None, port: int) -> None:
    if local_address is not None and (":" in local_address) != (family == socket.AF_INET6):
        raise OSError(errno.EINVAL, f"local_address {local_address} is of the other family")
    sock.bind((local_address or "", port))


def _keep_alive(sock: socket.socket, delay: float) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has the same option under another name.
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
    if idle is not None and delay > 0:
        sock.setsockopt(socket.IPPROTO_TCP, idle, max(1, math.ceil(delay)))


def unix_address(path: str) -> Address:
    """Return the address of a Unix socket; a platform without them gives `ConnectError`."""
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise ConnectError("path needs Unix sockets, which this platform lacks", code="ERR_TLSAGENT_UNSUPPORTED")
    return Address(family, path)


def begin_connect(address: Address, route: Route) -> tuple[socket.socket, bool]:
    """
    Return a socket for an address, and whether it is connected already; if not, connecting it again goes on.

    Linux has a connection within the host ready when connect() returns, and says so to whoever calls it again; that
    spares a wait in the event loop. Elsewhere a second call may lose the outcome of the first: nothing is begun.

    Raises:
        OSError: The attempt has failed.
    """
    sock = new_socket(address, route)
    if sys.platform != "linux":
        return sock, False
    try:
        code = sock.connect_ex(address.sockaddr)
        if code == errno.EINPROGRESS:
            code = sock.connect_ex(address.sockaddr)
        if code not in _UNDER_WAY:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock, code == 0


def users_socket(given: object) -> socket.socket:
    """Return the socket that the option `socket` gave, non-blocking."""
    sock = cast("socket.socket", given)
    fork.watch_socket(sock)
    sock.setblocking(False)
    return sock


def names_of(sock: socket.socket) -> tuple[object, object]:
    """Return the local and the remote address of a socket."""
    try:
        return sock.getsockname(), sock.getpeername()
    except OSError:
        return None, None


def receive(sock: socket.socket, connection: Connection, buffer: memoryview, now: float) -> bool:
    """Feed a connection what one read gives, without waiting; returns False if there was nothing."""
    try:
        count = sock.recv_into(buffer)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError as error:
        connection.receive_error(error, now)
        return True
    if count:
        connection.receive_data(buffer[:count], now)
    else:
        connection.receive_eof(now)
    return True


def drain(sock: socket.socket, connection: Connection, buffer: memoryview, now: float) -> None:
    """
    Feed a connection all that lies unread in its socket, without waiting.

    Called before a connection is used again: whatever came in meanwhile answers no request of ours. The connection
    tells late session tickets from an end or a response that nobody asked for; only then it is dead.
    """
    while connection.dead is None and receive(sock, connection, buffer, now):
        pass


def read_rest(sock: socket.socket, connection: Connection, buffer: memoryview, now: float) -> None:
    """
    Feed a connection what had come before its socket broke, of which the caller tells it afterwards.

    A peer that closes while we write has often answered first, and its response counts more than our failure to write.
    """
    with contextlib.suppress(OSError):
        while connection.dead is None and (count := sock.recv_into(buffer)):
            connection.receive_data(buffer[:count], now)


def peeker(sock: socket.socket) -> Callable[[], object]:
    """Return a function that tells whether there may be something to read: cheaper than a read that finds nothing."""
    if not hasattr(select, "poll"):
        return lambda: True
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return functools.partial(poller.poll, 0)


def wait(readers: Iterable[socket.socket], writers: Iterable[socket.socket], seconds: float) -> None:
    """Wait until a socket is ready, or for some seconds; who was ready shows at the next attempt."""
    seconds = min(max(seconds, 0.0), LONGEST_WAIT)
    if not hasattr(select, "poll"):
        writing = list(writers)
        select.select(list(readers), writing, writing, seconds)
        return
    masks: dict[int, int] = {}
    for sock in readers:
        masks[sock.fileno()] = select.POLLIN
    for sock in writers:
        masks[sock.fileno()] = masks.get(sock.fileno(), 0) | select.POLLOUT
    poller = select.poll()
    for descriptor, mask in masks.items():
        poller.register(descriptor, mask)
    poller.poll(math.ceil(seconds * 1000))


class Wire:
    """
    The socket of a connection in a thread: never blocks by itself.

    Attributes:
        sock: The socket.
        pending: Bytes that the socket did not take yet.
        peek: Whether there may be something to read.
    """

    __slots__ = ("_poller", "peek", "pending", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pending = b""
        self.peek = peeker(sock)
        self._poller = None
        if hasattr(select, "poll"):
            self._poller = select.poll()
            self._poller.register(sock.fileno(), select.POLLIN)

    def flush(self, connection: Connection, now: float) -> bool:
        """Send what the connection has to say; returns whether all of it went."""
        data = connection.data_to_send()
        if self.pending:
            data = self.pending + data
        if not data:
            return True
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._send_failed(connection, error, now)
            return True
        self.pending = data[sent:] if sent < len(data) else b""
        return not self.pending

    def _send_failed(self, connection: Connection, error: OSError, now: float) -> None:
        """A peer that closed may have answered first: its response counts more than our failure to write."""
        self.pending = b""
        if connection.dead is None:
            drain(self.sock, connection, memoryview(bytearray(65_536)), now)
        if connection.dead is None:
            connection.receive_error(error, now)

    def receive(self, connection: Connection, buffer: memoryview, now: float) -> bool:
        """Feed the connection what one read gives; returns False if there was nothing."""
        return receive(self.sock, connection, buffer, now)

    def wait(self, seconds: float) -> None:
        """Wait until there is something to read, or to write if bytes are pending."""
        if self.pending or self._poller is None:
            wait([self.sock], [self.sock] if self.pending else [], seconds)
        else:
            if not 0.0 <= seconds <= LONGEST_WAIT:
                seconds = min(max(seconds, 0.0), LONGEST_WAIT)
            self._poller.poll(math.ceil(seconds * 1000))

    def shut(self, connection: Connection, reason: str) -> None:
        """End the connection in good order, unless it has ended, and close the socket."""
        if connection.dead is None:
            connection.close(reason)
        self.close(connection)

    def close(self, connection: Connection) -> None:
        """Close the socket; a last message (close_notify, an alert) goes if the socket takes it at once."""
        try:
            data = self.pending + connection.data_to_send()
            if data:
                self.sock.send(data)
        except OSError:
            pass  # the peer is gone: there is nobody to tell
        self.sock.close()

    def disown(self) -> None:
        """Forget the socket without a byte to its peer: in the child of a fork, where its descriptor leads nowhere."""
        self.pending = b""
        self.sock.close()

    def interrupt(self) -> None:
        """Make whoever waits for the socket see its end. May be called by any thread."""
        with contextlib.suppress(OSError):  # not connected any more: whoever waits has seen it
            self.sock.shutdown(socket.SHUT_RDWR)
