"""The choice of accelerator and engine."""

import platform

import pytest

from kvmdbg.errors import AcceleratorError
from kvmdbg.machine.accel import choose_accelerator, choose_engine, without_host_cpu
from kvmdbg.machine.verdict import Verdict

HOST = platform.machine()


def never() -> Verdict:
    raise AssertionError


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (Verdict(False, "there is no /dev/kvm"), "there is no /dev/kvm"),
        (
            Verdict(True, "KVM here (AMD SVM) stops guests where it should"),
            "KVM here (AMD SVM) stops guests where it should, "
            "but this version has no engine for it yet",
        ),
    ],
)
def test_auto_is_tcg_and_says_why(verdict: Verdict, reason: str) -> None:
    choice = choose_accelerator("auto", HOST, lambda: verdict)
    assert (choice.name, choice.reason) == ("tcg", reason)


def test_doctor_is_asked_only_where_it_matters() -> None:
    assert choose_accelerator("tcg", HOST, never).name == "tcg"
    with pytest.raises(AcceleratorError, match="--accel tcg"):
        choose_accelerator("kvm", HOST, never)


def test_kvm_is_for_guests_like_the_host() -> None:
    assert choose_accelerator("tcg", "vax", never).reason == "asked for"
    choice = choose_accelerator("auto", "vax", never)
    assert (choice.name, choice.reason) == ("tcg", f"KVM runs no vax guest on an {HOST} host")
    with pytest.raises(AcceleratorError, match=r"KVM runs no vax guest on .*: use --accel tcg"):
        choose_accelerator("kvm", "vax", never)


def test_what_does_not_exist_yet_is_refused() -> None:
    with pytest.raises(AcceleratorError, match="--engine stub"):
        choose_engine("agent")
    assert choose_engine("auto").name == "stub"


def test_host_cpu_becomes_max() -> None:
    assert without_host_cpu(["-cpu", "host,-x2apic"]) == (("-cpu", "max,-x2apic"), True)
    assert without_host_cpu(["-cpu", "qemu64", "-name", "host"]) == (
        ("-cpu", "qemu64", "-name", "host"),
        False,
    )
