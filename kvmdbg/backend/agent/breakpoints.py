"""Breakpoints and watchpoints in the agent; which of them get the few debug registers.

A software breakpoint makes room for one that needs a debug register, where it can; a hardware
breakpoint that gets none becomes an int3. See :mod:`~.sites` for those.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from kvmdbg.addr import Gva
from kvmdbg.agent.client import AgentClient
from kvmdbg.backend.agent.guest import GuestArch
from kvmdbg.backend.agent.placement import Abilities, Piece, pieces
from kvmdbg.backend.agent.sites import Site, Sites
from kvmdbg.errors import AgentRefused, BreakpointError
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec, Placement
from kvmdbg.target.stops import BreakpointHit, WatchpointHit
from kvmdbg.wire.structs import Kind, Point, PointState, Stop

_WATCH_KINDS = {
    BreakpointKind.WRITE: Kind.WATCH_WRITE,
    BreakpointKind.READ: Kind.WATCH_ACCESS,  # x86 cannot watch for reads alone
    BreakpointKind.ACCESS: Kind.WATCH_ACCESS,
}

_DISARMED = {
    PointState.OVERWRITTEN: "the guest has overwritten it; it is put back when the VM runs on",
    PointState.WITHDRAWN: "it is out while QEMU logs writes to that memory, as for a migration",
    PointState.YIELDED: "it is out while the guest patches its own code",
}


@dataclass
class _Watch:
    """A debug register that watches, and the watchpoints that it does so for."""

    piece: Piece
    point: Point
    specs: set[BreakpointSpec] = field(default_factory=set)


class AgentBreakpoints:
    """Implements :class:`kvmdbg.target.breakpoints.BreakpointStore`."""

    kinds = frozenset(BreakpointKind)

    def __init__(
        self, agent: AgentClient, guest: GuestArch, sites: Sites, abilities: Abilities
    ) -> None:
        self._agent = agent
        self._guest = guest
        self._sites = sites
        self._abilities = abilities
        self._watches: dict[tuple[Kind, Piece], _Watch] = {}

    def guard_against(self, patchers: Callable[[], Awaitable[Sequence[Gva]]]) -> None:
        """See :class:`kvmdbg.target.capabilities.PatchesCode`."""
        self._sites.guard_against(patchers)

    # --- the capability --------------------------------------------------------------------------

    async def insert(self, spec: BreakpointSpec) -> None:
        """See the capability."""
        if spec.kind.is_watchpoint:
            await self._watch(spec)
            return
        try:
            await self._sites.add(spec)
        except BreakpointError as error:
            raise BreakpointError(f"the {spec} is refused: {error}{self._held_by()}") from error

    async def remove(self, spec: BreakpointSpec) -> None:
        """See the capability."""
        if spec.kind.is_watchpoint:
            await self._unwatch(spec)
        else:
            await self._sites.discard(spec)

    async def clear(self) -> None:
        """Remove all."""
        await self._sites.clear()
        while self._watches:
            _, watch = self._watches.popitem()
            await self._agent.remove(watch.point.id)

    async def describe(self) -> list[Placement]:
        """See the capability."""
        points = {point.id: point for point in await self._agent.points()}
        found = [_placement(spec, site, points) for site in self._sites.all for spec in site.specs]
        for spec in {spec for watch in self._watches.values() for spec in watch.specs}:
            own = [watch.point for watch in self._watches.values() if spec in watch.specs]
            registers = ", ".join(str(point.debug_register) for point in own)
            hits = sum(points.get(point.id, point).hits for point in own)
            found.append(Placement(spec, f"debug register {registers}", hits=hits))
        return sorted(found, key=lambda f: (f.spec.address, f.spec.kind.value, f.spec.length))

    # --- what a stop means -----------------------------------------------------------------------

    def hit(self, point: int) -> BreakpointHit | None:
        """The hit of a point in code; None if there is none with that number."""
        site = self._sites.of_point(point)
        return BreakpointHit(site.specs[0].kind, site.address) if site is not None else None

    async def watched(self, stop: Stop) -> list[WatchpointHit]:
        """The hits of what watches, one for each debug register that fired; none where only reads
        are watched for and this was none."""
        hits: list[WatchpointHit] = []
        for watch in sorted(self._watches.values(), key=lambda watch: watch.point.debug_register):
            fired = stop.dr6 >> watch.point.debug_register & 1
            if not watch.specs or not (fired or watch.point.id == stop.point):
                continue
            specs = sorted(watch.specs, key=lambda s: (s.kind is BreakpointKind.READ, s.length))
            reads_only = specs[0].kind is BreakpointKind.READ
            watched = range(watch.piece.address, watch.piece.address + watch.piece.length)
            hit = WatchpointHit(specs[0].kind, specs[0].address)
            if reads_only and not await self._guest.may_have_read(self._agent, stop.vcpu, watched):
                continue
            if hit not in hits:  # another piece of the same watchpoint
                hits.append(hit)
        return hits

    def is_watched(self, hit: WatchpointHit) -> bool:
        """True while the watchpoint that was hit is there."""
        specs = (spec for watch in self._watches.values() for spec in watch.specs)
        return any((spec.kind, spec.address) == (hit.kind, hit.address) for spec in specs)

    # --- watchpoints -----------------------------------------------------------------------------

    async def _watch(self, spec: BreakpointSpec) -> None:
        room = self._agent.welcome.debug_registers
        wanted = list(islice(pieces(spec.address, spec.length), room + 1))
        if len(wanted) > room:
            raise BreakpointError(
                f"the {spec} is refused: it takes more than the {room} debug registers of a vCPU: "
                f"watch {8 * room} aligned bytes at most"
            )
        if spec.address >> 63 and not self._abilities.kernel_watch:
            raise BreakpointError(
                f"the {spec} is refused: this host's KVM does not tell us of what the guest's "
                "kernel writes or reads: use --accel tcg"
            )
        try:
            for piece in wanted:
                (await self._watch_piece(_WATCH_KINDS[spec.kind], piece)).specs.add(spec)
            await self._sites.keep_spare()
        except BaseException:
            await self._unwatch(spec)
            raise

    async def _watch_piece(self, kind: Kind, piece: Piece) -> _Watch:
        watch = self._watches.get((kind, piece))
        while watch is None:
            try:
                point = await self._agent.insert(kind, piece.address, piece.length)
            except AgentRefused as error:
                if error.errno != errno.ENOSPC:
                    raise BreakpointError(str(error)) from error
                if not await self._sites.make_room():
                    raise BreakpointError(
                        f"no debug register is left for a watchpoint at {piece.address:#x}, "
                        f"length {piece.length}{self._held_by()}"
                    ) from error
            else:
                watch = self._watches[kind, piece] = _Watch(piece, point)
        return watch

    async def _unwatch(self, spec: BreakpointSpec) -> None:
        for key, watch in tuple(self._watches.items()):
            watch.specs.discard(spec)
            if not watch.specs:
                del self._watches[key]
                await self._agent.remove(watch.point.id)

    def _held_by(self) -> str:
        """The end of a sentence that says that there is no debug register left."""
        holders = {
            point.debug_register: spec
            for point, spec in [
                *((s.point, s.specs[-1]) for s in self._sites.all if s.in_register),
                *((w.point, min(w.specs, key=str)) for w in self._watches.values() if w.specs),
            ]
            if point is not None
        }
        *most, last = [f"the {holders[register]}" for register in sorted(holders)] or [""]
        if not last:
            return ""
        names = f"{', '.join(most)} and {last}" if most else last
        return f": they are held by {names}; remove one of them"


def _placement(spec: BreakpointSpec, site: Site, points: dict[int, Point]) -> Placement:
    if site.point is None:
        return Placement(spec, "not armed", armed=False, note=site.note)
    point = points.get(site.point.id, site.point)
    if site.in_register:
        return Placement(
            spec, f"debug register {point.debug_register}", note=site.note, hits=point.hits
        )
    if point.state is PointState.ARMED:
        return Placement(spec, "int3", note=site.note, hits=point.hits)
    return Placement(spec, "int3", armed=False, note=_DISARMED[point.state], hits=point.hits)
