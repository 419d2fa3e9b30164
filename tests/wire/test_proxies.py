"""Connections through proxies: HTTP CONNECT, over TLS too, and SOCKS5."""

from __future__ import annotations

import base64
import contextlib
import socket

import pytest
from proxy_peer import ProxyServer
from wire_peer import closed_port, standstill, wait_until

from tlsagent import (
    CertificateNameError,
    ConnectionOptions,
    OptionError,
    Proxy,
    ProxyError,
    ResolutionError,
    Timeouts,
    TotalTimeout,
    TunnelTimeout,
    events,
    node,
)
from tlsagent.testing import Authority

SCHEMES = ("http", "https", "socks5", "socks5h")


@contextlib.contextmanager
def proxy_of(scheme: str, **settings):
    if scheme == "https":
        settings.setdefault("authority", Authority())
    with ProxyServer(scheme.removesuffix("h") if scheme == "socks5h" else scheme, **settings) as proxy:
        yield proxy


def option(proxy: ProxyServer, scheme: str, userinfo: str = "", **settings) -> Proxy:
    """Return the option for a proxy; one with TLS is verified by its own CA."""
    if scheme == "https":
        settings.setdefault("tls", ConnectionOptions(ca=proxy.ca_pem))
    return Proxy(f"{scheme}://{userinfo}localhost:{proxy.port}", **settings)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_request_through_a_proxy(open_agent, server, scheme):
    """
    The request reaches the server through a tunnel; its connection is kept and used again; what the proxy sees is TLS.
    """
    with proxy_of(scheme) as proxy:
        agent = open_agent(ca=server.ca_pem, proxy=option(proxy, scheme))

        first = agent.request("POST", server.url + "/echo", content=b"sesame" * 100_000)
        second = agent.request("GET", server.url + "/hello")

        assert first.content == b"sesame" * 100_000
        assert not first.reused
        assert second.reused
        [asked] = proxy.asked
        host = "127.0.0.1" if scheme == "socks5" else "localhost"
        assert asked.target == f"{host}:{server.port}"
        assert asked.upwards.startswith(b"\x16\x03")
        assert b"sesame" not in asked.upwards
        assert server.connections[0].sni == "localhost"
        assert first.connection.proxy == f"{scheme}://localhost:{proxy.port}"
        assert first.connection.remote_address[1] == proxy.port
        assert first.timings.tunnel > 0
        assert first.timings.handshake > 0
        agent.close()
        assert wait_until(lambda: asked.ended)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_large_bodies_both_ways(open_agent, server, scheme):
    """
    Bodies of many pieces go through in both directions, whole.
    """
    body = bytes(range(256)) * 8_192
    with proxy_of(scheme) as proxy:
        agent = open_agent(ca=server.ca_pem, proxy=option(proxy, scheme))

        with agent.stream("POST", server.url + "/echo", content=iter([body[:1_000_000], body[1_000_000:]])) as response:
            assert b"".join(response.iter_bytes()) == body


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_credentials_for_connect(open_agent, server, scheme):
    """
    The proxy gets our credentials, the server does not.
    """
    with proxy_of(scheme) as proxy:
        agent = open_agent(ca=server.ca_pem, proxy=option(proxy, scheme, "me:open%20sesame@"))

        response = agent.request("GET", server.url + "/headers")

        token = base64.b64encode(b"me:open sesame")
        assert b"\r\nProxy-Authorization: Basic " + token + b"\r\n" in proxy.asked[0].head
        assert b"authorization" not in response.content.lower()


def test_credentials_for_socks(open_agent, server):
    """
    A SOCKS5 proxy that asks for user name and password gets them; wrong ones are refused by name.
    """
    with ProxyServer("socks5", credentials=(b"me", b"sesame")) as proxy:
        agent = open_agent(ca=server.ca_pem, proxy=option(proxy, "socks5h", "me:sesame@"))
        assert agent.request("GET", server.url + "/hello").status == 200

        for userinfo in ("", "me:wrong@"):
            stranger = open_agent(ca=server.ca_pem, proxy=option(proxy, "socks5h", userinfo))
            with pytest.raises(ProxyError, match="user name and password") as caught:
                stranger.request("GET", server.url + "/hello")
            assert caught.value.phase == "tunnel"
            assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
def test_the_proxy_resolves_the_name(open_agent, new_server, server, scheme):
    """
    A name that only the proxy knows is left to it; the certificate must be for that name.
    """
    with (
        new_server(names=("only.proxy.test",)) as hidden,
        proxy_of(scheme, names={"only.proxy.test": "127.0.0.1"}) as proxy,
    ):
        agent = open_agent(ca=hidden.ca_pem, proxy=option(proxy, scheme))

        response = agent.request("GET", f"https://only.proxy.test:{hidden.port}/hello")

        assert response.status == 200
        assert proxy.asked[0].target == f"only.proxy.test:{hidden.port}"


