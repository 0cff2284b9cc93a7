"""``qRcmd``: gdb's ``monitor``."""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.server.commands.base import Command


@dataclass(frozen=True, slots=True)
class Monitor(Command):
    """``qRcmd``: ``line`` as typed after ``monitor``."""

    line: str


def parse_monitor(fields: Fields) -> Monitor:
    """``qRcmd,XX…``"""
    fields.expect(b",")
    return Monitor(fields.hex_rest().decode(errors="replace"))
