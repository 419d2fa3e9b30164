from __future__ import annotations

import copy
import datetime
import ipaddress
import pickle

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tlsagent._tls.certificates import PeerCertificate
from tlsagent.errors import CertificateError, CertificateNameError, OptionError, OptionTypeError

KEY = ec.generate_private_key(ec.SECP256R1())
START = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
END = datetime.datetime(2051, 1, 1, tzinfo=datetime.UTC)
CN = x509.NameOID.COMMON_NAME
SAN_OID = bytes.fromhex("0603551d11")


def built(names=(), subject=((CN, "a.test"),), issuer=((CN, "root"),), extensions=(), serial=1):
    name = [x509.Name([x509.NameAttribute(*one) for one in attributes]) for attributes in (issuer, subject)]
    builder = x509.CertificateBuilder(*name, KEY.public_key(), serial, START, END)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(KEY, hashes.SHA256())


def der(*args, **kwargs):
    return built(*args, **kwargs).public_bytes(Encoding.DER)


PLAIN = der([x509.DNSName("a.test")])


def patched(old, new):
    """The plain certificate with some of its bytes exchanged; nobody here looks at the signature."""
    assert old in PLAIN
    assert len(old) == len(new)
    return PeerCertificate(PLAIN.replace(old, new))


def test_fields_are_those_of_the_certificate():
    """
    Subject, issuer, dates and fingerprint say what another reader of the same bytes says.
    """
    other = built([x509.DNSName("a.test")])
    certificate = PeerCertificate.from_der(other.public_bytes(Encoding.DER))

    assert certificate.subject == {"CN": "a.test"}
    assert certificate.issuer == {"CN": "root"}
    assert certificate.not_valid_before == other.not_valid_before_utc == START
    assert certificate.not_valid_after == other.not_valid_after_utc == END
    assert certificate.fingerprint256 == other.fingerprint(hashes.SHA256()).hex(":").upper()
    assert certificate.x509 == other
    assert certificate.x509 is certificate.x509


@pytest.mark.parametrize("data", [PLAIN, bytearray(PLAIN), memoryview(PLAIN)])
def test_equal_bytes_are_equal_certificates(data):
    """
    Certificates are compared, hashed, pickled and copied by their bytes.
    """
    certificate = PeerCertificate.from_der(data)

    assert certificate == PeerCertificate(PLAIN)
    assert certificate != PeerCertificate(der([x509.DNSName("b.test")]))
    assert certificate != PLAIN
    assert {certificate, pickle.loads(pickle.dumps(certificate)), copy.deepcopy(certificate)} == {certificate}
    assert repr(certificate) == f"<PeerCertificate sha256 {certificate.fingerprint256}>"


@pytest.mark.parametrize("convert", [bytes, bytes.decode])
def test_first_certificate_of_pem_is_taken(convert):
    """
    PEM text may hold a chain; the leaf comes first.
    """
    text = built([x509.DNSName("a.test")]).public_bytes(Encoding.PEM) + built().public_bytes(Encoding.PEM)

    assert PeerCertificate.from_pem(convert(text)).subject_alt_names == (("DNS", "a.test"),)


@pytest.mark.parametrize("read", [PeerCertificate.from_der, PeerCertificate.from_pem])
@pytest.mark.parametrize(
    "junk", [b"", b"junk", b"\x30\x00", b"\x30\x80\x00\x00", PLAIN + b"\0", PLAIN[:-1], PLAIN[:200]]
)
def test_junk_is_refused(read, junk):
    """
    What is not exactly one certificate is an OptionError, in both forms.
    """
    with pytest.raises(OptionError) as caught:
        read(junk)

    assert caught.value.code.startswith("ERR_OSSL_")


@pytest.mark.parametrize(
    ("read", "value"),
    [(PeerCertificate.from_der, "text"), (PeerCertificate.from_der, None), (PeerCertificate.from_pem, 5)],
)
def test_wrong_types_are_refused(read, value):
    """
    DER is bytes and PEM is text or bytes.
    """
    with pytest.raises(OptionTypeError):
        read(value)


OTHERS = ("subject", "issuer", "not_valid_before", "not_valid_after")


def failure(data, read):
    try:
        getattr(PeerCertificate(data), read)
    except CertificateError as exc:
        return exc
    return None


def test_every_cut_and_every_flipped_byte_is_an_error_or_an_answer():
    """
    No damage to the bytes makes the reader raise anything but its own error.
    """
    damaged = [PLAIN[:size] for size in range(len(PLAIN))]
    damaged += [
        PLAIN[:at] + bytes([PLAIN[at] ^ flip]) + PLAIN[at + 1 :] for at in range(len(PLAIN)) for flip in (1, 128)
    ]

    raised = {read: {type(failure(data, read)) for data in damaged} for read in ("subject_alt_names", *OTHERS)}

    assert raised.pop("subject_alt_names") == {type(None), CertificateNameError}
    assert all(kinds == {type(None), CertificateError} for kinds in raised.values())


