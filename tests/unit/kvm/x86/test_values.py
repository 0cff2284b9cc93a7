"""ioctls built and decoded without any KVM."""

import errno
import platform
import struct

import pytest

from kvmdbg.errors import IoctlError, KvmUnsupported
from kvmdbg.kvm import exits, system
from kvmdbg.kvm._abi import ffi, lib
from kvmdbg.kvm.ioctl import Ioctl, Scope, command
from kvmdbg.kvm.struct import Struct
from kvmdbg.kvm.x86 import registers
from kvmdbg.kvm.x86.debug import (
    WITHOUT_CAPABILITY,
    Access,
    Control,
    GuestDebug,
    HardwareBreakpoint,
    supported_control,
)
from kvmdbg.kvm.x86.registers import CpuidEntry, Regs, Segment, Sregs, VcpuEvents

if platform.machine() != "x86_64":
    pytest.skip("the structs are those of x86", allow_module_level=True)

ALL = Control(sum(Control))


def argument(ioctl: Ioctl[object]) -> bytes:
    assert isinstance(ioctl.argument, bytes)
    return ioctl.argument


def test_regs_are_eighteen_quadwords_in_the_kernels_order() -> None:
    encoded = Regs(rax=1, rsp=7, r15=16, rip=17, rflags=1 << 63).encode()
    values = struct.unpack("<18Q", encoded)
    assert (values[0], values[6], values[15], values[16], values[17]) == (1, 7, 16, 17, 1 << 63)
    assert Regs.decode(encoded) == Regs(rax=1, rsp=7, r15=16, rip=17, rflags=1 << 63)


def test_a_struct_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="144 bytes, not 143"):
        Regs.decode(bytes(143))


@pytest.mark.parametrize(
    "kind",
    [
        registers.Regs,
        registers.Sregs,
        registers.DebugRegs,
        registers.VcpuEvents,
        registers.Xsave,
        registers.MpState,
        registers.Translation,
        system.MemoryRegion,
    ],
)
def test_structs_survive_decoding_and_encoding(kind: type[Struct]) -> None:
    data = bytes(index * 7 % 251 for index in range(kind.sizeof()))
    once = kind.decode(data)
    assert kind.decode(once.encode()) == once
    assert once != kind.decode(bytes(kind.sizeof()))


def test_nested_structs_and_arrays() -> None:
    empty = Sregs.decode(bytes(Sregs.sizeof()))
    sregs = Sregs(**{**vars(empty), "cs": Segment(base=1 << 40, limit=0xFFFF, l=1)})
    assert Sregs.decode(sregs.encode()).cs == Segment(base=1 << 40, limit=0xFFFF, l=1)
    assert sregs.interrupt_bitmap == (0, 0, 0, 0)
    events = VcpuEvents.decode(bytes([1, 14, 1, 0, 2, 0, 0, 0]).ljust(VcpuEvents.sizeof(), b"\0"))
    assert (events.exception.nr, events.exception.error_code) == (14, 2)


def test_msrs_carry_their_count() -> None:
    ioctl = registers.set_msrs({0x10: 5, 0xC000_0080: 0xD01})
    assert argument(ioctl) == struct.pack("<IIIIQIIQ", 2, 0, 0x10, 0, 5, 0xC000_0080, 0, 0xD01)
    assert ioctl.decode(1, b"") == 1
    asked = registers.get_msrs([0x10, 0x11])
    answer = struct.pack("<IIIIQIIQ", 2, 0, 0x10, 0, 99, 0x11, 0, 0)
    assert asked.decode(1, answer) == {0x10: 99}  # KVM stopped before the second


def test_cpuid_is_as_long_as_kvm_says() -> None:
    ioctl = registers.get_supported_cpuid(room=3)
    assert len(argument(ioctl)) == 8 + 3 * 40
    entry = struct.pack("<7I12x", 0x4000_0000, 0, 0, 1, 2, 3, 4)
    answer = struct.pack("<II", 1, 0) + entry + bytes(80)
    assert ioctl.decode(0, answer) == (CpuidEntry(0x4000_0000, 0, 0, 1, 2, 3, 4),)
    assert argument(registers.set_cpuid2(ioctl.decode(0, answer))) == answer[:48]


def test_a_failure_names_ioctl_vcpu_and_errno() -> None:
    error = registers.get_regs().failed(errno.EIO, vcpu=3)
    assert isinstance(error, IoctlError)
    assert str(error) == "KVM_GET_REGS on vCPU 3 failed: Input/output error (EIO)"
    assert (error.ioctl, error.vcpu, error.errno) == ("KVM_GET_REGS", 3, errno.EIO)
    assert system.create_vm().failed(errno.ENOMEM).vcpu is None
    assert "on the VM failed" in str(command("KVM_RUN", Scope.VM).failed(errno.EIO))


