"""The cases of the kernel's debug_regs selftest, and ours, on the KVM that is here."""

import tomllib
from pathlib import Path

import pytest

from kvmdbg.kvm.cases import CASES, PASS, Case
from kvmdbg.kvm.debug import supported_control
from kvmdbg.kvm.local import KVM_DEVICE, LocalKvm
from kvmdbg.kvm.system import check_extension
from kvmdbg.kvm.transport import Transport
from kvmdbg.machine.probing import probe_kvm
from tests.kvm.conftest import MATRICES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, vm: Transport, kvm: LocalKvm, matrix: dict[str, str]) -> None:
    supported = supported_control(
        kvm.call(check_extension("KVM_CAP_SET_GUEST_DEBUG")),
        kvm.call(check_extension("KVM_CAP_SET_GUEST_DEBUG2")),
    )
    assert case.run(vm, supported) == matrix[case.name]


def test_doctors_probes_agree(kvm: LocalKvm, matrix: dict[str, str]) -> None:
    """In a child, and on VMs that serve several cases, as doctor runs them."""
    results = probe_kvm(KVM_DEVICE)
    assert {case.name: results[case.name] for case in CASES} == matrix


@pytest.mark.parametrize("path", sorted(MATRICES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_matrix_names_every_case_once(path: Path) -> None:
    known = tomllib.loads(path.read_text())
    assert list(known) == [case.name for case in CASES]
    assert PASS in known.values()
