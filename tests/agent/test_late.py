"""Attaching to a QEMU that runs, on the host's own KVM, and leaving it as it was."""

from __future__ import annotations

import asyncio
import signal
import socket
import statistics
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kvmdbg.agent import late
from kvmdbg.agent.client import AgentClient
from kvmdbg.agent.connection import AgentConnection
from kvmdbg.agent.inject import Injection, inject
from kvmdbg.agent.process import Process
from kvmdbg.errors import AttachError, VmGone
from kvmdbg.kvm.local import KVM_DEVICE
from kvmdbg.kvm.x86.registers import get_regs
from kvmdbg.machine.hostfacts import device_facts
from kvmdbg.wire.structs import Action, ActionKind, Kind, Space, Stop, StopKind
from tests.agent.qemu import Qemu, Traces, stock_qemu
from tests.contract.guest import Guest, build
from tests.contract.platforms import PLATFORMS

CYCLES = 50
KILLS = 3
VISITOR = Path(__file__).with_name("visitor.py")
MEMORY_LIMIT = 1024  # KiB
PAUSE_LIMIT = 0.1  # seconds


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    trouble = device_facts(KVM_DEVICE).trouble
    if trouble is not None:
        pytest.skip(trouble)
    return build(PLATFORMS[0], tmp_path_factory.mktemp("guest"))


@pytest.fixture(params=[1, 2], ids=["1cpu", "2cpu"])
async def qemu(request: pytest.FixtureRequest, guest: Guest, tmp_path: Path) -> AsyncIterator[Qemu]:
    async with stock_qemu(guest, tmp_path, request.param) as qemu:
        yield qemu


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each attach had QEMU's main thread stand still, in seconds."""
    found: list[float] = []

    async def timed(pid: int, library: Path) -> Injection:
        injection = await inject(pid, library)
        found.append(injection.pause)
        return injection

    monkeypatch.setattr(late, "inject", timed)
    return found


async def stop_at(client: AgentClient, address: int) -> Stop:
    """Let the held vCPUs run to a breakpoint."""
    rung = asyncio.Event()
    client.on_doorbell(lambda _: rung.set())
    await client.resume(Action(vcpu.index) for vcpu in await client.vcpus())
    async with asyncio.timeout(10):
        await rung.wait()
    (stop,) = [stop for stop in await client.stops() if stop.kind is not StopKind.RUNNING]
    assert stop.pc == address
    return stop


async def test_fifty_visits_leave_nothing_behind(qemu: Qemu, pauses: list[float]) -> None:
    loop = qemu.guest.symbols["loop"]
    before, memory = Traces.of(qemu.pid), 0
    for visit in range(CYCLES):
        client = await qemu.attach()
        await client.hold()
        await client.insert(Kind.HARDWARE, loop, 1)
        stop = await stop_at(client, loop)
        assert (stop.kind, stop.vcpu) == (StopKind.HIT, 0)
        if visit % 2:
            await client.detach()
        else:
            client.close()
            await client.wait_lost()
        await qemu.wait_traces(before)
        await qemu.wait_running()
        memory = (
            memory or await qemu.memory_kib()
        )  # from the first visit on: the agent stays mapped
    assert await qemu.memory_kib() - memory <= MEMORY_LIMIT
    assert statistics.median(pauses) <= PAUSE_LIMIT


async def test_the_agent_knows_what_was_there_before_it(qemu: Qemu) -> None:
    client = await qemu.attach()
    await client.hold()
    vcpus = await client.vcpus()
    assert {vcpu.tid for vcpu in vcpus} < set(Process(qemu.pid).threads())
    image = qemu.guest.firmware.read_bytes()[:64]
    start = qemu.guest.symbols["image"]
    assert await client.read(Space.GVA, start, 64) == image
    regs = await client.call(get_regs())
    assert (await client.translate(regs.rip)).gpa >> 21 == 1
    assert any(slot.gpa == 0 for slot in await client.slots())
    await client.detach()


