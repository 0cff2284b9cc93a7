"""Several gdbs on one VM: one drives, others look."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kvmdbg import Vm
from tests.support import demo, vms
from tests.support.gdb import GDB_18, Gdb, GdbError, start_gdb
from tests.support.rsp_peer import RspPeer

pytestmark = [pytest.mark.gdb, pytest.mark.kvmdbg(run=True)]

LONGEST_WAIT = 1.0
"""Seconds that a request may take while others keep the VM busy."""


@pytest_asyncio.fixture
async def looker(kvmdbg_vm: Vm, booted_gdb: Gdb) -> AsyncIterator[Gdb]:
    """A second gdb, and a newer one; the first, which drives, is ``booted_gdb``."""
    target = kvmdbg_vm.status.gdb_socket
    async with start_gdb(demo.artefact("vmlinux"), target, GDB_18) as gdb:
        await gdb.cli(f"add-symbol-file {demo.artefact('workload')}")
        yield gdb


async def test_one_drives_and_one_looks(kvmdbg_vm: Vm, booted_gdb: Gdb, looker: Gdb) -> None:
    driver = booted_gdb
    assert await looker.value("$pc") == await driver.value("$pc")
    said = await looker.cli("monitor clients")
    assert "gdb-1" in said.split("drives")[0]
    with pytest.raises(GdbError, match="is driven by gdb-1"):
        await looker.cli("set $rax = 1")
    looker.stops.clear()
    await looker.mi("-exec-step-instruction")
    assert (await looker.wait_stopped())["frame"]["addr"] == hex(await driver.value("$pc"))

    # Each stops at breakpoints of its own, and is told of the other's.
    await looker.cli("break *do_sys_openat2")
    await looker.mi("-exec-continue")
    await looker.wait_console("gdb-1 drives the VM: waiting for its next stop")
    looker.stops.clear()
    assert (await driver.cont())["signal-name"] == "SIGTRAP"
    assert "of gdb-2, was hit" in "".join(driver.console)
    assert (await looker.wait_stopped())["reason"] == "breakpoint-hit"
    assert await driver.value("$pc") == demo.kernel()["do_sys_openat2"]

    # gdb goes on from its own breakpoint by a step, which is not its to make.
    await looker.mi("-exec-continue")
    await driver.cli("break *workload_compute")
    stops: list[dict[str, Any]] = []
    while not stops or stops[-1]["reason"] != "breakpoint-hit":
        stops.append(await driver.cont())
        assert (await looker.wait_stopped())["reason"] in ("breakpoint-hit", "signal-received")
        await looker.mi("-exec-continue")
    assert await driver.value("$pc") == demo.workload()["workload_compute"]


async def test_hand_over_and_leaving(kvmdbg_vm: Vm, booted_gdb: Gdb, looker: Gdb) -> None:
    driver = booted_gdb
    await driver.mi("-exec-continue")
    # gdb says so before it does it: who comes in between has nothing to stop.
    await vms.wait_state(kvmdbg_vm.status, "running")
    await looker.cli("monitor drive")
    assert (await driver.wait_stopped())["signal-name"] == "SIGINT"
    await driver.wait_console("gdb-2 drives the VM now")
    await looker.cli("maintenance flush register-cache")
    assert await looker.value("$pc") == await kvmdbg_vm.register("rip")
    await looker.stepi()
    # The first one quits without killing the VM under the second.
    driver.interrupt()
    await driver.cli("monitor clients")
    await driver.mi("-target-detach")
    assert (await looker.stepi())["reason"] == "end-stepping-range"
    await looker.cli("detach")
    await vms.wait_state(kvmdbg_vm.status, "running")


async def test_what_pwndbg_and_gef_ask_qemu(kvmdbg_vm: Vm, booted_gdb: Gdb, tmp_path: Path) -> None:
    gdb = booted_gdb
    await gdb.cli("hbreak *do_sys_openat2")
    await gdb.cont()
    for command, expected in (
        ("info mtree -f", "pc.bios"),
        ("info tlb", ": 0000"),
        ("info registers", "RIP=ffffffff"),
        ("info version", "."),
        ("info kvm", "kvm support: "),
        ("info cpus", "CPU #0"),
        ("gpa2hva 0x100000", "Host virtual address for 0x100000 (pc.ram) is 0x"),
        ("xp/2gx 0x100000", "0000000000100000: 0x"),
        ("gva2gpa 0xffffffff81000000", "gpa: 0x"),
        ('qmp {"execute": "query-status"}', '"running": false'),
        ("qmp query-cpus-fast", '"thread-id"'),
        ("help", "monitor drive"),
        ("help xp", "physical"),
    ):
        assert expected in await gdb.cli(f"monitor {command}"), command
    # pwndbg looks for the process that has a file of its own open.
    file = tmp_path / "file"
    await gdb.cli(f"monitor chardev-add file,id=pwndbg-pt-dump,path={file}")
    assert file.exists()
    await gdb.cli("monitor chardev-remove pwndbg-pt-dump")
    assert "pwndbg-pt-dump" not in await gdb.cli("monitor info chardev")
    assert "is busy" in await gdb.cli("monitor chardev-remove control")
    with pytest.raises(GdbError):
        await gdb.cli("monitor info mem")
    assert "with 5-level paging QEMU takes minutes" in "".join(gdb.console)
    # A watchpoint that gdb knows nothing of: in this form it takes no debug register of gdb's.
    counter = demo.workload()["workload_iterations"]
    await gdb.cli("delete")
    await gdb.cli(f"monitor watch {counter:#x} 8 w")
    assert (await gdb.cont())["signal-name"] == "SIGTRAP"
    assert f"write watchpoint at {counter:#x}, length 8, of gdb-1/monitor, was hit" in "".join(
        gdb.console
    )
    assert "gdb-1/monitor" in await gdb.cli("monitor breakpoints")
    await gdb.cli(f"monitor unwatch {counter:#x}")
    # The same under a condition: the guest counts by one.
    before = await gdb.value(f"*(long *){counter:#x}")
    await gdb.cli(f"monitor watch {counter:#x} 8 w if value % 8 == {(before + 7) % 8}")
    assert (await gdb.cont())["signal-name"] == "SIGTRAP"
    assert await gdb.value(f"*(long *){counter:#x}") == before + 7
    assert f"if value % 8 == {(before + 7) % 8}" in await gdb.cli("monitor breakpoints")
    await gdb.cli(f"monitor unwatch {counter:#x}")


@pytest.mark.kvmdbg(cpus=2)
async def test_monitor_is_about_the_vcpu_of_the_thread(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    await booted_gdb.cli("thread 2")
    assert "CPU#1" in await booted_gdb.cli("monitor info registers")


async def test_nobody_waits_for_the_others(kvmdbg_vm: Vm, booted_gdb: Gdb, looker: Gdb) -> None:
    """Under breakpoint load, beside a client that never reads what it asks for."""
    driver = booted_gdb
    await driver.cli("break *do_sys_openat2")
    await looker.cli("break *workload_compute")
    stuck = await RspPeer.unix(Path(kvmdbg_vm.status.gdb_socket))
    waits: list[float] = []
    over = time.monotonic() + 5

    async def look() -> None:
        while time.monotonic() < over:
            start = time.monotonic()
            with suppress(GdbError):  # the driver may have gone on
                await looker.cli("info threads")
            waits.append(time.monotonic() - start)
            await looker.cont()

    looking = asyncio.create_task(look())
    hits = 0
    while not looking.done():
        stuck.write(b"$mffffffff81000000,8000#ff" * 10)
        start = time.monotonic()
        await driver.cli("x/i $pc")
        waits.append(time.monotonic() - start)
        hits += (await driver.cont())["reason"] == "breakpoint-hit"
    await looking
    await stuck.close()
    assert hits > 5
    assert max(waits) < LONGEST_WAIT * kvmdbg_vm.time_scale
