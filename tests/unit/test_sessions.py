from __future__ import annotations

import contextlib
import random
import sys
import threading
import time

import pytest
from tls_peer import connect, pki, server_context

from tlsagent._material import binding
from tlsagent._material.session import _facts
from tlsagent._tls.certificates import PeerCertificate
from tlsagent._tls.sessions import LONGEST_LIFETIME, MemorySessionStore, Session
from tlsagent.errors import OptionError, OptionTypeError


def made(version="TLSv1.3", **options):
    return connect(server=server_context(pki().behind, version=version), **options).sink.sessions[0]


class FakeSession:
    """All that a store looks at."""

    def __init__(self, name, version="TLSv1.3"):
        self.name = name
        self.protocol_version = version


# --- Session -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_facts(version):
    """
    A session knows its version and when it expires: the server's hint counted from when it came.
    """
    session = made(version)

    assert session.protocol_version == version
    assert session.expires_at == pytest.approx(time.time() + 7200, abs=5)
    assert session.max_early_data == 0
    assert session.resumable
    assert session.peer_chain == (pki().behind.der, pki().intermediate.der)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_bytes_round_trip(version):
    """
    A session restored from its bytes knows the same facts and gives the same bytes.
    """
    root = PeerCertificate(pki().root.der).public_key_digest
    session = made(version, trust=b"trust", pins=(root,))
    assert (session.verified_name, session.trust) == ("a.test", b"trust")
    assert root in session.verified_keys

    restored = Session.from_bytes(bytearray(session.to_bytes()))

    assert restored.to_bytes() == session.to_bytes()
    for fact in (
        "protocol_version", "expires_at", "max_early_data", "peer_chain", "resumable", "verified_name", "trust",
        "verified_keys",
    ):  # fmt: skip
        assert getattr(restored, fact) == getattr(session, fact)


def test_every_shortened_form_is_refused():
    """
    Bytes that were cut off anywhere are junk, except where a certificate of the chain ends.
    """
    data = made().to_bytes()
    accepted = 0
    for size in range(0, len(data), 3):
        with contextlib.suppress(OptionError):
            Session.from_bytes(data[:size])
            accepted += 1
    assert accepted <= 2


JUNK = [b"", b"junk", b"0", b"tlsagent-session\x01", b"tlsagent-session\x01\0\0\0\0", b"tlsagent-session\x02\0\0\0\0"]


@pytest.mark.parametrize("junk", JUNK)
def test_junk_is_refused(junk):
    """
    Anything that to_bytes did not return is an OptionError, and leaves nothing in OpenSSL's error queue.
    """
    binding.clear_errors()
    with pytest.raises(OptionError):
        Session.from_bytes(junk)
    assert binding.take_faults() == []


def test_bytes_behind_the_session_are_refused():
    """
    A session with something behind its encoding is not what to_bytes returned.
    """
    data = binding.session_to_der(made().handle)
    assert binding.session_from_der(data) is not None
    assert binding.session_from_der(data + b"\0") is None


def test_too_many_certificates_are_refused():
    """
    The chain of a restored session is bounded.
    """
    with pytest.raises(OptionError):
        Session.from_bytes(made().to_bytes() + b"\0\0\0\x01x" * 200)


def test_damaged_bytes_never_crash():
    """
    Bytes with flipped bits give a session that a handshake copes with, or an OptionError.
    """
    chance = random.Random(7)
    server = server_context(pki().behind)
    data = connect(server=server).sink.sessions[0].to_bytes()
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(20, len(data))] ^= 1 << chance.randrange(8)
        try:
            session = Session.from_bytes(damaged)
        except OptionError:
            continue
        assert isinstance(session.expires_at, float)
        repr(session)


def test_wrong_type_is_refused():
    """
    A session is restored from bytes only.
    """
    with pytest.raises(OptionTypeError):
        Session.from_bytes("text")


def test_repr_shows_no_secret():
    """
    The repr names version and expiry, no byte of ticket or key.
    """
    session = made()
    assert repr(session) == f"<Session TLSv1.3 expires_at={session.expires_at:.0f}>"


def der(tag, *parts):
    body = b"".join(parts)
    size = len(body)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + body


def encoding(*, version, timeout, hint=None, session_id=b"", ticket=b""):
    """A session as ssl_asn1.c lays it out."""
    number = lambda value: der(2, value.to_bytes(5, "big"))  # noqa: E731
    fields = [der(0xA1, number(1_000_000)), der(0xA2, number(timeout))]
    if hint is not None:
        fields.append(der(0xA9, number(hint)))
    if ticket:
        fields.append(der(0xAA, der(4, ticket)))
    plain = [number(1), number(version), der(4, b"\x13\x01"), der(4, session_id), der(4, b"k" * 48)]
    return der(0x30, *plain, *fields)


