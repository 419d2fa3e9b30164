"""Options: checked and made canonical when they are built, merged in one way, and silent about secrets."""

import copy
import dataclasses
import math
import pickle
import subprocess
import sys

import pytest
import trustme

from tlsagent import UNSET, AgentOptions, ConnectionOptions, Timeouts, create_secure_context
from tlsagent._options import DEFAULTS, AgentOptionsDict, ConnectionOptionsDict, build
from tlsagent.errors import OptionError, OptionRangeError, OptionTypeError

CA = trustme.CA()
LEAF = CA.issue_cert("localhost")
CA_PEM = CA.cert_pem.bytes()
KEY_PEM = LEAF.private_key_pem.bytes()
CERT_PEM = LEAF.cert_chain_pems[0].bytes()
SUPPORTED = set(ConnectionOptions._rules) | {"key", "pfx"}
SEED = {
    "alpn_protocols", "sni_callback", "ca", "cert", "check_server_identity", "ciphers", "client_cert_engine", "crl",
    "dhparam", "ecdh_curve", "enable_trace", "honor_cipher_order", "host", "key", "lookup", "max_version",
    "min_dh_size", "min_version", "passphrase", "path", "pfx", "port", "reject_unauthorized", "request_cert",
    "secure_context", "secure_options", "secure_protocol", "servername", "session", "session_id_context", "socket",
    "timeout",
}  # fmt: skip


def test_all_options_of_the_seed_have_a_field():
    """
    Every ConnectionOptions of Node's has a field; none is missing in silence.
    """
    assert len(SEED) == 32
    assert set(ConnectionOptions.field_names()) >= SEED


def test_every_field_defaults_to_unset():
    """
    An options object says nothing that its maker did not say.
    """
    for cls in (ConnectionOptions, AgentOptions):
        made = cls()
        assert all(getattr(made, name) is UNSET for name in cls.field_names())


@pytest.mark.parametrize("name", sorted(set(AgentOptions.field_names()) - SUPPORTED - set(AgentOptions._rules)))
def test_an_option_that_does_not_work_yet_is_refused_by_name(name):
    """
    An option of a later release raises NotImplementedError with its name, never silence.
    """
    with pytest.raises(NotImplementedError, match=name):
        AgentOptions(**{name: "anything"})


def test_unset_is_falsy_and_one_of_its_kind():
    """
    UNSET survives pickling as the same object and is false.
    """
    assert not UNSET
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET
    assert repr(UNSET) == "UNSET"


@pytest.mark.parametrize(
    ("given", "error", "code"),
    [
        ({"alpn_protocols": "http/1.1"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"alpn_protocols": [1]}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"alpn_protocols": [""]}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"alpn_protocols": ["a" * 256]}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"ca": "junk"}, OptionError, None),
        ({"ca": 7}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"ciphers": "NONSENSE"}, OptionError, "ERR_SSL_NO_CIPHER_MATCH"),
        ({"ciphers": 1}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"check_server_identity": 1}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"lookup": "x"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"host": ""}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"host": "a\0b"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"host": 5}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"host": "a b"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"host": "a/b"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"host": "user@a"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"host": "a:443"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"host": "[::1"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"host": "[a]"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"port": 0}, OptionRangeError, "ERR_SOCKET_BAD_PORT"),
        ({"port": 65_536}, OptionRangeError, "ERR_SOCKET_BAD_PORT"),
        ({"port": "8o"}, OptionRangeError, "ERR_SOCKET_BAD_PORT"),
        ({"port": True}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"port": 1.5}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"path": ""}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"path": 3}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"path": "/" + "x" * 107}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"servername": "127.0.0.1"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"servername": "::1"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"servername": "127.0.0.1."}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"servername": "a..b"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"servername": "a" * 64}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"servername": ".".join(["a" * 60] * 5)}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"servername": "a b"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"servername": None, "reject_unauthorized": None}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"reject_unauthorized": 0}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"reject_unauthorized": "false"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"min_version": "TLSv1.4"}, OptionError, "ERR_TLS_INVALID_PROTOCOL_VERSION"),
        ({"max_version": ""}, OptionError, "ERR_TLS_INVALID_PROTOCOL_VERSION"),
        ({"passphrase": 1}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"secure_context": object()}, OptionTypeError, "ERR_TLS_INVALID_CONTEXT"),
        ({"socket": object()}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"timeout": 0}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"timeout": -1}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"timeout": math.nan}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"timeout": math.inf}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"timeout": "5"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"max_sockets": 0}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"max_sockets": 1.5}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"max_sockets": True}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"max_total_sockets": 0}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"max_free_sockets": -1}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"max_cached_sessions": None}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"scheduling": "random"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"keep_alive": 1}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"session_store": {}}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"timeouts": "5"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"timeouts": True}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"http1_engine": "fast"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"http1": {}}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"http2": {}}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"max_response_size": 0}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"max_response_size": "1"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
    ],
)
def test_bad_values_are_refused_when_the_object_is_built(given, error, code):
    """
    A bad value gives an OptionError of the right class and code, whose message names the option.
    """
    with pytest.raises(error) as caught:
        AgentOptions(**given)

    assert code is None or caught.value.code == code
    assert list(given)[-1] in str(caught.value)


