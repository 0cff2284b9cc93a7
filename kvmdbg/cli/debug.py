"""The commands that work on one VM: debug it, its console, its end."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from kvmdbg.cli.console import run_console
from kvmdbg.cli.gdb import connect_hint, run_gdb
from kvmdbg.cli.show import Progress, say
from kvmdbg.cli.stdio import bridge
from kvmdbg.errors import KvmdbgError, NotRunning, Unsupported
from kvmdbg.owner.client import OwnerClient
from kvmdbg.owner.open import OpenOptions, open_owner, open_running
from kvmdbg.owner.protocol import Keep, Listen, Quit, Role, VmStatus
from kvmdbg.server.address import parse_address, require_place
from kvmdbg.target.events import Gone, Notice, VmEvent

ENDING = 5.0
"""Seconds that QEMU may take to end, and its recording to become whole."""


def _options(arguments: argparse.Namespace) -> OpenOptions:
    return OpenOptions(
        accel=arguments.accel,
        engine=arguments.engine,
        name=arguments.name,
        overrides=arguments.overrides,
        run=arguments.run,
        keep=arguments.keep,
        record=arguments.record,
        replay=arguments.replay,
    )


async def _open(arguments: argparse.Namespace, *, kind: str, role: Role) -> OwnerClient:
    for address in arguments.listen:
        require_place(parse_address(address))  # refused before anything is booted
    with Progress() as progress:
        client = await open_owner(arguments.vm, _options(arguments), progress, kind=kind, role=role)
    try:
        if arguments.keep:
            await client.call(Keep())
        for address in arguments.listen:
            say(f"serving gdb on {await client.call(Listen(address))}")
    except BaseException:
        await client.bye()
        raise
    return client


async def debug(arguments: argparse.Namespace) -> int:
    """``kvmdbg --vm NAME``, with ``--gdb`` or ``--stdio``."""
    if arguments.stdio:
        return await _serve_stdio(arguments)
    client = await _open(arguments, kind="cli", role=Role.USER)
    ended: asyncio.Future[Gone] = asyncio.get_running_loop().create_future()
    # gdb tells its user itself, and the terminal is gdb's.
    client.subscribe(partial(_note_end if arguments.gdb else _tell, ended))
    try:
        status = await client.status()
        _introduce(status, client.started)
        if arguments.gdb:
            result = await _run_gdb(client, status, arguments.gdb_args)
            if arguments.record:
                await _wait_for_recording(status, arguments.record, ended)
        else:
            result = await _watch(status, ended)
    finally:
        await client.bye()
    return result


async def _run_gdb(client: OwnerClient, status: VmStatus, arguments: list[str]) -> int:
    try:
        return await run_gdb(status, arguments)
    except asyncio.CancelledError:
        # We leave after our gdb, and in good order: it did not crash, so the VM shall not wait for
        # the next one.
        with suppress(KvmdbgError, TimeoutError):
            await asyncio.wait_for(_until_the_dead_have_left(client), ENDING)
        raise


async def _until_the_dead_have_left(client: OwnerClient) -> None:
    while pids := [other.pid for other in (await client.status()).clients if other.pid]:
        if all(Path(f"/proc/{pid}").exists() for pid in pids):
            return
        await asyncio.sleep(0.05)


def _introduce(status: VmStatus, started: bool) -> None:
    for text in status.notices if started else ():
        say(text)
    state = "stopped" if status.stop else "running"
    if status.run_state == "prelaunch":
        state = "frozen at its first instruction"
    vcpus = "1 vCPU" if status.vcpus == 1 else f"{status.vcpus} vCPUs"
    say(f"VM {status.name} is {state} (QEMU pid {status.pid}, {status.accel}, {vcpus})")


def _tell(ended: asyncio.Future[Gone], event: VmEvent) -> None:
    if isinstance(event, Notice):
        say(event.text)
    _note_end(ended, event)


def _note_end(ended: asyncio.Future[Gone], event: VmEvent) -> None:
    if isinstance(event, Gone) and not ended.done():
        ended.set_result(event)


async def _wait_for_recording(status: VmStatus, file: Path, ended: asyncio.Future[Gone]) -> None:
    """A script wants the recording as soon as we have ended, if gdb has ended the VM."""
    await asyncio.wait({ended}, timeout=ENDING)
    if not ended.done():
        say(f"the VM {status.name} goes on: {file} will be there when it has ended")


async def _watch(status: VmStatus, ended: asyncio.Future[Gone]) -> int:
    """Stay until Ctrl-C or the VM's end, telling what happens."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    say(f"connect with: {await connect_hint(status)}")
    say("Ctrl-C leaves; the VM " + _after_leaving(status))
    waiting: asyncio.Future[bool] = asyncio.create_task(interrupted.wait())
    either: set[asyncio.Future[Any]] = {ended, waiting}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if ended.done():
        gone = ended.result()
        say(gone.sentence(status.name))
        return 1 if gone.signal or gone.lives else 0
    return 0


def _after_leaving(status: VmStatus) -> str:
    if not status.booted:
        return "goes on as it was found"
    return "stays" if status.keep else "ends 5 s after its last client"


async def _serve_stdio(arguments: argparse.Namespace) -> int:
    clients: list[OwnerClient] = []

    async def gdb_socket() -> Path:
        client = await _open(arguments, kind="stdio", role=Role.BRIDGE)
        clients.append(client)
        status = await client.status()
        client.subscribe(partial(_tell_end, status.name))
        return Path(status.gdb_socket)

    try:
        await bridge(gdb_socket, sys.stdin.buffer, sys.stdout.buffer)
    finally:
        for client in clients:
            await client.bye()
    return 0


def _tell_end(name: str, event: VmEvent) -> None:
    if isinstance(event, Gone):
        say(event.sentence(name))


async def console(arguments: argparse.Namespace) -> int:
    """``kvmdbg --vm NAME console``."""
    client = await open_running(arguments.vm, kind="console")
    try:
        status = await client.status()
        if status.console_socket is None:
            raise NotRunning(
                f"kvmdbg did not boot {status.name} and does not have its serial line: "
                "look for it where the VM was started"
            )
        if status.recorded:
            raise Unsupported(
                f"the run of {status.name} is recorded, and QEMU cannot replay one in which it had "
                f"to wait for a console: what the guest prints is in {status.console_log}"
            )
        log = Path(status.console_log) if status.console_log else None
        await run_console(Path(status.console_socket), log)
    finally:
        await client.bye()
    return 0


async def quit_vm(arguments: argparse.Namespace) -> int:
    """``kvmdbg --vm NAME quit``."""
    client = await open_running(arguments.vm, kind="quit")
    try:
        status = await client.status()
        await client.call(Quit())
    finally:
        await client.close()
    print(f"{status.name}: {'ended' if status.booted else 'left as it was found'}", file=sys.stderr)
    return 0


COMMANDS: dict[str | None, Callable[[argparse.Namespace], Awaitable[int]]] = {
    None: debug,
    "console": console,
    "quit": quit_vm,
}
"""By the command's name; None is debugging itself."""
