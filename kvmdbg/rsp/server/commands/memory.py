"""``m M X``: memory by virtual address, and QEMU's switch to physical addresses."""

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
    fields.expect(b":")
    mode = fields.number("mode")
    fields.end()
    return PhysicalMode(mode != 0)


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
