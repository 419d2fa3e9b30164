"""Write docs/options.md from the code: `make docs`."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path

from tlsagent import UNSET, AgentOptions, ConnectionOptions, Http1Options, Timeouts
from tlsagent._options import DEFAULTS

PAGE = """\
# Options and their defaults

What each option means, its unit and its effect on the pool key stand in the docstrings of `ConnectionOptions`,
`AgentOptions` and `Timeouts`. Every field defaults to `UNSET`, which says nothing: a request's options are laid over
the agent's, and those over the defaults below. `None` is a value: no limit for durations and counts, the library's
default for everything else. Durations are seconds.

This page is written from the code by `make docs`.

## Connection options

{connection}

Where the default is `None`: `ca` takes certifi's roots; `check_server_identity` the check of RFC 9525; `ciphers`,
`ecdh_curve` and `sigalgs` the default lists of OpenSSL; `host`, `port` and `servername` what the URL says; `lookup` the
system's resolver.

## Agent options

{agent}

## Timeouts

`Timeouts`, for an agent or a request; a plain number means `total`.

{timeouts}

## Limits for HTTP/1.1

`http1=Http1Options(...)`.

{http1}

## Not in this release

{missing}
"""


def page() -> str:
    """Return the page as it should be."""
    of_connections = ConnectionOptions.field_names()
    of_agents = [name for name in AgentOptions.field_names() if name not in (*of_connections, "timeouts", "http1")]
    missing = [f"`{name}`" for name in AgentOptions.field_names() if getattr(DEFAULTS, name) is UNSET]
    told = f"Known by name, and refused with `NotImplementedError` when they are given: {', '.join(missing)}."
    return PAGE.format(
        connection=_table(DEFAULTS, of_connections),
        agent=_table(DEFAULTS, of_agents),
        timeouts=_table(DEFAULTS.timeouts, [field.name for field in dataclasses.fields(Timeouts)]),
        http1=_table(DEFAULTS.http1, [field.name for field in dataclasses.fields(Http1Options)]),
        missing=textwrap.fill(told, 120, break_long_words=False, break_on_hyphens=False) if missing else "Nothing.",
    )


def _table(owner: object, names: tuple[str, ...] | list[str]) -> str:
    values = {name: getattr(owner, name) for name in names}
    rows = [f"| `{name}` | `{value!r}` |" for name, value in values.items() if value is not UNSET]
    return "\n".join(["| option | default |", "| --- | --- |", *rows])


if __name__ == "__main__":
    Path(__file__).with_name("options.md").write_text(page())
