"""Requests and responses as the server sees and sends them: methods, bodies both ways, streaming, back-pressure."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from wire_peer import OK, PeerConnection, given_up, host_of, serve, standstill, wait_until

from tlsagent import AgentOptions, ConnectionLost, LocalProtocolError, OptionError, RemoteProtocolError

MEGABYTE = 1 << 20


def only_request(server: Any) -> Any:
    """Return the record of the one request, once it has arrived whole."""
    assert server.wait_for(lambda s: s.connections and s.connections[-1].requests[-1:][0].complete)
    [request] = [r for connection in server.connections for r in connection.requests]
    return request


# --- Requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"])
def test_method_and_target_arrive_as_given(open_agent, server, method):
    """
    Method, path and query reach the server as the caller wrote them, with the host of the URL.
    """
    agent = open_agent(ca=server.ca_pem)

    response = agent.request(method, server.url + "/echo?a=1&b=%20#fragment", headers={"X-One": "1"})

    request = only_request(server)
    assert response.status == 200
    assert (request.method, request.target) == (method, "/echo?a=1&b=%20")
    assert host_of(request) == f"localhost:{server.port}"
    assert request.header("x-one") == "1"


@pytest.mark.parametrize(
    "content",
    [b"x" * 10, "x" * 10, bytearray(b"x" * 10), memoryview(b"x" * 10), b"", b"y" * MEGABYTE],
    ids=["bytes", "str", "bytearray", "memoryview", "empty", "megabyte"],
)
def test_body_of_known_length_is_sent_by_length(open_agent, server, content):
    """
    Whatever knows its length is sent with Content-Length and arrives byte for byte.
    """
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("POST", server.url + "/echo", content=content)

    request = only_request(server)
    expected = content.encode() if isinstance(content, str) else bytes(content)
    assert response.content == expected
    assert request.header("content-length") == str(len(expected))
    assert request.header("transfer-encoding") is None
    assert request.body_length == len(expected)


def test_file_is_sent_from_where_it_stands(open_agent, server, tmp_path: Path):
    """
    A seekable file is sent by length, from its position to its end.
    """
    path = tmp_path / "body"
    path.write_bytes(b"skipped" + b"z" * 200_000)
    agent = open_agent(ca=server.ca_pem)

    with path.open("rb") as file:
        file.seek(7)
        response = agent.request("PUT", server.url + "/echo", content=file)

    assert response.content == b"z" * 200_000
    assert only_request(server).header("content-length") == "200000"


class _Pipe(io.RawIOBase):
    """A file that cannot be sought."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(size)


def _generated() -> Iterator[bytes]:
    yield b"a" * 10
    yield b""
    yield b"b" * 100_000


@pytest.mark.parametrize(
    "make",
    [_generated, lambda: list(_generated()), lambda: _Pipe(b"".join(_generated()))],
    ids=["generator", "list", "pipe"],
)
@pytest.mark.framing
def test_body_of_unknown_length_is_sent_chunked(open_agent, server, protocol, make):
    """
    What does not know its length is sent chunked, with HTTP/2 as it is; an empty piece does not end it.
    """
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("POST", server.url + "/echo", content=make())

    request = only_request(server)
    assert response.content == b"a" * 10 + b"b" * 100_000
    assert request.header("transfer-encoding") == ("chunked" if protocol == "HTTP/1.1" else None)
    assert request.header("content-length") is None
    assert request.body_length == 100_010


def test_asynchronous_iterable_is_sent_as_it_produces(open_async_agent, server):
    """
    `AsyncAgent` sends an asynchronous iterable as it produces.
    """

    async def pieces() -> AsyncIterator[bytes]:
        for piece in _generated():
            yield piece

    agent = open_async_agent(ca=server.ca_pem)

    response = agent.request("POST", server.url + "/echo", content=pieces())

    assert response.content == b"a" * 10 + b"b" * 100_000
    assert only_request(server).header("content-length") is None


def test_asynchronous_iterable_is_refused_by_the_sync_agent(open_sync_agent, server):
    """
    `Agent` refuses an asynchronous iterable before it opens a connection.
    """

    async def pieces() -> AsyncIterator[bytes]:
        yield b""

    agent = open_sync_agent(ca=server.ca_pem)

    with pytest.raises(LocalProtocolError, match="AsyncAgent"):
        agent.request("POST", server.url + "/echo", content=pieces())

    assert server.stats.connections == 0


