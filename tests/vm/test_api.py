"""The Python API and the pytest plugin, on a real VM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import kvmdbg
from kvmdbg import Vm
from kvmdbg.errors import (
    Busy,
    MemoryFault,
    RegisterError,
    SymbolError,
    UnexpectedStop,
    VmGone,
    VmNotFound,
    VmRunning,
    WaitTimeout,
)
from kvmdbg.target.breakpoints import BreakpointKind
from kvmdbg.target.stops import BreakpointHit, Frozen, Paused, Stepped, WatchpointHit
from tests.support import command, demo, vms
from tests.support.gdb import start_gdb
from tests.support.marks import both_cpu_counts

pytestmark = pytest.mark.vm

running = pytest.mark.kvmdbg(run=True)


async def test_a_fresh_vm_is_frozen_at_its_first_instruction(kvmdbg_vm: Vm) -> None:
    vm = kvmdbg_vm
    assert vm.stopped is not None
    assert vm.stopped.reason == Frozen()
    registers = await vm.registers()
    assert (registers["cs"], registers["rip"]) == (0xF000, 0xFFF0)
    assert (await vm.step()).reason == Stepped()
    assert await vm.register("pc") != 0xFFF0


@both_cpu_counts
async def test_breakpoints_from_the_first_instruction_on(kvmdbg_vm: Vm, cpus: int) -> None:
    vm = kvmdbg_vm
    assert vm.vcpus == cpus
    stop = await vm.run_to("start_kernel")
    assert stop.reason == BreakpointHit(BreakpointKind.HARDWARE, vm.symbols["start_kernel"])
    async with await vm.breakpoint("do_sys_openat2") as bp:
        stop = await bp.wait_hit(timeout=20)
        registers = await vm.registers()
        assert registers["rip"] == vm.symbols["do_sys_openat2"]
        assert await vm.read(registers["rsi"], 6) == b"/init\0"
    assert bp.is_hit(stop)


@running
@both_cpu_counts
async def test_watchpoints(kvmdbg_vm: Vm, cpus: int) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    counter = demo.workload()["workload_iterations"]
    before = await demo.iterations(vm)
    async with await vm.watchpoint(counter) as watch:
        stop = await watch.wait_hit()
        assert stop.reason == WatchpointHit(BreakpointKind.WRITE, counter)
        assert await vm.read_int(counter) == before + 1
    async with await vm.watchpoint(counter, kind=BreakpointKind.READ) as watch:
        assert (await watch.wait_hit()).reason == WatchpointHit(BreakpointKind.READ, counter)


@running
@both_cpu_counts
async def test_what_is_written_is_acted_on(kvmdbg_vm: Vm, cpus: int) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    before = await demo.iterations(vm)
    code = demo.workload()["workload_increment"]
    await vm.write(code + 1, bytes([50]))
    assert await demo.iterations(vm) == before + 50
    await vm.run_to(code)
    await vm.set_registers({"rip": code + 5, "rax": 7})
    assert await demo.iterations(vm) == before + 57
    await vm.write_int(demo.workload()["workload_mode"], 9)
    await vm.resume()
    await vm.wait_console("workload: mode 9\n")


@running
async def test_pause_and_resume(kvmdbg_vm: Vm) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    assert vm.stopped is None
    with pytest.raises(VmRunning):
        await vm.registers()
    stop = await vm.pause()
    assert stop.reason == Paused()
    assert await vm.pause() == stop
    assert await vms.run_state(vm.status) == "paused"
    jiffies = await vm.read_int("jiffies_64")
    await vm.resume()
    with pytest.raises(VmRunning):
        await vm.resume()
    await vm.pause()
    assert await vm.read_int("jiffies_64") >= jiffies


@running
async def test_errors_are_typed_and_say_what(kvmdbg_vm: Vm) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    await vm.run_to("do_sys_openat2")
    with pytest.raises(MemoryFault, match="0xffffe00000000000"):
        await vm.read(0xFFFFE00000000000, 8)
    with pytest.raises(RegisterError, match="no register 'rbogus'"):
        await vm.register("rbogus")
    with pytest.raises(SymbolError, match="no symbol 'no_such_symbol'"):
        await vm.breakpoint("no_such_symbol")
    never = await vm.breakpoint("panic")
    with pytest.raises(WaitTimeout, match="did not stop within"):
        await never.wait_hit(timeout=0.1)
    other = await vm.breakpoint("do_sys_openat2")
    with pytest.raises(UnexpectedStop, match="software breakpoint at"):
        await never.wait_hit()
    await other.remove()
    await never.remove()


async def test_a_vm_that_ends_is_an_error_for_who_waits(kvmdbg_vm: Vm) -> None:
    bp = await kvmdbg_vm.breakpoint("start_kernel")
    async with vms.monitor(kvmdbg_vm.status) as qmp:
        await qmp.execute("quit")
    with pytest.raises(VmGone, match="a monitor command told QEMU to quit"):
        await bp.wait_hit()


async def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(VmNotFound, match="there are demo"):
        async with kvmdbg.open("dema"):
            pass


@running
async def test_reset_begins_anew(kvmdbg_vm: Vm) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    await vm.pause()
    await vm.reset()
    await vm.wait_notice("the VM was reset")
    assert await vm.register("rip") == 0xFFF0
    assert (await vm.run_to("start_kernel")).vcpu == 0


async def test_physical_memory(kvmdbg_vm: Vm) -> None:
    await kvmdbg_vm.write_physical(0x10_0000, b"kvmdbg")
    assert await kvmdbg_vm.read_physical(0x10_0000, 6) == b"kvmdbg"


@running
async def test_large_reads_come_whole(kvmdbg_vm: Vm) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    await vm.pause()
    length = vm.symbols["_etext"] - vm.symbols["_text"]
    text = await vm.read("_text", length)
    assert len(text) == length > 8 * 2**20
    where = vm.symbols["do_sys_openat2"]
    assert text[where - vm.symbols["_text"] :][:64] == await vm.read(where, 64)


async def test_two_clients_share_a_vm() -> None:
    name = command.fresh_name()
    async with vms.lasting(name) as one, kvmdbg.open(name) as two:
        assert two.status.pid == one.status.pid
        await one.run_to("start_kernel")
        assert two.stopped == one.stopped
        assert await two.register("rip") == one.symbols["start_kernel"]
        # What one does, the other sees.
        await two.run_to("rest_init")
        assert one.stopped == two.stopped
        assert await one.register("rip") == two.symbols["rest_init"]


@pytest.mark.gdb
async def test_while_gdb_is_connected_it_alone_lets_the_vm_run(kvmdbg_vm: Vm) -> None:
    vm = kvmdbg_vm
    await vm.run_to("start_kernel")
    async with start_gdb(None, vm.status.gdb_socket) as gdb:
        assert await gdb.value("$pc") == vm.symbols["start_kernel"]
        with pytest.raises(Busy, match="is driven by gdb-1: detach it there first"):
            await vm.resume()
        # What gdb stops for, the API sees too; looking and changing is everybody's.
        await gdb.cli(f"hbreak *{vm.symbols['rest_init']:#x}")
        await gdb.cont()
        assert vm.stopped is not None
        assert vm.stopped.reason == BreakpointHit(BreakpointKind.HARDWARE, vm.symbols["rest_init"])
        await vm.set_registers({"rax": 0x1234})
        await gdb.cli("maintenance flush register-cache")
        assert await gdb.value("$rax") == 0x1234
        await gdb.cli("detach")
    await vm.run_to("do_sys_openat2", timeout=20)


async def test_a_vm_that_the_fixture_cannot_get_is_one_sentence(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text("async def test_it(kvmdbg_vm): pass\n")
    done = await command.run(
        *(sys.executable, "-m", "pytest", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider"),
        *("--kvmdbg-vm", "nowhere", test),
    )
    assert done.status == 1
    shown = done.out.partition("at setup of test_it")[2].splitlines()
    assert shown[1].startswith("kvmdbg: there is no VM and no definition named nowhere"), done.out
    assert shown[2].startswith("====")
