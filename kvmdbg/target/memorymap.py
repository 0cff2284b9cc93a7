"""Guest physical memory as a list of regions."""

from __future__ import annotations

from enum import Enum

import msgspec

from kvmdbg.addr import Gpa


class MemoryKind(Enum):
    """What a region is made of; the value is its name in RSP's memory map."""

    RAM = "ram"
    ROM = "rom"


class MemoryRegion(msgspec.Struct, frozen=True):
    """``length`` bytes from ``start`` on."""

    kind: MemoryKind
    start: Gpa
    length: int
