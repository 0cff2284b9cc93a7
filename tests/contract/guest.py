"""Builds the guest of guest.S and runs it under QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kvmdbg.addr import Gva
from kvmdbg.arch import X86_64
from kvmdbg.backend.agent import Abilities, AgentEngine
from kvmdbg.backend.stub import StubEngine
from kvmdbg.machine.engines import connect_agent
from kvmdbg.machine.exitwatch import ExitWatch
from kvmdbg.machine.preload import NO_PRELOAD, preload
from kvmdbg.machine.runcontrol import QmpMonitor, QmpRunControl
from kvmdbg.qmp import QmpConnection

IMAGE = 0xFFFF_FFFF_8020_0000
"""GVA of GPA :data:`COPY` in the guest."""

COPY = 0x20_0000
SMALL = Gva(0x4000_0000)
"""GVA of a single page at GPA 0x300000."""

_SOURCE = Path(__file__).with_name("guest.S")


@dataclass(frozen=True)
class Guest:
    """The built guest: its firmware file, and GVAs by symbol."""

    firmware: Path
    symbols: dict[str, Gva]


def build(folder: Path) -> Guest:
    """Assemble and link the guest."""
    elf, firmware = folder / "guest.elf", folder / "guest.bin"
    flags = ["-nostdlib", "-static", "-no-pie", f"-Wl,-Ttext={IMAGE:#x},--build-id=none"]
    subprocess.run(["gcc", *flags, "-o", elf, _SOURCE], check=True)
    with elf.open("rb") as file:
        parsed = ELFFile(file)
        text, table = (parsed.get_section_by_name(name) for name in (".text", ".symtab"))
        assert text is not None
        assert isinstance(table, SymbolTableSection)
        firmware.write_bytes(text.data())
        symbols = {s.name: Gva(s["st_value"]) for s in table.iter_symbols() if s.name}
    return Guest(firmware, symbols)


@dataclass
class LiveVm:
    """A QEMU that runs the guest, with a stub and a monitor of its own."""

    guest: Guest
    process: subprocess.Popen[bytes]
    qmp: Path
    stub: Path
    agent: Path
    run_control: QmpRunControl
    monitor: QmpMonitor

    async def engine(self, *, direct_memory: bool = True) -> StubEngine:
        """Open the stub engine."""
        return await StubEngine.open(
            self.stub,
            arch=X86_64,
            monitor=self.monitor,
            run_control=self.run_control,
            pid=self.process.pid if direct_memory else None,
        )

    async def agent_engine(self, abilities: Abilities) -> AgentEngine:
        """Open the agent engine; QEMU was started for it."""
        return await AgentEngine.open(
            await connect_agent(self.agent),
            arch=X86_64,
            abilities=abilities,
            monitor=self.monitor,
            run_control=self.run_control,
        )


_TCG = ("-accel", "tcg")
_KVM = ("-accel", "kvm", "-cpu", "qemu64,-cx16")
"""What not every KVM has is not offered."""


@contextlib.asynccontextmanager
async def live_vm(
    guest: Guest, folder: Path, vcpus: int, *, agent: bool = False
) -> AsyncIterator[LiveVm]:
    """Start QEMU, with the guest at its first instruction; with ``agent`` under KVM."""
    stub, qmp, listening = folder / "stub.sock", folder / "qmp.sock", folder / "agent.sock"
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-no-shutdown"),
        *(*(_KVM if agent else _TCG), "-m", "32", "-smp", str(vcpus), "-bios", str(guest.firmware)),
        *("-qmp", f"unix:{qmp},server=on,wait=off"),
        *("-chardev", f"socket,id=stub,path={stub},server=on,wait=off", "-gdb", "chardev:stub"),
    ]
    with preload(listening) if agent else contextlib.nullcontext(NO_PRELOAD) as inherited:
        # A Popen, as QEMU has to outlive no event loop.
        process = subprocess.Popen(  # noqa: ASYNC220
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **inherited.environment},
            pass_fds=inherited.descriptors,
        )
    try:
        async with asyncio.timeout(20):
            while not (stub.exists() and qmp.exists()):
                assert process.poll() is None, "QEMU did not start"
                await asyncio.sleep(0.02)
        connection = await QmpConnection.connect(qmp)
        watch = ExitWatch(process.pid)
        run_control = await QmpRunControl.open(connection, watch)
        try:
            monitor = QmpMonitor(connection)
            yield LiveVm(guest, process, qmp, stub, listening, run_control, monitor)
        finally:
            await run_control.close()
            watch.close()
    finally:
        process.kill()
        process.wait()