def test_versions_that_exclude_each_other_are_refused():
    """
    min_version above max_version could never connect, in one layer or in two laid over each other.
    """
    with pytest.raises(OptionError) as caught:
        ConnectionOptions(min_version="TLSv1.3", max_version="TLSv1.2")
    assert caught.value.code == "ERR_TLS_INVALID_PROTOCOL_VERSION"
    with pytest.raises(OptionError):
        ConnectionOptions(max_version="TLSv1.2").merged_over(AgentOptions(min_version="TLSv1.3"))


@pytest.mark.parametrize("highest", [{"max_version": "TLSv1.2"}, {"secure_protocol": "TLSv1_2_method"}])
def test_ciphers_of_a_version_that_is_off_are_refused(highest):
    """
    Suites of TLS 1.3 alone leave nothing to offer below it, in one layer or in two.
    """
    suites = ConnectionOptions(ciphers="TLS_AES_128_GCM_SHA256")
    for said in (lambda: ConnectionOptions(ciphers=suites.ciphers, **highest), lambda: ConnectionOptions(**highest)):
        with pytest.raises(OptionError, match=r"TLSv1\.2: nothing is left") as caught:
            said().merged_over(suites)
        assert caught.value.code == "ERR_SSL_NO_PROTOCOLS_AVAILABLE"

    assert ConnectionOptions(ciphers="TLS_AES_128_GCM_SHA256:ECDHE-RSA-AES128-GCM-SHA256", **highest)


def test_an_unhashable_hook_is_refused():
    """
    A hook is part of the pool key, so it must be hashable.
    """

    class Hook:
        __hash__ = None

        def __call__(self, *_):
            return None

    with pytest.raises(OptionTypeError, match="hashable"):
        ConnectionOptions(check_server_identity=Hook())


def test_an_unknown_name_is_a_type_error_that_knows_what_was_meant():
    """
    A misspelt keyword raises OptionError, a TypeError too, with the nearest name.
    """
    with pytest.raises(OptionError, match="max_sockets") as caught:
        build(AgentOptions, {"max_socket": 1})

    assert isinstance(caught.value, TypeError)
    with pytest.raises(OptionError, match="xyzzy"):
        build(AgentOptions, {"xyzzy": 1})


def test_values_become_canonical():
    """
    What means the same is the same: spelling of hosts, ports as text, lists and tuples.
    """
    made = ConnectionOptions(host="[::1]", port="443", servername="EXAMPLE.com", alpn_protocols=[b"h2", "http/1.1"])

    assert (made.host, made.port, made.servername) == ("::1", 443, "example.com")
    assert made.alpn_protocols == ("h2", "http/1.1")
    assert ConnectionOptions(servername="bücher.example").servername == "xn--bcher-kva.example"
    assert ConnectionOptions(servername="").servername == ""


def test_equal_content_makes_equal_options():
    """
    Options are equal and hash alike by content, whatever objects they were built from.
    """
    one = ConnectionOptions(ca=CA_PEM, cert=CERT_PEM, key=KEY_PEM)
    two = ConnectionOptions(ca=CA_PEM.decode(), cert=[CERT_PEM], key=[KEY_PEM])

    assert one == two
    assert hash(one) == hash(two)
    assert one != ConnectionOptions(ca=CA_PEM)
    assert one != AgentOptions(ca=CA_PEM, cert=CERT_PEM, key=KEY_PEM)
    assert one != "options"


def test_options_are_frozen():
    """
    Nothing can be changed after the check.
    """
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConnectionOptions(port=1).port = 2


def test_options_are_copied_and_pickled():
    """A copy is the same object, for options never change. In another process equal options are equal as well."""
    options = AgentOptions(
        servername="a.test", alpn_protocols=("h2",), ciphers="AES128-SHA", timeouts=Timeouts(total=1)
    )
    assert copy.copy(options) is options
    assert copy.deepcopy([options])[0] is options
    code = "import pickle, sys; from tlsagent import AgentOptions, Timeouts; options = pickle.load(sys.stdin.buffer); "
    code += "assert options == AgentOptions(servername='a.test', alpn_protocols=('h2',), ciphers='AES128-SHA', "
    code += "timeouts=Timeouts(total=1)), options"

    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(options), check=True)


def test_what_cannot_be_pickled_is_named():
    """Objects of OpenSSL stay in their process, and no private key leaves it by accident."""
    client = CA.issue_cert("a.test")
    options = ConnectionOptions(
        ca=CA.cert_pem.bytes(), cert=client.cert_chain_pems[0].bytes(), key=client.private_key_pem.bytes()
    )

    with pytest.raises(OptionTypeError, match="options with ca, cert, key cannot be pickled: make them anew"):
        pickle.dumps(options)


def test_no_secret_in_a_repr():
    """
    The repr of options shows neither passphrase nor key, nor any byte of them.
    """
    made = ConnectionOptions(cert=CERT_PEM, key=KEY_PEM, passphrase="hunter22-long")

    text = repr(made)

    assert "hunter22" not in text
    assert "PRIVATE" not in text
    assert KEY_PEM.decode().splitlines()[2] not in text


