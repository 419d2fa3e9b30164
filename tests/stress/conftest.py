"""
What the stress tests share: a server in this process, and scripts in an interpreter of their own.

A script may fork, patch the interpreter or raise from a signal handler without harm to the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tlsagent.testing import Server

_HEAD = """
import json, os, sys
def tell(**facts):
    # One write, so that the lines of parent and child do not mix.
    os.write(1, (json.dumps(facts) + "\\n").encode())
"""


@pytest.fixture(params=["http1", "http2"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Return a server of the test's own: every test runs over HTTP/1.1 and over HTTP/2."""
    with Server(alpn_protocols=("http/1.1",) if request.param == "http1" else ("h2", "http/1.1")) as server:
        yield server


@pytest.fixture
def http2(request: pytest.FixtureRequest) -> bool:
    """Return whether the server speaks HTTP/2."""
    return bool(request.node.callspec.params["server"] == "http2")


def environment() -> dict[str, str]:
    """
    Return that of an interpreter which imports what this one does.

    Coverage does not follow it: it would slow the script down, be struck in its own code, and wait for itself in forks.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return {**ours, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """
    Return a function that runs a script to its end and returns what it told, by `tell(name=value)`.

    The script knows URL, PORT and CA of the server. Whatever it writes to stderr fails the test: a traceback, a
    warning, an exception in a finaliser.
    """

    def run(server: Server, script: str, *, timeout: float = 50.0, **names: Any) -> list[dict[str, Any]]:
        names = {"URL": server.url, "PORT": server.port, "CA": server.ca_pem, **names}
        head = _HEAD + "".join(f"{name} = {value!r}\n" for name, value in names.items())
        path = tmp_path / "script.py"
        path.write_text(head + textwrap.dedent(script))
        done = subprocess.run(
            # Python 3.12 warns of every fork of a process with threads, which is what is tested here.
            [sys.executable, "-X", "faulthandler", "-W", "error", "-W", "ignore::DeprecationWarning", str(path)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=environment(),
        )
        if done.stderr or done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run
