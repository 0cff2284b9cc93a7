"""What the user of a gdb waits for; gdb's own time is part of it, with either server."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections import defaultdict
from pathlib import Path

from rich.table import Table

from tests.bench.rivals import Rivals
from tests.support import demo
from tests.support.gdb import GDB_18, gdb_environment

IN_GDB = Path(__file__).with_name("in_gdb.py")
MEMORY = "_text"
SIZE = 16 << 20
"""Bytes that are dumped."""

GDBS = {"gdb 13": "gdb", "gdb 18": str(GDB_18)}
TIMEOUT = 300.0


def measure(gdb: str, server: Path) -> dict[str, float]:
    """Seconds by what took them."""
    environment = gdb_environment() | {
        "BENCH_SERVER": str(server),
        "BENCH_MEMORY": str(demo.kernel()[MEMORY]),
        "BENCH_SIZE": str(SIZE),
    }
    done = subprocess.run(
        [gdb, "-nx", "-batch", demo.artefact("workload"), "-x", IN_GDB],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        timeout=TIMEOUT,
        check=False,
        text=True,
    )
    found: dict[str, float] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
    if not found or "error" in found:
        raise SystemExit(f"bench: {gdb} failed with {server}:\n{done.stdout[-2000:]}")
    return found


def compare(servers: Rivals, repeats: int) -> Table:
    """Measure both, alternating, and tell the medians."""
    table = Table("with", "", "kvmdbg ms", "QEMU's stub ms", "ratio")
    for title, gdb in GDBS.items():
        times: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
        for _ in range(repeats):
            for index, server in enumerate((servers.kvmdbg, servers.stub)):
                for what, seconds in measure(gdb, server).items():
                    times[what][index].append(seconds)
        for what, both in times.items():
            mine, stub = (statistics.median(found) for found in both)
            table.add_row(
                title, what, f"{mine * 1e3:.1f}", f"{stub * 1e3:.1f}", f"{stub / mine:.2f}×"
            )
    return table