def test_a_wrong_passphrase_is_refused_without_being_told():
    """
    A passphrase that does not fit is refused at once, and the error does not quote it.
    """
    from cryptography.hazmat.primitives import serialization

    encrypted = serialization.load_pem_private_key(KEY_PEM, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"correct horse"),
    )

    with pytest.raises(OptionError) as caught:
        ConnectionOptions(cert=CERT_PEM, key=encrypted, passphrase="battery staple")

    assert "battery" not in str(caught.value)
    assert ConnectionOptions(cert=CERT_PEM, key=encrypted, passphrase="correct horse").key is not UNSET


def test_a_key_of_another_certificate_is_refused():
    """
    Certificate and key must belong together, and that is known before any socket opens.
    """
    other = CA.issue_cert("other").private_key_pem.bytes()

    with pytest.raises(OptionError) as caught:
        ConnectionOptions(cert=CERT_PEM, key=other)

    assert caught.value.code == "ERR_OSSL_X509_KEY_VALUES_MISMATCH"


def test_a_layer_that_says_nothing_takes_the_one_below():
    """
    UNSET takes the lower layer's value; None and other values stand.
    """
    lower = AgentOptions(port=1, timeout=5, servername="a.test")

    merged = ConnectionOptions(port=2, timeout=None).merged_over(lower)

    assert type(merged) is ConnectionOptions
    assert (merged.port, merged.timeout, merged.servername) == (2, None, "a.test")
    assert merged.host is UNSET


def test_merging_takes_timeouts_field_by_field():
    """
    Timeouts are laid over each other field by field; a plain number means total.
    """
    lower = AgentOptions(timeouts=Timeouts(read=1, total=9))

    merged = AgentOptions(timeouts=3).merged_over(lower)

    assert (merged.timeouts.total, merged.timeouts.read) == (3, 1)
    assert merged.timeouts.connect is UNSET
    assert AgentOptions().merged_over(lower).timeouts == lower.timeouts


@pytest.mark.parametrize(
    "beside", [{"ca": CA_PEM}, {"ciphers": "HIGH"}, {"min_version": "TLSv1.2"}, {"passphrase": "x"}]
)
def test_a_secure_context_excludes_what_it_is_made_of(beside):
    """
    Beside secure_context an option that would have no effect is refused.
    """
    context = create_secure_context(ca=CA_PEM)

    with pytest.raises(OptionError, match=next(iter(beside))):
        ConnectionOptions(secure_context=context, **beside)


def test_a_secure_context_above_drops_what_it_replaces():
    """
    A context on the request takes the place of the agent's certificates, and they of an agent's context.
    """
    context = create_secure_context(ca=CA_PEM)

    above = ConnectionOptions(secure_context=context).merged_over(AgentOptions(ca=CA_PEM, port=5))
    below = ConnectionOptions(ca=CA_PEM).merged_over(AgentOptions(secure_context=context))

    assert (above.ca, above.port) == (UNSET, 5)
    assert below.secure_context is UNSET
    assert above.merged_over(DEFAULTS).min_version is UNSET


def test_create_secure_context_takes_only_what_belongs_to_one():
    """
    An option of the connection is refused, not ignored.
    """
    with pytest.raises(OptionError, match="servername"):
        create_secure_context(servername="a.test")
    with pytest.raises(OptionError, match="there is no option"):
        create_secure_context(cas=CA_PEM)
    assert create_secure_context(ca=CA_PEM) == create_secure_context(ca=CA_PEM.decode())
    assert create_secure_context(ca=CA_PEM) != create_secure_context()


def test_a_socket_is_refused_on_an_agent():
    """
    A socket serves one connection, so an agent cannot have one.
    """
    import socket

    with socket.socket() as sock:
        with pytest.raises(OptionError, match="socket"):
            AgentOptions(socket=sock)
        assert ConnectionOptions(socket=sock).socket is sock


def test_a_store_of_ones_own_excludes_the_size_of_the_built_in_one():
    """
    max_cached_sessions would have no effect beside session_store.
    """
    from tlsagent import MemorySessionStore

    with pytest.raises(OptionError, match="max_cached_sessions"):
        AgentOptions(session_store=MemorySessionStore(), max_cached_sessions=5)


def test_the_typed_dictionaries_name_every_supported_option():
    """
    What editors complete is what the constructors take.
    """
    assert set(ConnectionOptionsDict.__optional_keys__) == SUPPORTED
    assert set(AgentOptionsDict.__optional_keys__) == SUPPORTED | set(AgentOptions._rules)


def test_every_supported_option_has_a_default():
    """
    The table of defaults names every supported option, so that a resolved agent has no UNSET left among them.
    """
    supported = SUPPORTED | set(AgentOptions._rules)

    assert {name for name in AgentOptions.field_names() if getattr(DEFAULTS, name) is not UNSET} == supported
    assert all(getattr(DEFAULTS.timeouts, f.name) is not UNSET for f in dataclasses.fields(Timeouts))
