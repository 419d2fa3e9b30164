"""
The option `proxy`: by whom the bytes go, as whom we ask it, and for which hosts we do not.

Says nothing about how a proxy is spoken to: that is `_tunnel`. What of a proxy tells connections apart is decided in
`_identity`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal, cast
from urllib.parse import unquote_to_bytes, urlsplit

from tlsagent._option_rules import UNSET, OptionsHandle, is_ip_address, to_ascii, wrong_type
from tlsagent.errors import OptionError

if TYPE_CHECKING:
    from tlsagent._options import ConnectionOptions

Scheme = Literal["http", "https", "socks5", "socks5h"]
Bypass = Callable[[str, int], bool]

_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_CODE: Final = "ERR_PROXY_INVALID_CONFIG"
_LONGEST_SOCKS_FIELD: Final = 255  # RFC 1929, 2: lengths are one byte


class Proxy:
    """
    A proxy that connections go through.

    `http` and `https` proxies are asked by CONNECT (RFC 9110, 9.3.6), for `https` over TLS of its own; `socks5` (RFC
    1928) is given the address that the name was resolved to here, `socks5h` the name. TLS to the origin begins when the
    tunnel is open: the proxy sees its name, no more. In the pool key, credentials by a digest that only this process
    can make. Equal by content; the repr shows no credentials.

    Args:
        url: `scheme://[user:password@]host[:port]`; without a scheme http. User and password are percent-encoded.
            Ports by default: 80, 443 and 1080.
        tls: `ConnectionOptions` for the TLS to an `https` proxy: whom to trust (`ca`, `crl`, `pins`, ...), who we are
            (`cert`, `key`), as whom to verify it (`servername`). Default: the `ca` of the agent, everything else as by
            default. No other option of the agent is used with a proxy: its client certificate is for origins.
        no_proxy: Hosts that are connected to directly: the syntax of the variable NO_PROXY (see `bypass_list`), or
            `callable(host, port) -> bool`.

    Raises:
        OptionError: The URL cannot be used, or `tls` has no place in it; the message never quotes the URL.
    """

    __slots__ = ("_credentials", "_no_proxy", "host", "port", "scheme", "tls")

    host: str
    port: int
    scheme: Scheme
    tls: ConnectionOptions | None

    def __init__(self, url: str, *, tls: ConnectionOptions | None = None, no_proxy: str | Bypass = "") -> None:
        self.scheme, self.host, self.port, self._credentials = _parsed(url)
        if tls is not None and not isinstance(tls, OptionsHandle):
            raise wrong_type("tls of a proxy", "ConnectionOptions", tls)
        if tls is not None and self.scheme != "https":
            raise OptionError(f"tls has no effect on a proxy of scheme {self.scheme}: leave it out, or use https://")
        if tls is not None:
            _require_tls_only(tls)
        self.tls = tls
        if not isinstance(no_proxy, str) and not callable(no_proxy):
            raise wrong_type("no_proxy", "a str such as 'localhost,.example.com', or callable", no_proxy)
        self._no_proxy: Bypass | None = bypass_list(no_proxy) if isinstance(no_proxy, str) else no_proxy

    @property
    def username(self) -> bytes | None:
        """Who we are to the proxy, or None."""
        return self._credentials[0] if self._credentials is not None else None

    @property
    def password(self) -> bytes | None:
        """The password of `username`, b"" if there is none. Never shown."""
        return self._credentials[1] if self._credentials is not None else None

    @property
    def url(self) -> str:
        """The proxy's URL without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def serves(self, host: str, port: int) -> bool:
        """Whether connections to `host` and `port` go through the proxy."""
        return self._no_proxy is None or not self._no_proxy(host, port)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Proxy):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[object, ...]:
        return self.scheme, self.host, self.port, self._credentials, self.tls, self._no_proxy

    def __repr__(self) -> str:
        shown = self.url if self._credentials is None else self.url.replace("://", "://***@")
        tls = f", tls={self.tls!r}" if self.tls is not None else ""
        return f"Proxy({shown!r}{tls}{', no_proxy=...' if self._no_proxy is not None else ''})"


# What says where bytes go, or belongs to one connection alone: nothing that TLS with a proxy could heed.
_NOT_OF_TLS: Final = (
    "host", "port", "path", "lookup", "socket", "proxy", "family", "local_address", "local_port", "auto_select_family",
    "auto_select_family_attempt_timeout", "no_delay", "tcp_keep_alive", "session", "timeout", "enable_trace",
    "alpn_protocols",
)  # fmt: skip


def _require_tls_only(tls: ConnectionOptions) -> None:
    given = [name for name in _NOT_OF_TLS if getattr(tls, name) is not UNSET]
    if given:
        raise OptionError(
            f"tls of a proxy: {', '.join(given)} has no place there: it says whom to trust and who we are"
        )


