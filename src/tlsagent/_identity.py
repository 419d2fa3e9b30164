"""
Who may share a connection or a session with whom.

`plan_for` turns merged options and an origin into a `Plan`: the `PoolKey`, the `SessionScope` and what it takes to make
a connection for them. The rule for the key: would a request be served differently on a connection made without this
option? Then it is in. The key is a tuple of public facts: digests of certificates, the digest of a client key's public
half, canonical strings. A callable or a socket enters as the object itself, held strongly and compared by `==`, never
by `id()`: an address is used again, an object that is held is not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast
from urllib.parse import urlsplit

from tlsagent import _material
from tlsagent._option_rules import ContextHandle, Lookup, PskCallback, is_ip_address, protocol_range, to_ascii
from tlsagent._options import DEFAULTS, AgentOptions, ConnectionOptions, refuse_server_protocol
from tlsagent.errors import LocalProtocolError, OptionError, OptionTypeError, quoted

if TYPE_CHECKING:
    from tlsagent._proxy import Proxy
    from tlsagent._tls.certificates import PeerCertificate

_DEFAULT_PORT: Final = 443
# Digests of credentials mean nothing outside this process: nobody can try passwords against one that was printed.
_DIGEST_KEY: Final = os.urandom(32)


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """
    Whom the URL says we talk to.

    Attributes:
        host: The verified name: lower-case ASCII, no brackets, a trailing dot kept out.
        port: The URL's port.
        authority: Host header or `:authority`; the default port is left out.
    """

    host: str
    port: int
    authority: bytes


def origin_of(host: str, port: int) -> Origin:
    """
    Return the origin of a host and a port.

    Raises:
        LocalProtocolError: The host is neither a name nor an address.
    """
    bare = host.strip("[]")
    if is_ip_address(bare):
        name = bare.lower()
        shown = f"[{name.partition('%')[0]}]" if ":" in name else name
    else:
        try:
            name = to_ascii("host", bare).removesuffix(".")
        except OptionError as exc:
            raise LocalProtocolError(f"{exc} (in the URL)", code="ERR_INVALID_URL") from exc
        shown = name
    return Origin(name, port, (shown if port == _DEFAULT_PORT else f"{shown}:{port}").encode("ascii"))


def parse_authority(authority: str) -> Origin:
    """
    Return the origin named by what stands between `https://` and the path.

    Raises:
        LocalProtocolError: Userinfo, a bad port or no host.
    """
    if not authority.isprintable():  # urlsplit would leave out some of it
        raise LocalProtocolError(
            f"the URL's authority holds what none may: {quoted(authority)}", code="ERR_INVALID_URL"
        )
    try:
        parts = urlsplit("//" + authority)
        port = parts.port
    except ValueError as exc:
        raise LocalProtocolError(f"the URL's authority cannot be read: {exc}", code="ERR_INVALID_URL") from exc
    if "@" in authority:
        raise LocalProtocolError(
            "a URL with user name or password is refused: send an Authorization header instead", code="ERR_INVALID_URL"
        )
    host = parts.hostname
    if not host or port == 0:
        raise LocalProtocolError(f"the URL names no host or port 0: {quoted(authority)}", code="ERR_INVALID_URL")
    if authority[0] == "[":
        host = _ZONE.sub("%", host)
        if not is_ip_address(host):
            raise LocalProtocolError(f"in the URL, {quoted(authority)} is no IPv6 address", code="ERR_INVALID_URL")
    return origin_of(host, port or _DEFAULT_PORT)


_ZONE: Final = re.compile("%25(?=.)")  # RFC 6874, 2: what stands before a zone


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    Whom we trust, who we say we are and what we offer: everything that shapes the handshake.

    The materials compare by digest, so two equal identities are interchangeable. The fields up to `pins` belong to a
    connection, those behind it to its context.
    """

    verified_name: str
    server_name: str | None
    alpn_protocols: tuple[str, ...]
    reject_unauthorized: bool
    check_server_identity: Callable[[str, PeerCertificate], object] | None
    psk_callback: PskCallback | None
    request_ocsp: bool
    min_dh_size: int
    pins: tuple[bytes, ...]
    ca: _material.TrustAnchors | None
    also_trusted: tuple[_material.TrustAnchors, ...]
    crl: _material.RevocationLists | None
    allow_partial_trust_chain: bool
    chains: tuple[_material.CertificateChain, ...]
    key_digests: tuple[bytes, ...]
    ciphers: _material.CipherList | None
    ecdh_curve: str | None
    sigalgs: str | None
    min_version: str
    max_version: str
    secure_options: int
    session_id_context: str | None
    secure_context: ContextHandle | None

    def trust_digest(self) -> bytes:
        """
        Return a digest of what the verification of a peer rests on, the same in every process.

        Hooks are left out: they have no digest, and are asked on every connection anyway.
        """
        told = (
            self.verified_name,
            self.reject_unauthorized,
            self.pins,
            self.ca,
            self.also_trusted,
            self.crl,
            self.allow_partial_trust_chain,
            self.chains,
            self.key_digests,
            self.session_id_context,
            self.secure_context,
        )
        return hashlib.sha256(repr(told).encode()).digest()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProxyRoute:
    """
    By whom the bytes go.

    Attributes:
        scheme, host, port: The proxy.
        credentials: A digest of who we are to it, or None.
        identity: Whom we trust there, for a proxy that speaks TLS.
    """

    scheme: str
    host: str
    port: int
    credentials: bytes | None
    identity: Identity | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """
    Where the bytes go, by what kind of socket, and whether the way is watched.

    A socket of the user's makes the key the only one of its kind.
    """

    host: str
    port: int
    path: str | None
    lookup: Lookup | None
    socket: object | None
    family: int = 0
    local_address: str | None = None
    local_port: int | None = None
    no_delay: bool = True
    tcp_keep_alive: float | None = None
    enable_trace: bool = False
    proxy: ProxyRoute | None = None

    @property
    def first_hop(self) -> tuple[str, int]:
        """The host and port that a socket is connected to: the proxy's, if there is one."""
        return (self.host, self.port) if self.proxy is None else (self.proxy.host, self.proxy.port)

    def of_sessions(self) -> Route:
        """Return what of the route counts for sessions: who is at its other end, not how the bytes get there."""
        return Route(
            host=self.host,
            port=self.port,
            path=self.path,
            lookup=self.lookup,
            socket=self.socket,
            proxy=dataclasses.replace(self.proxy, credentials=None) if self.proxy is not None else None,
        )


