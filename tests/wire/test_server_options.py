"""
Options for servers, seen by a client: what each makes of the handshake, and that a client pays no heed to them.

The server is the embedded one on its second TLS floor, which takes them as Node's `tls.createServer` does.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from tls_support import CLIENT_AUTH, VERSIONS, crl, issue, offers_session

from tlsagent import (
    CertificateError,
    ConnectionOptions,
    HandshakeError,
    Psk,
    ServerOptionWarning,
    create_secure_context,
)
from tlsagent.testing import Authority, Server, default_authority

CLIENT = default_authority().issue("client@tlsagent.test", client=True)
STRANGER = Authority().issue("stranger@tlsagent.test", client=True)
RSA = default_authority().issue("localhost", key_type="rsa")

CHACHA = "ECDHE-ECDSA-CHACHA20-POLY1305"
AES128 = "ECDHE-ECDSA-AES128-GCM-SHA256"
TLS13_AES128 = "TLS_AES_128_GCM_SHA256"
TLS13_AES256 = "TLS_AES_256_GCM_SHA384"
DHE = "DHE-RSA-AES128-GCM-SHA256"
ECDHE = "ECDHE-RSA-AES128-GCM-SHA256"


def modp(bits: int, summand: int) -> bytes:
    """Return a MODP group of RFC 3526 as DER (PKCS #3); all are made of the digits of pi in the same way."""
    shift = bits - 130
    prime = 2**bits - 2 ** (bits - 64) - 1 + 2**64 * (_pi(shift) + summand)
    size = bits // 8 + 1
    numbers = b"\x02\x82" + size.to_bytes(2, "big") + prime.to_bytes(size, "big") + b"\x02\x01\x02"
    return b"\x30\x82" + len(numbers).to_bytes(2, "big") + numbers


def _pi(shift: int) -> int:
    """Return pi * 2**shift, rounded down, by Machin's formula."""
    one = 1 << (shift + 64)

    def arctan_of_inverse(n: int) -> int:
        total = term = one // n
        divisor, sign = 3, -1
        while term:
            term //= n * n
            total += sign * (term // divisor)
            divisor, sign = divisor + 2, -sign
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239)) >> 64


GROUPS = {2048: modp(2048, 124_476), 3072: modp(3072, 1_690_314)}


def context_for(*names: str, **options: Any) -> Any:
    """Return a context that holds a fresh certificate for the names."""
    credentials = default_authority().issue(*names)
    return create_secure_context(cert=credentials.cert_pem, key=credentials.key_pem, **options)


def last_cipher(server: Server) -> str | None:
    return server.connections[-1].cipher


# --- sni_callback -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_sni_callback_chooses_the_certificate(open_agent, version):
    """
    The callback gets the name that the client sent, and its context brings the certificate; None keeps the server's.
    """
    asked: list[str] = []
    contexts = {"a.test": context_for("a.test"), "b.test": context_for("b.test")}

    def choose(name: str) -> Any:
        asked.append(name)
        return contexts.get(name)

    with Server({"sni_callback": choose}) as server:
        agent = open_agent(ca=server.ca_pem, min_version=version, max_version=version)
        names = {
            name: agent.request("GET", server.url + "/hello", options={"servername": name}).connection.peer_certificate
            for name in ("a.test", "b.test", "localhost")
        }

    assert asked == ["a.test", "b.test", "localhost"]
    assert names["a.test"].subject_alt_names == (("DNS", "a.test"),)
    assert names["b.test"].subject_alt_names == (("DNS", "b.test"),)
    assert ("DNS", "localhost") in names["localhost"].subject_alt_names


def test_sni_callback_is_not_asked_without_a_name(open_agent):
    """
    A client that sends no name gets the server's own certificate, without a question.
    """
    asked: list[str] = []
    with Server({"sni_callback": asked.append}) as server:
        agent = open_agent(ca=server.ca_pem, servername="")

        assert agent.request("GET", server.url + "/hello").status == 200
        assert asked == []


