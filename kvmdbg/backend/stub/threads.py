"""vCPUs as the stub's threads."""

from __future__ import annotations

from collections.abc import Sequence

from kvmdbg.addr import VcpuIndex, vcpu_of
from kvmdbg.backend.stub.connection import StubConnection
from kvmdbg.errors import RemoteProtocolError
from kvmdbg.rsp.client import requests
from kvmdbg.rsp.threadid import ThreadSpec


class Threads:
    """The stub's threads, and which of them registers and memory are asked of."""

    def __init__(self, connection: StubConnection, specs: Sequence[ThreadSpec]) -> None:
        self._connection = connection
        self._specs = {vcpu_of(spec.tid): spec for spec in specs}
        self._selected: VcpuIndex | None = None

    @classmethod
    async def find(cls, connection: StubConnection) -> Threads:
        """Ask the stub."""
        specs: list[ThreadSpec] = []
        query = requests.FIRST_THREADS
        while part := requests.parse_threads(await connection.request(query)):
            specs += part
            query = requests.NEXT_THREADS
        if not specs:
            raise RemoteProtocolError("QEMU's gdbstub has no threads")
        return cls(connection, specs)

    @property
    def vcpus(self) -> tuple[VcpuIndex, ...]:
        """The vCPUs, ascending."""
        return tuple(sorted(self._specs))

    def spec(self, vcpu: VcpuIndex) -> ThreadSpec:
        """The stub's name for ``vcpu``."""
        return self._specs[vcpu]

    def vcpu(self, spec: ThreadSpec | None) -> VcpuIndex:
        """The vCPU that a stop reply names; the first where it names none."""
        return vcpu_of(spec.tid) if spec is not None and spec.is_one else self.vcpus[0]

    async def select(self, vcpu: VcpuIndex) -> None:
        """The next requests are about ``vcpu``."""
        if self._selected != vcpu:
            self._selected = None
            await self._connection.checked(requests.select_thread(self._specs[vcpu]))
            self._selected = vcpu

    def stopped_by(self, vcpu: VcpuIndex | None) -> None:
        """QEMU has selected the vCPU whose breakpoint or step stopped the VM; None: nobody knows
        which."""
        self._selected = vcpu
