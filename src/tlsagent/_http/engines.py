"""
What an HTTP engine is, and which one an agent gets.

An engine serves one connection: it turns requests into bytes and bytes into calls of sinks, with HTTP/1.1 one exchange
after the other, with HTTP/2 many at a time. It knows neither sockets nor clocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from tlsagent.errors import OptionError, quoted

if TYPE_CHECKING:
    from tlsagent._http.messages import CallerFields, HTTPSink, RequestHead
    from tlsagent._limits import Http1Options, Http2Options
    from tlsagent.errors import RequestError


class HTTP1Engine(Protocol):
    """
    HTTP/1.1 of one connection, the client's side.

    The order is `start`, any number of `send_data`, `end_request`, with `receive_data` whenever bytes come, an early
    response included; then, if `reusable()`, `next_cycle` and the next `start`. Requests are never pipelined.
    """

    @property
    def name(self) -> str:
        """The name under which the engine is chosen."""
        ...

    @property
    def response_complete(self) -> bool:
        """Whether the response has come to its end."""
        ...

    @property
    def request_complete(self) -> bool:
        """Whether the request has been written to its end."""
        ...

    @property
    def has_leftover(self) -> bool:
        """Whether the peer sent bytes beyond the response."""
        ...

    @property
    def switched(self) -> bytes | None:
        """
        None while HTTP is spoken. After `HTTPSink.protocol_switched`, the bytes that followed the head of that response
        so far: they belong to the protocol that was switched to, and the engine has done its work.

        A 101 switches if the request proposed (`RequestHead.upgrade`) what its Upgrade field names, and is written to
        its end; any other 101 is a `RemoteProtocolError`. A 2xx switches if the method was CONNECT, whatever its
        framing fields say (RFC 9110, 9.3.6).
        """
        ...

    @property
    def idle_hint(self) -> int | None:
        """Seconds that the last response allows the connection to be idle (`Keep-Alive: timeout`), or None."""
        ...

    def start(self, head: RequestHead) -> bytes:
        """Return the bytes of a request's head."""
        ...

    def send_data(self, data: bytes | memoryview) -> bytes | memoryview:
        """
        Return a piece of the body, framed.

        Raises:
            LocalProtocolError: The body is longer than announced.
        """
        ...

    def end_request(self, trailers: CallerFields = ()) -> bytes:
        """
        Return what ends the request.

        Raises:
            LocalProtocolError: The body is shorter than announced, or trailers cannot be sent.
        """
        ...

    def receive_data(self, data: bytes | memoryview, sink: HTTPSink) -> None:
        """
        Take bytes from the peer and tell the sink; `data` is not kept.

        Bytes beyond the end of the response are dropped and noted in `has_leftover`.

        Raises:
            RemoteProtocolError: The peer broke the protocol, or no response is due.
        """
        ...

    def receive_eof(self, clean: bool, sink: HTTPSink) -> None:
        """
        Take the end of the peer's bytes; does nothing if no response is due.

        Args:
            clean: Whether TLS was closed in good order (close_notify). Only then does it end a body that is framed by
                the end of the connection.
            sink: Who is told.

        Raises:
            ConnectionLost: The response is not complete.
        """
        ...

    def reusable(self) -> bool:
        """Return whether a next request may follow: both directions complete, keep-alive agreed, nothing left over."""
        ...

    def next_cycle(self) -> None:
        """Make ready for the next `start`; only after `reusable()`."""
        ...


class HTTP2Sink(Protocol):
    """
    Who takes what an HTTP/2 engine has to say of its connection, and of streams as a whole.

    A sink records and returns; it never calls back down. What it is told of one stream comes in order with what the
    stream's own `HTTPSink` is told.
    """

    def stream_ended(self, stream_id: int) -> None:
        """Take the good end of a stream: its response is complete, and its request is, or is no longer wanted."""

    def stream_failed(self, stream_id: int, error: RequestError, processed: bool) -> None:
        """
        Take the end of a stream without a complete response.

        Args:
            stream_id: The stream.
            error: `StreamReset`, `ConnectionLost` or `RemoteProtocolError`; an object of its own for each stream.
            processed: False if the peer has certainly not processed the request (RFC 9113, 8.7), so that it may be sent
                again whatever its method.
        """

    def capacity_changed(self) -> None:
        """Take note that `capacity` or `draining` has changed for another reason than the end of a stream."""

    def window_opened(self, stream_id: int) -> None:
        """Take note that there is room on a stream whose `window` was found to be 0; told once."""

    def goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """Take the peer's GOAWAY, before the streams above the last one are failed; `debug` is not fit to be shown."""

    def pong(self, now: float) -> None:
        """Take the answer to the last `ping`."""


