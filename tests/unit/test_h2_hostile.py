"""
What hostile and broken servers do to an HTTP/2 connection: bounded, named, and no stream pays for another.

Each case runs on both engines, the bytes whole and one by one.
"""

from __future__ import annotations

import tracemalloc

import pytest
from h2_support import (
    ENGINES,
    OK,
    Client,
    ContinuationFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
    data,
    raw,
)

from tlsagent._http.h2 import ErrorCode
from tlsagent.errors import ConnectionLost, RemoteProtocolError, StreamReset

PROTOCOL, FLOW, SIZE, CLOSED, COMPRESSION, CALM = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.FLOW_CONTROL_ERROR,
    ErrorCode.FRAME_SIZE_ERROR,
    ErrorCode.STREAM_CLOSED,
    ErrorCode.COMPRESSION_ERROR,
    ErrorCode.ENHANCE_YOUR_CALM,
)
SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = 4, 5, 6, 7, 8, 9


@pytest.fixture(params=ENGINES)
def name(request):
    return request.param


@pytest.fixture(params=["whole", "bytewise"])
def client(request, name):
    return Client(name, settings={}, bytewise=request.param == "bytewise")


CONNECTION_FAULTS = {
    "frame too long": (SIZE, lambda c: raw(0, 0, 1, b"", length=16_385)),
    "frame of 16 MB": (SIZE, lambda c: raw(0, 0, 1, b"x" * 100, length=2**24 - 1)),
    "PING of 7 bytes": (SIZE, lambda c: raw(PING, 0, 0, b"1234567")),
    "PING on a stream": (PROTOCOL, lambda c: raw(PING, 0, 1, b"12345678")),
    "SETTINGS of 5 bytes": (SIZE, lambda c: raw(SETTINGS, 0, 0, b"12345")),
    "SETTINGS on a stream": (PROTOCOL, lambda c: raw(SETTINGS, 0, 1)),
    "SETTINGS ACK with payload": (SIZE, lambda c: raw(SETTINGS, 1, 0, b"\0\3\0\0\0\1")),
    "SETTINGS ACK for nothing": (PROTOCOL, lambda c: raw(SETTINGS, 1, 0)),
    "MAX_FRAME_SIZE 0": (PROTOCOL, lambda c: SettingsFrame(settings={5: 0})),
    "MAX_FRAME_SIZE 2**24": (PROTOCOL, lambda c: SettingsFrame(settings={5: 2**24})),
    "INITIAL_WINDOW_SIZE 2**31": (FLOW, lambda c: SettingsFrame(settings={4: 2**31})),
    "ENABLE_PUSH 2": (PROTOCOL, lambda c: SettingsFrame(settings={2: 2})),
    "ENABLE_PUSH 1 by a server": (PROTOCOL, lambda c: SettingsFrame(settings={2: 1})),
    "ENABLE_CONNECT_PROTOCOL 2": (PROTOCOL, lambda c: SettingsFrame(settings={8: 2})),
    "ENABLE_CONNECT_PROTOCOL taken back": (
        PROTOCOL,
        lambda c: SettingsFrame(settings={8: 1}).serialize() + SettingsFrame(settings={8: 0}).serialize(),
    ),
    "window beyond 2**31-1": (FLOW, lambda c: WindowUpdateFrame(0, 2**31 - 1)),
    "WINDOW_UPDATE of 0": (PROTOCOL, lambda c: raw(WINDOW, 0, 0, b"\0\0\0\0")),
    "WINDOW_UPDATE of 3 bytes": (SIZE, lambda c: raw(WINDOW, 0, 0, b"\0\0\1")),
    "WINDOW_UPDATE on an idle stream": (PROTOCOL, lambda c: WindowUpdateFrame(77, 1)),
    "initial window that overflows a stream": (
        FLOW,
        lambda c: (
            WindowUpdateFrame(1, 2**31 - 1 - 65_535).serialize() + SettingsFrame(settings={4: 65_536}).serialize()
        ),
    ),
    "DATA on an idle stream": (PROTOCOL, lambda c: data(77, b"x")),
    "DATA on stream 0": (PROTOCOL, lambda c: raw(0, 0, 0, b"x")),
    "HEADERS on an idle stream": (PROTOCOL, lambda c: c.headers(77, OK)),
    "HEADERS on a stream of the server": (PROTOCOL, lambda c: c.headers(2, OK)),
    "HEADERS on stream 0": (PROTOCOL, lambda c: raw(1, 4, 0, b"\x88")),
    "RST_STREAM on an idle stream": (PROTOCOL, lambda c: RstStreamFrame(77, 8)),
    "RST_STREAM on stream 0": (PROTOCOL, lambda c: raw(3, 0, 0, b"\0\0\0\0")),
    "RST_STREAM of 3 bytes": (SIZE, lambda c: raw(3, 0, 1, b"\0\0\0")),
    "PUSH_PROMISE": (PROTOCOL, lambda c: raw(PUSH, 4, 1, b"\0\0\0\2\x82\x84\x87\x41\x01a")),
    "CONTINUATION alone": (PROTOCOL, lambda c: raw(CONTINUATION, 4, 1, b"\x88")),
    "DATA within a block of fields": (PROTOCOL, lambda c: raw(1, 0, 1, b"\x88") + raw(0, 0, 1, b"x")),
    "CONTINUATION of another stream": (PROTOCOL, lambda c: raw(1, 0, 1, b"\x88") + raw(CONTINUATION, 4, 3, b"")),
    "unknown frame within a block of fields": (PROTOCOL, lambda c: raw(1, 0, 1, b"\x88") + raw(0xEE, 0, 0, b"")),
    "padding longer than the frame": (PROTOCOL, lambda c: raw(0, 8, 1, b"\xff" + b"x" * 20)),
    "padding of HEADERS longer than the frame": (PROTOCOL, lambda c: raw(1, 4 | 8, 1, b"\xff\x88")),
    "index beyond the tables": (COMPRESSION, lambda c: raw(1, 4, 1, b"\xff\xff\x7f")),
    "index 0": (COMPRESSION, lambda c: raw(1, 4, 1, b"\x80")),
    "table size beyond ours": (COMPRESSION, lambda c: raw(1, 4, 1, b"\x3f\xe1\xff\x03\x88")),
    "Huffman code that ends in the middle": (COMPRESSION, lambda c: raw(1, 4, 1, b"\x88\x40\x81\xff\x81\x07")),
    "GOAWAY of 7 bytes": (SIZE, lambda c: raw(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0")),
    "GOAWAY on a stream": (PROTOCOL, lambda c: raw(GOAWAY, 0, 1, b"\0" * 8)),
    "GOAWAY with a stream of the server": (PROTOCOL, lambda c: GoAwayFrame(last_stream_id=2)),
    "GOAWAY that takes streams back in": (
        PROTOCOL,
        lambda c: GoAwayFrame(last_stream_id=1).serialize() + GoAwayFrame(last_stream_id=3).serialize(),
    ),
}


@pytest.mark.parametrize("case", CONNECTION_FAULTS)
def test_fault_of_the_connection_ends_it(client, case):
    """
    The error is raised once, every open stream is told with an error of its own, and the GOAWAY is ready.
    """
    code, bad = CONNECTION_FAULTS[case]
    first, _ = client.open()
    second, _ = client.open("POST", length=10)
    client.take()

    client.feed(bad(client), PingFrame(opaque_data=b"too late"))

    assert type(client.error) is RemoteProtocolError
    assert client.error.code == "ERR_HTTP2_SESSION_ERROR"
    assert str(client.error).isprintable()
    assert client.goaway == code
    assert client.sink.ended == []
    assert set(client.sink.failed) <= {first, second}
    errors = [error for error, _ in client.sink.failed.values()]
    assert client.error not in errors
    assert len(set(map(id, errors))) == len(client.sink.failed)
    assert client.engine.streams == client.engine.capacity == 0
    assert client.engine.draining


@pytest.mark.parametrize("case", CONNECTION_FAULTS)
def test_what_came_before_a_fault_is_told(name, case):
    """
    A response that precedes a fault in the same piece is delivered, however the bytes are cut.
    """
    client = Client(name, settings={})
    _, bad = CONNECTION_FAULTS[case]
    client.open("POST", length=10)
    stream, sink = client.open()
    client.take()

    client.feed(client.headers(stream, OK), data(stream, b"hello", end=True), bad(client))

    assert client.error is not None
    assert (sink.status, sink.body, sink.ended) == (200, b"hello", True)
    assert client.sink.ended == [stream]


@pytest.mark.parametrize(
    ("first", "shown"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", None),
        (raw(PING, 0, 0, b"12345678"), None),
        (raw(SETTINGS, 0, 1), None),
        (GoAwayFrame().serialize(), None),
    ],
)
def test_peer_must_begin_with_settings(name, first, shown):
    """
    What does not begin with SETTINGS is not HTTP/2; a server that answers in HTTP/1.1 is quoted.
    """
    client = Client(name)
    stream, _ = client.open()
    client.take()

    client.feed(first)

    assert type(client.error) is RemoteProtocolError
    assert shown is None or shown in str(client.error)
    assert client.goaway in (PROTOCOL, SIZE)
    assert not isinstance(client.sink.failed[stream][0], StreamReset)


STREAM_FAULTS = {
    "no :status": lambda c, s: c.headers(s, [("server", "x")]),
    "no fields": lambda c, s: c.headers(s, []),
    ":status twice": lambda c, s: c.headers(s, [(":status", "200"), (":status", "200")]),
    ":status after a field": lambda c, s: c.headers(s, [("server", "x"), (":status", "200")]),
    ":status of letters": lambda c, s: c.headers(s, [(":status", "abc")]),
    ":status of two digits": lambda c, s: c.headers(s, [(":status", "20")]),
    ":status 101": lambda c, s: c.headers(s, [(":status", "101")]),
    "pseudo-header of a request": lambda c, s: c.headers(s, [*OK, (":path", "/")]),
    "unknown pseudo-header": lambda c, s: c.headers(s, [*OK, (":x", "y")]),
    "upper case": lambda c, s: c.headers(s, [*OK, ("Server", "x")]),
    "empty name": lambda c, s: c.headers(s, [*OK, ("", "x")]),
    "blank in a name": lambda c, s: c.headers(s, [*OK, ("a b", "x")]),
    "colon in a name": lambda c, s: c.headers(s, [*OK, ("a:b", "x")]),
    "line end in a value": lambda c, s: c.headers(s, [*OK, ("a", "x\r\nb: y")]),
    "NUL in a value": lambda c, s: c.headers(s, [*OK, ("a", "x\0")]),
    "blank around a value": lambda c, s: c.headers(s, [*OK, ("a", " x")]),
    "connection": lambda c, s: c.headers(s, [*OK, ("connection", "close")]),
    "transfer-encoding": lambda c, s: c.headers(s, [*OK, ("transfer-encoding", "chunked")]),
    "te": lambda c, s: c.headers(s, [*OK, ("te", "gzip")]),
    "content-length twice": lambda c, s: c.headers(s, [*OK, ("content-length", "5"), ("content-length", "5")]),
    "content-length of letters": lambda c, s: c.headers(s, [*OK, ("content-length", "5x")]),
    "content-length negative": lambda c, s: c.headers(s, [*OK, ("content-length", "-5")]),
    "content-length in a 1xx": lambda c, s: c.headers(s, [(":status", "103"), ("content-length", "5")]),
    "content-length in a 204": lambda c, s: c.headers(s, [(":status", "204"), ("content-length", "5")], end=True),
    "content-length of a body that is none": lambda c, s: c.headers(s, [*OK, ("content-length", "5")], end=True),
    "body too short": lambda c, s: (
        c.headers(s, [*OK, ("content-length", "5")]).serialize() + data(s, b"1234", end=True).serialize()
    ),
    "body too long": lambda c, s: (
        c.headers(s, [*OK, ("content-length", "5")]).serialize() + data(s, b"123456").serialize()
    ),
    "body too short before trailers": lambda c, s: (
        c.headers(s, [*OK, ("content-length", "5")]).serialize()
        + data(s, b"1234").serialize()
        + c.headers(s, [("a", "b")], end=True).serialize()
    ),
    "body of a 204": lambda c, s: c.headers(s, [(":status", "204")]).serialize() + data(s, b"x", end=True).serialize(),
    "1xx that ends the stream": lambda c, s: c.headers(s, [(":status", "103")], end=True),
    "second head": lambda c, s: c.headers(s, OK).serialize() + c.headers(s, OK).serialize(),
    "1xx after the head": lambda c, s: c.headers(s, OK).serialize() + c.headers(s, [(":status", "103")]).serialize(),
    "trailers that do not end": lambda c, s: c.headers(s, OK).serialize() + c.headers(s, [("a", "b")]).serialize(),
    "pseudo-header in trailers": lambda c, s: (
        c.headers(s, OK).serialize() + c.headers(s, [(":status", "200")], end=True).serialize()
    ),
    "line end in trailers": lambda c, s: (
        c.headers(s, OK).serialize() + c.headers(s, [("a", "x\n")], end=True).serialize()
    ),
}


@pytest.mark.parametrize("case", STREAM_FAULTS)
def test_fault_of_a_stream_is_not_that_of_the_connection(client, case):
    """
    The stream is reset and fails with a `RemoteProtocolError`; the other one, and the fields' compression, go on.
    """
    stream, sink = client.open()
    other, other_sink = client.open()
    client.take()

    client.feed(STREAM_FAULTS[case](client, stream))

    assert client.error is None
    assert client.engine.streams == 1
    error, processed = client.sink.failed.pop(stream)
    assert type(error) is RemoteProtocolError
    assert processed
    assert not sink.ended
    [reset] = client.take(RstStreamFrame)
    assert reset.stream_id == stream
    # ngh2 has libnghttp2 call it an internal error if a field that could be ignored is malformed.
    assert reset.error_code in (PROTOCOL, ErrorCode.INTERNAL_ERROR if client.engine.name == "ngh2" else PROTOCOL)

    client.feed(client.headers(other, [*OK, ("server", "x")]), data(other, b"fine", end=True))
    assert (other_sink.body, client.sink.ended, client.sink.failed) == (b"fine", [other], {})
    assert client.engine.capacity == 1_000 - 1, "the server may work on it until it has seen the reset"


@pytest.mark.parametrize("name", ENGINES)
def test_data_before_the_head(name):
    """
    The stream fails; libnghttp2 gives up the connection for it.
    """
    client = Client(name, settings={})
    stream, _sink = client.open()
    client.take()

    client.feed(data(stream, b"x"))

    assert type(client.sink.failed[stream][0]) is RemoteProtocolError
    if name == "h2":
        assert [frame.error_code for frame in client.take(RstStreamFrame)] == [PROTOCOL]
        assert client.error is None
    else:
        assert client.goaway == PROTOCOL


@pytest.mark.parametrize("name", ENGINES)
def test_window_of_a_stream_beyond_2_31(name):
    """
    The stream fails; libnghttp2 gives up the connection for it.
    """
    client = Client(name, settings={})
    stream, _ = client.open("POST", length=10)
    client.take()

    client.feed(WindowUpdateFrame(stream, 2**31 - 1))

    assert type(client.sink.failed[stream][0]) is RemoteProtocolError
    if name == "h2":
        assert [frame.error_code for frame in client.take(RstStreamFrame)] == [FLOW]
        assert client.error is None
    else:
        assert client.goaway == FLOW


def test_more_than_the_window_of_a_stream(client):
    """
    Who sends more than a stream's window loses that stream; libnghttp2 gives up the connection for it.
    """
    stream, _ = client.open()
    other, _ = client.open()
    client.take()
    full = [data(stream, b"x" * 16_384)] * 64

    client.bytewise = False
    client.feed(client.headers(stream, OK), *full)
    assert client.sink.failed == {}
    client.feed(data(stream, b"x"))

    assert stream in client.sink.failed
    if client.engine.name == "h2":
        assert other not in client.sink.failed
        assert [(f.stream_id, f.error_code) for f in client.take(RstStreamFrame)] == [(stream, FLOW)]
        assert client.error is None
    else:
        assert "FLOW_CONTROL_ERROR" in str(client.error)
        assert client.goaway == FLOW


def test_more_than_the_window_of_the_connection(name):
    """
    Who sends more than the connection's window loses the connection.
    """
    client = Client(name, settings={}, connection_window=65_535)
    streams = [client.open()[0] for _ in range(5)]
    client.take()

    for stream in streams:
        client.feed(client.headers(stream, OK), data(stream, b"x" * 16_384), data(stream, b"x" * 12_000))

    assert client.goaway == FLOW
    assert len(client.sink.failed) == 5


@pytest.mark.parametrize("after", ["end", "rst", "our reset"])
@pytest.mark.parametrize("late", ["HEADERS", "DATA", "RST_STREAM", "WINDOW_UPDATE"])
def test_frames_of_a_stream_that_is_over(client, after, late):
    """
    They were on their way: they are dropped, the fields decoded, the bytes credited.
    """
    stream, sink = client.open()
    client.take()
    if after == "end":
        client.feed(client.headers(stream, OK, end=True))
    elif after == "rst":
        client.feed(RstStreamFrame(stream, 8))
    else:
        client.engine.reset(stream)
        client.take()
    status = sink.status

    client.feed(
        {
            "HEADERS": lambda: client.headers(stream, [*OK, ("x-late", "1")], end=True),
            "DATA": lambda: data(stream, b"x" * 100, end=True),
            "RST_STREAM": lambda: RstStreamFrame(stream, 5),
            "WINDOW_UPDATE": lambda: WindowUpdateFrame(stream, 5),
        }[late]()
    )
    other, other_sink = client.open()
    client.take()
    client.feed(client.headers(other, [*OK, ("x-late", "1")], end=True))

    assert client.error is None
    assert sink.status == status
    assert other_sink.head.headers["x-late"] == "1"


@pytest.mark.parametrize("late", ["HEADERS", "DATA"])
def test_frames_of_a_response_that_has_ended(client, late):
    """
    While the request is still being sent, what follows the end of the response ends the connection.
    """
    stream, _ = client.open("POST", length=10)
    client.take()
    client.feed(client.headers(stream, OK, end=True))

    client.feed(client.headers(stream, [("a", "b")], end=True) if late == "HEADERS" else data(stream, b"x"))

    assert client.goaway == CLOSED
    assert client.sink.ended == [stream]


FLOODS = {
    "PING": lambda c: PingFrame(opaque_data=b"12345678"),
    "PING ACK": lambda c: PingFrame(opaque_data=b"12345678", flags=["ACK"]),
    "SETTINGS": lambda c: SettingsFrame(settings={3: 10}),
    "empty SETTINGS": lambda c: SettingsFrame(),
    "WINDOW_UPDATE": lambda c: WindowUpdateFrame(0, 1),
    "WINDOW_UPDATE of a stream": lambda c: WindowUpdateFrame(1, 1),
    "empty DATA": lambda c: data(1),
    "RST_STREAM of a stream that is over": lambda c: RstStreamFrame(3, 8),
    "GOAWAY": lambda c: GoAwayFrame(last_stream_id=2**31 - 1),
    "DATA of a stream that is over": lambda c: data(3),
    "WINDOW_UPDATE of a stream that is over": lambda c: WindowUpdateFrame(3, 1),
    "PRIORITY": lambda c: raw(2, 0, 1, b"\0\0\0\0\1"),
    "unknown": lambda c: raw(0xEE, 0, 0, b"x"),
    "HEADERS of a stream that is over": lambda c: c.headers(3, OK),
    "1xx of a stream that is over": lambda c: c.headers(3, [(":status", "103")]),
}


@pytest.mark.parametrize("case", FLOODS)
def test_flood_is_stopped(name, case):
    """
    Whoever sends more control frames than the budget gets GOAWAY; one less is fine.
    """
    client = Client(name, settings={}, control_frames=200, control_frame_rate=1.0)
    stream, _ = client.open("POST", length=10)
    gone, _ = client.open()
    client.take()
    client.feed(client.headers(stream, OK), client.headers(gone, OK, end=True))
    # libnghttp2 drops what comes for streams that are over, and what is odd, and counts it by a clock of its own.
    seen = case.startswith("RST") or not (case.endswith("over") or case in ("PRIORITY", "unknown"))

    for _ in range(150):
        client.feed(FLOODS[case](client))
        client.take()
    assert client.error is None
    for _ in range(100):
        client.feed(FLOODS[case](client))
        client.take() if client.error is None else None

    assert (client.error is not None) or (name == "ngh2" and not seen)
    if client.error is not None:
        assert client.goaway == CALM
        assert isinstance(client.sink.failed[stream][0], RemoteProtocolError)


@pytest.mark.parametrize("case", ["PING", "SETTINGS", "PRIORITY", "unknown"])
def test_budget_refills(client, case):
    """
    The same frames at the pace that is allowed go on for ever.
    """
    client = Client(client.engine.name, settings={}, control_frames=20, control_frame_rate=10.0)
    frame = {
        "PING": PingFrame(opaque_data=b"12345678"),
        "SETTINGS": SettingsFrame(),
        "PRIORITY": raw(2, 0, 1, b"\0\0\0\0\1"),
        "unknown": raw(0xEE, 0, 0, b"x"),
    }[case]

    for _ in range(200):
        client.now += 0.1
        client.feed(frame)
        client.take()

    assert client.error is None


def test_budget_refills_with_time_alone(client):
    """
    What has come since the last refill counts once: a flood after a long quiet time is stopped as soon as any.
    """
    client = Client(client.engine.name, settings={}, control_frames=20, control_frame_rate=10.0)
    client.now += 1_000.0

    for _ in range(60):
        client.feed(PingFrame(opaque_data=b"12345678"))
        client.take() if client.error is None else None

    assert client.error is not None


def test_updates_for_what_is_sent_are_free(client):
    """
    A server may return credit for every frame of a long upload.
    """
    client = Client(client.engine.name, settings={}, control_frames=20, control_frame_rate=0.001)
    stream, _ = client.open("POST", length=-1)
    client.take()

    for _ in range(200):
        client.engine.send_data(stream, b"x" * 100)
        client.take()
        client.feed(WindowUpdateFrame(0, 100), WindowUpdateFrame(stream, 100))

    assert client.error is None


def test_updates_beyond_what_is_sent_are_counted(client):
    """
    A piece pays for a few updates, not for a flood of them.
    """
    client = Client(client.engine.name, settings={}, control_frames=20, control_frame_rate=0.001)
    stream, _ = client.open("POST", length=-1)
    client.engine.send_data(stream, b"x" * 100)
    client.take()

    for _ in range(20):
        client.feed(WindowUpdateFrame(0, 1))
    assert client.error is None
    for _ in range(20):
        client.feed(WindowUpdateFrame(0, 1))

    assert "control_frames" in str(client.error)


@pytest.mark.parametrize("kind", ["PING", "SETTINGS"])
def test_replies_that_nobody_reads_are_capped(name, kind):
    """
    A peer that demands answers and reads none cannot have more than `max_pending_replies` of them kept.
    """
    client = Client(name, settings={}, max_pending_replies=50)

    for _ in range(60):
        client.feed(PingFrame(opaque_data=b"12345678") if kind == "PING" else SettingsFrame())

    assert client.error is not None
    sent = client.take()
    assert len(sent) <= 51 + 1
    assert sent[-1].error_code == CALM


def test_continuation_flood_is_stopped(name):
    """
    A block of fields takes `max_continuations` frames at most, empty ones too, and no memory beyond.
    """
    client = Client(name, settings={}, max_continuations=3)
    stream, _ = client.open()
    client.take()

    client.feed(HeadersFrame(stream, b"\x88"))
    for _ in range(3):
        client.feed(ContinuationFrame(stream, b""))
    assert client.error is None
    client.feed(ContinuationFrame(stream, b""))

    assert client.error is not None
    assert client.goaway == CALM


def test_continuations_within_the_limits_are_taken(client):
    """
    A long list in many frames is a list like any other.
    """
    stream, sink = client.open()
    client.take()
    block = client.encoder.encode([*OK, *((f"x-{i}", "v" * 500) for i in range(60))], huffman=False)
    parts = [block[at : at + 4_000] for at in range(0, len(block), 4_000)]
    frames = [HeadersFrame(stream, parts[0], flags=["END_STREAM"]), *(ContinuationFrame(stream, p) for p in parts[1:])]
    frames[-1].flags.add("END_HEADERS")

    client.feed(*frames)

    assert sink.head.headers["x-59"] == "v" * 500
    assert client.sink.ended == [stream]


def test_list_of_fields_beyond_the_limit(client):
    """
    More than `max_header_list_size` cannot be decoded for nothing, so the connection goes.
    """
    stream, _ = client.open()
    client.take()

    client.feed(client.headers(stream, [*OK, *[("x", "v" * 2_000)] * 40]))

    assert "max_header_list_size" in str(client.error) or client.engine.name == "ngh2"
    assert client.goaway == CALM


def test_hpack_bomb_takes_no_memory(name):
    """
    One byte on the wire for 4,000 in memory: what is kept is bounded by `max_header_list_size`.
    """
    client = Client(name, settings={})
    stream, _ = client.open()
    client.take()
    bomb = b"\x88" + b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4_000 + b"\xbe" * 12_000  # 48 MB
    frame = HeadersFrame(stream, bomb, flags=["END_HEADERS"]).serialize()

    tracemalloc.start()
    try:
        client.feed(frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert client.goaway == CALM
    assert peak < 1_000_000


def test_oversize_frame_is_not_collected(name):
    """
    The length of a frame is judged before its bytes come.
    """
    client = Client(name, settings={})

    client.feed(raw(0, 0, 1, b"", length=2**24 - 1))

    assert client.goaway == SIZE


def test_informational_responses_are_capped(client):
    """
    More than `max_informational` of them end the stream, not the connection.
    """
    stream, sink = client.open()
    _other, _ = client.open()
    client.take()

    client.feed(*[client.headers(stream, [(":status", "103")]) for _ in range(16)])
    assert len(sink.informational) == 16
    client.feed(client.headers(stream, [(":status", "103")]))

    assert "max_informational" in str(client.sink.failed[stream][0])
    assert [(f.stream_id, f.error_code) for f in client.take(RstStreamFrame)] == [(stream, CALM)]
    assert client.error is None
    assert client.engine.streams == 1


@pytest.mark.parametrize("uploading", [False, True])
def test_content_length_in_trailers(client, uploading):
    """
    A length that comes behind its body is refused (RFC 9110, 6.5.1); what is over on both sides need not be reset.
    """
    stream, sink = client.open("POST", length=10) if uploading else client.open()
    client.take()

    client.feed(
        client.headers(stream, OK), data(stream, b"1234"), client.headers(stream, [("content-length", "4")], end=True)
    )

    assert type(client.sink.failed[stream][0]) is RemoteProtocolError
    assert not sink.ended
    assert client.error is None
    assert [frame.error_code for frame in client.take(RstStreamFrame)] == [PROTOCOL] * uploading
    assert client.engine.capacity == 1_000 - uploading


def test_what_follows_the_last_straw_is_dropped(name):
    """
    The stream is gone at the first 1xx too many: the rest of the piece is for nobody, and its bytes are credited.
    """
    client = Client(name, settings={}, max_informational=1, connection_window=65_535)

    for _ in range(50):
        stream, sink = client.open()
        client.take()
        client.feed(
            *[client.headers(stream, [(":status", "103")])] * 3,
            client.headers(stream, OK),
            data(stream, b"x" * 10_000),
            client.headers(stream, [("a", "b")], end=True),
        )
        assert (len(sink.informational), sink.head) == (1, None)
        pings = [PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]) for ping in client.take(PingFrame)]
        client.feed(*pings)

    assert client.error is None
    assert len(client.sink.failed) == 50


NOBODYS = {
    "1xx": lambda c, s: [c.headers(s, [(":status", "103")]), c.headers(s, [(":status", "103")])],
    "body": lambda c, s: [c.headers(s, OK), data(s, b"x")],
    "trailers": lambda c, s: [c.headers(s, OK), c.headers(s, [("a", "b")], end=True)],
}


@pytest.mark.parametrize("case", NOBODYS)
def test_what_follows_the_last_straw_is_counted(name, case):
    """
    It is for nobody, so a peer may not go on with it for ever; here one of two frames would be within the budget.
    """
    client = Client(name, settings={}, max_informational=1, control_frames=40, control_frame_rate=0.001)
    streams = [client.open()[0] for _ in range(30)]
    client.take()

    pieces = []
    for stream in streams:
        pieces += [client.headers(stream, [(":status", "103")]), client.headers(stream, [(":status", "103")])]
        pieces += NOBODYS[case](client, stream)
    client.feed(*pieces)

    assert "control_frames" in str(client.error)


def test_informational_responses_are_capped_together(client):
    """
    Sixteen lists of the greatest size would be a megabyte for each stream.
    """
    stream, sink = client.open()
    client.take()
    client.bytewise = False

    for _ in range(6):
        client.feed(client.headers(stream, [(":status", "103"), ("link", "v" * 15_000)]))

    assert len(sink.informational) == 4
    assert "max_header_list_size" in str(client.sink.failed[stream][0])
    assert client.error is None


def test_a_stalled_stream_stalls_no_other(client):
    """
    Whoever does not read gets no more than a window of it kept, and others go on.
    """
    client.bytewise = False
    slow, _ = client.open()
    client.take()
    client.feed(client.headers(slow, OK), *[data(slow, b"x" * 16_384)] * 64)
    assert client.take(WindowUpdateFrame) == []

    quick, quick_sink = client.open()
    client.take()
    client.feed(client.headers(quick, OK))
    for _ in range(200):
        client.feed(data(quick, b"y" * 16_384))
        client.engine.consumed(quick, 16_384)

    assert len(quick_sink.body) == 200 * 16_384
    assert client.sink.failed == {}
    updates = client.take(WindowUpdateFrame)
    assert sum(frame.window_increment for frame in updates if frame.stream_id == quick) > 150 * 16_384
    assert [frame for frame in updates if frame.stream_id == slow] == []


def test_uploads_wait_for_windows_that_stay_shut(name):
    """
    A window of 0 leaves the upload waiting, and other streams alone.
    """
    client = Client(name, settings={4: 0})
    upload, _ = client.open("POST", length=10)
    other, _ = client.open()

    assert client.engine.window(upload) == 0
    assert [f for f in client.take() if f.stream_id == upload and f.type == 0] == []
    client.feed(client.headers(other, OK, end=True))

    assert client.sink.ended == [other]
    assert client.sink.opened == []


def test_cancelled_streams_cannot_starve_the_connection(name):
    """
    Streams that are reset in the middle of a frame cost the connection's window nothing.
    """
    client = Client(name, settings={}, connection_window=70_000, control_frames=100_000)

    for _ in range(100):
        stream, _ = client.open()
        client.take()
        whole = data(stream, b"x" * 16_384).serialize()
        client.feed(client.headers(stream, OK), whole[:16_000])
        client.engine.reset(stream)
        pings = client.take(PingFrame)
        client.feed(whole[16_000:], *[PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]) for ping in pings])

    assert client.error is None
    stream, sink = client.open()
    client.take()
    client.feed(client.headers(stream, OK), data(stream, b"fine", end=True))
    assert sink.body == b"fine"


