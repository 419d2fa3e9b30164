"""Whom the agent talks to: refused certificates, the hook, and what a lax request must not leave to a strict one."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest
from tls_support import BAD_CHAINS, DAY, NOW, VERSIONS, bad_chain, hello_of, issue, offers_session

from tlsagent import CertificateError, CertificateNameError, OptionTypeError

pytestmark = pytest.mark.tls

# --- Bad certificates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_bad_certificate_is_refused_under_nodes_name(open_agent, new_server, name):
    """
    Each bad chain fails the request with Node's code for it, before a byte of the request is sent.
    """
    chain = bad_chain(name)
    with new_server(credentials=chain.credentials) as server:
        agent = open_agent(ca=chain.ca)

        with pytest.raises(CertificateError) as caught:
            agent.request("GET", server.url + "/hello")

    error = caught.value
    assert error.code == chain.code
    assert isinstance(error, CertificateNameError) == (name == "wrong host")
    assert (error.phase, error.request_sent, error.reused) == ("handshake", False, False)
    assert error.key is not None
    assert "localhost" in str(error)
    assert server.stats.requests == 0


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["wrong host", "expired", "name constraints"])
def test_refused_connection_leaves_nothing(open_agent, new_server, name, version):
    """
    A refused connection is not pooled and its session is not kept: the next request starts from nothing, and fails too.
    """
    chain = bad_chain(name)
    with new_server(credentials=chain.credentials, min_version=version, max_version=version) as server:
        agent = open_agent(ca=chain.ca)

        for _ in range(2):
            with pytest.raises(CertificateError):
                agent.request("GET", server.url + "/hello")

        assert server.wait_for(lambda s: s.stats.open_connections == 0)

    stats = agent.stats()
    assert (stats.idle, stats.active, stats.dialling, stats.sessions_stored) == (0, 0, 0, 0)
    assert server.stats.connections == 2
    assert server.stats.requests == 0
    assert not any(offers_session(connection) for connection in server.connections)


def test_names_of_the_certificate_are_in_the_error(open_agent, new_server):
    """
    The error for a wrong host says whom we asked for and whom the certificate is for.
    """
    chain = bad_chain("wrong host")
    with new_server(credentials=chain.credentials) as server:
        agent = open_agent(ca=chain.ca)

        with pytest.raises(CertificateNameError, match=r'"localhost".*DNS:other\.test.*DNS:\*\.other\.test'):
            agent.request("GET", server.url + "/hello")


def test_common_name_does_not_count(open_agent, new_server):
    """
    A certificate that has the host as its common name only is for nobody (RFC 9525).
    """
    root = issue("root", ca=True)
    leaf = issue("other.test", by=root, subject="localhost")
    with new_server(credentials=leaf.with_chain()) as server:
        agent = open_agent(ca=root.pem)

        with pytest.raises(CertificateNameError):
            agent.request("GET", server.url + "/hello")


def test_chain_in_any_order_is_accepted(open_agent, new_server):
    """
    Intermediates sent in reverse order, and a root sent with them, do no harm.
    """
    root = issue("root", ca=True)
    upper = issue("upper", by=root, ca=True)
    lower = issue("lower", by=upper, ca=True)
    leaf = issue("localhost", by=lower)
    with new_server(credentials=leaf.with_chain(root, upper, lower)) as server:
        agent = open_agent(ca=root.pem)

        response = agent.request("GET", server.url + "/hello")

    assert response.connection.authorized
    assert response.connection.authorization_error is None
    assert response.connection.peer_certificate.der == leaf.der


# --- reject_unauthorized=False ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_lax_request_tells_what_is_wrong(open_agent, new_server, name):
    """
    With `reject_unauthorized=False` a bad chain serves, marked as unauthorised with Node's code.
    """
    chain = bad_chain(name)
    with new_server(credentials=chain.credentials) as server:
        agent = open_agent(ca=chain.ca, reject_unauthorized=False)

        response = agent.request("GET", server.url + "/hello")

    assert response.content == b"Hello, world"
    assert response.connection.authorized is False
    assert response.connection.authorization_error == chain.code


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["wrong host", "self-signed leaf"])
def test_strict_request_gets_nothing_of_a_lax_one(open_agent, new_server, name, version):
    """
    Neither the socket nor the session of an unauthorised connection serves a strict request.
    """
    chain = bad_chain(name)
    lax = {"reject_unauthorized": False}
    with new_server(credentials=chain.credentials, min_version=version, max_version=version) as server:
        agent = open_agent(ca=chain.ca)
        for _ in range(2):
            assert agent.request("GET", server.url + "/close", options=lax).status == 200
        assert agent.request("GET", server.url + "/hello", options=lax).status == 200

        with pytest.raises(CertificateError) as caught:
            agent.request("GET", server.url + "/hello")

        # What was withheld is there: another lax request takes the idle connection.
        assert agent.request("GET", server.url + "/hello", options=lax).reused

    assert caught.value.code == chain.code
    assert [offers_session(connection) for connection in server.connections] == [False, True, True, False]
    assert [connection.request_count for connection in server.connections] == [1, 1, 2, 0]


def test_lax_request_gets_nothing_of_a_strict_one(open_agent, server):
    """
    A connection of a strict request is not shared with a lax one either: the rule is part of the key.
    """
    agent = open_agent(ca=server.ca_pem)
    agent.request("GET", server.url + "/hello")

    response = agent.request("GET", server.url + "/hello", options={"reject_unauthorized": False})

    assert not response.reused
    assert response.connection.authorized
    assert [offers_session(connection) for connection in server.connections] == [False, False]


@pytest.mark.parametrize("value", [None, 0, "", "false", (), []])
def test_only_false_turns_verification_off(open_agent, server, value):
    """
    What is false without being `False` is refused, in the agent's options and in a request's.
    """
    agent = open_agent()

    with pytest.raises(OptionTypeError):
        type(agent.agent)(reject_unauthorized=value)
    with pytest.raises(OptionTypeError):
        agent.request("GET", server.url + "/hello", options={"reject_unauthorized": value})

    assert server.stats.connections == 0


def test_nodes_environment_variable_changes_nothing(open_agent, server, monkeypatch):
    """
    `NODE_TLS_REJECT_UNAUTHORIZED=0` does not turn verification off.
    """
    monkeypatch.setenv("NODE_TLS_REJECT_UNAUTHORIZED", "0")
    agent = open_agent()

    with pytest.raises(CertificateError):
        agent.request("GET", server.url + "/hello")


# --- The hook ---------------------------------------------------------------------------------------------------------


class Refusal(Exception):
    """What a user's hook may raise."""

    code = "ERR_USERS_OWN"


