"""
What a server of this package is told, checked and made canonical once; the floors below read it and ask no more.

Two vocabularies meet here: the keywords of `Server`, and the server-side meaning of `ConnectionOptions` (what Node's
`tls.createServer` makes of the same names).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import crypto

from tlsagent._options import ConnectionOptions, build
from tlsagent.errors import OptionError
from tlsagent.testing._tls import STALL_POINTS
from tlsagent.testing.authority import Authority, Credentials, default_authority, default_credentials

Version = Literal["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]
RequestCert = Literal[False, True, "demand"]

_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
BESIDE_THE_CONTEXT: Final = frozenset({"stall_at", "refuse_resumption", "drop_without_close_notify"})
_UNDERSTOOD: Final = frozenset(
    {
        "alpn_protocols",
        "ca",
        "cert",
        "ciphers",
        "key",
        "max_version",
        "min_version",
        "passphrase",
        "reject_unauthorized",
    }
)


class SettingsDict(TypedDict, total=False):
    """The keywords of `Server` that say how it speaks TLS; `reconfigure` takes them too."""

    credentials: Credentials
    request_cert: RequestCert
    client_ca: bytes
    min_version: Version
    max_version: Version
    ciphers: str
    ecdh_curve: str | None
    alpn_protocols: tuple[str, ...]
    tickets: int | None
    session_ids: bool
    stall_at: str | None
    refuse_resumption: Literal["alert", "close"] | None
    drop_without_close_notify: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """
    How a server speaks TLS.

    Attributes:
        credentials: The certificate it presents.
        request_cert: False asks for no client certificate; True takes one if the client has one; "demand" fails the
            handshake without one. What comes is verified against `client_ca` in any case.
        client_ca: PEM or DER.
        ciphers: OpenSSL cipher list for TLS 1.2 and below; None for the library's.
        ecdh_curve: The one group the server does; one that clients send no key share for ("secp521r1") makes it ask
            for a second ClientHello (RFC 8446 4.1.4). None for the library's groups.
        alpn_protocols: In the server's order of preference; () for a server that does not know ALPN.
        tickets: Session tickets per TLS 1.3 handshake; None is OpenSSL's default of 2. 0 makes every handshake a full
            one, in TLS 1.2 too.
        session_ids: The server keeps the sessions itself: session ids in TLS 1.2, stateful tickets in TLS 1.3.
        stall_at: Name of the handshake message (see `STALL_POINTS`) that is never sent, nor anything after it. A
            message that does not occur in a handshake stalls nothing.
        refuse_resumption: A client that offers a ticket gets a fatal alert, or a closed socket, instead of an answer.
        drop_without_close_notify: The server ends its connections by a bare FIN.
    """

    credentials: Credentials
    client_ca: bytes
    request_cert: RequestCert = False
    min_version: Version = "TLSv1.2"
    max_version: Version = "TLSv1.3"
    ciphers: str | None = None
    ecdh_curve: str | None = None
    alpn_protocols: tuple[str, ...] = ("http/1.1",)
    tickets: int | None = None
    session_ids: bool = False
    stall_at: str | None = None
    refuse_resumption: Literal["alert", "close"] | None = None
    drop_without_close_notify: bool = False

    def __post_init__(self) -> None:
        _one_of("request_cert", self.request_cert, (False, True, "demand"))
        _one_of("min_version", self.min_version, _VERSIONS)
        _one_of("max_version", self.max_version, _VERSIONS)
        _one_of("stall_at", self.stall_at, (None, *STALL_POINTS))
        _one_of("refuse_resumption", self.refuse_resumption, (None, "alert", "close"))
        if _VERSIONS.index(self.min_version) > _VERSIONS.index(self.max_version):
            raise OptionError(f"min_version {self.min_version} is above max_version {self.max_version}")
        if self.tickets is not None and self.tickets < 0:
            raise OptionError(f"tickets must be at least 0, not {self.tickets}")


def make_settings(
    names: tuple[str, ...],
    authority: Authority | None,
    *,
    options: ConnectionOptions | Mapping[str, Any] | None = None,
    keywords: SettingsDict,
) -> tuple[Authority, ServerSettings]:
    """
    Return the authority and the settings of a server that was given these arguments.

    Keywords win over options; what neither says comes from the authority, and without one from the default authority.
    """
    settled: dict[str, Any] = {**settings_of_options(options), **keywords}
    if "credentials" not in settled:
        settled["credentials"] = authority.issue(*names) if authority else default_credentials(names)
    authority = authority or default_authority()
    settled.setdefault("client_ca", authority.ca_pem)
    return authority, ServerSettings(**settled)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def settings_of_options(options: ConnectionOptions | Mapping[str, Any] | None) -> dict[str, Any]:
    """
    Return what `options` say about a server as keywords of `ServerSettings`.

    Raises:
        OptionError: For an option that this server cannot honour; nothing is ignored in silence.
    """
    if options is None:
        return {}
    found: dict[str, Any] = {}
    if isinstance(options, Mapping):
        asked = options.get("request_cert", False)
        options = build(ConnectionOptions, {name: v for name, v in options.items() if name != "request_cert"})
        if asked:
            # Node: a certificate that was asked for must be there and verify, unless reject_unauthorized is False.
            found["request_cert"] = True if options.reject_unauthorized is False else "demand"
    given = {name for name in options.field_names() if getattr(options, name) or getattr(options, name) == ()}
    if beyond := sorted(given - _UNDERSTOOD):
        raise OptionError(f"the testing server does not support {', '.join(beyond)}")
    found |= _credentials(options)
    if options.ca:
        ca: Any = options.ca
        found["client_ca"] = b"".join(crypto.dump_certificate(crypto.FILETYPE_ASN1, c) for c in ca.certificates)
    if options.ciphers:
        found["ciphers"] = _ciphers(options.ciphers)
    for name in ("min_version", "max_version", "alpn_protocols"):
        if name in given:
            found[name] = getattr(options, name)
    return found


def _credentials(options: ConnectionOptions) -> dict[str, Credentials]:
    chains: Any = options.cert or ()
    keys: Any = options.key or ()
    if not chains and not keys:
        return {}
    if len(chains) != 1 or len(keys) != 1:
        raise OptionError("the testing server takes one cert with its key")
    chain, key = chains[0], keys[0]
    if not hasattr(key, "key"):
        key = key.unlock(options.passphrase or None)
    return {
        "credentials": Credentials(
            b"".join(c.public_bytes(Encoding.PEM) for c in (chain.leaf, *chain.extra)),
            key.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )
    }


def _ciphers(ciphers: Any) -> str | None:
    if ciphers.tls13 is not None:
        raise OptionError("the testing server cannot choose TLS 1.3 cipher suites; give TLS 1.2 ciphers alone")
    text: str | None = ciphers.tls12
    return text
