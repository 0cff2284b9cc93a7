"""What every engine does; see :mod:`tests.contract.subject` for the guest."""

from __future__ import annotations

import asyncio

import pytest

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import MemoryFault, RegisterError, VmGone
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.runstate import PERMITS
from kvmdbg.target.stops import (
    Action,
    BreakpointHit,
    Paused,
    ResumePlan,
    Stepped,
    Stop,
    WatchpointHit,
)
from tests.contract.subject import BOOT, Subject, interrupted

CODE_KINDS = [BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE]


def others(subject: Subject) -> list[VcpuIndex]:
    return [vcpu for vcpu in subject.engine.vcpus if vcpu != BOOT]


# --- what there is -------------------------------------------------------------------------------


def test_vcpus_are_numbered_from_0(subject: Subject, vcpus: int) -> None:
    assert list(subject.engine.vcpus) == list(range(vcpus))


def test_it_is_stopped(subject: Subject) -> None:
    assert PERMITS[subject.run_control.state].inspectable


# --- registers -----------------------------------------------------------------------------------


async def test_a_block_has_every_register_at_its_size(subject: Subject) -> None:
    for vcpu in subject.engine.vcpus:
        block = await subject.engine.registers.read_block(vcpu)
        sizes = [None if value is None else len(value) for value in block]
        assert sizes == [register.size for register in subject.engine.arch.block]


async def test_a_register_is_what_was_written(subject: Subject) -> None:
    general, vector = subject.platform.general, subject.platform.vector
    before = [await subject.register(general, vcpu) for vcpu in others(subject)]
    await subject.set_register(general, 0x1122_3344_5566_7788)
    await subject.set_register(vector, 0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10)
    assert await subject.register(general) == 0x1122_3344_5566_7788
    assert await subject.register(vector) == 0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10
    assert [await subject.register(general, vcpu) for vcpu in others(subject)] == before


async def test_several_registers_are_written_at_once(subject: Subject) -> None:
    numbers = subject.engine.arch.numbers
    flags, value = subject.platform.flags
    general = subject.platform.general
    values = {numbers[general]: bytes(range(8)), numbers[flags]: value.to_bytes(4, "little")}
    await subject.engine.registers.write_registers(BOOT, values)
    assert await subject.register(general) == 0x0706050403020100
    assert await subject.register(flags) == value


async def test_a_value_of_the_wrong_size_is_refused(subject: Subject) -> None:
    with pytest.raises(RegisterError):
        await subject.engine.registers.write_registers(BOOT, {0: b"\0"})


async def test_a_system_register_may_be_there_to_read_only(subject: Subject) -> None:
    arch = subject.engine.arch
    number = arch.numbers.get("dr7", len(arch.registers) - 1)
    value = await subject.engine.registers.read_register(BOOT, number)
    assert value is not None
    assert len(value) == arch.registers[number].size
    changed = bytes(byte ^ 0xFF for byte in value)
    with pytest.raises(RegisterError):
        await subject.engine.registers.write_registers(BOOT, {number: changed})


async def test_a_moved_pc_is_where_it_goes_on(subject: Subject) -> None:
    await subject.set_register("pc", subject.stored)
    stop = await subject.run(ResumePlan.step(BOOT))
    assert stop == Stop(BOOT, Stepped())
    assert await subject.pc() == subject.stored + subject.platform.nop


# --- memory --------------------------------------------------------------------------------------


async def test_memory_is_what_was_written(subject: Subject) -> None:
    memory = subject.engine.memory
    data = bytes(i * 7 & 0xFF for i in range(0x1000))
    await memory.write(BOOT, subject.last_page, data)
    assert await memory.read(BOOT, subject.last_page, len(data)) == data
    assert await memory.read(BOOT, Gva(subject.last_page + 3), 5) == data[3:8]


async def test_a_read_is_cut_off_where_memory_ends(subject: Subject) -> None:
    memory = subject.engine.memory
    assert len(await memory.read(BOOT, Gva(subject.last_page_end - 5), 100)) == 5
    with pytest.raises(MemoryFault):
        await memory.read(BOOT, subject.last_page_end, 1)


