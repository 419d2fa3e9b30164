"""
How many attempts a key is worth while it is not known whether one connection would serve all.

Where connections may be shared, one attempt is under way for all tickets of a key, as its connection may serve them
all; a second one joins it after `dial_delay`. Once a connection turns out to serve one exchange at a time, the rest
dials side by side as for any other key. What turned out is remembered of the last keys. Here is decided how *wide* a
bucket dials; who dials next, and whether the limits let it, is decided in `_pool`.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING, Generic

from tlsagent._deadlines import Deadlines, Timer
from tlsagent._pool_records import Bucket, C

if TYPE_CHECKING:
    from collections.abc import Hashable

_MAX_ANSWERS = 1_024  # keys of which it is remembered whether their connections are shared


class FirstContact(Generic[C]):
    """
    What is known of the keys of a pool, and which of them wait for a second attempt.

    Args:
        dial_delay: Seconds until a second attempt joins the first, if another ticket waits; None for never.
    """

    __slots__ = ("_answers", "_delays", "_dial_delay")

    def __init__(self, dial_delay: float | None) -> None:
        self._dial_delay = inf if dial_delay is None else dial_delay
        self._answers: OrderedDict[Hashable, bool] = OrderedDict()  # whether a key's last connection was shared
        self._delays: Deadlines[Bucket[C]] = Deadlines()  # of second attempts

    def begin(self, bucket: Bucket[C]) -> None:
        """Set how many attempts the tickets of a key whose connections may be shared are to cause."""
        shared = self._answers.get(bucket.key)
        if shared is not None:
            self._answers.move_to_end(bucket.key)
        bucket.width = inf if shared is False else 1

    def learn(self, bucket: Bucket[C], shared: bool) -> None:
        """Keep in mind whether the connections of a key are shared."""
        self._answers[bucket.key] = shared
        self._answers.move_to_end(bucket.key)
        if len(self._answers) > _MAX_ANSWERS:
            self._answers.popitem(last=False)
        bucket.width = 1 if shared else inf

    def failed(self, bucket: Bucket[C]) -> bool:
        """Return whether an attempt that failed stood for all tickets of its key: the next one then does, alone."""
        if bucket.width == inf:
            return False
        bucket.width = 1
        return True

    def watch(self, bucket: Bucket[C]) -> None:
        """After a change to a bucket: arm its delay if a ticket waits for no more than the one attempt."""
        if bucket.waiting > bucket.attempts == bucket.width == 1 and not bucket.stalled and self._dial_delay != inf:
            if bucket.delay is None:
                bucket.delay = Timer(bucket)
            self._delays.set(bucket.delay, bucket.dialled_at + self._dial_delay)
        elif bucket.delay is not None:
            self._delays.set(bucket.delay, None)

    def next_delay(self) -> float | None:
        """Return when a second attempt may join a first one, or None."""
        return self._delays.next() if self._delays.armed else None

    def widen(self, now: float) -> list[Bucket[C]]:
        """Allow the second attempts whose time has come; returns the buckets that may have one now."""
        due = self._delays.expired(now)
        for bucket in due:
            bucket.width = 2
        return due

    def forget(self, bucket: Bucket[C]) -> None:
        """Let go of a bucket that nobody needs any more; what turned out stays."""
        if bucket.delay is not None:
            self._delays.discard(bucket.delay)

    def mend(self) -> None:
        """Begin anew with no bucket; what turned out stays."""
        self._delays = Deadlines()
