"""
Pooling scenarios that were observed on a real Node, replayed: `tests/vectors/pooling.json` through `tests.pooling`.
"""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # the checkout: `python -m tests.pooling` runs from there too
from tests.pooling.replay import Verdict, load, replay  # noqa: E402
from tests.pooling.rules import MISSING, RULES, Case, Difference, broken, differences, explained  # noqa: E402

VECTORS = ROOT / "tests" / "vectors" / "pooling.json"
CONTENT = load(VECTORS)
SCENARIOS: dict[str, dict[str, Any]] = {scenario["id"]: scenario for scenario in CONTENT["scenarios"]}


def play(*scenarios: dict[str, Any]) -> list[Verdict]:
    return asyncio.run(replay({"meta": CONTENT["meta"], "scenarios": scenarios}))


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {verdict.id: verdict for verdict in play(*SCENARIOS.values())}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_goes_as_in_node_or_differs_as_meant(verdicts, name):
    """
    What was observed on Node holds here, or a rule says why not.
    """
    assert verdicts[name].failures == []


def test_nothing_is_left_uncaught(verdicts):
    """
    No scenario leaves an exception to the event loop.
    """
    assert verdicts.keys() == SCENARIOS.keys()


# What is done instead where Node is not to be mirrored. `do_not_mirror` would let any difference pass.
INSTEAD = {
    "maxfree-zero": {"final.free": 0, "final.total": 0},
    "total2-two-origins": {"max_concurrent_all": 2},
    "total1-idle-blocks-other-origin": {"snapshots.1 B waits.pending": 0, "max_concurrent_all": "as in Node"},
    "total1-pending-other-origin": {"max_concurrent_all": 1},
    "ka-timeout-2-no-agent-timeout": {"requests.r2.conn": 2},
    "ka-max-first": {"final.free": 0},
    "ka-upper": {"final.free": 0},
    "ka-hint-shrinks-active-timeout": {"requests.r2.timeout_events": MISSING},
    "agent-timeout-active": {"requests.r1.error.code": "ERR_TLSAGENT_INACTIVITY_TIMEOUT"},
    "destroy-active-and-pending": {
        "requests.r1.error.code": "ERR_TLSAGENT_CLOSED",
        "requests.r2.error.code": "ERR_TLSAGENT_CLOSED",
        "requests.r3.error.code": "ERR_TLSAGENT_CLOSED",
        "servers.A.order": ["r1"],
    },
    "alpn-shared": {"requests.r2.result": "error", "servers.A.conns.1.requests": ["r1"]},
    "alpn-h2-negotiated": {"requests.r1.error.code": "ERR_HTTP2_SESSION_ERROR", "servers.A.order": []},
    "alpn-h2-only-server": {"requests.r1.result": "ok", "servers.A.order": ["r1"]},
    "agent-options-win": {"servers.A.conns.1.sni": "b.test"},
    "session-cache-order": {"requests.r5.session_reused": True},
    "session-after-refused": {"requests.r3.session_reused": True, "snapshots.1 after.sessions": 1},
    "servername-empty-shares-key": {"servers.A.conns.2.sni": None, "servers.A.connections": 2},
    "lookup-shared": {"requests.r2.error.code": "ECONNREFUSED"},
    "secure-context-shared": {"requests.r2.error.code": "UNABLE_TO_VERIFY_LEAF_SIGNATURE"},
    "secure-context-resume": {"requests.r2.error.code": "UNABLE_TO_VERIFY_LEAF_SIGNATURE"},
    "handshake-stall": {"requests.r1.result": "error"},
    "handshake-stall-agent-timeout": {"requests.r1.result": "error"},
}


@pytest.mark.parametrize("name", INSTEAD)
def test_where_node_is_not_mirrored_the_better_thing_happens(verdicts, name):
    """
    A wart of Node's is not merely avoided: what happens instead is what was decided.
    """
    here = {".".join(one.path): one.here for one in verdicts[name].differences}
    assert {path: here.get(path, "as in Node") for path in INSTEAD[name]} == INSTEAD[name]


def test_every_wart_that_node_still_has_is_in_the_table():
    """
    No scenario is excused by `do_not_mirror` alone.
    """
    warts = {
        name
        for name, scenario in SCENARIOS.items()
        if (wart := scenario.get("do_not_mirror")) and (isinstance(wart, str) or wart["in"] == "all")
    }
    assert warts == INSTEAD.keys()


# --- The replay finds what is wrong -----------------------------------------------------------------------------------

