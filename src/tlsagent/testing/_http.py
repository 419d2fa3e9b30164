"""
The HTTP/1.1 floor of the server: h11 in the server's role under ASGI cycles (RFC 9112).

It decides framing, keep-alive, 100 (Continue) and what a broken request gets. The connection below is a `Link`; the
other floor, `_http2.py`, satisfies `HTTPFloor` as well and makes its own cycles. A response whose body comes in one
piece leaves in one write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

import h11

from tlsagent.testing._asgi import Application, Cycle, Headers, Message, Scope
from tlsagent.testing.records import ConnectionEntry, Ledger, RequestEntry

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

_MAX_HEAD: Final = 65_536
_BODYLESS: Final = frozenset({204, 304})
_STILL_SENDING: Final = frozenset({h11.SEND_BODY, h11.ERROR})


class Link(Protocol):
    """What an HTTP floor may ask of the connection under it."""

    ledger: Ledger
    entry: ConnectionEntry
    scope: Scope

    def write(self, data: bytes) -> None:
        """Send plaintext."""

    def hold_reading(self, held: bool) -> None:
        """Stop or resume reading from the socket."""

    def close(self, *, linger: bool = False) -> None:
        """
        End the connection in order, once what was written is out.

        Args:
            linger: The peer is still sending. Read on for a moment: closing now would reset the connection, and the
                reset could overtake the response (RFC 9112 9.6).
        """

    def abort(self) -> None:
        """End the connection as a crash would."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as a task that ends with the server."""

    async def drain(self) -> None:
        """Wait until the socket takes more."""


class HTTPFloor(Protocol):
    """One connection's HTTP, server side."""

    def receive_data(self, data: bytes) -> None:
        """Take plaintext."""

    def peer_left(self) -> None:
        """Nothing more will come, and nothing more can be sent."""

    def leave(self) -> None:
        """End the connection, telling the peer so as far as HTTP has words for it."""

    def go_away(self, last_stream_id: int | None, code: int) -> None:
        """Announce the end of the connection, and end it when the requests have ended."""


