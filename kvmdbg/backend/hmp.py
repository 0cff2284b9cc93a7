"""What only QEMU's human monitor says, read out of its text.

All reading of monitor text is here, and tolerant: what is not understood is absent, and the engine
does without it. Sources: QEMU's ``softmmu/memory.c`` (``info mtree -f``), ``monitor/misc.c``
(``gpa2hva``, ``xp``), ``target/i386/cpu-dump.c`` (``info registers``).
"""

from __future__ import annotations

import re
from collections.abc import Collection

from kvmdbg.addr import Gpa, Hva, VcpuIndex
from kvmdbg.errors import MonitorError
from kvmdbg.target.capabilities import MonitorQuery
from kvmdbg.target.memorymap import MemoryKind, MemoryRegion
from kvmdbg.wire.structs import Slot, SlotNumber

_RANGE = re.compile(
    r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (ram|romd?)\): (\S+)", re.MULTILINE
)
_SLOT = re.compile(
    r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (\w+)\): .* KVM\s*$", re.MULTILINE
)
_LOGGED, _READONLY = 1, 2  # KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
_MIGRATING = {"setup", "active", "pre-switchover", "device", "cancelling", "wait-unplug"}
_HVA = re.compile(r" is (0x[0-9a-f]+)")
_CPU = re.compile(r"^CPU#(\d+)", re.MULTILINE)
_DEBUG_REGISTER = re.compile(r"\b(DR[0-7]) ?=([0-9a-f]+)")
_TABLE = re.compile(r"^(GDT|IDT) ?= *([0-9a-f]+) [0-9a-f]+", re.MULTILINE)
_WORD = 4
_WORDS = re.compile(r"(?<= )0x([0-9a-f]{8})\b")
_SELECTOR = re.compile(r"^(LDT|TR) ?= *[0-9a-f]{4} ([0-9a-f]+) [0-9a-f]+", re.MULTILINE)


SYSTEM_REGISTERS = frozenset(
    (*(f"dr{i}" for i in range(8)), "gdtr_base", "idtr_base", "ldtr_base", "tr_base")
)
"""Our names of what :func:`system_registers` may find."""


async def memory_ranges(monitor: MonitorQuery, backends: Collection[str]) -> list[tuple[Gpa, int]]:
    """Guest RAM out of the memory ``backends``: first GPA and length in bytes of each range."""
    return [
        (start, length)
        for start, length, kind, name in await _flat_view(monitor)
        if kind == "ram" and name in backends
    ]


async def memory_map(monitor: MonitorQuery) -> list[MemoryRegion]:
    """RAM and ROM by GPA, ascending; what lies together and is of a kind is one region."""
    regions: list[MemoryRegion] = []
    for start, length, kind, _ in await _flat_view(monitor):
        found = MemoryRegion(MemoryKind(kind.removesuffix("d")), start, length)
        last = regions[-1] if regions else None
        if last and last.kind is found.kind and last.start + last.length == start:
            regions[-1] = MemoryRegion(last.kind, last.start, last.length + length)
        else:
            regions.append(found)
    return regions


async def memory_slots(monitor: MonitorQuery) -> list[Slot]:
    """What QEMU has given to KVM as the guest's memory; KVM's numbers are not told.

    While a migration is under way KVM logs writes to all of it.
    """
    slots: list[Slot] = []
    migration = (await monitor.qmp("query-migrate")).get("status")
    logged = _LOGGED if migration in _MIGRATING else 0
    for first, last, kind in _SLOT.findall(await _memory_view(monitor)):
        gpa = Gpa(int(first, 16))
        host = await host_address(monitor, gpa)
        if host is not None:
            flags = logged if kind == "ram" else logged | _READONLY
            number = SlotNumber.UNNUMBERED + len(slots)
            slots.append(Slot(number, flags, gpa, int(last, 16) - gpa + 1, host))
    return slots


async def _flat_view(monitor: MonitorQuery) -> list[tuple[Gpa, int, str, str]]:
    """What the CPUs see that is memory: first GPA, length in bytes, ram, rom or romd, and name."""
    return [
        (Gpa(int(first, 16)), int(last, 16) - int(first, 16) + 1, kind, name)
        for first, last, kind, name in _RANGE.findall(await _memory_view(monitor))
    ]


async def _memory_view(monitor: MonitorQuery) -> str:
    """The flat view of memory as vCPUs see it, outside of system management mode."""
    for view in (await monitor.hmp("info mtree -f")).split("FlatView #"):
        if re.search(r'AS "memory"', view):
            return view
    return ""


async def host_address(monitor: MonitorQuery, address: Gpa) -> Hva | None:
    """Where QEMU has the guest's ``address``; None where that is no RAM."""
    match = _HVA.search(await monitor.hmp(f"gpa2hva {address:#x}"))
    return Hva(int(match[1], 16)) if match else None


async def system_registers(monitor: MonitorQuery, vcpu: VcpuIndex) -> dict[str, int]:
    """Debug registers and descriptor table bases of ``vcpu``, by our names; those QEMU shows."""
    try:
        text = await monitor.hmp("info registers -a")
    except MonitorError:
        return {}
    parts = _CPU.split(text)
    text = dict(zip(parts[1::2], parts[2::2], strict=True)).get(str(vcpu), "")
    values = {name.lower(): int(value, 16) for name, value in _DEBUG_REGISTER.findall(text)}
    for name, base in _TABLE.findall(text):
        values[f"{name.lower()}r_base"] = int(base, 16)
    for name, base in _SELECTOR.findall(text):
        values["ldtr_base" if name == "LDT" else "tr_base"] = int(base, 16)
    return values


async def physical_bytes(monitor: MonitorQuery, address: Gpa, length: int) -> bytes:
    """Up to ``length`` bytes of physical memory, device memory too; none where there is none.

    Many devices answer to whole words only.
    """
    before = address % _WORD
    count = -(-(before + length) // _WORD)
    text = await monitor.hmp(f"xp /{count}wx {address - before:#x}")
    words = [int(word, 16) for word in _WORDS.findall(text)]
    return b"".join(word.to_bytes(_WORD, "little") for word in words)[before : before + length]
