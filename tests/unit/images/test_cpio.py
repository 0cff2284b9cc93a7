"""The newc writer, read back by a decoder of this test's own and by cpio."""

import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvmdbg.images.cpio import CpioWriter


@dataclass
class Entry:
    mode: int
    content: bytes
    inode: int
    mtime: int
    owner: tuple[int, int]
    device: tuple[int, int]


def decode(archive: bytes) -> dict[str, Entry]:
    """Entries by name, in order, without the trailer."""
    entries: dict[str, Entry] = {}
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        header = archive[position + 6 : position + 110]
        f = [int(header[i : i + 8], 16) for i in range(0, 104, 8)]
        name_end = position + 110 + f[11]
        name = archive[position + 110 : name_end]
        assert name.endswith(b"\0")
        start = -(-name_end // 4) * 4
        if name == b"TRAILER!!!\0":
            assert len(archive) == start
            return entries
        content = archive[start : start + f[6]]
        entries[name[:-1].decode()] = Entry(f[1], content, f[0], f[5], (f[2], f[3]), (f[9], f[10]))
        position = -(-(start + f[6]) // 4) * 4


def sample() -> bytes:
    writer = CpioWriter()
    writer.directory("bin")
    for size in range(5):
        writer.file(f"bin/{'x' * (size + 1)}", bytes(range(size)))
    writer.symlink("bin/sh", "busybox")
    writer.device("console", "c", 5, 1)
    writer.device("disk", "b", 8, 0, mode=0o660)
    return writer.finish()


def test_entries_survive() -> None:
    entries = decode(sample())
    assert list(entries)[:3] == ["bin", "bin/x", "bin/xx"]
    assert entries["bin"].mode == stat.S_IFDIR | 0o755
    assert [entries[f"bin/{'x' * (n + 1)}"].content for n in range(5)] == [
        bytes(range(n)) for n in range(5)
    ]
    assert entries["bin/x"].mode == stat.S_IFREG | 0o755
    assert (stat.S_ISLNK(entries["bin/sh"].mode), entries["bin/sh"].content) == (True, b"busybox")
    assert (entries["console"].mode, entries["console"].device) == (stat.S_IFCHR | 0o600, (5, 1))
    assert (entries["disk"].mode, entries["disk"].device) == (stat.S_IFBLK | 0o660, (8, 0))


def test_nothing_depends_on_who_builds_or_when() -> None:
    entries = decode(sample()).values()
    assert {entry.mtime for entry in entries} == {0}
    assert {entry.owner for entry in entries} == {(0, 0)}
    assert len({entry.inode for entry in entries}) == len(entries)
    assert sample() == sample()


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here")
def test_cpio_reads_it(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["cpio", "-t", "--quiet"], input=sample(), capture_output=True, check=True, cwd=tmp_path
    )
    assert listed.stdout.decode().split() == list(decode(sample()))
    assert listed.stderr == b""
