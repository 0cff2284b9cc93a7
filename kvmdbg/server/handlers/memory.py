"""Memory, by virtual address or, after ``Qqemu.PhyMemMode:1``, by physical address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from kvmdbg.addr import Gpa, Gva
from kvmdbg.errors import MemoryFault
from kvmdbg.rsp import crc
from kvmdbg.rsp.server.commands.memory import (
    ChecksumMemory,
    PhysicalMode,
    PhysicalModeQuery,
    ReadBinary,
    ReadMemory,
    SearchMemory,
    WriteMemory,
)
from kvmdbg.rsp.server.replies import BinaryMemory, Checksum, Flag, Found, Memory, Ok, Reply
from kvmdbg.server.client import PACKET_SIZE, Client

_SEARCHED_AT_ONCE = 1 << 18
"""Bytes that are looked at between other clients' turns."""


async def read(client: Client, command: ReadMemory) -> Reply:
    """``m``: at most as much as fits into a reply, which the protocol allows."""
    data = await _read(client, command.address, min(command.length, PACKET_SIZE // 2))
    if not data:
        # An empty reply would say that there is no m packet.
        raise MemoryFault(f"no bytes were asked for at {command.address:#x}")
    return Memory(data)


async def read_binary(client: Client, command: ReadBinary) -> Reply:
    """``x``: likewise, as escaping may double the length. No bytes at all are a client's question
    whether there is such a packet."""
    if command.length == 0:
        return BinaryMemory(b"")
    length = min(command.length, PACKET_SIZE // 2)
    return BinaryMemory(await _read(client, command.address, length))


async def search(client: Client, command: SearchMemory) -> Reply:
    """``qSearch:memory``: the match lies within the range as a whole."""
    pattern = command.pattern
    kept = b""  # the end of what was searched, in which a match may begin
    async for address, piece in _pieces(client, command.address, command.length):
        at = (kept + piece).find(pattern)
        if at >= 0:
            return Found(Gva(address - len(kept) + at))
        kept = (kept + piece)[1 - len(pattern) :] if len(pattern) > 1 else b""
    return Found(None)


async def checksum(client: Client, command: ChecksumMemory) -> Reply:
    """``qCRC``"""
    value = 0
    async for _, piece in _pieces(client, command.address, command.length):
        value = crc.update(value, piece)
    return Checksum(crc.result(value))


async def _pieces(client: Client, address: Gva, length: int) -> AsyncIterator[tuple[Gva, bytes]]:
    """All of a range. Raises MemoryFault where a part of it is missing."""
    end = address + length
    while address < end:
        data = await _read(client, address, min(end - address, _SEARCHED_AT_ONCE))
        yield address, data
        await asyncio.sleep(0)  # others have their turn, whether the engine ever waits or not
        if not client.is_there():
            raise MemoryFault("nobody waits for what was looked for any more")
        address = Gva(address + len(data))


async def _read(client: Client, address: Gva, length: int) -> bytes:
    if client.physical:
        return await client.vm.read_physical(Gpa(address), length)
    return await client.vm.read_memory(client.access, address, length)


async def write(client: Client, command: WriteMemory) -> Reply:
    """``M`` and ``X``"""
    client.require_drive()
    if command.data:
        if client.physical:
            await client.vm.write_physical(Gpa(command.address), command.data)
        else:
            await client.vm.write_memory(client.access, command.address, command.data)
    return Ok()


async def set_physical_mode(client: Client, command: PhysicalMode) -> Reply:
    """``Qqemu.PhyMemMode``"""
    client.physical = command.physical
    return Ok()


async def physical_mode(client: Client, command: PhysicalModeQuery) -> Reply:
    """``qqemu.PhyMemMode``"""
    return Flag(client.physical)
