"""HTTP/2 through both agents: how requests share a connection and wait for a place on it, and how both end."""

from __future__ import annotations

import gc
import queue
import threading
import time
import warnings
from typing import Any

import pytest
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from wire_peer import CANCEL, OK, PeerConnection, hold, serve, targets, wait_until

from tlsagent import (
    AgentClosed,
    ConnectionLost,
    Http2Options,
    LocalProtocolError,
    PoolTimeout,
    SendTimeout,
    StreamReset,
    Timeouts,
    events,
)
from tlsagent.testing import Server
from tlsagent.testing.frames import FramePeer

pytestmark = pytest.mark.http2

MAX_CONCURRENT_STREAMS = 3
INITIAL_WINDOW_SIZE = 4
REFUSED_STREAM = 7


def answer(peer: FramePeer) -> None:
    """Answer each request with "ok", and each PING; the requests that came are not kept."""
    while True:
        frame = peer.recv_frame()
        if isinstance(frame, HeadersFrame):
            peer.decoder.decode(frame.data)
            peer.respond(frame.stream_id, b"ok")
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            peer.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))


def well_behaved(peer: FramePeer) -> None:
    """Greet the client, and answer it."""
    peer.greet()
    answer(peer)


def pong(peer: FramePeer) -> None:
    """Answer the next PING."""
    ping = peer.recv(PingFrame)
    peer.send(PingFrame(0, ping.opaque_data, flags=["ACK"]))


def next_frame(peer: FramePeer) -> Frame:
    """Return the next frame that is about a request, or a PING."""
    while isinstance(frame := peer.recv_frame(), (SettingsFrame, WindowUpdateFrame)):
        pass
    return frame


def before_any_other(peer: FramePeer) -> bool:
    """Whether the client answers a PING and has sent nothing else until then; also, it has seen all before the PING."""
    peer.send(PingFrame(0, b"so far? "))
    frame = next_frame(peer)
    return isinstance(frame, PingFrame) and "ACK" in frame.flags


@pytest.fixture
def narrow_server(gates) -> Any:
    """Return a server that takes two requests at a time on a connection, and has gates."""
    with Server(app=gates, alpn_protocols=("h2", "http/1.1"), max_concurrent_streams=2) as server:
        yield server


# --- First contact ----------------------------------------------------------------------------------------------------


def test_cold_burst_makes_one_handshake(open_agent, server):
    """
    Sixty-four requests to an origin that was never seen share the one connection that is made for them.
    """
    agent = open_agent(ca=server.ca_pem)

    futures = [agent.submit("GET", f"{server.url}/delay/0.1?{n}") for n in range(64)]

    responses = [future.result(10) for future in futures]
    assert {response.status for response in responses} == {200}
    assert {response.connection.id for response in responses} == {1}
    assert sorted(response.request_number for response in responses) == list(range(1, 65))
    assert (server.stats.connections, server.stats.requests) == (1, 64)
    assert agent.stats().opened == 1


def test_burst_to_a_server_of_http1_runs_in_parallel_once_that_is_known(open_agent, open_peer):
    """
    One connection is made while it is not known what the server speaks; as soon as it is HTTP/1.1, all others are.
    """
    go_on = threading.Event()
    together = threading.Barrier(8)

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            assert go_on.wait(5)
        connection.handshake()
        connection.recv_head()
        together.wait(5)
        connection.send(OK)
        serve(connection)

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem, dial_delay=30)
    futures = [agent.submit("GET", peer.url) for _ in range(8)]
    assert wait_until(lambda: agent.stats().waiting == 8 and peer.connections)
    assert (len(peer.connections), agent.stats().dialling) == (1, 1)

    go_on.set()

    assert [future.result(5).content for future in futures] == [b"ok"] * 8
    assert len(peer.connections) == 8


def test_second_attempt_joins_a_slow_first_one(open_agent, open_frames):
    """
    An attempt that is not done within `dial_delay` gets company; whichever is ready first carries all requests.
    """
    go_on = threading.Event()

    def script(raw: Any) -> None:
        if raw.number == 1:
            assert go_on.wait(5)
            return
        raw.start_tls(server.tls_floor())
        well_behaved(FramePeer(raw))

    server = open_frames(lambda peer: script(peer.raw), tls=False)
    agent = open_agent(ca=server.ca_pem, dial_delay=0.1)

    begun = time.monotonic()
    futures = [agent.submit("GET", server.url) for _ in range(4)]

    assert [future.result(5).content for future in futures] == [b"ok"] * 4
    assert time.monotonic() - begun >= 0.1
    assert server.connections == 2
    go_on.set()


