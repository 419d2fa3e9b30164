"""
The one file that touches private names of pyOpenSSL and of cryptography's OpenSSL binding.

It decides nothing about TLS. It looks up each library function once, gives it a type, and checks on import that all of
them are there: the binding belongs to pyOpenSSL, which drops what it stops using. `Any` ends here: handles are opaque
types of their own, so mixing an `SSL *` with a `BIO *` is a type error elsewhere.

No user code runs inside an OpenSSL callback, the source of a pre-shared key excepted: OpenSSL needs its answer at once.
The callbacks that exist are static and live as long as the module (OpenSSL keeps calling whatever closure takes a
collected one's place).
"""

from __future__ import annotations

from contextvars import ContextVar
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NewType, TypeAlias

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL, crypto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SSLHandle = NewType("SSLHandle", object)
BIOHandle = NewType("BIOHandle", object)
SessionHandle = NewType("SessionHandle", object)
Scratch = NewType("Scratch", object)
# Called with: whether we sent it, the version, the content type, the message.
MessageListener: TypeAlias = "Callable[[bool, int, int, bytes], None]"
# Called with the server's hint, returns identity and key, or None.
PskSource: TypeAlias = "Callable[[bytes | None], tuple[bytes, bytes] | None]"
# Called with the client's identity, returns the key, or None.
PskKeys: TypeAlias = "Callable[[bytes], bytes | None]"


class Fault(NamedTuple):
    """One entry of OpenSSL's error queue; an alert that was received has the number 1000 + its own."""

    number: int
    reason: str


_lib: Any = Binding.lib
_ffi: Any = Binding.ffi

# --- Self-check ---------------------------------------------------------------------------------------------------

_NEEDED: Final = (
    "BIO_free", "BIO_get_mem_data", "BIO_new", "BIO_read", "BIO_s_mem", "BIO_write", "ERR_GET_REASON",
    "BIO_new_mem_buf", "DH_free", "ERR_clear_error", "ERR_get_error", "ERR_reason_error_string",
    "PEM_read_bio_DHparams",
    "SSL_CIPHER_get_name", "SSL_CTX_get0_param", "SSL_CTX_set1_curves_list", "SSL_CTX_set1_sigalgs_list",
    "SSL_CTX_set_cert_store", "SSL_CTX_set_msg_callback", "SSL_CTX_set_psk_client_callback",
    "SSL_CTX_set_psk_find_session_callback", "SSL_CTX_set_psk_server_callback", "SSL_CTX_set_tmp_dh",
    "SSL_CTX_set_verify", "SSL_CTX_use_PrivateKey", "SSL_CTX_use_psk_identity_hint",
    "SSL_ERROR_WANT_READ", "SSL_ERROR_ZERO_RETURN", "SSL_MODE_AUTO_RETRY",
    "SSL_MODE_ENABLE_PARTIAL_WRITE",
    "SSL_RECEIVED_SHUTDOWN", "SSL_SENT_SHUTDOWN", "SSL_SESSION_free", "SSL_SESSION_get_max_early_data",
    "SSL_VERIFY_FAIL_IF_NO_PEER_CERT", "SSL_VERIFY_NONE", "SSL_VERIFY_PEER", "SSL_clear_mode", "SSL_do_handshake",
    "SSL_get0_alpn_selected",
    "SSL_get0_verified_chain", "SSL_get_tlsext_status_ocsp_resp",
    "SSL_get1_session", "SSL_get_current_cipher", "SSL_get_error", "SSL_get_peer_cert_chain",
    "SSL_get_peer_certificate", "SSL_get_session", "SSL_get_verify_result", "SSL_get_version", "SSL_read",
    "SSL_session_reused", "SSL_set_session", "SSL_set_shutdown", "SSL_set_verify", "SSL_shutdown", "SSL_write",
    "X509_STORE_CTX_get_error", "X509_STORE_CTX_get_error_depth", "X509_STORE_up_ref", "X509_free",
    "X509_VERIFY_PARAM_set_flags", "X509_V_FLAG_PARTIAL_CHAIN",
    "d2i_SSL_SESSION", "i2d_SSL_SESSION", "i2d_X509_bio", "sk_X509_num", "sk_X509_value",
)  # fmt: skip


