"""The fixes of the outer QEMU change exactly their bytes, of exactly the code they know."""

import io
import subprocess
from pathlib import Path

import pytest
from elftools.elf.constants import P_FLAGS
from elftools.elf.elffile import ELFFile

from tests.lab.errors import LabError
from tests.lab.outer import fix_emulator

INT3 = ".byte 0x90, 0x31, 0xd2, 0xbe, 0x75, 0, 0, 0, 0xe8, 1, 2, 3, 4\n"
RF = ".byte 0x41, 0x83, 0xfe, 18, 0xf, 0x86, 1, 2, 3, 4, 0xc6, 0x44, 0x24, 0x40, 1, 0xe9\n"
VIRQ = "test %esi, %esi; je 1f; orl $0x100, -0x2af0(%rbx); 1:\n"
LOCK = ".globl bql_lock_impl, bql_unlock\n"

# A program that does what helper_vmrun does, and is 42 where all is well. While it waits for the
# lock another thread raises an interrupt (4); whatever a called function may change is changed.
PROGRAM = """
    .globl main
main:
    push %rbx
    lea interrupt_request + 0x2af0(%rip), %rbx
    mov $1, %eax; mov $2, %ecx; mov $4, %edx; mov $8, %edi; mov $16, %r8d
    mov $32, %r9d; mov $64, %r10d; mov $128, %r11d; mov $0x100, %esi
VIRQ
    add %rcx, %rax; add %rdx, %rax; add %rdi, %rax; add %r8, %rax
    add %r9, %rax; add %r10, %rax; add %r11, %rax; add %rsi, %rax
    cmp $0x1ff, %rax
    jne wrong
    cmpl $0x106, interrupt_request(%rip)
    jne wrong
    cmpl $0x106, at_unlock(%rip)
    jne wrong
    mov $42, %eax
    pop %rbx
    ret

bql_lock_impl:
    orl $4, interrupt_request(%rip)
    or %rdi, %rsi
    jnz wrong
    jmp trash

bql_unlock:
    mov interrupt_request(%rip), %eax
    mov %eax, at_unlock(%rip)
trash:
    lea 8(%rsp), %rax
    test $15, %al
    jnz wrong
    or $-1, %rax; or $-1, %rcx; or $-1, %rdx; or $-1, %rsi; or $-1, %rdi
    or $-1, %r8; or $-1, %r9; or $-1, %r10; or $-1, %r11
    ret

wrong:
    ud2

    .data
interrupt_request: .long 2
at_unlock: .long 0
    .section .note.GNU-stack
"""


def build(folder: Path, *, extra: str = RF * 2 + INT3, virq: str = VIRQ, lock: str = LOCK) -> bytes:
    source, program = folder / "emulator.s", folder / "emulator"
    source.write_text(lock + PROGRAM.replace("VIRQ\n", virq) + ".section .rodata\n" + extra)
    subprocess.run(["gcc", "-rdynamic", "-o", program, source], check=True)
    return program.read_bytes()


def test_only_their_bytes_are_changed(tmp_path: Path) -> None:
    emulator = build(tmp_path)
    fixed = fix_emulator(emulator)
    assert len(fixed) == len(emulator)
    data = emulator.index(b"\x41\x83\xfe\x12")
    changed = [at - data for at in range(len(fixed)) if fixed[at] != emulator[at]]
    assert [(at, fixed[data + at]) for at in changed if at >= 0] == [(14, 0), (30, 0), (36, 0x43)]
    assert len([at for at in changed if at < 0]) <= 10 + 51


def test_vmrun_takes_the_lock_and_changes_no_register(tmp_path: Path) -> None:
    program = tmp_path / "fixed"
    program.write_bytes(fix_emulator(build(tmp_path)))
    program.chmod(0o755)
    assert subprocess.run([program], check=False).returncode == 42


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"extra": RF * 2}, "int3"),
        ({"extra": INT3 * 2 + RF * 2}, "int3"),
        ({"extra": INT3 + RF}, "RF"),
        ({"extra": INT3 + RF * 3}, "RF"),
        ({"virq": ""}, "VIRQ"),
        ({"virq": VIRQ * 2}, "VIRQ"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, change: dict[str, str], name: str) -> None:
    with pytest.raises(LabError, match=f"the {name} fix does not fit this QEMU: .* not "):
        fix_emulator(build(tmp_path, **change))


def test_what_is_fixed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"the int3 fix does not fit this QEMU: .* not "):
        fix_emulator(fix_emulator(build(tmp_path)))


def test_an_emulator_without_the_lock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LabError, match="the VIRQ fix does not fit this QEMU: it has no bql_lock_impl"
    ):
        fix_emulator(build(tmp_path, lock=""))


def test_an_emulator_without_room_behind_its_code_is_refused(tmp_path: Path) -> None:
    emulator = bytearray(build(tmp_path))
    segments = ELFFile(io.BytesIO(emulator)).iter_segments("PT_LOAD")
    (text,) = (segment.header for segment in segments if segment["p_flags"] & P_FLAGS.PF_X)
    emulator[text["p_offset"] + text["p_filesz"] + 50] = 1
    with pytest.raises(LabError, match="the VIRQ fix does not fit this QEMU: there is no room"):
        fix_emulator(bytes(emulator))