# Each turns the agent of a scenario into one that does something else; the observation stays that of the right one.
DEFECTS = {
    "lifo": {"scheduling": "fifo"},
    "max2-6req": {"maxSockets": 3},
    "max1-5req-no-keepalive": {"keepAlive": True},
    "seq3-keepalive": {"keepAlive": False},
    "max-per-name": {"maxSockets": 2},
    "session-seq-13": {"maxCachedSessions": 0},
    "session-disabled": {"maxCachedSessions": 100},
    "agent-timeout-free": {"timeout": 60_000},
    "ca-different": {"keepAlive": False},
    "wrong-name": {"rejectUnauthorized": False},
}


@pytest.mark.parametrize("name", DEFECTS)
def test_an_agent_that_behaves_otherwise_is_found_out(name):
    """
    A scenario fails if pooling, limits, sessions, timers or verification work otherwise than observed.
    """
    scenario = copy.deepcopy(SCENARIOS[name])
    scenario["agent"] |= DEFECTS[name]
    assert [verdict.status for verdict in play(scenario)] == ["fail"]


def test_a_limit_that_is_exceeded_is_excused_by_nothing():
    """
    More connections than maxTotalSockets allows fail a scenario that Node itself fails.
    """
    scenario = SCENARIOS["total2-two-origins"]
    case = Case(scenario, scenario["observed"])
    assert differences(scenario, scenario["observed"]) == []
    assert broken(case) == ["3 connections were open at once, maxTotalSockets is 2"]


def test_what_only_an_old_node_does_wrong_excuses_nothing():
    """
    `do_not_mirror` with "v20" is no excuse: Node 26 is right there.
    """
    scenario = SCENARIOS["pfx-objects"]
    here = copy.deepcopy(scenario["observed"])
    here["requests"]["r2"]["reused_socket"] = True
    found = explained(Case(scenario, here), differences(scenario, here))
    assert found == [Difference(("requests", "r2", "reused_socket"), False, True)]


@pytest.mark.parametrize(("here", "meant"), [("ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION", True), ("ECONNRESET", False)])
def test_the_reason_of_an_alert_stands_for_eproto(here, meant):
    """
    Node 26.7.0 says EPROTO of a refused protocol version; the reason is as good, another error is not.
    """
    scenario = copy.deepcopy(SCENARIOS["wrong-name"])
    seen = copy.deepcopy(scenario["observed"])
    scenario["observed"]["requests"]["r1"]["error"]["code"] = "EPROTO"
    seen["requests"]["r1"]["error"]["code"] = here
    case = Case(scenario, seen)
    [found] = explained(case, differences(scenario, seen))
    assert (found.explained_by is not None) is meant


def test_a_rule_counts_only_while_the_tables_say_so():
    """
    A rule that rests on a line of SUPPORT goes when the line says something else.
    """
    rule = next(rule for rule in RULES if rule.source == "SUPPORT timeout")
    assert rule.holds
    assert not type(rule)(rule.source, rule.why, rule.explains, ("timeout", "is ignored")).holds


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"servers": {"A": {"nosuch": 1}}}, "a server with nosuch"),
        ({"steps": [{"op": "nosuch"}]}, "the step 'nosuch'"),
        ({"steps": [{"op": "run"}]}, "the step 'run'"),
        ({"steps": [{"op": "start", "id": "r1", "nosuch": 1}]}, "a step with nosuch"),
        ({"agent": {"ca": {"$file": "nosuch"}}}, "a file 'nosuch' that meta.files does not have"),
    ],
)
def test_what_the_replay_does_not_know_fails_by_name(change, named):
    """
    A scenario with anything unknown fails, says what it was, and leaves the others alone.
    """
    odd, sound = play({**SCENARIOS["seq3-keepalive"], **change, "id": "odd"}, SCENARIOS["seq3-keepalive"])

    assert (odd.status, odd.failures) == ("fail", [f"the replay does not know {named}"])
    assert sound.status == "pass"


def test_from_the_command_line(tmp_path):
    """
    `python -m tests.pooling FILE --json OUT` writes the verdicts; its exit status is 1 if anything failed.
    """
    chosen = [SCENARIOS["seq3-keepalive"], SCENARIOS["tls-options"]]
    wrong = copy.deepcopy(SCENARIOS["lifo-two-at-once"])
    wrong["observed"]["requests"]["r1"]["conn"] = 1
    file, out = tmp_path / "some.json", tmp_path / "out.json"
    file.write_text(json.dumps({"meta": CONTENT["meta"], "scenarios": [*chosen, wrong]}))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.pooling", file, "--json", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    report = json.loads(out.read_text())
    assert ran.returncode == 1, ran.stderr
    assert [one["status"] for one in report["scenarios"]] == ["pass", "explained", "fail"]
    assert report["scenarios"][1]["explanations"] == [
        "section c, needless splitting: options that say the default share with silent ones"
    ]
    assert report["scenarios"][2]["failures"] == ["requests.r1.conn: Node 1, here 3"]
