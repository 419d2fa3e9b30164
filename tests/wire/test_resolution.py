"""From names to addresses: the system's resolver, the `lookup` hook, several addresses."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import weakref
from typing import Any

import pytest
from wire_peer import closed_port, full_listener, serve, standstill, tarpit, wait_until

from tlsagent import Agent, ConnectError, OptionError, RequestError, ResolutionError, Timeouts, events
from tlsagent._drivers import resolver


def answers(*addresses: str) -> Any:
    """Return a `lookup` hook that always gives these addresses, and the list of what it was asked."""
    asked: list[tuple[str, int]] = []

    def lookup(host: str, family: int) -> list[str]:
        asked.append((host, family))
        return list(addresses)

    lookup.asked = asked  # type: ignore[attr-defined]
    return lookup


def test_name_that_does_not_exist(open_agent):
    """
    A name without an address fails at once, names itself, and is asked for again by the next request.
    """
    agent = open_agent(max_sockets=1)

    for _ in range(2):
        with pytest.raises(ResolutionError, match=r"nowhere\.invalid") as caught:
            agent.request("GET", "https://nowhere.invalid/", timeouts=20)
        assert caught.value.phase == "lookup"
        assert caught.value.code in {"ENOTFOUND", "EAI_AGAIN"}
        assert isinstance(caught.value.__cause__, socket.gaierror)

    assert agent.stats().dialling == 0


def test_lookup_hook_says_where_the_bytes_go(open_agent, server):
    """
    The hook is asked for the URL's host; the name that is verified and sent stays the URL's.
    """
    lookup = answers("127.0.0.1")
    agent = open_agent(ca=server.ca_pem, lookup=lookup)

    response = agent.request("GET", server.url + "/hello")

    assert lookup.asked == [("localhost", 0)]
    assert server.connections[0].sni == "localhost"
    assert response.connection.remote_address[:2] == ("127.0.0.1", server.port)


def test_literal_address_is_not_looked_up(open_agent, server):
    """
    An IP address in the URL needs no look-up by the system and no SNI is sent.
    """
    agent = open_agent(ca=server.ca_pem)

    response = agent.request("GET", f"https://127.0.0.1:{server.port}/hello")

    assert response.status == 200
    assert server.connections[0].sni is None


@pytest.mark.parametrize("by_hook", [False, True])
def test_zone_that_this_machine_does_not_have(open_agent, by_hook):
    """
    An address whose zone is unknown here is not resolved, and the error names it.
    """
    agent = open_agent(lookup=lambda _host, _family: ["fe80::1%nowhere"])
    url = "https://a.test/" if by_hook else "https://[fe80::1%25nowhere]/"

    with pytest.raises(ResolutionError, match="fe80::1%nowhere") as caught:
        agent.request("GET", url)

    assert (caught.value.code, caught.value.phase) == ("ENOTFOUND", "lookup")


def test_asynchronous_lookup_hook(open_async_agent, server):
    """
    `AsyncAgent` awaits a hook that is asynchronous.
    """

    async def lookup(host: str, family: int) -> list[str]:
        await asyncio.sleep(0)
        return ["127.0.0.1"]

    agent = open_async_agent(ca=server.ca_pem, lookup=lookup)

    assert agent.request("GET", server.url + "/hello").status == 200


def test_asynchronous_lookup_hook_that_is_cancelled_from_within(open_async_agent, server):
    """
    A hook that waits for something that is cancelled has failed: the request says so, and is not cancelled itself.
    """

    async def lookup(host: str, family: int) -> list[str]:
        waiting = asyncio.get_running_loop().create_future()
        waiting.cancel()
        return await waiting

    agent = open_async_agent(ca=server.ca_pem, max_sockets=1, lookup=lookup)

    for _ in range(2):
        with pytest.raises(ResolutionError, match="cancelled"):
            agent.request("GET", server.url + "/hello")


def test_asynchronous_lookup_hook_is_refused_by_the_sync_agent(open_sync_agent, server):
    """
    `Agent` cannot await: an asynchronous hook is a clear error, not a warning about a coroutine nobody awaited.
    """

    async def lookup(host: str, family: int) -> list[str]:
        return ["127.0.0.1"]

    agent = open_sync_agent(ca=server.ca_pem, max_sockets=1, lookup=lookup)

    with pytest.raises(OptionError, match="lookup"):
        agent.request("GET", server.url + "/hello")

    assert server.stats.connections == 0


def test_hook_that_raises_is_the_cause(open_agent, server):
    """
    An exception of the hook becomes the request's error, at that request alone.
    """
    failures = [ZeroDivisionError("of the hook")]

    def lookup(host: str, family: int) -> list[str]:
        if failures:
            raise failures.pop()
        return ["127.0.0.1"]

    agent = open_agent(ca=server.ca_pem, max_sockets=1, lookup=lookup)

    with pytest.raises(ResolutionError) as caught:
        agent.request("GET", server.url + "/hello")

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.phase == "lookup"
    assert server.stats.connections == 0
    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


@pytest.mark.parametrize("answer", ["127.0.0.1", ["localhost"], [b"127.0.0.1"], [("127.0.0.1", 443)], None, 7])
def test_hook_that_gives_something_else_is_an_error(open_agent, server, answer):
    """
    What is no list of address strings is refused with a text that says so.
    """
    agent = open_agent(ca=server.ca_pem, max_sockets=1, lookup=lambda host, family: answer)

    with pytest.raises(OptionError, match="lookup must return"):
        agent.request("GET", server.url + "/hello")

    assert server.stats.connections == 0


def test_empty_answer_then_a_good_one(open_agent, server):
    """
    No address is an error, which is not remembered.
    """
    given: list[list[str]] = [["127.0.0.1"], []]
    agent = open_agent(ca=server.ca_pem, max_sockets=1, lookup=lambda host, family: given.pop())

    with pytest.raises(ResolutionError, match="localhost") as caught:
        agent.request("GET", server.url + "/hello")

    assert caught.value.code == "ENOTFOUND"
    assert agent.request("GET", server.url + "/hello", timeouts=5).status == 200


def test_second_address_works(open_agent, open_peer):
    """
    If the first address refuses, the second is tried at once.
    """
    peer = open_peer(serve)
    agent = open_agent(ca=peer.ca_pem, lookup=answers("127.0.0.2", "127.0.0.3", "127.0.0.1"))

    response = agent.request("GET", f"https://localhost:{peer.port}/")

    assert response.connection.remote_address == ("127.0.0.1", peer.port)
    assert response.timings.connect < 0.5
    assert len(peer.connections) == 1


def test_every_address_that_failed_is_listed(open_agent):
    """
    If all addresses fail, the error names each of them.
    """
    port = closed_port()
    agent = open_agent(max_sockets=1, lookup=answers("127.0.0.2", "127.0.0.3"))

    with pytest.raises(ConnectError, match=rf"127\.0\.0\.2:{port}.*127\.0\.0\.3:{port}") as caught:
        agent.request("GET", f"https://localhost:{port}/")

    assert caught.value.code == "ECONNREFUSED"
    assert agent.stats().dialling == 0


def test_address_that_does_not_answer_is_overtaken(open_agent):
    """
    An address that says nothing holds the next one up only for the attempt delay; the loser is closed.
    """
    with tarpit() as port, socket.create_server(("127.0.0.2", port)) as listener:
        agent = open_agent(
            max_sockets=1, lookup=answers("127.0.0.1", "127.0.0.2"), timeouts=Timeouts(connect=3, handshake=0.2)
        )
        heard: list[Any] = []
        agent.agent.on(events.Connected, heard.append)

        with pytest.raises(TimeoutError) as caught:
            agent.request("GET", f"https://localhost:{port}/")

        assert caught.value.phase == "handshake"
        assert [event.remote_address for event in heard] == [("127.0.0.2", port)]
        listener.accept()[0].close()


def test_address_that_answers_late_is_waited_for(open_agent):
    """
    A connect that is not over at once goes on: its first SYN finds no room at the listener, a later one does.
    """
    with full_listener() as listener:
        agent = open_agent(timeouts=Timeouts(connect=20, handshake=0.2))
        heard: list[Any] = []
        agent.agent.on(events.Connected, heard.append)

        pending = agent.submit("GET", f"https://127.0.0.1:{listener.getsockname()[1]}/")
        assert wait_until(lambda: agent.stats().dialling == 1)
        assert standstill(lambda: len(heard)) == 0
        listener.settimeout(0.05)

        def made_room() -> bool:
            with contextlib.suppress(TimeoutError):
                listener.accept()[0].close()
            return bool(heard)

        assert wait_until(made_room)
        with pytest.raises(RequestError) as caught:
            pending.result(20)
        assert caught.value.phase == "handshake"


@pytest.mark.http1("requests that may share a connection wait for one attempt, and so for one look-up")
def test_slow_resolver_answers_many_requests_at_once(open_agent, server, monkeypatch):
    """
    Look-ups of one name that run at the same time are one.
    """
    asked = []
    answer = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **keywords: Any) -> Any:
        if host == "localhost":
            asked.append(host)
            answer.wait(10)
        return real(host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    agent = open_agent(ca=server.ca_pem, alpn_protocols=["http/1.1"])
    try:
        futures = [agent.submit("GET", server.url + "/hello") for _ in range(5)]
        assert wait_until(lambda: agent.stats().dialling == 5 and asked)
        assert wait_until(lambda: len(resolver.resolver._running["localhost", 0].callbacks) == 5)
    finally:
        answer.set()

    assert [future.result(5).status for future in futures] == [200] * 5
    assert len(asked) == 1


def test_a_look_up_keeps_nothing_of_who_asked(server):
    """
    An agent that is closed and dropped is gone, connections and hooks: the thread that resolved its name lets go.
    """

    class Hook:
        def __call__(self, _host: str, _certificate: Any) -> None:
            """Accept."""

    hook = Hook()
    gone = weakref.ref(hook)
    with Agent(ca=server.ca_pem, check_server_identity=hook) as agent:
        agent.request("GET", server.url + "/hello")
    del agent, hook

    assert wait_until(lambda: gc.collect() >= 0 and gone() is None)
