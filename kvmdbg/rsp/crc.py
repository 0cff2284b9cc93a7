"""The checksum of ``qCRC``: CRC-32 with the highest bit first and no final complement.

zlib's is the same polynomial with the lowest bit first, so its input and result are mirrored.
Source: GDB manual, "General Query Packets".
"""

from __future__ import annotations

import zlib

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def update(crc: int, piece: bytes) -> int:
    """Go on with a running checksum, which begins as 0."""
    return zlib.crc32(piece.translate(_MIRRORED), crc)


def result(crc: int) -> int:
    """What a running checksum comes to."""
    return int(f"{crc ^ 0xFFFF_FFFF:032b}"[::-1], 2)
