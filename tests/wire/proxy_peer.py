"""
A proxy on loopback: HTTP CONNECT, over TLS too, and SOCKS5. It keeps what it was asked and what went through.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import tempfile
import threading
from dataclasses import dataclass, field
from typing import Any, Self

from tlsagent.testing import Authority


@dataclass
class Asked:
    """What one connection asked for, and the bytes that the client sent through the tunnel."""

    target: str = ""
    head: bytes = b""
    credentials: tuple[bytes, bytes] | None = None
    upwards: bytearray = field(default_factory=bytearray, repr=False)
    ended: bool = False


class ProxyServer:
    """
    A proxy in a thread of its own.

    Args:
        scheme: "http", "https" or "socks5".
        credentials: User name and password that SOCKS5 demands.
        names: Where names lead, for those that only the proxy can resolve.
        answer: Sent instead of asking any server: what the proxy says when the request is there.
        authority: Who issues the certificate of an https proxy.
        host: The name in that certificate.
        request_cert: Whether to demand a certificate of the client, of the same issuer.
        hold: Answer no request before `release` is called.
    """

    def __init__(
        self,
        scheme: str = "http",
        *,
        credentials: tuple[bytes, bytes] | None = None,
        names: dict[str, str] | None = None,
        answer: bytes | None = None,
        authority: Authority | None = None,
        host: str = "localhost",
        request_cert: bool = False,
        hold: bool = False,
    ) -> None:
        self.scheme = scheme
        self.asked: list[Asked] = []
        self._credentials = credentials
        self._names = names or {}
        self._answer = answer
        self._released = asyncio.Event()
        if not hold:
            self._released.set()
        self._context = self._tls(authority or Authority(), host, request_cert) if scheme == "https" else None
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: list[asyncio.BaseTransport] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def _tls(self, authority: Authority, host: str, request_cert: bool) -> ssl.SSLContext:
        self.ca_pem = authority.ca_pem
        issued = authority.issue(host)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:
            file.write(issued.cert_pem + issued.key_pem)
            file.flush()
            context.load_cert_chain(file.name)
        if request_cert:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=authority.ca_pem.decode())
        return context

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}"

    def release(self) -> None:
        """Answer what was held."""
        self._loop.call_soon_threadsafe(self._released.set)

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = Asked()
        self.asked.append(asked)
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        self._transports.append(writer.transport)
        try:
            # Cancelled when the test is over.
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                speak = self._socks if self.scheme.startswith("socks") else self._connect
                target = await speak(reader, writer, asked)
                await self._released.wait()
                if target is not None:
                    await self._relay(reader, writer, asked, *target)
        finally:
            asked.ended = True
            writer.close()

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked
    ) -> tuple[str, int] | None:
        asked.head = await reader.readuntil(b"\r\n\r\n")
        asked.target = asked.head.split(b" ")[1].decode()
        if self._answer is not None:
            writer.write(self._answer)
            await writer.drain()
            await reader.read()
            return None
        host, _, port = asked.target.rpartition(":")
        return host.strip("[]"), int(port)

    async def _socks(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked
    ) -> tuple[str, int] | None:
        _version, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        wanted = 0 if self._credentials is None else 2
        writer.write(bytes([5, wanted if wanted in methods else 255]))
        if wanted not in methods:
            await reader.read()
            return None
        if wanted:
            user = await self._field(reader, skip=1)
            asked.credentials = (user, await self._field(reader))
            writer.write(bytes([1, asked.credentials != self._credentials]))
            if asked.credentials != self._credentials:
                await reader.read()
                return None
        *_, kind = await reader.readexactly(4)
        if kind == 3:
            host = (await self._field(reader)).decode()
        else:
            host = str(ipaddress.ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        port = int.from_bytes(await reader.readexactly(2), "big")
        asked.target = f"{host}:{port}"
        if self._answer is not None:
            writer.write(self._answer)
            await reader.read()
            return None
        return host, port

    async def _field(self, reader: asyncio.StreamReader, *, skip: int = 0) -> bytes:
        size = (await reader.readexactly(skip + 1))[-1]
        return await reader.readexactly(size)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: Asked, host: str, port: int
    ) -> None:
        from_server, to_server = await asyncio.open_connection(self._names.get(host, host), port)
        self._transports.append(to_server.transport)
        if self.scheme.startswith("socks"):
            writer.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
        else:
            writer.write(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")

        async def down() -> None:
            while data := await from_server.read(65_536):
                writer.write(data)
                await writer.drain()
            writer.close()

        going_down = asyncio.create_task(down())
        try:
            while data := await reader.read(65_536):
                asked.upwards += data
                to_server.write(data)
                await to_server.drain()
        finally:
            to_server.close()
            going_down.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await going_down

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for transport in self._transports:
            transport.abort()  # type: ignore[attr-defined]
        for _ in range(5):
            await asyncio.sleep(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
