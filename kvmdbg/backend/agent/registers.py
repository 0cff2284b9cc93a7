"""Registers through KVM's own ioctls, which the agent executes for us."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvmdbg.addr import VcpuIndex
from kvmdbg.agent.client import AgentClient
from kvmdbg.arch import Architecture
from kvmdbg.backend.agent.state import Source
from kvmdbg.backend.agent.vcpus import Vcpus
from kvmdbg.backend.values import checked_register, register_of
from kvmdbg.errors import IoctlError, RegisterError


class AgentRegisters:
    """Implements :class:`kvmdbg.target.capabilities.Registers`; remembers until told to forget."""

    def __init__(
        self,
        agent: AgentClient,
        arch: Architecture,
        vcpus: Vcpus,
        sources: Sequence[Source[Any]],
    ) -> None:
        self._agent = agent
        self._arch = arch
        self._vcpus = vcpus
        self._sources = {name: source for source in sources for name in source.all_names}
        self._known: dict[tuple[VcpuIndex, Source[Any]], Any] = {}

    def forget(self) -> None:
        """The guest ran, or its state was changed behind our back."""
        self._known.clear()

    async def read_block(self, vcpu: VcpuIndex) -> list[bytes | None]:
        """See the capability."""
        names = [register.name for register in self._arch.block]
        values = await self._values(vcpu, names)
        return [
            values[register.name].to_bytes(register.size, "little")
            if register.name in values
            else None
            for register in self._arch.block
        ]

    async def read_register(self, vcpu: VcpuIndex, number: int) -> bytes | None:
        """See the capability."""
        register = register_of(self._arch, number)
        value = await self.value(vcpu, register.name)
        return None if value is None else value.to_bytes(register.size, "little")

    async def value(self, vcpu: VcpuIndex, name: str) -> int | None:
        """A register as a number, by name or alias."""
        name = self._arch.registers[self._arch.numbers[name]].name
        return (await self._values(vcpu, [name])).get(name)

    async def write_registers(self, vcpu: VcpuIndex, values: Mapping[int, bytes]) -> None:
        """See the capability."""
        changes: dict[Source[Any], dict[str, int]] = {}
        for number, value in values.items():
            name = checked_register(self._arch, number, value).name
            source = self._sources.get(name)
            if source is None or name not in source.names:
                raise RegisterError(f"register {name} can only be read")
            changes.setdefault(source, {})[name] = int.from_bytes(value, "little")
        try:
            for source, named in changes.items():
                await self._write(vcpu, source, named)
        finally:
            self.forget()

    async def _write(self, vcpu: VcpuIndex, source: Source[Any], changes: dict[str, int]) -> None:
        assert source.put is not None, "it has names that can be written"
        try:
            await self._agent.call(
                source.put(await self._state(vcpu, source), changes), self._vcpus.number(vcpu)
            )
        except IoctlError as error:
            raise RegisterError(f"{', '.join(changes)} cannot be written: {error}") from error

    async def _values(self, vcpu: VcpuIndex, names: Iterable[str]) -> dict[str, int]:
        """Those of ``names`` that are available, and others that come with them."""
        wanted = dict.fromkeys(self._sources[name] for name in names if name in self._sources)
        states = await asyncio.gather(*(self._state(vcpu, source) for source in wanted))
        values: dict[str, int] = {}
        for source, state in zip(wanted, states, strict=True):
            values |= source.values(state)
        return values

    async def _state(self, vcpu: VcpuIndex, source: Source[Any]) -> Any:
        key = vcpu, source
        if key not in self._known:
            try:
                self._known[key] = await self._agent.call(source.get(), self._vcpus.number(vcpu))
            except IoctlError as error:
                raise RegisterError(f"registers of vCPU {vcpu} cannot be read: {error}") from error
        return self._known[key]
