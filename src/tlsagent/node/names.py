"""
The key of Node's https.Agent, and what an agent makes of a request's options before it connects.

The exact strings of Node 26. The library's own key, `_identity.PoolKey`, has none of the collisions of this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tlsagent.node.identity import check_server_identity
from tlsagent.node.request import first, read_request, server_name
from tlsagent.node.values import (
    UNDEFINED,
    Options,
    get,
    is_array,
    is_same,
    is_truthy,
    to_json,
    to_text,
)

# The fields behind host, port and address, in Node's order. These three are written unless undefined.
_FIELDS: Final = (
    "ca", "cert", "clientCertEngine", "ciphers", "key", "pfx", "rejectUnauthorized", "servername", "minVersion",
    "maxVersion", "secureProtocol", "crl", "honorCipherOrder", "ecdhCurve", "dhparam", "secureOptions",
    "sessionIdContext", "sigalgs", "privateKeyIdentifier", "privateKeyEngine",
)  # fmt: skip
_UNLESS_UNDEFINED: Final = frozenset({"rejectUnauthorized", "honorCipherOrder", "secureOptions"})
_SHOWN: Final = ("host", "port", "servername", "timeout", "keepAlive", "keepAliveInitialDelay", "noDelay")


def get_name(options: Options | None = None) -> str:
    """
    Return the name under which Node's https.Agent pools connections for `options`.

    It holds certificates, keys and passphrases as they are: never log it.
    """
    said = {} if options is None else options
    host = to_text(first(get(said, "host"), "localhost"))
    name = f"{host}:{_or_nothing(said, 'port')}:{_or_nothing(said, 'localAddress')}"
    family = get(said, "family")
    if family in (4, 6) and not isinstance(family, bool):
        name += f":{to_text(family)}"
    if is_truthy(get(said, "socketPath")):
        name += f":{to_text(said['socketPath'])}"
    return name + "".join(f":{_field(said, field)}" for field in _FIELDS)


def _field(options: Options, name: str) -> str:
    value = get(options, name)
    if name in _UNLESS_UNDEFINED:
        return "" if value is UNDEFINED else to_text(value)
    if not is_truthy(value):
        return ""
    if name == "servername":
        return "" if is_same(value, get(options, "host")) else to_text(value)
    if name == "pfx" and is_array(value):
        return "".join(_pfx_item(item, get(options, "passphrase")) for item in value)
    return to_json(value) if name == "sigalgs" else to_text(value)


def _pfx_item(item: object, passphrase: object) -> str:
    own = item if isinstance(item, Mapping) else {}
    return f":{to_text(first(own.get('buf'), item))}:{to_text(first(own.get('passphrase'), passphrase))}"


def _or_nothing(options: Options, name: str) -> str:
    value = get(options, name)
    return to_text(value) if is_truthy(value) else ""


# Agent and request together ---------------------------------------------------------------------------------------


def effective(
    agent_options: Options | None, request_options: Options | None = None, url: str | None = None
) -> dict[str, object]:
    """
    Return what an https.Agent with `agent_options` passes on for a request: the options that decide where it goes.

    Node's merging: the agent's options win over the request's, even an explicit undefined.

    Returns:
        In Node's spelling and milliseconds: `name` (the pool's key), `host`, `port`, `servername`, `path` (a Unix
        socket or None), `noDelay`, `encoding`, and where they were said `timeout`, `keepAlive`,
        `keepAliveInitialDelay`.

    Raises:
        OptionError: What `https.request` throws.
    """
    agent = {} if agent_options is None else agent_options
    request = read_request({} if request_options is None else request_options, url, agent)
    merged = {**request.options, **agent, "path": None}
    if is_truthy(get(merged, "socketPath")):
        merged["path"] = merged["socketPath"]
    if get(agent, "noDelay") is UNDEFINED:
        merged["noDelay"] = True
    merged["servername"] = server_name(merged, request.host_header)
    name = get_name(merged)
    if _checks_by_itself(agent, request.options):
        name += ":1"  # a number of its own: such a connection is shared with nobody
    timeout = first(request.timeout, get(agent, "timeout"))
    if is_truthy(timeout):
        merged["timeout"] = timeout
    if is_truthy(get(agent, "keepAlive")):
        merged["keepAliveInitialDelay"] = first(get(agent, "keepAliveMsecs"), 1000)
    shown = {field: merged[field] for field in _SHOWN if get(merged, field) is not UNDEFINED}
    return {"name": name, **shown, "path": merged["path"], "encoding": None}


def _checks_by_itself(agent: Options, request: Options) -> bool:
    own = get(request, "checkServerIdentity")
    return own not in (UNDEFINED, check_server_identity) and get(agent, "checkServerIdentity") is UNDEFINED
