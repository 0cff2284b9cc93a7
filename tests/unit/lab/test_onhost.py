"""LAB=host: the lab's commands on this machine."""

import pytest

from kvmdbg.machine.verdict import Verdict
from tests.lab import onhost
from tests.lab.errors import LabError
from tests.lab.tree import ROOT


def test_a_command_runs_in_the_tree(capfd: pytest.CaptureFixture[str]) -> None:
    def fine() -> Verdict:
        return Verdict(True, "KVM is fine here", ())

    command = "pwd; echo $KVMDBG_LAB; type kvmdbg >/dev/null; exit 7"
    assert onhost.run_on_host(command, fine) == 7
    assert capfd.readouterr() == (f"{ROOT}\nhost\n", "")
    assert onhost.run_on_host("kill -KILL $$", fine) == 128 + 9


def test_a_machine_whose_kvm_is_not_right_is_refused() -> None:
    with pytest.raises(LabError, match="needs a KVM that is right, and there is none: leave"):
        onhost.run_on_host("true", lambda: Verdict(False, "there is none", ()))
