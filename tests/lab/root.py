"""The files that an L1 boots from: kernel, initramfs, and a root file system for all L1s."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvmdbg.images.cpio import CpioWriter
from kvmdbg.images.kernel import write_symbol_file
from kvmdbg.images.store import Image
from kvmdbg.progress import Progress
from tests.lab.errors import LabError
from tests.lab.host import HostTools
from tests.lab.machines import L1Machine
from tests.lab.unpack import unpack_debs, unpack_wheels

KERNEL, INITRAMFS, ROOT = "vmlinuz", "initramfs", "root.ext4"

_HERE = Path(__file__).parent
_GUEST = _HERE / "guest"
SOURCES = (
    *(Path(__file__), _HERE / "unpack.py", _HERE / "machines.py", _HERE / "channel.py"),
    *sorted(path for path in _GUEST.iterdir() if path.is_file()),
)
"""What an L1's files are made from, beside packages and the demo image."""

# The kernel comes from outside, and its modules from the initramfs; nobody links statically or
# compiles anything but C.
_EXCLUDE = (
    *("./boot/System.map*", "./lib/modules/*/kernel/drivers/net", "./usr/bin/*lto-dump*"),
    *("./usr/lib/gcc/*/12/lto1", "./usr/lib/gcc/*/12/lib?san*", "./usr/share/gcc"),
    *("./usr/lib/python3.11/config-*", "./usr/lib/*/libpython*.a", "./usr/libexec/qemu-system-*"),
    *("./usr/lib/*/dri", "./usr/lib/*/libLLVM*"),
)
# Debian 12's packages still have files in both; as on an installed system, one is the other.
_MERGED = ("bin", "sbin", "lib", "lib64")
_PYTHON_FOLDERS = ("usr/lib/python3", "usr/lib/python3.11", "usr/local/lib/python3.11")
_COMMANDS = {  # of Python packages
    "kvmdbg": ("kvmdbg.cli.main", "main"),
    "pytest": ("pytest", "main"),
    "meson": ("mesonbuild.mesonmain", "main"),
    "cffi-gen-src": ("cffi._cffi_gen_src", "run"),
}
_SPARE_BYTES = 48 << 20  # in the file system, for its own tables
_BLOCK = 4096


