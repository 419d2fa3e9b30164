"""
The handshakes of `tests/vectors/errors.json`: what Node's `tls.connect` said of a server, said of one built alike.

The servers are `openssl s_server` and, for those that never speak TLS, plain sockets. Where the vectors have no key for
a certificate, one of the same kind is issued here, and stands in the options too. Needs the command `openssl` (3.0 or
later) on PATH; see `test_openssl`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import functools
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from live_peers import DAY, NOW, program, running

from tlsagent import (
    Agent,
    AsyncAgent,
    CertificateError,
    ConnectionInfo,
    ConnectionOptions,
    OptionError,
    TLSAgentError,
    node,
)

sys.path.append(str(Path(__file__).parents[2]))  # the checkout, for what other runners of the vectors use too
from tests.vectors.decode import decode, load

ERRORS = load("errors")
FILES = ERRORS["meta"]["files"]
CASES = [case for case in ERRORS["cases"] if case["kind"] == "handshake"]


# --- Where we disagree ------------------------------------------------------------------------------------------------


class Ours(NamedTuple):
    """What this library says in place of Node, and why."""

    code: str
    why: str


DISAGREEMENTS = {
    "CN only": Ours(
        "ERR_TLS_CERT_ALTNAME_INVALID",
        "a common name does not count (RFC 9525); who wants Node's rule gives node.check_server_identity",
    ),
    "server silent, timeout option": Ours(
        "ERR_TLSAGENT_INACTIVITY_TIMEOUT",
        "Node's 'timeout' is an event that ends nothing; here it ends the attempt",
    ),
}


# --- The servers ------------------------------------------------------------------------------------------------------


class Material:
    """Certificates of the kinds that the vectors name; those whose key they have are theirs."""

    def __init__(self) -> None:
        self.ca1 = self._issue("Test CA 1", ca=True)
        self.ca2 = self._issue("Test CA 2", ca=True)
        self.middle = self._issue("Test Intermediate", by=self.ca1, ca=True)
        self.own = {
            "cert other (ca1)": self._issue("other.test", by=self.ca1, names=["other.test"]),
            "cert expired (ca1)": self._issue("localhost", by=self.ca1, start=NOW - 9 * DAY, end=NOW - DAY),
            "cert notyet (ca1)": self._issue("localhost", by=self.ca1, start=NOW + DAY, end=NOW + 9 * DAY),
            "self-signed": self._issue("localhost"),
            "cert cnonly (ca1)": self._issue("localhost", by=self.ca1, names=[]),
            "cert ca2srv (ca2)": self._issue("localhost", by=self.ca2),
            "leaf only": self._issue("localhost", by=self.middle),
            "DHE 2048": self._issue("localhost", key=rsa.generate_private_key(65_537, 2048)),
        }
        self.own["chain"] = self.own["leaf only"]

    @staticmethod
    def _issue(
        name: str,
        *,
        by: tuple[x509.Certificate, Any] | None = None,
        ca: bool = False,
        names: list[str] | None = None,
        key: Any = None,
        start: Any = NOW - DAY,
        end: Any = NOW + 9 * DAY,
    ) -> tuple[x509.Certificate, Any]:
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer, signing_key = (subject, key) if by is None else (by[0].subject, by[1])
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), start, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        alternatives = [name] if names is None else names
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            if alternatives:
                told = x509.SubjectAlternativeName([x509.DNSName(one) for one in alternatives])
                builder = builder.add_extension(told, critical=False)
        return builder.sign(signing_key, hashes.SHA256()), key

    def credentials(self, server: str) -> tuple[str, str]:
        """Return certificate and key of a server, PEM."""
        if server in WITH_THE_VECTORS_KEY:
            return FILES["srvCert"], FILES["srvKey"]
        certificate, key = self.own[server]
        return pem(certificate), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    def files(self, server: str) -> dict[str, Any]:
        """Return the vectors' files as a client of the server is to have them."""
        if server not in self.own:
            return FILES
        ours = {"ca1": self.ca1, "ca2": self.ca2, "int": self.middle}
        ours |= {"selfsigned": self.own["self-signed"], "rsa": self.own["DHE 2048"]}
        return {**FILES, **{name: pem(certificate) for name, (certificate, _key) in ours.items()}}


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


@functools.cache
def material() -> Material:
    """Return the certificates, issued once per process."""
    return Material()


WITH_THE_VECTORS_KEY = {
    "cert srv (ca1)", "srv", "srv TLSv1.2", "srv ALPN h2", "srv one cipher", "mTLS TLSv1.2", "mTLS TLSv1.3"
}  # fmt: skip
MUTUAL = ["-Verify", "1", "-verify_return_error", "-CAfile", "ca1.pem"]
# What s_server is told besides certificate and key; a server that is not here is told nothing.
ARGUMENTS = {
    "srv TLSv1.2": ["-tls1_2"],
    "srv ALPN h2": ["-alpn", "h2"],
    "mTLS TLSv1.2": ["-tls1_2", *MUTUAL],
    "mTLS TLSv1.3": ["-tls1_3", *MUTUAL],
    "srv one cipher": ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"],
    "chain": ["-cert_chain", "chain.pem"],
    "DHE 2048": ["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256", "-dhparam", "dh.pem"],
}


@contextlib.contextmanager
def s_server(server: str, folder: Path) -> Iterator[int]:
    """Run a server that the vectors name; give its port."""
    cert, key = material().credentials(server)
    content = {"server.pem": cert, "server.key": key, "dh.pem": FILES["dh2048"], "ca1.pem": FILES["ca1"]}
    content["chain.pem"] = pem(material().middle[0])
    for name, text in content.items():
        (folder / name).write_text(text)
    arguments = ["-cert", "server.pem", "-key", "server.key", *ARGUMENTS.get(server, [])]
    command = [program("openssl"), "s_server", "-accept", "127.0.0.1:0"]
    command += [str(folder / word) if word in content else word for word in arguments]
    with running(command, r"ACCEPT 127\.0\.0\.1:(\d+)") as port:
        yield int(port)


