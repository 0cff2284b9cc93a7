"""``--gdb``: a gdb of the user's, connected and with symbols."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kvmdbg.arch import ARCHITECTURES, Architecture
from kvmdbg.errors import LaunchError
from kvmdbg.owner.protocol import VmStatus

_PROGRAMS = ("gdb", "gdb-multiarch")


def find_gdb(arch: str) -> str:
    """The gdb for a guest of that architecture: KVMDBG_GDB, else the first that knows it.

    Raises LaunchError.
    """
    name_one = "or name one in the environment variable KVMDBG_GDB"
    chosen = os.environ.get("KVMDBG_GDB")
    there = [program for program in _PROGRAMS if shutil.which(program)]
    if chosen:
        if shutil.which(chosen) is None:
            raise LaunchError(f"there is no program {chosen}, which KVMDBG_GDB names: install it")
        return chosen
    for program in there:
        if arch == platform.machine() or _knows(program, ARCHITECTURES[arch]):
            return program
    if arch == platform.machine():
        raise LaunchError(f"there is no gdb: install it (apt-get install gdb), {name_one}")
    trouble = f"{' and '.join(there)} cannot debug {arch}" if there else "there is no gdb"
    raise LaunchError(
        f"{trouble}: install one that can (apt-get install gdb-multiarch), {name_one}"
    )


def _knows(program: str, arch: Architecture) -> bool:
    ask = ("-ex", f"set architecture {arch.gdb_name}", "-ex", "show architecture")
    done = subprocess.run(
        [program, "-nx", "-batch", *ask],
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return f'"{arch.gdb_name}"' in done.stdout


async def connect_hint(status: VmStatus) -> str:
    """The command that connects a gdb, for people to copy."""
    program = "gdb"
    with suppress(LaunchError):
        program = await asyncio.to_thread(find_gdb, status.arch)
    symbols = f" {status.vmlinux}" if status.vmlinux else ""
    return f"{program}{symbols} -ex 'target remote {status.gdb_socket}'"


async def run_gdb(status: VmStatus, arguments: list[str]) -> int:
    """Run gdb in the foreground until the user ends it; returns its exit status.

    ``arguments`` come after the connection, so that scripts of theirs find it made. Raises
    LaunchError when there is no gdb.
    """
    command = [await asyncio.to_thread(find_gdb, status.arch), "-q"]
    if status.vmlinux:
        command.append(status.vmlinux)
    command += ["-ex", f"target remote {status.gdb_socket}", *arguments]
    with _ctrl_c_is_for_gdb():
        process = await asyncio.create_subprocess_exec(*command)
        try:
            return await process.wait()
        except asyncio.CancelledError:  # we are to end, and gdb with us
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            raise


@contextmanager
def _ctrl_c_is_for_gdb() -> Iterator[None]:
    """Both processes get the terminal's SIGINT; only gdb shall act on it."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
