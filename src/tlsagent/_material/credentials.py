"""
Certificates and private keys: the options `ca`, `cert`, `key`, `passphrase` and `pfx`.

PEM is RFC 7468 (several certificates per item, text between them is skipped), DER is one certificate or key per item, a
`pfx` is PKCS#12 (RFC 7292). Stricter than Node: junk among the roots is an error, not an empty trust store. Parsing is
memoised for the process by content; a file is read again when its path, inode, times or size change. A `key` may also
name one in a PKCS#11 token (RFC 7512): that is looked up anew each time, since the name stays when the key is replaced.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote_from_bytes

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    pkcs12,
)
from OpenSSL import crypto

from tlsagent._material.items import ITEM, Item, Memo, items_of, parsed, passphrase_bytes, wrong_type
from tlsagent.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

SigningKey: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | dsa.DSAPrivateKey
)


@dataclass(frozen=True, slots=True, repr=False)
class TrustAnchors:
    """
    The roots of option `ca`, in the order given; none at all means that nobody is trusted.

    They are OpenSSL's own objects: cryptography warns about roots that OpenSSL and Node accept (serial number zero).
    """

    certificates: tuple[crypto.X509, ...] = field(compare=False)
    digest: bytes

    def __repr__(self) -> str:
        return f"<TrustAnchors {len(self.certificates)} certificates, sha256 {self.digest.hex()}>"


@dataclass(frozen=True, slots=True, repr=False)
class CertificateChain:
    """One item of option `cert`: our own certificate and the intermediates to send with it."""

    leaf: x509.Certificate = field(compare=False)
    extra: tuple[x509.Certificate, ...] = field(compare=False)
    digest: bytes

    def __repr__(self) -> str:
        return f"<CertificateChain of {1 + len(self.extra)}, sha256 {self.digest.hex()}>"


@dataclass(frozen=True, slots=True, repr=False)
class PrivateKey:
    """One item of option `key`. It is compared by its public half, so it can stand in a pool key."""

    key: SigningKey | crypto.PKey = field(compare=False)  # PKey: OpenSSL's own object, for a key in hardware
    spki_digest: bytes

    def __repr__(self) -> str:
        return f"<PrivateKey of public key sha256 {self.spki_digest.hex()}>"


@dataclass(frozen=True, slots=True, repr=False)
class EncryptedKey:
    """One item of option `key` whose passphrase this layer does not know; another layer may."""

    data: bytes = field(compare=False)
    digest: bytes

    def __repr__(self) -> str:
        return f"<EncryptedKey sha256 {self.digest.hex()}>"

    def unlock(self, passphrase: str | bytes | None) -> PrivateKey:
        """Decrypt with `passphrase`. Raises OptionError (ERR_OSSL_BAD_DECRYPT) if it is missing or wrong."""
        secret = passphrase_bytes(passphrase)
        if not secret:
            raise OptionError("`key` is encrypted: set `passphrase`", code="ERR_OSSL_BAD_DECRYPT")
        # The memo must not hold the passphrase itself. The digest in front has a fixed length: no two pairs collide.
        name = hashlib.sha256(self.digest + secret).digest()
        return _unlocked.get(name, lambda: _private_key(self.data, secret))


@dataclass(frozen=True, slots=True, repr=False)
class TokenKey(EncryptedKey):
    """One item of option `key` that names a key in a token whose PIN this layer does not know; another layer may."""

    def __repr__(self) -> str:
        return "<TokenKey>"  # a digest of the URI would give the PIN in it to whoever tries all PINs

    def unlock(self, passphrase: str | bytes | None) -> PrivateKey:
        """Find the key, with `passphrase` as the PIN. Raises OptionError (ERR_OSSL_BAD_DECRYPT) if that fails."""
        secret = passphrase_bytes(passphrase)
        if not secret:  # not asked again: if a wrong PIN is configured, each search tries it
            raise OptionError(
                "`key` is in a PKCS#11 token that asks for its PIN: none is configured, or a wrong one. Give it as "
                "`passphrase` (docs/howto/pkcs11.md)",
                code="ERR_OSSL_BAD_DECRYPT",
            )
        return _token_key(self.data, secret)


@dataclass(frozen=True, slots=True, repr=False)
class Pfx:
    """
    One item of option `pfx`: a client certificate with its key.

    Its further certificates are sent with the leaf, and trusted besides `ca` or the default roots, as in Node.
    """

    chain: CertificateChain
    key: PrivateKey
    anchors: TrustAnchors

    def __repr__(self) -> str:
        return f"<Pfx sha256 {self.chain.digest.hex()}>"


@dataclass(frozen=True, slots=True, repr=False)
class EncryptedPfx:
    """One item of option `pfx` that this layer's passphrase, if any, does not open; another layer's may."""

    data: bytes = field(compare=False)
    digest: bytes

    def __repr__(self) -> str:
        return f"<EncryptedPfx sha256 {self.digest.hex()}>"

    def unlock(self, passphrase: str | bytes | None) -> Pfx:
        """Open it with `passphrase`. Raises OptionError (ERR_TLSAGENT_PFX) if it is missing or wrong."""
        secret = passphrase_bytes(passphrase)
        name = hashlib.sha256(self.digest + secret).digest()
        return _bundles.get(name, lambda: _open_pfx(self.data, secret))


_anchors: Final[Memo[tuple[crypto.X509, ...]]] = Memo()
_chains: Final[Memo[CertificateChain]] = Memo()
_keys: Final[Memo[PrivateKey | EncryptedKey]] = Memo()
_unlocked: Final[Memo[PrivateKey]] = Memo()
_bundles: Final[Memo[Pfx]] = Memo()


def trust_anchors(value: Item | Sequence[Item] | TrustAnchors) -> TrustAnchors:
    """Parse option `ca`. It replaces the default roots; an empty sequence means no roots."""
    if isinstance(value, TrustAnchors):
        return value
    certificates = tuple(
        anchor for item in items_of("ca", value) for anchor in parsed(_anchors, "ca", item, _parse_anchors)
    )
    ders = b"".join(crypto.dump_certificate(crypto.FILETYPE_ASN1, one) for one in certificates)
    return TrustAnchors(certificates, hashlib.sha256(ders).digest())


def certificate_chains(value: Item | Sequence[Item | CertificateChain]) -> tuple[CertificateChain, ...]:
    """Parse option `cert`, one chain per item: the leaf first, then its intermediates. Parsed items stay so."""
    return tuple(
        item if isinstance(item, CertificateChain) else parsed(_chains, "cert", item, _parse_chain)
        for item in items_of("cert", value, CertificateChain)
    )


def private_keys(
    value: Item | Sequence[Item | Mapping[str, object] | PrivateKey | EncryptedKey], passphrase: str | bytes | None
) -> tuple[PrivateKey | EncryptedKey, ...]:
    """
    Parse option `key`. An item may be a mapping with `pem` and `passphrase`; its own passphrase wins.

    A passphrase that is not needed is ignored, as in Node. A key that needs one where none is known comes back as
    `EncryptedKey`. Parsed items stay as they are, or are unlocked.

    An item may instead be the URI of a key in a PKCS#11 token, bare ("pkcs11:...") or in the PEM of pkcs11-provider:
    OpenSSL finds it if OPENSSL_CONF has loaded that provider, and the passphrase is the PIN. See docs/howto/pkcs11.md.
    """
    passphrase_bytes(passphrase)
    if isinstance(value, Mapping):
        raise OptionTypeError(
            "`key` takes mappings in a list alone, as Node does: key=[{'pem': ..., 'passphrase': ...}]"
        )
    return tuple(_key_item(item, passphrase) for item in items_of("key", value, Mapping, PrivateKey, EncryptedKey))


def check_key_pairs(chains: Sequence[CertificateChain], keys: Sequence[PrivateKey]) -> None:
    """
    Refuse a key that belongs to none of the certificates (ERR_OSSL_X509_KEY_VALUES_MISMATCH).

    Certificates without a key and keys without any certificate are fine, as in Node: they are never sent.
    """
    owned = {_leaf_spki_digest(chain) for chain in chains}
    if owned and any(key.spki_digest not in owned for key in keys):
        raise OptionError(
            "`key` does not belong to `cert`: give the key that the first certificate of each item was issued for; "
            "intermediates come after it",
            code="ERR_OSSL_X509_KEY_VALUES_MISMATCH",
        )


# Certificates -----------------------------------------------------------------------------------------------------

# RFC 7468 section 4 and 5.3 (the old label). The lazy body cannot run past the next boundary: it holds no dash.
_PEM_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN (X509 )?CERTIFICATE-----([^-]*)-----END (?:X509 )?CERTIFICATE-----",
)
_PEM_BEGIN: Final = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----")


def certificate_ders(option: str, data: bytes) -> list[bytes]:
    """Return the DER of each certificate in PEM text, or `data` itself where it is DER. Never an empty list."""
    if data[:1] == b"\x30" and b"-----BEGIN" not in data:
        return [data]
    blocks = [match[2] for match in _PEM_CERTIFICATE.finditer(data)]
    begun = len(_PEM_BEGIN.findall(data))
    if not begun:
        raise OptionError(
            f"`{option}` holds no certificate: expected '-----BEGIN CERTIFICATE-----' or DER bytes "
            "(to name a file, pass a pathlib.Path)",
            code="ERR_OSSL_PEM_NO_START_LINE",
        )
    if begun != len(blocks):
        raise OptionError(
            f"`{option}`: a certificate has no matching '-----END CERTIFICATE-----': is the PEM text cut off?",
            code="ERR_OSSL_PEM_BAD_END_LINE",
        )
    return [_from_base64(option, block) for block in blocks]


def _from_base64(option: str, block: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(block.split()), validate=True)
    except binascii.Error as exc:
        raise OptionError(
            f"`{option}`: a certificate is not valid base64: is the PEM text damaged?",
            code="ERR_OSSL_PEM_BAD_BASE64_DECODE",
        ) from exc


def bad_certificate(option: str) -> OptionError:
    """Return the error for bytes that are no X.509 certificate."""
    return OptionError(
        f"`{option}`: not an X.509 certificate: expected the DER encoding of one, in PEM or bare",
        code="ERR_OSSL_ASN1_WRONG_TAG",
    )


def _parse_anchors(data: bytes) -> tuple[crypto.X509, ...]:
    return tuple(_anchor(der) for der in certificate_ders("ca", data))


def _anchor(der: bytes) -> crypto.X509:
    try:
        anchor = crypto.load_certificate(crypto.FILETYPE_ASN1, der)
    except crypto.Error as exc:
        raise bad_certificate("ca") from exc
    if crypto.dump_certificate(crypto.FILETYPE_ASN1, anchor) != der:
        raise bad_certificate("ca")  # something stands behind the certificate
    return anchor


def _parse_chain(data: bytes) -> CertificateChain:
    if b"-----BEGIN" in data:
        _check_leaf(data)
    ders = certificate_ders("cert", data)
    try:
        leaf, *extra = [x509.load_der_x509_certificate(der) for der in ders]
    except (ValueError, x509.InvalidVersion) as exc:
        raise bad_certificate("cert") from exc
    return CertificateChain(leaf, tuple(extra), hashlib.sha256(b"".join(ders)).digest())


def _check_leaf(data: bytes) -> None:
    """Have OpenSSL say what is wrong with the first certificate in PEM text: in its words, which are Node's codes."""
    try:
        crypto.load_certificate(crypto.FILETYPE_PEM, data)
    except crypto.Error as exc:
        if not exc.args[0]:  # a block without content
            raise bad_certificate("cert") from exc
        library, _function, reason = exc.args[0][0]
        room = {"PEM routines": "PEM_", "asn1 encoding routines": "ASN1_"}.get(library, "")
        raise OptionError(
            f"`cert` begins with no certificate: {reason} (expected '-----BEGIN CERTIFICATE-----')",
            code=f"ERR_OSSL_{room}{reason.upper().replace(' ', '_')}",
        ) from exc