async def test_a_write_past_the_end_is_refused(subject: Subject) -> None:
    with pytest.raises(MemoryFault):
        await subject.engine.memory.write(BOOT, Gva(subject.last_page_end - 2), b"1234")


async def test_nothing_can_be_read_and_written(subject: Subject) -> None:
    assert await subject.engine.memory.read(BOOT, subject.last_page, 0) == b""
    assert await subject.engine.physical.read(subject.counter_gpa, 0) == b""
    await subject.engine.memory.write(BOOT, subject.last_page, b"")


async def test_physical_memory_is_the_same_memory(subject: Subject) -> None:
    engine = subject.engine
    at = subject.counter_gpa
    await engine.physical.write(at, b"\x10\x20\x30\x40\0\0\0\0")
    assert await engine.physical.read(at, 4) == b"\x10\x20\x30\x40"
    assert await engine.memory.read(BOOT, subject.counter, 4) == b"\x10\x20\x30\x40"
    await engine.memory.write(BOOT, Gva(subject.counter + 1), b"\x21")
    assert await engine.physical.read(at, 4) == b"\x10\x21\x30\x40"


# --- steps ---------------------------------------------------------------------------------------


async def test_a_step_executes_one_instruction_of_one_vcpu(subject: Subject) -> None:
    held = [await subject.pc(vcpu) for vcpu in others(subject)]
    count = await subject.count()
    await subject.go_to_store()
    assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())
    assert await subject.pc() == subject.stored
    assert await subject.count() == count + 1
    assert [await subject.pc(vcpu) for vcpu in others(subject)] == held


async def test_each_vcpu_can_be_stepped(subject: Subject) -> None:
    for vcpu in subject.engine.vcpus:
        before = await subject.pc(vcpu)
        assert await subject.run(ResumePlan.step(vcpu)) == Stop(vcpu, Stepped())
        assert await subject.pc(vcpu) != before


async def test_the_others_may_run_while_one_steps(subject: Subject) -> None:
    await subject.go_to_store()
    stop = await subject.run(ResumePlan.step(BOOT, others=Action.CONTINUE))
    assert stop == Stop(BOOT, Stepped())
    assert await subject.pc() == subject.stored


async def test_a_step_onto_a_breakpoint_is_a_step_and_the_hit_is_still_to_come(
    subject: Subject,
) -> None:
    await subject.go_to_store()
    await subject.engine.breakpoints.insert(BreakpointSpec(BreakpointKind.SOFTWARE, subject.stored))
    count = await subject.count()
    assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())
    stop = await subject.run()
    assert stop == Stop(BOOT, BreakpointHit(BreakpointKind.SOFTWARE, subject.stored))
    assert await subject.count() == count + 1


# --- breakpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CODE_KINDS)
async def test_a_breakpoint_is_hit_once_per_round(subject: Subject, kind: BreakpointKind) -> None:
    await subject.engine.breakpoints.insert(BreakpointSpec(kind, subject.load))
    first = None
    for n in range(20):
        assert await subject.run() == Stop(BOOT, BreakpointHit(kind, subject.load))
        assert await subject.pc() == subject.load
        count = await subject.count()
        first = count if first is None else first
        assert count == first + n


async def test_two_breakpoints_side_by_side_are_both_hit(subject: Subject) -> None:
    for at in (subject.store, subject.stored):
        await subject.engine.breakpoints.insert(BreakpointSpec(BreakpointKind.SOFTWARE, at))
    stops = [await subject.run() for _ in range(6)]
    first = BreakpointHit(BreakpointKind.SOFTWARE, subject.store)
    second = BreakpointHit(BreakpointKind.SOFTWARE, subject.stored)
    order = [first, second] if stops[0].reason == first else [second, first]
    assert [stop.reason for stop in stops] == order * 3


async def test_a_software_breakpoint_goes_before_a_hardware_one(subject: Subject) -> None:
    for kind in CODE_KINDS:
        await subject.engine.breakpoints.insert(BreakpointSpec(kind, subject.load))
    assert (await subject.run()).reason == BreakpointHit(BreakpointKind.SOFTWARE, subject.load)
    await subject.engine.breakpoints.remove(BreakpointSpec(BreakpointKind.SOFTWARE, subject.load))
    assert (await subject.run()).reason == BreakpointHit(BreakpointKind.HARDWARE, subject.load)


