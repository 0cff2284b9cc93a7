"""Recordings: what is written beside them, when they are whole, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvmdbg.errors import LaunchError
from kvmdbg.machine.define import BootFiles, Definition
from kvmdbg.machine.recording import (
    Recording,
    machine_facts,
    new_recording,
    open_recording,
    replay_arguments,
)
from kvmdbg.target.runstate import RunEvent
from tests.support.fake_engine import FakeMonitor

MACHINE = {"memory": "1G", "kernel": "abc"}


class Recorder(FakeMonitor):
    """Of a QEMU whose guest executes ``more`` instructions when it is let run."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self._more = more

    async def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        if command == "cont":
            self.qmp_answers["query-replay"] = {
                "icount": self.qmp_answers["query-replay"]["icount"] + self._more
            }
            self.asked.append(command)
            return {}
        return await super().qmp(command, arguments)


def recorded(file: Path, log: bytes = b"\0\xe0\x20\x0c", *, more: int = 5) -> Recording:
    """A recording on its way; QEMU has written ``log``."""
    Path(f"{file}.part").write_bytes(log)
    return Recording(file, MACHINE, Recorder(more))


async def complete(recording: Recording, answer: Any, state: str = "paused") -> None:
    assert isinstance(recording.monitor, FakeMonitor)
    recording.monitor.qmp_answers["query-status"] = {"status": state}
    if answer is not None:
        recording.monitor.qmp_answers["query-replay"] = answer
    await recording.note_end()
    recording.on_event(RunEvent.STOP)
    assert not recording.file.exists()
    recording.on_event(RunEvent.GONE)


async def test_a_recording_is_there_when_its_vm_has_ended(tmp_path: Path) -> None:
    file = tmp_path / "run"
    await complete(recorded(file), {"icount": 77})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.json"]
    assert open_recording(Definition(), file, MACHINE).instructions == 77
    with pytest.raises(LaunchError, match="whose kernel was abc and is other now"):
        open_recording(Definition(), file, MACHINE | {"kernel": "other"})
    with pytest.raises(LaunchError, match="is there already"):
        new_recording(Definition(), file)


async def test_the_log_goes_on_beyond_the_last_stop_or_that_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "run"
    await complete(recorded(file, more=0), {"icount": 77})
    assert open_recording(Definition(), file, MACHINE).instructions == 76


@pytest.mark.parametrize("state", ["shutdown", "guest-panicked", "one of another QEMU"])
async def test_the_instruction_that_ended_the_guest_is_left_out(tmp_path: Path, state: str) -> None:
    file = tmp_path / "run"
    await complete(recorded(file), {"icount": 77}, state)
    assert open_recording(Definition(), file, MACHINE).instructions == 76


@pytest.mark.parametrize(("log", "answer"), [(b"\0\0\0\0", {"icount": 7}), (b"\1\1\1\1", None)])
async def test_one_that_was_cut_off_stays_a_part(tmp_path: Path, log: bytes, answer: Any) -> None:
    file = tmp_path / "run"
    await complete(recorded(file, log), answer)
    assert [path.name for path in tmp_path.iterdir()] == ["run.part"]
    with pytest.raises(LaunchError, match=r"run\.part is one whose kvmdbg or QEMU was killed"):
        open_recording(Definition(), file, MACHINE)


def test_what_cannot_be_recorded_or_replayed(tmp_path: Path) -> None:
    file = tmp_path / "run"
    for call in (
        lambda: new_recording(Definition(disk="d"), file),
        lambda: open_recording(Definition(disk="d"), file, {}),
    ):
        with pytest.raises(LaunchError, match="a VM with a disk cannot be recorded"):
            call()
    with pytest.raises(LaunchError, match="a VM with 2 vCPUs cannot be recorded"):
        new_recording(Definition(cpus=2), file)
    with pytest.raises(LaunchError, match="there is no folder"):
        new_recording(Definition(), tmp_path / "none" / "run")
    file.with_name("run.json").write_text("{}")
    with pytest.raises(LaunchError, match="is not what --record writes"):
        open_recording(Definition(), file, {})


def test_arguments_and_facts(tmp_path: Path) -> None:
    definition = Definition()
    log = new_recording(definition, tmp_path / "a,b")[1]
    assert log == f"shift=auto,rr=record,rrfile={tmp_path}/a,,b.part"
    assert "-drive" in replay_arguments(definition, tmp_path / "run")
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"")
    facts = machine_facts(definition, BootFiles(kernel), "quiet", (7, 2, 22))
    assert facts["QEMU"] == "7.2.22"
    assert facts["kernel"].startswith("e3b0c442")
    assert facts["initrd"] == "none"
