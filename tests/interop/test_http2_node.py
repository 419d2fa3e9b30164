"""
The agent's HTTP/2 against Node's server, which tells what it saw of each request, and whose sessions end on demand.

Needs Node 20 or later: that of the test dependencies, or `node` on PATH. Without it these tests fail: a skip would
hide that nothing was compared.
"""

from __future__ import annotations

import hashlib

import pytest
from http2_peers import SIZES, NodeServer, node_server, payload
from wire_peer import wait_until

from tlsagent import (
    UNSET,
    ConnectionLost,
    HandshakeError,
    Http1Options,
    Http2Options,
    LocalProtocolError,
    StreamReset,
)

REFUSED_STREAM = 0x07
CANCEL = 0x08


def paths(peer: NodeServer, session: int) -> list[str]:
    """Return what was asked for in one of the server's sessions."""
    return [entry["path"] for entry in peer.seen() if entry["session"] == session]


def held(agent, peer: NodeServer, count: int) -> list:
    """Start requests of which the server holds back the end of the answer; return them once it has them all."""
    before = len(peer.seen())
    futures = [agent.submit("GET", f"{peer.url}/hold/{n}") for n in range(count)]
    assert wait_until(lambda: len(peer.seen()) == before + count)
    return futures


def contents(futures: list) -> list[str]:
    return [future.result(20).text for future in futures]


# --- Bodies -----------------------------------------------------------------------------------------------------------


def test_bodies_both_ways(open_agent):
    """
    Bodies of all sizes come and go whole, on one session, and both sides call it HTTP/2.
    """
    with node_server() as peer:
        agent = open_agent()
        for size in SIZES:
            got = agent.request("GET", f"{peer.url}/bytes/{size}")
            head = agent.request("HEAD", f"{peer.url}/bytes/{size}")
            digest = agent.request("POST", f"{peer.url}/digest", content=payload(size)).json()
            echoed = agent.request("PUT", f"{peer.url}/echo", content=iter([payload(size)[:9], payload(size)[9:]]))

            assert (got.status, got.content) == (200, payload(size))
            assert (head.status, head.content, head.headers["content-length"]) == (200, b"", str(size))
            assert (digest["size"], digest["sha256"]) == (size, hashlib.sha256(payload(size)).hexdigest())
            assert echoed.content == payload(size)

        assert (got.http_version, got.connection.alpn_protocol) == ("HTTP/2", "h2")
        assert got.connection.http_engine == agent.agent.options.http2_engine
        seen = peer.seen()
    assert {(entry["session"], entry["version"], entry["alpn"], entry["code"]) for entry in seen} == {
        (1, "2.0", "h2", 0)
    }


def test_hundred_at_once(open_agent):
    """
    A hundred requests at once, each with a body both ways, share one session.
    """
    with node_server() as peer:
        agent = open_agent()
        bodies = [payload(100_000 + n) for n in range(100)]
        futures = [agent.submit("POST", f"{peer.url}/echo", content=body) for body in bodies]

        assert [future.result(40).content for future in futures] == bodies
        assert {entry["session"] for entry in peer.seen()} == {1}


@pytest.mark.parametrize("size", SIZES[1:])
def test_trailers_both_ways(open_agent, size):
    """
    Trailers reach the server, and what it sends behind the body is in `trailers`.
    """
    with node_server() as peer:
        agent = open_agent()
        sent = {"X-Checksum": "abc", "X-Twice": "1"}
        response = agent.request("POST", f"{peer.url}/echo", content=payload(size), trailers=sent)
        digest = agent.request("POST", f"{peer.url}/digest", content=payload(size), trailers=sent).json()

    assert response.content == payload(size)
    assert response.trailers.raw == [(b"x-checksum", b"abc"), (b"x-twice", b"1")]
    assert digest["trailers"] == {"x-checksum": "abc", "x-twice": "1"}


def test_upload_through_small_windows(open_agent):
    """
    Bodies go out through windows of 100 bytes, several at a time.
    """
    with node_server(settings={"initialWindowSize": 100}) as peer:
        agent = open_agent()
        agent.request("GET", f"{peer.url}/bytes/1")
        uploads = [agent.submit("POST", f"{peer.url}/echo", content=payload(30_000)) for _ in range(3)]

        assert [future.result(40).content for future in uploads] == [payload(30_000)] * 3


# --- Before the response ----------------------------------------------------------------------------------------------


