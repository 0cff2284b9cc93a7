"""Registers through the stub; those that it does not have, through the monitor."""

from __future__ import annotations

from collections.abc import Mapping

from kvmdbg.addr import VcpuIndex
from kvmdbg.arch import Architecture, Register
from kvmdbg.backend import hmp
from kvmdbg.backend.stub.connection import StubConnection, describe
from kvmdbg.backend.stub.layout import Cutter, Slot, included, parse_layout, resized
from kvmdbg.backend.stub.threads import Threads
from kvmdbg.backend.values import checked_register, register_of
from kvmdbg.errors import RegisterError, RemoteProtocolError
from kvmdbg.rsp.client import requests
from kvmdbg.rsp.client.requests import error_number
from kvmdbg.rsp.octets import from_hex
from kvmdbg.target.capabilities import MonitorQuery

_PART = 0xF00
"""Bytes of the target description asked for at once; QEMU's packets end at 4 KiB."""


_QUAD = 16
"""Bytes of the widest register that is no SVE register; of those we write the first as many."""


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
        self._slots = [
            next((layout[name] for name in register.names if name in layout), None)
            for register in arch.registers
        ]
        sizes = [register.size for register in arch.block]
        self._cutter = Cutter(list(zip(self._slots, sizes, strict=False)))
        self._blocks: dict[VcpuIndex, list[bytes | None]] = {}
        self._single: dict[tuple[VcpuIndex, int], bytes | None] = {}
        self._system: dict[VcpuIndex, dict[str, int]] = {}

    def forget(self) -> None:
        """The guest ran, or its state was changed behind our back."""
        self._blocks.clear()
        self._single.clear()
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
            self._blocks[vcpu] = self._cutter.cut(data)
        return list(self._blocks[vcpu])

    async def read_register(self, vcpu: VcpuIndex, number: int) -> bytes | None:
        """See the capability."""
        register = register_of(self._arch, number)
        if number < len(self._arch.block):
            return (await self.read_block(vcpu))[number]
        if (vcpu, number) not in self._single:
            slot, register = self._slots[number], self._arch.registers[number]
            read = self._ask(vcpu, slot, register) if slot else self._ask_monitor(vcpu, register)
            self._single[vcpu, number] = await read
        return self._single[vcpu, number]

    async def _ask(self, vcpu: VcpuIndex, slot: Slot, register: Register) -> bytes | None:
        await self._threads.select(vcpu)
        reply = await self._connection.request(requests.read_register(slot.number))
        if not reply or error_number(reply) is not None:
            return None
        return resized(from_hex(reply), register.size)

    async def _ask_monitor(self, vcpu: VcpuIndex, register: Register) -> bytes | None:
        if register.name not in hmp.SYSTEM_REGISTERS:
            return None
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
        before = {number: await self.read_register(vcpu, number) for number in values}
        changes = {number: value for number, value in values.items() if before[number] != value}
        for number, value in changes.items():
            self._check(number, value)
        try:
            for number, value in changes.items():
                await self._write(vcpu, number, value)
        finally:
            self.forget()
        ignored = [
            self._arch.registers[number].name
            for number in changes
            if await self.read_register(vcpu, number) == before[number]
        ]
        if ignored:
            raise RegisterError(f"QEMU's gdbstub ignores what is written to {', '.join(ignored)}")

    def _check(self, number: int, value: bytes) -> None:
        register = checked_register(self._arch, number, value)
        if self._slots[number] is None:
            raise RegisterError(f"QEMU's gdbstub cannot write {register.name}")

    async def _write(self, vcpu: VcpuIndex, number: int, value: bytes) -> None:
        slot, register = self._slots[number], self._arch.registers[number]
        assert slot is not None, "checked"
        await self._threads.select(vcpu)
        await self._put(register, slot, resized(value, slot.size))
        if slot.size > _QUAD and await self._ask(vcpu, slot, register) != value:
            # QEMU before 10.1 takes the halves of SVE's quadwords in the wrong order.
            swapped = value[_QUAD // 2 :] + value[: _QUAD // 2]
            await self._put(register, slot, resized(swapped, slot.size))

    async def _put(self, register: Register, slot: Slot, data: bytes) -> None:
        reply = await self._connection.request(requests.write_register(slot.number, data))
        if reply != b"OK":
            raise RegisterError(f"register {register.name} cannot be written: {describe(reply)}")


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
