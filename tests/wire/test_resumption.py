"""
TLS sessions from the server's side: who resumes, with which ticket, how often, and what is never offered.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

import pytest
from tls_support import VERSIONS, hello_of, offers_session, tickets_offered
from wire_peer import OK, PeerConnection

from tlsagent import CertificateError, OptionTypeError, events
from tlsagent.testing import Authority

pytestmark = pytest.mark.tls

KINDS: dict[str, dict[str, Any]] = {
    "TLS 1.2, ticket": {"max_version": "TLSv1.2"},
    "TLS 1.2, session id": {"max_version": "TLSv1.2", "session_ids": True},
    "TLS 1.3, ticket": {"min_version": "TLSv1.3"},
    "TLS 1.3, stateful": {"min_version": "TLSv1.3", "session_ids": True},
}


def resumed(server: Any) -> list[bool | None]:
    """Return of each connection whether the server resumed a session for it."""
    return [connection.session_reused for connection in server.connections]


def offered(server: Any) -> list[bool]:
    """Return of each connection whether the client offered a session."""
    return [offers_session(connection) for connection in server.connections]


class Store:
    """A user's store: one list for each scope, and an account of the calls."""

    def __init__(self) -> None:
        self.sessions: dict[Any, list[Any]] = {}
        self.calls: list[str] = []
        self.open = True

    def take(self, scope: Any) -> Any:
        self.calls.append("take")
        held = self.sessions.get(scope)
        return held.pop() if held else None

    def put(self, scope: Any, session: Any) -> None:
        self.calls.append("put")
        if self.open:
            self.sessions.setdefault(scope, []).append(session)

    def discard(self, scope: Any) -> None:
        self.calls.append("discard")
        self.sessions.pop(scope, None)


# --- Resumption -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_next_connection_is_resumed(open_agent, new_server, kind):
    """
    Every connection after the first resumes, and says so.
    """
    with new_server(**KINDS[kind]) as server:
        agent = open_agent(ca=server.ca_pem)

        infos = [agent.request("GET", server.url + "/close").connection for _ in range(4)]

    assert resumed(server) == [False, True, True, True]
    assert [info.session_reused for info in infos] == [False, True, True, True]
    assert all(info.authorized for info in infos)
    assert [info.why_not_resumed for info in infos] == ["no session was at hand", None, None, None]
    stats = agent.stats()
    assert (stats.handshakes_full, stats.handshakes_resumed, stats.sessions_taken) == (1, 3, 3)


@pytest.mark.parametrize("version", VERSIONS)
def test_client_certificate_travels_in_the_session(open_agent, new_server, version):
    """
    A server that demands a client certificate resumes the session of one that showed it.
    """
    authority = Authority()
    client = authority.issue("client@tlsagent.test", client=True)
    with new_server(
        request_cert="demand", client_ca=authority.ca_pem, min_version=version, max_version=version
    ) as server:
        agent = open_agent(ca=server.ca_pem, cert=client.cert_pem, key=client.key_pem)

        for _ in range(2):
            assert agent.request("GET", server.url + "/close").status == 200

    assert resumed(server) == [False, True]


def test_raw_connection_shares_the_sessions(open_agent, server):
    """
    `connect` resumes a session that a request brought, and leaves its own to the next request.
    """
    agent = open_agent(ca=server.ca_pem)
    agent.request("GET", server.url + "/close")

    raw = agent.connect("localhost", server.port)
    assert raw.info.session_reused
    raw.send(b"GET /close HTTP/1.1\r\nhost: localhost\r\n\r\n")
    while raw.recv():
        pass
    raw.close()
    agent.request("GET", server.url + "/close")

    assert resumed(server) == [False, True, True]


def test_preconnect_tells_how_each_went(open_agent, server):
    """
    `preconnect` reports a full handshake, then resumed ones.
    """
    agent = open_agent(ca=server.ca_pem)
    assert agent.preconnect(server.url, 1) == ["full"]
    agent.request("GET", server.url + "/hello")

    assert agent.preconnect(server.url, 1) == ["resumed"]

    assert server.wait_for(lambda s: resumed(s) == [False, True])


# --- TLS 1.3 tickets --------------------------------------------------------------------------------------------------


