"""What the agent can do, one method for each of its messages."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TypeVar

from kvmdbg.agent.connection import AgentConnection
from kvmdbg.errors import AgentRefused, MemoryFault, TargetError
from kvmdbg.kvm import ioctl as kvm
from kvmdbg.wire import messages as m
from kvmdbg.wire.structs import (
    NO_POINT_FLAGS,
    OWN_ROOT,
    Action,
    Clock,
    Configuration,
    Flags,
    IoctlHead,
    Kind,
    Point,
    PointFlags,
    PointRequest,
    Range,
    Scope,
    Slot,
    Space,
    Statistics,
    Stop,
    Translation,
    Vcpu,
    Welcome,
)

T = TypeVar("T")

_CHUNK = 1 << 20  # bytes of memory in one message

# /dev/kvm's own ioctls that can be asked for answer on a VM as well (KVM_CHECK_EXTENSION).
_SCOPES = {
    kvm.Scope.SYSTEM: Scope.VM,
    kvm.Scope.VM: Scope.VM,
    kvm.Scope.VCPU: Scope.VCPU,
}


class AgentClient:
    """The agent in one QEMU. Every method raises AgentError, VmGone, and what it says."""

    def __init__(self, connection: AgentConnection) -> None:
        self._connection = connection
        self._ask = connection.ask

    @property
    def welcome(self) -> Welcome:
        """What the agent said of itself and its VM when we came."""
        return self._connection.welcome

    # --- the VM ----------------------------------------------------------------------------------

    async def adopt(self, adoption: m.Adoption) -> None:
        """Tell an agent that was loaded late what there is in its QEMU."""
        await self._ask(m.ADOPT, adoption)

    async def vcpus(self) -> tuple[Vcpu, ...]:
        return await self._ask(m.VCPUS, None)

    async def slots(self) -> tuple[Slot, ...]:
        """KVM's memory slots: where guest memory is in QEMU's."""
        return await self._ask(m.SLOTS, None)

    async def call(self, ioctl: kvm.Ioctl[T], vcpu: int = 0) -> T:
        """Execute an ioctl of KVM; the vCPU is out of the guest meanwhile. Raises IoctlError."""
        number, data = (
            (ioctl.argument, b"") if isinstance(ioctl.argument, int) else (0, ioctl.argument)
        )
        pointee = ioctl.pointee or b""
        size = len(data) + len(pointee)
        head = IoctlHead(_SCOPES[ioctl.scope], vcpu, ioctl.number, number, size, len(pointee))
        try:
            result, answer = await self._ask(m.IOCTL, (head, data + pointee))
        except AgentRefused as error:
            if error.errno == errno.ETIMEDOUT:  # QEMU's doing: KVM was not asked
                raise
            raise ioctl.failed(error.errno, vcpu) from error
        return ioctl.decode(result.result, answer[-len(pointee) :] if pointee else answer)

    async def run_page(self, vcpu: int) -> bytes:
        """The vCPU's ``struct kvm_run`` and what follows it, as its last exit left it."""
        return await self._ask(m.RUN_PAGE, vcpu)

    # --- memory ----------------------------------------------------------------------------------

    async def read(
        self, space: Space, address: int, length: int, *, vcpu: int = 0, root: int = OWN_ROOT
    ) -> bytes:
        """Guest memory, cut at the first byte that cannot be read.

        Raises MemoryFault when not even one byte can be.
        """
        found = bytearray()
        while len(found) < length:
            asked = min(_CHUNK, length - len(found))
            try:
                part = await self._ask(
                    m.READ, Range(space, vcpu, address + len(found), asked, root)
                )
            except AgentRefused as error:
                if not found or error.errno != errno.EFAULT:
                    raise _fault(error, space, address) from error
                break
            found += part
            if len(part) < asked:
                break
        return bytes(found)

    async def write(
        self, space: Space, address: int, data: bytes, *, vcpu: int = 0, root: int = OWN_ROOT
    ) -> None:
        """Change guest memory with every vCPU out. Raises MemoryFault where there is none.

        AgentRefused says that a migration would lose what is written.
        """
        for at in range(0, len(data), _CHUNK):
            part = data[at : at + _CHUNK]
            try:
                await self._ask(m.WRITE, (Range(space, vcpu, address + at, len(part), root), part))
            except AgentRefused as error:
                raise _fault(error, space, address + at) from error

    async def translate(self, address: int, *, vcpu: int = 0, root: int = OWN_ROOT) -> Translation:
        """The GPA of a GVA. Raises MemoryFault where it is not mapped."""
        try:
            return await self._ask(m.TRANSLATE, Range(Space.GVA, vcpu, address, 1, root))
        except AgentRefused as error:
            raise _fault(error, Space.GVA, address) from error

    # --- breakpoints -----------------------------------------------------------------------------

    async def insert(
        self,
        kind: Kind,
        address: int,
        length: int,
        *,
        vcpu: int = 0,
        root: int = OWN_ROOT,
        flags: PointFlags = NO_POINT_FLAGS,
    ) -> Point:
        """Set a breakpoint or watchpoint. Its refusal's errno says why."""
        return await self._ask(m.INSERT, PointRequest(kind, vcpu, address, length, root, flags))

    async def remove(self, point: int) -> None:
        """Take one out, by its id."""
        await self._ask(m.REMOVE, point)

    async def points(self) -> tuple[Point, ...]:
        return await self._ask(m.POINTS, None)

    # --- running ---------------------------------------------------------------------------------

    async def hold(self) -> None:
        """When this returns no vCPU is in the guest, and none enters it before :meth:`resume`."""
        await self._ask(m.HOLD, None)

    async def resume(self, actions: Iterable[Action]) -> None:
        """Let the vCPUs enter the guest again, each as its action says."""
        await self._ask(m.RESUME, tuple(actions))

    async def stops(self) -> tuple[Stop, ...]:
        """What each vCPU stopped for. The doorbell may ring again from now on."""
        return await self._ask(m.STOPS, None)

    def on_doorbell(self, callback: Callable[[int], None]) -> None:
        """See :meth:`kvmdbg.agent.connection.AgentConnection.on_doorbell`."""
        self._connection.on_doorbell(callback)

    # --- the rest --------------------------------------------------------------------------------

    async def configure(self, flags: Flags) -> None:
        await self._ask(m.CONFIGURE, Configuration(flags))

    async def statistics(self) -> Statistics:
        return await self._ask(m.STATISTICS, None)

    async def clock(self) -> Clock:
        """How long the world is held, and how the guest's TSC is kept still meanwhile."""
        return await self._ask(m.CLOCK, None)

    async def detach(self) -> None:
        """Have everything taken out of the guest, and the agent hang up."""
        await self._ask(m.DETACH, None)
        await self._connection.wait_hang_up()

    async def wait_lost(self) -> TargetError:
        """Wait for the end of the connection: AgentLost, or VmGone where QEMU has ended."""
        return await self._connection.wait_lost()

    def close(self) -> None:
        """Hang up. The agent cleans up as for :meth:`detach`."""
        self._connection.close()


def _fault(error: AgentRefused, space: Space, address: int) -> TargetError:
    if error.errno != errno.EFAULT:
        return error
    return MemoryFault(f"the guest has no memory at {space.name} {address:#x}")
