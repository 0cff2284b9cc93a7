"""Tiny arm64 guests, at EL1 and EL0, with the MMU off."""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.kvm.arm64.registers import (
    PC,
    PSTATE,
    get_preferred_target,
    init_vcpu,
    set_reg,
    x,
)
from kvmdbg.kvm.listing import Code
from kvmdbg.kvm.local import LocalKvm, LocalVm
from kvmdbg.kvm.transport import Transport

MEMORY = 1 << 20
"""Bytes, from GPA 0: the vectors are there, because VBAR_EL1 is 0 after reset."""
CODE = 0x10000
DATA = 0x20000

DONE_GPA = 0x0900_0000
"""No memory: a guest writes here when it has come to its end."""
VECTOR_GPA = 0x0901_0000
"""The handlers write their number here: 0 to 15, in the order of the vector table."""

_MASKED = 0xF << 6  # PSTATE.DAIF
EL1 = _MASKED | 0b0101
EL0 = _MASKED


@dataclass(frozen=True)
class Guest:
    """Code, and the PSTATE that it starts with; it lies at :data:`CODE`."""

    pstate: int
    code: Code


def create_vm(kvm: LocalKvm) -> LocalVm:
    """A VM in our process that these guests can be loaded into. Raises IoctlError."""
    vm = kvm.create_vm(MEMORY)
    init = vm.call(get_preferred_target())
    vm.call(init_vcpu(init), vm.add_vcpu())
    return vm


def load(vm: Transport, guest: Guest, entry: str, *, turns: int = 0) -> None:
    """Put the guest into memory and its vCPU 0 in front of label ``entry``. Raises IoctlError."""
    vm.finish()
    vm.write(0, b"".join(map(_handler, range(16))))
    vm.write(CODE, guest.code.data)
    registers = {
        PC: guest.code.symbols[entry],
        PSTATE: guest.pstate,
        x(1): DONE_GPA,
        x(2): DATA,
        x(3): turns,
    }
    for register, value in registers.items():
        vm.call(set_reg(register, value))


def _handler(number: int) -> bytes:
    """movz x1, #0x901, lsl #16; movz w0, #number; str w0, [x1]; b ."""
    code = (0xD2A1_2021, 0x5280_0000 | number << 5, 0xB900_0020, 0x1400_0000)
    return b"".join(word.to_bytes(4, "little") for word in code).ljust(0x80, b"\0")
