"""Where QEMU's stub keeps each register: its numbers and its ``g`` packet, by register name.

They differ from ours and between QEMU versions (x86: fs_base to efer come before st0), so that
only names count. Source: GDB manual, "Target Description Format".
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass

from kvmdbg.errors import RemoteProtocolError

_INCLUDE = re.compile(r'<xi:include\s+href="([^"]+)"')


@dataclass(frozen=True, slots=True)
class Slot:
    """One register of the stub: its number, and its bytes in ``g``."""

    number: int
    offset: int
    size: int

    def cut(self, block: bytes, size: int) -> bytes | None:
        """The register out of a ``g`` reply, as ``size`` bytes; None if it is not in there."""
        value = block[self.offset : self.offset + self.size]
        return resized(value, size) if len(value) == self.size else None


def resized(value: bytes, size: int) -> bytes:
    """A little-endian ``value`` with its top cut off, or zeros put on top."""
    return value[:size].ljust(size, b"\0")


def included(document: str) -> list[str]:
    """Names of the documents that a target description includes."""
    return _INCLUDE.findall(_without_comments(document))


def parse_layout(documents: Mapping[str, str]) -> dict[str, Slot]:
    """Slots by register name, from ``target.xml`` and all it includes, in order of inclusion.

    Raises RemoteProtocolError at what is no target description.
    """
    bits: dict[int, tuple[str, int]] = {}
    number = 0
    for document in documents.values():
        for register in _registers(document):
            number = int(register.get("regnum", number))
            bits[number] = (register.attrib["name"], int(register.attrib["bitsize"]))
            number += 1
    slots = {}
    offset = 0
    for number, (name, size) in sorted(bits.items()):
        slots[name] = Slot(number, offset, size // 8)
        offset += size // 8
    return slots


def _registers(document: str) -> list[ET.Element]:
    # QEMU does not declare the prefix of its includes.
    text = _without_comments(document).replace("<xi:include", "<include")
    try:
        return list(ET.fromstring(text).iter("reg"))
    except ET.ParseError as error:
        raise RemoteProtocolError(f"its target description is no XML: {error}") from error


def _without_comments(document: str) -> str:
    return re.sub(r"<!--.*?-->", "", document, flags=re.DOTALL)
