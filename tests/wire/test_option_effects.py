"""
Each option from the server's side: what it changes there, and who shares a connection or a session with whom.

Every test of the first half fails if its option has no effect. The second half counts connections and looks for offered
sessions in the ClientHello.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tls_support import encrypted, front, hello_of, issue, offers_session
from wire_peer import OK, PeerConnection, host_of, left_in_order, serve

from tlsagent import (
    UNSET,
    CertificateError,
    CertificateNameError,
    ConnectionOptions,
    HandshakeError,
    InactivityTimeout,
    OptionError,
    OptionTypeError,
    ResolutionError,
    create_secure_context,
)
from tlsagent.testing import Authority, Server, default_authority
from tlsagent.testing._hello import ALPN, SERVER_NAME, SUPPORTED_VERSIONS

CLIENT = default_authority().issue("client@tlsagent.test", client=True)
OTHER_CLIENT = default_authority().issue("other@tlsagent.test", client=True)
RSA_CLIENT = default_authority().issue("rsa@tlsagent.test", client=True, key_type="rsa")
PASSPHRASE = "open sesame"

AES128 = "ECDHE-ECDSA-AES128-GCM-SHA256"
AES256 = "ECDHE-ECDSA-AES256-GCM-SHA384"


@pytest.fixture
def unix_front(tmp_path) -> Iterator[Callable[[Server], tuple[str, list[Any]]]]:
    """Return a function that puts a Unix socket before a server: its path, and the connections it takes."""
    with contextlib.ExitStack() as stack:

        def make(server: Server, name: str = "front") -> tuple[str, list[Any]]:
            path = str(tmp_path / name)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen()
            return path, stack.enter_context(front(listener, server.port))

        yield make


@pytest.fixture
def tcp_front() -> Iterator[Callable[[Server], tuple[int, list[Any]]]]:
    """Return a function that puts another port before a server: the port, and the connections it takes."""
    with contextlib.ExitStack() as stack:

        def make(server: Server) -> tuple[int, list[Any]]:
            listener = socket.create_server(("127.0.0.1", 0))
            return listener.getsockname()[1], stack.enter_context(front(listener, server.port))

        yield make


@pytest.fixture
def mutual_server(new_server: Callable[..., Server]) -> Iterator[Server]:
    """Return a server that takes a client certificate from those who have one."""
    with new_server(request_cert=True) as server:
        yield server


# --- Trust ------------------------------------------------------------------------------------------------------------


def test_ca_replaces_the_default_roots(open_agent, server):
    """
    Without `ca` certifi's roots decide, which do not know the server; with its root in `ca` it is trusted.
    """
    default = open_agent()
    with pytest.raises(CertificateError):
        default.request("GET", server.url + "/hello")

    response = open_agent(ca=server.ca_pem).request("GET", server.url + "/hello")

    assert response.connection.authorized


@pytest.mark.parametrize("form", ["text", "DER", "path", "list", "several in one"])
def test_ca_takes_every_form(open_agent, server, form, tmp_path):
    """
    PEM as text, DER, a path, a list and several certificates in one PEM all add the roots they hold.
    """
    other = Authority().ca_pem
    (tmp_path / "ca.pem").write_bytes(server.ca_pem)
    ca: Any = {
        "text": server.ca_pem.decode(),
        "DER": _der(server.ca_pem),
        "path": tmp_path / "ca.pem",
        "list": [other, server.ca_pem],
        "several in one": other + server.ca_pem,
    }[form]

    response = open_agent(ca=ca).request("GET", server.url + "/hello")

    assert response.connection.authorized


def _der(pem: bytes) -> bytes:
    import ssl

    return ssl.PEM_cert_to_DER_cert(pem.decode())


def test_reject_unauthorized_false_accepts_anybody(open_agent, server):
    """
    `reject_unauthorized=False` lets a request through that fails without it.
    """
    agent = open_agent()
    with pytest.raises(CertificateError):
        agent.request("GET", server.url + "/hello")

    response = agent.request("GET", server.url + "/hello", options={"reject_unauthorized": False})

    assert (response.status, response.connection.authorized) == (200, False)


def test_check_server_identity_is_asked(open_agent, server):
    """
    `check_server_identity` decides about the name.
    """
    asked = []
    agent = open_agent(ca=server.ca_pem, check_server_identity=lambda host, cert: asked.append(host))

    agent.request("GET", f"https://127.0.0.1:{server.port}/hello")

    assert asked == ["127.0.0.1"]


# --- Client certificate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("client", [CLIENT, RSA_CLIENT], ids=["EC", "RSA"])
def test_cert_and_key_show_who_we_are(open_agent, mutual_server, client, version):
    """
    The server gets the certificate of `cert`, proved by `key`; without them it gets none.
    """
    agent = open_agent(ca=mutual_server.ca_pem, max_version=version, min_version=version)

    agent.request("GET", mutual_server.url + "/hello")
    agent.request("GET", mutual_server.url + "/hello", options={"cert": client.cert_pem, "key": client.key_pem})

    assert [c.client_certificate for c in mutual_server.connections] == [None, client.leaf_der]


def test_chain_of_the_client_certificate_is_sent(open_agent, new_server):
    """
    A server that trusts the root only accepts a certificate of an intermediate authority, whose certificate `cert` has.
    """
    root = Authority()
    client = root.intermediate().issue("client@tlsagent.test", client=True)
    with new_server(request_cert="demand", client_ca=root.ca_pem) as server:
        agent = open_agent(ca=server.ca_pem, cert=client.cert_pem, key=client.key_pem)

        agent.request("GET", server.url + "/hello")

        assert server.connections[0].client_certificate == client.leaf_der


def test_passphrase_opens_the_key(open_agent, mutual_server):
    """
    An encrypted key works with its passphrase, and is refused before any I/O without it or with another one.
    """
    locked = {"cert": CLIENT.cert_pem, "key": encrypted(CLIENT.key_pem, PASSPHRASE)}
    agent = open_agent(ca=mutual_server.ca_pem)
    url = mutual_server.url + "/hello"

    with pytest.raises(OptionError):
        agent.request("GET", url, options=locked)
    with pytest.raises(OptionError) as caught:
        agent.request("GET", url, options={**locked, "passphrase": "wrong"})
    assert mutual_server.stats.connections == 0
    agent.request("GET", url, options={**locked, "passphrase": PASSPHRASE})

    assert caught.value.code == "ERR_OSSL_BAD_DECRYPT"
    assert [c.client_certificate for c in mutual_server.connections] == [CLIENT.leaf_der]


def test_passphrase_may_come_from_the_other_layer(open_agent, mutual_server):
    """
    A passphrase of the request opens a key of the agent.
    """
    agent = open_agent(ca=mutual_server.ca_pem, cert=CLIENT.cert_pem, key=encrypted(CLIENT.key_pem, PASSPHRASE))

    agent.request("GET", mutual_server.url + "/hello", options={"passphrase": PASSPHRASE})

    assert mutual_server.connections[0].client_certificate == CLIENT.leaf_der


# --- Name -------------------------------------------------------------------------------------------------------------


def test_url_is_the_name(open_agent, new_server):
    """
    Without options the URL's host is SNI, verified name and Host header.
    """
    with new_server(names=("a.test",)) as server:
        agent = open_agent(ca=server.ca_pem, host="127.0.0.1", port=server.port)

        agent.request("GET", "https://a.test/hello")
        with pytest.raises(CertificateNameError):
            agent.request("GET", "https://b.test/hello")

        first, second = server.connections
    assert [hello_of(connection).server_name for connection in (first, second)] == ["a.test", "b.test"]
    assert host_of(first.requests[0]) == "a.test"


def test_servername_is_sent_and_verified(open_agent, new_server):
    """
    `servername` is what the server hears and what its certificate must be for; the Host header stays the URL's.
    """
    with new_server(names=("b.test",)) as server:
        agent = open_agent(ca=server.ca_pem, servername="b.test")

        agent.request("GET", f"https://127.0.0.1:{server.port}/hello")
        with pytest.raises(CertificateNameError, match=r"c\.test"):
            agent.request("GET", f"https://127.0.0.1:{server.port}/hello", options={"servername": "c.test"})

        first, second = server.connections
    assert (hello_of(first).server_name, hello_of(second).server_name) == ("b.test", "c.test")
    assert host_of(first.requests[0]) == f"127.0.0.1:{server.port}"


def test_empty_servername_sends_none(open_agent, server):
    """
    `servername=""` leaves SNI out of the ClientHello and verifies the URL's host.
    """
    agent = open_agent(ca=server.ca_pem, servername="")

    agent.request("GET", server.url + "/hello")
    with pytest.raises(CertificateNameError, match=r"a\.test"):
        agent.request("GET", "https://a.test/hello", options={"host": "127.0.0.1", "port": server.port})

    assert not any(SERVER_NAME in hello_of(connection).extensions for connection in server.connections)


def test_address_is_no_server_name(open_agent, server):
    """
    An address in the URL is verified but not sent as SNI (RFC 6066, 3).
    """
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("GET", f"https://127.0.0.1:{server.port}/hello")

    assert response.connection.authorized
    assert SERVER_NAME not in hello_of(server.connections[0]).extensions


# --- What is offered --------------------------------------------------------------------------------------------------


def test_alpn_protocols_are_offered_in_order(open_agent, server, protocol):
    """
    `alpn_protocols` stand in the ClientHello as given; by default h2 and http/1.1; none for None and ().
    """
    agent = open_agent(ca=server.ca_pem)

    offers = [UNSET, ["x/1", "http/1.1"], None, ()]
    responses = [
        agent.request("GET", server.url + "/close", options={"alpn_protocols": offer}).connection.alpn_protocol
        for offer in offers
    ]

    hellos = [hello_of(connection) for connection in server.connections]
    assert [hello.alpn_protocols for hello in hellos[:2]] == [("h2", "http/1.1"), ("x/1", "http/1.1")]
    assert [ALPN in hello.extensions for hello in hellos] == [True, True, False, False]
    assert responses == ["h2" if protocol == "HTTP/2" else "http/1.1", "http/1.1", None, None]
    assert [connection.alpn for connection in server.connections] == responses


@pytest.mark.parametrize(
    ("options", "offered", "chosen"),
    [
        ({}, {0x0304, 0x0303}, "TLSv1.3"),
        ({"max_version": "TLSv1.2"}, None, "TLSv1.2"),
        ({"min_version": "TLSv1.3"}, {0x0304}, "TLSv1.3"),
    ],
)
def test_versions_bound_the_offer(open_agent, server, options, offered, chosen):
    """
    `min_version` and `max_version` bound the versions in the ClientHello, and so what is agreed on.
    """
    agent = open_agent(ca=server.ca_pem, **options)

    response = agent.request("GET", server.url + "/hello")

    extension = hello_of(server.connections[0]).extensions.get(SUPPORTED_VERSIONS)
    versions = extension and {int.from_bytes(extension[at : at + 2], "big") for at in range(1, len(extension), 2)}
    assert versions == offered
    assert server.connections[0].version == response.connection.protocol_version == chosen


def test_min_version_refuses_an_older_server(open_agent, new_server):
    """
    `min_version` is a bound and no wish: a server that speaks less is refused.
    """
    with new_server(max_version="TLSv1.2") as server:
        agent = open_agent(ca=server.ca_pem)
        assert agent.request("GET", server.url + "/hello").status == 200

        with pytest.raises(HandshakeError):
            agent.request("GET", server.url + "/hello", options={"min_version": "TLSv1.3"})


@pytest.mark.parametrize("ciphers", [f"{AES256}:{AES128}", f"{AES128}:{AES256}", AES128, AES256])
def test_ciphers_are_offered_in_order(open_agent, new_server, ciphers):
    """
    Suites of TLS 1.2 stand in the ClientHello as `ciphers` has them, and one of them is agreed on.
    """
    with new_server(max_version="TLSv1.2") as server:
        agent = open_agent(ca=server.ca_pem, ciphers=ciphers)

        response = agent.request("GET", server.url + "/hello")

        record = server.connections[0]
    assert record.cipher == response.connection.cipher
    assert record.cipher in ciphers.split(":")
    tls13, signalling = {0x1301, 0x1302, 0x1303}, 0x00FF
    suites = {AES128: 0xC02B, AES256: 0xC02C}
    offered = [suite for suite in hello_of(record).cipher_suites if suite not in {*tls13, signalling}]
    assert offered == [suites[name] for name in ciphers.split(":")]


def test_tls13_suites_are_ciphers_too(open_agent, server):
    """
    Suites of TLS 1.3 are given by their own names; alone they leave TLS 1.2 out of the offer.
    """
    agent = open_agent(ca=server.ca_pem, ciphers="TLS_CHACHA20_POLY1305_SHA256")

    response = agent.request("GET", server.url + "/hello")

    [record] = server.connections
    assert record.cipher == response.connection.cipher == "TLS_CHACHA20_POLY1305_SHA256"
    assert set(hello_of(record).cipher_suites) - {0x00FF} == {0x1303}  # beside it the SCSV of RFC 5746


def test_security_level_is_part_of_the_ciphers(open_agent, new_server):
    """
    A key of 1024 bits is too weak, unless `ciphers` lowers the security level.
    """
    root = issue("root", ca=True)
    weak = issue("localhost", by=root, rsa_bits=1024)
    with new_server(credentials=weak.with_chain(), ciphers="DEFAULT:@SECLEVEL=0") as server:
        agent = open_agent(ca=root.pem)
        with pytest.raises(CertificateError, match="too short"):
            agent.request("GET", server.url + "/hello")

        response = agent.request("GET", server.url + "/hello", options={"ciphers": "DEFAULT:@SECLEVEL=0"})

    assert response.connection.authorized


def test_secure_context_brings_its_material(open_agent, mutual_server):
    """
    A `secure_context` stands for all it was made from: trust, client certificate, versions, ciphers.
    """
    context = create_secure_context(
        ca=mutual_server.ca_pem,
        cert=CLIENT.cert_pem,
        key=encrypted(CLIENT.key_pem, PASSPHRASE),
        passphrase=PASSPHRASE,
        max_version="TLSv1.2",
        ciphers=AES256,
    )

    response = open_agent(secure_context=context).request("GET", mutual_server.url + "/hello")

    [record] = mutual_server.connections
    assert response.connection.authorized
    assert (record.client_certificate, record.version, record.cipher) == (CLIENT.leaf_der, "TLSv1.2", AES256)


@pytest.mark.parametrize("reject", [True, False])
def test_secure_context_obeys_reject_unauthorized(open_agent, server, reject):
    """
    A `secure_context` has no say in `reject_unauthorized`: one that does not know the server refuses it or not, as the
    option says.
    """
    agent = open_agent(secure_context=create_secure_context(), reject_unauthorized=reject)

    if reject:
        with pytest.raises(CertificateError):
            agent.request("GET", server.url + "/hello")
    else:
        assert agent.request("GET", server.url + "/hello").connection.authorized is False


# --- Where the bytes go -----------------------------------------------------------------------------------------------


def test_host_and_port_change_the_way_not_the_name(open_agent, new_server):
    """
    `host` and `port` say where to connect; SNI, verified name and Host header stay the URL's.
    """
    with new_server(names=("a.test",)) as server:
        agent = open_agent(ca=server.ca_pem)

        agent.request("GET", "https://a.test:1/hello", options={"host": "127.0.0.1", "port": server.port})

        [record] = server.connections
    assert hello_of(record).server_name == "a.test"
    assert host_of(record.requests[0]) == "a.test:1"


def test_lookup_gives_the_address(open_agent, new_server):
    """
    `lookup` is asked for the host, with family 0, and its address is where the connection goes.
    """
    asked = []

    def lookup(host: str, family: int) -> list[str]:
        asked.append((host, family))
        return ["127.0.0.1"]

    with new_server(names=("a.test",)) as server:
        agent = open_agent(ca=server.ca_pem, lookup=lookup)

        response = agent.request("GET", f"https://a.test:{server.port}/hello")

        assert hello_of(server.connections[0]).server_name == "a.test"
    assert asked == [("a.test", 0)]
    assert response.connection.remote_address[:2] == ("127.0.0.1", server.port)


def test_lookup_is_asked_for_the_host_option(open_agent, new_server):
    """
    With `host` it is that which is looked up, not the URL's.
    """
    asked = []

    def lookup(host: str, family: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with new_server(names=("a.test",)) as server:
        agent = open_agent(ca=server.ca_pem, lookup=lookup, host="elsewhere.test")

        agent.request("GET", f"https://a.test:{server.port}/hello")

    assert asked == ["elsewhere.test"]


def test_lookup_may_be_asynchronous(open_async_agent, server):
    """
    In `AsyncAgent` the hook may be a coroutine function.
    """

    async def lookup(host: str, family: int) -> list[str]:
        return ["127.0.0.1"]

    agent = open_async_agent(ca=server.ca_pem, lookup=lookup, servername="localhost")

    assert agent.request("GET", f"https://a.test:{server.port}/hello").status == 200


def test_what_lookup_raises_is_the_requests_error(open_agent, server):
    """
    An exception of the hook reaches the caller, and the agent goes on working.
    """

    class Mine(Exception):
        pass

    def lookup(host: str, family: int) -> list[str]:
        raise Mine

    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(ResolutionError) as caught:
        agent.request("GET", server.url + "/hello", options={"lookup": lookup})

    assert isinstance(caught.value.__cause__, Mine)
    assert agent.request("GET", server.url + "/hello").status == 200
    assert agent.stats().dialling == 0


def test_path_is_a_unix_socket(open_agent, server, unix_front):
    """
    `path` connects to a Unix socket; the name stays the URL's.
    """
    path, connections = unix_front(server)
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("GET", "https://localhost:1/hello", options={"path": path})

    assert response.status == 200
    assert len(connections) == 1
    assert hello_of(server.connections[0]).server_name == "localhost"


def test_socket_carries_the_request(open_agent, server):
    """
    A connected `socket` is spoken over as it is; nothing else is opened. It is the agent's from then on.
    """
    sock = socket.create_connection(("127.0.0.1", server.port))
    assert server.wait_for(lambda s: s.stats.connections == 1)
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("GET", "https://localhost:1/hello", options={"socket": sock})

    assert response.status == 200
    assert server.stats.connections == 1
    assert server.connections[0].request_count == 1
    assert response.connection.local_address == sock.getsockname()
    agent.close()
    assert server.wait_for(lambda s: s.stats.open_connections == 0)
    assert left_in_order(server.connections[0])


def test_socket_serves_one_connection(open_agent, server):
    """
    Another request with the same `socket` shares its connection; once that is gone, the socket brings no second one.
    """
    agent = open_agent(ca=server.ca_pem)
    options = ConnectionOptions(socket=socket.create_connection(("127.0.0.1", server.port)))
    url = server.url + "/hello"
    agent.request("GET", url, options=options)
    assert agent.request("GET", url, options=options).reused
    agent.close_idle()

    with pytest.raises((HandshakeError, ConnectionError)):
        agent.request("GET", url, options=options)

    assert server.stats.connections == 1
    assert agent.request("GET", url).status == 200


def test_socket_is_refused_on_an_agent(open_agent, server):
    """
    An agent makes many connections: it takes no `socket`.
    """
    agent = open_agent()
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        assert server.wait_for(lambda s: s.stats.connections == 1)
        with pytest.raises(OptionError):
            type(agent.agent)(socket=sock)


def test_timeout_ends_a_silent_request(open_agent, open_peer):
    """
    `timeout` fails a request whose connection is silent for so long, and closes the connection.
    """

    def script(connection: PeerConnection) -> None:
        if connection.number == 1:
            connection.recv_request()
            connection.wait_gone()
        else:
            serve(connection)

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem)
    began = time.monotonic()

    with pytest.raises(InactivityTimeout):
        agent.request("GET", peer.url, options={"timeout": 0.2})

    assert 0.19 < time.monotonic() - began < 5
    assert agent.request("GET", peer.url).content == b"ok"
    assert len(peer.connections) == 2


def test_timeout_counts_from_the_last_bytes(open_agent, open_peer):
    """
    Bytes that come in start the clock of `timeout` anew: an answer in pieces may take longer than that.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_request()
        for at in range(len(OK)):
            connection.send(OK[at : at + 1])
            time.sleep(0.02)
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, timeout=0.5)

    response = agent.request("GET", peer.url)

    assert response.content == b"ok"
    assert response.timings.total > 0.5