# Keys -------------------------------------------------------------------------------------------------------------


def _key_item(item: object, passphrase: str | bytes | None) -> PrivateKey | EncryptedKey:
    if isinstance(item, Mapping):
        own = item.get("passphrase")
        item, passphrase = _item_pem(item), passphrase if own is None else own
        passphrase_bytes(passphrase)
    key = item if isinstance(item, (PrivateKey, EncryptedKey)) else parsed(_keys, "key", item, _parse_key)
    if isinstance(key, TokenKey):
        with contextlib.suppress(_PassphraseNeeded):
            return _token_key(key.data, passphrase_bytes(passphrase))
    elif isinstance(key, EncryptedKey) and passphrase is not None:
        return key.unlock(passphrase)
    return key


def _item_pem(item: Mapping[str, object]) -> object:
    if item.keys() - {"pem", "passphrase"}:  # not quoted: a misplaced key or passphrase may be among them
        raise OptionTypeError("an item of `key` that is a mapping has `pem` and `passphrase`, nothing else")
    pem = item.get("pem")
    if not isinstance(pem, ITEM):
        raise wrong_type("key", pem)
    return pem


def _parse_key(data: bytes) -> PrivateKey | EncryptedKey:
    if (uri := _token_uri(data)) is not None:
        return TokenKey(uri, hashlib.sha256(uri).digest())
    try:
        return _private_key(data, None)
    except _PassphraseNeeded:
        return EncryptedKey(data, hashlib.sha256(data).digest())


