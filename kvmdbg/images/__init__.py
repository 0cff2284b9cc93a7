"""VM images, built from recipes: kernel, initramfs and symbol file, in the user's cache.

A recipe (``vm-images/*/recipe.toml``) names Debian packages and the sources beside it.
:class:`ImageStore` builds what it describes, without root and without installing anything,
and hands out the files of the result, its *artefacts*.
"""

from pathlib import Path

from kvmdbg.images.recipe import Recipe, load_recipe
from kvmdbg.images.store import Image, ImageStore, user_cache

__all__ = [
    "Image",
    "ImageStore",
    "Recipe",
    "builtin_dir",
    "load_recipe",
    "user_cache",
]


def builtin_dir() -> Path:
    """The folder of the VM definitions that come with kvmdbg: ``<folder>/demo/vm.toml`` and so on.

    In an installed package that is package data; in a checkout (editable install) it is the tree's
    own ``vm-images``.
    """
    here = Path(__file__).resolve().parent
    packaged = here / "builtin"
    return packaged if packaged.is_dir() else here.parents[1] / "vm-images"
