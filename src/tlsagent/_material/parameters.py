"""
What steers a handshake and is no secret: cipher suites, groups, signature algorithms, DH parameters, revocation lists.

Strings are OpenSSL's and are tried on a throw-away context, so that a typing error is refused when it is made. What is
parsed is memoised by content.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from tlsagent._material import binding
from tlsagent._material.items import ITEM, Item, Memo, items_of, parsed
from tlsagent.errors import OptionError, OptionTypeError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class CipherList:
    """Option `ciphers` split as Node does; None where nothing was said: the library's default for those versions."""

    tls12: str | None
    tls13: str | None


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
    if "\0" not in value:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        try:
            if tls13:
                context.set_tls13_ciphersuites(tls13.encode("utf-8", "replace"))
            if tls12:
                context.set_cipher_list(_WORD.sub(_unless_misspelt, tls12).encode("utf-8", "replace"))
        except SSL.Error as exc:
            code = "ERR_SSL_" + exc.args[0][-1][2].upper().replace(" ", "_")
        else:
            if value.isascii():
                return
    raise OptionError(
        f"`ciphers` {quoted(value)} is not usable: names are OpenSSL's and case-sensitive, see `openssl ciphers -v`",
        code=code,
    )


# OpenSSL 4 takes names in any case. Earlier versions do not know those, and ignore them beside one that they know.
_WORD: Final = re.compile("@?[A-Za-z0-9_.-]+")
_MIXED_CASE: Final = frozenset(
    {
        "kRSA", "kEDH", "kDHE", "kEECDH", "kECDHE", "kPSK", "kRSAPSK", "kECDHEPSK", "kDHEPSK", "kSRP", "kGOST",
        "kGOST18", "aRSA", "aDSS", "aNULL", "aECDSA", "aPSK", "aGOST01", "aGOST12", "aGOST", "aSRP", "eNULL", "SSLv3",
        "TLSv1", "TLSv1.0", "TLSv1.2",
    }
)  # fmt: skip
_OTHER_CASE: Final = frozenset(map(str.upper, _MIXED_CASE))


def _unless_misspelt(match: re.Match[str]) -> str:
    """Return a word of a cipher list, or what no OpenSSL knows in its place."""
    word = match[0].lstrip("-")
    if word in _MIXED_CASE or (word == word.upper() and word not in _OTHER_CASE):
        return match[0]
    return "@?" if word.startswith("@") else "UNKNOWN"


# Groups and signature algorithms ----------------------------------------------------------------------------------


def group_list(value: str) -> str | None:
    """
    Check option `ecdh_curve`: "auto" or names of groups, best first, with colons between; None for the library's own.

    Unlike ciphers, every name must be known; `?name` may be unknown.
    """
    if not isinstance(value, str):
        raise OptionTypeError(
            f"`ecdh_curve` must be a str such as 'X25519:P-256', or 'auto', not {type(value).__name__}"
        )
    if value in ("", "auto"):
        return None
    _require_groups(value)
    return value


@functools.lru_cache(maxsize=64)
def _require_groups(value: str) -> None:
    if not _plain(value) or not binding.set_groups(SSL.Context(SSL.TLS_METHOD), value):
        raise OptionError(
            f"`ecdh_curve` {quoted(value)} is not usable: expected names of groups with colons between, for example "
            "'X25519:P-256'",
            code="ERR_CRYPTO_OPERATION_FAILED",
        )


def signature_algorithms(value: str) -> str:
    """Check option `sigalgs`: names such as "ECDSA+SHA256" or "rsa_pss_rsae_sha256" with colons between."""
    if not isinstance(value, str):
        raise OptionTypeError(f"`sigalgs` must be a str such as 'ECDSA+SHA256', not {type(value).__name__}")
    if not value:
        raise OptionTypeError(
            "`sigalgs` must not be empty; leave it out for the library's own", code="ERR_INVALID_ARG_VALUE"
        )
    _require_algorithms(value)
    return value


@functools.lru_cache(maxsize=64)
def _require_algorithms(value: str) -> None:
    if not _plain(value) or not binding.set_signature_algorithms(SSL.Context(SSL.TLS_METHOD), value):
        raise OptionError(
            f"`sigalgs` {quoted(value)} is not usable: expected names of signature algorithms with colons between, for "
            "example 'ECDSA+SHA256:rsa_pss_rsae_sha256'",
            code="ERR_TLSAGENT_SIGALGS",
        )


def _plain(value: str) -> bool:
    # OpenSSL reads up to a NUL and would ignore what stands behind it.
    return value.isascii() and "\0" not in value


