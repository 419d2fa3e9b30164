"""
Where a testing server listens: the loopback addresses of both families under one port.

A client that tries `::1` first must not be refused: on Windows a refusal costs two seconds.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

DEFAULT_NAMES: Final = ("localhost", "127.0.0.1", "::1")

_BACKLOG: Final = 1_024
_ATTEMPTS: Final = 20


def listen(host: str | None, port: int) -> list[socket.socket]:
    """Return listening sockets that share one port: on `host`, or on the loopback addresses there are."""
    if host is not None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return [socket.create_server((host, port), family=family, backlog=_BACKLOG)]
    for _ in range(_ATTEMPTS):
        first = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        try:
            return [first, *_second(first.getsockname()[1])]
        except OSError:
            first.close()
            if port:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free on both 127.0.0.1 and ::1")


def _second(port: int) -> list[socket.socket]:
    return [socket.create_server(("::1", port), family=socket.AF_INET6, backlog=_BACKLOG)] if _has_ipv6() else []


def _has_ipv6() -> bool:
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def url_of(name: str, port: int) -> str:
    """Return the URL of a server without a path."""
    return f"https://[{name}]:{port}" if ":" in name else f"https://{name}:{port}"
