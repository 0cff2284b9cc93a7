"""The state of an arm64 vCPU, register by register (KVM_GET_ONE_REG, KVM_SET_ONE_REG)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvmdbg.kvm.ioctl import Ioctl, Scope, getter, setter
from kvmdbg.kvm.struct import Struct

# Identifiers, api.rst "4.68 KVM_SET_ONE_REG": architecture, size, group; the core registers are
# numbered by their place in struct kvm_regs, in units of 32 bits.
_ARM64 = 0x6000_0000_0000_0000
_U64 = 0x0030_0000_0000_0000
_CORE = 0x0010_0000
PC = _ARM64 | _U64 | _CORE | 32 * 2
PSTATE = _ARM64 | _U64 | _CORE | 33 * 2


def x(number: int) -> int:
    """Identifier of general register X0 to X30."""
    return _ARM64 | _U64 | _CORE | number * 2


@dataclass(frozen=True)
class OneReg(Struct):
    """``struct kvm_one_reg``; whoever executes the ioctl fills in ``addr``."""

    C_TYPE: ClassVar[str] = "struct kvm_one_reg"

    id: int
    addr: int = 0


@dataclass(frozen=True)
class VcpuInit(Struct):
    """``struct kvm_vcpu_init``"""

    C_TYPE: ClassVar[str] = "struct kvm_vcpu_init"

    target: int
    features: tuple[int, ...]


def get_reg(register: int) -> Ioctl[int]:
    """The value of a 64-bit register."""
    return Ioctl(
        "KVM_GET_ONE_REG",
        Scope.VCPU,
        OneReg(register).encode(),
        lambda result, data: int.from_bytes(data, "little"),
        pointee=bytes(8),
    )


def set_reg(register: int, value: int) -> Ioctl[None]:
    return Ioctl(
        "KVM_SET_ONE_REG",
        Scope.VCPU,
        OneReg(register).encode(),
        lambda result, data: None,
        pointee=value.to_bytes(8, "little"),
    )


def get_preferred_target() -> Ioctl[VcpuInit]:
    return getter("KVM_ARM_PREFERRED_TARGET", Scope.VM, VcpuInit)


def init_vcpu(init: VcpuInit) -> Ioctl[None]:
    """Also resets a vCPU that has been initialized before."""
    return setter("KVM_ARM_VCPU_INIT", Scope.VCPU, init)
