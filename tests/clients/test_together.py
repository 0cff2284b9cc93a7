"""Two gdbs and an lldb on one VM that stops all the time.

``KVMDBG_SOAK=1`` (``make soak``) makes it a minute, and holds the longest wait to a second whatever
else the machine does.
"""

from __future__ import annotations

import asyncio
import os
import time
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

SOAK = "KVMDBG_SOAK" in os.environ
SECONDS = 60 if SOAK else 6
LONGEST_WAIT = 1.0

T = TypeVar("T")


@dataclass
class Waits:
    """How long requests took, seconds."""

    all: list[float] = field(default_factory=list)

    async def timed(self, request: Awaitable[T]) -> T:
        """The answer to ``request``."""
        start = time.monotonic()
        answer = await request
        self.all.append(time.monotonic() - start)
        return answer


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
        over = time.monotonic() + SECONDS
        while time.monotonic() < over:
            places = set(await asyncio.gather(*(next_hit(client, hits) for client in clients)))
            assert len(places) == 1, f"they say that the VM stopped at {places}"
            hits[places.pop()] += 1
            seen = await asyncio.gather(*(client.look() for client in clients))
            assert len(set(seen)) == 1, f"stack and memory as each sees them: {seen}"

    record_property("stops", sum(hits.values()))
    record_property("requests", len(waits.all))
    record_property("longest wait, s", round(max(waits.all), 3))
    print(f"{sum(hits.values())} stops, {len(waits.all)} requests, {max(waits.all):.3f} s at most")
    assert min(hits.values()) > 3, hits
    assert max(waits.all) < LONGEST_WAIT * (1 if SOAK else kvmdbg_vm.time_scale)
