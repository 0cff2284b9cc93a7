"""The stub engine against a stub that misbehaves in QEMU's ways, and in ways no QEMU here does."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kvmdbg._native import ffi
from kvmdbg.addr import Gpa, Gva, VcpuIndex
from kvmdbg.arch import X86_64
from kvmdbg.arch.describe import WalkResult
from kvmdbg.backend.stub import StubEngine, silence
from kvmdbg.backend.stub.connection import StubConnection
from kvmdbg.errors import (
    AttachError,
    BreakpointError,
    LocalProtocolError,
    MemoryFault,
    TargetError,
    VmGone,
    WaitTimeout,
)
from kvmdbg.target.breakpoints import BreakpointKind, BreakpointSpec
from kvmdbg.target.runstate import RunEvent, VmRunState
from kvmdbg.target.stops import (
    Action,
    BreakpointHit,
    Paused,
    ResumePlan,
    Stepped,
    Stop,
    StopReason,
    WatchpointHit,
)
from tests.support.fake_engine import FakeMonitor, FakeRunControl
from tests.unit.backend.scripted_stub import ScriptedStub

CPU = VcpuIndex(0)
PC = Gva(0x2222_2222_2222_2222)


async def test_opening_forgets_breakpoints_and_masks_interrupts(
    stub: ScriptedStub, engine: StubEngine
) -> None:
    assert b"?" in stub.seen
    assert stub.seen[-1] == b"Qqemu.sstep=7"
    assert list(engine.vcpus) == [CPU]


async def test_only_step_bits_that_there_are_get_set(
    stub: ScriptedStub, run_control: FakeRunControl, tmp_path: Path
) -> None:
    stub.answers[b"qqemu.sstepbits"] = b"ENABLE=1,NOTIMER=4"
    engine = await StubEngine.open(
        tmp_path / "stub.sock",
        arch=X86_64,
        monitor=FakeMonitor(),
        run_control=run_control,
        pid=None,
    )
    assert stub.seen[-1] == b"Qqemu.sstep=5"
    engine.abandon()


async def test_a_stub_that_makes_no_sense_is_one_sentence(
    stub: ScriptedStub, run_control: FakeRunControl, tmp_path: Path
) -> None:
    stub.answers[b"qfThreadInfo"] = b"nonsense"
    with pytest.raises(AttachError, match=r"cannot be used: "):
        await StubEngine.open(
            tmp_path / "stub.sock",
            arch=X86_64,
            monitor=FakeMonitor(),
            run_control=run_control,
            pid=None,
        )


async def test_registers_are_mapped_by_name_and_read_once(
    stub: ScriptedStub, engine: StubEngine
) -> None:
    block = await engine.registers.read_block(CPU)
    numbers = X86_64.numbers
    assert block[numbers["rax"]] == b"\x11" * 8
    assert block[numbers["rip"]] == b"\x22" * 8
    assert block[numbers["eflags"]] == b"\x02\0\0\0"
    assert block[numbers["rbx"]] is None
    assert len(block) == len(X86_64.block)
    await engine.registers.read_block(CPU)
    assert stub.seen.count(b"g") == 1


async def test_a_refused_breakpoint_is_one_sentence(stub: ScriptedStub, engine: StubEngine) -> None:
    stub.answers[b"Z1"] = b"E22"
    spec = BreakpointSpec(BreakpointKind.HARDWARE, Gva(0x10))
    with pytest.raises(BreakpointError, match=r"hardware breakpoint at 0x10.*Invalid argument"):
        await engine.breakpoints.insert(spec)
    assert not engine.breakpoints.inserted
    await engine.close()
    assert not any(request.startswith(b"z") for request in stub.seen)


async def test_memory_is_read_page_by_page_in_small_packets(
    stub: ScriptedStub, engine: StubEngine
) -> None:
    def answer(request: bytes) -> bytes:
        address, length = (int(n, 16) for n in request[1:].split(b","))
        return b"E14" if address >= 0x3000 else b"ab" * length

    stub.answers[b"m"] = answer
    assert await engine.memory.read(CPU, Gva(0x1F00), 0x4000) == b"\xab" * 0x1100
    assert [r for r in stub.seen if r.startswith(b"m")] == [
        b"m1f00,100",
        b"m2000,800",
        b"m2800,800",
        b"m3000,800",
    ]
    with pytest.raises(MemoryFault, match="0x3000"):
        await engine.memory.read(CPU, Gva(0x3000), 1)


async def test_writes_fit_the_packets(stub: ScriptedStub, engine: StubEngine) -> None:
    stub.answers[b"M"] = b"OK"
    await engine.memory.write(CPU, Gva(0xFFFF_FFFF_8000_0000), bytes(5000))
    writes = [request for request in stub.seen if request.startswith(b"M")]
    assert max(map(len, writes)) + 4 <= 0x1000
    assert sum(int(w.partition(b":")[0].rpartition(b",")[2], 16) for w in writes) == 5000


async def test_the_physical_mode_ends_even_where_a_write_fails(
    stub: ScriptedStub, engine: StubEngine
) -> None:
    stub.answers[b"M"] = b"E14"
    with pytest.raises(MemoryFault, match="Bad address"):
        await engine.physical.write(Gpa(0), b"1")
    assert stub.seen[-1] == b"Qqemu.PhyMemMode:0"


async def test_what_the_vcpu_may_not_write_is_written_by_its_place_in_ram(
    stub: ScriptedStub, run_control: FakeRunControl, tmp_path: Path
) -> None:
    """2 MiB of RAM that is in this process, mapped at 1 GiB; the second page is not mapped."""

    def translate(values: dict[str, int], address: Gva) -> WalkResult:
        assert values == {"rax": int("11" * 8, 16), "rbx": 0}
        yield Gpa(0)
        return None if address >= 0x4000_1000 else Gpa(address - 0x4000_0000)

    def answer(request: bytes) -> bytes:
        return b"OK" if stub.seen[-2:-1] == [b"Qqemu.PhyMemMode:1"] else b"E14"

    ram = bytearray(0x200000)
    monitor = FakeMonitor()
    monitor.qmp_answers["query-memdev"] = [{"id": "ram"}]
    monitor.hmp_answers["info mtree -f"] = (
        'FlatView #0\n AS "memory", root: system\n'
        "  0000000000000000-00000000001fffff (prio 0, ram): ram\n"
    )
    for start in (0, 0x100000):
        host = int(ffi.cast("uintptr_t", ffi.from_buffer(ram))) + start
        monitor.hmp_answers[f"gpa2hva {start:#x}"] = f"Host virtual address is {host:#x}"
    engine = await StubEngine.open(
        tmp_path / "stub.sock",
        arch=replace(
            X86_64,
            translate=translate,
            translate_needs=("rax",),
            translate_may_need=("rbx",),
        ),
        monitor=monitor,
        run_control=run_control,
        pid=os.getpid(),
    )
    stub.answers[b"M"] = answer
    await engine.memory.write(CPU, Gva(0x4000_0FFC), b"ab")
    assert [request for request in stub.seen if request[:1] in (b"M", b"Q")][-4:] == [
        *(b"M40000ffc,2:6162", b"Qqemu.PhyMemMode:1", b"Mffc,2:6162", b"Qqemu.PhyMemMode:0"),
    ]
    with pytest.raises(MemoryFault, match="Bad address"):
        await engine.memory.write(CPU, Gva(0x4000_0FFC), b"abcdefgh")
    engine.abandon()


# --- running -------------------------------------------------------------------------------------


async def running(stub: ScriptedStub, engine: StubEngine, plan: ResumePlan) -> asyncio.Task[Stop]:
    """A run that has reached the stub."""
    run = asyncio.create_task(engine.execution.run(plan))
    await stub.wait_resumed()
    return run


@pytest.mark.parametrize(
    ("reply", "plan", "reason"),
    [
        (b"T05thread:p01.01;", ResumePlan.step(CPU), Stepped()),
        (b"T02thread:p01.01;", ResumePlan(), Paused()),
        (b"T03thread:p01.01;", ResumePlan(), Paused()),
        (
            b"T05thread:p01.01;",
            ResumePlan(),
            BreakpointHit(BreakpointKind.HARDWARE, PC),
        ),
        (
            b"T05thread:p01.01;awatch:102;",
            ResumePlan(),
            WatchpointHit(BreakpointKind.ACCESS, Gva(0x100)),
        ),
        (
            b"T05thread:p01.01;watch:102;",
            ResumePlan.step(CPU),
            WatchpointHit(BreakpointKind.WRITE, Gva(0x102)),
        ),
    ],
)
async def test_what_a_stop_reply_means(
    stub: ScriptedStub, engine: StubEngine, reply: bytes, plan: ResumePlan, reason: StopReason
) -> None:
    for spec in (
        BreakpointSpec(BreakpointKind.HARDWARE, PC),
        BreakpointSpec(BreakpointKind.ACCESS, Gva(0x100), 8),
        BreakpointSpec(BreakpointKind.WRITE, Gva(0x102), 1),
    ):
        await engine.breakpoints.insert(spec)
    await engine.registers.read_block(CPU)
    stub.answers[b"g"] = b"33" * 8 + b"22" * 8 + b"02000000"
    run = await running(stub, engine, plan)
    stub.say(reply)
    assert await run == Stop(CPU, reason)


async def test_nothing_is_sent_while_the_vm_runs(stub: ScriptedStub, engine: StubEngine) -> None:
    run = await running(stub, engine, ResumePlan())
    with pytest.raises(LocalProtocolError):
        await engine.registers.read_block(CPU)
    with pytest.raises(LocalProtocolError):
        await engine.execution.run(ResumePlan())
    assert stub.seen[-1] == b"vCont;c"
    stub.say(b"T02thread:p01.01;")
    assert (await run).reason == Paused()


async def test_a_plan_that_runs_nothing_is_a_mistake(engine: StubEngine) -> None:
    with pytest.raises(LocalProtocolError):
        await engine.execution.run(ResumePlan(default=Action.HOLD))


async def test_an_interrupt_during_the_step_off_a_breakpoint_ends_the_run(
    stub: ScriptedStub, engine: StubEngine, run_control: FakeRunControl
) -> None:
    await engine.breakpoints.insert(BreakpointSpec(BreakpointKind.SOFTWARE, PC))
    run = await running(stub, engine, ResumePlan())
    stub.say(b"T05thread:p01.01;")
    assert isinstance((await run).reason, BreakpointHit)
    run = await running(stub, engine, ResumePlan())
    assert stub.seen[-1] == b"vCont;s:p1.1"
    await engine.execution.interrupt()
    stub.answers[b"g"] = b"11" * 8 + b"33" * 8 + b"02000000"
    stub.say(b"T05thread:p01.01;")  # the step was done before the pause
    assert (await run).reason == Paused()
    assert run_control.calls == ["pause"]
    assert stub.seen.count(b"vCont;c") == 1


@pytest.mark.parametrize("plan", [ResumePlan(), ResumePlan.step(CPU)])
async def test_an_access_that_was_reported_before_it_is_made_is_made_unwatched(
    stub: ScriptedStub, run_control: FakeRunControl, tmp_path: Path, plan: ResumePlan
) -> None:
    engine = await StubEngine.open(
        tmp_path / "stub.sock",
        arch=replace(X86_64, watch_before=True),
        monitor=FakeMonitor(),
        run_control=run_control,
        pid=None,
    )
    await engine.breakpoints.insert(BreakpointSpec(BreakpointKind.WRITE, Gva(0x100), 8))
    run = await running(stub, engine, ResumePlan())
    stub.say(b"T05thread:p01.01;watch:100;")
    assert (await run).reason == WatchpointHit(BreakpointKind.WRITE, Gva(0x100))
    run = await running(stub, engine, plan)
    assert [r for r in stub.seen if r[:1] in (b"z", b"Z") or r.startswith(b"vCont")] == [
        *(b"Z2,100,8", b"vCont;c", b"z2,100,8", b"vCont;s:p1.1"),
    ]
    stub.answers[b"g"] = b"11" * 8 + b"33" * 8 + b"02000000"
    stub.say(b"T05thread:p01.01;")
    if plan.default is Action.CONTINUE:
        await stub.wait_resumed()
        stub.say(b"T05thread:p01.01;watch:100;")
        assert isinstance((await run).reason, WatchpointHit)
    else:
        assert await run == Stop(CPU, Stepped())
    assert stub.seen.count(b"Z2,100,8") == 2
    engine.abandon()


async def test_a_step_that_changed_nothing_is_repeated(
    stub: ScriptedStub, engine: StubEngine
) -> None:
    stub.answers[b"vCont;s"] = b"T05thread:p01.01;"
    assert (await engine.execution.run(ResumePlan.step(CPU))).reason == Stepped()
    assert stub.seen.count(b"vCont;s:p1.1") == 3, "a jump to itself, in the end"


async def test_a_stop_without_a_stop_reply(
    stub: ScriptedStub,
    engine: StubEngine,
    run_control: FakeRunControl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(silence, "SILENCE", 0.05)
    run_control.start()
    run = await running(stub, engine, ResumePlan())
    run_control.stop(VmRunState.PAUSED)
    async with asyncio.timeout(5):
        assert (await run).reason == Paused()
    stub.say(b"T02thread:p01.01;")  # late
    assert await engine.registers.read_block(CPU)


async def test_a_snapshot_is_no_stop(
    stub: ScriptedStub,
    engine: StubEngine,
    run_control: FakeRunControl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(silence, "SILENCE", 0.02)
    run_control.start()
    run = await running(stub, engine, ResumePlan())
    run_control.stop(VmRunState.SAVE_VM)
    await asyncio.sleep(0.1)
    run_control.start()
    await asyncio.sleep(0.1)
    assert not run.done()
    stub.say(b"T02thread:p01.01;")
    await run


async def test_a_stub_that_does_not_resume_is_an_error(
    stub: ScriptedStub, engine: StubEngine
) -> None:
    stub.answers[b"vCont"] = b"E22"
    with pytest.raises(TargetError, match="did not resume"):
        await engine.execution.run(ResumePlan())
    assert await engine.registers.read_block(CPU)


# --- a bad connection ----------------------------------------------------------------------------


async def test_old_stop_replies_are_no_answers(stub: ScriptedStub, engine: StubEngine) -> None:
    stub.say(b"T02thread:p01.01;")
    stub.say(b"T05thread:p01.01;")
    assert (await engine.registers.read_block(CPU))[0] == b"\x11" * 8


async def test_a_packet_that_paused_a_foreign_run_is_sent_again(
    stub: ScriptedStub, engine: StubEngine
) -> None:
    stub.deaf = True
    reading = asyncio.create_task(engine.registers.read_block(CPU))
    await asyncio.sleep(0.02)
    stub.deaf = False
    stub.say(b"T02thread:p01.01;")
    async with asyncio.timeout(5):
        assert (await reading)[0] == b"\x11" * 8


async def test_a_cancelled_request_leaves_no_answer_to_the_next(
    stub: ScriptedStub, engine: StubEngine
) -> None:
    await engine.registers.read_block(CPU)
    stub.answers[b"m"] = None
    reading = asyncio.create_task(engine.memory.read(CPU, Gva(0), 4))
    await asyncio.sleep(0.02)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    writing = asyncio.create_task(
        engine.breakpoints.insert(BreakpointSpec(BreakpointKind.SOFTWARE, PC))
    )
    await asyncio.sleep(0.02)
    stub.say(b"deadbeef")
    await writing


async def test_silence_is_a_timeout_in_words(stub: ScriptedStub, tmp_path: Path) -> None:
    stub.answers[b"m"] = None
    stub_connection = await StubConnection.open(tmp_path / "stub.sock")
    with pytest.raises(WaitTimeout, match="QEMU may be hung"):
        await stub_connection.request(b"m0,1", timeout=0.05)
    stub_connection.close()


async def test_a_closed_socket_ends_what_waits(stub: ScriptedStub, engine: StubEngine) -> None:
    run = await running(stub, engine, ResumePlan())
    stub.hang_up()
    with pytest.raises(VmGone):
        await run
    with pytest.raises(VmGone):
        await engine.memory.read(CPU, Gva(0), 1)
    await engine.close()


async def test_resync_takes_up_old_stop_replies(
    stub: ScriptedStub, engine: StubEngine, run_control: FakeRunControl
) -> None:
    await engine.registers.read_block(CPU)
    run_control.start()
    run_control.subscribe(
        lambda event: stub.say(b"T02thread:p01.01;") if event is RunEvent.STOP else None
    )
    await engine.execution.resync()
    assert run_control.state is VmRunState.PAUSED
    await engine.registers.read_block(CPU)
    assert stub.seen.count(b"g") == 2
