"""
Keys in PKCS#11 tokens, for real: SoftHSM, pkcs11-provider, and Python processes that start with OPENSSL_CONF.

Run by `make pkcs11`. Not collected by `make test`, whose machine needs nothing but Python: here a peer that is missing
is a failure and says what it needs. docs/howto/pkcs11.md is run first, as it stands; what it leaves is the token of the
other tests. Servers run in this process, which has no provider.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from tlsagent.testing import Server

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "howto" / "pkcs11.md"
PIN = "135-246"
URI = "pkcs11:token=agent;object="
NEEDED = "make pkcs11 needs softhsm2-util, the openssl command, SoftHSM's module and pkcs11-provider"
PACKAGES = "Debian 13: apt install softhsm2 pkcs11-provider openssl"
PLACES = {
    "PKCS11_PROVIDER": (
        "/usr/lib/x86_64-linux-gnu/ossl-modules/pkcs11.so",
        "/usr/lib/aarch64-linux-gnu/ossl-modules/pkcs11.so",
        "/usr/lib64/ossl-modules/pkcs11.so",
        "/usr/lib/ossl-modules/pkcs11.so",
    ),
    "PKCS11_MODULE": (
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib64/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
    ),
}


def place(variable: str) -> str:
    """Return where the environment says that a library is, or else where it is found."""
    for path in (os.environ[variable],) if variable in os.environ else PLACES[variable]:
        if Path(path).is_file():
            return path
    pytest.exit(
        f"{NEEDED}: set {variable}, or install it (Debian 13: apt install softhsm2 pkcs11-provider openssl)",
        returncode=1,
    )


def script(page: str) -> tuple[str, list[str]]:
    """Return the page as one shell script, and the lines that its Python says it prints."""
    lines = ["set -eu"]
    for number, (language, code) in enumerate(
        re.findall(r"^```(\w+) token\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ):
        if language == "sh":
            lines.append(code)
        else:
            lines.append(f"cat > {number}.py <<'PYTHON'\n{code}PYTHON\n{sys.executable} {number}.py >> printed")
    lines.append("env -0 > environment")
    return "\n".join(lines), re.findall(r"print\(.*\)  # (.*)$", page, re.MULTILINE)


AUTHORITY_KEY = ec.generate_private_key(ec.SECP256R1())


def signed(subject: str, public_key: PublicKeyTypes, *, authority: bool) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(AUTHORITY_KEY, hashes.SHA256())
    )


AUTHORITY = signed("authority", AUTHORITY_KEY.public_key(), authority=True)


class Token:
    """The folder that the page was run in, and the environment at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pairs = (folder / "environment").read_bytes().decode().split("\0")
        self.environment = dict(pair.split("=", 1) for pair in pairs if pair)

    def run(self, *command: str, **environment: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment | environment, capture_output=True, text=True, timeout=50
        )
        assert done.returncode == 0, f"{command[0]}: {done.stderr}"
        return done.stdout + done.stderr

    def python(self, code: str, *arguments: str, **environment: str) -> str:
        return self.run(sys.executable, "-c", code, *arguments, **environment)

    def make_key(self, name: str, *kind: str) -> bytes:
        """Make a key in the token, and a file with its certificate; return the DER."""
        uri = f"pkcs11_uri:{URI}{name}"
        options = [word for option in (*kind, uri) for word in ("-pkeyopt", option)]
        algorithm = "RSA" if kind[0].startswith("rsa") else "EC"
        self.run("openssl", "genpkey", "-propquery", "provider=pkcs11", "-algorithm", algorithm, *options,
                 "-out", f"{name}-key.pem")  # fmt: skip
        public = self.run("openssl", "pkey", "-in", f"{name}-key.pem", "-pubout").encode()
        pem = signed(name, load_pem_public_key(public), authority=False).public_bytes(Encoding.PEM)
        (self.folder / f"{name}.pem").write_bytes(pem)
        return self.der(name)

    def der(self, name: str) -> bytes:
        return ssl.PEM_cert_to_DER_cert((self.folder / f"{name}.pem").read_text())

    def without_pin(self) -> Mapping[str, str]:
        """Return the environment that makes OpenSSL ask for the PIN."""
        lines = (self.folder / "openssl.cnf").read_text().splitlines(keepends=True)
        path = self.folder / "asking.cnf"
        path.write_text("".join(line for line in lines if "token-pin" not in line))
        return {"OPENSSL_CONF": str(path)}

    def server(self, **settings: object) -> Server:
        page_made = (self.folder / "cert.pem").read_bytes()
        return Server(request_cert="demand", client_ca=page_made + AUTHORITY.public_bytes(Encoding.PEM), **settings)


