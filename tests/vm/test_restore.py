"""A QEMU that others started is left as it was found, whole path: command, owner, engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import kvmdbg
from kvmdbg.machine.processes import ProcessId
from kvmdbg.machine.runtime import RuntimeDir
from kvmdbg.qmp import QmpConnection
from tests.support.demo import artefact


async def _start_qemu(monitor: Path, *extra: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-machine", "q35", "-m", "512"),
        *("-display", "none", "-serial", "null", "-monitor", "none"),
        *("-qmp", f"unix:{monitor},server=on,wait=off"),
        *("-kernel", str(artefact("vmlinuz")), "-initrd", str(artefact("initramfs"))),
        *("-append", "console=ttyS0 quiet nokaslr"),
        *extra,
    )
    async with asyncio.timeout(20):
        while not monitor.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return process


async def _wait_left(pid: int) -> None:
    """Until no owner holds the VM any more."""
    process = ProcessId.of(pid)
    assert process is not None
    runtime = RuntimeDir.open()
    async with asyncio.timeout(30):
        while runtime.is_owned(process):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _status(monitor: Path) -> str:
    qmp = await QmpConnection.connect(monitor)
    try:
        return str((await qmp.execute("query-status"))["status"])
    finally:
        await qmp.close()


async def test_a_running_vm_runs_on(tmp_path: Path) -> None:
    monitor = tmp_path / "q"
    process = await _start_qemu(monitor)
    try:
        async with kvmdbg.open(f"pid:{process.pid}") as vm:
            assert not vm.status.booted
            assert vm.stopped is None
            await vm.breakpoint(0xFFFF_FFFF_8000_0000)
            await vm.pause()
        await _wait_left(process.pid)
        assert await _status(monitor) == "running"
    finally:
        process.kill()
        await process.wait()


async def test_a_stopped_vm_stays_stopped(tmp_path: Path) -> None:
    monitor = tmp_path / "q"
    process = await _start_qemu(monitor, "-S")
    try:
        async with kvmdbg.open(f"pid:{process.pid}") as vm:
            await vm.pause()
            assert (await vm.registers())["rip"] == 0xFFF0
        await _wait_left(process.pid)
        assert await _status(monitor) in ("prelaunch", "paused")
    finally:
        process.kill()
        await process.wait()
