"""
What a caller sees of a response: a thin view over the exchange that brought it.
"""

from __future__ import annotations

import json
from email.message import Message
from typing import TYPE_CHECKING, Any, cast

from tlsagent.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tlsagent._connection import Connection
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._exchange import Exchange, Timings
    from tlsagent._http.messages import Headers, ResponseHead
    from tlsagent._multiplex import Stream


class ResponseFacts:
    """What buffered and streamed responses have in common."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @property
    def _head(self) -> ResponseHead:
        head = self._exchange.response
        assert head is not None
        return head

    @property
    def _switched(self) -> Connection | Stream:
        """What is the caller's to take over, a connection or a stream of one; an error if there is nothing."""
        connection = self._exchange.switched
        if connection is None:
            raise LocalProtocolError(
                f"there is nothing to take over: the server answered {self.status} and did not switch protocols",
                code="ERR_TLSAGENT_NOT_SWITCHED",
            )
        return cast("Connection | Stream", connection)

    @property
    def status(self) -> int:
        """The status code."""
        return self._head.status

    @property
    def reason(self) -> str:
        """The reason phrase, as the server sent it; may be empty."""
        return self._head.reason

    @property
    def http_version(self) -> str:
        """ "HTTP/2", "HTTP/1.1" or "HTTP/1.0"."""
        return self._head.http_version

    @property
    def headers(self) -> Headers:
        """The header fields, in order, repeats kept."""
        return self._head.headers

    @property
    def trailers(self) -> Headers | None:
        """The trailer fields; None if there were none, or the body has not been read to its end."""
        return self._exchange.trailers

    @property
    def informational(self) -> Sequence[ResponseHead]:
        """The heads of the 1xx responses that came first."""
        return self._exchange.informational

    @property
    def connection(self) -> ConnectionInfo:
        """The connection that carried it."""
        connection = self._exchange.connection
        assert connection is not None
        return connection

    @property
    def timings(self) -> Timings:
        """How long each phase took."""
        return self._exchange.timings()

    @property
    def reused(self) -> bool:
        """Whether the connection had served a request before."""
        return self._exchange.reused

    @property
    def request_number(self) -> int:
        """Which request of its connection this was, from 1."""
        return self._exchange.request_number

    @property
    def attempts(self) -> int:
        """How often the request was sent: 2 after a retry."""
        return self._exchange.attempts

    @property
    def why_not_reused(self) -> str | None:
        """Why a new connection was needed, or None if none was."""
        return self._exchange.why_not_reused

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {f'{self.status} {self.reason}'.rstrip()}>"


class Response(ResponseFacts):
    """
    A response with its whole body.

    Attributes:
        content: The body as it came over the wire; nothing is decoded.
    """

    __slots__ = ("content",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        chunks = exchange.chunks
        self.content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        exchange.chunks = []

    @property
    def text(self) -> str:
        """The body as text, in the charset of `content-type`, UTF-8 by default; what cannot be decoded is replaced."""
        message = Message()
        message["content-type"] = self.headers.get("content-type") or ""
        charset = message.get_content_charset() or "utf-8"
        try:
            return self.content.decode(charset, "replace")
        except (LookupError, ValueError):  # the peer chose the charset; some cannot decode bytes at all
            return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body parsed as JSON; raises `ValueError` if it is none."""
        return json.loads(self.content)
