"""
A TLS server that gives one answer to every request and never sleeps: the far side of the floors.

Waking a sleeping process is charged to whoever sends to it, 5 to 15 microseconds on a virtual machine, and how often it
sleeps depends on how fast the client is: floors could not be compared.

One thread, non-blocking sockets of the standard library's `ssl`, one read and one write per request. It understands
just enough HTTP to count the requests without a body in what it reads. Handshakes are made one after the other and
block it: it is meant for warm connections.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import ssl
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import SERVER_CORE, Target, pinned
from benchmarks.nginx import BODY, credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESPONSE = (
    b"HTTP/1.1 200 OK\r\n"
    b"Server: benchmark\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n"
    b"\r\n"
    b"%b" % (len(BODY), BODY)
)
_END = b"\r\n\r\n"
_HANDSHAKE_SECONDS = 5.0


@contextlib.contextmanager
def running_spinning_server() -> Iterator[Target]:
    """Run the server in a process of its own until the block ends."""
    with tempfile.TemporaryDirectory(prefix="tlsagent-bench-") as name:
        folder = Path(name)
        ca = credentials(folder)
        command = pinned(SERVER_CORE, sys.executable, "-m", "benchmarks.spinning_server", str(folder / "server.pem"))
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                port = int(process.stdout.readline())
                yield Target(f"https://localhost:{port}", ca, str(folder / "ca.pem"), process.pid)
            finally:
                process.stdin.close()


class Peer:
    """One connection."""

    def __init__(self, sock: ssl.SSLSocket, buffer: memoryview) -> None:
        self._sock = sock
        self._buffer = buffer
        self._unfinished = b""

    def read(self) -> bool:
        """Answer what has come; returns False at the end of the connection."""
        try:
            # Without read-ahead OpenSSL takes one record from the socket: what follows makes it readable again.
            size = self._sock.recv_into(self._buffer)
            if not size:
                return False
            data = self._unfinished + bytes(self._buffer[:size])
            whole, end, self._unfinished = data.rpartition(_END)
            requests = (whole + end).count(_END)
            if requests:
                self._sock.send(RESPONSE * requests)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Answer until standard input ends."""
    selector = selectors.DefaultSelector()
    buffer = memoryview(bytearray(65_536))

    def accept() -> bool:
        plain, _ = listener.accept()
        plain.settimeout(_HANDSHAKE_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock = context.wrap_socket(plain, server_side=True)
        except OSError:
            plain.close()
            return True
        sock.setblocking(False)
        peer = Peer(sock, buffer)
        selector.register(sock, selectors.EVENT_READ, (peer.read, partial(forget, sock, peer)))
        return True

    def forget(sock: ssl.SSLSocket, peer: Peer) -> None:
        selector.unregister(sock)
        peer.close()

    def nothing() -> None: ...

    handlers: tuple[Callable[[], bool], Callable[[], None]] = (accept, nothing)
    selector.register(listener, selectors.EVENT_READ, handlers)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ, (lambda: bool(os.read(0, 1)), sys.exit))
    while True:
        for key, _ in selector.select(0):
            act, end = key.data
            if not act():
                end()


def main(certificate: str) -> None:
    """Bind to a free port, say which, and serve."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        serve(listener, context)


if __name__ == "__main__":
    main(sys.argv[1])
