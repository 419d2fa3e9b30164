"""
The contenders in Python: each library wrapped to the same few calls, verifying with the same certificate authority.

`get` returns status and body, `stream` throws the body away as it comes and returns status and size. Nobody's limits
bind: idle connections live for as long as a run takes.
"""

from __future__ import annotations

import ssl
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Job, Target

_IDLE_SECONDS = 3600
_PIECE = 65_536
"""What a client is asked for at once, where it wants to be told."""


def _context(target: Target) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=target.ca)


def _agent_options(job: Job, target: Target) -> dict[str, Any]:
    """Return what both agents are told."""
    options: dict[str, Any] = {"ca": target.ca, "free_socket_timeout": _IDLE_SECONDS}
    if job.http2:
        return options | {"http2_engine": job.engine}
    return options | {"http1_engine": job.engine, "alpn_protocols": ("http/1.1",)}


def _agent_facts(job: Job, response: Any) -> dict[str, Any]:
    """Return what both agents tell of a response."""
    assert response.http_version == ("HTTP/2" if job.http2 else "HTTP/1.1"), response.http_version
    return {"engine": response.connection.http_engine}


# --- Asynchronous ones ------------------------------------------------------------------------------------------------


class AsyncTlsagent:
    """`tlsagent.AsyncAgent`."""

    def __init__(self, job: Job, target: Target) -> None:
        from tlsagent import AsyncAgent

        self._job = job
        self._agent = AsyncAgent(keep_alive=not job.fresh, **_agent_options(job, target))

    async def get(self, url: str) -> tuple[int, bytes]:
        response = await self._agent.request("GET", url)
        return response.status, response.content

    async def stream(self, url: str) -> tuple[int, int]:
        size = 0
        async with self._agent.stream("GET", url) as response:
            async for piece in response.aiter_bytes():
                size += len(piece)
            return response.status, size

    async def facts(self, url: str) -> dict[str, Any]:
        return _agent_facts(self._job, await self._agent.request("GET", url))

    async def aclose(self) -> None:
        await self._agent.aclose()


class Aiohttp:
    """aiohttp's ClientSession."""

    def __init__(self, job: Job, target: Target) -> None:
        import aiohttp

        reuse = {"force_close": True} if job.fresh else {"keepalive_timeout": _IDLE_SECONDS}
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=_context(target), **reuse))

    async def get(self, url: str) -> tuple[int, bytes]:
        async with self._session.get(url) as response:
            return response.status, await response.read()

    async def stream(self, url: str) -> tuple[int, int]:
        size = 0
        async with self._session.get(url) as response:
            async for piece in response.content.iter_any():
                size += len(piece)
            return response.status, size

    async def aclose(self) -> None:
        await self._session.close()


class AsyncHttpx:
    """httpx's AsyncClient."""

    def __init__(self, job: Job, target: Target) -> None:
        import httpx

        limits = httpx.Limits(max_keepalive_connections=0 if job.fresh else None, keepalive_expiry=_IDLE_SECONDS)
        self._client = httpx.AsyncClient(verify=_context(target), limits=limits, http2=job.http2)

    async def get(self, url: str) -> tuple[int, bytes]:
        response = await self._client.get(url)
        return response.status_code, response.content

    async def stream(self, url: str) -> tuple[int, int]:
        size = 0
        async with self._client.stream("GET", url) as response:
            async for piece in response.aiter_raw():
                size += len(piece)
            return response.status_code, size

    async def aclose(self) -> None:
        await self._client.aclose()


def _pyreqwest(builder: Any, job: Job, target: Target) -> Any:
    builder = builder.no_proxy().add_root_certificate_pem(target.ca.encode()).pool_idle_timeout(None)
    builder = builder.http2(job.http2)
    return (builder.pool_max_idle_per_host(0) if job.fresh else builder).build()


class AsyncPyreqwest:
    """pyreqwest's Client: Rust's reqwest."""

    def __init__(self, job: Job, target: Target) -> None:
        from pyreqwest.client import ClientBuilder

        self._client = _pyreqwest(ClientBuilder(), job, target)

    async def get(self, url: str) -> tuple[int, bytes]:
        response = await self._client.get(url).build().send()
        return response.status, (await response.bytes()).to_bytes()

    async def stream(self, url: str) -> tuple[int, int]:
        size = 0
        async with self._client.get(url).build_streamed() as response:
            while (piece := await response.body_reader.read_chunk()) is not None:
                size += len(piece)
            return response.status, size

    async def aclose(self) -> None:
        await self._client.close()


# --- Blocking ones ----------------------------------------------------------------------------------------------------


class Tlsagent:
    """`tlsagent.Agent`."""

    def __init__(self, job: Job, target: Target) -> None:
        from tlsagent import Agent

        self._job = job
        self._agent = Agent(**_agent_options(job, target))

    def get(self, url: str) -> tuple[int, bytes]:
        response = self._agent.request("GET", url)
        return response.status, response.content

    def stream(self, url: str) -> tuple[int, int]:
        size = 0
        with self._agent.stream("GET", url) as response:
            for piece in response.iter_bytes():
                size += len(piece)
            return response.status, size

    def facts(self, url: str) -> dict[str, Any]:
        return _agent_facts(self._job, self._agent.request("GET", url))

    def close(self) -> None:
        self._agent.close()


