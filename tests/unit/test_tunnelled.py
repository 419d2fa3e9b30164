"""TLS to the origin behind a tunnel, and to the proxy, floor upon floor and without sockets."""

from __future__ import annotations

import pytest
from tls_peer import CLOCK, Server, Sink, client_engine, issue, pki, server_context

from tlsagent import ConnectionLost, Proxy, ProxyError
from tlsagent._tunnel import tunnel_to
from tlsagent._tunnelled import TunnelledEngine

OPEN = b"HTTP/1.1 200 OK\r\n\r\n"


class TunnelSink(Sink):
    """A `Sink` that hears of the tunnel too."""

    def __init__(self):
        super().__init__()
        self.engine = None

    def tunnel_opened(self, engine, now):
        self.engine = engine
        self.news.append("tunnel")


class Way:
    """A client, a proxy (with TLS or without) and an origin, with nothing between them."""

    def __init__(self, *, tls, cut=None, answer=OPEN, proxy_credentials=None):
        self.proxy = Server(server_context(proxy_credentials)) if tls else None
        self.origin = Server(server_context())
        self.sink = TunnelSink()
        self.asked = b""
        self.cut = cut
        self.answer = answer
        inner = client_engine()
        self.engine = TunnelledEngine(
            inner, tunnel_to(("a.test", 443), Proxy("http://proxy.test")), client_engine() if tls else None
        )
        self.inner = inner
        self.engine.start()

    def talk_to(self):
        return self.sink.engine or self.engine

    def up(self):
        """Carry to the proxy what the client has to send; returns how much there was."""
        data = self.talk_to().data_to_send()
        if self.proxy is not None:
            self.proxy.receive_data(data) if data else None
            plain, self.proxy.received = self.proxy.received, b""
        else:
            plain = data
        if b"\r\n\r\n" not in self.asked:
            self.asked += plain
            if self.asked.endswith(b"\r\n\r\n"):
                self.say(self.answer)
        elif plain:
            self.origin.receive_data(plain)
        return len(data)

    def say(self, data):
        """Send bytes to the client by way of the proxy."""
        if self.proxy is not None:
            self.proxy.write(data)
        else:
            self.feed(data)

    def feed(self, data):
        size = self.cut or max(len(data), 1)
        for at in range(0, len(data), size):
            self.talk_to().receive_data(data[at : at + size], CLOCK, self.sink)

    def run(self):
        while True:
            moved = self.up()
            down = self.origin.data_to_send()
            if down:
                self.say(down)
            if self.proxy is not None and (wrapped := self.proxy.data_to_send()):
                self.feed(wrapped)
                moved = 1
            if not moved and not down:
                return self


@pytest.mark.parametrize("cut", [None, 1, 1000])
@pytest.mark.parametrize("tls", [False, True])
def test_plaintext_both_ways(tls, cut):
    """
    Behind the tunnel the handshake is the origin's, and plaintext passes both ways in whatever portions bytes come.
    """
    way = Way(tls=tls, cut=cut).run()

    way.talk_to().write(b"ping" * 20_000)
    way.run()
    way.origin.write(b"pong" * 10_000)
    way.run()

    assert way.sink.news[:2] == ["tunnel", "secured"]
    assert way.asked.startswith(b"CONNECT a.test:443 ")
    assert way.origin.received == b"ping" * 20_000
    assert way.sink.data == b"pong" * 10_000


def test_a_proxy_without_tls_drops_out():
    """
    Once the tunnel of a proxy without TLS is open, all verbs go to the origin's engine.
    """
    assert Way(tls=False).run().sink.engine is not None
    way = Way(tls=True).run()
    assert way.sink.engine is way.engine


def test_what_comes_right_behind_the_answer():
    """
    Bytes behind the proxy's answer are the origin's: here no TLS, which is an error of the origin's handshake.
    """
    way = Way(tls=False, answer=OPEN + b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with pytest.raises(ConnectionError) as caught:
        way.run()

    assert not isinstance(caught.value, ProxyError)


@pytest.mark.parametrize("tls", [False, True])
def test_the_end_before_the_tunnel(tls):
    """
    A proxy that ends the connection before the tunnel is open is a `ProxyError`.
    """
    way = Way(tls=tls, answer=b"")
    way.run()

    with pytest.raises(ProxyError):
        way.engine.receive_eof(CLOCK, way.sink)


def test_close_notify_of_the_proxy_before_the_tunnel():
    """
    So is one that takes its leave in good order.
    """
    way = Way(tls=True, answer=b"")
    way.run()
    way.proxy.close()

    with pytest.raises(ProxyError):
        way.run()


def test_the_end_during_the_handshake_behind_the_tunnel():
    """
    Behind the open tunnel the end is the origin's, though it is the proxy that takes its leave.
    """
    way = Way(tls=True)
    while way.sink.engine is None:
        way.up()
        way.feed(way.proxy.data_to_send())
    way.proxy.close()

    with pytest.raises(ConnectionLost):
        way.feed(way.proxy.data_to_send())


@pytest.mark.parametrize("tls", [False, True])
def test_truncation_is_told_as_one(tls):
    """
    The end of the transport, or of the proxy's TLS, without the origin's close_notify is a truncation.
    """
    way = Way(tls=tls).run()

    if way.proxy is not None:
        way.proxy.close()
        way.feed(way.proxy.data_to_send())
    else:
        way.talk_to().receive_eof(CLOCK, way.sink)

    assert way.sink.ends == [False]


@pytest.mark.parametrize("tls", [False, True])
def test_close_takes_leave_of_the_origin_first(tls):
    """
    close_notify reaches the origin through the tunnel, and the proxy behind it.
    """
    way = Way(tls=tls).run()

    way.talk_to().close()
    way.run()

    assert way.origin.ended
    assert way.proxy is None or way.proxy.ended


@pytest.mark.parametrize("tls", [False, True])
def test_an_alert_for_the_origin_still_goes(tls):
    """
    What is to be said to the origin when its handshake fails is said, though the connection is aborted.
    """
    way = Way(tls=tls)
    way.origin = Server(server_context(issue("a.test", pki().other_root)))
    with pytest.raises(ConnectionError):
        way.run()

    way.talk_to().abort()
    way.up()

    assert way.origin.error is not None or way.origin.ended


def test_a_proxy_that_is_not_trusted():
    """
    A certificate of the proxy that does not verify is a `ProxyError` with its code, and nothing is asked of the proxy.
    """
    way = Way(tls=True, proxy_credentials=issue("a.test", pki().other_root))

    with pytest.raises(ProxyError) as caught:
        way.run()

    assert caught.value.code == caught.value.__cause__.code == "UNABLE_TO_VERIFY_LEAF_SIGNATURE"
    assert way.asked == b""
    way.engine.abort()
    way.engine.data_to_send()