@pytest.mark.parametrize("content", [None, b"body", [b"bo", b"dy"]], ids=["none", "bytes", "list"])
@pytest.mark.framing
def test_trailers_follow_the_body(open_agent, server, content):
    """
    A request with trailers is sent chunked and the trailers arrive after the body.
    """
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("POST", server.url + "/echo", content=content, trailers={"x-sum": "42"})

    request = only_request(server)
    assert response.status == 200
    assert request.trailers == (("x-sum", "42"),)
    assert request.body == (b"body" if content else b"")


@pytest.mark.framing
def test_large_echo_flows_both_ways_at_once(open_agent, server):
    """
    A server that answers while it reads is read while we write: neither waits for the other.
    """
    agent = open_agent(ca=server.ca_pem)
    body = [b"e" * 65_536] * 128

    response = agent.request("POST", server.url + "/echo", content=body, timeouts=20)

    assert len(response.content) == 128 * 65_536
    assert agent.request("GET", server.url + "/hello").request_number == 2


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET /x", "/hello", {}),
        ("GET", "/he llo", {}),
        ("GET", "/he\r\nllo", {}),
        ("GET", "/hello", {"x-a": "1\r\nx-b: 2"}),
        ("GET", "/hello", {"x a": "1"}),
        ("GET", "/hello", {"x-a": "\0"}),
        ("POST", "/hello", {"content-length": "5"}),
    ],
)
def test_request_that_cannot_be_sent_opens_nothing(open_agent, server, method, path, headers):
    """
    What would break the framing is refused before any connection is made.
    """
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(LocalProtocolError):
        agent.request(method, server.url + path, headers=headers, content=b"four" if method == "POST" else None)

    assert server.stats.connections == 0
    assert agent.request("GET", server.url + "/hello").status == 200


@pytest.mark.parametrize(
    "arguments",
    [
        {"headers": "x-a: 1"},
        {"headers": b"x-a: 1"},
        {"headers": 1},
        {"headers": ["ab"]},
        {"headers": [("x-a",)]},
        {"headers": [("x-a", "1", "2")]},
        {"headers": {"x-a": 1}},
        {"headers": {"x-a": ["1", "2"]}},
        {"trailers": ["ab"]},
        {"content": {"a": "1"}},
        {"content": 1},
        {"content": "lone \ud800"},
        {"content": io.StringIO("text")},
        {"retry": None},
        {"retry": "no"},
        {"expect_continue": "no", "content": b"x"},
        {"trace": "print"},
        {"timeouts": "1"},
    ],
    ids=repr,
)
def test_argument_of_the_wrong_kind(open_agent, server, arguments):
    """
    What cannot be meant is refused by an error of ours that names the argument, before any connection is made.
    """
    agent = open_agent(ca=server.ca_pem)
    [name] = arguments.keys() - {"content"} or ["content"]

    with pytest.raises((LocalProtocolError, OptionError), match="header" if name == "trailers" else name.rstrip("s")):
        agent.request("POST", server.url + "/echo", **arguments)

    assert server.stats.connections == 0


def test_body_iterator_that_raises_costs_the_connection(open_agent, server, protocol):
    """
    An exception of the caller's body iterator reaches the caller, the server never sees the body end, the slot is free:
    at the cost of the connection, with HTTP/2 of the stream.
    """

    def pieces() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise ZeroDivisionError("of the caller")

    agent = open_agent(ca=server.ca_pem, max_sockets=1)

    with pytest.raises(ZeroDivisionError, match="of the caller"):
        agent.request("POST", server.url + "/echo", content=pieces())

    assert given_up(server, protocol)
    assert not any(request.complete for request in server.connections[0].requests)
    assert agent.request("GET", server.url + "/hello", timeouts=5).reused == (protocol == "HTTP/2")


# --- Responses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [("HEAD", "/hello"), ("GET", "/status/204"), ("GET", "/status/304")])
@pytest.mark.framing
def test_response_without_a_body_leaves_the_connection_usable(open_agent, server, method, path):
    """
    HEAD, 204 and 304 have no body, whatever their length fields say, and the connection serves on.
    """
    agent = open_agent(ca=server.ca_pem)

    first = agent.request(method, server.url + path)
    second = agent.request("GET", server.url + "/hello")

    assert first.content == b""
    assert second.content == b"Hello, world"
    assert server.stats.connections == 1


