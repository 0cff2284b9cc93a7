"""Run control, driven by a scripted monitor and a process that stands in for QEMU."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kvmdbg.errors import MonitorError, VmGone
from kvmdbg.machine import runcontrol
from kvmdbg.machine.exitwatch import ExitWatch, adopt
from kvmdbg.machine.runcontrol import QmpMonitor, QmpRunControl
from kvmdbg.qmp import QmpConnection
from kvmdbg.target.runstate import RunEvent, VmRunState
from tests.support.fake_monitor import HANG_UP, SILENCE, FakeMonitor, QmpFailure


class Rig:
    """A run control with what it controls."""

    def __init__(self, monitor: FakeMonitor, connection: QmpConnection, process: ExitWatch) -> None:
        self.monitor = monitor
        self.connection = connection
        self.process = process
        self.events: list[RunEvent] = []

    async def open(self) -> QmpRunControl:
        self.control = await QmpRunControl.open(self.connection, self.process)
        self.control.subscribe(self.events.append)
        return self.control

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """The process ends, and with it the monitor."""
        signal.pidfd_send_signal(self.process._fd, how)
        self.monitor.hang_up()

    async def wait_gone(self) -> None:
        async with asyncio.timeout(5):
            await self.control.wait_gone()


@pytest.fixture
def sleeper() -> int:
    """Pid of a child that stands in for QEMU."""
    child = subprocess.Popen(["sleep", "1000"])
    adopt(child)
    return child.pid


@pytest.fixture
async def rig(sleeper: int, tmp_path: Path) -> AsyncIterator[Rig]:
    process = ExitWatch(sleeper)
    async with FakeMonitor(tmp_path / "qmp.sock") as monitor:
        rig = Rig(monitor, await QmpConnection.connect(monitor.path), process)
        try:
            yield rig
            await rig.control.close()
        finally:
            process.kill()
            await process.wait()


async def test_the_first_state_is_asked_for(rig: Rig) -> None:
    rig.monitor.status = "prelaunch"
    assert (await rig.open()).state is VmRunState.PRELAUNCH


async def test_pause_and_cont(rig: Rig) -> None:
    control = await rig.open()
    rig.monitor.replies |= {"stop": rig.monitor.stop, "cont": rig.monitor.cont}
    states = []
    await control.pause()
    states.append(control.state)
    await control.cont()
    states.append(control.state)
    assert states == [VmRunState.PAUSED, VmRunState.RUNNING]
    assert rig.events == [RunEvent.STOP, RunEvent.RESUME]


async def test_a_stop_of_others_counts_at_once_and_its_kind_follows(rig: Rig) -> None:
    control = await rig.open()
    states = []
    control.subscribe(lambda _: states.append(control.state))
    rig.monitor.status = "guest-panicked"
    rig.monitor.event("GUEST_PANICKED", action="pause")
    rig.monitor.event("STOP")
    await asyncio.sleep(3 * runcontrol._REFRESH_DELAY)
    assert control.state is VmRunState.GUEST_PANICKED
    assert rig.events == [RunEvent.GUEST_PANICKED, RunEvent.STOP]
    assert states == [VmRunState.RUNNING, VmRunState.PAUSED]


async def test_sync_delivers_earlier_events_before_it_returns(rig: Rig) -> None:
    control = await rig.open()

    def status() -> dict[str, str]:
        if rig.monitor.status == "running":
            rig.monitor.stop()
        return {"status": rig.monitor.status}

    rig.monitor.replies["query-status"] = status
    assert await control.sync() is VmRunState.PAUSED
    assert rig.events == [RunEvent.STOP]


async def test_an_answer_that_an_event_overtook_is_asked_for_again(rig: Rig) -> None:
    control = await rig.open()

    def status() -> dict[str, str]:
        if rig.monitor.status == "running":
            return {"status": "running"}
        asyncio.get_running_loop().call_soon(rig.monitor.cont)
        return {"status": "paused"}

    rig.monitor.status = "paused"
    rig.monitor.replies["query-status"] = status
    assert await control.sync() is VmRunState.RUNNING


async def test_a_guest_with_an_event_for_every_answer_does_not_hold_us_up(rig: Rig) -> None:
    control = await rig.open()

    def status() -> dict[str, str]:
        asyncio.get_running_loop().call_soon(rig.monitor.event, "RESET")
        return {"status": "running"}

    rig.monitor.replies["query-status"] = status
    async with asyncio.timeout(5):
        assert await control.sync() is VmRunState.RUNNING


async def test_an_event_of_no_concern_is_ignored(rig: Rig) -> None:
    control = await rig.open()
    rig.monitor.event("RTC_CHANGE", offset=1)
    await control.sync()
    assert rig.events == []


async def test_reset_waits_until_it_is_done(rig: Rig) -> None:
    control = await rig.open()

    def system_reset() -> dict[str, Any]:
        asyncio.get_running_loop().call_later(0.02, rig.monitor.event, "RESET")
        return {}

    rig.monitor.replies["system_reset"] = system_reset
    await control.reset()
    assert rig.events == [RunEvent.RESET]


async def test_a_reset_that_does_not_come_is_an_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = await rig.open()
    monkeypatch.setattr(runcontrol, "RESET_TIMEOUT", 0.05)
    with pytest.raises(MonitorError, match="told to reset the VM and did not"):
        await control.reset()


async def test_what_qemu_refuses_is_a_monitor_error(rig: Rig) -> None:
    control = await rig.open()
    rig.monitor.replies["cont"] = QmpFailure("Resetting the Virtual Machine is required")
    with pytest.raises(MonitorError, match="Resetting the Virtual Machine is required"):
        await control.cont()


async def test_an_unknown_state_is_a_monitor_error(rig: Rig) -> None:
    rig.monitor.status = "on-holiday"
    with pytest.raises(MonitorError, match="'on-holiday', which kvmdbg does not know"):
        await rig.open()
    rig.monitor.status = "running"
    rig.connection = await QmpConnection.connect(rig.monitor.path)
    await rig.open()


async def test_a_kill_is_told_once_with_the_signal(rig: Rig) -> None:
    control = await rig.open()
    rig.end(signal.SIGKILL)
    await rig.wait_gone()
    assert rig.events == [RunEvent.GONE]
    assert control.state is VmRunState.GONE
    assert control.exit_signal == 9
    assert control.exit_text == "QEMU was killed by signal 9 (SIGKILL)"
    with pytest.raises(VmGone, match="the VM has ended: QEMU was killed by signal 9"):
        await control.sync()


async def test_our_quit(rig: Rig) -> None:
    control = await rig.open()
    rig.process.status = None

    def quit() -> object:
        rig.monitor.event("SHUTDOWN", guest=False, reason="host-qmp-quit")
        rig.process.kill()
        return HANG_UP

    rig.monitor.replies["quit"] = quit
    await control.quit()
    assert control.state is VmRunState.GONE


async def test_a_quit_that_is_not_obeyed_names_the_last_resort(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = await rig.open()
    monkeypatch.setattr(runcontrol, "QUIT_TIMEOUT", 0.05)
    with pytest.raises(MonitorError, match=f"kill -9 {rig.process.pid} ends it"):
        await control.quit()


async def test_a_monitor_that_closes_while_qemu_lives(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runcontrol, "_LAST_WORDS", 0.05)
    control = await rig.open()
    rig.monitor.hang_up()
    await rig.wait_gone()
    assert "closed its monitor, but its process" in control.exit_text


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("host-qmp-quit", "a monitor command told QEMU to quit"),
        ("guest-shutdown", "the guest shut down"),
        ("host-signal", "a signal told QEMU to end"),
        ("novel", "QEMU was killed or crashed"),
    ],
)
async def test_how_a_qemu_that_is_not_our_child_ended(
    tmp_path: Path, reason: str, text: str
) -> None:
    # Forked by a shell that goes away: the process is nobody's child here.
    shell = await asyncio.create_subprocess_exec(
        *("sh", "-c", "sleep 1000 >&- & echo $!"), stdout=asyncio.subprocess.PIPE
    )
    pid = int((await shell.communicate())[0])
    process = ExitWatch(pid)
    async with FakeMonitor(tmp_path / "qmp.sock") as monitor:
        control = await QmpRunControl.open(await QmpConnection.connect(monitor.path), process)
        monitor.event("SHUTDOWN", guest=False, reason=reason)
        process.kill()
        monitor.hang_up()
        async with asyncio.timeout(5):
            await control.wait_gone()
        assert (control.exit_text, control.exit_signal) == (text, 0)
        await control.close()


async def test_monitor_questions(rig: Rig) -> None:
    await rig.open()
    rig.monitor.replies["human-monitor-command"] = "VM status: running\r\n"
    assert await QmpMonitor(rig.connection).hmp("info status") == "VM status: running\r\n"


async def test_a_stop_that_hangs_is_an_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    control = await rig.open()
    monkeypatch.setattr(runcontrol, "STOP_TIMEOUT", 0.05)
    rig.monitor.replies["stop"] = SILENCE
    with pytest.raises(MonitorError, match="did not answer stop"):
        await control.pause()


async def test_a_process_that_is_gone_cannot_be_watched() -> None:
    with pytest.raises(VmGone, match="has ended"):
        ExitWatch(2**22 - 1)


async def test_waiting_for_a_stop_asks_nothing(rig: Rig) -> None:
    await rig.open()
    known = rig.control.stops
    waiting = asyncio.create_task(rig.control.wait_stop(known))
    rig.monitor.commands.clear()
    rig.monitor.event("RESUME")
    rig.monitor.event("STOP")
    await waiting
    assert rig.control.stops == known + 1
    assert rig.events == [RunEvent.RESUME, RunEvent.STOP]
    assert rig.monitor.commands == []
    await rig.control.wait_stop(known)  # it has come already


async def test_a_stop_that_is_not_announced_is_asked_about(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runcontrol, "STOP_EVENT_TIMEOUT", 0.05)
    await rig.open()
    rig.monitor.commands.clear()
    await rig.control.wait_stop(rig.control.stops)
    assert "query-status" in rig.monitor.commands
