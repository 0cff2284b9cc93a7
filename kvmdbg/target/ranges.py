"""A run as clients see it, of as many of an engine's as it takes: through a range of addresses, and
past hits that nobody wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvmdbg.addr import Gva
from kvmdbg.target.breakpoints import BreakpointManager
from kvmdbg.target.capabilities import Engine
from kvmdbg.target.stops import Action, Paused, ResumePlan, Stepped, Stop


async def run_plan(
    engine: Engine,
    plan: ResumePlan,
    breakpoints: BreakpointManager,
    interrupted: Callable[[], bool],
    wanted: Callable[[Stop], Awaitable[bool]],
) -> Stop:
    """:meth:`kvmdbg.target.capabilities.Execution.run`, over and over while ``plan.ranges`` say so,
    or a stop is not ``wanted``.

    ``interrupted`` is true from before the engine's interrupt() is called: between two runs that
    has nothing to stop.
    """
    while True:
        stop = await engine.execution.run(plan)
        if await wanted(stop):
            goes_on = bool(plan.ranges) and await _is_within(engine, plan, stop, breakpoints)
        else:
            step = Stop(stop.vcpu, Stepped())
            was_step = plan.action(stop.vcpu) is Action.STEP and not engine.arch.watch_before
            goes_on = not was_step or await _is_within(engine, plan, step, breakpoints)
            stop = step
        if not goes_on:
            return stop
        await asyncio.sleep(0)  # others have their turn, whether the engine ever waits or not
        if interrupted():
            return Stop(stop.vcpu, Paused())


async def _is_within(
    engine: Engine, plan: ResumePlan, stop: Stop, breakpoints: BreakpointManager
) -> bool:
    """True after a step that did not lead out of its range."""
    bounds = plan.ranges.get(stop.vcpu)
    if bounds is None or stop.reason != Stepped():
        return False
    arch = engine.arch
    value = await engine.registers.read_register(stop.vcpu, arch.numbers[arch.pc])
    pc = Gva(int.from_bytes(value or b"", "little"))
    # A step onto a breakpoint does not report it: whoever steps has to see it.
    return bounds[0] <= pc < bounds[1] and not breakpoints.is_at(pc)
