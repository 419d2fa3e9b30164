from __future__ import annotations

import asyncio
import datetime
import gc
import hashlib
import pathlib
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from tls_peer import (
    CLOCK,
    DAY,
    NOW,
    VERSIONS,
    WALL,
    Link,
    Server,
    Sink,
    client_context,
    client_engine,
    connect,
    connect_writer,
    issue,
    pki,
    server_context,
)
from tls_peer import openssl_context as stapling_context

from tlsagent import _material
from tlsagent._material import binding
from tlsagent._tls import engine as engine_module
from tlsagent._tls.certificates import PeerCertificate
from tlsagent._tls.context import secure_context
from tlsagent._tls.engine import MAX_CONTROL_RECORDS, MAX_SESSIONS, TLSEngine
from tlsagent._tls.sessions import Session
from tlsagent.errors import (
    CertificateError,
    CertificateNameError,
    ConnectionLost,
    HandshakeError,
    LocalProtocolError,
    OptionError,
    RemoteProtocolError,
)

CUTS = (None, 1, 7)
each_version = pytest.mark.parametrize("version", VERSIONS)
each_cut = pytest.mark.parametrize("cut", CUTS)


def failed(error, context=None, server=None, **kwargs):
    """Carry a handshake through that must fail; returns the error and the link."""
    link = Link(client_engine(context, **kwargs), Server(server or server_context()))
    with pytest.raises(error) as caught:
        link.handshake()
    return caught.value, link


def failed_after(error, link):
    """Whatever the server has to say must fail; returns the error."""
    with pytest.raises(error) as caught:
        link.run()
    return caught.value


# --- Handshake ---------------------------------------------------------------------------------------------------


@each_cut
@each_version
def test_full_handshake(version, cut):
    """
    A handshake ends with the facts about it and data flows both ways, however the bytes are cut.
    """
    link = connect(server=server_context(version=version, alpn=["http/1.1"]), cut=cut, alpn_protocols=("http/1.1",))
    facts = link.sink.facts

    assert link.engine.secured
    assert (facts.protocol_version, facts.alpn_protocol, facts.session_reused) == (version, "http/1.1", False)
    assert (facts.authorized, facts.authorization_error) == (True, None)
    assert facts.cipher == link.server.tls.cipher()[0]
    assert facts.group == "x25519"
    assert facts.peer_certificate == PeerCertificate(pki().server.der)

    link.engine.write(b"ping")
    link.server.write(b"pong")
    link.run()
    assert link.server.received == b"ping"
    assert link.sink.data == b"pong"


@each_cut
@each_version
def test_resumed_handshake(version, cut):
    """
    A session resumes the connection, and certificate and chain are those of the full handshake.
    """
    server = server_context(pki().behind, version=version)
    session = connect(server=server).sink.sessions[-1]

    link = connect(server=server, session=session, cut=cut)

    assert link.engine.offered_session
    assert link.sink.facts.session_reused
    assert link.server.tls.session_reused
    assert link.sink.facts.authorized
    assert link.sink.facts.peer_certificate.der == pki().behind.der
    chain = [pki().behind.der, pki().intermediate.der]
    assert [certificate.der for certificate in link.sink.facts.peer_chain] == chain


def test_session_of_a_resumed_connection_keeps_the_chain():
    """
    A ticket that came on a resumed connection still knows the chain of the full handshake.
    """
    server = server_context(pki().behind)
    first = connect(server=server).sink.sessions[0]
    second = connect(server=server, session=first).sink.sessions[0]

    link = connect(server=server, session=second)

    assert link.sink.facts.session_reused
    assert len(link.sink.facts.peer_chain) == 2


def test_tls12_session_ids_resume():
    """
    A TLS 1.2 server that keeps sessions itself, without tickets, resumes them by their id.
    """
    server = server_context(version="TLSv1.2", session_ids=True)
    link = connect(server=server)
    link.engine.close()
    link.run()  # a server forgets the session of a connection that was not closed

    assert connect(server=server, session=link.sink.sessions[0]).sink.facts.session_reused


@each_version
def test_unknown_session_leads_to_a_full_handshake(version):
    """
    A server that does not know the session verifies anew, and a now bad certificate fails.
    """
    session = connect(server=server_context(version=version)).sink.sessions[0]

    link = connect(server=server_context(version=version), session=session)
    assert link.engine.offered_session
    assert not link.sink.facts.session_reused

    bad = server_context(issue("a.test", pki().other_root), version=version)
    failed(CertificateError, server=bad, session=session)


def test_server_name_is_sent():
    """
    The server name goes into the ClientHello, and without one there is none.
    """
    seen = []
    server = server_context()
    server.sni_callback = lambda tls, name, context: seen.append(name)

    connect(server=server, server_name="a.test")
    connect(server=server, server_name=None)

    assert seen == ["a.test", None]


def test_server_name_that_openssl_would_not_send_is_refused():
    """
    A server name of more than 255 bytes is refused, where OpenSSL would leave it out without a word.
    """
    with pytest.raises(OptionError, match="255"):
        client_engine(server_name="a" * 256)


@each_version
def test_data_right_behind_the_handshake(version):
    """
    Data that arrives in one piece with the end of the handshake is delivered after `secured`.
    """
    link = Link(client_engine(), Server(server_context(version=version)))
    link.engine.start()
    while not link.server.secured:
        link.server.receive_data(link.engine.data_to_send())
        if not link.server.secured:
            link.feed(link.server.data_to_send())
    link.server.write(b"at once")
    link.run()

    assert link.sink.data == b"at once"
    assert link.sink.news[0] == "secured"


# --- ALPN --------------------------------------------------------------------------------------------------------


