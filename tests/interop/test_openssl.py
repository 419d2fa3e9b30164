"""
The agent against `openssl s_server`, another OpenSSL in another process, which tells what it saw on its status page;
and the testing server's pre-shared keys against `openssl s_client`.

Needs the command `openssl` (3.0 or later; package "openssl") on PATH. Without it these tests fail: a skip would hide
that nothing was compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_peers import VERSIONS, pki, program, running

from tlsagent import Agent, AsyncAgent, HandshakeError
from tlsagent.testing import Server

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


KEY = bytes(range(32))
PSK_SUITES = {"TLSv1.2": ("-tls1_2", "-cipher", "PSK-AES128-GCM-SHA256"), "TLSv1.3": ("-tls1_3",)}


def s_client(server: Server, version: str, key: bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Send one request with a pre-shared key; certificates of the server fail verification."""
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{server.port}", "-psk", key.hex()]
    command += ["-verify_return_error", "-ign_eof", *PSK_SUITES[version], *arguments]
    request = "GET /close HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return subprocess.run(command, input=request, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_server_takes_a_pre_shared_key(version):
    """
    A client that knows the key is served, and hears the hint in TLS 1.2; the server shows no certificate.
    """
    with Server({"psk_callback": {"client-7": KEY}.get}, psk_identity_hint="which?") as server:
        done = s_client(server, version, KEY, "-psk_identity", "client-7")

        [record] = server.connections
    assert done.returncode == 0
    assert "HTTP/1.1 200" in done.stdout
    assert "no peer certificate available" in done.stdout
    assert ("PSK identity hint: which?" in done.stdout) == (version == "TLSv1.2")
    assert (record.version, record.psk_identity, record.session_reused) == (version, "client-7", False)


@pytest.mark.parametrize("version", VERSIONS)
def test_server_resumes_what_a_pre_shared_key_began(version, tmp_path):
    """
    The ticket of such a connection is resumed, and no key is asked for.
    """
    asked: list[str] = []

    def find(identity: str) -> bytes:
        asked.append(identity)
        return KEY

    with Server({"psk_callback": find}) as server:
        session = str(tmp_path / "session")
        for way in ("-sess_out", "-sess_in"):
            assert s_client(server, version, KEY, "-psk_identity", "client-7", way, session).returncode == 0

        first, second = server.connections
    assert (first.session_reused, second.session_reused, first.psk_identity) == (False, True, "client-7")
    assert "client-7" in asked
    assert second.psk_identity is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("wrong", ["key", "identity"])
def test_server_refuses_another_pre_shared_key(version, wrong):
    """
    A client that has the wrong key, or none that the server knows of, is not served.
    """
    key, identity = (bytes(32), "client-7") if wrong == "key" else (KEY, "nobody")
    with Server({"psk_callback": {"client-7": KEY}.get}) as server:
        done = s_client(server, version, key, "-psk_identity", identity)

        assert server.wait_for(lambda s: s.stats.handshakes_failed == 1)
        assert server.stats.requests == 0
    assert done.returncode != 0
