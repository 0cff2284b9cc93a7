"""Attaching to a QEMU that kvmdbg did not launch, and leaving it as it was."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmdbg.addr import VcpuIndex
from kvmdbg.arch import AARCH64
from kvmdbg.backend.stub import StubEngine
from kvmdbg.errors import AttachError, OwnerError, VmAmbiguous
from kvmdbg.machine.attach import attach_vm
from kvmdbg.machine.find import find_running, running_vm
from kvmdbg.machine.processes import ProcessId
from kvmdbg.machine.runtime import RuntimeDir
from kvmdbg.machine.sockets import holder_of, survey
from kvmdbg.qmp import QmpConnection
from kvmdbg.target.runstate import VmRunState
from kvmdbg.target.stops import Frozen, Paused
from tests.vm.bare import (
    SECONDS,
    foreign_qemu,
    needs_qemu,
    private_runtime,
    short_folder,
    wait_listening,
)

pytestmark = [pytest.mark.vm, needs_qemu]


@pytest.fixture
def runtime() -> Iterator[RuntimeDir]:
    with private_runtime() as runtime:
        yield runtime


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


def monitor(path: Path) -> tuple[str, str]:
    return ("-qmp", f"unix:{path},server=on,wait=off")


async def ask(path: Path, command: str) -> dict[str, object]:
    connection = await QmpConnection.connect(path)
    try:
        result: dict[str, object] = await connection.execute(command)
        return result
    finally:
        await connection.close()


async def stub_device(path: Path) -> str | None:
    connection = await QmpConnection.connect(path)
    try:
        chardevs = await connection.execute("query-chardev")
    finally:
        await connection.close()
    return next((c["filename"] for c in chardevs if c["label"] == "gdb"), None)


async def test_a_running_vm_is_stopped_and_left_running(runtime: RuntimeDir, folder: Path) -> None:
    qmp = folder / "q"
    async with foreign_qemu("-name", "kd-foreign", "-smp", "2", *monitor(qmp)) as qemu:
        await wait_listening(qmp)
        machine = await attach_vm(runtime, qemu.pid)
        assert machine.was_running
        assert machine.initial.reason == Paused()
        assert machine.run_control.state is VmRunState.PAUSED
        info = machine.info
        assert (info.name, info.cpus, info.accel, info.arch) == ("kd-foreign", 2, "tcg", "x86_64")
        assert (info.booted, info.on_kill) == (False, "detach")
        assert list(machine.engine.vcpus) == [0, 1]
        await machine.close()
        assert (await ask(qmp, "query-status"))["status"] == "running"
        assert await stub_device(qmp) is None


async def test_a_frozen_vm_stays_frozen(runtime: RuntimeDir, folder: Path) -> None:
    qmp = folder / "q"
    async with foreign_qemu("-S", *monitor(qmp)) as qemu:
        await wait_listening(qmp)
        machine = await attach_vm(runtime, qemu.pid)
        assert machine.initial.reason == Frozen()
        await machine.close()
        assert (await ask(qmp, "query-status"))["running"] is False


async def test_the_architecture_is_known_by_the_program(runtime: RuntimeDir, folder: Path) -> None:
    qmp = folder / "q"
    arguments = ("-machine", "virt", "-cpu", "max", *monitor(qmp))
    async with foreign_qemu(*arguments, program="qemu-system-aarch64") as qemu:
        await wait_listening(qmp)
        machine = await attach_vm(runtime, qemu.pid)
        assert machine.info.arch == "aarch64"
        assert isinstance(machine.engine, StubEngine)
        assert machine.engine.slow_memory is None
        pc = await machine.engine.registers.read_register(VcpuIndex(0), AARCH64.numbers["pc"])
        assert pc is not None
        await machine.close()


async def test_its_own_stub_is_put_back(runtime: RuntimeDir, folder: Path) -> None:
    qmp, gdb = folder / "q", folder / "g"
    async with foreign_qemu(*monitor(qmp), "-gdb", f"unix:{gdb},server=on,wait=off") as qemu:
        await wait_listening(qmp)
        before = await stub_device(qmp)
        machine = await attach_vm(runtime, qemu.pid)
        await machine.close()
        assert before == await stub_device(qmp) == f"disconnected:unix:{gdb},server=on"


async def test_a_stub_started_by_hand_is_put_back(runtime: RuntimeDir, folder: Path) -> None:
    qmp, gdb = folder / "q", folder / "g,1"
    async with foreign_qemu(*monitor(qmp)) as qemu:
        await wait_listening(qmp)
        connection = await QmpConnection.connect(qmp)
        line = f"gdbserver unix:{folder}/g,,1,server=on,wait=off"
        await connection.execute("human-monitor-command", {"command-line": line})
        await connection.close()
        before = await stub_device(qmp)
        assert before is not None
        machine = await attach_vm(runtime, qemu.pid)
        await machine.close()
        assert await stub_device(qmp) == before
        assert gdb.exists()


async def test_what_a_killed_kvmdbg_left_is_taken_over(runtime: RuntimeDir, folder: Path) -> None:
    qmp = folder / "q"
    async with foreign_qemu(*monitor(qmp)) as qemu:
        await wait_listening(qmp)
        first = await attach_vm(runtime, qemu.pid)
        assert isinstance(first.engine, StubEngine)
        first.engine.abandon()
        await first.run_control.close()
        first.process.close()
        first.claim.release()
        second = await attach_vm(runtime, qemu.pid)
        await second.close()
        assert await stub_device(qmp) is None


async def test_a_debugger_on_its_stub_is_not_cut_off(runtime: RuntimeDir, folder: Path) -> None:
    qmp, gdb = folder / "q", folder / "g"
    async with foreign_qemu(*monitor(qmp), "-gdb", f"unix:{gdb},server=on,wait=off") as qemu:
        await wait_listening(qmp)
        assert str(await stub_device(qmp)).startswith("disconnected")
        _, writer = await asyncio.open_unix_connection(gdb)
        async with asyncio.timeout(SECONDS):
            while str(await stub_device(qmp)).startswith("disconnected"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        with pytest.raises(AttachError, match="a debugger is connected to QEMU's own stub already"):
            await attach_vm(runtime, qemu.pid)
        assert not str(await stub_device(qmp)).startswith("disconnected")
        writer.close()


async def test_a_busy_monitor_names_its_client_and_the_next_is_taken(
    runtime: RuntimeDir, folder: Path
) -> None:
    first, second = folder / "q1", folder / "q2"
    async with foreign_qemu(*monitor(first), *monitor(second)) as qemu:
        await wait_listening(second)
        clients = [await QmpConnection.connect(first)]
        machine = await attach_vm(runtime, qemu.pid)
        await machine.close()
        clients.append(await QmpConnection.connect(second))
        with pytest.raises(AttachError, match=rf"{first} is in use .*; {second} is in use by"):
            await attach_vm(runtime, qemu.pid)
        for client in clients:
            await client.close()


async def test_a_vm_has_one_owner(runtime: RuntimeDir, folder: Path) -> None:
    async with foreign_qemu(*monitor(folder / "q1"), *monitor(folder / "q2")) as qemu:
        await wait_listening(folder / "q2")
        machine = await attach_vm(runtime, qemu.pid)
        with pytest.raises(OwnerError, match="has an owner already"):
            await attach_vm(runtime, qemu.pid)
        await machine.close()
        await (await attach_vm(runtime, qemu.pid)).close()


async def test_unix_diag_tells_who_listens_and_who_is_connected(
    runtime: RuntimeDir, folder: Path
) -> None:
    qmp = folder / "q"
    async with foreign_qemu(*monitor(qmp)) as qemu:
        await wait_listening(qmp)
        sockets = await asyncio.to_thread(survey)
        (inode,) = sockets.listeners(str(qmp))
        assert await asyncio.to_thread(holder_of, inode) == qemu.pid
        client = await asyncio.create_subprocess_exec(
            *("python3", "-c"),
            "import socket,sys,time; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "s.recv(1); print(flush=True); time.sleep(1000)",
            str(qmp),
            stdout=asyncio.subprocess.PIPE,
        )
        assert client.stdout is not None
        await client.stdout.readline()
        vm = await asyncio.to_thread(running_vm, runtime, qemu.pid)
        assert vm is not None
        (found,) = vm.monitors
        assert (found.busy, found.client) == (True, client.pid)
        with pytest.raises(AttachError, match=rf"is in use by pid {client.pid} \(python3"):
            await attach_vm(runtime, qemu.pid)
        client.kill()
        await client.wait()


async def test_what_cannot_be_attached_to(runtime: RuntimeDir) -> None:
    with pytest.raises(AttachError, match="there is no process"):
        await attach_vm(runtime, 2**22 - 1)
    with pytest.raises(AttachError, match=f"process {os.getpid()} is no QEMU but python"):
        await attach_vm(runtime, os.getpid())
    async with foreign_qemu("-name", "kd-mute") as qemu:
        await asyncio.sleep(0.3)
        with pytest.raises(
            AttachError, match=r"kd-mute .* has no QMP monitor .*: start it with -qmp"
        ):
            await attach_vm(runtime, qemu.pid)


async def test_a_qemu_of_another_user(
    runtime: RuntimeDir, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with foreign_qemu(*monitor(folder / "q")) as qemu:
        await wait_listening(folder / "q")
        uid = os.getuid()
        monkeypatch.setattr("kvmdbg.machine.attach.os.getuid", lambda: uid + 1)
        with pytest.raises(AttachError, match=f"runs as uid {uid} and kvmdbg as uid {uid + 1}"):
            await attach_vm(runtime, qemu.pid)


async def test_two_of_a_name_are_told_apart_by_pid(runtime: RuntimeDir) -> None:
    async with foreign_qemu("-name", "kd-twin") as one, foreign_qemu("-name", "kd-twin") as two:
        await asyncio.sleep(0.3)
        with pytest.raises(VmAmbiguous) as caught:
            await asyncio.to_thread(find_running, runtime, "kd-twin")
        assert f"pid:{one.pid}" in str(caught.value)
        found = await asyncio.to_thread(find_running, runtime, f"pid:{two.pid}")
        assert found is not None
        assert found.process == ProcessId.of(two.pid)
