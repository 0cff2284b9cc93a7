"""Watchpoints with conditions, on the facade: only what is wanted is told."""

from __future__ import annotations

import asyncio

import pytest

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import ExpressionError
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.events import Notice, Resumed, Stopped, VmEvent
from kvmdbg.target.stops import Action, Paused, ResumePlan, Stepped, Stop, WatchpointHit
from kvmdbg.target.vm import Vm
from tests.support.fake_engine import CODE, DATA, Access, FakeVm

CPU = VcpuIndex(0)
STORE = Gva(CODE + 3)
WATCH = BreakpointSpec(BreakpointKind.WRITE, DATA, 1)
HIT = Stop(CPU, WatchpointHit(BreakpointKind.WRITE, DATA))


@pytest.fixture
def fake() -> FakeVm:
    """Its guest counts at DATA."""
    fake = FakeVm()
    fake.guest.accesses[STORE] = Access(BreakpointKind.WRITE, DATA)
    return fake


@pytest.fixture
async def vm(fake: FakeVm) -> Vm:
    return fake.facade()


async def next_stop(vm: Vm) -> Stop:
    async with asyncio.timeout(5):
        while vm.stop is None:  # noqa: ASYNC110 (it is the facade's state that counts)
            await asyncio.sleep(0)
    return vm.stop


async def counter(vm: Vm) -> int:
    return (await vm.read_memory(CPU, DATA, 1))[0]


async def test_only_a_hit_for_which_it_holds_is_told(vm: Vm) -> None:
    told: list[VmEvent] = []
    vm.subscribe(told.append)
    await vm.insert_breakpoint("a", WATCH, "value % 10 == 5 && $pc != 0")
    for expected in (5, 15):
        await vm.resume()
        assert await next_stop(vm) == HIT
        assert await counter(vm) == expected
    assert told == [Resumed(), Stopped(HIT)] * 2


async def test_every_client_has_its_own(vm: Vm) -> None:
    await vm.insert_breakpoint("a", WATCH, "value == 9")
    await vm.insert_breakpoint("b", WATCH, "value == 4")
    for expected in (4, 9):
        await vm.resume()
        await next_stop(vm)
        assert await counter(vm) == expected
    await vm.insert_breakpoint("c", WATCH)
    await vm.resume()
    await next_stop(vm)
    assert await counter(vm) == 10


async def test_who_sets_it_again_sets_another_condition(vm: Vm) -> None:
    await vm.insert_breakpoint("a", WATCH)
    await vm.insert_breakpoint("a", WATCH, "value == 7")
    await vm.resume()
    await next_stop(vm)
    assert await counter(vm) == 7


async def test_a_vm_that_never_stops_for_it_can_be_paused(fake: FakeVm, vm: Vm) -> None:
    await vm.insert_breakpoint("a", WATCH, "value > 0xff")
    await vm.resume()
    async with asyncio.timeout(10):
        while fake.guest.instructions[0] <= 1000:  # noqa: ASYNC110 (the guest's doing)
            await asyncio.sleep(0.01)
    assert vm.stop is None
    assert await vm.pause() == Stop(CPU, Paused())


async def test_a_step_is_a_step_whatever_it_met(vm: Vm) -> None:
    await vm.insert_breakpoint("a", WATCH, "0")
    for _ in range(6):
        await vm.resume(ResumePlan.step(CPU))
        assert await next_stop(vm) == Stop(CPU, Stepped())
    assert await counter(vm) == 1


async def test_a_range_is_stepped_through_past_it(fake: FakeVm, vm: Vm) -> None:
    await vm.insert_breakpoint("a", WATCH, "0")
    leaves = Gva(CODE + 8)
    plan = ResumePlan({CPU: Action.STEP}, Action.HOLD, {CPU: (CODE, leaves)})
    await vm.resume(plan)
    assert await next_stop(vm) == Stop(CPU, Stepped())
    assert fake.guest.pc(CPU) == leaves
    assert await counter(vm) == 1


async def test_what_cannot_be_told_stops_the_vm_and_says_why(vm: Vm) -> None:
    told: list[VmEvent] = []
    vm.subscribe(told.append)
    await vm.insert_breakpoint("a", WATCH, "u8(0)")
    await vm.resume()
    assert await next_stop(vm) == HIT
    (notice,) = (event for event in told if isinstance(event, Notice))
    assert notice.text == (
        "the condition 'u8(0)' cannot be told, and the VM is stopped: there is no memory at 0x0"
    )


async def test_what_makes_no_sense_is_refused_before_anything_is_inserted(
    fake: FakeVm, vm: Vm
) -> None:
    for condition in ("", "value ==", "$nothing", "$xmm0 == 0"):
        with pytest.raises(ExpressionError):
            await vm.insert_breakpoint("a", WATCH, condition)
    wide = BreakpointSpec(BreakpointKind.WRITE, DATA, 16)
    with pytest.raises(ExpressionError):
        await vm.insert_breakpoint("a", wide, "value == 1")
    assert not fake.engine.breakpoints.specs
