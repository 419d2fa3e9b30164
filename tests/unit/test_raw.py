"""
The plaintext of a raw connection, kept until it is taken.
"""

from __future__ import annotations

import pytest

from tlsagent._raw import HIGH_WATER, RawStream
from tlsagent.errors import ConnectionLost, InactivityTimeout


class Connection:
    """What a RawStream asks of a connection."""

    error = None
    dead = None


def stream(*chunks):
    raw = RawStream()
    for chunk in chunks:
        raw.plaintext_received(chunk, 0.0)
    return raw


def test_bytes_come_in_order():
    """Pieces are handed out as they came, cut to what is asked for."""
    raw = stream(b"abc", b"defg")

    taken = [raw.take(2, Connection) for _ in range(4)]

    assert taken == [b"ab", b"c", b"de", b"fg"]
    assert raw.take(2, Connection) is None


def test_held_counts_what_waits():
    """`held` is what has not been taken: the driver stops reading beyond the high-water mark."""
    raw = stream(b"abc", b"de")
    assert raw.held == 5
    raw.take(2, Connection)
    assert raw.held == 3
    raw.take(100, Connection)
    raw.take(100, Connection)
    assert raw.held == 0
    assert HIGH_WATER > 0


def test_clean_end():
    """After close_notify what is left comes first, then b"" for ever."""
    raw = stream(b"abc")
    raw.plaintext_ended(True, 0.0)
    raw.plaintext_ended(False, 0.0)  # the end of the transport that follows changes nothing

    assert [raw.take(9, Connection) for _ in range(3)] == [b"abc", b"", b""]


def test_truncation():
    """An end without close_notify is an error, after what came before it."""
    raw = stream(b"abc")
    raw.plaintext_ended(False, 0.0)

    assert raw.take(9, Connection) == b"abc"
    with pytest.raises(ConnectionLost, match="without close_notify") as caught:
        raw.take(9, Connection)
    assert caught.value.phase == "receive"


def test_error_of_the_connection():
    """What ended the connection is raised, after what came before it."""
    connection = Connection()
    raw = stream(b"abc")
    connection.error = InactivityTimeout("silent")

    assert raw.take(9, connection) == b"abc"
    with pytest.raises(InactivityTimeout):
        raw.take(9, connection)


def test_connection_that_we_closed():
    """After our own close reading is an error: b"" would say that the peer has ended in good order."""
    connection = Connection()
    connection.dead = "close"

    with pytest.raises(ConnectionLost):
        stream().take(9, connection)
