"""What the agent engine does beyond the contract, on the host's KVM."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.agent.client import AgentClient
from kvmdbg.backend.agent import Abilities, AgentEngine
from kvmdbg.backend.agent.execution import AgentExecution
from kvmdbg.errors import AgentRefused, BreakpointError, RegisterError, VmGone
from kvmdbg.kvm.x86.registers import get_msrs, get_tsc_khz
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.runstate import VmRunState
from kvmdbg.target.stops import (
    Action,
    BreakpointHit,
    Paused,
    ResumePlan,
    Stepped,
    Stop,
    WatchpointHit,
)
from kvmdbg.wire import structs as wire
from kvmdbg.wire.structs import ClockState, StopKind
from tests.contract.conftest import agent_subject, kvm_abilities
from tests.contract.guest import Guest, LiveVm, live_vm
from tests.contract.platforms import PLATFORMS, Platform
from tests.contract.subject import BOOT, Subject, interrupted, number, runs_on, within

pytestmark = pytest.mark.vm

OTHER = VcpuIndex(1)
TWO_VCPUS = pytest.mark.parametrize("vcpus", [2], ids=["2 vCPUs"])
ONE_VCPU = pytest.mark.parametrize("vcpus", [1], ids=["1 vCPU"])
MSR_TSC = 0x10
SOFTWARE, HARDWARE = BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE


@pytest.fixture
def found() -> Abilities:
    return kvm_abilities()


@pytest.fixture
async def vm(
    found: Abilities, guests: Callable[[Platform], Guest], tmp_path: Path, vcpus: int
) -> AsyncIterator[LiveVm]:
    async with live_vm(guests(PLATFORMS[0]), tmp_path, vcpus, agent=True) as vm:
        yield vm


@pytest.fixture
async def subject(vm: LiveVm, found: Abilities) -> Subject:
    return await agent_subject(vm, found)


def needs_int3(found: Abilities) -> None:
    if not found.kernel_int3:
        pytest.skip("the host's KVM hands us no int3 of ring 0")


async def paused_where(subject: Subject, condition: Callable[[], Awaitable[bool]]) -> None:
    """Let it run until ``condition`` holds: a host under load may not run each vCPU at once."""
    for _ in range(100):
        assert (await interrupted(subject, after=0.05)).reason == Paused()
        if await condition():
            return
    pytest.fail("the guest did not get there")


# --- memory and registers ------------------------------------------------------------------------


async def test_code_that_was_written_is_executed(vm: LiveVm, subject: Subject) -> None:
    at = vm.guest.symbols
    assert await number(subject, at["result"]) == 0x11
    await subject.engine.memory.write(BOOT, Gva(at["answer"] + 1), b"\x22")
    await interrupted(subject, after=0.05)
    assert await number(subject, at["result"]) == 0x22


async def test_a_write_that_a_migration_would_lose_is_refused(vm: LiveVm, subject: Subject) -> None:
    result = vm.guest.symbols["result"]
    limits = {"max-bandwidth": 10_000, "downtime-limit": 1}
    await vm.monitor.qmp("migrate-set-parameters", limits)
    await vm.monitor.qmp("migrate", {"uri": "exec:cat > /dev/null"})

    async def migration() -> str:
        return str((await vm.monitor.qmp("query-migrate"))["status"])

    async with asyncio.timeout(10):
        while await migration() != "active":  # noqa: ASYNC110 (QEMU's state)
            await asyncio.sleep(0.01)
    with pytest.raises(AgentRefused, match="wait until the migration has ended"):
        await subject.engine.memory.write(BOOT, result, bytes(8))
    await vm.monitor.qmp("migrate_cancel")
    async with asyncio.timeout(10):
        while await migration() != "cancelled":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await interrupted(subject, after=0.02)  # QEMU ends its log when the VM runs
    await subject.engine.memory.write(BOOT, result, bytes(8))


@ONE_VCPU
async def test_memory_that_is_no_ram_is_read_too(vm: LiveVm, subject: Subject) -> None:
    """The firmware below 1 MiB, and the identity of the HPET."""
    firmware = vm.guest.firmware.read_bytes()
    assert await subject.engine.memory.read(BOOT, Gva(0xF0000), 0x10000) == firmware
    assert await subject.engine.physical.read(Gpa(0xFED00000), 4) == bytes.fromhex("01a28680")


async def test_a_breakpoint_is_not_seen_in_memory(
    vm: LiveVm, subject: Subject, found: Abilities
) -> None:
    needs_int3(found)
    at = subject.store
    before = await subject.engine.memory.read(BOOT, at, 8)
    await subject.engine.breakpoints.insert(BreakpointSpec(SOFTWARE, at))
    assert await subject.engine.memory.read(BOOT, at, 8) == before
    assert await subject.engine.physical.read(vm.guest.platform.gpa(at), 8) == before
    assert "0xcc" in await vm.monitor.hmp(f"xp /1bx {vm.guest.platform.gpa(at):#x}")


async def test_system_registers(vm: LiveVm, subject: Subject) -> None:
    for vcpu in subject.engine.vcpus:
        assert await subject.register("dr1", vcpu) == 0x1234
        assert await subject.register("idtr_base", vcpu) == vm.guest.symbols["idt"]
    assert await subject.register("cr3") == 0x1000
    assert await subject.register("efer") & 0x500 == 0x500
    assert await subject.register("apic_base") & 0xFFFF_F900 == 0xFEE0_0900


async def test_msrs_can_be_written_as_far_as_the_processor_takes_them(subject: Subject) -> None:
    entry = 0xFFFF_8000_0000_1000
    await subject.set_register("lstar", entry)
    assert await subject.register("lstar") == entry
    with pytest.raises(RegisterError, match="lstar cannot be written: KVM_SET_MSRS"):
        await subject.set_register("lstar", 1 << 62)  # not canonical


async def test_what_was_written_is_not_lost_to_qemus_own_copy(vm: LiveVm, subject: Subject) -> None:
    await vm.monitor.hmp("info registers")
    await subject.set_register("r15", 0x1234_5678)
    await vm.monitor.hmp("info registers")
    await subject.set_register("r14", 0x8765_4321)
    await interrupted(subject, after=0.02)
    assert await subject.register("r15") == 0x1234_5678
    assert await subject.register("r14") == 0x8765_4321


# --- steps ---------------------------------------------------------------------------------------


@ONE_VCPU
@pytest.mark.parametrize("kind", [None, SOFTWARE, HARDWARE], ids=str)
async def test_a_step_of_syscall_leads_into_the_kernel(
    vm: LiveVm, subject: Subject, found: Abilities, kind: BreakpointKind | None
) -> None:
    """SYSCALL takes TF away, and KVM's step with it."""
    at = vm.guest.symbols
    await subject.engine.memory.write(BOOT, at["stored"], b"\x0f\x05")
    for name, value in {"star": 0x18 << 32, "lstar": at["answer"], "sfmask": 0x200}.items():
        await subject.set_register(name, value)
    await subject.set_register("efer", await subject.register("efer") | 1)
    await subject.set_register("pc", at["stored"])
    if kind is SOFTWARE:
        needs_int3(found)
    if kind is not None:
        await subject.engine.breakpoints.insert(BreakpointSpec(kind, at["stored"]))
    flags = await subject.register("eflags")
    assert flags & 0x200
    async with within(subject, 10):
        assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())
    assert await subject.pc() == at["answer"]
    assert await subject.register("rcx") == at["stored"] + 2
    assert await subject.register("r11") == flags
    assert await subject.register("eflags") == flags & ~0x200
    assert (await subject.register("cs"), await subject.register("ss")) == (0x18, 0x20)
    await subject.run(ResumePlan.step(BOOT))
    assert await subject.register("rax") == 0x11


