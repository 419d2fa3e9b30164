"""
A peer scripted byte by byte, for faults that a correct server cannot commit.

    def handler(peer: RawPeer) -> None:
        peer.recv_request_head()
        peer.send(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhel")
        peer.close_abruptly()

    with RawServer(handler) as server:
        ...

The handler runs once per connection, in a daemon thread of its own, after the handshake (`tls=False`: on the bare TCP
connection, for faults before and in the handshake). Every wait ends at `RawServer`'s `timeout`. What a handler raises
comes up again when the `with` block ends, except that the client went away. Of HTTP nothing is known here but where a
head ends.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, Unpack

from tlsagent.testing._hello import ClientHello
from tlsagent.testing._link import reset_on_close
from tlsagent.testing._listen import DEFAULT_NAMES, listen, url_of
from tlsagent.testing._settings import SettingsDict, make_settings
from tlsagent.testing._tls import StdlibTLS, TLSFacts, TLSFailure, make_context

if TYPE_CHECKING:
    from tlsagent.testing.authority import Authority

Handler = Callable[["RawPeer"], object]
Ending = Literal["close_notify", "eof", "reset"]

_READ_SIZE: Final = 65_536
_HEAD_END: Final = b"\r\n\r\n"


class PeerGone(Exception):
    """The client ended the connection while the script waited for more. Not a failure of the script."""


class RawPeer:
    """
    One connection in the hands of a script. All calls block.

    Attributes:
        number: Counts the connections of the server from 1.
        sock: The TCP socket, for what is not offered here.
    """

    def __init__(self, sock: socket.socket, number: int, tls: StdlibTLS | None) -> None:
        self.sock = sock
        self.number = number
        self._tls = tls
        self._hello = b""
        self._buffer = b""
        self._ended: Ending | None = None

    @property
    def facts(self) -> TLSFacts:
        """What the handshake agreed on: version, cipher, alpn, session_reused, client_certificate."""
        assert self._tls is not None, "there is no TLS on this connection"
        assert self._tls.facts is not None, "the handshake is not done"
        return self._tls.facts

    @property
    def client_hello(self) -> ClientHello | None:
        """The first message of the client, taken apart."""
        return ClientHello.parse(self._hello)

    def handshake(self) -> None:
        """Carry out the server's side of the handshake; `RawServer` has done so unless `tls=False`."""
        assert self._tls is not None, "there is no TLS on this connection"
        while self._tls.facts is None:
            if not self._fill():
                raise PeerGone("the client left in the handshake")

    def start_tls(self, tls: StdlibTLS) -> None:
        """Put TLS on a plain connection."""
        assert self._tls is None, "there is TLS on this connection already"
        self._tls = tls
        self.handshake()

    # --- Reading ---

    def recv(self) -> bytes:
        """Return what there is, waiting for at least one byte; b"" once the client has ended the connection."""
        while not self._buffer and self._fill():
            pass
        data, self._buffer = self._buffer, b""
        return data

    def recv_exactly(self, count: int) -> bytes:
        """Return `count` bytes. Raises PeerGone if fewer come."""
        while len(self._buffer) < count:
            self._more()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def recv_request_head(self) -> bytes:
        """Return a request's head, the empty line included; what follows stays for the next call."""
        while _HEAD_END not in self._buffer:
            self._more()
        return self.recv_exactly(self._buffer.index(_HEAD_END) + len(_HEAD_END))

    def wait_closed(self) -> Ending:
        """Read and discard until the client ends the connection; return how it did."""
        while self._fill():
            self._buffer = b""
        assert self._ended is not None
        return self._ended

    def _more(self) -> None:
        if not self._fill():
            raise PeerGone(f"the client left ({self._ended}) after {len(self._buffer)} bytes")

    def _fill(self) -> bool:
        """Read once from the socket; False at the end of the connection."""
        if self._ended is not None:
            return False
        try:
            data = self.sock.recv(_READ_SIZE)
        except ConnectionError:
            self._ended = "reset"
            return False
        if not data:
            self._ended = "eof"
        elif self._tls is None:
            self._buffer += data
        else:
            self._decrypt(data)
        return self._ended is None or bool(self._buffer)

    def _decrypt(self, data: bytes) -> None:
        assert self._tls is not None
        if self._tls.facts is None:
            self._hello += data
        try:
            self._buffer += self._tls.receive_data(data)
        finally:
            self._flush()  # after a failure: the alert
        if self._tls.peer_closed:
            self._ended = "close_notify"

    # --- Writing ---

    def send(self, *pieces: bytes) -> None:
        """Send the pieces in one write, each as a TLS record of its own."""
        if self._tls is None:
            self.send_raw(b"".join(pieces))
            return
        for piece in pieces:
            self._tls.write(piece)
        self._flush()

    def seal(self, *pieces: bytes) -> bytes:
        """Return the pieces as TLS records without sending them; `send_raw` can then cut them anywhere."""
        assert self._tls is not None, "there is no TLS on this connection"
        for piece in pieces:
            self._tls.write(piece)
        return self._tls.data_to_send()

    def send_raw(self, data: bytes) -> None:
        """Send bytes below TLS."""
        self.sock.sendall(data)

    def _flush(self) -> None:
        assert self._tls is not None
        if data := self._tls.data_to_send():
            self.send_raw(data)

    # --- Ending ---

    def close_notify(self) -> None:
        """Send close_notify; the TCP connection stays open."""
        assert self._tls is not None, "there is no TLS on this connection"
        self._tls.close()
        self._flush()

    def close(self) -> None:
        """End the connection in order: close_notify, then FIN."""
        if self._tls is not None:
            with contextlib.suppress(OSError):
                self.close_notify()
        self.close_without_notify()

    def close_without_notify(self) -> None:
        """Send FIN without close_notify: what a truncation attack looks like."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)  # a close alone sends RST if something was left unread
        self.sock.close()

    def close_abruptly(self) -> None:
        """Send RST."""
        with contextlib.suppress(OSError):
            reset_on_close(self.sock)
        self.sock.close()


class RawServer:
    """
    A server whose connections are served by `handler`: `with RawServer(handler) as server`.

    Args:
        handler: Called with a `RawPeer` per connection; the connection is closed in order when it returns.
        tls: Whether the handshake is carried out before `handler` is called.
        names: What the certificate is good for.
        authority: Issues the certificate; by default the one that `Server` uses.
        timeout: Seconds that any wait of a script may take.
        settings: How it speaks TLS; see `ServerSettings`.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        tls: bool = True,
        names: tuple[str, ...] = DEFAULT_NAMES,
        authority: Authority | None = None,
        timeout: float = 10.0,
        **settings: Unpack[SettingsDict],
    ) -> None:
        self.authority, self._settings = make_settings(names, authority, keywords=settings)
        self.handshake_errors: list[str] = []
        self._handler = handler
        self._tls = tls
        self._names = names
        self._timeout = timeout
        self._context = make_context(self._settings)
        self._lock = threading.Lock()  # guards what follows
        self._peers: list[RawPeer] = []
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._closing = False

    def __enter__(self) -> RawServer:
        self._listeners = listen(None, 0)
        self.port: int = self._listeners[0].getsockname()[1]
        self._wake_end, self._wake = socket.socketpair()
        self._acceptor = self._start(self._accept_all)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        self.close()
        if kind is None and self._failures:
            raise self._failures[0]

    def close(self) -> None:
        """Stop listening, cut the connections that are left, wait for the scripts to end."""
        with self._lock:
            self._closing = True
            peers = tuple(self._peers)
        self._wake.send(b"\0")  # closing a listener does not wake its accept() everywhere
        self._acceptor.join(self._timeout)
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        self.join()
        for sock in (*self._listeners, self._wake, self._wake_end):
            sock.close()

    def join(self) -> None:
        """Wait until the scripts of all connections so far have ended."""
        with self._lock:
            threads = tuple(self._threads)
        for thread in threads:
            thread.join(self._timeout)

    @property
    def url(self) -> str:
        """`https://localhost:PORT`, without a path."""
        return url_of(self._names[0], self.port)

    @property
    def ca_pem(self) -> bytes:
        """The root that vouches for the server, for the option `ca`."""
        return self.authority.ca_pem

    @property
    def connections(self) -> int:
        """How many connections were accepted."""
        with self._lock:
            return len(self._peers)

    def tls_floor(self) -> StdlibTLS:
        """Return a fresh server side for `RawPeer.start_tls`."""
        return StdlibTLS(self._context, stall_at=self._settings.stall_at)

    def _start(self, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=target, name="tlsagent-testing-script", daemon=True)
        thread.start()
        return thread

    def _accept_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in (*self._listeners, self._wake_end):
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ)
            while not self._closing:
                for key, _ in selector.select():
                    if key.fileobj is not self._wake_end:
                        self._accept_one(key.fileobj)  # type: ignore[arg-type]  # sockets alone were registered

    def _accept_one(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # the client left before its turn
        sock.settimeout(self._timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            peer = RawPeer(sock, len(self._peers) + 1, self.tls_floor() if self._tls else None)
            self._peers.append(peer)
        self._threads.append(self._start(lambda: self._serve(peer)))

    def _serve(self, peer: RawPeer) -> None:
        try:
            if self._tls and not self._shake_hands(peer):
                return
            self._handler(peer)
        except (PeerGone, ConnectionError):
            pass
        except BaseException as exc:  # noqa: BLE001 - raised again in __exit__, in the test's own thread
            if not self._closing:
                self._failures.append(exc)
        finally:
            peer.close()

    def _shake_hands(self, peer: RawPeer) -> bool:
        try:
            peer.handshake()
        except (TLSFailure, PeerGone, OSError) as exc:
            self.handshake_errors.append(str(exc))
            return False
        return True
