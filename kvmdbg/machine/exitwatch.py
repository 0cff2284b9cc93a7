"""Noticing that a process ends, and how.

Source: pidfd_open(2). How a process ended is known only of our own children.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess

from kvmdbg.errors import VmGone

_children: dict[int, subprocess.Popen[bytes]] = {}
"""QEMUs that we started and have not reaped: a Popen that is forgotten complains."""


def adopt(child: subprocess.Popen[bytes]) -> None:
    """Keep ``child``; :class:`ExitWatch` reaps it."""
    _children[child.pid] = child


class ExitWatch:
    """Watches one process until it ends."""

    def __init__(self, pid: int) -> None:
        """Raises VmGone when there is no such process."""
        self.pid = pid
        self.status: int | None = None
        """Exit status, or -N for signal N; None while it runs or when it is not our child."""
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise VmGone(f"QEMU (pid {pid}) has ended") from error
        self._loop.add_reader(self._fd, self._on_end)

    def _on_end(self) -> None:
        child = _children.pop(self.pid, None)
        if child is not None:
            self.status = child.wait()
        self.close()
        self._ended.set()

    @property
    def ended(self) -> bool:
        """True once it has ended."""
        return self._ended.is_set()

    @property
    def killed_by(self) -> int:
        """The signal that killed it; 0 where none did or that is not known."""
        return -self.status if self.status is not None and self.status < 0 else 0

    async def wait(self) -> None:
        """Return when the process has ended."""
        await self._ended.wait()

    def kill(self) -> None:
        """SIGKILL; nothing when it has ended already."""
        if self._fd >= 0:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Watch no longer."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