def test_every_ticket_of_a_connection_is_kept(open_agent, new_server):
    """
    Four tickets of one connection resume four connections, each with a ticket of its own.
    """
    store = Store()
    with new_server(min_version="TLSv1.3", tickets=4) as server:
        agent = open_agent(ca=server.ca_pem, session_store=store)
        agent.request("GET", server.url + "/close")
        store.open = False  # so that what the next connections bring does not count

        for _ in range(5):
            agent.request("GET", server.url + "/close")

    assert resumed(server) == [False, True, True, True, True, False]
    tickets = [ticket for connection in server.connections for ticket in tickets_offered(connection)]
    assert len(set(tickets)) == 4


@pytest.mark.http1("one connection of HTTP/2 carries all these requests")
def test_built_in_store_holds_eight_sessions_of_a_scope(open_agent, new_server, gates):
    """
    The store of the agent keeps several tickets, so that connections that open at once all resume.
    """
    with new_server(app=gates, min_version="TLSv1.3", tickets=8) as server:
        agent = open_agent(ca=server.ca_pem)
        agent.request("GET", server.url + "/close")

        futures = [agent.submit("GET", f"{server.url}/gate/all") for _ in range(6)]
        assert server.wait_for(lambda s: s.stats.requests == 7)
        gates.open("all")
        assert {future.result(10).status for future in futures} == {200}

    assert server.stats.connections == 7
    assert resumed(server) == [False] + [True] * 6


def test_ticket_is_used_once(open_agent, new_server, gates):
    """
    Connections that open at the same time never offer the same TLS 1.3 ticket (RFC 8446 C.4).
    """
    with new_server(app=gates, min_version="TLSv1.3", tickets=1) as server:
        agent = open_agent(ca=server.ca_pem)
        agent.request("GET", server.url + "/close")

        futures = [agent.submit("GET", f"{server.url}/gate/all") for _ in range(8)]
        assert server.wait_for(lambda s: s.stats.requests == 9)
        gates.open("all")
        assert {future.result(10).status for future in futures} == {200}

        tickets = [ticket for connection in server.connections for ticket in tickets_offered(connection)]
    assert 1 <= len(tickets) == len(set(tickets))
    assert server.stats.handshakes_resumed == len(tickets)


def test_ticket_of_an_attempt_that_failed_is_not_used_again(open_agent, open_peer):
    """
    A ticket that was offered is spent, even if that handshake came to nothing.
    """
    hellos: list[Any] = []

    def script(connection: PeerConnection) -> None:
        hellos.append(_Hello(_peek(connection)))
        if connection.number == 2:
            return connection.reset()
        connection.handshake()
        connection.recv_request()
        connection.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return connection.close_notify()

    peer = open_peer(script, tls=False, tickets=1, min_version="TLSv1.3")
    agent = open_agent(ca=peer.ca_pem)
    agent.request("GET", peer.url)

    with contextlib.suppress(ConnectionError):  # it may be tried again, but not with that ticket
        agent.request("GET", peer.url)
    agent.request("GET", peer.url)

    tickets = [tickets_offered(hello) for hello in hellos]
    assert [len(one) for one in tickets[:2]] == [0, 1]
    assert not any(tickets[1][0] in one for one in tickets[2:])


class _Hello:
    def __init__(self, client_hello: bytes) -> None:
        self.client_hello = client_hello


def _peek(connection: PeerConnection) -> bytes:
    """Return the client's first record and leave it in the socket."""
    size = 5
    while True:
        head = connection.sock.recv(size, socket.MSG_PEEK)
        if len(head) >= 5:
            size = 5 + int.from_bytes(head[3:5], "big")
        if len(head) == size > 5:
            return head


def test_tickets_that_come_late_are_kept(open_agent, open_peer):
    """
    Tickets that arrive on an idle connection are stored, and the connection lives: they are no stray data.
    """
    late = threading.Event()
    sent = threading.Event()

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            assert late.wait(10)
        connection.flush()  # the tickets; the client was done with the handshake long before
        sent.set()
        connection.recv_request()
        connection.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        connection.close_notify()

    peer = open_peer(script, min_version="TLSv1.3")
    agent = open_agent(ca=peer.ca_pem)
    assert agent.preconnect(peer.url, 1) == ["full"]
    late.set()
    assert sent.wait(10)

    first = agent.request("GET", peer.url)
    second = agent.request("GET", peer.url)

    assert len(peer.connections) == 2
    assert not first.connection.session_reused
    assert second.connection.session_reused


