"""
Throw-away certificates: what they say, and what the standard library makes of them.
"""

from __future__ import annotations

import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from tlsagent.testing import Authority, Credentials, default_authority
from tlsagent.testing.authority import default_credentials


@pytest.fixture(scope="module")
def authority():
    return Authority()


def verify(credentials: Credentials, authority: Authority, name: str, tmp_path, *, purpose=ssl.Purpose.SERVER_AUTH):
    """Let OpenSSL verify a server (or client) that presents `credentials`, by a handshake between memory BIOs."""
    path = tmp_path / "credentials.pem"
    path.write_bytes(credentials.key_pem + credentials.cert_pem)
    presenting = ssl.SSLContext(
        ssl.PROTOCOL_TLS_SERVER if purpose is ssl.Purpose.SERVER_AUTH else ssl.PROTOCOL_TLS_CLIENT
    )
    presenting.check_hostname = False
    presenting.verify_mode = ssl.CERT_NONE
    presenting.load_cert_chain(path)
    judging = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if purpose is ssl.Purpose.SERVER_AUTH else ssl.PROTOCOL_TLS_SERVER)
    judging.load_verify_locations(cadata=authority.ca_pem.decode())
    judging.verify_mode = ssl.CERT_REQUIRED
    server, client = (presenting, judging) if purpose is ssl.Purpose.SERVER_AUTH else (judging, presenting)
    if purpose is ssl.Purpose.CLIENT_AUTH:
        server.load_cert_chain(path)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue


def test_a_server_with_issued_credentials_is_trusted_under_its_names(authority, tmp_path):
    """A certificate is good for each of the names it was issued for: host names, wildcards and addresses."""
    credentials = authority.issue("a.test", "*.b.test", "127.0.0.1", "::1")

    for name in ("a.test", "x.b.test", "127.0.0.1", "::1"):
        verify(credentials, authority, name, tmp_path)


def test_a_name_that_was_not_asked_for_is_refused(authority, tmp_path):
    """A certificate is good for no other name, whatever its CN says."""
    credentials = authority.issue("a.test", common_name="c.test")

    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        verify(credentials, authority, "c.test", tmp_path)


@pytest.mark.parametrize(
    ("fault", "text"), [("expired", "certificate has expired"), ("not_yet_valid", "certificate is not yet valid")]
)
def test_dates_are_wrong_on_request(authority, tmp_path, fault, text):
    """`expired` and `not_yet_valid` give a certificate that is wrong in nothing but its dates."""
    credentials = authority.issue("a.test", **{fault: True})

    with pytest.raises(ssl.SSLCertVerificationError, match=text):
        verify(credentials, authority, "a.test", tmp_path)


def test_both_dates_cannot_be_wrong_at_once():
    """Asking for a certificate that is expired and not yet valid is an error."""
    with pytest.raises(ValueError, match="at once"):
        Authority().issue("a.test", expired=True, not_yet_valid=True)


def test_an_expired_certificate_was_valid_once(authority):
    """The dates of an expired certificate are in order, and both lie in the past."""
    certificate = x509.load_pem_x509_certificate(authority.issue("a.test", expired=True).cert_pem)

    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_before_utc < certificate.not_valid_after_utc < now


def test_a_client_certificate_is_good_for_clients_alone(authority, tmp_path):
    """`client=True` narrows the purpose: a server accepts it from a client, a client refuses it from a server."""
    credentials = authority.issue("me@a.test", "a.test", client=True)

    verify(credentials, authority, "a.test", tmp_path, purpose=ssl.Purpose.CLIENT_AUTH)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(un)?suitable certificate purpose|unsupported"):
        verify(credentials, authority, "a.test", tmp_path)


def test_a_client_certificate_keeps_everything_but_its_purpose(authority):
    """Narrowing the purpose leaves names, authority key and key usage as they were."""
    certificate = x509.load_pem_x509_certificate(authority.issue("a.test", client=True).cert_pem)

    purpose = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(purpose) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert names.get_values_for_type(x509.DNSName) == ["a.test"]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_pem))


def test_an_intermediate_sends_its_chain(authority, tmp_path):
    """Credentials of an intermediate carry the chain up to the root, which alone is to be trusted."""
    below = authority.intermediate()
    credentials = below.issue("a.test")

    assert below.ca_pem == authority.ca_pem
    assert credentials.cert_pem.count(b"BEGIN CERTIFICATE") == 2
    verify(credentials, authority, "a.test", tmp_path)


def test_the_leaf_alone_lacks_its_issuer(authority, tmp_path):
    """`leaf_pem` is the chain without the intermediate, as a badly set up server sends it."""
    credentials = authority.intermediate().issue("a.test")

    assert credentials.leaf_pem.count(b"BEGIN CERTIFICATE") == 1
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get"):
        verify(Credentials(credentials.leaf_pem, credentials.key_pem), authority, "a.test", tmp_path)


def test_the_leaf_in_der_is_what_the_peer_sees(authority):
    """`leaf_der` is the certificate of `cert_pem` in the form in which TLS carries it."""
    credentials = authority.issue("a.test")

    assert credentials.leaf_der == ssl.PEM_cert_to_DER_cert(credentials.leaf_pem.decode())


@pytest.mark.parametrize(("key_type", "expected"), [("ecdsa", ec.EllipticCurvePrivateKey), ("rsa", rsa.RSAPrivateKey)])
def test_the_kind_of_key_is_the_callers_choice(authority, key_type, expected):
    """Keys are P-256 or RSA."""
    credentials = authority.issue("a.test", key_type=key_type)

    assert isinstance(load_pem_private_key(credentials.key_pem, None), expected)


def test_nothing_shows_the_private_key(authority):
    """The repr of credentials contains the certificate but no key."""
    credentials = authority.issue("a.test")

    assert "PRIVATE" not in repr(credentials)


def test_two_authorities_do_not_vouch_for_each_other(authority, tmp_path):
    """Each authority is a root of its own."""
    with pytest.raises(ssl.SSLCertVerificationError):
        verify(Authority().issue("a.test"), authority, "a.test", tmp_path)


def test_the_default_authority_is_made_once_per_process():
    """Servers that are given no authority share one, and certificates for equal names too."""
    assert default_authority() is default_authority()
    assert default_credentials(("a.test",)) is default_credentials(("a.test",))
    assert default_credentials(("a.test",)) != default_credentials(("b.test",))