@pytest.mark.parametrize("end", ["failed", "uploaded", "answered early", "with trailers", "reset"])
def test_nothing_is_kept_of_streams_that_are_over(name, end):
    """
    A thousand streams, however they end, leave no more behind than ten.
    """
    client = Client(name, settings={})

    def end_one():
        stream, _ = client.open("POST", length=-1)
        if end == "uploaded":
            client.engine.send_data(stream, b"x", end=True)
        client.take()
        client.feed(client.headers(stream, OK), data(stream, b"x" * 100, end=end not in ("failed", "reset")))
        if end == "failed":
            client.feed(RstStreamFrame(stream, 2))
            assert client.sink.failed.pop(stream)[1]
        elif end == "reset":
            client.engine.reset(stream)
        else:
            client.engine.consumed(stream, 100)
            assert end == "uploaded" or client.engine.end_request(stream, [("a", "b")] * (end == "with trailers"))
        client.feed(*[PingFrame(opaque_data=ping.opaque_data, flags=["ACK"]) for ping in client.take(PingFrame)])
        client.take()
        client.sink.ended.clear()
        assert (client.error, client.engine.streams, client.engine.capacity) == (None, 0, 1_000)

    def end_many(times):
        for _ in range(times):
            end_one()

    end_many(50)
    tracemalloc.start()
    try:
        end_many(50)
        before = tracemalloc.get_traced_memory()[0]
        end_many(1_000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert grown < 20_000


@pytest.mark.parametrize("opens", ["stream", "settings"])
def test_fault_behind_a_window_that_opens(client, opens):
    """
    Who waits for a window that opens in the read in which the connection breaks is told of the break alone.
    """
    client.feed(SettingsFrame(settings={4: 0}))
    stream, _ = client.open("POST", length=100)
    client.take()
    assert client.engine.window(stream) == 0

    opening = WindowUpdateFrame(stream, 10) if opens == "stream" else SettingsFrame(settings={4: 100})
    client.feed(opening, b"\0\0\4\3\0\0\0\0\0\0\0\0\0")  # RST_STREAM of no stream

    assert type(client.error) is RemoteProtocolError
    assert set(client.sink.failed) == {stream}
    assert client.engine.window(stream) == 0


@pytest.mark.parametrize("clean", [True, False])
def test_end_of_the_connection_fails_every_stream(client, clean):
    """
    Each open stream gets a `ConnectionLost` of its own; nobody else does.
    """
    first, _ = client.open()
    second, _ = client.open()
    done, _ = client.open()
    client.take()
    client.feed(client.headers(done, OK, end=True), client.headers(first, OK), data(first, b"abc"))

    client.eof(clean)
    client.eof()

    assert set(client.sink.failed) == {first, second}
    assert all(type(error) is ConnectionLost and processed for error, processed in client.sink.failed.values())
    assert "3 bytes came" in str(client.sink.failed[first][0])
    assert ("without close_notify" in str(client.sink.failed[second][0])) is not clean
    assert client.engine.capacity == client.engine.streams == 0
