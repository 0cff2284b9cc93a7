"""``qqemu.sstepbits``, ``qqemu.sstep`` and ``Qqemu.sstep``: what a single step keeps away.

Source: QEMU's ``docs/system/gdb.rst``.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.server.commands.base import Command


@dataclass(frozen=True, slots=True)
class StepBitsQuery(Command):
    """``qqemu.sstepbits``: which bits are there?"""


@dataclass(frozen=True, slots=True)
class StepModeQuery(Command):
    """``qqemu.sstep``: which bits are set?"""


@dataclass(frozen=True, slots=True)
class StepMode(Command):
    """``Qqemu.sstep``: set these ``bits`` and no others."""

    bits: int


def parse_step_bits(fields: Fields) -> StepBitsQuery:
    """``qqemu.sstepbits``"""
    fields.end()
    return StepBitsQuery()


def parse_step_mode_query(fields: Fields) -> StepModeQuery:
    """``qqemu.sstep``"""
    fields.end()
    return StepModeQuery()


def parse_step_mode(fields: Fields) -> StepMode:
    """``Qqemu.sstep=BITS``"""
    fields.expect(b"=")
    fields.skip(b"0x")  # QEMU takes what it says itself
    bits = fields.number("bits")
    fields.end()
    return StepMode(bits)
