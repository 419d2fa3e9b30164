"""
`AsyncRawConnection` and the asyncio transport over it: TLS without HTTP. Node's `tls.connect`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, cast

from tlsagent._body import PIECE
from tlsagent._raw import HIGH_WATER, RawStream
from tlsagent.errors import ConnectionLost, TLSAgentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from tlsagent._connection import Connection, ConnectionInfo


class Carrier(Protocol):
    """What a raw connection needs of the protocol object that owns its socket."""

    connection: Connection
    writable: asyncio.Future[None] | None

    def flush(self) -> None:
        """Write what the connection has to send."""

    def pause_reading(self) -> None:
        """Read no more for now."""

    def resume_reading(self) -> None:
        """Read again."""


class AsyncRawConnection:
    """A TLS connection outside the pool. One task may send while another receives."""

    def __init__(self, carrier: Carrier, stream: RawStream, close: Callable[[Connection, str], None]) -> None:
        self._carrier = carrier
        self._connection = carrier.connection
        self._stream = stream
        self._close = close
        self._arrived = asyncio.Event()

    @property
    def info(self) -> ConnectionInfo:
        """What was negotiated, and with whom."""
        return cast("ConnectionInfo", self._connection.info)

    def advanced(self) -> None:
        """Take note that bytes came, or the end."""
        if self._stream.held > HIGH_WATER:
            self._carrier.pause_reading()
        self._arrived.set()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """
        Send all of `data`, waiting while the peer accepts no more.

        Raises:
            ConnectionLost: The connection is gone.
        """
        view = memoryview(data).cast("B")
        loop = asyncio.get_running_loop()
        for at in range(0, len(view), PIECE):
            self._require_open()
            self._connection.write(view[at : at + PIECE], loop.time())
            self._carrier.flush()
            if self._carrier.writable is not None:
                await asyncio.shield(self._carrier.writable)
        self._require_open()

    async def recv(self, max_bytes: int = PIECE) -> bytes:
        """
        Return bytes as soon as there are some, b"" after the peer's close_notify.

        Raises:
            ConnectionLost: The connection ended without close_notify.
        """
        while (data := self._stream.take(max_bytes, self._connection)) is None:
            self._arrived.clear()
            await self._arrived.wait()
        if not self._stream.held:
            self._carrier.resume_reading()
        return data

    async def aclose(self) -> None:
        """Send close_notify and close the socket. Idempotent."""
        self._close(self._connection, "close")
        self._arrived.set()

    def _require_open(self) -> None:
        if self._connection.dead is not None:
            raise self._connection.error or ConnectionLost("the connection is closed", phase="send")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class RawTransport(asyncio.Transport):
    """
    What `connect(protocol_factory=...)` gives: an asyncio transport that speaks TLS.

    `get_extra_info` knows "connection_info" (a `ConnectionInfo`), "peername" and "sockname".
    """

    def __init__(
        self,
        carrier: Carrier,
        stream: RawStream,
        close: Callable[[Connection, str], None],
        protocol: asyncio.Protocol,
    ) -> None:
        info = cast("ConnectionInfo", carrier.connection.info)
        super().__init__({"connection_info": info, "peername": info.remote_address, "sockname": info.local_address})
        self._carrier = carrier
        self._connection = carrier.connection
        self._stream = stream
        self._close = close
        self._protocol: asyncio.BaseProtocol = protocol
        self._lost = False
        self._loop = asyncio.get_running_loop()
        protocol.connection_made(self)
        self._loop.call_soon(self.advanced)

    def advanced(self) -> None:
        """Hand on what came, and the end."""
        protocol = cast("asyncio.Protocol", self._protocol)
        error: Exception | None = None
        try:
            while data := self._stream.take(PIECE, self._connection):
                protocol.data_received(data)
            ended = data is not None
        except TLSAgentError as exc:
            error, ended = exc, True
        if ended and not self._lost:
            if error is None:
                protocol.eof_received()
            self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._close(self._connection, "close")
            self._loop.call_soon(self._protocol.connection_lost, error)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Encrypt and send."""
        if self._connection.dead is None:
            self._connection.write(bytes(data), self._loop.time())
            self._carrier.flush()

    def can_write_eof(self) -> bool:
        """close_notify ends both directions here: there is no half-close."""
        return False

    def is_closing(self) -> bool:
        """Whether the connection is closed or closing."""
        return self._lost or self._connection.dead is not None

    def close(self) -> None:
        """Send close_notify and close the socket."""
        self._lose(None)

    def abort(self) -> None:
        """Close at once."""
        self._connection.abort("close")
        self._lose(None)

    def pause_reading(self) -> None:
        """Read no more for now."""
        self._carrier.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._carrier.resume_reading()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand on to another protocol from now on."""
        self._protocol = protocol
