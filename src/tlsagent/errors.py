"""
Every error a user of tlsagent can meet.

    TLSAgentError
    ├── OptionError                     a bad option, refused before any socket opens
    │   ├── OptionTypeError             (also TypeError)
    │   └── OptionRangeError            (also ValueError)
    ├── AgentClosed                     the agent takes no more requests
    ├── WrongEventLoop                  (also RuntimeError) an AsyncAgent is used outside its event loop
    └── RequestError                    one request failed
        ├── ConnectError                (also ConnectionError) no usable connection came about
        │   ├── ResolutionError
        │   ├── ProxyError
        │   └── HandshakeError          the TLS handshake failed
        │       └── CertificateError    the peer's certificate was refused
        │           ├── CertificateNameError
        │           └── CertificateRevoked
        ├── ConnectionLost              (also ConnectionError) the peer or the network ended the connection
        ├── RemoteProtocolError         the peer broke the protocol
        │   └── StreamReset
        ├── LocalProtocolError          (also ValueError) the caller asked for something the protocol forbids
        └── RequestTimeout              (also TimeoutError)
            ├── PoolTimeout
            ├── ResolutionTimeout
            ├── ConnectTimeout
            ├── TunnelTimeout
            ├── HandshakeTimeout
            ├── SendTimeout
            ├── ResponseTimeout
            ├── ReadTimeout
            ├── InactivityTimeout
            └── TotalTimeout

Codes are Node's where Node has one, else ours (they begin with `ERR_TLSAGENT_`). The facts of a failed request are
attributes, so that nobody has to parse a message. All errors can be pickled.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, TypeVar

Phase = Literal["queue", "lookup", "connect", "tunnel", "handshake", "send", "wait", "receive"]

_MAX_QUOTED = 200


def quoted(text: bytes | str) -> str:
    """Return what a peer sent as printable ASCII of bounded length, fit for an error message."""
    if isinstance(text, str):
        text = text.encode("utf-8", "backslashreplace")
    cut = text[:_MAX_QUOTED].decode("latin-1").encode("unicode_escape").decode("ascii")
    return f'"{cut}"' + ("..." if len(text) > _MAX_QUOTED else "")


class TLSAgentError(Exception):
    """
    Root of the tree.

    Attributes:
        code: Stable name of what went wrong; Node's where it has one.
    """

    default_code = "ERR_TLSAGENT"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments do not survive the default protocol: rebuild from the message, then restore the facts.
        return (_rebuild, (type(self), str(self)), self.__dict__)


_E = TypeVar("_E", bound=BaseException)


def own_copy(error: _E) -> _E:
    """Return an error like one that is told to somebody else, with the same cause: each has its own facts."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


def _rebuild(cls: type[TLSAgentError], message: str) -> TLSAgentError:
    return cls(message)


class OptionError(TLSAgentError):
    """An option cannot be used as given. Raised when the options object is built."""

    default_code = "ERR_INVALID_ARG_VALUE"


class OptionTypeError(OptionError, TypeError):
    """An option has the wrong type, or a name is unknown."""

    default_code = "ERR_INVALID_ARG_TYPE"


class OptionRangeError(OptionError, ValueError):
    """A number is outside its range."""

    default_code = "ERR_OUT_OF_RANGE"


class AgentClosed(TLSAgentError):
    """The agent was closed before or while the request waited."""

    default_code = "ERR_TLSAGENT_CLOSED"


class WrongEventLoop(TLSAgentError, RuntimeError):
    """An `AsyncAgent` was used in an event loop while the one it belongs to is still open."""

    default_code = "ERR_TLSAGENT_EVENT_LOOP"


class RequestError(TLSAgentError):
    """
    One request failed. Exactly one error is raised per failed request, its cause chained.

    Attributes:
        phase: Where it failed: queue, lookup, connect, tunnel, handshake, send, wait or receive; None if before all.
        key: Printable digest of the pool key.
        reused: Whether the connection had served a request before.
        request_sent: Whether any byte of the request was handed to the connection.
        alert: Name of the TLS alert received or sent, if one was.
        elapsed: Seconds since the request began.
    """

    default_code = "ERR_TLSAGENT_REQUEST"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        phase: Phase | None = None,
        key: str | None = None,
        reused: bool = False,
        request_sent: bool = False,
        alert: str | None = None,
        elapsed: float | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.phase = phase
        self.key = key
        self.reused = reused
        self.request_sent = request_sent
        self.alert = alert
        self.elapsed = elapsed


