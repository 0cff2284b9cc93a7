"""The facade: order of operations, quiet stops, and what other monitors do."""

from __future__ import annotations

import asyncio

import pytest

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import NoSuchVcpu, NotResumable, VmGone, VmRunning
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.events import Gone, Notice, Resumed, Stopped, VmEvent
from kvmdbg.target.runstate import VmRunState
from kvmdbg.target.stops import (
    Action,
    BreakpointHit,
    Frozen,
    Panicked,
    Paused,
    ResumePlan,
    ShutDown,
    Stepped,
    Stop,
)
from kvmdbg.target.vm import Vm
from tests.support.fake_engine import CODE, FakeVm

CPU = VcpuIndex(0)
HIT_AT = Gva(CODE + 5)
BREAKPOINT = BreakpointSpec(BreakpointKind.SOFTWARE, HIT_AT, 1)


class Watcher:
    """Collects a VM's events and waits for them."""

    def __init__(self, vm: Vm) -> None:
        self.events: list[VmEvent] = []
        self._news = asyncio.Event()
        vm.subscribe(self._take)

    def _take(self, event: VmEvent) -> None:
        self.events.append(event)
        self._news.set()

    async def wait(self, kind: type[VmEvent]) -> VmEvent:
        async with asyncio.timeout(5):
            while True:
                for event in self.events:
                    if isinstance(event, kind):
                        return event
                self._news.clear()
                await self._news.wait()


async def test_a_vm_begins_frozen_and_stops_at_a_breakpoint() -> None:
    vm = FakeVm().facade()
    assert vm.stop == Stop(CPU, Frozen())
    watcher = Watcher(vm)
    await vm.insert_breakpoint("a", BREAKPOINT)
    await vm.resume()
    hit = Stop(CPU, BreakpointHit(BreakpointKind.SOFTWARE, HIT_AT))
    assert await watcher.wait(Stopped) == Stopped(hit)
    assert watcher.events == [Resumed(), Stopped(hit)]
    assert vm.stop == hit


async def test_a_stopped_vm_cannot_be_paused_twice_and_a_running_one_not_resumed() -> None:
    vm = FakeVm().facade()
    first = await vm.pause()
    assert await vm.pause() == first
    await vm.resume()
    with pytest.raises(VmRunning):
        await vm.resume()
    assert (await vm.pause()).reason == Paused()


async def test_reading_a_running_vm_is_refused_in_words() -> None:
    vm = FakeVm().facade()
    await vm.resume()
    with pytest.raises(VmRunning, match="stop it first"):
        await vm.read_memory(CPU, CODE, 4)
    await vm.pause()
    assert len(await vm.read_memory(CPU, CODE, 4)) == 4


async def test_a_step_moves_one_vcpu() -> None:
    fake = FakeVm(vcpus=2)
    vm = fake.facade()
    watcher = Watcher(vm)
    before = [fake.guest.pc(v) for v in vm.vcpus]
    await vm.resume(ResumePlan.step(VcpuIndex(1), Action.HOLD))
    assert await watcher.wait(Stopped) == Stopped(Stop(VcpuIndex(1), Stepped()))
    assert [fake.guest.pc(v) for v in vm.vcpus] == [before[0], before[1] + 1]


async def test_a_breakpoint_goes_in_and_out_of_a_running_vm_without_clients_noticing() -> None:
    vm = FakeVm().facade()
    await vm.resume()
    watcher = Watcher(vm)
    far = BreakpointSpec(BreakpointKind.SOFTWARE, Gva(0x42), 1)
    await vm.insert_breakpoint("a", far)
    await vm.remove_breakpoint("a", far)
    assert watcher.events == []
    assert vm.stop is None
    await vm.insert_breakpoint("a", BREAKPOINT)
    await watcher.wait(Stopped)


async def test_a_breakpoint_of_two_clients_stays_until_both_let_go() -> None:
    vm = FakeVm().facade()
    await vm.insert_breakpoint("a", BREAKPOINT)
    await vm.insert_breakpoint("b", BREAKPOINT)
    await vm.release("a", resume=False)
    assert set(vm.breakpoints.inserted) == {BREAKPOINT}
    await vm.release("b", resume=False)
    assert not vm.breakpoints.inserted


async def test_a_client_that_goes_lets_the_vm_run_unless_another_holds_it() -> None:
    vm = FakeVm().facade()
    vm.clients.hold("a")
    vm.clients.hold("b")
    await vm.release("a", resume=True)
    assert vm.stop is not None
    await vm.release("b", resume=True)
    assert vm.stop is None


async def test_another_monitors_stop_is_told_as_foreign() -> None:
    fake = FakeVm()
    vm = fake.facade()
    await vm.resume()
    watcher = Watcher(vm)
    await fake.run_control.foreign_stop()
    assert await watcher.wait(Stopped) == Stopped(Stop(CPU, Paused(foreign=True)))


async def test_another_monitors_stop_that_does_not_last_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeVm()
    vm = fake.facade()
    await vm.resume()
    watcher = Watcher(vm)
    sync = fake.run_control.sync

    async def sync_late() -> VmRunState:
        monkeypatch.undo()
        await fake.run_control.foreign_cont()
        return await sync()

    monkeypatch.setattr(fake.run_control, "sync", sync_late)
    await fake.run_control.foreign_stop()
    async with asyncio.timeout(5):
        while len(fake.engine.execution.plans) < 2:  # noqa: ASYNC110 (the engine's doing)
            await asyncio.sleep(0.001)
    assert vm.stop is None
    assert fake.run_control.state is VmRunState.RUNNING
    assert (await vm.pause()).reason == Paused()
    assert await watcher.wait(Stopped) == Stopped(Stop(CPU, Paused()))