def test_timeout_ends_an_idle_connection(open_agent, server):
    """
    A connection that was idle for longer than `timeout` serves no further request.
    """
    agent = open_agent(ca=server.ca_pem, timeout=0.2)
    agent.request("GET", server.url + "/hello")

    time.sleep(0.4)
    response = agent.request("GET", server.url + "/hello")

    assert not response.reused
    assert server.stats.connections == 2
    assert server.wait_for(lambda s: left_in_order(s.connections[0]), timeout=2)


# --- Who shares with whom ---------------------------------------------------------------------------------------------


def accept(_host: str, _certificate: Any) -> None:
    """A hook that accepts."""


def accept_too(_host: str, _certificate: Any) -> None:
    """A hook that accepts as well, and is another one."""


def loopback(_host: str, _family: int) -> list[str]:
    return ["127.0.0.1"]


def loopback_too(_host: str, _family: int) -> list[str]:
    return ["127.0.0.1"]


CA = default_authority().ca_pem
BOTH_CAS = [CA, Authority().ca_pem]

SEPARATE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ca": ({}, {"ca": BOTH_CAS}),
    "no client certificate": ({}, {"cert": CLIENT.cert_pem, "key": CLIENT.key_pem}),
    "client certificates": (
        {"cert": CLIENT.cert_pem, "key": CLIENT.key_pem},
        {"cert": OTHER_CLIENT.cert_pem, "key": OTHER_CLIENT.key_pem},
    ),
    "servername": ({"servername": "localhost"}, {"servername": "127-0-0-1.test"}),
    "no servername": ({}, {"servername": ""}),
    "reject_unauthorized": ({}, {"reject_unauthorized": False}),
    "check_server_identity": ({"check_server_identity": accept}, {"check_server_identity": accept_too}),
    "no check_server_identity": ({}, {"check_server_identity": accept}),
    "alpn_protocols": ({}, {"alpn_protocols": ["x/1", "http/1.1"]}),
    "no alpn_protocols": ({}, {"alpn_protocols": []}),
    "min_version": ({}, {"min_version": "TLSv1.3"}),
    "max_version": ({}, {"max_version": "TLSv1.2"}),
    "ciphers": ({}, {"ciphers": "TLS_AES_128_GCM_SHA256"}),
    "host": ({"host": "127.0.0.1"}, {"host": "localhost"}),
    "lookup": ({"lookup": loopback}, {"lookup": loopback_too}),
    "secure_context": (
        {"secure_context": create_secure_context(ca=CA)},
        {"secure_context": create_secure_context(ca=BOTH_CAS)},
    ),
}


