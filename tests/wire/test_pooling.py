"""The pool from the server's side: how many connections it sees, which request comes over which, and how they end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from wire_peer import OK, PeerConnection, closed_port, hold, left_in_order, serve, targets, wait_until

from tlsagent import ConnectError, OptionError, TotalTimeout, events


def waiting(agent: Any, count: int) -> bool:
    """Wait until so many requests are queued."""
    return wait_until(lambda: agent.stats().waiting == count)


def other_url(server: Any) -> str:
    """Return the server's URL under another name: another pool key."""
    return f"https://127.0.0.1:{server.port}"


# --- Reuse ------------------------------------------------------------------------------------------------------------


@pytest.mark.framing
def test_connection_is_reused(open_agent, server):
    """
    Requests one after the other share one connection.
    """
    agent = open_agent(ca=server.ca_pem)

    responses = [agent.request("GET", server.url + "/hello") for _ in range(3)]

    assert [response.reused for response in responses] == [False, True, True]
    assert server.stats.connections == 1
    assert server.connections[0].request_count == 3


def test_without_keep_alive_each_request_has_its_connection(open_agent, server, protocol):
    """
    `keep_alive=False` tells the server so, with HTTP/2 by GOAWAY alone, and closes every connection in good order.
    """
    agent = open_agent(ca=server.ca_pem, keep_alive=False)

    for _ in range(2):
        agent.request("GET", server.url + "/hello")

    assert server.wait_for(lambda s: s.stats.open_connections == 0)
    assert targets(server) == [["/hello"], ["/hello"]]
    said = "close" if protocol == "HTTP/1.1" else None
    assert [c.requests[0].header("connection") for c in server.connections] == [said, said]
    assert [c.goaway_code for c in server.connections] == [None if said else 0] * 2


@pytest.mark.http1("the agent cannot know beforehand how many requests a new connection of HTTP/2 takes")
def test_without_keep_alive_a_waiting_request_takes_over(open_agent, gated_server, gates):
    """
    As in Node, `keep_alive=False` with `max_sockets` hands a connection to the request that waits, then closes it.
    """
    agent = open_agent(ca=gated_server.ca_pem, keep_alive=False, max_sockets=1)
    first = hold(agent, gated_server, "/gate/a")
    second = agent.submit("GET", gated_server.url + "/hello")
    assert waiting(agent, 1)

    gates.open("a")

    assert first.result(5).status == 200
    assert second.result(5).reused
    assert gated_server.wait_for(lambda s: s.stats.open_connections == 0)
    assert targets(gated_server) == [["/gate/a", "/hello"]]


@pytest.mark.framing
def test_connection_close_of_the_server_is_obeyed(open_agent, server):
    """
    After `Connection: close` the next request has a new connection, without a retry.
    """
    agent = open_agent(ca=server.ca_pem)

    first = agent.request("GET", server.url + "/close")
    second = agent.request("GET", server.url + "/hello")

    assert first.content == b"Hello, world"
    assert (second.reused, second.attempts) == (False, 1)
    assert targets(server) == [["/close"], ["/hello"]]


