"""
A body that does not fit one piece, on asyncio: piece by piece, as the peer takes it, and no longer than it is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from typing import TYPE_CHECKING

from tlsagent._body import PIECE, Body
from tlsagent._drivers.aio_socket import SocketProtocol, wake

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tlsagent._connection import Connection
    from tlsagent._drivers.aio import AsyncAgent
    from tlsagent._exchange import Exchange


async def send_body(agent: AsyncAgent, exchange: Exchange, body: Body) -> None:
    """Send the pieces of a body as the peer takes them, for as long as they are wanted."""
    connection: Connection = exchange.lease.connection
    protocol: SocketProtocol = connection.transport
    while exchange.holding and exchange.lease is not None:
        await agent._wait(exchange)
    if exchange.lease is None or exchange.upload_stopped:
        return
    if body.asynchronous:
        async with contextlib.aclosing(body.apieces()) as pieces:
            while (piece := await _next_piece(agent, exchange, pieces)) is not None:
                if not await _send_piece(agent, exchange, protocol, piece):
                    return
        if exchange.lease is None:
            return
    else:
        with contextlib.closing(body.pieces()) as pieces:
            taken = 0
            for piece in pieces:
                if not await _send_piece(agent, exchange, protocol, piece):
                    return
                taken += len(piece)
                if taken >= PIECE:
                    # A peer that reads as fast as we write never makes us wait: let the loop see its answer.
                    taken = 0
                    await asyncio.sleep(0)
    now = time.monotonic()
    connection.end_body(exchange, now)
    protocol.advance(now)


async def _next_piece(
    agent: AsyncAgent, exchange: Exchange, pieces: AsyncGenerator[bytes | memoryview, None]
) -> bytes | memoryview | None:
    """Return the next piece, None after the last or once the exchange has ended, iterable or not."""
    exchange.stalled()
    coming = agent._loop.create_task(_anext(pieces))
    try:
        while not coming.done():
            waker = exchange.waker = agent._loop.create_future()
            await asyncio.wait((coming, waker), return_when=asyncio.FIRST_COMPLETED)
            if exchange.lease is None or exchange.upload_stopped:
                return None
    finally:
        exchange.waker = None
        if not coming.done():
            coming.cancel()
            await asyncio.wait((coming,))
    return coming.result()


async def _send_piece(
    agent: AsyncAgent, exchange: Exchange, protocol: SocketProtocol, piece: bytes | memoryview
) -> bool:
    now = time.monotonic()
    if not protocol.connection.send_body(exchange, piece, now):
        protocol.advance(now)
        return False
    protocol.flush()
    if protocol.writable is None and not exchange.blocked:
        return True
    if agent._core.watch(protocol.connection) < agent._timer_at:
        agent._arm(now)
    while _may_go_on(exchange) and (protocol.writable is not None or exchange.blocked):
        if protocol.writable is not None:
            protocol.writable.add_done_callback(functools.partial(_wake, exchange))
        await agent._wait(exchange)
    return _may_go_on(exchange)


def _may_go_on(exchange: Exchange) -> bool:
    """Whether the upload is still wanted."""
    return exchange.lease is not None and exchange.error is None and not exchange.upload_stopped


def _wake(exchange: Exchange, writable: asyncio.Future[None]) -> None:  # noqa: ARG001 - what a callback is given
    wake(exchange)


async def _anext(pieces: AsyncGenerator[bytes | memoryview, None]) -> bytes | memoryview | None:
    return await anext(pieces, None)
