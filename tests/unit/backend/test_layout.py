import pytest

from kvmdbg.backend.stub.layout import Cutter, Slot, included, parse_layout, resized
from kvmdbg.errors import RemoteProtocolError

TARGET = (
    '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>'
    '<architecture>i386:x86-64</architecture><xi:include href="core.xml"/>'
    '<!-- <xi:include href="old.xml"/> --><xi:include href="more.xml"/></target>'
)
CORE = (
    '<feature name="core"><reg name="rax" bitsize="64" regnum="0"/>'
    '<!-- <reg name="ss_base" bitsize="64"/> --><reg name="eflags" bitsize="32"/></feature>'
)
MORE = (
    '<feature name="more"><reg name="st0" bitsize="80" regnum="7"/>'
    '<reg name="cr0" bitsize="64" regnum="4"/><reg name="cr2" bitsize="64"/></feature>'
)


def test_includes_are_found_in_order_and_comments_are_none() -> None:
    assert included(TARGET) == ["core.xml", "more.xml"]


def test_registers_lie_in_the_order_of_their_numbers() -> None:
    assert parse_layout({"target.xml": TARGET, "core.xml": CORE, "more.xml": MORE}) == {
        "rax": Slot(0, 0, 8),
        "eflags": Slot(1, 8, 4),
        "cr0": Slot(4, 12, 8),
        "cr2": Slot(5, 20, 8),
        "st0": Slot(7, 28, 10),
    }


def test_what_is_no_xml_is_the_peers_fault() -> None:
    with pytest.raises(RemoteProtocolError, match="no XML"):
        parse_layout({"target.xml": "<target>"})


def test_widths_are_made_ours() -> None:
    block = bytes(range(1, 13))
    cutter = Cutter([(Slot(1, 8, 4), 8), (Slot(0, 0, 8), 4), (None, 4), (Slot(0, 0, 8), 8)])
    assert cutter.cut(block) == [b"\x09\x0a\x0b\x0c\0\0\0\0", block[:4], None, block[:8]]
    assert resized(b"", 2) == b"\0\0"


def test_what_a_short_block_lacks_is_not_there() -> None:
    cutter = Cutter([(Slot(0, 0, 8), 8), (Slot(1, 8, 4), 8), (Slot(2, 12, 4), 4)])
    assert cutter.cut(bytes(16)) == [bytes(8), bytes(8), bytes(4)]
    assert cutter.cut(bytes(13)) == [bytes(8), bytes(8), None]
    assert cutter.cut(bytes(9)) == [bytes(8), None, None]
