"""VMs behind kvmdbg's back: their owner's process, QEMU's free monitor, the guest's console."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kvmdbg
from kvmdbg import Vm
from kvmdbg.machine.runtime import RuntimeDir, VmInfo
from kvmdbg.owner.protocol import VmStatus
from kvmdbg.qmp import QmpConnection
from tests.support import command

TIMEOUT = 30.0


@asynccontextmanager
async def lasting(name: str, **options: Any) -> AsyncIterator[Vm]:
    """A demo VM named ``name``, whose owner may be killed, or replaced, inside; it ends with the
    block, whoever owns it then."""
    try:
        async with kvmdbg.open("demo", instance=name, **options) as vm:
            vm.time_scale = 4.0
            yield vm
    finally:
        await end(name)


async def end(name: str) -> None:
    """End the VM, if there is one."""
    done = await command.kvmdbg("--vm", name, "quit")
    assert done.status == 0 or "no VM" in done.err, done.err


def info(name: str) -> VmInfo | None:
    """What the runtime folder says of the VM; None when it has ended."""
    return next((info for _, info in RuntimeDir.open().vms() if info.name == name), None)


def alive(pid: int) -> bool:
    """True while the process exists."""
    return Path(f"/proc/{pid}").exists()


async def wait_dead(pid: int, timeout: float = TIMEOUT) -> None:
    """Wait until the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(timeout):
                await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)


def owner_pid(status: VmStatus) -> int:
    """The process that owns the VM: whoever listens on its gdb socket."""
    control = Path(status.gdb_socket).with_name("control.sock")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(control))
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("iII", credentials)[0])


async def kill_owner(status: VmStatus) -> None:
    """kill -9 to the owner."""
    pid = owner_pid(status)
    os.kill(pid, signal.SIGKILL)
    await wait_dead(pid)


async def wait_ended(name: str, timeout: float = TIMEOUT) -> None:
    """Wait until there is no VM of that name."""
    while (facts := info(name)) is not None:
        await wait_dead(facts.pid, timeout)


@asynccontextmanager
async def monitor(status: VmStatus) -> AsyncIterator[QmpConnection]:
    """QEMU's free monitor, as another tool uses it."""
    facts = info(status.name)
    assert facts is not None
    assert facts.monitor is not None
    connection = await QmpConnection.connect(facts.monitor)
    try:
        yield connection
    finally:
        await connection.close()


async def run_state(status: VmStatus) -> str:
    """QEMU's own word."""
    async with monitor(status) as qmp:
        return str((await qmp.execute("query-status"))["status"])


async def type_line(status: VmStatus, line: str) -> None:
    """Type a line into the guest's shell."""
    assert status.console_socket is not None
    _, writer = await asyncio.open_unix_connection(status.console_socket)
    writer.write(line.encode() + b"\n")
    await writer.drain()
    # QEMU drops what it has not passed on to the guest yet when we hang up: the echo says when.
    await wait_printed(status, line)
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def pending_interrupt(status: VmStatus) -> AsyncIterator[None]:
    """Press a key on the serial line of a stopped VM: its interrupt is pending from then on."""
    assert status.console_socket is not None
    _, writer = await asyncio.open_unix_connection(status.console_socket)
    writer.write(b"\r")
    await writer.drain()
    try:
        yield
    finally:
        writer.close()
        await writer.wait_closed()


async def wait_state(status: VmStatus, state: str) -> None:
    """Wait until QEMU says that the VM is in ``state``."""
    deadline = time.monotonic() + TIMEOUT
    while (now := await run_state(status)) != state:
        assert time.monotonic() < deadline, f"the VM is {now}, not {state}"
        await asyncio.sleep(0.05)


async def wait_printed(status: VmStatus, text: str) -> None:
    """As Vm.wait_console(), for a VM that may have no owner."""
    assert status.console_log is not None
    log = Path(status.console_log)
    deadline = time.monotonic() + TIMEOUT
    while text not in log.read_text(errors="replace"):
        assert time.monotonic() < deadline, f"the guest did not print {text!r}"
        await asyncio.sleep(0.05)


def folders(name: str) -> list[Path]:
    """Runtime folders of a VM of that name."""
    return list(RuntimeDir.open().path.glob(f"vms/{name}-*"))
