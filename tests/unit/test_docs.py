"""
What the pages say is true: their examples run, their commands exist, their tables match the code.

Convention of the examples: each is complete in itself; `https://localhost:8443` (the port wherever it stands), `ca.pem`
and `client.pem` stand for a running server, its CA certificate and a client certificate with its key, like those of
`tlsagent serve`. A comment after a `print(...)` is what it prints, `...` for anything. One marked `python script` forks
or patches its interpreter, so it gets one of its own.

A page under docs/howto is one story: its blocks run in order in one folder, the shell's too. A block that begins with
`# NAME.py` is a module that the later ones import. Its own `tlsagent serve` line says what the server is like, and at
`localhost:3128`, 3129 (over TLS) and 1080 (SOCKS5) there are proxies.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from proxy_peer import ProxyServer

from tlsagent import UNSET, AgentOptions
from tlsagent._options import DEFAULTS
from tlsagent.cli.main import cli
from tlsagent.testing import Server

ROOT = Path(__file__).parents[2]
HOWTOS = sorted((ROOT / "docs" / "howto").glob("*.md"))
OTHERS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*OTHERS, *HOWTOS]


class Block(NamedTuple):
    """A piece of code on a page: which language, where, and what."""

    language: str
    page: Path
    line: int
    code: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(match[1], page, text.count("\n", 0, match.start()) + 2, match[2])
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def examples() -> list[object]:
    return [
        pytest.param(block, id=f"{block.page.name}:{block.line}")
        for page in OTHERS
        for block in blocks(page)
        if block.language == "python"
    ]


def commands(tool: str) -> set[str]:
    """Return the command lines of `tool` on the pages, in code of either kind."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        found |= set(re.findall(rf"^    ({tool} [^#\n]+)", text, re.MULTILINE))
        found |= set(re.findall(rf"`({tool} [^`\n]+)`", text))
    return {command.strip() for command in found}


@pytest.fixture(scope="module")
def server():
    with Server(request_cert=True) as running:
        yield running


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, from which modules are imported too, and forget those."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    environment = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(environment)
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def write_files(server: Server, folder: Path) -> None:
    client = server.authority.issue("client@localhost", client=True)
    (folder / "ca.pem").write_bytes(server.ca_pem)
    (folder / "client.pem").write_bytes(client.key_pem + client.cert_pem)


@contextlib.contextmanager
def ports(server: Server, text: str) -> Iterator[dict[str, int]]:
    """Run the proxies that a page speaks of; give the port in place of each port that stands on the page."""
    proxies = {"3128": "http", "3129": "https", "1080": "socks5"}
    with contextlib.ExitStack() as stack:
        found = {"8443": server.port}
        for port in [port for port in proxies if f"localhost:{port}" in text]:
            proxy = ProxyServer(proxies[port], authority=server.authority)
            found[port] = stack.enter_context(proxy).port
        yield found


def at_ports(found: dict[str, int], code: str) -> str:
    return re.sub(rf"\b({'|'.join(found)})\b", lambda match: str(found[match[1]]), code)


def run_python(block: Block, found: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    code = at_ports(found, block.code)
    wanted = re.findall(r"print\(.*\)  # (.*)$", code, re.MULTILINE)

    exec(compile("\n" * (block.line - 1) + code, str(block.page), "exec"), {"__name__": "__main__"})

    printed = capsys.readouterr().out
    want = "".join(text + "\n" for text in wanted)
    assert wanted, f"{block.page.name}:{block.line}: an example shows nothing"
    assert doctest.OutputChecker().check_output(want, printed, doctest.ELLIPSIS), (
        f"{block.page.name}:{block.line}: want\n{want}got\n{printed}"
    )


def run_shell(block: Block, found: dict[str, int]) -> None:
    command = ["sh", "-eu", "-c", at_ports(found, block.code)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{block.page.name}:{block.line}: {done.stderr}"


@pytest.mark.parametrize("block", examples())
def test_an_example_prints_what_it_says(block, server, folder, capsys):
    """
    Every Python example runs as it stands, and prints what its comments say.
    """
    write_files(server, folder)

    run_python(block, {"8443": server.port}, capsys)


def scripts() -> list[object]:
    return [
        pytest.param(match[1], id=f"{page.name}:{match.start()}")
        for page in OTHERS
        for match in re.finditer(r"^```python script\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.parametrize("code", scripts())
def test_a_script_prints_what_it_says(code, server, folder):
    """
    Every script runs as it stands in an interpreter of its own, and prints what its comments say, in order.
    """
    write_files(server, folder)
    (folder / "script.py").write_text(at_ports({"8443": server.port}, code))
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "script.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)$", code, re.MULTILINE)


@pytest.mark.parametrize("page", HOWTOS, ids=lambda page: page.name)
def test_a_howto_leads_where_it_says(page, folder, capsys):
    """
    The blocks of a page run one after the other, each on what those before it left in the folder.
    """
    text = page.read_text()
    demand = "--request-cert demand" in text
    settings = {"request_cert": "demand" if demand else True, "alpn_protocols": ("h2", "http/1.1")}
    with Server(**settings) as server, ports(server, text) as found:
        write_files(server, folder)
        for block in blocks(page):
            module = re.match(r"# (\w+\.py)\n", block.code)
            if module is not None:
                (folder / module[1]).write_text(block.code)
            elif block.language == "python":
                run_python(block, found, capsys)
            else:
                assert block.language == "sh", f"{page.name}:{block.line}: nothing runs {block.language}"
                run_shell(block, found)


def test_the_commands_on_the_pages_exist():
    """
    Each `tlsagent` command line of the pages names a command and options that it has.
    """
    shown = [shlex.split(command)[1:] for command in commands("tlsagent")]

    assert {"demo", "serve"} <= {name for name, *_ in shown}
    for name, *arguments in shown:
        assert name in cli.commands
        cli.commands[name].make_context(name, arguments)


def test_the_targets_on_the_pages_exist():
    """
    Each `make` line of the pages names a target of the Makefile.
    """
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {shlex.split(command)[1] for command in commands("make")}

    assert shown >= {"demo", "test"}
    assert shown <= targets


def test_the_links_between_the_pages_lead_somewhere():
    """
    A relative link on a page leads to a file.
    """
    for page in PAGES:
        for target in re.findall(r"\]\((?!https:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_index_leads_to_every_page():
    """
    Whoever begins at docs/index.md finds all other pages.
    """
    index = ROOT / "docs" / "index.md"

    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^):#]+)", index.read_text())}

    assert set((ROOT / "docs").rglob("*.md")) - {index} <= linked


def test_the_pages_made_from_code_are_those_of_the_code():
    """
    docs/options.md and docs/node.md are what `make docs` writes.
    """
    spec = importlib.util.spec_from_file_location("make_options", ROOT / "docs" / "make_options.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert sorted(module.PAGES) == ["node.md", "options.md"]
    for name, page in module.PAGES.items():
        assert (ROOT / "docs" / name).read_text() == page(), "run `make docs`"


def test_the_readme_names_the_options_that_are_missing():
    """
    README.md lists exactly the options that are refused because this release does not have them.
    """
    missing = {name for name in AgentOptions.field_names() if getattr(DEFAULTS, name) is UNSET}
    sentence = re.search(r"^Not yet: the options ([^.]*)\.", (ROOT / "README.md").read_text(), re.MULTILINE)

    assert sentence is not None
    assert set(re.findall(r"`(\w+)`", sentence[1])) == missing
    for name in missing:
        with pytest.raises(NotImplementedError, match=name):
            AgentOptions(**{name: 1})


def test_the_architecture_names_every_room():
    """
    docs/architecture.md has each room of the package in its table.
    """
    source = ROOT / "src" / "tlsagent"
    rooms = {path.name for path in source.glob("*.py")}
    rooms |= {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    text = (ROOT / "docs" / "architecture.md").read_text()
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)

    assert set(re.findall(r"`([^`]+)`", " ".join(cells))) == rooms
