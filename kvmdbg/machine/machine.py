"""One live VM with everything that :class:`kvmdbg.target.vm.Vm` is made from."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kvmdbg.addr import VcpuIndex
from kvmdbg.backend import hmp
from kvmdbg.errors import MonitorError, VmGone
from kvmdbg.machine.claim import Claim
from kvmdbg.machine.engines import OpenEngine
from kvmdbg.machine.exitwatch import ExitWatch
from kvmdbg.machine.guard import Rescue, Watchdog, start_watchdog
from kvmdbg.machine.recording import Recording
from kvmdbg.machine.runcontrol import QmpMonitor, QmpRunControl
from kvmdbg.machine.runtime import VmInfo
from kvmdbg.qmp import QmpConnection
from kvmdbg.target.capabilities import Engine
from kvmdbg.target.memorymap import MemoryRegion
from kvmdbg.target.runstate import PERMITS, VmRunState
from kvmdbg.target.stops import Frozen, Halted, Panicked, Paused, ShutDown, Stop, StopReason


async def _nothing() -> None:
    pass


@dataclass
class Machine:
    """An open VM: stopped, debugged by one engine, under our run control."""

    info: VmInfo
    claim: Claim
    process: ExitWatch
    run_control: QmpRunControl
    monitor: QmpMonitor
    engine: Engine
    rescue: Rescue
    """What the watchdog does when this process is killed."""
    initial: Stop
    """Why it is stopped now."""
    was_running: bool
    """It ran when we came."""
    notices: tuple[str, ...] = ()
    """What a person should know about how it was opened; sentences."""
    undo: Callable[[], Awaitable[None]] = field(default=_nothing)
    """Puts QEMU's own settings back, where attaching changed some."""
    _watchdog: Watchdog | None = None

    async def guard(self) -> None:
        """From here on a watchdog restores the guest if this process is killed.

        A booted VM that nobody takes over is ended after its orphan timeout, unless it is to be
        kept.
        """
        mortal = self.info.booted and not self.info.keep
        self._watchdog = await start_watchdog(
            self.rescue,
            process=self.info.process,
            lock=self.claim.folder.lock,
            orphan_timeout=self.info.orphan_timeout if mortal else 0,
        )

    async def memory_map(self) -> list[MemoryRegion]:
        """The guest's physical memory, ascending. Raises MonitorError."""
        return await hmp.memory_map(self.monitor)

    async def close(self, *, restore: bool = True) -> None:
        """Leave the VM, which is stopped or gone; call it once.

        With ``restore`` it runs on if it ran when we came; without, it stays stopped.
        """
        try:
            await self.engine.close()
            with contextlib.suppress(VmGone):
                if self.run_control.state is not VmRunState.GONE:
                    await self.undo()
                    await self._settle(running=restore and self.was_running)
        finally:
            await self.run_control.close()
            if self._watchdog is not None:
                await self._watchdog.bye()
            self.process.close()
            self.claim.release()

    async def _settle(self, *, running: bool) -> None:
        """The engine's leaving may have changed the run state: make it what it shall be."""
        state = await self.run_control.sync()
        if running and PERMITS[state].resumable:
            await self.run_control.cont()
        elif not running and PERMITS[state].executing:
            await self.run_control.pause()


async def open_machine(
    info: VmInfo,
    claim: Claim,
    open_engine: OpenEngine,
    process: ExitWatch,
    connection: QmpConnection,
    *,
    notices: tuple[str, ...] = (),
    undo: Callable[[], Awaitable[None]] = _nothing,
) -> Machine:
    """Stop the VM and open its engine.

    On failure the VM runs again if it ran, ``undo`` is done, and the monitor is free again.
    """
    run_control = await QmpRunControl.open(connection, process)
    try:
        monitor = QmpMonitor(connection)
        initial, was_running = await _stop(run_control)
        try:
            opened = await open_engine(info, monitor, run_control)
        except BaseException:
            if was_running:
                with contextlib.suppress(MonitorError, VmGone):
                    await run_control.cont()
            raise
    except BaseException:
        with contextlib.suppress(MonitorError, VmGone):
            await undo()
        await run_control.close()
        raise
    if info.recording is not None:
        recording = Recording(Path(info.recording), info.recorded_machine, monitor)
        run_control.before_quit = recording.note_end
        run_control.subscribe(recording.on_event)
    return Machine(
        msgspec.structs.replace(info, engine=opened.engine.name),
        claim,
        process,
        run_control,
        monitor,
        opened.engine,
        opened.rescue,
        initial,
        was_running,
        (*notices, *([opened.notice] if opened.notice else [])),
        undo,
    )


async def _stop(run_control: QmpRunControl) -> tuple[Stop, bool]:
    """Stop the VM if it runs: why it is stopped now, and whether it ran."""
    was_running = PERMITS[await run_control.sync()].executing
    if was_running:
        await run_control.pause()
    return Stop(VcpuIndex(0), stop_reason(run_control.state)), was_running


def stop_reason(state: VmRunState) -> StopReason:
    """Why a VM that we find in ``state`` is stopped."""
    match state:
        case VmRunState.PRELAUNCH:
            return Frozen()
        case VmRunState.GUEST_PANICKED:
            return Panicked()
        case VmRunState.SHUTDOWN:
            return ShutDown()
        case VmRunState.PAUSED | VmRunState.DEBUG:
            return Paused()
        case _:
            return Halted(state)
