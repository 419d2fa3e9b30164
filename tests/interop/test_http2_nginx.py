"""
The agent's HTTP/2 against nginx, which tells in its access log what it was asked, once for each request.

Needs nginx 1.22 or later, of `make peers` or on PATH. Without it these tests fail: a skip would hide that nothing was
compared.
"""

from __future__ import annotations

import os
import re
import signal

import pytest
from http2_peers import SIZES, Nginx, nginx, payload
from wire_peer import wait_until

from tlsagent import ConnectionLost, Http1Options


def logged(peer: Nginx, count: int) -> list[dict]:
    """Return what nginx has served, once that many requests have ended."""
    assert wait_until(lambda: len(peer.served()) >= count), peer.served()
    return peer.served()


def numbered(agent, peer: Nginx, path: str, count: int) -> list:
    """Start that many requests at once, each with a number of its own."""
    return [agent.submit("GET", peer.url + path, headers={"x-number": str(n)}) for n in range(count)]


def test_bodies_both_ways(open_agent, tmp_path):
    """
    Bodies of all sizes come and go whole, on one connection, and both sides call it HTTP/2.
    """
    with nginx(tmp_path) as peer:
        agent = open_agent()
        for size in SIZES:
            got = agent.request("GET", f"{peer.url}/{size}")
            head = agent.request("HEAD", f"{peer.url}/{size}")
            put = agent.request("PUT", f"{peer.url}/stored/{size}", content=payload(size))

            assert (got.status, got.content) == (200, payload(size))
            assert (head.status, head.content, head.headers["content-length"]) == (200, b"", str(size))
            assert (put.status, peer.stored(str(size))) == (201, payload(size))
            assert put.reused

        assert (got.http_version, got.reason, got.connection.alpn_protocol) == ("HTTP/2", "", "h2")
        assert got.connection.http_engine == agent.agent.options.http2_engine
        served = logged(peer, 3 * len(SIZES))
    assert {(entry["connection"], entry["protocol"]) for entry in served} == {(1, "HTTP/2.0")}


def test_hundred_at_once(open_agent, tmp_path):
    """
    A hundred requests at once share one connection, the first one of the agent.
    """
    with nginx(tmp_path) as peer:
        agent = open_agent()
        responses = [future.result(40) for future in numbered(agent, peer, "/100000", 100)]

        served = logged(peer, 100)
    assert all(response.content == payload(100_000) for response in responses)
    assert {entry["connection"] for entry in served} == {1}
    assert sorted(int(entry["number"]) for entry in served) == list(range(100))


def test_trailers(open_agent, tmp_path):
    """
    What nginx sends behind a body is in `trailers`.
    """
    with nginx(tmp_path) as peer:
        agent = open_agent()
        for size in SIZES:
            response = agent.request("GET", f"{peer.url}/trailers/{size}")

            assert (response.content, response.trailers["x-served"]) == (payload(size), "whole")
        assert agent.request("GET", f"{peer.url}/1").trailers is None


def test_limit_of_requests_per_connection(open_agent, tmp_path):
    """
    nginx ends a connection gracefully after twenty requests: each one is answered, and processed once.
    """
    with nginx(tmp_path, "keepalive_requests 20;") as peer:
        agent = open_agent()
        responses = []
        for _ in range(4):
            responses += [future.result(40) for future in numbered(agent, peer, "/100000", 30)]

        served = logged(peer, 120)
    assert all(response.content == payload(100_000) for response in responses)
    assert len(served) == 120
    connections = [entry["connection"] for entry in served]
    assert max(connections.count(n) for n in connections) == 20


def test_reload(open_agent, tmp_path):
    """
    A reload ends the old worker's connection: what was under way ends well there, what comes later goes elsewhere.
    """
    with nginx(tmp_path) as peer:
        agent = open_agent()
        before = agent.request("GET", f"{peer.url}/1")
        slow = numbered(agent, peer, "/slow/100000", 5)
        with agent.stream("GET", f"{peer.url}/slow/100000") as response:
            pieces = response.iter_bytes()
            body = next(pieces)
            peer.reload()
            body += b"".join(pieces)
        responses = [future.result(40) for future in slow]
        after = agent.request("GET", f"{peer.url}/1")

        served = logged(peer, 8)
    assert body == payload(100_000)
    assert all(response.content == payload(100_000) for response in responses)
    assert {response.connection.id for response in responses} == {before.connection.id}
    assert after.connection.id != before.connection.id
    assert after.attempts == 1
    assert len(served) == 8


def test_requests_through_reloads(open_agent, tmp_path):
    """
    While nginx is reloaded again and again, requests are answered and processed once, or certainly not at all: those
    that two workers in turn leave out, or that waited for a connection which the old one took and closed.
    """
    with nginx(tmp_path) as peer:
        agent = open_agent()
        answered = []
        for turn in range(5):
            futures = [
                (f"{turn}-{n}", agent.submit("GET", f"{peer.url}/100000", headers={"x-number": f"{turn}-{n}"}))
                for n in range(30)
            ]
            peer.reload()
            for number, future in futures:
                error = future.exception(40)
                if error is None:
                    assert future.result().content == payload(100_000)
                    answered.append(number)
                else:
                    assert isinstance(error, ConnectionLost)
                    assert error.code == "ERR_HTTP2_GOAWAY_SESSION" or error.phase == "handshake"

        served = logged(peer, len(answered))
    assert sorted(entry["number"] for entry in served) == sorted(answered)
    assert len(answered) > 30


