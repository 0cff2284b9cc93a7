"""An engine without a VM, for tests of what sits above engines.

The guest is a few vCPUs and some RAM. An instruction is one byte long and does nothing, unless
:attr:`FakeGuest.accesses` says that it touches memory; vCPU N runs a loop through the N-th block of
:data:`CODE_SIZE` bytes from :data:`CODE` on. Breakpoints and watchpoints work by definition. All of
it passes the same contract tests as a live VM does.

    fake = FakeVm(vcpus=2)
    fake.guest.accesses[Gva(CODE + 3)] = Access(BreakpointKind.WRITE, DATA)
    vm = fake.facade()
    await fake.run_control.foreign_cont()      # what another monitor does
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.arch import X86_64, Architecture
from kvmdbg.errors import BreakpointError, MemoryFault, MonitorError, RegisterError, VmGone
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec, Placement
from kvmdbg.target.runstate import PERMITS, RunEvent, VmRunState
from kvmdbg.target.stops import (
    Action,
    BreakpointHit,
    Frozen,
    Paused,
    ResumePlan,
    Stepped,
    Stop,
    StopReason,
    WatchpointHit,
)
from kvmdbg.target.vm import Vm

RAM_BASE = Gva(0x1000_0000)
"""GVA of GPA 0: the fake guest maps its RAM once, here."""

RAM_SIZE = 0x10000
CODE = Gva(RAM_BASE + 0x1000)
CODE_SIZE = 0x100
DATA = Gva(RAM_BASE + 0x2000)

_SLICE = 64
"""Rounds of instructions before the event loop has its turn."""


@dataclass(frozen=True)
class Access:
    """What an instruction does to memory; a WRITE increments the byte at ``address``."""

    kind: BreakpointKind
    address: Gva
    length: int = 1


@dataclass
class FakeGuest:
    """The guest's state; ``instructions`` counts what each vCPU has executed."""

    vcpus: int = 1
    arch: Architecture = X86_64
    ram: bytearray = field(default_factory=lambda: bytearray(RAM_SIZE))
    accesses: dict[Gva, Access] = field(default_factory=dict)
    registers: list[list[bytes]] = field(init=False)
    instructions: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Registers as after power-on: all zero, pc at the start of each one's block."""
        zeros = [bytes(register.size) for register in self.arch.registers]
        self.registers = [list(zeros) for _ in range(self.vcpus)]
        self.instructions = [0] * self.vcpus
        for vcpu in range(self.vcpus):
            self.set_pc(VcpuIndex(vcpu), Gva(CODE + CODE_SIZE * vcpu))

    def pc(self, vcpu: VcpuIndex) -> Gva:
        """Where ``vcpu`` is."""
        return Gva(int.from_bytes(self.registers[vcpu][self.arch.numbers[self.arch.pc]], "little"))

    def set_pc(self, vcpu: VcpuIndex, pc: Gva) -> None:
        """Put ``vcpu`` at ``pc``."""
        self.registers[vcpu][self.arch.numbers[self.arch.pc]] = pc.to_bytes(8, "little")

    def execute(self, vcpu: VcpuIndex) -> Access | None:
        """Execute one instruction; the access that it made."""
        pc = self.pc(vcpu)
        access = self.accesses.get(pc)
        if access is not None and access.kind is BreakpointKind.WRITE:
            at = access.address - RAM_BASE
            self.ram[at] = (self.ram[at] + 1) & 0xFF
        last = (pc + 1 - CODE) % CODE_SIZE == 0
        self.set_pc(vcpu, Gva(pc + 1 - CODE_SIZE) if last else Gva(pc + 1))
        self.instructions[vcpu] += 1
        return access


