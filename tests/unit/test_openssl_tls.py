"""
The server's second TLS floor, without sockets: the standard library's ssl is the client at the other end.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import ssl

import pytest

from tlsagent import OptionError, create_secure_context
from tlsagent._material import binding
from tlsagent.testing import Authority, ClientHello, default_authority
from tlsagent.testing._hello import PRE_SHARED_KEY
from tlsagent.testing._openssl_tls import OpenSSLContext
from tlsagent.testing._settings import make_settings
from tlsagent.testing._tls import TLSFailure

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def server_context(options=None, **settings) -> OpenSSLContext:
    return OpenSSLContext(make_settings(("localhost",), None, options=options, keywords=settings)[1])


class Client:
    """A client of the standard library's that talks to a floor."""

    def __init__(self, floor, version=ssl.TLSVersion.TLSv1_3, *, credentials=None, tmp_path=None, step=65_536, alpn=()):
        context = ssl.create_default_context(cadata=default_authority().ca_pem.decode())
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(list(alpn))
        if credentials is not None:
            path = tmp_path / "client.pem"
            path.write_bytes(credentials.key_pem + credentials.cert_pem)
            context.load_cert_chain(path)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.floor = floor
        self.step = step

    def again(self, floor) -> Client:
        """Return a client that offers the session of this one."""
        other = copy.copy(self)
        other.incoming, other.outgoing, other.floor = ssl.MemoryBIO(), ssl.MemoryBIO(), floor
        other.tls = self.tls.context.wrap_bio(
            other.incoming, other.outgoing, server_hostname="localhost", session=self.tls.session
        )
        return other

    def exchange(self) -> bytes:
        """Carry what each has for the other; return what the floor read."""
        plaintext = b""
        data = self.outgoing.read()
        try:
            for at in range(0, len(data), self.step):
                plaintext += self.floor.receive_data(data[at : at + self.step])
        finally:
            self.incoming.write(self.floor.data_to_send())
        return plaintext

    def shake(self) -> None:
        for _ in range(4):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            self.exchange()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("step", [1, 1_000, 65_536])
def test_bytes_may_come_in_any_pieces(version, step):
    """However the ciphertext is cut, the handshake completes and every byte of plaintext comes out once."""
    floor = server_context()()
    client = Client(floor, version, step=step)
    client.shake()
    assert floor.facts is not None
    assert floor.facts.version == client.tls.version()
    assert floor.facts.cipher == client.tls.cipher()[0]

    client.tls.write(b"a" * 20_000)
    client.tls.write(b"b")
    assert client.exchange() == b"a" * 20_000 + b"b"

    floor.write(b"c" * 40_000)
    client.exchange()
    assert b"".join(client.tls.read(65_536) for _ in range(3)) == b"c" * 40_000
    assert floor.data_to_send() == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_closing_is_told_in_both_directions(version):
    """The peer's close_notify is seen, data before it not lost; ours ends the peer's reading."""
    floor = server_context()()
    floor.close()
    assert floor.data_to_send() == b"", "there is nothing to close before the handshake"
    client = Client(floor, version)
    client.shake()

    client.tls.write(b"last words")
    with contextlib.suppress(ssl.SSLError):
        client.tls.unwrap()
    assert not floor.peer_closed
    assert client.exchange() == b"last words"
    assert floor.peer_closed

    floor.close()
    client.exchange()
    with pytest.raises(ssl.SSLZeroReturnError):
        client.tls.read(1)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("known", [True, False])
def test_an_unauthorized_certificate_is_taken_and_named(version, known, tmp_path):
    """With "any" the facts tell what is wrong with a certificate; with nothing wrong they tell nothing."""
    floor = server_context(request_cert="any")()
    credentials = (default_authority() if known else Authority()).issue("me@a.test", client=True)
    Client(floor, version, credentials=credentials, tmp_path=tmp_path).shake()

    assert floor.facts is not None
    assert floor.facts.client_certificate == credentials.leaf_der
    assert floor.facts.authorization_error == (None if known else "UNABLE_TO_VERIFY_LEAF_SIGNATURE")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("asked", [True, "demand"])
