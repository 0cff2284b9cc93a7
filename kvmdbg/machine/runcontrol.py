"""The VM's run state over QMP: driven by events, confirmed by ``query-status``.

Source: QEMU's ``qapi/run-state.json`` and ``qapi/misc.json``.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from kvmdbg.addr import VcpuIndex
from kvmdbg.errors import MonitorError, VmGone
from kvmdbg.machine.exitwatch import ExitWatch
from kvmdbg.qmp import QmpConnection, QmpEvent
from kvmdbg.target.runstate import NEXT, PERMITS, RunEvent, VmRunState

STOP_TIMEOUT = 30.0
"""Seconds for a ``stop``: QEMU drains its disks first."""

STOP_EVENT_TIMEOUT = 1.0
"""Seconds for the event of a stop that has happened; then QEMU is asked."""

QUIT_TIMEOUT = 10.0
RESET_TIMEOUT = 10.0

_LAST_WORDS = 2.0  # seconds between a closed monitor and the end of its process, or the reverse
_REFRESH_DELAY = 0.05  # seconds for somebody else to ask query-status before we do
_SYNC_TRIES = 4  # a guest that resets itself in a loop has an event for every answer
_EVENTS = {event.value: event for event in RunEvent if event is not RunEvent.GONE}

# SHUTDOWN's reason (QAPI's ShutdownCause) where nobody killed QEMU.
_CAUSES = {
    "host-qmp-quit": "a monitor command told QEMU to quit",
    "host-signal": "a signal told QEMU to end",
    "host-ui": "its window was closed",
    "guest-shutdown": "the guest shut down",
    "guest-reset": "the guest reset itself and QEMU was told not to reboot",
    "guest-panic": "the guest kernel panicked",
}


class QmpMonitor:
    """:class:`kvmdbg.target.capabilities.MonitorQuery` on a QMP connection."""

    def __init__(self, connection: QmpConnection) -> None:
        self._connection = connection

    async def hmp(self, command: str, vcpu: VcpuIndex | None = None) -> str:
        """Run a human monitor command and return what it printed."""
        about = {} if vcpu is None else {"cpu-index": vcpu}
        return str(await self.qmp("human-monitor-command", {"command-line": command, **about}))

    async def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command and return its result."""
        return await self._connection.execute(command, arguments)