class PoolKey:
    """
    What two requests must share to share a connection: compared exactly, hashed once, printed as a digest.

    Attributes:
        origin, identity, route: The facts compared.
        digest: Printable and stable within a process: `host:port#` and eight hexadecimal digits.
    """

    __slots__ = ("_hash", "digest", "identity", "origin", "route")

    def __init__(self, origin: Origin, identity: Identity, route: Route) -> None:
        self.origin = origin
        self.identity = identity
        self.route = route
        self._hash = hash((origin, identity, route))
        short = hashlib.sha256(repr((origin, identity, route)).encode()).hexdigest()[:8]
        self.digest = f"{origin.host}:{origin.port}#{short}"

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, PoolKey) or self._hash != other._hash:
            return False
        return (self.origin, self.identity, self.route) == (other.origin, other.identity, other.route)

    def __repr__(self) -> str:
        return f"<PoolKey {self.digest}>"


@dataclasses.dataclass(frozen=True, slots=True)
class SessionScope:
    """
    Where a TLS session may be used again: like the key, but whatever address won, and by whatever kind of socket.

    A session must not outlive the trust it was made under, so the whole identity is in it.
    """

    origin: Origin
    identity: Identity
    route: Route


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Secured:
    """
    What it takes for TLS with somebody.

    Attributes:
        identity: Whom we trust, who we are, what we offer.
        context: What the TLS engine is made from; holds the private keys.
        trust: Digest of what the verification of the peer rests on.
    """

    identity: Identity
    context: ContextHandle
    trust: bytes


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """
    What it takes to make a connection for a key; made once per key and options.

    Attributes:
        origin: For TLS with the origin. Its context holds the private keys, which the pool key knows only by digest.
        proxy: The proxy to go through, with credentials, which the pool key knows only by digest; or None.
        proxy_tls: For TLS with the proxy, if it speaks TLS.
        inactivity: `options.timeout`, seconds or None.
        auto_select_family: Whether addresses of both families are tried.
        attempt_timeout: Seconds until the next address is tried, or None for when the one before has failed.
        may_share: Whether its connections may turn out to carry several requests at a time: HTTP/2 is offered.
    """

    key: PoolKey
    scope: SessionScope
    origin: Secured
    proxy: Proxy | None
    proxy_tls: Secured | None
    inactivity: float | None
    auto_select_family: bool
    attempt_timeout: float | None
    may_share: bool
    _sessions: list[_material.Session]

    def take_session(self) -> _material.Session | None:
        """
        Return `options.session`, once: a ticket used twice links two connections to one client (RFC 8446 C.4).

        The engine does not offer one that was made for another server or under other options.
        """
        try:
            return self._sessions.pop()  # atomic
        except IndexError:
            return None

    def offering(self, *alpn_protocols: str) -> Plan:
        """Return the same plan with other protocols on offer; the sessions stay the same, which agree on one anew."""
        identity = dataclasses.replace(self.key.identity, alpn_protocols=alpn_protocols)
        return dataclasses.replace(
            self,
            key=PoolKey(self.key.origin, identity, self.key.route),
            origin=dataclasses.replace(self.origin, identity=identity),
            may_share="h2" in alpn_protocols,
        )

    def forked(self) -> None:
        """Forget `options.session`: it is the parent's to use."""
        self._sessions.clear()


