"""What contract tests run on: an engine, and a guest whose doings are known."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.target.breakpoints import BreakpointSpec
from kvmdbg.target.capabilities import Engine, RunControl
from kvmdbg.target.runstate import VmRunState
from kvmdbg.target.stops import ResumePlan, Stop
from tests.contract.guest import LiveVm
from tests.contract.platforms import Platform

BOOT = VcpuIndex(0)
"""The vCPU that all addresses of a :class:`Subject` are about."""


@dataclass
class Subject:
    """An engine on a stopped VM whose vCPU 0 goes round a loop, and others round other loops.

    In the loop of vCPU 0 come, in this order: ``store``, an instruction that adds one to the number
    at ``counter``, 8 bytes little-endian (or the last of several that do); ``stored``, the next
    one; ``load``, one that reads the byte at ``shared``; ``loaded``, the next one. No other vCPU
    executes these.
    """

    engine: Engine
    run_control: RunControl
    platform: Platform
    store: Gva
    stored: Gva
    load: Gva
    loaded: Gva
    counter: Gva
    shared: Gva
    counter_gpa: Gpa
    last_page: Gva
    """Mapped and unused RAM, at least 4 KiB; nothing is mapped after it."""
    last_page_end: Gva
    lacks_watch: str = ""
    """Why this host cannot stop at an access to memory, if so."""
    look: Callable[[], str] = str
    """What the threads of its QEMU, if it has one, are doing."""

    async def watch(self, spec: BreakpointSpec) -> None:
        """Insert a watchpoint, or skip the test where this host has none."""
        if self.lacks_watch:
            pytest.skip(self.lacks_watch)
        await self.engine.breakpoints.insert(spec)

    async def run(self, plan: ResumePlan | None = None) -> Stop:
        """Run until something stops the VM."""
        return await self.engine.execution.run(plan or ResumePlan())

    async def pc(self, vcpu: VcpuIndex = BOOT) -> Gva:
        """Where a vCPU is."""
        return Gva(await self.register(self.engine.arch.pc, vcpu))

    async def register(self, name: str, vcpu: VcpuIndex = BOOT) -> int:
        """A register as a number."""
        number = self.engine.arch.numbers[name]
        value = await self.engine.registers.read_register(vcpu, number)
        assert value is not None
        return int.from_bytes(value, "little")

    async def set_register(self, name: str, value: int, vcpu: VcpuIndex = BOOT) -> None:
        """Write a register."""
        number = self.engine.arch.numbers[name]
        data = value.to_bytes(self.engine.arch.registers[number].size, "little")
        await self.engine.registers.write_registers(vcpu, {number: data})

    async def go_to_store(self) -> None:
        """Put vCPU 0 where its next instruction adds one to the number at ``counter``."""
        await self.set_register("pc", self.store)
        if self.platform.sum is not None:
            await self.set_register(self.platform.sum, await self.count() + 1)

    async def count(self) -> int:
        """The number at ``counter``."""
        return int.from_bytes(await self.engine.memory.read(BOOT, self.counter, 8), "little")


@contextlib.asynccontextmanager
async def within(subject: Subject, seconds: float) -> AsyncIterator[None]:
    """As ``asyncio.timeout``, and the failure says what QEMU was doing."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        error.add_note(subject.look())
        raise


async def interrupted(subject: Subject, *, after: float, plan: ResumePlan | None = None) -> Stop:
    """Let it run for ``after`` seconds, then interrupt it."""
    run = asyncio.create_task(subject.run(plan))
    await asyncio.sleep(after)
    await subject.engine.execution.interrupt()
    async with within(subject, 10):
        return await run


async def number(subject: Subject, at: Gva) -> int:
    """The number in the guest's memory at ``at``, 8 bytes."""
    return int.from_bytes(await subject.engine.memory.read(BOOT, at, 8), "little")


async def without_ticks(vm: LiveVm, subject: Subject) -> None:
    """No interrupt ends a halt of vCPU 0 from now on."""
    if subject.platform.masked is not None:
        await subject.set_register(*subject.platform.masked)
        return
    await subject.engine.memory.write(BOOT, vm.guest.symbols["quiet"], b"\x01")
    await interrupted(subject, after=0.02)


async def runs_on(vm: LiveVm, vcpu: VcpuIndex = BOOT) -> bool:
    """True if the VM is running and ``vcpu`` makes progress, by QEMU's monitor."""
    at = vm.guest.platform.gpa(vm.guest.symbols["counters"]) + 8 * vcpu

    async def look() -> str:
        return await vm.monitor.hmp(f"xp /gd {at:#x}")

    before = await look()
    for _ in range(50):
        await asyncio.sleep(0.02)
        if await look() != before:
            return await vm.run_control.sync() is VmRunState.RUNNING
    return False
