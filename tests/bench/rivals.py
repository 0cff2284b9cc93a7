"""The two that are compared: kvmdbg, and QEMU's own stub, on the same guest."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import kvmdbg

# Options of the VM's own QEMU that would make a second one use the same sockets.
_PRIVATE = {"-name", "-chardev", "-mon", "-gdb", "-serial"}


@dataclass(frozen=True)
class Rivals:
    """A socket for RSP of each."""

    kvmdbg: Path
    stub: Path


@asynccontextmanager
async def rivals() -> AsyncIterator[Rivals]:
    """A VM of each. Only RSP clients are with ours: who follows it has to be told of each stop."""
    name = f"bench-{os.getpid()}"
    async with kvmdbg.open("demo", instance=name, keep=True) as vm:
        status = vm.status
    try:
        with _plain_qemu(status.pid) as theirs:
            yield Rivals(Path(status.gdb_socket), theirs)
    finally:
        async with kvmdbg.open(name) as vm:
            await vm.quit()


def plain_command(pid: int) -> list[str]:
    """A command for a QEMU like that of ``pid``, with nothing of kvmdbg."""
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    options = iter(argv[1:])
    kept = [argv[0]]
    for option in options:
        if option in _PRIVATE:
            next(options)
        else:
            kept.append(option)
    return kept


@contextmanager
def _plain_qemu(pid: int) -> Iterator[Path]:
    """A QEMU like that of ``pid``, with nothing of kvmdbg; yields its stub's socket."""
    kept = plain_command(pid)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stub.sock")
        kept += ["-gdb", f"unix:{path},server=on,wait=off", "-serial", "null"]
        process = subprocess.Popen(kept)
        try:
            deadline = time.monotonic() + 10
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield path
        finally:
            process.kill()
            process.wait()
