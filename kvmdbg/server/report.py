"""Stops, as stop replies and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvmdbg.addr import VcpuIndex
from kvmdbg.errors import RegisterError
from kvmdbg.rsp.stops import (
    SIGNAL_INT,
    SIGNAL_KILL,
    SIGNAL_NONE,
    SIGNAL_TRAP,
    Cause,
    Exited,
    HistoryEdge,
    Stopped,
    StopReply,
    Terminated,
    Watch,
)
from kvmdbg.server.client import PROCESS, Client, spec_of
from kvmdbg.target import events
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec, ClientId
from kvmdbg.target.stops import (
    BreakpointHit,
    Halted,
    HistoryEnd,
    Panicked,
    Paused,
    ShutDown,
    Stepped,
    Stop,
    StopReason,
    WatchpointHit,
)
from kvmdbg.target.vm import Vm

# gdb's own numbers (include/gdb/signals.def), not the host's.
_SIGNAL_ABRT = 6
_SIGNAL_STOP = 17
_SIGNAL_PWR = 32

_WATCHES = {
    BreakpointKind.WRITE: Watch.WRITE,
    BreakpointKind.READ: Watch.READ,
    BreakpointKind.ACCESS: Watch.ACCESS,
}
_CAUSES = {BreakpointKind.SOFTWARE: Cause.SOFTWARE, BreakpointKind.HARDWARE: Cause.HARDWARE}


async def tell_stop(client: Client, stop: Stop) -> Stopped:
    """The stop reply for ``stop``; what ``client`` asks next is about that.

    One that pretends to step is told so: gdb takes a breakpoint that it has just stepped off for
    another hit.
    """
    told = stop if client.pretends is None else Stop(client.pretends, Stepped())
    reply = await _stop_reply(client.vm, told, client.id, client.vm.hit)
    if client.steps:
        # gdb (13 to 18) that steps off a breakpoint, into the end of a recording, waits for the
        # end of that step for ever after.
        reply = replace(reply, edge=None)
    client.shown(stop)
    return reply


async def nonstop_reply(
    client: Client, stop: Stop, hit: Mapping[BreakpointSpec, frozenset[ClientId]]
) -> StopReply:
    """The stop reply for a vCPU that stopped by itself; one that was asked to has no signal."""
    reply = await _stop_reply(client.vm, stop, client.id, hit)
    return replace(reply, signal=SIGNAL_NONE) if stop.reason == Paused() else reply


async def _stop_reply(
    vm: Vm, stop: Stop, client: ClientId, found: Mapping[BreakpointSpec, frozenset[ClientId]]
) -> Stopped:
    """The stop reply for ``stop``, with the registers that gdb asks for first.

    What a client did not insert is a mere SIGTRAP to it: gdb takes a hit that it cannot explain for
    an old one, and runs on.
    """
    thread = spec_of(stop.vcpu)
    registers = await _expedited(vm, stop.vcpu)
    own = [spec for spec, owners in found.items() if client in owners]
    match stop.reason:
        case BreakpointHit(kind) if own or not found:
            kind = min((spec.kind for spec in own), key=lambda kind: kind.value, default=kind)
            return Stopped(SIGNAL_TRAP, thread, cause=_CAUSES[kind], registers=registers)
        case WatchpointHit(kind, address) if own or not found:
            watch = (_WATCHES[kind], address)
            return Stopped(SIGNAL_TRAP, thread, watch, registers=registers)
        case HistoryEnd(first):
            edge = HistoryEdge.BEGIN if first else HistoryEdge.END
            return Stopped(SIGNAL_TRAP, thread, registers=registers, edge=edge)
        case reason:
            return Stopped(_signal(reason), thread, registers=registers)


def _signal(reason: StopReason) -> int:
    match reason:
        case Paused():
            return SIGNAL_INT
        case Panicked():
            return _SIGNAL_ABRT
        case ShutDown():
            return _SIGNAL_PWR
        case Halted():
            return _SIGNAL_STOP
        case _:
            return SIGNAL_TRAP


async def _expedited(vm: Vm, vcpu: VcpuIndex) -> dict[int, bytes]:
    try:
        block = await vm.read_block(vcpu)
    except RegisterError:
        return {}  # a courtesy only: whoever wants them asks, and is told what is wrong
    numbers = [vm.arch.numbers[name] for name in vm.arch.expedited]
    return {number: value for number in numbers if (value := block[number]) is not None}


def explain(vm: Vm, reason: StopReason, client: ClientId) -> str | None:
    """What to tell a person about a stop that no stop reply can express."""
    match reason:
        case Paused(foreign=True):
            return "another monitor stopped the VM"
        case Panicked():
            return "the guest panicked; it cannot run on, monitor system_reset resets it"
        case ShutDown():
            return "the guest shut down; it cannot run on, monitor system_reset resets it"
        case HistoryEnd(first=False):
            return "the recording ends here"
        case Halted(state):
            return f"QEMU stopped the VM, its state is {state.value}"
        case _:
            return _explain_hit(vm, client)


def _explain_hit(vm: Vm, client: ClientId) -> str | None:
    """Whose it was, if not the client's own."""
    found = vm.hit
    if not found or any(client in owners for owners in found.values()):
        return None
    # One that is wanted whatever its conditions say is a reason, else one of the others is; of
    # those at one address it is not known which.
    certain = [s for s in found if len(vm.breakpoints.conditions(s)) < len(found[s])]
    specs = certain or list(found)
    whose = ", ".join(sorted({owner for spec in specs for owner in found[spec]}))
    return f"the {' or the '.join(map(str, specs))}, of {whose}, was hit"


def end_reply(gone: events.Gone) -> StopReply:
    """The stop reply for the VM's end."""
    if gone.signal:
        return Terminated(gone.signal if gone.signal < 16 else SIGNAL_KILL, PROCESS)
    return Exited(0, PROCESS)
