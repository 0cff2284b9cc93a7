"""Non-stop mode: threads run and stop each for itself, and stops are notifications.

Source: GDB manual, "Remote Protocol Support for Non-Stop Mode".
"""

from __future__ import annotations

import errno

from kvmdbg.errors import Unsupported
from kvmdbg.rsp.server.commands.resume import NextStop, StopAll
from kvmdbg.rsp.server.commands.session import NonStop as SetNonStop
from kvmdbg.rsp.server.replies import Error, Ok, Reply
from kvmdbg.server.client import Client
from kvmdbg.server.report import nonstop_reply
from kvmdbg.target.nonstop import Going, NonStop
from kvmdbg.target.stops import Action


async def set_mode(client: Client, command: SetNonStop) -> Reply:
    """``QNonStop``"""
    client.non_stop_wanted = command.wanted
    if not command.wanted:
        await client.leave_non_stop()
        await client.vm.pause()
        return Ok()
    if client.non_stop is None:
        if not client.drives:
            why = f"{client.vm.clients.driver} drives the VM, and who looks has no threads to run"
            return Error(errno.EBUSY, f"{why}: set non-stop off", shown=True)  # by every gdb
        client.vm.clients.drive(client.id)
        await client.vm.pause()
        client.non_stop = NonStop(client.vm, client.id)
    return Ok()


async def stop_reason(client: Client, non_stop: NonStop) -> Reply:
    """``?``: of the first thread that is stopped; the client asks for the others."""
    non_stop.tell_all()
    return await _told(client, non_stop)


async def next_stop(client: Client, command: NextStop) -> Reply:
    """``vStopped``"""
    non_stop = _required(client)
    non_stop.told()
    return await _told(client, non_stop)


async def _told(client: Client, non_stop: NonStop) -> Reply:
    if not non_stop.telling:
        return Ok()
    first = non_stop.untold[0]
    return await nonstop_reply(client, first.stop, first.hit)


async def stop_all(client: Client, command: StopAll) -> Reply:
    """``vCtrlC``"""
    await _required(client).act(dict.fromkeys(client.vm.vcpus, Going(Action.HOLD)))
    return Ok()


def _required(client: Client) -> NonStop:
    if client.non_stop is None:
        raise Unsupported("threads stop together: say QNonStop:1 first")
    return client.non_stop
