from __future__ import annotations

import base64
import datetime
import hashlib
import os
import pickle
import traceback

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from OpenSSL import crypto

from tlsagent import AgentOptions
from tlsagent._material import (
    CipherList,
    EncryptedKey,
    PrivateKey,
    certificate_chains,
    check_key_pairs,
    cipher_list,
    credentials,
    private_keys,
    trust_anchors,
)
from tlsagent._material.items import Memo
from tlsagent.errors import OptionError, OptionTypeError

SECRET = "correct horse"
P256 = bytes.fromhex("2a8648ce3d030107")


def certificate(name="a.test", key=None, serial=None):
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), serial or x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start + datetime.timedelta(days=3650))
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def pem(one):
    return one.public_bytes(Encoding.PEM)


def der(one):
    return one.public_bytes(Encoding.DER)


def key_bytes(key, encoding=Encoding.PEM, form=PrivateFormat.PKCS8, passphrase=None):
    return key.private_bytes(
        encoding, form, BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    )


def serial_zero():
    """A root whose serial number is zero, which cryptography refuses to build."""
    version, one, zero = b"\xa0\x03\x02\x01\x02", b"\x02\x01\x01", b"\x02\x01\x00"
    return der(certificate(serial=1)).replace(version + one, version + zero)


@pytest.fixture(scope="module")
def two():
    return certificate("one.test"), certificate("two.test")


@pytest.fixture(scope="module")
def ec_key():
    return ec.generate_private_key(ec.SECP256R1())


# ca ---------------------------------------------------------------------------------------------------------------


def test_roots_read_alike_in_every_form(two, tmp_path):
    """
    The same roots are equal values, however they were given.
    """
    path = tmp_path / "roots.pem"
    path.write_bytes(pem(two[0]) + b"# a comment - with dashes\r\n" + pem(two[1]))
    both = pem(two[0]) + pem(two[1])

    forms = [
        both,
        both.decode(),
        bytearray(both),
        memoryview(both),
        path,
        [pem(two[0]), der(two[1])],
        (both.replace(b"\n", b"\r\n"),),
        both.replace(b" CERT", b" X509 CERT"),
    ]

    parsed = [trust_anchors(form) for form in forms]
    assert len(set(parsed)) == 1
    ders = [crypto.dump_certificate(crypto.FILETYPE_ASN1, one) for one in parsed[0].certificates]
    assert ders == [der(two[0]), der(two[1])]


def test_order_of_roots_counts(two):
    """
    Roots in another order are another value; nothing is sorted behind the user's back.
    """
    assert trust_anchors([pem(two[0]), pem(two[1])]) != trust_anchors([pem(two[1]), pem(two[0])])


def test_empty_sequence_is_no_roots():
    """
    An empty sequence trusts nobody, as in Node.
    """
    assert trust_anchors([]).certificates == ()


def test_root_with_serial_zero_gives_no_warning():
    """
    A root that cryptography warns about is taken as OpenSSL takes it.
    """
    [root] = trust_anchors(serial_zero()).certificates

    assert root.get_serial_number() == 0


