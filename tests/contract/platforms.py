"""What the contract tests must know of each architecture: its guest, its machine, its registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvmdbg.addr import Gpa, Gva
from kvmdbg.arch import AARCH64, X86_64, Architecture


@dataclass(frozen=True, eq=False)
class Platform:
    """One architecture's guest and the machine that it runs on.

    The sources of all guests have the same labels in the same order; see guest_x86_64.S.
    """

    arch: Architecture
    source: str
    qemu: Sequence[str]
    """The machine, in QEMU's words."""
    image: Gva
    """Where the guest runs: the mapping of ``copy``."""
    copy: Gpa
    small: Gva
    """A single page, with nothing mapped after it."""
    rom: Gva
    """Where the firmware is mapped, which is no RAM."""
    device: tuple[Gpa, bytes]
    """A device's identity."""
    system: dict[str, int]
    """System registers, and what the guest has put there: a number, or what a label's GVA adds."""
    general: str
    vector: str
    flags: tuple[str, int]
    """A register of flags, and a value for it that is not there by chance."""
    writable: dict[str, int]
    """Less usual registers that can be written, with values to write."""
    constant: str
    """One that cannot."""
    nop: int
    """Bytes of the instruction at ``stored``."""
    answer: tuple[int, bytes]
    """Offset and bytes of a patch that makes ``answer`` return 0x22 instead of 0x11."""
    sum: str | None = None
    """The register that ``store`` stores, where it cannot add by itself."""
    masked: tuple[str, int] | None = None
    """The register that keeps interrupts from waking a halted vCPU, and its value, where there is
    one; elsewhere the guest stops its ticks when ``quiet`` is not 0."""

    @property
    def name(self) -> str:
        """The architecture's."""
        return self.arch.name

    def gpa(self, address: Gva) -> Gpa:
        """Where a label of the guest is in RAM."""
        return Gpa(address - self.image + self.copy)

    @property
    def path(self) -> Path:
        """The guest's source."""
        return Path(__file__).with_name(self.source)


PLATFORMS = (
    Platform(
        arch=X86_64,
        source="guest_x86_64.S",
        qemu=(),
        image=Gva(0xFFFF_FFFF_8020_0000),
        copy=Gpa(0x20_0000),
        small=Gva(0x4000_0000),
        rom=Gva(0xF0000),
        device=(Gpa(0xFED0_0000), bytes.fromhex("01a28680")),  # HPET
        system={"cr3": 0x1000},
        general="rbp",
        vector="xmm7",
        flags=("eflags", 0x46),
        writable={"cr2": 0x1234_5678_9ABC, "fs": 0x10, "fs_base": 0x7F00_0000_1000},
        constant="ftag",
        nop=1,
        answer=(1, b"\x22"),
        masked=("eflags", 2),
    ),
    Platform(
        arch=AARCH64,
        source="guest_aarch64.S",
        qemu=("-machine", "virt", "-cpu", "max,pauth=off"),
        image=Gva(0xFFFF_FF80_0020_0000),
        copy=Gpa(0x4020_0000),
        small=Gva(0x8000_0000),
        rom=Gva(0),
        device=(Gpa(0x0900_0FE0), bytes.fromhex("1100000010000000")),  # PL011
        system={
            "TTBR0_EL1": 0x4010_0000,
            "TTBR1_EL1": 0x4010_1000,
            "TCR_EL1": 0xB519_3519,
            "VBAR_EL1": 0xFFFF_FF80_0020_0800,
        },
        general="x19",
        vector="v7",
        flags=("cpsr", 0x6000_03C5),
        writable={"v31": 0x1234 << 64, "fpsr": 0x9F, "fpcr": 0x0300_0000, "sp": 0x1000},
        constant="TCR_EL1",
        nop=4,
        answer=(0, bytes.fromhex("40048052")),
        sum="x2",
    ),
)
