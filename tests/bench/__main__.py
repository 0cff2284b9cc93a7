"""``make bench``: RSP round trips, and what gdb makes of them, beside QEMU's own stub; and what
kvmdbg costs a guest that nobody debugs just now.

The two servers serve the same kernel, stopped at the same function; the same client asks both in
turn, in the same run, so that the ratios mean something on any machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics

from rich.console import Console
from rich.table import Table

from kvmdbg.machine.verdict import kvm_verdict
from tests.bench import exits, gdbs
from tests.bench.rivals import Rivals, rivals
from tests.bench.wire import Wire
from tests.support import demo

PAIRS = 40
"""Of turns, a fraction of a second each."""

STOP_AT = "do_sys_openat2"
MEMORY = "init_task"
PACKETS = {
    "?": "why stopped",
    "g": "all registers",
    "p10": "one register",
    "m": "memory, 2 KiB",
    "s": "one step",
}


def compare(servers: Rivals, rounds: int, repeats: int) -> Table:
    """Measure both, alternating, and tell the medians."""
    memory = demo.kernel()[MEMORY]
    table = Table("packet", "", "kvmdbg µs", "QEMU's stub µs", "kvmdbg /s", "stub /s", "ratio")
    with contextlib.ExitStack() as stack:
        wires = [Wire(servers.kvmdbg), Wire(servers.stub)]
        for wire in wires:
            stack.callback(wire.close)
            wire.run_to(demo.kernel()[STOP_AT])
        for packet, meaning in PACKETS.items():
            payload = b"m%x,800" % memory if packet == "m" else packet.encode()
            times: list[list[float]] = [[], []]
            for _ in range(repeats):
                for wire, found in zip(wires, times, strict=True):
                    found += wire.round_trip(payload, rounds=rounds, repeats=1)
            mine, stub = (statistics.median(found) for found in times)
            table.add_row(
                packet,
                meaning,
                f"{mine * 1e6:.1f}",
                f"{stub * 1e6:.1f}",
                f"{1 / mine:,.0f}",
                f"{1 / stub:,.0f}",
                f"{stub / mine:.2f}×",
            )
    return table


async def main() -> None:
    """Parse arguments, start both, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000, help="round trips per sample")
    parser.add_argument(
        "--repeats", type=int, default=7, help="samples, of which the median counts"
    )
    arguments = parser.parse_args()
    repeats = arguments.repeats
    async with rivals() as servers:
        wire = await asyncio.to_thread(compare, servers, arguments.rounds, repeats)
        wire.title = f"RSP round trips, median of {repeats} × {arguments.rounds}"
        Console().print(wire)
        whole = await asyncio.to_thread(gdbs.compare, servers, repeats)
        whole.title = f"gdb, median of {repeats}"
        Console().print(whole)
    verdict = kvm_verdict()
    if "guests" in verdict.works:
        cost = await exits.compare(PAIRS)
        cost.title = f"an exit-heavy guest, {PAIRS} pairs"
        Console().print(cost)
    else:
        print(f"what kvmdbg costs a guest under KVM cannot be measured: {verdict.reason}")


if __name__ == "__main__":
    asyncio.run(main())
