"""Files out of a Debian package, without unpacking the rest of it."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from kvmdbg.errors import ImageError
from kvmdbg.images.tools import find_tool


def read_members(deb: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The regular files whose path (without ``./`` or ``usr/``) is wanted.

    Debian is moving ``/bin``, ``/lib`` and so on below ``/usr``; a recipe need not know how far.
    """
    found: dict[str, bytes] = {}
    with subprocess.Popen(
        [find_tool("dpkg-deb"), "--fsys-tarfile", str(deb)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./").removeprefix("usr/")
                    content = archive.extractfile(member) if wanted(path) else None
                    if content is not None:
                        found[path] = content.read()
        except tarfile.TarError as error:
            raise ImageError(f"cannot unpack {deb}: {error}: delete it and try again") from error
    if process.returncode != 0:
        raise ImageError(f"cannot unpack {deb}: dpkg-deb exited with {process.returncode}")
    return found
