from __future__ import annotations

import math
import pickle
import unicodedata
import warnings

import pytest

from tlsagent import node
from tlsagent._option_rules import UNSET, Psk
from tlsagent._options import AgentOptions, ConnectionOptions, ServerOptionWarning
from tlsagent._tls.context import SecureContext
from tlsagent.errors import CertificateNameError, OptionError, OptionRangeError, OptionTypeError
from tlsagent.node import UNDEFINED
from tlsagent.node.domains import canonical_address, domain_to_ascii, is_address, map_character
from tlsagent.node.values import to_json, to_number, to_text
from tlsagent.testing.authority import Authority

AUTHORITY = Authority()
CREDENTIALS = AUTHORITY.issue("a.test")
CA, CERT, KEY = AUTHORITY.ca_pem, CREDENTIALS.cert_pem, CREDENTIALS.key_pem


def accept(*_arguments):
    """A function of the user's that finds nothing wrong."""


class Socket:
    def fileno(self):
        return -1


def revocation_list():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    leaf = x509.load_pem_x509_certificate(CERT)
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    builder = x509.CertificateRevocationListBuilder(leaf.issuer, start, end)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.PEM)


CRL = revocation_list()

# Conversion -------------------------------------------------------------------------------------------------------

# For each property that is supported: a value, and what the field becomes.
CONVERTED = {
    "minVersion": ("TLSv1.2", "TLSv1.2"),
    "maxVersion": ("TLSv1.3", "TLSv1.3"),
    "secureProtocol": ("TLSv1_2_method", "TLSv1_2_method"),
    "secureOptions": (4194304.0, 4194304),
    "honorCipherOrder": (1, True),
    "ca": (CA, ConnectionOptions(ca=CA).ca),
    "allowPartialTrustChain": (True, True),
    "cert": ([CERT], ConnectionOptions(cert=CERT).cert),
    "key": ([{"pem": KEY, "passphrase": None}], ConnectionOptions(key=KEY).key),
    "passphrase": ("secret", "secret"),
    "sigalgs": ("ECDSA+SHA256", "ECDSA+SHA256"),
    "ciphers": ("ECDHE-RSA-AES128-GCM-SHA256", ConnectionOptions(ciphers="ECDHE-RSA-AES128-GCM-SHA256").ciphers),
    "ecdhCurve": ("P-256", "P-256"),
    "dhparam": ("auto", ConnectionOptions(dhparam="auto").dhparam),
    "crl": ([CRL], ConnectionOptions(crl=CRL).crl),
    "sessionIdContext": ("ctx", "ctx"),
    "pfx": ([], ()),
    "checkServerIdentity": (node.check_server_identity, node.check_server_identity),
    "minDHSize": (1023.5, 1024),
    "secureContext": (node.secure_context(), node.secure_context()),
    "servername": ("A.test", "a.test"),
    "enableTrace": (False, False),
    "ALPNProtocols": (b"\x02h2\x08http/1.1", ("h2", "http/1.1")),
    "requestOCSP": ("yes", True),
    "requestCert": (0, False),
    "rejectUnauthorized": (False, False),
    "SNICallback": (accept, accept),
    "timeout": (1500, 1.5),
    "port": (" 0x1bb ", 443),
    "host": ("127.0.0.1", "127.0.0.1"),
    "path": ("/run/s.sock", "/run/s.sock"),
    "localAddress": ("127.0.0.2", "127.0.0.2"),
    "localPort": (4000.0, 4000),
    "family": ("IPv4", 4),
    "lookup": (accept, accept),
    "autoSelectFamily": (False, False),
    "autoSelectFamilyAttemptTimeout": (1, 0.01),
    "noDelay": (0, False),
    "keepAlive": ("yes", True),
    "maxSockets": (math.inf, None),
    "maxTotalSockets": (3.0, 3),
    "maxFreeSockets": (0, 0),
    "scheduling": ("fifo", "fifo"),
    "agentKeepAliveTimeoutBuffer": (250, 0.25),
    "maxCachedSessions": (0, 0),
    "keepAliveMsecs": (1999, 1.0),
    "defaultPort": (8443, 8443),
    "socketPath": ("/run/s.sock", "/run/s.sock"),
    "hostname": ("b.test", "b.test"),
}
# Converted, but seen elsewhere: in tests of their own below, or only in what they refuse.
CONVERTED_BELOW = {
    "session", "pskCallback", "socket", "keepAliveInitialDelay", "ticketKeys", "sessionTimeout", "protocol", "proxyEnv",
    "agent", "method", "headers", "setHost", "joinDuplicateHeaders",
}  # fmt: skip


def convert(name, value, call=None):
    calls = node.SUPPORT[name].calls
    if call == "agent" or (call is None and "agent" in calls):
        return node.agent_options({name: value})
    if call == "request" or (call is None and "connect" not in calls):
        return node.request_options({name: value})
    return node.connection_options({"path": "/run/other.sock", name: value})


