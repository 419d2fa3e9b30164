"""The rules of single options: Node's codes and classes for what is bad, one canonical form for what is good."""

from __future__ import annotations

import base64
import math
import warnings

import pytest
from tls_peer import DH_1024, connect, server_context

from tlsagent import AgentOptions, ConnectionOptions, create_secure_context
from tlsagent._option_rules import protocol_range
from tlsagent._options import ServerOptionWarning, warn_of_server_options
from tlsagent.errors import OptionError, OptionRangeError, OptionTypeError

PIN = "sha256//" + base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    ("given", "kind", "code"),
    [
        ({"allow_partial_trust_chain": "x"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"auto_select_family": 1}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"auto_select_family_attempt_timeout": 0}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"auto_select_family_attempt_timeout": "1"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"client_cert_engine": "pkcs11"}, OptionError, "ERR_CRYPTO_CUSTOM_ENGINE_NOT_SUPPORTED"),
        ({"client_cert_engine": 0}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"crl": ""}, OptionError, "ERR_CRYPTO_OPERATION_FAILED"),
        ({"crl": True}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"dhparam": "x"}, OptionError, "ERR_CRYPTO_OPERATION_FAILED"),
        ({"dhparam": DH_1024}, OptionError, "ERR_CRYPTO_OPERATION_FAILED"),
        ({"dhparam": [DH_1024]}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"ecdh_curve": "nope"}, OptionError, "ERR_CRYPTO_OPERATION_FAILED"),
        ({"ecdh_curve": 1}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"enable_trace": 1}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"family": 5}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"family": True}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"family": "4"}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"honor_cipher_order": "x"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"host": "a\0b"}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"local_address": "nope"}, OptionTypeError, "ERR_INVALID_IP_ADDRESS"),
        ({"local_address": 5}, OptionTypeError, "ERR_INVALID_IP_ADDRESS"),
        ({"local_port": "x"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"local_port": 65_536}, OptionRangeError, "ERR_SOCKET_BAD_PORT"),
        ({"min_dh_size": 0}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"min_dh_size": -1}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"min_dh_size": math.nan}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"min_dh_size": "1"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"min_dh_size": True}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"min_version": "TLSv1.4"}, OptionTypeError, "ERR_TLS_INVALID_PROTOCOL_VERSION"),
        ({"no_delay": 0}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"pfx": 5}, OptionError, "ERR_CRYPTO_OPERATION_FAILED"),
        ({"pfx": "junk"}, OptionError, "ERR_TLSAGENT_PFX"),
        ({"pins": PIN}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"pins": []}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"pins": [5]}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"pins": [PIN, PIN[8:]]}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"pins": [PIN[:-3]]}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"pins": [PIN.replace("256", "1")]}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"pins": [PIN + "\n"]}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"psk_callback": 1}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"request_cert": "yes"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"request_ocsp": 1}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"secure_options": 1.5}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"secure_options": 2**53}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"secure_options": -1}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"secure_options": math.nan}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"secure_options": math.inf}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"secure_options": {}}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"secure_options": True}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"secure_protocol": "SSLv2_method"}, OptionTypeError, "ERR_TLS_INVALID_PROTOCOL_METHOD"),
        ({"secure_protocol": "SSLv3_method"}, OptionTypeError, "ERR_TLS_INVALID_PROTOCOL_METHOD"),
        ({"secure_protocol": "TLSv1_3_method"}, OptionTypeError, "ERR_TLS_INVALID_PROTOCOL_METHOD"),
        ({"secure_protocol": "TLS"}, OptionTypeError, "ERR_TLS_INVALID_PROTOCOL_METHOD"),
        ({"secure_protocol": "TLS_client"}, OptionTypeError, "ERR_TLS_INVALID_PROTOCOL_METHOD"),
        ({"secure_protocol": "TLS_client_server_method"}, OptionTypeError, "ERR_TLS_INVALID_PROTOCOL_METHOD"),
        ({"secure_protocol": 5}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"servername": "127.0.0.1"}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"session": 5}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"session": b"junk"}, OptionError, "ERR_INVALID_ARG_VALUE"),
        ({"session_id_context": True}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"session_id_context": "x" * 33}, OptionTypeError, "ERR_TLSAGENT_SESSION_ID_CONTEXT"),
        ({"session_id_context": "ü" * 17}, OptionTypeError, "ERR_TLSAGENT_SESSION_ID_CONTEXT"),
        ({"sigalgs": ["ECDSA+SHA256"]}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"sigalgs": ""}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"sni_callback": 5}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"tcp_keep_alive": "1"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"tcp_keep_alive": -1}, OptionRangeError, "ERR_OUT_OF_RANGE"),
        ({"verifier": "system"}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
    ],
)
def test_bad_values_have_nodes_code_and_class(given, kind, code):
    """
    A bad value is refused when the object is built, with Node's code, by an error of Node's class that names it.
    """
    with pytest.raises(OptionError, match=next(iter(given))) as caught:
        ConnectionOptions(**given)

    assert type(caught.value) is kind
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("name", "given", "canonical"),
    [
        ("auto_select_family_attempt_timeout", 0.001, 0.01),
        ("auto_select_family_attempt_timeout", None, None),
        ("ecdh_curve", "auto", None),
        ("family", 6, 6),
        ("local_address", "2001:DB8::0", "2001:db8::"),
        ("local_port", 0, None),
        ("min_dh_size", 1.5, 2),
        ("pins", [PIN, PIN], (bytes(32),)),
        ("pins", (bytes(32),), (bytes(32),)),
        ("secure_options", 4.0, 4),
        ("secure_protocol", "", None),
        ("session_id_context", "x" * 32, "x" * 32),
        ("tcp_keep_alive", True, 0.0),
        ("tcp_keep_alive", False, None),
        ("tcp_keep_alive", 5, 5.0),
        ("verifier", "openssl", "openssl"),
    ],
)
def test_values_become_canonical(name, given, canonical):
    """
    What means the same is stored the same, and is taken again as it is.
    """
    made = getattr(ConnectionOptions(**{name: given}), name)

    assert made == canonical
    if made is not None:
        assert getattr(ConnectionOptions(**{name: made}), name) == made


