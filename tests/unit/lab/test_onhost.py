"""LAB=host: the lab's commands on this machine."""

from pathlib import Path

import pytest

from tests.lab import onhost
from tests.lab.errors import LabError
from tests.lab.tree import ROOT


def test_a_command_runs_in_the_tree(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onhost, "KVM_DEVICE", Path("/dev/null"))
    assert onhost.run_on_host("pwd; echo $KVMDBG_LAB; type kvmdbg >/dev/null; exit 7") == 7
    assert capfd.readouterr() == (f"{ROOT}\nhost\n", "")
    assert onhost.run_on_host("kill -KILL $$") == 128 + 9


def test_a_machine_without_kvm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onhost, "KVM_DEVICE", tmp_path / "kvm")
    with pytest.raises(LabError, match="kvm says: No such file or directory: leave LAB=host out"):
        onhost.run_on_host("true")