@each_version
def test_alpn_without_common_ground(version):
    """
    A server that ignores the offer leaves the protocol open.
    """
    link = connect(server=server_context(version=version), alpn_protocols=("http/1.1",))
    assert link.sink.facts.alpn_protocol is None


class OpenSSLServer(Server):
    """A server that can do what the standard library's will not."""

    def __init__(self, context):
        self.tls = SSL.Connection(context, None)
        self.tls.set_accept_state()
        self.secured = False
        self.received = b""

    def receive_data(self, data):
        self.tls.bio_write(data)
        try:
            if not self.secured:
                self.tls.do_handshake()
                self.secured = True
            while True:
                self.received += self.tls.recv(65_536)
        except SSL.WantReadError:
            pass

    def write(self, data):
        self.tls.send(data)

    def data_to_send(self):
        try:
            return self.tls.bio_read(1 << 20)
        except SSL.WantReadError:
            return b""


def openssl_context(version):
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_max_proto_version(version)
    context.use_certificate(pki().server.certificate)
    context.use_privatekey(pki().server.key)
    return context


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_alpn_reply_that_was_not_offered(version):
    """
    A server that chooses a protocol we did not offer is refused; OpenSSL sees to that.
    """
    context = openssl_context(version)
    context.set_alpn_select_callback(lambda connection, protocols: b"ev\nil")
    link = Link(client_engine(alpn_protocols=("http/1.1",)), OpenSSLServer(context))

    with pytest.raises(HandshakeError) as caught:
        link.handshake()

    assert caught.value.code == "ERR_SSL_BAD_EXTENSION"
    assert not link.engine.secured
    assert link.sink.news == []


def test_renegotiation_is_refused():
    """
    A TLS 1.2 server that wants a second handshake gets a refusal; the connection goes on as it was.
    """
    link = Link(client_engine(), OpenSSLServer(openssl_context(SSL.TLS1_2_VERSION))).handshake()
    link.server.tls.renegotiate()
    link.server.write(b"before")
    with pytest.raises(SSL.Error, match="no renegotiation"):
        link.run()

    assert link.sink.news == ["secured", "session", "data"]
    link.engine.write(b"still in order")
    assert link.engine.data_to_send()


# --- Verification ------------------------------------------------------------------------------------------------

# What Node 20 reported for the same chains, one server and one client for each.
BAD = {
    "expired": "CERT_HAS_EXPIRED",
    "not yet valid": "CERT_NOT_YET_VALID",
    "self-signed": "DEPTH_ZERO_SELF_SIGNED_CERT",
    "self-signed in chain": "SELF_SIGNED_CERT_IN_CHAIN",
    "unknown root": "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
    "missing intermediate": "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
    "intermediate of an unknown root": "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
    "for clients": "INVALID_PURPOSE",
    "issuer is no authority": "INVALID_PURPOSE",
    "name constraints": "UNSPECIFIED",
}


def _bad(name):
    root, other_root = pki().root, pki().other_root
    return {
        "expired": lambda: issue("a.test", root, start=NOW - 9 * DAY, end=NOW - DAY),
        "not yet valid": lambda: issue("a.test", root, start=NOW + DAY),
        "self-signed": lambda: issue("a.test"),
        "self-signed in chain": lambda: _behind(other_root),
        "unknown root": lambda: issue("a.test", other_root),
        "missing intermediate": lambda: pki().behind.sending(),
        "intermediate of an unknown root": lambda: _behind(issue("sub", other_root, ca=True)),
        "for clients": lambda: issue("a.test", root, usage=ExtendedKeyUsageOID.CLIENT_AUTH),
        "issuer is no authority": lambda: _behind(issue("no authority", root)),
        "name constraints": lambda: _behind(issue("constrained", root, ca=True, permitted="b.test")),
    }[name]()


def _behind(issuer):
    return issue("a.test", issuer).sending(issuer.certificate)


@pytest.mark.parametrize(("name", "code"), BAD.items())
def test_bad_chain_is_refused(name, code):
    """
    A bad chain fails the handshake with Node's code, and no session is kept.
    """
    error, link = failed(CertificateError, server=server_context(_bad(name)))

    assert error.code == code
    assert error.phase == "handshake"
    assert link.sink.news == []
    assert binding.take_faults() == []


@pytest.mark.parametrize(("name", "code"), BAD.items())
@each_version
def test_bad_chain_without_rejecting(version, name, code):
    """
    With reject_unauthorized=False a bad chain is only recorded; the session is handed over and resumes.
    """
    lax = client_context()
    server = server_context(_bad(name), version=version)

    link = connect(lax, server, reject_unauthorized=False)
    assert (link.sink.facts.authorized, link.sink.facts.authorization_error) == (False, code)

    resumed = connect(lax, server, reject_unauthorized=False, session=link.sink.sessions[0])
    assert resumed.sink.facts.session_reused
    assert (resumed.sink.facts.authorized, resumed.sink.facts.authorization_error) == (False, code)


@each_version
def test_the_rule_is_the_connections(version):
    """
    One context serves strict and lax connections.
    """
    server = server_context(issue("a.test"), version=version)
    context = client_context()

    assert not connect(context, server, reject_unauthorized=False).sink.facts.authorized
    failed(CertificateError, context, server)


@each_version
def test_session_of_an_unverified_connection_does_not_serve_a_strict_one(version):
    """
    The verdict travels with the session: resumed under the strict rule it fails the handshake.
    """
    server = server_context(issue("a.test"), version=version)
    session = connect(server=server, reject_unauthorized=False).sink.sessions[0]

    error, link = failed(CertificateError, server=server, session=session)

    assert error.code == "DEPTH_ZERO_SELF_SIGNED_CERT"
    assert link.sink.news == []


