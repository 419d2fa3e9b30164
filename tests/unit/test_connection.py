"""
One connection, sans I/O: a `Connection` and a peer with nothing between them.
"""

from __future__ import annotations

import errno
import math
import time

import pytest

from tlsagent import AgentOptions, Http1Options, Timeouts
from tlsagent._body import PIECE
from tlsagent._connection import MAX_SESSIONS
from tlsagent._core import AgentCore
from tlsagent._exchange import HIGH_WATER, Awaiting
from tlsagent._raw import RawStream
from tlsagent.errors import (
    AgentClosed,
    CertificateNameError,
    ConnectionLost,
    HandshakeError,
    InactivityTimeout,
    LocalProtocolError,
    RemoteProtocolError,
    ResponseTimeout,
)
from tlsagent.testing.simulation import Peer, Reply, SimulatedServer, silent

URL = "https://a.test/"
WALL = time.time()


class Pair:
    """Both ends; `turn` carries bytes until both are silent."""

    def __init__(self, app=silent, *, server=None, raw=None, url=URL, secured=True, tls=None, **options):
        self.server = server or SimulatedServer(app, **(tls or {}))
        self.core = AgentCore(AgentOptions(**{"ca": self.server.ca_pem, **options}))
        self.url = url
        exchange = self.exchange()
        self.core.acquire(exchange, 0.0)
        [connect] = self.core.effects()
        self.dial = connect.attempt.user
        self.connection = self.core.open(self.dial, 0.0, WALL, addresses=("here", "there"), raw=raw)
        self.peer = Peer(self.server, 1, ("a.test", 443))
        if secured:
            self.turn()
            assert self.connection.info is not None

    def exchange(self, method="GET", content=None, **arguments):
        defaults = dict.fromkeys(("headers", "options", "timeouts", "trailers", "trace"))
        return self.core.exchange(method, self.url, 0.0, content=content, retry=True, **{**defaults, **arguments})

    def start(self, *args, now=0.0, **kwargs):
        exchange = self.exchange(*args, **kwargs)
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

    def answer(self, data, now=0.0):
        """Let the peer send plaintext, and carry it over."""
        self.peer.send(data)
        self.turn(now)

    def ended(self):
        ended, self.connection.ended = self.connection.ended, None
        return ended


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# -- The handshake


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_info_after_the_handshake(version):
    """What was negotiated is known once the peer is verified."""
    pair = Pair(tls={"min_version": version, "max_version": version})

    info = pair.connection.info

    assert info.protocol_version == version
    assert (info.local_address, info.remote_address) == ("here", "there")
    assert (info.alpn_protocol, info.http_engine) == ("http/1.1", "httptools")
    assert (info.authorized, info.authorization_error, info.early_data) == (True, None, "none")
    assert (info.session_reused, info.why_not_resumed) == (False, "no session was at hand")
    assert ("DNS", "a.test") in info.peer_certificate.subject_alt_names
    assert info.peer_chain[0] == info.peer_certificate
    assert info.ocsp_response is None
    assert repr(info).startswith(f"<ConnectionInfo 1 there {version}")
    assert pair.connection.bytes_sent > 0
    assert pair.connection.bytes_received > 0


def test_wrong_name_kills_the_connection():
    """A certificate for somebody else ends it before anything was sent."""
    pair = Pair(url="https://elsewhere.test/", secured=False)

    pair.turn()

    assert pair.connection.info is None
    assert isinstance(pair.connection.error, CertificateNameError)
    assert pair.connection.dead == "error"


@pytest.mark.parametrize("offered", [("h3",), ("other", "h3")])
def test_protocol_that_is_not_ours_to_speak(offered):
    """A server that chooses another protocol than HTTP is refused, or one that chooses none of those offered."""
    for chosen in (offered[-1:], ()):
        pair = Pair(alpn_protocols=offered, tls={"alpn_protocols": chosen}, secured=False)

        pair.turn()

        assert isinstance(pair.connection.error, HandshakeError)
        assert pair.connection.error.code == "ERR_TLSAGENT_ALPN"
        assert pair.connection.info is None


