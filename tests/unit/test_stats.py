"""
What an agent counts, by key and in all, of the living and the dead.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import tlsagent
from tlsagent import AgentStats, Counters, Timeouts, events
from tlsagent._stats import Tally
from tlsagent.testing.simulation import Reply, SimulatedServer, Simulation


def request(sim, url="https://a.test/", **arguments):
    handle = sim.request("GET", url, **arguments)
    sim.run_until_idle()
    return handle


def totals(stats):
    return {name: getattr(stats, name) for name in Counters.__slots__}


def test_nothing_yet():
    """An agent that did nothing has counted nothing."""
    assert totals(Simulation().stats()) == totals(Counters())


def test_counts_of_an_agent_s_life():
    """Connections, requests, handshakes, sessions and bytes are counted while connections live and after they went."""
    sim = Simulation()
    request(sim)
    request(sim)
    living = sim.stats()
    assert (living.opened, living.idle, living.requests, living.reused) == (1, 1, 2, 1)
    assert (living.handshakes_full, living.handshakes_resumed) == (1, 0)
    assert (living.sessions_stored, living.sessions_taken, living.closed) == (2, 0, {})
    sim.close_idle()
    request(sim)

    stats = sim.stats()

    assert (stats.opened, stats.idle, stats.active, stats.requests, stats.reused) == (2, 1, 0, 3, 1)
    assert (stats.handshakes_full, stats.handshakes_resumed, stats.early_data_accepted) == (1, 1, 0)
    assert (stats.sessions_stored, stats.sessions_taken, stats.closed) == (3, 1, {"close_idle": 1})
    assert stats.bytes_sent > living.bytes_sent > 1_000
    assert stats.bytes_received > living.bytes_received > 1_000


def test_by_key():
    """Each key has its own counters; their sum is the total."""
    sim = Simulation(max_sockets=1, server=SimulatedServer(lambda r, p: Reply(delay=5)))
    for host in ("a", "a", "b"):
        sim.request("GET", f"https://{host}.test/")
    sim.advance(0)
    sim.network.connect = None
    sim.request("GET", "https://c.test/")
    sim.advance(1)

    stats = sim.stats()

    found = {key[0]: (c.active, c.idle, c.dialling, c.waiting, c.requests) for key, c in stats.by_key.items()}
    assert found == {"a": (1, 0, 0, 1, 1), "b": (1, 0, 0, 0, 1), "c": (0, 0, 1, 1, 0)}
    for name in ("active", "dialling", "waiting", "requests", "opened", "bytes_sent"):
        assert getattr(stats, name) == sum(getattr(counters, name) for counters in stats.by_key.values())


def test_snapshot_stays_as_it_is():
    """What was returned does not change later."""
    sim = Simulation()
    request(sim)
    before = sim.stats()
    kept = totals(before)

    request(sim)
    sim.close_idle()

    assert totals(before) == kept


def test_failed_handshake_opens_and_closes_nothing():
    """Only connections whose handshake was completed count as opened and closed; their bytes count."""
    sim = Simulation()

    request(sim, "https://elsewhere.test/")

    stats = sim.stats()
    assert (stats.opened, stats.closed, stats.handshakes_full, stats.requests) == (0, {}, 0, 0)
    assert stats.bytes_sent > 0


def test_retry_counts_as_a_request():
    """A request that was sent twice is two requests."""
    sim = Simulation(server=SimulatedServer(lambda r, p: Reply() if len(p.requests) < 2 else p.drop()))
    request(sim)

    assert request(sim).response.attempts == 2

    assert (sim.stats().requests, sim.stats().reused) == (3, 1)


def test_forgotten_keys_stay_in_the_totals(monkeypatch):
    """Beyond the limit the least recently used keys are only in the totals; their last reason is forgotten too."""
    monkeypatch.setattr("tlsagent._stats._MAX_KEYS", 2)
    sim = Simulation()
    for host in "abca":
        request(sim, f"https://{host}.test/")
        sim.close_idle()

    stats = sim.stats()

    assert sorted(key[0] for key in stats.by_key) == ["a", "c"]
    assert (stats.opened, stats.requests, stats.closed) == (4, 4, {"close_idle": 4})
    assert stats.by_key[next(key for key in stats.by_key if key[0] == "a")].opened == 1
    assert "first connection" in request(sim, "https://b.test/").response.why_not_reused


def test_connection_is_counted_out_once():
    """A second farewell changes nothing, nor one of a stranger."""
    sim = Simulation()
    request(sim)
    [link] = sim.links
    sim.close_idle()

    assert sim.core.closed(link.connection, "again") is False
    assert Tally().closed(link.connection, "stranger") is False
    assert sim.stats().closed == {"close_idle": 1}


def test_add():
    """Counters add up, reasons by name."""
    first = Counters(opened=1, closed={"a": 1, "b": 2}, bytes_sent=5)

    first.add(AgentStats(opened=2, closed={"b": 1, "c": 4}, bytes_received=7))

    assert (first.opened, first.closed) == (3, {"a": 1, "b": 3, "c": 4})
    assert (first.bytes_sent, first.bytes_received) == (5, 7)


@pytest.mark.parametrize(("timeouts", "reason"), [(Timeouts(response=1), "timeout"), (None, "agent_closed")])
def test_reasons(timeouts, reason):
    """Each connection that went has one reason."""
    sim = Simulation(server=SimulatedServer(lambda r, p: None), timeouts=timeouts)
    request(sim)
    sim.advance(1)
    sim.close(drain=0)

    assert sim.stats().closed == {reason: 1}


ENDINGS = frozenset(
    {"abort", "close", "connection_lost", "drain", "drop", "fail", "hang_up", "release", "retire", "shut",
     "_drop", "_evict", "_fail", "_shut", "_start_draining"}
)  # fmt: skip
SAYING_WHY = frozenset({"refuses", "_why_not_reusable", "close_idle"})


def words(node):
    return {
        one.value
        for one in ast.walk(node)
        if isinstance(one, ast.Constant) and isinstance(one.value, str) and re.fullmatch("[a-z_]+", one.value)
    }


def reasons(tree):
    """Return the words that stand where a connection is given a reason to end."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ENDINGS:
                given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "reason")]
                found |= set().union(*map(words, given))
        elif isinstance(node, ast.FunctionDef) and node.name in SAYING_WHY:
            returned = [one for one in ast.walk(node) if isinstance(one, ast.Return)]
            found |= set().union(*map(words, [*returned, *node.args.defaults]))
    return found


def test_every_reason_is_explained():
    """
    The page of `events.Closed` has each word that `stats().closed` may count.
    """
    package = Path(tlsagent.__file__).parent
    rooms = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in {"testing", "node"}]

    found = set().union(*(reasons(ast.parse(path.read_text())) for path in rooms))

    assert {"goaway", "make_room", "close_idle", "dropped", "agent_closed"} <= found
    page = inspect.getdoc(events.Closed)
    assert [
        word for word in sorted(found | {"peer", "lost", "unsolicited_data"}) if not re.search(rf"\b{word}\b", page)
    ] == []
