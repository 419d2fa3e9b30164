"""
What went wrong, in words: OpenSSL's error queue and TLS alerts (RFC 8446 section 6) as errors with Node's codes.

Texts quote the peer with bounds and escapes, and say which option may help. Whether an error is final, and which of two
is the cause, the engine decides.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tlsagent._material.binding import Fault, take_faults
from tlsagent.errors import HandshakeError, RemoteProtocolError, quoted


class Offer(NamedTuple):
    """What we offered, for messages."""

    versions: str
    alpn_protocols: tuple[str, ...]


def last_fault() -> Fault:
    """Empty the error queue and return the cause: the newest entry, as older ones may be of others in this thread."""
    # OpenSSL's record layer says what is wrong, and then that something is wrong.
    faults = [fault for fault in take_faults() if fault.reason != "record layer failure"]
    return faults[-1] if faults else Fault(0, "OpenSSL gave no reason")


def is_alert(fault: Fault) -> bool:
    """Whether the fault is an alert that the peer sent."""
    return _ALERT_OFFSET <= fault.number <= _ALERT_OFFSET + 255


def handshake_error(fault: Fault, offer: Offer, *, first_bytes: bytes) -> HandshakeError:
    """
    Return the error for a handshake that came to nothing.

    Args:
        fault: OpenSSL's reason.
        offer: Ours.
        first_bytes: The first ones of the server, which show whether it speaks TLS at all; empty if it does.
    """
    if first_bytes and not _may_be_tls(first_bytes):
        return HandshakeError(
            f"the server does not speak TLS: it sent {quoted(first_bytes)}; is this the right port?",
            code="ERR_SSL_WRONG_VERSION_NUMBER",
            phase="handshake",
        )
    alert, code = _alert_and_code(fault)
    if alert is None:
        message = f"the TLS handshake failed: {fault.reason}{_version_hint(fault.reason, offer, first_bytes)}"
    else:
        message = f'the server refused the handshake with the alert "{alert}"{_alert_hint(alert, offer)}'
    return HandshakeError(message, code=code, phase="handshake", alert=alert)


def connection_error(fault: Fault) -> RemoteProtocolError:
    """Return the error for a connection that broke after its handshake."""
    alert, code = _alert_and_code(fault)
    if alert is None:
        message = f"TLS broke on the connection: {fault.reason}"
    else:
        message = f'the server ended the connection with the TLS alert "{alert}"'
    return RemoteProtocolError(message, code=code, alert=alert)


def _may_be_tls(first_bytes: bytes) -> bool:
    """Whether this can be the head of a TLS record: handshake or alert, major version 3 (RFC 8446 5.1)."""
    return first_bytes[:1] in {b"\x15", b"\x16"} and first_bytes[1:2] in {b"", b"\x03"}


def _alert_and_code(fault: Fault) -> tuple[str | None, str]:
    """Return IANA's name of the alert, if it is one, and Node's code."""
    if not is_alert(fault):
        return None, "ERR_SSL_" + fault.reason.upper().replace(" ", "_")
    number = fault.number - _ALERT_OFFSET
    return alert_name(number), "ERR_SSL_" + (_ALERTS[number][1] if number in _ALERTS else f"ALERT_{number}")


def alert_name(number: int) -> str:
    """Return IANA's name of an alert."""
    if number in _ALERTS:
        return _ALERTS[number][0]
    return "close_notify" if number == _CLOSE_NOTIFY else f"unknown_{number}"


def _version_hint(reason: str, offer: Offer, first_bytes: bytes) -> str:
    if "version" not in reason and "protocol" not in reason:
        return ""
    # A ServerHello: record header (5), type and length (4), then the version the server wants.
    is_hello = first_bytes[:1] == b"\x16" and first_bytes[5:6] == b"\x02"
    chosen = _VERSIONS.get(first_bytes[9:11]) if is_hello else None
    theirs = f"the server wants {chosen}, " if chosen else ""
    return f"; {theirs}min_version and max_version allow {offer.versions}"


def _alert_hint(alert: str, offer: Offer) -> str:
    if alert == "protocol_version":
        return f"; min_version and max_version allow {offer.versions}"
    if alert == "no_application_protocol":
        return f"; alpn_protocols are {', '.join(offer.alpn_protocols)}"
    return _HINTS.get(alert, "")


_VERSIONS: Final = {b"\x03\x00": "SSLv3", b"\x03\x01": "TLSv1", b"\x03\x02": "TLSv1.1", b"\x03\x03": "TLSv1.2"}

