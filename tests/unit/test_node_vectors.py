"""
`tlsagent.node` against what Node 26 answered: `tests/vectors`, see `meta` in each file.

Cases of kind `js-only` depend on coercions that no other language has; ours happen to agree, and stay so. The kind
`handshake` takes a server and is run elsewhere.
"""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from typing import Any

import pytest

from tlsagent import node
from tlsagent._tls.certificates import PeerCertificate
from tlsagent._tls.verify import check_server_identity
from tlsagent.errors import CertificateNameError, OptionError, OptionRangeError, OptionTypeError

sys.path.append(str(Path(__file__).parents[2]))  # the checkout, for what other runners of the vectors use too
from tests.vectors.decode import decode, load

GETNAME, IDENTITY, ERRORS = load("getname"), load("identity"), load("errors")
CLASSES = {"TypeError": OptionTypeError, "RangeError": OptionRangeError, "Error": OptionError}


def cases(found):
    return [pytest.param(case, id=case["id"]) for case in found]


@pytest.mark.parametrize("case", cases(GETNAME["cases"]))
def test_get_name(case):
    """
    The name of the pool is Node's, to the letter.
    """
    assert node.get_name(decode(case["options"])) == case["name"]


@pytest.mark.parametrize("case", cases(GETNAME["effective"]))
def test_effective(case):
    """
    Agent and request are merged as Node does, or refused with its code and class.
    """
    arguments = decode(case["agentOptions"]), decode(case["requestOptions"]), case.get("url")

    if "error" in case:
        with pytest.raises(CLASSES[case["error"]["name"]]) as caught:
            node.effective(*arguments)
        assert caught.value.code == case["error"]["code"]
    else:
        assert node.effective(*arguments) == case["effective"]


def verdict(check, hostname, certificate):
    try:
        check(hostname, certificate)
    except CertificateNameError as exc:
        return {"ok": False, "code": exc.code, "reason": getattr(exc, "reason", None)}
    return {"ok": True, "code": None, "reason": None}


@pytest.mark.parametrize("case", cases(IDENTITY["cases"]))
def test_check_server_identity(case):
    """
    Node's object with subject and text of alternative names gets Node's verdict, its reason included.
    """
    certificate = {"subject": decode(case["subject"])}
    if case["subjectaltname"] is not None:
        certificate["subjectaltname"] = case["subjectaltname"]

    found = verdict(node.check_server_identity, decode(case["hostname"]), certificate)

    assert found == {name: case[name] for name in found}


REAL = [case for case in IDENTITY["cases"] if "cert" in case]


@pytest.mark.parametrize("case", cases(REAL))
def test_check_server_identity_of_a_certificate(case):
    """
    A real certificate gets Node's verdict too: its names are written as Node writes them.
    """
    certificate = PeerCertificate.from_pem(IDENTITY["meta"]["certs"][case["cert"]])

    found = verdict(node.check_server_identity, case["hostname"], certificate)

    assert found == {name: case[name] for name in found}


@pytest.mark.parametrize("case", cases(REAL))
def test_the_strict_default(case):
    """
    The library's own check agrees with Node, but refuses what a careful library does.
    """
    certificate = PeerCertificate.from_pem(IDENTITY["meta"]["certs"][case["cert"]])

    found = verdict(check_server_identity, case["hostname"], certificate)

    assert found["ok"] == (case["ok"] and "stricter" not in case)


def call(case: dict[str, Any], connected: object) -> object:
    options = decode(case["options"], ERRORS["meta"]["files"])
    match case["call"]:
        case "tls.createSecureContext":
            return node.secure_context(options)
        case "tls.connect":
            return node.connection_options({**options, "socket": connected})
        case "tls.connect(net)":
            return node.connection_options(options)
        case "new https.Agent":
            return node.agent_options(options)
        case "https.request":
            return node.request_options(options)
        case unknown:
            raise AssertionError(unknown)


@pytest.mark.parametrize("case", cases(case for case in ERRORS["cases"] if case["kind"] != "handshake"))
def test_bad_input(case, connected):
    """
    Bad input is refused with Node's code in Node's class; where Node is careless, with a code given there.
    """
    if "stricter" in case:
        with pytest.raises(OptionError) as caught:
            call(case, connected)
        assert any(fnmatch.fnmatchcase(caught.value.code, code) for code in case["stricter"]["codes"])
    elif case.get("ok"):
        assert call(case, connected) is not None
    else:
        with pytest.raises(CLASSES[case["name"]]) as caught:
            call(case, connected)
        # Where Node's error has no code, ours has one all the same.
        assert case["code"] in (None, caught.value.code)
        is_plain = not isinstance(caught.value, (TypeError, ValueError))
        assert is_plain == (case["name"] == "Error")


class Connected:
    """Stands for a connected socket, which nothing here speaks over."""

    def fileno(self) -> int:
        return -1


@pytest.fixture
def connected():
    return Connected()
