"""Stepping through a range of addresses, on top of an engine that steps single instructions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvmdbg.addr import Gva
from kvmdbg.target.breakpoints import BreakpointManager
from kvmdbg.target.capabilities import Engine
from kvmdbg.target.stops import Paused, ResumePlan, Stepped, Stop


async def run_plan(
    engine: Engine,
    plan: ResumePlan,
    breakpoints: BreakpointManager,
    interrupted: Callable[[], bool],
) -> Stop:
    """:meth:`kvmdbg.target.capabilities.Execution.run`, over and over while ``plan.ranges`` say so.

    ``interrupted`` is true from before the engine's interrupt() is called: between two steps that
    has nothing to stop.
    """
    while True:
        stop = await engine.execution.run(plan)
        if not plan.ranges or not await _is_within(engine, plan, stop, breakpoints):
            return stop
        if interrupted():
            return Stop(stop.vcpu, Paused())


async def _is_within(
    engine: Engine, plan: ResumePlan, stop: Stop, breakpoints: BreakpointManager
) -> bool:
    """True after a step that did not lead out of its range."""
    bounds = plan.ranges.get(stop.vcpu)
    if bounds is None or stop.reason != Stepped():
        return False
    await asyncio.sleep(0)  # others have their turn, whether the engine ever waits or not
    arch = engine.arch
    value = await engine.registers.read_register(stop.vcpu, arch.numbers[arch.pc])
    pc = Gva(int.from_bytes(value or b"", "little"))
    # A step onto a breakpoint does not report it: whoever steps has to see it.
    return bounds[0] <= pc < bounds[1] and not breakpoints.is_at(pc)
