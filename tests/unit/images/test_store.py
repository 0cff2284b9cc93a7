"""The cache: hits, misses, damage and builders that meet; with a builder that is instant."""

import json
import os
import threading
from pathlib import Path

import pytest

from kvmdbg.errors import ImageError
from kvmdbg.images import ImageStore, Recipe, build, load_recipe
from kvmdbg.images.apt import Package
from kvmdbg.progress import Progress, SilentProgress

PACKAGE = Package("linux-image-tiny", "1.0-1", "amd64", "ab" * 32, 5, "")


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Builder:
    """Stands in for build_image: counts, and waits or fails when told to."""

    def __init__(self) -> None:
        self.built = 0
        self.may_finish = threading.Event()
        self.started = threading.Event()
        self.may_finish.set()
        self.failure: Exception | None = None

    def __call__(
        self, recipe: Recipe, folder: Path, *, home: Path, apt_folder: Path, progress: Progress
    ) -> tuple[Package, ...]:
        self.built += 1
        self.started.set()
        assert self.may_finish.wait(10)
        (folder / "vmlinuz").write_bytes(b"kernel")
        if self.failure is not None:
            raise self.failure
        (folder / "initramfs").write_bytes(b"files")
        (folder / "src").mkdir()
        return (PACKAGE,)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    builder = Builder()
    monkeypatch.setattr(build, "build_image", builder)
    return builder


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text('name="tiny"\narch="x86_64"\nkernel.package="linux-image-tiny"\ninitramfs={}\n')
    return load_recipe(path)


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "cache")


def test_built_once_then_found(builder: Builder, recipe: Recipe, images: ImageStore) -> None:
    assert images.find(recipe) is None
    image = images.ensure(recipe)
    assert image.artefact("vmlinuz").read_bytes() == b"kernel"
    again = images.ensure(recipe, verify=True)
    assert (again, builder.built) == (image, 1)
    assert images.find(recipe) == image


def test_the_manifest_says_what_it_was_made_from(
    builder: Builder, recipe: Recipe, images: ImageStore
) -> None:
    image = images.ensure(recipe)
    manifest = json.loads((image.folder / "manifest.json").read_text())
    assert manifest["key"] == recipe.key
    assert manifest["packages"] == [
        {"name": "linux-image-tiny", "version": "1.0-1", "arch": "amd64", "sha256": "ab" * 32}
    ]
    assert sorted(manifest["artefacts"]) == ["initramfs", "vmlinuz"]
    assert manifest["artefacts"]["vmlinuz"]["size"] == 6


def test_an_unknown_artefact_lists_the_known(
    builder: Builder, recipe: Recipe, images: ImageStore
) -> None:
    image = images.ensure(recipe)
    with pytest.raises(ImageError, match="no artefact 'vmlinux': it has initramfs, vmlinuz"):
        image.artefact("vmlinux")


def damage_size(path: Path) -> None:
    path.write_bytes(b"short")


def damage_content(path: Path) -> None:
    path.write_bytes(b"KERNEL")
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_size, "vmlinuz has 5 bytes instead of 6"),
        (damage_content, "the content of vmlinuz has changed"),
        (Path.unlink, "vmlinuz: No such file"),
    ],
)
def test_damage_is_said_and_repaired(
    builder: Builder, recipe: Recipe, images: ImageStore, damage: object, words: str
) -> None:
    image = images.ensure(recipe)
    assert callable(damage)
    damage(image.artefact("vmlinuz"))
    assert images.find(recipe) is None
    notes = Notes()
    image = images.ensure(recipe, notes)
    assert image.artefact("vmlinuz").read_bytes() == b"kernel"
    assert builder.built == 2
    assert any("damaged" in note and words in note for note in notes.notes)


def test_only_verification_reads_what_looks_unchanged(
    builder: Builder, recipe: Recipe, images: ImageStore
) -> None:
    path = images.ensure(recipe).artefact("vmlinuz")
    before = path.stat()
    path.write_bytes(b"KERNEL")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert images.find(recipe) is not None
    assert images.find(recipe, verify=True) is None


def test_a_touched_file_is_read_and_accepted(
    builder: Builder, recipe: Recipe, images: ImageStore
) -> None:
    os.utime(images.ensure(recipe).artefact("vmlinuz"), (1, 1))
    images.ensure(recipe)
    assert builder.built == 1


def test_a_failed_build_leaves_nothing_and_can_be_repeated(
    builder: Builder, recipe: Recipe, images: ImageStore
) -> None:
    builder.failure = ImageError("no network")
    with pytest.raises(ImageError, match="no network"):
        images.ensure(recipe)
    assert [path.suffix for path in (images.cache_dir / "images").iterdir()] == [".lock"]
    builder.failure = None
    assert images.ensure(recipe).artefact("initramfs").exists()


def test_leftovers_of_a_killed_builder_are_swept(
    builder: Builder, recipe: Recipe, images: ImageStore
) -> None:
    growing = images.cache_dir / "images" / f"tiny-{recipe.key}.new"
    growing.mkdir(parents=True)
    (growing / "leftover").write_text("x")
    assert "leftover" not in images.ensure(recipe).manifest.artefacts
    assert not growing.exists()


def test_a_full_disk_is_one_sentence(builder: Builder, recipe: Recipe, images: ImageStore) -> None:
    builder.failure = OSError(28, "No space left on device")
    with pytest.raises(ImageError, match=r"cannot build the image tiny in .*No space left"):
        images.ensure(recipe)


def test_the_second_builder_waits_and_says_so(
    builder: Builder, recipe: Recipe, images: ImageStore
) -> None:
    builder.may_finish.clear()
    first = threading.Thread(target=images.ensure, args=(recipe,))
    first.start()
    assert builder.started.wait(10)

    class FinishOnNote(Notes):
        def note(self, text: str) -> None:
            super().note(text)
            builder.may_finish.set()

    notes = FinishOnNote()
    image = images.ensure(recipe, notes)
    first.join(10)
    assert notes.notes == ["waiting for another kvmdbg that is building the image tiny"]
    assert builder.built == 1
    assert image.artefact("vmlinuz").exists()


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVMDBG_CACHE", str(tmp_path))
    assert ImageStore().cache_dir == tmp_path
    monkeypatch.delenv("KVMDBG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ImageStore().cache_dir == tmp_path / "xdg" / "kvmdbg"
