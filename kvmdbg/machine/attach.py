"""Attaching to a QEMU that kvmdbg did not launch, through a free monitor of it.

Under KVM the agent is brought into it. Otherwise its own stub is started on a private socket, and
put back on leaving.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from kvmdbg.agent.client import AgentClient
from kvmdbg.agent.late import attach, vcpu_threads
from kvmdbg.arch import ARCHITECTURES
from kvmdbg.backend import hmp
from kvmdbg.errors import AttachError, MonitorError, VmGone
from kvmdbg.machine.accel import AGENT, choose_engine
from kvmdbg.machine.claim import Claim
from kvmdbg.machine.engines import (
    Opened,
    OpenEngine,
    agent_engine,
    stub_engine,
    with_fallback,
)
from kvmdbg.machine.exitwatch import ExitWatch
from kvmdbg.machine.find import MonitorSocket, RunningVm, running_vm
from kvmdbg.machine.machine import Machine, open_machine
from kvmdbg.machine.processes import command_line
from kvmdbg.machine.runcontrol import QmpMonitor, QmpRunControl
from kvmdbg.machine.runtime import RuntimeDir, VmInfo
from kvmdbg.qmp import QmpConnection

log = logging.getLogger(__name__)

GREETING_TIMEOUT = 2.0
"""Seconds that a free monitor may take to greet."""

# How query-chardev writes a socket: disconnected:unix:PATH,server=on (commas not doubled).
_DISCONNECTED = "disconnected:"
_SERVER = ",server=on"


async def attach_vm(runtime: RuntimeDir, pid: int, engine: str = "auto") -> Machine:
    """Open the running QEMU with that pid, stopped; :meth:`Machine.close` leaves it as it was.

    Raises AttachError, AcceleratorError, RuntimeDirError, and OwnerError when another process
    owns it.
    """
    vm = await asyncio.to_thread(running_vm, runtime, pid)
    _require_attachable(vm, pid)
    assert vm is not None
    claim = await Claim.take(runtime, vm.process)
    try:
        return await _attach(vm, claim, engine)
    except (VmGone, MonitorError) as error:
        claim.release()
        raise AttachError(f"cannot attach to {vm.name} (pid {pid}): {error}") from error
    except BaseException:
        claim.release()
        raise


async def _attach(vm: RunningVm, claim: Claim, engine: str) -> Machine:
    stub = _LentStub(claim.folder.stub, vm.gdb)
    connection, qmp = await _connect(vm)
    process: ExitWatch | None = None
    try:
        process = ExitWatch(vm.pid)
        monitor = QmpMonitor(connection)
        info = await _describe(vm, monitor, engine)
        open_engine: OpenEngine = stub.open_engine
        if info.engine == AGENT:
            open_engine = agent_engine(partial(_bring_agent, vm.pid), qmp)
            if engine == "auto":
                open_engine = with_fallback(open_engine, stub.open_engine)
        return await open_machine(info, claim, open_engine, process, connection, undo=stub.undo)
    except BaseException:
        await connection.close()
        if process is not None:
            process.close()
        raise


def _require_attachable(vm: RunningVm | None, pid: int) -> None:
    if vm is None:
        argv = command_line(pid)
        if not argv:
            raise AttachError(f"cannot attach: there is no process {pid}")
        raise AttachError(f"cannot attach: process {pid} is no QEMU but {Path(argv[0]).name}")
    who = f"{vm.name} (pid {pid})"
    if vm.arch not in ARCHITECTURES:
        raise AttachError(
            f"cannot attach to {who}: it emulates {vm.arch}, and kvmdbg knows "
            f"{', '.join(ARCHITECTURES)} so far"
        )
    if vm.uid != os.getuid():
        raise AttachError(
            f"cannot attach to {who}: its QEMU runs as uid {vm.uid} and kvmdbg as uid "
            f"{os.getuid()}, so they cannot share a private socket: run kvmdbg as that user"
        )
    if not vm.monitors:
        raise AttachError(
            f"cannot attach to {who}: it has no QMP monitor on a unix socket: start it with "
            "-qmp unix:PATH,server=on,wait=off"
        )


async def _connect(vm: RunningVm) -> tuple[QmpConnection, str]:
    """A connection to the first monitor that is free, and its path. Raises AttachError."""
    complaints = []
    for monitor in vm.monitors:
        if monitor.busy:
            complaints.append(f"{_shown(monitor)} is in use by {_client(monitor)}")
            continue
        try:
            connection = await QmpConnection.connect(monitor.path, timeout=GREETING_TIMEOUT)
        except MonitorError as error:
            complaints.append(str(error))
        else:
            return connection, monitor.path
    raise AttachError(
        f"cannot attach to {vm.name} (pid {vm.pid}): no monitor of it is free "
        f"({'; '.join(complaints)}): end that client, or give the VM one more -qmp"
    )


def _shown(monitor: MonitorSocket) -> str:
    return monitor.path.replace("\0", "@")


def _client(monitor: MonitorSocket) -> str:
    if monitor.client is None:
        return "another client"
    argv = command_line(monitor.client)
    return f"pid {monitor.client}" + (f" ({Path(argv[0]).name})" if argv else "")


async def _describe(vm: RunningVm, monitor: QmpMonitor, engine: str) -> VmInfo:
    """What QEMU itself says of the VM."""
    arch = str((await monitor.qmp("query-target"))["arch"])
    if arch not in ARCHITECTURES:
        raise AttachError(f"cannot attach to {vm.name} (pid {vm.pid}): it emulates {arch}")
    accel = "kvm" if (await monitor.qmp("query-kvm"))["enabled"] else "tcg"
    version = (await monitor.qmp("query-version"))["qemu"]
    return VmInfo(
        name=vm.name,
        process=vm.process,
        arch=arch,
        accel=accel,
        accel_reason="as it was started",
        engine=choose_engine(engine, accel).name,
        cpus=len(await monitor.qmp("query-cpus-fast")),
        booted=False,
        on_kill="detach",
        qemu_version=f"{version['major']}.{version['minor']}.{version['micro']}",
        argv=tuple(command_line(vm.pid)),
    )


async def _bring_agent(pid: int, monitor: QmpMonitor) -> AgentClient:
    """Load the agent into QEMU. Raises AttachError, AgentError, VmGone."""
    threads = vcpu_threads(await monitor.qmp("query-cpus-fast"))
    return await attach(pid, threads, await hmp.memory_slots(monitor))


# --- QEMU's own stub -----------------------------------------------------------------------------


class _LentStub:
    """QEMU's stub, on a socket of ours while we need it."""

    def __init__(self, socket: Path, configured: str | None) -> None:
        self._socket = socket
        self._configured = configured
        self._undo: Callable[[], Awaitable[None]] | None = None

    async def open_engine(
        self, info: VmInfo, monitor: QmpMonitor, run_control: QmpRunControl
    ) -> Opened:
        """Start the stub, and the engine on it."""
        self._undo = await _start_stub(monitor, self._socket, self._configured)
        return await stub_engine(self._socket)(info, monitor, run_control)

    async def undo(self) -> None:
        """Put back what was there before, if we changed something."""
        if self._undo is not None:
            await self._undo()