@pytest.mark.framing
def test_chunked_response_is_joined_and_its_trailers_kept(open_agent, server):
    """
    A chunked response arrives whole, with its trailers.
    """
    agent = open_agent(ca=server.ca_pem)

    chunked = agent.request("GET", server.url + "/chunked")
    trailing = agent.request("GET", server.url + "/trailers")

    assert chunked.content == b"one\ntwo\nthree\n"
    assert not chunked.trailers
    assert trailing.trailers["x-checksum"] == "12"
    assert server.stats.connections == 1


@pytest.mark.framing
def test_informational_heads_are_kept(open_agent, open_peer):
    """
    1xx heads come before the response and are no response.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        connection.send(b"HTTP/1.1 102 Processing\r\n\r\n" + OK)
        serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    response = agent.request("GET", peer.url)

    assert response.content == b"ok"
    assert [head.status for head in response.informational] == [103, 102]
    assert response.informational[0].headers["link"] == "</a>"
    assert agent.request("GET", peer.url).reused


@pytest.mark.framing
def test_response_until_the_end_of_the_connection(open_agent, open_peer):
    """
    A response without a length ends with close_notify, and its connection with it.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n", b"all ", b"of it")
        connection.close_notify()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    assert agent.request("GET", peer.url).content == b"all of it"
    assert agent.request("GET", peer.url).content == b"all of it"
    assert len(peer.connections) == 2


@pytest.mark.framing
def test_response_larger_than_allowed_is_refused(open_agent, server):
    """
    `max_response_size` bounds what is kept of a body; the slot is free afterwards.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1, max_response_size=100_000)

    with pytest.raises(RemoteProtocolError, match="max_response_size"):
        agent.request("GET", server.url + "/bytes/100001")

    assert len(agent.request("GET", server.url + "/bytes/100000", timeouts=5).content) == 100_000


@pytest.mark.framing
def test_facts_of_a_response(open_agent, server, protocol, variant):
    """
    A response tells about its connection, its place on it, and how long its phases took.
    """
    agent = open_agent(ca=server.ca_pem)

    first = agent.request("GET", server.url + "/hello")
    second = agent.request("GET", server.url + "/hello")

    assert (first.status, first.http_version, first.text) == (200, protocol, "Hello, world")
    assert variant.engine in ("auto", first.connection.http_engine)
    assert (first.reused, first.request_number, first.attempts) == (False, 1, 1)
    assert (second.reused, second.request_number, second.attempts) == (True, 2, 1)
    assert (first.why_not_reused, second.why_not_reused) == ("first connection of this key", None)
    assert first.connection is second.connection
    assert first.connection.protocol_version == server.connections[0].version
    assert first.connection.cipher == server.connections[0].cipher
    assert first.connection.authorized
    assert first.timings.handshake is not None
    assert second.timings.handshake is None
    assert second.timings.total >= second.timings.wait >= 0


# --- Streaming --------------------------------------------------------------------------------------------------------


@pytest.mark.framing
def test_stream_hands_out_a_body_while_it_comes(open_agent, open_peer):
    """
    The head and the first bytes reach the caller while the server still holds the rest back.
    """
    read_first = threading.Event()

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n", b"half")
        assert read_first.wait(10)
        connection.send(b"full")
        serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    with agent.stream("GET", peer.url) as response:
        pieces = response.iter_bytes()
        assert next(pieces) == b"half"
        read_first.set()
        assert b"".join(pieces) == b"full"

    assert agent.request("GET", peer.url).reused


@pytest.mark.framing
def test_stream_left_early_costs_the_connection(open_agent, server, protocol):
    """
    Leaving a stream before its end closes the connection, or in HTTP/2 resets the stream, and frees the slot.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1)

    with agent.stream("GET", f"{server.url}/bytes/{64 * MEGABYTE}") as response:
        assert next(response.iter_bytes())

    assert given_up(server, protocol)
    assert agent.request("GET", server.url + "/hello", timeouts=5).reused == (protocol == "HTTP/2")