_CLIENT_CERTIFICATE: Final = "; it asks for a client certificate that it accepts: set cert and key"
_REJECTED: Final = "; it does not accept the client certificate"
_HINTS: Final = {
    "handshake_failure": "; it may find no common cipher suite, group or signature algorithm (ciphers), "
    "or ask for a client certificate (cert, key)",
    "insufficient_security": "; it finds the offered cipher suites too weak (ciphers)",
    "unrecognized_name": "; it does not know the name asked for (servername)",
    "certificate_required": _CLIENT_CERTIFICATE,
    "bad_certificate": _CLIENT_CERTIFICATE,
    "certificate_unknown": _CLIENT_CERTIFICATE,
    "unsupported_certificate": f"{_REJECTED}: it wants another kind of key, or one issued for clients (cert, key)",
    "certificate_revoked": f"{_REJECTED}, which was revoked: set cert and key to a new one",
    "certificate_expired": f"{_REJECTED}, which has expired: set cert and key to a renewed one",
    "unknown_ca": f"{_REJECTED}, or does not know who issued it: set cert, with its intermediates, and key to one "
    "of an authority that it trusts",
    "access_denied": _CLIENT_CERTIFICATE,
}

_CLOSE_NOTIFY: Final = 0
_ALERT_OFFSET: Final = 1000  # SSL_AD_REASON_OFFSET
# By number: IANA's name, and the end of Node's code, which is the reason string of OpenSSL 3.2 and later in capitals.
# The string of the OpenSSL at hand is no use for that: it changes from version to version.
_ALERTS: Final = {
    10: ("unexpected_message", "SSL/TLS_ALERT_UNEXPECTED_MESSAGE"),
    20: ("bad_record_mac", "SSL/TLS_ALERT_BAD_RECORD_MAC"),
    21: ("decryption_failed", "TLSV1_ALERT_DECRYPTION_FAILED"),
    22: ("record_overflow", "TLSV1_ALERT_RECORD_OVERFLOW"),
    30: ("decompression_failure", "SSL/TLS_ALERT_DECOMPRESSION_FAILURE"),
    40: ("handshake_failure", "SSL/TLS_ALERT_HANDSHAKE_FAILURE"),
    41: ("no_certificate", "SSL/TLS_ALERT_NO_CERTIFICATE"),
    42: ("bad_certificate", "SSL/TLS_ALERT_BAD_CERTIFICATE"),
    43: ("unsupported_certificate", "SSL/TLS_ALERT_UNSUPPORTED_CERTIFICATE"),
    44: ("certificate_revoked", "SSL/TLS_ALERT_CERTIFICATE_REVOKED"),
    45: ("certificate_expired", "SSL/TLS_ALERT_CERTIFICATE_EXPIRED"),
    46: ("certificate_unknown", "SSL/TLS_ALERT_CERTIFICATE_UNKNOWN"),
    47: ("illegal_parameter", "SSL/TLS_ALERT_ILLEGAL_PARAMETER"),
    48: ("unknown_ca", "TLSV1_ALERT_UNKNOWN_CA"),
    49: ("access_denied", "TLSV1_ALERT_ACCESS_DENIED"),
    50: ("decode_error", "TLSV1_ALERT_DECODE_ERROR"),
    51: ("decrypt_error", "TLSV1_ALERT_DECRYPT_ERROR"),
    60: ("export_restriction", "TLSV1_ALERT_EXPORT_RESTRICTION"),
    70: ("protocol_version", "TLSV1_ALERT_PROTOCOL_VERSION"),
    71: ("insufficient_security", "TLSV1_ALERT_INSUFFICIENT_SECURITY"),
    80: ("internal_error", "TLSV1_ALERT_INTERNAL_ERROR"),
    86: ("inappropriate_fallback", "TLSV1_ALERT_INAPPROPRIATE_FALLBACK"),
    90: ("user_canceled", "TLSV1_ALERT_USER_CANCELLED"),
    100: ("no_renegotiation", "TLSV1_ALERT_NO_RENEGOTIATION"),
    109: ("missing_extension", "TLSV13_ALERT_MISSING_EXTENSION"),
    110: ("unsupported_extension", "TLSV1_UNSUPPORTED_EXTENSION"),
    111: ("certificate_unobtainable", "TLSV1_CERTIFICATE_UNOBTAINABLE"),
    112: ("unrecognized_name", "TLSV1_UNRECOGNIZED_NAME"),
    113: ("bad_certificate_status_response", "TLSV1_BAD_CERTIFICATE_STATUS_RESPONSE"),
    114: ("bad_certificate_hash_value", "TLSV1_BAD_CERTIFICATE_HASH_VALUE"),
    115: ("unknown_psk_identity", "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY"),
    116: ("certificate_required", "TLSV13_ALERT_CERTIFICATE_REQUIRED"),
    120: ("no_application_protocol", "TLSV1_ALERT_NO_APPLICATION_PROTOCOL"),
}
