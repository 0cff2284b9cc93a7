"""A guest that tells time by its TSC, and is stopped for a minute."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from kvmdbg import Vm
from tests.support import demo, vms

pytestmark = [
    pytest.mark.vm,
    # Without nowatchdog, which the demo has.
    pytest.mark.kvmdbg(run=True, append="console=ttyS0 quiet mitigations=off clocksource=tsc"),
]

STOPPED = 60
AFTERWARDS = 15
"""Seconds: the kernel looks at its clocks twice a second, and for lockups every four."""

COMPLAINTS = ("soft lockup", "detected stalls", "rcu_sched", "unstable", "clocksource:", "skewed")


@pytest.mark.timeout(600)
async def test_a_minute_in_the_debugger_is_no_time_for_the_guest(kvmdbg_vm: Vm) -> None:
    vm = kvmdbg_vm
    await demo.booted(vm)
    # A line that is longer than the terminal's is not echoed as it is.
    await vms.type_line(vm.status, "cd /sys/devices/system/clocksource/clocksource0")
    # The kernel takes its TSC when it has calibrated it for a second, and begins anew where an exit
    # in the way took more than 50,000 cycles, as they do on a busy machine.
    for second in range(120):
        if await shell(vm, "cat current_clocksource", f"source{second}") == "tsc":
            break
        await asyncio.sleep(1)
    else:
        why = await shell(vm, "dmesg | tail -n 40", "why")
        pytest.fail(f"the guest does not take its TSC for a clock: {why}")
    began, before = time.monotonic(), float(await shell(vm, "cut -d' ' -f1 /proc/uptime", "before"))
    await vm.pause()
    await asyncio.sleep(STOPPED)
    await vm.resume()
    await asyncio.sleep(AFTERWARDS)
    passed = float(await shell(vm, "cut -d' ' -f1 /proc/uptime", "after")) - before
    took = time.monotonic() - began
    assert AFTERWARDS / 2 < passed < took - STOPPED * 0.9
    assert await shell(vm, "cat current_clocksource", "again") == "tsc"
    told = await shell(vm, "dmesg | tail -n 40", "log")
    assert not [line for line in told.splitlines() if any(c in line for c in COMPLAINTS)], told


async def shell(vm: Vm, command: str, mark: str) -> str:
    """What a command prints in the guest."""
    await vms.type_line(vm.status, f"echo {mark}:; {command}; echo :{mark}")
    printed = await vm.wait_console(f"\n:{mark}", 60)
    found = re.search(rf"^{mark}:\n(.*?)\n:{mark}", printed, re.MULTILINE | re.DOTALL)
    assert found is not None, printed
    return found[1].strip()
