"""
What the agent's core makes of faults where requests share a connection, over a simulated network and clock.
"""

from __future__ import annotations

import pytest
from h2.exceptions import ProtocolError

from tlsagent import Http2Options, Timeouts
from tlsagent.errors import (
    AgentClosed,
    ConnectError,
    ConnectionLost,
    InactivityTimeout,
    LocalProtocolError,
    PoolTimeout,
    ReadTimeout,
    RemoteProtocolError,
    ResponseTimeout,
    SendTimeout,
    StreamReset,
    TotalTimeout,
)
from tlsagent.events import Closed, Freed, GoAway, Reused
from tlsagent.testing.simulation import Network, Reply, SimulatedServer, Simulation, echo, silent

URL = "https://a.test/"
MAX_CONCURRENT_STREAMS = 3
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 2, 7, 8, 11
ENGINES = ("h2", "ngh2")


def http2(app=echo, **settings):
    return SimulatedServer(app, alpn_protocols=("h2", "http/1.1"), **settings)


def warm(sim, *, served=False):
    """Leave one idle connection behind; returns its link."""
    sim.preconnect(URL)
    sim.run_until_idle()
    if served:
        assert finish(sim, sim.request("GET", URL)).response.status == 200
    [link] = sim.links
    assert link.peer.http2 is not None
    return link


def finish(sim, handle):
    sim.run_until_idle()
    assert handle.done
    return handle


def several(sim):
    """Begin requests of all kinds; each says who it is."""
    kinds = [("GET", None), ("POST", b"bytes"), ("POST", iter([b"a", b"b"])), ("PUT", b"x" * 3_000), ("GET", None)]
    return [
        sim.request(method, f"{URL}{number}", content=content, headers={"x-id": str(number)})
        for number, (method, content) in enumerate(kinds)
    ]


def who(request, peer):
    """Say whom the answer is for."""
    return Reply(body=f"{request.method} {request.target}\n".encode())


def nothing_is_left(sim):
    """No ticket, no lease, no stream, no socket but those of the pool."""
    counts = sim.core.pool.counts()
    assert (counts.active, counts.waiting, counts.dialling) == (0, 0, 0)
    assert counts.idle == len(sim.links) == sim.network.open.total()
    assert not any(link.connection.shared.busy for link in sim.links)
    assert [link.peer.http2.open for link in sim.links] == [{}] * len(sim.links)


def each_has_one_outcome(sim, handles):
    """A response is its request's; what may have been processed was sent once; an error tells the facts."""
    sent = {}
    for peer in sim.peers:
        assert not isinstance(peer.failure, ProtocolError)
        for request in peer.requests:
            if not request.refused:
                sent.setdefault(request.header("x-id"), []).append(request)
    for number, handle in enumerate(handles):
        exchange = handle.exchange
        assert handle.done
        assert (handle.response is None) != (handle.error is None)
        assert (exchange.ticket, exchange.lease, exchange.stream) == (None, None, None)
        assert exchange.attempts <= 2
        if handle.response is not None:
            assert handle.response.content.startswith(f"{exchange.head.method.decode()} /{number}\n".encode())
        else:
            assert isinstance(handle.error, ConnectionLost | StreamReset | RemoteProtocolError)
            assert (handle.error.key, handle.error.phase is None) == (exchange.plan.key.digest, False)
        if exchange.head.method == b"POST":
            assert len(sent.get(str(number), ())) <= 1
    nothing_is_left(sim)


# -- The end of a connection, wherever it comes


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["eof", "reset"])
@pytest.mark.parametrize("served", [False, True])
def test_peer_dies_at_each_byte_of_its_responses(engine, how, served):
    """Wherever the connection breaks off, each of its requests ends in one way, or is repeated where that is safe."""
    sim = Simulation(server=http2(who), http2_engine=engine)
    size = 0
    while True:
        sim.close_idle()
        link = warm(sim, served=served)
        link.down.breaks_after, link.down.breaks_how = size, how

        handles = several(sim)
        sim.run_until_idle()

        for handle in handles:
            if handle.error is not None:
                assert type(handle.error) is ConnectionLost
                assert handle.error.request_sent
        each_has_one_outcome(sim, handles)
        if not link.closed:
            break  # nothing broke: beyond the last byte
        size += 1 if (how, engine) == ("eof", "ngh2") else 5
        sim.peers.clear()
    assert size > 200


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["eof", "reset"])
def test_peer_dies_at_each_byte_of_the_requests(engine, how):
    """The same where it is the client's bytes that break off; what was answered before counts."""
    sim = Simulation(server=http2(), http2_engine=engine)
    size = 0
    while True:
        sim.close_idle()
        link = warm(sim, served=True)
        link.up.breaks_after, link.up.breaks_how = size, how

        handles = several(sim)
        sim.run_until_idle()

        each_has_one_outcome(sim, handles)
        if not link.closed:
            break
        size += 11
        sim.peers.clear()
    assert size > 3_000