def test_informational_responses(open_agent):
    """
    Early hints, and a bare 102, are in `informational`; the response that follows is what it is.
    """
    with node_server() as peer:
        agent = open_agent()
        response = agent.request("GET", f"{peer.url}/hints")

    assert (response.status, response.text) == (200, "after the hints")
    assert [head.status for head in response.informational] == [103, 102]
    assert response.informational[0].headers["link"] == "</style.css>; rel=preload; as=style"


@pytest.mark.parametrize("size", SIZES[1:])
def test_body_follows_the_100(open_agent, size):
    """
    A body that waits for a 100 (Continue) is sent when Node has said it.
    """
    with node_server() as peer:
        agent = open_agent(http1=Http1Options(expect_continue_wait=50))
        response = agent.request("POST", f"{peer.url}/digest", content=payload(size), expect_continue=True)

        [entry] = peer.seen()
    assert response.json()["sha256"] == hashlib.sha256(payload(size)).hexdigest()
    assert [head.status for head in response.informational] == [100]
    assert (entry["continued"], entry["headers"]["expect"]) == (True, "100-continue")


def test_body_is_not_wanted(open_agent):
    """
    A final response in place of the 100 is the response; the body is not sent, and the session lives on.
    """

    def body():
        began.append(True)
        yield payload(100_000)

    began: list[bool] = []
    with node_server() as peer:
        agent = open_agent(http1=Http1Options(expect_continue_wait=50))
        response = agent.request("POST", f"{peer.url}/unwanted", content=body(), expect_continue=True)
        later = agent.request("POST", f"{peer.url}/digest", content=b"abc")

        sessions = [entry["session"] for entry in peer.seen()]
    assert (response.status, response.content, began) == (417, b"", [])
    assert later.json()["size"] == 3
    assert sessions == [1, 1]


# --- Streams that end early -------------------------------------------------------------------------------------------


def test_response_is_reset(open_agent):
    """
    A stream that the server resets half-way fails its own request, and no other of the session.
    """
    with node_server() as peer:
        agent = open_agent()
        [other] = held(agent, peer, 1)
        with (
            pytest.raises(StreamReset, match="INTERNAL_ERROR") as caught,
            agent.stream("GET", f"{peer.url}/reset/2") as response,  # or here, if the reset comes with the head
        ):
            response.read()
        peer.tell("release")

        assert contents([other]) == ["0 released"]
        assert agent.request("GET", f"{peer.url}/bytes/1").reused
        assert {entry["session"] for entry in peer.seen()} == {1}
    assert caught.value.error_code == 2


def test_response_is_given_up(open_agent):
    """
    A response that is dropped half-way is cancelled at the server, and no other of the session is hurt.
    """
    with node_server() as peer:
        agent = open_agent()
        [other] = held(agent, peer, 1)
        with agent.stream("GET", f"{peer.url}/bytes/8000000") as response:
            next(response.iter_bytes())
        assert wait_until(lambda: peer.seen()[1]["code"] == CANCEL)
        peer.tell("release")

        assert contents([other]) == ["0 released"]
        assert agent.request("GET", f"{peer.url}/bytes/8000000").content == payload(8_000_000)
        assert {entry["session"] for entry in peer.seen()} == {1}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refused_stream_is_sent_again(open_agent, method):
    """
    What the server refuses before it has processed it is sent once more, whatever the method.
    """
    with node_server() as peer:
        agent = open_agent()
        content = payload(100_000) if method == "POST" else None
        response = agent.request(method, f"{peer.url}/refuse/once", content=content)

        seen = peer.seen()
    assert (response.text, response.attempts) == ("once", 2)
    assert [entry["code"] for entry in seen] == [REFUSED_STREAM, 0]


def test_refused_stream_is_sent_again_once(open_agent):
    """
    A stream that is refused again fails; one whose body cannot be had again, or that must not be, at once.
    """
    with node_server() as peer:
        agent = open_agent()
        for more in ({}, {"content": iter([b"abc"])}, {"retry": False}):
            with pytest.raises(StreamReset, match="REFUSED_STREAM") as caught:
                agent.request("POST", f"{peer.url}/refuse/always", **more)
            assert caught.value.error_code == REFUSED_STREAM

        assert len(peer.seen()) == 2 + 1 + 1
        assert agent.request("GET", f"{peer.url}/bytes/1").content == payload(1)


# --- Sessions that end ------------------------------------------------------------------------------------------------


