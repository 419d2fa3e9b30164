"""
The options: what a user may say, checked and made canonical when it is said.

`ConnectionOptions` describes one TLS connection, `AgentOptions` adds how connections are pooled, `Timeouts` how long
each phase may take. All three are frozen, and every field defaults to `UNSET`: "say nothing, take the layer below".
`merged_over` is the only merge. What a value *means* for the pool key is decided in `_identity`, what OpenSSL makes of
it in `_tls.context`.

A field is one line in `_CONNECTION_RULES` or `_AGENT_RULES`: a function from what the user gave to the one canonical,
immutable, hashable form. Later code need not check again.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypedDict, TypeVar, cast

from tlsagent import _material
from tlsagent.errors import OptionError, OptionRangeError, OptionTypeError

if TYPE_CHECKING:
    from tlsagent._tls.certificates import PeerCertificate


class Unset(enum.Enum):
    """Type of `UNSET`."""

    UNSET = "UNSET"

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET


class ContextHandle:
    """What the options know of a `SecureContext`: that it is one."""

    __slots__ = ()


Source = bytes | bytearray | memoryview | str | os.PathLike[str]
Version = Literal["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]
CheckServerIdentity = Callable[[str, "PeerCertificate"], object]
Lookup = Callable[[str, int], Sequence[str] | Awaitable[Sequence[str]]]
Rule = Callable[[str, Any], Any]

_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")


def show(value: object) -> str:
    """Return a bounded repr for an error message; only for values that cannot be secret."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _wrong_type(name: str, expected: str, value: object) -> OptionTypeError:
    return OptionTypeError(f"{name} must be {expected}, not {type(value).__name__}")


# --- Rules: one value in, its canonical form out ----------------------------------------------------------------------


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, "True or False", value)
    return value


def _callable(name: str, value: object) -> object:
    if not callable(value):
        raise _wrong_type(name, "callable", value)
    try:
        hash(value)
    except TypeError:
        raise OptionTypeError(f"{name} must be hashable: it is part of the pool key and compared by ==") from None
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type(name, "a number of seconds or None", value)
    return float(value)


def _duration(name: str, value: object) -> float | None:
    if value is None:
        return None
    seconds = _number(name, value)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise OptionRangeError(
            f"{name} must be a finite number of seconds above 0, not {show(value)}; None means no limit"
        )
    return seconds


def _margin(name: str, value: object) -> float:
    seconds = _number(name, value)
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise OptionRangeError(f"{name} must be a finite number of seconds, at least 0, not {show(value)}")
    return seconds


def _count(name: str, value: object, *, least: int = 1) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, "a whole number or None", value)
    if value < least:
        raise OptionRangeError(f"{name} must be at least {least}, not {value}; None means no limit")
    return value


def _count_or_zero(name: str, value: object) -> int | None:
    return _count(name, value, least=0)


def _bounded(name: str, value: object) -> int | None:
    if value is None:
        raise _wrong_type(name, "a whole number", value)
    return _count(name, value, least=0)


def _one_of(*allowed: str) -> Rule:
    def rule(name: str, value: Any) -> Any:
        if value not in allowed:
            raise OptionError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {show(value)}")
        return value

    return rule


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, "a str", value)
    if "\0" in value:
        raise OptionError(f"{name} must not contain NUL characters")
    return value


def _host(name: str, value: object) -> str:
    text = _text(name, value)
    if not text or any(c.isspace() for c in text):
        raise OptionError(f"{name} must be a host name or an IP address, not {show(value)}")
    return text.strip("[]").lower()


def _servername(name: str, value: object) -> str:
    text = _text(name, value)
    if is_ip_address(text):
        # RFC 6066, 3: literal addresses are not permitted in the SNI extension.
        raise OptionError(f"{name} must be a host name: an IP address cannot be sent as SNI; use '' to send none")
    return to_ascii(name, text) if text else ""


