"""Subjects for the contract tests: each engine that there is, with one and with two vCPUs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path

import pytest

from kvmdbg.addr import Gpa, Gva
from kvmdbg.backend.agent import Abilities
from kvmdbg.machine.accel import abilities
from kvmdbg.machine.verdict import kvm_verdict
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.capabilities import Engine
from tests.contract.guest import Guest, LiveVm, build, live_vm
from tests.contract.platforms import PLATFORMS, Platform
from tests.contract.subject import BOOT, Subject, interrupted, within
from tests.support.fake_engine import CODE, DATA, RAM_BASE, RAM_SIZE, Access, FakeVm


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Platform], Guest]:
    folder = tmp_path_factory.mktemp("guests")
    return cache(lambda platform: build(platform, folder))


@pytest.fixture(params=PLATFORMS, ids=lambda platform: platform.name)
def platform(request: pytest.FixtureRequest) -> Platform:
    assert isinstance(request.param, Platform)
    return request.param


@pytest.fixture(params=[1, 2], ids=["1 vCPU", "2 vCPUs"])
def vcpus(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
async def vm(
    guests: Callable[[Platform], Guest], platform: Platform, tmp_path: Path, vcpus: int
) -> AsyncIterator[LiveVm]:
    """A live VM, stopped at its first instruction."""
    async with live_vm(guests(platform), tmp_path, vcpus) as vm:
        yield vm


@pytest.fixture(
    params=[
        None,
        *(pytest.param((p, False), marks=pytest.mark.vm, id=f"stub-{p.name}") for p in PLATFORMS),
        *(
            pytest.param((p, True), marks=pytest.mark.vm, id="agent")
            for p in PLATFORMS
            if p.name == os.uname().machine
        ),
    ],
    ids=lambda chosen: "fake",
)
async def subject(
    request: pytest.FixtureRequest,
    guests: Callable[[Platform], Guest],
    tmp_path: Path,
    vcpus: int,
) -> AsyncIterator[Subject]:
    """An engine on a guest that is past its start: the fake, the stub of each platform, and under
    the host's KVM the agent."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param is None:
            yield fake_subject(vcpus)
        else:
            chosen, agent = request.param
            found = kvm_abilities() if agent else None
            vm = await stack.enter_async_context(
                live_vm(guests(chosen), tmp_path, vcpus, agent=agent)
            )
            yield await (agent_subject(vm, found) if found else stub_subject(vm))


def fake_subject(vcpus: int) -> Subject:
    fake = FakeVm(vcpus)
    shared = Gva(DATA + 0x100)
    fake.guest.accesses[Gva(CODE + 3)] = Access(BreakpointKind.WRITE, DATA, 8)
    fake.guest.accesses[Gva(CODE + 8)] = Access(BreakpointKind.READ, shared)
    return Subject(
        engine=fake.engine,
        run_control=fake.run_control,
        platform=PLATFORMS[0],
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
    at, platform = vm.guest.symbols, vm.guest.platform
    subject = Subject(
        engine=engine,
        run_control=vm.run_control,
        platform=platform,
        store=at["store"],
        stored=at["stored"],
        load=at["load"],
        loaded=at["loaded"],
        counter=at["counters"],
        shared=at["shared"],
        counter_gpa=platform.gpa(at["counters"]),
        last_page=platform.small,
        last_page_end=Gva(platform.small + 0x1000),
        look=vm.threads,
    )
    await reach_loop(vm, subject)
    return subject


async def reach_loop(vm: LiveVm, subject: Subject) -> None:
    """Run until each vCPU has been round its loop, and vCPU 0 is at the start of its own."""
    loops = range(vm.guest.symbols["loop"], vm.guest.symbols["halting"])
    for _ in range(100):
        await interrupted(subject, after=0.02)
        if all([await subject.pc(vcpu) in loops for vcpu in subject.engine.vcpus if vcpu != BOOT]):
            break
    else:
        pytest.fail("the guest did not start")
    # A pause meets vCPU 0 in its interrupt handler more often than not.
    start = BreakpointSpec(BreakpointKind.HARDWARE, vm.guest.symbols["loop"])
    await subject.engine.breakpoints.insert(start)
    async with within(subject, 10):
        for _ in range(2):
            await subject.run()
    await subject.engine.breakpoints.remove(start)
