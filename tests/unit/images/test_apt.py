"""Packages through the real apt, from an archive on the local disk."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvmdbg.errors import ImageError
from kvmdbg.images.apt import Apt
from kvmdbg.progress import SilentProgress

QUIET = SilentProgress()
UseSources = Callable[[str], None]


class Recorder(SilentProgress):
    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int | None]] = []

    def step(self, what: str, done: int = 0, total: int | None = None) -> None:
        self.steps.append((what, done, total))


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    return Apt(tmp_path / "apt", "x86_64")


@pytest.fixture
def local(archive: Any, use_sources: UseSources) -> Any:
    use_sources(f"deb [trusted=yes] file:{archive.folder} ./\n")
    return archive


def test_fetches_what_the_index_describes(local: Any, apt: Apt) -> None:
    local.add("tool", "1:2.0-1", {"bin/tool": b"the tool"})
    progress = Recorder()
    with apt.locked(QUIET):
        apt.update(progress)
        package = apt.find("tool")
        deb = apt.fetch(package, progress)
    assert (package.name, package.version, package.arch) == ("tool", "1:2.0-1", "amd64")
    assert deb.name == "tool_1%3a2.0-1_amd64.deb"
    assert hashlib.sha256(deb.read_bytes()).hexdigest() == package.sha256
    assert ("downloading tool 1:2.0-1", 0, package.size) in progress.steps


def test_a_package_that_is_there_is_not_downloaded_again(local: Any, apt: Apt) -> None:
    local.add("tool", "1", {})
    with apt.locked(QUIET):
        apt.update(QUIET)
        package = apt.find("tool")
        apt.fetch(package, QUIET)
        (local.folder / "tool.deb").unlink()
        progress = Recorder()
        assert apt.fetch(package, progress).exists()
    assert progress.steps == []


def test_a_damaged_download_is_replaced(local: Any, apt: Apt) -> None:
    local.add("tool", "1", {})
    with apt.locked(QUIET):
        apt.update(QUIET)
        package = apt.find("tool")
        deb = apt.fetch(package, QUIET)
        deb.write_bytes(b"rubbish")
        assert hashlib.sha256(apt.fetch(package, QUIET).read_bytes()).hexdigest() == package.sha256


def test_a_package_that_does_not_match_the_index_is_refused(local: Any, apt: Apt) -> None:
    local.add("tool", "1", {})
    (local.folder / "tool.deb").write_bytes(b"something else")
    with apt.locked(QUIET):
        apt.update(QUIET)
        with pytest.raises(ImageError, match="cannot download the package tool: apt says"):
            apt.fetch(apt.find("tool"), QUIET)


def test_a_metapackage_is_followed_to_the_kernel(local: Any, apt: Apt) -> None:
    local.add("linux-image-cloud-amd64", "6.1.1-1", {}, depends="linux-image-6.1.0-1 (= 6.1.1-1)")
    local.add("linux-image-6.1.0-1", "6.1.1-1", {}, depends="kmod, linux-base (>= 4.3~)")
    apt.update(QUIET)
    assert apt.find_kernel("linux-image-cloud-amd64").name == "linux-image-6.1.0-1"
    assert apt.find_kernel("linux-image-6.1.0-1").name == "linux-image-6.1.0-1"


def test_other_origins_do_not_count(local: Any, apt: Apt) -> None:
    local.add("tool", "1", {})
    local.publish(origin="Somebody Else")
    apt.update(QUIET)
    with pytest.raises(ImageError, match=r"no Debian source .* has the package tool"):
        apt.find("tool")


def test_an_unreachable_source_beside_debian_does_no_harm(
    archive: Any, use_sources: UseSources, apt: Apt
) -> None:
    archive.add("tool", "1", {})
    use_sources(
        f"deb [trusted=yes] file:/nonexistent ./\ndeb [trusted=yes] file:{archive.folder} ./\n"
    )
    apt.update(QUIET)
    assert apt.find("tool").version == "1"


def test_an_unsigned_archive_is_refused_in_apts_words(
    archive: Any, use_sources: UseSources, apt: Apt
) -> None:
    archive.add("tool", "1", {})
    use_sources(f"deb file:{archive.folder} ./\n")
    apt.update(QUIET)
    with pytest.raises(
        ImageError, match=r"has the package tool \(apt-get update said: E: .*signed"
    ):
        apt.find("tool")


def test_a_machine_that_waives_signatures_does_not_waive_them_for_us(
    archive: Any, use_sources: UseSources, apt: Apt, tmp_path: Path
) -> None:
    archive.add("tool", "1", {})
    use_sources(f"deb file:{archive.folder} ./\n")
    with (tmp_path / "etc" / "apt.conf").open("a") as config:
        config.write('Acquire::AllowInsecureRepositories "true";\n')
        config.write('APT::Get::AllowUnauthenticated "true";\n')
    apt.update(QUIET)
    with pytest.raises(ImageError, match="no Debian source"):
        apt.find("tool")
