"""Launching a real QEMU, and what other monitors and signals do to it."""

import asyncio
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmdbg.addr import VcpuIndex
from kvmdbg.arch import X86_64
from kvmdbg.backend.stub import StubEngine
from kvmdbg.errors import LaunchError, OwnerError, VmGone
from kvmdbg.machine.define import Definition
from kvmdbg.machine.find import find_running, list_vms
from kvmdbg.machine.launch import LaunchOptions, launch_vm, take_over
from kvmdbg.machine.processes import ProcessId
from kvmdbg.machine.runtime import RuntimeDir
from kvmdbg.progress import SilentProgress
from kvmdbg.target.runstate import RunEvent, VmRunState
from kvmdbg.target.stops import Frozen
from tests.vm.bare import launched, needs_qemu, private_runtime, wait_ended

pytestmark = [pytest.mark.vm, needs_qemu]


@pytest.fixture
def runtime() -> Iterator[RuntimeDir]:
    with private_runtime() as runtime:
        yield runtime


async def test_a_launched_vm_is_frozen_at_its_first_instruction(runtime: RuntimeDir) -> None:
    async with launched(runtime, Definition(name="bare", memory="64M", cpus=2)) as bare:
        machine = bare.machine
        assert machine.initial.reason == Frozen()
        assert machine.run_control.state is VmRunState.PRELAUNCH
        assert not machine.was_running
        assert list(machine.engine.vcpus) == [0, 1]
        pc = await machine.engine.registers.read_register(VcpuIndex(0), X86_64.numbers["rip"])
        assert pc is not None
        assert int.from_bytes(pc, "little") == 0xFFF0
        (text,) = machine.notices
        assert text.startswith("accelerator ")


async def test_its_sockets_and_its_facts_are_private(runtime: RuntimeDir) -> None:
    async with launched(runtime) as bare:
        found = runtime.vm_of(bare.machine.info.process)
        assert found is not None
        folder, info = found
        assert info == bare.machine.info
        for path in folder.path.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert os.getsid(info.pid) == info.pid


async def test_it_is_found_by_name_and_pid(runtime: RuntimeDir) -> None:
    async with launched(runtime, name="kd-found") as bare:
        pid = bare.machine.info.pid
        by_name = await asyncio.to_thread(find_running, runtime, "kd-found")
        by_pid = await asyncio.to_thread(find_running, runtime, f"pid:{pid}")
        assert by_name == by_pid
        assert by_name is not None
        assert (by_name.pid, by_name.info) == (pid, bare.machine.info)
        control, free = by_name.monitors
        assert (control.busy, free.busy) == (True, False)
        assert free.path == bare.machine.info.monitor


async def test_it_is_no_vm_to_others_until_its_facts_are_there(runtime: RuntimeDir) -> None:
    async with launched(runtime) as bare:
        found = runtime.vm_of(bare.machine.info.process)
        assert found is not None
        found[0].info.unlink()
        name = f"pid:{bare.machine.info.pid}"
        assert await asyncio.to_thread(find_running, runtime, name) is None


async def test_a_second_one_of_that_name_is_refused(runtime: RuntimeDir) -> None:
    async with launched(runtime, name="twin") as bare:
        with pytest.raises(
            OwnerError, match=f"named twin runs already .pid {bare.machine.info.pid}"
        ):
            async with launched(runtime, name="twin"):
                pass


async def test_what_another_monitor_does_is_noticed(runtime: RuntimeDir) -> None:
    async with launched(runtime) as bare, bare.other_monitor() as other:
        control = bare.machine.run_control
        await other.execute("cont")
        await bare.wait_event(RunEvent.RESUME)
        assert control.state is VmRunState.RUNNING
        await other.execute("stop")
        await bare.wait_event(RunEvent.STOP)
        assert await control.sync() is VmRunState.PAUSED
        await other.execute("system_reset")
        await bare.wait_event(RunEvent.RESET)
        assert await control.sync() is VmRunState.PRELAUNCH
        await other.execute("quit")
        await bare.wait_event(RunEvent.GONE)
        assert control.exit_text == "a monitor command told QEMU to quit"
        assert control.exit_signal == 0


