"""
The two HTTP/2 engines tell the same of what a server sends, or the difference is one that docs/http-engines.md names.

Servers are made up by a seeded generator: most of what they say is in order, some of it is odd, and the bytes are cut
anywhere. libnghttp2 is the oracle of the layer over h2, and the other way round.
"""

from __future__ import annotations

import os
import random

import hpack
import pytest
from h2_support import (
    Client,
    ContinuationFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    StreamRecorder,
    WindowUpdateFrame,
    data,
    raw,
)

from tlsagent._http.h2 import ErrorCode
from tlsagent._http.messages import RequestHead
from tlsagent.errors import RemoteProtocolError

SEED = int(os.environ.get("TLSAGENT_SEED") or random.randrange(2**32))
ROUNDS = 4
SERVERS = 500
"""Per round."""
STREAMS = GET, HEAD, POST, CONNECT = (1, 3, 5, 7)

FIELDS = [
    ("server", "x"), ("content-type", "text/plain"), ("set-cookie", "a=1"), ("x-long", "v" * 300), ("date", "now"),
    ("x-empty", ""), ("x-high", "\xe9"), ("x-tab", "a\tb"),
]  # fmt: skip
ODD_FIELDS = [
    ("Upper", "x"), ("", "x"), ("a b", "x"), ("a:b", "x"), ("x", "a\nb"), ("x", "a\0"), ("x", " a"), ("x", "a "),
    ("x", "\x7f"), ("x", "\x01"), ("connection", "close"), ("keep-alive", "1"), ("transfer-encoding", "chunked"),
    ("upgrade", "h2c"), ("te", "trailers"), ("te", "gzip"), (":path", "/"), (":x", "y"), (":status", "200"),
    ("content-length", "3"), ("content-length", "03"), ("content-length", "x"), ("content-length", "+3"),
    ("content-length", ""), ("content-length", "0"), ("content-length", "99999999999999999999"), ("host", "a"),
    ("cookie", "a=b"), ("proxy-connection", "x"), ("x", "a\rb"), ("x\x80", "a"), ("TE", "trailers"),
]  # fmt: skip
STATUSES = ["200", "200", "200", "404", "204", "304", "100", "103", "103"]
ODD_STATUSES = ["101", "099", "99", "1000", "abc", "", "+20", "600", "999", "000"]


