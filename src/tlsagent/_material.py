"""
Key material and cipher strings, parsed once into immutable values.

This is the lowest room that knows cryptography. It decides what counts as a usable `ca`, `cert`, `key`, `passphrase`
and `ciphers`, and refuses everything else with Node's code before a socket opens; what a TLS context makes of the
values is decided in `_tls.context`. PEM is RFC 7468 (several certificates per item, text between them is skipped), DER
is one certificate or key per item. Stricter than Node: junk among the roots is an error, not an empty trust store.

Values compare and hash by digest and print nothing but digests, so they may stand in pool keys and logs. Parsing is
memoised for the process by content; a file is read again when its path, inode, times or size change.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import functools
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)
from OpenSSL import SSL, crypto

from tlsagent.errors import OptionError, OptionTypeError, quoted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

T = TypeVar("T")

Item: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str]"
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

    key: SigningKey = field(compare=False)
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
        secret = _passphrase(passphrase)
        if not secret:
            raise OptionError("`key` is encrypted: set `passphrase`", code="ERR_OSSL_BAD_DECRYPT")
        # The memo must not hold the passphrase itself. The digest in front has a fixed length: no two pairs collide.
        name = hashlib.sha256(self.digest + secret).digest()
        return _unlocked.get(name, lambda: _private_key(self.data, secret))


@dataclass(frozen=True, slots=True)
class CipherList:
    """Option `ciphers` split as Node does; None where nothing was said: the library's default for those versions."""

    tls12: str | None
    tls13: str | None


