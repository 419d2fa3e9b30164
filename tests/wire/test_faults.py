"""What peers do wrong once they are connected: one fault per test, of `Agent` and `AsyncAgent` alike."""

from __future__ import annotations

import gc
import resource
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest
from wire_peer import CANCEL, OK, PeerConnection, closed_port, open_sockets, serve, wait_until

from tlsagent import ConnectError, ConnectionLost, HandshakeError, RemoteProtocolError, RequestError, events

FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
Fault = Callable[[PeerConnection], object]


def reset(connection: PeerConnection) -> None:
    """End by RST."""
    connection.reset()


def fin(connection: PeerConnection) -> None:
    """End by a bare FIN."""
    connection.fin()


def close_notify(connection: PeerConnection) -> None:
    """End in good order."""
    connection.close_notify()


# --- Before and during the handshake ----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["at once", "after the hello", "within the handshake"])
@pytest.mark.parametrize("how", [reset, fin], ids=["reset", "fin"])
def test_connection_that_ends_before_it_is_secured(open_agent, open_peer, how, when):
    """
    A connection lost in the handshake fails its request, once: a new connection is no reason to try again.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            connection.handshake()
            serve(connection)
        if when != "at once":
            hello = connection.sock.recv(65_536)
        if when == "within the handshake":
            connection._incoming.write(hello)
            with pytest.raises(ssl.SSLWantReadError):
                connection._ssl.do_handshake()
            connection.sock.sendall(connection._outgoing.read()[:-100])
        how(connection)

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    with pytest.raises(RequestError) as caught:
        agent.request("GET", peer.url)

    assert isinstance(caught.value, ConnectionError)
    assert caught.value.phase in ({"connect", "handshake"} if when == "at once" else {"handshake"})
    assert caught.value.code == "ECONNRESET"
    assert not caught.value.request_sent
    assert len(peer.connections) == 1
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\nplain HTTP spoken here",
        bytes(range(256)) * 40,
        b"\x15\x03\x01\x00\x02\x02\x28",
    ],
    ids=["http", "junk", "alert"],
)
def test_peer_that_does_not_speak_tls(open_agent, open_peer, said):
    """
    Whatever else a peer says instead of a ServerHello, the error is short and printable.
    """

    def script(connection: PeerConnection) -> None:
        connection.sock.recv(65_536)
        connection.sock.sendall(said)
        while connection.sock.recv(65_536):
            pass

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem)

    with pytest.raises(HandshakeError) as caught:
        agent.request("GET", peer.url)

    assert caught.value.phase == "handshake"
    assert len(str(caught.value)) < 1_000
    assert str(caught.value).isprintable()
    assert caught.value.alert == ("handshake_failure" if said[0] == 0x15 else caught.value.alert)


def test_refused_connection_names_the_address(open_agent):
    """
    A port where nobody listens is named, with the reason; the slot is free for the next.
    """
    agent = open_agent(max_sockets=1)
    port = closed_port()

    for _ in range(2):
        with pytest.raises(ConnectError, match=rf"127\.0\.0\.1:{port}") as caught:
            agent.request("GET", f"https://127.0.0.1:{port}/")

    assert caught.value.code == "ECONNREFUSED"
    assert caught.value.phase == "connect"
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


# --- On idle connections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [reset, fin, close_notify])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.framing
def test_connection_that_ends_while_idle_is_not_used(open_agent, open_peer, how, method):
    """
    An idle connection that the peer ended serves nothing more: the next request, a POST too, has a new one, unharmed.
    """
    ended = threading.Event()

    def script(connection: PeerConnection) -> None:
        connection.recv_request()
        connection.send(OK)
        if connection.number == 1:
            assert answered.wait(5)
            how(connection)
            ended.set()
            connection.peer.leave.wait(5)

    answered = threading.Event()
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    agent.request("GET", peer.url)
    answered.set()
    assert ended.wait(5)

    response = agent.request(method, peer.url, content=b"x")

    assert (response.content, response.attempts, response.reused) == (b"ok", 1, False)


def unsolicited(later: float | None, *, tail: bytes) -> Fault:
    """Return a script that answers, and says something more: in the same record, the next one, or later."""

    def script(connection: PeerConnection) -> None:
        connection.recv_request()
        if connection.number > 1:
            connection.send(OK)
            serve(connection)
        if later is None:
            connection.send(OK + tail)
        elif later == 0:
            connection.send(OK, tail)
        else:
            connection.send(OK)
            connection.peer.leave.wait(later)
            connection.send(tail)
        said.append(connection)
        connection.wait_gone()

    said: list[PeerConnection] = []
    script.said = said  # type: ignore[attr-defined]
    return script


@pytest.mark.parametrize("later", [None, 0, 0.03], ids=["same record", "next record", "30 ms later"])
@pytest.mark.parametrize("tail", [FORGED, b"\r\n", b"x"], ids=["response", "crlf", "byte"])
@pytest.mark.framing
def test_bytes_that_nobody_asked_for_cost_the_connection(open_agent, open_peer, later, tail):
    """
    What follows a complete response is never the answer to the next request, and the connection goes.
    """
    script: Any = unsolicited(later, tail=tail)
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    first = agent.request("GET", peer.url)
    assert wait_until(lambda: script.said)
    second = agent.request("GET", peer.url, timeouts=5)

    assert (first.content, second.content) == (b"ok", b"ok")
    assert (second.request_number, second.attempts) == (1, 1)
    assert len(peer.connections) == 2
    assert wait_until(lambda: peer.connections[0].ended)


@pytest.mark.parametrize("later", [None, 0], ids=["same record", "next record"])
@pytest.mark.framing
def test_forged_response_is_not_given_to_a_request_in_the_queue(open_agent, open_peer, later):
    """
    A request that waits for the connection does not get the second response of the first.
    """
    queued = threading.Event()

    def script(connection: PeerConnection) -> None:
        connection.recv_request()
        if connection.number > 1:
            connection.send(OK)
            serve(connection)
        assert queued.wait(5)
        if later is None:
            connection.send(OK + FORGED)
        else:
            connection.send(OK, FORGED)
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)
    first = agent.submit("GET", peer.url)
    assert wait_until(lambda: agent.stats().active == 1)
    second = agent.submit("GET", peer.url)
    assert wait_until(lambda: agent.stats().waiting == 1)

    queued.set()

    assert first.result(5).content == b"ok"
    assert second.result(5).content == b"ok"
    assert not second.result().reused


@pytest.mark.framing
def test_408_on_an_idle_connection_is_swallowed(open_agent, open_peer):
    """
    A server's 408 for an idle connection is nobody's answer.
    """
    tail = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    script: Any = unsolicited(0.03, tail=tail)
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    agent.request("GET", peer.url)
    assert wait_until(lambda: script.said)

    assert agent.request("POST", peer.url, content=b"x").status == 200


def test_session_tickets_on_an_idle_connection_are_kept(open_agent, open_peer):
    """
    TLS 1.3 tickets that come while a connection is idle are stored, are no data, and leave it usable.
    """
    sent = threading.Event()

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            assert idle.wait(5)
            connection.flush()  # the tickets, which the handshake left behind
            sent.set()
        serve(connection)

    idle = threading.Event()
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    agent.preconnect(peer.url)
    assert agent.stats().sessions_stored == 0
    idle.set()
    assert sent.wait(5)

    response = agent.request("GET", peer.url)

    assert response.request_number == 1
    assert len(peer.connections) == 1
    assert agent.stats().sessions_stored == 2
    agent.close_idle()
    assert agent.request("GET", peer.url).connection.session_reused


# --- When the second request arrives ----------------------------------------------------------------------------------


def closes_at_the_second(how: Fault, answer: bytes = b"") -> Fault:
    """Return a script whose first connection answers once, then ends when the next request is there."""

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_request()
        connection.send(OK)
        connection.recv_request()
        if answer:
            connection.send(answer)
        how(connection)

    return script


@pytest.mark.parametrize("how", [reset, fin, close_notify])
def test_get_is_sent_again_on_a_new_connection(open_agent, open_peer, how):
    """
    A GET that meets the end of a reused connection is sent again, once, and says so.
    """
    peer = open_peer(closes_at_the_second(how))
    agent = open_agent(ca=peer.ca_pem)
    heard: list[Any] = []
    agent.request("GET", peer.url)

    response = agent.request("GET", peer.url, trace=heard.append)

    assert (response.content, response.attempts, response.request_number) == (b"ok", 2, 1)
    assert len(peer.connections) == 2
    [retried] = [event for event in heard if isinstance(event, events.Retried)]
    assert isinstance(retried.error, ConnectionLost)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("POST", {"content": b"x"}), ("PATCH", {"content": b"x"}), ("GET", {"retry": False})],
)
def test_what_may_have_been_processed_is_not_sent_again(open_agent, open_peer, method, arguments):
    """
    A request that is not idempotent, or must not be retried, fails and tells that it was sent.
    """
    peer = open_peer(closes_at_the_second(fin))
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)
    agent.request("GET", peer.url)

    with pytest.raises(ConnectionLost) as caught:
        agent.request(method, peer.url, **arguments)

    assert caught.value.request_sent
    assert caught.value.reused
    assert len(peer.connections) == 1
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


def test_body_that_cannot_be_had_again_is_not_sent_again(open_agent, open_peer):
    """
    A PUT of an iterator is not retried, a PUT of bytes is.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_request()
        connection.send(OK)
        if connection.number in {1, 2}:
            connection.recv_head()
            return
        serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)
    agent.request("GET", peer.url)

    with pytest.raises(ConnectionLost):
        agent.request("PUT", peer.url, content=iter([b"x"]))
    agent.request("GET", peer.url)

    assert agent.request("PUT", peer.url, content=b"x").attempts == 2


