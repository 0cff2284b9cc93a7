"""Registers and memory: read in every mode of the CPU, written, and the guest seen acting on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmdbg import Vm
from tests.support import demo
from tests.support.gdb import GDB_18, Gdb, GdbError, start_gdb
from tests.support.marks import both_cpu_counts

pytestmark = pytest.mark.gdb

KERNEL = 1 << 63
"""The kernel's half of the address space starts here."""

running = pytest.mark.kvmdbg(run=True)

MODE_INDEPENDENT = {
    *("rax", "r15", "rip", "rsp", "eflags", "cs", "gs", "fs_base", "gs_base", "k_gs_base"),
    *("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xmm15", "mxcsr", "st0", "dr7", "idtr_base"),
}


async def all_registers(gdb: Gdb) -> dict[str, str]:
    """What `info all-registers` shows, by name."""
    printed = await gdb.cli("info all-registers")
    return dict(re.findall(r"^(\S+) +(\S.*)$", printed, re.MULTILINE))


@both_cpu_counts
async def test_the_same_registers_in_real_mode_and_long_mode(
    kvmdbg_vm: Vm, gdb: Gdb, cpus: int
) -> None:
    real = await all_registers(gdb)
    assert real.keys() >= MODE_INDEPENDENT
    assert real["cs"].startswith("0xf000")
    assert "PG" not in real["cr0"]
    assert "LMA" not in real["efer"]
    await gdb.cli("hbreak start_kernel")
    await gdb.cont()
    long = await all_registers(gdb)
    assert long.keys() == real.keys()
    assert "PG" in long["cr0"]
    assert "LMA" in long["efer"]
    assert await gdb.value("$cr3") & ~0xFFF == await kvmdbg_vm.register("cr3") & ~0xFFF
    assert not any("packet reply" in text for text in gdb.console)


@running
async def test_system_registers_of_a_running_kernel(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("hbreak *do_sys_openat2")
    await gdb.cont()
    # In the kernel gs is its per-CPU area, and the user's is put aside.
    assert await gdb.value("$gs_base") >= KERNEL
    assert await gdb.value("$k_gs_base") < KERNEL
    assert await gdb.value("$cs") == 0x10
    assert await gdb.value("$idtr_base") >= KERNEL
    assert {"PE", "WP", "PG"} <= set((await gdb.cli("p $cr0")).split())
    assert {"LME", "LMA", "NXE", "SCE"} <= set((await gdb.cli("p $efer")).split())


@running
@pytest.mark.parametrize("program", ["gdb", GDB_18], ids=["debian", "18"])
async def test_the_system_registers_at_a_glance(kvmdbg_vm: Vm, program: str | Path) -> None:
    """gdb has groups of its own for x86, and passes over those of the description: ask the monitor.
    Where this fails for a newer gdb, that has changed, and ``info registers system`` serves."""
    await demo.booted(kvmdbg_vm)
    async with start_gdb(None, kvmdbg_vm.status.gdb_socket, program) as gdb:
        groups = await gdb.cli("maintenance print register-groups")
        (of_cr0,) = re.findall(r"^ ?cr0 .*?(\S+) *$", groups, re.MULTILINE)
        assert "system" not in of_cr0.split(",")
        assert "cr0" not in await gdb.cli("info registers system")
        said = await gdb.cli("monitor info system-registers")
        shown = dict(line.split() for line in said.splitlines())
        for name in ("cr0", "cr4", "efer", "gs_base", "k_gs_base", "idtr_base", "dr6"):
            assert int(shown[name], 16) == await gdb.value(f"${name} + 0")


@running
@both_cpu_counts
async def test_a_written_register_changes_a_result(
    kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int
) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_increment")
    await gdb.cont()
    before = await gdb.value("workload_iterations")
    await gdb.stepi()  # mov $1,%eax
    await gdb.cli("set $rax = 1000")
    await gdb.cont()
    assert await gdb.value("workload_iterations") == before + 1000


@running
async def test_a_written_argument_changes_a_result(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    await gdb.cli("set $rdi = 7")
    await gdb.cli("set var b = 5")
    await gdb.cont()
    assert await gdb.value("workload_checksum") == 7 * 31 + 5


@running
@both_cpu_counts
async def test_registers_written_in_the_kernel(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    """A system call is made to return at once, with another result."""
    gdb = booted_gdb
    await gdb.cli("break *__x64_sys_getpid")
    await gdb.cont()
    await gdb.cli("set $rax = 4242")
    await gdb.cli("set $rip = *(long *)$rsp")
    await gdb.cli("set $rsp = $rsp + 8")
    await gdb.cli("delete")
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    assert await gdb.value("workload_pid") == 4242


@running
async def test_vector_registers(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    await gdb.cli("set $xmm3.uint128 = 0x1122334455667788")
    assert await kvmdbg_vm.register("xmm3") == 0x1122334455667788
    await gdb.cont()
    # The workload has no use for it, and its kernel gives it back after every switch.
    assert await kvmdbg_vm.register("xmm3") == 0x1122334455667788


@running
@both_cpu_counts
async def test_written_memory_is_acted_on(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    await gdb.cli("set var workload_mode = 7")
    await gdb.cli("delete")
    await gdb.mi("-exec-continue")
    await kvmdbg_vm.wait_console("workload: mode 7\n")


@running
@both_cpu_counts
async def test_patched_code_is_executed(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    before = await gdb.value("workload_iterations")
    code = demo.workload()["workload_increment"]
    # mov $1,%eax has been executed many times: it becomes mov $100,%eax
    assert await gdb.value(f"*(unsigned char *){code}") == 0xB8
    await gdb.cli(f"set var *(unsigned char *){code + 1} = 100")
    for number in (1, 2):
        await gdb.cont()
        assert await gdb.value("workload_iterations") == before + number * 100
    await gdb.cli(f"set var *(unsigned char *){code + 1} = 1")
    await gdb.cont()
    assert await gdb.value("workload_iterations") == before + 201


@running
@both_cpu_counts
async def test_patched_kernel_code_is_executed(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    # getpid becomes: mov $1234,%eax; ret
    patch = bytes.fromhex("b8d2040000c3")
    await gdb.mi(f"-data-write-memory-bytes &__x64_sys_getpid {patch.hex()}")
    await gdb.cont()
    assert await gdb.value("workload_pid") == 1234
    # Kernel text, read by another way than it was written.
    assert await kvmdbg_vm.read("__x64_sys_getpid", len(patch)) == patch


@running
async def test_breakpoints_do_not_show_in_memory(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    address = demo.kernel()["do_sys_openat2"]
    before = await kvmdbg_vm.read(address, 16)
    await gdb.cli("break *do_sys_openat2")
    await gdb.cont()
    assert await kvmdbg_vm.read(address, 16) == before


@running
async def test_an_unmapped_address_is_an_error_not_the_end(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    with pytest.raises(GdbError, match="Unable to read memory"):
        await gdb.mi("-data-read-memory-bytes 0xffffe00000000000 16")
    with pytest.raises(GdbError, match=r"Could not write memory|Cannot access memory"):
        await gdb.mi("-data-write-memory-bytes 0xffffe00000000000 00")
    await gdb.cli("break *do_sys_openat2")
    assert (await gdb.cont())["reason"] == "breakpoint-hit"
