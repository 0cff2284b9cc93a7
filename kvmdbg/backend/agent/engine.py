"""Opening and closing the agent engine under KVM."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from kvmdbg.addr import VcpuIndex
from kvmdbg.agent.client import AgentClient
from kvmdbg.arch import Architecture
from kvmdbg.backend.agent.breakpoints import AgentBreakpoints
from kvmdbg.backend.agent.clock import GuestClock
from kvmdbg.backend.agent.execution import AgentExecution
from kvmdbg.backend.agent.guest import GuestArch, guest_of
from kvmdbg.backend.agent.memory import AgentMemory, AgentPhysicalMemory
from kvmdbg.backend.agent.placement import Abilities
from kvmdbg.backend.agent.registers import AgentRegisters
from kvmdbg.backend.agent.sites import Sites
from kvmdbg.backend.agent.vcpus import Vcpus
from kvmdbg.errors import AgentLost, VmGone
from kvmdbg.target.capabilities import MonitorQuery, RunControl
from kvmdbg.wire.structs import Flags


class AgentEngine:
    """Implements :class:`kvmdbg.target.capabilities.Engine`; made by :meth:`open`."""

    name = "agent-kvm"

    def __init__(
        self,
        agent: AgentClient,
        arch: Architecture,
        vcpus: Vcpus,
        abilities: Abilities,
        guest: GuestArch,
        clock: GuestClock,
        monitor: MonitorQuery,
        run_control: RunControl,
    ) -> None:
        self._agent = agent
        self._vcpus = vcpus
        self.arch = arch
        self.registers = AgentRegisters(agent, arch, vcpus, guest.sources)
        self.memory = AgentMemory(agent, arch, vcpus, monitor)
        self.physical = AgentPhysicalMemory(agent, monitor)
        sites = Sites(agent, guest, vcpus, abilities)
        self.clock = clock
        self.breakpoints = AgentBreakpoints(agent, guest, sites, abilities)
        self.execution = AgentExecution(
            agent, arch, vcpus, self.registers, sites, self.breakpoints, clock, run_control
        )
        self._watch = asyncio.create_task(self._watch_agent(), name="agent-watch")

    @property
    def vcpus(self) -> Sequence[VcpuIndex]:
        """See the capability."""
        return self._vcpus.indices

    @classmethod
    async def open(
        cls,
        agent: AgentClient,
        *,
        arch: Architecture,
        abilities: Abilities,
        monitor: MonitorQuery,
        run_control: RunControl,
    ) -> AgentEngine:
        """Take over a connected agent; the VM is stopped.

        Raises AttachError for an architecture that is not known, AgentError, VmGone.
        """
        vcpus = Vcpus(await agent.vcpus())
        rf = Flags.HONOURS_RF if abilities.resume_flag else Flags(0)
        await agent.configure(Flags.STILL_CLOCK | rf)
        guest = guest_of(arch)
        await agent.hold()  # for the guest's clock's sake
        return cls(agent, arch, vcpus, abilities, guest, GuestClock(agent), monitor, run_control)

    async def close(self) -> None:
        """Take everything out of the guest, and hang up: the VM stays stopped, and runs on
        unharmed when somebody resumes it."""
        # Whatever is left is taken out by the agent, which does that by itself.
        with contextlib.suppress(VmGone, AgentLost):
            await self.breakpoints.clear()
            await self._agent.detach()
        self.abandon()

    def abandon(self) -> None:
        """Hang up at once; the agent cleans up by itself."""
        self._watch.cancel()
        self._agent.close()

    async def _watch_agent(self) -> None:
        self.execution.lost(await self._agent.wait_lost())
