"""
What the server saw: the tests' evidence from the other side of the wire.

The `Ledger` is written by the server's loop and read from any thread. Readers get frozen copies, so a record in hand
never changes; totals are exact for ever, while the connections and the requests per connection that are kept are
bounded.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from tlsagent.testing._hello import ClientHello

ClosedBy = Literal["close_notify", "eof", "reset", "server"]
RawHeaders = Iterable[tuple[bytes, bytes]]

_BODY_KEPT: Final = 65_536


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """
    One request as it arrived.

    Attributes:
        target: As it was sent; in HTTP/2 :path, or :authority without one.
        headers: In order, repeats kept, spelt as they were sent; in HTTP/2 with the pseudo-header fields.
        body: The first 64 KiB; `body_length` counts all of it.
        trailers: The fields after the body.
        complete: Whether the end of the request was seen.
        stream_id: The stream of HTTP/2; None in HTTP/1.1.
        reset_code: The error code of the RST_STREAM by which the client ended it; None if it did not.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    body_length: int
    trailers: tuple[tuple[str, str], ...]
    complete: bool
    stream_id: int | None
    reset_code: int | None

    def header(self, name: str) -> str | None:
        """
        Return the value of a header, repeats joined by a comma; None if it was not sent.

        With HTTP/2, `:authority` answers for "host".
        """
        names = {name.lower()} if name.lower() != "host" else {"host", ":authority"}
        values = [value for key, value in self.headers if key.lower() in names]
        return ", ".join(values) if values else None


@dataclass(frozen=True, slots=True)
class ConnectionRecord:
    """
    One TCP connection as the server saw it. Facts of the handshake are None until it is done.

    Attributes:
        id: Counts from 1 in the order of arrival.
        client_hello: The first TLS record, raw; `ClientHello.parse` takes it apart.
        client_certificate: DER of the certificate that the client sent; None if none (or on resumption in TLS 1.2).
        authorization_error: Node's name for what is wrong with a client certificate that was taken all the same
            (`request_cert="any"`), or was asked for in vain (UNABLE_TO_GET_ISSUER_CERT); None if nothing is, if none
            was asked for, and of a missing one on resumption.
        psk_identity: Who the client said to be whose pre-shared key was taken; None if none was, and on resumption.
        handshake_error: Why the handshake failed, in OpenSSL's words.
        protocol: The HTTP that is spoken: "h2" or "http/1.1".
        goaway_code: The error code of the client's last GOAWAY; None if it sent none.
        request_count: All requests, also those no longer kept in `requests`.
        closed_by: How it ended: the peer's close_notify, an EOF without one, a reset, or the server; None while open.
        opened_at, closed_at: Seconds since the epoch.
    """

    id: int
    opened_at: float
    closed_at: float | None
    client_hello: bytes
    sni: str | None
    version: str | None
    cipher: str | None
    alpn: str | None
    session_reused: bool | None
    client_certificate: bytes | None
    authorization_error: str | None
    psk_identity: str | None
    handshake_error: str | None
    protocol: str | None
    goaway_code: int | None
    requests: tuple[RequestRecord, ...]
    request_count: int
    closed_by: ClosedBy | None


@dataclass(frozen=True, slots=True)
class ServerStats:
    """Totals since the server started."""

    connections: int
    open_connections: int
    handshakes_full: int
    handshakes_resumed: int
    handshakes_failed: int
    requests: int


class RequestEntry:
    """The running account of one request. Written by the loop alone, under the ledger's lock."""

    __slots__ = (
        "body",
        "body_length",
        "complete",
        "headers",
        "method",
        "reset_code",
        "stream_id",
        "target",
        "trailers",
    )

    def __init__(self, method: bytes, target: bytes, headers: RawHeaders, stream_id: int | None = None) -> None:
        self.method = method
        self.target = target
        self.headers = headers  # decoded when somebody looks
        self.trailers: RawHeaders = ()
        self.body = b""
        self.body_length = 0
        self.complete = False
        self.stream_id = stream_id
        self.reset_code: int | None = None

    def snapshot(self) -> RequestRecord:
        return RequestRecord(
            method=self.method.decode("latin-1"),
            target=self.target.decode("latin-1"),
            headers=_decoded(self.headers),
            body=self.body,
            body_length=self.body_length,
            trailers=_decoded(self.trailers),
            complete=self.complete,
            stream_id=self.stream_id,
            reset_code=self.reset_code,
        )


