"""Identity: who may share a connection or a session with whom."""

import socket

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from tls_peer import connect, pki

from tlsagent import AgentOptions, ConnectionOptions, Http1Options, MemorySessionStore, Proxy, create_secure_context
from tlsagent._identity import KEY_TABLE, parse_authority, plan_for
from tlsagent._secure_context import context_for
from tlsagent.errors import LocalProtocolError, OptionError

CA = trustme.CA()
OTHER_CA = trustme.CA()
LEAF = CA.issue_cert("client")
PFX = pkcs12.serialize_key_and_certificates(
    b"name",
    pki().client.key,
    pki().client.certificate,
    [pki().root.certificate],
    serialization.BestAvailableEncryption(b"secret"),
)
SESSION = connect().sink.sessions[0]
SOCKET = socket.socket()
SOCKET.close()
OTHER_LEAF = CA.issue_cert("other-client")


def pems(leaf):
    return {"cert": leaf.cert_chain_pems[0].bytes(), "key": leaf.private_key_pem.bytes()}


def key_of(options=None, authority="a.test", agent=None):
    said = ConnectionOptions(**(options or {})).merged_over(AgentOptions(**(agent or {})))
    return plan_for(parse_authority(authority), said, context_for).key


def always(_hostname, _certificate):
    return None


class Pinned:
    """A hook compared by value."""

    def __init__(self, pin):
        self.pin = pin

    def __eq__(self, other):
        return isinstance(other, Pinned) and self.pin == other.pin

    def __hash__(self):
        return hash(self.pin)

    def __call__(self, _hostname, _certificate):
        return None


IN_THE_KEY = [
    {"alpn_protocols": []},
    {"ca": CA.cert_pem.bytes()},
    {"ca": OTHER_CA.cert_pem.bytes()},
    pems(LEAF),
    pems(OTHER_LEAF),
    {"check_server_identity": always},
    {"check_server_identity": Pinned(1)},
    {"check_server_identity": Pinned(2)},
    {"ciphers": "ECDHE-RSA-AES128-GCM-SHA256"},
    {"host": "127.0.0.1"},
    {"lookup": lambda host, family: ["127.0.0.1"]},
    {"lookup": lambda host, family: ["127.0.0.1"]},
    {"max_version": "TLSv1.2"},
    {"min_version": "TLSv1.3"},
    {"path": "/tmp/socket"},
    {"port": 8443},
    {"reject_unauthorized": False},
    {"secure_context": create_secure_context()},
    {"secure_context": create_secure_context(ca=CA.cert_pem.bytes())},
    {"servername": "b.test"},
    {"servername": ""},
    {"allow_partial_trust_chain": True},
    {"crl": []},
    {"ecdh_curve": "P-256"},
    {"sigalgs": "ECDSA+SHA256"},
    {"secure_options": 4},
    {"secure_protocol": "TLS_method"},
    {"session_id_context": "x"},
    {"min_dh_size": 2048},
    {"request_ocsp": True},
    {"psk_callback": lambda hint: None},
    {"psk_callback": lambda hint: None},
    {"pins": ["sha256//" + "A" * 43 + "="]},
    {"pins": ["sha256//" + "B" * 42 + "A="]},
    {"pfx": PFX, "passphrase": "secret"},
    {"enable_trace": True},
    {"family": 4},
    {"family": 6},
    {"local_address": "127.0.0.1"},
    {"local_port": 4000},
    {"no_delay": False},
    {"tcp_keep_alive": True},
    {"tcp_keep_alive": 5},
    {"socket": SOCKET},
    {"proxy": "http://proxy.test"},
    {"proxy": "http://proxy.test:3128"},
    {"proxy": "http://other.test"},
    {"proxy": "socks5://proxy.test"},
    {"proxy": "socks5h://proxy.test"},
    {"proxy": "http://me:a@proxy.test"},
    {"proxy": "http://me:b@proxy.test"},
    {"proxy": "https://proxy.test"},
    {"proxy": Proxy("https://proxy.test", tls=ConnectionOptions(servername="other.test"))},
    {"proxy": Proxy("https://proxy.test", tls=ConnectionOptions(reject_unauthorized=False))},
]
ROUTE_ONLY = {"enable_trace", "family", "local_address", "local_port", "no_delay", "tcp_keep_alive"}
SAME_KEY = {
    "client_cert_engine": None,
    "passphrase": "unused",
    "timeout": 5,
    "session": SESSION,
    "auto_select_family": False,
    "auto_select_family_attempt_timeout": 1,
    "verifier": "openssl",
    "sni_callback": always,
    "request_cert": True,
    "dhparam": "auto",
    "honor_cipher_order": True,
}
SAME_FOR_AGENTS = {
    "keep_alive": False, "max_sockets": 1, "max_total_sockets": 1, "max_free_sockets": 1, "scheduling": "fifo",
    "free_socket_timeout": 1, "max_lifetime": 1, "max_requests_per_socket": 1, "keep_alive_hint_margin": 0,
    "max_cached_sessions": 1, "session_store": MemorySessionStore(), "retry": False, "http1_engine": "h11",
    "http1": Http1Options(max_informational=1), "max_response_size": 1, "timeouts": 1,
}  # fmt: skip
LATER = {"dial_delay", "early_data", "http2_engine", "http2"}


