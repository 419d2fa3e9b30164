"""
Options to OpenSSL: the only place that knows its knobs.

`secure_context` makes one `SecureContext` per distinct content and process, for clients and servers alike. Everything
in it is fixed when it is made; what differs from connection to connection (server name, ALPN, session, whether a bad
chain is refused) is set by the engine.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import certifi
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL, crypto

from tlsagent._material import binding
from tlsagent._option_rules import ContextHandle, Role, SniCallback
from tlsagent._tls.sessions import LONGEST_LIFETIME
from tlsagent.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography import x509

    from tlsagent._material import (
        CertificateChain,
        CipherList,
        DHParameters,
        PrivateKey,
        RevocationLists,
        TrustAnchors,
    )

TLS12: Final = 0x0303
TLS13: Final = 0x0304

VERSION_NAMES: Final = {0x0301: "TLSv1", 0x0302: "TLSv1.1", TLS12: "TLSv1.2", TLS13: "TLSv1.3"}

# Node's tls.DEFAULT_CIPHERS. Naming them keeps a distribution's OpenSSL defaults out.
_DEFAULT_TLS13: Final = "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256"
_DEFAULT_TLS12: Final = (
    "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-AES256-GCM-SHA384:DHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-SHA256:DHE-RSA-AES128-SHA256:"
    "ECDHE-RSA-AES256-SHA384:DHE-RSA-AES256-SHA384:ECDHE-RSA-AES256-SHA256:DHE-RSA-AES256-SHA256:"
    "HIGH:!aNULL:!eNULL:!EXPORT:!DES:!RC4:!MD5:!PSK:!SRP:!CAMELLIA"
)
# A server that verifies clients resumes nothing unless its context has an id; Node gives it one, too.
_SERVER_ID: Final = "tlsagent"


class _Content(NamedTuple):
    """What a context is made from."""

    ca: TrustAnchors | None
    chains: tuple[CertificateChain, ...]
    keys: tuple[PrivateKey, ...]
    also_trusted: tuple[TrustAnchors, ...]
    crl: RevocationLists | None
    ciphers: CipherList | None
    ecdh_curve: str | None
    sigalgs: str | None
    min_version: int
    max_version: int
    secure_options: int
    session_id_context: str | None
    allow_partial_trust_chain: bool
    dhparam: DHParameters | None
    honor_cipher_order: bool
    request_cert: bool
    sni_callback: SniCallback | None


@dataclass(frozen=True, slots=True, repr=False)
class SecureContext(ContextHandle):
    """
    TLS material made ready for any number of connections. Immutable; equal if made from the same content.

    Attributes:
        digest: SHA-256 of the content: certificates by DER, keys by their public half, the rest as text.
        role: Who may use it: "both", or one side alone if a `secure_protocol` says so.
        sni_callback: Chooses another context for a server; compared as the object that it is.
    """

    digest: bytes
    role: Role
    sni_callback: SniCallback | None
    _content: _Content = field(compare=False)
    _variants: dict[tuple[bool, bool], SSL.Context] = field(compare=False)

    def __repr__(self) -> str:
        return f"<SecureContext sha256 {self.digest.hex()}>"

    @property
    def context(self) -> SSL.Context:
        """pyOpenSSL's object. It is frozen from the first connection on."""
        return self._variants[False, False]

    def variant(self, *, messages: bool, psk: bool) -> SSL.Context:
        """
        Return the context for connections with a message listener, or a source of pre-shared keys.

        OpenSSL knows both only for a whole context, and they cost time, so those who want them get one of their own.
        """
        made = self._variants.get((messages, psk))
        if made is None:
            made = _made(self._content)
            if messages:
                binding.watch_messages(made)
            if psk:
                binding.offer_psk(made)
            self._variants[messages, psk] = made
        return made

    def unshared(self, *, request_cert: bool) -> SSL.Context:
        """
        Return a new context of the same content for its caller to change: without `sni_callback`.

        Args:
            request_cert: Whether a server asks its clients for a certificate, in place of what the content says.
        """
        return _made(self._content._replace(request_cert=request_cert, sni_callback=None))

    @property
    def min_version(self) -> int:
        """The lowest protocol version, as 0x0303."""
        return self._content.min_version

    @property
    def max_version(self) -> int:
        """The highest protocol version, as 0x0304."""
        return self._content.max_version

    @property
    def request_cert(self) -> bool:
        """Whether a server demands a client certificate."""
        return self._content.request_cert

    @property
    def version_range(self) -> str:
        """The protocol versions it speaks, for messages: "TLSv1.2 to TLSv1.3"."""
        low, high = VERSION_NAMES[self.min_version], VERSION_NAMES[self.max_version]
        return low if low == high else f"{low} to {high}"


