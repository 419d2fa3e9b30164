"""
The rules of the house: who imports whom, what never waits, and that every room has its tests.

`.importlinter` holds the import rules; here they are run, and shown to catch what they are there for.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tlsagent

ROOT = Path(__file__).parents[2]
SOURCE = Path(tlsagent.__file__).parent
MODULES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))

# Rooms that wait, or serve those who do; all others are the core.
OUTER_ROOMS = {"__init__", "__main__", "cli", "testing", "_drivers"}

# Coroutines and asynchronous generators in the core, each with its reason.
ASYNC_IN_CORE = {
    (
        "_body.py",
        "apieces",
    ): "only asynchronous code can iterate what a caller of AsyncAgent hands in; it waits for nothing else",
}

# Modules without a test module of their own in tests/unit, because it takes more than a unit to test them.
TESTED_ELSEWHERE = {
    "__main__": "test_cli.py",
    "_coalescing": "../wire/test_coalescing.py",
    "_connection_info": "test_connection.py",
    # Drivers wait on sockets: every case of tests/wire runs against each of them.
    "_drivers/aio": "../wire/test_requests.py",
    "_drivers/aio_dialling": "../wire/test_resolution.py",
    "_drivers/aio_raw": "../wire/test_raw.py",
    "_drivers/aio_response": "../wire/test_requests.py",
    "_drivers/aio_socket": "../wire/test_requests.py",
    "_drivers/aio_upload": "../wire/test_uploads.py",
    "_drivers/crew": "../wire/test_http2.py",
    "_drivers/desk": "../stress/test_interrupts.py",
    "_drivers/dialling": "../wire/test_handshake_faults.py",
    "_drivers/fork": "../stress/test_fork.py",
    "_drivers/member": "../wire/test_http2.py",
    "_drivers/resolver": "../wire/test_resolution.py",
    "_drivers/sockets": "../wire/test_lifecycle.py",
    "_drivers/threads": "../wire/test_requests.py",
    "_drivers/threads_raw": "../wire/test_raw.py",
    "_drivers/threads_response": "../wire/test_requests.py",
    "_drivers/waiting": "../stress/test_dropped.py",
    # The private rooms of the testing servers have one face.
    "testing/_asgi": "test_testing_server.py",
    "testing/_hello": "test_testing_server.py",
    "testing/_http": "test_testing_server.py",
    "testing/_http2": "test_testing_h2.py",
    "testing/_link": "test_testing_server.py",
    "testing/_listen": "test_testing_server.py",
    "testing/_network": "test_simulation.py",
    "testing/_peer": "test_simulation.py",
    "testing/_peer_http2": "test_simulation.py",
    "testing/_settings": "test_testing_server.py",
    "testing/_tls": "test_testing_server.py",
    "testing/frames": "test_testing_h2.py",
    "testing/records": "test_testing_server.py",
}

# Modules that could have one, and are so far tested through the floors above them alone. This list only gets shorter.
OWED = {
    "_drivers/addresses",
    "_secure_context",
    "events",
}


def house(*arguments: str, folder: Path = ROOT, source: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run import-linter as the Makefile does."""
    pytest.importorskip("importlinter", reason="import-linter is in the group `lint`")
    code = (
        "import sys; sys.path[0:0] = sys.argv[1:2]; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(config_filename=sys.argv[2], no_cache=True))"
    )
    command = [sys.executable, "-c", code, str(source or SOURCE.parent), str(ROOT / ".importlinter"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def contract(name: str) -> dict[str, list[str]]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    section = parser[f"importlinter:contract:{name}"]
    return {key: section[key].split() for key in section if key != "name"}


def rooms() -> set[str]:
    return {module.parts[0].removesuffix(".py") for module in MODULES if module.parts[0] != "__init__.py"}


def in_contract(name: str) -> set[str]:
    return {module.removeprefix("tlsagent.") for module in contract(name)["source_modules"]}


def test_the_contracts_hold():
    """
    No room imports what stands above it, and only the rooms that may know them know sockets, OpenSSL and h11.
    """
    done = house()

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("_pool.py", "import tlsagent._connection", "Layers"),
        ("_exchange.py", "import tlsagent._core", "Layers"),
        ("_http/messages.py", "import tlsagent._tls.engine", "Layers"),
        ("errors.py", "from tlsagent import _options", "Layers"),
        ("new_room.py", "", "Layers"),
        ("_drivers/aio.py", "from tlsagent._drivers import threads", "The two agents"),
        ("_core.py", "import socket", "The core decides"),
        ("_tls/engine.py", "from time import monotonic", "The core decides"),
        ("_core.py", "from cryptography import x509", "OpenSSL"),
        ("_connection.py", "import h11", "h11"),
        ("_connection.py", "import socksio", "h11"),
        ("_core.py", "import httptools", "h11"),
        ("_connection.py", "import h2", "h2"),
        ("_tunnel.py", "from hyperframe.frame import Frame", "h2"),
        ("_core.py", "import ngh2", "h2"),
        ("_pool.py", "import hpack", "h2"),
        ("cli/demo.py", "from tlsagent._options import Timeouts", "The command line"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(tmp_path, module, line, broken):
    """
    Each contract catches the import that it forbids.
    """
    shutil.copytree(SOURCE, tmp_path / "tlsagent", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "tlsagent" / module
    text = path.read_text() if path.exists() else ""
    path.write_text(f"{text}\n{line}\n")

    done = house(folder=tmp_path, source=tmp_path)

    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"^{broken}.* BROKEN$", done.stdout, re.MULTILINE), done.stdout


def test_a_type_only_import_binds_nobody(tmp_path):
    """
    What is imported for the type checker alone may come from anywhere.
    """
    shutil.copytree(SOURCE, tmp_path / "tlsagent", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "tlsagent" / "_pool.py"
    path.write_text(f"{path.read_text()}\nif TYPE_CHECKING:\n    import tlsagent._core\n")

    assert house(folder=tmp_path, source=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("name", "exempt"),
    [
        ("core", {"__main__", "cli", "testing", "_drivers"}),
        ("openssl", {"_tls", "_material", "testing"}),
        ("http", {"_http", "_tunnel", "testing"}),
        ("http2", {"_http", "testing"}),
    ],
)
def test_no_room_escapes_a_contract(name, exempt):
    """
    A contract that forbids imports names every room but those that it is meant to spare.
    """
    assert in_contract(name) == rooms() - exempt


def test_the_command_line_may_use_no_private_room():
    """
    Every room with a leading underscore is closed to the command line.
    """
    closed = {module.removeprefix("tlsagent.") for module in contract("public-face")["forbidden_modules"]}

    assert closed == {room for room in rooms() if room.startswith("_") and room != "__main__"}


def test_the_core_never_awaits():
    """
    There is no coroutine and no `await` in the core, but for the documented exceptions.
    """
    found = set()
    for module in MODULES:
        if module.parts[0].removesuffix(".py") in OUTER_ROOMS:
            continue
        for node in ast.walk(ast.parse((SOURCE / module).read_text())):
            if isinstance(node, ast.AsyncFunctionDef):
                found.add((module.as_posix(), node.name))
            assert not isinstance(node, ast.Await), f"{module}:{node.lineno} awaits"

    assert found == set(ASYNC_IN_CORE)


def own_tests(module: Path) -> bool:
    """Whether a module, or the package it is in, has a test module in tests/unit."""
    here = Path(__file__).parent
    room, last = module.parts[0].removesuffix(".py").lstrip("_"), module.stem.lstrip("_")
    names = [f"test_{last}.py", f"test_{room}_{last}.py", f"test_{room}.py"]
    return last == "init__" or any((here / name).exists() for name in names)


def test_every_module_has_its_own_test_module():
    """
    tests/unit mirrors the house, but for the documented exceptions; those name tests that exist, and are needed.
    """
    here = Path(__file__).parent
    names = {module.with_suffix("").as_posix(): module for module in MODULES}
    exempt = TESTED_ELSEWHERE.keys() | OWED

    assert [name for name, module in names.items() if name not in exempt and not own_tests(module)] == []
    assert [name for name in OWED if name in names and own_tests(names[name])] == [], "paid: take them off OWED"
    assert exempt <= names.keys(), "an exception for a module that does not exist"
    assert [test for test in TESTED_ELSEWHERE.values() if not (here / test).exists()] == []


def test_every_public_name_can_be_imported():
    """
    `__all__` is sorted, names nothing twice, and each name leads to something.
    """
    assert tlsagent.__all__ == sorted(set(tlsagent.__all__))
    for name in tlsagent.__all__:
        assert getattr(tlsagent, name) is not None
        assert name in dir(tlsagent)


@pytest.mark.parametrize("name", ["errors", "events", "sansio", "testing", "testing.simulation"])
def test_every_name_of_a_public_module_can_be_imported(name):
    """
    What a public module lists in `__all__` is there.
    """
    module = importlib.import_module(f"tlsagent.{name}")

    for public in getattr(module, "__all__", []):
        assert getattr(module, public) is not None


def test_every_error_is_a_public_name():
    """
    All classes of the error tree can be imported from the top.
    """
    errors = importlib.import_module("tlsagent.errors")
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}

    assert tree <= set(tlsagent.__all__)


def test_importing_the_package_loads_nothing_else():
    """
    The package loads its rooms on first use: importing it costs next to nothing.
    """
    code = "import sys, tlsagent; print([name for name in sys.modules if name.startswith('tlsagent.')])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_package_never_loads_its_testing_server():
    """
    Whoever makes an agent pays for no test server.
    """
    code = (
        "import sys, tlsagent; tlsagent.Agent().close(); tlsagent.AsyncAgent().destroy(); "
        "print([name for name in sys.modules if name.startswith(('tlsagent.testing', 'trustme', 'click', 'rich'))])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_one_version_everywhere():
    """
    The package, what is installed and the newest entry of the changelog tell the same version.
    """
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert importlib.metadata.version("tlsagent") == tlsagent.__version__
    assert newest is not None
    assert newest[1] == tlsagent.__version__


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.as_posix())
def test_every_module_says_what_it_is_for(module):
    """
    Each module begins with a docstring, and postpones the evaluation of its annotations.
    """
    tree = ast.parse((SOURCE / module).read_text())

    assert ast.get_docstring(tree)
    if len(tree.body) > 1:
        assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
