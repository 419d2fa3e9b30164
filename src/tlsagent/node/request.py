"""
What `https.request` makes of its arguments before a socket is chosen: URL, host, port, Host header, checks.

The order of the checks, the codes and the classes are Node 26's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from tlsagent.errors import OptionError
from tlsagent.node.domains import is_address, parse_host
from tlsagent.node.values import (
    UNDEFINED,
    Options,
    error,
    get,
    is_array,
    is_buffer,
    is_nullish,
    is_number,
    is_truthy,
    out_of_range,
    to_number,
    to_text,
    wrong_type,
)

DEFAULT_PORT: Final = 443
_PORT_OF_LAST_RESORT: Final = 80  # where an agent's defaultPort is falsy
MAX_TIMER: Final = 2**31 - 1
_MAX_SAFE_INTEGER: Final = 2**53 - 1
_TOKEN: Final = re.compile(r"[\^_`a-zA-Z\-0-9!#$%&'*+.|~]+")
_BAD_IN_VALUE: Final = re.compile("[^\t\x20-\x7e\x80-\xff]")
_BAD_IN_PATH: Final = re.compile("[^\x21-\xff]")
_LONE_PERCENT: Final = re.compile("%(?![0-9a-fA-F]{2})")
_BAD_URI: Final = "ERR_TLSAGENT_URL"
# The schemes whose URLs always name a host (WHATWG URL, "special scheme").
_DEFAULT_PORTS: Final = {"https": 443, "http": 80, "wss": 443, "ws": 80, "ftp": 21}
_URL: Final = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*):(?P<slashes>[/\\]*)(?P<authority>[^/\\?#]*)")


@dataclass(frozen=True, slots=True)
class Request:
    """
    The request's side of the options, checked.

    Attributes:
        options: What URL and options say, `host` and `port` settled.
        host_header: The Host header it would carry; `UNDEFINED` if none.
        timeout: Milliseconds, `UNDEFINED` if nothing was said.
    """

    options: dict[str, object]
    host_header: object
    timeout: object


def read_request(options: Options, url: str | None, agent: Options) -> Request:
    """
    Check the arguments of `https.request` and settle host, port, Host header and timeout.

    Args:
        options: The request's options; they win over the URL.
        url: The URL, if one is given.
        agent: The agent's options: `protocol` and `defaultPort` count here.
    """
    said = {**({} if url is None else url_options(url)), **options}
    _check_agent(get(said, "agent"))
    path = get(said, "path")
    if is_truthy(path) and _BAD_IN_PATH.search(to_text(path)):
        raise error("ERR_UNESCAPED_CHARACTERS", "options.path must be percent-encoded: it holds spaces or others")
    _check_protocol(said, agent)
    own_port = agent.get("defaultPort")
    own_port = DEFAULT_PORT if is_nullish(own_port) else first(own_port, _PORT_OF_LAST_RESORT)
    default_port = first(said.get("defaultPort"), own_port)
    said["port"] = first(said.get("port"), default_port)
    said["host"] = _host(said)
    timeout = get(said, "timeout")
    if timeout is not UNDEFINED:
        timeout = milliseconds("timeout", timeout)
    _check_http_options(said)
    headers = _headers(get(said, "headers"))
    if headers is not None:
        if "host" not in headers and _sets_host(said):
            headers["host"] = _default_host_header(said, default_port)
            _check_value("host", headers["host"])
        if "authorization" not in headers:
            _check_auth(get(said, "auth"))
    _check_unique_headers(get(said, "uniqueHeaders"))
    return Request(said, (headers or {}).get("host", UNDEFINED), timeout)


def first(*values: object) -> Any:
    """Return the first value that is truthy, else the last: JavaScript's `||`."""
    return next(filter(is_truthy, values), values[-1])


# URL --------------------------------------------------------------------------------------------------------------


