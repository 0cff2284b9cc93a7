"""``vFile``: files of the host that the server runs on, as gdb's File-I/O asks for them.

Source: GDB manual, "Host I/O Packets".
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.octets import from_hex
from kvmdbg.rsp.server.commands.base import Command


@dataclass(frozen=True, slots=True)
class SetFilesystem(Command):
    """``vFile:setfs``: names are meant as process ``pid`` sees them, 0 as the server does."""

    pid: int


@dataclass(frozen=True, slots=True)
class OpenFile(Command):
    """``vFile:open``; ``flags`` and ``mode`` are File-I/O's, 0 is to read."""

    path: str
    flags: int
    mode: int


@dataclass(frozen=True, slots=True)
class ReadFile(Command):
    """``vFile:pread``; ``count`` and ``offset`` in bytes."""

    file: int
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class FileStatus(Command):
    """``vFile:fstat``."""

    file: int


@dataclass(frozen=True, slots=True)
class CloseFile(Command):
    """``vFile:close``."""

    file: int


@dataclass(frozen=True, slots=True)
class OtherFileOperation(Command):
    """What would change files, or is not known; the protocol wants the empty reply."""

    operation: str


FileCommand = SetFilesystem | OpenFile | ReadFile | FileStatus | CloseFile | OtherFileOperation


def parse_file(fields: Fields) -> FileCommand:
    """``vFile:OPERATION:PARAMETER[,PARAMETER]…``"""
    fields.expect(b":")
    operation = fields.until(b":", "operation")
    parameters = fields.rest().split(b",")
    match operation, len(parameters):
        case b"setfs", 1:
            return SetFilesystem(_number(parameters[0]))
        case b"open", 3:
            path = from_hex(parameters[0]).decode(errors="surrogateescape")
            return OpenFile(path, _number(parameters[1]), _number(parameters[2]))
        case b"pread", 3:
            return ReadFile(*map(_number, parameters))
        case b"fstat", 1:
            return FileStatus(_number(parameters[0]))
        case b"close", 1:
            return CloseFile(_number(parameters[0]))
        case b"setfs" | b"open" | b"pread" | b"fstat" | b"close", _:
            raise RemoteProtocolError(f"{len(parameters)} parameters are not what it takes")
        case _:
            return OtherFileOperation(operation.decode(errors="replace"))


def _number(digits: bytes) -> int:
    fields = Fields(digits)
    number = fields.number("parameter")
    fields.end()
    return number
