"""
What the scenarios of a file name: certificates, keys, and the values that JSON lacks.

A file may bring its texts along (`meta.files`). What it only names is made here, from the name: `ca1`, `ca2`, `certA`,
`keyA`, `p12a`, and with the ending `buf` the same as a Buffer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509.oid import NameOID

from tlsagent import node
from tlsagent.node import UNDEFINED
from tlsagent.testing import Authority, Credentials

NAMES = ("localhost", "a.test", "b.test", "*.wild.test", "127.0.0.1", "::1")
PKCS12_PASSPHRASE = "secret"


class Unknown(Exception):
    """The file names something that the replay does not know."""


# --- Certificates -----------------------------------------------------------------------------------------------------


@functools.cache
def authority(name: str) -> Authority:
    """Return the authority of a name, made once per process."""
    return Authority()


@functools.cache
def server_credentials(name: str | None = None) -> Credentials:
    """Return what a server shows: good for all names and signed by ca1, unless the name of it says otherwise."""
    names = NAMES if name is None else _names_in(name) or NAMES
    said = (name or "").lower()
    if "self" in said:
        return _self_signed(names)
    issuer = authority("ca2" if re.search(r"ca2|untrusted|unknown", said) else "ca1")
    return issuer.issue(*names, expired="expired" in said, not_yet_valid="future" in said or "notyet" in said)


def _names_in(said: str) -> tuple[str, ...]:
    if re.search(r"wrong|other|bad|zname|^z$", said.lower()):
        return ("z.test",)
    single = re.fullmatch(r"(?:srv|server|cert)?[-_]?([ab])(?:\.test)?(?:only|cert)?", said.lower())
    return (f"{single[1]}.test",) if single else tuple(re.findall(r"[a-z*]+(?:\.[a-z]+)*\.test", said))


def _self_signed(names: tuple[str, ...]) -> Credentials:
    made = Authority().issue(*names)
    was = x509.load_pem_x509_certificate(made.cert_pem)
    key: Any = load_pem_private_key(made.key_pem, None)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    start, end = was.not_valid_before_utc, was.not_valid_after_utc
    builder = x509.CertificateBuilder(subject, subject, was.public_key(), was.serial_number, start, end)
    san = was.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    signed = builder.add_extension(san.value, critical=False).sign(key, hashes.SHA256())
    return Credentials(signed.public_bytes(Encoding.PEM), made.key_pem)


@functools.cache
def client_credentials(letter: str) -> Credentials:
    """Return the client identity `client-a`, `client-b`, ..."""
    letter = letter.lower()
    return authority("ca1").issue(f"client-{letter}.test", client=True, common_name=f"client-{letter}")


def common_name(der: bytes | None) -> str | None:
    """Return the CN of a certificate."""
    if der is None:
        return None
    names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else None


@functools.cache
def _made(name: str) -> str | bytes:
    if name.endswith("buf"):
        text = _made(name.removesuffix("buf"))
        return text.encode("ascii") if isinstance(text, str) else text
    if re.fullmatch(r"ca\d", name):
        return authority(name).ca_pem.decode("ascii")
    if match := re.fullmatch(r"(cert|key|p12|pfx)([a-zA-Z])", name):
        kind, whose = match[1], client_credentials(match[2])
        if kind in ("p12", "pfx"):
            return _pkcs12(whose)
        return (whose.leaf_pem if kind == "cert" else whose.key_pem).decode("ascii")
    raise Unknown(f"a file {name!r} that meta.files does not have")


def _pkcs12(whose: Credentials) -> bytes:
    key: Any = load_pem_private_key(whose.key_pem, None)
    certificate = x509.load_pem_x509_certificate(whose.leaf_pem)
    encryption = BestAvailableEncryption(PKCS12_PASSPHRASE.encode())
    return pkcs12.serialize_key_and_certificates(None, key, certificate, None, encryption)


# --- The encoding -----------------------------------------------------------------------------------------------------


class PinMismatch(Exception):
    """What the rejecting identity check answers."""

    code = "PIN"


def _accept(hostname: str, certificate: object) -> None:
    return None


def _reject(hostname: str, certificate: object) -> Exception:
    return PinMismatch("pin mismatch")


class Decoder:
    """
    Values of one scenario.

    Each `$check` becomes a function of its own, as it does in Node: none of these requests may share. A `$lookup` of
    one address is one function, however often it is named: there it is a means, not the matter.
    """

    def __init__(self, files: Mapping[str, Any], session: Callable[[str], bytes]) -> None:
        self._files = files
        self._session = session
        self._lookups: dict[str, Callable[..., list[str]]] = {}

    def __call__(self, value: Any) -> Any:
        """Return the Python form of a value, as `tlsagent.node` wants it."""
        if isinstance(value, list):
            return [self(item) for item in value]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((kind, content),) = value.items()
            if kind[:1] == "$":
                return self._special(kind, content)
        return {name: self(item) for name, item in value.items()}

    def _special(self, kind: str, content: Any) -> Any:
        if kind == "$undefined":
            return UNDEFINED
        if kind == "$number":
            return float(content.replace("Infinity", "inf"))
        if kind == "$hex":
            return bytes.fromhex(content)
        if kind == "$uint8array":
            return bytearray.fromhex(content)
        if kind == "$file":
            return self(self._files[content]) if content in self._files else _made(content)
        if kind == "$ctx":
            return node.secure_context(self(content))
        if kind == "$session":
            return self._session(content)
        if kind == "$lookup":
            return self._lookups.setdefault(content, lambda host, family: [content])
        if kind == "$check":
            return self._check(content)
        if kind == "$function" and content == "checkServerIdentity":
            return node.check_server_identity
        raise Unknown(f"the encoding {kind}: {content!r}")

    @staticmethod
    def _check(name: str) -> Callable[..., object]:
        if name == "default":
            return node.check_server_identity
        verdict = {"accept": _accept, "reject": _reject}.get(name)
        if verdict is None:
            raise Unknown(f"the identity check {name!r}")
        return lambda hostname, certificate: verdict(hostname, certificate)
