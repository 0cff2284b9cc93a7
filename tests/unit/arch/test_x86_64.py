"""The x86-64 descriptor: register numbers, description, page walk."""

from __future__ import annotations

import struct
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmdbg.addr import Gpa, Gva
from kvmdbg.arch import X86_64
from kvmdbg.arch.describe import Fetch
from kvmdbg.arch.x86_64 import CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA

LONG = {"cr0": CR0_PG, "cr3": 0x1000, "cr4": CR4_PAE, "efer": EFER_LMA}
PRESENT, LARGE = 1, 1 << 7


def walk(values: dict[str, int], address: int, memory: dict[int, int]) -> Gpa | None:
    """Run the walk on a sparse memory of 8-byte words."""
    steps = X86_64.translate(values, Gva(address))
    try:
        asked = next(steps)
        while True:
            asked = steps.send(memory.get(asked, 0))
    except StopIteration as done:
        result: Gpa | None = done.value
        return result


def test_the_first_registers_are_gdbs_classic_layout() -> None:
    names = [register.name for register in X86_64.registers]
    assert names[:17] == [
        *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
        *(f"r{n}" for n in range(8, 16)),
        "rip",
    ]
    assert names.index("st0") == 24
    assert names.index("xmm0") == 40
    assert names.index("mxcsr") == 56


def test_registers_on_demand_come_last_so_that_g_is_a_prefix() -> None:
    kinds = [register.fetch for register in X86_64.registers]
    assert kinds == sorted(kinds, key=[Fetch.BLOCK, Fetch.DEMAND].index)
    assert X86_64.registers[: len(X86_64.block)] == X86_64.block


def test_the_description_numbers_every_register_and_defines_its_types() -> None:
    root = ElementTree.fromstring(X86_64.target_xml)
    regs = [reg for feature in root.iter("feature") for reg in feature.iter("reg")]
    assert [reg.get("name") for reg in regs] == [r.name for r in X86_64.registers]
    assert [int(reg.get("regnum", "-1")) for reg in regs] == list(range(len(regs)))
    defined = {element.get("id") for element in root.iter() if element.get("id")}
    builtin = {"int", "int32", "int64", "uint64", "data_ptr", "code_ptr", "i387_ext"}
    assert {reg.get("type") for reg in regs} <= defined | builtin


def test_without_paging_an_address_is_physical() -> None:
    assert walk({"cr0": 0, "cr3": 0, "cr4": 0, "efer": 0}, 0xFFFF0, {}) == 0xFFFF0


def test_four_levels_to_a_4k_page() -> None:
    address = 0xFFFF_FFFF_8123_4567
    memory = {
        0x1000 + ((address >> 39) & 511) * 8: 0x2000 | PRESENT,
        0x2000 + ((address >> 30) & 511) * 8: 0x3000 | PRESENT,
        0x3000 + ((address >> 21) & 511) * 8: 0x4000 | PRESENT,
        0x4000 + ((address >> 12) & 511) * 8: (1 << 63) | 0xABCD000 | PRESENT,
    }
    assert walk(LONG, address, memory) == 0xABCD567


@pytest.mark.parametrize(("shift", "level"), [(21, 2), (30, 3)])
def test_large_pages(shift: int, level: int) -> None:
    address = 0x7F12_3456_7ABC
    memory = {}
    table = 0x1000
    for depth in range(4, level, -1):
        index = (address >> (12 + 9 * (depth - 1))) & 511
        memory[table + index * 8] = (table + 0x1000) | PRESENT
        table += 0x1000
    frame = 5 << shift
    memory[table + ((address >> shift) & 511) * 8] = frame | LARGE | PRESENT
    assert walk(LONG, address, memory) == frame | (address & ((1 << shift) - 1))


def test_five_levels() -> None:
    address = 0x00FF_1234_5678_9ABC
    memory = {}
    table = 0x1000
    for shift in (48, 39, 30, 21):
        memory[table + ((address >> shift) & 511) * 8] = (table + 0x1000) | PRESENT
        table += 0x1000
    memory[table + ((address >> 12) & 511) * 8] = 0x7777000 | PRESENT
    assert walk(LONG | {"cr4": CR4_PAE | CR4_LA57}, address, memory) == 0x7777ABC
    assert walk(LONG, address, memory) is None, "not canonical with four levels"


def test_pae() -> None:
    values = {"cr0": CR0_PG, "cr3": 0x1020, "cr4": CR4_PAE, "efer": 0}
    memory = {
        0x1020 + 3 * 8: 0x2000 | PRESENT,
        0x2000 + 1 * 8: 0x3000 | PRESENT,
        0x3000 + 2 * 8: 0x9000 | PRESENT,
    }
    assert walk(values, (3 << 30) | (1 << 21) | (2 << 12) | 0x123, memory) == 0x9123


def test_legacy_32_bit_paging() -> None:
    values = {"cr0": CR0_PG, "cr3": 0x1000, "cr4": CR4_PSE, "efer": 0}
    # Entries of 4 bytes: number 3 is the high half of the word at 8.
    memory = {
        0x1000 + 8: (0x2000 | PRESENT) << 32,
        0x2000 + 0x10: struct.unpack("<Q", struct.pack("<II", 0x5000 | PRESENT, 0))[0],
    }
    assert walk(values, (3 << 22) | (4 << 12) | 0x21, memory) == 0x5021
    large = {0x1000: (0x0080_0000 | LARGE | PRESENT)}
    assert walk(values, 0x12345, large) == 0x0081_2345


@given(st.integers(0, 2**64 - 1))
def test_an_empty_table_maps_nothing(address: int) -> None:
    assert walk(LONG, address, {}) is None
