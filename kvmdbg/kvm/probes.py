"""What this host's KVM really does, found out by running tiny guests on it.

Facts only: what follows from them is for others to say. A probe may hang inside KVM, or even kill
its process; whoever calls has to be ready for both.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from kvmdbg.errors import IoctlError, KvmUnsupported
from kvmdbg.kvm.arm64.suite import SUITE as ARM64
from kvmdbg.kvm.local import LocalKvm, LocalVm
from kvmdbg.kvm.suite import PASS, Case, Results
from kvmdbg.kvm.system import check_extension, get_api_version
from kvmdbg.kvm.x86.suite import SUITE as X86

SUITE = ARM64 if platform.machine() == "aarch64" else X86
"""That of this host."""

PROBES = (
    "basics",
    *(case.name for case in SUITE.cases),
    *(f"{privilege}-speed" for privilege in SUITE.load_loop),
    "measurements",
)
"""Names of the probes, in the order in which they want to run."""

_INSTRUCTIONS_PER_TURN = 2
_LOOPS = 1_000, 10_000, 1_000_000, 10_000_000  # turns; the last takes a processor 5 ms
_ENOUGH = 0.001  # seconds, to be measured well; entry and exit vary, too


class Prober:
    """Runs probes, one by one, on VMs of this process; a context manager."""

    def __init__(self, kvm: LocalKvm) -> None:
        self._kvm = kvm
        self._vm: LocalVm | None = None
        self._probes: dict[str, Callable[[], Results]] = {
            "basics": self._basics,
            **{case.name: partial(self._case, case) for case in SUITE.cases},
            **{
                f"{privilege}-speed": partial(self._speed, privilege)
                for privilege in SUITE.load_loop
            },
            "measurements": lambda: SUITE.measure(self._any()),
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
        for capability in SUITE.capabilities:
            found[capability] = self._kvm.call(check_extension(capability))
        return found

    def _case(self, case: Case) -> Results:
        vm = self._fresh() if case.leaves_traces else self._any()
        outcome = case.run(vm)
        if outcome != PASS or case.leaves_traces:
            self._drop()
        return {case.name: outcome}

    def _speed(self, privilege: str) -> Results:
        """Nanoseconds per instruction of a loop, what entry and exit take left out."""
        vm = self._any()
        first, *longer = _LOOPS
        base = min(self._loop(vm, privilege, first) for _ in range(2))  # the first one warms up
        nanoseconds = 0.0
        for turns in longer:
            seconds = self._loop(vm, privilege, turns) - base
            nanoseconds = seconds * 1e9 / (turns - first) / _INSTRUCTIONS_PER_TURN
            if seconds > max(_ENOUGH, 4 * base):
                break
        return {f"{privilege}-speed": max(0.0, round(nanoseconds, 3))}

    def _loop(self, vm: LocalVm, privilege: str, turns: int) -> float:
        """Seconds that a guest takes for a loop, exit included."""
        SUITE.load_loop[privilege](vm, turns)
        began = time.perf_counter()
        vm.run()
        return time.perf_counter() - began

    def _any(self) -> LocalVm:
        """Making a VM takes longer than running it: one serves as long as nothing odd happens."""
        return self._vm or self._fresh()

    def _fresh(self) -> LocalVm:
        self._drop()
        self._vm = SUITE.create_vm(self._kvm)
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
