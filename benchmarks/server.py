"""
A TLS server that gives one answer to every request, as cheaply as Python can: the far side of all benchmarks.

One thread, non-blocking sockets of the standard library's `ssl`, one read and one write per request. It understands
just enough HTTP to count the requests without a body in what it reads. Handshakes are made one after the other and
block it: it is meant for warm connections.

Prints one line of JSON, its port and the certificate to trust, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import ssl
import sys
from functools import partial
from typing import TYPE_CHECKING

import trustme

from benchmarks.harness import pin

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = b"Hello, world!"
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


def context_for(*names: str) -> tuple[ssl.SSLContext, str]:
    """Return a server's context with an ECDSA P-256 certificate for `names`, and the PEM of who signed it."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    leaf = authority.issue_cert(*names, key_type=trustme.KeyType.ECDSA)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    leaf.configure_cert(context)
    return context, authority.cert_pem.bytes().decode()


def serve(listener: socket.socket, context: ssl.SSLContext, *, spin: bool = False) -> None:
    """Answer until standard input ends; with `spin`, never sleep."""
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
        for key, _ in selector.select(0 if spin else None):
            act, end = key.data
            if not act():
                end()


def main() -> None:
    """Bind to a free port, say which, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, help="the processor core to stay on")
    parser.add_argument("--spin", action="store_true", help="never sleep: no sender pays for waking it")
    arguments = parser.parse_args()
    pin(arguments.core)
    context, ca = context_for("localhost", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(json.dumps({"port": listener.getsockname()[1], "ca": ca}), flush=True)
        serve(listener, context, spin=arguments.spin)


if __name__ == "__main__":
    main()
