from __future__ import annotations

import datetime
import ipaddress
import pickle
import re

import pytest
from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tlsagent._tls.certificates import PeerCertificate
from tlsagent._tls.verify import certificate_error, check_server_identity, verify_error_name
from tlsagent.errors import CertificateError, CertificateNameError, CertificateRevoked, OptionTypeError

KEY = ec.generate_private_key(ec.SECP256R1())
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2036, 1, 1, tzinfo=datetime.UTC)


def certificate(*names, common_name="x"):
    """A certificate for names; those that parse as an address become addresses unless they begin with `dns:`."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateBuilder(subject, subject, KEY.public_key(), 1, START, END)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([general(name) for name in names]), critical=False)
    return PeerCertificate(builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER))


def general(name):
    if isinstance(name, x509.GeneralName):
        return name
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.removeprefix("dns:"))


def accepts(host, *names, **kwargs):
    try:
        check_server_identity(host, certificate(*names, **kwargs))
    except CertificateNameError as exc:
        return exc.code != "ERR_TLS_CERT_ALTNAME_INVALID"
    return True


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("a.test", ["b.test", "a.test"]),
        ("A.Test", ["a.tEST"]),
        ("a.test.", ["a.test"]),
        ("a.test", ["a.test."]),
        ("localhost", ["localhost"]),
        ("a_b.test", ["a_b.test"]),
        ("_dmarc.a.test", ["_dmarc.a.test"]),
        ("-a.test", ["-a.test"]),
        ("1.a", ["1.a"]),
        ("0x7f.1a", ["0x7f.1a"]),
        ("xn--bcher-kva.test", ["xn--bcher-kva.test"]),
    ],
)
def test_equal_names_match(host, names):
    """
    A host matches a DNS name that is equal but for case and one trailing dot.
    """
    assert accepts(host, *names)


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("a.test", ["b.test"]),
        ("x.a.test", ["a.test"]),
        ("a.test", ["x.a.test"]),
        ("xa.test", ["a.test"]),
        ("a.test", [".a.test"]),
        ("a.test", ["a.test.."]),
        ("a.test", [" a.test"]),
        ("b.test", ["b.test "]),
        ("a.test", ["a.test\0.evil.test"]),
        ("b.test", ["a.test\nDNS:b.test"]),
        ("a.test", ['e", DNS:a.test, "']),
        ("a.test", [x509.RFC822Name("x@a.test"), x509.UniformResourceIdentifier("https://a.test/")]),
    ],
)
def test_other_names_do_not_match(host, names):
    """
    Whatever is not the whole name of kind DNS does not match.
    """
    assert not accepts(host, *names)


@pytest.mark.parametrize(
    ("host", "pattern", "expected"),
    [
        ("x.a.test", "*.a.test", True),
        ("x.a.test.", "*.A.Test.", True),
        ("xn--bcher-kva.a.test", "*.a.test", True),
        ("w.xn--bcher-kva.test", "*.xn--bcher-kva.test", True),
        ("a.test", "*.a.test", False),
        ("x.y.a.test", "*.a.test", False),
        ("a.test", "*.test", False),
        ("test", "*", False),
        ("a.test", "*", False),
        ("x.a.test", "*.*.test", False),
        ("x.a.test", "x.*.test", False),
        ("x.a.test", "**.a.test", False),
        ("foo.a.test", "f*.a.test", False),
        ("foo.a.test", "*o.a.test", False),
        ("foo.a.test", "f*o.a.test", False),
        ("xn--bcher-kva.a.test", "xn--*.a.test", False),
        ("x.a.test", "?.a.test", False),
        ("x.a.test", "*a.test", False),
        ("x.a..test", "*.a..test", False),
        ("*.a.test", "*.a.test", False),
    ],
)
def test_wildcards(host, pattern, expected):
    """
    A wildcard is the whole left-most label, stands for one label, and has two behind it at least (RFC 9525 6.3).
    """
    assert accepts(host, pattern) is expected


@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("127.0.0.1", ["10.0.0.1", "127.0.0.1"], True),
        ("::1", ["::1"], True),
        ("::0001", ["::1"], True),
        ("2001:DB8::1", ["2001:db8:0::1"], True),
        ("::ffff:192.0.2.1", ["::ffff:c000:201"], True),
        ("fe80::1%eth0", ["fe80::1"], True),
        ("127.0.0.1.", ["127.0.0.1"], True),
        ("127.0.0.2", ["127.0.0.1"], False),
        ("192.0.2.1", ["::ffff:192.0.2.1"], False),
        ("::192.0.2.1", ["192.0.2.1"], False),
        ("127.0.0.1", ["dns:127.0.0.1"], False),
        ("127.0.0.1", ["dns:*.0.0.1"], False),
        ("::1", ["dns:::1"], False),
        ("[::1]", ["::1"], False),
        ("127.0.0.1%eth0", ["127.0.0.1"], False),
        ("fe80::1%a\0b", ["fe80::1"], False),
        ("localhost", ["127.0.0.1"], False),
        ("127.1", ["127.0.0.1"], False),
        ("127.0.0.01", ["127.0.0.1"], False),
        ("2130706433", ["127.0.0.1"], False),
    ],
)
def test_addresses(host, names, expected):
    """
    An address matches an equal address of the certificate, never a DNS name; its zone is not compared.
    """
    assert accepts(host, *names) is expected


@pytest.mark.parametrize(
    "host",
    ["", ".", "..", ".a.test", "a..test", "a.test..", " a.test", "a b.test", "a.test\0", "a.test\n", "a.test:443",
     "a/b", "a.test/", "a.test#", "%61.test", "a%2etest", "a\\.test", "[a].test", "a^b.test", "user@a.test", "*",
     "a*.test", "1.2.3", "1.2.3.4.5", "256.0.0.1", "0x7f.1", "a.0x", "a.0xff", "a.1."],
)  # fmt: skip
def test_what_is_no_host_name_is_refused(host):
    """
    A host that is no name in DNS is refused before any comparison, even beside an equal name.
    """
    with pytest.raises(CertificateNameError, match="is not a host name") as caught:
        check_server_identity(host, certificate("a.test", x509.DNSName(host)))

    assert caught.value.code == "ERR_TLS_CERT_ALTNAME_INVALID"


@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("bücher.test", ["xn--bcher-kva.test"], True),
        ("BÜCHER.test.", ["xn--bcher-kva.test"], True),
        ("w.bücher.test", ["*.xn--bcher-kva.test"], True),
        ("é.a.test", ["*.a.test"], True),
        ("😀.test", ["xn--e28h.test"], True),
        ("a．test", ["a.test"], True),
        ("ａ.test", ["a.test"], True),
        ("evil。x.a.test", ["*.a.test"], False),
        ("é.test", ["*.test"], False),
    ],
)
def test_names_beyond_ascii(host, names, expected):
    """
    A host in letters beyond ASCII is compared in its A-label form; every dot of RFC 3490 separates labels.
    """
    assert accepts(host, *names) is expected


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("faß.test", "fass.test"),  # IDNA 2003 and 2008 differ
        ("βόλος.test", "xn--nxasmq6b.test"),
        ("a\u200d.test", "a.test"),
        ("a․b.test", "a.b.test"),  # a dot that appears after the labels were split
        ("℀.test", "a/c.test"),
        ("\U0001f130.test", "\U0001f130.test".encode("idna").decode()),  # squared A, younger than the codec
        ("１２７.0.0.1", "127.0.0.1"),
        ("xn--é.test", "xn--9ca.test"),
        ("é" * 60 + ".test", "a.test"),
        ("é." * 200 + "test", "a.test"),
        ("\ud800.test", "a.test"),
        ("é..test", "xn--9ca..test"),
    ],
)
def test_names_that_do_not_convert_safely_are_refused(host, name):
    """
    Where the versions of IDNA disagree, or a label changes its shape, the host is refused.
    """
    with pytest.raises(CertificateNameError, match="is not a host name"):
        check_server_identity(host, certificate(x509.DNSName(name), "a.test"))


@pytest.mark.parametrize("names", [[], ["127.0.0.1"], [x509.RFC822Name("me@a.test")], ["b.test"]])
def test_common_name_never_counts(names):
    """
    The common name is not looked at, with or without alternative names (RFC 9525 section 2).
    """
    assert not accepts("a.test", *names, common_name="a.test")


def test_unreadable_names_are_refused():
    """
    A certificate whose names cannot be read is for nobody.
    """
    broken = PeerCertificate(certificate("a.test").der.replace(b"\x82\x06a.test", b"\x82\x07a.test"))

    with pytest.raises(CertificateNameError) as caught:
        check_server_identity("a.test", broken)

    assert caught.value.code == "ERR_TLS_CERT_ALTNAME_FORMAT"


@pytest.mark.parametrize("host", [None, b"a.test", 5])
def test_host_must_be_text(host):
    """
    A host that is not a str is the caller's mistake.
    """
    with pytest.raises(OptionTypeError):
        check_server_identity(host, certificate("a.test"))


def test_message_names_host_and_names():
    """
    The message says which host was asked for and which names were there, and can be pickled.
    """
    with pytest.raises(CertificateNameError, match=r'not for "c\.test"') as caught:
        check_server_identity("c.test", certificate("a.test", "127.0.0.1"))

    assert '"DNS:a.test", "IP Address:127.0.0.1"' in str(caught.value)
    assert "more" not in str(caught.value)
    assert vars(pickle.loads(pickle.dumps(caught.value))) == vars(caught.value)


@pytest.mark.parametrize(("host", "kind"), [("a.test", "DNS name"), ("::1", "IP address")])
def test_message_says_that_the_kind_is_missing(host, kind):
    """
    A certificate without names of the kind in question gets a message that says so.
    """
    names = ["127.0.0.1"] if host == "a.test" else ["a.test"]

    with pytest.raises(CertificateNameError, match=f"does not name an? {kind} at all"):
        check_server_identity(host, certificate(*names))


def test_message_stays_short():
    """
    Thousands of hostile names make neither a long message nor an unprintable one.
    """
    names = [x509.DNSName("\x1b" * 200 + f"{number}.test") for number in range(2000)]

    with pytest.raises(CertificateNameError, match="and 1992 more") as caught:
        check_server_identity("h" * 5000 + ".test", certificate(*names))

    assert len(str(caught.value)) < 4096
    assert str(caught.value).isprintable()


# Verdicts of OpenSSL ----------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_library():
    """
    Every X509_V_ERR number that the library exports has its own name here or is one that Node does not name.
    """
    lib = Binding().lib
    prefix = "X509_V_ERR_"
    exported = {name.removeprefix(prefix): getattr(lib, name) for name in dir(lib) if name.startswith(prefix)}
    named = {number: verify_error_name(number) for number in range(200)}

    assert sum(name != "UNSPECIFIED" for name in named.values()) == 28
    for name, number in exported.items():
        assert named[number] in {name, "UNSPECIFIED"}
    assert {name for name in named.values() if name != "UNSPECIFIED"} <= exported.keys()


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        ("CERT_REVOKED", CertificateRevoked),
        ("HOSTNAME_MISMATCH", CertificateNameError),
        ("ERR_TLS_CERT_ALTNAME_INVALID", CertificateNameError),
        ("CERT_HAS_EXPIRED", CertificateError),
        ("UNSPECIFIED", CertificateError),
    ],
)
def test_error_class_and_facts(code, cls):
    """
    A verdict becomes the error of its kind, with Node's code and the phase.
    """
    error = certificate_error(code, "a.test")

    assert type(error) is cls
    assert (error.code, error.phase) == (code, "handshake")
    assert '"a.test"' in str(error)
    assert code in str(error)


@pytest.mark.parametrize(
    ("code", "number", "text"),
    [
        ("DEPTH_ZERO_SELF_SIGNED_CERT", 0, "self-signed.* `ca`"),
        ("UNABLE_TO_VERIFY_LEAF_SIGNATURE", 21, "send the whole chain"),
        ("UNABLE_TO_GET_ISSUER_CERT", 2, "`ca`.*allow_partial_trust_chain"),
        ("CERT_NOT_YET_VALID", 9, "clock"),
        ("CRL_NOT_YET_VALID", 11, "clock.*`crl`"),
        ("UNSPECIFIED", 47, "name constraints"),
        ("UNSPECIFIED", 66, "too short"),
        ("UNSPECIFIED", 99, "reason number 99"),
    ],
)
def test_messages_say_what_was_seen_and_what_to_try(code, number, text):
    """
    The message explains the verdict and, where something can be done, what.
    """
    assert re.search(text, str(certificate_error(code, "a.test", number=number)))
