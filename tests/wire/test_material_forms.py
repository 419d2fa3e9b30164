"""
Certificates, keys, revocation lists and DH parameters in every form that they may be given in, seen by the peer.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from test_server_options import DHE, GROUPS, RSA
from tls_support import CLIENT_AUTH, Issued, crl, encrypted, issue

from tlsagent import CertificateError, HandshakeError, OptionError
from tlsagent.testing import Server

pytestmark = pytest.mark.tls

ROOT = issue("root of forms", ca=True)
OTHER_ROOT = issue("another root of forms", ca=True)
MIDDLE = issue("intermediate of forms", by=ROOT, ca=True)
LEAF = issue("localhost", by=ROOT)
RSA_ROOT = issue("RSA root of forms", ca=True, rsa_bits=2048)
RSA_LEAF = issue("localhost", by=RSA_ROOT, rsa_bits=2048)
CLIENT = issue("client.test", by=ROOT, purpose=CLIENT_AUTH)
RSA_CLIENT = issue("rsa.client.test", by=RSA_ROOT, purpose=CLIENT_AUTH, rsa_bits=2048)
BOTH = ROOT.pem + RSA_ROOT.pem
PASSPHRASE = "open sesame"

FORMS: dict[str, Callable[[bytes, bytes, Path], Any]] = {
    "PEM": lambda pem, _der, _folder: pem,
    "text": lambda pem, _der, _folder: pem.decode(),
    "DER": lambda _pem, der, _folder: der,
    "bytearray": lambda pem, _der, _folder: bytearray(pem),
    "memoryview": lambda _pem, der, _folder: memoryview(der),
    "path": lambda pem, _der, folder: _saved(folder, pem),
    "path of DER": lambda _pem, der, folder: _saved(folder, der),
    "list of text": lambda pem, _der, _folder: [pem.decode()],
    "list of DER": lambda _pem, der, _folder: [der],
    "list of a path": lambda pem, _der, folder: [_saved(folder, pem)],
    "tuple": lambda pem, _der, _folder: (pem,),
}
SINGLE = [form for form in FORMS if "list" not in form and form != "tuple"]


def _saved(folder: Path, content: bytes) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.material"
    path.write_bytes(content)
    return path


def key_der(of: Issued, passphrase: str | None = None) -> bytes:
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    der: bytes = of.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, encryption)
    return der


@pytest.fixture
def demanding(new_server: Callable[..., Server]) -> Iterator[Server]:
    """Return a server that demands a client certificate."""
    with new_server(credentials=LEAF.with_chain(), request_cert="demand", client_ca=BOTH) as server:
        yield server


@pytest.mark.parametrize("form", FORMS)
def test_ca(open_agent, new_server, form, tmp_path):
    """
    The root is trusted in every form of `ca`; another one in the same form does not vouch for the server.
    """
    ours, theirs = (FORMS[form](root.pem, root.der, tmp_path) for root in (ROOT, OTHER_ROOT))
    with new_server(credentials=LEAF.with_chain()) as server:
        agent = open_agent(ca=ours)

        assert agent.request("GET", server.url + "/hello").connection.authorized
        with pytest.raises(CertificateError):
            agent.request("GET", server.url + "/hello", options={"ca": theirs})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("client", [CLIENT, RSA_CLIENT], ids=["EC", "RSA"])
def test_cert_and_key(open_agent, demanding, form, client, tmp_path):
    """
    The server gets the certificate, proved by its key, in every form of `cert` and `key`.
    """
    cert = FORMS[form](client.pem, client.der, tmp_path)
    key = FORMS[form](client.key_pem, key_der(client), tmp_path)

    open_agent(ca=ROOT.pem, cert=cert, key=key).request("GET", demanding.url + "/hello")

    assert [connection.client_certificate for connection in demanding.connections] == [client.der]


LOCKED = encrypted(CLIENT.key_pem, PASSPHRASE)
LOCKED_KEYS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "item": lambda _folder: {"key": [{"pem": LOCKED, "passphrase": PASSPHRASE}]},
    "item of text": lambda _folder: {"key": [{"pem": LOCKED.decode(), "passphrase": PASSPHRASE}]},
    "item of a path": lambda folder: {"key": [{"pem": _saved(folder, LOCKED), "passphrase": PASSPHRASE}]},
    "item of DER": lambda _folder: {"key": [{"pem": key_der(CLIENT, PASSPHRASE), "passphrase": PASSPHRASE}]},
    "item in the clear": lambda _folder: {"key": [{"pem": CLIENT.key_pem}]},
    "item without its own": lambda _folder: {"key": [{"pem": LOCKED}], "passphrase": PASSPHRASE},
    "item before the option": lambda _folder: {
        "key": [{"pem": LOCKED, "passphrase": PASSPHRASE}],
        "passphrase": "another",
    },
    "option": lambda _folder: {"key": LOCKED, "passphrase": PASSPHRASE},
    "option, DER": lambda _folder: {"key": key_der(CLIENT, PASSPHRASE), "passphrase": PASSPHRASE},
    "option, list": lambda folder: {"key": [_saved(folder, LOCKED)], "passphrase": PASSPHRASE},
}


@pytest.mark.parametrize("form", LOCKED_KEYS)
def test_encrypted_key(open_agent, demanding, form, tmp_path):
    """
    An encrypted key is opened by the passphrase beside it in the list, else by the option.
    """
    open_agent(ca=ROOT.pem, cert=CLIENT.pem, **LOCKED_KEYS[form](tmp_path)).request("GET", demanding.url + "/hello")

    assert [connection.client_certificate for connection in demanding.connections] == [CLIENT.der]


def test_passphrase_of_an_item_must_fit(open_agent, demanding):
    """
    A wrong passphrase beside a key is refused before a socket opens, though that of the option would do.
    """
    options = {"cert": CLIENT.pem, "key": [{"pem": LOCKED, "passphrase": "wrong"}], "passphrase": PASSPHRASE}
    agent = open_agent(ca=ROOT.pem)

    with pytest.raises(OptionError) as caught:
        agent.request("GET", demanding.url + "/hello", options=options)

    assert caught.value.code == "ERR_OSSL_BAD_DECRYPT"
    assert demanding.stats.connections == 0


@pytest.mark.parametrize("crossed", [False, True], ids=["in order", "crossed"])
@pytest.mark.parametrize(
    ("version", "theirs", "sigalgs", "shown"),
    [
        ("TLSv1.3", LEAF, "ECDSA+SHA256", CLIENT),
        ("TLSv1.3", RSA_LEAF, "rsa_pss_rsae_sha256:RSA+SHA256", RSA_CLIENT),
        ("TLSv1.2", RSA_LEAF, "rsa_pss_rsae_sha256:RSA+SHA256", RSA_CLIENT),
        ("TLSv1.2", LEAF, "ECDSA+SHA256", None),
    ],
)
def test_several_certificates_and_keys(open_agent, new_server, version, theirs, sigalgs, shown, crossed):
    """
    Of a list the certificate is shown that suits the server, with the key that belongs to it, wherever that stands; in
    TLS 1.2 the last one or none.
    """
    keys = [{"pem": LOCKED, "passphrase": PASSPHRASE}, key_der(RSA_CLIENT)]
    options = {"sigalgs": sigalgs, "request_cert": True, "reject_unauthorized": False}
    with new_server({**options, "ca": BOTH, "cert": theirs.pem, "key": theirs.key_pem}) as server:
        agent = open_agent(
            ca=BOTH,
            cert=[CLIENT.pem.decode(), RSA_CLIENT.der],
            key=keys[::-1] if crossed else keys,
            min_version=version,
            max_version=version,
        )

        agent.request("GET", server.url + "/hello")

        assert [connection.client_certificate for connection in server.connections] == [shown and shown.der]


@pytest.mark.parametrize("form", FORMS)
def test_crl(open_agent, new_server, form, tmp_path):
    """
    A list refuses the server that is in it in every form of `crl`, and one that is empty lets it pass.
    """

    def in_form(pem: bytes) -> Any:
        return FORMS[form](pem, x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER), tmp_path)

    with new_server(credentials=LEAF.with_chain()) as server:
        agent = open_agent(ca=ROOT.pem, crl=in_form(crl(ROOT)))
        assert agent.request("GET", server.url + "/hello").connection.authorized

        with pytest.raises(CertificateError) as caught:
            agent.request("GET", server.url + "/hello", options={"crl": in_form(crl(ROOT, LEAF))})

    assert caught.value.code == "CERT_REVOKED"


@pytest.mark.parametrize("together", [True, False], ids=["in one PEM", "in a list"])
def test_several_lists(open_agent, new_server, together):
    """
    Each issuer's list counts: with the root's alone the intermediate's is missed.
    """
    behind = issue("localhost", by=MIDDLE)
    lists = [crl(ROOT), crl(MIDDLE)]
    with new_server(credentials=behind.with_chain(MIDDLE)) as server:
        agent = open_agent(ca=ROOT.pem, crl=b"".join(lists) if together else [lists[0], lists[1].decode()])
        assert agent.request("GET", server.url + "/hello").connection.authorized

        with pytest.raises(CertificateError) as missing:
            agent.request("GET", server.url + "/hello", options={"crl": lists[:1]})
        with pytest.raises(CertificateError) as revoked:
            agent.request("GET", server.url + "/hello", options={"crl": [lists[0], crl(MIDDLE, behind)]})

    assert (missing.value.code, revoked.value.code) == ("UNABLE_TO_GET_CRL", "CERT_REVOKED")


@pytest.mark.parametrize("form", SINGLE)
def test_dhparam(open_agent, new_server, form, tmp_path):
    """
    A server takes the group of `dhparam` in every form; the client measures it.
    """
    pem = _dh_pem(GROUPS[3072])
    options = {"cert": RSA.cert_pem, "key": RSA.key_pem, "max_version": "TLSv1.2"}
    with new_server({**options, "dhparam": FORMS[form](pem, GROUPS[3072], tmp_path)}) as server:
        # Without groups of RFC 7919 in the offer: OpenSSL would take one of those.
        agent = open_agent(ca=server.ca_pem, ciphers=DHE, ecdh_curve="X25519:P-256")

        assert agent.request("GET", server.url + "/hello", options={"min_dh_size": 3072}).status == 200
        with pytest.raises(HandshakeError, match="3072"):
            agent.request("GET", server.url + "/hello", options={"min_dh_size": 3073})


def _dh_pem(der: bytes) -> bytes:
    return b"-----BEGIN DH PARAMETERS-----\n" + base64.encodebytes(der) + b"-----END DH PARAMETERS-----\n"
