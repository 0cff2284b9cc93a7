"""Conditions of breakpoints: a hit that nobody wants lets the VM run on.

They are evaluated here, between engine and clients, so that one look at the VM's registers and
memory decides for all clients, and none of them hears of a hit that is not wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.arch import Architecture
from kvmdbg.errors import ExpressionError, MemoryFault, RegisterError
from kvmdbg.target.breakpoints import BreakpointManager, BreakpointSpec
from kvmdbg.target.capabilities import Engine
from kvmdbg.target.expressions import Expression, parse
from kvmdbg.target.stops import BreakpointHit, Stop, WatchpointHit, breakpoints_hit

VALUE = "value"
"""In a watchpoint's condition: what is in the watched memory when the VM stops for it."""

_MAX_BITS = 64


def parse_condition(text: str, arch: Architecture, spec: BreakpointSpec) -> Expression:
    """The condition of a breakpoint. Raises ExpressionError."""
    names = (VALUE,) if spec.kind.is_watchpoint and spec.length * 8 <= _MAX_BITS else ()
    registers = [
        name
        for name, number in arch.numbers.items()
        if arch.registers[number].size * 8 <= _MAX_BITS
    ]
    return parse(text, registers, names)


async def is_wanted(engine: Engine, breakpoints: BreakpointManager, stop: Stop) -> bool:
    """False after a hit of breakpoints whose clients all have conditions, none of which holds.

    Raises ExpressionError when that cannot be told.
    """
    if not isinstance(stop.reason, BreakpointHit | WatchpointHit):
        return True  # a step through a range is one of thousands
    hit = breakpoints_hit(stop.reason, breakpoints.inserted)
    for spec, owners in hit.items():
        conditions = breakpoints.conditions(spec)
        if len(conditions) < len(owners):
            return True
        if await _any_holds(conditions.values(), _Place(engine, stop.vcpu, spec)):
            return True
    return not hit


async def _any_holds(conditions: Iterable[Expression], place: _Place) -> bool:
    for condition in conditions:
        try:
            if await condition.evaluate(place):
                return True
        except (ExpressionError, MemoryFault, RegisterError) as error:
            raise ExpressionError(
                f"the condition {condition.text!r} cannot be told, and the VM is stopped: {error}"
            ) from error
    return False


@dataclass(frozen=True)
class _Place:
    """Implements :class:`~.expressions.Context`: a vCPU that hit ``spec``."""

    engine: Engine
    vcpu: VcpuIndex
    spec: BreakpointSpec

    async def register(self, name: str) -> int:
        number = self.engine.arch.numbers[name]
        value = await self.engine.registers.read_register(self.vcpu, number)
        if value is None:
            raise RegisterError(f"register {name} is not available here")
        return int.from_bytes(value, "little")

    async def load(self, address: Gva, size: int) -> int:
        data = await self.engine.memory.read(self.vcpu, address, size)
        if len(data) < size:
            raise MemoryFault(f"cannot read {size} bytes at {address:#x}")
        return int.from_bytes(data, "little")

    async def name(self, name: str) -> int:
        return await self.load(self.spec.address, self.spec.length)
