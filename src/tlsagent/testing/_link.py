"""
One TCP connection of the server: the asyncio end of the stack of floors.

It moves bytes between the transport, the TLS floor and the HTTP floor, tells the ledger what happened, and knows the
ways of ending a connection: in order, by a bare FIN, by a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from tlsagent.testing._hello import ClientHello, first_record
from tlsagent.testing._http import H1Floor, HTTPFloor
from tlsagent.testing._http2 import H2Floor
from tlsagent.testing._tls import ALERT_HANDSHAKE_FAILURE, TLSFailure, TLSFloor

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tlsagent.testing._asgi import Scope
    from tlsagent.testing.records import ClosedBy
    from tlsagent.testing.server import AsyncServer

How = Literal["close_notify", "eof", "reset"]

_LINGER: Final = 1.0  # seconds
_ABORT: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def reset_on_close(sock: Any) -> None:
    """Make the coming close of `sock` send RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


class ServerConnection(asyncio.BufferedProtocol):
    """
    The `Link` under the HTTP floor.

    A BufferedProtocol, since a Protocol costs a fresh 256 KiB buffer per read. The buffer is shared by all connections
    of the server: data is consumed before the loop turns to the next one.
    """

    def __init__(self, server: AsyncServer, tls: TLSFloor) -> None:
        self._server = server
        self._settings = server.settings
        self._tls = tls
        self._http: HTTPFloor | None = None
        self._transport: asyncio.Transport | None = None
        self._hello: bytearray | None = bytearray()  # the client's first record as it comes in; None once complete
        self._drained = asyncio.Event()
        self._drained.set()
        self._closing = False
        self._closed_by: ClosedBy | None = None
        self.ledger = server.ledger
        self.entry = server.ledger.opened()
        self.scope: Scope = {}

    # --- Called by the loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # asyncio does so only where the socket says that its protocol is TCP, which those of our listeners do not.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.links.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the loop's signature
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = self._server.buffer[:nbytes]
        if self._closing or (self._hello is not None and not self._greet(data)):
            return
        was_secured = self._tls.facts is not None
        try:
            plaintext = self._tls.receive_data(data)
        except TLSFailure as exc:
            self._fail(str(exc))
            return
        self._flush()
        if not was_secured and self._tls.facts is not None:
            self._secured()
        if self._tls.peer_closed:
            self._closed_by = self._closed_by or "close_notify"
        if plaintext and self._http is not None:
            self._http.receive_data(plaintext)
        if self._tls.peer_closed:
            self.close()

    def eof_received(self) -> None:
        # Returning None makes the transport close itself.
        self._closed_by = self._closed_by or "eof"

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._drained.set()
        if self._closed_by is None:
            self._closed_by = "reset" if exc is not None else "server"
        if self._tls.facts is None and self.entry.handshake_error is None:
            self.ledger.handshake_failed(self.entry, f"the connection ended ({self._closed_by})")
        if self._http is not None:
            self._http.peer_left()
        self.ledger.closed(self.entry, self._closed_by)
        self._server.links.discard(self)

    # --- Upwards ---

    def _greet(self, data: memoryview) -> bool:
        """Gather the first record for the ledger; False if the connection ends on it."""
        assert self._hello is not None
        self._hello += data
        record = first_record(self._hello)
        if record is None:
            return True
        self._hello = None
        self.ledger.greeted(self.entry, record)
        refusal = self._settings.refuse_resumption
        hello = ClientHello.parse(record) if refusal else None
        if hello is None or not hello.offers_ticket:
            return True
        if refusal == "alert":
            self._send(ALERT_HANDSHAKE_FAILURE)
        self.ledger.handshake_failed(self.entry, "resumption refused on request")
        self.close()
        return False

    def _secured(self) -> None:
        facts = self._tls.facts
        assert facts is not None
        self.ledger.secured(
            self.entry,
            version=facts.version,
            cipher=facts.cipher,
            alpn=facts.alpn,
            session_reused=facts.session_reused,
            client_certificate=facts.client_certificate,
            authorization_error=facts.authorization_error,
            psk_identity=facts.psk_identity,
            protocol="h2" if facts.alpn == "h2" else "http/1.1",
        )
        self.scope = self._base_scope()
        app = self._server.app
        self._http = H2Floor(self, app, self._settings) if facts.alpn == "h2" else H1Floor(self, app)

    def _base_scope(self) -> Scope:
        assert self._transport is not None
        entry = self.entry
        peer = self._transport.get_extra_info("peername")  # None if it has left already
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "scheme": "https",
            "root_path": "",
            "client": peer and peer[:2],
            "server": self._transport.get_extra_info("sockname")[:2],
            "extensions": {
                "http.response.trailers": {},
                "tlsagent.connection": {
                    "id": entry.id,
                    "server_name": entry.sni,
                    "protocol_version": entry.version,
                    "cipher": entry.cipher,
                    "alpn_protocol": entry.alpn,
                    "session_reused": entry.session_reused,
                    "client_certificate": entry.client_certificate is not None,
                },
            },
        }

    def _fail(self, reason: str) -> None:
        if self._tls.facts is None:
            self.ledger.handshake_failed(self.entry, reason)
        self._flush()
        self._end()

    # --- Link: called by the HTTP floor and by the server ---

    def write(self, data: bytes) -> None:
        if not self._closing:
            self._tls.write(data)
            self._flush()

    def _flush(self) -> None:
        if data := self._tls.data_to_send():
            self._send(data)

    def _send(self, data: bytes) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(data)

    def hold_reading(self, held: bool) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        if held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._server.spawn(work)

    async def drain(self) -> None:
        if not self._drained.is_set():
            await self._drained.wait()

    def close(self, *, linger: bool = False) -> None:
        self.end("eof" if self._settings.drop_without_close_notify else "close_notify", linger=linger)

    def abort(self) -> None:
        self.end("reset")

    def end(self, how: How, *, linger: bool = False) -> None:
        """End the connection in the given way; the second time nothing happens."""
        if self._closing:
            return
        assert self._transport is not None
        if how == "reset":
            with contextlib.suppress(OSError):
                reset_on_close(self._transport.get_extra_info("socket"))
            self._closing = True
            self._transport.abort()
            return
        if how == "close_notify":
            self._tls.close()
            self._flush()
        self._end(linger=linger)

    def leave(self) -> None:
        """End the connection in order, with what HTTP has to say about it."""
        if self._http is None:
            self.close()
        else:
            self._http.leave()

    def go_away(self, last_stream_id: int | None, code: int) -> None:
        """Announce the end of the connection; nothing before the handshake is done, and for HTTP/1.1."""
        if self._http is not None:
            self._http.go_away(last_stream_id, code)

    def kill(self) -> None:
        """End the connection now, whatever is still to be sent."""
        assert self._transport is not None
        self._transport.abort()

    def _end(self, *, linger: bool = False) -> None:
        assert self._transport is not None
        self._closing = True
        # A peer that has ended its side has nothing on its way that could reset what we wrote.
        linger = linger and self._closed_by is None and not self._transport.is_closing()
        if linger and self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
            asyncio.get_running_loop().call_later(_LINGER, self._transport.close)
        else:
            self._transport.close()
