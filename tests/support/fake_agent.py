"""The agent's end of the protocol, in memory: it answers from plain attributes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kvmdbg.agent.client import AgentClient
from kvmdbg.agent.connection import AgentConnection
from kvmdbg.wire.messages import DOORBELL, MESSAGES, Adoption
from kvmdbg.wire.stream import Frame, FrameDecoder
from kvmdbg.wire.structs import (
    MAGIC,
    NO_REGISTER,
    VERSION,
    Access,
    Action,
    Clock,
    ClockState,
    Configuration,
    Doorbell,
    Features,
    Flags,
    Hello,
    IoctlHead,
    Kind,
    Point,
    PointRequest,
    PointState,
    Range,
    Result,
    Slot,
    Statistics,
    Stop,
    StopKind,
    Translation,
    Type,
    Vcpu,
    Welcome,
)

PAGE = 4096


class FakeAgent:
    """A VM of ``vcpus`` vCPUs with ``memory`` at GPA 0, mapped to itself.

    A method named as a request answers it; an OSError's errno is the status. Whatever came is in
    ``requests``. ``ioctls`` answers KVM's by number: payload in, result and payload out.
    """

    def __init__(self, vcpus: int = 2, memory: int = 1 << 16, pid: int | None = None) -> None:
        self.memory = bytearray(memory)
        self.pid = os.getpid() if pid is None else pid
        self.version = VERSION
        self.cpus = [Vcpu(index, 10 + index, 100 + index) for index in range(vcpus)]
        self.stopped: dict[int, Stop] = {}
        self.sequence = 0
        self.held = False
        self.clock_state = ClockState.UNSEEN
        self.table: dict[int, Point] = {}
        self.debug_registers = 4
        self.user = range(0)
        self.logging = False
        self.flags = Flags(0)
        self.adopted: Adoption | None = None
        self.requests: list[tuple[Type, Any]] = []
        self.silent: set[Type] = set()
        self.ioctls: dict[int, Callable[[int, int, bytes], tuple[int, bytes]]] = {}
        self._rung = False
        self._writer: asyncio.StreamWriter | None = None
        self._served: asyncio.Task[None] | None = None

    # --- being talked to -------------------------------------------------------------------------

    async def client(self) -> AgentClient:
        """A client that has just connected to this agent."""
        theirs, ours = socket.socketpair()
        self.serve(*await asyncio.open_connection(sock=ours))
        return AgentClient(await AgentConnection.over(theirs, self.pid))

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer on this connection from now on."""
        self._writer = writer
        self._served = asyncio.create_task(self._serve(reader, writer))

    async def hang_up(self) -> None:
        """As when QEMU ends."""
        assert self._writer is not None
        self._writer.close()
        await self.wait_end()

    async def wait_end(self) -> None:
        """Wait until either side has hung up."""
        assert self._served is not None
        await self._served

    def stop(self, vcpu: int, kind: StopKind, **facts: int) -> None:
        """Latch a stop, hold the world, and ring unless it has rung already."""
        self.sequence += 1
        self.stopped[vcpu] = Stop(vcpu, kind, sequence=self.sequence, **facts)
        self.held = True
        if not self._rung:
            self._rung = True
            self.send(Frame(Type.DOORBELL, 0, DOORBELL.answer.encode(Doorbell(self.sequence))))

    def send(self, frame: Frame) -> None:
        assert self._writer is not None
        self._writer.write(frame.encode())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = FrameDecoder()
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for frame in decoder.feed(data):
                    self._answer(frame)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def _answer(self, frame: Frame) -> None:
        message = MESSAGES[Type(frame.type)]
        request = message.decode_request(frame.payload)
        self.requests.append((message.type, request))
        if message.type in self.silent:
            return
        try:
            answer = getattr(self, message.type.name.lower())(request)
        except OSError as error:
            self.send(Frame(frame.type, frame.id, status=error.errno or errno.EIO))
            return
        self.send(Frame(frame.type, frame.id, message.answer.encode(answer)))
        if message.type is Type.DETACH:
            assert self._writer is not None
            self._writer.close()

    # --- requests --------------------------------------------------------------------------------

    def hello(self, _: Hello) -> Welcome:
        return Welcome(
            MAGIC,
            self.version,
            self.pid,
            62,
            len(self.cpus),
            1,
            PAGE,
            Features.BLOCKIRQ,
            self.debug_registers,
            0,
        )

    def adopt(self, adoption: Adoption) -> None:
        self.adopted = adoption

    def vcpus(self, _: None) -> tuple[Vcpu, ...]:
        return tuple(self.cpus)

    def slots(self, _: None) -> tuple[Slot, ...]:
        return (Slot(0, 0, 0, len(self.memory), 0x7F00_0000_0000),)

    def ioctl(self, request: tuple[IoctlHead, bytes]) -> tuple[Result, bytes]:
        head, payload = request
        if head.request not in self.ioctls:
            raise OSError(errno.ENOTTY, "no such ioctl")
        result, answer = self.ioctls[head.request](head.vcpu, head.argument, payload)
        return Result(result), answer

    def read(self, where: Range) -> bytes:
        found = bytes(self.memory[where.address : where.address + where.length])
        if not found:
            raise OSError(errno.EFAULT, "no memory")
        return found

    def write(self, request: tuple[Range, bytes]) -> None:
        where, data = request
        if where.address + len(data) > len(self.memory):
            raise OSError(errno.EFAULT, "no memory")
        if self.logging:
            raise OSError(errno.EBUSY, "a migration")
        self.memory[where.address : where.address + len(data)] = data

    def translate(self, where: Range) -> Translation:
        if where.address >= len(self.memory):
            raise OSError(errno.EFAULT, "not mapped")
        user = Access.USER if where.address in self.user else Access(0)
        return Translation(where.address, PAGE, Access.WRITABLE | user)

    def insert(self, request: PointRequest) -> Point:
        if any((p.kind, p.address) == (request.kind, request.address) for p in self.table.values()):
            raise OSError(errno.EEXIST, "twice")
        if request.kind is Kind.SOFTWARE and request.address >= len(self.memory):
            raise OSError(errno.EFAULT, "no memory")
        register = NO_REGISTER
        if request.kind is not Kind.SOFTWARE:
            taken = {point.debug_register for point in self.table.values()}
            free = [number for number in range(self.debug_registers) if number not in taken]
            if not free:
                raise OSError(errno.ENOSPC, "no debug register")
            register = free[0]
        original = bytes(self.memory[request.address : request.address + 16]).ljust(16, b"\0")
        point = Point(
            max(self.table, default=0) + 1,
            request.kind,
            request.address,
            request.length,
            request.address,
            0,
            PointState.ARMED,
            register,
            request.flags,
            original,
        )
        self.table[point.id] = point
        return point

    def remove(self, point: int) -> None:
        if self.table.pop(point, None) is None:
            raise OSError(errno.ENOENT, "no such point")

    def points(self, _: None) -> tuple[Point, ...]:
        return tuple(self.table.values())

    def hold(self, _: None) -> None:
        self.held = True

    def resume(self, actions: tuple[Action, ...]) -> None:
        self.stopped.clear()
        self.held = False

    def stops(self, _: None) -> tuple[Stop, ...]:
        self._rung = False
        running = StopKind.RUNNING
        return tuple(self.stopped.get(cpu.index, Stop(cpu.index, running)) for cpu in self.cpus)

    def run_page(self, vcpu: int) -> bytes:
        return bytes(PAGE)

    def configure(self, configuration: Configuration) -> None:
        self.flags = configuration.flags

    def statistics(self, _: None) -> Statistics:
        return Statistics(*range(8))

    def clock(self, _: None) -> Clock:
        return Clock(5 if self.held else 0, -7, self.clock_state)

    def detach(self, _: None) -> None:
        self.table.clear()
        self.held = False
