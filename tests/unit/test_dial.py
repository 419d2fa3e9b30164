"""
A connection attempt as data: phases, deadlines, the facts of its errors.
"""

from __future__ import annotations

import errno
from math import inf

import pytest

from tlsagent import AgentOptions, Timeouts
from tlsagent._core import AgentCore
from tlsagent._dial import Dial
from tlsagent.errors import (
    AgentClosed,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    HandshakeTimeout,
    InactivityTimeout,
    ResolutionTimeout,
)

PLAN = AgentCore(AgentOptions(reject_unauthorized=False)).origin_plan("https://a.test/")


def dial(**timeouts):
    return Dial(PLAN, Timeouts(**{"lookup": 1.0, "connect": 2.0, "handshake": 3.0, **timeouts}))


def test_phases_follow_each_other():
    """Entering a phase ends the one before; each has its deadline and its time."""
    attempt = dial()
    assert (attempt.phase, attempt.deadline, attempt.begun_at) == (None, inf, inf)

    attempt.enter("lookup", 10.0)
    assert (attempt.phase, attempt.deadline) == ("lookup", 11.0)
    attempt.enter("connect", 10.5)
    assert attempt.deadline == 12.5
    attempt.enter("handshake", 11.5)
    assert attempt.deadline == 14.5
    attempt.enter(None, 11.75)

    assert (attempt.phase, attempt.deadline, attempt.begun_at) == (None, inf, 10.0)
    assert attempt.timings == {"lookup": 0.5, "connect": 1.0, "handshake": 0.25}


def test_phase_entered_twice_adds_up():
    """A dial that begins anew keeps the time that it took before."""
    attempt = dial()
    for at in (0.0, 5.0):
        attempt.enter("connect", at)
        attempt.enter("handshake", at + 1.0)
    attempt.enter(None, 8.0)

    assert attempt.timings == {"connect": 2.0, "handshake": 6.0}
    assert attempt.begun_at == 0.0


def test_phase_without_limit():
    """None means no deadline."""
    attempt = dial(connect=None)

    attempt.enter("connect", 0.0)

    assert attempt.deadline == inf


@pytest.mark.parametrize(
    ("phase", "kind", "seconds"),
    [("lookup", ResolutionTimeout, "1 s"), ("connect", ConnectTimeout, "2 s"), ("handshake", HandshakeTimeout, "3 s")],
)
def test_overdue(phase, kind, seconds):
    """A deadline that passed is the error of its phase, which names the option."""
    attempt = dial()
    attempt.enter(phase, 0.0)

    error = attempt.overdue()

    assert type(error) is kind
    assert error.phase == phase
    assert seconds in str(error)
    assert f"timeouts.{phase}" in str(error)


@pytest.mark.parametrize(
    ("connect", "kind"), [(9.0, InactivityTimeout), (None, InactivityTimeout), (1.0, ConnectTimeout)]
)
def test_silence_while_connecting(connect, kind):
    """`timeout` counts while connecting too; of the two limits the nearer one is named. A look-up is no silence."""
    plan = AgentCore(AgentOptions(reject_unauthorized=False, timeout=2)).origin_plan("https://a.test/")
    attempt = Dial(plan, Timeouts(lookup=5.0, connect=connect, handshake=None))
    attempt.enter("lookup", 0.0)
    assert attempt.deadline == 5.0

    attempt.enter("connect", 1.0)

    assert attempt.deadline == 1.0 + min(2.0, connect or inf)
    assert type(attempt.overdue()) is kind
    assert attempt.overdue().phase == "connect"


def test_describe_adds_what_is_missing():
    """Phase and key are added to an error of ours, unless it has them."""
    attempt = dial()
    attempt.enter("connect", 0.0)
    bare, known = ConnectionLost("gone"), ConnectionLost("gone", phase="handshake", key="mine")

    assert attempt.describe(bare) is bare
    assert attempt.describe(known) is known

    assert (bare.phase, bare.key) == ("connect", PLAN.key.digest)
    assert (known.phase, known.key) == ("handshake", "mine")


def test_describe_translates_os_errors():
    """An OS error becomes a ConnectError with the system's code, the original chained."""
    attempt = dial()
    attempt.enter("connect", 0.0)
    cause = OSError(errno.EMFILE, "Too many open files")

    error = attempt.describe(cause)

    assert type(error) is ConnectError
    assert (error.code, error.phase, error.__cause__) == ("EMFILE", "connect", cause)
    assert "EMFILE" in str(error)
    assert "Too many open files" in str(error)


@pytest.mark.parametrize("error", [AgentClosed("closed"), ValueError("a hook of the user's")])
def test_describe_leaves_the_rest_alone(error):
    """What is no error of a request passes through as it is."""
    assert dial().describe(error) is error
