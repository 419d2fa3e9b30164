"""
What the agent's core makes of faults, over a simulated network and clock: one fault per test.
"""

from __future__ import annotations

import io
from math import inf

import pytest

from tlsagent import Http1Options, Timeouts
from tlsagent.errors import (
    AgentClosed,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    HandshakeTimeout,
    InactivityTimeout,
    LocalProtocolError,
    PoolTimeout,
    ReadTimeout,
    RemoteProtocolError,
    ResolutionError,
    ResolutionTimeout,
    ResponseTimeout,
    SendTimeout,
    TotalTimeout,
)
from tlsagent.events import Closed, Reused
from tlsagent.testing.simulation import Network, Reply, SimulatedServer, Simulation, silent

URL = "https://a.test/"
ENDINGS = ("close", "drop", "reset")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"
FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"


def warm(sim, url=URL):
    """Leave one idle connection behind."""
    handle = sim.request("GET", url)
    sim.run_until_idle()
    assert handle.response.status == 200
    return handle


def finish(sim, handle):
    sim.run_until_idle()
    assert handle.done
    return handle


# -- The verdict: may a request be sent again?


def replayable():
    return b"x" * 70_000


def one_shot():
    return iter([b"x" * 30_000, b"x" * 30_000])


BODIES = {"none": lambda: None, "bytes": lambda: b"x" * 50, "long": replayable, "iterator": one_shot}


def expected_retry(*, reused, method, body, received):
    return reused and not received and method in ("GET", "PUT") and body != "iterator"


def dying_server():
    """A server that answers /warm, and dies after `server.lives_for` bytes of the next answer to anything else."""

    def app(request, peer):
        if request.target == "/warm" or server.lives_for is None:
            return Reply(body=b"warm")
        size, server.lives_for = server.lives_for, None  # the next attempt is answered
        peer.send(ANSWER[:size])
        getattr(peer, server.ending)()
        return None

    server = SimulatedServer(app)
    server.lives_for = None
    return server


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize("engine", ["h11", "httptools"])
def test_peer_dies_at_each_byte_of_a_response(ending, method, reused, engine):
    """Wherever a response breaks off, the request is repeated once if that is safe, else it fails with the facts."""
    server = dying_server()
    server.ending = ending
    sim = Simulation(server=server, http1_engine=engine)
    for size in range(len(ANSWER) + 1):
        sim.close_idle()
        if reused:
            warm(sim, URL + "warm")
        server.lives_for = size
        # A reset destroys what is under way: nothing of the response arrives.
        arrives = 0 if ending == "reset" else size

        handle = finish(sim, sim.request(method, URL + "dies"))

        if arrives == len(ANSWER):
            assert handle.response.content == b"done"
            assert handle.response.attempts == 1
        elif expected_retry(reused=reused, method=method, body="none", received=arrives):
            assert handle.response.content == b"warm"
            assert (handle.response.attempts, handle.response.reused) == (2, False)
        else:
            assert type(handle.error) is ConnectionLost
            assert (handle.error.reused, handle.error.request_sent) == (reused, True)
            assert handle.error.key.startswith("a.test:443#")
            assert handle.exchange.attempts == 1


@pytest.mark.parametrize("how", ["eof", "reset"])
@pytest.mark.parametrize(
    ("method", "body"),
    [("GET", "none"), ("POST", "bytes"), ("PUT", "bytes"), ("PUT", "long"), ("PUT", "iterator"), ("POST", "iterator")],
)
@pytest.mark.parametrize("reused", [True, False])
def test_peer_dies_at_each_byte_of_a_request(how, method, body, reused):
    """Wherever a request breaks off, it is repeated once if that is safe, else it fails with the facts."""
    sim = Simulation(network=Network(window=16_384))
    step = 1 if body in ("none", "bytes") else 1_999
    size = 0
    while True:
        sim.close_idle()
        sim.preconnect(URL)
        sim.run_until_idle()
        if reused:
            warm(sim)
        [link] = sim.links
        link.up.breaks_after, link.up.breaks_how = size, how
        seen = len(link.peer.requests)

        handle = finish(sim, sim.request(method, URL, content=BODIES[body]()))

        if len(link.peer.requests) > seen and link.peer.requests[-1].complete:
            assert (handle.response.attempts, handle.response.reused) == (1, reused)
            if link.up.breaks_after:
                break  # nothing broke: beyond the last byte
        elif expected_retry(reused=reused, method=method, body=body, received=False):
            assert (handle.response.attempts, handle.response.reused) == (2, False)
        else:
            assert type(handle.error) is ConnectionLost
            assert (handle.error.reused, handle.error.request_sent) == (reused, True)
            assert handle.exchange.attempts == 1
        size += step
    assert size > (40 if step == 1 else 40_000)


def test_retry_can_be_switched_off():
    """With retry=False, or with the agent's, a request is sent once."""
    server = dying_server()
    server.ending = "drop"
    for options, arguments in [({"retry": False}, {}), ({}, {"retry": False}), ({"retry": True}, {"retry": False})]:
        sim = Simulation(server=server, **options)
        warm(sim, URL + "warm")
        server.lives_for = 0

        handle = finish(sim, sim.request("GET", URL, **arguments))

        assert isinstance(handle.error, ConnectionLost)


