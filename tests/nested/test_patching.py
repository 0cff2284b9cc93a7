"""A kernel that patches its own code under our breakpoints."""

from __future__ import annotations

import asyncio

import pytest

from kvmdbg import Vm
from kvmdbg.target.stops import BreakpointHit
from tests.support import demo, vms

pytestmark = [pytest.mark.vm, pytest.mark.kvmdbg(run=True, cpus=2)]

SITES = (
    "do_sys_openat2",
    "ksys_read",
    "ksys_write",
    "__x64_sys_close",
    "__x64_sys_nanosleep",
    "hrtimer_nanosleep",
)
"""Entries of functions that the workload calls all the time; more than debug registers."""

SWITCHING = (
    "mount -t tracefs t /sys/kernel/tracing; cd /sys/kernel/tracing",
    "k=/proc/sys/kernel/sched_schedstats",
    "s() { echo $1 > current_tracer; echo 1 > $k; echo 0 > $k; }",
    "(sleep 2; s function; s nop; s function; s nop; echo al''l) &",
)
"""Lines that fit on the terminal's: a longer one is not echoed as it is."""

COMPLAINTS = ("WARNING:", "BUG:", "ftrace failed", "ftrace bug", "Oops", "Kernel panic")


async def test_tracing_and_static_keys_go_on_and_off_under_breakpoints(kvmdbg_vm: Vm) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    # Typed before anything stops the guest, because a key pressed is many system calls.
    for line in SWITCHING:
        await vms.type_line(vm.status, line)
    await vm.pause()
    code = {name: await original(vm, name) for name in SITES}
    points = [await vm.breakpoint(name) for name in SITES]
    await hit_all(vm)
    going_on = asyncio.create_task(keep_going(vm))
    await vm.wait_console("\nall", 60)
    going_on.cancel()
    await vm.pause()
    await hit_all(vm)
    for bp in points:
        await bp.remove()
    assert {name: await original(vm, name) for name in SITES} == code
    await vm.resume()
    await shell(vm, "true", "alive")
    console = await vm.wait_console("alive")
    assert not [line for line in console.splitlines() if any(c in line for c in COMPLAINTS)]


async def shell(vm: Vm, command: str, mark: str) -> None:
    """Run a command in the guest's shell, to its end."""
    await vms.type_line(vm.status, f"{command}; echo {mark[0]}''{mark[1:]}")
    await vm.wait_console(f"\n{mark}", 60)


async def original(vm: Vm, name: str) -> str:
    """A function's first bytes, by QEMU's monitor: what the guest itself has there."""
    return await vm.monitor(f"x /8bx {demo.kernel()[name]:#x}")


async def hit_all(vm: Vm) -> None:
    """Let the VM run until every breakpoint has been hit."""
    left = {demo.kernel()[name] for name in SITES}
    while left:
        await vm.resume()
        reason = (await vm.wait_stop(60)).reason
        assert isinstance(reason, BreakpointHit), reason
        left.discard(reason.address)


async def keep_going(vm: Vm) -> None:
    """Resume after each hit."""
    while True:
        if vm.stopped is not None:
            await vm.resume()
        await asyncio.sleep(0.001)
