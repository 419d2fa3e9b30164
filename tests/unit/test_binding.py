from __future__ import annotations

import pytest
from OpenSSL import SSL, crypto
from tls_peer import connect, pki

from tlsagent._material import binding


class Lacking:
    """The binding without one name."""

    def __init__(self, lib, name):
        self._lib = lib
        self._name = name

    def __getattr__(self, name):
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._lib, name)


def parts():
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    return {
        "lib": binding._lib,
        "connection": SSL.Connection(context, None),
        "context": context,
        "store": crypto.X509Store(),
    }


def test_installed_versions_pass():
    """
    The versions installed here have everything.
    """
    binding.check(**parts())


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("lib", name) for name in binding._NEEDED),
        ("connection", "_ssl"),
        ("connection", "_into_ssl"),
        ("connection", "_from_ssl"),
        ("context", "_context"),
        ("store", "_store"),
    ],
)
def test_missing_name_is_an_import_error(part, name):
    """
    A version without one of the private names is refused on import, naming what lacks and what to install.
    """
    changed = parts()
    changed[part] = Lacking(changed[part], name)
    with pytest.raises(ImportError, match=rf"{name}\b.*pyOpenSSL>="):
        binding.check(**changed)


def test_every_name_used_is_checked():
    """
    No function of the library is used that the self-check does not know of.
    """
    import inspect
    import re

    used = set(re.findall(r"\b_lib\.(\w+)", inspect.getsource(binding)))
    assert used <= set(binding._NEEDED)


def test_memory_bio_round_trip():
    """
    What is written to a BIO is counted, read into a scratch buffer and gone.
    """
    connection = parts()["connection"]
    _, into_ssl, _ = binding.handles(connection)
    buffer = binding.scratch(64)

    assert binding.bio_write(into_ssl, b"hello", 5) == 5
    assert binding.bio_write(into_ssl, binding.pointer_to(memoryview(b" you")), 4) == 4
    assert binding.bio_pending(into_ssl) == 9
    assert binding.bio_read(into_ssl, binding.advanced(buffer, 1), 63) == 9
    assert binding.unpack(binding.advanced(buffer, 1), 9) == b"hello you"
    assert binding.bio_pending(into_ssl) == 0


def test_faults_are_read_once():
    """
    The error queue comes as numbers and reasons, oldest first, and is empty afterwards.
    """
    binding.clear_errors()
    assert binding._lib.SSL_CTX_set_cipher_list(parts()["context"]._context, b"NO-SUCH-CIPHER") == 0

    [fault] = binding.take_faults()
    assert fault.reason == "no cipher match"
    assert fault.number == 185
    assert binding.take_faults() == []


def test_nothing_is_known_before_the_handshake():
    """
    What a handshake settles is None, empty or False before it.
    """
    connection = parts()["connection"]
    ssl, _, _ = binding.handles(connection)

    assert binding.peer_certificate(ssl) is None
    assert binding.peer_chain(ssl) == ()
    assert binding.alpn_selected(ssl) is None
    assert binding.held_session(ssl) is None
    assert not binding.session_reused(ssl)


def test_held_session_outlives_its_connection():
    """
    A held session is good after its connection is gone.
    """
    link = connect()
    held = binding.held_session(link.engine._ssl)
    before = binding.session_to_der(held)
    del link

    assert binding.session_to_der(held) == before
    assert pki().server.der in before


def test_shared_store_serves_many_contexts():
    """
    A store that contexts share stays alive as long as one of them does.
    """
    contexts = [SSL.Context(SSL.TLS_CLIENT_METHOD) for _ in range(20)]
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(pki().root.certificate))
    for context in contexts:
        binding.share_store(context, store)
    del store
    del contexts[:19]

    assert contexts[0].get_cert_store() is not None
    assert binding._lib.sk_X509_OBJECT_num(
        binding._lib.X509_STORE_get0_objects(binding._lib.SSL_CTX_get_cert_store(contexts[0]._context))
    )
