"""
The short form of `make soak`: 2,000 requests of all kinds by each driver.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", ["http1", "http2"])
@pytest.mark.parametrize("driver", ["threads", "asyncio", "uvloop"])
def test_soak(driver, version):
    """
    Requests with cancels, timeouts, slow bodies and a server that ends connections: no wrong body, nothing left behind.
    Over HTTP/2 with 32 at a time on one connection, which has all its streams to give in the end.
    """
    command = [sys.executable, "-m", "tests.soak", "--requests", "2000", "--driver", driver]
    command += ["--http2"] if version == "http2" else []
    # Not followed by coverage, whose own memory would count.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