@pytest.mark.parametrize(
    ("junk", "code"),
    [
        ("not a pem", "ERR_OSSL_PEM_NO_START_LINE"),
        ("", "ERR_OSSL_PEM_NO_START_LINE"),
        (b"\xff\xfe", "ERR_OSSL_PEM_NO_START_LINE"),
        (["not a pem"], "ERR_OSSL_PEM_NO_START_LINE"),
        ("\ud800", "ERR_OSSL_PEM_NO_START_LINE"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ERR_OSSL_ASN1_WRONG_TAG"),
        (b"0not der", "ERR_OSSL_ASN1_WRONG_TAG"),
        ("-----BEGIN CERTIFICATE-----\nAAA=A\n-----END CERTIFICATE-----\n", "ERR_OSSL_PEM_BAD_BASE64_DECODE"),
        ("-----BEGIN CERTIFICATE-----\nAA?A\n-----END CERTIFICATE-----\n", "ERR_OSSL_PEM_BAD_BASE64_DECODE"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", "ERR_OSSL_PEM_BAD_END_LINE"),
    ],
)
@pytest.mark.parametrize(("option", "parse"), [("ca", trust_anchors), ("cert", certificate_chains)])
def test_junk_certificates_are_refused(option, parse, junk, code):
    """
    What is no certificate is refused with Node's code and the name of the option.
    """
    with pytest.raises(OptionError, match=f"`{option}`") as caught:
        parse(junk)

    assert caught.value.code == code


def test_truncated_bundle_is_refused(two):
    """
    A bundle cut off in its second certificate is an error, not the first certificate alone.
    """
    with pytest.raises(OptionError, match="cut off"):
        trust_anchors(pem(two[0]) + pem(two[1])[:-40])


@pytest.mark.parametrize("parse", [trust_anchors, certificate_chains])
def test_bytes_behind_der_are_refused(parse, two):
    """
    DER is one certificate and nothing else.
    """
    with pytest.raises(OptionError) as caught:
        parse(der(two[0]) + b"\0")

    assert caught.value.code == "ERR_OSSL_ASN1_WRONG_TAG"


@pytest.mark.parametrize("value", [1, True, {}, None, object(), [b"", 5], [[b""]], {"pem": ""}, range(1), {b""}])
@pytest.mark.parametrize(
    ("option", "parse"),
    [("ca", trust_anchors), ("cert", certificate_chains), ("key", lambda value: private_keys(value, None))],
)
def test_wrong_types_are_refused(option, parse, value):
    """
    Anything but text, bytes, paths and sequences of these is a TypeError with Node's code.
    """
    with pytest.raises(OptionTypeError, match=f"`{option}`") as caught:
        parse(value)

    assert caught.value.code == "ERR_INVALID_ARG_TYPE"


# Files and memory -------------------------------------------------------------------------------------------------


def test_file_is_read_once_until_it_changes(two, tmp_path):
    """
    A file is read again when it was replaced, even by one of equal size and time, and not before.
    """
    path, other = tmp_path / "ca.pem", tmp_path / "new.pem"
    path.write_bytes(pem(two[0]))
    other.write_bytes(pem(two[1]) + b"\n" * (len(pem(two[0])) - len(pem(two[1]))))
    path.write_bytes(path.read_bytes() + b"\n" * (other.stat().st_size - path.stat().st_size))
    os.utime(path, ns=(1, 1))
    os.utime(other, ns=(1, 1))

    first = trust_anchors(path)
    again = trust_anchors(path)
    other.replace(path)
    changed = trust_anchors(path)

    assert first.certificates[0] is again.certificates[0]
    assert changed == trust_anchors(pem(two[1]))
    assert changed != first


def test_missing_file_names_option_and_path(tmp_path):
    """
    A file that cannot be read is an OptionError with the system's code.
    """
    with pytest.raises(OptionError, match=r'`cert`: cannot read the file ".*none\.pem"') as caught:
        certificate_chains(tmp_path / "none.pem")

    assert caught.value.code == "ENOENT"


def test_directory_is_refused(tmp_path):
    """
    A directory is not a file of certificates.
    """
    with pytest.raises(OptionError) as caught:
        trust_anchors(tmp_path)

    assert caught.value.code in {"EISDIR", "EACCES"}


def test_impossible_path_is_an_option_error(tmp_path):
    """
    A path that no system call takes is an OptionError too.
    """
    with pytest.raises(OptionError, match="`ca`: cannot read"):
        trust_anchors(tmp_path / "a\0b")


def test_memo_forgets_the_least_recently_used():
    """
    The memo stays within its size and keeps what was used last.
    """
    memo = Memo[str](size=2)
    memo.get(1, lambda: "one")
    memo.get(2, lambda: "two")
    memo.get(1, lambda: "not made again")

    memo.get(3, lambda: "three")

    assert memo.get(1, lambda: "made again") == "one"
    assert memo.get(2, lambda: "made again") == "made again"


def test_equal_content_is_parsed_once(ec_key):
    """
    The same key given twice is one object: its checks are not paid again.
    """
    [first] = private_keys(key_bytes(ec_key), None)
    [again] = private_keys(key_bytes(ec_key).decode(), None)

    assert first is again


# cert and key -----------------------------------------------------------------------------------------------------


def test_each_item_is_a_chain(two):
    """
    The first certificate of an item is the leaf; each item stands for itself.
    """
    whole, leaf = certificate_chains([pem(two[0]) + pem(two[1]), der(two[1])])

    assert (whole.leaf, whole.extra) == (two[0], (two[1],))
    assert (leaf.leaf, leaf.extra) == (two[1], ())
    assert whole != leaf
    assert whole == certificate_chains(pem(two[0]) + pem(two[1]))[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
)
def test_key_kinds_in_pem_and_der(make):
    """
    RSA, EC and Edwards keys are read from PEM and DER and are equal by their public half.
    """
    key = make()

    [from_pem] = private_keys(key_bytes(key), None)
    [from_der] = private_keys([key_bytes(key, Encoding.DER)], None)

    assert isinstance(from_pem, PrivateKey)
    assert from_pem == from_der
    assert hash(from_pem) == hash(from_der)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_encrypted_key_waits_for_its_passphrase(ec_key, form):
    """
    A key without passphrase stays locked until a layer knows one, in both PEM forms.
    """
    data = key_bytes(ec_key, form=form, passphrase=SECRET)

    [locked] = private_keys(data, None)
    assert isinstance(locked, EncryptedKey)

    assert locked.unlock(SECRET) == private_keys(data, SECRET.encode())[0] == private_keys(key_bytes(ec_key), None)[0]
    assert locked.unlock(SECRET) is locked.unlock(SECRET)


@pytest.mark.parametrize("passphrase", [None, "", "wrong"])
def test_wrong_passphrase_does_not_unlock(ec_key, passphrase):
    """
    A missing or wrong passphrase is Node's BAD_DECRYPT, also after the right one was seen.
    """
    [locked] = private_keys(key_bytes(ec_key, passphrase=SECRET), None)
    locked.unlock(SECRET)

    with pytest.raises(OptionError) as caught:
        locked.unlock(passphrase)

    assert caught.value.code == "ERR_OSSL_BAD_DECRYPT"


def test_item_passphrase_wins(ec_key):
    """
    The passphrase of an item is used before the common one, which serves the items without.
    """
    mine, common = key_bytes(ec_key, passphrase="mine"), key_bytes(ec_key, passphrase="common")

    keys = private_keys([{"pem": mine, "passphrase": "mine"}, {"pem": common}, common], "common")

    assert keys == private_keys(key_bytes(ec_key), None) * 3


def test_mapping_without_a_list_says_where_it_goes(ec_key):
    """
    A lone mapping is refused as by Node, and the message shows the list that it belongs in.
    """
    with pytest.raises(OptionTypeError, match=r"key=\[\{'pem': .*\}\]") as caught:
        private_keys({"pem": key_bytes(ec_key, passphrase=SECRET), "passphrase": SECRET}, None)

    assert SECRET not in str(caught.value)


def test_parsed_values_stay_as_they_are(two, ec_key):
    """
    What was parsed once passes through unchanged; a locked key takes the passphrase that has become known.
    """
    roots, chains, keys = (
        trust_anchors(pem(two[0])),
        certificate_chains(pem(two[0])),
        private_keys(key_bytes(ec_key), None),
    )
    locked = private_keys(key_bytes(ec_key, passphrase=SECRET), None)

    assert trust_anchors(roots) is roots
    assert certificate_chains(chains) == chains
    assert private_keys(keys + locked, None) == keys + locked
    assert private_keys(keys + locked, SECRET) == keys * 2


def test_unneeded_passphrase_is_ignored(ec_key):
    """
    A passphrase beside a key that is not encrypted does no harm.
    """
    assert isinstance(private_keys(key_bytes(ec_key), "unused")[0], PrivateKey)


@pytest.mark.parametrize(
    ("value", "passphrase"),
    [(b"", 5), ([{"pem": "", "passphrase": True}], None), ([{"pem": 5}], None), ([{}], None), ([{"pme": ""}], None)],
)
def test_key_items_are_checked(value, passphrase):
    """
    Passphrases and items of a wrong type or with unknown names are TypeErrors.
    """
    with pytest.raises(OptionTypeError) as caught:
        private_keys(value, passphrase)

    assert caught.value.code == "ERR_INVALID_ARG_TYPE"


@pytest.mark.parametrize(
    "junk",
    [
        ["not a pem"],
        "",
        b"0junk",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\n????\n-----END PRIVATE KEY-----\n",
        key_bytes(ec.generate_private_key(ec.SECP256R1()), Encoding.DER).replace(P256, P256[:-1] + b"\x7f"),
    ],
)
def test_junk_keys_are_refused(junk):
    """
    What is no signing key is refused with Node's code.
    """
    with pytest.raises(OptionError, match="`key`") as caught:
        private_keys(junk, None)

    assert caught.value.code == "ERR_OSSL_UNSUPPORTED"


def test_a_key_that_cannot_sign_is_refused():
    """
    A key for key exchange alone is none for TLS; the code is OpenSSL's and Node's.
    """
    with pytest.raises(OptionError, match="`key`") as caught:
        private_keys(key_bytes(x25519.X25519PrivateKey.generate()), None)

    assert caught.value.code == "ERR_SSL_UNKNOWN_CERTIFICATE_TYPE"


def test_key_of_another_certificate_is_refused(ec_key):
    """
    Every key must belong to a certificate, where there are certificates.
    """
    chains = certificate_chains([pem(certificate("a.test", ec_key)), pem(certificate("b.test"))])
    matching = private_keys(key_bytes(ec_key), None)
    stranger = private_keys(key_bytes(ec.generate_private_key(ec.SECP256R1())), None)

    check_key_pairs(chains, matching)
    check_key_pairs(chains, ())
    check_key_pairs((), stranger)
    with pytest.raises(OptionError, match="`key` does not belong") as caught:
        check_key_pairs(chains, matching + stranger)

    assert caught.value.code == "ERR_OSSL_X509_KEY_VALUES_MISMATCH"


def test_leaf_of_an_unknown_key_kind_is_refused(ec_key):
    """
    A leaf whose public key nobody can read is an error of `cert`, not a crash.
    """
    spki = bytes.fromhex("2a8648ce3d0201")  # id-ecPublicKey
    chains = certificate_chains(der(certificate("a.test", ec_key)).replace(spki, spki[:-1] + b"\x7f"))

    with pytest.raises(OptionError, match="`cert`") as caught:
        check_key_pairs(chains, private_keys(key_bytes(ec_key), None))

    assert caught.value.code == "ERR_OSSL_UNSUPPORTED"


# ciphers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", CipherList(None, None)),
        ("HIGH:!aNULL", CipherList("HIGH:!aNULL", None)),
        ("TLS_AES_128_GCM_SHA256", CipherList(None, "TLS_AES_128_GCM_SHA256")),
        (
            "TLS_AES_256_GCM_SHA384::ECDHE-RSA-AES128-GCM-SHA256:TLS_AES_128_GCM_SHA256:",
            CipherList("ECDHE-RSA-AES128-GCM-SHA256", "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256"),
        ),
        ("ALL:@SECLEVEL=0", CipherList("ALL:@SECLEVEL=0", None)),
    ],
)
def test_ciphers_are_split_as_node_does(text, expected):
    """
    Names beginning with TLS_ go to TLS 1.3, the others to the versions before; nothing said stays None.
    """
    assert cipher_list(text) == expected


