"""
The bytes before TLS: a proxy is asked for a tunnel, by HTTP CONNECT or by SOCKS5. Sans I/O.

A tunnel is fed what comes from the proxy and says what is to be sent; once it is `opened`, what came behind the proxy's
answer lies in `leftover`, and everything further belongs to the floor above. HTTP is h11's to read, SOCKS5 socksio's;
what they raise ends here as `ProxyError`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final, Protocol

from tlsagent.errors import ProxyError, quoted

if TYPE_CHECKING:
    import h11

    from tlsagent._proxy import Proxy

_MAX_HEAD: Final = 65_536
_MAX_INFORMATIONAL: Final = 16
_SUCCESS: Final = range(200, 300)
_SOCKS_HEADER: Final = 5
"""Bytes of a SOCKS5 reply up to the length of a name, if it has one."""


class Tunnel(Protocol):
    """
    The conversation with one proxy.

    Attributes:
        opened: Whether the proxy has opened the tunnel.
        leftover: What came behind its answer.
    """

    opened: bool
    leftover: bytes

    def start(self) -> bytes:
        """Return what is to be sent first."""

    def receive_data(self, data: bytes) -> bytes:
        """
        Take bytes of the proxy; return what is to be sent in answer.

        Raises:
            ProxyError: The proxy refused, or what it says cannot be read.
        """


def tunnel_to(target: tuple[str, int], proxy: Proxy) -> Tunnel:
    """Return the conversation in which `proxy` is asked for a tunnel to a host and a port."""
    credentials = None if proxy.username is None else (proxy.username, proxy.password or b"")
    kind = Socks5Tunnel if proxy.scheme.startswith("socks5") else ConnectTunnel
    return kind(*target, credentials)


class ConnectTunnel:
    """
    HTTP CONNECT (RFC 9110, 9.3.6).

    Args:
        host, port: Where the proxy is to connect to.
        credentials: User name and password for Basic authentication (RFC 7617).
    """

    def __init__(self, host: str, port: int, credentials: tuple[bytes, bytes] | None) -> None:
        import h11

        self.opened = False
        self.leftover = b""
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._informational = 0
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        headers = [("Host", target)]
        if credentials is not None:
            token = base64.b64encode(b":".join(credentials)).decode("ascii")
            headers.append(("Proxy-Authorization", f"Basic {token}"))
        self._request = h11.Request(method="CONNECT", target=target, headers=headers)

    def start(self) -> bytes:
        """Return the request."""
        import h11

        return (self._h11.send(self._request) or b"") + (self._h11.send(h11.EndOfMessage()) or b"")

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes of the answer; there is nothing to say to it."""
        import h11

        self._h11.receive_data(data)
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as exc:
                raise ProxyError(f"what the proxy answers is no HTTP/1.1: {quoted(str(exc))}") from exc
            if event is h11.NEED_DATA:
                return b""
            if isinstance(event, h11.InformationalResponse):
                self._informational += 1
                if self._informational > _MAX_INFORMATIONAL:
                    raise ProxyError(f"the proxy sent more than {_MAX_INFORMATIONAL} responses with a status of 1xx")
                continue
            assert isinstance(event, h11.Response)
            self._settle(event)
            return b""

    def _settle(self, response: h11.Response) -> None:
        status = response.status_code
        if status not in _SUCCESS:
            reason = quoted(response.reason.decode("latin-1"))
            hint = ": put user name and password into its URL" if status == 407 else ""
            raise ProxyError(f"the proxy refused the tunnel with status {status} ({reason}){hint}", status=status)
        self.opened = True
        self.leftover, _ = self._h11.trailing_data


class Socks5Tunnel:
    """
    SOCKS5 (RFC 1928), without authentication or by user name and password (RFC 1929).

    Args:
        host, port: Where the proxy is to connect to; a name is resolved by the proxy.
        credentials: User name and password.
    """

    def __init__(self, host: str, port: int, credentials: tuple[bytes, bytes] | None) -> None:
        from socksio import socks5

        self.opened = False
        self.leftover = b""
        self._socks = socks5.SOCKS5Connection()
        self._target = (host, port)
        self._credentials = credentials
        self._received = b""

    def start(self) -> bytes:
        """Return the greeting: which ways to authenticate we know."""
        from socksio import socks5

        methods = [socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED]
        if self._credentials is not None:
            methods.append(socks5.SOCKS5AuthMethod.USERNAME_PASSWORD)
        self._socks.send(socks5.SOCKS5AuthMethodsRequest(methods))
        return self._socks.data_to_send()

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes of the proxy; socksio wants each of its messages whole."""
        from socksio import ProtocolError

        self._received += data
        try:
            while not self.opened and len(self._received) >= (size := self._message_size()):
                message, self._received = self._received[:size], self._received[size:]
                self._answer(self._socks.receive_data(message))
        except ProtocolError as exc:
            raise ProxyError("what the proxy answers is no SOCKS5") from exc
        if self.opened:
            self.leftover, self._received = self._received, b""
        return self._socks.data_to_send()

    def _message_size(self) -> int:
        from socksio import socks5

        if self._socks.state is not socks5.SOCKS5State.CLIENT_AUTHENTICATED:
            return 2
        if len(self._received) < _SOCKS_HEADER:
            return _SOCKS_HEADER
        # RFC 1928, 6: version, reply, reserved and type of address; the address; two bytes of port.
        sizes = {1: 4, 3: 1 + self._received[4], 4: 16}
        return 4 + sizes.get(self._received[3], 1) + 2

    def _answer(self, event: object) -> None:
        from socksio import socks5

        if isinstance(event, socks5.SOCKS5AuthReply):
            self._authenticate(event.method)
        elif isinstance(event, socks5.SOCKS5UsernamePasswordReply):
            if not event.success:
                raise ProxyError("the proxy refused user name and password: see those in its URL")
            self._ask()
        elif isinstance(event, socks5.SOCKS5Reply):
            if event.reply_code is not socks5.SOCKS5ReplyCode.SUCCEEDED:
                what = event.reply_code.name.lower().replace("_", " ")
                raise ProxyError(f"the proxy refused the tunnel: {what} (RFC 1928, 6)", status=event.reply_code[0])
            self.opened = True

    def _authenticate(self, method: object) -> None:
        from socksio import socks5

        if method is socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED:
            self._ask()
        elif method is socks5.SOCKS5AuthMethod.USERNAME_PASSWORD and self._credentials is not None:
            self._socks.send(socks5.SOCKS5UsernamePasswordRequest(*self._credentials))
        else:
            raise ProxyError(
                "the proxy accepts none of our ways to authenticate: put user name and password into its URL"
            )

    def _ask(self) -> None:
        from socksio import socks5

        command = socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, self._target)
        self._socks.send(command)
