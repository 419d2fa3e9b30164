"""`connect()`: TLS without HTTP, from the agent's contexts and sessions."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest
from wire_peer import PeerConnection, closed_port, tarpit, wait_until

from tlsagent import AgentClosed, CertificateError, ConnectError, ConnectionLost, ReadTimeout, SendTimeout, Timeouts


def echo(connection: PeerConnection) -> None:
    """Send back what comes."""
    while data := connection.recv():
        connection.send(data)


def test_bytes_go_both_ways(open_agent, open_peer):
    """
    What is sent arrives, what comes back is received, and closing is done in good order.
    """
    peer = open_peer(echo)
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.connect("127.0.0.1", peer.port)

    raw.send(b"hello")
    assert raw.recv() == b"hello"
    raw.send(b"abcdef")
    assert (raw.recv(4), raw.recv(4)) == (b"abcd", b"ef")
    raw.close()
    raw.close()

    assert wait_until(lambda: peer.connections[0].ended == "close_notify")
    assert agent.stats().active == 0


def test_info_tells_what_was_negotiated(open_agent, open_peer):
    """
    `info` describes the connection; options of the call are laid over the agent's.
    """
    peer = open_peer(echo, alpn_protocols=("x-raw",))
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.connect("localhost", peer.port, alpn_protocols=["x-raw"], max_version="TLSv1.2")

    info = raw.info
    raw.close()

    assert (info.alpn_protocol, info.protocol_version, info.http_engine) == ("x-raw", "TLSv1.2", None)
    assert info.authorized
    assert info.remote_address == ("127.0.0.1", peer.port)
    assert ("DNS", "localhost") in info.peer_certificate.subject_alt_names


def test_name_is_verified(open_agent, open_peer):
    """
    A peer that is someone else is refused, and no connection stays.
    """
    peer = open_peer(echo)
    agent = open_agent(ca=peer.ca_pem)

    with pytest.raises(CertificateError, match=r"other\.test"):
        agent.connect("other.test", peer.port, lookup=lambda host, family: ["127.0.0.1"])

    assert wait_until(lambda: not agent.agent._core.living())


def test_session_of_a_raw_connection_is_resumed(open_agent, open_peer):
    """
    Raw connections put their sessions into the agent's store and take them from there.
    """

    def script(connection: PeerConnection) -> None:
        connection.flush()
        echo(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    first = agent.connect("localhost", peer.port)
    first.send(b"x")
    assert first.recv() == b"x"
    first.close()

    second = agent.connect("localhost", peer.port)
    resumed = second.info.session_reused
    second.close()

    assert not first.info.session_reused
    assert resumed


def test_end_of_the_peer_in_good_order(open_agent, open_peer):
    """
    After close_notify `recv` gives what came before, then b"" for good; sending is an error.
    """

    def script(connection: PeerConnection) -> None:
        connection.send(b"last words")
        connection.close_notify()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.connect("127.0.0.1", peer.port)

    assert raw.recv() == b"last words"
    assert raw.recv() == b""
    assert raw.recv() == b""
    with pytest.raises(ConnectionLost):
        raw.send(b"too late")
    raw.close()


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_truncation_is_an_error(open_agent, open_peer, how):
    """
    A connection that ends without close_notify may lack data: `recv` raises instead of giving b"".
    """
    received = threading.Event()

    def script(connection: PeerConnection) -> None:
        connection.send(b"last words")
        assert received.wait(5)
        getattr(connection, how)()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.connect("127.0.0.1", peer.port)

    assert raw.recv() == b"last words"
    received.set()
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            raw.recv()
    raw.close()


def test_much_data_flows_both_ways(open_agent, open_peer):
    """
    Megabytes that go out are received by the peer, and come back whole.
    """
    total = 4 << 20

    def script(connection: PeerConnection) -> None:
        data = connection.recv_exactly(total)
        connection.send(data)
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.connect("127.0.0.1", peer.port)

    raw.send(b"m" * total)
    received = 0
    while received < total:
        received += len(raw.recv())
    raw.close()

    assert received == total
    assert wait_until(lambda: peer.connections[0].ended == "close_notify")


def test_reader_that_waits_is_served_by_what_comes(open_agent, open_peer):
    """
    A `recv` that began before there was anything returns as soon as there is something.
    """
    go_on = threading.Event()

    def script(connection: PeerConnection) -> None:
        assert go_on.wait(5)
        connection.send(b"at last")
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.connect("127.0.0.1", peer.port)

    threading.Timer(0.05, go_on.set).start()
    assert raw.recv() == b"at last"
    raw.close()


def test_time_limits_of_the_sync_connection(open_sync_agent, open_peer):
    """
    `recv` and `send` of a sync connection take a time limit; a `recv` that ran out may be repeated.
    """
    go_on = threading.Event()

    def script(connection: PeerConnection) -> None:
        assert go_on.wait(5)
        connection.send(b"late")
        connection.peer.leave.wait(5)

    peer = open_peer(script)
    agent = open_sync_agent(ca=peer.ca_pem)
    raw = agent.connect("127.0.0.1", peer.port)

    with pytest.raises(ReadTimeout):
        raw.recv(timeout=0.05)
    go_on.set()
    assert raw.recv(timeout=5) == b"late"
    with pytest.raises(SendTimeout):
        raw.send(bytes(64 << 20), timeout=0.1)
    raw.close()


def test_connection_is_outside_the_pool(open_agent, open_peer):
    """
    Raw connections do not count against `max_sockets`.
    """
    peer = open_peer(echo)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1, max_total_sockets=1)

    raws = [agent.connect("127.0.0.1", peer.port) for _ in range(3)]
    for raw in raws:
        raw.send(b"x")
        assert raw.recv() == b"x"
        raw.close()

    assert len(peer.connections) == 3


def test_connect_fails_as_requests_do(open_agent):
    """
    Refusal and silence give the same errors as for a request, and leave nothing.
    """
    agent = open_agent()

    with pytest.raises(ConnectError) as refused:
        agent.connect("127.0.0.1", closed_port())
    with tarpit() as port, pytest.raises(TimeoutError) as late:
        agent.connect("127.0.0.1", port, timeouts=Timeouts(connect=0.1))

    assert (refused.value.phase, late.value.phase) == ("connect", "connect")


def test_raw_connection_ends_with_its_agent(open_agent, open_peer):
    """
    Closing the agent closes its raw connections; a closed agent opens none.
    """
    peer = open_peer(echo)
    agent = open_agent(ca=peer.ca_pem)
    raw = agent.connect("127.0.0.1", peer.port)

    agent.close()

    assert wait_until(lambda: peer.connections[0].ended is not None)
    with pytest.raises((ConnectionLost, AgentClosed)):
        raw.send(b"x")
    raw.close()
    with pytest.raises(AgentClosed):
        agent.connect("127.0.0.1", peer.port)


def test_socket_of_the_caller_is_used(open_agent, open_peer):
    """
    A socket that the caller connected carries the TLS connection, and is closed with it.
    """
    peer = open_peer(echo)
    agent = open_agent(ca=peer.ca_pem)
    sock = socket.create_connection(("127.0.0.1", peer.port))
    name = sock.getsockname()

    raw = agent.connect("localhost", 443, socket=sock)
    raw.send(b"x")
    assert raw.recv() == b"x"
    assert raw.info.local_address == name
    raw.close()

    assert wait_until(lambda: sock.fileno() == -1)
    assert len(peer.connections) == 1


def test_socket_of_the_caller_that_is_broken(open_agent, open_peer):
    """
    A socket that the peer has reset already fails at once, and is closed once: its number may be somebody else's then.
    """
    was_reset = threading.Event()

    def script(connection: PeerConnection) -> None:
        connection.reset()
        was_reset.set()

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=peer.ca_pem)
    sock = socket.create_connection(("127.0.0.1", peer.port))
    assert was_reset.wait(5)

    with pytest.raises(ConnectionError):
        agent.connect("localhost", 443, socket=sock)

    assert wait_until(lambda: sock.fileno() == -1)


# --- protocol_factory -------------------------------------------------------------------------------------------------


class Recorder(asyncio.Protocol):
    """Keeps what asyncio tells a protocol, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.told.append(data)

    def eof_received(self) -> None:
        self.told.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(("lost", type(exc)))


