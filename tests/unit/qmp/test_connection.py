"""QmpConnection against a scripted monitor."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvmdbg.errors import MonitorError, VmGone
from kvmdbg.qmp import QmpConnection, QmpEvent
from tests.support.fake_monitor import HANG_UP, SILENCE, FakeMonitor, QmpFailure


@pytest.fixture
async def monitor(tmp_path: Path) -> AsyncIterator[FakeMonitor]:
    async with FakeMonitor(tmp_path / "qmp.sock") as monitor:
        yield monitor


async def test_a_command_returns_its_result(monitor: FakeMonitor) -> None:
    monitor.replies["query-name"] = {"name": "demo"}
    connection = await QmpConnection.connect(monitor.path)
    assert connection.version == (7, 2, 22)
    assert await connection.execute("query-name") == {"name": "demo"}
    await connection.close()


async def test_a_refused_command_carries_qemus_words(monitor: FakeMonitor) -> None:
    monitor.replies["cont"] = QmpFailure("Resetting the Virtual Machine is required")
    connection = await QmpConnection.connect(monitor.path)
    with pytest.raises(MonitorError, match=r"^QEMU refused cont: Resetting the Virtual Machine"):
        await connection.execute("cont")
    await connection.close()


async def test_a_silent_monitor_is_given_up_and_still_usable(monitor: FakeMonitor) -> None:
    monitor.replies["stop"] = SILENCE
    connection = await QmpConnection.connect(monitor.path)
    with pytest.raises(MonitorError, match=r"did not answer stop on .* within 0.05 s"):
        await connection.execute("stop", timeout=0.05)
    assert await connection.execute("query-status") == {"status": "running"}
    await connection.close()


async def test_a_second_client_is_told_that_the_monitor_is_in_use(monitor: FakeMonitor) -> None:
    first = await QmpConnection.connect(monitor.path)
    with pytest.raises(MonitorError, match="another client is using it"):
        await QmpConnection.connect(monitor.path, timeout=0.05)
    await first.close()
    second = await QmpConnection.connect(monitor.path)
    await second.close()


async def test_an_event_amid_the_greeting_is_no_failure(monitor: FakeMonitor) -> None:
    """As when another thread of QEMU's sends it just when the client is ready for it."""
    times = iter((True, True, False))

    def negotiate() -> dict[str, object]:
        if next(times):
            monitor.event("RESUME")
        return {}

    monitor.replies["qmp_capabilities"] = negotiate
    connection = await QmpConnection.connect(monitor.path)
    assert await connection.execute("query-status") == {"status": "running"}
    await connection.close()


async def test_what_was_for_the_client_before_is_no_greeting(monitor: FakeMonitor) -> None:
    monitor.leftovers = [[{"return": {}, "id": "__qmp#00007"}], [{"event": "RESUME"}]]
    connection = await QmpConnection.connect(monitor.path)
    assert await connection.execute("query-status") == {"status": "running"}
    await connection.close()


async def test_a_monitor_that_refuses_to_negotiate_is_no_monitor(monitor: FakeMonitor) -> None:
    monitor.replies["qmp_capabilities"] = HANG_UP
    with pytest.raises(MonitorError, match="cannot connect to the monitor"):
        await QmpConnection.connect(monitor.path)


async def test_nobody_listening_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "no.sock"
    with pytest.raises(MonitorError, match=re.escape(f"the monitor {path}: No such file")):
        await QmpConnection.connect(path)


async def test_events_are_delivered_before_the_reply_that_follows_them(
    monitor: FakeMonitor,
) -> None:
    seen: list[QmpEvent] = []
    connection = await QmpConnection.connect(monitor.path)
    connection.on_event(seen.append)

    def reset() -> dict[str, object]:
        monitor.event("STOP")
        monitor.event("RESET", guest=False, reason="host-qmp-system-reset")
        return {}

    monitor.replies["system_reset"] = reset
    await connection.execute("system_reset")
    assert [event.name for event in seen] == ["STOP", "RESET"]
    assert seen[1].data["reason"] == "host-qmp-system-reset"
    await connection.close()


async def test_a_monitor_that_hangs_up_is_noticed(monitor: FakeMonitor) -> None:
    connection = await QmpConnection.connect(monitor.path)
    monitor.hang_up()
    async with asyncio.timeout(5):
        await connection.wait_closed()
    with pytest.raises(VmGone, match="QEMU closed its monitor"):
        await connection.execute("query-status")
    await connection.close()


async def test_hanging_up_instead_of_a_reply_is_a_vm_that_is_gone(monitor: FakeMonitor) -> None:
    monitor.replies["quit"] = HANG_UP
    connection = await QmpConnection.connect(monitor.path)
    with pytest.raises(VmGone):
        await connection.execute("quit")
    await connection.close()