async def test_a_breakpoint_at_a_moved_pc_is_hit_at_once(subject: Subject) -> None:
    await subject.engine.breakpoints.insert(BreakpointSpec(BreakpointKind.SOFTWARE, subject.load))
    await subject.engine.breakpoints.insert(BreakpointSpec(BreakpointKind.SOFTWARE, subject.store))
    await subject.set_register("pc", subject.store)
    assert (await subject.run()).reason == BreakpointHit(BreakpointKind.SOFTWARE, subject.store)
    await subject.set_register("pc", subject.load)
    count = await subject.count()
    assert (await subject.run()).reason == BreakpointHit(BreakpointKind.SOFTWARE, subject.load)
    assert await subject.count() == count


async def test_a_hit_that_was_held_is_stepped_over_later(subject: Subject) -> None:
    spec = BreakpointSpec(BreakpointKind.SOFTWARE, subject.load)
    await subject.engine.breakpoints.insert(spec)
    await subject.run()
    count = await subject.count()
    for vcpu in others(subject):
        await subject.run(ResumePlan.step(vcpu))
    assert await subject.pc() == subject.load
    await subject.run()
    assert await subject.count() == count + 1


async def test_a_vcpu_that_is_held_stays_put_while_others_run(subject: Subject) -> None:
    """For as long as it takes, and however often the VM is stopped for a look at it."""
    spec = BreakpointSpec(BreakpointKind.SOFTWARE, subject.load)
    await subject.engine.breakpoints.insert(spec)
    hit = Stop(BOOT, BreakpointHit(BreakpointKind.SOFTWARE, subject.load))
    assert await subject.run() == hit
    count = await subject.count()
    held = ResumePlan({BOOT: Action.HOLD})
    for _ in range(10 if others(subject) else 0):
        stop = await interrupted(subject, after=0.02, plan=held)
        assert stop.reason == Paused()
        assert await subject.pc() == subject.load
        assert await subject.count() == count
    assert await subject.run() == hit
    assert await subject.count() == count + 1


async def test_a_removed_breakpoint_is_not_hit(subject: Subject) -> None:
    spec = BreakpointSpec(BreakpointKind.SOFTWARE, subject.load)
    await subject.engine.breakpoints.insert(spec)
    await subject.run()
    await subject.engine.breakpoints.remove(spec)
    count = await subject.count()
    stop = await interrupted(subject, after=0.05)
    assert stop.reason == Paused()
    assert await subject.count() > count


# --- watchpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BreakpointKind.WRITE, BreakpointKind.ACCESS])
async def test_a_watched_store_stops(subject: Subject, kind: BreakpointKind) -> None:
    await subject.watch(BreakpointSpec(kind, subject.counter, 8))
    early = subject.engine.arch.watch_before
    for _ in range(3):
        before = await subject.count()
        assert await subject.run() == Stop(BOOT, WatchpointHit(kind, subject.counter))
        assert await subject.pc() == (subject.store if early else subject.stored)
        if early:
            assert await subject.count() == before
            assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())
            assert await subject.pc() == subject.stored
        assert await subject.count() == before + 1


@pytest.mark.parametrize("kind", [BreakpointKind.READ, BreakpointKind.ACCESS])
async def test_a_watched_load_stops(subject: Subject, kind: BreakpointKind) -> None:
    await subject.watch(BreakpointSpec(kind, subject.shared, 1))
    for _ in range(3):
        assert await subject.run() == Stop(BOOT, WatchpointHit(kind, subject.shared))
        early = subject.engine.arch.watch_before
        assert await subject.pc() == (subject.load if early else subject.loaded)


async def test_a_store_within_a_watched_range_names_its_start(subject: Subject) -> None:
    start = Gva(subject.counter - 3)
    await subject.watch(BreakpointSpec(BreakpointKind.WRITE, start, 4))
    assert (await subject.run()).reason == WatchpointHit(BreakpointKind.WRITE, start)


