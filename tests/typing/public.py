"""What users see in their editor: checked by mypy, never run."""

from typing import Any, assert_type

from tlsagent import (
    Agent,
    AgentOptions,
    AgentStats,
    AsyncAgent,
    AsyncRawConnection,
    AsyncStreamResponse,
    ConnectionInfo,
    ConnectionOptions,
    Headers,
    PeerCertificate,
    RawConnection,
    Response,
    SecureContext,
    StreamResponse,
    Timeouts,
    Timings,
    create_secure_context,
)
from tlsagent.events import Closed, Event


def check_identity(hostname: str, certificate: PeerCertificate) -> None:
    assert_type(certificate.fingerprint256, str)


def sync() -> None:
    with Agent(
        ca=b"...",
        alpn_protocols=["http/1.1"],
        max_sockets=8,
        check_server_identity=check_identity,
        timeouts=Timeouts(connect=5, total=30),
    ) as agent:
        assert_type(agent, Agent)
        assert_type(agent.options, AgentOptions)
        options = {"servername": "a.test"}
        response = agent.request("GET", "https://localhost/", headers={"accept": "*/*"}, options=options)
        assert_type(response, Response)
        assert_type(response.status, int)
        assert_type(response.headers, Headers)
        assert_type(response.headers["content-type"], str)
        assert_type(response.headers.get("etag"), str | None)
        assert_type(response.content, bytes)
        assert_type(response.connection, ConnectionInfo)
        assert_type(response.timings, Timings)
        assert_type(response.json(), Any)
        headers = [("a", "1"), ("a", "2")]
        with agent.stream("POST", "https://localhost/", content=iter([b"a"]), headers=headers) as stream:
            assert_type(stream, StreamResponse)
            for chunk in stream.iter_bytes():
                assert_type(chunk, bytes)
            assert_type(stream.upgrade(), RawConnection)
        raw = agent.connect("localhost", 443, alpn_protocols=["x"])
        assert_type(raw, RawConnection)
        assert_type(raw.recv(), bytes)
        assert_type(agent.stats(), AgentStats)


def closed(event: Closed) -> None:
    assert_type(event.reason, str)


async def asynchronous() -> None:
    async with AsyncAgent(AgentOptions(max_sockets=1), keep_alive=False) as agent:
        assert_type(await agent.request("GET", "https://localhost/", timeouts=3), Response)
        async with agent.stream("GET", "https://localhost/") as stream:
            assert_type(stream, AsyncStreamResponse)
            async for chunk in stream.aiter_bytes():
                assert_type(chunk, bytes)
            assert_type(stream.upgrade(), AsyncRawConnection)
        assert_type(await agent.connect("localhost", 443), AsyncRawConnection)
        agent.on(Closed, closed)
        agent.on(Event, print)()


def contexts() -> None:
    context = create_secure_context(ca=b"...")
    assert_type(context, SecureContext)
    ConnectionOptions(secure_context=context)
    AgentOptions(max_sockets="8")  # type: ignore[arg-type]
    Agent(max_socket=8)  # type: ignore[call-arg]
    create_secure_context(servername=3)  # type: ignore[arg-type]
