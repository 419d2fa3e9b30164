"""How an outcome of the demo is shown: a live table on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING, Any, Final

import click

import tlsagent
from tlsagent.cli.demo import WRONG_NAME, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from tlsagent import RequestError
    from tlsagent.cli.demo import Outcome, Row

_SHOWN_PHASES: Final = ("connect", "handshake", "wait", "total")
_COLUMNS: Final = (
    "agent", "identity", "speaks", "requests", "opened", "reused", "full", "resumed", *_SHOWN_PHASES
)  # fmt: skip
_WORDS: Final = _COLUMNS[:3]
_TITLE: Final = "Connections and TLS sessions per pool key; median milliseconds by phase"


def _cells(row: Row) -> list[str]:
    counters = row.counters
    numbers = (
        counters.requests,
        counters.opened,
        counters.reused,
        counters.handshakes_full,
        counters.handshakes_resumed,
    )
    times = (row.medians[phase] for phase in _SHOWN_PHASES)
    return [
        row.agent,
        row.identity,
        row.protocol or "-",
        *map(str, numbers),
        *("-" if t is None else f"{t * 1e3:.2f}" for t in times),
    ]


def _table(rows: tuple[Row, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=_TITLE, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in _WORDS else "right", overflow="fold")
    for number, row in enumerate(rows):
        last_of_agent = number + 1 < len(rows) and rows[number + 1].agent != row.agent
        table.add_row(*_cells(row), end_section=last_of_agent)
    return table


def lines(rows: tuple[Row, ...]) -> list[str]:
    """Return the table as plain text, one line a row."""
    cells = [list(_COLUMNS), *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < len(_WORDS) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


@contextlib.contextmanager
def showing() -> Iterator[Callable[[tuple[Row, ...]], object]]:
    """Show rows as they change on a terminal, the last ones elsewhere; gives the function to call with them."""
    if sys.stdout.isatty():
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            yield lambda rows: live.update(_table(rows), refresh=True)
    else:
        latest: list[tuple[Row, ...]] = []
        yield lambda rows: latest.__setitem__(slice(None), [rows])
        click.echo("\n".join([_TITLE + ":", *(line for rows in latest for line in lines(rows))]))


def show_end(outcome: Outcome) -> None:
    """Print what stands below the table."""
    server = outcome.server
    click.echo(
        f"\nThe server counted {server['requests']} requests, {server['handshakes_full']} full handshakes and "
        f"{server['handshakes_resumed']} resumed ones."
    )
    if outcome.given_up:
        click.echo(f"Connection attempts given up because a connection became free first: {outcome.given_up}.")
    for heading, error in (
        (f"Asked for https://{WRONG_NAME} at this server", outcome.refused),
        ("Asked for an answer within 0.2 s that takes 5 s", outcome.timed_out),
    ):
        click.echo(f"\n{heading}:\n    {'no error' if error is None else describe(error)}")
    click.echo()
    for problem in outcome.problems:
        click.echo(f"PROBLEM: {problem}", err=True)
    if not outcome.problems:
        click.echo(f"All as it should be, in {outcome.seconds:.1f} s.")


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as what JSON can say; times are seconds."""
    return {
        "version": tlsagent.__version__,
        "keys": [
            {
                "agent": row.agent,
                "identity": row.identity,
                "key": row.key,
                "protocol": row.protocol,
                "counters": dataclasses.asdict(row.counters),
                "medians": dict(row.medians),
            }
            for row in outcome.rows
        ],
        "server": dict(outcome.server),
        "given_up": outcome.given_up,
        "refused": _error(outcome.refused),
        "timed_out": _error(outcome.timed_out),
        "seconds": outcome.seconds,
        "problems": list(outcome.problems),
    }


def _error(error: RequestError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {
        "error": type(error).__name__,
        "code": error.code,
        "phase": error.phase,
        "elapsed": error.elapsed,
        "message": str(error),
    }
