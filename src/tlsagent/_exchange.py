"""
The life of one request and its response: phases, deadlines, and the verdict whether it may be sent again.

An `Exchange` is what an HTTP engine reports to (it is the engine's sink: it records and returns) and what a driver
waits on. It knows neither sockets nor the pool; points in time come in as `now`.

Theory of operation
-------------------
    created -> (waiting in the pool) -> begun on a connection -> sent -> head received -> ended
                     ^                                  |
                     +------------- retried ------------+

A body may have to wait for a 100 (Continue): `holding` says so until that comes, the server answers in another way, or
`continue_wait` is over, which is no error. An upload ends early, `upload_stopped`, when the final response comes while
the body is held back, or is an error while it is being sent (RFC 9112, 9.5): the server does not want it. Other early
responses leave the upload running until they end: a server may answer as it reads.

`deadline` is the earliest moment at which something is overdue, and moves with the phase: `timeouts.send` counts from
the last progress of the request, `response` from its end, `read` from the last bytes of the body; `total` caps them
all. A consumer that does not read stops the read clock: slowness of ours is not the peer's fault.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Any, Final

from tlsagent._body import Body
from tlsagent.errors import (
    AgentClosed,
    ConnectError,
    ConnectionLost,
    LocalProtocolError,
    Phase,
    ReadTimeout,
    RemoteProtocolError,
    RequestError,
    RequestTimeout,
    ResponseTimeout,
    SendTimeout,
    TotalTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._http.messages import Headers, RequestHead, ResponseHead
    from tlsagent._identity import Plan

# RFC 9110, 9.2.2
IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})

_MOST_LOSSES: Final = 5
"""Connections that may be lost under a request before anything of it was sent. A server that closes each is no use."""

HIGH_WATER: Final = 262_144
"""Bytes of a streamed body that wait for their consumer before a connection stops reading."""

_TIMEOUT_ERRORS: Final[dict[Phase, tuple[type[RequestTimeout], str]]] = {
    "send": (SendTimeout, "the peer accepted no byte of the request for {} s (timeouts.send)"),
    "wait": (ResponseTimeout, "no response head within {} s of the request (timeouts.response)"),
    "receive": (ReadTimeout, "no byte of the body for {} s (timeouts.read)"),
}
_TIMEOUT_FIELDS: Final[dict[Phase, str]] = {"send": "send", "wait": "response", "receive": "read"}


class Redirected(ConnectError):
    """
    Nothing was sent, and another connection will do: one that is there, in place of an attempt, or any that has room.
    Never told to a caller: the exchange starts over.
    """


class Awaiting(enum.Enum):
    """What the caller of an exchange waits for."""

    HEAD = "the response head"
    BODY = "the next bytes of the body"
    END = "the end of the response"


class Timings:
    """
    How long each phase took, in seconds; None where it did not happen.

    Attributes:
        queue, lookup, connect, tunnel, handshake, send, wait, receive: The phases.
        total: From the call to the last byte.
    """

    __slots__ = ("connect", "handshake", "lookup", "queue", "receive", "send", "total", "tunnel", "wait")

    def __init__(self, **seconds: float | None) -> None:
        for name in self.__slots__:
            setattr(self, name, seconds.get(name))

    def __repr__(self) -> str:
        shown = ", ".join(f"{n}={v:.6f}" for n in self.__slots__ if (v := getattr(self, n)) is not None)
        return f"Timings({shown})"


class Exchange:
    """
    One request and its response.

    Attributes:
        plan: Which connections may serve it.
        head: The request's head.
        body: Its body: bytes that fit one piece, a `Body`, or None.
        request_trailers: Trailers to send after the body.
        timeouts: A `Timeouts` in which nothing is `UNSET`.
        awaiting: What the caller waits for; guides `ready`.
        continue_wait: Seconds that the body waits for a 100 (Continue), if it is to wait.
        holding: Whether the body waits for it now.
        upload_stopped: Whether the rest of the body is not to be sent.
        nudged: Whether either of these has changed, and who sends the body has not looked yet; the driver's to clear.
        switched: What the caller may take over, if the response has switched protocols: the `Connection`, or with
            HTTP/2 the stream; opaque here.
        response: The response's head, once it is here.
        error: Why the exchange failed, if it did.
        attempts: How often the request was sent.
        losses: How many connections were lost under it before anything of it was sent.
        stream: Its stream on a shared connection, also after its end while somebody has yet to read; opaque here.
        high_water: Bytes of a streamed body that may wait; beyond, it is the consumer who keeps the peer waiting.
        unprocessed: Whether an attempt failed that the peer has certainly not processed (RFC 9113, 8.7).
        ticket, lease, waker: The driver's and the pool's; opaque here.
    """

    __slots__ = (
        "attempts",
        "awaiting",
        "body",
        "chunks",
        "clocked_at",
        "connection",
        "continue_wait",
        "created_at",
        "deadline",
        "dial_timings",
        "ended_at",
        "error",
        "head",
        "head_at",
        "held",
        "high_water",
        "holding",
        "informational",
        "lease",
        "losses",
        "max_size",
        "now",
        "nudged",
        "paused",
        "plan",
        "received",
        "request_number",
        "request_sent",
        "request_trailers",
        "response",
        "retry",
        "sent_at",
        "started_at",
        "stream",
        "switched",
        "ticket",
        "timeouts",
        "total_at",
        "trace",
        "trailers",
        "unprocessed",
        "upload_stopped",
        "waker",
        "why_not_reused",
    )

    def __init__(
        self,
        plan: Plan,
        head: RequestHead,
        body: bytes | Body | None,
        timeouts: Any,
        now: float,
        request_trailers: list[tuple[bytes, bytes]] | None = None,
        retry: bool = True,
        max_size: int | None = None,
        trace: Callable[[Any], object] | None = None,
        continue_wait: float | None = None,
    ) -> None:
        self.plan = plan
        self.head = head
        self.body = body
        self.request_trailers = request_trailers
        self.timeouts = timeouts
        self.retry = retry
        self.max_size = max_size
        self.trace = trace
        self.continue_wait = continue_wait
        self.created_at = self.now = now
        self.total_at: float = now + timeouts.total if timeouts.total else math.inf
        self.attempts = 0
        self.losses = 0
        self.unprocessed = False
        self.awaiting = Awaiting.END
        self.waker: Any = None
        self.why_not_reused: str | None = None
        self.dial_timings: dict[str, float] | None = None
        self._forget_attempt()

    def _forget_attempt(self) -> None:
        self.deadline: float = self.total_at
        self.ticket: Any = None
        self.lease: Any = None
        self.connection: ConnectionInfo | None = None
        self.request_number = 0
        self.request_sent = False
        self.received = False
        self.started_at: float | None = None
        self.sent_at: float | None = None
        self.head_at: float | None = None
        self.ended_at: float | None = None
        self.response: ResponseHead | None = None
        self.informational: tuple[ResponseHead, ...] = ()
        self.trailers: Headers | None = None
        self.chunks: list[bytes] = []
        self.held = 0
        self.high_water = HIGH_WATER
        self.clocked_at = 0.0
        self.paused = False
        self.holding = False
        self.upload_stopped = False
        self.nudged = False
        self.stream: Any = None
        self.switched: Any = None
        self.error: BaseException | None = None

    # --- What the driver asks -----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether what the caller waits for is here."""
        if self.ended_at is not None:
            return True
        if self.awaiting is Awaiting.END:
            return False
        return bool(self.chunks) if self.awaiting is Awaiting.BODY else self.response is not None

    @property
    def complete(self) -> bool:
        """Whether the response has ended, and in good order."""
        return self.ended_at is not None and self.error is None

    @property
    def blocked(self) -> bool:
        """Whether a piece of the body waits for the peer's windows; no further one may be sent."""
        stream = self.stream  # once: another thread may read the end of it
        return stream is not None and stream.blocked

    @property
    def wants_fresh(self) -> bool:
        """Whether only a connection will do that is made from now on: the one before may have been stale."""
        return self.attempts > 0 and not self.unprocessed

    @property
    def phase(self) -> Phase:
        """The phase it is in, in the words of `timings` and `error.phase`."""
        if self.started_at is None:
            return "queue"
        if self.sent_at is None:
            return "send"
        return "wait" if self.head_at is None else "receive"

    @property
    def reused(self) -> bool:
        """Whether its connection had served a request before."""
        return self.request_number > 1

    def take_chunks(self, now: float) -> list[bytes]:
        """Hand the body received so far to its consumer; a paused connection may read on."""
        taken, self.chunks = self.chunks, []
        self.held = 0
        if self.paused and self.ended_at is None:
            self.paused = False
            self._clock(now, self.timeouts.read)
        return taken

    # --- What the connection tells ------------------------------------------------------------------------------------

    def begin(self, connection: ConnectionInfo, request_number: int, now: float) -> None:
        """Note that the request starts on a connection, as its `request_number`-th."""
        self.attempts += 1
        self.connection = connection
        self.request_number = request_number
        self.started_at = self.now = now

    def kept_back(self, now: float) -> None:
        """Note that nothing is handed on yet, though a connection was found: it is in doubt, or full."""
        self.holding = bool(self.continue_wait)
        self._clock(now, self.timeouts.send)

    def turn_away(self, why: str, now: float, *, lost: bool) -> None:
        """
        Take back that it began, since nothing was handed on: it starts over, unless too many connections were lost.

        Args:
            why: What has become of the connection.
            now: The time.
            lost: Whether that is its end; else it was only full.
        """
        self.attempts -= 1
        self.losses += lost
        if self.losses < _MOST_LOSSES:
            self.fail(Redirected(why), now)
        else:
            text = f"{self.losses} connections were lost before the request could be sent: {why}"
            self.fail(ConnectionLost(text), now)

    def progressed(self, now: float) -> None:
        """Note that bytes of the request were handed on."""
        self.request_sent = True
        self._clock(now, self.timeouts.send)

    def hold(self, now: float) -> None:
        """Note that the head was handed on, and that the body waits for a 100 (Continue)."""
        self.request_sent = True
        self.holding = True
        self._clock(now, self.continue_wait)

    def let_go(self) -> None:
        """Let the body follow; until it does only `total` runs."""
        self.holding = False
        self.nudged = True
        self.deadline = self.total_at

    def stalled(self) -> None:
        """Note that the next piece of the body is not here yet, which is not the peer's fault: only `total` runs."""
        self.deadline = self.total_at

    def sent(self, now: float) -> None:
        """Note that the whole request was handed on."""
        self.request_sent = True
        self.sent_at = now
        self._clock(now, self.timeouts.response if self.head_at is None else self.timeouts.read)

    def fail(self, error: BaseException, now: float) -> None:
        """End it with an error, the facts of the failure filled in; the first error stays."""
        if self.ended_at is not None:
            return
        if isinstance(error, RequestError):
            error.phase = error.phase or self.phase
            error.key = error.key or self.plan.key.digest
            error.reused = self.reused
            error.request_sent = self.request_sent
            error.elapsed = now - self.created_at
        self.error = error
        self.ended_at = now

    def overdue(self, now: float) -> RequestError | None:
        """Return the timeout that has passed, if one has; the wait for a 100 (Continue) is none, it just ends."""
        if now < self.deadline:
            return None
        if now >= self.total_at:
            return self.total_timeout()
        if self.holding and self.request_sent:
            self.let_go()
            return None
        error, text = _TIMEOUT_ERRORS[self.phase]
        return error(text.format(f"{getattr(self.timeouts, _TIMEOUT_FIELDS[self.phase]):g}"))

    def total_timeout(self) -> TotalTimeout:
        """Return the error for `timeouts.total`."""
        return TotalTimeout(f"the request was not complete within {self.timeouts.total:g} s (timeouts.total)")

    def _clock(self, now: float, seconds: Any) -> None:
        at = self.total_at
        self.deadline = at if seconds is None or now + seconds > at else now + seconds

    # --- What the HTTP engine tells: it is an HTTPSink ----------------------------------------------------------------

    def informational_received(self, head: ResponseHead) -> None:
        """Keep a 1xx head; the clock for the response starts anew. A 100 lets the body go."""
        self.informational += (head,)
        if self.holding and head.status == 100:
            self.let_go()
        if self.sent_at is not None:
            self._clock(self.now, self.timeouts.response)

    def response_received(self, head: ResponseHead) -> None:
        """Keep the head of the response."""
        self.response = head
        self.head_at = self.clocked_at = self.now
        if self.sent_at is None and (self.holding or head.status >= 400):
            self.holding = False
            self.upload_stopped = self.nudged = True
            self.sent_at = self.now  # what is not sent by now never will be: only the response is waited for
        if self.sent_at is not None:
            self._clock(self.now, self.timeouts.read)

    def body_received(self, data: bytes) -> None:
        """Keep bytes of the body until they are taken; past the high-water mark the connection stops reading."""
        self.chunks.append(data)
        self.held += len(data)
        if self.awaiting is Awaiting.END:
            if self.max_size is not None and self.held > self.max_size:
                self.fail(_too_large(self.max_size), self.now)
                return
        elif self.held > self.high_water and self.sent_at is not None:
            # Not before the request is sent: a server that answers before it has read all would wait for us, we for it.
            self.paused = True
            self.deadline = self.total_at
            return
        if self.clocked_at != self.now and self.sent_at is not None:
            self.clocked_at = self.now
            self._clock(self.now, self.timeouts.read)

    def response_ended(self, trailers: Headers | None) -> None:
        """Note the end of the response."""
        self.trailers = trailers
        if self.error is None:
            self.ended_at = self.now

    def protocol_switched(self, head: ResponseHead) -> None:
        """
        Note that the response ends HTTP here: it has no body, and its connection is for the caller to take over.

        Nothing is read until that has happened. No timeout of the request runs any more, `total` neither.
        """
        self.response = head
        self.head_at = self.now
        if self.awaiting is Awaiting.END:
            self.fail(_not_to_be_buffered(head.status), self.now)
            return
        self.upload_stopped = True
        self.ended_at = self.now
        self.paused = True
        self.deadline = math.inf

    # --- Retry --------------------------------------------------------------------------------------------------------

    @property
    def repeatable(self) -> bool:
        """Whether it can be sent once more, if that is safe otherwise."""
        return self.attempts == 1 and self.retry and not (isinstance(self.body, Body) and not self.body.replayable)

    @property
    def may_retry(self) -> bool:
        """
        Whether the request may be sent again, once (RFC 9110, 9.2.2; RFC 9112, 9.3.1; RFC 9113, 8.7).

        What the peer has certainly not processed may be, whatever it is. Else a reused connection that dies before the
        first byte of a response has most likely been closed while idle: then the request is repeated, on a fresh
        connection, if it is idempotent. In any case its body must be to be had again. To begin anew after nothing was
        sent (`turn_away`) is no repetition.
        """
        if self.started_at is None or isinstance(self.error, Redirected):  # no place was found, by a repetition perhaps
            return isinstance(self.error, Redirected)
        if not (self.repeatable and self.request_sent):
            return False
        if self.unprocessed:
            return True
        lost = isinstance(self.error, ConnectionLost)
        return lost and not self.received and self.reused and self.head.method in IDEMPOTENT

    def start_over(self) -> None:
        """Forget the failed attempt; `total` keeps running."""
        # The dead connection keeps the error, and its frames would keep the caller's, with the response in them.
        error = self.error
        while error is not None:
            error.__traceback__ = None
            error = error.__cause__ or error.__context__
        self._forget_attempt()

    # --- Facts for the response ---------------------------------------------------------------------------------------

    def timings(self) -> Timings:
        """Return how long each phase took."""
        dial = self.dial_timings or {}
        started, sent, head, ended = self.started_at, self.sent_at, self.head_at, self.ended_at
        waited = None if started is None else max(0.0, started - self.created_at - sum(dial.values()))
        begun = head if sent is None or (head is not None and head < sent) else sent
        return Timings(
            queue=waited,
            send=None if begun is None or started is None else begun - started,
            wait=None if head is None or begun is None else head - begun,
            receive=None if ended is None or head is None else ended - head,
            total=None if ended is None else ended - self.created_at,
            **dial,
        )


def _too_large(limit: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"the body is longer than max_response_size ({limit} bytes); raise the limit or use stream()",
        code="ERR_TLSAGENT_RESPONSE_TOO_LARGE",
    )


def _not_to_be_buffered(status: int) -> LocalProtocolError:
    return LocalProtocolError(
        f"the server switched protocols ({status}), and request() returns no connection: use stream() or "
        "open_stream(), and upgrade() of its response",
        code="ERR_TLSAGENT_SWITCHED",
    )


def closed_error() -> AgentClosed:
    """Return the error of requests that meet a closed agent."""
    return AgentClosed("the agent is closed: make a new one for further requests")