@pytest.mark.framing
def test_stream_read_to_its_end_keeps_the_connection(open_agent, server):
    """
    A stream read to its end gives its connection back, before the block is left.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1)

    with agent.stream("GET", server.url + "/bytes/300000") as response:
        assert len(response.read()) == 300_000
        assert agent.request("GET", server.url + "/hello", timeouts=5).request_number == 2


def test_iteration_that_is_left_is_taken_up_again(open_agent, server):
    """
    What was not handed out when an iteration is left comes with the next one: nothing is missing in between.
    """
    agent = open_agent(ca=server.ca_pem)
    size = 300_000

    with agent.stream("GET", f"{server.url}/bytes/{size}") as response:
        parts = []
        for _ in range(3):
            for piece in response.iter_bytes():
                parts.append(piece)
                break
        parts.append(response.read())

    assert b"".join(parts) == agent.request("GET", f"{server.url}/bytes/{size}").content


def test_slow_reader_holds_the_server_back(open_agent, open_peer):
    """
    A caller that does not read stops the server after some buffers' worth, and gets every byte once it reads.
    """
    total = 64 * MEGABYTE
    sent = 0

    def script(connection: PeerConnection) -> None:
        nonlocal sent
        connection.recv_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            connection.send(bytes(16_384))
            sent += 16_384
        serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    with agent.stream("GET", peer.url) as response:
        held_at = standstill(lambda: sent)
        received = sum(map(len, response.iter_bytes()))

    assert held_at < total // 2  # what the two kernels' buffers take, and our 256 KiB
    assert received == total
    assert agent.request("GET", peer.url).reused


def test_peer_that_reads_slowly_holds_the_body_back(open_agent, open_peer):
    """
    The body iterator is asked for no more than the connection takes; once the peer reads, it is sent to the end.
    """
    produced = 0
    read_on = threading.Event()
    total = 512 * 65_536

    def pieces() -> Iterator[bytes]:
        nonlocal produced
        while produced < total:
            produced += 65_536
            yield bytes(65_536)

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        assert read_on.wait(10)
        left = total
        while left > 0:
            left -= len(connection.recv())
        connection.recv()
        connection.send(OK)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    pending = agent.submit("POST", peer.url, content=pieces())
    assert wait_until(lambda: produced)
    held_at = standstill(lambda: produced)
    read_on.set()

    assert pending.result(20).content == b"ok"
    assert held_at < total // 2
    assert produced == total


@pytest.mark.framing
def test_early_response_is_delivered_and_stops_the_upload(open_agent, open_peer):
    """
    A final response that comes while the request is being sent is delivered, the upload ends, the connection goes.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number > 1:
            serve(connection)
        connection.recv_head()
        connection.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, max_sockets=1)

    response = agent.request("POST", peer.url, content=itertools.repeat(b"x" * 10_000), timeouts=10)

    assert (response.status, response.content) == (413, b"big")
    assert wait_until(lambda: peer.connections[0].ended)
    assert agent.request("GET", peer.url, timeouts=5).request_number == 1


@pytest.mark.parametrize("ending", ["fin", "reset"])
def test_body_cut_short_is_never_a_success(open_agent, open_peer, ending):
    """
    A stream that ends before its announced length raises, after the bytes that came.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_head()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"only this")
        assert got_some.wait(10)
        getattr(connection, ending)()

    got_some = threading.Event()
    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)

    with agent.stream("GET", peer.url) as response:
        pieces = response.iter_bytes()
        assert next(pieces) == b"only this"
        got_some.set()
        with pytest.raises(ConnectionLost):
            next(pieces)


@pytest.mark.parametrize("options", [AgentOptions(max_sockets=1), [("ca", None)], "ca"])
@pytest.mark.parametrize("verb", ["request", "connect"])
def test_options_of_the_wrong_kind(open_agent, server, options, verb):
    """
    What a request could not heed is refused before any socket opens: options of an agent, or what are none.
    """
    agent = open_agent(ca=server.ca_pem)
    act, *arguments = {
        "request": (agent.request, "GET", server.url),
        "connect": (agent.connect, "localhost", server.port),
    }[verb]

    with pytest.raises(OptionError, match="options"):
        act(*arguments, options=options)

    assert server.stats.connections == 0
