"""
The exchanges that share a connection, against a real HTTP/2 peer over memory BIOs.
"""

from __future__ import annotations

import time
from math import inf

import pytest

from tlsagent import AgentOptions, Http2Options, Timeouts
from tlsagent._core import AgentCore
from tlsagent._exchange import HIGH_WATER, Awaiting
from tlsagent.errors import (
    AgentClosed,
    ConnectionLost,
    LocalProtocolError,
    ReadTimeout,
    RemoteProtocolError,
    ResponseTimeout,
    SendTimeout,
    StreamReset,
)
from tlsagent.testing.simulation import Peer, Reply, SimulatedServer, echo, silent

WALL = time.time()
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
NO_ERROR, REFUSED_STREAM, CANCEL = 0, 7, 8


@pytest.fixture(params=["h2", "ngh2"])
def pair(request):
    """Return what makes both ends of a connection, with either engine."""

    def make(app=silent, *, settings=None, **options):
        return Pair(app, settings or {}, http2_engine=request.param, **options)

    return make


class Pair:
    """Both ends; `turn` carries bytes until both are silent."""

    def __init__(self, app, settings, *, secured=True, http2=None, timeouts=None, **options):
        server = SimulatedServer(app, alpn_protocols=("h2",), **settings)
        http2 = Http2Options(**{"ping_interval": 10, "ping_timeout": 4, **(http2 or {})})
        timeouts = Timeouts(**{"send": 5, "response": 7, "read": 9, "total": None, **(timeouts or {})})
        self.core = AgentCore(AgentOptions(ca=server.ca_pem, http2=http2, timeouts=timeouts, **options))
        self.core.acquire(self.exchange(), 0.0)
        [connect] = self.core.effects()
        self.connection = self.core.open(connect.attempt.user, 0.0, WALL)
        self.peer = Peer(server, 1, ("a.test", 443))
        if secured:
            self.turn()

    @property
    def shared(self):
        return self.connection.shared

    @property
    def streams(self):
        return self.peer.http2

    def exchange(self, method="GET", content=None, *, path="/", now=0.0, **arguments):
        defaults = dict.fromkeys(("headers", "options", "timeouts", "trailers", "trace"))
        url = f"https://a.test{path}"
        return self.core.exchange(method, url, now, content=content, **{"retry": True, **defaults, **arguments})

    def start(self, *args, now=0.0, awaiting=Awaiting.END, **kwargs):
        exchange = self.exchange(*args, now=now, **kwargs)
        exchange.awaiting = awaiting
        self.connection.start(exchange, now)
        self.turn(now)
        return exchange

    def turn(self, now=0.0):
        while True:
            up = self.connection.data_to_send()
            self.peer.receive_data(up, now)
            down = self.peer.data_to_send()
            if down:
                self.connection.receive_data(down, now)
            if not up and not down:
                return

    def respond(self, reply=None, request=None, now=0.0):
        self.peer.respond(reply or Reply(body=b"ok"), now, request)
        self.turn(now)

    def ended(self, now=0.0):
        news = self.connection.take_news(now)
        return [] if news is None else news.ended


def body_of(exchange):
    return b"".join(exchange.take_chunks(0.0))


# -- Streams and news


def test_each_exchange_has_a_stream(pair):
    """Exchanges begin at once and end in any order; each is told its own response, and its stream is forgotten."""
    both = pair()
    first, second = both.start(path="/1"), both.start(path="/2")
    assert (both.shared.carried, both.shared.busy, both.streams.open.keys()) == (2, True, {1, 3})

    both.respond(Reply(body=b"two"), both.peer.requests[1])
    assert (body_of(second), second.complete, first.complete) == (b"two", True, False)
    assert both.ended() == [second]
    both.respond(Reply(body=b"one"))

    assert both.ended() == [first]
    assert body_of(first) == b"one"
    assert both.shared.take_touched() == [second, first]
    assert (first.stream, second.stream, both.shared.carried, both.shared.busy) == (None, None, 0, False)


def test_what_came_is_told_once(pair):
    """However much comes in one feed, and on how many streams, each exchange is touched once, in order."""
    both = pair()
    exchanges = [both.start() for _ in range(3)]
    assert both.shared.take_touched() == []
    for request in (both.peer.requests[2], both.peer.requests[0]):
        both.streams.headers(request, [(":status", "103")])
        both.streams.headers(request, [(":status", "200")])
        both.streams.data(request, b"a")
        both.streams.data(request, b"b")
    both.turn()

    assert both.shared.take_touched() == [exchanges[2], exchanges[0]]
    assert both.shared.take_touched() == []


