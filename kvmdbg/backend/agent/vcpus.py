"""vCPUs by our index and by KVM's number."""

from __future__ import annotations

from collections.abc import Iterable

from kvmdbg.addr import VcpuIndex
from kvmdbg.wire.structs import Vcpu


class Vcpus:
    """QEMU gives KVM the APIC ids of x86 vCPUs, which may leave gaps; their order is QEMU's."""

    def __init__(self, vcpus: Iterable[Vcpu]) -> None:
        self._numbers = sorted(vcpu.index for vcpu in vcpus)
        self._indices = {number: VcpuIndex(at) for at, number in enumerate(self._numbers)}
        self.indices = tuple(self._indices.values())
        """All, ascending."""

    def number(self, vcpu: VcpuIndex) -> int:
        """KVM's number."""
        return self._numbers[vcpu]

    def index(self, number: int) -> VcpuIndex:
        """Ours."""
        return self._indices[number]
