"""
Servers and certificates for tests: this project's and yours. Needs the extra `testing`.

    Server, AsyncServer     an embedded HTTPS server with an ASGI application, records and faults
    RawServer, RawPeer      a peer scripted byte by byte
    FramePeer               the same, frame by frame of HTTP/2
    Authority, Credentials  throw-away certificates
    app                     the demo routes
"""

from __future__ import annotations

from tlsagent.testing._hello import ClientHello
from tlsagent.testing.app import app
from tlsagent.testing.authority import Authority, Credentials, default_authority
from tlsagent.testing.frames import FramePeer, FrameRequest
from tlsagent.testing.records import ConnectionRecord, RequestRecord, ServerStats
from tlsagent.testing.scripted import PeerGone, RawPeer, RawServer
from tlsagent.testing.server import AsyncServer, Server

__all__ = [
    "AsyncServer",
    "Authority",
    "ClientHello",
    "ConnectionRecord",
    "Credentials",
    "FramePeer",
    "FrameRequest",
    "PeerGone",
    "RawPeer",
    "RawServer",
    "RequestRecord",
    "Server",
    "ServerStats",
    "app",
    "default_authority",
]
