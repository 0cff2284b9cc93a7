"""Runs, and what ends them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import AgentLost, LocalProtocolError, VmGone
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
from kvmdbg.wire.structs import ActionFlags, ActionKind, ClockState, Flags, Kind, StopKind, Type

from .conftest import CODE, Kit

ZERO, ONE = VcpuIndex(0), VcpuIndex(1)
HIT = BreakpointHit(BreakpointKind.SOFTWARE, Gva(CODE))
DR6_BS = 1 << 14
STEP_OVER = ActionFlags.STEP_OVER


def actions(kit: Kit) -> list[tuple[ActionKind, bool]]:
    """Those of the last resumption: what each vCPU does, and whether it steps over."""
    resumed: list[tuple[wire.Action, ...]] = [
        request for kind, request in kit.agent.requests if kind is Type.RESUME
    ]
    return [(a.kind, bool(a.flags & ActionFlags.STEP_OVER)) for a in resumed[-1]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (somebody else's state)
            await asyncio.sleep(0.001)


@asynccontextmanager
async def running(kit: Kit, plan: ResumePlan | None = None) -> AsyncIterator[asyncio.Task[Stop]]:
    run = asyncio.create_task(kit.engine.execution.run(plan or ResumePlan()))
    await until(lambda: run.done() or kit.run_control.state is VmRunState.RUNNING)
    yield run
    if not run.done():
        run.cancel()


async def insert(kit: Kit, kind: BreakpointKind = HIT.kind, address: int = CODE) -> int:
    """The agent's number of it."""
    await kit.engine.breakpoints.insert(BreakpointSpec(kind, Gva(address)))
    return max(kit.agent.table)


async def hit(kit: Kit, point: int, vcpu: int = 0) -> Stop:
    async with running(kit) as run:
        kit.agent.stop(vcpu, StopKind.HIT, point=point, pc=CODE)
        return await run


async def watch_what_was_written(kit: Kit) -> int:
    """Watch for reads of what vCPU 0's last instruction writes; the agent's number of it."""
    watch = await insert(kit, BreakpointKind.READ, 0x5000)
    kit.agent.memory[CODE - 32 : CODE + 32] = b"\x90" * 64
    kit.agent.memory[CODE - 3 : CODE] = bytes.fromhex("488907")  # mov [rdi],rax
    kit.vcpus[0].regs = replace(kit.vcpus[0].regs, rdi=0x5000)
    return watch


# --- stops ---------------------------------------------------------------------------------------


async def test_a_hit_stops_the_vm(kit: Kit) -> None:
    point = await insert(kit)
    assert await hit(kit, point, vcpu=1) == Stop(ONE, HIT)
    assert kit.run_control.state is VmRunState.PAUSED
    assert actions(kit) == [(ActionKind.CONTINUE, False)] * 2


async def test_a_hit_that_was_told_is_stepped_over_once(kit: Kit) -> None:
    point = await insert(kit)
    await hit(kit, point, vcpu=1)
    assert await hit(kit, point) == Stop(ZERO, HIT)
    assert actions(kit) == [(ActionKind.CONTINUE, False), (ActionKind.CONTINUE, True)]
    kit.vcpus[0].regs = replace(kit.vcpus[0].regs, rip=CODE + 5)
    kit.engine.registers.forget()
    await hit(kit, point)
    assert actions(kit)[0] == (ActionKind.CONTINUE, False)


async def test_a_held_vcpu_is_stepped_over_when_it_runs(kit: Kit) -> None:
    point = await insert(kit)
    await hit(kit, point)
    async with running(kit, ResumePlan.step(ONE)) as run:
        assert actions(kit) == [(ActionKind.KEEP, False), (ActionKind.STEP, True)]
        kit.agent.stop(1, StopKind.STEPPED)
        assert await run == Stop(ONE, Stepped())
    await hit(kit, point)
    assert actions(kit)[0] == (ActionKind.CONTINUE, True)


async def test_an_interrupt_before_the_step_over_leaves_it_to_be_done(kit: Kit) -> None:
    point = await insert(kit)
    await hit(kit, point)
    async with running(kit) as run:
        await kit.engine.execution.interrupt()
        assert (await run).reason == Paused()
    await hit(kit, point)
    assert actions(kit)[0] == (ActionKind.CONTINUE, True)


