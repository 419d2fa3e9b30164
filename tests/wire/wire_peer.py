"""
Peers for the wire tests: scripted byte by byte, or an application whose answers wait for the test.

A `Peer` shares no code with the library: it is the standard library's ssl over blocking sockets, one thread for each
connection. Its script may break every rule of HTTP and TLS's ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from tlsagent.testing import app as demo
from tlsagent.testing import default_authority
from tlsagent.testing._settings import ServerSettings
from tlsagent.testing._tls import make_context
from tlsagent.testing.authority import default_credentials

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NAMES = ("localhost", "127.0.0.1", "::1")
PATIENCE = 10.0
FIRST = "/hello?first"
CANCEL = 0x08  # RFC 9113, 7


def wait_until(condition: Callable[[], object], timeout: float = 5.0) -> bool:
    """Wait until a condition that nobody announces holds; False if it never did."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.003)
    return True


def standstill(count: Callable[[], int], *, quiet: float = 0.25) -> int:
    """Return a growing number once it has not grown for a while."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < quiet:
        time.sleep(0.01)
        if (now := count()) != last:
            last, since = now, time.monotonic()
    return last


def open_sockets() -> set[str]:
    """Return the sockets and event queues that this process has open; nothing where the system does not tell."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{name}")
                if target.startswith(("socket:", "anon_inode:")):
                    found.add(target if target.startswith("socket:") else f"{target} {name}")
    return found


def hold(agent: Any, server: Any, path: str) -> Any:
    """
    Start a request that stays unanswered, and return its future once the server has it.

    Before a connection of HTTP/2 is used another request tells the agent how many it takes at a time.
    """
    if agent.protocol == "HTTP/2" and not agent.stats().idle:
        agent.request("GET", server.url + FIRST, timeouts=5)
    before = server.stats.requests
    future = agent.submit("GET", server.url + path)
    assert server.wait_for(lambda s: s.stats.requests > before)
    return future


def targets(server: Any) -> list[list[str]]:
    """Return the targets of the requests of each connection, without those that `hold` sends first."""
    return [[r.target for r in connection.requests if r.target != FIRST] for connection in server.connections]


def host_of(request: Any) -> str | None:
    """Return whom a request asks: the field Host, in HTTP/2 `:authority`, and never both."""
    names = [name for name, _ in request.headers if name.lower() in ("host", ":authority")]
    assert names in (["Host"], [":authority"])
    return str(request.header(names[0]))


def given_up(server: Any, protocol: str) -> bool:
    """Wait until the client has given its last request up: at the cost of its connection, or in HTTP/2 its stream."""
    if protocol == "HTTP/1.1":
        return bool(server.wait_for(lambda s: s.stats.open_connections == 0))
    return bool(server.wait_for(lambda s: s.connections[-1].requests[-1].reset_code == CANCEL))


def left_in_order(record: Any) -> bool:
    """Whether the client has ended a connection in good order: by close_notify, in HTTP/2 after GOAWAY (NO_ERROR)."""
    return record.closed_by == "close_notify" and record.goaway_code == (0 if record.protocol == "h2" else None)


class PeerGone(Exception):
    """The client ended the connection."""


