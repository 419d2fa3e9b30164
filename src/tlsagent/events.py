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
        reason: One word, the same as in `stats().closed`.

    By the peer:
        peer: It ended the connection, in good order or not, while nothing depended on that.
        connection_close: It said so (Connection: close, HTTP/1.0, a body that ends with the connection), or we did.
        keep_alive_hint: Its Keep-Alive left no time for a next request.
        goaway: It took its leave (HTTP/2).
        unsolicited_data: It sent what nobody had asked for.
        early_response: It answered before it had the whole request, the rest of which was not sent.

    By a limit of ours, which has the name of its option:
        free_socket_timeout, max_free_sockets, max_lifetime, max_requests (max_requests_per_socket), timeout (any
        timeout), keep_alive_off (keep_alive=False), make_room (max_sockets and max_total_sockets: a request that needs
        another connection waited for the place).

    By what became of a request:
        dropped: Given up, or its response closed before its end; HTTP/1.1 has no other way to stop.
        lost: The connection broke under it.
        error: The peer broke the protocol.
        handshake: Its attempt was given up, or the peer left, just when the handshake was complete.

    By a call:
        close: Of a raw connection.
        close_idle, network_changed: The methods of these names.
        agent_closed: The end of the agent.
        interrupted: A signal's exception, or a cancellation, that struck where nothing could be saved.
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