async def test_a_stepped_store_that_is_watched_is_a_hit(subject: Subject) -> None:
    await subject.go_to_store()
    await subject.watch(BreakpointSpec(BreakpointKind.WRITE, subject.counter, 8))
    stop = await subject.run(ResumePlan.step(BOOT))
    assert stop == Stop(BOOT, WatchpointHit(BreakpointKind.WRITE, subject.counter))
    if subject.engine.arch.watch_before:
        assert await subject.pc() == subject.store
        assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())
    assert await subject.pc() == subject.stored
    assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())
    assert await subject.pc() == subject.stored + subject.platform.nop


async def test_a_store_on_the_way_off_a_breakpoint_is_still_watched(subject: Subject) -> None:
    await subject.engine.breakpoints.insert(BreakpointSpec(BreakpointKind.SOFTWARE, subject.store))
    await subject.run()
    await subject.watch(BreakpointSpec(BreakpointKind.WRITE, subject.counter, 8))
    stop = await subject.run()
    assert stop == Stop(BOOT, WatchpointHit(BreakpointKind.WRITE, subject.counter))
    assert (await subject.run()).reason == BreakpointHit(BreakpointKind.SOFTWARE, subject.store)


# --- interrupts ----------------------------------------------------------------------------------


async def test_an_interrupt_pauses(subject: Subject) -> None:
    for _ in range(3):
        assert (await interrupted(subject, after=0.02)).reason == Paused()
        assert PERMITS[await subject.run_control.sync()].inspectable


async def test_without_a_run_an_interrupt_does_nothing(subject: Subject) -> None:
    await subject.engine.execution.interrupt()
    await subject.go_to_store()
    assert (await subject.run(ResumePlan.step(BOOT))).reason == Stepped()


async def test_an_interrupt_is_never_lost(subject: Subject) -> None:
    """Also where it meets the very beginning of a run, or the step off a breakpoint."""
    spec = BreakpointSpec(BreakpointKind.SOFTWARE, subject.load)
    for delay in range(30):
        await subject.engine.breakpoints.insert(spec)
        assert isinstance((await subject.run()).reason, BreakpointHit)
        run = asyncio.create_task(subject.run())
        for _ in range(delay % 6):
            await asyncio.sleep(0)
        await asyncio.sleep(delay // 6 * 0.0003)
        await subject.engine.execution.interrupt()
        async with asyncio.timeout(5):
            stop = await run
        assert stop.reason in (Paused(), BreakpointHit(spec.kind, spec.address))
        await subject.engine.breakpoints.remove(spec)


async def test_somebody_elses_stop_pauses(subject: Subject) -> None:
    run = asyncio.create_task(subject.run())
    await asyncio.sleep(0.02)
    await subject.run_control.pause()
    async with asyncio.timeout(5):
        assert (await run).reason == Paused()


# --- what others do ------------------------------------------------------------------------------


async def test_resync_stops_what_somebody_resumed(subject: Subject) -> None:
    await subject.engine.breakpoints.insert(BreakpointSpec(BreakpointKind.SOFTWARE, subject.load))
    assert isinstance((await subject.run()).reason, BreakpointHit)
    for _ in range(3):
        await subject.run_control.cont()
        await asyncio.sleep(0.02)
        await subject.engine.execution.resync()
        assert PERMITS[await subject.run_control.sync()].inspectable
        assert await subject.count() >= 0
        stop = await subject.run()
        assert stop == Stop(BOOT, BreakpointHit(BreakpointKind.SOFTWARE, subject.load))


async def test_a_reset_is_noticed_in_what_is_read(subject: Subject) -> None:
    general = subject.platform.general
    await subject.set_register(general, 0x1234)
    await subject.run_control.reset()
    subject.engine.execution.forget()
    assert await subject.register(general) == 0


async def test_a_vm_that_ends_ends_the_run(subject: Subject) -> None:
    run = asyncio.create_task(subject.run())
    await asyncio.sleep(0.02)
    await subject.run_control.quit()
    with pytest.raises(VmGone):
        await run
