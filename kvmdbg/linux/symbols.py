"""Symbols of an ELF file: the kernel's, or a program's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kvmdbg.addr import Gva
from kvmdbg.errors import SymbolError


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
                table = ELFFile(file).get_section_by_name(".symtab")
                if isinstance(table, SymbolTableSection):
                    for symbol in table.iter_symbols():
                        if symbol.name and symbol["st_shndx"] != "SHN_UNDEF":
                            addresses.setdefault(symbol.name, Gva(symbol["st_value"]))
        except (OSError, ELFError) as error:
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
