"""A guest that debugs itself does not notice that we could."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from kvmdbg.addr import Gpa
from kvmdbg.machine.engines import connect_agent
from kvmdbg.machine.preload import NO_PRELOAD, preload
from kvmdbg.machine.runcontrol import QmpMonitor
from kvmdbg.qmp import QmpConnection
from tests.vm.bare import wait_listening

pytestmark = pytest.mark.vm

SOURCE = Path(__file__).with_name("selfdebug.S")
ROM, DONE, TRACE = 0xF0000, Gpa(0x5000), Gpa(0x200000)
ROUNDS = 20
ENTRY = 32
"""Bytes: vector, rip, dr6, rflags."""
PAIRS = 5


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guest")
    elf, firmware = folder / "guest.elf", folder / "guest.bin"
    flags = ["-nostdlib", "-static", "-no-pie", f"-Wl,-Ttext={ROM:#x},--build-id=none"]
    subprocess.run(["gcc", *flags, "-o", elf, SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, firmware], check=True)
    return firmware


async def trace(firmware: Path, folder: Path, *, attached: bool) -> list[str]:
    """What the guest's handlers saw, an entry a line."""
    qmp, listening, dump = folder / "qmp", folder / "agent", folder / "dump"
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-m", "16"),
        *("-accel", "kvm", "-bios", str(firmware), "-qmp", f"unix:{qmp},server=on,wait=off"),
    ]
    with preload(listening) if attached else contextlib.nullcontext(NO_PRELOAD) as inherited:
        process = subprocess.Popen(  # noqa: ASYNC220
            command, env={**os.environ, **inherited.environment}, pass_fds=inherited.descriptors
        )
    try:
        await wait_listening(qmp)
        connection = await QmpConnection.connect(qmp)
        monitor = QmpMonitor(connection)
        agent = await connect_agent(listening) if attached else None
        await monitor.qmp("cont")
        async with asyncio.timeout(120):
            while not (end := await number(monitor, DONE)):  # noqa: ASYNC110 (the guest's doing)
                await asyncio.sleep(0.05)
        if agent is not None:
            assert await agent.points() == ()
            await agent.detach()
        size = end - TRACE
        await monitor.qmp("pmemsave", {"val": TRACE, "size": size, "filename": str(dump)})
        await connection.close()
        data = dump.read_bytes()
        return [data[at : at + ENTRY].hex(" ", 8) for at in range(0, size, ENTRY)]
    finally:
        process.kill()
        process.wait()


async def number(monitor: QmpMonitor, at: Gpa) -> int:
    return int((await monitor.hmp(f"xp /1gx {at:#x}")).split(":")[1], 16)


async def test_it_sees_what_it_saw_without_us(firmware: Path, tmp_path: Path) -> None:
    for turn in range(PAIRS):
        folders = [tmp_path / f"{turn}{name}" for name in ("alone", "attached")]
        for folder in folders:
            folder.mkdir()
        alone = await trace(firmware, folders[0], attached=False)
        assert len(alone) > 5 * ROUNDS
        assert await trace(firmware, folders[1], attached=True) == alone
