"""
Requests to one origin on the connection of another (RFC 9113, 9.1.1), where `Http2Options.coalesce` allows it.

Three things must hold: the connection's certificate covers the other name too, by the same check as on a connection of
its own; the other name leads to the address that the connection was made to; and the keys are otherwise equal. The
second is known only once the name was looked up, so it is an attempt that finds out: it ends in place of connecting,
and the requests that waited for it take the other connection. An origin of which a request failed there, a 421
(Misdirected Request) say, has its own connections from then on.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from tlsagent._tls.verify import check_server_identity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tlsagent._connection import Connection
    from tlsagent._exchange import Exchange
    from tlsagent._identity import Plan, PoolKey

_MAX_KEYS: Final = 1_024


class Coalescing:
    """Which origins use the connection of another, of the last 1,024."""

    __slots__ = ("_alone", "_found")

    def __init__(self) -> None:
        self._found: OrderedDict[PoolKey, Connection] = OrderedDict()
        self._alone: OrderedDict[PoolKey, None] = OrderedDict()

    def connection_for(self, exchange: Exchange) -> Connection | None:
        """Return another's connection that an exchange may try."""
        key = exchange.plan.key
        connection = self._found.get(key)
        if connection is None:
            return None
        if exchange.attempts:
            del self._found[key]
            _remember(self._alone, key, None)
            return None
        if connection.dead is not None:
            del self._found[key]
            return None
        return connection

    def misdirected(self, exchange: Exchange) -> None:
        """Let an origin that answered 421 on another's connection have its own from now on."""
        if self._found.pop(exchange.plan.key, None) is not None:
            _remember(self._alone, exchange.plan.key, None)

    def forget(self, connection: Connection) -> None:
        """Let go of a connection that was closed."""
        for key, found in list(self._found.items()):
            if found is connection:
                self._found.pop(key, None)

    def find(self, plan: Plan, hosts: Iterable[str], candidates: Iterable[Connection]) -> Connection | None:
        """
        Return the connection that serves a plan whose name leads to some addresses, and keep it in mind. May call a
        hook of the user's.
        """
        key = plan.key
        if key in self._alone or not plan.may_share:
            return None
        facts, addresses = _beside_the_name(key), set(hosts)
        for connection in candidates:
            info = connection.info
            if connection.shared is None or connection.dead is not None or info is None or not info.authorized:
                continue
            address: Any = info.remote_address
            if not (isinstance(address, tuple) and address[0] in addresses):
                continue
            if connection.plan.key != key and _beside_the_name(connection.plan.key) == facts and _covers(info, key):
                _remember(self._found, key, connection)
                return connection
        return None


def _beside_the_name(key: PoolKey) -> tuple[object, object]:
    identity = dataclasses.replace(key.identity, verified_name="", server_name=None)
    return identity, dataclasses.replace(key.route, host="")


def _covers(info: Any, key: PoolKey) -> bool:
    """Whether a connection's certificate is good for the name of a key too."""
    identity, route = key.identity, key.route
    if not identity.reject_unauthorized:
        return False
    if route.path is not None or route.socket is not None or route.proxy is not None:
        return False  # what was looked up is not where the name leads
    check = identity.check_server_identity or check_server_identity
    try:
        answer = check(identity.verified_name, info.peer_certificate)
    except Exception:  # noqa: BLE001 - whatever it raises, it does not say yes
        return False
    return answer is None or answer is True


def _remember(memo: OrderedDict[Any, Any], key: PoolKey, value: object) -> None:
    memo[key] = value
    memo.move_to_end(key)
    if len(memo) > _MAX_KEYS:
        memo.popitem(last=False)