@pytest.mark.framing
def test_http_1_0_response_ends_its_connection(open_agent, open_peer):
    """
    An HTTP/1.0 response without keep-alive is the last of its connection.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.send(OK.replace(b"HTTP/1.1", b"HTTP/1.0"))
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    assert agent.request("GET", peer.url).http_version == "HTTP/1.0"
    assert not agent.request("GET", peer.url).reused
    assert wait_until(lambda: all(c.ended for c in peer.connections))
    assert len(peer.connections) == 2


@pytest.mark.framing
def test_why_not_reused_names_the_reason(open_agent, server):
    """
    A response on a new connection says why none was reused.
    """
    agent = open_agent(ca=server.ca_pem)

    first = agent.request("GET", server.url + "/hello")
    agent.close_idle()
    second = agent.request("GET", server.url + "/hello")

    assert first.why_not_reused == "first connection of this key"
    assert "close_idle" in second.why_not_reused


# --- Limits -----------------------------------------------------------------------------------------------------------


def test_max_sockets_bounds_the_connections_of_a_key(open_agent, gated_server, gates):
    """
    With `max_sockets=2` six requests at once use two connections, and all are answered.
    """
    agent = open_agent(ca=gated_server.ca_pem, max_sockets=2)
    futures = [hold(agent, gated_server, "/gate/all") for _ in range(2)]
    futures += [agent.submit("GET", gated_server.url + "/gate/all") for _ in range(4)]
    assert waiting(agent, 4)

    gates.open("all")

    assert [future.result(5).content for future in futures] == [b"open"] * 6
    assert gated_server.stats.connections == 2


def test_max_sockets_counts_each_key_for_itself(open_agent, gated_server, gates):
    """
    A full key does not hold up another one.
    """
    agent = open_agent(ca=gated_server.ca_pem, max_sockets=1)
    first = hold(agent, gated_server, "/gate/a")

    assert agent.request("GET", other_url(gated_server) + "/hello", timeouts=5).status == 200

    gates.open("a")
    assert first.result(5).status == 200
    assert gated_server.stats.connections == 2


def test_max_total_sockets_evicts_an_idle_connection_of_another_key(open_agent, server):
    """
    At the total limit an idle connection of another key is closed first: the server never sees two.
    """
    agent = open_agent(ca=server.ca_pem, max_total_sockets=1)

    agent.request("GET", server.url + "/hello")
    agent.request("GET", other_url(server) + "/hello", timeouts=5)

    first, second = server.connections
    assert server.wait_for(lambda s: left_in_order(s.connections[0]))
    assert (first.request_count, second.request_count) == (1, 1)
    assert server.stats.open_connections == 1


def test_max_total_sockets_makes_another_key_wait_its_turn(open_agent, gated_server, gates):
    """
    A request that the total limit holds up is served when a connection of another key becomes free, which closes.
    """
    agent = open_agent(ca=gated_server.ca_pem, max_total_sockets=1)
    first = hold(agent, gated_server, "/gate/a")
    second = agent.submit("GET", other_url(gated_server) + "/hello")
    assert waiting(agent, 1)
    assert gated_server.stats.connections == 1

    gates.open("a")

    assert first.result(5).status == 200
    assert second.result(5).status == 200
    assert gated_server.wait_for(lambda s: s.stats.open_connections == 1)
    assert targets(gated_server) == [["/gate/a"], ["/hello"]]


@pytest.mark.parametrize("free", [0, 1])
def test_max_free_sockets_bounds_what_is_kept(open_agent, gated_server, gates, protocol, free):
    """
    Of three connections that become idle, `max_free_sockets` stay.
    """
    count = 3 if free or protocol == "HTTP/1.1" else 1  # nothing is kept that would tell what one of HTTP/2 takes
    agent = open_agent(ca=gated_server.ca_pem, max_free_sockets=free)
    futures = [hold(agent, gated_server, "/gate/all") for _ in range(count)]

    gates.open("all")

    assert [future.result(5).status for future in futures] == [200] * count
    assert gated_server.wait_for(lambda s: s.stats.open_connections == free)


# --- Order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheduling", "chosen"), [("lifo", 2), ("fifo", 1)])
def test_scheduling_chooses_among_idle_connections(open_agent, gated_server, gates, scheduling, chosen):
    """
    `lifo` takes the connection that was freed last, `fifo` the one freed first.
    """
    agent = open_agent(ca=gated_server.ca_pem, scheduling=scheduling)
    first, second = hold(agent, gated_server, "/gate/a"), hold(agent, gated_server, "/gate/b")
    gates.open("a")
    first.result(5)
    gates.open("b")
    second.result(5)

    agent.request("GET", gated_server.url + "/hello")

    [on] = [c.id for c in gated_server.connections if c.requests[-1].target == "/hello"]
    assert on == chosen


def test_queue_is_served_in_order(open_agent, gated_server, gates):
    """
    Requests that wait are served first come, first served.
    """
    agent = open_agent(ca=gated_server.ca_pem, max_sockets=1)
    futures = [hold(agent, gated_server, "/gate/a")]
    for number in range(6):
        futures.append(agent.submit("GET", f"{gated_server.url}/hello?{number}"))
        assert waiting(agent, number + 1)

    gates.open("a")

    assert [future.result(5).status for future in futures] == [200] * 7
    assert targets(gated_server) == [["/gate/a", *(f"/hello?{number}" for number in range(6))]]


def test_freed_connection_serves_a_request_that_is_still_dialling(open_agent, gated_server, gates):
    """
    A request is bound to a connection as late as possible: one that becomes free overtakes its handshake.
    """
    agent = open_agent(ca=gated_server.ca_pem, max_sockets=2)
    first = hold(agent, gated_server, "/gate/a")
    gated_server.reconfigure(stall_at="server_hello")
    second = agent.submit("GET", gated_server.url + "/hello")
    assert gated_server.wait_for(lambda s: s.stats.connections == 2)

    gates.open("a")

    assert first.result(5).status == 200
    assert second.result(5).reused
    assert targets(gated_server) == [["/gate/a", "/hello"], []]


def test_connection_attempt_outlives_its_request(open_agent, open_peer):
    """
    A request that gives up while its connection is made leaves the attempt to the next one in the queue.
    """
    go_on = threading.Event()

    def script(connection: PeerConnection) -> None:
        assert go_on.wait(10)
        connection.handshake()
        serve(connection)

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)
    first = agent.submit("GET", peer.url + "/first", timeouts=0.3)
    assert wait_until(lambda: peer.connections)
    second = agent.submit("GET", peer.url + "/second")
    assert waiting(agent, 2)

    with pytest.raises(TotalTimeout):
        first.result(5)
    go_on.set()

    assert second.result(5).content == b"ok"
    assert len(peer.connections) == 1


def test_connection_attempt_of_a_lone_request_becomes_idle(open_async_agent, open_peer):
    """
    In an event loop an attempt whose request was cancelled ends as an idle connection, which the next request takes.
    """
    go_on = threading.Event()

    def script(connection: PeerConnection) -> None:
        assert go_on.wait(10)
        connection.handshake()
        serve(connection)

    peer = open_peer(script, tls=False)
    agent = open_async_agent(ca=peer.ca_pem, max_sockets=1)
    first = agent.submit("GET", peer.url + "/first")
    assert wait_until(lambda: peer.connections)

    first.cancel()
    assert waiting(agent, 0)
    go_on.set()
    assert wait_until(lambda: agent.stats().idle == 1)

    assert agent.request("GET", peer.url + "/second").request_number == 1
    assert len(peer.connections) == 1


@pytest.mark.parametrize("offer", [["http/1.1"], ["h2", "http/1.1"]], ids=["http/1.1", "h2 as well"])
def test_failed_attempt_is_told_to_its_request_and_the_next_is_tried(open_agent, open_peer, offer):
    """
    With `max_sockets=1` a connection that fails costs its own request; the one behind it dials anew. Where the requests
    might have shared it, the failure is theirs; the next request dials anew.
    """
    fail = threading.Event()

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            assert fail.wait(10)
            return
        connection.handshake()
        serve(connection)

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1, alpn_protocols=offer)
    first = agent.submit("GET", peer.url)
    assert wait_until(lambda: peer.connections)
    second = agent.submit("GET", peer.url)
    assert waiting(agent, 2)

    fail.set()

    with pytest.raises(ConnectionError):
        first.result(5)
    if "h2" in offer:
        with pytest.raises(ConnectionError) as caught:
            second.result(5)
        assert caught.value is not first.exception()
        second = agent.submit("GET", peer.url)
    assert second.result(5).content == b"ok"


def test_threads_share_one_agent_without_cross_talk(open_agent, server):
    """
    Sixteen callers over four connections each get their own answers.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=4)

    futures = {n: agent.submit("POST", f"{server.url}/echo?{n}", content=f"body {n}" * 50) for n in range(160)}

    assert all(future.result(20).text == f"body {n}" * 50 for n, future in futures.items())
    # An attempt that nobody needs any more may have been given up half-open, for another in its place.
    assert server.stats.connections - server.stats.handshakes_failed <= 4
    assert server.stats.requests == 160


