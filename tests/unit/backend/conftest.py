"""A stub engine on a scripted stub."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvmdbg.arch import X86_64
from kvmdbg.backend.stub import StubEngine
from tests.support.fake_engine import FakeGuest, FakeMonitor, FakeRunControl
from tests.unit.backend.scripted_stub import ScriptedStub


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[ScriptedStub]:
    stub = ScriptedStub()
    async with stub.serve(tmp_path / "stub.sock"):
        yield stub


@pytest.fixture
def run_control() -> FakeRunControl:
    return FakeRunControl(FakeGuest())


@pytest.fixture
async def engine(
    stub: ScriptedStub, run_control: FakeRunControl, tmp_path: Path
) -> AsyncIterator[StubEngine]:
    engine = await StubEngine.open(
        tmp_path / "stub.sock",
        arch=X86_64,
        monitor=FakeMonitor(),
        run_control=run_control,
        pid=None,
    )
    yield engine
    engine.abandon()