def test_news_are_told_when_there_are_any(pair):
    """Ends, a changed capacity and a GOAWAY are news, each with a later serial number; the same again is none."""
    both = pair(settings={"max_concurrent_streams": 5})
    news = both.connection.take_news(0.0)
    assert (news.ended, news.capacity, news.leaving, news.dead) == ([], 5, None, None)
    assert both.connection.take_news(0.0) is None

    both.start()
    assert both.connection.take_news(0.0) is None
    both.streams.settings({MAX_CONCURRENT_STREAMS: 2})
    both.turn()
    fewer = both.connection.take_news(0.0)
    both.streams.goaway(2**31 - 1)
    both.turn()
    leaving = both.connection.take_news(0.0)

    assert (fewer.capacity, fewer.leaving, leaving.leaving) == (2, None, "goaway")
    assert news.serial < fewer.serial < leaving.serial
    assert both.connection.refuses(0.0) == "goaway"
    assert both.shared.farewell == (2**31 - 1, NO_ERROR)


def test_news_that_were_lost_are_told_anew(pair):
    """Who may not have carried over what it took asks for all of it once more."""
    both = pair()
    told = both.connection.take_news(0.0)
    assert both.connection.take_news(0.0) is None

    both.connection.tell_anew()
    again = both.connection.take_news(0.0)

    assert (again.capacity, again.serial > told.serial) == (told.capacity, True)


def test_retired_connection_finishes_what_it_carries(pair):
    """It refuses more, says so once somebody looks, and is not closed under those who use it."""
    both = pair(timeout=100)
    exchange = both.start()

    both.connection.retire("network_changed")
    both.connection.check_idle(0.0)

    assert (both.connection.refuses(0.0), both.connection.take_news(0.0).leaving) == ("network_changed",) * 2
    both.respond()
    assert (body_of(exchange), both.connection.dead) == (b"ok", None)
    both.connection.check_idle(0.0)
    assert both.connection.dead == "network_changed"


def test_engine_is_named(pair):
    """What speaks HTTP/2 is known of the connection."""
    both = pair()

    assert both.connection.info.http_engine == both.shared.engine.name == both.core.options.http2_engine


# -- A stream's fault is not the connection's


def test_reset_is_for_one(pair):
    """Of a stream that the peer resets the exchange fails; the others do not hear of it."""
    both = pair()
    first, second = both.start("POST"), both.start("POST")

    both.streams.reset(both.peer.requests[0], 2)
    both.turn()

    assert both.ended() == [first]
    assert (type(first.error), first.unprocessed, first.may_retry) == (StreamReset, False, False)
    assert (second.error, both.connection.dead) == (None, None)
    both.respond()
    assert body_of(second) == b"ok"


def test_refusal_is_known_to_be_one(pair):
    """REFUSED_STREAM and a GOAWAY below a stream say that it was not processed."""
    both = pair()
    refused, served, above = [both.start("POST") for _ in range(3)]

    both.streams.reset(both.peer.requests[0], REFUSED_STREAM)
    both.streams.goaway(3)
    both.turn()

    assert [exchange.unprocessed for exchange in (refused, served, above)] == [True, False, True]
    assert [exchange.may_retry for exchange in (refused, above)] == [True, True]
    both.respond()
    assert served.complete


@pytest.mark.parametrize("received", ["nothing", "informational", "head", "body"])
def test_connection_lost_within_a_response_is_not_repeated(pair, received):
    """A reused connection that dies may have died while idle, unless anything of this response has come."""
    both = pair()
    both.start()
    both.respond()
    exchange, other = both.start(), both.start()
    request = both.peer.requests[1]
    if received != "nothing":
        both.streams.headers(request, [(":status", "103" if received == "informational" else "200")])
    if received == "body":
        both.streams.data(request, b"x")
    both.turn()

    both.connection.receive_error(ConnectionResetError(104, "reset"), 1.0)

    assert (exchange.may_retry, other.may_retry) == (received == "nothing", True)


def test_body_beyond_its_limit_is_reset(pair):
    """A body longer than max_response_size costs its stream."""
    both = pair(max_response_size=10)
    exchange, other = both.start(), both.start()

    both.streams.headers(both.peer.requests[0], [(":status", "200")])
    both.streams.data(both.peer.requests[0], b"x" * 1_000)
    both.turn()

    assert exchange.error.code == "ERR_TLSAGENT_RESPONSE_TOO_LARGE"
    assert (both.ended(), both.peer.requests[0].reset) == ([exchange], CANCEL)
    assert (other.error, both.connection.dead) == (None, None)


def test_response_that_is_whole_before_its_request_ends_it(pair):
    """RFC 9113, 8.1: the rest of the request is not needed; the stream is reset with NO_ERROR."""
    both = pair(settings={"initial_window_size": 10})
    exchange = both.start("POST", b"x" * 100)
    both.streams.settings({INITIAL_WINDOW_SIZE: 0})
    waiting = both.start("POST", b"x" * 100)
    assert waiting.blocked

    both.respond(Reply(status=403), both.peer.requests[1])

    assert waiting.complete
    assert both.peer.requests[1].reset == NO_ERROR
    assert (exchange.error, both.connection.dead) == (None, None)