@pytest.mark.parametrize(
    ("fields", "lifetime"),
    [
        ({"version": 0x0304, "timeout": LONGEST_LIFETIME, "hint": 300}, 300),
        ({"version": 0x0304, "timeout": LONGEST_LIFETIME, "hint": 99_999_999}, LONGEST_LIFETIME),
        ({"version": 0x0304, "timeout": LONGEST_LIFETIME}, 0),
        ({"version": 0x0304, "timeout": 60, "hint": 300}, 60),
        ({"version": 0x0303, "timeout": LONGEST_LIFETIME, "hint": 86_400}, 86_400),
        ({"version": 0x0303, "timeout": LONGEST_LIFETIME}, 7200),
    ],
)
def test_lifetime(fields, lifetime):
    """
    The server's hint counts, a week at most; a TLS 1.3 ticket without one is to be dropped at once (RFC 8446 4.6.1).
    """
    assert _facts(encoding(**fields)).lifetime == lifetime


@pytest.mark.parametrize(
    ("fields", "resumable"), [({}, False), ({"session_id": b"i" * 32}, True), ({"ticket": b"t" * 200}, True)]
)
def test_resumable(fields, resumable):
    """
    A session needs an id or a ticket by which its server knows it.
    """
    assert _facts(encoding(version=0x0303, timeout=10, **fields)).resumable is resumable


# --- MemorySessionStore ------------------------------------------------------------------------------------------


def test_tls13_sessions_are_taken_once_newest_first():
    """
    Each TLS 1.3 session is given out once, the newest first (RFC 8446 C.4).
    """
    store = MemorySessionStore()
    old, new = FakeSession("old"), FakeSession("new")
    store.put("scope", old)
    store.put("scope", new)

    assert [store.take("scope") for _ in range(3)] == [new, old, None]
    assert len(store) == 0


def test_tls12_sessions_stay():
    """
    A TLS 1.2 session serves again and again, the newest one.
    """
    store = MemorySessionStore()
    old, new = FakeSession("old", "TLSv1.2"), FakeSession("new", "TLSv1.2")
    store.put("scope", old)
    store.put("scope", new)

    assert [store.take("scope") for _ in range(3)] == [new, new, new]
    assert len(store) == 2


def test_scopes_are_separate():
    """
    What was put under one scope never comes out under another.
    """
    store = MemorySessionStore()
    store.put(("a", 1), FakeSession("a"))

    assert store.take(("a", 2)) is None
    assert store.take(("a", 1)).name == "a"


def test_oldest_session_of_a_scope_gives_way():
    """
    A scope keeps no more than max_per_scope sessions, the newest ones.
    """
    store = MemorySessionStore(max_per_scope=2)
    for name in "abc":
        store.put("scope", FakeSession(name))

    assert len(store) == 2
    assert [store.take("scope").name for _ in range(2)] == ["c", "b"]


def test_scope_not_used_for_longest_gives_way():
    """
    Beyond max_scopes the scope that was not used for longest is forgotten; taking and putting are both uses.
    """
    store = MemorySessionStore(max_scopes=2)
    for scope in "ab":
        store.put(scope, FakeSession(scope, "TLSv1.2"))
    store.take("a")
    store.put("c", FakeSession("c"))

    assert store.take("b") is None
    assert store.take("a").name == "a"
    assert store.take("c").name == "c"


def test_discard_forgets_a_scope():
    """
    Discarding a scope forgets its sessions and no others; an unknown scope is fine.
    """
    store = MemorySessionStore()
    store.put("a", FakeSession("a"))
    store.put("b", FakeSession("b"))
    store.discard("a")
    store.discard("never seen")

    assert store.take("a") is None
    assert len(store) == 1


def test_threads_may_share_a_store():
    """
    However threads interleave, a TLS 1.3 session is given out once, and the bounds hold.
    """
    store = MemorySessionStore(max_scopes=2, max_per_scope=3)
    taken, failures = [], []

    def work(number):
        try:
            for turn in range(500):
                store.put(turn % 3, FakeSession((number, turn)))
                taken.append(store.take((turn + number) % 3))
        except Exception as exc:
            failures.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    names = [session.name for session in taken if session is not None]
    assert failures == []
    assert len(names) == len(set(names))
    assert names


@pytest.mark.parametrize("limits", [(0, 1), (1, 0), (-1, 8), ("8", 1), (1, None), (1.5, 1), (True, 1)])
def test_bounds_are_checked(limits):
    """
    A store that could keep nothing, or is not told how much in whole numbers, is refused.
    """
    with pytest.raises(OptionError, match="max_"):
        MemorySessionStore(*limits)
