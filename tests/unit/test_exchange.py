"""
The life of one request and its response, told to an `Exchange` call by call.
"""

from __future__ import annotations

from math import inf

import pytest

from tlsagent import UNSET, AgentOptions, Headers, ResponseHead, Timeouts
from tlsagent._core import AgentCore
from tlsagent._exchange import HIGH_WATER, Awaiting, Timings, closed_error
from tlsagent.errors import (
    AgentClosed,
    ConnectError,
    ConnectionLost,
    HandshakeError,
    LocalProtocolError,
    PoolTimeout,
    ReadTimeout,
    RemoteProtocolError,
    ResponseTimeout,
    SendTimeout,
    StreamReset,
    TotalTimeout,
)

OPTIONS = {
    "timeouts": Timeouts(queue=30, send=5, response=7, read=11, total=None),
    "reject_unauthorized": False,
}
HEAD = ResponseHead(200, "OK", "HTTP/1.1", Headers([]))
INFO = object()  # a ConnectionInfo, opaque here


def exchange(method="GET", now=0.0, *, content=None, timeouts=None, retry=UNSET, expect_continue=False, **options):
    core = AgentCore(AgentOptions(**{**OPTIONS, **options}))
    return core.exchange(
        method,
        "https://a.test/",
        now,
        headers=None,
        content=content,
        options=None,
        timeouts=timeouts,
        trailers=None,
        retry=retry,
        trace=None,
        expect_continue=expect_continue,
    )


def begun(*args, now=0.0, number=1, **kwargs):
    subject = exchange(*args, now=now, **kwargs)
    subject.begin(INFO, number, now)
    return subject


def waiting(*args, now=0.0, **kwargs):
    subject = begun(*args, now=now, **kwargs)
    subject.sent(now)
    return subject


def receiving(*args, now=0.0, **kwargs):
    subject = waiting(*args, now=now, **kwargs)
    subject.received = True
    subject.now = now
    subject.response_received(HEAD)
    return subject


# -- Phases and deadlines


def test_phases():
    """A request queues, sends, waits, receives."""
    subject = exchange()
    assert subject.phase == "queue"
    subject.begin(INFO, 1, 1.0)
    assert subject.phase == "send"
    subject.sent(2.0)
    assert subject.phase == "wait"
    subject.response_received(HEAD)
    assert subject.phase == "receive"


def test_no_deadline_of_its_own_in_the_queue():
    """While it waits for a connection only `total` runs."""
    assert exchange().deadline == inf
    assert exchange(now=3.0, timeouts=4).deadline == 7.0


@pytest.mark.parametrize(
    ("prepare", "at", "kind", "text"),
    [
        (lambda: _progressed(begun()), 5.0, SendTimeout, "timeouts.send"),
        (waiting, 7.0, ResponseTimeout, "timeouts.response"),
        (receiving, 11.0, ReadTimeout, "timeouts.read"),
        (lambda: receiving(timeouts=Timeouts(total=3)), 3.0, TotalTimeout, "timeouts.total"),
    ],
)
def test_overdue(prepare, at, kind, text):
    """Each phase has its deadline and its error; the error names seconds and option."""
    subject = prepare()

    assert subject.deadline == at
    assert subject.overdue(at - 0.001) is None
    error = subject.overdue(at)

    assert type(error) is kind
    assert f"{at:g} s" in str(error)
    assert text in str(error)


def _progressed(subject):
    subject.progressed(0.0)
    return subject


def test_progress_moves_the_deadline():
    """Bytes handed on, heads and bodies start the clock anew; total stays."""
    subject = begun(timeouts=Timeouts(total=100))
    subject.progressed(1.0)
    assert subject.deadline == 6.0
    subject.progressed(4.0)
    assert subject.deadline == 9.0
    subject.sent(5.0)
    assert subject.deadline == 12.0
    subject.now = 6.0
    subject.informational_received(ResponseHead(103, "", "HTTP/1.1", Headers([])))
    assert subject.deadline == 13.0
    subject.now = 8.0
    subject.response_received(HEAD)
    assert subject.deadline == 19.0
    subject.now = 10.0
    subject.body_received(b"x")
    assert subject.deadline == 21.0
    subject.now = 95.0
    subject.body_received(b"x")
    assert subject.deadline == 100.0