async def test_the_oldest_stop_is_told_and_a_watch_hit_is_kept(kit: Kit) -> None:
    watch = await insert(kit, BreakpointKind.WRITE, 0x5000)
    point = await insert(kit)
    async with running(kit) as run:
        kit.agent.stop(1, StopKind.HIT, point=point, pc=CODE)
        kit.agent.stop(0, StopKind.WATCHED, point=watch)
        assert await run == Stop(ONE, HIT)
    resumed = len(kit.agent.requests)
    watched = Stop(ZERO, WatchpointHit(BreakpointKind.WRITE, Gva(0x5000)))
    assert await kit.engine.execution.run(ResumePlan()) == watched
    assert len(kit.agent.requests) == resumed
    assert kit.run_control.state is VmRunState.PAUSED


async def test_a_watch_hit_waits_while_its_vcpu_is_held(kit: Kit) -> None:
    watch = await insert(kit, BreakpointKind.WRITE, 0x5000)
    point = await insert(kit)
    async with running(kit) as run:
        kit.agent.stop(1, StopKind.HIT, point=point, pc=CODE)
        kit.agent.stop(0, StopKind.WATCHED, point=watch)
        await run
    async with running(kit, ResumePlan.step(ONE)) as run:
        kit.agent.stop(1, StopKind.STEPPED)
        assert (await run).reason == Stepped()
    assert (await kit.engine.execution.run(ResumePlan())).vcpu == ZERO


async def test_every_watchpoint_that_an_instruction_met_is_told(kit: Kit) -> None:
    """One for reads hides none for writes, and two for writes are told one after the other."""
    watch = await watch_what_was_written(kit)
    await insert(kit, BreakpointKind.WRITE, 0x5000)
    await insert(kit, BreakpointKind.WRITE, 0x5010)
    first, second = (
        Stop(ZERO, WatchpointHit(BreakpointKind.WRITE, Gva(address)))
        for address in (0x5000, 0x5010)
    )
    async with running(kit) as run:
        kit.agent.stop(0, StopKind.WATCHED, point=watch, dr6=0b011)
        assert await run == first
    async with running(kit) as run:
        kit.agent.stop(0, StopKind.WATCHED, point=watch, dr6=0b111)
        assert await run == first
    assert await kit.engine.execution.run(ResumePlan()) == second


async def test_a_write_to_all_pieces_of_a_watchpoint_is_one_hit(kit: Kit) -> None:
    spec = BreakpointSpec(BreakpointKind.WRITE, Gva(0x5000), 16)
    await kit.engine.breakpoints.insert(spec)
    for _ in range(2):
        async with running(kit) as run:
            kit.agent.stop(0, StopKind.WATCHED, point=1, dr6=0b11)
            assert (await run).reason == WatchpointHit(spec.kind, spec.address)


async def test_a_hit_of_a_watchpoint_that_was_removed_is_not_told(kit: Kit) -> None:
    watch = await insert(kit, BreakpointKind.WRITE, 0x5000)
    spec = BreakpointSpec(BreakpointKind.WRITE, Gva(0x5010))
    await kit.engine.breakpoints.insert(spec)
    async with running(kit) as run:
        kit.agent.stop(0, StopKind.WATCHED, point=watch, dr6=0b11)
        await run
    await kit.engine.breakpoints.remove(spec)
    async with running(kit) as run:
        await kit.engine.execution.interrupt()
        assert (await run).reason == Paused()


async def test_a_write_that_meets_a_watchpoint_for_reads_is_silent(kit: Kit) -> None:
    watch = await watch_what_was_written(kit)
    async with running(kit) as run:
        kit.agent.stop(0, StopKind.WATCHED, point=watch)
        await until(lambda: not kit.agent.held)
        assert kit.run_control.calls.count("pause") == 0
        kit.agent.memory[CODE - 3 : CODE] = bytes.fromhex("488b07")
        kit.agent.stop(0, StopKind.WATCHED, point=watch)
        assert (await run).reason == WatchpointHit(BreakpointKind.READ, Gva(0x5000))


