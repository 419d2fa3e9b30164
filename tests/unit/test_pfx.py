"""PKCS#12: a client certificate, its key and what it brings along."""

from __future__ import annotations

import pathlib
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from tls_peer import connect, issue, pki, server_context

from tlsagent import ConnectionOptions, create_secure_context
from tlsagent._material import EncryptedPfx, Pfx, certificate_chains, pfx_bundles, private_keys
from tlsagent.errors import OptionError, OptionTypeError

SECRET = "correct horse"


def bundle(credentials=None, passphrase=SECRET, *, key=True, certificate=True, chain=None):
    credentials = credentials or pki().client
    protection = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    return pkcs12.serialize_key_and_certificates(
        b"name",
        credentials.key if key else None,
        credentials.certificate if certificate else None,
        list(credentials.chain if chain is None else chain) or None,
        protection,
    )


@pytest.fixture(scope="module")
def chained():
    return issue("client", pki().intermediate).sending(pki().intermediate.certificate, pki().root.certificate)


def test_a_bundle_is_what_its_parts_are(chained):
    """
    Certificate and key are the same as given one by one; what is beside them comes in chain order and is trusted.
    """
    [found] = pfx_bundles(bundle(chained, chain=reversed(chained.chain)), SECRET)

    assert isinstance(found, Pfx)
    assert (found.chain,) == certificate_chains(chained.cert_pem)
    assert (found.key,) == private_keys(chained.key_pem, None)
    assert len(found.anchors.certificates) == 2


def test_every_form_of_a_bundle(tmp_path):
    """
    Bytes, a file, a list and items with their own passphrase are read; the item's passphrase wins.
    """
    path = tmp_path / "client.p12"
    path.write_bytes(bundle())

    found = {
        pfx_bundles(value, passphrase)
        for value, passphrase in (
            (bundle(), SECRET),
            (bytearray(bundle()), SECRET),
            (path, SECRET),
            ([path], SECRET.encode()),
            ([{"buf": bundle(), "passphrase": SECRET}], "another"),
            ({"buf": path, "passphrase": SECRET}, None),
            ([{"buf": bundle(passphrase=None)}], None),
        )
    }

    assert len(found) == 1


def test_several_bundles_are_several_certificates():
    """
    Each item stands for itself.
    """
    other = issue("other", pki().root)

    found = pfx_bundles([bundle(), {"buf": bundle(other, "x"), "passphrase": "x"}], SECRET)

    assert [one.chain.leaf for one in found] == [pki().client.certificate, other.certificate]


def test_a_bundle_waits_for_its_passphrase():
    """
    A passphrase of another layer opens it; without one it stays closed, and shows nothing.
    """
    [closed] = pfx_bundles(bundle(), None)

    assert isinstance(closed, EncryptedPfx)
    assert repr(closed) == f"<EncryptedPfx sha256 {closed.digest.hex()}>"
    assert (closed.unlock(SECRET),) == pfx_bundles(bundle(), SECRET)
    for wrong in (None, "", "wrong"):
        with pytest.raises(OptionError, match="passphrase") as caught:
            closed.unlock(wrong)
        assert not isinstance(caught.value, TypeError)
        assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("junk", ["junk", b"", b"\x30", bundle()[:-5], bytes(100)])
def test_junk_is_refused(junk):
    """
    What is no PKCS#12, or half of one, is an OptionError.
    """
    with pytest.raises(OptionError, match="pfx") as caught:
        pfx_bundles(junk, SECRET)
    assert not isinstance(caught.value, TypeError)


@pytest.mark.parametrize("value", [5, True, [5], [{"buf": 5}], [{}]])
def test_another_type_has_nodes_code(value):
    """
    Node says ERR_CRYPTO_OPERATION_FAILED, and no TypeError.
    """
    with pytest.raises(OptionError) as caught:
        pfx_bundles(value, None)
    assert caught.value.code == "ERR_CRYPTO_OPERATION_FAILED"
    assert not isinstance(caught.value, TypeError)


def test_unknown_names_in_an_item_are_refused_unseen():
    """
    A misplaced passphrase is not quoted.
    """
    with pytest.raises(OptionTypeError) as caught:
        pfx_bundles([{"buf": bundle(), SECRET: "passphrase"}], None)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("lacking", "code"), [("key", "ERR_CRYPTO_OPERATION_FAILED"), ("certificate", "ERR_TLSAGENT_PFX")]
)
def test_half_a_bundle_is_refused(lacking, code):
    """
    A bundle without key or certificate is no client certificate; Node has a code for the first alone.
    """
    data = bundle(**{lacking: False}, chain=[pki().root.certificate])
    with pytest.raises(OptionError, match="`pfx` lacks") as caught:
        pfx_bundles(data, SECRET)
    assert caught.value.code == code


def test_a_passphrase_with_a_nul_is_refused(capfd):
    """
    It opens nothing, and nobody shows it: the library beneath would panic, with the passphrase in its message.
    """
    with pytest.raises(OptionError, match="NUL") as caught:
        pfx_bundles(bundle(), SECRET + "\0")
    assert caught.value.code == "ERR_TLSAGENT_PFX"
    assert SECRET not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_old_algorithms_are_read(tmp_path):
    """
    A bundle with triple DES, as Windows exports it, is read.
    """
    pem, path = tmp_path / "client.pem", tmp_path / "client.p12"
    pem.write_bytes(pki().client.key_pem + pki().client.cert_pem)
    command = "openssl pkcs12 -export -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1 -passout pass:old"
    subprocess.run([*command.split(), "-in", pem, "-out", path], check=True, capture_output=True)

    assert [one.chain.leaf for one in pfx_bundles(path, "old")] == [pki().client.certificate]


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_the_server_sees_the_certificate_of_the_bundle(version, chained):
    """
    Options with a pfx present its certificate and chain, and trust what it brings.
    """
    context = create_secure_context(pfx=bundle(chained), passphrase=SECRET)

    link = connect(context, server_context(version=version, client_ca=pki().root))

    assert link.sink.facts.authorized
    assert link.server.tls.getpeercert(binary_form=True) == chained.der


def test_a_layer_with_a_bundle_replaces_a_certificate_below():
    """
    Who we are is said by one layer: a request's pfx drops the agent's cert and key, and the other way round.
    """
    pems = {"cert": pki().client.cert_pem, "key": pki().client.key_pem}
    with_pfx = ConnectionOptions(pfx=bundle(), passphrase=SECRET)

    above, below = with_pfx.merged_over(ConnectionOptions(**pems)), ConnectionOptions(**pems).merged_over(with_pfx)

    assert not above.cert
    assert not above.key
    assert above.pfx
    assert not below.pfx
    assert below.cert


def test_no_secret_in_sight(tmp_path):
    """
    Neither the repr of options nor an error shows the passphrase or the key.
    """
    text = repr(ConnectionOptions(pfx=bundle(), passphrase=SECRET))
    with pytest.raises(OptionError) as caught:
        ConnectionOptions(pfx=bundle(), passphrase="battery")

    assert SECRET not in text
    assert "battery" not in str(caught.value)
    with pytest.raises(OptionError, match="cannot read"):
        ConnectionOptions(pfx=pathlib.Path(tmp_path / "missing.p12"))
