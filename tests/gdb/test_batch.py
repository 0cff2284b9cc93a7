"""``target remote | kvmdbg --stdio``: one gdb command line from nothing to a VM that has ended."""

from __future__ import annotations

import os
import re

import pytest

from tests.support import command, demo, vms

pytestmark = pytest.mark.gdb


async def gdb_batch(name: str, *commands: str, options: str = "") -> command.Finished:
    pipe = f"{command.KVMDBG} --vm demo --name {name} {options} --stdio"
    executed = [f"target remote | {pipe}", *commands]
    return await command.run(
        *("gdb", "-nx", "-batch", "-ex", "set pagination off"),
        # gdb waits 2 s for the first answer, which is less than kvmdbg takes to begin in the lab.
        *(("-ex", "set remotetimeout 60") if "KVMDBG_LAB" in os.environ else ()),
        *(part for text in executed for part in ("-ex", text)),
        demo.artefact("vmlinux"),
    )


@pytest.mark.parametrize("cpus", [1, 2])
async def test_from_the_reset_vector_to_start_kernel(cpus: int) -> None:
    name = command.fresh_name()
    done = await gdb_batch(
        name,
        'printf "at %#lx:%#lx\\n", $cs, $rip',
        "hbreak start_kernel",
        "continue",
        'printf "pc is %#lx\\n", $pc',
        "info threads",
        options=f"--set cpus={cpus}",
    )
    assert done.status == 0, done.err
    assert "at 0xf000:0xfff0\n" in done.out
    assert f"pc is {demo.kernel()['start_kernel']:#x}\n" in done.out
    assert done.out.count("(vCPU ") == cpus
    # gdb kills what it did not attach to when it ends.
    await vms.wait_ended(name)


async def test_detach_lets_the_vm_run_until_nobody_has_come_for_a_while() -> None:
    name = command.fresh_name()
    done = await gdb_batch(name, "hbreak start_kernel", "continue", "detach")
    assert done.status == 0, done.err
    assert "detached" in done.out
    facts = vms.info(name)
    assert facts is not None, "detach ends no VM"
    await vms.wait_dead(facts.pid, timeout=5 + vms.TIMEOUT)


async def test_a_second_kvmdbg_finds_the_vm_of_the_first() -> None:
    name = command.fresh_name()
    first = await gdb_batch(name, "hbreak start_kernel", "continue", "detach", options="--keep")
    before = vms.info(name)
    second = await gdb_batch(name, "p $cr0", "kill")
    assert (first.status, second.status) == (0, 0), second.err
    assert before is not None
    assert re.search(r"\$1 = \[.* PG ", second.out), second.out
    await vms.wait_ended(name)


async def test_a_vm_that_cannot_be_started_is_one_sentence() -> None:
    done = await gdb_batch(command.fresh_name(), options="--accel tcg --engine agent")
    assert done.err.count("kvmdbg: ") == 1, done.err
    assert "Traceback" not in done.err