class FakeRunControl:
    """RunControl without QEMU; ``foreign_*`` and the like are what others do to the VM.

    ``calls`` records what was asked of it. ``fail`` is raised by the next call.
    """

    def __init__(self, guest: FakeGuest) -> None:
        self._guest = guest
        self._state = VmRunState.PRELAUNCH
        self._subscribers: list[Callable[[RunEvent], None]] = []
        self.exit_text = ""
        self.exit_signal = 0
        self.stops = 0
        self.calls: list[str] = []
        self.fail: Exception | None = None

    @property
    def state(self) -> VmRunState:
        return self._state

    def subscribe(self, callback: Callable[[RunEvent], None]) -> None:
        self._subscribers.append(callback)

    def emit(self, event: RunEvent) -> None:
        """Announce ``event``."""
        for callback in tuple(self._subscribers):
            callback(event)

    def stop(self, state: VmRunState) -> None:
        """The running VM stops in ``state``."""
        self._state = state
        self.stops += 1
        self.emit(RunEvent.STOP)

    def start(self) -> None:
        """The stopped VM runs."""
        self._state = VmRunState.RUNNING
        self.emit(RunEvent.RESUME)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        failure, self.fail = self.fail, None
        if failure is not None:
            raise failure
        if self._state is VmRunState.GONE:
            raise VmGone(f"the VM has ended: {self.exit_text}")

    async def wait_stop(self, known: int) -> None:
        """The fake's events come at once."""

    async def sync(self) -> VmRunState:
        if self._state is not VmRunState.GONE:
            self._call("sync")
        return self._state

    async def pause(self) -> None:
        self._call("pause")
        if PERMITS[self._state].executing:
            self.stop(VmRunState.PAUSED)

    async def cont(self) -> None:
        self._call("cont")
        if self._state is not VmRunState.RUNNING:
            self.start()

    async def reset(self) -> None:
        self._call("reset")
        self._guest.reset()
        self.emit(RunEvent.RESET)

    async def quit(self) -> None:
        self._call("quit")
        self.die("kvmdbg ended it")

    async def foreign_stop(self) -> None:
        """Another monitor stops the VM."""
        if PERMITS[self._state].executing:
            self.stop(VmRunState.PAUSED)

    async def foreign_cont(self) -> None:
        """Another monitor resumes the VM. The fake guest executes nothing outside run()."""
        self.start()

    def panic(self) -> None:
        """The guest panics, and pvpanic stops it."""
        self.emit(RunEvent.GUEST_PANICKED)
        self.stop(VmRunState.GUEST_PANICKED)

    def shut_down(self) -> None:
        """The guest powers itself off, under ``-no-shutdown``."""
        self.emit(RunEvent.SHUTDOWN)
        self.stop(VmRunState.SHUTDOWN)

    def die(self, text: str, signal: int = 0) -> None:
        """QEMU ends."""
        self._state, self.exit_text, self.exit_signal = VmRunState.GONE, text, signal
        self.emit(RunEvent.GONE)


class FakeMonitor:
    """MonitorQuery with canned answers; ``asked`` records the commands."""

    def __init__(self) -> None:
        self.hmp_answers: dict[str, str] = {}
        self.qmp_answers: dict[str, Any] = {}
        self.asked: list[str] = []

    async def hmp(self, command: str, vcpu: VcpuIndex | None = None) -> str:
        self.asked.append(command)
        if command not in self.hmp_answers:
            raise MonitorError(f"unknown command: '{command}'")
        return self.hmp_answers[command]

    async def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        self.asked.append(command)
        if command not in self.qmp_answers:
            raise MonitorError(f"the command {command} has not been found")
        return self.qmp_answers[command]


class FakeRegisters:
    def __init__(self, guest: FakeGuest) -> None:
        self._guest = guest

    async def read_block(self, vcpu: VcpuIndex) -> list[bytes | None]:
        return list(self._guest.registers[vcpu][: len(self._guest.arch.block)])

    async def read_register(self, vcpu: VcpuIndex, number: int) -> bytes | None:
        return self._guest.registers[vcpu][number]

    async def write_registers(self, vcpu: VcpuIndex, values: Mapping[int, bytes]) -> None:
        for number, value in values.items():
            register = self._guest.arch.registers[number]
            if number >= len(self._guest.arch.block) or len(value) != register.size:
                raise RegisterError(f"register {register.name} cannot be written")
            self._guest.registers[vcpu][number] = bytes(value)


class FakeMemory:
    """Memory by GVA; ``base`` 0 makes it memory by GPA."""

    def __init__(self, guest: FakeGuest, base: int) -> None:
        self._guest = guest
        self._base = base

    def _offset(self, address: int) -> int:
        offset = address - self._base
        if not 0 <= offset < len(self._guest.ram):
            raise MemoryFault(f"there is no memory at {address:#x}")
        return offset

    def peek(self, address: int, length: int) -> bytes:
        offset = self._offset(address)
        return bytes(self._guest.ram[offset : offset + length])

    def poke(self, address: int, data: bytes) -> None:
        offset = self._offset(address)
        if data:
            self._offset(address + len(data) - 1)
        self._guest.ram[offset : offset + len(data)] = data


class FakeVirtualMemory(FakeMemory):
    async def read(self, vcpu: VcpuIndex, address: Gva, length: int) -> bytes:
        return self.peek(address, length)

    async def write(self, vcpu: VcpuIndex, address: Gva, data: bytes) -> None:
        self.poke(address, data)


class FakePhysicalMemory(FakeMemory):
    async def read(self, address: Gpa, length: int) -> bytes:
        return self.peek(address, length)

    async def write(self, address: Gpa, data: bytes) -> None:
        self.poke(address, data)


