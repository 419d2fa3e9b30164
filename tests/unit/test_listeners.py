"""What listens inside a handshake: messages for traces and DH sizes, and pre-shared keys."""

from __future__ import annotations

import contextlib
import gc
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL
from tls_peer import DH_1024, client_context, connect, issue, openssl_context, pki, server_context

from tlsagent._material import binding, dh_parameters
from tlsagent._option_rules import Psk
from tlsagent._tls.listeners import MessageListener, PskKeys, dh_bits, stderr_tracer
from tlsagent.errors import CertificateError, HandshakeError, OptionError, OptionRangeError, OptionTypeError

KEY = bytes(range(32))
CIPHERS = {"TLSv1.2": "PSK-AES256-GCM-SHA384:ECDHE-ECDSA-AES256-GCM-SHA384", "TLSv1.3": "TLS_AES_128_GCM_SHA256"}

each_version = pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])


@pytest.fixture(scope="module")
def rsa_server():
    return issue("a.test", pki().root, key=rsa.generate_private_key(65_537, 2048))


# --- enable_trace -------------------------------------------------------------------------------------------------


@each_version
def test_a_trace_tells_the_messages_of_the_handshake(version):
    """
    Each handshake message is told once, in order, with its direction; what comes after it too.
    """
    lines = []

    link = connect(client_context(version=version), server_context(version=version), trace=lines.append)
    link.engine.close()

    told = [line.partition(" (")[0] for line in lines]
    assert told[0].startswith(">>> TLSv1")
    assert told[0].endswith("handshake client_hello")
    assert [line for line in told if line.startswith("<<<") and line.endswith("handshake server_hello")]
    assert [line for line in told if line.endswith("handshake certificate")] != []
    assert sum("new_session_ticket" in line for line in told) == (2 if version == "TLSv1.3" else 1)
    assert told[-1] == f">>> {version} alert warning close_notify"


def test_only_the_connection_that_asked_is_traced():
    """
    Connections of one context are traced one by one.
    """
    context = client_context()
    lines = []

    connect(context, trace=lines.append)
    count = len(lines)
    connect(context)
    other = []
    connect(context, trace=other.append)

    assert len(lines) == count
    assert len(other) == count


def test_a_refused_handshake_is_traced_to_its_end():
    """
    The alert that ends a handshake is told.
    """
    lines = []

    with pytest.raises(HandshakeError):
        connect(client_context(version="TLSv1.2"), server_context(version="TLSv1.3"), trace=lines.append)

    assert "alert fatal protocol_version" in lines[-1]


def test_listeners_go_with_their_connection():
    """
    Nothing is kept of a connection that is gone.
    """

    def callback(hint):
        raise LookupError

    connect(trace=print, psk_callback=lambda hint: None)
    with contextlib.suppress(HandshakeError):
        connect(trace=print, psk_callback=callback)
    gc.collect()

    assert binding._message_listeners == {}
    assert binding._psk_sources == {}


def test_the_tracer_writes_lines_with_a_name_and_survives_a_lost_stream(capsys, monkeypatch):
    """
    The trace goes to the standard error stream; without one it goes nowhere.
    """
    tracer = stderr_tracer("a.test:443#12345678")
    tracer(">>> hello")
    assert capsys.readouterr().err == "a.test:443#12345678 >>> hello\n"

    monkeypatch.setattr("sys.stderr", None)
    tracer(">>> hello")


def test_unknown_messages_are_numbered():
    """
    What has no name is told by its number.
    """
    listener = MessageListener(trace=True)
    listener(False, 0x0303, 22, b"\x63\0\0\0")
    listener(True, 0x0305, 24, b"")
    listener(False, 0x0303, 21, b"\x02\x63")

    assert listener.take_lines() == [
        "<<< TLSv1.2 handshake message 99 (4 bytes)",
        ">>> version 0x0305 content type 24 (0 bytes)",
        "<<< TLSv1.2 alert fatal unknown_99 (2 bytes)",
    ]
    assert listener.take_lines() == []


# --- min_dh_size --------------------------------------------------------------------------------------------------


def dhe_server(rsa_server, pem, ciphers="DHE-RSA-AES256-GCM-SHA384"):
    context = openssl_context(rsa_server, version="TLSv1.2")
    context.set_cipher_list(f"{ciphers}:@SECLEVEL=0".encode())
    assert binding.set_dh_parameters(context, pem)
    return context


DHE = "DHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"


@pytest.mark.parametrize("reject", [True, False])
def test_a_group_smaller_than_asked_for_is_refused(rsa_server, reject):
    """
    A DHE group below min_dh_size fails the handshake, whatever reject_unauthorized says; one that is large enough
    serves.
    """
    server = dhe_server(rsa_server, dh_parameters("auto").pem)
    # No groups of RFC 7919 in the offer, so that the server takes its own.
    context = client_context(version="TLSv1.2", ciphers=DHE, ecdh_curve="X25519:P-256")

    assert connect(context, server, min_dh_size=2048, reject_unauthorized=reject).sink.facts.cipher.startswith("DHE-")
    with pytest.raises(HandshakeError, match="2048 bits") as caught:
        connect(context, server, min_dh_size=4096, reject_unauthorized=reject)

    assert caught.value.code == "ERR_TLS_DH_PARAM_SIZE"


