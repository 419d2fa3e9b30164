"""
Options to OpenSSL: the only place that knows its knobs.

`secure_context` makes one `SecureContext` per distinct content and process. Everything in it is fixed when it is made;
what differs from connection to connection (server name, ALPN, session) is set by the engine. Clients only.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import certifi
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL, crypto

from tlsagent._options import ContextHandle
from tlsagent._tls import binding
from tlsagent._tls.sessions import LONGEST_LIFETIME
from tlsagent.errors import OptionError

if TYPE_CHECKING:
    from cryptography import x509

    from tlsagent._material import CertificateChain, CipherList, PrivateKey, TrustAnchors

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


@dataclass(frozen=True, slots=True, repr=False)
class SecureContext(ContextHandle):
    """
    TLS material made ready for any number of connections. Immutable; equal if made from the same content.

    Attributes:
        digest: SHA-256 of the content: certificates by DER, keys by their public half, the rest as text.
        strict: Whether handshakes fail on a bad chain; a connection may decide otherwise.
        min_version, max_version: Protocol range, as 0x0303.
        context: pyOpenSSL's object. It is frozen from the first connection on.
    """

    digest: bytes
    strict: bool = field(compare=False)
    min_version: int = field(compare=False)
    max_version: int = field(compare=False)
    context: SSL.Context = field(compare=False)

    def __repr__(self) -> str:
        return f"<SecureContext sha256 {self.digest.hex()}>"

    @property
    def version_range(self) -> str:
        """The protocol versions it speaks, for messages: "TLSv1.2 to TLSv1.3"."""
        low, high = VERSION_NAMES[self.min_version], VERSION_NAMES[self.max_version]
        return low if low == high else f"{low} to {high}"


@functools.lru_cache(maxsize=128)
def secure_context(
    *,
    ca: TrustAnchors | None,
    chains: tuple[CertificateChain, ...],
    keys: tuple[PrivateKey, ...],
    ciphers: CipherList | None,
    min_version: int | None,
    max_version: int | None,
    strict: bool,
) -> SecureContext:
    """
    Return the context for this content, made on the first call.

    Args:
        ca: Roots in place of the default ones; None for certifi's.
        chains, keys: Client certificates; each is used with the key that belongs to it, one without a key is not used.
        ciphers: None for Node's defaults. Naming suites of TLS 1.3 only leaves nothing for TLS 1.2, which is then not
            offered, as in Node.
        min_version, max_version: 0x0301 to 0x0304; None for TLS 1.2 and 1.3.
        strict: `reject_unauthorized`.

    Raises:
        OptionError: OpenSSL refuses a value, or the versions leave nothing to offer.
    """
    low, high = _versions(ciphers, min_version or TLS12, max_version or TLS13)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    try:
        _set_protocol(context, low, high)
        _set_ciphers(context, ciphers)  # before the certificates: @SECLEVEL decides which are too weak
        _set_trust(context, ca, strict)
        _set_identity(context, chains, keys)
    except SSL.Error as exc:
        raise _refused(exc) from exc
    content = (
        ca and ca.digest.hex(),
        [chain.digest.hex() for chain in chains],
        [key.spki_digest.hex() for key in keys],
        ciphers and (ciphers.tls12, ciphers.tls13),
        (low, high, strict),
    )
    digest = hashlib.sha256(repr(content).encode()).digest()
    return SecureContext(digest, strict=strict, min_version=low, max_version=high, context=context)


def _versions(ciphers: CipherList | None, low: int, high: int) -> tuple[int, int]:
    if ciphers is not None and ciphers.tls13 is not None and ciphers.tls12 is None:
        low = max(low, TLS13)
    if low > high:
        raise OptionError(
            f"no protocol version is left to offer: min_version is {VERSION_NAMES[low]} (TLSv1.3 if `ciphers` names "
            f"only suites of TLS 1.3), max_version is {VERSION_NAMES[high]}",
            code="ERR_SSL_NO_PROTOCOLS_AVAILABLE",
        )
    return low, high


def _set_protocol(context: SSL.Context, low: int, high: int) -> None:
    context.set_min_proto_version(low)
    context.set_max_proto_version(high)
    # A connection keeps the peer it was verified for: a server must not start a second handshake on it.
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    # An idle connection holds 44 KiB instead of 77.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    # pyOpenSSL's default would write at most one record per call.
    context.clear_mode(binding.ENABLE_PARTIAL_WRITE)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # How long a session lives is for the server to say and `Session` to bound: OpenSSL's two hours are too short.
    context.set_timeout(LONGEST_LIFETIME)


def _set_ciphers(context: SSL.Context, ciphers: CipherList | None) -> None:
    tls12, tls13 = (ciphers.tls12, ciphers.tls13) if ciphers is not None else (None, None)
    context.set_tls13_ciphersuites((tls13 or _DEFAULT_TLS13).encode("ascii"))
    context.set_cipher_list((tls12 or _DEFAULT_TLS12).encode("ascii"))


def _set_trust(context: SSL.Context, ca: TrustAnchors | None, strict: bool) -> None:
    if ca is None:
        binding.share_store(context, _default_store())
    else:
        store = crypto.X509Store()
        for certificate in ca.certificates:
            store.add_cert(certificate)
        binding.share_store(context, store)
    binding.set_context_verification(context, strict)


@functools.cache
def _default_store() -> crypto.X509Store:
    """Parse certifi's roots, once per process: it costs 6 ms, sharing them nothing."""
    store = crypto.X509Store()
    store.load_locations(certifi.where())
    return store


def _set_identity(context: SSL.Context, chains: tuple[CertificateChain, ...], keys: tuple[PrivateKey, ...]) -> None:
    owned = {key.spki_digest: key for key in keys}
    extra = {}
    for chain in chains:
        key = owned.get(_spki_digest(chain.leaf))
        if key is not None:
            context.use_certificate(chain.leaf)
            context.use_privatekey(key.key)
            extra.update(dict.fromkeys(chain.extra))
    # OpenSSL keeps one pool of intermediates for all leaves here. Peers sort out those that are not theirs.
    for certificate in extra:
        context.add_extra_chain_cert(certificate)


def _spki_digest(certificate: x509.Certificate) -> bytes:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


def _refused(exc: SSL.Error) -> OptionError:
    """Translate an error of OpenSSL's about what it was given: a key too small for the security level, and the like."""
    reasons = [reason for _library, _function, reason in exc.args[0]] if exc.args else []
    reason = reasons[-1] if reasons else "no reason given"
    return OptionError(
        f"OpenSSL refuses the TLS options: {reason}; see `ciphers` (@SECLEVEL), `cert` and `key`",
        code="ERR_SSL_" + reason.upper().replace(" ", "_"),
    )
