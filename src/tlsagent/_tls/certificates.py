"""
The peer's certificate, as its DER says.

Decides how names and dates are read; who may trust them is decided elsewhere. The handshake needs only the alternative
names and the dates, so those come from a small strict DER reader (X.690, RFC 5280 section 4): it gives every byte of a
name as it stands (one character per byte, nothing cut at a NUL) and reads certificates that OpenSSL accepts and
cryptography refuses or warns about (high bytes in a DNS name, serial number zero). What it cannot read is an error,
never a shorter list.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from cryptography.x509 import Certificate, load_der_x509_certificate

from tlsagent._material import bad_certificate, certificate_ders
from tlsagent.errors import CertificateError, CertificateNameError, OptionTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Span: TypeAlias = "tuple[int, int, int]"  # tag, start and end of the contents


class PeerCertificate:
    """
    A certificate in DER. Equal if its bytes are equal; can be pickled.

    The constructor takes the bytes as they are, since the TLS library has parsed them already; `from_der` and
    `from_pem` check them. Everything is read when it is asked for; what cannot be read raises CertificateError.
    """

    __slots__ = ("_alt_names", "_fields", "_x509", "der")

    def __init__(self, der: bytes) -> None:
        self.der = der
        self._fields: _Fields | None = None
        self._alt_names: tuple[tuple[str, str], ...] | None = None
        self._x509: Certificate | None = None

    @classmethod
    def from_der(cls, data: bytes) -> PeerCertificate:
        """Check that `data` is one certificate and wrap it. Raises OptionError if it is not."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise OptionTypeError(f"a certificate in DER is bytes, not {type(data).__name__}")
        certificate = cls(bytes(data))
        try:
            _ = certificate.not_valid_before, certificate.subject, certificate.issuer
        except CertificateError as exc:
            raise bad_certificate("certificate") from exc
        return certificate

    @classmethod
    def from_pem(cls, data: bytes | str) -> PeerCertificate:
        """Return the first certificate in PEM text. Raises OptionError if there is none."""
        if not isinstance(data, (bytes, str)):
            raise OptionTypeError(f"a certificate in PEM is str or bytes, not {type(data).__name__}")
        text = data.encode("utf-8", "replace") if isinstance(data, str) else data
        return cls.from_der(certificate_ders("certificate", text)[0])

    @property
    def x509(self) -> Certificate:
        """The same certificate as cryptography's object, for everything not offered here; ValueError if it refuses."""
        if self._x509 is None:
            self._x509 = load_der_x509_certificate(self.der)
        return self._x509

    @property
    def subject(self) -> dict[str, str | list[str]]:
        """The subject by OpenSSL's short names, `{"CN": "a.test"}`; repeated attributes become a list."""
        return self._read(lambda der, fields: _name(der, fields.subject))

    @property
    def issuer(self) -> dict[str, str | list[str]]:
        """The issuer, like `subject`."""
        return self._read(lambda der, fields: _name(der, fields.issuer))

    @property
    def subject_alt_names(self) -> tuple[tuple[str, str], ...]:
        """
        The alternative names in order, as pairs of Node's kind and the value.

        Kinds are "DNS", "IP Address", "email", "URI", "DirName", "Registered ID", "othername", "X400Name" and
        "EdiPartyName"; addresses are in canonical form, characters stand for bytes. Empty if there are none. Raises
        CertificateNameError (ERR_TLS_CERT_ALTNAME_FORMAT) if they cannot be read.
        """
        if self._alt_names is None:
            try:
                self._alt_names = self._read(lambda der, fields: _alternative_names(der, fields.extensions))
            except CertificateError as exc:
                code = "ERR_TLS_CERT_ALTNAME_FORMAT"
                raise CertificateNameError(str(exc), code=code, phase="handshake") from exc
        return self._alt_names

    @property
    def fingerprint256(self) -> str:
        """SHA-256 of the DER as Node writes it, "AA:BB:..."."""
        return hashlib.sha256(self.der).digest().hex(":").upper()

    @property
    def public_key_digest(self) -> bytes:
        """SHA-256 of the DER of its public key (SubjectPublicKeyInfo), which pins are compared with (RFC 7469 2.4)."""
        return self._read(lambda der, fields: hashlib.sha256(der[fields.key[0] : fields.key[1]]).digest())

    @property
    def not_valid_before(self) -> datetime:
        """The first moment of validity, in UTC."""
        return self._read(lambda der, fields: _times(der, fields.validity))[0]

    @property
    def not_valid_after(self) -> datetime:
        """The last moment of validity, in UTC."""
        return self._read(lambda der, fields: _times(der, fields.validity))[1]

    def _read(self, read: Callable[[bytes, _Fields], T]) -> T:
        try:
            if self._fields is None:
                self._fields = _fields(self.der)
            return read(self.der, self._fields)
        except ValueError as exc:
            raise CertificateError(
                f"the certificate cannot be read ({exc}): the server needs a well-formed one", phase="handshake"
            ) from exc

    def __eq__(self, other: object) -> bool:
        return self.der == other.der if isinstance(other, PeerCertificate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"<PeerCertificate sha256 {self.fingerprint256}>"

    def __reduce__(self) -> tuple[type[PeerCertificate], tuple[bytes]]:
        return (PeerCertificate, (self.der,))


# DER (X.690) ------------------------------------------------------------------------------------------------------

_SEQUENCE: Final = 0x30
_SET: Final = 0x31
_OID: Final = 0x06
_OCTET_STRING: Final = 0x04
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18


class MalformedDER(ValueError):
    """The bytes are not the DER that was expected here."""


def _elements(data: bytes, start: int, end: int) -> list[Span]:
    """Split the contents of a constructed value; every byte belongs to an element."""
    found = []
    while start < end:
        found.append(_element(data, start, end))
        start = found[-1][2]
    return found


def _element(data: bytes, at: int, end: int) -> Span:
    if at + 2 > end:
        raise MalformedDER("a header is cut off")
    tag, length, start = data[at], data[at + 1], at + 2
    if tag & 0x1F == 0x1F:
        raise MalformedDER("a tag above 30")  # X.509 has none
    if length & 0x80:
        octets = length & 0x7F
        length = int.from_bytes(data[start : start + octets], "big")
        start += octets
        # X.690 10.1: definite form, fewest octets. Zero octets is the indefinite form of BER.
        if not 1 <= octets <= 4 or start > end or length < 0x80 or length >> 8 * (octets - 1) == 0:
            raise MalformedDER("a length is not in DER form")
    if start + length > end:
        raise MalformedDER("a value is cut off")
    return tag, start, start + length


def _expect(span: Span, tag: int) -> Span:
    if span[0] != tag:
        raise MalformedDER(f"tag 0x{span[0]:02x} where 0x{tag:02x} belongs")
    return span


def _inside(data: bytes, span: Span, tag: int) -> list[Span]:
    _expect(span, tag)
    return _elements(data, span[1], span[2])


def _only(data: bytes, start: int, end: int) -> Span:
    found = _element(data, start, end)
    if found[2] != end:
        raise MalformedDER("more than one value")
    return found


def _dotted(data: bytes, span: Span) -> str:
    arcs = [0]
    for octet in data[span[1] : span[2]]:
        arcs[-1] = arcs[-1] << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(0)
    top = min(arcs[0] // 40, 2)
    return ".".join(map(str, [top, arcs[0] - 40 * top, *arcs[1:-1]]))


# Certificate (RFC 5280 section 4.1) -------------------------------------------------------------------------------


# A server shows the same certificate on every connection: what was read of the last ones is read once.
_remembered = functools.lru_cache(maxsize=64)


class _Fields(NamedTuple):
    issuer: Span
    validity: Span
    subject: Span
    key: tuple[int, int]  # start and end, header included
    extensions: Span | None


@_remembered
def _fields(der: bytes) -> _Fields:
    parts = _inside(der, _only(der, 0, len(der)), _SEQUENCE)
    tbs = _inside(der, parts[0], _SEQUENCE) if len(parts) == 3 else []
    if tbs and tbs[0][0] == 0xA0:  # version, absent in version 1
        del tbs[0]
    if len(tbs) < 6:
        raise MalformedDER("fields are missing")
    _serial, _algorithm, issuer, validity, subject, key, *optional = tbs
    extensions = next((span for span in optional if span[0] == 0xA3), None)
    # Elements lie side by side: the header of one begins where the one before ends.
    return _Fields(issuer, validity, subject, (subject[2], key[2]), extensions)


@_remembered
def _times(data: bytes, validity: Span) -> tuple[datetime, datetime]:
    spans = _inside(data, validity, _SEQUENCE)
    if len(spans) != 2:
        raise MalformedDER("validity is not two times")
    return _time(data, spans[0]), _time(data, spans[1])


def _time(data: bytes, span: Span) -> datetime:
    """Read a time as RFC 5280 section 4.1.2.5 writes it: to the second, in UTC, ending in Z."""
    text = data[span[1] : span[2]].decode("latin-1")
    if span[0] == _UTC_TIME:
        text = ("19" if text[:1] >= "5" else "20") + text
    elif span[0] != _GENERALIZED_TIME:
        raise MalformedDER("not a time")
    digits = text[:-1]
    if len(text) != 15 or text[-1] != "Z" or not (digits.isascii() and digits.isdigit()):
        raise MalformedDER("not a time in UTC to the second")
    return datetime(
        int(text[:4]), int(text[4:6]), int(text[6:8]), int(text[8:10]), int(text[10:12]), int(text[12:14]),
        tzinfo=UTC,
    )  # fmt: skip


# Names ------------------------------------------------------------------------------------------------------------

# OpenSSL's short names (obj_mac.h), by encoded OID.
_SHORT_NAMES: Final = {
    **{
        bytes((0x55, 0x04, last)): name
        for last, name in {
            3: "CN", 4: "SN", 5: "serialNumber", 6: "C", 7: "L", 8: "ST", 9: "street", 10: "O", 11: "OU", 12: "title",
            13: "description", 15: "businessCategory", 17: "postalCode", 41: "name", 42: "GN", 43: "initials",
            44: "generationQualifier", 46: "dnQualifier", 65: "pseudonym", 97: "organizationIdentifier",
        }.items()
    },
    bytes.fromhex("2a864886f70d010901"): "emailAddress",
    bytes.fromhex("0992268993f22c640101"): "UID",
    bytes.fromhex("0992268993f22c640119"): "DC",
    bytes.fromhex("2b0601040182373c020101"): "jurisdictionL",
    bytes.fromhex("2b0601040182373c020102"): "jurisdictionST",
    bytes.fromhex("2b0601040182373c020103"): "jurisdictionC",
}  # fmt: skip

# UTF8String, BMPString, UniversalString; every other string type is taken byte for byte.
_ENCODINGS: Final = {0x0C: "utf-8", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}


def _attributes(data: bytes, name: Span) -> list[tuple[str, str]]:
    found = []
    for relative in _inside(data, name, _SEQUENCE):
        for attribute in _inside(data, relative, _SET):
            parts = _inside(data, attribute, _SEQUENCE)
            if len(parts) != 2:
                raise MalformedDER("an attribute is not a pair")
            oid, value = _expect(parts[0], _OID), parts[1]
            kind = _SHORT_NAMES.get(data[oid[1] : oid[2]]) or _dotted(data, oid)
            text = data[value[1] : value[2]].decode(_ENCODINGS.get(value[0], "latin-1"), "replace")
            found.append((kind, text))
    return found


def _name(data: bytes, name: Span) -> dict[str, str | list[str]]:
    grouped: dict[str, list[str]] = {}
    for kind, text in _attributes(data, name):
        grouped.setdefault(kind, []).append(text)
    return {kind: texts if len(texts) > 1 else texts[0] for kind, texts in grouped.items()}


# Alternative names (RFC 5280 section 4.2.1.6) ---------------------------------------------------------------------

_SUBJECT_ALT_NAME: Final = bytes((0x55, 0x1D, 0x11))
_UNREAD: Final = {0xA0: "othername", 0xA3: "X400Name", 0xA5: "EdiPartyName"}
_TEXT: Final = {0x81: "email", 0x82: "DNS", 0x86: "URI"}


@_remembered
def _alternative_names(data: bytes, extensions: Span | None) -> tuple[tuple[str, str], ...]:
    if extensions is None:
        return ()
    wrapped = _only(data, extensions[1], extensions[2])
    found = [_extension_value(data, span) for span in _inside(data, wrapped, _SEQUENCE)]
    values = [value for oid, value in found if oid == _SUBJECT_ALT_NAME]
    if len(values) > 1:
        raise MalformedDER("two lists of alternative names")  # RFC 5280 4.2: which one would the checks go by?
    return tuple(_general_name(data, name) for value in values for name in _only_sequence(data, value))


def _extension_value(data: bytes, extension: Span) -> tuple[bytes, Span]:
    parts = _inside(data, extension, _SEQUENCE)
    if len(parts) not in (2, 3):
        raise MalformedDER("an extension is not a pair")
    oid = _expect(parts[0], _OID)
    return data[oid[1] : oid[2]], _expect(parts[-1], _OCTET_STRING)


def _only_sequence(data: bytes, octets: Span) -> list[Span]:
    return _inside(data, _only(data, octets[1], octets[2]), _SEQUENCE)


def _general_name(data: bytes, span: Span) -> tuple[str, str]:
    tag, start, end = span
    if tag in _TEXT:
        return _TEXT[tag], data[start:end].decode("latin-1")
    if tag == 0x87:
        return "IP Address", _address(data[start:end])
    if tag == 0xA4:
        attributes = _attributes(data, _only(data, start, end))
        return "DirName", ", ".join(f"{kind}={text}" for kind, text in attributes)
    if tag == 0x88:
        return "Registered ID", _dotted(data, span)
    if tag in _UNREAD:
        return _UNREAD[tag], "<unsupported>"
    raise MalformedDER(f"an alternative name of tag 0x{tag:02x}")


def _address(packed: bytes) -> str:
    if len(packed) not in (4, 16):
        return f"<invalid length={len(packed)}>"  # as OpenSSL and Node say it; it matches no host
    return str(ipaddress.ip_address(packed))
