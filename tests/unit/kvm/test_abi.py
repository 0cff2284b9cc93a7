"""The bindings of the KVM API: what the compiler accepted is what we take it for."""

import pytest

from kvmdbg.kvm import debug
from kvmdbg.kvm._abi import ffi, lib


def test_every_struct_has_the_compilers_layout() -> None:
    # cffi compares size, fields and offsets with the compiler's when a struct is first looked at.
    _, structs, _ = ffi.list_types()
    assert "kvm_guest_debug" in structs
    for name in structs:
        assert ffi.sizeof(f"struct {name}") > 0


@pytest.mark.parametrize("bit", list(debug.Control))
def test_control_bits_are_the_kernels(bit: debug.Control) -> None:
    assert getattr(lib, f"KVM_GUESTDBG_{bit.name}") == bit


def test_ioctl_numbers_are_unsigned() -> None:
    assert lib.KVM_GET_SREGS == 0x8138_AE83
    assert lib.KVM_RUN == 0xAE80
