"""The shape of the source tree."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

import kvmdbg

ROOT = Path(__file__).parents[2]

TOP_LEVEL = {
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "cdefs",
    "kvmdbg",
    "meson.build",
    "pyproject.toml",
    "tests",
    "vm-images",
}
LINES_THAT_WANT_ANOTHER_LOOK = 450


def test_top_level_holds_only_what_belongs_there() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    top = {line.partition("/")[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_no_module_has_outgrown_one_idea() -> None:
    sources = [p for p in (ROOT / "kvmdbg").rglob("*") if p.suffix in {".py", ".c", ".h"}]
    assert sources
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources
        if (lines := path.read_bytes().count(b"\n")) > LINES_THAT_WANT_ANOTHER_LOOK
    }
    assert long == {}


def test_package_and_build_agree_on_the_version() -> None:
    assert kvmdbg.__version__ == version("kvmdbg")
