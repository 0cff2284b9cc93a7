"""What kvmdbg knows of an architecture, and the target description made from it.

Source: GDB manual, appendix "Target Descriptions".
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from xml.sax.saxutils import quoteattr

from kvmdbg.addr import Gpa, Gva

SYSTEM = "system"
"""The group for gdb's ``info registers system``."""


class Fetch(Enum):
    """When a register's value is sent to the client."""

    BLOCK = "block"
    """With every ``g``."""

    DEMAND = "demand"
    """Only when asked for by ``p``: costly to obtain, and ``g`` ends before it."""


@dataclass(frozen=True, slots=True)
class Register:
    """One register; its number is its place in :attr:`Architecture.registers`."""

    name: str
    bits: int
    type: str = "int"
    group: str | None = None
    fetch: Fetch = Fetch.BLOCK
    qemu: tuple[str, ...] = ()
    """What QEMU's stub calls it, version by version, where it has another name there."""

    @property
    def is_system(self) -> bool:
        """True for one of the machine's, more than the program's: it is not put back when a
        function that gdb called has returned."""
        return self.group == SYSTEM

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it may have in QEMU's stub."""
        return (self.name, *self.qemu)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.bits // 8


@dataclass(frozen=True, slots=True)
class Feature:
    """A named group of registers; ``types`` is the XML of the types that they use."""

    name: str
    registers: tuple[Register, ...]
    types: str = ""


WalkResult = Generator[Gpa, int, Gpa | None]
"""A page walk without I/O: yields the GPA of an 8-byte table entry, is sent the entry's value, and
returns the GPA that the address maps to, or None where it is not mapped."""


@dataclass(frozen=True)
class Architecture:
    """An architecture; registers are numbered through its features in order.

    Every register with ``Fetch.DEMAND`` comes after all others, so that ``g`` is a prefix.
    """

    name: str
    gdb_name: str
    elf_machines: tuple[int, ...]
    """``e_machine`` of programs that run on it."""
    features: tuple[Feature, ...]
    pc: str
    sp: str
    expedited: tuple[str, ...]
    translate: Callable[[dict[str, int], Gva], WalkResult]
    translate_needs: tuple[str, ...]
    """Registers whose values :attr:`translate` takes."""
    translate_may_need: tuple[str, ...] = ()
    """Further ones, taken as 0 where the vCPU has no such register."""
    page_size: int = 4096
    """Bytes of the smallest page."""
    address_bits: int = 64
    breakpoint_length: int = 1
    """Bytes that a software breakpoint replaces: RSP's ``kind``."""
    watch_before: bool = False
    """A watchpoint stops a vCPU at the instruction that accesses, not after it; gdb expects so."""
    aliases: dict[str, str] = field(default_factory=dict)
    classic_count: int | None = None
    """Registers, from number 0 on, that a gdb without XML takes ``g`` to have; None: all."""

    @cached_property
    def registers(self) -> tuple[Register, ...]:
        """All registers, by number."""
        return tuple(register for feature in self.features for register in feature.registers)

    @cached_property
    def block(self) -> tuple[Register, ...]:
        """The registers that ``g`` carries: numbers 0 to ``len(block) - 1``."""
        return tuple(r for r in self.registers if r.fetch is Fetch.BLOCK)

    @cached_property
    def classic_block(self) -> tuple[Register, ...]:
        """The registers that ``g`` carries for a client that has not read the description."""
        return self.block[: self.classic_count]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Register number by name; aliases such as ``pc`` included."""
        numbers = {register.name: number for number, register in enumerate(self.registers)}
        return numbers | {alias: numbers[name] for alias, name in self.aliases.items()}

    @cached_property
    def target_xml(self) -> str:
        """The ``target.xml`` that describes these registers to gdb and lldb."""
        return target_xml(self)


def target_xml(arch: Architecture) -> str:
    """Build the target description of ``arch``."""
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        "<target>",
        f"  <architecture>{arch.gdb_name}</architecture>",
    ]
    number = 0
    for feature in arch.features:
        lines.append(f"  <feature name={quoteattr(feature.name)}>")
        lines += [f"    {line.strip()}" for line in feature.types.strip().splitlines()]
        for register in feature.registers:
            group = f" group={quoteattr(register.group)}" if register.group else ""
            kept = ' save-restore="no"' if register.is_system else ""
            lines.append(
                f'    <reg name={quoteattr(register.name)} bitsize="{register.bits}"'
                f' type={quoteattr(register.type)} regnum="{number}"{group}{kept}/>'
            )
            number += 1
        lines.append("  </feature>")
    lines.append("</target>")
    return "\n".join(lines) + "\n"
