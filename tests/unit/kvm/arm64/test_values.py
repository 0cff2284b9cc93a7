"""What arm64 tells KVM, as far as any machine can build it."""

import struct

from kvmdbg.kvm.arm64 import registers
from kvmdbg.kvm.arm64.debug import Control, GuestDebug, _watch_control


def test_registers_have_the_kernels_identifiers() -> None:
    # As printed by KVM_GET_REG_LIST.
    assert registers.x(30) == 0x6030_0000_0010_003C
    assert registers.PC == 0x6030_0000_0010_0040
    assert registers.PSTATE == 0x6030_0000_0010_0042


def test_a_register_is_read_and_written_behind_a_pointer() -> None:
    ioctl = registers.set_reg(registers.PC, 0x1234)
    assert ioctl.argument == struct.pack("<QQ", registers.PC, 0)
    assert ioctl.pointee == struct.pack("<Q", 0x1234)
    assert registers.get_reg(registers.PC).decode(0, struct.pack("<Q", 77)) == 77


def test_a_watchpoint_looks_at_its_four_bytes() -> None:
    assert _watch_control(0x1000) == 0b0_0000_1111_10_11_1
    assert _watch_control(0x1004) == 0b0_1111_0000_10_11_1


def test_nothing_is_armed_by_default() -> None:
    assert GuestDebug().control == Control(0)