def check(lib: object, connection: object, context: object, store: object) -> None:
    """
    Refuse to be imported beside versions that lack what is used here.

    Args:
        lib: The binding.
        connection, context, store: Throw-away pyOpenSSL objects, looked at for their private attributes.
    """
    missing = [*_lacking(lib, _NEEDED), *_lacking(connection, ("_ssl", "_into_ssl", "_from_ssl"))]
    missing += [*_lacking(context, ("_context",)), *_lacking(store, ("_store",))]
    if missing:
        raise ImportError(
            f"tlsagent cannot work with pyOpenSSL {version('pyOpenSSL')} and cryptography {version('cryptography')}: "
            f"they lack {', '.join(missing)}. Install pyOpenSSL>=26.3 and cryptography>=49, or a newer tlsagent."
        )


def _lacking(thing: object, names: Iterable[str]) -> list[str]:
    return [name for name in names if not hasattr(thing, name)]


def _check_installed() -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    check(_lib, SSL.Connection(context, None), context, crypto.X509Store())


_check_installed()

# --- Called for every piece of data -------------------------------------------------------------------------------

# Each call drops the GIL and takes it again, so the engine makes few of them.
ssl_read: Final[Callable[[SSLHandle, Scratch, int], int]] = _lib.SSL_read
bio_read: Final[Callable[[BIOHandle, Scratch, int], int]] = _lib.BIO_read
ssl_error: Final[Callable[[SSLHandle, int], int]] = _lib.SSL_get_error
unpack: Final[Callable[[Scratch, int], bytes]] = _ffi.unpack
# The library takes bytes as they are; every other buffer goes through `pointer_to`.
ssl_write: Final[Callable[[SSLHandle, object, int], int]] = _lib.SSL_write
bio_write: Final[Callable[[BIOHandle, object, int], int]] = _lib.BIO_write
pointer_to: Final[Callable[[bytes | bytearray | memoryview], object]] = _ffi.from_buffer
# Borrowed, only good for a comparison with a session that is held: a freed one's address is used again.
borrowed_session: Final[Callable[[SSLHandle], object]] = _lib.SSL_get_session

WANT_READ: Final[int] = _lib.SSL_ERROR_WANT_READ
CLOSE_NOTIFY: Final[int] = _lib.SSL_ERROR_ZERO_RETURN

_NULL: Final[Any] = _ffi.NULL
_get_mem_data: Final[Callable[[object, object], int]] = _lib.BIO_get_mem_data
_uncleared: Final = _ffi.new_allocator(should_clear_after_alloc=False)


def bio_pending(bio: BIOHandle) -> int:
    """Return how many bytes wait in a memory BIO."""
    return _get_mem_data(bio, _NULL)


def scratch(size: int) -> Scratch:
    """Allocate a buffer; its contents are whatever was there."""
    return Scratch(_uncleared("char[]", size))


def advanced(buffer: Scratch, by: int) -> Scratch:
    """Return the address `by` bytes into a buffer, which must be kept alive."""
    return Scratch(buffer + by)  # type: ignore[operator]  # pointer arithmetic


ENABLE_PARTIAL_WRITE: Final[int] = _lib.SSL_MODE_ENABLE_PARTIAL_WRITE

# --- Connections --------------------------------------------------------------------------------------------------

_do_handshake: Final[Callable[[SSLHandle], int]] = _lib.SSL_do_handshake
clear_errors: Final[Callable[[], None]] = _lib.ERR_clear_error
verify_result: Final[Callable[[SSLHandle], int]] = _lib.SSL_get_verify_result
send_close_notify: Final[Callable[[SSLHandle], int]] = _lib.SSL_shutdown
_set_shutdown: Final = _lib.SSL_set_shutdown
_BOTH_WAYS: Final[int] = _lib.SSL_SENT_SHUTDOWN | _lib.SSL_RECEIVED_SHUTDOWN


