"""
Whatever callers, peers and the network do in whatever order, the agent's core keeps its promises.

A Hypothesis state machine drives an `AgentCore` in a simulation. What is promised is checked from outside: sockets are
counted by the network, requests by the peers, outcomes by the callers. The second half plants defects in the core, one
promise broken by each, and demands that the machine finds them: a check that cannot fail is no check.
"""

from __future__ import annotations

import contextlib
import sys
from math import inf

import pytest
from h2.exceptions import ProtocolError
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tlsagent import Http2Options, Timeouts
from tlsagent._connection import Connection
from tlsagent._core import AgentCore
from tlsagent._exchange import Exchange
from tlsagent._multiplex import Multiplex, Stream
from tlsagent._pool import Pool
from tlsagent.errors import AgentClosed, ConnectionLost, LocalProtocolError, RequestError, StreamReset, TLSAgentError
from tlsagent.events import Retried
from tlsagent.testing.simulation import Network, Reply, SimulatedServer, SimulatedStream, Simulation

HOSTS = ("a.test", "b.test", "c.test")
FORGED = b"HTTP/1.1 200 OK\r\nx-id: forged\r\ncontent-length: 6\r\n\r\nforged"
LONGEST = 40.0  # seconds that any request of the machine may take


class BrokenPromiseError(AssertionError):
    """The core did what it must not, or not what it must."""


def promise(kept: object, text: str) -> None:
    if not kept:
        raise BrokenPromiseError(text)


def behave(request, peer):
    """Answer as the target says, and always say whom the answer is for."""
    number = request.header("x-id")
    fields = [("x-id", number)]
    body = number.encode() + request.body
    if peer.http2 is not None and request.target in BEHAVIOUR:
        return BEHAVIOUR[request.target](request, peer.http2)
    match request.target:
        case "/silent":
            return None
        case "/slow":
            return Reply(headers=fields, body=body, delay=2.0)
        case "/chunked":
            return Reply(headers=fields, body=body, chunked=True, interim=[103])
        case "/close":
            return Reply(headers=fields, body=body, close=True)
        case "/half":
            return b"HTTP/1.1 200 OK\r\nx-id: %b\r\ncontent-length: 90\r\n\r\nhalf" % number.encode()
        case "/trailing":
            head = b"HTTP/1.1 200 OK\r\nx-id: %b\r\ncontent-length: %d\r\n\r\n" % (number.encode(), len(body))
            return head + body + FORGED
        case "/junk":
            return b"\0junk"
    return Reply(headers=fields, body=body)


def half(request, streams):
    streams.headers(request, [(":status", "200"), ("x-id", request.header("x-id")), ("content-length", "90")])
    streams.data(request, b"half")
    request.answered = True


# What is done on a stream, where HTTP/2 is spoken.
BEHAVIOUR = {
    "/half": half,
    "/trailing": lambda request, streams: streams.reset(request, REFUSED_STREAM),
    "/junk": lambda request, streams: RESET_OF_NOTHING if request.method == "GET" else streams.reset(request),
}
REFUSED_STREAM = 7
MAX_CONCURRENT_STREAMS = 3
RESET_OF_NOTHING = b"\0\0\4\3\0\0\0\0\0\0\0\0\0"

PICK = st.integers(0, 1000)  # of a list, modulo its length
HOW = st.sampled_from(["close", "drop", "reset"])
TARGETS = ["/ok", "/ok", "/ok", "/silent", "/silent", "/slow", "/chunked", "/close", "/half", "/trailing", "/junk"]
TIMEOUTS = [
    Timeouts(),
    Timeouts(),
    Timeouts(queue=1, response=1, read=1),
    Timeouts(connect=1, handshake=1, send=1),
    Timeouts(total=3),
]