def test_protocol_factory_gives_transport_and_protocol(open_async_agent, open_peer):
    """
    With `protocol_factory` the connection is an asyncio transport, as `create_connection` would give.
    """
    peer = open_peer(echo)
    agent = open_async_agent(ca=peer.ca_pem)
    protocol = Recorder()
    transport, given = agent.run(agent.agent.connect("127.0.0.1", peer.port, protocol_factory=lambda: protocol))

    agent.call(transport.write, b"hello")
    assert wait_until(lambda: b"hello" in protocol.told)
    peername = transport.get_extra_info("peername")
    agent.call(transport.close)
    assert wait_until(lambda: ("lost", type(None)) in protocol.told)

    assert given is protocol
    assert peername == ("127.0.0.1", peer.port)
    assert transport.get_extra_info("connection_info").authorized
    assert protocol.told == ["made", b"hello", ("lost", type(None))]
    assert transport.is_closing()
    assert wait_until(lambda: peer.connections[0].ended == "close_notify")


@pytest.mark.parametrize(("how", "told"), [("close_notify", ["eof", ("lost", type(None))]), ("fin", None)])
def test_protocol_is_told_the_end(open_async_agent, open_peer, how, told):
    """
    A protocol hears of close_notify as an EOF, of a truncation as a loss with its error.
    """

    def script(connection: PeerConnection) -> None:
        connection.send(b"bye")
        getattr(connection, how)()

    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem)
    protocol = Recorder()
    agent.run(agent.agent.connect("127.0.0.1", peer.port, protocol_factory=lambda: protocol))

    assert wait_until(lambda: any(isinstance(item, tuple) for item in protocol.told))
    assert protocol.told == ["made", b"bye", *(told or [("lost", ConnectionLost)])]


def test_protocol_is_told_when_its_agent_closes(open_async_agent, open_peer):
    """
    A transport that ends with its agent tells its protocol.
    """
    peer = open_peer(echo)
    agent = open_async_agent(ca=peer.ca_pem)
    protocol = Recorder()
    agent.run(agent.agent.connect("127.0.0.1", peer.port, protocol_factory=lambda: protocol))

    agent.close()

    assert wait_until(lambda: protocol.told[-1][0] == "lost")
    assert protocol.told[0] == "made"


def test_reading_a_transport_can_be_paused(open_async_agent, open_peer):
    """
    While reading is paused the protocol gets nothing; afterwards it gets everything.
    """
    total = 8 << 20
    sent = 0

    def script(connection: PeerConnection) -> None:
        nonlocal sent
        connection.recv()
        while sent < total:
            connection.send(bytes(65_536))
            sent += 65_536
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem)
    protocol = Recorder()
    transport, _ = agent.run(agent.agent.connect("127.0.0.1", peer.port, protocol_factory=lambda: protocol))

    def received() -> int:
        return sum(len(item) for item in protocol.told if isinstance(item, bytes))

    agent.call(transport.pause_reading)
    agent.call(transport.write, b"go")
    assert wait_until(lambda: sent)
    assert received() == 0
    agent.call(transport.resume_reading)
    assert wait_until(lambda: received() == total)
    agent.call(transport.abort)
