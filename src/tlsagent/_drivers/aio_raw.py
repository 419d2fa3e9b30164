"""
`AsyncRawConnection` and the asyncio transport over it: TLS without HTTP. Node's `tls.connect`.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any, Protocol, cast

from tlsagent._body import PIECE
from tlsagent._raw import HIGH_WATER, RawLink, RawStream, bytes_to_send
from tlsagent.errors import ConnectionLost, TLSAgentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from tlsagent._connection import Connection
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._drivers.aio_socket import SocketProtocol
    from tlsagent._multiplex import Stream


class Carrier(Protocol):
    """What a raw connection needs of the protocol object that owns its socket."""

    @property
    def link(self) -> RawLink:
        """What carries the bytes."""

    @property
    def transport(self) -> asyncio.Transport:
        """The transport of the socket."""

    @property
    def writable(self) -> asyncio.Future[None] | None:
        """Done when more may be written; None if that is now."""

    def flush(self) -> None:
        """Write what the connection has to send."""

    def pause_reading(self) -> None:
        """Read no more for now."""

    def resume_reading(self) -> None:
        """Read again."""


class StreamCarrier:
    """The `Carrier` of a tunnel through a stream of a shared connection: it has windows of its own."""

    def __init__(self, protocol: SocketProtocol, stream: Stream) -> None:
        self.link = stream
        self._protocol = protocol
        self._opened: asyncio.Future[None] | None = None

    @property
    def transport(self) -> asyncio.Transport:
        """The transport of the socket, which others use too."""
        return self._protocol.transport

    @property
    def writable(self) -> asyncio.Future[None] | None:
        """Done when the windows and the socket take more."""
        if not self.link.blocked:
            return self._protocol.writable
        if self._opened is None:
            self._opened = asyncio.get_running_loop().create_future()
        return self._opened

    def advanced(self) -> None:
        """Take note that something came or changed on the stream."""
        opened = self._opened
        if opened is not None and not self.link.blocked:
            self._opened = None
            if not opened.done():
                opened.set_result(None)

    def flush(self) -> None:
        """Write what the connection has to send."""
        self._protocol.flush_soon()

    def pause_reading(self) -> None:
        """Nothing to do: what was not read gives the peer no credit."""

    def resume_reading(self) -> None:
        """Let the peer send more."""
        if self.link.owed and self.link.connection.dead is None:
            self.link.read()
            self.flush()


class Arrivals:
    """
    What an `AsyncRawConnection` hears of its socket. An object of its own, so that the socket does not keep alive what
    its user has dropped.
    """

    def __init__(self, carrier: Carrier, stream: RawStream) -> None:
        self._carrier = carrier
        self._stream = stream
        self.event = asyncio.Event()

    def advanced(self) -> None:
        """Take note that bytes came, or the end."""
        if self._stream.held > HIGH_WATER:
            self._carrier.pause_reading()
        self.event.set()

    def writing_paused(self) -> None:
        """Nothing to note: who sends waits for `Carrier.writable`."""

    def writing_resumed(self) -> None:
        """Nothing to note."""


class AsyncRawConnection:
    """
    A TLS connection that carries no HTTP: one outside the pool, or one whose protocol a response has switched.

    One task may send while another receives. It must be closed: one that was switched and is dropped costs its
    connection and gives a ResourceWarning.
    """

    def __init__(
        self,
        carrier: Carrier,
        stream: RawStream,
        close: Callable[[Any, str], None],
        on_drop: Callable[[], object] | None = None,
    ) -> None:
        self._carrier = carrier
        self._link = carrier.link
        self._stream = stream
        self._close = close
        self._on_drop = on_drop
        self.arrivals = Arrivals(carrier, stream)

    @property
    def info(self) -> ConnectionInfo:
        """What was negotiated, and with whom."""
        return cast("ConnectionInfo", self._link.info)

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """
        Send all of `data`, waiting while the peer accepts no more.

        Cancelled, it has sent a part, up to 64 KiB of which may still follow; `data` may be changed all the same.

        Raises:
            ConnectionLost: The connection is gone.
        """
        loop = asyncio.get_running_loop()
        with bytes_to_send(data) as view:
            for at in range(0, len(view), PIECE):
                await self._until_writable()  # a call that was cancelled may have left its last piece
                self._require_open()
                self._link.write(view[at : at + PIECE], loop.time())
                self._carrier.flush()
                try:
                    await self._until_writable()
                except BaseException:
                    self._link.keep()
                    raise
        self._require_open()

    async def _until_writable(self) -> None:
        while (writable := self._carrier.writable) is not None:
            await asyncio.shield(writable)

    async def recv(self, max_bytes: int = PIECE) -> bytes:
        """
        Return bytes as soon as there are some, b"" after the peer's close_notify.

        Raises:
            ConnectionLost: The connection ended without close_notify.
        """
        while (data := self._stream.take(max_bytes, self._link)) is None:
            self.arrivals.event.clear()
            await self.arrivals.event.wait()
        if not self._stream.held:
            self._carrier.resume_reading()
        return data

    async def aclose(self) -> None:
        """Send close_notify and close the socket. Idempotent."""
        self._on_drop = None
        self._close(self._link, "close")
        self.arrivals.event.set()

    def _require_open(self) -> None:
        if self._link.dead is not None:
            raise self._link.error or ConnectionLost("the connection is closed", phase="send")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._on_drop is not None:
            self._on_drop()
            text = f"the connection {self.info!r} was dropped without aclose()"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)


class RawTransport(asyncio.Transport):
    """
    What `connect(protocol_factory=...)` gives: an asyncio transport that speaks TLS.

    Flow control is asyncio's in both directions. What waits to be written is counted encrypted, as the transport of the
    socket holds it, whose limits `set_write_buffer_limits` sets; the protocol's `pause_writing` and `resume_writing`
    are called as they are crossed. While reading is paused the protocol is told nothing, an end in good order neither;
    an error is told at once.

    `get_extra_info` knows "connection_info" (a `ConnectionInfo`), and what the socket's transport knows: "peername",
    "sockname", "socket".
    """

    def __init__(
        self,
        carrier: Carrier,
        stream: RawStream,
        close: Callable[[Connection, str], None],
        protocol: asyncio.Protocol,
    ) -> None:
        connection = cast("Connection", carrier.link)
        info = cast("ConnectionInfo", connection.info)
        super().__init__({"connection_info": info, "peername": info.remote_address, "sockname": info.local_address})
        self._reading = True
        self._writing_paused = False
        self._closing = False
        self._carrier = carrier
        self._connection = connection
        self._stream = stream
        self._close = close
        self._protocol: asyncio.BaseProtocol = protocol
        self._lost = False
        self._loop = asyncio.get_running_loop()
        protocol.connection_made(self)
        self._loop.call_soon(self.advanced)

    def advanced(self) -> None:
        """Hand on what came, and the end, as long as the protocol wants to hear of it."""
        while self._reading and not (self._lost or self._closing):
            protocol = cast("asyncio.Protocol", self._protocol)
            try:
                data = self._stream.take(PIECE, self._connection)
            except TLSAgentError as error:
                self._lose(error)
                return
            if data is None:
                return
            if data:
                protocol.data_received(data)
            else:
                protocol.eof_received()
                self._lose(None)
        if self._connection.error is not None or (self._closing and self._connection.dead is not None):
            self._lose(self._connection.error)

    def writing_paused(self) -> None:
        """Tell the protocol that more waits to be written than the limit allows."""
        if not (self._lost or self._closing):
            self._writing_paused = True
            self._protocol.pause_writing()

    def writing_resumed(self) -> None:
        """Tell the protocol, if it was told to pause, that it may write again; or end, if that waited for it."""
        if self._closing:
            self._loop.call_soon(self._lose, None)  # not here: asyncio would end a transport twice that is closed here
        elif self._writing_paused and not self._lost:
            self._writing_paused = False
            self._protocol.resume_writing()

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._close(self._connection, "close")
            self._loop.call_soon(self._protocol.connection_lost, error)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Encrypt and send."""
        if not self.is_closing():
            self._connection.write(bytes(data), self._loop.time())
            self._carrier.flush()

    def can_write_eof(self) -> bool:
        """close_notify ends both directions here: there is no half-close."""
        return False

    def is_closing(self) -> bool:
        """Whether the connection is closed or closing."""
        return self._lost or self._closing or self._connection.dead is not None

    def close(self) -> None:
        """Take no more; once all is written, send close_notify and close the socket."""
        if self._connection.dead is not None or not self.get_write_buffer_size():
            self._lose(None)
        elif not self._closing:
            self._closing = True
            # With a limit of nothing the socket's transport tells when nothing is left.
            self.set_write_buffer_limits(high=0)

    def abort(self) -> None:
        """Close at once."""
        self._connection.abort("close")
        self._lose(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known by that name, else `default`."""
        known = super().get_extra_info(name)
        return self._carrier.transport.get_extra_info(name, default) if known is None else known

    def pause_reading(self) -> None:
        """Call the protocol's `data_received` no more for now, not even for what has come already."""
        self._reading = False
        self._carrier.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if not self._reading:
            self._reading = True
            self._carrier.resume_reading()
            self._loop.call_soon(self.advanced)

    def is_reading(self) -> bool:
        """Whether the protocol is told what comes."""
        return self._reading and not self.is_closing()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be written."""
        return self._carrier.transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the limits at which the protocol is told to write again, and to pause."""
        return self._carrier.transport.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the limits of what may wait to be written, in bytes."""
        self._carrier.transport.set_write_buffer_limits(high=high, low=low)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand on to another protocol from now on."""
        self._protocol = protocol
