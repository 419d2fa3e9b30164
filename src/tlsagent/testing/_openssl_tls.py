"""
The TLS floor of the server on pyOpenSSL, for what the standard library's ssl cannot do.

It shares its contexts with the client (`tlsagent._tls.context` makes them) and gives them what a server needs besides:
a session cache, an answer to ALPN, the choice by server name, pre-shared keys. User code runs inside OpenSSL in two
places, `sni_callback` and `psk_callback`; what they raise ends that connection and stands in its record.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

from OpenSSL import SSL

from tlsagent._material import binding
from tlsagent._secure_context import create_secure_context
from tlsagent._tls.context import SecureContext
from tlsagent._tls.listeners import PskKeys
from tlsagent._tls.verify import verify_error_name
from tlsagent.errors import OptionError, OptionTypeError
from tlsagent.testing._tls import NO_CLIENT_CERTIFICATE, Stall, TLSFacts, TLSFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._option_rules import PskServerCallback
    from tlsagent.testing._settings import ServerSettings

_RECORD_SIZE: Final = 16_384
_ALERT_INTERNAL_ERROR: Final = b"\x15\x03\x03\x00\x02\x02\x50"
_KEPT_CONTEXTS: Final = 64
# OpenSSL takes a pre-shared key of TLS 1.3 for one of SHA-256: a suite of another hash would not use it.
_PSK_CIPHERS: Final = (
    "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384:HIGH:!aNULL:!eNULL:!MD5:!SRP:!CAMELLIA"
)


class OpenSSLContext:
    """
    What the connections of a server share: contexts, ticket keys, the session cache. Called for each connection.

    Args:
        settings: How the server speaks TLS.
        sessions: Whose ticket keys and session cache to use; by default fresh ones.

    Raises:
        OptionError: OpenSSL refuses what the settings say.
    """

    __slots__ = ("_context", "_prepared", "_psk_callback", "_sessions", "_settings", "_sni_callback")

    def __init__(self, settings: ServerSettings, sessions: SSL.Context | None = None) -> None:
        self._settings = settings
        self._prepared = functools.lru_cache(_KEPT_CONTEXTS)(self._prepare)
        own = _material(settings)
        self._sni_callback: Any = settings.options.get("sni_callback") or own.sni_callback
        self._psk_callback: PskServerCallback | None = settings.options.get("psk_callback")
        self._context = self._prepare(own)
        self._sessions = sessions or self._context

    def under(self, settings: ServerSettings) -> OpenSSLContext:
        """Return the same for other settings, with the sessions of this one."""
        return OpenSSLContext(settings, self._sessions)

    def __call__(self, *, stall_at: str | None = None) -> OpenSSLTLS:
        """Return the floor of a new connection."""
        connection = SSL.Connection(self._sessions)
        if self._context is not self._sessions:
            connection.set_context(self._context)  # OpenSSL leaves tickets and cache with the first one
        return OpenSSLTLS(
            connection,
            request_cert=self._settings.request_cert,
            psk_callback=self._psk_callback,
            stall_at=stall_at,
        )

    def _prepare(self, secure: SecureContext) -> SSL.Context:
        """Return a context of the same content that is this server's own, since a used one cannot be changed."""
        context = secure.unshared(request_cert=bool(self._settings.request_cert))
        if self._settings.session_ids or self._settings.tickets == 0:
            context.set_options(SSL.OP_NO_TICKET)
        if self._settings.tickets != 0:
            context.set_session_cache_mode(SSL.SESS_CACHE_SERVER)
        if self._settings.alpn_protocols:
            context.set_alpn_select_callback(_choice(self._settings.alpn_protocols))
        if self._settings.ocsp_response:
            staple = self._settings.ocsp_response
            context.set_ocsp_server_callback(lambda _connection, _data: staple)
        if self._psk_callback is not None:
            binding.take_psk(context)
            _set_hint(context, self._settings.psk_identity_hint)
        if self._sni_callback is not None:
            context.set_tlsext_servername_callback(self._switch)
        return context

    def _switch(self, connection: SSL.Connection) -> None:
        name = connection.get_servername()
        if name is None:
            return
        try:
            chosen = self._sni_callback(name.decode("ascii", "backslashreplace"))
            if chosen is not None:
                connection.set_context(self._prepared(_acceptable(chosen)))
        except BaseException as exc:  # noqa: BLE001 - pyOpenSSL would print it; the floor raises it outside OpenSSL
            note: _Note = connection.get_app_data()
            note.error = exc


