"""
Nothing secret is shown: private keys, passphrases and session tickets stay out of every text that the library makes.

Each test gathers what a user could print, log, pickle or render as a traceback, and looks for each secret in every
spelling that would give it away.
"""

from __future__ import annotations

import base64
import logging
import pickle
import traceback
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from tls_support import VERSIONS, encrypted, tickets_offered

from tlsagent import (
    AgentOptions,
    ConnectionOptions,
    HandshakeError,
    HandshakeTimeout,
    OptionError,
    RequestError,
    Session,
    Timeouts,
    create_secure_context,
    events,
)
from tlsagent._identity import parse_authority, plan_for
from tlsagent._secure_context import context_for
from tlsagent.testing import default_authority

CLIENT = default_authority().issue("client@tlsagent.test", client=True)
RSA_CLIENT = default_authority().issue("rsa@tlsagent.test", client=True, key_type="rsa")
PASSPHRASE = "Tr0ub4dor&3-of-the-test"
LOCKED = encrypted(CLIENT.key_pem, PASSPHRASE)

# --- What must not show -----------------------------------------------------------------------------------------------


def spellings(secret: bytes) -> set[str]:
    """Return the ways in which bytes come into a text."""
    found = {
        secret.decode("latin-1"),
        repr(secret)[2:-1],
        secret.hex(),
        secret.hex().upper(),
        secret.hex(":"),
        base64.b64encode(secret).decode().rstrip("="),
    }
    if len(secret) <= 1_024:  # Python prints no longer numbers
        found.add(str(int.from_bytes(secret, "big")))
    return found


def secrets_of_key(key_pem: bytes) -> list[set[str]]:
    """Return a private key's spellings: the PEM's lines, the DER, the secret number."""
    key: Any = load_pem_private_key(key_pem, None)
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    numbers = key.private_numbers()
    number = numbers.private_value if hasattr(numbers, "private_value") else numbers.d
    lines = {line for line in key_pem.decode().splitlines() if not line.startswith("-----") and len(line) > 20}
    return [lines, spellings(der), {str(number), f"{number:x}", f"{number:X}"}]


KEYS = [*secrets_of_key(CLIENT.key_pem), *secrets_of_key(RSA_CLIENT.key_pem)]
LOCKED_LINES = {line for line in LOCKED.decode().splitlines() if not line.startswith("-----") and len(line) > 20}
PASSPHRASES = [{PASSPHRASE}, spellings(PASSPHRASE.encode()), LOCKED_LINES]


def assert_shows_none(text: str, *groups: set[str]) -> None:
    """Assert that no spelling of any secret is in a text; the message does not repeat the secret."""
    assert text
    for number, group in enumerate(groups):
        found = [spelling for spelling in group if spelling in text]
        assert not found, f"secret {number} shows as {found[0][:6]}... in a text of {len(text)} characters"


def everything_about(error: BaseException) -> str:
    """Return all that can be made of an error: text, repr, attributes, traceback with its causes, pickle."""
    parts = [str(error), repr(error), repr(vars(error)), "".join(traceback.format_exception(error))]
    if isinstance(error, (RequestError, OptionError)):
        parts.append(pickle.dumps(error).decode("latin-1"))
    return "\n".join(parts)


def test_the_search_finds_what_is_there():
    """
    The search itself works: a text that holds a secret in any spelling fails it.
    """
    key: Any = load_pem_private_key(CLIENT.key_pem, None)
    leaks = [CLIENT.key_pem.decode(), repr(CLIENT.key_pem), str(key.private_numbers().private_value)]
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    leaks += [repr(der), der.hex(), base64.b64encode(der).decode(), f"passphrase={PASSPHRASE!r}", repr(LOCKED)]

    for leak in leaks:
        with pytest.raises(AssertionError):
            assert_shows_none(f"something {leak} something", *KEYS, *PASSPHRASES)


# --- Options ----------------------------------------------------------------------------------------------------------

GIVEN: list[dict[str, Any]] = [
    {"cert": CLIENT.cert_pem, "key": CLIENT.key_pem},
    {"cert": RSA_CLIENT.cert_pem, "key": RSA_CLIENT.key_pem},
    {"cert": CLIENT.cert_pem, "key": LOCKED, "passphrase": PASSPHRASE},
    {"cert": CLIENT.cert_pem, "key": [{"pem": LOCKED, "passphrase": PASSPHRASE}]},
    {"key": LOCKED},
    {"passphrase": PASSPHRASE},
]


