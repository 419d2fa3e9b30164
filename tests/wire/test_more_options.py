"""
Each option that is not in `test_option_effects`, from the peer's side; then every option there is: who shares what.

Every test of the first half fails if its option has no effect. The second half walks `_identity.KEY_TABLE` and demands
a pair of options for each row.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PublicFormat,
    pkcs12,
)
from OpenSSL import SSL
from openssl_peer import OpenSSLPeer, Seen
from proxy_peer import ProxyServer
from tls_support import CLIENT_AUTH, DAY, NOW, Issued, crl, encrypted, front, hello_of, issue, offers_session
from wire_peer import closed_port, tarpit, wait_until

from tlsagent import (
    CertificateError,
    CertificateNameError,
    ConnectError,
    ConnectTimeout,
    HandshakeError,
    OptionError,
    Psk,
    ResolutionError,
    ServerOptionWarning,
    Session,
    Timeouts,
    create_secure_context,
    events,
)
from tlsagent._identity import KEY_TABLE
from tlsagent.testing import ClientHello, Server, default_authority
from tlsagent.testing._hello import SUPPORTED_VERSIONS

pytestmark = pytest.mark.tls

ROOT = issue("more root", ca=True)
OTHER_ROOT = issue("another root", ca=True)
MIDDLE = issue("more intermediate", by=ROOT, ca=True)
LEAF = issue("localhost", "a.test", "b.test", by=ROOT)
RSA_LEAF = issue("localhost", by=ROOT, rsa_bits=2048)
CLIENT = issue("client.test", by=ROOT, purpose=CLIENT_AUTH)
OTHER_CLIENT = issue("other.test", by=ROOT, purpose=CLIENT_AUTH)
PASSPHRASE = "open sesame"
KEY = bytes(range(32))
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "errors.json").read_text("utf-8"))["meta"]["files"]

SUPPORTED_GROUPS, SIGNATURE_ALGORITHMS, STATUS_REQUEST, SESSION_TICKET = 10, 13, 5, 35

each_version = pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])


@pytest.fixture
def server(new_server: Callable[..., Server]) -> Iterator[Server]:
    """Return a server with a certificate of ROOT, which takes a client certificate from those who have one."""
    with new_server(credentials=LEAF.with_chain(), request_cert=True, client_ca=ROOT.pem) as server:
        yield server


@pytest.fixture
def open_openssl() -> Iterator[Callable[..., OpenSSLPeer]]:
    """Return a function that starts an `OpenSSLPeer`."""
    with contextlib.ExitStack() as stack:

        def start(**manner: Any) -> OpenSSLPeer:
            peer = OpenSSLPeer(**manner)
            stack.callback(peer.close)
            return peer

        yield start


def hello_at(seen: Seen) -> ClientHello:
    assert seen.hello is not None
    return seen.hello


def numbers(extension: bytes) -> list[int]:
    """Return the numbers in an extension that is one list of 16-bit numbers."""
    return [int.from_bytes(extension[at : at + 2], "big") for at in range(2, len(extension), 2)]


# --- Who we are, whom we trust ----------------------------------------------------------------------------------------


def pfx(who: Issued, *more: Issued, passphrase: str | None = None) -> bytes:
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    others = [one.certificate for one in more]
    return pkcs12.serialize_key_and_certificates(b"name", who.key, who.certificate, others, encryption)


@each_version
@pytest.mark.parametrize("form", ["bytes", "path", "passphrase", "item"])
def test_pfx_shows_who_we_are(open_agent, server, form, version, tmp_path):
    """
    The server gets the certificate in `pfx`, proved by its key, in every form that may be given.
    """
    locked = pfx(CLIENT, passphrase=PASSPHRASE)
    (tmp_path / "client.p12").write_bytes(pfx(CLIENT))
    said: dict[str, Any] = {
        "bytes": {"pfx": pfx(CLIENT)},
        "path": {"pfx": tmp_path / "client.p12"},
        "passphrase": {"pfx": locked, "passphrase": PASSPHRASE},
        "item": {"pfx": [{"buf": locked, "passphrase": PASSPHRASE}]},
    }[form]
    agent = open_agent(ca=ROOT.pem, min_version=version, max_version=version, **said)

    agent.request("GET", server.url + "/hello")

    assert [connection.client_certificate for connection in server.connections] == [CLIENT.der]


def test_pfx_brings_the_chain_of_its_certificate(open_agent, new_server):
    """
    A server that knows the root only accepts the certificate in `pfx` through the intermediate beside it.
    """
    client = issue("client.test", by=MIDDLE, purpose=CLIENT_AUTH)
    with new_server(credentials=LEAF.with_chain(), request_cert="demand", client_ca=ROOT.pem) as server:
        agent = open_agent(ca=ROOT.pem, pfx=pfx(client, MIDDLE))

        agent.request("GET", server.url + "/hello")

        assert server.connections[0].client_certificate == client.der


def test_pfx_adds_its_authorities_to_the_trusted_ones(open_agent, server):
    """
    A root in `pfx` is trusted besides those of `ca`, as in Node.
    """
    agent = open_agent(ca=OTHER_ROOT.pem)
    with pytest.raises(CertificateError):
        agent.request("GET", server.url + "/hello")

    response = agent.request("GET", server.url + "/hello", options={"pfx": pfx(CLIENT, ROOT)})

    assert response.connection.authorized


EMPTY_CRL = crl(ROOT)
BAD_CRLS = {
    "CERT_REVOKED": crl(ROOT, LEAF),
    "CRL_HAS_EXPIRED": crl(ROOT, until=NOW - DAY, since=NOW - 2 * DAY),
    "UNABLE_TO_GET_CRL": crl(OTHER_ROOT),
}


@pytest.mark.parametrize("code", BAD_CRLS)
def test_crl_refuses_what_was_revoked(open_agent, server, code):
    """
    A server in the list is refused, and so is one whose issuer has no list or an old one; one not in it is accepted.
    """
    agent = open_agent(ca=ROOT.pem)
    assert agent.request("GET", server.url + "/hello", options={"crl": EMPTY_CRL}).connection.authorized

    with pytest.raises(CertificateError) as caught:
        agent.request("GET", server.url + "/hello", options={"crl": BAD_CRLS[code]})

    assert caught.value.code == code


def test_partial_chain_ends_at_any_trusted_certificate(open_agent, new_server):
    """
    With an intermediate alone in `ca`, its server is trusted only by `allow_partial_trust_chain`.
    """
    behind = issue("localhost", by=MIDDLE)
    with new_server(credentials=behind.with_chain(MIDDLE)) as server:
        agent = open_agent(ca=MIDDLE.pem)
        with pytest.raises(CertificateError):
            agent.request("GET", server.url + "/hello")

        response = agent.request("GET", server.url + "/hello", options={"allow_partial_trust_chain": True})

    assert response.connection.authorized


def pin(of: Issued) -> str:
    spki = of.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"sha256//{base64.b64encode(hashlib.sha256(spki).digest()).decode()}"


@pytest.mark.parametrize("reject", [True, False])
def test_pins_refuse_every_other_key(open_agent, server, reject):
    """
    The pin of the server's key or of its issuer's lets it pass, another one does not, whoever signed the certificate.
    """
    agent = open_agent(ca=ROOT.pem, reject_unauthorized=reject)
    url = server.url + "/hello"

    for right in ([pin(LEAF)], [pin(ROOT)], [pin(OTHER_ROOT), pin(LEAF)]):
        assert agent.request("GET", url, options={"pins": right}).connection.authorized
    with pytest.raises(CertificateError, match="pins"):
        agent.request("GET", url, options={"pins": [pin(CLIENT), pin(OTHER_ROOT)]})

    assert server.connections[-1].request_count == 0


def test_pins_come_on_top_of_the_other_checks(open_agent, server):
    """
    A right pin makes up neither for a chain nor for a name nor for the user's own check.
    """

    def never(_host: str, _certificate: Any) -> None:
        raise ValueError("never")

    agent = open_agent(pins=[pin(LEAF)], ca=ROOT.pem)
    url = server.url + "/hello"

    with pytest.raises(CertificateError) as caught:
        agent.request("GET", url, options={"ca": OTHER_ROOT.pem})
    with pytest.raises(CertificateNameError):
        agent.request("GET", url, options={"servername": "c.test"})
    with pytest.raises(CertificateNameError, match="never"):
        agent.request("GET", url, options={"check_server_identity": never})

    assert not isinstance(caught.value, CertificateNameError)
    assert server.stats.requests == 0


def test_pins_count_on_a_resumed_connection(open_agent, server):
    """
    A resumed connection is compared with the pins too, and passes by the keys of the full handshake.
    """
    agent = open_agent(pins=[pin(ROOT)], ca=ROOT.pem)

    responses = [agent.request("GET", server.url + "/close") for _ in range(2)]

    assert [response.connection.session_reused for response in responses] == [False, True]
    assert [connection.session_reused for connection in server.connections] == [False, True]


def test_verifier_is_openssl(open_agent, server):
    """
    `verifier` names the only one there is; any other is refused before a socket opens.
    """
    agent = open_agent(verifier="openssl", ca=ROOT.pem)
    assert agent.request("GET", server.url + "/hello").connection.authorized

    with pytest.raises(OptionError, match="verifier"):
        agent.request("GET", server.url + "/hello", options={"verifier": "none"})

    assert server.stats.connections == 1


def test_client_cert_engine_is_refused(open_agent, server):
    """
    An engine is refused by Node's error before a socket opens, since it could do nothing.
    """
    agent = open_agent(ca=ROOT.pem)

    with pytest.raises(OptionError, match="client_cert_engine") as caught:
        agent.request("GET", server.url + "/hello", options={"client_cert_engine": "pkcs11"})

    assert caught.value.code == "ERR_CRYPTO_CUSTOM_ENGINE_NOT_SUPPORTED"
    assert server.stats.connections == 0


# --- How the bytes are protected --------------------------------------------------------------------------------------

GROUPS = {"X25519": 0x1D, "P-256": 0x17, "P-384": 0x18, "P-521": 0x19}
GROUP_NAMES = {"x25519": 0x1D, "prime256v1": 0x17, "secp256r1": 0x17, "secp384r1": 0x18, "secp521r1": 0x19}


# In TLS 1.2 the curve of the server's own key must be among them.
@pytest.mark.parametrize(
    ("groups", "version"),
    [
        ("P-384", "TLSv1.3"),
        ("P-521:X25519", "TLSv1.3"),
        ("X25519:P-256", "TLSv1.3"),
        ("X25519:P-256", "TLSv1.2"),
        ("P-256:X25519", "TLSv1.2"),
        ("?unknown:P-384:P-256", "TLSv1.2"),
    ],
)
def test_ecdh_curve_is_offered_in_order(open_agent, open_openssl, groups, version):
    """
    The ClientHello has the groups of `ecdh_curve` in their order, and one of them is agreed on.
    """
    peer = open_openssl(version=version)
    agent = open_agent(ca=peer.ca_pem, ecdh_curve=groups, max_version=version)
    wanted = [GROUPS[name] for name in groups.split(":") if name in GROUPS]

    response = agent.request("GET", peer.url)

    [seen] = peer.seen
    assert numbers(hello_at(seen).extensions[SUPPORTED_GROUPS]) == wanted
    assert seen.group == response.connection.group
    assert GROUP_NAMES[(seen.group or "").lower()] in wanted


@pytest.mark.parametrize("said", [None, "auto"])
def test_ecdh_curve_auto_is_the_librarys_choice(open_agent, open_openssl, said):
    """
    None and "auto" take away what the agent says.
    """
    peer = open_openssl()
    agent = open_agent(ca=peer.ca_pem, ecdh_curve="P-384")

    agent.request("GET", peer.url, options={"ecdh_curve": said})

    assert len(numbers(hello_at(peer.seen[0]).extensions[SUPPORTED_GROUPS])) > 1


@each_version
def test_sigalgs_are_offered_in_order(open_agent, server, version):
    """
    The ClientHello has the algorithms of `sigalgs` in their order.
    """
    agent = open_agent(ca=ROOT.pem, sigalgs="ECDSA+SHA384:ecdsa_secp256r1_sha256", max_version=version)

    agent.request("GET", server.url + "/hello")

    assert numbers(hello_of(server.connections[0]).extensions[SIGNATURE_ALGORITHMS]) == [0x0503, 0x0403]


@each_version
def test_sigalgs_refuse_other_signatures(open_agent, new_server, version):
    """
    A server that can sign with RSA alone is none for a client that takes ECDSA alone.
    """
    with new_server(credentials=RSA_LEAF.with_chain()) as server:
        agent = open_agent(ca=ROOT.pem, max_version=version)
        assert agent.request("GET", server.url + "/hello").status == 200

        with pytest.raises(HandshakeError):
            agent.request("GET", server.url + "/hello", options={"sigalgs": "ECDSA+SHA256"})

        assert server.connections[1].request_count == 0


def test_secure_options_are_openssls(open_agent, server):
    """
    `secure_options` are OpenSSL's switches: here TLS 1.3 is off, and so are tickets.
    """
    agent = open_agent(ca=ROOT.pem)

    for bits in (0, SSL.OP_NO_TLSv1_3, SSL.OP_NO_TLSv1_3 | SSL.OP_NO_TICKET):
        agent.request("GET", server.url + "/hello", options={"secure_options": bits})

    assert [connection.version for connection in server.connections] == ["TLSv1.3", "TLSv1.2", "TLSv1.2"]
    hellos = [hello_of(connection) for connection in server.connections]
    assert [SUPPORTED_VERSIONS in hello.extensions for hello in hellos] == [True, False, False]
    assert [SESSION_TICKET in hello.extensions for hello in hellos] == [True, True, False]


@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        ("TLS_method", "TLSv1.3"),
        ("SSLv23_client_method", "TLSv1.2"),
        ("TLSv1_2_method", "TLSv1.2"),
        ("TLSv1_2_client_method", "TLSv1.2"),
    ],
)
def test_secure_protocol_bounds_the_offer(open_agent, server, method, chosen):
    """
    `secure_protocol` says which versions are offered, in place of what the agent says of them.
    """
    agent = open_agent(ca=ROOT.pem, min_version="TLSv1.3")

    agent.request("GET", server.url + "/hello", options={"secure_protocol": method})

    [record] = server.connections
    assert record.version == chosen
    assert (SUPPORTED_VERSIONS in hello_of(record).extensions) == (chosen == "TLSv1.3")


@pytest.mark.parametrize("method", ["TLSv1_method", "TLSv1_1_method"])
def test_secure_protocol_of_an_old_version(open_agent, server, method):
    """
    Methods of old versions offer nothing that a server of today takes.
    """
    agent = open_agent(ca=ROOT.pem, secure_protocol=method)

    with pytest.raises(HandshakeError):
        agent.request("GET", server.url + "/hello")

    assert server.stats.handshakes_full == 0


DHE = "DHE-RSA-AES128-GCM-SHA256"


@pytest.mark.parametrize(
    ("bits", "ciphers", "least"), [(1024, f"{DHE}:@SECLEVEL=0", 1025), (2048, DHE, 2049), (2048, DHE, 3072)]
)
@pytest.mark.parametrize("reject", [True, False])
def test_min_dh_size_refuses_a_smaller_group(open_agent, open_openssl, tmp_path, bits, ciphers, least, reject):
    """
    A DHE group is accepted if it has `min_dh_size` bits, and refused with one less, whatever reject_unauthorized says.
    """
    (tmp_path / "dh.pem").write_text(VECTORS[f"dh{bits}"])
    peer = open_openssl(version="TLSv1.2", ciphers=ciphers, credentials=RSA_LEAF.with_chain(), dh=tmp_path / "dh.pem")
    # The group of an elliptic curve alone keeps the server from taking a named DH group in place of its own.
    agent = open_agent(ca=ROOT.pem, ciphers=ciphers, ecdh_curve="P-256", reject_unauthorized=reject)
    assert agent.request("GET", peer.url, options={"min_dh_size": bits}).connection.cipher == DHE

    with pytest.raises(HandshakeError) as caught:
        agent.request("GET", peer.url, options={"min_dh_size": least})

    assert caught.value.code == "ERR_TLS_DH_PARAM_SIZE"
    assert [seen.requests for seen in peer.seen] == [1, 0]


# --- What else the handshake does -------------------------------------------------------------------------------------


@each_version
def test_enable_trace_tells_the_messages(open_agent, server, version, capsys):
    """
    `enable_trace` writes the messages that went over the wire to standard error; without it nothing is written.
    """
    agent = open_agent(ca=ROOT.pem, max_version=version)
    agent.request("GET", server.url + "/close")
    assert capsys.readouterr().err == ""

    agent.request("GET", server.url + "/hello", options={"enable_trace": True})

    told = capsys.readouterr().err
    hello = server.connections[1].client_hello
    length = int.from_bytes(hello[3:5], "big")
    assert f"client_hello ({length} bytes)" in told.partition("\n")[0]
    assert "<<< " + version + " handshake server_hello" in told
    assert told.count(" handshake finished ") == 2


@each_version
def test_request_ocsp_asks_for_the_response(open_agent, open_openssl, version):
    """
    The server is asked by `request_ocsp` only, and what it staples comes with the connection, byte for byte.
    """
    peer = open_openssl(version=version, staple=b"\x30\x03\x0a\x01\x00")
    agent = open_agent(ca=peer.ca_pem)

    without, asked = (agent.request("GET", peer.url, options={"request_ocsp": said}) for said in (False, True))

    assert [STATUS_REQUEST in hello_at(seen).extensions for seen in peer.seen] == [False, True]
    assert without.connection.ocsp_response is None
    assert asked.connection.ocsp_response == b"\x30\x03\x0a\x01\x00"


@each_version
def test_psk_callback_gives_identity_and_key(open_agent, open_openssl, version):
    """
    The server hears the identity, the callback the hint, and no certificate is needed.
    """
    heard: list[str | None] = []

    def callback(hint: str | None) -> Psk:
        heard.append(hint)
        return Psk(KEY, "client-7")

    ciphers = {"TLSv1.2": "PSK-AES256-GCM-SHA384", "TLSv1.3": "TLS_AES_128_GCM_SHA256"}[version]
    server_ciphers = ciphers if version == "TLSv1.2" else None
    peer = open_openssl(version=version, ciphers=server_ciphers, keys={"client-7": KEY}, hint=b"which?")
    agent = open_agent(ca=OTHER_ROOT.pem, ciphers=ciphers, max_version=version)
    with pytest.raises((CertificateError, HandshakeError)):
        agent.request("GET", peer.url)
    assert peer.identities == []

    response = agent.request("GET", peer.url, options={"psk_callback": callback})

    assert (response.content, response.connection.authorized) == (b"ok", True)
    assert response.connection.peer_certificate is None
    assert set(peer.identities) == {"client-7"}
    assert heard[0] == ("which?" if version == "TLSv1.2" else None)


@each_version
def test_psk_of_another_server_is_no_use(open_agent, open_openssl, version):
    """
    A server that has another key under that identity is no peer.
    """
    ciphers = {"TLSv1.2": "PSK-AES256-GCM-SHA384", "TLSv1.3": "TLS_AES_128_GCM_SHA256"}[version]
    server_ciphers = ciphers if version == "TLSv1.2" else None
    peer = open_openssl(version=version, ciphers=server_ciphers, keys={"client-7": bytes(32)})
    agent = open_agent(
        ca=peer.ca_pem, ciphers=ciphers, max_version=version, psk_callback=lambda _hint: Psk(KEY, "client-7")
    )

    with pytest.raises(HandshakeError):
        agent.request("GET", peer.url)

    assert [seen.requests for seen in peer.seen] == [0]


def new_session(open_agent: Any, server: Server, **options: Any) -> Session:
    """Return a session that another agent got from the server."""
    agent = open_agent(ca=ROOT.pem, **options)
    told: list[Any] = []
    agent.agent.on(events.SessionTicket, told.append)
    agent.request("GET", server.url + "/close")
    assert wait_until(lambda: told)
    session: Session = told[-1].session
    return session


@each_version
@pytest.mark.parametrize("form", ["Session", "bytes"])
def test_session_is_offered_once(open_agent, server, form, version):
    """
    A `session` of another agent is resumed, by the first connection that is made for it and by no other one.
    """
    session = new_session(open_agent, server, max_version=version)
    said = session if form == "Session" else session.to_bytes()
    agent = open_agent(ca=ROOT.pem, max_version=version, max_cached_sessions=0)
    options = {"session": said}

    responses = [agent.request("GET", server.url + "/close", options=options) for _ in range(2)]

    _maker, *connections = server.connections
    assert [offers_session(connection) for connection in connections] == [True, False]
    assert [connection.session_reused for connection in connections] == [True, False]
    assert [response.connection.session_reused for response in responses] == [True, False]


@pytest.mark.parametrize(
    "other",
    [{"servername": "b.test"}, {"ca": [ROOT.pem, OTHER_ROOT.pem]}, {"reject_unauthorized": False}],
    ids=["name", "trust", "reject_unauthorized"],
)
def test_session_is_not_offered_elsewhere(open_agent, server, other):
    """
    A `session` stays unused under another name and under other trust than it was made under.
    """
    session = new_session(open_agent, server)
    agent = open_agent(ca=ROOT.pem)

    response = agent.request("GET", server.url + "/hello", options={"session": session, **other})

    assert response.status == 200
    assert not response.connection.session_reused
    assert "made for another server" in response.connection.why_not_resumed
    assert not offers_session(server.connections[1])


# --- Where the bytes go -----------------------------------------------------------------------------------------------


@pytest.fixture
def both_families(monkeypatch) -> str:
    """Return a name that the system's resolver knows an address of each family for."""
    addresses = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0, 0, 0)}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, family: int = 0, **more: Any) -> list[Any]:
        if host != "both.test":
            return real(host, *arguments, family=family, **more)
        return [(kind, socket.SOCK_STREAM, 6, "", addresses[kind]) for kind in addresses if family in (0, kind)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return "both.test"


@pytest.mark.parametrize(("family", "address"), [(4, "127.0.0.1"), (6, "::1"), (0, "127.0.0.1")])
def test_family_chooses_the_addresses(open_agent, open_openssl, both_families, family, address):
    """
    With `family` addresses of that family alone are used, of a name that has both.
    """
    peer = open_openssl()
    agent = open_agent(ca=peer.ca_pem, host=both_families, family=family)

    agent.request("GET", peer.url)

    assert [seen.address[0] for seen in peer.seen] == [address]


def test_family_is_told_to_lookup(open_agent, server):
    """
    The hook hears `family`.
    """
    asked = []

    def lookup(_host: str, family: int) -> list[str]:
        asked.append(family)
        return ["127.0.0.1"]

    open_agent(ca=ROOT.pem, family=4, lookup=lookup).request("GET", server.url + "/hello")

    assert asked == [4]


def test_family_holds_for_what_lookup_gives(open_agent, server):
    """
    Of the hook's addresses those of the family are tried; if there are none, the error says so.
    """
    agent = open_agent(ca=ROOT.pem, lookup=lambda _host, _family: ["::1", "127.0.0.1", "::1"])
    four = agent.request("GET", server.url + "/hello", options={"family": 4})

    assert four.connection.remote_address[0] == "127.0.0.1"
    with pytest.raises(ResolutionError, match="no address of family 6"):
        agent.request(
            "GET",
            server.url + "/hello",
            options={"family": 6, "lookup": lambda _host, _family: ["127.0.0.1"]},
        )


def test_local_address_of_the_other_family(open_agent, server):
    """
    A local address from which none of the addresses can be reached is named in the error, with Node's code.
    """
    agent = open_agent(ca=ROOT.pem, local_address="::1", lookup=lambda _host, _family: ["127.0.0.1"])

    with pytest.raises(ConnectError, match="local_address ::1 is of the other family") as caught:
        agent.request("GET", server.url + "/hello")

    assert caught.value.code == "EINVAL"


def test_local_address_is_where_we_come_from(open_agent, open_openssl):
    """
    The server sees the connection come from `local_address`.
    """
    peer = open_openssl()
    agent = open_agent(ca=peer.ca_pem, local_address="127.0.0.9")

    response = agent.request("GET", peer.url)

    assert [seen.address[0] for seen in peer.seen] == ["127.0.0.9"]
    assert response.connection.local_address[0] == "127.0.0.9"


def test_local_address_that_is_not_ours(open_agent, open_openssl):
    """
    An address that no interface has fails the request, and nothing is connected.
    """
    peer = open_openssl()
    agent = open_agent(ca=peer.ca_pem, local_address="192.0.2.1")

    with pytest.raises(ConnectError) as caught:
        agent.request("GET", peer.url)

    assert caught.value.code == "EADDRNOTAVAIL"
    assert peer.seen == []


def test_local_port_is_where_we_come_from(open_agent, open_openssl):
    """
    The server sees the connection come from `local_port`.
    """
    peer = open_openssl()
    port = closed_port()
    agent = open_agent(ca=peer.ca_pem, local_port=port, host="127.0.0.1")

    agent.request("GET", peer.url)

    assert [seen.address for seen in peer.seen] == [("127.0.0.1", port)]


@pytest.fixture
def slow_first() -> Iterator[tuple[int, Callable[..., list[str]], list[Any]]]:
    """Give a port, a look-up of two addresses, and the connections taken; the first address says nothing."""
    with tarpit() as port, OpenSSLFront(port) as accepted:
        yield port, lambda _host, _family: ["127.0.0.1", "127.0.0.2"], accepted


class OpenSSLFront:
    """The port of the tarpit on another address, with a server behind it."""

    def __init__(self, port: int) -> None:
        self._stack = contextlib.ExitStack()
        self._port = port

    def __enter__(self) -> list[Any]:
        peer = OpenSSLPeer()
        self._stack.callback(peer.close)
        listener = socket.create_server(("127.0.0.2", self._port))
        return self._stack.enter_context(front(listener, peer.port))

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()


CA = default_authority().ca_pem


def test_auto_select_family_tries_the_next_address(open_agent, slow_first):
    """
    By default a second address is tried beside a silent first one; without `auto_select_family` the first is the only.
    """
    port, lookup, accepted = slow_first
    url = f"https://localhost:{port}/"
    first_only = open_agent(ca=CA, lookup=lookup, auto_select_family=False, timeouts=Timeouts(connect=0.6))

    with pytest.raises(ConnectTimeout):
        first_only.request("GET", url)
    assert accepted == []

    assert open_agent(ca=CA, lookup=lookup).request("GET", url).content == b"ok"
    assert len(accepted) == 1


def test_attempt_timeout_is_how_long_the_next_address_waits(open_agent, slow_first):
    """
    The second address is tried when `auto_select_family_attempt_timeout` has passed, and not before; never for None.
    """
    port, lookup, accepted = slow_first
    agent = open_agent(ca=CA, lookup=lookup)
    url = f"https://localhost:{port}/"

    took = []
    for seconds in (0.02, 0.7):
        began = time.monotonic()
        agent.request("GET", url, options={"auto_select_family_attempt_timeout": seconds})
        took.append(time.monotonic() - began)
        agent.close_idle()
    with pytest.raises(TimeoutError):
        agent.request("GET", url, options={"auto_select_family_attempt_timeout": None}, timeouts=0.6)

    assert took[0] < 0.6 < 0.69 < took[1]
    assert len(accepted) == 2


def socket_options(local_address: Any, *options: tuple[int, int]) -> list[int]:
    """Return options of this process's socket that has a local address: the peer cannot see them."""
    for descriptor in range(3, 1024):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as sock:
                if sock.getsockname() == local_address:
                    return [sock.getsockopt(*option) for option in options]
    raise AssertionError(f"no socket has the address {local_address}")


@pytest.mark.parametrize(("said", "found"), [({}, True), ({"no_delay": True}, True), ({"no_delay": False}, False)])
def test_no_delay_is_set_on_the_socket(open_agent, server, said, found):
    """
    The socket has TCP_NODELAY as `no_delay` says, by default on.
    """
    response = open_agent(ca=ROOT.pem, **said).request("GET", server.url + "/hello")

    [value] = socket_options(response.connection.local_address, (socket.IPPROTO_TCP, socket.TCP_NODELAY))
    assert bool(value) is found


@pytest.mark.parametrize(
    ("said", "on", "idle"),
    [(None, False, None), (False, False, None), (True, True, None), (7, True, 7), (7.5, True, 8), (0.2, True, 1)],
)
def test_tcp_keep_alive_is_set_on_the_socket(open_agent, server, said, on, idle):
    """
    The socket probes its peer if `tcp_keep_alive` says so, after as many whole seconds at least.
    """
    response = open_agent(ca=ROOT.pem, tcp_keep_alive=said).request("GET", server.url + "/hello")

    after = getattr(socket, "TCP_KEEPIDLE", None) or socket.TCP_KEEPALIVE
    with socket.socket() as fresh:
        untouched = fresh.getsockopt(socket.IPPROTO_TCP, after)
    wanted = (socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, after)
    found = socket_options(response.connection.local_address, *wanted)
    assert [bool(found[0]), found[1]] == [on, idle or untouched]


# --- Who shares with whom, option by option ---------------------------------------------------------------------------


def accept(_host: str, _certificate: Any) -> None:
    """A hook that accepts."""


def accept_too(_host: str, _certificate: Any) -> None:
    """A hook that accepts as well, and is another one."""


def loopback(_host: str, _family: int) -> list[str]:
    return ["127.0.0.1"]


def loopback_too(_host: str, _family: int) -> list[str]:
    return ["127.0.0.1"]


def no_key(_hint: str | None) -> None:
    """A source of keys that has none."""


def no_key_either(_hint: str | None) -> None:
    """Another one."""


class Fronts:
    """Further ways to a server, made as a pair of options asks for them."""

    def __init__(self, server: Server, folder: Path, stack: contextlib.ExitStack) -> None:
        self._server = server
        self._folder = folder
        self._stack = stack

    def port(self) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        self._stack.enter_context(front(listener, self._server.port))
        return port

    def proxy(self) -> str:
        return self._stack.enter_context(ProxyServer()).url

    def path(self, name: str) -> str:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._folder / name))
        listener.listen()
        self._stack.enter_context(front(listener, self._server.port))
        return str(self._folder / name)


