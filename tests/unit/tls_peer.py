"""
The other side for tests of the TLS rooms: throw-away certificates and a server without sockets.

The server is the standard library's `ssl` over two memory BIOs, an OpenSSL of its own and not the client's.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import ssl
import tempfile
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from tlsagent import _material
from tlsagent._tls.context import secure_context
from tlsagent._tls.engine import TLSEngine
from tlsagent._tls.verify import check_server_identity

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
CLOCK = 1000.0
WALL = time.time() - CLOCK

VERSIONS = ("TLSv1.2", "TLSv1.3")
NUMBERS = {"TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
_STDLIB = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}

# Oakley group 2 (RFC 2409 section 6.2).
DH_1024 = b"""-----BEGIN DH PARAMETERS-----
MIGHAoGBAP//////////yQ/aoiFowjTExmKLgNwc0SkCTgiKZ8x0Agu+pjsTmyJRSgh5jjQE3e+V
GbPNOkMbMCsKbfJfFDdP4TVtbVHCReSFtXZiXn7G9ExC6aY37WsL/1y29Aa37e44a/taiZ+lrp8k
EXxLH+ZJKGZR7OZTgf//////////AgEC
-----END DH PARAMETERS-----
"""


class Credentials:
    """A certificate, its key, and the certificates to send with it."""

    def __init__(self, certificate, key, chain=()):
        self.certificate = certificate
        self.key = key
        self.chain = chain

    @property
    def der(self):
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def cert_pem(self):
        return b"".join(one.public_bytes(Encoding.PEM) for one in (self.certificate, *self.chain))

    @property
    def key_pem(self):
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sending(self, *chain):
        """The same with another chain beside it."""
        return Credentials(self.certificate, self.key, chain)


def issue(name, issuer=None, *, ca=False, key=None, start=NOW - DAY, end=NOW + 30 * DAY, usage=None, permitted=None):
    """Issue a certificate for `name`; self-signed without an issuer."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, signing_key = (subject, key) if issuer is None else (issuer.certificate.subject, issuer.key)
    builder = (
        x509.CertificateBuilder(signer, subject, key.public_key(), x509.random_serial_number(), start, end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if permitted is not None:
        builder = builder.add_extension(x509.NameConstraints([x509.DNSName(permitted)], None), critical=True)
    return Credentials(builder.sign(signing_key, hashes.SHA256()), key)


@functools.cache
def pki():
    """One set of certificates for all tests of a process."""
    return PKI()


class PKI:
    def __init__(self):
        self.root = issue("root", ca=True)
        self.other_root = issue("other root", ca=True)
        self.intermediate = issue("intermediate", self.root, ca=True)
        self.server = issue("a.test", self.root)
        self.behind = issue("a.test", self.intermediate).sending(self.intermediate.certificate)
        self.client = issue("client", self.root, usage=ExtendedKeyUsageOID.CLIENT_AUTH)

    def anchors(self, *credentials):
        pems = [one.certificate.public_bytes(Encoding.PEM) for one in credentials or (self.root,)]
        return _material.trust_anchors(pems)


def server_context(
    credentials=None,
    *,
    version="TLSv1.3",
    tickets=2,
    alpn=(),
    client_ca=None,
    ciphers=None,
    session_ids=False,
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = _STDLIB[version]
    context.num_tickets = tickets
    _load(context, credentials or pki().server)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_ca.cert_pem.decode())
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if session_ids:
        context.options |= ssl.OP_NO_TICKET
    return context


def _load(context, credentials):
    descriptor, path = tempfile.mkstemp()
    try:
        os.write(descriptor, credentials.cert_pem + credentials.key_pem)
        os.close(descriptor)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)


class Server:
    """The server's end of one connection."""

    def __init__(self, context):
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)
        self.secured = False
        self.received = b""
        self.ended = False
        self.error = None

    def receive_data(self, data):
        self._in.write(data)
        try:
            if not self.secured:
                self.tls.do_handshake()
                self.secured = True
            while not self.ended:
                piece = self.tls.read(65_536)
                self.received += piece
                self.ended = not piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as exc:
            self.error = exc

    def write(self, data):
        self.tls.write(data)

    def close(self):
        """Send close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()

    def data_to_send(self):
        return self._out.read()


class OpenSSLServer:
    """The server's end on a pyOpenSSL context, for what the standard library cannot do."""

    def __init__(self, context):
        self.tls = SSL.Connection(context, None)
        self.tls.set_accept_state()
        self.received = b""
        self.secured = False
        self.error = None

    def receive_data(self, data):
        self.tls.bio_write(data)
        try:
            if not self.secured:
                self.tls.do_handshake()
                self.secured = True
            while True:
                self.received += self.tls.recv(65_536)
        except (SSL.WantReadError, SSL.ZeroReturnError):
            pass
        except SSL.Error as exc:
            self.error = exc

    def data_to_send(self):
        sent = b""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                sent += self.tls.bio_read(65_536)
        return sent


