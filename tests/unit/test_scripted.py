"""
The scripted peer, with the standard library's ssl and sockets as its client.
"""

from __future__ import annotations

import socket
import ssl
import threading

import pytest

from tlsagent.testing import PeerGone, RawServer
from tlsagent.testing._link import reset_on_close

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def connect(server, *, tls=True, timeout=5.0, session=None, context=None):
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=timeout)
    if not tls:
        return sock
    context = context or ssl.create_default_context(cadata=server.ca_pem.decode())
    try:
        return context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False, session=session)
    except BaseException:
        sock.close()
        raise


def read_raw_to_end(sock) -> bytes:
    """Read below TLS: there a reset is not dressed up as an error of TLS."""
    data = b""
    while more := socket.socket.recv(sock, 65_536):
        data += more
    return data


def read_to_end(sock) -> bytes:
    data = b""
    while more := sock.recv(65_536):
        data += more
    return data


def test_a_script_answers_with_any_bytes():
    """The handler sees the request's head and decides every byte of the answer; then the connection ends in order."""
    heads = []

    def handler(peer):
        heads.append(peer.recv_request_head())
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n?")

    with RawServer(handler) as server, connect(server) as client:
        client.sendall(REQUEST)
        answer = read_to_end(client)

    assert heads == [REQUEST]
    assert answer.endswith(b"1, 2\r\n\r\n?")
    assert server.connections == 1


def test_what_follows_a_head_stays_for_the_next_call():
    """A body or a second request that came with the head is not lost."""
    seen = []

    def handler(peer):
        seen.extend([peer.recv_request_head(), peer.recv_exactly(4), peer.recv_request_head(), peer.recv()])

    with RawServer(handler) as server, connect(server) as client:
        client.sendall(REQUEST + b"body" + REQUEST)
        client.sendall(b"tail")
        read_to_end(client)

    assert seen == [REQUEST, b"body", REQUEST, b"tail"]


def test_the_script_knows_the_handshake():
    """Facts and ClientHello of the connection are at hand, resumption included."""
    seen = []

    def handler(peer):
        peer.recv_request_head()
        seen.append((peer.number, peer.facts.version, peer.facts.session_reused, peer.client_hello.offers_ticket))

    with RawServer(handler) as server:
        context = ssl.create_default_context(cadata=server.ca_pem.decode())
        session = None
        for _ in range(2):
            with connect(server, context=context, session=session) as client:
                client.sendall(REQUEST)
                read_to_end(client)
                session = client.session

    assert seen == [(1, "TLSv1.3", False, False), (2, "TLSv1.3", True, True)]


def test_settings_reach_the_handshake():
    """A scripted server takes the TLS settings of `Server`."""
    with RawServer(lambda peer: peer.recv(), max_version="TLSv1.2", alpn_protocols=("x",)) as server:
        context = ssl.create_default_context(cadata=server.ca_pem.decode())
        context.set_alpn_protocols(["x"])
        with connect(server, context=context) as client:
            assert (client.version(), client.selected_alpn_protocol()) == ("TLSv1.2", "x")


def test_pieces_become_records_of_one_write():
    """send(a, b) makes two TLS records, so that a client reads them one by one, however they travelled."""

    def handler(peer):
        peer.recv_request_head()
        peer.send(b"first", b"second")

    with RawServer(handler) as server, connect(server) as client:
        client.sendall(REQUEST)
        assert [client.recv(100), client.recv(100), client.recv(100)] == [b"first", b"second", b""]


def test_records_can_be_cut_anywhere():
    """seal() hands out the ciphertext: a script may send half a record and then leave."""

    def handler(peer):
        peer.recv_request_head()
        record = peer.seal(b"hello")
        peer.send_raw(record[:7])
        peer.close_without_notify()

    with RawServer(handler) as server, connect(server) as client:
        client.sendall(REQUEST)
        with pytest.raises(ssl.SSLEOFError):
            client.recv(100)


@pytest.mark.parametrize(("ending", "seen"), [("close", "close_notify"), ("close_without_notify", "eof")])
def test_the_script_chooses_how_the_connection_ends(ending, seen):
    """close() sends close_notify and FIN; close_without_notify() sends a bare FIN."""

    def handler(peer):
        peer.recv_request_head()
        peer.send(b"x")
        getattr(peer, ending)()

    with RawServer(handler) as server, connect(server) as client:
        client.sendall(REQUEST)
        assert client.recv(100) == b"x"
        if seen == "close_notify":
            assert client.recv(100) == b""
        else:
            with pytest.raises(ssl.SSLEOFError):
                client.recv(100)


def test_close_notify_alone_leaves_tcp_open():
    """After close_notify() the TLS stream has ended, and bytes can still be sent below it."""

    def handler(peer):
        peer.recv_request_head()
        peer.close_notify()
        peer.send_raw(b"garbage")
        peer.close_without_notify()

    with RawServer(handler) as server, connect(server) as client:
        client.sendall(REQUEST)
        assert client.recv(100) == b""
        assert read_raw_to_end(client) == b"garbage"


