"""Running the VM, and saying why it stopped.

What the stub does oddly, and this hides:

- ``vCont;c`` makes no progress from a breakpoint, so a vCPU whose hit was reported is stepped off
  it first, alone: a single step goes past breakpoints.
- Neither makes progress from an access that stopped the vCPU before it was made: it is made with
  no watchpoint in place.
- A single step of HLT never ends, as guest time stands still meanwhile: after a while it is looked
  at, and goes on with time running.
- A single step that another vCPU's stop forestalled happens in the next run, asked for or not; and
  after a single step that hit a watchpoint the next run ends at once. Such a run is taken up again.
- A single step that meets the polling of the local APIC executes nothing: it is repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.arch import Architecture
from kvmdbg.backend.stub.backwards import Backwards
from kvmdbg.backend.stub.breakpoints import StubBreakpoints
from kvmdbg.backend.stub.registers import StubRegisters
from kvmdbg.backend.stub.replay import Replay
from kvmdbg.backend.stub.resumption import Outcome, Resumption
from kvmdbg.backend.stub.threads import Threads
from kvmdbg.errors import LocalProtocolError, RegisterError
from kvmdbg.rsp.stops import SIGNAL_INT, SIGNAL_TRAP
from kvmdbg.target.breakpoints import BreakpointKind
from kvmdbg.target.stops import (
    Action,
    BreakpointHit,
    HistoryEnd,
    Paused,
    ResumePlan,
    Stepped,
    Stop,
    WatchpointHit,
)

STEP_PATIENCE = 0.3
"""Seconds after which a single step is looked at."""

STEP_ATTEMPTS = 3
"""Steps after which an instruction is believed to change no register: a jump to itself."""


@dataclass(frozen=True, slots=True)
class _Hit:
    """Where a vCPU still is after its hit was reported; ``watched``: before a watched access."""

    pc: Gva
    watched: bool


class StubExecution:
    """Implements :class:`kvmdbg.target.capabilities.Execution`.

    ``forget_guest`` drops what is cached of the guest's state. ``recorded``: the run is recorded,
    or is the ``replay``.
    """

    def __init__(
        self,
        arch: Architecture,
        threads: Threads,
        registers: StubRegisters,
        breakpoints: StubBreakpoints,
        resumption: Resumption,
        forget_guest: Callable[[], None],
        *,
        recorded: bool = False,
        replay: Replay | None = None,
    ) -> None:
        self._arch = arch
        self._threads = threads
        self._registers = registers
        self._breakpoints = breakpoints
        self._resumption = resumption
        self._forget_guest = forget_guest
        self._replay = replay
        self.recorded = recorded
        self._reported: dict[VcpuIndex, _Hit] = {}
        self._running = False

    @property
    def step_bits(self) -> int:
        """See :class:`kvmdbg.target.capabilities.StepControl`."""
        return self._resumption.step_bits

    @property
    def step_mode(self) -> int:
        """See :class:`kvmdbg.target.capabilities.StepControl`."""
        return self._resumption.masked

    @step_mode.setter
    def step_mode(self, bits: int) -> None:
        self._resumption.masked = bits

    @property
    def replayed(self) -> bool:
        """See :class:`kvmdbg.target.capabilities.History`."""
        return self._replay is not None

    async def run(self, plan: ResumePlan) -> Stop:
        """See the capability."""
        if self._running:
            raise LocalProtocolError("the VM runs already")
        if all(plan.action(vcpu) is Action.HOLD for vcpu in self._threads.vcpus):
            raise LocalProtocolError("a plan that holds every vCPU runs nothing")
        self._running, self._resumption.interrupted = True, False
        try:
            if plan.back:
                stop = await self._run_back(plan)
            else:
                stop = await self._step_over(plan) or await self._run(plan)
        finally:
            self._running = False
        if isinstance(stop.reason, BreakpointHit):
            self._reported[stop.vcpu] = _Hit(stop.reason.address, watched=False)
        elif isinstance(stop.reason, WatchpointHit) and self._arch.watch_before:
            self._reported[stop.vcpu] = _Hit(await self._pc(stop.vcpu), watched=True)
        return stop

    async def interrupt(self) -> None:
        """See the capability."""
        if self._running:
            await self._resumption.interrupt()

    async def resync(self) -> None:
        """See the capability."""
        await self._resumption.resync()
        self.forget()

    def forget(self) -> None:
        """See the capability."""
        self._reported.clear()
        self._forget_guest()

    async def _step_over(self, plan: ResumePlan) -> Stop | None:
        """Get every vCPU that runs off what it was reported for; what ended the whole run
        meanwhile, if anything."""
        for vcpu, hit in tuple(self._reported.items()):
            action = plan.action(vcpu)
            if action is Action.HOLD:
                continue
            del self._reported[vcpu]
            if await self._pc(vcpu) != hit.pc or (action is Action.STEP and not hit.watched):
                continue
            stop = await self._step_off(vcpu, hit)
            if stop.reason == Stepped() and action is Action.CONTINUE:
                continue
            if await self._pc(vcpu) == hit.pc:
                self._reported[vcpu] = hit
            return stop
        return None

    async def _step_off(self, vcpu: VcpuIndex, hit: _Hit) -> Stop:
        if not hit.watched:
            return await self._run(ResumePlan.step(vcpu))
        async with self._breakpoints.without_watchpoints():
            return await self._run(ResumePlan.step(vcpu))

    async def _run(self, plan: ResumePlan) -> Stop:
        stepped = [v for v in self._threads.vcpus if plan.action(v) is Action.STEP]
        origins = {vcpu: await self._registers.read_block(vcpu) for vcpu in stepped}
        mode = self._resumption.masked
        patience = STEP_PATIENCE if stepped else None
        attempts = STEP_ATTEMPTS
        has_run = False
        while True:
            overlooked = await self._at_breakpoint(plan)
            if overlooked is not None:
                return overlooked
            if self._replay is not None and not await self._replay.advance():
                return await self._at_end(has_run)
            has_run = True
            try:
                outcome = await self._resumption.go(plan, mode, patience)
            finally:
                self._forget_guest()
            stop = await self._explain(outcome, plan)
            moved = [v for v in stepped if await self._registers.read_block(v) != origins[v]]
            if stop is None and moved and self._replay is not None:
                return Stop(moved[0], Stepped())  # to where the replay was due
            if stop is None:
                continue
            if stop.reason == Stepped() and stop.vcpu not in moved and attempts > 1:
                attempts -= 1
            elif not _was_impatience(outcome) or self._resumption.interrupted:
                return stop
            elif moved:
                return Stop(moved[0], Stepped())
            else:
                mode, patience = self._resumption.timed, None

    async def _at_end(self, arrived: bool) -> Stop:
        """A replay goes no further; what was met there is told to who has just ``arrived``."""
        vcpu = self._threads.vcpus[0]
        hit = self._breakpoints.hit_at(await self._pc(vcpu)) if arrived else None
        return Stop(vcpu, hit or HistoryEnd(first=False))

    async def _at_breakpoint(self, plan: ResumePlan) -> Stop | None:
        """A hit that QEMU would miss, as it steps a vCPU that should continue."""
        for vcpu in tuple(self._resumption.armed):
            if plan.action(vcpu) is Action.CONTINUE:
                hit = self._breakpoints.hit_at(await self._pc(vcpu))
                if hit is not None:
                    return Stop(vcpu, hit)
        return None

    async def _explain(self, outcome: Outcome, plan: ResumePlan) -> Stop | None:
        """What a stop means; None if nobody asked for it."""
        vcpu, reply = outcome.vcpu, outcome.reply
        if reply is None:
            return Stop(vcpu, Paused())
        if reply.watch is not None:
            return Stop(vcpu, self._breakpoints.watch_hit(*reply.watch))
        if reply.signal != SIGNAL_TRAP and await self._was_due():
            return None
        if reply.signal != SIGNAL_TRAP:
            # Somebody's pause, or a state that QEMU's run state names better than a signal.
            return Stop(vcpu, Paused())
        if plan.action(vcpu) is Action.STEP:
            return Stop(vcpu, Stepped())
        pc = await self._pc(vcpu)
        hit = self._breakpoints.hit_at(pc)
        if hit is None and outcome.stray:
            return None
        # In real mode the stub's pc lacks the segment's base: none of ours is there, though one is.
        return Stop(vcpu, hit or BreakpointHit(BreakpointKind.SOFTWARE, pc))

    async def _run_back(self, plan: ResumePlan) -> Stop:
        if self._replay is None:
            raise LocalProtocolError("there is no recording to go back in")
        self._reported.clear()
        backwards = Backwards(
            self._replay, self._resumption, self._breakpoints, self._pc, self._forget_guest
        )
        return await backwards.run(step=plan.default is Action.STEP)

    async def _was_due(self) -> bool:
        """True if a replay has only come to where it had to be looked at."""
        if self._replay is None or self._resumption.interrupted:
            return False
        return await self._replay.arrived()

    async def _pc(self, vcpu: VcpuIndex) -> Gva:
        pc = await self._registers.value(vcpu, self._arch.pc)
        if pc is None:
            raise RegisterError("QEMU's gdbstub does not have the program counter")
        return Gva(pc)


def _was_impatience(outcome: Outcome) -> bool:
    reply = outcome.reply
    return (
        outcome.impatient
        and reply is not None
        and reply.signal == SIGNAL_INT
        and reply.watch is None
    )
