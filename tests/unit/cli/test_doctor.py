"""How doctor's report is shown."""

import json

import pytest

from kvmdbg.cli import doctor
from kvmdbg.cli.main import main
from kvmdbg.machine.doctor import Finding, Report

REPORT = Report(
    status=1,
    verdict="usable with limits",
    flavour="pvm",
    kvm=False,
    reason="it does not",
    findings=(
        Finding("device", "device", "ok", "/dev/kvm"),
        Finding("int3", "int3 in ring 0", "fail", "KVM internal error 1", "no break", "use TCG"),
        Finding("write", "DR0-3 write", "limit", "ran to its end", "no watch", "use TCG"),
    ),
    results={"kernel-int3": "KVM internal error 1"},
    seconds=0.25,
)


@pytest.fixture(autouse=True)
def _report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: REPORT)
    monkeypatch.setattr(doctor, "remember", lambda report: None)


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok     device          /dev/kvm",
        "fail   int3 in ring 0  KVM internal error 1",
        "                       -> no break",
        "limit  DR0-3 write     ran to its end",
        "                       -> no watch",
        "fix    int3 in ring 0, DR0-3 write: use TCG",
        "usable with limits (0.25 s)",
    ]


def test_json_has_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["status"], report["kvm"]) == (1, False)
    assert report["findings"][1]["follows"] == "no break"
    assert report["results"] == {"kernel-int3": "KVM internal error 1"}


def test_a_terminal_gets_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "int3 in ring 0" in shown
    assert "→ no break" in shown
    assert "usable with limits" in shown
