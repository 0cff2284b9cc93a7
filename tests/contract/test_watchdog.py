"""What becomes of a VM whose owner is killed."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvmdbg.backend.stub import StubEngine
from kvmdbg.machine.guard import Rescue, Watchdog, start_watchdog
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.runstate import PERMITS, VmRunState
from kvmdbg.target.stops import ResumePlan
from tests.contract.conftest import stub_subject
from tests.contract.guest import LiveVm
from tests.contract.subject import BOOT, Subject, runs_on

pytestmark = [
    pytest.mark.vm,
    pytest.mark.parametrize("vcpus", [2], ids=["2 vCPUs"]),
]


@dataclass
class Process:
    pid: int
    start_time: int


@dataclass
class Owned:
    """A VM with an engine on it, breakpoints in it, and a watchdog."""

    vm: LiveVm
    subject: Subject
    watchdog: Watchdog
    lock: Path

    def die(self) -> None:
        """What a kill -9 of the owner does to its descriptors."""
        assert isinstance(self.subject.engine, StubEngine)
        self.subject.engine.abandon()
        self.watchdog.abandon()

    async def watchdog_ended(self, timeout: float = 10) -> None:
        await asyncio.to_thread(self.watchdog.process.wait, timeout)


@pytest.fixture
def orphan_timeout() -> float:
    return 0


@pytest.fixture
async def owned(vm: LiveVm, tmp_path: Path, orphan_timeout: float) -> AsyncIterator[Owned]:
    stat = Path(f"/proc/{vm.process.pid}/stat").read_text(encoding="ascii")
    process = Process(vm.process.pid, int(stat.rpartition(")")[2].split()[19]))
    lock = tmp_path / "lock"
    subject = await stub_subject(vm)
    for kind in (BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE, BreakpointKind.WRITE):
        at = subject.counter if kind.is_watchpoint else subject.load
        await subject.engine.breakpoints.insert(BreakpointSpec(kind, at))
    watchdog = await start_watchdog(
        Rescue.stub(vm.stub), process=process, lock=lock, orphan_timeout=orphan_timeout
    )
    yield Owned(vm, subject, watchdog, lock)
    await watchdog.bye()


async def test_a_stopped_guest_runs_on(owned: Owned) -> None:
    await owned.subject.run()
    owned.die()
    await owned.watchdog_ended()
    assert await runs_on(owned.vm)


async def test_a_guest_that_was_being_stepped_runs_on(owned: Owned) -> None:
    await owned.subject.set_register("pc", owned.vm.guest.symbols["halting"])
    await owned.subject.set_register("eflags", 2)
    step = asyncio.create_task(owned.subject.run(ResumePlan.step(BOOT)))
    await asyncio.sleep(0.05)
    owned.die()
    await asyncio.gather(step, return_exceptions=True)
    await owned.watchdog_ended()
    assert await owned.vm.run_control.sync() is VmRunState.RUNNING
    await asyncio.sleep(0.3)
    assert await owned.vm.run_control.sync() is VmRunState.RUNNING


async def test_a_guest_that_was_stepped_over_a_watched_store_runs_on(owned: Owned) -> None:
    await owned.subject.set_register("pc", owned.subject.store)
    await owned.subject.run(ResumePlan.step(BOOT))
    owned.die()
    await owned.watchdog_ended()
    assert await runs_on(owned.vm)


async def test_a_running_guest_runs_on_without_breakpoints(owned: Owned) -> None:
    assert isinstance(owned.subject.engine, StubEngine)
    breakpoints = owned.subject.engine.breakpoints
    await breakpoints.clear()
    await breakpoints.insert(
        BreakpointSpec(BreakpointKind.SOFTWARE, owned.vm.guest.symbols["halting"])
    )
    run = asyncio.create_task(owned.subject.run())
    await asyncio.sleep(0.05)
    owned.die()
    await asyncio.gather(run, return_exceptions=True)
    await owned.watchdog_ended()
    assert await runs_on(owned.vm)
    # The guest goes through the breakpoint now.
    halt = owned.vm.guest.symbols["halt"]
    engine = await owned.vm.engine()
    await engine.memory.write(BOOT, halt, b"\x01")
    engine.abandon()
    await owned.vm.run_control.cont()
    await asyncio.sleep(0.1)
    assert await owned.vm.run_control.sync() is VmRunState.RUNNING


async def test_the_next_engine_finds_its_stub_free(owned: Owned) -> None:
    owned.die()
    await owned.watchdog_ended()
    engine = await owned.vm.engine()
    await engine.close()


async def test_after_bye_nothing_is_touched(owned: Owned) -> None:
    await owned.watchdog.bye()
    await owned.watchdog.bye()
    assert owned.watchdog.process.returncode == 0
    assert PERMITS[await owned.vm.run_control.sync()].inspectable


async def test_a_new_owner_is_left_alone(owned: Owned) -> None:
    fd = os.open(owned.lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        owned.die()
        await owned.watchdog_ended()
    finally:
        os.close(fd)
    assert PERMITS[await owned.vm.run_control.sync()].inspectable


@pytest.mark.parametrize("orphan_timeout", [0.5])
async def test_an_orphan_is_ended(owned: Owned) -> None:
    owned.die()
    await owned.watchdog_ended()
    assert await asyncio.to_thread(owned.vm.process.wait, 10) == 0


@pytest.mark.parametrize("orphan_timeout", [3.0])
async def test_a_taken_over_orphan_lives(owned: Owned) -> None:
    owned.die()
    assert await runs_on(owned.vm)
    await asyncio.sleep(0.1)
    fd = os.open(owned.lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        await owned.watchdog_ended()
    finally:
        os.close(fd)
    assert owned.vm.process.poll() is None


async def test_it_ends_with_qemu(owned: Owned) -> None:
    owned.vm.process.kill()
    await owned.watchdog_ended()
