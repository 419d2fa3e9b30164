"""
Attempts in a simulation: each phase takes what the network says, or what a test decides, and ends by itself or by time.
"""

from __future__ import annotations

import pytest

from tlsagent import Timeouts
from tlsagent.errors import AgentClosed, ConnectError, ResolutionError
from tlsagent.events import Connected
from tlsagent.testing.simulation import Network, SimulatedServer, Simulation

URL = "https://a.test/"


def finish(sim):
    handle = sim.request("GET", URL)
    sim.run_until_idle()
    return handle


def test_refusing_and_unknown_hosts():
    """Hosts can refuse connections or have no address, until they do no more."""
    sim = Simulation()
    sim.network.refusing.add("a.test")

    assert isinstance(finish(sim).error, ConnectError)
    sim.network.refusing.clear()
    assert finish(sim).response.status == 200
    assert sim.network.opened[("a.test", 443)] == 2


def test_dials_by_hand():
    """With connect=None the test decides about each attempt."""
    sim = Simulation(network=Network(connect=None), alpn_protocols=("http/1.1",))
    handles = [sim.request("GET", URL) for _ in range(2)]
    sim.run_until_idle()
    first, second = sim.dials
    assert first.address == ("a.test", 443)

    second.accept()
    sim.run_until_idle()
    assert [handle.response.status for handle in handles] == [200, 200]  # whatever comes first serves
    first.refuse()

    assert sim.dials == []
    assert sim.network.open.total() == 1


def test_failing_store_is_the_dial_s_error():
    """What a session store raises when it is asked ends the attempt."""

    class Store:
        def take(self, scope):
            raise RuntimeError("no disk")

        put = discard = take

    sim = Simulation(session_store=Store())

    assert isinstance(finish(sim).error, RuntimeError)
    assert sim.network.open.total() == 0


def test_inactivity_during_the_handshake():
    """`timeout` holds for a silent handshake."""
    sim = Simulation(server=SimulatedServer(stall_at="server_hello"), timeout=2)
    handle = sim.request("GET", URL)

    sim.advance(2.1)

    assert handle.error.code == "ERR_TLSAGENT_INACTIVITY_TIMEOUT"
    assert sim.network.open.total() == 0


def test_attempt_that_a_listener_ends():
    """An attempt that is ended while another is carried on is over: it does not connect in the same step."""
    sim = Simulation(alpn_protocols=("http/1.1",))
    sim.on(Connected, lambda _: [dial.refuse() for dial in list(sim.dials)])
    handles = [sim.request("GET", URL) for _ in range(2)]

    sim.run_until_idle()

    assert [type(handle.error) for handle in handles] == [ConnectError, type(None)]
    assert handles[1].response.status == 200
    assert sim.network.open.total() == len(sim.peers) == 1


def test_on_done_of_a_dial():
    """A driver's own hook of a dial is told the connection or the error."""
    sim = Simulation(network=Network(connect=None))
    told = []
    sim.preconnect(URL, 2)
    sim.run_until_idle()
    first, second = sim.dials
    for attempt in (first, second):
        attempt.dial.on_done = lambda connection, error: told.append((connection, error))

    first.refuse()
    second.accept()
    sim.run_until_idle()

    assert isinstance(told[0][1], ConnectError)
    assert told[1] == (sim.links[0].connection, None)


def test_session_that_is_refused_is_left_out():
    """A handshake that breaks while a session is offered is tried again without it, once."""
    sim = Simulation()
    finish(sim)
    sim.close_idle()
    sim.network.connect = None
    handle = finish(sim)
    sim.dials[0].accept()
    sim.links[0].down.breaks_after = 0
    sim.run_until_idle()
    [dial] = sim.dials
    assert dial.dial.without_session

    dial.accept()
    sim.run_until_idle()

    assert (handle.response.attempts, handle.response.connection.session_reused) == (1, False)


def test_host_without_an_address():
    """A name that the network does not know ends the attempt once the look-up is over, not before."""
    sim = Simulation(network=Network(lookup=2.0))
    sim.network.unknown.add("a.test")
    handle = sim.request("GET", URL)

    sim.advance(1.9)
    assert not handle.done
    sim.advance(0.1)

    assert isinstance(handle.error, ResolutionError)
    assert sim.network.open.total() == 0


@pytest.mark.parametrize(
    ("phase", "network"),
    [("lookup", {"lookup": None}), ("connect", {"connect": None}), ("handshake", {"latency": 9.0})],
)
def test_phase_that_takes_too_long(phase, network):
    """An attempt ends when the phase it is in has taken all the time it may."""
    sim = Simulation(network=Network(**network), timeouts=Timeouts(lookup=1, connect=1, handshake=1))
    handle = sim.request("GET", URL)

    sim.advance(1.5)

    assert handle.error.phase == phase
    assert sim.dials == sim.links == []


@pytest.mark.parametrize("network", [{"lookup": None}, {"connect": None}, {"latency": 9.0}])
def test_attempts_end_with_the_agent(network):
    """Whatever phase it is in, an attempt does not outlive the agent."""
    sim = Simulation(network=Network(**network))
    handle = sim.request("GET", URL)
    sim.advance(0)
    assert len(sim.dials) + len(sim.links) == 1

    sim.destroy()

    assert isinstance(handle.error, AgentClosed)
    assert sim.dials == sim.links == []
    assert sim.network.open.total() == 0
