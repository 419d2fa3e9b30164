"""
A connection attempt for drivers that wait in threads: resolve, race the addresses, shake hands, step by step.

`Dialling` never waits. Whoever holds it calls `step`, then waits for what `interest` and `deadline` name. It is plain
data between two steps, so that a thread that is served otherwise can leave it half-open to the next one.
"""

from __future__ import annotations

import errno
import math
import random
import socket
import time
from typing import TYPE_CHECKING, Final

from tlsagent._drivers import fork
from tlsagent._drivers import resolver as _resolver
from tlsagent._drivers.addresses import race_of
from tlsagent._drivers.crew import Crew
from tlsagent._drivers.sockets import Wire, names_of, new_socket, unix_address, users_socket
from tlsagent.events import Connected, Connecting

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._connection import Connection, RawSink
    from tlsagent._core import AgentCore
    from tlsagent._dial import Dial
    from tlsagent._drivers.addresses import Address, Race

_IN_PROGRESS: Final = {0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN, getattr(errno, "WSAEWOULDBLOCK", 10_035)}


class Dialling:
    """
    One attempt under way.

    Attributes:
        dial: What is dialled.
        done: Whether it has ended: with `connection` secured, with `error`, or given up.
        broken: Whether it was given up in the middle of a step.
        wake: Told by the resolver that a look-up is over; the present holder's.
    """

    def __init__(self, core: AgentCore, dial: Dial, raw: RawSink | None = None) -> None:
        self.dial = dial
        self.done = False
        self.connection: Connection | None = None
        self.error: BaseException | None = None
        self.wake: Callable[[], None] | None = None
        self._core = core
        self._raw = raw
        self._lookup: _resolver.Lookup | None = None
        self._race: Race | None = None
        self._sockets: dict[socket.socket, Address] = {}
        self._begun = False
        self.broken = False
        fork.watch(self)

    def forked(self) -> None:
        """Forget it, without a byte: in the child of a fork."""
        fork.keep(self.connection)
        self.done = self.broken = True
        self.dial.attempt = None
        self.error = fork.inherited_error()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    @property
    def deadline(self) -> float:
        """When `step` is due even if nothing happens."""
        if self.connection is not None:
            return min(self.dial.deadline, self.connection.next_deadline())
        race_at = self._race.next_deadline() if self._race is not None else math.inf
        return min(self.dial.deadline, race_at)

    def interest(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """Return the sockets to wait for: to be readable, to be writable."""
        if self.connection is None:
            return [], list(self._sockets)
        wire: Wire = self.connection.transport
        return [wire.sock], [wire.sock] if wire.pending else []

    def step(self, buffer: memoryview) -> None:
        """Go as far as is possible without waiting; what goes wrong ends the attempt."""
        try:
            self._advance(buffer)
            if not self.done and time.monotonic() >= self.dial.deadline:
                raise self.dial.overdue()
        except Exception as error:  # noqa: BLE001 - whatever a hook raised becomes the request's error
            self.error = self.error or self.dial.describe(error)
            self.close()
        except BaseException:
            # An interrupt in the middle: what is half done here is of use to nobody else.
            self.broken = True
            self.close()
            raise
        if self.broken:
            self.close()

    def close(self) -> None:
        """Give up: close what is open. The attempt is done."""
        self.done = True
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        if self.connection is not None:
            self.connection.abort("handshake")
            self.connection.transport.shut(self.connection, "handshake")

    def _advance(self, buffer: memoryview) -> None:
        if not self._begun:
            self._begun = True
            self._begin()
        if self._lookup is not None:
            self._finish_lookup(self._lookup)
        if self._race is not None and self.connection is None:
            self._run_race(self._race)
        if self.connection is not None:
            self._shake_hands(self.connection, buffer)

    def _begin(self) -> None:
        route = self.dial.plan.key.route
        if route.socket is not None:
            self._open(users_socket(route.socket))
            return
        if self._core.listening():
            host, port = (route.path, 0) if route.path else route.first_hop
            self._core.emit(Connecting(self.dial.plan.key.digest, host, port))
        if route.path is not None:
            self._connect([unix_address(route.path)])
            return
        self.dial.enter("lookup", time.monotonic())
        self._look_up()

    def _look_up(self) -> None:
        route = self.dial.plan.key.route
        host, port = self.dial.unresolved
        if route.lookup is not None:
            with _resolver.hook_errors(host):
                answer: object = route.lookup(host, route.family)
            if time.monotonic() >= self.dial.deadline:
                raise self.dial.overdue()  # nobody could stop it, but a late answer dials nothing
            self._resolved(_resolver.from_hook(host, answer, port, _resolver.family_of(route)))
        elif (addresses := _resolver.literal(host, port)) is not None:
            self._resolved(addresses)
        else:
            self._lookup = _resolver.resolver.start(host, _resolver.family_of(route), self._lookup_ended)

    def _resolved(self, addresses: list[Address]) -> None:
        if self.dial.resolved([address.host for address in addresses]):
            self._connect(addresses)
        else:
            self._look_up()

    def _lookup_ended(self) -> None:
        if self.wake is not None:
            self.wake()

    def _finish_lookup(self, lookup: _resolver.Lookup) -> None:
        if lookup.done:
            self._lookup = None
            self._resolved(lookup.result(self.dial.unresolved[1]))

    def _connect(self, addresses: list[Address]) -> None:
        if self.broken:  # the look-up has forked, and this is the child
            raise fork.inherited_error()
        self.dial.enter("connect", time.monotonic())
        self._race = race_of(addresses, self.dial.plan)

    def _run_race(self, race: Race) -> None:
        for sock, address in list(self._sockets.items()):
            code = _outcome(sock)
            if code == 0:
                del self._sockets[sock]
                for loser in self._sockets:
                    loser.close()
                self._sockets.clear()
                self._open(sock)
                return
            if code is not None:
                self._failed(race, sock, address, code)
        for address in race.due(time.monotonic()):
            try:
                sock = new_socket(address, self.dial.plan.key.route)
            except OSError as error:
                race.failed(address, error)
                continue
            self._sockets[sock] = address
            code = sock.connect_ex(address.sockaddr)
            if code not in _IN_PROGRESS:
                self._failed(race, sock, address, code)
        if race.lost:
            raise race.error()
        if not self._sockets:
            self._run_race(race)

    def _failed(self, race: Race, sock: socket.socket, address: Address, code: int) -> None:
        del self._sockets[sock]
        sock.close()
        race.failed(address, OSError(code, _strerror(code)))

    def _open(self, sock: socket.socket) -> None:
        addresses = names_of(sock)
        try:
            if self._core.listening():
                self._core.emit(Connected(self.dial.plan.key.digest, addresses[1]))
            chance = random.random()  # noqa: S311 - nothing depends on nobody guessing it
            connection = self._core.open(
                self.dial, time.monotonic(), time.time(), chance=chance, addresses=addresses, raw=self._raw
            )
        except BaseException:
            sock.close()
            raise
        connection.transport = Wire(sock)
        self.connection = connection

    def _shake_hands(self, connection: Connection, buffer: memoryview) -> None:
        wire: Wire = connection.transport
        now = time.monotonic()
        wire.flush(connection, now)
        wire.receive(connection, buffer, now)
        wire.flush(connection, now)
        if connection.info is None and now >= connection.next_deadline():
            connection.handle_timeout(now)
        failure = connection.handshake_error
        if failure is not None:
            if self._core.may_dial_again(self.dial, connection):
                self._start_over(connection)
                self._advance(buffer)
                return
            raise failure
        if connection.info is not None:
            if connection.shared is not None:
                connection.transport = Crew(connection, wire)
            self.done = True
            self._core.tell_secured(connection)

    def _start_over(self, connection: Connection) -> None:
        connection.transport.close(connection)
        self._core.closed(connection, "handshake")
        self.connection = None
        self._race = None
        self._begun = False


def _outcome(sock: socket.socket) -> int | None:
    """Return how a connect under way ended: 0, an error number, or None while it has not."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        return code
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EINVAL, getattr(errno, "WSAENOTCONN", errno.ENOTCONN)):
            return None
        return error.errno
    return 0


def _strerror(code: int) -> str:
    import os

    return os.strerror(code)
