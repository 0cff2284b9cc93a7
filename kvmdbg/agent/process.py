"""A process that is not ours, as /proc shows it: its memory, its descriptors, who may trace it.

Source: proc(5).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from kvmdbg._native import ffi, lib
from kvmdbg.errors import AttachError

PROC = Path("/proc")

_MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ \d+ *(.*)$", re.MULTILINE | re.ASCII
)
_DELETED = " (deleted)"


@dataclass(frozen=True)
class Mapping:
    """A line of /proc/PID/maps. ``path`` is that of the process's own mount namespace."""

    start: int
    end: int
    permissions: str
    offset: int
    path: str


class Process:
    """Raises AttachError where it has ended, or we may not look."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._folder = PROC / str(pid)

    def mappings(self) -> list[Mapping]:
        """All of its memory, in order."""
        return [
            Mapping(
                int(start, 16),
                int(end, 16),
                permissions,
                int(offset, 16),
                path.removesuffix(_DELETED),
            )
            for start, end, permissions, offset, path in _MAPPING.findall(self._text("maps"))
        ]

    def module(self, name: re.Pattern[str]) -> int | None:
        """Where a shared object whose file's name matches is loaded: its first byte."""
        for mapping in self.mappings():
            if mapping.offset == 0 and name.fullmatch(Path(mapping.path).name):
                return mapping.start
        return None

    def read(self, address: int, length: int) -> bytes:
        """Its memory, in bytes."""
        data = bytearray(length)
        count = lib.read_process_memory(self.pid, address, ffi.from_buffer(data), length)
        if count < 0:
            raise AttachError(
                f"the memory of process {self.pid} cannot be read: {os.strerror(-count)}"
            )
        return bytes(data[:count])

    def read_string(self, address: int, limit: int = 1024) -> str:
        """A C string, cut at ``limit`` bytes."""
        return os.fsdecode(self.read(address, limit).partition(b"\0")[0])

    def descriptors(self) -> dict[int, str]:
        """What each of its open files is."""
        found = {}
        try:
            numbers = sorted(map(int, os.listdir(self._folder / "fd")))
        except OSError as error:
            raise self._denied(error) from error
        for number in numbers:
            try:
                found[number] = os.readlink(self._folder / "fd" / str(number))
            except FileNotFoundError:  # closed meanwhile
                continue
        return found

    def threads(self) -> list[int]:
        """Ids of its threads."""
        try:
            return sorted(map(int, os.listdir(self._folder / "task")))
        except OSError as error:
            raise self._denied(error) from error

    def status(self, key: str) -> str:
        """A line of /proc/PID/status; empty where there is none."""
        found = re.search(rf"^{key}:\s*(.*)$", self._text("status"), re.MULTILINE)
        return found[1] if found else ""

    @property
    def name(self) -> str:
        """The command's name, as ps shows it."""
        return self._text("comm").strip()

    def path_seen(self, path: Path) -> Path:
        """Where we find a file that the process knows as ``path``."""
        return self._folder / "root" / path.relative_to("/")

    def _text(self, name: str) -> str:
        try:
            return (self._folder / name).read_text(errors="replace")
        except OSError as error:
            raise self._denied(error) from error

    def _denied(self, error: OSError) -> AttachError:
        if not self._folder.exists():
            return AttachError(f"there is no process {self.pid} (any more)")
        return AttachError(
            f"process {self.pid} cannot be looked into ({error.strerror}): run kvmdbg as the user "
            "that QEMU runs as, or as root"
        )
