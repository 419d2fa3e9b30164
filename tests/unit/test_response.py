"""
What a caller sees of a response.
"""

from __future__ import annotations

import pytest

from tlsagent.testing.simulation import Reply, SimulatedServer, Simulation


def respond(reply, url="https://a.test/x", **arguments):
    sim = Simulation(server=SimulatedServer(lambda request, peer: reply))
    handle = sim.request("GET", url, **arguments)
    sim.run_until_idle()
    return handle.response


def test_facts():
    """Status, headers, body, trailers and what came before the response."""
    reply = Reply(
        status=201,
        headers=[("X-A", "1"), ("x-a", "2")],
        body=b"made",
        trailers=[("x-sum", "4")],
        interim=[102, 103],
    )

    response = respond(reply)

    assert (response.status, response.reason, response.http_version) == (201, "", "HTTP/1.1")
    assert response.headers.get_all("x-a") == ["1", "2"]
    assert response.content == b"made"
    assert response.trailers["x-sum"] == "4"
    assert [head.status for head in response.informational] == [102, 103]
    assert (response.reused, response.request_number, response.attempts) == (False, 1, 1)
    assert response.why_not_reused == "first connection of this key"
    assert response.connection.remote_address == ("a.test", 443)
    assert response.timings.total == 0.0
    assert repr(response) == "<Response 201>"


def test_reason_of_the_server():
    """The reason phrase is passed on as it came."""
    assert respond(b"HTTP/1.1 404 Not H\xe9re\r\nContent-Length: 0\r\n\r\n").reason == "Not Hére"


def test_body_of_many_pieces_is_joined():
    """The content is one bytes object, empty without a body."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    assert respond(head + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n").content == b"abc"
    assert respond(Reply(body=b"x" * 200_000)).content == b"x" * 200_000
    assert respond(Reply(status=204)).content == b""
    assert respond(Reply(status=204)).trailers is None


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        (None, "naïve".encode(), "naïve"),
        ("text/plain", b"\xff", "\N{REPLACEMENT CHARACTER}"),
        ("text/plain; charset=latin-1", b"na\xefve", "naïve"),
        ('text/html; charset="UTF-16LE"', "naïve".encode("utf-16le"), "naïve"),
        ("text/plain; charset=no-such", "naïve".encode(), "naïve"),
        ("; charset", b"x", "x"),
    ],
)
def test_text(content_type, body, expected):
    """Text is decoded by its charset, by UTF-8 without a known one; nothing makes it fail."""
    headers = [("content-type", content_type)] if content_type else []

    assert respond(Reply(headers=headers, body=body)).text == expected


def test_json():
    """A body is parsed on demand; one that is no JSON is a ValueError."""
    assert respond(Reply(body=b'{"a": [1]}')).json() == {"a": [1]}
    with pytest.raises(ValueError, match="Expecting value"):
        respond(Reply(body=b"<html>")).json()


def test_streamed_response_knows_its_trailers_at_the_end():
    """Before the body was read there are no trailers."""
    reply = Reply(body=b"x", trailers=[("x-a", "1")], delay=1)
    sim = Simulation(server=SimulatedServer(lambda request, peer: reply))
    handle = sim.request("GET", "https://a.test/", stream=True)
    sim.advance(1)

    assert handle.response.trailers["x-a"] == "1"
    assert handle.response.read() == b"x"
    assert handle.response.ended
    assert repr(handle.response) == "<SimulatedStream 200>"
