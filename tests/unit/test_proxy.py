"""The option `proxy`: its URL, the environment, the hosts it leaves out."""

from __future__ import annotations

import pickle

import pytest

from tlsagent import AgentOptions, ConnectionOptions, OptionError, Proxy
from tlsagent._proxy import bypass_list, from_environment


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port"),
    [
        ("http://proxy.test", "http", "proxy.test", 80),
        ("https://proxy.test", "https", "proxy.test", 443),
        ("socks5://proxy.test", "socks5", "proxy.test", 1080),
        ("socks5h://proxy.test:9050/", "socks5h", "proxy.test", 9050),
        ("HTTP://Proxy.TEST:3128", "http", "proxy.test", 3128),
        ("proxy.test:3128", "http", "proxy.test", 3128),
        ("http://[::1]:3128", "http", "::1", 3128),
        ("http://bücher.test", "http", "xn--bcher-kva.test", 80),
    ],
)
def test_url(url, scheme, host, port):
    """
    A URL gives scheme, host and port; scheme and port have defaults.
    """
    proxy = Proxy(url)

    assert (proxy.scheme, proxy.host, proxy.port) == (scheme, host, port)
    assert Proxy(proxy.url) == proxy


@pytest.mark.parametrize(
    ("url", "credentials"),
    [
        ("http://proxy.test", (None, None)),
        ("http://me@proxy.test", (b"me", b"")),
        ("http://me:open%3Asesame%40@proxy.test", (b"me", b"open:sesame@")),
        ("socks5://me:%C3%BC@proxy.test", (b"me", "ü".encode())),
        ("http://m%E9:%FF%00@proxy.test", (b"m\xe9", b"\xff\0")),
        ("http://me:ü\udce9@proxy.test", (b"me", "ü".encode() + b"\xe9")),  # as os.environ shows what is not UTF-8
    ],
)
def test_credentials(url, credentials):
    """
    User name and password stand in the URL, percent-encoded.
    """
    proxy = Proxy(url)

    assert (proxy.username, proxy.password) == credentials


@pytest.mark.parametrize(
    "url",
    [
        "ftp://proxy.test",
        "socks4://proxy.test",
        "http://",
        "http://:3128",
        "http://proxy.test:0",
        "http://proxy.test:99999",
        "http://proxy.test:x",
        "http://[::1",
        "http://proxy.test/path",
        "http://proxy.test?x",
        "http://proxy.test#x",
        "http://pro xy.test",
        "http://proxy.test\r\n",
        "http://pro_xy!.test",
        "http://a%3Ab:secret@proxy.test",
        "socks5://:secret@proxy.test",
        f"socks5://me:{'s' * 256}@proxy.test",
        "http://me:\ud800@proxy.test",
    ],
)
def test_a_url_that_cannot_be_used(url):
    """
    What cannot be used is refused when it is said, with Node's code and without the URL in the message.
    """
    with pytest.raises(OptionError) as caught:
        ConnectionOptions(proxy=url)

    assert caught.value.code == "ERR_PROXY_INVALID_CONFIG"
    assert "proxy.test" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConnectionOptions(proxy=3128),
        lambda: Proxy(b"http://proxy.test"),
        lambda: Proxy("https://proxy.test", tls={"ca": None}),
        lambda: Proxy("http://proxy.test", no_proxy=["a.test"]),
    ],
)
def test_a_value_of_the_wrong_type(make):
    """
    A value of another type is an `OptionError` that is a TypeError too.
    """
    with pytest.raises(OptionError) as caught:
        make()

    assert isinstance(caught.value, TypeError)


def test_tls_without_tls():
    """
    Options for the TLS to a proxy that speaks none would have no effect.
    """
    with pytest.raises(OptionError, match="tls"):
        Proxy("http://proxy.test", tls=ConnectionOptions(reject_unauthorized=True))


@pytest.mark.parametrize("name", ["host", "port", "path", "servername_", "timeout", "proxy", "lookup", "family"])
def test_tls_options_that_have_no_place(name):
    """
    The TLS options of a proxy say whom to trust and who we are, not where the bytes go.
    """
    values = {"host": "a.test", "port": 1, "path": "/x", "timeout": 1, "proxy": "http://x.test", "lookup": print}
    if name == "servername_":
        assert Proxy("https://proxy.test", tls=ConnectionOptions(servername="other.test"))
        return

    with pytest.raises(OptionError, match=name):
        Proxy("https://proxy.test", tls=ConnectionOptions(**{name: values.get(name, 4)}))


def test_no_secret_is_shown():
    """
    Neither a proxy nor the options it is in show its credentials.
    """
    proxy = Proxy("http://somebody:sesame@proxy.test", no_proxy="a.test")

    for text in (repr(proxy), str(proxy), repr(AgentOptions(proxy=proxy)), proxy.url):
        assert "sesame" not in text
        assert "somebody" not in text
    assert "proxy.test" in repr(proxy)


