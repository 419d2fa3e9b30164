"""
The demo routes: an ASGI 3 application without dependencies, which any ASGI server can run.

    /hello          "Hello, world"
    /bytes/N        N bytes, with a Content-Length
    /echo           the request's body as it comes, with its Content-Type, and its trailers if it announced any
    /delay/S        "Hello, world" after S seconds
    /status/N       an empty response of that status
    /chunked        several pieces without a Content-Length
    /trailers       a body and a trailer field (extension http.response.trailers)
    /close          the server closes the connection afterwards
    /headers        the request's header fields as JSON: a list of [name, value]
    /connection     what the server knows of the connection, as JSON (tlsagent.testing.Server only)
    /reset/N        resets the stream with error code N instead of an answer: 7 refuses it (HTTP/2 only)
    /cut/N          resets it in the middle of the response's body (HTTP/2 only)
    /goaway/N       answers, and sends GOAWAY with error code N: the connection takes no more (HTTP/2 only)
    /early          answers without reading the request's body, and asks the client to stop sending it (HTTP/2 only)
    /upgrade        switches to the protocol that Upgrade names, and echoes its bytes (tlsagent.testing.Server only)
    CONNECT         opens a tunnel to wherever it is to lead, and echoes what comes (tlsagent.testing.Server only)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tlsagent.testing._asgi import Message, Receive, Scope, Send

Route = Callable[[Scope, Receive, Send, str], Awaitable[None]]

_HELLO: Final = b"Hello, world"
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_BINARY: Final = (b"content-type", b"application/octet-stream")
_PIECE: Final = bytes(65_536)
_LARGEST: Final = 1 << 40
_LAST_CODE: Final = 2**32 - 1


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the demo routes."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    if scope["type"] != "http":
        raise NotImplementedError(f"the demo routes do not speak {scope['type']}")
    method = scope.get("method")
    _, name, *rest = ("", "upgrade") if method == "CONNECT" else scope["path"].split("/", 2)
    route = _ROUTES.get(name)
    if route is None:
        await _answer(send, 404, f"there is no {scope['path']}; try /{', /'.join(_ROUTES)}".encode())
        return
    try:
        await route(scope, receive, send, rest[0] if rest else "")
    except _BadArgument as exc:
        await _answer(send, 400, str(exc).encode())


class _BadArgument(Exception):
    pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _start(send: Send, status: int, *headers: tuple[bytes, bytes], trailers: bool = False) -> None:
    message: Message = {"type": "http.response.start", "status": status, "headers": list(headers)}
    if trailers:
        message["trailers"] = True
    await send(message)


async def _body(send: Send, data: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    fields = headers or (_TEXT,)
    if status not in {204, 304}:  # RFC 9110 8.6
        fields += ((b"content-length", b"%d" % len(body)),)
    await _start(send, status, *fields)
    await _body(send, body)


def _number(argument: str, lowest: int, highest: int) -> int:
    if not (argument.isascii() and argument.isdigit() and lowest <= int(argument) <= highest):
        raise _BadArgument(f"expected a number from {lowest} to {highest}, not {argument[:40]!r}")
    return int(argument)


async def _hello(_scope: Scope, _receive: Receive, send: Send, _argument: str) -> None:
    await _answer(send, 200, _HELLO)


async def _bytes(_scope: Scope, _receive: Receive, send: Send, argument: str) -> None:
    left = _number(argument, 0, _LARGEST)
    await _start(send, 200, _BINARY, (b"content-length", b"%d" % left))
    while left > len(_PIECE):
        await _body(send, _PIECE, more=True)
        left -= len(_PIECE)
    await _body(send, _PIECE[:left])


async def _echo(scope: Scope, receive: Receive, send: Send, _argument: str) -> None:
    request = dict(scope["headers"])
    message = await receive()  # first of all: a client may be waiting for 100 (Continue)
    content_type = (b"content-type", request.get(b"content-type", _BINARY[1]))
    await _start(send, 200, content_type, trailers=b"trailer" in request)
    while message["type"] == "http.request":
        await _body(send, message["body"], more=message["more_body"])
        if not message["more_body"]:
            break
        message = await receive()
    if b"trailer" in request:
        await send({"type": "http.response.trailers", "headers": message.get("trailers", [])})


async def _delay(_scope: Scope, _receive: Receive, send: Send, argument: str) -> None:
    try:
        seconds = float(argument)
    except ValueError:
        raise _BadArgument(f"expected a number of seconds, not {argument[:40]!r}") from None
    if not 0 <= seconds <= 3600:
        raise _BadArgument("expected 0 to 3600 seconds")
    await asyncio.sleep(seconds)
    await _answer(send, 200, _HELLO)


async def _status(_scope: Scope, _receive: Receive, send: Send, argument: str) -> None:
    await _answer(send, _number(argument, 200, 599), b"")


async def _chunked(_scope: Scope, _receive: Receive, send: Send, _argument: str) -> None:
    await _start(send, 200, _TEXT)
    for piece in (b"one\n", b"two\n", b"three\n"):
        await _body(send, piece, more=True)
    await _body(send, b"")


async def _trailers(_scope: Scope, _receive: Receive, send: Send, _argument: str) -> None:
    await _start(send, 200, _TEXT, (b"trailer", b"x-checksum"), trailers=True)
    await _body(send, _HELLO)
    await send({"type": "http.response.trailers", "headers": [(b"x-checksum", b"12")], "more_trailers": False})


async def _close(_scope: Scope, _receive: Receive, send: Send, _argument: str) -> None:
    await _answer(send, 200, _HELLO, _TEXT, (b"connection", b"close"))


async def _headers(scope: Scope, _receive: Receive, send: Send, _argument: str) -> None:
    await _json(send, [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]])


async def _connection(scope: Scope, _receive: Receive, send: Send, _argument: str) -> None:
    extensions: dict[str, Any] = scope.get("extensions") or {}
    number = extensions.get("tlsagent.request", {}).get("number")
    await _json(send, {**extensions.get("tlsagent.connection", {}), "request_number": number})


async def _upgrade(scope: Scope, receive: Receive, send: Send, _argument: str) -> None:
    if "tlsagent.upgrade" not in (scope.get("extensions") or {}):
        await _answer(send, 426, b"an Upgrade field is missing", (b"upgrade", b"echo"), (b"connection", b"upgrade"))
        return
    if scope["method"] == "CONNECT":
        await _start(send, 200)
    else:
        protocol = dict(scope["headers"])[b"upgrade"].partition(b",")[0]
        while (await receive()).get("more_body"):
            pass
        await _start(send, 101, (b"upgrade", protocol), (b"connection", b"upgrade"))
    while (message := await receive())["type"] == "http.request":
        await _body(send, message["body"], more=message["more_body"])


def _needs_stream(scope: Scope) -> None:
    if "tlsagent.stream" not in (scope.get("extensions") or {}):
        raise _BadArgument("this needs a stream of HTTP/2")


async def _reset(scope: Scope, _receive: Receive, send: Send, argument: str) -> None:
    code = _number(argument, 0, _LAST_CODE)
    _needs_stream(scope)
    await send({"type": "tlsagent.reset", "code": code})


async def _cut(scope: Scope, _receive: Receive, send: Send, argument: str) -> None:
    code = _number(argument, 0, _LAST_CODE)
    _needs_stream(scope)
    await _start(send, 200, _TEXT, (b"content-length", b"%d" % (2 * len(_HELLO))))
    await _body(send, _HELLO, more=True)
    await send({"type": "tlsagent.reset", "code": code})


async def _goaway(scope: Scope, _receive: Receive, send: Send, argument: str) -> None:
    code = _number(argument, 0, _LAST_CODE)
    _needs_stream(scope)
    await send({"type": "tlsagent.goaway", "code": code})
    await _answer(send, 200, _HELLO)


async def _early(scope: Scope, _receive: Receive, send: Send, _argument: str) -> None:
    _needs_stream(scope)
    await _answer(send, 200, _HELLO)
    await send({"type": "tlsagent.reset", "code": 0})  # RFC 9113 8.1: NO_ERROR


async def _json(send: Send, value: object) -> None:
    await _answer(send, 200, json.dumps(value).encode(), (b"content-type", b"application/json"))


_ROUTES: Final[dict[str, Route]] = {
    "hello": _hello,
    "bytes": _bytes,
    "echo": _echo,
    "delay": _delay,
    "status": _status,
    "chunked": _chunked,
    "trailers": _trailers,
    "close": _close,
    "headers": _headers,
    "connection": _connection,
    "reset": _reset,
    "cut": _cut,
    "goaway": _goaway,
    "early": _early,
    "upgrade": _upgrade,
}