def handles(connection: SSL.Connection) -> tuple[SSLHandle, BIOHandle, BIOHandle]:
    """
    Return the pointers of a connection and of its BIOs for input and output.

    They are good as long as `connection` lives. Its SSL_read then stops after every record that holds no application
    data, so that no session ticket slips by: pyOpenSSL sets AUTO_RETRY on each connection.
    """
    ssl = connection._ssl
    _lib.SSL_clear_mode(ssl, _lib.SSL_MODE_AUTO_RETRY)
    return SSLHandle(ssl), BIOHandle(connection._into_ssl), BIOHandle(connection._from_ssl)


def mark_shut_down(ssl: SSLHandle) -> None:
    """Mark both directions as shut down: an SSL freed without that makes its session unusable."""
    _set_shutdown(ssl, _BOTH_WAYS)


def session_reused(ssl: SSLHandle) -> bool:
    """Return whether the server took the session that was offered."""
    return bool(_lib.SSL_session_reused(ssl))


def protocol_version(ssl: SSLHandle) -> str:
    """Return the negotiated version, "TLSv1.3"."""
    return _text(_lib.SSL_get_version(ssl)) or ""


def cipher_name(ssl: SSLHandle) -> str:
    """Return OpenSSL's name of the cipher suite; only after the handshake."""
    return _text(_lib.SSL_CIPHER_get_name(_lib.SSL_get_current_cipher(ssl))) or ""


def group_name(ssl: SSLHandle) -> str | None:
    """Return the key exchange group; only after the handshake, since OpenSSL reads the session without looking."""
    get = getattr(_lib, "SSL_get0_group_name", None)
    return _text(get(ssl)) if get is not None else None


def alpn_selected(ssl: SSLHandle) -> str | None:
    """Return the protocol the server chose by ALPN, one character per byte."""
    data, size = _ffi.new("unsigned char **"), _ffi.new("unsigned int *")
    _lib.SSL_get0_alpn_selected(ssl, data, size)
    return str(_ffi.buffer(data[0], size[0])[:], "latin-1") if size[0] else None


def peer_certificate(ssl: SSLHandle) -> bytes | None:
    """Return the DER of the server's own certificate; after a resumption it comes from the session."""
    certificate = _lib.SSL_get_peer_certificate(ssl)
    if certificate == _NULL:
        return None
    try:
        return _der(certificate)
    finally:
        _lib.X509_free(certificate)


def peer_chain(ssl: SSLHandle) -> tuple[bytes, ...]:
    """Return the DER of every certificate that the server sent in this handshake, its own first."""
    return _ders(_lib.SSL_get_peer_cert_chain(ssl))


def ocsp_response(ssl: SSLHandle) -> bytes | None:
    """Return the OCSP response that the server stapled (RFC 6066 section 8), DER."""
    data = _ffi.new("unsigned char **")
    size = _lib.SSL_get_tlsext_status_ocsp_resp(ssl, data)
    return bytes(_ffi.buffer(data[0], size)) if size > 0 else None


def _ders(stack: object) -> tuple[bytes, ...]:
    if stack == _NULL:
        return ()
    return tuple(_der(_lib.sk_X509_value(stack, index)) for index in range(_lib.sk_X509_num(stack)))


def _der(certificate: object) -> bytes:
    bio = _lib.BIO_new(_lib.BIO_s_mem())
    try:
        _lib.i2d_X509_bio(bio, certificate)
        data = _ffi.new("char **")
        return bytes(_ffi.buffer(data[0], size)) if (size := _get_mem_data(bio, data)) > 0 else b""
    finally:
        _lib.BIO_free(bio)


def _text(pointer: object) -> str | None:
    return None if pointer == _NULL else str(_ffi.string(pointer), "ascii", "replace")


# --- Callbacks ----------------------------------------------------------------------------------------------------