class TestGuestDebug:
    def registers(self, debug: GuestDebug) -> tuple[int, ...]:
        return struct.unpack("<II8Q", argument(debug.ioctl(ALL)))

    def test_off_is_all_zero(self) -> None:
        assert argument(GuestDebug().ioctl(Control(0))) == bytes(72)

    def test_hardware_breakpoints_are_in_dr7(self) -> None:
        armed = GuestDebug(
            Control.ENABLE | Control.USE_HW_BP,
            {
                0: HardwareBreakpoint(0x1000),
                3: HardwareBreakpoint(0x2000, Access.WRITE, 4),
            },
        )
        control, _, *dr = self.registers(armed)
        assert control == 0x20001
        assert dr == [0x1000, 0, 0, 0x2000, 0, 0, 0, 0x400 | 2 | 0x80 | 0xD << 28]

    @pytest.mark.parametrize(
        ("access", "length", "bits"),
        [
            (Access.EXECUTE, 1, 0b0000),
            (Access.WRITE, 1, 0b0001),
            (Access.WRITE, 2, 0b0101),
            (Access.WRITE, 8, 0b1001),
            (Access.READ_WRITE, 4, 0b1111),
        ],
    )
    def test_access_and_length(self, access: Access, length: int, bits: int) -> None:
        assert HardwareBreakpoint(0, access, length).dr7(1) == 8 | bits << 20

    def test_what_no_debug_register_can_do_is_refused(self) -> None:
        for wrong in (HardwareBreakpoint(0, Access.WRITE, 3), HardwareBreakpoint(0, length=4)):
            with pytest.raises(ValueError, match="bytes"):
                wrong.dr7(0)

    def test_general_detect(self) -> None:
        armed = GuestDebug(Control.ENABLE | Control.USE_HW_BP, general_detect=True)
        assert self.registers(armed)[-1] == 0x2400

    def test_a_bit_that_kvm_would_ignore_is_refused(self) -> None:
        step = GuestDebug(Control.ENABLE | Control.SINGLESTEP | Control.BLOCKIRQ)
        with pytest.raises(KvmUnsupported, match="does not know KVM_GUESTDBG_BLOCKIRQ:"):
            step.ioctl(WITHOUT_CAPABILITY)
        step.ioctl(ALL)

    def test_the_capabilities_say_what_is_known(self) -> None:
        assert supported_control(1, 0x1F_0003) == ALL
        assert supported_control(1, 0x8000_0003) == Control.ENABLE | Control.SINGLESTEP
        assert Control.BLOCKIRQ not in supported_control(1, 0)
        assert supported_control(0, 0) == Control(0)


class TestExits:
    def run(self, reason: str, union: bytes = b"", after: bytes = b"") -> exits.Exit:
        page = bytearray(ffi.sizeof("struct kvm_run"))
        struct.pack_into("<I", page, 8, getattr(lib, reason))
        page[32 : 32 + len(union)] = union
        return exits.decode_exit(bytes(page) + after)

    def test_debug(self) -> None:
        union = struct.pack("<IIQQQ", 1, 0, 0xFFFF_8000_0000_1000, 0xFFFF_0FF1, 0x402)
        assert self.run("KVM_EXIT_DEBUG", union) == exits.Debug(
            1, 0xFFFF_8000_0000_1000, 0xFFFF_0FF1, 0x402
        )

    def test_port_output_takes_its_data_from_further_on(self) -> None:
        offset = ffi.sizeof("struct kvm_run")
        union = struct.pack("<BBHIQ", 1, 2, 0x3F8, 2, offset)
        assert self.run("KVM_EXIT_IO", union, b"abcdef") == exits.Io(0x3F8, 2, True, b"abcd")
        assert self.run("KVM_EXIT_IO", union) == exits.Io(0x3F8, 2, True, b"")

    def test_port_input_has_no_data(self) -> None:
        union = struct.pack("<BBHIQ", 0, 1, 0x60, 1, 0)
        assert self.run("KVM_EXIT_IO", union) == exits.Io(0x60, 1, False, b"")

    def test_mmio(self) -> None:
        union = struct.pack("<Q8sIB", 0xFEE0_0000, b"\1\2\3\4\5\6\7\x08", 4, 1)
        assert self.run("KVM_EXIT_MMIO", union) == exits.Mmio(0xFEE0_0000, 4, True, b"\1\2\3\4")

    def test_internal_error(self) -> None:
        union = struct.pack("<II16Q", 3, 2, *range(10, 26))
        assert self.run("KVM_EXIT_INTERNAL_ERROR", union) == exits.InternalError(3, (10, 11))

    def test_failed_entry(self) -> None:
        union = struct.pack("<QI", 0x8000_0021, 7)
        assert self.run("KVM_EXIT_FAIL_ENTRY", union) == exits.FailEntry(0x8000_0021, 7)

    def test_the_rest(self) -> None:
        assert self.run("KVM_EXIT_HLT") == exits.Hlt()
        assert self.run("KVM_EXIT_SHUTDOWN") == exits.Shutdown()
        assert self.run("KVM_EXIT_INTR") == exits.Interrupted()
        assert self.run("KVM_EXIT_SYSTEM_EVENT", b"\2") == exits.SystemEvent(2)
        assert self.run("KVM_EXIT_UNKNOWN", b"\x05") == exits.Unknown(5)
        page = bytearray(ffi.sizeof("struct kvm_run"))
        page[8] = 200
        assert exits.decode_exit(page) == exits.Other(200)