class QmpRunControl:
    """:class:`kvmdbg.target.capabilities.RunControl` of one QEMU; made by :meth:`open`."""

    def __init__(self, connection: QmpConnection, process: ExitWatch) -> None:
        self._connection = connection
        self._process = process
        self._state = VmRunState.PAUSED
        self._changes = 0
        self._stops = 0
        self._stopped = asyncio.Event()
        self._subscribers: list[Callable[[RunEvent], None]] = []
        self._resets: list[asyncio.Future[None]] = []
        self._refresh_timer: asyncio.TimerHandle | None = None
        self._cause = ""
        self._quitting = False
        self.before_quit: Callable[[], Awaitable[None]] | None = None
        """What is to be done before we end QEMU."""
        self._exit_text = ""
        self._gone = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        connection.on_event(self._on_event)

    @classmethod
    async def open(cls, connection: QmpConnection, process: ExitWatch) -> QmpRunControl:
        """Ask for the state, and follow it from here on."""
        control = cls(connection, process)
        control._spawn(control._watch_end())
        try:
            await control.sync()
        except (MonitorError, VmGone):
            await control.close()
            raise
        return control

    # --- what is known ---------------------------------------------------------------------------

    @property
    def state(self) -> VmRunState:
        """The last known run state."""
        return self._state

    @property
    def exit_text(self) -> str:
        """How QEMU ended, as half a sentence; meaningful when the state is GONE."""
        return self._exit_text

    @property
    def exit_signal(self) -> int:
        """The signal that killed QEMU; 0 where none did or that is not known."""
        return self._process.killed_by

    def subscribe(self, callback: Callable[[RunEvent], None]) -> None:
        """``callback`` is called for every event, in order, from the event loop."""
        self._subscribers.append(callback)

    async def wait_gone(self) -> None:
        """Return when QEMU has ended and subscribers know."""
        await self._gone.wait()

    @property
    def stops(self) -> int:
        """How many times QEMU has said that the VM stopped."""
        return self._stops

    async def wait_stop(self, known: int) -> None:
        """Return when :attr:`stops` is greater than ``known``."""
        try:
            async with asyncio.timeout(STOP_EVENT_TIMEOUT):
                while self._stops <= known and self._state is not VmRunState.GONE:
                    self._stopped.clear()
                    await self._stopped.wait()
        except TimeoutError:
            await self.sync()

    # --- commands --------------------------------------------------------------------------------

    async def sync(self) -> VmRunState:
        """Ask QEMU; when this returns, every event before the answer has been delivered."""
        changes = -1
        for _ in range(_SYNC_TRIES):
            # An event that comes with the answer may be newer than it: then ask again.
            if changes == self._changes:
                break
            changes = self._changes
            answer = await self._execute("query-status")
            self._state = _run_state(answer["status"])
        self._cancel_refresh()
        return self._state

    async def pause(self) -> None:
        """Stop the VM."""
        await self._execute("stop", timeout=STOP_TIMEOUT)
        await self.sync()

    async def cont(self) -> None:
        """Resume the VM."""
        await self._execute("cont")

    async def reset(self) -> None:
        """Reset the machine and wait until that is done."""
        done = asyncio.get_running_loop().create_future()
        self._resets.append(done)
        try:
            await self._execute("system_reset")
            async with asyncio.timeout(RESET_TIMEOUT):
                await done
        except TimeoutError:
            raise MonitorError(
                f"QEMU was told to reset the VM and did not within {RESET_TIMEOUT:g} s"
            ) from None
        finally:
            self._resets.remove(done)
        await self.sync()

    async def quit(self) -> None:
        """End QEMU and wait until it has ended."""
        self._quitting = True
        if self.before_quit is not None:
            await self.before_quit()
        try:
            await self._connection.execute("quit")
        except VmGone:
            pass  # QEMU may be quicker at ending than at answering
        except MonitorError:
            self._quitting = False
            raise
        try:
            async with asyncio.timeout(QUIT_TIMEOUT):
                await self._gone.wait()
        except TimeoutError:
            raise MonitorError(
                f"QEMU was told to quit and did not within {QUIT_TIMEOUT:g} s: "
                f"kill -9 {self._process.pid} ends it"
            ) from None

    async def _execute(self, command: str, *, timeout: float = 10.0) -> Any:
        try:
            return await self._connection.execute(command, timeout=timeout)
        except VmGone:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * _LAST_WORDS):
                    await self._gone.wait()
            raise VmGone(f"the VM has ended: {self._exit_text or 'no telling how'}") from None

    async def close(self) -> None:
        """Hang up, and follow the VM no longer."""
        self._cancel_refresh()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.close()

    # --- events ----------------------------------------------------------------------------------

    def _on_event(self, message: QmpEvent) -> None:
        event = _EVENTS.get(message.name)
        if event is None:
            return
        self._changes += 1
        if event is RunEvent.SHUTDOWN:
            self._cause = str(message.data.get("reason", ""))
        elif event is RunEvent.RESET:
            for done in self._resets:
                if not done.done():
                    done.set_result(None)
        self._enter(event)

    def _enter(self, event: RunEvent) -> None:
        """Move to the event's state, and tell."""
        if self._quitting and event in (RunEvent.RESUME, RunEvent.STOP):
            return  # our own doing, on the way out
        state = NEXT[event]
        self._cancel_refresh()
        if event is RunEvent.STOP:
            self._stops += 1
            self._stopped.set()
        if state is not None:
            self._state = state
        else:
            if event is RunEvent.STOP and PERMITS[self._state].executing:
                self._state = VmRunState.PAUSED  # stopped, that much is certain
            loop = asyncio.get_running_loop()
            self._refresh_timer = loop.call_later(_REFRESH_DELAY, self._refresh)
        for callback in tuple(self._subscribers):
            callback(event)

    def _refresh(self) -> None:
        self._refresh_timer = None
        self._spawn(self._ask_state())

    async def _ask_state(self) -> None:
        # Whoever acts next meets the same failure, and reports it.
        with contextlib.suppress(MonitorError, VmGone):
            await self.sync()

    def _cancel_refresh(self) -> None:
        if self._refresh_timer is not None:
            self._refresh_timer.cancel()
            self._refresh_timer = None

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the end ---------------------------------------------------------------------------------

    async def _watch_end(self) -> None:
        """Wait for the end of monitor and process: the first announces the other."""
        closed = asyncio.create_task(self._connection.wait_closed())
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({closed, ended}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({closed, ended}, timeout=_LAST_WORDS)
        finally:
            closed.cancel()
            ended.cancel()
        self._exit_text = self._how_it_ended()
        self._enter_gone()

    def _enter_gone(self) -> None:
        self._cancel_refresh()
        self._state = VmRunState.GONE
        self._stopped.set()
        self._gone.set()
        for callback in tuple(self._subscribers):
            callback(RunEvent.GONE)

    def _how_it_ended(self) -> str:
        if not self._process.ended:
            return f"QEMU closed its monitor, but its process {self._process.pid} still runs"
        if number := self._process.killed_by:
            return f"QEMU was killed by signal {number} ({signal.Signals(number).name})"
        if self._quitting:
            return "kvmdbg told QEMU to quit"
        if self._cause in _CAUSES:
            return _CAUSES[self._cause]
        if self._process.status is None:
            return "QEMU was killed or crashed"
        return f"QEMU exited with status {self._process.status}"


def _run_state(name: str) -> VmRunState:
    try:
        return VmRunState(name)
    except ValueError:
        raise MonitorError(
            f"QEMU says that the VM is in state {name!r}, which kvmdbg does not know"
        ) from None
