"""
From an attempt of the pool's to a connection, in a simulation: look up, connect, shake hands, or fail on the way.

The `Network` says how long each phase takes and who cannot be reached; with None a test decides, by `SimulatedDial`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tlsagent._exchange import closed_error
from tlsagent.errors import ConnectError, ResolutionError
from tlsagent.events import Connected, ConnectFailed, Connecting
from tlsagent.testing._network import Link
from tlsagent.testing._peer import Peer

if TYPE_CHECKING:
    from tlsagent._dial import Dial
    from tlsagent.testing.simulation import Simulation


class SimulatedDial:
    """
    A connection attempt before there is a connection.

    Attributes:
        dial: The core's.
        address: Whom it is for.
        due: When its present phase ends by itself.
    """

    __slots__ = ("_dialling", "address", "dial", "due")

    def __init__(self, dialling: Dialling, dial: Dial) -> None:
        self._dialling = dialling
        self.dial = dial
        self.address = (dial.plan.key.route.host, dial.plan.key.route.port)
        self.due = math.inf

    def enter(self, phase: Any, seconds: float | None, now: float) -> None:
        """Begin a phase."""
        self.dial.enter(phase, now)
        self.due = math.inf if seconds is None else now + seconds

    def accept(self) -> None:
        """Let the peer accept the connection."""
        self._dialling.open(self)

    def refuse(self) -> None:
        """Let the peer refuse the connection."""
        host, port = self.address
        self._dialling.fail(self, ConnectError(f"connect ECONNREFUSED {host}:{port}", code="ECONNREFUSED"))


class Dialling:
    """
    All attempts of a simulation.

    Attributes:
        dials: Those before there is a connection; the others are links whose `dial` is not None.
    """

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self.dials: list[SimulatedDial] = []

    def begin(self, dial: Dial) -> None:
        """Begin an attempt of the pool's."""
        sim, attempt = self._sim, SimulatedDial(self, dial)
        self.dials.append(attempt)
        sim.network.count(attempt.address)
        if sim.core.listening():
            sim.core.emit(Connecting(dial.plan.key.digest, *attempt.address))
        attempt.enter("lookup", sim.network.lookup, sim.now)

    def next_due(self) -> float:
        """Return when a phase ends by itself."""
        return min((attempt.due for attempt in self.dials), default=math.inf)

    def carry_on(self) -> bool:
        """Carry the attempts whose present phase is over into the next; returns whether there were any."""
        due = [attempt for attempt in self.dials if attempt.due <= self._sim.now]
        for attempt in due:
            if attempt in self.dials:  # it may have failed with one before it
                self._enter_next(attempt)
        return bool(due)

    def _enter_next(self, attempt: SimulatedDial) -> None:
        sim, host = self._sim, attempt.address[0]
        if attempt.dial.phase == "lookup":
            if host in sim.network.unknown:
                self.fail(attempt, ResolutionError(f"getaddrinfo ENOTFOUND {host}", code="ENOTFOUND"))
            else:
                attempt.enter("connect", sim.network.connect, sim.now)
        elif host in sim.network.refusing:
            attempt.refuse()
        else:
            attempt.accept()

    def open(self, attempt: SimulatedDial) -> None:
        """Go on to the handshake."""
        sim, dial = self._sim, attempt.dial
        self.dials.remove(attempt)
        if sim.core.listening():
            sim.core.emit(Connected(dial.plan.key.digest, attempt.address))
        addresses = (("127.0.0.1", 49_152 + len(sim.peers)), attempt.address)
        try:
            connection = sim.core.open(dial, sim.now, sim.wall + sim.now, chance=sim.chance, addresses=addresses)
        except Exception as error:  # noqa: BLE001 - what a session store raised becomes the request's error
            sim.network.discount(attempt.address)
            self._report_failure(dial, error)
            return
        peer = Peer(sim.server, len(sim.peers) + 1, attempt.address)
        sim.peers.append(peer)
        link = connection.transport = Link(sim.network, connection, peer, dial)
        sim.links.append(link)
        link.flush(sim.now)

    def fail(self, attempt: SimulatedDial, error: BaseException) -> None:
        """End an attempt before there is a connection."""
        self.dials.remove(attempt)
        self._sim.network.discount(attempt.address)
        self._report_failure(attempt.dial, error)

    def handshake_over(self, link: Link, dial: Dial) -> None:
        """Give a secured connection to the pool; one whose handshake failed ends its attempt."""
        link.dial = None
        sim, connection = self._sim, link.connection
        error = connection.handshake_error
        if error is not None:
            self._handshake_failed(link, dial, error)
            return
        sim.core.tell_secured(connection)
        sim.core.connected(dial, connection, sim.now)
        sim._carry_out()
        if dial.on_done is not None:
            dial.on_done(connection, None)

    def _handshake_failed(self, link: Link, dial: Dial, error: BaseException) -> None:
        link.dial = None
        link.connection.abort("handshake")
        self._sim._shut(link.connection, "handshake")
        if self._sim.core.may_dial_again(dial, link.connection):
            self.begin(dial)
        else:
            self._report_failure(dial, error)

    def _report_failure(self, dial: Dial, error: BaseException) -> None:
        sim = self._sim
        error = dial.describe(error)
        sim.core.dial_failed(dial, error, sim.now)
        if sim.core.listening():
            sim.core.emit(ConnectFailed(dial.plan.key.digest, error))
        sim._carry_out()
        if dial.on_done is not None:
            dial.on_done(None, error)

    def next_deadline(self) -> float:
        """Return when `time_out` has something to do."""
        times = [attempt.dial.deadline for attempt in self.dials]
        for link in self._sim.links:
            if link.dial is not None:
                times += (link.dial.deadline, link.connection.next_deadline())
        return min(times, default=math.inf)

    def time_out(self) -> None:
        """End the attempts that are overdue, and tell the connections in their handshake what time it is."""
        sim = self._sim
        for attempt in [attempt for attempt in self.dials if attempt.dial.deadline <= sim.now]:
            self.fail(attempt, attempt.dial.overdue())
        for link in list(sim.links):
            if link.dial is None:
                continue
            if link.dial.deadline <= sim.now:
                self._handshake_failed(link, link.dial, link.dial.overdue())
            elif link.connection.next_deadline() <= sim.now:
                link.connection.handle_timeout(sim.now)
                sim._advance(link)

    def give_up(self) -> None:
        """End all attempts, since the agent is closed."""
        for attempt in list(self.dials):
            self.fail(attempt, closed_error())
        for link in list(self._sim.links):
            if link.dial is not None:
                self._handshake_failed(link, link.dial, closed_error())
