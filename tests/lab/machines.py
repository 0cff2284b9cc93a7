"""The L1 machines: what the outer QEMU emulates, and what is in them, as data."""

from __future__ import annotations

from dataclasses import dataclass

HOST_PACKAGES = ("qemu-system-x86", "qemu-system-arm", "python3", "e2fsprogs")
"""What runs on this machine: the outer QEMU, and tools that must not differ between machines."""

MEMORY_MIB = 2048
CPUS = 2

_COMMON_PACKAGES = (
    *("bash", "busybox-static", "coreutils", "diffutils", "findutils", "grep", "mawk", "procps"),
    *("sed", "tar", "python3", "libpython3.11-dev", "gdb", "gcc", "libc6-dev", "ninja-build"),
)
# In the order of loading; those that the kernel has built in are skipped.
_COMMON_MODULES = (
    *("virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("virtio_blk", "virtio_console", "overlay"),
    # Who listens on a socket, and whose a connection is: kvmdbg asks.
    *("inet_diag", "tcp_diag", "unix_diag"),
)


@dataclass(frozen=True)
class L1Machine:
    """One architecture's L1."""

    arch: str
    emulator: str
    arguments: tuple[str, ...]  # of the emulator
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    console: str
    l2: tuple[str, ...]  # the QEMU of an L2, which runs in L1
    append: str = ""  # to the kernel's command line
    patched: bool = False  # the emulator needs the fixes of outer.py
    cpus: int = CPUS  # online, unless more are asked for


X86_64 = L1Machine(
    arch="x86_64",
    emulator="qemu-system-x86_64",
    arguments=("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt"),
    packages=(*_COMMON_PACKAGES, "linux-image-cloud-amd64", "qemu-system-x86"),
    modules=(*_COMMON_MODULES, "irqbypass", "kvm", "kvm-amd"),
    console="ttyS0",
    l2=("qemu-system-x86_64",),
    patched=True,
    # The outer QEMU's threads race in its SVM: an L2 of two vCPUs is reset, or L1 dies. On one
    # CPU they take turns, and that is hardly slower.
    cpus=1,
)

AARCH64 = L1Machine(
    arch="aarch64",
    emulator="qemu-system-aarch64",
    arguments=(
        *("-machine", "virt,virtualization=on,gic-version=3", "-accel", "tcg,thread=multi"),
        *("-cpu", "max,sve=off,pauth=off"),
    ),
    packages=(*_COMMON_PACKAGES, "linux-image-cloud-arm64", "qemu-system-arm"),
    modules=_COMMON_MODULES,  # KVM is built in
    # A kernel that stays at EL2 (VHE) uses a timer that QEMU does not save: L1 would be restored
    # with a clock that never ticks.
    append="kvm-arm.mode=nvhe",
    console="ttyAMA0",
    l2=("qemu-system-aarch64", "-machine", "virt,gic-version=3"),
)

MACHINES = {machine.arch: machine for machine in (X86_64, AARCH64)}
