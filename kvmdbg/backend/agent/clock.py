"""The guest's TSC, kept still while a user looks at the stopped VM.

QEMU keeps its own clocks and kvmclock across a stop, but not the TSC: a guest that tells time by it
would find all that time gone at once, and complain of lockups or of an unstable clocksource.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from kvmdbg.agent.client import AgentClient
from kvmdbg.errors import AgentRefused

log = logging.getLogger(__name__)

LEAST = 0.01
"""Seconds that are worth the trouble; shorter stops are added up."""


def now() -> float:
    """Seconds, at the pace of the processor's own counter: no NTP bends it."""
    return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)


ReadClock = Callable[[], Awaitable[int]]
"""Reads the counter, in cycles."""


class GuestClock:
    """``khz`` is the TSC's frequency; 0 where there is nothing to be kept still."""

    def __init__(self, agent: AgentClient, khz: int, read: ReadClock) -> None:
        self._agent = agent
        self._khz = khz
        self._read = read
        self._since: float | None = None
        self._owed = 0.0

    def stopped(self, at: float) -> None:
        """The guest executes nothing since ``at``; only the first call of several counts."""
        if self._since is None:
            self._since = at

    def forget(self) -> None:
        """The guest starts again, with a clock that does so too."""
        self._since, self._owed = None, 0.0

    async def resume(self) -> None:
        """The guest runs on, at once; holds it until then."""
        if self._since is not None:
            self._owed += now() - self._since
            self._since = None
        if self._owed >= LEAST and self._khz:
            await self._shift(round(self._owed * self._khz * 1000))
            self._owed = 0.0

    @property
    def works(self) -> bool:
        """False where this KVM has turned out not to do it."""
        return self._khz > 0

    async def _shift(self, cycles: int) -> None:
        await self._agent.hold()
        began, before = now(), await self._read()
        try:
            await self._agent.shift_clock(-cycles)
            moved = await self._read() - before
            passed = (now() - began) * self._khz * 1000
            # PVM takes the order, and does nothing. A small move is not seen for the time it takes.
            seen = moved - passed < -cycles / 2 or passed > cycles / 4
            why = "" if seen else "KVM does not do as it says"
        except AgentRefused as error:
            why = str(error)
        if why:
            log.warning("the guest's TSC runs on while it is stopped: %s", why)
            self._khz = 0
