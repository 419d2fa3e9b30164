"""
The simulated network, peer and clock do what they say: other tests rest on them.
"""

from __future__ import annotations

from math import inf

import pytest
from h2.exceptions import ProtocolError

from tlsagent import AgentOptions, Http2Options, Timeouts
from tlsagent.errors import (
    CertificateError,
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
    SendTimeout,
    StreamReset,
)
from tlsagent.events import Closed, Connected, ConnectFailed, Connecting, Freed, GoAway, Retried, Secured
from tlsagent.testing.authority import Authority
from tlsagent.testing.simulation import Network, Pipe, Reply, SimulatedServer, Simulation, echo, silent

URL = "https://a.test/"
INITIAL_WINDOW_SIZE = 4
CANCEL = 8


def finish(sim, *args, **kwargs):
    handle = sim.request(*args, **kwargs)
    sim.run_until_idle()
    return handle


# -- Requests


def test_request_and_response():
    """A request is answered by the echoing server over real TLS."""
    sim = Simulation()

    handle = sim.request("POST", URL + "path?q", content=b"body")
    assert not handle.done
    sim.run_until_idle()

    assert handle.done
    assert (handle.response.status, handle.error) == (200, None)
    assert handle.response.content == b"POST /path?q\nbody"
    assert "Response 200" in repr(handle)
    assert sim.peers[0].facts.version == "TLSv1.3"


def test_options_as_object_or_keywords():
    """An AgentOptions, keywords, or both; the server's root is trusted unless `ca` says otherwise."""
    options = AgentOptions(max_sockets=3, scheduling="fifo")

    sim = Simulation(options, max_sockets=1)

    assert (sim.core.options.max_sockets, sim.core.options.scheduling) == (1, "fifo")
    assert finish(sim, "GET", URL).response.status == 200
    stranger = Simulation(ca=Authority().ca_pem)
    assert isinstance(finish(stranger, "GET", URL).error, CertificateError)
    assert sim.network.open.total() == 1
    assert stranger.network.open.total() == 0


def test_same_story_each_time():
    """A simulation is deterministic: what was counted and how long it took is the same in a second one."""

    def story():
        sim = Simulation(max_sockets=2, network=Network(latency=0.1, piece=500))
        handles = [sim.request("POST", URL, content=b"x" * n * 10_000, timeouts=9) for n in range(5)]
        sim.advance(0.7)
        handles[1].cancel()
        sim.run_until_idle()
        return sim.now, [repr(handle) for handle in handles], sim.stats().requests, dict(sim.network.most_open)

    assert story() == story()


