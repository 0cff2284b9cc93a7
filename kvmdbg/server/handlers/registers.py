"""Registers."""

from __future__ import annotations

from kvmdbg.errors import RegisterError
from kvmdbg.rsp.server.commands.registers import (
    ReadRegister,
    ReadRegisters,
    WriteRegister,
    WriteRegisters,
)
from kvmdbg.rsp.server.replies import Ok, Registers, Reply, Undefined
from kvmdbg.server.client import Client


async def read_all(client: Client, command: ReadRegisters) -> Reply:
    """``g``"""
    block = client.vm.arch.block[: _count(client)]
    values = await client.vm.read_block(client.access)
    return Registers(
        tuple(
            Undefined(register.size) if value is None else value
            for register, value in zip(block, values, strict=False)
        )
    )


async def write_all(client: Client, command: WriteRegisters) -> Reply:
    """``G``: only what differs is written, for some registers cannot be."""
    client.require_drive()
    block = client.vm.arch.block[: _count(client)]
    expected = sum(register.size for register in block)
    if len(command.data) != expected:
        raise RegisterError(f"the registers are {expected} bytes, and {len(command.data)} came")
    current = await client.vm.read_block(client.access)
    changed = {}
    offset = 0
    for number, register in enumerate(block):
        value = command.data[offset : offset + register.size]
        offset += register.size
        if current[number] not in (None, value):
            changed[number] = value
    if changed:
        await client.vm.write_registers(client.access, changed)
    return Ok()


async def read_one(client: Client, command: ReadRegister) -> Reply:
    """``p``"""
    register = client.vm.arch.registers[_checked(client, command.number)]
    value = await client.vm.read_register(client.access, command.number)
    return Registers((Undefined(register.size) if value is None else value,))


async def write_one(client: Client, command: WriteRegister) -> Reply:
    """``P``"""
    client.require_drive()
    register = client.vm.arch.registers[_checked(client, command.number)]
    if len(command.value) != register.size:
        raise RegisterError(
            f"{register.name} is {register.size} bytes, and {len(command.value)} came"
        )
    await client.vm.write_registers(client.access, {command.number: command.value})
    return Ok()


def _checked(client: Client, number: int) -> int:
    count = len(client.vm.arch.registers)
    if number >= count:
        raise RegisterError(f"there is no register {number}: they are 0 to {count - 1}")
    return number


def _count(client: Client) -> int:
    """How many registers ``g`` has for this client."""
    arch = client.vm.arch
    return len(arch.block if client.described else arch.classic_block)
