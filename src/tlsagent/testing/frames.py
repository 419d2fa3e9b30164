"""
A peer of HTTP/2 scripted frame by frame, over a `RawPeer`: for faults that a correct server cannot commit.

    def handler(raw: RawPeer) -> None:
        peer = FramePeer(raw)
        peer.greet({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        request = peer.recv_request()
        peer.send(peer.headers(request.stream_id, (":status", "200")), DataFrame(request.stream_id, b"hel"))
        peer.send(RstStreamFrame(request.stream_id, error_code=2))

    with RawServer(handler, alpn_protocols=("h2",)) as server:
        ...

Frames are hyperframe's, and field sections hpack's; nothing is checked, counted or answered unless the script does so.
Bytes that are no frames go out by `RawPeer.send`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    SettingsFrame,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tlsagent.testing.scripted import RawPeer

AnyFrame = TypeVar("AnyFrame", bound=Frame)

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER_SIZE: Final = 9


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """
    A request as it arrived.

    Attributes:
        headers: In order, with the pseudo-header fields.
        ended: Whether nothing follows.
    """

    stream_id: int
    headers: tuple[tuple[str, str], ...]
    ended: bool

    def header(self, name: str) -> str | None:
        """Return the first value of a header, or None."""
        return next((value for key, value in self.headers if key == name), None)


class FramePeer:
    """
    Reads and writes frames on a connection. All calls block.

    Attributes:
        raw: The connection below.
        encoder, decoder: Compress and read field sections.
    """

    def __init__(self, raw: RawPeer) -> None:
        self.raw = raw
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()

    def greet(self, settings: Mapping[int, int] | None = None) -> None:
        """Send SETTINGS, take the client's preface and its SETTINGS, and acknowledge them."""
        self.send(SettingsFrame(0, settings=dict(settings or {})))
        preface = self.raw.recv_exactly(len(PREFACE))
        assert preface == PREFACE, f"no preface of HTTP/2: {preface!r}"
        self.recv(SettingsFrame)
        self.send(SettingsFrame(0, flags=["ACK"]))

    # --- Reading ---

    def recv_frame(self) -> Frame:
        """Return the next frame. Raises PeerGone if none comes."""
        frame, length = Frame.parse_frame_header(memoryview(self.raw.recv_exactly(_HEADER_SIZE)))
        frame.parse_body(memoryview(self.raw.recv_exactly(length)))
        return frame

    def recv(self, kind: type[AnyFrame]) -> AnyFrame:
        """Return the next frame of a type; others are discarded, so do not pass over field sections."""
        while not isinstance(frame := self.recv_frame(), kind):
            pass
        return frame

    def recv_request(self) -> FrameRequest:
        """Return the next request; other frames before it are discarded."""
        first = self.recv(HeadersFrame)
        block = first.data
        flags = first.flags
        while "END_HEADERS" not in flags:
            more = self.recv(ContinuationFrame)
            block += more.data
            flags = more.flags
        fields = self.decoder.decode(block)
        return FrameRequest(first.stream_id, tuple((str(k), str(v)) for k, v in fields), "END_STREAM" in first.flags)

    # --- Writing ---

    def send(self, *frames: Frame) -> None:
        """Send frames in one write."""
        self.raw.send(b"".join(frame.serialize() for frame in frames))

    def headers(self, stream_id: int, *fields: tuple[str, str], end_stream: bool = False) -> HeadersFrame:
        """Return a field section as one frame. The client must get every one, in this order."""
        flags = ["END_HEADERS", "END_STREAM"] if end_stream else ["END_HEADERS"]
        return HeadersFrame(stream_id, self.encoder.encode(fields), flags=flags)

    def respond(
        self, stream_id: int, body: bytes = b"", *, status: int = 200, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Send a whole response; the body goes in one frame."""
        head = self.headers(stream_id, (":status", str(status)), *headers)
        self.send(head, DataFrame(stream_id, body, flags=["END_STREAM"]))
