"""Why a VM is stopped, and how it shall run on.

These are facts, not encodings: the RSP server makes T/S/W/X replies of them, the control protocol
sends them as they are (msgspec structs).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec, ClientId
from kvmdbg.target.runstate import VmRunState


class BreakpointHit(msgspec.Struct, frozen=True, tag="breakpoint"):
    """A vCPU is about to execute the instruction at a breakpoint."""

    kind: BreakpointKind
    address: Gva


class WatchpointHit(msgspec.Struct, frozen=True, tag="watchpoint"):
    """An access to watched memory happened, and pc is after the accessing instruction; where the
    architecture says ``watch_before``, it is about to happen, and pc is at that instruction.

    ``address`` is the start of the watched range (GVA).
    """

    kind: BreakpointKind
    address: Gva


class Stepped(msgspec.Struct, frozen=True, tag="step"):
    """One instruction was executed."""


class Paused(msgspec.Struct, frozen=True, tag="paused"):
    """Somebody asked for a stop; ``foreign``: not through kvmdbg (another monitor did)."""

    foreign: bool = False


class Frozen(msgspec.Struct, frozen=True, tag="frozen"):
    """The VM has not executed its first instruction yet."""


class Panicked(msgspec.Struct, frozen=True, tag="panicked"):
    """The guest kernel panicked and said so (pvpanic)."""


class ShutDown(msgspec.Struct, frozen=True, tag="shutdown"):
    """The guest shut down; its memory can still be read, it cannot be resumed."""


class HistoryEnd(msgspec.Struct, frozen=True, tag="history"):
    """A replay is at an end of what was recorded: at its first instruction, or its last."""

    first: bool


class Halted(msgspec.Struct, frozen=True, tag="halted"):
    """QEMU stopped the VM for a reason of its own, named by its run state."""

    state: VmRunState


StopReason = (
    BreakpointHit
    | WatchpointHit
    | Stepped
    | Paused
    | Frozen
    | Panicked
    | ShutDown
    | HistoryEnd
    | Halted
)


OF_ONE_VCPU = (Stepped, BreakpointHit, WatchpointHit)
"""The reasons that are a vCPU's own doing; any other stops the machine."""


class Stop(msgspec.Struct, frozen=True):
    """The VM is stopped (all vCPUs); ``vcpu`` is the one that the reason is about."""

    vcpu: VcpuIndex
    reason: StopReason


def refined(stop: Stop, state: VmRunState, *, ours: bool) -> Stop:
    """What an engine saw, completed by QEMU's run state after it; ``ours``: we paused the VM."""
    match state:
        case VmRunState.GUEST_PANICKED:
            return Stop(stop.vcpu, Panicked())
        case VmRunState.SHUTDOWN:
            return Stop(stop.vcpu, ShutDown())
        case VmRunState.PAUSED if isinstance(stop.reason, Paused):
            return Stop(stop.vcpu, Paused(foreign=not ours))
        case VmRunState.PRELAUNCH if isinstance(stop.reason, Paused):
            return Stop(stop.vcpu, Frozen())
        case VmRunState.PAUSED | VmRunState.DEBUG | VmRunState.PRELAUNCH:
            return stop
        case _:
            return Stop(stop.vcpu, Halted(state))


def breakpoints_hit(
    reason: StopReason, inserted: Mapping[BreakpointSpec, frozenset[ClientId]]
) -> dict[BreakpointSpec, frozenset[ClientId]]:
    """Those of ``inserted`` that ``reason`` is about; none where that cannot be told."""
    match reason:
        case BreakpointHit(_, address):
            return {
                spec: owners
                for spec, owners in inserted.items()
                if spec.address == address and not spec.kind.is_watchpoint
            }
        case WatchpointHit(kind, address):
            return {
                spec: owners
                for spec, owners in inserted.items()
                if spec.address == address and spec.kind is kind
            }
        case _:
            return {}


class Action(Enum):
    """What one vCPU does when the VM runs on."""

    CONTINUE = "continue"
    STEP = "step"
    HOLD = "hold"


class ResumePlan(msgspec.Struct, frozen=True):
    """How the VM runs on: an action per vCPU, ``default`` for those not named.

    A vCPU that steps and has one of the ``ranges``, [start, end), goes on stepping while its pc is
    in there and nothing else happens. Engines need not know of ranges: the facade does that.

    ``back``: backwards through a replay, by one instruction if ``default`` is to step, else to what
    would have stopped the VM last; vCPUs are not told apart then.
    """

    actions: Mapping[VcpuIndex, Action] = {}
    default: Action = Action.CONTINUE
    ranges: Mapping[VcpuIndex, tuple[Gva, Gva]] = {}
    back: bool = False

    @classmethod
    def step(cls, vcpu: VcpuIndex, others: Action = Action.HOLD) -> ResumePlan:
        """Step ``vcpu`` by one instruction."""
        return cls({vcpu: Action.STEP}, others)

    def action(self, vcpu: VcpuIndex) -> Action:
        """The action of ``vcpu``."""
        return self.actions.get(vcpu, self.default)
