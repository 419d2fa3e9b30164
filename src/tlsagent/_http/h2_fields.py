"""
What the fields of a request look like in HTTP/2, and what those of a response must look like (RFC 9113, 8.2 and 8.3).

Requests are made and checked in the terms of HTTP/1.1 (`messages`), since who makes them does not know which protocol
the connection will speak. So this room does what RFC 9113, 8.2.2 asks of whoever passes a message from one to the
other: what speaks of the connection is left out, not refused. That is Connection and the fields that it names,
Keep-Alive, Proxy-Connection, Transfer-Encoding, Upgrade, HTTP2-Settings, and TE but for "trailers". Host becomes
`:authority`, and a cookie is split (8.2.3) so that those that stay the same are compressed.

From a peer the same fields are an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tlsagent._http.messages import tokens
from tlsagent.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tlsagent._http.messages import Field, RequestHead

_OF_THE_CONNECTION: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_SPECIAL: Final = _OF_THE_CONNECTION | {b"host", b"te", b"cookie", b"http2-settings"}
_SCHEME: Final = (b":scheme", b"https")
_NAME: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_STATUS: Final = re.compile(rb"[1-9][0-9][0-9]")
_LENGTH: Final = re.compile(rb"[0-9]{1,19}")


class MalformedError(Exception):
    """A message of the peer breaks a rule; the text says which."""


def request_fields(head: RequestHead, protocol: bytes | None = None) -> list[Field]:
    """
    Return the field list of a request.

    Args:
        head: The request. With the method CONNECT, its target is the authority to connect to, unless there is a
            `protocol`.
        protocol: What an extended CONNECT asks for (RFC 8441), as b"websocket".
    """
    authority = head.authority
    fields: list[Field] = []
    named: list[bytes] = []
    for name, value in head.headers:
        lower = name.lower()
        if lower not in _SPECIAL:
            fields.append((lower, value))
        elif lower == b"host":
            authority = value
        elif lower == b"cookie":
            fields += [(b"cookie", crumb) for crumb in map(bytes.strip, value.split(b";")) if crumb]
        elif lower == b"te":
            if b"trailers" in tokens(value):
                fields.append((b"te", b"trailers"))
        elif lower == b"connection":
            named += tokens(value)
    if named:
        # RFC 9110, 10.1.4 has Connection name TE too, which is left out by itself where it must be.
        fields = [field for field in fields if field[0] not in named or field[0] == b"te"]
    if head.method != b"CONNECT":
        return [(b":method", head.method), _SCHEME, (b":authority", authority), (b":path", head.target), *fields]
    if protocol is None:
        return [(b":method", b"CONNECT"), (b":authority", head.target), *fields]
    return [
        (b":method", b"CONNECT"),
        (b":protocol", protocol),
        _SCHEME,
        (b":authority", authority),
        (b":path", head.target),
        *fields,
    ]


def lower_case(fields: Iterable[Field]) -> list[Field]:
    """Return fields as HTTP/2 wants them named."""
    return [(name.lower(), value) for name, value in fields]


def list_size(fields: Iterable[Field]) -> int:
    """Return the size of a field list in the way of RFC 9113, 6.5.2."""
    return sum([len(name) + len(value) + 32 for name, value in fields])


def checked_status(fields: Sequence[Field]) -> int:
    """
    Check the field list of a response and return its status.

    Raises:
        MalformedError: It must not be taken for a response.
    """
    if not fields or fields[0][0] != b":status":
        raise MalformedError("a response does not begin with :status")
    status = fields[0][1]
    if not _STATUS.fullmatch(status):
        raise MalformedError(f"a response has the status {quoted(status)}, which is none")
    if status == b"101":
        raise MalformedError("a response has the status 101, which HTTP/2 does not have (RFC 9113, 8.6)")
    check_fields(fields[1:])
    return int(status)


def check_fields(fields: Iterable[Field]) -> None:
    """
    Check fields that may not be pseudo-header fields: those after `:status`, and trailers.

    Raises:
        MalformedError: One of them breaks RFC 9113, 8.2 or 8.3.
    """
    for name, value in fields:
        if not _NAME.fullmatch(name):
            if name.startswith(b":"):
                raise MalformedError(f"the pseudo-header field {quoted(name)} stands where none may")
            raise MalformedError(f"{quoted(name)} is not the name of a field in HTTP/2")
        if not _VALUE.fullmatch(value):
            raise MalformedError(f"the value of the field {quoted(name)} has what HTTP/2 forbids")
        if name in _OF_THE_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
            raise MalformedError(f"the field {quoted(name)} speaks of the connection, which HTTP/2 forbids")


def announced_length(fields: Iterable[Field]) -> int | None:
    """
    Return the length that a final response announces.

    Raises:
        MalformedError: It is not a number of bytes, or given twice.
    """
    length = None
    for name, value in fields:
        if name == b"content-length":
            if length is not None:
                raise MalformedError("content-length is given twice")
            if not _LENGTH.fullmatch(value):
                raise MalformedError(f"content-length is not a number of bytes: {quoted(value)}")
            length = int(value)
    return length
