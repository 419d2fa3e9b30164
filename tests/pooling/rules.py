"""
What of a difference from Node is meant: a table of rules about options and situations, never about one scenario.

A rule explains a difference if its situation is there and the difference is of a shape that the situation can cause.
Its source is a row of section h of the notes on Node ("fix rather than mirror"), another section of them where Node's
own bookkeeping is what differs, a line of `SUPPORT` (which must say the words that the rule counts on), or the contract
of the public face. `do_not_mirror` of a scenario comes last: it explains what no rule does, if it holds for Node 26.

Before any of this `broken` looks for what nothing excuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from tlsagent._identity import KEY_TABLE
from tlsagent.node import SUPPORT

TOLERANCE: Final = 100
"""Milliseconds by which times may differ: the file's are rounded to 50 and have an error of 50."""


class Missing:
    def __repr__(self) -> str:
        return "-"


MISSING: Final = Missing()
Path = tuple[str, ...]


# --- Differences ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One fact on which Node and this library differ."""

    path: Path
    node: Any
    here: Any
    explained_by: str | None = None

    @property
    def request(self) -> str | None:
        """The request it is about, if it is about one."""
        return self.path[1] if self.path[0] == "requests" else None

    @property
    def shape(self) -> str:
        """What kind of fact it is; of a request that ended otherwise, and of a connection that only one has, all."""
        head, last = self.path[0], self.path[-1]
        absent = self.node is MISSING or self.here is MISSING
        if head in ("snapshots", "final"):
            return last if last in ("pending", "sessions") else "count"
        if last in _SHAPES and not (
            absent and head == "requests" and last not in ("timeout_events", "first_timeout_ms")
        ):
            return "server" if absent and head == "servers" and last != "tls_errors" else _SHAPES[last]
        return "outcome" if head == "requests" else "server"


_SHAPES: Final = {
    "conn": "connection",
    "nth_on_conn": "connection",
    "reused_socket": "connection",
    "session_reused": "resumption",
    "resumed": "resumption",
    "elapsed_ms": "elapsed",
    "timeout_events": "timeout",
    "first_timeout_ms": "timeout",
    "alpn": "alpn",
    "sni": "sni",
    "tls_errors": "tls_errors",
}
# What follows when requests come to share other connections than in Node, or connections live longer or shorter.
SHARING: Final = frozenset({"connection", "resumption", "server", "count", "sessions", "sni", "alpn", "elapsed"})


def differences(scenario: Mapping[str, Any], here: Mapping[str, Any]) -> list[Difference]:
    """Return on what the two differ; texts of errors and, unless the scenario is about time, times are left out."""
    timing = bool(scenario.get("timing"))
    node_facts, our_facts = dict(_facts(scenario["observed"])), dict(_facts(here))
    found = []
    for path in dict.fromkeys([*node_facts, *our_facts]):
        theirs, ours = node_facts.get(path, MISSING), our_facts.get(path, MISSING)
        if not _same(path, theirs, ours, timing):
            found.append(Difference(path, theirs, ours))
    return found


