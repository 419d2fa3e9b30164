"""
`python -m tests.pooling FILE.json [--json OUT]`, from the root of the checkout. Exit status 1 if any scenario failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

from tests.pooling.replay import Verdict, load, replay


def main(arguments: list[str] | None = None) -> int:
    """Replay a file, print the verdicts, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.pooling", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the verdicts, differences included")
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="replay these scenarios alone")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the explained differences too")
    said = parser.parse_args(arguments)
    started = time.monotonic()
    verdicts = asyncio.run(replay(load(said.file), frozenset(said.only)))
    for verdict in verdicts:
        _show(verdict, said.verbose)
    counts = Counter(verdict.status for verdict in verdicts)
    summary = {status: counts[status] for status in ("pass", "explained", "fail")}
    seconds = time.monotonic() - started
    print(f"{len(verdicts)} scenarios: " + ", ".join(f"{n} {s}" for s, n in summary.items()) + f" ({seconds:.1f} s)")
    if said.json:
        report = {"file": said.file.name, **summary, "scenarios": [verdict.as_json() for verdict in verdicts]}
        said.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 1 if counts["fail"] or not verdicts else 0


def _show(verdict: Verdict, verbose: bool) -> None:
    print(f"{verdict.status.upper() if verdict.status == 'fail' else verdict.status:9} {verdict.id}")
    for failure in verdict.failures:
        print(f"          ! {failure}")
    for explanation in verdict.explanations:
        print(f"          = {explanation}")
    if verbose:
        for one in verdict.differences:
            print(f"            {'.'.join(one.path)}: Node {one.node!r}, here {one.here!r}")


if __name__ == "__main__":
    sys.exit(main())
