"""
Both HTTP/1.1 engines read 10,000 responses, made anew in each run, and must tell the same of each.

The seed is part of the test's name; `TLSAGENT_SEED=n` repeats a run. Most responses are valid with something changed:
that is where parsers differ. Where h11 takes what llhttp refuses, the refusal must be one of `LAXER`, which
docs/http-engines.md explains, and the connection is not used again.
"""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from tlsagent._http.engines import http1_engine
from tlsagent._http.messages import Headers, ResponseHead, request_head
from tlsagent._limits import Http1Options
from tlsagent.errors import ConnectionLost, RemoteProtocolError

SEED = int(os.environ.get("TLSAGENT_SEED") or random.randrange(2**32))
ROUNDS = 10
RESPONSES = 1_000
"""Per round."""

LAXER = {
    "Unexpected whitespace after header value": "folded lines",
    "Duplicate Content-Length": "a length given twice",
    "Invalid character in Content-Length": "a list of equal lengths",
    "Invalid header value char": "control characters in values",
    "the reason phrase holds control characters": "control characters in the reason",
    "Invalid character in chunk size": "blanks after the size of a chunk",
    "Invalid character in chunk extensions": "chunk extensions of any form",
    "Expected LF after chunk size": "a bare CR in chunk extensions",
    "Chunk size overflow": "a chunk size beyond 64 bits",
    "Missing expected CR after header value": "a bare LF in trailers",
    "Invalid header field char": "a bare LF after the last chunk",
}
"""What llhttp says of what h11 takes, and what that is."""

OVERLONG = re.compile(rb"[0-9A-Fa-f]{21}")
"""The size of a chunk in more digits than h11 takes; llhttp does."""

REASONS = [b"OK", b"", b"Not Found", b"Sch\xf6n", b"a  b\t"]
STATUSES = [200, 200, 204, 206, 226, 304, 404, 500, 999]
NAMES = [b"Server", b"X-a", b"set-cookie", b"x!#$%&'*+-.^_`|~9", b"Date", b"Keep-Alive", b"Upgrade"]
VALUES = [
    b"",
    b" ",
    b"a",
    b"a b",
    b"a\tb",
    b"timeout=5, max=3",
    b"\xe4\xff",
    b'a,b;c="d"',
    b"x" * 200,
    b"chunked",
    b"5",
]
NOISE = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0",
    b"1",
    b"f",
    b"\xff",
    b"\x7f",
    b"-",
    b"HTTP/1.1 ",
]


