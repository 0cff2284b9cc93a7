"""The owner's lifetimes, and what is left when it is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import kvmdbg
from kvmdbg.errors import OwnerError
from tests.support import command, demo, vms
from tests.support.gdb import Gdb, start_gdb

pytestmark = [pytest.mark.vm, pytest.mark.gdb]

GRACE = 5.0


async def left_running(gdb: Gdb) -> None:
    await gdb.cli("break *__x64_sys_sync")
    await gdb.mi("-exec-continue")


async def left_stopped(gdb: Gdb) -> None:
    await gdb.cli("set breakpoint always-inserted on")
    await gdb.cli("break *do_sys_openat2")
    await gdb.cont()


async def left_stepping(gdb: Gdb) -> None:
    await left_stopped(gdb)
    await gdb.mi('-interpreter-exec console "stepi 1000000"')


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("leave", [left_running, left_stopped, left_stepping])
async def test_a_killed_owner_leaves_a_guest_that_runs_unpatched(
    leave: Callable[[Gdb], Awaitable[None]], cpus: int
) -> None:
    name = command.fresh_name()
    async with vms.lasting(name, run=True, overrides={"cpus": cpus}) as vm:
        await demo.booted(vm)
        async with start_gdb(demo.artefact("vmlinux"), vm.status.gdb_socket) as gdb:
            await leave(gdb)
            await vms.kill_owner(vm.status)
            await vms.wait_state(vm.status, "running")
            with pytest.raises(
                OwnerError, match=f"{name} runs on, but .*: kvmdbg --vm {name} takes over"
            ):
                await vm.pause()
        # sync() and open() are called: no breakpoint of the dead owner's stops them.
        await vms.type_line(vm.status, "sync; echo 'survi'ved")
        await vms.wait_printed(vm.status, "\nsurvived")
        assert await vms.run_state(vm.status) == "running"

        async with kvmdbg.open(name) as heir:
            heir.time_scale = vm.time_scale
            assert heir.status.pid == vm.status.pid
            before = await demo.iterations(heir)
            assert await demo.iterations(heir) == before + 1
            async with start_gdb(None, heir.status.gdb_socket) as gdb:
                assert await gdb.value("$pc") == await heir.register("rip")


async def test_a_second_kvmdbg_is_a_client_of_the_first() -> None:
    name = command.fresh_name()
    arguments = ("--vm", "demo", "--name", name)
    async with command.foreground(*arguments) as first:
        hint = await first.wait_line("connect with: ")
        await first.wait_line("Ctrl-C leaves")
        facts = vms.info(name)
        assert facts is not None
        async with command.foreground(*arguments) as second:
            assert await second.wait_line("connect with: ") == hint
            await second.wait_line("Ctrl-C leaves")
            first.press_ctrl_c()
            assert await first.wait_end() == 0
            assert vms.info(name) == facts
            second.press_ctrl_c()
            assert await second.wait_end() == 0
        left = asyncio.get_running_loop().time()
        await vms.wait_ended(name)
        assert asyncio.get_running_loop().time() - left > GRACE / 2


async def test_two_kvmdbg_at_once_boot_one_vm() -> None:
    name = command.fresh_name()
    arguments = ("--vm", "demo", "--name", name)
    try:
        async with command.foreground(*arguments) as one, command.foreground(*arguments) as two:
            assert await one.wait_line("connect with: ") == await two.wait_line("connect with: ")
            done = await command.kvmdbg("--vm", name, "quit")
            assert done.status == 0, done.err
            assert [await one.wait_end(), await two.wait_end()] == [0, 0]
    finally:
        await vms.end(name)


async def test_keep_outlives_its_clients() -> None:
    name = command.fresh_name()
    try:
        async with command.foreground("--vm", "demo", "--name", name, "--keep") as running:
            await running.wait_line("Ctrl-C leaves; the VM stays")
            running.press_ctrl_c()
            await running.wait_end()
        facts = vms.info(name)
        assert facts is not None
        with pytest.raises(TimeoutError):
            await vms.wait_dead(facts.pid, timeout=GRACE + 1)
    finally:
        await vms.end(name)


@pytest.mark.parametrize(("orphan_timeout", "lives"), [(1, False), (60, True)])
async def test_a_killed_client_ends_no_vm_but_an_orphan_ends(
    orphan_timeout: int, lives: bool
) -> None:
    name = command.fresh_name()
    setting = f"debug={{orphan_timeout={orphan_timeout}}}"
    try:
        async with command.foreground("--vm", "demo", "--name", name, "--set", setting) as running:
            await running.wait_line("Ctrl-C leaves")
            running.process.kill()
        facts = vms.info(name)
        assert facts is not None
        if lives:
            with pytest.raises(TimeoutError):
                await vms.wait_dead(facts.pid, timeout=GRACE + 1)
        else:
            await vms.wait_ended(name)
    finally:
        await vms.end(name)


async def test_nothing_is_left_behind() -> None:
    name = command.fresh_name()
    async with vms.lasting(name) as vm:
        owner = vms.owner_pid(vm.status)
        assert vms.folders(name)
    await vms.wait_dead(owner)
    await command.kvmdbg("ls")
    assert not vms.folders(name)
    assert not vms.alive(vm.status.pid)