class RecordWriter:
    """
    What a TLS 1.3 server may send after the handshake and no library sends on demand (RFC 8446, 4.6 and 5.2).

    Needs the suite TLS_AES_256_GCM_SHA384, and that the server has sent nothing under this secret before.
    """

    def __init__(self, traffic_secret):
        self._use(traffic_secret)

    def _use(self, secret):
        self._secret, self._sent = secret, 0
        self._key, self._iv = AESGCM(self._expand(b"key", 32)), self._expand(b"iv", 12)

    def _expand(self, label, length):
        label = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return HKDFExpand(hashes.SHA384(), length, info).derive(self._secret)

    def _record(self, kind, content):
        inner = content + bytes([kind])
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (int.from_bytes(self._iv, "big") ^ self._sent).to_bytes(12, "big")
        self._sent += 1
        return head + self._key.encrypt(nonce, inner, head)

    def data(self, content):
        return self._record(23, content)

    def key_update(self):
        """A KeyUpdate that asks for one in return."""
        record = self._record(22, b"\x18\0\0\1\1")
        self._use(self._expand(b"traffic upd", 48))
        return record

    def ticket(self, name):
        """A NewSessionTicket for two hours, without a nonce that differs or early data."""
        body = (7_200).to_bytes(4, "big") + bytes(4) + b"\0" + len(name).to_bytes(2, "big") + name + b"\0\0"
        return self._record(22, b"\x04" + len(body).to_bytes(3, "big") + body)


def connect_writer():
    """Carry a handshake through; returns the link, and a writer of what its server sends from now on."""
    context = server_context(tickets=0)
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "keys")
        context.keylog_filename = log
        link = connect(server=context)
        with open(log) as lines:
            [secret] = [line.split()[2] for line in lines if line.startswith("SERVER_TRAFFIC_SECRET_0 ")]
        context.keylog_filename = None
    return link, RecordWriter(bytes.fromhex(secret))


class Sink:
    """A TLSSink that remembers the order of things."""

    def __init__(self):
        self.facts = None
        self.data = b""
        self.pieces = 0
        self.ends = []
        self.sessions = []
        self.news = []

    def secured(self, facts, now):
        self.facts = facts
        self.news.append("secured")

    def plaintext_received(self, data, now):
        assert type(data) is bytes
        assert data
        self.data += data
        self.pieces += 1
        self.news.append("data")

    def plaintext_ended(self, clean, now):
        self.ends.append(clean)
        self.news.append("end")

    def session_received(self, session):
        self.sessions.append(session)
        self.news.append("session")


def client_context(*, ca=None, version=None, client=None, ciphers=None, min_version=None, max_version=None, **more):
    return secure_context(
        ca=ca or pki().anchors(),
        chains=_material.certificate_chains(client.cert_pem) if client else (),
        keys=_material.private_keys(client.key_pem, None) if client else (),
        ciphers=ciphers and _material.cipher_list(ciphers),
        min_version=NUMBERS.get(version or min_version),
        max_version=NUMBERS.get(version or max_version),
        **more,
    )


def client_engine(context=None, **kwargs):
    options = {
        "verified_name": "a.test",
        "server_name": "a.test",
        "alpn_protocols": (),
        "reject_unauthorized": True,
        "check_identity": check_server_identity,
        "wall_offset": WALL,
    }
    return TLSEngine(context or client_context(), **{**options, **kwargs})


class Link:
    """An engine and a server with nothing between them; `cut` says in what portions the engine gets its bytes."""

    def __init__(self, engine, server, *, cut=None):
        self.engine = engine
        self.server = server
        self.cut = cut
        self.sink = Sink()

    def feed(self, data):
        size = self.cut or max(len(data), 1)
        for at in range(0, len(data), size):
            self.engine.receive_data(data[at : at + size], CLOCK, self.sink)

    def run(self):
        """Carry bytes until both sides are silent."""
        while True:
            up = self.engine.data_to_send()
            if up:
                self.server.receive_data(up)
            down = self.server.data_to_send()
            if down:
                self.feed(down)
            if not up and not down:
                return self

    def handshake(self):
        self.engine.start()
        return self.run()


def connect(context=None, server=None, *, cut=None, **kwargs):
    """Carry a handshake through; returns the link. `server` is a context of the standard library's or pyOpenSSL's."""
    peer = OpenSSLServer(server) if isinstance(server, SSL.Context) else Server(server or server_context())
    return Link(client_engine(context, **kwargs), peer, cut=cut).handshake()


def openssl_context(credentials=None, *, version="TLSv1.3"):
    """A server's context of pyOpenSSL's."""
    credentials = credentials or pki().server
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(NUMBERS[version])
    context.set_max_proto_version(NUMBERS[version])
    context.use_certificate(credentials.certificate)
    for certificate in credentials.chain:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(credentials.key)
    return context