@pytest.mark.parametrize("at_once", [True, False])
def test_ticket_and_response_in_any_packing(open_agent, open_peer, at_once):
    """
    Tickets count whether they share the packet of the response or come before it, byte by byte.
    """

    def script(connection: PeerConnection) -> None:
        response = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        if connection.number == 1 and not at_once:
            tickets = connection._outgoing.read()
            for at in range(len(tickets)):
                connection.sock.sendall(tickets[at : at + 1])
        connection.recv_request()
        connection.send(response)
        connection.close_notify()

    peer = open_peer(script, min_version="TLSv1.3")
    agent = open_agent(ca=peer.ca_pem)

    agent.request("GET", peer.url)

    assert agent.request("GET", peer.url).connection.session_reused


@pytest.mark.http1("one connection of HTTP/2 carries all these requests")
def test_tls12_session_is_used_again(open_agent, new_server, gates):
    """
    A session of TLS 1.2 serves any number of connections, also at once: its server expects it again.
    """
    with new_server(app=gates, max_version="TLSv1.2") as server:
        agent = open_agent(ca=server.ca_pem)
        agent.request("GET", server.url + "/close")

        futures = [agent.submit("GET", f"{server.url}/gate/all") for _ in range(4)]
        assert server.wait_for(lambda s: s.stats.requests == 5)
        gates.open("all")
        assert {future.result(10).status for future in futures} == {200}

    assert resumed(server) == [False] + [True] * 4


# --- Sessions that are no use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_server_that_forgot_gets_a_full_handshake(open_agent, new_server, kind):
    """
    A server that no longer knows the session it is offered is met with a full handshake, and resumption works again.
    """
    with new_server(**KINDS[kind]) as server:
        agent = open_agent(ca=server.ca_pem)
        agent.request("GET", server.url + "/close")
        server.rotate_ticket_keys()

        info = agent.request("GET", server.url + "/close").connection
        agent.request("GET", server.url + "/close")

    # TLS 1.3 offers the second ticket of the forgotten lot only if the new ones were not preferred.
    assert resumed(server) == [False, False, True]
    assert offered(server)[1:] == [True, True] or "session id" in kind
    assert info.authorized
    assert info.why_not_resumed == "the server did not take the session"


@pytest.mark.parametrize("version", VERSIONS)
def test_full_handshake_after_a_refused_session_verifies_anew(open_agent, new_server, version):
    """
    A server that comes back with a bad certificate is refused, whatever session is offered to it.
    """
    with new_server(min_version=version, max_version=version) as server:
        agent = open_agent(ca=server.ca_pem)
        agent.request("GET", server.url + "/close")
        server.reconfigure(credentials=Authority().issue("localhost"))

        with pytest.raises(CertificateError):
            agent.request("GET", server.url + "/hello")

    assert offered(server) == [False, True]
    assert server.stats.requests == 1


@pytest.mark.parametrize("how", ["alert", "close"])
@pytest.mark.parametrize("version", VERSIONS)
def test_refused_resumption_is_tried_again_without(open_agent, new_server, how, version):
    """
    A server that answers an offered session with an alert or a closed socket gets one more attempt at once, without a
    session.
    """
    with new_server(min_version=version, max_version=version, refuse_resumption=how) as server:
        agent = open_agent(ca=server.ca_pem)
        agent.request("GET", server.url + "/close")
        began = time.monotonic()

        response = agent.request("GET", server.url + "/close")

    assert response.status == 200
    assert time.monotonic() - began < 5
    assert offered(server) == [False, True, False]


@pytest.mark.parametrize("version", VERSIONS)
def test_expired_session_is_not_offered(open_agent, new_server, version, monkeypatch):
    """
    A session whose lifetime is over stays at home.
    """
    with new_server(min_version=version, max_version=version) as server:
        agent = open_agent(ca=server.ca_pem)
        agent.request("GET", server.url + "/close")
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 8 * 86_400)  # RFC 8446 4.6.1: seven days at most

        agent.request("GET", server.url + "/close")

    assert offered(server) == [False, False]
    assert resumed(server) == [False, False]


@pytest.mark.parametrize("version", VERSIONS)
def test_without_a_cache_nothing_is_resumed(open_agent, new_server, version):
    """
    `max_cached_sessions=0` turns resumption off: no session is ever offered.
    """
    with new_server(min_version=version, max_version=version) as server:
        agent = open_agent(ca=server.ca_pem, max_cached_sessions=0)

        for _ in range(3):
            agent.request("GET", server.url + "/close")

    assert offered(server) == resumed(server) == [False] * 3
    assert agent.stats().sessions_stored == 0