def build_root(
    folder: Path,
    machine: L1Machine,
    debs: Sequence[Path],
    wheels: Sequence[Path],
    demo: Image | None,
    tools: HostTools,
    progress: Progress,
) -> None:
    """Make KERNEL, INITRAMFS and ROOT in *folder*. Raises LabError."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch) / "root"
        for name in _MERGED:
            (root / "usr" / name).mkdir(parents=True)
            (root / name).symlink_to(f"usr/{name}")
        progress.step(f"unpacking {len(debs)} packages for L1")
        unpack_debs(debs, root, exclude=_EXCLUDE)
        unpack_wheels(wheels, root / "usr/local/lib/python3.11/dist-packages")
        _move_kernel(root, folder)
        _write_initramfs(root, machine, folder / INITRAMFS)
        shutil.rmtree(root / "usr/lib/modules")
        _configure(root)
        progress.step("making a guest for L1")
        if demo is not None:
            _copy_image(demo, root / "lab/cache/images" / demo.folder.name)
            (root / "lab/l2").symlink_to(f"cache/images/{demo.folder.name}")
        else:
            _make_l2(root, root / "lab/l2")
        progress.step("compiling L1's Python modules")
        tools.run(
            "compile L1's Python modules",
            "usr/bin/python3.11",
            [
                *("-m", "compileall", "-q", "-j0", "--invalidation-mode=unchecked-hash"),
                *("-s", str(root), *(str(root / folder) for folder in _PYTHON_FOLDERS)),
                str(root / "lab/agent"),
            ],
        )
        progress.step("making L1's file system")
        _make_file_system(root, folder / ROOT, tools)


def _move_kernel(root: Path, folder: Path) -> None:
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise LabError(f"the lab pins {len(kernels)} kernels instead of one: run 'make lab-update'")
    shutil.copyfile(kernels[0], folder / KERNEL)
    kernels[0].rename(root / "boot/vmlinuz")  # L1 has it too: a kernel for an L2


def _write_initramfs(root: Path, machine: L1Machine, target: Path) -> None:
    modules = {path.stem: path for path in (root / "usr/lib/modules").rglob("*.ko")}
    built_in = {
        Path(line).stem
        for index in (root / "usr/lib/modules").glob("*/modules.builtin")
        for line in index.read_text().splitlines()
    }
    archive = CpioWriter()
    for name in ("bin", "dev", "modules", "proc"):
        archive.directory(name)
    archive.device("dev/console", "c", 5, 1)
    archive.file("init", (_GUEST / "initramfs.sh").read_bytes())
    archive.file("bin/busybox", (root / "usr/bin/busybox").read_bytes())
    archive.symlink("bin/sh", "busybox")
    order = [name for name in machine.modules if name not in built_in]
    for name in order:
        if name not in modules:
            raise LabError(f"the lab's kernel has no module {name}: adapt tests/lab/machines.py")
        archive.file(f"modules/{name}.ko", modules[name].read_bytes())
    archive.file("modules/order", "".join(f"{name}\n" for name in order).encode())
    target.write_bytes(gzip.compress(archive.finish(), compresslevel=1, mtime=0))


def _configure(root: Path) -> None:
    """What maintainer scripts would have done, and the lab's own files."""
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "work", "lab/bin", "lab/busybox"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost lab\n")
    (root / "root/.bashrc").write_text("PS1='lab:\\w# '\n")
    for name, program in (("sh", "bash"), ("awk", "mawk"), ("cc", "gcc")):
        (root / "usr/bin" / name).unlink(missing_ok=True)
        (root / "usr/bin" / name).symlink_to(program)

    shutil.copy(_GUEST / "init", root / "lab/init")
    (root / "lab/init").chmod(0o755)
    for source in (_HERE / "channel.py", _GUEST / "agent.py"):
        target = root / "lab/agent/tests/lab" / source.relative_to(_HERE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    for name, (module, function) in _COMMANDS.items():
        script = root / "lab/bin" / name
        script.write_text(
            f"#!/usr/bin/python3\nimport sys\nfrom {module} import {function}\n"
            f"sys.exit({function}())\n"
        )
        script.chmod(0o755)


def _copy_image(image: Image, target: Path) -> None:
    """The image as kvmdbg would have cached it; the file system keeps whole seconds only."""
    shutil.copytree(image.folder, target)
    artefacts = {
        name: msgspec.structs.replace(artefact, mtime_ns=0)
        for name, artefact in image.manifest.artefacts.items()
    }
    for name in artefacts:
        os.utime(target / name, ns=(0, 0))
    manifest = msgspec.structs.replace(image.manifest, artefacts=artefacts)
    (target / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def _make_l2(root: Path, target: Path) -> None:
    """A guest where there is no demo image: L1's own kernel, its symbols, and a shell."""
    target.mkdir()
    (target / KERNEL).symlink_to("/boot/vmlinuz")
    write_symbol_file(root / "boot/vmlinuz", target / "vmlinux", ["do_sys_openat2"])
    archive = CpioWriter()
    for name in ("bin", "dev", "proc"):
        archive.directory(name)
    archive.device("dev/console", "c", 5, 1)
    archive.file("init", (_GUEST / "l2-init").read_bytes())
    archive.file("bin/busybox", (root / "usr/bin/busybox").read_bytes())
    archive.symlink("bin/sh", "busybox")
    (target / INITRAMFS).write_bytes(gzip.compress(archive.finish(), compresslevel=1, mtime=0))


def _make_file_system(root: Path, target: Path, tools: HostTools) -> None:
    used = sum(
        -(-path.lstat().st_size // _BLOCK) * _BLOCK + 256
        for path in root.rglob("*")
        if not path.is_dir()
    )
    blocks = (used + used // 16 + _SPARE_BYTES) // _BLOCK
    tools.run(
        "make L1's file system",
        "sbin/mke2fs",
        [
            *("-q", "-F", "-t", "ext4", "-b", str(_BLOCK), "-m", "0", "-O", "^has_journal"),
            *("-E", "root_owner=0:0,lazy_itable_init=1", "-d", str(root)),
            *(str(target), str(blocks)),
        ],
    )