def raising(_hostname: str, _certificate: Any) -> None:
    raise Refusal("not this one")


def returning(_hostname: str, _certificate: Any) -> Exception:
    return Refusal("not this one")


@pytest.mark.parametrize("hook", [raising, returning])
@pytest.mark.parametrize("version", VERSIONS)
def test_hook_refuses_by_raising_or_returning(open_agent, server, hook, version):
    """
    What the hook raises or returns comes out as the cause of a `CertificateNameError` with its code, and nothing is
    sent, pooled or kept.
    """
    agent = open_agent(ca=server.ca_pem, check_server_identity=hook, max_version=version, min_version=version)

    for _ in range(2):
        with pytest.raises(CertificateNameError) as caught:
            agent.request("GET", server.url + "/hello")

    assert isinstance(caught.value.__cause__, Refusal)
    assert caught.value.code == "ERR_USERS_OWN"
    assert caught.value.phase == "handshake"
    assert server.stats.requests == 0
    assert server.stats.connections == 2
    assert not any(offers_session(connection) for connection in server.connections)
    assert agent.stats().idle == 0


def test_hook_without_a_code_gets_nodes(open_agent, server):
    """
    An exception without a code is reported under the code of a name mismatch.
    """

    def hook(_hostname: str, _certificate: Any) -> None:
        raise ZeroDivisionError("a bug of the user's")

    agent = open_agent(ca=server.ca_pem, check_server_identity=hook)

    with pytest.raises(CertificateNameError) as caught:
        agent.request("GET", server.url + "/hello")

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.code == "ERR_TLS_CERT_ALTNAME_INVALID"


def test_hook_replaces_the_name_check(open_agent, new_server):
    """
    A hook that accepts a certificate for another host is all there is to the name check; it sees name and certificate.
    """
    chain = bad_chain("wrong host")
    seen = []

    def hook(hostname: str, certificate: Any) -> None:
        seen.append((hostname, certificate.der, certificate.subject_alt_names))

    with new_server(credentials=chain.credentials) as server:
        agent = open_agent(ca=chain.ca, check_server_identity=hook)

        response = agent.request("GET", server.url + "/hello")

    names = (("DNS", "other.test"), ("DNS", "*.other.test"))
    assert seen == [("localhost", chain.credentials.leaf_der, names)]
    assert response.connection.authorized


def test_hook_is_not_asked_about_a_bad_chain(open_agent, new_server):
    """
    A chain that does not verify is refused whatever the hook would say.
    """
    chain = bad_chain("self-signed leaf")
    asked = []
    with new_server(credentials=chain.credentials) as server:
        agent = open_agent(ca=chain.ca, check_server_identity=lambda *facts: asked.append(facts))

        with pytest.raises(CertificateError):
            agent.request("GET", server.url + "/hello")

    assert asked == []


def test_lax_request_survives_the_hook(open_agent, server):
    """
    With `reject_unauthorized=False` a refusal of the hook only marks the connection.
    """
    agent = open_agent(ca=server.ca_pem, check_server_identity=raising, reject_unauthorized=False)

    response = agent.request("GET", server.url + "/hello")

    assert response.connection.authorized is False
    assert response.connection.authorization_error == "ERR_USERS_OWN"


@pytest.mark.parametrize("version", VERSIONS)
def test_hook_is_called_for_every_connection(open_agent, server, version):
    """
    The hook is asked once for each connection, resumed or not, and not again for further requests on it.
    """
    calls = []
    agent = open_agent(
        ca=server.ca_pem, min_version=version, max_version=version, check_server_identity=lambda *a: calls.append(a[0])
    )

    for target in ("/close", "/close", "/hello", "/hello"):
        agent.request("GET", server.url + target)

    assert calls == ["localhost"] * 3
    assert [connection.session_reused for connection in server.connections] == [False, True, True]


