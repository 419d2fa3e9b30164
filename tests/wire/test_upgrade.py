"""Responses that end HTTP: a connection that speaks another protocol from then on."""

from __future__ import annotations

import gc
import threading
import time
import warnings
from typing import Any

import pytest
from wire_peer import OK, PeerConnection, serve, standstill, wait_until

from tlsagent import (
    AgentClosed,
    ConnectionLost,
    InactivityTimeout,
    LocalProtocolError,
    RemoteProtocolError,
    RequestError,
    Timeouts,
    events,
)

UPGRADE = {"Upgrade": "echo", "Connection": "Upgrade"}
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"


def echo(connection: PeerConnection) -> None:
    """Send back what comes."""
    while data := connection.recv():
        connection.send(data)


def switch(connection: PeerConnection) -> None:
    """Serve requests; one with Upgrade switches to an echo."""
    while True:
        head = connection.recv_head().lower()
        if b"upgrade" in head or head.startswith(b"connect"):
            connection.send(SWITCH if b"upgrade" in head else b"HTTP/1.1 200 Connected\r\n\r\n")
            echo(connection)
            return
        connection.send(OK)


# --- 101 --------------------------------------------------------------------------------------------------------------


def test_upgrade_gives_the_connection(open_agent, open_peer):
    """
    After a 101 the caller has the connection: bytes go both ways, and closing it is done in good order.
    """
    heads: list[bytes] = []

    def script(connection: PeerConnection) -> None:
        heads.append(connection.recv_head())
        connection.send(SWITCH)
        echo(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    with agent.stream("GET", peer.url + "/chat", headers=UPGRADE) as response:
        raw = response.upgrade()
    raw.send(b"hello")
    received = raw.recv()
    raw.send(b"abcdef")

    assert (response.status, response.reason, response.headers["upgrade"]) == (101, "Switching Protocols", "echo")
    assert b"Upgrade: echo\r\nConnection: Upgrade" in heads[0]
    assert received == b"hello"
    assert (raw.recv(4), raw.recv(4)) == (b"abcd", b"ef")
    assert raw.info.id == response.connection.id
    raw.close()
    raw.close()
    assert wait_until(lambda: peer.connections[0].ended == "close_notify")


@pytest.mark.parametrize("later", [None, 0, 0.03], ids=["same record", "next record", "30 ms later"])
def test_bytes_behind_the_head_belong_to_the_new_protocol(open_agent, open_peer, later):
    """
    What the server says at once comes first, whatever it looks like and however it was cut.
    """
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        if later is None:
            connection.send(SWITCH + first)
        elif later == 0:
            connection.send(SWITCH, first)
        else:
            connection.send(SWITCH)
            connection.peer.leave.wait(later)
            connection.send(first)
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.open_stream("GET", peer.url, headers=UPGRADE).upgrade()

    received = b""
    while len(received) < len(first):
        received += raw.recv()
    raw.close()

    assert received == first


def test_upgraded_connection_holds_its_slot(open_agent, open_peer):
    """
    Until it is closed it counts against `max_sockets`; whoever waits gets a new connection then, never this one.
    """
    peer = open_peer(switch)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)
    agent.request("GET", peer.url)
    response = agent.open_stream("GET", peer.url, headers=UPGRADE)
    raw = response.upgrade()
    waiting = agent.submit("GET", peer.url, timeouts=10)
    assert wait_until(lambda: agent.stats().waiting == 1)
    assert (agent.stats().active, agent.stats().idle) == (1, 0)

    raw.close()

    assert waiting.result(5).content == b"ok"
    assert response.reused
    assert not waiting.result().reused
    assert len(peer.connections) == 2
    assert (agent.stats().active, agent.stats().opened, agent.stats().closed) == (0, 2, {"close": 1})


def test_events_of_an_upgraded_connection(open_agent, open_peer):
    """
    Its end is told once, with its reason; free it never is.
    """
    told: list[events.Event] = []
    peer = open_peer(switch)
    agent = open_agent(ca=peer.ca_pem)
    agent.agent.on(events.Event, told.append)
    raw = agent.open_stream("GET", peer.url, headers=UPGRADE).upgrade()
    raw.send(b"x")
    assert raw.recv() == b"x"

    raw.close()

    kinds = [type(event) for event in told if not isinstance(event, events.SessionTicket)]
    assert kinds == [events.Connecting, events.Connected, events.Secured, events.Closed]
    assert [event.reason for event in told if isinstance(event, events.Closed)] == ["close"]


def test_much_data_flows_both_ways(open_agent, open_peer):
    """
    Megabytes go out and come back whole.
    """
    total = 4 << 20

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.send(SWITCH)
        data = connection.recv_exactly(total)
        connection.send(data)
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.open_stream("GET", peer.url, headers=UPGRADE).upgrade()

    raw.send(b"m" * total)
    received = 0
    while received < total:
        received += len(raw.recv())
    raw.close()

    assert received == total


