"""Responses and bodies that are given up half-way: nobody waits for ever, nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings

import pytest

from tlsagent import AsyncAgent, LocalProtocolError, Timeouts, TotalTimeout


def test_reading_a_closed_response_is_an_error(open_agent, server):
    """
    A response that was closed before its end has no more to give, and says so.
    """
    agent = open_agent(ca=server.ca_pem)
    response = agent.open_stream("GET", server.url + "/bytes/5000000")

    response.close()

    with pytest.raises(LocalProtocolError, match="closed before its end"):
        response.read()


def test_stalled_body_does_not_outlive_total(open_async_agent, server):
    """
    An asynchronous body that never yields holds neither its request nor the connection past `total`.
    """
    ended = []

    async def content():
        try:
            yield b"a"
            await asyncio.sleep(30)
        finally:
            ended.append(True)

    agent = open_async_agent(ca=server.ca_pem)

    with pytest.raises(TotalTimeout):
        agent.request("POST", server.url + "/echo", content=content(), timeouts=0.3)

    assert ended == [True]
    assert agent.agent.stats().active == 0


def test_slow_body_is_no_send_timeout(open_async_agent, server):
    """
    `send` counts the peer's time, not that of the caller's generator.
    """

    async def content():
        yield b"a"
        await asyncio.sleep(0.5)
        yield b"b"

    agent = open_async_agent(ca=server.ca_pem, timeouts=Timeouts(send=0.2))

    assert agent.request("POST", server.url + "/echo", content=content()).content == b"ab"


def test_total_ends_a_body_that_keeps_coming(open_agent, server):
    """
    `total` holds although bytes are ready whenever somebody looks.
    """
    agent = open_agent(ca=server.ca_pem)

    def read_slowly() -> None:
        with agent.stream("GET", server.url + "/bytes/400000000", timeouts=0.3) as response:
            for _ in response.iter_bytes():
                time.sleep(0.01)

    with pytest.raises(TotalTimeout):
        read_slowly()


def test_response_dropped_unread_frees_the_slot_for_who_waits(open_sync_agent, gated_server):
    """
    A thread that waits for a connection gets the place of a response that was collected unread.
    """
    agent = open_sync_agent(ca=gated_server.ca_pem, max_sockets=1)
    held = [agent.open_stream("GET", gated_server.url + "/bytes/5000000")]
    waiting = agent.submit("GET", gated_server.url + "/hello", timeouts=5)
    while agent.agent.stats().waiting != 1:
        time.sleep(0.005)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        held.clear()
        gc.collect()

    assert waiting.result(5).status == 200


def test_close_does_not_wait_for_a_dropped_response(open_sync_agent, server):
    """
    `close` ends what finalisers left behind, without waiting for it.
    """
    agent = open_sync_agent(ca=server.ca_pem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        agent.open_stream("GET", server.url + "/bytes/5000000")
        gc.collect()
    begun = time.monotonic()

    agent.agent.close(5)

    assert time.monotonic() - begun < 2
    assert agent.agent.stats().active == 0


def test_only_the_literal_false_is_false_in_a_mapping(open_agent, server):
    """
    A mapping that was once converted with False does not stand for the same with 0.
    """
    agent = open_agent()
    url = server.url + "/hello"
    assert agent.request("GET", url, options={"reject_unauthorized": False}).status == 200

    with pytest.raises(TypeError, match="reject_unauthorized"):
        agent.request("GET", url, options={"reject_unauthorized": 0})


def test_preconnect_of_an_agent_that_is_destroyed_ends(server):
    """
    `preconnect` ends with an error if the agent is destroyed before the attempt has begun.
    """

    async def run() -> None:
        agent = AsyncAgent(ca=server.ca_pem)
        opening = asyncio.ensure_future(agent.preconnect(server.url))
        await asyncio.sleep(0)
        agent.destroy()
        with pytest.raises(Exception, match="closed"):
            await asyncio.wait_for(opening, 5)

    asyncio.run(run())
