"""Which accelerator runs a VM, and which engine debugs it.

Real KVM can stop a guest in ways that differ between hosts, so ``auto`` takes KVM only where that
has been verified; nothing verifies it yet, so it is TCG everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvmdbg.errors import AcceleratorError

KVM_DEVICE = Path("/dev/kvm")


@dataclass(frozen=True, slots=True)
class Choice:
    """An accelerator or engine, and half a sentence that says why."""

    name: str
    reason: str


def choose_accelerator(wanted: str) -> Choice:
    """``auto``, ``kvm`` or ``tcg`` to what is used. Raises AcceleratorError."""
    if wanted == "kvm":
        raise AcceleratorError(
            "kvmdbg cannot debug under KVM yet: use --accel tcg, or auto, which picks it"
        )
    if wanted == "tcg":
        return Choice("tcg", "asked for")
    return Choice("tcg", _why_not_kvm())


def _why_not_kvm() -> str:
    if not KVM_DEVICE.exists():
        return f"there is no {KVM_DEVICE}"
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return f"{KVM_DEVICE} exists, but we may not open it"
    return f"{KVM_DEVICE} exists, but kvmdbg cannot verify yet that it debugs correctly"


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