@pytest.mark.parametrize("offered", [None, ("http/1.1",), ("http/1.0", "http/1.1")])
def test_server_without_alpn_speaks_http1(offered):
    """A server that knows no ALPN speaks HTTP/1.1, if that was offered or nothing was."""
    assert Pair(alpn_protocols=offered, tls={"alpn_protocols": ()}).connection.info.alpn_protocol is None


def test_end_during_the_handshake():
    """A transport that ends before the handshake is complete is a lost connection."""
    pair = Pair(secured=False)

    pair.connection.receive_eof(0.0)

    assert isinstance(pair.connection.error, ConnectionLost)
    assert pair.connection.error.phase == "handshake"
    assert (pair.connection.dead, pair.connection.info) == ("lost", None)


def test_silence_during_the_handshake():
    """`timeout` holds for a connection in its handshake too."""
    pair = Pair(secured=False, timeout=3)
    assert pair.connection.next_deadline() == 3.0

    pair.connection.handle_timeout(3.0)

    assert isinstance(pair.connection.error, InactivityTimeout)
    assert pair.connection.dead == "timeout"


# -- Exchanges


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, b""), (b"", b""), (b"body", b"body")],
)
def test_short_request_goes_out_whole(content, expected):
    """A request whose body fits one piece is complete when it has begun."""
    pair = Pair()

    exchange = pair.start("POST", content)

    assert exchange.sent_at == 0.0
    assert (pair.peer.outstanding.complete, pair.peer.outstanding.body) == (True, expected)
    assert pair.connection.exchange is exchange
    assert pair.connection.requests == exchange.request_number == 1


def test_trailers_follow_a_short_body():
    """A request with trailers is chunked, and they come at its end."""
    pair = Pair()

    pair.start("POST", b"body", trailers={"x-sum": "4"})

    assert pair.peer.outstanding.body == b"body"
    assert pair.peer.outstanding.trailers == (("x-sum", "4"),)


def test_long_request_is_sent_piece_by_piece():
    """The driver sends a longer body; the request is complete with its end and its trailers."""
    pair = Pair()
    exchange = pair.start("POST", iter(()), trailers={"x-sum": "4"})
    assert (exchange.request_sent, exchange.sent_at, pair.peer.outstanding.complete) == (True, None, False)

    assert pair.connection.send_body(exchange, b"one", 1.0)
    assert pair.connection.send_body(exchange, memoryview(b"two"), 2.0)
    pair.connection.end_body(exchange, 3.0)
    pair.turn()

    assert exchange.sent_at == 3.0
    assert pair.peer.outstanding.body == b"onetwo"
    assert pair.peer.outstanding.trailers == (("x-sum", "4"),)


def test_connection_is_free_after_a_response():
    """A complete exchange is news; the connection carries the next one."""
    pair = Pair(lambda request, peer: OK)
    for number in (1, 2, 3):
        exchange = pair.start()

        assert pair.ended() is exchange
        assert exchange.complete
        assert exchange.chunks == [b"ok"]
        assert (pair.connection.exchange, pair.connection.dead) == (None, None)
        assert (exchange.request_number, exchange.reused) == (number, number > 1)


@pytest.mark.parametrize("cut", [1, 2, 7, 1000])
def test_response_in_any_portions(cut):
    """However the bytes are cut on their way, the response is the same."""
    pair = Pair()
    exchange = pair.start()
    pair.peer.send(OK[:30])
    pair.peer.send(OK[30:])
    data = pair.peer.data_to_send()

    for at in range(0, len(data), cut):
        pair.connection.receive_data(memoryview(data)[at : at + cut], 1.0)

    assert exchange.complete
    assert b"".join(exchange.chunks) == b"ok"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "connection_close"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "connection_close"),
        (OK + b"more", "unsolicited_data"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=1\r\n\r\n", "keep_alive_hint"),
    ],
)
def test_response_that_is_the_last(response, reason):
    """A response after which nothing may follow is delivered, then the connection closes in good order."""
    pair = Pair()
    exchange = pair.start()

    pair.answer(response)

    assert exchange.complete
    assert (pair.ended(), pair.connection.dead) == (exchange, reason)
    assert pair.peer.client_ended == "close_notify"


