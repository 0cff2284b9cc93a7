"""Control protocol: a real client and server on a socket, an in-memory VM behind them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import (
    Busy,
    MemoryFault,
    OwnerError,
    RemoteProtocolError,
    VmGone,
    VmRunning,
)
from kvmdbg.owner import protocol as p
from kvmdbg.owner.client import OWNER_ENDED, OwnerClient
from kvmdbg.owner.control import ControlServer
from kvmdbg.owner.lifetime import End, Lifetime
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.events import Gone, Notice, Resumed, Stopped, VmEvent
from kvmdbg.target.stops import BreakpointHit, Frozen, ResumePlan, Stepped, Stop
from tests.support.fake_engine import CODE, DATA, FakeVm

CPU = VcpuIndex(0)
BREAKPOINT = BreakpointSpec(BreakpointKind.SOFTWARE, Gva(CODE + 5), 1)


class FakeHost:
    """An owner without a machine."""

    def __init__(self, pid: int = 1) -> None:
        self.pid = pid
        self.fake = FakeVm(vcpus=2)
        self.vm = self.fake.facade()
        self.lifetime = Lifetime(booted=True, keep=False, orphan_timeout=0)
        self.quits = 0

    def status(self) -> p.VmStatus:
        return p.VmStatus(
            name="fake",
            pid=self.pid,
            arch="x86_64",
            accel="tcg",
            engine="fake",
            booted=True,
            run_state=self.vm.run_state.value,
            stop=self.vm.stop,
            vcpus=2,
            keep=False,
            gdb_socket="/nowhere",
            console_socket=None,
            console_log=None,
            vmlinux=None,
            clients=self.lifetime.clients,
            listening=(),
        )

    async def listen(self, address: str) -> str:
        return address

    async def quit(self) -> None:
        self.quits += 1


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[FakeHost]:
    host = FakeHost()
    server = ControlServer(host)
    await server.open(tmp_path / "c")
    yield host
    await server.close()


@pytest.fixture
async def client(host: FakeHost, tmp_path: Path) -> AsyncIterator[OwnerClient]:
    client = await OwnerClient.connect(tmp_path / "c", kind="test")
    yield client
    await client.close()


class Events:
    """A client's events, to wait for."""

    def __init__(self, client: OwnerClient) -> None:
        self._queue: asyncio.Queue[VmEvent] = asyncio.Queue()
        client.subscribe(self._queue.put_nowait)

    async def next(self) -> VmEvent:
        return await asyncio.wait_for(self._queue.get(), 5)


async def test_the_socket_is_for_its_user_alone(host: FakeHost, tmp_path: Path) -> None:
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600


async def test_every_capability_is_reached(client: OwnerClient, host: FakeHost) -> None:
    status = await client.status()
    assert status.stop == Stop(CPU, Frozen())
    assert [info.id for info in status.clients] == [client.id] == ["test-1"]
    await client.call(p.WriteMemory(CPU, DATA, b"\x00\xffdata"))
    assert await client.call(p.ReadMemory(CPU, DATA, 6)) == b"\x00\xffdata"
    await client.call(p.WriteRegisters(VcpuIndex(1), {0: (77).to_bytes(8, "little")}))
    assert await client.call(p.ReadRegister(VcpuIndex(1), 0)) == (77).to_bytes(8, "little")
    block = await client.call(p.ReadBlock(VcpuIndex(1)))
    assert block[0] == (77).to_bytes(8, "little")
    with pytest.raises(MemoryFault):
        await client.call(p.ReadMemory(CPU, Gva(0), 1))
    await client.call(p.Quit())
    assert host.quits == 1


async def test_a_hit_is_pushed_and_the_vm_stays_the_clients(
    client: OwnerClient, host: FakeHost
) -> None:
    await client.call(p.Follow())
    events = Events(client)
    await client.call(p.InsertBreakpoint(BREAKPOINT))
    await client.call(p.Resume())
    hit = Stop(CPU, BreakpointHit(BreakpointKind.SOFTWARE, BREAKPOINT.address))
    assert [await events.next(), await events.next()] == [Resumed(), Stopped(hit)]
    assert client.id in host.vm.clients.holders


async def test_a_plan_travels(client: OwnerClient) -> None:
    await client.call(p.Follow())
    events = Events(client)
    await client.call(p.Resume(ResumePlan.step(VcpuIndex(1))))
    assert [await events.next(), await events.next()] == [
        Resumed(),
        Stopped(Stop(VcpuIndex(1), Stepped())),
    ]


async def test_who_does_not_follow_is_told_notices_only(
    client: OwnerClient, host: FakeHost
) -> None:
    events = Events(client)
    await client.call(p.Resume(ResumePlan.step(CPU)))
    await client.call(p.Pause())
    host.vm.notice("news")
    assert await events.next() == Notice("news")


async def test_errors_arrive_as_what_they_were(client: OwnerClient) -> None:
    await client.call(p.Resume())
    with pytest.raises(VmRunning, match="stop it first"):
        await client.call(p.ReadMemory(CPU, DATA, 1))


async def test_a_driver_keeps_the_wheel(client: OwnerClient, host: FakeHost) -> None:
    host.vm.clients.drive("gdb-9")
    with pytest.raises(Busy, match="driven by gdb-9"):
        await client.call(p.Resume())
    await host.vm.release("gdb-9", resume=False)
    await client.call(p.Resume())