class Maker:
    """
    Makes responses.

    Args:
        chance: Where its decisions come from.
        oddness: How likely it is that a place which may be odd is.
    """

    def __init__(self, chance: random.Random, oddness: float) -> None:
        self.chance = chance
        self.oddness = oddness

    def pick(self, usual: Sequence[Any], odd: Sequence[Any]) -> Any:
        return self.chance.choice(odd if self.chance.random() < self.oddness else usual)

    def response(self) -> bytes:
        """Return a response, perhaps with 1xx before it and something behind it, perhaps changed somewhere."""
        body, fields = self.framed()
        parts = [self.head(self.pick([100, 102, 103], [101, 199]), []) for _ in range(self.pick([0, 0, 0, 1, 2], [17]))]
        parts += [self.head(self.pick(STATUSES, [99, 101, 0]), fields), body]
        parts.append(self.pick([b""], [b"\r\n", b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]))
        raw = b"".join(parts)
        for _ in range(self.pick([0], [1, 1, 2, 4])):
            raw = self.mutated(raw)
        return raw

    def head(self, status: int, fields: list[bytes]) -> bytes:
        version = self.pick(
            [b"HTTP/1.1"], [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"RTSP/1.0", b"http/1.1"]
        )
        reason = self.pick(
            [b" " + reason for reason in REASONS], [b"", b"  OK", b" O\x01K", b" O\0K", b" \x7f", b"\tOK"]
        )
        fields = fields + [self.field() for _ in range(self.chance.choice([0, 1, 1, 2, 5]))]
        self.chance.shuffle(fields)
        return self.lined([b"%b %03d%b" % (version, status, reason), *fields])

    def lined(self, lines: list[bytes]) -> bytes:
        return b"".join(line + self.line_end() for line in lines) + b"\r\n"

    def line_end(self) -> Any:
        return self.pick([b"\r\n"], [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\r\n\t"])

    def field(self) -> bytes:
        colon = self.pick([b": ", b":", b":\t "], [b" : ", b"", b"\0:"])
        value = self.pick(VALUES, [b"a\x01", b"\x7f", b"\x0c", b"\0"])
        if self.chance.random() < 0.1:
            return b"Connection" + colon + self.chance.choice([b"close", b"keep-alive", b"Upgrade, close", b"Upgrade"])
        return self.chance.choice(NAMES) + colon + value

    def framed(self) -> tuple[bytes, list[bytes]]:
        """Return a body and the fields that announce it."""
        content = self.chance.randbytes(self.chance.choice([0, 1, 5, 40, 300]))
        kind = self.chance.random()
        if kind < 0.4:
            length = b"%d" % (len(content) + self.pick([0], [1, -1]))
            length = self.pick(
                [length],
                [
                    *(b"0" + length, length + b" ", length + b"," + length, b"+" + length, b"0x" + length),
                    *(b"%019d" % len(content), b"%020d" % len(content), b"9" * 19, b"9" * 20, b"9" * 40),
                ],
            )
            return content, [b"Content-Length: " + length] * self.pick([1], [2])
        if kind < 0.85:
            coding = self.pick(
                [b"chunked", b"Chunked", b"chunked "],
                [b"gzip", b"gzip, chunked", b"chunked, chunked", b"identity", b"", b"chunked;a=b"],
            )
            fields = [b"Transfer-Encoding: " + coding] * self.pick([1], [2])
            return self.chunked(content), fields + self.pick([[]], [[b"Content-Length: %d" % len(content)]])
        return content, []

    def chunked(self, content: bytes) -> bytes:
        parts = []
        while content:
            size = self.chance.randint(1, len(content))
            written = (
                self.pick(
                    [b"%x", b"%X", b"%03x"],
                    [
                        b"%020x",
                        b"%021x",
                        b"%025x",
                        b"f00000000000000%x",
                        b"ffffffffffffffffffff%.0x",
                        b"0x%x",
                        b"+%x",
                        b"-%x",
                    ],
                )
                % size
            )
            parts += [written, self.extension(), self.line_end(), content[:size], self.line_end()]
            content = content[size:]
        trailers = [self.field() for _ in range(self.chance.choice([0, 0, 0, 1, 2]))]
        trailers += self.pick(
            [[]], [[b"Content-Length: 3"], [b"Transfer-Encoding: chunked"], [b"Transfer-Encoding: x"]]
        )
        return b"".join(parts) + self.lined([self.pick([b"0"], [b"00", b""]) + self.extension(), *trailers])

    def extension(self) -> Any:
        usual = [b"", b"", b"", b"", b"", b";a", b";a=b", b';a="b c"']
        return self.pick(usual, [b";", b" ", b"\t", b" ;a", b";a b", b";\xff", b";a=\x01", b';a="'])

    def mutated(self, raw: bytes) -> bytes:
        at = self.chance.randrange(len(raw) + 1)
        to = min(len(raw), at + self.chance.choice([0, 1, 1, 2, 10]))
        match self.chance.randrange(4):
            case 0:
                return raw[:at] + self.chance.choice(NOISE) + raw[at:]
            case 1:
                return raw[:at] + raw[to:]
            case 2:
                return raw[:at] + self.chance.choice(NOISE) + raw[to:]
            case _:
                return raw[:to] + raw[at:]


def cut(chance: random.Random, raw: bytes) -> list[bytes]:
    ends = sorted({0, len(raw), *(chance.randrange(len(raw) + 1) for _ in range(chance.choice([0, 0, 1, 2, 8])))})
    return [raw[start:end] for start, end in itertools.pairwise(ends)]


class Recorder:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.heads: list[Any] = []
        self.body = b""
        self.trailers: list[Any] = []

    def informational_received(self, head: ResponseHead) -> None:
        self.heads.append((head.status, head.reason, head.http_version, head.headers.raw))

    response_received = informational_received

    def body_received(self, data: bytes) -> None:
        self.body += data

    def response_ended(self, trailers: Headers | None) -> None:
        self.trailers.append(trailers.raw if trailers is not None else None)


class Told(NamedTuple):
    """What an engine said of a response."""

    heads: list[Any]
    body: bytes
    trailers: list[Any]
    error: str | None
    reusable: bool
    message: str


def told(name: str, method: str, pieces: list[bytes], clean: bool) -> Told:
    """Let an engine read the answer to one request."""
    engine = http1_engine(name)(Http1Options())
    engine.start(request_head(method, "/", b"a.test", None, body_length=None, has_body=False, keep_alive=True))
    engine.end_request()
    sink = Recorder()
    error, message, reusable = None, "", False
    try:
        for piece in pieces:
            engine.receive_data(piece, sink)
        reusable = engine.reusable()
        engine.receive_eof(clean, sink)
    except (RemoteProtocolError, ConnectionLost) as exc:
        error, message = exc.code, str(exc)
        assert not engine.reusable()
    return Told(sink.heads, sink.body, sink.trailers, error, reusable, message)


def explained(raw: bytes, h11: Told, httptools: Told) -> bool:
    """Say whether the engines may differ in this."""
    if h11[:3] == httptools[:3] and h11.error and httptools.error:
        return True  # llhttp refuses a line before it is whole: h11 meets another fault, or the end, before it looks
    if any(text in httptools.message for text in LAXER):
        return True
    return "illegal chunk header" in h11.message and OVERLONG.search(raw) is not None


@pytest.mark.parametrize("seed", [SEED + number for number in range(ROUNDS)])
def test_both_engines_tell_the_same(seed: int) -> None:
    """
    Heads, body, trailers, end and error are the same, or the difference is a known one and ends the connection.
    """
    chance = random.Random(seed)
    good = differ = 0

    for _ in range(RESPONSES):
        raw = Maker(chance, chance.choice([0, 0.01, 0.05, 0.2])).response()
        pieces, method, clean = cut(chance, raw), chance.choice(["GET", "GET", "HEAD"]), chance.random() < 0.7
        h11, httptools = told("h11", method, pieces, clean), told("httptools", method, pieces, clean)
        shown = f"{method} {pieces}\nh11:       {h11}\nhttptools: {httptools}"
        if h11[:4] != httptools[:4]:
            differ += 1
            assert explained(raw, h11, httptools), shown
            assert not h11.reusable, shown
            assert not httptools.reusable, shown
        elif not httptools.error:
            good += 1
            assert httptools.reusable or not h11.reusable, shown

    assert good > RESPONSES / 4, "few responses were good: little was compared"
    assert differ, "no response was of the kind that the engines differ on"
