"""
The other end of a simulated connection: a server for one connection, sans I/O.

Shares no code with the client: TLS is the standard library's `ssl` over memory BIOs, HTTP is h11 in the server's role,
or h2 (`_peer_http2`) where ALPN has chosen that. It answers requests as a `SimulatedServer` says, or does what a test
tells it to do at any moment: send stray bytes, end with or without close_notify, break, say nothing. When bytes arrive
is the network's affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import h11
from h2.exceptions import ProtocolError

from tlsagent.testing._peer_http2 import PeerStreams
from tlsagent.testing._settings import ServerSettings
from tlsagent.testing._tls import StdlibTLS, TLSFacts, TLSFailure, make_context
from tlsagent.testing.authority import default_authority, default_credentials

if TYPE_CHECKING:
    import ssl

Ending = Literal["eof", "reset"]
Fields = Sequence[tuple[str, str]]

_NAMES: Final = ("localhost", "127.0.0.1", "a.test", "b.test", "c.test", "d.test")


@dataclass(slots=True, eq=False)
class PeerRequest:
    """
    A request as the peer saw it.

    Attributes:
        headers: In order, names in lower case.
        stream_id: Its stream, 0 over HTTP/1.1.
        complete: Whether its end has arrived.
        answered: Whether the peer has given a whole response.
        over: HTTP/2: whether its stream has ended in another way, reset by either side or above a GOAWAY.
        refused: HTTP/2: whether the peer has said that it did not process it.
        reset: HTTP/2: the code of the client's RST_STREAM.
    """

    method: str
    target: str
    headers: Fields
    stream_id: int = 0
    body: bytes = b""
    trailers: Fields = ()
    complete: bool = False
    answered: bool = False
    over: bool = False
    refused: bool = False
    reset: int | None = None

    @property
    def outstanding(self) -> bool:
        """Whether it waits for its response."""
        return not (self.answered or self.over)

    def header(self, name: str) -> str | None:
        """Return the first value of a header, or None."""
        return next((value for key, value in self.headers if key == name.lower()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """
    A response.

    Attributes:
        headers: Without framing, which is added: a length, or chunks (HTTP/2: no length) where `chunked` says so or
            there are trailers.
        interim: Status codes of 1xx responses to send first.
        delay: Simulated seconds of thought before anything is sent.
        close: Whether to say "Connection: close" and to close; HTTP/2: whether to send GOAWAY behind it.
    """

    status: int = 200
    headers: Fields = ()
    body: bytes = b""
    trailers: Fields = ()
    chunked: bool = False
    interim: Sequence[int] = ()
    delay: float = 0.0
    close: bool = False


App = Callable[[PeerRequest, "Peer"], "Reply | bytes | None"]


def echo(request: PeerRequest, peer: Peer) -> Reply:  # noqa: ARG001 - the signature of an application
    """Answer with the method, the target and the body of the request."""
    return Reply(body=f"{request.method} {request.target}\n".encode() + request.body)


def silent(request: PeerRequest, peer: Peer) -> None:
    """Answer nothing: the test does, by `Peer.respond` and `Peer.send`."""


class SimulatedServer:
    """
    What all peers of a simulation have in common.

    Args:
        app: Called with each request whose end has arrived. Returns a `Reply`; or bytes, which are sent as they are and
            count as the whole response; or None, and the test answers.
        early: Call `app` as soon as the head of a request is here.
        greet: Called with each peer whose handshake is complete, before anything else happens.
        names: Whom the certificate is for.
        settings: Fields of the testing server: `min_version`, `max_version`, `tickets`, `session_ids`, `stall_at`,
            `alpn_protocols`, `credentials`, `request_cert`, ...
    """

    def __init__(
        self,
        app: App = echo,
        *,
        early: bool = False,
        greet: Callable[[Peer], object] | None = None,
        names: tuple[str, ...] = _NAMES,
        **settings: Any,
    ) -> None:
        self.app = app
        self.early = early
        self.greet = greet
        settings.setdefault("credentials", default_credentials(names))
        settings.setdefault("client_ca", default_authority().ca_pem)
        self.settings = ServerSettings(**settings)
        self.context: ssl.SSLContext = make_context(self.settings)

    @property
    def ca_pem(self) -> bytes:
        """The root that its default certificate hangs on."""
        return default_authority().ca_pem

    def forget_sessions(self) -> None:
        """Lose the ticket keys: no earlier session can be resumed."""
        self.context = make_context(self.settings)


@dataclass(slots=True, eq=False)
class Peer:
    """
    One connection of the server.

    Attributes:
        requests: All it has seen, in order.
        facts: What the handshake agreed on; None before its end.
        received: Bytes of plaintext that have arrived.
        overlapped: HTTP/1.1: whether a request began before the response to the one before was sent.
        http2: Its streams, once ALPN has chosen HTTP/2.
        failure: What TLS or HTTP had against the client.
        client_ended: How the client ended its side.
        ending: How this side ended.
    """

    server: SimulatedServer
    id: int
    address: tuple[str, int]
    requests: list[PeerRequest] = field(default_factory=list)
    received: int = 0
    overlapped: bool = False
    failure: Exception | None = None
    client_ended: Literal["close_notify", "eof", "reset"] | None = None
    ending: Ending | None = None
    http2: PeerStreams | None = None
    _plain: bytes = b""
    _thinking: list[tuple[float, PeerRequest, Reply]] = field(default_factory=list)
    _tls: StdlibTLS = field(init=False, repr=False)
    _http: h11.Connection = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tls = StdlibTLS(self.server.context, stall_at=self.server.settings.stall_at)
        self._http = h11.Connection(h11.SERVER)

    @property
    def facts(self) -> TLSFacts | None:
        """What the handshake agreed on."""
        return self._tls.facts

    @property
    def outstanding(self) -> PeerRequest | None:
        """The oldest request that waits for its response, if one does."""
        return next((request for request in self.requests if request.outstanding), None)

    # --- What the network brings --------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> None:
        """Take bytes from the client."""
        if self.ending is not None:
            return
        shaking = self._tls.facts is None
        try:
            plaintext = self._tls.receive_data(data)
        except TLSFailure as exc:
            self.failure = exc
            self.ending = "eof"
            return
        if shaking and self._tls.facts is not None:
            if self._tls.facts.alpn == "h2":
                self.http2 = PeerStreams(self, self.server.settings)
            if self.server.greet is not None:
                self.server.greet(self)
        if plaintext:
            self.received += len(plaintext)
            self._take_plaintext(plaintext, now)
        if self._tls.peer_closed:
            self.client_ended = self.client_ended or "close_notify"
            self.close()

    def receive_end(self, ending: Ending) -> None:
        """Take the end of the client's bytes."""
        self.client_ended = self.client_ended or ending
        self.ending = self.ending or "eof"

    def data_to_send(self) -> bytes:
        """Return what is on its way to the client."""
        plain, self._plain = self._plain, b""
        return self._tls.data_to_send() + plain

    def next_deadline(self) -> float:
        """Return when it has thought long enough."""
        return min((at for at, _, _ in self._thinking), default=math.inf)

    def handle_timeout(self, now: float) -> None:
        """Answer what has been thought about."""
        for _, request, reply in [thought for thought in self._thinking if thought[0] <= now]:
            self.respond(reply, now, request)

    # --- What a test may ask for --------------------------------------------------------------------------------------

    def respond(self, reply: Reply, now: float = 0.0, request: PeerRequest | None = None) -> None:
        """Answer a request, by default the oldest outstanding one; after the end there is nobody to answer."""
        request = request or self.outstanding
        self._thinking = [thought for thought in self._thinking if thought[1] is not request]
        if request is None or not request.outstanding or self.ending is not None:
            return
        if self.http2 is not None:
            self.http2.respond(request, reply)
        else:
            self._respond_http1(request, reply, now)

    def _respond_http1(self, request: PeerRequest, reply: Reply, now: float) -> None:
        http = self._http
        fields = [*reply.headers, *([("connection", "close")] if reply.close else ())]
        if reply.chunked or reply.trailers:
            fields.append(("transfer-encoding", "chunked"))
        elif reply.status not in (204, 304):
            fields.append(("content-length", str(len(reply.body))))
        events: list[h11.Event] = [h11.InformationalResponse(status_code=code, headers=[]) for code in reply.interim]
        events.append(h11.Response(status_code=reply.status, headers=fields))
        if reply.body and request.method != "HEAD":
            events.append(h11.Data(data=reply.body))
        events.append(h11.EndOfMessage(headers=list(reply.trailers)))
        self.send(b"".join(http.send(event) or b"" for event in events))
        request.answered = True
        if http.our_state is h11.MUST_CLOSE:
            self.close()
        self._next_request(now)

    def send(self, data: bytes) -> None:
        """Send plaintext, whatever it is. Before the handshake is complete it is lost."""
        if self.ending is None and self._tls.facts is not None and data:
            self._tls.write(data)

    def send_outside_tls(self, data: bytes) -> None:
        """Send bytes that are no TLS records."""
        self._plain += data

    def close(self) -> None:
        """End with close_notify."""
        if self.ending is None:
            self._tls.close()
            self.ending = "eof"

    def drop(self) -> None:
        """End without close_notify."""
        self.ending = self.ending or "eof"

    def reset(self) -> None:
        """Break the connection; what was on its way is lost."""
        self.ending = "reset"

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def begin_request(self, method: str, target: str, headers: Fields, stream_id: int = 0) -> PeerRequest:
        """Note a request whose head is here."""
        request = PeerRequest(method, target, headers, stream_id)
        self.requests.append(request)
        return request

    def take_head(self, request: PeerRequest, now: float) -> None:
        """Do what follows from the head of a request."""
        # Of a tunnel nothing more has to come: it is asked for by its head.
        if self.server.early or (request.stream_id and request.method == "CONNECT"):
            self._ask(request, now)

    def take_end(self, request: PeerRequest, now: float) -> None:
        """Do what follows from the end of a request."""
        if request.outstanding and not self.server.early:
            self._ask(request, now)

    def _take_plaintext(self, data: bytes, now: float) -> None:
        try:
            if self.http2 is not None:
                self.http2.receive_data(data, now)
            else:
                if self.requests and self.requests[-1].complete and not self.requests[-1].answered:
                    self.overlapped = True
                self._http.receive_data(data)
                self._take_events(now)
        except (h11.RemoteProtocolError, ProtocolError) as exc:
            self.failure = exc
            self.close()

    def _take_events(self, now: float) -> None:
        while isinstance(event := self._http.next_event(), h11.Event):
            if isinstance(event, h11.Request):
                request = self.begin_request(event.method.decode(), event.target.decode(), _text(event.headers))
                self.take_head(request, now)
            elif isinstance(event, h11.Data):
                self.requests[-1].body += event.data
            elif isinstance(event, h11.EndOfMessage):
                request = self.requests[-1]
                request.complete = True
                request.trailers = _text(event.headers)
                if request.answered:
                    self._next_request(now)
                else:
                    self.take_end(request, now)

    def _ask(self, request: PeerRequest, now: float) -> None:
        reply = self.server.app(request, self)
        if isinstance(reply, bytes):
            self.send(reply)
            request.answered = True
            self._http = h11.Connection(h11.SERVER)
        elif reply is not None and reply.delay:
            self._thinking.append((now + reply.delay, request, reply))
        elif reply is not None:
            self.respond(reply, now, request)

    def _next_request(self, now: float) -> None:
        http = self._http
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
            self._take_events(now)


def _text(headers: Any) -> Fields:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
