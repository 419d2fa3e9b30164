"""
One rule per option: from what the user gave to the one canonical, immutable, hashable form.

A rule raises `OptionError` with Node's code, and of Node's class: its TypeError is `OptionTypeError`, its RangeError
`OptionRangeError`. What an error says about an option that may be secret never quotes it. `_options` says which fields
there are and lays them over each other; `_identity` which of them tell connections apart.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import enum
import ipaddress
import math
import os
import re
import sys
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

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


Role = Literal["both", "client", "server"]


class ContextHandle:
    """What the options know of a `SecureContext`: that it is one, and which side may use it."""

    __slots__ = ()
    role: Role


class OptionsHandle:
    """What the lower rooms know of `ConnectionOptions`: that it is one."""

    __slots__ = ()


Source = bytes | bytearray | memoryview | str | os.PathLike[str]
Version = Literal["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]
CheckServerIdentity = Callable[[str, "PeerCertificate"], object]
Lookup = Callable[[str, int], Sequence[str] | Awaitable[Sequence[str]]]
SniCallback = Callable[[str], "ContextHandle | None"]
PskCallback = Callable[[str | None], "Psk | None"]
PskServerCallback = Callable[[str], "Psk | bytes | None"]
Rule = Callable[[str, Any], Any]

VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")


def show(value: object) -> str:
    """Return a bounded repr for an error message; only for values that cannot be secret."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def wrong_type(name: str, expected: str, value: object) -> OptionTypeError:
    return OptionTypeError(f"{name} must be {expected}, not {type(value).__name__}")


def bad_value(message: str) -> OptionTypeError:
    """Return the error for a value of the right type that means nothing: in Node a TypeError too."""
    return OptionTypeError(message, code="ERR_INVALID_ARG_VALUE")


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Psk:
    """
    A pre-shared key (RFC 4279, RFC 8446 section 2.2), as a `psk_callback` returns it.

    Attributes:
        psk: The key, 1 to 256 bytes. Never shown.
        identity: Tells the server which key it is; sent in clear, 1 to 127 bytes in UTF-8.
    """

    psk: bytes
    identity: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "psk", psk_key(self.psk))
        if not isinstance(self.identity, str):
            raise wrong_type("identity", "a str", self.identity)
        if "\0" in self.identity or not 0 < len(self.identity.encode()) <= _LONGEST_PSK_IDENTITY:
            raise OptionRangeError(
                f"identity must have 1 to {_LONGEST_PSK_IDENTITY} bytes in UTF-8 and no NUL among them"
            )

    def __repr__(self) -> str:
        return f"Psk(psk=***, identity={show(self.identity)})"


def psk_key(value: object) -> bytes:
    """Return a pre-shared key as bytes."""
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise wrong_type("psk", "bytes", value)
    if not 0 < len(value) <= _LONGEST_PSK:
        raise OptionRangeError(f"psk must have 1 to {_LONGEST_PSK} bytes, not {len(value)}")
    return bytes(value)


# PSK_MAX_PSK_LEN and PSK_MAX_IDENTITY_LEN of the OpenSSL versions in use, rounded down.
_LONGEST_PSK: Final = 256
_LONGEST_PSK_IDENTITY: Final = 127


# --- Rules: one value in, its canonical form out ----------------------------------------------------------------------


def boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise wrong_type(name, "True or False", value)
    return value


def _callable(name: str, value: object) -> object:
    if not callable(value):
        raise wrong_type(name, "callable", value)
    try:
        hash(value)
    except TypeError:
        raise OptionTypeError(f"{name} must be hashable: it is part of the pool key and compared by ==") from None
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, "a number of seconds or None", value)
    return float(value)


def duration(name: str, value: object) -> float | None:
    if value is None:
        return None
    seconds = _number(name, value)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise OptionRangeError(
            f"{name} must be a finite number of seconds above 0, not {show(value)}; None means no limit"
        )
    return seconds


def margin(name: str, value: object) -> float:
    seconds = _number(name, value)
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise OptionRangeError(f"{name} must be a finite number of seconds, at least 0, not {show(value)}")
    return seconds


def count(name: str, value: object, *, least: int = 1) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, "a whole number or None", value)
    if value < least:
        raise OptionRangeError(f"{name} must be at least {least}, not {value}; None means no limit")
    return value


def _count_or_zero(name: str, value: object) -> int | None:
    return count(name, value, least=0)


def whole(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, "a whole number", value)
    if value < least:
        raise OptionRangeError(f"{name} must be at least {least}, not {value}")
    if most is not None and value > most:
        raise OptionRangeError(f"{name} must be at most {most}, not {value}")
    return value


def _whole_or_zero(name: str, value: object) -> int:
    return whole(name, value, least=0)


