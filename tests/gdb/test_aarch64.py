"""gdb-multiarch on Debian's arm64 kernel: what differs from x86-64, and the main jobs once."""

from __future__ import annotations

import asyncio
import platform
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kvmdbg import Vm
from kvmdbg.cli.gdb import find_gdb
from kvmdbg.errors import RegisterError
from tests.support import command, demo, vms
from tests.support.gdb import Gdb, GdbError, start_gdb
from tests.support.lldb import LLDB_14, LLDB_23, start_lldb
from tests.support.marks import both_cpu_counts

IMAGE = "demo-aarch64"
COUNTER = "*(unsigned long *)&workload_iterations"
IRQ_MASKED = 1 << 7
PAN = 1 << 22
"""In cpsr: the kernel may not access user memory just now."""

STEPS = 100
QUICKLY = 2.0
"""Seconds: a user's patience, on a busy machine."""

_INTERRUPT = re.compile(r"el[01][ht]_64_irq\w*|el[01]_interrupt|call_on_irq_stack|gic_handle_irq")

pytestmark = [pytest.mark.gdb, pytest.mark.kvmdbg(vm=IMAGE)]
running = pytest.mark.kvmdbg(run=True)


@pytest.fixture(autouse=True)
def accelerator_fits(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--kvmdbg-accel") == "kvm" and platform.machine() != "aarch64":
        pytest.skip(f"KVM runs no aarch64 guest on {platform.machine()}")


@pytest_asyncio.fixture
async def gdb(kvmdbg_vm: Vm) -> AsyncIterator[Gdb]:
    """As the fixture of the same name for x86-64."""
    socket = kvmdbg_vm.status.gdb_socket
    program = demo.artefact("vmlinux", IMAGE)
    async with start_gdb(program, socket, find_gdb("aarch64")) as gdb:
        yield gdb


@pytest_asyncio.fixture
async def booted_gdb(kvmdbg_vm: Vm) -> AsyncIterator[Gdb]:
    """Likewise."""
    await demo.booted(kvmdbg_vm)
    socket = kvmdbg_vm.status.gdb_socket
    program = demo.artefact("vmlinux", IMAGE)
    async with start_gdb(program, socket, find_gdb("aarch64")) as gdb:
        await gdb.cli(f"add-symbol-file {demo.artefact('workload', IMAGE)}")
        yield gdb


async def exception_level(gdb: Gdb) -> int:
    return await gdb.value("$cpsr + 0") >> 2 & 3


# --- from the command line -----------------------------------------------------------------------


async def test_the_command_takes_a_gdb_that_knows_the_architecture() -> None:
    name = command.fresh_name()
    done = await command.kvmdbg(
        *("--vm", IMAGE, "--name", name, "--gdb", "--", "-nx", "-batch"),
        *("-ex", "show architecture", "-ex", "p/x $pc", "-ex", "info symbol start_kernel"),
    )
    assert done.status == 0, done.err
    assert '(currently "aarch64")' in done.out
    assert "= 0x40000000\n" in done.out
    assert "start_kernel in section" in done.out
    assert "KVM runs no aarch64 guest on an" in done.err
    await vms.wait_ended(name)


# --- breakpoints ---------------------------------------------------------------------------------


@both_cpu_counts
async def test_hbreak_from_reset(kvmdbg_vm: Vm, gdb: Gdb, cpus: int) -> None:
    """The MMU is off at first; the registers are the same before and after."""
    assert await gdb.value("$pc") == 0x4000_0000
    before = re.findall(r"^(\w+) ", await gdb.cli("info registers system"), re.MULTILINE)
    assert {"TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "VBAR_EL1", "ID_AA64MMFR0_EL1"} <= set(before)
    assert "M " not in (await gdb.cli("p $SCTLR_EL1"))
    await gdb.cli("hbreak start_kernel")
    stop = await gdb.cont()
    assert stop["reason"] == "breakpoint-hit"
    assert await gdb.value("$pc") == demo.kernel(IMAGE)["start_kernel"]
    assert " M " in await gdb.cli("p $SCTLR_EL1")
    assert re.findall(r"^(\w+) ", await gdb.cli("info registers system"), re.MULTILINE) == before
    threads = (await gdb.mi("-thread-info"))["threads"]
    assert [thread["details"] for thread in threads] == [f"vCPU {n}" for n in range(cpus)]


@running
async def test_a_kernel_function_and_its_arguments(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break *do_sys_openat2")
    flags = set()
    for _ in range(4):
        stop = await gdb.cont()
        assert stop["reason"] == "breakpoint-hit"
        assert await gdb.value("$pc") == demo.kernel(IMAGE)["do_sys_openat2"]
        assert await gdb.value("$x0") == demo.AT_FDCWD
        # User memory, which the vCPU itself could not read: it has PAN set.
        assert await gdb.value("$cpsr + 0") & PAN
        path = await gdb.mi("-data-evaluate-expression (char*)$x1")
        assert path["value"].endswith(f'"{demo.RECORD.decode()}"')
        flags.add(await gdb.value("*(unsigned long *)$x2") & 0o1101)
    assert flags == {0o1101, 0}
    assert " in __arm64_sys_openat " in await gdb.cli("backtrace 2")


@running
async def test_a_user_function_and_its_arguments(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cli("hbreak *workload_increment")
    for kind in ("increment", "compute") * 2:
        await gdb.cont()
        assert await gdb.value("$pc") == demo.workload(IMAGE)[f"workload_{kind}"]
        assert await exception_level(gdb) == 0
    a, b = await gdb.value("a"), await gdb.value("b")
    await gdb.cli("delete")
    for length in (4, 8, 12):
        await gdb.stepi()
        assert await gdb.value("$pc") == demo.workload(IMAGE)["workload_compute"] + length
    assert await gdb.value("$x0") == (a * 31 + b) % 2**64
    await gdb.mi("-exec-finish")
    stop = await gdb.wait_stopped()
    assert stop["frame"]["func"] == "workload_tick"


# --- steps ---------------------------------------------------------------------------------------


@running
@both_cpu_counts
async def test_steps_never_land_in_an_interrupt(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    await gdb.cli("break *do_sys_openat2")
    thread = (await gdb.cont())["thread-id"]
    path, unmasked = [], 0
    async with vms.pending_interrupt(kvmdbg_vm.status):
        for _ in range(STEPS):
            stop = await gdb.stepi()
            assert (stop["reason"], stop["thread-id"]) == ("end-stepping-range", thread)
            path.append(await gdb.value("$pc"))
            unmasked += not await gdb.value("$cpsr + 0") & IRQ_MASKED
        functions = {demo.function_at(pc, IMAGE) for pc in path}
        assert not [name for name in functions if _INTERRUPT.fullmatch(name)]
        # An interrupt was possible nearly all the time, and it was no loop that was stepped.
        assert unmasked > STEPS / 2
        assert len(set(path)) > STEPS / 3
        if cpus == 1:  # otherwise the other vCPU, which runs, may have taken it
            await gdb.cli("delete")
            await gdb.cli("hbreak *el1h_64_irq")
            await gdb.cont()
            assert await gdb.value("$pc") == demo.kernel(IMAGE)["el1h_64_irq"]


# --- watchpoints ---------------------------------------------------------------------------------


@running
async def test_watchpoints_of_each_kind(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    """QEMU stops before the access here; gdb makes it, and shows what it did."""
    gdb = booted_gdb
    await gdb.cli("break *workload_increment")
    await gdb.cont()
    value = await gdb.value("workload_iterations")
    await gdb.cli("delete")

    await gdb.cli(f"watch {COUNTER}")
    for _ in range(3):
        stop = await gdb.cont()
        assert stop["reason"] == "watchpoint-trigger"
        assert stop["value"] == {"old": str(value), "new": str(value + 1)}
        assert stop["frame"]["func"] == "workload_tick"
        value += 1
    await gdb.cli("delete")

    await gdb.cli(f"rwatch {COUNTER}")
    # workload_tick reads it twice a tick: to pass it on, and (in the next one) to add to it.
    for expected in (value, value, value + 1, value + 1):
        stop = await gdb.cont()
        assert stop["reason"] == "read-watchpoint-trigger"
        assert stop["value"] == {"value": str(expected)}
    await gdb.cli("delete")

    await gdb.cli(f"awatch {COUNTER}")
    reasons = [await gdb.cont() for _ in range(3)]
    assert {stop["reason"] for stop in reasons} == {"access-watchpoint-trigger"}
    assert {"old": str(value + 1), "new": str(value + 2)} in [stop["value"] for stop in reasons]


@running
async def test_a_watchpoint_of_the_api_makes_progress(kvmdbg_vm: Vm) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    value = await demo.iterations(vm, IMAGE)
    watch = await vm.watchpoint(demo.workload(IMAGE)["workload_iterations"])
    for _ in range(3):
        await watch.wait_hit()
        assert await vm.read_int(demo.workload(IMAGE)["workload_iterations"]) == value
        await vm.step()
        value += 1
        assert await vm.read_int(demo.workload(IMAGE)["workload_iterations"]) == value


# --- Ctrl-C --------------------------------------------------------------------------------------


@running
async def test_ctrl_c_in_a_halted_guest(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("hbreak *do_sys_openat2")
    await gdb.cont()
    await gdb.cli("delete")
    panic = demo.kernel(IMAGE)["panic"]
    # msr daifset, #15; wfi; b to the wfi
    await gdb.mi(f"-data-write-memory-bytes {panic} df4f03d57f2003d5ffffff17")
    await gdb.cli(f"set $pc = {panic}")
    for _ in range(2):
        await gdb.mi("-exec-continue")
        await asyncio.sleep(0.3)  # there is no event for "nothing happens any more"
        assert not gdb.stops
        pressed = asyncio.get_running_loop().time()
        gdb.interrupt()
        stop = await gdb.wait_stopped()
        assert asyncio.get_running_loop().time() - pressed < QUICKLY
        assert (stop["reason"], stop["signal-name"]) == ("signal-received", "SIGINT")
        assert await gdb.value("$pc") in (panic + 4, panic + 8)


# --- registers and memory ------------------------------------------------------------------------


@running
async def test_written_registers_are_acted_on(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    await gdb.cli("set $x0 = 7")
    await gdb.cli("set var b = 5")
    await gdb.cli("set $v3.d.u[0] = 0x1122334455667788")
    await gdb.cli("set $v3.d.u[1] = 0x99")
    await gdb.cont()
    assert await gdb.value("workload_checksum") == 7 * 31 + 5
    # The workload has no use for it, and its kernel gives it back after every switch.
    assert await kvmdbg_vm.register("v3") == 0x99 << 64 | 0x1122334455667788
    with pytest.raises(GdbError):
        await gdb.cli("set $TCR_EL1 = 0")
    with pytest.raises(RegisterError, match="ignores what is written to TCR_EL1"):
        await kvmdbg_vm.set_registers({"TCR_EL1": 0})
    # A system call is made to return at once, with another result.
    await gdb.cli("delete")
    await gdb.cli("break *__arm64_sys_getpid")
    await gdb.cont()
    await gdb.cli("set $x0 = 4242")
    await gdb.cli("set $pc = $x30")
    await gdb.cli("delete")
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    assert await gdb.value("workload_pid") == 4242


@running
async def test_functions_are_called(booted_gdb: Gdb) -> None:
    """gdb puts registers back afterwards; the machine's own, which QEMU does not let it write, may
    have changed by then."""
    gdb = booted_gdb
    await gdb.cli("break *do_sys_openat2")
    await gdb.cont()
    await gdb.cli("delete")
    called = [await gdb.value("((int (*)(void))nr_processes)()") for _ in range(20)]
    assert len(set(called)) == 1
    assert 10 < called[0] < 1000


@running
async def test_written_memory_is_acted_on(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    """The kernel's from user mode, and the user's from the kernel, as neither could itself."""
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    assert await exception_level(gdb) == 0
    # getpid becomes: mov x0, #1234; ret
    patch = bytes.fromhex("409a80d2c0035fd6")
    await gdb.mi(f"-data-write-memory-bytes &__arm64_sys_getpid {patch.hex()}")
    assert await kvmdbg_vm.read("__arm64_sys_getpid", len(patch)) == patch
    before = await gdb.value("workload_iterations")
    # mov x0, #1 becomes mov x0, #100
    code = demo.workload(IMAGE)["workload_increment"]
    await gdb.mi(f"-data-write-memory-bytes {code} 800c80d2")
    await gdb.cont()
    assert await gdb.value("workload_iterations") == before + 100
    assert await gdb.value("workload_pid") == 1234
    await gdb.cli("delete")
    await gdb.cli("break *do_sys_openat2")
    await gdb.cont()
    assert await exception_level(gdb) == 1
    await gdb.cli("set var workload_mode = 7")
    await gdb.cli("delete")
    await gdb.mi("-exec-continue")
    await kvmdbg_vm.wait_console("workload: mode 7\n")


@running
async def test_an_unmapped_address_is_an_error_not_the_end(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    for address in ("0xffff000000000000 - 0x1000", "0x0000100000000000", "0xfff0000000000000"):
        with pytest.raises(GdbError, match="Unable to read memory"):
            await gdb.mi(f'-data-read-memory-bytes "{address}" 16')
    with pytest.raises(GdbError, match=r"Could not write memory|Cannot access memory"):
        await gdb.mi("-data-write-memory-bytes 0x0000100000000000 00")
    await gdb.cli("break *do_sys_openat2")
    assert (await gdb.cont())["reason"] == "breakpoint-hit"


@pytest.mark.lldb
@running
async def test_lldb(kvmdbg_vm: Vm) -> None:
    """Both of them: symbols, registers, and a watchpoint that stops before the access, which lldb
    makes by a step of its own and then tells."""
    await demo.booted(kvmdbg_vm)
    compute = demo.workload(IMAGE)["workload_compute"]
    counter = demo.workload(IMAGE)["workload_iterations"]
    for version in (LLDB_14, LLDB_23):
        async with start_lldb(version, demo.artefact("vmlinux", IMAGE)) as lldb:
            await lldb.run(f"process connect unix-connect://{kvmdbg_vm.status.gdb_socket}")
            await lldb.cli("breakpoint set --name do_sys_openat2")
            openat = (await lldb.run("continue")).pc
            assert demo.function_at(openat, IMAGE) == "do_sys_openat2"
            assert (await lldb.run("thread step-inst")).pc == openat + 4
            assert await lldb.register("SCTLR_EL1") == await kvmdbg_vm.register("SCTLR_EL1")
            await lldb.cli("breakpoint delete 1")
            await lldb.cli(f"breakpoint set --address {compute:#x}")
            assert (await lldb.run("continue")).pc == compute
            await lldb.cli("breakpoint delete 2")

            await lldb.cli(f"watchpoint set expression -w write -s 8 -- {counter:#x}")
            before = await kvmdbg_vm.read_int(counter)
            for count in (1, 2):
                assert (await lldb.run("continue")).reason == "watchpoint 1"
                assert await kvmdbg_vm.read_int(counter) == before + count
            await lldb.cli("process detach")
        await vms.wait_state(kvmdbg_vm.status, "running")
