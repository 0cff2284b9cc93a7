"""Where code shall stop: by an int3 in it, or by one of a processor's few debug registers."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.agent.client import AgentClient
from kvmdbg.backend.agent.guest import GuestArch
from kvmdbg.backend.agent.placement import Abilities
from kvmdbg.backend.agent.vcpus import Vcpus
from kvmdbg.errors import AgentRefused, BreakpointError, MemoryFault
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.wire.structs import Access, Kind, Point, PointFlags, PointState

TAKEN = "every debug register is taken"
_NO_INT3 = "this host's KVM hands us no int3 of the guest's {ring}"
_EARLY = "paging is off yet, so that what is there may still be overwritten"
_UNMAPPED = "nothing is mapped there yet"
_NO_RAM = "there is no RAM that an int3 could be put into"
_PATCHED = "the kernel may patch that instruction itself"
_PROGRAMS = "another program may be meant than the one that is mapped there now"


@dataclass
class Site:
    """An address at which code shall stop; without a point it is deferred."""

    address: Gva
    kinds: set[BreakpointKind] = field(default_factory=set)
    point: Point | None = None
    note: str = ""
    """Why it is what it is, or why it is deferred, as half a sentence."""

    @property
    def specs(self) -> list[BreakpointSpec]:
        """The breakpoints that it stands for."""
        kinds = sorted(self.kinds, key=lambda kind: kind.value)
        return [BreakpointSpec(kind, self.address) for kind in kinds]

    @property
    def in_register(self) -> bool:
        """True if a debug register stops there."""
        return self.point is not None and self.point.kind is Kind.HARDWARE


@dataclass(frozen=True)
class _Ground:
    """What an address is like; ``number`` is KVM's of a vCPU that has it mapped."""

    trouble: str = ""
    """Why there can be no int3."""
    lasting: bool = False
    """That will not change."""
    doubt: str = ""
    """Why a debug register is better, while there is one."""
    kernel: bool = True
    number: int = 0


