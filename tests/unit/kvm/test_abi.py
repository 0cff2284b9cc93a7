"""The bindings of the KVM API: what the compiler accepted is what we take it for."""

import platform

from kvmdbg.kvm._abi import ffi, lib
from kvmdbg.kvm.arm64 import debug as arm64
from kvmdbg.kvm.x86 import debug as x86


def test_every_struct_has_the_compilers_layout() -> None:
    # cffi compares size, fields and offsets with the compiler's when a struct is first looked at.
    _, structs, _ = ffi.list_types()
    assert "kvm_guest_debug" in structs
    for name in structs:
        assert ffi.sizeof(f"struct {name}") > 0


def test_control_bits_are_the_kernels() -> None:
    control = arm64.Control if platform.machine() == "aarch64" else x86.Control
    for bit in control:
        assert getattr(lib, f"KVM_GUESTDBG_{bit.name}") == bit


def test_ioctl_numbers_are_unsigned() -> None:
    assert lib.KVM_GET_VCPU_MMAP_SIZE == 0xAE04
    assert lib.KVM_SET_GUEST_DEBUG >> 30 == 1
