"""Machines under the host's KVM, debugged by the agent; skipped where no guest runs under it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kvmdbg.addr import VcpuIndex
from kvmdbg.agent.client import AgentClient
from kvmdbg.backend.agent import AgentEngine
from kvmdbg.backend.stub import StubEngine
from kvmdbg.errors import AcceleratorError, AgentError, AttachError
from kvmdbg.machine import attach, launch
from kvmdbg.machine.attach import attach_vm
from kvmdbg.machine.define import Definition
from kvmdbg.machine.launch import take_over
from kvmdbg.machine.runtime import RuntimeDir
from kvmdbg.qmp import QmpConnection
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.runstate import VmRunState
from kvmdbg.target.stops import BreakpointHit, Frozen, ResumePlan, Stepped, Stop
from tests.contract.conftest import kvm_abilities
from tests.contract.guest import Guest, build
from tests.contract.platforms import PLATFORMS
from tests.vm.bare import (
    SECONDS,
    Bare,
    foreign_qemu,
    launched,
    needs_qemu,
    private_runtime,
    wait_listening,
)

pytestmark = [pytest.mark.vm, needs_qemu]

ZERO = VcpuIndex(0)
CPU = ("-cpu", "qemu64,-cx16")
"""What not every KVM has is not offered."""


@pytest.fixture(autouse=True)
def needs_kvm() -> None:
    kvm_abilities()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    return build(PLATFORMS[0], tmp_path_factory.mktemp("guest"))


@pytest.fixture
def runtime() -> Iterator[RuntimeDir]:
    with private_runtime() as runtime:
        yield runtime


@asynccontextmanager
async def under_kvm(runtime: RuntimeDir, guest: Guest, **options: Any) -> AsyncIterator[Bare]:
    extra = ("-bios", str(guest.firmware), *CPU)
    definition = Definition(name="kd-kvm", memory="64M", cpus=2, extra_args=extra)
    async with launched(runtime, definition, accel="kvm", **options) as bare:
        yield bare


async def no_agent(*arguments: Any) -> AgentClient:
    raise AgentError("the agent is not at home")


async def status(qmp: QmpConnection) -> str:
    return str((await qmp.execute("query-status"))["status"])


# --- launched ------------------------------------------------------------------------------------


async def test_a_launched_vm_is_debugged_by_the_agent(runtime: RuntimeDir, guest: Guest) -> None:
    async with under_kvm(runtime, guest) as bare:
        machine = bare.machine
        assert isinstance(machine.engine, AgentEngine)
        assert (machine.info.accel, machine.info.engine) == ("kvm", "agent-kvm")
        assert machine.initial.reason == Frozen()
        halting = guest.symbols["loop"]
        spec = BreakpointSpec(BreakpointKind.HARDWARE, halting)
        await machine.engine.breakpoints.insert(spec)
        hit = await machine.engine.execution.run(ResumePlan())
        assert hit == Stop(ZERO, BreakpointHit(spec.kind, halting))
        assert await machine.engine.execution.run(ResumePlan.step(ZERO)) == Stop(ZERO, Stepped())


async def test_it_is_taken_over(runtime: RuntimeDir, guest: Guest) -> None:
    async with under_kvm(runtime, guest) as bare:
        first = bare.machine
        assert isinstance(first.engine, AgentEngine)
        await first.engine.breakpoints.insert(
            BreakpointSpec(BreakpointKind.HARDWARE, guest.symbols["loop"])
        )
        await first.engine.execution.run(ResumePlan())
        found = runtime.vm_of(first.info.process)
        assert found is not None
        first.engine.abandon()
        await first.run_control.close()
        first.claim.release()
        second = await take_over(runtime, found[0])
        assert isinstance(second.engine, AgentEngine)
        assert second.info == first.info
        assert await second.engine.breakpoints.describe() == []
        assert await second.engine.execution.run(ResumePlan.step(ZERO)) == Stop(ZERO, Stepped())
        await second.close(restore=False)


async def test_a_killed_owners_guest_runs_on(runtime: RuntimeDir, guest: Guest) -> None:
    async with under_kvm(runtime, guest) as bare:
        machine = bare.machine
        assert isinstance(machine.engine, AgentEngine)
        await machine.guard()
        await machine.engine.breakpoints.insert(
            BreakpointSpec(BreakpointKind.HARDWARE, guest.symbols["loop"])
        )
        await machine.engine.execution.run(ResumePlan())
        watchdog = machine._watchdog
        assert watchdog is not None
        async with bare.other_monitor() as qmp:
            assert await status(qmp) == "paused"
            machine.engine.abandon()
            await machine.run_control.close()
            machine.claim.release()
            watchdog.abandon()
            async with asyncio.timeout(SECONDS):
                while await status(qmp) != "running":  # noqa: ASYNC110 (another process's doing)
                    await asyncio.sleep(0.02)
        machine.process.kill()
        await asyncio.to_thread(watchdog.process.wait, SECONDS)


async def test_without_the_agent_it_is_the_stub_and_that_is_said(
    runtime: RuntimeDir, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "connect_agent", no_agent)
    async with under_kvm(runtime, guest) as bare:
        assert isinstance(bare.machine.engine, StubEngine)
        assert bare.machine.info.engine == "stub"
        assert "the agent is not at home" in bare.machine.notices[-1]
    with pytest.raises(AgentError, match="not at home"):
        async with under_kvm(runtime, guest, engine="agent"):
            pass


async def test_an_agent_that_cannot_be_preloaded_is_said_before_anything_starts(
    runtime: RuntimeDir, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "preload_trouble", lambda: "it is nowhere")
    async with under_kvm(runtime, guest) as bare:
        assert isinstance(bare.machine.engine, StubEngine)
        assert bare.machine.notices[-1].startswith("engine stub instead of agent-kvm (")
        assert bare.machine.notices[-1].endswith("): it is nowhere")
    with pytest.raises(AcceleratorError, match="--engine agent cannot be had: it is nowhere"):
        async with under_kvm(runtime, guest, engine="agent"):
            pass


# --- attached to ---------------------------------------------------------------------------------


@asynccontextmanager
async def stranger(guest: Guest, folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """A QEMU under KVM that runs the guest: its pid, and the monitor that is left to us."""
    ours, free = folder / "q", folder / "f"
    monitors = [f"unix:{path},server=on,wait=off" for path in (ours, free)]
    async with foreign_qemu(
        *("-bios", str(guest.firmware), *CPU, "-qmp", monitors[0], "-qmp", monitors[1]),
        accel="kvm",
    ) as qemu:
        await wait_listening(free)
        yield qemu.pid, free


async def test_the_agent_is_brought_into_a_running_qemu(
    runtime: RuntimeDir, guest: Guest, tmp_path: Path
) -> None:
    async with stranger(guest, tmp_path) as (pid, free):
        for _ in range(2):
            machine = await attach_vm(runtime, pid)
            assert isinstance(machine.engine, AgentEngine)
            assert (machine.was_running, machine.notices) == (True, ())
            step = await machine.engine.execution.run(ResumePlan.step(ZERO))
            assert step == Stop(ZERO, Stepped())
            await machine.close()
        qmp = await QmpConnection.connect(free)
        assert await status(qmp) == "running"
        await qmp.close()


async def test_where_it_cannot_be_brought_in_the_stub_serves(
    runtime: RuntimeDir, guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*arguments: Any) -> AgentClient:
        raise AttachError("somebody traces it")

    monkeypatch.setattr(attach, "attach", refuse)
    async with stranger(guest, tmp_path) as (pid, _):
        machine = await attach_vm(runtime, pid)
        assert isinstance(machine.engine, StubEngine)
        assert "somebody traces it" in machine.notices[0]
        assert machine.run_control.state is VmRunState.PAUSED
        await machine.close()
        with pytest.raises(AttachError, match="somebody traces it"):
            await attach_vm(runtime, pid, "agent")
