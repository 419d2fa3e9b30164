"""An agent gets the HTTP engine it asks for, or an option error when it is made."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tlsagent._http.engines import http1_engine
from tlsagent._options import Http1Options
from tlsagent.errors import OptionError


@pytest.mark.parametrize("name", ["auto", "h11"])
def test_engine_is_made_for_each_connection(name):
    """The factory makes engines that share nothing."""
    factory = http1_engine(name)

    first, second = factory(Http1Options()), factory(Http1Options())

    assert first is not second
    assert first.name == "h11"
    assert not first.reusable()


@pytest.mark.parametrize("name", ["", "H11", "httptools", "\x1b[2J", None])
def test_unknown_engine_is_an_option_error(name):
    """Only known names are taken; the message says which."""
    with pytest.raises(OptionError, match='"auto" or "h11"') as caught:
        http1_engine(name)
    assert str(caught.value).isprintable()


def test_engine_that_is_not_installed_is_an_option_error(monkeypatch):
    """A missing engine is reported when the agent is made, with what to install."""
    monkeypatch.setitem(sys.modules, "tlsagent._http.h1", None)

    with pytest.raises(OptionError, match="pip install") as caught:
        http1_engine("h11")
    assert caught.value.code == "ERR_TLSAGENT_NO_ENGINE"
    assert isinstance(caught.value.__cause__, ImportError)


def test_engine_library_is_loaded_on_first_use():
    """Choosing is what loads h11, not the import of the choice."""
    script = (
        "import sys, tlsagent._http.engines as e; assert 'h11' not in sys.modules; e.http1_engine('auto'); import h11"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=30).returncode == 0
