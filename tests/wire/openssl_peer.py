"""
A server for what the standard library's ssl cannot do or see: stapling, pre-shared keys, small DHE groups.

It is pyOpenSSL over blocking sockets, one thread for each connection, and answers every GET with "ok". Nothing of the
library's client is used.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from wire_peer import OK, PATIENCE

from tlsagent.testing import ClientHello, Credentials, default_authority
from tlsagent.testing._hello import first_record
from tlsagent.testing._listen import listen
from tlsagent.testing.authority import default_credentials

_VERSIONS = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}
_lib: Any = Binding.lib
_ffi: Any = Binding.ffi


@dataclass
class Seen:
    """
    What the server saw of one connection.

    Attributes:
        address: The client's end.
        hello: The ClientHello; None until it came.
        version, cipher, group, reused: Of the finished handshake, else None.
        requests: How many were answered.
        failure: Why the handshake failed, in OpenSSL's words.
    """

    address: tuple[Any, ...]
    hello: ClientHello | None = None
    version: str | None = None
    cipher: str | None = None
    group: str | None = None
    reused: bool | None = None
    requests: int = 0
    failure: str | None = None


@dataclass(kw_only=True)
class Manner:
    """
    How the server speaks TLS.

    Attributes:
        version: The only one it speaks.
        ciphers: OpenSSL cipher list for TLS 1.2.
        dh: File with the DHE group.
        staple: The OCSP response it has.
        keys: Pre-shared keys by identity; an unknown identity fails the handshake.
        hint: The identity hint it gives in TLS 1.2.
    """

    version: str = "TLSv1.3"
    ciphers: str | None = None
    credentials: Credentials = field(default_factory=lambda: default_credentials(("localhost", "127.0.0.1", "::1")))
    dh: Path | None = None
    staple: bytes | None = None
    keys: dict[str, bytes] | None = None
    hint: bytes | None = None


class OpenSSLPeer:
    """
    The server, on the loopback addresses of both families.

    Attributes:
        seen: The connections, as they came.
        identities: The PSK identities that clients sent.
    """

    def __init__(self, **manner: Any) -> None:
        self.ca_pem = default_authority().ca_pem
        self.seen: list[Seen] = []
        self.identities: list[str] = []
        self._psk: object = None  # OpenSSL calls it as long as the context lives
        self._context = self._make_context(Manner(**manner))
        self._sockets: list[socket.socket] = []
        self._listeners = listen(None, 0)
        self.port: int = self._listeners[0].getsockname()[1]
        self.url = f"https://localhost:{self.port}/"
        self._threads: list[threading.Thread] = []
        for listener in self._listeners:
            self._start(self._accept, listener)

    def _make_context(self, manner: Manner) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(_VERSIONS[manner.version])
        context.set_max_proto_version(_VERSIONS[manner.version])
        if manner.ciphers is not None:
            context.set_cipher_list(manner.ciphers.encode())
        leaf, *others = x509.load_pem_x509_certificates(manner.credentials.cert_pem)
        context.use_certificate(leaf)
        for other in others:
            context.add_extra_chain_cert(other)
        key: Any = load_pem_private_key(manner.credentials.key_pem, None)
        context.use_privatekey(key)
        if manner.dh is not None:
            context.load_tmp_dh(str(manner.dh))
        if manner.staple is not None:
            staple = manner.staple
            context.set_ocsp_server_callback(lambda _connection, _data: staple)
        if manner.keys is not None:
            self._take_keys(context, manner.keys, manner.hint)
        return context

    def _take_keys(self, context: SSL.Context, keys: dict[str, bytes], hint: bytes | None) -> None:
        @_ffi.callback("unsigned int(SSL *, char *, unsigned char *, unsigned int)")
        def answer(_ssl: object, identity: Any, buffer: object, _size: int) -> int:
            name = _ffi.string(identity).decode()
            self.identities.append(name)
            key = keys.get(name, b"")
            _ffi.memmove(buffer, key, len(key))
            return len(key)

        self._psk = answer
        _lib.SSL_CTX_set_psk_server_callback(context._context, answer)
        if hint is not None:
            _lib.SSL_CTX_use_psk_identity_hint(context._context, hint)

    def _start(self, run: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, address = listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            self._sockets.append(sock)
            seen = Seen(address[:2])
            self.seen.append(seen)
            self._start(self._serve, sock, seen)

    def _serve(self, sock: socket.socket, seen: Seen) -> None:
        tls = SSL.Connection(self._context, None)
        tls.set_accept_state()
        try:
            _until(tls, sock, tls.do_handshake, seen)
            seen.version, seen.cipher = tls.get_protocol_version_name(), tls.get_cipher_name()
            seen.group, seen.reused = tls.get_group_name(), bool(_lib.SSL_session_reused(tls._ssl))
            _flush(tls, sock)
            _answer(tls, sock, seen)
        except SSL.ZeroReturnError:
            tls.shutdown()
        except SSL.Error as error:
            seen.failure = str(error)
        except (OSError, EOFError):
            pass  # the client left: the test looks from its side
        finally:
            tls.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)
            with contextlib.suppress(OSError):
                _flush(tls, sock)
            sock.close()

    def close(self) -> None:
        """Stop, and wait for the threads."""
        for sock in (*self._listeners, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for listener in self._listeners:
            listener.close()
        for thread in list(self._threads):
            thread.join(PATIENCE)


def _answer(tls: SSL.Connection, sock: socket.socket, seen: Seen) -> None:
    held = b""
    while True:
        held += _until(tls, sock, lambda: tls.recv(65_536), seen)
        while b"\r\n\r\n" in held:
            _, _, held = held.partition(b"\r\n\r\n")
            seen.requests += 1
            tls.send(OK)
        _flush(tls, sock)


def _until(tls: SSL.Connection, sock: socket.socket, step: Any, seen: Seen) -> Any:
    """Carry bytes until a step of OpenSSL's succeeds."""
    began = b""
    while True:
        try:
            return step()
        except SSL.WantReadError:
            _flush(tls, sock)
        data = sock.recv(65_536)
        if not data:
            raise EOFError
        if seen.hello is None:
            began += data
            record = first_record(began)
            seen.hello = ClientHello.parse(record) if record else None
        tls.bio_write(data)


def _flush(tls: SSL.Connection, sock: socket.socket) -> None:
    with contextlib.suppress(SSL.WantReadError):
        while True:
            sock.sendall(tls.bio_read(65_536))
