"""Running the VM, and saying why it stopped.

A stop that the user sees goes: the agent latches it and holds every vCPU, rings the doorbell, is
asked for its stops, and QEMU is told to stop the VM. A resumption goes the other way round. What
the agent latches and nobody wants (a watchpoint for reads that a write met) never leaves this
module: the vCPUs are let go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from kvmdbg.addr import VcpuIndex
from kvmdbg.agent.client import AgentClient
from kvmdbg.arch import Architecture
from kvmdbg.backend.agent.breakpoints import AgentBreakpoints
from kvmdbg.backend.agent.clock import GuestClock
from kvmdbg.backend.agent.registers import AgentRegisters
from kvmdbg.backend.agent.sites import Sites
from kvmdbg.backend.agent.vcpus import Vcpus
from kvmdbg.errors import KvmdbgError, LocalProtocolError, TargetError, VmGone
from kvmdbg.target.capabilities import RunControl
from kvmdbg.target.runstate import PERMITS, RunEvent, VmRunState
from kvmdbg.target.stops import (
    Action,
    BreakpointHit,
    Paused,
    ResumePlan,
    Stepped,
    Stop,
    StopReason,
    WatchpointHit,
)
from kvmdbg.wire import structs as wire
from kvmdbg.wire.structs import NO_FLAGS, ActionFlags, ActionKind, Features, StopKind

DEFERRED_INTERVAL = 0.05
"""Seconds between two looks whether a deferred breakpoint can be armed, while the VM runs."""

TRANSIENT_INTERVAL = 1.0
"""Seconds between two looks at a VM that QEMU stopped for a while, to save its state for one."""

DR6_BS = 1 << 14

_KINDS = {
    Action.CONTINUE: ActionKind.CONTINUE,
    Action.STEP: ActionKind.STEP,
    Action.HOLD: ActionKind.KEEP,
}


_ENABLE, _NO_IRQ = 1, 2  # bits of a step mode; the guest's time goes on during a step


class AgentExecution:
    """Implements :class:`kvmdbg.target.capabilities.Execution`, and StepControl."""

    def __init__(
        self,
        agent: AgentClient,
        arch: Architecture,
        vcpus: Vcpus,
        registers: AgentRegisters,
        sites: Sites,
        breakpoints: AgentBreakpoints,
        clock: GuestClock,
        run_control: RunControl,
    ) -> None:
        self._agent = agent
        self._arch = arch
        self._vcpus = vcpus
        self._registers = registers
        self._sites = sites
        self._breakpoints = breakpoints
        self._clock = clock
        self._run_control = run_control
        self._reported: dict[VcpuIndex, int] = {}  # pc where a hit was told of
        self._pending: list[Stop] = []  # hits of watchpoints that are still to be told of
        self._running = False
        self._interrupted = False
        self._wake = asyncio.Event()
        self._rung = False
        self._stop_seen = False
        self._lost: TargetError | None = None
        masks = Features.BLOCKIRQ in agent.welcome.features
        self.step_bits = self.step_mode = _ENABLE | _NO_IRQ if masks else _ENABLE
        agent.on_doorbell(self._on_doorbell)
        run_control.subscribe(self._on_event)

    # --- the capability --------------------------------------------------------------------------

    async def run(self, plan: ResumePlan) -> Stop:
        """See the capability."""
        if self._running:
            raise LocalProtocolError("the VM runs already")
        if all(plan.action(vcpu) is Action.HOLD for vcpu in self._vcpus.indices):
            raise LocalProtocolError("a plan that holds every vCPU runs nothing")
        self._running, self._interrupted = True, False
        try:
            return self._take_pending(plan) or await self._run(plan)
        finally:
            self._running = False

    async def interrupt(self) -> None:
        """See the capability."""
        if self._running:
            self._interrupted = True
            self._wake.set()

    async def resync(self) -> None:
        """See the capability."""
        await self._run_control.pause()
        await self._agent.hold()
        self._forget_state()

    def on_notice(self, tell: Callable[[str], None]) -> None:
        """See :class:`kvmdbg.target.capabilities.Notifies`."""
        self._clock.on_notice(tell)

    def forget(self) -> None:
        """See the capability."""
        self._forget_state()
        self._sites.was_reset()
        self._wake.set()

    def _forget_state(self) -> None:
        self._reported.clear()
        self._pending.clear()
        self._registers.forget()

    # --- what wakes us ---------------------------------------------------------------------------

    def lost(self, failure: TargetError) -> None:
        """The agent is gone."""
        self._lost = failure
        self._wake.set()

    def _on_doorbell(self, sequence: int) -> None:
        self._rung = True
        self._wake.set()

    def _on_event(self, event: RunEvent) -> None:
        if event in (RunEvent.STOP, RunEvent.GONE):
            self._stop_seen = True
            self._wake.set()

    # --- a run -----------------------------------------------------------------------------------

    def _take_pending(self, plan: ResumePlan) -> Stop | None:
        self._pending = [
            stop
            for stop in self._pending
            if isinstance(stop.reason, WatchpointHit) and self._breakpoints.is_watched(stop.reason)
        ]
        for stop in self._pending:
            if plan.action(stop.vcpu) is not Action.HOLD:
                self._pending.remove(stop)
                return stop
        return None

    async def _run(self, plan: ResumePlan) -> Stop:
        await self._sites.refresh()
        actions = await self._actions(plan)
        self._rung = self._stop_seen = False
        try:
            await self._agent.resume(actions)
            if not self._interrupted:
                await self._run_control.cont()
                await self._clock.resumed()
            while (stop := await self._look(plan)) is None:
                await self._wait()
        except VmGone:
            raise
        except KvmdbgError:
            # At least the VM is as clients believe it to be after a run.
            with contextlib.suppress(KvmdbgError):
                await self._run_control.pause()
            raise
        finally:
            self._registers.forget()
        return stop

    async def _actions(self, plan: ResumePlan) -> list[wire.Action]:
        """What each vCPU does; one that was told to have hit a breakpoint first gets off it, and a
        step is not kept from happening by one."""
        self._registers.forget()
        actions = []
        for vcpu in self._vcpus.indices:
            action = plan.action(vcpu)
            told = action is not Action.HOLD and await self._is_where_told(vcpu)
            flags = ActionFlags.STEP_OVER if told or action is Action.STEP else NO_FLAGS
            if action is Action.STEP and not self.step_mode & _NO_IRQ:
                flags |= ActionFlags.LET_IRQ
            actions.append(wire.Action(self._vcpus.number(vcpu), _KINDS[action], flags))
        return actions

    async def _is_where_told(self, vcpu: VcpuIndex) -> bool:
        return vcpu in self._reported and self._reported[vcpu] == await self._pc(vcpu)

    async def _wait(self) -> None:
        """Until something may have happened."""
        interval = TRANSIENT_INTERVAL if self._stop_seen else None
        if self._sites.deferred:
            interval = DEFERRED_INTERVAL
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval):
                await self._wake.wait()

    async def _look(self, plan: ResumePlan) -> Stop | None:
        """The stop that ends the run, with the VM stopped; None as long as it goes on."""
        self._wake.clear()
        if self._lost is not None:
            raise self._lost
        if await self._is_wanted(plan) or self._interrupted:
            await self._run_control.pause()
            return await self._settle(plan)
        if self._stop_seen:
            state = await self._run_control.sync()
            if state is VmRunState.GONE:
                raise VmGone(f"the VM has ended: {self._run_control.exit_text}")
            permits = PERMITS[state]
            if permits.inspectable:
                return await self._settle(plan)
            self._stop_seen = not permits.executing
        if self._sites.deferred:
            await self._sites.refresh()
        return None

    async def _is_wanted(self, plan: ResumePlan) -> bool:
        """True if the agent has latched a stop that ends the run; one that does not is passed.

        Once: where nobody wants what comes all the time, there are others who wake us.
        """
        if not self._rung:
            return False
        self._rung = False
        if await self._latched(plan):
            return True
        if any(stop.kind is not StopKind.RUNNING for stop in await self._agent.stops()):
            # What a vCPU latches on its way out must not be lost to the resumption.
            await self._agent.hold()
            if await self._latched(plan):
                return True
            await self._agent.resume(await self._actions(plan))
        return False

    async def _settle(self, plan: ResumePlan) -> Stop:
        """QEMU has stopped the VM: what for?"""
        self._registers.forget()
        latched = await self._latched(plan)
        if not latched:
            await self._agent.hold()  # for the guest's clock's sake
        first, *others = latched or [Stop(self._vcpus.indices[0], Paused())]
        # Breakpoints are hit again, and a step can be seen; this would be lost.
        self._pending += [stop for stop in others if isinstance(stop.reason, WatchpointHit)]
        hits = [s.vcpu for s in (first, *others) if isinstance(s.reason, BreakpointHit)]
        for vcpu in tuple(self._reported):
            if vcpu in hits or not await self._is_where_told(vcpu):
                del self._reported[vcpu]
        if isinstance(first.reason, BreakpointHit):
            self._reported[first.vcpu] = await self._pc(first.vcpu)
        self._sites.focus = first.vcpu
        return first

    async def _latched(self, plan: ResumePlan) -> list[Stop]:
        """What the agent has latched and somebody wants, the oldest first."""
        stops = []
        for latched in sorted(await self._agent.stops(), key=lambda stop: stop.sequence):
            vcpu = self._vcpus.index(latched.vcpu)
            reasons = await self._reasons(latched, plan.action(vcpu))
            stops += [Stop(vcpu, reason) for reason in reasons]
        return stops

    async def _reasons(self, latched: wire.Stop, action: Action) -> Sequence[StopReason]:
        """What it stopped for: several only where one instruction met several watchpoints."""
        stepped = [Stepped()] if action is Action.STEP else []
        match latched.kind:
            case StopKind.STEPPED:
                return stepped
            case StopKind.HIT:
                hit = self._breakpoints.hit(latched.point)
                return [hit] if hit is not None else []
            case StopKind.WATCHED:
                hits = await self._breakpoints.watched(latched)
                return hits or (stepped if latched.dr6 & DR6_BS else [])
            case _:
                return []

    async def _pc(self, vcpu: VcpuIndex) -> int:
        pc = await self._registers.value(vcpu, self._arch.pc)
        assert pc is not None, "KVM has it on every architecture"
        return pc
