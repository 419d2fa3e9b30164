"""
`RawConnection`: TLS without HTTP, on blocking calls. Node's `tls.connect`.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Final, Protocol, cast

from tlsagent._body import PIECE
from tlsagent._drivers.member import Member
from tlsagent._raw import bytes_to_send
from tlsagent.errors import ConnectionLost, ReadTimeout, SendTimeout, TLSAgentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from tlsagent._connection import Connection
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._core import AgentCore
    from tlsagent._drivers.crew import Crew
    from tlsagent._drivers.sockets import Wire
    from tlsagent._drivers.threads import Agent
    from tlsagent._exchange import Exchange
    from tlsagent._multiplex import Stream
    from tlsagent._raw import RawLink, RawStream

_READ_BUFFER: Final = 65_536


class Carrier(Protocol):
    """What a raw connection needs of the socket below it."""

    @property
    def link(self) -> RawLink:
        """What carries the bytes."""

    def write(self, data: memoryview) -> None:
        """Take bytes to send."""

    def flush(self) -> bool:
        """Send what there is; returns whether all of it went."""

    def keep(self) -> None:
        """Copy what was taken to send and is not out."""

    def take(self, most: int) -> bytes | None:
        """Return up to `most` of the bytes that came, b"" after the end, None while there is nothing."""

    def turn(self, limit: float, *, sending: bool) -> None:
        """Wait once for room to send or for something to come, until a point in time at most."""


class WireCarrier:
    """A connection of its own."""

    def __init__(self, core: AgentCore, connection: Connection, stream: RawStream) -> None:
        self.link = connection
        self._core = core
        self._stream = stream
        self._buffer = memoryview(bytearray(_READ_BUFFER))

    def write(self, data: memoryview) -> None:
        """Take bytes to send."""
        self.link.write(data, time.monotonic())

    def flush(self) -> bool:
        """Send what there is."""
        wire: Wire = self.link.transport
        return wire.flush(self.link, time.monotonic())

    def keep(self) -> None:
        """Nothing to copy: what is written is encrypted at once."""

    def take(self, most: int) -> bytes | None:
        """Return bytes that came."""
        return self._stream.take(most, self.link)

    def turn(self, limit: float, *, sending: bool) -> None:  # noqa: ARG002 - the socket is watched for both
        """Wait for the socket once."""
        connection = self.link
        wire: Wire = connection.transport
        now = time.monotonic()
        deadline = min(limit, connection.next_deadline())
        if now < deadline:
            wire.wait(deadline - now)
        now = time.monotonic()
        if not wire.receive(connection, self._buffer, now):
            connection.handle_timeout(now)
        wire.flush(connection, now)
        if connection.sessions:
            self._core.keep_sessions(connection)


class StreamCarrier:
    """A tunnel through a stream of a shared connection."""

    def __init__(self, agent: Agent, exchange: Exchange, stream: Stream) -> None:
        self.link = stream
        self._agent = agent
        self._exchange = exchange
        self._tunnel = stream.take_over()

    @property
    def _crew(self) -> Crew:
        crew: Crew = self.link.connection.transport
        return crew

    def write(self, data: memoryview) -> None:
        """Take bytes to send."""
        self._crew.do(self.link.write, data, time.monotonic())

    def flush(self) -> bool:
        """Send what there is, as far as the windows let it out."""
        return self._crew.flush() and not self.link.blocked

    def keep(self) -> None:
        """Copy what the windows did not let out, which another thread may be sending."""
        self._crew.change(self.link.keep)

    def take(self, most: int) -> bytes | None:
        """Return bytes that came, and let the peer send more."""
        data, error = self._crew.do(self._take, most)
        if error is not None:
            raise error
        return data

    def _take(self, most: int) -> tuple[bytes | None, TLSAgentError | None]:
        try:
            data = self._tunnel.take(most, self.link)
        except TLSAgentError as error:
            return None, error
        if not self._tunnel.held and self.link.connection.dead is None:
            self.link.read()
        return data, None

    def turn(self, limit: float, *, sending: bool) -> None:
        """Wait once, for the socket or for who reads it."""
        crew, tunnel, link = self._crew, self._tunnel, self.link

        def waiting() -> bool:
            if link.dead is not None:
                return False
            return crew.full or link.blocked if sending else not (tunnel.held or tunnel.ended)

        Member(self._agent, link.connection, self._exchange).turn_tunnel(waiting, limit)


class RawConnection:
    """
    A TLS connection that carries no HTTP: one outside the pool, or one whose protocol a response has switched.

    One thread may send while another receives only if the caller takes turns. It must be closed: one that was switched
    and is dropped costs its connection and gives a ResourceWarning.
    """

    def __init__(
        self,
        carrier: Carrier,
        on_close: Callable[[], None],
        on_drop: Callable[[], object] | None = None,
    ) -> None:
        self._carrier = carrier
        self._link = carrier.link
        self._on_close = on_close
        self._on_drop = on_drop

    @property
    def info(self) -> ConnectionInfo:
        """What was negotiated, and with whom."""
        return cast("ConnectionInfo", self._link.info)

    def send(self, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """
        Send all of `data`.

        Interrupted, or out of time, it has sent a part, up to 64 KiB of which may still follow.

        Args:
            data: Bytes; b"" sends nothing. They may be changed afterwards, however it ended.
            timeout: Seconds in which the peer must accept it; None waits for ever.

        Raises:
            ConnectionLost: The connection is gone.
            SendTimeout: The peer did not accept it in time; the connection is then of no more use.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with bytes_to_send(data) as view:
            for at in range(0, len(view), PIECE):
                if self._link.blocked:
                    self._push(deadline, timeout)  # a call that ended early may have left its last piece
                self._require_open()
                try:
                    self._carrier.write(view[at : at + PIECE])
                    self._push(deadline, timeout)
                except BaseException:
                    self._carrier.keep()
                    raise
        self._require_open()

    def _push(self, deadline: float, timeout: float | None) -> None:
        carrier = self._carrier
        while not carrier.flush():
            carrier.turn(deadline, sending=True)
            self._require_open()
            if time.monotonic() >= deadline:
                raise SendTimeout(f"the peer did not accept the data within {timeout:g} s", phase="send")

    def recv(self, max_bytes: int = PIECE, *, timeout: float | None = None) -> bytes:
        """
        Return bytes as soon as there are some, b"" after the peer's close_notify.

        Raises:
            ConnectionLost: The connection ended without close_notify.
            ReadTimeout: Nothing came within `timeout` seconds.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while (data := self._carrier.take(max_bytes)) is None:
            if time.monotonic() >= deadline:
                raise ReadTimeout(f"nothing came within {timeout:g} s", phase="receive")
            self._carrier.turn(deadline, sending=False)
        return data

    def close(self) -> None:
        """Send close_notify and close the socket. Idempotent."""
        self._on_drop = None
        self._on_close()

    def _require_open(self) -> None:
        if self._link.dead is not None:
            raise self._link.error or ConnectionLost("the connection is closed", phase="send")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._on_drop is not None:
            self._on_drop()
            text = f"the connection {self.info!r} was dropped without close()"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