def test_nonsense_is_the_connections_end(pair):
    """What breaks the protocol fails every exchange, each with an error of its own, and a GOAWAY goes out."""
    both = pair()
    exchanges = [both.start() for _ in range(2)]

    both.peer.send(b"\0\0\4\3\0\0\0\0\0\0\0\0\0")  # RST_STREAM of no stream
    both.turn()

    assert [type(exchange.error) for exchange in exchanges] == [RemoteProtocolError] * 2
    assert exchanges[0].error is not exchanges[1].error
    assert (both.ended(), both.connection.dead, both.streams.client_left) == (exchanges, "error", 1)
    assert type(both.connection.error) is RemoteProtocolError


def test_broken_connection_has_broken_for_who_looks_meanwhile(pair):
    """Another thread may look while the fault is being told: it does not take that for a GOAWAY."""
    both = pair()
    exchange = both.start()
    seen = []

    class Watched(type(exchange)):
        __slots__ = ()

        def fail(self, error, now):
            seen.append(both.connection.refuses(now))
            super().fail(error, now)

    exchange.__class__ = Watched
    both.peer.send(b"\0\0\4\3\0\0\0\0\0\0\0\0\0")  # RST_STREAM of no stream
    both.turn()

    assert seen == ["error"]
    assert both.connection.dead == "error"


@pytest.mark.parametrize("ending", ["close", "drop"])
def test_end_of_the_peer_ends_all(pair, ending):
    """The end of the plaintext fails what is not whole."""
    both = pair()
    whole, half = both.start(), both.start()
    both.respond()
    both.streams.headers(both.peer.requests[1], [(":status", "200")])
    getattr(both.peer, ending)()
    both.turn(2.0)
    both.connection.receive_eof(3.0)

    assert (whole.complete, type(half.error)) == (True, ConnectionLost)
    assert half.ended_at == (2.0 if ending == "close" else 3.0)
    assert both.ended() == [whole, half]


def test_failure_of_all_is_told_to_each(pair):
    """Each exchange that a failure takes along has its own copy of the error, with its own facts."""
    both = pair(settings={"max_concurrent_streams": 2})
    exchanges = [both.start(), both.start("POST"), both.start()]
    assert [exchange.request_sent for exchange in exchanges] == [True, True, False]

    both.connection.fail(AgentClosed("closed"), 1.0, "agent_closed")

    assert [type(exchange.error) for exchange in exchanges] == [AgentClosed] * 3
    assert len({id(exchange.error) for exchange in exchanges}) == 3
    assert both.ended() == exchanges
    assert (both.shared.carried, both.connection.dead) == (0, "agent_closed")


def test_disowned_connection_hands_over_all_it_has(pair):
    """Exchanges under way, held back, or ended and not reported; the engine is not touched."""
    both = pair(settings={"max_concurrent_streams": 1})
    ended = both.start()
    both.respond()
    running, held = both.start(), both.start()

    error = ConnectionLost("forked")
    assert both.connection.disown(error) == [running, held, ended]
    assert (both.connection.error, both.connection.dead) == (error, "disowned")
    assert both.shared.carried == 0
    assert (both.shared.take_touched(), both.shared.ended) == ([], [])
    assert (running.stream, held.stream) == (None, None)


def test_tunnel_of_a_disowned_connection_does_not_touch_it(pair):
    """Who took it over may still read what had come, write and hang up: nothing becomes of it."""
    both = pair(http2={"stream_window": 1_000}, settings={"initial_window_size": 10})
    exchange = both.start("CONNECT", awaiting=Awaiting.HEAD)
    both.respond(Reply())
    stream = exchange.switched
    both.streams.data(both.peer.requests[0], b"x" * 1_000)
    both.turn()
    stream.write(b"x" * 25, 0.0)
    assert stream.blocked
    both.shared.engine.data_to_send()

    both.connection.disown(ConnectionLost("forked"))
    stream.read()
    stream.write(b"more", 0.0)
    stream.hang_up("close")

    assert not stream.blocked
    assert both.shared.engine.data_to_send() == b""


# -- Windows


@pytest.mark.parametrize("content", [b"x" * 1_000, b"x" * 70_000])
def test_body_waits_for_windows(pair, content):
    """What the peer's window does not let out is kept, and goes as credit comes; `send` counts from the last of it."""
    both = pair(echo, settings={"initial_window_size": 0})
    exchange = both.exchange("POST", content)
    both.connection.start(exchange, 0.0)
    if not isinstance(exchange.body, bytes):
        [piece, *_] = exchange.body.pieces()
        assert both.connection.send_body(exchange, piece, 0.0)
    both.turn()
    assert (exchange.blocked, exchange.phase, exchange.deadline) == (True, "send", 5.0)

    both.streams.settings({INITIAL_WINDOW_SIZE: 100})
    both.connection.receive_data(both.peer.data_to_send(), 1.0)
    assert (exchange.blocked, exchange.phase, exchange.deadline) == (True, "send", 6.0)
    both.turn(1.0)

    assert not exchange.blocked
    assert len(both.peer.requests[0].body) == min(len(content), 65_536)