async def test_writes_without_end_are_interrupted(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each comes before the answer to the resumption that let it happen."""
    watch = await watch_what_was_written(kit)
    resume = kit.agent.resume

    def resume_and_write(request: tuple[wire.Action, ...]) -> None:
        resume(request)
        kit.agent.stop(0, StopKind.WATCHED, point=watch)

    monkeypatch.setattr(kit.agent, "resume", resume_and_write)
    async with running(kit) as run:
        await until(lambda: kit.agent.sequence > 3)
        await kit.engine.execution.interrupt()
        async with asyncio.timeout(5):
            assert (await run).reason == Paused()


async def test_a_step_that_does_so_is_a_step(kit: Kit) -> None:
    watch = await watch_what_was_written(kit)
    async with running(kit, ResumePlan.step(ZERO)) as run:
        kit.agent.stop(0, StopKind.WATCHED, point=watch, dr6=DR6_BS | 1)
        assert await run == Stop(ZERO, Stepped())


async def test_a_plan_that_runs_nothing_is_a_mistake(kit: Kit) -> None:
    with pytest.raises(LocalProtocolError):
        await kit.engine.execution.run(ResumePlan({}, Action.HOLD))


# --- the guest's clock ---------------------------------------------------------------------------


async def test_the_clock_is_kept_still_while_the_vm_is_stopped(kit: Kit) -> None:
    assert kit.agent.flags & Flags.STILL_CLOCK
    assert kit.agent.held  # from the beginning
    async with running(kit) as run:
        await kit.run_control.foreign_stop()
        await run
    assert kit.agent.held  # though it latched nothing


async def test_a_host_that_cannot_is_said_once(kit: Kit) -> None:
    told: list[str] = []
    kit.engine.execution.on_notice(told.append)
    point = await insert(kit)
    await hit(kit, point)
    kit.agent.clock_state = ClockState.DEAF
    for _ in range(3):
        await hit(kit, point)
    assert len(told) == 1
    assert "runs on while it is stopped" in told[0]
    assert [kind for kind, _ in kit.agent.requests].count(Type.CLOCK) == 2


# --- what a step keeps away ----------------------------------------------------------------------


async def test_interrupts_are_kept_away_from_a_step_unless_wanted(kit: Kit) -> None:
    execution = kit.engine.execution
    assert execution.step_bits == execution.step_mode == 3
    for mode, flags in ((3, STEP_OVER), (1, STEP_OVER | ActionFlags.LET_IRQ)):
        execution.step_mode = mode
        async with running(kit, ResumePlan.step(ZERO)) as run:
            kit.agent.stop(0, StopKind.STEPPED)
            await run
        [first, *_] = [request for kind, request in kit.agent.requests if kind is Type.RESUME][-1]
        assert first.flags == flags


# --- what others do ------------------------------------------------------------------------------


async def test_somebody_elses_stop_ends_the_run(kit: Kit) -> None:
    async with running(kit) as run:
        await kit.run_control.foreign_stop()
        assert (await run).reason == Paused()


async def test_a_stop_that_is_over_is_none(kit: Kit) -> None:
    async with running(kit) as run:
        await kit.run_control.foreign_stop()
        await kit.run_control.foreign_cont()
        await asyncio.sleep(0.02)
        assert not run.done()
        await kit.engine.execution.interrupt()
        assert (await run).reason == Paused()


async def test_a_hit_beats_somebody_elses_stop(kit: Kit) -> None:
    point = await insert(kit)
    async with running(kit) as run:
        await kit.run_control.foreign_stop()
        kit.agent.stop(0, StopKind.HIT, point=point, pc=CODE)
        assert (await run).reason == HIT


async def test_an_agent_that_hangs_up_ends_the_run_and_stops_the_vm(kit: Kit) -> None:
    async with running(kit) as run:
        await kit.agent.hang_up()
        with pytest.raises(AgentLost):
            await run
    assert kit.run_control.state is VmRunState.PAUSED


async def test_a_vm_that_ends_ends_the_run(kit: Kit) -> None:
    async with running(kit) as run:
        kit.run_control.die("it is gone")
        with pytest.raises(VmGone):
            await run


# --- what can be armed later ---------------------------------------------------------------------


async def test_a_deferred_breakpoint_is_armed_while_the_vm_runs(kit: Kit) -> None:
    for n in range(4):
        await insert(kit, BreakpointKind.WRITE, 0x5000 + n)
    await kit.engine.breakpoints.insert(BreakpointSpec(HIT.kind, Gva(0x20000)))
    async with running(kit) as run:
        assert len(kit.agent.table) == 4
        kit.agent.memory.extend(bytes(0x20000))
        await until(lambda: len(kit.agent.table) == 5)
        await kit.engine.execution.interrupt()
        await run


async def test_after_a_reset_code_breakpoints_are_placed_anew(kit: Kit) -> None:
    before = await insert(kit)
    kit.engine.execution.forget()
    async with running(kit) as run:
        await until(lambda: before not in kit.agent.table or len(kit.agent.table) == 1)
        await kit.engine.execution.interrupt()
        await run
    assert [point.kind for point in kit.agent.table.values()] == [Kind.SOFTWARE]
