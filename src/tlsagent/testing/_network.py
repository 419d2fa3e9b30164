"""
The simulated network: bytes under way, and the links between a client's connection and its peer.

Carries bytes in order and late, in pieces, or not at all, as a test asks for. It has no clock: whoever drives it
says what time it is. What the bytes mean is for the two ends.
"""

from __future__ import annotations

import errno
import math
from collections import Counter, deque
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from tlsagent._connection import Connection
    from tlsagent._dial import Dial
    from tlsagent.testing._peer import Ending, Peer


class Network:
    """
    How names are resolved, connections made and bytes carried. May be changed at any time.

    Attributes:
        latency: Seconds that bytes take, one way.
        lookup, connect: Seconds that these phases take; None: for ever, or until the test ends the `SimulatedDial`.
        piece: Bytes that arrive at once, None for all there are.
        window: Bytes under way to a peer that does not read before the client has to wait.
        unknown: Hosts that have no address.
        refusing: Hosts that refuse connections.
        opened: Connections attempted so far, by (host, port).
        open, most_open: Attempts and connections that there are, and how many there were at most, by (host, port).
        most: How many there were at most in all.
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        lookup: float | None = 0.0,
        connect: float | None = 0.0,
        piece: int | None = None,
        window: int = 65_536,
    ) -> None:
        self.latency = latency
        self.lookup = lookup
        self.connect = connect
        self.piece = piece
        self.window = window
        self.unknown: set[str] = set()
        self.refusing: set[str] = set()
        self.opened: Counter[tuple[str, int]] = Counter()
        self.open: Counter[tuple[str, int]] = Counter()
        self.most_open: dict[tuple[str, int], int] = {}
        self.most = 0

    def count(self, address: tuple[str, int]) -> None:
        """Count one more."""
        self.opened[address] += 1
        self.open[address] += 1
        self.most_open[address] = max(self.most_open.get(address, 0), self.open[address])
        self.most = max(self.most, self.open.total())

    def discount(self, address: tuple[str, int]) -> None:
        """Count one less."""
        self.open[address] -= 1


class Pipe:
    """
    One direction of a connection: what was sent arrives later, in order.

    Attributes:
        held: While True nothing arrives.
        size: Bytes under way.
        breaks_after: After so many more bytes the whole connection ends, by `breaks_how`.
    """

    __slots__ = ("_flight", "_network", "breaks_after", "breaks_how", "ended", "held", "size")

    def __init__(self, network: Network) -> None:
        self._network = network
        self._flight: deque[tuple[float, bytes | Ending]] = deque()
        self.held = False
        self.size = 0
        self.ended = False
        self.breaks_after: int | None = None
        self.breaks_how: Ending = "eof"

    def send(self, data: bytes, now: float) -> None:
        """Send bytes on their way."""
        if data and not self.ended:
            self._flight.append((now + self._network.latency, data))
            self.size += len(data)

    def end(self, ending: Ending, now: float) -> None:
        """Send the end on its way; a reset overtakes and destroys what is under way."""
        if self.ended:
            return
        self.ended = True
        if ending == "reset":
            self._flight.clear()
            self.size = 0
        self._flight.append((now + self._network.latency, ending))

    def next_arrival(self) -> float:
        """Return when the next bytes arrive."""
        return math.inf if self.held or not self._flight else self._flight[0][0]

    def take(self, now: float) -> bytes | Ending | None:
        """Return what arrives by now; None for nothing."""
        if self.breaks_after == 0:
            self.breaks_after = None
            self._flight.clear()
            self.size = 0
            self.ended = True
            return self.breaks_how
        if self.next_arrival() > now:
            return None
        if isinstance(self._flight[0][1], str):
            return cast("Ending", self._flight.popleft()[1])
        limits = (n for n in (self.size, self._network.piece, self.breaks_after) if n is not None)
        data = self._collect(now, min(limits))
        self.size -= len(data)
        if self.breaks_after is not None:
            self.breaks_after -= len(data)
        return data

    def _collect(self, now: float, most: int) -> bytes:
        """Take the bytes that have arrived, up to `most`, which is no more than there are."""
        pieces: list[bytes] = []
        while most > 0 and self._flight[0][0] <= now:
            at, item = self._flight.popleft()
            assert isinstance(item, bytes)
            if len(item) > most:
                self._flight.appendleft((at, item[most:]))
            pieces.append(item[:most])
            most -= len(pieces[-1])
        return b"".join(pieces)


class Link:
    """
    One connection of the simulated network; the client's `connection.transport`.

    Attributes:
        connection, peer: Its ends.
        up, down: Towards the peer, and back.
        closed: Whether the client has closed it.
        dial: Until the handshake is over.
    """

    __slots__ = ("closed", "connection", "dial", "down", "network", "peer", "up")

    def __init__(self, network: Network, connection: Connection, peer: Peer, dial: Dial) -> None:
        self.network = network
        self.connection = connection
        self.peer = peer
        self.dial: Dial | None = dial
        self.up = Pipe(network)
        self.down = Pipe(network)
        self.closed = False

    @property
    def writable(self) -> bool:
        """Whether the network takes more from the client."""
        return self.up.size < self.network.window

    def flush(self, now: float) -> None:
        """Send what the client has to say; that of a shared connection is not even made while the network is full."""
        connection = self.connection
        if connection.shared is None or connection.dead is not None or self.writable:
            self.up.send(connection.data_to_send(), now)

    def close(self, now: float) -> None:
        """Close the client's end."""
        self.flush(now)
        self.closed = True
        self.up.end("eof", now)
        self.network.discount(self.peer.address)

    def carry_up(self, now: float) -> bool:
        """Give the peer what has arrived, and send its answer on its way; returns whether anything moved."""
        peer = self.peer
        peer.handle_timeout(now)
        item = self.up.take(now)
        if isinstance(item, str):
            peer.receive_end(item)
            if self.up.breaks_how == item and not self.closed:
                self.down.end(item, now)
        elif item is not None:
            peer.receive_data(item, now)
            if not self.closed and self.connection.shared is not None:
                self.flush(now)
        self.down.send(peer.data_to_send(), now)
        if peer.ending is not None:
            self.down.end(peer.ending, now)
        return item is not None

    def feed(self, item: bytes | Ending, now: float) -> None:
        """Give the client what has arrived."""
        if isinstance(item, bytes):
            self.connection.receive_data(item, now)
        elif item == "reset":
            self.connection.receive_error(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), now)
        else:
            self.connection.receive_eof(now)

    def drain(self, now: float) -> None:
        """Give the client all that has arrived."""
        while self.connection.dead is None and (item := self.down.take(now)) is not None:
            self.feed(item, now)
