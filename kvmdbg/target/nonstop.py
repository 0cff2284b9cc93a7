"""Non-stop: every vCPU runs and stops for itself, on top of a facade that stops them all.

A vCPU that is to stay where it is while others run is *held* by the plan, of whatever engine. What
changes that, or looks at a held one, stops the VM for a moment, of which nobody is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import KvmdbgError
from kvmdbg.target.breakpoints import BreakpointSpec, ClientId
from kvmdbg.target.stops import OF_ONE_VCPU, Action, Paused, ResumePlan, Stop
from kvmdbg.target.vm import Vm


@dataclass(frozen=True, slots=True)
class Going:
    """What a vCPU does until it stops; ``range``: it steps until it leaves that."""

    action: Action
    range: tuple[Gva, Gva] | None = None


@dataclass(frozen=True, slots=True)
class Untold:
    """A stop that the client has not acknowledged; ``hit`` is :attr:`Vm.hit` of that time."""

    stop: Stop
    hit: Mapping[BreakpointSpec, frozenset[ClientId]]


class NonStop:
    """One client's hold on the vCPUs, one by one. To it, all are stopped at first.

    Nobody else resumes the VM meanwhile (:attr:`Clients.alone`).
    """

    def __init__(self, vm: Vm, client: ClientId) -> None:
        self._vm = vm
        self._seen = vm.stop
        self._going: dict[VcpuIndex, Going] = {}
        self._last: dict[VcpuIndex, Untold] = {}
        self.untold: deque[Untold] = deque()
        """Stops that the client has to be told of, the oldest first."""
        self.for_later: list[Untold] = []
        self.telling = False
        """It was told of the first, and has not acknowledged that yet."""
        vm.clients.alone = client
        vm.apart = True
        for vcpu in vm.vcpus:
            first = vm.stop if vm.stop is not None and vm.stop.vcpu == vcpu else None
            self._last[vcpu] = Untold(first or Stop(vcpu, Paused()), vm.hit if first else {})

    def tell_all(self) -> None:
        """Every vCPU that is stopped has to be told of once more: one at once, and the others, kept
        :attr:`for_later`, when the client is ready for them."""
        stopped = [found for v, found in self._last.items() if v not in self._going]
        stopped.sort(key=lambda found: found.stop is not self._seen)
        self.untold, self.for_later = deque(stopped[:1]), stopped[1:]
        self.telling = bool(self.untold)

    def told(self) -> None:
        """The client knows of the first of :attr:`untold`: it is told of the next, if any."""
        if self.telling:
            self.untold.popleft()
        self.telling = bool(self.untold) and not self.for_later

    def client_ready(self) -> None:
        """What was kept for later can be told."""
        self.untold.extendleft(reversed(self.for_later))
        self.for_later = []

    async def act(self, wanted: Mapping[VcpuIndex, Going]) -> None:
        """Let vCPUs go that are stopped, and hold some that run; others go on as they are: also one
        whose stop the client has not been told of, as it runs to the best of that's knowledge.

        Raises what :meth:`Vm.resume` does.
        """
        self.take()
        held = {v for v, going in wanted.items() if going.action is Action.HOLD}
        self._forestall(wanted.keys() - held, held)
        untold = {found.stop.vcpu for found in self.untold}
        as_they_are = held | self._going.keys() | untold
        new = {v: going for v, going in wanted.items() if v not in as_they_are}
        held &= self._going.keys()
        self._going |= new
        if held or new:
            await self._apply(held)

    def _forestall(self, going: Set[VcpuIndex], held: Set[VcpuIndex]) -> None:
        """What was kept for later need not be told of those that shall go, and is due of those that
        shall stop."""
        self.untold += [found for found in self.for_later if found.stop.vcpu in held]
        self.for_later = [f for f in self.for_later if f.stop.vcpu not in going | held]

    async def update(self) -> None:
        """The VM may have stopped: see to it that those who did not stop run on."""
        self.take()
        if self._going and self._vm.stop is not None:
            await self._apply(set())

    async def end(self) -> None:
        """Give it up: from now on all run, or none."""
        vm = self._vm
        vm.clients.alone = None
        vm.apart = False
        if self._going and vm.gone is None:
            await vm.revise(ResumePlan())

    async def _apply(self, held: set[VcpuIndex]) -> None:
        """Have the VM do what its vCPUs are to do, of which those ``held`` go no longer."""
        vm = self._vm
        while True:
            self.take()
            held &= self._going.keys()
            if vm.stop is not None:
                self._hold(held)
                if self._going:
                    await self._resume()
                return
            if self._going.keys() - held:
                await vm.revise(self._plan(held))
            else:
                await vm.pause()
            if vm.stop is None:
                self._hold(held)
                return

    async def _resume(self) -> None:
        try:
            await self._vm.resume(self._plan(set()))
        except KvmdbgError:
            self._going.clear()
            raise

    def _plan(self, held: set[VcpuIndex]) -> ResumePlan:
        going = {v: found for v, found in self._going.items() if v not in held}
        return ResumePlan(
            {v: found.action for v, found in going.items()},
            Action.HOLD,
            {v: found.range for v, found in going.items() if found.range is not None},
        )

    def _hold(self, vcpus: set[VcpuIndex]) -> None:
        for vcpu in sorted(vcpus):
            self._stopped(Stop(vcpu, Paused()), {})

    def take(self) -> None:
        """Whose stop is the VM's, if it is one that was not seen yet?"""
        stop = self._vm.stop
        if stop is None or stop is self._seen:
            return
        self._seen = stop
        if isinstance(stop.reason, OF_ONE_VCPU):
            if stop.vcpu in self._going:
                self._stopped(stop, self._vm.hit)
            return
        for vcpu in sorted(self._going):
            self._stopped(Stop(vcpu, stop.reason), {})

    def _stopped(self, stop: Stop, hit: Mapping[BreakpointSpec, frozenset[ClientId]]) -> None:
        del self._going[stop.vcpu]
        self._last[stop.vcpu] = Untold(stop, hit)
        self.untold.append(self._last[stop.vcpu])