@pytest.mark.parametrize("warm", [True, False])
def test_limit_of_streams_is_kept(open_agent, tmp_path, warm):
    """
    More requests than nginx takes at a time wait their turn: once the limit is known, nginx has none to refuse.
    """
    with nginx(tmp_path, "http2_max_concurrent_streams 3;") as peer:
        agent = open_agent(max_sockets=1)
        if warm:
            agent.request("GET", f"{peer.url}/1")
        responses = [future.result(40) for future in numbered(agent, peer, "/100000", 40)]

        served = logged(peer, 40 + warm)
    assert all(response.content == payload(100_000) for response in responses)
    assert sorted(int(entry["number"]) for entry in served if entry["number"]) == list(range(40))
    assert {entry["connection"] for entry in served} == {1}
    assert not [line for line in peer.program.lines if "concurrent streams exceeded" in line]


def test_full_connections_get_company(open_agent, tmp_path):
    """
    Without a limit of ours, what nginx does not take on one connection goes to further ones.
    """
    with nginx(tmp_path, "http2_max_concurrent_streams 3;") as peer:
        agent = open_agent()
        agent.request("GET", f"{peer.url}/1")
        slow = numbered(agent, peer, "/slow/100000", 9)
        responses = [future.result(40) for future in slow]

        served = logged(peer, 10)
    assert all(response.content == payload(100_000) for response in responses)
    assert len({entry["connection"] for entry in served}) in (2, 3)


@pytest.mark.parametrize("size", SIZES)
def test_upload_into_a_window_that_is_shut(open_agent, tmp_path, size):
    """
    nginx grants no byte of a body before it has seen the head: the body waits, and comes whole.
    """
    with nginx(tmp_path, "http2_body_preread_size 0;") as peer:
        agent = open_agent()
        uploads = [agent.submit("PUT", f"{peer.url}/stored/{n}", content=payload(size)) for n in range(4)]
        statuses = [future.result(40).status for future in uploads]

        assert statuses == [201] * 4
        assert [peer.stored(str(n)) for n in range(4)] == [payload(size)] * 4


@pytest.mark.parametrize(("path", "status"), [("/early", 200), ("/small", 413)])
def test_answer_before_the_end_of_an_upload(open_agent, tmp_path, path, status):
    """
    A response that does not wait for the body is taken, the upload stops, and the connection lives on.
    """
    with nginx(tmp_path) as peer:
        agent = open_agent()
        method = "POST" if path == "/early" else "PUT"
        response = agent.request(method, peer.url + path, content=payload(8_000_000))
        later = agent.request("PUT", f"{peer.url}/stored/later", content=payload(100_000))

        served = logged(peer, 2)
        assert peer.stored("later") == payload(100_000)
    assert (response.status, later.status) == (status, 201)
    assert response.content == b"early" or status != 200
    assert [entry["connection"] for entry in served] == [1, 1]


def test_expectation_that_nginx_does_not_answer(open_agent, tmp_path):
    """
    Over HTTP/2 nginx sends no 100 (Continue): after the wait the body goes all the same.
    """
    with nginx(tmp_path) as peer:
        agent = open_agent(http1=Http1Options(expect_continue_wait=0.1))
        response = agent.request("PUT", f"{peer.url}/stored/x", content=payload(100_000), expect_continue=True)

        assert (response.status, response.informational) == (201, ())
        assert peer.stored("x") == payload(100_000)


def test_response_given_up(open_agent, tmp_path):
    """
    A response that is dropped half-way ends its stream, for nginx too; the connection serves on.
    """
    with nginx(tmp_path) as peer:
        agent = open_agent()
        with agent.stream("GET", f"{peer.url}/8000000") as response:
            next(response.iter_bytes())
        later = agent.request("GET", f"{peer.url}/100000")

        served = logged(peer, 2)
    assert later.content == payload(100_000)
    assert later.reused
    assert [entry["connection"] for entry in served] == [1, 1]
    assert next(entry["sent"] for entry in served if entry["uri"] == "/8000000") < 8_000_000


def test_worker_is_killed(open_agent, tmp_path):
    """
    A connection that dies with responses under way fails each of them by name; the next request finds the new worker.
    """
    with nginx(tmp_path) as peer:
        agent = open_agent()
        responses = [agent.open_stream("GET", f"{peer.url}/slow/100000") for _ in range(5)]
        os.kill(int(peer.program.announced), signal.SIGKILL)

        for response in responses:
            with pytest.raises(ConnectionLost):
                response.read()
        assert agent.request("GET", f"{peer.url}/1").content == payload(1)
    assert re.search(r"worker process \d+ exited on signal 9", "".join(peer.program.lines))


def test_server_without_http2(open_agent, tmp_path):
    """
    Where nginx has no HTTP/2, the same agent speaks HTTP/1.1.
    """
    with nginx(tmp_path, http2=False) as peer:
        agent = open_agent()
        responses = [future.result(40) for future in numbered(agent, peer, "/100000", 20)]

        served = logged(peer, 20)
    assert all(response.content == payload(100_000) for response in responses)
    assert {(r.http_version, r.connection.alpn_protocol) for r in responses} == {("HTTP/1.1", "http/1.1")}
    assert {entry["protocol"] for entry in served} == {"HTTP/1.1"}
