"""What a single step keeps away from the guest's path: interrupts, and the time that makes them."""

from __future__ import annotations

from kvmdbg.errors import Unsupported
from kvmdbg.rsp.server.commands.stepping import StepBitsQuery, StepMode, StepModeQuery
from kvmdbg.rsp.server.replies import Ok, PlainText, Reply
from kvmdbg.server.client import Client
from kvmdbg.target.capabilities import StepControl
from kvmdbg.target.vm import Vm

_NAMES = {1: "ENABLE", 2: "NOIRQ", 4: "NOTIMER"}


def step_control(vm: Vm) -> StepControl | None:
    """The engine's capability, which not every engine has."""
    execution = vm.engine.execution
    return execution if isinstance(execution, StepControl) else None


async def step_bits(client: Client, command: StepBitsQuery) -> Reply:
    """``qqemu.sstepbits``"""
    bits = _control(client).step_bits
    return PlainText(",".join(f"{name}={bit:x}" for bit, name in _NAMES.items() if bits & bit))


async def step_mode(client: Client, command: StepModeQuery) -> Reply:
    """``qqemu.sstep``"""
    return PlainText(f"{_control(client).step_mode:#x}")


async def set_step_mode(client: Client, command: StepMode) -> Reply:
    """``Qqemu.sstep``: holds until this client leaves."""
    client.require_drive()
    control = _control(client)
    if not command.bits & 1:
        raise Unsupported("without the bit ENABLE (1) there would be no single steps")
    if unknown := command.bits & ~control.step_bits:
        raise Unsupported(
            f"there is no step bit {unknown:#x} here: they are {control.step_bits:#x}"
        )
    if client.former_step_mode is None:
        client.former_step_mode = control.step_mode
    control.step_mode = command.bits
    return Ok()


def restore_step_mode(client: Client) -> None:
    """The client leaves: the next one finds the mode as this one found it."""
    if client.former_step_mode is not None:
        _control(client).step_mode = client.former_step_mode


def _control(client: Client) -> StepControl:
    control = step_control(client.vm)
    assert control is not None, "the table asks first"
    return control
