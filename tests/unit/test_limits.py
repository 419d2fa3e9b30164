"""Timeouts and limits: checked and canonical when they are made, and named by the option that they are the value of."""

import dataclasses
import math

import pytest

from tlsagent import UNSET, Http1Options, Http2Options, Timeouts
from tlsagent.errors import OptionError, OptionRangeError


def test_timeouts_say_nothing_that_was_not_said():
    """
    Every timeout defaults to UNSET, so that the layer below has its say.
    """
    assert all(getattr(Timeouts(), f.name) is UNSET for f in dataclasses.fields(Timeouts))


def test_no_timeouts_at_all():
    """
    `timeouts=None` means no limit for any phase.
    """
    assert all(getattr(Timeouts.of(None), f.name) is None for f in dataclasses.fields(Timeouts))


def test_timeouts_are_laid_over_each_other_field_by_field():
    """
    None is a value and stands; UNSET takes what is below, be it UNSET too.
    """
    above = Timeouts(queue=1, read=None)

    merged = above.merged_over(Timeouts(queue=2, read=3, total=4))

    assert merged == Timeouts(queue=1, read=None, total=4)
    assert above.merged_over(Timeouts()) == above
    assert merged.merged_over(merged) is merged


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Timeouts)])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1", True])
def test_bad_durations_are_refused_by_name(field, value):
    """
    A duration is a finite number above 0 or None; the message names the field.
    """
    with pytest.raises(OptionError, match=f"timeouts.{field}"):
        Timeouts(**{field: value})


@pytest.mark.parametrize("field", ["max_head_size", "max_informational"])
@pytest.mark.parametrize("value", [0, -1, None, "1", True])
def test_bad_http1_limits_are_refused(field, value):
    """
    The limits on a peer cannot be lifted, only set.
    """
    with pytest.raises(OptionError, match=field):
        Http1Options(**{field: value})


@pytest.mark.parametrize("value", [-1, float("inf"), None, "1", True])
def test_bad_wait_for_100_is_refused(value):
    """
    The wait for a 100 (Continue) is a finite number of seconds: nobody must wait for ever (RFC 9110, 10.1.1).
    """
    with pytest.raises(OptionError, match=r"http1\.expect_continue_wait"):
        Http1Options(expect_continue_wait=value)


def test_wait_for_100_may_be_nothing():
    """
    0 sends the body at once; the default is a second.
    """
    assert (Http1Options(expect_continue_wait=0).expect_continue_wait, Http1Options().expect_continue_wait) == (0, 1)


HTTP2_COUNTS = [
    "stream_window", "connection_window", "max_streams", "max_header_list_size", "max_continuations",
    "max_informational", "max_pending_replies", "control_frames",
]  # fmt: skip


@pytest.mark.parametrize("field", HTTP2_COUNTS)
@pytest.mark.parametrize("value", [0, -1, 2**31, None, "1", True, 1.5])
def test_bad_http2_limits_are_refused(field, value):
    """
    The limits on a peer are whole numbers of 31 bits.
    """
    with pytest.raises(OptionError, match=f"http2.{field}"):
        Http2Options(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connection_window", 65_534),
        ("connection_window", 2**30),
        *[("control_frame_rate", value) for value in (0, -1, math.nan, math.inf, None, "1", True)],
        *[(field, value) for field in ("ping_interval", "ping_timeout") for value in (0, -1, math.nan, "1", True)],
    ],
)
def test_bad_http2_windows_rates_and_durations_are_refused(field, value):
    """
    The window of a connection cannot be smaller than the one it begins with; rates and durations are above 0.
    """
    with pytest.raises(OptionError, match=f"http2.{field}"):
        Http2Options(**{field: value})


def test_http2_options_are_documented_and_canonical():
    """
    Every field is explained with its default, and numbers are kept as floats where they are durations or rates.
    """
    options = Http2Options(ping_interval=5, ping_timeout=None, control_frame_rate=7)

    assert (options.ping_interval, options.ping_timeout, options.control_frame_rate) == (5.0, None, 7.0)
    assert type(options.ping_interval) is type(options.control_frame_rate) is float
    words = " ".join(Http2Options.__doc__.split())
    for field in dataclasses.fields(Http2Options):
        explained = words.split(f" {field.name}: ")[1]
        stated = explained.split("Default ")[1].split()[0]
        assert str(field.default) in stated or f"{field.default:,g}" in stated or f"{field.default:,}" in explained


def test_a_limit_that_cannot_be_lifted_is_not_said_to_be():
    """
    What is refused names the range, and promises no way to have no limit.
    """
    for made in (lambda: Http1Options(max_head_size=0), lambda: Http2Options(max_streams=2**31)):
        with pytest.raises(OptionRangeError, match=r"must be at (least 1|most 2147483647), not") as caught:
            made()
        assert "None" not in str(caught.value)
