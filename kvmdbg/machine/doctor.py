"""What this host is good for: facts and probes in, findings and a verdict out.

Nothing here asks the host anything, except :func:`examine`.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import msgspec

from kvmdbg.kvm.local import KVM_DEVICE
from kvmdbg.kvm.suite import PASS, Results
from kvmdbg.machine.checks import Check, checks_for
from kvmdbg.machine.hostfacts import FLAVOURS, Device, HostFacts, collect, device_facts
from kvmdbg.machine.probing import probe_kvm
from kvmdbg.machine.qemu import MINIMUM_VERSION

State = Literal["ok", "note", "limit", "fail"]

USABLE, LIMITED, UNUSABLE = 0, 1, 2

_EMULATED = 20.0  # nanoseconds per instruction: no processor that has KVM is so slow
_UNDER_TCG = "debug under TCG (--accel tcg, or auto)"
_ELSEWHERE = f"{_UNDER_TCG}, or on a host whose KVM uses SVM or VMX"
_NEWER = f"try a newer kernel on the host, or {_UNDER_TCG}"


class Finding(msgspec.Struct, frozen=True):
    """One line: what was looked at, what was seen, what follows, and what helps."""

    key: str
    title: str
    state: State
    found: str
    follows: str = ""
    fix: str = ""


class Report(msgspec.Struct, frozen=True):
    """All that doctor has to say."""

    status: int
    """0 usable, 1 usable with limits, 2 not."""
    verdict: str
    flavour: str | None
    kvm: bool
    """Whether KVM here debugs well enough for ``--accel auto``."""
    reason: str
    """Half a sentence: why, or why not."""
    findings: tuple[Finding, ...]
    results: Results
    seconds: float


def examine() -> Report:
    """Ask the host, and run all probes; half a second where KVM is native."""
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(_probe)
        host = collect()
        return judge(host, results.result(), began)


def _probe() -> Results:
    return probe_kvm() if device_facts(KVM_DEVICE).trouble is None else {}


def judge(host: HostFacts, results: Results, began: float | None = None) -> Report:
    """The report on a host. ``results`` is empty where KVM could not be opened."""
    findings = [_device(host)]
    if results:
        findings += [_kind(host), _api(results), _capabilities(results)]
        findings += [_check(host, check, results) for check in checks_for(host.flavour)]
        findings += [_speed(results)]
        if host.flavour != "arm64":
            findings += [_tsc(results), _nested(results)]
    findings += [_qemu(host), _ptrace(host), _security_modules(host), _agent(host)]
    kvm, reason = verdict_on_kvm(host, results)
    if host.qemu.trouble:
        status, verdict = UNUSABLE, f"not usable: {host.qemu.trouble}"
    elif not kvm:
        status, verdict = LIMITED, f"usable with limits, under TCG only: {reason}"
    elif any(finding.state in ("limit", "fail") for finding in findings):
        status, verdict = LIMITED, f"usable with limits: {reason}"
    else:
        status, verdict = USABLE, f"usable: {reason}"
    seconds = time.perf_counter() - began if began is not None else 0.0
    return Report(
        status, verdict, host.flavour, kvm, reason, tuple(findings), results, round(seconds, 3)
    )


def verdict_on_kvm(host: HostFacts, results: Results) -> tuple[bool, str]:
    """Whether a guest can be debugged under KVM here, and half a sentence that says why."""
    if not results:
        return False, host.device.trouble or "KVM could not be probed"
    lacks = [
        check.needed
        for check in checks_for(host.flavour)
        if check.needed and failures(check, results)
    ]
    name = FLAVOURS.get(host.flavour or "", "of an unknown kind")
    if lacks:
        where = "at EL1" if host.flavour == "arm64" else "in ring 0"
        return False, f"KVM here ({name}) does not {_alternatives(lacks)} {where}"
    return True, f"KVM here ({name}) stops guests where it should"


def failures(check: Check, results: Results) -> dict[str, str]:
    """Case → outcome, of the cases of a check that did not pass."""
    outcomes = {case: str(results.get(case, "not tried")) for case in check.cases}
    return {case: outcome for case, outcome in outcomes.items() if outcome != PASS}


def _alternatives(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _device(host: HostFacts) -> Finding:
    device = host.device
    found = f"{device.path}, {device.permissions}" if device.permissions else "missing"
    if device.trouble is None:
        return Finding("device", "device", "ok", found)
    return Finding(
        "device",
        "device",
        "limit",
        f"{found}: {device.trouble}",
        "VMs run under TCG, QEMU's emulator",
        _device_fix(host, device),
    )


def _device_fix(host: HostFacts, device: Device) -> str:
    if device.permissions is not None:
        if device.group in (None, "root"):
            return f"have an administrator allow it: setfacl -m u:$USER:rw {device.path}"
        return f"join its group: sudo usermod -aG {device.group} $USER, and log in again"
    if host.virtualization is not None:
        module = {"vmx": "kvm_intel", "svm": "kvm_amd"}[host.virtualization]
        return f"load the module: sudo modprobe {module}"
    if host.is_guest:
        return "this host is a VM itself: have its hypervisor offer nested virtualization"
    return "switch virtualization on in the firmware's setup"


def _kind(host: HostFacts) -> Finding:
    name = FLAVOURS.get(host.flavour or "", "unknown")
    if host.flavour == "pvm":
        name += ", which emulates the guest's ring 0"
    if host.flavour != "arm64":  # whose processors do not tell
        name += "; in a VM" if host.is_guest else "; on bare metal"
    return Finding("kind", "kind of KVM", "note", f"{name}; Linux {host.kernel}")


def _api(results: Results) -> Finding:
    version = results.get("api-version")
    if version == 12:
        return Finding("api", "API version", "ok", "12")
    return Finding(
        "api", "API version", "fail", str(version), "nothing can be relied on", _ELSEWHERE
    )


def _capabilities(results: Results) -> Finding:
    there = [
        name.removeprefix("KVM_CAP_")
        for name, value in results.items()
        if name.startswith("KVM_CAP_") and value
    ]
    mask = results.get("KVM_CAP_SET_GUEST_DEBUG2", 0)
    # Of what it tells, only x86 needs to know: arm64 refuses a bit that it does not know.
    wanted = "KVM_CAP_GUEST_DEBUG_HW_BPS" not in results
    state: State = "ok" if mask or not wanted else "limit"
    text = ", ".join(there)
    if isinstance(mask, int) and mask:
        text = text.replace("SET_GUEST_DEBUG2", f"SET_GUEST_DEBUG2 ({mask:#x})")
    if state == "ok":
        return Finding("capabilities", "capabilities", state, text)
    return Finding(
        "capabilities",
        "capabilities",
        state,
        text,
        "interrupts cannot be blocked while stepping",
        "run a kernel of Linux 5.15 or newer on the host",
    )


def _check(host: HostFacts, check: Check, results: Results) -> Finding:
    failed = failures(check, results)
    if not failed:
        return Finding(check.key, check.title, "ok", "works")
    outcomes = list(dict.fromkeys(failed.values()))
    if len(outcomes) == 1 and len(failed) == len(check.cases):
        found = outcomes[0]
    else:
        found = "; ".join(f"{case}: {outcome}" for case, outcome in failed.items())
    fix = check.fix or (_ELSEWHERE if host.flavour == "pvm" else _NEWER)
    state: State = "fail" if check.needed else "limit"
    return Finding(check.key, check.title, state, found, check.follows, fix)


def _speed(results: Results) -> Finding:
    speeds = {ring: results.get(f"{ring}-speed") for ring in ("kernel", "user")}
    kernel, user = speeds.values()
    if not isinstance(kernel, float | int) or not isinstance(user, float | int):
        return Finding(
            "speed", "speed", "limit", f"not measured: {kernel}; {user}", "it may be anything"
        )
    found = f"{kernel:.1f} ns per instruction in the kernel, {user:.1f} ns in user code"
    if max(kernel, user) < _EMULATED:
        return Finding("speed", "speed", "ok", f"native: {found}")
    return Finding(
        "speed",
        "speed",
        "limit",
        f"emulated: {found}",
        "a Linux kernel takes minutes to boot",
        _ELSEWHERE,
    )


def _tsc(results: Results) -> Finding:
    cycles, pause = results.get("tsc-cycles"), results.get("tsc-pause")
    if not isinstance(cycles, int) or not isinstance(pause, float):
        return Finding("tsc", "TSC over a pause", "note", f"not measured: {results.get('tsc')}")
    khz = results.get("tsc-khz")
    own = pause * khz * 1000 if isinstance(khz, int) else 0
    if cycles < own / 2:
        return Finding("tsc", "TSC over a pause", "note", "stands still")
    found = f"runs on: {cycles / 1e6:.1f} million cycles in {pause * 1000:.1f} ms"
    if results.get("tsc-moves"):
        found += "; can be moved back"
        follows = "kvmdbg's agent keeps it still while a VM is stopped"
    else:
        follows = "a guest whose clocksource is tsc sees the time that it was stopped"
    return Finding("tsc", "TSC over a pause", "note", found, follows)


def _nested(results: Results) -> Finding:
    offered = [kind for kind in ("vmx", "svm") if results.get(f"nested-{kind}")]
    text = f"guests may use {offered[0].upper()}" if offered else "not offered to guests"
    return Finding("nested", "nested virtualization", "note", text)


def _qemu(host: HostFacts) -> Finding:
    if host.qemu.trouble is None:
        return Finding("qemu", "QEMU", "ok", f"{host.qemu.version}, {host.qemu.program}")
    return Finding(
        "qemu",
        "QEMU",
        "fail",
        host.qemu.trouble,
        "no VM can be booted",
        f"install QEMU {'.'.join(map(str, MINIMUM_VERSION))} or newer: "
        f"apt-get install {'qemu-system-arm' if host.flavour == 'arm64' else 'qemu-system-x86'}",
    )


def _ptrace(host: HostFacts) -> Finding:
    scope = host.ptrace_scope
    text = "no Yama" if scope is None else f"Yama's ptrace_scope is {scope}"
    if host.may_ptrace:
        return Finding("ptrace", "ptrace", "ok", f"{text}; we have CAP_SYS_PTRACE")
    if not scope:
        return Finding("ptrace", "ptrace", "ok", f"{text}: allowed on our own processes")
    return Finding(
        "ptrace",
        "ptrace",
        "limit",
        text,
        "RAM of a QEMU that kvmdbg did not start is read slowly, through its stub",
        "sudo sysctl kernel.yama.ptrace_scope=0" if scope < 3 else "boot with another setting",
    )


def _security_modules(host: HostFacts) -> Finding:
    text = host.security_modules or "not to be seen (no securityfs)"
    return Finding("lsm", "security modules", "note", text)


def _agent(host: HostFacts) -> Finding:
    if host.agent_trouble is None:
        return Finding("agent", "agent.so", "ok", f"loads; ABI {host.agent_abi}")
    return Finding(
        "agent",
        "agent.so",
        "limit",
        host.agent_trouble,
        "QEMU could not load it either",
        "install kvmdbg again, for this machine's architecture and C library",
    )
