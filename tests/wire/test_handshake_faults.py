"""
Servers that fail in the handshake: not TLS at all, silent, slow, incompatible, demanding, oversized.

Whatever happens, one named error reaches the request that caused the connection, nothing is sent again, and the next
request works.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from typing import Any

import pytest
from tls_support import CLIENT_AUTH, DAY, NOW, SERVER_AUTH, VERSIONS, Issued, crl, issue
from wire_peer import PeerConnection, PeerGone, serve

from tlsagent import (
    CertificateError,
    CertificateNameError,
    ConnectionLost,
    HandshakeError,
    HandshakeTimeout,
    RequestError,
    Timeouts,
)
from tlsagent.testing import Authority, RawServer, Server, default_authority
from tlsagent.testing._hello import SUPPORTED_VERSIONS
from tlsagent.testing._tls import TLSFailure

SHORT = Timeouts(handshake=0.2)
LONGEST_TEXT = 4_096


def assert_nothing_left(agent: Any) -> None:
    """Assert that the agent holds no connection and no attempt."""
    stats = agent.stats()
    assert (stats.active, stats.idle, stats.dialling, stats.waiting) == (0, 0, 0, 0)


# --- Not TLS ----------------------------------------------------------------------------------------------------------

_NOISE = random.Random(7).randbytes(20_000)

NOT_TLS = {
    "HTTP": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "a banner": b"220 mail.test ESMTP \x1b[31m\x00\r\n",
    "random bytes": b"\xee" + _NOISE,
    "a great deal of text": b"A" * 200_000,
    "one byte": b"\x00" * 5,
}


@pytest.mark.parametrize("name", NOT_TLS)
def test_server_that_does_not_speak_tls(open_agent, open_peer, name):
    """
    Anything else in place of a ServerHello is a `HandshakeError` that shows a little of it, printable and bounded.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            connection.sock.recv(65_536)
            connection.sock.sendall(NOT_TLS[name])
            connection.sock.recv(65_536)
        else:
            connection.handshake()
            serve(connection)

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem)

    with pytest.raises(HandshakeError, match="does not speak TLS") as caught:
        agent.request("GET", peer.url)

    error = caught.value
    assert error.code == "ERR_SSL_WRONG_VERSION_NUMBER"
    assert (error.phase, error.request_sent, error.alert) == ("handshake", False, None)
    assert str(error).isascii()
    assert str(error).isprintable()
    assert len(str(error)) < LONGEST_TEXT
    assert_nothing_left(agent)
    assert agent.request("GET", peer.url).content == b"ok"
    assert len(peer.connections) == 2


def test_plain_bytes_before_the_handshake_are_no_response(open_agent, open_peer):
    """
    A response in clear that comes before the handshake is never delivered.
    """

    def script(connection: PeerConnection) -> None:
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        connection.handshake()
        serve(connection)

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem)

    with pytest.raises(HandshakeError):
        agent.request("GET", peer.url)


def test_garbage_inside_of_a_handshake_record(open_agent, open_peer):
    """
    A record that looks like TLS and holds no message of it is a `HandshakeError` too.
    """

    def script(connection: PeerConnection) -> None:
        connection.sock.recv(65_536)
        connection.sock.sendall(b"\x16\x03\x03\x00\x40" + _NOISE[:64])
        connection.sock.recv(65_536)

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem)

    with pytest.raises(HandshakeError) as caught:
        agent.request("GET", peer.url, timeouts=Timeouts(handshake=5))

    assert caught.value.code.startswith("ERR_SSL_")
    assert len(peer.connections) == 1


