"""KVM_SET_GUEST_DEBUG on arm64. Registers as in the Arm ARM, "AArch64 Self-hosted Debug"."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import ClassVar

from kvmdbg.kvm.ioctl import Ioctl, Scope, setter
from kvmdbg.kvm.struct import Struct


class Control(IntFlag):
    """``kvm_guest_debug.control`` on arm64 (a test compares them with the kernel's header)."""

    ENABLE = 1
    SINGLESTEP = 2
    USE_SW_BP = 0x1_0000
    USE_HW = 0x2_0000


NOTHING = Control(0)
"""Debugging off."""

# ESR_EL2.EC of an exit: what stopped the guest.
EC_BREAKPOINT, EC_STEP, EC_WATCHPOINT, EC_BRK = 0x30, 0x32, 0x34, 0x3C

_ENABLE_AT_EL0_AND_EL1 = 0b111
_ALL_OF_AN_INSTRUCTION = 0xF << 5
_ON_STORES = 0b10 << 3
_REGISTERS = 16


@dataclass(frozen=True)
class _GuestDebugArch:
    dbg_bcr: tuple[int, ...]
    dbg_bvr: tuple[int, ...]
    dbg_wcr: tuple[int, ...]
    dbg_wvr: tuple[int, ...]


@dataclass(frozen=True)
class _GuestDebugStruct(Struct):
    C_TYPE: ClassVar[str] = "struct kvm_guest_debug"

    control: int
    arch: _GuestDebugArch


@dataclass(frozen=True)
class GuestDebug:
    """All that KVM is told about debugging a vCPU: each call replaces what was before.

    Breakpoint and watchpoint registers by number: the GVA of an instruction, and that of four bytes
    (aligned to themselves) that are written to.
    """

    control: Control = NOTHING
    breakpoints: dict[int, int] = field(default_factory=dict)
    watchpoints: dict[int, int] = field(default_factory=dict)

    def ioctl(self) -> Ioctl[None]:
        """KVM_SET_GUEST_DEBUG; EINVAL for a bit that KVM does not know."""
        breakpoints = self.breakpoints.items()
        watchpoints = self.watchpoints.items()
        arch = _GuestDebugArch(
            _array({n: _ENABLE_AT_EL0_AND_EL1 | _ALL_OF_AN_INSTRUCTION for n, _ in breakpoints}),
            _array(dict(breakpoints)),
            _array({n: _watch_control(gva) for n, gva in watchpoints}),
            _array({n: gva & ~7 for n, gva in watchpoints}),
        )
        struct = _GuestDebugStruct(int(self.control), arch)
        return setter("KVM_SET_GUEST_DEBUG", Scope.VCPU, struct)


def _watch_control(gva: int) -> int:
    """DBGWCR for a store to four bytes; its byte mask counts from an eight-byte boundary."""
    return _ENABLE_AT_EL0_AND_EL1 | _ON_STORES | 0xF << (gva & 7) << 5


def _array(values: dict[int, int]) -> tuple[int, ...]:
    return tuple(values.get(number, 0) for number in range(_REGISTERS))