@ONE_VCPU
async def test_a_step_may_wait_for_an_interrupt(vm: LiveVm, subject: Subject) -> None:
    """Its instruction faults, and the guest's kernel waits before it completes it."""
    at = vm.guest.symbols
    handler = at["counters"] + 0x1000
    gate = [handler & 0xFFFF, 24, 0x8E00, handler >> 16 & 0xFFFF, handler >> 32 & 0xFFFF, 0xFFFF]
    invalid_opcode = b"".join(part.to_bytes(2, "little") for part in gate)
    await subject.engine.memory.write(BOOT, Gva(at["idt"] + 6 * 16), invalid_opcode)
    # sti; mov ticks, %rax; 1: cmp ticks, %rax; je 1b; addq $2, (%rsp); iretq
    there = (at["ticks"] & 0xFFFF_FFFF).to_bytes(4, "little").hex()
    code = f"fb 488b0425{there} 483b0425{there} 74f6 4883042402 48cf"
    await subject.engine.memory.write(BOOT, Gva(handler), bytes.fromhex(code))
    await subject.engine.memory.write(BOOT, at["stored"], b"\x0f\x0b" + b"\x90" * 7)  # ud2
    for _ in range(5):
        await subject.set_register("pc", at["stored"])
        ticks = await number(subject, at["ticks"])
        async with within(subject, 10):
            assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())
        if await subject.pc() == handler + 1:
            pytest.skip("the host's KVM emulates ring 0, and steps into the handler")
        # TF is the processor's again from after IRET's successor on.
        assert await subject.pc() == at["stored"] + 3
        assert await number(subject, at["ticks"]) > ticks