def test_driver_is_told_when_a_piece_is_out(pair):
    """The exchange is nudged, once, when its next piece may follow."""
    both = pair(settings={"initial_window_size": 0})
    exchange = both.start("POST", iter([b"x"]))
    assert both.connection.send_body(exchange, b"x" * 50, 0.0)
    assert (exchange.blocked, exchange.nudged) == (True, False)

    both.streams.settings({INITIAL_WINDOW_SIZE: 10})
    both.turn()
    assert both.shared.take_touched() == [exchange]
    assert (exchange.blocked, exchange.nudged) == (False, True)
    exchange.nudged = False
    both.connection.end_body(exchange, 0.0)
    both.turn()

    assert (both.peer.requests[0].body, both.peer.requests[0].complete) == (b"x" * 50, True)
    assert (exchange.nudged, exchange.phase) == (False, "wait")


@pytest.mark.parametrize("end", ["reset", "overdue", "answered"])
def test_upload_that_ends_while_it_waits(pair, end):
    """Who waits for the windows is told, and has nothing to wait for; what is sent still goes nowhere."""
    both = pair(settings={"initial_window_size": 10})
    exchange = both.start("POST", iter([b"x"]))
    both.streams.settings({INITIAL_WINDOW_SIZE: 0})
    both.turn()
    assert both.connection.send_body(exchange, b"x" * 50, 0.0)
    assert exchange.blocked
    both.shared.take_touched()

    if end == "reset":
        both.streams.reset(both.peer.requests[0], 2)
        both.turn()
    elif end == "overdue":
        both.connection.handle_timeout(5.0)
    else:
        both.respond(Reply(status=403))

    assert both.shared.take_touched() == [exchange]
    assert (exchange.blocked, both.ended()) == (False, [exchange])
    assert not both.connection.send_body(exchange, b"x", 6.0)
    both.connection.end_body(exchange, 6.0)
    both.turn(6.0)
    assert both.peer.requests[0].body == b""
    assert both.connection.dead is None


def test_refused_upload_goes_no_further(pair):
    """After a final response that is an error the rest of the body is not sent, though there is room for it."""
    both = pair()
    exchange = both.start("POST", iter([b"x"]))
    both.streams.headers(both.peer.requests[0], [(":status", "413")])
    both.turn()
    assert exchange.upload_stopped

    assert not both.connection.send_body(exchange, b"x" * 50, 0.0)
    both.turn()

    assert (both.peer.requests[0].body, exchange.error) == (b"", None)


def test_trailers_follow_the_body(pair):
    """Trailers end the request, also where there is no body."""
    both = pair(settings={"initial_window_size": 5})
    both.start("POST", b"x" * 20, trailers={"X-A": "1"})
    both.start("POST", trailers={"X-A": "2"})

    assert [request.trailers for request in both.peer.requests] == [(("x-a", "1"),), (("x-a", "2"),)]
    assert [request.complete for request in both.peer.requests] == [True, True]


@pytest.mark.parametrize("size", [2, 4])
def test_body_that_breaks_its_promise(pair, size):
    """A body of another length than announced is the caller's error, and resets its stream alone."""
    both = pair()
    exchange = both.start("POST", iter([b"x"]), headers={"Content-Length": "3"})

    goes_on = both.connection.send_body(exchange, b"x" * size, 0.0)
    both.connection.end_body(exchange, 0.0)
    both.turn()

    assert goes_on is (size < 3)
    assert isinstance(exchange.error, LocalProtocolError)
    assert (both.peer.requests[0].reset, both.connection.dead) == (CANCEL, None)
    assert not exchange.blocked
    assert not both.connection.send_body(exchange, b"x", 0.0)


def test_body_that_is_kept_whole_is_credited_as_it_comes(pair):
    """Nobody has to read what is collected."""
    both = pair(http2={"stream_window": 1_000})
    exchange = both.start()

    both.respond(Reply(body=b"x" * 50_000))

    assert exchange.complete
    assert len(body_of(exchange)) == 50_000


def test_body_that_is_read_is_credited_as_it_is(pair):
    """Who does not read holds back the stream, and what was read lets the peer go on, to the end and behind it."""
    both = pair(http2={"stream_window": 1_000})
    exchange = both.start(awaiting=Awaiting.BODY)
    both.respond(Reply(body=b"x" * 2_500))
    sizes = []
    while both.shared.take_touched():
        sizes.append(len(body_of(exchange)))
        both.connection.credit(exchange)
        both.turn()

    assert sizes == [1_000, 1_000, 500]
    assert (exchange.complete, exchange.stream) == (True, None)


def test_credit_is_owed_until_the_body_is_read(pair):
    """Also for what is left of a response that is whole: the exchange keeps its stream for as long."""
    both = pair()
    exchange = both.start(awaiting=Awaiting.BODY)
    both.respond(Reply(body=b"x" * 500))
    assert both.shared.take_touched() == both.ended() == [exchange]
    assert exchange.complete
    assert exchange.stream is not None

    assert len(body_of(exchange)) == 500
    both.connection.credit(exchange)

    assert exchange.stream is None