def test_streamed_response():
    """A streamed response is there with its head; its body is read as it comes."""
    sim = Simulation(server=SimulatedServer(silent))
    handle = finish(sim, "GET", URL, stream=True)
    assert not handle.done
    sim.peers[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
    sim.run_until_idle()
    assert handle.response.status == 200
    assert handle.response.read() == b""

    for piece in (b"abc", b"def"):
        sim.peers[0].send(piece)
        sim.run_until_idle()
        assert handle.response.read() == piece

    assert handle.response.ended
    assert handle.response.read() == b""


def test_streamed_response_that_breaks_off():
    """What came before the break can be read, then the error is raised."""
    sim = Simulation(server=SimulatedServer(lambda r, p: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"))
    handle = finish(sim, "GET", URL, stream=True)
    sim.peers[0].drop()
    sim.run_until_idle()

    assert handle.response.read() == b"half"
    with pytest.raises(ConnectionLost):
        handle.response.read()


def test_slow_consumer_holds_the_peer_back():
    """While nobody reads the body, bytes stay in the network; they come when it is read."""
    body = b"x" * 3_000_000
    sim = Simulation(server=SimulatedServer(lambda r, p: Reply(body=body)), network=Network(piece=100_000))
    handle = finish(sim, "GET", URL, stream=True)
    held = sim.links[0].down.size
    assert held > 2_000_000
    sim.advance(1_000)  # no deadline runs meanwhile

    found = b""
    while not handle.response.ended:
        found += handle.response.read()
        sim.run_until_idle()

    assert found + handle.response.read() == body


def test_asynchronous_body_is_refused():
    """Nothing awaits anything here."""

    async def body():
        yield b""

    with pytest.raises(LocalProtocolError, match="asynchronous"):
        Simulation().request("POST", URL, content=body())


def test_cancelled_handle():
    """A cancelled request is done, without response or error; an ended one stays what it was."""
    sim = Simulation()
    waiting, done = sim.request("GET", URL), finish(sim, "GET", URL + "2")
    again = sim.request("GET", URL)

    again.cancel()
    done.cancel()

    assert (again.done, again.cancelled, again.response, again.error) == (True, True, None, None)
    assert (done.cancelled, done.response.status, waiting.response.status) == (False, 200, 200)
    assert "cancelled" in repr(again)


# -- The network


def test_latency_takes_simulated_time():
    """Each way takes its time: a handshake of TLS 1.3 and a request take two round trips."""
    sim = Simulation(network=Network(lookup=0.3, connect=0.5, latency=0.25))

    handle = finish(sim, "GET", URL)

    assert handle.response.timings.lookup == pytest.approx(0.3)
    assert handle.response.timings.connect == pytest.approx(0.5)
    assert handle.response.timings.handshake == pytest.approx(0.5)
    assert handle.response.timings.wait == pytest.approx(0.5)
    assert sim.now == pytest.approx(1.8)


def test_advance_moves_the_clock_exactly():
    """Time passes whether or not anything happens, and no more than asked for."""
    sim = Simulation(network=Network(latency=0.4))
    handle = sim.request("GET", URL)

    sim.advance(1.0)
    assert (sim.now, handle.done) == (1.0, False)
    sim.advance(0.7)

    assert (sim.now, handle.done) == (1.7, True)


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_pieces(piece):
    """Bytes arrive in pieces of the size chosen, to the same effect."""
    assert finish(Simulation(network=Network(piece=piece)), "GET", URL).response.content == b"GET /\n"


def test_pipe_carries_in_order_and_joins():
    """What has arrived comes at once, in order, up to the size of a piece; the end comes alone."""
    network = Network(latency=1.0)
    pipe = Pipe(network)
    pipe.send(b"abc", 0.0)
    pipe.send(b"", 0.0)
    pipe.send(b"def", 0.5)
    pipe.end("eof", 0.5)
    pipe.end("reset", 0.5)
    pipe.send(b"late", 0.5)
    assert (pipe.size, pipe.next_arrival()) == (6, 1.0)

    assert pipe.take(0.9) is None
    network.piece = 2
    assert pipe.take(1.0) == b"ab"
    network.piece = None
    pipe.held = True
    assert (pipe.take(1.5), pipe.next_arrival()) == (None, inf)
    pipe.held = False
    assert [pipe.take(1.5), pipe.take(1.5), pipe.take(1.5)] == [b"cdef", "eof", None]
    assert pipe.size == 0


def test_pipe_reset_destroys_what_is_under_way():
    """A reset overtakes the bytes before it."""
    pipe = Pipe(Network())
    pipe.send(b"abc", 0.0)

    pipe.end("reset", 0.0)

    assert (pipe.take(0.0), pipe.size) == ("reset", 0)


@pytest.mark.parametrize("how", ["eof", "reset"])
def test_pipe_breaks_after_some_bytes(how):
    """Exactly so many bytes arrive, then the end."""
    pipe = Pipe(Network())
    pipe.breaks_after, pipe.breaks_how = 4, how
    pipe.send(b"abc", 0.0)
    pipe.send(b"def", 0.0)

    assert [pipe.take(0.0), pipe.take(0.0), pipe.take(0.0)] == [b"abcd", how, None]


def test_counts_of_the_network():
    """Sockets are counted from the attempt to the close, by address and in all."""
    sim = Simulation(max_total_sockets=3)
    handles = [sim.request("GET", f"https://{host}.test/") for host in "aabbcc"]
    sim.run_until_idle()

    assert all(handle.response.status == 200 for handle in handles)
    assert sim.network.most == 3
    assert max(sim.network.most_open.values()) <= 2
    assert sim.network.open.total() == len(sim.links) <= 3
    assert sim.network.opened.total() == len(sim.peers)


# -- The peer


def test_peer_saw_the_request():
    """What the other side saw is there to look at."""
    sim = Simulation()
    finish(sim, "POST", URL + "x", headers={"X-A": "1"}, content=[b"a", b"b"], trailers={"x-t": "2"})

    [request] = sim.peers[0].requests
    assert (request.method, request.target, request.body) == ("POST", "/x", b"ab")
    assert (request.header("x-a"), request.header("x-b")) == ("1", None)
    assert request.trailers == (("x-t", "2"),)
    assert request.complete
    assert request.answered
    assert sim.peers[0].outstanding is None


@pytest.mark.parametrize(
    ("reply", "content"),
    [
        (Reply(body=b"abc"), b"abc"),
        (Reply(body=b"abc", chunked=True), b"abc"),
        (Reply(status=204), b""),
        (Reply(status=304), b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    ],
)
def test_replies(reply, content):
    """A reply in any framing, or bytes as they are, and the connection serves again."""
    sim = Simulation(server=SimulatedServer(lambda request, peer: reply))

    for _ in range(2):
        assert finish(sim, "GET", URL).response.content == content

    assert len(sim.peers) == 1


def test_reply_to_head():
    """A reply to HEAD tells the length of the body and sends none."""
    sim = Simulation(server=SimulatedServer(lambda request, peer: Reply(body=b"abc")))

    for _ in range(2):
        response = finish(sim, "HEAD", URL).response
        assert (response.content, response.headers["content-length"]) == (b"", "3")

    assert len(sim.peers) == 1


def test_reply_that_closes():
    """close=True says so, and ends with close_notify."""
    sim = Simulation(server=SimulatedServer(lambda request, peer: Reply(close=True)))

    assert finish(sim, "GET", URL).response.headers["connection"] == "close"
    assert sim.links == []


def test_reply_by_hand():
    """A silent server answers when the test says so, and nobody if nothing is outstanding."""
    sim = Simulation(server=SimulatedServer(silent))
    handle = finish(sim, "GET", URL)
    [peer] = sim.peers
    assert peer.outstanding.target == "/"

    peer.respond(Reply(body=b"late"))
    peer.respond(Reply(body=b"twice"))
    sim.run_until_idle()

    assert handle.response.content == b"late"
    assert len(sim.links) == 1


def test_reply_by_hand_replaces_one_in_thought():
    """Who answered by hand does not answer again when the time for thought is over."""
    sim = Simulation(server=SimulatedServer(lambda r, p: Reply(body=b"thought", delay=5)))
    first = sim.request("GET", URL)
    sim.advance(1)
    sim.peers[0].respond(Reply(body=b"by hand"))
    sim.advance(1)
    sim.server.app = silent
    second = sim.request("GET", URL)

    sim.advance(10)

    assert first.response.content == b"by hand"
    assert not second.done


def test_thought_takes_simulated_time():
    """A delayed reply comes in its time."""
    sim = Simulation(server=SimulatedServer(lambda r, p: Reply(delay=2)))
    handle = sim.request("GET", URL)

    sim.advance(1.9)
    assert not handle.done
    sim.advance(0.2)

    assert handle.response.timings.wait == pytest.approx(2)


def test_early_answer():
    """An early server answers at the head of a request, and reads the rest."""
    sim = Simulation(server=SimulatedServer(early=True))

    handle = finish(sim, "POST", URL, content=iter([b"x" * 100]))

    assert handle.response.content.startswith(b"POST /\n")


@pytest.mark.parametrize("how", ["close", "drop", "reset"])
def test_ends_of_a_peer(how):
    """close_notify, a bare end and a reset are told apart by the client."""
    sim = Simulation(server=SimulatedServer(lambda r, p: b"HTTP/1.1 200 OK\r\n\r\nuntil the end"))
    handle = finish(sim, "GET", URL)
    getattr(sim.peers[0], how)()
    sim.peers[0].send(b"nothing more")
    sim.run_until_idle()

    if how == "close":
        assert handle.response.content == b"until the end"
    else:
        assert isinstance(handle.error, ConnectionLost)
        assert ("reset" in str(handle.error)) == (how == "reset")


def test_peer_notices_how_the_client_ends():
    """A connection closed in order says close_notify, a dropped one nothing."""
    sim = Simulation()
    finish(sim, "GET", URL)
    sim.close_idle()
    sim.run_until_idle()
    sim.server.app = silent
    handle = finish(sim, "GET", URL)
    handle.cancel()
    sim.run_until_idle()

    assert [peer.client_ended for peer in sim.peers] == ["close_notify", "eof"]


def test_peer_that_gets_nonsense():
    """What the client did wrong is kept: a certificate it refused, bytes that are no HTTP."""
    sim = Simulation(ca=Authority().ca_pem)
    finish(sim, "GET", URL)
    assert sim.peers[0].failure is not None
    sim = Simulation()
    finish(sim, "GET", URL)
    [link] = sim.links
    link.connection.write(b"\0\r\n\r\n", sim.now)
    link.flush(sim.now)
    sim.run_until_idle()

    assert sim.peers[0].failure is not None
    assert sim.links == []


def test_overlapping_requests_are_noticed():
    """A second request before the response to the first is what HTTP/1.1 clients here must not do."""
    sim = Simulation(server=SimulatedServer(silent))
    finish(sim, "GET", URL)
    [link] = sim.links
    assert not link.peer.overlapped

    link.connection.write(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", sim.now)
    link.flush(sim.now)
    sim.run_until_idle()

    assert link.peer.overlapped


def test_greeting():
    """A server can speak first; plain bytes outside TLS can be sent too."""
    greeted = []
    sim = Simulation(server=SimulatedServer(greet=greeted.append))
    handle = finish(sim, "GET", URL)
    assert greeted == sim.peers
    assert handle.response.status == 200

    sim.server.greet = lambda peer: peer.send_outside_tls(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    sim.server.app = silent
    sim.close_idle()

    assert isinstance(finish(sim, "GET", URL).error, RemoteProtocolError)


def test_settings_of_the_server():
    """TLS versions, tickets and stalls are those of the testing server."""
    sim = Simulation(server=SimulatedServer(max_version="TLSv1.2", names=("only.test",)))
    assert isinstance(finish(sim, "GET", URL).error, CertificateError)

    assert finish(sim, "GET", "https://only.test/").response.connection.protocol_version == "TLSv1.2"


# -- HTTP/2


def http2(app=echo, **settings):
    return SimulatedServer(app, alpn_protocols=("h2", "http/1.1"), **settings)


def test_requests_share_a_connection():
    """Where ALPN chooses HTTP/2 requests are streams of one connection, and the same application answers."""
    sim = Simulation(server=http2())

    handles = [sim.request("POST", URL + str(n), content=b"x" * n) for n in range(4)]
    sim.run_until_idle()

    assert [handle.response.content for handle in handles] == [b"POST /%d\n%b" % (n, b"x" * n) for n in range(4)]
    [peer] = sim.peers
    assert peer.facts.alpn == "h2"
    assert [request.stream_id for request in peer.requests] == [1, 3, 5, 7]
    assert all(request.complete and request.answered for request in peer.requests)
    assert (peer.http2.open, peer.overlapped) == ({}, False)


def test_stream_as_the_peer_saw_it():
    """Fields, body and trailers of a stream are there to look at, and its answer's are told."""
    reply = Reply(headers=[("X-B", "2")], body=b"abc", trailers=[("x-u", "3")], interim=[103, 100])
    sim = Simulation(server=http2(lambda request, peer: reply))
    handle = finish(sim, "POST", URL + "x", headers={"X-A": "1"}, content=[b"a", b"b"], trailers={"x-t": "2"})

    [request] = sim.peers[0].requests
    assert (request.method, request.target, request.body) == ("POST", "/x", b"ab")
    assert (request.header(":authority"), request.header("x-a")) == ("a.test", "1")
    assert request.trailers == (("x-t", "2"),)
    assert handle.response.headers.get("x-b") == "2"
    assert handle.response.trailers.get("x-u") == "3"
    assert [head.status for head in handle.response.informational] == [103, 100]


@pytest.mark.parametrize(
    ("method", "reply", "content"),
    [
        ("GET", Reply(body=b"abc"), b"abc"),
        ("GET", Reply(body=b"abc", chunked=True), b"abc"),
        ("GET", Reply(), b""),
        ("GET", Reply(status=204), b""),
        ("GET", Reply(trailers=[("x-a", "1")]), b""),
        ("HEAD", Reply(body=b"abc"), b""),
        ("GET", Reply(body=b"x" * 3_000_000), b"x" * 3_000_000),
    ],
)
def test_replies_on_a_stream(method, reply, content):
    """A reply of any form and size, and the connection serves again."""
    sim = Simulation(server=http2(lambda request, peer: reply))

    for _ in range(2):
        assert finish(sim, method, URL).response.content == content

    assert len(sim.peers) == 1


def test_replies_by_hand_and_in_thought():
    """Each stream has its own answer, in any order and at its own time."""
    sim = Simulation(
        server=http2(lambda r, p: Reply(body=b"thought", delay=float(r.target[1:])) if r.target[1:] else None)
    )
    handles = [sim.request("GET", URL + target) for target in ("", "3", "1", "2", "")]
    sim.advance(2.5)
    [peer] = sim.peers
    assert [handle.done for handle in handles] == [False, False, True, True, False]
    assert peer.next_deadline() == 3

    peer.respond(Reply(body=b"last"), request=peer.requests[4])
    peer.respond(Reply(body=b"twice"), request=peer.requests[4])
    peer.respond(Reply(body=b"first"))
    peer.respond(Reply(body=b"by hand"))
    sim.advance(5)

    expected = [b"first", b"by hand", b"thought", b"thought", b"last"]
    assert [handle.response.content for handle in handles] == expected
    assert peer.outstanding is None
    peer.respond(Reply())  # nobody to answer


def test_slow_consumer_holds_its_stream_back():
    """A body that nobody reads stops at the stream's window, and the others go on."""
    body = b"x" * 300_000
    options = Http2Options(stream_window=100_000)
    sim = Simulation(server=http2(lambda r, p: Reply(body=body)), http2=options)
    slow = finish(sim, "GET", URL, stream=True)
    sim.advance(1_000)

    assert finish(sim, "GET", URL).response.content == body
    found = slow.response.read()
    assert len(found) == 100_000
    while not slow.response.ended:
        sim.run_until_idle()
        found += slow.response.read()

    assert found == body
    assert (sim.stats().idle, len(sim.peers)) == (1, 1)


@pytest.mark.parametrize("window", [1, 100, 5_000])
def test_upload_waits_for_the_peer_s_windows(window):
    """A body is asked for and sent as the peer gives credit, whatever its form."""
    sim = Simulation(server=http2(initial_window_size=window))
    size = window * 7

    handles = [
        sim.request("POST", URL, content=content)
        for content in (b"x" * size, iter([b"x" * size]), iter([b"x"] * size), [b"x" * (size - 1), b"x"])
    ]
    sim.run_until_idle()

    assert [len(handle.response.content) for handle in handles] == [size + 7] * 4


def test_peer_that_gives_no_credit():
    """Without credit a body waits, until SETTINGS open its window or the time to send is over."""
    sim = Simulation(server=http2(initial_window_size=0), timeouts=Timeouts(send=5))
    sim.preconnect(URL)
    sim.run_until_idle()
    first = sim.request("POST", URL, content=iter([b"x"] * 10))
    sim.advance(5.1)
    second = sim.request("POST", URL, content=iter([b"x"] * 10))
    sim.advance(1)

    sim.peers[0].http2.settings({INITIAL_WINDOW_SIZE: 100})
    sim.run_until_idle()

    assert isinstance(first.error, SendTimeout)
    assert sim.peers[0].requests[0].reset == CANCEL
    assert second.response.content == b"POST /\n" + b"x" * 10


def test_limit_of_streams_is_heeded_from_the_first_moment():
    """Until the SETTINGS tell how many streams the peer takes one has to do: none is refused."""
    server = http2(lambda r, p: Reply(delay=1), max_concurrent_streams=2)
    sim = Simulation(server=server, network=Network(latency=0.1), max_sockets=1)

    handles = [sim.request("POST", URL) for _ in range(5)]
    sim.run_until_idle()

    assert [handle.response.status for handle in handles] == [200] * 5
    assert [handle.response.attempts for handle in handles] == [1] * 5
    assert len(sim.peers[0].requests) == 5


def test_reset_by_the_peer():
    """A test may reset a stream; the others go on."""
    sim = Simulation(server=http2(silent))
    handles = [sim.request("GET", URL) for _ in range(2)]
    sim.run_until_idle()
    [peer] = sim.peers

    peer.http2.reset(peer.requests[0], 2)
    peer.http2.reset(peer.requests[0], 3)
    peer.respond(Reply(), request=peer.requests[0])
    peer.respond(Reply(body=b"on"))
    sim.run_until_idle()

    assert isinstance(handles[0].error, StreamReset)
    assert handles[0].error.error_code == 2
    assert handles[1].response.content == b"on"


def test_reset_by_the_client():
    """A request that is given up is reset, and what thought about it is forgotten."""
    sim = Simulation(server=http2(lambda r, p: Reply(delay=2, body=b"x" * 100)))
    gone, stays = sim.request("GET", URL), sim.request("GET", URL)
    sim.advance(1)

    gone.cancel()
    sim.advance(5)

    [peer] = sim.peers
    assert (peer.requests[0].reset, peer.requests[0].answered, peer.next_deadline()) == (CANCEL, False, inf)
    assert stays.response.status == 200
    assert sim.links[0].peer is peer


def test_goaway_by_the_peer():
    """What is above the last stream goes elsewhere, the rest is answered, then the peer closes."""
    sim = Simulation(server=http2(silent))
    told = []
    sim.on(GoAway, told.append)
    handles = [sim.request("POST", URL) for _ in range(3)]
    sim.run_until_idle()
    [peer] = sim.peers

    peer.http2.goaway(2**31 - 1)
    sim.run_until_idle()
    peer.http2.goaway(3, 11)
    sim.run_until_idle()

    assert [request.refused for request in peer.requests] == [False, False, True]
    [_, other] = sim.peers
    assert [len(one.requests) for one in sim.peers] == [3, 1]
    for one in (peer, peer, other):
        one.respond(Reply(body=b"%d" % one.id))
        sim.run_until_idle()
    assert [handle.response.content for handle in handles] == [b"1", b"1", b"2"]
    assert (peer.ending, [link.peer for link in sim.links]) == ("eof", [other])
    assert [(event.last_stream_id, event.code) for event in told] == [(2**31 - 1, 0), (3, 11)]


def test_reply_that_takes_leave():
    """close=True sends GOAWAY behind the answer."""
    sim = Simulation(server=http2(lambda request, peer: Reply(close=True)))

    assert finish(sim, "GET", URL).response.status == 200
    assert sim.links == []
    assert sim.peers[0].ending == "eof"


def test_client_that_takes_leave():
    """A connection closed in order says GOAWAY, then close_notify."""
    sim = Simulation(server=http2())
    finish(sim, "GET", URL)

    sim.close_idle()
    sim.run_until_idle()

    assert (sim.peers[0].http2.client_left, sim.peers[0].client_ended) == (0, "close_notify")


def test_pings_both_ways():
    """PINGs of either side are answered, and counted."""
    sim = Simulation(server=http2(silent), http2=Http2Options(ping_interval=10), timeouts=Timeouts(response=None))
    handle = finish(sim, "GET", URL)
    [peer] = sim.peers

    peer.http2.ping()
    sim.run_until_idle()
    assert (peer.http2.pings, peer.http2.pongs) == (0, 1)
    sim.advance(25)

    assert (peer.http2.pings, handle.done) == (2, False)


def test_parts_of_a_response():
    """A test may send a response piece by piece, or leave it half done."""
    sim = Simulation(server=http2(silent))
    handle = finish(sim, "GET", URL, stream=True)
    [peer] = sim.peers
    [request] = peer.requests

    peer.http2.headers(request, [(":status", "200"), ("X-A", "1")])
    sim.run_until_idle()
    assert handle.response.headers.get("x-a") == "1"
    peer.http2.data(request, b"ha")
    peer.http2.data(request, b"lf")
    sim.run_until_idle()
    assert (handle.response.read(), handle.response.ended, request.answered) == (b"half", False, False)
    peer.http2.data(request, b"", end=True)
    peer.http2.data(request, b"late")
    sim.run_until_idle()

    assert (handle.response.read(), handle.response.ended, request.answered) == (b"", True, True)


def test_tunnel_on_a_stream():
    """After a 2xx to CONNECT bytes go both ways; who listens is told, and the connection outlives the tunnel."""
    sim = Simulation(server=http2(lambda request, peer: Reply()))
    handle = finish(sim, "CONNECT", "https://a.test:443", stream=True)
    [peer] = sim.peers
    [request] = peer.requests
    stream, heard = handle.exchange.switched, []
    stream.listener = lambda: heard.append(True)

    stream.write(b"up", sim.now)
    sim.links[0].flush(sim.now)
    peer.http2.data(request, b"down")
    sim.run_until_idle()

    assert (handle.response.status, request.target, request.body) == (200, "a.test:443", b"up")
    assert stream.take_over().take(100, stream) == b"down"
    assert heard
    peer.http2.data(request, b"", end=True)
    sim.run_until_idle()
    stream.hang_up("close")
    sim._advance(sim.links[0])
    sim.run_until_idle()
    assert (peer.http2.open, sim.stats().idle) == ({}, 1)


def test_bytes_as_they_are_on_a_shared_connection():
    """An application that answers bytes may break the protocol: that costs the client its connection."""
    sim = Simulation(server=http2(lambda request, peer: b"HTTP/1.1 200 OK\r\n\r\n"))

    handle = finish(sim, "GET", URL)

    assert isinstance(handle.error, RemoteProtocolError)
    assert sim.links == []
    assert sim.peers[0].http2.client_left != 0


def test_client_that_breaks_the_protocol_is_noticed():
    """What h2 has against the client is kept, and it gets GOAWAY."""
    sim = Simulation(server=http2())
    finish(sim, "GET", URL)
    [link] = sim.links

    link.connection.write(b"\0" * 9, sim.now)
    link.flush(sim.now)
    sim.run_until_idle()

    assert isinstance(link.peer.failure, ProtocolError)
    assert sim.links == []


def test_shared_connection_makes_no_more_than_the_network_takes():
    """While the network is full nothing more is encrypted; it follows as the peer reads."""
    server = http2(initial_window_size=1_000_000)
    sim = Simulation(server=server, network=Network(window=20_000, piece=3_000))
    sim.preconnect(URL)
    sim.run_until_idle()
    [link] = sim.links
    link.up.held = True
    handles = [sim.request("POST", URL, content=b"x" * 60_000) for _ in range(8)]

    assert link.up.size < 150_000
    link.up.held = False
    sim.run_until_idle()

    assert [len(handle.response.content) for handle in handles] == [60_007] * 8


def test_streamed_response_waits_for_its_upload():
    """As with the real drivers the caller gets a response once the body is sent, or is wanted no more."""
    sim = Simulation(server=http2(early=True), network=Network(window=10_000))
    sim.preconnect(URL)
    sim.run_until_idle()
    [link] = sim.links
    handle = sim.request("POST", URL, content=iter([b"x" * 9_000] * 5), stream=True)
    link.up.held = True
    sim.run_until_idle()
    assert not handle.done

    link.up.held = False
    sim.run_until_idle()

    assert handle.response.status == 200


# -- Time


def test_timeouts_strike_in_run_until_idle_too():
    """A deadline that falls into the time the network needs strikes."""
    sim = Simulation(network=Network(latency=1.0), timeouts=Timeouts(handshake=1.5))

    assert finish(sim, "GET", URL).error.phase == "handshake"


def test_circles_are_noticed(monkeypatch):
    """A simulation in which something is always due says so in place of hanging."""
    sim = Simulation()
    monkeypatch.setattr("tlsagent.testing.simulation._LIVELOCK", 10)
    monkeypatch.setattr(sim.core, "next_deadline", lambda: sim.now)

    with pytest.raises(AssertionError, match="circles"):
        sim.advance(1)


# -- The agent's life


def test_preconnect():
    """Idle connections can be opened ahead, as many as the limits allow."""
    sim = Simulation(max_sockets=2)

    assert sim.preconnect(URL, 5) == 2
    sim.run_until_idle()

    assert sim.stats().idle == 2
    sim.advance(1)
    assert finish(sim, "GET", URL).response.timings.connect is None


def test_events():
    """The events of an agent come in their order."""
    sim = Simulation(server=SimulatedServer(lambda r, p: Reply() if len(p.requests) < 2 else p.drop()))
    heard = []
    for kind in (Connecting, Connected, Secured, Freed, Retried, Closed, ConnectFailed):
        sim.on(kind, lambda event: heard.append(type(event).__name__))
    finish(sim, "GET", URL)
    assert heard == ["Connecting", "Connected", "Secured", "Freed"]
    heard.clear()

    finish(sim, "GET", URL)

    assert sorted(heard) == sorted(["Closed", "Retried", "Connecting", "Connected", "Secured", "Freed"])
    heard.clear()
    sim.network.refusing.add("b.test")
    finish(sim, "GET", "https://b.test/")
    assert heard == ["Connecting", "ConnectFailed"]