@pytest.mark.parametrize("name", sorted(set(ConnectionOptions.field_names()) - {"reject_unauthorized"}))
def test_none_means_the_default_for_every_option(name):
    """
    None is a value for every option of a connection, except that verification is on or off.
    """
    assert getattr(ConnectionOptions(**{name: None}), name) is None


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("TLS_method", ("TLSv1", "TLSv1.3", "both")),
        ("TLS_client_method", ("TLSv1", "TLSv1.3", "client")),
        ("TLS_server_method", ("TLSv1", "TLSv1.3", "server")),
        ("SSLv23_method", ("TLSv1", "TLSv1.2", "both")),
        ("TLSv1_method", ("TLSv1", "TLSv1", "both")),
        ("TLSv1_1_client_method", ("TLSv1.1", "TLSv1.1", "client")),
        ("TLSv1_2_server_method", ("TLSv1.2", "TLSv1.2", "server")),
    ],
)
def test_methods_stand_for_versions(method, expected):
    """
    The old method names stand for a range of versions and a side.
    """
    assert protocol_range(method) == expected


def test_a_method_decides_the_version():
    """
    secure_protocol reaches the wire.
    """
    context = create_secure_context(secure_protocol="TLSv1_2_method")

    link = connect(context, server_context(version="TLSv1.2"), reject_unauthorized=False)

    assert link.sink.facts.protocol_version == "TLSv1.2"
    assert context.version_range == "TLSv1.2"


def test_a_method_excludes_versions_in_its_layer_and_replaces_those_below():
    """
    secure_protocol beside min_version is Node's conflict; over one, or under one, the upper layer counts.
    """
    for beside in ({"min_version": "TLSv1.2"}, {"max_version": "TLSv1.2"}):
        with pytest.raises(OptionTypeError) as caught:
            ConnectionOptions(secure_protocol="TLSv1_2_method", **beside)
        assert caught.value.code == "ERR_TLS_PROTOCOL_VERSION_CONFLICT"

    method, version = ConnectionOptions(secure_protocol="TLSv1_2_method"), ConnectionOptions(min_version="TLSv1.3")

    assert not method.merged_over(version).min_version
    assert not version.merged_over(method).secure_protocol


def test_a_method_for_servers_makes_a_context_but_no_client():
    """
    A *_server_method is for a server's context: an agent refuses it.
    """
    assert create_secure_context(secure_protocol="TLSv1_2_server_method").role == "server"
    with pytest.raises(OptionTypeError) as caught:
        AgentOptions(secure_protocol="TLSv1_2_server_method")
    assert caught.value.code == "ERR_TLS_INVALID_PROTOCOL_METHOD"


def test_an_engine_is_refused_with_the_way_that_there_is():
    """
    The message names the provider route and the page about it.
    """
    with pytest.raises(OptionError, match=r"OPENSSL_CONF.*docs/howto/pkcs11\.md"):
        ConnectionOptions(client_cert_engine="pkcs11")


def test_a_small_dh_group_is_left_to_the_security_level():
    """
    Beside ciphers with a security level, OpenSSL decides; then when the context is made.
    """
    assert ConnectionOptions(dhparam=DH_1024, ciphers="ALL:@SECLEVEL=0").dhparam.bits == 1024
    assert create_secure_context(dhparam=DH_1024, ciphers="ALL:@SECLEVEL=1")


SERVER_SIDE = {
    "sni_callback": lambda name: None,
    "request_cert": True,
    "dhparam": "auto",
    "honor_cipher_order": True,
    "session_id_context": "x",
}


@pytest.mark.parametrize("name", SERVER_SIDE)
def test_a_server_option_on_an_agent_warns_once(name):
    """
    An option that only a server heeds gives one warning that names it, in the caller's file.
    """
    with pytest.warns(ServerOptionWarning, match=name) as caught:
        AgentOptions(**{name: SERVER_SIDE[name]})

    assert [warning.filename for warning in caught] == [__file__]
    assert issubclass(ServerOptionWarning, UserWarning)


def test_several_server_options_give_one_warning():
    """
    All of them stand in one message; a request is warned of its own.
    """
    named = "sni_callback, request_cert, dhparam, honor_cipher_order, session_id_context: "
    with pytest.warns(ServerOptionWarning, match=named) as caught:
        warn_of_server_options(ConnectionOptions(**SERVER_SIDE))

    assert len(caught) == 1


def test_options_that_may_be_a_servers_do_not_warn():
    """
    ConnectionOptions alone, a context, and options that are switched off are silent.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConnectionOptions(**SERVER_SIDE)
        create_secure_context(**SERVER_SIDE)
        AgentOptions(request_cert=False, honor_cipher_order=False, sni_callback=None, dhparam=None)
