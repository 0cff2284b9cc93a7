"""External programs: found, run, and their failures put into one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kvmdbg.errors import ImageError

# Program → what to install when it is missing.
_PACKAGE = {
    "apt-cache": "the Debian package apt",
    "apt-get": "the Debian package apt",
    "cc": "the Debian package gcc",
    "dpkg-deb": "the Debian package dpkg",
    "setpriv": "the Debian package util-linux",
    "strip": "the Debian package binutils",
    "tar": "the Debian package tar",
    "aarch64-linux-gnu-gcc": "the Debian package gcc-aarch64-linux-gnu",
    "aarch64-linux-gnu-strip": "the Debian package binutils-aarch64-linux-gnu",
    "x86_64-linux-gnu-gcc": "the Debian package gcc-x86-64-linux-gnu",
    "x86_64-linux-gnu-strip": "the Debian package binutils-x86-64-linux-gnu",
    "vmlinux-to-elf": "the Python package vmlinux-to-elf",
}


def find_tool(name: str) -> str:
    """Path of a program: beside this Python first (console scripts of a venv), then on the PATH."""
    beside = Path(sys.executable).parent / name
    if name == "vmlinux-to-elf" and os.access(beside, os.X_OK):
        return str(beside)
    found = shutil.which(name)
    if found is None:
        raise ImageError(
            f"building an image needs the program {name!r}, which is not on the PATH: "
            f"install {_PACKAGE[name]}"
        )
    return found


def tool_environment() -> dict[str, str]:
    """Our environment with messages in English: we quote them, and look for ``E:`` in apt's."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def last_words(output: bytes) -> str:
    """The line of a failed program's output that says most: its last error, else its last line."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:") or "error:" in line]
    return (errors or lines or ["it said nothing"])[-1]


def run_tool(name: str, arguments: Sequence[str], *, what: str, cwd: Path | None = None) -> bytes:
    """Run a program and return its standard output.

    *what* names the job in the error ("compile workload"). Raises ImageError when the program is
    missing or fails, with the program's own last words.
    """
    done = subprocess.run(
        [find_tool(name), *arguments],
        cwd=cwd,
        env=tool_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise ImageError(
            f"cannot {what}: {name} exited with status {done.returncode}: "
            f"{last_words(done.stdout + done.stderr)}"
        )
    return done.stdout
