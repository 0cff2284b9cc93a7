"""Starting the watchdog, and telling it that all is well. See :mod:`.watchdog`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from kvmdbg.backend.stub import watchdog

BYE_TIMEOUT = 2.0


class Process(Protocol):
    """A process for good: ``start_time`` as in proc(5), clock ticks since the host booted."""

    @property
    def pid(self) -> int:
        """Process number."""
        ...

    @property
    def start_time(self) -> int:
        """When it started."""
        ...


class Watchdog:
    """A running watchdog; it acts when this process ends without :meth:`bye`."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int) -> None:
        self.process = process
        self._pipe = pipe

    async def bye(self) -> None:
        """The target is as it should be: the watchdog goes away. A second time does nothing."""
        if self._pipe < 0:
            return
        # When QEMU has ended, so has the watchdog.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, b"bye\n")
        self.abandon()
        try:
            await asyncio.to_thread(self.process.wait, BYE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def abandon(self) -> None:
        """Let it act, as if this process had been killed."""
        os.close(self._pipe)
        self._pipe = -1


async def start_watchdog(
    socket_path: Path, *, process: Process, lock: Path, orphan_timeout: float
) -> Watchdog:
    """Guard QEMU's ``process`` against the end of ours.

    ``socket_path`` is its stub's, ``lock`` the file that an owner holds by flock(2).
    ``orphan_timeout``: seconds without an owner after which QEMU is ended; 0 for never.
    """
    reading, writing = os.pipe()
    try:
        child = await asyncio.to_thread(
            subprocess.Popen,
            [
                sys.executable,
                *("-I", "-S", watchdog.__file__),
                *(str(socket_path), str(process.pid), str(process.start_time)),
                *(str(lock), str(orphan_timeout), str(reading)),
            ],
            pass_fds=(reading,),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
    finally:
        os.close(reading)
    return Watchdog(child, writing)
