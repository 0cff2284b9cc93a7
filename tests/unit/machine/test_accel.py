"""The choice of accelerator and engine."""

from pathlib import Path

import pytest

from kvmdbg.errors import AcceleratorError
from kvmdbg.machine import accel
from kvmdbg.machine.accel import choose_accelerator, choose_engine, without_host_cpu


def test_auto_is_tcg_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "kvm")
    choice = choose_accelerator("auto")
    assert (choice.name, choice.reason) == ("tcg", f"there is no {tmp_path}/kvm")
    (tmp_path / "kvm").touch()
    assert "cannot verify yet" in choose_accelerator("auto").reason


def test_what_does_not_exist_yet_is_refused() -> None:
    with pytest.raises(AcceleratorError, match="--accel tcg"):
        choose_accelerator("kvm")
    with pytest.raises(AcceleratorError, match="--engine stub"):
        choose_engine("agent")
    assert choose_engine("auto").name == "stub"


def test_host_cpu_becomes_max() -> None:
    assert without_host_cpu(["-cpu", "host,-x2apic"]) == (("-cpu", "max,-x2apic"), True)
    assert without_host_cpu(["-cpu", "qemu64", "-name", "host"]) == (
        ("-cpu", "qemu64", "-name", "host"),
        False,
    )