# --- A place on a connection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [1, 2])
def test_place_that_comes_free_on_either_of_two_connections(open_agent, open_frames, which):
    """
    Who waits for a place sees it come free on whichever connection, where nobody reads the responses on them.
    """
    go_on = threading.Event()

    def script(peer: FramePeer) -> None:
        peer.greet({MAX_CONCURRENT_STREAMS: 1})
        first = peer.recv_request().stream_id
        peer.send(peer.headers(first, (":status", "200")), DataFrame(first, b"some"))
        if peer.raw.number == which:
            assert go_on.wait(5)
            peer.send(DataFrame(first, flags=["END_STREAM"]))
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=2)
    with agent.stream("GET", server.url), agent.stream("GET", server.url):
        waiting = agent.submit("GET", server.url)
        assert wait_until(lambda: agent.stats().waiting == 1)
        go_on.set()

        assert waiting.result(5).content == b"ok"


def test_place_that_comes_free_during_an_attempt(open_agent, open_frames):
    """
    Whose attempt at another connection gets nowhere takes the place that comes free meanwhile, though nobody reads the
    response that it was taken by.
    """
    dialled, done = threading.Event(), threading.Event()

    def script(raw: Any) -> None:
        if raw.number > 1:
            dialled.set()
            assert done.wait(5)
            return
        raw.start_tls(server.tls_floor())
        peer = FramePeer(raw)
        peer.greet({MAX_CONCURRENT_STREAMS: 1})
        first = peer.recv_request().stream_id
        peer.send(peer.headers(first, (":status", "200")), DataFrame(first, b"some"))
        assert dialled.wait(5)
        peer.send(DataFrame(first, flags=["END_STREAM"]))
        answer(peer)

    server = open_frames(lambda peer: script(peer.raw), tls=False)
    agent = open_agent(ca=server.ca_pem, timeouts=Timeouts(handshake=4))
    with agent.stream("GET", server.url):
        assert agent.request("GET", server.url).reused

    done.set()


def test_limit_of_the_server_is_kept_to_and_the_rest_wait_in_order(open_agent, narrow_server, gates):
    """
    No more requests than MAX_CONCURRENT_STREAMS are under way; the others are served first come, first served.
    """
    agent = open_agent(ca=narrow_server.ca_pem, max_sockets=1)
    futures = [hold(agent, narrow_server, "/gate/a"), agent.submit("GET", narrow_server.url + "/gate/b")]
    assert narrow_server.wait_for(lambda s: s.stats.requests == 3)
    for number in range(4):
        futures.append(agent.submit("GET", f"{narrow_server.url}/hello?{number}"))
        assert wait_until(lambda: agent.stats().waiting == number + 1)  # noqa: B023 - asked within the loop

    gates.open("a")
    responses = [futures[0].result(5), *[future.result(5) for future in futures[2:]]]
    gates.open("b")

    assert [response.attempts for response in [*responses, futures[1].result(5)]] == [1] * 6
    assert targets(narrow_server) == [["/gate/a", "/gate/b", *(f"/hello?{number}" for number in range(4))]]


def test_full_connection_gets_company_within_max_sockets(open_agent, narrow_server, gates):
    """
    When a connection is full another is made, as far as `max_sockets` allows; then requests wait.
    """
    agent = open_agent(ca=narrow_server.ca_pem, max_sockets=2)
    futures = [hold(agent, narrow_server, "/gate/all"), agent.submit("GET", narrow_server.url + "/gate/all")]
    assert narrow_server.wait_for(lambda s: s.stats.requests == 3)
    futures += [agent.submit("GET", narrow_server.url + "/gate/all")]
    assert narrow_server.wait_for(lambda s: s.stats.requests == 4)
    futures += [agent.submit("GET", narrow_server.url + "/gate/all") for _ in range(2)]
    # In the pool's queue, or on the new connection if the pool has not heard of its limit yet.
    assert wait_until(lambda: agent.stats().waiting + agent.stats().requests == 6)

    gates.open("all")

    assert [future.result(5).status for future in futures] == [200] * 5
    assert min(len(on) for on in targets(narrow_server)) >= 2
    assert narrow_server.stats.connections == 2


def test_server_that_allows_no_request_for_now(open_agent, open_frames):
    """
    At MAX_CONCURRENT_STREAMS 0 requests wait, for `queue` seconds at most, and go on when it is raised.
    """
    raised = threading.Event()

    def script(peer: FramePeer) -> None:
        peer.greet()
        first = peer.recv_request()
        peer.send(SettingsFrame(0, settings={MAX_CONCURRENT_STREAMS: 0}))
        peer.respond(first.stream_id, b"first")
        assert raised.wait(5)
        peer.send(SettingsFrame(0, settings={MAX_CONCURRENT_STREAMS: 1}))
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=1, timeouts=Timeouts(queue=0.2))
    assert agent.request("GET", server.url).content == b"first"

    with pytest.raises(PoolTimeout) as caught:
        agent.request("GET", server.url)
    assert (caught.value.phase, caught.value.request_sent) == ("queue", False)

    waiting = agent.submit("GET", server.url, timeouts=Timeouts(queue=5))
    assert wait_until(lambda: agent.stats().waiting == 1)
    raised.set()
    assert waiting.result(5).content == b"ok"
    assert server.connections == 1