MakeContext = Callable[[Identity, tuple[_material.PrivateKey, ...]], ContextHandle]


def plan_for(
    origin: Origin, said: ConnectionOptions, make_context: MakeContext, *, proxy_trust: ConnectionOptions | None = None
) -> Plan:
    """
    Return the plan for connections to `origin`.

    Args:
        origin: Whom the URL names.
        said: What request and agent say, merged; the library's defaults are laid under here.
        make_context: Makes the context of an identity where the options bring none.
        proxy_trust: Options whose `ca` verifies an https proxy that says nothing else.

    Raises:
        OptionError: A key needs a passphrase that nobody gave, or does not belong to its certificate.
    """
    options: Any = said.merged_over(DEFAULTS)
    secured = _secured(origin, options, make_context)
    host, port = options.host or origin.host, options.port or origin.port
    proxy: Proxy | None = options.proxy if options.proxy and options.proxy.serves(host, port) else None
    proxy_tls = None if proxy is None else _proxy_tls(proxy, proxy_trust or said, make_context)
    route = Route(
        host=host,
        port=port,
        path=options.path or None,
        lookup=options.lookup,
        socket=options.socket or None,
        family=options.family or 0,
        local_address=options.local_address,
        local_port=options.local_port,
        no_delay=options.no_delay is not False,
        tcp_keep_alive=options.tcp_keep_alive,
        enable_trace=bool(options.enable_trace),
        proxy=None if proxy is None else _proxy_route(proxy, proxy_tls),
    )
    return Plan(
        key=PoolKey(origin, secured.identity, route),
        scope=SessionScope(origin, secured.identity, route.of_sessions()),
        origin=secured,
        proxy=proxy,
        proxy_tls=proxy_tls,
        inactivity=options.timeout,
        auto_select_family=options.auto_select_family is not False,
        attempt_timeout=options.auto_select_family_attempt_timeout,
        may_share="h2" in secured.identity.alpn_protocols,
        _sessions=[options.session] if options.session is not None else [],
    )


def _secured(origin: Origin, options: Any, make_context: MakeContext) -> Secured:
    _require_client(options)
    keys = unlocked(options.key or (), options.passphrase)
    _require_pairs(options.cert or (), keys)
    bundles = unlocked_pfx(options.pfx or (), options.passphrase)
    keys += tuple(bundle.key for bundle in bundles)
    identity = _identity(origin, options, keys, bundles)
    context = identity.secure_context or make_context(identity, keys)
    return Secured(identity=identity, context=context, trust=identity.trust_digest())


def _proxy_tls(proxy: Proxy, trusting: ConnectionOptions, make_context: MakeContext) -> Secured | None:
    if proxy.scheme != "https":
        return None
    said = proxy.tls if proxy.tls is not None else ConnectionOptions(ca=trusting.ca)
    return _secured(origin_of(proxy.host, proxy.port), said.merged_over(DEFAULTS), make_context)