async def test_another_monitors_cont_is_undone_while_a_client_holds_the_vm() -> None:
    fake = FakeVm()
    vm = fake.facade()
    vm.clients.hold("gdb-1")
    watcher = Watcher(vm)
    await fake.run_control.foreign_cont()
    notice = await watcher.wait(Notice)
    assert isinstance(notice, Notice)
    assert "stopped it again" in notice.text
    assert vm.stop is not None
    assert fake.run_control.state is not VmRunState.RUNNING


async def test_another_monitors_cont_is_followed_when_nobody_holds_the_vm() -> None:
    fake = FakeVm()
    vm = fake.facade()
    watcher = Watcher(vm)
    await fake.run_control.foreign_cont()
    await watcher.wait(Resumed)
    assert vm.stop is None
    assert (await vm.pause()).reason == Paused()


async def test_a_reset_is_told_once() -> None:
    fake = FakeVm()
    vm = fake.facade()
    watcher = Watcher(vm)
    await vm.reset()
    await vm.reset()
    assert watcher.events == [Notice("the VM was reset")]


@pytest.mark.parametrize("how", ["panic", "shut_down"])
async def test_panic_and_shutdown_stop_the_vm_for_good(how: str) -> None:
    fake = FakeVm()
    vm = fake.facade()
    await vm.resume()
    watcher = Watcher(vm)
    getattr(fake.run_control, how)()
    stopped = await watcher.wait(Stopped)
    assert isinstance(stopped, Stopped)
    assert stopped.stop.reason == (Panicked() if how == "panic" else ShutDown())
    with pytest.raises(NotResumable, match="reset it"):
        await vm.resume()


@pytest.mark.parametrize("running", [True, False])
async def test_the_end_of_qemu_reaches_everybody(running: bool) -> None:
    fake = FakeVm()
    vm = fake.facade()
    if running:
        await vm.resume()
    watcher = Watcher(vm)
    fake.run_control.die("QEMU was killed by signal 9 (SIGKILL)", 9)
    gone = Gone("QEMU was killed by signal 9 (SIGKILL)", 9)
    assert await watcher.wait(Gone) == gone
    with pytest.raises(VmGone, match="killed by signal 9"):
        await vm.pause()
    with pytest.raises(VmGone):
        await vm.read_memory(CPU, CODE, 1)
    await vm.release("anybody", resume=True)
    assert [e for e in watcher.events if isinstance(e, Gone)] == [gone]


async def test_retiring_leaves_nothing_in_the_guest() -> None:
    vm = FakeVm().facade()
    await vm.insert_breakpoint("a", BreakpointSpec(BreakpointKind.SOFTWARE, Gva(0x99), 1))
    await vm.resume()
    assert await vm.retire() is True
    assert not vm.breakpoints.inserted
    assert vm.stop is not None
    assert await vm.retire() is False


async def test_a_retired_vm_may_be_resumed_by_whoever_comes_next() -> None:
    fake = FakeVm()
    vm = fake.facade()
    vm.clients.hold("gdb-1")
    await vm.retire()
    await fake.run_control.foreign_cont()
    for _ in range(20):
        await asyncio.sleep(0)
    assert fake.run_control.state is VmRunState.RUNNING


async def test_there_is_no_such_vcpu() -> None:
    with pytest.raises(NoSuchVcpu, match="0 to 0"):
        await FakeVm().facade().read_block(VcpuIndex(3))


async def test_operations_of_many_clients_keep_their_order() -> None:
    """Reads, breakpoints and runs from several tasks at once never meet a running VM."""
    vm = FakeVm().facade()
    await vm.resume()

    async def client(number: int) -> None:
        spec = BreakpointSpec(BreakpointKind.SOFTWARE, Gva(0x1000 + number), 1)
        for _ in range(20):
            await vm.insert_breakpoint(str(number), spec)
            async with vm.halted():
                assert vm.engine.execution is not None
            await vm.remove_breakpoint(str(number), spec)

    await asyncio.gather(*(client(number) for number in range(5)))
    assert vm.stop is None
    assert not vm.breakpoints.inserted


async def test_stepping_through_a_range_can_be_interrupted() -> None:
    """The loop never leaves it: only pause() ends that, and a quiet stop goes on with it."""
    fake = FakeVm()
    vm = fake.facade()
    plan = ResumePlan({CPU: Action.STEP}, Action.HOLD, {CPU: (CODE, Gva(CODE + 0x1000))})
    await vm.resume(plan)
    await asyncio.sleep(0.01)
    await vm.insert_breakpoint("a", BreakpointSpec(BreakpointKind.WRITE, Gva(0x10), 8))
    assert vm.stop is None
    before = fake.guest.instructions[0]
    await asyncio.sleep(0.01)
    assert fake.guest.instructions[0] > before > 0
    async with asyncio.timeout(5):
        assert await vm.pause() == Stop(CPU, Paused())