class _PassphraseNeeded(Exception):
    pass


def _private_key(data: bytes, passphrase: bytes | None) -> PrivateKey:
    load = load_pem_private_key if b"-----BEGIN" in data else load_der_private_key
    try:
        key = load(data, passphrase)
    except TypeError as exc:  # how cryptography says that it wants a passphrase
        raise _PassphraseNeeded from exc
    except UnsupportedAlgorithm as exc:
        raise _unusable_key() from exc
    except ValueError as exc:
        if passphrase is None:
            raise _unusable_key() from exc
        raise OptionError("`passphrase` does not decrypt `key`", code="ERR_OSSL_BAD_DECRYPT") from exc
    if not isinstance(key, SigningKey):
        raise _unusable_key("ERR_SSL_UNKNOWN_CERTIFICATE_TYPE")
    return PrivateKey(key, _spki_digest(key.public_key()))


def _unusable_key(code: str = "ERR_OSSL_UNSUPPORTED") -> OptionError:
    return OptionError(
        "`key` is not a private key that TLS can use: expected PEM or DER of an RSA, EC, Ed25519, Ed448 or DSA key "
        "(to name a file, pass a pathlib.Path)",
        code=code,
    )


def _spki_digest(key: PublicKeyTypes) -> bytes:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _leaf_spki_digest(chain: CertificateChain) -> bytes:
    try:
        return _spki_digest(chain.leaf.public_key())
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise OptionError("`cert` holds a public key of an unknown kind", code="ERR_OSSL_UNSUPPORTED") from exc