def test_no_limit():
    """None in a field means that phase has no deadline."""
    subject = receiving(timeouts=Timeouts(read=None))

    assert subject.deadline == inf
    assert subject.overdue(1e9) is None


def test_response_that_begins_during_the_upload():
    """Until the request is complete the clock is that of sending, then at once that of the body."""
    subject = _progressed(begun())
    subject.now = 1.0
    subject.informational_received(ResponseHead(102, "", "HTTP/1.1", Headers([])))
    subject.response_received(HEAD)
    subject.body_received(b"x")
    assert (subject.phase, subject.deadline) == ("send", 5.0)

    subject.sent(4.0)

    assert (subject.phase, subject.deadline) == ("receive", 15.0)


# -- What the caller waits for


@pytest.mark.parametrize("awaiting", Awaiting)
def test_ready(awaiting):
    """Head, next bytes or end: whoever waits is woken for what it waits for, and for every end."""
    subject = waiting()
    subject.awaiting = awaiting
    assert not subject.ready
    subject.response_received(HEAD)
    assert subject.ready == (awaiting is Awaiting.HEAD)
    subject.body_received(b"x")
    assert subject.ready == (awaiting is not Awaiting.END)
    subject.response_ended(None)
    assert subject.ready

    failed = waiting()
    failed.awaiting = awaiting
    failed.fail(ConnectionLost("gone"), 1.0)
    assert failed.ready


def test_consumer_that_is_behind_pauses_the_connection():
    """Beyond the high-water mark reading is to stop, and its clock with it, until the consumer has caught up."""
    subject = receiving()
    subject.awaiting = Awaiting.BODY
    subject.body_received(b"x" * HIGH_WATER)
    assert (subject.paused, subject.deadline) == (False, 11.0)
    subject.body_received(b"y")
    assert (subject.paused, subject.deadline) == (True, inf)

    assert b"".join(subject.take_chunks(50.0)) == b"x" * HIGH_WATER + b"y"

    assert (subject.paused, subject.held, subject.deadline) == (False, 0, 61.0)
    assert subject.take_chunks(51.0) == []


def test_buffered_response_is_never_paused():
    """Who waits for the whole response gets it, whatever its size."""
    subject = receiving()

    subject.body_received(b"x" * (2 * HIGH_WATER))

    assert not subject.paused


def test_no_pause_while_the_request_is_sent():
    """A peer that writes before it has read everything is not waited for while it waits for us."""
    subject = begun()
    subject.awaiting = Awaiting.HEAD
    subject.response_received(HEAD)

    subject.body_received(b"x" * (2 * HIGH_WATER))

    assert not subject.paused


def test_body_beyond_max_response_size():
    """A buffered response that grows beyond the limit fails; a streamed one may be as long as it likes."""
    subject = receiving(max_response_size=10)
    subject.body_received(b"x" * 10)
    assert subject.error is None
    subject.body_received(b"x")
    subject.response_ended(None)

    assert isinstance(subject.error, RemoteProtocolError)
    assert subject.error.code == "ERR_TLSAGENT_RESPONSE_TOO_LARGE"
    assert not subject.complete
    streamed = receiving(max_response_size=10)
    streamed.awaiting = Awaiting.BODY
    streamed.body_received(b"x" * 11)
    assert streamed.error is None


# -- Bodies that wait, and uploads that end early


def head(status):
    return ResponseHead(status, "", "HTTP/1.1", Headers([]))


def held(now=0.0, **kwargs):
    subject = begun("POST", now=now, content=b"abc", expect_continue=True, **kwargs)
    subject.hold(now)
    subject.now = now
    return subject


def test_body_waits_for_a_second():
    """The wait for a 100 ends by itself, which is no timeout; `total` stays one, and may come first."""
    subject = held()
    assert (subject.holding, subject.deadline, subject.request_sent) == (True, 1.0, True)
    assert subject.overdue(0.9) is None
    assert subject.holding
    assert subject.overdue(1.0) is None
    assert (subject.holding, subject.nudged, subject.deadline) == (False, True, inf)

    short = held(timeouts=0.5)
    assert isinstance(short.overdue(0.5), TotalTimeout)


