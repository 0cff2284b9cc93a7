"""Breakpoints in kernel and user code, with addresses and arguments."""

from __future__ import annotations

import pytest

from kvmdbg import Vm
from tests.support import demo
from tests.support.gdb import Gdb
from tests.support.marks import both_cpu_counts

pytestmark = pytest.mark.gdb

X86_PG = 1 << 31

running = pytest.mark.kvmdbg(run=True)


@both_cpu_counts
async def test_hbreak_from_the_reset_vector(kvmdbg_vm: Vm, gdb: Gdb, cpus: int) -> None:
    assert kvmdbg_vm.vcpus == cpus
    assert await gdb.value("$rip") == 0xFFF0
    await gdb.cli("hbreak start_kernel")
    stop = await gdb.cont()
    assert stop["reason"] == "breakpoint-hit"
    assert await gdb.value("$pc") == demo.kernel()["start_kernel"]
    assert await gdb.value("$cr0") & X86_PG


@running
@both_cpu_counts
async def test_kernel_function_and_its_arguments(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    await gdb.cli("break *do_sys_openat2")
    flags = set()
    for _ in range(4):
        stop = await gdb.cont()
        assert stop["reason"] == "breakpoint-hit"
        assert await gdb.value("$pc") == demo.kernel()["do_sys_openat2"]
        assert await gdb.value("$edi") == demo.AT_FDCWD
        path = await gdb.mi("-data-evaluate-expression (char*)$rsi")
        assert path["value"].endswith(f'"{demo.RECORD.decode()}"')
        flags.add(await gdb.value("*(unsigned long *)$rdx") & 0o1101)
    # It writes and reads its file in turn: O_WRONLY | O_CREAT | O_TRUNC, O_RDONLY.
    assert flags == {0o1101, 0}


@running
@both_cpu_counts
@pytest.mark.parametrize("kind", ["break", "hbreak"])
async def test_user_function_and_its_arguments(
    kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int, kind: str
) -> None:
    gdb = booted_gdb
    await gdb.cli(f"{kind} *workload_compute")
    await gdb.cont()
    for _ in range(3):
        assert await gdb.value("$pc") == demo.workload()["workload_compute"]
        assert await gdb.value("$cs") & 3 == 3
        a, b = await gdb.value("a"), await gdb.value("b")
        assert a == await gdb.value("workload_checksum")
        assert b == await gdb.value("workload_iterations")
        await gdb.cont()
        # What it returned is its next argument.
        assert await gdb.value("a") == (a * 31 + b) % 2**64
        assert await gdb.value("b") == b + 1


@running
async def test_a_removed_breakpoint_is_not_hit(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cli("break *workload_increment")
    await gdb.cont()
    await gdb.cli("delete 1")
    for _ in range(3):
        await gdb.cont()
        assert await gdb.value("$pc") == demo.workload()["workload_increment"]


@running
async def test_many_hardware_breakpoints(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    """More than a CPU has debug registers, and more watchpoints too."""
    gdb = booted_gdb
    names = ["increment", "compute", "write", "read", "tick"]
    for name in names:
        await gdb.cli(f"hbreak *workload_{name}")
    expected = {demo.workload()[f"workload_{name}"] for name in names}
    hit = set()
    for _ in names:
        await gdb.cont()
        hit.add(await gdb.value("$pc"))
    assert hit == expected


@running
async def test_a_false_condition_does_not_stop(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    now = await gdb.value("b")
    await gdb.cli("delete")
    await gdb.cli(f"break *workload_compute if $rsi == {now + 20}")
    await gdb.cont()
    assert await gdb.value("b") == now + 20


@running
@both_cpu_counts
async def test_threads_are_the_vcpus(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    threads = (await booted_gdb.mi("-thread-info"))["threads"]
    assert [thread["details"] for thread in threads] == [f"vCPU {n}" for n in range(cpus)]
    pcs = []
    for number in range(cpus):
        await booted_gdb.mi(f"-thread-select {number + 1}")
        pcs.append(await booted_gdb.value("$pc"))
        assert (await kvmdbg_vm.register("rip", vcpu=number)) == pcs[number]
    assert [int(thread["frame"]["addr"], 16) for thread in threads] == pcs