def test_keep_alive_hint_less_the_margin():
    """The peer's hint says how long the connection may be idle; without one for ever."""
    pair = Pair(keep_alive_hint_margin=2)
    pair.start()
    pair.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=5, max=9\r\n\r\n")

    assert pair.connection.dead is None
    assert pair.connection.idle_for == 3.0


def test_max_requests_per_socket():
    """The last request that is allowed closes the connection."""
    pair = Pair(lambda request, peer: Reply(), max_requests_per_socket=2)
    pair.start()
    assert pair.connection.dead is None

    pair.ended()
    pair.start()

    assert pair.connection.dead == "max_requests"


def test_max_lifetime():
    """A connection that is too old is closed after a response, or when it is looked at."""
    pair = Pair(lambda request, peer: Reply(), max_lifetime=10)
    pair.start(now=9.0)
    pair.connection.check_idle(9.9)
    assert pair.connection.dead is None
    pair.ended()
    pair.start(now=10.0)
    assert pair.connection.dead == "max_lifetime"

    idle = Pair(max_lifetime=10)
    idle.connection.check_idle(10.0)
    assert idle.connection.dead == "max_lifetime"


def test_final_response_before_the_end_of_the_request():
    """An early response ends the exchange: no more of the body is taken, the connection goes."""
    pair = Pair()
    exchange = pair.start("POST", iter(()))

    pair.answer(OK)

    assert (pair.ended(), pair.connection.dead) == (exchange, "early_response")
    assert pair.connection.send_body(exchange, b"more", 1.0) is False
    pair.connection.end_body(exchange, 1.0)
    assert exchange.sent_at is None


@pytest.mark.parametrize("pieces", [[b"abcd"], [b"ab"]], ids=["longer", "shorter"])
def test_body_that_is_not_as_long_as_announced(pieces):
    """Too long or too short, it fails the exchange with the facts; the connection goes."""
    pair = Pair()
    exchange = pair.start("POST", iter(()), headers={"Content-Length": "3"})

    taken = [pair.connection.send_body(exchange, piece, 1.0) for piece in pieces]
    pair.connection.end_body(exchange, 2.0)

    assert taken == [len(pieces[0]) < 3]
    assert isinstance(exchange.error, LocalProtocolError)
    assert (exchange.error.phase, exchange.error.request_sent) == ("send", True)
    assert (pair.ended(), pair.connection.dead) == (exchange, "error")


def test_nonsense_for_a_response():
    """What is no HTTP fails the exchange, and is the end of the connection."""
    pair = Pair()
    exchange = pair.start()

    pair.answer(b"SSH-2.0-OpenSSH\r\n\r\n")

    assert isinstance(exchange.error, RemoteProtocolError)
    assert exchange.error.phase == "wait"
    assert (pair.ended(), pair.connection.dead, pair.connection.error) == (exchange, "error", exchange.error)


def test_response_that_is_too_large():
    """A body beyond max_response_size costs the connection, also where it ends in the same record."""
    pair = Pair(max_response_size=1)
    exchange = pair.start()

    pair.answer(OK)

    assert exchange.error.code == "ERR_TLSAGENT_RESPONSE_TOO_LARGE"
    assert (pair.ended(), pair.connection.dead) == (exchange, "error")


def test_reading_is_paused_for_a_slow_consumer():
    """While the consumer is behind, the connection says that no more is to be read."""
    pair = Pair()
    exchange = pair.start()
    exchange.awaiting = Awaiting.BODY
    pair.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n")
    assert not pair.connection.reading_paused

    pair.answer(b"x" * (HIGH_WATER + 1))
    assert pair.connection.reading_paused
    exchange.take_chunks(1.0)

    assert not pair.connection.reading_paused


