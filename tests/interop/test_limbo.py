"""
Certificate verdicts against x509-limbo and BetterTLS: the agent must not do worse than OpenSSL alone.

The vectors are read from `../shared/vectors/limbo-public.json`, beside the checkout. They belong to their own projects
(C2SP/x509-limbo, Netflix/bettertls; Apache-2.0) and are not part of this repository: without the file these tests are
skipped, which is the one exception to the rule that nothing is skipped in silence. The reason of the skip names the
file.

Taken are the cases that a real handshake can present, whose verdict does not depend on the clock, that are not marked
as a matter of taste, and on which OpenSSL alone agrees with the suite (`floor`). All of them run, none is left out: a
context is made from the public options, and `TLSEngine` shakes hands in memory with the standard library's ssl. A chain
that this refuses to present (a weak key, a broken extension) is presented by pyOpenSSL.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from tlsagent import OptionError, RequestError, create_secure_context
from tlsagent._tls.engine import TLSEngine
from tlsagent._tls.verify import check_server_identity

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors" / "limbo-public.json"

pytestmark = pytest.mark.skipif(
    not VECTORS.exists(), reason=f"THE LIMBO VECTORS ARE MISSING, NO VERDICT WAS COMPARED: {VECTORS}"
)

EXPLAINED = {
    "pathlen::max-chain-depth-1-exhausted": "the case limits the chain to one issuer; Node has no such option, nor we",
}
"""Where our verdict is not the floor's, and why that is right. An entry that is no longer true fails the test."""

# --- The cases --------------------------------------------------------------------------------------------------------


@functools.cache
def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"]
    return [
        case
        for case in found
        if case["how"] == "tls" and case["clock_independent"] and case["floor"] is not None and not case["soft"]
    ]


def context_of(case: dict[str, Any]) -> Any:
    options: dict[str, Any] = {"ca": [pem.encode() for pem in case["trust_anchors"]]}
    if case["crls"]:
        options["crl"] = [pem.encode() for pem in case["crls"]]
    return create_secure_context(**options)


# --- The server -------------------------------------------------------------------------------------------------------


Presenter = Callable[[bytes], bytes]
"""The server's end: takes bytes and returns the answer. What goes wrong with it shows at the client."""


def presenter(case: dict[str, Any]) -> Presenter:
    try:
        return _by_stdlib(case)
    except ssl.SSLError:
        return _by_pyopenssl(case)


def _by_stdlib(case: dict[str, Any]) -> Presenter:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    handle, path = tempfile.mkstemp(suffix=".pem")
    try:
        with os.fdopen(handle, "w") as file:
            file.write("\n".join((case["peer_key"], *case["peer_chain"])))
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)

    def exchange(data: bytes) -> bytes:
        incoming.write(data)
        with contextlib.suppress(ssl.SSLError):  # it wants more, or the client has refused the chain
            tls.do_handshake()
        return outgoing.read()

    return exchange


def _by_pyopenssl(case: dict[str, Any]) -> Presenter:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    leaf, *chain = (x509.load_pem_x509_certificate(pem.encode()) for pem in case["peer_chain"])
    key: Any = load_pem_private_key(case["peer_key"].encode(), None)
    context.use_certificate(leaf)
    context.use_privatekey(key)
    for certificate in chain:
        context.add_extra_chain_cert(certificate)
    tls = SSL.Connection(context, None)
    tls.set_accept_state()

    def exchange(data: bytes) -> bytes:
        tls.bio_write(data)
        with contextlib.suppress(SSL.Error):
            tls.do_handshake()
        try:
            return tls.bio_read(1 << 20)
        except SSL.WantReadError:
            return b""

    return exchange


# --- The client -------------------------------------------------------------------------------------------------------


class _Silence:
    """A sink for an engine of which only the verdict counts."""

    def secured(self, facts: object, now: float) -> None: ...

    def plaintext_received(self, data: bytes, now: float) -> None: ...

    def plaintext_ended(self, clean: bool, now: float) -> None: ...

    def session_received(self, session: object) -> None: ...


def verdict(case: dict[str, Any]) -> tuple[str, str]:
    """Return ACCEPT or REJECT, and the code of the reason."""
    try:
        context = context_of(case)
    except OptionError as error:
        return "REJECT", f"option: {error.code}"
    name = case["peer_name"]["value"]
    engine = TLSEngine(
        context,
        verified_name=name,
        server_name=name if case["peer_name"]["kind"] == "DNS" else None,
        alpn_protocols=(),
        reject_unauthorized=True,
        check_identity=check_server_identity,
        wall_offset=time.time(),
    )
    present = presenter(case)
    sink: Any = _Silence()
    try:
        engine.start()
        while not engine.secured:
            answer = present(engine.data_to_send())
            assert answer, f"{case['id']}: the server has nothing to say"
            engine.receive_data(answer, 0.0, sink)
    except RequestError as error:
        return "REJECT", error.code
    return "ACCEPT", ""


# --- The comparison ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_verdicts_are_no_worse_than_openssl_alone():
    """
    On every case the verdict is the floor's, but for those that the table explains.
    """
    different = {}
    for case in cases():
        ours, code = verdict(case)
        if ours != case["floor"]:
            different[case["id"]] = f"{ours} ({code}), not {case['floor']}"

    unexplained = {name: text for name, text in different.items() if name not in EXPLAINED}
    assert not unexplained
    assert set(EXPLAINED) <= set(different), "the table explains what does not happen"


def test_there_is_something_to_compare():
    """
    The vectors hold accepting and rejecting cases, names and addresses, in numbers that mean something.
    """
    floors = [case["floor"] for case in cases()]
    kinds = {case["peer_name"]["kind"] for case in cases()}

    assert floors.count("REJECT") > 300
    assert floors.count("ACCEPT") > 50
    assert kinds == {"DNS", "IP"}
