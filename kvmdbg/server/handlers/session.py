"""The connection, and the VM as the process that gdb attaches to, detaches from and kills."""

from __future__ import annotations

from kvmdbg.errors import NoSuchVcpu
from kvmdbg.rsp.server.commands.session import (
    Attach,
    Attached,
    Detach,
    ExtendedMode,
    Kill,
    Restart,
    StartNoAckMode,
)
from kvmdbg.rsp.server.replies import Flag, Ok, Reply
from kvmdbg.server.client import PROCESS, Client, Goodbye, Outcome, Silent
from kvmdbg.server.report import stop_reply


async def start_no_ack_mode(client: Client, command: StartNoAckMode) -> Reply:
    """``QStartNoAckMode``: the protocol's session does it when it sees the OK."""
    return Ok()


async def was_attached(client: Client, command: Attached) -> Reply:
    """``qAttached``"""
    return Flag(client.host.attached)


async def extended_mode(client: Client, command: ExtendedMode) -> Reply:
    """``!``"""
    client.extended = True
    return Ok()


async def detach(client: Client, command: Detach) -> Outcome:
    """``D``: our breakpoints go, and the VM runs on."""
    await client.vm.release(client.id, resume=True)
    return Ok() if client.extended else Goodbye(Ok())


async def attach(client: Client, command: Attach) -> Reply:
    """``vAttach``, after a detach."""
    if command.pid != PROCESS:
        raise NoSuchVcpu(f"there is no process {command.pid}: the guest is process {PROCESS}")
    client.vm.hold(client.id, drive=True)
    stop = await client.vm.pause()
    client.access = stop.vcpu
    return await stop_reply(client.vm, stop)


async def kill(client: Client, command: Kill) -> Outcome:
    """``k`` and ``vKill``"""
    return Goodbye(None if command.pid is None else Ok(), kill=True)


async def restart(client: Client, command: Restart) -> Outcome:
    """``R``"""
    await client.vm.reset()
    return Silent()