@pytest.mark.parametrize("version", VERSIONS)
def test_sni_callback_of_a_context_serves_too(open_agent, version):
    """
    A context made with `sni_callback` and `request_cert` brings both to the server it is given to.
    """
    inner = context_for("a.test")
    outer = context_for("localhost", sni_callback=lambda _name: inner, request_cert=True, ca=default_authority().ca_pem)
    with Server({"secure_context": outer, "sni_callback": None}) as server:
        agent = open_agent(ca=server.ca_pem, servername="a.test", min_version=version, max_version=version)

        # The chosen context says who may vouch for clients; this one trusts none of ours.
        with pytest.raises(HandshakeError):
            agent.request("GET", server.url + "/hello")
        assert server.wait_for(lambda s: s.connections[0].handshake_error == "PEER_DID_NOT_RETURN_A_CERTIFICATE")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("outcome", [ValueError("no such tenant"), "a.test"], ids=["raises", "returns a str"])
def test_sni_callback_that_fails_ends_its_connection(open_agent, version, outcome, capsys):
    """
    What the callback raises ends that connection with an alert and stands in its record; the next one is served.
    """
    outcomes = [outcome, None]

    def choose(_name: str) -> Any:
        said = outcomes.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    with Server({"sni_callback": choose}) as server:
        agent = open_agent(ca=server.ca_pem, min_version=version, max_version=version)

        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", server.url + "/hello")
        assert agent.request("GET", server.url + "/hello").status == 200

        assert caught.value.alert == "internal_error"
        expected = (
            "no such tenant" if isinstance(outcome, Exception) else "must return a SecureContext or None, not str"
        )
        assert expected in (server.connections[0].handshake_error or "")
        assert server.stats.handshakes_failed == 1
    assert capsys.readouterr() == ("", "")


# --- request_cert -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("client", [None, STRANGER, CLIENT], ids=["none", "stranger", "known"])
def test_request_cert_demands_a_certificate_in_order(open_agent, version, client):
    """
    A client is served with a certificate of the server's `ca` alone, on either floor.
    """
    mine = {} if client is None else {"cert": client.cert_pem, "key": client.key_pem}
    for more in ({}, {"honor_cipher_order": True}):
        with Server({"request_cert": True, "ca": default_authority().ca_pem, **more}) as server:
            agent = open_agent(ca=server.ca_pem, min_version=version, max_version=version, **mine)

            if client is CLIENT:
                assert agent.request("GET", server.url + "/hello").status == 200
                assert server.connections[0].client_certificate == CLIENT.leaf_der
            else:
                with pytest.raises(HandshakeError) as caught:
                    agent.request("GET", server.url + "/hello")
                assert (
                    caught.value.alert
                    in {
                        None: {"certificate_required", "handshake_failure"},
                        STRANGER: {"unknown_ca"},
                    }[client]
                )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("client", [None, STRANGER, CLIENT], ids=["none", "stranger", "known"])
def test_request_cert_without_reject_unauthorized_takes_all(open_agent, version, client):
    """
    With reject_unauthorized False a certificate is asked for, and whatever comes is taken and recorded.
    """
    mine = {} if client is None else {"cert": client.cert_pem, "key": client.key_pem}
    with Server({"request_cert": True, "reject_unauthorized": False}) as server:
        agent = open_agent(ca=server.ca_pem, min_version=version, max_version=version, **mine)

        for _ in range(2):
            assert agent.request("GET", server.url + "/close").status == 200

        assert server.connections[0].client_certificate == (client and client.leaf_der)
        assert server.wait_for(lambda s: [c.session_reused for c in s.connections] == [False, True])
        problems = {None: "UNABLE_TO_GET_ISSUER_CERT", STRANGER: "UNABLE_TO_VERIFY_LEAF_SIGNATURE", CLIENT: None}
        assert server.connections[0].authorization_error == problems[client]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_certificate_that_was_welcome_and_did_not_come(open_agent, version):
    """
    Where ssl asks for a certificate the record tells of a missing one too; where none is asked for, none is missing.
    """
    for asked, problem in ((True, "UNABLE_TO_GET_ISSUER_CERT"), (False, None)):
        with Server(request_cert=asked) as server:
            agent = open_agent(ca=server.ca_pem, min_version=version, max_version=version)

            agent.request("GET", server.url + "/hello")

            assert server.connections[0].authorization_error == problem


