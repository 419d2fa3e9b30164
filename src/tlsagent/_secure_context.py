"""
From options to a `SecureContext`: for the identity of a pool key, and for users who make one of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tlsagent._identity import unlocked
from tlsagent._options import CONTEXT_FIELDS, DEFAULTS, ConnectionOptions, build
from tlsagent._tls.context import SecureContext, secure_context
from tlsagent.errors import OptionError

if TYPE_CHECKING:
    from typing import Unpack

    from tlsagent._identity import Identity
    from tlsagent._material import PrivateKey
    from tlsagent._options import ConnectionOptionsDict

_VERSIONS: Final = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


def context_for(identity: Identity, keys: tuple[PrivateKey, ...]) -> SecureContext:
    """Return the context of an identity; equal identities share one."""
    return secure_context(
        ca=identity.ca,
        chains=identity.chains,
        keys=keys,
        ciphers=identity.ciphers,
        min_version=_VERSIONS[identity.min_version],
        max_version=_VERSIONS[identity.max_version],
        strict=identity.reject_unauthorized,
    )


def create_secure_context(**options: Unpack[ConnectionOptionsDict]) -> SecureContext:
    """
    Return TLS material made ready for any number of agents and requests: the option `secure_context`. Node's
    `tls.createSecureContext`.

    Takes the options that such a context replaces: ca, cert, key, passphrase, ciphers, min_version, max_version. It is
    part of the pool key, by its content.

    Raises:
        OptionError: A value is wrong, or an option does not belong to a context.
    """
    given = build(ConnectionOptions, options)
    outside = sorted(name for name in options if name not in CONTEXT_FIELDS)
    if outside:
        raise OptionError(
            f"{', '.join(outside)} belongs to a connection, not to a context: give it to the agent or the request"
        )
    said: Any = given.merged_over(DEFAULTS)
    return secure_context(
        ca=said.ca,
        chains=said.cert or (),
        keys=unlocked(said.key or (), said.passphrase),
        ciphers=said.ciphers,
        min_version=_VERSIONS[said.min_version or "TLSv1.2"],
        max_version=_VERSIONS[said.max_version or "TLSv1.3"],
        strict=True,
    )
