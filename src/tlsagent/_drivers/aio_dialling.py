"""
From a dial to a secured connection, on asyncio: look up, race the addresses, shake hands, wait no longer than the dial
allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import random
import socket
import time
from typing import TYPE_CHECKING, TypeVar

from tlsagent._drivers import resolver as _resolver
from tlsagent._drivers.addresses import Address, Race, race_of
from tlsagent._drivers.aio_socket import SocketProtocol
from tlsagent._drivers.sockets import begin_connect, names_of, unix_address, users_socket
from tlsagent.errors import RequestError
from tlsagent.events import Connected, Connecting

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tlsagent._connection import Connection
    from tlsagent._core import AgentCore
    from tlsagent._dial import Dial
    from tlsagent._drivers.aio import AsyncAgent
    from tlsagent._raw import RawStream

_T = TypeVar("_T")


async def open_connection(agent: AsyncAgent, dial: Dial, raw: RawStream | None = None) -> Connection:
    """Return a connection whose handshake is complete and whose peer is verified."""
    sock = await _connected_socket(agent._core, agent._loop, dial)
    addresses = names_of(sock)
    try:
        if agent._core.listening():
            agent._core.emit(Connected(dial.plan.key.digest, addresses[1]))
        chance = random.random()  # noqa: S311 - nothing depends on nobody guessing it
        connection = agent._core.open(dial, time.monotonic(), time.time(), chance=chance, addresses=addresses, raw=raw)
    except BaseException:
        sock.close()
        raise
    protocol = SocketProtocol(agent, connection, sock)
    try:
        await agent._loop.create_connection(lambda: protocol, sock=sock)
        route = dial.plan.key.route
        if not route.no_delay and route.path is None and route.socket is None:
            # uvloop turns Nagle's delay off on every socket that it is given.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        # Not in connection_made: if the peer has reset already, uvloop would close the descriptor before it has
        # taken over the socket, whose number by then may be another's.
        protocol.flush()
        await _handshake(agent, dial, protocol)
    except BaseException as error:
        connection.abort("handshake")
        agent._shut(connection, "handshake")
        if isinstance(error, RequestError) and agent._core.may_dial_again(dial, connection):
            return await open_connection(agent, dial, raw)
        raise
    return connection


async def _handshake(agent: AsyncAgent, dial: Dial, protocol: SocketProtocol) -> None:
    connection = protocol.connection
    while connection.info is None and connection.dead is None:
        now = time.monotonic()
        if now >= dial.deadline:
            raise dial.overdue()
        if now >= connection.next_deadline():
            connection.handle_timeout(now)
            break
        if protocol.handshake is None or protocol.handshake.done():
            protocol.handshake = agent._loop.create_future()
        await _wait_until(agent._loop, protocol.handshake, min(dial.deadline, connection.next_deadline()))
    failure = connection.handshake_error
    if failure is not None:
        raise failure
    agent._core.tell_secured(connection)


async def _connected_socket(core: AgentCore, loop: asyncio.AbstractEventLoop, dial: Dial) -> socket.socket:
    """Return a socket that is connected to whoever the dial leads to first; its phases are entered on the way."""
    route = dial.plan.key.route
    if route.socket is not None:
        return users_socket(route.socket)
    if core.listening():
        host, port = (route.path, 0) if route.path else route.first_hop
        core.emit(Connecting(dial.plan.key.digest, host, port))
    if route.path is not None:
        addresses = [unix_address(route.path)]
    else:
        dial.enter("lookup", time.monotonic())
        addresses = await _look_up(loop, dial)
        while not dial.resolved([address.host for address in addresses]):
            addresses = await _look_up(loop, dial)
    dial.enter("connect", time.monotonic())
    return await _race(loop, race_of(addresses, dial.plan), dial)


async def _look_up(loop: asyncio.AbstractEventLoop, dial: Dial) -> list[Address]:
    route = dial.plan.key.route
    host, port = dial.unresolved
    if route.lookup is not None:
        limit = asyncio.timeout(_remaining(dial.deadline))
        try:
            async with limit:
                with _resolver.hook_errors(host):
                    answer = route.lookup(host, route.family)
                    if inspect.isawaitable(answer):
                        answer = await _not_cancelled(answer)
        except TimeoutError:
            if not limit.expired():
                raise  # the hook's own, of another request of ours
            raise dial.overdue() from None
        if time.monotonic() >= dial.deadline:
            raise dial.overdue()  # it did not let the loop run, but a late answer dials nothing
        return _resolver.from_hook(host, answer, port, _resolver.family_of(route))
    addresses = _resolver.literal(host, port)
    if addresses is not None:
        return addresses
    done = loop.create_future()

    def callback() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(_set_done, done)

    lookup = _resolver.resolver.start(host, _resolver.family_of(route), callback)
    await _wait_until(loop, done, dial.deadline)
    if not lookup.done:
        raise dial.overdue()
    return lookup.result(port)


async def _not_cancelled(answer: Awaitable[_T]) -> _T:
    """Wait for what a hook gave; a cancellation that comes from there and is not ours is a failure of the hook's."""
    try:
        return await answer
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("what it waited for was cancelled") from error


async def _race(loop: asyncio.AbstractEventLoop, race: Race, dial: Dial) -> socket.socket:
    """Return the first socket that connects; the others are closed."""
    running: dict[asyncio.Task[None], tuple[Address, socket.socket]] = {}
    try:
        while not race.lost:
            now = time.monotonic()
            if now >= dial.deadline:
                raise dial.overdue()
            for address in race.due(now):
                try:
                    sock, connected = begin_connect(address, dial.plan.key.route)
                except OSError as error:
                    race.failed(address, error)
                    continue
                if connected:
                    return sock
                task = loop.create_task(loop.sock_connect(sock, address.sockaddr))
                running[task] = address, sock
            if running:
                timeout = _remaining(min(race.next_deadline(), dial.deadline))
                done, _ = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                winner = _winner(race, running, done)
                if winner is not None:
                    return winner
        raise race.error()
    finally:
        for task, (_, sock) in running.items():
            task.add_done_callback(functools.partial(_close_unused, sock))
            task.cancel()


async def _wait_until(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], deadline: float) -> None:
    """Wait for a future that no exception ends, or until the deadline, whichever comes first."""
    if deadline == math.inf:
        await future
        return
    timer = loop.call_later(deadline - time.monotonic(), _set_done, future)
    try:
        await future
    finally:
        timer.cancel()


def _winner(
    race: Race, running: dict[asyncio.Task[None], tuple[Address, socket.socket]], done: set[asyncio.Task[None]]
) -> socket.socket | None:
    """Take the attempts that are done from those that run; returns the socket of one that has connected."""
    for task in done:
        exc = task.exception()
        if exc is not None and not isinstance(exc, OSError):
            raise exc
        address, sock = running.pop(task)
        if exc is None:
            return sock
        sock.close()
        race.failed(address, exc)
    return None


def _close_unused(sock: socket.socket, connecting: asyncio.Task[None]) -> None:
    if not connecting.cancelled():
        connecting.exception()  # or asyncio would tell that nobody looked
    sock.close()


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _remaining(deadline: float) -> float | None:
    return None if deadline == math.inf else deadline - time.monotonic()
