"""
Is this certificate for that name, and what does OpenSSL's verdict mean?

The name check is RFC 9525 with RFC 6125's caution about wildcards: only subject alternative names count, never the
common name; a wildcard is the whole left-most label and has two labels behind it at least; addresses match addresses
only. That is stricter than Node, whose own algorithm is another room's matter. Chain building, dates and revocation are
OpenSSL's; here its numbers get Node's names and a message that says what to do.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

from tlsagent._option_rules import a_labels
from tlsagent.errors import (
    CertificateError,
    CertificateNameError,
    CertificateRevoked,
    OptionTypeError,
    quoted,
)

if TYPE_CHECKING:
    from tlsagent._tls.certificates import PeerCertificate

# Name check -------------------------------------------------------------------------------------------------------

# A-labels and underscore; no empty label, and not what URL parsers take for an address: a number at the end.
_HOST_NAME: Final = re.compile(r"(?:[a-z0-9_-]+\.)*(?!(?:[0-9]+|0x[0-9a-f]*)\Z)[a-z0-9_-]+")
_MAX_NAMES = 8
_MAX_NAME = 80


def check_server_identity(hostname: str, certificate: PeerCertificate) -> None:
    """
    Check that `certificate` was issued for `hostname` (RFC 9525), a DNS name or an IP address.

    A name with letters beyond ASCII is compared in its A-label form (punycode); one trailing dot and the zone of an
    IPv6 address are left out of account.

    Raises:
        CertificateNameError: It was not (ERR_TLS_CERT_ALTNAME_INVALID), or its names cannot be read
            (ERR_TLS_CERT_ALTNAME_FORMAT).
    """
    if not isinstance(hostname, str):
        raise OptionTypeError(f"the host name to check must be a str, not {type(hostname).__name__}")
    names = certificate.subject_alt_names
    if (address := _address(hostname)) is not None:
        if ("IP Address", address) not in names:
            raise _mismatch(hostname, names, "IP Address", "an IP address")
    elif (name := _host_name(hostname)) is None:
        raise _refused(f"{quoted(hostname)} is not a host name that a certificate could be issued for")
    else:
        parent = name.partition(".")[2]
        # RFC 9525 6.3: the wildcard is the complete left-most label. Ours: not on '*.com', nor on '*'.
        wanted = (name, "*." + parent) if "." in parent else (name,)
        if not any(kind == "DNS" and value.lower().removesuffix(".") in wanted for kind, value in names):
            raise _mismatch(hostname, names, "DNS", "a DNS name")


def _address(hostname: str) -> str | None:
    """Return the canonical text of an IP address, None for anything else."""
    text = hostname.removesuffix(".")
    if ":" not in text and not text[-1:].isdigit():
        return None  # most hosts: spares an exception per handshake
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # RFC 9525 4.1: an iPAddress has no zone. What stands in the zone must not hide in a message or a log either.
    return str(ipaddress.ip_address(address.packed)) if hostname.isprintable() else None


def _host_name(hostname: str) -> str | None:
    """Return the name in lower-case A-labels without its trailing dot, None if it is not a DNS host name."""
    ascii_name = hostname if hostname.isascii() else a_labels(hostname)
    if ascii_name is None:
        return None
    name = ascii_name.lower().removesuffix(".")
    return name if _HOST_NAME.fullmatch(name) else None


def _mismatch(hostname: str, names: tuple[tuple[str, str], ...], kind: str, wanted: str) -> CertificateNameError:
    if not any(found == kind for found, _ in names):
        reason = f"it does not name {wanted} at all (RFC 9525: the common name does not count)"
    else:
        shown = ", ".join(quoted(f"{found}:{value[:_MAX_NAME]}") for found, value in names[:_MAX_NAMES])
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        reason = f"it names {shown}{more}"
    return _refused(
        f"the server's certificate is not for {quoted(hostname)}: {reason}; "
        "check the host, set `servername` to a name it carries, or have it issued for this host"
    )


def _refused(message: str) -> CertificateNameError:
    return CertificateNameError(message, phase="handshake")


# Verdicts of OpenSSL ----------------------------------------------------------------------------------------------

# X509_V_ERR_* (x509_vfy.h) that Node names, and what they say. The numbers are part of OpenSSL's API.
_NAMED: Final = {
    2: ("UNABLE_TO_GET_ISSUER_CERT", "the server sent no certificate, or an issuer is missing"),
    3: ("UNABLE_TO_GET_CRL", "there is no revocation list for one of the issuers"),
    4: ("UNABLE_TO_DECRYPT_CERT_SIGNATURE", "a signature cannot be decoded"),
    5: ("UNABLE_TO_DECRYPT_CRL_SIGNATURE", "the signature of a revocation list cannot be decoded"),
    6: ("UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY", "the key of an issuer cannot be decoded"),
    7: ("CERT_SIGNATURE_FAILURE", "a signature is wrong"),
    8: ("CRL_SIGNATURE_FAILURE", "the signature of a revocation list is wrong"),
    9: ("CERT_NOT_YET_VALID", "a certificate is not valid yet"),
    10: ("CERT_HAS_EXPIRED", "a certificate has expired"),
    11: ("CRL_NOT_YET_VALID", "a revocation list is not valid yet"),
    12: ("CRL_HAS_EXPIRED", "a revocation list has expired"),
    13: ("ERROR_IN_CERT_NOT_BEFORE_FIELD", "the start of validity is malformed"),
    14: ("ERROR_IN_CERT_NOT_AFTER_FIELD", "the end of validity is malformed"),
    15: ("ERROR_IN_CRL_LAST_UPDATE_FIELD", "the date of a revocation list is malformed"),
    16: ("ERROR_IN_CRL_NEXT_UPDATE_FIELD", "the next date of a revocation list is malformed"),
    17: ("OUT_OF_MEM", "there was not enough memory"),
    18: ("DEPTH_ZERO_SELF_SIGNED_CERT", "it is self-signed and not among the trusted ones"),
    19: ("SELF_SIGNED_CERT_IN_CHAIN", "its chain ends in a root that is not trusted"),
    20: ("UNABLE_TO_GET_ISSUER_CERT_LOCALLY", "the issuer of a certificate is not among the trusted ones"),
    21: ("UNABLE_TO_VERIFY_LEAF_SIGNATURE", "its issuer was neither sent nor is it trusted"),
    22: ("CERT_CHAIN_TOO_LONG", "its chain is too long"),
    23: ("CERT_REVOKED", "a certificate was revoked"),
    25: ("PATH_LENGTH_EXCEEDED", "an issuer stands above more levels than it may"),
    26: ("INVALID_PURPOSE", "it was not issued for TLS servers"),
    27: ("CERT_UNTRUSTED", "the root is not trusted for this purpose"),
    28: ("CERT_REJECTED", "the root rejects this purpose"),
    62: ("HOSTNAME_MISMATCH", "it is not for this host"),
    79: ("INVALID_CA", "an issuer is not a certificate authority"),
}
# Node calls all others UNSPECIFIED. These happen in practice; without the text nobody would find the cause.
_UNNAMED: Final = {
    32: "an issuer may not sign certificates (key usage)",
    34: "a critical extension is not understood",
    41: "an extension is malformed",
    47: "a name lies outside what an issuer may certify (name constraints)",
    48: "a name is excluded by an issuer (name constraints)",
    66: "its key is too short",
    67: "the key of an issuer is too short",
    68: "a signature uses a digest that is too weak",
}
_TEXTS: Final = dict(_NAMED.values()) | {"ERR_TLS_CERT_ALTNAME_INVALID": "it is not for this host"}
_ADD_CA: Final = "pass the root (or the certificate itself, if self-signed) as `ca`"
_HINTS: Final = {
    "UNABLE_TO_GET_ISSUER_CERT": "pass the root as `ca`; an intermediate alone needs allow_partial_trust_chain",
    "DEPTH_ZERO_SELF_SIGNED_CERT": _ADD_CA,
    "SELF_SIGNED_CERT_IN_CHAIN": _ADD_CA,
    "UNABLE_TO_GET_ISSUER_CERT_LOCALLY": f"{_ADD_CA}; if a public CA issued it, the server has to send the whole chain",
    "UNABLE_TO_VERIFY_LEAF_SIGNATURE": f"{_ADD_CA}; if a public CA issued it, the server has to send the whole chain",
    "CERT_NOT_YET_VALID": "check the clock of this machine, then the server's certificate",
    "CERT_HAS_EXPIRED": "check the clock of this machine; else the server needs a new certificate",
    "UNABLE_TO_GET_CRL": "`crl` must hold a list for every issuer of the chain",
    "CRL_HAS_EXPIRED": "fetch new lists for `crl`",
    "CRL_NOT_YET_VALID": "check the clock of this machine, then `crl`",
}


def verify_error_name(number: int) -> str:
    """Return Node's name of an X509_V_ERR number; UNSPECIFIED for those that Node does not name."""
    return _NAMED[number][0] if number in _NAMED else "UNSPECIFIED"


def certificate_error(code: str, hostname: str, *, number: int = 0) -> CertificateError:
    """
    Return the error for a verdict.

    Args:
        code: Node's name, as `verify_error_name` gives it.
        hostname: The name that was to be verified.
        number: OpenSSL's number, which tells apart what Node calls UNSPECIFIED.
    """
    text = _TEXTS.get(code) or _UNNAMED.get(number) or f"OpenSSL gave reason number {number}"
    message = f"the certificate of {quoted(hostname)} was refused: {text} ({code})"
    if hint := _HINTS.get(code):
        message += f"; {hint}"
    return _CLASSES.get(code, CertificateError)(message, code=code, phase="handshake")


_CLASSES: Final[dict[str, type[CertificateError]]] = {
    "CERT_REVOKED": CertificateRevoked,
    "HOSTNAME_MISMATCH": CertificateNameError,
    "ERR_TLS_CERT_ALTNAME_INVALID": CertificateNameError,
}
