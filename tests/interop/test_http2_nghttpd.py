"""
The agent's HTTP/2 against nghttpd, the server of nghttp2, whose log has each frame that came and went.

Needs nghttpd 1.52 or later, of `make peers` or on PATH. Without it these tests fail: a skip would hide that nothing was
compared.
"""

from __future__ import annotations

import re

import pytest
from http2_peers import SIZES, Nghttpd, nghttpd, payload

END_STREAM = 0x01


def most_open(peer: Nghttpd) -> int:
    """Return how many requests without a body were open at a time, in nghttpd's order of events."""
    most, streams = 0, set()
    for connection, way, kind, stream, flags in peer.frames():
        if (way, kind) == ("recv", "HEADERS"):
            streams.add((connection, stream))
            most = max(most, len(streams))
        elif way == "send" and kind in ("HEADERS", "DATA") and flags & END_STREAM:
            streams.remove((connection, stream))
    return most


def connections(peer: Nghttpd) -> set[str]:
    """Return the connections that requests came on. What nghttpd logs is complete once it has ended."""
    return {connection for connection, way, kind, *_ in peer.frames() if (way, kind) == ("recv", "HEADERS")}


@pytest.mark.parametrize("padding", [0, 255])
def test_bodies_both_ways(open_agent, tmp_path, padding):
    """
    Bodies of all sizes come and go whole, on one connection, frames with padding too.
    """
    with nghttpd(tmp_path, f"--padding={padding}") as peer:
        agent = open_agent()
        for size in SIZES:
            got = agent.request("GET", f"{peer.url}/{size}")
            head = agent.request("HEAD", f"{peer.url}/{size}")
            echoed = agent.request("POST", f"{peer.url}/echo", content=payload(size))
            streamed = agent.request("PUT", f"{peer.url}/echo", content=iter([payload(size)[:9], payload(size)[9:]]))

            assert (got.status, got.content) == (200, payload(size))
            assert (head.status, head.content, head.headers["content-length"]) == (200, b"", str(size))
            assert echoed.content == payload(size)
            assert streamed.content == payload(size)

    assert (got.http_version, got.connection.alpn_protocol) == ("HTTP/2", "h2")
    assert connections(peer) == {"1"}


def test_hundred_at_once(open_agent, tmp_path):
    """
    A hundred uploads and downloads at once share one connection.
    """
    with nghttpd(tmp_path) as peer:
        agent = open_agent()
        gets = [agent.submit("GET", f"{peer.url}/100000") for _ in range(50)]
        posts = [agent.submit("POST", f"{peer.url}/echo", content=payload(100_000)) for _ in range(50)]

        assert all(future.result(40).content == payload(100_000) for future in gets + posts)
    assert connections(peer) == {"1"}


@pytest.mark.parametrize("warm", [True, False])
def test_limit_of_streams_is_kept(open_agent, tmp_path, warm):
    """
    More requests than nghttpd takes at a time wait their turn; before its limit is known, what it refuses comes again.
    """
    with nghttpd(tmp_path, "--max-concurrent-streams=3") as peer:
        agent = open_agent(max_sockets=1)
        if warm:
            agent.request("GET", f"{peer.url}/1")
        responses = [agent.submit("GET", f"{peer.url}/8000000") for _ in range(12)]

        assert all(future.result(40).content == payload(8_000_000) for future in responses)
    assert connections(peer) == {"1"}
    assert not warm or most_open(peer) == 3


def test_trailers_both_ways(open_agent, tmp_path):
    """
    nghttpd gets the trailers of a request, and what it sends behind a body is in `trailers`.
    """
    with nghttpd(tmp_path, "--trailer", "x-tail: it was whole") as peer:
        agent = open_agent()
        for size in SIZES:
            content = payload(size)
            response = agent.request("POST", f"{peer.url}/echo", content=content, trailers={"X-Size": str(size)})

            assert response.content == content
            assert response.trailers["x-tail"] == "it was whole"
    assert connections(peer) == {"1"}
    assert re.findall(r"recv \(stream_id=\d+\) x-size: (\d+)", "".join(peer.program.lines)) == [str(n) for n in SIZES]


@pytest.mark.parametrize("size", SIZES)
def test_upload_through_small_windows(open_agent, tmp_path, size):
    """
    Bodies go out as fast as windows of a few bytes are opened again: those of streams, and that of the connection.
    """
    bits = 15 if size > 1_000_000 else 10
    with nghttpd(tmp_path, f"--window-bits={bits}", "--connection-window-bits=16") as peer:
        agent = open_agent()
        agent.request("GET", f"{peer.url}/1")  # what is sent before nghttpd's settings come, it may refuse
        uploads = [agent.submit("POST", f"{peer.url}/echo", content=payload(size)) for _ in range(3)]

        assert all(future.result(40).content == payload(size) for future in uploads)
    assert connections(peer) == {"1"}


def test_no_push(open_agent, tmp_path):
    """
    A server that would push keeps it to itself, because we say that we want none.
    """
    with nghttpd(tmp_path, "--push=/1=/100000") as peer:
        agent = open_agent()
        responses = [agent.request("GET", f"{peer.url}/1") for _ in range(2)]

        assert [response.content for response in responses] == [payload(1)] * 2
    assert connections(peer) == {"1"}
    assert "PUSH_PROMISE" not in {kind for _, _, kind, *_ in peer.frames()}
    assert any("SETTINGS_ENABLE_PUSH(0x02):0" in line for line in peer.program.lines)


def test_response_given_up(open_agent, tmp_path):
    """
    A response that is dropped half-way is cancelled at the server; the connection serves on.
    """
    with nghttpd(tmp_path) as peer:
        agent = open_agent()
        with agent.stream("GET", f"{peer.url}/8000000") as response:
            assert next(response.iter_bytes())
        later = agent.request("GET", f"{peer.url}/8000000")

        assert later.content == payload(8_000_000)
    assert ("1", "recv", "RST_STREAM", 1, 0) in peer.frames()
    assert any("error_code=CANCEL(0x08)" in line for line in peer.program.lines)
    assert connections(peer) == {"1"}


def test_unread_responses_do_not_hold_up_others(open_agent, tmp_path):
    """
    While responses wait to be read, others pass them; then they come whole.
    """
    with nghttpd(tmp_path) as peer:
        agent = open_agent()
        held = [agent.open_stream("GET", f"{peer.url}/8000000") for _ in range(5)]
        passed = agent.request("GET", f"{peer.url}/8000000")
        read = [response.read() for response in held]

        assert [passed.content, *read] == [payload(8_000_000)] * 6
    assert connections(peer) == {"1"}


def test_agent_says_goodbye(open_agent, tmp_path):
    """
    An agent that is closed sends GOAWAY without an error before it hangs up.
    """
    with nghttpd(tmp_path) as peer:
        agent = open_agent()
        agent.request("GET", f"{peer.url}/1")
        agent.close()

        assert peer.program.wait_for(lambda: ("1", "recv", "GOAWAY", 0, 0) in peer.frames())
    assert "error_code=NO_ERROR(0x00)" in "".join(peer.program.lines)
