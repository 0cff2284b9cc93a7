"""Two gdbs and an lldb on one VM that stops all the time, and a client that runs no debugger.

For a minute, with nobody waiting for an answer longer than a second whatever else the machine does.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Container
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import pytest

from kvmdbg import Vm
from tests.support import demo
from tests.support.gdb import GDB_18, Gdb, start_gdb
from tests.support.lldb import LLDB_23, Lldb, start_lldb

pytestmark = [pytest.mark.gdb, pytest.mark.lldb]

SECONDS = 60
LONGEST_WAIT = 1.0
INTERRUPTS = 20

T = TypeVar("T")


@dataclass
class Waits:
    """How long requests took, seconds, by what they were."""

    all: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    async def timed(self, request: Awaitable[T], what: str = "looking") -> T:
        """The answer to ``request``."""
        start = time.monotonic()
        answer = await request
        self.all[what].append(time.monotonic() - start)
        return answer

    def longest(self) -> dict[str, float]:
        """The longest of each kind."""
        return {what: round(max(found), 3) for what, found in self.all.items()}


class Debugger(Protocol):
    """What the test wants of each."""

    async def next_stop(self) -> int:
        """Continue; where the VM stops, or for one that looks: where it did."""
        ...

    async def look(self) -> tuple[int, int]:
        """The stack pointer, and the workload's counter in memory."""
        ...


@dataclass
class GdbClient:
    gdb: Gdb
    waits: Waits

    async def next_stop(self) -> int:
        return int((await self.gdb.cont())["frame"]["addr"], 0)

    async def look(self) -> tuple[int, int]:
        await self.waits.timed(self.gdb.cli("maintenance flush register-cache"))
        await self.waits.timed(self.gdb.cli("info threads"))
        stack = await self.waits.timed(self.gdb.value("$rsp"))
        counter = f"-data-read-memory-bytes {demo.kernel()['jiffies_64']} 8"
        (block,) = (await self.waits.timed(self.gdb.mi(counter)))["memory"]
        return stack, int.from_bytes(bytes.fromhex(block["contents"]), "little")


@dataclass
class LldbClient:
    lldb: Lldb
    waits: Waits

    async def next_stop(self) -> int:
        return (await self.lldb.run("continue")).pc

    async def look(self) -> tuple[int, int]:
        await self.waits.timed(self.lldb.cli("thread list"))
        stack = await self.waits.timed(self.lldb.register("rsp"))
        counter = f"memory read -f u -s 8 -c 1 {demo.kernel()['jiffies_64']}"
        return stack, int((await self.waits.timed(self.lldb.cli(counter))).split()[-1])


async def next_hit(client: Debugger, places: Container[int]) -> int:
    """Where the VM stops next for a breakpoint: on a busy machine the step with which the driver
    leaves its own may take so long that the others are shown it."""
    while (pc := await client.next_stop()) not in places:
        pass
    return pc


async def meanwhile(vm: Vm, waits: Waits) -> None:
    """Ask, and set a breakpoint that nobody comes to, whatever the VM does."""
    never = demo.kernel()["panic"]
    while True:
        running = vm.stopped is None
        when = "while it runs" if running else "while it is stopped"
        await waits.timed(vm.monitor("info status"), f"monitor {when}")
        bp = await waits.timed(vm.breakpoint(never), f"breakpoint {when}")
        await waits.timed(bp.remove(), f"removal {when}")
        await asyncio.sleep(0.05)


async def interrupted(driver: Gdb) -> None:
    """Ctrl-C, until the prompt is there."""
    driver.stops.clear()
    driver.interrupt()
    await driver.wait_stopped()


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.kvmdbg(run=True, cpus=2)
async def test_all_see_the_same_stops(
    kvmdbg_vm: Vm, record_property: Callable[[str, object], None]
) -> None:
    await demo.booted(kvmdbg_vm)
    waits = Waits()
    openat, getpid = demo.kernel()["do_sys_openat2"], demo.kernel()["__x64_sys_getpid"]
    compute = demo.workload()["workload_compute"]
    program = demo.artefact("vmlinux")
    target = kvmdbg_vm.status.gdb_socket
    async with AsyncExitStack() as stack:
        driver = await stack.enter_async_context(start_gdb(program, target))
        looker = await stack.enter_async_context(start_gdb(program, target, GDB_18))
        lldb = await stack.enter_async_context(start_lldb(LLDB_23, program))
        await lldb.run(f"process connect unix-connect://{target}")
        # Each has a breakpoint of its own.
        await driver.cli(f"break *{openat:#x}")
        await looker.cli(f"break *{compute:#x}")
        await lldb.cli(f"breakpoint set --address {getpid:#x}")
        clients: list[Debugger] = [
            GdbClient(driver, waits), GdbClient(looker, waits), LldbClient(lldb, waits),
        ]  # fmt: skip

        hits: dict[int, int] = dict.fromkeys((openat, compute, getpid), 0)
        other = asyncio.create_task(meanwhile(kvmdbg_vm, waits))
        over = time.monotonic() + SECONDS
        while time.monotonic() < over:
            places = set(await asyncio.gather(*(next_hit(client, hits) for client in clients)))
            assert len(places) == 1, f"they say that the VM stopped at {places}"
            hits[places.pop()] += 1
            seen = await asyncio.gather(*(client.look() for client in clients))
            assert len(set(seen)) == 1, f"stack and memory as each sees them: {seen}"
        assert not other.done(), other
        other.cancel()

        await driver.cli("delete")
        await looker.cli("delete")
        await lldb.cli("breakpoint delete --force")
        for _ in range(INTERRUPTS):
            await driver.mi("-exec-continue")
            await asyncio.sleep(0.05)
            await waits.timed(interrupted(driver), "Ctrl-C")

    longest, requests = waits.longest(), sum(map(len, waits.all.values()))
    record_property("stops", sum(hits.values()))
    record_property("requests", requests)
    record_property("longest waits, s", longest)
    print(f"{sum(hits.values())} stops, {requests} requests, at most (s): {longest}")
    assert min(hits.values()) > 30, hits
    assert max(longest.values()) < LONGEST_WAIT
