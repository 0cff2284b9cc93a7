"""The working tree as a tar, with what building has made of it, ready to import inside an L1."""

from __future__ import annotations

import compileall
import importlib.metadata
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.wheels import PYTHON

ROOT = Path(__file__).parents[2]
BUILD = Path(sys.prefix) / "build"
"""Where `make setup` has meson build."""

_PACKAGES = "{py_platlib}/"
_METADATA = ("METADATA", "entry_points.txt")


def pack_tree(objects: Iterable[tuple[Path, str]]) -> bytes:
    """The files that git tracks or would track, as they are now, and *objects* by their names.

    Raises LabError.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in _tracked():
            path = ROOT / name
            if path.is_file():
                _add(tar, path, name)
                if path.suffix == ".py" and (byte_code := _compiled(path)):
                    _add(tar, byte_code, str(byte_code.relative_to(ROOT)))
        # Metadata make the distribution known: its version, and its pytest plugin.
        distribution = importlib.metadata.distribution("kvmdbg")
        for name in _METADATA:
            content = (distribution.read_text(name) or "").encode()
            entry = tarfile.TarInfo(f"kvmdbg-{distribution.version}.dist-info/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for path, name in objects:
            _add(tar, path, name)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tar.gettarinfo(path, name)
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    with path.open("rb") as file:
        tar.addfile(entry, file)


def _tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"git cannot list the tree: {done.stderr.decode(errors='replace').strip()}")
    return [name for name in done.stdout.decode().split("\0") if name]


def _compiled(source: Path) -> Path | None:
    """Byte code of a source, where this Python is L1's: compiling inside takes longer."""
    if f"{sys.version_info[0]}.{sys.version_info[1]}" != PYTHON:
        return None
    compiled = compileall.compile_file(source, quiet=2)
    return Path(importlib.util.cache_from_source(str(source))) if compiled else None


def built_objects(build: Path = BUILD) -> list[tuple[Path, str]]:
    """What meson has built in a folder, and where it would install it. Raises LabError."""
    try:
        plan = json.loads((build / "meson-info/intro-install_plan.json").read_text())
    except OSError as error:
        raise LabError(f"kvmdbg is not built: {error}: run 'make setup'") from error
    return [
        (Path(path), target["destination"].removeprefix(_PACKAGES))
        for path, target in plan["targets"].items()
    ]
