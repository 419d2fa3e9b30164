"""
How long a connection is used, in simulated time: its age, the server's hints, and a machine that slept.
"""

from __future__ import annotations

import random

import pytest

from tlsagent import InactivityTimeout, Timeouts
from tlsagent.testing.simulation import Reply, SimulatedServer, Simulation, silent

URL = "https://a.test/"


def get(sim, url=URL, **arguments):
    handle = sim.request("GET", url, **arguments)
    sim.run_until_idle()
    return handle.response


def hinting(hint):
    return SimulatedServer(lambda request, peer: Reply(headers=[("Keep-Alive", hint)], body=b"ok"))


def ages(sim, chances, lifetime):
    """Return at which age, in seconds, connections opened together took no further request."""
    opened = []
    for number, chance in enumerate(chances):
        sim.chance = chance
        get(sim, f"https://a.test:{1000 + number}/")
        opened.append(sim.now)
    found = [None] * len(opened)
    while None in found:
        sim.advance(0.1)
        for number, age in enumerate(found):
            if age is None and not get(sim, f"https://a.test:{1000 + number}/").reused:
                found[number] = sim.now - opened[number]
        assert sim.now < 2 * lifetime
    return found


# --- max_lifetime -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chance", "age"), [(0.0, 100.0), (0.5, 95.0), (0.999_999, 90.0)])
def test_chance_shortens_the_lifetime_by_a_tenth_at_most(chance, age):
    """
    A connection ends at `max_lifetime` less a part of up to a tenth, which the driver's random number decides.
    """
    sim = Simulation(max_lifetime=100, free_socket_timeout=None)
    sim.chance = chance
    get(sim)

    sim.advance(age - 0.5)
    assert get(sim).reused
    sim.advance(1.0)
    assert not get(sim).reused


def test_connections_opened_together_end_apart():
    """
    Twenty connections of one moment do not end in one moment, and none later than `max_lifetime`.
    """
    sim = Simulation(max_lifetime=50, free_socket_timeout=None)
    rng = random.Random(7)

    found = ages(sim, [rng.random() for _ in range(20)], 50)

    assert all(44.9 <= age <= 50.2 for age in found), found
    assert max(found) - min(found) > 3


def test_same_chances_give_the_same_ends():
    """
    The core itself throws no dice: two simulations with the same numbers are the same.
    """
    chances = [0.1, 0.7, 0.4]
    first, second = (ages(Simulation(max_lifetime=20, free_socket_timeout=None), chances, 20) for _ in range(2))

    assert first == pytest.approx(second)


def test_request_under_way_is_not_cut_by_the_lifetime():
    """
    A connection that comes of age during a request finishes it, and is closed then.
    """
    sim = Simulation(max_lifetime=10, server=SimulatedServer(lambda request, peer: Reply(body=b"ok", delay=30)))

    response = get(sim)

    assert response.content == b"ok"
    assert sim.core.stats().closed == {"max_lifetime": 1}


# --- The server's hints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", ["timeout=5", "max=100, timeout=5", "TIMEOUT=5, MAX=100", "foo, Timeout = 5 , max=1"])
def test_hint_is_heeded_in_any_case_and_order(hint):
    """
    `Keep-Alive: timeout=5` lets a connection idle for five seconds less the margin of one.
    """
    sim = Simulation(server=hinting(hint))
    get(sim)

    sim.advance(3.9)
    assert get(sim).reused
    sim.advance(4.1)
    assert not get(sim).reused


@pytest.mark.parametrize("limit", ["free_socket_timeout", "timeout"])
def test_hint_is_never_longer_than_our_own_limits(limit):
    """
    A server that allows an hour does not stretch our own ten seconds.
    """
    sim = Simulation(server=hinting("timeout=3600"), **{limit: 10})
    get(sim)

    sim.advance(9.9)
    assert get(sim).reused
    sim.advance(10.1)
    assert not get(sim).reused


def test_hint_counts_for_the_last_response_alone():
    """
    A response without a hint takes back that of the one before.
    """
    hints = [("Keep-Alive", "timeout=5")]
    sim = Simulation(server=SimulatedServer(lambda request, peer: Reply(headers=[hints.pop()] if hints else [])))
    get(sim)
    assert get(sim).reused

    sim.advance(30)

    assert get(sim).reused


