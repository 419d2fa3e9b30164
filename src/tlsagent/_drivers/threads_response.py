"""
`StreamResponse`: a response of `Agent` whose body is read as it comes.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from tlsagent._exchange import Awaiting, Exchange
from tlsagent._response import ResponseFacts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from tlsagent._drivers.threads import Agent
    from tlsagent._drivers.threads_raw import RawConnection


class StreamResponse(ResponseFacts):
    """
    A response whose body is read as it comes.

    Read it to its end or close it: a response dropped unread costs its connection and gives a ResourceWarning. One
    thread at a time may use it.
    """

    __slots__ = ("__weakref__", "_agent", "_raw", "_taken")

    def __init__(self, agent: Agent, exchange: Exchange) -> None:
        self._agent = agent
        self._raw: RawConnection | None = None
        self._taken: list[bytes] = []  # from the exchange and not handed out yet, the last piece first
        super().__init__(exchange)

    def iter_bytes(self) -> Iterator[bytes]:
        """
        Return the body in pieces as they come. An iteration that is left may be followed by another, which goes on
        where it ended.

        Raises:
            RequestError: The body did not arrive whole.
        """
        exchange = self._exchange
        exchange.awaiting = Awaiting.BODY
        while True:
            while self._taken:
                yield self._taken.pop()
            self._agent._pump(exchange)
            self._taken = self._agent._take_chunks(exchange)[::-1]
            if self._taken:
                continue
            if exchange.error is not None:
                raise exchange.error
            if exchange.complete:
                return

    def read(self) -> bytes:
        """Return the rest of the body."""
        return b"".join(self.iter_bytes())

    def upgrade(self) -> RawConnection:
        """
        Take over the connection, once the response has switched protocols: a 101, or a 2xx to CONNECT.

        What the server has sent after the head comes first. The connection is the caller's to close, and is used for
        nothing else; until it is closed it counts against `max_sockets`. Of all timeouts only `timeout`, inactivity,
        still runs. A second call returns the same object.

        Raises:
            LocalProtocolError: The response switched nothing.
        """
        if self._raw is None:
            self._raw = self._agent._hand_over(self._switched, self._exchange)
        return self._raw

    def close(self) -> None:
        """Have done with the response. Before its end, this costs the connection. Idempotent."""
        if self._raw is None:
            self._agent._drop(self._exchange)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        exchange: Exchange | None = getattr(self, "_exchange", None)
        if exchange is None or self._raw is not None:
            return
        if exchange.lease is None and exchange.stream is not None:
            self._agent._abandon_response(exchange)  # it is complete, but what was not read is still in the way
        elif exchange.lease is not None:
            self._agent._abandon_response(exchange)
            text = f"{self!r} was dropped unread: read it to its end or close it"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)  # last: it may raise
