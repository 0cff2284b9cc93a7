"""``make bench``: RSP round trips with kvmdbg, beside QEMU's own stub.

Both serve the same kernel, stopped at the same function; the same client asks both in turn, in the
same run, so that the ratios mean something on any machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

import kvmdbg
from tests.bench.wire import Wire

STOP_AT = "do_sys_openat2"
MEMORY = "init_task"
PACKETS = {
    "?": "why stopped",
    "g": "all registers",
    "p10": "one register",
    "m": "memory, 2 KiB",
    "s": "one step",
}

# Options of the VM's own QEMU that would make a second one use the same sockets.
_PRIVATE = {"-name", "-chardev", "-mon", "-gdb", "-serial"}


@contextmanager
def plain_qemu(pid: int) -> Iterator[Path]:
    """A QEMU like that of ``pid``, with nothing of kvmdbg; yields its stub's socket."""
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    options = iter(argv[1:])
    kept = [argv[0]]
    for option in options:
        if option in _PRIVATE:
            next(options)
        else:
            kept.append(option)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stub.sock")
        kept += ["-gdb", f"unix:{path},server=on,wait=off", "-serial", "null"]
        process = subprocess.Popen(kept)
        try:
            deadline = time.monotonic() + 10
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield path
        finally:
            process.kill()
            process.wait()


def compare(ours: Path, pid: int, symbols: tuple[int, int], rounds: int, repeats: int) -> Table:
    """Measure both, alternating, and tell the medians."""
    stop_at, memory = symbols
    table = Table("packet", "", "kvmdbg µs", "QEMU's stub µs", "kvmdbg /s", "stub /s", "ratio")
    with plain_qemu(pid) as theirs:
        wires = [Wire(ours), Wire(theirs)]
        for wire in wires:
            wire.run_to(stop_at)
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
        for wire in wires:
            wire.close()
    return table


async def main() -> None:
    """Parse arguments, start both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000, help="round trips per sample")
    parser.add_argument(
        "--repeats", type=int, default=7, help="samples, of which the median counts"
    )
    arguments = parser.parse_args()
    async with kvmdbg.open("demo", instance=f"bench-{os.getpid()}") as vm:
        symbols = (vm.address(STOP_AT), vm.address(MEMORY))
        table = await asyncio.to_thread(
            compare,
            Path(vm.status.gdb_socket),
            vm.status.pid,
            symbols,
            arguments.rounds,
            arguments.repeats,
        )
        table.title = f"RSP round trips, median of {arguments.repeats} × {arguments.rounds}"
        Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