# --- crl, allow_partial_trust_chain -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_crl_refuses_clients_that_were_revoked(open_agent, version):
    """
    A server refuses the client in its list, and takes another one of the same issuer.
    """
    root = issue("root of clients", ca=True)
    revoked, good = (issue(name, by=root, purpose=CLIENT_AUTH) for name in ("revoked.test", "good.test"))
    options = {"request_cert": True, "ca": root.pem, "crl": crl(root, revoked)}
    with Server(options) as server:
        agent = open_agent(ca=server.ca_pem, min_version=version, max_version=version)

        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", server.url + "/hello", options={"cert": revoked.pem, "key": revoked.key_pem})
        agent.request("GET", server.url + "/hello", options={"cert": good.pem, "key": good.key_pem})

        assert caught.value.alert == "certificate_revoked"
        assert server.connections[1].client_certificate == good.der


@pytest.mark.parametrize("partial", [True, False])
def test_allow_partial_trust_chain_ends_a_clients_chain(open_agent, partial):
    """
    With an intermediate alone in `ca`, a server takes its clients only by `allow_partial_trust_chain`.
    """
    middle = issue("middle of clients", by=issue("root of clients", ca=True), ca=True)
    client = issue("client.test", by=middle, purpose=CLIENT_AUTH)
    options = {"request_cert": True, "ca": middle.pem, "allow_partial_trust_chain": partial}
    with Server({**options, "reject_unauthorized": False}) as server:
        agent = open_agent(ca=server.ca_pem, cert=client.pem, key=client.key_pem)

        agent.request("GET", server.url + "/hello")

        assert server.connections[0].client_certificate == client.der
        problem = None if partial else "UNABLE_TO_GET_ISSUER_CERT"
        assert server.connections[0].authorization_error == problem


# --- psk_callback -----------------------------------------------------------------------------------------------------

KEY = bytes(range(32))
PSK_CIPHERS = {"TLSv1.2": "PSK-AES256-GCM-SHA384", "TLSv1.3": None}


def psk_client(open_agent: Any, version: str, callback: Any, **options: Any) -> Any:
    """Return an agent that trusts no certificate of ours."""
    options = {"ciphers": PSK_CIPHERS[version], "min_version": version, "max_version": version, **options}
    return open_agent(psk_callback=callback, **options)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("answer", [KEY, Psk(KEY, "client-7")], ids=["bytes", "Psk"])
def test_psk_callback_serves_who_has_the_key(open_agent, version, answer):
    """
    A client is served by its key, without a certificate on either side; the server's hint reaches it in TLS 1.2.
    """
    hints = []

    def client_key(hint: str | None) -> Psk:
        hints.append(hint)
        return Psk(KEY, "client-7")

    options = {"psk_callback": {"client-7": answer}.get, "request_cert": True, "ca": default_authority().ca_pem}
    with Server(options, psk_identity_hint="which?") as server:
        agent = psk_client(open_agent, version, client_key)

        responses = [agent.request("GET", server.url + "/close") for _ in range(2)]

        assert [response.connection.authorized for response in responses] == [True, True]
        assert [response.connection.peer_certificate for response in responses] == [None, None]
        assert [connection.psk_identity for connection in server.connections] == ["client-7", "client-7"]
        assert [connection.session_reused for connection in server.connections] == [False, False]
        assert [connection.authorization_error for connection in server.connections] == [None, None]
    assert hints[0] == ("which?" if version == "TLSv1.2" else None)


