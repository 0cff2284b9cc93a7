"""Decompression, on synthetic bzImages of every compression, and symbol files."""

import bz2
import gzip
import lzma
import struct
import subprocess
from pathlib import Path

import lz4.block  # type: ignore[import-untyped]
import pytest
import zstandard
from elftools.elf.elffile import ELFFile

from kvmdbg.errors import ImageError
from kvmdbg.images import kernel
from kvmdbg.images.kernel import decompress_kernel, elf_symbols, write_symbol_file

KERNEL = b"\x7fELF" + bytes(range(256)) * 40_000  # more than one 8 MiB block of LZ4
SIZE_SUFFIX = struct.pack("<I", len(KERNEL))


def bzimage(payload: bytes, *, setup_sects: int = 4, version: int = 0x20F) -> bytes:
    """A kernel file with nothing in it but the header fields that matter and the payload."""
    start = ((setup_sects or 4) + 1) * 512
    image = bytearray(start + 100)
    image[0x1F1] = setup_sects
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<II", image, 0x248, 100, len(payload))
    return bytes(image) + payload + b"what follows the payload"


def lz4_legacy(data: bytes) -> bytes:
    packed = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(KERNEL, id="plain"),
        pytest.param(gzip.compress(KERNEL), id="gzip"),
        pytest.param(lzma.compress(KERNEL, preset=0) + SIZE_SUFFIX, id="xz"),
        pytest.param(
            lzma.compress(KERNEL, format=lzma.FORMAT_ALONE, preset=0) + SIZE_SUFFIX, id="lzma"
        ),
        pytest.param(bz2.compress(KERNEL, 1) + SIZE_SUFFIX, id="bzip2"),
        pytest.param(lz4_legacy(KERNEL) + SIZE_SUFFIX, id="lz4"),
        pytest.param(zstandard.compress(KERNEL) + SIZE_SUFFIX, id="zstd"),
    ],
)
def test_every_compression_of_the_kernel(payload: bytes) -> None:
    assert decompress_kernel(bzimage(payload)) == KERNEL


def test_the_ancient_count_of_setup_sectors() -> None:
    assert decompress_kernel(bzimage(gzip.compress(KERNEL), setup_sects=0)) == KERNEL


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "not an x86 bzImage"),
        (b"\x7fELF" + bytes(4096), "not an x86 bzImage"),
        (bzimage(KERNEL, version=0x207), "boot protocol 0x207 is too old"),
        (bzimage(b"\x89LZO\x00\x0d"), r"unknown way \(magic 894c5a4f000d\)"),
        (bzimage(gzip.compress(b"no kernel")), "gzip payload does not hold an ELF file"),
        (bzimage(b"\x1f\x8b" + bytes(64)), "cannot decompress the kernel's gzip payload"),
        (bzimage(b"\xfd7zXZ\0" + bytes(64)), "cannot decompress the kernel's xz payload"),
        (bzimage(b"BZh9" + bytes(64)), "cannot decompress the kernel's bzip2 payload"),
        (
            bzimage(b"\x02\x21\x4c\x18\x04\0\0\0\xff\xff\xff\xff" + bytes(8)),
            "cannot decompress the kernel's lz4 payload",
        ),
        (
            bzimage(b"\x28\xb5\x2f\xfd" + b"\xff" * 64),
            "cannot decompress the kernel's zstd payload",
        ),
    ],
)
def test_what_is_no_kernel_is_one_sentence(image: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decompress_kernel(image)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "p.c").write_text("int counter; void _start(void) { for (;;) counter++; }\n")
    target = tmp_path / "program"
    subprocess.run(
        [
            "cc",
            "-nostdlib",
            "-static",
            "-Wl,--build-id",
            "-no-pie",
            "-o",
            str(target),
            str(tmp_path / "p.c"),
        ],
        check=True,
    )
    return target


def test_elf_symbols_have_addresses(program: Path) -> None:
    symbols = elf_symbols(program)
    assert 0x400000 <= symbols["_start"] < symbols["counter"]
    subprocess.run(["strip", str(program)], check=True)
    assert elf_symbols(program) == {}


def test_elf_symbols_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no ELF file")
    with pytest.raises(ImageError, match="not a readable ELF file"):
        elf_symbols(tmp_path / "text")


def test_a_symbol_file_must_have_what_the_recipe_requires(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(name: str, arguments: list[str], *, what: str) -> bytes:
        Path(arguments[1]).write_bytes(Path(arguments[0]).read_bytes())
        return b""

    monkeypatch.setattr(kernel, "run_tool", copy)
    write_symbol_file(program, tmp_path / "vmlinux", ["_start", "counter"])
    with (tmp_path / "vmlinux").open("rb") as file:
        assert not list(ELFFile(file).iter_segments("PT_NOTE"))
    with pytest.raises(ImageError, match="symbol file lacks init_task, start_kernel"):
        write_symbol_file(program, tmp_path / "vmlinux", ["_start", "start_kernel", "init_task"])