def test_trusted_self_signed_certificate():
    """
    A self-signed certificate that is itself among the roots is in order.
    """
    own = issue("a.test")
    context = client_context(ca=pki().anchors(own))
    assert connect(context, server_context(own)).sink.facts.authorized


@pytest.mark.parametrize(("bits", "refused"), [(1024, True), (2048, False)])
def test_key_of_the_server_that_is_too_short(bits, refused):
    """
    At the library's own security level a server's RSA key of 1024 bits is no proof; a lower one, asked for, takes it.
    """
    short = issue("a.test", pki().root, key=rsa.generate_private_key(65_537, bits))
    server = SSL.Context(SSL.TLS_SERVER_METHOD)
    server.set_cipher_list(b"ALL:@SECLEVEL=0")
    server.use_certificate(short.certificate)
    server.use_privatekey(short.key)

    if refused:
        with pytest.raises(CertificateError, match="key is too short"):
            connect(server=server)
        assert connect(client_context(ciphers="ALL:@SECLEVEL=0"), server).sink.facts.authorized
    else:
        assert connect(server=server).sink.facts.authorized


def test_reversed_chain():
    """
    A server that sends its intermediates in the wrong order is verified all the same.
    """
    lower = issue("lower", pki().intermediate, ca=True)
    leaf = issue("a.test", lower).sending(pki().intermediate.certificate, lower.certificate)
    assert connect(server=server_context(leaf)).sink.facts.authorized


def test_no_roots_at_all():
    """
    An empty list of roots trusts nobody.
    """
    context = client_context(ca=_material.trust_anchors([]))
    error, _ = failed(CertificateError, context)
    assert error.code == "UNABLE_TO_VERIFY_LEAF_SIGNATURE"


def test_anonymous_server():
    """
    A server without any certificate, which OpenSSL has no objection to, is not authorized.
    """
    ciphers = "AECDH-AES128-SHA:@SECLEVEL=0"
    server = server_context(version="TLSv1.2", ciphers=ciphers)
    strict = client_context(ciphers=ciphers, version="TLSv1.2")

    error, _ = failed(CertificateError, strict, server)
    assert error.code == "UNABLE_TO_GET_ISSUER_CERT"

    facts = connect(strict, server, reject_unauthorized=False).sink.facts
    assert (facts.authorized, facts.authorization_error) == (False, "UNABLE_TO_GET_ISSUER_CERT")
    assert facts.peer_certificate is None
    assert facts.peer_chain == ()


@each_version
def test_name_is_checked_on_resumed_connections(version):
    """
    A session of one name does not pass for another: the certificate in it is checked again.
    """
    server = server_context(version=version)
    session = connect(server=server).sink.sessions[0]

    error, link = failed(CertificateNameError, server=server, session=session, verified_name="b.test")

    assert error.code == "ERR_TLS_CERT_ALTNAME_INVALID"
    assert link.sink.news == []


@each_version
@pytest.mark.parametrize(
    ("days", "code"), [(60, "CERT_HAS_EXPIRED"), (-60, "CERT_NOT_YET_VALID")], ids=["expired", "not yet valid"]
)
def test_dates_are_checked_on_resumed_connections(version, days, code):
    """
    A session does not outlive the certificate: its dates are looked at again, by the wall clock that was given.
    """
    server = server_context(version=version)
    session = connect(server=server).sink.sessions[0]
    offset = WALL + datetime.timedelta(days=days).total_seconds()

    error, _ = failed(CertificateError, server=server, session=session, wall_offset=offset)
    assert error.code == code

    link = connect(server=server, session=session, wall_offset=offset, reject_unauthorized=False)
    assert link.sink.facts.authorization_error == code


def test_unreadable_dates_on_a_resumed_connection(monkeypatch):
    """
    A certificate whose dates our stricter reader cannot read is refused on resumption.
    """

    class Unreadable(PeerCertificate):
        @property
        def not_valid_before(self):
            raise ValueError("not a time in UTC")

    server = server_context()
    session = connect(server=server).sink.sessions[0]
    monkeypatch.setattr(engine_module, "PeerCertificate", Unreadable)

    error, _ = failed(CertificateError, server=server, session=session)
    assert error.code == "ERROR_IN_CERT_NOT_AFTER_FIELD"


@each_version
def test_wrong_name(version):
    """
    A certificate for another name fails the handshake; our Finished and client certificate stay with us.
    """
    server = server_context(version=version)
    error, link = failed(CertificateNameError, server=server, verified_name="b.test")

    assert error.__cause__ is None
    assert "b.test" in str(error)
    assert "a.test" in str(error)
    assert link.engine.data_to_send() == b""
    assert link.sink.news == []


@each_version
def test_wrong_name_without_rejecting(version):
    """
    With reject_unauthorized=False a wrong name is only recorded.
    """
    facts = connect(
        server=server_context(version=version), verified_name="b.test", reject_unauthorized=False
    ).sink.facts
    assert (facts.authorized, facts.authorization_error) == (False, "ERR_TLS_CERT_ALTNAME_INVALID")


class Pinned(Exception):
    code = "PIN_MISMATCH"


def raising(host, certificate):
    raise Pinned("not the pinned key")


def returning(host, certificate):
    return Pinned("not the pinned key")


