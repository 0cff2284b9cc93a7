"""kvmdbg's shared objects for an L1 of another architecture: built inside one, and kept."""

from __future__ import annotations

import tarfile
from pathlib import Path

from kvmdbg.progress import Progress
from tests.lab.cache import Cache, key_of
from tests.lab.errors import LabError
from tests.lab.host import HostTools
from tests.lab.l1 import start_l1
from tests.lab.machines import L1Machine
from tests.lab.tree import ROOT, pack_tree

_ARCHIVE = "native.tar"
_SOURCES = ("meson.build", "cdefs/*", "kvmdbg/native/*", "kvmdbg/agent/native/*")


def foreign_objects(
    cache: Cache, machine: L1Machine, folder: Path, tools: HostTools, progress: Progress
) -> list[tuple[Path, str]]:
    """The objects as files, and where the package has them when installed.

    *folder*: L1's files. Raises LabError.
    """

    def build(target: Path) -> None:
        progress.step(f"building kvmdbg's shared objects for {machine.arch}, inside an L1")
        with start_l1(machine, folder, tools) as l1:
            done = l1.run(
                f"python3 -m tests.lab.inside.build_native {_ARCHIVE}",
                tree=pack_tree([]),
                file=_ARCHIVE,
            )
        if done.status != 0 or done.file is None:
            said = (done.out + done.err).strip().splitlines()[-5:]
            raise LabError(f"the build for {machine.arch} failed: {' / '.join(said)}")
        archive = target / _ARCHIVE
        archive.write_bytes(done.file)
        with tarfile.open(archive) as tar:
            # CPython 3.11.2, Debian's, has neither filters nor the argument.
            if hasattr(tarfile, "data_filter"):
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(target)
        archive.unlink()

    sources = sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern))
    contents = [path.read_bytes() for path in sources if path.is_file()]
    # L1's folder is named by its compiler and libraries, too.
    built = cache.ensure(
        f"native-{machine.arch}", key_of([folder.name, *contents]), build, progress
    )
    return [(path, str(path.relative_to(built))) for path in sorted(built.rglob("*.so"))]
