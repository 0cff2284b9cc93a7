"""Reads told from writes, after the fact."""

from dataclasses import replace

import pytest

from kvmdbg.backend.agent.x86_access import may_have_read
from kvmdbg.kvm.x86.registers import Regs, Segment, Sregs

WATCHED = range(0x5000, 0x5008)
PC = 0x1000
NO_REGS = Regs(rip=PC)

LONG = replace(Sregs.decode(bytes(Sregs.sizeof())), cs=Segment(l=1), cr0=0x8000_0001, efer=0x500)
PROTECTED = replace(LONG, cs=Segment(db=1), efer=0)
REAL = replace(LONG, cs=Segment(), efer=0, cr0=0, ds=Segment(base=0x4000, selector=0x400))


def reads(code: str, sregs: Sregs, regs: Regs = NO_REGS, before: str = "90" * 8) -> bool:
    """After ``code`` was executed, which left ``regs``; other instructions come before."""
    past = bytes.fromhex(before + code)
    return may_have_read(regs, sregs, past + b"\x90" * 15, len(past), WATCHED)


@pytest.mark.parametrize(
    ("code", "registers", "expected"),
    [
        pytest.param("488907", {"rdi": 0x5000}, False, id="mov [rdi],rax"),
        pytest.param("488b07", {"rdi": 0x5000}, True, id="mov rax,[rdi]"),
        pytest.param("48ff07", {"rdi": 0x5000}, True, id="inc qword [rdi]"),
        pytest.param("488b00", {"rax": 0x77}, True, id="mov rax,[rax], which is gone"),
        pytest.param("48890424", {"rsp": 0x5000}, False, id="mov [rsp],rax"),
        pytest.param("50", {"rsp": 0x5000}, False, id="push rax"),
        pytest.param("58", {"rsp": 0x5008}, True, id="pop rax"),
        pytest.param("c3", {"rsp": 0x5008}, True, id="ret"),
        pytest.param("c644c70401", {"rdi": 0x4FF4, "rax": 1}, False, id="mov [rdi+8*rax+4],1"),
        pytest.param("a4", {"rsi": 0x6001, "rdi": 0x5001}, False, id="movsb to it"),
        pytest.param("a4", {"rsi": 0x5001, "rdi": 0x6001}, True, id="movsb from it"),
        pytest.param("a4", {"rsi": 0x6FFF, "rdi": 0x4FFF, "rflags": 0x402}, False, id="downwards"),
        pytest.param("f00fb10f", {"rdi": 0x5000}, True, id="lock cmpxchg [rdi],ecx"),
        pytest.param("0f110f", {"rdi": 0x4FF8}, False, id="movups [rdi],xmm1"),
    ],
)
def test_the_instruction_tells(code: str, registers: dict[str, int], expected: bool) -> None:
    assert reads(code, LONG, Regs(rip=PC, **registers)) is expected


def test_addresses_relative_to_rip() -> None:
    assert reads("488b05fa3f0000", LONG, Regs(rip=0x1006)) is True  # mov rax,[rip+0x3ffa]
    assert reads("488905fa3f0000", LONG, Regs(rip=0x1006)) is False


def test_segments_with_a_base() -> None:
    sregs = replace(LONG, gs=Segment(base=0x4000))
    assert reads("65488b042500100000", sregs) is True  # mov rax,gs:0x1000
    assert reads("654889042500100000", sregs) is False


def test_other_modes() -> None:
    assert reads("a300500000", PROTECTED) is False  # mov [0x5000],eax
    assert reads("a100500000", PROTECTED) is True
    assert reads("a30010", REAL) is False  # mov ds:[0x1000],ax
    assert reads("a10010", REAL) is True


def test_an_unfinished_rep_is_at_pc() -> None:
    regs = Regs(rip=PC, rsi=0x6010, rdi=0x5001, rcx=3)
    code = b"\x90" * 8 + bytes.fromhex("f3a4") + b"\x90" * 8
    assert not may_have_read(regs, LONG, code, 8, WATCHED)
    swapped = replace(regs, rsi=0x5001, rdi=0x6010)
    assert may_have_read(swapped, LONG, code, 8, WATCHED)


def test_what_cannot_be_told_counts_as_a_read() -> None:
    assert reads("ff", LONG, before="") is True