# One rule that draws the call, not a rule per call: Hypothesis leaves out random rules, and without those that make and
# free connections a run tells little. Each call with its weight and its arguments.
CALLS = {
    "request": (
        14,
        {
            "host": st.sampled_from(["a.test", "a.test", "a.test", *HOSTS]),
            "method": st.sampled_from(["GET", "GET", "POST"]),
            "body": st.sampled_from(["none", "bytes", "long", "iterator"]),
            "target": st.sampled_from(TARGETS),
            "timeouts": st.sampled_from(TIMEOUTS),
            "stream": st.sampled_from([False, False, False, True]),
        },
    ),
    "run": (14, {}),
    "advance": (4, {"seconds": st.sampled_from([0.0, 0.01, 0.02, 0.5, 2.0, 8.0])}),
    "answer": (3, {"pick": PICK}),
    "end": (4, {"pick": PICK, "how": HOW}),
    "answer_and_end": (2, {"pick": PICK, "how": HOW}),
    "stray": (5, {"pick": PICK}),
    "greet": (1, {"how": st.sampled_from([None, "close", "drop", "reset"])}),
    "hold": (2, {"pick": PICK, "up": st.booleans()}),
    "let_go": (2, {}),
    "cut": (
        2,
        {"pick": PICK, "up": st.booleans(), "size": st.integers(0, 900), "how": st.sampled_from(["eof", "reset"])},
    ),
    "refuse": (1, {"host": st.sampled_from(HOSTS)}),
    "dial_slowly": (1, {"seconds": st.sampled_from([None, 0.5, 0.0, 0.0])}),
    "end_dial": (2, {"pick": PICK, "accept": st.booleans()}),
    "cancel": (4, {"pick": PICK}),
    "read": (2, {"pick": PICK}),
    "preconnect": (1, {"host": st.sampled_from(HOSTS)}),
    "close_idle": (1, {}),
    "forget_sessions": (1, {}),
    "goaway": (2, {"pick": PICK, "last": st.sampled_from([None, None, 0, 1, 5, 2**31 - 1])}),
    "reset_stream": (2, {"pick": PICK, "code": st.sampled_from([2, REFUSED_STREAM, 8])}),
    "settings": (2, {"pick": PICK, "limit": st.sampled_from([0, 1, 2, 100])}),
    "ping": (1, {"pick": PICK}),
    "close": (1, {"destroy": st.booleans()}),
}
WEIGHTED = [verb for verb, (weight, _) in CALLS.items() for _ in range(weight)]
ANY_CALL = st.sampled_from(WEIGHTED).flatmap(
    lambda verb: st.tuples(st.just(verb), st.fixed_dictionaries(CALLS[verb][1]))
)


def excused(event):
    error = event.error
    refused = isinstance(error, StreamReset) and error.error_code == REFUSED_STREAM
    return error.reused or refused or error.code == "ERR_HTTP2_GOAWAY_SESSION" or not error.request_sent


