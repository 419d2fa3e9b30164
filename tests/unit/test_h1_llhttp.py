"""
Both HTTP/1.1 engines against the response vectors of llhttp, Node's own parser.

The vectors are shared by several checkouts and lie beside them; without them there is nothing to compare with.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tlsagent._http.engines import http1_engine
from tlsagent._http.messages import Headers, ResponseHead, request_head
from tlsagent._limits import Http1Options
from tlsagent.errors import ConnectionLost, RemoteProtocolError

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "h1-llhttp.json"

# Where an engine decides otherwise than the vector asks. All are of level "strict": two good parsers differ on them.
# None lets bytes pass for the answer to a later request.
REFUSED = {"llhttp::connection::http-100-first-then-400": "no parser sees an empty line before a status line"}
DISAGREEMENTS = {
    "h11": REFUSED
    | {
        "llhttp::transfer-encoding::trailing-space-on-chunked-body": "h11 allows blanks after a chunk size",
        "llhttp::transfer-encoding::no-extension-after-semicolon": "h11 does not look into extensions",
    },
    "httptools": REFUSED,
}


class Recorder:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.heads: list[ResponseHead] = []
        self.body = b""
        self.ended = False

    def informational_received(self, head: ResponseHead) -> None:
        pass

    def response_received(self, head: ResponseHead) -> None:
        self.heads.append(head)

    def body_received(self, data: bytes) -> None:
        self.body += data

    def response_ended(self, trailers: Headers | None) -> None:
        self.ended = True


def outcome(name: str, vector: dict[str, Any], pieces: list[bytes]) -> tuple[str, int | None, bytes, bool]:
    """Return "ok" or "error", status, body, and whether the connection would have been used again before the close."""
    engine = http1_engine(name)(Http1Options())
    head = request_head(vector["method"], "/", b"localhost", None, body_length=None, has_body=False, keep_alive=True)
    engine.start(head)
    engine.end_request()
    sink = Recorder()
    verdict = "ok"
    try:
        for piece in pieces:
            if sink.ended:
                with pytest.raises(RemoteProtocolError, match="unsolicited"):
                    engine.receive_data(piece, sink)
                break
            engine.receive_data(piece, sink)
        reusable = engine.reusable()
        engine.receive_eof(True, sink)
        assert sink.ended
    except (RemoteProtocolError, ConnectionLost):
        verdict = "error"
        reusable = engine.reusable()
    assert len(sink.heads) <= 1
    return verdict, sink.heads[0].status if sink.heads else None, sink.body, reusable


def vectors() -> list[Any]:
    if not VECTORS.exists():
        reason = f"the vectors of llhttp are missing: {VECTORS} does not exist, so nothing was compared with llhttp"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="missing")]
    return [pytest.param(vector, id=vector["id"]) for vector in json.loads(VECTORS.read_text())["vectors"]]


@pytest.mark.parametrize("name", DISAGREEMENTS)
@pytest.mark.parametrize("vector", vectors())
def test_response_is_judged_as_llhttp_judges_it(name: str, vector: dict[str, Any]) -> None:
    """
    An engine accepts and refuses what llhttp does, but for the explained table, and never reuses what must not be.
    """
    raw = base64.b64decode(vector["raw"])

    verdict, status, body, reusable = outcome(name, vector, [raw])

    agrees = vector["expect"] in (verdict, "either")
    assert agrees is (vector["id"] not in DISAGREEMENTS[name])
    if not agrees:
        assert vector["level"] == "strict"
    elif verdict == "ok":
        assert status == vector["status"] or vector["status"] is None
        assert vector["body"] is None or body == base64.b64decode(vector["body"])
    if vector["reuse"] is False:
        assert not reusable


@pytest.mark.parametrize("name", DISAGREEMENTS)
@pytest.mark.parametrize("vector", vectors())
def test_verdict_does_not_depend_on_how_the_bytes_are_cut(name: str, vector: dict[str, Any]) -> None:
    """
    Fed byte by byte, a response gets the same verdict, status, body and reuse as fed whole.
    """
    raw = base64.b64decode(vector["raw"])

    assert outcome(name, vector, [bytes([byte]) for byte in raw]) == outcome(name, vector, [raw])