@pytest.mark.parametrize("tls", [True, False])
def test_a_reset_is_a_reset(tls):
    """close_abruptly() sends RST, with and without TLS."""

    def handler(peer):
        peer.recv_request_head()
        peer.close_abruptly()

    with RawServer(handler, tls=tls) as server, connect(server, tls=tls) as client:
        client.sendall(REQUEST)
        with pytest.raises(ConnectionResetError):
            read_raw_to_end(client)


@pytest.mark.parametrize("ending", ["close_notify", "eof", "reset"])
def test_the_script_learns_how_the_client_ended(ending):
    """wait_closed() tells a proper end from a bare FIN and from a reset."""
    seen = []

    def handler(peer):
        peer.send(b"x")
        seen.append(peer.wait_closed())

    with RawServer(handler) as server:
        client = connect(server)
        assert client.recv(100) == b"x"
        client.sendall(b"to be discarded")
        if ending == "close_notify":
            client.unwrap().close()
        elif ending == "eof":
            client.shutdown(socket.SHUT_WR)
        else:
            reset_on_close(client)
        client.close()
        server.join()

    assert seen == [ending]


def test_a_plain_peer_speaks_before_any_handshake():
    """With tls=False the script has the bare TCP connection: junk in place of a ServerHello."""

    def handler(peer):
        assert peer.recv().startswith(b"\x16\x03")
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with RawServer(handler, tls=False) as server, pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
        connect(server)


def test_tls_can_begin_in_the_middle():
    """start_tls() puts TLS on a plain connection, as a proxy's CONNECT does."""
    seen = []

    def handler(peer):
        seen.append(peer.recv_request_head())
        peer.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        peer.start_tls(server.tls_floor())
        seen.append(peer.recv_exactly(2))

    with RawServer(handler, tls=False) as server:
        plain = connect(server, tls=False)
        plain.sendall(b"CONNECT a:1 HTTP/1.1\r\n\r\n")
        assert plain.recv(100).startswith(b"HTTP/1.1 200")
        context = ssl.create_default_context(cadata=server.ca_pem.decode())
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"hi")
            read_to_end(client)

    assert seen == [b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"hi"]


def test_a_failed_handshake_never_reaches_the_script():
    """A client that refuses the certificate is noted, and the handler is not called."""
    called = []
    with RawServer(called.append) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(server, context=ssl.create_default_context())
        server.join()

    assert called == []
    assert server.handshake_errors == ["TLSV1_ALERT_UNKNOWN_CA"]


def test_a_wrong_expectation_fails_the_test():
    """An assertion in the handler is raised where the with block ends."""

    def handler(peer):
        assert peer.recv_request_head() == b"something else"

    def visit():
        with RawServer(handler) as server, connect(server) as client:
            client.sendall(REQUEST)
            read_to_end(client)

    with pytest.raises(AssertionError):
        visit()


def test_the_tests_own_failure_comes_first():
    """An exception in the with block is not replaced by one of the handler."""

    def handler(peer):
        raise LookupError("the handler's")

    def visit():
        with RawServer(handler) as server, connect(server) as client:
            read_to_end(client)
            raise KeyError("the test's")

    with pytest.raises(KeyError, match="the test's"):
        visit()


def test_a_client_that_leaves_is_no_failure():
    """A script that is waiting when the client leaves ends quietly."""
    seen = []

    def handler(peer):
        try:
            peer.recv_request_head()
        except PeerGone as exc:
            seen.append(str(exc))
            raise

    with RawServer(handler) as server:
        with connect(server) as client:
            client.sendall(b"GET /")
            client.unwrap().close()
        server.join()

    assert seen == ["the client left (close_notify) after 5 bytes"]


def test_no_script_waits_for_ever():
    """A wait that takes longer than `timeout` is a failure of the script."""
    with (
        pytest.raises(TimeoutError),
        RawServer(lambda peer: peer.recv(), timeout=0.05) as server,
        connect(server) as client,
    ):
        read_to_end(client)


def test_connections_are_served_side_by_side():
    """Each connection has a thread of its own: one script may wait for another."""
    both = threading.Barrier(2, timeout=5)

    def handler(peer):
        peer.recv_request_head()
        both.wait()
        peer.send(b"%d" % peer.number)

    with RawServer(handler) as server, connect(server) as one, connect(server) as two:
        for client in (one, two):
            client.sendall(REQUEST)
        assert {read_to_end(one), read_to_end(two)} == {b"1", b"2"}

    assert server.connections == 2


def test_the_end_of_the_block_ends_the_scripts():
    """Leaving the with block cuts connections whose scripts are still waiting, which is no failure."""
    begun, ended = threading.Event(), threading.Event()

    def handler(peer):
        begun.set()
        try:
            peer.recv()
        finally:
            ended.set()

    with RawServer(handler) as server, connect(server):
        assert begun.wait(5)

    assert ended.is_set()


def test_the_url_names_the_server():
    """`url` is the address under which the certificate is good."""
    with RawServer(lambda peer: None) as server:
        assert server.url == f"https://localhost:{server.port}"