Pair = tuple[dict[str, Any], dict[str, Any]]
BOTH_ROOTS = [ROOT.pem, OTHER_ROOT.pem]
IN_THE_CLEAR = {"cert": CLIENT.pem, "key": CLIENT.key_pem}

# For each option two requests that differ in it. What two requests cannot differ in alone comes with what it needs.
PAIRS: dict[str, Pair | Callable[[Fronts], Pair]] = {
    "alpn_protocols": ({}, {"alpn_protocols": ["x/1", "http/1.1"]}),
    "sni_callback": ({}, {"sni_callback": lambda _name: None}),
    "ca": ({}, {"ca": BOTH_ROOTS}),
    "cert": (IN_THE_CLEAR, {"cert": CLIENT.pem + ROOT.pem, "key": CLIENT.key_pem}),
    "check_server_identity": ({"check_server_identity": accept}, {"check_server_identity": accept_too}),
    "ciphers": ({}, {"ciphers": "TLS_AES_128_GCM_SHA256"}),
    "crl": ({}, {"crl": EMPTY_CRL}),
    "dhparam": ({}, {"dhparam": VECTORS["dh2048"]}),
    "ecdh_curve": ({"ecdh_curve": "X25519"}, {"ecdh_curve": "P-256"}),
    "enable_trace": ({}, {"enable_trace": True}),
    "honor_cipher_order": ({}, {"honor_cipher_order": True}),
    "host": ({"host": "127.0.0.1"}, {"host": "localhost"}),
    "key": (IN_THE_CLEAR, {"cert": OTHER_CLIENT.pem, "key": OTHER_CLIENT.key_pem}),
    "lookup": ({"lookup": loopback}, {"lookup": loopback_too}),
    "max_version": ({}, {"max_version": "TLSv1.2"}),
    "min_dh_size": ({}, {"min_dh_size": 2048}),
    "min_version": ({}, {"min_version": "TLSv1.3"}),
    "passphrase": (
        IN_THE_CLEAR,
        {"cert": CLIENT.pem, "key": encrypted(CLIENT.key_pem, PASSPHRASE), "passphrase": PASSPHRASE},
    ),
    "path": lambda fronts: ({"path": fronts.path("one")}, {"path": fronts.path("two")}),
    "pfx": ({"pfx": pfx(CLIENT)}, {"pfx": pfx(OTHER_CLIENT)}),
    "port": lambda fronts: ({}, {"port": fronts.port()}),
    "reject_unauthorized": ({}, {"reject_unauthorized": False}),
    "request_cert": ({}, {"request_cert": True}),
    "secure_context": (
        {"secure_context": create_secure_context(ca=ROOT.pem)},
        {"secure_context": create_secure_context(ca=BOTH_ROOTS)},
    ),
    "secure_options": ({}, {"secure_options": SSL.OP_CIPHER_SERVER_PREFERENCE}),
    "secure_protocol": ({}, {"secure_protocol": "TLSv1_2_method"}),
    "servername": ({"servername": "a.test"}, {"servername": "b.test"}),
    "session_id_context": ({"session_id_context": "one"}, {"session_id_context": "other"}),
    "timeout": ({"timeout": 20}, {"timeout": 30}),
    "sigalgs": ({}, {"sigalgs": "ECDSA+SHA256"}),
    "allow_partial_trust_chain": ({}, {"allow_partial_trust_chain": True}),
    "request_ocsp": ({}, {"request_ocsp": True}),
    "psk_callback": ({"psk_callback": no_key}, {"psk_callback": no_key_either}),
    "proxy": lambda fronts: ({"proxy": fronts.proxy()}, {"proxy": fronts.proxy()}),
    "family": ({}, {"family": 4}),
    "local_address": ({}, {"local_address": "127.0.0.9"}),
    "local_port": lambda _fronts: ({"host": "127.0.0.1"}, {"host": "127.0.0.1", "local_port": closed_port()}),
    "auto_select_family": ({}, {"auto_select_family": False}),
    "auto_select_family_attempt_timeout": ({}, {"auto_select_family_attempt_timeout": 1.0}),
    "no_delay": ({}, {"no_delay": False}),
    "tcp_keep_alive": ({}, {"tcp_keep_alive": 30}),
    "pins": ({"pins": [pin(LEAF)]}, {"pins": [pin(ROOT)]}),
    "verifier": ({}, {"verifier": "openssl"}),
}
# Say by what kind of socket the bytes go, not who is at its other end: sessions are shared, as the table says.
OF_THE_SOCKET = {"family", "local_address", "local_port", "no_delay", "tcp_keep_alive", "enable_trace"}
# These have tests of their own below: a socket serves one connection, a session is offered once, engines are refused.
APART = {"socket", "session", "client_cert_engine"}

