"""Processes as /proc shows them.

Source: proc(5). A pid is reused, a pid with its start time is not: together they name a process.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

PROC = Path("/proc")

_STATE = 0  # index of a field of /proc/PID/stat, counted after the command's name
_START_TIME = 19


class ProcessId(msgspec.Struct, frozen=True):
    """A process for good. ``start_time`` is in clock ticks since the host booted."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The live process that has ``pid`` now; a zombie is not alive."""
        stat = _stat(pid)
        if stat is None or stat[_STATE] in ("Z", "X"):
            return None
        return cls(pid, int(stat[_START_TIME]))

    @classmethod
    def parse(cls, text: str) -> ProcessId:
        """The inverse of ``str()``."""
        pid, _, start_time = text.partition("-")
        return cls(int(pid), int(start_time))

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return ProcessId.of(self.pid) == self

    def __str__(self) -> str:
        return f"{self.pid}-{self.start_time}"


def _stat(pid: int) -> list[str] | None:
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The command's name stands in parentheses and may hold any character itself.
    return text[text.rindex(")") + 2 :].split()


def pids() -> list[int]:
    """Every process that we may see."""
    return [int(name) for name in os.listdir(PROC) if name.isdecimal()]


def command_line(pid: int) -> list[str]:
    """Arguments of a process; empty for one that is gone, a zombie, or a kernel thread."""
    try:
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(argument) for argument in raw.split(b"\0")[:-1]]


def executable(pid: int) -> str | None:
    """Name of the program's file; None where we may not look (another user's process)."""
    try:
        target = os.readlink(PROC / str(pid) / "exe")
    except OSError:
        return None
    return Path(target.removesuffix(" (deleted)")).name


def working_directory(pid: int) -> Path | None:
    """Its working directory; None where we may not look."""
    try:
        return Path(os.readlink(PROC / str(pid) / "cwd"))
    except OSError:
        return None


def owner_uid(pid: int) -> int | None:
    """The uid that it runs as; None for one that is gone."""
    try:
        return (PROC / str(pid)).stat().st_uid
    except OSError:
        return None


def socket_inodes(pid: int) -> set[int]:
    """Inodes of its open sockets; empty where we may not look."""
    folder = PROC / str(pid) / "fd"
    inodes = set()
    with suppress(OSError):  # it ended, or is another user's
        for name in os.listdir(folder):
            with suppress(OSError):  # closed meanwhile
                target = os.readlink(folder / name)
                if target.startswith("socket:["):
                    inodes.add(int(target[8:-1]))
    return inodes