def test_equal_by_content():
    """
    Proxies are equal when all they say is; so are options with them, which are keys of memos.
    """

    def make(user="me", host="proxy.test", no_proxy="a.test"):
        return ConnectionOptions(proxy=Proxy(f"http://{user}:sesame@{host}", no_proxy=no_proxy))

    assert make() == make()
    assert hash(make()) == hash(make())
    assert len({make(), make(user="you"), make(host="b.test"), make(no_proxy="b.test"), make()}) == 4
    assert Proxy("http://a.test") != "http://a.test"
    assert pickle.loads(pickle.dumps(make())) == make()


@pytest.mark.parametrize(
    ("environment", "url", "direct"),
    [
        ({}, None, []),
        ({"http_proxy": "http://p.test"}, None, []),
        ({"https_proxy": "http://p.test"}, "http://p.test:80", []),
        ({"https_proxy": "http://p.test", "HTTPS_PROXY": "http://q.test"}, "http://p.test:80", []),
        ({"https_proxy": "", "HTTPS_PROXY": "http://q.test"}, "http://q.test:80", []),
        ({"ALL_PROXY": "socks5://s.test"}, "socks5://s.test:1080", []),
        ({"ALL_PROXY": "socks5://s.test", "HTTPS_PROXY": "http://q.test"}, "http://q.test:80", []),
        ({"HTTPS_PROXY": "http://q.test", "NO_PROXY": "a.test"}, "http://q.test:80", ["a.test"]),
        ({"HTTPS_PROXY": "http://q.test", "no_proxy": "b.test", "NO_PROXY": "a.test"}, "http://q.test:80", ["b.test"]),
    ],
)
def test_environment(environment, url, direct):
    """
    The environment names the proxy for https, lower case first, and the hosts that it leaves out.
    """
    proxy = from_environment(environment)

    assert (proxy and proxy.url) == url
    if proxy is not None:
        assert [host for host in ("a.test", "b.test", "c.test") if not proxy.serves(host, 443)] == direct


def test_env_is_read_when_the_options_are_made(monkeypatch):
    """
    "env" stands for what the variables say at that moment; with none it stands for no proxy, over that of an agent.
    """
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    agent = AgentOptions(proxy="http://agent.test")

    assert ConnectionOptions(proxy="env").merged_over(agent).proxy is None
    monkeypatch.setenv("HTTPS_PROXY", "http://env.test")
    assert ConnectionOptions(proxy="env").merged_over(agent).proxy == Proxy("http://env.test")


@pytest.mark.parametrize(
    ("text", "hosts", "others"),
    [
        ("*", ["a.test", "127.0.0.1", "::1"], []),
        ("a.test", ["a.test", "x.a.test", "x.y.a.test"], ["xa.test", "a.test.test", "b.test"]),
        (".a.test", ["a.test", "x.a.test"], ["xa.test"]),
        ("*.A.Test.", ["a.test", "x.a.test"], ["xa.test"]),
        ("b.test, a.test", ["a.test", "b.test"], ["c.test"]),
        ("b.test a.test", ["a.test", "b.test"], ["c.test"]),
        ("10.0.0.1", ["10.0.0.1"], ["10.0.0.2", "x10.0.0.1"]),
        ("10.0.0.0/8", ["10.1.2.3"], ["11.0.0.1", "a.test", "::1"]),
        ("[::1],fe80::/10", ["::1", "fe80::1"], ["::2"]),
        ("a.test:8443", [], ["a.test"]),
        ("a.test:443", ["a.test", "x.a.test"], ["b.test"]),
        ("[::1]:443", ["::1"], ["::2"]),
    ],
)
def test_no_proxy(text, hosts, others):
    """
    The entries of NO_PROXY: everything, names with all below them, addresses, networks, each with a port or without.
    """
    covers = bypass_list(text)

    assert [host for host in hosts + others if covers(host, 443)] == hosts


def test_no_proxy_without_entries():
    """
    A text without entries leaves out nothing.
    """
    assert bypass_list(" , ") is None
    assert Proxy("http://a.test", no_proxy="") == Proxy("http://a.test")


def test_no_proxy_as_a_function():
    """
    A function is asked for host and port.
    """
    proxy = Proxy("http://p.test", no_proxy=lambda host, port: port == 8443)

    assert proxy.serves("a.test", 443)
    assert not proxy.serves("a.test", 8443)


def test_path_and_proxy_exclude_each_other():
    """
    A Unix socket is not reached through a proxy: in one layer both are an error, over two the upper one stays.
    """
    with pytest.raises(OptionError, match="path"):
        ConnectionOptions(path="/run/x", proxy="http://p.test")

    proxied, local = ConnectionOptions(proxy="http://p.test"), ConnectionOptions(path="/run/x")
    assert not local.merged_over(proxied).proxy
    assert local.merged_over(proxied).path == "/run/x"
    assert not proxied.merged_over(local).path
    assert ConnectionOptions(proxy=None).merged_over(local).path == "/run/x"