async def test_vcpus_that_were_plugged_in_out_of_order_have_their_own_threads(
    guest: Guest, tmp_path: Path
) -> None:
    async with stock_qemu(guest, tmp_path, 1) as qemu:
        places = await qemu.monitor.execute("query-hotpluggable-cpus")
        free = [place for place in places if "qom-path" not in place]
        free.sort(key=lambda place: int(place["props"]["socket-id"]), reverse=True)
        for number, place in enumerate(free[:2]):
            device = {"driver": place["type"], "id": f"cpu{number}", **place["props"]}
            await qemu.monitor.execute("device_add", device)
        expected = {}
        for cpu in await qemu.monitor.execute("query-cpus-fast"):
            where = {"path": cpu["qom-path"], "property": "apic-id"}
            expected[await qemu.monitor.execute("qom-get", where)] = cpu["thread-id"]
        assert list(expected) != sorted(expected)
        threads, slots = await qemu.layout()
        adoption = late.discover(qemu.pid, threads, slots)
        assert {vcpu.index: vcpu.tid for vcpu in adoption.vcpus} == expected
        client = await qemu.attach()
        await client.hold()
        assert {vcpu.index for vcpu in await client.vcpus()} == set(expected)
        await client.detach()
        await qemu.wait_running()


async def test_a_vcpu_steps(qemu: Qemu) -> None:
    client = await qemu.attach()
    await client.hold()
    point = await client.insert(Kind.HARDWARE, qemu.guest.symbols["store"], 1)
    await stop_at(client, point.address)
    await client.remove(point.id)
    rung = asyncio.Event()
    client.on_doorbell(lambda _: rung.set())
    await client.resume(
        Action(vcpu.index, ActionKind.KEEP if vcpu.index else ActionKind.STEP)
        for vcpu in await client.vcpus()
    )
    async with asyncio.timeout(10):
        await rung.wait()
    stop = (await client.stops())[0]
    assert (stop.kind, stop.pc) == (StopKind.STEPPED, qemu.guest.symbols["stored"])
    await client.detach()
    await qemu.wait_running()


@pytest.mark.parametrize("state", ["hot", "stopped", "held"])
async def test_a_killed_controller_leaves_nothing_behind(qemu: Qemu, state: str) -> None:
    before = Traces.of(qemu.pid)
    threads, slots = await qemu.layout()
    for _ in range(KILLS):
        command = [VISITOR, state, qemu.guest.symbols["store"], qemu.pid, threads]
        visitor = await asyncio.create_subprocess_exec(
            sys.executable,
            *(str(argument) for argument in command),
            msgspec.json.encode(slots),
            stdout=asyncio.subprocess.PIPE,
        )
        assert visitor.stdout is not None
        assert await visitor.stdout.readline() == b"ready\n"
        visitor.kill()
        await visitor.wait()
        await qemu.wait_traces(before)
        await qemu.wait_running()


async def test_one_at_a_time(qemu: Qemu) -> None:
    client = await qemu.attach()
    with pytest.raises(AttachError, match="another kvmdbg"):
        await qemu.attach()
    assert len(await client.vcpus()) > 0
    await client.detach()
    await (await qemu.attach()).detach()


async def test_a_preloaded_agent_that_nobody_can_reach_is_reached(
    guest: Guest, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        async with stock_qemu(guest, tmp_path, 2, listener) as qemu:
            before = Traces.of(qemu.pid)
            first = AgentClient(await AgentConnection.connect(path))
            with pytest.raises(AttachError, match="another kvmdbg"):
                await qemu.attach()
            first.close()
            path.unlink()
            for _ in range(3):
                client = await qemu.attach()
                await client.hold()
                await client.insert(Kind.HARDWARE, guest.symbols["loop"], 1)
                assert (await stop_at(client, guest.symbols["loop"])).vcpu == 0
                await client.detach()
                await qemu.wait_traces(before)
                await qemu.wait_running()


async def test_the_end_of_qemu_is_told(qemu: Qemu) -> None:
    client = await qemu.attach()
    qemu.process.send_signal(signal.SIGKILL)
    assert isinstance(await client.wait_lost(), VmGone)
    with pytest.raises(VmGone):
        await client.hold()
