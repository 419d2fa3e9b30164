"""
A TLS session: what a resumed handshake needs, and whom it was made with.

Beside OpenSSL's session object stand the chain of the full handshake it descends from, the name that was verified and a
digest of what the verification rested on, since none of these is in OpenSSL's object; and the few facts that are in
its encoding (OpenSSL offers no getters here). How long a session may be used is decided when it is made; who may use it
is the caller's matter.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from tlsagent._material import binding
from tlsagent.errors import OptionError, OptionTypeError

_MAGIC: Final = b"tlsagent-session\x01"
_LENGTH: Final = struct.Struct(">I")
_MAX_CERTIFICATES: Final = 100
_PIN: Final = 32

_TLS13: Final = 0x0304
_VERSIONS: Final = {0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", _TLS13: "TLSv1.3"}
# RFC 8446 4.6.1: no ticket is used for longer than a week, whatever its server says.
LONGEST_LIFETIME: Final = 604_800
# RFC 5077 3.3 leaves the lifetime to the client where the server gives no hint; OpenSSL takes this.
_UNHINTED_LIFETIME: Final = 7_200


class Session:
    """
    What a resumed handshake needs. Opaque; to be offered only under the options it was made under.

    Attributes:
        protocol_version: "TLSv1.2" or "TLSv1.3".
        expires_at: When it ceases to be of use, in seconds since the epoch.
        max_early_data: Bytes of early data that its server takes; 0 if none.
        verified_name: The name that the server's certificate was checked against.
        trust: Digest of the options that its verification rested on; empty if nobody told.
        peer_chain: DER of the certificates that the server sent in the full handshake, its own first.
        verified_keys: SHA-256 of the public keys of the verified chain, if `pins` asked for them.
        handle: OpenSSL's object.
    """

    __slots__ = (
        "expires_at",
        "handle",
        "max_early_data",
        "peer_chain",
        "protocol_version",
        "resumable",
        "trust",
        "verified_keys",
        "verified_name",
    )

    def __init__(
        self,
        handle: binding.SessionHandle,
        peer_chain: tuple[bytes, ...],
        *,
        verified_name: str,
        trust: bytes = b"",
        verified_keys: tuple[bytes, ...] = (),
    ) -> None:
        facts = _facts(binding.session_to_der(handle))
        self.handle = handle
        self.peer_chain = peer_chain
        self.verified_name = verified_name
        self.trust = trust
        self.verified_keys = verified_keys
        self.protocol_version = _VERSIONS.get(facts.version, f"0x{facts.version:04x}")
        self.expires_at = float(facts.time + facts.lifetime)
        self.max_early_data = binding.max_early_data(handle)
        self.resumable = facts.resumable

    def made_for(self, verified_name: str, trust: bytes) -> bool:
        """Whether it may be offered to a server of that name, under the options with that digest."""
        return self.verified_name == verified_name and self.trust == trust

    def to_bytes(self) -> bytes:
        """Return it for another process. The bytes are as secret as a private key while the session lives."""
        made = (self.verified_name.encode(), self.trust, b"".join(self.verified_keys))
        parts = (*made, binding.session_to_der(self.handle), *self.peer_chain)
        return _MAGIC + b"".join(_LENGTH.pack(len(part)) + part for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Session:
        """
        Restore what `to_bytes` returned.

        Raises:
            OptionError: `data` is anything else.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise OptionTypeError(f"session must be a Session or its to_bytes(), not {type(data).__name__}")
        try:
            name, trust, keys, der, *chain = _parts(bytes(data))
            handle = binding.session_from_der(der)
            if handle is None or len(keys) % _PIN:
                raise ValueError
            pins = tuple(keys[at : at + _PIN] for at in range(0, len(keys), _PIN))
            return cls(handle, tuple(chain), verified_name=name.decode(), trust=trust, verified_keys=pins)
        except ValueError:
            # Neither the bytes nor the exception that knows them belong into a traceback.
            raise OptionError("session is not what Session.to_bytes() of this release returned") from None

    def __repr__(self) -> str:
        return f"<Session {self.protocol_version} expires_at={self.expires_at:.0f}>"


# What stands in a session -----------------------------------------------------------------------------------------


class _Facts(NamedTuple):
    version: int
    time: int
    lifetime: int
    resumable: bool


def _facts(der: bytes) -> _Facts:
    """
    Read OpenSSL's encoding of a session (ssl_asn1.c): five plain fields, then optional ones with explicit tags.

    Only for what OpenSSL itself wrote just now; that is well-formed.
    """
    [(_, body)] = _elements(der)
    (_, _format), (_, version), (_, _cipher), (_, session_id), (_, _master_key), *optional = _elements(body)
    fields = dict(optional)
    # EXPLICIT: the integer stands behind a tag and a length of its own.
    time, timeout, hint = (int.from_bytes(fields.get(tag, b"")[2:], "big") for tag in (_TIME, _TIMEOUT, _HINT))
    number = int.from_bytes(version, "big")
    # RFC 8446 4.6.1: a hint of zero, which is not encoded, means that the ticket is to be dropped at once.
    lifetime = hint if hint or number >= _TLS13 else _UNHINTED_LIFETIME
    return _Facts(number, time, min(timeout, lifetime, LONGEST_LIFETIME), bool(session_id or _TICKET in fields))


_TIME: Final = 0xA1
_TIMEOUT: Final = 0xA2
_HINT: Final = 0xA9
_TICKET: Final = 0xAA


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at < len(der):
        tag, length, start = der[at], der[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start], "big")
        at = start + length
        found.append((tag, der[start:at]))
    return found


def _parts(data: bytes) -> list[bytes]:
    """Split what `to_bytes` joined. Raises ValueError for anything else."""
    if not data.startswith(_MAGIC):
        raise ValueError
    parts: list[bytes] = []
    at = len(_MAGIC)
    while at < len(data):
        start = at + _LENGTH.size
        if start > len(data):
            raise ValueError
        at = start + int(_LENGTH.unpack_from(data, at)[0])
        if at > len(data) or len(parts) > _MAX_CERTIFICATES:
            raise ValueError
        parts.append(data[start:at])
    if not parts:
        raise ValueError
    return parts
