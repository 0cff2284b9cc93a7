"""The client, talking to an agent in memory."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvmdbg.agent.client import AgentClient
from kvmdbg.agent.connection import AgentConnection
from kvmdbg.errors import (
    AgentError,
    AgentLost,
    AgentRefused,
    AgentTimeout,
    IoctlError,
    MemoryFault,
    VmGone,
)
from kvmdbg.kvm.ioctl import Ioctl, Scope, command
from kvmdbg.kvm.system import check_extension
from kvmdbg.kvm.x86.registers import get_regs
from kvmdbg.wire import messages as m
from kvmdbg.wire.messages import Adoption
from kvmdbg.wire.stream import Frame
from kvmdbg.wire.structs import (
    Action,
    ActionKind,
    Flags,
    IoctlHead,
    Kind,
    Slot,
    Space,
    StopKind,
    Type,
    Vcpu,
)
from kvmdbg.wire.structs import Scope as WireScope
from tests.support.fake_agent import FakeAgent

GET, RUN = "KVM_GET_ONE_REG", "KVM_RUN"


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent()


@pytest.fixture
async def client(agent: FakeAgent) -> AsyncIterator[AgentClient]:
    client = await agent.client()
    yield client
    client.close()
    await client.wait_lost()
    await agent.wait_end()


async def test_the_agent_says_who_it_is(client: AgentClient) -> None:
    assert (client.welcome.pid, client.welcome.vcpus) == (os.getpid(), 2)


async def test_every_message_has_a_method(agent: FakeAgent, client: AgentClient) -> None:
    adoption = Adoption(9, 4096, (Vcpu(0, 10, 100),), (Slot(0, 0, 0, 4096, 0x7F00_0000_0000),))
    await client.adopt(adoption)
    assert agent.adopted == adoption
    assert [vcpu.fd for vcpu in await client.vcpus()] == [10, 11]
    assert (await client.slots())[0].size == len(agent.memory)
    await client.write(Space.GVA, 0x100, b"guest")
    assert await client.read(Space.GPA, 0x100, 5) == b"guest"
    assert (await client.translate(0x2345)).gpa == 0x2345
    point = await client.insert(Kind.SOFTWARE, 0x100, 1)
    assert point.original.startswith(b"guest")
    assert await client.points() == (point,)
    await client.remove(point.id)
    await client.hold()
    assert agent.held
    assert (await client.clock()).shift == -7
    actions = (Action(0, ActionKind.STEP), Action(1))
    await client.resume(actions)
    assert agent.requests[-1] == (Type.RESUME, actions)
    assert {stop.kind for stop in await client.stops()} == {StopKind.RUNNING}
    assert len(await client.run_page(1)) == client.welcome.run_size
    await client.configure(Flags.NO_SKIP)
    assert agent.flags == Flags.NO_SKIP
    assert (await client.statistics()).exclusive == 7
    agent.ioctls[command("KVM_CHECK_EXTENSION", Scope.VM).number] = lambda v, a, p: (1, p)
    assert await client.call(check_extension("KVM_CAP_SET_GUEST_DEBUG")) == 1
    await client.detach()
    assert {type for type, _ in agent.requests} == set(Type) - {Type.DOORBELL}


# --- the stream ----------------------------------------------------------------------------------


async def test_requests_may_overlap(agent: FakeAgent, client: AgentClient) -> None:
    agent.memory[:256] = bytes(range(256))
    reads = [client.read(Space.GPA, at, 1) for at in range(256)]
    assert b"".join(await asyncio.gather(*reads)) == bytes(range(256))


async def test_memory_is_asked_for_in_pieces_that_fit() -> None:
    agent = FakeAgent(memory=(5 << 19) + 3)
    client = await agent.client()
    data = os.urandom(len(agent.memory))
    await client.write(Space.GPA, 0, data)
    assert agent.memory == data
    assert await client.read(Space.GPA, 0, len(data)) == data
    assert await client.read(Space.GPA, 1, len(data)) == data[1:], "cut at the end of memory"
    client.close()
    await agent.wait_end()


async def test_a_write_that_a_migration_would_lose_is_refused_in_words(
    agent: FakeAgent, client: AgentClient
) -> None:
    agent.logging = True
    with pytest.raises(AgentRefused, match="wait until the migration has ended"):
        await client.write(Space.GPA, 0, b"guest")


async def test_a_vcpu_whose_io_does_not_end_is_no_failure_of_kvm(
    agent: FakeAgent, client: AgentClient
) -> None:
    def busy(vcpu: int, argument: int, data: bytes) -> tuple[int, bytes]:
        raise OSError(errno.ETIMEDOUT, "busy")

    agent.ioctls[get_regs().number] = busy
    with pytest.raises(AgentRefused, match="QEMU is busy with what a vCPU"):
        await client.call(get_regs())


async def test_a_task_that_gives_up_disturbs_no_other(
    agent: FakeAgent, client: AgentClient
) -> None:
    given_up = asyncio.create_task(client.statistics())
    await asyncio.sleep(0)
    given_up.cancel()
    assert len(await client.vcpus()) == 2
    assert given_up.cancelled()


async def test_an_answer_that_comes_late_is_dropped(agent: FakeAgent) -> None:
    theirs, ours = socket.socketpair()
    agent.serve(*await asyncio.open_connection(sock=ours))
    connection = await AgentConnection.over(theirs, agent.pid)
    agent.silent = {Type.HOLD}
    with pytest.raises(AgentTimeout, match=r"HOLD within 0\.01 s"):
        await connection.ask(m.HOLD, None, timeout=0.01)
    agent.send(Frame(Type.HOLD, 2))
    vcpus = await connection.ask(m.VCPUS, None)
    assert len(vcpus) == 2
    connection.close()
    await agent.wait_end()


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Type.VCPUS, 77),
        Frame(Type.STOPS, 2),
        Frame(99, 2),
        Frame(Type.VCPUS, 2, b"no array"),
        Frame(Type.DOORBELL, 0),
    ],
)
async def test_nonsense_ends_the_connection(agent: FakeAgent, frame: Frame) -> None:
    client = await agent.client()
    agent.silent = {Type.VCPUS}
    request = asyncio.create_task(client.vcpus())
    await asyncio.sleep(0)
    agent.send(frame)
    with pytest.raises(AgentError, match="the agent in QEMU failed"):
        await request
    with pytest.raises(AgentError, match="the agent in QEMU failed"):
        await client.hold()
    await agent.wait_end()


# --- the doorbell --------------------------------------------------------------------------------


async def test_the_doorbell_tells_of_stops(agent: FakeAgent, client: AgentClient) -> None:
    rung = asyncio.Queue[int]()
    client.on_doorbell(rung.put_nowait)
    agent.stop(1, StopKind.HIT, point=3, pc=0x1000)
    agent.stop(0, StopKind.STEPPED)
    assert await rung.get() == 1
    stops = await client.stops()
    assert [(stop.kind, stop.sequence) for stop in stops] == [
        (StopKind.STEPPED, 2),
        (StopKind.HIT, 1),
    ]
    assert rung.empty(), "it rings once until somebody has asked"
    agent.stop(0, StopKind.STEPPED)
    assert await rung.get() == 3


async def test_a_ring_that_nobody_waited_for_is_kept(agent: FakeAgent, client: AgentClient) -> None:
    agent.stop(0, StopKind.HIT)
    await client.vcpus()
    rung: list[int] = []
    client.on_doorbell(rung.append)
    client.on_doorbell(rung.append)
    assert rung == [1]


# --- refusals ------------------------------------------------------------------------------------


async def test_memory_that_is_not_there_is_a_memory_fault(
    agent: FakeAgent, client: AgentClient
) -> None:
    end = len(agent.memory)
    with pytest.raises(MemoryFault, match="no memory at GVA 0x10000"):
        await client.read(Space.GVA, end, 1)
    with pytest.raises(MemoryFault, match="no memory at GPA 0xffff"):
        await client.write(Space.GPA, end - 1, b"12")
    with pytest.raises(MemoryFault):
        await client.translate(end)


async def test_a_refusal_is_a_sentence_and_an_errno(agent: FakeAgent, client: AgentClient) -> None:
    for register in range(4):
        point = await client.insert(Kind.HARDWARE, register, 1)
        assert point.debug_register == register
    with pytest.raises(AgentRefused, match="every debug register is taken") as refused:
        await client.insert(Kind.WATCH_WRITE, 64, 8)
    assert (refused.value.errno, refused.value.request) == (errno.ENOSPC, "INSERT")
    with pytest.raises(AgentRefused, match="none with that number"):
        await client.remove(77)


async def test_an_ioctl_that_fails_is_kvms_error(client: AgentClient) -> None:
    with pytest.raises(IoctlError, match="KVM_RUN on vCPU 1 failed") as failed:
        await client.call(command("KVM_RUN", Scope.VCPU), vcpu=1)
    assert (failed.value.errno, failed.value.vcpu) == (errno.ENOTTY, 1)


async def test_an_ioctl_s_pointee_follows_its_payload(
    agent: FakeAgent, client: AgentClient
) -> None:
    ioctl = Ioctl("KVM_RUN", Scope.VCPU, bytes(16), lambda result, data: data, pointee=b"1234")
    agent.ioctls[ioctl.number] = lambda vcpu, argument, payload: (0, payload[:-4] + b"abcd")
    assert await client.call(ioctl, vcpu=1) == b"abcd"
    _, (head, _) = agent.requests[-1]
    assert head == IoctlHead(WireScope.VCPU, 1, ioctl.number, 0, 20, 4)


# --- greeting and end ----------------------------------------------------------------------------


async def test_another_version_is_refused() -> None:
    agent = FakeAgent()
    agent.version = 99
    with pytest.raises(AgentError, match="version 99"):
        await agent.client()
    await agent.wait_end()


async def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"cannot be reached at .*No such file"):
        await AgentConnection.connect(tmp_path / "agent.sock")


async def test_an_agent_that_serves_another_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmdbg.agent.connection.CONNECT_TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        with pytest.raises(AgentTimeout, match="another kvmdbg is using it"):
            await AgentConnection.connect(tmp_path / "agent.sock")


async def test_a_hang_up_of_a_live_qemu_is_the_agents(agent: FakeAgent) -> None:
    client = await agent.client()
    agent.silent = {Type.HOLD}
    request = asyncio.create_task(client.hold())
    await asyncio.sleep(0)
    await agent.hang_up()
    with pytest.raises(AgentLost, match="the guest runs"):
        await request
    assert isinstance(await client.wait_lost(), AgentLost)
    with pytest.raises(AgentLost):
        await client.hold()


async def test_the_end_of_qemu_is_the_vms() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:  # noqa: ASYNC220
        agent = FakeAgent(pid=process.pid)
        client = await agent.client()
        agent.silent = {Type.HOLD}
        request = asyncio.create_task(client.hold())
        await asyncio.sleep(0)
        hung_up = asyncio.create_task(agent.hang_up())
        await asyncio.sleep(0.05)  # a dying process closes its sockets first
        process.kill()
        with pytest.raises(VmGone):
            await request
        assert isinstance(await client.wait_lost(), VmGone)
        await hung_up


async def test_what_was_closed_says_so(client: AgentClient) -> None:
    client.close()
    with pytest.raises(AgentLost, match="is closed"):
        await client.hold()
