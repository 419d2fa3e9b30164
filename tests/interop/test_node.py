"""
The agent against Node: its https server, and its client as the oracle for the codes of refused certificates.

Needs Node 20 or later: that of the test dependencies, or `node` on PATH. Without it these tests fail: a skip would
hide that nothing was compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from live_peers import DAY, NOW, PATIENCE, VERSIONS, Issued, issue, pki, program, running

from tlsagent import Agent, AsyncAgent, CertificateError, HandshakeError, ProxyError
from tlsagent.testing import Server
from tlsagent.testing.authority import Credentials

ROOT, SERVER, CLIENT = pki()

_SERVER = """
const https = require('https');
const options = JSON.parse(process.argv[1]);
const server = https.createServer(options, (request, response) => {
  const socket = request.socket;
  const peer = socket.getPeerCertificate();
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    if (request.url === '/close') response.setHeader('Connection', 'close');
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify({
      version: socket.getProtocol(), cipher: socket.getCipher().name, reused: socket.isSessionReused(),
      name: socket.servername, alpn: socket.alpnProtocol, port: socket.remotePort,
      client: peer.raw ? peer.raw.toString('hex') : null, body: Buffer.concat(chunks).length,
    }));
  });
});
server.listen(0, '127.0.0.1', () => console.log('LISTENING ' + server.address().port));
process.stdin.on('end', () => process.exit()).resume();
"""

_CLIENT = """
const tls = require('tls');
const cases = JSON.parse(require('fs').readFileSync(0));
const codes = {};
const done = (name, socket, code) => {
  if (name in codes) return;
  codes[name] = code;
  socket.destroy();
  if (Object.keys(codes).length === cases.length) console.log(JSON.stringify(codes));
};
for (const { name, port, ca } of cases) {
  const socket = tls.connect({ host: '127.0.0.1', port, servername: 'localhost', ca });
  socket.on('error', (error) => done(name, socket, error.code));
  socket.on('secureConnect', () => done(name, socket, null));
}
"""


@contextlib.contextmanager
def node_server(version: str, **options: Any) -> Iterator[str]:
    """Run Node's https server with one TLS version; give its URL."""
    given = {"key": SERVER.key_pem.decode(), "cert": SERVER.pem.decode(), "minVersion": version, "maxVersion": version}
    with running([program("node"), "-e", _SERVER, json.dumps({**given, **options})], r"LISTENING (\d+)") as port:
        yield f"https://localhost:{port}"


@pytest.mark.parametrize("version", VERSIONS)
def test_get_with_resumption(version):
    """
    Connections after the first are resumed ones in Node's eyes and in ours; both agree on version, cipher and name.
    """
    with node_server(version) as url, Agent(ca=ROOT.pem, host="127.0.0.1") as agent:
        responses = [agent.request("GET", url + "/close") for _ in range(3)]

    seen = [response.json() for response in responses]
    infos = [response.connection for response in responses]
    assert [one["reused"] for one in seen] == [False, True, True]
    assert [info.session_reused for info in infos] == [False, True, True]
    assert [(one["version"], one["cipher"]) for one in seen] == [(i.protocol_version, i.cipher) for i in infos]
    assert {one["alpn"] for one in seen} == {"http/1.1"}
    assert seen[0]["name"] == "localhost"  # of a resumed TLS 1.2 connection Node does not tell
    assert len({one["port"] for one in seen}) == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_connection_is_reused_after_node_sent_its_tickets(version):
    """
    Node's tickets do not count as stray data: requests after them share the connection.
    """
    with node_server(version) as url, Agent(ca=ROOT.pem, host="127.0.0.1") as agent:
        responses = [agent.request("POST", url + "/", content=b"x" * size) for size in (0, 1, 200_000)]

        assert [response.json()["body"] for response in responses] == [0, 1, 200_000]
        assert [response.reused for response in responses] == [False, True, True]
        assert len({response.json()["port"] for response in responses}) == 1
        assert agent.request("GET", url + "/", options={"timeout": 9}).reused


@pytest.mark.parametrize("version", VERSIONS)
def test_client_certificate(version):
    """
    Node gets the client certificate; without one it ends the handshake, and we name its alert.
    """
    demand = {"requestCert": True, "rejectUnauthorized": True, "ca": ROOT.pem.decode()}
    with node_server(version, **demand) as url, Agent(ca=ROOT.pem, host="127.0.0.1") as agent:
        response = agent.request("GET", url + "/", options={"cert": CLIENT.pem, "key": CLIENT.key_pem})
        with pytest.raises(HandshakeError) as caught:
            agent.request("GET", url + "/")

    assert response.json()["client"] == CLIENT.der.hex()
    assert caught.value.alert == ("handshake_failure" if version == "TLSv1.2" else "certificate_required")


@pytest.mark.parametrize("version", VERSIONS)
def test_asynchronous_agent_resumes_too(version):
    """
    The same for `AsyncAgent`.
    """

    async def main(url: str) -> list[Any]:
        async with AsyncAgent(ca=ROOT.pem, host="127.0.0.1") as agent:
            return [await agent.request("GET", url + "/close") for _ in range(2)]

    with node_server(version) as url:
        responses = asyncio.run(main(url))

    assert [response.json()["reused"] for response in responses] == [False, True]