def _set_hint(context: SSL.Context, hint: str | None) -> None:
    if hint is not None and not binding.set_psk_hint(context, hint.encode()):
        raise OptionError("psk_identity_hint is too long", code="ERR_TLS_PSK_SET_IDENTITY_HINT_FAILED")


def _acceptable(chosen: object) -> SecureContext:
    if not isinstance(chosen, SecureContext):
        raise OptionTypeError(f"sni_callback must return a SecureContext or None, not {type(chosen).__name__}")
    if chosen.role == "client":
        raise OptionError("sni_callback returned a SecureContext that was made with a secure_protocol for clients")
    return chosen


def _material(settings: ServerSettings) -> SecureContext:
    options: dict[str, Any] = {**settings.options}
    for hook in ("sni_callback", "psk_callback"):
        options.pop(hook, None)
    given: SecureContext | None = options.pop("secure_context", None)
    if given is not None:
        return given
    # ssl prefers the server's order, and so does Node.
    options = {"honor_cipher_order": True, **options}
    return create_secure_context(
        **options
        | {
            "cert": settings.credentials.cert_pem,
            "key": settings.credentials.key_pem,
            "ca": settings.client_ca,
            "ciphers": settings.ciphers or (_PSK_CIPHERS if "psk_callback" in settings.options else None),
            "ecdh_curve": settings.ecdh_curve,
            "session_id_context": settings.session_id_context,
            "min_version": settings.min_version,
            "max_version": settings.max_version,
        }
    )


def _choice(ours: tuple[str, ...]) -> Callable[[SSL.Connection, list[bytes]], Any]:
    """Return the callback that answers a client's ALPN offer; without overlap there is no answer, as with ssl."""
    protocols = [name.encode("latin-1") for name in ours]

    def choose(_connection: SSL.Connection, offered: list[bytes]) -> Any:
        return next((one for one in protocols if one in offered), SSL.NO_OVERLAPPING_PROTOCOLS)

    return choose


