"""
What listens inside a handshake: the messages, for `enable_trace` and `min_dh_size`, and `psk_callback`, the source of
pre-shared keys, a client's and a server's.

All of it runs inside OpenSSL and only notes down what it finds; the engine draws the conclusions. The source of keys is
the one hook of the user's that has to run there, since OpenSSL needs its answer at once.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import TYPE_CHECKING, Final

from tlsagent._option_rules import Psk, psk_key
from tlsagent._tls.alerts import alert_name
from tlsagent.errors import OptionTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._option_rules import PskCallback, PskServerCallback

_HANDSHAKE: Final = 22
_ALERT: Final = 21
_SERVER_KEY_EXCHANGE: Final = 12

_VERSIONS: Final = {0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}
_KINDS: Final = {20: "change_cipher_spec", _ALERT: "alert", _HANDSHAKE: "handshake"}
# RFC 8446 section 4 and appendix B.3; IANA's TLS HandshakeType registry.
_MESSAGES: Final = {
    0: "hello_request", 1: "client_hello", 2: "server_hello", 4: "new_session_ticket", 5: "end_of_early_data",
    8: "encrypted_extensions", 11: "certificate", _SERVER_KEY_EXCHANGE: "server_key_exchange",
    13: "certificate_request", 14: "server_hello_done", 15: "certificate_verify", 16: "client_key_exchange",
    20: "finished", 21: "certificate_url", 22: "certificate_status", 24: "key_update", 25: "compressed_certificate",
    254: "message_hash",
}  # fmt: skip


class MessageListener:
    """
    Notes down the messages of one connection.

    Attributes:
        server_key_exchange: The server's share in a key exchange of TLS 1.2, or empty.
    """

    __slots__ = ("_lines", "server_key_exchange")

    def __init__(self, *, trace: bool) -> None:
        self.server_key_exchange = b""
        self._lines: list[str] | None = [] if trace else None

    def __call__(self, sent: bool, version: int, kind: int, message: bytes) -> None:
        """Take one message."""
        if kind == _HANDSHAKE and not sent and message[:1] == bytes((_SERVER_KEY_EXCHANGE,)):
            self.server_key_exchange = message
        if self._lines is not None:
            self._lines.append(_line(sent, version, kind, message))

    def take_lines(self) -> list[str]:
        """Return what the messages since the last call say, one line each."""
        lines = self._lines or []
        if lines:
            self._lines = []
        return lines


def _line(sent: bool, version: int, kind: int, message: bytes) -> str:
    what = _KINDS.get(kind, f"content type {kind}")
    detail = ""
    if kind == _HANDSHAKE and message:
        detail = " " + _MESSAGES.get(message[0], f"message {message[0]}")
    elif kind == _ALERT and len(message) == 2:
        detail = f" {'fatal' if message[0] == 2 else 'warning'} {alert_name(message[1])}"
    protocol = _VERSIONS.get(version, f"version 0x{version:04x}")
    return f"{'>>>' if sent else '<<<'} {protocol} {what}{detail} ({len(message)} bytes)"


def stderr_tracer(name: str) -> Callable[[str], None]:
    """Return what `enable_trace` writes with: each line with the connection's name before it."""

    def write(line: str) -> None:
        # Standard error may be closed or gone; that is no reason for a connection to fail.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"{name} {line}\n")

    return write


def dh_bits(server_key_exchange: bytes, cipher: str) -> int | None:
    """Return the size of the group of a finite-field key exchange of TLS 1.2; None for every other kind."""
    if not cipher.startswith(("DHE-", "EDH-", "ADH-")):
        return None
    at = 4  # behind type and length
    if "-PSK-" in cipher:  # RFC 4279 section 3: a hint stands in front
        at += 2 + int.from_bytes(server_key_exchange[at : at + 2], "big")
    size = int.from_bytes(server_key_exchange[at : at + 2], "big")
    return int.from_bytes(server_key_exchange[at + 2 : at + 2 + size], "big").bit_length()


class PskSource:
    """
    Asks the user's `psk_callback`.

    Attributes:
        given: Whether it gave a key.
        error: What it raised.
    """

    __slots__ = ("_callback", "error", "given")

    def __init__(self, callback: PskCallback) -> None:
        self._callback = callback
        self.given = False
        self.error: BaseException | None = None

    def __call__(self, hint: bytes | None) -> tuple[bytes, bytes] | None:
        """Return identity and key."""
        try:
            found = self._ask(hint.decode("utf-8", "backslashreplace") if hint else None)
        except BaseException as exc:  # noqa: BLE001 - nothing may be raised through OpenSSL; the engine raises it
            self.error = exc
            return None
        if found is None:
            return None
        self.given = True
        return found.identity.encode(), found.psk

    def _ask(self, hint: str | None) -> Psk | None:
        found: object = self._callback(hint)
        if found is None or isinstance(found, Psk):
            return found
        raise _wrong_answer(found, "a Psk")


class PskKeys:
    """
    Asks a server's `psk_callback` for the keys of its clients.

    Attributes:
        identity: Whose key it gave, or None.
        error: What it raised.
    """

    __slots__ = ("_callback", "error", "identity")

    def __init__(self, callback: PskServerCallback) -> None:
        self._callback = callback
        self.identity: str | None = None
        self.error: BaseException | None = None

    def __call__(self, identity: bytes) -> bytes | None:
        """Return the key."""
        try:
            name = identity.decode()
        except UnicodeDecodeError:
            return None  # RFC 4279, 5.1: UTF-8. In TLS 1.3 session tickets, which are not, are asked about too.
        if not name or "\0" in name or self.error is not None:
            return None
        try:
            key = self._ask(name)
        except BaseException as exc:  # noqa: BLE001 - nothing may be raised through OpenSSL; the server's floor raises it
            self.error = exc
            return None
        if key is not None:
            self.identity = name
        return key

    def _ask(self, identity: str) -> bytes | None:
        found: object = self._callback(identity)
        if found is None:
            return None
        if not isinstance(found, (Psk, bytes, bytearray, memoryview)):
            raise _wrong_answer(found, "bytes, a Psk")
        return found.psk if isinstance(found, Psk) else psk_key(found)


def _wrong_answer(found: object, expected: str) -> OptionTypeError:
    if inspect.iscoroutine(found):
        found.close()
    return OptionTypeError(f"psk_callback must return {expected} or None, not {type(found).__name__}")
