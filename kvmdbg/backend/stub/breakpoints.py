"""Breakpoints by the stub's Z and z.

Under TCG they live outside guest memory, and any number of any kind fits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from kvmdbg.addr import Gva
from kvmdbg.backend.stub.connection import StubConnection, describe
from kvmdbg.errors import BreakpointError
from kvmdbg.rsp.client import requests
from kvmdbg.rsp.stops import Watch
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec, Placement
from kvmdbg.target.stops import BreakpointHit, WatchpointHit

_WATCH_KINDS = {
    Watch.WRITE: BreakpointKind.WRITE,
    Watch.READ: BreakpointKind.READ,
    Watch.ACCESS: BreakpointKind.ACCESS,
}


class StubBreakpoints:
    """Implements :class:`kvmdbg.target.breakpoints.BreakpointStore`."""

    kinds = frozenset(BreakpointKind)

    def __init__(self, connection: StubConnection) -> None:
        self._connection = connection
        self._inserted: set[BreakpointSpec] = set()

    @property
    def inserted(self) -> frozenset[BreakpointSpec]:
        """What is inserted."""
        return frozenset(self._inserted)

    async def insert(self, spec: BreakpointSpec) -> None:
        """See the capability."""
        reply = await self._connection.request(
            requests.insert_breakpoint(spec.kind.value, spec.address, spec.length)
        )
        if reply != b"OK":
            raise BreakpointError(
                f"QEMU refused the {spec} ({describe(reply)}): it may have run out of debug "
                "registers; remove another one, or use a software breakpoint"
            )
        self._inserted.add(spec)

    async def remove(self, spec: BreakpointSpec) -> None:
        """See the capability."""
        reply = await self._connection.request(
            requests.remove_breakpoint(spec.kind.value, spec.address, spec.length)
        )
        if reply != b"OK":
            raise BreakpointError(f"QEMU did not remove the {spec}: {describe(reply)}")
        self._inserted.discard(spec)

    async def describe(self) -> list[Placement]:
        """See the capability."""
        ordered = sorted(self._inserted, key=lambda spec: (spec.address, spec.kind.value))
        return [Placement(spec, "QEMU's stub") for spec in ordered]

    async def clear(self) -> None:
        """Remove all."""
        for spec in tuple(self._inserted):
            await self.remove(spec)

    def without_watchpoints(self) -> AbstractAsyncContextManager[None]:
        """Inside, nothing is watched."""
        return self._without({spec for spec in self._inserted if spec.kind.is_watchpoint})

    def without_any(self) -> AbstractAsyncContextManager[None]:
        """Inside, nothing is inserted."""
        return self._without(set(self._inserted))

    @asynccontextmanager
    async def _without(self, lifted: set[BreakpointSpec]) -> AsyncIterator[None]:
        for spec in lifted:
            await self.remove(spec)
        try:
            yield
        finally:
            for spec in lifted:
                await self.insert(spec)

    def hit_at(self, pc: Gva) -> BreakpointHit | None:
        """The hit of a vCPU that is about to execute ``pc``; None if no breakpoint is there."""
        kinds = {s.kind for s in self._inserted if s.address == pc and not s.kind.is_watchpoint}
        if not kinds:
            return None
        software = BreakpointKind.SOFTWARE in kinds
        return BreakpointHit(BreakpointKind.SOFTWARE if software else BreakpointKind.HARDWARE, pc)

    def watch_hit(self, watch: Watch, address: Gva) -> WatchpointHit:
        """What the stub's report means: it names an address within what is watched."""
        kind = _WATCH_KINDS[watch]
        for spec in _best_first(self._inserted, kind):
            if spec.address <= address < spec.address + spec.length:
                return WatchpointHit(spec.kind, spec.address)
        return WatchpointHit(kind, address)


def _best_first(specs: Iterable[BreakpointSpec], kind: BreakpointKind) -> list[BreakpointSpec]:
    """Watchpoints, those of ``kind`` and then the shortest first."""
    watches = [spec for spec in specs if spec.kind.is_watchpoint]
    return sorted(watches, key=lambda spec: (spec.kind is not kind, spec.length, spec.address))
