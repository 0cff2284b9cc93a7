"""What x86 brings to be probed with."""

from __future__ import annotations

import time
from functools import partial

from kvmdbg.errors import IoctlError
from kvmdbg.kvm.exits import Io
from kvmdbg.kvm.local import LocalVm
from kvmdbg.kvm.suite import Results, Suite
from kvmdbg.kvm.transport import Transport
from kvmdbg.kvm.x86.cases import CASES, KERNEL, USER
from kvmdbg.kvm.x86.guest import DONE_PORT, Guest, create_vm, load
from kvmdbg.kvm.x86.registers import (
    get_supported_cpuid,
    get_tsc_khz,
    get_tsc_offset,
    set_tsc_offset,
)

_PAUSE = 0.005  # seconds
_MOVE = 1 << 30  # cycles: more than go by in a pause, less than half of what the guest shows


def _load_loop(guest: Guest, vm: Transport, turns: int) -> None:
    load(vm, guest, "loop", rcx=turns)


def _measure(vm: LocalVm) -> Results:
    cpuid = {entry.function: entry for entry in vm.call(get_supported_cpuid())}
    return {
        "nested-vmx": cpuid[1].ecx >> 5 & 1,
        "nested-svm": cpuid[0x8000_0001].ecx >> 2 & 1 if 0x8000_0001 in cpuid else 0,
        "tsc-khz": vm.call(get_tsc_khz()),
        **_tsc(vm),
    }


def _tsc(vm: LocalVm) -> Results:
    """How far the guest's TSC went while its vCPU did not run, and whether it can be moved back."""
    load(vm, KERNEL, "rdtsc")
    readings, times = [], []
    for turn in range(3):
        if turn == 2 and not _move_tsc(vm, -_MOVE):
            break
        exit = vm.run()
        times.append(time.perf_counter())
        if not isinstance(exit, Io) or exit.port != DONE_PORT:
            return {"tsc": str(exit)}
        readings.append(int.from_bytes(exit.data, "little"))
        time.sleep(_PAUSE)
    return {
        "tsc-pause": round(times[1] - times[0], 6),
        "tsc-cycles": (readings[1] - readings[0]) % 2**32,
        "tsc-moves": int(len(readings) == 3 and (readings[2] - readings[1]) % 2**32 > 2**31),
    }


def _move_tsc(vm: LocalVm, cycles: int) -> bool:
    """False if KVM does not do that; some say that they do, and do not."""
    try:
        vm.call(set_tsc_offset(vm.call(get_tsc_offset()) + cycles))
    except IoctlError:
        return False
    return True


SUITE = Suite(
    cases=CASES,
    create_vm=create_vm,
    capabilities=(
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
    ),
    load_loop={"kernel": partial(_load_loop, KERNEL), "user": partial(_load_loop, USER)},
    measure=_measure,
)
