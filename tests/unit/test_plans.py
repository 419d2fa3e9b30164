"""Plans: a URL and options lead to one plan, made once; what cannot be requested is refused before any I/O."""

from __future__ import annotations

import warnings

import pytest
from tls_peer import connect

from tlsagent import AgentOptions, ConnectionOptions, ServerOptionWarning
from tlsagent._plans import Plans
from tlsagent.errors import LocalProtocolError, OptionError, OptionTypeError
from tlsagent.testing import Authority

URL = "https://a.test/"


def plans(**said):
    return Plans(AgentOptions(**said))


def plan(subject, url=URL, options=None):
    return subject.plan_and_target(url, options)[0]


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://a.test", "/", b"a.test"),
        ("https://a.test/", "/", b"a.test"),
        ("https://a.test?q=1", "/?q=1", b"a.test"),
        ("https://a.test#f", "/", b"a.test"),
        ("https://a.test/p/q?x=/y#f?g", "/p/q?x=/y", b"a.test"),
        ("HTTPS://A.test:8443/", "/", b"a.test:8443"),
        ("https://a.test:443/", "/", b"a.test"),
        ("https://[::1]:8443/", "/", b"[::1]:8443"),
    ],
)
def test_url(url, target, authority):
    """A URL gives authority and target; the fragment stays with the caller."""
    made, rest = plans().plan_and_target(url, None)

    assert (rest, made.key.origin.authority) == (target, authority)


@pytest.mark.parametrize("url", ["http://a.test/", "ws://a.test/", "a.test", "", "https:/a.test/", "https:a.test"])
def test_url_that_is_none_of_ours(url):
    """An HTTPS agent speaks nothing else."""
    with pytest.raises(LocalProtocolError, match="https://") as caught:
        plan(plans(), url)
    assert caught.value.code == "ERR_INVALID_PROTOCOL"


@pytest.mark.parametrize("url", ["https:///", "https://u:p@a.test/", "https://a.test:0/", "https://a.test:x/"])
def test_url_without_a_usable_host(url):
    """No host, userinfo or a bad port: refused before any I/O."""
    with pytest.raises(LocalProtocolError) as caught:
        plan(plans(), url)
    assert caught.value.code == "ERR_INVALID_URL"


def test_plans_are_made_once():
    """Requests to one origin share a plan, whatever their path, and so do equal options."""
    subject = plans()
    options = {"servername": "b.test"}

    assert plan(subject) is plan(subject, URL + "path")
    special = [
        plan(subject, options=value)
        for value in (options, dict(options), ConnectionOptions(**options), ConnectionOptions(**options))
    ]
    assert len(set(map(id, special))) == 1
    assert special[0].key != plan(subject).key


def test_options_that_cannot_be_hashed():
    """A mapping that holds a list is converted each time, to the same effect."""
    subject = plans()

    first, second = (plan(subject, options={"alpn_protocols": ["http/1.1"]}) for _ in range(2))

    assert first is second
    with pytest.raises(OptionError):
        plan(subject, options={"no_such_option": 1})


@pytest.mark.parametrize("wrapped", [lambda path: path, lambda path: (path,)])
def test_replaced_files_take_effect_in_mappings(tmp_path, wrapped):
    """A mapping that names a file means what the file holds at each request, not what it once held."""
    subject = plans()
    file = tmp_path / "ca.pem"
    options = {"ca": wrapped(file)}
    file.write_bytes(Authority().ca_pem)
    before = [plan(subject, options=options) for _ in range(2)]

    file.write_bytes(Authority().ca_pem)

    assert before[0] is before[1]
    assert plan(subject, options=options).key != before[0].key


def test_memory_of_plans_is_bounded(monkeypatch):
    """The oldest plan is forgotten beyond the limit, and made again."""
    monkeypatch.setattr("tlsagent._plans._MAX_PLANS", 2)
    subject = plans()
    first = [plan(subject, f"https://{host}.test/path") for host in "abc"]

    again = [plan(subject, f"https://{host}.test/path") for host in "bca"]

    assert again[:2] == first[1:]
    assert again[2] is not first[0]
    assert again[2].key == first[0].key


@pytest.mark.parametrize("options", [AgentOptions(max_sockets=1), "servername", 7])
def test_options_that_are_none_of_a_request(options):
    """What an agent says has no effect on one request, and what is no options at all is refused."""
    with pytest.raises(OptionTypeError, match="must be ConnectionOptions"):
        plan(plans(), options=options)


def test_server_options_warn_once():
    """Options that only a server heeds are warned of when they are first used, however often that is."""
    subject = plans()

    with pytest.warns(ServerOptionWarning):
        plan(subject, options={"request_cert": True})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(subject, "https://b.test/", {"request_cert": True})


def test_plan_without_http():
    """A connection that carries no HTTP offers HTTP/1.1 alone, unless somebody says what to offer."""
    subject = plans(servername="a.test")

    silent = subject.raw_plan("elsewhere.test", 443, ConnectionOptions(), None)
    said = subject.raw_plan("a.test", 443, ConnectionOptions(), {"alpn_protocols": ("h2",), "servername": "b.test"})

    assert (silent.key.identity.alpn_protocols, silent.key.identity.verified_name) == (("http/1.1",), "a.test")
    assert (said.key.identity.alpn_protocols, said.key.identity.verified_name) == (("h2",), "b.test")


def test_sessions_of_the_parent_are_forgotten():
    """After a fork no plan offers the session that its options brought."""
    session = connect().sink.sessions[0]
    subject = plans()
    told, kept = (plan(subject, options={"session": session, "servername": name}) for name in ("a.test", "b.test"))
    assert told.take_session() == session

    subject.forked()

    assert kept.take_session() is None