def test_only_a_100_lets_the_body_go():
    """Other informational responses leave it waiting, and do not prolong the wait."""
    subject = held()
    subject.now = 0.5
    for status in (102, 103):
        subject.informational_received(head(status))
    assert (subject.holding, subject.nudged, subject.deadline) == (True, False, 1.0)

    subject.informational_received(head(100))

    assert (subject.holding, subject.nudged, subject.deadline) == (False, True, inf)
    assert [h.status for h in subject.informational] == [102, 103, 100]


@pytest.mark.parametrize("status", [200, 304, 417, 500])
def test_final_response_while_the_body_waits(status):
    """Whatever it says, the body is not sent, and the clock is that of the response."""
    subject = held()
    subject.now = 0.5

    subject.response_received(head(status))

    assert (subject.holding, subject.upload_stopped, subject.nudged) == (False, True, True)
    assert (subject.phase, subject.deadline) == ("receive", 11.5)


@pytest.mark.parametrize(("status", "stops"), [(200, False), (302, False), (400, True), (413, True), (503, True)])
def test_error_stops_the_upload(status, stops):
    """RFC 9112, 9.5: a server that answers an upload with an error does not want the rest; others read on."""
    subject = _progressed(begun("POST", content=iter([b"x"])))
    subject.now = 1.0

    subject.response_received(head(status))

    assert (subject.upload_stopped, subject.nudged) == (stops, stops)
    assert (subject.phase, subject.deadline) == (("receive", 12.0) if stops else ("send", 5.0))


def test_error_after_the_request_stops_nothing():
    """There is nothing to stop any more."""
    subject = waiting("POST", content=b"abc")
    subject.response_received(head(500))
    assert (subject.upload_stopped, subject.nudged) == (False, False)


def test_consumer_that_is_behind_pauses_once_the_upload_has_stopped():
    """What is never going to be sent keeps nobody from holding the peer back."""
    subject = _progressed(begun("POST", content=iter([b"x"])))
    subject.awaiting = Awaiting.HEAD
    subject.response_received(head(413))

    subject.body_received(b"x" * (HIGH_WATER + 1))

    assert subject.paused


def test_retry_waits_anew():
    """A second attempt starts with nothing held, stopped or switched."""
    subject = held()
    subject.response_received(head(417))

    subject.start_over()

    assert (subject.holding, subject.upload_stopped, subject.nudged, subject.switched) == (False, False, False, None)


# -- Responses that end HTTP


def test_switch_is_what_a_stream_waits_for():
    """It is complete, without a body, and no timeout of the request runs any more; nothing is read for the moment."""
    subject = waiting(timeouts=3)
    subject.awaiting = Awaiting.HEAD
    subject.now = 1.0

    subject.protocol_switched(head(101))

    assert (subject.ready, subject.complete, subject.error) == (True, True, None)
    assert (subject.paused, subject.deadline) == (True, inf)
    assert subject.overdue(100.0) is None
    assert subject.take_chunks(2.0) == []
    assert (subject.paused, subject.deadline) == (True, inf)
    assert (subject.timings().wait, subject.timings().total) == (1.0, 1.0)


def test_switch_where_a_whole_response_was_wanted():
    """A buffered response cannot be a connection: the error says how to get one."""
    subject = waiting()

    subject.protocol_switched(head(101))

    assert isinstance(subject.error, LocalProtocolError)
    assert subject.error.code == "ERR_TLSAGENT_SWITCHED"
    assert "upgrade()" in str(subject.error)
    assert not subject.complete


# -- The end


def test_failure_carries_its_facts():
    """An error learns phase, key, reuse, what was sent and how long it took."""
    subject = begun(now=10.0, number=2)
    subject.progressed(11.0)

    subject.fail(ConnectionLost("gone"), 12.5)

    error = subject.error
    assert (error.phase, error.reused, error.request_sent, error.elapsed) == ("send", True, True, 2.5)
    assert error.key.startswith("a.test:443#")
    assert subject.ended_at == 12.5


def test_failure_keeps_what_it_knows():
    """Phase and key that an error brings along stay."""
    subject = waiting()

    subject.fail(HandshakeError("alert", phase="handshake", key="other"), 1.0)

    assert (subject.error.phase, subject.error.key) == ("handshake", "other")


