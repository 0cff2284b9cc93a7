"""Symbols of an ELF file: the kernel's, or a program's."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kvmdbg.addr import Gva
from kvmdbg.errors import SymbolError

_UNDEFINED = 0  # SHN_UNDEF
_LAYOUTS = {64: "IBBHQQ", 32: "IIIBBH"}
"""Elf64_Sym and Elf32_Sym (elf.h)."""


def _symbols(elf: ELFFile, table: SymbolTableSection) -> Iterator[tuple[str, Gva]]:
    """Defined symbols. A kernel has 100,000: pyelftools' own way takes ten times as long.

    Raises ValueError where the table is broken.
    """
    symbol = struct.Struct(("<" if elf.little_endian else ">") + _LAYOUTS[elf.elfclass])
    names, data = table.stringtable.data(), table.data()
    if len(data) % symbol.size:
        raise ValueError("its symbol table ends within a symbol")
    for fields in symbol.iter_unpack(data):
        if elf.elfclass == 64:
            name, _, _, section, value, _ = fields
        else:
            name, value, _, _, _, section = fields
        if name and section != _UNDEFINED:
            yield names[name : names.index(b"\0", name)].decode(errors="replace"), Gva(value)


class ElfSymbols(Mapping[str, Gva]):
    """Addresses (GVA, as linked) by name; read from the file when first asked.

    Of several symbols with one name the first stands. A lookup that fails raises SymbolError,
    which is a KeyError too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _addresses(self) -> dict[str, Gva]:
        addresses: dict[str, Gva] = {}
        try:
            with self.path.open("rb") as file:
                elf = ELFFile(file)
                table = elf.get_section_by_name(".symtab")
                if isinstance(table, SymbolTableSection):
                    for name, address in _symbols(elf, table):
                        addresses.setdefault(name, address)
        except (OSError, ELFError, ValueError) as error:
            raise SymbolError(f"no symbols can be read from {self.path}: {error}") from error
        return addresses

    def __getitem__(self, name: str) -> Gva:
        address = self._addresses.get(name)
        if address is None:
            raise SymbolError(f"{self.path} has no symbol {name!r}")
        return address

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)
