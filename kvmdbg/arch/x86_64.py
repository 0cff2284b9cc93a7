"""x86-64: register table and page walk.

The description never changes with the CPU's mode: a guest in real mode is served the same wide
registers, which is what ends gdb's "'g' packet reply is too long".

Numbers 0 to 56 are also gdb's classic layout for i386:x86-64, for a gdb without XML.
Sources: GDB manual, "i386 Features"; Intel SDM volume 3A, chapters 2.5 (control registers), 2.2.1
(EFER) and 4.5 (4-level and 5-level paging).
"""

from __future__ import annotations

from kvmdbg.addr import Gpa, Gva
from kvmdbg.arch.describe import SYSTEM, Architecture, Feature, Fetch, Register, WalkResult
from kvmdbg.arch.x86_64_types import CORE_TYPES, SSE_TYPES, SYSTEM_TYPES

_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
)
_POINTERS = {"rbp", "rsp"}

_CORE = Feature(
    "org.gnu.gdb.i386.core",
    (
        *(Register(n, 64, "data_ptr" if n in _POINTERS else "int64") for n in _GENERAL),
        Register("rip", 64, "code_ptr"),
        Register("eflags", 32, "x64_eflags"),
        *(Register(name, 32, "int32") for name in ("cs", "ss", "ds", "es", "fs", "gs")),
        *(Register(f"st{i}", 80, "i387_ext") for i in range(8)),
        *(
            Register(name, 32, "int", "float")
            for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
        ),
    ),
    CORE_TYPES,
)

_SSE = Feature(
    "org.gnu.gdb.i386.sse",
    (
        *(Register(f"xmm{i}", 128, "vec128") for i in range(16)),
        Register("mxcsr", 32, "x64_mxcsr", "vector"),
    ),
    SSE_TYPES,
)

_SEGMENTS = Feature(
    "org.gnu.gdb.i386.segments",
    (Register("fs_base", 64, "int", SYSTEM), Register("gs_base", 64, "int", SYSTEM)),
)

_SYSTEM = Feature(
    "org.kvmdbg.x86.system",
    (
        Register("k_gs_base", 64, "uint64", SYSTEM),
        Register("cr0", 64, "x64_cr0", SYSTEM),
        Register("cr2", 64, "uint64", SYSTEM),
        Register("cr3", 64, "x64_cr3", SYSTEM),
        Register("cr4", 64, "x64_cr4", SYSTEM),
        Register("cr8", 64, "uint64", SYSTEM),
        Register("efer", 64, "x64_efer", SYSTEM),
    ),
    SYSTEM_TYPES,
)

_TABLES = ("gdtr_base", "idtr_base", "ldtr_base", "tr_base")
_DEBUG = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
_MSRS = (
    *("sysenter_cs", "sysenter_esp", "sysenter_eip", "star", "lstar", "cstar", "sfmask"),
    *("pat", "apic_base", "misc_enable", "tsc", "tsc_aux"),
)

_ON_DEMAND = Feature(
    "org.kvmdbg.x86.demand",
    tuple(
        Register(name, 64, "uint64", SYSTEM, Fetch.DEMAND) for name in (*_TABLES, *_DEBUG, *_MSRS)
    ),
)

CR0_PG = 1 << 31
CR4_PAE = 1 << 5
CR4_PSE = 1 << 4
CR4_LA57 = 1 << 12
EFER_LMA = 1 << 10

_PRESENT = 1 << 0
_LARGE = 1 << 7
_FRAME = 0x000F_FFFF_FFFF_F000


def translate(values: dict[str, int], address: Gva) -> WalkResult:
    """Walk the page tables for ``address``; ``values`` holds cr0, cr3, cr4 and efer.

    With paging off the address is physical already. Permissions are not checked: a debugger may
    read what the current privilege level may not.
    """
    if not values["cr0"] & CR0_PG:
        return Gpa(address & 0xFFFF_FFFF)
    if values["efer"] & EFER_LMA:
        levels = 5 if values["cr4"] & CR4_LA57 else 4
        if not _canonical(address, 9 * levels + 12):
            return None
        return (yield from _walk(values["cr3"] & _FRAME, address, levels, index_bits=9))
    if values["cr4"] & CR4_PAE:
        return (yield from _walk(values["cr3"] & 0xFFFF_FFE0, address, 3, index_bits=9))
    return (yield from _walk_legacy(values, address))


def _canonical(address: int, bits: int) -> bool:
    top = address >> (bits - 1)
    return top in (0, (1 << (65 - bits)) - 1)


def _walk(table: int, address: int, levels: int, *, index_bits: int) -> WalkResult:
    for level in range(levels, 0, -1):
        shift = 12 + index_bits * (level - 1)
        entry = yield Gpa(table + ((address >> shift) & ((1 << index_bits) - 1)) * 8)
        if not entry & _PRESENT:
            return None
        if level == 1 or (entry & _LARGE and level in (2, 3) and level < levels):
            mask = (1 << shift) - 1
            return Gpa((entry & _FRAME & ~mask) | (address & mask))
        table = entry & _FRAME
    return None


def _walk_legacy(values: dict[str, int], address: int) -> WalkResult:
    """32-bit paging: two levels of 4-byte entries, read from the 8-byte word that holds them."""
    table = values["cr3"] & 0xFFFF_F000
    for shift in (22, 12):
        slot = table + ((address >> shift) & 0x3FF) * 4
        word = yield Gpa(slot & ~7)
        entry = (word >> (32 if slot & 4 else 0)) & 0xFFFF_FFFF
        if not entry & _PRESENT:
            return None
        if shift == 22 and entry & _LARGE and values["cr4"] & CR4_PSE:
            high = ((entry >> 13) & 0xFF) << 32
            return Gpa(high | (entry & 0xFFC0_0000) | (address & 0x3F_FFFF))
        table = entry & 0xFFFF_F000
    return Gpa(table | (address & 0xFFF))


X86_64 = Architecture(
    name="x86_64",
    gdb_name="i386:x86-64",
    elf_machines=(62, 3),
    features=(_CORE, _SSE, _SEGMENTS, _SYSTEM, _ON_DEMAND),
    pc="rip",
    sp="rsp",
    expedited=("rip", "rsp", "rbp", "eflags"),
    translate=translate,
    translate_needs=("cr0", "cr3", "cr4", "efer"),
    classic_count=57,
    aliases={"pc": "rip", "sp": "rsp", "fp": "rbp", "flags": "eflags"},
)
"""The x86-64 descriptor."""
