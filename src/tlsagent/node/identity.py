"""
Node 26's `tls.checkServerIdentity`, to the letter: also what RFC 9525 would refuse.

Alternative names are read from Node's text form, the common name counts where no DNS name stands, wildcards may be a
part of the left-most label, and the host is read as a URL would (`domains`). The library's own default is stricter:
`tlsagent.check_server_identity`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tlsagent._tls.certificates import PeerCertificate
from tlsagent.errors import CertificateNameError, quoted
from tlsagent.node.domains import canonical_address, domain_to_ascii, ipv6_of, is_address
from tlsagent.node.values import UNDEFINED, is_array, is_nullish, is_truthy, to_text

Subject = Mapping[str, Any]

# A JSON string (RFC 8259, 7), which is how Node quotes a name with odd characters.
_JSON_STRING: Final = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_NOT_PRINTABLE: Final = re.compile("[^\x21-\x7f]")
# What makes Node write a name as a JSON string, so that it cannot be mistaken for two.
_ODD: Final = re.compile("[^\x20-\x7e]|[\",\\\\']")
_ODD_IN_UTF8: Final = re.compile("[\x00-\x1f\x7f]|[\",\\\\']")
_UPPER: Final = re.compile("[A-Z]+")
_TEXT_KINDS: Final = frozenset({"DNS", "email", "URI", "DirName"})


def check_server_identity(hostname: object, cert: Mapping[str, Any] | PeerCertificate) -> None:
    """
    Check that `cert` was issued for `hostname` as Node 26 does.

    Args:
        hostname: A host name or an IP address.
        cert: A `PeerCertificate`, or Node's object: `{"subject": {"CN": ...}, "subjectaltname": "DNS:a.test, ..."}`.

    Raises:
        CertificateNameError: It was not (ERR_TLS_CERT_ALTNAME_INVALID; the error has `reason`, `host` and `cert`), or
            its names are malformed (ERR_TLS_CERT_ALTNAME_FORMAT).
    """
    subject, alt_names = _parts(cert)
    names = _split(alt_names) if alt_names else []
    dns_names = [name.removeprefix("DNS:") for name in names if name.startswith("DNS:")]
    addresses = [canonical_address(name[11:]) for name in names if name.startswith("IP Address:")]
    said = to_text(hostname)
    host, name_in_url = _without_dot(said), _without_dot(domain_to_ascii(said))
    common_name = subject.get("CN", UNDEFINED) if isinstance(subject, Mapping) else UNDEFINED
    if is_address(host):
        if canonical_address(host) not in addresses:
            shown = ", ".join(found or "" for found in addresses)
            raise _mismatch(f"IP: {host} is not in the cert's list: {shown}", host, cert)
    elif dns_names:
        if not _any_matches(name_in_url, dns_names):
            raise _mismatch(f"Host: {host}. is not in the cert's altnames: {alt_names}", host, cert)
    elif is_truthy(common_name):
        if not _any_matches(name_in_url, common_name if is_array(common_name) else [common_name]):
            raise _mismatch(f"Host: {host}. is not cert's CN: {to_text(common_name)}", host, cert)
    else:
        raise _mismatch("Cert does not contain a DNS name", host, cert)


def _parts(cert: Mapping[str, Any] | PeerCertificate) -> tuple[Subject | None, str]:
    if isinstance(cert, PeerCertificate):
        return cert.subject, subject_alt_name_text(cert)
    alt_names = cert.get("subjectaltname")
    return cert.get("subject"), "" if is_nullish(alt_names) else to_text(alt_names)


def _mismatch(reason: str, host: str, cert: object) -> CertificateNameError:
    error: Any = CertificateNameError(f"Hostname/IP does not match certificate's altnames: {reason}", phase="handshake")
    error.reason, error.host, error.cert = reason, host, cert
    return error  # type: ignore[no-any-return]


def subject_alt_name_text(certificate: PeerCertificate) -> str:
    """Return the alternative names of a certificate as Node writes them: "DNS:a.test, IP Address:127.0.0.1"."""
    return ", ".join(f"{kind}:{_quote(kind, value)}" for kind, value in certificate.subject_alt_names)


def _quote(kind: str, value: str) -> str:
    if kind == "IP Address":
        return _spelled_out(value)
    odd = _ODD_IN_UTF8 if kind == "DirName" else _ODD
    if kind not in _TEXT_KINDS or not odd.search(value):
        return value
    escaped = odd.sub(lambda match: _escape(match[0]), value)
    return f'"{escaped}"'


def _escape(char: str) -> str:
    return char if char == "'" else "\\" + char if char in '\\"' else f"\\u{ord(char):04x}"


def _spelled_out(address: str) -> str:
    """Return an IPv6 address with all its groups, as OpenSSL writes it; others as they are."""
    number = ipv6_of(address)
    if number is None:
        return address
    return ":".join(f"{number >> shift & 0xFFFF:X}" for shift in range(112, -1, -16))


# SAN text ---------------------------------------------------------------------------------------------------------


def _split(alt_names: str) -> list[str]:
    if '"' not in alt_names:
        return alt_names.split(", ")
    names, current, at = [], "", 0
    while at < len(alt_names):
        comma, quote = alt_names.find(",", at), alt_names.find('"', at)
        if quote >= 0 and not 0 <= comma < quote:
            match = _JSON_STRING.match(alt_names, quote)
            if match is None:
                raise CertificateNameError(
                    f"the alternative names of the certificate are malformed: {quoted(alt_names)}",
                    code="ERR_TLS_CERT_ALTNAME_FORMAT",
                    phase="handshake",
                )
            current += alt_names[at:quote] + json.loads(match[0])
            at = match.end()
        elif comma >= 0:
            names.append(current + alt_names[at:comma])
            current, at = "", comma + 2
        else:
            current += alt_names[at:]
            at = len(alt_names)
    return [*names, current]


# Matching ---------------------------------------------------------------------------------------------------------


def _without_dot(name: str) -> str:
    return name.removesuffix(".")


def _labels(name: str) -> list[str]:
    # Only A to Z: the other characters are either refused or compared as they are.
    return _UPPER.sub(lambda match: match[0].lower(), _without_dot(name)).split(".")


def _any_matches(host: str, patterns: Iterable[object]) -> bool:
    labels = _labels(host)
    for pattern in patterns:
        if is_truthy(pattern):
            if not isinstance(pattern, str):
                return False  # where Node throws a TypeError
            if _matches(labels, _labels(pattern)):
                return True
    return False


def _matches(host: list[str], pattern: list[str]) -> bool:
    if len(host) != len(pattern) or "" in pattern or any(map(_NOT_PRINTABLE.search, pattern)):
        return False
    if host[1:] != pattern[1:]:
        return False
    prefix, *rest = pattern[0].split("*")
    if not rest or "xn--" in pattern[0]:  # RFC 6125, 6.4.3: no wildcard inside an A-label
        return host[0] == pattern[0]
    if len(rest) > 1 or len(pattern) < 3:
        return False
    suffix = rest[0]
    return len(prefix) + len(suffix) <= len(host[0]) and host[0].startswith(prefix) and host[0].endswith(suffix)
