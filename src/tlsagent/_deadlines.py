"""
Deadlines: which of many timers is due next.

Decides nothing about what a deadline means; it keeps them in order and says when to look again. Time comes in as an
argument, so the same code serves any clock (and any other ascending number: the pool orders keys by it).
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import Generic, TypeVar

# Theory of operation
#
# A heap of entries (time, serial, timer). A timer knows the one entry that stands for it, `_entry`; every other entry
# of the heap that names it is dead. The entry's time is never later than the timer's deadline:
#
# - moved later: only `deadline` is written; the entry comes up early, is looked at and put back at the new time;
# - moved earlier: a second entry is pushed, the first one dies where it lies;
# - disarmed: the entry stays, and serves again if the timer is armed for the same time or later.
#
# So `armed` timers own `armed` entries, all else is dead, and the heap is rebuilt when the dead outnumber the living.
# Searching the heap for an entry to remove would cost O(n) for every request that is answered in time, which is
# nearly all of them.

T = TypeVar("T")

_COMPACT_ABOVE = 32  # entries; below this the dead cost less than the sweep


class Timer(Generic[T]):
    """
    One deadline and whom it concerns. Belongs to at most one `Deadlines`, which alone writes to it.

    Attributes:
        owner: What `Deadlines.expired` reports; None once discarded, so that a dead entry keeps nothing alive.
        deadline: When it is due; None while disarmed.
    """

    __slots__ = ("_entry", "deadline", "owner")

    def __init__(self, owner: T) -> None:
        self.owner: T | None = owner
        self.deadline: float | None = None
        self._entry: _Entry[T] | None = None


_Entry = tuple[float, int, Timer[T]]


class Deadlines(Generic[T]):
    """
    A set of timers, ordered by deadline and, where two are equal, by when they were armed.

    Attributes:
        armed: How many timers have a deadline. Read only.
    """

    __slots__ = ("_heap", "_serial", "armed")

    def __init__(self) -> None:
        self.armed = 0
        self._heap: list[_Entry[T]] = []
        self._serial = count()

    def set(self, timer: Timer[T], at: float | None) -> None:
        """Arm `timer` for `at`, or move it there; None disarms it. Moving it later is one attribute write."""
        if at is None:
            self._disarm(timer)
            return
        if timer.owner is None:
            raise AssertionError("a discarded timer cannot be armed again")
        if timer.deadline is None:
            self.armed += 1
        timer.deadline = at
        if timer._entry is None or timer._entry[0] > at:
            self._push(timer, at)

    def discard(self, timer: Timer[T]) -> None:
        """Disarm `timer` for good and let go of its owner."""
        self._disarm(timer)
        timer.owner = None
        timer._entry = None

    def next(self) -> float | None:
        """
        Return when to call `expired`, or None while no timer is armed.

        Never later than the earliest deadline. May be earlier, if that one has been moved later since it was armed:
        then `expired` reports nothing, and the next call tells the new time.
        """
        heap = self._heap
        while heap and not _stands(heap[0]):
            _drop_entry(heappop(heap))
        return heap[0][0] if heap else None

    def due(self, now: float) -> bool:
        """Return whether a timer may be due; never False while one is. Cheaper than asking which."""
        heap = self._heap
        return bool(heap) and heap[0][0] <= now

    def earliest(self) -> T | None:
        """Return the owner of the timer with the earliest deadline, or None while no timer is armed."""
        timer = self._front()
        return None if timer is None else _owner(timer)

    def expired(self, now: float) -> list[T]:
        """Disarm every timer due at `now` or before, and return their owners, earliest deadline first."""
        owners: list[T] = []
        while (timer := self._front()) is not None and self._heap[0][0] <= now:
            owners.append(_owner(timer))
            heappop(self._heap)
            timer._entry = None
            timer.deadline = None
            self.armed -= 1
        return owners

    def _disarm(self, timer: Timer[T]) -> None:
        if timer.deadline is not None:
            timer.deadline = None
            self.armed -= 1
            if len(self._heap) > _COMPACT_ABOVE + 2 * self.armed:
                self._compact()

    def _push(self, timer: Timer[T], at: float) -> None:
        timer._entry = (at, next(self._serial), timer)
        heappush(self._heap, timer._entry)
        if len(self._heap) > _COMPACT_ABOVE + 2 * self.armed:
            self._compact()

    def _front(self) -> Timer[T] | None:
        """Return the timer with the earliest deadline, after putting back the entries that came up early."""
        heap = self._heap
        while heap:
            entry = heap[0]
            timer = entry[2]
            if not _stands(entry):
                _drop_entry(heappop(heap))
            elif timer.deadline is not None and timer.deadline > entry[0]:
                timer._entry = (timer.deadline, next(self._serial), timer)
                heapreplace(heap, timer._entry)
            else:
                return timer
        return None

    def _compact(self) -> None:
        kept = [entry for entry in self._heap if _stands(entry)]
        for entry in self._heap:
            if not _stands(entry):
                _drop_entry(entry)
        heapify(kept)
        self._heap = kept


def _owner(timer: Timer[T]) -> T:
    if timer.owner is None:
        raise AssertionError("a discarded timer stands for nobody")
    return timer.owner


def _stands(entry: _Entry[T]) -> bool:
    """Return whether `entry` is the one that stands for an armed timer."""
    timer = entry[2]
    return timer._entry is entry and timer.deadline is not None


def _drop_entry(entry: _Entry[T]) -> None:
    """Forget `entry`, which has left the heap; a disarmed timer must not count on it any more."""
    timer = entry[2]
    if timer._entry is entry:
        timer._entry = None
