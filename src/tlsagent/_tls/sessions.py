"""
TLS sessions and where they are kept until the next handshake.

A `Session` is OpenSSL's session object, the chain of the full handshake it descends from, and the few facts that stand
in its encoding (OpenSSL offers no getters here). How long a session may be used is decided when it is made; who may use
it is the caller's matter: a store files sessions under a *scope*, which must hold everything the trust rested on.
"""

from __future__ import annotations

import contextlib
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from tlsagent._tls import binding
from tlsagent.errors import OptionError, OptionRangeError, OptionTypeError

if TYPE_CHECKING:
    from collections.abc import Hashable

_MAGIC: Final = b"tlsagent-session\x01"
_LENGTH: Final = struct.Struct(">I")
_MAX_CERTIFICATES: Final = 100

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
        peer_chain: DER of the certificates that the server sent in the full handshake, its own first.
        handle: OpenSSL's object.
    """

    __slots__ = ("expires_at", "handle", "max_early_data", "peer_chain", "protocol_version", "resumable")

    def __init__(self, handle: binding.SessionHandle, peer_chain: tuple[bytes, ...]) -> None:
        facts = _facts(binding.session_to_der(handle))
        self.handle = handle
        self.peer_chain = peer_chain
        self.protocol_version = _VERSIONS.get(facts.version, f"0x{facts.version:04x}")
        self.expires_at = float(facts.time + facts.lifetime)
        self.max_early_data = binding.max_early_data(handle)
        self.resumable = facts.resumable

    def to_bytes(self) -> bytes:
        """Return it for another process. The bytes are as secret as a private key while the session lives."""
        parts = (binding.session_to_der(self.handle), *self.peer_chain)
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
            der, *chain = _parts(bytes(data))
            handle = binding.session_from_der(der)
            if handle is None:
                raise ValueError
            return cls(handle, tuple(chain))
        except ValueError:
            # Neither the bytes nor the exception that knows them belong into a traceback.
            raise OptionError("session is not what Session.to_bytes() of this release returned") from None

    def __repr__(self) -> str:
        return f"<Session {self.protocol_version} expires_at={self.expires_at:.0f}>"


class SessionStore(Protocol):
    """
    Where sessions are kept. Synchronous and fast; called with no lock held, from any thread.

    A scope is hashable and opaque. What a store returns is offered to the server as it is: it must come from the same
    scope.
    """

    def take(self, scope: Hashable) -> Session | None:
        """Return a session for one handshake, or None. A TLS 1.3 session must never be returned twice."""

    def put(self, scope: Hashable, session: Session) -> None:
        """Keep a session."""

    def discard(self, scope: Hashable) -> None:
        """Forget all sessions of a scope: its server refused one."""


class MemorySessionStore:
    """
    Sessions of this process, in memory.

    Expired ones are dropped by whoever takes them: a store has no clock. It holds no lock; each step is one atomic
    operation on a built-in container, so threads may share it.

    Args:
        max_scopes: How many scopes to remember; the one not used for longest goes first.
        max_per_scope: How many sessions to keep for each; the oldest goes first.
    """

    def __init__(self, max_scopes: int = 100, max_per_scope: int = 8) -> None:
        if max_scopes < 1 or max_per_scope < 1:
            raise OptionRangeError("max_scopes and max_per_scope must be 1 at least")
        self._max_scopes = max_scopes
        self._max_per_scope = max_per_scope
        self._scopes: OrderedDict[Hashable, list[Session]] = OrderedDict()

    def take(self, scope: Hashable) -> Session | None:
        """
        Return the newest session of a scope, or None.

        RFC 8446 C.4: a ticket used twice links two connections to one client, so TLS 1.3 sessions are taken out. Those
        of TLS 1.2 stay: their servers expect them again.
        """
        try:
            sessions = self._scopes[scope]
            session = sessions.pop()
        except (KeyError, IndexError):  # none, or another thread was faster
            return None
        if session.protocol_version != "TLSv1.3":
            sessions.append(session)
        if sessions:
            self._used(scope)
        else:
            self._scopes.pop(scope, None)
        return session

    def put(self, scope: Hashable, session: Session) -> None:
        """Keep a session as the newest of its scope."""
        sessions = self._scopes.setdefault(scope, [])
        sessions.append(session)
        self._used(scope)
        if len(sessions) > self._max_per_scope:
            del sessions[0]
        if len(self._scopes) > self._max_scopes:
            self._scopes.popitem(last=False)

    def _used(self, scope: Hashable) -> None:
        with contextlib.suppress(KeyError):  # another thread has just emptied it
            self._scopes.move_to_end(scope)

    def discard(self, scope: Hashable) -> None:
        """Forget all sessions of a scope."""
        self._scopes.pop(scope, None)

    def __len__(self) -> int:
        return sum(map(len, tuple(self._scopes.values())))


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