def alternately(agent: Any, server: Any, one: dict[str, Any], other: dict[str, Any]) -> list[Any]:
    """Make requests with one, the other, one, the other; then one on a new connection; return the responses."""
    responses = [agent.request("GET", server.url + "/hello", options=options) for options in (one, other, one, other)]
    agent.close_idle()
    return [*responses, agent.request("GET", server.url + "/hello", options=one)]


def assert_apart(server: Any, responses: list[Any]) -> None:
    """Assert that two option sets shared neither a connection nor a session, though each used its own again."""
    assert [response.reused for response in responses] == [False, False, True, True, False]
    assert [connection.request_count for connection in server.connections] == [2, 2, 1]
    assert [offers_session(connection) for connection in server.connections] == [False, False, True]
    assert [connection.session_reused for connection in server.connections] == [False, False, True]


@pytest.mark.parametrize("name", SEPARATE)
def test_options_of_the_key_keep_apart(open_agent, new_server, name):
    """
    Two requests that differ in an option of the key share neither connection nor session.
    """
    with new_server(names=("localhost", "127-0-0-1.test"), request_cert=True) as server:
        agent = open_agent(ca=server.ca_pem)
        one, other = SEPARATE[name]

        responses = alternately(agent, server, one, other)

        assert_apart(server, responses)


