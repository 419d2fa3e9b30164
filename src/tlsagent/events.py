"""
What an agent tells about its work.

`agent.on(EventClass, callback)` subscribes for the life of an agent, `trace=callback` for one request. Callbacks run
without a lock held, in the thread or loop that caused the event; what they raise is logged and dropped. Events are
plain objects, made only when somebody listens. Nothing secret is shown by their repr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlsagent._connection_info import ConnectionInfo
    from tlsagent._tls.sessions import Session
    from tlsagent.errors import RequestError


class Event:
    """
    Root of all events; subscribing to it hears everything.

    Attributes:
        key: Printable digest of the pool key.
    """

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        self.key = key

    def __repr__(self) -> str:
        names = [name for cls in reversed(type(self).__mro__) for name in getattr(cls, "__slots__", ())]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


class Connecting(Event):
    """
    A connection attempt began.

    Attributes:
        host, port: Where to; the path of a Unix socket in `host`, and port 0, if there is one.
    """

    __slots__ = ("host", "port")

    def __init__(self, key: str, host: str, port: int) -> None:
        super().__init__(key)
        self.host = host
        self.port = port


class Connected(Event):
    """
    The transport is open, the TLS handshake begins.

    Attributes:
        remote_address: As the socket names it.
    """

    __slots__ = ("remote_address",)

    def __init__(self, key: str, remote_address: object) -> None:
        super().__init__(key)
        self.remote_address = remote_address


class ConnectFailed(Event):
    """
    A connection attempt ended without a connection.

    Attributes:
        error: Why.
    """

    __slots__ = ("error",)

    def __init__(self, key: str, error: BaseException) -> None:
        super().__init__(key)
        self.error = error


class _OfConnection(Event):
    __slots__ = ("connection",)

    def __init__(self, key: str, connection: ConnectionInfo) -> None:
        super().__init__(key)
        self.connection = connection


class Secured(_OfConnection):
    """
    The handshake is complete and the peer was verified.

    Attributes:
        connection: What was negotiated.
    """

    __slots__ = ()


class Reused(_OfConnection):
    """
    A request starts on a connection that has served before.

    Attributes:
        connection: Which one.
    """

    __slots__ = ()


class Freed(_OfConnection):
    """
    A response is complete and its connection is free again.

    Attributes:
        connection: Which one.
    """

    __slots__ = ()


class Closed(_OfConnection):
    """
    A connection is gone.

    Attributes:
        connection: Which one.
        reason: One word: "free_socket_timeout", "peer", "close", ...
    """

    __slots__ = ("reason",)

    def __init__(self, key: str, connection: ConnectionInfo, reason: str) -> None:
        super().__init__(key, connection)
        self.reason = reason


class SessionTicket(Event):
    """
    The peer sent a TLS session for later resumption.

    Attributes:
        session: The session; its repr shows no ticket bytes.
    """

    __slots__ = ("session",)

    def __init__(self, key: str, session: Session) -> None:
        super().__init__(key)
        self.session = session


class OCSPResponse(_OfConnection):
    """
    The peer stapled an OCSP response (`request_ocsp`). Nothing in it was checked.

    Attributes:
        connection: Where; its `ocsp_response` has the DER bytes.
    """

    __slots__ = ()


class GoAway(_OfConnection):
    """
    The peer of an HTTP/2 connection takes its leave (RFC 9113, 6.8): it takes no further request there.

    Attributes:
        connection: Which one.
        last_stream_id: The last stream that it may process; requests on later ones are sent again elsewhere.
        code: Why (RFC 9113, 7); 0 if nothing is wrong.
    """

    __slots__ = ("code", "last_stream_id")

    def __init__(self, key: str, connection: ConnectionInfo, last_stream_id: int, code: int) -> None:
        super().__init__(key, connection)
        self.last_stream_id = last_stream_id
        self.code = code


class Retried(Event):
    """
    A request is sent again.

    Attributes:
        error: What ended the attempt before.
    """

    __slots__ = ("error",)

    def __init__(self, key: str, error: RequestError) -> None:
        super().__init__(key)
        self.error = error
