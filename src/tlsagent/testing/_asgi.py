"""
One request and its response as an ASGI 3 application sees them (scope "http", extension http.response.trailers).

Extension tlsagent.upgrade, which is ours: a response of 101 to a request with Upgrade, or of 2xx to CONNECT, switches
protocols. From then on "http.request" and "http.response.body" carry the bytes of the other protocol, until one has no
more.

A `Cycle` knows no HTTP version: it turns the application's messages into calls of a `Responder`, which the HTTP floor
of the connection provides, and queues what that floor received. One cycle runs in one task, so a floor with many
streams needs nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, Protocol

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

logger = logging.getLogger("tlsagent.testing")

_BODY_HELD: Final = 65_536  # beyond it the connection stops reading until the application catches up


class Responder(Protocol):
    """What a cycle asks of its HTTP floor."""

    def start_response(self, status: int, headers: Headers) -> None:
        """Take the head; it may be held until the first piece of the body."""

    def send_body(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body; the last one ends the response unless trailers follow."""

    def send_trailers(self, headers: Headers) -> None:
        """End the response with these fields."""

    def want_body(self) -> None:
        """The application waits for the body: the moment for 100 (Continue)."""

    def hold_body(self, held: bool) -> None:
        """Stop or resume reading, as the application falls behind or catches up."""

    def command(self, message: Message) -> bool:
        """Carry out a message of an extension of this floor; False if it knows none of that type."""

    def fail(self) -> None:
        """End the response in a way that cannot be taken for a good one."""

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was sent."""

    def finished(self) -> None:
        """The application is done with this cycle."""


class Cycle:
    """One request, its response, and the application between them."""

    __slots__ = (
        "_complete",
        "_ended",
        "_given",
        "_gone",
        "_held",
        "_pieces",
        "_request_trailers",
        "_responder",
        "_started",
        "_trailers",
        "_waiter",
    )

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._pieces: deque[bytes] = deque()
        self._held = 0  # bytes in `_pieces`
        self._ended = False  # the request's body has been received
        self._given = False  # the application has been told of its end
        self._request_trailers: list[tuple[bytes, bytes]] = []
        self._gone = False  # the peer has left
        self._started = False
        self._trailers: list[tuple[bytes, bytes]] | None = None  # a list once the application announced them
        self._complete = False  # the response has been sent
        self._waiter: asyncio.Future[None] | None = None

    async def run(self, app: Application, scope: Scope) -> None:
        """Run the application; whatever it does wrong shows as a failed response and in the log."""
        try:
            await app(scope, self._receive, self._send)
            if not self._complete and not self._gone:
                logger.error("the application returned before its response to %s was complete", scope["path"])
        except Exception:
            logger.exception("the application failed on %s", scope["path"])
        if not self._complete and not self._gone:
            self._responder.fail()
        self._responder.finished()

    # --- Fed by the HTTP floor ---

    def body_received(self, data: bytes) -> None:
        if self._complete:
            return  # nobody will ask for it
        self._pieces.append(data)
        self._held += len(data)
        if self._held > _BODY_HELD:
            self._responder.hold_body(True)
        self._wake()

    def body_ended(self, trailers: Headers) -> None:
        self._ended = True
        self._request_trailers += trailers
        self._wake()

    def switched(self) -> None:
        """Another protocol begins: what comes from now on is no body, whatever was received of one."""
        self._ended = self._given = False

    def peer_left(self) -> None:
        self._gone = True
        self._wake()

    @property
    def listens(self) -> bool:
        """Whether the application waits in `receive()`."""
        return self._waiter is not None and not self._waiter.done()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- Called by the application ---

    async def _receive(self) -> Message:
        while not (self._pieces or self._ended or self._gone):
            self._responder.want_body()
            await self._change()
        if not self._given and not self._gone:
            return self._next_piece()
        while not (self._gone or self._complete):
            await self._change()
        return {"type": "http.disconnect"}

    async def _change(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _next_piece(self) -> Message:
        data = b"".join(self._pieces)
        self._given = self._ended
        self._let_go()
        message: Message = {"type": "http.request", "body": data, "more_body": not self._ended}
        if self._request_trailers:
            message["trailers"] = self._request_trailers  # ours; ASGI has no place for them
        return message

    def _let_go(self) -> None:
        self._pieces.clear()
        if self._held > _BODY_HELD:
            self._responder.hold_body(False)
        self._held = 0

    async def _send(self, message: Message) -> None:
        if self._gone:
            return  # ASGI: sending after a disconnect is not an error
        kind = message["type"]
        if kind == "http.response.start" and not self._started:
            self._started = True
            self._trailers = [] if message.get("trailers") else None
            self._responder.start_response(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self._started and not self._complete:
            self._complete = not message.get("more_body") and self._trailers is None
            self._responder.send_body(bytes(message.get("body", b"")), more=not self._complete)
            await self._settle()
        elif kind == "http.response.trailers" and self._trailers is not None and not self._complete:
            self._trailers += message.get("headers", ())
            self._complete = not message.get("more_trailers")
            if self._complete:
                self._responder.send_trailers(self._trailers)
            await self._settle()
        elif not self._responder.command(message):
            raise RuntimeError(f"unexpected ASGI message {kind!r}")

    async def _settle(self) -> None:
        if self._complete:
            self._let_go()
            self._wake()
        await self._responder.drain()
