"""
`AsyncStreamResponse`: a response of `AsyncAgent` whose body is read as it comes.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from tlsagent._exchange import Awaiting, Exchange
from tlsagent._response import ResponseFacts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tlsagent._drivers.aio import AsyncAgent
    from tlsagent._drivers.aio_raw import AsyncRawConnection


class AsyncStreamResponse(ResponseFacts):
    """
    A response whose body is read as it comes.

    Read it to its end or close it: a response dropped unread costs its connection and gives a ResourceWarning.
    """

    __slots__ = ("__weakref__", "_agent", "_raw", "_taken")

    def __init__(self, agent: AsyncAgent, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._agent = agent
        self._raw: AsyncRawConnection | None = None
        self._taken: list[bytes] = []  # from the exchange and not handed out yet, the last piece first

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
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
            while not exchange.ready:
                await self._agent._wait(exchange)
            self._taken = self._agent._take_chunks(exchange)[::-1]
            if self._taken:
                continue
            if exchange.error is not None:
                raise exchange.error
            if exchange.complete:
                return

    async def aread(self) -> bytes:
        """Return the rest of the body."""
        return b"".join([chunk async for chunk in self.aiter_bytes()])

    def upgrade(self) -> AsyncRawConnection:
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

    async def aclose(self) -> None:
        """Have done with the response. Before its end, this costs the connection. Idempotent."""
        if self._raw is None:
            self._agent._drop(self._exchange)

    def __del__(self) -> None:
        exchange = self._exchange
        if exchange.lease is None and exchange.stream is not None:
            self._agent._abandon(exchange)  # it is complete, but the peer has no credit back for what was not read
        elif exchange.lease is not None and self._raw is None:
            self._agent._abandon(exchange)
            text = f"{self!r} was dropped unread: read it to its end or close it"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)  # last: it may raise


class Streaming:
    """The context manager of `AsyncAgent.stream`."""

    def __init__(self, open_stream: Callable[[], Coroutine[Any, Any, AsyncStreamResponse]]) -> None:
        self._open_stream = open_stream

    async def __aenter__(self) -> AsyncStreamResponse:
        response = self._response = await self._open_stream()
        return response

    async def __aexit__(self, *exc_info: object) -> None:
        await self._response.aclose()