# --- The connection ends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("after_hello", [False, True])
def test_connection_that_ends_in_the_handshake(open_agent, open_peer, how, after_hello):
    """
    A FIN or a RST before the handshake is complete is `ConnectionLost`; it was no stale connection, so nothing is tried
    again.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            connection.handshake()
            serve(connection)
        connection.sock.recv(1, socket.MSG_PEEK)  # so that the client has connected, whatever its system says
        if after_hello:
            connection._incoming.write(connection.sock.recv(65_536))
            with pytest.raises(Exception, match="did not complete"):
                connection._ssl.do_handshake()
            connection.sock.sendall(connection._outgoing.read()[:100])
        getattr(connection, how)()

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem)

    with pytest.raises(ConnectionLost) as caught:
        agent.request("GET", peer.url)

    assert caught.value.code in {"ECONNRESET", "EPIPE"}
    assert (caught.value.phase, caught.value.request_sent) == ("handshake", False)
    assert len(peer.connections) == 1
    assert agent.request("GET", peer.url).content == b"ok"


# --- Time -------------------------------------------------------------------------------------------------------------


def test_silent_server(open_agent, open_peer):
    """
    A server that accepts and says nothing runs into `timeouts.handshake`, not into another timeout.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            while connection.sock.recv(65_536):
                pass
        else:
            connection.handshake()
            serve(connection)

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem, timeouts=Timeouts(connect=30, response=30, read=30))
    began = time.monotonic()

    with pytest.raises(HandshakeTimeout) as caught:
        agent.request("GET", peer.url, timeouts=SHORT)

    assert 0.19 < time.monotonic() - began < 5
    assert (caught.value.phase, caught.value.request_sent) == ("handshake", False)
    assert_nothing_left(agent)
    assert agent.request("GET", peer.url).content == b"ok"


STALLS = [
    *(
        ("TLSv1.2", message)
        for message in ("server_hello", "certificate", "server_key_exchange", "certificate_request")
    ),
    *(("TLSv1.2", message) for message in ("server_hello_done", "new_session_ticket", "finished")),
    *(("TLSv1.3", message) for message in ("server_hello", "encrypted_extensions", "certificate_request")),
    *(("TLSv1.3", message) for message in ("certificate", "certificate_verify", "finished")),
]


