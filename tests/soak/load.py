"""
What a soak asks, and what may come of it.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import traceback
from collections import Counter

from tlsagent import ConnectionLost, RemoteProtocolError, RequestTimeout

# What a server that ends connections at any moment, and a client in haste, may bring about.
EXPECTED = (ConnectionLost, RemoteProtocolError, RequestTimeout)

PATIENCE = 30.0
"""Seconds in which everything is answered that is not in haste: who waits for longer was forgotten."""

_KINDS = {
    "plain": 60,
    "large": 6,
    "echo": 10,
    "slow": 5,
    "chunked": 5,
    "bye": 3,
    "abort": 2,
    "hurried": 3,  # a deadline that may pass in any phase
    "left": 3,  # a stream closed before its end
    "dropped": 1,  # a stream that nobody closes
    "cancelled": 2,
}


@dataclasses.dataclass(frozen=True)
class Order:
    """
    One request.

    Attributes:
        kind: What is done with it.
        url: What it asks for.
        body: What must come back.
        content: What it sends.
        patience: Seconds until it is cancelled, or its total timeout.
    """

    kind: str
    url: str
    body: bytes
    content: list[bytes] | None
    patience: float


class Orders:
    """Requests as they are wanted, the same for the same seed, and what became of them. Any thread may use it."""

    def __init__(self, seed: int, origin: str) -> None:
        self._origin = origin
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._left = 0
        self._number = 0
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []

    def add(self, count: int) -> None:
        """Let so many more requests be made."""
        with self._lock:
            self._left += count

    def take(self) -> Order | None:
        """Return the next request, or None if there is none for now, or one has failed."""
        with self._lock:
            if not self._left or self.failures:
                return None
            self._left -= 1
            self._number += 1
            return self._make(self._number)

    def _make(self, number: int) -> Order:
        kind = self._random.choices(list(_KINDS), list(_KINDS.values()))[0]
        asked = {"left": "slow", "dropped": "slow", "hurried": "slow", "cancelled": "slow", "large": "plain"}
        repeat = self._random.randint(1, 20_000 if kind == "large" else 200)
        body = f"{number} ".encode() * repeat
        content = [body[at : at + 500] for at in range(0, len(body), 500)] if kind == "echo" else None
        patience = self._random.uniform(0.0005, 0.02) if kind in ("hurried", "cancelled") else PATIENCE
        return Order(kind, f"{self._origin}/{asked.get(kind, kind)}/{number}/{repeat}", body, content, patience)

    def done(self, order: Order, body: bytes | None) -> None:
        """Check what came back."""
        if body is not None and body != order.body:
            self.failures.append(f"{order.url} was answered {body[:80]!r}")
        with self._lock:
            self.outcomes[order.kind] += 1

    def failed(self, order: Order, error: BaseException) -> None:
        """Check how it failed."""
        hung = isinstance(error, RequestTimeout) and order.patience >= PATIENCE
        if hung or not isinstance(error, EXPECTED):
            self.failures.append(f"{order.url} ({order.kind}): " + "".join(traceback.format_exception(error)))
        with self._lock:
            self.outcomes[type(error).__name__] += 1
