from __future__ import annotations

import dataclasses

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL
from tls_peer import (
    DAY,
    NOW,
    Credentials,
    Link,
    Server,
    client_context,
    client_engine,
    connect,
    issue,
    pki,
    server_context,
)

from tlsagent import _material
from tlsagent._options import ContextHandle
from tlsagent._tls import binding
from tlsagent._tls.context import secure_context
from tlsagent.errors import CertificateError, HandshakeError, OptionError

PLAIN = {
    "ca": None,
    "chains": (),
    "keys": (),
    "ciphers": None,
    "min_version": None,
    "max_version": None,
    "strict": True,
}


def variants():
    client = issue("client", pki().root)
    return {
        "ca": {"ca": pki().anchors()},
        "cert and key": {
            "chains": _material.certificate_chains(client.cert_pem),
            "keys": _material.private_keys(client.key_pem, None),
        },
        "ciphers": {"ciphers": _material.cipher_list("ECDHE-RSA-AES128-GCM-SHA256")},
        "min_version": {"min_version": 0x0304},
        "max_version": {"max_version": 0x0303},
        "strict": {"strict": False},
    }


def offered(context):
    """The cipher suites of a ClientHello, as the server sees them."""
    link = Link(client_engine(context), Server(server_context()))
    link.engine.start()
    hello = link.engine.data_to_send()
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    size = int.from_bytes(hello[at : at + 2], "big")
    suites = hello[at + 2 : at + 2 + size]
    return [int.from_bytes(suites[i : i + 2], "big") for i in range(0, size, 2)]


def test_equal_content_is_made_once():
    """
    The same content gives the same object, also where the material was parsed twice.
    """
    first = secure_context(**PLAIN | {"ca": pki().anchors()})
    again = _material.trust_anchors(bytearray(pki().root.cert_pem) + b"\n")

    assert secure_context(**PLAIN | {"ca": again}) is first
    secure_context.cache_clear()
    other = secure_context(**PLAIN | {"ca": again})
    assert other is not first
    assert other == first
    assert hash(other) == hash(first)


def test_each_option_makes_another_context():
    """
    Contexts that differ in any option are unequal, and so are their digests.
    """
    contexts = [secure_context(**PLAIN)] + [secure_context(**PLAIN | extra) for extra in variants().values()]
    assert len(set(contexts)) == len(contexts)
    assert len({context.digest for context in contexts}) == len(contexts)


def test_it_is_a_context_handle_and_immutable():
    """
    Options take it as a secure_context; none of its attributes can be set.
    """
    context = secure_context(**PLAIN)
    assert isinstance(context, ContextHandle)
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.strict = False


def test_repr_is_a_digest():
    """
    Nothing but the digest is printed.
    """
    context = client_context(client=pki().client)
    assert repr(context) == f"<SecureContext sha256 {context.digest.hex()}>"


def test_default_versions():
    """
    TLS 1.2 and 1.3 are the default.
    """
    context = secure_context(**PLAIN)
    assert (context.min_version, context.max_version, context.version_range) == (0x0303, 0x0304, "TLSv1.2 to TLSv1.3")


def test_modes():
    """
    Idle connections give their buffers back, writes are whole, and OpenSSL caches no session.
    """
    context = secure_context(**PLAIN).context
    mode = binding._lib.SSL_CTX_set_mode(context._context, 0)
    assert mode & SSL.MODE_RELEASE_BUFFERS
    assert not mode & binding.ENABLE_PARTIAL_WRITE
    assert context.get_session_cache_mode() == SSL.SESS_CACHE_OFF


@pytest.mark.parametrize(("ours", "theirs"), [("TLSv1.2", "TLSv1.3"), ("TLSv1.3", "TLSv1.2")])
def test_one_version(ours, theirs):
    """
    A range of one version is kept to.
    """
    context = client_context(version=ours)
    assert context.version_range == ours
    assert connect(context, server_context(version=ours)).sink.facts.protocol_version == ours
    with pytest.raises(HandshakeError):
        connect(context, server_context(version=theirs))


