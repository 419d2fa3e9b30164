"""
One converter per property of Node's: JavaScript's part of the check, and the form this library wants.

A converter gets the property's name, its value and all options, and returns the value for the field it becomes, `UNSET`
where Node takes it for unsaid. What the value means is checked by the rule of that field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tlsagent._option_rules import UNSET, Psk
from tlsagent.errors import CertificateNameError, OptionError
from tlsagent.node.domains import is_address
from tlsagent.node.identity import check_server_identity
from tlsagent.node.request import MAX_TIMER, first, milliseconds, no_signal
from tlsagent.node.support import SUPPORT
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
    to_int32,
    to_number,
    wrong_type,
)

UNSUPPORTED: Final = "ERR_TLSAGENT_UNSUPPORTED_OPTION"
_CERTIFICATE_COMPRESSION: Final = ("zlib", "brotli", "zstd")
_RESOLVER_HINTS: Final = 0x20 | 0x08 | 0x10  # ADDRCONFIG, V4MAPPED, ALL on Linux
_FAMILIES: Final = {"IPv4": 4, "IPv6": 6}


def unsupported(name: str) -> OptionError:
    """Return the error for a property that `SUPPORT` refuses."""
    return OptionError(f"options.{name} is not supported: {SUPPORT[name].why}", code=UNSUPPORTED)


def unless_undefined(_name: str, value: Any, _all: Options) -> Any:
    return UNSET if value is UNDEFINED else value


def unless_nullish(_name: str, value: Any, _all: Options) -> Any:
    return UNSET if is_nullish(value) else value


def if_truthy(_name: str, value: Any, _all: Options) -> Any:
    return value if is_truthy(value) else UNSET


def truth(_name: str, value: Any, _all: Options) -> Any:
    return UNSET if value is UNDEFINED else is_truthy(value)


def refuse(name: str, value: Any, _all: Options) -> Any:
    if is_truthy(value):
        raise unsupported(name)
    return UNSET


def only_true(name: str, value: Any, _all: Options) -> Any:
    if value is not UNDEFINED and not is_truthy(value):
        raise unsupported(name)
    return UNSET


def only_strict(name: str, value: Any, _all: Options) -> Any:
    if value not in (UNDEFINED, "strict"):
        raise unsupported(name)
    return UNSET


def required_string(name: str, value: Any, _all: Options) -> Any:
    if value is None:
        raise wrong_type(name, "a string", value)
    return UNSET if value is UNDEFINED else value


def _required_function(name: str, value: Any) -> Any:
    if not callable(value):
        raise wrong_type(name, "a function", value)
    return value


# Material


# RFC 7468, 2: a boundary is a line of its own. OpenSSL lets nothing stand before it, and blanks behind it.
_PEM_BEGIN: Final = re.compile(rb"^-----BEGIN [^-\r\n]*-----[ \t]*\r?$", re.MULTILINE)
_PEM_OF_A_KIND: Final = re.compile(b"-----BEGIN")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def _pem(name: str, item: Any, code: str, begin: re.Pattern[bytes] = _PEM_BEGIN) -> Any:
    """Return one item of PEM; Node reads no DER."""
    if not (isinstance(item, str) or is_buffer(item)):
        raise wrong_type(name, "a string or a Buffer", item)
    data = item.encode("utf-8", "replace") if isinstance(item, str) else bytes(item)
    if not begin.search(data.removeprefix(_BYTE_ORDER_MARK)):
        raise error(code, f"options.{name} holds no PEM text: expected a line '-----BEGIN ...-----'")
    return item


def certificates(name: str, value: Any, _all: Options) -> Any:
    if value == "":
        raise error("ERR_INVALID_ARG_VALUE", f"options.{name} must not be empty: leave it out instead")
    if not is_truthy(value):
        return UNSET
    items = value if is_array(value) else [value]
    # What is wrong with a certificate is said when it is read.
    return [_pem(name, item, "ERR_OSSL_PEM_NO_START_LINE", _PEM_OF_A_KIND) for item in items]


def keys(name: str, value: Any, options: Options) -> Any:
    if not is_truthy(value):
        return certificates(name, value, options)
    if not is_array(value):
        return _key_pem(name, value)
    return [_key_item(name, item) for item in value]


def _key_pem(name: str, item: Any) -> Any:
    return _pem(name, item, "ERR_OSSL_UNSUPPORTED")


def _key_item(name: str, item: Any) -> Any:
    if not isinstance(item, Mapping) or get(item, "pem") is UNDEFINED:
        return _key_pem(name, item)
    if item.keys() - {"pem", "passphrase"}:
        raise wrong_type(name, "an item with pem and passphrase, nothing else", item)
    pem = _key_pem(name, item["pem"])
    passphrase = get(item, "passphrase")
    if not (is_nullish(passphrase) or isinstance(passphrase, str)):
        raise wrong_type("passphrase", "a string", passphrase)
    return {"pem": pem} if is_nullish(passphrase) else {"pem": pem, "passphrase": passphrase}


def passphrase(name: str, value: Any, options: Options) -> Any:
    if is_nullish(value) or isinstance(value, str):
        return unless_nullish(name, value, options)
    if not is_truthy(get(options, "key")) and not is_nullish(get(options, "pfx")):
        if not is_truthy(value):
            return UNSET
        if is_buffer(value):
            return _decoded(name, bytes(value))
    raise wrong_type(name, "a string", value)


def _decoded(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        # Neither the bytes nor the exception that knows them belong into a traceback.
        raise error("ERR_INVALID_ARG_VALUE", f"options.{name} must be a string, or one in UTF-8") from None


def pfx(name: str, value: Any, _all: Options) -> Any:
    if is_nullish(value):
        return UNSET
    if not is_array(value):
        return _pfx_bytes(name, value)
    return [_pfx_item(name, item) for item in value]


def _pfx_item(name: str, item: Any) -> Any:
    if is_nullish(item):
        raise wrong_type(name, "an array of Buffers and of objects with buf and passphrase", item)
    if not isinstance(item, Mapping):
        return _pfx_bytes(name, item)
    passphrase = get(item, "passphrase")
    buf = _pfx_bytes(name, first(get(item, "buf"), item))
    return {"buf": buf, "passphrase": passphrase} if is_truthy(passphrase) else {"buf": buf}


def _pfx_bytes(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if not is_buffer(value):
        raise error("ERR_CRYPTO_OPERATION_FAILED", f"options.{name} must be a PKCS#12 file's bytes")
    return bytes(value)


def crl(name: str, value: Any, _all: Options) -> Any:
    if is_nullish(value):
        return UNSET
    code = "ERR_CRYPTO_OPERATION_FAILED"
    if is_array(value):
        if not value:
            return UNSET  # Node switches the check on with the first list
        return [_pem(name, item, code) for item in value]
    return _pem(name, value, code)


def dhparam(name: str, value: Any, _all: Options) -> Any:
    if is_nullish(value) or value == "auto":
        return unless_nullish(name, value, _all)
    return _pem(name, value, "ERR_CRYPTO_OPERATION_FAILED")


# The handshake


def version(name: str, value: Any, options: Options) -> Any:
    if is_nullish(value):
        return UNSET
    if is_truthy(get(options, "secureProtocol")):
        raise error(
            "ERR_TLS_PROTOCOL_VERSION_CONFLICT", f"options.{name} and options.secureProtocol exclude each other"
        )
    return value


def secure_protocol(name: str, value: Any, _all: Options) -> Any:
    if value == "":
        raise error("ERR_TLS_INVALID_PROTOCOL_METHOD", f"options.{name} must not be empty: leave it out instead")
    return if_truthy(name, value, _all)


def _whole_number(name: str, value: Any, low: int, high: int) -> int:
    if not is_number(value):
        raise wrong_type(name, "a number", value)
    if not math.isfinite(value) or value != int(value) or not low <= value <= high:
        raise out_of_range(name, f"a whole number from {low} to {high}", value)
    return int(value)


def session_timeout(name: str, value: Any, _all: Options) -> Any:
    if not is_nullish(value):
        _whole_number(name, value, 0, MAX_TIMER)
    return UNSET


def ticket_keys(name: str, value: Any, _all: Options) -> Any:
    if not is_nullish(value):
        if not is_buffer(value):
            raise wrong_type(name, "a Buffer", value)
        if len(bytes(value)) != 48:
            raise error("ERR_INVALID_ARG_VALUE", f"options.{name} must be exactly 48 bytes")
    return UNSET


def key_in_engine(name: str, value: Any, options: Options) -> Any:
    if is_nullish(value):
        return UNSET
    if name == "privateKeyIdentifier":
        if is_nullish(get(options, "privateKeyEngine")):
            raise error("ERR_INVALID_ARG_VALUE", "options.privateKeyEngine must name the engine of the key")
        if is_truthy(get(options, "key")):
            raise error("ERR_INVALID_ARG_VALUE", "options.privateKeyIdentifier and options.key exclude each other")
    both = {name: value, "privateKeyEngine": get(options, "privateKeyEngine")}
    for one, said in both.items():
        if not isinstance(said, str):
            raise wrong_type(one, "a string, None or absent", said)
    raise OptionError(
        f"options.{name} is not supported: {SUPPORT[name].why}", code="ERR_CRYPTO_CUSTOM_ENGINE_NOT_SUPPORTED"
    )


def certificate_compression(name: str, value: Any, _all: Options) -> Any:
    if is_nullish(value):
        return UNSET
    if not is_array(value):
        raise wrong_type(name, "an array of zlib, brotli, zstd", value)
    if len(value) > len(_CERTIFICATE_COMPRESSION) or any(item not in _CERTIFICATE_COMPRESSION for item in value):
        raise error("ERR_INVALID_ARG_VALUE", f"options.{name} must hold at most each of zlib, brotli, zstd")
    if len(set(value)) < len(value):
        raise error("ERR_CRYPTO_OPERATION_FAILED", f"options.{name} names an algorithm twice")
    return refuse(name, len(value), _all)


# The connection


@dataclass(frozen=True, slots=True)
class IdentityCheck:
    """A check in Node's manner: whatever it answers is a failure if it is true. Equal if the function is."""

    function: Callable[[str, Any], object]

    def __call__(self, hostname: str, certificate: Any) -> object:
        """Return the function's answer as this library wants it: None or an exception."""
        answer = self.function(hostname, certificate)
        if isinstance(answer, BaseException):
            return answer
        if is_truthy(answer):
            return CertificateNameError("checkServerIdentity refused the certificate", phase="handshake")
        return None


