"""The lab's part of the user's cache: folders named by what they are made from, whole or absent."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from kvmdbg.images import ImageStore
from kvmdbg.progress import Progress

_KEPT = 3  # builds of each kind; one of an L1 takes 0.9 GB


class Cache:
    """The folder ``lab`` of kvmdbg's cache."""

    def __init__(self) -> None:
        self.folder = ImageStore().cache_dir / "lab"

    def ensure(
        self, what: str, key: str, build: Callable[[Path], None], progress: Progress
    ) -> Path:
        """The folder of *what* for *key*; ``build(folder)`` fills a new one beside it first.

        Another process that builds the same is waited for. Of older builds the latest few are
        kept, for other checkouts; an L1 that runs from a build holds its files open.
        """
        folder = self.folder / f"{what}-{key}"
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{what}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.note(f"waiting for another process that builds the lab's {what}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                growing = folder.with_name(f"{folder.name}.new")
                shutil.rmtree(growing, ignore_errors=True)  # of a builder that was killed
                growing.mkdir()
                try:
                    build(growing)
                    growing.rename(folder)
                finally:
                    shutil.rmtree(growing, ignore_errors=True)
                builds = sorted(
                    self.folder.glob(f"{what}-*"), key=lambda path: path.stat().st_mtime
                )
                for old in builds[:-_KEPT]:
                    shutil.rmtree(old, ignore_errors=True)
        return folder


def key_of(parts: Iterable[str | bytes]) -> str:
    """A short hash of everything that a build depends on."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)} ".encode() + data)
    return digest.hexdigest()[:16]