class PeerConnection:
    """
    One connection, from the peer's side.

    Attributes:
        number: Which connection of its peer it is, from 1.
        ended: How the client ended it: "close_notify", "eof" or "reset", as far as the script looked.
    """

    def __init__(self, peer: Peer, sock: socket.socket, number: int) -> None:
        self.peer = peer
        self.sock = sock
        self.number = number
        self.ended: str | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = peer.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._plain = b""

    def handshake(self) -> None:
        """Shake hands; what the server says last (TLS 1.3: the tickets) stays until `flush`."""
        self._do(self._ssl.do_handshake)

    def _do(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.flush()
                self._read_socket()

    def _read_socket(self) -> None:
        try:
            data = self.sock.recv(262_144)
        except ConnectionError:
            self.ended = self.ended or "reset"
            raise PeerGone from None
        if not data:
            self.ended = self.ended or "eof"
            raise PeerGone
        self._incoming.write(data)

    def flush(self) -> None:
        """Send the records made so far, in one go."""
        data = self._outgoing.read()
        if data:
            self.sock.sendall(data)

    def send(self, *pieces: bytes) -> None:
        """Send each piece as a record of its own, all of them in one segment."""
        for piece in pieces:
            self._ssl.write(piece)
        self.flush()

    def records(self, piece: bytes) -> bytes:
        """Return a piece encrypted, to be sent in some other way."""
        self._ssl.write(piece)
        return self._outgoing.read()

    def recv(self) -> bytes:
        """Return some plaintext, b"" at the client's close_notify."""
        if self._plain:
            data, self._plain = self._plain, b""
            return data
        try:
            data = self._do(lambda: self._ssl.read(65_536))
        except ssl.SSLZeroReturnError:
            data = b""
        if not data:
            self.ended = "close_notify"
        return bytes(data)

    def recv_head(self) -> bytes:
        """Return the next request head."""
        held = b""
        while b"\r\n\r\n" not in held:
            data = self.recv()
            if not data:
                raise PeerGone
            held += data
        head, _, self._plain = held.partition(b"\r\n\r\n")
        return head

    def recv_exactly(self, count: int) -> bytes:
        """Return `count` bytes of a body."""
        held = b""
        while len(held) < count:
            data = self.recv()
            if not data:
                raise PeerGone
            held += data
        self._plain = held[count:]
        return held[:count]

    def recv_request(self) -> tuple[bytes, bytes]:
        """Return head and body of the next request, which says its length."""
        head = self.recv_head()
        length = re.search(rb"(?i)content-length: (\d+)", head)
        return head, self.recv_exactly(int(length[1])) if length else b""

    def close_notify(self) -> None:
        """End it in good order."""
        with contextlib.suppress(ssl.SSLError):
            self._ssl.unwrap()
        self.flush()
        self.sock.shutdown(socket.SHUT_WR)

    def fin(self) -> None:
        """End TCP without a word in TLS."""
        self.flush()
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End TCP by RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def wait_gone(self) -> str:
        """Wait until the client has ended the connection; tell how."""
        with contextlib.suppress(PeerGone):
            while self.recv():
                pass
            self.ended = "close_notify"
        assert self.ended is not None
        return self.ended


Script = Callable[[PeerConnection], object]


def serve(connection: PeerConnection) -> None:
    """Answer every request with OK."""
    while True:
        connection.recv_request()
        connection.send(OK)


class Peer:
    """
    A listener that runs a script for each connection: after the handshake, or on the bare socket if not `tls`.

    Attributes:
        connections: As they came.
        leave: Set at the end of the test; a script that does nothing waits for it.
    """

    def __init__(self, script: Script, *, tls: bool = True, **settings: Any) -> None:
        self._script = script
        self._tls = tls
        self.ca_pem = default_authority().ca_pem
        self.context = make_context(
            ServerSettings(credentials=default_credentials(NAMES), client_ca=self.ca_pem, **settings)
        )
        self.connections: list[PeerConnection] = []
        self.failures: list[BaseException] = []
        self.leave = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self.leave.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = PeerConnection(self, sock, len(self.connections) + 1)
            self.connections.append(connection)
            thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: PeerConnection) -> None:
        try:
            if self._tls:
                connection.handshake()
            self._script(connection)
        except (PeerGone, OSError, ssl.SSLError):
            pass  # the client left: the test looks from its side
        except BaseException as error:
            self.failures.append(error)
        finally:
            connection.sock.close()

    def close(self) -> None:
        """Stop; a script that failed fails the test."""
        self.leave.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(PATIENCE)
        if self.failures:
            raise self.failures[0]


@contextlib.contextmanager
def full_listener() -> Iterator[socket.socket]:
    """Give a listener that answers no SYN before connections are accepted: its accept queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener


@contextlib.contextmanager
def tarpit() -> Iterator[int]:
    """Give the port of a listener that answers no SYN."""
    with full_listener() as listener:
        yield listener.getsockname()[1]


def closed_port() -> int:
    """Return a port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Gates:
    """The demo routes, and /gate/NAME, which answers once the test opens NAME."""

    def __init__(self) -> None:
        self._gates: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def _gate(self, name: str) -> Future[None]:
        with self._lock:
            return self._gates.setdefault(name, Future())

    def open(self, name: str) -> None:
        """Let the requests of a gate be answered, those to come too."""
        self._gate(name).set_result(None)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not scope.get("path", "").startswith("/gate/"):
            await demo(scope, receive, send)
            return
        gate = self._gate(scope["path"].removeprefix("/gate/"))
        await asyncio.shield(asyncio.wrap_future(gate))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"open"})
