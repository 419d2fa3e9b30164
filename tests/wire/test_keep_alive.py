"""How long and how often a connection is used: the server's hints and our own limits, read at the server."""

from __future__ import annotations

import time

import pytest
from wire_peer import left_in_order

from tlsagent import events


def _with_hint(hint: str):
    async def app(scope, receive, send):
        headers = [(b"content-length", b"2"), (b"keep-alive", hint.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


@pytest.mark.http1("Keep-Alive is a field of HTTP/1.1")
@pytest.mark.parametrize("hint", ["timeout=1", "max=100, timeout=1", "TIMEOUT=1", "timeout = 0"])
@pytest.mark.framing
def test_hint_of_no_use_ends_the_connection(open_agent, new_server, hint):
    """
    A Keep-Alive hint that leaves no time after the margin ends the connection, whatever its case and order.
    """
    with new_server(app=_with_hint(hint)) as server:
        agent = open_agent(ca=server.ca_pem)

        assert [agent.request("GET", server.url).reused for _ in range(2)] == [False, False]
        assert agent.agent.stats().closed["keep_alive_hint"] == 2


@pytest.mark.http1("Keep-Alive is a field of HTTP/1.1")
@pytest.mark.parametrize("hint", ["timeout=5", "max=7", "timeout=soon", "timeout=99999999999999999999"])
@pytest.mark.framing
def test_hint_that_leaves_time_keeps_the_connection(open_agent, new_server, hint):
    """
    A Keep-Alive hint beyond the margin, or one that says nothing, lets the next request use the connection.
    """
    with new_server(app=_with_hint(hint)) as server:
        agent = open_agent(ca=server.ca_pem)

        assert [agent.request("GET", server.url).reused for _ in range(2)] == [False, True]


@pytest.mark.http1("Keep-Alive is a field of HTTP/1.1")
def test_hint_shortens_the_idle_time(open_agent, new_server):
    """
    A connection is not used once the hint, less the margin, has passed, nor longer than `free_socket_timeout`.
    """
    with new_server(app=_with_hint("timeout=1")) as server:
        agent = open_agent(ca=server.ca_pem, keep_alive_hint_margin=0.9)

        agent.request("GET", server.url)
        assert agent.request("GET", server.url).reused
        time.sleep(0.15)
        assert not agent.request("GET", server.url).reused


def test_connection_serves_so_many_requests(open_agent, server):
    """
    After `max_requests_per_socket` requests a connection is closed, and the next request opens another.
    """
    agent = open_agent(ca=server.ca_pem, max_requests_per_socket=2)

    numbers = [agent.request("GET", server.url + "/hello").request_number for _ in range(5)]

    assert numbers == [1, 2, 1, 2, 1]
    assert server.wait_for(lambda s: all(map(left_in_order, s.connections[:2])))


def test_connection_past_its_lifetime_is_not_used(open_agent, server):
    """
    A connection older than `max_lifetime` serves no further request, idle or just freed.
    """
    agent = open_agent(ca=server.ca_pem, max_lifetime=0.2)

    assert [agent.request("GET", server.url + "/hello").reused for _ in range(2)] == [False, True]
    time.sleep(0.25)
    assert not agent.request("GET", server.url + "/hello").reused
    agent.request("GET", server.url + "/delay/0.25")
    assert not agent.request("GET", server.url + "/hello").reused


def test_lifetime_that_is_over_before_the_first_request(open_agent, server):
    """
    A lifetime shorter than it takes to begin a request gives each request a connection of its own, and one is enough;
    of those that wait together some may still share one.
    """
    agent = open_agent(ca=server.ca_pem, max_lifetime=1e-6)

    one_by_one = [agent.request("GET", server.url + "/hello", timeouts=10) for _ in range(3)]
    assert [response.reused for response in one_by_one] == [False] * 3
    assert agent.stats().opened == 3

    together = [agent.submit("GET", server.url + "/hello", timeouts=10) for _ in range(8)]
    assert {future.result(15).status for future in together} == {200}
    assert agent.stats().opened <= 3 + 8


def test_network_that_changes_whenever_a_connection_opens(open_agent, server):
    """
    A connection in its handshake while the network changes serves who waits for it, and nobody else.
    """
    agent = open_agent(ca=server.ca_pem)
    agent.agent.on(events.Secured, lambda _event: agent.agent.network_changed())

    responses = [agent.request("GET", server.url + "/hello", timeouts=10) for _ in range(3)]

    assert [response.reused for response in responses] == [False] * 3
    assert agent.stats().opened == 3


def test_after_a_change_of_network_every_connection_is_new(open_agent, server):
    """
    `network_changed` closes idle connections at once and active ones when they are done.
    """
    agent = open_agent(ca=server.ca_pem)
    agent.preconnect(server.url, 2)
    active = agent.submit("GET", server.url + "/delay/0.3")
    assert server.wait_for(lambda s: s.stats.requests == 1)

    agent.call(agent.agent.network_changed) if agent.driver != "threads" else agent.agent.network_changed()

    assert server.wait_for(lambda s: s.stats.open_connections == 1)
    assert active.result(5).status == 200
    assert not agent.request("GET", server.url + "/hello").reused
    assert agent.agent.stats().closed["network_changed"] == 2