class Server:
    """Makes up what a server says."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.encoder = hpack.Encoder()
        self.begun: list[int] = []
        self.ended: list[int] = []

    def bytes(self) -> bytes:
        rng = self.rng
        steps = [self.step for _ in range(rng.randint(2, 14))]
        return b"".join(step() for step in steps)

    def step(self) -> bytes:
        kinds = [self.response] * 6 + [self.headers, self.body, self.control, self.trailers]
        if self.rng.random() < 0.2:
            kinds = [self.odd]
        return self.rng.choice(kinds)()

    def stream(self) -> int:
        """A stream, mostly one that has not ended."""
        open_streams = [stream for stream in STREAMS if stream not in self.ended]
        return self.rng.choice(open_streams if open_streams and self.rng.random() < 0.9 else STREAMS)

    def response(self) -> bytes:
        """A whole response, with a length that is true most of the time."""
        rng, stream = self.rng, self.stream()
        pieces = [b"x" * rng.choice([1, 2, 30, 400]) for _ in range(rng.randint(0, 3))]
        fields = [(":status", rng.choice(["200", "200", "404", "304", "204"])), *rng.sample(FIELDS, rng.randint(0, 3))]
        size = sum(map(len, pieces))
        if rng.random() < 0.5:
            fields.append(
                ("content-length", str(size if rng.random() < 0.85 else rng.choice([0, size + 1, size - 1, 3])))
            )
        if rng.random() < 0.1:
            fields.insert(rng.randint(0, len(fields)), rng.choice(ODD_FIELDS))
        out = b""
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            out += self.block(stream, [(":status", rng.choice(["100", "103"])), *rng.sample(FIELDS, 1)])
        if not pieces:
            return out + self.block(stream, fields, end=True)
        out += self.block(stream, fields)
        trailers = rng.random() < 0.2
        for piece in pieces[:-1]:
            out += data(stream, piece, pad=rng.choice([None, None, 0, 7])).serialize()
        out += data(stream, pieces[-1], end=not trailers).serialize()
        self.ended.append(stream)
        return out + (self.trailers(stream) if trailers else b"")

    def headers(self) -> bytes:
        rng = self.rng
        status = rng.choice(STATUSES if rng.random() < 0.8 else ODD_STATUSES)
        fields = [(":status", status), *rng.sample(FIELDS, rng.randint(0, 3))]
        if rng.random() < 0.3:
            fields.insert(rng.randint(0, len(fields)), rng.choice(ODD_FIELDS))
        return self.block(self.stream(), fields, end=rng.random() < 0.4)

    def trailers(self, stream: int | None = None) -> bytes:
        rng = self.rng
        fields = rng.sample(FIELDS, rng.randint(0, 2))
        if rng.random() < 0.2:
            fields.append(rng.choice(ODD_FIELDS))
        return self.block(stream or self.stream(), fields, end=rng.random() < 0.9)

    def body(self) -> bytes:
        rng = self.rng
        size = rng.choice([0, 1, 3, 100])
        begun = [stream for stream in self.begun if stream not in self.ended]
        if not begun and rng.random() < 0.95:
            return self.response()
        stream = rng.choice(begun or STREAMS)
        end = rng.random() < 0.3
        if end:
            self.ended.append(stream)
        return data(stream, b"x" * size, end=end, pad=rng.choice([None, None, 0, 9])).serialize()

    def block(self, stream: int, fields, *, end: bool = False) -> bytes:
        rng = self.rng
        self.begun.append(stream)
        if stream == CONNECT:  # there libnghttp2 ignores it, whatever the status
            fields = [field for field in fields if field[0] != "content-length"]
        if end:
            self.ended.append(stream)
        block = self.encoder.encode(fields, huffman=rng.random() < 0.5)
        parts = [block]
        if rng.random() < 0.2 and len(block) > 1:
            at = rng.randint(0, len(block))
            parts = [block[:at], block[at:]]
        frames = [HeadersFrame(stream, parts[0]), *(ContinuationFrame(stream, part) for part in parts[1:])]
        if parts[0] and rng.random() < 0.1:  # hyperframe wants something beside the padding
            frames[0].flags.add("PADDED")
            frames[0].pad_length = rng.choice([0, 5])
        if rng.random() < 0.1:
            frames[0].flags.add("PRIORITY")
        if end:
            frames[0].flags.add("END_STREAM")
        frames[-1].flags.add("END_HEADERS")
        return b"".join(frame.serialize() for frame in frames)

    def control(self) -> bytes:
        rng = self.rng
        return rng.choice(
            [
                lambda: PingFrame(opaque_data=b"12345678").serialize(),
                lambda: PingFrame(opaque_data=b"12345678", flags=["ACK"]).serialize(),
                lambda: SettingsFrame(settings={rng.choice([1, 3, 4, 5, 6, 99]): 20_000}).serialize(),
                lambda: SettingsFrame(settings={4: rng.choice([0, 10, 2**31 - 1])}).serialize(),
                lambda: SettingsFrame(settings={8: rng.choice([0, 1])}).serialize(),
                lambda: WindowUpdateFrame(rng.choice([0, *STREAMS]), rng.choice([1, 1_000])).serialize(),
                lambda: RstStreamFrame(self.stream(), rng.choice([0, 7, 8, 0xD, 99])).serialize(),
                lambda: GoAwayFrame(0, rng.choice([2**31 - 1, 7, 5, 3, 1, 0]), rng.choice([0, 11])).serialize(),
                lambda: raw(0xEE, 0xFF, rng.choice([0, 1, 99]), b"whatever"),
                lambda: raw(0x0A, 0, 0, b"\0\1ah2"),
            ]
        )()  # fmt: skip

    def odd(self) -> bytes:
        rng = self.rng
        return rng.choice(
            [
                lambda: raw(rng.randint(0, 9), rng.choice([0, 1, 4, 5, 8]), rng.choice([0, 1, 2, 9]), b"\0" * 8),
                lambda: raw(rng.choice([3, 4, 6, 7]), 0, 0, rng.randbytes(rng.randint(0, 12))),
                lambda: data(rng.choice([2, 9, 11]), b"x").serialize(),
                lambda: self.block(rng.choice([2, 9, 11]), [(":status", "200")]),
                lambda: raw(5, 4, 1, b"\0\0\0\2\x82\x84\x87\x41\x01a"),
                lambda: raw(1, 4, self.stream(), rng.randbytes(rng.randint(0, 10))),
                lambda: raw(0, 8, self.stream(), rng.randbytes(rng.randint(0, 5))),
                lambda: raw(9, 4, self.stream(), b""),
                lambda: raw(1, 0, self.stream(), b"\x88"),
                lambda: SettingsFrame(settings={2: 1}).serialize(),
                lambda: SettingsFrame(settings={5: rng.choice([0, 16_383, 2**24])}).serialize(),
                lambda: SettingsFrame(settings={4: 2**31}).serialize(),
                lambda: SettingsFrame(settings={1: rng.choice([0, 100, 2**32 - 1])}).serialize(),
                lambda: SettingsFrame(flags=["ACK"]).serialize(),
                lambda: WindowUpdateFrame(0, 2**31 - 1).serialize(),
                lambda: raw(0, 0, self.stream(), b"", length=16_385),
            ]
        )()


def run(name: str, said: bytes, cuts: list[int]) -> tuple[Client, list[StreamRecorder]]:
    client = Client(name, settings={})
    sinks = [client.open()[1], client.open("HEAD")[1], client.open("POST", length=-1)[1]]
    connect = RequestHead(
        b"CONNECT", b"b:1", authority=b"b:1", headers=[], content_length=None, chunked=False, keep_alive=True
    )
    sinks.append(StreamRecorder())
    client.engine.open(connect, sinks[-1], False)
    client.take()
    for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True):
        client.feed(said[start:end])
    return client, sinks


def told(client: Client, sinks: list[StreamRecorder]) -> list[object]:
    """What was told of each stream, without the words."""
    result: list[object] = []
    for stream, sink in zip(STREAMS, sinks, strict=True):
        failed = client.sink.failed.get(stream)
        result.append(
            {
                "informational": [(head.status, head.headers.raw) for head in sink.informational],
                "head": sink.head and (sink.status, sink.head.headers.raw),
                "body": sink.body,
                "trailers": (sink.ended, sink.trailers and sink.trailers.raw),
                "ended": stream in client.sink.ended,
                "failed": failed and (type(failed[0]), getattr(failed[0], "error_code", None), failed[1]),
            }
        )
    return result


def outcome(client: Client) -> object:
    engine = client.engine
    return (client.error is not None, engine.draining, engine.streams, engine.capacity, client.sink.goaways)


GIVEN_UP = (
    "DATA: stream not opened",  # before the head of the response
    "window size overflow",  # of a stream
    # What follows the end of a stream that is broken, and that libnghttp2 has not yet reset.
    "HEADERS: stream closed",
    "DATA: stream in half-closed(remote)",
    "DATA: stream closed",
)


def explained(h2: Client, ngh2: Client) -> bool:
    """
    Whether libnghttp2 has given up the connection for what the other engine takes for the fault of a stream, or h2 has
    looked into the padding of what comes for a stream that is over.
    """
    return any(known in str(ngh2.error) for known in GIVEN_UP) or "Padding" in str(h2.error)


def broken(client: Client) -> bool:
    """Whether a stream was broken: libnghttp2 tells it after the rest of the piece, but before the end of a head."""
    broken = [error for error, _ in client.sink.failed.values() if type(error) is RemoteProtocolError]
    return any(str(error) != str(client.error) for error in broken)


def code(client: Client) -> object:
    """The code of the GOAWAY after an error; a frame of the wrong size on the wrong stream is wrong either way."""
    found = client.goaway if client.error is not None else None
    return ErrorCode.PROTOCOL_ERROR if found == ErrorCode.FRAME_SIZE_ERROR else found


def over(client: Client) -> bool:
    """Whether nothing that follows concerns anybody: it may be read or not."""
    return client.engine.draining and not client.engine.streams


def same(one: Client, one_sinks, two: Client, two_sinks) -> bool:
    if told(one, one_sinks) != told(two, two_sinks):
        return False
    if over(one) and over(two) and ((one.error is None) != (two.error is None) or one.sink.goaways != two.sink.goaways):
        fewer, more = sorted((one.sink.goaways, two.sink.goaways), key=len)
        return more[: len(fewer)] == fewer
    return outcome(one) == outcome(two) and code(one) == code(two)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_both_engines_tell_the_same(number):
    """
    Of thousands of servers, both engines tell the same, stream by stream, and end with the same verdict.
    """
    rng = random.Random(SEED + number)
    differences = 0
    for _ in range(SERVERS):
        said = Server(rng).bytes()
        cuts = sorted(rng.randint(0, len(said)) for _ in range(rng.choice([0, 1, 3])))
        one, one_sinks = run("h2", said, cuts)
        two, two_sinks = run("ngh2", said, cuts)
        if same(one, one_sinks, two, two_sinks):
            continue
        context = f"seed {SEED}: {said.hex()} cut at {cuts}: {one.error!r}, {two.error!r}"
        assert explained(one, two) or broken(one) or broken(two), context
        differences += 1
    assert differences < SERVERS // 10


@pytest.mark.parametrize("name", ["h2", "ngh2"])
def test_cuts_make_no_difference(name):
    """
    What is told does not depend on how the bytes were cut: whole, or one by one.
    """
    rng = random.Random(SEED)
    differences = 0
    for _ in range(SERVERS // 2):
        said = Server(rng).bytes()
        whole, whole_sinks = run(name, said, [])
        single, single_sinks = run(name, said, list(range(1, len(said))))
        if not same(whole, whole_sinks, single, single_sinks):
            assert name == "ngh2", f"seed {SEED}: {said.hex()}"
            assert explained(whole, whole) or explained(single, single) or broken(whole) or broken(single), said.hex()
            differences += 1
    assert differences < SERVERS // 20