@dataclass(frozen=True, slots=True)
class PskSource:
    """A `pskCallback` in Node's manner: it answers with an object of psk and identity. Equal if the function is."""

    function: Callable[[str | None], object]

    def __call__(self, hint: str | None) -> Psk | None:
        """Return the function's answer as a `Psk`."""
        answer = self.function(hint)
        if is_nullish(answer) or isinstance(answer, Psk):
            return answer if isinstance(answer, Psk) else None
        if not isinstance(answer, Mapping):
            raise wrong_type("pskCallback", "a function that returns an object with psk and identity", answer)
        return Psk(answer.get("psk"), answer.get("identity"))  # type: ignore[arg-type]


def identity_check(name: str, value: Any, _all: Options) -> Any:
    function = _required_function(name, value)
    return function if function is check_server_identity else IdentityCheck(function)


def psk_source(name: str, value: Any, _all: Options) -> Any:
    return PskSource(_required_function(name, value)) if is_truthy(value) else UNSET


def min_dh_size(name: str, value: Any, _all: Options) -> Any:
    if is_nullish(value):
        raise wrong_type(name, "a number", value)
    return value


def no_address(name: str, value: Any, _all: Options) -> Any:
    if isinstance(value, str) and is_address(value):
        raise error("ERR_INVALID_ARG_VALUE", f"options.{name} must not be an IP address (RFC 6066, 3)")
    return UNSET


