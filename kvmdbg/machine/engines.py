"""Opening the engine that a VM is debugged by; the stub is the fallback of the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kvmdbg.agent.client import AgentClient
from kvmdbg.agent.connection import AgentConnection
from kvmdbg.arch import ARCHITECTURES
from kvmdbg.backend.agent import AgentEngine
from kvmdbg.backend.stub import StubEngine
from kvmdbg.errors import AgentError, AttachError
from kvmdbg.machine.accel import AGENT, STUB, abilities
from kvmdbg.machine.guard import Rescue
from kvmdbg.machine.runcontrol import QmpMonitor, QmpRunControl
from kvmdbg.machine.runtime import VmInfo
from kvmdbg.machine.verdict import kvm_verdict
from kvmdbg.target.capabilities import Engine


@dataclass(frozen=True)
class Opened:
    """An engine on a stopped VM, and what a watchdog does when its owner is killed."""

    engine: Engine
    rescue: Rescue
    notice: str = ""
    """What a person should know about it."""


OpenEngine = Callable[[VmInfo, QmpMonitor, QmpRunControl], Awaitable[Opened]]
"""Opens the engine of a VM that has just been stopped."""

OpenAgent = Callable[[QmpMonitor], Awaitable[AgentClient]]
"""Connects to the agent. Raises AgentError, AttachError, VmGone."""


def stub_engine(socket: Path) -> OpenEngine:
    """The stub engine, on QEMU's stub that listens there."""

    async def open_engine(info: VmInfo, monitor: QmpMonitor, run_control: QmpRunControl) -> Opened:
        engine = await StubEngine.open(
            socket,
            arch=ARCHITECTURES[info.arch],
            monitor=monitor,
            run_control=run_control,
            pid=info.pid,
            recorded=info.recording is not None or info.replay_end is not None,
            replay_end=info.replay_end,
        )
        return Opened(engine, Rescue.stub(socket))

    return open_engine


def agent_engine(open_agent: OpenAgent, qmp: str) -> OpenEngine:
    """The agent engine; ``qmp`` is a monitor of the VM that is free when its owner has died."""

    async def open_engine(info: VmInfo, monitor: QmpMonitor, run_control: QmpRunControl) -> Opened:
        verdict = await asyncio.to_thread(kvm_verdict)
        agent = await open_agent(monitor)
        try:
            engine = await AgentEngine.open(
                agent,
                arch=ARCHITECTURES[info.arch],
                abilities=abilities(verdict),
                monitor=monitor,
                run_control=run_control,
            )
        except BaseException:
            agent.close()
            raise
        return Opened(engine, Rescue.monitor(qmp))

    return open_engine


def with_fallback(first: OpenEngine, second: OpenEngine) -> OpenEngine:
    """The agent's engine, or where it cannot be had the stub's, and why."""

    async def open_engine(info: VmInfo, monitor: QmpMonitor, run_control: QmpRunControl) -> Opened:
        try:
            return await first(info, monitor, run_control)
        except (AgentError, AttachError) as error:
            opened = await second(info, monitor, run_control)
            return replace(opened, notice=instead_of_agent(str(error)))

    return open_engine


def instead_of_agent(why: str) -> str:
    """What to say where the stub engine debugs a VM under KVM, and nobody asked for it."""
    return (
        f"engine {STUB} instead of {AGENT} (no watchpoints for reads, a TSC that runs on while the "
        f"VM is stopped, and int3s where the kernel may be patching itself): {why}"
    )


async def connect_agent(socket: Path) -> AgentClient:
    """To an agent that listens there. Raises AgentError, VmGone."""
    return AgentClient(await AgentConnection.connect(socket))
