"""Breakpoints and watchpoints."""

from __future__ import annotations

from kvmdbg.errors import BreakpointError
from kvmdbg.rsp.server.commands.breakpoints import InsertBreakpoint, RemoveBreakpoint
from kvmdbg.rsp.server.replies import Empty, Ok, Reply
from kvmdbg.server.client import Client
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec


async def insert(client: Client, command: InsertBreakpoint) -> Reply:
    """``Z``"""
    kind = BreakpointKind(command.type)
    if kind not in client.vm.breakpoints.kinds:
        return Empty()
    if command.conditions or command.commands:
        raise BreakpointError("conditions and commands are not evaluated by this engine")
    await client.vm.insert_breakpoint(client.id, _spec(command))
    return Ok()


async def remove(client: Client, command: RemoveBreakpoint) -> Reply:
    """``z``"""
    if BreakpointKind(command.type) not in client.vm.breakpoints.kinds:
        return Empty()
    await client.vm.remove_breakpoint(client.id, _spec(command))
    return Ok()


def _spec(command: InsertBreakpoint | RemoveBreakpoint) -> BreakpointSpec:
    return BreakpointSpec(BreakpointKind(command.type), command.address, command.kind)