# Keys in tokens ---------------------------------------------------------------------------------------------------

# pkcs11-provider puts SEQUENCE { VisibleString, UTF8String } into its PEM: what this is, and the URI (RFC 7512).
_TOKEN_PEM: Final = re.compile(rb"-----BEGIN PKCS#11 PROVIDER URI-----([^-]*)-----END PKCS#11 PROVIDER URI-----")
_DESCRIPTION: Final = b"PKCS#11 Provider URI v1.0"
_SCHEME: Final = b"pkcs11:"


def _token_uri(data: bytes) -> bytes | None:
    if data.lstrip().startswith(_SCHEME):
        return _of_private_key(data.strip())
    block = _TOKEN_PEM.search(data)
    if block is None:
        return None
    try:
        _, scheme, rest = base64.b64decode(b"".join(block[1].split()), validate=True).partition(_SCHEME)
    except binascii.Error:
        scheme = b""
    if not scheme:
        raise OptionError(
            "`key` is PEM of a PKCS#11 URI, and none is in it: is the text damaged?",
            code="ERR_OSSL_PEM_BAD_BASE64_DECODE",
        )
    return _of_private_key(scheme + rest)


def _of_private_key(uri: bytes) -> bytes:
    # pkcs11-provider 1.0 looks for the public key too, needs no PIN for that, and finds no private key afterwards.
    path, mark, query = uri.partition(b"?")
    if not re.search(rb"[:;]type=", path):
        path += b"type=private" if path == _SCHEME else b";type=private"
    return path + mark + query