class _Memo(Generic[T]):
    """
    What was parsed from which content, the least recently used forgotten first.

    Names are digests and file stamps, never content: a memo must not keep a secret alive. Two threads may parse the
    same content at once, then the later result stays. Every step is atomic, so there is no lock.
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, name: Hashable, make: Callable[[], T]) -> T:
        """Return what is known under `name`, else make it."""
        value = self._values.get(name)
        if value is None:
            value = self._values[name] = make()
            if len(self._values) > self._size:
                self._values.popitem(last=False)
        else:
            with contextlib.suppress(KeyError):  # another thread may just have dropped it
                self._values.move_to_end(name)
        return value


_anchors: Final[_Memo[tuple[crypto.X509, ...]]] = _Memo()
_chains: Final[_Memo[CertificateChain]] = _Memo()
_keys: Final[_Memo[PrivateKey | EncryptedKey]] = _Memo()
_unlocked: Final[_Memo[PrivateKey]] = _Memo()


def trust_anchors(value: Item | Sequence[Item] | TrustAnchors) -> TrustAnchors:
    """Parse option `ca`. It replaces the default roots; an empty sequence means no roots."""
    if isinstance(value, TrustAnchors):
        return value
    certificates = tuple(
        anchor for item in _items("ca", value) for anchor in _parsed(_anchors, "ca", item, _parse_anchors)
    )
    ders = b"".join(crypto.dump_certificate(crypto.FILETYPE_ASN1, one) for one in certificates)
    return TrustAnchors(certificates, hashlib.sha256(ders).digest())


def certificate_chains(value: Item | Sequence[Item | CertificateChain]) -> tuple[CertificateChain, ...]:
    """Parse option `cert`, one chain per item: the leaf first, then its intermediates. Parsed items stay so."""
    return tuple(
        item if isinstance(item, CertificateChain) else _parsed(_chains, "cert", item, _parse_chain)
        for item in _items("cert", value, CertificateChain)
    )


def private_keys(
    value: Item | Sequence[Item | Mapping[str, object] | PrivateKey | EncryptedKey], passphrase: str | bytes | None
) -> tuple[PrivateKey | EncryptedKey, ...]:
    """
    Parse option `key`. An item may be a mapping with `pem` and `passphrase`; its own passphrase wins.

    A passphrase that is not needed is ignored, as in Node. A key that needs one where none is known comes back as
    `EncryptedKey`. Parsed items stay as they are, or are unlocked.
    """
    _passphrase(passphrase)
    return tuple(_key_item(item, passphrase) for item in _items("key", value, Mapping, PrivateKey, EncryptedKey))


def check_key_pairs(chains: Sequence[CertificateChain], keys: Sequence[PrivateKey]) -> None:
    """
    Refuse a key that belongs to none of the certificates (ERR_OSSL_X509_KEY_VALUES_MISMATCH).

    Certificates without a key and keys without any certificate are fine, as in Node: they are never sent.
    """
    owned = {_leaf_spki_digest(chain) for chain in chains}
    if owned and any(key.spki_digest not in owned for key in keys):
        raise OptionError(
            "`key` does not belong to any certificate in `cert`: give the key that each certificate was issued for",
            code="ERR_OSSL_X509_KEY_VALUES_MISMATCH",
        )


def cipher_list(value: str) -> CipherList:
    """
    Split an OpenSSL cipher list: names that begin with `TLS_` go to TLS 1.3, the rest to the versions before.

    The empty string means the defaults, as in Node. The result was tried on a throw-away context; OpenSSL ignores names
    it does not know as long as one is left.
    """
    if not isinstance(value, str):
        raise OptionTypeError(f"`ciphers` must be a str such as 'HIGH:!aNULL', not {type(value).__name__}")
    return _cipher_list(value)


@functools.lru_cache(maxsize=64)
def _cipher_list(value: str) -> CipherList:
    if not value:
        return CipherList(None, None)
    parts = [part for part in value.split(":") if part]
    if not parts:
        # Node's ERR_INVALID_ARG_VALUE is a TypeError.
        raise OptionTypeError(f"`ciphers` {quoted(value)} names no cipher", code="ERR_INVALID_ARG_VALUE")
    tls13 = ":".join(part for part in parts if part.startswith(("TLS_", "!TLS_")))
    tls12 = ":".join(part for part in parts if not part.startswith(("TLS_", "!TLS_")))
    _try_ciphers(value, tls12, tls13)
    return CipherList(tls12 or None, tls13 or None)


def _try_ciphers(value: str, tls12: str, tls13: str) -> None:
    code = "ERR_SSL_NO_CIPHER_MATCH"
    # OpenSSL reads up to a NUL and would ignore what stands behind it.
    if value.isascii() and "\0" not in value:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        try:
            if tls13:
                context.set_tls13_ciphersuites(tls13.encode())
            if tls12:
                context.set_cipher_list(tls12.encode())
        except SSL.Error as exc:
            code = "ERR_SSL_" + exc.args[0][-1][2].upper().replace(" ", "_")
        else:
            return
    raise OptionError(
        f"`ciphers` {quoted(value)} is not usable: names are OpenSSL's and case-sensitive, see `openssl ciphers -v`",
        code=code,
    )


# What may stand in an option --------------------------------------------------------------------------------------


_ITEM: Final = (bytes, bytearray, memoryview, str, os.PathLike)


def _items(option: str, value: object, *more: type) -> Sequence[object]:
    if isinstance(value, _ITEM):
        return (value,)
    if not isinstance(value, Sequence):
        raise _wrong_type(option, value)
    for item in value:
        if not isinstance(item, (*_ITEM, *more)):
            raise _wrong_type(option, item)
    return value


def _wrong_type(option: str, value: object) -> OptionTypeError:
    return OptionTypeError(
        f"`{option}` must be PEM text, PEM or DER bytes, a path object, or a sequence of these, not {type(value).__name__}"
    )


def _passphrase(value: object) -> bytes:
    if value is None:
        return b""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise OptionTypeError(f"`passphrase` must be a str or bytes, not {type(value).__name__}")


def _parsed(memo: _Memo[T], option: str, item: object, parse: Callable[[bytes], T]) -> T:
    if isinstance(item, os.PathLike):
        path = os.fspath(item)
        return memo.get(_stamp(option, path), lambda: _parsed(memo, option, _read(option, path), parse))
    # `_items` let nothing but text and bytes through.
    data = item.encode("utf-8", "replace") if isinstance(item, str) else bytes(cast("bytes", item))
    return memo.get(hashlib.sha256(data).digest(), lambda: parse(data))


def _stamp(option: str, path: str) -> tuple[object, ...]:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as exc:
        raise _unreadable(option, path, exc) from exc
    # Inode and change time besides size and modification time: a key rotated by rename often keeps both.
    return (path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def _read(option: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        raise _unreadable(option, path, exc) from exc


def _unreadable(option: str, path: str, exc: Exception) -> OptionError:
    reason = exc.strerror if isinstance(exc, OSError) else str(exc)
    code = errno.errorcode.get(exc.errno or 0) if isinstance(exc, OSError) else None
    return OptionError(f"`{option}`: cannot read the file {quoted(os.fsencode(path))}: {reason}", code=code)


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
    ders = certificate_ders("cert", data)
    try:
        leaf, *extra = [x509.load_der_x509_certificate(der) for der in ders]
    except (ValueError, x509.InvalidVersion) as exc:
        raise bad_certificate("cert") from exc
    return CertificateChain(leaf, tuple(extra), hashlib.sha256(b"".join(ders)).digest())


# Keys -------------------------------------------------------------------------------------------------------------


def _key_item(item: object, passphrase: str | bytes | None) -> PrivateKey | EncryptedKey:
    if isinstance(item, Mapping):
        own = item.get("passphrase")
        item, passphrase = _item_pem(item), passphrase if own is None else own
        _passphrase(passphrase)
    key = item if isinstance(item, (PrivateKey, EncryptedKey)) else _parsed(_keys, "key", item, _parse_key)
    if isinstance(key, EncryptedKey) and passphrase is not None:
        return key.unlock(passphrase)
    return key


def _item_pem(item: Mapping[str, object]) -> object:
    if item.keys() - {"pem", "passphrase"}:  # not quoted: a misplaced key or passphrase may be among them
        raise OptionTypeError("an item of `key` that is a mapping has `pem` and `passphrase`, nothing else")
    pem = item.get("pem")
    if not isinstance(pem, _ITEM):
        raise _wrong_type("key", pem)
    return pem


def _parse_key(data: bytes) -> PrivateKey | EncryptedKey:
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
        raise _unusable_key()
    return PrivateKey(key, _spki_digest(key.public_key()))


def _unusable_key() -> OptionError:
    return OptionError(
        "`key` is not a private key that TLS can use: expected PEM or DER of an RSA, EC, Ed25519, Ed448 or DSA key "
        "(to name a file, pass a pathlib.Path)",
        code="ERR_OSSL_UNSUPPORTED",
    )


def _spki_digest(key: PublicKeyTypes) -> bytes:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _leaf_spki_digest(chain: CertificateChain) -> bytes:
    try:
        return _spki_digest(chain.leaf.public_key())
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise OptionError("`cert` holds a public key of an unknown kind", code="ERR_OSSL_UNSUPPORTED") from exc
