"""
`open_agent` for the tests of HTTP/2: each runs with both drivers, and with both engines on either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from http2_peers import CA
from tests.wire.conftest import AsyncHarness, ThreadsHarness

PAIRS = [f"{driver}-{engine}" for driver in ("threads", "asyncio") for engine in ("h2", "ngh2")]


@pytest.fixture(params=PAIRS)
def open_agent(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Return a function that makes an agent which trusts the peers; all are closed at the end."""
    driver, _, engine = request.param.partition("-")
    made: list[Any] = []

    def make(**options: Any) -> Any:
        given = {"ca": CA, "host": "127.0.0.1", "http2_engine": engine, "timeouts": 30, **options}
        harness = ThreadsHarness(**given) if driver == "threads" else AsyncHarness(driver, **given)
        made.append(harness)
        return harness

    yield make
    for harness in made:
        harness.tear_down()