async def test_no_step_ends_up_in_an_interrupt_handler(vm: LiveVm, subject: Subject) -> None:
    at = vm.guest.symbols
    loop, answer = range(at["loop"], at["other"]), range(at["answer"], at["halting"])
    for _ in range(100):
        await subject.run(ResumePlan.step(BOOT))
        pc = await subject.pc()
        assert pc in loop or pc in answer
    ticks = await number(subject, at["ticks"])
    await interrupted(subject, after=0.05)
    assert await number(subject, at["ticks"]) > ticks


async def test_steps_end_up_in_interrupt_handlers_where_that_is_wanted(
    vm: LiveVm, subject: Subject
) -> None:
    execution = subject.engine.execution
    assert isinstance(execution, AgentExecution)
    assert execution.step_bits == execution.step_mode == 3  # ENABLE, NOIRQ
    execution.step_mode = 1
    at = vm.guest.symbols
    path = [*range(at["loop"], at["other"]), *range(at["answer"], at["halting"])]
    async with within(subject, 60):
        while await subject.pc() in path:
            assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())


async def halt(vm: LiveVm, subject: Subject) -> None:
    """Let vCPU 0 halt, and no interrupt end that."""

    async def is_halted() -> bool:
        return await subject.pc() == vm.guest.symbols["halted"]

    await subject.engine.memory.write(BOOT, vm.guest.symbols["halt"], b"\x01")
    await subject.set_register("eflags", 2)
    await paused_where(subject, is_halted)


async def test_a_halted_guest_is_interrupted(vm: LiveVm, subject: Subject) -> None:
    await halt(vm, subject)


@TWO_VCPUS
async def test_a_step_that_another_vcpus_hit_forestalled_leaves_no_trace(
    vm: LiveVm, subject: Subject
) -> None:
    await halt(vm, subject)  # no step of it ends
    spec = BreakpointSpec(HARDWARE, vm.guest.symbols["other"])
    await subject.engine.breakpoints.insert(spec)
    hit = Stop(OTHER, BreakpointHit(HARDWARE, spec.address))
    assert await subject.run(ResumePlan.step(BOOT, others=Action.CONTINUE)) == hit
    await subject.engine.breakpoints.remove(spec)
    assert (await interrupted(subject, after=0.05)).reason == Paused()
    assert await subject.pc() == vm.guest.symbols["halted"]


# --- the guest's clock ---------------------------------------------------------------------------


