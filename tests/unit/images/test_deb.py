"""Reading single files out of packages that dpkg-deb made."""

from pathlib import Path
from typing import Any

import pytest

from kvmdbg.errors import ImageError
from kvmdbg.images.deb import read_members


def test_reads_only_what_is_wanted(archive: Any) -> None:
    archive.add("tool", "1", {"bin/tool": b"tool", "bin/other": b"other"})
    assert read_members(archive.folder / "tool.deb", lambda path: path == "bin/tool") == {
        "bin/tool": b"tool"
    }


def test_files_below_usr_are_found_by_their_old_name(archive: Any) -> None:
    archive.add("tool", "1", {"usr/bin/tool": b"tool"})
    assert read_members(archive.folder / "tool.deb", "bin/tool".__eq__) == {"bin/tool": b"tool"}


def test_a_broken_package_is_one_sentence(tmp_path: Path) -> None:
    deb = tmp_path / "broken.deb"
    deb.write_bytes(b"not a package")
    with pytest.raises(ImageError, match=r"cannot unpack .*broken\.deb"):
        read_members(deb, lambda path: True)