class CoreMachine(RuleBasedStateMachine):
    """Callers, peers and network around one core."""

    simulation: type[Simulation] = Simulation

    @initialize(
        keep_alive=st.sampled_from([True, True, True, False]),
        max_sockets=st.sampled_from([None, 1, 1, 2]),
        max_total_sockets=st.sampled_from([None, 1, 2, 3]),
        free_socket_timeout=st.sampled_from([60, 5]),
        version=st.sampled_from(["TLSv1.3", "TLSv1.2"]),
        protocol=st.sampled_from(["h2", "http/1.1"]),
        streams=st.sampled_from([100, 1, 2, 3]),
        stream_window=st.sampled_from([65_535, 5_000]),
        ping_interval=st.sampled_from([30, 1]),
        http2_engine=st.sampled_from(["h2", "ngh2"]),
        latency=st.sampled_from([0.0, 0.0, 0.01]),
        piece=st.sampled_from([None, None, 100]),
        watch_idle=st.booleans(),
    )
    def make(self, version, protocol, streams, stream_window, ping_interval, latency, piece, watch_idle, **options):
        server = SimulatedServer(
            behave,
            min_version=version,
            max_version=version,
            alpn_protocols=(protocol,),
            max_concurrent_streams=streams,
            initial_window_size=stream_window,
        )
        options["http2"] = Http2Options(ping_interval=ping_interval, ping_timeout=5)
        timeouts = Timeouts(queue=5, lookup=5, connect=5, handshake=5, send=5, response=5, read=5)
        network = Network(latency=latency, piece=piece, window=10_000)
        self.sim = self.simulation(server=server, network=network, watch_idle=watch_idle, timeouts=timeouts, **options)
        self.options = options
        self.repeated = []
        self.sim.on(Retried, self.repeated.append)
        self.handles = []
        self.outcomes = {}
        self.steps = 0
        self.closed = False

    @rule(call=ANY_CALL)
    def call(self, call):
        """Do one thing; what is impossible just now is passed over."""
        verb, arguments = call
        try:
            getattr(self, verb)(**arguments)
        except RequestError as error:
            raise BrokenPromiseError("an error goes to its request and nowhere else") from error
        self.steps += 1
        self.check_promises()

    # -- What callers do

    def request(self, host, method, body, target, timeouts, stream):
        number = str(len(self.handles))
        content = {
            "none": None,
            "bytes": b"." * 100,
            "long": b"." * 70_000,
            "iterator": (b"." * 9_000 for _ in range(3)),
        }[body if method == "POST" else "none"]
        url = f"https://{host}{target}"
        handle = self.sim.request(
            method, url, headers={"x-id": number}, content=content, timeouts=timeouts, stream=stream
        )
        self.handles.append(handle)
        if self.closed:
            promise(isinstance(handle.error, AgentClosed), "a closed agent takes no requests")

    def cancel(self, pick):
        if self.handles:
            self.handles[-1 - pick % min(len(self.handles), 8)].cancel()

    def read(self, pick):
        streams = [h.response for h in self.handles if isinstance(h.response, SimulatedStream)]
        if streams:
            with contextlib.suppress(TLSAgentError):  # what became of the body is not this machine's question
                streams[pick % len(streams)].read()

    def preconnect(self, host):
        if not self.closed:
            self.sim.preconnect(f"https://{host}/")

    def close_idle(self):
        self.sim.close_idle()
        promise(self.sim.core.pool.counts().idle == 0, "close_idle leaves no connection idle")

    def close(self, destroy):
        if self.steps < 25:
            return
        self.closed = True
        if destroy:
            self.sim.destroy()
        else:
            self.sim.close(drain=3.0)
        promise(self.sim.network.open.total() == 0, "close ends every connection")
        promise(all(handle.done for handle in self.handles), "close ends every request")

    # -- What peers and network do

    def run(self):
        self.sim.run_until_idle()

    def advance(self, seconds):
        self.sim.advance(seconds)

    def link(self, pick):
        return self.sim.links[pick % len(self.sim.links)] if self.sim.links else None

    def answer(self, pick):
        outstanding = [
            (peer, request)
            for peer in self.sim.peers
            for request in peer.requests
            if request.outstanding and request.complete
        ]
        if outstanding:
            peer, request = outstanding[pick % len(outstanding)]
            number = request.header("x-id")
            peer.respond(Reply(headers=[("x-id", number)], body=number.encode()), request=request)

    def end(self, pick, how):
        if link := self.link(pick):
            getattr(link.peer, how)()

    def answer_and_end(self, pick, how):
        self.answer(pick)
        self.end(pick, how)

    def stray(self, pick):
        """Send what nobody asked for: a whole response where it is certain to arrive before the next request."""
        idle = [link for link in self.sim.links if self.would_notice(link)]
        link = idle[pick % len(idle)] if idle else self.link(pick)
        if link is not None:
            link.peer.send(FORGED if idle else b"\0stray")
            self.sim.advance(0.0)

    def would_notice(self, link):
        network, connection = self.sim.network, link.connection
        at_once = network.latency == 0 and network.piece is None and not link.down.held
        busy = connection.exchange is not None or (connection.shared is not None and connection.shared.busy)
        return at_once and connection.requests > 0 and not busy and link.peer.outstanding is None

    def greet(self, how):
        """End new connections as soon as they are secured, or do so no more."""
        self.sim.server.greet = how and (lambda peer: getattr(peer, how)())

    def hold(self, pick, up):
        if link := self.link(pick):
            (link.up if up else link.down).held = True

    def let_go(self):
        for link in self.sim.links:
            link.up.held = link.down.held = False

    def cut(self, pick, up, size, how):
        if link := self.link(pick):
            pipe = link.up if up else link.down
            pipe.breaks_after, pipe.breaks_how = size, how

    def refuse(self, host):
        self.sim.network.refusing ^= {host}

    def dial_slowly(self, seconds):
        self.sim.network.connect = seconds

    def end_dial(self, pick, accept):
        dials = [dial for dial in self.sim.dials if dial.dial.phase == "connect"]
        if dials:
            dial = dials[pick % len(dials)]
            dial.accept() if accept else dial.refuse()

    def forget_sessions(self):
        self.sim.server.forget_sessions()

    def streams(self, pick):
        shared = [link.peer.http2 for link in self.sim.links if link.peer.http2 is not None]
        return shared[pick % len(shared)] if shared else None

    def goaway(self, pick, last):
        if streams := self.streams(pick):
            streams.goaway(last)

    def reset_stream(self, pick, code):
        if (streams := self.streams(pick)) and streams.open:
            streams.reset(list(streams.open.values())[pick % len(streams.open)], code)

    def settings(self, pick, limit):
        if streams := self.streams(pick):
            streams.settings({MAX_CONCURRENT_STREAMS: limit})

    def ping(self, pick):
        if streams := self.streams(pick):
            streams.ping()

    # -- What must always hold

    def check_promises(self):
        self.check_limits()
        self.check_peers()
        for number, handle in enumerate(self.handles):
            self.check_handle(number, handle)
        self.check_accounts()

    def check_limits(self):
        network = self.sim.network
        limit = self.options["max_sockets"] or inf
        promise(all(most <= limit for most in network.most_open.values()), "max_sockets is never exceeded")
        promise(network.most <= (self.options["max_total_sockets"] or inf), "max_total_sockets is never exceeded")

    def check_peers(self):
        seen = {}
        for peer in self.sim.peers:
            promise(not peer.overlapped, "a connection of HTTP/1.1 carries one request at a time")
            kept = not isinstance(peer.failure, ProtocolError)
            promise(kept, f"the client keeps to the protocol, and to the limits: {peer.failure!r}")
            for request in peer.requests:
                if not request.refused:
                    seen.setdefault(request.header("x-id"), []).append(request.method)
        for number, methods in seen.items():
            promise(methods[0] == "GET" or len(methods) == 1, "what may have been carried out is not repeated")
            promise(len(methods) <= self.handles[int(number)].exchange.attempts, "every sending counts as an attempt")

        promise(all(map(excused, self.repeated)), "only a reused connection, or a refusal, excuses a repetition")

    def check_handle(self, number, handle):
        exchange = handle.exchange
        promise(exchange.attempts <= 2, "a request is repeated once")
        promise(handle.response is None or handle.error is None, "a request ends in a response or an error, not both")
        outcome = (handle.response, handle.error, handle.cancelled)
        promise(self.outcomes.get(number, outcome) == outcome, "the outcome of a request is final")
        if handle.response is not None:
            promise(handle.response.headers.get("x-id") == str(number), "a response belongs to its request")
        if handle.done:
            self.outcomes[number] = outcome
            promise(exchange.ticket is None, "a request that is over does not wait")
            given_up = handle.cancelled or handle.error is not None
            promise(not given_up or exchange.lease is None, "a request that is given up holds no place")
            return
        promise((exchange.ticket is None) != (exchange.lease is None), "a request under way has its place")
        promise(exchange.created_at + LONGEST > self.sim.now, "a request ends in the end")
        if exchange.lease is not None:
            connection = exchange.lease.connection
            carried = connection.exchange is exchange
            if connection.shared is not None:
                carried = exchange.stream.connection is connection and not exchange.stream.over
            promise(carried, "a request under way is carried by its connection")
            promise(not connection.transport.closed, "no request is left on a closed connection")

    def check_accounts(self):
        sim, pool = self.sim, self.sim.core.pool
        counts = pool.counts()
        tickets = sum(handle.exchange.ticket is not None for handle in self.handles)
        leases = [handle.exchange.lease for handle in self.handles if handle.exchange.lease is not None]
        leased = {lease.connection for lease in leases}
        promise(len(set(leases)) == len(leases), "a lease is for one request")
        alone = [lease.connection for lease in leases if lease.connection.shared is None]
        promise(len(set(alone)) == len(alone), "a connection of HTTP/1.1 is leased once")
        shaking = sum(link.dial is not None for link in sim.links)
        promise(counts.waiting == tickets, "who waits is in the queue, and nobody else")
        promise(counts.active == len(leased), "a connection is taken only as long as it is used")
        promise(counts.idle == len(sim.links) - shaking - len(leased), "every open connection is the pool's")
        for link in sim.links:
            if (shared := link.connection.shared) is not None and link.dial is None:
                carried = sum(lease.connection is link.connection for lease in leases)
                promise(shared.carried == carried, "a shared connection carries what was leased, and nothing else")
        promise(counts.dialling == len(sim.dials) + shaking, "every attempt is the pool's")
        promise(sim.network.open.total() == len(sim.links) + len(sim.dials), "no socket is forgotten")
        alive = {link.connection for link in sim.links}
        promise(all(connection.dead is None for connection in alive), "a dead connection is closed")
        promise(set(sim.core.living()) == alive, "the counters know the living connections")
        for key in pool.keys():  # noqa: SIM118 - a pool is no mapping
            of_key = pool.counts(key)
            used = of_key.active or of_key.idle or of_key.dialling or of_key.waiting
            promise(used, "a key with nothing is forgotten")

    def teardown(self):
        """Let time end every request, then close, and see that nothing is left."""
        if sys.exc_info()[0] is not None or not hasattr(self, "sim"):
            return  # Called after a failure too, which the ones that follow from it must not hide.
        self.sim.advance(LONGEST)
        promise(all(handle.done for handle in self.handles), "every request ends by itself")
        self.check_promises()
        self.sim.close()
        promise(self.sim.network.open.total() == 0, "close ends every connection")
        promise(self.sim.core.pool.keys() == [], "close leaves no key")
        promise(self.sim.core.living() == [], "close leaves nothing to count")


CoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestCoreMachine(CoreMachine.TestCase):
    """No sequence of events loses a request, exceeds a limit, mixes up responses, sends twice or fails to end."""


# -- Planted defects: a core that breaks one promise must be found out


def planted(core: type[AgentCore]) -> type[Simulation]:
    class Defective(Simulation):
        def _make_core(self, said):
            return core(said)

    return Defective


class PoolDefect(AgentCore):
    """A core over a defective pool."""

    pool_class: type[Pool[Connection]]

    def __init__(self, said):
        super().__init__(said)
        self.pool.__class__ = self.pool_class


class LosesRefusals(PoolDefect):
    class pool_class(Pool):
        def _refuse(self, ticket, error):
            self._leave_queue(ticket)


class IgnoresKeyLimit(PoolDefect):
    class pool_class(Pool):
        def _update_wanting(self, bucket):
            self._max_sockets, limit = inf, self._max_sockets
            super()._update_wanting(bucket)
            self._max_sockets = limit

        def _make_room(self, bucket):
            self._max_sockets, limit = inf, self._max_sockets
            room = super()._make_room(bucket)
            self._max_sockets = limit
            return room


class IgnoresTotalLimit(PoolDefect):
    class pool_class(Pool):
        def _make_room(self, bucket):
            self._max_total_sockets, limit = inf, self._max_total_sockets
            room = super()._make_room(bucket)
            self._max_total_sockets = limit
            return room


