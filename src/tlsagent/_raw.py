"""
The plaintext of a connection that carries no HTTP, kept until somebody takes it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, cast

from tlsagent._option_rules import whole, wrong_type
from tlsagent.errors import ConnectionLost

if TYPE_CHECKING:
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent.errors import TLSAgentError

HIGH_WATER: Final = 262_144
"""Bytes that wait for their consumer before the connection stops reading."""


class RawLink(Protocol):
    """
    What carries bytes both ways: a connection, or a stream of one that is shared.

    Attributes:
        dead: Why it can carry nothing more, or None.
        error: Why it died, if an error says so.
    """

    dead: str | None
    error: TLSAgentError | None

    @property
    def info(self) -> ConnectionInfo | None:
        """What was negotiated, and with whom."""

    @property
    def blocked(self) -> bool:
        """Whether what was written last waits for the peer's windows; nothing may be written until it is out."""

    def write(self, data: bytes | memoryview, now: float) -> None:
        """Take bytes to send."""

    def keep(self) -> None:
        """Copy what was written last and is not out: whose it is may change it from now on."""

    def hang_up(self, reason: str) -> None:
        """End it in good order."""


def bytes_to_send(data: object) -> memoryview:
    """Return what the caller wants to send, byte by byte; to be released, for a traceback may hold on to it."""
    try:
        return memoryview(cast("bytes", data)).cast("B")
    except TypeError:
        raise wrong_type("data", "bytes, a bytearray or a memoryview in one piece", data) from None


class RawStream:
    """
    Received plaintext, in order. It is the connection's `RawSink`.

    Attributes:
        held: Bytes not taken yet.
    """

    __slots__ = ("_chunks", "_clean", "held")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._clean: bool | None = None
        self.held = 0

    def plaintext_received(self, data: bytes, now: float) -> None:  # noqa: ARG002 - a RawSink is told the time
        """Keep bytes."""
        self._chunks.append(data)
        self.held += len(data)

    def plaintext_ended(self, clean: bool, now: float) -> None:  # noqa: ARG002
        """Note the end."""
        if self._clean is None:
            self._clean = clean

    @property
    def ended(self) -> bool:
        """Whether the end has come, taken or not."""
        return self._clean is not None

    def take(self, most: int, link: RawLink) -> bytes | None:
        """
        Return up to `most` bytes, b"" after close_notify, None while there is nothing.

        Raises:
            OptionError: `most` is not a whole number from 1.
            ConnectionLost: The connection ended without close_notify, so that bytes may be missing.
            RequestError: What else ended the connection.
        """
        whole("max_bytes", most)
        if self._chunks:
            chunk = self._chunks.popleft()
            if len(chunk) > most:
                self._chunks.appendleft(chunk[most:])
                chunk = chunk[:most]
            self.held -= len(chunk)
            return chunk
        if link.error is not None:
            raise link.error
        if self._clean is False:
            raise ConnectionLost(
                "the peer closed the connection without close_notify: data may be missing", phase="receive"
            )
        if self._clean:
            return b""
        if link.dead is not None:
            raise ConnectionLost("the connection is closed", phase="receive")
        return None
