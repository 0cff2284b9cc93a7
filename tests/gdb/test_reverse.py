"""A recorded run, forwards and backwards, with a real gdb."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import kvmdbg
from kvmdbg import Vm
from kvmdbg.errors import Unsupported
from kvmdbg.target.stops import Panicked
from tests.support import command, demo
from tests.support.gdb import GDB_18, Gdb, GdbError, start_gdb

pytestmark = pytest.mark.gdb

BEGIN = 0xFFF0
"""pc of the first instruction."""

LAST = "rest_init"
"""Where the recording ends."""


@asynccontextmanager
async def opened(**files: Any) -> AsyncIterator[Vm]:
    """The demo VM, recorded or replayed, and ended afterwards."""
    async with kvmdbg.open("demo", instance=command.fresh_name(), **files) as vm:
        vm.time_scale = 4.0
        yield vm
        await vm.quit()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first second of a run: the kernel up to where it starts its threads."""
    file = tmp_path_factory.mktemp("recording") / "run"

    async def record() -> None:
        async with opened(record=file) as vm:
            await vm.run_to(LAST)
            with pytest.raises(Unsupported, match="is recorded and cannot be changed"):
                await vm.write(demo.kernel()[LAST], b"\x90")
            assert not file.exists()

    asyncio.run(record())
    return file


@asynccontextmanager
async def replayed(recording: Path) -> AsyncIterator[tuple[Vm, Gdb]]:
    """A replay, and a gdb on it, at its beginning."""
    async with (
        opened(replay=recording) as vm,
        start_gdb(demo.artefact("vmlinux"), vm.status.gdb_socket) as gdb,
    ):
        assert await gdb.value("$pc") == BEGIN
        yield vm, gdb


async def go(gdb: Gdb, how: str) -> str:
    """Run as ``how`` says; why it stopped, which at an end of history gdb says to users only."""
    gdb.stops.clear()
    said = len(gdb.console)
    await gdb.mi(f'-interpreter-exec console "{how}"')
    stop = await gdb.wait_stopped(timeout=200)
    if "No more reverse-execution history" in "".join(gdb.console[said:]):
        return "history"
    return str(stop.get("reason") or stop.get("signal-name"))


async def state(gdb: Gdb) -> str:
    """All registers."""
    return await gdb.cli("info registers")


async def position(vm: Vm) -> int:
    """Instructions since the beginning."""
    found = re.search(r"instruction count = (\d+)", await vm.monitor("info replay"))
    assert found
    return int(found[1])


async def test_there_and_back(recording: Path) -> None:
    async with replayed(recording) as (vm, gdb):
        assert await go(gdb, "reverse-stepi") == "history"
        assert await go(gdb, "reverse-continue") == "history"
        assert await gdb.value("$pc") == BEGIN

        await gdb.cli("hbreak *do_timer")
        hits = []
        for _ in range(3):
            assert await go(gdb, "continue") == "breakpoint-hit"
            hits.append((await position(vm), await state(gdb)))
        path = [hits[-1]]
        for _ in range(5):
            assert await go(gdb, "stepi") == "end-stepping-range"
            path.append((await position(vm), await state(gdb)))
        for before in reversed(path[:-1]):
            await go(gdb, "reverse-stepi")
            assert (await position(vm), await state(gdb)) == before
        for before in reversed(hits[:-1]):
            assert await go(gdb, "reverse-continue") == "breakpoint-hit"
            assert (await position(vm), await state(gdb)) == before
        # The same way once more.
        assert await go(gdb, "continue") == "breakpoint-hit"
        assert (await position(vm), await state(gdb)) == hits[1]

        await gdb.cli("delete")
        assert await go(gdb, "continue") == "history"
        assert await gdb.value("$pc") == demo.kernel()[LAST]
        end = (await position(vm), await state(gdb))
        assert await go(gdb, "continue") == "history"
        said = len(gdb.console)
        await go(gdb, "stepi")
        assert "the recording ends here" in "".join(gdb.console[said:])
        assert (await position(vm), await state(gdb)) == end
        assert await go(gdb, "reverse-stepi") == "end-stepping-range"
        assert await position(vm) == end[0] - 1
        assert await go(gdb, "continue") == "history"
        assert (await position(vm), await state(gdb)) == end

        with pytest.raises(GdbError):
            await gdb.cli("set var $rax = 1")
        await go(gdb, "reverse-stepi")
        assert "is a replay and cannot be changed" in "".join(gdb.console)


