"""
From options to a `SecureContext`: for the identity of a pool key, and for users who make one of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tlsagent._identity import unlocked, unlocked_pfx, version_range
from tlsagent._option_rules import protocol_range
from tlsagent._options import CONTEXT_FIELDS, DEFAULTS, SERVER_FIELDS, ConnectionOptions, build
from tlsagent._tls.context import SecureContext, secure_context
from tlsagent.errors import OptionError

if TYPE_CHECKING:
    from typing import Unpack

    from tlsagent._identity import Identity
    from tlsagent._material import PrivateKey
    from tlsagent._options import ConnectionOptionsDict

_VERSIONS: Final = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


def context_for(identity: Identity, keys: tuple[PrivateKey, ...]) -> SecureContext:
    """Return the context of an identity; equal identities share one, and may share it with others."""
    return secure_context(
        ca=identity.ca,
        also_trusted=identity.also_trusted,
        chains=identity.chains,
        keys=keys,
        crl=identity.crl,
        ciphers=identity.ciphers,
        ecdh_curve=identity.ecdh_curve,
        sigalgs=identity.sigalgs,
        min_version=_VERSIONS[identity.min_version],
        max_version=_VERSIONS[identity.max_version],
        secure_options=identity.secure_options,
        session_id_context=identity.session_id_context,
        allow_partial_trust_chain=identity.allow_partial_trust_chain,
    )


def create_secure_context(**options: Unpack[ConnectionOptionsDict]) -> SecureContext:
    """
    Return TLS material made ready for any number of agents and requests, or servers: the option `secure_context`.
    Node's `tls.createSecureContext`.

    Takes the options that such a context replaces: ca, cert, key, passphrase, pfx, crl, allow_partial_trust_chain,
    ciphers, ecdh_curve, sigalgs, min_version, max_version, secure_protocol, secure_options, session_id_context; and for
    servers dhparam, honor_cipher_order, request_cert and sni_callback, which clients pay no heed to. It is part of the
    pool key, by its content.

    Raises:
        OptionError: A value is wrong, or an option does not belong to a context.
    """
    given = build(ConnectionOptions, options)
    outside = sorted(name for name in options if name not in CONTEXT_FIELDS and name not in SERVER_FIELDS)
    if outside:
        raise OptionError(
            f"{', '.join(outside)} belongs to a connection, not to a context: give it to the agent or the request"
        )
    said: Any = given.merged_over(DEFAULTS)
    bundles = unlocked_pfx(said.pfx or (), said.passphrase)
    low, high = version_range(said)
    return secure_context(
        ca=said.ca or None,
        also_trusted=tuple(bundle.anchors for bundle in bundles if bundle.anchors.certificates),
        chains=(*(said.cert or ()), *(bundle.chain for bundle in bundles)),
        keys=(*unlocked(said.key or (), said.passphrase), *(bundle.key for bundle in bundles)),
        crl=said.crl or None,
        ciphers=said.ciphers or None,
        ecdh_curve=said.ecdh_curve or None,
        sigalgs=said.sigalgs or None,
        min_version=_VERSIONS[low],
        max_version=_VERSIONS[high],
        secure_options=said.secure_options or 0,
        session_id_context=said.session_id_context or None,
        allow_partial_trust_chain=bool(said.allow_partial_trust_chain),
        dhparam=said.dhparam or None,
        honor_cipher_order=bool(said.honor_cipher_order),
        request_cert=bool(said.request_cert),
        sni_callback=said.sni_callback or None,
        role=protocol_range(said.secure_protocol)[2] if said.secure_protocol else "both",
    )