def test_session_is_closed_gracefully(open_agent):
    """
    After `session.close()` what is under way ends well, and what comes later has a session of its own.
    """
    with node_server() as peer:
        agent = open_agent()
        under_way = held(agent, peer, 5)
        peer.tell("close")
        later = agent.request("GET", f"{peer.url}/bytes/1")
        peer.tell("release")

        assert contents(under_way) == [f"{n} released" for n in range(5)]
        assert later.content == payload(1)
        assert paths(peer, 2) == ["/bytes/1"]
        assert len(peer.seen()) == 6
        assert wait_until(lambda: peer.report()["sessions"] == [2])


def test_idle_session_is_closed(open_agent):
    """
    A session that ended while nobody used it costs no request a second attempt.
    """
    with node_server() as peer:
        agent = open_agent()
        for turn in (1, 2, 3):
            assert agent.request("POST", f"{peer.url}/digest", content=b"abc").attempts == 1
            peer.tell("close")
            assert wait_until(lambda: peer.report()["ended"] == turn)  # noqa: B023 - called at once

        assert [entry["session"] for entry in peer.seen()] == [1, 2, 3]


def test_goaway_leaves_what_is_under_way(open_agent):
    """
    After `session.goaway()` the session takes no more requests; those that it has are answered on it.
    """
    with node_server() as peer:
        agent = open_agent()
        under_way = held(agent, peer, 5)
        peer.tell("goaway", {})
        later = agent.request("GET", f"{peer.url}/bytes/1")
        peer.tell("release")

        assert contents(under_way) == [f"{n} released" for n in range(5)]
        assert (later.status, later.reused) == (200, False)
        assert paths(peer, 2) == ["/bytes/1"]
        assert len(peer.seen()) == 6


def test_goaway_sends_elsewhere_what_it_leaves_out(open_agent):
    """
    Requests above the last stream of a GOAWAY were not processed: they are sent again on another session.
    """
    with node_server() as peer:
        agent = open_agent()
        under_way = held(agent, peer, 6)
        first = peer.seen()
        peer.tell("goaway", {"code": 0, "last": first[2]["stream"]})
        assert wait_until(lambda: len(peer.seen()) == 9)
        peer.tell("release")

        assert contents(under_way) == [f"{n} released" for n in range(6)]
        assert sorted(paths(peer, 2)) == sorted(entry["path"] for entry in first[3:])
        assert [future.result().attempts for future in under_way].count(2) == 3


def test_session_is_destroyed(open_agent):
    """
    A connection that is torn down fails what was under way by name; nothing is sent twice, and the next request works.
    """
    with node_server() as peer:
        agent = open_agent()
        under_way = held(agent, peer, 5)
        peer.tell("destroy")

        for future in under_way:
            with pytest.raises((ConnectionLost, StreamReset)):
                future.result(20)
        assert agent.request("GET", f"{peer.url}/bytes/1").content == payload(1)
        assert len(peer.seen()) == 6


# --- What the server allows -------------------------------------------------------------------------------------------


def test_limit_of_streams_is_kept(open_agent):
    """
    More requests than Node takes at a time wait their turn, also when the limit changes on the way.
    """
    with node_server(settings={"maxConcurrentStreams": 4}) as peer:
        agent = open_agent(max_sockets=1)
        agent.request("GET", f"{peer.url}/bytes/1")
        peaks = []
        for limit in (4, 9, 2):
            peer.tell("settings", {"maxConcurrentStreams": limit})
            agent.request("GET", f"{peer.url}/bytes/1")
            futures = [agent.submit("GET", f"{peer.url}/crowd") for _ in range(50)]
            assert [future.result(20).status for future in futures] == [200] * 50
            peaks.append(peer.tell("peak"))

        assert {entry["code"] for entry in peer.seen()} == {0}
        assert peer.report()["sessions"] == [1]
    assert peaks == [4, 9, 2]


def test_server_that_takes_none_for_now(open_agent):
    """
    Where Node allows no stream at all, requests wait until it does.
    """
    with node_server() as peer:
        agent = open_agent(max_sockets=1)
        agent.request("GET", f"{peer.url}/bytes/1")
        [open_one] = held(agent, peer, 1)
        peer.tell("settings", {"maxConcurrentStreams": 0})
        peer.tell("ping")
        waiting = [agent.submit("GET", f"{peer.url}/bytes/1") for _ in range(3)]
        assert wait_until(lambda: agent.stats().waiting == 3)
        peer.tell("settings", {"maxConcurrentStreams": 5})
        peer.tell("ping")

        assert [future.result(20).content for future in waiting] == [payload(1)] * 3
        peer.tell("release")
        assert contents([open_one]) == ["0 released"]
        assert {entry["session"] for entry in peer.seen()} == {1}