def test_the_default_lets_1024_bits_pass_where_the_security_level_does(rsa_server):
    """
    min_dh_size works below OpenSSL's own bound: 1024 bits pass at the lowest security level unless more are asked for.
    """
    server = dhe_server(rsa_server, DH_1024)
    context = client_context(version="TLSv1.2", ciphers=f"{DHE}:@SECLEVEL=0", ecdh_curve="X25519:P-256")

    assert connect(context, server).sink.facts.cipher.startswith("DHE-")
    with pytest.raises(HandshakeError, match="1024 bits") as caught:
        connect(context, server, min_dh_size=1025)
    assert caught.value.code == "ERR_TLS_DH_PARAM_SIZE"
    with pytest.raises(HandshakeError):
        connect(client_context(version="TLSv1.2", ciphers=DHE, ecdh_curve="X25519:P-256"), server)


@each_version
def test_other_key_exchanges_have_no_dh_size(version):
    """
    min_dh_size is about finite fields: elliptic curves pass.
    """
    link = connect(client_context(version=version), server_context(version=version), min_dh_size=8192)

    assert link.sink.facts.authorized


def test_the_size_is_read_behind_a_hint():
    """
    In a DHE-PSK exchange an identity hint stands before the group; a message that is missing counts as no bits.
    """
    group = b"\0\x02\x80\x01"

    assert dh_bits(b"\x0c\0\0\x09" + b"\0\x03abc" + group, "DHE-PSK-AES256-GCM-SHA384") == 16
    assert dh_bits(b"\x0c\0\0\x04" + group, "ADH-AES128-SHA") == 16
    assert dh_bits(b"\x0c\0\0\x04" + group, "ECDHE-RSA-AES256-GCM-SHA384") is None
    assert dh_bits(b"", "DHE-RSA-AES256-GCM-SHA384") == 0


# --- psk_callback -------------------------------------------------------------------------------------------------


class PskServer:
    """A server that knows one key; the callbacks live as long as the context must."""

    def __init__(self, version, *, key=KEY, hint=None):
        lib, ffi = binding._lib, binding._ffi
        self.identities = []
        self.context = openssl_context(version=version)
        if version == "TLSv1.2":
            self.context.set_cipher_list(CIPHERS[version].encode())

        @ffi.callback("unsigned int(SSL *, char *, unsigned char *, unsigned int)")
        def answer(_ssl, identity, buffer, _size):
            self.identities.append(ffi.string(identity).decode())
            ffi.memmove(buffer, key, len(key))
            return len(key)

        self._answer = answer
        lib.SSL_CTX_set_psk_server_callback(self.context._context, answer)
        if hint is not None:
            lib.SSL_CTX_use_psk_identity_hint(self.context._context, hint)


def psk_client(version):
    return client_context(version=version, ciphers=CIPHERS[version], ca=pki().anchors(pki().other_root))


@each_version
def test_a_pre_shared_key_stands_for_the_certificate(version):
    """
    A server that knows the key needs no certificate that we trust; that is no resumption, and leaves no session.
    """
    server = PskServer(version, hint=b"which one?")
    hints = []

    def callback(hint):
        hints.append(hint)
        return Psk(KEY, "client-7")

    def never(hostname, certificate):
        raise AssertionError("there is no certificate to check")

    link = connect(psk_client(version), server.context, psk_callback=callback, check_identity=never)

    facts = link.sink.facts
    assert (facts.authorized, facts.session_reused, facts.peer_certificate) == (True, False, None)
    assert server.identities[0] == "client-7"
    assert hints[0] == ("which one?" if version == "TLSv1.2" else None)
    assert link.sink.sessions == []


@each_version
def test_a_server_with_another_key_is_no_peer(version):
    """
    A wrong key fails the handshake.
    """
    server = PskServer(version, key=bytes(32))

    with pytest.raises(HandshakeError):
        connect(psk_client(version), server.context, psk_callback=lambda hint: Psk(KEY, "client-7"))


@each_version
def test_without_a_key_the_certificate_counts(version):
    """
    A callback that returns None leaves the server to its certificate, which is verified as ever.
    """
    with pytest.raises(CertificateError):
        connect(psk_client(version), server_context(version=version), psk_callback=lambda hint: None)
    trusting = client_context(version=version, ciphers=CIPHERS[version])
    assert connect(trusting, server_context(version=version), psk_callback=lambda hint: None).sink.facts.authorized


@each_version
def test_a_key_that_was_not_taken_excuses_nothing(version):
    """
    A server that takes no pre-shared key is verified by its certificate.
    """
    with pytest.raises(CertificateError):
        connect(psk_client(version), server_context(version=version), psk_callback=lambda hint: Psk(KEY, "x"))