def bad_chains() -> dict[str, tuple[Issued, tuple[Issued, ...], Issued]]:
    """Return leaf, chain and trusted root of certificates that Node refuses, by the reason."""
    other = issue("another root", ca=True)
    middle = issue("intermediate", ROOT, ca=True)
    impostor = issue("impostor", ROOT)
    behind = issue("localhost", middle)
    return {
        "good": (SERVER, (), ROOT),
        "another host": (issue("other.test", ROOT), (), ROOT),
        "expired": (issue("localhost", ROOT, start=NOW - 9 * DAY, end=NOW - DAY), (), ROOT),
        "expired issuer": _behind_expired_issuer(),
        "not yet valid": (issue("localhost", ROOT, start=NOW + DAY, end=NOW + 9 * DAY), (), ROOT),
        "self-signed": (issue("localhost"), (), ROOT),
        "unknown root": (SERVER, (), other),
        "unknown root, sent": (SERVER, (ROOT,), other),
        "unknown root, intermediate sent": (behind, (middle,), other),
        "missing intermediate": (behind, (), ROOT),
        "for clients": (issue("localhost", ROOT, client=True), (), ROOT),
        "issuer is no authority": (issue("localhost", impostor), (impostor,), ROOT),
        "forged signature": (issue("localhost", issue("interop root", ca=True)), (), ROOT),
        "expired and for another host": (issue("other.test", ROOT, start=NOW - 9 * DAY, end=NOW - DAY), (), ROOT),
        "expired and unknown": (issue("localhost", other, start=NOW - 9 * DAY, end=NOW - DAY), (), ROOT),
    }


def _behind_expired_issuer() -> tuple[Issued, tuple[Issued, ...], Issued]:
    old = issue("old intermediate", ROOT, ca=True, start=NOW - 9 * DAY, end=NOW - DAY)
    return issue("localhost", old), (old,), ROOT


def test_codes_are_nodes():
    """
    For each bad chain our error has the code that Node's own client gives for it.
    """
    ours: dict[str, str | None] = {}
    cases = []
    with contextlib.ExitStack() as stack:
        for name, (leaf, chain, ca) in bad_chains().items():
            credentials = Credentials(b"".join(one.pem for one in (leaf, *chain)), leaf.key_pem)
            server = stack.enter_context(Server(credentials=credentials))
            cases.append({"name": name, "port": server.port, "ca": ca.pem.decode()})
            with Agent(ca=ca.pem, host="127.0.0.1") as agent:
                try:
                    agent.request("GET", server.url + "/hello")
                    ours[name] = None
                except CertificateError as error:
                    ours[name] = error.code
        answer = subprocess.run(
            [program("node"), "-e", _CLIENT],
            input=json.dumps(cases),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )

    assert ours == json.loads(answer.stdout)
    assert ours["good"] is None
    assert None not in [code for name, code in ours.items() if name != "good"]


_PROXY = """
const http = require('http');
const https = require('https');
const net = require('net');
const options = JSON.parse(process.argv[1]);
const proxy = options.cert ? https.createServer(options) : http.createServer();
proxy.on('connect', (request, client, head) => {
  if (request.headers['proxy-authorization'] !== 'Basic ' + Buffer.from('me:sesame').toString('base64')) {
    client.end('HTTP/1.1 407 Proxy Authentication Required\\r\\nContent-Length: 0\\r\\n\\r\\n');
    return;
  }
  const { hostname, port } = new URL('http://' + request.url);
  const server = net.connect(Number(port), hostname, () => {
    client.write('HTTP/1.1 200 Connection Established\\r\\n\\r\\n');
    server.write(head);
    client.pipe(server).pipe(client);
  });
  for (const socket of [client, server]) socket.on('error', () => { client.destroy(); server.destroy(); });
});
proxy.listen(0, '127.0.0.1', () => console.log('LISTENING ' + proxy.address().port));
process.stdin.on('end', () => process.exit()).resume();
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy(scheme):
    """
    Requests pass through a proxy that Node runs, over TLS too; without credentials there is no tunnel.
    """
    given = {"key": SERVER.key_pem.decode(), "cert": SERVER.pem.decode()} if scheme == "https" else {}
    command = [program("node"), "-e", _PROXY, json.dumps(given)]
    with (
        running(command, r"LISTENING (\d+)") as port,
        Server(credentials=Credentials(SERVER.pem, SERVER.key_pem)) as origin,
    ):
        proxy = f"{scheme}://me:sesame@localhost:{port}"
        with Agent(ca=ROOT.pem, proxy=proxy, timeouts=PATIENCE) as agent:
            assert agent.request("GET", origin.url + "/hello").status == 200
            echoed = agent.request("POST", origin.url + "/echo", content=b"x" * 1_000_000)
            with pytest.raises(ProxyError, match="user name and password") as caught:
                agent.request("GET", origin.url + "/hello", options={"proxy": proxy.replace("me:sesame@", "")})

        assert echoed.content == b"x" * 1_000_000
        assert echoed.reused
        assert caught.value.status == 407
        assert origin.stats.connections == 1
