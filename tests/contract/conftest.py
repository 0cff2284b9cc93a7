"""Subjects for the contract tests: each engine that there is, with one and with two vCPUs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path

import pytest

from kvmdbg.addr import Gpa, Gva
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from tests.contract.guest import Guest, LiveVm, build, live_vm
from tests.contract.platforms import PLATFORMS, Platform
from tests.contract.subject import BOOT, Subject, interrupted
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
        *(pytest.param(p, marks=pytest.mark.vm, id=f"stub-{p.name}") for p in PLATFORMS),
    ],
    ids=lambda platform: "fake",
)
async def subject(
    request: pytest.FixtureRequest,
    guests: Callable[[Platform], Guest],
    tmp_path: Path,
    vcpus: int,
) -> AsyncIterator[Subject]:
    """An engine on a guest that is past its start: the fake, and the stub of each platform."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param is None:
            yield fake_subject(vcpus)
        else:
            guest = guests(request.param)
            vm = await stack.enter_async_context(live_vm(guest, tmp_path, vcpus))
            yield await stub_subject(vm)


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


async def stub_subject(vm: LiveVm) -> Subject:
    """Let the guest reach its loop on every vCPU."""
    engine = await vm.engine()
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
    async with asyncio.timeout(10):
        for _ in range(2):
            await subject.run()
    await subject.engine.breakpoints.remove(start)
