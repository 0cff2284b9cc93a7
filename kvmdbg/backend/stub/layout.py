"""Where QEMU's stub keeps each register: its numbers and its ``g`` packet, by register name.

They differ from ours and between QEMU versions (x86: fs_base to efer come before st0), so that
only names count. Source: GDB manual, "Target Description Format".
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from kvmdbg.errors import RemoteProtocolError

_INCLUDE = re.compile(r'<xi:include\s+href="([^"]+)"')


@dataclass(frozen=True, slots=True)
class Slot:
    """One register of the stub: its number, and its bytes in ``g``."""

    number: int
    offset: int
    size: int


class Cutter:
    """Cuts registers out of ``g`` replies: each ``slot``, as so many bytes.

    Every stop comes by here, so it is prepared, and one call in C does most of it.
    """

    def __init__(self, slots: Sequence[tuple[Slot | None, int]]) -> None:
        ends = [(slot.offset, slot.offset + slot.size) if slot else (0, 0) for slot, _ in slots]
        self._pick = itemgetter(*(slice(*end) for end in ends), slice(0))  # a tuple in any case
        self._sizes = [stop - start for start, stop in ends]
        self._length = max(stop for _, stop in ends)
        self._unlike = [
            (i, size if slot else None)
            for i, (slot, size) in enumerate(slots)
            if slot is None or slot.size != size
        ]

    def cut(self, block: bytes) -> list[bytes | None]:
        """The registers; None for each that is not in there."""
        values: list[bytes | None] = list(self._pick(block)[:-1])
        if len(block) < self._length:
            pairs = zip(values, self._sizes, strict=True)
            values = [value if value and len(value) == size else None for value, size in pairs]
        for i, size in self._unlike:
            value = values[i]
            values[i] = None if size is None or value is None else resized(value, size)
        return values


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
