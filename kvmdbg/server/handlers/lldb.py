"""What only lldb asks: what machine and process this is, before it reads the target description."""

from __future__ import annotations

from kvmdbg.rsp.server.commands.lldb import (
    EnableErrorStrings,
    HostInfo,
    ProcessInfo,
    WatchpointSupport,
)
from kvmdbg.rsp.server.replies import Ok, Properties, Reply
from kvmdbg.server.client import PROCESS, Client

_SYSTEM = "unknown-none"
"""Vendor and system of the triple. With a system that has a dynamic loader, Linux for one, lldb
waits for that to tell where the kernel's symbol file belongs."""


async def host_info(client: Client, command: HostInfo) -> Reply:
    """``qHostInfo``"""
    arch = client.vm.arch
    when = "before" if arch.watch_before else "after"
    return Properties(
        {
            **_machine(client),
            "vm-page-size": str(arch.page_size),
            "watchpoint_exceptions_received": when,
        }
    )


async def process_info(client: Client, command: ProcessInfo) -> Reply:
    """``qProcessInfo``"""
    return Properties({"pid": f"{PROCESS:x}", **_machine(client)})


def _machine(client: Client) -> dict[str, str]:
    triple = f"{client.vm.arch.name}-{_SYSTEM}"
    return {"triple": triple.encode().hex(), "ptrsize": "8", "endian": "little"}


async def watchpoint_support(client: Client, command: WatchpointSupport) -> Reply:
    """``qWatchpointSupportInfo``: an engine may have more, and lldb does not count. But lldb 14
    heeds ``watchpoint_exceptions_received`` only after an answer to this."""
    return Properties({"num": "4"})


async def enable_error_strings(client: Client, command: EnableErrorStrings) -> Reply:
    """``QEnableErrorStrings``: the protocol's session does it when it sees the OK."""
    return Ok()
