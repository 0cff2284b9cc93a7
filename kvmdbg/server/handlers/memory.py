"""Memory, by virtual address or, after ``Qqemu.PhyMemMode:1``, by physical address."""

from __future__ import annotations

from kvmdbg.addr import Gpa
from kvmdbg.errors import MemoryFault
from kvmdbg.rsp.server.commands.memory import (
    PhysicalMode,
    PhysicalModeQuery,
    ReadMemory,
    WriteMemory,
)
from kvmdbg.rsp.server.replies import Flag, Memory, Ok, Reply
from kvmdbg.server.client import PACKET_SIZE, Client


async def read(client: Client, command: ReadMemory) -> Reply:
    """``m``: at most as much as fits into a reply, which the protocol allows."""
    length = min(command.length, PACKET_SIZE // 2)
    if client.physical:
        data = await client.vm.read_physical(Gpa(command.address), length)
    else:
        data = await client.vm.read_memory(client.access, command.address, length)
    if not data:
        # An empty reply would say that there is no m packet.
        raise MemoryFault(f"no bytes were asked for at {command.address:#x}")
    return Memory(data)


async def write(client: Client, command: WriteMemory) -> Reply:
    """``M`` and ``X``"""
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
