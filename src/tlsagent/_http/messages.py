"""
HTTP messages: what the caller asks for, checked and framed, and what comes back.

This room decides which requests may go out (RFC 9110, 5 and 9; RFC 9112, 3 and 6.3), what is added to them, and how the
bytes of an HTTP/1.1 request look: the one writer of every HTTP/1.1 engine is here. Reading responses is left to the
engines; this module only holds the form in which they hand them up.

The caller's input is checked once, in `request_head` and `trailer_fields`, before any I/O. Errors never show the values
of header fields: they may be credentials.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, Protocol, overload

from tlsagent.errors import LocalProtocolError, quoted

Field = tuple[bytes, bytes]
"""Name and value of a header field as they stand on the wire."""

CallerFields = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]
"""Header fields as callers may give them; text is Latin-1."""


class Headers:
    """
    The header fields of a message, in order, repeats kept.

    Names are compared without regard to case and come out in lower case. `[]` and `get` join repeats with ", "
    (RFC 9110, 5.3), which reads wrongly for `set-cookie`: use `get_all` there. Length and iteration count every field,
    repeats too.

    Attributes:
        raw: The fields as pairs of bytes, names as the peer spelt them.
    """

    __slots__ = ("_index", "raw")

    __hash__ = None  # type: ignore[assignment]  # compared by content, and `raw` is a list

    def __init__(self, raw: list[Field]) -> None:
        self.raw = raw
        self._index: dict[str, list[str]] | None = None

    def _values(self, name: object) -> list[str] | None:
        index = self._index
        if index is None:
            index = self._index = {}
            for key, value in self.items():
                index.setdefault(key, []).append(value)
        return index.get(name.lower()) if isinstance(name, str) else None

    def __getitem__(self, name: str) -> str:
        values = self._values(name)
        if values is None:
            raise KeyError(name)
        return ", ".join(values)

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of a field, repeats joined, or `default`."""
        values = self._values(name)
        return default if values is None else ", ".join(values)

    def get_all(self, name: str) -> list[str]:
        """Return each value of a field; an empty list if there is none."""
        return list(self._values(name) or ())

    def items(self) -> list[tuple[str, str]]:
        """Return every field as text (Latin-1), names in lower case."""
        return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in self.raw]

    def keys(self) -> list[str]:
        """Return the name of every field."""
        return [name for name, _ in self.items()]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.raw)

    def __contains__(self, name: object) -> bool:
        return self._values(name) is not None

    def __eq__(self, other: object) -> bool:
        return self.items() == other.items() if isinstance(other, Headers) else NotImplemented

    def __repr__(self) -> str:
        return f"Headers({self.items()!r})"


class ResponseHead:
    """
    Status line and header fields of a response, final or informational.

    Attributes:
        status: The status code.
        reason: The reason phrase (Latin-1); may be empty, and is in HTTP/2.
        http_version: "HTTP/2", "HTTP/1.1" or "HTTP/1.0".
        headers: The fields.
    """

    __slots__ = ("headers", "http_version", "reason", "status")

    def __init__(
        self, status: int, reason: str, http_version: Literal["HTTP/2", "HTTP/1.1", "HTTP/1.0"], headers: Headers
    ) -> None:
        self.status = status
        self.reason = reason
        self.http_version = http_version
        self.headers = headers

    def __repr__(self) -> str:
        return f"<ResponseHead {f'{self.status} {self.reason}'.rstrip()}>"


class HTTPSink(Protocol):
    """Who takes what an HTTP engine reads. A sink records and returns; it never calls back down."""

    def informational_received(self, head: ResponseHead) -> None:
        """Take the head of a 1xx response."""

    def response_received(self, head: ResponseHead) -> None:
        """Take the head of the final response."""

    def body_received(self, data: bytes) -> None:
        """Take bytes of its body, never none."""

    def response_ended(self, trailers: Headers | None) -> None:
        """Take the end of the response, and its trailer fields if it had any."""

    def protocol_switched(self, head: ResponseHead) -> None:
        """Take the head of the response that ends HTTP here: a 101 that was asked for, or a 2xx to CONNECT."""


