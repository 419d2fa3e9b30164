"""Errors: the tree as its docstring draws it, facts that survive pickling, peers quoted within bounds."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

import tlsagent
from tlsagent import errors
from tlsagent.errors import RequestError, StreamReset, TLSAgentError, quoted

CLASSES = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, TLSAgentError)]
REQUEST_ERRORS = [cls for cls in CLASSES if issubclass(cls, RequestError)]
FACTS = {
    "code": "ERR_OF_A_TEST",
    "phase": "handshake",
    "key": "a.test:443#0123abcd",
    "reused": True,
    "request_sent": True,
    "alert": "certificate_required",
    "elapsed": 1.25,
}


def drawn_tree() -> dict[str, tuple[str | None, set[str]]]:
    """Return the docstring's tree: each class with its parent and the builtins that it also derives from."""
    found: dict[str, tuple[str | None, set[str]]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"    ([│├└─ ]*)([A-Z]\w+)(?: +(.*))?$", line)
        if drawn is None:
            continue
        depth = len(drawn[1]) // 4
        del path[depth:]
        also = re.match(r"\(also (\w+)\)", drawn[3] or "")
        found[drawn[2]] = (path[-1] if path else None, {also[1]} if also else set())
        path.append(drawn[2])
    return found


def test_tree_in_the_docstring_is_the_tree():
    """
    The docstring draws every class once, under its parent, with the builtin it also is.
    """
    real = {}
    for cls in CLASSES:
        ours = [base.__name__ for base in cls.__bases__ if issubclass(base, TLSAgentError)]
        builtins = {base.__name__ for base in cls.__bases__ if base.__module__ == "builtins" and base is not Exception}
        assert len(ours) == (cls is not TLSAgentError)
        real[cls.__name__] = (ours[0] if ours else None, builtins)

    assert drawn_tree() == real


@pytest.mark.parametrize("cls", CLASSES)
def test_error_is_public(cls):
    """
    Every error can be imported from the top, and says in a docstring what it means.
    """
    assert getattr(tlsagent, cls.__name__) is cls
    assert cls.__doc__


@pytest.mark.parametrize("cls", CLASSES)
def test_code_has_a_default(cls):
    """
    Every error has a code, in the style of Node's or of the system's.
    """
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+", cls("text").code)
    assert cls("text", code="ERR_OTHER").code == "ERR_OTHER"


def test_codes_of_ours_are_distinct():
    """
    Two kinds of failure never share a code of our own.
    """
    codes = [cls.default_code for cls in CLASSES if cls.default_code.startswith("ERR_TLSAGENT")]

    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", CLASSES)
def test_error_survives_pickling(cls, protocol):
    """
    An error comes out of a pickle as the same class with the same text and code.
    """
    error = pickle.loads(pickle.dumps(cls("what was seen", code="ERR_OF_A_TEST"), protocol))

    assert type(error) is cls
    assert (str(error), error.args, error.code) == ("what was seen", ("what was seen",), "ERR_OF_A_TEST")


@pytest.mark.parametrize("cls", REQUEST_ERRORS)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_facts_survive(cls, duplicate):
    """
    All facts of a failed request survive pickling and copying.
    """
    error = duplicate(cls("text", **FACTS))

    assert type(error) is cls
    assert {name: getattr(error, name) for name in FACTS} == FACTS


def test_code_of_a_reset_survives_pickling():
    """
    A reset stream says why, as a number.
    """
    error = pickle.loads(pickle.dumps(StreamReset("text", error_code=7, reused=True)))

    assert (error.error_code, error.reused, error.code) == (7, True, "ERR_HTTP2_STREAM_ERROR")
    assert StreamReset("text").error_code is None


def test_facts_have_defaults():
    """
    Facts that nobody gave are None or False, not missing.
    """
    error = RequestError("text")

    assert (error.phase, error.key, error.alert, error.elapsed) == (None, None, None, None)
    assert (error.reused, error.request_sent) == (False, False)


@pytest.mark.parametrize("given", [b"\x00\x1b[31m\r\n\xff", "zero\u200bwidth \u202e \U0001f600", '"', "\\", "\ud800"])
def test_quoted_is_printable_ascii(given):
    """
    What a peer sent is quoted so that no terminal or log is hurt by it.
    """
    text = quoted(given)

    assert text.isascii()
    assert text.isprintable()
    assert text.startswith('"')
    assert text.endswith('"')


@pytest.mark.parametrize("given", [b"\xff" * 1_000_000, "\U0001f600" * 1_000_000, "x" * 201])
def test_quoted_is_bounded(given):
    """
    However long the input, the quotation is short and shows that something is missing.
    """
    text = quoted(given)

    assert len(text) <= 4 * 200 + 5
    assert text.endswith('"...')


def test_quoted_keeps_plain_text():
    """
    Plain text is shown as it is.
    """
    assert quoted("HTTP/1.1 400 Bad Request") == quoted(b"HTTP/1.1 400 Bad Request") == '"HTTP/1.1 400 Bad Request"'
