"""One live VM with everything that :class:`kvmdbg.target.vm.Vm` is made from."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvmdbg.addr import VcpuIndex
from kvmdbg.arch import ARCHITECTURES
from kvmdbg.backend.stub import StubEngine, Watchdog, start_watchdog
from kvmdbg.errors import KvmdbgError, MonitorError, VmGone
from kvmdbg.machine.exitwatch import ExitWatch
from kvmdbg.machine.runcontrol import QmpMonitor, QmpRunControl
from kvmdbg.machine.runtime import VmInfo
from kvmdbg.qmp import QmpConnection
from kvmdbg.target.runstate import PERMITS, VmRunState
from kvmdbg.target.stops import Frozen, Halted, Panicked, Paused, ShutDown, Stop, StopReason


async def _nothing() -> None:
    pass


@dataclass
class Machine:
    """An open VM: stopped, debugged by one engine, under our run control."""

    info: VmInfo
    process: ExitWatch
    run_control: QmpRunControl
    monitor: QmpMonitor
    engine: StubEngine
    initial: Stop
    """Why it is stopped now."""
    was_running: bool
    """It ran when we came."""
    notices: tuple[str, ...] = ()
    """What a person should know about how it was opened; sentences."""
    undo: Callable[[], Awaitable[None]] = field(default=_nothing)
    """Puts QEMU's own settings back, where attaching changed some."""
    _watchdog: Watchdog | None = None

    async def guard(self, lock: Path) -> None:
        """From here on a watchdog restores the guest if this process is killed.

        ``lock``: the file that an owner of this VM holds. A booted VM that nobody takes over is
        ended after its orphan timeout, unless it is to be kept.
        """
        mortal = self.info.booted and not self.info.keep
        self._watchdog = await start_watchdog(
            self.engine.socket_path,
            process=self.info.process,
            lock=lock,
            orphan_timeout=self.info.orphan_timeout if mortal else 0,
        )

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

    async def _settle(self, *, running: bool) -> None:
        """The engine's leaving may have changed the run state: make it what it shall be."""
        state = await self.run_control.sync()
        if running and PERMITS[state].resumable:
            await self.run_control.cont()
        elif not running and PERMITS[state].executing:
            await self.run_control.pause()


async def open_machine(
    info: VmInfo,
    stub: Path,
    process: ExitWatch,
    connection: QmpConnection,
    *,
    notices: tuple[str, ...] = (),
    undo: Callable[[], Awaitable[None]] = _nothing,
) -> Machine:
    """Stop the VM and open its engine on the stub that listens at ``stub``.

    On failure the VM runs again if it ran, ``undo`` is done, and the monitor is free again.
    """
    run_control = await QmpRunControl.open(connection, process)
    try:
        return await _open_stopped(info, stub, process, run_control, connection, notices, undo)
    except BaseException:
        with contextlib.suppress(MonitorError, VmGone):
            await undo()
        await run_control.close()
        raise


async def _open_stopped(
    info: VmInfo,
    stub: Path,
    process: ExitWatch,
    run_control: QmpRunControl,
    connection: QmpConnection,
    notices: tuple[str, ...],
    undo: Callable[[], Awaitable[None]],
) -> Machine:
    monitor = QmpMonitor(connection)
    was_running = PERMITS[await run_control.sync()].executing
    if was_running:
        await run_control.pause()
    initial = Stop(VcpuIndex(0), stop_reason(run_control.state))
    try:
        engine = await StubEngine.open(
            stub,
            arch=ARCHITECTURES[info.arch],
            monitor=monitor,
            run_control=run_control,
            pid=info.pid,
        )
    except (KvmdbgError, OSError):
        if was_running:
            with contextlib.suppress(MonitorError, VmGone):
                await run_control.cont()
        raise
    return Machine(info, process, run_control, monitor, engine, initial, was_running, notices, undo)


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
