"""What this host's KVM really does, found out by running tiny guests on it.

Facts only: what follows from them is for others to say. A probe may hang inside KVM, or even kill
its process; whoever calls has to be ready for both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from kvmdbg.errors import IoctlError, KvmUnsupported
from kvmdbg.kvm.cases import CASES, KERNEL, PASS, USER, Case
from kvmdbg.kvm.debug import supported_control
from kvmdbg.kvm.exits import Io
from kvmdbg.kvm.guest import DONE_PORT, Guest, create_vm, load
from kvmdbg.kvm.local import LocalKvm, LocalVm
from kvmdbg.kvm.registers import get_supported_cpuid, get_tsc_khz
from kvmdbg.kvm.system import check_extension, get_api_version

Results = dict[str, str | int | float]
"""Case or fact → outcome or value."""

CAPABILITIES = (
    "KVM_CAP_SET_GUEST_DEBUG",
    "KVM_CAP_SET_GUEST_DEBUG2",
    "KVM_CAP_SYNC_REGS",
    "KVM_CAP_IMMEDIATE_EXIT",
    "KVM_CAP_DEBUGREGS",
    "KVM_CAP_VCPU_EVENTS",
    "KVM_CAP_XSAVE",
    "KVM_CAP_TSC_CONTROL",
    "KVM_CAP_TSC_DEADLINE_TIMER",
    "KVM_CAP_NESTED_STATE",
    "KVM_CAP_MAX_VCPUS",
    "KVM_CAP_NR_MEMSLOTS",
)

_PAUSE = 0.005  # seconds
_INSTRUCTIONS_PER_TURN = 2
_LOOPS = 1_000, 10_000, 1_000_000  # turns; the last takes a processor half a millisecond
_ENOUGH = 0.001  # seconds, to be measured well


PROBES = ("basics", *(case.name for case in CASES), "kernel-speed", "user-speed", "tsc")
"""Names of the probes, in the order in which they want to run."""


class Prober:
    """Runs probes, one by one, on VMs of this process; a context manager."""

    def __init__(self, kvm: LocalKvm) -> None:
        self._kvm = kvm
        self._vm: LocalVm | None = None
        self._probes: dict[str, Callable[[], Results]] = {
            "basics": self._basics,
            **{case.name: partial(self._case, case) for case in CASES},
            "kernel-speed": partial(self._speed, "kernel-speed", KERNEL),
            "user-speed": partial(self._speed, "user-speed", USER),
            "tsc": self._tsc,
        }

    def probe(self, name: str) -> Results:
        """Run one of PROBES. An ioctl that fails is an outcome, too."""
        try:
            return self._probes[name]()
        except (IoctlError, KvmUnsupported) as error:
            self._drop()
            return {name: str(error)}

    def _basics(self) -> Results:
        found: Results = {"api-version": self._kvm.call(get_api_version())}
        for capability in CAPABILITIES:
            found[capability] = self._kvm.call(check_extension(capability))
        cpuid = {entry.function: entry for entry in self._kvm.call(get_supported_cpuid())}
        found["nested-vmx"] = cpuid[1].ecx >> 5 & 1
        found["nested-svm"] = cpuid[0x8000_0001].ecx >> 2 & 1 if 0x8000_0001 in cpuid else 0
        found["tsc-khz"] = self._fresh().call(get_tsc_khz())
        return found

    def _case(self, case: Case) -> Results:
        supported = supported_control(
            *(self._kvm.call(check_extension(name)) for name in CAPABILITIES[:2])
        )
        # Making a VM takes longer than running it, so one serves as long as nothing odd happens.
        vm = self._fresh() if case.irq_pending or self._vm is None else self._vm
        outcome = case.run(vm, supported)
        if outcome != PASS or case.irq_pending:
            self._drop()
        return {case.name: outcome}

    def _speed(self, name: str, guest: Guest) -> Results:
        """Nanoseconds per instruction of a loop, what entry and exit take left out."""
        vm = self._fresh()
        first, *longer = _LOOPS
        base = self._loop(vm, guest, first)
        nanoseconds = 0.0
        for turns in longer:
            seconds = self._loop(vm, guest, turns) - base
            nanoseconds = seconds * 1e9 / (turns - first) / _INSTRUCTIONS_PER_TURN
            if seconds > _ENOUGH:
                break
        return {name: round(nanoseconds, 3)}

    def _loop(self, vm: LocalVm, guest: Guest, turns: int) -> float:
        """Seconds that the guest takes for a loop, exit included."""
        load(vm, guest, "loop", rcx=turns)
        began = time.perf_counter()
        vm.run()
        return time.perf_counter() - began

    def _tsc(self) -> Results:
        """How far the guest's TSC went while its vCPU did not run."""
        vm = self._fresh()
        load(vm, KERNEL, "rdtsc")
        readings, times = [], []
        for _ in range(2):
            exit = vm.run()
            times.append(time.perf_counter())
            if not isinstance(exit, Io) or exit.port != DONE_PORT:
                return {"tsc": str(exit)}
            readings.append(int.from_bytes(exit.data, "little"))
            time.sleep(_PAUSE)
        return {
            "tsc-pause": round(times[1] - times[0], 6),
            "tsc-cycles": (readings[1] - readings[0]) % 2**32,
        }

    def _fresh(self) -> LocalVm:
        self._drop()
        self._vm = create_vm(self._kvm)
        return self._vm

    def _drop(self) -> None:
        if self._vm is not None:
            self._vm.close()
            self._vm = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drop()
