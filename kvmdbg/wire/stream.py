"""Messages in a stream of bytes: a header, then the payload whose length it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.wire.structs import MAX_PAYLOAD, Header


@dataclass(frozen=True)
class Frame:
    """A message whose payload nobody has looked at. ``status`` is 0 in requests, else an errno."""

    type: int
    id: int
    payload: bytes = b""
    status: int = 0

    def encode(self) -> bytes:
        """The bytes of header and payload. Raises ValueError for a payload that is too long."""
        if len(self.payload) > MAX_PAYLOAD:
            raise ValueError(f"a message holds {MAX_PAYLOAD} bytes, not {len(self.payload)}")
        header = Header(len(self.payload), self.type, 0, self.id, self.status)
        return header.encode() + self.payload


class FrameDecoder:
    """Cuts a stream into frames, however its bytes come in."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header: Header | None = None

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes; yields the frames that they complete.

        Raises RemoteProtocolError at a header that cannot be one; what follows is lost.
        """
        self._buffer += data
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> Frame | None:
        if self._header is None:
            if len(self._buffer) < Header.sizeof():
                return None
            self._header = _checked(Header.decode(self._take(Header.sizeof())))
        header = self._header
        if len(self._buffer) < header.length:
            return None
        self._header = None
        return Frame(header.type, header.id, self._take(header.length), header.status)

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data


def _checked(header: Header) -> Header:
    if header.length > MAX_PAYLOAD or header.zero or header.status < 0:
        raise RemoteProtocolError(
            f"what should be a header of the agent's protocol is none: {header}"
        )
    return header
