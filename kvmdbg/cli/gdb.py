"""``--gdb``: a gdb of the user's, connected and with symbols."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from kvmdbg.errors import LaunchError
from kvmdbg.owner.protocol import VmStatus


def connect_hint(status: VmStatus) -> str:
    """The command that connects a gdb, for people to copy."""
    symbols = f" {status.vmlinux}" if status.vmlinux else ""
    return f"gdb{symbols} -ex 'target remote {status.gdb_socket}'"


async def run_gdb(status: VmStatus, arguments: list[str]) -> int:
    """Run gdb in the foreground until the user ends it; returns its exit status.

    ``arguments`` come after the connection, so that scripts of theirs find it made. Raises
    LaunchError when there is no gdb.
    """
    program = os.environ.get("KVMDBG_GDB", "gdb")
    if shutil.which(program) is None:
        raise LaunchError(
            f"there is no program {program}: install it (apt-get install gdb), or name one in "
            "the environment variable KVMDBG_GDB"
        )
    command = [program, "-q"]
    if status.vmlinux:
        command.append(status.vmlinux)
    command += ["-ex", f"target remote {status.gdb_socket}", *arguments]
    with _ctrl_c_is_for_gdb():
        process = await asyncio.create_subprocess_exec(*command)
        return await process.wait()


@contextmanager
def _ctrl_c_is_for_gdb() -> Iterator[None]:
    """Both processes get the terminal's SIGINT; only gdb shall act on it."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
