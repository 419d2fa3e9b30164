"""
JavaScript's values in Python: what is truthy, a number, a string; how a value becomes text; the class of each error.

Node's vocabulary arrives as Python objects: `undefined` is `UNDEFINED`, `null` None, a Buffer `bytes`, a Uint8Array
`bytearray`, an object a mapping, a function any callable. Nothing here knows an option.
"""

from __future__ import annotations

import decimal
import enum
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeGuard

from tlsagent.errors import OptionError, OptionRangeError, OptionTypeError


class Undefined(enum.Enum):
    """Type of `UNDEFINED`."""

    UNDEFINED = "undefined"

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = Undefined.UNDEFINED

Options = Mapping[str, object]
Buffer = bytes | bytearray | memoryview


def is_nullish(value: object) -> bool:
    """Whether a value is `null` or `undefined`."""
    return value is None or value is UNDEFINED


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number; in JavaScript a boolean is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_buffer(value: object) -> TypeGuard[Buffer]:
    """Whether a value is a Buffer, a typed array or a DataView."""
    return isinstance(value, (bytes, bytearray, memoryview))


def is_array(value: object) -> TypeGuard[Sequence[object]]:
    """Whether a value is an Array."""
    return isinstance(value, (list, tuple))


def is_truthy(value: object) -> bool:
    """Whether JavaScript takes a value for true: empty arrays, objects and Buffers are."""
    if isinstance(value, str):
        return bool(value)
    if is_number(value):
        return value != 0 and not math.isnan(value)
    return not is_nullish(value) and value is not False


def is_same(one: object, other: object) -> bool:
    """Whether two values are `===`: strings and numbers by what they are, all else by which object it is."""
    if isinstance(one, str) or is_number(one):
        return not isinstance(other, bool) and one == other
    return one is other


def get(options: Options, name: str) -> object:
    """Return a property, `UNDEFINED` if it is absent."""
    return options.get(name, UNDEFINED)


# Text -------------------------------------------------------------------------------------------------------------

_CONSTANTS: Final[dict[object, str]] = {None: "null", UNDEFINED: "undefined", True: "true", False: "false"}
_INDEX: Final = re.compile("0|[1-9][0-9]{0,8}")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def to_text(value: object) -> str:
    """Return `String(value)`: arrays joined by commas, Buffers decoded with U+FFFD, objects without contents."""
    if isinstance(value, str):
        return value
    if is_number(value):
        return _number_text(value)
    if value is None or isinstance(value, (bool, Undefined)):
        return _CONSTANTS[value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if is_buffer(value):
        return ",".join(map(str, bytes(value)))
    if is_array(value):
        return ",".join("" if is_nullish(item) else to_text(item) for item in value)
    return "[object Object]"


def _number_text(value: float) -> str:
    number = float(value)
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if number == 0 or 1e-6 <= abs(number) < 1e21:
        return format(decimal.Decimal(repr(abs(number) if number == 0 else number)), "f").removesuffix(".0")
    digits, _, exponent = repr(number).partition("e")
    return f"{digits}e{int(exponent):+d}"


def to_json(value: object) -> str:
    """Return `JSON.stringify(value)`; a lone surrogate is escaped, other characters stand as they are."""
    if is_number(value):
        return _number_text(value) if math.isfinite(value) else "null"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    if isinstance(value, bool):
        return _CONSTANTS[value]
    if isinstance(value, bytes):
        return to_json({"type": "Buffer", "data": list(value)})
    if is_buffer(value):
        return to_json({str(index): octet for index, octet in enumerate(bytes(value))})
    if is_array(value):
        return "[" + ",".join(map(to_json, value)) + "]"
    if isinstance(value, Mapping):
        shown = {str(name): item for name, item in value.items() if item is not UNDEFINED and not callable(item)}
        # JavaScript's order of properties: those that are an index come first, by their number.
        names = sorted(shown, key=lambda name: int(name) if _INDEX.fullmatch(name) else math.inf)
        return "{" + ",".join(f"{to_json(name)}:{to_json(shown[name])}" for name in names) + "}"
    return "null"


# Numbers ----------------------------------------------------------------------------------------------------------

# What String.trim() cuts off: all that Unicode calls a space, ends of lines, the byte order mark.
_BLANKS: Final = "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))
_RADIX: Final = {"0x": 16, "0o": 8, "0b": 2}


def to_number(value: object) -> float:
    """Return `Number(value)` of a number or a string; NaN where there is none."""
    if is_number(value):
        return float(value)
    if not isinstance(value, str):
        return math.nan
    text = value.strip(_BLANKS)
    if "_" in text or not text.isascii() or text != text.strip():
        return math.nan
    try:
        if radix := _RADIX.get(text[:2].lower()):
            return float(int(text[2:], radix)) if text[2:3] not in ("+", "-") else math.nan
        if text.lower().lstrip("+-") in ("inf", "infinity", "nan"):
            return float(text) if text.lstrip("+-") == "Infinity" else math.nan
        return float(text) if text else 0.0
    except ValueError:
        return math.nan


def to_int32(value: float) -> int:
    """Return a number as JavaScript's bitwise operators see it."""
    whole = int(value) & 0xFFFF_FFFF if math.isfinite(value) else 0
    return whole - (whole >> 31 << 32)


# Errors -----------------------------------------------------------------------------------------------------------

# Node's class of each code, where it is not a plain Error.
_TYPE_ERRORS: Final = frozenset(
    {
        "ERR_INVALID_ARG_TYPE", "ERR_INVALID_ARG_VALUE", "ERR_INVALID_CHAR", "ERR_INVALID_HTTP_TOKEN",
        "ERR_HTTP_INVALID_HEADER_VALUE", "ERR_INVALID_IP_ADDRESS", "ERR_INVALID_PROTOCOL", "ERR_INVALID_URL",
        "ERR_MISSING_ARGS", "ERR_TLS_INVALID_CONTEXT", "ERR_TLS_INVALID_PROTOCOL_METHOD",
        "ERR_TLS_INVALID_PROTOCOL_VERSION", "ERR_TLS_PROTOCOL_VERSION_CONFLICT", "ERR_UNESCAPED_CHARACTERS",
    }
)  # fmt: skip
_RANGE_ERRORS: Final = frozenset({"ERR_OUT_OF_RANGE", "ERR_SOCKET_BAD_PORT"})


def error(code: str, message: str) -> OptionError:
    """Return an error of the class that Node gives to `code`."""
    if code in _TYPE_ERRORS:
        return OptionTypeError(message, code=code)
    if code in _RANGE_ERRORS:
        return OptionRangeError(message, code=code)
    return OptionError(message, code=code)


def as_node(exc: OptionError) -> OptionError:
    """Return the same error in the class that Node gives to its code."""
    twin = error(exc.code, str(exc))
    return exc if isinstance(exc, type(twin)) else twin


def wrong_type(name: str, expected: str, value: object) -> OptionError:
    """Return Node's ERR_INVALID_ARG_TYPE; the value is not shown, it may be secret."""
    return error("ERR_INVALID_ARG_TYPE", f"options.{name} must be {expected}, not {_kind(value)}")


def out_of_range(name: str, expected: str, value: object) -> OptionError:
    """Return Node's ERR_OUT_OF_RANGE."""
    return error("ERR_OUT_OF_RANGE", f"options.{name} must be {expected}, not {to_text(value)[:40]}")


def _kind(value: object) -> str:
    if value is None or value is UNDEFINED:
        return _CONSTANTS[value]
    if is_array(value):
        return "an Array"
    return f"of type {type(value).__name__}"
