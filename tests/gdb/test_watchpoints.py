"""Watchpoints, with the values before and after."""

from __future__ import annotations

import pytest

from kvmdbg import Vm
from tests.support import demo
from tests.support.gdb import Gdb
from tests.support.marks import both_cpu_counts

pytestmark = [pytest.mark.gdb, pytest.mark.kvmdbg(run=True)]

COUNTER = "*(unsigned long *)&workload_iterations"
JIFFIES = "*(unsigned long *)&jiffies_64"


@both_cpu_counts
async def test_watch_a_user_variable(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    # gdb reads the value first, so the workload must be the one that runs.
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    value = await gdb.value("workload_iterations")
    await gdb.cli("delete")
    await gdb.cli(f"watch {COUNTER}")
    for _ in range(3):
        stop = await gdb.cont()
        assert stop["reason"] == "watchpoint-trigger"
        assert stop["value"] == {"old": str(value), "new": str(value + 1)}
        assert stop["frame"]["func"] == "workload_tick"
        # The store is over: pc is behind `mov %rax,workload_iterations`.
        assert await gdb.value("$rax") == value + 1
        value += 1


@both_cpu_counts
async def test_watch_a_kernel_variable(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    before = await gdb.value(JIFFIES)
    await gdb.cli(f"watch {JIFFIES}")
    stop = await gdb.cont()
    assert stop["reason"] == "watchpoint-trigger"
    old, new = int(stop["value"]["old"]), int(stop["value"]["new"])
    assert old == before
    assert new > old
    assert demo.function_at(await gdb.value("$pc")) in ("do_timer", "tick_do_update_jiffies64")


@both_cpu_counts
async def test_rwatch(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_increment")
    await gdb.cont()
    value = await gdb.value("workload_iterations")
    await gdb.cli("delete")
    await gdb.cli(f"rwatch {COUNTER}")
    # workload_tick reads it twice a tick: to add to it, and to pass it on.
    for expected in (value, value + 1, value + 1, value + 2):
        stop = await gdb.cont()
        assert stop["reason"] == "read-watchpoint-trigger"
        assert stop["value"] == {"value": str(expected)}
        assert stop["frame"]["func"] == "workload_tick"


@both_cpu_counts
async def test_awatch(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_increment")
    await gdb.cont()
    value = await gdb.value("workload_iterations")
    await gdb.cli("delete")
    await gdb.cli(f"awatch {COUNTER}")
    # Read, written, read: gdb cannot tell a read from a write of the same value, and calls it new.
    written = {"old": str(value), "new": str(value + 1)}
    for expected in ({"new": str(value)}, written, {"new": str(value + 1)}):
        stop = await gdb.cont()
        assert stop["reason"] == "access-watchpoint-trigger"
        assert stop["value"] == expected


async def test_a_byte_inside_a_word(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    await gdb.cli("delete")
    await gdb.cli("set var workload_iterations = 0xfd")
    await gdb.cli("watch *((unsigned char *)&workload_iterations + 1)")
    stop = await gdb.cont()
    # gdb goes on by itself while the byte stays the same.
    assert stop["reason"] == "watchpoint-trigger"
    assert await gdb.value("workload_iterations") == 0x100


async def test_watch_and_break_together(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    gdb = booted_gdb
    await gdb.cli("break *workload_compute")
    await gdb.cont()
    await gdb.cli(f"watch {COUNTER}")
    reasons = [(await gdb.cont())["reason"] for _ in range(4)]
    assert reasons == ["watchpoint-trigger", "breakpoint-hit"] * 2