def test_consumer_who_is_behind_stops_the_read_clock(pair):
    """What keeps the peer from sending is not read, so that no answer is overdue; with a large window at 256 KiB."""
    for window, paused in ((1_000, True), (100_000, False), (2 * HIGH_WATER, False)):
        both = pair(http2={"stream_window": window})
        exchange = both.start(awaiting=Awaiting.BODY)
        both.streams.headers(both.peer.requests[0], [(":status", "200")])
        both.streams.data(both.peer.requests[0], b"x" * 1_000)
        both.turn()

        assert exchange.paused is paused
        assert exchange.deadline == (inf if paused else 9.0)
        body_of(exchange)
        both.connection.credit(exchange)
        assert exchange.deadline == 9.0


# -- Held back


def test_doubtful_connection_is_asked_first(pair):
    """After ping_interval of silence without an exchange a request waits, and one PING asks for all who do."""
    both = pair()
    first = both.exchange("POST", b"x")
    second = both.exchange("POST", iter([b"y"]))
    both.connection.start(first, 10.0)
    both.connection.start(second, 11.0)
    third = both.exchange("POST", iter([]))
    assert both.connection.send_body(second, b"y", 11.0)
    both.connection.start(third, 11.0)
    both.connection.end_body(third, 11.0)
    assert (first.request_sent, second.request_sent, second.blocked) == (False, False, True)
    assert (first.deadline, both.shared.carried, both.shared.next_deadline()) == (15.0, 3, 14.0)

    both.peer.receive_data(both.connection.data_to_send(), 12.0)
    assert (both.streams.pings, both.peer.requests) == (1, [])
    both.turn(12.0)

    assert [request.body for request in both.peer.requests] == [b"x", b"y", b""]
    assert [request.complete for request in both.peer.requests] == [True, False, True]
    assert (second.blocked, second.nudged) == (False, True)
    assert second in both.shared.take_touched()


def test_any_sign_of_life_will_do(pair):
    """Whatever the peer sends takes the doubt away."""
    both = pair()
    both.connection.start(both.exchange(), 10.0)
    both.streams.ping()
    both.connection.receive_data(both.peer.data_to_send(), 10.5)

    both.peer.receive_data(both.connection.data_to_send(), 10.5)

    assert len(both.peer.requests) == 1


def test_connection_in_use_is_not_asked_by_a_request(pair):
    """While another exchange is under way the PINGs in time tell enough."""
    both = pair(timeouts={"response": None})
    both.start()

    both.start(now=10.0)

    assert (both.streams.pings, len(both.peer.requests)) == (0, 2)


def test_full_connection_turns_away(pair):
    """If there is no room in spite of what the pool was told, requests wait for the next news, then look elsewhere."""
    both = pair(settings={"max_concurrent_streams": 1})
    exchanges = [both.start(path=f"/{number}") for number in range(3)]
    assert [exchange.request_sent for exchange in exchanges] == [True, False, False]

    for number in range(2):
        assert both.peer.outstanding.target == f"/{number}"
        both.respond()

    first, second, third = exchanges
    assert both.ended() == [first, third, second]
    assert (first.complete, second.complete) == (True, True)
    assert (third.attempts, third.request_sent, third.may_retry) == (0, False, True)
    assert both.connection.requests == 2


def test_held_back_request_times_out_and_is_dropped(pair):
    """It has its own clock (`send`), and may be given up; the peer never hears of it."""
    both = pair(settings={"max_concurrent_streams": 1}, timeouts={"response": None})
    both.start()
    overdue, dropped = both.start(), both.start(timeouts=Timeouts(send=100))

    assert both.shared.next_deadline() == 5.0
    both.connection.handle_timeout(5.0)
    both.connection.drop(dropped, 6.0, "dropped")
    both.turn(6.0)

    assert (type(overdue.error), overdue.error.phase, overdue.error.request_sent) == (SendTimeout, "send", False)
    assert both.ended() == [overdue, dropped]
    assert (both.shared.carried, len(both.peer.requests)) == (1, 1)


def test_held_back_request_is_not_processed_whatever_ends_the_connection(pair):
    """Nothing of it was sent: it may be repeated, if the connection is lost, leaves, or ends."""
    for end in ("lost", "goaway", "eof"):
        both = pair()
        exchange = both.exchange("POST", b"x")
        both.connection.start(exchange, 10.0)
        if end == "lost":
            both.connection.receive_error(ConnectionResetError(104, "reset"), 11.0)
        elif end == "goaway":
            both.streams.goaway(0)
            both.connection.receive_data(both.peer.data_to_send(), 11.0)
        else:
            both.connection.receive_eof(11.0)

        assert both.ended() == [exchange]
        assert (exchange.attempts, exchange.request_sent, exchange.may_retry) == (0, False, True)