def test_second_death_is_final():
    """A request is repeated once only, on a connection made for it, even if others are idle."""
    sim = Simulation(server=SimulatedServer(lambda request, peer: Reply() if "warm" in request.target else peer.drop()))
    sim.preconnect(URL, 2)
    sim.run_until_idle()
    for _ in range(2):
        sim.request("GET", URL + "warm")
    sim.run_until_idle()
    assert sim.stats().idle == 2

    handle = finish(sim, sim.request("GET", URL))

    assert isinstance(handle.error, ConnectionLost)
    assert handle.exchange.attempts == 2
    assert handle.error.reused is False
    assert sim.stats().idle == 1


def test_seekable_file_is_sent_again_from_where_it_stood():
    """A file is rewound for the retry."""
    server = SimulatedServer(lambda r, p: Reply(body=r.body) if r.target == "/" and len(p.requests) < 2 else p.drop())
    sim = Simulation(server=server)
    warm(sim)
    file = io.BytesIO(b"skipped" + b"y" * 70_000)
    file.seek(7)

    handle = finish(sim, sim.request("PUT", URL, content=file))

    assert handle.response.attempts == 2
    assert handle.response.content == b"y" * 70_000


# -- Idle connections


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("watch_idle", [True, False])
def test_connection_found_dead_is_not_used(ending, watch_idle):
    """An idle connection that ended is noticed before the next request, which is no retry."""
    sim = Simulation(watch_idle=watch_idle)
    warm(sim)
    getattr(sim.peers[0], ending)()
    sim.run_until_idle()

    handle = finish(sim, sim.request("GET", URL))

    assert (handle.response.attempts, handle.response.reused) == (1, False)
    assert "closed" in handle.response.why_not_reused
    assert sim.stats().opened == 2
    assert sim.stats().closed == {("lost" if ending == "reset" else "peer"): 1}


@pytest.mark.parametrize("watch_idle", [True, False])
@pytest.mark.parametrize("stray", [FORGED, b"HTTP/1.1 408 Timeout\r\n\r\n", b"x"])
@pytest.mark.parametrize("engine", ["h11", "httptools"])
def test_unsolicited_bytes_cost_the_connection(watch_idle, stray, engine):
    """Whatever comes on an idle connection is never the answer to the next request."""
    sim = Simulation(watch_idle=watch_idle, http1_engine=engine)
    warm(sim)
    sim.peers[0].send(stray)
    sim.run_until_idle()

    handle = finish(sim, sim.request("GET", URL))

    assert handle.response.content == b"GET /\n"
    assert handle.response.reused is False
    assert sim.stats().closed == {"unsolicited_data": 1}


@pytest.mark.parametrize("engine", ["h11", "httptools"])
def test_bytes_behind_a_response_cost_the_connection(engine):
    """A response is delivered, the bytes behind it in the same record are nobody's, the connection goes."""
    sim = Simulation(server=SimulatedServer(lambda request, peer: ANSWER + FORGED), http1_engine=engine)

    handle = finish(sim, sim.request("GET", URL))

    assert handle.response.content == b"done"
    assert sim.links == []


@pytest.mark.parametrize("ending", ["close", "drop"])
def test_connection_that_ends_behind_its_response_is_not_handed_on(ending):
    """A waiter does not get a connection whose end has arrived together with the response before."""

    def app(request, peer):
        peer.respond(Reply(body=b"last words"))
        getattr(peer, ending)()

    sim = Simulation(max_sockets=1, server=SimulatedServer(app))
    handles = [sim.request("POST", URL) for _ in range(3)]

    sim.run_until_idle()

    assert [handle.response.content for handle in handles] == [b"last words"] * 3
    assert [handle.response.attempts for handle in handles] == [1, 1, 1]
    assert sim.stats().closed == {"peer": 3}


def test_tickets_on_an_idle_connection_are_no_stray_data():
    """TLS 1.3 tickets that arrive while a connection is idle are kept, and so is the connection."""
    sim = Simulation(network=Network(latency=0.05))
    sim.preconnect(URL)
    sim.advance(0.16)  # the client is secured, the server's tickets are under way
    assert (sim.stats().idle, sim.stats().sessions_stored) == (1, 0)

    sim.run_until_idle()

    assert (sim.stats().idle, sim.stats().sessions_stored) == (1, 2)


def test_idle_connection_expires():
    """free_socket_timeout closes an idle connection in its time."""
    sim = Simulation(free_socket_timeout=10)
    warm(sim)

    sim.advance(9.9)
    assert len(sim.links) == 1
    sim.advance(0.2)

    assert sim.links == []
    assert sim.stats().closed == {"free_socket_timeout": 1}


def test_expired_connection_is_never_handed_out():
    """At the very moment of expiry a new connection is made."""
    sim = Simulation(free_socket_timeout=10)
    warm(sim)
    sim.now += 10  # nobody looked at the clock meanwhile

    assert finish(sim, sim.request("GET", URL)).response.reused is False


