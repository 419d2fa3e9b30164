"""
`RawConnection`: TLS without HTTP, on blocking calls. Node's `tls.connect`.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Final, cast

from tlsagent._body import PIECE
from tlsagent.errors import ConnectionLost, ReadTimeout, SendTimeout

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from tlsagent._connection import Connection, ConnectionInfo
    from tlsagent._core import AgentCore
    from tlsagent._drivers.sockets import Wire
    from tlsagent._raw import RawStream

_READ_BUFFER: Final = 65_536


class RawConnection:
    """
    A TLS connection that carries no HTTP: one outside the pool, or one whose protocol a response has switched.

    One thread may send while another receives only if the caller takes turns. It must be closed: one that was switched
    and is dropped costs its connection and gives a ResourceWarning.
    """

    def __init__(
        self,
        core: AgentCore,
        connection: Connection,
        stream: RawStream,
        on_close: Callable[[Connection], None],
        on_drop: Callable[[], object] | None = None,
    ) -> None:
        self._core = core
        self._connection = connection
        self._stream = stream
        self._on_close = on_close
        self._on_drop = on_drop
        self._buffer = memoryview(bytearray(_READ_BUFFER))

    @property
    def info(self) -> ConnectionInfo:
        """What was negotiated, and with whom."""
        return cast("ConnectionInfo", self._connection.info)

    def send(self, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """
        Send all of `data`.

        Args:
            data: Bytes; b"" sends nothing.
            timeout: Seconds in which the peer must accept it; None waits for ever.

        Raises:
            ConnectionLost: The connection is gone.
            SendTimeout: The peer did not accept it in time; the connection is then of no more use.
        """
        connection = self._connection
        wire: Wire = connection.transport
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PIECE):
            self._require_open()
            connection.write(view[at : at + PIECE], time.monotonic())
            while not wire.flush(connection, time.monotonic()):
                self._turn(deadline)
                self._require_open()
                if time.monotonic() >= deadline:
                    raise SendTimeout(f"the peer did not accept the data within {timeout:g} s", phase="send")
        self._require_open()

    def recv(self, max_bytes: int = PIECE, *, timeout: float | None = None) -> bytes:
        """
        Return bytes as soon as there are some, b"" after the peer's close_notify.

        Raises:
            ConnectionLost: The connection ended without close_notify.
            ReadTimeout: Nothing came within `timeout` seconds.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while (data := self._stream.take(max_bytes, self._connection)) is None:
            self._turn(deadline)
            if time.monotonic() >= deadline and not self._stream.held and self._connection.dead is None:
                raise ReadTimeout(f"nothing came within {timeout:g} s", phase="receive")
        return data

    def close(self) -> None:
        """Send close_notify and close the socket. Idempotent."""
        self._on_drop = None
        if self._connection.dead is None:
            self._connection.close("close")
        self._on_close(self._connection)

    def _require_open(self) -> None:
        if self._connection.dead is not None:
            raise self._connection.error or ConnectionLost("the connection is closed", phase="send")

    def _turn(self, limit: float) -> None:
        connection = self._connection
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._on_drop is not None:
            self._on_drop()
            text = f"the connection {self.info!r} was dropped without close()"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