class DialsBeforeItCloses(PoolDefect):
    class pool_class(Pool):
        def effects(self):
            return sorted(super().effects(), key=lambda effect: type(effect).__name__ == "Close")


class LeasesTwice(PoolDefect):
    class pool_class(Pool):
        def _take_idle(self, bucket, now):
            slot = super()._take_idle(bucket, now)
            if slot is not None:
                bucket.idle[slot] = self._idle[slot] = None
            return slot


class RemembersKeysForEver(PoolDefect):
    class pool_class(Pool):
        def _forget_unused(self, bucket):
            pass


class LeavesTicketsBehindOnClose(PoolDefect):
    class pool_class(Pool):
        def close(self, now):
            self._closed = True
            self.close_idle(now, "agent_closed")


class ForgetsToRelease(AgentCore):
    def settle(self, connection, now):
        if connection.dead is None:
            connection.ended.lease = None
            connection.ended = None
        super().settle(connection, now)


class KeepsTheDead(AgentCore):
    def settle(self, connection, now):
        dead, connection.dead = connection.dead, None
        super().settle(connection, now)
        connection.dead = dead


class ForgetsTheCancelled(AgentCore):
    def cancel(self, exchange, now):
        exchange.ticket = None


class ForgetsFailedAttempts(AgentCore):
    def dial_failed(self, dial, error, now):
        if error is not None:
            dial.describe(error)


class SleepsThroughDeadlines(AgentCore):
    def handle_timeout(self, now):
        self.pool.handle_timeout(now)
        for connection in self._timers.expired(now):
            self._timers.set(connection.timer, now + 1)
        return []


class CountsTheDeadAsLiving(AgentCore):
    def closed(self, connection, reason):
        first = super().closed(connection, reason)
        if reason == "make_room":
            self._tally.opened(connection)
        return first


