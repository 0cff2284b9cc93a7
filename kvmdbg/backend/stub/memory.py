"""Guest memory: read from QEMU's RAM where possible, written through the stub.

Virtual addresses are translated here, with the guest's own page tables. Where that does not lead
to RAM (device memory, ROM, a page that is not there), the stub decides, page by page.
"""

from __future__ import annotations

import asyncio
import struct

from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.arch import Architecture
from kvmdbg.backend.stub.packets import PacketMemory
from kvmdbg.backend.stub.ram import DirectRam
from kvmdbg.backend.stub.registers import StubRegisters
from kvmdbg.backend.stub.threads import Threads
from kvmdbg.errors import MemoryFault

_MOST_AT_ONCE = 1 << 20
"""Bytes copied before the event loop has its turn."""


class PageWalk:
    """Translates addresses while the VM is stopped; page tables are read once per stop."""

    def __init__(self, arch: Architecture, ram: DirectRam) -> None:
        self._arch = arch
        self._ram = ram
        self._tables: dict[int, bytes] = {}

    def forget(self) -> None:
        """Page tables may have changed."""
        self._tables.clear()

    def translate(self, controls: dict[str, int], address: Gva) -> Gpa | None:
        """Where ``address`` is mapped to; None if that cannot be told from here."""
        walk = self._arch.translate(controls, address)
        try:
            wanted = next(walk)
            while (entry := self._entry(wanted)) is not None:
                wanted = walk.send(entry)
        except StopIteration as end:
            result: Gpa | None = end.value
            return result
        return None

    def _entry(self, address: Gpa) -> int | None:
        offset = address % self._arch.page_size
        start = Gpa(address - offset)
        table = self._tables.get(start)
        if table is None:
            table = self._ram.read(start, self._arch.page_size)
            if len(table) < self._arch.page_size:
                return None
            self._tables[start] = table
        entry: int = struct.unpack_from("<Q", table, offset)[0]
        return entry


class StubMemory:
    """Implements :class:`kvmdbg.target.capabilities.Memory`."""

    def __init__(
        self,
        arch: Architecture,
        threads: Threads,
        registers: StubRegisters,
        ram: DirectRam,
        walk: PageWalk,
        packets: PacketMemory,
    ) -> None:
        self._arch = arch
        self._threads = threads
        self._registers = registers
        self._ram = ram
        self._walk = walk
        self._packets = packets
        self._end = 1 << arch.address_bits

    async def read(self, vcpu: VcpuIndex, address: Gva, length: int) -> bytes:
        """See the capability."""
        controls = await self._controls(vcpu)
        end = min(address + length, self._end)
        data = bytearray()
        while (at := address + len(data)) < end:
            piece = self._read_ram(controls, Gva(at), min(end - at, _MOST_AT_ONCE))
            if not piece:
                await self._threads.select(vcpu)
                piece = await self._packets.read_page(at, end - at)
            if not piece:
                break
            data += piece
            if at + len(piece) < end:
                await asyncio.sleep(0)
        if length > 0 and not data:
            raise MemoryFault(f"memory at {address:#x} cannot be read")
        return bytes(data)

    async def write(self, vcpu: VcpuIndex, address: Gva, data: bytes) -> None:
        """See the capability."""
        await self._threads.select(vcpu)
        try:
            await self._packets.write(address, data)
        except MemoryFault:
            # On arm64 the stub writes only what the vCPU itself may access just now.
            pieces = self._in_ram(await self._controls(vcpu), address, data)
            if not pieces:
                raise
            async with self._packets.physical():
                for start, piece in pieces:
                    await self._packets.write(start, piece)
        finally:
            self._walk.forget()

    async def _controls(self, vcpu: VcpuIndex) -> dict[str, int] | None:
        """What the page walk needs; None when it cannot be done."""
        if self._ram.refused is not None:
            return None
        controls = {}
        for name in self._arch.translate_needs:
            value = await self._registers.value(vcpu, name)
            if value is None:
                return None
            controls[name] = value
        for name in self._arch.translate_may_need:
            controls[name] = await self._registers.value(vcpu, name) or 0
        return controls

    def _in_ram(
        self, controls: dict[str, int] | None, address: Gva, data: bytes
    ) -> list[tuple[Gpa, bytes]]:
        """Where in RAM each page's part of ``data`` belongs; nothing if one does not."""
        pieces: list[tuple[Gpa, bytes]] = []
        done = 0
        while controls is not None and done < len(data):
            start = self._walk.translate(controls, Gva(address + done))
            if start is None or not self._ram.holds(start):
                return []
            size = self._arch.page_size - (address + done) % self._arch.page_size
            pieces.append((start, data[done : done + size]))
            done += size
        return pieces

    def _read_ram(self, controls: dict[str, int] | None, address: Gva, length: int) -> bytes:
        """As much as lies together in RAM, at most ``length``; nothing where the stub decides."""
        if controls is None:
            return b""
        start = self._walk.translate(controls, address)
        if start is None or not self._ram.holds(start):
            return b""
        page = self._arch.page_size
        together = page - address % page
        while together < length:
            following = self._walk.translate(controls, Gva(address + together))
            if following != start + together:
                break
            together += page
        return self._ram.read(start, min(together, length))


class StubPhysicalMemory:
    """Implements :class:`kvmdbg.target.capabilities.PhysicalMemory`."""

    def __init__(self, ram: DirectRam, walk: PageWalk, packets: PacketMemory) -> None:
        self._ram = ram
        self._walk = walk
        self._packets = packets

    async def read(self, address: Gpa, length: int) -> bytes:
        """See the capability."""
        data = bytearray()
        while (left := length - len(data)) > 0:
            at = Gpa(address + len(data))
            piece = self._ram.read(at, min(left, _MOST_AT_ONCE))
            if not piece:
                async with self._packets.physical():
                    piece = await self._packets.read_page(at, left)
            if not piece:
                break
            data += piece
            if left > len(piece):
                await asyncio.sleep(0)
        if length > 0 and not data:
            raise MemoryFault(f"physical memory at {address:#x} cannot be read")
        return bytes(data)

    async def write(self, address: Gpa, data: bytes) -> None:
        """See the capability."""
        try:
            async with self._packets.physical():
                await self._packets.write(address, data)
        finally:
            self._walk.forget()