# -- Ends


@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.parametrize(
    ("before", "complete"),
    [
        (b"", False),
        (b"HTTP/1.1 200", False),
        (OK[:-1], False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", False),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", True),
    ],
)
def test_end_within_a_response(how, before, complete):
    """Only close_notify ends a body that is framed by the end; everything else is a truncation, never a success."""
    pair = Pair()
    exchange = pair.start()
    pair.answer(before)
    getattr(pair.peer, how)()
    pair.turn()

    pair.connection.receive_eof(1.0)

    if complete and how == "close":
        assert exchange.complete
        assert exchange.chunks == [b"until the end"]
    else:
        assert isinstance(exchange.error, ConnectionLost)
        assert exchange.received == bool(before)
    assert pair.ended() is exchange
    assert pair.connection.dead == "peer"


@pytest.mark.parametrize("how", ["close", "drop"])
def test_end_while_idle(how):
    """A connection that ends while nothing is due is dead without an error."""
    pair = Pair()
    getattr(pair.peer, how)()
    pair.turn()

    pair.connection.receive_eof(1.0)

    assert (pair.connection.dead, pair.connection.error, pair.connection.ended) == ("peer", None, None)


def test_failure_of_the_socket():
    """An OS error ends the exchange with the system's code; the original is chained."""
    pair = Pair()
    exchange = pair.start()
    cause = BrokenPipeError(errno.EPIPE, "Broken pipe")

    pair.connection.receive_error(cause, 1.0)

    assert (exchange.error.code, exchange.error.__cause__) == ("EPIPE", cause)
    assert "Broken pipe" in str(exchange.error)
    assert (pair.ended(), pair.connection.dead) == (exchange, "lost")


def test_failure_without_a_number():
    """An OS error that says nothing counts as a reset."""
    pair = Pair()

    pair.connection.receive_error(OSError("proactor said no"), 1.0)

    assert pair.connection.error.code == "ECONNRESET"
    assert "proactor said no" in str(pair.connection.error)


@pytest.mark.parametrize("stray", [OK, b"x"])
def test_bytes_that_nobody_asked_for(stray):
    """Application data while idle make the connection dead, not an error of anybody's."""
    pair = Pair()

    pair.answer(stray)

    assert (pair.connection.dead, pair.connection.error, pair.connection.ended) == ("unsolicited_data", None, None)


def test_bytes_outside_tls():
    """What is no TLS record is never data."""
    pair = Pair()
    exchange = pair.start()
    pair.peer.send_outside_tls(OK)

    pair.turn()

    assert isinstance(exchange.error, RemoteProtocolError)
    assert not exchange.received


def test_drop():
    """An exchange that nobody wants any more takes the connection with it, without a farewell."""
    pair = Pair()
    exchange = pair.start()

    pair.connection.drop(exchange, 2.0, "dropped")
    pair.connection.drop(exchange, 3.0, "again")
    pair.turn()

    assert (pair.ended(), pair.connection.dead, exchange.ended_at) == (exchange, "dropped", 2.0)
    assert isinstance(exchange.error, LocalProtocolError)
    assert pair.peer.client_ended is None


def test_close_says_goodbye_once():
    """A closed connection has close_notify to send, and its first reason stays."""
    pair = Pair()

    pair.connection.close("idle")
    pair.connection.close("again")
    pair.turn()

    assert pair.peer.client_ended == "close_notify"
    assert pair.connection.dead == "idle"


def test_fail_from_outside():
    """Whoever owns the connection can end it with an error of any kind."""
    pair = Pair()
    exchange = pair.start()

    pair.connection.fail(AgentClosed("closed"), 1.0, "agent_closed")

    assert type(exchange.error) is AgentClosed
    assert (pair.ended(), pair.connection.dead) == (exchange, "agent_closed")
    assert pair.connection.error is exchange.error


# -- Timers


