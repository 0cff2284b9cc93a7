"""The one-byte fix of the outer QEMU that x86 software breakpoints need.

QEMU's TCG checks a guest's int3 against SVM's software-interrupt intercept (0x75) instead of that
of exception 3, #BP (0x40 + 3): an L2's int3 kills the L2. The number is an immediate operand in
``raise_interrupt2`` (QEMU 7.2 to 10.0, ``target/i386/tcg/excp_helper.c``); with it changed every
``INT n`` of an L2 takes the #BP intercept, which is what the lab needs of int3.
"""

from __future__ import annotations

from tests.lab.errors import LabError

SVM_EXIT_SWINT = 0x75
SVM_EXIT_BP = 0x40 + 3

# xor edx, edx; mov esi, SVM_EXIT_SWINT; call cpu_svm_check_intercept_param
_PATTERN = bytes([0x31, 0xD2, 0xBE, SVM_EXIT_SWINT, 0, 0, 0, 0xE8])
_OFFSET = 3  # of the number in it


def fix_int3(emulator: bytes) -> bytes:
    """The emulator with the fix. Raises LabError unless exactly one place looks like the bug."""
    places = emulator.count(_PATTERN)
    if places != 1:
        raise LabError(
            f"the int3 fix does not fit this QEMU: the instruction it changes is there {places} "
            "times instead of once: pin a QEMU that it was made for, or look at raise_interrupt2 "
            "in QEMU's source and adapt tests/lab/int3.py"
        )
    at = emulator.index(_PATTERN) + _OFFSET
    return emulator[:at] + bytes([SVM_EXIT_BP]) + emulator[at + 1 :]