async def test_breakpoints_at_the_end_and_right_before(recording: Path) -> None:
    """gdb steps off a breakpoint before it goes on, and must not wait for the end of that."""
    async with replayed(recording) as (vm, gdb):
        await gdb.cli(f"hbreak *{LAST}")
        assert await go(gdb, "continue") == "breakpoint-hit"
        end = await position(vm)
        await go(gdb, "stepi")
        await go(gdb, "continue")
        assert await position(vm) == end
        assert await go(gdb, "reverse-stepi") == "end-stepping-range"
        assert await position(vm) == end - 1

        await gdb.cli("delete")
        await gdb.cli("hbreak *$pc")
        # What is right before where the search begins is found, too.
        await go(gdb, "stepi")
        assert await position(vm) == end
        assert await go(gdb, "reverse-continue") == "breakpoint-hit"
        assert await position(vm) == end - 1
        # A step from a breakpoint that leads to the end is a step.
        assert await go(gdb, "stepi") == "end-stepping-range"
        assert await go(gdb, "reverse-stepi") in ("end-stepping-range", "breakpoint-hit")
        assert await position(vm) == end - 1


async def test_back_to_what_wrote_it(recording: Path) -> None:
    """Going back, a watchpoint stops before the access, where the old value is."""
    async with replayed(recording) as (_, gdb):
        await gdb.cli("hbreak *do_timer")
        await go(gdb, "continue")
        await gdb.cli("delete")
        before = await gdb.value("*(long *)&jiffies_64")
        await go(gdb, "continue")
        after = await gdb.value("*(long *)&jiffies_64")
        assert after > before
        await gdb.cli("watch *(long *)&jiffies_64")
        assert await go(gdb, "reverse-continue") == "watchpoint-trigger"
        assert await gdb.value("*(long *)&jiffies_64") == after - 1
        written = await gdb.value("$pc")
        assert await go(gdb, "continue") == "watchpoint-trigger"
        assert await gdb.value("*(long *)&jiffies_64") == after
        assert demo.function_at(await gdb.value("$pc")) == demo.function_at(written)
        # It is the last instruction before this.
        assert await go(gdb, "reverse-continue") == "watchpoint-trigger"
        assert await gdb.value("*(long *)&jiffies_64") == after - 1
        assert await gdb.value("$pc") == written


@pytest.mark.timeout(600)
async def test_back_from_a_panic(tmp_path: Path) -> None:
    """What a recording is for: to the end, which is the panic, and back to what led there."""
    file = tmp_path / "run"
    async with opened(record=file, run=True) as vm:
        vm.time_scale = 10.0
        await vm.wait_console(demo.PROMPT)
        done = await command.kvmdbg("--vm", vm.name, "console")
        assert "is recorded, and QEMU cannot replay" in done.sentence
        assert vm.status.console_socket is not None
        _, writer = await asyncio.open_unix_connection(vm.status.console_socket)
        # One by one: what is more than the line's FIFO holds gets lost in a recorded run.
        for byte in b"sleep 2; echo c > /proc/sysrq-trigger\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()
        assert (await vm.wait_stop(60)).reason == Panicked()
    async with replayed(file) as (_, gdb):
        assert await go(gdb, "continue") == "history"
        assert await go(gdb, "reverse-stepi") == "end-stepping-range"
        await gdb.cli("hbreak *panic")
        assert await go(gdb, "reverse-continue") == "breakpoint-hit"
        assert await gdb.value("$pc") == demo.kernel()["panic"]


async def test_a_search_that_is_interrupted_ends_where_it_began(recording: Path) -> None:
    async with replayed(recording) as (vm, gdb):
        assert await go(gdb, "continue") == "history"
        here = (await position(vm), await state(gdb))
        # Nobody calls it; to know that, all must be looked at.
        await gdb.cli("hbreak *panic")
        gdb.stops.clear()
        await gdb.mi('-interpreter-exec console "reverse-continue"')
        deadline = time.monotonic() + 60
        while not 0 < await position(vm) < here[0] // 2:
            assert time.monotonic() < deadline, "the search did not begin"
            await asyncio.sleep(0.02)
        gdb.interrupt()
        assert (await gdb.wait_stopped())["signal-name"] == "SIGINT"
        assert (await position(vm), await state(gdb)) == here
        # Breakpoints count again, in both directions.
        await gdb.cli("hbreak *do_timer")
        assert await go(gdb, "reverse-continue") == "breakpoint-hit"
        assert await go(gdb, "continue") in ("breakpoint-hit", "history")


@pytest.mark.parametrize("program", ["gdb", GDB_18], ids=["debian", "18"])
async def test_without_a_replay_there_is_no_way_back(kvmdbg_vm: Vm, program: str | Path) -> None:
    async with start_gdb(None, kvmdbg_vm.status.gdb_socket, program) as gdb:
        with pytest.raises(GdbError, match=r"does not support|not currently supported"):
            await gdb.cli("reverse-stepi")
        for packet in ("bs", "bc"):
            said = await gdb.cli(f"maintenance packet {packet}")
            if await gdb.value("$_gdb_major") > 13:
                assert "no replay: record one with --record FILE" in said
            else:
                assert re.search(r'received: "E[0-9a-f]{2}"', said)
        assert "pc" in await state(gdb) or "rip" in await state(gdb)
