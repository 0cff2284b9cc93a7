"""The lab's pins, as they are committed."""

import re
from pathlib import Path

import pytest

from kvmdbg.images.apt import DEBIAN_ARCH
from tests.lab import pins, wheels
from tests.lab.errors import LabError
from tests.lab.machines import HOST_PACKAGES, MACHINES
from tests.lab.pins import read_pins


@pytest.mark.parametrize("arch", MACHINES)
def test_an_l1_has_what_its_machine_names(arch: str) -> None:
    found = read_pins(arch)
    assert {package.arch for package in found.debs} == {DEBIAN_ARCH[arch], "all"}
    assert set(MACHINES[arch].packages) <= {package.name for package in found.debs}


@pytest.mark.parametrize("arch", MACHINES)
def test_every_dependency_of_kvmdbg_is_pinned(arch: str) -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    have = {plain(wheel.filename.split("-")[0]) for wheel in read_pins(arch).wheels}
    assert {plain(re.split(r"[^\w.-]", need)[0]) for need in wheels.wanted(arch)} <= have


def test_the_outer_qemu_is_a_backport_and_complete() -> None:
    versions = {package.name: package.version for package in read_pins("host").debs}
    assert set(HOST_PACKAGES) <= versions.keys()
    assert re.match(r"1:10\.", versions["qemu-system-x86"])


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_pins("x86_64")
    monkeypatch.setattr(pins, "_FOLDER", tmp_path)
    pins.write_pins("x86_64", before)
    assert read_pins("x86_64") == before


def test_a_line_that_is_no_pin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "_FOLDER", tmp_path)
    (tmp_path / "host.txt").write_text("deb only-a-name\n")
    with pytest.raises(LabError, match=r"host\.txt: 'deb only-a-name' is no pin"):
        read_pins("host")