def _token_pem(uri: bytes) -> bytes:
    der = _tlv(0x30, _tlv(0x1A, _DESCRIPTION) + _tlv(0x0C, uri))
    label = b"PKCS#11 PROVIDER URI-----\n"
    return b"-----BEGIN " + label + base64.encodebytes(der) + b"-----END " + label


def _tlv(tag: int, content: bytes) -> bytes:
    """Return a DER element (X.690 8.1): one byte of length below 128, else a byte that says how many follow."""
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag]) + (size if len(content) < 0x80 else bytes([0x80 | len(size)]) + size) + content


def _token_key(uri: bytes, pin: bytes) -> PrivateKey:
    """Find the key that `uri` names. Raises _PassphraseNeeded if the token wants a PIN that nobody gave."""
    key, asked = _find(uri)
    if key is None and asked and not re.search(rb"[?&]pin-(?:value|source)=", uri):
        if not pin:
            raise _PassphraseNeeded
        # In the URI it is tried once. As an answer to OpenSSL's question it was tried 25 times per search, which locks
        # a token for good (pkcs11-provider 1.3.0).
        value = b"pin-value=" + quote_from_bytes(pin, safe="").encode()
        key, _ = _find(uri + (b"&" if b"?" in uri else b"?") + value)
    if key is None:
        raise _not_in_token(asked)
    try:
        spki = crypto.dump_publickey(crypto.FILETYPE_ASN1, key)
    except crypto.Error as exc:
        raise OptionError(
            "`key` names a key in a PKCS#11 token that lacks its public half: put that into the token, too",
            code="ERR_OSSL_UNSUPPORTED",
        ) from exc
    return PrivateKey(key, hashlib.sha256(spki).digest())


def _find(uri: bytes) -> tuple[crypto.PKey | None, bool]:
    """Return the key, and whether OpenSSL asked for the PIN."""
    asked = False

    def no_answer(_writing: bool) -> bytes:
        nonlocal asked
        asked = True
        return b""

    try:
        # Without this callback OpenSSL would ask on the terminal, and wait.
        return crypto.load_privatekey(crypto.FILETYPE_PEM, _token_pem(uri), no_answer), asked
    except crypto.Error:
        return None, asked


def _not_in_token(asked: bool) -> OptionError:
    if asked:
        return OptionError(
            "`key` is in a PKCS#11 token that takes no such PIN (`passphrase`, or in the URI), or has no such key. "
            "Look before you try again: tokens lock after a few wrong PINs",
            code="ERR_OSSL_BAD_DECRYPT",
        )
    if os.environ.get("OPENSSL_CONF"):
        what = (
            "OpenSSL does not find it: check that OPENSSL_CONF was set before Python started and loads "
            "pkcs11-provider, that the token is there, and what the URI and the configured PIN say"
        )
    else:
        what = "no provider is loaded: have OPENSSL_CONF load pkcs11-provider before Python starts"
    return OptionError(
        f"`key` names a key in a PKCS#11 token, and {what} (docs/howto/pkcs11.md)", code="ERR_OSSL_UNSUPPORTED"
    )


# PKCS#12 ----------------------------------------------------------------------------------------------------------


def pfx_bundles(value: object, passphrase: str | bytes | None) -> tuple[Pfx | EncryptedPfx, ...]:
    """
    Parse option `pfx`. An item may be a mapping with `buf` and `passphrase`; its own passphrase wins.

    A bundle that needs a passphrase where none is known comes back as `EncryptedPfx`. Parsed items stay as they are.
    """
    passphrase_bytes(passphrase)
    items: Sequence[object] = value if isinstance(value, Sequence) and not isinstance(value, ITEM) else (value,)
    return tuple(_pfx_item(item, passphrase) for item in items)


