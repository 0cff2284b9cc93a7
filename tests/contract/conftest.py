"""Subjects for the contract tests: each engine that there is, with one and with two vCPUs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvmdbg.addr import Gpa, Gva
from kvmdbg.backend.agent import Abilities
from kvmdbg.machine.accel import abilities
from kvmdbg.machine.verdict import kvm_verdict
from kvmdbg.target.breakpoints import BreakpointKind
from kvmdbg.target.capabilities import Engine
from tests.contract.guest import IMAGE, SMALL, Guest, LiveVm, build, live_vm
from tests.contract.subject import Subject, interrupted
from tests.support.fake_engine import CODE, DATA, RAM_BASE, RAM_SIZE, Access, FakeVm


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    return build(tmp_path_factory.mktemp("guest"))


@pytest.fixture(params=[1, 2], ids=["1 vCPU", "2 vCPUs"])
def vcpus(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
async def vm(guest: Guest, tmp_path: Path, vcpus: int) -> AsyncIterator[LiveVm]:
    """A live VM, stopped at the loop's first instruction."""
    async with live_vm(guest, tmp_path, vcpus) as vm:
        yield vm


@pytest.fixture(
    params=[
        "fake",
        pytest.param("stub", marks=pytest.mark.vm),
        pytest.param("agent", marks=pytest.mark.vm),
    ]
)
async def subject(
    request: pytest.FixtureRequest, guest: Guest, tmp_path: Path, vcpus: int
) -> AsyncIterator[Subject]:
    """An engine on a guest that is past its start."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "fake":
            yield fake_subject(vcpus)
        elif request.param == "stub":
            vm = await stack.enter_async_context(live_vm(guest, tmp_path, vcpus))
            yield await stub_subject(vm)
        else:
            found = kvm_abilities()
            vm = await stack.enter_async_context(live_vm(guest, tmp_path, vcpus, agent=True))
            yield await agent_subject(vm, found)


def fake_subject(vcpus: int) -> Subject:
    fake = FakeVm(vcpus)
    shared = Gva(DATA + 0x100)
    fake.guest.accesses[Gva(CODE + 3)] = Access(BreakpointKind.WRITE, DATA, 8)
    fake.guest.accesses[Gva(CODE + 8)] = Access(BreakpointKind.READ, shared)
    return Subject(
        engine=fake.engine,
        run_control=fake.run_control,
        store=Gva(CODE + 3),
        stored=Gva(CODE + 4),
        load=Gva(CODE + 8),
        loaded=Gva(CODE + 9),
        counter=DATA,
        shared=shared,
        counter_gpa=Gpa(DATA - RAM_BASE),
        last_page=Gva(RAM_BASE + RAM_SIZE - 0x1000),
        last_page_end=Gva(RAM_BASE + RAM_SIZE),
    )


def kvm_abilities() -> Abilities:
    """What the host's KVM does; skips where it has none, but in the lab."""
    verdict = kvm_verdict()
    if "guests" not in verdict.works:
        refuse = pytest.fail if os.environ.get("KVMDBG_LAB") else pytest.skip
        refuse(f"no guest runs under KVM here: {verdict.reason}")
    return abilities(verdict)


async def stub_subject(vm: LiveVm) -> Subject:
    """The stub engine; the guest has reached its loop on every vCPU."""
    return await live_subject(vm, await vm.engine())


async def agent_subject(vm: LiveVm, found: Abilities) -> Subject:
    """The agent engine, likewise."""
    subject = await live_subject(vm, await vm.agent_engine(found))
    if not found.kernel_watch:
        subject.lacks_watch = "the host's KVM does not stop at data watchpoints in ring 0"
    return subject


async def live_subject(vm: LiveVm, engine: Engine) -> Subject:
    """Let the guest reach its loop on every vCPU."""
    at = vm.guest.symbols
    subject = Subject(
        engine=engine,
        run_control=vm.run_control,
        store=at["store"],
        stored=at["stored"],
        load=at["load"],
        loaded=at["loaded"],
        counter=at["counters"],
        shared=at["shared"],
        counter_gpa=Gpa(at["counters"] - IMAGE + 0x20_0000),
        last_page=SMALL,
        last_page_end=Gva(SMALL + 0x1000),
    )
    await reach_loop(vm, subject)
    return subject


async def reach_loop(vm: LiveVm, subject: Subject) -> None:
    """Run until each vCPU has been round its loop."""
    loops = range(vm.guest.symbols["loop"], vm.guest.symbols["answer"])
    for _ in range(100):
        await interrupted(subject, after=0.02)
        if all([await subject.pc(vcpu) in loops for vcpu in subject.engine.vcpus]):
            return
    pytest.fail("the guest did not start")