@pytest.mark.parametrize(
    ("version", "alert", "reason"),
    [("TLSv1.2", "bad_record_mac", "RECORD_LAYER_FAILURE"), ("TLSv1.3", "decrypt_error", "BINDER_DOES_NOT_VERIFY")],
)
def test_psk_callback_that_has_another_key(open_agent, version, alert, reason):
    """
    A client with a wrong key is refused, though it would trust the server's certificate.
    """
    with Server({"psk_callback": {"client-7": bytes(32)}.get}) as server:
        agent = psk_client(open_agent, version, lambda _hint: Psk(KEY, "client-7"), ca=server.ca_pem)

        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", server.url + "/hello")

        assert caught.value.alert == alert
        assert server.wait_for(lambda s: s.connections[0].handshake_error == reason)
        assert server.stats.requests == 0


def test_psk_callback_that_knows_no_such_client(open_agent):
    """
    An unknown identity gets an alert in TLS 1.2, and in TLS 1.3 the certificate (RFC 8446, 4.2.11).
    """
    with Server({"psk_callback": {}.get}) as server:
        agent = psk_client(open_agent, "TLSv1.2", lambda _hint: Psk(KEY, "nobody"))
        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", server.url + "/hello")
        assert caught.value.alert == "unknown_psk_identity"

        agent = psk_client(open_agent, "TLSv1.3", lambda _hint: Psk(KEY, "nobody"))
        with pytest.raises(CertificateError):
            agent.request("GET", server.url + "/hello")

        response = agent.request("GET", server.url + "/hello", options={"ca": server.ca_pem})
        assert response.connection.peer_certificate is not None
        assert [connection.psk_identity for connection in server.connections] == [None, None, None]


def test_psk_callback_beside_a_suite_of_another_hash(open_agent):
    """
    A key is good for suites of SHA-256: beside another one the client gets the certificate, and no identity counts.
    """
    options = {"psk_callback": {"me": KEY}.get, "ciphers": "TLS_AES_256_GCM_SHA384", "request_cert": True}
    with Server({**options, "reject_unauthorized": False}) as server:
        agent = psk_client(open_agent, "TLSv1.3", lambda _hint: Psk(KEY, "me"), ca=server.ca_pem)

        response = agent.request("GET", server.url + "/hello")

        [record] = server.connections
        assert response.connection.peer_certificate is not None
        assert (record.psk_identity, record.authorization_error) == (None, "UNABLE_TO_GET_ISSUER_CERT")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("outcome", [ValueError("no such tenant"), "a key"], ids=["raises", "returns a str"])
def test_psk_callback_that_fails_ends_its_connection(open_agent, version, outcome, capfd):
    """
    What the callback raises ends that connection with an alert and stands in its record; the next one is served.
    """
    outcomes = [outcome, KEY]

    def find(_identity: str) -> Any:
        said = outcomes.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    with Server({"psk_callback": find}) as server:
        agent = psk_client(open_agent, version, lambda _hint: Psk(KEY, "client-7"))

        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", server.url + "/hello")
        assert agent.request("GET", server.url + "/hello").status == 200

        assert caught.value.alert == "internal_error"
        expected = "no such tenant" if isinstance(outcome, Exception) else "bytes, a Psk or None, not str"
        assert expected in (server.connections[0].handshake_error or "")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("session_ids", [False, True], ids=["tickets", "session ids"])
def test_psk_callback_leaves_certificates_and_sessions_alone(open_agent, version, session_ids):
    """
    Clients without a key get the certificate and resume their sessions, about which the callback is not asked.
    """
    asked = []
    with Server({"psk_callback": asked.append}, session_ids=session_ids) as server:
        agent = open_agent(ca=server.ca_pem, min_version=version, max_version=version)

        for _ in range(2):
            assert agent.request("GET", server.url + "/close").connection.peer_certificate is not None

        assert [connection.session_reused for connection in server.connections] == [False, True]
        assert [connection.psk_identity for connection in server.connections] == [None, None]
    assert asked == []