@functools.lru_cache(maxsize=128)
def secure_context(
    *,
    ca: TrustAnchors | None = None,
    also_trusted: tuple[TrustAnchors, ...] = (),
    chains: tuple[CertificateChain, ...] = (),
    keys: tuple[PrivateKey, ...] = (),
    crl: RevocationLists | None = None,
    ciphers: CipherList | None = None,
    ecdh_curve: str | None = None,
    sigalgs: str | None = None,
    min_version: int | None = None,
    max_version: int | None = None,
    secure_options: int = 0,
    session_id_context: str | None = None,
    allow_partial_trust_chain: bool = False,
    dhparam: DHParameters | None = None,
    honor_cipher_order: bool = False,
    request_cert: bool = False,
    sni_callback: SniCallback | None = None,
    role: Role = "both",
) -> SecureContext:
    """
    Return the context for this content, made on the first call.

    Args:
        ca: Roots in place of the default ones; None for certifi's.
        also_trusted: Further certificates of a `pfx`, trusted besides the roots.
        chains, keys: Certificates; each is used with the key that belongs to it, one without a key is not used.
        ciphers: None for Node's defaults. Naming suites of TLS 1.3 only leaves nothing for TLS 1.2, which is then not
            offered, as in Node.
        min_version, max_version: 0x0301 to 0x0304; None for TLS 1.2 and 1.3.
        dhparam, honor_cipher_order, request_cert, sni_callback: What a server does; a client pays no heed to them.

    Raises:
        OptionError: OpenSSL refuses a value, or the versions leave nothing to offer.
    """
    low, high = _versions(ciphers, min_version or TLS12, max_version or TLS13)
    content = _Content(
        ca=ca,
        also_trusted=also_trusted,
        chains=chains,
        keys=keys,
        crl=crl,
        ciphers=ciphers,
        ecdh_curve=ecdh_curve,
        sigalgs=sigalgs,
        min_version=low,
        max_version=high,
        secure_options=secure_options,
        session_id_context=session_id_context,
        allow_partial_trust_chain=allow_partial_trust_chain,
        dhparam=dhparam,
        honor_cipher_order=honor_cipher_order,
        request_cert=request_cert,
        sni_callback=sni_callback,
    )
    # Materials print their digests, so this tells all there is to tell; the callback is compared by itself.
    told = repr((content._replace(sni_callback=None), role))
    digest = hashlib.sha256(told.encode()).digest()
    return SecureContext(digest, role, sni_callback, content, {(False, False): _made(content)})


def _versions(ciphers: CipherList | None, low: int, high: int) -> tuple[int, int]:
    if low > high:
        raise OptionTypeError(
            f"min_version {VERSION_NAMES[low]} is above max_version {VERSION_NAMES[high]}: no connection could ever be "
            "made",
            code="ERR_TLS_INVALID_PROTOCOL_VERSION",
        )
    if ciphers is not None and ciphers.tls13 is not None and ciphers.tls12 is None:
        low = max(low, TLS13)
    if low > high:
        raise OptionError(
            f"no protocol version is left to offer: `ciphers` names only suites of TLS 1.3, max_version is "
            f"{VERSION_NAMES[high]}",
            code="ERR_SSL_NO_PROTOCOLS_AVAILABLE",
        )
    return low, high


def _made(content: _Content) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    try:
        _set_protocol(context, content)
        _set_algorithms(context, content)  # before the certificates: @SECLEVEL decides which are too weak
        _set_trust(context, content)
        _set_identity(context, content.chains, content.keys)
        _set_server_side(context, content)
    except SSL.Error as exc:
        raise _refused(exc) from exc
    return context


def _set_protocol(context: SSL.Context, content: _Content) -> None:
    context.set_min_proto_version(content.min_version)
    context.set_max_proto_version(content.max_version)
    # A connection keeps the peer it was verified for: a server must not start a second handshake on it.
    context.set_options(SSL.OP_NO_RENEGOTIATION | content.secure_options)
    # An idle connection holds 44 KiB instead of 77.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    # pyOpenSSL's default would write at most one record per call.
    context.clear_mode(binding.ENABLE_PARTIAL_WRITE)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # How long a session lives is for the server to say and `Session` to bound: OpenSSL's two hours are too short.
    context.set_timeout(LONGEST_LIFETIME)
    identifier = content.session_id_context or (_SERVER_ID if content.request_cert else "")
    if identifier:
        context.set_session_id(identifier.encode())