@pytest.mark.parametrize("used_before", [True, False])
def test_inactivity_closes_an_idle_connection(used_before):
    """`timeout` closes an idle connection too, also one that has not served yet."""
    sim = Simulation(timeout=5)
    if used_before:
        warm(sim)
    else:
        sim.preconnect(URL)
        sim.run_until_idle()
    assert len(sim.links) == 1

    sim.advance(5.1)

    assert sim.links == []
    assert sim.stats().closed == {"timeout": 1}


def test_inactivity_fails_an_active_request():
    """`timeout` is an error for a request whose connection is silent."""
    sim = Simulation(timeout=5, server=SimulatedServer(silent))
    handle = sim.request("GET", URL)

    sim.advance(4.9)
    assert not handle.done
    sim.advance(0.2)

    assert isinstance(handle.error, InactivityTimeout)
    assert handle.error.phase == "wait"


# -- Connections that end or speak before anybody asked


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("greeting", [*ENDINGS, "send"])
def test_peer_that_ends_right_after_the_handshake(version, greeting):
    """A connection that is dead when its handshake is complete fails the request; nothing is left to wait for."""

    def greet(peer):
        if greeting == "send":
            peer.send(b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n")
        else:
            getattr(peer, greeting)()

    sim = Simulation(server=SimulatedServer(silent, greet=greet, min_version=version, max_version=version))
    handle = sim.request("GET", URL)

    sim.run_until_idle()
    sim.advance(100)

    if (version, greeting) == ("TLSv1.3", "send"):
        assert handle.response.status == 408  # it came after the request was sent: nobody can tell
    else:
        assert isinstance(handle.error, ConnectionLost | RemoteProtocolError)
    assert sim.core.pool.keys() == []


def test_preconnected_connection_that_died_at_birth_is_not_kept():
    """A connection that is dead when its handshake is complete does not lie idle."""
    server = SimulatedServer(greet=lambda peer: peer.close(), min_version="TLSv1.2", max_version="TLSv1.2")
    sim = Simulation(server=server)

    sim.preconnect(URL)
    sim.run_until_idle()

    assert sim.links == []
    assert sim.core.pool.keys() == []


# -- Limits and the queue


def test_queue_times_out():
    """A request that waits for a connection longer than timeouts.queue fails; the holder goes on."""
    sim = Simulation(max_sockets=1, server=SimulatedServer(silent), timeouts=Timeouts(queue=5, response=None))
    holder = sim.request("GET", URL)
    sim.run_until_idle()
    waiter = sim.request("GET", URL)

    sim.advance(4.9)
    assert not waiter.done
    sim.advance(0.2)

    assert isinstance(waiter.error, PoolTimeout)
    assert (waiter.error.phase, waiter.error.request_sent) == ("queue", False)
    assert waiter.error.elapsed == pytest.approx(5)
    assert not holder.done


def test_first_come_first_served():
    """Waiters are served in their order."""
    sim = Simulation(max_sockets=1)
    served = []
    handles = [sim.request("GET", URL, trace=lambda event, n=n: served.append(n)) for n in range(5)]

    sim.run_until_idle()

    assert all(handle.response.status == 200 for handle in handles)
    assert list(dict.fromkeys(served)) == sorted(set(served))
    assert sim.network.most == 1


def test_waiter_of_another_key_gets_an_idle_place():
    """Under max_total_sockets an idle connection gives way to a waiter of another key."""
    sim = Simulation(max_total_sockets=1)
    warm(sim)

    handle = finish(sim, sim.request("GET", "https://b.test/"))

    assert handle.response.status == 200
    assert sim.network.most == 1
    assert sim.stats().closed == {"make_room": 1}


def test_cancelled_request_leaves_its_attempt_to_the_next():
    """The attempt of a request that gave up serves the next one."""
    sim = Simulation(network=Network(connect=1.0))
    first = sim.request("GET", URL)
    sim.advance(0.5)
    first.cancel()
    second = sim.request("GET", URL)

    sim.advance(0.6)

    assert second.response.status == 200
    assert sim.network.opened.total() == 1


CANCEL_AT = {"queued": 0.0, "lookup": 0.05, "connect": 0.15, "handshake": 0.25, "sending": 0.45, "waiting": 0.65}


@pytest.mark.parametrize("state", CANCEL_AT)
def test_cancelled_in_any_state_hands_the_slot_on(state):
    """Wherever a request is given up, the next waiter gets the place, and no connection carries half an exchange."""
    network = Network(lookup=0.1, connect=0.1, latency=0.1)
    sim = Simulation(max_sockets=1, network=network, server=SimulatedServer(lambda r, p: Reply(delay=0.3)))
    handle = sim.request("POST", URL, content=b"x" * 100_000)
    waiter = sim.request("GET", URL)
    sim.advance(CANCEL_AT[state])
    assert not handle.done

    handle.cancel()
    sim.advance(5)

    assert handle.cancelled
    assert waiter.response.status == 200
    assert sim.network.most == 1
    assert not any(peer.overlapped for peer in sim.peers)
    assert sim.stats().active == sim.stats().waiting == sim.stats().dialling == 0


def test_cancelled_stream_costs_its_connection():
    """A response that is not read to its end takes its connection with it."""
    sim = Simulation(server=SimulatedServer(lambda r, p: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"))
    handle = finish(sim, sim.request("GET", URL, stream=True))
    assert handle.response.read() == b"half"

    handle.cancel()
    sim.run_until_idle()

    assert sim.stats().closed == {"dropped": 1}
    assert sim.peers[0].client_ended == "eof"


def test_abandoned_exchange_is_dropped_by_the_next_request():
    """What a finaliser leaves in `abandoned` is dropped when the core is next used."""
    sim = Simulation(max_sockets=1, server=SimulatedServer(lambda r, p: ANSWER[:-2] if len(p.server.seen) else ANSWER))
    sim.server.seen = [1]
    lost = finish(sim, sim.request("GET", URL, stream=True))
    sim.server.seen = []
    sim.core.abandoned.append(lost.exchange)

    handle = finish(sim, sim.request("GET", URL))

    assert handle.response.content == b"done"
    assert sim.stats().closed == {"dropped": 1}


def test_abandoned_exchange_that_ended_is_left_alone():
    """An abandoned exchange whose connection has gone on costs nothing."""
    sim = Simulation()
    done = warm(sim)
    sim.core.abandoned.append(done.exchange)

    assert finish(sim, sim.request("GET", URL)).response.reused is True


def test_many_keys_leave_no_trace():
    """A thousand keys that were used and closed are not remembered by the pool."""
    sim = Simulation(reject_unauthorized=False, keep_alive=False)
    for port in range(1, 51):
        finish(sim, sim.request("GET", f"https://a.test:{port}/"))

    assert sim.core.pool.keys() == []
    assert sim.core.living() == []


# -- Dialling


def test_refused_connect_is_told_once_and_the_queue_goes_on():
    """A refused attempt fails the request that depends on it; the next waiter dials anew."""
    sim = Simulation(max_sockets=1, network=Network(connect=None), alpn_protocols=("http/1.1",))
    first, second = sim.request("GET", URL), sim.request("GET", URL)
    sim.run_until_idle()
    [dial] = sim.dials

    dial.refuse()
    sim.run_until_idle()

    assert isinstance(first.error, ConnectError)
    assert (first.error.code, first.error.phase, first.error.request_sent) == ("ECONNREFUSED", "connect", False)
    assert not second.done
    sim.dials[0].accept()
    sim.run_until_idle()
    assert second.response.status == 200


def test_one_dial_stands_for_all_until_it_is_known_what_is_spoken():
    """Of an origin not known yet one connection is made; its failure is told to all who wait for it."""
    sim = Simulation(network=Network(connect=None))
    handles = [sim.request("GET", URL) for _ in range(3)]
    sim.run_until_idle()
    [dial] = sim.dials

    dial.refuse()

    assert [handle.error.code for handle in handles] == ["ECONNREFUSED"] * 3
    assert len({id(handle.error) for handle in handles}) == 3
    assert sim.dials == sim.core.pool.keys() == []


@pytest.mark.parametrize("dial_delay", [0.3, 2.0])
def test_second_dial_joins_a_slow_first(dial_delay):
    """After `dial_delay` a second attempt starts beside the first, if others wait; whichever comes first serves all."""
    server = SimulatedServer(alpn_protocols=("h2", "http/1.1"))
    sim = Simulation(network=Network(connect=None), server=server, dial_delay=dial_delay)
    handles = [sim.request("GET", URL) for _ in range(3)]

    sim.advance(dial_delay - 0.01)
    assert len(sim.dials) == 1
    sim.advance(0.02)
    assert len(sim.dials) == 2
    sim.dials[1].accept()
    sim.run_until_idle()

    assert [handle.response.http_version for handle in handles] == ["HTTP/2"] * 3
    assert len(sim.dials) == 1


def test_answer_that_nothing_is_shared_dials_for_the_rest_at_once():
    """HTTP/1.1 where HTTP/2 was hoped for: the others dial side by side, and so does everybody from then on."""
    sim = Simulation(server=SimulatedServer(lambda request, peer: Reply(delay=1)), dial_delay=None)
    handles = [sim.request("GET", URL) for _ in range(3)]
    sim.advance(1.1)
    assert [handle.done for handle in handles] == [True] * 3
    sim.close_idle()

    for _ in range(3):
        sim.request("GET", URL)

    assert len(sim.dials) == 3


def test_unknown_host():
    """A name without address fails the request in its look-up."""
    sim = Simulation()
    sim.network.unknown.add("a.test")

    handle = finish(sim, sim.request("GET", URL))

    assert isinstance(handle.error, ResolutionError)
    assert handle.error.phase == "lookup"


@pytest.mark.parametrize(
    ("phase", "kind"), [("lookup", ResolutionTimeout), ("connect", ConnectTimeout), ("handshake", HandshakeTimeout)]
)
def test_dial_phases_time_out(phase, kind):
    """Each phase of an attempt has its own deadline, and its own error."""
    sim = Simulation(timeouts=Timeouts(lookup=3, connect=3, handshake=3))
    if phase == "handshake":
        sim.server = SimulatedServer(stall_at="finished")
    else:
        setattr(sim.network, phase, None)
    handle = sim.request("GET", URL)

    sim.advance(2.9)
    assert not handle.done
    sim.advance(0.2)

    assert type(handle.error) is kind
    assert handle.error.phase == phase
    assert sim.network.open.total() == 0


def test_dripping_handshake_times_out_as_a_whole():
    """A handshake that comes byte by byte does not outlive its deadline."""
    sim = Simulation(network=Network(latency=0.01, piece=1), timeouts=Timeouts(handshake=3))
    sim.request("GET", URL)
    sim.run_until_idle()
    assert sim.stats().idle == 1  # in time, since the pieces of a moment come at once
    sim.close_idle()

    sim.server = SimulatedServer(stall_at="certificate")
    handle = sim.request("GET", URL)
    sim.advance(3.1)

    assert isinstance(handle.error, HandshakeTimeout | ConnectionLost)


def test_covered_ticket_waits_on_the_dial():
    """While an attempt is made for it, a request is not refused for waiting in the queue."""
    sim = Simulation(timeouts=Timeouts(queue=1, connect=5), network=Network(connect=3.0))
    handle = sim.request("GET", URL)

    sim.advance(3.1)

    assert handle.response.status == 200


# -- Deadlines of a request


def test_response_timeout():
    """The head of the response is due after the end of the request."""
    sim = Simulation(server=SimulatedServer(silent), timeouts=Timeouts(response=5))
    handle = sim.request("GET", URL)

    sim.advance(5.1)

    assert isinstance(handle.error, ResponseTimeout)
    assert (handle.error.phase, handle.error.request_sent, handle.error.reused) == ("wait", True, False)
    assert sim.stats().closed == {"timeout": 1}


def test_read_timeout_counts_from_the_last_bytes():
    """Each piece of the body starts the clock anew."""
    sim = Simulation(server=SimulatedServer(silent), timeouts=Timeouts(response=60, read=5))
    handle = sim.request("GET", URL)
    sim.run_until_idle()
    sim.peers[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    for _ in range(4):
        sim.advance(4)
        assert not handle.done
        sim.peers[0].send(b"x")
        sim.advance(0)

    sim.advance(5.1)

    assert isinstance(handle.error, ReadTimeout)
    assert handle.error.phase == "receive"


def test_total_timeout_beats_a_drip():
    """A body that drips faster than the read timeout still ends at the total deadline."""
    sim = Simulation(server=SimulatedServer(silent), timeouts=Timeouts(read=5, total=10))
    handle = sim.request("GET", URL)
    sim.run_until_idle()
    sim.peers[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
    while not handle.done:
        sim.peers[0].send(b"x")
        sim.advance(1)

    assert isinstance(handle.error, TotalTimeout)
    assert sim.now == pytest.approx(10)


def test_total_timeout_in_the_queue():
    """timeouts.total ends a request that waits for a connection, and its place in the queue."""
    sim = Simulation(max_sockets=1, server=SimulatedServer(silent))
    sim.request("GET", URL)
    waiter = sim.request("GET", URL, timeouts=2)

    sim.advance(2.1)

    assert isinstance(waiter.error, TotalTimeout)
    assert waiter.error.phase == "queue"
    assert sim.stats().waiting == 0


def test_send_timeout():
    """A peer that reads nothing fails the request after timeouts.send; the body was held back meanwhile."""
    taken = []

    def body():
        for _ in range(1_000):
            taken.append(1)
            yield b"x" * 10_000

    sim = Simulation(timeouts=Timeouts(send=5))
    sim.preconnect(URL)
    sim.run_until_idle()
    sim.links[0].up.held = True
    handle = sim.request("POST", URL, content=body())

    sim.advance(4.9)
    assert not handle.done
    sim.advance(0.2)

    assert isinstance(handle.error, SendTimeout)
    assert (handle.error.phase, handle.error.request_sent) == ("send", True)
    assert len(taken) < 20


def test_peer_that_reads_slowly_is_waited_for():
    """As long as the peer takes bytes now and then, sending goes on."""
    sim = Simulation(timeouts=Timeouts(send=5))
    sim.preconnect(URL)
    sim.run_until_idle()
    handle = sim.request("POST", URL, content=iter([b"x" * 50_000] * 8))
    link = sim.links[0]
    while not handle.done:
        link.up.held = not link.up.held
        sim.advance(2)
        assert sim.now < 100

    assert handle.response.content.endswith(b"x" * 400_000)


def test_no_timer_of_a_request_outlives_it():
    """The deadlines of a finished request do not strike the idle connection, nor the next request."""
    sim = Simulation(timeouts=Timeouts(response=5, read=5, total=7), free_socket_timeout=None)
    warm(sim)

    sim.advance(100)

    assert finish(sim, sim.request("GET", URL)).response.reused is True


def test_no_limit_means_no_deadline():
    """With all timeouts None nothing strikes, and the core has no deadline."""
    sim = Simulation(server=SimulatedServer(silent), timeouts=None, free_socket_timeout=None)
    handle = sim.request("GET", URL)
    sim.advance(1e6)
    assert not handle.done
    assert sim.core.next_deadline() == inf

    sim.peers[0].respond(Reply(body=b"late"))
    sim.run_until_idle()

    assert handle.response.content == b"late"


# -- Early answers


def test_final_response_during_the_upload():
    """A response that comes before the request is complete is delivered; the upload stops, the connection goes."""
    sim = Simulation(server=SimulatedServer(lambda r, p: Reply(status=413), early=True))
    sent = []
    pieces = (sent.append(1) or b"x" * 10_000 for _ in range(1_000))

    handle = finish(sim, sim.request("POST", URL, content=pieces))

    assert handle.response.status == 413
    assert len(sent) < 100
    assert sim.stats().closed == {"early_response": 1}


@pytest.mark.parametrize(("send", "read"), [(None, 5), (20, 5), (5, 20), (5, None)])
def test_early_head_and_then_silence(send, read):
    """After an upload whose response had begun before, the body is due within timeouts.read, whatever `send` is."""
    sim = Simulation(server=SimulatedServer(silent), timeouts=Timeouts(send=send, read=read, response=None))
    sim.preconnect(URL)
    sim.run_until_idle()
    [link] = sim.links
    link.up.held = True
    handle = sim.request("POST", URL, content=iter([b"x" * 60_000] * 3))
    link.peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    sim.advance(1)
    assert handle.exchange.sent_at is None
    link.up.held = False

    sim.advance(40)

    assert handle.exchange.sent_at == 1
    if read is None:
        assert not handle.done
    else:
        assert isinstance(handle.error, ReadTimeout)
        assert handle.error.elapsed == pytest.approx(1 + read)


# -- Requests that cannot be sent


@pytest.mark.parametrize("queued", [True, False])
def test_trailers_beside_a_content_length_are_refused_at_once(queued):
    """Trailers need chunks: a Content-Length beside them is refused before any I/O."""
    sim = Simulation(max_sockets=1)
    if queued:
        sim.request("GET", URL)

    with pytest.raises(LocalProtocolError):
        sim.request("POST", URL, content=b"abc", headers={"Content-Length": "3"}, trailers={"x-a": "1"})

    sim.run_until_idle()
    assert sim.stats().active == sim.stats().waiting == 0


@pytest.mark.parametrize("size", [2, 4])
def test_body_that_breaks_its_promise_of_length(size):
    """A streamed body shorter or longer than its Content-Length is the caller's error, and costs the connection."""
    sim = Simulation()

    handle = finish(sim, sim.request("POST", URL, headers={"Content-Length": "3"}, content=iter([b"x"] * size)))

    assert isinstance(handle.error, LocalProtocolError)
    assert handle.error.code == "ERR_HTTP_CONTENT_LENGTH_MISMATCH"
    assert sim.links == []


def test_body_that_raises():
    """What the caller's iterator raises reaches the caller; the connection goes."""

    def body():
        yield b"x"
        raise ZeroDivisionError

    sim = Simulation()

    handle = finish(sim, sim.request("POST", URL, content=body()))

    assert isinstance(handle.error, ZeroDivisionError)
    assert sim.stats().closed == {"dropped": 1}


# -- The end of an agent


def test_close_refuses_the_waiting_and_lets_the_active_finish():
    """close() refuses what waits, waits for what runs, closes what is idle."""
    sim = Simulation(max_sockets=1, server=SimulatedServer(lambda r, p: Reply(delay=2)))
    active, waiting = sim.request("GET", URL), sim.request("GET", URL)
    sim.advance(1)

    sim.close(drain=5)

    assert active.response.status == 200
    assert isinstance(waiting.error, AgentClosed)
    assert sim.now == pytest.approx(2)
    assert sim.network.open.total() == 0


def test_close_ends_what_does_not_finish():
    """After `drain` seconds active requests fail with AgentClosed."""
    sim = Simulation(server=SimulatedServer(silent))
    handle = sim.request("GET", URL)
    sim.run_until_idle()

    sim.close(drain=5)
    sim.close()

    assert isinstance(handle.error, AgentClosed)
    assert sim.now == pytest.approx(5)
    assert sim.links == sim.dials == sim.core.pool.keys() == []


def test_closed_agent_takes_no_requests():
    """After close() a request fails with AgentClosed, and preconnect raises it."""
    sim = Simulation()
    sim.close()

    assert isinstance(sim.request("GET", URL).error, AgentClosed)
    with pytest.raises(AgentClosed):
        sim.preconnect(URL)


def test_destroy_while_dialling():
    """destroy() ends attempts in any phase."""
    for network in (Network(lookup=None), Network(connect=None), Network(latency=1.0)):
        sim = Simulation(network=network)
        handle = sim.request("GET", URL)
        sim.advance(0.5)

        sim.destroy()

        assert isinstance(handle.error, AgentClosed)
        assert sim.network.open.total() == 0


# -- What a response tells


def test_timings_add_up():
    """The phases of a request take together as long as the request, dialling included."""
    network = Network(lookup=0.1, connect=0.2, latency=0.05)
    sim = Simulation(max_sockets=1, network=network, server=SimulatedServer(lambda r, p: Reply(delay=0.5, body=b"x")))
    handles = [sim.request("POST", URL, content=b"x") for _ in range(3)]
    sim.run_until_idle()

    for number, handle in enumerate(handles):
        timings = handle.response.timings
        phases = [getattr(timings, name) or 0.0 for name in type(timings).__slots__ if name != "total"]
        assert sum(phases) == pytest.approx(timings.total)
        assert timings.wait == pytest.approx(0.6)
        assert (timings.lookup is None) == (number > 0)
    first = handles[0].response.timings
    assert (first.lookup, first.connect, first.queue) == pytest.approx((0.1, 0.2, 0.0))
    assert first.handshake == pytest.approx(0.1)
    assert handles[2].response.timings.queue > 1.2


@pytest.mark.parametrize("started", ["before", "half-way"])
def test_timings_leave_out_a_dial_that_was_not_the_request_s(started):
    """What a connection took before the request began is no part of the request's time."""
    sim = Simulation(network=Network(lookup=1.0, connect=1.0))
    sim.preconnect(URL)
    sim.advance(3.0 if started == "before" else 1.5)

    handle = sim.request("GET", URL)
    sim.advance(5)

    timings = handle.response.timings
    phases = [getattr(timings, name) or 0.0 for name in type(timings).__slots__ if name != "total"]
    assert sum(phases) == pytest.approx(timings.total)
    assert timings.total < 2


def test_late_binding_serves_from_what_comes_first():
    """A waiter whose own dial is slow takes the connection that is freed first, and says nothing of its dial."""
    sim = Simulation(server=SimulatedServer(lambda r, p: Reply(delay=1)))
    sim.request("GET", URL)
    sim.advance(0.5)
    sim.network.connect = 3.0

    handle = sim.request("GET", URL)
    sim.advance(2)

    assert handle.response.reused is True
    assert handle.response.why_not_reused is None
    assert handle.response.timings.connect is None
    assert handle.response.timings.queue == pytest.approx(0.5)


def test_why_not_reused():
    """A response says why a new connection was needed."""
    sim = Simulation(server=SimulatedServer(lambda r, p: Reply(close="close" in r.target, delay=0.1)))

    first = finish(sim, sim.request("GET", URL + "close")).response
    second = finish(sim, sim.request("GET", URL)).response
    busy = [sim.request("GET", URL), sim.request("GET", URL)]
    sim.run_until_idle()

    assert first.why_not_reused == "first connection of this key"
    assert second.why_not_reused.startswith("the last connection of this key was closed: ")
    assert busy[0].response.why_not_reused is None
    assert busy[1].response.why_not_reused == "all connections of this key are busy"


def test_events_tell_the_story():
    """Subscribers hear of each step, a request's own trace of what concerns it."""
    sim = Simulation()
    heard, traced = [], []
    for kind in (Reused, Closed):
        sim.on(kind, heard.append)
    warm(sim)

    finish(sim, sim.request("GET", URL, trace=lambda event: traced.append(type(event).__name__)))
    sim.close_idle()

    assert [type(event) for event in heard] == [Reused, Closed]
    assert heard[1].reason == "close_idle"
    assert traced == ["Reused", "Freed"]


# -- Sessions


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_next_connection_is_resumed(version):
    """A second connection of the same key resumes; after the server lost its keys the handshake is a full one."""
    sim = Simulation(server=SimulatedServer(min_version=version, max_version=version))
    assert warm(sim).response.connection.why_not_resumed == "no session was at hand"
    sim.close_idle()
    assert warm(sim).response.connection.session_reused is True
    sim.close_idle()
    sim.server.forget_sessions()

    info = warm(sim).response.connection

    assert (info.session_reused, info.why_not_resumed) == (False, "the server did not take the session")
    assert (sim.stats().handshakes_full, sim.stats().handshakes_resumed) == (2, 1)


def test_parallel_connections_never_share_a_ticket():
    """A TLS 1.3 ticket is offered once."""
    sim = Simulation(server=SimulatedServer(tickets=1))
    warm(sim)
    sim.close_idle()

    handles = [sim.request("GET", URL) for _ in range(2)]
    sim.run_until_idle()

    assert sorted(handle.response.connection.session_reused for handle in handles) == [False, True]


def test_expired_session_is_not_offered():
    """A session past its lifetime is thrown away."""
    sim = Simulation(free_socket_timeout=1)
    warm(sim)
    sim.advance(8 * 86_400)

    assert warm(sim).response.connection.session_reused is False
    assert sim.stats().sessions_taken == 0


# -- Bodies that wait, uploads that stop


def expecting(sim, **arguments):
    return sim.request("POST", URL, expect_continue=True, **{"content": b"abc", **arguments})


def heads_only(request, peer):
    """Leave the answer to the test."""


@pytest.mark.parametrize("wait", [0.5, 1.0, 7.0])
def test_server_that_ignores_the_expectation(wait):
    """After the wait, not before, the body is sent all the same."""
    sim = Simulation(server=SimulatedServer(), http1=Http1Options(expect_continue_wait=wait))
    handle = expecting(sim)
    sim.run_until_idle()
    [peer] = sim.peers
    sim.advance(wait * 0.99)
    assert (handle.done, peer.outstanding.body) == (False, b"")

    sim.advance(wait * 0.02)
    sim.run_until_idle()

    assert handle.response.content == b"POST /\nabc"
    assert finish(sim, sim.request("GET", URL)).response.reused


@pytest.mark.parametrize("content", [b"abc", b"x" * 300_000, [b"a", b"b"]])
def test_body_follows_the_100(content):
    """The body goes as soon as the server wants it, whatever its form, and trailers behind it."""
    sim = Simulation(server=SimulatedServer(heads_only, early=True), http1=Http1Options(expect_continue_wait=50))
    handle = expecting(sim, content=content, trailers={"x-sum": "1"})
    sim.run_until_idle()
    [peer] = sim.peers
    assert peer.outstanding.body == b""

    peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    sim.run_until_idle()
    assert peer.outstanding.body == (content if isinstance(content, bytes) else b"".join(content))
    assert peer.outstanding.trailers == (("x-sum", "1"),)
    peer.respond(Reply(body=b"thanks"))
    sim.run_until_idle()

    assert handle.response.content == b"thanks"
    assert [head.status for head in handle.response.informational] == [100]
    assert (sim.stats().idle, sim.stats().closed) == (1, {})


@pytest.mark.parametrize("status", [200, 401, 417])
def test_final_response_in_place_of_the_100(status):
    """The caller gets it at once, the body is never sent, the next request has a new connection."""
    server = SimulatedServer(lambda request, peer: Reply(status=status, body=b"no"), early=True)
    sim = Simulation(server=server, max_sockets=1)

    handle = finish(sim, expecting(sim, content=iter([b"abc"])))

    assert (handle.response.status, handle.response.content) == (status, b"no")
    assert sim.now < 1
    assert sim.peers[0].requests[0].body == b""
    assert sim.stats().closed == {"early_response": 1}
    assert not finish(sim, sim.request("GET", URL)).response.reused


def test_wait_for_the_100_is_inside_total():
    """`total` ends a request whose body still waits."""
    sim = Simulation(server=SimulatedServer(heads_only, early=True), http1=Http1Options(expect_continue_wait=9))
    handle = expecting(sim, timeouts=2)

    sim.advance(2.1)

    assert isinstance(handle.error, TotalTimeout)
    assert sim.stats().active == 0


def test_reused_connection_that_dies_while_the_body_waits():
    """A request that may be repeated is, and waits anew."""
    server = SimulatedServer(lambda r, p: Reply(body=r.body) if len(p.requests) < 2 else p.drop(), early=False)
    sim = Simulation(server=server)
    warm(sim)
    sim.peers[0].server = SimulatedServer(lambda r, p: p.drop(), early=True)

    handle = sim.request("PUT", URL, content=b"abc", expect_continue=True)
    sim.advance(5)

    assert (handle.response.attempts, handle.response.content) == (2, b"abc")
    assert sim.peers[1].requests[0].header("expect") == "100-continue"


def test_error_stops_an_upload_that_never_ends():
    """From the head of an error on nothing is asked of the body any more, and its generator is closed."""
    ended = []

    def content():
        try:
            while True:
                yield b"x" * 10_000
        finally:
            ended.append(True)

    server = SimulatedServer(
        lambda request, peer: peer.send(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\n"), early=True
    )
    sim = Simulation(server=server)
    handle = sim.request("POST", URL, content=content(), stream=True)
    sim.run_until_idle()

    assert handle.response.status == 413
    assert ended == [True]
    sim.peers[0].send(b"no")
    sim.run_until_idle()
    assert handle.response.read() == b"no"
    assert sim.stats().closed == {"early_response": 1}


# -- Other protocols


def test_switched_connection_keeps_its_place():
    """A connection that was handed over counts until it is hung up, and then serves nobody else."""

    def app(request, peer):
        if not request.header("upgrade"):
            return Reply()
        return peer.send(b"HTTP/1.1 101 Switching\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")

    sim = Simulation(server=SimulatedServer(app), max_sockets=1, timeouts=Timeouts(total=3, queue=None))
    upgrade = {"Upgrade": "echo", "Connection": "upgrade"}
    handle = finish(sim, sim.request("GET", URL, headers=upgrade, stream=True))
    connection = handle.exchange.switched
    connection.take_over()
    waiting = sim.request("GET", URL, timeouts=Timeouts(total=None))

    sim.advance(100)
    assert (sim.stats().active, sim.stats().waiting, connection.dead) == (1, 1, None)
    connection.hang_up("close")
    sim._settle(connection, None)
    sim.run_until_idle()

    assert (waiting.response.status, waiting.response.reused) == (200, False)
    assert (sim.stats().opened, sim.stats().closed) == (2, {"close": 1})
