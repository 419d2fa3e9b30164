"""
Many at once: threads and tasks over few connections, and tasks that are cancelled at random.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop
from tests.soak.measure import connections_to

from tlsagent import Agent, AsyncAgent
from tlsagent.testing import Server


@pytest.mark.parametrize("sockets", [1, 4, None])
@pytest.mark.parametrize("threads", [1, 8, 64])
def test_threads_do_not_hear_each_other(server, threads, sockets):
    """
    1, 8 and 64 threads over one agent: each gets the answer to its own request, within the limit of sockets.
    """
    agent = Agent(ca=server.ca_pem, max_sockets=sockets)
    failures: list[BaseException] = []
    start = threading.Barrier(threads)

    def user(number: int) -> None:
        try:
            start.wait(20)
            for count in range(320 // threads):
                content = f"{number}-{count}".encode() * (1 + count % 50)
                got = agent.request("POST", server.url + "/echo", content=content, timeouts=30)
                assert got.content == content
        except BaseException as error:
            failures.append(error)

    users = [threading.Thread(target=user, args=(number,)) for number in range(threads)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join(50)

    stats = agent.stats()
    agent.close()
    assert failures == []
    assert (stats.active, stats.waiting, stats.dialling, stats.requests) == (0, 0, 0, 320 // threads * threads)
    assert stats.opened <= min(threads, sockets or threads)
    assert server.stats.requests == stats.requests


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_tasks_do_not_hear_each_other(server, http2, loop):
    """
    500 tasks over four sockets, or as many as it takes: each gets the answer to its own request.
    """

    async def user(agent: AsyncAgent, number: int) -> None:
        content = f"{number} ".encode() * (1 + number % 500)
        assert (await agent.request("POST", server.url + "/echo", content=content)).content == content

    async def main() -> None:
        async with AsyncAgent(ca=server.ca_pem, max_sockets=4) as agent:
            await asyncio.gather(*(user(agent, number) for number in range(500)))
            assert agent.stats().opened <= 4 if http2 else agent.stats().opened == 4

    with asyncio.Runner(loop_factory=factory(loop)) as runner:
        runner.run(main())


class Works:
    """What tasks do until they are cancelled, and what must hold then."""

    def __init__(self, server: Server, agent: AsyncAgent) -> None:
        self._server = server
        self._agent = agent

    async def stream(self) -> None:
        async with self._agent.stream("GET", self._server.url + "/bytes/200000") as response:
            async for _ in response.aiter_bytes():
                pass

    async def post(self) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0)
                yield bytes(20_000)

        response = await self._agent.request("POST", self._server.url + "/echo", content=pieces())
        assert len(response.content) == 60_000

    async def get(self) -> None:
        assert (await self._agent.request("GET", self._server.url + "/hello")).content == b"Hello, world"

    async def settle(self) -> None:
        """Wait until the agent has nothing under way and as many connections as there are descriptors."""
        async with asyncio.timeout(5):
            while not self._settled():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)

    def _settled(self) -> bool:
        stats = self._agent.stats()
        at_rest = (stats.active, stats.waiting, stats.dialling) == (0, 0, 0)
        return at_rest and stats.idle == connections_to(self._server.port)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_tasks_cancelled_at_random(server, loop):
    """
    1,000 rounds of tasks that are cancelled after a random time, two connections for up to six of them: the agent's
    numbers are right and equal the descriptors; in between it serves.
    """
    rng = random.Random(3)

    async def main() -> None:
        agent = AsyncAgent(ca=server.ca_pem, max_sockets=2)
        works = Works(server, agent)
        for number in range(1_000):
            if rng.random() < 0.2:
                agent.close_idle()
            chosen = rng.choices([works.get, works.post, works.stream], k=rng.randint(1, 6))
            tasks = [asyncio.create_task(work()) for work in chosen]
            await asyncio.sleep(rng.uniform(0, 0.004))
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError)
            if number % 10 == 0:
                await works.settle()
                await works.get()
        await agent.aclose()

    with asyncio.Runner(loop_factory=factory(loop)) as runner:
        runner.run(main())
    assert server.wait_for(lambda s: s.stats.open_connections == 0)


def factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop under test."""
    return asyncio.new_event_loop if loop == "asyncio" else uvloop.new_event_loop
