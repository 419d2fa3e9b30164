"""What is said to a proxy, and what is made of its answer."""

from __future__ import annotations

import base64

import pytest

from tlsagent import Proxy, ProxyError
from tlsagent._tunnel import tunnel_to

TLS = b"\x16\x03\x03 and what follows"


def fed(tunnel, data, size):
    """Feed `data` in pieces of `size` bytes; return all that is sent in answer, and what came behind the end."""
    sent = b""
    for at in range(0, len(data), size):
        if tunnel.opened:
            return sent, tunnel.leftover + data[at:]
        sent += tunnel.receive_data(data[at : at + size])
    return sent, tunnel.leftover


SIZES = [1, 2, 3, 1000]


@pytest.mark.parametrize(
    ("host", "target"), [("a.test", b"a.test:443"), ("127.0.0.1", b"127.0.0.1:443"), ("::1", b"[::1]:443")]
)
def test_connect_request(host, target):
    """
    CONNECT names host and port, twice, and says nothing else (RFC 9110, 9.3.6).
    """
    tunnel = tunnel_to((host, 443), Proxy("http://proxy.test"))

    assert tunnel.start() == b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n\r\n"


def test_connect_credentials():
    """
    Credentials are sent as Basic authentication (RFC 7617).
    """
    tunnel = tunnel_to(("a.test", 443), Proxy("http://me:open%3Asesame@proxy.test"))

    request = tunnel.start()

    [line] = [line for line in request.split(b"\r\n") if line.startswith(b"Proxy-Authorization: Basic ")]
    assert base64.b64decode(line.rpartition(b" ")[2]) == b"me:open:sesame"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n",
        b"HTTP/1.1 204 \r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_connect_opens(answer, size):
    """
    A status of 2xx opens the tunnel, whatever length the answer claims; all behind its head is of the origin.
    """
    tunnel = tunnel_to(("a.test", 443), Proxy("http://proxy.test"))
    tunnel.start()

    sent, leftover = fed(tunnel, answer + TLS, size)

    assert tunnel.opened
    assert (sent, leftover) == (b"", TLS)


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (b"HTTP/1.1 403 Forbidden by \x1b[31mus\r\n\r\n", 403, "403"),
        (b"HTTP/1.1 407 Authenticate\r\nProxy-Authenticate: Basic\r\n\r\n", 407, "user name and password"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nabc", 502, "502"),
        (b"SSH-2.0-x\r\n\r\n", None, "HTTP"),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", None, "HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000, None, "HTTP"),
        (b"HTTP/1.1 102 Wait\r\n\r\n" * 1000, None, "1xx"),
    ],
)
def test_connect_refused(answer, status, text):
    """
    Any other answer is a `ProxyError` that says why, bounded and printable.
    """
    tunnel = tunnel_to(("a.test", 443), Proxy("http://me:sesame@proxy.test"))
    tunnel.start()

    with pytest.raises(ProxyError, match=text) as caught:
        fed(tunnel, answer, 1000)

    assert not tunnel.opened
    assert caught.value.status == status
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bound", [b"\x01\x7f\0\0\1\1\xbb", b"\x03\x06a.test\1\xbb", b"\x04" + b"\0" * 16 + b"\1\xbb"])
@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("a.test", b"\x03\x06a.test"),
        ("127.0.0.1", b"\x01\x7f\0\0\1"),
        ("::1", b"\x04" + b"\0" * 15 + b"\1"),
    ],
)
def test_socks_without_credentials(host, address, bound, size):
    """
    Greeting, request, reply (RFC 1928): a name is left to the proxy, an address is sent as one.
    """
    tunnel = tunnel_to((host, 443), Proxy("socks5h://proxy.test"))

    assert tunnel.start() == b"\x05\x01\x00"
    sent, leftover = fed(tunnel, b"\x05\x00" + b"\x05\x00\x00" + bound + TLS, size)

    assert tunnel.opened
    assert sent == b"\x05\x01\x00" + address + b"\x01\xbb"
    assert leftover == TLS


@pytest.mark.parametrize("size", SIZES)
def test_socks_with_credentials(size):
    """
    User name and password are sent if the proxy asks for them (RFC 1929).
    """
    tunnel = tunnel_to(("a.test", 443), Proxy("socks5h://me:sesame@proxy.test"))

    assert tunnel.start() == b"\x05\x02\x00\x02"
    sent, leftover = fed(tunnel, b"\x05\x02" + b"\x01\x00" + b"\x05\x00\x00\x01\0\0\0\0\0\0", size)

    assert tunnel.opened
    assert sent == b"\x01\x02me\x06sesame" + b"\x05\x01\x00\x03\x06a.test\x01\xbb"
    assert leftover == b""


def test_socks_that_needs_no_credentials():
    """
    A proxy that takes us without credentials does not get them.
    """
    tunnel = tunnel_to(("a.test", 443), Proxy("socks5h://me:sesame@proxy.test"))
    tunnel.start()

    assert b"sesame" not in tunnel.receive_data(b"\x05\x00")


@pytest.mark.parametrize(
    ("url", "answer", "status", "text"),
    [
        ("socks5h://proxy.test", b"\x05\xff", None, "user name and password"),
        ("socks5h://proxy.test", b"\x05\x02", None, "user name and password"),
        ("socks5h://me:sesame@proxy.test", b"\x05\x02\x01\x01", None, "refused user name and password"),
        ("socks5h://proxy.test", b"\x05\x00\x05\x05\x00\x01\0\0\0\0\0\0", 5, "connection refused"),
        ("socks5h://proxy.test", b"\x05\x00\x05\x02\x00\x01\0\0\0\0\0\0", 2, "not allowed"),
        ("socks5h://proxy.test", b"\x05\x00\x05\x63\x00\x01\0\0\0\0\0\0", None, "no SOCKS5"),
        ("socks5h://proxy.test", b"\x05\x00\x05\x00\x00\x07\0\0\0\0\0\0", None, "no SOCKS5"),
        ("socks5h://proxy.test", b"HTTP/1.1 400 Bad Request\r\n", None, "no SOCKS5"),
        ("socks5h://proxy.test", b"\x05\x00HTTP/1.1 400", None, "no SOCKS5"),
    ],
)
def test_socks_refused(url, answer, status, text):
    """
    A refusal is a `ProxyError` that says which, and so is what is no SOCKS5.
    """
    tunnel = tunnel_to(("a.test", 443), Proxy(url))
    tunnel.start()

    with pytest.raises(ProxyError, match=text) as caught:
        fed(tunnel, answer, 1000)

    assert not tunnel.opened
    assert caught.value.status == status
    assert "sesame" not in str(caught.value)
