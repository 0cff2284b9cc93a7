"""A stop that the stub does not report.

Since 8.1 QEMU sends a stop reply only where it thinks that one is owed; the monitor's STOP event
always comes.
"""

from __future__ import annotations

import asyncio
import contextlib

from kvmdbg.backend.stub.connection import StubConnection
from kvmdbg.errors import KvmdbgError
from kvmdbg.rsp.stops import SIGNAL_INT, Stopped
from kvmdbg.target.capabilities import RunControl
from kvmdbg.target.runstate import PERMITS, RunEvent

SILENCE = 1.0
"""Seconds that a stop reply may come after the monitor's STOP."""


class SilenceGuard:
    """Ends a run when the monitor says that the VM stopped and the stub stays silent."""

    def __init__(self, connection: StubConnection, run_control: RunControl) -> None:
        self._connection = connection
        self._run_control = run_control
        self._timer: asyncio.TimerHandle | None = None
        self._confirming: asyncio.Task[None] | None = None
        run_control.subscribe(self._on_event)

    def _on_event(self, event: RunEvent) -> None:
        if event in (RunEvent.STOP, RunEvent.RESUME, RunEvent.GONE) and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if event is RunEvent.STOP and self._connection.resumed:
            self._arm()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SILENCE, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._connection.resumed:
            self._confirming = asyncio.create_task(self._confirm())

    async def _confirm(self) -> None:
        with contextlib.suppress(KvmdbgError):
            permits = PERMITS[await self._run_control.sync()]
            if permits.inspectable:
                self._connection.stopped_elsewhere(Stopped(SIGNAL_INT))
            elif not permits.executing:
                # A snapshot or the like: it goes on by itself, or stops for good later.
                self._arm()
