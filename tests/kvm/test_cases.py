"""The cases of the kernel's debug_regs selftest, and ours, on the KVM that is here."""

import tomllib
from pathlib import Path

import pytest

from kvmdbg.kvm.arm64.suite import SUITE as ARM64
from kvmdbg.kvm.local import KVM_DEVICE, LocalKvm
from kvmdbg.kvm.probes import SUITE
from kvmdbg.kvm.suite import PASS, Case
from kvmdbg.kvm.transport import Transport
from kvmdbg.kvm.x86.suite import SUITE as X86
from kvmdbg.machine.probing import probe_kvm
from tests.kvm.conftest import MATRICES


@pytest.mark.parametrize("case", SUITE.cases, ids=lambda case: case.name)
def test_case(case: Case, vm: Transport, matrix: dict[str, str]) -> None:
    assert case.run(vm) == matrix[case.name]


def test_doctors_probes_agree(kvm: LocalKvm, matrix: dict[str, str]) -> None:
    """In a child, and on VMs that serve several cases, as doctor runs them."""
    results = probe_kvm(KVM_DEVICE)
    assert {case.name: results[case.name] for case in SUITE.cases} == matrix


@pytest.mark.parametrize("path", sorted(MATRICES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_matrix_names_every_case_once(path: Path) -> None:
    known = tomllib.loads(path.read_text())
    suite = ARM64 if "aarch64" in path.stem else X86
    assert list(known) == [case.name for case in suite.cases]
    assert PASS in known.values()