@pytest.mark.parametrize("given", GIVEN, ids=range(len(GIVEN)))
def test_options_show_no_secret(given):
    """
    Options objects show neither key nor passphrase, nor do the parts they are made of.
    """
    options = ConnectionOptions(**given)
    agent_options = AgentOptions(**given)
    parts: list[Any] = [options, agent_options, options.merged_over(agent_options)]
    parts += [getattr(options, name) for name in options.field_names() if name != "passphrase"]

    text = "\n".join(f"{part!r} {part!s}" for part in parts)

    assert_shows_none(text, *KEYS, *PASSPHRASES)


@pytest.mark.parametrize("given", GIVEN[:4], ids=range(4))
def test_keys_and_contexts_show_no_secret(given):
    """
    Pool keys, session scopes, plans and contexts know a private key by its public half.
    """
    plan = plan_for(parse_authority("a.test"), ConnectionOptions(**given), context_for)
    context = create_secure_context(**given)

    text = "\n".join(
        f"{part!r} {part!s}"
        for part in (plan, plan.key, plan.key.identity, plan.key.digest, plan.scope, plan.origin.context, context)
    )

    assert_shows_none(text, *KEYS, *PASSPHRASES)


BAD: list[dict[str, Any]] = [
    {"cert": CLIENT.cert_pem, "key": LOCKED, "passphrase": PASSPHRASE + "x"},
    {"cert": RSA_CLIENT.cert_pem, "key": LOCKED, "passphrase": PASSPHRASE},
    {"cert": RSA_CLIENT.cert_pem, "key": CLIENT.key_pem},
    {"key": LOCKED[:-60] + b"\n-----END ENCRYPTED PRIVATE KEY-----\n", "passphrase": PASSPHRASE},
    {"key": CLIENT.key_pem[:-40] + b"\n-----END PRIVATE KEY-----\n"},
    {"cert": CLIENT.key_pem},
    {"ca": CLIENT.key_pem},
    {"cert": CLIENT.cert_pem, "key": [{"pem": LOCKED, "passphrase": PASSPHRASE + "x"}]},
    {"key": {"pem": CLIENT.key_pem}, "passphrase": [PASSPHRASE]},
    {"passphrase": PASSPHRASE.encode() + b"\x00", "key": 1},
]


@pytest.mark.parametrize("given", BAD, ids=range(len(BAD)))
def test_refused_options_show_no_secret(given):
    """
    The error for a key, certificate or passphrase that cannot be used does not repeat it, in its causes neither.
    """
    with pytest.raises(OptionError) as caught:
        ConnectionOptions(**given)

    assert_shows_none(everything_about(caught.value), *KEYS, *PASSPHRASES)


def test_missing_passphrase_shows_no_key(open_agent, server):
    """
    The same where a request finds that a key needs a passphrase.
    """
    agent = open_agent(ca=server.ca_pem, cert=CLIENT.cert_pem, key=LOCKED)

    with pytest.raises(OptionError) as caught:
        agent.request("GET", server.url + "/hello")

    assert_shows_none(everything_about(caught.value), *KEYS, *PASSPHRASES)


def test_unknown_option_shows_no_value(open_agent, server):
    """
    A misspelt `passphrase` is named, what was given for it is not.
    """
    agent = open_agent(ca=server.ca_pem)

    with pytest.raises(OptionError) as caught:
        agent.request("GET", server.url + "/hello", options={"pass_phrase": PASSPHRASE, "privat_key": CLIENT.key_pem})

    assert_shows_none(everything_about(caught.value), *KEYS, *PASSPHRASES)


# --- An agent at work -------------------------------------------------------------------------------------------------


class Recorder(logging.Handler):
    """All that is logged, arguments formatted, tracebacks included."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record) + repr(record.args))


@pytest.fixture
def recorder():
    """Record what the library and asyncio log, at every level."""
    handler = Recorder()
    loggers = [logging.getLogger(name) for name in ("tlsagent", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


class KeepingStore:
    """A user's store; it fails to keep every third session, so that a failure is logged."""

    def __init__(self) -> None:
        self.kept: list[Session] = []
        self.puts = 0

    def take(self, scope: Any) -> Session | None:
        return self.kept.pop() if self.kept else None

    def put(self, scope: Any, session: Session) -> None:
        self.puts += 1
        if self.puts % 3 == 0:
            raise RuntimeError("the store is full")
        self.kept.append(session)

    def discard(self, scope: Any) -> None:
        self.kept.clear()


