"""
Key material and the strings that steer a handshake, parsed once into immutable values.

This is the lowest room that knows cryptography. It decides what counts as a usable value and refuses everything else
with Node's code before a socket opens; what a TLS context makes of the values is decided in `_tls.context`. Values
compare and hash by digest and print nothing but digests, so they may stand in pool keys and logs.
"""

from __future__ import annotations

from tlsagent._material.credentials import CertificateChain as CertificateChain
from tlsagent._material.credentials import EncryptedKey as EncryptedKey
from tlsagent._material.credentials import EncryptedPfx as EncryptedPfx
from tlsagent._material.credentials import Pfx as Pfx
from tlsagent._material.credentials import PrivateKey as PrivateKey
from tlsagent._material.credentials import TrustAnchors as TrustAnchors
from tlsagent._material.credentials import bad_certificate as bad_certificate
from tlsagent._material.credentials import certificate_chains as certificate_chains
from tlsagent._material.credentials import certificate_ders as certificate_ders
from tlsagent._material.credentials import check_key_pairs as check_key_pairs
from tlsagent._material.credentials import pfx_bundles as pfx_bundles
from tlsagent._material.credentials import private_keys as private_keys
from tlsagent._material.credentials import trust_anchors as trust_anchors
from tlsagent._material.parameters import CipherList as CipherList
from tlsagent._material.parameters import DHParameters as DHParameters
from tlsagent._material.parameters import RevocationLists as RevocationLists
from tlsagent._material.parameters import cipher_list as cipher_list
from tlsagent._material.parameters import dh_parameters as dh_parameters
from tlsagent._material.parameters import group_list as group_list
from tlsagent._material.parameters import revocation_lists as revocation_lists
from tlsagent._material.parameters import signature_algorithms as signature_algorithms
from tlsagent._material.session import Session as Session
