"""Deadlines keep timers in order, cheaply when they move later and without holding on to what is over."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlsagent._deadlines import Deadlines, Timer


def armed(deadlines: Deadlines[str], owner: str, at: float) -> Timer[str]:
    timer = Timer(owner)
    deadlines.set(timer, at)
    return timer


def test_empty_has_nothing_to_tell():
    """Without a timer there is no next deadline, nobody is earliest and nothing expires."""
    deadlines = Deadlines[str]()

    assert deadlines.next() is None
    assert deadlines.earliest() is None
    assert deadlines.expired(1e9) == []


def test_expired_come_in_order_of_deadline():
    """Owners are reported earliest first, whatever the order in which they were armed."""
    deadlines = Deadlines[str]()
    for owner, at in (("late", 3.0), ("early", 1.0), ("middle", 2.0), ("later", 4.0)):
        armed(deadlines, owner, at)

    assert deadlines.next() == 1.0
    assert deadlines.earliest() == "early"
    assert deadlines.expired(3.0) == ["early", "middle", "late"]
    assert deadlines.next() == 4.0


def test_equal_deadlines_come_in_order_of_arming():
    """Of two timers due at the same moment the one armed first is reported first."""
    deadlines = Deadlines[str]()
    for owner in "abcdefgh":
        armed(deadlines, owner, 1.0)

    assert deadlines.expired(1.0) == list("abcdefgh")


def test_timer_is_due_at_its_deadline_not_before():
    """A timer expires when now equals its deadline and is reported once."""
    deadlines = Deadlines[str]()
    armed(deadlines, "a", 5.0)

    assert deadlines.expired(4.999) == []
    assert deadlines.expired(5.0) == ["a"]
    assert deadlines.expired(5.0) == []


def test_moved_later_fires_early_looks_and_rearms():
    """A deadline that moved later wakes the driver at the old time, once and for nothing."""
    deadlines = Deadlines[str]()
    timer = armed(deadlines, "a", 1.0)

    deadlines.set(timer, 9.0)

    assert deadlines.next() == 1.0
    assert deadlines.expired(1.0) == []
    assert deadlines.next() == 9.0
    assert deadlines.expired(9.0) == ["a"]


def test_moved_later_is_no_longer_earliest():
    """The earliest owner is judged by real deadlines, not by where the entries lie."""
    deadlines = Deadlines[str]()
    timer = armed(deadlines, "a", 1.0)
    armed(deadlines, "b", 2.0)

    deadlines.set(timer, 3.0)

    assert deadlines.earliest() == "b"


def test_moved_earlier_takes_effect_at_once():
    """A deadline that moved earlier is the next one immediately and fires only once."""
    deadlines = Deadlines[str]()
    timer = armed(deadlines, "a", 9.0)

    deadlines.set(timer, 1.0)

    assert deadlines.next() == 1.0
    assert deadlines.expired(1.0) == ["a"]
    assert deadlines.expired(9.0) == []


@pytest.mark.parametrize("again", [0.5, 1.0, 2.0])
def test_disarmed_timer_is_silent_until_armed_again(again):
    """None disarms a timer; it can be armed again for an earlier, the same or a later time."""
    deadlines = Deadlines[str]()
    timer = armed(deadlines, "a", 1.0)

    deadlines.set(timer, None)
    silent = (deadlines.armed, timer.deadline)
    deadlines.set(timer, again)

    assert silent == (0, None)
    assert deadlines.armed == 1
    assert deadlines.expired(again - 0.1) == []
    assert deadlines.expired(again) == ["a"]


def test_disarmed_timer_is_skipped_by_next():
    """A disarmed timer at the front does not wake the driver."""
    deadlines = Deadlines[str]()
    timer = armed(deadlines, "a", 1.0)
    armed(deadlines, "b", 2.0)

    deadlines.set(timer, None)

    assert deadlines.next() == 2.0
    deadlines.set(timer, 1.5)
    assert deadlines.expired(2.0) == ["a", "b"]


def test_expired_timer_can_be_armed_again():
    """A timer that fired is disarmed, not spent."""
    deadlines = Deadlines[str]()
    timer = armed(deadlines, "a", 1.0)
    deadlines.expired(1.0)

    deadlines.set(timer, 2.0)

    assert deadlines.expired(2.0) == ["a"]


def test_discarded_timer_lets_go_of_its_owner():
    """A discarded timer keeps its owner alive neither by itself nor by what is left of it in the heap."""

    class Owner:
        pass

    deadlines = Deadlines[Owner]()
    owner = Owner()
    gone = weakref.ref(owner)
    timer = Timer(owner)
    deadlines.set(timer, 1.0)

    deadlines.discard(timer)
    del owner

    assert gone() is None
    assert deadlines.next() is None


def test_discarded_timer_cannot_be_armed_again():
    """Arming a discarded timer is the caller's fault."""
    deadlines = Deadlines[str]()
    timer = armed(deadlines, "a", 1.0)
    deadlines.discard(timer)

    with pytest.raises(AssertionError, match="discarded"):
        deadlines.set(timer, 2.0)


def test_dead_entries_do_not_pile_up():
    """Timers that were discarded or moved earlier cost no memory for long, even if the front never expires."""

    class Request(Timer[str]):
        pass

    deadlines = Deadlines[str]()
    armed(deadlines, "front", 0.0)
    mover = armed(deadlines, "mover", 1e6)
    parked = armed(deadlines, "parked", 1e6)
    deadlines.set(parked, None)

    for number in range(5_000):
        request = Request("request")
        deadlines.set(request, 1e3 + number)
        deadlines.discard(request)
        deadlines.set(mover, 1e6 - number)

    assert sum(isinstance(thing, Request) for thing in gc.get_objects()) < 100
    assert sum(isinstance(thing, tuple) and thing[-1:] == (mover,) for thing in gc.get_objects()) < 100
    deadlines.set(parked, 1e6)
    assert deadlines.expired(1e6) == ["front", "mover", "parked"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 5), st.one_of(st.none(), st.integers(0, 20))),
            st.tuples(st.just("discard"), st.integers(0, 5), st.none()),
            st.tuples(st.just("expired"), st.integers(0, 20), st.none()),
        ),
        max_size=80,
    )
)
def test_agrees_with_a_plain_dictionary(operations):
    """After any sequence of operations the deadlines are those of a dictionary that is searched in full."""
    deadlines = Deadlines[int]()
    timers = {owner: Timer(owner) for owner in range(6)}
    model: dict[int, int] = {}

    for verb, number, at in operations:
        if verb == "set":
            deadlines.set(timers[number], at)
            model.pop(number, None)
            if at is not None:
                model[number] = at
        elif verb == "discard":
            deadlines.discard(timers[number])
            timers[number] = Timer(number)
            model.pop(number, None)
        else:
            due = {owner for owner, deadline in model.items() if deadline <= number}
            owners = deadlines.expired(number)
            assert [model[owner] for owner in owners] == sorted(model[owner] for owner in due)
            assert set(owners) == due
            model = {owner: deadline for owner, deadline in model.items() if owner not in due}

        assert deadlines.armed == len(model)
        following = deadlines.next()
        assert (following is None) == (not model)
        assert not model or following <= min(model.values())
        earliest = deadlines.earliest()
        assert (earliest is None) == (not model)
        assert not model or model[earliest] == min(model.values())
