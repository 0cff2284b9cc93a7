"""Runs inside gdb: what a user would do, timed. :mod:`tests.bench.gdbs` starts it.

The environment says where to connect and what to dump; the last line printed is a JSON object of
seconds by what took them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable

import gdb  # type: ignore[import-untyped]  # gdb has it

STEPS = 200
LINES = 20
CONNECTIONS = 5


def run(command: str) -> None:
    """A command, without what it prints."""
    gdb.execute(command, to_string=True)


def timed(commands: Iterable[str]) -> float:
    """Seconds for all of them."""
    began = time.perf_counter()
    for command in commands:
        run(command)
    return time.perf_counter() - began


def go_to(function: str) -> None:
    """Run to its beginning."""
    run(f"thbreak {function}")
    run("continue")


def measure() -> dict[str, float]:
    """Everything, on a VM that has just been started."""
    connect = f"target remote {os.environ['BENCH_SERVER']}"
    memory, size = (int(os.environ[name]) for name in ("BENCH_MEMORY", "BENCH_SIZE"))
    run(connect)
    again = 0.0
    for _ in range(CONNECTIONS):
        run("disconnect")
        again += timed([connect])
    found = {"target remote": again / CONNECTIONS}
    for _ in range(2):  # in the second its data is mapped
        go_to("workload_tick")
    run("set variable workload_mode = 987654321")
    go_to("workload_report")
    found[f"next, {LINES} times"] = timed(["next"] * LINES)
    found[f"stepi, {STEPS} times"] = timed(["stepi"] * STEPS)
    found[f"stepi {STEPS}"] = timed([f"stepi {STEPS}"])
    found[f"dump memory, {size >> 20} MiB"] = timed(
        [f"dump binary memory /dev/null {memory} {memory + size}"]
    )
    run("detach")
    return found


for setting in ("pagination off", "confirm off", "architecture i386:x86-64"):
    run(f"set {setting}")
try:
    print(json.dumps(measure()))
except gdb.error as error:
    print(json.dumps({"error": str(error)}))
