"""
Node's `proxyEnv`: which proxy an environment names, and which hosts it leaves out.

The URL and the exceptions are read as Node reads them, which is not how the option `proxy` reads them: there a name
covers the names below it, and networks are in CIDR notation.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tlsagent._option_rules import UNSET
from tlsagent._proxy import Proxy
from tlsagent.errors import OptionError
from tlsagent.node.request import url_options
from tlsagent.node.values import error, get, is_truthy, to_text, wrong_type

if TYPE_CHECKING:
    from tlsagent.node.values import Options


def proxy_env(name: str, value: Any, _all: Options) -> Any:
    """Return the proxy for https, or `UNSET`."""
    if not is_truthy(value):
        return UNSET
    if not isinstance(value, Mapping):
        raise wrong_type(name, "an object such as {'HTTPS_PROXY': ...}", value)
    url, exceptions = (
        next((to_text(value[key]) for key in keys if is_truthy(get(value, key))), "")
        for keys in (("https_proxy", "HTTPS_PROXY"), ("no_proxy", "NO_PROXY"))
    )
    if not url:
        return UNSET
    try:
        return Proxy(_plain(url), no_proxy=NoProxy(exceptions))
    except OptionError as exc:
        raise error("ERR_PROXY_INVALID_CONFIG", f"options.{name}: {exc}") from exc


def _plain(url: str) -> str:
    """Return the URL without what stands behind host and port, which Node does not look at."""
    parts = url_options(url)
    host, port, auth = str(parts["hostname"]), parts.get("port"), parts.get("auth")
    return "".join(
        (
            f"{parts['protocol']}//",
            f"{auth}@" if auth else "",
            f"[{host}]" if ":" in host else host,
            f":{port}" if port else "",
        )
    )


class NoProxy:
    """
    Node's reading of NO_PROXY, called as f(host, port).

    Entries stand between commas: `*`; a host, with a port or without; a suffix that begins with a dot or `*.`; a range
    of IPv4 addresses, first and last with a hyphen between them.
    """

    def __init__(self, text: str) -> None:
        self._entries = tuple(entry.strip().lower() for entry in text.split(",") if entry.strip())

    def __call__(self, host: str, port: int) -> bool:
        return any(self._covers(entry, host, port) for entry in self._entries)

    def _covers(self, entry: str, host: str, port: int) -> bool:
        if entry in ("*", host, f"{host}:{port}"):
            return True
        if entry.startswith("."):
            return host.endswith(entry[1:])
        if entry.startswith("*."):
            return host.endswith(entry[1:])
        first, hyphen, last = entry.partition("-")
        return bool(hyphen) and _in_range(first, host, last)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoProxy) and self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self._entries)


def _in_range(first: str, host: str, last: str) -> bool:
    try:
        low, address, high = (ipaddress.IPv4Address(text.strip()) for text in (first, host, last))
    except ValueError:
        return False
    return low <= address <= high
