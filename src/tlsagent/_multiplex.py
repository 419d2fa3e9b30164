"""
The exchanges that share a connection: the floor between an HTTP/2 engine and a `Connection`.

It gives each exchange a stream, keeps what its peer's windows do not let out yet, returns credit as bodies are read,
and runs the clocks that belong to streams: a stream's fault or timeout is not the connection's.

Theory of operation
-------------------
A `Stream` stands between the engine and its exchange: it passes on what comes and notes that something did. After each
feed the noted streams are gone through once (`_look`): credit is given, what failed is reset, what may go on goes on;
then the driver takes the list, to wake who waits (`take_touched`). An exchange that has ended, in whatever way, is in
`ended` for the connection to report, and its stream forgotten.

A stream is opened at once, unless it is held back. While the peer's SETTINGS are not here, one stream has to do: they
say how many it takes. And a connection that was silent for longer than `ping_interval` while nobody used it is in doubt
until a sign of life comes. Nothing of what was held back was sent: where there turns out to be no room for it, it is
turned away, to look for another place as if nothing had been; likewise if the connection turns out to be dead, but not
for ever (`Exchange.turn_away`).

Deadlines of exchanges move, mostly later. One number, `_due`, is no later than the earliest of them; when it is reached
all are looked at and it is found anew, which happens about once in the length of a timeout.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from tlsagent._body import Body
from tlsagent._exchange import HIGH_WATER, Awaiting
from tlsagent._raw import RawStream
from tlsagent.errors import (
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
    RequestError,
    TLSAgentError,
    own_copy,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlsagent._connection import Connection
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._exchange import Exchange
    from tlsagent._http.engines import HTTP2Engine
    from tlsagent._http.messages import Headers, ResponseHead
    from tlsagent._limits import Http2Options

NO_ERROR: Final = 0x00
CANCEL: Final = 0x08


class Stream:
    """
    One exchange on a shared connection, and the `HTTPSink` of its stream.

    After a 2xx response to CONNECT it is what the caller takes over: bytes both ways, as of a connection of its own.

    Attributes:
        connection: Who carries it.
        exchange: None once it has ended and its driver knows.
        id: Number of the stream, 0 while it is held back.
        over: Whether the exchange has ended here.
        outgoing: What of the body waits for the peer's windows.
        owed: Bytes of the response that came and were not read, for which the peer has no credit back.
        tunnel: What came after the switch of protocols, if there was one.
        dead, error: Why what was taken over has ended, as of a connection.
        listener: Called by `tell` when something came or changed, once it was taken over; the driver's.
    """

    __slots__ = (
        "_floor",
        "_noted",
        "connection",
        "dead",
        "error",
        "exchange",
        "finishing",
        "id",
        "listener",
        "outgoing",
        "over",
        "owed",
        "tunnel",
    )

    def __init__(self, floor: Multiplex, connection: Connection, exchange: Exchange) -> None:
        self._floor = floor
        self._noted = False
        self.connection = connection
        self.exchange: Exchange | None = exchange
        self.id = 0
        self.over = False
        self.outgoing: bytes | memoryview = b""
        self.finishing = False  # the request ends with what is outgoing
        self.owed = 0
        self.tunnel: RawStream | None = None
        self.dead: str | None = None
        self.listener: Callable[[], object] = _nothing
        self.error: TLSAgentError | None = None

    # --- What the engine tells ----------------------------------------------------------------------------------------

    def note(self) -> None:
        """Have the stream looked at."""
        if not self._noted:
            self._noted = True
            self._floor.touched.append(self)

    def _told(self) -> Exchange:
        exchange = self.exchange
        assert exchange is not None
        exchange.now = self._floor.now
        exchange.received = True
        if not self._noted:
            self._noted = True
            self._floor.touched.append(self)
        return exchange

    def informational_received(self, head: ResponseHead) -> None:
        """Pass on the head of a 1xx response."""
        self._told().informational_received(head)

    def response_received(self, head: ResponseHead) -> None:
        """Pass on the head of the final response; a 2xx to CONNECT opens a tunnel (RFC 9113, 8.5)."""
        exchange, now = self._told(), self._floor.now
        if exchange.head.method == b"CONNECT" and 200 <= head.status < 300:
            self.tunnel = RawStream()
            exchange.switched = self
            exchange.protocol_switched(head)
        elif head.status == 421 and exchange.plan.key != self.connection.plan.key and exchange.repeatable:
            # RFC 9110, 15.5.20: the connection is another origin's, and the server wants to see one of its own.
            exchange.unprocessed = True
            exchange.fail(RemoteProtocolError("the server answered 421 to a request on another's connection"), now)
        else:
            exchange.response_received(head)

    def body_received(self, data: bytes) -> None:
        """Pass on bytes of the body."""
        self.owed += len(data)
        exchange = self._told()
        if self.tunnel is not None:
            self.tunnel.plaintext_received(data, self._floor.now)
        elif exchange.error is None:
            exchange.body_received(data)

    def response_ended(self, trailers: Headers | None) -> None:
        """Pass on the end of the response."""
        exchange = self._told()
        if self.tunnel is not None:
            self.tunnel.plaintext_ended(True, self._floor.now)
        else:
            exchange.response_ended(trailers)

    def protocol_switched(self, head: ResponseHead) -> None:  # noqa: ARG002 - it never comes
        """HTTP/2 has no 101, and does not tell a CONNECT from another request."""
        raise AssertionError("an HTTP/2 engine switches no protocols")

    # --- What was taken over ------------------------------------------------------------------------------------------

    @property
    def info(self) -> ConnectionInfo | None:
        """What is known of the connection."""
        return self.connection.info

    @property
    def blocked(self) -> bool:
        """Whether what was written last waits for the peer's windows."""
        return bool(self.outgoing)

    def take_over(self) -> RawStream:
        """Return what comes through the tunnel."""
        assert self.tunnel is not None
        return self.tunnel

    def write(self, data: bytes | memoryview, now: float) -> None:
        """Send bytes, or keep what the windows do not let out; not before what was written last is out."""
        self.connection.active(now)
        self._floor.write(self, data, now)

    def keep(self) -> None:
        """Copy what the windows did not let out: whose it is may change it from now on."""
        self.outgoing = memoryview(bytes(self.outgoing))

    def read(self, deadline: float = math.inf) -> None:
        """Take note that what came was read: the peer may send more. Its exchange has a deadline anew."""
        self._floor.read(self, deadline)

    def tell(self) -> None:
        """Have its listener look, for the last time once it is over: who listens has hold of the stream."""
        listener = self.listener
        if self.over:
            self.listener = _nothing
        listener()

    def hang_up(self, reason: str) -> None:
        """End what was taken over, in good order where the peer has ended too."""
        self.dead = self.dead or reason
        self._floor.hang_up(self)


