"""What the agent costs a guest that nobody debugs: exits to QEMU, with the agent and without it.

Two QEMUs run the same guest, one with the agent loaded, in short turns of a fraction of a second,
one at a time. What counts is exits per second of processor time of the vCPU's thread, so that other
load on the machine does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_SOURCE = Path(__file__).with_suffix(".S")
_COUNTER = 0x1000  # GPA


class ExitHeavy:
    """A QEMU under KVM that runs the guest, stopped."""

    def __init__(self, monitor: socket.socket, pid: int) -> None:
        self._monitor = monitor.makefile("rw")
        json.loads(self._monitor.readline())  # the greeting
        self.qmp("qmp_capabilities")
        self.thread = self.qmp("query-cpus-fast")[0]["thread-id"]
        self._times = Path(f"/proc/{pid}/task/{self.thread}/schedstat")

    def turn(self, seconds: float) -> float:
        """Run for a while; exits per second of the vCPU thread's processor time."""
        exits, used = self._count(), self._processor_time()
        self.qmp("cont")
        time.sleep(seconds)
        self.qmp("stop")
        return (self._count() - exits) / (self._processor_time() - used)

    def qmp(self, command: str, **arguments: object) -> Any:
        """The result of a QMP command."""
        json.dump({"execute": command, "arguments": arguments}, self._monitor)
        self._monitor.flush()
        while True:
            answer = json.loads(self._monitor.readline())
            if "event" not in answer:
                return answer["return"]

    def _count(self) -> int:
        shown = self.qmp("human-monitor-command", **{"command-line": f"xp /1wx {_COUNTER}"})
        return int(shown.split(":")[1], 16)

    def _processor_time(self) -> float:
        return int(self._times.read_text().split()[0]) / 1e9


@contextmanager
def exit_heavy(firmware: Path, folder: Path, environment: dict[str, str]) -> Iterator[ExitHeavy]:
    """A QEMU that runs the guest, with ``environment`` added to its own."""
    path = folder / f"qmp{len(environment)}.sock"
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-m", "16"),
        *("-accel", "kvm", "-cpu", "qemu64,-cx16", "-bios", str(firmware)),
        *("-qmp", f"unix:{path},server=on,wait=off"),
    ]
    process = subprocess.Popen(command, env=os.environ | environment)
    try:
        with socket.socket(socket.AF_UNIX) as monitor:
            deadline = time.monotonic() + 20
            while monitor.connect_ex(str(path)) and time.monotonic() < deadline:
                time.sleep(0.02)
            yield ExitHeavy(monitor, process.pid)
    finally:
        process.kill()
        process.wait()


def build(folder: Path) -> Path:
    """The guest, as a firmware image."""
    elf, firmware = folder / "exits.elf", folder / "exits.bin"
    flags = ["-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0,--build-id=none"]
    subprocess.run(["gcc", *flags, "-o", elf, _SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, firmware], check=True)
    return firmware


def measure(pairs: int, seconds: float, environment: dict[str, str]) -> list[tuple[float, float]]:
    """Exits per second without and with ``environment``, turn about, in that many pairs."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        firmware = build(folder)
        guests = [
            stack.enter_context(exit_heavy(firmware, folder, added)) for added in ({}, environment)
        ]
        for guest in guests:
            guest.turn(seconds)  # warms up
        found = []
        for forward in itertools.islice(itertools.cycle((True, False)), pairs):
            order = guests if forward else guests[::-1]
            rates = {guest.thread: guest.turn(seconds) for guest in order}
            found.append((rates[guests[0].thread], rates[guests[1].thread]))
        return found


def ratio(found: list[tuple[float, float]]) -> float:
    """How much longer an exit takes with the agent: the median of the pairs."""
    return statistics.median(without / loaded for without, loaded in found)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each turn")
    arguments = parser.parse_args()
    with resources.as_file(resources.files("kvmdbg.agent") / "agent.so") as agent:
        found = measure(arguments.pairs, arguments.seconds, {"LD_PRELOAD": str(agent)})
    table = Table("", "exits per second of processor time", title="an exit-heavy guest")
    for title, rates in zip(
        ("without the agent", "with it"), zip(*found, strict=True), strict=True
    ):
        table.add_row(title, f"{statistics.median(rates):,.0f}")
    table.add_row("ratio, median of pairs", f"{ratio(found):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
