"""
The server of the benchmarks: nginx, one worker, on its own core, with throw-away certificates (ECDSA P-256).

    /            13 bytes
    /tls         how TLS was agreed: version, group, "r" if the session was resumed or "."
    /connection  how the request came: protocol, number of its connection, its number on that
    /large       100 MB
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

from benchmarks.harness import SERVER_CORE, Target, pinned

if TYPE_CHECKING:
    from collections.abc import Iterator

BODY = b"Hello, world!"
LARGE = 100_000_000

_START_SECONDS = 10.0
_CONFIGURATION = """
daemon off;
master_process off;
pid nginx.pid;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    default_type text/plain;
    keepalive_requests 1000000000;
    keepalive_timeout 3600;
    ssl_certificate server.pem;
    ssl_certificate_key server.pem;
    ssl_session_cache shared:sessions:20m;
    ssl_protocols {protocols};
    server {{
        {listen}
        location = / {{ return 200 "{body}"; }}
        location = /tls {{ return 200 "$ssl_protocol $ssl_curve $ssl_session_reused"; }}
        location = /connection {{ return 200 "$server_protocol $connection $connection_requests"; }}
        location = /large {{ root .; }}
    }}
}}
"""


def program() -> str | None:
    """Return the path of nginx; Debian keeps it where only root looks."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")


def credentials(folder: Path) -> str:
    """Write `server.pem` for localhost and `ca.pem`, who signed it, into a folder; returns the latter."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    leaf = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    leaf.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return authority.cert_pem.bytes().decode()


@contextlib.contextmanager
def running_nginx(protocols: str = "TLSv1.3", connections: int = 1_000, http2: bool = False) -> Iterator[Target]:
    """
    Run nginx in a folder of its own until the block ends.

    Args:
        protocols: The versions of TLS that it speaks, as nginx writes them.
        connections: How many it holds at once.
        http2: Whether it offers HTTP/2.
    """
    path = program()
    assert path is not None
    with tempfile.TemporaryDirectory(prefix="tlsagent-bench-") as name:
        folder = Path(name)
        ca = credentials(folder)
        (folder / "large").write_bytes(os.urandom(LARGE // 100) * 100)
        port, listen = _addresses("ssl http2" if http2 else "ssl")
        (folder / "nginx.conf").write_text(
            _CONFIGURATION.format(
                files=2 * connections + 100,
                connections=2 * connections,  # it closes idle ones when few are left
                protocols=protocols,
                listen=listen,
                body=BODY.decode(),
            )
        )
        command = pinned(SERVER_CORE, path, "-p", f"{folder}/", "-e", "stderr", "-c", "nginx.conf")
        with subprocess.Popen(command) as process:  # taskset becomes nginx: the process is the worker
            try:
                _wait_for(process, port)
                yield Target(f"https://localhost:{port}", ca, str(folder / "ca.pem"), process.pid)
            finally:
                process.terminate()


def _addresses(how: str) -> tuple[int, str]:
    """Return a free port, and what to listen on: all that localhost stands for, so that no client meets a refusal."""
    found = {info[4][0]: info[0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    hosts = [f"[{host}]" if family == socket.AF_INET6 else host for host, family in found.items()]
    return port, " ".join(f"listen {host}:{port} {how} backlog=4096;" for host in hosts)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("localhost", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise ChildProcessError("nginx did not start; what it said stands above") from None
            time.sleep(0.02)
        else:
            return
