"""
What may stand in an option that takes key material: bytes, text, a path, or a sequence of these.

Decides how such a value becomes bytes and how long what was parsed from them is remembered; what the bytes mean is
decided by the rooms above. Nothing here quotes content in an error: it may be a key.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeAlias, TypeVar, cast

from tlsagent.errors import OptionError, OptionTypeError, quoted

T = TypeVar("T")
Item: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str]"


class Memo(Generic[T]):
    """
    What was parsed from which content, the least recently used forgotten first.

    Names are digests and file stamps, never content: a memo must not keep a secret alive. Two threads may parse the
    same content at once, then the later result stays. Every step is atomic, so there is no lock.
    """

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, name: Hashable, make: Callable[[], T]) -> T:
        """Return what is known under `name`, else make it."""
        value = self._values.get(name)
        if value is None:
            value = self._values[name] = make()
            if len(self._values) > self._size:
                self._values.popitem(last=False)
        else:
            with contextlib.suppress(KeyError):  # another thread may just have dropped it
                self._values.move_to_end(name)
        return value


ITEM: Final = (bytes, bytearray, memoryview, str, os.PathLike)


def items_of(option: str, value: object, *more: type) -> Sequence[object]:
    if isinstance(value, ITEM):
        return (value,)
    if not isinstance(value, Sequence):
        raise wrong_type(option, value)
    for item in value:
        if not isinstance(item, (*ITEM, *more)):
            raise wrong_type(option, item)
    return value


def wrong_type(option: str, value: object) -> OptionTypeError:
    return OptionTypeError(
        f"`{option}` must be PEM text, PEM or DER bytes, a path object, or a sequence of these, not "
        f"{type(value).__name__}"
    )


def passphrase_bytes(value: object) -> bytes:
    if value is None:
        return b""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise OptionTypeError(f"`passphrase` must be a str or bytes, not {type(value).__name__}")


def parsed(memo: Memo[T], option: str, item: object, parse: Callable[[bytes], T]) -> T:
    if isinstance(item, os.PathLike):
        path = os.fspath(item)
        return memo.get(_stamp(option, path), lambda: parsed(memo, option, _read(option, path), parse))
    # `items_of` let nothing but text and bytes through.
    data = item.encode("utf-8", "replace") if isinstance(item, str) else bytes(cast("bytes", item))
    return memo.get(hashlib.sha256(data).digest(), lambda: parse(data))


def _stamp(option: str, path: str) -> tuple[object, ...]:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as exc:
        raise _unreadable(option, path, exc) from exc
    # Inode and change time besides size and modification time: a key rotated by rename often keeps both.
    return (path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def _read(option: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        raise _unreadable(option, path, exc) from exc


def _unreadable(option: str, path: str, exc: Exception) -> OptionError:
    reason = exc.strerror if isinstance(exc, OSError) else str(exc)
    code = errno.errorcode.get(exc.errno or 0) if isinstance(exc, OSError) else None
    return OptionError(f"`{option}`: cannot read the file {quoted(os.fsencode(path))}: {reason}", code=code)