def proxy_of(_name: str, value: object) -> Proxy | None:
    """The rule of the option: a `Proxy`, a URL, or "env" for what the environment says at this moment."""
    if isinstance(value, Proxy):
        return value
    if value == "env":
        import os

        return from_environment(os.environ)
    if not isinstance(value, str):
        raise wrong_type("proxy", 'a URL such as "http://proxy:3128", a Proxy, "env" or None', value)
    return Proxy(value)


def from_environment(environment: Mapping[str, str]) -> Proxy | None:
    """
    Return the proxy for https URLs that the variables name, or None.

    The first of https_proxy, HTTPS_PROXY, all_proxy and ALL_PROXY that is not empty names it, no_proxy or NO_PROXY
    the exceptions.
    """

    def first(*names: str) -> str:
        return next((environment[name] for name in names if environment.get(name)), "")

    url = first("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    return Proxy(url, no_proxy=first("no_proxy", "NO_PROXY")) if url else None


def _parsed(url: str) -> tuple[Scheme, str, int, tuple[bytes, bytes] | None]:
    if not isinstance(url, str):
        raise wrong_type("a proxy's URL", "a str", url)
    # urlsplit drops some of them without a word.
    if re.search(r"[\x00-\x20\x7f]", url):
        raise _bad("holds spaces or control characters: percent-encode them")
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port, host = parts.port, parts.hostname
    except ValueError:
        raise _bad("cannot be read: use scheme://user:password@host:port") from None
    if parts.scheme not in _PORTS:
        raise _bad(f"has a scheme that is not supported: use one of {', '.join(_PORTS)}")
    if not host or port == 0:
        raise _bad("names no host, or port 0")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _bad("goes on behind the port: leave path, query and fragment out")
    if not is_ip_address(host):
        try:
            host = to_ascii("proxy", host).removesuffix(".")
        except OptionError:
            raise _bad("names a host that is none") from None
    scheme = cast("Scheme", parts.scheme)
    return scheme, host, port or _PORTS[scheme], _credentials(scheme, parts.username, parts.password)


def _credentials(scheme: Scheme, username: str | None, password: str | None) -> tuple[bytes, bytes] | None:
    if username is None and password is None:
        return None
    try:  # as bytes all the way: they need not be UTF-8, nor the environment they come from
        user, secret = (
            unquote_to_bytes((part or "").encode(errors="surrogateescape")) for part in (username, password)
        )
    except UnicodeEncodeError:
        raise _bad("has a user name or password that is no text: percent-encode its bytes") from None
    if scheme.startswith("socks5"):
        if not 0 < len(user) <= _LONGEST_SOCKS_FIELD or len(secret) > _LONGEST_SOCKS_FIELD:
            raise _bad("needs a user name of 1 to 255 bytes and a password of at most 255 (RFC 1929)")
    elif b":" in user:
        raise _bad("has a colon in the user name, which Basic authentication cannot send (RFC 7617)")
    return user, secret


def _bad(what: str) -> OptionError:
    return OptionError(f"the proxy's URL {what}", code=_CODE)


class _BypassList:
    """The hosts of a NO_PROXY text."""

    __slots__ = ("_entries", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._entries = [_entry(item) for item in re.split(r"[\s,]+", text.lower()) if item]

    def __call__(self, host: str, port: int) -> bool:
        return any(entry_port in (None, port) and covers(host) for covers, entry_port in self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BypassList) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def bypass_list(text: str) -> Bypass | None:
    """
    Return the test for a NO_PROXY text, None for one without entries.

    Entries stand between commas or spaces: `*` is every host; a name is itself and all names below it, with or without
    a leading `.` or `*.`; an address is itself; a network in CIDR notation all its addresses. `:port` confines an entry
    to a port. Names are not resolved to see whether their address is listed.
    """
    entries = _BypassList(text)
    return entries if entries._entries else None


def _entry(item: str) -> tuple[Callable[[str], bool], int | None]:
    if item == "*":
        return _everything, None
    try:
        network = ipaddress.ip_network(item.strip("[]"), strict=False)
    except ValueError:
        pass
    else:
        return _InNetwork(network), None
    host, colon, digits = item.rpartition(":")
    if colon and digits.isdigit():
        covers, _ = _entry(host)
        return covers, int(digits)
    return _AtOrBelow(item.removeprefix("*").removeprefix(".").removesuffix(".")), None


def _everything(_host: str) -> bool:
    return True


class _AtOrBelow:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, host: str) -> bool:
        return host == self._name or host.endswith(f".{self._name}")


class _InNetwork:
    __slots__ = ("_network",)

    def __init__(self, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
        self._network = network

    def __call__(self, host: str) -> bool:
        return is_ip_address(host) and ipaddress.ip_address(host) in self._network