async def test_the_tsc_stands_still_while_the_vm_is_stopped(vm: LiveVm, subject: Subject) -> None:
    assert isinstance(subject.engine, AgentEngine)
    agent = subject.engine._agent
    khz = await agent.call(get_tsc_khz())

    async def seconds(vcpu: VcpuIndex) -> float:
        return (await agent.call(get_msrs((MSR_TSC,)), vcpu))[MSR_TSC] / khz / 1000

    async def turns() -> list[int]:
        counters = vm.guest.symbols["counters"]
        return [await number(subject, Gva(counters + 8 * vcpu)) for vcpu in subject.engine.vcpus]

    async def all_have_run() -> bool:
        return all(now > then for now, then in zip(await turns(), turned, strict=True))

    await interrupted(subject, after=0.02)
    turned = await turns()
    before = [await seconds(vcpu) for vcpu in subject.engine.vcpus]
    await asyncio.sleep(3)
    began = time.monotonic()
    await paused_where(subject, all_have_run)
    await skip_where_it_runs_on(agent)
    ran = time.monotonic() - began
    for vcpu, was in zip(subject.engine.vcpus, before, strict=True):
        assert 0 < await seconds(vcpu) - was < 1 + 2 * ran


async def test_many_short_stops_do_not_make_the_agent_give_up(subject: Subject) -> None:
    """Where KVM itself keeps the TSC still, what little it moves says nothing."""
    assert isinstance(subject.engine, AgentEngine)
    for _ in range(100):
        await interrupted(subject, after=0.001)
        await asyncio.sleep(0.025)
        await skip_where_it_runs_on(subject.engine._agent)


async def skip_where_it_runs_on(agent: AgentClient) -> None:
    """The lab's KVM moves it."""
    if (await agent.clock()).state is ClockState.DEAF:
        refuse = pytest.fail if os.environ.get("KVMDBG_LAB") == "l1" else pytest.skip
        refuse("the host's KVM does not move a guest's TSC")


# --- breakpoints ---------------------------------------------------------------------------------


async def test_there_is_room_for_many_breakpoints(
    vm: LiveVm, subject: Subject, found: Abilities
) -> None:
    needs_int3(found)
    for kind in (SOFTWARE, HARDWARE):
        for n in range(20):
            address = Gva(vm.guest.symbols["stacks"] - 0x800 + 8 * n)
            await subject.engine.breakpoints.insert(BreakpointSpec(kind, address, 1))
    await subject.engine.breakpoints.insert(BreakpointSpec(HARDWARE, subject.load))
    assert (await subject.run()).reason == BreakpointHit(HARDWARE, subject.load)


async def test_without_int3_the_fifth_breakpoint_is_refused_in_words(
    vm: LiveVm, subject: Subject, found: Abilities
) -> None:
    if found.kernel_int3:
        pytest.skip("the host's KVM has int3")
    for n in range(4):
        await subject.engine.breakpoints.insert(BreakpointSpec(SOFTWARE, Gva(subject.store + n)))
    with pytest.raises(BreakpointError, match=r"hands us no int3 .* held by the software"):
        await subject.engine.breakpoints.insert(BreakpointSpec(SOFTWARE, subject.load))
    assert {p.how.split()[0] for p in await subject.engine.breakpoints.describe()} == {"debug"}


async def test_breakpoints_survive_a_reset_of_the_running_vm(vm: LiveVm, subject: Subject) -> None:
    high = vm.guest.symbols["high"]
    await subject.engine.breakpoints.insert(BreakpointSpec(HARDWARE, high))
    run = asyncio.create_task(subject.run())
    await asyncio.sleep(0.02)
    await vm.run_control.reset()
    subject.engine.execution.forget()
    async with asyncio.timeout(5):
        assert (await run).reason == BreakpointHit(HARDWARE, high)


