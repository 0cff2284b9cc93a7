"""The owner of one VM: opens it, serves RSP and control, and ends it as its lifetime says."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from kvmdbg.addr import Gva, VcpuIndex
from kvmdbg.errors import KvmdbgError, OwnerError, SymbolError, VmGone
from kvmdbg.linux.patching import find_patchers
from kvmdbg.linux.symbols import ElfSymbols
from kvmdbg.machine.attach import attach_vm
from kvmdbg.machine.define import load_definition, with_overrides
from kvmdbg.machine.launch import LaunchOptions, launch_vm, take_over
from kvmdbg.machine.machine import Machine
from kvmdbg.machine.runtime import RuntimeDir, VmFolder
from kvmdbg.owner import start as s
from kvmdbg.owner.control import ControlServer
from kvmdbg.owner.lifetime import End, Lifetime
from kvmdbg.owner.protocol import ClientInfo, VmStatus
from kvmdbg.server import RspServer
from kvmdbg.target.breakpoints import ClientId
from kvmdbg.target.capabilities import PatchesCode
from kvmdbg.target.events import Gone, Notice, VmEvent
from kvmdbg.target.memorymap import MemoryRegion
from kvmdbg.target.vm import Vm

log = logging.getLogger(__name__)

LAST_WORDS = 0.5
"""Seconds that clients have to read how the VM ended."""


async def open_machine(request: s.StartRequest, channel: s.ReportChannel) -> Machine:
    """Launch, attach or take over, as the request says."""
    runtime = RuntimeDir.open()
    match request.what:
        case s.Launch(definition, name, accel, engine, overrides, record, replay):
            loaded = with_overrides(load_definition(Path(definition)), overrides)
            options = LaunchOptions(
                name=name,
                accel=accel,
                engine=engine,
                keep=request.keep,
                record=Path(record) if record else None,
                replay=Path(replay) if replay else None,
            )
            lock = runtime.name_lock(name or loaded.name)
            if not lock.acquire():
                raise OwnerError(
                    f"another kvmdbg is starting a VM named {name or loaded.name}: try again"
                )
            try:
                return await launch_vm(runtime, loaded, options, channel)
            finally:
                lock.release()
        case s.Attach(pid, engine):
            return await attach_vm(runtime, pid, engine)
        case s.TakeOver(folder):
            return await take_over(runtime, VmFolder(Path(folder)))


class Owner:
    """Owns one open machine; implements what the control and RSP servers need of it."""

    def __init__(self, machine: Machine, *, keep: bool) -> None:
        info = machine.info
        self.machine = machine
        self.vm = Vm(
            info.name, machine.engine, machine.run_control, machine.monitor, machine.initial
        )
        self.lifetime = Lifetime(
            booted=info.booted, keep=keep or info.keep, orphan_timeout=info.orphan_timeout
        )
        self._folder = machine.claim.folder
        self._control = ControlServer(self)
        self._rsp = RspServer(self)
        self.vm.subscribe(self._on_event)
        breakpoints = machine.engine.breakpoints
        if isinstance(breakpoints, PatchesCode) and info.vmlinux is not None:
            breakpoints.guard_against(partial(self._patchers, Path(info.vmlinux)))

    async def _patchers(self, vmlinux: Path) -> Sequence[Gva]:
        try:
            symbols = await asyncio.to_thread(lambda: dict(ElfSymbols(vmlinux)))
        except SymbolError as error:
            log.warning("breakpoints are in the way when the kernel patches its code: %s", error)
            return ()
        return await find_patchers(self.vm.engine.memory, VcpuIndex(0), symbols)

    async def open(self, *, run: bool) -> None:
        """Serve; with ``run``, or where the VM ran when we came, it runs on."""
        await self.machine.guard()
        await self._rsp.listen(f"unix:{self._folder.gdb}")
        await self._control.open(self._folder.control)
        if run or self.machine.was_running:
            await self.vm.resume()

    async def serve(self) -> End:
        """Serve until the lifetime is over, then leave nothing behind."""
        end = await self.lifetime.wait_end()
        log.info("the end: %s", end.value)
        if end is End.QUIT:
            try:
                await self.vm.quit()
            except KvmdbgError as error:
                log.warning("ending the VM: %s", error)
        if self.vm.gone is not None:
            await asyncio.sleep(LAST_WORDS)
        await self.close()
        return end

    async def close(self) -> None:
        """Drop every client; leave a VM that still exists unpatched, and running if it ran."""
        await self._rsp.close()
        await self._control.close()
        with suppress(VmGone):
            self.machine.was_running |= await self.vm.retire()
        await self.machine.close()

    @property
    def control_path(self) -> Path:
        """Where the control protocol is spoken."""
        return self._folder.control

    # --- for the servers -------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """True when gdb's leaving shall not end the VM: ``qAttached``."""
        return not self.machine.info.booted

    @property
    def clients(self) -> dict[ClientId, int]:
        """All clients of the VM, of whatever protocol, with their pids, 0 where not known."""
        return {client.id: client.pid for client in self.lifetime.clients}

    @property
    def symbol_file(self) -> Path | None:
        """The VM's symbol file; None where none is known."""
        vmlinux = self.machine.info.vmlinux
        return Path(vmlinux) if vmlinux else None

    async def memory_map(self) -> Sequence[MemoryRegion]:
        """The guest's physical memory, ascending."""
        return await self.machine.memory_map()

    def client_joined(self, client: ClientId, pid: int) -> None:
        """A gdb connected."""
        self.lifetime.joined(ClientInfo(client, pid))
        self.vm.notice(f"{client} connected")

    def client_left(self, client: ClientId, *, orderly: bool) -> None:
        """A gdb left."""
        self.lifetime.left(client, orderly=orderly)
        self.vm.notice(f"{client} {'detached' if orderly else 'went away without detaching'}")

    async def kill(self) -> None:
        """gdb said ``kill``: end the VM, or leave it, as its definition says."""
        if self.machine.info.on_kill == "quit":
            self.vm.notice("gdb killed the VM")
            await self.vm.quit()

    async def listen(self, address: str) -> str:
        """Serve RSP on one more address."""
        return await self._rsp.listen(address)

    async def quit(self) -> None:
        """End the VM, or leave it where it was attached to."""
        if self.machine.info.booted:
            await self.vm.quit()
        else:
            self.lifetime.end(End.LEAVE)

    def terminate(self) -> None:
        """SIGTERM: as if the last client had left in good order."""
        ends = self.machine.info.booted and not self.lifetime.keep
        self.lifetime.end(End.QUIT if ends else End.LEAVE)

    def status(self) -> VmStatus:
        """What is known of the VM."""
        info = self.machine.info
        return VmStatus(
            name=info.name,
            pid=info.pid,
            arch=info.arch,
            accel=info.accel,
            engine=self.vm.engine.name,
            booted=info.booted,
            run_state=self.vm.run_state.value,
            stop=self.vm.stop,
            vcpus=len(self.vm.vcpus),
            keep=self.lifetime.keep,
            gdb_socket=str(self._folder.gdb),
            console_socket=info.console,
            console_log=info.console_log,
            vmlinux=info.vmlinux,
            clients=self.lifetime.clients,
            listening=self._rsp.addresses,
            notices=self.machine.notices,
            recorded=info.recording is not None,
        )

    def _on_event(self, event: VmEvent) -> None:
        # A gdb that steps makes thousands of stops a second: they would fill the log's file system.
        log.log(logging.INFO if isinstance(event, Notice | Gone) else logging.DEBUG, "%s", event)
        if isinstance(event, Gone):
            self.lifetime.end(End.GONE)


async def run_owner(channel: s.ReportChannel) -> None:
    """The life of an owner process. Raises what kept it from starting."""
    request = channel.read_request()
    opening = asyncio.create_task(_open_owner(request, channel))
    abandoned = asyncio.create_task(channel.wait_abandoned())
    await asyncio.wait({opening, abandoned}, return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        log.info("the client that wanted this VM went away")
        opening.cancel()
        await asyncio.wait({opening})
    abandoned.cancel()
    owner = await opening
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, owner.terminate)
    channel.finish(s.Ready(str(owner.control_path)))
    await owner.serve()


async def _open_owner(request: s.StartRequest, channel: s.ReportChannel) -> Owner:
    machine = await open_machine(request, channel)
    folder = machine.claim.folder
    owner: Owner | None = None
    try:
        for stale in (folder.control, folder.gdb):
            stale.unlink(missing_ok=True)
        owner = Owner(machine, keep=request.keep)
        await owner.open(run=request.run)
    except BaseException:
        await (owner.close() if owner else machine.close())
        raise
    log.info("pid %d owns %s", os.getpid(), machine.info.name)
    return owner
