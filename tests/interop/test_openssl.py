"""
The agent against `openssl s_server`, another OpenSSL in another process, which tells what it saw on its status page.

Needs the command `openssl` (3.0 or later; package "openssl") on PATH. Without it these tests fail: a skip would hide
that nothing was compared.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_peers import VERSIONS, pki, program, running

from tlsagent import Agent, AsyncAgent, HandshakeError

ROOT, SERVER, CLIENT = pki()


@contextlib.contextmanager
def s_server(folder: Path, version: str, *arguments: str) -> Iterator[int]:
    """Run a server that speaks one version and answers with its status page; give the port."""
    cert, key = SERVER.save(folder, "server")
    command = [program("openssl"), "s_server", "-accept", "127.0.0.1:0", "-www", "-cert", cert, "-key", key]
    command += ["-tls1_2" if version == "TLSv1.2" else "-tls1_3", *arguments]
    with running(command, r"ACCEPT 127\.0\.0\.1:(\d+)") as port:
        yield int(port)


def summary(response: Any) -> str:
    """Return what the status page says of the handshake: "New, TLSv1.3, Cipher is ..." or "Reused, ..."."""
    return next(line for line in response.text.splitlines() if line.startswith(("New, ", "Reused, ")))


@pytest.mark.parametrize("tickets", ["-num_tickets 2", "-no_ticket"])
@pytest.mark.parametrize("version", VERSIONS)
def test_second_connection_is_resumed(version, tickets, tmp_path):
    """
    The server says "New" of the first connection and "Reused" of those after it: tickets, session ids, stateful ones.
    """
    with s_server(tmp_path, version, *tickets.split()) as port, Agent(ca=ROOT.pem, host="127.0.0.1") as agent:
        responses = [agent.request("GET", f"https://localhost:{port}/") for _ in range(3)]

    assert [response.status for response in responses] == [200, 200, 200]
    kinds = [summary(response).partition(",")[0] for response in responses]
    assert kinds == ["New", "Reused", "Reused"]
    assert [response.connection.session_reused for response in responses] == [False, True, True]
    assert all(response.connection.cipher in summary(response) for response in responses)


@pytest.mark.parametrize("version", VERSIONS)
def test_client_certificate_is_taken(version, tmp_path):
    """
    A server that demands a client certificate shows the one it got.
    """
    ca = tmp_path / "ca.pem"
    ca.write_bytes(ROOT.pem)
    demand = ("-Verify", "2", "-verify_return_error", "-CAfile", str(ca))
    material = {"cert": CLIENT.pem, "key": CLIENT.key_pem}
    with s_server(tmp_path, version, *demand) as port, Agent(ca=ROOT.pem, host="127.0.0.1", **material) as agent:
        response = agent.request("GET", f"https://localhost:{port}/")

    assert "Client certificate" in response.text
    assert "client.interop.test" in response.text


@pytest.mark.parametrize(("version", "alert"), [("TLSv1.2", "handshake_failure"), ("TLSv1.3", "certificate_required")])
def test_client_certificate_is_missing(version, alert, tmp_path):
    """
    Without one the request fails with the alert that the server sent.
    """
    demand = ("-Verify", "2", "-verify_return_error")
    with (
        s_server(tmp_path, version, *demand) as port,
        Agent(ca=ROOT.pem, host="127.0.0.1") as agent,
        pytest.raises(HandshakeError) as caught,
    ):
        agent.request("GET", f"https://localhost:{port}/")

    assert caught.value.alert == alert


@pytest.mark.parametrize("version", VERSIONS)
def test_asynchronous_agent_resumes_too(version, tmp_path):
    """
    The same for `AsyncAgent`.
    """

    async def main(port: int) -> list[Any]:
        async with AsyncAgent(ca=ROOT.pem, host="127.0.0.1") as agent:
            return [await agent.request("GET", f"https://localhost:{port}/") for _ in range(2)]

    with s_server(tmp_path, version) as port:
        responses = asyncio.run(main(port))

    assert [summary(response).partition(",")[0] for response in responses] == ["New", "Reused"]
