"""`make demo`: its transcript, and the prompt that follows on a terminal."""

from __future__ import annotations

import re

import pytest

import kvmdbg
from kvmdbg.images import builtin_dir
from tests.support import command, demo, vms
from tests.support.terminal import on_terminal

pytestmark = pytest.mark.gdb

SCRIPT = builtin_dir() / "demo" / "demo.gdb"


def section(transcript: str, heading: str) -> str:
    """What the transcript has under a heading."""
    _, found, rest = transcript.partition(f"\n--- {heading}")
    assert found, transcript
    return rest.partition("\n--- ")[0]


def value(text: str, register: str) -> int:
    """A register's value in the output of `info registers`."""
    match = re.search(rf"^{register} +(0x[0-9a-f]+) ", text, re.MULTILINE)
    assert match is not None, text
    return int(match[1], 16)


async def test_the_transcript() -> None:
    name = command.fresh_name()
    arguments = ("--vm", "demo", "--name", name, "--gdb", "--", "-nx", "-batch", "-x", SCRIPT)
    done = await command.kvmdbg(*arguments)
    assert done.status == 0, done.err
    kernel = demo.kernel()

    first = section(done.out, "At the reset vector")
    assert (value(first, "cs"), value(first, "rip")) == (0xF000, 0xFFF0)
    assert f"Breakpoint 1, {kernel['start_kernel']:#018x} in start_kernel ()" in first

    early = section(done.out, "The kernel's first C function")
    assert value(early, "rip") == kernel["start_kernel"]
    assert f"=> {kernel['start_kernel']:#x} <start_kernel>:\t" in early
    assert re.search(r"^efer .* LMA ", early, re.MULTILINE)

    opens = section(done.out, "Break at a kernel function by name")
    assert f"Breakpoint 2, {kernel['do_sys_openat2']:#018x} in do_sys_openat2 ()" in opens
    assert value(opens, "rdi") == demo.AT_FDCWD & 0xFFFF_FFFF
    assert '"/init"' in opens

    steps = section(done.out, "Step by instruction")
    assert steps.count(" in do_sys_openat2 ()") == 2
    assert re.search(r"^=> 0x[0-9a-f]+ <do_sys_openat2\+\d+>:", steps, re.MULTILINE)

    watched = section(done.out, "Watch a variable")
    changes = re.findall(r"Old value = (\d+)\nNew value = (\d+)\n", watched)
    assert len(changes) == 2
    assert all(int(new) > int(old) for old, new in changes)
    assert changes[0][1] == changes[1][0]

    assert "detached]" in section(done.out, "Detach")
    assert "Error" not in done.out
    # The guest runs on, and as nobody comes it ends.
    await vms.wait_ended(name)


async def test_a_second_demo_starts_the_running_vm_again() -> None:
    name = command.fresh_name()
    arguments = ("--vm", "demo", "--name", name, "--gdb", "--", "-nx", "-batch", "-x", SCRIPT)
    # Without --keep it ends 5 s later, which is less than some machines take to begin.
    assert (await command.kvmdbg("--keep", *arguments)).status == 0
    done = await command.kvmdbg(*arguments)
    assert done.status == 0, done.err
    assert "(gdb) monitor system_reset\n" in section(done.out, "This VM has been running")
    assert "detached]" in section(done.out, "Detach")
    await vms.end(name)


async def test_on_a_terminal_the_prompt_follows() -> None:
    name = command.fresh_name()
    arguments = ("--vm", "demo", "--name", name, "--gdb", "--", "-nx", "-x", SCRIPT)
    async with on_terminal(command.KVMDBG, *arguments) as terminal:
        await terminal.wait_for(b"--- Your turn")
        await terminal.wait_for(b"(gdb) target remote ")
        await terminal.wait_for(b"after you quit gdb.")
        terminal.type(b"break *do_sys_openat2\n")
        await terminal.wait_for(b"Breakpoint 4 at ")
        terminal.type(b"continue\n")
        await terminal.wait_for(b"Breakpoint 4, ")
        # Ctrl-C is gdb's, not kvmdbg's.
        terminal.type(b"delete\n")
        await terminal.wait_for(b"(y or n) ")
        terminal.type(b"y\ncontinue\n")
        await terminal.wait_for(b"Continuing.")
        # gdb says so before it does it, and drops a Ctrl-C that comes between.
        async with kvmdbg.open("demo", instance=name) as vm:
            await vms.wait_state(vm.status, "running")
        terminal.type(b"\x03")
        await terminal.wait_for(b"SIGINT")
        terminal.type(b"detach\n")
        await terminal.wait_for(b"detached]")
        terminal.type(b"quit\n")
        assert await terminal.wait_end() == 0
    await vms.wait_ended(name)
