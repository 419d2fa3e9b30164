"""An agent gets the HTTP engine it asks for, or an option error when it is made."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import httptools
import pytest
from h2_support import ENGINES

from tlsagent import Agent
from tlsagent._http.engines import HTTPTOOLS_VERSIONS, NGH2_VERSIONS, http1_engine, http2_engine
from tlsagent._limits import Http1Options, Http2Options
from tlsagent.errors import OptionError

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
OLDEST, BEYOND = (".".join(map(str, version)) for version in HTTPTOOLS_VERSIONS)


@pytest.mark.parametrize(("name", "engine"), [("auto", "httptools"), ("h11", "h11"), ("httptools", "httptools")])
def test_engine_is_made_for_each_connection(name, engine):
    """The factory makes engines that share nothing; "auto" is the fast one."""
    factory = http1_engine(name)

    first, second = factory(Http1Options()), factory(Http1Options())

    assert first is not second
    assert first.name == engine
    assert not first.reusable()


@pytest.mark.parametrize("name", ["", "H11", "llhttp", "\x1b[2J", None])
def test_unknown_engine_is_an_option_error(name):
    """Only known names are taken; the message says which."""
    with pytest.raises(OptionError, match='"auto", "h11" or "httptools"') as caught:
        http1_engine(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("name", "install"), [("h11", r"'h11>=0.16'"), ("httptools", r"'tlsagent\[speed\]'")])
def test_engine_that_is_not_installed_is_an_option_error(monkeypatch, name, install):
    """A missing engine is reported when the agent is made, with what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"tlsagent._http.h1_{name}", raising=False)

    with pytest.raises(OptionError, match=f"pip install {install}") as caught:
        Agent(http1_engine=name)
    assert caught.value.code == "ERR_TLSAGENT_NO_ENGINE"
    assert isinstance(caught.value.__cause__, ImportError)


def test_auto_is_h11_where_httptools_is_missing(monkeypatch):
    """Nothing but h11 is needed."""
    monkeypatch.setitem(sys.modules, "httptools", None)

    assert http1_engine("auto")(Http1Options()).name == "h11"


@pytest.mark.parametrize("version", [OLDEST, OLDEST + ".post1", "0.9.9", httptools.__version__])
def test_tested_version_is_taken(monkeypatch, version):
    """Every version of the range will do."""
    monkeypatch.setattr(httptools, "__version__", version)

    assert http1_engine("httptools")(Http1Options()).name == "httptools"


@pytest.mark.parametrize("version", ["0.6.3", "0.1", BEYOND, BEYOND + ".0rc1", "1.0.0", "unknown"])
def test_untested_version_is_not_taken(monkeypatch, version):
    """Outside of the range "auto" is h11, and asking by name is an option error that shows the version."""
    monkeypatch.setattr(httptools, "__version__", version)

    assert http1_engine("auto")(Http1Options()).name == "h11"
    with pytest.raises(OptionError, match=rf"version {version} was not tested") as caught:
        http1_engine("httptools")
    assert caught.value.code == "ERR_TLSAGENT_NO_ENGINE"


def test_extra_installs_what_was_tested():
    """The extra `speed` and the choice of the engine mean the same versions."""
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]

    assert [wanted for wanted in extras["speed"] if wanted.startswith("httptools")] == [
        f"httptools>={OLDEST},<{BEYOND}"
    ]


@pytest.mark.parametrize("name", ENGINES)
def test_http2_engine_is_made_for_each_connection(name):
    """The factory makes engines that share nothing."""
    factory = http2_engine(name)

    first, second = factory(Http2Options()), factory(Http2Options())

    assert first is not second
    assert first.name == name
    assert first.streams == 0


@pytest.mark.parametrize("name", ["", "H2", "nghttp2", "\x1b[2J", None])
def test_unknown_http2_engine_is_an_option_error(name):
    """Only known names are taken; the message says which."""
    with pytest.raises(OptionError, match='"auto", "h2" or "ngh2"') as caught:
        http2_engine(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("name", "install"), [("h2", r"'h2>=4.4'"), ("ngh2", r"'tlsagent\[speed\]'")])
def test_http2_engine_that_is_not_installed_is_an_option_error(monkeypatch, name, install):
    """A missing engine is reported with what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.settings", None)
    monkeypatch.delitem(sys.modules, f"tlsagent._http.h2_{name}", raising=False)

    with pytest.raises(OptionError, match=f"HTTP/2 engine {name} .*pip install {install}") as caught:
        http2_engine(name)
    assert caught.value.code == "ERR_TLSAGENT_NO_ENGINE"


def test_auto_is_h2_where_ngh2_is_missing(monkeypatch):
    """Nothing but h2 is needed."""
    monkeypatch.setitem(sys.modules, "ngh2", None)

    assert http2_engine("auto")(Http2Options()).name == "h2"


NGH2_OLDEST, NGH2_BEYOND = (".".join(map(str, version)) for version in NGH2_VERSIONS)


@pytest.mark.parametrize("version", [NGH2_OLDEST, "0.3.0", "0.3.9"])
def test_tested_ngh2_is_taken(monkeypatch, version):
    """Every version of the range will do."""
    monkeypatch.setattr("ngh2.__version__", version)

    assert http2_engine("auto")(Http2Options()).name == "ngh2"


@pytest.mark.parametrize("version", ["0.2.9", NGH2_BEYOND, NGH2_BEYOND + ".0rc1", "1.0", "unknown"])
def test_untested_ngh2_is_not_taken(monkeypatch, version):
    """Outside of the range "auto" is h2, and asking by name is an option error that shows the version."""
    monkeypatch.setattr("ngh2.__version__", version)

    assert http2_engine("auto")(Http2Options()).name == "h2"
    with pytest.raises(OptionError, match=rf"version {version} was not tested"):
        http2_engine("ngh2")


def test_extra_installs_the_ngh2_that_was_tested():
    """The extra `speed` and the choice of the engine mean the same versions."""
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]

    assert [wanted for wanted in extras["speed"] if wanted.startswith("ngh2")] == [
        f"ngh2>={NGH2_OLDEST},<{NGH2_BEYOND}"
    ]


@pytest.mark.parametrize("name", ENGINES)
def test_http2_library_is_loaded_on_first_use(name):
    """Choosing is what loads a library, and only the chosen one."""
    other = {"h2": "ngh2", "ngh2": "h2"}[name]
    script = (
        f"import sys, tlsagent._http.engines as e; assert not {{'h2', 'hpack', 'ngh2'}} & set(sys.modules); "
        f"e.http2_engine('{name}'); assert '{name}' in sys.modules; assert '{other}' not in sys.modules"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=30).returncode == 0


@pytest.mark.parametrize("name", ["h11", "httptools"])
def test_engine_library_is_loaded_on_first_use(name):
    """Choosing is what loads a parser, and only the chosen one."""
    other = {"h11": "httptools", "httptools": "h11"}[name]
    script = (
        f"import sys, tlsagent._http.engines as e; assert not {{'h11', 'httptools'}} & set(sys.modules); "
        f"e.http1_engine('{name}'); assert '{name}' in sys.modules; assert '{other}' not in sys.modules"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=30).returncode == 0
