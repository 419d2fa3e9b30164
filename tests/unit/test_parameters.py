"""Groups, signature algorithms, DH parameters and revocation lists: tried when they are given."""

from __future__ import annotations

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from tls_peer import DAY, DH_1024, NOW, pki

from tlsagent._material import dh_parameters, group_list, revocation_lists, signature_algorithms
from tlsagent.errors import OptionError, OptionTypeError


def crl(issuer, number=1):
    builder = x509.CertificateRevocationListBuilder(issuer.certificate.subject, NOW - DAY, NOW + DAY)
    return builder.add_extension(x509.CRLNumber(number), critical=False).sign(issuer.key, hashes.SHA256())


@pytest.mark.parametrize("text", ["", "auto"])
def test_auto_is_the_librarys_own_list(text):
    """
    "auto" says nothing to OpenSSL, nor does the empty string, as in Node.
    """
    assert group_list(text) is None


@pytest.mark.parametrize("text", ["X25519", "P-256:prime256v1", "X25519MLKEM768:X25519:P-384", "?nope:P-256"])
def test_groups_that_openssl_knows(text):
    """
    Names of groups are OpenSSL's, in any of its spellings.
    """
    assert group_list(text) == text


@pytest.mark.parametrize("text", ["nope", "P-256:nope", ":", "P-256\0", "P-256:ü"])
def test_unknown_groups_are_refused(text):
    """
    One unknown name spoils the list.
    """
    with pytest.raises(OptionError, match="ecdh_curve") as caught:
        group_list(text)
    assert caught.value.code == "ERR_CRYPTO_OPERATION_FAILED"
    assert not isinstance(caught.value, TypeError)


@pytest.mark.parametrize("text", ["ECDSA+SHA256", "ECDSA+SHA256:rsa_pss_rsae_sha256", "ed25519"])
def test_signature_algorithms_that_openssl_knows(text):
    """
    Names of signature algorithms are OpenSSL's.
    """
    assert signature_algorithms(text) == text