def test_nothing_is_read_before_the_connection_is_taken_over(open_agent, open_peer):
    """
    A server that floods at once is held back until `upgrade()`, and while the caller does not read; nothing is lost.
    """
    total = 512 * 65_536
    sent = 0

    def script(connection: PeerConnection) -> None:
        nonlocal sent
        connection.recv_head()
        connection.send(SWITCH)
        while sent < total:
            connection.send(bytes(65_536))
            sent += 65_536
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    response = agent.open_stream("GET", peer.url, headers=UPGRADE)
    held_at = standstill(lambda: sent)
    raw = response.upgrade()
    received = len(raw.recv())
    held_again = standstill(lambda: sent)
    while received < total:
        received += len(raw.recv())
    raw.close()

    assert held_at <= held_again < total // 2
    assert received == total


def test_response_that_was_not_switched_cannot_be_taken_over(open_agent, open_peer):
    """
    A server may decline: its response is an ordinary one, and the connection is used again.
    """
    peer = open_peer(serve)
    agent = open_agent(ca=peer.ca_pem)

    with agent.stream("GET", peer.url, headers=UPGRADE) as response:
        with pytest.raises(LocalProtocolError, match="answered 200") as caught:
            response.upgrade()
        assert response.read() == b"ok"

    assert caught.value.code == "ERR_TLSAGENT_NOT_SWITCHED"
    assert agent.request("GET", peer.url).reused


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({}, SWITCH),
        ({"Upgrade": "echo"}, SWITCH),
        (UPGRADE, SWITCH.replace(b"echo", b"other")),
        (UPGRADE, SWITCH.replace(b"Upgrade: echo\r\n", b"")),
    ],
    ids=["no proposal", "no option", "other protocol", "no protocol"],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_switch_that_nobody_asked_for(open_agent, open_peer, headers, answer, streamed):
    """
    A 101 without a proposal, or to something else, is an error, and the connection goes.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_request()
        connection.send(answer)
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    with pytest.raises(RemoteProtocolError, match=r"nobody asked for|without saying to which|malformed"):
        (agent.open_stream if streamed else agent.request)("GET", peer.url, headers=headers)

    assert wait_until(lambda: peer.connections[0].ended)
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_request_cannot_return_a_connection(open_agent, open_peer, method):
    """
    A switch is an error for `request`, which says what to use; the connection goes, and the slot is free.
    """
    peer = open_peer(switch)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    with pytest.raises(LocalProtocolError, match=r"use stream\(\) or open_stream\(\), and upgrade\(\)") as caught:
        agent.request(method, peer.url, headers=UPGRADE if method == "GET" else None, timeouts=10)

    assert (caught.value.code, caught.value.request_sent) == ("ERR_TLSAGENT_SWITCHED", True)
    assert wait_until(lambda: peer.connections[0].ended)
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


def test_switched_response_has_no_body(open_agent, open_peer):
    """
    Reading it gives nothing, and leaves the connection to be taken over.
    """
    peer = open_peer(switch)
    agent = open_agent(ca=peer.ca_pem)

    with agent.stream("GET", peer.url, headers=UPGRADE) as response:
        assert response.read() == b""
        assert list(response.iter_bytes()) == []
        raw = response.upgrade()
        raw.send(b"x")
        assert raw.recv() == b"x"
    raw.close()


def test_switched_response_that_is_closed(open_agent, open_peer):
    """
    Leaving it without `upgrade()` costs the connection and frees the slot.
    """
    peer = open_peer(switch)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    with agent.stream("GET", peer.url, headers=UPGRADE):
        pass

    assert wait_until(lambda: peer.connections[0].ended)
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


@pytest.mark.parametrize("what", ["response", "connection"])
def test_dropped_unclosed_it_frees_its_slot(open_agent, open_peer, what):
    """
    A switched response, or the connection taken over from it, that is collected unclosed gives a ResourceWarning, and
    its slot back.
    """
    peer = open_peer(switch)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        held: list[Any] = [agent.open_stream("GET", peer.url, headers=UPGRADE)]
        if what == "connection":
            held.append(held[0].upgrade())
            held[1].send(b"x")
            assert held[1].recv() == b"x"
        held.clear()
        gc.collect()
        assert agent.request("GET", peer.url, timeouts=5).content == b"ok"

    assert [w.category for w in caught] == [ResourceWarning]
    assert "dropped" in str(caught[0].message)
    assert wait_until(lambda: peer.connections[0].ended)


def test_upgrade_twice_is_one_connection(open_agent, open_peer):
    """
    There is one connection to take over: asked again, the response gives the same.
    """
    peer = open_peer(switch)
    agent = open_agent(ca=peer.ca_pem)
    response = agent.open_stream("GET", peer.url, headers=UPGRADE)

    first, second = response.upgrade(), response.upgrade()
    first.send(b"x")

    assert second.recv() == b"x"
    first.close()


# --- Its end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close_notify", "fin", "reset"])
def test_peer_that_ends_an_upgraded_connection(open_agent, open_peer, how):
    """
    What came before is received; after close_notify there is b"", else an error. The slot is free once it is closed.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_head()
        connection.send(SWITCH)
        connection.recv()
        connection.send(b"bye")
        assert received.wait(5)
        getattr(connection, how)()

    received = threading.Event()
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)
    raw = agent.open_stream("GET", peer.url, headers=UPGRADE).upgrade()
    raw.send(b"x")
    assert raw.recv() == b"bye"
    received.set()

    for _ in range(2):
        if how == "close_notify":
            assert raw.recv() == b""
        else:
            with pytest.raises(ConnectionLost):
                raw.recv()
    with pytest.raises(ConnectionLost):
        raw.send(b"too late")
    raw.close()

    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"
    assert agent.stats().active == 0


