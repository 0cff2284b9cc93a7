"""The lab for one architecture: built when needed, then L1s in about a second."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvmdbg.images import ImageStore, builtin_dir, load_recipe
from kvmdbg.images.store import Image
from kvmdbg.progress import Progress
from tests.lab import wheels
from tests.lab.cache import Cache, key_of
from tests.lab.debian import DebCache
from tests.lab.errors import LabError
from tests.lab.host import HostTools
from tests.lab.l1 import L1, save_state, start_l1
from tests.lab.machines import CPUS, MACHINES
from tests.lab.native import foreign_objects
from tests.lab.pins import read_pins
from tests.lab.root import SOURCES, build_root
from tests.lab.tree import built_objects, pack_tree

BUILD_TIME = "build-time"
"""In the folder of L1's files: seconds that it took to make them, and what they needed."""

_L1_SOURCE = Path(__file__).with_name("l1.py")


class Lab:
    """Makes L1s of one architecture, with so many ``cpus``."""

    def __init__(self, arch: str = "x86_64", *, cpus: int | None = None) -> None:
        if arch not in MACHINES:
            raise LabError(f"the lab has no L1 of {arch!r}: it has {', '.join(MACHINES)}")
        self.machine = MACHINES[arch]
        self.cpus = self.machine.cpus if cpus is None else cpus
        self.cache = Cache()

    def ensure(self, progress: Progress) -> tuple[HostTools, Path]:
        """Build what is missing: the outer programs, and the folder of L1's files.

        Raises LabError, or ImageError for the demo image.
        """
        start = time.monotonic()
        tools = HostTools.ensure(self.cache, progress)
        demo = _demo_image(self.machine.arch, progress)
        pins = read_pins(self.machine.arch)
        sources = [path.read_bytes() for path in (*SOURCES, _L1_SOURCE)]
        key = key_of([tools.key, pins.key, demo.folder.name if demo else "", *sources])

        def build(folder: Path) -> None:
            arch = self.machine.arch
            debs = DebCache(self.cache.folder).ensure(pins.debs, arch, progress)
            files = wheels.ensure(pins.wheels, arch, self.cache.folder / "wheels" / arch, progress)
            build_root(folder, self.machine, debs, files, demo, tools, progress)
            progress.step("booting L1 to save its state")
            save_state(self.machine, folder, tools)
            (folder / BUILD_TIME).write_text(f"{time.monotonic() - start:.2f}\n")

        return tools, self.cache.ensure(self.machine.arch, key, build, progress)

    def pack_tree(self, progress: Progress) -> bytes:
        """The working tree as a tar, with the shared objects that L1 can load. Raises LabError."""
        if self.machine.arch == platform.machine():
            return pack_tree(built_objects())
        tools, folder = self.ensure(progress)
        return pack_tree(foreign_objects(self.cache, self.machine, folder, tools, progress))

    @contextmanager
    def start(self, progress: Progress) -> Iterator[L1]:
        """A running L1; ended afterwards. Raises LabError."""
        tools, folder = self.ensure(progress)
        with start_l1(self.machine, folder, tools) as l1:
            for cpu in range(self.cpus, CPUS):
                offline = l1.run(f"echo 0 > /sys/devices/system/cpu/cpu{cpu}/online")
                if offline.status:
                    raise LabError(f"L1 cannot do without CPU {cpu}: {offline.err.strip()}")
            yield l1


def _demo_image(arch: str, progress: Progress) -> Image | None:
    recipe = load_recipe(builtin_dir() / "demo" / "recipe.toml")
    return ImageStore().ensure(recipe, progress) if recipe.spec.arch == arch else None