@pytest.mark.parametrize(
    ("text", "kind", "code"),
    [
        ("", OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ("nope", OptionError, "ERR_TLSAGENT_SIGALGS"),
        ("RSA+NOPE", OptionError, "ERR_TLSAGENT_SIGALGS"),
        ("ed25519\0", OptionError, "ERR_TLSAGENT_SIGALGS"),
    ],
)
def test_unknown_signature_algorithms_are_refused(text, kind, code):
    """
    Junk is refused with Node's class; it has no code where Node has none.
    """
    with pytest.raises(OptionError, match="sigalgs") as caught:
        signature_algorithms(text)
    assert type(caught.value) is kind
    assert caught.value.code == code


@pytest.mark.parametrize("parse", [group_list, signature_algorithms])
@pytest.mark.parametrize("value", [1, None, ["ECDSA+SHA256"], b"P-256"])
def test_lists_are_text(parse, value):
    """
    A list is one str with colons, as in Node.
    """
    with pytest.raises(OptionTypeError) as caught:
        parse(value)
    assert caught.value.code == "ERR_INVALID_ARG_TYPE"


def test_dh_parameters_in_every_form(tmp_path):
    """
    PEM as bytes, text or a file, and DER, are the same group.
    """
    group = dh_parameters(DH_1024)
    path = tmp_path / "dh.pem"
    path.write_bytes(b"comment\n" + DH_1024)
    der = base64.b64decode(b"".join(DH_1024.splitlines()[1:-1]))

    assert group.bits == 1024
    assert {group} == {dh_parameters(DH_1024.decode()), dh_parameters(path), dh_parameters(der)}
    assert dh_parameters("auto").bits == 2048
    assert repr(group) == f"<DHParameters 1024 bits, sha256 {group.digest.hex()}>"


X942 = b"""-----BEGIN X9.42 DH PARAMETERS-----
MIIBJgKBgQDUWKbQxe3TDP4zX5eZIQEPT2ekuOgHAOQp64ExW1+k36KKUHzMFtZt
zUEnAReZiYRoNZrYWCvoXLFOfOqKxDlX2k2Kb3N6alxLxlaAJqOb1o/3RYYz7ohd
tiwzum2CCLYGJJFWtEqCAaAUNYY3KPg2q7VUeuCf6egjhIYEWn+LtQKBgDMJiSU5
vITVd/PCWKq+l7d/s852LwVVZOaNEobSbVx/jmcbhCewYTdUHwnCjviM57QASDNh
Q4qfjQBUiE7aoyrbspcGyp2yyB75s52H+uhn9Mw9YFgzwut6XJ+rfuqhIZ5LM4Qm
E8rqWDD6FI7OVx5isANi/2o20NFb6/1RCxtTAh0AyJYt6CdxAqjWeccMVzxAAsMl
5tT63RPPhZr8BQ==
-----END X9.42 DH PARAMETERS-----
"""


def test_dh_parameters_of_the_other_standard():
    """
    X9.42, which `openssl dhparam -dsaparam` writes, is read too.
    """
    assert dh_parameters(X942).bits == 1024


@pytest.mark.parametrize(
    "junk",
    [
        "not a pem",
        "",
        b"\x30",
        b"\x30\x03\x02\x01\x05",
        b"\x30\x82",
        "-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n",
        "-----BEGIN DH PARAMETERS-----\n!!!!\n-----END DH PARAMETERS-----\n",
        DH_1024[:-40],
    ],
)
def test_junk_is_no_dh_group(junk):
    """
    Junk and half a group are refused.
    """
    with pytest.raises(OptionError, match="dhparam") as caught:
        dh_parameters(junk)
    assert caught.value.code == "ERR_CRYPTO_OPERATION_FAILED"


def test_a_small_dh_group_is_refused():
    """
    Less than 1024 bits are a bad value, as in Node.
    """
    with pytest.raises(OptionTypeError, match="1020 bits") as caught:
        dh_parameters(DH_1024.replace(b"MIGHAoGBAP", b"MIGHAoGBAA"))
    assert caught.value.code == "ERR_INVALID_ARG_VALUE"


@pytest.mark.parametrize("value", [1, True, None, {}, [DH_1024]])
def test_dh_parameters_of_another_type(value):
    """
    There is one group, not a list of them.
    """
    with pytest.raises(OptionTypeError) as caught:
        dh_parameters(value)
    assert caught.value.code == "ERR_INVALID_ARG_TYPE"


def test_revocation_lists_in_every_form(tmp_path):
    """
    PEM, several lists in one item, DER and files are the same content.
    """
    one, two = (crl(issuer) for issuer in (pki().root, pki().intermediate))
    pems = [each.public_bytes(Encoding.PEM) for each in (one, two)]
    path = tmp_path / "crl.pem"
    path.write_bytes(b"junk around it\n" + pems[1])

    both = revocation_lists(b"".join(pems))

    assert both.lists == (one, two)
    assert {both} == {revocation_lists(pems), revocation_lists([one.public_bytes(Encoding.DER), path])}
    assert both != revocation_lists(pems[0])
    assert revocation_lists([]).lists == ()
    assert repr(both) == f"<RevocationLists 2, sha256 {both.digest.hex()}>"


@pytest.mark.parametrize(
    "junk",
    [
        "not a pem",
        "",
        b"\x30\x00",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        "-----BEGIN X509 CRL-----\n",
    ],
)
def test_junk_is_no_revocation_list(junk):
    """
    Junk, also beside a list that is in order, is refused: what is not checked would count as checked.
    """
    good = crl(pki().root).public_bytes(Encoding.PEM)
    for value in (junk, [good, junk]):
        with pytest.raises(OptionError, match="crl") as caught:
            revocation_lists(value)
        assert caught.value.code == "ERR_CRYPTO_OPERATION_FAILED"


def test_half_a_list_behind_a_whole_one_is_refused():
    """
    A bundle that was cut off is not read up to where it ends.
    """
    pem = crl(pki().root).public_bytes(Encoding.PEM)
    with pytest.raises(OptionError):
        revocation_lists(pem + pem[:-60])


@pytest.mark.parametrize("value", [True, 1, {}, [5]])
def test_revocation_lists_of_another_type(value):
    """
    The wrong type is Node's ERR_INVALID_ARG_TYPE.
    """
    with pytest.raises(OptionTypeError) as caught:
        revocation_lists(value)
    assert caught.value.code == "ERR_INVALID_ARG_TYPE"