@pytest.mark.filterwarnings("ignore::tlsagent._options.ServerOptionWarning")
@pytest.mark.parametrize("name", sorted(node.SUPPORT))
def test_every_property_does_what_support_says(name):
    """
    What SUPPORT calls real or mapped becomes that field, what it calls refused raises.
    """
    entry = node.SUPPORT[name]

    if entry.state == "refused":
        assert entry.why
        with pytest.raises(OptionError):
            convert(name, False if name == "setDefaultHeaders" else "x")
    elif name in CONVERTED:
        value, expected = CONVERTED[name]
        assert getattr(convert(name, value), entry.maps_to) == expected
    else:
        assert name in CONVERTED_BELOW


@pytest.mark.parametrize("name", sorted(node.SUPPORT))
def test_undefined_says_nothing(name):
    """
    A property that is undefined is as good as absent, but for the two that Node then calls wrong.
    """
    entry = node.SUPPORT[name]

    if name in ("checkServerIdentity", "minDHSize"):
        with pytest.raises(OptionTypeError):
            convert(name, UNDEFINED)
    else:
        assert getattr(convert(name, UNDEFINED, "agent"), entry.maps_to, UNSET) in (UNSET, False)


def test_support_is_frozen():
    """
    Nobody changes the table.
    """
    with pytest.raises(TypeError):
        node.SUPPORT["ca"] = node.SUPPORT["cert"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        node.SUPPORT["ca"].state = "refused"  # type: ignore[misc]


@pytest.mark.parametrize(
    "call", [node.secure_context, node.connection_options, node.agent_options, node.request_options]
)
def test_an_unknown_name_is_refused(call):
    """
    A name that Node has not is a TypeError, and the message proposes another.
    """
    with pytest.raises(OptionTypeError, match="did you mean ciphers"):
        call({"cipers": "HIGH"})


def test_a_name_in_the_wrong_place_is_refused():
    """
    What has no effect in a call is not accepted there.
    """
    with pytest.raises(OptionTypeError, match="agent_options"):
        node.request_options({"maxSockets": 1})
    with pytest.raises(OptionTypeError, match="connection_options"):
        node.secure_context({"servername": "a.test"})
    assert node.secure_context({"servername": UNDEFINED}) is node.secure_context({})


def test_the_kinds_of_objects():
    """
    Each function returns the object that belongs to Node's call.
    """
    assert isinstance(node.secure_context({"ca": CA}), SecureContext)
    assert type(node.connection_options({"port": 1})) is ConnectionOptions
    assert type(node.request_options({})) is ConnectionOptions
    assert type(node.agent_options(None)) is AgentOptions


def test_nothing_to_connect_to():
    """
    Neither port, path nor socket is Node's ERR_MISSING_ARGS.
    """
    with pytest.raises(OptionTypeError) as caught:
        node.connection_options({})

    assert caught.value.code == "ERR_MISSING_ARGS"
    assert node.connection_options({"socket": Socket()}).port is UNSET


def test_an_agent_keeps_connections_only_if_told():
    """
    Node's default for keepAlive holds, not this library's.
    """
    assert node.agent_options({}).keep_alive is False
    assert node.agent_options({"keepAlive": True}).keep_alive is True


@pytest.mark.parametrize(
    ("options", "delay"),
    [
        ({}, UNSET),
        ({"keepAlive": False}, UNSET),
        ({"keepAlive": True}, 1.0),
        ({"keepAlive": True, "keepAliveMsecs": 500}, 0.0),
        ({"keepAlive": True, "keepAliveMsecs": 0}, 1.0),
        ({"keepAlive": True, "keepAliveMsecs": 5999}, 5.0),
    ],
)
def test_tcp_keep_alive_of_an_agent(options, delay):
    """
    keepAliveMsecs counts in whole seconds; less than one leaves the delay to the system.
    """
    assert node.agent_options(options).tcp_keep_alive == delay


def test_tcp_keep_alive_of_a_connection():
    """
    On a connection keepAlive is the socket's own option, and its delay needs it.
    """
    assert node.request_options({"keepAlive": True, "keepAliveInitialDelay": 2500}).tcp_keep_alive == 2.0
    assert node.request_options({"keepAlive": True}).tcp_keep_alive == 0.0
    assert node.request_options({"keepAliveInitialDelay": 2500}).tcp_keep_alive is UNSET


@pytest.mark.parametrize("value", [None, False, 0, math.nan, UNDEFINED])
@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_falsy_material_is_unsaid(name, value):
    """
    What JavaScript takes for false leaves the default roots and no certificate.
    """
    assert getattr(node.agent_options({name: value}), name) is UNSET


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_empty_material_is_refused(name):
    """
    An empty string, the likely remains of an unset variable, does not silently mean the default.
    """
    with pytest.raises(OptionError) as caught:
        node.agent_options({name: ""})

    assert caught.value.code == "ERR_INVALID_ARG_VALUE"


def test_der_is_refused_as_in_node():
    """
    Node reads PEM only, whatever this library's own options take.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    der = x509.load_pem_x509_certificate(CERT).public_bytes(Encoding.DER)

    with pytest.raises(OptionError) as caught:
        node.secure_context({"cert": der})

    assert caught.value.code == "ERR_OSSL_PEM_NO_START_LINE"


def test_an_encrypted_key_is_tried_when_connecting():
    """
    tls.connect makes a context at once; a request may get the passphrase from its agent.
    """
    encrypted = encrypted_key(b"secret")
    options = {"port": 1, "cert": CERT, "key": encrypted}

    with pytest.raises(OptionError) as caught:
        node.connection_options(options)
    assert caught.value.code == "ERR_OSSL_BAD_DECRYPT"
    assert node.connection_options({**options, "passphrase": "secret"}).key == ConnectionOptions(key=KEY).key
    own = {"pem": encrypted, "passphrase": "secret"}
    assert node.request_options({"cert": CERT, "key": [own], "passphrase": "other"}).key is not UNSET
    assert "secret" not in str(caught.value)


def encrypted_key(passphrase):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(KEY, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )


def test_an_identity_check_answers_as_in_node():
    """
    Any true answer of checkServerIdentity refuses; equal functions make equal options.
    """
    answers = {"none": None, "false": False, "text": "no", "error": ValueError("pin")}

    def check(hostname, certificate):
        return answers[hostname]

    options = node.agent_options({"checkServerIdentity": check})
    again = node.agent_options({"checkServerIdentity": check})

    assert options == again
    assert options != node.agent_options({"checkServerIdentity": accept})
    assert options.check_server_identity("none", None) is None
    assert options.check_server_identity("false", None) is None
    assert options.check_server_identity("error", None) is answers["error"]
    assert isinstance(options.check_server_identity("text", None), CertificateNameError)


def test_a_psk_callback_answers_as_in_node():
    """
    The object with psk and identity becomes a Psk, null none, anything else an error.
    """
    answers = {"object": {"psk": b"key", "identity": "me"}, "null": None, "psk": Psk(b"key", "me"), "text": "key"}
    callback = node.agent_options({"pskCallback": answers.get}).psk_callback

    assert callback("object") == callback("psk") == Psk(b"key", "me")
    assert callback("null") is None
    with pytest.raises(OptionTypeError):
        callback("text")
    assert callback == node.agent_options({"pskCallback": answers.get}).psk_callback


def test_options_for_servers_warn_on_a_client():
    """
    What only a server heeds is checked and said to be without effect.
    """
    with pytest.warns(ServerOptionWarning, match="ticketKeys"):
        node.agent_options({"ticketKeys": bytes(48)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        node.secure_context({"ticketKeys": bytes(48), "sessionTimeout": 300})


def test_a_context_replaces_its_options():
    """
    secureContext beside an option it replaces is refused: nothing is ignored in silence.
    """
    with pytest.raises(OptionError, match="secure_context"):
        node.request_options({"secureContext": node.secure_context({}), "ca": CA})


def test_where_a_request_goes():
    """
    hostname beats host, a port beats the default one, and the URL alone says nothing about the route.
    """
    both = node.request_options({"hostname": "b.test", "host": "a.test", "port": "444"})

    assert (both.host, both.port) == ("b.test", 444)
    alone = node.request_options({}, "https://c.test:9000/")
    assert (alone.host, alone.port) == (UNSET, UNSET)
    assert node.request_options({"defaultPort": 8443}).port == 8443
    assert node.request_options({"defaultPort": 8443}, "https://c.test:9000/").port is UNSET
    assert node.request_options({"path": "/index.html", "socketPath": "/run/s.sock"}).path == "/run/s.sock"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("nonsense", "ERR_INVALID_URL"),
        ("https://", "ERR_INVALID_URL"),
        ("https://a b/", "ERR_INVALID_URL"),
        ("https://a.test:65536/", "ERR_INVALID_URL"),
        ("https://[::1/", "ERR_INVALID_URL"),
        ("http://a.test/", "ERR_INVALID_PROTOCOL"),
    ],
)
def test_a_bad_url(url, code):
    """
    A URL that Node cannot parse, or of another protocol, is a TypeError with Node's code.
    """
    with pytest.raises(OptionTypeError) as caught:
        node.request_options({}, url)

    assert caught.value.code == code


def test_the_url_in_effective():
    """
    Credentials and path of the URL decide nothing, its default port is left out, options beside it win.
    """
    assert node.effective({}, {}, " HTTPS://u:p@A.test:443/x?y#z")["name"].startswith("a.test:443:")
    assert node.effective({}, {"port": 1}, "https://a.test:2/")["port"] == 1
    assert node.effective({"port": UNDEFINED}, {"host": "a.test"})["name"].startswith("a.test::")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"path": "/a b"}, "ERR_UNESCAPED_CHARACTERS"),
        ({"headers": {"a": UNDEFINED}}, "ERR_HTTP_INVALID_HEADER_VALUE"),
        ({"headers": ["a b", "c"]}, "ERR_INVALID_HTTP_TOKEN"),
        ({"insecureHTTPParser": 1}, "ERR_INVALID_ARG_TYPE"),
        ({"joinDuplicateHeaders": "x"}, "ERR_INVALID_ARG_TYPE"),
        ({"agent": "x"}, "ERR_INVALID_ARG_TYPE"),
        ({"maxHeaderSize": math.inf}, "ERR_OUT_OF_RANGE"),
        ({"certificateCompression": ["nope"]}, "ERR_INVALID_ARG_VALUE"),
        ({"socketPath": 5}, "ERR_INVALID_ARG_TYPE"),
        ({"session": b"junk"}, None),
        ({"signal": object()}, "ERR_INVALID_ARG_TYPE"),
    ],
)
def test_bad_request_options(options, code):
    """
    The checks that the vectors leave out have Node's codes too.
    """
    with pytest.raises(OptionError) as caught:
        node.request_options(options)

    assert code in (None, caught.value.code)


def test_what_http_options_may_be_said():
    """
    What is passed to request() by the caller is checked, and then has no place in the connection's options.
    """
    said = {
        "method": "GET",
        "headers": {"host": "a.test"},
        "setHost": False,
        "agent": False,
        "joinDuplicateHeaders": True,
    }

    assert node.request_options(said) == ConnectionOptions()


def test_pfx_in_node_s_forms():
    """
    A bundle is bytes, or an item of an array with its own passphrase, which wins.
    """
    bundle = pfx(b"secret")
    expected = ConnectionOptions(pfx=bundle, passphrase="secret").pfx

    assert node.agent_options({"pfx": bytearray(bundle), "passphrase": "secret"}).pfx == expected
    assert node.agent_options({"pfx": [{"buf": bundle, "passphrase": "secret"}], "passphrase": "x"}).pfx == expected
    assert node.agent_options({"pfx": [bundle], "passphrase": "secret"}).pfx == expected


def pfx(passphrase):
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.serialization import pkcs12

    key = serialization.load_pem_private_key(KEY, None)
    leaf = x509.load_pem_x509_certificate(CERT)
    encryption = serialization.BestAvailableEncryption(passphrase)
    return pkcs12.serialize_key_and_certificates(b"a", key, leaf, None, encryption)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"protocol": "http:"}, "ERR_INVALID_PROTOCOL"),
        ({"proxyEnv": "http://proxy.test"}, "ERR_INVALID_ARG_TYPE"),
        ({"certificateCompression": ["zlib"]}, "ERR_TLSAGENT_UNSUPPORTED_OPTION"),
        ({"hints": 32}, "ERR_TLSAGENT_UNSUPPORTED_OPTION"),
        ({"hints": 1}, "ERR_INVALID_ARG_VALUE"),
        ({"privateKeyEngine": 5}, "ERR_INVALID_ARG_TYPE"),
        ({"keepAlive": True, "keepAliveMsecs": "x"}, "ERR_INVALID_ARG_TYPE"),
        ({"maxSockets": 1.5}, "ERR_OUT_OF_RANGE"),
        ({"localPort": 1.5}, "ERR_SOCKET_BAD_PORT"),
        ({"ALPNProtocols": b"\x03h2"}, "ERR_INVALID_ARG_VALUE"),
    ],
)
def test_bad_agent_options(options, code):
    """
    What an agent cannot do is refused when it is made, where Node waits for a request or ignores it.
    """
    with pytest.raises(OptionError) as caught:
        node.agent_options(options)

    assert caught.value.code == code


@pytest.mark.parametrize("environment", [{"HTTPS_PROXY": "://"}, {"https_proxy": "", "HTTPS_PROXY": "http://a b/"}])
def test_a_bad_proxy(environment):
    """
    A proxy whose URL cannot be read is Node's ERR_PROXY_INVALID_CONFIG, a plain Error.
    """
    with pytest.raises(OptionError) as caught:
        node.agent_options({"proxyEnv": environment})

    assert caught.value.code == "ERR_PROXY_INVALID_CONFIG"
    assert not isinstance(caught.value, TypeError)


def test_no_proxy_for_https():
    """
    An environment without a proxy for https says nothing.
    """
    assert node.agent_options({"proxyEnv": {"HTTP_PROXY": "http://proxy.test:3128"}}).proxy is UNSET


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        ("http://proxy.test", "http://proxy.test:80"),
        ("https://proxy.test", "https://proxy.test:443"),
        ("http://[::1]:3128/path?query", "http://[::1]:3128"),
        ("http://me:sesame@proxy.test:3128", "http://proxy.test:3128"),
        ("socks5://proxy.test", "socks5://proxy.test:1080"),
    ],
)
def test_proxy_of_an_environment(url, ours):
    """
    `proxyEnv` becomes the proxy that its https_proxy names; lower case comes first.
    """
    options = node.agent_options({"proxyEnv": {"HTTPS_PROXY": "http://other.test", "https_proxy": url}})

    assert options.proxy.url == ours
    assert (options.proxy.username, options.proxy.password) == ((b"me", b"sesame") if "me" in url else (None, None))


@pytest.mark.parametrize(
    ("text", "hosts", "others"),
    [
        ("", [], ["a.test"]),
        ("*", ["a.test", "127.0.0.1"], []),
        ("a.test", ["a.test"], ["x.a.test", "b.test"]),
        ("A.test:443", ["a.test"], ["x.a.test"]),
        ("a.test:8443", [], ["a.test"]),
        (".a.test", ["x.a.test", "a.test", "xa.test"], ["b.test"]),
        ("*.a.test", ["x.a.test"], ["a.test", "xa.test"]),
        ("b.test , a.test", ["a.test", "b.test"], ["c.test"]),
        ("10.0.0.1-10.0.0.9", ["10.0.0.1", "10.0.0.9"], ["10.0.0.10", "a.test", "::1"]),
        ("10.0.0.0/8", [], ["10.0.0.1"]),
        ("x-y", ["x-y"], ["10.0.0.1"]),
    ],
)
def test_no_proxy_as_node_reads_it(text, hosts, others):
    """
    NO_PROXY means in `proxyEnv` what it means to Node: a name is itself alone, a leading dot any text before it.
    """
    proxy = node.agent_options({"proxyEnv": {"https_proxy": "http://proxy.test", "NO_PROXY": text}}).proxy

    assert [host for host in hosts + others if not proxy.serves(host, 443)] == hosts


def test_no_error_quotes_a_secret():
    """
    Neither passphrases nor keys are in a message, wherever they were misplaced.
    """
    for options in ({"passphrase": ["hunter2"]}, {"key": "hunter2"}, {"key": [{"pem": KEY, "pass": "hunter2"}]}):
        with pytest.raises(OptionError) as caught:
            node.secure_context({"cert": CERT, "key": KEY, **options})
        assert "hunter2" not in str(caught.value)


# Corners that the vectors leave out (the answers are those of Node 26.7.0) --------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"host": [], "port": 443}, ":443:::::::::::::::::::::"),
        ({"host": b""}, "::::::::::::::::::::::"),
        ({"host": 1, "servername": True}, "1::::::::::true::::::::::::"),
        ({"host": "1", "servername": 1}, "1::::::::::1::::::::::::"),
        ({"sigalgs": {"b": 1, "2": 3, "1": 4}}, 'localhost::::::::::::::::::::{"1":4,"2":3,"b":1}::'),
        (
            {"pfx": [{"buf": "", "passphrase": ""}], "passphrase": 0},
            "localhost:::::::::[object Object]:0::::::::::::::",
        ),
    ],
)
def test_corners_of_the_name(options, name):
    """
    Truth is JavaScript's before values become text, sameness is ===, and properties stand in JavaScript's order.
    """
    assert node.get_name(options) == name


@pytest.mark.parametrize(
    ("agent", "request_", "url", "expected"),
    [
        ({"defaultPort": ""}, {}, None, {"port": 80}),
        ({"defaultPort": None}, {}, None, {"port": 443}),
        ({"timeout": 100}, {"timeout": 0}, None, {"timeout": 100}),
        ({"timeout": UNDEFINED}, {"timeout": 0}, None, {"timeout": UNDEFINED}),
        ({"host": None}, {"setDefaultHeaders": False}, None, {"servername": None}),
        ({}, {"method": "connect", "path": "c.test:1"}, None, {"servername": "c.test"}),
        ({"protocol": ""}, {"protocol": "http:"}, None, {"host": "localhost"}),
        ({"protocol": "x:"}, {}, "x:y", {"host": "localhost"}),
        ({"protocol": "x:"}, {}, "x://y:5/z", {"host": "y", "port": 5}),
        ({}, {"auth": b"me", "uniqueHeaders": "a"}, None, {"host": "localhost"}),
        ({}, {"host": "::1%a b"}, None, {"servername": "::1%a b"}),
        ({}, {"headers": [["Host", "x.test"]]}, None, {"servername": "localhost"}),
        ({}, {"port": "443\ufeff"}, None, {"port": "443\ufeff"}),
    ],
)
def test_corners_of_effective(agent, request_, url, expected):
    """
    Falsy values, other protocols and odd arguments are taken as Node takes them.
    """
    found = node.effective(agent, request_, url)

    assert {name: found.get(name, UNDEFINED) for name in expected} == expected


@pytest.mark.parametrize(
    ("agent", "number"),
    [({}, ":1"), ({"checkServerIdentity": UNDEFINED}, ":1"), ({"checkServerIdentity": None}, "")],
)
def test_whose_identity_check_counts(agent, number):
    """
    The request's own check keeps its connection apart, unless the agent has any but undefined.
    """
    options = {"host": "a.test", "checkServerIdentity": len}

    assert node.effective(agent, options)["name"] == "a.test:443:::::::::::::::::::::" + number


@pytest.mark.parametrize(
    ("options", "url", "kind", "code"),
    [
        ({}, "x:y", OptionTypeError, "ERR_INVALID_PROTOCOL"),
        ({}, "ftp://a.test/", OptionTypeError, "ERR_INVALID_PROTOCOL"),
        ({}, "https://%ff@a.test/", OptionError, None),
        ({}, "https://a:%zz@a.test/", OptionError, None),
        ({"headers": ["a"]}, None, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"headers": [["a", "b"], "c"]}, None, OptionTypeError, "ERR_HTTP_INVALID_HEADER_VALUE"),
        ({"headers": [["a b", "c"]]}, None, OptionTypeError, "ERR_INVALID_HTTP_TOKEN"),
        ({"headers": ["a", ["b", UNDEFINED]]}, None, OptionTypeError, "ERR_HTTP_INVALID_HEADER_VALUE"),
        ({"headers": "\0"}, None, OptionTypeError, "ERR_INVALID_CHAR"),
        ({"headers": {"host": ["x", "y"]}}, None, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"headers": {"host": 5}}, None, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"host": "\u20ac.test"}, None, OptionTypeError, "ERR_INVALID_CHAR"),
        ({"auth": True}, None, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"uniqueHeaders": [5]}, None, OptionTypeError, None),
        ({"httpValidation": "lax"}, None, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"httpValidation": None}, None, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"httpValidation": "strict", "insecureHTTPParser": False}, None, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
    ],
)
def test_corners_of_a_bad_request(options, url, kind, code):
    """
    What Node refuses when a request is made is refused with its code, both alone and beside an agent's options.
    """
    for call in (lambda: node.request_options(options, url), lambda: node.effective({}, options, url)):
        with pytest.raises(kind) as caught:
            call()
        assert code in (None, caught.value.code)
        assert isinstance(caught.value, TypeError) == (kind is OptionTypeError)


def weak_certificate():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding

    key = rsa.generate_private_key(65_537, 1024)
    name = x509.Name([])
    leaf = x509.load_pem_x509_certificate(CERT)
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, end)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


PARTS = KEY.decode().partition("\n")


@pytest.mark.parametrize(
    ("options", "kind", "code"),
    [
        ({"secureProtocol": ""}, OptionTypeError, "ERR_TLS_INVALID_PROTOCOL_METHOD"),
        ({"cert": " " + CERT.decode()}, OptionError, "ERR_OSSL_PEM_NO_START_LINE"),
        ({"cert": CERT.decode().replace("\n", "")}, OptionError, "ERR_OSSL_PEM_NO_START_LINE"),
        ({"cert": KEY.decode().replace("\n", "")}, OptionError, "ERR_OSSL_PEM_BAD_END_LINE"),
        ({"cert": KEY.decode().replace("M", "!", 1)}, OptionError, "ERR_OSSL_PEM_BAD_BASE64_DECODE"),
        ({"cert": PARTS[0] + "\n-----END" + KEY.decode().rpartition("-----END")[2]}, OptionError, None),
        ({"cert": weak_certificate()}, OptionError, "ERR_SSL_EE_KEY_TOO_SMALL"),
        ({"cert": weak_certificate(), "key": KEY}, OptionError, "ERR_SSL_EE_KEY_TOO_SMALL"),
        ({"key": " " + KEY.decode()}, OptionError, "ERR_OSSL_UNSUPPORTED"),
        ({"key": KEY.decode().replace("\n", "")}, OptionError, "ERR_OSSL_UNSUPPORTED"),
        ({"key": [{"pem": KEY, "passphrase": b"secret"}]}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"pfx": [None]}, OptionTypeError, None),
        ({"pfx": [{"buf": ""}]}, OptionError, "ERR_CRYPTO_OPERATION_FAILED"),
        ({"ciphers": "aes128-sha"}, OptionError, "ERR_SSL_NO_CIPHER_MATCH"),
        ({"ciphers": "KRSA:TLSV1.2"}, OptionError, "ERR_SSL_NO_CIPHER_MATCH"),
        ({"ciphers": "HIGH:@strength"}, OptionError, "ERR_SSL_INVALID_COMMAND"),
        ({"ciphers": "\u00e9"}, OptionError, "ERR_SSL_INVALID_COMMAND"),
        ({"ciphers": "NOPE", "ca": 5}, OptionError, "ERR_SSL_NO_CIPHER_MATCH"),
        ({"cert": CERT, "key": KEY, "certificateCompression": "x"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"certificateCompression": ["zlib", "zlib"]}, OptionError, "ERR_CRYPTO_OPERATION_FAILED"),
        ({"privateKeyIdentifier": "a", "privateKeyEngine": 5}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
    ],
)
def test_corners_of_a_bad_context(options, kind, code):
    """
    Ciphers are looked at first, certificates before keys, PEM as OpenSSL reads it.
    """
    with pytest.raises(OptionError) as caught:
        node.secure_context(options)

    assert code in (None, caught.value.code)
    assert isinstance(caught.value, TypeError) == (kind is OptionTypeError)


@pytest.mark.parametrize("ciphers", ["HIGH:aes128-sha", "kRSA+AES", "ANULL:HIGH", "-high:HIGH", "HIGH:@STRENGTH"])
def test_names_of_ciphers_that_nobody_knows_are_skipped(ciphers):
    """
    A name in the wrong case is an unknown one, which costs nothing beside one that is known.
    """
    assert isinstance(node.secure_context({"ciphers": ciphers}), SecureContext)


def test_no_revocation_lists_are_no_check():
    """
    An empty array says nothing, as in Node, where only a list that is added switches the check on.
    """
    assert node.connection_options({"port": 1, "crl": []}).crl is UNSET


def test_a_passphrase_for_a_bundle_may_be_a_buffer():
    """
    Where no key needs it as a string, a passphrase is bytes in UTF-8 too; a falsy one is none.
    """
    sealed, open_ = pfx(b"secret"), {"pfx": pfx(b"secret"), "passphrase": "secret"}

    assert node.secure_context({"pfx": sealed, "passphrase": b"secret"}) == node.secure_context(open_)
    for wrong in (b"\xff", 5, False):
        with pytest.raises(OptionError):
            node.secure_context({"pfx": sealed, "passphrase": wrong})


@pytest.mark.parametrize(
    ("options", "kind", "code"),
    [
        (None, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"keepAliveInitialDelay": "x"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"keepAliveInitialDelay": None}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"highWaterMark": ""}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"highWaterMark": 1.5}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"highWaterMark": math.nan}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"hints": "32"}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"hints": "x", "family": 5}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"enableTrace": 1, "secureContext": {}}, OptionTypeError, "ERR_INVALID_ARG_TYPE"),
        ({"secureContext": {}, "minVersion": "x"}, OptionTypeError, "ERR_TLS_INVALID_CONTEXT"),
        ({"servername": 5, "port": -1}, OptionRangeError, "ERR_SOCKET_BAD_PORT"),
        ({"servername": "::1", "port": -1}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
        ({"session": 5, "highWaterMark": -1}, OptionTypeError, "ERR_INVALID_ARG_VALUE"),
    ],
)
def test_corners_of_a_bad_connection(options, kind, code):
    """
    What `tls.connect` refuses is refused in its order.
    """
    with pytest.raises(kind) as caught:
        node.connection_options(options if options is None else {"port": 1, **options})

    assert caught.value.code == code


@pytest.mark.parametrize(
    ("options", "delay"),
    [
        ({"keepAlive": True, "keepAliveInitialDelay": 2500}, 2),
        ({"keepAlive": True, "keepAliveInitialDelay": 999}, 0),
        ({"keepAlive": True, "keepAliveInitialDelay": -5000}, 0),
        ({"keepAlive": True, "keepAliveInitialDelay": math.inf}, 0),
        ({"keepAlive": False, "keepAliveInitialDelay": 2500}, UNSET),
    ],
)
def test_the_delay_of_tcp_probes(options, delay):
    """
    Milliseconds become whole seconds as ~~ makes them; what is none leaves the system its own.
    """
    assert node.connection_options({"port": 1, **options}).tcp_keep_alive == delay


@pytest.mark.parametrize("hints", [2**32, math.inf, -math.inf, 1e300])
def test_hints_of_no_bits(hints):
    """
    Bits are those of 32; a number that has none there says nothing.
    """
    assert node.connection_options({"port": 1, "hints": hints}) == node.connection_options({"port": 1})


@pytest.mark.parametrize(
    ("hostname", "certificate", "accepted"),
    [
        ("::1", {"subjectaltname": "IP Address:::1%eth0"}, True),
        ("::1%a b", {"subjectaltname": "IP Address:::1"}, False),
        ("[::1].", {"subject": {"CN": "[::1]."}}, False),
        ("b", {"subject": {"CN": [["b"]]}}, False),
        ("b", {"subject": {"CN": [5, "b"]}}, False),
        ("b", {"subject": {"CN": ["b", 5]}}, True),
        ("b", {"subject": {"CN": [None, "b"]}}, True),
        ("a.test\u3002", {"subjectaltname": "DNS:a.test"}, True),
    ],
)
def test_corners_of_the_identity_check(hostname, certificate, accepted):
    """
    Zones, brackets, dots of other scripts and common names that are no text. (Node throws a TypeError at the latter.)
    """
    if accepted:
        node.check_server_identity(hostname, certificate)
    else:
        with pytest.raises(CertificateNameError):
            node.check_server_identity(hostname, certificate)


# Identity ---------------------------------------------------------------------------------------------------------


def test_the_error_of_the_identity_check():
    """
    It carries Node's facts, and can be pickled.
    """
    certificate = {"subject": {"CN": "b.test"}}

    with pytest.raises(CertificateNameError) as caught:
        node.check_server_identity("a.test.", certificate)

    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.reason, error.host, error.cert) == ("Host: a.test. is not cert's CN: b.test", "a.test", certificate)
    assert error.code == "ERR_TLS_CERT_ALTNAME_INVALID"


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("::ffff:102:304", "::ffff:1.2.3.4"),
        ("::0102:0304", "::1.2.3.4"),
        ("::1", "::1"),
        ("::", "::"),
        ("::ffff", "::ffff"),
        ("1:0:0:2:0:0:0:3", "1:0:0:2::3"),
        ("1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"),
        ("FE80::1%eth0", "fe80::1"),
        ("1.2.3.04", None),
        ("fe80::1%", "fe80::1"),
        ("fe80::1%a b", "fe80::1"),
        ("a.test", None),
        ("", None),
    ],
)
def test_canonical_addresses(address, canonical):
    """
    Addresses are spelled as inet_ntop spells them, whatever their zone is.
    """
    assert canonical_address(address) == canonical


@pytest.mark.parametrize(
    ("text", "known"),
    [("::1%eth0", True), ("::1%a.b-c:d", True), ("::1%", False), ("::1%a b", False), ("::1%a%b", False)],
)
def test_what_is_an_address(text, known):
    """
    Node's isIP is particular about zones. (Answers of Node 26.7.0.)
    """
    assert is_address(text) is known


# Hosts (the answers are those of url.domainToASCII) ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "ascii_form"),
    [
        ("B\u00dcCHER.test", "xn--bcher-kva.test"),
        ("fa\u00df.de", "xn--fa-hia.de"),
        ("\u2460.test", "1.test"),
        ("a\u3002b\uff0ec\uff61d", "a.b.c.d"),
        ("\ufeff\u00e9\u00ad.com", "xn--9ca.com"),
        ("\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.com", "xn--mgba3gch31f060k.com"),
        ("\u0915\u094d\u200d\u0937.com", "xn--11b2ezcw70k.com"),
        ("\u05d01.com", "xn--1-zhc.com"),
        ("\u0627-\u0627", "xn----ymcb"),
        ("1\u05d0.com", ""),
        ("+\u05d0.com", ""),
        ("\u0660.com", ""),
        ("a.\u05d01", "a.xn--1-zhc"),
        ("\u05d1\u094d\u200d", "xn--5db89oh50a"),
        ("\ufeffa.xn--.b", ""),
        ("\u2260.com", "xn--1ch.com"),
        ("\u00e9.xn--bcher-kva", "xn--9ca.xn--bcher-kva"),
        ("a~b_c'd!.com", "a~b_c'd!.com"),
        ("\uff11\uff12\uff17.1", "127.0.0.1"),
        ("0x7F.0377.257", "127.255.1.1"),
        ("a.0x", ""),
        ("1.2.3.4.", "1.2.3.4"),
        ("a%C3%A9.com/x", "xn--a-bga.com"),
        ("[::1]", "[::1]"),
        ("[::ffff:1.2.3.4]", "[::ffff:102:304]"),
        ("[fe80::1%25eth0]", ""),
        ("a\tb.test", "ab.test"),
        ("xn--a.test", "xn--a.test"),
        ("\u00e9.xn--a", ""),
        ("\u00e9.xn--", ""),
        ("xn--\u00e9.com", ""),
        ("\u0301a.com", ""),
        ("a\u200cb.com", ""),
        ("\u0928a\u200db", ""),
        ("\u05d0a.com", ""),
        ("a\u05d0b.com", ""),
        ("\u0627-", ""),
        ("\u06271\u0660", ""),
        ("\u2024.test", ""),
        ("\u2ff0.com", ""),
        ("a\ufe12b.com", ""),
        ("\ufffd.com", ""),
        ("\u2100.com", ""),
        ("\u00ad", ""),
        ("%ff.com", ""),
        ("a%00b", ""),
        ("a b", ""),
        ("a:1", ""),
        ("256.1.1.1", ""),
        ("1.2.3.4.5", ""),
        ("09.1", ""),
        ("", ""),
    ],
)
def test_domain_to_ascii(domain, ascii_form):
    """
    Hosts get the form that URLs give them, "" if they are none.
    """
    assert domain_to_ascii(domain) == ascii_form


def test_the_mapping_is_that_of_uts46():
    """
    Each character that the interpreter knows is mapped, kept or refused as the table of UTS #46 says.
    """
    table = pytest.importorskip("idna.uts46data", reason="the package idna has the table")
    rows = zip(table.uts46_starts, table.uts46_statuses, table.uts46_replacements, strict=True)
    ends = [*table.uts46_starts[1:], 0x110000]
    wrong = []
    for (start, status, replacement), end in zip(rows, ends, strict=True):
        for char in map(chr, range(start, end)):
            if unicodedata.category(char) in ("Cn", "Cs", "Co"):
                continue
            expected = {"V": char, "D": char, "M": replacement, "I": ""}.get(chr(status))
            if expected == "\u3002":  # U+FE12 becomes what no label may hold
                expected = None
            if map_character(char) != expected:
                wrong.append((hex(ord(char)), map_character(char), expected))

    assert wrong == []


# Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e21, "1e+21"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e-6, "0.000001"),
        (1.5e-6, "0.0000015"),
        (1e-7, "1e-7"),
        (-0.0, "0"),
        (-math.inf, "-Infinity"),
        (0.1, "0.1"),
        (2**53 + 1, "9007199254740992"),
        ([1, [2, None], UNDEFINED, "x"], "1,2,,,x"),
        (b"\xf0\x9f\x98", "\ufffd"),
        (b"\xe2\x82\xe2\x82\xac", "\ufffd\u20ac"),
        (bytearray(b"\x01\xff"), "1,255"),
        ({"a": 1}, "[object Object]"),
    ],
)
def test_text_of_values(value, text):
    """
    Values become text as JavaScript's String() makes it.
    """
    assert to_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([None, UNDEFINED, True, math.nan, 1.0], "[null,null,true,null,1]"),
        ({"a": UNDEFINED, "b": "\u20ac\x01\n"}, '{"b":"\u20ac\\u0001\\n"}'),
        (b"\x01", '{"type":"Buffer","data":[1]}'),
        (bytearray(b"\x01"), '{"0":1}'),
    ],
)
def test_json_of_values(value, text):
    """
    Values become JSON as JSON.stringify makes it.
    """
    assert to_json(value) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 0), (" 443 ", 443), ("0x1BB", 443), ("0b11", 3), ("1e2", 100), ("-1", -1), (".5", 0.5)],
)
def test_numbers_in_text(text, number):
    """
    A string counts as the number that JavaScript's Number() reads in it.
    """
    assert to_number(text) == number


@pytest.mark.parametrize("text", ["x", "4_4_3", "inf", "nan", "0x", "0x-1", "1 2", "\u0661", "443a"])
def test_no_numbers_in_text(text):
    """
    What Number() cannot read is NaN, also where Python's float() could.
    """
    assert math.isnan(to_number(text))