def test_cache_forgets_the_scope_not_used_for_longest(open_agent, new_server):
    """
    `max_cached_sessions` bounds the scopes that are remembered; the one not used for longest goes.
    """
    with new_server(names=("a.test", "b.test", "c.test")) as server:
        agent = open_agent(ca=server.ca_pem, host="127.0.0.1", max_cached_sessions=2)

        for name in ("a", "b", "a", "c", "a", "b"):
            agent.request("GET", f"https://{name}.test:{server.port}/close")

    assert resumed(server) == [False, False, True, False, True, False]


def test_other_agent_starts_anew(open_agent, server):
    """
    Sessions belong to an agent: another one with equal options does not offer them.
    """
    for _ in range(2):
        open_agent(ca=server.ca_pem).request("GET", server.url + "/close")

    assert offered(server) == [False, False]


# --- Scopes -----------------------------------------------------------------------------------------------------------

AUTHORITY = Authority()
CLIENT = AUTHORITY.issue("client@tlsagent.test", client=True)
OTHER_CLIENT = AUTHORITY.issue("other@tlsagent.test", client=True)


def accept(_host: str, _certificate: Any) -> None:
    """A hook that accepts."""


def as_client(client: Any) -> dict[str, Any]:
    return {"cert": client.cert_pem, "key": client.key_pem}


SCOPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "servername": ({"servername": "localhost"}, {"servername": "also.test"}),
    "no servername": ({}, {"servername": ""}),
    "ca": ({}, {"ca": None}),
    "client certificate": (as_client(CLIENT), as_client(OTHER_CLIENT)),
    "client certificate set": ({}, as_client(CLIENT)),
    "client certificate taken away": (as_client(CLIENT), {}),
    "lax, then strict": ({"reject_unauthorized": False}, {}),
    "strict, then lax": ({}, {"reject_unauthorized": False}),
    "check_server_identity": ({}, {"check_server_identity": accept}),
    "check_server_identity taken away": ({"check_server_identity": accept}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCOPES)
def test_session_stays_with_its_identity(open_agent, new_server, name, kind):
    """
    A session made under one identity is not offered under another, though it resumes under its own.
    """
    one, other = SCOPES[name]
    authority = {} if name == "ca" else {"client_ca": AUTHORITY.ca_pem}
    settings = {**KINDS[kind], **authority}
    with new_server(names=("localhost", "also.test"), request_cert=True, **settings) as server:
        # One version only, so that a session id in the ClientHello means something.
        version = {name: value for name, value in KINDS[kind].items() if name.endswith("version")}
        agent = open_agent(ca=server.ca_pem, **version)
        for options in (one, one):
            agent.request("GET", server.url + "/close", options=options)

        try:
            agent.request("GET", server.url + "/close", options=other)
        except ConnectionError:
            assert name == "ca"  # certifi's roots do not know the server: it is the ClientHello that counts here

    assert offered(server) == [False, True, False]
    assert resumed(server)[:2] == [False, True]


# --- A store of the user's --------------------------------------------------------------------------------------------


def test_store_of_the_user_is_used(open_agent, server):
    """
    A `session_store` replaces the built-in one: it is asked before each handshake and given each session.
    """
    store = Store()
    agent = open_agent(ca=server.ca_pem, session_store=store)

    for _ in range(2):
        agent.request("GET", server.url + "/close")

    assert resumed(server) == [False, True]
    assert store.calls[0] == "take"
    assert store.calls.count("take") == 2
    assert store.calls.count("put") == agent.stats().sessions_stored >= 3


def test_store_may_be_shared_by_agents(open_agent, server):
    """
    Two agents with one store resume each other's sessions, under equal options only.
    """
    store = Store()
    settings = {"ca": server.ca_pem, "session_store": store}

    open_agent(**settings).request("GET", server.url + "/close")
    open_agent(**settings).request("GET", server.url + "/close")
    open_agent(**settings, servername="").request("GET", server.url + "/close")

    assert offered(server) == [False, True, False]


def test_store_is_called_without_a_lock(open_agent, server):
    """
    A store may use the agent it serves: no lock is held while it is called.
    """
    seen = []

    class Curious(Store):
        def take(self, scope: Any) -> Any:
            seen.append(agent.agent.stats())
            return super().take(scope)

        def put(self, scope: Any, session: Any) -> None:
            seen.append(agent.agent.stats())
            super().put(scope, session)

    agent = open_agent(ca=server.ca_pem, session_store=Curious())

    for _ in range(2):
        agent.request("GET", server.url + "/close")

    assert len(seen) > 3
    assert resumed(server) == [False, True]