def servername(_name: str, value: Any, _all: Options) -> Any:
    if not is_truthy(value):
        return "" if value == "" else UNSET
    return value


def alpn_protocols(name: str, value: Any, _all: Options) -> Any:
    if not is_truthy(value):
        return UNSET
    if is_buffer(value):
        return _from_wire(name, bytes(value))
    if not is_array(value):
        raise wrong_type(name, "an array of strings or a Buffer", value)
    for item in value:
        if not isinstance(item, str):
            raise wrong_type(name, "an array of strings", item)
    return value


def _from_wire(name: str, data: bytes) -> list[bytes]:
    protocols = []
    while data:
        length = data[0]
        if not 0 < length < len(data):
            raise error("ERR_INVALID_ARG_VALUE", f"options.{name} must be protocols, each behind its length (RFC 7301)")
        protocols.append(data[1 : 1 + length])
        data = data[1 + length :]
    return protocols


def session(name: str, value: Any, _all: Options) -> Any:
    if not is_truthy(value):
        return UNSET
    if not is_buffer(value):
        raise wrong_type(name, "a Buffer", value)
    return bytes(value)


def duration(name: str, value: Any, _all: Options) -> Any:
    return UNSET if is_nullish(value) else milliseconds(name, value) / 1000 or None


# Addresses


