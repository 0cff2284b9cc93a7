"""From Debian's compressed kernel to a symbol file."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kvmdbg.errors import ImageError
from kvmdbg.images.tools import run_tool

_ELF_MAGIC = b"\x7fELF"
_PT_LOAD = 1

# x86 boot protocol (kernel Documentation/arch/x86/boot.rst), offsets in the file.
_SETUP_SECTS = 0x1F1
_PROTOCOL_VERSION = 0x206
_PAYLOAD_OFFSET = 0x248  # two __le32: payload_offset, payload_length; since protocol 2.08
_SECTOR = 512
_SIZE_SUFFIX = 4  # the build appends the size of the unpacked kernel to all but gzip's


def _unpack_gzip(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(data)


def _unpack_lz4(data: bytes) -> bytes:
    """LZ4's legacy frame: a magic number, then blocks of up to 8 MiB, each after its size."""
    import lz4.block  # type: ignore[import-untyped]

    unpacked = bytearray()
    position = 4
    while position + 4 <= len(data) - _SIZE_SUFFIX:
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        block = data[position : position + size]
        try:
            unpacked += lz4.block.decompress(block, uncompressed_size=8 << 20)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(error) from error
        position += size
    return bytes(unpacked)


def _unpack_zstd(data: bytes) -> bytes:
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(error) from error


# First bytes → (name, unpacker). Each ends with its stream, or before the size suffix; each raises
# an error of its own library, or ValueError for those that are imported late.
_FORMATS: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", _unpack_gzip),
    b"\xfd7zXZ\0": ("xz", lambda data: lzma.LZMADecompressor().decompress(data)),
    b"BZh": ("bzip2", lambda data: bz2.BZ2Decompressor().decompress(data)),
    b"\x5d\0\0": ("lzma", lambda data: lzma.LZMADecompressor().decompress(data)),
    b"\x02\x21\x4c\x18": ("lz4", _unpack_lz4),
    b"\x28\xb5\x2f\xfd": ("zstd", _unpack_zstd),
}


def _unpack_bzimage(image: bytes) -> bytes:
    """The ELF file inside: the boot loader's payload, which relocations may follow."""
    (version,) = struct.unpack_from("<H", image, _PROTOCOL_VERSION)
    if version < 0x208:
        raise ImageError(f"the kernel's boot protocol {version:#x} is too old to hold an ELF file")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_OFFSET)
    # A count of 0 means 4, for the sake of ancient boot loaders.
    start = ((image[_SETUP_SECTS] or 4) + 1) * _SECTOR + offset
    payload = image[start : start + length]
    if payload.startswith(_ELF_MAGIC):
        return payload
    known = next((known for magic, known in _FORMATS.items() if payload.startswith(magic)), None)
    if known is None:
        raise ImageError(f"the kernel is compressed in an unknown way (magic {payload[:6].hex()})")
    name, unpack = known
    try:
        unpacked = unpack(payload)
    except (lzma.LZMAError, zlib.error, OSError, ValueError) as error:
        raise ImageError(f"cannot decompress the kernel's {name} payload: {error}") from error
    if not unpacked.startswith(_ELF_MAGIC):
        raise ImageError(f"the kernel's {name} payload does not hold an ELF file")
    return unpacked


# Kinds of kernel files: name, where a magic number is and which, least size, unpacker.
_KERNELS: tuple[tuple[str, int, bytes, int, Callable[[bytes], bytes]], ...] = (
    ("an x86 bzImage", 0x202, b"HdrS", _PAYLOAD_OFFSET + 8, _unpack_bzimage),
    # kernel Documentation/arm64/booting.rst; vmlinux-to-elf reads it as it is
    ("an arm64 Image", 0x38, b"ARM\x64", 0x40, bytes),
)


def decompress_kernel(image: bytes) -> bytes:
    """What vmlinux-to-elf takes, out of a kernel as boot loaders take it.

    Raises ImageError when *image* is no such file or its compression is unknown.
    """
    for _, offset, magic, size, unpack in _KERNELS:
        if image[offset : offset + len(magic)] == magic and len(image) >= size:
            return unpack(image)
    names = " or ".join(name for name, *_ in _KERNELS)
    raise ImageError(f"the kernel file is not {names}")


def write_symbol_file(kernel: Path, target: Path, required: Iterable[str]) -> None:
    """Give a decompressed kernel a symbol table, made from its own kallsyms.

    Raises ImageError when one of the *required* symbols is not in the result.
    """
    run_tool("vmlinux-to-elf", [str(kernel), str(target)], what="make the kernel's symbol file")
    _load_notes(target)
    missing = sorted(set(required) - elf_symbols(target).keys())
    if missing:
        raise ImageError(
            f"the kernel's symbol file lacks {', '.join(missing)}: "
            "vmlinux-to-elf did not understand this kernel"
        )


def _load_notes(path: Path) -> None:
    """Let a PT_LOAD cover ``.notes``, as the kernel's own linker does: gdb warns otherwise."""
    with path.open("r+b") as file:
        try:
            elf = ELFFile(file)
            places = [
                elf["e_phoff"] + i * elf["e_phentsize"]
                for i in range(elf.num_segments())
                if elf.get_segment(i)["p_type"] == "PT_NOTE"
            ]
        except ELFError as error:
            raise ImageError(f"{path} is not a readable ELF file: {error}") from error
        for place in places:
            file.seek(place)
            file.write(struct.pack("<I", _PT_LOAD))


def elf_symbols(path: Path) -> dict[str, int]:
    """Name → address (GVA) of every defined symbol in an ELF file."""
    with path.open("rb") as file:
        try:
            table = ELFFile(file).get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                return {}
            return {
                symbol.name: symbol["st_value"]
                for symbol in table.iter_symbols()
                if symbol["st_shndx"] != "SHN_UNDEF"
            }
        except ELFError as error:
            raise ImageError(f"{path} is not a readable ELF file: {error}") from error