def test_first_end_is_final():
    """Neither a second error nor an error after the response counts."""
    failed, done = waiting(), receiving()
    failed.fail(ConnectionLost("first"), 1.0)
    failed.fail(ConnectionLost("second"), 2.0)
    failed.response_ended(None)
    done.response_ended(Headers([(b"x-a", b"1")]))
    done.fail(ConnectionLost("late"), 2.0)

    assert str(failed.error) == "first"
    assert (failed.complete, failed.ended_at) == (False, 1.0)
    assert (done.complete, done.error) == (True, None)
    assert done.trailers["x-a"] == "1"


def test_error_that_is_none_of_ours_is_left_alone():
    """AgentClosed has no facts of a request."""
    subject = waiting()

    subject.fail(closed_error(), 1.0)

    assert type(subject.error) is AgentClosed
    assert not hasattr(subject.error, "phase")


# -- Retry


def lost(method="GET", *, number=2, content=None, received=False, retry=UNSET, error=None, sent=True):
    subject = begun(method, number=number, content=content, retry=retry)
    if sent:
        subject.sent(0.0)
    subject.received = received
    subject.fail(error or ConnectionLost("gone"), 1.0)
    return subject


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_idempotent_request_may_be_repeated(method):
    """RFC 9110, 9.2.2 names the methods."""
    assert lost(method).may_retry


@pytest.mark.parametrize(
    "subject",
    [
        lost("POST"),
        lost("PATCH"),
        lost("MKCOL"),
        lost(number=1),
        lost(received=True),
        lost(retry=False),
        lost(error=HandshakeError("alert")),
        lost(error=RemoteProtocolError("junk")),
        lost(error=ResponseTimeout("late")),
        lost("PUT", content=iter([b"x"])),
        waiting(),
    ],
    ids=["POST", "PATCH", "MKCOL", "fresh", "answered", "off", "alert", "junk", "timeout", "one-shot", "no-error"],
)
def test_what_is_not_repeated(subject):
    """Not what may have been carried out, was answered, cannot be had again, or failed otherwise."""
    assert not subject.may_retry


@pytest.mark.parametrize("content", [b"short", b"x" * 100_000, [b"a", b"b"]])
def test_body_that_can_be_had_again(content):
    """Bytes and lists of them can be sent once more."""
    assert lost("PUT", content=content).may_retry


def test_start_over_forgets_the_attempt_but_not_the_clock():
    """The second attempt is the last; `total` goes on from the beginning."""
    subject = lost()
    subject.total_at = 9.0
    subject.informational_received(HEAD)
    subject.chunks.append(b"x")
    assert subject.may_retry

    subject.start_over()

    assert (subject.error, subject.response, subject.chunks, subject.informational) == (None, None, [], ())
    assert (subject.phase, subject.deadline, subject.reused, subject.attempts) == ("queue", 9.0, False, 1)
    subject.begin(INFO, 2, 2.0)
    subject.sent(2.5)
    subject.fail(ConnectionLost("again"), 3.0)
    assert subject.attempts == 2
    assert not subject.may_retry


def test_what_was_never_sent_begins_up_to_five_times():
    """A connection lost before a byte of the request was sent is no attempt, whatever it is; but there is an end."""
    subject = exchange("POST", retry=False)
    for number in range(1, 6):
        subject.begin(INFO, number, 0.0)
        subject.turn_away("the server closed the connection", 0.0, lost=True)
        assert (subject.attempts, subject.may_retry) == (0, number < 5)
        if subject.may_retry:
            subject.start_over()

    assert (type(subject.error), subject.error.request_sent) == (ConnectionLost, False)
    assert str(subject.error) == (
        "5 connections were lost before the request could be sent: the server closed the connection"
    )


def test_what_was_never_sent_does_not_use_up_its_repetition():
    """What was refused once, and then found no connection that lasts, ends there; a full connection does not count."""
    subject = unprocessed()
    subject.start_over()
    for number in range(1, 11):
        subject.begin(INFO, 1, 2.0)
        subject.turn_away("it is full", 2.0, lost=number > 5)
        assert (subject.attempts, subject.may_retry) == (1, number < 10)
        subject.start_over()


# -- Timings


def phases(timings):
    return {name: getattr(timings, name) for name in Timings.__slots__ if getattr(timings, name) is not None}


