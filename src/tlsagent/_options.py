"""
The options: what a user may say, checked and made canonical when it is said.

`ConnectionOptions` describes one TLS connection, `AgentOptions` adds how connections are pooled. Both are frozen, and
every field defaults to `UNSET`: "say nothing, take the layer below". `merged_over` is the only merge. What a value
*means* for the pool key is decided in `_identity`, what OpenSSL makes of it in `_tls.context`.

A field is one line in `_option_rules`: a function from what the user gave to the one canonical, immutable, hashable
form. Later code need not check again.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypedDict, TypeVar, cast

from tlsagent import _material
from tlsagent._limits import LIMIT_RULES, Http1Options, Http2Options, Timeouts
from tlsagent._option_rules import (
    AGENT_RULES,
    CONNECTION_RULES,
    NULLABLE,
    UNSET,
    VERSIONS,
    CheckServerIdentity,
    ContextHandle,
    Lookup,
    OptionsHandle,
    PskCallback,
    PskServerCallback,
    Rule,
    SniCallback,
    Source,
    Unset,
    Version,
    protocol_range,
    show,
)
from tlsagent._proxy import Proxy, proxy_of
from tlsagent.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    import os

Certificates = Source | Sequence[Source]


class ServerOptionWarning(UserWarning):
    """A client was given an option that only a server heeds."""


# Heeded by a server alone, which may get them in its options or in a context.
SERVER_FIELDS: Final = ("sni_callback", "request_cert", "dhparam", "honor_cipher_order")

# A SecureContext brings these with it; beside one they would have no effect.
CONTEXT_FIELDS: Final = frozenset(
    {
        "ca", "cert", "key", "pfx", "passphrase", "crl", "ciphers", "sigalgs", "ecdh_curve", "dhparam", "min_version",
        "max_version", "secure_protocol", "secure_options", "session_id_context", "allow_partial_trust_chain",
        "honor_cipher_order",
    }
)  # fmt: skip
# Where one layer says the first, the second of a layer below has no say, and the other way round.
_RIVALS: Final = (
    ("secure_context", CONTEXT_FIELDS),
    ("secure_protocol", frozenset({"min_version", "max_version"})),
    ("pfx", frozenset({"cert", "key"})),
)

_Options = TypeVar("_Options", bound="ConnectionOptions")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class ConnectionOptions(OptionsHandle):
    """
    How one TLS connection is made: Node's `tls.ConnectionOptions` in snake_case.

    Every field defaults to `UNSET`; `None` means no limit for durations, the library's default for everything else. Bad
    values raise `OptionError` here, before any socket opens. Fields that this release does not support yet raise
    `NotImplementedError` by name. Equal by content; the repr shows no secret.

    In the pool key unless said otherwise.

    Attributes:
        alpn_protocols: Protocols offered by ALPN (RFC 7301), best first. Default: ("h2", "http/1.1"). None or ()
            offers nothing, and HTTP/1.1 is spoken. ("h2",) alone is an error where the server does not choose it.
        ca: Trusted certificates, PEM or DER (bytes, str, a path object, or a list of them). They replace the
            default roots, which are certifi's.
        cert: Client certificate chain, leaf first, PEM or DER; a list for several chains (RSA and EC, say), one for
            each kind of key: of two for the same kind, the last is used. In TLS 1.2 OpenSSL's client knows the last
            of the list alone.
        key: Private key of `cert`, PEM or DER; list items may be `{"pem": ..., "passphrase": ...}`. Its public half is
            in the pool key. Or the URI of a key in a PKCS#11 token (docs/howto/pkcs11.md).
        passphrase: Decrypts `key` and `pfx`, and is the PIN of a key in a token. Not in the pool key.
        pfx: Client certificate and key as PKCS#12, bytes or a path object; list items may be
            `{"buf": ..., "passphrase": ...}`. Its further certificates are trusted besides the roots, as in Node.
        crl: Certificate revocation lists, PEM or DER. Every issuer of the server's chain then needs one that has not
            expired, else the server is refused. So is a chain that ends below its root (allow_partial_trust_chain):
            OpenSSL looks for the list of the issuer above its end as well.
        allow_partial_trust_chain: Let any certificate of `ca` end a chain, not only a self-signed one. Default False.
        pins: `["sha256//BASE64"]`, SHA-256 of public keys (SubjectPublicKeyInfo): one of them must be the server's or
            in its verified chain, besides everything else, and whatever reject_unauthorized says. A server that changes
            its key is locked out: pin a spare one.
        verifier: Who verifies chains; "openssl" is the only one.
        ciphers: OpenSSL cipher list; TLS 1.3 suites by their `TLS_` names. Only `TLS_` names given: TLS 1.2 is off.
        ecdh_curve: Groups for key exchange, best first, with colons between; None and "auto" are the library's own.
        sigalgs: Signature algorithms, best first, with colons between.
        min_version, max_version: "TLSv1" to "TLSv1.3". Default: TLSv1.2 to TLSv1.3.
        secure_protocol: Old way of saying both, such as "TLSv1_2_method". Excludes them.
        secure_options: A number made of OpenSSL's SSL_OP_* bits.
        session_id_context: At most 32 bytes; names what a server's sessions are for. A client warns
            (`ServerOptionWarning`), and keeps sessions and connections of different names apart: OpenSSL fails the
            handshake that offers a session made under another one.
        min_dh_size: Least bits of a DHE group in TLS 1.2; a smaller one fails the handshake, whatever
            reject_unauthorized says. Default 1024, below which OpenSSL never goes.
        secure_context: A `SecureContext` of `create_secure_context`; excludes the options that it was made from.
        servername: SNI (RFC 6066) and the name the certificate is checked against, instead of the URL's host. "" sends
            no SNI and checks the URL's host.
        reject_unauthorized: Default True. Only the literal False accepts certificates that do not verify: the
            connection is then encrypted, but with anybody.
        check_server_identity: `callable(hostname, PeerCertificate)`, called on every connection after the chain
            was verified; rejects by raising or by returning an exception (or anything else but None and True). Default:
            `tlsagent.check_server_identity` (RFC 9525). Compared by `==` in the pool key.
        request_ocsp: Ask for a stapled OCSP response; it comes as `ConnectionInfo.ocsp_response`, and is not looked at.
            Resumed connections get none. Default False.
        psk_callback: `callable(hint) -> Psk | None`, for pre-shared keys; `hint` is the server's, None in TLS 1.3. Runs
            inside the handshake. A server that took the key shows no certificate, and none is checked. TLS 1.2
            needs `ciphers` with PSK in them. In the options of a server: `callable(identity) -> bytes | Psk | None`,
            the key of the client that calls itself so; None for one that is not known.
        session: A `Session` or its `to_bytes()`, offered once on a connection made for this request, if it was made for
            the same server under the same options; another one is not offered. Not in the pool key.
        enable_trace: Write the handshake messages to the standard error stream. Default False.
        client_cert_engine: Refused: there are no engines any more.
        host, port: Where to connect, instead of the URL's host and port; the verified name stays the URL's.
        path: A Unix socket to connect to, instead of host and port.
        proxy: Go through a proxy: its URL (http, https, socks5 or socks5h), a `Proxy`, or "env" for what https_proxy
            and no_proxy say when the options are made. host and port are then where the proxy is to connect to, lookup
            and all below are for the way to the proxy. A `path` or a `socket` of a layer above replaces it. In the pool
            key, the credentials by a digest. Default None.
        lookup: `callable(host, family) -> addresses` in place of the system's resolver (`family` is 0, 4 or 6); may be
            async in `AsyncAgent`.
        socket: A connected socket to speak TLS over; serves one connection, so it is refused on an agent.
        family: 4 or 6 for addresses of that family alone; 0, the default, for both.
        local_address, local_port: Which end of ours the connection has.
        auto_select_family: Try addresses of both families, the next beside those under way (RFC 8305). Not in the pool
            key. Default True.
        auto_select_family_attempt_timeout: Seconds until the next address is tried; 0.01 at least. None waits for the
            one before to fail. Not in the pool key. Default 0.25.
        no_delay: TCP_NODELAY. Default True.
        tcp_keep_alive: Seconds of silence after which TCP probes the peer; True leaves them to the system. Default
            None: no probes.
        sni_callback, request_cert, dhparam, honor_cipher_order: What a server does with its clients. A client warns
            (`ServerOptionWarning`) and pays no heed to them.
        timeout: Seconds of silence after which a connection is given up, idle or active (Node's `timeout`). Not in the
            pool key. Default None.
    """

    alpn_protocols: Sequence[str] | Unset | None = UNSET
    sni_callback: SniCallback | Unset | None = UNSET
    ca: Certificates | _material.TrustAnchors | Unset | None = UNSET
    cert: Certificates | tuple[_material.CertificateChain, ...] | Unset | None = UNSET
    check_server_identity: CheckServerIdentity | Unset | None = UNSET
    ciphers: str | _material.CipherList | Unset | None = UNSET
    client_cert_engine: str | Unset | None = UNSET
    crl: Certificates | _material.RevocationLists | Unset | None = UNSET
    dhparam: Source | _material.DHParameters | Unset | None = UNSET
    ecdh_curve: str | Unset | None = UNSET
    enable_trace: bool | Unset | None = UNSET
    honor_cipher_order: bool | Unset | None = UNSET
    host: str | Unset | None = UNSET
    key: Any = UNSET
    lookup: Lookup | Unset | None = UNSET
    max_version: Version | Unset | None = UNSET
    min_dh_size: float | Unset | None = UNSET
    min_version: Version | Unset | None = UNSET
    passphrase: str | Unset | None = UNSET
    path: str | os.PathLike[str] | Unset | None = UNSET
    pfx: Any = UNSET
    port: int | str | Unset | None = UNSET
    reject_unauthorized: bool | Unset = UNSET
    request_cert: bool | Unset | None = UNSET
    secure_context: ContextHandle | Unset | None = UNSET
    secure_options: int | Unset | None = UNSET
    secure_protocol: str | Unset | None = UNSET
    servername: str | Unset | None = UNSET
    session: _material.Session | bytes | Unset | None = UNSET
    session_id_context: str | Unset | None = UNSET
    socket: Any = UNSET
    timeout: float | Unset | None = UNSET
    sigalgs: str | Unset | None = UNSET
    allow_partial_trust_chain: bool | Unset | None = UNSET
    request_ocsp: bool | Unset | None = UNSET
    psk_callback: PskCallback | PskServerCallback | Unset | None = UNSET
    proxy: Proxy | str | Unset | None = UNSET
    family: int | Unset | None = UNSET
    local_address: str | Unset | None = UNSET
    local_port: int | Unset | None = UNSET
    auto_select_family: bool | Unset | None = UNSET
    auto_select_family_attempt_timeout: float | Unset | None = UNSET
    no_delay: bool | Unset | None = UNSET
    tcp_keep_alive: bool | float | Unset | None = UNSET
    pins: Sequence[str] | tuple[bytes, ...] | Unset | None = UNSET
    verifier: Literal["openssl"] | Unset | None = UNSET
    _values: tuple[Any, ...] = dataclasses.field(init=False)
    _hash: int = dataclasses.field(init=False)

    _rules: ClassVar[Mapping[str, Rule]] = {**CONNECTION_RULES, "proxy": proxy_of}

    def __post_init__(self) -> None:
        for name in self.field_names():
            value = getattr(self, name)
            if value is UNSET or name in _NEED_PASSPHRASE:
                continue
            rule = self._rules.get(name)
            if rule is None:
                raise NotImplementedError(f"{name} is not supported yet; leave it out")
            if value is not None or name not in NULLABLE:
                object.__setattr__(self, name, rule(name, value))
        passphrase = self.passphrase if isinstance(self.passphrase, str) else None
        for name, parse in _NEED_PASSPHRASE.items():
            value = getattr(self, name)
            if value is not UNSET and value is not None:
                object.__setattr__(self, name, parse(value, passphrase))
        self._check_combinations()
        self._seal()

    def _check_combinations(self) -> None:
        if self.secure_context:
            beside = sorted(n for n in CONTEXT_FIELDS if getattr(self, n) is not UNSET and getattr(self, n) is not None)
            if beside:
                raise OptionError(
                    f"{', '.join(beside)} has no effect beside secure_context: give it to create_secure_context()"
                )
        if self.proxy and (self.path or self.socket):
            raise OptionError("path and socket say where the bytes go: no proxy can be on that way, give one of them")
        self._check_versions()
        if isinstance(self.cert, tuple) and isinstance(self.key, tuple):
            chains = cast("tuple[_material.CertificateChain, ...]", self.cert)
            keys = [key for key in self.key if isinstance(key, _material.PrivateKey)]
            if len(keys) == len(self.key):
                _material.check_key_pairs(chains, keys)
        group = cast("_material.DHParameters | None", self.dhparam or None)
        ciphers = cast("_material.CipherList | None", self.ciphers or None)
        # A lower security level lets more pass: what OpenSSL thinks of it then is asked when the context is made.
        leveled = ciphers is not None and "@SECLEVEL=" in (ciphers.tls12 or "")
        if group is not None and group.bits < _SOUND_DH_BITS and not leveled:
            raise OptionError(
                f"dhparam of {group.bits} bits is too small: use {_SOUND_DH_BITS} bits or more",
                code="ERR_CRYPTO_OPERATION_FAILED",
            )

    def _check_versions(self) -> None:
        low, high = self.min_version, self.max_version
        if self.secure_protocol and (low or high):
            raise OptionTypeError(
                "min_version and max_version conflict with secure_protocol, which says both",
                code="ERR_TLS_PROTOCOL_VERSION_CONFLICT",
            )
        if low and high and VERSIONS.index(low) > VERSIONS.index(high):
            raise OptionTypeError(
                f"min_version {low} is above max_version {high}: no connection could ever be made",
                code="ERR_TLS_INVALID_PROTOCOL_VERSION",
            )
        ciphers = cast("_material.CipherList | None", self.ciphers or None)
        method = self.secure_protocol
        newest = protocol_range(method)[1] if isinstance(method, str) else high
        if ciphers is not None and ciphers.tls12 is None and ciphers.tls13 and newest and newest != "TLSv1.3":
            raise OptionError(
                f"`ciphers` names suites of TLS 1.3 alone, the highest version is {newest}: nothing is left to offer",
                code="ERR_SSL_NO_PROTOCOLS_AVAILABLE",
            )

    def _seal(self) -> None:
        values = tuple(getattr(self, name) for name in self.field_names())
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_hash", hash(values))

    @classmethod
    @functools.cache
    def field_names(cls) -> tuple[str, ...]:
        """Return the names of all options, in the order of declaration."""
        return tuple(field.name for field in dataclasses.fields(cls) if not field.name.startswith("_"))

    def merged_over(self: _Options, lower: ConnectionOptions) -> _Options:
        """
        Return these options laid over `lower`: what is `UNSET` here is taken from there.

        A `secure_context` here drops from `lower` the options that one is made from, and any of those here drops a
        `secure_context` of `lower`: an option never stays where it would have no effect. So it is with
        `secure_protocol` and the versions, with `pfx` and a certificate with its key, and with a `proxy` and a `path`.
        """
        merged: _Options = object.__new__(type(self))
        dropped: set[str] = set()
        for one, others in _RIVALS:
            if getattr(self, one):
                dropped |= others
            if any(getattr(self, name) is not UNSET for name in others):
                dropped.add(one)
        if self.path or self.socket:
            dropped.add("proxy")
        if self.proxy:
            dropped |= {"path", "socket"}
        for name in self.field_names():
            value, below = getattr(self, name), getattr(lower, name, UNSET)
            if value is UNSET and name not in dropped:
                value = below
            elif isinstance(value, Timeouts) and isinstance(below, Timeouts):
                value = value.merged_over(below)
            object.__setattr__(merged, name, value)
        merged._check_combinations()
        merged._seal()
        return merged

    def __eq__(self, other: Any) -> bool:
        if self is other:
            return True
        if type(other) is not type(self):
            return NotImplemented
        return self._hash == other._hash and self._values == other._values

    def __hash__(self) -> int:
        return self._hash

    def __copy__(self: _Options) -> _Options:
        return self

    def __deepcopy__(self: _Options, memo: object) -> _Options:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what was said; the hash is made anew, since that of text is another in each process."""
        said = {name: value for name in self.field_names() if (value := getattr(self, name)) is not UNSET}
        parsed = [name for name in said if name in _PARSED and said[name] is not None]
        if parsed:
            raise OptionTypeError(
                f"options with {', '.join(parsed)} cannot be pickled: make them anew in the other process"
            )
        return _unpickled, (type(self), said)

    def __repr__(self) -> str:
        shown = []
        for name in self.field_names():
            value = getattr(self, name)
            if value is not UNSET:
                shown.append(f"{name}=***" if name in _SECRETS and value is not None else f"{name}={show(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


_SECRETS: Final = frozenset({"passphrase", "session"})
_PARSED: Final = frozenset({"ca", "cert", "crl", "dhparam", "key", "pfx", "secure_context", "session"})
"""Options whose values are objects of OpenSSL."""
_NEED_PASSPHRASE: Final[Mapping[str, Any]] = {"key": _material.private_keys, "pfx": _material.pfx_bundles}
_SOUND_DH_BITS: Final = 2048


def _unpickled(cls: type[_Options], said: Mapping[str, Any]) -> _Options:
    options = object.__new__(cls)
    for name in cls.field_names():
        object.__setattr__(options, name, said.get(name, UNSET))
    options._seal()
    return options


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class AgentOptions(ConnectionOptions):
    """
    How connections are pooled, and the `ConnectionOptions` that all of them start from. Node's `https.AgentOptions`.

    None of the fields added here is in the pool key.

    Attributes:
        keep_alive: Keep connections for later requests. Default True (Node: false).
        max_sockets: Connections per pool key, dialling ones included. Default None.
        max_total_sockets: Connections over all keys; never exceeded, an idle one of another key gives way. Default
            None.
        max_free_sockets: Idle connections kept per key; 0 keeps none. Default 256.
        scheduling: Which idle connection serves next: the last freed ("lifo", the default) or the first ("fifo").
        free_socket_timeout: Seconds an idle connection is kept. Default 60.
        max_lifetime: Seconds after its handshake from which a connection takes no further request, less a random part
            of up to a tenth, so that connections opened together do not end together. Default None.
        max_requests_per_socket: Requests that one connection serves. Default None.
        keep_alive_hint_margin: Seconds taken off the server's `Keep-Alive: timeout=N`, which shortens the time that a
            connection may be idle, so that it is not used just when the server closes it (Node:
            agentKeepAliveTimeoutBuffer, in milliseconds). Default 1.
        dial_delay: Seconds after which a second connection is tried beside the first, while it is not known whether an
            origin speaks HTTP/2 and several requests wait for it: one connection may serve them all. None waits for
            the first, whatever it takes. Default 0.3.
        max_cached_sessions: Scopes whose TLS sessions the built-in store remembers (8 sessions each); 0 turns
            resumption off. Default 100.
        session_store: A `SessionStore` in place of the built-in one.
        retry: Send a request again, once, when a reused connection died before answering it and the request is safe to
            repeat (RFC 9110, 9.2.2). Default True.
        http1_engine: "httptools" (extra `speed`), "h11", or "auto", the default: httptools if it is installed in a
            version that this release was tested with, else h11. One that is asked for by name and cannot be used is an
            `OptionError` when the agent is made.
        http1: Limits for HTTP/1.1 responses.
        http2_engine: "ngh2" (extra `speed`), "h2", or "auto", the default: ngh2 if it is installed in a version that
            this release was tested with, else h2. One that is asked for by name and cannot be used is an `OptionError`
            when the agent is made.
        http2: Windows, limits and PING of HTTP/2 connections.
        max_response_size: Bytes of a body that `request()` will hold; None, the default, for no limit.
        timeouts: `Timeouts`, or a number of seconds for the whole request.
    """

    keep_alive: bool | Unset = UNSET
    max_sockets: int | Unset | None = UNSET
    max_total_sockets: int | Unset | None = UNSET
    max_free_sockets: int | Unset | None = UNSET
    scheduling: Literal["lifo", "fifo"] | Unset = UNSET
    free_socket_timeout: float | Unset | None = UNSET
    max_lifetime: float | Unset | None = UNSET
    max_requests_per_socket: int | Unset | None = UNSET
    keep_alive_hint_margin: float | Unset = UNSET
    dial_delay: float | Unset | None = UNSET
    max_cached_sessions: int | Unset = UNSET
    session_store: Any = UNSET
    early_data: Any = UNSET
    retry: bool | Unset = UNSET
    http1_engine: Literal["auto", "h11", "httptools"] | Unset = UNSET
    http2_engine: Literal["auto", "h2", "ngh2"] | Unset = UNSET
    http1: Http1Options | Unset = UNSET
    http2: Http2Options | Unset = UNSET
    max_response_size: int | Unset | None = UNSET
    timeouts: Timeouts | float | Unset | None = UNSET

    _rules: ClassVar[Mapping[str, Rule]] = {
        **ConnectionOptions._rules,
        **AGENT_RULES,
        **LIMIT_RULES,
    }

    def __post_init__(self) -> None:
        super(AgentOptions, self).__post_init__()
        warn_of_server_options(self)

    def _check_combinations(self) -> None:
        super(AgentOptions, self)._check_combinations()
        refuse_server_protocol(self)
        if self.socket is not UNSET and self.socket is not None:
            raise OptionError("socket serves one connection: give it to a request or to connect(), not to an agent")
        own_store = self.session_store is not UNSET and self.session_store is not None
        if own_store and self.max_cached_sessions not in (UNSET, _DEFAULT_CACHED_SESSIONS):
            raise OptionError(
                "max_cached_sessions sizes the built-in store: it would have no effect beside session_store"
            )


_DEFAULT_CACHED_SESSIONS: Final = 100


class ConnectionOptionsDict(TypedDict, total=False):
    """The fields of `ConnectionOptions` as keywords (PEP 692)."""

    alpn_protocols: Sequence[str] | Unset | None
    sni_callback: SniCallback | Unset | None
    ca: Certificates | _material.TrustAnchors | Unset | None
    cert: Certificates | tuple[_material.CertificateChain, ...] | Unset | None
    check_server_identity: CheckServerIdentity | Unset | None
    ciphers: str | _material.CipherList | Unset | None
    client_cert_engine: str | Unset | None
    crl: Certificates | _material.RevocationLists | Unset | None
    dhparam: Source | _material.DHParameters | Unset | None
    ecdh_curve: str | Unset | None
    enable_trace: bool | Unset | None
    honor_cipher_order: bool | Unset | None
    host: str | Unset | None
    key: Any
    lookup: Lookup | Unset | None
    max_version: Version | Unset | None
    min_dh_size: float | Unset | None
    min_version: Version | Unset | None
    passphrase: str | Unset | None
    path: str | os.PathLike[str] | Unset | None
    pfx: Any
    port: int | str | Unset | None
    reject_unauthorized: bool | Unset
    request_cert: bool | Unset | None
    secure_context: ContextHandle | Unset | None
    secure_options: int | Unset | None
    secure_protocol: str | Unset | None
    servername: str | Unset | None
    session: _material.Session | bytes | Unset | None
    session_id_context: str | Unset | None
    socket: Any
    timeout: float | Unset | None
    sigalgs: str | Unset | None
    allow_partial_trust_chain: bool | Unset | None
    request_ocsp: bool | Unset | None
    psk_callback: PskCallback | PskServerCallback | Unset | None
    proxy: Proxy | str | Unset | None
    family: int | Unset | None
    local_address: str | Unset | None
    local_port: int | Unset | None
    auto_select_family: bool | Unset | None
    auto_select_family_attempt_timeout: float | Unset | None
    no_delay: bool | Unset | None
    tcp_keep_alive: bool | float | Unset | None
    pins: Sequence[str] | tuple[bytes, ...] | Unset | None
    verifier: Literal["openssl"] | Unset | None


class AgentOptionsDict(ConnectionOptionsDict, total=False):
    """The fields of `AgentOptions` as keywords (PEP 692)."""

    keep_alive: bool | Unset
    max_sockets: int | Unset | None
    max_total_sockets: int | Unset | None
    max_free_sockets: int | Unset | None
    scheduling: Literal["lifo", "fifo"] | Unset
    free_socket_timeout: float | Unset | None
    max_lifetime: float | Unset | None
    max_requests_per_socket: int | Unset | None
    keep_alive_hint_margin: float | Unset
    dial_delay: float | Unset | None
    max_cached_sessions: int | Unset
    session_store: Any
    retry: bool | Unset
    http1_engine: Literal["auto", "h11", "httptools"] | Unset
    http1: Http1Options | Unset
    http2_engine: Literal["auto", "h2", "ngh2"] | Unset
    http2: Http2Options | Unset
    max_response_size: int | Unset | None
    timeouts: Timeouts | float | Unset | None


def refuse_server_protocol(options: ConnectionOptions) -> None:
    """Refuse a `secure_protocol` for servers, where a client is made."""
    method = options.secure_protocol
    if isinstance(method, str) and protocol_range(method)[2] == "server":
        raise OptionTypeError(
            f"secure_protocol {method} is for servers: a client could not connect with it",
            code="ERR_TLS_INVALID_PROTOCOL_METHOD",
        )


def warn_of_server_options(options: ConnectionOptions) -> bool:
    """
    Warn once of all options for servers that a client was given; from the first caller outside this package.

    Returns:
        Whether there were any.
    """
    given = [name for name in (*SERVER_FIELDS, "session_id_context") if getattr(options, name)]
    if given:
        depth, frame = 1, sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
            depth, frame = depth + 1, frame.f_back
        but = "; session_id_context only keeps its sessions apart" if "session_id_context" in given else ""
        warnings.warn(
            f"{', '.join(given)}: for servers, without effect on what a client does{but}",
            ServerOptionWarning,
            stacklevel=depth + 1,
        )
    return bool(given)


def build(cls: type[_Options], keywords: Mapping[str, Any]) -> _Options:
    """
    Return `cls(**keywords)`; unknown names raise `OptionTypeError` with the name that was probably meant.
    """
    unknown = [name for name in keywords if name not in cls.field_names()]
    if unknown:
        import difflib

        close = difflib.get_close_matches(unknown[0], cls.field_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise OptionTypeError(f"there is no option {show(unknown[0])}{hint}")
    return cls(**keywords)


def said_to_agent(options: AgentOptions | None, keywords: Mapping[str, Any]) -> AgentOptions:
    """Return what the constructor of an agent was told: its keywords, laid over `options`."""
    said = build(AgentOptions, keywords)
    if options is None:
        return said
    if not isinstance(options, ConnectionOptions):
        raise OptionTypeError(
            f"the options of an agent must be AgentOptions, not {type(options).__name__}: give fields as keywords"
        )
    return said.merged_over(options)


DEFAULTS: Final = AgentOptions(
    alpn_protocols=("h2", "http/1.1"),
    ca=None,
    cert=None,
    key=None,
    passphrase=None,
    pfx=None,
    crl=None,
    allow_partial_trust_chain=False,
    pins=None,
    verifier="openssl",
    client_cert_engine=None,
    ciphers=None,
    ecdh_curve=None,
    sigalgs=None,
    secure_options=None,
    secure_protocol=None,
    session_id_context=None,
    min_dh_size=1024,
    request_ocsp=False,
    psk_callback=None,
    proxy=None,
    session=None,
    enable_trace=False,
    sni_callback=None,
    request_cert=False,
    dhparam=None,
    honor_cipher_order=False,
    family=0,
    local_address=None,
    local_port=None,
    auto_select_family=True,
    auto_select_family_attempt_timeout=0.25,
    no_delay=True,
    tcp_keep_alive=None,
    min_version="TLSv1.2",
    max_version="TLSv1.3",
    secure_context=None,
    servername=None,
    reject_unauthorized=True,
    check_server_identity=None,
    host=None,
    port=None,
    path=None,
    lookup=None,
    socket=None,
    timeout=None,
    keep_alive=True,
    max_sockets=None,
    max_total_sockets=None,
    max_free_sockets=256,
    scheduling="lifo",
    free_socket_timeout=60,
    max_lifetime=None,
    max_requests_per_socket=None,
    keep_alive_hint_margin=1,
    dial_delay=0.3,
    max_cached_sessions=_DEFAULT_CACHED_SESSIONS,
    session_store=None,
    retry=True,
    http1_engine="auto",
    http1=Http1Options(),
    http2_engine="auto",
    http2=Http2Options(),
    max_response_size=None,
    timeouts=Timeouts(
        queue=30, lookup=10, connect=10, tunnel=10, handshake=10, send=30, response=60, read=60, total=None
    ),
)
