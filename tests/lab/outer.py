"""What is wrong with the outer QEMU's x86 (10.0), and the bytes that put it right.

All are in ``target/i386/tcg``, and matter to who debugs an L2:

* ``raise_interrupt2`` (7.2 too) checks a guest's int3 against SVM's software-interrupt intercept
  (0x75) instead of that of exception 3, #BP (0x40 + 3): an L2's int3 kills the L2. With the number
  changed every ``INT n`` of an L2 takes the #BP intercept, which is what the lab needs of int3.
* ``do_interrupt_protected`` and ``do_interrupt64`` take the vector of an external interrupt for
  that of a fault, and save RF = 1. Where a debug register's breakpoint was next, the return from
  the interrupt passes it: a hit is lost. A processor saves RF = 1 only with faults and between two
  turns of a repeated instruction (AMD64 manual 2, 3.1.6). With the number changed vectors above 18
  count as interrupts, which is wrong only of the rare exceptions from 19 on.
* ``helper_vmrun`` sets CPU_INTERRUPT_VIRQ in the CPU's ``interrupt_request`` without the big lock
  (BQL), by a read and a write. An interrupt that another thread raises between the two is lost:
  where that is the timer's, L1 sleeps until some device wakes it, for ever perhaps, and its clock
  (the HPET, which wraps after 43 s) does not tell. It takes the lock now. Later versions of QEMU
  change ``interrupt_request`` atomically everywhere.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tests.lab.errors import LabError


@dataclass(frozen=True)
class Fix:
    """One byte, at each of its places."""

    name: str
    function: str  # in QEMU's source, for who has to adapt it
    pattern: bytes  # a regular expression; its group is the byte
    places: int
    byte: int


FIXES = (
    # xor edx, edx; mov esi, SVM_EXIT_SWINT; call cpu_svm_check_intercept_param
    Fix("int3", "raise_interrupt2", rb"\x31\xd2\xbe(\x75)\0\0\0\xe8", 1, 0x40 + 3),
    # cmp r14d, 18; jbe exception; mov byte [rsp + set_rf], 1; jmp
    Fix("RF", "do_interrupt64", rb"\x41\x83\xfe\x12\x0f\x86.{4}\xc6\x44\x24.(\x01)\xe9", 2, 0),
)


# test esi, V_IRQ; je; or dword [CPU's interrupt_request, from env in rbx], CPU_INTERRUPT_VIRQ
_VIRQ = rb"\x85\xf6\x74\x0a(\x81\x8b.{4}\x00\x01\x00\x00)"
# rax, rcx, rdx, rsi, rdi, r8 to r11: what a call may change, and with its return address 80 bytes.
_PUSH = bytes.fromhex("50 51 52 56 57 4150 4151 4152 4153")
_POP = bytes.fromhex("415b 415a 4159 4158 5f 5e 5a 59 58")
_NO_FILE_AND_LINE = bytes.fromhex("31ff 31f6")  # arguments for bql_lock_impl
_RET, _NOP = b"\xc3", b"\x90"
_PAGE = 4096


def fix_emulator(emulator: bytes) -> bytes:
    """The emulator with the fixes. Raises LabError unless the code is what they were made for."""
    fixed = bytearray(emulator)
    for fix in FIXES:
        for place in _places(fix.pattern, emulator, fix.places, fix.name, fix.function):
            fixed[place.start(1)] = fix.byte
    _lock_vmrun(fixed)
    return bytes(fixed)


def _places(
    pattern: bytes, code: bytes | bytearray, count: int, name: str, function: str
) -> list[re.Match[bytes]]:
    found = list(re.finditer(pattern, code, re.DOTALL))
    if len(found) != count:
        raise LabError(
            f"the {name} fix does not fit this QEMU: the instructions it changes are there "
            f"{len(found)} times, not {count}: pin a QEMU that it was made for, or look "
            f"at {function} in QEMU's source and adapt tests/lab/outer.py"
        )
    return found


def _lock_vmrun(emulator: bytearray) -> None:
    """Lead helper_vmrun's change through code behind the program's own, which takes the lock."""
    (place,) = _places(_VIRQ, emulator, 1, "VIRQ", "helper_vmrun")
    change, at = place[1], place.start(1)
    elf = ELFFile(io.BytesIO(emulator))
    (text,) = (
        segment.header
        for segment in elf.iter_segments("PT_LOAD")
        if 0 <= at - segment["p_offset"] < segment["p_filesz"]
    )
    moved = text["p_vaddr"] - text["p_offset"]
    start = text["p_offset"] + text["p_filesz"]
    code = _PUSH + _NO_FILE_AND_LINE
    code += _call(start + len(code), _function(elf, "bql_lock_impl") - moved)
    code += change
    code += _call(start + len(code), _function(elf, "bql_unlock") - moved)
    code += _POP + _RET
    # The last page of the program is in memory as a whole, as it is in the file.
    room = -start % _PAGE
    if room < len(code) or any(emulator[start : start + len(code)]):
        raise LabError("the VIRQ fix does not fit this QEMU: there is no room behind its code")
    emulator[start : start + len(code)] = code
    emulator[at : at + len(change)] = _call(at, start).ljust(len(change), _NOP)


def _function(elf: ELFFile, name: str) -> int:
    """The address of an exported function, before relocation."""
    symbols = elf.get_section_by_name(".dynsym")
    found = symbols.get_symbol_by_name(name) if isinstance(symbols, SymbolTableSection) else None
    if not found:
        raise LabError(f"the VIRQ fix does not fit this QEMU: it has no {name}")
    return int(found[0]["st_value"])


def _call(at: int, to: int) -> bytes:
    """A call, both offsets in the file."""
    return b"\xe8" + struct.pack("<i", to - (at + 5))
