"""Putting an image together, from packages of a local archive and the real compiler."""

import gzip
import lzma
import platform
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from kvmdbg.errors import ImageError
from kvmdbg.images import build, load_recipe
from kvmdbg.images.build import build_image
from kvmdbg.progress import SilentProgress

RECIPE = """\
name = "tiny"
arch = "x86_64"
[kernel]
package = "linux-image-tiny"
[programs.worker]
sources = ["worker.c", "worker.h"]
flags = ["-g"]
[initramfs]
packages = ["tool"]
directories = ["lib/modules"]
[initramfs.files]
"init" = "source:init"
"lib/tool" = "package:tool:bin/tool"
"lib/worker" = "program:worker"
"lib/modules/plain.ko" = "module:plain"
"lib/modules/packed.ko" = "module:packed"
[initramfs.symlinks]
"lib/link" = "tool"
[initramfs.devices]
"console" = { type = "c", major = 5, minor = 1 }
"""

KERNEL = bytearray(4096)
KERNEL[0x202:0x206] = b"HdrS"
KERNEL[0x206:0x208] = b"\x0f\x02"
struct.pack_into("<II", KERNEL, 0x248, 0, 8)
KERNEL[5 * 512 : 5 * 512 + 8] = b"\x7fELFtiny"


@pytest.fixture
def sources(tmp_path: Path, archive: Any, use_sources: Callable[[str], None]) -> Path:
    """The recipe's folder, with apt pointed at packages that fit it."""
    modules = "lib/modules/1/kernel/drivers"
    archive.add(
        "linux-image-1",
        "1-1",
        {
            "boot/vmlinuz-1": bytes(KERNEL),
            "boot/config-1": b"",
            f"{modules}/plain.ko": b"plain module",
            f"{modules}/packed.ko.xz": lzma.compress(b"packed module"),
            f"{modules}/other.ko": b"",
        },
    )
    archive.add("linux-image-tiny", "1-1", {}, depends="linux-image-1 (= 1-1)")
    archive.add("tool", "1", {"usr/bin/tool": b"the tool"})
    use_sources(f"deb [trusted=yes] file:{archive.folder} ./\n")
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "init").write_text("#!/bin/sh\n")
    (folder / "worker.h").write_text("#define LOOP for (;;)\n")
    (folder / "worker.c").write_text('#include "worker.h"\nvoid _start(void) { LOOP; }\n')
    return folder


@pytest.fixture(autouse=True)
def no_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    """vmlinux-to-elf needs a real kernel: pass ours through."""

    def copy(kernel: Path, target: Path, required: Iterable[str]) -> None:
        shutil.copy(kernel, target)

    monkeypatch.setattr(build, "write_symbol_file", copy)


def built(sources: Path, where: Path, apt_folder: Path) -> Path:
    where.mkdir()
    build_image(
        load_recipe(sources / "recipe.toml"),
        where,
        home=where,
        apt_folder=apt_folder,
        progress=SilentProgress(),
    )
    return where


def test_every_artefact(sources: Path, tmp_path: Path) -> None:
    image = built(sources, tmp_path / "image", tmp_path / "apt")
    assert (image / "vmlinuz").read_bytes() == bytes(KERNEL)
    assert (image / "vmlinux").read_bytes() == b"\x7fELFtiny"
    names = subprocess.run(
        ["nm", str(image / "worker")], check=True, capture_output=True, text=True
    ).stdout
    assert " T _start" in names
    archive = gzip.decompress((image / "initramfs").read_bytes())
    for content in (b"#!/bin/sh\n", b"the tool", b"plain module", b"packed module"):
        assert content in archive
    order = [
        archive.index(name) for name in (b"lib\0", b"lib/modules\0", b"lib/modules/plain.ko\0")
    ]
    assert order == sorted(order)


def test_the_initramfs_does_not_depend_on_place_or_time(sources: Path, tmp_path: Path) -> None:
    first = built(sources, tmp_path / "image", tmp_path / "apt")
    second = built(sources, tmp_path / "another-image", tmp_path / "apt")
    assert (first / "initramfs").read_bytes() == (second / "initramfs").read_bytes()


def test_debug_information_points_at_the_sources_of_the_image(
    sources: Path, tmp_path: Path
) -> None:
    image = built(sources, tmp_path / "image", tmp_path / "apt")
    assert str(image / "src").encode() in (image / "worker").read_bytes()
    assert (image / "src" / "worker.c").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (', "worker.h"]', "]", "cannot compile worker: cc exited .*fatal error: worker.h"),
        ('"module:plain"', '"module:absent"', "has no kernel module absent"),
        ("tool:bin/tool", "tool:bin/absent", "the package tool.* has no file bin/absent"),
        ('package = "linux-image-tiny"', 'package = "tool"', "tool.* has no kernel boot/vmlinuz"),
        ('package = "linux-image-tiny"', 'package = "absent"', "has the package absent"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    sources: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in RECIPE
    (sources / "recipe.toml").write_text(RECIPE.replace(old, new))
    with pytest.raises(ImageError, match=message) as caught:
        built(sources, tmp_path / "image", tmp_path / "apt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "compiler", "package"),
    [
        (platform.machine(), "cc", "gcc"),
        ("vax", "x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
    ],
)
def test_a_missing_compiler_is_named_with_its_package(
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    compiler: str,
    package: str,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: host)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "dpkg", "sh", "tar", "rm"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))
    message = f"needs the program '{compiler}'.* the Debian package {package}$"
    with pytest.raises(ImageError, match=message):
        built(sources, tmp_path / "image", tmp_path / "apt")
