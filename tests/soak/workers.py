"""
Who asks: threads with an `Agent`, tasks with an `AsyncAgent`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, Protocol

from tests.soak.load import Order, Orders

from tlsagent import Agent, AsyncAgent, PoolTimeout, Timeouts


class Crew(Protocol):
    """So many workers with one agent."""

    agent: Any

    def work(self, orders: Orders, workers: int) -> None:
        """Carry out all there is, and wait for its end."""

    def hold(self, url: str, count: int, patience: float) -> int:
        """Open so many responses, hold them all at a time, and return how many there were."""

    def close_idle(self) -> None:
        """Close idle connections."""

    def close(self) -> None:
        """Close the agent."""


class Threads:
    """A crew of threads."""

    def __init__(self, **options: Any) -> None:
        self.agent = Agent(**options)

    def work(self, orders: Orders, workers: int) -> None:
        threads = [threading.Thread(target=self._work, args=(orders,)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, orders: Orders) -> None:
        while (order := orders.take()) is not None:
            try:
                orders.done(order, self._carry_out(order))
            except Exception as error:
                orders.failed(order, error)

    def _carry_out(self, order: Order) -> bytes | None:
        method = "GET" if order.content is None else "POST"
        url = order.url
        if order.kind in ("plain", "large", "bye", "abort", "hurried", "cancelled", "echo"):
            return self.agent.request(method, url, content=order.content, timeouts=order.patience).content
        if order.kind == "dropped":
            self.agent.open_stream(method, url, timeouts=order.patience)
            return None
        with self.agent.stream(method, url, timeouts=order.patience) as response:
            if order.kind != "left":
                return response.read()
            next(response.iter_bytes())
            return None

    def hold(self, url: str, count: int, patience: float) -> int:
        held = []
        with contextlib.ExitStack() as stack, contextlib.suppress(PoolTimeout):
            for _ in range(count):
                response = self.agent.open_stream("GET", url, timeouts=Timeouts(queue=patience))
                held.append(stack.enter_context(response))
        return len(held)

    def close_idle(self) -> None:
        self.agent.close_idle()

    def close(self) -> None:
        self.agent.close()


class Tasks:
    """A crew of tasks in an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        self._loop = loop
        self.agent = AsyncAgent(**options)

    def work(self, orders: Orders, workers: int) -> None:
        self._loop.run_until_complete(self._gather(orders, workers))

    async def _gather(self, orders: Orders, workers: int) -> None:
        await asyncio.gather(*(self._work(orders) for _ in range(workers)))
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:  # attempts that nobody waits for any more: they belong to the pool
            await asyncio.wait(left, timeout=10)

    async def _work(self, orders: Orders) -> None:
        while (order := orders.take()) is not None:
            try:
                orders.done(order, await self._carry_out(order))
            except Exception as error:
                orders.failed(order, error)

    async def _carry_out(self, order: Order) -> bytes | None:
        method = "GET" if order.content is None else "POST"
        url = order.url
        if order.kind == "cancelled":
            task = asyncio.ensure_future(self.agent.request(method, url, timeouts=30))
            await asyncio.wait([task], timeout=order.patience)
            task.cancel()
            await asyncio.wait([task])
            return None if task.cancelled() else task.result().content
        if order.kind in ("plain", "large", "bye", "abort", "hurried", "echo"):
            return (await self.agent.request(method, url, content=order.content, timeouts=order.patience)).content
        if order.kind == "dropped":
            await self.agent.open_stream(method, url, timeouts=order.patience)
            return None
        async with self.agent.stream(method, url, timeouts=order.patience) as response:
            if order.kind != "left":
                return await response.aread()
            async for _ in response.aiter_bytes():
                break
            return None

    def hold(self, url: str, count: int, patience: float) -> int:
        return self._loop.run_until_complete(self._hold(url, count, patience))

    async def _hold(self, url: str, count: int, patience: float) -> int:
        held = []
        async with contextlib.AsyncExitStack() as stack:
            with contextlib.suppress(PoolTimeout):
                for _ in range(count):
                    response = await self.agent.open_stream("GET", url, timeouts=Timeouts(queue=patience))
                    stack.push_async_callback(response.aclose)
                    held.append(response)
        return len(held)

    def close_idle(self) -> None:
        self._loop.run_until_complete(self._close_idle())

    async def _close_idle(self) -> None:
        self.agent.close_idle()
        await asyncio.sleep(0.1)  # the loop closes transports in its next turns

    def close(self) -> None:
        self._loop.run_until_complete(self.agent.aclose())
        tasks = asyncio.all_tasks(self._loop)
        self._loop.close()
        assert not tasks, tasks


def crew_of(driver: str, **options: Any) -> Crew:
    """Return the crew of a driver."""
    if driver == "threads":
        return Threads(**options)
    if driver == "uvloop":
        import uvloop

        return Tasks(uvloop.new_event_loop(), **options)
    return Tasks(asyncio.new_event_loop(), **options)
