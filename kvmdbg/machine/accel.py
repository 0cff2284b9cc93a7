"""Which accelerator runs a VM, and which engine debugs it.

KVMs differ in how well they stop a guest, so ``auto`` would take KVM only where doctor has seen it
work. There is no engine for it yet, so it is TCG everywhere, for one of two reasons.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvmdbg.errors import AcceleratorError
from kvmdbg.machine.verdict import Verdict, kvm_verdict


@dataclass(frozen=True, slots=True)
class Choice:
    """An accelerator or engine, and half a sentence that says why."""

    name: str
    reason: str


def choose_accelerator(
    wanted: str, arch: str, ask_doctor: Callable[[], Verdict] = kvm_verdict
) -> Choice:
    """``auto``, ``kvm`` or ``tcg`` to what is used for a guest; ``auto`` may take half a second.

    Raises AcceleratorError.
    """
    host = platform.machine()
    if wanted != "tcg" and arch != host:
        reason = f"KVM runs no {arch} guest on an {host} host"
        if wanted == "kvm":
            raise AcceleratorError(f"{reason}: use --accel tcg, or auto, which picks it")
        return Choice("tcg", reason)
    if wanted == "kvm":
        raise AcceleratorError(
            "kvmdbg cannot debug under KVM yet: use --accel tcg, or auto, which picks it"
        )
    if wanted == "tcg":
        return Choice("tcg", "asked for")
    verdict = ask_doctor()
    if verdict.kvm:
        return Choice("tcg", f"{verdict.reason}, but this version has no engine for it yet")
    return Choice("tcg", verdict.reason)


def choose_engine(wanted: str) -> Choice:
    """``auto``, ``stub`` or ``agent`` to what is used. Raises AcceleratorError."""
    if wanted == "agent":
        raise AcceleratorError("there is no agent engine yet: use --engine stub, or auto")
    return Choice("stub", "asked for" if wanted == "stub" else "the only engine so far")


def without_host_cpu(arguments: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """QEMU arguments with ``-cpu host`` made ``-cpu max``, as TCG wants it; was there one?"""
    changed = list(arguments)
    for at in range(1, len(changed)):
        model, comma, properties = changed[at].partition(",")
        if changed[at - 1] in ("-cpu", "--cpu") and model == "host":
            changed[at] = f"max{comma}{properties}"
    return tuple(changed), changed != list(arguments)