def test_held_back_request_whose_body_was_begun_is_not_repeated(pair):
    """What was taken from its iterator is gone: the caller is told that the connection was lost."""
    both = pair()
    exchange = both.exchange("POST", iter([b"x"]))
    both.connection.start(exchange, 10.0)
    assert both.connection.send_body(exchange, b"x", 10.0)

    both.connection.receive_error(ConnectionResetError(104, "reset"), 11.0)

    assert (type(exchange.error), exchange.request_sent, exchange.may_retry) == (ConnectionLost, False, False)


def test_extended_connect_waits_for_the_settings(pair):
    """RFC 8441: only the peer's SETTINGS tell whether it takes extended CONNECT; what comes after waits behind it."""
    both = pair(secured=False)
    both.peer.receive_data(both.connection.data_to_send(), 0.0)
    both.connection.receive_data(both.peer.data_to_send(), 0.0)
    assert both.connection.info is not None
    extended = both.exchange("CONNECT", headers={":protocol": "websocket"})
    both.connection.start(extended, 0.0)
    both.connection.start(both.exchange(), 0.0)
    assert not extended.request_sent

    both.turn()

    assert [request.method for request in both.peer.requests] == ["CONNECT", "GET"]
    assert both.peer.requests[0].header(":protocol") == "websocket"


def test_extended_connect_that_is_not_taken(pair):
    """Where the peer does not take it the caller is told, and nothing is sent."""
    both = pair(settings={"enable_connect_protocol": False})

    exchange = both.start("CONNECT", headers={":protocol": "websocket"})

    assert isinstance(exchange.error, LocalProtocolError)
    assert (both.ended(), both.peer.requests, both.connection.dead) == ([exchange], [], None)


def test_body_that_waits_for_a_100(pair):
    """`holding` is per stream; the wait ends by a 100 or by itself, which is no error."""
    both = pair()
    asked, waited = (both.start("POST", b"abc", expect_continue=True) for _ in range(2))
    assert (asked.holding, waited.holding) == (True, True)

    both.streams.headers(both.peer.requests[0], [(":status", "100")])
    both.turn()
    assert (asked.holding, asked.nudged, waited.holding) == (False, True, True)
    assert both.shared.take_touched() == [asked]
    asked.nudged = False
    both.connection.handle_timeout(waited.deadline)

    assert both.shared.take_touched() == [waited]
    assert (waited.holding, waited.nudged, waited.error) == (False, True, None)


# -- Time


def test_nothing_is_due_without_exchanges(pair):
    """An idle connection has no clock here; with exchanges, the earliest of theirs or the PING."""
    both = pair()
    assert both.shared.next_deadline() == inf
    both.start()
    assert both.shared.next_deadline() == 7.0
    both.start(timeouts=Timeouts(response=3))
    assert both.shared.next_deadline() == 3.0
    both.respond(request=both.peer.requests[0])
    both.respond()

    assert both.shared.next_deadline() == inf


def test_timeout_is_the_streams(pair):
    """What is overdue is reset; the next deadline is that of the others."""
    both = pair()
    first, second = both.start(), both.start(now=1.0)

    both.connection.handle_timeout(6.9)
    assert first.error is None
    both.connection.handle_timeout(7.0)
    both.turn(7.0)

    assert (type(first.error), second.error) == (ResponseTimeout, None)
    assert both.ended() == [first]
    assert (both.peer.requests[0].reset, both.connection.dead) == (CANCEL, None)
    assert both.shared.next_deadline() == 8.0


def test_deadline_that_moved_later_is_found_anew(pair):
    """A deadline reached that is no one's any more fails nobody, and tells the next."""
    both = pair()
    exchange = both.start(awaiting=Awaiting.BODY)
    both.streams.headers(both.peer.requests[0], [(":status", "200")])
    both.turn(6.0)
    assert exchange.deadline == 15.0

    both.connection.handle_timeout(both.shared.next_deadline())
    assert (exchange.error, both.shared.next_deadline()) == (None, 15.0)
    both.connection.handle_timeout(15.0)

    assert isinstance(exchange.error, ReadTimeout)


def test_deadline_that_comes_with_the_head(pair):
    """Who may think about the answer for long may yet have to send it quickly."""
    both = pair(timeouts={"response": 100, "read": 3}, http2={"ping_interval": None})
    exchange = both.start()
    both.streams.headers(both.peer.requests[0], [(":status", "200")])
    both.turn(50.0)

    assert both.shared.next_deadline() == exchange.deadline == 53.0


