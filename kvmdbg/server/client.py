"""What is remembered about one RSP client, and what a handler may answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from kvmdbg.addr import VcpuIndex, thread_of, vcpu_of
from kvmdbg.errors import NoSuchVcpu
from kvmdbg.rsp.server.replies import Reply
from kvmdbg.rsp.threadid import ALL, ThreadSpec
from kvmdbg.server.host import Host
from kvmdbg.target.breakpoints import ClientId
from kvmdbg.target.nonstop import NonStop
from kvmdbg.target.stops import Stop
from kvmdbg.target.vm import Vm

_FIRST = VcpuIndex(0)
_EVERY = ThreadSpec(ALL)

PROCESS = 1
"""The one process that the guest is to gdb."""

PACKET_SIZE = 0x10000
"""Longest packet that a client may send, and the longest payload of a reply, bytes."""


@dataclass(frozen=True, slots=True)
class Running:
    """The VM runs, or will; the stop reply will be the answer. ``words`` are for the user."""

    words: str | None = None


@dataclass(frozen=True, slots=True)
class Printed:
    """``text`` for the user's console, then OK."""

    text: str


@dataclass(frozen=True, slots=True)
class Silent:
    """The packet gets no answer."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Answer, if there is anything to say, and hang up; with ``kill`` the VM's owner is told."""

    reply: Reply | None = None
    kill: bool = False


Outcome: TypeAlias = Reply | Running | Printed | Silent | Goodbye
"""What a handler makes of a command."""


@dataclass(slots=True)
class Client:
    """One RSP client.

    ``access`` is the vCPU whose registers and memory are meant (``Hg``), ``resumed`` the thread
    that ``c`` and ``s`` mean (``Hc``). ``extended``: the connection outlives a detach.
    """

    id: ClientId
    host: Host
    access: VcpuIndex = _FIRST
    resumed: ThreadSpec = _EVERY
    extended: bool = False
    seen: Stop | None = None
    """The stop that it was told last."""
    waits: bool = False
    """It looks, and waits for the next stop; till then it does not mind that the VM runs."""
    steps: bool = False
    """What it did last was a step forwards."""
    pretends: VcpuIndex | None = None
    """It looks, and wanted to step this vCPU: it will be told that it did, and of no stop."""
    killed: bool = False
    """It killed the VM, and may yet restart it."""
    detached: bool = False
    """It detached, and may yet attach again."""
    physical: bool = False
    features: Mapping[str, str] = field(default_factory=dict)
    """What it said in ``qSupported``."""
    objects: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """Objects that it is reading, by name and annex."""
    described: bool = False
    """It has read the target description: until then, registers are in the classic layout."""
    files: dict[int, Path] = field(default_factory=dict)
    """Files that it has open."""
    non_stop: NonStop | None = None
    """It has threads run and stop each for itself."""
    non_stop_wanted: bool = False
    """It said so, and may have detached since."""
    is_there: Callable[[], bool] = lambda: True
    """False once it has hung up: what it asked for is for nobody."""
    former_step_mode: int | None = None
    """The step mode before this client set one."""

    @property
    def monitor_id(self) -> ClientId:
        """Holds what the client inserted by ``monitor`` and knows nothing of by itself."""
        return f"{self.id}/monitor"

    @property
    def has_process(self) -> bool:
        """True if there is the process to it that the guest is."""
        return not (self.killed or self.detached)

    @property
    def drives(self) -> bool:
        """True if it drives the VM, or may begin to."""
        return self.vm.clients.may_drive(self.id)

    def require_drive(self) -> None:
        """Raise Busy when another client drives."""
        self.vm.clients.require_drive(self.id)

    def shown(self, stop: Stop) -> None:
        """The client is told of ``stop``, or of a step that it did not make: what it asks next is
        about that vCPU."""
        if self.pretends is None:
            self.seen = stop
            self.access = stop.vcpu
        else:
            self.access = self.pretends
            self.pretends = None
        if self.waits:
            self.waits = False
            self.vm.clients.hold(self.id)

    async def release(self) -> None:
        """Take out all its breakpoints and let the VM run on, unless others hold it."""
        await self.leave_non_stop()
        await self.vm.drop_breakpoints(self.monitor_id)
        await self.vm.release(self.id, resume=True)

    async def leave_non_stop(self) -> None:
        """All threads stop together again."""
        non_stop, self.non_stop = self.non_stop, None
        if non_stop is not None:
            await non_stop.end()

    def has(self, feature: str) -> bool:
        """True if it announced ``feature+``."""
        return self.features.get(feature) == "+"

    @property
    def vm(self) -> Vm:
        """The VM."""
        return self.host.vm

    def vcpu(self, thread: ThreadSpec) -> VcpuIndex:
        """The vCPU that ``thread`` names; "any" and "all" name the one accessed last.

        Raises NoSuchVcpu.
        """
        if thread.pid not in (None, 0, -1, PROCESS):
            raise NoSuchVcpu(f"there is no process {thread.pid}: the guest is process {PROCESS}")
        if not thread.is_one:
            return self.access
        vcpu = vcpu_of(thread.tid)
        if vcpu not in self.vm.vcpus:
            raise NoSuchVcpu(f"there is no thread {thread.tid}: the VM has {len(self.vm.vcpus)}")
        return vcpu


def spec_of(vcpu: VcpuIndex) -> ThreadSpec:
    """The thread-id of ``vcpu``."""
    return ThreadSpec(thread_of(vcpu), PROCESS)