def test_timings_of_a_request():
    """Each phase has its time; what did not happen is None; together they are the total."""
    subject = exchange(now=1.0)
    assert phases(subject.timings()) == {}
    subject.dial_timings = {"lookup": 0.25, "handshake": 0.5}
    subject.begin(INFO, 1, 2.0)
    subject.sent(2.5)
    subject.now = 4.5
    subject.response_received(HEAD)
    subject.now = 5.0
    subject.response_ended(None)

    found = phases(subject.timings())

    assert found == {
        "queue": 0.25,
        "lookup": 0.25,
        "handshake": 0.5,
        "send": 0.5,
        "wait": 2.0,
        "receive": 0.5,
        "total": 4.0,
    }
    assert sum(found.values()) == 2 * found["total"]


def test_timings_of_an_early_response():
    """Sending ends with the head of a response that did not wait for it."""
    subject = begun()
    subject.progressed(0.0)
    subject.now = 1.0
    subject.response_received(HEAD)
    subject.sent(2.0)
    subject.now = 3.0
    subject.response_ended(None)

    assert phases(subject.timings()) == {"queue": 0.0, "send": 1.0, "wait": 0.0, "receive": 2.0, "total": 3.0}


def test_timings_before_the_end():
    """While a request is under way the phases that are over can be seen."""
    subject = waiting()

    assert phases(subject.timings()) == {"queue": 0.0, "send": 0.0}
    assert phases(begun().timings()) == {"queue": 0.0}
    assert repr(subject.timings()) == "Timings(queue=0.000000, send=0.000000)"


def unprocessed(method="POST", *, error=None, received=False, **arguments):
    subject = begun(method, number=1, **arguments)
    subject.sent(0.0)
    subject.received = received
    subject.unprocessed = True
    subject.fail(error or StreamReset("refused", error_code=7), 1.0)
    return subject


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize("error", [ConnectionLost("goaway"), StreamReset("refused", error_code=7)])
@pytest.mark.parametrize("received", [False, True])
def test_what_was_certainly_not_processed_is_repeated(method, error, received):
    """Whatever the method, on a new connection too, and behind a 1xx; any connection will do (RFC 9113, 8.7)."""
    subject = unprocessed(method, error=error, received=received)

    assert subject.may_retry
    subject.start_over()
    assert not subject.wants_fresh


@pytest.mark.parametrize(
    "subject",
    [unprocessed(content=iter([b"x"])), unprocessed(retry=False)],
    ids=["one-shot", "off"],
)
def test_what_was_not_processed_and_cannot_be_repeated(subject):
    """A body that can be read once, or retry=False, leaves it at that."""
    assert not subject.may_retry


@pytest.mark.parametrize("error", [PoolTimeout("full"), ConnectError("refused"), AgentClosed("closed")])
def test_repetition_that_does_not_begin_is_the_last(error):
    """A request whose second attempt found no connection is not tried for ever."""
    subject = unprocessed()
    subject.start_over()

    subject.fail(error, 2.0)

    assert subject.attempts == 1
    assert not subject.may_retry


def test_second_attempt_that_was_not_processed_either_is_final():
    """A request is repeated once."""
    subject = unprocessed()
    subject.start_over()
    subject.begin(INFO, 1, 2.0)
    subject.fail(StreamReset("refused", error_code=7), 3.0)

    assert subject.attempts == 2
    assert not subject.may_retry


def test_what_may_have_been_processed_wants_a_new_connection():
    """A stale connection may have brothers; one that refused has done nothing wrong."""
    subject = lost()
    subject.start_over()

    assert subject.wants_fresh


def test_high_water_is_that_of_its_connection():
    """What may wait for its consumer depends on the window; a new attempt begins with what HTTP/1.1 allows."""
    subject = receiving()
    subject.awaiting = Awaiting.BODY
    subject.high_water = 10

    subject.body_received(b"x" * 10)
    assert not subject.paused
    subject.body_received(b"x")

    assert (subject.paused, subject.deadline) == (True, inf)
    subject.start_over()
    assert subject.high_water == HIGH_WATER


def test_what_is_kept_back_has_a_time_to_be_sent():
    """A request that waits on its connection is not sent, and overdue like one that the peer does not take."""
    subject = begun(expect_continue=True, content=b"x")

    subject.kept_back(1.0)

    assert (subject.holding, subject.request_sent, subject.deadline, subject.phase) == (True, False, 6.0, "send")
