"""When a VM's owner ends, and whether the VM ends with it.

================  ===========================  ==============================================
the VM was        last client left in order    last client was killed or crashed
================  ===========================  ==============================================
booted by us      ended after ``GRACE``        ended after the definition's ``orphan_timeout``
booted, --keep    stays                        stays
attached to       left as found after GRACE    left as found after GRACE
================  ===========================  ==============================================

An attached VM is never ended. A new client stops every clock.
"""

from __future__ import annotations

import asyncio
from enum import Enum

from kvmdbg.owner.protocol import ClientInfo
from kvmdbg.target.breakpoints import ClientId

GRACE = 5.0
"""Seconds between the last orderly leave and the end: time for the next client to come."""


class End(Enum):
    """How an owner ends."""

    QUIT = "quit"
    """The VM ends too."""

    LEAVE = "leave"
    """The VM is restored and goes on without us."""

    GONE = "gone"
    """The VM ended by itself."""


class Lifetime:
    """Keeps the list of clients and decides, by the table above, when it is over.

    ``orphan_timeout``: seconds; 0 means that an orphan is never ended.
    """

    def __init__(self, *, booted: bool, keep: bool, orphan_timeout: float) -> None:
        self.keep = keep
        self._booted = booted
        self._orphan_timeout = orphan_timeout
        self._clients: dict[ClientId, ClientInfo] = {}
        self._orderly = False
        self._timer: asyncio.TimerHandle | None = None
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._rearm()

    @property
    def clients(self) -> tuple[ClientInfo, ...]:
        """Who is there."""
        return tuple(self._clients.values())

    @property
    def over(self) -> bool:
        """Nobody can join any more."""
        return self._end.done()

    def joined(self, client: ClientInfo) -> None:
        """A client came."""
        self._clients[client.id] = client
        self._rearm()

    def left(self, client: ClientId, *, orderly: bool | None) -> None:
        """A client left; ``orderly`` None: its leaving says nothing (a bridge)."""
        if self._clients.pop(client, None) is None:
            return
        if orderly is not None:
            self._orderly = orderly
        self._rearm()

    def set_keep(self) -> None:
        """The VM shall outlive its clients."""
        self.keep = True
        self._rearm()

    def end(self, how: End) -> None:
        """It is over now."""
        if not self._end.done():
            self._end.set_result(how)

    async def wait_end(self) -> End:
        """Return when it is over."""
        return await asyncio.shield(self._end)

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._clients or self.keep:
            return
        how = End.QUIT if self._booted else End.LEAVE
        delay = GRACE if self._orderly or not self._booted else self._orphan_timeout
        if delay > 0:
            self._timer = asyncio.get_running_loop().call_later(delay, self.end, how)
