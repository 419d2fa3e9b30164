"""
Where TLS sessions are kept until the next handshake.

A store files sessions under a *scope*, which must hold everything the trust rested on. What a session is stands in
`_material.session`.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from tlsagent._material.session import LONGEST_LIFETIME as LONGEST_LIFETIME
from tlsagent._material.session import Session as Session  # noqa: TC001 - for those who import it from here
from tlsagent._option_rules import whole

if TYPE_CHECKING:
    from collections.abc import Hashable


class SessionStore(Protocol):
    """
    Where sessions are kept. Synchronous and fast; called with no lock held, from any thread.

    A scope is hashable and opaque. What a store returns is offered to the server as it is: it must come from the same
    scope.

    What `take` and `discard` raise becomes the error of the request that needed them. What `put` raises is logged and
    costs no response: a session often comes when its request is over, or when there is none.

    In the child of a fork, a method `forked()` is called if the store has one: one that keeps sessions in memory must
    forget them there, or parent and child would offer the same ticket.
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
        self._max_scopes = whole("max_scopes", max_scopes)
        self._max_per_scope = whole("max_per_scope", max_per_scope)
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

    def forked(self) -> None:
        """Forget all sessions: they are the parent's, and a ticket that both offered would link the two."""
        self._scopes.clear()

    def __len__(self) -> int:
        return sum(map(len, tuple(self._scopes.values())))
