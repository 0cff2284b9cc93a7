"""Which gdb is taken."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from kvmdbg.cli.gdb import find_gdb
from kvmdbg.errors import LaunchError

KNOWS_ALL = "#!/bin/sh\necho 'The target architecture is set to \"i386:x86-64\".'\n"
KNOWS_OTHERS = "#!/bin/sh\necho 'The target architecture is set to \"auto\".'\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH; the host is no x86-64."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KVMDBG_GDB", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    return tmp_path


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def test_the_first_that_knows_the_architecture(programs: Path) -> None:
    install(programs, "gdb-multiarch", KNOWS_ALL)
    assert find_gdb("x86_64") == "gdb-multiarch"
    install(programs, "gdb", KNOWS_OTHERS)
    assert find_gdb("x86_64") == "gdb-multiarch"
    install(programs, "gdb", KNOWS_ALL)
    assert find_gdb("x86_64") == "gdb"


def test_the_hosts_own_architecture_is_known_to_every_gdb(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(LaunchError, match=r"there is no gdb: .*apt-get install gdb\)"):
        find_gdb("x86_64")
    install(programs, "gdb", "not even a program")
    assert find_gdb("x86_64") == "gdb"


def test_none_that_knows_it_is_one_sentence(programs: Path) -> None:
    with pytest.raises(LaunchError, match=r"there is no gdb: .*apt-get install gdb-multiarch"):
        find_gdb("x86_64")
    install(programs, "gdb", KNOWS_OTHERS)
    with pytest.raises(LaunchError, match=r"gdb cannot debug x86_64: .*gdb-multiarch"):
        find_gdb("x86_64")


def test_the_users_choice_counts(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(programs, "gdb", KNOWS_ALL)
    install(programs, "mygdb", KNOWS_OTHERS)
    monkeypatch.setenv("KVMDBG_GDB", "mygdb")
    assert find_gdb("x86_64") == "mygdb"
    monkeypatch.setenv("KVMDBG_GDB", "nope")
    with pytest.raises(LaunchError, match="there is no program nope, which KVMDBG_GDB names"):
        find_gdb("x86_64")