@pytest.mark.parametrize(
    "options",
    [
        {"min_version": 0x0304, "max_version": 0x0303},
        {"ciphers": _material.cipher_list("TLS_AES_128_GCM_SHA256"), "max_version": 0x0303},
    ],
)
def test_range_without_a_version(options):
    """
    Options that leave no version to offer are refused when they are given.
    """
    with pytest.raises(OptionError) as caught:
        secure_context(**PLAIN | options)
    assert caught.value.code == "ERR_SSL_NO_PROTOCOLS_AVAILABLE"
    assert "TLSv1.2" in str(caught.value)


def test_default_ciphers():
    """
    The default offer is Node's: three suites of TLS 1.3, then ECDHE with AES-GCM, and none without authentication.
    """
    suites = offered(secure_context(**PLAIN))
    assert suites[:5] == [0x1302, 0x1303, 0x1301, 0xC02F, 0xC02B]
    assert not {0x0018, 0x0034, 0x006C, 0x00A6, 0xC018, 0x0005, 0x000A} & set(suites)


def test_tls13_suites_only():
    """
    Naming suites of TLS 1.3 only leaves TLS 1.2 unoffered, as in Node.
    """
    context = client_context(ciphers="TLS_CHACHA20_POLY1305_SHA256")
    assert context.version_range == "TLSv1.3"
    assert connect(context).sink.facts.cipher == "TLS_CHACHA20_POLY1305_SHA256"


def test_tls12_suites_only():
    """
    Naming suites of TLS 1.2 only leaves the default ones of TLS 1.3 on, as in Node.
    """
    context = client_context(ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    assert connect(context).sink.facts.protocol_version == "TLSv1.3"
    link = connect(context, server_context(version="TLSv1.2"))
    assert link.sink.facts.cipher == "ECDHE-ECDSA-AES128-GCM-SHA256"


def test_roots_replace_the_default_ones():
    """
    Only the given roots are trusted.
    """
    trusted = client_context(ca=pki().anchors(pki().other_root, pki().root))
    assert connect(trusted).sink.facts.authorized
    with pytest.raises(CertificateError):
        connect(client_context(ca=pki().anchors(pki().other_root)))


def test_intermediates_are_sent_with_the_client_certificate():
    """
    The chain of `cert` is sent: a server that knows the root only accepts it.
    """
    client = issue("client", pki().intermediate)
    server = server_context(client_ca=pki().root)

    with pytest.raises(HandshakeError):
        connect(client_context(client=client), server)
    link = connect(client_context(client=client.sending(pki().intermediate.certificate)), server)
    assert link.server.tls.getpeercert(binary_form=True) == client.der


def test_certificates_are_paired_with_their_keys():
    """
    Keys may come in another order than certificates; one without a key is not used.
    """
    rsa_key = rsa.generate_private_key(65_537, 2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rsa client")])
    builder = x509.CertificateBuilder(
        pki().root.certificate.subject, subject, rsa_key.public_key(), 1, NOW - DAY, NOW + DAY
    )
    rsa_client = Credentials(builder.sign(pki().root.key, hashes.SHA256()), rsa_key)
    chains = _material.certificate_chains([rsa_client.cert_pem, pki().client.cert_pem])
    server = server_context(client_ca=pki().root)

    def presented(*keys):
        made = secure_context(
            **PLAIN | {"ca": pki().anchors(), "chains": chains, "keys": _material.private_keys(list(keys), None)}
        )
        return connect(made, server).server.tls.getpeercert(binary_form=True)

    assert presented(pki().client.key_pem) == pki().client.der
    assert presented(rsa_client.key_pem) == rsa_client.der
    assert presented(pki().client.key_pem, rsa_client.key_pem) in {pki().client.der, rsa_client.der}


def test_key_that_is_too_small_for_the_security_level():
    """
    What OpenSSL refuses is an OptionError with Node's code, when the context is made.
    """
    client = issue("client", pki().root)
    options = {
        "ciphers": _material.cipher_list("DEFAULT:@SECLEVEL=5"),
        "chains": _material.certificate_chains(client.cert_pem),
        "keys": _material.private_keys(client.key_pem, None),
    }
    with pytest.raises(OptionError) as caught:
        secure_context(**PLAIN | options)
    assert caught.value.code == "ERR_SSL_EE_KEY_TOO_SMALL"
