"""
What the benchmarks share: the server's process, cores, CPU clocks, rounds taken in turn, and the report.

Wall time on a shared machine drifts by a factor of two within minutes. So contenders take turns in every round, a ratio
is made of two figures of the same round, and what counts is the median of these; CPU time stands beside wall time.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import ssl
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("tlsagent", "httptools", "h11", "pyOpenSSL", "cryptography", "uvloop", "aiohttp", "trustme")


def pin(core: int | None) -> None:
    """Keep this process on one core, where the system can do that and has such a core."""
    if core is not None and hasattr(os, "sched_setaffinity") and core < (os.cpu_count() or 1):
        os.sched_setaffinity(0, {core})


class Target(NamedTuple):
    """A server under test."""

    url: str
    ca: str
    pid: int


@contextlib.contextmanager
def running_server(*, core: int = 0, spin: bool = False) -> Iterator[Target]:
    """
    Run the server in a process of its own.

    Args:
        core: The core it stays on.
        spin: Let it never sleep. Waking a sleeping process is charged to whoever sends to it, 5 to 15 microseconds on
            a virtual machine, and how often it sleeps depends on how fast the client is: floors could not be compared.
    """
    command = [sys.executable, "-m", "benchmarks.server", "--core", str(core), *(["--spin"] if spin else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            yield Target(f"https://localhost:{said['port']}/", said["ca"], process.pid)
        finally:
            process.stdin.close()


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU time that another process has used; 0 where that cannot be told."""
    if sys.platform != "linux":
        return 0.0
    # clock_getcpuclockid(3), which Python lacks: the clock of a process is made from its number.
    return time.clock_gettime((~pid << 3) | 2)


class Sample(NamedTuple):
    """One round of one contender: what a request cost."""

    requests: int
    wall: float
    cpu: float
    server_cpu: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.wall

    @property
    def cpu_us(self) -> float:
        """Microseconds of the client's CPU time per request."""
        return self.cpu / self.requests * 1e6

    @property
    def server_us(self) -> float:
        """Microseconds of the server's CPU time per request."""
        return self.server_cpu / self.requests * 1e6


class Stopwatch:
    """Takes wall time, our CPU time and the server's."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._began = self._look()

    def _look(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), cpu_of(self._server)

    def stop(self, requests: int) -> Sample:
        """Return what `requests` of them took."""
        wall, cpu, server = (after - before for before, after in zip(self._began, self._look(), strict=True))
        return Sample(requests, wall, cpu, server)


class Spread(NamedTuple):
    """Figures of several rounds; `best` is the lowest or the highest, as the case may be."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Return the spread of some figures."""
        return cls(median(figures), min(figures), max(figures))

    def shown(self, digits: int) -> str:
        """Return it as text: the median, and from where to where."""
        low, mid, high = (f"{value:,.{digits}f}" for value in (self.low, self.median, self.high))
        return f"{mid} ({low} to {high})"


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the ratios of figures of the same rounds."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def versions() -> dict[str, str]:
    """Return the versions of everything that has a part in the figures."""
    from OpenSSL import SSL

    found = {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    found["OpenSSL of tlsagent"] = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()
    found["OpenSSL of ssl"] = ssl.OPENSSL_VERSION
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def report(name: str, text: str, data: dict[str, Any]) -> None:
    """Print a report and keep it, as text and as data."""
    found = versions()
    text = f"{text}\n\n{', '.join(f'{what} {version}' for what, version in found.items())}\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps({**data, "versions": found}, indent=1) + "\n")
