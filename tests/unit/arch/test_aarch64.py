"""The aarch64 descriptor: register numbers, description, page walk."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from kvmdbg.addr import Gva
from kvmdbg.arch import AARCH64
from kvmdbg.arch.aarch64 import (
    HCR_E2H,
    HCR_TGE,
    HCR_VM,
    PSTATE_AARCH32,
    SCTLR_EE,
    SCTLR_M,
    TCR_DS,
)
from kvmdbg.arch.describe import Fetch

HIGH = 0xFFFF_0000_0000_0000
EL1 = 0x3C5
TABLE, PAGE, BLOCK = 3, 3, 1


def regime(granule: str, bits: int, **more: int) -> dict[str, int]:
    """Both halves alike: ``bits`` of input, tables at 0x10000 and 0x20000."""
    low, high = {"4K": (0, 2), "16K": (2, 1), "64K": (1, 3)}[granule]
    size = 64 - bits
    return {
        "cpsr": EL1,
        "SCTLR_EL1": SCTLR_M,
        "TCR_EL1": size | low << 14 | size << 16 | high << 30,
        "TTBR0_EL1": 0x10001,
        "TTBR1_EL1": 0x42 << 48 | 0x20000,
        "HCR_EL2": 0,
    } | more


def walk(values: dict[str, int], address: int, memory: dict[int, int]) -> int | None:
    """Run the walk on ``memory``, entries by GPA; others are 0."""
    steps = AARCH64.translate(values, Gva(address))
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(memory.get(wanted, 0))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


# --- description ---------------------------------------------------------------------------------


def test_numbers_begin_with_gdbs_classic_layout() -> None:
    numbers = AARCH64.numbers
    expected = {"x0": 0, "x30": 30, "sp": 31, "pc": 32, "cpsr": 33, "v0": 34, "v31": 65}
    assert {name: numbers[name] for name in expected} == expected
    assert (numbers["fpsr"], numbers["fpcr"]) == (66, 67)
    assert (numbers["fp"], numbers["lr"], numbers["flags"]) == (29, 30, 33)
    assert [r.name for r in AARCH64.block] == [r.name for r in AARCH64.registers[:34]]
    assert all(r.fetch is Fetch.DEMAND for r in AARCH64.registers[34:])


def test_the_description_is_whole() -> None:
    root = ElementTree.fromstring(AARCH64.target_xml)
    assert root.findtext("architecture") == "aarch64"
    registers = root.findall("feature/reg")
    assert [int(r.attrib["regnum"]) for r in registers] == list(range(len(AARCH64.registers)))
    names = [r.attrib["name"] for r in registers]
    assert len(set(names)) == len(names)
    for feature in root.findall("feature"):
        types = {"int", "uint64", "data_ptr", "code_ptr"}
        types |= {kind.attrib["id"] for kind in feature if kind.tag != "reg"}
        assert {r.attrib["type"] for r in feature.findall("reg")} <= types


def test_the_bits_of_a_flags_type_do_not_overlap() -> None:
    for kind in ElementTree.fromstring(AARCH64.target_xml).iter("flags"):
        taken: set[int] = set()
        for field in kind:
            bits = set(range(int(field.attrib["start"]), int(field.attrib["end"]) + 1))
            assert bits
            assert not bits & taken, (kind.attrib["id"], field.attrib["name"])
            taken |= bits
        assert max(taken) < 8 * int(kind.attrib["size"])


def test_names_in_qemus_stub() -> None:
    by_name = {register.name: register for register in AARCH64.registers}
    assert by_name["v3"].names == ("v3", "z3")
    assert by_name["VBAR_EL1"].names == ("VBAR_EL1", "VBAR")
    assert by_name["TTBR0_EL1"].names == ("TTBR0_EL1",)


# --- page walk -----------------------------------------------------------------------------------


def test_without_translation_addresses_are_physical() -> None:
    off = regime("4K", 48, SCTLR_EL1=0)
    assert walk(off, 0x4020_0123, {}) == 0x4020_0123
    assert walk(off, 1 << 52, {}) is None


@pytest.mark.parametrize("half", [0, HIGH])
def test_4k_pages_through_four_levels(half: int) -> None:
    root = 0x20000 if half else 0x10000
    memory = {
        root + 0x123 * 8: 0x31000 | TABLE,
        0x31000 + 0x45 * 8: 0x32000 | TABLE,
        0x32000 + 0x67 * 8: 0x33000 | TABLE,
        0x33000 + 0x89 * 8: 0x40_0000_5000 | 0x0060_0000_0000_0700 | PAGE,
    }
    address = half | 0x123 << 39 | 0x45 << 30 | 0x67 << 21 | 0x89 << 12 | 0xABC
    assert walk(regime("4K", 48), address, memory) == 0x40_0000_5ABC
    assert walk(regime("4K", 48), address + 0x1000, memory) is None


def test_4k_blocks_of_1_gib_and_2_mib_but_not_512_gib() -> None:
    memory = {
        0x10000: 0x31000 | TABLE,
        0x31000: 0x8000_0000 | BLOCK,
        0x31008: 0x32000 | TABLE,
        0x32000: 0x1_2340_0000 | BLOCK,
        0x10008: 0x80_0000_0000 | BLOCK,
    }
    values = regime("4K", 48)
    assert walk(values, 0x1234_5678, memory) == 0x9234_5678
    assert walk(values, 0x4001_2345, memory) == 0x1_2341_2345
    assert walk(values, 0x80_0000_0000, memory) is None


def test_a_smaller_input_starts_at_a_lower_level_with_a_small_table() -> None:
    memory = {0x10000 + 3 * 8: 0xC000_0000 | BLOCK}
    values = regime("4K", 32, TTBR0_EL1=0x10000 | 0x10)  # a table of four entries, 32 bytes
    assert walk(values, 0xC123_4567, memory) == 0xC123_4567
    assert walk(values, 0x1_0000_0000, memory) is None


def test_16k_pages_and_blocks() -> None:
    memory = {
        0x10000 + 0x345 * 8: 0x38000 | TABLE,
        0x38000 + 0x123 * 8: 0x3C000 | TABLE,
        0x3C000 + 0x7FF * 8: 0x7_0000_4000 | PAGE,
        0x38000: 0x200_0000 * 5 | BLOCK,
    }
    values = regime("16K", 47)
    assert walk(values, 0x345 << 36 | 0x123 << 25 | 0x7FF << 14 | 0x3210, memory) == 0x7_0000_7210
    assert walk(values, 0x345 << 36 | 0x12_3456, memory) == 0x200_0000 * 5 + 0x12_3456
    one = {0x10000 + 1 * 8: 0x38000 | TABLE}
    assert walk(regime("16K", 48), 1 << 47, one) is None, "level 0 has two entries"


def test_64k_pages_and_blocks_with_52_bits() -> None:
    values = regime("64K", 52)
    values["TCR_EL1"] |= 6 << 32
    values["TTBR0_EL1"] = 0x10000 | 0x5 << 2
    root = 0x5_0000_0001_0000
    memory = {
        root + 0x201 * 8: 0x30000 | 0xA << 12 | TABLE,
        0xA_0000_0003_0000 + 8: 0x40000 | TABLE,
        0x40000 + 2 * 8: 0x7000_0000 | 0x3 << 12 | PAGE,
        root + 8: 0x400_0000_0000 | BLOCK,
    }
    address = 0x201 << 42 | 1 << 29 | 2 << 16 | 0x4321
    assert walk(values, address, memory) == 0x3_0000_7000_4321
    assert walk(values, 1 << 42 | 0x1234, memory) == 0x400_0000_1234


def test_4k_pages_through_five_levels_with_52_bits() -> None:
    values = regime("4K", 52)
    values["TCR_EL1"] |= TCR_DS
    values["TTBR1_EL1"] = 0x20000 | 0x9 << 2
    memory = {
        0x9_0000_0002_0000 + 0xF * 8: 0x31000 | TABLE,
        0x31000 + 8: 0x32000 | 2 << 8 | TABLE,
        0x8_0000_0003_2000 + 2 * 8: 0x33000 | TABLE,
        0x33000 + 3 * 8: 0x34000 | TABLE,
        0x34000 + 4 * 8: 0x3_0000_0000_5000 | 1 << 8 | PAGE,
        0x31000: 0x180_0000_0000 | BLOCK,
    }
    address = 0xFFF0_0000_0000_0000 | 0xF << 48 | 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 5
    assert walk(values, address, memory) == 0x7_0000_0000_5005
    assert walk(values, 0xFFFF_0000_0000_0077, memory) == 0x180_0000_0077
    del memory[0x9_0000_0002_0000 + 0xF * 8]
    assert walk(values, address, memory) is None


@pytest.mark.parametrize("address", [1 << 48, 1 << 55, 0xFFFE_0000_0000_0000, (1 << 64) | 0x1000])
def test_addresses_between_the_halves_are_not_mapped(address: int) -> None:
    memory = dict.fromkeys(range(0x10000, 0x11000, 8), 0x10000 | TABLE)
    memory |= dict.fromkeys(range(0x20000, 0x21000, 8), 0x20000 | TABLE)
    assert walk(regime("4K", 48), address, memory) is None


def test_a_tag_is_ignored_where_it_may_be() -> None:
    memory = {0x10000: 0x31000 | TABLE, 0x31000: 0x4000_0000 | BLOCK}
    values = regime("4K", 48)
    assert walk(values, 0x5A00_0000_0000_1234, memory) is None
    values["TCR_EL1"] |= 1 << 37
    assert walk(values, 0x5A00_0000_0000_1234, memory) == 0x4000_1234
    assert walk(values, 0x5A40_0000_0000_1234, memory) is None


@pytest.mark.parametrize("cpsr", [0x3C9, 0])
def test_a_host_with_vhe_has_its_registers_at_el2(cpsr: int) -> None:
    memory = {0x10000: 0x31000 | TABLE, 0x31000: 0x4000_0000 | BLOCK}
    el1 = regime("4K", 48)
    host = {"cpsr": cpsr, "HCR_EL2": HCR_E2H | HCR_TGE, "SCTLR_EL1": 0, "TCR_EL1": 0}
    for name in ("SCTLR", "TCR", "TTBR0", "TTBR1"):
        host[f"{name}_EL2"] = el1[f"{name}_EL1"]
    assert walk(el1 | host, 0x1234, memory) == 0x4000_1234
    assert walk(el1 | host | {"HCR_EL2": HCR_TGE}, 0x1234, memory) is None, "no VHE"


@pytest.mark.parametrize(
    "changed",
    [
        {"cpsr": 0x3C9},
        {"cpsr": EL1 | PSTATE_AARCH32},
        {"cpsr": 0, "HCR_EL2": HCR_TGE},
        {"HCR_EL2": HCR_VM},
        {"SCTLR_EL1": SCTLR_M | SCTLR_EE},
        {"TCR_EL1": 16 | 3 << 14},  # no such granule
        {"TCR_EL1": 16 | 1 << 7},  # walks are off
        {"TCR_EL1": 12},  # 52 bits without FEAT_LPA2
    ],
)
def test_what_is_left_to_the_stub(changed: dict[str, int]) -> None:
    memory = {0x10000: 0x31000 | TABLE, 0x31000: 0x4000_0000 | BLOCK}
    assert walk(regime("4K", 48), 0x1234, memory) == 0x4000_1234
    assert walk(regime("4K", 48) | changed, 0x1234, memory) is None