class FakeBreakpoints:
    """A store; ``refuse`` makes the next insertion fail."""

    kinds = frozenset(BreakpointKind)

    def __init__(self) -> None:
        self.specs: set[BreakpointSpec] = set()
        self.refuse = False

    async def insert(self, spec: BreakpointSpec) -> None:
        if self.refuse:
            self.refuse = False
            raise BreakpointError(f"{spec} was refused")
        assert spec not in self.specs, "the manager inserts once"
        self.specs.add(spec)

    async def remove(self, spec: BreakpointSpec) -> None:
        self.specs.remove(spec)

    async def describe(self) -> list[Placement]:
        return [Placement(spec, "a fake") for spec in sorted(self.specs, key=str)]

    def at(self, pc: Gva) -> BreakpointHit | None:
        """The hit of a vCPU at ``pc``."""
        kinds = {s.kind for s in self.specs if s.address == pc and not s.kind.is_watchpoint}
        if not kinds:
            return None
        soft = BreakpointKind.SOFTWARE
        return BreakpointHit(soft if soft in kinds else BreakpointKind.HARDWARE, pc)

    def watching(self, access: Access) -> WatchpointHit | None:
        """The hit that ``access`` causes."""
        for spec in self.specs:
            overlaps = (
                spec.address < access.address + access.length
                and access.address < spec.address + spec.length
            )
            if overlaps and spec.kind in (access.kind, BreakpointKind.ACCESS):
                return WatchpointHit(spec.kind, spec.address)
        return None


class FakeExecution:
    def __init__(
        self, guest: FakeGuest, breakpoints: FakeBreakpoints, run_control: FakeRunControl
    ) -> None:
        self._guest = guest
        self._breakpoints = breakpoints
        self._run_control = run_control
        self._reported: dict[VcpuIndex, Gva] = {}
        self._running = False
        self.plans: list[ResumePlan] = []
        self.forgotten = 0
        self.step_mode = 7
        self.recorded = False
        self.replayed = False
        self.back: list[Stop] = []
        """Where plans that go back end up, one after the other."""

    @property
    def step_bits(self) -> int:
        return 7

    async def run(self, plan: ResumePlan) -> Stop:
        self.plans.append(plan)
        if plan.back:
            return self.back.pop(0)
        over = {v for v, pc in self._reported.items() if pc == self._guest.pc(v)}
        self._reported = {
            v: pc for v, pc in self._reported.items() if plan.action(v) is Action.HOLD
        }
        self._running = True
        try:
            self._run_control.start()
            stop = await self._until_stop(plan, over)
        finally:
            self._running = False
        if isinstance(stop.reason, BreakpointHit):
            self._reported[stop.vcpu] = stop.reason.address
        return stop

    async def _until_stop(self, plan: ResumePlan, over: set[VcpuIndex]) -> Stop:
        while self._run_control.state is VmRunState.RUNNING:
            for _ in range(_SLICE):
                stop = self._round(plan, over)
                if stop is not None:
                    self._run_control.stop(VmRunState.DEBUG)
                    return stop
            await asyncio.sleep(0.001)
        if self._run_control.state is VmRunState.GONE:
            raise VmGone("the VM has ended")
        return Stop(VcpuIndex(0), Paused())

    def _round(self, plan: ResumePlan, over: set[VcpuIndex]) -> Stop | None:
        """One instruction on every vCPU that may run, until one of them has news."""
        for vcpu in map(VcpuIndex, range(self._guest.vcpus)):
            reason = self._advance(vcpu, plan.action(vcpu), over)
            if reason is not None:
                return Stop(vcpu, reason)
        return None

    def _advance(self, vcpu: VcpuIndex, action: Action, over: set[VcpuIndex]) -> StopReason | None:
        if action is Action.HOLD:
            return None
        if action is Action.CONTINUE and vcpu not in over:
            hit = self._breakpoints.at(self._guest.pc(vcpu))
            if hit is not None:
                return hit
        over.discard(vcpu)
        access = self._guest.execute(vcpu)
        watched = self._breakpoints.watching(access) if access else None
        return watched or (Stepped() if action is Action.STEP else None)

    async def interrupt(self) -> None:
        if self._running:
            await self._run_control.pause()

    async def resync(self) -> None:
        await self._run_control.pause()
        self.forget()

    def forget(self) -> None:
        self.forgotten += 1
        self._reported.clear()


class FakeEngine:
    """The engine; parts are public under their own types for tests to look into."""

    name = "fake"

    def __init__(self, guest: FakeGuest, run_control: FakeRunControl) -> None:
        self.arch = guest.arch
        self.vcpus: Sequence[VcpuIndex] = [VcpuIndex(i) for i in range(guest.vcpus)]
        self.registers = FakeRegisters(guest)
        self.memory = FakeVirtualMemory(guest, RAM_BASE)
        self.physical = FakePhysicalMemory(guest, 0)
        self.breakpoints = FakeBreakpoints()
        self.execution = FakeExecution(guest, self.breakpoints, run_control)
        self.closed = False

    async def close(self) -> None:
        self.breakpoints.specs.clear()
        self.closed = True


class FakeVm:
    """Guest, engine, run control and monitor of one fake VM."""

    def __init__(self, vcpus: int = 1) -> None:
        self.guest = FakeGuest(vcpus)
        self.run_control = FakeRunControl(self.guest)
        self.monitor = FakeMonitor()
        self.engine = FakeEngine(self.guest, self.run_control)

    def facade(self, name: str = "fake") -> Vm:
        """The facade over it; the VM has not executed its first instruction."""
        return Vm(name, self.engine, self.run_control, self.monitor, Stop(VcpuIndex(0), Frozen()))
