"""Ctrl-C, where nothing in the guest would notice it."""

from __future__ import annotations

import asyncio

import pytest

from kvmdbg import Vm
from tests.support import demo
from tests.support.gdb import Gdb
from tests.support.marks import both_cpu_counts
from tests.support.placing import put_vcpus_into

pytestmark = [pytest.mark.gdb, pytest.mark.kvmdbg(run=True)]

QUICKLY = 2.0
"""Seconds: a user's patience, on a busy machine."""

HLT_FOREVER = bytes.fromhex("fa f4 eb fc")  # cli; hlt; jmp -2
HLT_LOOP = bytes.fromhex("fb f4 90 eb fc")  # sti; hlt; nop; jmp to the hlt


async def run_and_interrupt(gdb: Gdb) -> float:
    """Continue, let the vCPUs come to rest, press Ctrl-C; seconds until the stop."""
    loop = asyncio.get_running_loop()
    await gdb.mi("-exec-continue")
    await asyncio.sleep(0.3)  # there is no event for "nothing happens any more"
    assert not gdb.stops
    pressed = loop.time()
    gdb.interrupt()
    stop = await gdb.wait_stopped()
    assert (stop["reason"], stop["signal-name"]) == ("signal-received", "SIGINT")
    return loop.time() - pressed


@both_cpu_counts
@pytest.mark.parametrize("code", [HLT_FOREVER, HLT_LOOP], ids=["cli-hlt", "hlt"])
async def test_ctrl_c_when_all_vcpus_are_halted(
    kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int, code: bytes
) -> None:
    gdb = booted_gdb
    address = await put_vcpus_into(gdb, code, cpus)
    assert await run_and_interrupt(gdb) < QUICKLY
    if code == HLT_FOREVER:
        for number in range(cpus):
            await gdb.mi(f"-thread-select {number + 1}")
            assert await gdb.value("$pc") == address + 2
    # And once more: the stop has not woken it for good.
    assert await run_and_interrupt(gdb) < QUICKLY


@both_cpu_counts
async def test_ctrl_c_in_an_idle_guest(kvmdbg_vm: Vm, booted_gdb: Gdb, cpus: int) -> None:
    gdb = booted_gdb
    for _ in range(3):
        assert await run_and_interrupt(gdb) < QUICKLY
        assert demo.function_at(await gdb.value("$pc")) or await gdb.value("$cs") & 3


async def test_stepping_a_hlt_ends_with_the_interrupt_that_ends_the_hlt(
    kvmdbg_vm: Vm, booted_gdb: Gdb
) -> None:
    gdb = booted_gdb
    address = await put_vcpus_into(gdb, HLT_LOOP, 1)
    await gdb.stepi()  # sti
    assert await gdb.value("$pc") == address + 1
    await gdb.stepi()  # hlt
    # QEMU executes the next instruction too where an interrupt is pending already.
    assert await gdb.value("$pc") in (address + 2, address + 3)


async def test_stepping_a_hlt_that_nothing_ends(kvmdbg_vm: Vm, booted_gdb: Gdb) -> None:
    """The step is over all the same; the vCPU stays halted when it runs on."""
    gdb = booted_gdb
    address = await put_vcpus_into(gdb, HLT_FOREVER, 1)
    await gdb.stepi()  # cli
    await gdb.stepi(QUICKLY)  # hlt
    assert await gdb.value("$pc") == address + 2
    assert await run_and_interrupt(gdb) < QUICKLY
    assert await gdb.value("$pc") == address + 2
