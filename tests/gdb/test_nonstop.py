"""gdb in non-stop mode: one vCPU is looked at while the other runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvmdbg import Vm
from tests.support import demo, vms
from tests.support.gdb import GDB_18, Gdb, start_gdb
from tests.support.placing import put_vcpus_into

pytestmark = [pytest.mark.gdb, pytest.mark.kvmdbg(run=True, cpus=2)]

COUNT = bytes.fromhex("fa 4831c0 48ffc0 90 ebfa")  # cli; xor rax,rax; inc rax; nop; jmp to inc
NOP = 7
JUMP = 8
APART = 64


async def counting(vm: Vm) -> int:
    """Both vCPUs count in rax, each with code of its own: the address of the first's."""
    await demo.booted(vm)
    async with start_gdb(demo.artefact("vmlinux"), vm.status.gdb_socket) as gdb:
        at = await put_vcpus_into(gdb, COUNT, 2, apart=APART)
        await gdb.cli("detach")
    return at


async def stop_of(gdb: Gdb, thread: int) -> dict[str, Any]:
    stop = await gdb.wait_stopped()
    assert stop["thread-id"] == str(thread), stop
    return stop


async def counted(gdb: Gdb, thread: int) -> int:
    """How far a stopped vCPU has counted."""
    await gdb.mi(f"-thread-select {thread}")
    return await gdb.value("$rax")


async def interrupted(gdb: Gdb, thread: int) -> int:
    """Stop one that runs; how far it has counted."""
    await gdb.mi(f"-exec-interrupt --thread {thread}")
    assert (await stop_of(gdb, thread))["signal-name"] == "0"
    return await counted(gdb, thread)


@pytest.mark.parametrize("program", ["gdb", GDB_18], ids=["debian", "18"])
async def test_one_is_debugged_while_the_other_runs(kvmdbg_vm: Vm, program: str | Path) -> None:
    at = await counting(kvmdbg_vm)
    async with start_gdb(demo.artefact("vmlinux"), gdb=program) as gdb:
        for setting in ("mi-async", "non-stop"):
            await gdb.mi(f"-gdb-set {setting} on")
        await gdb.mi(f"-target-select remote {kvmdbg_vm.status.gdb_socket}")
        for _ in range(2):
            await gdb.wait_stopped()

        await gdb.mi(f"-break-insert *{at + NOP}")
        await gdb.mi("-exec-continue --all")
        assert (await stop_of(gdb, 1))["reason"] == "breakpoint-hit"
        count = await counted(gdb, 1)
        first = await interrupted(gdb, 2)
        await gdb.mi("-exec-continue --thread 2")

        # The second counts on while the first is looked at, changed, and led from hit to hit.
        assert await counted(gdb, 1) == count
        await gdb.cli("set $rax = 100")
        assert f"{COUNT.hex()}" == await code(gdb, at)
        for expected in (101, 102):
            await gdb.mi("-exec-continue --thread 1")
            assert (await stop_of(gdb, 1))["reason"] == "breakpoint-hit"
            assert await counted(gdb, 1) == expected
        await gdb.mi("-exec-step-instruction --thread 1")
        assert (await stop_of(gdb, 1))["reason"] == "end-stepping-range"
        await gdb.mi("-thread-select 1")
        assert await gdb.value("$pc") == at + JUMP
        await asyncio.sleep(0.2)
        assert await interrupted(gdb, 2) > first

        # The first stays put while the second is stepped.
        for _ in range(3):
            await gdb.mi("-exec-step-instruction --thread 2")
            assert (await stop_of(gdb, 2))["reason"] == "end-stepping-range"
        assert await counted(gdb, 1) == 102

        await gdb.cli("delete")
        await gdb.mi("-exec-continue --all")
        await asyncio.sleep(0.1)
        await gdb.mi("-exec-interrupt --all")
        stopped = {(await gdb.wait_stopped())["thread-id"] for _ in range(2)}
        assert stopped == {"1", "2"}
        assert await counted(gdb, 1) > 1000
        await gdb.cli("detach")
    await vms.wait_state(kvmdbg_vm.status, "running")


async def code(gdb: Gdb, address: int) -> str:
    answer = await gdb.mi(f"-data-read-memory-bytes {address} {len(COUNT)}")
    return str(answer["memory"][0]["contents"])


async def test_a_gdb_killed_leaves_both_running(kvmdbg_vm: Vm) -> None:
    at = await counting(kvmdbg_vm)
    async with start_gdb(demo.artefact("vmlinux")) as gdb:
        for setting in ("mi-async", "non-stop"):
            await gdb.mi(f"-gdb-set {setting} on")
        await gdb.mi(f"-target-select remote {kvmdbg_vm.status.gdb_socket}")
        await gdb.mi(f"-break-insert *{at + NOP}")
        await gdb.mi("-exec-continue --all")
        while (await gdb.wait_stopped()).get("reason") != "breakpoint-hit":
            pass
        gdb.kill()
        await kvmdbg_vm.wait_notice("gdb-2 went away without detaching")
    await vms.wait_state(kvmdbg_vm.status, "running")
    before = [await count_of(kvmdbg_vm, vcpu) for vcpu in range(2)]
    await asyncio.sleep(0.1)
    assert all([await count_of(kvmdbg_vm, vcpu) > before[vcpu] for vcpu in range(2)])


async def count_of(vm: Vm, vcpu: int) -> int:
    await vm.pause()
    try:
        return await vm.register("rax", vcpu=vcpu)
    finally:
        await vm.resume()