def test_hint_leaves_the_timers_of_a_request_alone():
    """
    In Node a hint shortens the timeout of the next request on the socket; here the request has its own time.
    """
    replies = [
        Reply(headers=[("Keep-Alive", "timeout=2")], body=b"first"),
        Reply(body=b"second", delay=30),
    ]
    sim = Simulation(server=SimulatedServer(lambda request, peer: replies.pop(0)), timeout=40)
    get(sim)

    response = get(sim)

    assert (response.content, response.reused) == (b"second", True)


def test_inactivity_is_the_agents_own_after_a_hint():
    """
    Silence during a request ends it after `timeout`, whatever the server hinted.
    """
    servers = iter([Reply(headers=[("Keep-Alive", "timeout=1000")])])
    sim = Simulation(
        server=SimulatedServer(lambda request, peer: next(servers, None) or silent(request, peer)), timeout=9
    )
    get(sim)
    handle = sim.request("GET", URL, retry=False)
    sim.advance(8.9)
    assert handle.error is None

    sim.advance(0.2)

    assert isinstance(handle.error, InactivityTimeout)


def test_requests_of_a_connection_are_counted_whatever_their_end():
    """
    After `max_requests_per_socket` requests a connection is closed, and a waiting request gets a new one.
    """
    sim = Simulation(max_sockets=1, max_requests_per_socket=3)
    handles = [sim.request("GET", URL) for _ in range(7)]
    sim.run_until_idle()

    assert [handle.response.request_number for handle in handles] == [1, 2, 3, 1, 2, 3, 1]
    assert sim.core.stats().closed == {"max_requests": 2}


# --- A machine that slept ---------------------------------------------------------------------------------------------


def test_time_asleep_is_time_idle():
    """
    Connections that idled through a night are closed though the monotonic clock stood still.
    """
    sim = Simulation(free_socket_timeout=60)
    get(sim)
    get(sim, "https://b.test/")

    sim.suspend(8 * 3600)

    assert not get(sim).reused
    assert sim.core.stats().closed == {"free_socket_timeout": 2}


def test_short_sleep_costs_nothing():
    """
    What a server would have kept for as long as the machine slept is used on.
    """
    sim = Simulation(free_socket_timeout=60)
    get(sim)

    sim.suspend(30)
    assert get(sim).reused
    sim.advance(20)
    sim.suspend(30)
    assert get(sim).reused
    sim.advance(31)
    sim.suspend(30)
    assert not get(sim).reused


def test_sleep_counts_against_hint_age_and_inactivity():
    """
    Every limit of an idle connection sees the time asleep: the server's hint, `max_lifetime`, `timeout`.
    """
    for options, server, reason in [
        ({}, hinting("timeout=20"), "free_socket_timeout"),
        ({"max_lifetime": 20}, SimulatedServer(), "max_lifetime"),
        ({"timeout": 20}, SimulatedServer(), "timeout"),
    ]:
        sim = Simulation(server=server, **options)
        get(sim)
        sim.suspend(21)

        assert not get(sim).reused, options
        assert sim.core.stats().closed == {reason: 1}


def test_sleep_leaves_a_request_under_way_its_time():
    """
    Nobody worked on a request while the machine slept: its deadlines go by the monotonic clock.
    """
    sim = Simulation(
        server=SimulatedServer(lambda request, peer: Reply(body=b"ok", delay=20 if "slow" in request.target else 0)),
        timeouts=Timeouts(response=30),
    )
    slow = sim.request("GET", "https://a.test/slow")
    sim.advance(5)

    sim.suspend(8 * 3600)
    get(sim, "https://b.test/")
    sim.run_until_idle()

    assert slow.response.content == b"ok"


def test_clock_that_is_set_by_a_little_is_no_sleep():
    """
    A wall clock that is corrected by seconds, or set back, closes nothing; sleep after that is still seen.
    """
    sim = Simulation(free_socket_timeout=60)
    get(sim)
    for step in (4.0, -3600.0):
        sim.suspend(step)
        assert get(sim).reused

    get(sim, "https://b.test/")  # a new connection brings the clocks together
    sim.suspend(120)

    assert not get(sim).reused


def test_session_that_expired_during_sleep_is_not_offered():
    """
    Sessions go by the wall clock: after a long sleep the handshake is a full one.
    """
    sim = Simulation()
    get(sim)
    sim.core.pool.close_idle(sim.now)
    sim.run_until_idle()
    sim.suspend(8 * 24 * 3600)

    response = get(sim)

    assert not response.connection.session_reused
    assert response.connection.why_not_resumed == "no session was at hand"