def test_port_keeps_apart(open_agent, server, tcp_front):
    """
    Two requests to different ports share neither connection nor session, whoever listens there.
    """
    port, connections = tcp_front(server)
    agent = open_agent(ca=server.ca_pem)

    responses = alternately(agent, server, {}, {"port": port})

    assert_apart(server, responses)
    assert len(connections) == 1


def test_path_keeps_apart(open_agent, server, unix_front):
    """
    Two requests over different Unix sockets share neither connection nor session, whoever listens there.
    """
    first, taken = unix_front(server, "first")
    second, taken_too = unix_front(server, "second")
    agent = open_agent(ca=server.ca_pem)

    responses = alternately(agent, server, {"path": first}, {"path": second})

    assert_apart(server, responses)
    assert (len(taken), len(taken_too)) == (2, 1)


def test_socket_keeps_apart(open_agent, server):
    """
    The connection over a `socket` is for the requests with that socket alone, and so are its sessions.
    """
    agent = open_agent(ca=server.ca_pem)
    socks = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    url = server.url + "/hello"

    for options in ({"socket": socks[0]}, {"socket": socks[1]}, {}, {"socket": socks[0]}):
        agent.request("GET", url, options=options)

    assert sorted(connection.request_count for connection in server.connections) == [1, 1, 2]
    assert not any(offers_session(connection) for connection in server.connections)