# Names ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_alternative_name():
    """
    Names come in order, with Node's kinds; addresses are canonical.
    """
    names = [
        x509.DNSName("*.A.test"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("2001:DB8::0:1")),
        x509.RFC822Name("me@a.test"),
        x509.UniformResourceIdentifier("https://a.test/"),
        x509.DirectoryName(
            x509.Name([x509.NameAttribute(CN, "x"), x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "DE")])
        ),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.840.113549.2.999")),
        x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x01x"),
    ]
    basic = x509.BasicConstraints(ca=False, path_length=None)

    assert PeerCertificate(der(names, extensions=[basic])).subject_alt_names == (
        ("DNS", "*.A.test"),
        ("IP Address", "127.0.0.1"),
        ("IP Address", "2001:db8::1"),
        ("email", "me@a.test"),
        ("URI", "https://a.test/"),
        ("DirName", "CN=x, C=DE"),
        ("Registered ID", "1.2.840.113549.2.999"),
        ("othername", "<unsupported>"),
    )


@pytest.mark.parametrize("oid", ["0.9.2342", "1.39.1", "2.5.4", "2.999.3"])
def test_object_identifiers_are_read(oid):
    """
    The first octet of an object identifier holds two arcs, the second of which may be large under 2 (X.690 8.19).
    """
    names = [x509.RegisteredID(x509.ObjectIdentifier(oid))]

    assert PeerCertificate(der(names)).subject_alt_names == (("Registered ID", oid),)


@pytest.mark.parametrize("extensions", [(), (x509.BasicConstraints(ca=False, path_length=None),)])
def test_no_alternative_names(extensions):
    """
    A certificate without alternative names has none, whether or not it has other extensions.
    """
    assert PeerCertificate(der(extensions=extensions)).subject_alt_names == ()


def test_names_are_read_once():
    """
    Reading the names again returns the same tuple.
    """
    certificate = PeerCertificate(PLAIN)

    assert certificate.subject_alt_names is certificate.subject_alt_names


def test_a_certificate_seen_again_is_not_read_again():
    """
    A server shows the same certificate on every connection: what one object has read, another of equal bytes has too.
    """
    first, again = PeerCertificate(PLAIN), PeerCertificate(bytes(bytearray(PLAIN)))

    assert first.subject_alt_names is again.subject_alt_names
    assert first.not_valid_after is again.not_valid_after


def test_bytes_of_a_name_survive():
    """
    NUL and high bytes of a DNS name are seen as they are, one character per byte.
    """
    assert patched(b"\x82\x06a.test", b"\x82\x06a\0\xe9\xff, ").subject_alt_names == (("DNS", "a\0\xe9\xff, "),)


def test_address_of_odd_length_is_marked():
    """
    An address that is neither four nor sixteen bytes is shown as such and matches nothing.
    """
    assert patched(b"\x82\x06a.test", b"\x87\x06a.test").subject_alt_names == (("IP Address", "<invalid length=6>"),)


@pytest.mark.parametrize(("tag", "kind"), [(b"\xa3", "X400Name"), (b"\xa5", "EdiPartyName"), (b"\xa0", "othername")])
def test_unread_kinds_are_named(tag, kind):
    """
    Kinds of names that nobody uses are listed without their content.
    """
    assert patched(b"\x82\x06a.test", tag + b"\x06a.test").subject_alt_names == ((kind, "<unsupported>"),)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"\x82\x06a.test", b"\x89\x06a.test", "tag 0x89"),
        (b"\x82\x06a.test", b"\x82\x81\x05.test", "DER form"),
        (b"\x82\x06a.test", b"\x82\x80.test\0", "DER form"),
        (b"\x82\x06a.test", b"\x82\x07a.test", "cut off"),
        (b"\x82\x06a.test", b"\x82\x85\0\0\0\0\1.", "DER form"),
        (b"\x82\x06a.test", b"\x82\x82\0\x81....", "DER form"),
        (b"\x82\x06a.test", b"\x82\x04a.test", "cut off"),
        (b"\x82\x06a.test", b"\x9f\x06a.test", "tag above 30"),
        (b"\x82\x06a.test", b"\x82\x05a.tes\x82", "cut off"),
        (b"\x82\x06a.test", b"\xa4\x06\x31\x00\x31\x00..", "more than one value"),
        (b"\x82\x06a.test", b"\xa4\x06\x31\x04test", "0x30 belongs"),
        (b"\x04\x0a\x30\x08\x82", b"\x04\x0a\x31\x08\x82", "0x30 belongs"),
        (b"\x04\x0a\x30\x08\x82", b"\x03\x0a\x30\x08\x82", "0x04 belongs"),
        (SAN_OID, b"\x05\x03\x55\x1d\x11", "0x06 belongs"),
    ],
)
def test_malformed_names_are_an_error(old, new, reason):
    """
    Names that are not DER are an error with Node's code, never a shorter list.
    """
    with pytest.raises(CertificateNameError, match=reason) as caught:
        _ = patched(old, new).subject_alt_names

    assert caught.value.code == "ERR_TLS_CERT_ALTNAME_FORMAT"


