"""What the cases of :mod:`kvmdbg.kvm.x86.cases` mean to somebody who wants to debug."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """Cases that together answer one question."""

    key: str
    title: str
    cases: tuple[str, ...]
    follows: str
    """What it means where they do not pass."""
    needed: str = ""
    """For what ``--accel auto`` insists on: "KVM here does not … in ring 0"."""
    fix: str = ""
    """What helps, where that is not another host."""


def checks_for(flavour: str | None) -> tuple[Check, ...]:
    """Those that a kind of KVM (a key of hostfacts.FLAVOURS) is measured by."""
    return ARM64_CHECKS if flavour == "arm64" else X86_CHECKS


def _registers(prefix: str) -> tuple[str, ...]:
    """The cases for each of four debug registers."""
    return tuple(f"{prefix}{index}" for index in range(4))


X86_CHECKS = (
    Check(
        "guests",
        "tiny guests",
        ("real-mode", "kernel-off", "user-off"),
        "VMs cannot be expected to run",
        needed="run tiny guests",
    ),
    Check(
        "int3",
        "int3 in ring 0",
        ("kernel-int3",),
        "a software breakpoint in the kernel kills the guest or goes unseen",
        needed="intercept int3",
    ),
    Check(
        "step",
        "single step in ring 0",
        ("kernel-step",),
        "stepi and next do not work in the kernel",
        needed="single-step",
    ),
    Check(
        "execute",
        "DR0-3 execute in ring 0",
        _registers("kernel-execute-dr"),
        "hbreak does not work in the kernel",
        needed="stop at hardware breakpoints",
    ),
    Check(
        "write",
        "DR0-3 write in ring 0",
        _registers("kernel-write-dr"),
        "watch does not work in the kernel",
        needed="stop at data watchpoints",
    ),
    Check(
        "blockirq",
        "step, interrupts blocked",
        ("kernel-irq", "kernel-step-blockirq"),
        "a step may land in an interrupt handler",
    ),
    Check(
        "general-detect",
        "DR7.GD",
        ("kernel-general-detect",),
        "a guest that uses debug registers itself is not noticed",
    ),
    Check(
        "disarm",
        "debugging switched off",
        ("kernel-disarmed",),
        "a guest that is no longer debugged may still stop",
    ),
    Check(
        "resume-flag",
        "RFLAGS.RF",
        ("kernel-resume-flag", "user-resume-flag"),
        "going on from a hardware breakpoint takes a step, with the others held",
    ),
    Check(
        "user-int3",
        "int3 in ring 3",
        ("user-int3",),
        "a software breakpoint in user code is the guest's own trap",
    ),
    Check(
        "user-step",
        "single step in ring 3",
        ("user-step",),
        "stepi and next do not work in user code",
    ),
    Check(
        "user-execute",
        "DR0-3 execute in ring 3",
        _registers("user-execute-dr"),
        "hbreak does not work in user code",
    ),
    Check(
        "user-write",
        "DR0-3 write in ring 3",
        _registers("user-write-dr"),
        "what user code writes is not watched",
    ),
    Check(
        "cmpxchg16b",
        "lock cmpxchg16b",
        ("kernel-cmpxchg16b", "user-cmpxchg16b"),
        "a guest that uses it dies of it",
        fix="do not offer it to guests: -cpu …,-cx16",
    ),
)

ARM64_CHECKS = (
    Check(
        "guests",
        "tiny guests",
        ("kernel-off", "user-off"),
        "VMs cannot be expected to run",
        needed="run tiny guests",
    ),
    Check(
        "brk",
        "BRK at EL1",
        ("kernel-brk",),
        "a software breakpoint in the kernel kills the guest or goes unseen",
        needed="intercept BRK",
    ),
    Check(
        "step",
        "single step at EL1",
        ("kernel-step",),
        "stepi and next do not work in the kernel",
        needed="single-step",
    ),
    Check(
        "execute",
        "hardware breakpoints at EL1",
        _registers("kernel-execute-"),
        "hbreak does not work in the kernel",
        needed="stop at hardware breakpoints",
    ),
    Check(
        "write",
        "write watchpoints at EL1",
        _registers("kernel-write-"),
        "watch does not work in the kernel",
        needed="stop at data watchpoints",
    ),
    Check(
        "disarm",
        "debugging switched off",
        ("kernel-disarmed",),
        "a guest that is no longer debugged may still stop",
    ),
    Check(
        "user-brk",
        "BRK at EL0",
        ("user-brk",),
        "a software breakpoint in user code is the guest's own trap",
    ),
    Check(
        "user-step",
        "single step at EL0",
        ("user-step",),
        "stepi and next do not work in user code",
    ),
    Check(
        "user-execute",
        "hardware breakpoints at EL0",
        _registers("user-execute-"),
        "hbreak does not work in user code",
    ),
    Check(
        "user-write",
        "write watchpoints at EL0",
        _registers("user-write-"),
        "what user code writes is not watched",
    ),
)
