"""Registers through the stub; debug registers and descriptor tables through the monitor."""

from __future__ import annotations

from collections.abc import Mapping

from kvmdbg.addr import VcpuIndex
from kvmdbg.arch import Architecture
from kvmdbg.backend import hmp
from kvmdbg.backend.stub.connection import StubConnection, describe
from kvmdbg.backend.stub.layout import Slot, included, parse_layout, resized
from kvmdbg.backend.stub.threads import Threads
from kvmdbg.backend.values import checked_register, register_of
from kvmdbg.errors import RegisterError, RemoteProtocolError
from kvmdbg.rsp.client import requests
from kvmdbg.rsp.octets import from_hex
from kvmdbg.target.capabilities import MonitorQuery

_PART = 0xF00
"""Bytes of the target description asked for at once; QEMU's packets end at 4 KiB."""


class StubRegisters:
    """Implements :class:`kvmdbg.target.capabilities.Registers`; remembers until told to forget."""

    def __init__(
        self,
        connection: StubConnection,
        arch: Architecture,
        threads: Threads,
        monitor: MonitorQuery,
        layout: dict[str, Slot],
    ) -> None:
        self._connection = connection
        self._arch = arch
        self._threads = threads
        self._monitor = monitor
        self._slots = [layout.get(register.name) for register in arch.registers]
        self._blocks: dict[VcpuIndex, list[bytes | None]] = {}
        self._system: dict[VcpuIndex, dict[str, int]] = {}

    def forget(self) -> None:
        """The guest ran, or its state was changed behind our back."""
        self._blocks.clear()
        self._system.clear()

    async def read_block(self, vcpu: VcpuIndex) -> list[bytes | None]:
        """See the capability."""
        if vcpu not in self._blocks:
            await self._threads.select(vcpu)
            reply = await self._connection.request(requests.READ_REGISTERS)
            try:
                data = from_hex(reply)
            except RemoteProtocolError as error:
                raise RegisterError(
                    f"the registers of vCPU {vcpu} cannot be read: {describe(reply)}"
                ) from error
            self._blocks[vcpu] = [
                slot.cut(data, register.size) if slot else None
                for register, slot in zip(self._arch.block, self._slots, strict=False)
            ]
        return list(self._blocks[vcpu])

    async def read_register(self, vcpu: VcpuIndex, number: int) -> bytes | None:
        """See the capability."""
        register = register_of(self._arch, number)
        if number < len(self._arch.block):
            return (await self.read_block(vcpu))[number]
        if vcpu not in self._system:
            self._system[vcpu] = await hmp.system_registers(self._monitor, vcpu)
        value = self._system[vcpu].get(register.name)
        return None if value is None else value.to_bytes(register.size, "little")

    async def value(self, vcpu: VcpuIndex, name: str) -> int | None:
        """A register as a number, by name."""
        data = await self.read_register(vcpu, self._arch.numbers[name])
        return None if data is None else int.from_bytes(data, "little")

    async def write_registers(self, vcpu: VcpuIndex, values: Mapping[int, bytes]) -> None:
        """See the capability. The stub accepts writes that it ignores; those are errors here."""
        before = await self.read_block(vcpu)
        changes = {n: v for n, v in values.items() if n >= len(before) or before[n] != v}
        for number, value in changes.items():
            self._check(number, value)
        try:
            for number, value in changes.items():
                await self._write(vcpu, number, value)
        finally:
            self.forget()
        after = await self.read_block(vcpu)
        ignored = [self._arch.registers[n].name for n in changes if after[n] == before[n]]
        if ignored:
            raise RegisterError(f"QEMU's gdbstub ignores what is written to {', '.join(ignored)}")

    def _check(self, number: int, value: bytes) -> None:
        register = checked_register(self._arch, number, value)
        if number >= len(self._arch.block) or self._slots[number] is None:
            raise RegisterError(f"QEMU's gdbstub cannot write {register.name}")

    async def _write(self, vcpu: VcpuIndex, number: int, value: bytes) -> None:
        slot = self._slots[number]
        assert slot is not None, "checked"
        await self._threads.select(vcpu)
        reply = await self._connection.request(
            requests.write_register(slot.number, resized(value, slot.size))
        )
        if reply != b"OK":
            name = self._arch.registers[number].name
            raise RegisterError(f"register {name} cannot be written: {describe(reply)}")


async def fetch_layout(connection: StubConnection) -> dict[str, Slot]:
    """The stub's registers. QEMU's stub has no p and P until this was asked for."""
    documents: dict[str, str] = {}
    wanted = ["target.xml"]
    while wanted:
        name = wanted.pop(0)
        if name not in documents:
            documents[name] = await _fetch(connection, name)
            wanted += included(documents[name])
    return parse_layout(documents)


async def _fetch(connection: StubConnection, annex: str) -> str:
    data = b""
    last = False
    while not last:
        reply = await connection.request(requests.read_features(annex, len(data), _PART))
        part, last = requests.parse_object_part(reply)
        data += part
    return data.decode()
