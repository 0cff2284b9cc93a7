"""The cache of built images: one folder per recipe key, complete and verified or not there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs

from kvmdbg.errors import ImageError
from kvmdbg.images.apt import Package
from kvmdbg.images.recipe import Recipe
from kvmdbg.progress import Progress, SilentProgress

_MANIFEST = "manifest.json"


class Artefact(msgspec.Struct, frozen=True):
    """A file of an image. As long as size and time are these, the content is taken to be too."""

    size: int  # bytes
    mtime_ns: int
    sha256: str


class PackageRecord(msgspec.Struct, frozen=True):
    name: str
    version: str
    arch: str
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """``manifest.json``: what an image is and what it was made from."""

    name: str
    arch: str
    key: str
    packages: tuple[PackageRecord, ...]
    artefacts: dict[str, Artefact]


@dataclass(frozen=True)
class Image:
    """A built image."""

    folder: Path
    manifest: Manifest

    def artefact(self, name: str) -> Path:
        """Path of an artefact (``vmlinuz``, ``vmlinux``, ``initramfs``, a program's name)."""
        if name not in self.manifest.artefacts:
            raise ImageError(
                f"the image {self.manifest.name} has no artefact {name!r}: it has "
                f"{', '.join(self.manifest.artefacts)}"
            )
        return self.folder / name


def user_cache() -> Path:
    """``$KVMDBG_CACHE``, else the user's cache folder for kvmdbg."""
    override = os.environ.get("KVMDBG_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("kvmdbg")


class ImageStore:
    """Images below *cache_dir*; by default :func:`user_cache`."""

    def __init__(self, cache_dir: Path | None = None) -> None:
        self.cache_dir = (cache_dir or user_cache()).absolute()

    def find(self, recipe: Recipe, *, verify: bool = False) -> Image | None:
        """The image of a recipe when it is cached and sound; builds nothing.

        *verify* compares every artefact's SHA-256; otherwise only where size or time changed.
        """
        image = self._load(recipe)
        return None if image is None or _damage(image, verify=verify) else image

    def ensure(
        self, recipe: Recipe, progress: Progress | None = None, *, verify: bool = False
    ) -> Image:
        """The image of a recipe, built now if it is not cached or is damaged.

        Another process that builds the same image is waited for. Raises ImageError.
        """
        if image := self.find(recipe, verify=verify):
            return image
        progress = progress or SilentProgress()
        try:
            with self._locked(recipe, progress):
                # Whoever held the lock may have built it.
                image = self._load(recipe)
                if image is not None:
                    damage = _damage(image, verify=verify)
                    if damage is None:
                        return image
                    progress.note(f"the cached image {recipe.name} is damaged ({damage})")
                return self._build(recipe, progress)
        except OSError as error:
            raise ImageError(
                f"cannot build the image {recipe.name} in {self.cache_dir}: {error}"
            ) from error

    def _folder(self, recipe: Recipe) -> Path:
        return self.cache_dir / "images" / f"{recipe.name}-{recipe.key}"

    def _load(self, recipe: Recipe) -> Image | None:
        folder = self._folder(recipe)
        try:
            manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):
            return None
        return Image(folder, manifest)

    @contextmanager
    def _locked(self, recipe: Recipe, progress: Progress) -> Iterator[None]:
        folder = self._folder(recipe)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.note(
                    f"waiting for another kvmdbg that is building the image {recipe.name}"
                )
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _build(self, recipe: Recipe, progress: Progress) -> Image:
        """Build beside the final place, then move there in one step; call with the lock held."""
        from kvmdbg.images.build import build_image  # slow to import, and seldom needed

        folder = self._folder(recipe)
        progress.note(f"building the image {recipe.name} in {folder}")
        growing = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(growing, ignore_errors=True)  # of a builder that was killed
        growing.mkdir()
        try:
            packages = build_image(
                recipe,
                growing,
                home=folder,
                apt_folder=self.cache_dir / "apt" / recipe.spec.arch,
                progress=progress,
            )
            manifest = _describe(recipe, growing, packages)
            (growing / _MANIFEST).write_bytes(
                msgspec.json.format(msgspec.json.encode(manifest), indent=2)
            )
            shutil.rmtree(folder, ignore_errors=True)  # damaged, or we would not be here
            growing.rename(folder)
        finally:
            shutil.rmtree(growing, ignore_errors=True)
        progress.note(f"built the image {recipe.name}")
        return Image(folder, manifest)


def _describe(recipe: Recipe, folder: Path, packages: tuple[Package, ...]) -> Manifest:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return Manifest(
        name=recipe.name,
        arch=recipe.spec.arch,
        key=recipe.key,
        packages=tuple(PackageRecord(p.name, p.version, p.arch, p.sha256) for p in packages),
        artefacts={
            path.name: Artefact(path.stat().st_size, path.stat().st_mtime_ns, _sha256(path))
            for path in files
        },
    )


def _damage(image: Image, *, verify: bool) -> str | None:
    """What is wrong with a cached image, or None."""
    for name, artefact in image.manifest.artefacts.items():
        path = image.folder / name
        try:
            status = path.stat()
            if status.st_size != artefact.size:
                return f"{name} has {status.st_size} bytes instead of {artefact.size}"
            unchanged = status.st_mtime_ns == artefact.mtime_ns
            if (verify or not unchanged) and _sha256(path) != artefact.sha256:
                return f"the content of {name} has changed"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
