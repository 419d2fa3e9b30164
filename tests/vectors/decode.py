"""The encoding of the vectors: values that JSON lacks, as `meta.encoding` in each file says."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from tlsagent.node import UNDEFINED, check_server_identity

_HERE = pathlib.Path(__file__).parent


def load(name: str) -> dict[str, Any]:
    """Return a file of vectors, its values still encoded."""
    return json.loads((_HERE / f"{name}.json").read_text("utf-8"))


def decode(value: Any, files: Mapping[str, Any] | None = None) -> Any:
    """Return the Python form of a value; `files` is the file's `meta.files`."""
    if isinstance(value, list):
        return [decode(item, files) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, content),) = value.items()
        if kind in _KINDS:
            return _KINDS[kind](content)
        if kind == "$file":
            return decode((files or {})[content])
    return {name: decode(item, files) for name, item in value.items()}


def _function(name: str) -> Callable[..., object]:
    if name == "checkServerIdentity":
        return check_server_identity

    def function(*_arguments: object) -> object:
        return None

    function.__name__ = name
    return function


_KINDS: dict[str, Callable[[Any], Any]] = {
    "$undefined": lambda _: UNDEFINED,
    "$number": lambda text: float(text.replace("Infinity", "inf")),
    "$hex": bytes.fromhex,
    "$uint8array": bytearray.fromhex,
    "$function": _function,
}
