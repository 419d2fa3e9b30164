"""
Install the wheel of a dist folder into a throw-away virtual environment and use it as a user would.

Twice: bare, where the package must import and the command must say what it lacks; then with its extras, where a request
is served by the embedded server. Runs outside the checkout, so that nothing is found that the wheel does not hold.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

BARE = """
import sys, tlsagent
assert sys.prefix in tlsagent.__file__, tlsagent.__file__
tlsagent.Agent().close()
"""
REQUEST = """
import tlsagent
from tlsagent.testing import Server

with Server() as server, tlsagent.Agent(ca=server.ca_pem) as agent:
    response = agent.request("GET", server.url + "/hello")
    assert response.status == 200, response
    print("the wheel says:", tlsagent.__version__, response.connection.protocol_version, response.text)
"""


def main(dist: Path) -> None:
    [wheel] = dist.glob("*.whl")
    [_sdist] = dist.glob("*.tar.gz")
    assert "tlsagent/py.typed" in zipfile.ZipFile(wheel).namelist(), "py.typed is not in the wheel"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        bin_ = Path(folder, "Scripts" if sys.platform == "win32" else "bin")

        def run(*command: str, status: int = 0) -> None:
            done = subprocess.run([bin_ / command[0], *command[1:]], cwd=folder, check=False)  # noqa: S603
            assert done.returncode == status, f"{command[0]} exited with {done.returncode}, not {status}"

        run("python", "-m", "pip", "install", "--quiet", str(wheel.resolve()))
        run("python", "-W", "error", "-c", BARE)
        run("tlsagent", "demo", status=2)
        run("python", "-m", "pip", "install", "--quiet", f"tlsagent[cli,testing] @ {wheel.resolve().as_uri()}")
        run("python", "-W", "error", "-c", REQUEST)
        run("tlsagent", "--version")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
