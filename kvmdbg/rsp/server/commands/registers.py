"""``g G p P``: registers of the thread that ``Hg`` chose."""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.server.commands.base import Command


@dataclass(frozen=True, slots=True)
class ReadRegisters(Command):
    """``g``."""


@dataclass(frozen=True, slots=True)
class WriteRegisters(Command):
    """``G``: all registers that ``g`` returns, one after the other."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ReadRegister(Command):
    """``p``."""

    number: int


@dataclass(frozen=True, slots=True)
class WriteRegister(Command):
    """``P``: ``value`` is in guest byte order."""

    number: int
    value: bytes


def parse_g(fields: Fields) -> ReadRegisters:
    """``g``"""
    fields.end()
    return ReadRegisters()


def parse_g_write(fields: Fields) -> WriteRegisters:
    """``GXX…``"""
    return WriteRegisters(fields.hex_rest())


def parse_p(fields: Fields) -> ReadRegister:
    """``pN``"""
    number = fields.number("register number")
    fields.end()
    return ReadRegister(number)


def parse_p_write(fields: Fields) -> WriteRegister:
    """``PN=XX…``"""
    number = fields.number("register number")
    fields.expect(b"=")
    return WriteRegister(number, fields.hex_rest())
