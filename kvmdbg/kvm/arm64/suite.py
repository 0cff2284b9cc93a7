"""What arm64 brings to be probed with."""

from __future__ import annotations

from functools import partial

from kvmdbg.kvm.arm64.cases import CASES, KERNEL, USER
from kvmdbg.kvm.arm64.guest import Guest, create_vm, load
from kvmdbg.kvm.local import LocalVm
from kvmdbg.kvm.suite import Results, Suite
from kvmdbg.kvm.transport import Transport


def _load_loop(guest: Guest, vm: Transport, turns: int) -> None:
    load(vm, guest, "loop", turns=turns)


def _measure(vm: LocalVm) -> Results:
    """Nothing: the virtual counter runs on over a pause, by architecture."""
    return {}


SUITE = Suite(
    cases=CASES,
    create_vm=create_vm,
    capabilities=(
        "KVM_CAP_SET_GUEST_DEBUG",
        "KVM_CAP_SET_GUEST_DEBUG2",
        "KVM_CAP_GUEST_DEBUG_HW_BPS",
        "KVM_CAP_GUEST_DEBUG_HW_WPS",
        "KVM_CAP_IMMEDIATE_EXIT",
        "KVM_CAP_MAX_VCPUS",
        "KVM_CAP_NR_MEMSLOTS",
    ),
    load_loop={"kernel": partial(_load_loop, KERNEL), "user": partial(_load_loop, USER)},
    measure=_measure,
)