def test_an_unauthorized_certificate_is_refused(version, asked, tmp_path):
    """A certificate that nobody vouches for ends the handshake, whether one was needed or only welcome."""
    floor = server_context(request_cert=asked)()
    client = Client(floor, version, credentials=Authority().issue("me@a.test", client=True), tmp_path=tmp_path)

    with pytest.raises(TLSFailure, match="CERTIFICATE_VERIFY_FAILED"):
        client.shake()
    assert floor.facts is None
    with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
        client.tls.read(1) if version == VERSIONS[1] else client.tls.do_handshake()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_is_no_way_around_authorization(version, tmp_path):
    """A session made where an unauthorized certificate was taken is refused where one is demanded."""
    lax = server_context(request_cert="any")
    client = Client(lax(), version, credentials=Authority().issue("me@a.test", client=True), tmp_path=tmp_path)
    client.shake()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.read(1)  # the ticket
    strict = lax.under(make_settings(("localhost",), None, keywords={"request_cert": "demand"})[1])()

    with pytest.raises(TLSFailure, match="UNABLE_TO_VERIFY_LEAF_SIGNATURE"):
        client.again(strict).shake()
    assert strict.facts is None
    assert strict.data_to_send() == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_failing_sni_callback_is_the_cause(version):
    """What the callback raises, KeyboardInterrupt even, is the cause of the failure; the client gets an alert."""

    def choose(_name):
        raise KeyboardInterrupt

    floor = server_context({"sni_callback": choose})()
    client = Client(floor, version)
    with pytest.raises(TLSFailure, match="sni_callback: KeyboardInterrupt") as caught:
        client.shake()

    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    with pytest.raises(ssl.SSLError, match=r"(?i)internal.error"):
        client.tls.do_handshake()
    assert floor.data_to_send() == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_alpn_is_spoken_under_a_chosen_context_too(version):
    """The context that `sni_callback` chose keeps the server's ALPN list."""
    credentials = default_authority().issue("localhost")
    chosen = create_secure_context(cert=credentials.cert_pem, key=credentials.key_pem)
    floor = server_context({"sni_callback": lambda _name: chosen})()
    client = Client(floor, version, alpn=("http/1.1",))
    client.shake()

    assert floor.facts is not None
    assert floor.facts.alpn == client.tls.selected_alpn_protocol() == "http/1.1"
    assert client.tls.getpeercert(binary_form=True) == credentials.leaf_der


def test_a_clients_context_is_no_choice():
    """A context that a `secure_protocol` keeps for clients ends the connection."""
    context = create_secure_context(secure_protocol="TLS_client_method")
    with pytest.raises(TLSFailure, match="secure_protocol for clients"):
        Client(server_context({"sni_callback": lambda _name: context})()).shake()


def test_a_context_is_prepared_once():
    """However often `sni_callback` returns a context, OpenSSL's is made once; equal contexts share it."""
    credentials = default_authority().issue("localhost")
    server = server_context(
        {"sni_callback": lambda _name: create_secure_context(cert=credentials.cert_pem, key=credentials.key_pem)}
    )
    for _ in range(3):
        Client(server()).shake()

    assert server._prepared.cache_info().misses == 1


def test_used_contexts_can_serve():
    """A SecureContext that connections were made with serves a server all the same, whose sessions are its own."""
    credentials = default_authority().issue("localhost")
    secure = create_secure_context(cert=credentials.cert_pem, key=credentials.key_pem)
    for _ in range(2):
        floor = server_context({"secure_context": secure})()
        Client(floor).shake()
        assert floor.facts is not None


def test_what_openssl_refuses_is_an_option_error():
    """Material that OpenSSL does not take is refused when the server is made."""
    with pytest.raises(OptionError):
        server_context({"honor_cipher_order": True}, ciphers="NOTHING")


def test_garbage_is_a_failure():
    """What is not TLS ends the connection with OpenSSL's reason."""
    floor = server_context()()
    with pytest.raises(TLSFailure, match="HTTP_REQUEST"):
        floor.receive_data(b"GET / HTTP/1.1\r\n\r\n")


def test_a_session_ticket_is_not_taken_for_an_identity():
    """In TLS 1.3 tickets come where identities come: one that begins like text before a NUL is seen as a whole."""
    asked = []
    context = server_context({"psk_callback": asked.append}, session_ids=True)
    client = Client(context())
    client.shake()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.read(1)  # the ticket
    floor = context()
    again = client.again(floor)
    with contextlib.suppress(ssl.SSLWantReadError):
        again.tls.do_handshake()
    hello = again.outgoing.read()
    parsed = ClientHello.parse(hello)
    assert parsed is not None
    ticket = parsed.extensions[PRE_SHARED_KEY][4:36]

    floor.receive_data(hello.replace(ticket, b"me\0" + ticket[3:]))

    assert asked == []


def test_a_long_ticket_is_forgotten_with_its_connection(tmp_path):
    """A ticket too long to be asked about leaves nothing with the binding either."""
    context = server_context({"psk_callback": {}.get}, request_cert=True)
    client = Client(context(), credentials=default_authority().issue("me@a.test", client=True), tmp_path=tmp_path)
    client.shake()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.read(1)  # the ticket, which holds the certificate
    floor = context()
    client.again(floor).shake()
    assert floor.facts is not None
    assert floor.facts.session_reused
    address = binding._address(floor._ssl)
    assert address in binding._psk_identities

    del floor, client
    gc.collect()

    assert address not in binding._psk_identities


def test_nothing_is_remembered_of_a_connection_that_is_gone():
    """A connection given up in its handshake leaves nothing with the binding, whose keys are addresses used again."""
    floor = server_context({"psk_callback": {}.get})()
    client = Client(floor)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.exchange()
    address = binding._address(floor._ssl)
    assert address in binding._psk_keys

    del floor, client
    gc.collect()

    assert address not in binding._psk_keys