def test_limit_lowered_below_what_is_open(open_agent, open_frames):
    """
    When the limit falls below the open streams these go on, and no other is opened before there is room again.
    """
    lowered, checked = threading.Event(), threading.Event()

    def script(peer: FramePeer) -> None:
        peer.greet()
        open_ones = [peer.recv_request().stream_id for _ in range(3)]
        peer.send(SettingsFrame(0, settings={MAX_CONCURRENT_STREAMS: 1}))
        assert before_any_other(peer)
        lowered.set()
        assert checked.wait(5)
        for stream_id in open_ones:
            assert before_any_other(peer)
            peer.respond(stream_id, b"ok")
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=1)
    futures = [agent.submit("GET", server.url) for _ in range(3)]
    assert lowered.wait(5)
    futures.append(agent.submit("GET", server.url))
    # In the pool's queue, or on the connection if the pool has not heard of the limit yet.
    assert wait_until(lambda: agent.stats().waiting + agent.stats().requests == 4)
    checked.set()

    assert [future.result(5).content for future in futures] == [b"ok"] * 4


# --- Flow control -----------------------------------------------------------------------------------------------------


def test_reader_that_stalls_holds_up_its_own_stream_alone(open_agent, server):
    """
    A response that nobody reads fills its window; others of the connection go on, and it comes whole when it is read.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1, http2=Http2Options(stream_window=65_536))

    with agent.stream("GET", server.url + "/bytes/3000000") as stalled:
        others = [len(agent.request("GET", server.url + "/bytes/1000000", timeouts=5).content) for _ in range(3)]
        assert others == [1_000_000] * 3
        assert len(stalled.read()) == 3_000_000

    assert server.stats.connections == 1


@pytest.mark.framing
@pytest.mark.parametrize("end", ["read", "closed", "half read", "dropped"])
def test_credit_comes_back_whatever_becomes_of_a_response(open_agent, server, end):
    """
    Many times more than the window of the connection passes through it, responses that were given up counted.
    """
    windows = Http2Options(stream_window=65_535, connection_window=65_535)
    agent = open_agent(ca=server.ca_pem, max_sockets=1, http2=windows)

    for _ in range(8):
        response = agent.open_stream("GET", server.url + "/bytes/65535")
        if end == "read":
            assert len(response.read()) == 65_535
        elif end == "half read":
            next(response.iter_bytes())
        if end != "dropped":
            response.close()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                del response
                gc.collect()

    assert len(agent.request("GET", server.url + "/bytes/400000", timeouts=5).content) == 400_000
    assert server.stats.connections == 1


@pytest.mark.framing
def test_upload_keeps_to_the_windows(open_agent, open_frames):
    """
    No byte of a body goes out before the peer has made room for it, on the stream and on the connection.
    """
    sizes: queue.Queue[int] = queue.Queue()

    def script(peer: FramePeer) -> None:
        peer.greet({INITIAL_WINDOW_SIZE: 10})
        peer.respond(peer.recv_request().stream_id)
        request = peer.recv_request()
        body = peer.recv(DataFrame).data
        for room in (0, 7, 100):
            if room:
                peer.send(WindowUpdateFrame(request.stream_id, window_increment=room))
                body += peer.recv(DataFrame).data
            assert before_any_other(peer)
            sizes.put(len(body))
        peer.respond(request.stream_id, body)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)
    body = bytes(range(100))
    agent.request("GET", server.url)  # by its answer the agent knows the window

    response = agent.request("POST", server.url, content=body, timeouts=5)

    assert response.content == body
    assert [sizes.get(timeout=5) for _ in range(3)] == [10, 17, 100]


def test_echo_that_is_streamed_flows_both_ways(open_agent, server):
    """
    A response that begins before the request is sent is kept meanwhile: neither side waits for the other's windows.
    """
    agent = open_agent(ca=server.ca_pem, http2=Http2Options(stream_window=65_536))
    body = bytes(range(256)) * 8_192

    with agent.stream("POST", server.url + "/echo", content=iter([body, body]), timeouts=10) as response:
        assert response.read() == body * 2

    assert agent.request("GET", server.url + "/hello").reused


def test_window_that_stays_shut_costs_its_own_request(open_agent, open_frames):
    """
    An upload for which the peer makes no room fails after `send` seconds and is reset; others run on.
    """
    told: queue.Queue[Any] = queue.Queue()
    begun = threading.Event()

    def script(peer: FramePeer) -> None:
        peer.greet({INITIAL_WINDOW_SIZE: 0})
        peer.respond(peer.recv_request().stream_id, b"warm")
        upload = peer.recv_request()
        begun.set()
        peer.respond(peer.recv_request().stream_id, b"other")
        told.put((upload.stream_id, peer.recv(RstStreamFrame)))
        pong(peer)
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=1)
    agent.request("GET", server.url)
    upload = agent.submit("POST", server.url, content=b"x" * 10, timeouts=Timeouts(send=0.4))
    assert begun.wait(5)

    assert agent.request("GET", server.url, timeouts=5).content == b"other"
    with pytest.raises(SendTimeout) as caught:
        upload.result(5)

    stream_id, reset = told.get(timeout=5)
    assert (reset.stream_id, reset.error_code) == (stream_id, CANCEL)
    assert (caught.value.phase, caught.value.request_sent) == ("send", True)
    assert agent.request("GET", server.url, timeouts=5).content == b"ok"
    assert server.connections == 1


# --- Given up ---------------------------------------------------------------------------------------------------------


@pytest.mark.framing
def test_place_of_a_request_that_was_given_up_is_free_once_a_ping_is_answered(open_agent, open_frames):
    """
    A response that is closed early is reset, and counts until the answer to a PING proves that the peer has seen that.
    """
    frames: queue.Queue[Any] = queue.Queue()
    release = threading.Event()

    def script(peer: FramePeer) -> None:
        peer.greet({MAX_CONCURRENT_STREAMS: 1})
        peer.respond(peer.recv_request().stream_id, b"warm")
        request = peer.recv_request()
        peer.send(peer.headers(request.stream_id, (":status", "200")), DataFrame(request.stream_id, b"some"))
        reset = peer.recv(RstStreamFrame)
        ping = next_frame(peer)
        frames.put((request.stream_id, reset, ping))
        assert release.wait(5)
        peer.send(PingFrame(0, ping.opaque_data, flags=["ACK"]))
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=1)
    agent.request("GET", server.url)

    with agent.stream("GET", server.url) as response:
        assert next(response.iter_bytes()) == b"some"

    stream_id, reset, ping = frames.get(timeout=5)
    assert (reset.stream_id, reset.error_code) == (stream_id, CANCEL)
    assert isinstance(ping, PingFrame)
    waiting = agent.submit("GET", server.url)
    assert wait_until(lambda: agent.stats().waiting == 1)
    release.set()
    assert waiting.result(5).content == b"ok"
    assert server.connections == 1


def test_cancelled_request_resets_its_stream_and_no_other(open_async_agent, gated_server, gates):
    """
    A task that is cancelled leaves the requests beside it alone.
    """
    with Server(app=gates, alpn_protocols=("h2",)) as server:
        agent = open_async_agent(ca=server.ca_pem)
        kept, given_up = (agent.submit("GET", f"{server.url}/gate/{name}") for name in "ab")
        assert server.wait_for(lambda s: s.stats.requests == 2)

        given_up.cancel()

        assert server.wait_for(lambda s: [r.reset_code for r in s.connections[0].requests] == [None, CANCEL])
        gates.open("a")
        assert kept.result(5).content == b"open"
        assert server.stats.connections == 1


def test_response_dropped_unread_costs_its_stream_alone(open_agent, gates):
    """
    A response that is forgotten gives a ResourceWarning; what runs beside it is not disturbed.
    """
    with Server(app=gates, alpn_protocols=("h2",)) as server:
        agent = open_agent(ca=server.ca_pem)
        kept = agent.submit("GET", server.url + "/gate/a")
        assert server.wait_for(lambda s: s.stats.requests == 1)
        held = [agent.open_stream("GET", server.url + "/bytes/100000000")]

        with pytest.warns(ResourceWarning, match="dropped unread"):
            held.clear()
        assert (
            agent.request("GET", server.url + "/hello", timeouts=5).status == 200
        )  # a thread looks then at the latest

        assert server.wait_for(lambda s: [r.reset_code for r in s.connections[0].requests] == [None, CANCEL, None])
        gates.open("a")
        assert kept.result(5).content == b"open"
        assert server.stats.connections == 1


# --- PING -------------------------------------------------------------------------------------------------------------


def test_silent_peer_is_asked_and_lost_if_it_does_not_answer(open_agent, open_frames):
    """
    After `ping_interval` of silence a PING is sent; without an answer within `ping_timeout` every request fails.
    """
    pings: queue.Queue[Any] = queue.Queue()

    def script(peer: FramePeer) -> None:
        if peer.raw.number > 1:
            well_behaved(peer)
        peer.greet()
        for _ in range(2):
            peer.recv_request()
        pings.put(next_frame(peer))
        peer.raw.wait_closed()

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, http2=Http2Options(ping_interval=0.15, ping_timeout=0.15))
    futures = [agent.submit("POST", server.url) for _ in range(2)]

    errors = [future.exception(5) for future in futures]

    assert isinstance(pings.get(timeout=5), PingFrame)
    assert errors[0] is not errors[1]
    for error in errors:
        assert isinstance(error, ConnectionLost)
        assert (error.code, error.phase, error.request_sent) == ("ERR_TLSAGENT_PING_TIMEOUT", "wait", True)
        assert error.elapsed >= 0.25
    assert agent.request("GET", server.url, timeouts=5).content == b"ok"
    assert agent.stats().opened == 2


def test_peer_that_answers_pings_is_waited_for(open_agent, open_frames):
    """
    As long as PINGs are answered a response may take as long as its timeouts allow.
    """

    def script(peer: FramePeer) -> None:
        peer.greet()
        request = peer.recv_request()
        for _ in range(3):
            pong(peer)
        peer.respond(request.stream_id, b"late")
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, http2=Http2Options(ping_interval=0.1, ping_timeout=0.1))

    assert agent.request("GET", server.url, timeouts=5).content == b"late"


@pytest.mark.parametrize("alive", [True, False])
def test_connection_that_was_idle_for_long_is_asked_before_it_is_used(open_agent, open_frames, alive):
    """
    Idle longer than `ping_interval`, a connection is PINGed, and carries the request only once something has come.
    Nothing of the request was sent before, so that it may go elsewhere, whatever its method.
    """

    def script(peer: FramePeer) -> None:
        if peer.raw.number > 1:
            well_behaved(peer)
        peer.greet()
        peer.respond(peer.recv_request().stream_id, b"first")
        ping = peer.recv(PingFrame)
        if alive:
            peer.send(PingFrame(0, ping.opaque_data, flags=["ACK"]))
            answer(peer)
        with pytest.raises(Exception, match="left"):
            peer.recv(HeadersFrame)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=1, http2=Http2Options(ping_interval=0.1, ping_timeout=0.2))
    assert agent.request("GET", server.url).content == b"first"
    time.sleep(0.15)

    response = agent.request("POST", server.url, content=b"x", timeouts=5)

    assert response.content == b"ok"
    assert response.reused == alive
    assert server.connections == (1 if alive else 2)


# --- Connections that are not to be used any more ---------------------------------------------------------------------


@pytest.mark.parametrize("why", ["max_lifetime", "max_requests", "network_changed", "goaway"])
def test_connection_that_is_not_to_be_used_any_more_drains(open_agent, gates, why):
    """
    What runs on it is finished, the next request has a new connection, and the old one ends by GOAWAY and close_notify.
    """
    options = {"max_lifetime": {"max_lifetime": 0.2}, "max_requests": {"max_requests_per_socket": 2}}.get(why, {})
    with Server(app=gates, alpn_protocols=("h2",)) as server:
        agent = open_agent(ca=server.ca_pem, **options)
        agent.request("GET", server.url + "/hello?warm")
        running = agent.submit("GET", server.url + "/gate/a")
        assert server.wait_for(lambda s: s.stats.requests == 2)
        if why == "network_changed":
            agent.call(agent.agent.network_changed) if agent.driver != "threads" else agent.agent.network_changed()
        elif why == "goaway":
            heard = threading.Event()
            agent.agent.on(events.GoAway, lambda _: heard.set())
            server.go_away()
            assert heard.wait(5)
        elif why == "max_lifetime":
            time.sleep(0.25)

        other = agent.request("GET", server.url + "/hello", timeouts=5)

        assert (other.request_number, other.attempts) == (1, 1)
        assert not running.done()
        gates.open("a")
        assert running.result(5).content == b"open"
        assert server.wait_for(lambda s: s.connections[0].closed_by is not None)
        assert server.connections[0].goaway_code == (None if why == "goaway" else 0)  # who goes first
        assert [len(connection.requests) for connection in server.connections] == [2, 1]
        assert wait_until(lambda: agent.stats().closed == {why: 1})


# --- The peer takes its leave -----------------------------------------------------------------------------------------


@pytest.mark.framing
@pytest.mark.parametrize("code", [0, 2])
def test_goaway_tells_which_requests_may_be_sent_again(open_agent, open_frames, code):
    """
    A request above the last stream of a GOAWAY goes to another connection, whatever its method; one up to there is
    finished where it is, or fails with the connection.
    """
    heard: list[Any] = []

    def script(peer: FramePeer) -> None:
        if peer.raw.number > 1:
            well_behaved(peer)
        peer.greet()
        first = peer.recv_request()
        begun.set()
        peer.recv_request()
        peer.send(GoAwayFrame(0, last_stream_id=first.stream_id, error_code=code))
        if not code:
            assert moved.wait(5)
            peer.respond(first.stream_id, b"kept")
            assert peer.raw.wait_closed() == "close_notify"

    begun, moved = threading.Event(), threading.Event()
    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)
    agent.agent.on(events.GoAway, heard.append)
    first = agent.submit("POST", server.url + "/1", content=b"1")
    assert begun.wait(5)
    second = agent.submit("POST", server.url + "/2", content=b"2")

    response = second.result(5)
    assert (response.content, response.attempts, response.request_number) == (b"ok", 2, 1)
    moved.set()
    if code:
        error = first.exception(5)
        assert isinstance(error, ConnectionLost)
        assert (error.code, error.request_sent) == ("ERR_HTTP2_SESSION_ERROR", True)
        assert "INTERNAL_ERROR" in str(error)
    else:
        assert first.result(5).content == b"kept"
    assert [(event.last_stream_id, event.code) for event in heard] == [(1, code)]
    assert heard[0].connection.id == 1


def test_goaway_of_every_connection_is_not_run_after_for_ever(open_agent, open_frames):
    """
    A server that greets each request with GOAWAY gets it twice; then the request fails and says why.
    """

    def script(peer: FramePeer) -> None:
        peer.greet()
        peer.recv_request()
        peer.send(GoAwayFrame(0, last_stream_id=0, error_code=11))
        peer.raw.wait_closed()

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(ConnectionLost, match="ENHANCE_YOUR_CALM") as caught:
        agent.request("GET", server.url, timeouts=5)

    assert caught.value.code == "ERR_HTTP2_GOAWAY_SESSION"
    assert server.connections == 2
    assert wait_until(lambda: agent.stats().closed == {"goaway": 2})


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refused_stream_is_sent_again_once(open_agent, open_frames, method):
    """
    REFUSED_STREAM lets a request of any method be repeated, once, on the same connection.
    """
    streams: list[int] = []

    def script(peer: FramePeer) -> None:
        peer.greet()
        for refused in (True, False, True, True):
            streams.append(peer.recv_request().stream_id)
            if refused:
                peer.send(RstStreamFrame(streams[-1], error_code=REFUSED_STREAM))
            else:
                peer.respond(streams[-1], b"ok")
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)

    response = agent.request(method, server.url, content=b"x", timeouts=5)
    with pytest.raises(StreamReset) as caught:
        agent.request(method, server.url, content=b"x", timeouts=5)

    assert (response.content, response.attempts) == (b"ok", 2)
    assert caught.value.error_code == REFUSED_STREAM
    assert agent.request("GET", server.url, timeouts=5).content == b"ok"
    assert len(set(streams)) == 4
    assert server.connections == 1


def test_request_that_cannot_begin_gives_its_place_back(open_agent, open_frames):
    """
    What fails before anything of it is sent costs neither the connection nor a place on it.
    """

    def script(peer: FramePeer) -> None:
        peer.greet({MAX_CONCURRENT_STREAMS: 1})
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=1)
    first = agent.request("GET", server.url)

    with pytest.raises(LocalProtocolError, match="extended CONNECT"):
        agent.request("CONNECT", server.url, headers={":protocol": "websocket"})

    assert (agent.stats().active, agent.stats().idle) == (0, 1)
    assert agent.request("GET", server.url, timeouts=5).connection.id == first.connection.id


@pytest.mark.parametrize("path", ["/reset/2", "/reset/8", "/reset/4660", "/cut/2"])
def test_reset_of_the_server_costs_one_request(open_agent, server, path):
    """
    RST_STREAM with any other code fails its request, with the code, and the connection serves on.
    """
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(StreamReset) as caught:
        agent.request("GET", server.url + path, timeouts=5)

    error = caught.value
    assert error.error_code == int(path.rpartition("/")[2])
    assert (error.phase, error.request_sent, error.reused) == ("receive" if "cut" in path else "wait", True, False)
    assert agent.request("GET", server.url + "/hello").reused
    assert server.stats.requests == 2


@pytest.mark.framing
def test_answer_before_the_upload_is_through_and_no_error(open_agent, server):
    """
    A whole response with RST_STREAM (NO_ERROR) behind it is a response; the rest of the body is not sent.
    """
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("POST", server.url + "/early", content=iter([bytes(65_536)] * 200), timeouts=5)

    assert response.content == b"Hello, world"
    assert agent.request("GET", server.url + "/hello").reused
    assert server.connections[0].requests[0].body_length < 200 * 65_536


@pytest.mark.parametrize("end", ["close", "close_without_notify", "close_abruptly"])
def test_connection_that_dies_fails_each_request_by_itself(open_agent, open_frames, end):
    """
    Each request that was under way has an error of its own, with its own facts; the pool has one connection less.
    """

    def script(peer: FramePeer) -> None:
        if peer.raw.number > 1:
            well_behaved(peer)
        peer.greet()
        peer.respond(peer.recv_request().stream_id, b"warm")
        streams = [peer.recv_request().stream_id for _ in range(3)]
        peer.send(peer.headers(streams[0], (":status", "200")), DataFrame(streams[0], b"half"))
        assert answered.wait(5)
        getattr(peer.raw, end)()

    answered = threading.Event()
    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=1)
    agent.request("GET", server.url)
    streams = [agent.submit("POST", f"{server.url}/{n}", content=b"x") for n in range(3)]
    assert wait_until(lambda: agent.stats().active == 1 and agent.stats().requests == 4)
    answered.set()

    errors: list[Any] = [future.exception(5) for future in streams]

    assert len({id(error) for error in errors}) == 3
    for error in errors:
        assert isinstance(error, ConnectionLost)
        assert (error.reused, error.request_sent) == (True, True)
    assert {error.phase for error in errors} <= {"wait", "receive"}
    assert agent.request("GET", server.url, timeouts=5).request_number == 1
    assert (agent.stats().opened, agent.stats().active, agent.stats().idle) == (2, 0, 1)


@pytest.mark.parametrize("leave", ["goaway", "close", "close_without_notify", "close_abruptly"])
def test_connection_that_went_while_it_was_idle_costs_no_request(open_agent, open_frames, leave):
    """
    A connection that its server has ended between two requests is not used: the next one has another, and no retry.
    """
    gone = threading.Event()

    def script(peer: FramePeer) -> None:
        if peer.raw.number > 1:
            well_behaved(peer)
        peer.greet()
        peer.respond(peer.recv_request().stream_id, b"first")
        assert leaving.wait(5)
        if leave == "goaway":
            peer.send(GoAwayFrame(0, last_stream_id=1))
        else:
            getattr(peer.raw, leave)()
        gone.set()
        if leave == "goaway":
            assert peer.raw.wait_closed() == "close_notify"

    leaving = threading.Event()
    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=1)
    assert agent.request("GET", server.url).content == b"first"
    leaving.set()
    assert gone.wait(5)
    if agent.driver != "threads":  # an event loop hears of it by itself, a thread when it looks
        assert wait_until(lambda: agent.stats().idle == 0)

    response = agent.request("POST", server.url, content=b"x", timeouts=5)

    assert (response.content, response.attempts, response.reused) == (b"ok", 1, False)
    assert server.connections == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_connection_that_closes_as_the_request_arrives(open_agent, open_frames, method):
    """
    On a connection that served before, an idempotent request is sent once more elsewhere; any other fails and says so.
    """

    def script(peer: FramePeer) -> None:
        if peer.raw.number > 1:
            well_behaved(peer)
        peer.greet()
        peer.respond(peer.recv_request().stream_id, b"first")
        peer.recv_request()

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem, max_sockets=1)
    assert agent.request("GET", server.url).content == b"first"

    if method == "GET":
        response = agent.request("GET", server.url, timeouts=5)
        assert (response.content, response.attempts) == (b"ok", 2)
    else:
        with pytest.raises(ConnectionLost) as caught:
            agent.request("POST", server.url, content=b"x", timeouts=5)
        assert (caught.value.reused, caught.value.request_sent) == (True, True)
        assert agent.request("POST", server.url, content=b"x", timeouts=5).content == b"ok"


@pytest.mark.parametrize("status", [200, 413])
def test_final_response_while_the_upload_runs(open_agent, open_frames, status):
    """
    A whole response ends the upload, whatever it says: it is delivered, the stream reset with NO_ERROR, and the
    connection serves on.
    """
    got: queue.Queue[Any] = queue.Queue()

    def script(peer: FramePeer) -> None:
        peer.greet()
        request = peer.recv_request()
        peer.recv(DataFrame)
        peer.respond(request.stream_id, b"enough", status=status)
        got.put(peer.recv(RstStreamFrame).error_code)
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("POST", server.url, content=iter([bytes(30_000)] * 100), timeouts=5)

    assert (response.status, response.content) == (status, b"enough")
    assert got.get(timeout=5) == 0
    assert agent.request("GET", server.url, timeouts=5).reused
    assert server.connections == 1


# --- Messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.framing
def test_fields_of_a_request_as_the_server_gets_them(open_agent, open_frames):
    """
    Pseudo-header fields come first; names are in lower case; what speaks of the connection is left out; cookies are
    split.
    """
    came: list[Any] = []

    def script(peer: FramePeer) -> None:
        peer.greet()
        came.append(peer.recv_request())
        peer.respond(came[0].stream_id)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)
    headers = [
        ("X-Mixed", "Kept"), ("Connection", "close, x-hop"), ("X-Hop", "1"), ("TE", "gzip, trailers"),
        ("Keep-Alive", "5"), ("Cookie", "a=1; b=2"), ("x-mixed", "twice"),
    ]  # fmt: skip

    agent.request("POST", server.url + "/echo?q", headers=headers, content=b"12345")

    assert came[0].headers == (
        (":method", "POST"), (":scheme", "https"), (":authority", f"localhost:{server.port}"), (":path", "/echo?q"),
        ("x-mixed", "Kept"), ("te", "trailers"), ("cookie", "a=1"), ("cookie", "b=2"), ("x-mixed", "twice"),
        ("content-length", "5"),
    )  # fmt: skip
    assert not came[0].ended


@pytest.mark.framing
def test_fields_that_are_too_large_to_send(open_agent, open_frames):
    """
    A request whose head no engine sends fails at once, and alone.
    """
    server = open_frames(well_behaved)
    agent = open_agent(ca=server.ca_pem)
    agent.request("GET", server.url)

    with pytest.raises(LocalProtocolError, match="send them as content") as caught:
        agent.request("GET", server.url, headers={"x-large": "v" * 2**24}, timeouts=5)

    assert (caught.value.code, caught.value.request_sent) == ("ERR_TLSAGENT_FIELDS_TOO_LARGE", False)
    assert agent.request("GET", server.url, timeouts=5).reused
    assert server.connections == 1


@pytest.mark.framing
def test_informational_responses_and_trailers(open_agent, open_frames):
    """
    1xx heads are kept beside the response, trailers apart from its headers, and there is no reason phrase.
    """

    def script(peer: FramePeer) -> None:
        peer.greet()
        stream_id = peer.recv_request().stream_id
        peer.send(peer.headers(stream_id, (":status", "103"), ("link", "</a>")))
        peer.send(peer.headers(stream_id, (":status", "200"), ("x-a", "1"), ("x-a", "2")))
        peer.send(DataFrame(stream_id, b"body"), peer.headers(stream_id, ("x-sum", "42"), end_stream=True))
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("GET", server.url)

    assert [(head.status, head.headers["link"]) for head in response.informational] == [(103, "</a>")]
    assert (response.status, response.reason, response.http_version) == (200, "", "HTTP/2")
    assert response.headers.get_all("x-a") == ["1", "2"]
    assert (response.content, response.trailers["x-sum"]) == (b"body", "42")
    assert "x-sum" not in response.headers
    assert agent.request("GET", server.url).reused


@pytest.mark.framing
@pytest.mark.parametrize("status", ["100", "417"])
def test_body_waits_for_100_continue(open_agent, open_frames, status):
    """
    With `expect_continue` the body follows a 100; after a final response in its place the stream is given up without.
    """
    came: queue.Queue[Any] = queue.Queue()

    def script(peer: FramePeer) -> None:
        peer.greet()
        request = peer.recv_request()
        came.put(request.header("expect"))
        came.put(before_any_other(peer))
        if status == "100":
            peer.send(peer.headers(request.stream_id, (":status", "100")))
            came.put(peer.recv(DataFrame).data)
            peer.respond(request.stream_id)
        else:
            peer.respond(request.stream_id, status=417)
            came.put(next_frame(peer))
        answer(peer)

    server = open_frames(script)
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("POST", server.url, content=b"body", expect_continue=True, timeouts=5)

    assert [came.get(timeout=5), came.get(timeout=5)] == ["100-continue", True]
    if status == "100":
        assert came.get(timeout=5) == b"body"
        assert response.status == 200
    else:
        reset = came.get(timeout=5)
        assert (type(reset), reset.error_code) == (RstStreamFrame, 0)
        assert response.status == 417
    assert server.connections == 1


# --- The end of the agent ---------------------------------------------------------------------------------------------


def test_close_lets_streams_finish_and_destroy_does_not(open_agent, gates):
    """
    `close` waits for the streams of a connection, for `drain` seconds; `destroy` fails each with `AgentClosed`.
    """
    with Server(app=gates, alpn_protocols=("h2",)) as server:
        first, second = open_agent(ca=server.ca_pem), open_agent(ca=server.ca_pem)
        futures = [first.submit("GET", server.url + "/gate/a") for _ in range(3)]
        futures += [second.submit("GET", server.url + "/gate/b") for _ in range(3)]
        assert server.wait_for(lambda s: s.stats.requests == 6)

        closing = threading.Thread(target=first.close)
        closing.start()
        second.destroy()
        gates.open("a")

        closing.join(5)
        assert [future.result(5).content for future in futures[:3]] == [b"open"] * 3
        errors = [future.exception(5) for future in futures[3:]]
        assert [type(error) for error in errors] == [AgentClosed] * 3
        assert len({id(error) for error in errors}) == 3
        assert server.wait_for(lambda s: s.stats.open_connections == 0)


def test_events_of_a_shared_connection(open_agent, server):
    """
    A request that finds the connection hears Reused; each that ends well hears Freed; the end of it all is Closed.
    """
    agent = open_agent(ca=server.ca_pem)
    heard: list[Any] = []
    agent.agent.on(events.Event, heard.append)

    agent.request("GET", server.url + "/hello")
    futures = [agent.submit("GET", server.url + "/delay/0.05") for _ in range(3)]
    for future in futures:
        future.result(5)
    agent.close_idle()

    names = [type(event).__name__ for event in heard if not isinstance(event, events.SessionTicket)]
    assert names[:4] == ["Connecting", "Connected", "Secured", "Freed"]
    assert sorted(names[4:]) == ["Closed"] + ["Freed"] * 3 + ["Reused"] * 3
    assert names[-1] == "Closed"
    assert {event.connection.id for event in heard if hasattr(event, "connection")} == {1}


@pytest.mark.http2
def test_low_limit_is_heeded_by_a_cold_burst(open_agent, new_server):
    """
    Sixty requests at once to an unknown origin that takes ten at a time: each is answered at its first attempt.
    """
    with new_server(max_concurrent_streams=10) as server:
        agent = open_agent(ca=server.ca_pem, max_sockets=2)

        futures = [agent.submit("GET", server.url + "/delay/0.02") for _ in range(60)]

        assert {(future.result(20).status, future.result().attempts) for future in futures} == {(200, 1)}
        assert server.stats.requests == 60
        assert agent.stats().opened <= 2
