"""The connection, and the VM as the process that gdb attaches to, detaches from and kills."""

from __future__ import annotations

from kvmdbg.errors import NoSuchVcpu, Unsupported
from kvmdbg.rsp.server.commands.session import (
    Attach,
    Attached,
    CatchSyscalls,
    Detach,
    ExtendedMode,
    Kill,
    Restart,
    StartNoAckMode,
)
from kvmdbg.rsp.server.replies import Flag, Ok, Reply
from kvmdbg.server.client import PROCESS, Client, Goodbye, Outcome, Silent
from kvmdbg.server.report import tell_stop


async def start_no_ack_mode(client: Client, command: StartNoAckMode) -> Reply:
    """``QStartNoAckMode``: the protocol's session does it when it sees the OK."""
    return Ok()


async def was_attached(client: Client, command: Attached) -> Reply:
    """``qAttached``"""
    # gdb kills what it did not attach to when it quits: not for one that only looks.
    return Flag(client.host.attached or not client.drives)


async def extended_mode(client: Client, command: ExtendedMode) -> Reply:
    """``!``"""
    client.extended = True
    return Ok()


async def detach(client: Client, command: Detach) -> Outcome:
    """``D``: our breakpoints go, and the VM runs on."""
    _check_process(command.pid)
    await client.release()
    client.detached = True
    return Ok() if client.extended else Goodbye(Ok())


async def attach(client: Client, command: Attach) -> Reply:
    """``vAttach``, after a detach."""
    _check_process(command.pid)
    if client.non_stop_wanted:
        raise Unsupported("after a detach gdb cannot attach again in non-stop mode: connect again")
    client.vm.clients.join(client.id)
    stop = await client.vm.pause()
    client.killed = client.detached = False
    return await tell_stop(client, stop)


async def kill(client: Client, command: Kill) -> Outcome:
    """``k`` and ``vKill``. In extended mode gdb's ``run`` kills first and then restarts: the VM is
    stopped until it does, and ends with the connection if it does not. Who only looks leaves."""
    _check_process(command.pid)
    if not client.drives:
        return Goodbye(None if command.pid is None else Ok())
    if client.extended and command.pid is not None:
        await client.vm.pause()
        await client.vm.drop_breakpoints(client.id)
        client.killed = True
        return Ok()
    return Goodbye(None if command.pid is None else Ok(), kill=True)


async def catch_syscalls(client: Client, command: CatchSyscalls) -> Reply:
    """``QCatchSyscalls``"""
    if command.wanted:
        raise Unsupported(
            "system calls are not caught as such: break at the kernel's function for one, "
            "for example __x64_sys_openat"
        )
    return Ok()


async def restart(client: Client, command: Restart) -> Outcome:
    """``R``"""
    client.vm.clients.drive(client.id)
    await client.vm.pause()
    await client.vm.reset()
    client.killed = client.detached = False
    return Silent()


def _check_process(pid: int | None) -> None:
    if pid not in (None, PROCESS):
        raise NoSuchVcpu(f"there is no process {pid}: the guest is process {PROCESS}")
