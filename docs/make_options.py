"""Write docs/options.md and docs/node.md from the code: `make docs`."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from tlsagent import UNSET, AgentOptions, ConnectionOptions, Http1Options, Http2Options, Timeouts, node
from tlsagent._identity import KEY_TABLE
from tlsagent._options import DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Iterable

OPTIONS = """\
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

## Windows and limits for HTTP/2

`http2=Http2Options(...)`.

{http2}

## Not in this release

{missing}

## The pool key

Two requests share a connection only if every option that is in the key is the same for both. "Where" says what the
option is a property of: the TLS context, one connection, the route of the bytes, the agent, or a server. What the URL
says, host and port, is always in the key.

{key}
"""

NODE = """\
# Node's names

What `tlsagent.node` makes of every property of Node 26's `https.Agent`, `tls.connect`, `tls.createSecureContext` and
`https.request`. A name that is not here raises `OptionError`.

- **real**: the same thing here.
- **mapped**: something here does its work; the last column says how it differs.
- **refused**: it raises `OptionError`; the last column says why.

"Stands in" is where the property may be given: `context` for `tls.createSecureContext`, `connect` for `tls.connect`,
`agent` for `new https.Agent`, `request` for `https.request`.

This page is written from the code by `make docs`.

{support}
"""

OWN_TABLES = ("timeouts", "http1", "http2")
CALLS = ("context", "connect", "agent", "request")


def options_page() -> str:
    """Return docs/options.md as it should be."""
    of_connections = ConnectionOptions.field_names()
    of_agents = [name for name in AgentOptions.field_names() if name not in (*of_connections, *OWN_TABLES)]
    missing = [f"`{name}`" for name in AgentOptions.field_names() if getattr(DEFAULTS, name) is UNSET]
    told = f"Known by name, and refused with `NotImplementedError` when they are given: {', '.join(missing)}."
    return OPTIONS.format(
        connection=_defaults(DEFAULTS, of_connections),
        agent=_defaults(DEFAULTS, of_agents),
        timeouts=_defaults(DEFAULTS.timeouts, [field.name for field in dataclasses.fields(Timeouts)]),
        http1=_defaults(DEFAULTS.http1, [field.name for field in dataclasses.fields(Http1Options)]),
        http2=_defaults(DEFAULTS.http2, [field.name for field in dataclasses.fields(Http2Options)]),
        missing=textwrap.fill(told, 120, break_long_words=False, break_on_hyphens=False) if missing else "Nothing.",
        key=_table(
            ("option", "in the key", "where", "why"),
            ((_code(name), "yes" if row.in_key else "no", row.where, row.why) for name, row in KEY_TABLE.items()),
        ),
    )


def node_page() -> str:
    """Return docs/node.md as it should be."""
    rows = (
        (
            _code(one.name),
            one.state,
            _code(one.maps_to),
            ", ".join(call for call in CALLS if call in one.calls),
            one.why,
        )
        for one in node.SUPPORT.values()
    )
    return NODE.format(support=_table(("property", "state", "maps to", "stands in", "why"), rows))


PAGES = {"options.md": options_page, "node.md": node_page}


def _defaults(owner: object, names: Iterable[str]) -> str:
    values = {name: getattr(owner, name) for name in names}
    rows = ((_code(name), _code(repr(value))) for name, value in values.items() if value is not UNSET)
    return _table(("option", "default"), rows)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    for name, page in PAGES.items():
        Path(__file__).with_name(name).write_text(page())
