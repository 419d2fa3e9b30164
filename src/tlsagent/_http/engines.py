"""
What an HTTP/1.1 engine is, and which one an agent gets.

An engine serves one connection: it turns requests into bytes and bytes into calls of a sink, one exchange after the
other. It knows neither sockets nor time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

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


def http1_engine(name: str) -> HTTP1Factory:
    """
    Return what makes the HTTP/1.1 engines of an agent.

    Args:
        name: "h11", or "auto" for the best that is installed.

    Raises:
        OptionError: There is no such engine, or it is not installed.
    """
    if name not in ("auto", "h11"):
        raise OptionError(f'there is no HTTP/1.1 engine {quoted(str(name))}: take "auto" or "h11" for http1_engine')
    try:
        from tlsagent._http.h1 import H11Engine
    except ImportError as exc:
        raise OptionError(
            f"the HTTP/1.1 engine h11 cannot be used ({exc}): run pip install 'h11>=0.16'",
            code="ERR_TLSAGENT_NO_ENGINE",
        ) from exc
    return H11Engine
