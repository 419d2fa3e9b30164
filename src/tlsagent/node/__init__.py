"""
Node 26's vocabulary for this library: its option names, milliseconds, falsy values, error codes and its identity check.

    from tlsagent import Agent, node

    with Agent(node.agent_options({"keepAlive": True, "maxSockets": 8, "timeout": 5000})) as agent:
        agent.request("GET", url, options=node.request_options({"servername": "a.test"}))

JavaScript's values are Python's: `undefined` is `UNDEFINED` (an absent key is absent), `null` None, a Buffer `bytes`, a
Uint8Array `bytearray`, an object a mapping, a function any callable. Node's Error is `OptionError`, its TypeError
`OptionTypeError`, its RangeError `OptionRangeError`; `code` is Node's where Node has one. `SUPPORT` says of every
property of Node's what it is here.
"""

from __future__ import annotations

from tlsagent.node.convert import agent_options as agent_options
from tlsagent.node.convert import connection_options as connection_options
from tlsagent.node.convert import request_options as request_options
from tlsagent.node.convert import secure_context as secure_context
from tlsagent.node.identity import check_server_identity as check_server_identity
from tlsagent.node.names import effective as effective
from tlsagent.node.names import get_name as get_name
from tlsagent.node.support import SUPPORT as SUPPORT
from tlsagent.node.support import Support as Support
from tlsagent.node.values import UNDEFINED as UNDEFINED
from tlsagent.node.values import Undefined as Undefined
