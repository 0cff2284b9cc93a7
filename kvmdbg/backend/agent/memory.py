"""Guest memory through the agent, which walks the guest's page tables and sees its RAM and ROM.

What is neither (device memory) is read through QEMU's monitor, and cannot be written.
"""

from __future__ import annotations

from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.agent.client import AgentClient
from kvmdbg.arch import Architecture
from kvmdbg.backend import hmp
from kvmdbg.backend.agent.vcpus import Vcpus
from kvmdbg.errors import MemoryFault, MonitorError
from kvmdbg.target.capabilities import MonitorQuery
from kvmdbg.wire.structs import Space

_MOST_OF_DEVICES = 1 << 12
"""Bytes that the monitor is asked for at once."""


class AgentMemory:
    """Implements :class:`kvmdbg.target.capabilities.Memory`."""

    def __init__(
        self, agent: AgentClient, arch: Architecture, vcpus: Vcpus, monitor: MonitorQuery
    ) -> None:
        self._agent = agent
        self._page_size = arch.page_size
        self._end = 1 << arch.address_bits
        self._vcpus = vcpus
        self._monitor = monitor

    async def read(self, vcpu: VcpuIndex, address: Gva, length: int) -> bytes:
        """See the capability."""
        number = self._vcpus.number(vcpu)
        end = min(address + length, self._end)
        data = bytearray()
        while (at := address + len(data)) < end:
            try:
                piece = await self._agent.read(Space.GVA, at, end - at, vcpu=number)
            except MemoryFault:
                piece = await self._read_device(number, Gva(at), end - at)
            if not piece:
                break
            data += piece
        if length > 0 and not data:
            raise MemoryFault(f"memory at {address:#x} cannot be read")
        return bytes(data)

    async def write(self, vcpu: VcpuIndex, address: Gva, data: bytes) -> None:
        """See the capability."""
        await self._agent.write(Space.GVA, address, data, vcpu=self._vcpus.number(vcpu))

    async def _read_device(self, number: int, address: Gva, length: int) -> bytes:
        try:
            translation = await self._agent.translate(address, vcpu=number)
        except MemoryFault:
            return b""
        in_page = self._page_size - address % self._page_size
        return await _read_device(self._monitor, Gpa(translation.gpa), min(length, in_page))


class AgentPhysicalMemory:
    """Implements :class:`kvmdbg.target.capabilities.PhysicalMemory`."""

    def __init__(self, agent: AgentClient, monitor: MonitorQuery) -> None:
        self._agent = agent
        self._monitor = monitor

    async def read(self, address: Gpa, length: int) -> bytes:
        """See the capability."""
        data = bytearray()
        while (left := length - len(data)) > 0:
            at = Gpa(address + len(data))
            try:
                piece = await self._agent.read(Space.GPA, at, left)
            except MemoryFault:
                piece = await _read_device(self._monitor, at, left)
            if not piece:
                break
            data += piece
        if length > 0 and not data:
            raise MemoryFault(f"physical memory at {address:#x} cannot be read")
        return bytes(data)

    async def write(self, address: Gpa, data: bytes) -> None:
        """See the capability."""
        await self._agent.write(Space.GPA, address, data)


async def _read_device(monitor: MonitorQuery, address: Gpa, length: int) -> bytes:
    try:
        return await hmp.physical_bytes(monitor, address, min(length, _MOST_OF_DEVICES))
    except MonitorError:
        return b""
