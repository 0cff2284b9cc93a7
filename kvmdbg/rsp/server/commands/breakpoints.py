"""``z Z``: breakpoints and watchpoints, with conditions and commands for the target to evaluate."""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.addr import Gva
from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.octets import from_hex
from kvmdbg.rsp.server.commands.base import Command


@dataclass(frozen=True, slots=True)
class InsertBreakpoint(Command):
    """``Z``: ``type`` 0 to 4; ``kind`` is the instruction's size, or the watched length in bytes.

    ``conditions`` and ``commands`` are agent expressions (GDB manual, appendix "Agent
    Expressions"); ``persistent`` commands outlive the connection.
    """

    type: int
    address: Gva
    kind: int
    conditions: tuple[bytes, ...] = ()
    commands: tuple[bytes, ...] = ()
    persistent: bool = False


@dataclass(frozen=True, slots=True)
class RemoveBreakpoint(Command):
    """``z``."""

    type: int
    address: Gva
    kind: int


def parse_insert(fields: Fields) -> InsertBreakpoint:
    """``ZTYPE,ADDR,KIND[;XLEN,EXPR…][;cmds:PERSIST,XLEN,EXPR…]``"""
    point = _point(fields)
    conditions: tuple[bytes, ...] = ()
    commands: tuple[bytes, ...] = ()
    persistent = False
    while fields.skip(b";"):
        if fields.skip(b"cmds:"):
            persistent = fields.number("persistence") != 0
            fields.expect(b",")
            commands += _expressions(fields)
        else:
            conditions += _expressions(fields)
    fields.end()
    return InsertBreakpoint(*point, conditions, commands, persistent)


def parse_remove(fields: Fields) -> RemoveBreakpoint:
    """``zTYPE,ADDR,KIND``"""
    point = _point(fields)
    fields.end()
    return RemoveBreakpoint(*point)


def _point(fields: Fields) -> tuple[int, Gva, int]:
    kind_of_point = fields.number("type")
    if kind_of_point > 4:
        raise RemoteProtocolError(f"there is no breakpoint type {kind_of_point}")
    fields.expect(b",")
    address = Gva(fields.number("address"))
    fields.expect(b",")
    return kind_of_point, address, fields.number("kind")


def _expressions(fields: Fields) -> tuple[bytes, ...]:
    found = []
    while fields.skip(b"X"):
        length = fields.number("expression's length")
        fields.expect(b",")
        found.append(from_hex(fields.take(2 * length)))
    if not found:
        raise RemoteProtocolError("no expression where one belongs")
    return tuple(found)
