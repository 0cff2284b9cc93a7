"""Pinned wheels: what kvmdbg and its tests import inside an L1, for Debian 12's Python."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from kvmdbg.images.tools import last_words
from kvmdbg.progress import Progress
from tests.lab.debian import matches
from tests.lab.errors import LabError
from tests.lab.pins import Wheel

PYTHON = "3.11"

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"
# The demo image is built outside.
_NOT_INSIDE = {"vmlinux-to-elf"}
_FOR_TESTS = ("hypothesis", "meson", "pygdbmi", "pytest", "pytest-asyncio", "pytest-timeout")


def wanted(arch: str) -> list[str]:
    """The requirements whose wheels, with all they depend on, an L1 of that kind has."""
    dependencies: list[str] = tomllib.loads(_PROJECT.read_text())["project"]["dependencies"]
    ours = [
        f"{need.name}{need.specifier}"
        for need in map(Requirement, dependencies)
        if need.name not in _NOT_INSIDE
        # pip would ask this machine, not that one.
        and (need.marker is None or need.marker.evaluate({"platform_machine": arch}))
    ]
    return [*ours, *_FOR_TESTS]


def resolve(arch: str, folder: Path, progress: Progress) -> list[Wheel]:
    """The wheels that pip takes today. Raises LabError."""
    progress.step(f"resolving Python packages for {arch}")
    folder.mkdir(parents=True, exist_ok=True)
    _pip_download(arch, folder, wanted(arch))
    return [
        Wheel(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.glob("*.whl"))
    ]


def ensure(wheels: Iterable[Wheel], arch: str, folder: Path, progress: Progress) -> list[Path]:
    """The files of the pinned wheels, fetched where missing, each checked by hash.

    Raises LabError.
    """
    wheels = list(wheels)
    folder.mkdir(parents=True, exist_ok=True)
    if missing := [w for w in wheels if not matches(folder / w.filename, w.sha256)]:
        progress.step(f"downloading {len(missing)} wheels")
        for wheel in missing:
            (folder / wheel.filename).unlink(missing_ok=True)
        _pip_download(arch, folder, ["--no-deps", *(w.requirement for w in missing)])
    for wheel in missing:
        if not matches(folder / wheel.filename, wheel.sha256):
            raise LabError(
                f"the package index no longer has {wheel.filename} as the lab pins it (SHA-256 "
                f"{wheel.sha256}): run 'make lab-update', and commit tests/lab/pins"
            )
    return [folder / w.filename for w in wheels]


def _pip_download(arch: str, folder: Path, what: Sequence[str]) -> None:
    platforms = [f"--platform=manylinux{glibc}_{arch}" for glibc in ("2014", "_2_17", "_2_28")]
    abis = ["--abi=cp311", "--abi=abi3", "--abi=none"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"),
            *("--dest", str(folder), f"--python-version={PYTHON}", "--implementation=cp"),
            *platforms,
            *abis,
            *what,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(
            "cannot fetch the Python packages of the lab: pip says "
            f"{last_words(done.stdout + done.stderr)!r}: try again, or run 'make lab-update'"
        )