@each_version
@pytest.mark.parametrize("hook", [raising, returning])
def test_hook_that_rejects(hook, version):
    """
    What the hook raises or returns is the cause of the error, and lends it its code.
    """
    server = server_context(version=version)

    error, link = failed(CertificateNameError, server=server, check_identity=hook)
    assert type(error.__cause__) is Pinned
    assert error.code == "PIN_MISMATCH"
    assert "not the pinned key" in str(error)
    assert link.sink.news == []

    facts = connect(server=server, check_identity=hook, reject_unauthorized=False).sink.facts
    assert facts.authorization_error == "PIN_MISMATCH"


def test_hook_sees_name_and_certificate_each_time():
    """
    The hook is asked on full and on resumed connections alike.
    """
    seen = []
    server = server_context()
    first = connect(server=server, check_identity=lambda *args: seen.append(args))
    connect(server=server, check_identity=lambda *args: seen.append(args), session=first.sink.sessions[0])

    assert seen == [("a.test", PeerCertificate(pki().server.der))] * 2


def test_hook_is_not_asked_about_a_bad_chain():
    """
    The first failure wins: with a bad chain the name no longer matters.
    """
    asked = []
    server = server_context(issue("a.test"))
    connect(server=server, reject_unauthorized=False, check_identity=lambda *args: asked.append(args))
    assert asked == []


async def _asynchronous(host, certificate):
    return None


class _Awaitable:
    def __await__(self):
        yield


FAILING_CLOSED = [
    _asynchronous,
    lambda *_: _Awaitable(),
    lambda *_: False,
    lambda *_: "not the host that I know",
    lambda *_: asyncio.CancelledError(),
]


@pytest.mark.parametrize("hook", FAILING_CLOSED)
def test_hook_fails_closed(hook):
    """
    A hook that nothing awaits, or that answers no in another way than agreed, rejects.
    """
    error, _ = failed(CertificateNameError, check_identity=hook)
    assert error.__cause__ is not None


def test_interrupt_in_the_hook_passes_through():
    """
    KeyboardInterrupt is not taken for a verdict, and the connection is not secured by it.
    """

    def interrupted(host, certificate):
        raise KeyboardInterrupt

    link = Link(client_engine(check_identity=interrupted), Server(server_context()))
    with pytest.raises(KeyboardInterrupt):
        link.handshake()
    assert not link.engine.secured
    with pytest.raises(LocalProtocolError):
        link.engine.write(b"secret")


# --- Sessions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tickets", [0, 1, 2, 4])
@each_cut
def test_every_ticket_is_handed_over(tickets, cut):
    """
    Each TLS 1.3 ticket is handed over once, whether they arrive in one read or in pieces, and each resumes.
    """
    server = server_context(tickets=tickets)
    sessions = connect(server=server, cut=cut).sink.sessions

    assert len(sessions) == tickets
    assert len({session.to_bytes() for session in sessions}) == tickets
    assert all(connect(server=server, session=session).sink.facts.session_reused for session in sessions)


@each_cut
def test_tickets_together_with_data(cut):
    """
    Tickets in the same read as the response, before or behind it, are all found.
    """
    link = Link(client_engine(), Server(server_context(tickets=2)), cut=cut)
    link.engine.start()
    link.server.receive_data(link.engine.data_to_send())
    link.feed(link.server.data_to_send())
    link.engine.write(b"request")
    link.server.receive_data(link.engine.data_to_send())
    link.server.write(b"response")
    link.feed(link.server.data_to_send())

    assert link.server.received == b"request"
    assert link.sink.data == b"response"
    assert len(link.sink.sessions) == 2


def test_ticket_flood_is_bounded():
    """
    A peer that sends tickets without end is cut off, and no more than the cap of them is handed over.
    """
    link = Link(client_engine(), Server(server_context(tickets=MAX_SESSIONS + 10))).handshake()
    assert len(link.sink.sessions) == MAX_SESSIONS

    error, link = failed(RemoteProtocolError, server=server_context(tickets=MAX_CONTROL_RECORDS + 1))
    assert error.code == "ERR_TLSAGENT_TLS_FLOOD"
    assert len(link.sink.sessions) == MAX_SESSIONS


@pytest.mark.parametrize("apart", [False, True])
def test_key_update_flood_is_bounded(apart):
    """
    A peer that has us change keys without end is cut off, in one read or in many; the answers it gets are as bounded.
    """
    link, server = connect_writer()
    updates = [server.key_update() for _ in range(MAX_CONTROL_RECORDS + 10)]
    link.cut = len(updates[0]) if apart else None

    with pytest.raises(RemoteProtocolError) as caught:
        link.feed(b"".join(updates))

    assert caught.value.code == "ERR_TLSAGENT_TLS_FLOOD"
    assert len(link.engine.data_to_send()) <= (MAX_CONTROL_RECORDS + 10) * 32


def test_control_records_are_counted_from_the_last_data():
    """
    A server may send tickets and key updates for as long as a connection lives, if it sends data too.
    """
    link, server = connect_writer()
    responses = MAX_CONTROL_RECORDS + 10

    for number in range(responses):
        link.engine.receive_data(server.data(b"x"), CLOCK, link.sink)
        link.engine.receive_data(server.ticket(b"%d" % number), CLOCK, link.sink)
    link.engine.receive_data(server.key_update() + server.data(b"end"), CLOCK, link.sink)

    assert link.sink.data == b"x" * responses + b"end"


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_lifetime_is_what_the_server_says(version):
    """
    A server may give its tickets more than the two hours that are OpenSSL's own default.
    """
    context = openssl_context(version)
    context.set_timeout(86_400)
    session = Link(client_engine(), OpenSSLServer(context)).handshake().sink.sessions[0]
    assert session.expires_at == pytest.approx(CLOCK + WALL + 86_400, abs=3_600)


