"""What kvmdbg boots a guest of each architecture on, where its definition does not say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Board:
    """One architecture's machine in QEMU's words; ``package`` is the Debian package of its QEMU."""

    package: str
    machine: str
    cpu: str
    console: str
    """The kernel's name for the first serial line."""
    devices: tuple[str, ...] = ("virtio-rng-pci", "pvpanic-pci")
    recordable: tuple[str, ...] = ()
    """Arguments that it takes besides, for its run to be recorded or replayed."""


BOARDS = {
    "x86_64": Board(
        "qemu-system-x86",
        machine="q35",
        cpu="max",
        console="ttyS0",
        # Loading a snapshot of that, QEMU (7.2 for one) waits for its vCPU, and that for QEMU.
        recordable=("-global", "apic-common.vapic=off"),
    ),
    "aarch64": Board(
        "qemu-system-arm",
        machine="virt,gic-version=3",
        # TCG takes two to five times as long with pauth, and gdb cannot read signed addresses.
        cpu="max,pauth=off",
        console="ttyAMA0",
    ),
}
"""By architecture, as :data:`kvmdbg.arch.ARCHITECTURES` names them."""
