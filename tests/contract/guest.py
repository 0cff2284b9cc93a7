"""Builds the guests and runs them under QEMU."""

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
from kvmdbg.backend.agent import Abilities, AgentEngine
from kvmdbg.backend.stub import StubEngine
from kvmdbg.images.ports import compiler
from kvmdbg.machine.engines import connect_agent
from kvmdbg.machine.exitwatch import ExitWatch
from kvmdbg.machine.preload import NO_PRELOAD, preload
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
    qmp: Path
    stub: Path
    agent: Path
    run_control: QmpRunControl
    monitor: QmpMonitor

    def threads(self) -> str:
        """What each thread of QEMU is doing, for who waited for it in vain."""
        folders = sorted(Path(f"/proc/{self.process.pid}/task").glob("*"))
        return "\n".join(["QEMU's threads:", *map(_thread, folders)])

    async def engine(self, *, direct_memory: bool = True) -> StubEngine:
        """Open the stub engine."""
        return await StubEngine.open(
            self.stub,
            arch=self.guest.platform.arch,
            monitor=self.monitor,
            run_control=self.run_control,
            pid=self.process.pid if direct_memory else None,
        )

    async def agent_engine(self, abilities: Abilities) -> AgentEngine:
        """Open the agent engine; QEMU was started for it."""
        return await AgentEngine.open(
            await connect_agent(self.agent),
            arch=self.guest.platform.arch,
            abilities=abilities,
            monitor=self.monitor,
            run_control=self.run_control,
        )


def _thread(folder: Path) -> str:
    said = []
    # The kernel's stack is for root.
    for name in ("comm", "syscall", "stack"):
        with contextlib.suppress(OSError):
            said.append(" < ".join((folder / name).read_text().split("\n")).rstrip("< "))
    return f"  {folder.name} {'; '.join(said)}"


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
        *(f"qemu-system-{guest.platform.name}", *guest.platform.qemu, *(_KVM if agent else _TCG)),
        *("-nodefaults", "-display", "none", "-S", "-no-shutdown"),
        *("-name", "contract,debug-threads=on"),
        *("-m", "32", "-smp", str(vcpus), "-bios", str(guest.firmware)),
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
