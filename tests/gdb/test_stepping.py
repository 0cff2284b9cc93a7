"""Single steps: one instruction each, and never into an interrupt."""

from __future__ import annotations

import pytest

from kvmdbg import Vm
from kvmdbg.target.stops import Stepped
from tests.support import demo, vms
from tests.support.gdb import COMMAND_TIMEOUT, Gdb
from tests.support.marks import both_cpu_counts

pytestmark = [pytest.mark.gdb, pytest.mark.kvmdbg(run=True)]

STEPS = 100


def assert_kernel_path(path: list[tuple[int, int]]) -> None:
    """``path``: pc and eflags after every step."""
    interrupts = [demo.function_at(pc) for pc, _ in path if demo.is_interrupt(pc)]
    assert not interrupts
    # An interrupt was possible nearly all the time.
    assert sum(bool(eflags & demo.IF) for _, eflags in path) > STEPS / 2
    # And it was code that was stepped through, not one instruction over and over.
    assert len({pc for pc, _ in path}) > STEPS / 3


@both_cpu_counts
async def test_gdb_steps_never_land_in_an_interrupt(
    kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int
) -> None:
    gdb = booted_gdb
    await gdb.cli("break *do_sys_openat2")
    stop = await gdb.cont()
    thread = stop["thread-id"]
    path = []
    async with vms.pending_interrupt(kvmdbg_vm.status):
        for _ in range(STEPS):
            stop = await gdb.stepi()
            assert (stop["reason"], stop["thread-id"]) == ("end-stepping-range", thread)
            path.append((await gdb.value("$pc"), await gdb.value("$eflags + 0")))
        assert_kernel_path(path)
        if cpus == 1:  # otherwise the other vCPU, which runs, may have taken it
            await gdb.cli("delete")
            await gdb.cli("hbreak *asm_common_interrupt")
            await gdb.cont()
            assert await gdb.value("$pc") == demo.kernel()["asm_common_interrupt"]


@both_cpu_counts
async def test_api_steps_never_land_in_an_interrupt(kvmdbg_vm: Vm, cpus: int) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    vcpu = (await vm.run_to("do_sys_openat2")).vcpu
    path = []
    async with vms.pending_interrupt(vm.status):
        for _ in range(STEPS):
            stop = await vm.step()
            assert (stop.vcpu, stop.reason) == (vcpu, Stepped())
            registers = await vm.registers()
            path.append((registers["rip"], registers["eflags"]))
        assert_kernel_path(path)
        await vm.run_to("asm_common_interrupt")


async def test_stepping_a_thousand_at_once(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    """Through the system call and back to user code: all of it is the workload's own path."""
    gdb = booted_gdb
    await gdb.cli("break *workload_write")
    await gdb.cont()
    await gdb.cli("delete")
    await gdb.mi('-interpreter-exec console "stepi 1000"')
    await gdb.wait_stopped(5 * COMMAND_TIMEOUT)
    assert not demo.is_interrupt(await gdb.value("$pc"))


@both_cpu_counts
async def test_a_step_executes_exactly_one_instruction(
    kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int
) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    start = demo.workload()["workload_compute"]
    a, b = await gdb.value("$rdi"), await gdb.value("$rsi")
    # mov %rdi,%rax; shl $5,%rax; sub %rdi,%rax; add %rsi,%rax; ret
    expected = [a, a * 32, a * 31, a * 31 + b]
    for length, value in zip((3, 7, 10, 13), expected, strict=True):
        await gdb.stepi()
        assert await gdb.value("$pc") == start + length
        assert await gdb.value("$rax") == value % 2**64
    await gdb.stepi()
    assert await gdb.value("$pc") == await gdb.value("*(long *)($rsp - 8)")


async def test_a_breakpoint_is_hit_after_a_step_onto_it(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    second = demo.workload()["workload_compute"] + 3
    await gdb.cli("break *workload_compute")
    await gdb.cli(f"break *{second:#x}")
    await gdb.cont()
    now = await gdb.value("$rsi")
    await gdb.stepi()
    assert await gdb.value("$pc") == second
    # Going on from there executes the instruction under the second breakpoint, once.
    await gdb.cont()
    assert await gdb.value("$pc") == demo.workload()["workload_compute"]
    assert await gdb.value("$rsi") == now + 1


async def test_next_and_finish_in_source(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break workload_tick")
    await gdb.cont()
    await gdb.cli("delete")
    await gdb.cli("break workload_compute")
    stop = await gdb.cont()
    assert stop["frame"]["func"] == "workload_compute"
    a, b = await gdb.value("a"), await gdb.value("b")
    await gdb.mi("-exec-finish")
    stop = await gdb.wait_stopped()
    assert stop["reason"] == "function-finished"
    assert stop["frame"]["func"] == "workload_tick"
    assert int(stop["return-value"]) == (a * 31 + b) % 2**64
    line = int(stop["frame"]["line"])
    await gdb.cli("delete")
    await gdb.mi("-exec-next")
    stop = await gdb.wait_stopped()
    assert stop["reason"] == "end-stepping-range"
    assert int(stop["frame"]["line"]) > line


async def test_next_steps_through_a_line_in_the_server(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break workload_compute")
    await gdb.cont()
    start = demo.workload()["workload_compute"]
    await gdb.cli("set debug remote 1")
    gdb.stops.clear()
    before = len(gdb.console)
    await gdb.mi("-exec-step")
    assert (await gdb.wait_stopped())["frame"]["func"] == "workload_tick"
    log = "".join(gdb.console[before:])
    await gdb.cli("set debug remote 0")
    assert f"vCont;r{start:x}," in log
    # gdb itself steps over its breakpoint only, and off the instruction that returns.
    assert log.count("vCont;s") <= 2
