"""Files for gdb: the VM's symbol file and no other, to read and for nothing else.

A file is opened anew for every read, so that there is nothing to close when a client vanishes.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from kvmdbg.rsp.server.commands.files import (
    CloseFile,
    FileStatus,
    OpenFile,
    ReadFile,
    SetFilesystem,
)
from kvmdbg.rsp.server.replies import FileError, FileResult, Reply
from kvmdbg.server.client import PACKET_SIZE, Client

# File-I/O's own numbers (GDB manual, "Errno Values"), not the host's.
_ENOENT, _EBADF, _EACCES, _EINVAL, _EMFILE, _EROFS = 2, 9, 13, 22, 24, 30

_MAX_FILES = 16
"""Files that one client may have open; gdb has one or two."""

_STATUS = struct.Struct(">7I3Q3I")
"""File-I/O's struct stat: dev, ino, mode, nlink, uid, gid, rdev; size, blksize, blocks; times."""


async def set_filesystem(client: Client, command: SetFilesystem) -> Reply:
    """``vFile:setfs``: there is one file, whoever looks."""
    return FileResult(0)


async def open_file(client: Client, command: OpenFile) -> Reply:
    """``vFile:open``"""
    path = client.host.symbol_file
    if path is None or command.path != str(path):
        return FileError(_EACCES)
    if command.flags != 0:
        return FileError(_EROFS)
    if not path.is_file():
        return FileError(_ENOENT)
    if len(client.files) >= _MAX_FILES:
        return FileError(_EMFILE)
    number = next(n for n in range(_MAX_FILES) if n not in client.files)
    client.files[number] = path
    return FileResult(number)


async def read_file(client: Client, command: ReadFile) -> Reply:
    """``vFile:pread``"""
    path = client.files.get(command.file)
    if path is None:
        return FileError(_EBADF)
    try:
        # Escaping may double the length.
        data = _read(path, min(command.count, PACKET_SIZE // 2), command.offset)
    except (OSError, OverflowError):
        return FileError(_EINVAL)
    return FileResult(len(data), data)


def _read(path: Path, count: int, offset: int) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(file, count, offset)
    finally:
        os.close(file)


async def file_status(client: Client, command: FileStatus) -> Reply:
    """``vFile:fstat``"""
    path = client.files.get(command.file)
    if path is None:
        return FileError(_EBADF)
    try:
        found = path.stat()
    except OSError:
        return FileError(_ENOENT)
    words = [found.st_dev, found.st_ino, found.st_mode, found.st_nlink, found.st_uid, found.st_gid]
    sizes = [found.st_size, found.st_blksize, found.st_blocks]
    times = [int(found.st_atime), int(found.st_mtime), int(found.st_ctime)]
    short = [number & 0xFFFF_FFFF for number in (*words, found.st_rdev)]
    data = _STATUS.pack(*short, *sizes, *(number & 0xFFFF_FFFF for number in times))
    return FileResult(len(data), data)


async def close_file(client: Client, command: CloseFile) -> Reply:
    """``vFile:close``"""
    return FileError(_EBADF) if client.files.pop(command.file, None) is None else FileResult(0)
