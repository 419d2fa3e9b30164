"""
A TLS engine whose bytes go through a proxy's tunnel, and to an `https` proxy through TLS of its own.

Stands in a `Connection` where a `TLSEngine` would, with the same verbs. The floors, from the socket up: the TLS engine
of the proxy, if it has one; the tunnel, until it is open; the TLS engine of the origin. Once the tunnel of a proxy
without TLS is open there is nothing left to do here: the sink is handed the origin's engine and talks to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from tlsagent._body import PIECE
from tlsagent._tls.engine import TLSEngine, TLSSink
from tlsagent.errors import ProxyError, RequestError

if TYPE_CHECKING:
    from tlsagent._material import Session
    from tlsagent._tls.engine import HandshakeFacts
    from tlsagent._tunnel import Tunnel


class TunnelSink(TLSSink, Protocol):
    """Who is told of the origin's TLS, and before that of the tunnel."""

    def tunnel_opened(self, engine: TLSEngine | TunnelledEngine, now: float) -> None:
        """Take note that the handshake with the origin begins; all verbs go to `engine` from now on."""


class TunnelledEngine:
    """
    TLS to the origin, behind a tunnel.

    Args:
        origin: The engine for the origin, not started yet.
        tunnel: The conversation with the proxy.
        proxy: The engine for the proxy's own TLS, not started yet; None for a proxy that has none.
    """

    unsent: Final = True  # whether there is anything is only known once it was asked for

    __slots__ = ("_asked", "_broken", "_ended", "_opened", "_origin", "_plaintext", "_proxy", "_tunnel", "_unsent")

    def __init__(self, origin: TLSEngine, tunnel: Tunnel, proxy: TLSEngine | None) -> None:
        self._origin = origin
        self._tunnel = tunnel
        self._proxy = proxy
        self._asked = False
        self._opened = False
        self._ended = False  # the proxy's TLS has
        self._broken = False  # likewise, or we have done with it: nothing more can be wrapped
        self._plaintext: list[bytes] = []  # of the proxy's TLS, not passed on yet
        self._unsent = b""  # to a proxy without TLS

    @property
    def offered_session(self) -> bool:
        """Whether a session is offered to the origin."""
        return self._origin.offered_session

    def start(self) -> None:
        """Begin to talk to the proxy."""
        if self._proxy is not None:
            self._proxy.start()
        else:
            self._ask()

    def receive_data(self, data: bytes | bytearray | memoryview, now: float, sink: TunnelSink) -> None:
        """
        Take bytes from the socket.

        Raises:
            ProxyError: There will be no tunnel.
            RequestError: As the engine of the origin.
        """
        if self._proxy is None:
            self._pass_on(bytes(data), now, sink)
            return
        try:
            self._proxy.receive_data(data, now, self)
        except RequestError as error:
            self._broken = True
            if self._opened:
                raise
            raise ProxyError(f"TLS to the proxy failed: {error}", code=error.code) from error
        if self._proxy.secured and not self._asked:
            self._ask()
        plaintext, self._plaintext = b"".join(self._plaintext), []
        if plaintext:
            self._pass_on(plaintext, now, sink)
        if self._ended:
            self._end(now, sink)

    def receive_eof(self, now: float, sink: TunnelSink) -> None:
        """
        Take the end of the socket's input.

        Raises:
            ProxyError: The tunnel was not open.
            ConnectionLost: The handshake with the origin was not complete.
        """
        self._end(now, sink)

    def _pass_on(self, data: bytes, now: float, sink: TunnelSink) -> None:
        if not self._opened:
            self._send(self._tunnel.receive_data(data))
            if not self._tunnel.opened:
                return
            self._opened = True
            self._origin.start()
            sink.tunnel_opened(self._origin if self._proxy is None else self, now)
            data = self._tunnel.leftover
        if data:
            self._origin.receive_data(data, now, sink)

    def _end(self, now: float, sink: TunnelSink) -> None:
        if not self._opened:
            raise ProxyError("the proxy closed the connection before the tunnel was open")
        self._origin.receive_eof(now, sink)

    def _ask(self) -> None:
        self._asked = True
        self._send(self._tunnel.start())

    def _send(self, data: bytes) -> None:
        if self._proxy is None:
            self._unsent += data
        else:
            self._proxy.write(data)

    # --- Output -------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt bytes for the origin."""
        self._origin.write(data)

    def data_to_send(self) -> bytes:
        """Return what is to be written to the socket."""
        self._wrap()
        unsent, self._unsent = self._unsent, b""
        return unsent if self._proxy is None else unsent + self._proxy.data_to_send()

    def _wrap(self) -> None:
        """Put what the origin's engine has to send into the proxy's TLS."""
        proxy = self._proxy
        if proxy is None or self._broken or not self._opened:
            return
        data = memoryview(self._origin.data_to_send())
        for at in range(0, len(data), PIECE):
            proxy.write(data[at : at + PIECE])
            self._unsent += proxy.data_to_send()

    def close(self) -> None:
        """End both connections in good order, the inner one first."""
        if self._opened:
            self._origin.close()
        self._wrap()
        self._broken = True
        if self._proxy is not None:
            self._proxy.close()

    def abort(self) -> None:
        """End both at once; an alert for the origin that is ready still goes."""
        self._origin.abort()
        self._wrap()
        self._broken = True
        if self._proxy is not None:
            self._proxy.abort()

    # --- What the proxy's TLS engine tells: it is a TLSSink -----------------------------------------------------------

    def secured(self, facts: HandshakeFacts, now: float) -> None:
        """Nothing to note: the engine says so itself."""

    def session_received(self, session: Session) -> None:
        """Let it go: sessions are kept for origins alone."""

    def plaintext_received(self, data: bytes, now: float) -> None:  # noqa: ARG002 - a TLSSink is told the time
        """Keep it until the engine has returned."""
        self._plaintext.append(data)

    def plaintext_ended(self, clean: bool, now: float) -> None:  # noqa: ARG002
        """Note it: what the end means is for the origin's TLS to say."""
        self._ended = True