@contextlib.contextmanager
def plain(server: str) -> Iterator[int]:
    """Run a server that ends connections at once ("FIN", "RST"), or lets them wait ("silent"); give its port."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock = stack.enter_context(listener.accept()[0])
                    if server == "RST":
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    if server == "FIN":
                        sock.shutdown(socket.SHUT_WR)
                    elif server == "RST":
                        sock.recv(65_536)
                        sock.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """Give a port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    yield port


@contextlib.contextmanager
def running_server(server: str, folder: Path) -> Iterator[int]:
    """Run the server of a case."""
    bare = {"closed port": nobody, "FIN": functools.partial(plain, "FIN")}
    bare |= {name: functools.partial(plain, name) for name in ("RST", "silent")}
    with bare[server]() if server in bare else s_server(server, folder) as port:
        yield port


# --- The client -------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a connection went: an error before there was a connection has no `info` beside it."""

    error: TLSAgentError | None
    info: ConnectionInfo | None


def connect_in_threads(port: int, options: ConnectionOptions, *, read: bool) -> Outcome:
    """Connect by `Agent`, and wait for an answer if told so."""
    info = None
    try:
        with Agent() as agent, agent.connect("127.0.0.1", port, options=options) as connection:
            info = connection.info
            if read:
                connection.recv()
    except TLSAgentError as error:
        return Outcome(error, info)
    return Outcome(None, info)


def connect_in_asyncio(port: int, options: ConnectionOptions, *, read: bool) -> Outcome:
    """The same by `AsyncAgent`."""

    async def main() -> Outcome:
        info = None
        try:
            async with AsyncAgent() as agent:
                connection = await agent.connect("127.0.0.1", port, options=options)
                async with connection:
                    info = connection.info
                    if read:
                        await connection.recv()
        except TLSAgentError as error:
            return Outcome(error, info)
        return Outcome(None, info)

    return asyncio.run(main())


ANSWERS = {"checkServerIdentity returns Error": ValueError("pin"), "checkServerIdentity returns string": "no"}


def options_of(case: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the options of a case, and whom its `checkServerIdentity` will have been asked about."""
    options = decode(case["options"], material().files(case["server"]))
    asked: list[str] = []

    def check(hostname: str, _certificate: Any) -> object:
        asked.append(hostname)
        return ANSWERS.get(case["case"])

    if "checkServerIdentity" in options:
        options["checkServerIdentity"] = check
    return options, asked


each_driver = pytest.mark.parametrize("connect", [connect_in_threads, connect_in_asyncio])


@each_driver
@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case['id']} {case['case']}") for case in CASES])
def test_handshake(case, connect, tmp_path):
    """
    A connection is secured or refused as Node's is, with its code and its verdict; where not, the table says why.
    """
    options, asked = options_of(case)
    with running_server(case["server"], tmp_path) as port:
        outcome = refused = None
        try:
            made = node.connection_options({"host": "127.0.0.1", "port": port, **options})
            outcome = connect(port, made, read="after_secureConnect" in case)
        except OptionError as error:
            refused = error

    error = refused or outcome.error
    if "stricter" in case:
        assert error is not None
        assert any(fnmatch.fnmatchcase(error.code, code) for code in case["stricter"]["codes"])
        return
    assert refused is None, f"refused before anything was sent: {refused}"
    if case["case"] in DISAGREEMENTS:
        assert (error.code, outcome.info) == (DISAGREEMENTS[case["case"]].code, None)
    elif case.get("secureConnect"):
        assert error is None
        assert_secured(case, outcome.info)
    else:
        assert_refused(case, outcome)
    assert bool(asked) == (case["case"] in ANSWERS)


def assert_secured(case, info):
    """Assert that a connection is what the case says it is."""
    assert (info.authorized, info.authorization_error) == (case["authorized"], case["authorizationError"])
    assert (info.protocol_version, info.alpn_protocol or False) == (case["protocol"], case["alpn"])


def assert_refused(case, outcome):
    """Assert that a connection failed as the case says, before or after its handshake."""
    error, late = outcome.error, outcome.info is not None
    assert error is not None
    # Where Node's error has no code, ours has one all the same.
    assert case["code"] in (None, error.code)
    # An alert behind the handshake may be there before whoever connects gets the connection: then connect() raises it.
    assert not late or case.get("after_secureConnect")
    if late or not case.get("after_secureConnect"):
        assert case["authorized"] == (late and outcome.info.authorized)
    said = case["authorizationError"]
    if not late and isinstance(error, CertificateError):
        # Node takes the message where the error has no code.
        assert said in (None, error.code) or (case["code"] is None and said in str(error))
    else:
        assert said is None


def test_disagreements_are_all_met():
    """
    A line in the table of disagreements is about a case that there is.
    """
    assert set(DISAGREEMENTS) <= {case["case"] for case in CASES}


@each_driver
def test_nodes_own_check_accepts_a_common_name(connect, tmp_path):
    """
    With `node.check_server_identity` a certificate that has nothing but a common name passes, as in Node.
    """
    case = next(case for case in CASES if case["case"] == "CN only")
    options, _ = options_of(case)
    with running_server(case["server"], tmp_path) as port:
        said = {**options, "port": port, "checkServerIdentity": node.check_server_identity}
        outcome = connect(port, node.connection_options(said), read=False)

    assert outcome.error is None
    assert_secured(case, outcome.info)
