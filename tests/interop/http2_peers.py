"""
Servers that speak HTTP/2: nginx, nghttpd and Node's, each with what it can tell of the requests that it saw.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from live_peers import Program, program, started

from tlsagent.testing.authority import default_authority, default_credentials

CA = default_authority().ca_pem
CREDENTIALS = default_credentials(("localhost", "other.test"))
SIZES = (0, 1, 100_000, 8_000_000)
"""Of bodies: none, one byte, some frames, more than any window."""


def payload(size: int) -> bytes:
    """Return a body in which a piece that is missing, or there twice, is seen."""
    pattern = bytes(range(251))
    return (pattern * (size // len(pattern) + 1))[:size]


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """
    Give a port of 127.0.0.1 that nobody else is given.

    A server that sets SO_REUSEADDR, as all here do, may bind it while this socket, which does not listen, has it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def save_credentials(folder: Path) -> tuple[Path, Path]:
    """Write the certificate for "localhost" and its key to files; return their paths."""
    cert, key = folder / "server.pem", folder / "server.key"
    cert.write_bytes(CREDENTIALS.cert_pem)
    key.write_bytes(CREDENTIALS.key_pem)
    return cert, key


# --- nginx ------------------------------------------------------------------------------------------------------------

_NGINX = """
%(user)s
daemon off;
worker_processes 1;
worker_shutdown_timeout 10s;
pid nginx.pid;
error_log stderr info;
events { worker_connections 256; }
http {
    log_format json escape=json '{"connection": $connection, "method": "$request_method", "uri": "$uri", '
        '"protocol": "$server_protocol", "status": $status, "sent": $body_bytes_sent, "number": "$http_x_number"}';
    access_log access.log json;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    ssl_certificate server.pem;
    ssl_certificate_key server.key;
    server {
        listen 127.0.0.1:%(port)d ssl %(http2)s;
        root files;
        client_max_body_size 16m;
        %(settings)s
        location /stored/ { dav_methods PUT; }
        location /slow/ { alias files/; limit_rate 200k; }
        location /trailers/ { alias files/; add_trailer x-served whole; }
        location = /early { return 200 early; }
        location = /small { client_max_body_size 1k; dav_methods PUT; }
    }
}
"""


class Nginx:
    """
    A running nginx: PUT below /stored/ makes files, GET /N a body of N bytes if that is in `SIZES`, and so does GET
    /trailers/N, with trailers behind it, and GET /slow/N, at 200 kB a second. /early answers before it has read the
    request, /small takes no body above 1 kB.
    """

    def __init__(self, program: Program, folder: Path, port: int) -> None:
        self.url = f"https://localhost:{port}"
        self.program = program
        self.folder = folder

    def reload(self) -> None:
        """Have the worker replaced; those that were there end when their requests have."""
        workers = len(self._workers())
        self.program.process.send_signal(signal.SIGHUP)
        assert self.program.wait_for(lambda: len(self._workers()) > workers)

    def _workers(self) -> list[str]:
        return [line for line in self.program.lines if re.search(r"start worker process \d+", line)]

    def served(self) -> list[dict[str, Any]]:
        """Return what the access log says, an entry for each request that has ended."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    def stored(self, name: str) -> bytes:
        """Return a file that was PUT."""
        return (self.folder / "files" / "stored" / name).read_bytes()


@contextlib.contextmanager
def nginx(folder: Path, settings: str = "", *, http2: bool = True) -> Iterator[Nginx]:
    """Run nginx in a folder, with more settings for its server."""
    save_credentials(folder)
    (folder / "files" / "stored").mkdir(parents=True)
    for size in SIZES:
        (folder / "files" / str(size)).write_bytes(payload(size))
    with reserved_port() as port:
        values = {"port": port, "http2": "http2" if http2 else "", "settings": settings}
        values["user"] = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(_NGINX % values)
        command = [program("nginx"), "-p", f"{folder}/", "-e", "stderr", "-c", "nginx.conf"]
        with started(command, r"start worker process (\d+)", stop=signal.SIGTERM) as peer:
            yield Nginx(peer, folder, port)


# --- nghttpd ----------------------------------------------------------------------------------------------------------


class Nghttpd:
    """A running nghttpd, which sends back what is POSTed or PUT, and logs each frame: GET /N as with nginx."""

    def __init__(self, program: Program, port: int) -> None:
        self.url = f"https://localhost:{port}"
        self.program = program

    def frames(self) -> list[tuple[str, str, str, int, str]]:
        """Return the frames in order: connection, "recv" or "send", type, stream, flags."""
        found = []
        for line in list(self.program.lines):
            if match := re.search(r"\[id=(\d+)\].*?(recv|send) (\w+) frame <.*?flags=0x(\w+), stream_id=(\d+)", line):
                connection, way, kind, flags, stream = match.groups()
                found.append((connection, way, kind, int(stream), int(flags, 16)))
        return found


@contextlib.contextmanager
def nghttpd(folder: Path, *arguments: str) -> Iterator[Nghttpd]:
    """Run nghttpd in a folder, with more arguments."""
    cert, key = save_credentials(folder)
    for size in SIZES:
        (folder / str(size)).write_bytes(payload(size))
    with reserved_port() as port:
        command = [program("nghttpd"), "--verbose", "--echo-upload", "--address=127.0.0.1", f"--htdocs={folder}"]
        command += [*arguments, str(port), str(key), str(cert)]
        with started(command, r"listen 127\.0\.0\.1:(\d+)") as peer:
            yield Nghttpd(peer, port)


# --- Node -------------------------------------------------------------------------------------------------------------


class NodeServer:
    """A running `http2_server.js`."""

    def __init__(self, program: Program) -> None:
        self.url = f"https://localhost:{program.announced}"
        self.program = program
        self._numbers = itertools.count()

    def tell(self, command: str, argument: Any = None) -> Any:
        """Have it do one of its `commands`; return the answer."""
        start = f"ANSWER {next(self._numbers)} "
        self.program.say(json.dumps([int(start.split()[1]), command, argument]))

        def answers() -> list[str]:
            return [line for line in self.program.lines if line.startswith(start)]

        assert self.program.wait_for(answers), "".join(self.program.lines)
        return json.loads(answers()[0].removeprefix(start))

    def report(self) -> dict[str, Any]:
        """Return what it saw: requests ("seen"), numbers of open "sessions", and how many connections have "ended"."""
        return dict(self.tell("report"))

    def seen(self) -> list[dict[str, Any]]:
        """Return an entry for each request, in order."""
        return list(self.report()["seen"])


@contextlib.contextmanager
def node_server(**options: Any) -> Iterator[NodeServer]:
    """Run Node's HTTP/2 server with options of `http2.createSecureServer`."""
    given = {"key": CREDENTIALS.key_pem.decode(), "cert": CREDENTIALS.cert_pem.decode(), **options}
    script = str(Path(__file__).with_name("http2_server.js"))
    with started([program("node"), script, json.dumps(given)], r"LISTENING (\d+)") as peer:
        yield NodeServer(peer)
