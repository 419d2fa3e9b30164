"""
TLS of one connection, sans I/O: ciphertext in and out as bytes, plaintext and news to a sink.

Decides whether the peer may be talked to: after every handshake, resumed ones too, first OpenSSL's verdict on the
chain, then (resumed) the dates of the leaf, then the name. Which options a connection has, where sessions are kept and
what the plaintext means is decided elsewhere. TLS 1.3 is RFC 8446, TLS 1.2 RFC 5246.

Theory of operation. OpenSSL reads from one memory BIO and writes to another. Three traps shape this code:

- SSL_read returns one record, and one that holds no application data (a session ticket, a key update) makes it return
  "want read" though more is there. So it is called until the input BIO is empty, and not once more: that would only
  cost an error look-up. What is left of an incomplete record is inside OpenSSL by then.
- Tickets are noticed by comparing pointers. Between two looks OpenSSL frees the old session and may reuse its address,
  so the last session seen is held; and since each ticket ends an SSL_read, none falls between two looks. Looking is
  needed only after "want read", and after the handshake only in TLS 1.3.
- A resumed handshake verifies nothing: the verdict comes out of the session, the name was another's, perhaps.

The first error is final. It is raised again by every later call, while `data_to_send` still yields the alert.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from OpenSSL import SSL

from tlsagent._material import binding
from tlsagent._material.binding import (
    WANT_READ,
    bio_pending,
    bio_read,
    bio_write,
    borrowed_session,
    pointer_to,
    ssl_error,
    ssl_read,
    ssl_write,
    unpack,
)
from tlsagent._tls.alerts import Offer, connection_error, handshake_error, is_alert, last_fault
from tlsagent._tls.certificates import PeerCertificate
from tlsagent._tls.context import TLS13
from tlsagent._tls.listeners import MessageListener, PskSource, dh_bits
from tlsagent._tls.sessions import Session
from tlsagent._tls.verify import certificate_error, verify_error_name
from tlsagent.errors import (
    CertificateError,
    CertificateNameError,
    ConnectionLost,
    HandshakeError,
    LocalProtocolError,
    OptionError,
    RemoteProtocolError,
    RequestError,
    quoted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._material.binding import Fault
    from tlsagent._option_rules import PskCallback
    from tlsagent._tls.context import SecureContext

MAX_SESSIONS: Final = 64
"""Sessions handed over per connection; a peer that floods tickets gets no more memory."""
MAX_CONTROL_RECORDS: Final = 1_000
"""Records without application data in a row (tickets, key updates) before the peer counts as hostile."""

SAFE_DH_SIZE: Final = 1_024
"""Bits of a finite-field group below which OpenSSL refuses at every security level (ssl_security_default_callback)."""

_RECORD: Final = 16_384
_SCRATCH: Final = 16 * _RECORD
_FIRST_BYTES: Final = 256

# Buffers between two uses, as many as there were reads at once. Not thread-local: under gevent that is per greenlet.
# `pop` and `append` are atomic; a buffer that an exception keeps from coming back is merely freed.
_free_buffers: Final[list[binding.Scratch]] = []


class TLSSink(Protocol):
    """Who takes what the engine has to tell. It records and returns; it never calls the engine back."""

    def secured(self, facts: HandshakeFacts, now: float) -> None:
        """Take the end of the handshake; the peer is verified, or need not be."""

    def plaintext_received(self, data: bytes, now: float) -> None:
        """Take plaintext, never empty."""

    def plaintext_ended(self, clean: bool, now: float) -> None:
        """Take the end of the plaintext, once: `clean` with close_notify, else the transport ended without it."""

    def session_received(self, session: Session) -> None:
        """Take a session; only from a peer that the rule of this connection accepts."""


class HandshakeFacts:
    """
    What is known after a handshake.

    Attributes:
        protocol_version: "TLSv1.2", "TLSv1.3".
        cipher: OpenSSL's name of the cipher suite.
        group: Key exchange group; None where there was none.
        alpn_protocol: What the server chose, or None.
        session_reused: Whether the server resumed the session that was offered.
        authorized: Whether chain and name are in order.
        authorization_error: Node's code of what is not.
        peer_certificate: The server's own certificate.
        peer_chain: What the server sent, its own certificate first; on resumption in the full handshake.
        ocsp_response: What the server stapled (RFC 6066 section 8), DER, if it was asked for; nobody has looked at it.
    """

    __slots__ = (
        "alpn_protocol",
        "authorization_error",
        "authorized",
        "cipher",
        "group",
        "ocsp_response",
        "peer_certificate",
        "peer_chain",
        "protocol_version",
        "session_reused",
    )

    def __init__(
        self,
        ssl: binding.SSLHandle,
        *,
        peer_chain: tuple[PeerCertificate, ...],
        authorization_error: str | None,
        ocsp_response: bytes | None,
        psk_used: bool,
    ) -> None:
        self.protocol_version = binding.protocol_version(ssl)
        self.cipher = binding.cipher_name(ssl)
        self.group = binding.group_name(ssl)
        self.alpn_protocol = binding.alpn_selected(ssl)  # one of those offered: OpenSSL sees to that
        # A pre-shared key is a resumption to TLS 1.3, not to anybody else.
        self.session_reused = binding.session_reused(ssl) and not psk_used
        self.authorized = authorization_error is None
        self.authorization_error = authorization_error
        self.peer_certificate = peer_chain[0] if peer_chain else None
        self.peer_chain = peer_chain
        self.ocsp_response = ocsp_response

    def __repr__(self) -> str:
        resumed = "resumed" if self.session_reused else "full"
        return f"<HandshakeFacts {self.protocol_version} {self.cipher} {resumed} authorized={self.authorized}>"


class TLSEngine:
    """
    The client's end of one TLS connection. Takes no locks: one thread at a time.

    Args:
        context: Material and protocol range.
        verified_name: Whom the certificate must be for.
        server_name: Server name indication (RFC 6066); None sends none, as for addresses.
        alpn_protocols: What to offer (RFC 7301), in order of preference; empty for nothing.
        reject_unauthorized: Whether a bad chain or name fails the handshake. If not, both end in the facts.
        check_identity: Called with name and certificate after every handshake whose chain is in order. It rejects by
            raising or returning an exception.
        session: Offered to the server, if it was made for the same name under the same `trust`.
        wall_offset: What to add to `now` for the time since the epoch.
        trust: Digest of what the verification rests on; given to the sessions that are handed over.
        min_dh_size: Least bits of the group of a finite-field key exchange in TLS 1.2.
        pins: SHA-256 of public keys, of which the verified chain must have one; empty for no such demand.
        request_ocsp: Whether to ask for a stapled OCSP response.
        psk_callback: Source of pre-shared keys. It is called inside the handshake.
        trace: Told each message of the handshake as a line of text.

    Attributes:
        secured: Whether the handshake is complete and the peer accepted.
        offered_session: Whether a session is offered.
        unsent: Whether `data_to_send` may return something.
    """

    __slots__ = (
        "_alpn_protocols",
        "_chain",
        "_check_identity",
        "_closed",
        "_connection",
        "_context",
        "_control_records",
        "_ended",
        "_error",
        "_first_bytes",
        "_from_ssl",
        "_held",
        "_into_ssl",
        "_messages",
        "_min_dh_size",
        "_pins",
        "_psk",
        "_reject",
        "_request_ocsp",
        "_session",
        "_sessions",
        "_silent",
        "_ssl",
        "_trace",
        "_trust",
        "_verified_keys",
        "_verified_name",
        "_wall_offset",
        "_watch_sessions",
        "offered_session",
        "secured",
        "unsent",
    )

    def __init__(
        self,
        context: SecureContext,
        *,
        verified_name: str,
        server_name: str | None,
        alpn_protocols: tuple[str, ...],
        reject_unauthorized: bool,
        check_identity: Callable[[str, PeerCertificate], object],
        session: Session | None = None,
        wall_offset: float = 0.0,
        trust: bytes = b"",
        min_dh_size: int = SAFE_DH_SIZE,
        pins: tuple[bytes, ...] = (),
        request_ocsp: bool = False,
        psk_callback: PskCallback | None = None,
        trace: Callable[[str], object] | None = None,
    ) -> None:
        self._context = context
        self._verified_name = verified_name
        self._alpn_protocols = alpn_protocols
        self._reject = reject_unauthorized
        self._check_identity = check_identity
        self._session = self._usable(session, trust, psk_callback)
        self._wall_offset = wall_offset
        self._trust = trust
        self._min_dh_size = min_dh_size
        self._pins = pins
        self._request_ocsp = request_ocsp
        self._trace = trace
        self._psk = PskSource(psk_callback) if psk_callback is not None else None
        watched = trace is not None or self._may_meet_small_dh()
        self._messages = MessageListener(trace=trace is not None) if watched else None
        self._connection = SSL.Connection(self._openssl_context(), None)
        self._ssl, self._into_ssl, self._from_ssl = binding.handles(self._connection)
        if self._messages is not None or self._psk is not None:
            binding.set_listeners(self._ssl, self._messages, self._psk)
        self._error: RequestError | None = None
        self.unsent = True  # False only while the output BIO is known to be empty
        self._ended = False  # nothing more comes in: close_notify, end of transport, or abort
        self._closed = False  # nothing more goes out but what lies in the BIO
        self._silent = True  # no application data yet
        self._first_bytes = b""  # of the server's; for messages, dropped after the handshake
        self._chain: tuple[bytes, ...] = ()
        self._verified_keys: tuple[bytes, ...] = ()
        self._held: binding.SessionHandle | None = None  # the last session seen
        self._watch_sessions = False
        self._sessions = 0
        self._control_records = 0
        self.secured = False
        self._configure(server_name)
        self.offered_session = self._session is not None
        if self._session is not None:
            binding.offer_session(self._ssl, self._session.handle)

    def _usable(self, session: Session | None, trust: bytes, psk_callback: PskCallback | None) -> Session | None:
        if session is None or not session.made_for(self._verified_name, trust):
            return None
        # Resumed without a certificate it could not be told from a pre-shared key that was taken.
        return None if psk_callback is not None and not session.peer_chain else session

    def _may_meet_small_dh(self) -> bool:
        """Whether OpenSSL might accept a group smaller than `min_dh_size`, so that we have to look."""
        return self._min_dh_size > SAFE_DH_SIZE and self._context.min_version < TLS13

    def _openssl_context(self) -> SSL.Context:
        if self._messages is None and self._psk is None:
            return self._context.context
        return self._context.variant(messages=self._messages is not None, psk=self._psk is not None)

    def _configure(self, server_name: str | None) -> None:
        binding.set_verification(self._ssl, self._reject)
        if server_name is not None:
            name = server_name.encode("ascii")
            if not 0 < len(name) <= 255:  # OpenSSL would send none and not say so
                raise OptionError(f"servername must have 1 to 255 bytes, not {len(name)}")
            self._connection.set_tlsext_host_name(name)
        if self._alpn_protocols:
            self._connection.set_alpn_protos([name.encode("latin-1") for name in self._alpn_protocols])
        if self._request_ocsp:
            self._connection.request_ocsp()
        self._connection.set_connect_state()

    # --- Input --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """
        Begin the handshake: `data_to_send` holds the ClientHello.

        Raises:
            HandshakeError: The options leave nothing to offer.
        """
        binding.clear_errors()
        result = binding.handshake(self._ssl)
        self._after_listening()
        if result != 1 and ssl_error(self._ssl, result) != WANT_READ:
            self._fail(self._handshake_error(last_fault()))

    def receive_data(self, data: bytes | bytearray | memoryview, now: float, sink: TLSSink) -> None:
        """
        Take bytes from the transport and tell the sink what they amount to.

        Raises:
            HandshakeError, CertificateError, CertificateNameError: There will be no connection.
            RemoteProtocolError: The peer broke TLS, or sent an alert.
        """
        if self._error is not None:
            raise self._error
        if self._ended or not data:
            return  # RFC 8446 6.1: what follows close_notify is ignored
        into_ssl = self._into_ssl
        bio_write(into_ssl, data if type(data) is bytes else pointer_to(data), len(data))
        if not self.secured and not self._advance(data, now, sink):
            return
        buffer = _free_buffers.pop() if _free_buffers else binding.scratch(_SCRATCH)
        size = ssl_read(self._ssl, buffer, _RECORD)
        if size > 0 and not bio_pending(into_ssl):
            self._silent = False
            self._control_records = 0
            plaintext = unpack(buffer, size)
            _free_buffers.append(buffer)
            sink.plaintext_received(plaintext, now)
        else:
            self._read_on(buffer, size, now, sink)

    def receive_eof(self, now: float, sink: TLSSink) -> None:
        """
        Take the end of the transport's input.

        Raises:
            ConnectionLost: The handshake was not complete.
        """
        if self._error is not None:
            raise self._error
        if self._ended:
            return
        self._ended = True
        if self.secured:
            sink.plaintext_ended(False, now)
        else:
            said = "without a word" if not self._first_bytes else "before the TLS handshake was complete"
            self._fail(ConnectionLost(f"the server closed the connection {said}", phase="handshake"))

    def _read_on(self, buffer: binding.Scratch, size: int, now: float, sink: TLSSink) -> None:
        """Go on after the first SSL_read until the input is used up; what it read lies in the buffer."""
        self.unsent = True  # an alert, the answer to a key update
        filled = 0
        problem: RequestError | None = None
        while True:
            if size > 0:
                filled += size
                self._silent = False
                self._control_records = 0
                if not bio_pending(self._into_ssl):
                    break
            else:
                problem = self._after_empty_read(size, sink)
                if problem is not None or self._ended or not bio_pending(self._into_ssl):
                    break
            if filled > _SCRATCH - _RECORD:
                sink.plaintext_received(unpack(buffer, filled), now)
                filled = 0
            size = ssl_read(self._ssl, binding.advanced(buffer, filled), _RECORD)
        plaintext = unpack(buffer, filled) if filled else b""
        _free_buffers.append(buffer)
        if plaintext:
            sink.plaintext_received(plaintext, now)
        if problem is not None:
            self._fail(problem)
        if self._ended:
            sink.plaintext_ended(True, now)

    def _after_empty_read(self, result: int, sink: TLSSink) -> RequestError | None:
        """Find out why an SSL_read gave nothing: half a record, a ticket, the end, or an error."""
        reason = ssl_error(self._ssl, result)
        if self._messages is not None:
            self._tell_messages(self._messages)
        if reason == WANT_READ:
            if self._watch_sessions and borrowed_session(self._ssl) != self._held:
                self._held = binding.held_session(self._ssl)
                self._hand_over_session(sink)
            elif not bio_pending(self._into_ssl):
                return None  # an incomplete record, as far as one can tell
            self._control_records += 1
            if self._control_records > MAX_CONTROL_RECORDS:
                return RemoteProtocolError(
                    f"the server sent more than {MAX_CONTROL_RECORDS} TLS records without data in a row",
                    code="ERR_TLSAGENT_TLS_FLOOD",
                )
            return None
        if reason == binding.CLOSE_NOTIFY:
            self._ended = True
            return None
        fault = last_fault()
        if self._silent and self._watch_sessions and is_alert(fault):
            # RFC 8446 4.4.2.4: what a TLS 1.3 server has against our certificate comes after our end of the handshake.
            return self._handshake_error(fault)
        return connection_error(fault)

    # --- Handshake ----------------------------------------------------------------------------------------------------

    def _advance(self, data: bytes | bytearray | memoryview, now: float, sink: TLSSink) -> bool:
        """Carry the handshake on; returns whether it is complete."""
        self.unsent = True
        if len(self._first_bytes) < _FIRST_BYTES:
            self._first_bytes += bytes(data[: _FIRST_BYTES - len(self._first_bytes)])
        binding.clear_errors()
        result = binding.handshake(self._ssl)
        self._after_listening()
        if result != 1:
            if ssl_error(self._ssl, result) == WANT_READ:
                return False
            fault = last_fault()  # in any case: what stays in the queue would be the next one's
            self._fail((self._reject and self._refused_certificate()) or self._handshake_error(fault))
        self._complete(now, sink)
        return True

    def _after_listening(self) -> None:
        """Tell what the listeners heard, and fail if the user's source of keys did."""
        if self._messages is not None:
            self._tell_messages(self._messages)
        if self._psk is None or self._psk.error is None:
            return
        cause, self._psk.error = self._psk.error, None
        binding.drop_listeners(self._ssl)  # they would hold the exception, it its frames, and those this engine
        error = HandshakeError(
            f"psk_callback failed: {type(cause).__name__}: {quoted(str(cause))}",
            code=_code_of(cause) or "ERR_TLSAGENT_PSK_CALLBACK",
            phase="handshake",
        )
        error.__cause__ = cause
        binding.clear_errors()
        self.data_to_send()
        binding.mark_shut_down(self._ssl)
        if isinstance(cause, Exception):
            self._fail(error)
        self._error = error
        self._closed = self._ended = True
        raise cause

    def _tell_messages(self, messages: MessageListener) -> None:
        for line in messages.take_lines():
            if self._trace is not None:
                self._trace(line)

    def _complete(self, now: float, sink: TLSSink) -> None:
        ssl = self._ssl
        self._chain = self._peer_chain()
        chain = tuple(PeerCertificate(der) for der in self._chain)
        self._refuse_small_dh()
        psk_used = not chain and self._psk_used()
        refusal = None if psk_used else self._verdict(chain, now + self._wall_offset)
        if refusal is not None and self._reject:
            self._reject_peer(refusal)
        if self._pins:
            self._check_pins(chain)
        facts = HandshakeFacts(
            ssl,
            peer_chain=chain,
            authorization_error=refusal.code if refusal is not None else None,
            ocsp_response=binding.ocsp_response(ssl) if self._request_ocsp else None,
            psk_used=psk_used,
        )
        offered, self._session = self._session, None
        self._first_bytes = b""
        self._held = binding.held_session(ssl)
        self._watch_sessions = facts.protocol_version == "TLSv1.3"
        self.secured = True
        sink.secured(facts, now)
        # TLS 1.2 has its session now; a resumed handshake keeps the one offered unless it brings a new ticket.
        if not self._watch_sessions and (offered is None or self._held != offered.handle):
            self._hand_over_session(sink)

    def _peer_chain(self) -> tuple[bytes, ...]:
        leaf = binding.peer_certificate(self._ssl)
        if leaf is None:
            return ()
        kept = self._session.peer_chain if self._session is not None and binding.session_reused(self._ssl) else ()
        chain = kept or binding.peer_chain(self._ssl)
        return chain if chain[:1] == (leaf,) else (leaf,)

    def _refuse_small_dh(self) -> None:
        if self._messages is None or binding.session_reused(self._ssl):
            return  # a session was made under the same rule
        bits = dh_bits(self._messages.server_key_exchange, binding.cipher_name(self._ssl) or "")
        self._messages.server_key_exchange = b""
        if bits is not None and bits < self._min_dh_size:
            self._reject_peer(
                HandshakeError(
                    f"the server's Diffie-Hellman group has {bits} bits, fewer than min_dh_size ({self._min_dh_size})",
                    code="ERR_TLS_DH_PARAM_SIZE",
                    phase="handshake",
                )
            )

    # --- Verification -------------------------------------------------------------------------------------------------

    def _verdict(self, chain: tuple[PeerCertificate, ...], wall: float) -> CertificateError | None:
        """Return what is wrong with the peer: its chain, its dates, its name, in this order."""
        if not chain:
            # An anonymous cipher. OpenSSL has no objection; this is what Node says then.
            return certificate_error("UNABLE_TO_GET_ISSUER_CERT", self._verified_name)
        return self._refused_certificate() or self._outdated(chain[0], wall) or self._misnamed(chain[0])

    def _refused_certificate(self) -> CertificateError | None:
        """Return OpenSSL's verdict on the chain as an error, None if it has no objection."""
        number = binding.verify_result(self._ssl)
        if number == 0:
            return None
        return certificate_error(verify_error_name(number), self._verified_name, number=number)

    def _outdated(self, leaf: PeerCertificate, wall: float) -> CertificateError | None:
        """Look at the dates that OpenSSL looked at in the full handshake, which may be long ago."""
        if not binding.session_reused(self._ssl):
            return None
        try:
            start, end = leaf.not_valid_before.timestamp(), leaf.not_valid_after.timestamp()
        except ValueError:
            return certificate_error("ERROR_IN_CERT_NOT_AFTER_FIELD", self._verified_name)
        if start <= wall <= end:
            return None
        return certificate_error("CERT_HAS_EXPIRED" if wall > end else "CERT_NOT_YET_VALID", self._verified_name)

    def _misnamed(self, leaf: PeerCertificate) -> CertificateError | None:
        """Ask the hook. It fails closed: an answer that may mean "no" is one."""
        try:
            answer = self._check_identity(self._verified_name, leaf)
        except Exception as exc:  # noqa: BLE001 - whatever a user's hook raises rejects the peer
            return _identity_error(exc)
        if isinstance(answer, BaseException):
            return _identity_error(answer)
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            return _identity_error(TypeError("check_server_identity must not be asynchronous: nothing awaits it"))
        if answer is not None and answer is not True:
            # Node rejects on every answer that counts as true, a message say: it must not pass here.
            given = "False" if answer is False else f"a {type(answer).__name__}"
            return _identity_error(
                ValueError(f"check_server_identity returned {given}: None accepts, an exception refuses")
            )
        return None

    def _psk_used(self) -> bool:
        """Whether the server, which showed no certificate, proved instead that it knows the pre-shared key."""
        if self._psk is None or not self._psk.given:
            return False
        if binding.protocol_version(self._ssl) == "TLSv1.3":
            return binding.session_reused(self._ssl)
        return "PSK" in (binding.cipher_name(self._ssl) or "")

    def _check_pins(self, chain: tuple[PeerCertificate, ...]) -> None:
        """Look for a pinned key. Of a chain that was not verified only the leaf counts: anybody can send the rest."""
        resumed = binding.session_reused(self._ssl)
        if resumed and self._session is not None:
            self._verified_keys = self._session.verified_keys
        elif not resumed and binding.verify_result(self._ssl) == 0:
            self._verified_keys = tuple(map(_key_digest, binding.verified_chain(self._ssl)))
        found = {*self._verified_keys, *(_key_digest(one.der) for one in chain[:1])}
        if found.isdisjoint(self._pins):
            self._reject_peer(
                CertificateError(
                    f"none of the pinned keys is in the certificate chain of {quoted(self._verified_name)}: the server "
                    "has a new key, or another stands in its place; see pins",
                    code="ERR_TLSAGENT_PIN_MISMATCH",
                    phase="handshake",
                )
            )

    # --- Sessions -----------------------------------------------------------------------------------------------------

    def _hand_over_session(self, sink: TLSSink) -> None:
        # Without a certificate, after a pre-shared key or an anonymous exchange, there is nothing to check again.
        if self._held is not None and self._chain and self._sessions < MAX_SESSIONS:
            session = Session(
                self._held,
                self._chain,
                verified_name=self._verified_name,
                trust=self._trust,
                verified_keys=self._verified_keys,
            )
            if session.resumable:
                self._sessions += 1
                sink.session_received(session)

    # --- Output -------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """
        Encrypt plaintext; `data_to_send` returns it.

        Memory once used for output is not given back while the connection lives: pass 64 KiB at most, then take it.

        Raises:
            LocalProtocolError: The handshake is not complete, or the connection was closed by us.
        """
        size = len(data)
        if self._closed or not self.secured:
            self._refuse_write()
        if not size:
            return
        self.unsent = True
        if ssl_write(self._ssl, data if type(data) is bytes else pointer_to(data), size) != size:
            # Not by the peer's doing: a memory BIO takes all there is. Out of memory, perhaps.
            self._fail(connection_error(last_fault()))

    def _refuse_write(self) -> NoReturn:
        if self._error is not None:
            raise self._error
        raise LocalProtocolError(
            "the connection was closed" if self._closed else "the TLS handshake is not complete: nothing can be sent"
        )

    def data_to_send(self) -> bytes:
        """Return the ciphertext for the transport, and forget it."""
        if not self.unsent:
            return b""
        self.unsent = False
        buffer = _free_buffers.pop() if _free_buffers else binding.scratch(_SCRATCH)
        size = bio_read(self._from_ssl, buffer, _SCRATCH)
        output = unpack(buffer, size) if size > 0 else b""
        while size == _SCRATCH:
            size = bio_read(self._from_ssl, buffer, _SCRATCH)
            output += unpack(buffer, max(size, 0))
        _free_buffers.append(buffer)
        return output

    def close(self) -> None:
        """Say close_notify, once. What the peer still sends can be read (RFC 8446 6.1)."""
        if self._closed:
            return
        self._closed = True
        if self.secured and self._error is None:
            self.unsent = True
            binding.send_close_notify(self._ssl)
            binding.clear_errors()
            if self._messages is not None:
                self._tell_messages(self._messages)
        else:
            self.abort()

    def abort(self) -> None:
        """
        End it at once, in both directions; nothing is added to the output.

        OpenSSL counts a connection that is simply dropped as broken, and its session with it: this spares the session.
        """
        self._closed = self._ended = True
        binding.mark_shut_down(self._ssl)

    def __del__(self) -> None:
        # The sessions handed over must survive an engine that was dropped without a word.
        if hasattr(self, "_ssl"):
            binding.mark_shut_down(self._ssl)
            if self._messages is not None or self._psk is not None:
                binding.drop_listeners(self._ssl)

    # --- Errors -------------------------------------------------------------------------------------------------------

    def _fail(self, error: RequestError) -> NoReturn:
        self._error = error
        self._closed = self._ended = True
        raise error

    def _reject_peer(self, error: HandshakeError) -> NoReturn:
        """Refuse a peer that OpenSSL accepts. Our end of the handshake, client certificate and all, stays here."""
        self.data_to_send()
        binding.mark_shut_down(self._ssl)
        self._fail(error)

    def _handshake_error(self, fault: Fault) -> HandshakeError:
        offer = Offer(self._context.version_range, self._alpn_protocols)
        return handshake_error(fault, offer, first_bytes=self._first_bytes)


def _key_digest(der: bytes) -> bytes:
    try:
        return PeerCertificate(der).public_key_digest
    except CertificateError:
        return b""  # what cannot be read matches no pin


def _code_of(cause: BaseException) -> str | None:
    code = getattr(cause, "code", None)
    return code if isinstance(code, str) else None


def _identity_error(cause: BaseException) -> CertificateNameError:
    if isinstance(cause, CertificateNameError):
        return cause
    error = CertificateNameError(
        f"check_server_identity refused the server's certificate: {type(cause).__name__}: {quoted(str(cause))}",
        code=_code_of(cause),
        phase="handshake",
    )
    error.__cause__ = cause
    return error
