"""The guest's TSC, kept still while a user looks at the stopped VM.

QEMU keeps its own clocks and kvmclock across a stop, but not the TSC: a guest that tells time by it
would find all that time gone at once, and complain of lockups or of an unstable clocksource.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kvmdbg.agent.client import AgentClient
from kvmdbg.errors import AgentRefused

log = logging.getLogger(__name__)

LEAST = 0.01
"""Seconds that are worth the trouble; shorter stops are added up."""

PLAUSIBLE = 4
"""How many times faster or slower than it says a TSC may be."""


def now() -> float:
    """Seconds, at the pace of the processor's own counter: no NTP bends it."""
    return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)


ReadClock = Callable[[], Awaitable[int]]
"""Reads the counter, in cycles."""


@dataclass(frozen=True)
class _Sample:
    """The guest's counter at a time."""

    at: float
    count: int


class GuestClock:
    """``khz`` is the TSC's frequency, as KVM has it; 0 where there is nothing to be kept still."""

    def __init__(self, agent: AgentClient, khz: int, read: ReadClock) -> None:
        self._agent = agent
        self._khz = khz
        self._read = read
        self._since: float | None = None
        self._owed = 0.0
        self._sample: _Sample | None = None

    async def watch(self) -> None:
        """Look at the counter, to see later how fast it really is."""
        if self._khz:
            self._sample = await self._look()

    def stopped(self, at: float) -> None:
        """The guest executes nothing since ``at``; only the first call of several counts."""
        if self._since is None:
            self._since = at

    def forget(self) -> None:
        """The guest starts again, with a clock that does so too."""
        self._since, self._owed, self._sample = None, 0.0, None

    async def resume(self) -> None:
        """The guest runs on, at once; holds it until then."""
        if self._owing() >= LEAST and self._khz:
            await self._agent.hold()
            await self._shift()
        elif self._since is not None:
            self._owed, self._since = self._owing(), None

    @property
    def works(self) -> bool:
        """False where this KVM has turned out not to do it."""
        return self._khz > 0

    def _owing(self) -> float:
        return self._owed + (now() - self._since if self._since is not None else 0.0)

    async def _look(self) -> _Sample:
        return _Sample(now(), await self._read())

    def _hertz(self, sample: _Sample) -> float:
        """As measured since the last look: an emulated processor's is not what it says. Not if the
        guest has set the counter meanwhile."""
        stated = self._khz * 1000.0
        last = self._sample
        if last is None or sample.at - last.at < LEAST:
            return stated
        measured = (sample.count - last.count) / (sample.at - last.at)
        return measured if 1 / PLAUSIBLE < measured / stated < PLAUSIBLE else stated

    async def _shift(self) -> None:
        before = await self._look()
        hertz = self._hertz(before)
        cycles = round(self._owing() * hertz)
        self._since, self._owed = None, 0.0
        try:
            await self._agent.shift_clock(-cycles)
            self._sample = after = await self._look()
            moved, passed = after.count - before.count, (after.at - before.at) * hertz
            # PVM takes the order, and does nothing. A small move is not seen for the time it takes.
            seen = moved - passed < -cycles / 2 or passed > cycles / 4
            why = "" if seen else "KVM does not do as it says"
        except AgentRefused as error:
            why = str(error)
        if why:
            log.warning("the guest's TSC runs on while it is stopped: %s", why)
            self._khz = 0