def test_expired_session_of_a_store_is_discarded(open_agent, server, monkeypatch):
    """
    A store that hands out an expired session is told to discard, and a full handshake follows.
    """
    store = Store()
    agent = open_agent(ca=server.ca_pem, session_store=store)
    agent.request("GET", server.url + "/close")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 8 * 86_400)

    agent.request("GET", server.url + "/close")

    assert "discard" in store.calls
    assert offered(server) == [False, False]


class StoreFault(Exception):
    """What a user's store may raise."""


def test_what_take_raises_is_the_requests_error(open_agent, server):
    """
    An exception of the store's `take` reaches the caller; no socket and no place in the pool is lost by it.
    """

    class Faulty(Store):
        broken = True

        def take(self, scope: Any) -> Any:
            if self.broken:
                raise StoreFault
            return super().take(scope)

    store = Faulty()
    agent = open_agent(ca=server.ca_pem, session_store=store, max_sockets=1)

    for _ in range(2):
        with pytest.raises(StoreFault):
            agent.request("GET", server.url + "/hello")
    store.broken = False

    assert agent.request("GET", server.url + "/hello").status == 200
    assert server.wait_for(lambda s: s.stats.open_connections == 1)
    assert (agent.stats().dialling, agent.stats().active) == (0, 0)


@pytest.mark.parametrize("why", ["refused", "expired"])
def test_what_discard_raises_is_the_requests_error(open_agent, new_server, why, monkeypatch):
    """
    An exception of the store's `discard`, at a session that was refused or is too old, reaches the caller; no socket
    and no place in the pool is lost by it.
    """

    class Faulty(Store):
        broken = True

        def discard(self, scope: Any) -> None:
            super().discard(scope)
            if self.broken:
                raise StoreFault

    with new_server(refuse_resumption="close" if why == "refused" else None) as server:
        store = Faulty()
        agent = open_agent(ca=server.ca_pem, session_store=store, max_sockets=1)
        agent.request("GET", server.url + "/close")
        if why == "expired":
            now = time.time
            monkeypatch.setattr(time, "time", lambda: now() + 8 * 86_400)

        with pytest.raises(StoreFault):
            agent.request("GET", server.url + "/close")
        store.broken = False

        assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200
        assert server.wait_for(lambda s: s.stats.open_connections == 1)
    assert agent.stats().active + agent.stats().dialling == 0


@pytest.mark.parametrize("junk", [b"junk", 0])
def test_junk_from_take_fails_the_request_alone(open_agent, server, junk):
    """
    A store that returns no `Session` fails the request with an error that says so, and nothing else.
    """

    class Junk(Store):
        junk: Any

        def take(self, scope: Any) -> Any:
            return self.junk

    store = Junk()
    store.junk = junk
    agent = open_agent(ca=server.ca_pem, session_store=store, max_sockets=1)

    with pytest.raises(OptionTypeError, match="session_store"):
        agent.request("GET", server.url + "/hello")
    store.junk = None

    assert agent.request("GET", server.url + "/hello").status == 200


def test_store_that_cannot_keep_costs_no_response(open_agent, server, caplog):
    """
    An exception of `put` is logged: the response it came with is complete and stands.
    """

    class Full(Store):
        def put(self, scope: Any, session: Any) -> None:
            raise StoreFault

    agent = open_agent(ca=server.ca_pem, session_store=Full())

    for _ in range(2):
        assert agent.request("GET", server.url + "/hello").content == b"Hello, world"

    assert any(record.exc_info and record.exc_info[0] is StoreFault for record in caplog.records)
    assert agent.stats().sessions_stored == 0


# --- Events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_session_is_an_event(open_agent, new_server, kind):
    """
    `SessionTicket` tells of each session with its version and its end.
    """
    told: list[Any] = []
    with new_server(**KINDS[kind]) as server:
        agent = open_agent(ca=server.ca_pem)
        agent.agent.on(events.SessionTicket, told.append)

        agent.request("GET", server.url + "/close")

    assert len(told) == (2 if "1.3" in kind else 1) == agent.stats().sessions_stored
    assert {event.session.protocol_version for event in told} == {f"TLSv{kind[4:7]}"}
    assert all(time.time() < event.session.expires_at <= time.time() + 604_800 for event in told)
    assert hello_of(server.connections[0]).server_name == "localhost"
