"""Addresses of symbols in a shared object, as it lies in a process's memory.

Read from memory, because its file may be gone, or be another one in the process's mount namespace.
Source: the ELF specification, and https://flapenguin.me/elf-dt-gnu-hash for the hash table.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from kvmdbg.errors import AttachError

_HEADER = 64
_PT_DYNAMIC = 2
_DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 5, 6, 0x6FFF_FEF5
_SYMBOL = struct.Struct("=IBBHQQ")

Read = Callable[[int, int], bytes]
"""Address and length to bytes."""


def find_symbol(read: Read, base: int, name: str) -> int | None:
    """The address of an exported symbol; None where the object at ``base`` has none of that name.

    Raises AttachError where there is no 64-bit ELF object.
    """
    tables = _dynamic(read, base)
    if not {_DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH} <= tables.keys():
        return None
    strings, symbols = tables[_DT_STRTAB], tables[_DT_SYMTAB]
    wanted = name.encode() + b"\0"
    for index in _candidates(read, tables[_DT_GNU_HASH], name):
        at, _, _, section, value, _ = _SYMBOL.unpack(
            read(symbols + index * _SYMBOL.size, _SYMBOL.size)
        )
        if section and read(strings + at, len(wanted)) == wanted:
            return int(base + value)
    return None


def _dynamic(read: Read, base: int) -> dict[int, int]:
    """The dynamic section: addresses by tag."""
    header = read(base, _HEADER)
    if header[:5] != b"\x7fELF\x02":
        raise AttachError(f"there is no 64-bit ELF object at {base:#x}")
    (start,) = struct.unpack_from("=Q", header, 32)
    size, count = struct.unpack_from("=HH", header, 54)
    entries = {}
    for at in range(count):
        kind, _, _, address, _, length = struct.unpack_from(
            "=IIQQQQ", read(base + start + at * size, 40)
        )
        if kind == _PT_DYNAMIC:
            entries = dict(struct.iter_unpack("=QQ", read(base + address, length & ~15)))
    # The loader has made addresses of some of the offsets, but not of all, and not everywhere.
    return {tag: value if value >= base else base + value for tag, value in entries.items()}


def _candidates(read: Read, table: int, name: str) -> list[int]:
    """Indexes of the symbols whose hash is that of ``name``."""
    wanted = _gnu_hash(name)
    buckets, first, filters, _ = struct.unpack("=4I", read(table, 16))
    at = table + 16 + 8 * filters
    chains = at + 4 * buckets
    (index,) = struct.unpack("=I", read(at + 4 * (wanted % buckets), 4))
    found = []
    while index >= first:
        (value,) = struct.unpack("=I", read(chains + 4 * (index - first), 4))
        if value | 1 == wanted | 1:
            found.append(index)
        if value & 1:
            break
        index += 1
    return found


def _gnu_hash(name: str) -> int:
    value = 5381
    for octet in name.encode():
        value = (value * 33 + octet) & 0xFFFF_FFFF
    return value
