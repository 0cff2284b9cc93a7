"""The engine on an agent in memory, whose vCPUs are structs."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import pytest

from kvmdbg.arch import X86_64
from kvmdbg.backend.agent import Abilities, AgentEngine
from kvmdbg.backend.agent.x86_state import MSRS
from kvmdbg.cstruct import Struct
from kvmdbg.kvm.x86.registers import (
    DebugRegs,
    Regs,
    Segment,
    Sregs,
    Xsave,
    get_debugregs,
    get_msrs,
    get_regs,
    get_sregs,
    get_xsave,
    set_msrs,
    set_regs,
    set_sregs,
    set_xsave,
)
from tests.support.fake_agent import FakeAgent
from tests.support.fake_engine import FakeGuest, FakeMonitor, FakeRunControl

CODE = 0x1000
LONG_MODE = replace(
    Sregs.decode(bytes(Sregs.sizeof())), cs=Segment(l=1, selector=8), cr0=0x8000_0001, efer=0x500
)
KERNEL_GS_BASE = 0xFFFF_8880_0000_0000
_ENTRY = 16  # bytes of struct kvm_msr_entry


@dataclass
class Vcpu:
    """What KVM keeps of one vCPU."""

    regs: Regs = field(default_factory=lambda: Regs(rip=CODE))
    sregs: Sregs = LONG_MODE
    xsave: Xsave = field(default_factory=lambda: Xsave((0,) * 1024))
    msrs: dict[int, int] = field(default_factory=lambda: {MSRS["k_gs_base"]: KERNEL_GS_BASE})
    debugregs: DebugRegs = field(default_factory=lambda: DebugRegs((1, 2, 3, 4), 0xFFFF0FF0, 0x400))


class Kit:
    """An engine, its agent, and what is around them."""

    def __init__(self, vcpus: int = 2) -> None:
        self.agent = FakeAgent(vcpus)
        self.agent.memory[:] = bytes(range(1, 256)) * 257 + b"\x01"
        self.vcpus = [Vcpu() for _ in range(vcpus)]
        self.run_control = FakeRunControl(FakeGuest(vcpus))
        self.monitor = FakeMonitor()
        self.engine: AgentEngine
        for attribute, kind, getter, setter in (
            ("regs", Regs, get_regs(), "KVM_SET_REGS"),
            ("sregs", Sregs, get_sregs(), "KVM_SET_SREGS"),
            ("xsave", Xsave, get_xsave(), "KVM_SET_XSAVE"),
            ("debugregs", DebugRegs, get_debugregs(), None),
        ):
            self.agent.ioctls[getter.number] = self._get(attribute)
            if setter is not None:
                number = {
                    "KVM_SET_REGS": set_regs(Regs()),
                    "KVM_SET_SREGS": set_sregs(LONG_MODE),
                    "KVM_SET_XSAVE": set_xsave(Xsave((0,) * 1024)),
                }[setter].number
                self.agent.ioctls[number] = self._set(attribute, kind)
        self.agent.ioctls[get_msrs([]).number] = self._get_msrs
        self.agent.ioctls[set_msrs({}).number] = self._set_msrs

    def _get(self, attribute: str) -> Callable[[int, int, bytes], tuple[int, bytes]]:
        return lambda vcpu, argument, data: (0, getattr(self.vcpus[vcpu], attribute).encode())

    def _set(
        self, attribute: str, kind: type[Struct]
    ) -> Callable[[int, int, bytes], tuple[int, bytes]]:
        def set_it(vcpu: int, argument: int, data: bytes) -> tuple[int, bytes]:
            setattr(self.vcpus[vcpu], attribute, kind.decode(data))
            return 0, data

        return set_it

    def _get_msrs(self, vcpu: int, argument: int, data: bytes) -> tuple[int, bytes]:
        """As KVM does, up to the first that it does not know."""
        taken = 0
        out = bytearray(data)
        for at in range(8, len(data), _ENTRY):
            (index,) = struct.unpack_from("<I", data, at)
            if index not in self.vcpus[vcpu].msrs:
                break
            struct.pack_into("<Q", out, at + 8, self.vcpus[vcpu].msrs[index])
            taken += 1
        return taken, bytes(out)

    def _set_msrs(self, vcpu: int, argument: int, data: bytes) -> tuple[int, bytes]:
        taken = 0
        for at in range(8, len(data), _ENTRY):
            index, value = struct.unpack_from("<I4xQ", data, at)
            if index not in self.vcpus[vcpu].msrs:
                break
            self.vcpus[vcpu].msrs[index] = value
            taken += 1
        return taken, data

    async def open(self, abilities: Abilities | None = None) -> AgentEngine:
        self.engine = await AgentEngine.open(
            await self.agent.client(),
            arch=X86_64,
            abilities=abilities or Abilities(),
            monitor=self.monitor,
            run_control=self.run_control,
        )
        return self.engine


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    kit = Kit()
    await kit.open()
    yield kit
    kit.engine.abandon()
    await kit.agent.wait_end()
