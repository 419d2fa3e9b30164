"""Requests to one origin on the connection of another (RFC 9113, 9.1.1), and 421 (Misdirected Request)."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hyperframe.frame import GoAwayFrame, RstStreamFrame
from proxy_peer import ProxyServer
from wire_peer import wait_until

from tlsagent import Http2Options
from tlsagent.errors import CertificateNameError
from tlsagent.testing import RawServer, Server
from tlsagent.testing.authority import default_credentials
from tlsagent.testing.frames import FramePeer
from tlsagent.testing.scripted import RawPeer

HTTP2 = ("h2", "http/1.1")
COALESCE = Http2Options(coalesce=True)
A_AND_B = default_credentials(("a.test", "b.test"))


class Names:
    """A resolver that leads names to addresses, and counts how often it was asked for each."""

    def __init__(self, **addresses: str) -> None:
        self._addresses = {f"{name}.test": address for name, address in addresses.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, family: int) -> list[str]:
        self.asked.append(host)
        return [self._addresses.get(host, "127.0.0.1")]


class Authorities:
    """An application that notes whom each request was for, and answers 421 to some of them."""

    def __init__(self, misdirected: tuple[bytes, ...] = ()) -> None:
        self.seen: list[tuple[int, bytes]] = []
        self.misdirected = misdirected

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        host = dict(scope["headers"])[b"host"].partition(b":")[0]
        while (await receive()).get("more_body"):
            pass
        number = scope["client"][1]
        self.seen.append((number, host))
        first = self.seen[0][0] == number
        status = 421 if first and host in self.misdirected else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": host})


def url(server: Server, name: str) -> str:
    """Return the URL of a name that leads to the server."""
    return f"https://{name}.test:{server.port}/"


@pytest.fixture
def authorities():
    """Return the application of `shared_name`."""
    return Authorities()


@pytest.fixture
def both_names(authorities):
    """Return a server whose certificate is for a.test and b.test."""
    with Server(app=authorities, credentials=A_AND_B, alpn_protocols=HTTP2) as server:
        yield server


def test_off_by_default(open_agent, both_names):
    """
    Two origins have two connections, whatever their certificates cover.
    """
    agent = open_agent(ca=both_names.ca_pem, lookup=Names())

    ids = {agent.request("GET", url(both_names, name)).connection.id for name in "ab"}

    assert len(ids) == 2


def test_two_names_share_a_connection(open_agent, both_names, authorities):
    """
    Where it is asked for, a connection serves each name that its certificate covers and that leads to its address.
    """
    names = Names()
    agent = open_agent(ca=both_names.ca_pem, lookup=names, http2=COALESCE)

    responses = [agent.request("GET", url(both_names, name)) for name in "abbab"]

    assert {response.connection.id for response in responses} == {responses[0].connection.id}
    assert [response.content for response in responses] == [b"a.test", b"b.test", b"b.test", b"a.test", b"b.test"]
    assert {response.attempts for response in responses} == {1}
    assert names.asked == ["a.test", "b.test"]
    assert both_names.stats.connections == 1
    assert agent.stats().idle == 1


@pytest.mark.parametrize(
    "difference",
    [
        {"addresses": {"b": "127.0.0.2"}},
        {"options": {"min_version": "TLSv1.3"}},
        {"options": {"no_delay": False}},
        {"options": {"check_server_identity": lambda host, certificate: None}},
    ],
    ids=["address", "identity", "route", "hook"],
)
def test_what_must_be_equal(open_agent, both_names, difference):
    """
    Another address, or an option that is in the key, and each origin has its own connection.
    """
    agent = open_agent(ca=both_names.ca_pem, lookup=Names(**difference.get("addresses", {})), http2=COALESCE)
    first = agent.request("GET", url(both_names, "a"))

    if "addresses" in difference:
        with Server(host="127.0.0.2", port=both_names.port, credentials=A_AND_B, alpn_protocols=HTTP2) as other:
            second = agent.request("GET", url(other, "b"))
    else:
        second = agent.request("GET", url(both_names, "b"), options=difference["options"])

    assert second.connection.id != first.connection.id


def test_name_that_the_certificate_does_not_cover(open_agent, both_names):
    """
    A name that the certificate is not for gets a connection of its own, and is refused there.
    """
    agent = open_agent(ca=both_names.ca_pem, lookup=Names(), http2=COALESCE)
    agent.request("GET", url(both_names, "a"))

    with pytest.raises(CertificateNameError):
        agent.request("GET", url(both_names, "c"))

    assert both_names.stats.requests == 1


@pytest.mark.parametrize("trusted", [True, False])
def test_connection_that_was_not_verified_is_its_origins_alone(open_agent, both_names, trusted):
    """
    Where certificates are not to be verified nothing says that the server speaks for the other name.
    """
    agent = open_agent(
        ca=both_names.ca_pem if trusted else None, lookup=Names(), http2=COALESCE, reject_unauthorized=False
    )

    ids = {agent.request("GET", url(both_names, name)).connection.id for name in "ab"}

    assert len(ids) == 2


def test_hook_is_asked_for_the_other_name(open_agent, both_names):
    """
    A check of the user's decides on the other name too, before a request is sent there.
    """
    asked: list[str] = []

    def check(host: str, certificate: Any) -> Exception | None:
        asked.append(host)
        return ValueError("not this one") if host == "b.test" else None

    agent = open_agent(ca=both_names.ca_pem, lookup=Names(), http2=COALESCE, check_server_identity=check)
    agent.request("GET", url(both_names, "a"))

    with pytest.raises(CertificateNameError, match="not this one"):
        agent.request("GET", url(both_names, "b"))

    assert asked == ["a.test", "b.test", "b.test"]
    assert both_names.stats.requests == 1


def test_misdirected_request_is_sent_again_on_its_own_connection(open_agent, both_names, authorities):
    """
    A 421 on another's connection leads to one more attempt, whatever the method, and no further coalescing.
    """
    authorities.misdirected = (b"b.test",)
    agent = open_agent(ca=both_names.ca_pem, lookup=Names(), http2=COALESCE)
    first = agent.request("GET", url(both_names, "a"))

    second = agent.request("POST", url(both_names, "b"), content=b"x")
    third = agent.request("POST", url(both_names, "b"), content=b"x")

    assert (second.status, second.attempts, third.attempts) == (200, 2, 1)
    assert second.connection.id == third.connection.id != first.connection.id
    assert [host for _, host in authorities.seen] == [b"a.test", b"b.test", b"b.test", b"b.test"]


def test_misdirected_request_that_cannot_be_repeated(open_agent, both_names, authorities):
    """
    Without a body to send again, or by wish, a 421 is the response; so it is on a connection of one's own. The origin
    has its own connection from then on.
    """
    authorities.misdirected = (b"a.test", b"b.test")
    agent = open_agent(ca=both_names.ca_pem, lookup=Names(), http2=COALESCE)
    own = agent.request("GET", url(both_names, "a"))

    others = agent.request("GET", url(both_names, "b"), retry=False)
    later = agent.request("GET", url(both_names, "b"), retry=False)

    assert (own.status, own.attempts) == (421, 1)
    assert (others.status, others.attempts) == (421, 1)
    assert (later.status, later.attempts) == (200, 1)


def test_origin_that_was_refused_once_is_not_sent_there_again(open_agent):
    """
    A request that failed on another's connection goes to one of its own, and so do those that come when that has gone.
    """

    def script(raw: RawPeer) -> None:
        peer = FramePeer(raw)
        peer.greet()
        while request := peer.recv_request():
            if raw.number == 1 and request.header(":authority").startswith("b."):
                peer.send(RstStreamFrame(request.stream_id, 7))
                continue
            peer.respond(request.stream_id)
            if raw.number > 1:
                peer.send(GoAwayFrame(last_stream_id=request.stream_id))
                raw.wait_closed()
                return

    with RawServer(script, names=("a.test", "b.test"), alpn_protocols=("h2",)) as server:
        a, b = (f"https://{name}.test:{server.port}" for name in "ab")
        agent = open_agent(ca=server.authority.ca_pem, lookup=Names(), http2=COALESCE)
        responses = [agent.request("POST", url, content=b"x") for url in (a, b, b)]
        agent.close()

    assert [response.attempts for response in responses] == [1, 2, 1]
    assert len({response.connection.id for response in responses}) == 3


def test_connection_that_went_is_not_found_again(open_agent, both_names):
    """
    After the shared connection has gone the other name finds another way.
    """
    agent = open_agent(ca=both_names.ca_pem, lookup=Names(), http2=COALESCE)
    for name in "ab":
        agent.request("GET", url(both_names, name))
    agent.close_idle()

    response = agent.request("GET", url(both_names, "b"))

    assert (response.status, response.attempts) == (200, 1)
    assert both_names.stats.connections == 2


def test_many_at_once_find_the_connection(open_agent, both_names):
    """
    A burst of requests to a second name takes the connection of the first, all of it.
    """
    agent = open_agent(ca=both_names.ca_pem, lookup=Names(), http2=COALESCE)
    agent.request("GET", url(both_names, "a"))

    futures = [agent.submit("GET", url(both_names, "b")) for _ in range(20)]

    assert {future.result().status for future in futures} == {200}
    assert both_names.stats.connections == 1


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_names_behind_a_proxy_are_kept_apart(open_agent, both_names, scheme):
    """
    Through a proxy nobody knows where a name leads: the address that was looked up is the proxy's.
    """
    with ProxyServer(scheme, names={"a.test": "127.0.0.1", "b.test": "127.0.0.1"}) as proxy:
        agent = open_agent(
            ca=both_names.ca_pem, lookup=Names(), http2=COALESCE, proxy=f"{scheme}://127.0.0.1:{proxy.port}"
        )

        ids = {agent.request("GET", url(both_names, name)).connection.id for name in "ab"}
        agent.close()

    assert len(ids) == 2


def test_connection_that_was_idle_for_too_long_is_not_found(open_agent, both_names):
    """
    A connection whose idle time is over, though nobody has closed it yet, is not looked for again and again.
    """
    names = Names()
    agent = open_agent(ca=both_names.ca_pem, lookup=names, http2=COALESCE, free_socket_timeout=0.1)
    first = agent.request("GET", url(both_names, "a"))
    time.sleep(0.2)

    second = agent.request("GET", url(both_names, "b"), timeouts=5)

    assert second.connection.id != first.connection.id
    assert names.asked.count("b.test") <= 2
    assert wait_until(lambda: agent.stats().closed["free_socket_timeout"] >= 1)


def test_retry_gets_a_connection_of_its_own(open_agent):
    """
    A request that failed on its origin's own connection is sent again on a new one of that, though another's would do.
    """

    def script(raw: RawPeer) -> None:
        peer = FramePeer(raw)
        peer.greet()
        while request := peer.recv_request():
            peer.respond(request.stream_id)
            if raw.number == 2:
                peer.recv_request()
                raw.close_abruptly()
                return

    with RawServer(script, names=("a.test", "b.test"), alpn_protocols=("h2",)) as server:
        a, b = (f"https://{name}.test:{server.port}" for name in "ab")
        agent = open_agent(ca=server.authority.ca_pem, lookup=Names(), http2=COALESCE)
        agent.preconnect(a)
        agent.preconnect(b)
        ids = [agent.request("GET", url).connection.id for url in (a, b)]

        response = agent.request("GET", b)

        assert len({*ids, response.connection.id}) == 3
        assert (response.status, response.attempts) == (200, 2)
        agent.close()


def test_names_beyond_a_thousand_are_forgotten(open_sync_agent):
    """
    The last 1,024 names that share a connection are remembered; whoever comes again later is looked up anew.
    """
    names = Names()
    with Server(credentials=default_credentials(("*.w.test",)), alpn_protocols=HTTP2) as server:
        agent = open_sync_agent(ca=server.ca_pem, lookup=names, http2=COALESCE)
        urls = [f"https://{number}.w.test:{server.port}/hello" for number in range(1_026)]
        for url in [*urls, urls[2], urls[1]]:
            assert agent.request("GET", url).status == 200
        assert server.stats.connections == 1

    # The first one has the connection, and is not among those that share it.
    assert [names.asked.count(f"{number}.w.test") for number in (0, 1, 2, 3)] == [1, 2, 1, 1]
