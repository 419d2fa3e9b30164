"""
One socket of an `AsyncAgent`: between asyncio's transport and a `Connection`.

It feeds what comes in, writes what is to be sent, and carries the connection's news over to the agent, to whose loop it
belongs.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, cast

from tlsagent._drivers.sockets import drain, peeker, read_rest

if TYPE_CHECKING:
    import socket

    from tlsagent._connection import Connection
    from tlsagent._drivers.aio import AsyncAgent
    from tlsagent._drivers.aio_raw import Arrivals, RawTransport
    from tlsagent._exchange import Exchange
    from tlsagent._multiplex import Multiplex

_FLUSH_GRACE: Final = 1.0
"""Seconds a closing transport may take to hand its last bytes to a peer that does not read."""


class SocketProtocol(asyncio.BufferedProtocol):
    """One socket: between asyncio's transport and a `Connection`."""

    def __init__(self, agent: AsyncAgent, connection: Connection, sock: socket.socket) -> None:
        self._agent = agent
        self._sock = sock
        self._buffer = agent._buffer
        self.peek = peeker(sock)
        self.connection = connection
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.handshake: asyncio.Future[None] | None = None
        self.tunnelling = connection.tunnelling
        self.writable: asyncio.Future[None] | None = None
        self.reading = True
        self.closed = False
        self._flushing = False
        self._cut: asyncio.TimerHandle | None = None
        self.raw: Arrivals | RawTransport | None = None
        connection.transport = self

    @property
    def link(self) -> Connection:
        """What carries the bytes, where it carries no HTTP."""
        return self.connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.handshake = self._agent._loop.create_future()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        now = time.monotonic()
        self.connection.receive_data(self._buffer[:nbytes], now)
        self.advance(now)

    def eof_received(self) -> bool:
        now = time.monotonic()
        self.connection.receive_eof(now)
        self.advance(now)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut is not None:
            self._cut.cancel()
        now = time.monotonic()
        if self.connection.dead is None:
            if isinstance(exc, OSError):
                if not self._agent._proactor:
                    read_rest(self._sock, self.connection, self._buffer, now)
                if self.connection.dead is None:
                    self.connection.receive_error(exc, now)
            else:
                self.connection.receive_eof(now)
        self.advance(now)
        self.resume_writing()
        # No cycle is left: TLS and buffers are freed now, not by a collection. After a switch of protocols who takes
        # over finds here what came before the end.
        if self.closed and self.connection.stream is None:
            self.connection.transport = None

    def pause_writing(self) -> None:
        if self.writable is None:
            self.writable = self._agent._loop.create_future()
        if self.raw is not None:
            self.raw.writing_paused()

    def resume_writing(self) -> None:
        writable, self.writable = self.writable, None
        if self.connection.shared is not None and self.connection.dead is None:
            self.flush()
        if writable is not None and not writable.done():
            writable.set_result(None)
        if self.raw is not None:
            self.raw.writing_resumed()

    def flush(self) -> None:
        """Write what the connection has to send; that of a shared one is not even made while the socket is full."""
        connection = self.connection
        if self.writable is not None and connection.shared is not None and connection.dead is None:
            return
        data = connection.data_to_send()
        if data:
            self.transport.write(data)

    def flush_soon(self) -> None:
        """Write at the end of this turn of the loop what many requests have to say: in one piece."""
        if not self._flushing:
            self._flushing = True
            self._agent._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = False
        if not self.closed:
            self.flush()

    def advance(self, now: float) -> None:
        """Write, carry the connection's news over to the core, wake whoever waits for them."""
        connection, agent = self.connection, self._agent
        if connection.shared is not None and self.handshake is None:
            self._advance_shared(connection.shared, now)
            return
        if self.handshake is None or connection.info is None or connection.dead is not None:
            data = connection.data_to_send()
            if data:
                self.transport.write(data)
        # else the end of our handshake goes with the request, which the dial is about to begin: one packet, not two.
        exchange = connection.exchange or connection.ended
        if connection.sessions:
            agent._core.keep_sessions(connection, exchange)
        if self.handshake is not None:
            self._advance_handshake(self.handshake)
            return
        if self.raw is not None:
            self._advance_raw(self.raw, now)
        elif connection.ended is not None or connection.dead is not None:
            agent._settle(connection, exchange, now)
        elif exchange is not None:
            self._advance_active(exchange, now)
        if exchange is not None and exchange.waker is not None and exchange.ready:
            wake(exchange)

    def _advance_active(self, exchange: Exchange, now: float) -> None:
        if self._agent._core.watch(self.connection) < self._agent._timer_at:
            self._agent._arm(now)
        if exchange.paused:
            self.pause_reading()
        if exchange.nudged:
            exchange.nudged = False
            wake(exchange)

    def _advance_shared(self, shared: Multiplex, now: float) -> None:
        connection, agent = self.connection, self._agent
        touched = shared.take_touched()
        if connection.sessions:
            agent._core.keep_sessions(connection, touched[0] if touched else None)
        self.flush()
        agent._settle_shared(connection, shared, now)
        for exchange in touched:
            if exchange.nudged or exchange.ready:
                exchange.nudged = False
                wake(exchange)
            if exchange.switched is not None:
                exchange.switched.tell()

    def _advance_handshake(self, waiting: asyncio.Future[None]) -> None:
        """Wake the dial at the end of the handshake, and when the tunnel is open: another deadline holds then."""
        connection = self.connection
        over = connection.info is not None or connection.dead is not None
        if over or self.tunnelling != connection.tunnelling:
            self.tunnelling = connection.tunnelling
            if over:
                self.handshake = None
            if not waiting.done():
                waiting.set_result(None)

    def _advance_raw(self, raw: Arrivals | RawTransport, now: float) -> None:
        connection, agent = self.connection, self._agent
        raw.advanced()
        if connection.ended is not None:
            agent._settle(connection, None, now)
        if connection.dead is not None:
            agent._shut(connection, connection.dead)

    def pause_reading(self) -> None:
        """Read no more: the consumer is behind."""
        if self.reading and not self.transport.is_closing():
            self.reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again after the consumer caught up."""
        if not self.reading and not self.transport.is_closing():
            self.reading = True
            self.transport.resume_reading()

    def drain(self, now: float) -> None:
        """Take in what the loop has not read yet; a proactor reads ahead, where nobody can look."""
        if not self._agent._proactor:
            drain(self._sock, self.connection, self._buffer, now)
            if self.connection.sessions:
                self._agent._core.keep_sessions(self.connection)

    def disown(self) -> None:
        """Close the descriptor of a transport whose loop is closed."""
        self._sock.close()

    def shut(self, connection: Connection, reason: str) -> None:
        """Close the transport; bytes still to be sent get a moment."""
        self.closed = True
        if connection.dead is None:
            connection.close(reason)
        transport = self.transport
        if transport is None:
            self._sock.close()
            return
        if transport.is_closing() or self._sock.fileno() < 0:
            # uvloop closes what it was about to take over when the caller is cancelled, and does not call that closing.
            return
        self.flush()
        self.resume_writing()
        transport.close()
        if transport.get_write_buffer_size():
            if connection.error is not None:
                transport.abort()
            else:
                self._cut = self._agent._loop.call_later(_FLUSH_GRACE, transport.abort)


def wake(exchange: Exchange) -> None:
    """Wake whoever waits for an exchange."""
    waker: asyncio.Future[None] | None = exchange.waker
    if waker is not None and not waker.done():
        waker.set_result(None)