def test_urls_keep_apart(open_agent, new_server):
    """
    Two names of one server at one address share neither connection nor session.
    """
    with new_server(names=("a.test", "b.test")) as server:
        agent = open_agent(ca=server.ca_pem, host="127.0.0.1")

        for name in ("a.test", "b.test", "a.test", "b.test"):
            agent.request("GET", f"https://{name}:{server.port}/hello")

        assert [c.request_count for c in server.connections] == [2, 2]
        assert [offers_session(c) for c in server.connections] == [False, False]


TOGETHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "timeout": ({"timeout": 20}, {"timeout": 30}),
    "passphrase": (
        {"cert": CLIENT.cert_pem, "key": CLIENT.key_pem},
        {"cert": CLIENT.cert_pem, "key": encrypted(CLIENT.key_pem, PASSPHRASE), "passphrase": PASSPHRASE},
    ),
    "another spelling": ({"ca": CA, "port": UNSET}, {"ca": [CA.decode()], "check_server_identity": None}),
    "the default, said": (
        {},
        {"min_version": "TLSv1.2", "alpn_protocols": ["h2", "http/1.1"], "reject_unauthorized": True},
    ),
    "the URL's own host": ({}, {"host": "localhost", "servername": "LOCALHOST"}),
    "a context of the same content": (
        {"secure_context": create_secure_context(ca=CA)},
        {"secure_context": create_secure_context(ca=CA.decode())},
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_other_options_do_not_keep_apart(open_agent, mutual_server, name):
    """
    Two requests that differ in nothing that the connection depends on share it, and its session afterwards.
    """
    agent = open_agent(ca=mutual_server.ca_pem)
    one, other = TOGETHER[name]

    responses = alternately(agent, mutual_server, one, other)

    assert [response.reused for response in responses] == [False, True, True, True, False]
    assert [connection.request_count for connection in mutual_server.connections] == [4, 1]
    assert [connection.session_reused for connection in mutual_server.connections] == [False, True]


def test_content_of_a_file_counts(open_agent, server, tmp_path):
    """
    A `ca` file is known by its content: another file of the same content shares, one that was replaced does not.
    """
    first, copy = tmp_path / "first.pem", tmp_path / "copy.pem"
    first.write_bytes(server.ca_pem)
    copy.write_bytes(server.ca_pem)
    agent = open_agent()
    url = server.url + "/hello"

    agent.request("GET", url, options={"ca": first})
    agent.request("GET", url, options={"ca": copy})
    first.write_bytes(Authority().ca_pem)

    with pytest.raises(CertificateError):
        agent.request("GET", url, options=ConnectionOptions(ca=first))
    assert [connection.request_count for connection in server.connections] == [2, 0]
    assert not offers_session(server.connections[1])


# --- Layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "heard"), [(UNSET, "a.test"), (None, "localhost"), ("b.test", "b.test"), ("", None)], ids=repr
)
def test_request_level_servername(open_agent, new_server, said, heard):
    """
    A request that says nothing takes the agent's value, None the default, any other value wins.
    """
    with new_server(names=("localhost", "a.test", "b.test")) as server:
        agent = open_agent(ca=server.ca_pem, servername="a.test")

        agent.request("GET", server.url + "/hello", options=ConnectionOptions(servername=said))

        assert hello_of(server.connections[0]).server_name == heard