class HTTP2Engine(Protocol):
    """
    HTTP/2 of one connection, the client's side; the module `h2` tells how to drive it.

    Streams go by their numbers. A stream is over when both of its halves are complete, or when either side has reset
    it; the number of a stream that is over may be used in every call, and then does nothing but what is said.
    """

    @property
    def name(self) -> str:
        """The name under which the engine is chosen."""
        ...

    @property
    def streams(self) -> int:
        """How many streams are open."""
        ...

    @property
    def capacity(self) -> int:
        """
        How many streams may be opened now; 0 while draining.

        That is the peer's limit (100 until it has told one) or `max_streams`, less the streams that are open, less
        those that were reset and may still keep the peer busy, until a PING after the reset is answered.
        """
        ...

    @property
    def draining(self) -> bool:
        """Whether no stream will be opened any more: GOAWAY came or was sent, or the connection is broken or worn."""
        ...

    @property
    def limit(self) -> int:
        """How many streams there may be at a time, open ones included, if it were not draining."""
        ...

    @property
    def dead(self) -> bool:
        """Whether nothing is read any more."""
        ...

    @property
    def asking(self) -> bool:
        """Whether places of streams that were reset wait for the answer to a PING."""
        ...

    @property
    def greeted(self) -> bool:
        """Whether the peer's SETTINGS have come: what it takes is known from then on."""
        ...

    @property
    def connect_protocol(self) -> bool:
        """Whether the peer takes extended CONNECT (RFC 8441)."""
        ...

    def start(self) -> None:
        """Begin the connection; once, before all else."""
        ...

    def data_to_send(self) -> bytes:
        """
        Return the bytes that are to be sent, and forget them.

        Take them only when they can be written: the answers that a peer demands and does not read are counted by how
        many are waiting here (`max_pending_replies`).
        """
        ...

    def open(self, head: RequestHead, sink: HTTPSink, end: bool, *, protocol: bytes | None = None) -> int:
        """
        Send the head of a request; returns the number of its stream.

        Args:
            head: The request. One with the method CONNECT and an authority for its target opens a tunnel: its body, and
                that of a 2xx response, is the tunnel's.
            sink: Who is told what comes on the stream.
            end: Whether the request has neither body nor trailers.
            protocol: What an extended CONNECT asks for, as b"websocket" (RFC 8441); with the method CONNECT.

        Raises:
            ConnectionLost: The connection is draining; nothing was sent.
            LocalProtocolError: There is no capacity, a body was announced and is not to come, or the peer does not take
                extended CONNECT; nothing was sent.
        """
        ...

    def window(self, stream_id: int) -> int:
        """Return how many bytes of its body a stream may send now. If none, `window_opened` tells when it may."""
        ...

    def send_data(self, stream_id: int, data: bytes | memoryview, end: bool = False) -> bool:
        """
        Send a piece of the body, of at most `window` bytes; returns whether the stream is over.

        Raises:
            LocalProtocolError: The body is longer than announced, or ends too soon; nothing of the piece was sent.
        """
        ...

    def end_request(self, stream_id: int, trailers: CallerFields = ()) -> bool:
        """
        End a request; returns whether the stream is over.

        Raises:
            LocalProtocolError: The body is shorter than announced, or the trailers cannot be sent.
        """
        ...

    def reset(self, stream_id: int, code: int = ...) -> None:
        """
        Give up a stream: RST_STREAM, by default with CANCEL. The sinks are not told.

        Of a stream that is over, the rest that nobody is going to read is given up.
        """
        ...

    def consumed(self, stream_id: int, size: int) -> None:
        """Take note that a consumer has read bytes of a body, of a stream that is over too: the peer may send more."""
        ...

    def ping(self) -> None:
        """Send a PING, unless the answer to one is due; the answer is told by `pong`."""
        ...

    def close(self, code: int = ...) -> None:
        """Send GOAWAY, by default with NO_ERROR, unless it was sent; open streams go on."""
        ...

    def receive_data(self, data: bytes | memoryview, now: float, sink: HTTP2Sink) -> None:
        """
        Take bytes from the peer and tell the sinks; `data` is not kept. After the end of the connection, it is dropped.

        Raises:
            RemoteProtocolError: The peer broke the protocol; every open stream was told, with an error of its own, and
                the GOAWAY is in `data_to_send`.
        """
        ...

    def receive_eof(self, clean: bool, now: float, sink: HTTP2Sink) -> None:
        """
        Take the end of the peer's bytes: every stream that has no complete response fails with `ConnectionLost`.

        Args:
            clean: Whether TLS was closed in good order (close_notify); it is only for the message, since HTTP/2 says
                itself where a body ends.
            now: Seconds on a monotonic clock.
            sink: Who is told.
        """
        ...


