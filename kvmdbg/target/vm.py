"""The facade over one live VM: every client, of whatever protocol, goes through it.

It owns the only copy of "is the VM stopped, and why", puts operations in order, and turns what
engine and monitor report into events. User-visible stops and quiet ones (to change a breakpoint
while the VM runs) are told apart here, and so is what we did from what another monitor did.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager

from kvmdbg.addr import VcpuIndex
from kvmdbg.arch import Architecture
from kvmdbg.errors import (
    ExpressionError,
    KvmdbgError,
    NoSuchVcpu,
    NotResumable,
    VmGone,
    VmRunning,
    WaitTimeout,
)
from kvmdbg.target.breakpoints import (
    BreakpointManager,
    BreakpointSpec,
    ClientId,
    Placement,
)
from kvmdbg.target.capabilities import Engine, MonitorQuery, Notifies, RunControl
from kvmdbg.target.clients import Clients
from kvmdbg.target.conditions import is_wanted, parse_condition
from kvmdbg.target.events import Gone, Notice, Resumed, Stopped, VmEvent
from kvmdbg.target.guest import StoppedGuest
from kvmdbg.target.history import require_replay, require_unrecorded
from kvmdbg.target.ranges import run_plan
from kvmdbg.target.runstate import PERMITS, RunEvent, VmRunState
from kvmdbg.target.stops import (
    OF_ONE_VCPU,
    Action,
    Halted,
    Paused,
    ResumePlan,
    Stop,
    breakpoints_hit,
    refined,
)

STOP_TIMEOUT = 15.0
"""Seconds that a VM may take to stop: generous, a host under load is no error."""

SLICE = 0.005
"""Seconds that a VM runs at least before it is stopped to look at a vCPU that is held: who asks
again and again must not keep the others from running."""

_RESET_QUIET = 1.0
"""Seconds within which a second RESET is the same one (QEMU announces some twice)."""


class Vm(StoppedGuest):
    """One live VM.

    ``initial`` says why it is stopped now: engines are opened on a stopped VM.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        run_control: RunControl,
        monitor: MonitorQuery,
        initial: Stop,
    ) -> None:
        self.name = name
        self.engine = engine
        self.monitor = monitor
        self.breakpoints = BreakpointManager(engine.breakpoints)
        self.clients = Clients(name)
        self._run_control = run_control
        self._stop: Stop | None = initial
        self.hit: Mapping[BreakpointSpec, frozenset[ClientId]] = {}
        """What was hit last, with who held it then: gdb takes its own out when it is told."""
        self.apart = False
        """vCPUs run and stop each for itself: one that is held while others run can be looked at
        as if the VM were stopped."""
        self._gone: Gone | None = None
        self._plan = ResumePlan()
        self._run: asyncio.Task[None] | None = None
        self._quiet_stop: asyncio.Future[Stop] | None = None
        self._interrupting = False
        self._retired = False
        self._slice_end = 0.0
        self._last_reset = -_RESET_QUIET
        self._lock = asyncio.Lock()
        self._subscribers: list[Callable[[VmEvent], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        run_control.subscribe(self._on_run_event)
        if isinstance(engine.execution, Notifies):
            engine.execution.on_notice(self.notice)

    # --- what is known ---------------------------------------------------------------------------

    @property
    def arch(self) -> Architecture:
        """The guest's architecture."""
        return self.engine.arch

    @property
    def vcpus(self) -> tuple[VcpuIndex, ...]:
        """The guest's vCPUs."""
        return tuple(self.engine.vcpus)

    @property
    def run_state(self) -> VmRunState:
        """QEMU's run state, as last known."""
        return VmRunState.GONE if self._gone else self._run_control.state

    @property
    def stop(self) -> Stop | None:
        """Why the VM is stopped; None while it runs, for clients, or when it is gone."""
        return self._stop

    @property
    def gone(self) -> Gone | None:
        """How the VM ended; None while it exists."""
        return self._gone

    def subscribe(self, callback: Callable[[VmEvent], None]) -> Callable[[], None]:
        """Call ``callback`` for every event, in order; the result ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def _publish(self, event: VmEvent) -> None:
        for callback in tuple(self._subscribers):
            callback(event)

    def notice(self, text: str) -> None:
        """Tell every client something."""
        self._publish(Notice(text))

    # --- running and stopping --------------------------------------------------------------------

    async def resume(self, plan: ResumePlan | None = None) -> None:
        """Let the VM run on, or back. Raises VmRunning, NotResumable, VmGone, Unsupported."""
        async with self._lock:
            self._require_stopped()
            if plan is not None and plan.back:
                require_replay(self.engine)
            if not PERMITS[self._run_control.state].resumable:
                raise NotResumable(
                    f"the VM cannot run on because its state is {self._run_control.state.value}: "
                    "reset it (monitor system_reset) or end it"
                )
            self._stop = None
            self._publish(Resumed())
            await self._start(plan or ResumePlan())

    async def pause(self) -> Stop:
        """Stop the VM, if it runs, and return why it is stopped. Raises VmGone, WaitTimeout."""
        async with self._lock:
            if self._stop is None:
                self._require_alive()
                await self._interrupt()
            self._require_alive()
            assert self._stop is not None, "a VM that is neither running nor gone is stopped"
            return self._stop

    @asynccontextmanager
    async def halted(self) -> AsyncIterator[None]:
        """Inside, the VM is stopped; a VM that ran runs on afterwards, and clients see nothing.

        What stopped it meanwhile for another reason is reported, and then it stays stopped.
        """
        async with self._lock:
            if self._stop is not None:
                yield
                return
            self._require_alive()
            self._quiet_stop = asyncio.get_running_loop().create_future()
            try:
                await self._interrupt()
                stop = self._quiet_stop.result()
            finally:
                self._quiet_stop = None
            try:
                yield
            finally:
                if self._gone is None:
                    if stop.reason == Paused():
                        await self._start(self._plan)
                    else:
                        self._settle(stop)

    async def revise(self, plan: ResumePlan) -> None:
        """From now on a VM that runs does what ``plan`` says; one that has stopped stays so."""
        async with self.halted():
            self._plan = plan

    async def reset(self) -> None:
        """Reset the machine; it stays stopped or running as it was."""
        self._require_alive()
        require_unrecorded(self.engine)
        await self._run_control.reset()

    async def quit(self) -> None:
        """End the VM and its QEMU."""
        if self._gone is None:
            await self._run_control.quit()

    async def _start(self, plan: ResumePlan) -> None:
        self._plan = plan
        self._slice_end = asyncio.get_running_loop().time() + SLICE
        self._run = asyncio.create_task(self._run_until_stop(plan), name="vm-run")
        await asyncio.sleep(
            0
        )  # until the engine's run() has begun: only then can it be interrupted

    async def _interrupt(self) -> None:
        """Stop a running VM and wait until that is settled."""
        run = self._run
        assert run is not None
        self._interrupting = True
        try:
            await self.engine.execution.interrupt()
            done, _ = await asyncio.wait({run}, timeout=STOP_TIMEOUT)
        finally:
            self._interrupting = False
        if not done:
            raise WaitTimeout(
                f"the VM did not stop within {STOP_TIMEOUT:.0f} s: QEMU may be hung; "
                "see its log in the VM's runtime folder"
            )
        self._require_alive()

    async def _run_until_stop(self, plan: ResumePlan) -> None:
        try:
            stop, state = await self._run_until_it_lasts(plan)
            stop = refined(stop, state, ours=self._interrupting)
        except VmGone:
            await self._run_control_gone()
            return
        except KvmdbgError as error:
            self.notice(str(error))
            stop = Stop(VcpuIndex(0), Halted(self._run_control.state))
        self._run = None
        if self._quiet_stop is not None:
            self._quiet_stop.set_result(stop)
        else:
            self._settle(stop)

    async def _run_until_it_lasts(self, plan: ResumePlan) -> tuple[Stop, VmRunState]:
        """The stop, and the run state after it. Another monitor that stops the VM may have let it
        run on before we have settled that: so it does."""
        while True:
            stop = await run_plan(
                self.engine, plan, self.breakpoints, lambda: self._interrupting, self._is_wanted
            )
            state = await self._state_after(stop)
            if not PERMITS[state].executing:
                return stop, state
            await self.engine.execution.resync()
            if self._interrupting or isinstance(stop.reason, OF_ONE_VCPU):
                return stop, await self._run_control.sync()

    async def _is_wanted(self, stop: Stop) -> bool:
        try:
            return await is_wanted(self.engine, self.breakpoints, stop)
        except ExpressionError as error:
            self.notice(str(error))
            return True

    async def _run_control_gone(self) -> None:
        """The engine lost the VM: say how it ended, in the run control's words if they come."""
        for _ in range(50):
            if self._gone is not None:
                return
            await asyncio.sleep(0.02)
        self._set_gone(Gone("the connection to it was lost"))

    async def _state_after(self, stop: Stop) -> VmRunState:
        """The run state, for which QEMU need not be asked when a vCPU's own doing stopped the VM
        and the event of that has come."""
        state = self._run_control.state
        if isinstance(stop.reason, OF_ONE_VCPU) and not PERMITS[state].executing:
            return VmRunState.DEBUG
        return await self._run_control.sync()

    def _settle(self, stop: Stop) -> None:
        self._stop = stop
        self.hit = breakpoints_hit(stop.reason, self.breakpoints.inserted)
        self._publish(Stopped(stop))

    # --- what others did -------------------------------------------------------------------------

    def _on_run_event(self, event: RunEvent) -> None:
        if self._retired:
            return
        match event:
            case RunEvent.RESUME if self._run is None:
                self._spawn(self._after_foreign_resume())
            case RunEvent.RESET:
                self._on_reset()
            case RunEvent.GUEST_PANICKED:
                self.notice("the guest kernel panicked")
            case RunEvent.POWERDOWN:
                self.notice("the guest was asked to power down")
            case RunEvent.WATCHDOG:
                self.notice("the guest's watchdog device expired")
            case RunEvent.GONE:
                self._set_gone(Gone(self._run_control.exit_text, self._run_control.exit_signal))
            case _:
                pass

    def _on_reset(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._last_reset >= _RESET_QUIET:
            self.notice("the VM was reset")
        self._last_reset = now
        self.engine.execution.forget()

    async def _after_foreign_resume(self) -> None:
        """Another monitor resumed the VM: with a debugger relying on it, stop it again."""
        async with self._lock:
            if self._stop is None or self._gone is not None:
                return
            await self.engine.execution.resync()
            await self._run_control.sync()
            if self.clients.holders:
                self.notice("another monitor resumed the VM; kvmdbg stopped it again")
            else:
                self._stop = None
                self._publish(Resumed())
                await self._start(ResumePlan())

    def _set_gone(self, gone: Gone) -> None:
        if self._gone is not None:
            return
        self._gone = gone
        self._stop = None
        if self._run is not None and self._run is not asyncio.current_task():
            self._run.cancel()
        self._run = None
        self._publish(gone)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- clients ---------------------------------------------------------------------------------

    async def release(self, client: ClientId, *, resume: bool) -> None:
        """``client`` leaves: its breakpoints go, and with ``resume`` the VM runs on.

        The VM stays stopped while another client holds it, or where it cannot be resumed.
        """
        self.clients.let_go(client)
        if self._gone is not None:
            return
        await self.drop_breakpoints(client)
        if (
            resume
            and not self.clients.holders
            and self._stop is not None
            and PERMITS[self._run_control.state].resumable
        ):
            await self.resume()

    async def retire(self) -> bool:
        """Everybody leaves: stop the VM and take all breakpoints out; true if it was running.

        From then on the facade does nothing any more, whatever happens to the VM.
        """
        running = self._stop is None
        await self.pause()
        async with self.halted():
            for clients in self.breakpoints.inserted.values():
                for client in clients:
                    await self.breakpoints.drop(client)
        self._retired = True
        return running

    # --- the stopped guest -----------------------------------------------------------------------

    async def insert_breakpoint(
        self, client: ClientId, spec: BreakpointSpec, condition: str | None = None
    ) -> None:
        """Insert, also while the VM runs; a hit for which the ``condition`` does not hold is not
        told. Raises BreakpointError, ExpressionError."""
        parsed = None if condition is None else parse_condition(condition, self.arch, spec)
        async with self.halted():
            await self.breakpoints.insert(client, spec, parsed)

    async def remove_breakpoint(self, client: ClientId, spec: BreakpointSpec) -> None:
        """Remove, also while the VM runs."""
        async with self.halted():
            await self.breakpoints.remove(client, spec)

    async def describe_breakpoints(self) -> list[tuple[Placement, frozenset[ClientId]]]:
        """What became of each breakpoint, and whose it is; also while the VM runs."""
        async with self.halted():
            owners = self.breakpoints.inserted
            placements = await self.engine.breakpoints.describe()
        return [(found, owners.get(found.spec, frozenset())) for found in placements]

    async def drop_breakpoints(self, client: ClientId) -> None:
        """Remove all that ``client`` holds, also while the VM runs."""
        if self.breakpoints.held_by(client):
            async with self.halted():
                await self.breakpoints.drop(client)

    @asynccontextmanager
    async def _stopped(self, vcpu: VcpuIndex | None = None) -> AsyncIterator[None]:
        if self.apart and (vcpu is None or self._plan.action(vcpu) is Action.HOLD):
            await asyncio.sleep(self._slice_end - asyncio.get_running_loop().time())
            async with self.halted():
                yield
            return
        async with self._lock:
            self._require_stopped()
            if vcpu is not None and vcpu not in self.engine.vcpus:
                raise NoSuchVcpu(
                    f"the VM has no vCPU {vcpu}: they are 0 to {len(self.engine.vcpus) - 1}"
                )
            yield

    def _require_alive(self) -> None:
        if self._gone is not None:
            raise VmGone(self._gone.sentence(self.name))

    def _require_stopped(self) -> None:
        self._require_alive()
        if self._stop is None:
            raise VmRunning(
                f"the VM {self.name} is running: stop it first (in gdb: continue, then Ctrl-C)"
            )
