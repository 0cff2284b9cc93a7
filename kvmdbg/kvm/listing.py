"""Machine code as a listing: bytes beside the assembly they are, so that both can be read.

A test assembles the right half and compares it with the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """Bytes for address ``base``, and the addresses of labels in them."""

    base: int
    data: bytes
    symbols: Mapping[str, int]
    source: str
    """The assembly, for the test that compares."""

    def at(self, address: int) -> str:
        """An address by its label where it has one."""
        for name, value in self.symbols.items():
            if value == address:
                return name
        return f"{address:#x}"


def read_listing(base: int, text: str) -> Code:
    """From lines of ``label:``, and of ``hex bytes | assembly`` (AT&T syntax)."""
    data = bytearray()
    symbols: dict[str, int] = {}
    source: list[str] = []
    for line in map(str.strip, text.strip().splitlines()):
        if line.endswith(":"):
            symbols[line[:-1]] = base + len(data)
            source.append(line)
        elif line:
            octets, _, assembly = line.partition("|")
            data += bytes.fromhex(octets)
            source.append(assembly.strip())
    return Code(base, bytes(data), symbols, "\n".join(source) + "\n")