@pytest.mark.parametrize(("version", "message"), STALLS)
def test_server_that_stalls(open_agent, new_server, version, message):
    """
    A handshake that stops at any message of the server's times out as a whole, and the next request works.
    """
    with new_server(stall_at=message, request_cert=True, min_version=version, max_version=version) as server:
        agent = open_agent(ca=server.ca_pem, max_sockets=1)

        with pytest.raises(HandshakeTimeout):
            agent.request("GET", server.url + "/hello", timeouts=SHORT)

        assert_nothing_left(agent)
        server.reconfigure(stall_at=None)
        assert agent.request("GET", server.url + "/hello").status == 200
        assert server.wait_for(lambda s: s.stats.open_connections == 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_resumed_handshake_that_stalls(open_agent, new_server, version):
    """
    The same holds for a resumed handshake.
    """
    with new_server(min_version=version, max_version=version) as server:
        agent = open_agent(ca=server.ca_pem)
        agent.request("GET", server.url + "/close")
        server.reconfigure(stall_at="finished")

        with pytest.raises(HandshakeTimeout):
            agent.request("GET", server.url + "/hello", timeouts=SHORT)

        server.reconfigure(stall_at=None)
        assert agent.request("GET", server.url + "/hello").status == 200


def test_dripping_handshake(open_agent):
    """
    A server that sends its handshake byte by byte does not move the deadline: it is for the handshake as a whole.
    """
    gone = threading.Event()

    def drip(peer: Any) -> None:
        floor = server.tls_floor()
        floor.receive_data(peer.recv())
        try:
            for byte in floor.data_to_send():
                peer.send(bytes([byte]))
                if gone.wait(0.02):
                    return
        except OSError:
            return

    with RawServer(drip, tls=False) as server:
        agent = open_agent(ca=server.ca_pem)
        began = time.monotonic()

        with pytest.raises(HandshakeTimeout):
            agent.request("GET", server.url, timeouts=Timeouts(handshake=0.4))

        assert time.monotonic() - began < 5
        gone.set()


def test_handshake_byte_by_byte_succeeds(open_agent):
    """
    A handshake and a response that arrive one byte at a time are as good as any.
    """

    def script(peer: Any) -> None:
        floor = server.tls_floor()
        while floor.facts is None:
            floor.receive_data(peer.recv())
            _one_by_one(peer, floor.data_to_send())
        floor.receive_data(peer.recv())
        floor.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        _one_by_one(peer, floor.data_to_send())
        peer.recv()

    with RawServer(script, tls=False, max_version="TLSv1.2") as server:
        agent = open_agent(ca=server.ca_pem)

        assert agent.request("GET", server.url).content == b"ok"


def _one_by_one(peer: Any, data: bytes) -> None:
    for at in range(len(data)):
        peer.send(data[at : at + 1])


def test_timeout_of_one_connection_leaves_the_others_alone(open_agent, open_peer):
    """
    While one handshake is stuck, requests on other connections go on.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            while connection.sock.recv(65_536):
                pass
        else:
            connection.handshake()
            serve(connection)

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem)
    stuck = agent.submit("GET", peer.url, timeouts=Timeouts(handshake=1.5))
    _until(lambda: len(peer.connections) == 1)

    other = agent.request("GET", peer.url, options={"alpn_protocols": None})

    assert other.content == b"ok"
    assert not stuck.done()
    with pytest.raises(HandshakeTimeout):
        stuck.result(10)


def _until(condition: Any) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.003)


# --- Nothing in common ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "shown"),
    [
        ({"min_version": "TLSv1.3"}, {"max_version": "TLSv1.2"}, "TLSv1.3"),
        ({"max_version": "TLSv1.2"}, {"min_version": "TLSv1.3"}, "TLSv1.2"),
        ({}, {"min_version": "TLSv1", "max_version": "TLSv1.1", "ciphers": "ALL:@SECLEVEL=0"}, "TLSv1.2 to TLSv1.3"),
    ],
)
def test_no_common_version(open_agent, new_server, ours, theirs, shown):
    """
    A server that refuses our versions sends "protocol_version"; the error says which ones we allow.
    """
    with new_server(**theirs) as server:
        agent = open_agent(ca=server.ca_pem, **ours)

        with pytest.raises(HandshakeError, match=f"min_version and max_version allow {shown}$") as caught:
            agent.request("GET", server.url + "/hello")

        assert server.wait_for(lambda s: s.stats.handshakes_failed == 1)
    assert caught.value.alert == "protocol_version"
    assert caught.value.code == "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION"
    assert server.stats.connections == 1


# A ServerHello of TLS 1.1 for TLS_RSA_WITH_AES_128_CBC_SHA.
_OLD_HELLO = b"\x02\x00\x00\x26\x03\x02" + bytes(range(32)) + b"\x00\x00\x2f\x00"


def test_server_that_answers_with_an_older_version(open_agent, open_peer):
    """
    A server that answers with TLS 1.1 instead of refusing is refused by us, naming its version and our range.
    """

    def script(connection: PeerConnection) -> None:
        connection.sock.recv(65_536)
        connection.sock.sendall(b"\x16\x03\x02" + len(_OLD_HELLO).to_bytes(2, "big") + _OLD_HELLO)
        connection.sock.recv(65_536)

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem)

    with pytest.raises(HandshakeError, match=r"TLSv1\.1.*TLSv1\.2 to TLSv1\.3") as caught:
        agent.request("GET", peer.url)

    assert caught.value.code == "ERR_SSL_UNSUPPORTED_PROTOCOL"


def test_downgrade_is_noticed(open_agent):
    """
    Who removes TLS 1.3 from the ClientHello on the way gets no TLS 1.2 connection (RFC 8446 4.1.3).
    """
    alerts = []

    def middlebox(peer: Any) -> None:
        floor = server.tls_floor()
        floor.receive_data(_without_extension(peer.recv(), SUPPORTED_VERSIONS))
        peer.send(floor.data_to_send())
        alerts.append(peer.recv())

    with RawServer(middlebox, tls=False) as server:
        agent = open_agent(ca=server.ca_pem)

        with pytest.raises(HandshakeError):
            agent.request("GET", server.url)

    assert [alert[-2:] for alert in alerts] == [b"\x02\x2f"]  # fatal, illegal_parameter


def _without_extension(record: bytes, unwanted: int) -> bytes:
    """Return a ClientHello without an extension, all lengths put right."""
    at = 9 + 34
    at += 1 + record[at]
    at += 2 + int.from_bytes(record[at : at + 2], "big")
    at += 1 + record[at]
    kept, rest = b"", record[at + 2 :]
    while rest:
        size = 4 + int.from_bytes(rest[2:4], "big")
        if int.from_bytes(rest[:2], "big") != unwanted:
            kept += rest[:size]
        rest = rest[size:]
    body = record[9:at] + len(kept).to_bytes(2, "big") + kept
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return record[:3] + len(message).to_bytes(2, "big") + message


@pytest.mark.parametrize("version", VERSIONS)
def test_no_common_cipher(open_agent, new_server, version):
    """
    Without a common cipher suite the server sends "handshake_failure", and the error points at `ciphers`.
    """
    settings = {"ciphers": "ECDHE-ECDSA-AES256-GCM-SHA384"} if version == "TLSv1.2" else {}
    ours = "ECDHE-ECDSA-AES128-GCM-SHA256" if version == "TLSv1.2" else "TLS_AES_128_CCM_SHA256"
    with new_server(min_version=version, max_version=version, **settings) as server:
        agent = open_agent(ca=server.ca_pem, ciphers=ours)

        with pytest.raises(HandshakeError, match="ciphers") as caught:
            agent.request("GET", server.url + "/hello")

    assert caught.value.alert == "handshake_failure"
    assert caught.value.code == "ERR_SSL_SSL/TLS_ALERT_HANDSHAKE_FAILURE"
    assert server.stats.connections == 1


def test_alpn_answer_that_was_not_offered(open_agent):
    """
    A server that chooses a protocol we did not offer is refused; what it said is escaped.
    """

    def script(peer: Any) -> None:
        floor = server.tls_floor()
        floor.receive_data(peer.recv())
        flight = floor.data_to_send()
        assert flight.count(b"http/1.1") == 1
        peer.send(flight.replace(b"http/1.1", b"evil\n\x1b[m"))
        peer.recv()

    with RawServer(script, tls=False, max_version="TLSv1.2") as server:
        agent = open_agent(ca=server.ca_pem)

        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", server.url)

    assert str(caught.value).isprintable()
    assert caught.value.code.startswith("ERR_")
    assert server.connections == 1


@pytest.mark.parametrize("theirs", [(), ("http/1.1",), ("h3",)])
def test_only_a_protocol_we_cannot_speak_is_offered(open_agent, theirs):
    """
    Who offers "h3" alone gets no HTTP/1.1 in its place: whatever the server answers, no request is sent.
    """
    with Server(alpn_protocols=theirs) as server:
        agent = open_agent(ca=server.ca_pem, alpn_protocols=["h3"])

        with pytest.raises(RequestError):
            agent.request("GET", server.url + "/hello")

    assert server.stats.requests == 0


# --- Client certificates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "alert"), [("TLSv1.2", "handshake_failure"), ("TLSv1.3", "certificate_required")])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_client_certificate_that_is_missing(open_agent, new_server, version, alert, method):
    """
    A demanded client certificate that we do not have is a `HandshakeError` with the alert's name. In TLS 1.3 the alert
    comes after our end of the handshake: it is not taken for a stale connection, nothing is sent again.
    """
    with new_server(request_cert="demand", min_version=version, max_version=version) as server:
        agent = open_agent(ca=server.ca_pem)

        with pytest.raises(HandshakeError, match=r"cert") as caught:
            agent.request(method, server.url + "/hello")

        assert server.wait_for(lambda s: s.stats.open_connections == 0)
    assert caught.value.alert == alert
    assert not isinstance(caught.value, CertificateError)
    assert server.stats.connections == 1
    assert server.stats.requests == 0
    assert_nothing_left(agent)


@pytest.mark.parametrize("version", VERSIONS)
def test_client_certificate_that_is_not_accepted(open_agent, new_server, version):
    """
    The same for a certificate of an authority that the server does not know.
    """
    stranger = Authority().issue("stranger@tlsagent.test", client=True)
    with new_server(request_cert="demand", min_version=version, max_version=version) as server:
        agent = open_agent(ca=server.ca_pem, cert=stranger.cert_pem, key=stranger.key_pem)

        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", server.url + "/hello")

    assert caught.value.alert == "unknown_ca"
    assert caught.value.code == "ERR_SSL_TLSV1_ALERT_UNKNOWN_CA"
    assert server.stats.connections == 1
    assert server.stats.requests == 0


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("fault", "alert", "hint"),
    [
        ("expired", "certificate_expired", "renewed one"),
        ("revoked", "certificate_revoked", "new one"),
        ("for servers", "unsupported_certificate", "issued for clients"),
        ("without intermediate", "unknown_ca", "with its intermediates"),
    ],
)
def test_client_certificate_that_is_out_of_order(open_agent, new_server, version, fault, alert, hint):
    """
    The server's alert tells what is wrong with our certificate, and the message what to do about it.
    """
    root = issue("root", ca=True)
    middle = issue("middle", ca=True, by=root)
    mine = {
        "expired": lambda: issue("me.test", by=root, purpose=CLIENT_AUTH, start=NOW - 9 * DAY, end=NOW - DAY),
        "revoked": lambda: issue("me.test", by=root, purpose=CLIENT_AUTH),
        "for servers": lambda: issue("me.test", by=root, purpose=SERVER_AUTH),
        "without intermediate": lambda: issue("me.test", by=middle, purpose=CLIENT_AUTH),
    }[fault]()
    own = issue("localhost", by=root)
    more = {"crl": crl(root, mine)} if fault == "revoked" else {}
    with new_server({"cert": own.pem, "key": own.key_pem, "ca": root.pem, "request_cert": True, **more}) as server:
        agent = open_agent(ca=root.pem, cert=mine.pem, key=mine.key_pem, min_version=version, max_version=version)

        with pytest.raises(HandshakeError, match=hint) as caught:
            agent.request("GET", server.url + "/hello")

        assert caught.value.alert == alert
        assert server.stats.requests == 0


def test_client_certificate_that_is_missing_on_an_idle_connection(open_agent, new_server):
    """
    A connection that was opened ahead and refused afterwards costs one more at most; the request gets the reason.
    """
    with new_server(request_cert="demand", min_version="TLSv1.3") as server:
        agent = open_agent(ca=server.ca_pem)
        with contextlib.suppress(HandshakeError):  # the refusal may come in time to be told at once
            agent.preconnect(server.url, 1)
        assert server.wait_for(lambda s: s.stats.connections == 1 and s.stats.open_connections == 0)

        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", server.url + "/hello")

    assert caught.value.alert == "certificate_required"
    assert server.stats.connections <= 2
    assert server.stats.requests == 0


def test_refused_client_certificate_leaves_the_agent_usable(open_agent, new_server):
    """
    A request with a certificate works after one without it failed.
    """
    client = default_authority().issue("client@tlsagent.test", client=True)
    with new_server(request_cert="demand") as server:
        agent = open_agent(ca=server.ca_pem, max_sockets=1)
        for _ in range(2):
            with pytest.raises(HandshakeError):
                agent.request("GET", server.url + "/hello")

        options = {"cert": client.cert_pem, "key": client.key_pem}
        assert agent.request("GET", server.url + "/hello", options=options).status == 200


# --- Sizes ------------------------------------------------------------------------------------------------------------


def test_two_hundred_intermediates(open_agent, new_server):
    """
    A chain of 200 certificates is decided quickly, and the error text stays small.
    """
    root = issue("root", ca=True)
    issuers: list[Issued] = [root]
    for number in range(200):
        issuers.append(issue(f"intermediate {number}", by=issuers[-1], ca=True))
    leaf = issue("localhost", by=issuers[-1])
    with new_server(credentials=leaf.with_chain(*reversed(issuers[1:]))) as server:
        agent = open_agent(ca=root.pem)

        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", server.url + "/hello", timeouts=Timeouts(handshake=20))

    assert len(str(caught.value)) < LONGEST_TEXT
    assert server.stats.connections == 1


@pytest.mark.parametrize("count", [5_000, 10_000])
def test_ten_thousand_names(open_agent, new_server, count):
    """
    A certificate for 10,000 names that are not ours is refused with a few of them in the text.
    """
    root = issue("root", ca=True)
    leaf = issue(*(f"h{number}.test" for number in range(count)), by=root)
    with new_server(credentials=leaf.with_chain()) as server:
        agent = open_agent(ca=root.pem)

        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", server.url + "/hello", timeouts=Timeouts(handshake=20))

    assert len(str(caught.value)) < LONGEST_TEXT
    if count == 5_000:  # 10,000 of them are beyond OpenSSL's limit for a certificate message
        assert isinstance(caught.value, CertificateNameError)


def test_name_among_thousands(open_agent, new_server):
    """
    The right name is found as the last of thousands.
    """
    root = issue("root", ca=True)
    leaf = issue(*(f"h{number}.test" for number in range(5_000)), "localhost", by=root)
    with new_server(credentials=leaf.with_chain()) as server:
        agent = open_agent(ca=root.pem)

        assert agent.request("GET", server.url + "/hello").connection.authorized


def test_alerts_of_ours_reach_the_server(open_agent):
    """
    A server whose chain we refuse is told so by an alert.
    """
    said = []

    def script(peer: Any) -> None:
        floor = server.tls_floor()
        floor.receive_data(peer.recv())
        peer.send(floor.data_to_send())
        try:
            while True:
                data = peer.recv()
                if not data:
                    break
                floor.receive_data(data)
        except (TLSFailure, PeerGone) as exc:
            said.append(str(exc))

    with RawServer(script, tls=False) as server:
        agent = open_agent()

        with pytest.raises(CertificateError):
            agent.request("GET", server.url)

    assert said
    assert "ALERT" in said[0]
