"""
A connection-pooling HTTPS agent that mirrors Node's https.AgentOptions and tls.ConnectionOptions.

    from tlsagent import Agent

    with Agent() as agent:
        print(agent.request("GET", "https://example.org/").status)

Everything is loaded on first use (PEP 562), so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlsagent._connection import ConnectionInfo
    from tlsagent._drivers.aio import AsyncAgent, AsyncStreamResponse
    from tlsagent._drivers.aio_raw import AsyncRawConnection
    from tlsagent._drivers.threads import Agent, StreamResponse
    from tlsagent._drivers.threads_raw import RawConnection
    from tlsagent._exchange import Timings
    from tlsagent._http.messages import Headers, ResponseHead
    from tlsagent._options import UNSET, AgentOptions, ConnectionOptions, Http1Options, Timeouts
    from tlsagent._response import Response
    from tlsagent._secure_context import create_secure_context
    from tlsagent._stats import AgentStats, Counters
    from tlsagent._tls.certificates import PeerCertificate
    from tlsagent._tls.context import SecureContext
    from tlsagent._tls.sessions import MemorySessionStore, Session, SessionStore
    from tlsagent._tls.verify import check_server_identity
    from tlsagent.errors import (
        AgentClosed,
        CertificateError,
        CertificateNameError,
        CertificateRevoked,
        ConnectError,
        ConnectionLost,
        ConnectTimeout,
        HandshakeError,
        HandshakeTimeout,
        InactivityTimeout,
        LocalProtocolError,
        OptionError,
        OptionRangeError,
        OptionTypeError,
        PoolTimeout,
        ProxyError,
        ReadTimeout,
        RemoteProtocolError,
        RequestError,
        RequestTimeout,
        ResolutionError,
        ResolutionTimeout,
        ResponseTimeout,
        SendTimeout,
        StreamReset,
        TLSAgentError,
        TotalTimeout,
        TunnelTimeout,
    )

__version__ = "0.1.0"

_HOMES = {
    "_connection": ("ConnectionInfo",),
    "_drivers.aio": ("AsyncAgent", "AsyncStreamResponse"),
    "_drivers.aio_raw": ("AsyncRawConnection",),
    "_drivers.threads": ("Agent", "StreamResponse"),
    "_drivers.threads_raw": ("RawConnection",),
    "_exchange": ("Timings",),
    "_http.messages": ("Headers", "ResponseHead"),
    "_options": ("UNSET", "AgentOptions", "ConnectionOptions", "Http1Options", "Timeouts"),
    "_response": ("Response",),
    "_secure_context": ("create_secure_context",),
    "_stats": ("AgentStats", "Counters"),
    "_tls.certificates": ("PeerCertificate",),
    "_tls.context": ("SecureContext",),
    "_tls.sessions": ("MemorySessionStore", "Session", "SessionStore"),
    "_tls.verify": ("check_server_identity",),
    "errors": (
        "AgentClosed",
        "CertificateError",
        "CertificateNameError",
        "CertificateRevoked",
        "ConnectError",
        "ConnectTimeout",
        "ConnectionLost",
        "HandshakeError",
        "HandshakeTimeout",
        "InactivityTimeout",
        "LocalProtocolError",
        "OptionError",
        "OptionRangeError",
        "OptionTypeError",
        "PoolTimeout",
        "ProxyError",
        "ReadTimeout",
        "RemoteProtocolError",
        "RequestError",
        "RequestTimeout",
        "ResolutionError",
        "ResolutionTimeout",
        "ResponseTimeout",
        "SendTimeout",
        "StreamReset",
        "TLSAgentError",
        "TotalTimeout",
        "TunnelTimeout",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'tlsagent' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"tlsagent.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