class HttpClient:
    """The standard library's http.client: one connection, no pool."""

    def __init__(self, job: Job, target: Target) -> None:  # noqa: ARG002 - as with the others
        import http.client

        parts = urlsplit(target.url)
        self._connection = http.client.HTTPSConnection(str(parts.hostname), parts.port, context=_context(target))
        self._prefix = len(target.url)

    def get(self, url: str) -> tuple[int, bytes]:
        self._connection.request("GET", url[self._prefix :])
        response = self._connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        self._connection.close()


class Urllib3:
    """urllib3's PoolManager."""

    def __init__(self, job: Job, target: Target) -> None:  # noqa: ARG002 - as with the others
        import urllib3

        self._pool = urllib3.PoolManager(ssl_context=_context(target))

    def get(self, url: str) -> tuple[int, bytes]:
        response = self._pool.request("GET", url)
        return response.status, response.data

    def stream(self, url: str) -> tuple[int, int]:
        response = self._pool.request("GET", url, preload_content=False)
        size = 0
        for piece in response.stream(_PIECE):
            size += len(piece)
        return response.status, size

    def close(self) -> None:
        self._pool.clear()


class Httpcore:
    """httpcore's ConnectionPool."""

    def __init__(self, job: Job, target: Target) -> None:
        import httpcore

        self._pool = httpcore.ConnectionPool(
            ssl_context=_context(target), keepalive_expiry=_IDLE_SECONDS, http2=job.http2
        )

    def get(self, url: str) -> tuple[int, bytes]:
        response = self._pool.request("GET", url)
        return response.status, response.content

    def close(self) -> None:
        self._pool.close()


class Httpx:
    """httpx's Client."""

    def __init__(self, job: Job, target: Target) -> None:
        import httpx

        limits = httpx.Limits(keepalive_expiry=_IDLE_SECONDS)
        self._client = httpx.Client(verify=_context(target), limits=limits, http2=job.http2)

    def get(self, url: str) -> tuple[int, bytes]:
        response = self._client.get(url)
        return response.status_code, response.content

    def stream(self, url: str) -> tuple[int, int]:
        size = 0
        with self._client.stream("GET", url) as response:
            for piece in response.iter_raw():
                size += len(piece)
            return response.status_code, size

    def close(self) -> None:
        self._client.close()


class Pycurl:
    """pycurl: libcurl, one handle used again and again."""

    def __init__(self, job: Job, target: Target) -> None:
        import pycurl

        self._curl = pycurl.Curl()
        version = pycurl.CURL_HTTP_VERSION_2TLS if job.http2 else pycurl.CURL_HTTP_VERSION_1_1
        self._curl.setopt(pycurl.HTTP_VERSION, version)
        self._curl.setopt(pycurl.CAINFO, target.ca_file)
        self._url, self._write, self._status = pycurl.URL, pycurl.WRITEFUNCTION, pycurl.RESPONSE_CODE

    def get(self, url: str) -> tuple[int, bytes]:
        body = BytesIO()
        return self._perform(url, body.write), body.getvalue()

    def stream(self, url: str) -> tuple[int, int]:
        size = 0

        def count(piece: bytes) -> None:
            nonlocal size
            size += len(piece)

        return self._perform(url, count), size

    def _perform(self, url: str, write: Callable[[bytes], object]) -> int:
        curl = self._curl
        curl.setopt(self._url, url)
        curl.setopt(self._write, write)
        curl.perform()
        status: int = curl.getinfo(self._status)
        return status

    def close(self) -> None:
        self._curl.close()


class Pyreqwest:
    """pyreqwest's SyncClient."""

    def __init__(self, job: Job, target: Target) -> None:
        from pyreqwest.client import SyncClientBuilder

        self._client = _pyreqwest(SyncClientBuilder(), job, target)

    def get(self, url: str) -> tuple[int, bytes]:
        response = self._client.get(url).build().send()
        return response.status, response.bytes().to_bytes()

    def stream(self, url: str) -> tuple[int, int]:
        size = 0
        with self._client.get(url).build_streamed() as response:
            while (piece := response.body_reader.read_chunk()) is not None:
                size += len(piece)
            return response.status, size

    def close(self) -> None:
        self._client.close()


class CurlCffi:
    """curl_cffi's Session."""

    def __init__(self, job: Job, target: Target) -> None:  # noqa: ARG002 - as with the others
        from curl_cffi import requests

        self._session: Any = requests.Session(verify=cast("Any", target.ca_file), http_version="v1")

    def get(self, url: str) -> tuple[int, bytes]:
        response = self._session.get(url)
        return response.status_code, response.content

    def close(self) -> None:
        self._session.close()


ASYNC: dict[str, Callable[[Job, Target], Any]] = {
    "AsyncAgent": AsyncTlsagent,
    "aiohttp": Aiohttp,
    "httpx.AsyncClient": AsyncHttpx,
    "pyreqwest.Client": AsyncPyreqwest,
}
SYNC: dict[str, Callable[[Job, Target], Any]] = {
    "Agent": Tlsagent,
    "http.client": HttpClient,
    "urllib3": Urllib3,
    "httpcore": Httpcore,
    "httpx.Client": Httpx,
    "pycurl": Pycurl,
    "pyreqwest.SyncClient": Pyreqwest,
    "curl_cffi": CurlCffi,
}