def url_options(url: object) -> dict[str, object]:
    """Return the options that a URL stands for: protocol, hostname, port, auth."""
    text = to_text(url).strip("".join(map(chr, range(0x21))))
    match = _URL.match(re.sub("[\t\n\r]", "", text))
    if match is None:
        raise _bad_url("the URL cannot be read: expected https://host[:port]/path")
    scheme = match["scheme"].lower()
    options: dict[str, object] = {"protocol": scheme + ":", "hostname": ""}
    authority = match["authority"] if scheme in _DEFAULT_PORTS or match["slashes"].startswith("//") else ""
    if not authority and scheme not in _DEFAULT_PORTS:
        return options
    userinfo, _, location = authority.rpartition("@")
    host, port = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(.*)", location, re.DOTALL).groups()  # type: ignore[union-attr]
    try:
        options["hostname"] = parse_host(host).strip("[]")
    except ValueError as exc:
        raise _bad_url("the URL's host is neither a name nor an address") from exc
    digits = port.removeprefix(":")
    if port[:1] not in ("", ":") or (digits and not (digits.isascii() and digits.isdigit() and int(digits) < 65_536)):
        raise _bad_url("the URL's port must be a number up to 65535")
    if digits and int(digits) != _DEFAULT_PORTS.get(scheme):
        options["port"] = int(digits)
    if userinfo:
        _check_percent_encoding(userinfo)
        options["auth"] = userinfo
    return options


def _bad_url(message: str) -> OptionError:
    return error("ERR_INVALID_URL", message)


def _check_percent_encoding(userinfo: str) -> None:
    try:
        if _LONE_PERCENT.search(userinfo):
            raise ValueError
        unquote_to_bytes(userinfo.encode("utf-8", "replace")).decode("utf-8")
    except ValueError:
        # Node's URIError is a plain one. Credentials belong into no traceback.
        raise OptionError("the URL's user name or password is not UTF-8 in percent-encoding", code=_BAD_URI) from None


# Checks in Node's order -------------------------------------------------------------------------------------------


def _check_agent(agent: object) -> None:
    if not (is_nullish(agent) or agent is False or callable(getattr(agent, "request", None))):
        raise wrong_type("agent", "an Agent, False, None or absent", agent)


def _check_protocol(said: Options, agent: Options) -> None:
    expected = agent.get("protocol")
    expected = "https:" if is_nullish(expected) else first(expected, "http:")
    protocol = first(get(said, "protocol"), "https:")
    if protocol != expected:
        raise error("ERR_INVALID_PROTOCOL", f"protocol {to_text(protocol)!r} is not supported: expected {expected!r}")


def _host(said: Options) -> str:
    for name in ("hostname", "host"):
        value = get(said, name)
        if not (is_nullish(value) or isinstance(value, str)):
            raise wrong_type(name, "a string, None or absent", value)
        if isinstance(value, str) and value:
            return value
    return "localhost"


def milliseconds(name: str, value: object) -> int | float:
    """Return a duration for a timer: a finite number from 0 on, cut at 2**31 - 1."""
    if not is_number(value):
        raise wrong_type(name, "a number of milliseconds", value)
    if not 0 <= value < float("inf"):
        raise out_of_range(name, "a finite number of milliseconds, at least 0", value)
    return min(value, MAX_TIMER)


def _check_http_options(said: Options) -> None:
    if (signal := get(said, "signal")) and is_truthy(signal):
        raise no_signal(signal)
    method = get(said, "method")
    if not (is_nullish(method) or isinstance(method, str)):
        raise wrong_type("method", "a string", method)
    if isinstance(method, str) and method and not _TOKEN.fullmatch(method):
        raise error("ERR_INVALID_HTTP_TOKEN", "options.method must be a token such as GET")
    size = get(said, "maxHeaderSize")
    if size is not UNDEFINED:
        if not is_number(size):
            raise wrong_type("maxHeaderSize", "a number of bytes", size)
        if size != int(size if abs(size) <= _MAX_SAFE_INTEGER else 0) or size < 0:
            raise out_of_range("maxHeaderSize", "a whole number of bytes, at least 0", size)
    _check_boolean("insecureHTTPParser", said)
    _check_validation(said)
    _check_boolean("joinDuplicateHeaders", said)