class _Note:
    """What the callbacks of a connection leave for its floor."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: BaseException | None = None


class OpenSSLTLS:
    """`TLSFloor` over `SSL.Connection` and memory BIOs; `OpenSSLContext` makes it."""

    __slots__ = (
        "_connection", "_input", "_keys", "_note", "_output", "_refusal", "_request_cert", "_ssl", "_stall", "facts",
        "peer_closed",
    )  # fmt: skip

    def __init__(
        self,
        connection: SSL.Connection,
        *,
        request_cert: bool | str,
        psk_callback: PskServerCallback | None,
        stall_at: str | None,
    ) -> None:
        self._connection = connection
        self._ssl, self._input, self._output = binding.handles(connection)
        self._note = _Note()
        self._keys = PskKeys(psk_callback) if psk_callback is not None else None
        if self._keys is not None:
            binding.set_psk_keys(self._ssl, self._keys)
        self._request_cert = request_cert
        self._refusal: bytes | None = None  # sent in place of what OpenSSL has to say
        self._stall = Stall(stall_at, bool(request_cert)) if stall_at else None
        self.facts: TLSFacts | None = None
        self.peer_closed = False
        connection.set_app_data(self._note)
        connection.set_accept_state()
        self._set_verification()

    def __del__(self) -> None:
        binding.drop_listeners(self._ssl)

    def _set_verification(self) -> None:
        # The first call brings the way to judge, the second, which leaves that as it is, when to ask.
        binding.set_verification(self._ssl, strict=self._request_cert != "any")
        mode = SSL.VERIFY_PEER if self._request_cert else SSL.VERIFY_NONE
        if self._request_cert == "demand":
            mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        self._connection.set_verify(mode)

    def receive_data(self, data: bytes | bytearray | memoryview) -> bytes:
        self._connection.bio_write(bytes(data))
        try:
            if self.facts is None and not self._handshake():
                return b""
            return self._read()
        except SSL.Error as exc:
            raise TLSFailure(_reason(exc)) from exc

    def _handshake(self) -> bool:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        else:
            self.facts = self._agreed()
            return True
        finally:
            self._tell_failed_hook()

    def _tell_failed_hook(self) -> None:
        """Raise what a hook of the user's raised inside OpenSSL."""
        of_keys = self._keys.error if self._keys is not None else None
        for hook, error in (("sni_callback", self._note.error), ("psk_callback", of_keys)):
            if error is not None:
                self._refusal = _ALERT_INTERNAL_ERROR  # nothing that we sent was encrypted: neither need this be
                raise TLSFailure(f"{hook}: {error!r}") from error

    def _agreed(self) -> TLSFacts:
        certificate = binding.peer_certificate(self._ssl)
        result = binding.verify_result(self._ssl) if certificate is not None else 0
        problem = verify_error_name(result) if result else None
        if problem is not None and self._request_cert != "any":
            # OpenSSL finds some errors after the last moment to refuse, and asks nobody when a session is resumed.
            self._refusal = b""
            raise TLSFailure(problem)
        psk_identity = self._psk_identity()
        session_reused = binding.session_reused(self._ssl) and psk_identity is None
        if certificate is None and self._request_cert and not session_reused and psk_identity is None:
            problem = NO_CLIENT_CERTIFICATE
        return TLSFacts(
            version=self._connection.get_protocol_version_name(),
            cipher=binding.cipher_name(self._ssl),
            alpn=binding.alpn_selected(self._ssl),
            session_reused=session_reused,
            client_certificate=certificate,
            authorization_error=problem,
            psk_identity=psk_identity,
        )

    def _psk_identity(self) -> str | None:
        """Return whose pre-shared key the handshake rests on."""
        if self._keys is None:
            return None
        # In TLS 1.3 a key that was given is not used beside a suite of another hash.
        tls13 = self._connection.get_protocol_version_name() == "TLSv1.3"
        return self._keys.identity if not tls13 or binding.session_reused(self._ssl) else None

    def _read(self) -> bytes:
        pieces = []
        while binding.bio_pending(self._input) or self._connection.pending():
            try:
                pieces.append(self._connection.recv(_RECORD_SIZE))
            except SSL.WantReadError:
                continue  # that record held no data; of a part of one, nothing is left in the BIO
            except SSL.ZeroReturnError:
                self.peer_closed = True
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, data: bytes) -> None:
        self._connection.send(data)

    def data_to_send(self) -> bytes:
        waiting = binding.bio_pending(self._output)
        data = self._connection.bio_read(waiting) if waiting else b""
        if self._refusal is not None:
            data, self._refusal = self._refusal, b""
        if self._stall is None:
            return data
        data = self._stall.admit(data, resumed=binding.session_reused(self._ssl))
        if self.facts is not None and not self._stall.stalled:
            self._stall = None  # the handshake and its tickets are out; what follows is application data
        return data

    def close(self) -> None:
        if self.facts is None:
            return
        with contextlib.suppress(SSL.Error):
            self._connection.shutdown()


def _reason(exc: SSL.Error) -> str:
    """Return OpenSSL's reason as ssl spells it."""
    reasons = [reason for _library, _function, reason in exc.args[0]] if exc.args and exc.args[0] else []
    return reasons[-1].upper().replace(" ", "_") if reasons else str(exc) or "UNEXPECTED_EOF_WHILE_READING"