def test_deadline_that_moved_earlier_is_found_anew(pair):
    """An upload may take its time; once it is through the answer may not, and a consumer who reads sets a new one."""
    both = pair(timeouts={"send": 100, "read": 3}, http2={"ping_interval": None, "stream_window": 1_000})
    exchange = both.start("POST", iter([b"x"]), awaiting=Awaiting.BODY)
    assert both.connection.send_body(exchange, b"x", 0.0)
    assert both.shared.next_deadline() == 100.0

    both.connection.end_body(exchange, 1.0)
    assert both.shared.next_deadline() == 8.0
    both.turn(1.0)
    both.streams.headers(both.peer.requests[0], [(":status", "200")])
    both.streams.data(both.peer.requests[0], b"x" * 1_000)
    both.turn(2.0)
    assert exchange.paused
    both.connection.handle_timeout(8.0)
    assert (exchange.error, both.shared.next_deadline()) == (None, inf)
    exchange.take_chunks(9.0)
    both.connection.credit(exchange)

    assert both.shared.next_deadline() == exchange.deadline == 12.0


def test_silent_connection_is_asked_and_given_up(pair):
    """PING after ping_interval; without an answer within ping_timeout the connection is lost."""
    both = pair(timeouts={"response": None})
    exchange = both.start()
    assert both.shared.next_deadline() == 10.0
    both.connection.handle_timeout(10.0)
    both.peer.receive_data(both.connection.data_to_send(), 10.0)
    assert (both.streams.pings, both.shared.next_deadline()) == (1, 14.0)
    both.connection.handle_timeout(13.9)
    assert exchange.error is None
    both.connection.handle_timeout(14.0)

    assert (exchange.error.code, both.connection.dead) == ("ERR_TLSAGENT_PING_TIMEOUT", "timeout")


@pytest.mark.parametrize(("answered", "due"), [(True, 22.0), (False, 16.0)])
def test_sign_of_life_puts_the_end_off(pair, answered, due):
    """The answer ends the question; anything else gives it more time."""
    both = pair(timeouts={"response": None})
    both.start()
    both.connection.handle_timeout(10.0)
    if answered:
        both.peer.receive_data(both.connection.data_to_send(), 11.0)
    else:
        both.streams.ping()

    both.connection.receive_data(both.peer.data_to_send(), 12.0)

    assert both.shared.next_deadline() == due


def test_inactivity_is_that_of_the_most_impatient(pair):
    """`timeout` is the connection's: the shortest of those that share it, anew once it was idle."""
    both = pair(http2={"ping_interval": None}, timeouts={"response": None}, timeout=20)
    quick, slow, none = ({"timeout": seconds} for seconds in (5, 60, None))
    both.start(now=100.0, options=slow)
    assert both.connection.next_deadline() == 160.0
    both.start(now=100.0, options=quick)
    both.start(now=100.0, options=slow)
    both.start(now=100.0, options=none)
    assert both.connection.next_deadline() == 105.0

    for _ in range(4):
        both.respond(now=101.0)
    both.start(now=200.0, options=none)
    assert both.connection.next_deadline() == inf
    both.start(now=201.0, options=quick)

    assert both.connection.next_deadline() == 206.0


def test_what_is_sent_ends_the_silence(pair):
    """As with HTTP/1.1 a request that begins is a sign of life, so is each piece of its body, its end, and a tunnel."""
    both = pair(http2={"ping_interval": None}, timeouts={"response": None, "send": None})
    both.start(now=0.0, options={"timeout": 60})
    exchange = both.start("POST", iter([b"x"]), now=10.0, options={"timeout": 5})
    assert both.connection.next_deadline() == 15.0

    both.connection.send_body(exchange, b"x", 14.0)
    assert both.connection.next_deadline() == 19.0
    both.connection.end_body(exchange, 18.0)
    assert both.connection.next_deadline() == 23.0
    exchange = both.start("CONNECT", now=19.0, awaiting=Awaiting.HEAD)
    both.respond(Reply(), both.peer.requests[-1], now=20.0)
    exchange.switched.write(b"x", 24.0)

    assert both.connection.next_deadline() == 29.0


def test_no_pings_where_none_are_wanted(pair):
    """ping_interval=None never asks, and holds nothing back; ping_timeout=None waits without end."""
    both = pair(http2={"ping_interval": None}, timeouts={"response": None})
    both.start(now=1_000.0)
    assert (len(both.peer.requests), both.shared.next_deadline()) == (1, inf)
    both = pair(http2={"ping_timeout": None}, timeouts={"response": None})
    both.start()
    both.connection.handle_timeout(10.0)

    assert both.shared.next_deadline() == inf


def test_time_that_the_machine_slept_is_silence(pair):
    """A connection that nobody used meanwhile is doubtful."""
    both = pair()
    both.connection.slept(60.0)

    both.connection.start(both.exchange(), 1.0)

    assert (both.shared.carried, both.peer.requests) == (1, [])
    both.turn(1.0)
    assert (both.streams.pings, len(both.peer.requests)) == (1, 1)


# -- Giving up, tunnels, leaving