async def test_reset_while_running_keeps_it_running(runtime: RuntimeDir) -> None:
    async with launched(runtime) as bare:
        control = bare.machine.run_control
        await control.cont()
        await control.reset()
        assert RunEvent.RESET in bare.events
        assert await control.sync() is VmRunState.RUNNING


async def test_sigkill_is_told_with_its_signal(runtime: RuntimeDir) -> None:
    async with launched(runtime) as bare:
        os.kill(bare.machine.info.pid, signal.SIGKILL)
        await bare.wait_event(RunEvent.GONE)
        assert bare.machine.run_control.exit_signal == signal.SIGKILL
        with pytest.raises(VmGone, match=r"killed by signal 9 \(SIGKILL\)"):
            await bare.machine.run_control.sync()


async def test_sigterm_is_an_end_in_good_order(runtime: RuntimeDir) -> None:
    async with launched(runtime) as bare:
        os.kill(bare.machine.info.pid, signal.SIGTERM)
        await bare.wait_event(RunEvent.GONE)
        assert bare.machine.run_control.exit_text == "a signal told QEMU to end"


async def test_quit_ends_qemu(runtime: RuntimeDir) -> None:
    async with launched(runtime) as bare:
        await bare.machine.run_control.quit()
        assert bare.machine.run_control.exit_text == "kvmdbg told QEMU to quit"
        assert ProcessId.of(bare.machine.info.pid) is None


async def test_it_outlives_its_owner_and_is_taken_over(runtime: RuntimeDir) -> None:
    async with launched(runtime, engine="stub") as bare:
        first = bare.machine
        await first.run_control.cont()
        found = runtime.vm_of(first.info.process)
        assert found is not None
        # What a killed owner's kernel does: every connection closes.
        assert isinstance(first.engine, StubEngine)
        first.engine.abandon()
        await first.run_control.close()
        first.claim.release()
        second = await take_over(runtime, found[0])
        assert second.info == first.info
        assert second.run_control.state is VmRunState.PAUSED
        await second.close(restore=False)


async def test_what_has_ended_cannot_be_taken_over(runtime: RuntimeDir) -> None:
    async with launched(runtime) as bare:
        found = runtime.vm_of(bare.machine.info.process)
        assert found is not None
        await bare.machine.run_control.quit()
        with pytest.raises(OwnerError, match="has just ended"):
            await take_over(runtime, found[0])
        vms = await asyncio.to_thread(list_vms, runtime)  # sweeps
        assert bare.machine.info.pid not in [vm.pid for vm in vms]
        assert not found[0].path.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extra_args": ("-device", "no-such-device")}, "'no-such-device' is not a valid device"),
        ({"extra_args": ("-frobnicate",)}, "-frobnicate: invalid option: check extra_args"),
        ({"memory": "900000G"}, "give the VM less memory"),
        ({"qemu": "true"}, "does not look like QEMU"),
        ({"qemu": "/no/such/qemu"}, "there is no such program"),
    ],
)
async def test_a_qemu_that_does_not_start_says_why(
    runtime: RuntimeDir, changes: dict[str, object], words: str
) -> None:
    definition = Definition(name="bad", **changes)  # type: ignore[arg-type]
    with pytest.raises(LaunchError) as caught:
        await launch_vm(runtime, definition, LaunchOptions(), SilentProgress())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((runtime.path / "vms").iterdir()) == []


async def test_a_qemu_whose_monitor_never_comes_is_ended(
    runtime: RuntimeDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo QEMU emulator version 7.2.0 && exit\n'
        f"echo $$ > {tmp_path}/pid\nexec sleep 1000\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr("kvmdbg.machine.launch.START_TIMEOUT", 0.3)
    definition = Definition(name="mute", qemu=str(program))
    with pytest.raises(LaunchError, match=r"its monitor did not answer within 0.3 s"):
        await launch_vm(runtime, definition, LaunchOptions(), SilentProgress())
    await wait_ended(int((tmp_path / "pid").read_text()))
    assert list((runtime.path / "vms").iterdir()) == []


async def test_a_name_that_cannot_be_one_is_refused(runtime: RuntimeDir) -> None:
    with pytest.raises(LaunchError, match="'a,b' cannot name a VM"):
        await launch_vm(runtime, Definition(), LaunchOptions(name="a,b"), SilentProgress())
