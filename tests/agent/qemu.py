"""A stock QEMU under the host's KVM that knows nothing of kvmdbg, and an agent brought into it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from kvmdbg.agent.client import AgentClient
from kvmdbg.agent.late import attach, library, vcpu_threads
from kvmdbg.agent.process import Process
from kvmdbg.backend.hmp import memory_slots
from kvmdbg.errors import MonitorError
from kvmdbg.machine.runcontrol import QmpMonitor
from kvmdbg.qmp import QmpConnection
from kvmdbg.wire.structs import Slot
from tests.contract.guest import Guest

# What the host's KVM may not have, the guest does not need.
_CPU = "qemu64,-cx16"
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True)
class Traces:
    """What an agent must not leave behind in a process: open files and threads."""

    descriptors: dict[int, str]
    threads: list[int]

    @classmethod
    def of(cls, pid: int) -> Traces:
        process = Process(pid)
        return cls(process.descriptors(), process.threads())


@dataclass
class Qemu:
    """A QEMU that runs the contract's guest."""

    guest: Guest
    process: subprocess.Popen[bytes]
    monitor: QmpConnection

    @property
    def pid(self) -> int:
        return self.process.pid

    async def layout(self) -> tuple[list[int], list[Slot]]:
        """What late.attach() wants of the monitor: vCPUs' threads, and memory."""
        cpus = await self.monitor.execute("query-cpus-fast")
        return vcpu_threads(cpus), await memory_slots(QmpMonitor(self.monitor))

    async def attach(self) -> AgentClient:
        """Bring the agent in."""
        return await attach(self.pid, *await self.layout())

    async def wait_traces(self, expected: Traces) -> None:
        """Wait until nothing is left of an agent. What it closes, it closes after hanging up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while Traces.of(self.pid) != expected:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        assert Traces.of(self.pid) == expected

    async def ticks(self) -> int:
        """How many timer interrupts the guest has taken."""
        address = self.guest.platform.gpa(self.guest.symbols["ticks"])
        text = await QmpMonitor(self.monitor).hmp(f"xp /1gx {address:#x}")
        return int(text.split(":")[1], 16)

    async def wait_running(self) -> None:
        """Wait until the guest has taken one more."""
        before = await self.ticks()
        async with asyncio.timeout(10):
            while await self.ticks() == before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def memory_kib(self) -> int:
        """What QEMU has written to, without the guest's memory.

        Huge pages are not counted: the kernel makes them of others when it likes to.
        """
        _, slots = await self.layout()
        total, sign = 0, {}
        for line in Path(f"/proc/{self.pid}/smaps").read_text().splitlines():
            key, _, value = line.partition(":")
            if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                start, end = int(match[1], 16), int(match[2], 16)
                is_guests = any(s.hva < end and start < s.hva + s.size for s in slots)
                sign = {} if is_guests else {"Private_Dirty": 1, "AnonHugePages": -1}
            elif key in sign:
                total += sign[key] * int(value.split()[0])
        return total


@contextlib.asynccontextmanager
async def stock_qemu(
    guest: Guest, folder: Path, vcpus: int, listener: socket.socket | None = None, places: int = 4
) -> AsyncIterator[Qemu]:
    """Start it, and wait until its guest takes timer interrupts.

    More vCPUs can be plugged in, up to ``places``. With a socket that listens it is not stock: the
    agent is preloaded, and accepts there.
    """
    path = folder / "qmp.sock"
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-shutdown"),
        *("-accel", "kvm", "-cpu", _CPU, "-m", "32", "-smp", f"{vcpus},maxcpus={places}"),
        *("-bios", os.fspath(guest.firmware), "-sandbox", _SANDBOX),
        *("-qmp", f"unix:{path},server=on,wait=off"),
    ]
    process = subprocess.Popen(  # noqa: ASYNC220
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[listener.fileno()] if listener else [],
        env=os.environ | (_preloaded(listener) if listener else {}),
    )
    try:
        qemu = Qemu(guest, process, await _connect(process, path))
        try:
            await qemu.wait_running()
            yield qemu
        finally:
            await qemu.monitor.close()
    finally:
        process.kill()
        process.wait()


def _preloaded(listener: socket.socket) -> dict[str, str]:
    return {"LD_PRELOAD": str(library()), "KVMDBG_AGENT_FD": str(listener.fileno())}


async def _connect(process: subprocess.Popen[bytes], path: Path) -> QmpConnection:
    async with asyncio.timeout(20):
        while True:
            assert process.poll() is None, "QEMU did not start"
            try:
                return await QmpConnection.connect(path)
            except MonitorError:
                await asyncio.sleep(0.02)
