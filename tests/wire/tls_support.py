"""
What the TLS tests share: certificates of every kind, ClientHellos taken apart, a front on another address.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import socket
import threading
from collections.abc import Iterator
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tlsagent.testing._hello import PRE_SHARED_KEY, SUPPORTED_VERSIONS, ClientHello
from tlsagent.testing.authority import Credentials

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH

VERSIONS = ("TLSv1.2", "TLSv1.3")

# --- Certificates -----------------------------------------------------------------------------------------------------


class Issued:
    """A certificate and its key."""

    def __init__(self, certificate: x509.Certificate, key: Any) -> None:
        self.certificate = certificate
        self.key = key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def with_chain(self, *issuers: Issued) -> Credentials:
        """Return what a server presents: this certificate, then the given ones."""
        return Credentials(b"".join(one.pem for one in (self, *issuers)), self.key_pem)


def issue(
    *names: str,
    by: Issued | None = None,
    ca: bool = False,
    path_length: int | None = None,
    start: datetime.datetime = NOW - DAY,
    end: datetime.datetime = NOW + 30 * DAY,
    purpose: x509.ObjectIdentifier = SERVER_AUTH,
    permitted: str | None = None,
    rsa_bits: int | None = None,
    subject: str | None = None,
) -> Issued:
    """Issue a certificate for DNS names; self-signed unless `by` an issuer."""
    key: Any = rsa.generate_private_key(65_537, rsa_bits) if rsa_bits else ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject or names[0])])
    issuer, signing_key = (name, key) if by is None else (by.certificate.subject, by.key)
    builder = x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number(), start, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if not ca:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(one) for one in names])
        builder = builder.add_extension(alternatives, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if permitted is not None:
        builder = builder.add_extension(x509.NameConstraints([x509.DNSName(permitted)], None), critical=True)
    return Issued(builder.sign(signing_key, hashes.SHA256()), key)


def crl(
    issuer: Issued, *revoked: Issued, until: datetime.datetime = NOW + DAY, since: datetime.datetime = NOW - DAY
) -> bytes:
    """Return the revocation list of an issuer, PEM."""
    builder = x509.CertificateRevocationListBuilder(issuer.certificate.subject, since, until)
    for one in revoked:
        entry = x509.RevokedCertificateBuilder(one.certificate.serial_number, since).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def encrypted(key_pem: bytes, passphrase: str) -> bytes:
    """Return a private key as PEM that needs a passphrase."""
    key = load_pem_private_key(key_pem, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase.encode()))


class BadChain:
    """
    A chain that a client must refuse.

    Attributes:
        credentials: What the server presents.
        ca: What the client trusts.
        code: What Node calls the fault.
    """

    def __init__(self, code: str, credentials: Credentials, ca: Issued) -> None:
        self.code = code
        self.credentials = credentials
        self.ca = ca.pem


BAD_CHAINS = (
    "wrong host",
    "expired",
    "not yet valid",
    "self-signed leaf",
    "unknown root, sent along",
    "unknown root, not sent",
    "missing intermediate",
    "for clients only",
    "name constraints",
    "issuer is no CA",
    "path too long",
    "wrong signature",
)


def bad_chain(name: str) -> BadChain:
    """Return one of `BAD_CHAINS`; all are for the host "localhost" but the first."""
    return _bad_chains()[name]


@functools.cache
def _bad_chains() -> dict[str, BadChain]:
    root, other = issue("root", ca=True), issue("other root", ca=True)
    leaf = issue("localhost", by=root)
    misnamed = issue("other.test", "*.other.test", by=root)
    old = issue("localhost", by=root, start=NOW - 60 * DAY, end=NOW - DAY)
    young = issue("localhost", by=root, start=NOW + DAY)
    middle = issue("intermediate", by=root, ca=True)
    behind = issue("localhost", by=middle)
    for_clients = issue("localhost", by=root, purpose=CLIENT_AUTH)
    bound = issue("bound", by=root, ca=True, permitted="permitted.test")
    impostor = issue("impostor", by=root)
    last = issue("last", by=root, ca=True, path_length=0)
    below = issue("below", by=last, ca=True)
    namesake = issue("root", ca=True)

    def by(issuer: Issued, *above: Issued) -> Credentials:
        return issue("localhost", by=issuer).with_chain(issuer, *above)

    chains = (
        BadChain("ERR_TLS_CERT_ALTNAME_INVALID", misnamed.with_chain(), root),
        BadChain("CERT_HAS_EXPIRED", old.with_chain(), root),
        BadChain("CERT_NOT_YET_VALID", young.with_chain(), root),
        BadChain("DEPTH_ZERO_SELF_SIGNED_CERT", issue("localhost").with_chain(), root),
        BadChain("SELF_SIGNED_CERT_IN_CHAIN", leaf.with_chain(root), other),
        BadChain("UNABLE_TO_GET_ISSUER_CERT_LOCALLY", behind.with_chain(middle), other),
        BadChain("UNABLE_TO_VERIFY_LEAF_SIGNATURE", behind.with_chain(), root),
        BadChain("INVALID_PURPOSE", for_clients.with_chain(), root),
        BadChain("UNSPECIFIED", by(bound), root),
        BadChain("INVALID_PURPOSE", by(impostor), root),
        BadChain("PATH_LENGTH_EXCEEDED", by(below, last), root),
        BadChain("CERT_SIGNATURE_FAILURE", issue("localhost", by=namesake).with_chain(), root),
    )
    return dict(zip(BAD_CHAINS, chains, strict=True))


# --- What the client said ---------------------------------------------------------------------------------------------


def hello_of(connection: Any) -> ClientHello:
    """Return the ClientHello of a connection record of the server."""
    hello = ClientHello.parse(connection.client_hello)
    assert hello is not None
    return hello


def offers_session(connection: Any) -> bool:
    """Whether the client offered any session: a PSK, a ticket or, in TLS 1.2, a session id."""
    hello = hello_of(connection)
    # With TLS 1.3 on offer a session id is always sent (RFC 8446 D.4) and says nothing.
    return hello.offers_ticket or (SUPPORTED_VERSIONS not in hello.extensions and bool(hello.session_id))


def tickets_offered(connection: Any) -> list[bytes]:
    """Return the TLS 1.3 tickets in a ClientHello (RFC 8446 4.2.11: identities)."""
    extension = hello_of(connection).extensions.get(PRE_SHARED_KEY, b"")
    size = int.from_bytes(extension[:2], "big")
    identities, at = [], 2
    while at < 2 + size:
        length = int.from_bytes(extension[at : at + 2], "big")
        identities.append(extension[at + 2 : at + 2 + length])
        at += 2 + length + 4
    return identities


# --- A front on another address ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def front(listener: socket.socket, port: int) -> Iterator[list[socket.socket]]:
    """Pass what comes to a listener on to a local port, byte for byte; gives the list of the connections."""
    accepted: list[socket.socket] = []
    threads = [threading.Thread(target=_accept, args=(listener, port, accepted), daemon=True)]
    threads[0].start()
    try:
        yield accepted
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        threads[0].join(5)
        for sock in accepted:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, port: int, accepted: list[socket.socket]) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        far = socket.create_connection(("127.0.0.1", port))
        accepted.append(near)
        both_done = threading.Barrier(2)
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=_pass_on, args=(source, target, both_done), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, both_done: threading.Barrier) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
    both_done.wait(30)
    source.close()