# An interrupt that strikes inside a callback cannot pass through OpenSSL: it waits here until the call returns.
_interrupt: Final[ContextVar[BaseException | None]] = ContextVar("interrupt", default=None)


def _keep_interrupt(_kind: object, error: BaseException, _traceback: object) -> None:
    _interrupt.set(error)


def handshake(ssl: SSLHandle) -> int:
    """Carry the handshake on (SSL_do_handshake); raises what struck inside a callback meanwhile."""
    result = _do_handshake(ssl)
    struck = _interrupt.get()
    if struck is not None:
        _interrupt.set(None)
        clear_errors()
        raise struck
    return result


# --- Verification -------------------------------------------------------------------------------------------------


@_ffi.callback("int(int, X509_STORE_CTX *)", onerror=_keep_interrupt)  # type: ignore[untyped-decorator]  # untyped
def _lax(_ok: int, _store_context: object) -> int:
    return 1


@_ffi.callback("int(int, X509_STORE_CTX *)", onerror=_keep_interrupt)  # type: ignore[untyped-decorator]  # as above
def _strict(ok: int, store_context: object) -> int:
    # Going on after an error and refusing at the end leaves the *last* error as the result, as Node has it; stopping at
    # the first one would say UNABLE_TO_GET_ISSUER_CERT_LOCALLY where Node says UNABLE_TO_VERIFY_LEAF_SIGNATURE.
    if not ok or _lib.X509_STORE_CTX_get_error_depth(store_context):
        return 1
    return int(_lib.X509_STORE_CTX_get_error(store_context) == 0)


def set_verification(ssl: SSLHandle, strict: bool) -> None:
    """
    Let a client's handshake fail on a bad chain, or not.

    Either way the verdict must be read afterwards (`verify_result`): OpenSSL finds some errors after it has asked the
    callback for the last time, and asks nobody when a session is resumed.
    """
    if strict:
        _lib.SSL_set_verify(ssl, _lib.SSL_VERIFY_PEER, _strict)
    else:
        _lib.SSL_set_verify(ssl, _lib.SSL_VERIFY_NONE, _lax)


def set_context_verification(context: SSL.Context, request_certificate: bool) -> None:
    """
    Say what a server demands of its clients: nothing, or a certificate in order.

    A client ignores the second half and says for each connection what it wants (`set_verification`).
    """
    if request_certificate:
        mode = _lib.SSL_VERIFY_PEER | _lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT
        _lib.SSL_CTX_set_verify(context._context, mode, _strict)
    else:
        _lib.SSL_CTX_set_verify(context._context, _lib.SSL_VERIFY_NONE, _lax)


def allow_partial_chain(context: SSL.Context) -> None:
    """Let any trusted certificate end a chain. The store, which others may share, is not touched."""
    _lib.X509_VERIFY_PARAM_set_flags(_lib.SSL_CTX_get0_param(context._context), _lib.X509_V_FLAG_PARTIAL_CHAIN)


def verified_chain(ssl: SSLHandle) -> tuple[bytes, ...]:
    """Return the DER of the chain that OpenSSL built, leaf first and root last; empty after a resumption."""
    return _ders(_lib.SSL_get0_verified_chain(ssl))


def share_store(context: SSL.Context, store: crypto.X509Store) -> None:
    """Let a context use a store together with others."""
    _lib.X509_STORE_up_ref(store._store)  # the next call takes a reference over
    _lib.SSL_CTX_set_cert_store(context._context, store._store)


# --- Contexts -----------------------------------------------------------------------------------------------------


def use_private_key(context: SSL.Context, key: crypto.PKey) -> bool:
    """Use a key that only OpenSSL can reach; False if it does not belong to the certificate set before."""
    return _done(_lib.SSL_CTX_use_PrivateKey(context._context, key._pkey))


def set_groups(context: SSL.Context, names: str) -> bool:
    """Set the groups for key exchange, best first; False if OpenSSL refuses the list."""
    return _done(_lib.SSL_CTX_set1_curves_list(context._context, names.encode("ascii")))


