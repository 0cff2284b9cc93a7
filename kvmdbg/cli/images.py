"""``kvmdbg images``: build VM images, and show what there is."""

from __future__ import annotations

import sys
from pathlib import Path

from kvmdbg.cli.show import Progress
from kvmdbg.errors import ImageError
from kvmdbg.images import ImageStore, builtin_dir, load_recipe

_RECIPE = "recipe.toml"


def run(name: str | None) -> int:
    """Build the image ``name``, or list all recipes."""
    if name is None:
        _list()
    else:
        _build(name)
    return 0


def _recipes() -> dict[str, Path]:
    return {path.parent.name: path for path in sorted(builtin_dir().glob(f"*/{_RECIPE}"))}


def _build(name: str) -> None:
    recipes = _recipes()
    if name not in recipes:
        raise ImageError(f"there is no image recipe {name}: there are {', '.join(recipes)}")
    with Progress() as progress:
        image = ImageStore().ensure(load_recipe(recipes[name]), progress, verify=True)
    print(f"{name}: {image.folder}")
    for artefact, facts in image.manifest.artefacts.items():
        print(f"  {artefact:<12}{facts.size / 2**20:8.1f} MiB  sha256 {facts.sha256[:16]}")
    for package in image.manifest.packages:
        print(f"  from {package.name} {package.version} ({package.arch})")


def _list() -> None:
    store = ImageStore()
    for name, path in _recipes().items():
        image = store.find(load_recipe(path))
        state = f"built, in {image.folder}" if image else f"not built yet: kvmdbg images {name}"
        print(f"{name}: {state}")
    print(f"recipes: {builtin_dir()}", file=sys.stderr)
