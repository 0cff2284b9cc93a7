"""VM definitions: TOML files that say what to boot and how.

Relative paths are relative to the file; ``image:NAME`` is an artefact of the image that the
recipe in ``[image]`` builds.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from kvmdbg.arch import ARCHITECTURES
from kvmdbg.errors import DefinitionError
from kvmdbg.images import Image

IMAGE_PREFIX = "image:"

_Path = Annotated[str, Meta(min_length=1, description="a path, or image:NAME")]
_FILE_KEYS = ("kernel", "initrd", "disk", "vmlinux")


class _Table(msgspec.Struct, frozen=True):
    """A TOML table. A description says what a value must be, in the error for a wrong one."""


class DebugTable(_Table, frozen=True):
    """``[debug]``"""

    on_kill: Annotated[Literal["quit", "detach"], Meta(description='"quit" or "detach"')] = "quit"
    orphan_timeout: Annotated[float, Meta(ge=0, description="a number of seconds, 0 or more")] = (
        600.0
    )


class ImageTable(_Table, frozen=True):
    """``[image]``"""

    recipe: Annotated[str, Meta(min_length=1, description="the path of a recipe")]


class Definition(_Table, frozen=True):
    """A definition as the file has it; :func:`load_definition` has checked it."""

    kernel: _Path | None = None
    initrd: _Path | None = None
    append: Annotated[str, Meta(description="a string: the kernel's command line")] = ""
    disk: _Path | None = None
    memory: Annotated[
        str,
        Meta(pattern="^[1-9][0-9]*[MG]$", description='a size such as "512M" or "2G"'),
    ] = "512M"
    cpus: Annotated[int, Meta(ge=1, le=255, description="a number of vCPUs, 1 to 255")] = 1
    arch: Annotated[
        str,
        Meta(
            pattern=f"^({'|'.join(ARCHITECTURES)})$",
            description=" or ".join(f'"{name}"' for name in ARCHITECTURES),
        ),
    ] = "x86_64"
    accel: Annotated[Literal["auto", "kvm", "tcg"], Meta(description='"auto", "kvm" or "tcg"')] = (
        "auto"
    )
    kaslr: Annotated[bool, Meta(description="true or false")] = True
    """False adds ``nokaslr`` to the command line, so that link-time addresses hold."""
    vmlinux: _Path | None = None
    """Symbol file for gdb."""
    qemu: Annotated[str, Meta(min_length=1, description="a program's name or path")] | None = None
    extra_args: Annotated[
        tuple[str, ...], Meta(description="a list of strings: arguments for QEMU")
    ] = ()
    debug: DebugTable = DebugTable()
    image: ImageTable | None = None

    # Not keys of the file:
    name: str = ""
    path: Path = Path()

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent

    @property
    def says_nokaslr(self) -> bool:
        """True if the command line keeps the kernel where it was linked."""
        return "nokaslr" in self.append.split()

    @property
    def places_itself(self) -> bool:
        """True if the kernel is free to choose where it goes."""
        return self.kaslr and not self.says_nokaslr

    @property
    def recipe(self) -> Path | None:
        """Path of the image's recipe."""
        return self.folder / self.image.recipe if self.image else None

    def files(self, image: Image | None) -> BootFiles:
        """The files it names, as absolute paths. Raises ImageError for a missing artefact."""

        def resolve(value: str | None) -> Path | None:
            if value is None:
                return None
            if value.startswith(IMAGE_PREFIX):
                assert image is not None, "load_definition() wants a recipe for image:NAME"
                return image.artefact(value.removeprefix(IMAGE_PREFIX))
            return self.folder / value

        return BootFiles(*(resolve(getattr(self, key)) for key in _FILE_KEYS))


@dataclass(frozen=True)
class BootFiles:
    """The files that a VM is made from; None where the definition names none."""

    kernel: Path | None = None
    initrd: Path | None = None
    disk: Path | None = None
    vmlinux: Path | None = None


_NOT_KEYS = {"name", "path"}

_ELF_HEADER = 20  # bytes, up to and with e_machine


