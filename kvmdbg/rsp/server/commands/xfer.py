"""``qXfer``: objects that are read and written piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.fields import Fields
from kvmdbg.rsp.server.commands.base import Command


@dataclass(frozen=True, slots=True)
class ReadObject(Command):
    """``qXfer:OBJECT:read``; offset and length in bytes."""

    object: str
    annex: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class WriteObject(Command):
    """``qXfer:OBJECT:write``; offset in bytes."""

    object: str
    annex: str
    offset: int
    data: bytes


def parse_xfer(fields: Fields) -> ReadObject | WriteObject:
    """``qXfer:OBJECT:read:ANNEX:OFFSET,LENGTH`` or ``qXfer:OBJECT:write:ANNEX:OFFSET:data``"""
    fields.expect(b":")
    name = _text(fields.until(b":", "object"))
    operation = fields.until(b":", "operation")
    annex = _text(fields.until(b":", "annex"))
    offset = fields.number("offset")
    match operation:
        case b"read":
            fields.expect(b",")
            length = fields.number("length")
            fields.end()
            return ReadObject(name, annex, offset, length)
        case b"write":
            fields.expect(b":")
            return WriteObject(name, annex, offset, fields.rest())
        case _:
            raise RemoteProtocolError("objects are read or written")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError("a name is not UTF-8") from None
