"""What follows from facts and probes, on hosts that this machine is not."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from kvmdbg.kvm.arm64.suite import SUITE as ARM64
from kvmdbg.kvm.suite import PASS, Results, Suite
from kvmdbg.kvm.x86.suite import SUITE as X86
from kvmdbg.machine.checks import ARM64_CHECKS, X86_CHECKS, Check
from kvmdbg.machine.doctor import Finding, Report, judge
from kvmdbg.machine.hostfacts import Device, HostFacts, Qemu

HOST = HostFacts(
    kernel="6.1.0",
    device=Device("/dev/kvm", "crw-rw---- root:kvm", "kvm", None),
    flavour="svm",
    virtualization="svm",
    is_guest=False,
    qemu=Qemu("/usr/bin/qemu-system-x86_64", "7.2.22", None),
    ptrace_scope=0,
    may_ptrace=False,
    security_modules="lockdown,yama",
    agent_abi=0,
    agent_trouble=None,
)
GOOD: Results = {
    "api-version": 12,
    **dict.fromkeys(X86.capabilities, 1),
    "KVM_CAP_SET_GUEST_DEBUG2": 0x1F0003,
    "nested-svm": 1,
    "tsc-khz": 2_000_000,
    **{case.name: PASS for case in X86.cases},
    "kernel-speed": 0.4,
    "user-speed": 0.3,
    "tsc-pause": 0.005,
    "tsc-cycles": 10_500_000,
}


def but(host: HostFacts, **changes: object) -> HostFacts:
    return msgspec.structs.replace(host, **changes)


def finding(report: Report, key: str) -> Finding:
    (found,) = [finding for finding in report.findings if finding.key == key]
    return found


@pytest.mark.parametrize(("checks", "suite"), [(X86_CHECKS, X86), (ARM64_CHECKS, ARM64)])
def test_every_case_counts_in_some_check(checks: tuple[Check, ...], suite: Suite) -> None:
    counted = {case for check in checks for case in check.cases}
    assert counted == {case.name for case in suite.cases}


def test_arm64_is_measured_by_its_own() -> None:
    good: Results = {
        "api-version": 12,
        **dict.fromkeys(ARM64.capabilities, 1),
        "KVM_CAP_SET_GUEST_DEBUG2": 0,
        **{case.name: PASS for case in ARM64.cases},
        "kernel-speed": 0.4,
        "user-speed": 0.3,
    }
    host = but(HOST, flavour="arm64")
    assert judge(host, good).status == 0
    broken = judge(host, good | {"kernel-brk": "the guest got vector 4"})
    assert broken.reason == "KVM here (arm64) does not intercept BRK at EL1"


def test_a_good_host_is_usable() -> None:
    report = judge(HOST, GOOD)
    assert (report.status, report.kvm) == (0, True)
    assert report.verdict == "usable: KVM here (AMD SVM) stops guests where it should"
    assert {found.state for found in report.findings} == {"ok", "note"}
    assert finding(report, "nested").found == "guests may use SVM"


@pytest.mark.parametrize("check", X86_CHECKS, ids=lambda check: check.key)
def test_one_failure_is_a_limit_and_says_what_follows(check: Check) -> None:
    report = judge(HOST, GOOD | {check.cases[-1]: "ran to its end"})
    found = finding(report, check.key)
    assert "ran to its end" in found.found
    assert found.follows
    assert found.fix
    assert report.status == 1
    assert report.kvm is not bool(check.needed)


def test_this_is_what_pvm_comes_to() -> None:
    matrix = Path(__file__).parents[2] / "kvm/matrices/pvm.toml"
    results = GOOD | tomllib.loads(matrix.read_text()) | {"kernel-speed": 800.0}
    report = judge(but(HOST, flavour="pvm", is_guest=True), results)
    assert report.status == 1
    assert report.reason == (
        "KVM here (PVM) does not intercept int3 or stop at data watchpoints in ring 0"
    )
    assert finding(report, "speed").found.startswith("emulated: 800.0 ns")


def test_without_kvm_there_is_tcg() -> None:
    trouble = "there is no /dev/kvm"
    host = but(HOST, device=Device("/dev/kvm", None, None, trouble), flavour=None)
    report = judge(host, {})
    assert (report.status, report.kvm, report.reason) == (1, False, trouble)
    assert "under TCG only" in report.verdict


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"virtualization": "vmx"}, "modprobe kvm_intel"),
        ({"virtualization": None, "is_guest": True}, "have its hypervisor offer nested"),
        ({"virtualization": None}, "firmware"),
    ],
)
def test_a_missing_device_has_a_fix(changes: dict[str, object], fix: str) -> None:
    host = but(HOST, device=Device("/dev/kvm", None, None, "there is no /dev/kvm"), **changes)
    assert fix in finding(judge(host, {}), "device").fix


@pytest.mark.parametrize(
    ("group", "fix"), [("kvm", "usermod -aG kvm"), ("root", "setfacl -m u:$USER:rw /dev/kvm")]
)
def test_a_device_that_is_closed_has_a_fix(group: str, fix: str) -> None:
    device = Device("/dev/kvm", f"crw-rw---- root:{group}", group, "cannot open /dev/kvm: …")
    assert fix in finding(judge(but(HOST, device=device), {}), "device").fix


def test_without_qemu_nothing_is_usable() -> None:
    report = judge(but(HOST, qemu=Qemu("qemu-system-x86_64", None, "it is not on the PATH")), GOOD)
    assert (report.status, report.verdict) == (2, "not usable: it is not on the PATH")
    assert "apt-get install qemu-system-x86" in finding(report, "qemu").fix


def test_smaller_things() -> None:
    old = judge(HOST, GOOD | {"KVM_CAP_SET_GUEST_DEBUG2": 0})
    assert finding(old, "capabilities").state == "limit"
    assert finding(judge(HOST, GOOD | {"api-version": 11}), "api").state == "fail"
    assert finding(judge(HOST, GOOD | {"tsc-cycles": 900}), "tsc").found == "stands still"
    assert "sees the time" in finding(judge(HOST, GOOD), "tsc").follows
    assert "keeps it still" in finding(judge(HOST, GOOD | {"tsc-moves": 1}), "tsc").follows
    strict = but(HOST, ptrace_scope=1)
    assert finding(judge(strict, GOOD), "ptrace").state == "limit"
    assert finding(judge(but(strict, may_ptrace=True), GOOD), "ptrace").state == "ok"
    broken = but(HOST, agent_abi=None, agent_trouble="wrong ELF class")
    assert finding(judge(broken, GOOD), "agent").found == "wrong ELF class"
    hung = judge(HOST, GOOD | {"kernel-speed": "hung, and had to be killed"})
    assert finding(hung, "speed").state == "limit"
