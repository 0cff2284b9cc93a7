"""The Python API: a VM to script and to make assertions on.

::

    async with kvmdbg.open("demo") as vm:
        bp = await vm.breakpoint("do_sys_openat2")
        await bp.wait_hit(timeout=10)
        regs = await vm.registers()
        print(hex(regs["rip"]), await vm.read(regs["rsi"], 16))

Addresses are GVA (integers, or symbol names of the VM's ``vmlinux``), lengths bytes, timeouts
seconds; where no vCPU is named, the one that the VM stopped for is meant. Every failure is a
:exc:`kvmdbg.errors.KvmdbgError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.arch import ARCHITECTURES, Architecture
from kvmdbg.errors import (
    MemoryFault,
    RegisterError,
    SymbolError,
    UnexpectedStop,
    Unsupported,
    UsageError,
    WaitTimeout,
)
from kvmdbg.linux.symbols import ElfSymbols
from kvmdbg.owner import protocol as p
from kvmdbg.owner.client import OwnerClient, gone_error
from kvmdbg.owner.open import OpenOptions, open_owner
from kvmdbg.progress import Progress, SilentProgress
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.events import Gone, Notice, Resumed, Stopped, VmEvent
from kvmdbg.target.stops import BreakpointHit, ResumePlan, Stop, WatchpointHit

_BULK = 4 * 1024 * 1024
"""Bytes per request of a large read: well below the control protocol's line limit."""


@asynccontextmanager
async def open(
    name: str,
    *,
    accel: str = "auto",
    engine: str = "auto",
    instance: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    run: bool = False,
    keep: bool = False,
    record: Path | None = None,
    replay: Path | None = None,
    progress: Progress | None = None,
) -> AsyncIterator[Vm]:
    """Debug the VM ``name``: attach if it runs, else boot its definition.

    A booted VM is frozen at its first instruction, unless ``run``. ``instance`` names a further
    run of a definition; ``overrides`` are keys of the definition with other values. Leaving the
    block removes our breakpoints, lets the VM run, and ends a booted VM that nobody else uses
    and is not to be ``keep``-t. ``record`` is the file to record the run to, ``replay`` the one to
    replay.
    """
    options = OpenOptions(
        accel=accel,
        engine=engine,
        name=instance,
        overrides=dict(overrides or {}),
        run=run,
        keep=keep,
        record=record,
        replay=replay,
    )
    client = await open_owner(name, options, progress or SilentProgress(), kind="api")
    try:
        await client.call(p.Follow())
        yield Vm(client, await client.status())
    finally:
        await client.bye()  # whatever was raised in the block: the client has not crashed


