"""
Runs the scenarios of a file and judges each: pass, explained, fail.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.pooling.client import Play, catching
from tests.pooling.material import Unknown
from tests.pooling.rules import Case, Difference, broken, differences, explained

_AT_ONCE = 8
"""Scenarios that run at the same time. Those about time run by themselves, after the others."""


@dataclasses.dataclass
class Verdict:
    """
    What became of a scenario.

    Attributes:
        status: "pass", "explained" or "fail".
        differences: From Node, each with what explains it.
        failures: What nothing explains.
    """

    id: str
    title: str
    status: str
    differences: list[Difference]
    failures: list[str]
    seconds: float

    @property
    def explanations(self) -> list[str]:
        return list(dict.fromkeys(one.explained_by for one in self.differences if one.explained_by))

    def as_json(self) -> dict[str, Any]:
        shown = [
            {
                "path": ".".join(one.path),
                "node": one.node if _is_json(one.node) else None,
                "here": one.here if _is_json(one.here) else None,
                "explained_by": one.explained_by,
            }
            for one in self.differences
        ]
        return {
            "id": self.id,
            "title": self.title,
            "status": self.status,
            "explanations": self.explanations,
            "differences": shown,
            "failures": self.failures,
            "seconds": round(self.seconds, 3),
        }


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, dict))


def load(path: Path) -> dict[str, Any]:
    """Return a file of scenarios."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


async def replay(content: Mapping[str, Any], only: frozenset[str] = frozenset()) -> list[Verdict]:
    """Return the verdicts on all scenarios of a file, or on some, in its order."""
    chosen = [scenario for scenario in content["scenarios"] if not only or scenario["id"] in only]
    files = content["meta"].get("files", {})
    uncaught: list[str] = []
    verdicts: dict[str, Verdict] = {}
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(scenario: Mapping[str, Any]) -> None:
        async with places:
            verdicts[scenario["id"]] = await _play(scenario, files)

    with catching(uncaught):
        for about_time in (False, True):
            await asyncio.gather(*(one(s) for s in chosen if bool(s.get("timing")) is about_time))
    ordered = [verdicts[scenario["id"]] for scenario in chosen]
    if uncaught:
        ordered.append(Verdict("(uncaught)", "exceptions that nobody caught", "fail", [], uncaught, 0.0))
    return ordered


async def _play(scenario: Mapping[str, Any], files: Mapping[str, Any]) -> Verdict:
    started = time.monotonic()
    found: list[Difference] = []
    try:
        play = Play(scenario, files)
        here = await play.run()
        case = Case(scenario, here, play.failures)
        found = explained(case, differences(scenario, here))
        failures = broken(case)
    except Unknown as error:
        failures = [f"the replay does not know {error}"]
    except Exception as error:
        failures = [f"the replay broke: {error!r} ({_place_of(error)})"]
    failures += [
        f"{'.'.join(one.path)}: Node {one.node!r}, here {one.here!r}" for one in found if one.explained_by is None
    ]
    status = "fail" if failures else "explained" if found else "pass"
    return Verdict(scenario["id"], scenario.get("title", ""), status, found, failures, time.monotonic() - started)


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
