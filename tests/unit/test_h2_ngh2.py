"""What is particular to the layer over libnghttp2: what ngh2 leaves to its users, and what its versions must keep."""

from __future__ import annotations

import pytest
from h2_support import (
    OK,
    Client,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    StreamRecorder,
    data,
    head_of,
    raw,
)

from tlsagent.errors import ConnectionLost


@pytest.fixture
def client():
    return Client("ngh2", settings={})


def test_reset_goes_out_before_its_ping(client):
    """
    libnghttp2 lets a PING overtake; the answer would prove nothing.
    """
    stream, _ = client.open()
    client.take()

    client.engine.reset(stream)

    assert [type(frame) for frame in client.take()] == [RstStreamFrame, PingFrame]


def test_largest_head_that_is_sent(client):
    """
    libnghttp2 drops what is larger than it was told without a word: whatever the engine lets pass must be below.
    """
    for fields, least in (([(b"x", b"\xff" * (2**24 - 1_000))], 2**24), ([(b"x", b"")] * 508_000, 508_000)):
        client.engine.open(head_of(headers=fields), StreamRecorder(), True)

        frames = client.take()

        assert isinstance(frames[0], HeadersFrame)
        assert sum(len(frame.data) for frame in frames) >= least - 1_000


def test_cancelled_before_it_was_sent(client):
    """
    A request that is cancelled at once is perhaps never sent, and nobody is told of it.
    """
    stream, _ = client.open("POST", length=10)
    client.engine.send_data(stream, b"abc")
    client.engine.reset(stream)
    client.take()
    client.feed(PingFrame(opaque_data=b"12345678"))

    assert client.engine.streams == 0
    assert client.sink.failed == {}
    other, sink = client.open()
    client.take()
    client.feed(client.headers(other, OK, end=True))
    assert sink.ended


def test_window_before_the_head_is_sent(client):
    """
    A new stream has the server's initial window, though libnghttp2 does not know the stream yet.
    """
    client.feed(SettingsFrame(settings={4: 1_000}))
    stream, _ = client.open("POST", length=2_000)

    assert client.engine.window(stream) == 1_000
    client.engine.send_data(stream, b"x" * 600)
    assert client.engine.window(stream) == 400
    client.take()
    assert client.engine.window(stream) == 400
    client.engine.send_data(stream, b"x" * 400)
    assert client.engine.window(stream) == 0
    assert [len(frame.data) for frame in client.take(DataFrame)] == [400]


def test_request_that_a_goaway_overtakes(client):
    """
    What was opened and not yet sent when GOAWAY came is told to be not processed.
    """
    first, _ = client.open()
    client.take()
    unsent, _ = client.open()

    client.feed(GoAwayFrame(last_stream_id=2**31 - 1))

    error, processed = client.sink.failed[unsent]
    assert (type(error), processed) == (ConnectionLost, False)
    assert client.take(HeadersFrame) == []
    client.feed(client.headers(first, OK, end=True))
    assert client.sink.ended == [first]


def test_events_before_a_destroyed_connection_are_told(client):
    """
    ngh2 throws its connection away when a list of fields is too long; what it had read before is not lost.
    """
    stream, sink = client.open()
    other, _ = client.open()
    client.take()

    client.feed(
        client.headers(stream, OK),
        data(stream, b"abc", end=True),
        client.headers(other, [*OK, *[("x", "v" * 2_000)] * 40]),
    )

    assert sink.body == b"abc"
    assert client.sink.ended == [stream]
    assert list(client.sink.failed) == [other]
    assert client.goaway == 11
    assert client.engine.data_to_send() == b""
    client.engine.consumed(stream, 3)
    client.engine.reset(other)
    client.engine.ping()
    client.engine.close()
    assert client.take() == []


def test_calls_after_libnghttp2_has_given_up(client):
    """
    Bytes for a stream that was forgotten, and then a fault, in one piece: the credit comes too late and is not missed.
    """
    stream, _ = client.open()
    client.take()
    client.engine.reset(stream)

    client.feed(client.headers(stream, OK), data(stream, b"abc"), raw(0, 0, 0, b"x"))

    assert client.goaway == 1


def test_odd_frames_are_counted_by_libnghttp2(client):
    """
    Tens of thousands of frames that are for nobody end the connection.
    """
    client.feed(raw(0xEE, 0, 0) * 9_000)
    assert client.error is None
    client.feed(raw(0xEE, 0, 0) * 100_000)

    assert client.goaway == 11
