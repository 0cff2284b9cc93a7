"""Where a replay has QEMU stop, and what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kvmdbg.addr import VcpuIndex
from kvmdbg.backend.stub.replay import INTERVAL, Replay
from kvmdbg.errors import TargetError
from tests.support.fake_engine import FakeGuest, FakeRunControl

END = 2 * INTERVAL + 100


class Qemu:
    """A monitor of a QEMU that replays; it is where ``at`` says."""

    def __init__(self) -> None:
        self.at = 0
        self.due: int | None = None
        self.snapshots: dict[str, int] = {}
        self.trouble = ""

    async def hmp(self, command: str, vcpu: VcpuIndex | None = None) -> str:
        word, name = command.split()
        assert word == "savevm"
        self.snapshots[name] = self.at
        return self.trouble

    async def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        match command:
            case "query-replay":
                return {"icount": self.at}
            case "replay-delete-break":
                self.due = None
            case "replay-break":
                assert arguments is not None
                self.due = arguments["icount"]
            case "replay-seek":
                assert self.due is None, "QEMU would abort"
                assert arguments is not None
                self.at = arguments["icount"]
            case "query-block":
                taken = [{"icount": at} for at in self.snapshots.values()]
                return [
                    {},
                    {"inserted": {"image": {}}},
                    {"inserted": {"image": {"snapshots": taken}}},
                ]
            case _:
                pytest.fail(f"{command} is not for a replay")


@pytest.fixture
def qemu() -> Qemu:
    return Qemu()


@pytest.fixture
def replay(qemu: Qemu) -> Replay:
    return Replay(qemu, FakeRunControl(FakeGuest()), END)


async def test_it_stops_where_a_snapshot_is_due_and_at_the_end(qemu: Qemu, replay: Replay) -> None:
    await replay.begin()
    for due in (INTERVAL, 2 * INTERVAL, END):
        assert await replay.advance()
        assert qemu.due == due
        qemu.at = due - 1  # at a breakpoint
        assert not await replay.arrived()
        assert await replay.advance()
        qemu.at = due
        assert await replay.arrived()
    assert not await replay.advance()
    assert list(qemu.snapshots.values()) == [0, INTERVAL, 2 * INTERVAL]
    assert await replay.last_snapshot(2 * INTERVAL) == INTERVAL


async def test_a_stop_that_qemu_has_passed_is_set_anew(qemu: Qemu, replay: Replay) -> None:
    assert await replay.advance()
    qemu.at = INTERVAL + 1  # a step went just there, and on
    assert await replay.advance()
    assert qemu.due == 2 * INTERVAL


async def test_after_a_seek_too(qemu: Qemu, replay: Replay) -> None:
    assert await replay.advance()
    await replay.seek(5)
    assert qemu.at == 5
    assert await replay.advance()
    assert qemu.due == INTERVAL


async def test_the_beginning_is_kept_only_once(qemu: Qemu, replay: Replay) -> None:
    qemu.at = 3
    await replay.begin()
    assert qemu.snapshots == {}


async def test_only_the_first_snapshot_must_not_fail(qemu: Qemu, replay: Replay) -> None:
    qemu.trouble = "Error: no space left\n"
    assert await replay.advance()
    qemu.at = INTERVAL
    assert await replay.advance()
    assert qemu.due == 2 * INTERVAL
    qemu.at = 0
    with pytest.raises(TargetError, match="snapshot of the replay: Error: no space left"):
        await replay.begin()
