"""
The steps of a scenario, carried out by an `AsyncAgent` whose options went through `tlsagent.node`.

Node's words are put into this library's, and what happens back into Node's, where both mean the same:

    host, port, path          the URL, which says whom we talk to
    {$undefined} in options   the option is left out
    req.destroy()             the task is cancelled; the caller hears ECONNRESET from Node, CancelledError here
    'timeout' event           a RequestTimeout
    req.reusedSocket          the request went out on a used connection without having waited in the queue
    sockets[name]             connections in use and attempts; requests[name] those that no attempt is made for
    agent.destroy()           agent.destroy(), and a new Agent with the same options and session store for what follows

Options that the agent has are left out of the defaults of requests, so that they are not overridden unasked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

from tests.pooling.material import Decoder, PinMismatch, Unknown
from tests.pooling.server import Board, NodeServer

from tlsagent import AgentOptions, AsyncAgent, OptionError, node
from tlsagent.errors import LocalProtocolError, RequestTimeout, TLSAgentError
from tlsagent.events import Event, Reused, SessionTicket
from tlsagent.node import UNDEFINED

PATIENCE = 15.0
"""Seconds after which a request that is waited for counts as hung."""

_OURS = ("host", "hostname", "port", "path", "method", "headers")
_STEPS = {
    "start", "wait", "sleep", "abort", "destroy_agent", "snapshot", "rotate_tickets", "server_close", "server_listen",
}  # fmt: skip
_STEP_KEYS = {
    "op", "id", "query", "options", "origin", "method", "body", "body_slow", "no_read", "destroy_on_timeout",
    "capture_session",
}  # fmt: skip


class Request:
    """One request of a scenario and what became of it."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"reused_socket": False, "result": "pending"}
        self.task: asyncio.Task[None] | None = None
        self.started = time.monotonic()
        self.session: bytes | None = None
        self.at_once = False
        self.response: Any = None

    def ended(self, result: str, **facts: Any) -> None:
        self.seen |= {"result": result, **facts, "elapsed_ms": self.elapsed()}

    def elapsed(self) -> int:
        return round((time.monotonic() - self.started) * 1000 / 50) * 50


