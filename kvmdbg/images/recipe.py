"""Recipes: what an image is made of, as ``recipe.toml`` says it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from kvmdbg.errors import ImageError
from kvmdbg.images.ports import PORTS

# Part of every image's key: raise it when the same recipe would now give another image.
BUILDER_VERSION = 1


# A file beside the recipe, or beside the recipe in a neighbouring folder.
_SOURCE = re.compile(r"(\.\./[\w-]+/)?[\w.-]+")


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TOML table in which an unknown key is an error."""


class Kernel(_Table, frozen=True):
    package: str  # a kernel package, or a metapackage that depends on one
    symbols: tuple[str, ...] = ()  # names the symbol file must know


class Program(_Table, frozen=True):
    """A freestanding C program, linked statically; its ELF file is an artefact, with symbols."""

    sources: tuple[str, ...]  # headers too: these alone are there when it is compiled
    flags: tuple[str, ...] = ()


class Device(_Table, frozen=True):
    type: Literal["b", "c"]
    major: int
    minor: int
    mode: int = 0o600


class Initramfs(_Table, frozen=True):
    packages: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    files: dict[str, str] = {}  # path in the initramfs → "KIND:…", see FileOrigin
    symlinks: dict[str, str] = {}
    devices: dict[str, Device] = {}


class Spec(_Table, frozen=True):
    """The file as it stands."""

    name: str
    arch: str
    kernel: Kernel
    initramfs: Initramfs
    programs: dict[str, Program] = {}


@dataclass(frozen=True)
class FileOrigin:
    """Where a file of the initramfs comes from.

    ``source:NAME`` a source of the recipe · ``program:NAME`` a program of the recipe, stripped ·
    ``module:NAME`` a module of the kernel package · ``package:PACKAGE:PATH`` a file of a package.
    """

    kind: Literal["source", "program", "module", "package"]
    name: str
    package: str = ""


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read and checked, with the content of its sources."""

    path: Path
    spec: Spec
    files: dict[str, FileOrigin]  # path in the initramfs → origin
    sources: dict[str, bytes]  # path, from the recipe's folder → content
    key: str  # hash of everything above and of the builder

    @property
    def name(self) -> str:
        return self.spec.name


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe; raises ImageError with the file and the key that is wrong."""
    try:
        text = path.read_bytes()
        spec = msgspec.toml.decode(text, type=Spec)
    except OSError as error:
        raise ImageError(f"cannot read the image recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ImageError(f"{path}: a recipe is UTF-8 text, this is not") from error
    except msgspec.DecodeError as error:  # bad TOML, and (ValidationError) a bad key or type
        raise ImageError(f"{path}: {error}") from error
    if not spec.name or PurePosixPath(spec.name).name != spec.name:
        raise ImageError(f"{path}: name: {spec.name!r} cannot be part of a file's name")

    if spec.arch not in PORTS:
        raise ImageError(f"{path}: arch: expected {' or '.join(PORTS)}, got {spec.arch!r}")

    files = {
        target: _origin(path, spec, target, text) for target, text in spec.initramfs.files.items()
    }
    names = {origin.name for origin in files.values() if origin.kind == "source"}
    for program in spec.programs.values():
        names.update(program.sources)
    sources = {name: _read_source(path, name) for name in sorted(names)}
    return Recipe(path, spec, files, sources, _key(text, sources))


def _origin(path: Path, spec: Spec, target: str, text: str) -> FileOrigin:
    where = f'{path}: initramfs.files."{target}"'
    match text.split(":", 2):
        case ["source", name]:
            return FileOrigin("source", name)
        case ["module", name]:
            return FileOrigin("module", name)
        case ["program", name]:
            if name not in spec.programs:
                raise ImageError(f"{where}: the recipe has no table [programs.{name}]")
            return FileOrigin("program", name)
        case ["package", package, name]:
            if package not in spec.initramfs.packages:
                raise ImageError(f"{where}: {package!r} is not listed in initramfs.packages")
            return FileOrigin("package", name, package)
        case _:
            raise ImageError(
                f"{where}: {text!r} is none of source:NAME, program:NAME, module:NAME, "
                "package:PACKAGE:PATH"
            )


def _read_source(path: Path, name: str) -> bytes:
    if not _SOURCE.fullmatch(name):
        raise ImageError(
            f"{path}: the source {name!r} is neither a file beside the recipe nor ../RECIPE/FILE"
        )
    try:
        return (path.parent / name).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot read the source {name!r}: {error.strerror}") from error


def _key(recipe: bytes, sources: dict[str, bytes]) -> str:
    """The versions of the packages are not in it: a cached image needs no network to be found."""
    digest = hashlib.sha256(f"kvmdbg image {BUILDER_VERSION}\n".encode())
    for name, content in [("recipe", recipe), *sorted(sources.items())]:
        digest.update(f"{len(name)} {name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