# --- Idle connections -------------------------------------------------------------------------------------------------


def test_idle_connection_is_closed_after_free_socket_timeout(open_async_agent, server):
    """
    A connection idle for `free_socket_timeout` is closed without anybody asking.
    """
    agent = open_async_agent(ca=server.ca_pem, free_socket_timeout=0.15)

    agent.request("GET", server.url + "/hello")

    assert server.wait_for(lambda s: s.stats.open_connections == 0)
    assert left_in_order(server.connections[0])
    assert agent.stats().closed == {"free_socket_timeout": 1}


def test_connection_idle_for_too_long_is_never_used_again(open_agent, server):
    """
    Past `free_socket_timeout` a request has a new connection, also where no timer runs.
    """
    agent = open_agent(ca=server.ca_pem, free_socket_timeout=0.1)

    agent.request("GET", server.url + "/hello")
    time.sleep(0.15)
    agent.request("GET", server.url + "/hello")

    assert server.wait_for(lambda s: left_in_order(s.connections[0]))
    assert targets(server) == [["/hello"], ["/hello"]]


def test_preconnect_opens_connections_that_requests_then_use(open_agent, gated_server, gates):
    """
    Connections made ahead carry the requests to come, and each tells what its handshake was.
    """
    agent = open_agent(ca=gated_server.ca_pem)

    told = agent.preconnect(gated_server.url, 3)

    assert len(told) == 3
    assert told[0] == "full"
    assert (gated_server.stats.connections, gated_server.stats.requests) == (3, 0)
    futures = [hold(agent, gated_server, "/gate/all") for _ in range(3)]
    gates.open("all")
    assert [future.result(5).reused for future in futures] == [False] * 3
    assert gated_server.stats.connections == 3
    assert gated_server.stats.handshakes_resumed == told.count("resumed")