@pytest.mark.parametrize(
    ("text", "error", "code"),
    [
        ("NOPE", OptionError, "ERR_SSL_NO_CIPHER_MATCH"),
        ("HIGH:TLS_NOPE", OptionError, "ERR_SSL_NO_CIPHER_MATCH"),
        ("!TLS_AES_128_GCM_SHA256", OptionError, "ERR_SSL_NO_CIPHER_MATCH"),
        ("tls_aes_128_gcm_sha256", OptionError, "ERR_SSL_NO_CIPHER_MATCH"),
        ("HIGH\0:NOPE", OptionError, "ERR_SSL_NO_CIPHER_MATCH"),
        ("HÏGH", OptionError, "ERR_SSL_NO_CIPHER_MATCH"),
        ("DEFAULT@SECLEVEL=9", OptionError, "ERR_SSL_INVALID_COMMAND"),
        (":", OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        (1, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ([], OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        (b"HIGH", OptionTypeError, "ERR_INVALID_ARG_TYPE"),
    ],
)
def test_unusable_ciphers_are_refused(text, error, code):
    """
    A list that OpenSSL cannot use is refused with Node's code when it is given.
    """
    with pytest.raises(error, match="`ciphers`") as caught:
        cipher_list(text)

    assert caught.value.code == code


# Secrets ----------------------------------------------------------------------------------------------------------


def test_reprs_show_digests_only(two, ec_key):
    """
    No repr shows key, passphrase or certificate; each shows its digest.
    """
    data = key_bytes(ec_key, passphrase=SECRET)
    [locked] = private_keys(data, None)
    shown = {
        repr(trust_anchors(pem(two[0]))): trust_anchors(pem(two[0])).digest,
        repr(certificate_chains(pem(two[0]))[0]): certificate_chains(pem(two[0]))[0].digest,
        repr(locked): locked.digest,
        repr(locked.unlock(SECRET)): locked.unlock(SECRET).spki_digest,
    }

    for text, digest in shown.items():
        assert digest.hex() in text
        assert len(text) < 130
        assert not any(line in text for line in (data + pem(two[0])).decode().splitlines())


def test_errors_hold_no_secret(ec_key):
    """
    Neither the error nor what it carries quotes the key or the passphrase.
    """
    locked = key_bytes(ec_key, passphrase=SECRET)
    body = locked.splitlines()[1]
    damaged = locked.replace(body, b"?" + body[1:])

    for value, passphrase in [(locked, "wrong horse"), (damaged, SECRET), (body, SECRET), ([{body.decode(): 1}], None)]:
        with pytest.raises(OptionError) as caught:
            private_keys(value, passphrase)
        cause = caught.value.__cause__
        text = f"{caught.value!r} {vars(caught.value)} {cause!r} {pickle.dumps(caught.value)!r}"
        assert "horse" not in text
        assert body[8:40].decode() not in text


def test_memo_keeps_no_passphrase(ec_key):
    """
    What is remembered of an unlocked key is found by a digest, not by its passphrase.
    """
    private_keys(key_bytes(ec_key, passphrase=SECRET), SECRET)

    names = [repr(name) for memo in (credentials._keys, credentials._unlocked) for name in memo._values]

    assert names
    assert not any(SECRET in name for name in names)


def test_base64_body_without_line_breaks_is_read(two):
    """
    PEM need not be folded at 64 characters.
    """
    text = b"-----BEGIN CERTIFICATE-----" + base64.b64encode(der(two[0])) + b"-----END CERTIFICATE-----"

    assert trust_anchors(text) == trust_anchors(der(two[0]))


# What pkcs11-provider 1.3.0 wrote for a key that was made in a token.
TOKEN_PEM = b"""\
-----BEGIN PKCS#11 PROVIDER URI-----
MIHNGhlQS0NTIzExIFByb3ZpZGVyIFVSSSB2MS4wDIGvcGtjczExOm1vZGVsPVNv
ZnRIU00lMjB2MjttYW51ZmFjdHVyZXI9U29mdEhTTSUyMHByb2plY3Q7c2VyaWFs
PWVmYmQxNmFmYjY4MTI5MzA7dG9rZW49YWdlbnQ7aWQ9JTM1JUU2JUEzJTBEJUM4
JTJEJTk0JUY4JUNCJTgzJUZBJTIxJTFDJTg0JTAzJTZFO29iamVjdD1lYy0xLjMu
MC0xO3R5cGU9cHJpdmF0ZQ==
-----END PKCS#11 PROVIDER URI-----
"""
TOKEN_URI = b"pkcs11:token=agent;object=client?pin-value=" + SECRET.encode()


@pytest.mark.parametrize(
    "item",
    [
        TOKEN_PEM,
        b"Bag Attributes\n" + TOKEN_PEM,
        credentials._token_pem(TOKEN_URI),
        TOKEN_URI,
        b"pkcs11:",
        b" pkcs11:token=agent;type=private\n",
    ],
)
@pytest.mark.parametrize("form", ["bytes", "str", "path", "mapping"])
@pytest.mark.parametrize("passphrase", [None, SECRET])
@pytest.mark.parametrize(
    ("configuration", "advice"), [(None, "have OPENSSL_CONF load pkcs11-provider"), ("/etc/mine.cnf", "check that")]
)
def test_a_key_in_a_token_needs_a_provider(item, form, passphrase, configuration, advice, tmp_path, monkeypatch):
    """
    The URI of a key in a token goes to OpenSSL, which without a provider does not find it: the error says what to do.
    """
    monkeypatch.delenv("OPENSSL_CONF", raising=False)
    if configuration is not None:
        monkeypatch.setenv("OPENSSL_CONF", configuration)
    path = tmp_path / "key.pem"
    path.write_bytes(item)
    value = {"bytes": item, "str": item.decode(), "path": path, "mapping": [{"pem": item, "passphrase": SECRET}]}[form]

    with pytest.raises(OptionError, match=advice) as caught:
        AgentOptions(key=value, **({} if passphrase is None else {"passphrase": passphrase}))

    assert caught.value.code == "ERR_OSSL_UNSUPPORTED"
    assert "docs/howto/pkcs11.md" in str(caught.value)
    report = "".join(traceback.format_exception(caught.value))
    assert SECRET not in report
    assert base64.b64encode(item) not in report.encode()


def test_a_uri_is_wrapped_as_the_provider_does_it():
    """
    OpenSSL is given the PEM that pkcs11-provider itself writes, whether the length takes one byte or two.
    """
    short = credentials._token_pem(b"pkcs11:type=private").split(b"-----")[2]

    wrapped = credentials._token_pem(credentials._token_uri(TOKEN_PEM))
    assert b"".join(wrapped.split()) == b"".join(TOKEN_PEM.split())  # lines may differ in length
    assert base64.b64decode(short) == b"\x30\x30\x1a\x19PKCS#11 Provider URI v1.0\x0c\x13pkcs11:type=private"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        (b"pkcs11:", b"pkcs11:type=private"),
        (b"pkcs11:object=a?module-name=b&x-type=c", b"pkcs11:object=a;type=private?module-name=b&x-type=c"),
        (b"pkcs11:type=private;object=a", b"pkcs11:type=private;object=a"),
        (b"pkcs11:object=a;type=private?pin-source=b", b"pkcs11:object=a;type=private?pin-source=b"),
    ],
)
def test_a_uri_asks_for_the_private_key(uri, path):
    """
    A URI that does not say which kind of object it names gets `type=private` (RFC 7512 2.3).
    """
    assert credentials._token_uri(uri) == path


@pytest.mark.parametrize("body", [b"MA==", b"????", b""])
def test_the_pem_of_a_uri_may_be_damaged(body):
    """
    PEM with the label of a PKCS#11 URI and none inside is refused as such.
    """
    pem = b"-----BEGIN PKCS#11 PROVIDER URI-----\n" + body + b"\n-----END PKCS#11 PROVIDER URI-----\n"

    with pytest.raises(OptionError, match="none is in it") as caught:
        private_keys(pem, None)

    assert caught.value.code == "ERR_OSSL_PEM_BAD_BASE64_DECODE"


def test_a_key_whose_pin_is_unknown_shows_nothing():
    """
    Not even a digest of its URI, in which the PIN may be; without a passphrase it says what it needs.
    """
    key = credentials.TokenKey(TOKEN_URI, hashlib.sha256(TOKEN_URI).digest())

    assert repr(key) == "<TokenKey>"
    for missing in (None, "", b""):
        with pytest.raises(OptionError, match=r"asks for its PIN.*`passphrase`") as caught:
            key.unlock(missing)
        assert caught.value.code == "ERR_OSSL_BAD_DECRYPT"
