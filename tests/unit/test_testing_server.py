"""
The embedded server, with the standard library as its client: ssl, http.client and bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key, pkcs12
from cryptography.x509 import load_pem_x509_certificate

from tlsagent import Agent, ConnectionOptions, create_secure_context
from tlsagent.errors import OptionError
from tlsagent.testing import AsyncServer, Authority, ClientHello, Server, default_authority
from tlsagent.testing._link import reset_on_close

# An option that ssl cannot honour: the server then stands on its other floor.
ON_OPENSSL = {"honor_cipher_order": True}
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def client_context(server, version=None, credentials=None, tmp_path=None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=server.ca_pem.decode())
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if credentials is not None:
        path = tmp_path / "client.pem"
        path.write_bytes(credentials.key_pem + credentials.cert_pem)
        context.load_cert_chain(path)
    return context


class Client:
    """A TLS connection that sends and receives bytes."""

    def __init__(self, server, context=None, *, session=None, name="localhost", timeout=5.0) -> None:
        context = context or client_context(server)
        self.tcp = socket.create_connection(("127.0.0.1", server.port), timeout=timeout)
        try:
            self.tls = context.wrap_socket(self.tcp, server_hostname=name, session=session, suppress_ragged_eofs=False)
        except BaseException:
            self.tcp.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.tls.close()

    def get(self, path: str = "/hello", *fields: str) -> bytes:
        """Send a GET and return the head of the response with what came along."""
        self.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode())
        return self.tls.recv(65_536)

    def send(self, data: bytes) -> None:
        self.tls.sendall(data)

    def read_until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            more = self.tls.recv(65_536)
            assert more, f"the connection ended after {data!r}"
            data += more
        return data

    def ending(self) -> str:
        """Tell from the bare TCP connection how the server ended it; no response may be on its way."""
        try:
            data = socket.socket.recv(self.tls, 1_000)
        except ConnectionResetError:
            return "reset"
        return "close_notify" if data else "eof"

    def read_to_end(self) -> bytes:
        """Read up to a proper close_notify; a bare FIN raises ssl.SSLEOFError."""
        data = b""
        while more := self.tls.recv(65_536):
            data += more
        return data


@contextlib.contextmanager
def browser(server, context=None):
    """An http.client connection: a client that knows HTTP."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", server.port, context=context or client_context(server), timeout=5
    )
    try:
        yield connection
    finally:
        connection.close()


def ask(connection, method="GET", path="/hello", **arguments):
    connection.request(method, path, **arguments)
    response = connection.getresponse()
    return response, response.read()


def closed(server) -> bool:
    return server.wait_for(lambda s: s.stats.open_connections == 0)


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        yield server


# --- HTTP ----------------------------------------------------------------------------------------------------


def test_requests_share_a_connection(server):
    """Keep-alive is on: requests of all shapes are served one after the other on one connection."""
    with browser(server) as connection:
        assert ask(connection)[1] == b"Hello, world"
        assert ask(connection, path="/chunked")[1] == b"one\ntwo\nthree\n"
        assert len(ask(connection, path="/bytes/300000")[1]) == 300_000
        response, body = ask(connection, "HEAD", "/bytes/10")
        assert (response.headers["content-length"], body) == ("10", b"")
        assert ask(connection, path="/status/204")[0].status == 204
        told = json.loads(ask(connection, path="/connection")[1])

    assert told["request_number"] == 6


def test_bodies_are_taken_with_length_and_in_chunks(server):
    """A request body arrives whole whether its length is known or not."""
    with browser(server) as connection:
        assert ask(connection, "POST", "/echo", body=b"x" * 200_000)[1] == b"x" * 200_000
        assert ask(connection, "POST", "/echo", body=iter([b"a", b"bc"]), encode_chunked=True)[1] == b"abc"


def test_a_small_response_is_one_record(server):
    """Head and body of a response that comes in one piece leave in one write."""
    with Client(server) as client:
        data = client.get("/hello")

    assert data.endswith(b"\r\n\r\nHello, world")


def test_trailers_go_both_ways(server):
    """Trailer fields of a chunked request are recorded and can be sent back after the response."""
    with Client(server) as client:
        client.send(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n"
        )
        data = client.read_until(b"x-sum: 7\r\n\r\n")

    assert b"2\r\nhi\r\n0\r\nx-sum: 7" in data
    [request] = server.connections[-1].requests
    assert request.trailers == (("X-Sum", "7"),)
    assert request.body == b"hi"


