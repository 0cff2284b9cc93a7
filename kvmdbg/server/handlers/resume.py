"""Running on, and why the VM stopped."""

from __future__ import annotations

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import Unsupported, VmRunning
from kvmdbg.rsp.server.commands.resume import (
    ResumeAction,
    ResumeKind,
    ResumeThread,
    StopReasonQuery,
    VCont,
    VContQuery,
)
from kvmdbg.rsp.server.replies import Reply, VContActions
from kvmdbg.rsp.stops import Exited
from kvmdbg.server.client import PROCESS, Client, Outcome, Running
from kvmdbg.server.report import stop_reply
from kvmdbg.target.stops import Action, ResumePlan

_ACTIONS = {
    ResumeKind.CONTINUE: Action.CONTINUE,
    ResumeKind.STEP: Action.STEP,
    ResumeKind.STOP: Action.HOLD,
}


async def stop_reason(client: Client, command: StopReasonQuery) -> Reply:
    """``?``; after a detach there is no process."""
    stop = client.vm.stop
    if stop is None:
        return Exited(0, PROCESS)
    client.access = stop.vcpu
    return await stop_reply(client.vm, stop)


async def vcont_actions(client: Client, command: VContQuery) -> Reply:
    """``vCont?``: gdb wants C and S, although the guest has no signals."""
    return VContActions(("c", "C", "s", "S"))


async def vcont(client: Client, command: VCont) -> Outcome:
    """``vCont``"""
    if any(action.kind is ResumeKind.RANGE_STEP for action in command.actions):
        raise Unsupported("this engine does not step over ranges: step instruction by instruction")
    plan = plan_of(client, command.actions)
    return await _resume(client, plan)


async def resume_thread(client: Client, command: ResumeThread) -> Outcome:
    """``c C s S``"""
    vcpu = client.vcpu(client.resumed)
    if command.address is not None:
        await _set_pc(client, vcpu, command.address)
    others = Action.HOLD if client.resumed.is_one else Action.CONTINUE
    action = Action.STEP if command.step else Action.CONTINUE
    return await _resume(client, ResumePlan({vcpu: action}, others))


def plan_of(client: Client, actions: tuple[ResumeAction, ...]) -> ResumePlan:
    """What ``vCont`` asks for: a thread does the first action that names it, or else stays put.

    Raises NoSuchVcpu.
    """
    chosen: dict[VcpuIndex, Action] = {}
    default = Action.HOLD
    for action in actions:
        if action.thread is not None and action.thread.is_one:
            chosen.setdefault(client.vcpu(action.thread), _ACTIONS[action.kind])
        else:
            default = _ACTIONS[action.kind]
            break  # whatever follows names threads that have their action already
    return ResumePlan(chosen, default)


async def _set_pc(client: Client, vcpu: VcpuIndex, address: Gva) -> None:
    arch = client.vm.arch
    number = arch.numbers[arch.pc]
    value = address.to_bytes(arch.registers[number].size, "little")
    await client.vm.write_registers(vcpu, {number: value})


async def _resume(client: Client, plan: ResumePlan) -> Running:
    if client.id not in client.vm.holders:
        raise VmRunning("gdb has detached from the VM: attach again first")
    client.vm.require_drive(client.id)
    await client.vm.resume(plan)
    return Running()