def test_peer_that_ends_before_the_connection_is_taken_over(open_agent, open_peer):
    """
    Head, last words and end in one go: the caller still gets them.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection._ssl.write(SWITCH + b"bye")
        connection.close_notify()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.open_stream("GET", peer.url, headers=UPGRADE).upgrade()

    assert raw.recv() == b"bye"
    assert raw.recv() == b""
    raw.close()
    assert agent.stats().active == 0


def test_inactivity_ends_it(open_agent, open_peer):
    """
    `timeout` counts from the last byte in either direction; no other timeout of the request does any more.
    """
    peer = open_peer(switch)
    limits = Timeouts(total=0.3, read=0.2, response=0.2, send=0.2)
    agent = open_agent(ca=peer.ca_pem, timeout=0.5, timeouts=limits)
    raw = agent.open_stream("GET", peer.url, headers=UPGRADE).upgrade()
    begun = time.monotonic()
    for _ in range(4):
        time.sleep(0.15)
        raw.send(b"x")
        assert raw.recv() == b"x"
    assert time.monotonic() - begun > 0.5

    with pytest.raises(InactivityTimeout):
        raw.recv()

    raw.close()
    assert agent.stats().active == 0
    assert agent.stats().closed == {"timeout": 1}


@pytest.mark.parametrize("how", ["close", "destroy"])
def test_agent_that_ends_takes_it_along(open_agent, open_peer, how):
    """
    An agent that closes waits for it as for a request, and then ends it.
    """
    peer = open_peer(switch)
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.open_stream("GET", peer.url, headers=UPGRADE).upgrade()
    begun = time.monotonic()

    if how == "close":
        agent.close(drain=0.2)
        assert time.monotonic() - begun >= 0.19
    else:
        agent.destroy()

    assert wait_until(lambda: peer.connections[0].ended)
    with pytest.raises((RequestError, AgentClosed)):
        raw.recv()
    raw.close()
    assert agent.stats().active == 0


# --- CONNECT ----------------------------------------------------------------------------------------------------------


def test_connect_opens_a_tunnel(open_agent, open_peer):
    """
    CONNECT asks for host and port of the URL, default port or not; a 2xx gives the connection, framing or not.
    """
    heads: list[bytes] = []

    def script(connection: PeerConnection) -> None:
        heads.append(connection.recv_head())
        connection.send(b"HTTP/1.1 200 Connection established\r\nContent-Length: 7\r\n\r\nwelcome")
        echo(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    there = {"host": "127.0.0.1", "port": peer.port, "servername": "localhost"}

    with agent.stream("CONNECT", "https://far.test", options=there) as response:
        raw = response.upgrade()
    received = raw.recv()
    raw.send(b"hello")
    assert raw.recv() == b"hello"
    raw.close()

    assert heads[0].split(b"\r\n")[:2] == [b"CONNECT far.test:443 HTTP/1.1", b"Host: far.test:443"]
    assert len(heads[0].split(b"\r\n")) == 2
    assert received == b"welcome"
    assert wait_until(lambda: peer.connections[0].ended == "close_notify")


def test_tunnel_that_is_refused(open_agent, open_peer):
    """
    Any other answer to CONNECT is a response with its body, also for `request`; the connection is used again.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    response = agent.request("CONNECT", peer.url)

    assert (response.status, response.content) == (403, b"no")
    assert agent.request("GET", peer.url).reused


def test_connect_has_neither_content_nor_path(open_agent, server):
    """
    What cannot be part of a CONNECT is refused before any I/O.
    """
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(LocalProtocolError, match="no content"):
        agent.request("CONNECT", server.url, content=b"x")
    with pytest.raises(LocalProtocolError, match="path"):
        agent.request("CONNECT", server.url + "/x")

    assert server.stats.connections == 0


@pytest.mark.parametrize("method", ["GET", "POST", "CONNECT"])
def test_embedded_server_switches(open_agent, server, method):
    """
    The demo routes of the embedded server switch to an echo, and a request without a proposal is told so.
    """
    agent = open_agent(ca=server.ca_pem)
    url = server.url if method == "CONNECT" else server.url + "/upgrade"
    content = b"body" if method == "POST" else None

    with agent.stream(method, url, headers=None if method == "CONNECT" else UPGRADE, content=content) as response:
        raw = response.upgrade()
    raw.send(b"hello")
    assert raw.recv() == b"hello"
    raw.close()

    assert agent.request("GET", server.url + "/upgrade").status == 426