def test_psk_callback_serves_under_a_chosen_context(open_agent):
    """
    The context that `sni_callback` chooses takes pre-shared keys as well, and gives the hint.
    """
    inner = context_for("localhost", ciphers=PSK_CIPHERS["TLSv1.2"])
    hints: list[str | None] = []

    def client_key(hint: str | None) -> Psk:
        hints.append(hint)
        return Psk(KEY, "me")

    options = {"psk_callback": {"me": KEY}.get, "sni_callback": lambda _name: inner}
    with Server(options, psk_identity_hint="which?") as server:
        agent = psk_client(open_agent, "TLSv1.2", client_key)

        assert agent.request("GET", server.url + "/hello").status == 200

        assert server.connections[0].psk_identity == "me"
    assert hints == ["which?"]


# --- dhparam ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", GROUPS)
def test_dhparam_is_the_group_of_dhe(open_agent, bits):
    """
    In a DHE key exchange of TLS 1.2 the server takes the group of `dhparam`; the client measures it by `min_dh_size`.
    """
    options = {"cert": RSA.cert_pem, "key": RSA.key_pem, "dhparam": GROUPS[bits], "max_version": "TLSv1.2"}
    with Server(options) as server:
        # Without groups of RFC 7919 in the offer: OpenSSL would take one of those.
        agent = open_agent(ca=server.ca_pem, ciphers=DHE, ecdh_curve="X25519:P-256")

        assert agent.request("GET", server.url + "/hello", options={"min_dh_size": bits}).status == 200
        assert last_cipher(server) == DHE
        with pytest.raises(HandshakeError, match=str(bits)):
            agent.request("GET", server.url + "/hello", options={"min_dh_size": bits + 1})


def test_without_dhparam_there_is_no_dhe(open_agent):
    """
    A server that has no group refuses a client that knows nothing else.
    """
    options = {"cert": RSA.cert_pem, "key": RSA.key_pem, "max_version": "TLSv1.2", "honor_cipher_order": True}
    with Server(options) as server:
        agent = open_agent(ca=server.ca_pem, ciphers=DHE, ecdh_curve="X25519:P-256")

        with pytest.raises(HandshakeError):
            agent.request("GET", server.url + "/hello")
        assert server.wait_for(lambda s: s.connections[0].handshake_error == "NO_SHARED_CIPHER")


# --- honor_cipher_order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "ours", "theirs"),
    [
        ("TLSv1.2", (CHACHA, AES128), (AES128, CHACHA)),
        ("TLSv1.3", (TLS13_AES256, TLS13_AES128), (TLS13_AES128, TLS13_AES256)),
    ],
)
@pytest.mark.parametrize("honored", [True, False, None])
def test_honor_cipher_order_lets_the_server_choose(open_agent, version, ours, theirs, honored):
    """
    The server's order of ciphers wins with True, the client's with False; as in Node, True is the default.
    """
    options = {"ciphers": ":".join(ours), "honor_cipher_order": honored, "sigalgs": "ECDSA+SHA256"}
    with Server(options) as server:
        agent = open_agent(ca=server.ca_pem, min_version=version, max_version=version, ciphers=":".join(theirs))

        agent.request("GET", server.url + "/hello")

        assert last_cipher(server) == (theirs[0] if honored is False else ours[0])


# --- session_id_context -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session_ids", [False, True], ids=["tickets", "session ids"])
@pytest.mark.parametrize("version", VERSIONS)
def test_session_id_context_keeps_sessions_apart(open_agent, version, session_ids):
    """
    A session made under one id is offered under another and not resumed; back under the first one it is.
    """
    with Server({"session_id_context": "one"}, session_ids=session_ids) as server:
        agent = open_agent(ca=server.ca_pem, min_version=version, max_version=version)
        for name in ("one", "one", "two", "two", "one"):
            server.reconfigure(session_id_context=name)
            agent.request("GET", server.url + "/close")

        assert [offers_session(connection) for connection in server.connections] == [False, True, True, True, True]
        assert [c.session_reused for c in server.connections] == [False, True, False, True, False]


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_of_one_session_id_context_outlive_others(open_agent, version):
    """
    A session that was not offered while another id was in force is still good under its own.
    """
    with Server({"session_id_context": "one"}) as server:
        ours, theirs = (open_agent(ca=server.ca_pem, min_version=version, max_version=version) for _ in range(2))
        ours.request("GET", server.url + "/close")
        server.reconfigure(session_id_context="two")
        theirs.request("GET", server.url + "/close")
        server.reconfigure(session_id_context="one")
        ours.request("GET", server.url + "/close")

        assert [c.session_reused for c in server.connections] == [False, False, True]