def _nothing() -> None:
    """Nobody listens yet."""


class Multiplex:
    """
    The streams of one connection. It is the `HTTP2Sink` of its engine.

    Args:
        engine: A fresh one.
        limits: Windows and the times of PING.
        now: The time.

    Attributes:
        engine: Who speaks HTTP/2; what it has to send is to be taken only when it can be written.
        now: The time of the last feed.
        touched: Streams on which something came or changed since `take_touched`.
        ended: News: exchanges that have ended here.
        farewell: News: last stream and code of a GOAWAY that came, until somebody takes it.
    """

    __slots__ = (
        "_disowned",
        "_due",
        "_heard_at",
        "_held",
        "_high_water",
        "_ping_interval",
        "_ping_timeout",
        "_pinged_at",
        "_streams",
        "ended",
        "engine",
        "farewell",
        "now",
        "touched",
    )

    def __init__(self, engine: HTTP2Engine, limits: Http2Options, now: float) -> None:
        self.engine = engine
        self._ping_interval = math.inf if limits.ping_interval is None else limits.ping_interval
        self._ping_timeout = math.inf if limits.ping_timeout is None else limits.ping_timeout
        # Credit is given back half a window at a time: what is read less than that does not let the peer go on.
        self._high_water = min(HIGH_WATER, limits.stream_window // 2)
        self._streams: dict[int, Stream] = {}
        self._held: list[Stream] = []
        self._heard_at = self.now = now
        self._pinged_at: float | None = None  # when a PING was sent whose answer is due
        self._due = math.inf
        self._disowned = False
        self.touched: list[Stream] = []
        self.ended: list[Exchange] = []
        self.farewell: tuple[int, int] | None = None
        engine.start()

    @property
    def busy(self) -> bool:
        """Whether it carries any exchange."""
        return bool(self._streams or self._held)

    @property
    def waiting(self) -> bool:
        """Whether it waits for the peer: for responses, or to have places back."""
        return self.busy or self.engine.asking

    @property
    def carried(self) -> int:
        """How many exchanges it carries."""
        return len(self._streams) + len(self._held)

    @property
    def capacity(self) -> int:
        """How many exchanges it may carry at a time."""
        engine, carried = self.engine, len(self._streams)
        return carried if engine.draining or engine.limit < carried else engine.limit

    def take_touched(self) -> list[Exchange]:
        """Return the exchanges on which something came or changed."""
        if not self.touched:
            return []
        touched, self.touched = self.touched, []
        exchanges = []
        for stream in touched:
            stream._noted = False
            exchange = stream.exchange
            assert exchange is not None
            exchanges.append(exchange)
            if stream.over:
                stream.exchange = None
                if not stream.owed and stream.tunnel is None:
                    exchange.stream = None
        return exchanges

    # --- Requests -----------------------------------------------------------------------------------------------------

    def start(self, exchange: Exchange, connection: Connection, now: float) -> None:
        """Begin an exchange: on a stream now, or as soon as the connection is out of doubt."""
        stream = exchange.stream = Stream(self, connection, exchange)
        exchange.high_water = self._high_water
        self.now = now
        if not self._streams and now >= self._heard_at + self._ping_interval:
            if not self._held:  # one PING for all: those that come later must not put off the verdict
                self.engine.ping()
                self._pinged_at = now
        elif not self._held and self._ready_for(stream):
            self._open(stream, now)
            return
        exchange.kept_back(now)
        self._held.append(stream)
        self._due = min(self._due, exchange.deadline)

    def _ready_for(self, stream: Stream) -> bool:
        engine = self.engine
        if engine.draining:
            return True
        exchange = stream.exchange
        assert exchange is not None
        if not engine.greeted:
            # How many streams the peer takes is in its SETTINGS: until then one has to do (RFC 9113, 5.1.2).
            return not self._streams and exchange.head.protocol is None
        return engine.limit > len(self._streams)

    def _open(self, stream: Stream, now: float) -> None:
        exchange = stream.exchange
        assert exchange is not None
        body = exchange.body
        end = not body and not exchange.request_trailers if isinstance(body, bytes) or body is None else False
        head = exchange.head
        try:
            stream.id = self.engine.open(head, stream, end and head.method != b"CONNECT", protocol=head.protocol)
        except RequestError as error:
            if not (isinstance(error, ConnectionLost) and self._turn_away(stream, exchange, str(error), now)):
                exchange.fail(error, now)
                self._end(stream)
            return
        self._streams[stream.id] = stream
        if end:
            exchange.sent(now)
        elif isinstance(body, bytes) or body is None:
            stream.outgoing = memoryview(body or b"")
            stream.finishing = True
            exchange.progressed(now)
            self._push(stream, exchange, now)
        elif exchange.continue_wait:
            exchange.hold(now)
        else:
            exchange.progressed(now)
            if stream.outgoing or stream.finishing:  # handed in while it was held back
                self._push(stream, exchange, now)
                exchange.nudged = True
                stream.note()
        if exchange.deadline < self._due:
            self._due = exchange.deadline

    def _turn_away(self, stream: Stream, exchange: Exchange, why: str, now: float, *, lost: bool = True) -> bool:
        """Have an exchange of which nothing was sent begin anew, elsewhere, unless a body was begun that is gone."""
        body = exchange.body
        if isinstance(body, Body) and not body.replayable and (stream.outgoing or stream.finishing):
            return False
        stream.connection.requests -= 1
        exchange.turn_away(why, now, lost=lost)
        self._end(stream)
        return True

    def send_body(self, exchange: Exchange, piece: bytes | memoryview, now: float) -> bool:
        """Send a piece, or keep what the windows do not let out; returns False once no more is needed."""
        stream = exchange.stream
        if stream is None or stream.over or exchange.upload_stopped:
            return False
        self._take_out(stream, exchange, piece, now)
        return not stream.over

    def end_body(self, exchange: Exchange, now: float) -> None:
        """Send the end of the body and the trailers, unless no more is needed."""
        stream = exchange.stream
        if stream is None or stream.over or exchange.upload_stopped:
            return
        stream.finishing = True
        self._take_out(stream, exchange, b"", now)

    def write(self, stream: Stream, data: bytes | memoryview, now: float) -> None:
        """Send bytes through a tunnel."""
        exchange = stream.exchange
        if exchange is not None and not stream.over:
            self._take_out(stream, exchange, data, now)

    def _take_out(self, stream: Stream, exchange: Exchange, data: bytes | memoryview, now: float) -> None:
        assert not stream.outgoing, "the piece before this one is not out"
        stream.outgoing = memoryview(data)
        if not stream.id:
            return
        self._push(stream, exchange, now)

    def _push(self, stream: Stream, exchange: Exchange, now: float) -> None:
        """Send what the windows let out of what is outgoing."""
        engine, data = self.engine, stream.outgoing
        try:
            while data and (room := engine.window(stream.id)):
                piece, rest = data[:room], data[room:]
                ends = stream.finishing and not rest and not exchange.request_trailers
                engine.send_data(stream.id, piece, ends)
                data = rest
                if ends:
                    stream.finishing = False
                    exchange.sent(now)
                else:
                    exchange.progressed(now)
            if stream.finishing and not data:
                stream.finishing = False
                engine.end_request(stream.id, exchange.request_trailers or ())
                exchange.sent(now)
        except LocalProtocolError as error:
            exchange.fail(error, now)
            self._give_up(stream, CANCEL)
            return
        stream.outgoing = data or b""  # an empty view would hold on to the caller's buffer
        if exchange.deadline < self._due:
            self._due = exchange.deadline

    def read(self, stream: Stream, deadline: float) -> None:
        """Give credit for what was read of a body; `deadline` is what its exchange has now."""
        owed, stream.owed = stream.owed, 0
        if owed and not self._disowned:
            self.engine.consumed(stream.id, owed)
        self._due = min(self._due, deadline)

    def drop(self, exchange: Exchange, now: float) -> None:
        """Give up an exchange, or what was not read of one that has ended."""
        stream = exchange.stream
        if stream is None:
            return
        if not stream.over:
            exchange.fail(LocalProtocolError("the response was closed before its end", code="ERR_TLSAGENT_CLOSED"), now)
            self._give_up(stream, CANCEL)
        elif stream.owed and not self._disowned:
            stream.owed = 0
            self.engine.reset(stream.id)
        exchange.stream = None

    def hang_up(self, stream: Stream) -> None:
        """End a tunnel."""
        if stream.over:
            return
        assert stream.tunnel is not None
        if stream.id in self._streams and not stream.outgoing and self.engine.end_request(stream.id):
            self._end(stream)
        else:
            self._give_up(stream, CANCEL)

    def _give_up(self, stream: Stream, code: int) -> None:
        if stream.id:
            self.engine.reset(stream.id, code)
            stream.owed = 0
        self._end(stream)

    def _end(self, stream: Stream) -> None:
        """Forget a stream whose exchange has ended."""
        exchange = stream.exchange
        assert exchange is not None
        stream.over = True
        stream.outgoing = b""
        if stream.tunnel is not None:
            stream.dead = stream.dead or "peer"
        if self._streams.pop(stream.id, None) is None and stream in self._held:
            self._held.remove(stream)
        self.ended.append(exchange)
        if not stream._noted:
            stream.note()

    # --- What comes in ------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> None:
        """
        Take plaintext.

        Raises:
            RemoteProtocolError: The peer broke the protocol; every exchange has been told.
        """
        self.now = self._heard_at = now
        try:
            self.engine.receive_data(data, now, self)
        finally:
            self._look(now)

    def receive_eof(self, clean: bool, now: float) -> None:
        """Take the end of the plaintext: what is not complete fails."""
        self.now = now
        self.engine.receive_eof(clean, now, self)
        self._look(now)

    def _look(self, now: float) -> None:
        """Do what follows from what has come."""
        for stream in self.touched:
            exchange = stream.exchange
            assert exchange is not None
            # Also while the request is not sent: a peer that answers before it has read all waits for us, we for it.
            if stream.owed and (exchange.awaiting is Awaiting.END or exchange.sent_at is None):
                self.engine.consumed(stream.id, stream.owed)
                stream.owed = 0
            if stream.over:
                continue
            if exchange.error is not None:
                self._give_up(stream, CANCEL)
            elif exchange.complete and stream.tunnel is None:
                # The response is whole, and the request is not: the server has no use for the rest (RFC 9113, 8.1).
                self._give_up(stream, NO_ERROR)
            else:
                if stream.outgoing and (stream.tunnel is not None or not exchange.upload_stopped):
                    self._push(stream, exchange, now)
                    exchange.nudged = not stream.outgoing  # whoever sends the body may go on
                if exchange.deadline < self._due:
                    self._due = exchange.deadline
        if self._held:
            self._open_held(now)

    def _open_held(self, now: float) -> None:
        """Open what was held back as far as there is room; turn away the rest, once it is known that there is none."""
        while self._held and self._ready_for(self._held[0]):
            self._open(self._held.pop(0), now)
        if self.engine.greeted:
            for stream in self._held[:]:
                assert stream.exchange is not None
                self._turn_away(stream, stream.exchange, "the connection has no room for it", now, lost=False)

    def stream_ended(self, stream_id: int) -> None:
        """Take the good end of a stream."""
        self._end(self._streams[stream_id])

    def stream_failed(self, stream_id: int, error: RequestError, processed: bool) -> None:
        """Take the end of a stream that brought no complete response."""
        stream = self._streams[stream_id]
        exchange = stream.exchange
        assert exchange is not None
        exchange.unprocessed = not processed
        stream.error = stream.error or error
        exchange.fail(error, self.now)
        self._end(stream)

    def capacity_changed(self) -> None:
        """Nothing to note: who asks is told (`capacity`)."""

    def window_opened(self, stream_id: int) -> None:
        """Have what waits for the windows sent."""
        self._streams[stream_id].note()

    def goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:  # noqa: ARG002 - it is not fit to be shown
        """Keep a GOAWAY for who listens; what it says is none of their business."""
        self.farewell = (last_stream_id, code)

    def take_farewell(self) -> tuple[int, int] | None:
        """Return last stream and code of a GOAWAY that came, if nobody has taken them."""
        farewell, self.farewell = self.farewell, None
        return farewell

    def pong(self, now: float) -> None:  # noqa: ARG002 - an HTTP2Sink is told the time
        """Take the answer to a PING."""
        self._pinged_at = None

    def slept(self, seconds: float) -> None:
        """Count time that the machine slept as time of silence."""
        self._heard_at -= seconds

    # --- Time and the end ---------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """Return when `handle_timeout` is due."""
        if not (self._streams or self._held):
            return self._ping_due() if self.engine.asking else math.inf
        ping_due = self._ping_due() if self._pinged_at is not None else self._heard_at + self._ping_interval
        return min(self._due, ping_due)

    def _ping_due(self) -> float:
        if self._pinged_at is None:
            return self._heard_at + self._ping_interval
        return max(self._pinged_at, self._heard_at) + self._ping_timeout

    def handle_timeout(self, now: float) -> ConnectionLost | None:
        """Fail what is overdue; returns the error if the connection is."""
        self.now = now
        if now >= self._due:
            self._time_out(now)
        if not self.waiting or now < self._ping_due():
            return None
        if self._pinged_at is None:
            self.engine.ping()
            self._pinged_at = now
            return None
        return ConnectionLost(
            f"the server answered no PING within {self._ping_timeout:g} s (http2.ping_timeout)",
            code="ERR_TLSAGENT_PING_TIMEOUT",
        )

    def _time_out(self, now: float) -> None:
        self._due = math.inf
        for stream in [*self._streams.values(), *self._held]:
            exchange = stream.exchange
            assert exchange is not None
            overdue = exchange.overdue(now)
            if overdue is not None:
                exchange.fail(overdue, now)
                self._give_up(stream, CANCEL)
                continue
            if exchange.nudged:
                stream.note()
            self._due = min(self._due, exchange.deadline)

    def fail(self, error: BaseException, now: float) -> None:
        """Fail every exchange, each with an error of its own: the connection is of no more use."""
        self.now = now
        for stream in [*self._streams.values(), *self._held]:
            exchange = stream.exchange
            assert exchange is not None
            if (
                not stream.id
                and isinstance(error, ConnectionLost)
                and self._turn_away(stream, exchange, str(error), now)
            ):
                continue
            own = own_copy(error)
            if isinstance(own, TLSAgentError):
                stream.error = own
            exchange.fail(own, now)
        # Its streams are what would tie engine and connection into a cycle.
        self.engine.receive_eof(False, now, self)
        for stream in self._held[:]:
            self._end(stream)

    def close(self) -> None:
        """Take leave: GOAWAY is in `data_to_send`."""
        self.engine.close()

    def disown(self) -> list[Exchange]:
        """Return what it carries or has to report, and forget it."""
        carried = [*self._streams.values(), *self._held]
        exchanges = [stream.exchange for stream in carried if stream.exchange is not None] + self.ended
        for stream in carried:
            stream.over = True  # the engine is not to be touched
            stream.outgoing = b""
            if stream.exchange is not None:
                stream.exchange.stream = None
        self._disowned = True
        self._streams, self._held, self.touched, self.ended = {}, [], [], []
        return exchanges
