"""
Throw-away certificates for tests and demos, over trustme.

An `Authority` is a certificate authority that lives in memory and that nobody trusts unless told to. It decides what
the certificates say (names, dates, purpose, chain); who presents them is decided by the server or client that is given
the `Credentials`. Keys are P-256 unless asked otherwise, because making one takes microseconds; `default_authority()`
is made once per process.
"""

from __future__ import annotations

import datetime
import functools
import threading
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

try:
    import trustme
except ImportError as exc:  # pragma: no cover - the tests run with the extra installed
    raise ImportError("tlsagent.testing makes its certificates with trustme: pip install 'tlsagent[testing]'") from exc

KeyType = Literal["ecdsa", "rsa"]

_KEY_TYPES: Final = {"ecdsa": trustme.KeyType.ECDSA, "rsa": trustme.KeyType.RSA}
_DAY: Final = datetime.timedelta(days=1)
_PEM_END: Final = b"-----END CERTIFICATE-----\n"


@dataclass(frozen=True, slots=True)
class Credentials:
    """
    A certificate chain and its private key, both PEM.

    Attributes:
        cert_pem: The leaf first, then the intermediates; the root is left out.
        key_pem: The unencrypted private key of the leaf.
    """

    cert_pem: bytes
    key_pem: bytes = field(repr=False)

    @property
    def leaf_pem(self) -> bytes:
        """The leaf alone: what a server with a missing intermediate sends."""
        return self.cert_pem[: self.cert_pem.index(_PEM_END) + len(_PEM_END)]

    @property
    def leaf_der(self) -> bytes:
        """The leaf in DER, as the peer sees it."""
        return x509.load_pem_x509_certificate(self.cert_pem).public_bytes(Encoding.DER)


class Authority:
    """
    A throw-away certificate authority.

    `Authority()` is a root of its own; `intermediate()` gives one below it, whose credentials carry the chain.
    """

    __slots__ = ("_ca",)

    def __init__(self, *, key_type: KeyType = "ecdsa") -> None:
        self._ca: Any = trustme.CA(key_type=_KEY_TYPES[key_type])

    @property
    def ca_pem(self) -> bytes:
        """The root certificate, for the option `ca`."""
        root = self._ca
        while root.parent_cert is not None:
            root = root.parent_cert
        return bytes(root.cert_pem.bytes())

    def intermediate(self) -> Authority:
        """Return an authority whose certificate this one signed."""
        child = object.__new__(Authority)
        child._ca = self._ca.create_child_ca()
        return child

    def issue(
        self,
        *names: str,
        expired: bool = False,
        not_yet_valid: bool = False,
        client: bool = False,
        key_type: KeyType = "ecdsa",
        common_name: str | None = None,
    ) -> Credentials:
        """
        Issue a certificate for `names`: host names, wildcards, IP addresses or mail addresses.

        Args:
            expired: Its last day was yesterday.
            not_yet_valid: Its first day is tomorrow.
            client: Good for client authentication alone; otherwise it serves either side.
            common_name: A CN beside the names, which nobody should look at.
        """
        leaf = self._ca.issue_cert(
            *names, common_name=common_name, key_type=_KEY_TYPES[key_type], **_dates(expired, not_yet_valid)
        )
        chain = [blob.bytes() for blob in leaf.cert_chain_pems]
        if client:
            chain[0] = self._for_clients_only(chain[0])
        return Credentials(b"".join(chain), leaf.private_key_pem.bytes())

    def _for_clients_only(self, pem: bytes) -> bytes:
        # trustme issues for both purposes; sign the same certificate again with the purpose narrowed.
        was = x509.load_pem_x509_certificate(pem)
        builder = x509.CertificateBuilder(
            issuer_name=was.issuer,
            subject_name=was.subject,
            public_key=was.public_key(),
            serial_number=was.serial_number,
            not_valid_before=was.not_valid_before_utc,
            not_valid_after=was.not_valid_after_utc,
        )
        for extension in was.extensions:
            value = extension.value
            if isinstance(value, x509.ExtendedKeyUsage):
                value = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
            builder = builder.add_extension(value, critical=extension.critical)
        key: Any = load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _dates(expired: bool, not_yet_valid: bool) -> dict[str, datetime.datetime]:
    today = datetime.datetime.now(datetime.UTC).replace(tzinfo=None, microsecond=0)
    if expired and not_yet_valid:
        raise ValueError("a certificate cannot be expired and not yet valid at once")
    if expired:
        return {"not_before": today - 60 * _DAY, "not_after": today - _DAY}
    if not_yet_valid:
        return {"not_before": today + _DAY, "not_after": today + 60 * _DAY}
    return {}


_making: Final = threading.Lock()


def default_authority() -> Authority:
    """Return the authority that every server of this process uses unless given another."""
    with _making:  # lru_cache alone would let two threads make one each
        return _default_authority()


@functools.lru_cache(maxsize=1)
def _default_authority() -> Authority:
    return Authority()


@functools.lru_cache(maxsize=64)
def default_credentials(names: tuple[str, ...]) -> Credentials:
    """Return credentials of the default authority for `names`, issued once per process."""
    return default_authority().issue(*names)