class Sites:
    """All of them. A site is an int3 where that can be had, and is neither in the way nor, by its
    page, of one program only; otherwise, and where a hardware breakpoint is asked for, it takes a
    debug register."""

    def __init__(
        self, agent: AgentClient, guest: GuestArch, vcpus: Vcpus, abilities: Abilities
    ) -> None:
        self._agent = agent
        self._guest = guest
        self._vcpus = vcpus
        self._abilities = abilities
        self._sites: dict[Gva, Site] = {}
        self._stale = False
        self._find_patchers: Callable[[], Awaitable[Sequence[Gva]]] | None = None
        self._guards: list[int] = []
        self.focus = VcpuIndex(0)
        """The vCPU whose page tables count first: the one that stopped last."""

    def guard_against(self, patchers: Callable[[], Awaitable[Sequence[Gva]]]) -> None:
        """See :class:`kvmdbg.target.capabilities.PatchesCode`."""
        self._find_patchers = patchers

    @property
    def all(self) -> list[Site]:
        """By address."""
        return sorted(self._sites.values(), key=lambda site: site.address)

    def of_point(self, point: int) -> Site | None:
        """The site that the agent's point stands for."""
        for site in self._sites.values():
            if site.point is not None and site.point.id == point:
                return site
        return None

    # --- coming and going ------------------------------------------------------------------------

    async def add(self, spec: BreakpointSpec) -> None:
        """Raises BreakpointError where it can never be stopped there."""
        site = self._sites.get(spec.address) or Site(spec.address)
        before = set(site.kinds)
        site.kinds.add(spec.kind)
        if site.point is None or (not site.in_register and spec.kind is BreakpointKind.HARDWARE):
            try:
                await self._place(site)
            except BreakpointError:
                site.kinds = before
                raise
        self._sites[spec.address] = site
        await self.keep_spare()

    async def discard(self, spec: BreakpointSpec) -> None:
        """It stays as it is for the other kind, if that is there too."""
        site = self._sites[spec.address]
        if site.kinds == {spec.kind}:
            del self._sites[spec.address]
            await self._take(site, None)
        site.kinds.discard(spec.kind)

    async def clear(self) -> None:
        """Remove all."""
        for site in self.all:
            del self._sites[site.address]
            await self._take(site, None)
        await self._drop_guards()

    # --- what changes by itself ------------------------------------------------------------------

    @property
    def deferred(self) -> bool:
        """True while something is not armed that may be later."""
        return self._stale or any(site.point is None for site in self._sites.values())

    def was_reset(self) -> None:
        """The guest starts again, and its memory is filled again."""
        self._stale = True

    async def refresh(self) -> None:
        """Arm what is deferred, and what the guest has overwritten, if that is possible now."""
        software = [site for site in self._sites.values() if site.point and not site.in_register]
        stale, self._stale = self._stale, False
        if stale:
            await self._drop_guards()
        if software:
            states = {point.id: point.state for point in await self._agent.points()}
            for site in software:
                assert site.point is not None
                if stale or states.get(site.point.id) is PointState.OVERWRITTEN:
                    await self._take(site, None)
        for site in self._sites.values():
            if site.point is None:
                try:
                    await self._place(site)
                except BreakpointError as error:
                    site.note = str(error)
        await self.keep_spare()

    async def make_room(self) -> bool:
        """Turn a site that holds a debug register without need into an int3."""
        for site in self._sites.values():
            if site.in_register and BreakpointKind.HARDWARE not in site.kinds:
                ground = await self._survey(site.address)
                note = f"{ground.doubt}, but its debug register was needed" if ground.doubt else ""
                if not ground.trouble and await self._int3(site, ground, note):
                    return True
        return False

    async def keep_spare(self) -> None:
        """Leave a debug register to the guards, if a site holds one without need.

        By it they see the end of patching; with an int3 in its place KVM would go on to intercept
        those that the kernel puts into its code meanwhile.
        """
        if not self._guards:
            return
        held = [p for p in await self._agent.points() if p.kind is not Kind.SOFTWARE]
        if len(held) >= self._agent.welcome.debug_registers:
            await self.make_room()

    # --- which it is -----------------------------------------------------------------------------

    async def _place(self, site: Site) -> None:
        ground = await self._survey(site.address)
        trouble = ground.trouble
        if not trouble and BreakpointKind.HARDWARE not in site.kinds:
            if ground.doubt and await self._register(site, ground.doubt):
                return
            if await self._int3(site, ground, f"{ground.doubt}, but {TAKEN}" * bool(ground.doubt)):
                return
            trouble = _NO_RAM
        if await self._register(site, trouble, make_room=True):
            return
        if not trouble and site.point is not None:
            site.note = TAKEN  # it is an int3 already
            return
        if not trouble and await self._int3(site, ground, TAKEN):
            return
        trouble = trouble or _NO_RAM
        if ground.lasting:
            raise BreakpointError(f"{trouble}, and {TAKEN}")
        site.note = f"{trouble}, and {TAKEN}"

    async def _survey(self, address: Gva) -> _Ground:
        first = self._vcpus.number(self.focus)
        if await self._guest.is_early(self._agent, first):
            return _Ground(_EARLY)
        others = [self._vcpus.number(vcpu) for vcpu in self._vcpus.indices if vcpu != self.focus]
        for number in (first, *others):
            try:
                mapping = await self._agent.translate(address, vcpu=number)
                patched = await self._guest.is_patched(self._agent, number, address)
            except MemoryFault:
                continue
            user = bool(mapping.access & Access.USER)
            doubt = _PROGRAMS if user else _PATCHED if patched else ""
            able = self._abilities.user_int3 if user else self._abilities.kernel_int3
            trouble = "" if able else _NO_INT3.format(ring="programs" if user else "kernel")
            return _Ground(trouble, bool(trouble), doubt, not user, number)
        return _Ground(_UNMAPPED)

    async def _int3(self, site: Site, ground: _Ground, note: str) -> bool:
        """False where that cannot be written."""
        if ground.kernel:
            await self._guard(ground.number)
        try:
            point = await self._agent.insert(Kind.SOFTWARE, site.address, 1, vcpu=ground.number)
        except AgentRefused as error:
            if error.errno != errno.EFAULT:
                raise
            return False
        await self._take(site, point, note)
        return True

    async def _guard(self, number: int) -> None:
        """Have the agent take every int3 out while the kernel patches code."""
        if self._guards or self._find_patchers is None:
            return
        for address in await self._find_patchers():
            with contextlib.suppress(AgentRefused):  # not mapped: it does not run either
                guard = await self._agent.insert(
                    Kind.SOFTWARE, address, 1, vcpu=number, flags=PointFlags.GUARD
                )
                self._guards.append(guard.id)

    async def _drop_guards(self) -> None:
        while self._guards:
            await self._agent.remove(self._guards.pop())

    async def _register(self, site: Site, note: str, *, make_room: bool = False) -> bool:
        """False if every debug register is taken."""
        while True:
            try:
                point = await self._agent.insert(Kind.HARDWARE, site.address, 1)
            except AgentRefused as error:
                if error.errno != errno.ENOSPC:
                    raise
                if not make_room or not await self.make_room():
                    return False
            else:
                await self._take(site, point, note)
                return True

    async def _take(self, site: Site, point: Point | None, note: str = "") -> None:
        """Let ``point`` stop there, in place of what did."""
        old, site.point, site.note = site.point, point, note
        if old is not None:
            await self._agent.remove(old.id)
