"""
The peer of the soak: every body tells the number it was asked for. `python -m tests.soak.server` runs until its stdin
ends; its first line is its address and its authority, as JSON.
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


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve /KIND/NUMBER/REPEAT: the number, a space after it, that many times."""
    if scope["type"] != "http":
        raise NotImplementedError
    message = await receive()
    content = message["body"]
    while message["more_body"]:
        message = await receive()
        content += message["body"]
    _, kind, number, repeat = scope["path"].split("/")
    body = content if kind == "echo" else f"{number} ".encode() * int(repeat)
    headers = [(b"connection", b"close")] if kind == "bye" else []
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
    with Server(app=app) as server:
        print(json.dumps({"url": server.url, "ca": server.ca_pem.decode()}), flush=True)
        leave = threading.Event()

        def close_now_and_then() -> None:
            while not leave.wait(CLOSE_EVERY):
                server.close_connections()

        closer = threading.Thread(target=close_now_and_then)
        closer.start()
        sys.stdin.read()
        leave.set()
        closer.join()


if __name__ == "__main__":
    main()
