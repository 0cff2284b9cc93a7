"""Registers and memory of a guest, which can be had while the VM is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.target.capabilities import Engine
from kvmdbg.target.history import require_unrecorded


class StoppedGuest:
    """The part of the facade that reaches into the guest; each call raises VmRunning where it is
    not stopped, VmGone, NoSuchVcpu."""

    engine: Engine

    def _stopped(self, vcpu: VcpuIndex | None = None) -> AbstractAsyncContextManager[None]:
        """Inside, the VM is stopped, has ``vcpu``, and nobody else is at it."""
        raise NotImplementedError

    async def read_block(self, vcpu: VcpuIndex) -> list[bytes | None]:
        """See :meth:`kvmdbg.target.capabilities.Registers.read_block`."""
        async with self._stopped(vcpu):
            return await self.engine.registers.read_block(vcpu)

    async def read_register(self, vcpu: VcpuIndex, number: int) -> bytes | None:
        """See :meth:`kvmdbg.target.capabilities.Registers.read_register`."""
        async with self._stopped(vcpu):
            return await self.engine.registers.read_register(vcpu, number)

    async def write_registers(self, vcpu: VcpuIndex, values: Mapping[int, bytes]) -> None:
        """See :meth:`kvmdbg.target.capabilities.Registers.write_registers`."""
        async with self._stopped(vcpu):
            require_unrecorded(self.engine)
            await self.engine.registers.write_registers(vcpu, values)

    async def read_memory(self, vcpu: VcpuIndex, address: Gva, length: int) -> bytes:
        """See :meth:`kvmdbg.target.capabilities.Memory.read`."""
        async with self._stopped(vcpu):
            return await self.engine.memory.read(vcpu, address, length)

    async def write_memory(self, vcpu: VcpuIndex, address: Gva, data: bytes) -> None:
        """See :meth:`kvmdbg.target.capabilities.Memory.write`."""
        async with self._stopped(vcpu):
            require_unrecorded(self.engine)
            await self.engine.memory.write(vcpu, address, data)

    async def read_physical(self, address: Gpa, length: int) -> bytes:
        """See :meth:`kvmdbg.target.capabilities.PhysicalMemory.read`."""
        async with self._stopped():
            return await self.engine.physical.read(address, length)

    async def write_physical(self, address: Gpa, data: bytes) -> None:
        """See :meth:`kvmdbg.target.capabilities.PhysicalMemory.write`."""
        async with self._stopped():
            require_unrecorded(self.engine)
            await self.engine.physical.write(address, data)
