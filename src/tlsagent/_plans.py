"""
Which plan a request follows: from its URL and what it says of its connection, over what the agent says, made once.

Plans are remembered by the URL's authority and the options as said, mappings by their content, so that what a user
repeats with each request is checked and merged once. What is in a plan is decided in `_identity`.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from tlsagent._identity import Plan, origin_of, parse_authority, plan_for
from tlsagent._option_rules import CONNECTION_RULES, UNSET
from tlsagent._options import AgentOptions, ConnectionOptions, build, warn_of_server_options
from tlsagent._secure_context import context_for
from tlsagent.errors import LocalProtocolError, OptionTypeError, quoted

_URL: Final = re.compile(r"https://([^/?#]*)([^#]*)", re.IGNORECASE)  # RFC 3986, appendix B
_MAX_PLANS: Final = 16_384
_MAX_MAPPINGS: Final = 1_024


class Plans:
    """
    The plans of an agent. Takes no lock: making one is idempotent, and remembering it a single assignment.

    Args:
        said: What the agent says, without the defaults.
    """

    def __init__(self, said: AgentOptions) -> None:
        self._said = said
        self._plain: OrderedDict[str, Plan] = OrderedDict()
        self._special: OrderedDict[tuple[str, ConnectionOptions], Plan] = OrderedDict()
        self._warned: OrderedDict[ConnectionOptions, None] = OrderedDict()  # the options that a warning was given for
        self._mappings: OrderedDict[tuple[tuple[str, type, Any], ...], ConnectionOptions] = OrderedDict()

    def plan_and_target(self, url: str, options: ConnectionOptions | Mapping[str, Any] | None) -> tuple[Plan, str]:
        """
        Return the plan of a request and its target, which is cut from its URL.

        Raises:
            LocalProtocolError: The URL is none of https, or has no usable host.
            OptionError: An option is wrong.
        """
        authority, target = _split(url)
        if options is None:
            plan = self._plain.get(authority)
            if plan is None:
                plan = self._make_plan(authority, None)
                remember(self._plain, authority, plan, _MAX_PLANS)
            return plan, target
        special = self._of_request(options)
        plan = self._special.get((authority, special))
        if plan is None:
            plan = self._make_plan(authority, special)
            remember(self._special, (authority, special), plan, _MAX_PLANS)
        return plan, target

    def _of_request(self, options: ConnectionOptions | Mapping[str, Any]) -> ConnectionOptions:
        if isinstance(options, AgentOptions):
            raise OptionTypeError("options of a request must be ConnectionOptions: an agent's have no effect on it")
        if isinstance(options, ConnectionOptions):
            return options
        if not isinstance(options, Mapping):
            text = f"options must be ConnectionOptions or a mapping of their fields, not {type(options).__name__}"
            raise OptionTypeError(text)
        return self._converted(options)

    def _converted(self, mapping: Mapping[str, Any]) -> ConnectionOptions:
        # With the types: 0 == False, and only the literal False turns verification off.
        content = tuple((name, type(value), value) for name, value in mapping.items())
        try:
            known = self._mappings.get(content)
        except TypeError:
            return build(ConnectionOptions, mapping)
        if known is None:
            known = build(ConnectionOptions, mapping)
            # What a path names may be replaced, a renewed certificate say: such a mapping is looked at each time.
            if not any(_is_path(mapping[name]) for name in _MAY_BE_FILES & mapping.keys()):
                remember(self._mappings, content, known, _MAX_MAPPINGS)
        return known

    def _make_plan(self, authority: str, special: ConnectionOptions | None) -> Plan:
        if special is not None:
            self._warn_once(special)
        said = self._said if special is None else special.merged_over(self._said)
        return plan_for(parse_authority(authority), said, context_for, proxy_trust=self._said)

    def _warn_once(self, special: ConnectionOptions) -> None:
        if special not in self._warned and warn_of_server_options(special):
            remember(self._warned, special, None, _MAX_PLANS)

    def raw_plan(
        self, host: str, port: int, said: ConnectionOptions, below: ConnectionOptions | Mapping[str, Any] | None
    ) -> Plan:
        """Return the plan of a connection that carries no HTTP, from what is said over `below`."""
        special = said if below is None else said.merged_over(self._of_request(below))
        self._warn_once(special)
        said_of_all = special.merged_over(self._said)
        origin = origin_of(CONNECTION_RULES["host"]("host", host), CONNECTION_RULES["port"]("port", port))
        plan = plan_for(origin, said_of_all, context_for, proxy_trust=self._said)
        if said_of_all.alpn_protocols is UNSET:
            plan = plan.offering("http/1.1")  # who reads the bytes had better know that HTTP/2 will come
        return plan

    def forked(self) -> None:
        """Forget the sessions that options brought: they are the parent's."""
        for plan in [*self._plain.values(), *self._special.values()]:
            plan.forked()


_K = TypeVar("_K")
_V = TypeVar("_V")


def remember(memo: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> None:
    """Add to a memo, which forgets its oldest item beyond `most`. Takes no lock: each step is one of the memo's own."""
    memo[key] = value
    if len(memo) > most:
        memo.popitem(last=False)


_MAY_BE_FILES: Final = frozenset({"ca", "cert", "crl", "dhparam", "key", "pfx"})


def _is_path(value: object) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, tuple) and any(map(_is_path, value)))


def _split(url: str) -> tuple[str, str]:
    """Cut a URL into authority and target; the fragment stays with the caller."""
    match = _URL.match(url)
    if match is None:
        scheme = url.partition(":")[0]
        raise LocalProtocolError(
            f"the URL must begin with https://, not {quoted(scheme)}: an HTTPS agent speaks nothing else",
            code="ERR_INVALID_PROTOCOL",
        )
    authority, target = match.groups()
    return authority, target if target[:1] == "/" else "/" + target
