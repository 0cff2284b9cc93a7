"""Threads: one for each vCPU."""

from __future__ import annotations

from kvmdbg.addr import VcpuIndex
from kvmdbg.rsp.server.commands.threads import (
    CurrentThread,
    FirstThreads,
    NextThreads,
    Purpose,
    SelectThread,
    ThreadAlive,
    ThreadEvents,
    ThreadExtraInfo,
)
from kvmdbg.rsp.server.replies import CurrentThreadIs, HexText, Ok, Reply, Threads
from kvmdbg.server.client import Client, spec_of


async def select(client: Client, command: SelectThread) -> Reply:
    """``H``"""
    vcpu = client.vcpu(command.thread)
    if command.purpose is Purpose.ACCESS:
        client.access = vcpu
    else:
        client.resumed = command.thread
    return Ok()


async def alive(client: Client, command: ThreadAlive) -> Reply:
    """``T``: a vCPU lives as long as the VM."""
    client.vcpu(command.thread)
    return Ok()


async def current(client: Client, command: CurrentThread) -> Reply:
    """``qC``"""
    return CurrentThreadIs(spec_of(client.access))


async def first(client: Client, command: FirstThreads) -> Reply:
    """``qfThreadInfo``: all of them fit into one reply."""
    return Threads(tuple(map(spec_of, client.vm.vcpus if client.has_process else ())))


async def rest(client: Client, command: NextThreads) -> Reply:
    """``qsThreadInfo``"""
    return Threads(())


async def extra_info(client: Client, command: ThreadExtraInfo) -> Reply:
    """``qThreadExtraInfo``"""
    return HexText(describe(client.vcpu(command.thread)))


async def set_events(client: Client, command: ThreadEvents) -> Reply:
    """``QThreadEvents``: vCPUs neither begin nor end, so that there is nothing to report."""
    return Ok()


def describe(vcpu: VcpuIndex) -> str:
    """What a thread is, for people."""
    return f"vCPU {vcpu}"
