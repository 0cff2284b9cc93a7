"""A kernel that patches its own code under our breakpoints."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from kvmdbg import Vm
from kvmdbg.target.stops import BreakpointHit
from tests.support import demo, vms

pytestmark = [pytest.mark.vm, pytest.mark.kvmdbg(run=True)]

TIMES = 4

SWITCHING = (
    "mount -t tracefs t /sys/kernel/tracing; cd /sys/kernel/tracing",
    "k=/proc/sys/kernel/sched_schedstats",
    "s() { echo $1 > current_tracer; echo 1 > $k; echo 0 > $k; }",
    "(sleep 2; s function; s nop; s function; s nop; echo pat''ched) &",
)
"""Lines that fit on the terminal's: a longer one is not echoed as it is."""

HITS = {
    "tracing_set_trace_write": TIMES,
    "tracing_set_tracer": TIMES,
    "proc_sys_open": 2 * TIMES,
    "proc_sys_write": 2 * TIMES,
    "sysctl_schedstats": 2 * TIMES,
    "static_key_enable": None,
}
"""Entries of functions, all of them patched by the function tracer, and more than there are debug
registers; how often each is called meanwhile, if that is known."""

COMPLAINTS = ("WARNING:", "BUG:", "ftrace failed", "ftrace bug", "Oops", "Kernel panic")


@pytest.mark.parametrize(
    "cpus", [pytest.param(n, marks=pytest.mark.kvmdbg(run=True, cpus=n)) for n in (1, 2)]
)
async def test_tracing_and_static_keys_go_on_and_off_under_breakpoints(
    kvmdbg_vm: Vm, cpus: int
) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    # Typed before anything stops the guest, because a key pressed is many system calls.
    for line in SWITCHING:
        await vms.type_line(vm.status, line)
    await vm.pause()
    code = {name: await original(vm, name) for name in HITS}
    points = [await vm.breakpoint(name) for name in HITS]
    hits: Counter[int] = Counter()
    counting = asyncio.create_task(count_hits(vm, hits))
    await demo.wait_console(vm, "patched", 60)
    counting.cancel()
    await vm.pause()
    expected = {name: hits[demo.kernel()[name]] for name in HITS}
    assert all(expected.values())
    assert expected == {name: n or expected[name] for name, n in HITS.items()}
    for bp in points:
        await bp.remove()
    assert {name: await original(vm, name) for name in HITS} == code
    await vm.resume()
    await vms.type_line(vm.status, "echo ali''ve")
    console = await vm.wait_console("alive", 60)
    assert not [line for line in console.splitlines() if any(c in line for c in COMPLAINTS)]


async def original(vm: Vm, name: str) -> str:
    """A function's first bytes, by QEMU's monitor: what the guest itself has there."""
    return await vm.monitor(f"x /8bx {demo.kernel()[name]:#x}")


async def count_hits(vm: Vm, hits: Counter[int]) -> None:
    """Resume after each hit."""
    while True:
        await vm.resume()
        reason = (await vm.wait_stop(120)).reason
        assert isinstance(reason, BreakpointHit), reason
        hits[reason.address] += 1