def test_every_option_in_the_key_makes_a_key_of_its_own():
    """
    No two of the option sets that differ in trust, name, offer or route share a key.
    """
    keys = [key_of(), *map(key_of, IN_THE_KEY)]

    assert len(set(keys)) == len(keys)
    assert len({key.digest for key in keys}) == len(keys)


def test_every_option_has_a_row_and_is_tried():
    """
    The table of what is in the key names every option once, and each is tried here for what the table says.
    """
    in_key = {name for options in IN_THE_KEY for name in options} | {"key"}
    said = {name for name, row in KEY_TABLE.items() if row.in_key}

    assert set(KEY_TABLE) == set(AgentOptions.field_names())
    assert list(KEY_TABLE)[: len(ConnectionOptions.field_names())] == list(ConnectionOptions.field_names())
    assert in_key - {"passphrase"} == said
    assert set(SAME_KEY) | set(SAME_FOR_AGENTS) | LATER == set(KEY_TABLE) - said
    assert all(row.why for row in KEY_TABLE.values())


@pytest.mark.parametrize("name", SAME_KEY)
def test_an_option_that_is_not_in_the_key_shares_it(name):
    """
    What makes no other connection does not tell requests apart.
    """
    assert key_of({name: SAME_KEY[name]}) == key_of()


@pytest.mark.parametrize("name", SAME_FOR_AGENTS)
def test_how_an_agent_pools_is_not_in_the_key(name):
    """
    What says how connections are kept is not in the key.
    """
    assert key_of(agent={name: SAME_FOR_AGENTS[name]}) == key_of()


def plan_of(options=None, authority="a.test"):
    return plan_for(parse_authority(authority), ConnectionOptions(**(options or {})), context_for)


@pytest.mark.parametrize("options", IN_THE_KEY, ids=lambda options: "-".join(options))
def test_sessions_are_shared_whatever_the_socket(options):
    """
    The scope of sessions is the key without what only says how the bytes get there.
    """
    same = plan_of(options).scope == plan_of().scope

    assert same == (set(options) <= ROUTE_ONLY)


def test_the_trust_digest_tells_what_verification_rests_on():
    """
    Two plans have one digest exactly if their peers were verified alike; it is the same in every process.
    """
    verified_alike = [{}, {"ciphers": "HIGH"}, {"family": 4}, {"alpn_protocols": []}, {"port": 8443}]
    otherwise = [
        {"ca": CA.cert_pem.bytes()},
        {"crl": []},
        {"reject_unauthorized": False},
        {"servername": "b.test"},
        {"allow_partial_trust_chain": True},
        {"pins": ["sha256//" + "A" * 43 + "="]},
        {"pfx": PFX, "passphrase": "secret"},
        {"secure_context": create_secure_context(crl=[])},
        pems(LEAF),
    ]

    assert {plan_of(options).origin.trust for options in verified_alike} == {plan_of().origin.trust}
    assert len({plan_of(options).origin.trust for options in [{}, *otherwise]}) == len(otherwise) + 1


def test_a_session_of_the_options_is_taken_once():
    """
    The session given with a request is for one connection; the key does not know of it.
    """
    plan = plan_of({"session": SESSION.to_bytes()})

    assert plan.take_session().to_bytes() == SESSION.to_bytes()
    assert plan.take_session() is None
    assert plan_of().take_session() is None


def test_how_addresses_are_tried_stands_in_the_plan():
    """
    A dialler finds there what the key does not hold.
    """
    plan = plan_of({"auto_select_family": False, "auto_select_family_attempt_timeout": None})

    assert (plan.auto_select_family, plan.attempt_timeout) == (False, None)
    assert (plan_of().auto_select_family, plan_of().attempt_timeout) == (True, 0.25)


def test_a_client_refuses_what_is_for_servers():
    """
    A secure_protocol for servers is refused, given alone or in a context.
    """
    method = {"secure_protocol": "TLS_server_method"}

    for options in (method, {"secure_context": create_secure_context(**method)}):
        with pytest.raises(OptionError) as caught:
            plan_of(options)
        assert caught.value.code == "ERR_TLS_INVALID_PROTOCOL_METHOD"


@pytest.mark.parametrize(
    "options", [{"timeout": 5}, {"passphrase": "unused"}, {"ca": None}, {"reject_unauthorized": True}, {"port": None}]
)
def test_what_changes_nothing_is_not_in_the_key(options):
    """
    An option that makes no other connection, or states the default, shares the key.
    """
    assert key_of(options) == key_of()


def test_equal_content_shares_a_key():
    """
    Certificates and keys compare by content, hooks by ==.
    """
    assert key_of(pems(LEAF)) == key_of({name: value.decode() for name, value in pems(LEAF).items()})
    assert key_of({"check_server_identity": Pinned(1)}) == key_of({"check_server_identity": Pinned(1)})
    assert hash(key_of({"ca": CA.cert_pem.bytes()})) == hash(key_of({"ca": [CA.cert_pem.bytes()]}))


