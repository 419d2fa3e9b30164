"""
The one file that touches private names of pyOpenSSL and of cryptography's OpenSSL binding.

It decides nothing about TLS. It looks up each library function once, gives it a type, and checks on import that all of
them are there: the binding belongs to pyOpenSSL, which drops what it stops using. `Any` ends here: handles are opaque
types of their own, so mixing an `SSL *` with a `BIO *` is a type error elsewhere.

No user code ever runs inside an OpenSSL callback. The two that exist are static, live as long as the module (OpenSSL
keeps calling whatever closure takes a collected one's place) and only return numbers.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NewType

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL, crypto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SSLHandle = NewType("SSLHandle", object)
BIOHandle = NewType("BIOHandle", object)
SessionHandle = NewType("SessionHandle", object)
Scratch = NewType("Scratch", object)


class Fault(NamedTuple):
    """One entry of OpenSSL's error queue; an alert that was received has the number 1000 + its own."""

    number: int
    reason: str


_lib: Any = Binding.lib
_ffi: Any = Binding.ffi

# --- Self-check ---------------------------------------------------------------------------------------------------

_NEEDED: Final = (
    "BIO_free", "BIO_get_mem_data", "BIO_new", "BIO_read", "BIO_s_mem", "BIO_write", "ERR_GET_REASON",
    "ERR_clear_error", "ERR_get_error", "ERR_reason_error_string", "SSL_CIPHER_get_name", "SSL_CTX_set_cert_store",
    "SSL_CTX_set_verify", "SSL_ERROR_WANT_READ", "SSL_ERROR_ZERO_RETURN", "SSL_MODE_AUTO_RETRY",
    "SSL_MODE_ENABLE_PARTIAL_WRITE",
    "SSL_RECEIVED_SHUTDOWN", "SSL_SENT_SHUTDOWN", "SSL_SESSION_free", "SSL_SESSION_get_max_early_data",
    "SSL_VERIFY_NONE", "SSL_VERIFY_PEER", "SSL_clear_mode", "SSL_do_handshake", "SSL_get0_alpn_selected",
    "SSL_get1_session", "SSL_get_current_cipher", "SSL_get_error", "SSL_get_peer_cert_chain",
    "SSL_get_peer_certificate", "SSL_get_session", "SSL_get_verify_result", "SSL_get_version", "SSL_read",
    "SSL_session_reused", "SSL_set_session", "SSL_set_shutdown", "SSL_set_verify", "SSL_shutdown", "SSL_write",
    "X509_STORE_CTX_get_error", "X509_STORE_CTX_get_error_depth", "X509_STORE_up_ref", "X509_free",
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

handshake: Final[Callable[[SSLHandle], int]] = _lib.SSL_do_handshake
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
    stack = _lib.SSL_get_peer_cert_chain(ssl)
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


# --- Verification -------------------------------------------------------------------------------------------------


@_ffi.callback("int(int, X509_STORE_CTX *)")  # type: ignore[untyped-decorator]  # the binding has no types
def _lax(_ok: int, _store_context: object) -> int:
    return 1


@_ffi.callback("int(int, X509_STORE_CTX *)")  # type: ignore[untyped-decorator]  # as above
def _strict(ok: int, store_context: object) -> int:
    # Going on after an error and refusing at the end leaves the *last* error as the result, as Node has it; stopping at
    # the first one would say UNABLE_TO_GET_ISSUER_CERT_LOCALLY where Node says UNABLE_TO_VERIFY_LEAF_SIGNATURE.
    if not ok or _lib.X509_STORE_CTX_get_error_depth(store_context):
        return 1
    return int(_lib.X509_STORE_CTX_get_error(store_context) == 0)


def _rule(strict: bool) -> tuple[int, object]:
    return (_lib.SSL_VERIFY_PEER, _strict) if strict else (_lib.SSL_VERIFY_NONE, _lax)


def set_context_verification(context: SSL.Context, strict: bool) -> None:
    """
    Let handshakes fail on a bad chain, or not.

    Either way the verdict must be read afterwards (`verify_result`): OpenSSL finds some errors after it has asked the
    callback for the last time, and asks nobody when a session is resumed.
    """
    _lib.SSL_CTX_set_verify(context._context, *_rule(strict))


def set_verification(ssl: SSLHandle, strict: bool) -> None:
    """Do what `set_context_verification` does, for one connection."""
    _lib.SSL_set_verify(ssl, *_rule(strict))


def share_store(context: SSL.Context, store: crypto.X509Store) -> None:
    """Let a context use a store together with others."""
    _lib.X509_STORE_up_ref(store._store)  # the next call takes a reference over
    _lib.SSL_CTX_set_cert_store(context._context, store._store)


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
