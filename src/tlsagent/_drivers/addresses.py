"""
In which order the addresses of a host are tried, and when the next one starts (RFC 8305). Pure.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from tlsagent.errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tlsagent._identity import Plan


class Address(NamedTuple):
    """A socket address and its family, as `getaddrinfo` gives them."""

    family: int
    sockaddr: tuple[str | int, ...] | str

    @property
    def host(self) -> str:
        """The IP address, or the path."""
        return str(self.sockaddr if isinstance(self.sockaddr, str) else self.sockaddr[0])

    def __str__(self) -> str:
        if isinstance(self.sockaddr, str):
            return self.sockaddr
        host, port = self.sockaddr[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def interleave(addresses: Iterable[Address]) -> list[Address]:
    """Return the addresses with their families alternating, beginning with the family of the first (RFC 8305, 4)."""
    by_family: dict[int, deque[Address]] = {}
    for address in dict.fromkeys(addresses):
        by_family.setdefault(address.family, deque()).append(address)
    queues = list(by_family.values())
    ordered: list[Address] = []
    while queues:
        ordered.extend(queue.popleft() for queue in queues)
        queues = [queue for queue in queues if queue]
    return ordered


def chosen(addresses: Iterable[Address], plan: Plan) -> list[Address]:
    """
    Return the addresses that are to be tried, in order.

    Those that the local address could reach; without `auto_select_family` the first one alone, as in Node.
    """
    ordered = interleave(addresses)
    local = plan.key.route.local_address
    if local is not None:
        same = [address for address in ordered if (":" in str(address.sockaddr[0])) == (":" in local)]
        ordered = same or ordered
    return ordered if plan.auto_select_family else ordered[:1]


def race_of(addresses: Iterable[Address], plan: Plan) -> Race:
    """Return the race of a plan's attempts."""
    return Race(chosen(addresses, plan), math.inf if plan.attempt_timeout is None else plan.attempt_timeout)


class Race:
    """
    Attempts at the addresses of one host, started one after the other, the first to connect wins.

    A driver starts what `due` returns, reports failures, and looks again at `next_deadline`.
    """

    def __init__(self, addresses: Iterable[Address], delay: float) -> None:
        self._waiting = deque(addresses)
        self._delay = delay
        self._next_at = -math.inf
        self._running = 0
        self._errors: list[tuple[Address, OSError]] = []

    def due(self, now: float) -> list[Address]:
        """Return the addresses to start now: one at a time, the next after the delay or once all others failed."""
        if not self._waiting or (self._running and now < self._next_at):
            return []
        self._running += 1
        self._next_at = now + self._delay
        return [self._waiting.popleft()]

    def failed(self, address: Address, error: OSError) -> None:
        """Note that an attempt failed."""
        self._running -= 1
        self._errors.append((address, error))

    def next_deadline(self) -> float:
        """Return when `due` has something to say, infinity for never."""
        return self._next_at if self._waiting else math.inf

    @property
    def lost(self) -> bool:
        """Whether every address has failed."""
        return not self._waiting and not self._running

    def error(self) -> ConnectError:
        """Return what went wrong at each address."""
        return connect_error(self._errors)


def connect_error(failures: list[tuple[Address, OSError]]) -> ConnectError:
    """Return one error for the failures of all addresses; its code is that of the first."""
    import errno

    told = []
    for address, error in failures:
        code = errno.errorcode.get(error.errno or 0, "") or type(error).__name__
        told.append((code, f"{address}: {code} ({error.strerror or error})"))
    result = ConnectError("no connection to " + "; ".join(text for _, text in told), code=told[0][0], phase="connect")
    result.__cause__ = failures[0][1]
    return result
