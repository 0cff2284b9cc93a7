"""No hit is lost or counted twice, whatever else is done to the VM meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kvmdbg.addr import Gva
from kvmdbg.agent.client import AgentClient
from kvmdbg.backend.agent import Abilities
from kvmdbg.wire.structs import Action, Flags, Kind, PointFlags
from tests.contract.conftest import agent_subject, kvm_abilities
from tests.contract.guest import Guest, LiveVm, live_vm
from tests.contract.platforms import PLATFORMS, Platform
from tests.contract.subject import Subject, number

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

HITS = int(os.environ.get("KVMDBG_EXACT_HITS", "100_000"))
"""How many are wanted; a KVM that is itself emulated makes do with fewer."""

WAYS = {
    "flagged": (Kind.HARDWARE, Flags.HONOURS_RF, ("store", "other")),
    "stepped": (Kind.HARDWARE, Flags(0), ("store", "other")),
    "emulated": (Kind.SOFTWARE, Flags(0), ("stored",)),
    "lifted": (Kind.SOFTWARE, Flags.NO_SKIP, ("store", "other")),
}
"""How a vCPU gets past a breakpoint: kind, the agent's flags, and where."""


@pytest.fixture
def found() -> Abilities:
    return kvm_abilities()


@pytest.fixture
async def vm(
    found: Abilities, guests: Callable[[Platform], Guest], tmp_path: Path, vcpus: int
) -> AsyncIterator[LiveVm]:
    async with live_vm(guests(PLATFORMS[0]), tmp_path, vcpus, agent=True) as vm:
        yield vm


async def disturb(vm: LiveVm, agent: AgentClient, going_on: list[Action]) -> None:
    """Do one of the things that others may do at any time."""
    match random.randrange(4):
        case 0:
            await vm.monitor.qmp("stop")
            await asyncio.sleep(random.random() * 0.002)
            await vm.monitor.qmp("cont")
        case 1:
            await vm.monitor.hmp("info registers -a")
        case 2:
            await agent.hold()
            await agent.resume(going_on)
        case 3:
            await agent.points()
    await asyncio.sleep(random.random() * 0.005)


@pytest.mark.parametrize("way", WAYS)
async def test_hits_are_iterations(vm: LiveVm, found: Abilities, way: str) -> None:
    kind, flags, places = WAYS[way]
    if Flags.HONOURS_RF in flags and not found.resume_flag:
        pytest.skip("the host's KVM does not heed RF")
    if kind is Kind.SOFTWARE and not found.kernel_int3:
        pytest.skip("the host's KVM hands us no int3 of ring 0")
    subject = await agent_subject(vm, found)
    agent = subject.engine._agent  # type: ignore[attr-defined]
    await agent.configure(flags)
    before = await counts(vm, subject)
    points = [
        await agent.insert(kind, vm.guest.symbols[place], 1, flags=PointFlags.SILENT)
        for place in places[: len(before)]
    ]
    going_on = [Action(vcpu.index) for vcpu in await agent.vcpus()]
    await agent.resume(going_on)
    await vm.monitor.qmp("cont")
    while sum(point.hits for point in await agent.points()) < HITS:
        for _ in range(20):
            await disturb(vm, agent, going_on)
    await vm.monitor.qmp("stop")
    hits = [point.hits for point in await agent.points()]
    turns = [now - then for now, then in zip(await counts(vm, subject), before, strict=True)]
    print(f"{way}: hits {hits}, iterations {turns}, {await agent.statistics()}")
    for point, counted, done in zip(points, hits, turns, strict=False):
        # A vCPU may have been stopped at the breakpoint, between its hit and its iteration.
        assert counted - done in (0, 1), point
        assert counted > HITS / 20, point


async def counts(vm: LiveVm, subject: Subject) -> list[int]:
    """How often each vCPU has been round its loop."""
    return [
        await number(subject, Gva(vm.guest.symbols["counters"] + 8 * vcpu))
        for vcpu in subject.engine.vcpus
    ]
