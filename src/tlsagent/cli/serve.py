"""`tlsagent serve`: the embedded server for as long as it is wanted."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import click

from tlsagent.testing import Server

if TYPE_CHECKING:
    from types import FrameType

    from tlsagent.testing import Authority


def run(
    port: int,
    tickets: int | None,
    alpn_protocols: tuple[str, ...],
    tls: Literal["1.2", "1.3"] | None,
    request_cert: Literal["ask", "demand"] | None,
    ca_file: Path | None,
    client_file: Path | None,
    *,
    as_json: bool,
) -> None:
    """
    Serve until SIGINT or SIGTERM.

    Raises:
        OSError: The port is taken, or a file cannot be written.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    server = Server(
        port=port,
        tickets=tickets,
        alpn_protocols=alpn_protocols,
        min_version="TLSv1.3" if tls == "1.3" else "TLSv1.2",
        max_version="TLSv1.2" if tls == "1.2" else "TLSv1.3",
        request_cert="demand" if request_cert == "demand" else request_cert == "ask",
    )
    with tempfile.TemporaryDirectory(prefix="tlsagent-") as folder, contextlib.suppress(KeyboardInterrupt), server:
        ca_file = ca_file or Path(folder, "ca.pem")
        ca_file.write_bytes(server.ca_pem)
        if client_file is not None:
            _write_client(server.authority, client_file)
        _announce(server.url, ca_file, client_file, as_json=as_json)
        threading.Event().wait()
    if not as_json:
        stats = server.stats
        shook = f"{stats.handshakes_full} full, {stats.handshakes_resumed} resumed, {stats.handshakes_failed} failed"
        click.echo(f"\n{stats.requests} requests on {stats.connections} connections; handshakes: {shook}")


def _write_client(authority: Authority, path: Path) -> None:
    credentials = authority.issue("client@localhost", client=True)
    path.touch(mode=0o600)
    path.write_bytes(credentials.key_pem + credentials.cert_pem)


def _announce(url: str, ca_file: Path, client_file: Path | None, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"url": url, "ca": str(ca_file), "client": client_file and str(client_file)}))
        return
    click.echo(f"Serving {url} until Ctrl-C")
    click.echo(f"CA certificate: {ca_file}")
    certificate = ""
    if client_file is not None:
        click.echo(f"Client certificate and key: {client_file}")
        certificate = f" --cert {client_file}"
    click.echo(f"Try: curl --cacert {ca_file}{certificate} {url}/hello")


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
