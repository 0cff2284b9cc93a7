"""What --record leaves, and what --replay wants."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import kvmdbg
from tests.support import vms
from tests.support.command import fresh_name
from tests.support.command import kvmdbg as run_kvmdbg

pytestmark = pytest.mark.vm


async def test_no_recording_under_kvm(tmp_path: Path) -> None:
    for option in ("--record", "--replay"):
        done = await run_kvmdbg("--vm", "demo", "--accel", "kvm", option, tmp_path / "run")
        assert done.status == 2
        assert "under KVM no run can be recorded" in done.sentence
    assert list(tmp_path.iterdir()) == []


async def test_a_replay_needs_a_recording_of_the_same_machine(tmp_path: Path) -> None:
    file = tmp_path / "run"
    done = await run_kvmdbg("--vm", "demo", "--replay", file)
    assert done.status == 1
    assert "cannot be read (No such file" in done.sentence

    async with kvmdbg.open("demo", instance=fresh_name(), record=file) as vm:
        for _ in range(5):
            await vm.step()
        await vm.quit()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.json"]

    done = await run_kvmdbg("--vm", "demo", "--replay", file, "--set", "memory=256M")
    assert done.status == 1
    assert "memory was 512M and is 256M now" in done.sentence

    done = await run_kvmdbg("--vm", "demo", "--record", file)
    assert done.status == 1
    assert f"{file} is there already" in done.sentence
    # None of these has touched it.
    async with kvmdbg.open("demo", instance=fresh_name(), replay=file) as vm:
        await vm.step()
        await vm.quit()


@pytest.mark.gdb
async def test_a_recording_is_there_when_gdb_has_killed_the_vm(tmp_path: Path) -> None:
    file, name = tmp_path / "run", fresh_name()
    script = ("-nx", "-batch", "-ex", "stepi 5", "-ex", "kill")
    done = await run_kvmdbg(
        *("--vm", "demo", "--name", name, "--record", file, "--gdb", "--", *script)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.json"]
    assert done.status == 0
    assert "will be there when it has ended" not in done.err

    script = ("-nx", "-batch", "-ex", "stepi 5", "-ex", "detach")
    done = await run_kvmdbg(
        *("--vm", "demo", "--name", name, "--record", f"{file}2", "--gdb", "--", *script)
    )
    assert f"the VM {name} goes on: {file}2 will be there when it has ended" in done.err


async def test_a_qemu_that_is_killed_leaves_no_recording(tmp_path: Path) -> None:
    file = tmp_path / "run"
    async with kvmdbg.open("demo", instance=fresh_name(), record=file) as vm:
        await vm.step()
        os.kill(vm.status.pid, signal.SIGKILL)
        await vms.wait_ended(vm.name)
    done = await run_kvmdbg("--vm", "demo", "--replay", file)
    assert done.status == 1
    assert "run.part is one whose" in done.sentence


async def test_the_recording_of_a_vm_whose_owner_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "run"
    async with vms.lasting(fresh_name(), record=file) as vm:
        await vm.step()
        await vms.kill_owner(vm.status)
        await vms.end(vm.name)
        assert file.exists()
