from __future__ import annotations

import dataclasses

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto
from tls_peer import (
    DAY,
    DH_1024,
    NOW,
    NUMBERS,
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
from tlsagent._material import binding
from tlsagent._option_rules import ContextHandle
from tlsagent._tls.context import secure_context
from tlsagent.errors import CertificateError, HandshakeError, OptionError, OptionTypeError

PLAIN = {
    "ca": None,
    "chains": (),
    "keys": (),
    "ciphers": None,
    "min_version": None,
    "max_version": None,
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
        "also_trusted": {"also_trusted": (pki().anchors(),)},
        "crl": {"crl": _material.revocation_lists([])},
        "ecdh_curve": {"ecdh_curve": "X25519"},
        "sigalgs": {"sigalgs": "ECDSA+SHA256"},
        "secure_options": {"secure_options": 4},
        "session_id_context": {"session_id_context": "x"},
        "allow_partial_trust_chain": {"allow_partial_trust_chain": True},
        "dhparam": {"dhparam": _material.dh_parameters("auto")},
        "honor_cipher_order": {"honor_cipher_order": True},
        "request_cert": {"request_cert": True},
        "role": {"role": "server"},
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
        context.digest = b""


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
    ("options", "code"),
    [
        ({"min_version": 0x0304, "max_version": 0x0303}, "ERR_TLS_INVALID_PROTOCOL_VERSION"),
        (
            {"ciphers": _material.cipher_list("TLS_AES_128_GCM_SHA256"), "max_version": 0x0303},
            "ERR_SSL_NO_PROTOCOLS_AVAILABLE",
        ),
    ],
)
def test_range_without_a_version(options, code):
    """
    Options that leave no version to offer are refused when they are given.
    """
    with pytest.raises(OptionError) as caught:
        secure_context(**PLAIN | options)
    assert caught.value.code == code
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


def test_a_key_that_only_openssl_can_reach():
    """
    A key given as OpenSSL's own object, as one in hardware is, serves; one of another certificate is refused.
    """
    client, other = pki().client, issue("other", pki().root)
    [known] = _material.private_keys(client.key_pem, None)
    chains = _material.certificate_chains(client.cert_pem)

    def made(pem):
        key = _material.PrivateKey(crypto.load_privatekey(crypto.FILETYPE_PEM, pem), known.spki_digest)
        return secure_context(**PLAIN | {"ca": pki().anchors(), "chains": chains, "keys": (key,)})

    secure_context.cache_clear()  # keys are remembered by what they say they are
    with pytest.raises(OptionError) as caught:
        made(other.key_pem)
    assert caught.value.code == "ERR_OSSL_X509_KEY_VALUES_MISMATCH"
    link = connect(made(client.key_pem), server_context(client_ca=pki().root))
    assert link.server.tls.getpeercert(binary_form=True) == client.der


# --- What is negotiated -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["X25519", "secp384r1", "P-521"])
def test_ecdh_curve_decides_the_group(group):
    """
    The groups offered are those of ecdh_curve, in its order.
    """
    aliases = {"secp384r1": "secp384r1", "P-521": "secp521r1", "X25519": "x25519"}

    link = connect(client_context(ecdh_curve=f"{group}:P-256"))

    assert link.sink.facts.group == aliases[group]


def test_no_group_that_the_versions_know_is_found_when_connecting():
    """
    A group that no version offered can use leaves nothing to say.
    """
    with pytest.raises(HandshakeError) as caught:
        connect(client_context(version="TLSv1.3", ecdh_curve="brainpoolP256r1"))
    assert caught.value.code == "ERR_SSL_NO_SUITABLE_GROUPS"


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_sigalgs_decide_which_signatures_are_accepted(version):
    """
    A server that cannot sign by an algorithm of the list is no peer.
    """
    server = server_context(version=version)  # ECDSA on P-256

    assert connect(client_context(sigalgs="ECDSA+SHA256"), server).sink.facts.authorized
    with pytest.raises(HandshakeError):
        connect(client_context(sigalgs="ed25519:RSA-PSS+SHA256"), server)


def test_secure_options_reach_openssl():
    """
    The bits of secure_options are set: here, TLS 1.3 is switched off.
    """
    link = connect(client_context(secure_options=int(SSL.OP_NO_TLSv1_3)), server_context(version="TLSv1.2"))
    assert link.sink.facts.protocol_version == "TLSv1.2"
    with pytest.raises(HandshakeError):
        connect(client_context(secure_options=int(SSL.OP_NO_TLSv1_3)), server_context(version="TLSv1.3"))


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_session_of_another_session_id_context_is_not_resumed(version):
    """
    session_id_context separates sessions, as in Node: one made under another fails the handshake.
    """
    server = server_context(version=version)
    ours = client_context(session_id_context="ours")
    session = connect(ours, server).sink.sessions[-1]

    assert connect(ours, server, session=session).sink.facts.session_reused
    with pytest.raises(HandshakeError) as caught:
        connect(client_context(session_id_context="theirs"), server, session=session)
    assert caught.value.code == "ERR_SSL_ATTEMPT_TO_REUSE_SESSION_IN_DIFFERENT_CONTEXT"


# --- Who is trusted -----------------------------------------------------------------------------------------------


def test_a_partial_chain_ends_at_any_trusted_certificate():
    """
    An intermediate among the roots ends a chain only where allow_partial_trust_chain says so.
    """
    server = server_context(pki().behind)
    ca = pki().anchors(pki().intermediate)

    with pytest.raises(CertificateError):
        connect(client_context(ca=ca), server)
    assert connect(client_context(ca=ca, allow_partial_trust_chain=True), server).sink.facts.authorized


def revocations(issuer, *revoked, end=NOW + DAY):
    builder = x509.CertificateRevocationListBuilder(issuer.certificate.subject, NOW - 2 * DAY, end)
    for credentials in revoked:
        entry = x509.RevokedCertificateBuilder(credentials.certificate.serial_number, NOW - 2 * DAY)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("lists", "code"),
    [
        (lambda: [revocations(pki().root), revocations(pki().intermediate)], None),
        (lambda: [revocations(pki().root), revocations(pki().intermediate, pki().behind)], "CERT_REVOKED"),
        (lambda: [revocations(pki().root, pki().intermediate), revocations(pki().intermediate)], "CERT_REVOKED"),
        (lambda: [revocations(pki().root)], "UNABLE_TO_GET_CRL"),
        (lambda: [revocations(pki().other_root)], "UNABLE_TO_GET_CRL"),
        (list, "UNABLE_TO_GET_CRL"),
        (lambda: [revocations(pki().root), revocations(pki().intermediate, end=NOW - DAY)], "CRL_HAS_EXPIRED"),
    ],
)
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_every_issuer_needs_a_list_that_does_not_revoke(version, lists, code):
    """
    With crl the whole chain is checked, and what cannot be checked is refused; an empty list refuses all.
    """
    context = client_context(crl=_material.revocation_lists(lists()))
    server = server_context(pki().behind, version=version)

    if code is None:
        assert connect(context, server).sink.facts.authorized
        return
    with pytest.raises(CertificateError) as caught:
        connect(context, server)
    assert caught.value.code == code
    assert connect(client_context(), server).sink.facts.authorized  # nobody else's store was touched


