"""Starting the watchdog, and telling it that all is well. See :mod:`.watchdog`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from kvmdbg.machine import watchdog

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


@dataclass(frozen=True)
class Rescue:
    """How the guest is restored when the owner was killed, and over which socket of QEMU's."""

    kind: str
    socket: str

    @classmethod
    def stub(cls, socket: Path) -> Self:
        """By QEMU's stub, which drops every breakpoint and lets the guest run on."""
        return cls(watchdog.BY_STUB, str(socket))

    @classmethod
    def monitor(cls, socket: str) -> Self:
        """By a QMP monitor: the agent cleans up by itself, and QEMU has to let the guest run on.
        An abstract socket's path starts with a NUL."""
        return cls(watchdog.BY_MONITOR, socket.replace("\0", watchdog.ABSTRACT, 1))


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
    rescue: Rescue, *, process: Process, lock: Path, orphan_timeout: float
) -> Watchdog:
    """Guard QEMU's ``process`` against the end of ours.

    ``lock`` is the file that an owner holds by flock(2).
    ``orphan_timeout``: seconds without an owner after which QEMU is ended; 0 for never.
    """
    reading, writing = os.pipe()
    try:
        child = await asyncio.to_thread(
            subprocess.Popen,
            [
                sys.executable,
                *("-I", "-S", watchdog.__file__),
                *(rescue.kind, rescue.socket, str(process.pid), str(process.start_time)),
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
