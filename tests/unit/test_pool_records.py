"""The pool's plain data: effects that compare, texts without keys, a queue that knows its oldest of every kind."""

from __future__ import annotations

from tlsagent._pool_records import Attempt, Bucket, Close, Grant, Lease, Queue, Refuse, Slot, Ticket

KEY = "secret.test:443"


def test_effects_are_equal_if_they_ask_for_the_same():
    """Effects compare by kind and content, so that tests and logs can read them."""
    close = Close("c", "eof")

    assert close == Close("c", "eof")
    assert hash(close) == hash(Close("c", "eof"))
    assert close != Close("c", "reset")
    assert close != Refuse("c", "eof")
    assert close != "c"
    assert repr(close) == "Close('c', 'eof')"


def test_reprs_show_state_but_no_key():
    """
    What is printed of leases, tickets and attempts is short and leaves the key out.
    """
    bucket = Bucket[str](KEY)
    ticket = Ticket(bucket, 1, None, False, None)
    lease = Lease(Slot("c", bucket), False, None)

    text = f"{ticket!r} {Attempt(bucket, ticket, 0.0)!r} {lease!r} {Grant(ticket, lease)!r}"

    assert "covered=False" in text
    assert "reused=False" in text
    assert "secret" not in text


def test_covered_tickets_are_the_oldest():
    """
    A queue covers its oldest uncovered ticket and uncovers the youngest covered one, so that the order never breaks.
    """
    bucket = Bucket[str](KEY)
    queue: Queue[str] = bucket.queue
    first, second, third = tickets = [Ticket(bucket, order, None, False, None) for order in range(3)]
    for ticket in tickets:
        queue.push(ticket)

    queue.cover(first)
    queue.cover(second)
    assert queue.oldest_uncovered() is third
    assert queue.uncover() is second
    queue.remove(first)

    assert (queue.oldest(), queue.oldest_uncovered()) == (second, second)
    assert (first.covered, second.covered) == (True, False)
