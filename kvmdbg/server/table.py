"""The one table: packet, the capability that it needs, its handler, and what qSupported says.

A packet whose capability is absent gets the empty reply, as one that is not in the table does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kvmdbg.rsp.server.commands import (
    Command,
    breakpoints,
    memory,
    monitor,
    registers,
    resume,
    session,
    threads,
    xfer,
)
from kvmdbg.rsp.server.replies import Empty, Reply, SupportedFeatures
from kvmdbg.server.client import PACKET_SIZE, Client, Outcome
from kvmdbg.server.handlers import breakpoints as on_breakpoints
from kvmdbg.server.handlers import memory as on_memory
from kvmdbg.server.handlers import monitor as on_monitor
from kvmdbg.server.handlers import objects as on_objects
from kvmdbg.server.handlers import registers as on_registers
from kvmdbg.server.handlers import resume as on_resume
from kvmdbg.server.handlers import session as on_session
from kvmdbg.server.handlers import threads as on_threads
from kvmdbg.target.vm import Vm

C = TypeVar("C", bound=Command)

Capability = Callable[[Vm], Any]
"""Finds a capability; what it returns is false where the VM lacks it."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[C]):
    """One packet; ``features`` are qSupported's names for what it can do."""

    command: type[C]
    capability: Capability
    handler: Callable[[Client, C], Awaitable[Outcome]]
    features: tuple[str, ...] = ()


def _always(vm: Vm) -> Any:
    return True


def _registers(vm: Vm) -> Any:
    return vm.engine.registers


def _memory(vm: Vm) -> Any:
    return vm.engine.memory


def _physical(vm: Vm) -> Any:
    return vm.engine.physical


def _execution(vm: Vm) -> Any:
    return vm.engine.execution


def _breakpoints(vm: Vm) -> Any:
    return vm.breakpoints.kinds


def _monitor(vm: Vm) -> Any:
    return vm.monitor


async def supported(client: Client, command: session.Supported) -> Reply:
    """``qSupported``"""
    features = {
        feature for entry in TABLE if entry.capability(client.vm) for feature in entry.features
    }
    return SupportedFeatures(frozenset(features), PACKET_SIZE)


TABLE: tuple[Entry[Any], ...] = (
    # the connection
    Entry(session.Supported, _always, supported, ("error-message",)),
    Entry(session.StartNoAckMode, _always, on_session.start_no_ack_mode, ("QStartNoAckMode",)),
    Entry(session.ExtendedMode, _always, on_session.extended_mode),
    # the process
    Entry(session.Attached, _always, on_session.was_attached),
    Entry(session.Attach, _execution, on_session.attach),
    Entry(session.Detach, _execution, on_session.detach),
    Entry(session.Kill, _always, on_session.kill),
    Entry(session.Restart, _always, on_session.restart),
    # threads
    Entry(threads.SelectThread, _always, on_threads.select, ("multiprocess",)),
    Entry(threads.ThreadAlive, _always, on_threads.alive),
    Entry(threads.CurrentThread, _always, on_threads.current),
    Entry(threads.FirstThreads, _always, on_threads.first),
    Entry(threads.NextThreads, _always, on_threads.rest),
    Entry(threads.ThreadExtraInfo, _always, on_threads.extra_info),
    # registers
    Entry(registers.ReadRegisters, _registers, on_registers.read_all),
    Entry(registers.WriteRegisters, _registers, on_registers.write_all),
    Entry(registers.ReadRegister, _registers, on_registers.read_one),
    Entry(registers.WriteRegister, _registers, on_registers.write_one),
    Entry(xfer.ReadObject, _registers, on_objects.read, ("qXfer:features:read",)),
    # memory
    Entry(memory.ReadMemory, _memory, on_memory.read),
    Entry(memory.WriteMemory, _memory, on_memory.write),
    Entry(memory.PhysicalMode, _physical, on_memory.set_physical_mode),
    Entry(memory.PhysicalModeQuery, _physical, on_memory.physical_mode),
    # running
    Entry(resume.StopReasonQuery, _execution, on_resume.stop_reason),
    Entry(resume.VContQuery, _execution, on_resume.vcont_actions, ("vContSupported",)),
    Entry(resume.VCont, _execution, on_resume.vcont),
    Entry(resume.ResumeThread, _execution, on_resume.resume_thread),
    # breakpoints
    Entry(
        breakpoints.InsertBreakpoint, _breakpoints, on_breakpoints.insert, ("swbreak", "hwbreak")
    ),
    Entry(breakpoints.RemoveBreakpoint, _breakpoints, on_breakpoints.remove),
    # QEMU's monitor
    Entry(monitor.Monitor, _monitor, on_monitor.run),
)

_BY_COMMAND: dict[type[Command], Entry[Any]] = {entry.command: entry for entry in TABLE}


async def execute(client: Client, command: Command) -> Outcome:
    """Do what ``command`` says. Raises KvmdbgError."""
    entry = _BY_COMMAND.get(type(command))
    if entry is None or not entry.capability(client.vm):
        return Empty()
    return await entry.handler(client, command)
