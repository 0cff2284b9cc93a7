"""A server over a fake VM, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kvmdbg.addr import Gpa
from kvmdbg.server import RspServer
from kvmdbg.target.breakpoints import ClientId
from kvmdbg.target.events import Notice, VmEvent
from kvmdbg.target.memorymap import MemoryKind, MemoryRegion
from kvmdbg.target.runstate import VmRunState
from tests.support.fake_engine import RAM_SIZE, FakeVm
from tests.support.rsp_peer import RspPeer


class FakeHost:
    """The owner; records what it is told."""

    def __init__(self, vcpus: int = 2) -> None:
        self.fake = FakeVm(vcpus)
        self.vm = self.fake.facade()
        self.attached = False
        self.quit_on_kill = True
        self.symbol_file: Path | None = None
        self.joined: list[ClientId] = []
        self.left: list[tuple[ClientId, bool]] = []
        self._changed = asyncio.Event()
        self.notices: list[str] = []
        self.vm.subscribe(self._on_event)
        self.fake.run_control.subscribe(lambda event: self._changed.set())

    def _on_event(self, event: VmEvent) -> None:
        if isinstance(event, Notice):
            self.notices.append(event.text)
        self._changed.set()

    @property
    def clients(self) -> dict[ClientId, int]:
        gone = {client for client, _ in self.left}
        return {client: 4711 for client in self.joined if client not in gone}

    async def memory_map(self) -> list[MemoryRegion]:
        return [
            MemoryRegion(MemoryKind.RAM, Gpa(0), RAM_SIZE),
            MemoryRegion(MemoryKind.ROM, Gpa(0xFFFC0000), 0x40000),
        ]

    async def kill(self) -> None:
        if self.quit_on_kill:
            await self.vm.quit()

    def client_joined(self, client: ClientId, pid: int) -> None:
        self.joined.append(client)

    def client_left(self, client: ClientId, *, orderly: bool) -> None:
        self.left.append((client, orderly))
        self._changed.set()

    async def wait_left(self, count: int = 1) -> None:
        await self._wait(lambda: len(self.left) >= count)

    async def wait_running(self) -> None:
        await self._wait(lambda: self.fake.run_control.state is VmRunState.RUNNING)

    async def wait_notice(self, words: str) -> None:
        await self._wait(lambda: any(words in notice for notice in self.notices))

    async def _wait(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def host() -> AsyncIterator[FakeHost]:
    host = FakeHost()
    yield host
    await host.vm.quit()


@pytest.fixture
async def server(host: FakeHost) -> AsyncIterator[RspServer]:
    server = RspServer(host)
    yield server
    await server.close()


@pytest.fixture
async def path(server: RspServer, tmp_path: Path) -> Path:
    await server.listen(f"unix:{tmp_path / 'gdb.sock'}")
    return tmp_path / "gdb.sock"


@pytest.fixture
async def peer(path: Path) -> AsyncIterator[RspPeer]:
    peer = await RspPeer.unix(path)
    yield peer
    await peer.close()


@pytest.fixture
async def gdb(peer: RspPeer) -> RspPeer:
    """A peer that has negotiated what gdb negotiates."""
    return await as_gdb(peer)


async def as_gdb(peer: RspPeer) -> RspPeer:
    """Negotiate what gdb does."""
    features = b"multiprocess+;swbreak+;hwbreak+;error-message+;xmlRegisters=i386"
    await peer.ask(b"qSupported:" + features)
    await peer.no_acks()
    await peer.ask(b"qXfer:features:read:target.xml:0,1000")
    return peer
