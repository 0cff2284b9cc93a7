"""``m M x X qSearch qCRC``: memory by virtual address, and QEMU's switch to physical addresses."""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.addr import Gva
from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.server.commands.base import Command


@dataclass(frozen=True, slots=True)
class ReadMemory(Command):
    """``m``; ``length`` in bytes."""

    address: Gva
    length: int


@dataclass(frozen=True, slots=True)
class ReadBinary(Command):
    """``x``: as ``m``, for a client that takes the bytes as they are; ``length`` in bytes."""

    address: Gva
    length: int


@dataclass(frozen=True, slots=True)
class SearchMemory(Command):
    """``qSearch:memory``: where in ``length`` bytes from ``address`` on is ``pattern``?"""

    address: Gva
    length: int
    pattern: bytes


@dataclass(frozen=True, slots=True)
class ChecksumMemory(Command):
    """``qCRC``: the checksum of ``length`` bytes from ``address`` on."""

    address: Gva
    length: int


@dataclass(frozen=True, slots=True)
class WriteMemory(Command):
    """``M`` (hex) and ``X`` (binary); no data is gdb's question whether ``X`` exists."""

    address: Gva
    data: bytes


@dataclass(frozen=True, slots=True)
class PhysicalMode(Command):
    """``Qqemu.PhyMemMode``: from now on, addresses are physical, or virtual again."""

    physical: bool


@dataclass(frozen=True, slots=True)
class PhysicalModeQuery(Command):
    """``qqemu.PhyMemMode``."""


def parse_m(fields: Fields) -> ReadMemory:
    """``mADDR,LENGTH``"""
    address, length = _range(fields)
    fields.end()
    return ReadMemory(address, length)


def parse_x(fields: Fields) -> ReadBinary:
    """``xADDR,LENGTH``"""
    address, length = _range(fields)
    fields.end()
    return ReadBinary(address, length)


def parse_search(fields: Fields) -> SearchMemory:
    """``qSearch:memory:ADDR;LENGTH;PATTERN``, the pattern in binary"""
    fields.expect(b":memory:")
    address = Gva(fields.number("address"))
    fields.expect(b";")
    length = fields.number("length")
    fields.expect(b";")
    pattern = fields.rest()
    if not pattern:
        raise RemoteProtocolError("no pattern to search for")
    return SearchMemory(address, length, pattern)


def parse_crc(fields: Fields) -> ChecksumMemory:
    """``qCRC:ADDR,LENGTH``"""
    fields.expect(b":")
    address, length = _range(fields)
    fields.end()
    return ChecksumMemory(address, length)


def parse_m_write(fields: Fields) -> WriteMemory:
    """``MADDR,LENGTH:XX…``"""
    address, length = _range(fields)
    fields.expect(b":")
    return WriteMemory(address, _counted(fields.hex_rest(), length))


def parse_x_write(fields: Fields) -> WriteMemory:
    """``XADDR,LENGTH:data``"""
    address, length = _range(fields)
    fields.expect(b":")
    return WriteMemory(address, _counted(fields.rest(), length))


def parse_physical_mode(fields: Fields) -> PhysicalMode:
    """``Qqemu.PhyMemMode:0`` or ``:1``"""
    return PhysicalMode(fields.flag())


def parse_physical_mode_query(fields: Fields) -> PhysicalModeQuery:
    """``qqemu.PhyMemMode``"""
    fields.end()
    return PhysicalModeQuery()


def _range(fields: Fields) -> tuple[Gva, int]:
    address = Gva(fields.number("address"))
    fields.expect(b",")
    return address, fields.number("length")


def _counted(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise RemoteProtocolError(f"{length} bytes announced, {len(data)} sent")
    return data
