"""Which accelerator runs a VM, and which engine debugs it.

KVMs differ in how well they stop a guest, so ``auto`` takes KVM only where doctor has seen it work.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvmdbg.backend.agent import Abilities
from kvmdbg.errors import AcceleratorError
from kvmdbg.machine.boards import BOARDS
from kvmdbg.machine.verdict import Verdict, kvm_verdict

ASKED_FOR = "asked for"

AGENT, STUB = "agent-kvm", "stub"
"""Engines, by :attr:`kvmdbg.target.capabilities.Engine.name`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An accelerator or engine, and half a sentence that says why."""

    name: str
    reason: str
    processor: tuple[str, ...] = ()
    """For an accelerator: the QEMU arguments that it takes."""


def choose_accelerator(
    wanted: str,
    arch: str,
    ask_doctor: Callable[[], Verdict] = kvm_verdict,
    host: str = platform.machine(),
) -> Choice:
    """``auto``, ``kvm`` or ``tcg`` to what is used; ``auto`` and ``kvm`` may take half a second.

    ``host`` is the architecture of this machine. Raises AcceleratorError where KVM was asked for
    and there is none; one with defects is used then.
    """
    if wanted != "tcg" and arch != host:
        reason = f"KVM runs no {arch} guest on an {host} host"
        if wanted == "kvm":
            raise AcceleratorError(f"{reason}: use --accel tcg, or auto, which picks it")
        return Choice("tcg", reason, _tcg(arch))
    if wanted == "tcg":
        return Choice("tcg", ASKED_FOR, _tcg(arch))
    verdict = ask_doctor()
    if verdict.kvm:
        return Choice("kvm", verdict.reason if wanted == "auto" else ASKED_FOR, _kvm(verdict))
    if wanted == "auto":
        return Choice("tcg", verdict.reason, _tcg(arch))
    if "guests" not in verdict.works:
        raise AcceleratorError(
            f"--accel kvm cannot be had: {verdict.reason}: use --accel tcg, or auto, which picks it"
        )
    return Choice("kvm", f"{ASKED_FOR}, but {verdict.reason}", _kvm(verdict))


def _tcg(arch: str) -> tuple[str, ...]:
    return ("-accel", "tcg,thread=multi", "-cpu", BOARDS[arch].cpu)


def recordable(choice: Choice) -> tuple[str, ...]:
    """The arguments of TCG, for a run that is recorded: one vCPU runs at a time."""
    return tuple(
        "tcg,thread=single" if word.startswith("tcg") else word for word in choice.processor
    )


def _kvm(verdict: Verdict) -> tuple[str, ...]:
    """A feature on which guests would die is not offered to them."""
    without = "" if "cmpxchg16b" in verdict.works or platform.machine() != "x86_64" else ",-cx16"
    return ("-accel", "kvm", "-cpu", f"host{without}")


def choose_engine(wanted: str, accel: str) -> Choice:
    """``auto``, ``stub`` or ``agent`` to what is used. Raises AcceleratorError."""
    if accel == "kvm":
        return Choice(STUB if wanted == "stub" else AGENT, ASKED_FOR if wanted != "auto" else "")
    if wanted == "agent":
        raise AcceleratorError(
            f"--engine agent debugs VMs under KVM, and this one runs under {accel}: "
            "use --engine stub, or auto, which picks it"
        )
    return Choice(STUB, ASKED_FOR if wanted == "stub" else "")


def abilities(verdict: Verdict) -> Abilities:
    """What the agent engine may count on."""
    return Abilities(
        kernel_int3="int3" in verdict.works or "brk" in verdict.works,
        user_int3="user-int3" in verdict.works or "user-brk" in verdict.works,
        kernel_watch="write" in verdict.works,
        resume_flag="resume-flag" in verdict.works,
    )


def without_host_cpu(arguments: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """QEMU arguments with ``-cpu host`` made ``-cpu max``, as TCG wants it; was there one?"""
    changed = list(arguments)
    for at in range(1, len(changed)):
        model, comma, properties = changed[at].partition(",")
        if changed[at - 1] in ("-cpu", "--cpu") and model == "host":
            changed[at] = f"max{comma}{properties}"
    return tuple(changed), changed != list(arguments)