FAULTS = {
    "goaway": lambda peer: peer.http2.goaway(),
    "goaway for all": lambda peer: peer.http2.goaway(0),
    "goaway with an error": lambda peer: peer.http2.goaway(code=ENHANCE_YOUR_CALM),
    "goaway announced": lambda peer: peer.http2.goaway(2**31 - 1),
    "refused": lambda peer: [peer.http2.reset(request, REFUSED_STREAM) for request in list(peer.http2.open.values())],
    "reset": lambda peer: [peer.http2.reset(request, INTERNAL_ERROR) for request in list(peer.http2.open.values())],
    "fewer streams": lambda peer: peer.http2.settings({MAX_CONCURRENT_STREAMS: 1}),
    "more streams": lambda peer: peer.http2.settings({MAX_CONCURRENT_STREAMS: 1_000}),
    "ping": lambda peer: peer.http2.ping(),
    "close_notify": lambda peer: peer.close(),
    "eof": lambda peer: peer.drop(),
    "reset of the connection": lambda peer: peer.reset(),
    "nonsense": lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("delay", [0.0, 1.0])
def test_fault_at_each_byte_of_the_requests(engine, fault, delay):
    """Whatever the peer does after it has read so many bytes, each request ends in one way."""

    def app(request, peer):
        return Reply(body=f"{request.method} {request.target}\n".encode(), delay=delay)

    sim = Simulation(server=http2(app), http2_engine=engine)
    size = 1
    while True:
        sim.close_idle()
        sim.advance(1)
        sim.peers.clear()
        link = warm(sim)
        handles = several(sim)
        if size > link.up.size:
            break
        sim.network.piece = size
        link.carry_up(sim.now)
        sim.network.piece = None

        FAULTS[fault](link.peer)
        sim.run_until_idle()

        each_has_one_outcome(sim, handles)
        if fault in ("fewer streams", "more streams", "ping", "goaway", "goaway announced"):
            # What was not processed is repeated, but for a body that can be read once.
            assert all(handle.response for handle in handles if handle is not handles[2])
        size += 41
    sim.run_until_idle()
    assert size > 3_000


def test_error_of_one_is_no_one_elses():
    """Each request that a connection takes with it has an error of its own, with its own facts."""
    sim = Simulation(server=http2(silent))
    warm(sim)
    handles = [sim.request("POST", URL) for _ in range(3)]
    sim.run_until_idle()

    sim.peers[0].drop()
    sim.run_until_idle()

    assert len({id(handle.error) for handle in handles}) == 3
    assert [handle.error.reused for handle in handles] == [False, True, True]


# -- What the peer says of a request


def test_what_was_not_processed_is_repeated_whatever_it_is():
    """A POST above the last stream of a GOAWAY, or refused, goes elsewhere, with the connection's other requests."""
    sim = Simulation(server=http2(silent))
    warm(sim)
    handles = [sim.request("POST", URL, content=b"x") for _ in range(3)]
    sim.run_until_idle()
    [peer] = sim.peers

    peer.http2.reset(peer.requests[2], REFUSED_STREAM)
    peer.http2.goaway(1)
    sim.run_until_idle()
    for one in sim.peers:
        while one.outstanding:
            one.respond(Reply())
    sim.run_until_idle()

    assert [handle.response.attempts for handle in handles] == [1, 2, 2]
    assert [len(one.requests) for one in sim.peers] == [3, 2]


@pytest.mark.parametrize("why", ["iterator", "retry"])
def test_what_was_not_processed_is_told_where_it_cannot_be_repeated(why):
    """A body that can be read once, or retry=False, leaves the error to the caller."""
    sim = Simulation(server=http2(silent))
    warm(sim)
    content = iter([b"x"]) if why == "iterator" else b"x"
    handle = sim.request("POST", URL, content=content, retry=why != "retry")
    sim.run_until_idle()

    sim.peers[0].http2.goaway(0)

    assert finish(sim, handle).error.code == "ERR_HTTP2_GOAWAY_SESSION"
    assert handle.exchange.attempts == 1


@pytest.mark.parametrize("end", ["refused", "queue", "closed"])
def test_repetition_that_finds_no_connection(end):
    """Where what was not processed is to be repeated and cannot even be begun, that is the end of it."""
    sim = Simulation(server=http2(silent), max_sockets=1, timeouts=Timeouts(queue=5, response=None))
    warm(sim)
    handle, other = sim.request("POST", URL), sim.request("GET", URL)
    sim.run_until_idle()
    peer = sim.peers[0]
    if end == "refused":
        sim.network.refusing.add("a.test")
        peer.http2.goaway(0)
    elif end == "queue":
        peer.http2.settings({MAX_CONCURRENT_STREAMS: 1})
        sim.run_until_idle()
        peer.http2.reset(peer.requests[0], REFUSED_STREAM)
    else:
        sim.core.pool.close(sim.now)
        peer.http2.reset(peer.requests[0], REFUSED_STREAM)
    sim.advance(6)

    kind = {"refused": ConnectError, "queue": PoolTimeout, "closed": AgentClosed}[end]
    assert isinstance(handle.error, kind)
    assert handle.exchange.attempts == 1
    assert sim.network.opened.total() == (2 if end == "refused" else 1)
    assert other.done is (end == "refused")


def test_refused_a_second_time():
    """A request is repeated once."""
    sim = Simulation(server=http2(lambda request, peer: peer.http2.reset(request, REFUSED_STREAM)))

    handle = finish(sim, sim.request("GET", URL))

    assert isinstance(handle.error, StreamReset)
    assert handle.error.error_code == REFUSED_STREAM
    assert (handle.exchange.attempts, len(sim.peers)) == (2, 1)
    nothing_is_left(sim)


@pytest.mark.parametrize("code", [NO_ERROR, INTERNAL_ERROR, CANCEL, ENHANCE_YOUR_CALM, 0xDEAD])
def test_reset_that_tells_nothing_is_final(code):
    """Other resets do not prove that nothing was done."""
    sim = Simulation(server=http2(silent))
    warm(sim, served=False)
    first, second = sim.request("POST", URL), sim.request("GET", URL)
    sim.run_until_idle()

    sim.peers[0].http2.reset(sim.peers[0].requests[0], code)
    sim.run_until_idle()

    assert (type(first.error), first.error.error_code) == (StreamReset, code)
    assert not second.done
    assert len(sim.links) == 1


def test_response_that_was_whole_stays_whole():
    """A reset behind the response, while the request is still on its way, costs nothing."""
    sim = Simulation(server=http2(silent, initial_window_size=10))
    warm(sim)
    handle = sim.request("POST", URL, content=iter([b"x" * 30] * 3))
    sim.links[0].up.held = True
    sim.run_until_idle()
    [link] = sim.links
    link.up.held = False
    link.carry_up(sim.now)
    [request] = link.peer.requests
    link.peer.respond(Reply(status=403, body=b"no"))
    link.peer.http2.reset(request, NO_ERROR)

    handle = finish(sim, handle)

    assert (handle.response.status, handle.response.content) == (403, b"no")
    nothing_is_left(sim)


@pytest.mark.parametrize("status", [200, 403])
def test_early_response_resets_the_rest_of_its_upload(status):
    """A whole response ends the upload; the stream is reset with NO_ERROR, and the connection goes on."""
    ended = []

    def content():
        try:
            while True:
                yield b"x" * 10_000
        finally:
            ended.append(True)

    sim = Simulation(server=http2(lambda r, p: Reply(status=status, body=b"enough"), early=True))
    warm(sim)

    handle = finish(sim, sim.request("POST", URL, content=content()))

    assert (handle.response.status, handle.response.content) == (status, b"enough")
    assert ended == [True]
    assert sim.peers[0].requests[0].reset == NO_ERROR
    assert finish(sim, sim.request("POST", URL, content=b"x")).response.status == status
    assert len(sim.peers) == 1


# -- How many at a time


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("max_sockets", [1, 2])
def test_no_more_streams_than_the_peer_allows(limit, max_sockets):
    """Requests wait for a stream, first come first served, and no peer has more at a time than it allows."""
    most, order = [], []

    def app(request, peer):
        most.append(len(peer.http2.open))
        order.append(request.target)
        return Reply(delay=1)

    sim = Simulation(server=http2(app, max_concurrent_streams=limit), max_sockets=max_sockets)
    for _ in range(max_sockets):
        sim.preconnect(URL)
    sim.run_until_idle()

    handles = [sim.request("POST", f"{URL}{number:02}") for number in range(20)]
    sim.run_until_idle()

    assert [handle.response.attempts for handle in handles] == [1] * 20
    assert max(most) == limit
    assert max_sockets > 1 or order == sorted(order)
    assert sim.now == pytest.approx(-(-20 // (limit * max_sockets)))
    assert len(sim.peers) == max_sockets
    nothing_is_left(sim)


def test_limit_that_changes():
    """A limit that is lowered lets what is under way go on, and nobody in before enough have left; 0 stops all."""
    sim = Simulation(server=http2(silent, max_concurrent_streams=3), max_sockets=1, timeouts=Timeouts(queue=50))
    link = warm(sim)
    peer = link.peer
    handles = [sim.request("POST", URL) for _ in range(8)]
    sim.run_until_idle()
    assert len(peer.http2.open) == 3

    peer.http2.settings({MAX_CONCURRENT_STREAMS: 1})
    sim.run_until_idle()
    for open_then in (2, 1, 1):
        peer.respond(Reply())
        sim.run_until_idle()
        assert len(peer.http2.open) == open_then
    peer.http2.settings({MAX_CONCURRENT_STREAMS: 0})
    sim.run_until_idle()
    peer.respond(Reply())
    sim.advance(30)
    assert (len(peer.http2.open), sim.stats().waiting, len(sim.peers)) == (0, 4, 1)
    peer.http2.settings({MAX_CONCURRENT_STREAMS: 100})
    sim.run_until_idle()
    assert len(peer.http2.open) == 4
    while peer.outstanding:
        peer.respond(Reply())
    sim.run_until_idle()

    assert [handle.response.attempts for handle in handles] == [1] * 8
    nothing_is_left(sim)


def test_queue_deadline_while_the_peer_allows_nothing():
    """Who waits for a connection that takes nobody is refused in time, and another is not dialled."""
    sim = Simulation(server=http2(max_concurrent_streams=0), timeouts=Timeouts(queue=5))
    warm(sim)

    handle = sim.request("GET", URL)
    sim.advance(5.1)

    assert isinstance(handle.error, PoolTimeout)
    assert len(sim.peers) == 1
    nothing_is_left(sim)


def test_reset_stream_keeps_its_place_until_the_peer_has_seen_it():
    """Who was given up counts against the limit until a PING says that the peer knows."""
    network = Network()
    sim = Simulation(server=http2(silent, max_concurrent_streams=1), network=network, max_sockets=1)
    link = warm(sim)
    first, second = sim.request("GET", URL), sim.request("GET", URL)
    sim.run_until_idle()
    link.down.held = True

    first.cancel()
    sim.run_until_idle()
    assert second.exchange.lease is None
    link.down.held = False
    sim.run_until_idle()

    assert link.peer.failure is None
    assert [request.reset for request in link.peer.requests] == [CANCEL, None]


def test_max_requests_per_socket():
    """A shared connection carries as many requests as it may, however many come at once, and ends in good order."""
    sim = Simulation(server=http2(lambda r, p: Reply(delay=1)), max_requests_per_socket=3)

    handles = [sim.request("GET", URL) for _ in range(10)]
    sim.run_until_idle()

    assert all(handle.response.status == 200 for handle in handles)
    assert max(len(peer.requests) for peer in sim.peers) == 3
    assert sum(len(peer.requests) for peer in sim.peers) == 10
    assert sim.stats().closed == {"max_requests": 3}
    assert [peer.http2.client_left for peer in sim.peers[:3]] == [NO_ERROR] * 3


# -- Time


def test_response_timeout_is_the_streams():
    """A response that does not come costs its stream, not the connection; the others go on."""
    sim = Simulation(
        server=http2(lambda r, p: None if r.target == "/" else Reply(delay=8)), timeouts=Timeouts(response=5)
    )
    warm(sim)
    lost = sim.request("GET", URL)
    other = sim.request("GET", URL + "slow", timeouts=Timeouts(response=20))

    sim.advance(5.1)
    assert isinstance(lost.error, ResponseTimeout)
    assert (lost.error.phase, lost.error.request_sent) == ("wait", True)
    assert sim.peers[0].requests[0].reset == CANCEL
    sim.advance(5)

    assert other.response.status == 200
    assert len(sim.peers) == len(sim.links) == 1
    nothing_is_left(sim)


def test_read_and_total_timeouts_are_the_streams():
    """So are the time between two pieces of a body, and that for all."""
    sim = Simulation(server=http2(silent), timeouts=Timeouts(response=60, read=5))
    link = warm(sim)
    silent_one, dripping = sim.request("GET", URL), sim.request("GET", URL, timeouts=Timeouts(total=10))
    sim.run_until_idle()
    for request in link.peer.requests:
        link.peer.http2.headers(request, [(":status", "200")])
    for _ in range(10):
        link.peer.http2.data(link.peer.requests[1], b"x")
        sim.advance(1.05)

    assert isinstance(silent_one.error, ReadTimeout)
    assert silent_one.error.elapsed == pytest.approx(5)
    assert isinstance(dripping.error, TotalTimeout)
    assert dripping.error.elapsed == pytest.approx(10)
    assert [request.reset for request in link.peer.requests] == [CANCEL, CANCEL]
    nothing_is_left(sim)


def test_consumer_that_does_not_read_stops_the_read_clock():
    """Slowness of ours is not the peer's fault, however small the window is."""
    for window in (1_000, 100_000, 1_048_576):
        sim = Simulation(
            server=http2(lambda r, p: Reply(body=b"x" * 3_000_000)),
            http2=Http2Options(stream_window=window),
            timeouts=Timeouts(read=5),
        )
        handle = sim.request("GET", URL, stream=True)
        sim.run_until_idle()
        sim.advance(1_000)
        size = 0
        while not handle.response.ended:
            size += len(handle.response.read())
            sim.run_until_idle()
            assert sim.links[0].connection.shared.busy is not handle.response.ended
        size += len(handle.response.read())

        assert size == 3_000_000


def test_upload_times_out_while_the_peer_gives_no_credit():
    """timeouts.send runs while a body waits for windows."""
    sim = Simulation(server=http2(initial_window_size=0), timeouts=Timeouts(send=5))
    warm(sim)
    handles = [sim.request("POST", URL, content=content) for content in (b"x", iter([b"x"]))]

    sim.advance(4.9)
    assert not any(handle.done for handle in handles)
    sim.advance(0.2)

    assert [type(handle.error) for handle in handles] == [SendTimeout] * 2
    assert [handle.error.phase for handle in handles] == ["send"] * 2
    nothing_is_left(sim)


def test_inactivity_ends_the_connection():
    """`timeout` is for the connection: all its requests fail."""
    sim = Simulation(server=http2(silent), timeout=5, http2=Http2Options(ping_interval=None))
    handles = [sim.request("GET", URL) for _ in range(2)]

    sim.advance(5.1)

    assert [type(handle.error) for handle in handles] == [InactivityTimeout] * 2
    assert sim.stats().closed == {"timeout": 1}
    nothing_is_left(sim)


def test_request_on_a_connection_that_is_silent_for_long_has_its_whole_time():
    """One that waits patiently for its answer does not cost an impatient one that joins it."""
    sim = Simulation(server=http2(silent), http2=Http2Options(ping_interval=None))
    patient = sim.request("GET", URL, options={"timeout": 60})
    sim.advance(10)

    impatient = sim.request("GET", URL, options={"timeout": 5})
    sim.advance(4.9)
    assert (patient.done, impatient.done, len(sim.links)) == (False, False, 1)
    sim.advance(0.2)

    assert [type(handle.error) for handle in (patient, impatient)] == [InactivityTimeout] * 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_connection_that_answers_no_ping_is_lost(engine, method):
    """After ping_interval of silence a PING is sent, and after ping_timeout more the connection is given up."""
    options = Http2Options(ping_interval=10, ping_timeout=4)
    sim = Simulation(server=http2(silent), http2=options, http2_engine=engine, timeouts=Timeouts(response=None))
    link = warm(sim)
    handles = [sim.request(method, URL) for _ in range(2)]
    sim.run_until_idle()
    link.down.held = True

    sim.advance(9.9)
    assert link.peer.http2.pings == 0
    sim.advance(0.2)
    assert link.peer.http2.pings == 1
    sim.advance(3.8)
    assert not link.closed
    sim.advance(0.2)

    assert link.closed
    assert handles[0].error.code == "ERR_TLSAGENT_PING_TIMEOUT"
    assert sim.stats().closed == {"timeout": 1}
    if method == "POST":
        assert handles[1].error.code == "ERR_TLSAGENT_PING_TIMEOUT"
    else:  # it was the second on its connection, and had no byte of a response
        assert (handles[1].done, handles[1].exchange.attempts) == (False, 2)


def test_sign_of_life_of_any_kind_keeps_the_connection():
    """A byte of anything starts the silence anew; an answered PING does too."""
    options = Http2Options(ping_interval=10, ping_timeout=4)
    sim = Simulation(server=http2(silent), http2=options, timeouts=Timeouts(response=None))
    link = warm(sim)
    handle = sim.request("GET", URL)
    sim.advance(5)
    link.peer.http2.ping()
    sim.advance(9.9)
    assert link.peer.http2.pings == 0
    sim.advance(100)

    assert not handle.done
    assert link.peer.http2.pings == 10
    link.peer.respond(Reply())
    sim.run_until_idle()
    sim.advance(50)  # nobody uses it: nobody asks
    assert link.peer.http2.pings == 10


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_request_waits_for_a_sign_of_life(method):
    """A connection silent for longer than ping_interval is tried first: no request is sent before it answers."""
    options = Http2Options(ping_interval=10, ping_timeout=4)
    sim = Simulation(server=http2(), http2=options, network=Network(latency=0.5))
    link = warm(sim, served=True)
    sim.advance(20)

    first, second = sim.request(method, URL), sim.request(method, URL)
    sim.advance(0.6)
    assert (link.peer.http2.pings, len(link.peer.requests)) == (1, 1)
    sim.run_until_idle()

    assert (first.response.attempts, second.response.attempts) == (1, 1)
    assert len(sim.peers) == 1


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize("end", ["silence", "eof", "reset"])
def test_request_that_waited_for_a_dead_connection_goes_elsewhere(served, end):
    """If no sign of life comes, whatever waited for it is safe to repeat, also if it had been the first there."""
    options = Http2Options(ping_interval=10, ping_timeout=4)
    sim = Simulation(server=http2(), http2=options)
    link = warm(sim, served=served)
    link.down.held = True
    sim.advance(20)

    handles = [sim.request("POST", URL, content=content) for content in (b"x", b"x" * 70_000, iter([b"x"]))]
    if end != "silence":
        FAULTS["eof" if end == "eof" else "reset of the connection"](link.peer)
        link.down.held = False
    sim.advance(4.1)
    sim.run_until_idle()

    assert link.closed
    assert [handle.response.attempts for handle in handles[:2]] == [1, 1]
    assert isinstance(handles[2].error, ConnectionLost)
    assert not handles[2].error.request_sent
    assert len(link.peer.requests) == served
    nothing_is_left(sim)


def test_machine_that_slept_makes_a_connection_doubtful():
    """The time that the machine slept counts as silence."""
    sim = Simulation(server=http2(), http2=Http2Options(ping_interval=10), free_socket_timeout=None)
    link = warm(sim, served=True)
    sim.suspend(60)

    assert finish(sim, sim.request("POST", URL)).response.attempts == 1
    assert link.peer.http2.pings == 1


def test_lifetime_of_a_connection_that_is_never_idle():
    """At the end of its lifetime a connection takes nobody new; what it carries ends well, and it says goodbye."""
    sim = Simulation(server=http2(lambda r, p: Reply(delay=3)), max_lifetime=10)
    handles = []
    for _ in range(25):
        handles.append(sim.request("GET", URL))
        sim.advance(1)
    sim.run_until_idle()

    assert [handle.response.attempts for handle in handles] == [1] * 25
    assert len(sim.peers) == 3
    assert sim.stats().closed["max_lifetime"] == 2
    for peer in sim.peers[:2]:
        assert (len(peer.requests), peer.http2.client_left, peer.client_ended) == (10, NO_ERROR, "close_notify")


def test_idle_connection_expires_and_says_goodbye():
    """free_socket_timeout is for shared connections too, counted from their last request."""
    sim = Simulation(server=http2(lambda r, p: Reply(delay=float(r.target[1:]))), free_socket_timeout=10)
    handles = [sim.request("GET", f"{URL}{delay}") for delay in (1, 5)]

    sim.advance(14.9)
    assert len(sim.links) == 1
    sim.advance(0.2)
    sim.run_until_idle()

    assert all(handle.response.status == 200 for handle in handles)
    assert (sim.links, sim.peers[0].http2.client_left) == ([], NO_ERROR)


# -- Idle connections


@pytest.mark.parametrize("watch_idle", [True, False])
@pytest.mark.parametrize("fault", ["goaway", "close_notify", "eof", "reset of the connection", "nonsense"])
def test_connection_found_unusable_is_not_used(watch_idle, fault):
    """What came while it was idle is seen before the next request, which is no retry."""
    sim = Simulation(server=http2(), watch_idle=watch_idle)
    link = warm(sim, served=True)
    FAULTS[fault](link.peer)
    sim.run_until_idle()

    handle = finish(sim, sim.request("POST", URL))

    assert (handle.response.attempts, handle.response.reused) == (1, False)
    assert link.closed
    nothing_is_left(sim)


@pytest.mark.parametrize("watch_idle", [True, False])
def test_settings_and_pings_on_an_idle_connection_are_answered(watch_idle):
    """Control frames are no stray data."""
    sim = Simulation(server=http2(), watch_idle=watch_idle)
    link = warm(sim, served=True)
    link.peer.http2.ping()
    link.peer.http2.settings({MAX_CONCURRENT_STREAMS: 1})
    sim.run_until_idle()

    assert finish(sim, sim.request("POST", URL)).response.reused
    assert link.peer.http2.pongs == 1


def test_connection_that_takes_leave_at_birth_fails_its_dial():
    """GOAWAY in the same breath as the handshake's end: the request never began."""
    server = http2(greet=lambda peer: peer.http2.goaway(0), min_version="TLSv1.2", max_version="TLSv1.2")
    sim = Simulation(server=server)

    handle = finish(sim, sim.request("GET", URL))

    assert isinstance(handle.error, ConnectionLost)
    assert (handle.error.phase, handle.error.request_sent) == ("handshake", False)
    assert sim.core.pool.keys() == []


# -- Callers


def test_cancelled_request_resets_its_stream_alone():
    """Whoever is given up leaves nothing behind, in whatever state, and the connection goes on."""
    sim = Simulation(server=http2(lambda r, p: Reply(delay=2, body=b"x" * 10), initial_window_size=100))
    link = warm(sim)
    handles = several(sim)
    sim.advance(1)

    for handle in handles[:4]:
        handle.cancel()
    sim.advance(5)

    assert [handle.cancelled for handle in handles] == [True] * 4 + [False]
    assert handles[4].response.content == b"x" * 10
    assert [request.reset for request in link.peer.requests] == [CANCEL] * 4 + [None]
    assert not link.closed
    nothing_is_left(sim)


def test_cancelled_while_held_back():
    """A request that waits for a sign of life is forgotten without a byte."""
    sim = Simulation(server=http2(), http2=Http2Options(ping_interval=10))
    link = warm(sim, served=True)
    sim.advance(20)
    link.down.held = True
    handle = sim.request("POST", URL, content=iter([b"x"]))
    sim.run_until_idle()

    handle.cancel()
    link.down.held = False
    sim.run_until_idle()

    assert len(link.peer.requests) == 1
    assert finish(sim, sim.request("GET", URL)).response.reused
    nothing_is_left(sim)


def test_stream_that_is_dropped_half_read():
    """A response given up gives its credit back: the connection's window is whole again."""
    options = Http2Options(stream_window=200_000, connection_window=200_000)
    sim = Simulation(server=http2(lambda r, p: Reply(body=b"x" * 150_000)), http2=options)
    for _ in range(20):
        handle = finish(sim, sim.request("GET", URL, stream=True))
        handle.cancel()
    sim.run_until_idle()

    assert len(finish(sim, sim.request("GET", URL)).response.content) == 150_000
    assert len(sim.peers) == 1
    nothing_is_left(sim)


def test_abandoned_stream_is_dropped_by_the_next_request():
    """What a finaliser leaves is reset when the core is next used."""
    sim = Simulation(server=http2(silent))
    handle = sim.request("GET", URL, stream=True)
    sim.run_until_idle()
    peer = sim.peers[0]
    peer.http2.headers(peer.requests[0], [(":status", "200")])
    sim.run_until_idle()
    sim.core.abandoned.append(handle.exchange)

    sim.request("GET", URL)
    sim.run_until_idle()

    assert [request.reset for request in peer.requests] == [CANCEL, None]


def test_body_that_raises_resets_its_stream():
    """What the caller's iterator raises is the caller's; the others do not hear of it."""

    def body():
        yield b"x"
        raise ZeroDivisionError

    sim = Simulation(server=http2(lambda r, p: Reply(delay=1)))
    warm(sim)
    other = sim.request("GET", URL)

    handle = sim.request("POST", URL, content=body())
    sim.run_until_idle()

    assert isinstance(handle.error, ZeroDivisionError)
    assert other.response.status == 200
    assert len(sim.peers) == 1
    nothing_is_left(sim)


@pytest.mark.parametrize("size", [2, 4])
def test_body_that_breaks_its_promise_of_length(size):
    """A body shorter or longer than its Content-Length is the caller's error, and costs the stream alone."""
    sim = Simulation(server=http2())
    warm(sim)

    handle = sim.request("POST", URL, headers={"Content-Length": "3"}, content=iter([b"x"] * size))
    sim.run_until_idle()

    assert isinstance(handle.error, LocalProtocolError)
    assert handle.error.code == "ERR_HTTP_CONTENT_LENGTH_MISMATCH"
    assert finish(sim, sim.request("GET", URL)).response.reused
    nothing_is_left(sim)


@pytest.mark.parametrize("content", [b"abc", b"x" * 300_000, [b"a", b"b"]])
@pytest.mark.parametrize("doubtful", [False, True])
def test_body_follows_the_100(content, doubtful):
    """The body goes as soon as the server wants it, also of a request that was held back first."""
    sim = Simulation(server=http2(lambda r, p: None, early=True), http2=Http2Options(ping_interval=10))
    link = warm(sim)
    if doubtful:
        sim.advance(20)
    handle = sim.request("POST", URL, content=content, expect_continue=True, trailers={"x-sum": "1"})
    sim.run_until_idle()
    [request] = link.peer.requests
    assert (request.body, request.complete) == (b"", False)

    link.peer.http2.headers(request, [(":status", "100")])
    sim.run_until_idle()
    assert request.body == (content if isinstance(content, bytes) else b"".join(content))
    assert (request.trailers, request.complete) == ((("x-sum", "1"),), True)
    link.peer.respond(Reply(body=b"thanks"))
    sim.run_until_idle()

    assert handle.response.content == b"thanks"
    nothing_is_left(sim)


@pytest.mark.parametrize("doubtful", [False, True])
def test_body_follows_the_wait_for_the_100(doubtful):
    """Where no 100 comes the body goes after the wait."""
    sim = Simulation(server=http2(), http2=Http2Options(ping_interval=10))
    link = warm(sim)
    if doubtful:
        sim.advance(20)

    handle = sim.request("POST", URL, content=b"abc", expect_continue=True)
    sim.advance(0.9)
    assert link.peer.requests[0].body == b""
    sim.advance(0.2)

    assert handle.response.content == b"POST /\nabc"


def test_final_response_in_place_of_the_100():
    """The caller gets it at once, nothing of the body is sent, the connection goes on."""
    sim = Simulation(server=http2(lambda request, peer: Reply(status=417, body=b"no"), early=True))
    warm(sim)

    handle = finish(sim, sim.request("POST", URL, content=iter([b"abc"]), expect_continue=True))

    assert (handle.response.status, handle.response.content, sim.now) == (417, b"no", 0)
    assert sim.peers[0].requests[0].body == b""
    assert finish(sim, sim.request("GET", URL)).response.reused
    nothing_is_left(sim)


@pytest.mark.parametrize("content", [b"x", b"x" * 70_000, iter([b"x", b"y"])])
def test_body_of_a_request_that_was_held_back(content):
    """What was handed in meanwhile goes out in order once the connection answers."""
    sim = Simulation(server=http2(initial_window_size=50), http2=Http2Options(ping_interval=10))
    warm(sim)
    sim.advance(20)

    handle = finish(sim, sim.request("POST", URL, content=content, trailers={"x-a": "1"}))

    assert handle.response.content == b"POST /\n" + (content if isinstance(content, bytes) else b"xy")
    assert sim.peers[0].requests[0].trailers == (("x-a", "1"),)


# -- The end of an agent


def test_close_lets_active_streams_finish():
    """close() waits for what runs on a shared connection, then says goodbye."""
    sim = Simulation(server=http2(lambda r, p: Reply(delay=2)))
    handles = [sim.request("GET", URL) for _ in range(3)]
    sim.advance(1)

    sim.close(drain=5)
    sim.run_until_idle()

    assert all(handle.response.status == 200 for handle in handles)
    assert sim.now == pytest.approx(2)
    assert (sim.peers[0].http2.client_left, sim.network.open.total()) == (NO_ERROR, 0)


def test_destroy_fails_active_streams():
    """destroy() ends all at once, each with an error of its own."""
    sim = Simulation(server=http2(silent))
    handles = [sim.request("GET", URL) for _ in range(3)]
    sim.run_until_idle()

    sim.destroy()

    assert [type(handle.error) for handle in handles] == [AgentClosed] * 3
    assert sim.links == sim.core.pool.keys() == sim.core.living() == []


def test_events_of_a_shared_connection():
    """Each request tells of its start and its end; a GOAWAY and the end of the connection are told once."""
    sim = Simulation(server=http2(lambda r, p: Reply(delay=1)))
    heard = []
    for kind in (Reused, Freed, GoAway, Closed):
        sim.on(kind, lambda event: heard.append(type(event).__name__))
    warm(sim)
    handles = [sim.request("GET", URL) for _ in range(2)]
    sim.advance(0.5)
    sim.peers[0].http2.goaway(code=ENHANCE_YOUR_CALM)
    sim.run_until_idle()

    assert all(handle.response.status == 200 for handle in handles)
    assert heard == ["Reused", "GoAway", "Freed", "Freed", "Closed"]
