"""A writer of initramfs archives: cpio's "newc" format, without cpio and without root.

Source: kernel ``Documentation/driver-api/early-userspace/buffer-format.rst``. The archive depends
on nothing but what is added to it: every entry belongs to root and has the time 0, and inode
numbers are counted.
"""

from __future__ import annotations

import stat
from typing import Literal

_ALIGN = 4
_TRAILER = "TRAILER!!!"


class CpioWriter:
    """Entries in the order they are added; a folder must come before what is in it."""

    def __init__(self) -> None:
        self._archive = bytearray()
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._entry(path, stat.S_IFDIR | mode, links=2)

    def file(self, path: str, content: bytes, mode: int = 0o755) -> None:
        self._entry(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(
        self, path: str, kind: Literal["b", "c"], major: int, minor: int, mode: int = 0o600
    ) -> None:
        file_type = stat.S_IFCHR if kind == "c" else stat.S_IFBLK
        self._entry(path, file_type | mode, device=(major, minor))

    def finish(self) -> bytes:
        """The whole archive, its trailer included."""
        self._inode = -1  # the trailer's is 0
        self._entry(_TRAILER, 0)
        return bytes(self._archive)

    def _entry(
        self,
        path: str,
        mode: int,
        content: bytes = b"",
        *,
        links: int = 1,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        uid = gid = mtime = major = minor = checksum = 0
        fields = (
            *(self._inode, mode, uid, gid, links, mtime, len(content), major, minor),
            *(*device, len(name), checksum),
        )
        self._archive += b"070701" + b"".join(b"%08X" % field for field in fields)
        self._append(name)
        self._append(content)

    def _append(self, data: bytes) -> None:
        self._archive += data
        self._archive += bytes(-len(self._archive) % _ALIGN)
