"""
The peer of the soak: every body tells the number it was asked for. `python -m tests.soak.server` runs until its stdin
ends; its first line is its address and its authority, as JSON. With `--http2` it speaks that: aborts are resets of
streams, and connections end by GOAWAY, with a word to the streams under way or without.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import threading
from typing import Any

from tlsagent.testing import Server

CLOSE_EVERY = 0.5
"""Seconds between two moments at which the server ends connections, busy or not."""

STREAMS = 40
"""Streams that a connection of HTTP/2 may have at a time."""

_peace = threading.Event()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve /KIND/NUMBER/REPEAT: the number and a space that many times. No connection is ended after a `peace`."""
    if scope["type"] != "http":
        raise NotImplementedError
    message = await receive()
    content = message["body"]
    while message["more_body"]:
        message = await receive()
        content += message["body"]
    _, kind, number, repeat = scope["path"].split("/")
    body = content if kind == "echo" else f"{number} ".encode() * int(repeat)
    if kind == "peace":
        _peace.set()
    headers = [(b"connection", b"close")] if kind == "bye" and scope["http_version"] != "2" else []
    if kind != "chunked":
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    half = len(body) // 2
    if kind in ("slow", "chunked", "abort"):
        await send({"type": "http.response.body", "body": body[:half], "more_body": True})
        await asyncio.sleep(random.uniform(0, 0.02))
        if kind == "abort":
            raise ConnectionAbortedError
        body = body[half:]
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve until stdin ends."""
    logging.disable(logging.CRITICAL)  # aborts are ordered
    http2 = "--http2" in sys.argv
    protocols = ("h2",) if http2 else ("http/1.1",)
    with Server(app=app, alpn_protocols=protocols, max_concurrent_streams=STREAMS, record_limit=10) as server:
        print(json.dumps({"url": server.url, "ca": server.ca_pem.decode()}), flush=True)
        leave = threading.Event()

        def close_now_and_then() -> None:
            ends = [server.go_away, server.close_connections, lambda: server.go_away(code=2)]
            while not (leave.wait(CLOSE_EVERY) or _peace.is_set()):
                random.choice(ends if http2 else [server.close_connections])()

        closer = threading.Thread(target=close_now_and_then)
        closer.start()
        sys.stdin.read()
        leave.set()
        closer.join()


if __name__ == "__main__":
    main()