async def _start_stub(
    monitor: QmpMonitor, socket: Path, configured: str | None
) -> Callable[[], Awaitable[None]]:
    """Make QEMU's stub listen on ``socket``; the result puts back what was there before.

    ``configured`` is the device that the command line names.
    """
    current = await _stub_device(monitor)
    if current is not None and not current.startswith(_DISCONNECTED):
        raise AttachError(
            f"a debugger is connected to QEMU's own stub already ({current}): end it first"
        )
    before = _device_before(current, socket, configured)
    if current is not None:
        await _gdbserver(monitor, "none")  # QEMU 7.2 cannot replace a device in one step
    socket.unlink(missing_ok=True)

    async def undo() -> None:
        try:
            await _gdbserver(monitor, "none")
            if before is not None:
                await _gdbserver(monitor, before)
        except (MonitorError, AttachError) as error:
            log.warning("QEMU's own stub could not be put back: %s", error)
        socket.unlink(missing_ok=True)

    try:
        await _gdbserver(monitor, f"unix:{str(socket).replace(',', ',,')},server=on,wait=off")
        if not socket.exists():
            _raise_unreachable(socket)
    except BaseException:
        await undo()
        raise
    return undo


def _raise_unreachable(socket: Path) -> NoReturn:
    raise AttachError(
        f"QEMU started its stub, but {socket} is not there: QEMU sees other files than kvmdbg "
        "(a container or chroot): run kvmdbg where QEMU runs"
    )


def _device_before(current: str | None, socket: Path, configured: str | None) -> str | None:
    """The stub's device to put back, None for none; the command line's own words where it has any.

    A device of our own was left by a kvmdbg that was killed.
    """
    if current is None:
        return None
    kind, _, address = current.removeprefix(_DISCONNECTED).partition(":")
    address = address.removesuffix(_SERVER)
    if configured is not None or address == str(socket):
        return configured
    return f"{kind}:{address.replace(',', ',,')}{_SERVER},wait=off"


async def _stub_device(monitor: QmpMonitor) -> str | None:
    """Where the stub listens, as ``query-chardev`` says it; None where it does not."""
    for chardev in await monitor.qmp("query-chardev"):
        if chardev["label"] == "gdb":
            return str(chardev["filename"])
    return None


async def _gdbserver(monitor: QmpMonitor, device: str) -> None:
    """HMP ``gdbserver``; QMP has no such command. Raises AttachError with QEMU's words."""
    quoted = device.replace("\\", "\\\\").replace('"', '\\"')
    said = await monitor.hmp(f'gdbserver "{quoted}"')
    if not said.startswith(("Waiting for gdb connection", "Disabled gdbserver")):
        words = said.strip().splitlines()
        raise AttachError(
            f"QEMU could not start its stub on {device}: {words[0] if words else 'it said nothing'}"
        )
