"""
An HTTPS server to embed: for the demo, this project's tests and yours.

    with Server() as server:
        response = agent.request("GET", server.url + "/hello")
        assert server.stats.handshakes_full == 1

`AsyncServer` lives in the caller's loop, `Server` in a daemon thread with a loop of its own; both present a throw-away
certificate that `server.ca_pem` vouches for, serve an ASGI 3 application (the demo routes by default) and keep records
of what they saw. Faults are settings: a server that stalls in the handshake, that drops connections without
close_notify, that forgets its tickets, that refuses streams (the demo routes reset them). For a peer that breaks HTTP
itself, byte by byte or frame by frame, see `RawServer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, Unpack

from tlsagent._options import ConnectionOptions
from tlsagent.testing._link import How, ServerConnection
from tlsagent.testing._listen import DEFAULT_NAMES, listen, url_of
from tlsagent.testing._openssl_tls import OpenSSLContext
from tlsagent.testing._settings import (
    BESIDE_THE_CONTEXT,
    ServerSettings,
    SettingsDict,
    make_settings,
    refuse_beside_context,
)
from tlsagent.testing._tls import StdlibTLS, TLSFloor, make_context
from tlsagent.testing.app import app as demo
from tlsagent.testing.records import ConnectionRecord, Ledger, ServerStats

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from tlsagent.testing._asgi import Application
    from tlsagent.testing.authority import Authority

T = TypeVar("T")
Options = ConnectionOptions | Mapping[str, Any]

_BUFFER_SIZE: Final = 262_144
_GRACE: Final = 0.5  # seconds for peers to take what was written before the server stops
_STARTUP: Final = 10.0


class _Floors(Protocol):
    """Makes the TLS floor of each new connection."""

    def __call__(self, *, stall_at: str | None) -> TLSFloor: ...


def _floors_of(settings: ServerSettings) -> _Floors:
    """Return what makes floors; each time with ticket keys of its own."""
    if settings.needs_openssl:
        return OpenSSLContext(settings)
    context = make_context(settings)
    if settings.tickets != 0:
        return functools.partial(StdlibTLS, context)
    # ssl cannot switch its session cache off. With a context for each connection nothing can be resumed.
    return lambda *, stall_at: StdlibTLS(make_context(settings), stall_at=stall_at)


class AsyncServer:
    """
    An HTTPS server in the running event loop: `async with AsyncServer() as server`.

    Args:
        options: Server-side `ConnectionOptions`, or a mapping of them: cert, key, passphrase, pfx, ca (for client
            certificates), request_cert, reject_unauthorized, ciphers, alpn_protocols, min_version, max_version,
            secure_protocol; and those that ssl cannot honour, for which the server changes to pyOpenSSL: crl, dhparam,
            ecdh_curve, honor_cipher_order (on unless False), secure_context, secure_options, session_id_context,
            sigalgs, sni_callback, allow_partial_trust_chain; and psk_callback: `callable(identity) -> bytes | Psk |
            None`, Node's `(socket, identity)`. It runs inside the handshake; what it raises ends that connection. A
            client whose key is not known gets the certificate in TLS 1.3, and an alert in TLS 1.2. Without `ciphers`
            the server does those with pre-shared keys besides, and prefers in TLS 1.3 the ones that they work with:
            those of SHA-256.
        app: ASGI 3 application; the demo routes of `tlsagent.testing.app` by default.
        names: What the certificate is good for. The first one is the host of `url`.
        host: Address to listen on; by default the loopback addresses, IPv4 and IPv6.
        port: 0 takes a free one.
        authority: Issues the certificate; by default one that is made once per process.
        record_limit: Connections, and requests per connection, of which records are kept. Totals count on.
        settings: How it speaks TLS and HTTP; see `ServerSettings`. They win over `options`. HTTP/2 is spoken with
            clients that offer it, unless `alpn_protocols` says otherwise: `Server(alpn_protocols=["http/1.1"])`.
    """

    def __init__(
        self,
        options: Options | None = None,
        app: Application | None = None,
        *,
        names: tuple[str, ...] = DEFAULT_NAMES,
        host: str | None = None,
        port: int = 0,
        authority: Authority | None = None,
        record_limit: int = 1_000,
        **settings: Unpack[SettingsDict],
    ) -> None:
        self.authority, self.settings = make_settings(
            names, authority, options=options, keywords=settings, speaks=("h2", "http/1.1")
        )
        self.app = app or demo
        self.ledger = Ledger(record_limit)
        self.links: set[ServerConnection] = set()
        self.buffer = memoryview(bytearray(_BUFFER_SIZE))
        self._names = names
        self._host = host
        self._port = port
        self._floors = _floors_of(self.settings)
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> AsyncServer:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Listen. `port` and `url` are known afterwards."""
        loop = asyncio.get_running_loop()
        for sock in self._listen():
            self._servers.append(await loop.create_server(self._accept, sock=sock, backlog=1_024))

    def _listen(self) -> list[socket.socket]:
        sockets = listen(self._host, self._port)
        self._port = sockets[0].getsockname()[1]
        return sockets

    def _accept(self) -> ServerConnection:
        return ServerConnection(self, self._floors(stall_at=self.settings.stall_at))

    async def aclose(self) -> None:
        """Stop listening, end the connections in order, cancel the applications."""
        await self._stop_accepting()
        self.close_connections()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone(), _GRACE)
        for link in tuple(self.links):
            link.kill()
        await self._all_gone()

    async def _stop_accepting(self) -> None:
        # asyncio.Server.close() loses, unclosed, what was accepted in the same turn of the loop: the task that would
        # make a transport of it fails on the closed server. So stop listening first and let those tasks run; they
        # call connection_made() one turn later. (Windows' loop knows no readers, and accepts in one step.)
        for server in self._servers:
            for sock in server.sockets:
                with contextlib.suppress(NotImplementedError):
                    asyncio.get_running_loop().remove_reader(sock.fileno())
        for _ in range(2):
            await asyncio.sleep(0)
        for server in self._servers:
            server.close()

    async def _all_gone(self) -> None:
        await self._wait(lambda: not self.links)

    # --- What tests ask ---

    @property
    def url(self) -> str:
        """`https://localhost:PORT`, without a path."""
        return url_of(self._names[0], self._port)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def ca_pem(self) -> bytes:
        """The root that vouches for the server, for the option `ca`."""
        return self.authority.ca_pem

    @property
    def stats(self) -> ServerStats:
        """Totals up to now."""
        return self.ledger.stats()

    @property
    def connections(self) -> tuple[ConnectionRecord, ...]:
        """Records of the latest connections, oldest first, open ones included."""
        return self.ledger.snapshot()

    async def wait_for(
        self,
        condition: Callable[[AsyncServer], object],
        *,
        timeout: float = 5.0,  # noqa: ASYNC109 - a condition that never holds is an answer here, not an error
    ) -> bool:
        """
        Wait until `condition(server)` is true; it is asked again after every event. False if it never was.

        The server learns of what a client does a little later than the client: a test that asks about a close waits.
        """
        try:
            await asyncio.wait_for(self._wait(lambda: condition(self)), timeout)
        except TimeoutError:
            return False
        return True

    async def _wait(self, condition: Callable[[], object]) -> None:
        changed = asyncio.Event()
        unsubscribe = self.ledger.subscribe(changed.set)
        try:
            while not condition():
                await changed.wait()
                changed.clear()
        finally:
            unsubscribe()

    # --- What tests order ---

    def rotate_ticket_keys(self) -> None:
        """Forget all sessions: ticket keys and session ids. Open connections live on."""
        self._floors = _floors_of(self.settings)

    def reconfigure(self, **settings: Unpack[SettingsDict]) -> None:
        """
        Change settings for the connections to come.

        Sessions are forgotten too, unless nothing changes but `stall_at`, `refuse_resumption`,
        `drop_without_close_notify` and what is about HTTP/2; or `session_id_context`, on a server that began with one:
        then it may show that it resumes none of another's.
        """
        refuse_beside_context(self.settings.options, settings)
        self.settings = dataclasses.replace(self.settings, **settings)
        changed = settings.keys() - BESIDE_THE_CONTEXT
        if changed == {"session_id_context"} and isinstance(self._floors, OpenSSLContext):
            self._floors = self._floors.under(self.settings)
        elif changed:
            self.rotate_ticket_keys()

    def close_connections(self, how: How | None = None) -> None:
        """
        End all open connections.

        Args:
            how: "close_notify", "eof" (a FIN without it) or "reset", without a GOAWAY in HTTP/2; by default what the
                settings say, after a GOAWAY.
        """
        for link in tuple(self.links):
            if how is None:
                link.leave()
            else:
                link.end(how)

    def go_away(self, last_stream_id: int | None = None, code: int = 0) -> None:
        """
        Send GOAWAY on all open connections of HTTP/2 (RFC 9113 6.8); each is closed once its streams have ended.

        Without arguments gracefully, in two steps: the first GOAWAY only warns, the second names the last stream and
        leaves when the client has answered the first.

        Args:
            last_stream_id: Streams above it are dropped without a word, and new ones ignored; by default the last one
                that was served.
            code: The error code, 0 for none (RFC 9113 section 7).
        """
        for link in tuple(self.links):
            link.go_away(last_stream_id, code)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run an application's work as a task that ends with the server."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Server:
    """
    `AsyncServer` in a daemon thread, for blocking code: `with Server() as server`. Takes the same arguments.

    All methods and properties may be used from any thread.
    """

    def __init__(
        self,
        options: Options | None = None,
        app: Application | None = None,
        *,
        names: tuple[str, ...] = DEFAULT_NAMES,
        host: str | None = None,
        port: int = 0,
        authority: Authority | None = None,
        record_limit: int = 1_000,
        **settings: Unpack[SettingsDict],
    ) -> None:
        self._inner = AsyncServer(
            options, app, names=names, host=host, port=port, authority=authority, record_limit=record_limit, **settings
        )
        self._thread = threading.Thread(target=self._run, name="tlsagent-testing-server", daemon=True)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the thread and listen. Raises what kept the server from listening."""
        self._thread.start()
        if not self._ready.wait(_STARTUP):
            raise TimeoutError("the testing server did not start")
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits in start()
            self._failure = exc
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with self._inner:
            self._ready.set()
            await self._stop.wait()

    def close(self) -> None:
        """Stop; returns when the thread has ended. The second time nothing happens."""
        if self._loop is None or self._stop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STARTUP)
        self._loop = None

    def _in_loop(self, call: Callable[[], T]) -> T:
        if self._loop is None:
            return call()  # not running: nobody else looks

        async def carry_out() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(carry_out(), self._loop).result(_STARTUP)

    @property
    def authority(self) -> Authority:
        """Issues the server's certificate, and may issue yours."""
        return self._inner.authority

    @property
    def url(self) -> str:
        """`https://localhost:PORT`, without a path."""
        return self._inner.url

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._inner.port

    @property
    def ca_pem(self) -> bytes:
        """The root that vouches for the server, for the option `ca`."""
        return self._inner.ca_pem

    @property
    def stats(self) -> ServerStats:
        """Totals up to now."""
        return self._inner.stats

    @property
    def connections(self) -> tuple[ConnectionRecord, ...]:
        """Records of the latest connections, oldest first, open ones included."""
        return self._inner.connections

    def wait_for(self, condition: Callable[[Server], object], *, timeout: float = 5.0) -> bool:
        """Wait until `condition(server)` is true, asked again after every event; False if it never was."""
        changed = threading.Event()
        unsubscribe = self._inner.ledger.subscribe(changed.set)
        end = time.monotonic() + timeout
        try:
            while not condition(self):
                if not changed.wait(max(0.0, end - time.monotonic())):
                    return False
                changed.clear()
        finally:
            unsubscribe()
        return True

    def rotate_ticket_keys(self) -> None:
        """Forget all sessions: ticket keys and session ids. Open connections live on."""
        self._in_loop(self._inner.rotate_ticket_keys)

    def reconfigure(self, **settings: Unpack[SettingsDict]) -> None:
        """Change settings for the connections to come; see `AsyncServer.reconfigure`."""
        self._in_loop(lambda: self._inner.reconfigure(**settings))

    def go_away(self, last_stream_id: int | None = None, code: int = 0) -> None:
        """Send GOAWAY on all open connections of HTTP/2; see `AsyncServer.go_away`."""
        self._in_loop(lambda: self._inner.go_away(last_stream_id, code))

    def close_connections(self, how: How | None = None) -> None:
        """End all open connections: "close_notify", "eof" (a FIN without it), "reset"; None: what the settings say."""
        self._in_loop(lambda: self._inner.close_connections(how))
