"""Programs that run on this machine, unpacked from pinned packages and run by their own loader."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kvmdbg.images.tools import last_words
from kvmdbg.progress import Progress
from tests.lab.cache import Cache, key_of
from tests.lab.debian import DebCache
from tests.lab.errors import LabError
from tests.lab.machines import L1Machine
from tests.lab.outer import fix_emulator
from tests.lab.pins import read_pins
from tests.lab.unpack import unpack_debs

_ARCH = "x86_64"
_VERSION = "3"  # of what is done to the packages here


class HostTools:
    """The unpacked programs; :meth:`ensure` makes them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.key = root.name

    @classmethod
    def ensure(cls, cache: Cache, progress: Progress) -> HostTools:
        """Fetch and unpack what is missing. Raises LabError."""
        if platform.machine() != _ARCH:
            raise LabError(
                f"the lab runs on {_ARCH} only, this machine is {platform.machine()}: "
                "use LAB=host where its own KVM is right"
            )
        pins = read_pins("host")

        def build(folder: Path) -> None:
            debs = DebCache(cache.folder).ensure(pins.debs, _ARCH, progress)
            progress.step("unpacking the outer QEMU")
            unpack_debs(debs, folder)
            emulator = folder / "usr/bin/qemu-system-x86_64"
            fixed = fix_emulator(emulator.read_bytes())
            patched = emulator.with_name(f"{emulator.name}-fixed")
            patched.write_bytes(fixed)
            shutil.copymode(emulator, patched)

        return cls(cache.ensure("host", key_of([_VERSION, pins.key]), build, progress))

    def command(self, program: str, *arguments: str) -> list[str]:
        """The command line of a program, by its path below the root."""
        libraries = [f"{self._root}/{folder}/{_ARCH}-linux-gnu" for folder in ("lib", "usr/lib")]
        loader = self._root / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        return [
            *(str(loader), "--library-path", ":".join(libraries)),
            *(str(self._root / program), *arguments),
        ]

    def emulator(self, machine: L1Machine) -> list[str]:
        """The command line of the outer QEMU, to which its arguments are added."""
        name = machine.emulator + ("-fixed" if machine.patched else "")
        firmware = [f"{self._root}/usr/share/{folder}" for folder in ("qemu", "seabios")]
        options = [word for folder in firmware for word in ("-L", folder)]
        return self.command(f"usr/bin/{name}", *options)

    @property
    def emulator_environment(self) -> dict[str, str]:
        """What the outer QEMU needs in its environment."""
        return {"QEMU_MODULE_DIR": f"{self._root}/usr/lib/{_ARCH}-linux-gnu/qemu"}

    def run(self, what: str, program: str, arguments: Sequence[str]) -> None:
        """Run a program to its end; *what* names the job in the error. Raises LabError."""
        done = subprocess.run(
            self.command(program, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **self._python_home},
            check=False,
        )
        if done.returncode != 0:
            words = last_words(done.stdout + done.stderr)
            raise LabError(f"cannot {what}: {Path(program).name} says {words!r}")

    @property
    def _python_home(self) -> dict[str, str]:
        return {"PYTHONHOME": str(self._root / "usr")}
