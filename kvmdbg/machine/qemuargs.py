"""What the command line of a running QEMU tells.

Source: qemu(1); QEMU's ``util/qemu-option.c`` for the syntax of option lists.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class QemuCommand:
    """A QEMU command line, as far as it concerns a debugger."""

    name: str | None
    arch: str
    accel: str
    monitors: tuple[str, ...]
    """Unix sockets of the QMP monitors; an abstract name starts with a NUL."""
    gdb: str | None
    """Device of QEMU's own stub."""


def arch_of(program: str) -> str | None:
    """The architecture that a program emulates by its name; None when it is no QEMU."""
    name = PurePath(program).name
    if name == "qemu-kvm":
        return platform.machine()
    match = re.fullmatch(r"qemu-system-([a-z0-9_]+?)(?:[-.].*)?", name)
    return match[1] if match else None


def parse_command(argv: Sequence[str], arch: str) -> QemuCommand:
    """Read the arguments after the program's name."""
    name, accel, gdb = None, None, None
    chardevs: dict[str, str] = {}
    monitors: list[str] = []
    wanted: list[str] = []
    for option, value in _options(argv):
        match option:
            case "name":
                name = _parse(value, "guest").get("guest") or name
            case "accel":
                accel = accel or _parse(value, "accel").get("accel")
            case "enable-kvm":
                accel = accel or "kvm"
            case "machine" | "M":
                accel = accel or _parse(value, "type").get("accel", "").partition(":")[0] or None
            case "chardev":
                _add_chardev(chardevs, value)
            case "mon":
                fields = _parse(value, "chardev")
                if fields.get("mode") == "control":
                    wanted.append(fields.get("chardev", ""))
            case "qmp" | "qmp-pretty":
                if value.startswith("chardev:"):
                    wanted.append(value.removeprefix("chardev:"))
                elif path := _unix_device(value):
                    monitors.append(path)
            case "gdb":
                gdb = value
            case "s":
                gdb = "tcp::1234"
    monitors += [chardevs[id] for id in wanted if id in chardevs]
    return QemuCommand(name, arch, accel or "tcg", tuple(monitors), gdb)


_FLAGS = {"s", "enable-kvm"}  # of the options above, those without an argument


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option with what follows it; what follows a flag may be anything."""
    for at, argument in enumerate(argv):
        if argument.startswith("-"):
            option = argument.removeprefix("-").removeprefix("-")
            value = argv[at + 1] if at + 1 < len(argv) and option not in _FLAGS else ""
            yield option, value


def _parse(text: str, implied: str) -> dict[str, str]:
    """An option list; a first value without key belongs to ``implied``, a doubled comma is one."""
    fields = {}
    for at, part in enumerate(text.replace(",,", "\1").split(",")):
        key, equals, value = part.replace("\1", ",").partition("=")
        if not equals:
            key, value = (implied, key) if at == 0 else (key, "on")
        fields[key] = value
    return fields


def _add_chardev(chardevs: dict[str, str], text: str) -> None:
    fields = _parse(text, "backend")
    if fields.get("backend") == "socket" and "path" in fields and "id" in fields:
        chardevs[fields["id"]] = _name(fields)


def _unix_device(text: str) -> str | None:
    """Path of a device in the old syntax, ``unix:PATH,server=on``."""
    if not text.startswith("unix:"):
        return None
    return _name(_parse(text.removeprefix("unix:"), "path"))


def _name(fields: dict[str, str]) -> str:
    abstract = fields.get("abstract") in ("on", "yes", "true")
    return ("\0" if abstract else "") + fields.get("path", "")