def set_signature_algorithms(context: SSL.Context, names: str) -> bool:
    """Set the signature algorithms, best first; False if OpenSSL refuses the list."""
    return _done(_lib.SSL_CTX_set1_sigalgs_list(context._context, names.encode("ascii")))


def is_dh_group(pem: bytes) -> bool:
    """Whether OpenSSL can read these DH parameters."""
    return _dh_group(pem) is not None


def set_dh_parameters(context: SSL.Context, pem: bytes) -> bool:
    """Set a server's DH group; False if it is too weak for the security level."""
    return _done(_lib.SSL_CTX_set_tmp_dh(context._context, _dh_group(pem)))


def _dh_group(pem: bytes) -> object | None:
    bio = _lib.BIO_new_mem_buf(pem, len(pem))
    group = _lib.PEM_read_bio_DHparams(bio, _NULL, _NULL, _NULL)
    _lib.BIO_free(bio)
    if group == _NULL:
        clear_errors()
        return None
    held: object = _ffi.gc(group, _lib.DH_free)
    return held


def _done(result: int) -> bool:
    if result != 1:
        clear_errors()
    return bool(result == 1)


# --- Callbacks for single connections -----------------------------------------------------------------------------

# OpenSSL takes them only for a whole context: contexts made for it call here, and here it is looked up who wants it.
_message_listeners: Final[dict[int, MessageListener]] = {}
_psk_sources: Final[dict[int, PskSource]] = {}
_psk_keys: Final[dict[int, PskKeys]] = {}
_psk_identities: Final[dict[int, bytes]] = {}  # of TLS 1.3, about to be asked for


def _address(ssl: object) -> int:
    return int(_ffi.cast("uintptr_t", ssl))


@_ffi.callback("void(int, int, int, void *, size_t, SSL *, void *)")  # type: ignore[untyped-decorator]  # as above
def _message(sent: int, version: int, kind: int, data: object, size: int, ssl: object, _argument: object) -> None:
    if kind < _PSEUDO_TYPES and (listener := _message_listeners.get(_address(ssl))) is not None:
        listener(bool(sent), version, kind, bytes(_ffi.buffer(data, size)))


# 256 is a record header, 257 the inner type of a TLS 1.3 record.
_PSEUDO_TYPES: Final = 256


@_ffi.callback(  # type: ignore[untyped-decorator]  # as above
    "unsigned int(SSL *, char *, char *, unsigned int, unsigned char *, unsigned int)", onerror=_keep_interrupt
)
def _psk(ssl: object, hint: Any, identity: object, identity_size: int, key: object, key_size: int) -> int:
    source = _psk_sources.get(_address(ssl))
    found = source(None if hint == _NULL else bytes(_ffi.string(hint))) if source is not None else None
    if found is None or len(found[0]) >= identity_size or len(found[1]) > key_size:
        return 0
    _ffi.memmove(identity, found[0] + b"\0", len(found[0]) + 1)
    _ffi.memmove(key, found[1], len(found[1]))
    return len(found[1])


@_ffi.callback(  # type: ignore[untyped-decorator]  # as above
    "int(SSL *, const unsigned char *, size_t, SSL_SESSION **)"
)
def _note_identity(ssl: object, identity: object, size: int, session: Any) -> int:
    # OpenSSL asks about session tickets too, and then passes them on as text, cut at a NUL: a few letters may be left.
    _psk_identities[_address(ssl)] = bytes(_ffi.buffer(identity, size))
    session[0] = _NULL
    return 1


@_ffi.callback(  # type: ignore[untyped-decorator]  # as above
    "unsigned int(SSL *, char *, unsigned char *, unsigned int)"
)
def _psk_of_client(ssl: object, identity: object, key: object, key_size: int) -> int:
    whole = _psk_identities.pop(_address(ssl), None)
    keys = _psk_keys.get(_address(ssl))
    found = keys(whole or bytes(_ffi.string(identity))) if keys is not None else None
    if found is None or len(found) > key_size:
        return 0
    _ffi.memmove(key, found, len(found))
    return len(found)


