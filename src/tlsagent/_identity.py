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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

from tlsagent import _material
from tlsagent._options import DEFAULTS, ConnectionOptions, ContextHandle, Lookup, is_ip_address, to_ascii
from tlsagent.errors import LocalProtocolError, OptionError, quoted

if TYPE_CHECKING:
    from tlsagent._tls.certificates import PeerCertificate

_DEFAULT_PORT: Final = 443


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
    try:
        parts = urlsplit("//" + authority)
        port = parts.port
    except ValueError as exc:
        raise LocalProtocolError(f"the URL's authority cannot be read: {exc}", code="ERR_INVALID_URL") from exc
    if "@" in authority:
        raise LocalProtocolError(
            "a URL with user name or password is refused: send an Authorization header instead", code="ERR_INVALID_URL"
        )
    if not parts.hostname or port == 0:
        raise LocalProtocolError(f"the URL names no host or port 0: {quoted(authority)}", code="ERR_INVALID_URL")
    return origin_of(parts.hostname, port or _DEFAULT_PORT)


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """
    Whom we trust, who we say we are and what we offer: everything that shapes the handshake.

    The materials compare by digest, so two equal identities are interchangeable.
    """

    verified_name: str
    server_name: str | None
    alpn_protocols: tuple[str, ...]
    reject_unauthorized: bool
    check_server_identity: Callable[[str, PeerCertificate], object] | None
    ca: _material.TrustAnchors | None
    chains: tuple[_material.CertificateChain, ...]
    key_digests: tuple[bytes, ...]
    ciphers: _material.CipherList | None
    min_version: str
    max_version: str
    secure_context: ContextHandle | None


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """Where the bytes go. A socket of the user's makes the key the only one of its kind."""

    host: str
    port: int
    path: str | None
    lookup: Lookup | None
    socket: object | None


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
    Where a TLS session may be used again: like the key, but whatever address won.

    A session must not outlive the trust it was made under, so the whole identity is in it.
    """

    origin: Origin
    identity: Identity
    route: Route


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """
    What it takes to make a connection for a key; made once per key and options.

    Attributes:
        context: What the TLS engine is made from; holds the private keys, which the pool key knows only by digest.
        inactivity: `options.timeout`, seconds or None.
    """

    key: PoolKey
    scope: SessionScope
    context: ContextHandle
    inactivity: float | None


MakeContext = Callable[[Identity, tuple[_material.PrivateKey, ...]], ContextHandle]


def plan_for(origin: Origin, said: ConnectionOptions, make_context: MakeContext) -> Plan:
    """
    Return the plan for connections to `origin`.

    Args:
        origin: Whom the URL names.
        said: What request and agent say, merged; the library's defaults are laid under here.
        make_context: Makes the context of an identity where the options bring none.

    Raises:
        OptionError: A key needs a passphrase that nobody gave, or does not belong to its certificate.
    """
    options: Any = said.merged_over(DEFAULTS)
    keys = unlocked(options.key or (), options.passphrase)
    chains = options.cert or ()
    if chains and keys:
        _material.check_key_pairs(chains, keys)
    if bool(chains) != bool(keys):
        missing, given = ("key", "cert") if chains else ("cert", "key")
        raise OptionError(f"{given} is given without {missing}: a client certificate needs both")
    name = options.servername or origin.host
    identity = Identity(
        verified_name=name,
        server_name=None if options.servername == "" or is_ip_address(name) else name,
        alpn_protocols=options.alpn_protocols or (),
        reject_unauthorized=options.reject_unauthorized,
        check_server_identity=options.check_server_identity,
        ca=options.ca or None,
        chains=chains,
        key_digests=tuple(key.spki_digest for key in keys),
        ciphers=options.ciphers or None,
        min_version=options.min_version or cast("str", DEFAULTS.min_version),
        max_version=options.max_version or cast("str", DEFAULTS.max_version),
        secure_context=options.secure_context or None,
    )
    route = Route(
        host=options.host or origin.host,
        port=options.port or origin.port,
        path=options.path,
        lookup=options.lookup,
        socket=options.socket,
    )
    context = identity.secure_context or make_context(identity, keys)
    return Plan(PoolKey(origin, identity, route), SessionScope(origin, identity, route), context, options.timeout)


def unlocked(
    keys: tuple[_material.PrivateKey | _material.EncryptedKey, ...], passphrase: str | None
) -> tuple[_material.PrivateKey, ...]:
    """Return the keys in clear; one whose passphrase nobody gave raises `OptionError`."""
    return tuple(key.unlock(passphrase) if isinstance(key, _material.EncryptedKey) else key for key in keys)
