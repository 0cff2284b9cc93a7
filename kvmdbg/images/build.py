"""Build what a recipe describes into a folder."""

from __future__ import annotations

import gzip
import lzma
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kvmdbg.errors import ImageError
from kvmdbg.images.apt import Apt, Package
from kvmdbg.images.cpio import CpioWriter
from kvmdbg.images.deb import read_members
from kvmdbg.images.kernel import decompress_kernel, write_symbol_file
from kvmdbg.images.ports import compiler, stripper
from kvmdbg.images.recipe import FileOrigin, Program, Recipe
from kvmdbg.images.tools import run_tool
from kvmdbg.progress import Progress

# No libc, no start files, fixed addresses, and nothing in the output that differs between runs.
_LINK_FLAGS = ("-static", "-nostdlib", "-no-pie", "-Wl,--build-id=none")


@dataclass(frozen=True)
class _Inputs:
    """Everything that came out of packages."""

    packages: tuple[Package, ...]
    vmlinuz: bytes
    modules: dict[str, bytes]  # name → content of the .ko
    files: dict[tuple[str, str], bytes]  # (package, path) → content


def build_image(
    recipe: Recipe, folder: Path, *, home: Path, apt_folder: Path, progress: Progress
) -> tuple[Package, ...]:
    """Write the artefacts of *recipe* into *folder*; the packages they came from.

    Artefacts: ``vmlinuz``, ``vmlinux`` (symbols), ``initramfs`` and one per program, by its name.
    *home* is where the folder will stand in the end: debug information points at ``home/src``.
    Raises ImageError.
    """
    inputs = _fetch(recipe, apt_folder, progress)
    (folder / "vmlinuz").write_bytes(inputs.vmlinuz)

    for name, program in recipe.spec.programs.items():
        progress.step(f"compiling {name}")
        _compile(recipe, program, folder / name, source_home=home / "src")

    progress.step("packing the initramfs")
    archive = _initramfs(recipe, inputs, folder)
    # A level above the default gains nothing; mtime=0 keeps the result reproducible.
    (folder / "initramfs").write_bytes(gzip.compress(archive, compresslevel=6, mtime=0))

    progress.step("making the kernel's symbol file")
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "vmlinux"
        raw.write_bytes(decompress_kernel(inputs.vmlinuz))
        write_symbol_file(raw, folder / "vmlinux", recipe.spec.kernel.symbols)
    return inputs.packages


def _fetch(recipe: Recipe, apt_folder: Path, progress: Progress) -> _Inputs:
    apt = Apt(apt_folder, recipe.spec.arch)
    with apt.locked(progress):
        apt.update(progress)
        kernel = apt.find_kernel(recipe.spec.kernel.package)
        others = {name: apt.find(name) for name in recipe.spec.initramfs.packages}
        debs = {package: apt.fetch(package, progress) for package in (kernel, *others.values())}

    progress.step("unpacking")
    origins = recipe.files.values()
    modules = {origin.name for origin in origins if origin.kind == "module"}
    vmlinuz, found_modules = _read_kernel(debs[kernel], modules)
    files: dict[tuple[str, str], bytes] = {}
    for name, package in others.items():
        wanted = {o.name for o in origins if o.kind == "package" and o.package == name}
        content = read_members(debs[package], wanted.__contains__)
        if missing := sorted(wanted - content.keys()):
            raise ImageError(f"the package {debs[package].name} has no file {missing[0]}")
        files.update({(name, path): data for path, data in content.items()})
    return _Inputs((kernel, *others.values()), vmlinuz, found_modules, files)


def _read_kernel(deb: Path, modules: set[str]) -> tuple[bytes, dict[str, bytes]]:
    """The kernel and the named modules, decompressed, out of a kernel package."""

    def module_name(path: str) -> str:
        file = path.rpartition("/")[2]
        return file.removesuffix(".xz").removesuffix(".ko") if ".ko" in file else ""

    members = read_members(
        deb, lambda path: path.startswith("boot/vmlinuz-") or module_name(path) in modules
    )
    kernels = [path for path in members if path.startswith("boot/vmlinuz-")]
    if not kernels:
        raise ImageError(f"the package {deb.name} has no kernel boot/vmlinuz-*")
    found = {
        module_name(path): lzma.decompress(content) if path.endswith(".xz") else content
        for path, content in members.items()
        if path not in kernels
    }
    if missing := sorted(modules - found.keys()):
        raise ImageError(f"the package {deb.name} has no kernel module {missing[0]}")
    return members[kernels[0]], found


def _compile(recipe: Recipe, program: Program, target: Path, *, source_home: Path) -> None:
    """Compile from a copy of the listed sources, so that a source not listed fails here and now."""
    sources = target.parent / "src"
    sources.mkdir(exist_ok=True)
    for name in program.sources:
        (sources / PurePosixPath(name).name).write_bytes(recipe.sources[name])
    run_tool(
        compiler(recipe.spec.arch),
        [
            *program.flags,
            *_LINK_FLAGS,
            f"-ffile-prefix-map={sources}={source_home}",
            *("-o", str(target)),
            *(PurePosixPath(name).name for name in program.sources if name.endswith(".c")),
        ],
        what=f"compile {target.name}",
        cwd=sources,
    )


def _initramfs(recipe: Recipe, inputs: _Inputs, folder: Path) -> bytes:
    spec = recipe.spec.initramfs
    archive = CpioWriter()
    for path in _with_parents(spec.directories):
        archive.directory(path)
    for path, device in sorted(spec.devices.items()):
        archive.device(path, device.type, device.major, device.minor, device.mode)
    for path, origin in sorted(recipe.files.items()):
        archive.file(path, _content(origin, recipe, inputs, folder))
    for path, target in sorted(spec.symlinks.items()):
        archive.symlink(path, target)
    return archive.finish()


def _with_parents(directories: tuple[str, ...]) -> list[str]:
    """The folders and every folder above them, parents first."""
    parts = [path.split("/") for path in directories]
    return sorted({"/".join(p[: depth + 1]) for p in parts for depth in range(len(p))})


def _content(origin: FileOrigin, recipe: Recipe, inputs: _Inputs, folder: Path) -> bytes:
    match origin.kind:
        case "source":
            return recipe.sources[origin.name]
        case "module":
            return inputs.modules[origin.name]
        case "package":
            return inputs.files[origin.package, origin.name]
        case "program":
            return _stripped(folder / origin.name, recipe.spec.arch)


def _stripped(program: Path, arch: str) -> bytes:
    """A program without symbols: the initramfs then does not depend on where it was built."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / program.name
        run_tool(stripper(arch), ["-o", str(target), str(program)], what=f"strip {program.name}")
        return target.read_bytes()
