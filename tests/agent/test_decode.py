"""What the agent knows of x86 instructions, against objdump on a library full of them."""

import ctypes
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.building import compile_library

INSTRUCTION = 16
NOPS = r"(data16 )*(cs )?nopw? |nop|nopl |xchg   %ax,%ax|endbr64|data16"
NAMES = {0: re.compile(NOPS), 1: re.compile(r"push   %r"), 2: re.compile(r"mov    %r\w+,%r\w+")}
LINE = re.compile(r"^ +[0-9a-f]+:\t((?:[0-9a-f]{2} )+) *\t(.*)$")


class Simple(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint) for name in ("kind", "length", "source", "target")]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("decode") / "decode.so"
    compile_library(library, "decode.c")
    decoder = ctypes.CDLL(str(library))
    decoder.decode_simple.restype = decoder.decode_repeats.restype = ctypes.c_bool
    return decoder


@pytest.fixture(scope="module")
def libc() -> str:
    maps = Path("/proc/self/maps").read_text()
    found = re.search(r"(/\S*/libc\.so\.6)$", maps, re.MULTILINE)
    assert found is not None
    return found[1]


def disassemble(path: str) -> Iterator[tuple[bytes, str]]:
    """Bytes and text of the instructions in a file."""
    command = ["objdump", "-d", "-w", "--insn-width=16", "-j", ".text", path]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        if match := LINE.match(line):
            yield bytes.fromhex(match[1]), match[2]


def test_agrees_with_objdump(decoder: ctypes.CDLL, libc: str) -> None:
    seen = dict.fromkeys(NAMES, 0)
    for code, text in disassemble(libc):
        simple = Simple()
        # What follows an instruction does not matter.
        padded = code.ljust(INSTRUCTION, b"\xff")
        known = decoder.decode_simple(padded, INSTRUCTION, ctypes.byref(simple))
        if known:
            assert simple.length == len(code), text
            assert NAMES[simple.kind].match(text), text
            seen[simple.kind] += 1
        length = decoder.decode_length(padded, INSTRUCTION)
        assert length in (1, len(code)), text
        if text.startswith(("call   0x", "jmp    0x")) or re.match(
            r"(call|jmp) +[0-9a-f]+ <", text
        ):
            assert length == len(code), text
        repeats = decoder.decode_repeats(padded, INSTRUCTION)
        assert repeats == bool(re.match(r"(rep|repz|repnz) (movs|stos|cmps|scas|lods)", text)), text
    assert all(count > 100 for count in seen.values())


def test_knows_registers(decoder: ctypes.CDLL) -> None:
    for code, expected in {
        b"\x48\x89\xe5": (2, 3, 4, 5),  # mov %rsp,%rbp
        b"\x4c\x8b\xc0": (2, 3, 0, 8),  # mov %rax,%r8, the other way to encode it
        b"\x41\x57": (1, 2, 15, 0),  # push %r15
    }.items():
        simple = Simple()
        assert decoder.decode_simple(code, len(code), ctypes.byref(simple))
        assert (simple.kind, simple.length, simple.source, simple.target) == expected


@pytest.mark.parametrize("code", [b"\x48\x89", b"\x0f\x1f", b"\x0f\x1f\x84", b"\xf3\x0f\x1e", b""])
def test_cut_off(decoder: ctypes.CDLL, code: bytes) -> None:
    simple = Simple()
    assert not decoder.decode_simple(code, len(code), ctypes.byref(simple))
