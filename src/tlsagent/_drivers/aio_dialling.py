"""
From a dial to a connected socket, on asyncio: look up, race the addresses, wait no longer than the dial allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import time
from typing import TYPE_CHECKING

from tlsagent._drivers import resolver as _resolver
from tlsagent._drivers.addresses import Address, Race, race_of
from tlsagent._drivers.sockets import begin_connect, unix_address, users_socket
from tlsagent.events import Connecting

if TYPE_CHECKING:
    import socket

    from tlsagent._core import AgentCore
    from tlsagent._dial import Dial


async def connected_socket(core: AgentCore, loop: asyncio.AbstractEventLoop, dial: Dial) -> socket.socket:
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
        try:
            async with asyncio.timeout(_remaining(dial.deadline)):
                with _resolver.hook_errors(host):
                    answer = route.lookup(host, route.family)
                    if inspect.isawaitable(answer):
                        answer = await answer
        except TimeoutError:
            raise dial.overdue() from None
        return _resolver.from_hook(host, answer, port)
    addresses = _resolver.literal(host, port)
    if addresses is not None:
        return addresses
    done = loop.create_future()

    def callback() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(_set_done, done)

    lookup = _resolver.resolver.start(host, _resolver.family_of(route), callback)
    await wait_until(loop, done, dial.deadline)
    if not lookup.done:
        raise dial.overdue()
    return lookup.result(port)


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


async def wait_until(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], deadline: float) -> None:
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