def _pfx_item(item: object, passphrase: str | bytes | None) -> Pfx | EncryptedPfx:
    if isinstance(item, Pfx):
        return item
    if isinstance(item, Mapping):
        if item.keys() - {"buf", "passphrase"}:  # not quoted: a misplaced passphrase may be among them
            raise OptionTypeError("an item of `pfx` that is a mapping has `buf` and `passphrase`, nothing else")
        own = item.get("passphrase")
        item, passphrase = item.get("buf"), passphrase if own is None else own
        passphrase_bytes(passphrase)
    if not isinstance(item, EncryptedPfx):
        if not isinstance(item, ITEM):
            raise OptionError(
                f"`pfx` must be PKCS#12 bytes, a path object, a mapping with `buf`, or a sequence of these, not "
                f"{type(item).__name__}",
                code="ERR_CRYPTO_OPERATION_FAILED",
            )
        item = parsed(_sealed, "pfx", item, _sealed_pfx)
    if passphrase is None:
        try:
            return item.unlock(None)
        except OptionError:
            return item
    return item.unlock(passphrase)


_sealed: Final[Memo[EncryptedPfx]] = Memo()


def _sealed_pfx(data: bytes) -> EncryptedPfx:
    # PFX ::= SEQUENCE { version INTEGER {v3(3)}, ... } (RFC 7292 section 4), in DER or BER.
    if data[:1] != b"\x30" or b"\x02\x01\x03" not in data[2:10]:
        raise OptionError(
            "`pfx` is not PKCS#12: expected the bytes of a .pfx or .p12 file (to name a file, pass a pathlib.Path)",
            code="ERR_TLSAGENT_PFX",
        )
    return EncryptedPfx(data, hashlib.sha256(data).digest())


def _open_pfx(data: bytes, secret: bytes) -> Pfx:
    bundle = _load_pfx(data, secret)
    if not isinstance(bundle.key, SigningKey):
        raise OptionError(
            "`pfx` lacks a private key that TLS can use: a client certificate needs one",
            code="ERR_CRYPTO_OPERATION_FAILED",
        )
    if bundle.cert is None:
        raise OptionError("`pfx` lacks the certificate of its private key", code="ERR_TLSAGENT_PFX")
    leaf = bundle.cert.certificate
    extra = _in_chain_order(leaf, [other.certificate for other in bundle.additional_certs])
    ders = [one.public_bytes(Encoding.DER) for one in (leaf, *extra)]
    chain = CertificateChain(leaf, extra, hashlib.sha256(b"".join(ders)).digest())
    anchors = TrustAnchors(tuple(map(_anchor, ders[1:])), hashlib.sha256(b"".join(ders[1:])).digest())
    return Pfx(chain, PrivateKey(bundle.key, _spki_digest(bundle.key.public_key())), anchors)


def _load_pfx(data: bytes, secret: bytes) -> pkcs12.PKCS12KeyAndCertificates:
    problem = "`passphrase` does not open `pfx`" if secret else "`pfx` is encrypted: set `passphrase`"
    if b"\0" in secret:  # the library would panic, and show it
        raise OptionError(f"{problem}: it holds a NUL character", code="ERR_TLSAGENT_PFX")
    try:
        return pkcs12.load_pkcs12(data, secret or None)
    except ValueError as exc:
        # Some writers take "no passphrase" for the empty one.
        if not secret:
            try:
                return pkcs12.load_pkcs12(data, b"")
            except ValueError:
                pass
        raise OptionError(f"{problem}, or it is damaged", code="ERR_TLSAGENT_PFX") from exc
    except UnsupportedAlgorithm as exc:
        raise OptionError(
            "`pfx` uses an algorithm that is not supported: export it again with AES", code="ERR_TLSAGENT_PFX"
        ) from exc


def _in_chain_order(leaf: x509.Certificate, others: list[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Put issuers behind what they issued (RFC 5246 7.4.2); PKCS#12 files come in any order."""
    ordered: list[x509.Certificate] = []
    left, last = list(others), leaf
    while (issuer := next((one for one in left if one.subject == last.issuer), None)) is not None:
        left.remove(issuer)
        ordered.append(issuer)
        last = issuer
    return (*ordered, *left)
