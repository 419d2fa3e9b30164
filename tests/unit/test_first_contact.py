"""How wide a key dials: one attempt for all while that may do, a second after a while, all once it is known not to."""

from __future__ import annotations

from math import inf

import pytest

from tlsagent._first_contact import FirstContact
from tlsagent._pool_records import Bucket


def waiting_for_one(contact: FirstContact[str], key: str = "a", dialled_at: float = 0.0) -> Bucket[str]:
    """Return a bucket with two tickets, for which one attempt is under way."""
    bucket = Bucket[str](key)
    contact.begin(bucket)
    bucket.waiting, bucket.attempts, bucket.dialled_at = 2, 1, dialled_at
    contact.watch(bucket)
    return bucket


def test_a_key_of_which_nothing_is_known_dials_once():
    """
    One connection may serve all: a key that nobody knows is worth one attempt.
    """
    bucket = Bucket[str]("a")

    FirstContact[str](None).begin(bucket)

    assert bucket.width == 1


@pytest.mark.parametrize(("shared", "width"), [(True, 1), (False, inf)])
def test_what_turned_out_is_remembered_beyond_the_bucket(shared, width):
    """
    The bucket of a key goes with its last connection; what is known of the key stays, be the pool mended meanwhile.
    """
    contact = FirstContact[str](None)
    first, second = Bucket[str]("a"), Bucket[str]("a")
    contact.begin(first)

    contact.learn(first, shared)
    contact.forget(first)
    contact.mend()
    contact.begin(second)

    assert (first.width, second.width) == (width, width)


def test_what_was_asked_for_last_is_kept_longest():
    """
    Of 1,024 keys it is known whether they share; the one that was looked up or learnt the longest ago is forgotten.
    """
    contact = FirstContact[str](None)
    for number in range(1_024):
        contact.learn(Bucket(number), False)
    looked_up, forgotten = Bucket[str](0), Bucket[str](1)
    contact.begin(looked_up)

    contact.learn(Bucket("one more"), False)
    contact.begin(looked_up)
    contact.begin(forgotten)

    assert (looked_up.width, forgotten.width) == (inf, 1)


def test_a_second_attempt_is_allowed_after_the_delay():
    """
    Where a ticket waits for no more than one attempt, a second one may join it `dial_delay` after it was made.
    """
    contact = FirstContact[str](0.5)
    bucket = waiting_for_one(contact, dialled_at=1.0)

    assert contact.next_delay() == 1.5
    assert contact.widen(1.4) == []
    assert contact.widen(1.5) == [bucket]
    assert (bucket.width, contact.next_delay()) == (2, None)


@pytest.mark.parametrize(
    "change", [{"waiting": 1}, {"attempts": 0}, {"attempts": 2}, {"width": inf}, {"stalled": {"slot": None}}]
)
def test_no_second_attempt_without_need(change):
    """
    Once nobody waits beside the attempt, it is over, another one joined, or a peer allows no exchange: no delay runs.
    """
    contact = FirstContact[str](0.5)
    bucket = waiting_for_one(contact)

    for name, value in change.items():
        setattr(bucket, name, value)
    contact.watch(bucket)

    assert contact.next_delay() is None
    assert contact.widen(9.0) == []


def test_a_forgotten_bucket_gets_no_second_attempt():
    """
    A bucket that nobody needs any more is let go of, and so are all when a pool is mended.
    """
    contact = FirstContact[str](0.5)
    contact.forget(waiting_for_one(contact))
    assert contact.next_delay() is None

    waiting_for_one(contact)
    contact.mend()

    assert contact.next_delay() is None


def test_a_failed_attempt_stood_for_all_or_for_one():
    """
    After a failure the next attempt stands alone again, unless each ticket has its own.
    """
    contact = FirstContact[str](0.5)
    bucket, plain = waiting_for_one(contact), Bucket[str]("b")
    contact.widen(1.0)

    assert contact.failed(bucket)
    assert not contact.failed(plain)

    assert (bucket.width, plain.width) == (1, inf)