@pytest.mark.parametrize("orderly", [True, False])
async def test_leaving_takes_breakpoints_and_holds_along(
    client: OwnerClient, host: FakeHost, orderly: bool
) -> None:
    await client.call(p.InsertBreakpoint(BreakpointSpec(BreakpointKind.SOFTWARE, Gva(9), 1)))
    await client.call(p.Resume())
    await client.call(p.Pause())
    assert host.vm.clients.holders
    await (client.bye() if orderly else client.close())
    async with asyncio.timeout(5):
        while host.lifetime.clients:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not host.vm.breakpoints.inserted
    assert not host.vm.clients.holders
    assert host.vm.stop is None, "the guest runs on"


async def test_a_vm_that_was_found_stopped_stays_so(client: OwnerClient, host: FakeHost) -> None:
    await client.call(p.Pause())
    await client.bye()
    async with asyncio.timeout(5):
        while host.lifetime.clients:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert host.vm.stop == Stop(CPU, Frozen())


async def test_the_end_of_the_vm_reaches_calls_under_way(
    client: OwnerClient, host: FakeHost
) -> None:
    events = Events(client)
    host.fake.run_control.die("QEMU was killed by signal 9 (SIGKILL)", 9)
    assert await events.next() == Gone("QEMU was killed by signal 9 (SIGKILL)", 9)
    with pytest.raises(VmGone, match="signal 9"):
        await client.call(p.Pause())


@pytest.mark.parametrize("lives", [True, False])
async def test_an_owner_that_vanishes_is_told_apart(tmp_path: Path, lives: bool) -> None:
    qemu = await asyncio.create_subprocess_exec("sleep", "60")
    server = ControlServer(FakeHost(qemu.pid))
    await server.open(tmp_path / "d")
    client = await OwnerClient.connect(tmp_path / "d", kind="test")
    assert (await client.status()).pid == qemu.pid
    events = Events(client)
    if not lives:
        qemu.kill()
        await qemu.wait()
    await server.close()
    assert await events.next() == Gone(OWNER_ENDED, lives=lives)
    if lives:
        qemu.kill()
        await qemu.wait()
    expected = OwnerError if lives else VmGone
    with pytest.raises(expected, match="runs on, but the proc" if lives else "has ended: the proc"):
        await client.call(p.Status())
    await client.close()


async def test_a_wrong_request_is_refused_and_no_more(client: OwnerClient) -> None:
    wrong: Any = "no bytes"
    with pytest.raises(RemoteProtocolError, match=r"wrong: .* at `\$\.request\.data`"):
        await client.call(p.WriteMemory(CPU, DATA, wrong))
    await client.call(p.WriteMemory(CPU, DATA, b"bytes"))


async def test_one_who_has_left_is_told_so(client: OwnerClient) -> None:
    events = Events(client)
    await client.bye()
    with pytest.raises(OwnerError, match="has left"):
        await client.status()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(events.next(), 0.1)


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OwnerError, match="does not answer"):
        await OwnerClient.connect(tmp_path / "none", kind="test")


async def test_an_owner_that_is_about_to_end_takes_nobody(host: FakeHost, tmp_path: Path) -> None:
    host.lifetime.end(End.QUIT)
    with pytest.raises(OwnerError, match="about to end"):
        await OwnerClient.connect(tmp_path / "c", kind="test")
    assert not host.lifetime.clients


async def test_an_owner_that_ends_at_the_greeting_did_not_answer(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(hang_up, tmp_path / "e"):
        with pytest.raises(OwnerError, match="ended just now"):
            await OwnerClient.connect(tmp_path / "e", kind="test")


async def test_another_version_is_refused_in_words(host: FakeHost, tmp_path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(tmp_path / "c")
    hello = p.Call(1, p.Hello(p.VERSION + 1, p.Role.USER, "old"))
    writer.write(p.encode(hello))
    answer = p.decode_message(await reader.readline())
    assert isinstance(answer, p.Answer)
    assert answer.failure is not None
    assert "speaks control protocol" in answer.failure.text
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b'{"id":1}\n',
        b'{"id":1,"request":{"type":"Nonsense"}}\n',
        b'{"id":1,"request":{"type":"Status"}}\n',
    ],
)
async def test_nonsense_drops_the_client_and_nothing_else(
    host: FakeHost, client: OwnerClient, tmp_path: Path, line: bytes
) -> None:
    reader, writer = await asyncio.open_unix_connection(tmp_path / "c")
    writer.write(line)
    assert await reader.read() == b""
    writer.close()
    assert (await client.status()).name == "fake"


async def test_notices_are_pushed(client: OwnerClient, host: FakeHost) -> None:
    events = Events(client)
    host.vm.notice("mind the gap")
    assert await events.next() == Notice("mind the gap")


def test_messages_are_one_line_of_json() -> None:
    call = p.Call(3, p.WriteMemory(CPU, DATA, b"\n\x00"))
    line = p.encode(call)
    assert line.count(b"\n") == 1
    assert json.loads(line)["request"]["type"] == "WriteMemory"
    assert p.decode_call(line) == call
