"""What a backend can do for a live VM, as Protocols.

The server, the owner's control protocol and the facade (:class:`kvmdbg.target.vm.Vm`) know
backends only through these. Every parameter and result is an integer, bytes, or a msgspec struct,
so that each call can travel over the control protocol as it stands.

All calls but :meth:`Execution.run` and :meth:`Execution.interrupt` need the VM stopped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.arch import Architecture
from kvmdbg.target.breakpoints import BreakpointStore
from kvmdbg.target.runstate import RunEvent, VmRunState
from kvmdbg.target.stops import ResumePlan, Stop


class Registers(Protocol):
    """Registers of a vCPU, by number in :attr:`kvmdbg.arch.Architecture.registers`.

    Values are bytes in guest byte order, as long as the register is.
    """

    async def read_block(self, vcpu: VcpuIndex) -> list[bytes | None]:
        """Every register of ``Architecture.block``, in order; None where unavailable."""
        ...

    async def read_register(self, vcpu: VcpuIndex, number: int) -> bytes | None:
        """One register; None where unavailable."""
        ...

    async def write_registers(self, vcpu: VcpuIndex, values: Mapping[int, bytes]) -> None:
        """Set registers. Raises RegisterError when one cannot be written."""
        ...


class Memory(Protocol):
    """Guest memory as a vCPU sees it."""

    async def read(self, vcpu: VcpuIndex, address: Gva, length: int) -> bytes:
        """Up to ``length`` bytes at ``address``, cut where the first unreadable byte is.

        Raises MemoryFault when not even one byte can be read.
        """
        ...

    async def write(self, vcpu: VcpuIndex, address: Gva, data: bytes) -> None:
        """Write all of ``data``; the guest executes it if it is code. Raises MemoryFault."""
        ...


class PhysicalMemory(Protocol):
    """Guest physical memory."""

    async def read(self, address: Gpa, length: int) -> bytes:
        """As :meth:`Memory.read`, by physical address."""
        ...

    async def write(self, address: Gpa, data: bytes) -> None:
        """As :meth:`Memory.write`, by physical address."""
        ...


class Execution(Protocol):
    """Runs the VM, and stops it."""

    async def run(self, plan: ResumePlan) -> Stop:
        """Let the VM run as ``plan`` says and return when it has stopped.

        A vCPU that continues from a breakpoint whose hit was reported, or steps or continues from
        a watched access that was reported before it is made, executes that instruction first.
        Raises VmGone when the VM ends meanwhile.
        """
        ...

    async def interrupt(self) -> None:
        """Make a concurrent :meth:`run` return soon; its Stop says Paused unless something
        else happened first. Without one, does nothing."""
        ...

    async def resync(self) -> None:
        """Somebody else resumed the VM while it should be stopped: stop it and forget what was
        known of its state."""
        ...

    def forget(self) -> None:
        """Somebody else changed the guest's state (a reset) while it was stopped."""
        ...


@runtime_checkable
class StepControl(Protocol):
    """What a single step keeps away: a further capability that an Execution may have.

    Bits are QEMU's: 1 single steps at all, 2 no interrupts, 4 no timers.
    """

    @property
    def step_bits(self) -> int:
        """The bits that there are."""
        ...

    @property
    def step_mode(self) -> int:
        """The bits that are set; takes effect at the next resumption."""
        ...

    @step_mode.setter
    def step_mode(self, bits: int) -> None: ...


@runtime_checkable
class History(Protocol):
    """That the run is recorded, or is a recording: a further capability of an Execution."""

    @property
    def recorded(self) -> bool:
        """True in either: the guest's state cannot be changed from outside, which nobody would
        know of in a replay."""
        ...

    @property
    def replayed(self) -> bool:
        """True if the run is a recording: plans may go back in it."""
        ...


@runtime_checkable
class Notifies(Protocol):
    """That it finds things out which the user is to know: a further capability of an Execution."""

    def on_notice(self, tell: Callable[[str], None]) -> None:
        """``tell`` is called with each, as a sentence without a full stop."""
        ...


@runtime_checkable
class PatchesCode(Protocol):
    """A breakpoint store that writes breakpoints into the guest's own code."""

    def guard_against(self, patchers: Callable[[], Awaitable[Sequence[Gva]]]) -> None:
        """``patchers`` is asked, with the VM stopped, before the first breakpoint is written into
        the kernel: it returns the entries of the kernel's functions that patch code, and mind what
        they find there. Breakpoints are out of the guest while one of these runs."""
        ...


class Engine(Protocol):
    """A backend, open on one VM: its capabilities."""

    @property
    def name(self) -> str:
        """``stub``, ``agent-kvm`` or ``agent-tcg``."""
        ...

    @property
    def arch(self) -> Architecture:
        """The guest's architecture."""
        ...

    @property
    def vcpus(self) -> Sequence[VcpuIndex]:
        """The guest's vCPUs."""
        ...

    @property
    def registers(self) -> Registers:
        """Registers."""
        ...

    @property
    def memory(self) -> Memory:
        """Memory by GVA."""
        ...

    @property
    def physical(self) -> PhysicalMemory:
        """Memory by GPA."""
        ...

    @property
    def breakpoints(self) -> BreakpointStore:
        """Breakpoints."""
        ...

    @property
    def execution(self) -> Execution:
        """Execution."""
        ...

    async def close(self) -> None:
        """Leave the target: nothing of ours stays in it. The VM is stopped or gone."""
        ...


class RunControl(Protocol):
    """The VM's run state as QEMU keeps it: :mod:`kvmdbg.machine` provides it over QMP.

    Every call raises MonitorError when QEMU refuses or does not answer in time, and VmGone when
    it has ended.
    """

    @property
    def state(self) -> VmRunState:
        """The last known run state."""
        ...

    @property
    def exit_text(self) -> str:
        """How QEMU ended, as half a sentence; meaningful when the state is GONE."""
        ...

    @property
    def exit_signal(self) -> int:
        """The signal that killed QEMU, 0 where it ended by itself or that is not known."""
        ...

    @property
    def stops(self) -> int:
        """How many times QEMU has said that the VM stopped."""
        ...

    async def wait_stop(self, known: int) -> None:
        """Return when :attr:`stops` is greater than ``known``, and so every event before that stop
        has been delivered; a question less to QEMU than :meth:`sync`."""
        ...

    async def sync(self) -> VmRunState:
        """Ask QEMU; when this returns, every event before the answer has been delivered."""
        ...

    async def pause(self) -> None:
        """Stop the VM."""
        ...

    async def cont(self) -> None:
        """Resume the VM."""
        ...

    async def reset(self) -> None:
        """Reset the machine, as its reset button does."""
        ...

    async def quit(self) -> None:
        """End QEMU."""
        ...

    def subscribe(self, callback: Callable[[RunEvent], None]) -> None:
        """``callback`` is called for every event, in order, from the event loop."""
        ...


class MonitorQuery(Protocol):
    """QEMU's monitor, for questions that no other interface answers. Raises MonitorError."""

    async def hmp(self, command: str, vcpu: VcpuIndex | None = None) -> str:
        """Run a human monitor command, about ``vcpu`` where it is about one, and return what it
        printed."""
        ...

    async def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command and return its result."""
        ...