@pytest.mark.parametrize(
    ("said", "offered"), [(UNSET, ("x/1", "http/1.1")), (None, ()), (["http/1.1"], ("http/1.1",))], ids=repr
)
def test_request_level_alpn_protocols(open_agent, server, said, offered):
    """
    The same for `alpn_protocols`, where None offers nothing.
    """
    agent = open_agent(ca=server.ca_pem, alpn_protocols=["x/1", "http/1.1"])

    agent.request("GET", server.url + "/hello", options={"alpn_protocols": said})

    assert hello_of(server.connections[0]).alpn_protocols == offered


@pytest.mark.parametrize(("said", "version"), [(UNSET, "TLSv1.2"), (None, "TLSv1.3"), ("TLSv1.3", "TLSv1.3")], ids=repr)
def test_request_level_max_version(open_agent, server, said, version):
    """
    The same for `max_version`.
    """
    agent = open_agent(ca=server.ca_pem, max_version="TLSv1.2")

    agent.request("GET", server.url + "/hello", options={"max_version": said})

    assert server.connections[0].version == version


@pytest.mark.parametrize(("said", "accepted"), [(UNSET, True), (None, False), (Authority().ca_pem, False)])
def test_request_level_ca(open_agent, server, said, accepted):
    """
    The same for `ca`, where None means certifi's roots.
    """
    agent = open_agent(ca=server.ca_pem)

    with contextlib.nullcontext() if accepted else pytest.raises(CertificateError):
        agent.request("GET", server.url + "/hello", options={"ca": said})

    assert server.stats.connections == 1


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({}, CLIENT),
        ({"cert": None, "key": None}, None),
        ({"cert": OTHER_CLIENT.cert_pem, "key": OTHER_CLIENT.key_pem}, OTHER_CLIENT),
    ],
    ids=["UNSET", "None", "another"],
)
def test_request_level_client_certificate(open_agent, mutual_server, said, shown):
    """
    The same for `cert` and `key`, where None shows no certificate.
    """
    agent = open_agent(ca=mutual_server.ca_pem, cert=CLIENT.cert_pem, key=CLIENT.key_pem)

    agent.request("GET", mutual_server.url + "/hello", options=said)

    assert mutual_server.connections[0].client_certificate == (shown and shown.leaf_der)


