"""
From Node's options to this library's: camelCase and milliseconds in, `ConnectionOptions` and its kin out.

Each function checks in Node's order, one property at a time, and raises Node's code in Node's class. What a value means
is decided by the rules of the options it becomes; here only JavaScript's part is checked: what is a string, a number, a
Buffer, what counts as unsaid. Where Node is careless, those rules are stricter; `SUPPORT` says where.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tlsagent._option_rules import UNSET
from tlsagent._options import AgentOptions, ConnectionOptions, ServerOptionWarning, refuse_server_protocol
from tlsagent._secure_context import create_secure_context
from tlsagent.errors import OptionError, OptionTypeError
from tlsagent.node import converters, proxies
from tlsagent.node.request import read_request, server_name, url_options
from tlsagent.node.support import SUPPORT, Call
from tlsagent.node.values import (
    UNDEFINED,
    Options,
    as_node,
    error,
    get,
    is_nullish,
    is_number,
    is_truthy,
    to_int32,
    to_text,
    wrong_type,
)

if TYPE_CHECKING:
    from tlsagent._tls.context import SecureContext

_Made = TypeVar("_Made")
Order = Mapping[str, Callable[[str, Any, Options], Any]]
_FOR_SERVERS: Final = ("ticketKeys", "sessionTimeout")


def secure_context(options: Options | None = None) -> SecureContext:
    """
    Return the context that `tls.createSecureContext(options)` would make.

    Raises:
        OptionError: With Node's code, in Node's class.
    """
    given = _object("context", options)
    return _make(create_secure_context, _converted("context", given, _CONTEXT_ORDER, tried=True))


def connection_options(options: Options) -> ConnectionOptions:
    """
    Return what `tls.connect(options)` would connect with; key and certificate are tried, as there.

    Raises:
        OptionError: With Node's code, in Node's class.
    """
    if options is None:
        raise wrong_type("port", "a number or a string", options)
    given = _object("connect", options)
    from_options = not is_truthy(get(given, "secureContext"))
    said = _converted("connect", given, _BEFORE_CONTEXT)
    context = _converted("connect", given, _CONTEXT_ORDER, tried=True) if from_options else {}
    if from_options:
        _make(create_secure_context, context)
    said |= context | _converted("connect", given, _CONNECTION_ORDER)
    if not (is_truthy(get(given, "socket")) or is_truthy(get(given, "path"))) and get(given, "port") is UNDEFINED:
        raise error("ERR_MISSING_ARGS", "options.port or options.path must be given")
    said |= _converted("connect", given, _NET_ORDER)
    if not from_options:
        said |= _converted("connect", given, _CONTEXT_ORDER)
    return _make(ConnectionOptions, said | _tcp_keep_alive(given, "keepAliveInitialDelay"))


def agent_options(options: Options | None = None) -> AgentOptions:
    """
    Return what `new https.Agent(options)` stands for; without `keepAlive` connections are not kept, as there.

    Raises:
        OptionError: With Node's code, in Node's class.
    """
    given = _object("agent", options)
    said = {"keep_alive": is_truthy(get(given, "keepAlive"))}
    for order in (_AGENT_ORDER, *_orders(given)):
        said |= _converted("agent", given, order)
    return _make(AgentOptions, said | _tcp_keep_alive(given, "keepAliveMsecs"))


def request_options(options: Options | None = None, url: str | None = None) -> ConnectionOptions:
    """
    Return what `https.request(url, options)` would connect with; method, headers and path are checked and left out.

    Raises:
        OptionError: With Node's code, in Node's class.
    """
    given = _object("request", options)
    request = read_request(given, url, {})
    server_name(request.options, request.host_header)
    # The name in the URL is whom we talk to; only what was said beside it is where the bytes go.
    address = {name: value for name, value in given.items() if name not in ("host", "hostname", "port", "path")}
    if any(is_truthy(get(given, name)) for name in ("host", "hostname")):
        address["host"] = request.options["host"]
    port_in_url = url is not None and "port" in url_options(url)
    if is_truthy(get(given, "port")) or (is_truthy(get(given, "defaultPort")) and not port_in_url):
        address["port"] = request.options["port"]
    said: dict[str, Any] = {}
    for order in (_REQUEST_ORDER, *_orders(given)):
        said |= _converted("request", address, order)
    return _make(ConnectionOptions, said | _tcp_keep_alive(given, "keepAliveInitialDelay"))


# Machinery --------------------------------------------------------------------------------------------------------


def _object(call: Call, options: object) -> Options:
    """Return the options of a call, whose names are all known there."""
    if is_nullish(options):
        return {}
    if not isinstance(options, Mapping):
        raise error("ERR_INVALID_ARG_TYPE", f"options must be a mapping, not of type {type(options).__name__}")
    for name, value in options.items():
        if name not in SUPPORT:
            close = difflib.get_close_matches(str(name), SUPPORT, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise OptionTypeError(f"Node has no option {to_text(name)[:80]!r}{hint}", code=converters.UNSUPPORTED)
        if call not in SUPPORT[name].calls and not is_nullish(value):
            raise OptionTypeError(
                f"options.{name} has no effect here: it belongs to {_places(SUPPORT[name].calls)}",
                code=converters.UNSUPPORTED,
            )
    if call != "context" and any(is_truthy(get(options, name)) for name in _FOR_SERVERS):
        warnings.warn(f"{' and '.join(_FOR_SERVERS)} are {_SERVERS_ONLY}", ServerOptionWarning, stacklevel=3)
    return options


_SERVERS_ONLY: Final = "heeded by servers only; they are without effect on a client"
_PLACES: Final[Mapping[Call, str]] = {
    "context": "secure_context()",
    "connect": "connection_options()",
    "agent": "agent_options()",
    "request": "request_options()",
}


def _places(calls: frozenset[Call]) -> str:
    return " or ".join(place for call, place in _PLACES.items() if call in calls)


def _converted(call: Call, options: Options, order: Order, *, tried: bool = False) -> dict[str, Any]:
    """
    Return the fields that the options of one stage become, each checked by itself, in Node's order.

    Args:
        tried: Certificates and keys are tried together with what was said before them, as Node does there and then.
    """
    said: dict[str, Any] = {}
    for name, convert in order.items():
        if name not in options or call not in SUPPORT[name].calls:
            continue
        value = convert(name, options[name], options)
        if value is UNSET:
            continue
        field = SUPPORT[name].maps_to
        said[field] = value
        beside = {"passphrase": said["passphrase"]} if field in ("key", "pfx") and "passphrase" in said else {}
        kind = ConnectionOptions if field in ConnectionOptions.field_names() else AgentOptions
        refuse_server_protocol(_make(kind, {field: value, **beside}))
        if tried and field in ("cert", "key", "pfx"):
            _make(create_secure_context, said)
    return said


def _make(make: Callable[..., _Made], said: Mapping[str, Any]) -> _Made:
    try:
        return make(**said)
    except OptionError as exc:
        raise as_node(exc) from exc.__cause__


def _orders(options: Options) -> tuple[Order, ...]:
    """Return the stages of a connection; Node does not look at what a secureContext replaces, so it comes last."""
    if is_truthy(get(options, "secureContext")):
        return _BEFORE_CONTEXT, _CONNECTION_ORDER, _NET_ORDER, _CONTEXT_ORDER
    return _BEFORE_CONTEXT, _CONTEXT_ORDER, _CONNECTION_ORDER, _NET_ORDER


def _tcp_keep_alive(options: Options, delay_name: str) -> dict[str, Any]:
    """Return SO_KEEPALIVE as it was asked for: with a delay in whole seconds, else with the system's own."""
    delay = get(options, delay_name)
    is_agent = delay_name == "keepAliveMsecs"
    if not is_truthy(get(options, "keepAlive")) and not (is_agent and is_truthy(delay)):
        return {}
    if not is_truthy(delay):
        delay = 1000 if is_agent else 0
    if not is_number(delay):
        raise wrong_type(delay_name, "a number of milliseconds", delay)
    seconds = to_int32(delay / 1000)
    return {"tcp_keep_alive": seconds if seconds > 0 else True}


