"""The choice of accelerator and engine."""

import platform

import pytest

from kvmdbg.backend.agent import Abilities
from kvmdbg.errors import AcceleratorError
from kvmdbg.machine.accel import (
    AGENT,
    ASKED_FOR,
    STUB,
    abilities,
    choose_accelerator,
    choose_engine,
    without_host_cpu,
)
from kvmdbg.machine.boards import BOARDS
from kvmdbg.machine.verdict import Verdict

HERE = platform.machine()
RIGHT = Verdict(True, "KVM here (AMD SVM) stops guests where it should", ("guests", "cmpxchg16b"))
DEFECTIVE = Verdict(False, "KVM here (PVM) does not intercept int3", ("guests",))
MISSING = Verdict(False, "there is no /dev/kvm", ())


@pytest.mark.parametrize(
    ("wanted", "verdict", "name", "reason"),
    [
        ("auto", RIGHT, "kvm", RIGHT.reason),
        ("auto", DEFECTIVE, "tcg", DEFECTIVE.reason),
        ("auto", MISSING, "tcg", MISSING.reason),
        ("kvm", RIGHT, "kvm", ASKED_FOR),
        ("kvm", DEFECTIVE, "kvm", f"asked for, but {DEFECTIVE.reason}"),
        ("tcg", RIGHT, "tcg", ASKED_FOR),
    ],
)
def test_the_accelerator_and_why(wanted: str, verdict: Verdict, name: str, reason: str) -> None:
    choice = choose_accelerator(wanted, HERE, lambda: verdict)
    assert (choice.name, choice.reason) == (name, reason)
    assert choice.processor[:2] == ("-accel", "kvm" if name == "kvm" else "tcg,thread=multi")


def test_kvm_that_is_not_there_is_refused() -> None:
    with pytest.raises(AcceleratorError, match="there is no /dev/kvm: use --accel tcg"):
        choose_accelerator("kvm", HERE, lambda: MISSING)


def test_kvm_is_for_guests_of_its_own_kind() -> None:
    choice = choose_accelerator("auto", "aarch64", lambda: RIGHT, host="x86_64")
    assert (choice.name, choice.reason) == ("tcg", "KVM runs no aarch64 guest on an x86_64 host")
    with pytest.raises(AcceleratorError, match=r"KVM runs no aarch64 guest .*: use --accel tcg"):
        choose_accelerator("kvm", "aarch64", lambda: RIGHT, host="x86_64")


@pytest.mark.skipif(HERE != "x86_64", reason="an instruction of x86")
def test_what_guests_die_of_is_not_offered() -> None:
    assert choose_accelerator("kvm", HERE, lambda: RIGHT).processor[-1] == "host"
    assert choose_accelerator("kvm", HERE, lambda: DEFECTIVE).processor[-1] == "host,-cx16"


def test_doctor_is_asked_only_where_it_matters() -> None:
    def never() -> Verdict:
        raise AssertionError

    choice = choose_accelerator("tcg", HERE, never)
    assert choice.name == "tcg"
    assert choice.processor[-1] == BOARDS[HERE].cpu


def test_the_agent_is_for_kvm() -> None:
    assert [choose_engine(wanted, "kvm").name for wanted in ("auto", "agent", "stub")] == [
        *(AGENT, AGENT, STUB)
    ]
    assert [choose_engine(wanted, "tcg").name for wanted in ("auto", "stub")] == [STUB, STUB]
    with pytest.raises(AcceleratorError, match="under tcg: use --engine stub"):
        choose_engine("agent", "tcg")


def test_abilities_are_doctors_checks() -> None:
    assert abilities(DEFECTIVE) == Abilities(False, False, False, False)
    whole = Verdict(True, "fine", ("int3", "user-int3", "write", "resume-flag"))
    assert abilities(whole) == Abilities(True, True, True, True)


def test_host_cpu_becomes_max() -> None:
    assert without_host_cpu(["-cpu", "host,-x2apic"]) == (("-cpu", "max,-x2apic"), True)
    assert without_host_cpu(["-cpu", "qemu64", "-name", "host"]) == (
        ("-cpu", "qemu64", "-name", "host"),
        False,
    )