def test_tls12_session_comes_with_the_handshake():
    """
    TLS 1.2 hands its session over right after `secured`; a resumed handshake without a new ticket hands over none.
    """
    server = server_context(version="TLSv1.2", session_ids=True)
    first = connect(server=server)
    second = connect(server=server, session=first.sink.sessions[0])

    assert first.sink.news == ["secured", "session"]
    assert second.sink.news == ["secured"]


def test_session_that_cannot_be_resumed_is_not_handed_over():
    """
    A TLS 1.2 server with neither tickets nor session ids gives nothing to keep.
    """
    context = openssl_context(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    assert Link(client_engine(), OpenSSLServer(context)).handshake().sink.news == ["secured"]


@each_version
@pytest.mark.parametrize("ending", ["drop", "close", "abort", "eof", "cycle"])
def test_sessions_survive_their_connection(version, ending):
    """
    However a connection ends, also by being dropped, the sessions it gave can be resumed.
    """
    server = server_context(version=version)
    link = connect(server=server)
    session = link.sink.sessions[-1]
    if ending == "close":
        link.engine.close()
    elif ending == "abort":
        link.engine.abort()
    elif ending == "eof":
        link.engine.receive_eof(CLOCK, link.sink)
    elif ending == "cycle":
        link.sink.itself = link
    del link
    gc.collect()

    assert connect(server=server, session=session).sink.facts.session_reused


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from tls_peer import CLOCK, Sink, client_context, client_engine
from tlsagent import _material
from tlsagent._tls.sessions import Session

ca, data = (bytes.fromhex(sys.stdin.readline()) for _ in range(2))
engine = client_engine(client_context(ca=_material.trust_anchors(ca)), session=Session.from_bytes(data))
sink = Sink()
engine.start()
while True:
    print(engine.data_to_send().hex(), flush=True)
    if engine.secured:
        break
    engine.receive_data(bytes.fromhex(sys.stdin.readline()), CLOCK, sink)
print(sink.facts.session_reused, sink.facts.authorized, len(sink.facts.peer_chain))
"""


@each_version
def test_session_bytes_resume_in_another_process(version):
    """
    Exported session bytes resume in a new process, chain and verdict included.
    """
    context = server_context(pki().behind, version=version)
    session = connect(server=context).sink.sessions[0]
    server = Server(context)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(pathlib.Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        child.stdin.write(f"{pki().root.cert_pem.hex()}\n{session.to_bytes().hex()}\n")
        child.stdin.flush()
        for line in child.stdout:
            if line.startswith("True"):
                break
            server.receive_data(bytes.fromhex(line))
            child.stdin.write(server.data_to_send().hex() + "\n")
            child.stdin.flush()

    assert line.split() == ["True", "True", "2"]
    assert server.tls.session_reused


def test_session_of_another_version_is_no_harm():
    """
    A session of a version that the context does not speak leads to a full handshake.
    """
    session = connect(server=server_context(version="TLSv1.2")).sink.sessions[0]
    link = connect(client_context(version="TLSv1.3"), session=session)
    assert not link.sink.facts.session_reused


# --- The end -----------------------------------------------------------------------------------------------------


@each_cut
@each_version
def test_close_notify_is_a_clean_end(version, cut):
    """
    Data before close_notify is delivered, then a clean end, once; what follows is ignored.
    """
    link = connect(server=server_context(version=version), cut=cut)
    link.server.write(b"last words")
    link.server.close()
    link.run()
    link.engine.receive_data(b"anything", CLOCK, link.sink)
    link.engine.receive_eof(CLOCK, link.sink)

    assert link.sink.data == b"last words"
    assert link.sink.ends == [True]


@each_version
def test_eof_is_a_truncation(version):
    """
    The end of the transport without close_notify is told as not clean, once.
    """
    link = connect(server=server_context(version=version))
    link.server.write(b"half a")
    link.run()
    link.engine.receive_eof(CLOCK, link.sink)
    link.engine.receive_eof(CLOCK, link.sink)

    assert link.sink.data == b"half a"
    assert link.sink.ends == [False]


def test_record_cut_off_by_eof():
    """
    A record that is cut off is never delivered in part.
    """
    link = connect()
    link.server.write(b"x" * 1000)
    link.feed(link.server.data_to_send()[:-1])
    link.engine.receive_eof(CLOCK, link.sink)

    assert link.sink.data == b""
    assert link.sink.ends == [False]


@each_version
def test_close_is_half_a_close(version):
    """
    After close the peer reads the end and we still read what it sends; a second close says nothing.
    """
    link = connect(server=server_context(version=version))
    link.engine.close()
    goodbye = link.engine.data_to_send()
    link.engine.close()
    assert goodbye
    assert link.engine.data_to_send() == b""

    link.server.write(b"late")
    link.feed(link.server.data_to_send())
    assert link.sink.data == b"late"

    link.server.receive_data(goodbye)
    assert link.server.ended
    with pytest.raises(LocalProtocolError):
        link.engine.write(b"more")


def test_writing_after_the_peer_has_closed():
    """
    The peer's close_notify ends its direction only.
    """
    link = connect()
    link.server.write(b"bye")
    link.server.close()
    link.run()
    link.engine.write(b"still here")
    assert link.engine.data_to_send()


def test_abort_delivers_nothing_more():
    """
    After abort nothing is delivered, and nothing was added to the output.
    """
    link = connect()
    link.server.write(b"late")
    link.engine.abort()
    link.feed(link.server.data_to_send())

    assert link.engine.data_to_send() == b""
    assert link.sink.data == b""
    assert link.sink.ends == []


def test_close_before_the_handshake_is_complete():
    """
    Closing a connection that was never secured says nothing.
    """
    engine = client_engine()
    engine.start()
    engine.data_to_send()
    engine.close()
    assert engine.data_to_send() == b""


def test_eof_during_the_handshake():
    """
    A server that goes away before the handshake is complete is a lost connection, with Node's code.
    """
    engine = client_engine()
    engine.start()
    with pytest.raises(ConnectionLost) as caught:
        engine.receive_eof(CLOCK, Sink())
    assert caught.value.code == "ECONNRESET"
    assert caught.value.phase == "handshake"


# --- Writing and reading -----------------------------------------------------------------------------------------


@each_version
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_all_kinds_of_buffers(version, kind):
    """
    Bytes, bytearrays and memoryviews are taken in both directions; empty ones do nothing.
    """
    link = connect(server=server_context(version=version))
    link.engine.write(kind(b"ping"))
    link.engine.write(kind(b""))
    link.server.receive_data(link.engine.data_to_send())
    assert link.server.received == b"ping"

    link.server.write(b"pong")
    link.engine.receive_data(kind(b""), CLOCK, link.sink)
    link.engine.receive_data(kind(link.server.data_to_send()), CLOCK, link.sink)
    assert link.sink.data == b"pong"


@each_version
@pytest.mark.parametrize("size", [1, 16_384, 16_385, 65_536, 1_000_000])
def test_large_data_both_ways(version, size):
    """
    Any amount passes unchanged: several records per read, and more than one scratch buffer holds.
    """
    data = bytes(range(256)) * (size // 256) + b"!" * (size % 256)
    link = connect(server=server_context(version=version))
    for at in range(0, size, 65_536):
        link.engine.write(data[at : at + 65_536])
    link.server.write(data)
    link.run()

    assert link.server.received == data
    assert link.sink.data == data


def test_records_of_one_read_arrive_as_one_piece():
    """
    Small records that came together are handed up together.
    """
    link = connect()
    for number in range(10):
        link.server.write(b"%d" % number)
    link.feed(link.server.data_to_send())

    assert link.sink.data == b"0123456789"
    assert link.sink.pieces == 1


def test_scratch_buffers_are_used_again():
    """
    Reading and writing in turns needs one scratch buffer, whatever the number of connections.
    """
    first, second = connect(), connect()
    engine_module._free_buffers.clear()
    for link in (first, second, first):
        link.server.write(b"x" * 100)
        link.run()
        link.server.write(b"x" * 100_000)
        link.run()

    assert len(engine_module._free_buffers) == 1


def test_a_sink_that_raises_loses_nothing():
    """
    An error of the sink reaches the caller; the engine goes on.
    """

    class Broken(Sink):
        def plaintext_received(self, data, now):
            raise ZeroDivisionError

    link = connect()
    link.server.write(b"one")
    with pytest.raises(ZeroDivisionError):
        link.engine.receive_data(link.server.data_to_send(), CLOCK, Broken())
    link.server.write(b"two")
    link.run()
    assert link.sink.data == b"two"


def test_writing_before_the_handshake():
    """
    Nothing can be written before the peer is verified.
    """
    engine = client_engine()
    with pytest.raises(LocalProtocolError, match="not complete"):
        engine.write(b"early")


# --- Errors ------------------------------------------------------------------------------------------------------


def test_client_certificate_demanded_tls12():
    """
    A TLS 1.2 server that demands a client certificate refuses the handshake.
    """
    server = server_context(version="TLSv1.2", client_ca=pki().root)
    link = Link(client_engine(), Server(server))
    link.engine.start()
    with pytest.raises(HandshakeError) as caught:
        link.run()
    assert caught.value.alert == "handshake_failure"
    assert caught.value.code == "ERR_SSL_SSL/TLS_ALERT_HANDSHAKE_FAILURE"
    assert "cert" in str(caught.value)


def test_alert_on_a_connection_that_rejects_nothing():
    """
    With reject_unauthorized=False a bad chain is not taken for the cause of a handshake that the server refused.
    """
    server = server_context(issue("a.test"), version="TLSv1.2", client_ca=pki().root)
    error, _ = failed(HandshakeError, server=server, reject_unauthorized=False)
    assert (type(error), error.alert) == (HandshakeError, "handshake_failure")


@each_cut
def test_client_certificate_demanded_tls13(cut):
    """
    A TLS 1.3 server says so after our handshake is complete: still an error of the handshake, before any data.
    """
    link = Link(client_engine(), Server(server_context(client_ca=pki().root)), cut=cut)
    with pytest.raises(HandshakeError) as caught:
        link.handshake()
    assert caught.value.alert == "certificate_required"
    assert caught.value.code == "ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert "set cert and key" in str(caught.value)
    assert link.sink.facts.authorized


@each_version
def test_client_certificate_presented(version):
    """
    A client certificate is presented on demand.
    """
    link = connect(client_context(client=pki().client), server_context(version=version, client_ca=pki().root))
    assert link.server.tls.getpeercert(binary_form=True) == pki().client.der


def test_client_certificate_of_an_unknown_authority():
    """
    A server that does not trust our certificate says which way.
    """
    link = Link(
        client_engine(client_context(client=issue("client", pki().other_root))),
        Server(server_context(client_ca=pki().root)),
    )
    with pytest.raises(HandshakeError) as caught:
        link.handshake()
    assert caught.value.alert == "unknown_ca"
    assert caught.value.code == "ERR_SSL_TLSV1_ALERT_UNKNOWN_CA"


@pytest.mark.parametrize(("ours", "theirs"), [("TLSv1.2", "TLSv1.3"), ("TLSv1.3", "TLSv1.2")])
def test_version_mismatch(ours, theirs):
    """
    Without a common version the server's alert is reported with the range that we allow.
    """
    error, _ = failed(HandshakeError, client_context(version=ours), server_context(version=theirs))
    assert error.alert == "protocol_version"
    assert error.code == "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION"
    assert ours in str(error)


def test_server_that_speaks_old_versions_only():
    """
    A server that answers with TLS 1.1 is refused, naming its version and our range; it gets an alert.
    """
    hello = b"\x02\x00\x00\x26\x03\x02" + bytes(32) + b"\x00\xc0\x13\x00"
    engine = client_engine()
    engine.start()
    engine.data_to_send()

    with pytest.raises(HandshakeError) as caught:
        engine.receive_data(b"\x16\x03\x02" + len(hello).to_bytes(2, "big") + hello, CLOCK, Sink())

    assert caught.value.code == "ERR_SSL_UNSUPPORTED_PROTOCOL"
    assert "TLSv1.1" in str(caught.value)
    assert "TLSv1.2 to TLSv1.3" in str(caught.value)
    assert engine.data_to_send()[:1] == b"\x15"


def test_nothing_to_offer():
    """
    Options that leave nothing to offer fail at the start: the default security level forbids TLS 1.1.
    """
    engine = client_engine(client_context(version="TLSv1.1"))
    with pytest.raises(HandshakeError) as caught:
        engine.start()
    assert caught.value.code == "ERR_SSL_NO_PROTOCOLS_AVAILABLE"


def test_write_that_openssl_refuses():
    """
    Should OpenSSL ever refuse a write, that is an error like any other, and final.
    """
    link = connect()
    binding.mark_shut_down(link.engine._ssl)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError) as caught:
            link.engine.write(b"data")
    assert caught.value.code == "ERR_SSL_PROTOCOL_IS_SHUTDOWN"


def test_engine_that_was_never_made():
    """
    A constructor that fails leaves nothing behind that complains when it is freed.
    """
    with pytest.raises(AttributeError):
        client_engine(context="no context")
    gc.collect()


def test_cipher_mismatch():
    """
    Without a common cipher suite the server's alert is reported.
    """
    context = client_context(version="TLSv1.2", ciphers="ECDHE-RSA-AES128-GCM-SHA256")
    error, _ = failed(HandshakeError, context, server_context(version="TLSv1.2"))
    assert error.alert == "handshake_failure"


GARBAGE = [
    b"HTTP/1.1 400 Bad Request\r\nServer: plain\r\n\r\nYou speak TLS to a plain port\r\n",
    b"220 mail.example.com ESMTP\r\n",
    b"\x00" * 64,
    b"\xff\x00\x1b[31m" * 100,
    b"SSH-2.0-OpenSSH_9.2\r\n",
]


@pytest.mark.parametrize("cut", [None, 1])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_instead_of_tls(garbage, cut):
    """
    Text or random bytes in place of a ServerHello are named as such, bounded and printable.
    """
    engine = client_engine()
    engine.start()
    engine.data_to_send()

    link = Link(engine, None, cut=cut)

    with pytest.raises(HandshakeError) as caught:
        link.feed(garbage)

    assert caught.value.code == "ERR_SSL_WRONG_VERSION_NUMBER"
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1200


@each_version
def test_damaged_record(version):
    """
    A record that was tampered with is an error; what came before it is delivered first.
    """
    link = connect(server=server_context(version=version))
    link.server.write(b"good")
    good = link.server.data_to_send()
    link.server.write(b"evil")
    evil = bytearray(link.server.data_to_send())
    evil[-1] ^= 1

    with pytest.raises(RemoteProtocolError) as caught:
        link.engine.receive_data(good + bytes(evil), CLOCK, link.sink)

    assert link.sink.data == b"good"
    assert caught.value.code == "ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC"


@each_version
def test_alert_after_data(version):
    """
    A fatal alert on a connection in use is the peer's breach, not a failed handshake.
    """
    link = connect(server=server_context(version=version))
    link.server.write(b"data")
    link.run()
    link.server.receive_data(b"\x17\x03\x03\x00\x20" + bytes(32))

    error = failed_after(RemoteProtocolError, link)

    assert error.alert == "bad_record_mac"
    assert error.code == "ERR_SSL_SSL/TLS_ALERT_BAD_RECORD_MAC"


@each_version
def test_first_error_is_latched(version):
    """
    The first error is raised again by every later call, and the alert is still there to be sent.
    """
    error, link = failed(CertificateError, server=server_context(issue("a.test"), version=version))
    engine = link.engine

    for again in (
        lambda: engine.receive_data(b"more", CLOCK, link.sink),
        lambda: engine.receive_eof(CLOCK, link.sink),
        lambda: engine.write(b"data"),
    ):
        with pytest.raises(CertificateError) as caught:
            again()
        assert caught.value is error

    engine.close()
    engine.abort()
    alert = engine.data_to_send()
    link.server.receive_data(alert)
    assert "UNKNOWN_CA" in str(link.server.error).upper().replace(" ", "_")
    assert engine.data_to_send() == b""


def test_strange_entries_in_the_error_queue_do_no_harm():
    """
    What others left in OpenSSL's error queue of this thread ends in no error of ours.
    """

    def pollute():
        binding._lib.d2i_SSL_SESSION(binding._NULL, binding._ffi.new("unsigned char **", source), 4)

    source = binding._ffi.from_buffer("unsigned char[]", b"junk")
    pollute()
    link = connect()
    pollute()
    link.server.write(b"data")
    link.run()
    assert link.sink.data == b"data"
    binding.clear_errors()


def test_nothing_secret_is_printed():
    """
    Neither facts nor engines nor sessions show keys or tickets.
    """
    link = connect(client_context(client=pki().client))
    session = link.sink.sessions[0]
    secrets = (session.to_bytes(), pki().client.key_pem, link.server.tls.cipher()[0].encode() * 9)
    for thing in (session, link.engine, link.sink.facts, client_context(client=pki().client)):
        text = repr(thing) + str(thing)
        assert len(text) < 200
        assert not any(secret.hex()[:32] in text or repr(secret)[2:34] in text for secret in secrets)


def test_engine_holds_no_cycle():
    """
    A dropped engine is freed at once: it is big, and its session waits for that.
    """
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(thing, TLSEngine) for thing in gc.get_objects())
        connect()
        assert sum(isinstance(thing, TLSEngine) for thing in gc.get_objects()) == before
    finally:
        gc.enable()


def test_default_roots():
    """
    Without `ca` certifi's roots are trusted, which do not know our server.
    """
    context = secure_context(ca=None, chains=(), keys=(), ciphers=None, min_version=None, max_version=None)
    error, _ = failed(CertificateError, context)
    assert error.code == "UNABLE_TO_VERIFY_LEAF_SIGNATURE"


def test_junk_session_bytes_never_reach_the_engine():
    """
    Junk is refused when it is read in, with an error that does not quote it.
    """
    with pytest.raises(OptionError) as caught:
        Session.from_bytes(b"junk-and-secret")
    assert "secret" not in str(caught.value)


# --- pins ---------------------------------------------------------------------------------------------------------


def pin(credentials):
    spki = credentials.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


@each_version
@pytest.mark.parametrize("which", ["behind", "intermediate", "root"])
def test_a_pin_of_any_key_of_the_verified_chain_is_enough(version, which):
    """
    The pinned key may be the server's, an intermediate's or the root's, which the server does not even send.
    """
    server = server_context(pki().behind, version=version)
    pins = (pin(getattr(pki(), which)), bytes(32))

    link = connect(server=server, pins=pins)
    assert link.sink.facts.authorized
    again = connect(server=server, pins=pins, session=link.sink.sessions[-1])

    assert again.sink.facts.session_reused
    assert again.sink.facts.authorized


@each_version
@pytest.mark.parametrize("reject", [True, False])
def test_a_server_without_a_pinned_key_is_refused(version, reject):
    """
    Pins come on top of every other check, and hold where reject_unauthorized does not.
    """
    error, link = failed(
        CertificateError, None, server_context(version=version), pins=(bytes(32),), reject_unauthorized=reject
    )

    assert error.code == "ERR_TLSAGENT_PIN_MISMATCH"
    assert link.sink.news == []


@each_version
def test_a_certificate_that_is_merely_sent_along_matches_no_pin(version):
    """
    In a chain that was not verified only the server's own key counts: the rest anybody can send.
    """
    forged = issue("a.test").sending(pki().intermediate.certificate)
    server = server_context(forged, version=version)

    error, _ = failed(CertificateError, None, server, pins=(pin(pki().intermediate),), reject_unauthorized=False)
    assert error.code == "ERR_TLSAGENT_PIN_MISMATCH"
    assert not connect(server=server, pins=(pin(forged),), reject_unauthorized=False).sink.facts.authorized


@each_version
def test_pins_hold_on_resumption(version):
    """
    A session whose full handshake looked at no pins does not satisfy them later.
    """
    server = server_context(pki().behind, version=version)
    session = connect(server=server).sink.sessions[-1]

    error, _ = failed(CertificateError, None, server, pins=(pin(pki().root),), session=session)

    assert error.code == "ERR_TLSAGENT_PIN_MISMATCH"


def test_a_pinned_key_does_not_excuse_a_bad_name():
    """
    What else is wrong with a certificate is wrong with a pinned key too.
    """
    other = issue("b.test", pki().root)

    failed(CertificateNameError, None, server_context(other), pins=(pin(other),))


# --- OCSP ---------------------------------------------------------------------------------------------------------


@each_version
def test_a_stapled_response_is_handed_over_if_it_was_asked_for(version):
    """
    request_ocsp gets what the server staples, byte for byte; without it the server is not asked.
    """
    context = stapling_context(version=version)
    asked = []

    def staple(_connection, _data):
        asked.append(True)
        return b"\x30\x03\x0a\x01\x00"

    context.set_ocsp_server_callback(staple)

    assert connect(server=context, request_ocsp=True).sink.facts.ocsp_response == b"\x30\x03\x0a\x01\x00"
    assert len(asked) == 1
    assert connect(server=context).sink.facts.ocsp_response is None
    assert len(asked) == 1


@each_version
def test_a_server_may_have_no_response_to_staple(version):
    """
    Without a response the connection is as good as any.
    """
    facts = connect(server=server_context(version=version), request_ocsp=True).sink.facts

    assert (facts.authorized, facts.ocsp_response) == (True, None)


# --- Whose session ------------------------------------------------------------------------------------------------


@each_version
@pytest.mark.parametrize("other", [{"verified_name": "b.test", "server_name": "b.test"}, {"trust": b"another"}])
def test_a_session_is_offered_only_where_it_was_made_for(version, other):
    """
    A session is not offered to a server of another name, nor under other options than it was made under.
    """
    both = issue("a.test", pki().root)
    server = server_context(both, version=version)
    made = {"trust": b"ours"}
    session = connect(server=server, **made).sink.sessions[-1]

    assert (session.verified_name, session.trust) == ("a.test", b"ours")
    assert connect(server=server, session=session, **made).sink.facts.session_reused
    link = connect(server=server, session=session, **{**made, **other}, check_identity=lambda *_: None)
    assert not link.engine.offered_session
    assert not link.sink.facts.session_reused
