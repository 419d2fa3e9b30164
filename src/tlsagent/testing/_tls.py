"""
The TLS floor of the server, on the standard library's ssl: an implementation that shares no code with the client's.

Bytes in, plaintext out; no sockets, no waiting. `TLSFloor` is the seam: the floor over pyOpenSSL (`_openssl_tls`), for
options that ssl does not offer, satisfies it too. Faults that belong to the handshake live here too: a floor told to
stall at a handshake message withholds that record and all that follow. It cannot leave one out and send the next: the
records are numbered (RFC 8446 5.3).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import tempfile
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from tlsagent.errors import OptionError

if TYPE_CHECKING:
    from tlsagent.testing._settings import ServerSettings
    from tlsagent.testing.authority import Credentials

STALL_POINTS: Final = (
    "hello_retry_request",
    "server_hello",
    "encrypted_extensions",
    "certificate_request",
    "certificate",
    "server_key_exchange",
    "certificate_verify",
    "server_hello_done",
    "finished",
    "new_session_ticket",
)

_CHANGE_CIPHER_SPEC: Final = 20
_HANDSHAKE: Final = 22
_APPLICATION_DATA: Final = 23
_RECORD_SIZE: Final = 16_384
_SUPPORTED_VERSIONS: Final = b"\x00\x2b\x00\x02\x03\x04"  # the extension as a TLS 1.3 ServerHello carries it
_RETRY: Final = hashlib.sha256(b"HelloRetryRequest").digest()  # RFC 8446 4.1.3: the random of a HelloRetryRequest
_PLAIN_MESSAGES: Final = {
    2: "server_hello",
    4: "new_session_ticket",
    11: "certificate",
    12: "server_key_exchange",
    13: "certificate_request",
    14: "server_hello_done",
}

# What Node says of a client that was asked for a certificate and has none.
NO_CLIENT_CERTIFICATE: Final = "UNABLE_TO_GET_ISSUER_CERT"

ALERT_HANDSHAKE_FAILURE: Final = b"\x15\x03\x03\x00\x02\x02\x28"


class TLSFailure(Exception):
    """The TLS library gave up on the connection. An alert may be waiting in `data_to_send()`."""


@dataclass(frozen=True, slots=True)
class TLSFacts:
    """
    What a finished handshake agreed on.

    Attributes:
        authorization_error: Node's name for what is wrong with a client certificate that was asked for and taken all
            the same, or did not come.
        psk_identity: Whose pre-shared key it rests on, if on one.
    """

    version: str
    cipher: str
    alpn: str | None
    session_reused: bool
    client_certificate: bytes | None
    authorization_error: str | None = None
    psk_identity: str | None = None


class TLSFloor(Protocol):
    """
    One connection's TLS, server side.

    Attributes:
        facts: None until the handshake is done.
        peer_closed: Whether the peer's close_notify was read.
    """

    facts: TLSFacts | None
    peer_closed: bool

    def receive_data(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take ciphertext, return the plaintext it completes. Raises TLSFailure."""

    def write(self, data: bytes) -> None:
        """Encrypt `data`; only after the handshake."""

    def data_to_send(self) -> bytes:
        """Return the ciphertext due, once."""

    def close(self) -> None:
        """Append close_notify, if the handshake is done."""


# --- Contexts ---------------------------------------------------------------------------------------------------------


def make_context(settings: ServerSettings) -> ssl.SSLContext:
    """
    Return a new context.

    Each has ticket keys and a session cache of its own: sessions of one context mean nothing to another. Raises
    OptionError if OpenSSL refuses what the settings say, or ssl cannot do it.
    """
    if settings.needs_openssl:
        raise OptionError("ssl cannot speak TLS as the settings say: a `Server` can, since it has another floor for it")
    try:
        return _make_context(settings)
    except (ssl.SSLError, ValueError) as exc:
        raise OptionError(f"the testing server cannot speak TLS this way: {exc}") from exc


def _make_context(settings: ServerSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if settings.ciphers is not None:
        context.set_ciphers(settings.ciphers)  # before the chain: @SECLEVEL in it decides whether the key is acceptable
    _load_credentials(context, settings.credentials)
    _set_versions(context, settings.min_version, settings.max_version)
    if settings.ecdh_curve is not None:
        context.set_ecdh_curve(settings.ecdh_curve)
    context.options |= ssl.OP_NO_RENEGOTIATION
    if settings.alpn_protocols:
        context.set_alpn_protocols(list(settings.alpn_protocols))
    if settings.session_ids or settings.tickets == 0:
        context.options |= ssl.OP_NO_TICKET
    if settings.tickets is not None:
        context.num_tickets = settings.tickets
    if settings.request_cert:
        context.verify_mode = ssl.CERT_REQUIRED if settings.request_cert == "demand" else ssl.CERT_OPTIONAL
        _load_anchors(context, settings.client_ca)
    return context


def _load_credentials(context: ssl.SSLContext, credentials: Credentials) -> None:
    # ssl reads certificates from files only. mkstemp's file is readable by us alone.
    handle, path = tempfile.mkstemp(suffix=".pem")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(credentials.key_pem + credentials.cert_pem)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)


