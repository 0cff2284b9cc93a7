"""One resumption of the VM, from vCont to the stop reply, and what QEMU remembers of it."""

from __future__ import annotations

from dataclasses import dataclass

from kvmdbg.addr import VcpuIndex
from kvmdbg.backend.stub.connection import StubConnection, describe, settled
from kvmdbg.backend.stub.silence import SilenceGuard
from kvmdbg.backend.stub.threads import Threads
from kvmdbg.errors import TargetError, VmGone
from kvmdbg.rsp.client import requests, session
from kvmdbg.rsp.stops import SIGNAL_TRAP, Stopped
from kvmdbg.rsp.threadid import ThreadSpec
from kvmdbg.target.capabilities import RunControl
from kvmdbg.target.stops import Action, ResumePlan

STOP_TIMEOUT = 15.0
"""Seconds that a VM may take to stop when told to."""

DISARM_TIME = 0.01
"""Seconds in which a vCPU that is to stop at once does so."""

ENABLE, NO_IRQ, NO_TIMER = 1, 2, 4
"""Bits of Qqemu.sstep."""

_LETTERS = {Action.CONTINUE: "c", Action.STEP: "s"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a resumption ended.

    ``reply`` is None if an interrupt came before it began. ``impatient``: we paused the VM
    ourselves. ``stray``: QEMU may have stopped ``vcpu`` for something of an earlier resumption.
    """

    reply: Stopped | None
    vcpu: VcpuIndex
    impatient: bool = False
    stray: bool = False


class Resumption:
    """Resumes the VM and waits for its stop; ``step_bits`` are the bits of Qqemu.sstep that this
    QEMU has. Stops are asked for by QMP: Ctrl-C is lost where it meets another stop."""

    def __init__(
        self,
        connection: StubConnection,
        threads: Threads,
        run_control: RunControl,
        step_bits: int,
    ) -> None:
        self._connection = connection
        self._threads = threads
        self._run_control = run_control
        self._silence = SilenceGuard(connection, run_control)
        self._step_mode: int | None = None
        self.interrupted = False
        """Somebody wants the VM stopped; it will not be resumed while this is set."""
        self.step_bits = step_bits & (ENABLE | NO_IRQ | NO_TIMER)
        """The bits of a step mode that there are."""
        self.masked = self.step_bits
        """Step mode: no step ends up in an interrupt handler, and guest time stands still, unless
        a client wants it otherwise."""
        self.armed: set[VcpuIndex] = set()
        """vCPUs that QEMU single-steps, or stops at once, at the next resumption, whatever that
        says: it forgets a step only when that very vCPU stops the VM."""

    @property
    def timed(self) -> int:
        """Step mode: as ``masked``, but guest time goes on, so that a halted vCPU wakes up."""
        return self.masked & ~NO_TIMER

    async def set_step_mode(self, mode: int) -> None:
        """What ``vCont;s`` means from now on."""
        if mode != self._step_mode:
            await self._connection.checked(requests.set_step_mode(mode))
            self._step_mode = mode

    async def go(self, plan: ResumePlan, step_mode: int, patience: float | None = None) -> Outcome:
        """Resume and wait for the stop; after ``patience`` seconds, pause the VM."""
        await self.set_step_mode(step_mode)
        await self._connection.ready()
        if self.interrupted:
            return Outcome(None, self._threads.vcpus[0])
        stepped = {v for v in self._threads.vcpus if plan.action(v) is Action.STEP}
        stray = set(self.armed)
        self.armed |= stepped
        self._threads.stopped_by(None)
        stops = self._run_control.stops
        answer = self._connection.resume(requests.vcont(self._actions(plan)))
        patient = await settled(answer, patience)
        if not patient:
            await self._pause()
            await self._connection.stopped(STOP_TIMEOUT)
        stop = _stop_of(await answer)
        vcpu = self._threads.vcpu(stop.thread)
        if stop.signal == SIGNAL_TRAP:
            self._threads.stopped_by(vcpu)
            # The stub tells before the monitor does. With its STOP, our RESUME has come too, and
            # will not be taken for another monitor's.
            await self._run_control.wait_stop(stops)
        # A step that hits a watchpoint is two reasons to stop: QEMU keeps one for later.
        if vcpu not in stepped or stop.watch is None:
            self.armed.discard(vcpu)
        return Outcome(stop, vcpu, impatient=not patient, stray=vcpu in stray)

    async def back(self, *, step: bool, anyway: bool = False) -> Outcome:
        """Run backwards, in a replay only: QEMU aborts elsewhere. Where the reply has SIGINT, QEMU
        did not get there. ``anyway``: also where somebody wants the VM stopped."""
        await self._connection.ready()
        if self.interrupted and not anyway:
            return Outcome(None, self._threads.vcpus[0])
        self._threads.stopped_by(None)
        request = requests.STEP_BACK if step else requests.CONTINUE_BACK
        stop = _stop_of(await self._connection.resume(request))
        # QEMU has stopped the VM and resumed it any number of times.
        await self._run_control.sync()
        return Outcome(stop, self._threads.vcpu(stop.thread))

    async def moved(self) -> None:
        """The monitor has let the VM run and stop. Takes up the stop reply that nobody asked for:
        acknowledged later, after a resumption, it would pause the VM again."""
        await self._connection.request(requests.QUERY_STEP_MODE)
        self._threads.stopped_by(None)

    def _actions(self, plan: ResumePlan) -> list[tuple[str, ThreadSpec | None]]:
        actions = {vcpu: plan.action(vcpu) for vcpu in self._threads.vcpus}
        if set(actions.values()) == {Action.CONTINUE}:
            return [("c", None)]
        return [
            (_LETTERS[action], self._threads.spec(vcpu))
            for vcpu, action in actions.items()
            if action is not Action.HOLD
        ]

    async def interrupt(self) -> None:
        """Stop the VM if it runs, and do not resume it."""
        self.interrupted = True
        if self._connection.resumed:
            await self._pause()

    async def _pause(self) -> None:
        # Two sockets have no order between them: a stop that overtook vCont would be lost.
        await self._connection.taken()
        await self._run_control.pause()

    async def resync(self) -> None:
        """Stop a VM that runs without our doing."""
        await self._run_control.pause()
        await self._connection.stopped(STOP_TIMEOUT)
        await self.moved()

    async def disarm(self) -> None:
        """Make QEMU forget every single step; it takes running those vCPUs for a moment."""
        stepping = ResumePlan(dict.fromkeys(self.armed, Action.STEP), Action.HOLD)
        self.interrupted = False
        while self.armed:
            outcome = await self.go(stepping, step_mode=0, patience=DISARM_TIME)
            if outcome.reply is None or outcome.reply.signal != SIGNAL_TRAP:
                self.armed.clear()
        await self.set_step_mode(self.masked)


def _stop_of(answer: session.Reply | session.Stop) -> Stopped:
    if isinstance(answer, session.Reply):
        raise TargetError(f"QEMU did not resume the VM: {describe(answer.payload)}")
    if not isinstance(answer.stop, Stopped):
        raise VmGone("QEMU's gdbstub says that the VM has ended")
    return answer.stop