def test_frames_that_we_do_not_know(open_agent):
    """
    ALTSVC and ORIGIN frames change nothing, and a PING is answered while a request is under way.
    """
    with node_server() as peer:
        agent = open_agent()
        under_way = held(agent, peer, 1)
        peer.tell("announce")

        assert peer.tell("ping") == 1
        peer.tell("release")
        assert contents(under_way) == ["0 released"]
        assert agent.request("GET", f"{peer.url}/bytes/1").reused


def test_misdirected_request(open_agent):
    """
    A 421 (Misdirected Request) on a connection of its own comes to the caller like any other answer.
    """
    with node_server() as peer:
        agent = open_agent()
        response = agent.request("GET", f"{peer.url}/status/421")

        assert (response.status, response.text, response.attempts) == (421, "421", 1)
        assert agent.request("GET", f"{peer.url}/bytes/1").reused
        assert len(peer.seen()) == 2


def test_misdirected_request_of_another_origin(open_agent):
    """
    Where origins share connections, what Node answers with 421 is sent again on a connection of its own.
    """
    with node_server() as peer:
        agent = open_agent(host=UNSET, lookup=lambda host, family: ["127.0.0.1"], http2=Http2Options(coalesce=True))
        agent.request("GET", f"{peer.url}/own")
        for attempts in (2, 1):
            response = agent.request("GET", f"{peer.url.replace('localhost', 'other.test')}/own")

            assert (response.status, response.attempts) == (200, attempts)
            assert response.text.startswith("other.test:")
        assert [entry["session"] for entry in peer.seen()] == [1, 1, 2, 2]


# --- Tunnels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extended", [False, True])
def test_connect(open_agent, extended):
    """
    A stream that CONNECT has opened carries bytes both ways, beside the requests of its session; an extended one too.
    """
    with node_server(settings={"enableConnectProtocol": True}) as peer:
        agent = open_agent()
        if extended:
            response = agent.open_stream("CONNECT", f"{peer.url}/chat", headers={":protocol": "websocket"})
        else:
            response = agent.open_stream("CONNECT", peer.url)
        tunnel = response.upgrade()
        tunnel.send(payload(200_000))
        came = b""
        while len(came) < 200_000:
            came += tunnel.recv()
        beside = agent.request("GET", f"{peer.url}/bytes/100000")
        tunnel.send(b"and on")

        assert (response.status, came) == (200, payload(200_000))
        assert (tunnel.recv(), beside.content) == (b"and on", payload(100_000))
        assert beside.connection.id == response.connection.id
        tunnel.close()
        assert agent.request("GET", f"{peer.url}/bytes/1").connection.id == response.connection.id
        fields = peer.seen()[0]["headers"]
    assert (fields.get(":protocol"), fields.get(":path")) == (("websocket", "/chat") if extended else (None, None))


def test_extended_connect_is_not_offered(open_agent):
    """
    Where Node's settings do not allow extended CONNECT it is not sent.
    """
    with node_server() as peer:
        agent = open_agent()

        with pytest.raises(LocalProtocolError, match="RFC 8441"):
            agent.open_stream("CONNECT", f"{peer.url}/chat", headers={":protocol": "websocket"})
        assert agent.request("GET", f"{peer.url}/bytes/1").reused
        assert [entry["path"] for entry in peer.seen()] == ["/bytes/1"]


# --- ALPN -------------------------------------------------------------------------------------------------------------


def test_server_chooses_by_what_we_offer(open_agent):
    """
    A server of both versions speaks the one that is offered first, or alone.
    """
    with node_server(allowHTTP1=True) as peer:
        agent = open_agent()
        offers = [None, ["http/1.1"], ["h2"]]
        responses = [
            agent.request("GET", f"{peer.url}/bytes/100000", options={"alpn_protocols": offer} if offer else None)
            for offer in offers
        ]

        seen = [(entry["version"], entry["alpn"]) for entry in peer.seen()]
    assert all(response.content == payload(100_000) for response in responses)
    assert [response.http_version for response in responses] == ["HTTP/2", "HTTP/1.1", "HTTP/2"]
    assert seen == [("2.0", "h2"), ("1.1", "http/1.1"), ("2.0", "h2")]


def test_server_of_http2_alone(open_agent):
    """
    A server that speaks nothing else refuses who does not offer HTTP/2.
    """
    with node_server() as peer:
        agent = open_agent(alpn_protocols=["http/1.1"])

        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", f"{peer.url}/bytes/1")
    assert caught.value.alert == "no_application_protocol"
