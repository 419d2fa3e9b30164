"""
The core for people who write their own driver: what is exported suffices.
"""

from __future__ import annotations

import time

import tlsagent.sansio as sansio
from tlsagent import AgentOptions
from tlsagent.sansio import AgentCore, Close, Connect, Grant, Lease, Refuse, Response
from tlsagent.testing.simulation import Peer, SimulatedServer


def test_exports():
    """Everything named in `__all__` is there, and nothing private."""
    assert sorted(sansio.__all__) == sorted(set(sansio.__all__))
    for name in sansio.__all__:
        assert not name.startswith("_")
        assert getattr(sansio, name).__doc__ or name == "PIECE"


def exchange_bytes(connection, peer):
    """Carry bytes between the two until both are silent."""
    while (up := connection.data_to_send()) or (down := peer.data_to_send()):
        if up:
            peer.receive_data(up, 0.0)
        else:
            connection.receive_data(down, 0.0)


def test_driver_in_a_few_lines():
    """The steps of the module's docstring carry two requests over one connection, and refuse a third after close."""
    server = SimulatedServer()
    core = AgentCore(AgentOptions(ca=server.ca_pem))
    peers = {}

    def perform(target):
        exchange = core.exchange(
            "GET",
            f"https://a.test{target}",
            0.0,
            headers=None,
            content=None,
            options=None,
            timeouts=None,
            trailers=None,
            retry=False,
            trace=None,
        )
        if not isinstance(core.acquire(exchange, 0.0), Lease):
            carry_out()
        connection = exchange.lease.connection
        core.start(exchange, 0.0)
        core.watch(connection)
        exchange_bytes(connection, peers[connection])
        core.keep_sessions(connection, exchange)
        core.settle(connection, 0.0)
        assert exchange.ready
        return Response(exchange)

    def carry_out():
        while effects := core.effects():
            for effect in effects:
                match effect:
                    case Connect():
                        dial = effect.attempt.user
                        connection = core.open(dial, 0.0, time.time())
                        peers[connection] = Peer(server, 1, ("a.test", 443))
                        exchange_bytes(connection, peers[connection])
                        core.connected(dial, connection, 0.0)
                    case Grant():
                        effect.ticket.user.lease = effect.lease
                    case Refuse():
                        effect.ticket.user.fail(effect.error, 0.0)
                    case Close():
                        core.closed(effect.connection, effect.reason)
                        effect.connection.close(effect.reason)
                        exchange_bytes(effect.connection, peers[effect.connection])

    first, second = perform("/1"), perform("/2")

    assert (first.content, second.content) == (b"GET /1\n", b"GET /2\n")
    assert (first.reused, second.reused) == (False, True)
    core.pool.close(0.0)
    carry_out()
    [peer] = peers.values()
    assert peer.client_ended == "close_notify"
    assert core.living() == []
