"""What is wrong with the outer QEMU's x86 (10.0), and the bytes that put it right.

Both are in ``target/i386/tcg``, and matter to who debugs an L2:

* ``raise_interrupt2`` (7.2 too) checks a guest's int3 against SVM's software-interrupt intercept
  (0x75) instead of that of exception 3, #BP (0x40 + 3): an L2's int3 kills the L2. With the number
  changed every ``INT n`` of an L2 takes the #BP intercept, which is what the lab needs of int3.
* ``do_interrupt_protected`` and ``do_interrupt64`` take the vector of an external interrupt for
  that of a fault, and save RF = 1. Where a debug register's breakpoint was next, the return from
  the interrupt passes it: a hit is lost. A processor saves RF = 1 only with faults and between two
  turns of a repeated instruction (AMD64 manual 2, 3.1.6). With the number changed vectors above 18
  count as interrupts, which is wrong only of the rare exceptions from 19 on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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


def fix_emulator(emulator: bytes) -> bytes:
    """The emulator with the fixes. Raises LabError unless the code is what they were made for."""
    fixed = bytearray(emulator)
    for fix in FIXES:
        found = list(re.finditer(fix.pattern, emulator, re.DOTALL))
        if len(found) != fix.places:
            raise LabError(
                f"the {fix.name} fix does not fit this QEMU: the instructions it changes are there "
                f"{len(found)} times, not {fix.places}: pin a QEMU that it was made for, or look "
                f"at {fix.function} in QEMU's source and adapt tests/lab/outer.py"
            )
        for place in found:
            fixed[place.start(1)] = fix.byte
    return bytes(fixed)
