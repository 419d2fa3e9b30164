"""
How long the phases of a request may take, and what a peer may send: `Timeouts`, `Http1Options` and `Http2Options`.

Each is the value of one option, `timeouts`, `http1` and `http2`, with fields of its own. All are frozen, checked when
they are made, and none is in the pool key. Those of a peer cannot be lifted, only set.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from tlsagent._option_rules import UNSET, Rule, Unset, boolean, duration, margin, whole, wrong_type
from tlsagent.errors import OptionRangeError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """
    How long each phase of a request may take, in seconds; None means no limit, `UNSET` takes the layer below.

    `queue` and `total` belong to the request. `lookup`, `connect`, `tunnel` and `handshake` belong to the connection
    attempt, which may serve another request than the one that caused it. None of them is in the pool key.

    Attributes:
        queue: Waiting for a connection to become free. Default 30.
        lookup: Resolving the name. Default 10.
        connect: Reaching the address. Default 10.
        tunnel: Opening the proxy's tunnel. Default 10.
        handshake: The TLS handshake as a whole. Default 10.
        send: Between two moments at which the peer accepts bytes of the request. Default 30.
        response: From the end of the request to the head of the response. Default 60.
        read: Between two reads of the response's body. Default 60.
        total: From the call to the last byte. Default None.
    """

    queue: float | Unset | None = UNSET
    lookup: float | Unset | None = UNSET
    connect: float | Unset | None = UNSET
    tunnel: float | Unset | None = UNSET
    handshake: float | Unset | None = UNSET
    send: float | Unset | None = UNSET
    response: float | Unset | None = UNSET
    read: float | Unset | None = UNSET
    total: float | Unset | None = UNSET

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not UNSET:
                object.__setattr__(self, field.name, duration(f"timeouts.{field.name}", value))

    @classmethod
    def of(cls, value: object) -> Timeouts:
        """Return `value` as Timeouts: a plain number means `total`, None no limit at all."""
        if isinstance(value, Timeouts):
            return value
        if value is None:
            return cls(**dict.fromkeys((f.name for f in dataclasses.fields(cls)), None))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong_type("timeouts", "a Timeouts, a number of seconds or None", value)
        return cls(total=value)

    def merged_over(self, lower: Timeouts) -> Timeouts:
        """Return these timeouts laid over `lower`."""
        if self is lower:
            return self
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Timeouts(**{name: getattr(lower, name) if value is UNSET else value for name, value in values.items()})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Http1Options:
    """
    Limits on what an HTTP/1.1 peer may send, and patience with it. Not in the pool key.

    Attributes:
        max_head_size: Bytes of a response head, trailers and chunk headers included. Default 65,536.
        max_informational: 1xx responses before the final one. Default 16.
        expect_continue_wait: Seconds that the body of a request with `expect_continue=True` waits for a 100 (Continue)
            or a final response, before it is sent without one: servers may ignore the expectation (RFC 9110, 10.1.1).
            0 sends it at once. Default 1.
    """

    max_head_size: int = 65_536
    max_informational: int = 16
    expect_continue_wait: float = 1.0

    def __post_init__(self) -> None:
        _check(self, "http1", _HTTP1_RULES)


_HTTP1_RULES: Final[Mapping[str, Rule]] = {
    "max_head_size": whole,
    "max_informational": whole,
    "expect_continue_wait": margin,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Http2Options:
    """
    Windows of an HTTP/2 connection, and limits on what its peer may do. Not in the pool key.

    The budget for control frames is one bucket: each PING, SETTINGS, PRIORITY, empty DATA and unknown frame takes one
    out of it, and so does each WINDOW_UPDATE beyond four for every frame of a body that was sent. Whoever empties it
    gets GOAWAY with ENHANCE_YOUR_CALM.

    Attributes:
        stream_window: Bytes of a response body that may wait for their consumer, from 1 to 2,147,483,647. Default
            1,048,576.
        connection_window: Bytes of all bodies of a connection that may wait for their consumers before its streams hold
            up one another, from 65,535 to 1,073,741,823. The peer may send twice as many. Default 67,108,864.
        max_streams: Requests at a time on one connection; the peer's own limit may be lower. Default 1,000.
        max_header_list_size: Bytes of a header list, counted as in RFC 9113, 6.5.2: 32 more for each field. The
            informational responses before a final one must fit into it together. Default 65,536.
        max_continuations: CONTINUATION frames, of at most 16,384 bytes each, that one header list may take. Default 8.
        max_informational: 1xx responses before the final one. Default 16.
        max_pending_replies: Answers to PING and SETTINGS that may wait to be sent. Default 1,000.
        control_frames: Control frames that may come at once: the size of the bucket. Default 1,000.
        control_frame_rate: Control frames a second that refill the bucket. Default 100.
        ping_interval: Seconds of silence after which a connection in use, or about to be used again, is tried with a
            PING; None never does. Default 30.
        ping_timeout: Seconds that the answer to a PING may take before the connection counts as lost; None waits
            without end. Default 15.
        coalesce: Whether requests to one origin may use the connection of another (RFC 9113, 9.1.1), if its certificate
            covers both names, both lead to the same address, and the keys are equal but for the names. Where the server
            answers 421 (Misdirected Request), the request is sent once more, on a connection of its own. Default False.
    """

    stream_window: int = 1_048_576
    connection_window: int = 67_108_864
    max_streams: int = 1_000
    max_header_list_size: int = 65_536
    max_continuations: int = 8
    max_informational: int = 16
    max_pending_replies: int = 1_000
    control_frames: int = 1_000
    control_frame_rate: float = 100.0
    ping_interval: float | None = 30.0
    ping_timeout: float | None = 15.0
    coalesce: bool = False

    def __post_init__(self) -> None:
        _check(self, "http2", _HTTP2_RULES)


def _int31(name: str, value: object) -> int:
    return whole(name, value, most=2**31 - 1)


def _connection_window(name: str, value: object) -> int:
    # Not below what a connection begins with (RFC 9113, 6.9.2); the peer is given twice as much, in 31 bits.
    return whole(name, value, least=65_535, most=2**30 - 1)


def _rate(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(name, "a number", value)
    if not 0 < value < float("inf"):
        raise OptionRangeError(f"{name} must be more than 0, not {value}")
    return float(value)


_HTTP2_RULES: Final[Mapping[str, Rule]] = {
    "stream_window": _int31,
    "connection_window": _connection_window,
    "max_streams": _int31,
    "max_header_list_size": _int31,
    "max_continuations": _int31,
    "max_informational": _int31,
    "max_pending_replies": _int31,
    "control_frames": _int31,
    "control_frame_rate": _rate,
    "ping_interval": duration,
    "ping_timeout": duration,
    "coalesce": boolean,
}


def _check(limits: Http1Options | Http2Options, option: str, rules: Mapping[str, Rule]) -> None:
    for field in dataclasses.fields(limits):
        value = rules[field.name](f"{option}.{field.name}", getattr(limits, field.name))
        object.__setattr__(limits, field.name, value)


def _timeouts(_name: str, value: object) -> Timeouts:
    return Timeouts.of(value)


def _http1(name: str, value: object) -> Http1Options:
    if not isinstance(value, Http1Options):
        raise wrong_type(name, "an Http1Options", value)
    return value


def _http2(name: str, value: object) -> Http2Options:
    if not isinstance(value, Http2Options):
        raise wrong_type(name, "an Http2Options", value)
    return value


LIMIT_RULES: Final[Mapping[str, Rule]] = {"http1": _http1, "http2": _http2, "timeouts": _timeouts}