def load_definition(path: Path) -> Definition:
    """Read and check a definition.

    Raises DefinitionError, one sentence that names file, line and key.
    """
    path = path.absolute()
    try:
        text = path.read_text("utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise DefinitionError(f"cannot read the VM definition {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{path}: a definition is UTF-8 text, and this is not") from error
    except tomllib.TOMLDecodeError as error:
        raise DefinitionError(f"{path}: not valid TOML: {error}") from error
    reader = _Reader(path, text)
    fields = reader.table(content, Definition, ())
    definition = Definition(**fields, name=definition_name(path), path=path)
    reader.check_files(definition)
    return definition


def definition_name(path: Path) -> str:
    """The name of the VM that a file defines: the file's, or its folder's where it is vm.toml."""
    return path.parent.name if path.name == "vm.toml" else path.stem


def with_overrides(definition: Definition, values: dict[str, Any]) -> Definition:
    """The definition with other values for some of its keys. Raises DefinitionError."""
    reader = _Reader(definition.path, "")
    changed = msgspec.structs.replace(definition, **reader.table(values, Definition, ()))
    reader.check_files(changed)
    return changed


class _Reader:
    """Turns tables into structs, and trouble into a sentence with the line of the key."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def error(self, key: tuple[str, ...], problem: str) -> DefinitionError:
        where = f"{self._path}:{_line_of(self._text, key)}" if self._text else "set for this run"
        return DefinitionError(f"{where}: {'.'.join(key)}: {problem}")

    def table(
        self, content: dict[str, Any], kind: type[_Table], inside: tuple[str, ...]
    ) -> dict[str, Any]:
        """The fields of a table, checked and converted."""
        types = {
            name: hint
            for name, hint in get_type_hints(kind, include_extras=True).items()
            if name not in _NOT_KEYS
        }
        for name in content.keys() - types.keys():
            raise self.error((*inside, name), f"there is no such key; known are {', '.join(types)}")
        fields = {}
        for name, value in content.items():
            key = (*inside, name)
            if sub := _sub_table(types[name]):
                if not isinstance(value, dict):
                    raise self.error(key, f"expected a table, got {value!r}")
                fields[name] = sub(**self.table(value, sub, key))
                continue
            try:
                fields[name] = msgspec.convert(value, types[name])
            except msgspec.ValidationError as error:
                raise self.error(
                    key, f"expected {_description(types[name])}, got {value!r}"
                ) from error
        for field in msgspec.structs.fields(kind):
            if field.required and field.name not in fields:
                raise self.error(inside, f"the key {field.name} is missing")
        return fields

    def check_files(self, definition: Definition) -> None:
        for name in _FILE_KEYS:
            value = getattr(definition, name)
            if value is None:
                continue
            if value.startswith(IMAGE_PREFIX):
                if definition.image is None:
                    raise self.error(
                        (name,), f"{value} needs a recipe: add [image] with the key recipe"
                    )
            elif not (definition.folder / value).exists():
                raise self.error((name,), f"there is no file {definition.folder / value}")
        if definition.recipe and not definition.recipe.is_file():
            raise self.error(("image", "recipe"), f"there is no file {definition.recipe}")
        for name in ("initrd", "append"):
            if getattr(definition, name) and not definition.kernel:
                raise self.error((name,), "this is for a kernel: add the key kernel")
        self._check_symbols(definition)

    def _check_symbols(self, definition: Definition) -> None:
        """A gdb that is given anything else works with nonsense, or without a word."""
        value = definition.vmlinux
        if value is None or value.startswith(IMAGE_PREFIX):
            return
        path = definition.folder / value
        try:
            with path.open("rb") as stream:
                header = stream.read(_ELF_HEADER)
        except OSError as error:
            raise self.error(("vmlinux",), f"cannot read {path}: {error.strerror}") from error
        if header[:4] != b"\x7fELF":
            raise self.error(("vmlinux",), f"{path} is no ELF file, and symbols come from one")
        machines = ARCHITECTURES[definition.arch].elf_machines
        if int.from_bytes(header[18:20], "little") not in machines:
            raise self.error(("vmlinux",), f"{path} is not for {definition.arch}")


def _sub_table(hint: Any) -> type[_Table] | None:
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and issubclass(candidate, _Table):
            return candidate
    return None


def _description(hint: Any) -> str:
    """What the type's Meta says a value must be."""
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        if isinstance(part, Meta) and part.description:
            return part.description
        if found := _description(part) if hasattr(part, "__metadata__") else "":
            return found
    return ""


def _line_of(text: str, key: tuple[str, ...]) -> int:
    """The line of a key or table; where it is written in an unusual way, of what is around it."""
    table: tuple[str, ...] = ()
    best, best_depth = 1, 0
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
            table = here = _split(header[1])
        elif assignment := re.match(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*'|\s*\.\s*)+?)\s*=", line):
            here = table + _split(assignment[1])
        else:
            continue
        if key[: len(here)] == here and len(here) > best_depth:
            best, best_depth = number, len(here)
    return best


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
