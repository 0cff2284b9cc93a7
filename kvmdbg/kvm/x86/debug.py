"""KVM_SET_GUEST_DEBUG on x86: what of the guest's execution comes to us instead of to the guest.

Registers as in Intel's SDM, volume 3, "Debug, Branch Profile, TSC, …".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import ClassVar

from kvmdbg.errors import KvmUnsupported
from kvmdbg.kvm.ioctl import Ioctl, Scope, setter
from kvmdbg.kvm.struct import Struct


class Control(IntFlag):
    """``kvm_guest_debug.control`` on x86 (a test compares them with the kernel's header)."""

    ENABLE = 1
    SINGLESTEP = 2
    USE_SW_BP = 0x1_0000
    USE_HW_BP = 0x2_0000
    INJECT_DB = 0x4_0000
    INJECT_BP = 0x8_0000
    BLOCKIRQ = 0x10_0000


NOTHING = Control(0)
"""Debugging off."""

WITHOUT_CAPABILITY = Control(0xF_0003)
"""What every KVM takes that has KVM_CAP_SET_GUEST_DEBUG but no KVM_CAP_SET_GUEST_DEBUG2."""


def supported_control(guest_debug: int, guest_debug2: int) -> Control:
    """The bits that count, from what KVM says of the two capabilities; x86 takes any in silence."""
    if guest_debug2:
        return Control(guest_debug2 & sum(Control))
    return WITHOUT_CAPABILITY if guest_debug else NOTHING


class Access(IntEnum):
    """What a debug register looks for: the R/W field of DR7."""

    EXECUTE = 0
    WRITE = 1
    READ_WRITE = 3


_LENGTHS = {1: 0, 2: 1, 8: 2, 4: 3}  # bytes → the LEN field of DR7

DR6_BD = 1 << 13
DR6_BS = 1 << 14
DR7_RESERVED = 1 << 10
"""Always one."""
DR7_GD = 1 << 13


@dataclass(frozen=True)
class HardwareBreakpoint:
    """What one debug register looks for. ``length`` in bytes (1, 2, 4, 8), aligned to itself."""

    gva: int
    access: Access = Access.EXECUTE
    length: int = 1

    def dr7(self, index: int) -> int:
        """The bits of DR7 for debug register ``index``, enabled globally."""
        if self.length not in _LENGTHS or (self.access is Access.EXECUTE and self.length != 1):
            raise ValueError(f"a debug register cannot look at {self.length} bytes for this")
        return 2 << 2 * index | (self.access | _LENGTHS[self.length] << 2) << (16 + 4 * index)


@dataclass(frozen=True)
class _GuestDebugArch:
    debugreg: tuple[int, ...]


@dataclass(frozen=True)
class _GuestDebugStruct(Struct):
    C_TYPE: ClassVar[str] = "struct kvm_guest_debug"

    control: int
    arch: _GuestDebugArch


@dataclass(frozen=True)
class GuestDebug:
    """All that KVM is told about debugging a vCPU: each call replaces what was before.

    ``hardware`` is by debug register, 0 to 3. ``general_detect`` makes the guest's next access to
    a debug register an exit (DR7.GD).
    """

    control: Control = NOTHING
    hardware: dict[int, HardwareBreakpoint] = field(default_factory=dict)
    general_detect: bool = False

    def debug_registers(self) -> tuple[int, ...]:
        """DR0 to DR7, as KVM wants them."""
        registers = [0] * 8
        if self.control & (Control.USE_HW_BP | Control.SINGLESTEP):
            registers[7] = DR7_RESERVED
        for index, breakpoint in self.hardware.items():
            registers[index] = breakpoint.gva
            registers[7] |= breakpoint.dr7(index)
        if self.general_detect:
            registers[7] |= DR7_GD
        return tuple(registers)

    def ioctl(self, supported: Control) -> Ioctl[None]:
        """KVM_SET_GUEST_DEBUG. Raises KvmUnsupported where this KVM would ignore a bit."""
        missing = self.control & ~supported
        if missing:
            names = ", ".join(f"KVM_GUESTDBG_{bit.name}" for bit in Control if bit & missing)
            raise KvmUnsupported(
                f"this host's KVM does not know {names}: a newer kernel may, "
                "and --accel tcg does without"
            )
        struct = _GuestDebugStruct(int(self.control), _GuestDebugArch(self.debug_registers()))
        return setter("KVM_SET_GUEST_DEBUG", Scope.VCPU, struct)