# DH parameters ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class DHParameters:
    """Option `dhparam`: the group of a server for DHE key exchange, PEM."""

    pem: bytes = field(compare=False)
    bits: int
    digest: bytes

    def __repr__(self) -> str:
        return f"<DHParameters {self.bits} bits, sha256 {self.digest.hex()}>"


_groups: Final[Memo[DHParameters]] = Memo()
# ffdhe2048 (RFC 7919 appendix A.1): the binding cannot switch on OpenSSL's own choice.
_AUTO_DH: Final = DHParameters(
    b"""-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
""",
    2048,
    b"auto",
)
_LEAST_DH_BITS: Final = 1024
_PEM_DH: Final = re.compile(rb"-----BEGIN (X9.42 )?DH PARAMETERS-----([^-]*)-----END")


def dh_parameters(value: Item) -> DHParameters:
    """Parse option `dhparam`: "auto", PEM or DER. A sequence is refused, as in Node."""
    if value == "auto":
        return _AUTO_DH
    if not isinstance(value, ITEM):
        raise OptionTypeError(
            f"`dhparam` must be 'auto', PEM text, PEM or DER bytes, or a path object, not {type(value).__name__}"
        )
    return parsed(_groups, "dhparam", value, _parse_dh)


def _parse_dh(data: bytes) -> DHParameters:
    block = _PEM_DH.search(data)
    label = (block[1] or b"" if block else b"") + b"DH PARAMETERS"
    try:
        der = base64.b64decode(b"".join(block[2].split()), validate=True) if block else data
    except ValueError:
        der = b""
    bits = _prime_bits(der)
    # Written anew: what stands around the block is not for OpenSSL to read.
    pem = b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label, base64.encodebytes(der), label)
    if not bits or not binding.is_dh_group(pem):
        raise _refused_dh("holds no DH parameters: expected '-----BEGIN DH PARAMETERS-----' or DER bytes")
    if bits < _LEAST_DH_BITS:
        raise OptionTypeError(
            f"`dhparam` has {bits} bits: {_LEAST_DH_BITS} are the least, 2048 and more are sound",
            code="ERR_INVALID_ARG_VALUE",
        )
    return DHParameters(pem, bits, hashlib.sha256(der).digest())


def _prime_bits(der: bytes) -> int:
    """Return the size of the first number of a SEQUENCE, which is the prime (PKCS #3); 0 if there is none."""
    if der[:1] != b"\x30" or len(der) < 8:
        return 0
    at = 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)
    if der[at : at + 1] != b"\x02" or at + 2 > len(der):
        return 0
    size, start = der[at + 1], at + 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[at + 2 : start], "big")
    return int.from_bytes(der[start : start + size], "big").bit_length()


def _refused_dh(reason: str) -> OptionError:
    return OptionError(f"`dhparam` {reason}", code="ERR_CRYPTO_OPERATION_FAILED")


# Revocation lists -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class RevocationLists:
    """Option `crl`. Even an empty one switches the check on: then there is a list for nobody, and nobody passes."""

    lists: tuple[x509.CertificateRevocationList, ...] = field(compare=False)
    digest: bytes

    def __repr__(self) -> str:
        return f"<RevocationLists {len(self.lists)}, sha256 {self.digest.hex()}>"


_crls: Final[Memo[tuple[x509.CertificateRevocationList, ...]]] = Memo()
_PEM_CRL: Final = re.compile(rb"-----BEGIN X509 CRL-----[^-]*-----END X509 CRL-----")


def revocation_lists(value: Item | Sequence[Item]) -> RevocationLists:
    """Parse option `crl`: PEM (several per item) or DER."""
    lists = tuple(crl for item in items_of("crl", value) for crl in parsed(_crls, "crl", item, _parse_crls))
    ders = b"".join(crl.public_bytes(Encoding.DER) for crl in lists)
    return RevocationLists(lists, hashlib.sha256(ders).digest())


def _parse_crls(data: bytes) -> tuple[x509.CertificateRevocationList, ...]:
    blocks = _PEM_CRL.findall(data)
    try:
        if b"-----BEGIN" not in data:
            return (x509.load_der_x509_crl(data),)
        if len(blocks) != data.count(b"-----BEGIN X509 CRL-----") or not blocks:
            raise ValueError("no list, or half of one")
        return tuple(x509.load_pem_x509_crl(block) for block in blocks)
    except ValueError as exc:
        raise OptionError(
            "`crl` holds no certificate revocation list: expected '-----BEGIN X509 CRL-----' or DER bytes "
            "(to name a file, pass a pathlib.Path)",
            code="ERR_CRYPTO_OPERATION_FAILED",
        ) from exc
