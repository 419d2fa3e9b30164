from __future__ import annotations

import pytest

from tlsagent._material import binding
from tlsagent._material.binding import Fault
from tlsagent._tls.alerts import Offer, connection_error, handshake_error, is_alert, last_fault
from tlsagent.errors import HandshakeError, RemoteProtocolError

OFFER = Offer("TLSv1.2 to TLSv1.3", ("h2", "http/1.1"))
HELLO = b"\x16\x03\x03\x00\x50\x02\x00\x00\x4c\x03\x03"


@pytest.mark.parametrize(
    ("number", "alert", "code"),
    [
        (40, "handshake_failure", "ERR_SSL_SSL/TLS_ALERT_HANDSHAKE_FAILURE"),
        (48, "unknown_ca", "ERR_SSL_TLSV1_ALERT_UNKNOWN_CA"),
        (70, "protocol_version", "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION"),
        (90, "user_canceled", "ERR_SSL_TLSV1_ALERT_USER_CANCELLED"),
        (112, "unrecognized_name", "ERR_SSL_TLSV1_UNRECOGNIZED_NAME"),
        (116, "certificate_required", "ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED"),
        (120, "no_application_protocol", "ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL"),
        (255, "unknown_255", "ERR_SSL_ALERT_255"),
    ],
)
def test_alerts_have_ianas_name_and_nodes_code(number, alert, code):
    """
    An alert is named as IANA does and coded as Node does, whatever text this OpenSSL has for it.
    """
    fault = Fault(1000 + number, "some text of this version")

    before, after = handshake_error(fault, OFFER, first_bytes=HELLO), connection_error(fault)

    assert is_alert(fault)
    assert (type(before), before.alert, before.code, before.phase) == (HandshakeError, alert, code, "handshake")
    assert (type(after), after.alert, after.code) == (RemoteProtocolError, alert, code)
    assert alert in str(before)
    assert alert in str(after)


def test_codes_follow_the_strings_of_this_openssl():
    """
    Our table says for each alert what its reason string says, but for the words that changed with OpenSSL 4.
    """
    for number in range(256):
        pointer = binding._lib.ERR_reason_error_string(20 << 23 | 1000 + number)
        if pointer != binding._NULL:
            reason = binding._ffi.string(pointer).decode()
            expected = "ERR_SSL_" + reason.upper().replace(" ", "_").replace("SSL_TLS_", "SSL_SSL/TLS_")
            expected = expected.replace("ERR_SSL_TLS_ALERT", "ERR_SSL_SSL/TLS_ALERT")
            assert connection_error(Fault(1000 + number, "")).code == expected


@pytest.mark.parametrize(
    ("alert", "hint"),
    [
        (40, "ciphers"),
        (42, "set cert and key"),
        (43, "cert, key"),
        (44, "set cert and key to a new one"),
        (45, "set cert and key to a renewed one"),
        (48, "set cert, with its intermediates, and key"),
        (70, "TLSv1.2 to TLSv1.3"),
        (71, "ciphers"),
        (112, "servername"),
        (116, "set cert and key"),
        (120, "h2, http/1.1"),
    ],
)
def test_message_says_what_to_try(alert, hint):
    """
    Where an option may help, the message names it.
    """
    assert hint in str(handshake_error(Fault(1000 + alert, ""), OFFER, first_bytes=HELLO))


def test_other_faults():
    """
    What is no alert is coded by its reason.
    """
    fault = Fault(281, "decryption failed or bad record mac")
    assert not is_alert(fault)
    error = connection_error(fault)
    assert (error.alert, error.code) == (None, "ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC")
    assert "decryption failed" in str(error)


def test_version_of_the_server_is_named():
    """
    A ServerHello in an old version leads to a message with both sides' versions.
    """
    hello = HELLO[:9] + b"\x03\x01" + bytes(20)
    message = str(handshake_error(Fault(258, "unsupported protocol"), OFFER, first_bytes=hello))
    assert "the server wants TLSv1," in message
    assert "TLSv1.2 to TLSv1.3" in message


@pytest.mark.parametrize(
    "first_bytes", [b"HTTP/1.1 200 OK\r\n", b"\x17\x03\x03", b"\x16\x02\x00", b"\0", b"\xff" * 256]
)
def test_what_is_no_tls_is_quoted(first_bytes):
    """
    A server that speaks something else is quoted, escaped and bounded, with Node's code.
    """
    error = handshake_error(Fault(267, "wrong version number"), OFFER, first_bytes=first_bytes)
    assert error.code == "ERR_SSL_WRONG_VERSION_NUMBER"
    assert str(error).isprintable()
    assert len(str(error)) < 1000


def test_newest_entry_of_the_queue_is_the_cause(monkeypatch):
    """
    Older entries may be of others; the record layer's second remark is no cause.
    """
    queue = [Fault(1, "of others"), Fault(281, "bad record"), Fault(313, "record layer failure")]
    monkeypatch.setattr("tlsagent._tls.alerts.take_faults", lambda: queue)
    assert last_fault().reason == "bad record"
    queue.clear()
    assert "no reason" in last_fault().reason
