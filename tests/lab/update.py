"""``make lab-update``: pin what the mirror and the package index have today."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kvmdbg.progress import Progress
from tests.lab import wheels
from tests.lab.cache import Cache
from tests.lab.debian import LabApt
from tests.lab.machines import HOST_PACKAGES, MACHINES
from tests.lab.pins import Pins, write_pins


def update_pins(cache: Cache, progress: Progress) -> None:
    """Rewrite every file of pins. Raises LabError."""
    for arch, machine in MACHINES.items():
        apt = LabApt(cache.folder / "apt" / arch, arch)
        with apt.locked(progress):
            apt.update(progress)
            progress.step(f"resolving Debian packages for {arch}")
            debs = apt.resolve(machine.packages)
            if arch == "x86_64":
                host = apt.resolve(HOST_PACKAGES, backports=True)
                write_pins("host", Pins(tuple(host)))
        with tempfile.TemporaryDirectory() as folder:
            found = wheels.resolve(arch, Path(folder), progress)
        write_pins(arch, Pins(tuple(debs), tuple(found)))
        progress.note(f"pinned {len(debs)} packages and {len(found)} wheels for {arch}")
