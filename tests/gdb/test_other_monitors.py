"""What another monitor, or the guest itself, does to the VM: gdb is told."""

from __future__ import annotations

import pytest

from kvmdbg import Vm
from tests.support import demo, vms
from tests.support.gdb import Gdb
from tests.support.marks import both_cpu_counts

pytestmark = [pytest.mark.gdb, pytest.mark.kvmdbg(run=True)]


async def test_a_foreign_stop_is_a_stop(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.mi("-exec-continue")
    async with vms.monitor(kvmdbg_vm.status) as qmp:
        await qmp.execute("stop")
    stop = await gdb.wait_stopped()
    assert stop["signal-name"] == "SIGINT"
    assert await gdb.value("$pc") == await kvmdbg_vm.register("rip")
    await gdb.wait_console("kvmdbg: another monitor stopped the VM")
    # It is gdb's to go on.
    await gdb.cli("break *do_sys_openat2")
    assert (await gdb.cont())["reason"] == "breakpoint-hit"


@both_cpu_counts
async def test_a_foreign_cont_is_undone(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    await gdb.cli("break *do_sys_openat2")
    await gdb.cont()
    async with vms.monitor(kvmdbg_vm.status) as qmp:
        for _ in range(3):
            await qmp.execute("cont")
            await kvmdbg_vm.wait_notice("stopped it again")
            kvmdbg_vm.notices.clear()
            assert (await qmp.execute("query-status"))["running"] is False
    # What gdb knew may have changed; it is told as soon as the protocol allows.
    await gdb.cli("maintenance flush register-cache")
    assert await gdb.value("$pc") == await kvmdbg_vm.register("rip")
    assert (await gdb.cont())["reason"] == "breakpoint-hit"
    await gdb.wait_console("kvmdbg: another monitor resumed the VM")


@both_cpu_counts
async def test_a_foreign_reset_while_running(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    await gdb.cli("hbreak *start_kernel")
    await gdb.mi("-exec-continue")
    async with vms.monitor(kvmdbg_vm.status) as qmp:
        await qmp.execute("system_reset")
    stop = await gdb.wait_stopped()
    assert stop["reason"] == "breakpoint-hit"
    assert await gdb.value("$pc") == demo.kernel()["start_kernel"]
    assert "".join(gdb.console).count("kvmdbg: the VM was reset") == 1


async def test_monitor_system_reset(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("hbreak *start_kernel")
    assert "the VM was reset" in await gdb.cli("monitor system_reset")
    await gdb.cli("maintenance flush register-cache")
    assert await gdb.value("$pc") == 0xFFF0
    stop = await gdb.cont()
    assert stop["reason"] == "breakpoint-hit"
    assert await gdb.value("$pc") == demo.kernel()["start_kernel"]


async def test_monitor_shows_qemus_own_answers(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    assert "VM status: paused" in await booted_gdb.cli("monitor info status")
    assert '"arch": "x86_64"' in await booted_gdb.cli("monitor qmp query-target")


async def test_a_foreign_quit_is_an_exit(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.mi("-exec-continue")
    await vms.wait_state(kvmdbg_vm.status, "running")
    async with vms.monitor(kvmdbg_vm.status) as qmp:
        await qmp.execute("quit")
        stop = await gdb.wait_stopped()
    assert stop["reason"] == "exited-normally"
    await gdb.wait_console(
        f"kvmdbg: the VM {kvmdbg_vm.name} has ended: a monitor command told QEMU to quit"
    )


async def test_a_panic_is_an_abort(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.mi("-exec-continue")
    await vms.type_line(kvmdbg_vm.status, "echo c > /proc/sysrq-trigger")
    stop = await gdb.wait_stopped()
    assert stop["signal-name"] == "SIGABRT"
    await gdb.wait_console("the guest panicked")
    # The dead can be looked at, in the midst of panic().
    assert "panic" in demo.function_at(await gdb.value("$pc")) or await gdb.value("$cs") == 0x10
    assert "sysrq triggered crash" in await kvmdbg_vm.wait_console("Kernel panic")
    # Going on is refused in words, and a reset helps.
    await gdb.cli("hbreak *start_kernel")
    await gdb.cli("monitor system_reset")
    assert (await gdb.cont())["reason"] == "breakpoint-hit"


async def test_a_poweroff_leaves_the_vm_to_be_looked_at(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.mi("-exec-continue")
    await vms.type_line(kvmdbg_vm.status, "poweroff")
    stop = await gdb.wait_stopped()
    assert stop["signal-name"] == "SIGPWR"
    await gdb.wait_console("kvmdbg: the guest shut down")
    assert await gdb.value("$cs") == 0x10
    await gdb.cli("kill")
    await vms.wait_ended(kvmdbg_vm.name)


async def test_a_guests_reboot_is_a_reset(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("hbreak *start_kernel")
    await gdb.mi("-exec-continue")
    await vms.type_line(kvmdbg_vm.status, "reboot")
    assert (await gdb.wait_stopped())["reason"] == "breakpoint-hit"
    await gdb.wait_console("kvmdbg: the VM was reset")