def watch_messages(context: SSL.Context) -> None:
    """Let connections of this context have a message listener."""
    _lib.SSL_CTX_set_msg_callback(context._context, _message)


def offer_psk(context: SSL.Context) -> None:
    """Let connections of this context have a source of pre-shared keys."""
    _lib.SSL_CTX_set_psk_client_callback(context._context, _psk)


def take_psk(context: SSL.Context) -> None:
    """Let a server's connections of this context take pre-shared keys."""
    _lib.SSL_CTX_set_psk_find_session_callback(context._context, _note_identity)
    _lib.SSL_CTX_set_psk_server_callback(context._context, _psk_of_client)


def set_psk_hint(context: SSL.Context, hint: bytes) -> bool:
    """Set what a server of TLS 1.2 says for a client to choose its key by; False if it is too long."""
    return _done(_lib.SSL_CTX_use_psk_identity_hint(context._context, hint))


def set_listeners(ssl: SSLHandle, messages: MessageListener | None, psk: PskSource | None) -> None:
    """
    Attach listeners to a connection, until `drop_listeners`.

    They are called inside OpenSSL, must not raise, and must not hold the connection.
    """
    if messages is not None:
        _message_listeners[_address(ssl)] = messages
    if psk is not None:
        _psk_sources[_address(ssl)] = psk


def set_psk_keys(ssl: SSLHandle, keys: PskKeys) -> None:
    """Give a server's connection the keys of its clients, until `drop_listeners`; else as `set_listeners`."""
    _psk_keys[_address(ssl)] = keys


def drop_listeners(ssl: SSLHandle) -> None:
    """Forget the listeners; to be called before the connection is freed, since its address is used again."""
    _message_listeners.pop(_address(ssl), None)
    _psk_sources.pop(_address(ssl), None)
    _psk_keys.pop(_address(ssl), None)
    _psk_identities.pop(_address(ssl), None)


# --- Sessions -----------------------------------------------------------------------------------------------------


def held_session(ssl: SSLHandle) -> SessionHandle | None:
    """Return the connection's session with a reference of its own."""
    session = _lib.SSL_get1_session(ssl)
    return None if session == _NULL else SessionHandle(_ffi.gc(session, _lib.SSL_SESSION_free))


def offer_session(ssl: SSLHandle, session: SessionHandle) -> None:
    """Offer a session in the handshake to come; one that OpenSSL cannot use there leads to a full handshake."""
    _lib.SSL_set_session(ssl, session)


def max_early_data(session: SessionHandle) -> int:
    """Return how many bytes of early data the session's server takes."""
    return int(_lib.SSL_SESSION_get_max_early_data(session))


def session_to_der(session: SessionHandle) -> bytes:
    """Return OpenSSL's encoding of a session. It holds secrets."""
    size = _lib.i2d_SSL_SESSION(session, _NULL)
    data = _ffi.new("unsigned char[]", max(size, 1))
    _lib.i2d_SSL_SESSION(session, _ffi.new("unsigned char **", data))
    return bytes(_ffi.buffer(data, max(size, 0)))


def session_from_der(data: bytes) -> SessionHandle | None:
    """Return the session that `data` encodes; None if it is anything else."""
    source = _ffi.from_buffer("unsigned char[]", data)
    cursor = _ffi.new("unsigned char **", source)
    session = _lib.d2i_SSL_SESSION(_NULL, cursor, len(data))
    if session == _NULL:
        clear_errors()
        return None
    held = SessionHandle(_ffi.gc(session, _lib.SSL_SESSION_free))
    return held if cursor[0] == source + len(data) else None


# --- Errors -------------------------------------------------------------------------------------------------------


def take_faults() -> list[Fault]:
    """Empty this thread's error queue, oldest first. What others left in it comes along: trust the last entry."""
    faults = []
    while code := _lib.ERR_get_error():
        reason = _text(_lib.ERR_reason_error_string(code))
        faults.append(Fault(_lib.ERR_GET_REASON(code), reason or "unknown"))
    return faults