@pytest.mark.parametrize("early", [b"", b"first"])
@pytest.mark.parametrize("request_line", [b"GET /upgrade", b"CONNECT a.test:443"])
def test_protocols_are_switched(server, request_line, early):
    """A response of 101, or of 2xx to CONNECT, makes of the connection a stream of bytes, early ones included."""
    fields = b"Upgrade: echo\r\nConnection: upgrade\r\n" if request_line.startswith(b"GET") else b""
    with Client(server) as client:
        client.send(request_line + b" HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + early)
        head = client.read_until(b"\r\n\r\n" + early)
        client.send(b"hello")
        echoed = client.read_until(b"hello")
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        again = client.read_until(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 101" if fields else b"HTTP/1.1 200")
    assert (b"upgrade: echo" in head.lower()) == bool(fields)
    assert (echoed, again) == (b"hello", b"GET / HTTP/1.1\r\n\r\n")


def test_application_ends_what_it_switched_to():
    """The last "http.response.body" of a switched connection closes it in good order."""

    async def once(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 101, "headers": [(b"upgrade", b"x")]})
        await send({"type": "http.response.body", "body": b"bye", "more_body": False})

    with Server(app=once) as server, Client(server) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")

        assert client.read_to_end().endswith(b"\r\n\r\nbye")


def test_continue_is_sent_when_the_application_wants_the_body(server):
    """Expect: 100-continue gets its 100 from an application that reads, and only then the final response."""
    with Client(server) as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        interim = client.read_until(b"\r\n\r\n")
        client.send(b"hi")
        final = client.read_until(b"0\r\n\r\n")

    assert interim.startswith(b"HTTP/1.1 100 ")
    assert b"hi" in final


def test_continue_is_not_sent_by_an_application_that_declines(server):
    """A final answer in place of the 100 closes the connection: nobody knows whether the body will follow."""
    with Client(server) as client:
        client.send(b"POST /status/413 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        answer = client.read_to_end()

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


def test_an_answer_survives_an_upload_that_goes_on(server):
    """A response that ends the connection in the middle of an upload arrives before the connection does end."""
    with Client(server) as client:
        client.send(b"POST /close HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(20_000))
        client.send(bytes(20_000))
        answer = client.read_to_end()

    assert answer.endswith(b"Hello, world")


def test_a_body_nobody_read_does_not_spoil_the_next_request(server):
    """A request whose body the application ignores is read to its end, and the connection goes on."""
    with browser(server) as connection:
        assert ask(connection, "POST", "/hello", body=bytes(500_000))[1] == b"Hello, world"
        assert json.loads(ask(connection, path="/connection")[1])["request_number"] == 2


def test_pipelined_requests_are_answered_in_order(server):
    """Requests that come in one piece get their responses one after the other."""
    with Client(server) as client:
        client.send(
            b"GET /status/201 HTTP/1.1\r\nHost: a\r\n\r\nGET /delay/0.01 HTTP/1.1\r\nHost: a\r\n\r\n"
            b"GET /close HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        answers = client.read_to_end()

    assert answers.startswith(b"HTTP/1.1 201 ")
    assert answers.count(b"HTTP/1.1 200") == 2
    assert answers.count(b"Hello, world") == 2


def test_an_old_client_is_served_once(server):
    """HTTP/1.0 gets an answer without chunks, and the connection ends in order."""
    with Client(server) as client:
        client.send(b"GET /chunked HTTP/1.0\r\n\r\n")
        answer = client.read_to_end()

    assert answer.endswith(b"\r\n\r\none\ntwo\nthree\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [(b"NONSENSE\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\n\r\n", b"400"), (b"GET /" + b"x" * 70_000, b"431")],
)
def test_a_broken_request_is_refused(server, request_, status):
    """What is not HTTP gets an error response and the end of the connection."""
    with Client(server) as client:
        client.send(request_)
        answer = client.read_to_end()

    assert answer.split()[1] == status


def test_an_absolute_target_is_understood(server):
    """The absolute form of a target means its path (RFC 9112 3.2.2)."""
    with Client(server) as client:
        answer = client.get("https://localhost/status/202?x=1")

    assert answer.startswith(b"HTTP/1.1 202 ")
    assert server.connections[-1].requests[0].target == "https://localhost/status/202?x=1"


# --- Applications --------------------------------------------------------------------------------------------


def test_the_scope_is_asgi_3():
    """An application is told method, path, query and headers the ASGI way, and the peers' addresses."""
    seen = []

    async def application(scope, receive, send):
        seen.append(scope)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"ok"})

    with Server(app=application) as server, Client(server) as client:
        client.get("/a%20b?x=%20", "X-One: 1")

    [scope] = seen
    assert (scope["method"], scope["path"], scope["raw_path"]) == ("GET", "/a b", b"/a%20b")
    assert (scope["query_string"], scope["scheme"], scope["http_version"]) == (b"x=%20", "https", "1.1")
    assert (b"x-one", b"1") in scope["headers"]
    assert scope["server"] == ("127.0.0.1", server.port)
    assert scope["asgi"]["version"] == "3.0"
    assert "http.response.trailers" in scope["extensions"]


def test_a_client_that_leaves_is_reported_to_the_application():
    """receive() answers http.disconnect once the client has closed, and sending is harmless from then on."""
    seen = []
    done = threading.Event()

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        seen.extend([await receive(), await receive()])
        await send({"type": "http.response.body", "body": b"y"})
        done.set()

    with Server(app=application) as server:
        with Client(server) as client:
            client.get()
        assert done.wait(5)

    assert seen == [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]


def test_the_end_of_the_response_is_a_disconnect_too():
    """An application that asks for more after its response learns that there is nothing more to come."""
    seen = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
        seen.extend([(await receive())["type"], (await receive())["type"]])

    with Server(app=application) as server, Client(server) as client:
        client.get()
        client.get()

    assert seen[:2] == ["http.request", "http.disconnect"]


def test_an_application_that_fails_early_is_a_500(caplog):
    """An exception before the response is a 500 for the client and an error in the log for the developer."""

    async def application(scope, receive, send):
        raise LookupError("nothing here")

    with Server(app=application) as server, Client(server) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = client.read_to_end()

    assert answer.startswith(b"HTTP/1.1 500 ")
    assert "nothing here" in caplog.text


@pytest.mark.parametrize("fault", ["raises", "returns"])
def test_an_application_that_fails_late_breaks_the_connection(caplog, fault):
    """A response that cannot be completed never looks like a complete one."""

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hel", "more_body": True})
        if fault == "raises":
            raise LookupError("nothing here")

    with Server(app=application) as server, Client(server) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises((ssl.SSLEOFError, ConnectionError)):
            client.read_to_end()

    assert "the application" in caplog.text


def test_a_message_out_of_order_is_the_applications_error(caplog):
    """A body before the start of the response raises in the application."""

    async def application(scope, receive, send):
        await send({"type": "http.response.body", "body": b"x"})

    with Server(app=application) as server, Client(server) as client:
        assert client.get().startswith(b"HTTP/1.1 500 ")

    assert "unexpected ASGI message" in caplog.text


def test_an_application_waits_for_a_client_that_reads_slowly():
    """send() returns only when the client takes what was sent: no endless buffer."""
    some, everything = threading.Event(), threading.Event()

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        for _ in range(1_000):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
            some.set()
        everything.set()

    with Server(app=application) as server, Client(server) as client:
        client.get()
        assert some.wait(5)
        assert not everything.wait(0.3)


def test_reading_stops_for_an_application_that_is_busy():
    """An upload that nobody takes is held back in the client, and goes on once the application reads."""
    go = threading.Event()

    async def application(scope, receive, send):
        while not go.is_set():  # noqa: ASYNC110 - the event is a thread's
            await asyncio.sleep(0.005)
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": str(size).encode()})

    upload = bytes(40_000_000)
    with Server(app=application) as server, Client(server) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40000000\r\n\r\n")
        sender = threading.Thread(target=client.send, args=(upload,), daemon=True)
        sender.start()
        sender.join(0.5)
        held_back = sender.is_alive()
        taken = server.connections[0].requests[0].body_length
        go.set()
        sender.join(10)
        answer = client.tls.recv(1_000)

    assert held_back
    assert taken < 1_000_000
    assert b"40000000" in answer


# --- Records -------------------------------------------------------------------------------------------------


def test_a_connection_leaves_a_record():
    """The record tells the handshake, the requests and the end of a connection from the server's side."""
    before = time.time()
    with Server() as server:
        with browser(server, client_context(server, ssl.TLSVersion.TLSv1_3)) as connection:
            ask(connection, "POST", "/echo?q=1", body=b"hello", headers={"X-Case": "Kept", "x-case": "twice"})
        assert closed(server)
        [record] = server.connections

    assert (record.id, record.version, record.session_reused, record.alpn) == (1, "TLSv1.3", False, None)
    assert record.cipher == "TLS_AES_256_GCM_SHA384"
    assert record.client_certificate is None
    assert before <= record.opened_at <= record.closed_at
    [request] = record.requests
    assert (request.method, request.target, request.body, request.body_length) == ("POST", "/echo?q=1", b"hello", 5)
    assert ("X-Case", "Kept") in request.headers
    assert request.header("X-CASE") == "Kept, twice"
    assert request.header("absent") is None
    assert request.complete


def test_the_client_hello_is_kept():
    """The first record is kept raw; taken apart it shows SNI, ALPN and whether a session was offered."""
    with Server() as server:
        context = client_context(server, ssl.TLSVersion.TLSv1_3)
        context.set_alpn_protocols(["h3", "http/1.1"])
        with Client(server, context) as client:
            client.get()
            session = client.tls.session
        with Client(server, context, session=session) as client:
            client.get()
        first, second = server.connections

    hellos = [ClientHello.parse(record.client_hello) for record in (first, second)]
    assert [hello.server_name for hello in hellos] == ["localhost", "localhost"] == [first.sni, second.sni]
    assert hellos[0].alpn_protocols == ("h3", "http/1.1")
    assert [hello.offers_ticket for hello in hellos] == [False, True]
    assert 0x1302 in hellos[0].cipher_suites
    assert first.alpn == "http/1.1"


def test_a_client_hello_that_cannot_be_followed_is_none():
    """Cut or foreign bytes are no ClientHello, at whatever place they are cut."""
    with Server() as server:
        with Client(server):
            pass
        assert server.wait_for(lambda s: s.connections[0].client_hello)
        whole = server.connections[0].client_hello

    assert ClientHello.parse(whole) is not None
    assert ClientHello.parse(b"GET / HTTP/1.1\r\n\r\n") is None
    assert all(ClientHello.parse(whole[:size]) is None for size in range(60))


@pytest.mark.parametrize("ending", ["close_notify", "eof", "reset"])
def test_the_record_tells_how_the_client_ended(ending):
    """close_notify, a bare FIN and a reset are told apart."""
    with Server() as server:
        client = Client(server)
        client.get()
        if ending == "close_notify":
            client.tls.unwrap().close()
        elif ending == "eof":
            client.tls.shutdown(socket.SHUT_WR)
        else:
            reset_on_close(client.tls)
        client.tls.close()
        assert closed(server)

        assert server.connections[0].closed_by == ending


@pytest.mark.parametrize("how", [None, "close_notify", "eof", "reset"])
def test_the_server_ends_connections_as_told(how):
    """close_connections() closes in order, by a bare FIN or by a reset, and the record says that the server did."""
    with Server() as server, Client(server) as client:
        client.get()
        server.close_connections(how)
        assert client.ending() == (how or "close_notify")
        assert closed(server)

        assert server.connections[0].closed_by == "server"


def test_connections_can_be_dropped_without_close_notify():
    """`drop_without_close_notify` makes a truncation of every end that the server decides on."""
    with Server(drop_without_close_notify=True) as server, Client(server) as client:
        client.send(b"GET /close HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(ssl.SSLEOFError):
            client.read_to_end()


def test_the_totals_count_on_when_records_are_dropped():
    """Records are bounded; totals are not."""
    with Server(record_limit=2) as server:
        for _ in range(4):
            with browser(server) as connection:
                for _ in range(3):
                    ask(connection)
        assert closed(server)
        stats, records = server.stats, server.connections

    assert (stats.connections, stats.requests, stats.handshakes_full) == (4, 12, 4)
    assert [record.id for record in records] == [3, 4]
    assert [(len(record.requests), record.request_count) for record in records] == [(2, 3), (2, 3)]


def test_a_long_body_is_kept_in_part():
    """The record holds the first 64 KiB of a body and the length of all of it."""
    with Server() as server, browser(server) as connection:
        ask(connection, "POST", "/hello", body=b"x" * 100_000)
        ask(connection)
        request = server.connections[0].requests[0]

    assert (len(request.body), request.body_length) == (65_536, 100_000)


def test_waiting_gives_up():
    """wait_for() answers False when the condition does not come true in time."""
    with Server() as server:
        assert server.wait_for(lambda s: s.stats.requests == 1, timeout=0.01) is False


# --- TLS -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("settings", "resumed"),
    [
        ({}, True),
        ({"session_ids": True}, True),
        ({"tickets": 0}, False),
        ({"tickets": 3}, True),
        ({"options": ON_OPENSSL}, True),
        ({"options": ON_OPENSSL, "session_ids": True}, True),
        ({"options": ON_OPENSSL, "tickets": 0}, False),
    ],
)
def test_sessions_are_resumed_until_the_keys_rotate(version, settings, resumed):
    """Tickets and session ids resume in both versions, unless tickets are 0 or the server has forgotten them."""
    with Server(**settings) as server:
        context = client_context(server, version)
        sessions = [None]
        for rotate in (False, False, True):
            if rotate:
                server.rotate_ticket_keys()
            with Client(server, context, session=sessions[-1]) as client:
                client.get()
                sessions.append(client.tls.session)
                client.tls.unwrap()  # dropped without close_notify, a session that the server keeps may be forgotten

        expected = [False, resumed, False]
        assert [record.session_reused for record in server.connections] == expected
        assert server.stats.handshakes_resumed == sum(expected)
        assert server.stats.handshakes_full == 3 - sum(expected)


@pytest.mark.parametrize("options", [None, ON_OPENSSL])
def test_session_ids_replace_tickets(options):
    """With `session_ids` a TLS 1.2 session carries no ticket: the server keeps it."""
    for session_ids in (False, True):
        with (
            Server(options, session_ids=session_ids) as server,
            Client(server, client_context(server, ssl.TLSVersion.TLSv1_2)) as client,
        ):
            assert client.tls.session.has_ticket is not session_ids


@pytest.mark.parametrize(("refusal", "error"), [("alert", ssl.SSLError), ("close", (ssl.SSLEOFError, OSError))])
def test_resumption_can_be_answered_by_a_slap(refusal, error):
    """A client that offers a ticket gets an alert or a closed socket; one without is served."""
    with Server(refuse_resumption=refusal) as server:
        context = client_context(server)
        with Client(server, context) as client:
            client.get()
            session = client.tls.session

        with pytest.raises(error) as caught:
            Client(server, context, session=session)
        with Client(server, context) as client:
            client.get()

        assert ("ALERT_HANDSHAKE_FAILURE" in str(caught.value).upper().replace(" ", "_")) is (refusal == "alert")
        assert server.connections[1].handshake_error == "resumption refused on request"
        assert server.stats.handshakes_failed == 1


@pytest.mark.parametrize("options", [None, ON_OPENSSL])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_certificate_is_demanded(version, options, tmp_path):
    """With "demand" a client without a certificate fails, and the certificate of one that has it is recorded."""
    with Server(options, request_cert="demand") as server:
        credentials = server.authority.issue("me@a.test", client=True)
        with Client(server, client_context(server, version, credentials, tmp_path)) as client:
            client.get()
        # In TLS 1.3 the client learns of it with its first read.
        with pytest.raises(ssl.SSLError), Client(server, client_context(server, version)) as client:
            client.get()

        assert server.connections[0].client_certificate == credentials.leaf_der
        assert server.wait_for(lambda s: s.connections[1].handshake_error == "PEER_DID_NOT_RETURN_A_CERTIFICATE")


def test_an_ocsp_response_is_stapled_for_those_who_ask():
    """`ocsp_response` comes byte for byte with the handshake of a client that asks, and with no other."""
    with Server(ocsp_response=b"\x30\x03\x0a\x01\x00") as server, Agent(ca=server.ca_pem) as agent:
        asked, without = (
            agent.request("GET", server.url + "/hello", options={"request_ocsp": said}).connection
            for said in (True, False)
        )

        assert (asked.ocsp_response, without.ocsp_response) == (b"\x30\x03\x0a\x01\x00", None)


@pytest.mark.parametrize("options", [None, ON_OPENSSL])
def test_a_client_certificate_is_welcome(options, tmp_path):
    """With True a client may do without a certificate, but one that it shows must verify."""
    with Server(options, request_cert=True) as server:
        with Client(server) as client:
            client.get()
        stranger = Authority().issue("me@a.test", client=True)
        context = client_context(server, None, stranger, tmp_path)
        with pytest.raises(ssl.SSLError), Client(server, context) as client:
            client.get()

        assert server.connections[0].client_certificate is None


def test_client_certificates_are_judged_by_client_ca(tmp_path):
    """`client_ca` names the authority of the clients, which need not be the server's."""
    other = Authority()
    with Server(request_cert="demand", client_ca=other.ca_pem) as server:
        context = client_context(server, None, other.issue("me@a.test", client=True), tmp_path)
        with Client(server, context) as client:
            assert client.get().startswith(b"HTTP/1.1 200")


def test_versions_are_bounded():
    """A server of one version refuses clients of the other."""
    with Server(max_version="TLSv1.2") as server:
        with Client(server) as client:
            assert client.tls.version() == "TLSv1.2"
        with pytest.raises(ssl.SSLError):
            Client(server, client_context(server, ssl.TLSVersion.TLSv1_3))

        assert server.wait_for(lambda s: s.stats.handshakes_failed == 1)


@pytest.mark.parametrize("options", [None, ON_OPENSSL])
def test_alpn_follows_the_servers_list(options):
    """The server picks by its own preference, and ignores ALPN if it has no list or nothing of the client's in it."""
    for offered, chosen in ((("x", "http/1.1"), "x"), ((), None), (("y",), None)):
        with Server(options, alpn_protocols=offered) as server:
            context = client_context(server)
            context.set_alpn_protocols(["http/1.1", "x"])
            with Client(server, context) as client:
                assert client.tls.selected_alpn_protocol() == chosen


STALLS_12 = ["server_hello", "certificate", "server_key_exchange", "certificate_request", "server_hello_done"]
STALLS_13 = ["server_hello", "encrypted_extensions", "certificate_request", "certificate", "certificate_verify"]


@pytest.mark.parametrize(
    ("version", "point"),
    [
        *((ssl.TLSVersion.TLSv1_2, point) for point in (*STALLS_12, "new_session_ticket", "finished")),
        *((ssl.TLSVersion.TLSv1_3, point) for point in (*STALLS_13, "finished")),
    ],
)
@pytest.mark.parametrize("options", [None, ON_OPENSSL])
def test_the_server_stalls_at_each_handshake_message(version, point, options):
    """A client waits in vain from the given message on, in both versions; the bytes before it do arrive."""
    with Server(options, stall_at=point, request_cert=True) as server, pytest.raises(TimeoutError):
        Client(server, client_context(server, version), timeout=0.1)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("point", ["certificate_request", "hello_retry_request"])
def test_a_message_that_does_not_occur_stalls_nothing(version, point):
    """Without a request for a certificate there is no message to stall at."""
    with Server(stall_at=point) as server, Client(server, client_context(server, version)) as client:
        assert client.get().endswith(b"Hello, world")


@pytest.mark.parametrize("options", [None, ON_OPENSSL])
@pytest.mark.parametrize("point", ["certificate", "certificate_verify"])
def test_a_resumed_handshake_has_no_certificate_to_stall_at(point, options):
    """A resumed handshake passes a server that stalls at the certificate."""
    with Server(options) as server:
        context = client_context(server, ssl.TLSVersion.TLSv1_3)
        with Client(server, context) as client:
            client.get()
            session = client.tls.session
        server.reconfigure(stall_at=point)
        with Client(server, context, session=session) as client:
            assert client.get().endswith(b"Hello, world")


def test_a_stall_at_the_ticket_lets_the_handshake_through():
    """In TLS 1.3 the tickets come after the handshake: the client is connected, and then hears nothing."""
    with (
        Server(stall_at="new_session_ticket") as server,
        Client(server, client_context(server, ssl.TLSVersion.TLSv1_3), timeout=0.1) as client,
        pytest.raises(TimeoutError),
    ):
        client.get()


def test_a_stall_at_tickets_that_are_not_sent_stalls_nothing():
    """A server without tickets has none to stall at; the application's records are not taken for one."""
    with Server(stall_at="new_session_ticket", tickets=0) as server, Client(server) as client:
        assert client.get().endswith(b"Hello, world")


def test_a_hello_retry_request_can_be_stalled_at():
    """A client whose key share does not suit waits for the retry that never comes."""
    with Server(stall_at="hello_retry_request", ecdh_curve="secp521r1") as server, pytest.raises(TimeoutError):
        Client(server, client_context(server, ssl.TLSVersion.TLSv1_3), timeout=0.1)


def test_what_is_not_tls_is_recorded_as_a_failure():
    """Plain HTTP on the TLS port fails the handshake, and the record says how."""
    with Server() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            sock.recv(1_000)
        assert closed(server)

        [record] = server.connections
        assert record.handshake_error == "HTTP_REQUEST"
        assert record.client_hello.startswith(b"GET /")
        assert server.stats.handshakes_failed == 1


def test_faults_can_begin_later_without_touching_sessions():
    """A fault that is switched on by reconfigure() meets clients whose sessions are still good."""
    with Server() as server:
        context = client_context(server)
        with Client(server, context) as client:
            client.get()
            session = client.tls.session
        server.reconfigure(drop_without_close_notify=True)
        with Client(server, context, session=session) as client:
            client.send(b"GET /close HTTP/1.1\r\nHost: a\r\n\r\n")
            with pytest.raises(ssl.SSLEOFError):
                client.read_to_end()

        assert server.connections[1].session_reused


def test_settings_change_for_the_connections_to_come():
    """reconfigure() leaves open connections alone and presents the new certificate to the next."""
    with Server() as server, Client(server) as before:
        server.reconfigure(credentials=server.authority.issue("localhost", expired=True))

        assert before.get().startswith(b"HTTP/1.1 200")
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            Client(server)


# --- Options -------------------------------------------------------------------------------------------------


def test_options_are_read_as_a_server_reads_them(tmp_path):
    """cert, key, ca, request_cert, versions, ciphers and ALPN mean what they mean in Node's tls.createServer."""
    mine, clients = Authority(), Authority()
    credentials = mine.issue("localhost")
    options = {
        "cert": credentials.cert_pem,
        "key": credentials.key_pem,
        "ca": clients.ca_pem,
        "request_cert": True,
        "max_version": "TLSv1.2",
        "ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256",
        "alpn_protocols": ["x"],
    }
    with Server(options) as server:
        context = ssl.create_default_context(cadata=mine.ca_pem.decode())
        context.set_alpn_protocols(["x"])
        path = tmp_path / "client.pem"
        client_credentials = clients.issue("me@a.test", client=True)
        path.write_bytes(client_credentials.key_pem + client_credentials.cert_pem)
        with pytest.raises(ssl.SSLError):
            Client(server, context)
        context.load_cert_chain(path)
        with Client(server, context) as client:
            client.get()
        record = server.connections[-1]

    assert (record.version, record.cipher, record.alpn) == ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", "x")
    assert record.client_certificate == client_credentials.leaf_der


def test_reject_unauthorized_false_takes_clients_without_certificate():
    """As in Node, a certificate that is requested need not come if reject_unauthorized is False."""
    with Server({"request_cert": True, "reject_unauthorized": False}) as server, Client(server) as client:
        assert client.get().startswith(b"HTTP/1.1 200")


def test_an_encrypted_key_is_unlocked_by_its_passphrase():
    """`passphrase` opens the key that `cert` needs."""
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    credentials = default_authority().issue("localhost")
    key = load_pem_private_key(credentials.key_pem, None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    options = ConnectionOptions(cert=credentials.cert_pem, key=locked, passphrase="secret")

    with Server(options) as server, Client(server) as client:
        assert client.tls.getpeercert(binary_form=True) == credentials.leaf_der


@pytest.mark.parametrize(
    ("options", "settings", "text"),
    [
        ({"servername": "a.test"}, {}, "does not support servername"),
        (None, {"psk_identity_hint": "?"}, "no effect without psk_callback"),
        ({"psk_callback": lambda identity: None}, {"psk_identity_hint": "x" * 300}, "psk_identity_hint is too long"),
        ({"secure_protocol": "TLSv1_2_client_method"}, {}, "is for clients"),
        ({"secure_context": create_secure_context(secure_protocol="TLS_client_method")}, {}, "for clients"),
        ({"secure_context": create_secure_context()}, {"ciphers": "HIGH"}, "ciphers has no effect beside"),
        (ON_OPENSSL, {"tickets": 3}, "tickets must be None or 0"),
        (ON_OPENSSL, {"ciphers": "NOTHING"}, "ciphers"),
        ({"cert": default_authority().issue("a.test").cert_pem}, {}, "one cert with its key"),
        (None, {"stall_at": "goodbye"}, "stall_at must be one of"),
        (None, {"request_cert": "maybe"}, "request_cert must be one of"),
        (None, {"refuse_resumption": "maybe"}, "refuse_resumption must be one of"),
        (None, {"tickets": -1}, "at least 0"),
        (None, {"ciphers": "NOTHING"}, "cannot speak TLS this way"),
        (None, {"ecdh_curve": "nothing"}, "cannot speak TLS this way"),
        (None, {"min_version": "TLSv1.3", "max_version": "TLSv1.2"}, "above max_version"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options, settings, text):
    """An option that the server cannot carry out is an error when the server is made."""
    with pytest.raises(OptionError, match=text):
        Server(options, **settings)


def test_a_pfx_is_certificate_key_and_trust(tmp_path):
    """The server shows the certificate of a `pfx`, and its further certificates vouch for clients besides its own."""
    mine, clients = default_authority().issue("localhost"), Authority()
    bundle = pkcs12.serialize_key_and_certificates(
        None,
        load_pem_private_key(mine.key_pem, None),
        load_pem_x509_certificate(mine.cert_pem),
        [load_pem_x509_certificate(clients.ca_pem)],
        BestAvailableEncryption(b"secret"),
    )
    with Server({"pfx": bundle, "passphrase": "secret", "request_cert": True}) as server:
        for authority in (clients, server.authority):
            context = client_context(server, None, authority.issue("me@a.test", client=True), tmp_path)
            with Client(server, context) as client:
                assert client.get().startswith(b"HTTP/1.1 200")
                assert client.tls.getpeercert(binary_form=True) == mine.leaf_der


def test_secure_protocol_says_the_versions():
    """`secure_protocol` bounds the versions as min_version and max_version do."""
    with Server({"secure_protocol": "TLSv1_2_server_method"}) as server, Client(server) as client:
        assert client.tls.version() == "TLSv1.2"


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"ciphers": "TLS_CHACHA20_POLY1305_SHA256"}, {}),
        (None, {"ciphers": "TLS_CHACHA20_POLY1305_SHA256"}),
        (
            {
                "secure_context": create_secure_context(
                    cert=(CREDENTIALS := default_authority().issue("localhost")).cert_pem,
                    key=CREDENTIALS.key_pem,
                    ciphers="TLS_CHACHA20_POLY1305_SHA256",
                )
            },
            {},
        ),
    ],
    ids=["option", "keyword", "context"],
)
def test_tls13_suites_are_the_servers_too(options, settings):
    """Suites of TLS 1.3 can be chosen, as an option, as a keyword and in a context."""
    with Server(options, **settings) as server, Client(server) as client:
        client.get()
        assert client.tls.cipher()[0] == "TLS_CHACHA20_POLY1305_SHA256"


def test_secure_options_are_openssls():
    """`secure_options` reaches OpenSSL: without tickets a TLS 1.2 server keeps its sessions itself."""
    with (
        Server({"secure_options": int(ssl.OP_NO_TICKET)}) as server,
        Client(server, client_context(server, ssl.TLSVersion.TLSv1_2)) as client,
    ):
        assert not client.tls.session.has_ticket


def test_ecdh_curve_and_sigalgs_bound_what_the_server_agrees_to():
    """A server that does one group or one signature algorithm refuses a client that does only another."""
    for options, reason in (
        ({"ecdh_curve": "P-384:P-521"}, "NO_SUITABLE_KEY_SHARE"),
        ({"sigalgs": "ECDSA+SHA384"}, "UNSUPPORTED_PROTOCOL"),  # no way to use the P-256 certificate in TLS 1.3
    ):
        with Server(options) as server:
            context = client_context(server, ssl.TLSVersion.TLSv1_3)
            context.set_ecdh_curve("prime256v1")
            with pytest.raises(ssl.SSLError):
                Client(server, context)
            assert server.wait_for(lambda s, reason=reason: s.connections[0].handshake_error == reason)


def test_bodies_pass_the_second_floor_whole():
    """What does not fit into one record, in either direction, arrives whole and in order."""
    with Server(ON_OPENSSL) as server:
        body = bytes(range(256)) * 2_000
        connection = http.client.HTTPSConnection("localhost", server.port, context=client_context(server), timeout=5)
        connection.request("POST", "/echo", body)
        assert connection.getresponse().read() == body
        connection.close()


@pytest.mark.parametrize("ending", ["close_notify", "eof", "reset"])
def test_the_second_floor_ends_connections_as_told(ending):
    """close_notify, FIN and RST look alike on both floors."""
    with Server(ON_OPENSSL) as server, Client(server, client_context(server, ssl.TLSVersion.TLSv1_2)) as client:
        client.get()
        server.close_connections(ending)
        assert client.ending() == ending


# --- Life ----------------------------------------------------------------------------------------------------


def test_the_url_is_named_after_the_first_name():
    """`url` is the address under which the certificate is good."""
    with Server() as server:
        assert server.url == f"https://localhost:{server.port}"
    with Server(names=("::1",)) as server:
        assert server.url == f"https://[::1]:{server.port}"


def test_both_loopback_addresses_are_served():
    """A client that tries IPv6 first is not refused, where there is IPv6."""
    with Server() as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5):
            pass
        try:
            socket.create_connection(("::1", server.port), timeout=5).close()
        except OSError:
            with pytest.raises(OSError), socket.socket(socket.AF_INET6) as probe:  # noqa: PT011 - any says: no IPv6
                probe.bind(("::1", 0))