@pytest.fixture(scope="session")
def token(tmp_path_factory):
    missing = [tool for tool in ("softhsm2-util", "openssl") if shutil.which(tool) is None]
    if missing:
        pytest.exit(f"{NEEDED}: there is no {', no '.join(missing)} ({PACKAGES})", returncode=1)
    page = PAGE.read_text()
    for variable, paths in PLACES.items():
        page = page.replace(paths[0], place(variable))
    folder = tmp_path_factory.mktemp("token")
    code, wanted = script(page)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    environment["PYTHONWARNINGS"] = "error"

    done = subprocess.run(
        ["sh", "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=50, check=False
    )

    assert done.returncode == 0, done.stderr
    assert (folder / "printed").read_text().splitlines() == wanted
    return Token(folder)


REQUESTS = """
import sys
from pathlib import Path
from tlsagent import Agent

url, ca, cert, key = sys.argv[1:5]
with Agent(ca=ca, cert=Path(cert), key=key, **eval(sys.argv[5])) as agent:
    print(agent.request("GET", url + "/hello").status)
"""


def test_the_page_leads_to_mutual_tls(token):
    """
    Every step of the how-to works, and what it prints is what it says; there is no key in its PEM file.
    """
    assert "BEGIN PKCS#11 PROVIDER URI" in (token.folder / "key.pem").read_text()


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("kind", [("rsa_keygen_bits:2048",), ("group:P-256",), ("group:P-384",)])
def test_kinds_of_keys(token, kind, version):
    """
    RSA and EC keys sign in the token, in TLS 1.2 and 1.3; the server reads the certificate.
    """
    name = f"{kind[0].split(':')[1]}-{version}"
    der = token.make_key(name, *kind)

    with token.server(min_version=version, max_version=version) as server:
        out = token.python(REQUESTS, server.url, server.ca_pem.decode(), f"{name}.pem", URI + name, "{}")

        assert out == "200\n"
        assert [record.client_certificate for record in server.connections] == [der]


def test_the_passphrase_is_the_pin(token):
    """
    Where no PIN is configured, `passphrase` opens the token, for the bare URI as for the PEM.
    """
    asking = token.without_pin()

    for key in (URI + "client", (token.folder / "key.pem").read_text()):
        with token.server() as server:
            options = repr({"passphrase": PIN})
            out = token.python(REQUESTS, server.url, server.ca_pem.decode(), "cert.pem", key, options, **asking)

            assert out == "200\n"
            assert [record.client_certificate for record in server.connections] == [token.der("cert")]


def test_the_pin_comes_from_another_layer(token):
    """
    The key is the agent's, the PIN the request's.
    """
    code = """
import sys
from pathlib import Path
from tlsagent import Agent, OptionError

with Agent(ca=sys.argv[2], cert=Path("cert.pem"), key=sys.argv[3]) as agent:
    try:
        agent.request("GET", sys.argv[1] + "/hello")
    except OptionError as exc:
        print(exc)
    print(agent.request("GET", sys.argv[1] + "/hello", options={"passphrase": sys.argv[4]}).status)
"""
    with token.server() as server:
        arguments = (server.url, server.ca_pem.decode(), URI + "client", PIN)
        refused, status = token.python(code, *arguments, **token.without_pin()).splitlines()

    assert "asks for its PIN" in refused
    assert status == "200"


def test_a_wrong_pin_in_the_configuration(token):
    """
    It is tried when the options are given and not at each request; the error says that there is a wrong one.
    """
    code = """
import sys
from tlsagent import Agent, OptionError

with Agent(key=sys.argv[1]) as agent:
    for _ in range(3):
        try:
            agent.request("GET", "https://localhost:1/")
        except OptionError as exc:
            print(exc)
"""
    log = token.folder / "configured.log"
    (token.folder / "wrong").write_text("wrong-97531\n")
    path = token.folder / "wrong.cnf"
    path.write_text((token.folder / "openssl.cnf").read_text().replace(f"{token.folder}/pin", f"{token.folder}/wrong"))

    out = token.python(code, URI + "client", OPENSSL_CONF=str(path), PKCS11_PROVIDER_DEBUG=f"file:{log}")

    assert out.count("asks for its PIN: none is configured, or a wrong one") == 3
    assert log.read_text().count("Calling C_Login") == 1


FAILS = """
import sys
from tlsagent import Agent, OptionError

try:
    Agent(key=sys.argv[1], **eval(sys.argv[2]))
except OptionError as exc:
    print(exc.code, repr(exc), repr(exc.__cause__), repr(exc.__context__))
"""


@pytest.mark.parametrize("where", ["passphrase", "URI"])
def test_a_wrong_pin_is_tried_once(token, where):
    """
    Tokens lock after a few wrong PINs: one key is one try. The error does not repeat the PIN.
    """
    wrong = "wrong-97531"
    uri = URI + "client" + (f"?pin-value={wrong}" if where == "URI" else "")
    options = repr({"passphrase": wrong} if where == "passphrase" else {})
    debug = "file:" + str(token.folder / "debug.log")

    out = token.python(FAILS, uri, options, PKCS11_PROVIDER_DEBUG=debug, **token.without_pin())

    assert out.startswith("ERR_OSSL_BAD_DECRYPT")
    assert "takes no such PIN" in out
    assert wrong not in out
    assert (token.folder / "debug.log").read_text().count("Calling C_Login") == 1
    (token.folder / "debug.log").unlink()


@pytest.mark.parametrize(
    ("uri", "environment", "message"),
    [
        (URI + "client", {"OPENSSL_CONF": ""}, "no provider is loaded"),
        (URI + "client", {"OPENSSL_CONF": "/nowhere.cnf"}, "OpenSSL does not find it"),
        (URI + "client", {"PKCS11_PROVIDER_MODULE": "/nowhere.so"}, "OpenSSL does not find it"),
        (URI + "client", {"SOFTHSM2_CONF": "/nowhere.conf"}, "OpenSSL does not find it"),
        (URI + "nobody", {}, "OpenSSL does not find it"),
        ("pkcs11:token=nobody;object=client", {}, "OpenSSL does not find it"),
    ],
)
def test_what_is_missing(token, uri, environment, message):
    """
    Without the provider, its module, the token or the key, options are refused when they are given.
    """
    out = token.python(FAILS, uri, "{}", **environment)

    assert out.startswith("ERR_OSSL_UNSUPPORTED")
    assert message in out
    assert "docs/howto/pkcs11.md" in out


def test_the_key_must_be_that_of_the_certificate(token):
    """
    A key in the token is matched to the certificate like any other, when the options are given.
    """
    token.make_key("other", "group:P-256")

    out = token.python(FAILS, URI + "other", "{'cert': open('cert.pem').read()}")

    assert out.startswith("ERR_OSSL_X509_KEY_VALUES_MISMATCH")


def test_the_pin_is_shown_nowhere(token):
    """
    A PIN in the URI is in no repr of options, agents, keys and connections; the pool key has the public half's digest.
    """
    code = """
import logging, sys
from pathlib import Path
from tlsagent import Agent, AgentOptions

def show(event):
    print({name: getattr(event, name) for name in dir(event) if not name.startswith("__")})

logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
said = AgentOptions(cert=Path("cert.pem"), key=sys.argv[3])
print(said, said.key)
with Agent(ca=sys.argv[2], options=said) as agent:
    response = agent.request("GET", sys.argv[1] + "/hello", trace=show)
    print(response, response.connection, agent, agent.stats())
"""
    with token.server() as server:
        uri = f"{URI}client?pin-value={PIN}"
        out = token.python(code, server.url, server.ca_pem.decode(), uri, **token.without_pin())

        assert server.connections[0].client_certificate == token.der("cert")
    assert "PrivateKey of public key sha256" in out
    assert PIN not in out


def test_many_threads_sign_at_once(token):
    """
    Handshakes of many threads share the key.
    """
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tlsagent import Agent

def ask(_):
    return agent.request("GET", sys.argv[1] + "/hello", headers={"connection": "close"}).status

with Agent(ca=sys.argv[2], cert=Path("cert.pem"), key=sys.argv[3], max_cached_sessions=0) as agent:
    with ThreadPoolExecutor(8) as threads:
        print(set(threads.map(ask, range(64))))
"""
    with token.server(tickets=0) as server:
        out = token.python(code, server.url, server.ca_pem.decode(), URI + "client")

        assert out == "{200}\n"
        assert server.stats.handshakes_full == 64


def test_a_child_signs_with_the_key_it_inherited(token):
    """
    After a fork parent and child go on signing, the child with the agent it inherited and with one of its own.
    """
    code = """
import os, sys
from pathlib import Path
from tlsagent import Agent

def make():
    return Agent(ca=sys.argv[2], cert=Path("cert.pem"), key=sys.argv[3])

def ask(agent):
    return agent.request("GET", sys.argv[1] + "/hello", headers={"connection": "close"}).status

with make() as agent:
    print(ask(agent), flush=True)
    child = os.fork()
    if not child:
        with make() as own:
            print(ask(agent), ask(own), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with make() as another:
        print(ask(another))
"""
    with token.server(tickets=0) as server:
        out = token.python(code, server.url, server.ca_pem.decode(), URI + "client")

        assert out == "200\n200 200\n200\n"
        assert server.stats.handshakes_full == 4


def test_a_key_that_was_replaced_is_found(token):
    """
    The URI is looked up anew when options are given: it names another key once the token does.
    """
    code = """
import sys
from pathlib import Path
from tlsagent import AgentOptions

for _ in range(2):
    print(AgentOptions(cert=Path("rotated.pem"), key=sys.argv[1]).key, flush=True)
    sys.stdin.readline()
"""
    before = set(token.folder.rglob("*.object"))
    token.make_key("rotated", "group:P-256")
    made = set(token.folder.rglob("*.object")) - before
    command = [sys.executable, "-c", code, URI + "rotated"]
    with subprocess.Popen(
        command, cwd=token.folder, env=token.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        first = child.stdout.readline()
        for path in made:
            path.unlink()
        token.make_key("rotated", "group:P-256")
        second, _ = child.communicate("\n\n", timeout=30)

    assert child.returncode == 0
    assert "sha256" in first
    assert "sha256" in second
    assert first != second