class Vm:
    """One live VM; made by :func:`open`."""

    def __init__(self, client: OwnerClient, status: p.VmStatus) -> None:
        self.time_scale = 1.0
        """Every timeout is multiplied by this: emulated VMs need more patience."""

        self.status = status
        self.notices: list[str] = []
        """What kvmdbg had to say about the VM since it was opened."""

        self._client = client
        self._stop = status.stop
        self._gone: Gone | None = None
        self._unclaimed: Stop | None = None
        self._changed = asyncio.Event()
        client.subscribe(self._on_event)

    # --- what is known ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.status.name

    @property
    def arch(self) -> Architecture:
        """Its architecture."""
        return ARCHITECTURES[self.status.arch]

    @property
    def vcpus(self) -> int:
        """How many vCPUs it has."""
        return self.status.vcpus

    @property
    def stopped(self) -> Stop | None:
        """Why the VM is stopped; None while it runs."""
        return self._stop

    @property
    def gone(self) -> Gone | None:
        """How the VM ended; None while it exists."""
        return self._gone

    @cached_property
    def symbols(self) -> Mapping[str, Gva]:
        """The kernel's symbols, from the VM's ``vmlinux``. Raises SymbolError without one."""
        if self.status.vmlinux is None:
            raise SymbolError(
                f"the VM {self.name} has no symbol file: name one as vmlinux in its definition"
            )
        return ElfSymbols(Path(self.status.vmlinux))

    def address(self, where: int | str) -> Gva:
        """``where``, or the address of the symbol of that name."""
        return self.symbols[where] if isinstance(where, str) else Gva(where)

    # --- running and stopping --------------------------------------------------------------------

    async def pause(self) -> Stop:
        """Stop all vCPUs; no error when they are stopped."""
        stop: Stop = await self._client.call(p.Pause())
        self._stop, self._unclaimed = stop, None
        return stop

    async def resume(self) -> None:
        """Let the VM run on. Raises VmRunning, NotResumable, Busy."""
        await self._resume(ResumePlan())

    async def step(self, vcpu: int | None = None, *, timeout: float = 10.0) -> Stop:
        """Execute one instruction on ``vcpu``, the others held."""
        await self._resume(ResumePlan.step(self._vcpu(vcpu)))
        return await self.wait_stop(timeout)

    async def reset(self) -> None:
        """Reset the machine."""
        await self._client.call(p.Reset())

    async def quit(self) -> None:
        """End a VM that kvmdbg booted; leave one that was attached to."""
        await self._client.call(p.Quit())

    async def wait_stop(self, timeout: float = 10.0) -> Stop:
        """The stop that ends the current run; raises WaitTimeout when there is none in time."""
        await self._wait_until_stopped(timeout)
        stop, self._unclaimed = self._stop, None
        assert stop is not None
        return stop

    async def run_to(self, where: int | str, timeout: float = 10.0) -> Stop:
        """Let the VM run until a vCPU is about to execute ``where``.

        Raises UnexpectedStop when it stops for another reason, WaitTimeout, VmGone.
        """
        async with await self.breakpoint(where, hardware=True) as bp:
            return await bp.wait_hit(timeout)

    async def wait_console(self, text: str, timeout: float = 30.0) -> str:
        """Wait until the guest has printed ``text`` on its serial line; return all it printed."""
        if self.status.console_log is None:
            raise Unsupported(f"the console of {self.name} is not logged: kvmdbg did not boot it")
        log = Path(self.status.console_log)
        deadline = asyncio.get_running_loop().time() + timeout * self.time_scale
        while True:
            printed = log.read_text(errors="replace") if log.exists() else ""
            if text in printed:
                return printed
            self._require_here()
            if asyncio.get_running_loop().time() > deadline:
                state = f"it is stopped ({self._stop.reason})" if self._stop else "it runs"
                raise WaitTimeout(
                    f"the guest did not print {text!r} within {timeout * self.time_scale:.0f} s: "
                    f"{state}; its last words: {printed[-200:]!r}"
                )
            await asyncio.sleep(0.05)

    async def wait_gone(self, timeout: float = 10.0) -> Gone:
        """Wait until the VM has ended, and say how.

        Raises WaitTimeout when it does not, OwnerError when only the owner does.
        """
        try:
            async with asyncio.timeout(timeout * self.time_scale):
                while self._gone is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise WaitTimeout(
                f"the VM {self.name} did not end within {timeout * self.time_scale:.1f} s"
            ) from error
        if self._gone.lives:
            raise gone_error(self._gone, self.name)
        return self._gone

    async def wait_notice(self, text: str, timeout: float = 10.0) -> str:
        """Wait until kvmdbg has said something with ``text`` in it; the whole sentence."""
        seconds = timeout * self.time_scale
        try:
            async with asyncio.timeout(seconds):
                while True:
                    for notice in self.notices:
                        if text in notice:
                            return notice
                    self._require_here()
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise WaitTimeout(
                f"kvmdbg did not say {text!r} of {self.name} within {seconds:.1f} s"
            ) from error

    def _require_here(self) -> None:
        if self._gone is not None:
            raise gone_error(self._gone, self.name)

    async def _resume(self, plan: ResumePlan) -> None:
        # Before the call: the VM can have stopped again when its answer arrives.
        stop, self._stop, self._unclaimed = self._stop, None, None
        try:
            await self._client.call(p.Resume(plan))
        except BaseException:
            self._stop = stop
            raise

    async def _wait_until_stopped(self, timeout: float) -> None:
        seconds = timeout * self.time_scale
        try:
            async with asyncio.timeout(seconds):
                while self._stop is None:
                    self._require_here()
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise WaitTimeout(f"the VM {self.name} did not stop within {seconds:.1f} s") from error

    def _on_event(self, event: VmEvent) -> None:
        match event:
            case Stopped(stop):
                self._stop = self._unclaimed = stop
            case Resumed():
                self._stop = self._unclaimed = None
            case Gone():
                self._gone = event
                self._stop = None
            case Notice(text):
                self.notices.append(text)
        self._changed.set()

    # --- registers and memory --------------------------------------------------------------------

    def _vcpu(self, vcpu: int | None) -> VcpuIndex:
        """``vcpu``; None is the one that the VM stopped for."""
        if vcpu is None:
            return self._stop.vcpu if self._stop is not None else VcpuIndex(0)
        return VcpuIndex(vcpu)

    async def registers(self, vcpu: int | None = None) -> dict[str, int]:
        """The registers that the engine has at hand, by name, as unsigned integers."""
        block: list[bytes | None] = await self._client.call(p.ReadBlock(self._vcpu(vcpu)))
        return {
            register.name: int.from_bytes(value, "little")
            for register, value in zip(self.arch.block, block, strict=True)
            if value is not None
        }

    async def register(self, name: str, vcpu: int | None = None) -> int:
        """One register; aliases such as ``pc`` work. Raises RegisterError."""
        number = self._register_number(name)
        request = p.ReadRegister(self._vcpu(vcpu), number)
        value: bytes | None = await self._client.call(request)
        if value is None:
            raise RegisterError(f"the register {name} is not available on this engine")
        return int.from_bytes(value, "little")

    async def set_registers(self, values: Mapping[str, int], vcpu: int | None = None) -> None:
        """Write registers by name. Raises RegisterError."""
        encoded = {}
        for name, value in values.items():
            number = self._register_number(name)
            encoded[number] = value.to_bytes(self.arch.registers[number].size, "little")
        await self._client.call(p.WriteRegisters(self._vcpu(vcpu), encoded))

    def _register_number(self, name: str) -> int:
        try:
            return self.arch.numbers[name]
        except KeyError:
            raise RegisterError(f"{self.arch.name} has no register {name!r}") from None

    async def read(self, where: int | str, length: int, vcpu: int | None = None) -> bytes:
        """Exactly ``length`` bytes of memory. Raises MemoryFault where one is unreadable."""
        if length < 0:
            raise UsageError(f"memory has no {length} bytes to read")
        address = self.address(where)
        parts = []
        for offset in range(0, length, _BULK):
            size = min(_BULK, length - offset)
            request = p.ReadMemory(self._vcpu(vcpu), Gva(address + offset), size)
            part: bytes = await self._client.call(request)
            if len(part) < size:
                raise MemoryFault(f"no memory can be read at {address + offset + len(part):#x}")
            parts.append(part)
        return b"".join(parts)

    async def write(self, where: int | str, data: bytes, vcpu: int | None = None) -> None:
        """Write memory; code is executed as written. Raises MemoryFault, TypeError."""
        request = p.WriteMemory(self._vcpu(vcpu), self.address(where), bytes(memoryview(data)))
        await self._client.call(request)

    async def read_int(self, where: int | str, size: int = 8, vcpu: int | None = None) -> int:
        """An unsigned integer of ``size`` bytes."""
        return int.from_bytes(await self.read(where, size, vcpu), "little")

    async def write_int(
        self, where: int | str, value: int, size: int = 8, vcpu: int | None = None
    ) -> None:
        """Write an unsigned integer of ``size`` bytes."""
        await self.write(where, value.to_bytes(size, "little"), vcpu)

    async def read_physical(self, address: int, length: int) -> bytes:
        """Guest physical memory, cut where the first unreadable byte is."""
        data: bytes = await self._client.call(p.ReadPhysical(Gpa(address), length))
        return data

    async def write_physical(self, address: int, data: bytes) -> None:
        """Write guest physical memory. Raises MemoryFault, TypeError."""
        await self._client.call(p.WritePhysical(Gpa(address), bytes(memoryview(data))))

    async def monitor(self, command: str) -> str:
        """Run a command of QEMU's human monitor and return what it printed."""
        printed: str = await self._client.call(p.Monitor(command))
        return printed

    # --- breakpoints -----------------------------------------------------------------------------

    async def breakpoint(self, where: int | str, *, hardware: bool = False) -> Breakpoint:
        """Insert a breakpoint, also while the VM runs. Raises BreakpointError."""
        kind = BreakpointKind.HARDWARE if hardware else BreakpointKind.SOFTWARE
        length = self.arch.breakpoint_length
        return await self._insert(BreakpointSpec(kind, self.address(where), length))

    async def watchpoint(
        self, where: int | str, length: int = 8, kind: BreakpointKind = BreakpointKind.WRITE
    ) -> Breakpoint:
        """Watch ``length`` bytes of data. Raises BreakpointError."""
        return await self._insert(BreakpointSpec(kind, self.address(where), length))

    async def _insert(self, spec: BreakpointSpec) -> Breakpoint:
        before = self._stop
        await self._client.call(p.InsertBreakpoint(spec))
        return Breakpoint(self, spec, before)

    async def _remove(self, spec: BreakpointSpec) -> None:
        await self._client.call(p.RemoveBreakpoint(spec))


