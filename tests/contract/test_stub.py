"""What the stub engine hides of QEMU's stub, on a live VM."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.backend.stub import StubEngine
from kvmdbg.errors import AttachError, RegisterError, VmGone
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.runstate import VmRunState
from kvmdbg.target.stops import Action, BreakpointHit, Paused, ResumePlan, Stepped, Stop
from tests.contract.conftest import stub_subject
from tests.contract.guest import COPY, IMAGE, LiveVm
from tests.contract.subject import BOOT, Subject, interrupted, number, runs_on

pytestmark = pytest.mark.vm

OTHER = VcpuIndex(1)
TWO_VCPUS = pytest.mark.parametrize("vcpus", [2], ids=["2 vCPUs"])
ONE_VCPU = pytest.mark.parametrize("vcpus", [1], ids=["1 vCPU"])


@pytest.fixture
async def subject(vm: LiveVm) -> Subject:
    return await stub_subject(vm)


# --- code and memory -----------------------------------------------------------------------------


async def test_code_that_was_written_is_executed(vm: LiveVm, subject: Subject) -> None:
    at = vm.guest.symbols
    assert await number(subject, at["result"]) == 0x11
    await subject.engine.memory.write(BOOT, Gva(at["answer"] + 1), b"\x22")
    await interrupted(subject, after=0.02)
    assert await number(subject, at["result"]) == 0x22


@ONE_VCPU
async def test_the_stub_reads_the_same_as_we_do_directly(vm: LiveVm, subject: Subject) -> None:
    assert isinstance(subject.engine, StubEngine)
    assert subject.engine.slow_memory is None
    ranges = [(Gva(IMAGE + 0x0123), 0x5432), (Gva(0xFFFFFFF0), 16), (Gva(0xFF000), 0x2000)]
    direct = [await subject.engine.memory.read(BOOT, at, length) for at, length in ranges[:1]]
    physical = await subject.engine.physical.read(Gpa(COPY), 0x3000)
    await subject.engine.close()
    slow = await vm.engine(direct_memory=False)
    assert slow.slow_memory is not None
    assert [await slow.memory.read(BOOT, at, length) for at, length in ranges[:1]] == direct
    assert await slow.physical.read(Gpa(COPY), 0x3000) == physical
    assert len(physical) == 0x3000


@ONE_VCPU
async def test_memory_that_is_no_ram_is_read_too(vm: LiveVm, subject: Subject) -> None:
    """The firmware below 1 MiB, and the identity of the HPET."""
    memory = subject.engine.memory
    firmware = vm.guest.firmware.read_bytes()
    assert await memory.read(BOOT, Gva(0xF0000), 0x10000) == firmware
    assert await memory.read(BOOT, Gva(0xFFFF0), 0x20) == firmware[-16:] + bytes(16)
    assert await subject.engine.physical.read(Gpa(0xFED00000), 4) == bytes.fromhex("01a28680")


# --- registers -----------------------------------------------------------------------------------


async def test_system_registers_come_from_the_monitor(vm: LiveVm, subject: Subject) -> None:
    for vcpu in subject.engine.vcpus:
        assert await subject.register("dr1", vcpu) == 0x1234
        assert await subject.register("idtr_base", vcpu) == vm.guest.symbols["idt"]
        assert (
            await subject.register("gdtr_base", vcpu) == vm.guest.symbols["gdt"] - IMAGE + 0xF0000
        )
    assert await subject.register("cr3") == 0x1000
    assert await subject.register("efer") & 0x500 == 0x500


async def test_a_write_that_the_stub_ignores_is_an_error(subject: Subject) -> None:
    with pytest.raises(RegisterError, match="ftag"):
        await subject.set_register("ftag", 0x55)


async def test_control_and_segment_registers_are_written(subject: Subject) -> None:
    for name, value in (("cr2", 0x1234_5678_9ABC), ("fs", 0x10), ("fs_base", 0x7F00_0000_1000)):
        await subject.set_register(name, value)
        assert await subject.register(name) == value


# --- steps ---------------------------------------------------------------------------------------


async def test_no_step_ends_up_in_an_interrupt_handler(vm: LiveVm, subject: Subject) -> None:
    at = vm.guest.symbols
    ticks = await number(subject, at["ticks"])
    loop = range(at["loop"], at["other"])
    answer = range(at["answer"], at["halting"])
    for _ in range(100):
        await subject.run(ResumePlan.step(BOOT))
        pc = await subject.pc()
        assert pc in loop or pc in answer
    assert await number(subject, at["ticks"]) == ticks
    await interrupted(subject, after=0.05)
    assert await number(subject, at["ticks"]) > ticks


@ONE_VCPU
async def test_hlt_can_be_stepped(vm: LiveVm, subject: Subject) -> None:
    at = vm.guest.symbols
    await subject.set_register("pc", at["halting"])
    await subject.set_register("eflags", 2)  # no interrupt that waits already ends the HLT
    assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())
    assert await subject.pc() == at["halted"]
    # Halted now: it wakes up with the next tick, and that step executes what follows.
    await subject.set_register("eflags", 0x202)
    assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())
    assert await subject.pc() == at["loop"]


@ONE_VCPU
async def test_a_breakpoint_on_hlt_is_gone_on_from(vm: LiveVm, subject: Subject) -> None:
    at = vm.guest.symbols
    await subject.engine.memory.write(BOOT, at["halt"], b"\x01")
    spec = BreakpointSpec(BreakpointKind.SOFTWARE, at["halting"])
    await subject.engine.breakpoints.insert(spec)
    ticks = None
    for _ in range(3):
        stop = await subject.run()
        assert stop == Stop(BOOT, BreakpointHit(BreakpointKind.SOFTWARE, at["halting"]))
        assert await number(subject, at["ticks"]) != ticks
        ticks = await number(subject, at["ticks"])


async def test_a_halted_guest_is_interrupted(vm: LiveVm, subject: Subject) -> None:
    await subject.engine.memory.write(BOOT, vm.guest.symbols["halt"], b"\x01")
    await subject.set_register("eflags", 2)  # no interrupt ends the HLT
    assert (await interrupted(subject, after=0.05)).reason == Paused()
    assert await subject.pc() == vm.guest.symbols["halted"]
    stop = await interrupted(subject, after=0.5, plan=ResumePlan.step(BOOT))
    assert stop.reason == Paused()


@TWO_VCPUS
async def test_a_step_forestalled_by_another_vcpu_leaves_no_trace(
    vm: LiveVm, subject: Subject
) -> None:
    at = vm.guest.symbols
    await subject.set_register("pc", at["halting"])
    await subject.set_register("eflags", 2)
    spec = BreakpointSpec(BreakpointKind.SOFTWARE, at["other"])
    await subject.engine.breakpoints.insert(spec)
    hit = Stop(OTHER, BreakpointHit(BreakpointKind.SOFTWARE, at["other"]))
    # vCPU 0 halts, so that vCPU 1 is the one that stops the VM.
    assert await subject.run(ResumePlan.step(BOOT, others=Action.CONTINUE)) == hit
    await subject.engine.breakpoints.remove(spec)
    assert (await interrupted(subject, after=0.05)).reason == Paused()
    await subject.set_register("pc", at["halting"])
    await subject.set_register("eflags", 2)
    await subject.engine.breakpoints.insert(spec)
    assert await subject.run(ResumePlan.step(BOOT, others=Action.CONTINUE)) == hit
    await subject.set_register("eflags", 0x202)
    await subject.engine.close()
    await vm.run_control.cont()
    assert await runs_on(vm)


# --- breakpoints ---------------------------------------------------------------------------------


async def test_there_is_room_for_many_breakpoints_of_each_kind(
    vm: LiveVm, subject: Subject
) -> None:
    for kind in BreakpointKind:
        for n in range(20):
            address = Gva(vm.guest.symbols["stacks"] - 0x800 + 8 * n)
            await subject.engine.breakpoints.insert(BreakpointSpec(kind, address, 1))
    spec = BreakpointSpec(BreakpointKind.HARDWARE, subject.load)
    await subject.engine.breakpoints.insert(spec)
    assert (await subject.run()).reason == BreakpointHit(BreakpointKind.HARDWARE, subject.load)


async def test_breakpoints_survive_a_reset_of_the_running_vm(vm: LiveVm, subject: Subject) -> None:
    high = vm.guest.symbols["high"]
    await subject.engine.breakpoints.insert(BreakpointSpec(BreakpointKind.HARDWARE, high))
    run = asyncio.create_task(subject.run())
    await asyncio.sleep(0.02)
    await vm.run_control.reset()
    subject.engine.execution.forget()
    async with asyncio.timeout(5):
        assert (await run).reason == BreakpointHit(BreakpointKind.HARDWARE, high)


# --- coming and going ----------------------------------------------------------------------------


async def test_a_running_vm_is_stopped_by_opening(vm: LiveVm) -> None:
    await vm.run_control.cont()
    await asyncio.sleep(0.02)
    engine = await vm.engine()
    assert await vm.run_control.sync() is VmRunState.PAUSED
    assert await engine.registers.read_register(BOOT, 0) is not None


async def test_closing_leaves_the_vm_stopped_and_free_of_breakpoints(
    vm: LiveVm, subject: Subject
) -> None:
    for kind, at in (
        (BreakpointKind.SOFTWARE, subject.load),
        (BreakpointKind.WRITE, subject.counter),
    ):
        await subject.engine.breakpoints.insert(BreakpointSpec(kind, at))
    await subject.run()
    await subject.engine.close()
    assert await vm.run_control.sync() is VmRunState.DEBUG
    await vm.run_control.cont()
    assert await runs_on(vm)


async def test_closing_after_a_stepped_watch_hit_leaves_no_stop_behind(
    vm: LiveVm, subject: Subject
) -> None:
    await subject.set_register("pc", subject.store)
    await subject.engine.breakpoints.insert(
        BreakpointSpec(BreakpointKind.WRITE, subject.counter, 8)
    )
    await subject.run(ResumePlan.step(BOOT))
    await subject.engine.close()
    await vm.run_control.cont()
    assert await runs_on(vm)


async def test_what_a_dropped_engine_left_is_gone_with_the_next(
    vm: LiveVm, subject: Subject
) -> None:
    assert isinstance(subject.engine, StubEngine)
    await subject.engine.breakpoints.insert(BreakpointSpec(BreakpointKind.SOFTWARE, subject.load))
    subject.engine.abandon()
    subject.engine = await vm.engine()
    assert (await interrupted(subject, after=0.05)).reason == Paused()


async def test_a_request_that_meets_somebody_elses_cont_is_answered(
    vm: LiveVm, subject: Subject
) -> None:
    subject.engine.execution.forget()
    await vm.run_control.cont()
    started = time.monotonic()
    assert await subject.register("cr3") == 0x1000
    assert time.monotonic() - started < 3
    assert await vm.run_control.sync() is VmRunState.PAUSED


async def test_a_killed_qemu_is_gone(vm: LiveVm, subject: Subject) -> None:
    run = asyncio.create_task(subject.run())
    await asyncio.sleep(0.02)
    vm.process.send_signal(signal.SIGKILL)
    async with asyncio.timeout(5):
        with pytest.raises(VmGone):
            await run
    with pytest.raises(VmGone):
        await subject.engine.registers.read_block(BOOT)
    await subject.engine.close()


async def test_nobody_at_the_socket_is_one_sentence(vm: LiveVm) -> None:
    vm.stub.unlink()
    with pytest.raises(AttachError, match="cannot be reached"):
        await vm.engine()