def test_dropped_exchange_is_reset(pair):
    """Who is given up is reset with CANCEL and told so; of one that has ended the rest is credited."""
    both = pair(http2={"stream_window": 65_535, "connection_window": 65_535})
    for _ in range(5):
        running = both.start(awaiting=Awaiting.BODY)
        both.streams.headers(both.peer.requests[-1], [(":status", "200")])
        both.streams.data(both.peer.requests[-1], b"x" * 40_000)
        both.turn()
        both.connection.drop(running, 0.0, "dropped")
        both.turn()
        assert (running.error.code, running.stream) == ("ERR_TLSAGENT_CLOSED", None)
        assert both.peer.requests[-1].reset == CANCEL
        ended = both.start(awaiting=Awaiting.BODY)
        both.respond(Reply(body=b"x" * 40_000))
        assert ended.complete
        both.connection.drop(ended, 0.0, "dropped")
        both.connection.drop(ended, 0.0, "dropped")
        both.turn()

    last = both.start()
    both.respond(Reply(body=b"x" * 60_000))
    assert len(body_of(last)) == 60_000


def test_tunnel(pair):
    """A 2xx to CONNECT hands over the stream: bytes both ways, as of a connection of its own, and an end for each."""
    both = pair(settings={"initial_window_size": 10})
    exchange = both.start("CONNECT", awaiting=Awaiting.HEAD)
    both.respond(Reply())
    stream = exchange.switched
    assert (exchange.complete, exchange.response.status, stream.info) == (True, 200, both.connection.info)
    assert both.ended() == []

    stream.write(b"x" * 25, 0.0)
    assert stream.blocked
    both.turn()
    both.streams.data(both.peer.requests[0], b"down")
    both.turn()
    assert (stream.blocked, both.peer.requests[0].body) == (False, b"x" * 25)
    assert stream.take_over().take(100, stream) == b"down"
    stream.read()
    both.streams.data(both.peer.requests[0], b"", end=True)
    both.turn()
    assert stream.take_over().take(100, stream) == b""
    stream.hang_up("close")
    assert not both.shared.waiting, "a reset would wait for the answer to its PING"
    both.turn()

    assert (both.peer.requests[0].complete, both.peer.requests[0].reset) == (True, None)
    assert (both.ended(), stream.dead, both.connection.dead) == ([exchange], "close", None)


@pytest.mark.parametrize("waiting", [0, 25])
def test_tunnel_that_is_hung_up_first(pair, waiting):
    """Before the peer has ended, hanging up ends our side, unless bytes wait, and resets; nothing more is written."""
    both = pair(settings={"initial_window_size": 10})
    exchange = both.start("CONNECT", awaiting=Awaiting.HEAD)
    both.respond(Reply())
    exchange.switched.write(b"x" * waiting, 0.0)

    exchange.switched.hang_up("close")
    exchange.switched.hang_up("close")
    exchange.switched.write(b"x", 0.0)
    both.turn()

    request = both.peer.requests[0]
    assert request.reset == CANCEL or (request.complete and not waiting)
    assert request.body in (b"", b"x" * min(waiting, 10))
    assert (both.ended(), both.connection.dead) == ([exchange], None)


def test_tunnel_that_is_refused(pair):
    """Another answer to CONNECT is a response like any other."""
    both = pair()
    exchange = both.start("CONNECT")

    both.respond(Reply(status=403, body=b"no"))

    assert (exchange.switched, exchange.complete, body_of(exchange)) == (None, True, b"no")


def test_tunnel_that_the_peer_resets(pair):
    """Who took over finds the reset; the connection goes on."""
    both = pair()
    exchange = both.start("CONNECT", awaiting=Awaiting.HEAD)
    both.respond(Reply())

    both.streams.reset(both.peer.requests[0], 2)
    both.turn()

    assert (both.ended(), both.connection.dead) == ([exchange], None)
    with pytest.raises(StreamReset):
        exchange.switched.take_over().take(1, exchange.switched)


def test_connection_lost_under_a_tunnel(pair):
    """Who took over finds the error, as of a connection."""
    both = pair()
    exchange = both.start("CONNECT", awaiting=Awaiting.HEAD)
    both.respond(Reply())

    both.connection.receive_error(ConnectionResetError(104, "reset"), 1.0)

    assert both.ended() == [exchange]
    assert exchange.switched.dead is not None
    with pytest.raises(ConnectionLost) as caught:
        exchange.switched.take_over().take(1, exchange.switched)
    assert str(caught.value) == "the connection broke: reset"


def test_closed_connection_says_goodbye(pair):
    """GOAWAY goes out before the end, and nobody may begin any more."""
    both = pair()
    both.connection.close("free_socket_timeout")
    both.turn()

    assert (both.streams.client_left, both.peer.client_ended) == (NO_ERROR, "close_notify")
    assert both.shared.engine.draining


def test_request_that_comes_too_late(pair):
    """Who begins on a connection that takes its leave looks for another: nothing was sent, so it was no attempt."""
    both = pair()
    running = both.start()
    both.streams.goaway()
    both.turn()

    late = both.start("POST")

    assert both.ended() == [late]
    assert (late.attempts, late.request_sent, late.may_retry) == (0, False, True)
    assert running.error is None
