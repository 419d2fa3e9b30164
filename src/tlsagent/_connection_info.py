"""
`ConnectionInfo`: what a user may know of the connection that carries a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tlsagent._tls.certificates import PeerCertificate
    from tlsagent._tls.engine import HandshakeFacts


class ConnectionInfo:
    """
    What is known of a connection; made once, at the end of its handshake.

    Attributes:
        id: Number of the connection within its agent.
        local_address, remote_address: As the socket names them; None over a user's own transport.
        protocol_version: "TLSv1.2", "TLSv1.3".
        cipher: OpenSSL's name of the cipher suite.
        group: Key exchange group, or None.
        alpn_protocol: Chosen by the server (RFC 7301), or None.
        session_reused: Whether the handshake was a resumed one.
        early_data: "none", "accepted" or "rejected".
        authorized: Whether the peer's certificate was verified and is for the right name.
        authorization_error: Node's code of what was wrong, or None.
        proxy: URL of the proxy it goes through, without credentials; or None.
        peer_certificate: The server's certificate.
        peer_chain: What the server sent, its own certificate first; on resumption that of the full handshake.
        ocsp_response: The stapled OCSP response, or None.
        opened_at: Monotonic time at which the handshake was complete.
        why_not_resumed: Why it was a full handshake, or None.
        http_engine: Name of the HTTP engine; None for a raw connection.
    """

    __slots__ = (
        "_facts",
        "alpn_protocol",
        "authorization_error",
        "authorized",
        "cipher",
        "early_data",
        "group",
        "http_engine",
        "id",
        "local_address",
        "opened_at",
        "protocol_version",
        "proxy",
        "remote_address",
        "session_reused",
        "why_not_resumed",
    )

    def __init__(
        self,
        facts: HandshakeFacts,
        *,
        id: int,  # noqa: A002 - the public name of the attribute
        addresses: tuple[object, object],
        opened_at: float,
        why_not_resumed: str | None,
        http_engine: str | None,
        proxy: str | None,
    ) -> None:
        self._facts = facts
        self.id = id
        self.local_address, self.remote_address = addresses
        self.protocol_version = facts.protocol_version
        self.cipher = facts.cipher
        self.group = facts.group
        self.alpn_protocol = facts.alpn_protocol
        self.session_reused = facts.session_reused
        self.early_data: Literal["none", "accepted", "rejected"] = "none"
        self.authorized = facts.authorized
        self.authorization_error = facts.authorization_error
        self.opened_at = opened_at
        self.why_not_resumed = why_not_resumed
        self.http_engine = http_engine
        self.proxy = proxy

    @property
    def peer_certificate(self) -> PeerCertificate | None:
        """The server's certificate."""
        return self._facts.peer_certificate

    @property
    def peer_chain(self) -> tuple[PeerCertificate, ...]:
        """The chain the server sent."""
        return self._facts.peer_chain

    @property
    def ocsp_response(self) -> bytes | None:
        """The stapled OCSP response, DER, if one was asked for (`request_ocsp`) and sent. Nothing in it was checked."""
        return self._facts.ocsp_response

    def __repr__(self) -> str:
        resumed = "resumed" if self.session_reused else "full"
        return f"<ConnectionInfo {self.id} {self.remote_address} {self.protocol_version} {self.cipher} {resumed}>"
