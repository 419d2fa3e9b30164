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
    from tlsagent._connection_info import ConnectionInfo as ConnectionInfo
    from tlsagent._drivers.aio import AsyncAgent as AsyncAgent
    from tlsagent._drivers.aio_raw import AsyncRawConnection as AsyncRawConnection
    from tlsagent._drivers.aio_response import AsyncStreamResponse as AsyncStreamResponse
    from tlsagent._drivers.threads import Agent as Agent
    from tlsagent._drivers.threads_raw import RawConnection as RawConnection
    from tlsagent._drivers.threads_response import StreamResponse as StreamResponse
    from tlsagent._exchange import Timings as Timings
    from tlsagent._http.messages import Headers as Headers
    from tlsagent._http.messages import ResponseHead as ResponseHead
    from tlsagent._limits import Http1Options as Http1Options
    from tlsagent._limits import Http2Options as Http2Options
    from tlsagent._limits import Timeouts as Timeouts
    from tlsagent._option_rules import UNSET as UNSET
    from tlsagent._option_rules import Psk as Psk
    from tlsagent._options import AgentOptions as AgentOptions
    from tlsagent._options import ConnectionOptions as ConnectionOptions
    from tlsagent._options import ServerOptionWarning as ServerOptionWarning
    from tlsagent._proxy import Proxy as Proxy
    from tlsagent._response import Response as Response
    from tlsagent._secure_context import create_secure_context as create_secure_context
    from tlsagent._stats import AgentStats as AgentStats
    from tlsagent._stats import Counters as Counters
    from tlsagent._tls.certificates import PeerCertificate as PeerCertificate
    from tlsagent._tls.context import SecureContext as SecureContext
    from tlsagent._tls.sessions import MemorySessionStore as MemorySessionStore
    from tlsagent._tls.sessions import Session as Session
    from tlsagent._tls.sessions import SessionStore as SessionStore
    from tlsagent._tls.verify import check_server_identity as check_server_identity
    from tlsagent.errors import AgentClosed as AgentClosed
    from tlsagent.errors import CertificateError as CertificateError
    from tlsagent.errors import CertificateNameError as CertificateNameError
    from tlsagent.errors import CertificateRevoked as CertificateRevoked
    from tlsagent.errors import ConnectError as ConnectError
    from tlsagent.errors import ConnectionLost as ConnectionLost
    from tlsagent.errors import ConnectTimeout as ConnectTimeout
    from tlsagent.errors import HandshakeError as HandshakeError
    from tlsagent.errors import HandshakeTimeout as HandshakeTimeout
    from tlsagent.errors import InactivityTimeout as InactivityTimeout
    from tlsagent.errors import LocalProtocolError as LocalProtocolError
    from tlsagent.errors import OptionError as OptionError
    from tlsagent.errors import OptionRangeError as OptionRangeError
    from tlsagent.errors import OptionTypeError as OptionTypeError
    from tlsagent.errors import PoolTimeout as PoolTimeout
    from tlsagent.errors import ProxyError as ProxyError
    from tlsagent.errors import ReadTimeout as ReadTimeout
    from tlsagent.errors import RemoteProtocolError as RemoteProtocolError
    from tlsagent.errors import RequestError as RequestError
    from tlsagent.errors import RequestTimeout as RequestTimeout
    from tlsagent.errors import ResolutionError as ResolutionError
    from tlsagent.errors import ResolutionTimeout as ResolutionTimeout
    from tlsagent.errors import ResponseTimeout as ResponseTimeout
    from tlsagent.errors import SendTimeout as SendTimeout
    from tlsagent.errors import StreamReset as StreamReset
    from tlsagent.errors import TLSAgentError as TLSAgentError
    from tlsagent.errors import TotalTimeout as TotalTimeout
    from tlsagent.errors import TunnelTimeout as TunnelTimeout
    from tlsagent.errors import WrongEventLoop as WrongEventLoop

__version__ = "0.1.0"

_HOMES = {
    "_connection_info": ("ConnectionInfo",),
    "_drivers.aio": ("AsyncAgent",),
    "_drivers.aio_raw": ("AsyncRawConnection",),
    "_drivers.aio_response": ("AsyncStreamResponse",),
    "_drivers.threads": ("Agent",),
    "_drivers.threads_raw": ("RawConnection",),
    "_drivers.threads_response": ("StreamResponse",),
    "_exchange": ("Timings",),
    "_http.messages": ("Headers", "ResponseHead"),
    "_limits": ("Http1Options", "Http2Options", "Timeouts"),
    "_option_rules": ("UNSET", "Psk"),
    "_options": ("AgentOptions", "ConnectionOptions", "ServerOptionWarning"),
    "_proxy": ("Proxy",),
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
        "WrongEventLoop",
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