OF_REQUESTS = [name for name, row in KEY_TABLE.items() if row.where != "agent"]


@pytest.fixture
def fronts(server, tmp_path) -> Iterator[Fronts]:
    """Return further ways to the server."""
    with contextlib.ExitStack() as stack:
        yield Fronts(server, tmp_path, stack)


def test_every_option_has_a_pair():
    """
    A row in the key table demands a pair of requests here, and the sockets' options say that sessions are shared.
    """
    assert {*PAIRS, *APART} == set(OF_REQUESTS)
    assert {name for name, row in KEY_TABLE.items() if "sessions are shared" in row.why} == OF_THE_SOCKET


@pytest.mark.filterwarnings(f"ignore::{ServerOptionWarning.__module__}.{ServerOptionWarning.__name__}")
@pytest.mark.parametrize("name", [name for name in OF_REQUESTS if name in PAIRS])
def test_key_table_says_who_shares(open_agent, server, fronts, name):
    """
    Two requests that differ in an option share neither connection nor session if it is in the key, else both.
    """
    found = PAIRS[name]
    one, other = found(fronts) if callable(found) else found
    agent = open_agent(ca=ROOT.pem)
    url = server.url + "/hello"

    responses = [agent.request("GET", url, options=options) for options in (one, other, one, other)]
    agent.close_idle()
    responses.append(agent.request("GET", url, options=one))

    connections = server.connections
    reused = [response.reused for response in responses]
    if not KEY_TABLE[name].in_key:
        assert reused == [False, True, True, True, False]
        assert [connection.request_count for connection in connections] == [4, 1]
        assert [connection.session_reused for connection in connections] == [False, True]
        return
    assert reused == [False, False, True, True, False]
    assert [connection.request_count for connection in connections] == [2, 2, 1]
    shared = name in OF_THE_SOCKET
    assert [offers_session(connection) for connection in connections] == [False, shared, True]
    assert [connection.session_reused for connection in connections] == [False, shared, True]


def test_socket_is_in_the_key(open_agent, server):
    """
    Requests with different sockets, or with none, share neither connection nor session.
    """
    assert KEY_TABLE["socket"].in_key
    agent = open_agent(ca=ROOT.pem)
    one, other = (socket.create_connection(("127.0.0.1", server.port)) for _ in range(2))

    for options in ({"socket": one}, {"socket": other}, {}, {"socket": one}):
        agent.request("GET", server.url + "/hello", options=options)

    assert sorted(connection.request_count for connection in server.connections) == [1, 1, 2]
    assert not any(offers_session(connection) for connection in server.connections)


def test_session_is_not_in_the_key(open_agent, server):
    """
    A request with a `session` takes the connection that is there, and offers nothing.
    """
    assert not KEY_TABLE["session"].in_key
    session = new_session(open_agent, server)
    agent = open_agent(ca=ROOT.pem)
    agent.request("GET", server.url + "/hello")

    response = agent.request("GET", server.url + "/hello", options={"session": session})

    assert response.reused
    assert [connection.request_count for connection in server.connections] == [1, 2]
