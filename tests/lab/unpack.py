"""Packages into a folder: no root, no maintainer scripts, nothing installed."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Iterable
from pathlib import Path

from kvmdbg.images.tools import find_tool, last_words
from tests.lab.errors import LabError

# Neither read nor run by anything in the lab; a third of all the bytes.
_UNWANTED = (
    *("./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/iso-codes"),
    *("./usr/share/info", "./usr/share/lintian", "./usr/share/perl", "./usr/share/sounds"),
    *("./usr/share/icons", "./usr/share/applications", "./usr/share/xml", "./lib/udev/hwdb.d"),
)


def unpack_debs(debs: Iterable[Path], root: Path, *, exclude: Iterable[str] = ()) -> None:
    """Unpack into *root*, following its symlinks to folders. Raises LabError."""
    patterns = [f"--exclude={pattern}" for pattern in (*_UNWANTED, *exclude)]
    for deb in debs:
        with subprocess.Popen(
            [find_tool("dpkg-deb"), "--fsys-tarfile", str(deb)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as reader:
            done = subprocess.run(
                [
                    *(find_tool("tar"), "--extract", "--keep-directory-symlink"),
                    *("--no-same-owner", *patterns, "-C", str(root)),
                ],
                stdin=reader.stdout,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
        if done.returncode != 0 or reader.returncode != 0:
            raise LabError(f"cannot unpack {deb}: {last_words(done.stderr)}: delete it, try again")


def unpack_wheels(wheels: Iterable[Path], folder: Path) -> None:
    """Unpack wheels into a folder of Python's path; their scripts are not made."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
