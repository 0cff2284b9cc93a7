"""The watchdog's own way of talking to a monitor."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kvmdbg.machine.watchdog import rescue_by_monitor
from tests.support.fake_monitor import FakeMonitor

LEFTOVERS = [{"event": "STOP"}, {"return": {}, "id": "__qmp#00007"}]
"""What QEMU says to the next client where one was killed just after it said stop."""


@pytest.mark.parametrize("leftovers", [[], LEFTOVERS[:1], LEFTOVERS[1:], LEFTOVERS])
@pytest.mark.parametrize("status", ["paused", "debug", "prelaunch"])
async def test_a_vm_that_was_left_stopped_runs_on(
    tmp_path: Path, leftovers: list[dict[str, object]], status: str
) -> None:
    async with FakeMonitor(tmp_path / "qmp.sock") as monitor:
        monitor.status = status
        monitor.replies["cont"] = monitor.cont
        monitor.leftovers = [leftovers]
        await asyncio.to_thread(rescue_by_monitor, str(monitor.path))
        assert monitor.status == "running"


@pytest.mark.parametrize("status", ["running", "shutdown", "guest-panicked"])
async def test_no_other_is_touched(tmp_path: Path, status: str) -> None:
    async with FakeMonitor(tmp_path / "qmp.sock") as monitor:
        monitor.status = status
        await asyncio.to_thread(rescue_by_monitor, str(monitor.path))
        assert monitor.commands == ["query-status"]
