"""Running backwards in a replay.

QEMU does the search: it replays what lies between a snapshot and where it is, notes where it would
have stopped for breakpoints and watchpoints, and goes to the last of these. What it does oddly, and
this hides:

- It does not say what it met.
- A watched access is shown as made, where going back has to unmake it.
- A search that is interrupted goes on with the next resumption, whatever that is.
- A seek stops at breakpoints.
- It does not look at the instruction right before the one where it begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.backend.stub.breakpoints import StubBreakpoints
from kvmdbg.backend.stub.replay import NEAR, Replay
from kvmdbg.backend.stub.resumption import Resumption
from kvmdbg.rsp.stops import SIGNAL_TRAP
from kvmdbg.target.stops import HistoryEnd, Paused, ResumePlan, Stepped, Stop, WatchpointHit

_FIRST = VcpuIndex(0)


class Backwards:
    """Runs a ``replay`` backwards; ``pc`` is that of a vCPU."""

    def __init__(
        self,
        replay: Replay,
        resumption: Resumption,
        breakpoints: StubBreakpoints,
        pc: Callable[[VcpuIndex], Awaitable[Gva]],
        forget_guest: Callable[[], None],
    ) -> None:
        self._replay = replay
        self._resumption = resumption
        self._breakpoints = breakpoints
        self._pc = pc
        self._forget_guest = forget_guest

    async def run(self, *, step: bool) -> Stop:
        """By one instruction, or to the last breakpoint or watched access before this."""
        origin = await self._replay.position()
        if origin == 0:
            return Stop(_FIRST, HistoryEnd(first=True))
        try:
            await self._approach(origin)
            if not step and (stop := await self._at_last(origin)):
                return stop
            await self._replay.depart()
            outcome = await self._resumption.back(step=step)
            if outcome.reply is None:
                return Stop(outcome.vcpu, Paused())
            if outcome.reply.signal != SIGNAL_TRAP:
                await self._give_up(origin)
                return Stop(outcome.vcpu, Paused())
        finally:
            self._forget_guest()
        return Stop(outcome.vcpu, Stepped()) if step else await self._found(outcome.vcpu)

    async def _seek(self, position: int) -> None:
        async with self._breakpoints.without_any():
            await self._replay.seek(position)
            await self._resumption.moved()

    async def _approach(self, origin: int) -> None:
        """See that QEMU, going back from here, has not far to run."""
        if origin - await self._replay.last_snapshot(origin) > 2 * NEAR:
            await self._seek(origin - NEAR)
            await self._replay.snapshot("near")
            await self._seek(origin)

    async def _at_last(self, origin: int) -> Stop | None:
        """What QEMU would miss, of the last instruction before ``origin``."""
        await self._seek(origin - 1)
        self._forget_guest()
        if (hit := self._breakpoints.hit_at(await self._pc(_FIRST))) is not None:
            return Stop(_FIRST, hit)
        if (access := await self._access(origin - 1)) is not None:
            return Stop(_FIRST, access)
        await self._seek(origin)
        return None

    async def _access(self, position: int) -> WatchpointHit | None:
        """The watched access that the instruction at ``position`` makes, if it makes one; the VM is
        there, and is there again."""
        made = await self._resumption.go(ResumePlan.step(_FIRST), self._resumption.masked)
        await self._seek(position)
        self._forget_guest()
        if made.reply is None or made.reply.watch is None:
            return None
        return self._breakpoints.watch_hit(*made.reply.watch)

    async def _give_up(self, origin: int) -> None:
        """QEMU was stopped in the middle of a search: go to where it began. Breakpoints count again
        once a search has ended, so QEMU is given one that ends at once."""
        await self._seek(origin)
        await self._resumption.back(step=True, anyway=True)
        await self._seek(origin)

    async def _found(self, vcpu: VcpuIndex) -> Stop:
        """Why the search ended where it did."""
        hit = self._breakpoints.hit_at(await self._pc(vcpu))
        if hit is not None:
            return Stop(vcpu, hit)
        position = await self._replay.position()
        if position == 0:
            return Stop(vcpu, HistoryEnd(first=True))
        await self._seek(position - 1)
        access = await self._access(position - 1)
        return Stop(vcpu, access or Paused())
