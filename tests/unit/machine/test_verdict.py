"""The verdict is kept for a boot, and no longer."""

from pathlib import Path

import pytest

from kvmdbg.kvm.suite import Results
from kvmdbg.machine import verdict
from kvmdbg.machine.doctor import Report
from kvmdbg.machine.verdict import Verdict, kvm_verdict, remember


def report(kvm: bool = True, results: Results | None = None) -> Report:
    found: Results = {"kernel-int3": "pass"} if results is None else results
    return Report(0, "usable", "svm", kvm, "it works", (), found, 0.1)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Report]:
    """A host with a device; how often it was examined."""
    (tmp_path / "kvm").touch()
    (tmp_path / "boot_id").write_text("first\n")
    monkeypatch.setenv("KVMDBG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verdict, "KVM_DEVICE", str(tmp_path / "kvm"))
    monkeypatch.setattr(verdict, "_BOOT_ID", tmp_path / "boot_id")
    seen: list[Report] = []

    def examine() -> Report:
        seen.append(report())
        return seen[-1]

    monkeypatch.setattr(verdict, "examine", examine)
    return seen


def test_a_host_is_examined_once_a_boot(examined: list[Report], tmp_path: Path) -> None:
    assert kvm_verdict() == kvm_verdict() == Verdict(True, "it works", ("int3",))
    assert len(examined) == 1
    (tmp_path / "boot_id").write_text("second\n")
    kvm_verdict()
    assert len(examined) == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["kvm-verdict.json"]


def test_another_device_is_another_host(examined: list[Report], tmp_path: Path) -> None:
    kvm_verdict()
    (tmp_path / "new").touch()
    (tmp_path / "new").rename(tmp_path / "kvm")
    kvm_verdict()
    assert len(examined) == 2


def test_a_spoilt_cache_is_none(examined: list[Report], tmp_path: Path) -> None:
    kvm_verdict()
    (tmp_path / "cache/kvm-verdict.json").write_text('{"for_": 1')
    assert kvm_verdict().kvm
    assert len(examined) == 2


def test_what_could_not_be_probed_is_not_kept(examined: list[Report], tmp_path: Path) -> None:
    assert remember(report(results={})) == Verdict(True, "it works", ())
    assert not (tmp_path / "cache").exists()


def test_what_a_busy_host_kept_from_being_probed_is_not_kept(
    examined: list[Report], tmp_path: Path
) -> None:
    remember(report(results={"kernel-int3": "not tried: 10 s were over"}))
    remember(report(results={"kernel-int3": "hung, and had to be killed"}))
    assert not (tmp_path / "cache").exists()


def test_without_a_device_nobody_is_asked(examined: list[Report], tmp_path: Path) -> None:
    (tmp_path / "kvm").unlink()
    assert kvm_verdict() == Verdict(False, f"there is no {tmp_path}/kvm", ())
    assert examined == []


def test_a_cache_that_cannot_be_written_is_done_without(
    examined: list[Report], tmp_path: Path
) -> None:
    (tmp_path / "cache").touch()
    assert kvm_verdict().kvm
