"""`connect()`: TLS without HTTP, from the agent's contexts and sessions."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import Any

import pytest
from wire_peer import PeerConnection, closed_port, standstill, tarpit, wait_until

from tlsagent import (
    AgentClosed,
    CertificateError,
    ConnectError,
    ConnectionLost,
    OptionError,
    ReadTimeout,
    SendTimeout,
    Timeouts,
)


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


@pytest.mark.parametrize(
    ("host", "port", "name"),
    [
        (None, 443, "host"),
        ("", 443, "host"),
        ("a b", 443, "host"),
        ("user@a.test", 443, "host"),
        ("a.test", None, "port"),
        ("a.test", "x", "port"),
        ("a.test", 0, "port"),
        ("a.test", 65_536, "port"),
        ("a.test", True, "port"),
    ],
)
def test_connect_to_what_is_no_address(open_agent, host, port, name):
    """
    Host and port are checked like the options of those names, before anything is opened.
    """
    with pytest.raises(OptionError, match=name):
        open_agent().connect(host, port)


def test_arguments_of_the_wrong_kind(open_agent, open_peer):
    """
    What is not bytes cannot be sent, and at least one byte is to be received; the connection is none the worse.
    """
    peer = open_peer(echo)
    raw = open_agent(ca=peer.ca_pem).connect("127.0.0.1", peer.port)

    for data in ("text", 5, None):
        with pytest.raises(OptionError, match="data"):
            raw.send(data)
    for most in (0, -1, None, 1.5):
        with pytest.raises(OptionError, match="max_bytes"):
            raw.recv(most)

    raw.send(bytearray(b"hello"))
    assert raw.recv(1) == b"h"
    raw.close()


def test_connect_that_is_cancelled_at_any_turn_of_the_loop(open_async_agent, open_peer):
    """
    Whenever its task is cancelled, `connect` leaves no connection open that nobody holds.
    """
    peer = open_peer(echo)
    agent = open_async_agent(ca=peer.ca_pem)

    async def cancelled_after(turns: int, stall: float) -> bool:
        opening = asyncio.ensure_future(agent.agent.connect("localhost", peer.port))
        for _ in range(turns):
            await asyncio.sleep(0)
        if stall:
            time.sleep(stall)  # noqa: ASYNC251 - what the loop waits for happens, and it has not looked
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait((opening,))
        if opening.cancelled():
            return True
        await opening.result().aclose()
        return False

    turns = 0
    while agent.run(cancelled_after(turns, 0)):
        turns += 1
    for turns in range(20):
        agent.run(cancelled_after(turns, 0.001))

    assert wait_until(lambda: all(connection.ended is not None for connection in peer.connections))
    assert agent.stats().opened == sum(agent.stats().closed.values())


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


class Controlled(Recorder):
    """Keeps what it is told of flow control too, and may pause the transport from within."""

    def __init__(self, *, pause_after: int | None = None) -> None:
        super().__init__()
        self.transport: Any = None
        self.pause_after = pause_after

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.pause_after is not None and self.received() >= self.pause_after:
            self.transport.pause_reading()

    def received(self) -> int:
        return sum(len(item) for item in self.told if isinstance(item, bytes))

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")


def controlled(agent: Any, peer: Any, *, pause_after: int | None = None, **options: Any) -> tuple[Any, Controlled]:
    protocol = Controlled(pause_after=pause_after)
    opening = agent.agent.connect("127.0.0.1", peer.port, protocol_factory=lambda: protocol, **options)
    transport, _ = agent.run(opening)
    return transport, protocol


def test_writing_protocol_is_held_back(open_async_agent, open_peer):
    """
    A protocol that writes more than the peer takes is told to pause, once, and to resume when it has been taken.
    """
    read_on = threading.Event()
    total = 32 << 20

    def script(connection: PeerConnection) -> None:
        assert read_on.wait(10)
        left = total
        while left:
            data = connection.recv()
            assert data.count(b"w") == len(data) > 0
            left -= len(data)
        connection.send(b"thanks")
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem)
    transport, protocol = controlled(agent, peer)

    agent.call(transport.write, b"w" * (total - 3))
    agent.call(transport.writelines, [b"w", bytearray(b"w"), memoryview(b"w")])
    assert agent.call(transport.get_write_buffer_size) > agent.call(transport.get_write_buffer_limits)[1]
    assert protocol.told == ["made", "pause"]
    read_on.set()

    assert wait_until(lambda: b"thanks" in protocol.told, 20)
    assert protocol.told == ["made", "pause", "resume", b"thanks"]
    assert agent.call(transport.get_write_buffer_size) == 0
    agent.call(transport.close)


def test_limits_of_the_write_buffer(open_async_agent, open_peer):
    """
    The limits are the transport's to set: below the upper one nobody is told to pause.
    """
    peer = open_peer(lambda connection: connection.peer.leave.wait(10))
    agent = open_async_agent(ca=peer.ca_pem)
    transport, protocol = controlled(agent, peer)
    high = 256 << 20

    agent.call(lambda: transport.set_write_buffer_limits(high=high, low=1_000))
    agent.call(transport.write, bytes(32 << 20))
    waiting = agent.call(transport.get_write_buffer_size)

    assert agent.call(transport.get_write_buffer_limits) == (1_000, high)
    assert 0 < waiting < high
    assert protocol.told == ["made"]
    agent.call(lambda: transport.set_write_buffer_limits(high=waiting // 2))
    agent.call(transport.write, b"x")
    assert protocol.told == ["made", "pause"]
    agent.call(transport.abort)
    assert wait_until(lambda: protocol.told[-1] == ("lost", type(None)))


def test_protocol_that_pauses_while_it_is_fed(open_async_agent, open_peer):
    """
    `pause_reading` within `data_received` holds for what has come already; afterwards comes the rest, then the end.
    """
    total = 400_000

    def script(connection: PeerConnection) -> None:
        connection.recv()
        connection.send(*[b"d" * 10_000] * (total // 10_000))
        connection.close_notify()
        sent.set()

    sent = threading.Event()
    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.connect(("127.0.0.1", peer.port))
    transport, protocol = controlled(agent, peer, pause_after=1, socket=sock)
    assert agent.call(transport.is_reading)

    agent.call(transport.pause_reading)
    agent.call(transport.write, b"go")
    assert sent.wait(5)  # so that the next read gives more than one call of `data_received` hands on
    agent.call(transport.resume_reading)
    assert wait_until(protocol.received)
    assert standstill(protocol.received) <= 65_536
    assert not agent.call(transport.is_reading)
    protocol.pause_after = None
    agent.call(transport.resume_reading)

    assert wait_until(lambda: ("lost", type(None)) in protocol.told)
    assert protocol.received() == total
    assert protocol.told[-2:] == ["eof", ("lost", type(None))]
    assert not agent.call(transport.is_reading)


def test_end_waits_for_a_protocol_that_does_not_read(open_async_agent, open_peer):
    """
    A paused protocol hears of an end in good order when it reads on, of its agent's end at once.
    """

    def script(connection: PeerConnection) -> None:
        connection.send(b"bye")
        if connection.number == 1:
            connection.close_notify()
        sent.set()
        connection.peer.leave.wait(10)

    sent = threading.Event()
    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem)
    first, protocol = controlled(agent, peer, pause_after=0)
    _, other = controlled(agent, peer, pause_after=0)
    assert wait_until(lambda: protocol.told == ["made", b"bye"] == other.told)
    assert standstill(lambda: len(protocol.told)) == 2

    protocol.pause_after = None
    agent.call(first.resume_reading)
    assert wait_until(lambda: protocol.told[2:] == ["eof", ("lost", type(None))])
    agent.close()

    assert wait_until(lambda: other.told[2:] == [("lost", AgentClosed)])


def test_extra_info_of_a_transport(open_async_agent, open_peer):
    """
    What the transport does not know the socket's transport is asked for.
    """
    peer = open_peer(echo)
    agent = open_async_agent(ca=peer.ca_pem)
    transport, _ = controlled(agent, peer)

    assert transport.get_extra_info("socket").getpeername() == ("127.0.0.1", peer.port)
    assert transport.get_extra_info("sockname") == transport.get_extra_info("connection_info").local_address
    assert transport.get_extra_info("unheard of") is None
    assert transport.get_extra_info("unheard of", 3) == 3
    agent.call(transport.close)


def test_connection_that_had_bytes_to_send_ends_once(open_async_agent, open_peer):
    """
    A connection that is closed while bytes wait for the peer ends as soon as they are out, and nothing cuts it later.
    """
    closed = threading.Event()

    def script(connection: PeerConnection) -> None:
        connection.flush()  # nothing of ours must meet a socket that is closed
        assert closed.wait(5)
        while connection.recv():
            pass

    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem)
    raw = agent.connect("127.0.0.1", peer.port)

    async def send_and_leave() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(raw.raw.send(bytes(16 << 20)), 0.2)
        await raw.raw.aclose()
        closed.set()

    agent.run(send_and_leave())

    assert wait_until(lambda: peer.connections[0].ended == "close_notify")
    agent.run(asyncio.sleep(1.1))  # the harness tells if a callback of the loop fails


def test_transport_that_is_closed_sends_what_waits(open_async_agent, open_peer):
    """
    `close` takes no more and feeds the protocol no more, but what was written arrives, however slowly, before the end.
    """
    total = 16 << 20
    closed = threading.Event()
    received: list[int] = []

    def script(connection: PeerConnection) -> None:
        assert closed.wait(5)
        connection.send(b"too late")
        connection.peer.leave.wait(1.2)
        while data := connection.recv():
            received.append(len(data))

    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem)
    transport, protocol = controlled(agent, peer)

    def write_and_close() -> None:
        transport.write(bytes(total))
        transport.close()
        transport.close()
        transport.write(b"ignored")

    agent.call(write_and_close)
    assert agent.call(transport.is_closing)
    closed.set()

    assert wait_until(lambda: protocol.told[-1] == ("lost", type(None)), 10)
    assert protocol.told == ["made", "pause", ("lost", type(None))]
    assert wait_until(lambda: peer.connections[0].ended == "close_notify")
    assert sum(received) == total


@pytest.mark.parametrize("how", ["abort", "agent", "peer"])
def test_transport_that_cannot_send_what_waits(open_async_agent, open_peer, how):
    """
    A transport that is closing ends all the same when it is aborted, its agent ends, or the peer does.
    """
    closed = threading.Event()

    def script(connection: PeerConnection) -> None:
        assert closed.wait(5)
        if how == "peer":
            connection.reset()
        connection.peer.leave.wait(10)

    peer = open_peer(script)
    agent = open_async_agent(ca=peer.ca_pem)
    transport, protocol = controlled(agent, peer)
    agent.call(transport.write, bytes(32 << 20))
    agent.call(transport.close)
    assert standstill(lambda: len(protocol.told)) == 2
    closed.set()

    if how == "abort":
        agent.call(transport.abort)
    elif how == "agent":
        agent.destroy()

    assert wait_until(lambda: protocol.told[-1][0] == "lost")
    assert [item for item in protocol.told if isinstance(item, tuple)] == protocol.told[2:]
    assert len(protocol.told) == 3