def test_an_anonymous_server_is_not_authorised_by_an_offered_key():
    """
    A key offered for TLS 1.3 does not make up for an anonymous key exchange in TLS 1.2.
    """
    server = SSL.Context(SSL.TLS_SERVER_METHOD)
    server.set_max_proto_version(0x0303)
    server.set_cipher_list(b"AECDH-AES256-SHA:@SECLEVEL=0")
    context = client_context(ciphers="AECDH-AES256-SHA:@SECLEVEL=0")

    with pytest.raises(CertificateError) as caught:
        connect(context, server, psk_callback=lambda hint: Psk(KEY, "x"))
    assert caught.value.code == "UNABLE_TO_GET_ISSUER_CERT"


class Refusal(Exception):
    code = "E_VAULT"


@each_version
def test_a_callback_that_raises_ends_the_connection(version):
    """
    An exception in the callback fails the handshake, is its cause and lends it its code.
    """
    refusal = Refusal("vault is sealed")

    def callback(hint):
        raise refusal

    with pytest.raises(HandshakeError, match="vault is sealed") as caught:
        connect(psk_client(version), PskServer(version).context, psk_callback=callback)

    assert caught.value.__cause__ is refusal
    assert caught.value.code == "E_VAULT"
    assert binding.take_faults() == []


@each_version
def test_an_interrupt_in_the_callback_passes_through(version):
    """
    What is no Exception is not wrapped.
    """

    def callback(hint):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connect(psk_client(version), PskServer(version).context, psk_callback=callback)


@each_version
@pytest.mark.parametrize("answer", [b"key", ("identity", KEY), {"psk": KEY}])
def test_an_answer_of_another_type_ends_the_connection(version, answer):
    """
    Only a Psk or None is an answer.
    """
    with pytest.raises(HandshakeError) as caught:
        connect(psk_client(version), PskServer(version).context, psk_callback=lambda hint: answer)

    assert isinstance(caught.value.__cause__, OptionTypeError)


def test_an_asynchronous_callback_is_refused():
    """
    Nobody awaits inside a handshake.
    """

    async def callback(hint):
        return None

    with pytest.raises(HandshakeError, match="coroutine"):
        connect(psk_callback=callback)


@pytest.mark.parametrize(
    ("psk", "identity"),
    [(b"", "x"), (bytes(257), "x"), (KEY, ""), (KEY, "x" * 128), (KEY, "a\0b"), ("k", "x"), (KEY, b"x")],
)
def test_keys_that_cannot_be_used_are_refused(psk, identity):
    """
    Key and identity have the sizes that OpenSSL takes; the message does not quote the key.
    """
    with pytest.raises(OptionError):
        Psk(psk, identity)


def test_the_largest_key_is_taken():
    """
    The bounds are those of OpenSSL: a key and an identity of the greatest size serve.
    """
    identity = "i" * 127
    key = bytes(range(256))
    server = PskServer("TLSv1.2", key=key)

    link = connect(psk_client("TLSv1.2"), server.context, psk_callback=lambda hint: Psk(key, identity))

    assert link.sink.facts.authorized
    assert server.identities == [identity]
    assert repr(Psk(key, identity)).startswith("Psk(psk=***,")


# --- psk_callback of a server -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [KEY, bytearray(KEY), Psk(KEY, "whoever")], ids=["bytes", "bytearray", "Psk"])
def test_a_servers_callback_gives_the_key_of_an_identity(answer):
    """
    It is asked for the identity and may answer with the key alone; who was given one is known afterwards.
    """
    asked = []

    def callback(identity):
        asked.append(identity)
        return answer if identity == "zo\u00eb" else None

    keys = PskKeys(callback)

    assert keys(b"nobody") is None
    assert keys.identity is None
    assert keys("zo\u00eb".encode()) == KEY
    assert (asked, keys.identity, keys.error) == (["nobody", "zo\u00eb"], "zo\u00eb", None)


@pytest.mark.parametrize("identity", [b"", b"\xff ticket", b"ticket\0"])
def test_what_is_no_identity_is_not_asked_about(identity):
    """
    What is not text in UTF-8, a session ticket say, belongs to nobody (RFC 4279, 5.1).
    """
    asked = []

    assert PskKeys(asked.append)(identity) is None
    assert asked == []


async def _late(_identity):
    return KEY


@pytest.mark.parametrize(
    ("callback", "error", "text"),
    [
        ({}.__getitem__, KeyError, "me"),
        (sys.exit, SystemExit, "me"),
        (lambda _identity: "key", OptionTypeError, "bytes, a Psk or None, not str"),
        (_late, OptionTypeError, "bytes, a Psk or None, not coroutine"),
        (lambda _identity: b"", OptionRangeError, "1 to 256 bytes, not 0"),
        (lambda _identity: bytes(257), OptionRangeError, "1 to 256 bytes, not 257"),
    ],
)
def test_a_servers_callback_that_fails_gives_no_key(callback, error, text):
    """
    What it raises is kept, and it is not asked again in that handshake.
    """
    keys = PskKeys(callback)

    assert keys(b"me") is None
    assert isinstance(keys.error, error)
    assert text in str(keys.error)
    first = keys.error
    assert keys(b"me") is None
    assert keys.error is first
