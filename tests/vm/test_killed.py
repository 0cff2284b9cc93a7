"""kill -9 to kvmdbg, over and over, while it debugs a VM under KVM; ``KVMDBG_SOAK=1``: more often.

Skipped where no guest runs under the host's KVM. A KVM that has no int3 of ring 0 has breakpoints
in debug registers, where guest text stays as it is in any case: the lab's has (``make lab-test``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

import kvmdbg
from kvmdbg import Vm
from kvmdbg.addr import Gva
from kvmdbg.backend.agent import Abilities
from kvmdbg.errors import OwnerError
from kvmdbg.qmp import QmpConnection
from tests.agent.qemu import Traces
from tests.contract.conftest import kvm_abilities
from tests.contract.guest import Guest, build
from tests.contract.platforms import PLATFORMS
from tests.support import vms, zygote
from tests.vm.bare import SECONDS, foreign_qemu, needs_qemu, private_runtime, wait_listening

KILLS = int(os.environ.get("KVMDBG_KILLS", "300" if "KVMDBG_SOAK" in os.environ else "10"))

pytestmark = [pytest.mark.vm, needs_qemu, pytest.mark.timeout(60 * KILLS)]


class Victim:
    """A QEMU that kvmdbg did not start, and what must be as it was."""

    def __init__(self, pid: int, qmp: QmpConnection, guest: Guest) -> None:
        self.pid = pid
        self._qmp = qmp
        self._guest = guest
        self._before: tuple[str, Traces] | None = None

    async def _hmp(self, line: str) -> str:
        answer = await self._qmp.execute("human-monitor-command", {"command-line": line})
        return str(answer)

    async def _ticks(self) -> str:
        gpa = self._guest.platform.gpa(self._guest.symbols["ticks"])
        return await self._hmp(f"xp /1gx {gpa:#x}")

    async def _code(self) -> str:
        symbols = self._guest.symbols
        gpa = self._guest.platform.gpa(symbols["image"])
        return await self._hmp(f"xp /{symbols['gdt'] - symbols['image']}bx {gpa:#x}")

    async def remember(self) -> None:
        """Before anybody came."""
        await self._wait(self._is_running)
        # QEMU may be about to see that who looked whether it listens has hung up.
        await self._wait(self._is_quiet)
        self._before = await self._code(), Traces.of(self.pid)

    async def wait_patched(self, where: Gva) -> None:
        """Wait until an int3 is in its text."""
        look = f"xp /1bx {self._guest.platform.gpa(where):#x}"

        async def is_patched() -> bool:
            return (await self._hmp(look)).split()[-1] == "0xcc"

        await self._wait(is_patched)

    async def check(self) -> None:
        """Wait until it is as before."""
        try:
            await self._wait(self._is_running)
        except TimeoutError:
            pytest.fail(f"the VM does not run on: {await self._describe()}")
        with contextlib.suppress(TimeoutError):
            await self._wait(self._is_as_before)
        assert self._before is not None
        code, traces = self._before
        now = Traces.of(self.pid)
        assert set(now.descriptors.items()) ^ set(traces.descriptors.items()) == set()
        assert now.threads == traces.threads
        assert await self._code() == code

    async def _describe(self) -> str:
        """Where it is stuck."""
        status = await self._qmp.execute("query-status")
        registers = await self._hmp("info registers -a")
        places = re.findall(r"RIP=(\w+)|(HLT=\d)", registers)
        return f"{status}, {places}, {await self._ticks()}, {Traces.of(self.pid)}"

    async def _is_running(self) -> bool:
        before = await self._ticks()
        await asyncio.sleep(0.01)
        return (await self._qmp.execute("query-status"))["status"] == "running" and (
            await self._ticks() != before
        )

    async def _is_quiet(self) -> bool:
        before = Traces.of(self.pid)
        await asyncio.sleep(0.3)
        return Traces.of(self.pid) == before

    async def _is_as_before(self) -> bool:
        return (await self._code(), Traces.of(self.pid)) == self._before

    async def _wait(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(SECONDS):
            while not await condition():  # noqa: ASYNC110 (other processes' doing)
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def found() -> Abilities:
    return kvm_abilities()


@pytest.fixture(scope="module")
def guest(found: Abilities, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    return build(PLATFORMS[0], tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="module", autouse=True)
def owners(found: Abilities) -> Iterator[None]:
    """They are many, and forked."""
    with private_runtime() as runtime, zygote.forking(runtime.path):
        yield


@pytest.fixture
async def victim(guest: Guest, tmp_path: Path) -> AsyncIterator[Victim]:
    ours, free = tmp_path / "q", tmp_path / "f"
    monitors = [f"unix:{path},server=on,wait=off" for path in (ours, free)]
    arguments = ["-bios", str(guest.firmware), "-cpu", "qemu64,-cx16", "-smp", "2"]
    async with foreign_qemu(
        *arguments, "-qmp", monitors[0], "-qmp", monitors[1], accel="kvm"
    ) as qemu:
        await wait_listening(free)
        qmp = await QmpConnection.connect(ours)
        victim = Victim(qemu.pid, qmp, guest)
        for cpu in await qmp.execute("query-cpus-fast"):
            # They are always busy, and the lab has one CPU for them and kvmdbg.
            os.setpriority(os.PRIO_PROCESS, cpu["thread-id"], 19)
        await victim.remember()
        yield victim
        await qmp.close()


async def hit(vm: Vm) -> None:
    """Run to a breakpoint."""
    await vm.resume()
    await vm.wait_stop(SECONDS)


async def stay(vm: Vm) -> None:
    """It stays as it is."""
    await vm.wait_gone(SECONDS)


async def run(vm: Vm) -> None:
    """A breakpoint is hit all the time."""
    while True:
        await hit(vm)


async def step(vm: Vm) -> None:
    """A vCPU is stepped all the time, over a breakpoint too."""
    while True:
        await vm.step(timeout=SECONDS)


BUSY = {"hot": (hit, run), "parked": (hit, stay), "stepping": (hit, step), "stopped": (None, stay)}
"""By what goes on when it is killed: what was done to the VM, which QMP had stopped with a
breakpoint armed, and what is being done."""


@pytest.mark.parametrize("busy", BUSY)
async def test_a_killed_kvmdbg_leaves_the_vm_as_it_was(
    victim: Victim, found: Abilities, guest: Guest, busy: str
) -> None:
    before, meanwhile = BUSY[busy]
    for _ in range(KILLS):
        async with kvmdbg.open(f"pid:{victim.pid}", engine="agent") as vm:
            await vm.pause()
            await vm.breakpoint(guest.symbols["store"])
            if before is not None:
                await before(vm)
            doing = asyncio.create_task(meanwhile(vm))
            await asyncio.wait([doing], timeout=0.1 + random.random() / 10)
            if found.kernel_int3:
                await victim.wait_patched(guest.symbols["store"])
            assert not doing.done(), doing
            await vms.kill_owner(vm.status)
            with pytest.raises(OwnerError, match="the process that served it ended"):
                await doing
        await victim.check()