def _proxy_route(proxy: Proxy, tls: Secured | None) -> ProxyRoute:
    credentials = None
    if proxy.username is not None:
        told = repr((proxy.username, proxy.password)).encode()
        credentials = hmac.digest(_DIGEST_KEY, told, "sha256")
    return ProxyRoute(
        scheme=proxy.scheme,
        host=proxy.host,
        port=proxy.port,
        credentials=credentials,
        identity=tls.identity if tls is not None else None,
    )


def _require_client(options: Any) -> None:
    refuse_server_protocol(options)
    if options.secure_context and options.secure_context.role == "server":
        raise OptionTypeError(
            "secure_context was made with a secure_protocol for servers: a client could not connect with it",
            code="ERR_TLS_INVALID_PROTOCOL_METHOD",
        )


def _require_pairs(chains: tuple[_material.CertificateChain, ...], keys: tuple[_material.PrivateKey, ...]) -> None:
    if chains and keys:
        _material.check_key_pairs(chains, keys)
    if bool(chains) != bool(keys):
        missing, given = ("key", "cert") if chains else ("cert", "key")
        raise OptionError(f"{given} is given without {missing}: a client certificate needs both")


def _identity(
    origin: Origin, options: Any, keys: tuple[_material.PrivateKey, ...], bundles: tuple[_material.Pfx, ...]
) -> Identity:
    name = options.servername or origin.host
    low, high = version_range(options)
    return Identity(
        verified_name=name,
        server_name=None if options.servername == "" or is_ip_address(name) else name,
        alpn_protocols=options.alpn_protocols or (),
        reject_unauthorized=options.reject_unauthorized,
        check_server_identity=options.check_server_identity,
        psk_callback=options.psk_callback,
        request_ocsp=bool(options.request_ocsp),
        min_dh_size=options.min_dh_size or cast("int", DEFAULTS.min_dh_size),
        pins=options.pins or (),
        ca=options.ca or None,
        also_trusted=tuple(bundle.anchors for bundle in bundles if bundle.anchors.certificates),
        crl=options.crl or None,
        allow_partial_trust_chain=bool(options.allow_partial_trust_chain),
        chains=(*(options.cert or ()), *(bundle.chain for bundle in bundles)),
        key_digests=tuple(key.spki_digest for key in keys),
        ciphers=options.ciphers or None,
        ecdh_curve=options.ecdh_curve or None,
        sigalgs=options.sigalgs or None,
        min_version=low,
        max_version=high,
        secure_options=options.secure_options or 0,
        session_id_context=options.session_id_context or None,
        secure_context=options.secure_context or None,
    )


def version_range(options: Any) -> tuple[str, str]:
    """Return the lowest and the highest protocol version that merged options allow."""
    if options.secure_protocol:
        low, high, _side = protocol_range(options.secure_protocol)
        return low, high
    return options.min_version or cast("str", DEFAULTS.min_version), options.max_version or cast(
        "str", DEFAULTS.max_version
    )


def unlocked(
    keys: tuple[_material.PrivateKey | _material.EncryptedKey, ...], passphrase: str | None
) -> tuple[_material.PrivateKey, ...]:
    """Return the keys in clear; one whose passphrase nobody gave raises `OptionError`."""
    return tuple(key.unlock(passphrase) if isinstance(key, _material.EncryptedKey) else key for key in keys)


def unlocked_pfx(
    bundles: tuple[_material.Pfx | _material.EncryptedPfx, ...], passphrase: str | None
) -> tuple[_material.Pfx, ...]:
    """Return the bundles opened; one whose passphrase nobody gave raises `OptionError`."""
    return tuple(one.unlock(passphrase) if isinstance(one, _material.EncryptedPfx) else one for one in bundles)


# Which option tells connections apart -----------------------------------------------------------------------------


class KeyRow(NamedTuple):
    """
    What an option means for sharing.

    Attributes:
        in_key: Whether two requests that differ in it may not share a connection.
        where: What it is a property of.
        why: The reason, for readers.
    """

    in_key: bool
    where: Literal["context", "connection", "route", "agent", "server"]
    why: str