HTTP1Factory = Callable[["Http1Options"], HTTP1Engine]
HTTP2Factory = Callable[["Http2Options"], HTTP2Engine]
_F = TypeVar("_F")

HTTPTOOLS_VERSIONS: Final = ((0, 6, 4), (0, 10))
"""The httptools that this release was tested with: from the first version on, below the second."""

NGH2_VERSIONS: Final = ((0, 3), (0, 4))
"""The ngh2 that this release was tested with, likewise."""


def http1_engine(name: str) -> HTTP1Factory:
    """
    Return what makes the HTTP/1.1 engines of an agent.

    Args:
        name: "httptools", "h11", or "auto": httptools if it is installed in a version that was tested, else h11.

    Raises:
        OptionError: There is no such engine, or it is not installed, or not in a version that was tested.
    """
    return _chosen("HTTP/1.1", "http1_engine", name, {"h11": _h11, "httptools": _httptools}, fast="httptools")


def http2_engine(name: str) -> HTTP2Factory:
    """
    Return what makes the HTTP/2 engines of an agent.

    Args:
        name: "ngh2", "h2", or "auto": ngh2 if it is installed in a version that was tested, else h2.

    Raises:
        OptionError: There is no such engine, or it is not installed, or not in a version that was tested.
    """
    return _chosen("HTTP/2", "http2_engine", name, {"h2": _h2, "ngh2": _ngh2}, fast="ngh2")


def _chosen(protocol: str, option: str, name: str, engines: dict[str, Callable[[], _F]], *, fast: str) -> _F:
    """Return what makes the engine of a name; "auto" is the fast one of two where that can be used."""
    always, _ = engines
    if name == "auto":
        try:
            return engines[fast]()
        except OptionError:
            return engines[always]()
    if name not in engines:
        raise OptionError(
            f'there is no {protocol} engine {quoted(str(name))}: take "auto", "{always}" or "{fast}" for {option}'
        )
    return engines[name]()


def _h11() -> HTTP1Factory:
    try:
        from tlsagent._http.h1_h11 import h11_engine
    except ImportError as exc:
        raise _unusable("HTTP/1.1", "h11", str(exc), "'h11>=0.16'") from exc
    return h11_engine


def _httptools() -> HTTP1Factory:
    try:
        import httptools

        from tlsagent._http.h1_httptools import httptools_engine
    except ImportError as exc:
        raise _unusable("HTTP/1.1", "httptools", str(exc), "'tlsagent[speed]'") from exc
    _check_version("HTTP/1.1", "httptools", httptools.__version__, HTTPTOOLS_VERSIONS)
    return httptools_engine


def _h2() -> HTTP2Factory:
    try:
        from tlsagent._http.h2_h2 import h2_engine
    except ImportError as exc:
        raise _unusable("HTTP/2", "h2", str(exc), "'h2>=4.4'") from exc
    return h2_engine


def _ngh2() -> HTTP2Factory:
    try:
        import ngh2

        from tlsagent._http.h2_ngh2 import ngh2_engine
    except ImportError as exc:
        raise _unusable("HTTP/2", "ngh2", str(exc), "'tlsagent[speed]'") from exc
    _check_version("HTTP/2", "ngh2", ngh2.__version__, NGH2_VERSIONS)
    return ngh2_engine


def _check_version(protocol: str, name: str, version: str, tested: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    oldest, beyond = tested
    if not oldest <= tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < beyond:
        raise _unusable(protocol, name, f"version {version} was not tested", "'tlsagent[speed]'")


def _unusable(protocol: str, name: str, why: str, install: str) -> OptionError:
    return OptionError(
        f"the {protocol} engine {name} cannot be used ({why}): run pip install {install}", code="ERR_TLSAGENT_NO_ENGINE"
    )