def _facts(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _facts(item, (*path, str(name)))
    elif isinstance(value, list) and path[-1:] == ("conns",):
        for item in value:
            yield from _facts({k: v for k, v in item.items() if k != "conn"}, (*path, str(item["conn"])))
    elif path == ("snapshots",):
        for at, item in enumerate(value):
            yield from _facts({k: v for k, v in item.items() if k != "label"}, (*path, f"{at} {item['label']}"))
    elif path[:1] not in (("uncaught",), ("pending_ms",)):
        yield path, value


def _same(path: Path, theirs: Any, ours: Any, timing: bool) -> bool:
    if path[-1] == "message" or (path[-1] == "elapsed_ms" and not timing):
        return True
    if path[-1] in ("elapsed_ms", "first_timeout_ms") and isinstance(theirs, int) and isinstance(ours, int):
        return abs(theirs - ours) <= TOLERANCE
    return bool(theirs == ours)


# --- A scenario as the rules look at it -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A scenario, and what was observed here."""

    scenario: Mapping[str, Any]
    here: Mapping[str, Any]
    failures: list[str] = field(default_factory=list)

    @cached_property
    def agent(self) -> Mapping[str, Any]:
        return dict(self.scenario["agent"])

    @cached_property
    def node(self) -> Mapping[str, Any]:
        return dict(self.scenario["observed"])

    @cached_property
    def starts(self) -> dict[str, Mapping[str, Any]]:
        return {step["id"]: step for step in self.scenario["steps"] if step["op"] == "start"}

    def options(self, request: str) -> Mapping[str, Any]:
        """What the scenario says for one request alone."""
        return dict(self.starts.get(request, {}).get("options", {}))

    def query(self, request: str) -> Mapping[str, str]:
        return dict(self.starts.get(request, {}).get("query", {}))

    def did(self, op: str) -> list[Mapping[str, Any]]:
        return [step for step in self.scenario["steps"] if step["op"] == op]

    def code(self, request: str | None) -> str | None:
        """Our error code of a request."""
        seen = self.here["requests"].get(request, {})
        told = seen.get("error") or seen.get("thrown")
        return told["code"] if told else None

    def result(self, request: str) -> str | None:
        """How a request ended here."""
        result: str | None = self.here["requests"].get(request, {}).get("result")
        return result

    def served_twice(self, request: str) -> bool:
        return any(server["order"].count(request) > 1 for server in self.here["servers"].values())

    @cached_property
    def origins(self) -> set[tuple[str, str]]:
        """Names, as far as the scenario says what they differ in."""
        return {
            (step.get("origin", "A"), repr(sorted(step.get("options", {}).items(), key=str)))
            for step in self.starts.values()
        }

    def timeout_of(self, request: str) -> int | None:
        return self.options(request).get("timeout", self.agent.get("timeout"))


@dataclass(frozen=True)
class Rule:
    """
    One meant difference.

    Attributes:
        source: Where it is decided.
        why: What is done here instead.
        explains: Whether it explains a difference.
        says: A line of `SUPPORT` or of the table of the pool key, and words it must contain.
    """

    source: str
    why: str
    explains: Callable[[Case, Difference], bool]
    says: tuple[str, str] | None = None

    @property
    def holds(self) -> bool:
        """Whether the library's own tables say what the rule counts on."""
        if self.says is None:
            return True
        name, words = self.says
        return words in (SUPPORT[name].why if name in SUPPORT else KEY_TABLE[name].why)

    def __str__(self) -> str:
        return f"{self.source}: {self.why}"


# --- Timeouts ---------------------------------------------------------------------------------------------------------

_TIMED_OUT: Final = (
    "ERR_TLSAGENT_INACTIVITY_TIMEOUT",
    "ERR_TLSAGENT_HANDSHAKE_TIMEOUT",
    "ERR_TLSAGENT_CONNECT_TIMEOUT",
)


def _timeout_is_an_error(case: Case, difference: Difference) -> bool:
    timed_out = [name for name in case.starts if case.code(name) in _TIMED_OUT and case.timeout_of(name)]
    if difference.request is not None and difference.shape in ("outcome", "elapsed"):
        return difference.request in timed_out
    return bool(timed_out) and difference.shape in SHARING


def _late_by_one_period(case: Case, difference: Difference) -> bool:
    name = difference.request
    told = difference.path[-1] in ("first_timeout_ms", "elapsed_ms")
    if name is None or not told or MISSING in (difference.node, difference.here):
        return False
    limit = case.timeout_of(name) or 0
    in_time = abs(difference.here - limit) <= TOLERANCE and abs(difference.node - 2 * limit) <= TOLERANCE
    return in_time and any(server.get("raw") for server in case.scenario["servers"].values())


def _hint_shrinks_timer(case: Case, difference: Difference) -> bool:
    hinted = any("ka" in case.query(name) for name in case.starts)
    return hinted and difference.shape == "timeout" and difference.here is MISSING


# --- Keeping connections ----------------------------------------------------------------------------------------------


def _retried(case: Case, difference: Difference) -> bool:
    repeated = [name for name in case.starts if case.served_twice(name)]
    if difference.request is not None and difference.shape == "outcome":
        return difference.request in repeated
    return bool(repeated) and difference.shape in SHARING


def _hint_unseen_by_node(case: Case, difference: Difference) -> bool:
    hints = [case.query(name)["ka"] for name in case.starts if "ka" in case.query(name)]
    unseen = [hint for hint in hints if not hint.startswith("timeout=") or not case.agent.get("timeout")]
    return bool(unseen) and difference.shape in SHARING


def _no_free_sockets(case: Case, difference: Difference) -> bool:
    return case.agent.get("maxFreeSockets") == 0 and difference.shape in SHARING


def _answered_early(case: Case, difference: Difference) -> bool:
    early = any("early" in case.query(name) and "body_slow" in step for name, step in case.starts.items())
    return early and difference.shape in SHARING


def _surplus(case: Case, difference: Difference) -> bool:
    return bool(case.agent.get("maxFreeSockets")) and difference.shape in ("connection", "server")


def _total_limit(case: Case, difference: Difference) -> bool:
    limited = "maxTotalSockets" in case.agent and len(case.origins) > 1
    return limited and difference.shape in {*SHARING, "pending"}


def _destroyed(case: Case, difference: Difference) -> bool:
    closed = [name for name in case.starts if case.code(name) == "ERR_TLSAGENT_CLOSED"]
    if not case.did("destroy_agent") or not closed:
        return False
    return difference.request in closed if difference.request else difference.shape in {*SHARING, "pending"}


def _aborted_in_queue(case: Case, difference: Difference) -> bool:
    if difference.shape != "pending" or difference.node is MISSING or difference.here is MISSING:
        return False
    return 0 < difference.node - difference.here <= len(case.did("abort"))


def _thrown_leaves_a_name(case: Case, difference: Difference) -> bool:
    thrown = [name for name, seen in case.node["requests"].items() if seen.get("result") == "thrown"]
    if difference.path[-1] != "names" or MISSING in (difference.node, difference.here):
        return False
    return 0 < difference.node - difference.here <= len(thrown)


def _unread_holds_nothing(case: Case, difference: Difference) -> bool:
    unread = [name for name, step in case.starts.items() if step.get("no_read")]
    if difference.request is not None and difference.shape == "outcome":
        return (
            difference.request not in unread
            and case.node["requests"].get(difference.request, {}).get("result") == "pending"
        )
    return bool(unread) and difference.shape in {*SHARING, "pending"}


def _idle_but_unused(case: Case, difference: Difference) -> bool:
    if difference.path[-1] != "reused_socket" or difference.node is not True or difference.here is not False:
        return False
    return case.here["requests"][difference.path[1]].get("nth_on_conn") == 1 and bool(case.did("abort"))


# --- What is shared ---------------------------------------------------------------------------------------------------

_DEFAULTS: Final = {
    "minVersion": "TLSv1.2",
    "maxVersion": "TLSv1.3",
    "secureOptions": 0,
    "rejectUnauthorized": True,
    "ecdhCurve": "auto",
}
_SPLIT_IN_VAIN: Final = frozenset({"honorCipherOrder", "dhparam"})
_NOT_IN_NODES_KEY: Final = frozenset(
    {
        "secureContext", "allowPartialTrustChain", "ALPNProtocols", "lookup", "minDHSize", "pskCallback", "localPort",
        "requestOCSP",
    }
)  # fmt: skip


def _defaults_spelt_out(case: Case, difference: Difference) -> bool:
    spelt = any(
        name in _SPLIT_IN_VAIN or (name in _DEFAULTS and value == _DEFAULTS[name])
        for request in case.starts
        for name, value in case.options(request).items()
    )
    permuted = len({tuple(_ca_names(case.options(name).get("ca"))) for name in case.starts}) > len(
        {frozenset(_ca_names(case.options(name).get("ca"))) for name in case.starts}
    )
    return (spelt or permuted) and difference.shape in SHARING


def _ca_names(ca: Any) -> list[str]:
    items = ca if isinstance(ca, list) else [ca]
    return [str(item.get("$file", item)).removesuffix("buf") if isinstance(item, dict) else str(item) for item in items]


def _not_in_nodes_key(case: Case, difference: Difference) -> bool:
    told = {
        name: {k: v for k, v in case.options(name).items() if k in _NOT_IN_NODES_KEY or (k, v) == ("servername", "")}
        for name in case.starts
    }
    if len(set(map(repr, told.values()))) < 2:
        return False
    if difference.shape == "outcome":  # it went elsewhere, or was verified by others: it may fail
        return bool(told.get(difference.path[1])) and case.result(difference.path[1]) == "error"
    return difference.shape in {*SHARING, "tls_errors"}


def _own_check(case: Case, difference: Difference) -> bool:
    own = any("checkServerIdentity" in case.options(name) for name in case.starts)
    nodes = any(case.options(name).get("checkServerIdentity") == {"$check": "default"} for name in case.starts)
    stays_open = difference.path[-1] in ("max_concurrent", "max_concurrent_all")
    return own and (difference.shape in ("count", "sessions") or stays_open or (nodes and difference.shape in SHARING))


def _request_over_agent(case: Case, difference: Difference) -> bool:
    contested = [name for name in case.starts if case.agent.keys() & case.options(name).keys() - {"timeout"}]
    if difference.shape == "outcome":
        return difference.request in contested
    return bool(contested) and difference.shape in {*SHARING, "tls_errors"}


def _host_header(case: Case, difference: Difference) -> bool:
    given = [r for r in case.starts if any(name.lower() == "host" for name in case.options(r).get("headers", {}))]
    if difference.shape == "outcome":
        return difference.request in given
    return bool(given) and difference.shape in {*SHARING, "tls_errors"}


# --- Sessions and verification ----------------------------------------------------------------------------------------


def _session_kept(case: Case, difference: Difference) -> bool:
    """Node resumed nothing where we do: its cache evicts on errors, and first in first out."""
    if MISSING in (difference.node, difference.here):
        return False
    lost = any(seen.get("result") in ("error", "response error") for seen in case.node["requests"].values())
    kept = case.agent.get("maxCachedSessions", 100)
    if not kept or not (lost or len(case.origins) > kept):
        return False
    if difference.shape == "resumption":
        return difference.here is True
    return difference.shape == "sessions" and bool(difference.here > difference.node)


def _ticket_used_once(case: Case, difference: Difference) -> bool:
    """Node resumed where we do not: it offers one ticket of TLS 1.3 many times."""
    crowded = any(server["max_concurrent"] > 2 for server in case.node["servers"].values())
    return crowded and difference.shape in ("resumption", "sessions") and difference.here in (False, 0)


def _resumed_by_another_way(case: Case, difference: Difference) -> bool:
    ways = {repr([case.options(r).get(name) for name in ("family", "localAddress", "localPort")]) for r in case.starts}
    if len(ways) < 2 or difference.shape not in ("resumption", "sessions", "sni"):
        return False
    return difference.shape != "resumption" or difference.here is True


def _unauthorized_stays_so(case: Case, difference: Difference) -> bool:
    told = difference.path[-1]
    if told == "authorized":
        return difference.node is True and difference.here is False
    return told == "authorization_error" and difference.node is None and isinstance(difference.here, str)


def _stricter_names(case: Case, difference: Difference) -> bool:
    own = any(server.keys() & {"cert", "sni"} for server in case.scenario["servers"].values())
    refused = [name for name in case.starts if case.code(name) == "ERR_TLS_CERT_ALTNAME_INVALID"]
    concerned = difference.request is None or difference.request in refused
    return own and bool(refused) and concerned and difference.shape in {*SHARING, "outcome", "tls_errors"}


def _refused_in_the_handshake(case: Case, difference: Difference) -> bool:
    refused = [name for name, seen in case.node["requests"].items() if seen.get("result") == "error"]
    in_both = [name for name in refused if case.result(name) == "error"]
    counts = difference.path[-1] in ("tls_errors", "connections", "max_concurrent", "max_concurrent_all")
    return bool(in_both) and (counts or difference.path[2:3] == ("conns",)) and _no_request_in(case, difference)


def _reason_in_place_of_errno(case: Case, difference: Difference) -> bool:
    """Node says EPROTO of an alert that came while a request waited to be written."""
    told = difference.request is not None and difference.path[-1] == "code" and difference.node == "EPROTO"
    return told and str(difference.here).startswith("ERR_SSL_")


def _no_request_in(case: Case, difference: Difference) -> bool:
    """Whether a connection that only one of the two has carried no request."""
    if difference.path[2:3] != ("conns",):
        return True
    conns = [
        conn for seen in (case.node, case.here) for conn in seen["servers"].get(difference.path[1], {}).get("conns", ())
    ]
    return any(str(conn["conn"]) == difference.path[3] and not conn["requests"] for conn in conns)


# --- ALPN, refused options --------------------------------------------------------------------------------------------


def _alpn_heeded(case: Case, difference: Difference) -> bool:
    heeded = [
        name
        for name in case.starts
        if case.code(name) in ("ERR_TLSAGENT_ALPN", "ERR_HTTP2_SESSION_ERROR")
        or case.here["requests"][name].get("alpn") == "h2"
    ]
    if difference.request is not None:
        return difference.request in heeded
    return bool(heeded) and difference.shape in SHARING


def _alpn_by_default(case: Case, difference: Difference) -> bool:
    offers = any("ALPNProtocols" in server for server in case.scenario["servers"].values())
    return offers and difference.shape == "alpn" and difference.here in ("h2", "http/1.1")


def _option_refused(case: Case, difference: Difference) -> bool:
    refused = [name for name, seen in case.here["requests"].items() if seen.get("result") == "thrown"]
    if case.here.get("agent_refused"):
        return _careless(case.agent)
    excused = [name for name in refused if _careless(case.options(name))]
    if difference.request is not None:
        return difference.request in excused
    return bool(excused) and difference.shape in {*SHARING, "pending"}


def _careless(options: Mapping[str, Any]) -> bool:
    """Whether there is anything among the options that `SUPPORT` or section h says is refused."""
    counts = ("maxSockets", "maxTotalSockets", "maxFreeSockets")
    return any(
        (name in SUPPORT and (SUPPORT[name].state == "refused" or "refused" in SUPPORT[name].why))
        or (name in counts and not (isinstance(value, int) and value > 0))
        for name, value in options.items()
    )


RULES: Final = (
    Rule(
        "SUPPORT timeout", "an active request fails with a timeout, where Node only emits an event",
        _timeout_is_an_error, ("timeout", "fails with InactivityTimeout"),
    ),
    Rule("section g", "no timeout comes one period late because a write is queued", _late_by_one_period),
    Rule("section h, Keep-Alive hint", "a hint does not shorten the timer of the next request", _hint_shrinks_timer),
    Rule("section h, Keep-Alive hint", "heeded without agent.timeout, in any place and case", _hint_unseen_by_node),
    Rule("section h, no retry on a stale socket", "a safe request is sent once more", _retried),
    Rule(
        "SUPPORT keepAlive", "a response that ends before its request ends the connection",
        _answered_early, ("keepAlive", "a response that ends before its request"),
    ),
    Rule(
        "SUPPORT maxFreeSockets", "0 keeps no idle connection",
        _no_free_sockets, ("maxFreeSockets", "0 keeps none"),
    ),
    Rule(
        "SUPPORT maxFreeSockets", "of the surplus the oldest idle connection is closed, not the one that comes",
        _surplus, ("maxFreeSockets", "oldest"),
    ),
    Rule(
        "section h, maxTotalSockets", "never exceeded; first come first served over names; idle ones give way",
        _total_limit,
    ),
    Rule(
        "section h, destroy()", "ends active and queued requests with AgentClosed", _destroyed,
    ),
    Rule("section d.9", "an aborted request leaves the queue at once, and is not counted", _aborted_in_queue),
    Rule("section d.2", "options that are refused leave no empty name behind", _thrown_leaves_a_name),
    Rule("section d.3", "a body that has arrived holds no connection, read or not", _unread_holds_nothing),
    Rule("api.md, reused", "a connection that served no request yet is not reused", _idle_but_unused),
    Rule("section c, needless splitting", "options that say the default share with silent ones", _defaults_spelt_out),
    Rule("section h, key", "what decides whom we trust and where bytes go is in the key", _not_in_nodes_key),
    Rule(
        "SUPPORT checkServerIdentity", "connections and sessions with a check of their own are kept, apart from others",
        _own_check, ("checkServerIdentity", "in the pool key"),
    ),
    Rule("section h, agent options override", "the request's options win", _request_over_agent),
    Rule("section h, Host header", "the URL's host decides SNI and verified name", _host_header),
    Rule("section h, session cache", "broken transports evict no session; the least recently used goes", _session_kept),
    Rule("section h, one ticket per key", "a ticket of TLS 1.3 is offered once", _ticket_used_once),
    Rule(
        "key table, family and local_address", "sessions are shared whatever way the bytes take",
        _resumed_by_another_way, ("local_address", "sessions are shared"),
    ),
    Rule("section h, no identity check on resumption", "not authorised stays so on resumption", _unauthorized_stays_so),
    Rule("section h, CN fallback", "RFC 9525: no common name, no partial wildcard", _stricter_names),
    Rule("section f", "a refused certificate is told to the server by an alert", _refused_in_the_handshake),
    Rule("section f", "a protocol error has OpenSSL's reason as its code, always", _reason_in_place_of_errno),
    Rule("section h, ALPN result", "what ALPN chose is spoken, or the connection ends", _alpn_heeded),
    Rule(
        "SUPPORT ALPNProtocols", "h2 and http/1.1 are offered where nothing is said",
        _alpn_by_default, ("ALPNProtocols", "h2 and http/1.1 are offered"),
    ),
    Rule("section h, Validate; SUPPORT", "careless values are refused", _option_refused),
)  # fmt: skip


# --- Judgement --------------------------------------------------------------------------------------------------------


def explained(case: Case, found: list[Difference]) -> list[Difference]:
    """Return the differences, each with what explains it, if anything does."""
    return [Difference(one.path, one.node, one.here, _explanation(case, one)) for one in found]


def _explanation(case: Case, difference: Difference) -> str | None:
    for rule in RULES:
        if rule.holds and rule.explains(case, difference):
            return str(rule)
    not_mirrored = case.scenario.get("do_not_mirror")
    if isinstance(not_mirrored, str):
        return f"do_not_mirror: {not_mirrored}"
    if not_mirrored and not_mirrored["in"] == "all":
        return f"do_not_mirror: {not_mirrored['why']}"
    return None


def broken(case: Case) -> list[str]:
    """Return what is wrong whatever Node does: limits exceeded, requests that hang, responses that went astray."""
    found = [*case.failures, *_overdue(case), *_beyond_limits(case)]
    return list(dict.fromkeys(found))


def _overdue(case: Case) -> Iterator[str]:
    """Requests that outlived their `timeout`; the queue is not counted, so there must be none."""
    if case.here.get("final", {}).get("pending"):
        return
    for name, waited in case.here.get("pending_ms", {}).items():
        limit = case.timeout_of(name)
        if limit and waited > limit + TOLERANCE:
            yield f"{name} is still pending after {waited} ms, its timeout is {limit} ms"


def _beyond_limits(case: Case) -> list[str]:
    found = []
    total = case.agent.get("maxTotalSockets")
    if isinstance(total, int) and case.here.get("max_concurrent_all", 0) > total:
        found.append(f"{case.here['max_concurrent_all']} connections were open at once, maxTotalSockets is {total}")
    per_name = case.agent.get("maxSockets")
    if isinstance(per_name, int) and per_name > 0:
        for name, server in case.here.get("servers", {}).items():
            names = len([origin for origin in case.origins if origin[0] == name])
            if server["max_concurrent"] > per_name * max(1, names):
                found.append(f"{server['max_concurrent']} connections to {name}, maxSockets is {per_name}")
    return found