class ForgetsTheLiving(AgentCore):
    def living(self):
        return [connection for connection in super().living() if connection.exchange is None]


class ForgetsOneOfTheEnded(AgentCore):
    def settle_shared(self, connection, news, now):
        super().settle_shared(connection, news._replace(ended=news.ended[1:]), now)


class KeepsTheDeadThatWereShared(AgentCore):
    def settle_shared(self, connection, news, now):
        super().settle_shared(connection, news._replace(dead=None, leaving=None), now)


CORE_DEFECTS = [*PoolDefect.__subclasses__(), *(c for c in AgentCore.__subclasses__() if c is not PoolDefect)]


def repeats_everything(self):
    return self.retry and self.attempts == 1 and isinstance(self.error, ConnectionLost)


def repeats_on_fresh_connections(self):
    return self.attempts == 1 and isinstance(self.error, ConnectionLost) and self.head.method == b"GET"


def repeats_for_ever(self):
    return isinstance(self.error, ConnectionLost) and self.head.method == b"GET"


def keeps_deadlines_at_bay(self, now, seconds):
    self.deadline = self.total_at


def keeps_what_is_not_reusable(self, exchange, now):
    if exchange.complete:
        self.exchange, self.ended = None, exchange
    elif exchange.error is not None:
        self._fail(exchange.error, now)


def takes_the_dropped_for_alive(self, exchange, now, reason):
    if self.exchange is exchange:
        self.exchange, self.ended = None, exchange


def ignores_the_unasked(self, data, now, *, passed_on=Connection.plaintext_received):
    if self.exchange is not None:
        passed_on(self, UNASKED.pop(self, b"") + data, now)
    else:
        UNASKED[self] = UNASKED.get(self, b"") + data


UNASKED: dict[Connection, bytes] = {}


def repeats_what_was_processed(self, stream_id, error, processed, *, told=Multiplex.stream_failed):
    told(self, stream_id, error, False)


def mixes_up_streams(self, *, told=Stream._told):
    told(self)
    return next(iter(self._floor._streams.values())).exchange


def drops_without_a_reset(self, exchange, now):
    exchange.fail(LocalProtocolError("dropped"), now)
    exchange.stream = None


def forgets_timeouts_of_streams(self, now):
    self._due = inf


METHOD_DEFECTS = [
    (Exchange, "may_retry", property(repeats_everything)),
    (Exchange, "may_retry", property(repeats_on_fresh_connections)),
    (Exchange, "may_retry", property(repeats_for_ever)),
    (Exchange, "_clock", keeps_deadlines_at_bay),
    (Connection, "_settle", keeps_what_is_not_reusable),
    (Connection, "drop", takes_the_dropped_for_alive),
    (Connection, "plaintext_received", ignores_the_unasked),
    (Multiplex, "stream_failed", repeats_what_was_processed),
    (Multiplex, "drop", drops_without_a_reset),
    (Multiplex, "_time_out", forgets_timeouts_of_streams),
    (Stream, "_told", mixes_up_streams),
]


def expect_broken_promise(simulation: type[Simulation]) -> None:
    class Machine(CoreMachine):
        pass

    Machine.simulation = simulation
    with pytest.raises(AssertionError):
        look_for_a_broken_promise(Machine)


def look_for_a_broken_promise(machine: type[CoreMachine]) -> None:
    for number in range(6):  # one run of six times the length would stay among cases like its first
        run_state_machine_as_test(
            seed(number)(machine),
            settings=settings(
                max_examples=150,
                stateful_step_count=40,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                verbosity=Verbosity.quiet,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.timeout(240)  # some are found late, and coverage makes that later
@pytest.mark.parametrize("defect", CORE_DEFECTS, ids=lambda defect: defect.__name__)
def test_machine_finds_defective_core(defect):
    """A core that breaks a promise does not pass."""
    expect_broken_promise(planted(defect))


@pytest.mark.parametrize(
    ("owner", "name", "defect"),
    METHOD_DEFECTS,
    ids=lambda value: getattr(getattr(value, "fget", value), "__name__", None),
)
def test_machine_finds_defective_method(monkeypatch, owner, name, defect):
    """An exchange or a connection that breaks a promise does not pass."""
    monkeypatch.setattr(owner, name, defect)

    expect_broken_promise(Simulation)