@pytest.mark.parametrize("leave", ["fin", "close_notify", "reset"])
def test_preconnected_connection_that_the_server_closed(open_agent, open_peer, leave):
    """
    An idle connection is looked at before its first request too: one that is gone by then costs no request.
    """
    connected, gone = threading.Event(), threading.Event()

    def script(connection):
        if connection.number > 1:
            serve(connection)
            return
        connection.flush()
        assert connected.wait(5)
        if leave == "close_notify":
            connection.close_notify()
        getattr(connection, "fin" if leave == "close_notify" else leave)()
        gone.set()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    async def without_a_turn_between():
        await agent.agent.preconnect(peer.url)
        connected.set()
        assert gone.wait(5)
        return await agent.agent.request("POST", peer.url, content=b"once")

    if agent.driver == "threads":
        agent.preconnect(peer.url)
        connected.set()
        assert gone.wait(5)
        response = agent.request("POST", peer.url, content=b"once")
    else:
        response = agent.run(without_a_turn_between())

    assert (response.status, response.attempts) == (200, 1)
    assert len(peer.connections) == 2


def test_preconnect_keeps_to_the_limits(open_agent, server):
    """
    `preconnect` opens no more than `max_sockets` allows.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=2)

    assert len(agent.preconnect(server.url, 5)) == 2
    assert server.stats.connections == 2


@pytest.mark.parametrize("count", [-1, "2", 1.5, None, True])
def test_preconnect_needs_a_whole_number(open_agent, server, count):
    """
    A count that is none is an error of ours, and nothing is opened.
    """
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(OptionError, match="count"):
        agent.preconnect(server.url, count)

    assert server.stats.connections == 0


def test_preconnect_tells_of_a_failure(open_agent):
    """
    An attempt that fails raises its error; no slot is lost.
    """
    agent = open_agent(max_sockets=1)
    url = f"https://127.0.0.1:{closed_port()}"

    for _ in range(2):
        with pytest.raises(ConnectError, match=r"127\.0\.0\.1"):
            agent.preconnect(url)

    assert agent.stats().dialling == 0


def test_close_idle_closes_idle_connections_only(open_agent, gated_server, gates):
    """
    `close_idle` closes what is idle in good order and leaves what is at work.
    """
    agent = open_agent(ca=gated_server.ca_pem)
    busy, idle = hold(agent, gated_server, "/gate/a"), hold(agent, gated_server, "/gate/b")
    gates.open("b")
    idle.result(5)

    agent.close_idle()

    assert gated_server.wait_for(lambda s: left_in_order(s.connections[1]))
    gates.open("a")
    assert busy.result(5).status == 200
    assert agent.request("GET", gated_server.url + "/hello").reused
    assert targets(gated_server) == [["/gate/a", "/hello"], ["/gate/b"]]


# --- Counters and events ----------------------------------------------------------------------------------------------


def test_stats_agree_with_the_server(open_agent, server):
    """
    What the agent counts is what the server saw.
    """
    agent = open_agent(ca=server.ca_pem)
    for _ in range(3):
        agent.request("GET", server.url + "/hello")
    agent.request("GET", other_url(server) + "/hello")

    stats = agent.stats()

    assert (stats.opened, stats.requests, stats.reused) == (server.stats.connections, server.stats.requests, 2)
    assert (stats.active, stats.idle, stats.dialling, stats.waiting) == (0, 2, 0, 0)
    assert (stats.handshakes_full, stats.handshakes_resumed) == (server.stats.handshakes_full, 0)
    assert sorted(counters.requests for counters in stats.by_key.values()) == [1, 3]
    assert stats.bytes_sent > 1_000
    assert stats.bytes_received > 1_000
    agent.close_idle()
    assert agent.stats().closed == {"close_idle": 2}


def test_events_tell_the_life_of_a_connection(open_agent, server):
    """
    Events come in the order of what happened; unsubscribing ends them.
    """
    agent = open_agent(ca=server.ca_pem)
    heard: list[Any] = []
    unsubscribe = agent.agent.on(events.Event, heard.append)

    agent.request("GET", server.url + "/hello")
    agent.request("GET", server.url + "/hello")
    agent.close_idle()
    unsubscribe()
    agent.request("GET", server.url + "/hello")

    names = [type(event).__name__ for event in heard if not isinstance(event, events.SessionTicket)]
    assert names == ["Connecting", "Connected", "Secured", "Freed", "Reused", "Freed", "Closed"]
    assert heard[-1].reason == "close_idle"
    assert len({event.key for event in heard}) == 1
    assert any(isinstance(event, events.SessionTicket) for event in heard)


def test_trace_hears_its_request_alone(open_agent, server):
    """
    `trace` hears the events of one request and of no other.
    """
    agent = open_agent(ca=server.ca_pem)
    heard: list[Any] = []

    agent.request("GET", server.url + "/hello")
    agent.request("GET", server.url + "/hello", trace=heard.append)
    agent.request("GET", server.url + "/hello")

    assert [type(event).__name__ for event in heard] == ["Reused", "Freed"]


def test_event_callback_that_raises_is_logged_and_dropped(open_agent, shared_server, caplog):
    """
    An exception of an event callback harms no request.
    """
    agent = open_agent(ca=shared_server.ca_pem)

    def fail(event: object) -> None:
        raise ZeroDivisionError

    agent.agent.on(events.Event, fail)

    assert agent.request("GET", shared_server.url + "/hello", trace=fail).status == 200
    assert "an event callback failed" in caplog.text


@pytest.mark.parametrize(
    ("kind", "callback"), [(events.Secured, None), (int, print), ("Secured", print), (events.Event("key"), print)]
)
def test_subscription_that_would_hear_nothing_is_refused(open_agent, kind, callback):
    """
    Something else than a class of events, or a callback that cannot be called, is refused at once.
    """
    with pytest.raises(OptionError, match=r"on\(\)"):
        open_agent().agent.on(kind, callback)