def _load_anchors(context: ssl.SSLContext, anchors: bytes) -> None:
    context.load_verify_locations(cadata=anchors.decode("ascii") if anchors.startswith(b"-----") else anchors)


def _set_versions(context: ssl.SSLContext, lowest: str, highest: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are asked for on purpose
        context.minimum_version = _version(lowest)
        context.maximum_version = _version(highest)


def _version(name: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[name.replace(".", "_")]


# --- The floor --------------------------------------------------------------------------------------------------------


class StdlibTLS:
    """`TLSFloor` over `ssl.SSLObject` and memory BIOs."""

    __slots__ = ("_asks", "_incoming", "_outgoing", "_ssl", "_stall", "facts", "peer_closed")

    def __init__(self, context: ssl.SSLContext, *, stall_at: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._asks = context.verify_mode != ssl.CERT_NONE
        self._stall = Stall(stall_at, self._asks) if stall_at else None
        self.facts: TLSFacts | None = None
        self.peer_closed = False

    def receive_data(self, data: bytes | bytearray | memoryview) -> bytes:
        self._incoming.write(data)
        try:
            if self.facts is None and not self._handshake():
                return b""
            return self._read()
        except ssl.SSLError as exc:
            raise TLSFailure(exc.reason or str(exc)) from exc

    def _handshake(self) -> bool:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        cipher = self._ssl.cipher()
        version = self._ssl.version()
        assert cipher is not None
        assert version is not None
        certificate = self._ssl.getpeercert(binary_form=True)
        lacking = self._asks and certificate is None and not self._ssl.session_reused
        self.facts = TLSFacts(
            version=version,
            cipher=cipher[0],
            alpn=self._ssl.selected_alpn_protocol(),
            session_reused=bool(self._ssl.session_reused),
            client_certificate=certificate,
            authorization_error=NO_CLIENT_CERTIFICATE if lacking else None,
        )
        return True

    def _read(self) -> bytes:
        pieces = []
        # Asking what is pending spares the hot path an SSLWantReadError; OpenSSL reads no further than it must.
        while self._incoming.pending or self._ssl.pending():
            try:
                piece = self._ssl.read(_RECORD_SIZE)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                piece = b""
            if not piece:
                self.peer_closed = True
                break
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, data: bytes) -> None:
        self._ssl.write(data)

    def data_to_send(self) -> bytes:
        data = self._outgoing.read()
        if self._stall is None:
            return data
        data = self._stall.admit(data, resumed=bool(self._ssl.session_reused))
        if self.facts is not None and not self._stall.stalled:
            self._stall = None  # the handshake and its tickets are out; what follows is application data
        return data

    def close(self) -> None:
        if self.facts is None:
            return
        with contextlib.suppress(ssl.SSLError):  # ours is written; unwrap() would like to see the peer's as well
            self._ssl.unwrap()


class Stall:
    """Lets the server's records pass until the one that carries the given handshake message."""

    __slots__ = ("_asked", "_expected", "_message", "_sealed", "_version13", "stalled")

    def __init__(self, message: str, asks_for_certificate: bool) -> None:
        self._message = message
        self._asked = asks_for_certificate
        self.stalled = False
        self._version13 = False
        self._sealed = False  # TLS 1.2: after ChangeCipherSpec
        self._expected: list[str] = []  # TLS 1.3: the messages to come in encrypted records

    def admit(self, data: bytes, *, resumed: bool) -> bytes:
        # OpenSSL writes each handshake message as a record of its own and hands out whole records.
        at = 0
        while at < len(data) and not self.stalled:
            end = at + 5 + int.from_bytes(data[at + 3 : at + 5], "big")
            if self._name(data[at:end], resumed) == self._message:
                self.stalled = True
                break
            at = end
        return data[:at]

    def _name(self, record: bytes, resumed: bool) -> str | None:
        kind = record[0]
        if kind == _APPLICATION_DATA and self._version13:
            return self._expected.pop(0) if self._expected else "new_session_ticket"
        if kind == _CHANGE_CIPHER_SPEC:
            self._sealed = True
        if kind != _HANDSHAKE:
            return None
        if self._sealed and not self._version13:
            return "finished"
        name = _PLAIN_MESSAGES.get(record[5])
        if name != "server_hello":
            return name
        if record[11:43] == _RETRY:
            self._version13 = True
            return "hello_retry_request"
        self._version13 = _SUPPORTED_VERSIONS in record[43:]
        self._expected = self._sealed_flight(resumed)
        return name

    def _sealed_flight(self, resumed: bool) -> list[str]:
        if resumed:
            return ["encrypted_extensions", "finished"]
        request = ["certificate_request"] if self._asked else []
        return ["encrypted_extensions", *request, "certificate", "certificate_verify", "finished"]
