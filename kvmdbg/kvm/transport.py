"""Who executes ioctls: what the local transport and an agent inside QEMU have in common."""

from __future__ import annotations

from typing import Protocol, TypeVar

from kvmdbg.kvm.exits import Exit
from kvmdbg.kvm.ioctl import Ioctl

T = TypeVar("T")


class Transport(Protocol):
    """One VM. KVM takes an ioctl only from the process that made the VM (EIO otherwise)."""

    def call(self, ioctl: Ioctl[T], vcpu: int = 0) -> T:
        """Execute it on /dev/kvm, the VM or a vCPU, as its scope says. Raises IoctlError."""

    def run(self, vcpu: int = 0) -> Exit:
        """Let the vCPU run until it exits to user space. Raises IoctlError."""

    def finish(self, vcpu: int = 0) -> None:
        """Let KVM complete the last exit's I/O, without entering the guest. Raises IoctlError."""

    def read(self, gpa: int, length: int) -> bytes:
        """Guest memory, in bytes. Raises MemoryFault where there is none."""

    def write(self, gpa: int, data: bytes) -> None:
        """Change guest memory. Raises MemoryFault where there is none."""
