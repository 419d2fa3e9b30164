"""
What this library makes of every property of Node 26's https.Agent, tls.connect, tls.createSecureContext, https.request.

The docs page is made from the table; a test walks it. A name that is not in it raises `OptionError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

State = Literal["real", "mapped", "refused"]
Call = Literal["context", "connect", "agent", "request"]


@dataclass(frozen=True, slots=True)
class Support:
    """
    One property of Node's.

    Attributes:
        name: Node's name.
        state: "real" (the same thing here), "mapped" (something here does its work, `why` says how it differs) or
            "refused" (it raises `OptionError`, `why` says why).
        maps_to: Name of the option here, or of what else does its work; "" if nothing does.
        calls: Where it may stand: "context" (createSecureContext), "connect" (tls.connect), "agent" (new https.Agent),
            "request" (https.request).
        why: What is different here; "" if nothing is.
    """

    name: str
    state: State
    maps_to: str
    calls: frozenset[Call]
    why: str


_CONTEXT: Final[frozenset[Call]] = frozenset({"context", "connect", "agent", "request"})
_CONNECTION: Final[frozenset[Call]] = frozenset({"connect", "agent", "request"})
_AGENT: Final[frozenset[Call]] = frozenset({"agent"})
_REQUEST: Final[frozenset[Call]] = frozenset({"request"})
_ENGINES: Final = "engines went with OpenSSL 3; a PKCS#11 provider (OPENSSL_CONF) gives keys on tokens"
_EARLY: Final = "a response that ends before its request ends the connection"
_SURPLUS: Final = "of the surplus the oldest is closed"
_TRUTH: Final = "any value counts by its truth, as in Node"
_SERVER: Final = "for servers; a client has no use for it"
_STREAM: Final = "tunes Node's streams, which do not exist here"

# (name, state, maps_to, why), by where they may stand.
_Row = tuple[str, State, str, str]
_ROWS: Final[tuple[tuple[frozenset[Call], tuple[_Row, ...]], ...]] = (
    (
        _CONTEXT,
        (
            ("minVersion", "real", "min_version", "above maxVersion it is refused: nothing could ever connect"),
            ("maxVersion", "real", "max_version", ""),
            ("secureProtocol", "real", "secure_protocol", "must be a string; methods for servers are refused"),
            ("secureOptions", "real", "secure_options", ""),
            ("honorCipherOrder", "mapped", "honor_cipher_order", f"{_SERVER}; {_TRUTH}"),
            ("ca", "real", "ca", "junk and '' are refused, where Node trusts nobody or everybody it trusts by default"),
            ("allowPartialTrustChain", "real", "allow_partial_trust_chain", "must be a boolean; in the pool key"),
            ("cert", "real", "cert", "'' is refused"),
            ("key", "real", "key", "'' is refused"),
            ("passphrase", "real", "passphrase", "must be a string even where nothing needs it"),
            ("sigalgs", "real", "sigalgs", ""),
            ("privateKeyIdentifier", "refused", "", _ENGINES),
            ("privateKeyEngine", "refused", "", _ENGINES),
            ("ciphers", "real", "ciphers", ""),
            ("ecdhCurve", "real", "ecdh_curve", ""),
            ("dhparam", "mapped", "dhparam", f"{_SERVER}; junk and '' are refused"),
            ("crl", "real", "crl", ""),
            ("sessionIdContext", "real", "session_id_context", ""),
            ("pfx", "real", "pfx", ""),
            ("clientCertEngine", "refused", "client_cert_engine", _ENGINES),
            ("ticketKeys", "mapped", "", f"checked, then left out: {_SERVER}"),
            ("sessionTimeout", "mapped", "", f"checked, then left out: {_SERVER}"),
            ("certificateCompression", "refused", "", "cryptography's binding has no names for RFC 8879"),
        ),
    ),
    (
        _CONNECTION,
        (
            (
                "checkServerIdentity", "mapped", "check_server_identity",
                "called as f(hostname, PeerCertificate) on every connection, resumed ones too; in the pool key. Left "
                "out: RFC 9525, without common name and partial wildcards (tlsagent.node.check_server_identity is "
                "Node's)",
            ),
            ("minDHSize", "real", "min_dh_size", "rounded up to whole bits"),
            (
                "secureContext", "real", "secure_context",
                "in the pool key; options that it replaces are refused beside it, where Node ignores them",
            ),
            (
                "servername", "mapped", "servername",
                "left out: the URL's host, never the Host header (Node's tls.connect then sends none)",
            ),
            ("enableTrace", "real", "enable_trace", ""),
            (
                "ALPNProtocols", "mapped", "alpn_protocols",
                "left out: h2 and http/1.1 are offered (Node offers nothing); in the pool key; names are ASCII",
            ),
            ("session", "real", "session", "bytes that are no session of this library are refused"),
            ("requestOCSP", "real", "request_ocsp", _TRUTH),
            ("pskCallback", "real", "psk_callback", "in the pool key"),
            ("requestCert", "mapped", "request_cert", f"{_SERVER}; {_TRUTH}"),
            ("rejectUnauthorized", "real", "reject_unauthorized", "must be a boolean; in the pool key by its meaning"),
            ("SNICallback", "mapped", "sni_callback", f"{_SERVER}; must be a function, called as f(servername)"),
            ("socket", "mapped", "socket", "a connected socket, for one connection; refused on an agent"),
            (
                "timeout", "mapped", "timeout",
                "milliseconds to seconds, 0 to None; an active request fails with InactivityTimeout, where Node only "
                "emits an event",
            ),
            ("port", "real", "port", "0 is refused"),
            ("host", "mapped", "host", "where the bytes go; the URL's host stays the verified name"),
            ("localAddress", "real", "local_address", ""),
            ("localPort", "real", "local_port", "in the pool key"),
            ("family", "real", "family", ""),
            ("lookup", "mapped", "lookup", "called as f(host, family), answers with addresses; in the pool key"),
            ("autoSelectFamily", "real", "auto_select_family", ""),
            (
                "autoSelectFamilyAttemptTimeout", "mapped", "auto_select_family_attempt_timeout",
                "milliseconds to seconds; less than 10 ms becomes 10 ms, as in Node",
            ),
            ("noDelay", "real", "no_delay", _TRUTH),
            ("keepAlive", "mapped", "keep_alive", f"on a connection tcp_keep_alive; {_EARLY}; {_TRUTH}"),
            ("keepAliveInitialDelay", "mapped", "tcp_keep_alive", "milliseconds to whole seconds; needs keepAlive"),
            ("hints", "refused", "", "flags of Node's resolver; `family` or `lookup` say the same"),
            ("signal", "refused", "", "there is no AbortSignal in Python: cancel the task, or set timeouts"),
            ("allowHalfOpen", "refused", "", "a connection that is half closed is never used again"),
            ("highWaterMark", "refused", "", _STREAM),
            ("onread", "refused", "", _STREAM),
            ("blockList", "refused", "", "filter addresses in `lookup`"),
            ("ALPNCallback", "refused", "", "for servers: chooses a protocol, which a client only offers"),
            ("pskIdentityHint", "refused", "", "for servers"),
            ("handshakeTimeout", "refused", "Timeouts(handshake=...)", "for servers; clients have Timeouts"),
        ),
    ),
    (
        _AGENT,
        (
            (
                "keepAliveMsecs", "mapped", "tcp_keep_alive",
                "milliseconds to whole seconds; below 1000 the system's own delay, as in Node",
            ),
            ("maxSockets", "mapped", "max_sockets", "counts are whole numbers from 1 on, Infinity becomes None"),
            (
                "maxTotalSockets", "mapped", "max_total_sockets",
                "whole numbers from 1 on, Infinity becomes None; never exceeded, idle connections give way",
            ),
            ("maxFreeSockets", "mapped", "max_free_sockets", f"0 keeps none (in Node it means 256); {_SURPLUS}"),
            ("scheduling", "real", "scheduling", ""),
            (
                "agentKeepAliveTimeoutBuffer", "mapped", "keep_alive_hint_margin",
                "milliseconds to seconds; negative and infinite ones are refused, where Node takes 1000",
            ),
            ("maxCachedSessions", "mapped", "max_cached_sessions", "counts scopes, 8 sessions each"),
            (
                "proxyEnv", "mapped", "proxy",
                "https_proxy and no_proxy, read as Node reads them; also SOCKS5, which Node ignores",
            ),
        ),
    ),
    (
        frozenset({"connect", "request"}),
        (("path", "mapped", "path", "a Unix socket in tls.connect; in https.request an argument of request()"),),
    ),
    (
        frozenset({"agent", "request"}),
        (
            ("defaultPort", "mapped", "port", "on an agent every request goes there, whatever port its URL names"),
            ("protocol", "mapped", "", "only 'https:'"),
            ("socketPath", "mapped", "path", ""),
            ("createConnection", "refused", "socket", "give `socket`, `path`, `lookup` or `proxy` instead"),
        ),
    ),
    (
        _REQUEST,
        (
            ("hostname", "mapped", "host", "beats host"),
            ("agent", "mapped", "Agent", "the agent whose request() is called"),
            ("method", "mapped", "request(method)", "checked here, passed to request() by the caller"),
            ("headers", "mapped", "request(headers=...)", "checked here, passed to request() by the caller"),
            ("setHost", "mapped", "request(headers=...)", "a Host header is always sent (RFC 9112, 3.2)"),
            ("auth", "refused", "request(headers=...)", "send an Authorization header"),
            ("maxHeaderSize", "refused", "Http1Options(max_head_size=...)", "a limit of the agent, not of a request"),
            ("insecureHTTPParser", "refused", "", "there is no lenient parser to switch to"),
            ("httpValidation", "refused", "", "headers are always checked strictly, so 'strict' is no different"),
            ("joinDuplicateHeaders", "mapped", "Headers", "headers keep repeats and join them when read by name"),
            ("uniqueHeaders", "refused", "request(headers=...)", "headers are sent as they are given"),
            ("setDefaultHeaders", "refused", "", "false is: Host and framing are always sent, nothing else is added"),
        ),
    ),
)  # fmt: skip

SUPPORT: Final[Mapping[str, Support]] = MappingProxyType(
    {name: Support(name, state, maps_to, calls, why) for calls, rows in _ROWS for name, state, maps_to, why in rows}
)