class H1Floor:
    """`HTTPFloor` for HTTP/1.1 and 1.0, and the `Responder` of its one cycle at a time."""

    __slots__ = ("_app", "_cycle", "_head", "_head_only", "_http", "_link", "_request", "_running", "_served")

    def __init__(self, link: Link, app: Application) -> None:
        self._link = link
        self._app = app
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self._cycle: Cycle | None = None
        self._running = False  # the application has not returned from the cycle
        self._request: RequestEntry | None = None
        self._head = b""  # a response head that waits for the first piece of its body
        self._head_only = False  # the response has no body whatever the application sends
        self._served = 0

    # --- From below ---

    def receive_data(self, data: bytes) -> None:
        if self._http.our_state is h11.SWITCHED_PROTOCOL:
            if self._cycle is not None:
                self._cycle.body_received(data)
            return
        self._http.receive_data(data)
        self._advance()

    def _advance(self) -> None:
        try:
            while self._take(self._http.next_event()):
                pass
        except h11.RemoteProtocolError as exc:
            self._refuse(exc.error_status_hint)

    def _take(self, event: Any) -> bool:
        kind = type(event)
        if kind is h11.Request:
            self._request_received(event)
        elif kind is h11.Data:
            self._body_received(bytes(event.data))
        elif kind is h11.EndOfMessage:
            self._request_ended(event)
        else:
            return False  # NEED_DATA, PAUSED, ConnectionClosed
        return True

    def _request_received(self, event: h11.Request) -> None:
        raw = event.headers.raw_items()
        self._request = RequestEntry(event.method, event.target, raw)
        self._link.ledger.requested(self._link.entry, self._request)
        self._served += 1
        self._head_only = event.method == b"HEAD"
        self._cycle = Cycle(self)
        self._running = True
        self._link.spawn(self._cycle.run(self._app, self._scope(event)))

    def _scope(self, event: h11.Request) -> Scope:
        target = event.target
        extensions = {**self._link.scope["extensions"], "tlsagent.request": {"number": self._served}}
        if event.method == b"CONNECT" or any(name == b"upgrade" for name, _ in event.headers):
            extensions["tlsagent.upgrade"] = {}
        if not target.startswith(b"/"):
            # RFC 9112 3.2.2: the absolute form must be accepted.
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2] if b"://" in target else target
        path, _, query = target.partition(b"?")
        return {
            **self._link.scope,
            "http_version": event.http_version.decode("ascii"),
            "method": event.method.decode("ascii"),
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "headers": list(event.headers),
            "extensions": extensions,
        }

    def _body_received(self, data: bytes) -> None:
        assert self._request is not None
        assert self._cycle is not None
        self._link.ledger.body_received(self._request, data)
        self._cycle.body_received(data)

    def _request_ended(self, event: h11.EndOfMessage) -> None:
        assert self._request is not None
        assert self._cycle is not None
        self._link.ledger.request_ended(self._request, event.headers.raw_items())
        self._cycle.body_ended(event.headers)
        self._next_cycle()

    def _refuse(self, status: int) -> None:
        self.peer_left()  # for the application, if it is still at work
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self.start_response(status, [(b"content-length", b"0"), (b"connection", b"close")])
            self.send_body(b"", more=False)
        self._close()

    def peer_left(self) -> None:
        if self._cycle is not None:
            self._cycle.peer_left()

    def leave(self) -> None:
        self._link.close()

    def go_away(self, last_stream_id: int | None, code: int) -> None:
        """HTTP/1.1 cannot announce anything between responses: the connection stays as it is."""

    # --- From above: the Responder of the cycle ---

    def start_response(self, status: int, headers: Headers) -> None:
        fields = [(bytes(name), bytes(value)) for name, value in headers]
        if status == 101:
            switch = h11.InformationalResponse(status_code=status, headers=fields, reason="Switching Protocols")
            self._link.write(self._http.send(switch) or b"")
            self._switched()
            return
        if self._http.they_are_waiting_for_100_continue:
            # RFC 9110 10.1.1: the body may come or not; close, so that nobody has to guess.
            fields.append((b"connection", b"close"))
        self._head_only = self._head_only or status in _BODYLESS
        self._head = self._http.send(h11.Response(status_code=status, headers=fields)) or b""
        if self._http.our_state is h11.SWITCHED_PROTOCOL:
            self._link.write(self._head)
            self._head = b""
            self._switched()

    def _switched(self) -> None:
        assert self._cycle is not None
        self._cycle.switched()
        if early := self._http.trailing_data[0]:
            self._cycle.body_received(early)

    def send_body(self, data: bytes, *, more: bool) -> None:
        if self._http.our_state is h11.SWITCHED_PROTOCOL:
            self._link.write(data)
            if not more:
                self._link.close()
            return
        out = self._head
        self._head = b""
        if data and not self._head_only:
            out += self._http.send(h11.Data(data=data)) or b""
        if not more:
            out += self._http.send(h11.EndOfMessage()) or b""
        self._link.write(out)
        if not more:
            self._response_ended()

    def send_trailers(self, headers: Headers) -> None:
        fields = [] if self._head_only else [(bytes(name), bytes(value)) for name, value in headers]
        self._link.write(self._http.send(h11.EndOfMessage(headers=fields)) or b"")
        self._response_ended()

    def _response_ended(self) -> None:
        if self._http.our_state is h11.MUST_CLOSE:
            self._close()

    def _close(self) -> None:
        self._link.close(linger=self._http.their_state in _STILL_SENDING)

    def want_body(self) -> None:
        if self._http.they_are_waiting_for_100_continue:
            self._link.write(
                self._http.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue")) or b""
            )

    def hold_body(self, held: bool) -> None:
        self._link.hold_reading(held)

    def command(self, message: Message) -> bool:  # noqa: ARG002 - there is none in this version
        return False

    def fail(self) -> None:
        if self._http.our_state is h11.SEND_RESPONSE:
            self._refuse(500)
        else:
            self._link.abort()

    async def drain(self) -> None:
        await self._link.drain()

    def finished(self) -> None:
        self._running = False
        self._next_cycle()

    def _next_cycle(self) -> None:
        # Both halves done and the application returned: what h11 has kept back of a pipelined request may go on.
        if not self._running and self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._cycle = None
            self._http.start_next_cycle()
            self._advance()
