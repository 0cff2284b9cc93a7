"""Registers that QEMU's stub has, but not in its g packet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvmdbg.addr import VcpuIndex
from kvmdbg.arch import Architecture, Feature, Register
from kvmdbg.arch.describe import Fetch
from kvmdbg.arch.x86_64 import translate
from kvmdbg.backend.stub import StubEngine
from kvmdbg.errors import RegisterError
from tests.support.fake_engine import FakeMonitor, FakeRunControl
from tests.unit.backend.scripted_stub import TARGET, ScriptedStub

CPU = VcpuIndex(0)

ARCH = Architecture(
    name="x",
    gdb_name="x",
    elf_machines=(),
    features=(
        Feature("core", (Register("rax", 64), Register("rip", 64), Register("eflags", 32))),
        Feature(
            "more",
            (
                Register("v0", 128, fetch=Fetch.DEMAND, qemu=("q0", "z0")),
                Register("absent", 64, fetch=Fetch.DEMAND),
            ),
        ),
    ),
    pc="rip",
    sp="rax",
    expedited=(),
    translate=translate,
    translate_needs=(),
)
V0, ABSENT = 3, 4


@pytest.fixture
def monitor() -> FakeMonitor:
    return FakeMonitor()


@pytest.fixture
async def engine(
    stub: ScriptedStub, run_control: FakeRunControl, tmp_path: Path, monitor: FakeMonitor
) -> AsyncIterator[StubEngine]:
    wide = b'<reg name="z0" bitsize="256" regnum="70"/></feature>'
    stub.answers[b"qXfer:features:read:target.xml:"] = b"l" + TARGET.replace(b"</feature>", wide)
    stub.answers[b"p46"] = b"22" * 16 + b"ff" * 16
    engine = await StubEngine.open(
        tmp_path / "stub.sock",
        arch=ARCH,
        monitor=monitor,
        run_control=run_control,
        pid=None,
    )
    yield engine
    engine.abandon()


async def test_it_is_asked_for_alone_and_once(
    stub: ScriptedStub, engine: StubEngine, monitor: FakeMonitor
) -> None:
    for _ in range(2):
        assert await engine.registers.read_register(CPU, V0) == b"\x22" * 16
    assert stub.seen.count(b"p46") == 1
    assert await engine.registers.read_register(CPU, ABSENT) is None
    assert "info registers -a" not in monitor.asked, "which has nothing of that name"
    engine.execution.forget()
    stub.answers[b"p46"] = b"E14"
    assert await engine.registers.read_register(CPU, V0) is None


async def test_it_is_written(stub: ScriptedStub, engine: StubEngine) -> None:
    def write(request: bytes) -> bytes:
        stub.answers[b"p46"] = request.partition(b"=")[2]
        return b"OK"

    stub.answers[b"P46="] = write
    await engine.registers.write_registers(CPU, {V0: b"\x33" * 16})
    assert b"P46=" + b"33" * 16 + b"00" * 16 in stub.seen
    assert await engine.registers.read_register(CPU, V0) == b"\x33" * 16


async def test_halves_that_come_back_swapped_are_swapped_first(
    stub: ScriptedStub, engine: StubEngine
) -> None:
    def write(request: bytes) -> bytes:
        data = request.partition(b"=")[2]
        stub.answers[b"p46"] = data[16:32] + data[:16] + data[32:]
        return b"OK"

    stub.answers[b"P46="] = write
    value = b"\x33" * 8 + b"\x44" * 8
    await engine.registers.write_registers(CPU, {V0: value})
    assert await engine.registers.read_register(CPU, V0) == value


async def test_a_write_that_changes_nothing_is_an_error(
    stub: ScriptedStub, engine: StubEngine
) -> None:
    stub.answers[b"P46="] = b"OK"
    with pytest.raises(RegisterError, match="ignores what is written to v0"):
        await engine.registers.write_registers(CPU, {V0: b"\x33" * 16})
    with pytest.raises(RegisterError, match="cannot write absent"):
        await engine.registers.write_registers(CPU, {ABSENT: bytes(8)})