def _set_algorithms(context: SSL.Context, content: _Content) -> None:
    ciphers = content.ciphers
    tls12, tls13 = (ciphers.tls12, ciphers.tls13) if ciphers is not None else (None, None)
    context.set_tls13_ciphersuites((tls13 or _DEFAULT_TLS13).encode("ascii"))
    context.set_cipher_list((tls12 or _DEFAULT_TLS12).encode("ascii"))
    # Both were tried when the option was made: what is refused now is refused because of @SECLEVEL.
    if content.ecdh_curve is not None and not binding.set_groups(context, content.ecdh_curve):
        raise OptionError("`ecdh_curve` is refused beside these `ciphers`", code="ERR_CRYPTO_OPERATION_FAILED")
    if content.sigalgs is not None and not binding.set_signature_algorithms(context, content.sigalgs):
        raise OptionError("`sigalgs` is refused beside these `ciphers`", code="ERR_TLSAGENT_SIGALGS")


def _set_trust(context: SSL.Context, content: _Content) -> None:
    binding.share_store(context, _store(content.ca, content.also_trusted, content.crl))
    binding.set_context_verification(context, content.request_cert)
    if content.allow_partial_trust_chain:
        binding.allow_partial_chain(context)


def _store(
    ca: TrustAnchors | None, also_trusted: tuple[TrustAnchors, ...], crl: RevocationLists | None
) -> crypto.X509Store:
    if ca is None and not also_trusted and crl is None:
        return _default_store()
    store = crypto.X509Store()  # its own: certificates and lists added to a shared one would count for others
    if ca is None:
        store.load_locations(certifi.where())
    for anchors in (*((ca,) if ca is not None else ()), *also_trusted):
        for certificate in anchors.certificates:
            store.add_cert(certificate)
    if crl is not None:
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)
        for one in crl.lists:
            store.add_crl(one)
    return store


@functools.cache
def _default_store() -> crypto.X509Store:
    """Parse certifi's roots, once per process: it costs 6 ms, sharing them nothing."""
    store = crypto.X509Store()
    store.load_locations(certifi.where())
    return store


def _set_identity(context: SSL.Context, chains: tuple[CertificateChain, ...], keys: tuple[PrivateKey, ...]) -> None:
    owned = {key.spki_digest: key for key in keys}
    extra = {}
    keyed = [(chain, owned.get(_spki_digest(chain.leaf))) for chain in chains]
    # One without a key is never sent, but OpenSSL is asked whether it is too weak. First, so that it replaces no other.
    for chain, key in sorted(keyed, key=lambda one: one[1] is not None):
        context.use_certificate(chain.leaf)
        if key is not None:
            _use_key(context, key)
            extra.update(dict.fromkeys(chain.extra))
    # OpenSSL keeps one pool of intermediates for all leaves here. Peers sort out those that are not theirs.
    for certificate in extra:
        context.add_extra_chain_cert(certificate)


def _use_key(context: SSL.Context, key: PrivateKey) -> None:
    if not isinstance(key.key, crypto.PKey):
        context.use_privatekey(key.key)
    elif not binding.use_private_key(context, key.key):
        raise OptionError("OpenSSL refuses `key` beside this `cert`", code="ERR_OSSL_X509_KEY_VALUES_MISMATCH")


def _spki_digest(certificate: x509.Certificate) -> bytes:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


def _set_server_side(context: SSL.Context, content: _Content) -> None:
    if content.honor_cipher_order:
        context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    if content.dhparam is not None and not binding.set_dh_parameters(context, content.dhparam.pem):
        raise OptionError(
            f"`dhparam` of {content.dhparam.bits} bits is too small for the security level of `ciphers`: use 2048 bits",
            code="ERR_CRYPTO_OPERATION_FAILED",
        )
    if content.sni_callback is not None:
        context.set_tlsext_servername_callback(_switch(content.sni_callback))


def _switch(sni_callback: SniCallback) -> Callable[[SSL.Connection], None]:
    """Return the callback that gives a server's connection the context for the name that the client sent."""

    def switch(connection: SSL.Connection) -> None:
        name = connection.get_servername()
        chosen = sni_callback(name.decode("ascii", "backslashreplace")) if name is not None else None
        if chosen is None:
            return
        if not isinstance(chosen, SecureContext):
            raise OptionTypeError(f"sni_callback must return a SecureContext or None, not {type(chosen).__name__}")
        connection.set_context(chosen.context)

    return switch


def _refused(exc: SSL.Error) -> OptionError:
    """Translate an error of OpenSSL's about what it was given: a key too small for the security level, and the like."""
    reasons = [reason for _library, _function, reason in exc.args[0]] if exc.args else []
    reason = reasons[-1] if reasons else "no reason given"
    return OptionError(
        f"OpenSSL refuses the TLS options: {reason}; see `ciphers` (@SECLEVEL), `cert` and `key`",
        code="ERR_SSL_" + reason.upper().replace(" ", "_"),
    )
