"""Builds the guests and runs them under QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kvmdbg.addr import Gva
from kvmdbg.backend.stub import StubEngine
from kvmdbg.images.ports import compiler
from kvmdbg.machine.exitwatch import ExitWatch
from kvmdbg.machine.runcontrol import QmpMonitor, QmpRunControl
from kvmdbg.qmp import QmpConnection
from tests.contract.platforms import Platform


@dataclass(frozen=True)
class Guest:
    """A built guest: its firmware file, and GVAs by symbol."""

    platform: Platform
    firmware: Path
    symbols: dict[str, Gva]


def build(platform: Platform, folder: Path) -> Guest:
    """Assemble and link a guest."""
    elf, firmware = folder / f"{platform.name}.elf", folder / f"{platform.name}.bin"
    flags = ["-nostdlib", "-static", "-no-pie", f"-Wl,-Ttext={platform.image:#x},--build-id=none"]
    subprocess.run([compiler(platform.name), *flags, "-o", elf, platform.path], check=True)
    with elf.open("rb") as file:
        parsed = ELFFile(file)
        text, table = (parsed.get_section_by_name(name) for name in (".text", ".symtab"))
        assert text is not None
        assert isinstance(table, SymbolTableSection)
        firmware.write_bytes(text.data())
        symbols = {s.name: Gva(s["st_value"]) for s in table.iter_symbols() if s.name}
    return Guest(platform, firmware, symbols)


@dataclass
class LiveVm:
    """A QEMU that runs the guest, with a stub and a monitor of its own."""

    guest: Guest
    process: subprocess.Popen[bytes]
    stub: Path
    run_control: QmpRunControl
    monitor: QmpMonitor

    async def engine(self, *, direct_memory: bool = True) -> StubEngine:
        """Open an engine."""
        return await StubEngine.open(
            self.stub,
            arch=self.guest.platform.arch,
            monitor=self.monitor,
            run_control=self.run_control,
            pid=self.process.pid if direct_memory else None,
        )


@contextlib.asynccontextmanager
async def live_vm(guest: Guest, folder: Path, vcpus: int) -> AsyncIterator[LiveVm]:
    """Start QEMU, with the guest at its first instruction."""
    stub, qmp = folder / "stub.sock", folder / "qmp.sock"
    command = [
        *(f"qemu-system-{guest.platform.name}", *guest.platform.qemu),
        *("-nodefaults", "-display", "none", "-S", "-no-shutdown"),
        *("-accel", "tcg", "-m", "32", "-smp", str(vcpus), "-bios", str(guest.firmware)),
        *("-qmp", f"unix:{qmp},server=on,wait=off"),
        *("-chardev", f"socket,id=stub,path={stub},server=on,wait=off", "-gdb", "chardev:stub"),
    ]
    # A Popen, as QEMU has to outlive no event loop.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        async with asyncio.timeout(20):
            while not (stub.exists() and qmp.exists()):
                assert process.poll() is None, "QEMU did not start"
                await asyncio.sleep(0.02)
        connection = await QmpConnection.connect(qmp)
        watch = ExitWatch(process.pid)
        run_control = await QmpRunControl.open(connection, watch)
        try:
            yield LiveVm(guest, process, stub, run_control, QmpMonitor(connection))
        finally:
            await run_control.close()
            watch.close()
    finally:
        process.kill()
        process.wait()