def test_deadline_is_the_earliest():
    """The exchange's deadline or the inactivity of the socket, whichever comes first."""
    pair = Pair(timeout=5, timeouts=Timeouts(response=3, read=8))
    assert pair.connection.next_deadline() == 5.0
    exchange = pair.start(now=1.0)
    assert pair.connection.next_deadline() == 4.0
    pair.answer(OK[:-1], now=2.0)
    assert pair.connection.next_deadline() == 7.0

    pair.connection.handle_timeout(6.9)
    assert exchange.error is None
    pair.connection.handle_timeout(7.0)

    assert isinstance(exchange.error, InactivityTimeout)
    assert exchange.error.phase == "receive"


def test_timeout_of_the_exchange():
    """What is overdue fails with its own error; the connection goes."""
    pair = Pair(timeouts=Timeouts(response=3))
    exchange = pair.start()

    pair.connection.handle_timeout(2.9)
    assert pair.connection.dead is None
    pair.connection.handle_timeout(3.0)

    assert isinstance(exchange.error, ResponseTimeout)
    assert (pair.ended(), pair.connection.dead) == (exchange, "timeout")


def test_no_limits_no_deadline():
    """Without limits nothing is ever due."""
    pair = Pair(timeouts=None)
    pair.start()

    assert pair.connection.next_deadline() == float("inf")
    pair.connection.handle_timeout(1e9)
    assert pair.connection.dead is None


def test_idle_connection_that_was_silent_for_too_long():
    """An idle one closes in good order."""
    pair = Pair(timeout=5)

    pair.connection.handle_timeout(4.9)
    assert pair.connection.dead is None
    pair.connection.handle_timeout(5.0)
    pair.turn()

    assert (pair.connection.dead, pair.connection.error) == ("timeout", None)
    assert pair.peer.client_ended == "close_notify"


# -- Sessions


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_sessions_are_news(version):
    """Sessions that came are kept for the agent."""
    pair = Pair(tls={"min_version": version, "max_version": version})

    assert [session.protocol_version for session in pair.connection.sessions] == [version] * (
        2 if version == "TLSv1.3" else 1
    )


def test_sessions_are_bounded():
    """A flood of tickets is not kept."""
    pair = Pair()
    session = pair.connection.sessions[0]

    for _ in range(2 * MAX_SESSIONS):
        pair.connection.session_received(session)

    assert len(pair.connection.sessions) == MAX_SESSIONS


# -- Raw


def test_raw_connection_carries_bytes():
    """Without HTTP, plaintext goes to the raw sink, and what is written to the peer, cut to what TLS takes."""
    stream = RawStream()
    pair = Pair(raw=stream)
    assert pair.connection.info.http_engine is None
    pair.answer(b"hello")

    pair.connection.write(b"", 1.0)
    pair.connection.write(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (3 * PIECE), 1.0)
    pair.connection.write(b"x" * (3 * PIECE), 1.0)
    pair.turn()
    pair.peer.close()
    pair.turn()

    assert stream.take(9, pair.connection) == b"hello"
    assert stream.take(9, pair.connection) == b""
    assert pair.peer.requests[0].body == b"x" * (3 * PIECE)
    assert pair.connection.dead == "peer"


def test_silent_raw_connection():
    """`timeout` is an error of a raw connection: somebody waits for it."""
    pair = Pair(raw=RawStream(), timeout=5)

    pair.connection.handle_timeout(5.0)

    assert isinstance(pair.connection.error, InactivityTimeout)


# -- Bodies that wait for a 100 (Continue)


def test_head_goes_first_where_the_body_waits():
    """With the expectation only the head goes out; the driver sends the body once it is let go."""
    pair = Pair()
    exchange = pair.start("POST", b"abc", expect_continue=True)
    assert (pair.peer.outstanding.header("expect"), pair.peer.outstanding.complete) == ("100-continue", False)
    assert (exchange.holding, pair.connection.next_deadline()) == (True, 1.0)

    pair.answer(b"HTTP/1.1 100 Continue\r\n\r\n")

    assert not exchange.holding
    assert pair.connection.send_body(exchange, b"abc", 0.5)
    pair.connection.end_body(exchange, 0.5)
    pair.turn()
    assert (pair.peer.outstanding.body, pair.peer.outstanding.complete) == (b"abc", True)


