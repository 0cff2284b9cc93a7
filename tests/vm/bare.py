"""QEMUs without a kernel, for tests of what happens around the guest."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvmdbg.machine.define import Definition
from kvmdbg.machine.launch import LaunchOptions, launch_vm
from kvmdbg.machine.machine import Machine
from kvmdbg.machine.processes import ProcessId
from kvmdbg.machine.runtime import RuntimeDir
from kvmdbg.progress import SilentProgress
from kvmdbg.qmp import QmpConnection
from kvmdbg.target.runstate import RunEvent

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
)

SECONDS = 20.0
"""Any wait of these tests: generous, on a loaded host."""


@contextmanager
def short_folder() -> Iterator[Path]:
    """A private folder with a path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="kd-") as folder:
        yield Path(folder)


@contextmanager
def private_runtime() -> Iterator[RuntimeDir]:
    """A runtime folder that no other kvmdbg sees."""
    with short_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield RuntimeDir.open()


class Bare:
    """A launched machine, and what it said."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.events: list[RunEvent] = []
        self._changed = asyncio.Event()
        machine.run_control.subscribe(self._on_event)

    def _on_event(self, event: RunEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def wait_event(self, event: RunEvent) -> None:
        """Wait until ``event`` has come."""
        async with asyncio.timeout(SECONDS):
            while event not in self.events:
                self._changed.clear()
                await self._changed.wait()

    @asynccontextmanager
    async def other_monitor(self) -> AsyncIterator[QmpConnection]:
        """The monitor that is left to others."""
        assert self.machine.info.monitor is not None
        connection = await QmpConnection.connect(self.machine.info.monitor)
        try:
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def launched(
    runtime: RuntimeDir, definition: Definition | None = None, **options: Any
) -> AsyncIterator[Bare]:
    """A bare machine, frozen; ended afterwards."""
    machine = await launch_vm(
        runtime,
        definition or Definition(name="bare", memory="64M"),
        LaunchOptions(**options),
        SilentProgress(),
    )
    try:
        yield Bare(machine)
    finally:
        machine.process.kill()
        await machine.close()
        await wait_ended(machine.info.pid)


async def wait_ended(pid: int) -> None:
    """Wait until a process is no more."""
    async with asyncio.timeout(SECONDS):
        while ProcessId.of(pid) is not None:  # noqa: ASYNC110 - another process's end
            await asyncio.sleep(0.01)


@asynccontextmanager
async def foreign_qemu(
    *arguments: str, accel: str = "tcg", program: str = "qemu-system-x86_64"
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A QEMU that kvmdbg knows nothing of, running its firmware."""
    process = await asyncio.create_subprocess_exec(
        program,
        *("-display", "none", "-nodefaults", "-accel", accel, "-m", "64M"),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def wait_listening(path: Path) -> None:
    """Wait until something listens on a unix socket."""
    async with asyncio.timeout(SECONDS):
        while not _accepts(path):  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.02)


def _accepts(path: Path) -> bool:
    if not os.path.exists(path):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
