"""
The commands and their options; what they do is done in a module of each command's name.

Exit status: 0, the work was done; 1, it failed; 2, the command was used wrongly or lacks something to be installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

import tlsagent


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(tlsagent.__version__, prog_name="tlsagent")
def cli() -> None:
    """A connection-pooling HTTPS agent: see it at work, or have a server to point yours at."""


@cli.command()
@click.option("--requests", type=click.IntRange(min=1), default=100, show_default=True, help="Per identity and round.")
@click.option("--sockets", type=click.IntRange(min=1), default=4, show_default=True, help="max_sockets: per identity.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def demo(requests: int, sockets: int, as_json: bool) -> None:
    """
    Show what the agents do with connections and TLS sessions.

    Starts the embedded server, sends requests by AsyncAgent and by Agent under several identities, in two rounds: the
    second resumes the sessions of the first. Then asks for a name that the certificate does not have, and for an answer
    that comes too late. Fails if the server counted differently.
    """
    _need_testing()
    from tlsagent.cli import view
    from tlsagent.cli.demo import run

    if as_json:
        outcome = run(requests, sockets)
        click.echo(json.dumps(view.as_dict(outcome), indent=2))
    else:
        with view.showing() as watch:
            outcome = run(requests, sockets, watch)
        view.show_end(outcome)
    raise SystemExit(1 if outcome.problems else 0)


@cli.command()
@click.option("--port", type=click.IntRange(0, 65_535), default=8443, show_default=True, help="0 takes any free one.")
@click.option("--tickets", type=click.IntRange(min=0), help="Session tickets per handshake; 0: no resumption.")
@click.option(
    "--alpn-protocols",
    type=click.Choice(["h2", "http/1.1"]),
    multiple=True,
    default=("h2", "http/1.1"),
    show_default=True,
    help="What to speak; may be given twice, best first.",
)
@click.option("--tls", type=click.Choice(["1.2", "1.3"]), help="Speak this version alone.  [default: both]")
@click.option(
    "--request-cert",
    type=click.Choice(["ask", "demand"]),
    is_flag=False,
    flag_value="ask",
    help="Ask clients for a certificate; 'demand' refuses those without one.",
)
@click.option("--ca-file", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the CA certificate.")
@click.option(
    "--client-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write a client certificate with its key.",
)
@click.option("--json", "as_json", is_flag=True, help="Print url and paths as one line of JSON.")
def serve(
    port: int,
    tickets: int | None,
    alpn_protocols: tuple[str, ...],
    tls: Literal["1.2", "1.3"] | None,
    request_cert: Literal["ask", "demand"] | None,
    ca_file: Path | None,
    client_file: Path | None,
    as_json: bool,
) -> None:
    """
    Run the embedded HTTPS server until Ctrl-C.

    Its certificate is made on the spot, for localhost, by an authority that nobody trusts unless told to: the CA
    certificate is written to a file, a temporary one unless --ca-file says where.
    """
    _need_testing()
    from tlsagent.cli.serve import run

    try:
        run(port, tickets, alpn_protocols, tls, request_cert, ca_file, client_file, as_json=as_json)
    except OSError as exc:
        raise click.ClickException(f"cannot serve: {exc}") from exc


def _need_testing() -> None:
    """Exit with status 2 if the embedded server lacks its extra."""
    try:
        import trustme  # noqa: F401
    except ModuleNotFoundError as exc:
        raise click.UsageError(
            f"the embedded server needs {exc.name}, which is missing: pip install 'tlsagent[cli,testing]'"
        ) from exc