def test_body_that_need_not_wait():
    """With a wait of 0 the driver may send at once."""
    pair = Pair(http1=Http1Options(expect_continue_wait=0))

    exchange = pair.start("POST", b"abc", expect_continue=True)

    assert pair.peer.outstanding.header("expect") == "100-continue"
    assert not exchange.holding
    assert pair.connection.send_body(exchange, b"abc", 0.0)


def test_end_of_the_wait_is_news_for_who_sends():
    """The wait ends by the connection's timer, without an error; inactivity counts on."""
    pair = Pair(timeout=5)
    exchange = pair.start("POST", b"abc", expect_continue=True)

    pair.connection.handle_timeout(1.0)

    assert (exchange.holding, exchange.nudged, exchange.error) == (False, True, None)
    assert pair.connection.next_deadline() == 5.0


@pytest.mark.parametrize("status", [b"200 OK", b"417 Expectation Failed"])
def test_final_response_in_place_of_a_100(status):
    """It is the response; nothing of the body is sent, and the connection, to which one was promised, goes."""
    pair = Pair()
    exchange = pair.start("POST", b"abc", expect_continue=True)

    pair.answer(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nno" % status)

    assert (pair.ended(), exchange.complete, exchange.chunks) == (exchange, True, [b"no"])
    assert pair.connection.dead == "early_response"
    assert not pair.connection.send_body(exchange, b"abc", 1.0)
    assert pair.peer.received == len(exchange.head.rendered)


def test_error_stops_the_upload_before_it_is_complete():
    """From the head of an error on no more of the body is taken; its own body is still read."""
    pair = Pair()
    exchange = pair.start("POST", iter(()))
    assert pair.connection.send_body(exchange, b"one", 0.0)
    pair.turn()

    pair.answer(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nb")

    assert not pair.connection.send_body(exchange, b"two", 0.0)
    pair.connection.end_body(exchange, 0.0)
    pair.turn()
    assert (pair.peer.outstanding.body, pair.peer.outstanding.complete) == (b"one", False)
    pair.answer(b"ig")
    assert (exchange.complete, pair.connection.dead) == (True, "early_response")


def test_response_between_the_last_byte_and_the_end_of_the_body():
    """A body of known length is complete with its last byte: an answer that comes then leaves the connection usable."""
    pair = Pair()
    exchange = pair.start("POST", b"x" * (PIECE + 1))
    for piece in exchange.body.pieces():
        assert pair.connection.send_body(exchange, piece, 0.0)
    pair.turn()
    assert pair.peer.outstanding.complete

    pair.answer(OK)

    assert (exchange.complete, pair.connection.dead) == (True, None)
    pair.connection.end_body(exchange, 0.0)
    pair.ended()
    pair.start()
    assert pair.connection.requests == 2


# -- Other protocols


UPGRADE = {"headers": {"Upgrade": "echo", "Connection": "upgrade"}}
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n"


def switched(answer=SWITCH, *, method="GET", **options):
    """A connection whose protocol has just been switched."""
    pair = Pair(**options)
    exchange = pair.exchange(method, **({} if method == "CONNECT" else UPGRADE))
    exchange.awaiting = Awaiting.HEAD
    pair.connection.start(exchange, 0.0)
    pair.turn()
    pair.peer.send(answer)
    pair.turn()
    return pair, exchange


@pytest.mark.parametrize(("method", "answer"), [("GET", SWITCH), ("CONNECT", b"HTTP/1.1 200 Fine\r\n\r\n")])
def test_switch_leaves_the_connection_to_who_asked(method, answer):
    """After a switch the bytes are another protocol's, those that came with the head too; the exchange stays."""
    pair, exchange = switched(answer + b"first", method=method)
    connection = pair.connection
    assert (exchange.complete, exchange.switched, connection.exchange) == (True, connection, exchange)
    assert connection.reading_paused

    stream = connection.take_over()
    pair.answer(b"second")

    assert not connection.reading_paused
    assert [stream.take(100, connection) for _ in range(3)] == [b"first", b"second", None]
    assert (connection.ended, connection.dead) == (None, None)
    before = pair.peer.received
    connection.write(b"hello", 1.0)
    pair.turn()
    assert pair.peer.received == before + 5


def test_switched_connection_is_hung_up():
    """Its end in good order lets the exchange go, once."""
    pair, exchange = switched()
    pair.connection.take_over()

    for _ in range(2):
        pair.connection.hang_up("close")
        pair.turn()

    assert (pair.ended(), pair.ended()) == (exchange, None)
    assert (pair.connection.dead, exchange.error) == ("close", None)
    assert pair.peer.client_ended == "close_notify"


@pytest.mark.parametrize("ending", ["close", "drop"])
@pytest.mark.parametrize("taken", [True, False])
def test_switched_connection_that_the_peer_ends(ending, taken):
    """What came before the end can be had, then the end; the exchange is let go at once, taken over or not."""
    pair, exchange = switched()
    if taken:
        pair.connection.take_over()
    pair.peer.send(b"bye")
    getattr(pair.peer, ending)()
    pair.turn()
    if ending == "drop":
        pair.connection.receive_eof(1.0)

    stream = pair.connection.take_over()
    assert stream.take(100, pair.connection) == b"bye"
    if ending == "close":
        assert stream.take(100, pair.connection) == b""
    else:
        with pytest.raises(ConnectionLost):
            stream.take(100, pair.connection)
    assert pair.ended() is exchange
    assert pair.connection.dead is not None
    pair.connection.hang_up("close")
    assert pair.ended() is None


def test_switched_connection_that_is_silent():
    """Inactivity is the one timeout that is left, and an error for who reads."""
    pair, exchange = switched(timeout=5, timeouts=Timeouts(read=1, response=1, total=2))
    stream = pair.connection.take_over()
    pair.connection.write(b"x", 3.0)
    assert pair.connection.next_deadline() == 8.0
    pair.connection.handle_timeout(7.9)
    assert pair.connection.dead is None

    pair.connection.handle_timeout(8.0)

    with pytest.raises(InactivityTimeout):
        stream.take(1, pair.connection)
    assert (pair.ended(), pair.connection.dead, exchange.error) == (exchange, "timeout", None)


def test_switch_between_the_last_byte_and_the_end_of_the_body():
    """A body of known length is complete with its last byte: a switch may come then, and no clock starts afterwards."""
    pair = Pair()
    exchange = pair.exchange("POST", b"x" * (PIECE + 1), **UPGRADE)
    exchange.awaiting = Awaiting.HEAD
    pair.connection.start(exchange, 0.0)
    for piece in exchange.body.pieces():
        assert pair.connection.send_body(exchange, piece, 0.0)
    pair.turn()
    pair.answer(SWITCH)
    assert exchange.switched is pair.connection

    assert not pair.connection.send_body(exchange, b"", 1.0)
    pair.connection.end_body(exchange, 1.0)

    assert pair.connection.next_deadline() == math.inf


def test_switched_connection_that_is_dropped():
    """One that nobody takes over goes with its response."""
    pair, exchange = switched()

    pair.connection.drop(exchange, 1.0, "dropped")

    assert (pair.ended(), pair.connection.dead, exchange.error) == (exchange, "dropped", None)


def test_switch_that_cannot_be_handed_over():
    """Where a whole response is waited for, a switch is an error, and the connection goes."""
    pair = Pair()
    exchange = pair.start(**UPGRADE)

    pair.answer(SWITCH)

    assert pair.ended() is exchange
    assert isinstance(exchange.error, LocalProtocolError)
    assert pair.connection.dead == "error"
    assert pair.connection.stream is None
