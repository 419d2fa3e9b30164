"""What is particular to the layer over the parts of h2."""

from __future__ import annotations

import tracemalloc

import pytest
from h2_support import OK, Client, DataFrame, GoAwayFrame, SettingsFrame, WindowUpdateFrame, data, raw


@pytest.fixture
def client():
    return Client("h2", settings={})


def test_head_of_a_frame_may_come_in_parts(client):
    """
    Nine bytes make the head of a frame; before them nothing can be said.
    """
    stream, sink = client.open()
    client.take()
    said = client.headers(stream, OK).serialize() + data(stream, b"abc", end=True).serialize()

    for at in range(0, len(said), 4):
        client.feed(said[at : at + 4])

    assert (sink.body, client.sink.ended) == (b"abc", [stream])


def test_reserved_bit_of_a_goaway_is_ignored(client):
    """
    RFC 9113, 6.8: the first bit of the last stream means nothing.
    """
    client.feed(raw(7, 0, 0, b"\x80\0\0\1" + b"\0\0\0\0"))

    assert client.error is None
    assert client.sink.goaways == [(1, 0, b"")]


def test_compression_table_of_the_peer_is_not_followed_beyond_4096(client):
    """
    A server that offers a table of four gigabytes does not get us to fill it.
    """
    client.feed(SettingsFrame(settings={1: 2**32 - 1}))
    client.take()
    for number in range(100):
        client.open(headers={"x": f"{number:0200}"})
        [frame] = client.take()
        client.fields(frame)  # the decoder would refuse a table beyond 4,096


def test_compression_table_can_be_shut(client):
    """
    A server that wants no table gets fields that need none.
    """
    client.feed(SettingsFrame(settings={1: 0}))
    client.take()
    client.decoder.max_allowed_table_size = 0
    for _ in range(3):
        client.open(headers={"x": "y"})
        [frame] = client.take()
        assert (b"x", b"y") in client.fields(frame)


def test_settings_that_nobody_knows_are_forgotten(client):
    """
    Sixty-five thousand of them leave nothing behind.
    """

    def send(first, last):
        for start in range(first, last, 32):
            settings = [number.to_bytes(2, "big") + b"\1\2\3\4" for number in range(start, start + 32)]
            client.now += 1
            client.feed(raw(4, 0, 0, b"".join(settings)))
            client.take()

    send(100, 1_000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        send(1_000, 65_000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert client.error is None
    assert grown < 20_000


def test_too_many_settings_in_a_frame(client):
    """
    As in libnghttp2, thirty-two are enough.
    """
    client.feed(SettingsFrame(settings=dict.fromkeys(range(100, 133), 1)))

    assert client.goaway == 11


def test_windows_of_streams_opened_before_the_acknowledgement():
    """
    Until the server has taken note of our settings, its window is the one of RFC 9113.
    """
    client = Client("h2", stream_window=10)
    stream, sink = client.open()
    client.take()

    client.feed(SettingsFrame(), client.headers(stream, OK), data(stream, b"x" * 16_000))
    assert client.sink.failed == {}
    client.feed(SettingsFrame(flags=["ACK"]))
    assert client.sink.failed == {}
    client.feed(data(stream, b"x"))

    assert len(sink.body) == 16_000
    assert list(client.sink.failed) == [stream]


def test_small_windows_are_refilled():
    """
    A window of one byte works, too.
    """
    client = Client("h2", settings={}, stream_window=1)
    stream, sink = client.open()
    client.take()
    client.feed(client.headers(stream, OK))

    for _ in range(5):
        client.feed(data(stream, b"x"))
        client.engine.consumed(stream, 1)
        assert [frame.window_increment for frame in client.take(WindowUpdateFrame)] == [1]

    assert sink.body == b"xxxxx"


def test_empty_piece_is_a_frame_only_at_the_end(client):
    """
    An upload ends with a frame of no bytes if nothing else is left.
    """
    stream, _ = client.open("POST", length=-1)
    client.engine.send_data(stream, b"abc")
    client.engine.end_request(stream)

    assert [(frame.data, set(frame.flags)) for frame in client.take(DataFrame)] == [
        (b"abc", set()),
        (b"", {"END_STREAM"}),
    ]


def test_goaway_frees_the_streams_above(client):
    """
    What is not processed is forgotten here, too: late frames for it are dropped.
    """
    stream, _ = client.open()
    client.take()
    client.feed(GoAwayFrame(last_stream_id=0), client.headers(stream, OK), data(stream, b"x"))
    client.feed(client.headers(stream, [(":status", "none")]))

    assert client.error is None
    assert client.take() == []
    assert list(client.sink.failed) == [stream]
