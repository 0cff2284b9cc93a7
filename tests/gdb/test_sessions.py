"""gdb comes and goes: detach, kill, a second one, and ends that nobody announced."""

from __future__ import annotations

import os
import signal

import pytest

from kvmdbg import Vm
from tests.support import command, demo, vms
from tests.support.gdb import Gdb, GdbError, start_gdb

pytestmark = [pytest.mark.gdb, pytest.mark.kvmdbg(run=True)]


async def assert_runs_freely(vm: Vm) -> None:
    """The guest runs, and goes on running when it comes to where breakpoints were."""
    word = f"alive-{command.fresh_name()}"
    # The quotes keep the echo of the line from being taken for the answer.
    await vms.type_line(vm.status, f"sync; echo 'ali'{word[3:]}")
    await vm.wait_console(f"\n{word}")
    assert await vms.run_state(vm.status) == "running"


async def test_detach_lets_the_guest_run_and_gdb_come_back(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    await booted_gdb.cli("break *workload_compute")
    await booted_gdb.cont()
    await booted_gdb.cli("detach")
    await assert_runs_freely(kvmdbg_vm)
    await booted_gdb.mi(f"-target-select remote {kvmdbg_vm.status.gdb_socket}")
    await booted_gdb.wait_stopped()
    # gdb keeps its breakpoints and inserts them again.
    assert (await booted_gdb.cont())["reason"] == "breakpoint-hit"


async def test_kill_ends_the_vm(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    await booted_gdb.cli("kill")
    await vms.wait_ended(kvmdbg_vm.name)


@pytest.mark.kvmdbg(debug={"on_kill": "detach"})
async def test_kill_leaves_a_vm_whose_definition_says_so(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    await booted_gdb.cli("kill")
    await assert_runs_freely(kvmdbg_vm)


async def test_gdb_killed_while_stopped(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    await booted_gdb.cli("set breakpoint always-inserted on")
    await booted_gdb.cli("break *workload_compute")
    await booted_gdb.cont()
    booted_gdb.kill()
    await kvmdbg_vm.wait_notice("gdb-1 went away without detaching")
    await assert_runs_freely(kvmdbg_vm)
    async with start_gdb(None, kvmdbg_vm.status.gdb_socket) as second:
        assert await second.value("$pc") == await kvmdbg_vm.register("rip")


async def test_gdb_killed_while_running(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    await booted_gdb.cli("break *__x64_sys_sync")
    await booted_gdb.mi("-exec-continue")
    booted_gdb.kill()
    await kvmdbg_vm.wait_notice("gdb-1 went away without detaching")
    await assert_runs_freely(kvmdbg_vm)


async def test_qemu_killed_under_gdb() -> None:
    name = command.fresh_name()
    async with command.foreground("--vm", "demo", "--name", name, "--run") as kvmdbg:
        await kvmdbg.wait_line("Ctrl-C leaves")
        facts = vms.info(name)
        assert facts is not None
        connect = await kvmdbg.wait_line("connect with: ")
        async with start_gdb(None, connect.split("target remote ")[1].strip("'")) as gdb:
            await gdb.mi("-exec-continue")
            said = len(kvmdbg.lines)
            os.kill(facts.pid, signal.SIGKILL)
            stop = await gdb.wait_stopped()
            assert (stop["reason"], stop["signal-name"]) == ("exited-signalled", "SIGKILL")
            assert "QEMU was killed by signal 9" in "".join(gdb.console)
        assert await kvmdbg.wait_end() == 1
        assert [line for line in kvmdbg.lines[said:] if "gdb-1" not in line] == [
            f"kvmdbg: the VM {name} has ended: QEMU was killed by signal 9 (SIGKILL)"
        ]
    await command.kvmdbg("ls")
    assert not vms.folders(name), "its runtime folder is still there"


async def test_qemu_killed_while_gdb_is_stopped(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    os.kill(kvmdbg_vm.status.pid, signal.SIGKILL)
    await kvmdbg_vm.wait_gone()
    with pytest.raises(GdbError, match=r"Target disconnected|Remote connection closed"):
        await booted_gdb.cli("stepi")


async def test_breakpoints_of_gdb_and_api_are_their_own(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    """The same breakpoint, inserted by both: each can take out only its own."""
    where = demo.workload()["workload_compute"]
    ours = await kvmdbg_vm.breakpoint(where)
    await booted_gdb.cli("break *workload_compute")
    assert (await booted_gdb.cont())["reason"] == "breakpoint-hit"
    await ours.remove()
    assert (await booted_gdb.cont())["reason"] == "breakpoint-hit"