def _one_of(*allowed: str) -> Rule:
    def rule(name: str, value: Any) -> Any:
        if value not in allowed:
            raise bad_value(f"{name} must be one of {', '.join(map(repr, allowed))}, not {show(value)}")
        return value

    return rule


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise wrong_type(name, "a str", value)
    if "\0" in value:
        raise bad_value(f"{name} must not contain NUL characters")
    return value


def _host(name: str, value: object) -> str:
    text = _text(name, value)
    bare = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    if is_ip_address(bare):
        return bare.lower()
    if not text or bare is not text:
        raise bad_value(f"{name} must be a host name or an IP address, not {show(value)}")
    return to_ascii(name, text)


def _servername(name: str, value: object) -> str:
    text = _text(name, value)
    # RFC 6066, 3: a name without a trailing dot, and no literal address.
    if is_ip_address(text.removesuffix(".")):
        raise bad_value(f"{name} must be a host name: an IP address cannot be sent as SNI; use '' to send none")
    return to_ascii(name, text).removesuffix(".") if text else ""


def _port(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise wrong_type(name, "a port number", value)
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise OptionRangeError(f"{name} must be a port number, not {show(value)}", code="ERR_SOCKET_BAD_PORT")
    if not 0 < int(value) < 65_536:
        raise OptionRangeError(f"{name} must be from 1 to 65535, not {show(value)}", code="ERR_SOCKET_BAD_PORT")
    return int(value)


def _path(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise wrong_type(name, "the path of a Unix socket", value)
    text = _text(name, os.fspath(value))
    if not text:
        raise bad_value(f"{name} must not be empty; None means: connect by TCP")
    if (length := len(os.fsencode(text))) > _LONGEST_PATH:
        raise bad_value(f"{name} has {length} bytes: a Unix socket's may have {_LONGEST_PATH} at most")
    return text


_LONGEST_PATH: Final = 103 if sys.platform == "darwin" else 107  # sun_path of unix(4), unix(7), without its NUL


def _alpn_protocols(name: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        raise wrong_type(name, 'a list of protocol names, for example ["http/1.1"]', value)
    protocols = []
    for item in value:
        if not isinstance(item, (str, bytes)):
            raise wrong_type(f"each item of {name}", "a protocol name", item)
        protocol = item.decode("latin-1") if isinstance(item, bytes) else item
        if not protocol:
            raise bad_value(f"{name} must not contain an empty protocol name (RFC 7301, 3.1)")
        if len(protocol) > 255 or not protocol.isascii():
            raise OptionRangeError(f"{name}: a protocol name is 1 to 255 ASCII characters, not {show(item)}")
        protocols.append(protocol)
    return tuple(protocols)


def _version(name: str, value: Any) -> Any:
    if value is not None and value not in VERSIONS:
        raise OptionTypeError(
            f"{name} must be one of {', '.join(VERSIONS)}, not {show(value)}", code="ERR_TLS_INVALID_PROTOCOL_VERSION"
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
        raise wrong_type(name, "a str", value)
    return value


def _secure_context(name: str, value: object) -> ContextHandle | None:
    if value is not None and not isinstance(value, ContextHandle):
        raise OptionTypeError(
            f"{name} must come from create_secure_context(), not {type(value).__name__}", code="ERR_TLS_INVALID_CONTEXT"
        )
    return value


def _socket(name: str, value: object) -> object:
    if value is not None and not hasattr(value, "fileno"):
        raise wrong_type(name, "a connected socket", value)
    return value


def _store(name: str, value: object) -> object:
    if value is not None and not all(callable(getattr(value, verb, None)) for verb in ("take", "put", "discard")):
        raise wrong_type(name, "a SessionStore (with take, put and discard) or None", value)
    return value


def _crl(_name: str, value: Any) -> _material.RevocationLists | None:
    if value is None or isinstance(value, _material.RevocationLists):
        return value
    return _material.revocation_lists(value)


def _dhparam(_name: str, value: Any) -> _material.DHParameters | None:
    return value if value is None or isinstance(value, _material.DHParameters) else _material.dh_parameters(value)


def _ecdh_curve(_name: str, value: Any) -> str | None:
    return None if value is None else _material.group_list(value)


def _sigalgs(_name: str, value: Any) -> str | None:
    return None if value is None else _material.signature_algorithms(value)


def _secure_options(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, "a whole number made of SSL_OP_* bits", value)
    if value != value or math.isinf(value) or value != int(value) or not 0 <= value <= _LARGEST_INTEGER:
        raise OptionRangeError(f"{name} must be a whole number from 0 to {_LARGEST_INTEGER}, not {show(value)}")
    return int(value)


_LARGEST_INTEGER: Final = 2**53 - 1  # Node's


def _secure_protocol(name: str, value: Any) -> str | None:
    if not value and isinstance(value, str):
        return None  # as in Node
    protocol_range(_text(name, value))
    return str(value)


# What Node makes of OpenSSL's old method names: lowest and highest version.
_METHODS: Final = {
    "TLS": ("TLSv1", "TLSv1.3"),
    "SSLv23": ("TLSv1", "TLSv1.2"),
    "TLSv1": ("TLSv1", "TLSv1"),
    "TLSv1_1": ("TLSv1.1", "TLSv1.1"),
    "TLSv1_2": ("TLSv1.2", "TLSv1.2"),
}


def protocol_range(method: str) -> tuple[str, str, Role]:
    """Return lowest version, highest version and side of a `secure_protocol` such as "TLSv1_2_client_method"."""
    stem, found, rest = method.removesuffix("_method").partition("_client")
    role: Role = "client" if found else "both"
    if not found:
        stem, found, rest = stem.partition("_server")
        role = "server" if found else "both"
    if stem not in _METHODS or rest or not method.endswith("_method"):
        raise OptionTypeError(
            f"secure_protocol {show(method)} is not supported: use min_version and max_version, or one of "
            f"{', '.join(f'{known}_method' for known in _METHODS)}",
            code="ERR_TLS_INVALID_PROTOCOL_METHOD",
        )
    return (*_METHODS[stem], role)


def _session(_name: str, value: Any) -> _material.Session:
    return value if isinstance(value, _material.Session) else _material.Session.from_bytes(value)


def _session_id_context(name: str, value: Any) -> str:
    text = _text(name, value)
    if len(text.encode()) > _LONGEST_SESSION_ID_CONTEXT:
        raise OptionTypeError(
            f"{name} must not be longer than {_LONGEST_SESSION_ID_CONTEXT} bytes in UTF-8",
            code="ERR_TLSAGENT_SESSION_ID_CONTEXT",
        )
    return text


_LONGEST_SESSION_ID_CONTEXT: Final = 32


def _min_dh_size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, "a number of bits", value)
    if not 1 <= value < math.inf:
        raise OptionRangeError(f"{name} must be 1 at least, not {show(value)}")
    return math.ceil(value)


def _pins(name: str, value: Any) -> tuple[bytes, ...]:
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        raise wrong_type(name, 'a list of "sha256//BASE64"', value)
    if not value:
        raise bad_value(f"{name} must not be empty: no certificate could match; None means: do not compare")
    return tuple(sorted({_pin(name, item) for item in value}))


def _pin(name: str, item: object) -> bytes:
    if isinstance(item, bytes) and len(item) == _PIN_SIZE:
        return item  # canonical already
    if not isinstance(item, str):
        raise wrong_type(f"each item of {name}", 'a str "sha256//BASE64"', item)
    try:
        digest = base64.b64decode(item.removeprefix("sha256//"), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if not item.startswith("sha256//") or len(digest) != _PIN_SIZE:
        raise bad_value(
            f"{name}: {show(item)} is not 'sha256//' and the base64 of a public key's SHA-256 (SubjectPublicKeyInfo)"
        )
    return digest


_PIN_SIZE: Final = 32


def _client_cert_engine(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise wrong_type(name, "a str", value)
    raise OptionError(
        f"{name} is not supported: OpenSSL 4 has no engines. For a key in hardware use a provider: have OPENSSL_CONF "
        "load pkcs11-provider and give the key's pkcs11: URI as `key` (docs/howto/pkcs11.md)",
        code="ERR_CRYPTO_CUSTOM_ENGINE_NOT_SUPPORTED",
    )


def _family(name: str, value: Any) -> int:
    if isinstance(value, bool) or value not in (0, 4, 6):
        raise bad_value(f"{name} must be 4, 6, or 0 for either, not {show(value)}")
    return int(value)


def _local_address(name: str, value: Any) -> str:
    if not isinstance(value, str) or not is_ip_address(value):
        raise OptionTypeError(f"{name} must be an IP address, not {show(value)}", code="ERR_INVALID_IP_ADDRESS")
    return str(ipaddress.ip_address(value))


def _local_port(name: str, value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, "a port number", value)
    if not 0 <= value < 65_536:
        raise OptionRangeError(f"{name} must be from 0 to 65535, not {show(value)}", code="ERR_SOCKET_BAD_PORT")
    return value or None


def _attempt_timeout(name: str, value: Any) -> float | None:
    seconds = duration(name, value)
    return None if seconds is None else max(seconds, _SHORTEST_ATTEMPT)


_SHORTEST_ATTEMPT: Final = 0.01  # Node's 10 ms; RFC 8305, 5 has the same floor


def _tcp_keep_alive(name: str, value: Any) -> float | None:
    if value is None or value is False:
        return None
    return 0.0 if value is True or value == 0.0 else duration(name, value)


def is_ip_address(text: str) -> bool:
    """Whether `text` is an IPv4 or IPv6 literal, a zone id allowed."""
    if ":" not in text and not text[-1:].isdigit():
        return False  # most hosts: spares an exception per look-up
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def a_labels(host: str) -> str | None:
    """
    Return a name with letters beyond ASCII in A-labels (punycode); None where versions of IDNA may not agree on them.

    The codec is IDNA 2003: what later versions read as another host, or do not take for one, would lead elsewhere than
    it says.
    """
    if len(host) > 253 or not _DEVIATIONS.isdisjoint(host):
        return None
    try:
        encoded = host.encode("idna")
        mapped = encoded.decode("idna")
    except UnicodeError:
        return None
    # Some characters (U+2024) become a dot only after the labels were split: one name, two readings.
    if len(_DOTS.split(host)) != encoded.count(b".") + 1:
        return None
    # The codec normalises as Unicode 3.2 did; a compatibility character invented since would stay as it is.
    if unicodedata.normalize("NFKC", mapped).lower() != mapped:
        return None
    name = encoded.decode("ascii").lower()
    return None if is_ip_address(name.removesuffix(".")) else name


_DOTS: Final = re.compile("[.\u3002\uff0e\uff61]")  # RFC 3490, 3.1
# IDNA 2008 gives these a meaning that IDNA 2003 maps away: two names for one text.
_DEVIATIONS: Final = frozenset("\u00df\u03c2\u200c\u200d")


def to_ascii(name: str, host: str) -> str:
    """Return a host name in lower-case ASCII (A-labels), as certificates and SNI spell it."""
    encoded = host.lower() if host.isascii() else a_labels(host)
    if encoded is None:
        raise OptionError(
            f"{name}: {show(host)} has no spelling in ASCII that all versions of IDNA agree on: give it in A-labels "
            "(xn--...)"
        )
    labels = encoded.removesuffix(".").split(".")
    if len(encoded) > 254 or not all(0 < len(label) < 64 for label in labels):
        raise OptionError(f"{name}: {show(host)} is not a host name (RFC 1035: labels of 1 to 63 bytes, 253 in all)")
    if not all(c.isalnum() or c in "-_." for c in encoded):
        raise OptionError(f"{name}: {show(host)} holds characters that no host name may have")
    return encoded


CONNECTION_RULES: Final[Mapping[str, Rule]] = {
    "allow_partial_trust_chain": boolean,
    "alpn_protocols": _alpn_protocols,
    "auto_select_family": boolean,
    "auto_select_family_attempt_timeout": _attempt_timeout,
    "ca": _ca,
    "cert": _cert,
    "check_server_identity": _callable,
    "ciphers": _ciphers,
    "client_cert_engine": _client_cert_engine,
    "crl": _crl,
    "dhparam": _dhparam,
    "ecdh_curve": _ecdh_curve,
    "enable_trace": boolean,
    "family": _family,
    "honor_cipher_order": boolean,
    "host": _host,
    "local_address": _local_address,
    "local_port": _local_port,
    "lookup": _callable,
    "max_version": _version,
    "min_dh_size": _min_dh_size,
    "min_version": _version,
    "no_delay": boolean,
    "passphrase": _passphrase,
    "path": _path,
    "pins": _pins,
    "port": _port,
    "psk_callback": _callable,
    "reject_unauthorized": boolean,
    "request_cert": boolean,
    "request_ocsp": boolean,
    "secure_context": _secure_context,
    "secure_options": _secure_options,
    "secure_protocol": _secure_protocol,
    "servername": _servername,
    "session": _session,
    "session_id_context": _session_id_context,
    "sigalgs": _sigalgs,
    "sni_callback": _callable,
    "socket": _socket,
    "tcp_keep_alive": _tcp_keep_alive,
    "timeout": duration,
    "verifier": _one_of("openssl"),
}
AGENT_RULES: Final[Mapping[str, Rule]] = {
    "keep_alive": boolean,
    "max_sockets": count,
    "max_total_sockets": count,
    "max_free_sockets": _count_or_zero,
    "scheduling": _one_of("lifo", "fifo"),
    "free_socket_timeout": duration,
    "max_lifetime": duration,
    "max_requests_per_socket": count,
    "keep_alive_hint_margin": margin,
    "dial_delay": duration,
    "max_cached_sessions": _whole_or_zero,
    "session_store": _store,
    "retry": boolean,
    "http1_engine": _one_of("auto", "h11", "httptools"),
    "http2_engine": _one_of("auto", "h2", "ngh2"),
    "max_response_size": count,
}
# Fields whose rule is never asked about None, which stands for the default.
NULLABLE: Final = frozenset({*CONNECTION_RULES, "proxy"}) - {"reject_unauthorized"}
