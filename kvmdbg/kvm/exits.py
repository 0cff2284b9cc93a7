"""Why KVM_RUN came back: ``kvm_run`` decoded into one type per reason."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from kvmdbg.kvm._abi import ffi, lib


@dataclass(frozen=True)
class Exit:
    """Base of all."""


@dataclass(frozen=True)
class Debug(Exit):
    """KVM_EXIT_DEBUG on x86. ``pc`` is *at* an int3 or execution hit, *after* a write hit.

    ``dr6`` means something for exception 1 only.
    """

    exception: int
    pc: int
    dr6: int = 0
    dr7: int = 0


@dataclass(frozen=True)
class ArmDebug(Exit):
    """KVM_EXIT_DEBUG on arm64: the syndrome (ESR_EL2), and the address for a watchpoint."""

    hsr: int
    far: int


@dataclass(frozen=True)
class Hlt(Exit):
    """The guest halted (only without an interrupt controller in the kernel)."""


@dataclass(frozen=True)
class Io(Exit):
    """Port I/O of x86; ``data`` is what the guest wrote, empty for a read."""

    port: int
    size: int  # bytes per item
    write: bool
    data: bytes


@dataclass(frozen=True)
class Mmio(Exit):
    """An access to a GPA without memory; ``data`` as in :class:`Io`."""

    gpa: int
    size: int  # bytes
    write: bool
    data: bytes


@dataclass(frozen=True)
class InternalError(Exit):
    """KVM gave up: 1 could not emulate, 2 and 3 an event during delivery, 4 an odd exit."""

    suberror: int
    data: tuple[int, ...]


@dataclass(frozen=True)
class Shutdown(Exit):
    """A triple fault, on x86."""


@dataclass(frozen=True)
class SystemEvent(Exit):
    """The guest asked for 1 shutdown, 2 reset, …"""

    type: int


@dataclass(frozen=True)
class FailEntry(Exit):
    """The processor refused to enter the guest."""

    hardware_reason: int
    cpu: int


@dataclass(frozen=True)
class Unknown(Exit):
    """The processor left the guest for a reason that KVM does not know."""

    hardware_reason: int


@dataclass(frozen=True)
class Interrupted(Exit):
    """A signal for the vCPU's thread, or ``immediate_exit``."""


@dataclass(frozen=True)
class Other(Exit):
    """Any other exit reason, by number (KVM_EXIT_…)."""

    reason: int


def decode_exit(run: Any) -> Exit:
    """From the bytes of a vCPU's shared page (anything with a buffer, from ``kvm_run`` on).

    The data of port I/O lies further on in the same mapping; without it, ``data`` is empty.
    """
    facts = ffi.new("struct exit_facts *")
    view = memoryview(run)
    lib.read_exit(ffi.from_buffer("struct kvm_run *", view, False), facts)
    return _decode(facts, view)


def _decode(facts: Any, run: memoryview) -> Exit:
    reason = facts.reason
    if reason == lib.KVM_EXIT_DEBUG:
        return _debug(facts.debug)
    if reason == lib.KVM_EXIT_IO:
        return _io(facts.io, run)
    if reason == lib.KVM_EXIT_MMIO:
        mmio, write = facts.mmio, bool(facts.mmio.is_write)
        data = bytes(ffi.buffer(mmio.data))[: mmio.len] if write else b""
        return Mmio(mmio.phys_addr, mmio.len, write, data)
    if reason == lib.KVM_EXIT_INTERNAL_ERROR:
        internal = facts.internal
        return InternalError(internal.suberror, tuple(internal.data)[: internal.ndata])
    if reason == lib.KVM_EXIT_FAIL_ENTRY:
        return FailEntry(facts.hardware_reason, facts.cpu)
    if reason == lib.KVM_EXIT_SYSTEM_EVENT:
        return SystemEvent(facts.system_event)
    if reason == lib.KVM_EXIT_UNKNOWN:
        return Unknown(facts.hardware_reason)
    plain = {
        lib.KVM_EXIT_HLT: Hlt(),
        lib.KVM_EXIT_SHUTDOWN: Shutdown(),
        lib.KVM_EXIT_INTR: Interrupted(),
    }
    return plain.get(reason, Other(reason))


def _debug(debug: Any) -> Exit:
    if platform.machine() == "aarch64":
        return ArmDebug(debug.hsr, debug.far)
    return Debug(debug.exception, debug.pc, debug.dr6, debug.dr7)


def _io(io: Any, run: memoryview) -> Io:
    write = io.direction == lib.KVM_EXIT_IO_OUT
    end = io.data_offset + io.size * io.count
    return Io(io.port, io.size, write, bytes(run[io.data_offset : end]) if write else b"")