def test_socks5_resolves_here(open_agent, new_server, server):
    """
    For `socks5` the name is resolved here, by `lookup` too, and the proxy is given an address.
    """
    asked = []

    def lookup(host, family):
        asked.append(host)
        return ["127.0.0.1"]

    with new_server(names=("only.here.test",)) as hidden, ProxyServer("socks5") as proxy:
        agent = open_agent(ca=hidden.ca_pem, lookup=lookup, proxy=f"socks5://proxy.test:{proxy.port}")

        assert agent.request("GET", f"https://only.here.test:{hidden.port}/hello").status == 200

        assert asked == ["only.here.test", "proxy.test"]
        assert proxy.asked[0].target == f"127.0.0.1:{hidden.port}"


def test_a_name_that_is_not_resolved_here(open_agent):
    """
    If the origin has no address it is the origin's `ResolutionError`; if the proxy has none, a `ProxyError` says so.
    """
    agent = open_agent()

    with pytest.raises(ResolutionError, match=r"nowhere\.invalid"):
        agent.request("GET", "https://nowhere.invalid/", options={"proxy": "socks5://localhost:9"}, timeouts=20)
    with pytest.raises(ProxyError, match=r"nowhere\.invalid") as caught:
        agent.request("GET", "https://localhost/", options={"proxy": "http://nowhere.invalid"}, timeouts=20)
    assert caught.value.phase == "lookup"
    assert isinstance(caught.value.__cause__, ResolutionError)


def test_the_origin_is_verified_behind_the_proxy(open_agent, server):
    """
    A proxy that leads somewhere else gains nothing: the certificate must be for the URL's host.
    """
    with ProxyServer("http", names={"other.test": "127.0.0.1"}) as proxy:
        agent = open_agent(ca=server.ca_pem, proxy=proxy.url)

        with pytest.raises(CertificateNameError):
            agent.request("GET", f"https://other.test:{server.port}/hello")

    assert server.stats.requests == 0


def test_an_https_proxy_is_verified(open_agent, server):
    """
    An https proxy is verified: by its own options, else by the agent's `ca`, and never less because the origin is not.
    """
    with ProxyServer("https", authority=server.authority) as proxy:
        assert open_agent(ca=server.ca_pem, proxy=proxy.url).request("GET", server.url + "/hello").status == 200
    with ProxyServer("https", authority=Authority()) as proxy:
        for agent in (
            open_agent(ca=server.ca_pem, proxy=proxy.url),
            open_agent(reject_unauthorized=False, proxy=proxy.url),
            open_agent(ca=server.ca_pem, proxy=Proxy(proxy.url, tls=ConnectionOptions(ca=server.ca_pem))),
        ):
            with pytest.raises(ProxyError, match="TLS to the proxy") as caught:
                agent.request("GET", server.url + "/hello")
            assert caught.value.phase == "tunnel"
            assert caught.value.__cause__.code == caught.value.code == "UNABLE_TO_VERIFY_LEAF_SIGNATURE"
        assert proxy.asked == []


def test_an_https_proxy_of_another_name(open_agent, server):
    """
    The certificate of an https proxy must be for the proxy's name.
    """
    with ProxyServer("https", authority=server.authority, host="other.test") as proxy:
        agent = open_agent(ca=server.ca_pem, proxy=proxy.url)
        with pytest.raises(ProxyError) as caught:
            agent.request("GET", server.url + "/hello")
        assert isinstance(caught.value.__cause__, CertificateNameError)

        tls = ConnectionOptions(ca=server.ca_pem, servername="other.test")
        named = open_agent(ca=server.ca_pem, proxy=Proxy(proxy.url, tls=tls))
        assert named.request("GET", server.url + "/hello").status == 200


def test_client_certificate_for_the_proxy(open_agent, server):
    """
    The proxy's client certificate is given to the proxy, that of the origin is not.
    """
    authority = server.authority
    ours = authority.issue("client@localhost", client=True)
    with ProxyServer("https", authority=authority, request_cert=True) as proxy:
        own = {"cert": ours.cert_pem, "key": ours.key_pem}
        known = Proxy(proxy.url, tls=ConnectionOptions(ca=server.ca_pem, **own))
        assert open_agent(ca=server.ca_pem, proxy=known).request("GET", server.url + "/hello").status == 200

        with pytest.raises(ProxyError):
            open_agent(ca=server.ca_pem, proxy=proxy.url, **own).request("GET", server.url + "/hello")


