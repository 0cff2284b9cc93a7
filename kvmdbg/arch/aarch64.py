"""aarch64: register table and page walk.

Of gdb's standard features, core and fpu are served; gdb makes q, d, s, h and b registers of v. Our
own features hold the system registers that QEMU's stub offers (it takes no writes to them), under
their names in the manual, which scripts for QEMU's stub use too.

Numbers 0 to 67 are also gdb's classic layout for aarch64, for a gdb without XML. The stub's ``g``
has the core registers alone, so all others are fetched on demand.
Sources: GDB manual, "AArch64 Features"; Arm ARM (DDI 0487), chapter D8 (address translation).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.addr import Gpa, Gva
from kvmdbg.arch.aarch64_types import CORE_TYPES, EL2_TYPES, FPU_TYPES, SYSTEM_TYPES
from kvmdbg.arch.describe import SYSTEM, Architecture, Feature, Fetch, Register, WalkResult

_CORE = Feature(
    "org.gnu.gdb.aarch64.core",
    (
        *(Register(f"x{i}", 64, "int") for i in range(31)),
        Register("sp", 64, "data_ptr"),
        Register("pc", 64, "code_ptr"),
        Register("cpsr", 32, "a64_pstate"),
    ),
    CORE_TYPES,
)

_FPU = Feature(
    "org.gnu.gdb.aarch64.fpu",
    (
        # With SVE the stub has z registers, whose low 128 bits these are.
        *(
            Register(f"v{i}", 128, "aarch64v", fetch=Fetch.DEMAND, qemu=(f"z{i}",))
            for i in range(32)
        ),
        Register("fpsr", 32, "a64_fpsr", "float", Fetch.DEMAND),
        Register("fpcr", 32, "a64_fpcr", "float", Fetch.DEMAND),
    ),
    FPU_TYPES,
)


def _system(*names: str, type: str = "uint64", short: bool = False) -> tuple[Register, ...]:
    """System registers; ``short``: older QEMUs leave ``_EL1`` out of their names."""
    return tuple(
        Register(
            name,
            64,
            type,
            SYSTEM,
            Fetch.DEMAND,
            (name.removesuffix("_EL1"),) if short else (),
        )
        for name in names
    )


_SYSTEM = Feature(
    "org.kvmdbg.aarch64.system",
    (
        *_system("SCTLR_EL1", type="a64_sctlr", short=True),
        *_system("TCR_EL1", type="a64_tcr"),
        *_system("TTBR0_EL1", "TTBR1_EL1", type="a64_ttbr"),
        *_system("MAIR_EL1", "CONTEXTIDR_EL1", "PAR_EL1"),
        *_system("VBAR_EL1", "CPACR_EL1", short=True),
        *_system("ESR_EL1", type="a64_esr"),
        *_system("FAR_EL1", "ELR_EL1"),
        *_system("SPSR_EL1", type="a64_spsr"),
        *_system("SP_EL0", "SP_EL1", "TPIDR_EL0", "TPIDRRO_EL0", "TPIDR_EL1"),
        *_system("CNTKCTL_EL1", short=True),
        *_system("CNTV_CTL_EL0", "CNTV_CVAL_EL0", "CNTP_CTL_EL0", "CNTP_CVAL_EL0", "CNTFRQ_EL0"),
        *_system("MDSCR_EL1", "OSLSR_EL1"),
        *_system(*(f"DBG{kind}{i}_EL1" for i in range(6) for kind in ("BVR", "BCR"))),
        *_system(*(f"DBG{kind}{i}_EL1" for i in range(4) for kind in ("WVR", "WCR"))),
    ),
    SYSTEM_TYPES,
)

_EL2 = Feature(
    "org.kvmdbg.aarch64.el2",
    (
        *_system("HCR_EL2", type="a64_hcr"),
        *_system("SCTLR_EL2", type="a64_sctlr"),
        *_system("TCR_EL2"),
        *_system("TTBR0_EL2", "TTBR1_EL2", type="a64_ttbr"),
        *_system("VTCR_EL2"),
        *_system("VTTBR_EL2", type="a64_ttbr"),
        *_system("VBAR_EL2", "CPTR_EL2", "MDCR_EL2"),
        *_system("ESR_EL2", type="a64_esr"),
        *_system("FAR_EL2", "HPFAR_EL2", "ELR_EL2"),
        *_system("SPSR_EL2", type="a64_spsr"),
        *_system("SP_EL2", "TPIDR_EL2"),
    ),
    EL2_TYPES,
)

_IDENTITY = Feature(
    "org.kvmdbg.aarch64.identity",
    (
        *_system("ID_AA64PFR1_EL1", "ID_AA64ISAR0_EL1", "ID_AA64ISAR1_EL1", "ID_AA64DFR0_EL1"),
        *_system("ID_AA64MMFR1_EL1", "ID_AA64MMFR2_EL1", "ID_AA64MMFR0_EL1"),
    ),
)

SCTLR_M = 1 << 0
SCTLR_EE = 1 << 25
TCR_DS = 1 << 59
HCR_VM = 1 << 0
HCR_DC = 1 << 12
HCR_TGE = 1 << 27
HCR_E2H = 1 << 34
PSTATE_AARCH32 = 1 << 4

_GRANULES_0 = {0: 12, 1: 16, 2: 14}
_GRANULES_1 = {1: 14, 2: 12, 3: 16}
"""Bits of an offset into a page, by TG0 and TG1 in TCR."""

_IPS_52_BITS = 6


def translate(values: dict[str, int], address: Gva) -> WalkResult:
    """Walk the stage 1 tables of the regime that the vCPU is in: EL1&0, or EL2&0 (a host with VHE).

    With translation off the address is physical already. None where another regime is in force
    (EL2 without VHE, EL3, a stage 2, AArch32) or tables are big-endian. Permissions do not count.
    """
    level = _regime_level(values)
    if level is None or values[f"SCTLR_EL{level}"] & SCTLR_EE:
        return None
    if not values[f"SCTLR_EL{level}"] & SCTLR_M:
        return Gpa(address) if address < 1 << 52 else None
    half = address >> 55 & 1
    regime = _regime(values[f"TCR_EL{level}"], values[f"TTBR{half}_EL{level}"], half)
    if regime is None or not regime.holds(address):
        return None
    return (yield from _walk(regime, address))


def _regime_level(values: dict[str, int]) -> int | None:
    """The level whose registers say how the vCPU translates; None for what we do not know."""
    level, hcr = values["cpsr"] >> 2 & 3, values["HCR_EL2"]
    if values["cpsr"] & PSTATE_AARCH32:
        return None
    if level == 2 or (level == 0 and hcr & HCR_TGE):
        return 2 if hcr & HCR_E2H else None
    return None if level == 3 or hcr & (HCR_VM | HCR_DC) else 1


@dataclass(frozen=True, slots=True)
class _Regime:
    """One half of the address space; sizes in bits."""

    high: bool
    table: int
    input: int
    page: int
    tagged: bool
    wide: bool
    """Its 4 KiB or 16 KiB descriptors hold 52-bit addresses (FEAT_LPA2)."""

    @property
    def stride(self) -> int:
        """Bits that one level of tables resolves."""
        return self.page - 3

    @property
    def highest_block(self) -> int:
        """The highest level that maps a block, with 1 for that of pages."""
        return (2 if self.page == 14 else 3) + self.wide

    def holds(self, address: int) -> bool:
        """True if no bit above the input size differs from bit 55, but for a tag."""
        if address >> 64:
            return False
        top = 56 if self.tagged else 64
        above = address >> self.input & (1 << (top - self.input)) - 1
        return above == ((1 << (top - self.input)) - 1 if self.high else 0)

    def output(self, entry: int, low: int) -> int:
        """The address in a descriptor, aligned to 2 ** ``low``."""
        address = entry & (1 << (50 if self.wide else 48)) - 1
        if self.wide:
            address |= (entry >> 8 & 3) << 50
        elif self.page == 16:
            address |= (entry >> 12 & 0xF) << 48
        return address >> low << low


def _regime(tcr: int, base: int, half: int) -> _Regime | None:
    """How TTBR0's or TTBR1's half is translated; None where it is not."""
    size, disabled = tcr >> (16 * half) & 0x3F, tcr >> (7 + 16 * half) & 1
    page = _GRANULES_1.get(tcr >> 30 & 3) if half else _GRANULES_0.get(tcr >> 14 & 3)
    if page is None or disabled:
        return None
    wide = bool(tcr & TCR_DS) and page != 16
    largest = 52 if wide or page == 16 else 48
    bits = 64 - size
    if not page < bits <= largest:
        return None
    table = base & 0xFFFF_FFFF_FFFE
    if wide or (page == 16 and tcr >> 32 & 7 == _IPS_52_BITS):
        table = table & ~0x3F | (base >> 2 & 0xF) << 48
    return _Regime(bool(half), table, bits, page, bool(tcr >> (37 + half) & 1), wide)


def _walk(regime: _Regime, address: int) -> WalkResult:
    page, stride = regime.page, regime.stride
    levels = -(-(regime.input - page) // stride)
    # The first table may be smaller than the others, and so is its alignment.
    index_bits = regime.input - page - stride * (levels - 1)
    table = regime.table >> (index_bits + 3) << (index_bits + 3)
    for level in range(levels, 0, -1):
        shift = page + stride * (level - 1)
        index = address >> shift & (1 << index_bits) - 1
        entry = yield Gpa(table + index * 8)
        index_bits = stride
        is_table = bool(entry & 2)
        if not entry & 1 or (level == 1 and not is_table):
            return None
        if level == 1 or not is_table:
            if level > regime.highest_block:
                return None
            return Gpa(regime.output(entry, shift) | address & (1 << shift) - 1)
        table = regime.output(entry, page)
    return None


AARCH64 = Architecture(
    name="aarch64",
    gdb_name="aarch64",
    elf_machines=(183,),
    features=(_CORE, _FPU, _SYSTEM, _EL2, _IDENTITY),
    pc="pc",
    sp="sp",
    expedited=("pc", "sp", "x29", "cpsr"),
    translate=translate,
    translate_needs=("cpsr", "SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1"),
    translate_may_need=("HCR_EL2", "SCTLR_EL2", "TCR_EL2", "TTBR0_EL2", "TTBR1_EL2"),
    breakpoint_length=4,
    watch_before=True,
    aliases={"fp": "x29", "lr": "x30", "flags": "cpsr"},
)
"""The aarch64 descriptor."""
