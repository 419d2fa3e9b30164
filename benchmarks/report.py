"""
What a run found, as Markdown, as JSON with every sample, and as a plot.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import CLIENT_CORE, SERVER_CORE, Sample, Spread, node
from benchmarks.nginx import program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.rows import Outcome, Row, Verdict

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "tlsagent", "h11", "httptools", "h2", "ngh2", "pyOpenSSL", "cryptography", "uvloop", "aiohttp", "httpx", "httpcore",
    "urllib3", "pyreqwest", "curl_cffi",
)  # fmt: skip


def _said(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.splitlines()[0].strip()


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of everything that has a part in the figures."""
    import pycurl
    from OpenSSL import SSL

    found = {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found | {
        "pycurl": pycurl.version,
        "OpenSSL of tlsagent": SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(),
        "OpenSSL of ssl": ssl.OPENSSL_VERSION,
        "Node": _said(node(), "--version"),
        "nginx": _said(str(program()), "-v"),
        "wrk": _said("wrk", "-v"),
        "h2load": _said("h2load", "--version"),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _facts(samples: list[Sample]) -> str:
    """Return what was seen besides, in short: the share of each way that TLS was agreed."""
    first = samples[0].facts
    found = []
    if "engine" in first:
        found.append(first["engine"])
    if "protocol" in first:
        found.append(f"{first['protocol']}, {first['connections']} connection")
    tls: dict[str, int] = {}
    for sample in samples:
        for said, count in sample.facts.get("tls", {}).items():
            tls[said] = tls.get(said, 0) + count
    for said, count in sorted(tls.items(), key=lambda item: -item[1]):
        share = count / sum(tls.values()) * 100
        words = said.split(" ")
        how = " ".join([*filter(None, words[:-1]), "resumed" if words[-1] == "r" else "full"])
        found.append(f"{share:.{0 if share > 99.5 else 1}f} % {how}")
    if "resumed" in first:
        found.append(f"{first['resumed']:,} resumed")
    return ", ".join(found)


def _verdict_rows(verdicts: list[Verdict], name: str = "") -> list[list[str]]:
    return [
        [
            *([name] if name else []),
            verdict.bar,
            verdict.found.shown(2),
            verdict.cpu.shown(2) if verdict.cpu else "",
            _word(verdict),
        ]
        for verdict in verdicts
    ]


def _word(verdict: Verdict) -> str:
    if verdict.holds:
        return "reached" if verdict.holds_by_cpu else "reached, not by CPU time"
    return "**MISSED**, reached by CPU time" if verdict.holds_by_cpu else "**MISSED**"


def _section(outcome: Outcome) -> str:
    """Return the tables of one row."""
    row, samples = outcome.row, outcome.samples
    cells = []
    for who, theirs in samples.items():
        figures = Spread.of([row.figure.of(sample) for sample in theirs])
        cpu = Spread.of([sample.cpu_us for sample in theirs])
        line = [who, figures.shown(row.figure.digits), f"{best(row, figures):,.{row.figure.digits}f}"]
        if not row.figure.less:
            line.append(cpu.shown(1))
        if any(sample.server_cpu for sample in theirs):
            line.append(f"{Spread.of([sample.busy for sample in theirs]).median * 100:.0f} %")
        cells.append([*line, _facts(theirs)])
    header = ["contender", f"{row.figure.name}, median (from, to)", "best"]
    header += [] if row.figure.less else ["CPU µs each"]
    header += ["server busy"] if any(sample.server_cpu for sample in samples[who]) else []
    return f"### `{row.name}`: {row.title}\n\n{table([*header, 'seen'], cells)}"


def best(row: Row, figures: Spread) -> float:
    """Return the best of some figures."""
    return figures.low if row.figure.less else figures.high


def page(title: str, outcomes: list[Outcome], facts: dict[str, str], conditions: str) -> str:
    """Return the whole report as Markdown."""
    verdicts = [line for outcome in outcomes for line in _verdict_rows(outcome.verdicts, f"`{outcome.row.name}`")]
    missed = sum(not verdict.holds for outcome in outcomes for verdict in outcome.verdicts)
    heading = ["row", "bar", "found, median (from, to)", "by CPU time", ""]
    return "\n\n".join([
        f"# {title}: what was measured",
        conditions,
        "## The bars",
        table(heading, verdicts),
        f"{missed} of {len(verdicts)} bars missed." if missed else f"All {len(verdicts)} bars reached.",
        "## The rows",
        *map(_section, outcomes),
        "## Versions",
        table(["what", "version"], [[what, version] for what, version in facts.items()]),
    ]) + "\n"  # fmt: skip


def data(outcomes: list[Outcome], facts: dict[str, str], conditions: str) -> dict[str, Any]:
    """Return the whole report as data."""
    return {
        "conditions": conditions,
        "versions": facts,
        "rows": {
            outcome.row.name: {
                "title": outcome.row.title,
                "figure": outcome.row.figure.name,
                "figures": {
                    who: [outcome.row.figure.of(sample) for sample in theirs]
                    for who, theirs in outcome.samples.items()
                },
                "samples": {who: [s._asdict() for s in theirs] for who, theirs in outcome.samples.items()},
                "verdicts": [{**v._asdict(), "holds": v.holds} for v in outcome.verdicts],
            }
            for outcome in outcomes
        },
    }  # fmt: skip


def plot(outcomes: list[Outcome], path: Path) -> None:
    """Draw the figures, a panel for each row: bars are medians, whiskers go from the lowest to the highest."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.transforms import blended_transform_factory

    mpl.rcParams.update({"svg.hashsalt": "tlsagent", "svg.fonttype": "none"})
    heights = [len(outcome.samples) + 1.5 for outcome in outcomes]
    figure = Figure(figsize=(9, 0.28 * sum(heights)), layout="constrained")
    for axes, outcome in zip(
        figure.subplots(len(outcomes), 1, squeeze=False, height_ratios=heights)[:, 0], outcomes, strict=True
    ):
        names = list(reversed(outcome.samples))
        spreads = [Spread.of([outcome.row.figure.of(sample) for sample in outcome.samples[who]]) for who in names]
        medians = [spread.median for spread in spreads]
        reach = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
        colours = ["tab:blue" if "Agent" in who or "tlsagent" in who else "tab:gray" for who in names]
        axes.barh(names, medians, xerr=reach, color=colours, ecolor="black", capsize=2)
        title = axes.set_title(f"{outcome.row.title}: {outcome.row.figure.name}", fontsize=8, loc="left", x=0.01)
        # From the left edge of the figure: how far from it the axes begin depends on the longest name.
        title.set_transform(blended_transform_factory(figure.transFigure, axes.transAxes) + axes.titleOffsetTrans)
        title.set_in_layout(False)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def describe(rounds: int, seconds: float, before: tuple[float, ...], after: tuple[float, ...]) -> str:
    """Return under what conditions a run took place."""
    return (
        f"{rounds} rounds in turn, turns of about {seconds:g} s. Server on core {SERVER_CORE}, client on core "
        f"{CLIENT_CORE}; ratios are of figures of the same round. Load average of the machine (1, 5, 15 minutes) "
        f"{', '.join(f'{load:.2f}' for load in before)} at the start, {', '.join(f'{load:.2f}' for load in after)} at "
        "the end."
    )


def keep(path: Path, title: str, outcomes: list[Outcome], facts: dict[str, str], conditions: str) -> None:
    """Write the report in all its forms, each with its own suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(page(title, outcomes, facts, conditions))
    path.with_suffix(".json").write_text(json.dumps(data(outcomes, facts, conditions), indent=1) + "\n")
    plot(outcomes, path.with_suffix(".svg"))