@pytest.mark.parametrize("version", VERSIONS)
def test_hook_may_refuse_a_resumed_connection(open_agent, server, version):
    """
    A hook that has changed its mind stops a connection whose session the server would resume.
    """
    answers = iter([None, Refusal("revoked meanwhile")])
    agent = open_agent(
        ca=server.ca_pem, min_version=version, max_version=version, check_server_identity=lambda *_: next(answers)
    )
    agent.request("GET", server.url + "/close")

    with pytest.raises(CertificateNameError) as caught:
        agent.request("GET", server.url + "/hello")

    assert isinstance(caught.value.__cause__, Refusal)
    assert [offers_session(connection) for connection in server.connections] == [False, True]
    assert server.stats.requests == 1


# --- Resumed connections ----------------------------------------------------------------------------------------------


class CarelessStore:
    """A user's store that keeps no scopes apart."""

    def __init__(self) -> None:
        self.sessions: list[Any] = []

    def take(self, scope: Any) -> Any:
        return self.sessions[-1] if self.sessions else None

    def put(self, scope: Any, session: Any) -> None:
        self.sessions.append(session)

    def discard(self, scope: Any) -> None:
        self.sessions.clear()


@pytest.mark.parametrize("version", VERSIONS)
def test_session_of_another_name_is_not_offered(open_agent, new_server, version):
    """
    A session made for one host is not offered to another, even if a careless store hands it out for that.
    """
    with new_server(names=("a.test",), min_version=version, max_version=version) as server:
        agent = open_agent(ca=server.ca_pem, host="127.0.0.1", session_store=CarelessStore())
        for _ in range(2):
            agent.request("GET", f"https://a.test:{server.port}/close")

        with pytest.raises(CertificateNameError, match=r"b\.test"):
            agent.request("GET", f"https://b.test:{server.port}/hello")

    assert hello_of(server.connections[2]).server_name == "b.test"
    assert [offers_session(connection) for connection in server.connections] == [False, True, False]
    assert server.stats.requests == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_session_of_a_lax_request_is_not_offered_by_a_strict_one(open_agent, new_server, version):
    """
    The same for a session that was made without verification.
    """
    chain = bad_chain("self-signed leaf")
    with new_server(credentials=chain.credentials, min_version=version, max_version=version) as server:
        agent = open_agent(ca=chain.ca, session_store=CarelessStore())
        for _ in range(2):
            agent.request("GET", server.url + "/close", options={"reject_unauthorized": False})

        with pytest.raises(CertificateError) as caught:
            agent.request("GET", server.url + "/hello")

    assert caught.value.code == chain.code
    assert [offers_session(connection) for connection in server.connections] == [False, True, False]
    assert server.stats.requests == 2


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["wrong host", "self-signed leaf"])
def test_resumed_connection_is_judged_like_the_first(open_agent, new_server, name, version):
    """
    Chain and name are judged on a resumed connection too: it is as unauthorised as the one whose session it took.
    """
    chain = bad_chain(name)
    with new_server(credentials=chain.credentials, min_version=version, max_version=version) as server:
        agent = open_agent(ca=chain.ca, reject_unauthorized=False)

        first, second = (agent.request("GET", server.url + "/close").connection for _ in range(2))

    assert (first.session_reused, second.session_reused) == (False, True)
    assert (second.authorized, second.authorization_error) == (False, chain.code)


@pytest.mark.parametrize("version", VERSIONS)
def test_dates_are_checked_on_a_resumed_connection(open_agent, new_server, version, monkeypatch):
    """
    A certificate that has expired since the full handshake is refused on resumption too.
    """
    root = issue("root", ca=True)
    leaf = issue("localhost", by=root, start=NOW - DAY, end=NOW + datetime.timedelta(minutes=10))
    with new_server(credentials=leaf.with_chain(), min_version=version, max_version=version) as server:
        agent = open_agent(ca=root.pem)
        agent.request("GET", server.url + "/close")
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 1_200)

        with pytest.raises(CertificateError) as caught:
            agent.request("GET", server.url + "/hello")

    assert caught.value.code == "CERT_HAS_EXPIRED"
    assert offers_session(server.connections[1])
    assert server.stats.requests == 1


def test_resumed_connection_knows_its_peer(open_agent, new_server):
    """
    A resumed connection has the certificate and the chain of the full handshake, and is authorised by it.
    """
    root = issue("root", ca=True)
    middle = issue("intermediate", by=root, ca=True)
    leaf = issue("localhost", by=middle)
    with new_server(credentials=leaf.with_chain(middle)) as server:
        agent = open_agent(ca=root.pem)

        first, second = (agent.request("GET", server.url + "/close").connection for _ in range(2))

    assert (first.session_reused, second.session_reused) == (False, True)
    assert second.authorized
    assert [one.der for one in second.peer_chain] == [leaf.der, middle.der]
    assert second.peer_chain == first.peer_chain