NO_PROTOCOLS: Final[frozenset[bytes]] = frozenset()
"""What a request proposes that does not want to leave HTTP."""


class RequestHead:
    """
    The head of a request, checked and complete. Never changed, so that a retry may send it again.

    Attributes:
        method, target, authority: As they stand on the wire.
        headers: Every field in order, Host and framing included.
        content_length: Bytes of the body as announced; None if nothing is announced or the body is chunked.
        chunked: Whether the body goes out in chunks (RFC 9112, 7.1).
        keep_alive: Whether the connection may be used again, as far as we are concerned.
        expects_continue: Whether the body waits for a 100 (Continue).
        upgrade: Names of the protocols, in lower case, to one of which the server may switch; empty without a proposal.
        protocol: What an extended CONNECT asks for (RFC 8441), or None.
        http2_fields: Its field list in HTTP/2, kept by who made it first.
    """

    __slots__ = (
        "authority",
        "chunked",
        "content_length",
        "expects_continue",
        "headers",
        "http2_fields",
        "keep_alive",
        "method",
        "protocol",
        "rendered",
        "target",
        "upgrade",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        *,
        authority: bytes,
        headers: list[Field],
        content_length: int | None,
        chunked: bool,
        keep_alive: bool,
        expects_continue: bool = False,
        upgrade: frozenset[bytes] = NO_PROTOCOLS,
        protocol: bytes | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.authority = authority
        self.headers = headers
        self.content_length = content_length
        self.chunked = chunked
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.upgrade = upgrade
        self.protocol = protocol
        self.http2_fields: list[Field] | None = None
        self.rendered = b"%b %b HTTP/1.1\r\n%b" % (method, target, _rendered(headers))

    def __repr__(self) -> str:
        return f"<RequestHead {self.method.decode()} {self.target.decode()}>"


_METHODS: Final = {
    name: name.encode() for name in ("CONNECT", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")
}
# RFC 9110, 8.6: a server takes the lack of a length for these as a body that was forgotten.
_BODY_EXPECTED: Final = frozenset({b"POST", b"PUT", b"PATCH"})
# Those that may come more than once, their values forming one list.
_LISTS: Final = frozenset({b"connection", b"expect", b"upgrade"})
_SPECIAL: Final = _LISTS | {b"host", b"content-length", b"transfer-encoding"}
# RFC 9110, 6.5.1: what steers framing, routing or authentication must not come late.
_NO_TRAILERS: Final = _SPECIAL | {
    b"authorization", b"cache-control", b"content-encoding", b"content-range", b"content-type", b"cookie",
    b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since",
    b"keep-alive", b"max-forwards", b"pragma", b"proxy-authorization", b"proxy-connection", b"range", b"te", b"trailer",
}  # fmt: skip
_TOKEN: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_TARGET: Final = re.compile(rb"[\x21-\x7e]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_NO_FIELDS: Final[dict[bytes, bytes]] = {}


def request_head(
    method: str,
    target: str | bytes,
    authority: bytes,
    headers: CallerFields | None,
    *,
    body_length: int | None,
    has_body: bool,
    keep_alive: bool,
    expect_continue: bool = False,
    protocol: bytes | None = None,
) -> RequestHead:
    """
    Check a request and add what it lacks: Host, Content-Length or Transfer-Encoding, "Connection: close", and
    "Expect: 100-continue" if that is wanted.

    Args:
        method: Turned into upper case, as Node does.
        target: Path and query, or host and port for CONNECT (RFC 9112, 3.2.3); visible ASCII.
        authority: Value of Host, unless the caller brings one.
        headers: The caller's fields; they go out as they are, in their order. Content-Length announces the length of a
            body whose length is not known otherwise; "Transfer-Encoding: chunked" asks for chunks.
        body_length: Bytes of the body, None if unknown.
        has_body: Whether there is a body, if only an empty one.
        keep_alive: False adds "Connection: close", unless the request asks for another protocol: a connection that is
            handed over is not for HTTP to close.
        expect_continue: Whether the body is to wait for a 100 (Continue). The caller's own "Expect: 100-continue" says
            the same.
        protocol: What an extended CONNECT asks for, as `connect_protocol` found it.

    Raises:
        LocalProtocolError: Something cannot be sent as it is. Nothing has been sent.
    """
    verb = _METHODS.get(method) or _checked_method(method)
    path = _checked_target(target)
    fields, special = _caller_fields(headers) if headers else ([], _NO_FIELDS)
    switching = verb == b"CONNECT"
    if switching:
        _require_no_content(special, has_body=has_body)
    if b"host" not in special:
        fields.insert(0, (b"Host", authority))
    length, chunked = _framing(verb, special, body_length if has_body else 0, has_body=has_body)
    if chunked:
        if b"transfer-encoding" not in special:
            fields.append((b"Transfer-Encoding", b"chunked"))
    elif length is not None and b"content-length" not in special:
        fields.append((b"Content-Length", b"%d" % length))
    closing = False
    upgrade = NO_PROTOCOLS
    if b"connection" in special:
        options = tokens(special[b"connection"])
        closing = b"close" in options
        if b"upgrade" in options and b"upgrade" in special:
            upgrade = protocol_names(special[b"upgrade"])
            switching = True
    if not (keep_alive or closing or switching):
        fields.append((b"Connection", b"close"))
    expected = b"100-continue" in tokens(special.get(b"expect", b""))
    if expect_continue and not expected:
        fields.append((b"Expect", b"100-continue"))
        expected = True
    if expected and not (chunked or length):
        # RFC 9110, 10.1.1: nothing would wait for the answer, and some servers would wait for content.
        raise LocalProtocolError("a request without content must not expect 100 (Continue): leave expect_continue out")
    return RequestHead(
        verb,
        path,
        authority=authority,
        headers=fields,
        content_length=length,
        chunked=chunked,
        keep_alive=keep_alive and not closing,
        expects_continue=expected,
        upgrade=upgrade,
        protocol=protocol,
    )


def connect_protocol(headers: CallerFields) -> tuple[bytes | None, list[tuple[Any, Any]]]:
    """
    Take the pseudo-header field `:protocol` (RFC 8441, 4), as `:protocol: websocket`, out of the caller's fields.

    Raises:
        LocalProtocolError: It names no protocol.
    """
    protocol: bytes | None = None
    fields = []
    for name, value in _pairs(headers):
        if name in (":protocol", b":protocol"):
            protocol = _field_value(":protocol", value)
            if not _TOKEN.fullmatch(protocol.decode("latin-1")):
                raise LocalProtocolError(f"{quoted(protocol)} names no protocol for :protocol")
        else:
            fields.append((name, value))
    return protocol, fields


def trailer_fields(fields: CallerFields) -> list[Field]:
    """
    Check fields that are to follow a chunked body (RFC 9110, 6.5.1).

    Raises:
        LocalProtocolError: A field is malformed, or must not stand in a trailer.
    """
    checked = []
    for raw, name, value in _checked(fields):
        if name in _NO_TRAILERS:
            raise LocalProtocolError(
                f"{quoted(raw)} must not stand in the trailers: send it as a header (RFC 9110, 6.5.1)",
                code="ERR_HTTP_TRAILER_INVALID",
            )
        checked.append((raw, value))
    return checked


def idle_hint(value: bytes) -> int | None:
    """Return N of `timeout=N` in a Keep-Alive field, in whatever case and order its parameters come, or None."""
    for parameter in tokens(value):
        name, _, seconds = parameter.partition(b"=")
        if name.strip() == b"timeout" and seconds.strip().isdigit():
            return int(seconds.strip()[:9])
    return None


def tokens(value: bytes) -> list[bytes]:
    """Return the items of a comma-separated value in lower case."""
    return [item.strip(b" \t") for item in value.lower().split(b",")]


def protocol_names(value: bytes) -> frozenset[bytes]:
    """Return the names, without versions and in lower case, of the protocols in an Upgrade field (RFC 9110, 7.8)."""
    return frozenset(name for item in tokens(value) if (name := item.partition(b"/")[0]))


def _checked_method(method: str) -> bytes:
    # Checked as it was given: some letters beyond ASCII have capitals within.
    if not (isinstance(method, str) and _TOKEN.fullmatch(method)):
        raise LocalProtocolError(f"{quoted(str(method))} is not an HTTP method", code="ERR_INVALID_HTTP_TOKEN")
    return method.upper().encode()


def _require_no_content(special: Mapping[bytes, bytes], *, has_body: bool) -> None:
    # RFC 9110, 9.3.6: whatever follows the head is for the tunnel.
    if has_body or b"content-length" in special or b"transfer-encoding" in special:
        raise LocalProtocolError("CONNECT has no content: send it through the tunnel, on what upgrade() returns")


def _checked_target(target: str | bytes) -> bytes:
    path = target.encode("utf-8", "surrogatepass") if isinstance(target, str) else target
    if not _TARGET.fullmatch(path):
        raise LocalProtocolError(
            f"the request target {quoted(path)} holds characters that must be percent-encoded",
            code="ERR_UNESCAPED_CHARACTERS",
        )
    return path


def _caller_fields(headers: CallerFields) -> tuple[list[Field], dict[bytes, bytes]]:
    """Return the caller's fields, and those that steer host, framing and persistence by their lower-case names."""
    fields: list[Field] = []
    special: dict[bytes, bytes] = {}
    for raw, name, value in _checked(headers):
        fields.append((raw, value))
        if name in _SPECIAL:
            if name not in special:
                special[name] = value
            elif name in _LISTS:
                special[name] += b"," + value
            else:
                raise LocalProtocolError(f"{quoted(raw)} is given twice")
    return fields, special


def _checked(headers: CallerFields) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield name, name in lower case, and value of each field."""
    for name, value in _pairs(headers):
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        if not isinstance(text, str):
            raise LocalProtocolError(
                f"a header name must be str or bytes, not {type(name).__name__}", code="ERR_INVALID_ARG_TYPE"
            )
        raw, lower = _field_name(text)
        yield raw, lower, _field_value(text, value)


def _pairs(headers: CallerFields) -> Iterable[tuple[Any, Any]]:
    if isinstance(headers, (Mapping, Headers)):
        return headers.items()
    fields = None if isinstance(headers, (str, bytes)) or not isinstance(headers, Iterable) else list(headers)
    if fields is None or not all(isinstance(field, (tuple, list)) and len(field) == 2 for field in fields):
        raise LocalProtocolError(
            "header fields must be a mapping of names to values, or a list of (name, value) pairs",
            code="ERR_INVALID_ARG_TYPE",
        )
    return fields


@functools.lru_cache(maxsize=512)
def _field_name(name: str) -> tuple[bytes, bytes]:
    if not _TOKEN.fullmatch(name):
        raise LocalProtocolError(f"{quoted(name)} is not a header name", code="ERR_INVALID_HTTP_TOKEN")
    raw = name.encode()
    return raw, raw.lower()


def _field_value(name: str, value: object) -> bytes:
    try:
        raw = value.encode("latin-1") if isinstance(value, str) else value
    except UnicodeEncodeError:
        raw = b"\0"
    if not isinstance(raw, bytes):
        raise LocalProtocolError(
            f"the value of header {quoted(name)} must be str or bytes, not {type(value).__name__}",
            code="ERR_INVALID_ARG_TYPE",
        )
    if not _VALUE.fullmatch(raw):
        raise LocalProtocolError(
            f"the value of header {quoted(name)} holds what HTTP forbids: line ends, other control characters or text "
            "beyond Latin-1",
            code="ERR_INVALID_CHAR",
        )
    return raw.strip(b" \t")


def _framing(
    verb: bytes, special: Mapping[bytes, bytes], known: int | None, *, has_body: bool
) -> tuple[int | None, bool]:
    """Return the announced length, and whether the body is chunked (RFC 9112, 6.3)."""
    coding = special.get(b"transfer-encoding")
    announced = special.get(b"content-length")
    if coding is not None:
        if announced is not None:
            raise LocalProtocolError("Content-Length and Transfer-Encoding exclude each other: give one of them")
        if coding.lower() != b"chunked":
            raise LocalProtocolError(f'the only Transfer-Encoding is "chunked", not {quoted(coding)}')
        return None, True
    if announced is None:
        if known is None:
            return None, True
        return (known if has_body or verb in _BODY_EXPECTED else None), False
    # 19 digits fit into 64 bits, which is what a peer may count with.
    if not announced.isdigit() or len(announced) > 19:
        raise LocalProtocolError(f"Content-Length must be a number of bytes, not {quoted(announced)}")
    length = int(announced)
    if known is not None and length != known:
        raise LocalProtocolError(
            f"Content-Length announces {length} bytes, the body has {known}", code="ERR_HTTP_CONTENT_LENGTH_MISMATCH"
        )
    return length, False


class RequestWriter:
    """
    Turns one request after the other into bytes of HTTP/1.1, and sees to it that bodies are as long as announced.

    Attributes:
        complete: Whether the last request is written to its end. A body of known length is with its last byte, before
            `end` is called: the response may be here by then, and the connection free.
    """

    __slots__ = ("_chunked", "_due", "_sent", "complete")

    def __init__(self) -> None:
        self._chunked = False
        self._due = 0
        self._sent = 0
        self.complete = True

    def start(self, head: RequestHead) -> bytes:
        """Return the bytes of a head."""
        assert self.complete, "the request before is not written to its end"
        self._chunked = head.chunked
        self._due = head.content_length or 0
        self._sent = 0
        self.complete = False
        return head.rendered

    def send_data(self, data: bytes | memoryview) -> bytes | memoryview:
        """
        Return a piece of the body as it goes out.

        Raises:
            LocalProtocolError: The body is longer than announced; nothing of the piece is to be sent.
        """
        size = len(data)
        if self._chunked:
            assert not self.complete
            # A chunk of no bytes would be the end of the body.
            return b"".join((b"%x\r\n" % size, data, b"\r\n")) if size else b""
        if self._sent + size > self._due:
            raise LocalProtocolError(
                f"the body is longer than the {self._due} bytes announced", code="ERR_HTTP_CONTENT_LENGTH_MISMATCH"
            )
        self._sent += size
        self.complete = self._sent == self._due
        return data

    def end(self, trailers: CallerFields = ()) -> bytes:
        """
        Return what ends the request.

        Raises:
            LocalProtocolError: The body is shorter than announced, or trailers cannot be sent.
        """
        assert not (self.complete and self._chunked)
        if self._sent != self._due:
            raise LocalProtocolError(
                f"the body has {self._sent} bytes of the {self._due} announced", code="ERR_HTTP_CONTENT_LENGTH_MISMATCH"
            )
        if trailers and not self._chunked:
            raise LocalProtocolError("only a chunked body can have trailers", code="ERR_HTTP_TRAILER_INVALID")
        ending = b"0\r\n" + _rendered(trailer_fields(trailers) if trailers else []) if self._chunked else b""
        self.complete = True
        return ending


def _rendered(fields: list[Field]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields]) + b"\r\n"
