"""
What an HTTP/1.1 engine is, and which one an agent gets.

An engine serves one connection: it turns requests into bytes and bytes into calls of a sink, one exchange after the
other. It knows neither sockets nor time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from tlsagent.errors import OptionError, quoted

if TYPE_CHECKING:
    from tlsagent._http.messages import CallerFields, HTTPSink, RequestHead
    from tlsagent._options import Http1Options


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


HTTP1Factory = Callable[["Http1Options"], HTTP1Engine]

HTTPTOOLS_VERSIONS: Final = ((0, 6, 4), (0, 10))
"""The httptools that this release was tested with: from the first version on, below the second."""


def http1_engine(name: str) -> HTTP1Factory:
    """
    Return what makes the HTTP/1.1 engines of an agent.

    Args:
        name: "httptools", "h11", or "auto": httptools if it is installed in a version that was tested, else h11.

    Raises:
        OptionError: There is no such engine, or it is not installed, or not in a version that was tested.
    """
    if name == "auto":
        try:
            return _httptools()
        except OptionError:
            return _h11()
    engine = _ENGINES.get(name)
    if engine is None:
        raise OptionError(
            f'there is no HTTP/1.1 engine {quoted(str(name))}: take "auto", "h11" or "httptools" for http1_engine'
        )
    return engine()


def _h11() -> HTTP1Factory:
    try:
        from tlsagent._http.h1_h11 import h11_engine
    except ImportError as exc:
        raise _unusable("h11", str(exc), "'h11>=0.16'") from exc
    return h11_engine


def _httptools() -> HTTP1Factory:
    try:
        import httptools

        from tlsagent._http.h1_httptools import httptools_engine
    except ImportError as exc:
        raise _unusable("httptools", str(exc), "'tlsagent[speed]'") from exc
    oldest, beyond = HTTPTOOLS_VERSIONS
    if not oldest <= _version(httptools.__version__) < beyond:
        raise _unusable("httptools", f"version {httptools.__version__} was not tested", "'tlsagent[speed]'")
    return httptools_engine


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _unusable(name: str, why: str, install: str) -> OptionError:
    return OptionError(
        f"the HTTP/1.1 engine {name} cannot be used ({why}): run pip install {install}", code="ERR_TLSAGENT_NO_ENGINE"
    )


_ENGINES: Final[dict[str, Callable[[], HTTP1Factory]]] = {"h11": _h11, "httptools": _httptools}