def test_a_taken_port_is_an_error_at_once():
    """A server that cannot listen says so from start()."""
    with Server() as server, pytest.raises(OSError, match=r"in use|only one usage|WinError"):
        Server(port=server.port).start()


def test_a_host_to_listen_on_can_be_given():
    """`host` replaces the loopback addresses."""
    with Server(host="127.0.0.1") as server, Client(server) as client:
        assert client.get().startswith(b"HTTP/1.1 200")


def test_closing_ends_connections_in_order_and_applications_at_once():
    """Leaving the with block sends close_notify, cancels what is running and does not wait for it."""
    ended = []

    async def application(scope, receive, send):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    server = Server(app=application)
    with server:
        client = Client(server)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert server.wait_for(lambda s: s.stats.requests == 1)
    server.close()  # harmless

    with client:
        assert client.read_to_end() == b""
    assert ended == [True]
    assert server.stats.open_connections == 0


def test_connections_accepted_at_the_last_moment_are_closed(monkeypatch):
    """A connection that comes in while the server stops is closed like any other, not left to the collector."""
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: lost.append(problem.exc_value))
    for _ in range(10):
        with Server() as server:
            socket.create_connection(("127.0.0.1", server.port)).close()
        gc.collect()

    assert lost == []


def test_a_client_that_reads_nothing_does_not_hold_up_the_end():
    """Closing waits a moment for what was written and then cuts the connection."""
    with Server() as server:
        client = Client(server)
        client.send(b"GET /bytes/100000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert server.wait_for(lambda s: s.stats.requests == 1)
        before = time.monotonic()
        server.close()

    assert time.monotonic() - before < 3
    client.tls.close()


def test_servers_can_live_in_the_callers_loop():
    """AsyncServer serves from the running loop and answers the same questions."""

    async def main():
        async with AsyncServer() as server:
            context = client_context(server)
            reader, writer = await asyncio.open_connection("localhost", server.port, ssl=context)
            writer.write(b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            gone = await server.wait_for(lambda s: s.stats.open_connections == 0)
            never = await server.wait_for(lambda s: s.stats.requests == 2, timeout=0.01)
            return answer, gone, never, server.connections

    answer, gone, never, [record] = asyncio.run(main())

    assert answer.endswith(b"Hello, world")
    assert (gone, never) == (True, False)
    assert record.closed_by == "server"


def test_a_process_may_end_with_the_server_running():
    """A server that nobody closed does not keep the interpreter from exiting, nor complain."""
    code = "from tlsagent.testing import Server; s = Server(); s.start(); print(s.url)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=20, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("https://localhost:")


def test_the_package_does_not_import_its_testing_tools():
    """`import tlsagent` costs nothing of what is only for tests."""
    code = "import sys, tlsagent; print([m for m in sys.modules if m.startswith(('tlsagent.testing', 'trustme'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)

    assert done.stdout.strip() == "[]"


def test_a_missing_extra_says_what_to_install():
    """Without trustme the import error names the extra."""
    code = "import sys; sys.modules['trustme'] = None; import tlsagent.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)

    assert "pip install 'tlsagent[testing]'" in done.stderr