# Node's order -----------------------------------------------------------------------------------------------------

_BEFORE_CONTEXT: Final[Order] = {
    "checkServerIdentity": converters.identity_check,
    "minDHSize": converters.min_dh_size,
}
_CONTEXT_ORDER: Final[Order] = {
    "minVersion": converters.version,
    "maxVersion": converters.version,
    "secureProtocol": converters.secure_protocol,
    "secureOptions": converters.if_truthy,
    "honorCipherOrder": converters.truth,
    "ciphers": converters.unless_nullish,
    "ca": converters.certificates,
    "allowPartialTrustChain": converters.unless_nullish,
    "cert": converters.certificates,
    "passphrase": converters.passphrase,
    "key": converters.keys,
    "certificateCompression": converters.certificate_compression,
    "sigalgs": converters.unless_nullish,
    "privateKeyIdentifier": converters.key_in_engine,
    "privateKeyEngine": converters.key_in_engine,
    "ecdhCurve": converters.required_string,
    "dhparam": converters.dhparam,
    "crl": converters.crl,
    "sessionIdContext": converters.unless_nullish,
    "pfx": converters.pfx,
    "clientCertEngine": converters.unless_nullish,
    "ticketKeys": converters.ticket_keys,
    "sessionTimeout": converters.session_timeout,
}
_CONNECTION_ORDER: Final[Order] = {
    "servername": converters.no_address,
    "enableTrace": converters.unless_nullish,
    "ALPNProtocols": converters.alpn_protocols,
    "secureContext": converters.if_truthy,
    "keepAliveInitialDelay": converters.probe_delay,
    "highWaterMark": converters.high_water_mark,
    "signal": converters.signal,
    "session": converters.session,
    "pskCallback": converters.psk_source,
    "requestOCSP": converters.truth,
    "requestCert": converters.truth,
    "rejectUnauthorized": converters.unless_undefined,
    "SNICallback": converters.if_truthy,
    "socket": converters.unless_nullish,
    "allowHalfOpen": converters.refuse,
    "onread": converters.refuse,
    "ALPNCallback": converters.refuse,
    "pskIdentityHint": converters.refuse,
    "handshakeTimeout": converters.refuse,
}
_NET_ORDER: Final[Order] = {
    "timeout": converters.duration,
    "host": converters.string_if_truthy,
    "path": converters.string_if_truthy,
    "socketPath": converters.string_if_truthy,
    "localAddress": converters.if_truthy,
    "localPort": converters.local_port,
    "port": converters.port,
    "autoSelectFamily": converters.unless_nullish,
    "autoSelectFamilyAttemptTimeout": converters.attempt_timeout,
    "lookup": converters.unless_nullish,
    "hints": converters.hints,
    "family": converters.family,
    "noDelay": converters.truth,
    "blockList": converters.refuse,
    "servername": converters.servername,
}
_AGENT_ORDER: Final[Order] = {
    "scheduling": converters.if_truthy,
    "maxTotalSockets": converters.total,
    "maxSockets": converters.count,
    "maxFreeSockets": converters.count,
    "agentKeepAliveTimeoutBuffer": converters.margin,
    "maxCachedSessions": converters.unless_undefined,
    "protocol": converters.protocol,
    "defaultPort": converters.default_port,
    "proxyEnv": proxies.proxy_env,
    "createConnection": converters.refuse,
}
_REQUEST_ORDER: Final[Order] = {
    "createConnection": converters.refuse,
    "auth": converters.refuse,
    "insecureHTTPParser": converters.refuse,
    "maxHeaderSize": converters.refuse,
    "uniqueHeaders": converters.refuse,
    "httpValidation": converters.only_strict,
    "setDefaultHeaders": converters.only_true,
}
