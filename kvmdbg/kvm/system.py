"""ioctls of /dev/kvm and of a VM: version, capabilities, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvmdbg.kvm._abi import lib
from kvmdbg.kvm.ioctl import Ioctl, Scope, command, setter
from kvmdbg.kvm.struct import Struct

API_VERSION = 12
"""The one that has been since Linux 2.6.22; api.rst says to refuse any other."""


def get_api_version() -> Ioctl[int]:
    return command("KVM_GET_API_VERSION", Scope.SYSTEM)


def check_extension(capability: str, scope: Scope = Scope.SYSTEM) -> Ioctl[int]:
    """What KVM says of ``KVM_CAP_…``: 0 for no; else 1, or a number or mask that it defines."""
    return command("KVM_CHECK_EXTENSION", scope, getattr(lib, capability))


def get_vcpu_mmap_size() -> Ioctl[int]:
    """Bytes of a vCPU's shared ``kvm_run`` and what follows it."""
    return command("KVM_GET_VCPU_MMAP_SIZE", Scope.SYSTEM)


def create_vm() -> Ioctl[int]:
    """The answer is the VM's file descriptor."""
    return command("KVM_CREATE_VM", Scope.SYSTEM)


def create_vcpu(index: int) -> Ioctl[int]:
    """The answer is the vCPU's file descriptor."""
    return command("KVM_CREATE_VCPU", Scope.VM, index)


def create_irqchip() -> Ioctl[int]:
    """The interrupt controllers in the kernel; before any vCPU on x86."""
    return command("KVM_CREATE_IRQCHIP", Scope.VM)


def set_tss_addr(gpa: int) -> Ioctl[int]:
    """Three pages that KVM may use; Intel's VMX without unrestricted guests needs them."""
    return command("KVM_SET_TSS_ADDR", Scope.VM, gpa)


@dataclass(frozen=True)
class MemoryRegion(Struct):
    """``struct kvm_userspace_memory_region``: GPA and HVA of a slot, page aligned."""

    C_TYPE: ClassVar[str] = "struct kvm_userspace_memory_region"

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int


def set_user_memory_region(region: MemoryRegion) -> Ioctl[None]:
    return setter("KVM_SET_USER_MEMORY_REGION", Scope.VM, region)
