"""
The servers of a scenario: HTTP/1.1 over TLS as Node's server would speak it, with the faults that a query asks for.

TLS is the standard library's, in the loop of the replay; HTTP/1.1 is read and written by hand here, so that a client's
mistake meets no library of the client's own, and HTTP/2 by h2. What a server saw is kept in `Record`s: the other side
of the wire.

The query of a request: delay, status, conn, ka, chunked, eof, trunc, double, poison, end_after, rst_after, destroy,
rst, early; `meta.server` of the file says what each does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import socket
import ssl
import struct
import tempfile
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from h2.exceptions import ProtocolError
from tests.pooling.material import Unknown, authority, common_name, server_credentials

from tlsagent.testing import ClientHello, Credentials
from tlsagent.testing._tls import StdlibTLS, TLSFailure

_KNOWN = {"minVersion", "maxVersion", "ALPNProtocols", "mtls", "sni", "cert", "http2", "raw"}
_KNOWN_QUERY = {
    "id", "delay", "status", "conn", "ka", "chunked", "eof", "trunc", "double", "poison", "end_after", "rst_after",
    "destroy", "rst", "early",
}  # fmt: skip


@dataclasses.dataclass
class Record:
    """One connection whose handshake was completed."""

    conn: int
    resumed: bool
    protocol: str
    sni: str | None
    alpn: str | None
    client_cn: str | None
    requests: list[str] = dataclasses.field(default_factory=list)


class Board:
    """What all servers of a scenario count together."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.max_concurrent = 0
        self.concurrent = 0
        self.failures: list[str] = []

    def served(self, task: asyncio.Task[None]) -> None:
        """Keep what a connection's task raised: a fault of the replay, not of the client."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(f"server: {error!r}")

    def opened(self) -> None:
        self.concurrent += 1
        self.max_concurrent = max(self.max_concurrent, self.concurrent)

    def closed(self) -> None:
        self.concurrent -= 1


class NodeServer:
    """One server of a scenario; `config` as in the file."""

    def __init__(self, config: dict[str, Any], board: Board) -> None:
        if unknown := config.keys() - _KNOWN:
            raise Unknown(f"a server with {', '.join(sorted(unknown))}")
        self.config = config
        self.board = board
        self.records: list[Record] = []
        self.order: list[str] = []
        self.connections = 0
        self.concurrent = 0
        self.max_concurrent = 0
        self.tls_errors = 0
        self.port = 0
        self.silent = config.get("raw") == "silent"
        self.links: set[asyncio.Protocol] = set()
        self.rotate_tickets()
        self._listener: asyncio.Server | None = None

    def rotate_tickets(self) -> None:
        """Forget the ticket keys: a context has its own."""
        self.context = _context(self.config)

    async def listen(self) -> None:
        """Listen, on the same port as before."""
        kind = _Silence if self.silent else _Link
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: kind(self), "127.0.0.1", self.port, backlog=100)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and cut all connections."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for link in tuple(self.links):
            link.transport.abort()  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    def opened(self, *, established: bool) -> None:
        """Count a connection; one that is not established counts for this server alone."""
        self.connections += 1
        self.concurrent += 1
        self.max_concurrent = max(self.max_concurrent, self.concurrent)
        if established:
            self.board.opened()

    def closed(self, *, established: bool) -> None:
        self.concurrent -= 1
        if established:
            self.board.closed()

    def seen(self) -> dict[str, Any]:
        """Return what was observed, in the form of the file."""
        seen: dict[str, Any] = {
            "connections": self.connections,
            "max_concurrent": self.max_concurrent,
            "order": self.order,
            "conns": [dataclasses.asdict(record) for record in self.records],
        }
        return seen | ({"tls_errors": self.tls_errors} if self.tls_errors else {})


# --- TLS --------------------------------------------------------------------------------------------------------------


def _context(config: dict[str, Any]) -> ssl.SSLContext:
    context = _plain_context(server_credentials(config.get("cert")), config)
    if by_name := config.get("sni"):
        others = {name: _plain_context(server_credentials(cert), config) for name, cert in by_name.items()}

        def choose(tls: ssl.SSLObject, name: str | None, _default: ssl.SSLContext) -> None:
            if name in others:
                tls.context = others[name]

        context.sni_callback = choose
    return context


def _plain_context(credentials: Credentials, config: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:  # ssl reads certificates from files only
        path = os.path.join(folder, "server.pem")
        with open(path, "wb") as file:
            file.write(credentials.key_pem + credentials.cert_pem)
        context.load_cert_chain(path)
    context.minimum_version = _version(config.get("minVersion", "TLSv1.2"))
    context.maximum_version = _version(config.get("maxVersion", "TLSv1.3"))
    protocols = ["h2"] if config.get("http2") else config.get("ALPNProtocols")
    if protocols:
        context.set_alpn_protocols(protocols)
    if config.get("mtls"):
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority("ca1").ca_pem.decode("ascii"))
    return context


def _version(name: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[name.replace(".", "_")]


class _Silence(asyncio.Protocol):
    """A connection that is accepted and never answered."""

    def __init__(self, server: NodeServer) -> None:
        self._server = server
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._server.links.add(self)
        self._server.opened(established=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.links.discard(self)
        self._server.closed(established=False)


class _Link(asyncio.Protocol):
    """One connection: TLS, then a task that serves its requests."""

    def __init__(self, server: NodeServer) -> None:
        self._server = server
        self._tls = StdlibTLS(server.context)
        self._hello = b""
        self._record: Record | None = None
        self._buffer = b""
        self._ended = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._laters: list[asyncio.TimerHandle] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._server.links.add(self)

    def data_received(self, data: bytes) -> None:
        if self._record is None:
            self._hello += data
        try:
            self._buffer += self._tls.receive_data(data)
        except TLSFailure:
            self._flush()
            self.transport.close()
            return
        self._flush()
        if self._record is None and self._tls.facts is not None:
            self._secured()
        self._ended = self._ended or self._tls.peer_closed
        self._news.set()

    def eof_received(self) -> bool:
        self._ended = True
        self._news.set()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.links.discard(self)
        for later in self._laters:
            later.cancel()
        if self._record is None:
            self._server.tls_errors += 1
            return
        self._server.closed(established=True)
        if self._task is not None:
            self._task.cancel()

    def _secured(self) -> None:
        facts = self._tls.facts
        assert facts is not None
        hello = ClientHello.parse(self._hello)
        # Node's server does not know the name of a resumed TLS 1.2 connection.
        nameless = hello is None or (facts.session_reused and facts.version == "TLSv1.2")
        self._record = Record(
            conn=len(self._server.records) + 1,
            resumed=facts.session_reused,
            protocol=facts.version,
            sni=None if nameless else hello.server_name,  # type: ignore[union-attr]
            alpn=facts.alpn,
            client_cn=common_name(facts.client_certificate),
        )
        self._server.records.append(self._record)
        self._server.opened(established=True)
        serve = self._serve_h2() if self._server.config.get("http2") else self._serve()
        self._task = asyncio.get_running_loop().create_task(serve)
        self._task.add_done_callback(self._server.board.served)

    def _send(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self._tls.write(data)
            self._flush()

    def _flush(self) -> None:
        if (data := self._tls.data_to_send()) and not self.transport.is_closing():
            self.transport.write(data)

    def _end(self) -> None:
        """End in order: close_notify, FIN."""
        self._tls.close()
        self._flush()
        self.transport.close()

    def _reset(self) -> None:
        with contextlib.suppress(OSError):
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    # --- HTTP ---

    async def _serve_h2(self) -> None:
        http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        http.initiate_connection()
        with contextlib.suppress(EOFError, ProtocolError):
            while True:
                self._send(http.data_to_send())
                await self._some()
                data, self._buffer = self._buffer, b""
                for event in http.receive_data(data):
                    if isinstance(event, RequestReceived):
                        headers = dict(event.headers)
                        self._note(dict(parse_qsl(urlsplit(headers[":path"]).query))["id"])
                        body = self._report({"host": headers[":authority"]})
                        http.send_headers(event.stream_id, [(":status", "200")])
                        http.send_data(event.stream_id, body, end_stream=True)
        self._send(http.data_to_send())
        self._end()

    async def _serve(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                head = await self._until(b"\r\n\r\n")
                if not await self._answer(*_parsed(head)):
                    return
        self._end()

    async def _answer(self, method: str, target: str, headers: dict[str, str]) -> bool:
        """Serve one request; False if the connection goes no further."""
        query = dict(parse_qsl(urlsplit(target).query))
        if unknown := query.keys() - _KNOWN_QUERY:
            raise Unknown(f"a request with {', '.join(sorted(unknown))}")
        if "id" not in query:  # no request of the scenario: HTTP/2's preface, say
            self._send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            self._end()
            return False
        self._note(query["id"])
        if "early" not in query:
            await self._body(headers)
        if "delay" in query:
            await asyncio.sleep(int(query["delay"]) / 1000)
        if "destroy" in query or "rst" in query:
            (self._reset if "rst" in query else self.transport.abort)()
            return False
        closes = headers.get("connection", "").lower() == "close" or query.get("conn") == "close" or "eof" in query
        self._send(_response(method, query, self._report(headers), closes))
        if "trunc" in query:
            self.transport.close()
            return False
        if closes:
            self._end()
            return False
        if "early" in query:
            await self._body(headers)
        self._trouble_later(query)
        return True

    def _note(self, name: str) -> None:
        assert self._record is not None
        for order in (self._record.requests, self._server.order, self._server.board.order):
            order.append(name)

    def _trouble_later(self, query: dict[str, str]) -> None:
        unasked = functools.partial(self._send, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON")
        for kind, do in (("end_after", self._end), ("rst_after", self._reset), ("poison", unasked)):
            if kind in query:
                self._laters.append(asyncio.get_running_loop().call_later(int(query[kind]) / 1000, do))

    def _report(self, headers: dict[str, str]) -> bytes:
        record = self._record
        assert record is not None
        seen = {
            "id": record.requests[-1],
            "conn": record.conn,
            "nth_on_conn": len(record.requests),
            # RFC 9112, 9.3: an HTTP/1.1 request that says nothing means keep-alive.
            "connection_header": headers.get("connection", "keep-alive"),
            "host_header": headers.get("host", "").replace(str(self._server.port), "<port>"),
        }
        return json.dumps(seen).encode("ascii")

    async def _body(self, headers: dict[str, str]) -> None:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._until(b"\r\n")).split(b";")[0], 16):
                await self._exactly(size + 2)
            while await self._until(b"\r\n") != b"\r\n":
                pass
        else:
            await self._exactly(int(headers.get("content-length", "0")))

    async def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            await self._some()
        return await self._exactly(self._buffer.index(mark) + len(mark))

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._some()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    async def _some(self) -> None:
        if self._ended:
            raise EOFError
        self._news.clear()
        await self._news.wait()


def _parsed(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, _version = first.split(" ")
    fields = (line.partition(":") for line in lines)
    return method, target, {name.lower(): value.strip() for name, _, value in fields}


def _response(method: str, query: dict[str, str], body: bytes, closes: bool) -> bytes:
    status = int(query.get("status", "200"))
    lines = [f"HTTP/{'1.0' if 'eof' in query else '1.1'} {status} X"]
    if "eof" not in query:
        lines.append(f"Connection: {query.get('conn') or ('close' if closes else 'keep-alive')}")
    if "ka" in query:
        lines.append(f"Keep-Alive: {query['ka']}")
    bodiless = method == "HEAD" or status in (204, 304)
    if "chunked" in query and not bodiless:
        lines.append("Transfer-Encoding: chunked")
        half = len(body) // 2
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:])) + b"0\r\n\r\n"
    elif "eof" not in query and not bodiless:
        lines.append(f"Content-Length: {len(body) * (2 if 'trunc' in query else 1)}")
    whole = "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if bodiless else body)
    return whole * 2 if "double" in query else whole
