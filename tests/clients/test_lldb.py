"""lldb, Debian's and a newer one, as a user types to it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kvmdbg import Vm
from tests.support import command, demo, vms
from tests.support.lldb import LLDB_14, LLDB_23, Lldb, LldbError, start_lldb

pytestmark = [pytest.mark.lldb, pytest.mark.kvmdbg(run=True)]

BOTH = pytest.mark.parametrize("lldb", [LLDB_14, LLDB_23], ids=["14", "23"], indirect=True)


@pytest_asyncio.fixture
async def lldb(kvmdbg_vm: Vm, request: pytest.FixtureRequest) -> AsyncIterator[Lldb]:
    """An lldb with the kernel's symbols, not connected; the guest has booted."""
    await demo.booted(kvmdbg_vm)
    async with start_lldb(request.param, demo.artefact("vmlinux")) as lldb:
        yield lldb


async def connect(vm: Vm, lldb: Lldb) -> None:
    await lldb.cli(f"process connect unix-connect://{vm.status.gdb_socket}")
    assert (await lldb.wait_stopped()).reason == "signal SIGINT"


@BOTH
@pytest.mark.kvmdbg(cpus=2)
async def test_a_session_over_tcp(kvmdbg_vm: Vm, lldb: Lldb) -> None:
    """Connect, look, stop at breakpoints and at a watchpoint, step, leave: the guest runs on."""
    listen = ("--listen", "tcp:127.0.0.1:0")
    async with command.foreground("--vm", kvmdbg_vm.name, *listen) as serving:
        address = (await serving.wait_line("serving gdb on tcp:")).rpartition("tcp:")[2]
        await lldb.cli(f"gdb-remote {address}")
        stop = await lldb.wait_stopped()
        assert stop.reason == "signal SIGINT"
        assert stop.pc == await kvmdbg_vm.register("rip")
        await each_thread_is_a_vcpu(lldb)

        openat = demo.kernel()["do_sys_openat2"]
        await lldb.cli(f"breakpoint set --address {openat:#x}")
        stop = await lldb.run("continue")
        assert (stop.reason, stop.pc) == ("breakpoint 1.1", openat)
        assert await lldb.register("rip") == openat
        stop = await lldb.run("thread step-inst")
        assert stop.reason == "instruction step into"
        assert stop.pc == await kvmdbg_vm.register("rip") != openat
        await lldb.cli("breakpoint delete 1")
        # lldb has placed the symbol file without being told: names go in, and come out.
        await lldb.cli("breakpoint set --hardware --name do_sys_openat2")
        assert demo.function_at((await lldb.run("continue")).pc) == "do_sys_openat2"
        assert "vmlinux`do_sys_openat2" in await lldb.cli("thread list")
        await lldb.cli("breakpoint delete 2")

        jiffies = demo.kernel()["jiffies_64"]
        await lldb.cli(f"watchpoint set expression -w write -s 8 -- {jiffies:#x}")
        stop = await lldb.run("continue")
        assert stop.reason == "watchpoint 1"
        assert demo.function_at(stop.pc) == "tick_do_update_jiffies64"
        old, new = re.findall(r"^(?:old|new) value: (\d+)$", lldb.text, re.MULTILINE)[-2:]
        assert int(old) < int(new) == await kvmdbg_vm.read_int("jiffies_64")
        await lldb.cli("watchpoint delete 1")

        await lldb.cli("continue")
        await vms.wait_state(kvmdbg_vm.status, "running")
        assert (await lldb.run("process interrupt")).reason == "signal SIGINT"
        await lldb.cli("process detach")
        await vms.wait_state(kvmdbg_vm.status, "running")
        before = await demo.iterations(kvmdbg_vm)
        assert await demo.iterations(kvmdbg_vm) > before


async def each_thread_is_a_vcpu(lldb: Lldb) -> None:
    listed = await lldb.cli("thread list")
    assert sorted(re.findall(r"tid = (?:0x)?0*(\d)", listed)) == ["1", "2"]
    bases = set()
    for thread in (1, 2):
        await lldb.select(thread)
        bases |= {await lldb.register("gs_base"), await lldb.register("k_gs_base")}
    assert len({base for base in bases if base >> 63}) == 2, "each has a per-CPU area of its own"
    await lldb.select(1)


@BOTH
async def test_registers_and_memory(kvmdbg_vm: Vm, lldb: Lldb) -> None:
    """The description's own registers too; what is written arrives, and errors come in words."""
    await connect(kvmdbg_vm, lldb)
    compute = demo.workload()["workload_compute"]
    await lldb.cli(f"breakpoint set --address {compute:#x}")
    await lldb.run("continue")
    for name in ("rip", "rsp", "cr0", "cr3", "efer", "gs_base", "idtr_base", "dr7"):
        assert await lldb.register(name) == await kvmdbg_vm.register(name), name
    assert "k_gs_base" in await lldb.cli("register read --all")
    await lldb.cli("register write rdi 7")
    await lldb.cli("register write rsi 5")
    await lldb.run("continue")
    checksum = demo.workload()["workload_checksum"]
    shown = await lldb.cli(f"memory read -f u -s 8 {checksum:#x} -c 1")
    assert shown.endswith(f"{checksum:x}: {7 * 31 + 5}\n")

    await lldb.cli(f"memory write -s 8 {checksum:#x} 0x1234")
    assert await kvmdbg_vm.read_int(checksum) == 0x1234
    banner = demo.kernel()["linux_banner"]
    assert "Linux version" in await lldb.cli(f"memory read -f s -c 1 {banner:#x}")
    with pytest.raises(LldbError, match="memory read failed for 0xffffe00000000000"):
        await lldb.cli("memory read 0xffffe00000000000")
    await lldb.cli("process plugin packet monitor clients")
    assert "drives (you)" in lldb.text
    await lldb.cli("process plugin packet monitor quit")
    assert "monitor quit is refused: use gdb's kill" in lldb.text
