"""The tiny guests' machine code is the assembly that stands beside it."""

import platform
import subprocess
from pathlib import Path

import pytest

from kvmdbg.kvm.arm64.cases import LISTING
from kvmdbg.kvm.listing import Code, read_listing
from kvmdbg.kvm.x86.cases import LONG_CODE, REAL_CODE

# What this machine's assembler can check.
_LISTINGS = {
    "x86_64": [(LONG_CODE, ".code64"), (REAL_CODE, ".code16")],
    "aarch64": [(LISTING, "")],
}


@pytest.mark.parametrize(("code", "directive"), _LISTINGS[platform.machine()])
def test_bytes_are_what_the_assembler_makes(tmp_path: Path, code: Code, directive: str) -> None:
    source, built, raw = (tmp_path / name for name in ("guest.S", "guest.o", "guest.bin"))
    source.write_text(f"{directive}\n{code.source}")
    subprocess.run(["as", "-o", built, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", built, raw], check=True)
    # objcopy leaves the section's bytes alone; there is nothing to relocate.
    assert raw.read_bytes() == code.data


def test_labels_are_addresses() -> None:
    code = read_listing(0x1000, "a:\n  90 | nop\nb:\n  eb fd | jmp a")
    assert (code.data, code.symbols) == (b"\x90\xeb\xfd", {"a": 0x1000, "b": 0x1001})
    assert (code.at(0x1001), code.at(0x1003)) == ("b", "0x1003")