def test_retry_happens_once(open_agent, open_peer):
    """
    A request whose new connection fails too is not sent a third time.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_request()
        if connection.number == 1:
            connection.send(OK)
            connection.recv_request()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    agent.request("GET", peer.url)

    with pytest.raises(ConnectionLost):
        agent.request("GET", peer.url)

    assert len(peer.connections) == 2


@pytest.mark.framing
def test_response_that_began_is_not_asked_for_again(open_agent, open_peer):
    """
    Once a byte of the response came there is no retry.
    """
    peer = open_peer(closes_at_the_second(fin, b"HTTP/1.1 200 O"))
    agent = open_agent(ca=peer.ca_pem)
    agent.request("GET", peer.url)

    with pytest.raises(ConnectionLost):
        agent.request("GET", peer.url)

    assert len(peer.connections) == 1


def test_fresh_connection_that_ends_is_no_reason_to_retry(open_agent, open_peer):
    """
    A connection that was never used before and ends at its first request fails it.
    """
    peer = open_peer(lambda connection: connection.recv_request())
    agent = open_agent(ca=peer.ca_pem)

    with pytest.raises(ConnectionLost) as caught:
        agent.request("GET", peer.url)

    assert caught.value.request_sent
    assert not caught.value.reused
    assert len(peer.connections) == 1


# --- Truncation and broken framing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n",
    ],
    ids=["head", "length", "between chunks", "before the last line"],
)
@pytest.mark.parametrize("how", [reset, fin, close_notify])
@pytest.mark.framing
def test_response_cut_short_is_an_error(open_agent, open_peer, said, how):
    """
    A response that ends before it is complete is an error, however the connection ends.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_request()
        connection.send(said)
        how(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    with pytest.raises(ConnectionLost) as caught:
        agent.request("GET", peer.url)

    assert caught.value.phase in {"wait", "receive"}
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"


@pytest.mark.framing
def test_body_until_the_end_needs_close_notify(open_agent, open_peer):
    """
    A body that ends with its connection is only whole if TLS says so: a bare FIN is a truncation.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nperhaps not all")
        connection.fin()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    with pytest.raises(ConnectionLost):
        agent.request("GET", peer.url)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200_000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100,
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    ],
    ids=["lengths", "plus", "chunk size", "101", "long head", "many 1xx", "not http"],
)
@pytest.mark.framing
def test_broken_framing_is_an_error_and_costs_the_connection(open_agent, open_peer, said):
    """
    What cannot be understood in one way only is an error; the connection serves nothing more.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_request()
        connection.send(said)
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    with pytest.raises(RemoteProtocolError) as caught:
        agent.request("GET", peer.url, timeouts=5)

    assert len(str(caught.value)) < 1_000
    assert agent.request("GET", peer.url, timeouts=5).content == b"ok"
    assert wait_until(lambda: peer.connections[0].ended)


@pytest.mark.framing
def test_reset_right_after_a_response_harms_nothing(open_agent, open_peer):
    """
    A response that was complete before the peer's RST is delivered.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_request()
        connection.send(OK)
        if connection.number == 1:
            assert delivered.wait(5)
            connection.reset()
            was_reset.set()
            return
        serve(connection)

    delivered, was_reset = threading.Event(), threading.Event()
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    assert agent.request("GET", peer.url).content == b"ok"
    delivered.set()
    assert was_reset.wait(5)
    assert agent.request("POST", peer.url, content=b"x").content == b"ok"


@pytest.mark.framing
def test_response_that_comes_byte_by_byte(open_agent, open_peer):
    """
    A response whose TLS records arrive one byte at a time is read all the same.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_request()
        for byte in connection.records(OK):
            connection.sock.sendall(bytes([byte]))
        serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    assert agent.request("GET", peer.url).content == b"ok"
    assert agent.request("GET", peer.url).reused


# --- Left lying -------------------------------------------------------------------------------------------------------


@pytest.mark.framing
def test_response_dropped_unread_warns_and_costs_its_connection(open_agent, server, protocol):
    """
    A streamed response that is forgotten gives a ResourceWarning, its connection goes, its slot is free; of HTTP/2 its
    stream alone.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1)
    response = agent.open_stream("GET", server.url + "/bytes/100000000")
    assert response.status == 200

    held = [response]
    del response
    with pytest.warns(ResourceWarning, match="dropped unread"):
        held.clear()

    shared = protocol == "HTTP/2"
    assert agent.request("GET", server.url + "/hello", timeouts=5).reused == shared
    assert server.wait_for(lambda s: s.stats.open_connections == 1)
    assert server.stats.connections == (1 if shared else 2)
    assert not shared or server.wait_for(lambda s: s.connections[0].requests[0].reset_code == CANCEL)


def test_response_that_was_read_gives_no_warning(open_agent, server, recwarn):
    """
    A streamed response read to its end may be forgotten.
    """
    agent = open_agent(ca=server.ca_pem)
    response = agent.open_stream("GET", server.url + "/hello")
    assert response.read() == b"Hello, world"

    del response
    gc.collect()

    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning)]
    assert agent.request("GET", server.url + "/hello").reused


def test_agent_recovers_from_a_lack_of_descriptors(open_agent, server):
    """
    Without a free descriptor a request fails with one named error; once there are some, the agent works again.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1)
    url = f"https://127.0.0.1:{server.port}/hello"
    agent.stats()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert open_sockets()

    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        future = agent.submit("GET", url, timeouts=3)
        error = future.exception(5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert isinstance(error, ConnectError)
    assert error.code == "EMFILE"
    assert agent.request("GET", url, timeouts=5).status == 200
