"""Frames between the lab and the agent inside an L1, over one virtio serial port; sans-IO.

A frame is a kind (one byte), the length of its payload (four, big-endian) and the payload. This
file is in both ends, so it imports nothing but the standard library.

A request is REQUEST (JSON, :class:`Request`), TREE frames with the bytes of a tar, and TREE empty
at their end. While the command runs, INPUT (empty: end of input) and RESIZE go in, OUTPUT and
ERRORS come out; then FILE frames if a file was asked for and exists, and EXIT with the status.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator

_HEADER = struct.Struct(">cI")
CHUNK = 65536
"""The longest payload that either side sends, in bytes."""


class Kind(bytes, enum.Enum):
    """What a frame is."""

    READY = b"!"
    REQUEST = b"R"
    TREE = b"T"
    INPUT = b"I"
    RESIZE = b"W"
    OUTPUT = b"O"
    ERRORS = b"E"
    FILE = b"F"
    EXIT = b"X"


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEADER.pack(kind.value, len(payload)) + payload


class Decoder:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """The frames that *data* completes. Raises ValueError when it is no frame."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Kind(kind), payload
