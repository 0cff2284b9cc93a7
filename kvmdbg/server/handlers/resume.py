"""Running on, and why the VM stopped."""

from __future__ import annotations

from contextlib import suppress

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import Unsupported, VmRunning
from kvmdbg.rsp.server.commands.resume import (
    ResumeAction,
    ResumeKind,
    ResumeThread,
    RunBack,
    StopReasonQuery,
    VCont,
    VContQuery,
)
from kvmdbg.rsp.server.replies import Ok, Reply, VContActions
from kvmdbg.rsp.stops import Exited
from kvmdbg.server.client import PROCESS, Client, Outcome, Running
from kvmdbg.server.handlers.nonstop import stop_reason as stop_reason_of_each
from kvmdbg.server.report import tell_stop
from kvmdbg.target.nonstop import Going
from kvmdbg.target.stops import Action, ResumePlan, Stepped

_ACTIONS = {
    ResumeKind.CONTINUE: Action.CONTINUE,
    ResumeKind.STEP: Action.STEP,
    ResumeKind.RANGE_STEP: Action.STEP,
    ResumeKind.STOP: Action.HOLD,
}


async def stop_reason(client: Client, command: StopReasonQuery) -> Reply:
    """``?``; after a detach or a kill there is no process."""
    if client.non_stop is not None:
        return await stop_reason_of_each(client, client.non_stop)
    stop = client.vm.stop
    if stop is None or not client.has_process:
        return Exited(0, PROCESS)
    return await tell_stop(client, stop)


async def vcont_actions(client: Client, command: VContQuery) -> Reply:
    """``vCont?``: gdb wants C and S, although the guest has no signals."""
    return VContActions(("c", "C", "s", "S", "t", "r"))


async def vcont(client: Client, command: VCont) -> Outcome:
    """``vCont``"""
    if client.non_stop is not None:
        client.require_drive()
        await client.non_stop.act(going_of(client, command.actions))
        return Ok()
    plan = plan_of(client, command.actions)
    if all(plan.action(vcpu) is Action.HOLD for vcpu in client.vm.vcpus):
        raise Unsupported("nothing would run: one thread at least has to")
    return await _resume(client, plan)


async def resume_thread(client: Client, command: ResumeThread) -> Outcome:
    """``c C s S``"""
    vcpu = client.vcpu(client.resumed)
    if command.address is not None:
        client.require_drive()
        await _set_pc(client, vcpu, command.address)
    others = Action.HOLD if client.resumed.is_one else Action.CONTINUE
    action = Action.STEP if command.step else Action.CONTINUE
    return await _resume(client, ResumePlan({vcpu: action}, others))


async def run_back(client: Client, command: RunBack) -> Outcome:
    """``bs bc``"""
    action = Action.STEP if command.step else Action.CONTINUE
    return await _resume(client, ResumePlan(default=action, back=True))


def plan_of(client: Client, actions: tuple[ResumeAction, ...]) -> ResumePlan:
    """What ``vCont`` asks for: a thread does the first action that names it, or else stays put.

    Raises NoSuchVcpu.
    """
    chosen: dict[VcpuIndex, Action] = {}
    ranges: dict[VcpuIndex, tuple[Gva, Gva]] = {}
    for action in actions:
        if action.thread is None or not action.thread.is_one:
            rest = set(client.vm.vcpus) - chosen.keys()
            ranges |= dict.fromkeys(rest, action.range) if action.range else {}
            # Whatever follows names threads that have their action already.
            return ResumePlan(chosen, _ACTIONS[action.kind], ranges)
        vcpu = client.vcpu(action.thread)
        if vcpu not in chosen:
            chosen[vcpu] = _ACTIONS[action.kind]
            ranges |= {vcpu: action.range} if action.range else {}
    return ResumePlan(chosen, Action.HOLD, ranges)


def going_of(client: Client, actions: tuple[ResumeAction, ...]) -> dict[VcpuIndex, Going]:
    """The same in non-stop mode, where a thread that no action names goes on as it is."""
    chosen: dict[VcpuIndex, Going] = {}
    for action in actions:
        is_one = action.thread is not None and action.thread.is_one
        named = [client.vcpu(action.thread)] if action.thread and is_one else client.vm.vcpus
        for vcpu in named:
            chosen.setdefault(vcpu, Going(_ACTIONS[action.kind], action.range))
    return chosen


async def _set_pc(client: Client, vcpu: VcpuIndex, address: Gva) -> None:
    arch = client.vm.arch
    number = arch.numbers[arch.pc]
    value = address.to_bytes(arch.registers[number].size, "little")
    await client.vm.write_registers(vcpu, {number: value})


async def _resume(client: Client, plan: ResumePlan) -> Outcome:
    vm = client.vm
    if client.id not in vm.clients.holders:
        raise VmRunning("gdb has detached from the VM: attach again first")
    if client.non_stop is not None:
        raise Unsupported("in non-stop mode threads are resumed by vCont, forwards")
    if not client.drives:
        return await _look(client, plan)
    vm.clients.drive(client.id)
    client.steps = not plan.back and Action.STEP in map(plan.action, vm.vcpus)
    await vm.resume(plan)
    return Running()


async def _look(client: Client, plan: ResumePlan) -> Outcome:
    """Somebody else drives: to continue is to wait for the next stop.

    A debugger that goes on from where it has a breakpoint steps that thread alone first. That waits
    too: between an answer at once and what it asks next the driver might go on.
    """
    vm = client.vm
    actions = [plan.action(vcpu) for vcpu in vm.vcpus]
    if plan.default is Action.HOLD and list(plan.actions.values()) == [Action.STEP]:
        (client.pretends,) = plan.actions
    elif Action.STEP in actions or Action.HOLD in actions:
        client.require_drive()
    stop = vm.stop
    if stop is not None and stop is not client.seen and stop.reason != Stepped():
        with suppress(VmRunning):  # its driver has gone on meanwhile
            return await tell_stop(client, stop)
    client.waits = True
    vm.clients.let_go(client.id)
    return Running(
        f"{vm.clients.driver} drives the VM: waiting for its next stop; Ctrl-C ends that, "
        "monitor drive takes over"
    )