def test_request_level_none_for_hooks_and_routes(open_agent, server, tmp_path):
    """
    None for `lookup`, `host`, `port`, `path` and `check_server_identity` takes the agent's away.
    """

    def never(*_arguments: Any) -> Any:
        raise AssertionError("this hook was to be taken away")

    nowhere = str(tmp_path / "nobody")
    agent = open_agent(
        ca=server.ca_pem, lookup=never, check_server_identity=never, host="nowhere.invalid", port=1, path=nowhere
    )
    nothing = dict.fromkeys(("lookup", "check_server_identity", "host", "port", "path"))

    assert agent.request("GET", server.url + "/hello", options=nothing).status == 200


def test_request_level_timeout(open_agent, open_peer):
    """
    None for `timeout` lifts the agent's.
    """

    def script(connection: PeerConnection) -> None:
        connection.recv_request()
        time.sleep(0.4)
        connection.send(OK)
        connection.wait_gone()

    peer = open_peer(script)
    agent = open_agent(ca=peer.ca_pem, timeout=0.1)

    assert agent.request("GET", peer.url, options={"timeout": None}).content == b"ok"
    with pytest.raises(InactivityTimeout):
        agent.request("GET", peer.url, options={"timeout": UNSET, "alpn_protocols": None})


def test_secure_context_of_the_request_replaces_the_agents_material(open_agent, mutual_server):
    """
    A `secure_context` in the request drops `ca`, `cert`, `key` and versions of the agent; it does not mix with them.
    """
    agent = open_agent(ca=mutual_server.ca_pem, cert=CLIENT.cert_pem, key=CLIENT.key_pem, max_version="TLSv1.2")
    context = create_secure_context(ca=mutual_server.ca_pem)

    agent.request("GET", mutual_server.url + "/hello")
    agent.request("GET", mutual_server.url + "/hello", options={"secure_context": context})

    first, second = mutual_server.connections
    assert (first.version, first.client_certificate) == ("TLSv1.2", CLIENT.leaf_der)
    assert (second.version, second.client_certificate) == ("TLSv1.3", None)