@pytest.mark.parametrize(
    ("scheme", "answer", "status"),
    [
        ("http", b"HTTP/1.1 403 No\r\n\r\n", 403),
        ("https", b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n", 407),
        ("http", b"junk\r\n\r\n", None),
        ("socks5", b"\x05\x05\x00\x01\0\0\0\0\0\0", 5),
    ],
)
def test_a_proxy_that_refuses(open_agent, server, scheme, answer, status):
    """
    A refusal is the error of that one request, nothing is retried, and the next request asks anew.
    """
    with proxy_of(scheme, answer=answer) as proxy:
        agent = open_agent(ca=server.ca_pem, max_sockets=1, proxy=option(proxy, scheme))

        for _ in range(2):
            with pytest.raises(ProxyError) as caught:
                agent.request("GET", server.url + "/hello")
            assert caught.value.status == status
            assert caught.value.phase == "tunnel"
            assert not caught.value.request_sent

        assert len(proxy.asked) == 2
        assert (agent.stats().dialling, agent.stats().active) == (0, 0)
        assert wait_until(lambda: all(asked.ended for asked in proxy.asked))


def test_a_proxy_that_is_not_there(open_agent, server):
    """
    A proxy that refuses connections is a `ProxyError` with the system's code.
    """
    agent = open_agent(ca=server.ca_pem, proxy=f"http://127.0.0.1:{closed_port()}")

    with pytest.raises(ProxyError, match="not reached") as caught:
        agent.request("GET", server.url + "/hello")

    assert (caught.value.code, caught.value.phase) == ("ECONNREFUSED", "connect")


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_a_proxy_that_breaks_off(open_agent, open_peer, server, how):
    """
    A proxy that closes before the tunnel is open is a `ProxyError`, not taken for the server.
    """

    def script(connection):
        connection.recv_head()
        getattr(connection, how)()

    peer = open_peer(script, tls=False)
    agent = open_agent(ca=server.ca_pem, proxy=f"http://127.0.0.1:{peer.port}")

    with pytest.raises(ProxyError) as caught:
        agent.request("GET", server.url + "/hello")

    assert caught.value.phase == "tunnel"


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_a_proxy_that_says_nothing(open_agent, server, scheme):
    """
    `timeouts.tunnel` limits the time until the tunnel is open, the TLS of an https proxy included.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        agent = open_agent(ca=server.ca_pem, proxy=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")

        with pytest.raises(TunnelTimeout) as caught:
            agent.request("GET", server.url + "/hello", timeouts=Timeouts(tunnel=0.2, handshake=30))

        assert caught.value.phase == "tunnel"
        assert agent.stats().dialling == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_clock_of_the_handshake_starts_behind_the_tunnel(open_agent, scheme):
    """
    Once the tunnel is open it is `timeouts.handshake` that counts.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent, proxy_of(scheme) as proxy:
        agent = open_agent(proxy=option(proxy, scheme))
        url = f"https://localhost:{silent.getsockname()[1]}/"

        with pytest.raises(TimeoutError) as caught:
            agent.request("GET", url, timeouts=Timeouts(tunnel=30, handshake=0.2, total=20))

        assert caught.value.phase == "handshake"


def test_given_up_while_the_tunnel_opens(open_agent, server):
    """
    A request that gives up while its tunnel opens leaves the attempt to the next one.
    """
    with ProxyServer("http", hold=True) as proxy:
        agent = open_agent(ca=server.ca_pem, max_sockets=1, proxy=proxy.url)
        with pytest.raises(TotalTimeout):
            agent.request("GET", server.url + "/hello", timeouts=0.2)
        assert wait_until(lambda: len(proxy.asked) == 1)

        waiting = agent.submit("GET", server.url + "/hello", timeouts=10)
        proxy.release()

        assert waiting.result(10).status == 200
        assert agent.stats().active == 0


def test_the_proxy_is_in_the_key(open_agent, server):
    """
    Requests by another proxy, with other credentials or by none share no connection; those that agree do.
    """
    with ProxyServer("http") as one, ProxyServer("http") as other:
        agent = open_agent(ca=server.ca_pem, proxy=one.url)
        ways = [
            None,
            {"proxy": other.url},
            {"proxy": one.url.replace("://", "://me:a@")},
            {"proxy": one.url.replace("://", "://me:b@")},
            {"proxy": None},
        ]

        first = [agent.request("GET", server.url + "/hello", options=way) for way in ways]
        again = [agent.request("GET", server.url + "/hello", options=way) for way in ways]

        assert [response.reused for response in first] == [False] * 5
        assert [response.reused for response in again] == [True] * 5
        assert len({response.connection.id for response in first}) == 5
        assert (len(one.asked), len(other.asked)) == (3, 1)
        assert first[-1].connection.proxy is None
        assert not any("me" in key.partition("#")[2] for key in agent.stats().by_key)


def test_sessions_of_a_proxied_connection(open_agent, server):
    """
    Sessions are resumed through the same proxy, whatever the credentials, and not past it.
    """
    with ProxyServer("http") as proxy:
        agent = open_agent(ca=server.ca_pem, keep_alive=False, proxy=proxy.url)

        def resumed(**options):
            return agent.request("GET", server.url + "/hello", options=options).connection.session_reused

        assert not resumed()
        assert resumed()
        assert resumed(proxy=proxy.url.replace("://", "://me:a@"))
        assert not resumed(proxy=None)


def test_host_and_port_say_where_the_proxy_connects(open_agent, server):
    """
    `host` and `port` are what the proxy is asked for; the verified name stays the URL's.
    """
    with ProxyServer("http") as proxy:
        agent = open_agent(ca=server.ca_pem, proxy=proxy.url, host="127.0.0.1", port=server.port)

        assert agent.request("GET", "https://localhost/hello").status == 200

        assert proxy.asked[0].target == f"127.0.0.1:{server.port}"
        assert server.connections[0].sni == "localhost"


def test_hosts_without_a_proxy(open_agent, server):
    """
    Hosts of `no_proxy` are connected to directly.
    """
    with ProxyServer("http") as proxy:
        agent = open_agent(ca=server.ca_pem, proxy=Proxy(proxy.url, no_proxy="localhost"))

        assert agent.request("GET", server.url + "/hello").connection.proxy is None
        assert agent.request("GET", f"https://127.0.0.1:{server.port}/hello").connection.proxy == proxy.url


def test_proxy_of_the_environment(open_agent, server, monkeypatch):
    """
    The variables are heeded with `proxy="env"` alone.
    """
    for name in ("https_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ProxyServer("http") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)

        assert open_agent(ca=server.ca_pem).request("GET", server.url + "/hello").connection.proxy is None
        agent = open_agent(ca=server.ca_pem, proxy="env")
        assert agent.request("GET", server.url + "/hello").connection.proxy == proxy.url


def test_proxy_env_of_node(open_agent, server):
    """
    Node's `proxyEnv` becomes `proxy`, with Node's reading of NO_PROXY: a name covers itself alone.
    """
    with ProxyServer("http") as proxy:
        environment = {"HTTPS_PROXY": proxy.url, "NO_PROXY": "127.0.0.1, host"}
        options = node.agent_options({"ca": server.ca_pem, "proxyEnv": environment})
        agent = open_agent(options=options)

        assert agent.request("GET", server.url + "/hello").connection.proxy == proxy.url
        assert agent.request("GET", f"https://127.0.0.1:{server.port}/hello").connection.proxy is None


@pytest.mark.http1("the test itself speaks over the connection")
def test_raw_connection_through_a_proxy(open_agent, server):
    """
    `connect` goes through the proxy too.
    """
    with ProxyServer("https", authority=server.authority) as proxy:
        agent = open_agent(ca=server.ca_pem, proxy=proxy.url)
        raw = agent.connect("localhost", server.port, alpn_protocols=["http/1.1"])

        raw.send(b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert raw.recv().startswith(b"HTTP/1.1 200")

        assert raw.info.proxy == proxy.url
        raw.close()
        assert wait_until(lambda: proxy.asked[0].ended)


def test_events_name_the_proxy(open_agent, server):
    """
    `Connecting` says where the socket goes: to the proxy.
    """
    with ProxyServer("http") as proxy:
        agent = open_agent(ca=server.ca_pem, proxy=proxy.url)
        heard = []
        agent.agent.on(events.Connecting, heard.append)

        agent.request("GET", server.url + "/hello")

        assert [(event.host, event.port) for event in heard] == [("localhost", proxy.port)]


def test_a_server_that_closes_behind_the_proxy(open_agent, server):
    """
    The end of an idle connection comes through the tunnel; the next request makes a new one.
    """
    for scheme in ("http", "https"):
        with proxy_of(scheme) as proxy:
            agent = open_agent(ca=server.ca_pem, proxy=option(proxy, scheme))
            agent.request("GET", server.url + "/hello")
            server.close_connections()
            assert wait_until(lambda: proxy.asked[0].ended or standstill(lambda: len(proxy.asked)))

            assert agent.request("GET", server.url + "/hello").status == 200
            assert len(proxy.asked) == 2


def test_path_through_a_proxy(open_agent, server):
    """
    A request with a `path` of its own goes there, not through the agent's proxy; both in one layer are refused.
    """
    agent = open_agent(ca=server.ca_pem, proxy="http://127.0.0.1:9")

    with pytest.raises(OptionError, match="proxy"):
        agent.request("GET", server.url + "/hello", options={"path": "/run/x", "proxy": "http://127.0.0.1:9"})
    with pytest.raises(ConnectionError) as caught:
        agent.request("GET", server.url + "/hello", options={"path": "/nonexistent/socket"})
    assert not isinstance(caught.value, ProxyError)