def test_certificates_of_a_pfx_are_trusted_besides_the_roots():
    """
    What a pfx brings along counts beside `ca`, or beside the default roots, and for this context alone.
    """
    server = server_context()
    brought = pki().anchors(pki().root)

    for ca in (None, pki().anchors(pki().other_root)):
        made = secure_context(**PLAIN | {"ca": ca, "also_trusted": (brought,)})
        assert connect(made, server).sink.facts.authorized
        with pytest.raises(CertificateError):
            connect(secure_context(**PLAIN | {"ca": ca}), server)


def test_the_default_roots_stay_beside_what_is_added():
    """
    A CRL or a pfx leaves the default roots in place.
    """
    plain = secure_context(**PLAIN).context.get_cert_store()
    for extra in ({"crl": _material.revocation_lists([])}, {"also_trusted": (pki().anchors(),)}):
        store = secure_context(**PLAIN | extra).context.get_cert_store()
        assert len(certificates_of(store)) >= len(certificates_of(plain)) > 100


def certificates_of(store):
    lib = binding._lib
    return range(lib.sk_X509_OBJECT_num(lib.X509_STORE_get0_objects(store._store)))


# --- Servers ------------------------------------------------------------------------------------------------------


def serving(**options):
    server = pki().server
    return secure_context(
        **{
            **PLAIN,
            "ca": pki().anchors(),
            "chains": _material.certificate_chains(server.cert_pem),
            "keys": _material.private_keys(server.key_pem, None),
            **options,
        }
    )


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_context_serves_servers_too(version):
    """
    One and the same context is good for both ends, and a server asks nobody for a certificate unasked.
    """
    context = serving()
    limits = {"min_version": NUMBERS[version], "max_version": NUMBERS[version]}

    link = connect(serving(**limits), context.context, server_name="a.test")

    assert link.sink.facts.authorized
    assert link.server.tls.get_peer_certificate() is None


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_request_cert_demands_a_certificate_in_order(version):
    """
    A server with request_cert takes clients whose certificate verifies, and nobody else; it resumes their sessions.
    """
    context = serving(request_cert=True)
    client = client_context(version=version, client=pki().client)

    link = connect(client, context.context)
    assert link.server.tls.get_peer_certificate(as_cryptography=True) == pki().client.certificate
    assert connect(client, context.context, session=link.sink.sessions[-1]).sink.facts.session_reused

    for stranger in (None, issue("client", pki().other_root)):
        with pytest.raises(HandshakeError):
            connect(client_context(version=version, client=stranger), context.context)