@pytest.mark.parametrize("version", VERSIONS)
def test_agent_at_work_shows_no_secret(open_agent, new_server, recorder, version):
    """
    Responses, connections, events, counters, sessions and the log of an agent that shakes hands, resumes and fails show
    no key, passphrase or ticket.
    """
    told: list[Any] = []
    shown: list[Any] = []
    failures: list[BaseException] = []
    tickets: list[bytes] = []
    with new_server(request_cert="demand", min_version=version, max_version=version) as server:
        agent = open_agent(
            ca=server.ca_pem, cert=CLIENT.cert_pem, key=LOCKED, passphrase=PASSPHRASE, session_store=KeepingStore()
        )
        agent.agent.on(events.Event, told.append)
        for _ in range(3):
            response = agent.request("GET", server.url + "/close", trace=told.append)
            shown += [response, response.connection, response.timings, response.headers]
        for settings in ({"stall_at": "server_hello"}, {"stall_at": None, "credentials": RSA_CLIENT}):
            server.reconfigure(**settings)
            with pytest.raises((HandshakeError, HandshakeTimeout)) as caught:
                agent.request("GET", server.url + "/close", timeouts=Timeouts(handshake=0.3))
            failures.append(caught.value)
        for connection in server.connections:
            tickets += tickets_offered(connection)
        shown += [agent.agent, agent.agent.options, agent.stats(), agent.agent._core.store]

    sessions = [event.session for event in told if isinstance(event, events.SessionTicket)]
    assert sessions
    assert len(tickets) >= 2 or version == "TLSv1.2"
    pieces = [session.to_bytes() for session in sessions]
    hidden = [spellings(ticket) for ticket in tickets]
    hidden += [spellings(piece) for piece in pieces]
    text = "\n".join(
        [
            *(f"{thing!r} {thing!s}" for thing in (*told, *shown, *sessions)),
            *map(everything_about, failures),
            *recorder.lines,
        ]
    )
    assert_shows_none(text, *KEYS, *PASSPHRASES, *hidden)


@pytest.mark.parametrize("version", VERSIONS)
def test_ticket_and_master_secret_stay_inside(open_agent, new_server, version):
    """
    Session and event show what a session is for and until when; not the ticket, not the master secret.
    """
    told: list[Any] = []
    with new_server(min_version=version, max_version=version) as server:
        agent = open_agent(ca=server.ca_pem)
        agent.agent.on(events.SessionTicket, told.append)
        agent.request("GET", server.url + "/close")

    [event, *_] = told
    data = event.session.to_bytes()
    # Windows of eight bytes: any piece of the encoding that got into a text would be found. What is plain text in it is
    # no secret: names.
    windows = {data[at : at + 8] for at in range(len(data) - 8)}
    windows = {window for window in windows if not (window.isascii() and window.decode().isprintable())}
    text = f"{event!r} {event!s} {event.session!r} {event.session!s}"

    assert version in text
    assert not [window for window in windows if window.hex() in text or repr(window)[2:-1] in text]
    assert not [window for window in windows if window.decode("latin-1") in text]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"x" + data, lambda data: data[:60] + b"\xff" * 8 + data[68:]]
)
def test_damaged_session_is_not_quoted(open_agent, server, damage):
    """
    The error for bytes that are no session does not repeat them, in its causes neither.
    """
    told: list[Any] = []
    agent = open_agent(ca=server.ca_pem)
    agent.agent.on(events.SessionTicket, told.append)
    agent.request("GET", server.url + "/close")
    data = told[0].session.to_bytes()

    try:
        Session.from_bytes(damage(data))
    except OptionError as error:
        windows = [{spelling} for at in range(100, 300, 8) for spelling in spellings(data[at : at + 8])]
        assert_shows_none(everything_about(error), *windows)


def test_failed_request_with_secrets_in_it(open_agent, server):
    """
    An error names neither the target's query, nor headers, nor the body: they are the caller's secrets.
    """
    agent = open_agent(ca=server.ca_pem)
    secret = "s3cr3t-of-the-caller"

    with pytest.raises(RequestError) as caught:
        agent.request(
            "POST",
            f"{server.url}/delay/30?token={secret}",
            headers={"authorization": f"Bearer {secret}", "cookie": secret},
            content=secret,
            timeouts=Timeouts(response=0.2),
        )

    assert_shows_none(everything_about(caught.value), {secret})
