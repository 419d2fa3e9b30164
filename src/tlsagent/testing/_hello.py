"""
A ClientHello taken apart (RFC 8446 4.1.2, RFC 5246 7.4.1.2): what the client offered, read without any TLS library.

For looking only. It accepts whatever it can follow and judges nothing; the server's OpenSSL does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SERVER_NAME: Final = 0
ALPN: Final = 16
SESSION_TICKET: Final = 35
PRE_SHARED_KEY: Final = 41
SUPPORTED_VERSIONS: Final = 43

_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1


@dataclass(frozen=True, slots=True)
class ClientHello:
    """
    Attributes:
        session_id: The legacy session id; random in TLS 1.3 (RFC 8446 D.4).
        cipher_suites: In the client's order.
        extensions: Type to raw content, in the client's order.
    """

    session_id: bytes
    cipher_suites: tuple[int, ...]
    extensions: dict[int, bytes]

    @classmethod
    def parse(cls, record: bytes) -> ClientHello | None:
        """Return the ClientHello in a TLS record; None if there is none that can be followed."""
        if len(record) < 9 or record[0] != _HANDSHAKE or record[5] != _CLIENT_HELLO:
            return None
        try:
            return cls._parse_body(_Reader(record, 9))
        except IndexError:
            return None

    @classmethod
    def _parse_body(cls, reader: _Reader) -> ClientHello:
        reader.take(2 + 32)  # legacy_version, random
        session_id = reader.vector(1)
        suites = reader.vector(2)
        reader.vector(1)  # compression methods
        extensions: dict[int, bytes] = {}
        if not reader.at_end():
            inner = _Reader(reader.vector(2), 0)
            while not inner.at_end():
                kind = inner.number(2)
                extensions[kind] = inner.vector(2)
        numbers = tuple(int.from_bytes(suites[i : i + 2], "big") for i in range(0, len(suites), 2))
        return cls(session_id, numbers, extensions)

    @property
    def server_name(self) -> str | None:
        """The host name of SNI (RFC 6066 3)."""
        content = self.extensions.get(SERVER_NAME, b"")
        return content[5:].decode("latin-1") if len(content) > 5 else None

    @property
    def alpn_protocols(self) -> tuple[str, ...]:
        """The protocols offered by ALPN (RFC 7301), best first."""
        reader = _Reader(self.extensions.get(ALPN, b"\0\0"), 2)
        protocols = []
        while not reader.at_end():
            protocols.append(reader.vector(1).decode("latin-1"))
        return tuple(protocols)

    @property
    def offers_ticket(self) -> bool:
        """Whether a session is offered: a TLS 1.3 PSK or a TLS 1.2 ticket. (A bare session id cannot be told.)"""
        return PRE_SHARED_KEY in self.extensions or bool(self.extensions.get(SESSION_TICKET))


def first_record(data: bytes | bytearray) -> bytes | None:
    """Return the TLS record that `data` begins with, all of `data` if that is no handshake, None if more must come."""
    if data and data[0] != _HANDSHAKE:
        return bytes(data)
    size = 5 + int.from_bytes(data[3:5], "big")
    return bytes(data[:size]) if len(data) >= max(size, 5) else None


class _Reader:
    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise IndexError("the message ends early")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))