class Play:
    """One scenario from its start to its end."""

    def __init__(self, scenario: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        self._scenario = scenario
        self._board = Board()
        self._servers = {name: NodeServer(config, self._board) for name, config in scenario["servers"].items()}
        self._requests: dict[str, Request] = {}
        self._snapshots: list[dict[str, Any]] = []
        self._decode = Decoder(files, self._session_of)
        self._agents: list[AsyncAgent] = []
        self._dead: socket.socket | None = None
        self.failures: list[str] = self._board.failures

    async def run(self) -> dict[str, Any]:
        """Return what was observed, in the form of the file."""
        try:
            for server in self._servers.values():
                await server.listen()
            try:
                self._options = self._agent_options()
            except OptionError as error:
                return {"agent_refused": _told(error), "requests": {}, "servers": {}}
            self._agents.append(AsyncAgent(self._options))
            for step in self._scenario["steps"]:
                if step["op"] not in _STEPS:
                    raise Unknown(f"the step {step['op']!r}")
                await getattr(self, f"_{step['op']}")(step)
            final = self._count()
            return self._seen(final)
        finally:
            await self._clear_up()

    def _agent_options(self, *without: str) -> AgentOptions:
        said = self._scenario["agent"].items()
        return node.agent_options(self._decode({name: value for name, value in said if name not in without}))

    def _seen(self, final: dict[str, Any]) -> dict[str, Any]:
        return {
            "requests": {name: dict(request.seen) for name, request in self._requests.items()},
            "servers": json.loads(json.dumps({name: server.seen() for name, server in self._servers.items()})),
            "order_served": list(self._board.order),
            "snapshots": self._snapshots,
            "final": final,
            "uncaught": [],
            "max_concurrent_all": self._board.max_concurrent,
            "pending_ms": {
                name: request.elapsed()
                for name, request in self._requests.items()
                if request.seen["result"] == "pending"
            },
        }

    async def _clear_up(self) -> None:
        tasks = [request.task for request in self._requests.values() if request.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for request in self._requests.values():
            if request.response is not None:
                await request.response.aclose()
        for agent in self._agents:
            agent.destroy()
            await agent.aclose()
        for server in self._servers.values():
            await server.close()
        if self._dead is not None:
            self._dead.close()

    @property
    def _agent(self) -> AsyncAgent:
        return self._agents[-1]

    # --- Steps --------------------------------------------------------------------------------------------------------

    async def _start(self, step: dict[str, Any]) -> None:
        if unknown := step.keys() - _STEP_KEYS:
            raise Unknown(f"a step with {', '.join(sorted(unknown))}")
        request = self._requests[step["id"]] = Request()
        try:
            options = self._node_options(step)
            url = self._url(step, options)
            special = node.request_options({k: v for k, v in options.items() if k not in _OURS})
        except (OptionError, LocalProtocolError) as error:
            request.seen = {"result": "thrown", "thrown": _told(error)}
            return
        method = step.get("method") or options.get("method") or "GET"
        perform = self._perform(request, step, method, url, special, options.get("headers"))
        request.task = asyncio.get_running_loop().create_task(perform)
        await asyncio.sleep(0)  # Node has asked for its socket when https.request() returns

    async def _wait(self, step: dict[str, Any]) -> None:
        tasks = [task for name in step["ids"] if (task := self._requests[name].task) is not None]
        if tasks:
            _, hung = await asyncio.wait(tasks, timeout=PATIENCE)
            if hung:
                self.failures.append(f"{len(hung)} of {step['ids']} not settled after {PATIENCE:g} s")

    async def _sleep(self, step: dict[str, Any]) -> None:
        await asyncio.sleep(step["ms"] / 1000)

    async def _abort(self, step: dict[str, Any]) -> None:
        request = self._requests[step["id"]]
        if request.task is not None and not request.task.done():
            request.task.cancel()
            await asyncio.wait([request.task])
        elif request.response is not None:
            await request.response.aclose()

    async def _destroy_agent(self, step: dict[str, Any]) -> None:
        before = self._agent
        before.destroy()
        store = before._core.store
        # The store has its size already.
        options = self._options if store is None else self._agent_options("maxCachedSessions")
        self._agents.append(AsyncAgent(options, session_store=store))

    async def _snapshot(self, step: dict[str, Any]) -> None:
        self._snapshots.append({"label": step["label"], **self._count()})

    async def _rotate_tickets(self, step: dict[str, Any]) -> None:
        for server in self._chosen(step):
            server.rotate_tickets()

    async def _server_close(self, step: dict[str, Any]) -> None:
        for server in self._chosen(step):
            await server.close()

    async def _server_listen(self, step: dict[str, Any]) -> None:
        for server in self._chosen(step):
            await server.listen()

    def _chosen(self, step: dict[str, Any]) -> list[NodeServer]:
        name = step.get("server") or step.get("origin")
        return [self._servers[name]] if name else list(self._servers.values())

    # --- A request ----------------------------------------------------------------------------------------------------

    def _node_options(self, step: dict[str, Any]) -> dict[str, Any]:
        options = {"servername": "localhost", "ca": self._decode({"$file": "ca1"})}
        options = {name: value for name, value in options.items() if name not in self._scenario["agent"]}
        options |= {"host": "127.0.0.1", "port": self._port(step.get("origin", "A"))}
        options |= self._decode(step.get("options", {}))
        return {name: value for name, value in options.items() if value is not UNDEFINED}

    def _port(self, origin: str) -> int:
        if origin != "DEAD":
            return self._servers[origin].port
        if self._dead is None:
            self._dead = socket.socket()
            self._dead.bind(("127.0.0.1", 0))  # and nobody listens
        return int(self._dead.getsockname()[1])

    @staticmethod
    def _url(step: dict[str, Any], options: dict[str, Any]) -> str:
        host = options.get("hostname") or options.get("host") or "localhost"
        host = f"[{host}]" if ":" in host else host
        query = urlencode({"id": step["id"], **step.get("query", {})})
        return f"https://{host}:{options['port']}/?{query}"

    async def _perform(
        self, request: Request, step: dict[str, Any], method: str, url: str, options: Any, headers: Any
    ) -> None:
        def trace(event: Event) -> None:
            if isinstance(event, Reused):
                request.seen["reused_socket"] = request.at_once
            elif isinstance(event, SessionTicket):
                request.session = event.session.to_bytes()

        agent = self._agent
        forget = agent.on(SessionTicket, trace) if step.get("capture_session") else lambda: None
        request.at_once = True  # what happens before the first suspension did not wait in the queue
        asyncio.get_running_loop().call_soon(lambda: setattr(request, "at_once", False))
        content = (
            _slow_body(step["body_slow"]) if "body_slow" in step else b"x" * step["body"] if "body" in step else None
        )
        try:
            response = await agent.open_stream(
                method, url, headers=headers, content=content, options=options, trace=trace
            )
            await self._read(request, response, keep=bool(step.get("no_read")))
        except asyncio.CancelledError:
            request.ended("error", error={"code": "ECONNRESET", "message": "cancelled"})
        except (OptionError, LocalProtocolError) as error:
            request.seen = {"result": "thrown", "thrown": _told(error)}
        except Exception as error:
            if not isinstance(error, (TLSAgentError, PinMismatch)):
                self.failures.append(f"{step['id']} failed with {error!r}, which is no error of the library")
            if isinstance(error, RequestTimeout):
                request.seen |= {"timeout_events": 1, "first_timeout_ms": request.elapsed()}
            request.ended("error", error=_told(error))
        finally:
            if step.get("capture_session"):
                await asyncio.sleep(0.03)  # the tickets of TLS 1.3 may come behind the response
            forget()

    async def _read(self, request: Request, response: Any, *, keep: bool) -> None:
        connection = response.connection
        request.seen |= {
            "status": response.status,
            "session_reused": connection.session_reused,
            "authorized": connection.authorized,
            "authorization_error": connection.authorization_error,
            "alpn": connection.alpn_protocol or False,
        }
        if keep:
            request.response = response
            request.ended("response")
            return
        try:
            body = b"".join([chunk async for chunk in response.aiter_bytes()])
        except asyncio.CancelledError:
            await response.aclose()
            raise
        except TLSAgentError as error:
            request.ended("response error", response_aborted=True, response_error=error.code)
            return
        if body:
            self._note(request, json.loads(body))
        request.ended("ok", complete=True)

    def _note(self, request: Request, told: dict[str, Any]) -> None:
        mine = next(name for name, other in self._requests.items() if other is request)
        if told.pop("id") != mine:
            self.failures.append(f"{mine} got the response of another request")
        request.seen |= told

    def _session_of(self, name: str) -> bytes:
        session = self._requests[name].session
        if session is None:
            raise Unknown(f"the session of {name}, which got none")
        return session

    # --- Counting -----------------------------------------------------------------------------------------------------

    def _count(self) -> dict[str, int]:
        counters = [c for agent in self._agents for c in agent.stats().by_key.values()]
        used = [c for c in counters if c.active or c.idle or c.dialling or c.waiting]
        store: Any = self._agent._core.store  # no public counter tells how many scopes have sessions
        return {
            "names": len(used),
            "active": sum(c.active + c.dialling for c in used),
            "free": sum(c.idle for c in used),
            "pending": sum(max(0, c.waiting - c.dialling) for c in used),
            "total": sum(c.active + c.dialling + c.idle for c in used),
            "sessions": 0 if store is None else len(store._scopes),
        }


async def _slow_body(milliseconds: int) -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.sleep(milliseconds / 1000)
    yield b"x"


def _told(error: BaseException) -> dict[str, Any]:
    return {"code": getattr(error, "code", None) or type(error).__name__, "message": str(error)}


@contextlib.contextmanager
def catching(into: list[str]) -> Any:
    """Collect what the loop would log as unhandled."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: into.append(str(context.get("exception") or context["message"])))
    try:
        yield
    finally:
        loop.set_exception_handler(before)