def _check_boolean(name: str, said: Options) -> None:
    if not isinstance(said.get(name, False), bool) and said[name] is not UNDEFINED:
        raise wrong_type(name, "True or False", said[name])


def _check_validation(said: Options) -> None:
    value = get(said, "httpValidation")
    if value is UNDEFINED:
        return
    if value not in ("strict", "relaxed", "insecure"):
        raise error("ERR_INVALID_ARG_VALUE", "options.httpValidation must be 'strict', 'relaxed' or 'insecure'")
    if get(said, "insecureHTTPParser") is not UNDEFINED:
        raise error("ERR_INVALID_ARG_VALUE", "options.httpValidation and insecureHTTPParser exclude each other")


def no_signal(value: object) -> OptionError:
    """Return the error for `signal`, which nothing in Python can be."""
    return wrong_type("signal", "an AbortSignal, which Python has not (cancel the task or set timeouts)", value)


def _headers(headers: object) -> dict[str, object] | None:
    """Return the headers by lower-case name; None for a list (of names and values, or of pairs), sent as it is."""
    if is_array(headers):
        for name, value in _pairs(headers):
            _check_name(name)
            for item in value if is_array(value) else [value]:
                _check_value(name, item)
        return None
    if isinstance(headers, str):
        headers = {str(at): char for at, char in enumerate(headers)}
    found: dict[str, object] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else ():
        _check_name(name)
        _check_value(name, value)
        found[name.lower()] = value
    return {name: value for name, value in found.items() if name not in ("host", "authorization") or is_truthy(value)}


def _pairs(headers: Sequence[Any]) -> list[tuple[Any, Any]]:
    if headers and is_array(headers[0]):
        return [(*entry, UNDEFINED, UNDEFINED)[:2] for entry in headers]
    if len(headers) % 2:
        raise error("ERR_INVALID_ARG_VALUE", "options.headers must have a value behind each name")
    return list(zip(headers[::2], headers[1::2], strict=True))


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise error("ERR_INVALID_HTTP_TOKEN", "options.headers: a header's name must be a token")


def _check_value(name: str, value: object) -> None:
    if value is UNDEFINED:
        raise error("ERR_HTTP_INVALID_HEADER_VALUE", f"options.headers: {name} has no value")
    if _BAD_IN_VALUE.search(to_text(value)):
        raise error("ERR_INVALID_CHAR", f"options.headers: {name} holds a character that no header may have")


def _check_auth(auth: object) -> None:
    if is_truthy(auth) and not (isinstance(auth, str) or is_buffer(auth) or is_array(auth)):
        raise wrong_type("auth", "a string such as 'user:password'", auth)


def _check_unique_headers(names: object) -> None:
    if is_array(names) and not all(isinstance(name, str) for name in names):
        raise wrong_type("uniqueHeaders", "an array of names", names)


def _sets_host(said: Options) -> bool:
    value = get(said, "setHost")
    return get(said, "setDefaultHeaders") is not False if value is UNDEFINED else is_truthy(value)


def _default_host_header(said: Options, default_port: object) -> str:
    if to_text(get(said, "method")).upper() == "CONNECT" and is_truthy(get(said, "path")):
        return to_text(said["path"])
    host, port = to_text(said["host"]), said["port"]
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    return host if to_number(port) == default_port else f"{host}:{to_text(port)}"


# Server name ------------------------------------------------------------------------------------------------------


def server_name(options: Options, host_header: object) -> object:
    """Return the name of TLS: `servername`, else that of the Host header or the host; "" in place of an address."""
    said = get(options, "servername")
    if is_truthy(said) or said == "":
        return said
    name = _host_of(host_header) if is_truthy(host_header) else get(options, "host")
    return "" if is_address(to_text(name)) else name


def _host_of(header: object) -> str:
    if not isinstance(header, str):
        raise wrong_type("headers.host", "a string", header)
    if header.startswith("["):
        return header[1 : header.index("]")] if "]" in header else header
    return header.partition(":")[0]