def test_hooks_made_in_a_loop_do_not_share_a_key():
    """
    A hook is held by the key and compared as an object: an address that is used again is not the same hook.
    """
    keys = {key_of({"check_server_identity": lambda host, certificate: None}) for _ in range(300)}

    assert len(keys) == 300


def test_the_url_decides_the_name():
    """
    host and port say where the bytes go; the verified name, SNI and Host stay the URL's.
    """
    key = key_of({"host": "127.0.0.1", "port": 8443}, authority="A.test:444")

    assert (key.identity.verified_name, key.identity.server_name) == ("a.test", "a.test")
    assert (key.route.host, key.route.port) == ("127.0.0.1", 8443)
    assert key.origin.authority == b"a.test:444"


def test_servername_replaces_name_and_sni():
    """
    servername is verified and sent; an empty one sends nothing and verifies the URL's host.
    """
    named = key_of({"servername": "b.test"}).identity
    silent = key_of({"servername": ""}).identity

    assert (named.verified_name, named.server_name) == ("b.test", "b.test")
    assert (silent.verified_name, silent.server_name) == ("a.test", None)
    assert key_of({"servername": "B.test."}).identity == named  # RFC 6066, 3: without a trailing dot


@pytest.mark.parametrize("authority", ["127.0.0.1", "[::1]", "[fe80::1%25lo]"])
def test_an_address_is_never_sent_as_sni(authority):
    """
    RFC 6066, 3: literal addresses are not permitted in SNI.
    """
    assert key_of(authority=authority).identity.server_name is None


@pytest.mark.parametrize(
    ("authority", "host", "port", "shown"),
    [
        ("Example.COM", "example.com", 443, b"example.com"),
        ("example.com.", "example.com", 443, b"example.com"),
        ("example.com:443", "example.com", 443, b"example.com"),
        ("example.com:8443", "example.com", 8443, b"example.com:8443"),
        ("[::1]:8443", "::1", 8443, b"[::1]:8443"),
        ("[fe80::1%25eth0]:8443", "fe80::1%eth0", 8443, b"[fe80::1]:8443"),  # RFC 6874
        ("[fe80::1%eth0]", "fe80::1%eth0", 443, b"[fe80::1]"),
        ("bücher.example", "xn--bcher-kva.example", 443, b"xn--bcher-kva.example"),
    ],
)
def test_authorities(authority, host, port, shown):
    """
    An authority becomes a canonical host, a port and a Host header without the default port.
    """
    origin = parse_authority(authority)

    assert (origin.host, origin.port, origin.authority) == (host, port, shown)


@pytest.mark.parametrize(
    "authority",
    [
        "", ":443", "a.test:0", "a.test:65536", "a.test:x", "user@a.test", "u:p@a.test", "a b", "[::1", "a..b",
        "a.te\tst", "a.test\n", "a.test:4\r43", "\0a.test", "[v1.x]", "[a.test]",
    ],
)  # fmt: skip
def test_bad_authorities_are_refused(authority):
    """
    A URL that names nobody, or carries a password, is refused before any I/O.
    """
    with pytest.raises(LocalProtocolError) as caught:
        parse_authority(authority)

    assert caught.value.code == "ERR_INVALID_URL"
    assert "u:p" not in str(caught.value)


def test_nothing_secret_in_key_or_scope():
    """
    Neither the repr of a key nor that of its scope holds a byte of a private key.
    """
    plan = plan_for(parse_authority("a.test"), ConnectionOptions(**pems(LEAF)), context_for)
    line = LEAF.private_key_pem.bytes().decode().splitlines()[2]

    assert line not in repr(plan.key) + repr(plan.scope) + repr(plan) + plan.key.digest
    assert plan.key.digest.startswith("a.test:443#")


@pytest.mark.parametrize("half", ["cert", "key"])
def test_half_a_client_certificate_is_refused(half):
    """
    A certificate without its key, or a key without its certificate, would have no effect.
    """
    with pytest.raises(OptionError, match="needs both"):
        key_of({half: pems(LEAF)[half]})


def test_a_passphrase_may_come_from_another_layer():
    """
    An encrypted key on the agent is unlocked by the request's passphrase, and refused without one.
    """
    from cryptography.hazmat.primitives import serialization

    encrypted = serialization.load_pem_private_key(pems(LEAF)["key"], None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"sesame")
    )
    agent = {"cert": pems(LEAF)["cert"], "key": encrypted}

    assert key_of({"passphrase": "sesame"}, agent=agent) == key_of(pems(LEAF))
    with pytest.raises(OptionError):
        key_of(agent=agent)


@pytest.mark.parametrize("host", ["faß.test", "βόλος.test", "a\u200d.test", "a\u2024b.test", "1\u30022.3.4", "é..test"])
def test_host_that_idna_is_not_agreed_on_is_refused(host):
    """
    A name that versions of IDNA take for different hosts leads to none of them, wherever it is given.
    """
    with pytest.raises(LocalProtocolError, match=r"host|authority"):
        parse_authority(host)
    for option in ("host", "servername"):
        with pytest.raises(OptionError, match=option):
            ConnectionOptions(**{option: host})
