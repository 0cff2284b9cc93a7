"""Tiny x86 guests: real mode, long mode ring 0, long mode ring 3.

The first MiB is all they have. In long mode it is mapped to itself by one large page, every
exception and interrupt arrives in a handler that reports its vector on a port, and the interrupt
flag is off.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum

from kvmdbg.kvm.listing import Code
from kvmdbg.kvm.local import LocalKvm, LocalVm
from kvmdbg.kvm.system import create_irqchip, set_tss_addr
from kvmdbg.kvm.transport import Transport
from kvmdbg.kvm.x86.registers import (
    DescriptorTable,
    Regs,
    Segment,
    Sregs,
    get_sregs,
    get_supported_cpuid,
    set_cpuid2,
    set_regs,
    set_sregs,
)

MEMORY = 1 << 20
"""Bytes."""

# Where things are (GPA = GVA).
_PML4, _PDPT, _PD = 0x1000, 0x2000, 0x3000
_GDT, _IDT, _TSS, _HANDLERS = 0x4000, 0x5000, 0x6000, 0x7000
CODE = 0x10000
DATA = 0x20000
_STACK, _HANDLER_STACK = 0x40000, 0x50000  # their ends

_TSS_PAGES = 0x1000_0000  # KVM's own, away from all else

DONE_PORT = 0xF4
"""A guest writes here when it has come to its end."""
VECTOR_PORT = 0xE0
"""The handlers write their vector here."""

# RFLAGS
RFLAGS_FIXED = 1 << 1
IOPL_3 = 3 << 12
RF = 1 << 16

_KERNEL_CS, _KERNEL_DS, _USER_DS, _USER_CS, _TR = 0x10, 0x18, 0x2B, 0x33, 0x40

_PRESENT_WRITABLE_USER = 0b111
_LARGE_PAGE = 1 << 7
_CR0 = 0x8005_0033  # PG, AM, WP, NE, ET, MP, PE
_CR4 = 0x620  # PAE, OSFXSR, OSXMMEXCPT
_EFER = 0xD01  # SCE, LME, LMA, NXE


class Mode(Enum):
    """What the guest's processor is doing."""

    REAL = "real mode"
    KERNEL = "ring 0"
    USER = "ring 3"


@dataclass(frozen=True)
class Guest:
    """Code, and the mode it is for; it lies at :data:`CODE` (IP 0 in real mode)."""

    mode: Mode
    code: Code


def create_vm(kvm: LocalKvm) -> LocalVm:
    """A VM in our process that these guests can be loaded into. Raises IoctlError."""
    vm = kvm.create_vm(MEMORY)
    vm.call(set_tss_addr(_TSS_PAGES))
    vm.call(create_irqchip())
    vm.call(set_cpuid2(kvm.call(get_supported_cpuid())), vm.add_vcpu())
    return vm


def load(vm: Transport, guest: Guest, entry: str, *, rcx: int = 0) -> None:
    """Put the guest into memory and its vCPU 0 in front of label ``entry``. Raises IoctlError."""
    vm.finish()
    vm.write(CODE, guest.code.data)
    sregs = vm.call(get_sregs())
    if guest.mode is Mode.REAL:
        sregs = replace(sregs, cs=replace(sregs.cs, base=CODE, selector=CODE >> 4))
    else:
        for gpa, data in _long_mode_tables():
            vm.write(gpa, data)
        sregs = _long_mode(sregs, user=guest.mode is Mode.USER)
    vm.call(set_sregs(sregs))
    # Ring 3 has to reach the ports, too.
    rflags = RFLAGS_FIXED | (IOPL_3 if guest.mode is Mode.USER else 0)
    vm.call(set_regs(Regs(rip=guest.code.symbols[entry], rsp=_STACK, rcx=rcx, rflags=rflags)))


def _long_mode(sregs: Sregs, user: bool) -> Sregs:
    ring = 3 if user else 0
    code = Segment(
        selector=_USER_CS if user else _KERNEL_CS,
        limit=0xFFFF_FFFF,
        type=0xB,
        present=1,
        dpl=ring,
        s=1,
        l=1,
        g=1,
    )
    data = replace(code, selector=_USER_DS if user else _KERNEL_DS, type=3, l=0, db=1)
    task = Segment(base=_TSS, limit=0x67, selector=_TR, type=0xB, present=1)
    return replace(
        sregs,
        cs=code,
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        tr=task,
        ldt=Segment(unusable=1),
        gdt=DescriptorTable(_GDT, 0x4F),
        idt=DescriptorTable(_IDT, 0xFFF),
        cr0=_CR0,
        cr3=_PML4,
        cr4=_CR4,
        efer=_EFER,
    )


def _long_mode_tables() -> list[tuple[int, bytes]]:
    """Page tables, GDT, TSS, IDT and its handlers: (GPA, bytes)."""
    gdt = dict.fromkeys(range(10), 0)
    gdt[_KERNEL_CS >> 3] = 0x00AF_9B00_0000_FFFF
    gdt[_KERNEL_DS >> 3] = 0x00CF_9300_0000_FFFF
    gdt[_USER_DS >> 3] = 0x00CF_F300_0000_FFFF
    gdt[_USER_CS >> 3] = 0x00AF_FB00_0000_FFFF
    gdt[_TR >> 3] = 0x0000_8B00_0000_0067 | _TSS << 16  # its upper half stays zero
    return [
        (_PML4, struct.pack("<Q", _PDPT | _PRESENT_WRITABLE_USER)),
        (_PDPT, struct.pack("<Q", _PD | _PRESENT_WRITABLE_USER)),
        (_PD, struct.pack("<Q", _LARGE_PAGE | _PRESENT_WRITABLE_USER)),
        (_GDT, struct.pack("<10Q", *gdt.values())),
        (_TSS, struct.pack("<IQ", 0, _HANDLER_STACK).ljust(0x68, b"\0")),
        (_IDT, b"".join(map(_gate, range(256)))),
        (_HANDLERS, b"".join(map(_handler, range(256)))),
    ]


def _gate(vector: int) -> bytes:
    """An interrupt gate that ring 3 may use as well (it says int3)."""
    handler = _HANDLERS + 8 * vector
    return struct.pack("<HHHHQ", handler & 0xFFFF, _KERNEL_CS, 0xEE00, handler >> 16, 0)


def handled_vector(address: int) -> int | None:
    """The vector in whose handler an address lies."""
    offset = address - _HANDLERS
    return offset >> 3 if 0 <= offset < 8 * 256 else None


def _handler(vector: int) -> bytes:
    """mov $vector, %al; out %al, $VECTOR_PORT; hlt"""
    return bytes([0xB0, vector, 0xE6, VECTOR_PORT, 0xF4]).ljust(8, b"\x90")