def _port(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise _wrong_type(name, "a port number", value)
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise OptionRangeError(f"{name} must be a port number, not {show(value)}", code="ERR_SOCKET_BAD_PORT")
    if not 0 < int(value) < 65_536:
        raise OptionRangeError(f"{name} must be from 1 to 65535, not {show(value)}", code="ERR_SOCKET_BAD_PORT")
    return int(value)


def _path(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise _wrong_type(name, "the path of a Unix socket", value)
    text = _text(name, os.fspath(value))
    if not text:
        raise OptionError(f"{name} must not be empty; None means: connect by TCP")
    return text


def _alpn_protocols(name: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        raise _wrong_type(name, 'a list of protocol names, for example ["http/1.1"]', value)
    protocols = []
    for item in value:
        if not isinstance(item, (str, bytes)):
            raise _wrong_type(f"each item of {name}", "a protocol name", item)
        protocol = item.decode("latin-1") if isinstance(item, bytes) else item
        if not protocol:
            raise OptionError(f"{name} must not contain an empty protocol name (RFC 7301, 3.1)")
        if len(protocol) > 255 or not protocol.isascii():
            raise OptionRangeError(f"{name}: a protocol name is 1 to 255 ASCII characters, not {show(item)}")
        protocols.append(protocol)
    return tuple(protocols)


def _version(name: str, value: Any) -> Any:
    if value is not None and value not in _VERSIONS:
        raise OptionError(
            f"{name} must be one of {', '.join(_VERSIONS)}, not {show(value)}", code="ERR_TLS_INVALID_PROTOCOL_VERSION"
        )
    return value


def _ciphers(name: str, value: object) -> _material.CipherList | None:
    if value is None or isinstance(value, _material.CipherList):
        return value
    return _material.cipher_list(_text(name, value))


def _ca(_name: str, value: Any) -> _material.TrustAnchors | None:
    return value if value is None or isinstance(value, _material.TrustAnchors) else _material.trust_anchors(value)


def _cert(_name: str, value: Any) -> tuple[_material.CertificateChain, ...] | None:
    return value if value is None else _material.certificate_chains(value)


def _passphrase(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _wrong_type(name, "a str", value)
    return value


def _secure_context(name: str, value: object) -> ContextHandle | None:
    if value is not None and not isinstance(value, ContextHandle):
        raise OptionTypeError(
            f"{name} must come from create_secure_context(), not {type(value).__name__}", code="ERR_TLS_INVALID_CONTEXT"
        )
    return value


def _socket(name: str, value: object) -> object:
    if value is not None and not hasattr(value, "fileno"):
        raise _wrong_type(name, "a connected socket", value)
    return value


def _store(name: str, value: object) -> object:
    if value is not None and not all(callable(getattr(value, verb, None)) for verb in ("take", "put", "discard")):
        raise _wrong_type(name, "a SessionStore (with take, put and discard) or None", value)
    return value


def _timeouts(_name: str, value: object) -> Timeouts:
    return Timeouts.of(value)


def _http1(name: str, value: object) -> Http1Options:
    if not isinstance(value, Http1Options):
        raise _wrong_type(name, "an Http1Options", value)
    return value


def is_ip_address(text: str) -> bool:
    """Whether `text` is an IPv4 or IPv6 literal, a zone id allowed."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def to_ascii(name: str, host: str) -> str:
    """Return a host name in lower-case ASCII (A-labels), as certificates and SNI spell it."""
    try:
        encoded = host.encode("idna").decode("ascii").lower() if not host.isascii() else host.lower()
    except UnicodeError as exc:
        raise OptionError(f"{name}: {show(host)} cannot be written as an ASCII host name") from exc
    labels = encoded.removesuffix(".").split(".")
    if len(encoded) > 254 or not all(0 < len(label) < 64 for label in labels):
        raise OptionError(f"{name}: {show(host)} is not a host name (RFC 1035: labels of 1 to 63 bytes, 253 in all)")
    if not all(c.isalnum() or c in "-_." for c in encoded):
        raise OptionError(f"{name}: {show(host)} holds characters that no host name may have")
    return encoded


_CONNECTION_RULES: Final[Mapping[str, Rule]] = {
    "alpn_protocols": _alpn_protocols,
    "ca": _ca,
    "cert": _cert,
    "check_server_identity": _callable,
    "ciphers": _ciphers,
    "host": _host,
    "lookup": _callable,
    "max_version": _version,
    "min_version": _version,
    "passphrase": _passphrase,
    "path": _path,
    "port": _port,
    "reject_unauthorized": _boolean,
    "secure_context": _secure_context,
    "servername": _servername,
    "socket": _socket,
    "timeout": _duration,
}
_AGENT_RULES: Final[Mapping[str, Rule]] = {
    "keep_alive": _boolean,
    "max_sockets": _count,
    "max_total_sockets": _count,
    "max_free_sockets": _count_or_zero,
    "scheduling": _one_of("lifo", "fifo"),
    "free_socket_timeout": _duration,
    "max_lifetime": _duration,
    "max_requests_per_socket": _count,
    "keep_alive_hint_margin": _margin,
    "max_cached_sessions": _bounded,
    "session_store": _store,
    "retry": _boolean,
    "http1_engine": _one_of("auto", "h11"),
    "http1": _http1,
    "max_response_size": _count,
    "timeouts": _timeouts,
}
_NULLABLE_BY_ALL: Final = frozenset({"check_server_identity", "lookup", "host", "port", "servername"})

# A SecureContext brings these with it; beside one they would have no effect.
CONTEXT_FIELDS: Final = frozenset(
    {
        "ca", "cert", "key", "pfx", "passphrase", "crl", "ciphers", "sigalgs", "ecdh_curve", "dhparam", "min_version",
        "max_version", "secure_protocol", "secure_options", "session_id_context",
    }
)  # fmt: skip

_Options = TypeVar("_Options", bound="ConnectionOptions")


def _settle(options: Any, name: str, value: object) -> None:
    object.__setattr__(options, name, value)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class ConnectionOptions:
    """
    How one TLS connection is made: Node's `tls.ConnectionOptions` in snake_case.

    Every field defaults to `UNSET`; `None` means no limit for durations, the library's default for everything else. Bad
    values raise `OptionError` here, before any socket opens. Fields that this release does not support yet raise
    `NotImplementedError` by name. Equal by content; the repr shows no secret.

    In the pool key unless said otherwise.

    Attributes:
        alpn_protocols: Protocols offered by ALPN (RFC 7301), best first. Default: ("http/1.1",). None or () offers
            nothing.
        ca: Trusted certificates, PEM or DER (bytes, str, a path object, or a list of them). They replace the
            default roots, which are certifi's.
        cert: Client certificate chain, leaf first, PEM or DER; a list for several chains (RSA and EC, say).
        key: Private key of `cert`, PEM or DER; list items may be `{"pem": ..., "passphrase": ...}`. Its public half is
            in the pool key.
        passphrase: Decrypts `key`. Not in the pool key.
        ciphers: OpenSSL cipher list; TLS 1.3 suites by their `TLS_` names. Only `TLS_` names given: TLS 1.2 is off.
        min_version, max_version: "TLSv1" to "TLSv1.3". Default: TLSv1.2 to TLSv1.3.
        secure_context: A `SecureContext` of `create_secure_context`; excludes the options that it was made from.
        servername: SNI (RFC 6066) and the name the certificate is checked against, instead of the URL's host. "" sends
            no SNI and checks the URL's host.
        reject_unauthorized: Default True. Only the literal False accepts certificates that do not verify: the
            connection is then encrypted, but with anybody.
        check_server_identity: `callable(hostname, PeerCertificate)`, called on every connection after the chain
            was verified; rejects by raising or by returning an exception. Default: `tlsagent.check_server_identity`
            (RFC 9525). Compared by `==` in the pool key.
        host, port: Where to connect, instead of the URL's host and port; the verified name stays the URL's.
        path: A Unix socket to connect to, instead of host and port.
        lookup: `callable(host, family) -> addresses` in place of the system's resolver (`family` is 0, 4 or 6); may be
            async in `AsyncAgent`.
        socket: A connected socket to speak TLS over; serves one connection, so it is refused on an agent.
        timeout: Seconds of silence after which a connection is given up, idle or active (Node's `timeout`). Not in the
            pool key. Default None.
    """

    alpn_protocols: Sequence[str] | Unset | None = UNSET
    sni_callback: Any = UNSET
    ca: Source | Sequence[Source] | _material.TrustAnchors | Unset | None = UNSET
    cert: Source | Sequence[Source] | tuple[_material.CertificateChain, ...] | Unset | None = UNSET
    check_server_identity: CheckServerIdentity | Unset | None = UNSET
    ciphers: str | _material.CipherList | Unset | None = UNSET
    client_cert_engine: Any = UNSET
    crl: Any = UNSET
    dhparam: Any = UNSET
    ecdh_curve: Any = UNSET
    enable_trace: Any = UNSET
    honor_cipher_order: Any = UNSET
    host: str | Unset | None = UNSET
    key: Any = UNSET
    lookup: Lookup | Unset | None = UNSET
    max_version: Version | Unset | None = UNSET
    min_dh_size: Any = UNSET
    min_version: Version | Unset | None = UNSET
    passphrase: str | Unset | None = UNSET
    path: str | os.PathLike[str] | Unset | None = UNSET
    pfx: Any = UNSET
    port: int | str | Unset | None = UNSET
    reject_unauthorized: bool | Unset = UNSET
    request_cert: Any = UNSET
    secure_context: ContextHandle | Unset | None = UNSET
    secure_options: Any = UNSET
    secure_protocol: Any = UNSET
    servername: str | Unset | None = UNSET
    session: Any = UNSET
    session_id_context: Any = UNSET
    socket: Any = UNSET
    timeout: float | Unset | None = UNSET
    sigalgs: Any = UNSET
    allow_partial_trust_chain: Any = UNSET
    request_ocsp: Any = UNSET
    psk_callback: Any = UNSET
    family: Any = UNSET
    local_address: Any = UNSET
    local_port: Any = UNSET
    auto_select_family: Any = UNSET
    auto_select_family_attempt_timeout: Any = UNSET
    no_delay: Any = UNSET
    tcp_keep_alive: Any = UNSET
    pins: Any = UNSET
    verifier: Any = UNSET
    _values: tuple[Any, ...] = dataclasses.field(init=False)
    _hash: int = dataclasses.field(init=False)

    _rules: ClassVar[Mapping[str, Rule]] = _CONNECTION_RULES

    def __post_init__(self) -> None:
        for name in self.field_names():
            value = getattr(self, name)
            if value is UNSET or name == "key":
                continue
            rule = self._rules.get(name)
            if rule is None:
                raise NotImplementedError(f"{name} is not supported yet; leave it out")
            if value is not None or name not in _NULLABLE_BY_ALL:
                _settle(self, name, rule(name, value))
        if self.key is not UNSET and self.key is not None:
            _settle(
                self,
                "key",
                _material.private_keys(self.key, self.passphrase if isinstance(self.passphrase, str) else None),
            )
        self._check_combinations()
        self._seal()

    def _check_combinations(self) -> None:
        if self.secure_context:
            beside = sorted(n for n in CONTEXT_FIELDS if getattr(self, n) is not UNSET and getattr(self, n) is not None)
            if beside:
                raise OptionError(
                    f"{', '.join(beside)} has no effect beside secure_context: give it to create_secure_context()"
                )
        low, high = self.min_version, self.max_version
        if low and high and _VERSIONS.index(low) > _VERSIONS.index(high):
            raise OptionError(
                f"min_version {low} is above max_version {high}: no connection could ever be made",
                code="ERR_TLS_INVALID_PROTOCOL_VERSION",
            )
        if isinstance(self.cert, tuple) and isinstance(self.key, tuple):
            chains = cast("tuple[_material.CertificateChain, ...]", self.cert)
            keys = [key for key in self.key if isinstance(key, _material.PrivateKey)]
            if len(keys) == len(self.key):
                _material.check_key_pairs(chains, keys)

    def _seal(self) -> None:
        values = tuple(getattr(self, name) for name in self.field_names())
        _settle(self, "_values", values)
        _settle(self, "_hash", hash(values))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Return the names of all options, in the order of declaration."""
        return _field_names(cls)

    def merged_over(self: _Options, lower: ConnectionOptions) -> _Options:
        """
        Return these options laid over `lower`: what is `UNSET` here is taken from there.

        A `secure_context` here drops from `lower` the options that one is made from, and any of those here drops a
        `secure_context` of `lower`: an option never stays where it would have no effect.
        """
        merged: _Options = object.__new__(type(self))
        dropped: frozenset[str] = frozenset()
        if self.secure_context:
            dropped = CONTEXT_FIELDS
        elif any(getattr(self, name) is not UNSET for name in CONTEXT_FIELDS):
            dropped = frozenset({"secure_context"})
        for name in self.field_names():
            value = getattr(self, name)
            if value is UNSET and name not in dropped:
                value = getattr(lower, name, UNSET)
            elif isinstance(value, Timeouts):
                value = value.merged_over(getattr(lower, name, _NOTHING_SAID) or _NOTHING_SAID)
            _settle(merged, name, value)
        merged._check_combinations()
        merged._seal()
        return merged

    def __eq__(self, other: Any) -> bool:
        if self is other:
            return True
        if type(other) is not type(self):
            return NotImplemented
        return self._hash == other._hash and self._values == other._values

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        shown = []
        for name in self.field_names():
            value = getattr(self, name)
            if value is not UNSET:
                shown.append(f"{name}=***" if name in _SECRETS and value is not None else f"{name}={show(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


_SECRETS: Final = frozenset({"passphrase", "session"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """
    How long each phase of a request may take, in seconds; None means no limit, `UNSET` takes the layer below.

    `queue` and `total` belong to the request. `lookup`, `connect`, `tunnel` and `handshake` belong to the connection
    attempt, which may serve another request than the one that caused it. None of them is in the pool key.

    Attributes:
        queue: Waiting for a connection to become free. Default 30.
        lookup: Resolving the name. Default 10.
        connect: Reaching the address. Default 10.
        tunnel: Opening the proxy's tunnel. Default 10.
        handshake: The TLS handshake as a whole. Default 10.
        send: Between two moments at which the peer accepts bytes of the request. Default 30.
        response: From the end of the request to the head of the response. Default 60.
        read: Between two reads of the response's body. Default 60.
        total: From the call to the last byte. Default None.
    """

    queue: float | Unset | None = UNSET
    lookup: float | Unset | None = UNSET
    connect: float | Unset | None = UNSET
    tunnel: float | Unset | None = UNSET
    handshake: float | Unset | None = UNSET
    send: float | Unset | None = UNSET
    response: float | Unset | None = UNSET
    read: float | Unset | None = UNSET
    total: float | Unset | None = UNSET

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not UNSET:
                _settle(self, field.name, _duration(f"timeouts.{field.name}", value))

    @classmethod
    def of(cls, value: object) -> Timeouts:
        """Return `value` as Timeouts: a plain number means `total`, None no limit at all."""
        if isinstance(value, Timeouts):
            return value
        if value is None:
            return cls(**dict.fromkeys((f.name for f in dataclasses.fields(cls)), None))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong_type("timeouts", "a Timeouts, a number of seconds or None", value)
        return cls(total=value)

    def merged_over(self, lower: Timeouts) -> Timeouts:
        """Return these timeouts laid over `lower`."""
        if self is lower or lower == _NOTHING_SAID:
            return self
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Timeouts(**{name: getattr(lower, name) if value is UNSET else value for name, value in values.items()})


_NOTHING_SAID: Final = Timeouts()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Http1Options:
    """
    Limits on what an HTTP/1.1 peer may send. Not in the pool key.

    Attributes:
        max_head_size: Bytes of a response head, trailers and chunk headers included. Default 65,536.
        max_informational: 1xx responses before the final one. Default 16.
    """

    max_head_size: int = 65_536
    max_informational: int = 16

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if _count(f"http1.{field.name}", getattr(self, field.name)) is None:
                raise _wrong_type(f"http1.{field.name}", "a whole number", None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class AgentOptions(ConnectionOptions):
    """
    How connections are pooled, and the `ConnectionOptions` that all of them start from. Node's `https.AgentOptions`.

    None of the fields added here is in the pool key.

    Attributes:
        keep_alive: Keep connections for later requests. Default True (Node: false).
        max_sockets: Connections per pool key, dialling ones included. Default None.
        max_total_sockets: Connections over all keys; never exceeded, an idle one of another key gives way. Default
            None.
        max_free_sockets: Idle connections kept per key; 0 keeps none. Default 256.
        scheduling: Which idle connection serves next: the last freed ("lifo", the default) or the first ("fifo").
        free_socket_timeout: Seconds an idle connection is kept. Default 60.
        max_lifetime: Seconds after its handshake from which a connection takes no further request. Default None.
        max_requests_per_socket: Requests that one connection serves. Default None.
        keep_alive_hint_margin: Seconds taken off the server's `Keep-Alive: timeout=N`, which shortens the time that a
            connection may be idle, so that it is not used just when the server closes it (Node:
            agentKeepAliveTimeoutBuffer, in milliseconds). Default 1.
        max_cached_sessions: Scopes whose TLS sessions the built-in store remembers (8 sessions each); 0 turns
            resumption off. Default 100.
        session_store: A `SessionStore` in place of the built-in one.
        retry: Send a request again, once, when a reused connection died before answering it and the request is safe to
            repeat (RFC 9110, 9.2.2). Default True.
        http1_engine: "auto" or "h11".
        http1: Limits for HTTP/1.1 responses.
        max_response_size: Bytes of a body that `request()` will hold; None, the default, for no limit.
        timeouts: `Timeouts`, or a number of seconds for the whole request.
    """

    keep_alive: bool | Unset = UNSET
    max_sockets: int | Unset | None = UNSET
    max_total_sockets: int | Unset | None = UNSET
    max_free_sockets: int | Unset | None = UNSET
    scheduling: Literal["lifo", "fifo"] | Unset = UNSET
    free_socket_timeout: float | Unset | None = UNSET
    max_lifetime: float | None | Unset = UNSET
    max_requests_per_socket: int | None | Unset = UNSET
    keep_alive_hint_margin: float | Unset = UNSET
    dial_delay: Any = UNSET
    max_cached_sessions: int | Unset = UNSET
    session_store: Any = UNSET
    early_data: Any = UNSET
    proxy: Any = UNSET
    retry: bool | Unset = UNSET
    http1_engine: Literal["auto", "h11"] | Unset = UNSET
    http2_engine: Any = UNSET
    http1: Http1Options | Unset = UNSET
    http2: Any = UNSET
    max_response_size: int | Unset | None = UNSET
    timeouts: Timeouts | float | Unset | None = UNSET

    _rules: ClassVar[Mapping[str, Rule]] = {**_CONNECTION_RULES, **_AGENT_RULES}

    def _check_combinations(self) -> None:
        super(AgentOptions, self)._check_combinations()
        if self.socket is not UNSET and self.socket is not None:
            raise OptionError("socket serves one connection: give it to a request or to connect(), not to an agent")
        own_store = self.session_store is not UNSET and self.session_store is not None
        if own_store and self.max_cached_sessions not in (UNSET, _DEFAULT_CACHED_SESSIONS):
            raise OptionError(
                "max_cached_sessions sizes the built-in store: it would have no effect beside session_store"
            )


_DEFAULT_CACHED_SESSIONS: Final = 100


class ConnectionOptionsDict(TypedDict, total=False):
    """The fields of `ConnectionOptions` as keywords (PEP 692)."""

    alpn_protocols: Sequence[str] | Unset | None
    ca: Source | Sequence[Source] | _material.TrustAnchors | Unset | None
    cert: Source | Sequence[Source] | tuple[_material.CertificateChain, ...] | Unset | None
    check_server_identity: CheckServerIdentity | Unset | None
    ciphers: str | _material.CipherList | Unset | None
    host: str | Unset | None
    key: Any
    lookup: Lookup | Unset | None
    max_version: Version | Unset | None
    min_version: Version | Unset | None
    passphrase: str | Unset | None
    path: str | os.PathLike[str] | Unset | None
    port: int | str | Unset | None
    reject_unauthorized: bool | Unset
    secure_context: ContextHandle | Unset | None
    servername: str | Unset | None
    socket: Any
    timeout: float | Unset | None


class AgentOptionsDict(ConnectionOptionsDict, total=False):
    """The fields of `AgentOptions` as keywords (PEP 692)."""

    keep_alive: bool | Unset
    max_sockets: int | Unset | None
    max_total_sockets: int | Unset | None
    max_free_sockets: int | Unset | None
    scheduling: Literal["lifo", "fifo"] | Unset
    free_socket_timeout: float | Unset | None
    max_lifetime: float | None | Unset
    max_requests_per_socket: int | None | Unset
    keep_alive_hint_margin: float | Unset
    max_cached_sessions: int | Unset
    session_store: Any
    retry: bool | Unset
    http1_engine: Literal["auto", "h11"] | Unset
    http1: Http1Options | Unset
    max_response_size: int | Unset | None
    timeouts: Timeouts | float | Unset | None


_FIELD_NAMES: dict[type, tuple[str, ...]] = {}


def _field_names(cls: type) -> tuple[str, ...]:
    names = _FIELD_NAMES.get(cls)
    if names is None:
        names = tuple(f.name for f in dataclasses.fields(cls) if not f.name.startswith("_"))
        _FIELD_NAMES[cls] = names
    return names


def build(cls: type[_Options], keywords: Mapping[str, Any]) -> _Options:
    """
    Return `cls(**keywords)`; unknown names raise `OptionTypeError` with the name that was probably meant.
    """
    unknown = [name for name in keywords if name not in cls.field_names()]
    if unknown:
        import difflib

        close = difflib.get_close_matches(unknown[0], cls.field_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise OptionTypeError(f"there is no option {show(unknown[0])}{hint}")
    return cls(**keywords)


DEFAULTS: Final = AgentOptions(
    alpn_protocols=("http/1.1",),
    ca=None,
    cert=None,
    key=None,
    passphrase=None,
    ciphers=None,
    min_version="TLSv1.2",
    max_version="TLSv1.3",
    secure_context=None,
    servername=None,
    reject_unauthorized=True,
    check_server_identity=None,
    host=None,
    port=None,
    path=None,
    lookup=None,
    socket=None,
    timeout=None,
    keep_alive=True,
    max_sockets=None,
    max_total_sockets=None,
    max_free_sockets=256,
    scheduling="lifo",
    free_socket_timeout=60,
    max_lifetime=None,
    max_requests_per_socket=None,
    keep_alive_hint_margin=1,
    max_cached_sessions=_DEFAULT_CACHED_SESSIONS,
    session_store=None,
    retry=True,
    http1_engine="auto",
    http1=Http1Options(),
    max_response_size=None,
    timeouts=Timeouts(
        queue=30, lookup=10, connect=10, tunnel=10, handshake=10, send=30, response=60, read=60, total=None
    ),
)
