"""Recipes: what is accepted, what is refused and how, and what an image's key depends on."""

import shutil
from pathlib import Path

import pytest

from kvmdbg.errors import ImageError
from kvmdbg.images import builtin_dir, load_recipe
from kvmdbg.images.recipe import FileOrigin

MINIMAL = """\
name = "tiny"
arch = "x86_64"
[kernel]
package = "linux-image-tiny"
[programs.worker]
sources = ["worker.c", "worker.h"]
[initramfs]
packages = ["busybox-static"]
[initramfs.files]
"init" = "source:init"
"bin/worker" = "program:worker"
"bin/busybox" = "package:busybox-static:bin/busybox"
"lib/m.ko" = "module:m"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "recipe.toml").write_text(MINIMAL)
    for name in ("init", "worker.c", "worker.h"):
        (folder / name).write_text(f"this is {name}\n")
    return folder


def test_the_demo_comes_with_kvmdbg() -> None:
    recipe = load_recipe(builtin_dir() / "demo" / "recipe.toml")
    assert recipe.name == "demo"
    assert recipe.files["bin/workload"] == FileOrigin("program", "workload")
    assert "workload.c" in recipe.sources


def test_origins_and_sources(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.toml")
    assert recipe.files == {
        "init": FileOrigin("source", "init"),
        "bin/worker": FileOrigin("program", "worker"),
        "bin/busybox": FileOrigin("package", "bin/busybox", "busybox-static"),
        "lib/m.ko": FileOrigin("module", "m"),
    }
    assert recipe.sources == {
        "init": b"this is init\n",
        "worker.c": b"this is worker.c\n",
        "worker.h": b"this is worker.h\n",
    }


def test_recipes_share_sources(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    text = MINIMAL.replace("worker.c", "../tiny/worker.c").replace("e:init", "e:../tiny/init")
    (other / "recipe.toml").write_text(text)
    (other / "worker.h").write_text("mine\n")
    assert load_recipe(other / "recipe.toml").sources == {
        "../tiny/init": b"this is init\n",
        "../tiny/worker.c": b"this is worker.c\n",
        "worker.h": b"mine\n",
    }


@pytest.mark.parametrize("changed", ["recipe.toml", "init", "worker.c", "worker.h"])
def test_the_key_follows_recipe_and_sources(folder: Path, changed: str) -> None:
    before = load_recipe(folder / "recipe.toml").key
    with (folder / changed).open("a") as file:
        file.write("# changed\n")
    assert load_recipe(folder / "recipe.toml").key != before


def test_the_key_does_not_follow_place_or_other_files(folder: Path, tmp_path: Path) -> None:
    before = load_recipe(folder / "recipe.toml").key
    (folder / "vm.toml").write_text("memory = '1G'\n")
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_recipe(tmp_path / "elsewhere" / "recipe.toml").key == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tiny"\n', "", "missing required field `name`"),
        ('name = "tiny"', 'name = "../tiny"', "name: '../tiny' cannot be part of a file's name"),
        ('name = "tiny"', 'name = "tiny', "line 1"),
        ('arch = "x86_64"', 'arch = "z80"', "arch: expected x86_64 or aarch64, got 'z80'"),
        ("[kernel]", "[kernel]\nflavour = 1", r"unknown field `flavour` - at `\$\.kernel`"),
        ("packages = [", "packages = [1, ", r"Expected `str`, got `int` - at `\$\.initramfs\.pac"),
        ('"source:init"', '"init"', r'initramfs\.files\."init": \'init\' is none of source:NAME'),
        ('"source:init"', '"source:inti"', "cannot read the source 'inti': No such file"),
        ('"source:init"', '"source:../init"', "source '../init' is neither a file beside"),
        (
            '"source:init"',
            '"source:../a/../init"',
            "source '../a/../init' is neither a file beside",
        ),
        ('"program:worker"', '"program:w"', r"the recipe has no table \[programs\.w\]"),
        ("package:busybox-static", "package:busybox", "'busybox' is not listed in initramfs.pac"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(folder: Path, old: str, new: str, message: str) -> None:
    path = folder / "recipe.toml"
    assert old in MINIMAL
    path.write_text(MINIMAL.replace(old, new))
    with pytest.raises(ImageError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_recipe_and_no_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    with pytest.raises(ImageError, match=r"cannot read the image recipe .*: No such file"):
        load_recipe(path)
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(ImageError, match="UTF-8"):
        load_recipe(path)
