"""The one table: packet or object, the capability that it needs, its handler, and what qSupported
says.

A packet whose capability is absent gets the empty reply, as one that is not in the table does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kvmdbg.rsp.server.commands import (
    Command,
    breakpoints,
    files,
    lldb,
    memory,
    monitor,
    registers,
    resume,
    session,
    stepping,
    threads,
    xfer,
)
from kvmdbg.rsp.server.replies import Empty, Error, ObjectPart, Reply, SupportedFeatures
from kvmdbg.server.client import PACKET_SIZE, Client, Outcome
from kvmdbg.server.handlers import breakpoints as on_breakpoints
from kvmdbg.server.handlers import files as on_files
from kvmdbg.server.handlers import lldb as on_lldb
from kvmdbg.server.handlers import memory as on_memory
from kvmdbg.server.handlers import monitor as on_monitor
from kvmdbg.server.handlers import nonstop as on_nonstop
from kvmdbg.server.handlers import objects as on_objects
from kvmdbg.server.handlers import registers as on_registers
from kvmdbg.server.handlers import resume as on_resume
from kvmdbg.server.handlers import session as on_session
from kvmdbg.server.handlers import stepping as on_stepping
from kvmdbg.server.handlers import threads as on_threads
from kvmdbg.server.host import Host
from kvmdbg.target.history import is_replayed

C = TypeVar("C", bound=Command)

Capability = Callable[[Host], Any]
"""Finds a capability; what it returns is false where the VM, or what is known of it, lacks it."""


def _always(host: Host) -> Any:
    return True


@dataclass(frozen=True, slots=True)
class Entry(Generic[C]):
    """One packet; ``features`` are qSupported's names for what it can do, told where the VM can:
    ``offers`` says so for one that is refused in words elsewhere."""

    command: type[C]
    capability: Capability
    handler: Callable[[Client, C], Awaitable[Outcome]]
    features: tuple[str, ...] = ()
    offers: Capability = _always


@dataclass(frozen=True, slots=True)
class Object:
    """One object of ``qXfer``; ``reader`` takes the annex."""

    name: str
    capability: Capability
    reader: Callable[[Client, str], Awaitable[bytes]]

    @property
    def feature(self) -> str:
        """Its name in qSupported."""
        return f"qXfer:{self.name}:read"


def _registers(host: Host) -> Any:
    return host.vm.engine.registers


def _memory(host: Host) -> Any:
    return host.vm.engine.memory


def _physical(host: Host) -> Any:
    return host.vm.engine.physical


def _execution(host: Host) -> Any:
    return host.vm.engine.execution


def _stepping(host: Host) -> Any:
    return on_stepping.step_control(host.vm)


def _breakpoints(host: Host) -> Any:
    return host.vm.breakpoints.kinds


def _replay(host: Host) -> Any:
    return is_replayed(host.vm.engine)


def _monitor(host: Host) -> Any:
    return host.vm.monitor


def _symbol_file(host: Host) -> Any:
    return host.symbol_file


async def supported(client: Client, command: session.Supported) -> Reply:
    """``qSupported``"""
    client.features = command.features
    host = client.host
    offered = [entry for entry in TABLE if entry.capability(host) and entry.offers(host)]
    features = {name for entry in offered for name in entry.features}
    features |= {entry.feature for entry in OBJECTS if entry.capability(host)}
    return SupportedFeatures(frozenset(features), PACKET_SIZE)


async def read_object(client: Client, command: xfer.ReadObject) -> Reply:
    """``qXfer:OBJECT:read``"""
    entry = _BY_OBJECT.get(command.object)
    if entry is None or not entry.capability(client.host):
        return Empty()
    key = (command.object, command.annex)
    try:
        if command.offset == 0 or key not in client.objects:
            client.objects = {key: await entry.reader(client, command.annex)}
    except on_objects.NoSuchAnnex:
        return Error(0)  # the number that the manual gives to an annex that is not there
    data = client.objects[key]
    # Escaping may double the length.
    end = command.offset + min(command.length, PACKET_SIZE // 2)
    return ObjectPart(data[command.offset : end], last=end >= len(data))


TABLE: tuple[Entry[Any], ...] = (
    # the connection
    Entry(session.Supported, _always, supported, ("error-message",)),
    Entry(session.StartNoAckMode, _always, on_session.start_no_ack_mode, ("QStartNoAckMode",)),
    Entry(session.ExtendedMode, _always, on_session.extended_mode),
    Entry(lldb.EnableErrorStrings, _always, on_lldb.enable_error_strings),
    # the process
    Entry(lldb.HostInfo, _always, on_lldb.host_info),
    Entry(lldb.ProcessInfo, _execution, on_lldb.process_info),
    Entry(session.Attached, _always, on_session.was_attached),
    Entry(session.Attach, _execution, on_session.attach),
    Entry(session.Detach, _execution, on_session.detach),
    Entry(session.Kill, _always, on_session.kill),
    Entry(session.Restart, _always, on_session.restart),
    Entry(session.NonStop, _execution, on_nonstop.set_mode, ("QNonStop",)),
    Entry(session.CatchSyscalls, _always, on_session.catch_syscalls, ("QCatchSyscalls",)),
    # threads
    Entry(threads.SelectThread, _always, on_threads.select, ("multiprocess",)),
    Entry(threads.ThreadAlive, _always, on_threads.alive),
    Entry(threads.CurrentThread, _always, on_threads.current),
    Entry(threads.FirstThreads, _always, on_threads.first),
    Entry(threads.NextThreads, _always, on_threads.rest),
    Entry(threads.ThreadExtraInfo, _always, on_threads.extra_info),
    Entry(threads.ThreadEvents, _always, on_threads.set_events, ("QThreadEvents",)),
    # registers
    Entry(registers.ReadRegisters, _registers, on_registers.read_all),
    Entry(registers.WriteRegisters, _registers, on_registers.write_all),
    Entry(registers.ReadRegister, _registers, on_registers.read_one),
    Entry(registers.WriteRegister, _registers, on_registers.write_one),
    # memory
    Entry(memory.ReadMemory, _memory, on_memory.read),
    Entry(memory.ReadBinary, _memory, on_memory.read_binary, ("binary-upload",)),
    Entry(memory.WriteMemory, _memory, on_memory.write),
    Entry(memory.SearchMemory, _memory, on_memory.search),
    Entry(memory.ChecksumMemory, _memory, on_memory.checksum),
    Entry(memory.PhysicalMode, _physical, on_memory.set_physical_mode),
    Entry(memory.PhysicalModeQuery, _physical, on_memory.physical_mode),
    # running
    Entry(resume.StopReasonQuery, _execution, on_resume.stop_reason),
    Entry(resume.VContQuery, _execution, on_resume.vcont_actions, ("vContSupported",)),
    Entry(resume.VCont, _execution, on_resume.vcont),
    Entry(resume.ResumeThread, _execution, on_resume.resume_thread),
    Entry(resume.NextStop, _execution, on_nonstop.next_stop),
    Entry(resume.StopAll, _execution, on_nonstop.stop_all),
    Entry(
        resume.RunBack,
        _execution,
        on_resume.run_back,
        ("ReverseStep", "ReverseContinue"),
        offers=_replay,
    ),
    Entry(stepping.StepBitsQuery, _stepping, on_stepping.step_bits),
    Entry(stepping.StepModeQuery, _stepping, on_stepping.step_mode),
    Entry(stepping.StepMode, _stepping, on_stepping.set_step_mode),
    # breakpoints
    Entry(
        breakpoints.InsertBreakpoint, _breakpoints, on_breakpoints.insert, ("swbreak", "hwbreak")
    ),
    Entry(breakpoints.RemoveBreakpoint, _breakpoints, on_breakpoints.remove),
    Entry(lldb.WatchpointSupport, _breakpoints, on_lldb.watchpoint_support),
    # QEMU's monitor
    Entry(monitor.Monitor, _monitor, on_monitor.run),
    # objects and files
    Entry(xfer.ReadObject, _always, read_object),
    Entry(files.SetFilesystem, _symbol_file, on_files.set_filesystem),
    Entry(files.OpenFile, _symbol_file, on_files.open_file),
    Entry(files.ReadFile, _symbol_file, on_files.read_file),
    Entry(files.FileStatus, _symbol_file, on_files.file_status),
    Entry(files.CloseFile, _symbol_file, on_files.close_file),
)

OBJECTS: tuple[Object, ...] = (
    Object("features", _registers, on_objects.features),
    Object("threads", _always, on_objects.threads),
    Object("memory-map", _physical, on_objects.memory_map),
    Object("exec-file", _symbol_file, on_objects.exec_file),
)

_BY_COMMAND: dict[type[Command], Entry[Any]] = {entry.command: entry for entry in TABLE}
_BY_OBJECT = {entry.name: entry for entry in OBJECTS}


async def execute(client: Client, command: Command) -> Outcome:
    """Do what ``command`` says. Raises KvmdbgError."""
    entry = _BY_COMMAND.get(type(command))
    if entry is None or not entry.capability(client.host):
        return Empty()
    return await entry.handler(client, command)
