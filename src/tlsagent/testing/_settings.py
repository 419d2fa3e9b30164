"""
What a server of this package is told, checked and made canonical once; the floors below read it and ask no more.

Two vocabularies meet here: the keywords of `Server`, and the server-side meaning of `ConnectionOptions` (what Node's
`tls.createServer` makes of the same names).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import crypto

from tlsagent._identity import unlocked, unlocked_pfx
from tlsagent._option_rules import UNSET, protocol_range
from tlsagent._options import ConnectionOptions, build
from tlsagent._tls.context import SecureContext
from tlsagent.errors import OptionError
from tlsagent.testing._tls import STALL_POINTS
from tlsagent.testing.authority import Authority, Credentials, default_authority, default_credentials

if TYPE_CHECKING:
    from tlsagent._material import TrustAnchors

Version = Literal["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]
RequestCert = Literal[False, True, "demand", "any"]

_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
BESIDE_THE_CONTEXT: Final = frozenset(
    {
        "drop_without_close_notify", "enable_connect_protocol", "initial_window_size", "max_concurrent_streams",
        "refuse_resumption", "stall_at",
    }
)  # fmt: skip
_IN_CONTEXT: Final = frozenset(
    {"ciphers", "client_ca", "credentials", "ecdh_curve", "max_version", "min_version", "session_id_context"}
)
# Options that the floor over pyOpenSSL alone can honour.
_FOR_OPENSSL: Final = frozenset(
    {
        "allow_partial_trust_chain", "crl", "dhparam", "ecdh_curve", "honor_cipher_order", "psk_callback",
        "secure_context", "secure_options", "session_id_context", "sigalgs", "sni_callback",
    }
)  # fmt: skip
_UNDERSTOOD: Final = _FOR_OPENSSL | {
    "alpn_protocols", "ca", "cert", "ciphers", "key", "max_version", "min_version", "passphrase", "pfx",
    "reject_unauthorized", "request_cert", "secure_protocol",
}  # fmt: skip


class SettingsDict(TypedDict, total=False):
    """The keywords of `Server` that say how it speaks TLS and HTTP; `reconfigure` takes them too."""

    credentials: Credentials
    request_cert: RequestCert
    client_ca: bytes
    min_version: Version
    max_version: Version
    ciphers: str
    ecdh_curve: str | None
    session_id_context: str | None
    alpn_protocols: tuple[str, ...]
    tickets: int | None
    session_ids: bool
    stall_at: str | None
    refuse_resumption: Literal["alert", "close"] | None
    drop_without_close_notify: bool
    ocsp_response: bytes | None
    psk_identity_hint: str | None
    max_concurrent_streams: int
    initial_window_size: int
    enable_connect_protocol: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """
    How a server speaks TLS and HTTP.

    Attributes:
        credentials: The certificate it presents.
        request_cert: False asks for no client certificate; True takes one if the client has one; "demand" fails the
            handshake without one. What comes is verified against `client_ca`; "any" takes what does not verify, too.
        client_ca: PEM or DER.
        ciphers: OpenSSL cipher list, suites of TLS 1.3 by their `TLS_` names; None for the library's.
        ecdh_curve: The one group the server does, or several with colons between; one that clients send no key share
            for ("secp521r1") makes it ask for a second ClientHello (RFC 8446 4.1.4). None for the library's groups.
        session_id_context: Sessions made under another one are not resumed.
        alpn_protocols: In the server's order of preference; () for a server that does not know ALPN. Where "h2" is
            chosen HTTP/2 is spoken, else HTTP/1.1.
        tickets: Session tickets per TLS 1.3 handshake; None is OpenSSL's default of 2. 0 makes every handshake a full
            one, in TLS 1.2 too.
        session_ids: The server keeps the sessions itself: session ids in TLS 1.2, stateful tickets in TLS 1.3.
        stall_at: Name of the handshake message (see `STALL_POINTS`) that is never sent, nor anything after it. A
            message that does not occur in a handshake stalls nothing.
        refuse_resumption: A client that offers a ticket gets a fatal alert, or a closed socket, instead of an answer.
        drop_without_close_notify: The server ends its connections by a bare FIN.
        ocsp_response: DER of an OCSP response, stapled for clients that ask (RFC 6066 section 8). It is not looked at.
        psk_identity_hint: Sent to clients of TLS 1.2 for them to choose a key by; only beside `psk_callback`.
        max_concurrent_streams: HTTP/2: streams per connection; those beyond are reset with REFUSED_STREAM.
        initial_window_size: HTTP/2: bytes of a request's body that a client may send unasked. More as the application
            reads; never any more if it is 0.
        enable_connect_protocol: HTTP/2: whether the extended CONNECT of RFC 8441 is offered.
        options: What the user's options say that ssl cannot honour, canonical; {} for a server that runs on ssl.
    """

    credentials: Credentials
    client_ca: bytes
    request_cert: RequestCert = False
    min_version: Version = "TLSv1.2"
    max_version: Version = "TLSv1.3"
    ciphers: str | None = None
    ecdh_curve: str | None = None
    session_id_context: str | None = None
    alpn_protocols: tuple[str, ...] = ("http/1.1",)
    tickets: int | None = None
    session_ids: bool = False
    stall_at: str | None = None
    refuse_resumption: Literal["alert", "close"] | None = None
    drop_without_close_notify: bool = False
    ocsp_response: bytes | None = None
    psk_identity_hint: str | None = None
    max_concurrent_streams: int = 100
    initial_window_size: int = 65_535
    enable_connect_protocol: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("request_cert", self.request_cert, (False, True, "demand", "any"))
        _one_of("min_version", self.min_version, _VERSIONS)
        _one_of("max_version", self.max_version, _VERSIONS)
        _one_of("stall_at", self.stall_at, (None, *STALL_POINTS))
        _one_of("refuse_resumption", self.refuse_resumption, (None, "alert", "close"))
        if _VERSIONS.index(self.min_version) > _VERSIONS.index(self.max_version):
            raise OptionError(f"min_version {self.min_version} is above max_version {self.max_version}")
        if self.tickets is not None and self.tickets < 0:
            raise OptionError(f"tickets must be at least 0, not {self.tickets}")
        _in_range("max_concurrent_streams", self.max_concurrent_streams, 2**32 - 1)
        _in_range("initial_window_size", self.initial_window_size, 2**31 - 1)
        if self.needs_openssl and self.tickets:
            raise OptionError("tickets must be None or 0 beside options that need pyOpenSSL: it cannot count them")
        if self.psk_identity_hint is not None and "psk_callback" not in self.options:
            raise OptionError("psk_identity_hint has no effect without psk_callback, which goes into `options`")

    @property
    def needs_openssl(self) -> bool:
        """Whether ssl cannot honour this, and pyOpenSSL can."""
        return bool(
            self.options
            or self.request_cert == "any"
            or self.session_id_context
            or self.ocsp_response
            or "TLS_" in (self.ciphers or "")
            or ":" in (self.ecdh_curve or "")
        )


def make_settings(
    names: tuple[str, ...],
    authority: Authority | None,
    *,
    options: ConnectionOptions | Mapping[str, Any] | None = None,
    keywords: SettingsDict,
    speaks: tuple[str, ...] = ("http/1.1",),
) -> tuple[Authority, ServerSettings]:
    """
    Return the authority and the settings of a server that was given these arguments.

    Keywords win over options; what neither says comes from the authority, and without one from the default authority.
    `speaks` is offered by ALPN where nothing is said.
    """
    said = settings_of_options(options)
    refuse_beside_context(said.get("options", {}), keywords)
    settled: dict[str, Any] = {"alpn_protocols": speaks, **said, **keywords}
    if "credentials" not in settled:
        settled["credentials"] = authority.issue(*names) if authority else default_credentials(names)
    authority = authority or default_authority()
    also_trusted = settled.pop("also_trusted", b"")
    settled.setdefault("client_ca", authority.ca_pem + also_trusted)
    return authority, ServerSettings(**settled)


def refuse_beside_context(options: Mapping[str, Any], keywords: SettingsDict) -> None:
    """Refuse keywords that have no effect beside a `secure_context` in `options`."""
    if "secure_context" in options and (beside := sorted(keywords.keys() & _IN_CONTEXT)):
        raise OptionError(f"{', '.join(beside)} has no effect beside secure_context")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def _in_range(name: str, value: int, highest: int) -> None:
    if not (isinstance(value, int) and 0 <= value <= highest):
        raise OptionError(f"{name} must be a number from 0 to {highest}, not {value!r}")


def settings_of_options(options: ConnectionOptions | Mapping[str, Any] | None) -> dict[str, Any]:
    """
    Return what `options` say about a server as keywords of `ServerSettings`.

    Raises:
        OptionError: For an option that this server cannot honour; nothing is ignored in silence.
    """
    if options is None:
        return {}
    if isinstance(options, Mapping):
        options = build(ConnectionOptions, options)
    given = {name: value for name in options.field_names() if (value := getattr(options, name)) not in (UNSET, None)}
    if beyond := sorted(name for name in given.keys() - _UNDERSTOOD if given[name] is not False):
        raise OptionError(f"the testing server does not support {', '.join(beyond)}")
    found: dict[str, Any] = {"options": {name: given[name] for name in given.keys() & _FOR_OPENSSL}}
    found |= _certificates(options)
    found |= {name: given[name] for name in ("alpn_protocols", "max_version", "min_version") if name in given}
    found |= {name: given[name] for name in ("ecdh_curve", "session_id_context") if name in given}
    if "ciphers" in given:
        found["ciphers"] = ":".join(part for part in (given["ciphers"].tls13, given["ciphers"].tls12) if part) or None
    if "secure_protocol" in given:
        found["min_version"], found["max_version"] = _server_range(given["secure_protocol"])
    context = _server_context(given.get("secure_context"))
    if given.get("request_cert") or (context is not None and context.request_cert):
        # Node: a certificate that was asked for must be there and verify, unless reject_unauthorized is False.
        found["request_cert"] = "any" if options.reject_unauthorized is False else "demand"
    return found


def _server_range(secure_protocol: str) -> tuple[str, str]:
    low, high, role = protocol_range(secure_protocol)
    if role == "client":
        raise OptionError(f"secure_protocol {secure_protocol} is for clients: no server can be made with it")
    return low, high


def _server_context(context: object) -> SecureContext | None:
    if context is None:
        return None
    assert isinstance(context, SecureContext)  # nothing else passes for the option
    if context.role == "client":
        raise OptionError("this secure_context was made with a secure_protocol for clients")
    return context


def _certificates(options: ConnectionOptions) -> dict[str, Any]:
    passphrase: Any = options.passphrase or None
    pfx: Any = options.pfx or ()
    chains: Any = options.cert or ()
    keys: Any = options.key or ()
    ca: Any = options.ca or None
    bundles = unlocked_pfx(pfx, passphrase)
    chains = (*chains, *(bundle.chain for bundle in bundles))
    keys = (*unlocked(keys, passphrase), *(bundle.key for bundle in bundles))
    # As in Node, what comes with a bundle is trusted besides the roots.
    also_trusted = b"".join(_pem(bundle.anchors) for bundle in bundles)
    found: dict[str, Any] = {"also_trusted": also_trusted}
    if ca is not None:
        found["client_ca"] = _pem(ca) + also_trusted
    if not chains and not keys:
        return found
    if len(chains) != 1 or len(keys) != 1:
        raise OptionError("the testing server takes one cert with its key; a secure_context may hold several")
    chain, key = chains[0], keys[0]
    found["credentials"] = Credentials(
        b"".join(c.public_bytes(Encoding.PEM) for c in (chain.leaf, *chain.extra)),
        key.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    return found


def _pem(anchors: TrustAnchors) -> bytes:
    return b"".join(crypto.dump_certificate(crypto.FILETYPE_PEM, one) for one in anchors.certificates)
