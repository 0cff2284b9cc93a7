"""Symbols of an ELF file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kvmdbg.errors import SymbolError
from kvmdbg.linux.symbols import ElfSymbols


@pytest.fixture
def program(tmp_path: Path) -> Path:
    source = tmp_path / "p.c"
    source.write_text("int counter = 5; int twice(int x) { return 2 * x; }\n")
    linker = ["-Wl,-Ttext=0x400000", "-Wl,-e,twice"]
    output = tmp_path / "p"
    command = ["gcc", "-nostdlib", "-static", "-no-pie", *linker, "-o", str(output), str(source)]
    subprocess.run(command, check=True)
    return output


def test_addresses_by_name(program: Path) -> None:
    symbols = ElfSymbols(program)
    nm = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout
    expected = {line.split()[2]: int(line.split()[0], 16) for line in nm.splitlines()}
    assert symbols["twice"] == expected["twice"] == 0x400000
    assert symbols["counter"] == expected["counter"]
    assert "counter" in symbols
    assert "nothing" not in symbols


def test_a_missing_symbol_is_named(program: Path) -> None:
    with pytest.raises(SymbolError, match="has no symbol 'nothing'"):
        ElfSymbols(program)["nothing"]


def test_what_is_no_elf_file_is_said(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello")
    for path in (text, tmp_path / "missing"):
        with pytest.raises(SymbolError, match="no symbols can be read from"):
            ElfSymbols(path)["x"]