KEY_TABLE: Final[Mapping[str, KeyRow]] = {
    "alpn_protocols": KeyRow(True, "connection", "decides which protocol is spoken"),
    "sni_callback": KeyRow(False, "server", "a client pays no heed to it"),
    "ca": KeyRow(True, "context", "decides who is trusted; by the certificates"),
    "cert": KeyRow(True, "context", "decides who we are; by the certificates"),
    "check_server_identity": KeyRow(True, "connection", "decides who is trusted; the object itself, compared by =="),
    "ciphers": KeyRow(True, "context", "decides how well the bytes are protected"),
    "client_cert_engine": KeyRow(False, "context", "always refused"),
    "crl": KeyRow(True, "context", "decides who is trusted; by the lists"),
    "dhparam": KeyRow(False, "server", "a client pays no heed to it"),
    "ecdh_curve": KeyRow(True, "context", "decides how well the bytes are protected"),
    "enable_trace": KeyRow(
        True, "connection", "a connection is watched from its beginning or not; sessions are shared"
    ),
    "honor_cipher_order": KeyRow(False, "server", "a client pays no heed to it"),
    "host": KeyRow(True, "route", "decides where the bytes go"),
    "key": KeyRow(True, "context", "decides who we are; by its public half"),
    "lookup": KeyRow(True, "route", "decides where the bytes go; the object itself, compared by =="),
    "max_version": KeyRow(True, "context", "decides how well the bytes are protected"),
    "min_dh_size": KeyRow(True, "connection", "decides how well the bytes are protected"),
    "min_version": KeyRow(True, "context", "decides how well the bytes are protected"),
    "passphrase": KeyRow(False, "context", "opens the key, which is in the key by its public half"),
    "path": KeyRow(True, "route", "decides where the bytes go"),
    "pfx": KeyRow(True, "context", "decides who we are and who is trusted; like cert, key and ca"),
    "port": KeyRow(True, "route", "decides where the bytes go"),
    "reject_unauthorized": KeyRow(True, "connection", "decides who is trusted"),
    "request_cert": KeyRow(False, "server", "a client pays no heed to it"),
    "secure_context": KeyRow(True, "context", "stands for what it was made from; by its content"),
    "secure_options": KeyRow(True, "context", "changes how TLS is spoken"),
    "secure_protocol": KeyRow(True, "context", "as the versions that it stands for"),
    "servername": KeyRow(True, "connection", "decides whom the certificate must name, and which one the server shows"),
    "session": KeyRow(False, "connection", "is only offered, once; the server is verified as ever"),
    "session_id_context": KeyRow(True, "context", "a session made under another one fails the handshake"),
    "socket": KeyRow(True, "route", "is where the bytes go; the object itself"),
    "timeout": KeyRow(False, "connection", "is applied anew by every request"),
    "sigalgs": KeyRow(True, "context", "decides which proofs of identity are accepted"),
    "allow_partial_trust_chain": KeyRow(True, "context", "decides who is trusted"),
    "request_ocsp": KeyRow(True, "connection", "a connection made without it has no response to show"),
    "psk_callback": KeyRow(True, "connection", "decides who is trusted; the object itself, compared by =="),
    "proxy": KeyRow(True, "route", "decides by whom the bytes go; credentials count by a digest, and not for sessions"),
    "family": KeyRow(True, "route", "decides where the bytes go; sessions are shared"),
    "local_address": KeyRow(True, "route", "decides where the bytes come from; sessions are shared"),
    "local_port": KeyRow(True, "route", "decides where the bytes come from; sessions are shared"),
    "auto_select_family": KeyRow(
        False, "route", "says how the pool dials; a connection won one way or the other is the same connection"
    ),
    "auto_select_family_attempt_timeout": KeyRow(
        False, "route", "says how fast the pool dials; a connection won early or late is the same connection"
    ),
    "no_delay": KeyRow(True, "route", "is a property of the socket from its beginning; sessions are shared"),
    "tcp_keep_alive": KeyRow(True, "route", "is a property of the socket from its beginning; sessions are shared"),
    "pins": KeyRow(True, "connection", "decides who is trusted"),
    "verifier": KeyRow(False, "connection", "has one value only"),
    **dict.fromkeys(
        sorted(set(AgentOptions.field_names()) - set(ConnectionOptions.field_names())),
        KeyRow(False, "agent", "is the agent's, and so one for all connections of its pool"),
    ),
    "retry": KeyRow(False, "agent", "says what becomes of a request, not of its connection"),
    "timeouts": KeyRow(False, "agent", "is applied anew by every request; an attempt keeps what it began with"),
}
"""Every option, in the order of declaration: does it tell connections apart, and why."""
