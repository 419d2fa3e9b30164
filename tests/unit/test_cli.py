"""
The command line: what it prints, its exit status, and what it says where something is missing.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import tlsagent
from tlsagent import Agent, ConnectionOptions, HandshakeError
from tlsagent.__main__ import main
from tlsagent.cli import demo as demo_module
from tlsagent.cli import view
from tlsagent.cli.main import cli

IDENTITIES = {"default", "client cert", "TLS 1.2", "HTTP/1.1", "unverified"}


def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; returns its exit status, stdout and stderr."""
    result = CliRunner().invoke(cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def ctrl_c_is_heeded():
    """Let Ctrl-C end the commands, also where the tests run in the background of a shell, whose children ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def serving(*arguments: str):
    """Run `python -m tlsagent serve --json` in a process of its own; gives the process and what it printed."""
    command = [sys.executable, "-m", "tlsagent", "serve", "--port", "0", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def without(monkeypatch, *modules: str) -> None:
    """Make modules look as if they were not installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] in modules or name.startswith("tlsagent.cli"):
            monkeypatch.delitem(sys.modules, name)
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


# --- demo ---


def test_demo_shows_sockets_handshakes_and_reuse_per_key():
    """
    The JSON of the demo has a row per agent and identity, whose counters add up.
    """
    status, out, _ = run("demo", "--json", "--requests", "10", "--sockets", "2")
    told = json.loads(out)

    assert status == 0, told["problems"]
    assert told["version"] == tlsagent.__version__
    assert {(row["agent"], row["identity"]) for row in told["keys"]} == {
        (agent, identity) for agent in ("asyncio", "threads") for identity in IDENTITIES
    }
    assert len({(row["agent"], row["key"]) for row in told["keys"]}) == len(told["keys"])
    for row in told["keys"]:
        counters = row["counters"]
        assert counters["requests"] == 20
        assert counters["opened"] <= 4
        assert counters["handshakes_full"] + counters["handshakes_resumed"] == counters["opened"]
        assert counters["handshakes_resumed"] >= 1
        assert row["medians"]["handshake"] > 0
        assert row["medians"]["total"] >= row["medians"]["wait"] > 0


def test_demo_agrees_with_its_server():
    """
    What the agents counted is what the server counted, but for handshakes that were given up.
    """
    told = json.loads(run("demo", "--json", "--requests", "4")[1])
    ours = {name: sum(row["counters"][name] for row in told["keys"]) for name in told["server"]}

    assert told["server"]["requests"] == ours["requests"]
    assert 0 <= sum(told["server"].values()) - sum(ours.values()) <= told["given_up"]


def test_demo_shows_a_refusal_and_a_timeout():
    """
    The demo ends with the error of a wrong name and that of a late answer.
    """
    told = json.loads(run("demo", "--json", "--requests", "2")[1])

    assert told["refused"]["error"] == "CertificateNameError"
    assert told["refused"]["code"] == "ERR_TLS_CERT_ALTNAME_INVALID"
    assert "wrong.example" in told["refused"]["message"]
    assert told["timed_out"]["error"] == "ResponseTimeout"
    assert told["timed_out"]["phase"] == "wait"
    assert 0.2 <= told["timed_out"]["elapsed"] < 5


def test_demo_prints_plain_lines_where_there_is_no_terminal():
    """
    Without a terminal the table is plain text, one line per row, without escape sequences.
    """
    status, out, err = run("demo", "--requests", "4")

    assert (status, err) == (0, "")
    assert "\x1b" not in out
    assert len(re.findall(r"^(?:asyncio|threads) +\S.* \d+ +\d+ ", out, re.MULTILINE)) == 2 * len(IDENTITIES)
    assert "ERR_TLS_CERT_ALTNAME_INVALID" in out
    assert "All as it should be" in out


def test_demo_draws_a_live_table_on_a_terminal(monkeypatch):
    """
    On a terminal the rows are drawn while they change, by rich.
    """

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stdout", terminal)

    with view.showing() as watch:
        outcome = demo_module.run(4, 2, watch)

    drawn = terminal.getvalue()
    assert outcome.problems == ()
    assert "\x1b[" in drawn
    assert drawn.count("client cert") > 2
    assert "handshake" in drawn


def test_demo_fails_when_the_agents_miscount(monkeypatch):
    """
    A difference between the agents' counters and the server's is named, and makes the exit status 1.
    """
    monkeypatch.setattr(demo_module, "_counted", lambda _server: dict.fromkeys(demo_module._COUNTED, 1))
    monkeypatch.setattr(demo_module, "_SETTLE", 0.01)

    status, _, err = run("demo", "--requests", "1")

    assert status == 1
    assert "PROBLEM: the server counted {'requests': 1," in err


def test_demo_fails_when_a_request_fails(monkeypatch):
    """
    A request that fails is told in one line, and makes the exit status 1.
    """
    monkeypatch.setattr(demo_module, "ConnectionOptions", lambda **options: ConnectionOptions(servername="other.test"))

    status, out, _ = run("demo", "--json", "--requests", "1")
    problems = json.loads(out)["problems"]

    assert status == 1
    assert any(problem.startswith("a request failed: Certificate") for problem in problems)