async def test_a_watchpoint_for_reads_does_not_tell_of_writes(vm: LiveVm, subject: Subject) -> None:
    result = vm.guest.symbols["result"]
    await subject.watch(BreakpointSpec(BreakpointKind.READ, result, 8))
    before = await subject.count()

    async def has_been_round() -> bool:
        return await subject.count() > before + 2

    await paused_where(subject, has_been_round)
    spec = BreakpointSpec(BreakpointKind.READ, subject.shared, 8)
    await subject.engine.breakpoints.insert(spec)
    assert await subject.run() == Stop(BOOT, WatchpointHit(spec.kind, spec.address))


async def registers_that_fire(vm: LiveVm, subject: Subject) -> int:
    """DR6's bits for vCPU 0's next stop, of which the engine is told nothing."""
    assert isinstance(subject.engine, AgentEngine)
    agent = subject.engine._agent
    await agent.resume([wire.Action(0)])
    await vm.run_control.cont()
    async with within(subject, 10):
        while (stop := (await agent.stops())[0]).kind is StopKind.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await vm.run_control.pause()
    assert stop.kind is StopKind.WATCHED
    return stop.dr6 & 0b1111


@ONE_VCPU
async def test_a_watchpoint_for_reads_hides_no_other(vm: LiveVm, subject: Subject) -> None:
    """The guest writes what is watched for both, and the first debug register is that for reads."""
    result = vm.guest.symbols["result"]
    for kind in (BreakpointKind.READ, BreakpointKind.WRITE):
        await subject.watch(BreakpointSpec(kind, result, 8))
    if await registers_that_fire(vm, subject) == 0b01:
        pytest.skip("the processor tells of the first debug register only, as QEMU's TCG does")
    turns = []
    for _ in range(3):
        stop = await subject.run()
        assert stop == Stop(BOOT, WatchpointHit(BreakpointKind.WRITE, result))
        turns.append(await subject.count())
    assert turns == list(range(turns[0], turns[0] + 3))
    hits = {p.spec.kind: p.hits for p in await subject.engine.breakpoints.describe()}
    assert hits[BreakpointKind.WRITE] == 1 + 3


@TWO_VCPUS
async def test_no_hit_of_a_watchpoint_is_lost_to_another_vcpus_stop(
    vm: LiveVm, subject: Subject
) -> None:
    """Each vCPU's count of its rounds is watched: every single one is told."""
    counters = vm.guest.symbols["counters"]
    specs = {
        vcpu: BreakpointSpec(BreakpointKind.WRITE, Gva(counters + 8 * vcpu), 8)
        for vcpu in subject.engine.vcpus
    }
    for spec in specs.values():
        await subject.watch(spec)
    before = {vcpu: await number(subject, spec.address) for vcpu, spec in specs.items()}
    told = dict.fromkeys(specs, 0)
    for _ in range(50):
        stop = await subject.run()
        assert stop.reason == WatchpointHit(BreakpointKind.WRITE, specs[stop.vcpu].address)
        told[stop.vcpu] += 1
    for vcpu, spec in specs.items():
        missing = await number(subject, spec.address) - before[vcpu] - told[vcpu]
        assert missing in (0, 1), "one may wait to be told"


# --- coming and going ----------------------------------------------------------------------------


async def test_closing_leaves_the_vm_stopped_and_free_of_breakpoints(
    vm: LiveVm, subject: Subject
) -> None:
    for kind, at in ((SOFTWARE, subject.load), (HARDWARE, subject.store)):
        await subject.engine.breakpoints.insert(BreakpointSpec(kind, at))
    await subject.run()
    await subject.engine.close()
    assert await vm.run_control.sync() is VmRunState.PAUSED
    await vm.run_control.cont()
    assert await runs_on(vm)


async def test_what_a_dropped_engine_left_is_gone_with_the_next(
    vm: LiveVm, subject: Subject, found: Abilities
) -> None:
    await subject.engine.breakpoints.insert(BreakpointSpec(SOFTWARE, subject.load))
    await subject.run()
    await subject.engine.close()
    subject.engine = await vm.agent_engine(found)
    assert (await interrupted(subject, after=0.05)).reason == Paused()
    assert await subject.run(ResumePlan.step(BOOT)) == Stop(BOOT, Stepped())


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
