"""Pins: the exact packages and wheels that the lab is made of, by hash.

``pins/host.txt`` is what runs on this machine (the outer QEMU), ``pins/<arch>.txt`` what an L1 of
that architecture holds. One line each: ``deb NAME VERSION ARCH SIZE SHA256`` or
``wheel FILENAME SIZE SHA256``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kvmdbg.images.apt import Package
from tests.lab.errors import LabError

_FOLDER = Path(__file__).with_name("pins")


@dataclass(frozen=True)
class Wheel:
    """One wheel of a Python package."""

    filename: str
    size: int  # bytes
    sha256: str

    @property
    def requirement(self) -> str:
        name, version = self.filename.split("-")[:2]
        return f"{name}=={version}"


@dataclass(frozen=True)
class Pins:
    """One file of pins."""

    debs: tuple[Package, ...]
    wheels: tuple[Wheel, ...] = ()

    @property
    def key(self) -> str:
        """A hash of everything that is pinned."""
        return hashlib.sha256(_encode(self).encode()).hexdigest()


def read_pins(name: str) -> Pins:
    """The pins of ``host`` or of an architecture. Raises LabError."""
    path = _FOLDER / f"{name}.txt"
    try:
        return _decode(path.read_text())
    except (OSError, ValueError) as error:
        raise LabError(f"cannot read the lab's pins {path}: {error}") from error


def write_pins(name: str, pins: Pins) -> None:
    """Replace the pins of ``host`` or of an architecture."""
    (_FOLDER / f"{name}.txt").write_text(_encode(pins))


def _decode(text: str) -> Pins:
    debs: list[Package] = []
    wheels: list[Wheel] = []
    for line in text.splitlines():
        match line.split():
            case ["deb", name, version, arch, size, sha256]:
                debs.append(Package(name, version, arch, sha256, int(size), depends=""))
            case ["wheel", filename, size, sha256]:
                wheels.append(Wheel(filename, int(size), sha256))
            case _:
                raise ValueError(f"{line!r} is no pin")
    return Pins(tuple(debs), tuple(wheels))


def _encode(pins: Pins) -> str:
    lines = [f"deb {p.name} {p.version} {p.arch} {p.size} {p.sha256}" for p in pins.debs]
    lines += [f"wheel {w.filename} {w.size} {w.sha256}" for w in pins.wheels]
    return "".join(f"{line}\n" for line in lines)