class ConnectError(RequestError, ConnectionError):
    """No usable connection came about."""

    default_code = "ECONNREFUSED"


class ResolutionError(ConnectError):
    """The host name has no address."""

    default_code = "ENOTFOUND"


class ProxyError(ConnectError):
    """
    The proxy was not reached, refused or broke off.

    Attributes:
        status: The status of its response to CONNECT, or its SOCKS5 reply, if it gave one.
    """

    default_code = "ERR_PROXY_TUNNEL"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None, **facts: Any) -> None:
        super().__init__(message, code=code, **facts)
        self.status = status


class HandshakeError(ConnectError):
    """The TLS handshake failed."""

    default_code = "ERR_SSL_HANDSHAKE_FAILURE"


class CertificateError(HandshakeError):
    """The peer's certificate was refused; `code` is Node's name of the reason."""

    default_code = "UNSPECIFIED"


class CertificateNameError(CertificateError):
    """The peer's certificate is not for the name that was asked for."""

    default_code = "ERR_TLS_CERT_ALTNAME_INVALID"


class CertificateRevoked(CertificateError):
    """A certificate of the peer's chain was revoked."""

    default_code = "CERT_REVOKED"


class ConnectionLost(RequestError, ConnectionError):
    """The peer or the network ended the connection before the response was complete."""

    default_code = "ECONNRESET"


class RemoteProtocolError(RequestError):
    """The peer broke the protocol."""

    default_code = "ERR_TLSAGENT_REMOTE_PROTOCOL"


class StreamReset(RemoteProtocolError):
    """
    The peer reset the stream of this request.

    Attributes:
        error_code: Why, as a number of RFC 9113, 7, if it is known.
    """

    default_code = "ERR_HTTP2_STREAM_ERROR"

    def __init__(self, message: str, *, code: str | None = None, error_code: int | None = None, **facts: Any) -> None:
        super().__init__(message, code=code, **facts)
        self.error_code = error_code


class LocalProtocolError(RequestError, ValueError):
    """The caller asked for something that the protocol forbids; nothing was sent."""

    default_code = "ERR_TLSAGENT_LOCAL_PROTOCOL"


class RequestTimeout(RequestError, TimeoutError):
    """A deadline passed; `phase` tells where."""

    default_code = "ERR_TLSAGENT_TIMEOUT"


class PoolTimeout(RequestTimeout):
    """No connection became free within `timeouts.queue`."""

    default_code = "ERR_TLSAGENT_POOL_TIMEOUT"


class ResolutionTimeout(RequestTimeout):
    """The name was not resolved within `timeouts.lookup`."""

    default_code = "ERR_TLSAGENT_RESOLUTION_TIMEOUT"


class ConnectTimeout(RequestTimeout):
    """No address accepted the connection within `timeouts.connect`."""

    default_code = "ERR_TLSAGENT_CONNECT_TIMEOUT"


class TunnelTimeout(RequestTimeout):
    """The proxy did not open the tunnel within `timeouts.tunnel`."""

    default_code = "ERR_TLSAGENT_TUNNEL_TIMEOUT"


class HandshakeTimeout(RequestTimeout):
    """The TLS handshake did not end within `timeouts.handshake`."""

    default_code = "ERR_TLSAGENT_HANDSHAKE_TIMEOUT"


class SendTimeout(RequestTimeout):
    """The peer accepted no byte of the request for `timeouts.send`."""

    default_code = "ERR_TLSAGENT_SEND_TIMEOUT"


class ResponseTimeout(RequestTimeout):
    """No response head came within `timeouts.response` of the request."""

    default_code = "ERR_TLSAGENT_RESPONSE_TIMEOUT"


class ReadTimeout(RequestTimeout):
    """No byte of the body came for `timeouts.read`."""

    default_code = "ERR_TLSAGENT_READ_TIMEOUT"


class InactivityTimeout(RequestTimeout):
    """The connection of the request was silent for `timeout`."""

    default_code = "ERR_TLSAGENT_INACTIVITY_TIMEOUT"


class TotalTimeout(RequestTimeout):
    """The request was not complete within `timeouts.total`."""

    default_code = "ERR_TLSAGENT_TOTAL_TIMEOUT"
