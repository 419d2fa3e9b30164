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
@pytest.mark.parametrize("driver", ["threads", "asyncio", "uvloop"])
def test_soak(driver):
    """
    Requests with cancels, timeouts, slow bodies and a server that ends connections: no wrong body, nothing left behind.
    """
    command = [sys.executable, "-m", "tests.soak", "--requests", "2000", "--driver", driver]
    # Not followed by coverage, whose own memory would count.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