def test_honor_cipher_order_is_the_servers():
    """
    The server's order counts only if it says so.
    """
    ours = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384"
    theirs = ":".join(reversed(ours.split(":")))
    client = client_context(version="TLSv1.2", ciphers=ours)
    ciphers = {"ciphers": _material.cipher_list(theirs)}

    assert connect(client, serving(**ciphers).context).sink.facts.cipher == "ECDHE-ECDSA-AES128-GCM-SHA256"
    preferring = serving(**ciphers, honor_cipher_order=True)
    assert connect(client, preferring.context).sink.facts.cipher == "ECDHE-ECDSA-AES256-GCM-SHA384"


def test_dhparam_is_the_servers_group():
    """
    A server with dhparam can do DHE with clients that know no group of RFC 7919.
    """
    credentials = issue("a.test", pki().root, key=rsa.generate_private_key(65_537, 2048))
    server = {
        "chains": _material.certificate_chains(credentials.cert_pem),
        "keys": _material.private_keys(credentials.key_pem, None),
    }
    client = client_context(version="TLSv1.2", ciphers="DHE-RSA-AES256-GCM-SHA384", ecdh_curve="P-256")

    assert connect(client, serving(**server, dhparam=_material.dh_parameters("auto")).context).sink.facts.authorized
    with pytest.raises(HandshakeError):
        connect(client, serving(**server).context)


def test_the_sni_callback_chooses_the_context():
    """
    The callback is asked with the name that the client sent; None keeps the server's own certificate.
    """
    other = issue("b.test", pki().root)
    b_test = serving(
        chains=_material.certificate_chains(other.cert_pem), keys=_material.private_keys(other.key_pem, None)
    )
    asked = []

    def choose(name):
        asked.append(name)
        return b_test if name == "b.test" else None

    context = serving(sni_callback=choose).context

    assert (
        connect(server=context, server_name="b.test", verified_name="b.test").sink.facts.peer_certificate.der
        == other.der
    )
    assert connect(server=context).sink.facts.peer_certificate.der == pki().server.der
    connect(server=context, server_name=None)
    assert asked == ["b.test", "a.test"]


@pytest.mark.parametrize("answer", [5, "context", LookupError])
def test_an_sni_callback_that_fails_refuses_the_client(answer, monkeypatch):
    """
    A callback that raises, or returns what is no context, gives the client an alert.
    """
    seen = []
    monkeypatch.setattr("sys.excepthook", lambda *exc: seen.append(exc[0]))

    def choose(name):
        if answer is LookupError:
            raise LookupError(name)
        return answer

    with pytest.raises(HandshakeError):
        connect(server=serving(sni_callback=choose).context)
    assert seen == [LookupError if answer is LookupError else OptionTypeError]


def test_callbacks_tell_contexts_apart():
    """
    Two contexts with the same material and different callbacks are not equal.
    """
    first, second = (serving(sni_callback=lambda name: None) for _ in range(2))

    assert first != second
    assert first.digest == second.digest


def test_a_dh_group_that_is_too_small_for_the_security_level_is_refused():
    """
    What the security level of `ciphers` does not admit is refused when the context is made.
    """
    group = _material.DHParameters(DH_1024, 1024, b"")

    with pytest.raises(OptionError) as caught:
        serving(dhparam=group)
    assert caught.value.code == "ERR_CRYPTO_OPERATION_FAILED"
    assert serving(dhparam=group, ciphers=_material.cipher_list("ALL:@SECLEVEL=0"))