def port(name: str, value: Any, _all: Options) -> Any:
    if value is UNDEFINED:
        return UNSET
    if not (is_number(value) or isinstance(value, str)):
        raise wrong_type(name, "a number or a string", value)
    number = to_number(value)
    if (isinstance(value, str) and not value.strip()) or not 0 <= number < 65_536 or number != int(number):
        raise error("ERR_SOCKET_BAD_PORT", f"options.{name} must be from 1 to 65535")
    return int(number)


def string_if_truthy(name: str, value: Any, _all: Options) -> Any:
    if not is_truthy(value):
        return UNSET
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    return value


def local_port(name: str, value: Any, _all: Options) -> Any:
    if not is_truthy(value):
        return UNSET
    if not is_number(value):
        raise wrong_type(name, "a number", value)
    return int(value) if math.isfinite(value) and value == int(value) else -1  # which the rule refuses


def family(_name: str, value: Any, _all: Options) -> Any:
    if is_nullish(value):
        return UNSET
    return _FAMILIES.get(value, value) if isinstance(value, str) else value


def attempt_timeout(name: str, value: Any, _all: Options) -> Any:
    return UNSET if is_nullish(value) else _whole_number(name, value, 1, MAX_TIMER) / 1000


def hints(name: str, value: Any, _all: Options) -> Any:
    if not is_truthy(value):
        return UNSET
    if not is_number(value):
        raise wrong_type(name, "a number", value)
    flags = to_int32(value)
    if flags & ~_RESOLVER_HINTS:
        raise error("ERR_INVALID_ARG_VALUE", f"options.{name} must be flags of dns.lookup")
    return refuse(name, flags, _all)


def probe_delay(name: str, value: Any, _all: Options) -> Any:
    if not (value is UNDEFINED or is_number(value)):
        raise wrong_type(name, "a number of milliseconds", value)
    return UNSET


def high_water_mark(name: str, value: Any, _all: Options) -> Any:
    if not is_nullish(value) and not (is_number(value) and value >= 0 and value % 1 == 0):
        raise error("ERR_INVALID_ARG_VALUE", f"options.{name} must be a whole number of bytes")
    return refuse(name, value, _all)


def signal(_name: str, value: Any, _all: Options) -> Any:
    if is_truthy(value):
        raise no_signal(value)
    return UNSET


# The agent


def count(name: str, value: Any, _all: Options) -> Any:
    if is_nullish(value):
        return UNSET
    if not is_number(value):
        raise wrong_type(name, "a whole number or Infinity", value)
    if value == math.inf:
        return None
    if not math.isfinite(value) or value != int(value):
        raise out_of_range(name, "a whole number", value)
    return int(value)


def total(name: str, value: Any, options: Options) -> Any:
    if value is None:
        raise wrong_type(name, "a number", value)
    return count(name, value, options)


def margin(name: str, value: Any, _all: Options) -> Any:
    return UNSET if is_nullish(value) else milliseconds(name, value) / 1000


def protocol(name: str, value: Any, _all: Options) -> Any:
    if value not in (None, UNDEFINED, "https:"):
        raise error("ERR_INVALID_PROTOCOL", f"options.{name} must be 'https:'")
    return UNSET


def default_port(name: str, value: Any, options: Options) -> Any:
    return UNSET if is_nullish(value) or value == 443 else port(name, value, options)
