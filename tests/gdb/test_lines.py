"""gdb over a pseudo-terminal, which tells that it went, and over a serial line, which does not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvmdbg import Vm
from tests.support import command, demo, vms
from tests.support.gdb import Gdb, start_gdb

pytestmark = [pytest.mark.gdb, pytest.mark.kvmdbg(run=True)]


async def hit(gdb: Gdb, function: str) -> None:
    await gdb.cli("set breakpoint always-inserted on")
    await gdb.cli(f"break *{function}")
    assert (await gdb.cont())["reason"] == "breakpoint-hit"
    assert await gdb.value("$pc") == await gdb.value(f"(long) &{function}")


async def assert_a_gdb_killed_is_followed_by_another(vm: Vm, line: str) -> None:
    await demo.booted(vm)
    symbols = demo.artefact("workload")
    async with start_gdb(symbols, line) as gdb:
        await hit(gdb, "workload_compute")
        gdb.kill()
        async with start_gdb(symbols, line) as second:
            # Its breakpoint would show, and it is not there for the second.
            assert "cc" not in await second.cli("x/1xb workload_compute")
            assert "workload_compute" not in await second.cli("monitor breakpoints")
            await hit(second, "workload_increment")
            await second.cli("detach")
    assert await vms.run_state(vm.status) == "running"


async def test_a_pseudo_terminal(kvmdbg_vm: Vm, tmp_path: Path) -> None:
    line = tmp_path / "line"
    async with command.foreground("--vm", kvmdbg_vm.name, "--listen", f"pty:{line}") as serving:
        await serving.wait_line(f"serving gdb on pty:{line}")
        await assert_a_gdb_killed_is_followed_by_another(kvmdbg_vm, str(line))
        await kvmdbg_vm.wait_notice("gdb-1 went away without detaching")
        await kvmdbg_vm.wait_notice("gdb-2 detached")


@asynccontextmanager
async def null_modem() -> AsyncIterator[tuple[str, str]]:
    """Two terminals; what goes into one comes out of the other. Neither ever hangs up."""
    ends, devices = zip(*(os.openpty() for _ in range(2)), strict=True)
    loop = asyncio.get_running_loop()

    def carry(here: int, there: int) -> None:
        os.write(there, os.read(here, 4096))

    loop.add_reader(ends[0], carry, *ends)
    loop.add_reader(ends[1], carry, *reversed(ends))
    try:
        yield os.ttyname(devices[0]), os.ttyname(devices[1])
    finally:
        for fd in ends:
            loop.remove_reader(fd)
        for fd in (*ends, *devices):
            os.close(fd)


async def test_a_serial_line(kvmdbg_vm: Vm) -> None:
    async with null_modem() as (ours, gdbs):
        listen = ("--listen", f"serial:{ours},115200")
        async with command.foreground("--vm", kvmdbg_vm.name, *listen) as serving:
            await serving.wait_line(f"serving gdb on serial:{ours},115200")
            await assert_a_gdb_killed_is_followed_by_another(kvmdbg_vm, gdbs)
            await kvmdbg_vm.wait_notice("gdb-1 went away without detaching")
            await kvmdbg_vm.wait_notice("gdb-2 detached")
