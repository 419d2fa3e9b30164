"""
HTTP/2 as it should go, on both engines: requests, windows, the number of streams, GOAWAY, resets, PING.

The peer is made of frames, or is h2 in the role of a server. What broken peers do is in `test_h2_hostile.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
from h2_support import (
    ENGINES,
    OK,
    Client,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    StreamRecorder,
    WindowUpdateFrame,
    data,
    head_of,
)

import tlsagent
from tlsagent._http.engines import http2_engine
from tlsagent._http.h2 import ErrorCode, H2Engine
from tlsagent._http.messages import RequestHead
from tlsagent._limits import Http2Options
from tlsagent.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError, StreamReset

PACKAGE = str(Path(tlsagent.__file__).parent)


@pytest.fixture(params=ENGINES)
def name(request):
    return request.param


@pytest.fixture(params=["whole", "bytewise"])
def client(request, name):
    return Client(name, settings={}, bytewise=request.param == "bytewise")


def answer_pings(client: Client) -> int:
    pings = [frame for frame in client.take(PingFrame) if "ACK" not in frame.flags]
    client.feed(*[PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]) for ping in pings])
    return len(pings)


# --- Requests and responses -------------------------------------------------------------------------------------------


def test_connection_begins_with_settings(name):
    """
    The preface, SETTINGS without push and with our windows, and the window of the connection.
    """
    settings, update = Client(
        name, stream_window=100_000, connection_window=500_000, max_header_list_size=9_999
    ).greeting

    assert dict(settings.settings) == {2: 0, 4: 100_000, 6: 9_999}
    assert (update.stream_id, update.window_increment) == (0, 2 * 500_000 - 65_535)


def test_request_and_response(client):
    """
    A request goes out in one frame of fields; head, body and end of its response come in order.
    """
    stream, sink = client.open(headers={"Accept": "*/*"})
    [frame] = client.take()

    client.feed(
        client.headers(stream, [*OK, ("server", "x"), ("content-length", "6")]),
        data(stream, b"abc"),
        data(stream, b"def"),
    )
    assert client.sink.ended == []
    client.feed(data(stream, end=True))

    assert client.fields(frame) == [
        (b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/"), (b"accept", b"*/*"),
    ]  # fmt: skip
    assert set(frame.flags) == {"END_HEADERS", "END_STREAM"}
    assert (sink.status, sink.head.reason, sink.head.headers["server"]) == (200, "", "x")
    assert (sink.body, sink.ended, sink.trailers) == (b"abcdef", True, None)
    assert client.sink.ended == [stream]
    assert client.sink.failed == {}
    assert client.engine.streams == 0


def test_streams_are_numbered_and_answered_in_any_order(client):
    """
    Requests share the connection, and each gets what comes on its own stream.
    """
    streams = [client.open() for _ in range(3)]
    client.take()
    numbers = [stream for stream, _ in streams]
    assert numbers == [1, 3, 5]

    for stream in reversed(numbers):
        client.feed(client.headers(stream, OK))
    for stream in numbers:
        client.feed(data(stream, b"%d" % stream, end=True))

    assert [sink.body for _, sink in streams] == [b"1", b"3", b"5"]
    assert client.sink.ended == numbers


@pytest.mark.parametrize("pad", [0, 1, 200])
def test_padding_is_dropped(client, pad):
    """
    Padding is no body, and costs the peer no credit in the end.
    """
    stream, sink = client.open()
    client.take()

    client.feed(client.headers(stream, OK), data(stream, b"abc", pad=pad, end=True))

    assert sink.body == b"abc"
    assert client.sink.ended == [stream]


def test_informational_responses_come_first(client):
    """
    Any 1xx is told, and the final response follows.
    """
    stream, sink = client.open("POST", {"Expect": "100-continue"}, length=3)
    head = client.take()[0]
    assert (b"expect", b"100-continue") in client.fields(head)

    client.feed(
        client.headers(stream, [(":status", "103"), ("link", "x")]), client.headers(stream, [(":status", "100")])
    )
    assert [head.status for head in sink.informational] == [103, 100]
    client.engine.send_data(stream, b"abc", end=True)
    client.feed(client.headers(stream, OK, end=True))

    assert sink.status == 200
    assert client.sink.ended == [stream]


@pytest.mark.parametrize("fields", [{"x": "v" * 2**24}, {"cookie": ";".join("a" * 431_000)}, [("x", "")] * 509_000])
def test_fields_that_are_too_large_to_send(name, fields):
    """
    A head, or trailers, of more than 16 MB are refused, and nothing of them is sent; the connection takes the next.
    """
    client = Client(name, settings={})
    stream, _ = client.open("POST", length=-1)
    head = head_of(headers=fields)
    client.take()

    for _ in range(2):  # as when it is sent again elsewhere
        with pytest.raises(LocalProtocolError, match="send them as content") as caught:
            client.engine.open(head, StreamRecorder(), True)
        assert caught.value.code == "ERR_TLSAGENT_FIELDS_TOO_LARGE"
    if "cookie" not in fields:
        with pytest.raises(LocalProtocolError, match="send them as content"):
            client.engine.end_request(stream, fields)

    assert client.take() == []
    client.open()
    assert len(client.take(HeadersFrame)) == 1


def test_trailers_of_a_response(client):
    """
    Fields after the body are handed up with its end; an empty list of them is none.
    """
    stream, sink = client.open()
    other, other_sink = client.open()
    client.take()

    client.feed(client.headers(stream, OK), data(stream, b"abc"), client.headers(stream, [("digest", "x")], end=True))
    client.feed(client.headers(other, OK), client.headers(other, [], end=True))

    assert sink.trailers.items() == [("digest", "x")]
    assert (other_sink.ended, other_sink.trailers) == (True, None)
    assert client.sink.ended == [stream, other]


@pytest.mark.parametrize(
    ("method", "status", "fields"),
    [
        ("HEAD", "200", [("content-length", "5")]),
        ("GET", "304", [("content-length", "5")]),
        ("GET", "204", []),
        ("GET", "204", [("content-length", "0")]),
        ("GET", "200", [("content-length", "0")]),
    ],
)
@pytest.mark.parametrize("empty", [False, True], ids=["at once", "by empty DATA"])
def test_response_without_body(client, method, status, fields, empty):
    """
    What has no body ends without one, whatever length it announces.
    """
    stream, sink = client.open(method)
    client.take()

    client.feed(client.headers(stream, [(":status", status), *fields], end=not empty))
    if empty:
        client.feed(data(stream, end=True))

    assert (sink.status, sink.pieces, sink.ended) == (int(status), [], True)
    assert client.sink.failed == {}
    assert client.sink.ended == [stream]


def test_head_has_no_body(client):
    """
    A body in the response to HEAD is a fault of the stream.
    """
    stream, _ = client.open("HEAD")
    client.take()

    client.feed(client.headers(stream, OK), data(stream, b"x", end=True))

    assert type(client.sink.failed[stream][0]) is RemoteProtocolError
    assert client.error is None


def test_body_is_framed(client):
    """
    A body goes out in frames of 16,384 bytes at most, the last one marked as such.
    """
    body = bytes(range(256)) * 150
    stream, _ = client.open("PUT", length=len(body))
    client.engine.send_data(stream, memoryview(body)[:100])
    client.engine.send_data(stream, body[100:], end=True)
    head, *frames = client.take()

    assert (b"content-length", b"38400") in client.fields(head)
    assert "END_STREAM" not in head.flags
    assert all(len(frame.data) <= 16_384 for frame in frames)
    assert b"".join(frame.data for frame in frames) == body
    assert ["END_STREAM" in frame.flags for frame in frames] == [False] * (len(frames) - 1) + [True]


@pytest.mark.parametrize("trailers", [(), {"Digest": "x"}])
def test_body_of_unknown_length(client, trailers):
    """
    Such a body needs no chunks here; its trailers go out in lower case.
    """
    stream, _ = client.open("POST", length=-1)
    client.engine.send_data(stream, b"abc")
    assert client.engine.end_request(stream, trailers) is False
    head, *frames = client.take()

    assert [name for name, _ in client.fields(head)] == [b":method", b":scheme", b":authority", b":path"]
    assert b"".join(frame.data for frame in frames if isinstance(frame, DataFrame)) == b"abc"
    assert "END_STREAM" in frames[-1].flags
    if trailers:
        assert client.fields(frames[-1]) == [(b"digest", b"x")]


@pytest.mark.parametrize("pieces", [[b"abcd"], [b"ab", b"cd"]])
def test_body_longer_than_announced_is_refused(client, pieces):
    """
    The piece that is too long is not sent.
    """
    stream, _ = client.open("POST", length=3)
    for piece in pieces[:-1]:
        client.engine.send_data(stream, piece)
    with pytest.raises(LocalProtocolError) as caught:
        client.engine.send_data(stream, pieces[-1])

    assert caught.value.code == "ERR_HTTP_CONTENT_LENGTH_MISMATCH"
    assert sum(len(frame.data) for frame in client.take(DataFrame)) <= 3


def test_body_shorter_than_announced_is_refused(client):
    """
    A request cannot end before its announced length, with or without trailers, nor be opened so.
    """
    stream, _ = client.open("POST", length=3)
    client.engine.send_data(stream, b"ab")

    with pytest.raises(LocalProtocolError):
        client.engine.end_request(stream)
    with pytest.raises(LocalProtocolError):
        client.engine.end_request(stream, {"a": "b"})
    with pytest.raises(LocalProtocolError):
        client.engine.send_data(stream, b"", end=True)
    with pytest.raises(LocalProtocolError):
        client.open("POST", length=3, end=True)
    assert client.engine.streams == 1


def test_response_before_the_end_of_the_request(client):
    """
    The response is complete, the stream is not: it is over when the request has ended too, which is told by the call.
    """
    stream, sink = client.open("POST", length=6)
    client.engine.send_data(stream, b"abc")
    client.take()

    client.feed(client.headers(stream, OK, end=True))
    assert sink.ended
    assert client.sink.ended == []
    assert client.engine.send_data(stream, b"def", end=True) is True

    assert client.engine.streams == 0
    assert client.sink.ended == []
    assert client.engine.send_data(stream, b"more") is True
    assert client.engine.end_request(stream) is True
    assert [frame.data for frame in client.take(DataFrame)] == [b"def"]


@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.CANCEL])
def test_reset_after_a_full_response(client, code):
    """
    RFC 9113, 8.1: a server that has answered may refuse the rest of the request; the response stands.
    """
    stream, sink = client.open("POST", length=-1)
    client.take()

    client.feed(client.headers(stream, OK), data(stream, b"no", end=True), RstStreamFrame(stream, code))

    assert (sink.body, sink.ended) == (b"no", True)
    assert client.sink.ended == [stream]
    assert client.sink.failed == {}
    assert client.engine.window(stream) == 0
    assert client.engine.send_data(stream, b"rest") is True


def test_connect(client):
    """
    CONNECT has neither scheme nor path; its stream carries bytes both ways, whatever length is announced.
    """
    head = RequestHead(
        b"CONNECT",
        b"b.test:443",
        authority=b"b.test:443",
        headers=[],
        content_length=None,
        chunked=False,
        keep_alive=True,
    )
    sink = StreamRecorder()
    stream = client.engine.open(head, sink, False)
    [frame] = client.take()
    assert client.fields(frame) == [(b":method", b"CONNECT"), (b":authority", b"b.test:443")]

    client.feed(client.headers(stream, [*OK, ("content-length", "3")]), data(stream, b"hello"))
    client.engine.send_data(stream, b"olleh")

    assert sink.body == b"hello"
    assert [frame.data for frame in client.take(DataFrame)] == [b"olleh"]
    client.feed(data(stream, b"!", end=True))
    assert client.engine.end_request(stream) is True


def test_extended_connect(name):
    """
    RFC 8441: only where the server has said that it takes it.
    """
    head = RequestHead(
        b"CONNECT", b"/chat", authority=b"a.test", headers=[(b"Origin", b"x")], content_length=None, chunked=False,
        keep_alive=True,
    )  # fmt: skip
    client = Client(name, settings={})
    with pytest.raises(LocalProtocolError, match="8441"):
        client.engine.open(head, StreamRecorder(), False, protocol=b"websocket")
    assert client.engine.streams == 0

    client.feed(SettingsFrame(settings={8: 1}))
    client.take()
    client.engine.open(head, StreamRecorder(), False, protocol=b"websocket")

    [frame] = client.take()
    assert client.fields(frame) == [
        (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":authority", b"a.test"),
        (b":path", b"/chat"), (b"origin", b"x"),
    ]  # fmt: skip


def test_long_heads_take_several_frames(name):
    """
    A request whose fields fill more than one frame is continued.
    """
    client = Client(name, settings={})
    client.open(headers={f"x-{i}": "\xff" * 1_000 for i in range(60)})

    head, *more = client.take()
    assert more
    head.data += b"".join(frame.data for frame in more)
    client.decoder.max_header_list_size = 2**20
    assert len(client.fields(head)) == 64
    assert "END_HEADERS" in (more[-1].flags)


def test_credentials_are_never_indexed(client):
    """
    RFC 7541, 7.1.3: what could be guessed by watching sizes stays out of the compression tables.
    """
    for _ in range(2):
        client.open(headers={"Authorization": "Bearer s3cret", "Cookie": "a=1"})
    first, second = client.take()
    client.fields(first)

    fields = client.decoder.decode(second.data, raw=True)
    assert {bytes(name) for name, _ in (f for f in fields if not f.indexable)} == {b"authorization", b"cookie"}


# --- Windows ----------------------------------------------------------------------------------------------------------


def test_credit_of_a_stream_follows_its_consumer(client):
    """
    Bytes that nobody has read are not replaced; half a window that was read is.
    """
    client.bytewise = False
    stream, sink = client.open()
    client.take()
    client.feed(client.headers(stream, OK), *[data(stream, b"x" * 16_384)] * 40)
    assert client.take(WindowUpdateFrame) == []

    client.engine.consumed(stream, 500_000)
    assert client.take(WindowUpdateFrame) == []
    client.engine.consumed(stream, 40 * 16_384 - 500_000)

    [update] = client.take(WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (stream, 40 * 16_384)
    assert len(sink.body) == 40 * 16_384


@pytest.mark.parametrize(
    "how", ["consumed after the end", "reset after the end", "reset", "failed", "malformed", "padding", "unknown"]
)
def test_credit_of_the_connection_always_comes_back(name, how):
    """
    Whatever becomes of a stream, the connection gets its bytes back: fifty windows' worth passes.
    """
    client = Client(name, settings={}, connection_window=100_000, control_frames=100_000)
    body = b"x" * 10_000
    received = 0

    for _ in range(500):
        stream, _ = client.open()
        client.take()
        client.feed(client.headers(stream, OK if how != "malformed" else [*OK, ("content-length", "5")]))
        if how in ("consumed after the end", "reset after the end"):
            client.feed(data(stream, body, end=True))
            client.engine.consumed(stream, 10_000) if how.startswith("consumed") else client.engine.reset(stream)
        elif how == "reset":
            client.feed(data(stream, body))
            client.engine.reset(stream)
        elif how == "failed":
            client.feed(data(stream, body), RstStreamFrame(stream, 2))
            client.sink.failed.clear()
        elif how == "malformed":
            client.feed(data(stream, body))
            client.sink.failed.clear()
        elif how == "padding":
            client.feed(*[data(stream, b"", pad=255)] * 40, data(stream, end=True))
        else:
            client.engine.reset(stream)
            client.feed(data(stream, body))
        received += 10_000
        answer_pings(client)
        answer_pings(client)

    assert client.error is None
    assert received == 50 * 100_000
    assert client.engine.capacity > 0


def test_streams_that_nobody_reads_hold_up_no_other(name):
    """
    Nearly `connection_window` is waiting, and a stream that is read goes on and on; the peer never lacks credit.
    """
    client = Client(name, settings={}, stream_window=100_000, connection_window=100_000)
    slow, quick = client.open()[0], client.open()[0]
    client.take()
    client.feed(client.headers(slow, OK), client.headers(quick, OK), *[data(slow, b"x" * 14_000)] * 7)
    room = 2 * 100_000 - 7 * 14_000

    for _ in range(200):
        assert room >= 10_000
        client.feed(data(quick, b"x" * 10_000))
        client.engine.consumed(quick, 10_000)
        updates = client.take(WindowUpdateFrame)
        room += sum(frame.window_increment for frame in updates if not frame.stream_id) - 10_000

    assert client.error is None
    assert client.sink.failed == {}


def test_upload_obeys_the_windows(client):
    """
    No more goes out than both windows allow; when they open, the one who was stopped is told, once.
    """
    stream, _ = client.open("POST", length=200_000)
    other, _ = client.open("POST", length=10)
    engine = client.engine
    assert engine.window(stream) == 65_535
    engine.send_data(stream, b"x" * 65_535)
    assert engine.window(stream) == engine.window(other) == 0
    client.take()

    client.feed(WindowUpdateFrame(stream, 1_000))
    assert client.sink.opened == []
    client.feed(WindowUpdateFrame(0, 500))
    assert client.sink.opened == [stream, other]
    assert (engine.window(stream), engine.window(other)) == (500, 500)
    client.feed(WindowUpdateFrame(0, 500))
    assert client.sink.opened == [stream, other]
    engine.send_data(stream, b"x" * 1_000)
    assert engine.window(stream) == 0
    client.feed(WindowUpdateFrame(0, 5))
    assert client.sink.opened == [stream, other]
    client.feed(WindowUpdateFrame(stream, 3))

    assert client.sink.opened == [stream, other, stream]
    client.feed(WindowUpdateFrame(stream, 1))
    assert client.sink.opened == [stream, other, stream]
    assert engine.window(stream) == 4


@pytest.mark.parametrize("end", ["reset", "reset by the server", "response"])
def test_stream_that_ends_while_it_waits_for_a_window(client, end):
    """
    It waits no more: what opens the windows of others concerns it no longer.
    """
    client.feed(SettingsFrame(settings={4: 0}))
    stream, _ = client.open("POST", length=10)
    other, _ = client.open("POST", length=10)
    assert client.engine.window(stream) == client.engine.window(other) == 0
    client.take()
    if end == "reset by the server":
        client.feed(RstStreamFrame(stream, ErrorCode.CANCEL))
    else:
        client.feed(client.headers(stream, OK, end=end == "response"))
        client.engine.reset(stream)

    client.feed(SettingsFrame(settings={4: 10}), WindowUpdateFrame(0, 10), WindowUpdateFrame(stream, 10))

    assert client.sink.opened == [other]
    assert client.error is None


def test_initial_window_moves_those_of_open_streams(client):
    """
    SETTINGS may open the windows of streams, and shut them: below zero, too.
    """
    stream, _ = client.open("POST", length=200_000)
    client.engine.send_data(stream, b"x" * 100)
    client.take()

    client.feed(SettingsFrame(settings={4: 50}))
    assert client.engine.window(stream) == 0
    client.feed(WindowUpdateFrame(stream, 50))
    assert client.sink.opened == []
    client.feed(SettingsFrame(settings={4: 150}))

    assert client.sink.opened == [stream]
    assert client.engine.window(stream) == 100
    fresh, _ = client.open("POST", length=1_000)
    assert client.engine.window(fresh) == 150


def test_window_of_a_request_that_is_sent(client):
    """
    What has ended has no window, and does not wait for one.
    """
    stream, _ = client.open()
    posted, _ = client.open("POST", length=1)
    client.engine.send_data(posted, b"x", end=True)

    assert client.engine.window(stream) == client.engine.window(posted) == client.engine.window(99) == 0
    client.take()
    client.feed(WindowUpdateFrame(0, 5), WindowUpdateFrame(posted, 5))
    assert client.sink.opened == []


# --- How many streams -------------------------------------------------------------------------------------------------


def test_capacity_before_the_settings(name):
    """
    A hundred streams until the server has spoken, unless we want fewer.
    """
    assert Client(name).engine.capacity == 100
    assert Client(name, max_streams=7).engine.capacity == 7


@pytest.mark.parametrize(("settings", "capacity"), [({}, 1_000), ({3: 5}, 5), ({3: 0}, 0), ({3: 2**32 - 1}, 1_000)])
def test_capacity_is_the_servers_or_ours(name, settings, capacity):
    """
    MAX_CONCURRENT_STREAMS is obeyed, and `max_streams`; a change is told.
    """
    client = Client(name, settings=settings)

    assert client.engine.capacity == capacity
    assert client.sink.changes == 1


def test_capacity_falls_and_rises(client):
    """
    Each open stream takes a place; a limit that is lowered below them leaves none, and no stream is harmed.
    """
    streams = [client.open()[0] for _ in range(3)]
    client.take()
    changes = client.sink.changes

    client.feed(SettingsFrame(settings={3: 2}))
    assert client.engine.capacity == 0
    assert client.sink.changes == changes + 1
    with pytest.raises(LocalProtocolError) as caught:
        client.open()
    assert caught.value.code == "ERR_HTTP2_OUT_OF_STREAMS"
    client.feed(*[client.headers(stream, OK, end=True) for stream in streams[:2]])

    assert client.engine.capacity == 1
    client.feed(SettingsFrame(settings={4: 100_000}))
    assert client.engine.capacity == 1
    assert client.sink.changes == changes + 1


def test_reset_stream_keeps_its_place_until_a_ping(client):
    """
    RST_STREAM goes out with a PING; only its answer frees the place, for the resets before that PING.
    """
    client.feed(SettingsFrame(settings={3: 3}))
    first, second, third = (client.open()[0] for _ in range(3))
    client.take()
    client.engine.reset(first)
    reset, ping = client.take()
    assert (reset.stream_id, reset.error_code) == (first, ErrorCode.CANCEL)
    client.engine.reset(second, ErrorCode.NO_ERROR)
    [late] = client.take()
    assert (late.stream_id, late.error_code) == (second, ErrorCode.NO_ERROR)
    assert (client.engine.streams, client.engine.capacity) == (1, 0)
    changes = client.sink.changes

    client.feed(PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]))
    assert client.engine.capacity == 1
    assert client.sink.changes == changes + 1
    [again] = client.take(PingFrame)
    assert again.opaque_data != ping.opaque_data
    client.feed(PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]))
    assert client.engine.capacity == 1
    client.feed(PingFrame(opaque_data=again.opaque_data, flags=["ACK"]))

    assert client.engine.capacity == 2
    assert client.take(PingFrame) == []
    assert not client.engine.asking
    assert client.sink.ended == []
    assert client.sink.failed == {}
    assert client.sink.pongs == []
    client.feed(client.headers(third, OK, end=True))
    assert client.engine.capacity == 3


def test_ping_frees_the_places_of_the_resets_before_it(client):
    """
    However many there are: while one PING is under way more are reset, and the next one stands for all of those.
    """
    client.feed(SettingsFrame(settings={3: 9}))
    streams = [client.open()[0] for _ in range(9)]
    client.take()

    capacities = []
    for before, meanwhile in ((1, 3), (0, 1), (0, 0)):
        for _ in range(before):
            client.engine.reset(streams.pop())
        [ping] = client.take(PingFrame)
        for _ in range(meanwhile):
            client.engine.reset(streams.pop())
        client.take()
        client.feed(PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]))
        capacities.append(client.engine.capacity)

    assert capacities == [1, 4, 5]
    assert client.take(PingFrame) == []


def test_stream_that_is_over_swallows_the_rest_of_its_request(client):
    """
    Who sends a body need not know that its stream was reset meanwhile: there is no room, and nothing goes out.
    """
    stream, _ = client.open("POST", length=-1)
    client.take()
    client.feed(RstStreamFrame(stream, ErrorCode.CANCEL))

    assert client.engine.window(stream) == 0
    assert client.engine.send_data(stream, b"x")
    assert client.engine.end_request(stream)
    assert client.engine.end_request(stream, [("a", "b")])
    assert client.take() == []


def test_reset_of_what_is_over_does_nothing(client):
    """
    A cancellation that comes late harms nobody.
    """
    stream, _ = client.open()
    client.take()
    client.feed(client.headers(stream, OK), data(stream, b"x", end=True))

    client.engine.reset(stream)
    client.engine.reset(stream)
    client.engine.reset(99)

    assert client.take() == []
    assert client.engine.capacity == 1_000


class LastStreams:
    """A frame layer that has almost used up the numbers of streams, which would take a billion requests."""

    name = "last"

    def __init__(self) -> None:
        self.next_id = 2**31 - 3

    def request(self, fields, end) -> int:
        self.next_id += 2
        return self.next_id - 2

    def start(self) -> None:
        pass


def test_connection_drains_when_its_numbers_are_used_up():
    """
    The stream 2**31 - 1 is the last one.
    """
    engine = H2Engine(Http2Options(), LastStreams())

    assert engine.open(head_of(), StreamRecorder(), True) == 2**31 - 3
    assert not engine.draining
    assert engine.open(head_of(), StreamRecorder(), True) == 2**31 - 1
    assert engine.draining
    assert engine.capacity == 0


def test_body_may_be_consumed_in_parts_after_its_end(client):
    """
    What is read of a response that has ended is credited once, however often it is told, and all of it.
    """
    client = Client(client.engine.name, settings={}, connection_window=70_000)

    for _ in range(2):
        stream, _ = client.open()
        client.take()
        client.feed(client.headers(stream, OK), *[data(stream, b"x" * 16_000, end=piece == 4) for piece in range(5)])
        client.engine.consumed(stream, 30_000)
        client.engine.consumed(stream, 30_000)
        assert client.take() == []
        client.engine.consumed(stream, 30_000)
        client.engine.consumed(stream, 30_000)
        client.engine.reset(stream)

        assert [(update.stream_id, update.window_increment) for update in client.take()] == [(0, 80_000)]


# --- The end ----------------------------------------------------------------------------------------------------------


def test_goaway_in_two_steps(client):
    """
    After the first GOAWAY no stream is opened; the second one tells which are not processed; those below go on.
    """
    first, sink = client.open()
    second, _ = client.open()
    client.take()

    client.feed(GoAwayFrame(last_stream_id=2**31 - 1, additional_data=b"bye"))
    assert (client.engine.draining, client.engine.capacity, client.engine.streams) == (True, 0, 2)
    assert client.sink.goaways == [(2**31 - 1, 0, b"bye")]
    assert client.sink.failed == {}
    with pytest.raises(ConnectionLost) as caught:
        client.open()
    assert caught.value.code == "ERR_HTTP2_GOAWAY_SESSION"
    client.feed(GoAwayFrame(last_stream_id=first), client.headers(first, OK), data(first, b"done", end=True))

    error, processed = client.sink.failed[second]
    assert (type(error), error.code, processed) == (ConnectionLost, "ERR_HTTP2_GOAWAY_SESSION", False)
    assert (sink.body, client.sink.ended) == (b"done", [first])
    assert client.error is None
    assert client.engine.streams == 0


def test_goaway_with_error(client):
    """
    The code is part of the error that those meet whom the server has left in the lurch.
    """
    first, _ = client.open()
    second, _ = client.open()
    client.take()

    client.feed(GoAwayFrame(last_stream_id=first, error_code=ErrorCode.ENHANCE_YOUR_CALM))
    client.eof()

    (lost, lost_processed), (refused, refused_processed) = client.sink.failed[first], client.sink.failed[second]
    assert (lost_processed, refused_processed) == (True, False)
    assert "ENHANCE_YOUR_CALM" in str(lost)
    assert "ENHANCE_YOUR_CALM" in str(refused)
    assert lost.code == "ERR_HTTP2_SESSION_ERROR"


def test_goaway_while_idle(client):
    """
    A connection without streams is of no use afterwards, and nothing that follows is an error.
    """
    client.feed(GoAwayFrame(last_stream_id=2**31 - 1))
    client.take()
    client.feed(GoAwayFrame(last_stream_id=0), PingFrame(opaque_data=b"12345678"))

    assert client.engine.draining
    assert client.error is None
    client.engine.ping()
    client.engine.close()
    assert client.goaway == ErrorCode.NO_ERROR
    client.eof()
    assert client.sink.failed == {}


def test_close(client):
    """
    Our GOAWAY goes out once; open streams go on; with none left, nothing is read any more.
    """
    stream, sink = client.open()
    client.take()

    client.engine.close()
    client.engine.close()
    assert client.goaway == ErrorCode.NO_ERROR
    assert (client.engine.draining, client.engine.capacity, client.engine.streams) == (True, 0, 1)
    client.feed(client.headers(stream, OK), data(stream, b"done", end=True))
    client.engine.consumed(stream, 4)
    assert (sink.body, client.sink.ended) == (b"done", [stream])

    client.engine.close()
    client.feed(b"anything goes now")
    client.engine.ping()
    client.engine.reset(stream)
    assert client.error is None
    assert client.goaway is None


def test_cancel_while_draining(client):
    """
    Each call can still be made when the last stream is reset after a GOAWAY.
    """
    stream, _ = client.open()
    client.take()
    client.feed(client.headers(stream, OK), data(stream, b"abc"), GoAwayFrame(last_stream_id=stream))

    client.engine.reset(stream)
    assert [frame.stream_id for frame in client.take(RstStreamFrame)] == [stream]
    client.engine.consumed(stream, 3)
    client.engine.ping()
    client.engine.close()
    assert client.goaway == ErrorCode.NO_ERROR
    client.feed(PingFrame(opaque_data=b"12345678"))
    assert client.error is None


@pytest.mark.parametrize(
    ("code", "processed"),
    [(ErrorCode.REFUSED_STREAM, False), (ErrorCode.NO_ERROR, True), (ErrorCode.CANCEL, True), (0xBEEF, True)],
)
@pytest.mark.parametrize("begun", [False, True])
def test_reset_by_the_server(client, code, processed, begun):
    """
    The stream fails with the code; only REFUSED_STREAM proves that the request was not processed.
    """
    stream, sink = client.open()
    client.take()

    client.feed(*[client.headers(stream, OK)][: int(begun)], RstStreamFrame(stream, code))

    error, told = client.sink.failed[stream]
    assert (type(error), error.error_code, error.code) == (StreamReset, code, "ERR_HTTP2_STREAM_ERROR")
    assert told is processed
    assert not sink.ended
    assert client.error is None
    assert client.engine.capacity == 1_000


def test_ping_is_answered(client):
    """
    Theirs by us with the same bytes, ours by `pong` with the time.
    """
    client.feed(PingFrame(opaque_data=b"\0\1\2\3\4\5\6\7"))
    [pong] = client.take()
    assert (pong.opaque_data, set(pong.flags)) == (b"\0\1\2\3\4\5\6\7", {"ACK"})

    client.engine.ping()
    client.engine.ping()
    [ping] = client.take()
    client.now = 1_234.5
    client.feed(PingFrame(opaque_data=b"whatever", flags=["ACK"]))
    assert client.sink.pongs == []
    client.feed(PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]))

    assert client.sink.pongs == [1_234.5]
    client.engine.ping()
    assert len(client.take(PingFrame)) == 1


# --- Against h2 as a server -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 7, 4_096, 10**9])
def test_against_h2(name, cut):
    """
    Fifty requests with bodies against h2's own server: echoed whole, through windows smaller than the bodies.
    """
    client = Client(name, stream_window=20_000, connection_window=65_535, control_frames=100_000)
    engine = client.engine
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(frame.serialize() for frame in client.greeting))
    bodies = {}
    rest = {}
    for number in range(50 if cut > 100 else 5):
        body = bytes([number]) * (number * 1_500 + 1)
        stream, sink = client.open("POST", length=len(body))
        bodies[stream] = (body, sink)
        rest[stream] = memoryview(body)
    echoes: dict[int, bytearray] = {}
    ended: set[int] = set()
    read = dict.fromkeys(bodies, 0)

    for _ in range(10_000):
        for stream in [stream for stream in rest if (room := engine.window(stream))]:
            room = engine.window(stream)
            engine.send_data(stream, rest[stream][:room], end=room >= len(rest[stream]))
            rest[stream] = rest[stream][room:]
            if not rest[stream]:
                del rest[stream]
        serve(server, engine.data_to_send(), echoes, ended)
        out = server.data_to_send()
        if not out and len(client.sink.ended) == len(bodies):
            break
        for at in range(0, len(out), cut):
            engine.receive_data(out[at : at + cut], 0.0, client.sink)
        for stream, (_, sink) in bodies.items():
            if sink.pieces and len(sink.body) > read[stream]:
                engine.consumed(stream, len(sink.body) - read[stream])
                read[stream] = len(sink.body)

    assert client.sink.failed == {}
    assert sorted(client.sink.ended) == sorted(bodies)
    assert all(sink.body == body and sink.status == 200 for body, sink in bodies.values())


def serve(server, data, echoes, ended) -> None:
    for event in server.receive_data(data):
        if isinstance(event, h2.events.RequestReceived):
            echoes[event.stream_id] = bytearray()
            server.send_headers(event.stream_id, [(":status", "200")])
        elif isinstance(event, h2.events.DataReceived):
            echoes[event.stream_id] += event.data
            server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            ended.add(event.stream_id)
    for stream, echo in list(echoes.items()):
        while echo:
            room = min(server.local_flow_control_window(stream), server.max_outbound_frame_size, len(echo))
            if room <= 0:
                break
            server.send_data(stream, bytes(echo[:room]))
            del echo[:room]
        if not echo and stream in ended:
            server.end_stream(stream)
            del echoes[stream]


# --- What a request costs ---------------------------------------------------------------------------------------------

CALLS = {"h2": 44, "ngh2": 26}
"""Python calls of the package per request: opened, answered by a head and one frame of body, consumed."""


class Sink:
    """Counts what it is told, so that nothing is kept."""

    def __init__(self) -> None:
        self.told = 0

    def response_received(self, head) -> None:
        self.told += 1

    body_received = response_ended = stream_ended = response_received


def test_calls_per_request_have_a_ceiling(name):
    """
    What a request costs is counted, not timed; the ceiling may only go down.
    """
    client = Client(name, settings={})
    sink = Sink()
    engine = http2_engine(name)(Http2Options())
    engine.start()
    engine.data_to_send()
    engine.receive_data(SettingsFrame().serialize(), 0.0, client.sink)
    engine.data_to_send()
    head = head_of(headers={"Accept": "*/*", "User-Agent": "test"})
    count = 0

    def profile(frame, event, _argument):
        nonlocal count
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            count += 1

    def request() -> None:
        nonlocal sink
        stream = engine.open(head, sink, True)
        engine.data_to_send()
        fields = [*OK, ("server", "x"), ("content-type", "text/plain"), ("content-length", "13")]
        answer = client.headers(stream, fields).serialize() + data(stream, b"Hello, world!", end=True).serialize()
        engine.receive_data(answer, 0.0, sink)
        engine.data_to_send()
        engine.consumed(stream, 13)

    for _ in range(5):
        request()
    sink.told = 0
    sys.setprofile(profile)
    try:
        request()
    finally:
        sys.setprofile(None)

    assert sink.told == 4
    assert count <= CALLS[name], count
