"""A recorded run in QEMU: where it is, and the snapshots from which QEMU goes back in it.

QEMU goes back by loading a snapshot and running on from there, so the snapshots are what going back
costs. They are taken as the replay first comes by, and close before where it goes back from; QEMU
keeps them in a temporary file of its own.

Source: QEMU's ``docs/system/replay.rst`` and ``qapi/replay.json``.
"""

from __future__ import annotations

import logging

from kvmdbg.errors import TargetError
from kvmdbg.target.capabilities import MonitorQuery, RunControl
from kvmdbg.target.runstate import PERMITS

log = logging.getLogger(__name__)

SNAPSHOTS = 16
"""Snapshots along a whole replay, at most: each is as large as what the guest uses of its RAM."""

INTERVAL = 250_000_000
"""Instructions between two of them, at least: 2 s of replay."""

NEAR = 1_000_000
"""Instructions that QEMU may have to run again to go back."""


class Replay:
    """Positions are numbers of instructions since the beginning; ``end`` is the last one."""

    def __init__(self, monitor: MonitorQuery, run_control: RunControl, end: int) -> None:
        self._monitor = monitor
        self._run_control = run_control
        self._end = end
        self._interval = max(INTERVAL, end // SNAPSHOTS)
        self._due = -1
        """Where QEMU has been told to stop."""

    async def position(self) -> int:
        """Where the replay is; the VM may run."""
        return int((await self._monitor.qmp("query-replay"))["icount"])

    async def begin(self) -> None:
        """Call it once: with no snapshot before it there is no way back to the beginning."""
        if await self.position() == 0 and (refused := await self._save("begin")):
            raise TargetError(f"QEMU cannot take a snapshot of the replay: {refused}")

    async def advance(self) -> bool:
        """Call it before the VM runs on; false at the end, where it must not: beyond, QEMU has the
        machine shut down, and could not go back any more."""
        position = await self.position()
        if position >= self._end:
            return False
        if position == self._due:
            await self.snapshot(f"at{position}")
        if position >= self._due:
            self._due = min(self._end, (position // self._interval + 1) * self._interval)
            await self._monitor.qmp("replay-break", {"icount": self._due})
        return True

    async def arrived(self) -> bool:
        """True where :meth:`advance` had the VM stopped."""
        return await self.position() == self._due

    async def depart(self) -> None:
        """Call it before QEMU goes elsewhere: it aborts if it is to stop in the past."""
        self._due = -1
        await self._monitor.qmp("replay-delete-break")

    async def seek(self, position: int) -> None:
        """Take the VM to ``position``, or to what stops it before."""
        await self.depart()
        stops = self._run_control.stops
        await self._monitor.qmp("replay-seek", {"icount": position})
        while PERMITS[await self._run_control.sync()].executing:
            await self._run_control.wait_stop(stops)

    async def last_snapshot(self, position: int) -> int:
        """Where the last snapshot before ``position`` is, which a former owner may have taken."""
        taken = [
            snapshot["icount"]
            for device in await self._monitor.qmp("query-block")
            for snapshot in device.get("inserted", {}).get("image", {}).get("snapshots", [])
        ]
        return max((at for at in taken if at < position), default=0)

    async def snapshot(self, name: str) -> None:
        """Take a snapshot, in the place of one of that ``name``. Where QEMU refuses, as it does
        while input is being replayed, there is none, and going back takes longer."""
        if refused := await self._save(name):
            log.warning("no snapshot %s of the replay: %s", name, refused)

    async def _save(self, name: str) -> str:
        """Why QEMU did not; empty where it did."""
        return (await self._monitor.hmp(f"savevm kvmdbg-{name}")).strip()
