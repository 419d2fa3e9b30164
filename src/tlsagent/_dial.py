"""
One connection attempt as plain data: its plan, its phase, its deadlines.

Drivers carry it out; since nothing of a thread or task is in it, one thread can leave it to another.
"""

from __future__ import annotations

import errno
import math
from typing import TYPE_CHECKING, Any, Final

from tlsagent.errors import (
    ConnectError,
    ConnectTimeout,
    HandshakeTimeout,
    InactivityTimeout,
    Phase,
    ProxyError,
    RequestError,
    RequestTimeout,
    ResolutionTimeout,
    TunnelTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._connection import Connection
    from tlsagent._identity import Plan
    from tlsagent._limits import Timeouts
    from tlsagent._pool import Attempt

_TIMEOUT_ERRORS: Final[dict[Phase, tuple[type[RequestTimeout], str]]] = {
    "lookup": (ResolutionTimeout, "the name was not resolved within {:g} s (timeouts.lookup)"),
    "connect": (ConnectTimeout, "no address accepted a connection within {:g} s (timeouts.connect)"),
    "tunnel": (TunnelTimeout, "the proxy did not open the tunnel within {:g} s (timeouts.tunnel)"),
    "handshake": (HandshakeTimeout, "the TLS handshake did not end within {:g} s (timeouts.handshake)"),
}


class Dial:
    """
    One attempt.

    Attributes:
        plan: For whom.
        attempt: The pool's, or None for a connection outside the pool.
        timings: Seconds by phase, filled as phases end.
        begun_at: When its first phase began, infinity before that.
        deadline: When the present phase is overdue.
        target: What the proxy, if there is one, is to connect to.
        without_session: Whether to offer no TLS session: the peer has refused one.
        secured: Whether its handshake was completed, so that the peer is the right one, and may do better next time.
        on_resolved: Told the addresses, before it is connected to one; what it raises ends the attempt.
        on_done: Told the connection or the error at the end, by drivers that wait for one.
    """

    __slots__ = (
        "_entered_at",
        "_resolves_target",
        "_silent",
        "_timeouts",
        "attempt",
        "begun_at",
        "deadline",
        "on_done",
        "on_resolved",
        "phase",
        "plan",
        "secured",
        "target",
        "timings",
        "without_session",
    )

    def __init__(self, plan: Plan, timeouts: Timeouts, attempt: Attempt[Connection] | None = None) -> None:
        self.plan = plan
        self.attempt = attempt
        self.phase: Phase | None = None
        self.timings: dict[str, float] = {}
        self.begun_at = math.inf
        self.deadline = math.inf
        self.target: tuple[str, int] = (plan.key.route.host, plan.key.route.port)
        self.without_session = False
        self.secured = False
        self.on_done: Callable[[Any, BaseException | None], None] | None = None
        self.on_resolved: Callable[[list[str]], object] | None = None
        self._timeouts = timeouts
        self._silent = False
        self._entered_at = 0.0
        # A socks5 proxy is given an address: the origin's name is resolved here, before the proxy's own.
        self._resolves_target = plan.proxy is not None and plan.proxy.scheme == "socks5"

    @property
    def unresolved(self) -> tuple[str, int]:
        """The host to be resolved next, and its port."""
        return self.target if self._resolves_target else self.plan.key.route.first_hop

    def resolved(self, hosts: list[str]) -> bool:
        """Take the addresses of what was `unresolved`; returns whether they are those to connect to."""
        if not self._resolves_target:
            if self.on_resolved is not None:
                self.on_resolved(hosts)
            return True
        self._resolves_target = False
        self.target = (hosts[0], self.target[1])
        return False

    def enter(self, phase: Phase | None, now: float) -> None:
        """Begin a phase, which ends the one before; None ends the last."""
        self.begun_at = min(self.begun_at, now)
        if self.phase is not None:
            self.timings[self.phase] = self.timings.get(self.phase, 0.0) + now - self._entered_at
        self.phase = phase
        self._entered_at = now
        seconds = None if phase is None else getattr(self._timeouts, phase)
        self.deadline = math.inf if seconds is None else now + seconds
        # While it connects nothing moves on the socket. In the handshake the connection watches for silence itself.
        silent_at = now + self.plan.inactivity if phase == "connect" and self.plan.inactivity is not None else math.inf
        self._silent = silent_at < self.deadline
        self.deadline = min(self.deadline, silent_at)

    def overdue(self) -> RequestTimeout:
        """Return the error for the deadline of the present phase."""
        assert self.phase is not None
        if self._silent:
            return InactivityTimeout(f"nothing came for {self.plan.inactivity:g} s (timeout)", phase=self.phase)
        error, text = _TIMEOUT_ERRORS[self.phase]
        return error(text.format(getattr(self._timeouts, self.phase)), phase=self.phase)

    def describe(self, error: BaseException) -> BaseException:
        """Return the error of the attempt as users see it, with its facts; an OS error becomes a `ConnectError`."""
        if isinstance(error, OSError) and not isinstance(error, RequestError):
            cause, code = error, errno.errorcode.get(error.errno or 0)
            error = ConnectError(f"no connection: {code} ({cause.strerror or cause})", code=code)
            error.__cause__ = cause
        if self._seeks_proxy and isinstance(error, ConnectError) and not isinstance(error, ProxyError):
            unreached = ProxyError(f"the proxy was not reached: {error}", code=error.code)
            unreached.__cause__ = error
            error = unreached
        if isinstance(error, RequestError):
            error.phase = error.phase or self.phase
            error.key = error.key or self.plan.key.digest
        return error

    @property
    def _seeks_proxy(self) -> bool:
        return self.plan.proxy is not None and (
            self.phase == "connect" or (self.phase == "lookup" and not self._resolves_target)
        )