def test_two_lists_of_names_are_an_error():
    """
    A certificate with two lists of alternative names is refused: another reader might go by the other one.
    """
    second = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.127"), b"\x30\x08\x82\x06b.test")
    data = der([x509.DNSName("a.test")], extensions=[second]).replace(b"\x06\x03\x55\x1d\x7f", SAN_OID)

    with pytest.raises(CertificateNameError, match="two lists"):
        _ = PeerCertificate(data).subject_alt_names


def test_extension_of_one_part_is_an_error():
    """
    An extension without a value is malformed.
    """
    with pytest.raises(CertificateNameError, match="not a pair"):
        _ = patched(
            SAN_OID + b"\x04\x0a\x30\x08\x82\x06a.test", b"\x06\x0f" + SAN_OID[2:] + b"\x04\x0a0\x08\x82\x06a.test"
        ).subject_alt_names


def test_attributes_by_short_name():
    """
    Attributes have OpenSSL's short names, unknown ones their number; repeated ones are a list, equal values too.
    """
    subject = [
        (CN, "x"),
        (CN, "x"),
        (x509.NameOID.ORGANIZATION_NAME, "Örg"),
        (x509.NameOID.EMAIL_ADDRESS, "me@a.test"),
        (x509.NameOID.DOMAIN_COMPONENT, "test"),
        (x509.ObjectIdentifier("1.2.3.4"), "other"),
    ]

    assert PeerCertificate(der(subject=subject)).subject == {
        "CN": ["x", "x"],
        "O": "Örg",
        "emailAddress": "me@a.test",
        "DC": "test",
        "1.2.3.4": "other",
    }


def test_attribute_without_value_is_an_error():
    """
    An attribute is a type and a value, nothing else.
    """
    with pytest.raises(CertificateError, match="not a pair"):
        _ = patched(b"\x06\x03\x55\x04\x03\x0c\x06a.test", b"\x06\x0b\x55\x04\x03\x0c\x06a.test").subject


@pytest.mark.parametrize(("tag", "text"), [(0x0C, "\ufffd\ufffd"), (0x13, "\xe9\xff"), (0x1E, "\ue9ff")])
def test_string_types_of_a_subject(tag, text):
    """
    Attributes are decoded by their string type; what does not decode is replaced.
    """
    data = der(subject=[(CN, "zz")]).replace(b"\x0c\x02zz", bytes([tag]) + b"\x02\xe9\xff")

    assert PeerCertificate(data).subject == {"CN": text}


# Dates and versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "year"), [(b"490102030405Z", 2049), (b"500102030405Z", 1950), (b"000102030405Z", 2000)]
)
def test_two_digit_years(text, year):
    """
    Two-digit years from 50 on are in the last century (RFC 5280 section 4.1.2.5.1).
    """
    assert patched(b"260102030405Z", text).not_valid_before == START.replace(year=year)


@pytest.mark.parametrize("text", [b"261302030405Z", b"260102030405+", b"26010203040_Z", b"2601020304\xb2\xb2Z"])
def test_malformed_dates_are_an_error(text):
    """
    A date that is none, or not in the one form that is allowed, is an error.
    """
    with pytest.raises(CertificateError, match="cannot be read"):
        _ = patched(b"260102030405Z", text).not_valid_before


def test_validity_of_another_shape_is_an_error():
    """
    Validity is two times and nothing else.
    """
    one_time = PLAIN.index(b"\x17\x0d260102030405Z")
    whole = PLAIN[one_time : one_time + 32]

    with pytest.raises(CertificateError, match="two times"):
        _ = patched(whole, b"\x17\x1e" + whole[2:]).not_valid_after
    with pytest.raises(CertificateError, match="not a time"):
        _ = patched(b"\x17\x0d260102030405Z", b"\x13\x0d260102030405Z").not_valid_before


def test_version_one_certificates_are_read():
    """
    A certificate without a version field (version 1) is read like any other.
    """
    tbs = built().tbs_certificate_bytes
    body = tbs[tbs.index(b"\xa0\x03\x02\x01\x02") + 5 :]

    def sequence(content):
        size = len(content)
        return b"\x30" + (b"\x81" + bytes([size]) if size < 256 else b"\x82" + size.to_bytes(2, "big")) + content

    certificate = PeerCertificate.from_der(sequence(sequence(body) + b"\x30\x00" + b"\x03\x00"))

    assert certificate.subject == {"CN": "a.test"}
    assert certificate.subject_alt_names == ()


def test_serial_zero_gives_no_warning():
    """
    A serial number of zero, which cryptography warns about, does not matter here.
    """
    version = b"\xa0\x03\x02\x01\x02\x02\x01"

    assert patched(version + b"\x01", version + b"\x00").subject_alt_names == (("DNS", "a.test"),)
