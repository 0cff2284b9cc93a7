"""What kvmdbg costs a guest that nobody debugs just now: exits to QEMU, with kvmdbg and without.

Two QEMUs run the same guest in short turns of a fraction of a second, one at a time. One was
launched by kvmdbg, whose agent is in it, its controller connected and nothing armed; the other has
never heard of kvmdbg. What counts is exits per second of processor time of the vCPU's thread, so
that other load on the machine does not.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from rich.table import Table

import kvmdbg
from kvmdbg.qmp import QmpConnection
from tests.bench.rivals import plain_command
from tests.support import vms

_SOURCE = Path(__file__).with_suffix(".S")
_COUNTER = 0x1000  # GPA
_DEFINITION = """\
memory = "16M"
extra_args = ["-cpu", "qemu64,-cx16", "-bios", "{firmware}"]
"""

Rates = tuple[float, float]
"""Exits per second of processor time, without kvmdbg and with it."""


@dataclass
class ExitHeavy:
    """A QEMU under KVM that runs the guest, stopped."""

    monitor: QmpConnection
    times: Path
    """Of the vCPU's thread, in /proc."""
    resume: Callable[[], Awaitable[object]]
    pause: Callable[[], Awaitable[object]]

    @classmethod
    async def of(
        cls,
        pid: int,
        monitor: QmpConnection,
        resume: Callable[[], Awaitable[object]],
        pause: Callable[[], Awaitable[object]],
    ) -> Self:
        """Find its thread."""
        thread = (await monitor.execute("query-cpus-fast"))[0]["thread-id"]
        return cls(monitor, Path(f"/proc/{pid}/task/{thread}/schedstat"), resume, pause)

    async def turn(self, seconds: float) -> float:
        """Run for a while; exits per second of the vCPU thread's processor time."""
        exits, used = await self._count(), self._processor_time()
        await self.resume()
        await asyncio.sleep(seconds)
        await self.pause()
        return (await self._count() - exits) / (self._processor_time() - used)

    async def _count(self) -> int:
        look = {"command-line": f"xp /1wx {_COUNTER}"}
        return int((await self.monitor.execute("human-monitor-command", look)).split(":")[1], 16)

    def _processor_time(self) -> float:
        return int(self.times.read_text().split()[0]) / 1e9


@dataclass
class Pair:
    """The guest without kvmdbg, and with it."""

    without: ExitHeavy
    debugged: ExitHeavy

    async def measure(self, pairs: int, seconds: float = 0.2) -> list[Rates]:
        """So many pairs of turns, one turn after the other, the first to run turn about."""
        found: list[Rates] = []
        for number in range(pairs + 1):
            if number % 2:
                late = await self.debugged.turn(seconds)
                found.append((await self.without.turn(seconds), late))
            else:
                found.append((await self.without.turn(seconds), await self.debugged.turn(seconds)))
        return found[1:]  # the first warms up


@asynccontextmanager
async def exit_heavy() -> AsyncIterator[Pair]:
    """Start both; they end with the block. Raises AcceleratorError where there is no KVM."""
    with tempfile.TemporaryDirectory() as name:
        definition = Path(name, f"exits-{os.getpid()}.toml")
        definition.write_text(_DEFINITION.format(firmware=_build(Path(name))))
        async with (
            kvmdbg.open(str(definition), accel="kvm", engine="agent") as vm,
            vms.monitor(vm.status) as monitor,
            _plain_qemu(vm.status.pid, Path(name)) as plain,
        ):
            yield Pair(plain, await ExitHeavy.of(vm.status.pid, monitor, vm.resume, vm.pause))
            await vm.quit()


@asynccontextmanager
async def _plain_qemu(pid: int, folder: Path) -> AsyncIterator[ExitHeavy]:
    """One like that of ``pid``, with nothing of kvmdbg."""
    path = folder / "qmp"
    options = ["-qmp", f"unix:{path},server=on,wait=off", "-serial", "null"]
    process = subprocess.Popen(plain_command(pid) + options)  # noqa: ASYNC220
    try:
        while not path.exists():
            assert process.poll() is None, "QEMU did not start"
            await asyncio.sleep(0.02)
        monitor = await QmpConnection.connect(path)
        resume, pause = (partial(monitor.execute, command) for command in ("cont", "stop"))
        yield await ExitHeavy.of(process.pid, monitor, resume, pause)
        await monitor.close()
    finally:
        process.kill()
        process.wait()


def _build(folder: Path) -> Path:
    """The guest, as a firmware image."""
    elf, firmware = folder / "exits.elf", folder / "exits.bin"
    flags = ["-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0,--build-id=none"]
    subprocess.run(["gcc", *flags, "-o", elf, _SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, firmware], check=True)
    return firmware


def ratio(found: list[Rates]) -> float:
    """How much longer an exit takes with kvmdbg: the median of the pairs."""
    return statistics.median(without / debugged for without, debugged in found)


async def compare(pairs: int) -> Table:
    """Measure both, alternating, and tell the medians."""
    async with exit_heavy() as guests:
        found = await guests.measure(pairs)
    table = Table("", "exits per second of processor time")
    for title, rates in zip(("without kvmdbg", "with it"), zip(*found, strict=True), strict=True):
        table.add_row(title, f"{statistics.median(rates):,.0f}")
    table.add_row("ratio, median of pairs", f"{ratio(found):.3f}")
    return table