def test_material_of_the_request_replaces_the_agents_secure_context(open_agent, mutual_server):
    """
    Material in the request drops the `secure_context` of the agent, client certificate and all.
    """
    context = create_secure_context(ca=mutual_server.ca_pem, cert=CLIENT.cert_pem, key=CLIENT.key_pem)
    agent = open_agent(secure_context=context)

    agent.request("GET", mutual_server.url + "/hello")
    agent.request("GET", mutual_server.url + "/hello", options={"ca": mutual_server.ca_pem})

    assert [c.client_certificate for c in mutual_server.connections] == [CLIENT.leaf_der, None]


def test_secure_context_beside_its_material_is_refused(open_agent, server):
    """
    In one layer the two contradict each other, and that is said before any I/O.
    """
    agent = open_agent(ca=server.ca_pem)
    both = {"secure_context": create_secure_context(), "ca": server.ca_pem}

    with pytest.raises(OptionError, match="ca"):
        agent.request("GET", server.url + "/hello", options=both)

    assert server.stats.connections == 0


def test_unknown_option_of_a_request_is_refused(open_agent, server):
    """
    A misspelt option is an error, not ignored.
    """
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(OptionTypeError, match="reject_unauthorized"):
        agent.request("GET", server.url + "/hello", options={"rejectUnauthorized": True})


def test_options_object_and_mapping_say_the_same(open_agent, server):
    """
    A mapping, the object made from it, and the same options on another agent's request share one connection.
    """
    agent = open_agent(ca=server.ca_pem)
    said = {"servername": "localhost", "min_version": "TLSv1.3"}

    for options in (said, dict(said), ConnectionOptions(**said)):
        agent.request("GET", server.url + "/hello", options=options)

    assert [connection.request_count for connection in server.connections] == [3]


def test_resolved_name_in_a_record(open_agent, server):
    """
    What the server's application hears of the connection agrees with what the client says of it.
    """
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("GET", server.url + "/connection")

    heard = json.loads(response.content)
    info = response.connection
    assert (heard["server_name"], heard["protocol_version"]) == ("localhost", info.protocol_version)
    assert (heard["cipher"], heard["alpn_protocol"]) == (info.cipher, info.alpn_protocol)
    assert heard["session_reused"] is info.session_reused is False