def test_wrong_usage_is_status_2():
    """
    An option that does not exist or a value out of range is a usage error.
    """
    assert run("demo", "--requests", "0")[0] == 2
    assert run("serve", "--tls", "1.1")[0] == 2
    assert run("nonsense")[0] == 2


def test_every_command_explains_itself():
    """
    `--help` works for the tool and for each command, and `--version` tells the version.
    """
    for name in cli.commands:
        status, out, _ = run(name, "--help")
        assert status == 0
        assert "--json" in out
    assert run("--version")[1].strip().endswith(tlsagent.__version__)


# --- serve ---


def test_serve_tells_where_it_is_and_serves(tmp_path):
    """
    `serve --json` prints url and ca; an agent that trusts that file is served, and Ctrl-C ends it with status 0.
    """
    ca = tmp_path / "ca.pem"
    with serving("--ca-file", str(ca)) as (process, told):
        with Agent(ca=ca) as agent:
            response = agent.request("GET", told["url"] + "/hello")
        process.send_signal(signal.SIGINT)
        status = process.wait(30)

    assert told["ca"] == str(ca)
    assert response.text == "Hello, world"
    assert status == 0


def test_serve_takes_its_temporary_files_with_it():
    """
    Without `--ca-file` the CA certificate is in a temporary file, which is gone when SIGTERM has ended the server.
    """
    with serving() as (process, told):
        assert "BEGIN CERTIFICATE" in Path(told["ca"]).read_text()
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)

    assert status == 0
    assert not Path(told["ca"]).exists()


def test_serve_speaks_the_version_and_hands_out_the_tickets_it_is_told(tmp_path):
    """
    `--tls 1.2 --tickets 0` gives TLS 1.2 without resumption.
    """
    ca = tmp_path / "ca.pem"
    responses = []

    with serving("--tls", "1.2", "--tickets", "0", "--ca-file", str(ca)) as (_, told), Agent(ca=ca) as agent:
        for _ in range(2):
            responses.append(agent.request("GET", told["url"] + "/hello"))
            agent.close_idle()

    assert {response.connection.protocol_version for response in responses} == {"TLSv1.2"}
    assert not any(response.connection.session_reused for response in responses)


def test_serve_can_demand_a_client_certificate(tmp_path):
    """
    `--request-cert demand` refuses clients without a certificate; `--client-file` writes one, for its owner's eyes.
    """
    ca, client = tmp_path / "ca.pem", tmp_path / "client.pem"
    with serving("--request-cert", "demand", "--ca-file", str(ca), "--client-file", str(client)) as (_, told):
        with Agent(ca=ca) as agent, pytest.raises(HandshakeError) as refused:
            agent.request("GET", told["url"] + "/hello")
        with Agent(ca=ca, cert=client, key=client) as agent:
            response = agent.request("GET", told["url"] + "/hello")

    assert refused.value.alert == "certificate_required"
    assert response.status == 200
    assert client.stat().st_mode & 0o077 == 0


def test_serve_explains_itself_to_people(capfd):
    """
    Without `--json` the server prints a curl line to try, and what it saw at its end.
    """
    command = [sys.executable, "-u", "-m", "tlsagent", "serve", "--port", "0", "--request-cert"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        head = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)

    assert head[0].startswith("Serving https://localhost:")
    assert head[2].startswith("Try: curl --cacert ")
    assert "0 requests on 0 connections" in rest
    assert capfd.readouterr().err == ""


def test_serve_fails_when_the_port_is_taken():
    """
    A port in use is a failure, told in one line, and not a usage error.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, err = run("serve", "--port", str(taken.getsockname()[1]))

    assert status == 1
    assert err.startswith("Error: cannot serve: ")


# --- the door ---


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_the_command_says_what_to_install(missing, monkeypatch, capsys):
    """
    Without the extra `cli` the command names what is missing and how to install it, with status 2.
    """
    without(monkeypatch, missing)
    monkeypatch.setattr(sys, "argv", ["tlsagent", "demo"])

    with pytest.raises(SystemExit) as stopped:
        main()

    assert stopped.value.code == 2
    assert missing in (said := capsys.readouterr().err)
    assert "pip install 'tlsagent[cli,testing]'" in said


def test_the_demo_says_that_the_server_needs_its_extra(monkeypatch):
    """
    With the extra `cli` but without `testing`, the commands that serve say so, with status 2.
    """
    monkeypatch.setitem(sys.modules, "trustme", None)

    for command in ("demo", "serve"):
        status, _, err = run(command)
        assert status == 2
        assert "pip install 'tlsagent[cli,testing]'" in err


def test_python_m_tlsagent_is_the_same_command():
    """
    `python -m tlsagent` is the command under its own name.
    """
    command = [sys.executable, "-m", "tlsagent", "--help"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("Usage: tlsagent ")