@pytest.mark.parametrize("version", VERSIONS)
def test_session_id_context_on_a_client(open_agent, server, version):
    """
    A client warns once of each options; its connections and sessions of one name serve no request of another.
    """
    options = {"ca": server.ca_pem, "min_version": version, "max_version": version}
    with pytest.warns(ServerOptionWarning, match="session_id_context") as caught:
        agent = open_agent(session_id_context="one", **options)
    assert [type(one.message) for one in caught] == [ServerOptionWarning]
    other = ConnectionOptions(session_id_context="two")

    agent.request("GET", server.url + "/close")
    agent.request("GET", server.url + "/hello")
    with pytest.warns(ServerOptionWarning, match="session_id_context"):
        response = agent.request("GET", server.url + "/hello", options=other)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elsewhere = f"https://127.0.0.1:{server.port}"
        for again in (other, {"session_id_context": "two"}):
            agent.request("GET", elsewhere + "/hello", options=again)
        agent.connect("localhost", server.port, session_id_context="two").close()

    assert not response.reused
    assert [c.session_reused for c in server.connections[:3]] == [False, True, False]


# --- In a context -----------------------------------------------------------------------------------------------------


def test_a_context_brings_what_its_server_does(open_agent):
    """
    dhparam and honor_cipher_order count in a `secure_context` as among the server's options.
    """

    def rsa_context(**options: Any) -> Any:
        return create_secure_context(
            cert=RSA.cert_pem, key=RSA.key_pem, max_version="TLSv1.2", ciphers=f"{DHE}:{ECDHE}", **options
        )

    # Without groups of RFC 7919 in the offer: OpenSSL would take one of those.
    offer = {"ciphers": f"{ECDHE}:{DHE}", "ecdh_curve": "X25519:P-256"}
    dhparam = GROUPS[3072]
    for context, cipher in (
        (rsa_context(), ECDHE),
        (rsa_context(dhparam=dhparam), ECDHE),
        (rsa_context(honor_cipher_order=True), ECDHE),
        (rsa_context(honor_cipher_order=True, dhparam=dhparam), DHE),
    ):
        with Server({"secure_context": context}) as server:
            agent = open_agent(ca=server.ca_pem, min_dh_size=3072, **offer)
            agent.request("GET", server.url + "/hello")

            assert last_cipher(server) == cipher
            if cipher == DHE:
                with pytest.raises(HandshakeError, match="3072"):
                    agent.request("GET", server.url + "/hello", options={"min_dh_size": 3073})


# --- On a client ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sni_callback", lambda _name: pytest.fail("a client asked for a server's context")),
        ("request_cert", True),
        ("dhparam", GROUPS[2048]),
        ("honor_cipher_order", True),
    ],
)
def test_a_server_option_changes_nothing_on_a_client(open_agent, server, name, value):
    """
    An agent warns once and shakes hands as it would without; requests with and without it share a connection.
    """
    plain = open_agent(ca=server.ca_pem)
    with pytest.warns(ServerOptionWarning, match=name) as caught:
        agent = open_agent(ca=server.ca_pem, **{name: value})
    assert [type(one.message) for one in caught] == [ServerOptionWarning]

    for one in (plain, agent):
        one.request("GET", server.url + "/hello")
    with pytest.warns(ServerOptionWarning, match=name) as caught:
        agent.request("GET", server.url + "/hello", options={name: value})
    assert [type(one.message) for one in caught] == [ServerOptionWarning]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.request("GET", server.url + "/hello")

    assert [connection.request_count for connection in server.connections] == [1, 3]
    first, second = server.connections
    assert (first.cipher, first.version, first.sni) == (second.cipher, second.version, second.sni)
    assert len(first.client_hello) == len(second.client_hello)
