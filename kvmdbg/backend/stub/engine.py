"""Opening and closing the stub engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kvmdbg.addr import VcpuIndex
from kvmdbg.arch import Architecture
from kvmdbg.backend.stub.breakpoints import StubBreakpoints
from kvmdbg.backend.stub.connection import StubConnection
from kvmdbg.backend.stub.execution import StubExecution
from kvmdbg.backend.stub.memory import PageWalk, StubMemory, StubPhysicalMemory
from kvmdbg.backend.stub.packets import PacketMemory
from kvmdbg.backend.stub.ram import DirectRam
from kvmdbg.backend.stub.registers import StubRegisters, fetch_layout
from kvmdbg.backend.stub.replay import Replay
from kvmdbg.backend.stub.resumption import Resumption
from kvmdbg.backend.stub.threads import Threads
from kvmdbg.errors import AttachError, KvmdbgError, VmGone
from kvmdbg.rsp.client import requests
from kvmdbg.target.capabilities import MonitorQuery, RunControl

_FEATURES = ("multiprocess+", "xmlRegisters=i386")
_PACKET_SIZE = re.compile(rb"(?:^|;)PacketSize=([0-9a-f]+)")
_STEP_BIT = re.compile(rb"=([0-9a-f]+)")
_SMALLEST_PACKET = 0x400


class StubEngine:
    """Implements :class:`kvmdbg.target.capabilities.Engine`; made by :meth:`open`."""

    name = "stub"

    def __init__(
        self,
        arch: Architecture,
        connection: StubConnection,
        threads: Threads,
        registers: StubRegisters,
        ram: DirectRam,
        packets: PacketMemory,
        resumption: Resumption,
        *,
        recorded: bool,
        replay: Replay | None,
    ) -> None:
        self._connection = connection
        self._threads = threads
        self._ram = ram
        self._resumption = resumption
        walk = PageWalk(arch, ram)
        self.arch = arch
        self.registers = registers
        self.memory = StubMemory(arch, threads, registers, ram, walk, packets)
        self.physical = StubPhysicalMemory(ram, walk, packets)
        self.breakpoints = StubBreakpoints(connection)

        def forget_guest() -> None:
            registers.forget()
            walk.forget()

        self.execution = StubExecution(
            arch,
            threads,
            registers,
            self.breakpoints,
            resumption,
            forget_guest,
            recorded=recorded,
            replay=replay,
        )

    @property
    def vcpus(self) -> Sequence[VcpuIndex]:
        """See the capability."""
        return self._threads.vcpus

    @property
    def slow_memory(self) -> str | None:
        """Why memory is read through the stub, 50 times slower, in half a sentence; None as long
        as it is read directly."""
        return self._ram.refused

    @classmethod
    async def open(
        cls,
        socket_path: Path,
        *,
        arch: Architecture,
        monitor: MonitorQuery,
        run_control: RunControl,
        pid: int | None,
        recorded: bool = False,
        replay_end: int | None = None,
    ) -> StubEngine:
        """Connect to QEMU's stub, which stops the VM and forgets all breakpoints.

        ``pid`` is QEMU's process, for its memory. ``recorded``: the run is recorded, or, with
        the number of its last instruction, replayed. Raises AttachError.
        """
        connection = await StubConnection.open(socket_path)
        try:
            replay = None
            if replay_end is not None:
                replay = Replay(monitor, run_control, replay_end)
                await replay.begin()
            return await cls._open(
                connection, arch, monitor, run_control, pid, recorded=recorded, replay=replay
            )
        except KvmdbgError as error:
            connection.close()
            raise AttachError(f"QEMU's gdbstub at {socket_path} cannot be used: {error}") from error
        except BaseException:
            connection.close()
            raise

    @classmethod
    async def _open(
        cls,
        connection: StubConnection,
        arch: Architecture,
        monitor: MonitorQuery,
        run_control: RunControl,
        pid: int | None,
        *,
        recorded: bool,
        replay: Replay | None,
    ) -> StubEngine:
        supported = await connection.request(requests.supported(_FEATURES))
        match = _PACKET_SIZE.search(supported)
        packet_size = max(int(match[1], 16) if match else 0, _SMALLEST_PACKET)
        await connection.request(requests.STOP_REASON)
        threads = await Threads.find(connection)
        layout = await fetch_layout(connection)
        registers = StubRegisters(connection, arch, threads, monitor, layout)
        bits = await connection.request(requests.QUERY_STEP_BITS)
        resumption = Resumption(
            connection, threads, run_control, sum(int(b, 16) for b in _STEP_BIT.findall(bits))
        )
        await resumption.set_step_mode(resumption.masked)
        ram = await DirectRam.find(monitor, pid)
        packets = PacketMemory(connection, packet_size, arch.page_size)
        return cls(
            arch,
            connection,
            threads,
            registers,
            ram,
            packets,
            resumption,
            recorded=recorded,
            replay=replay,
        )

    async def close(self) -> None:
        """Take out every breakpoint and hang up: the VM stays stopped, and runs on unharmed when
        somebody resumes it. (Detaching properly would make QEMU resume it.)"""
        try:
            await self.breakpoints.clear()
            await self._resumption.disarm()
        except VmGone:
            pass
        finally:
            self._connection.close()

    def abandon(self) -> None:
        """Hang up at once; breakpoints stay until the next client of the stub comes."""
        self._connection.close()