class Breakpoint:
    """A breakpoint or watchpoint; made by :meth:`Vm.breakpoint` and :meth:`Vm.watchpoint`.

    As a context manager it is taken out at the block's end.
    """

    def __init__(self, vm: Vm, spec: BreakpointSpec, before: Stop | None) -> None:
        self.spec = spec
        self._vm = vm
        self._before = before
        """The stop in which it was inserted, which is no hit of it."""

    async def __aenter__(self) -> Breakpoint:
        return self

    async def __aexit__(self, *raised: object) -> None:
        if self._vm.gone is None:
            await self.remove()

    def is_hit(self, stop: Stop) -> bool:
        """True when ``stop`` is a hit of this breakpoint."""
        match stop.reason:
            case BreakpointHit(address=address):
                return not self.spec.kind.is_watchpoint and address == self.spec.address
            case WatchpointHit(kind, address):
                return kind is self.spec.kind and address == self.spec.address
            case _:
                return False

    async def wait_hit(self, timeout: float = 10.0) -> Stop:
        """The next hit: a VM that is stopped runs on until then, and is stopped afterwards.

        A hit that happened since the VM last ran and nobody has waited for counts. Raises
        UnexpectedStop when the VM stops for another reason, WaitTimeout, VmGone.
        """
        vm = self._vm
        if vm.stopped is not None and (vm._unclaimed is None or vm._unclaimed is self._before):
            await vm.resume()
        stop = await vm.wait_stop(timeout)
        if not self.is_hit(stop):
            raise UnexpectedStop(
                f"while waiting for {self.spec}, the VM stopped with {stop.reason}"
            )
        return stop

    async def remove(self) -> None:
        """Take the breakpoint out."""
        await self._vm._remove(self.spec)
