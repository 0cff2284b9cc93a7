"""The registers of :data:`kvmdbg.arch.X86_64`, as KVM hands them out.

KVM keeps a vCPU's state in several structs. A :class:`~.state.Source` is one of them: what it is
got by, the registers in it, and how it is put back. Layout of the XSAVE area: Intel SDM volume 1,
13.4.1 and 10.5.1; numbers of the x87 registers: GDB manual, "i386 Features"; of the MSRs:
arch/x86/include/asm/msr-index.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvmdbg.backend.agent.state import Source
from kvmdbg.kvm.ioctl import Ioctl
from kvmdbg.kvm.x86.registers import (
    DebugRegs,
    Regs,
    Segment,
    Sregs,
    Xsave,
    get_debugregs,
    get_msrs,
    get_regs,
    get_sregs,
    get_xsave,
    set_msrs,
    set_regs,
    set_sregs,
    set_xsave,
)

MSRS = {
    "k_gs_base": 0xC000_0102,
    "sysenter_cs": 0x174,
    "sysenter_esp": 0x175,
    "sysenter_eip": 0x176,
    "star": 0xC000_0081,
    "lstar": 0xC000_0082,
    "cstar": 0xC000_0083,
    "sfmask": 0xC000_0084,
    "pat": 0x277,
    "apic_base": 0x1B,
    "misc_enable": 0x1A0,
    "tsc": 0x10,
    "tsc_aux": 0xC000_0103,
}
"""In this order: what KVM does not know hides those after it, and not every CPU has the last."""

CR0_PE = 1
RFLAGS_VM = 1 << 17

_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "rip"),
    *(f"r{number}" for number in range(8, 16)),
)
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_CONTROLS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")

# --- general and system registers ----------------------------------------------------------------


def _general(regs: Regs) -> dict[str, int]:
    return {name: getattr(regs, name) for name in _GENERAL} | {"eflags": regs.rflags}


def _put_general(regs: Regs, changes: Mapping[str, int]) -> Ioctl[None]:
    renamed = {("rflags" if name == "eflags" else name): v for name, v in changes.items()}
    return set_regs(replace(regs, **renamed))


def _system(sregs: Sregs) -> dict[str, int]:
    return (
        {name: getattr(sregs, name).selector for name in _SEGMENTS}
        | {name: getattr(sregs, name) for name in _CONTROLS}
        | {"fs_base": sregs.fs.base, "gs_base": sregs.gs.base}
        | {"gdtr_base": sregs.gdt.base, "idtr_base": sregs.idt.base}
        | {"ldtr_base": sregs.ldt.base, "tr_base": sregs.tr.base}
    )


def _put_system(sregs: Sregs, changes: Mapping[str, int]) -> Ioctl[None]:
    """A selector that is written changes nothing else, as nothing is loaded from a descriptor
    table; but in real mode it is the base."""
    real = not changes.get("cr0", sregs.cr0) & CR0_PE
    parts: dict[str, Any] = {name: changes[name] for name in _CONTROLS if name in changes}
    for name in _SEGMENTS:
        segment: Segment = getattr(sregs, name)
        if name in changes:
            selector = changes[name] & 0xFFFF
            base = selector << 4 if real else segment.base
            segment = replace(segment, selector=selector, base=base)
        if f"{name}_base" in changes:
            segment = replace(segment, base=changes[f"{name}_base"])
        parts[name] = segment
    return set_sregs(replace(sregs, **parts))


def _debug(debugregs: DebugRegs) -> dict[str, int]:
    addresses = {f"dr{index}": value for index, value in enumerate(debugregs.db)}
    return addresses | {"dr6": debugregs.dr6, "dr7": debugregs.dr7}


def _msrs(msrs: dict[int, int]) -> dict[str, int]:
    return {name: msrs[index] for name, index in MSRS.items() if index in msrs}


def _put_msrs(msrs: dict[int, int], changes: Mapping[str, int]) -> Ioctl[None]:
    """KVM does not call it a failure to have taken fewer than there are."""
    put = set_msrs({MSRS[name]: value for name, value in changes.items()})

    def decode(result: int, data: bytes) -> None:
        if put.decode(result, data) < len(changes):
            raise put.failed(errno.EINVAL)

    return Ioctl(put.name, put.scope, put.argument, decode)


# --- x87 and SSE ---------------------------------------------------------------------------------

_FTW = 4  # bytes from the start of the XSAVE area
_MXCSR = 24
_ST = 32
_XMM = 160
_XSTATE_BV = 512

# name → offset and size in bytes, and the bits that count
_FIELDS = {
    "fctrl": (0, 2, 0xFFFF),
    "fstat": (2, 2, 0xFFFF),
    "fop": (6, 2, 0x7FF),
    "fioff": (8, 4, 0xFFFF_FFFF),
    "fiseg": (12, 2, 0xFFFF),
    "fooff": (16, 4, 0xFFFF_FFFF),
    "foseg": (20, 2, 0xFFFF),
    "mxcsr": (_MXCSR, 4, 0xFFFF_FFFF),
    **{f"st{i}": (_ST + 16 * i, 10, (1 << 80) - 1) for i in range(8)},
    **{f"xmm{i}": (_XMM + 16 * i, 16, (1 << 128) - 1) for i in range(16)},
}

_X87_AND_SSE = 3

_VALID, _ZERO, _SPECIAL, _EMPTY = range(4)  # tags of x87 registers


def _floating(xsave: Xsave) -> dict[str, int]:
    area = struct.pack(f"<{len(xsave.region)}I", *xsave.region)
    values = {
        name: int.from_bytes(area[at : at + size], "little") & mask
        for name, (at, size, mask) in _FIELDS.items()
    }
    return values | {"ftag": _full_tags(area[_FTW], values)}


def _put_floating(xsave: Xsave, changes: Mapping[str, int]) -> Ioctl[None]:
    area = bytearray(struct.pack(f"<{len(xsave.region)}I", *xsave.region))
    for name, value in changes.items():
        if name == "ftag":
            area[_FTW] = _short_tags(value)
            continue
        at, size, mask = _FIELDS[name]
        area[at : at + size] = (value & mask).to_bytes(size, "little")
    area[_XSTATE_BV] |= _X87_AND_SSE  # else KVM takes them as they are after a reset
    return set_xsave(Xsave(struct.unpack(f"<{len(xsave.region)}I", area)))


def _full_tags(short: int, values: Mapping[str, int]) -> int:
    """The tag word as FSTENV stores it, two bits for each register; XSAVE has one of them."""
    top = values["fstat"] >> 11 & 7
    tags = 0
    for physical in range(8):
        tag = _EMPTY
        if short >> physical & 1:
            tag = _tag(values[f"st{(physical - top) % 8}"])
        tags |= tag << 2 * physical
    return tags


def _tag(value: int) -> int:
    exponent, mantissa = value >> 64 & 0x7FFF, value & (1 << 64) - 1
    if exponent == 0 and mantissa == 0:
        return _ZERO
    return _VALID if exponent not in (0, 0x7FFF) and mantissa >> 63 else _SPECIAL


def _short_tags(full: int) -> int:
    return sum((full >> 2 * at & 3 != _EMPTY) << at for at in range(8))


SOURCES = (
    Source(get_regs, frozenset((*_GENERAL, "eflags")), _general, _put_general),
    Source(
        get_sregs,
        frozenset((*_SEGMENTS, *_CONTROLS, "fs_base", "gs_base")),
        _system,
        _put_system,
        frozenset(("gdtr_base", "idtr_base", "ldtr_base", "tr_base")),
    ),
    Source(get_xsave, frozenset((*_FIELDS, "ftag")), _floating, _put_floating),
    Source(
        lambda: get_msrs(MSRS.values()),
        frozenset(MSRS) - {"tsc"},
        _msrs,
        _put_msrs,
        frozenset(("tsc",)),  # the agent brings it back to what it was at the stop
    ),
    Source(
        get_debugregs,
        frozenset(),
        _debug,
        read_only=frozenset(("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")),
    ),
)
"""All of it; every register of the architecture is in exactly one."""