class ConnectionEntry:
    """The running account of one connection. Written through the ledger."""

    __slots__ = (
        "alpn",
        "authorization_error",
        "cipher",
        "client_certificate",
        "client_hello",
        "closed_at",
        "closed_by",
        "goaway_code",
        "handshake_error",
        "id",
        "opened_at",
        "protocol",
        "psk_identity",
        "request_count",
        "requests",
        "session_reused",
        "sni",
        "version",
    )

    def __init__(self, number: int, limit: int) -> None:
        self.id = number
        self.opened_at = time.time()
        self.closed_at: float | None = None
        self.client_hello = b""
        self.sni: str | None = None
        self.version: str | None = None
        self.cipher: str | None = None
        self.alpn: str | None = None
        self.session_reused: bool | None = None
        self.client_certificate: bytes | None = None
        self.authorization_error: str | None = None
        self.psk_identity: str | None = None
        self.handshake_error: str | None = None
        self.protocol: str | None = None
        self.goaway_code: int | None = None
        self.requests: deque[RequestEntry] = deque(maxlen=limit)
        self.request_count = 0
        self.closed_by: ClosedBy | None = None

    def snapshot(self) -> ConnectionRecord:
        facts = {name: getattr(self, name) for name in self.__slots__ if name != "requests"}
        return ConnectionRecord(requests=tuple(request.snapshot() for request in self.requests), **facts)


class Ledger:
    """
    All records of one server.

    Args:
        limit: Connections kept, and requests kept per connection; the oldest go first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()  # guards everything below and the entries
        self._numbers = itertools.count(1)
        self._entries: deque[ConnectionEntry] = deque(maxlen=limit)
        self._connections = self._open = self._requests = 0
        self._full = self._resumed = self._failed = 0
        self._listeners: tuple[Callable[[], object], ...] = ()

    # --- Written by the server's loop ---

    def opened(self) -> ConnectionEntry:
        with self._lock:
            entry = ConnectionEntry(next(self._numbers), self._limit)
            self._entries.append(entry)
            self._connections += 1
            self._open += 1
        self._tell()
        return entry

    def greeted(self, entry: ConnectionEntry, client_hello: bytes) -> None:
        hello = ClientHello.parse(client_hello)
        with self._lock:
            entry.client_hello = client_hello
            entry.sni = hello.server_name if hello else None
        self._tell()

    def secured(
        self,
        entry: ConnectionEntry,
        *,
        version: str,
        cipher: str,
        alpn: str | None,
        session_reused: bool,
        client_certificate: bytes | None,
        authorization_error: str | None,
        psk_identity: str | None,
        protocol: str,
    ) -> None:
        with self._lock:
            entry.version, entry.cipher, entry.alpn, entry.protocol = version, cipher, alpn, protocol
            entry.session_reused, entry.client_certificate = session_reused, client_certificate
            entry.authorization_error, entry.psk_identity = authorization_error, psk_identity
            self._resumed += session_reused
            self._full += not session_reused
        self._tell()

    def handshake_failed(self, entry: ConnectionEntry, reason: str) -> None:
        with self._lock:
            entry.handshake_error = reason
            self._failed += 1
        self._tell()

    def requested(self, entry: ConnectionEntry, request: RequestEntry) -> None:
        with self._lock:
            entry.requests.append(request)
            entry.request_count += 1
            self._requests += 1
        if self._listeners:
            self._tell()

    def body_received(self, request: RequestEntry, data: bytes) -> None:
        with self._lock:
            if len(request.body) < _BODY_KEPT:
                request.body += data[: _BODY_KEPT - len(request.body)]
            request.body_length += len(data)

    def request_ended(self, request: RequestEntry, trailers: RawHeaders) -> None:
        with self._lock:
            request.trailers = trailers
            request.complete = True
        if self._listeners:
            self._tell()

    def request_reset(self, request: RequestEntry, code: int) -> None:
        with self._lock:
            request.reset_code = code
        self._tell()

    def went_away(self, entry: ConnectionEntry, code: int) -> None:
        with self._lock:
            entry.goaway_code = code
        self._tell()

    def closed(self, entry: ConnectionEntry, closed_by: ClosedBy) -> None:
        with self._lock:
            entry.closed_by = closed_by
            entry.closed_at = time.time()
            self._open -= 1
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    # --- Read from any thread ---

    def stats(self) -> ServerStats:
        with self._lock:
            return ServerStats(
                connections=self._connections,
                open_connections=self._open,
                handshakes_full=self._full,
                handshakes_resumed=self._resumed,
                handshakes_failed=self._failed,
                requests=self._requests,
            )

    def snapshot(self) -> tuple[ConnectionRecord, ...]:
        with self._lock:
            return tuple(entry.snapshot() for entry in self._entries)

    def subscribe(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Call `listener` after every change, in the server's loop; returns the way to end it."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(other for other in self._listeners if other is not listener)

        return unsubscribe


def _decoded(headers: RawHeaders) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
